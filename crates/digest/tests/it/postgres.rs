//! Rows of a real server: two databases that differ in every OID have the same sums.

use std::path::{Path, PathBuf};
use std::process::Command;

use tidemark_digest::{Forms, LeafBounds};
use tidemark_model::{Column, DataType, RowSum, TupleForm, Tuples, TypeKind};

use crate::{column, of_kind, typed};

/// A server of our own on a socket in a temporary directory; stopped when dropped.
struct Server {
    directory: tempfile::TempDir,
}

impl Server {
    fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        if is_root() {
            std::os::unix::fs::chown(directory.path(), Some(65534), Some(65534)).unwrap();
        }
        let server = Self { directory };
        let data = server.path("data");
        server.run(
            "initdb",
            &["-A", "trust", "-U", "postgres", "-E", "UTF8", "--no-sync", "-D", &data],
        );
        let socket = server.directory.path().display();
        let options = format!("-k {socket} -c listen_addresses='' -c fsync=off");
        let log = server.path("log");
        server.run("pg_ctl", &["-D", &data, "-w", "-l", &log, "-o", &options, "start"]);
        server
    }

    fn path(&self, name: &str) -> String {
        self.directory.path().join(name).display().to_string()
    }

    /// Runs one of the server's programs, as somebody who is not root.
    fn run(&self, program: &str, arguments: &[&str]) -> String {
        let binaries =
            std::env::var("PG_BINDIR").unwrap_or("/usr/lib/postgresql/15/bin".to_owned());
        let program = PathBuf::from(binaries).join(program);
        let mut command = if is_root() {
            let mut command = Command::new("setpriv");
            command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(&program);
            command
        } else {
            Command::new(&program)
        };
        let output = command
            .args(arguments)
            .current_dir(self.directory.path())
            .env("PGHOST", self.directory.path())
            .env("PGUSER", "postgres")
            .env("TZ", "UTC")
            .output()
            .unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{}: {errors}", program.display());
        String::from_utf8(output.stdout).unwrap()
    }

    fn sql(&self, database: &str, sql: &str) -> String {
        self.run("psql", &["-XAtq", "-v", "ON_ERROR_STOP=1", "-d", database, "-c", sql])
    }

    /// The rows of a query as COPY BINARY writes them.
    fn copy(&self, database: &str, query: &str) -> Tuples {
        let file = self.path("rows");
        self.sql(database, &format!("\\copy ({query}) to '{file}' with (format binary)"));
        tuples_of(Path::new(&file))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let data = self.path("data");
        self.run("pg_ctl", &["-D", &data, "-m", "immediate", "-w", "stop"]);
    }
}

fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt as _;
    std::fs::metadata("/proc/self").unwrap().uid() == 0
}

/// Takes signature, header and trailer away and finds the rows.
fn tuples_of(file: &Path) -> Tuples {
    const HEADER: usize = 19;
    let bytes = std::fs::read(file).unwrap();
    let number = |at: usize| i32::from_be_bytes(bytes[at..at + 4].try_into().unwrap());
    let mut at = HEADER;
    let mut ends = Vec::new();
    while bytes[at..at + 2] != [0xff, 0xff] {
        let fields = u16::from_be_bytes([bytes[at], bytes[at + 1]]);
        at += 2;
        for _ in 0..fields {
            at += 4 + usize::try_from(number(at)).unwrap_or(0);
        }
        ends.push((at - HEADER) as u32);
    }
    Tuples { form: TupleForm::PgBinary, data: bytes[HEADER..at].to_vec().into(), ends }
}

fn sums(columns: &[Column], forms: Forms, rows: &Tuples) -> RowSum {
    let mut hasher = crate::hasher(columns, forms);
    hasher.add(rows).unwrap();
    hasher.sum()
}

const TABLE: &str = "
CREATE TABLE t (id int, moods mood[], pair pair, price numeric, ratio float8, span interval,
    doc json, docb jsonb, net inet, hole numrange, holes int4multirange, word char(9), at timestamptz,
    day date, bits varbit, mac macaddr, id2 uuid);
INSERT INTO t SELECT i, ARRAY['bad', 'good', NULL]::mood[], ROW(i, 'good')::pair, i / 7.0,
    i / 3.0::float8, i * interval '1 day 3 seconds', json_build_object('i', i, 'a', ARRAY[i, NULL]),
    jsonb_build_object('i', i * 1.50, 'é', '\"'), '10.0.0.1'::inet + i, numrange(i, i + 1.5),
    int4multirange(int4range(i, i + 2), int4range(i + 9, NULL)), 'w' || i,
    timestamptz '2024-03-01 00:00Z' + i * interval '1 hour', date '2024-03-01' - i, i::bit(32)::varbit,
    '08:00:2b:01:02:03', md5(i::text)::uuid
    FROM generate_series(-500, 500) i;
INSERT INTO t (id, price, ratio, span, day, at) VALUES
    (1, 'NaN', 'NaN', '-1 mon', 'infinity', '-infinity'), (2, 'Infinity', '-Infinity', NULL, NULL, NULL),
    (NULL, 1e-40, 5e-324, '0', '4713-01-01 BC', '294276-12-31 23:59:59.999999Z'), (3, 10^40, '-0', '1', NULL, NULL);
";

fn table() -> Vec<Column> {
    let of = |name: &str| DataType::builtin(0, name);
    let mood = of_kind("mood", TypeKind::Enum(vec!["bad".to_owned(), "good".to_owned()]));
    let pair = vec![("n".to_owned(), of("int4"), -1), ("m".to_owned(), mood.clone(), -1)];
    vec![
        column("id", "int4"),
        typed("moods", of_kind("_mood", TypeKind::Array(Box::new(mood)))),
        typed("pair", of_kind("pair", TypeKind::Composite(pair))),
        column("price", "numeric"),
        column("ratio", "float8"),
        column("span", "interval"),
        column("doc", "json"),
        column("docb", "jsonb"),
        column("net", "inet"),
        typed("hole", of_kind("numrange", TypeKind::Range(Box::new(of("numeric"))))),
        typed("holes", of_kind("int4multirange", TypeKind::Multirange(Box::new(of("int4"))))),
        column("word", "bpchar"),
        column("at", "timestamptz"),
        column("day", "date"),
        column("bits", "varbit"),
        column("mac", "macaddr"),
        column("id2", "uuid"),
    ]
}

#[test]
fn two_databases_with_other_oids_have_the_same_sums() {
    let server = Server::start();
    let mood = "CREATE TYPE mood AS ENUM ('bad', 'good');";
    let pair = "CREATE TYPE pair AS (n int, m mood);";
    server.sql("postgres", "CREATE DATABASE one");
    server.sql("postgres", "CREATE DATABASE two");
    server.sql("one", &format!("{mood}{pair}{TABLE}"));
    let other = "CREATE TYPE first AS (a int); CREATE TYPE mood AS ENUM ('good'); CREATE TABLE x (a first);";
    server.sql("two", &format!("{other} ALTER TYPE mood ADD VALUE 'bad' BEFORE 'good';"));
    server.sql("two", &format!("{pair}{TABLE}"));

    let one = server.copy("one", "select * from t");
    let two = server.copy("two", "select * from t order by id desc");
    assert_eq!(one.row_count(), 1005);
    assert_ne!(one.data, two.data, "the OIDs are the same: the test shows nothing");
    let columns = table();
    for forms in [Forms::RawCanonical, Forms::RawAndValue] {
        assert_eq!(sums(&columns, forms, &one), sums(&columns, forms, &two));
    }
    // One digit of one row.
    server.sql("two", "UPDATE t SET price = price + 1e-20 WHERE id = 77");
    let changed = server.copy("two", "select * from t");
    let (before, after) =
        (sums(&columns, Forms::RawAndValue, &two), sums(&columns, Forms::RawAndValue, &changed));
    assert!(before.raw != after.raw && before.value != after.value);

    numbers_of_the_server_are_read_as_it_sends_them(&server);
}

/// Values that PostgreSQL itself takes for equal, and leaf bounds in its own text.
fn numbers_of_the_server_are_read_as_it_sends_them(server: &Server) {
    let value = |type_name: &str, literal: &str| {
        let rows = server.copy("one", &format!("select {type_name} {literal} as c"));
        sums(&[column("c", type_name)], Forms::RawAndValue, &rows)
    };
    for (type_name, left, right) in [
        ("numeric", "'1.0'", "'1.000'"),
        ("interval", "'1 mon'", "'30 days'"),
        ("json", "'{\"a\":1.0}'", "' {\"a\" : 1}'"),
        ("jsonb", "'{\"a\":1.0,\"b\":2}'", "'{\"b\":2,\"a\":1}'"),
        ("float8", "'-0'", "'0'"),
    ] {
        let (left, right) = (value(type_name, left), value(type_name, right));
        assert!(left.value == right.value && left.raw != right.raw, "{type_name}");
    }
    for (type_name, key) in [
        ("date", "'4713-01-01 BC'"),
        ("date", "'5874897-12-31'"),
        ("timestamptz", "'1883-11-18 12:03:57-00:03:57'"),
        ("timestamptz", "'0044-03-15 12:00:00.25+00 BC'"),
        ("timestamp", "'294276-12-31 23:59:59.999999'"),
        ("int8", "'-9007199254740993'"),
        ("uuid", "'123e4567-e89b-12d3-a456-426614174000'"),
    ] {
        let text = server.sql("one", &format!("select {type_name} {key}")).trim().to_owned();
        let columns = [column("c", type_name)];
        let leaves = LeafBounds::from_text_bounds(&columns[0], 0, std::slice::from_ref(&text));
        assert_eq!(leaves.leaf_count(), 2, "{text}");
        let below = if type_name == "uuid" {
            "'123e4567-e89b-12d3-a456-426614173fff'".to_owned()
        } else {
            let step = if type_name.starts_with("time") { "interval '1 us'" } else { "1" };
            format!("({type_name} {key} - {step})::{type_name}")
        };
        let prefix = if below.starts_with('\'') { type_name } else { "" };
        let query = format!("select {prefix} {below} as c union all select {type_name} {key}");
        let mut hasher = tidemark_digest::RowHasher::compile(
            &crate::own(&columns),
            TupleForm::PgBinary,
            Forms::Raw,
            &crate::key(),
            leaves,
        )
        .unwrap();
        hasher.add(&server.copy("one", &query)).unwrap();
        let found: Vec<u32> = hasher.finish().1.iter().map(|leaf| leaf.leaf).collect();
        assert_eq!(found, [0, 1], "{type_name} {text}");
    }
}
