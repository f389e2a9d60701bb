//! Ordinary mistakes: each gets one clear message that names the object and the way out, and its exit code.
//!
//! **Invariant:** every run here says everything (`-vv`) with a password in its URLs; neither the password nor a value of
//! a row is in what it prints or leaves behind.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use tidemark_testkit::{Auth, Cluster, Version, workload};

use crate::support::{Job, Ran, assert_same, files_below};

/// As it stands in a URL, and as the server knows it.
const PASSWORD: [&str; 2] = ["S3cr3t-%40", "S3cr3t-@"];
/// What no output may hold: the password, in whatever form, and what stands in a row.
const FORBIDDEN: [&str; 2] = ["S3cr3t", "p0ison"];
const EXISTS: &str = "schema = \"exists\"\n";

const SOURCE: &str = "
CREATE TABLE parent (id integer PRIMARY KEY, t text);
CREATE TABLE child (id integer PRIMARY KEY, parent integer REFERENCES parent);
CREATE TABLE wide (id bigint, t varchar(40));
CREATE TABLE twins (id integer, t text);
CREATE TABLE checked (id integer, t text);
INSERT INTO parent SELECT i, 'p0ison ' || i FROM generate_series(1, 20) i;
INSERT INTO child SELECT i, i FROM generate_series(1, 20) i;
INSERT INTO wide SELECT i, 'p0ison' FROM generate_series(1, 20) i;
INSERT INTO twins VALUES (1, 'p0ison'), (2, 'p0ison');
INSERT INTO checked VALUES (1, 'p0ison');
";

/// A server with passwords, a source database `shop` and roles that lack something.
struct Rig {
    cluster: Cluster,
    targets: u32,
}

impl Rig {
    fn start() -> Self {
        let cluster = Cluster::builder().auth(Auth::Scram).start().unwrap();
        cluster.create_database("shop").unwrap();
        cluster.psql("shop", SOURCE).unwrap();
        workload::load_row_security(&cluster, "shop").unwrap();
        let password = PASSWORD[1];
        let roles = format!(
            "CREATE ROLE boss SUPERUSER LOGIN PASSWORD '{password}'; CREATE ROLE reader LOGIN PASSWORD '{password}'; \
             CREATE ROLE loader LOGIN PASSWORD '{password}'; GRANT SELECT ON ALL TABLES IN SCHEMA public, secured TO reader; \
             GRANT USAGE ON SCHEMA secured TO reader; REVOKE SELECT ON parent FROM reader;"
        );
        cluster.psql("shop", &roles).unwrap();
        Self { cluster, targets: 0 }
    }

    fn url(&self, role: &str, database: &str) -> String {
        url(role, PASSWORD[0], self.cluster.port(), database)
    }

    /// A new target database with these tables.
    fn target(&mut self, sql: &str) -> String {
        self.targets += 1;
        let name = format!("target_{}", self.targets);
        self.cluster.create_database(&name).unwrap();
        self.cluster.psql(&name, sql).unwrap();
        name
    }

    /// A job with the superuser on both sides, of some tables.
    fn job(&mut self, tables: &[&str], target_sql: &str, more: &str) -> Job {
        let target = self.target(target_sql);
        let (from, to) = (self.url("boss", "shop"), self.url("boss", &target));
        Job::new("mistake", &from, &to).configured(&format!("{more}{}", select(tables)))
    }
}

fn select(tables: &[&str]) -> String {
    let quoted: Vec<String> =
        tables.iter().map(|table| format!("{:?}", format!("public.{table}"))).collect();
    format!("[select]\ninclude = [{}]\n", quoted.join(", "))
}

fn url(role: &str, password: &str, port: u16, database: &str) -> String {
    format!("postgres://{role}:{password}@127.0.0.1:{port}/{database}")
}

/// Runs it with everything said, and looks for what must not be seen.
#[track_caller]
fn run(what: &str, job: &Job, more: &[&str], code: i32, parts: &[&str]) -> Ran {
    let ran = job.run(&[&["sync", "--snapshot-only", "-vv"], more].concat());
    let ended = format!("{what}: exit {}\n{}", ran.code, ran.stderr);
    assert_eq!(ran.code, code, "{ended}");
    for part in parts {
        assert!(ran.stderr.contains(part), "no {part:?} in {ended}");
    }
    let errors = ran.stderr.lines().filter(|line| line.starts_with("error:")).count();
    assert_eq!(errors, usize::from(code != 0), "one message: {ended}");
    let has_way_out = ["way out:", "mend:"].iter().any(|word| ran.stderr.contains(word));
    assert!(code == 0 || has_way_out, "no way out: {ended}");
    assert_hidden(what, job.path(), &ran);
    ran
}

#[track_caller]
fn assert_hidden(what: &str, directory: &Path, ran: &Ran) {
    for word in FORBIDDEN {
        assert!(!ran.stderr.contains(word), "{what} shows {word}: {}", ran.stderr);
        assert!(!ran.stdout.contains(word), "{what} shows {word}: {}", ran.stdout);
        // The configuration is the user's own.
        for file in files_below(directory).iter().filter(|file| *file != "job.toml") {
            let bytes = fs::read(directory.join(file)).unwrap_or_default();
            assert!(!String::from_utf8_lossy(&bytes).contains(word), "{what}: {file} holds {word}");
        }
    }
}

#[test]
fn a_server_that_is_not_there_or_does_not_let_us_in() {
    let mut rig = Rig::start();
    let (source, target) = (rig.url("boss", "shop"), rig.target(""));
    let target = rig.url("boss", &target);
    let port = rig.cluster.port();
    let job = |from: &str, to: &str| Job::new("mistake", from, to).configured("");
    let wrong = url("boss", "wrong-S3cr3t", port, "shop");
    run(
        "wrong password",
        &job(&wrong, &target),
        &[],
        2,
        &["password authentication failed", "127.0.0.1"],
    );
    run(
        "wrong password of the target",
        &job(&source, &wrong),
        &[],
        2,
        &["password authentication failed"],
    );
    let host = source.replace("127.0.0.1", "no-such-host.invalid");
    run("unknown host", &job(&host, &target), &[], 8, &["no-such-host.invalid"]);
    let refused = url("boss", PASSWORD[0], 1, "shop");
    run("refused port", &job(&refused, &target), &[], 8, &["127.0.0.1:1"]);
    run("refused port of the target", &job(&source, &refused), &[], 8, &["127.0.0.1:1"]);
    let database = url("boss", PASSWORD[0], port, "nothing");
    run("unknown database", &job(&database, &target), &[], 2, &["nothing"]);
    run("unknown database of the target", &job(&source, &database), &[], 2, &["nothing"]);
    run(
        "unknown role",
        &job(&url("nobody", PASSWORD[0], port, "shop"), &target),
        &[],
        2,
        &["nobody"],
    );
}

#[test]
fn a_selection_or_a_file_that_makes_no_sense() {
    let mut rig = Rig::start();
    let job = rig.job(&["parent"], "", "");
    run("unknown table", &job, &["--table", "public.nope"], 2, &["public.nope"]);
    let job = rig.job(&["parent"], "", "").configured("shcema = \"create\"\n");
    run("misspelt key", &job, &[], 2, &["shcema", "schema"]);
    let table = |more: &str| format!("[[table]]\nname = \"public.wide\"\n{more}\n");
    let job = rig.job(&["wide"], "", "");
    let with = |more: &str| format!("{}{}", select(&["wide"]), table(more));
    run(
        "unknown column",
        &job.configured(&with("columns = [\"nope\"]")),
        &[],
        2,
        &["nope", "wide"],
    );
    let job = rig.job(&["wide"], "", "").configured(&with("where = \"id >\""));
    run("where that is no SQL", &job, &[], 2, &["wide", "where"]);
    let job = rig.job(&["wide"], "", "").configured(&with("where = \"id > 1) OR (id < 3\""));
    run("where that breaks out", &job, &[], 2, &["wide", "where", "parenthesis"]);
    let job = rig.job(&["wide"], "", "").configured(&with("where = \"id > $1\""));
    run("where with a parameter", &job, &[], 2, &["wide", "where", "parameter"]);
    let job = rig.job(&["wide"], "", "").configured(&with("where = \"nope > 1\""));
    run("where of a column that is not there", &job, &[], 2, &["wide", "where", "nope"]);
    let job = rig.job(&["wide"], "", "").configured(&with("where = \"t::integer > 1\""));
    run("where that fails on a row", &job, &[], 2, &["wide", "where"]);
}

#[test]
fn a_state_directory_that_cannot_be_used() {
    let mut rig = Rig::start();
    let job = rig.job(&["parent"], "", "");
    fs::write(job.path().join("file"), "").unwrap();
    let below = job.path().join("file/state");
    run("no directory", &job.state_at(&below), &[], 8, &["file/state"]);
    let job = rig.job(&["parent"], "", "");
    let open = job.path().join("open");
    fs::create_dir(&open).unwrap();
    fs::set_permissions(&open, fs::Permissions::from_mode(0o777)).unwrap();
    run("open to all", &job.state_at(&open), &[], 2, &["open", "chmod 700"]);
    let job = rig.job(&["parent"], "", "");
    let link = job.path().join("link");
    std::os::unix::fs::symlink("/tmp", &link).unwrap();
    run("a symbolic link", &job.state_at(&link), &[], 2, &["link"]);
}

#[test]
fn a_target_that_takes_nothing() {
    let mut rig = Rig::start();
    let source = rig.url("boss", "shop");
    let target = rig.target("CREATE TABLE other (id integer)");
    let job = |to: &str| Job::new("mistake", &source, to).configured(&select(&["parent"]));
    run("not empty", &job(&rig.url("boss", &target)), &[], 5, &["other", "--target-not-empty"]);
    let target = rig.target("");
    rig.cluster
        .psql(
            "postgres",
            &format!("ALTER DATABASE {target} SET default_transaction_read_only = on"),
        )
        .unwrap();
    run("read-only", &job(&rig.url("boss", &target)), &[], 5, &[&target, "read-only"]);
    let target = rig.target("");
    run(
        "no CREATE",
        &job(&rig.url("loader", &target)),
        &[],
        5,
        &["GRANT CREATE ON DATABASE", "loader"],
    );
    let target = rig.target("");
    let standby = rig.cluster.standby().unwrap();
    standby.wait_for_replay(&rig.cluster).unwrap();
    let to = url("boss", PASSWORD[0], standby.port(), &target);
    run("standby", &job(&to), &[], 5, &["standby", "primary"]);
}

#[test]
fn a_source_that_hides_something() {
    let mut rig = Rig::start();
    let target = rig.target("");
    let to = rig.url("boss", &target);
    let from = rig.url("reader", "shop");
    let job = |include: &str| {
        Job::new("mistake", &from, &to).configured(&format!("[select]\ninclude = [{include}]\n"))
    };
    run("row security", &job("\"secured.*\""), &[], 5, &["payslip", "BYPASSRLS"]);
    run(
        "no SELECT",
        &job("\"public.parent\", \"public.child\""),
        &[],
        5,
        &["parent", "GRANT SELECT"],
    );
}

#[test]
fn tables_of_the_target_that_do_not_fit() {
    let mut rig = Rig::start();
    let job = rig.job(&["parent"], "", EXISTS);
    run("missing table", &job, &[], 5, &["parent", "no such table"]);
    let job = rig.job(&["parent"], "CREATE TABLE parent (id integer)", EXISTS);
    run("missing column", &job, &[], 5, &["parent", "\"t\""]);
    let job = rig.job(&["wide"], "CREATE TABLE wide (id integer, t varchar(40))", EXISTS);
    run("narrower number", &job, &[], 5, &["wide", "bigint", "integer"]);
    let job = rig.job(&["wide"], "CREATE TABLE wide (id bigint, t varchar(4))", EXISTS);
    run("narrower text", &job, &[], 5, &["wide", "varying(40)", "varying(4)"]);
    let job = rig.job(
        &["wide"],
        "CREATE TABLE wide (id bigint, t varchar(40), more integer NOT NULL)",
        EXISTS,
    );
    run("extra column", &job, &[], 5, &["wide", "more"]);
    let job = rig.job(&["wide"], "CREATE TABLE wide (id bigint NOT NULL, t varchar(40))", EXISTS);
    run("not null", &job, &[], 5, &["wide", "NULL"]);
    let orphans = "CREATE TABLE parent (id integer PRIMARY KEY, t text); CREATE TABLE child (id integer PRIMARY KEY, parent integer REFERENCES parent)";
    let job = rig.job(&["child"], orphans, EXISTS);
    run("orphans of a foreign key", &job, &[], 7, &["child_parent_fkey", "child"]);
}

#[test]
fn rows_that_the_target_refuses_are_never_shown() {
    let mut rig = Rig::start();
    let job = rig.job(&["twins"], "CREATE TABLE twins (id integer, t text UNIQUE)", EXISTS);
    run("unique violation", &job, &[], 7, &["twins", "unique"]);
    let job = rig.job(
        &["checked"],
        "CREATE TABLE checked (id integer, t text CHECK (t NOT LIKE 'p%'))",
        EXISTS,
    );
    run("check violation", &job, &[], 7, &["checked", "check constraint"]);
    rig.cluster
        .create_database_with("ascii", "TEMPLATE template0 ENCODING 'SQL_ASCII' LOCALE 'C'")
        .unwrap();
    let sql = "SET client_encoding = 'SQL_ASCII'; CREATE TABLE bytes (id integer, t text); INSERT INTO bytes VALUES (1, 'fine'), (2, E'p0ison\\xac')";
    rig.cluster.psql("ascii", sql).unwrap();
    let target = rig.target("CREATE TABLE bytes (id integer, t text)");
    let (from, to) = (rig.url("boss", "ascii"), rig.url("boss", &target));
    let job = Job::new("mistake", &from, &to).configured(EXISTS);
    run("invalid bytes", &job, &[], 7, &["bytes", "encoding"]);
    assert_eq!(rig.cluster.psql(&target, "SELECT count(*) FROM bytes").unwrap(), "0");
}

#[test]
fn client_programs_that_are_absent_or_old() {
    let mut rig = Rig::start();
    let job = rig.job(&["parent"], "", "").set("TIDEMARK_PG_BIN", "/nonexistent");
    run("no pg_dump", &job, &[], 5, &["pg_dump", "postgresql-client"]);
    let job = rig.job(&["parent"], "", "");
    let tool = job.path().join("pg_dump");
    fs::write(&tool, "#!/bin/sh\necho 'pg_dump (PostgreSQL) 12.1'\n").unwrap();
    fs::set_permissions(&tool, fs::Permissions::from_mode(0o755)).unwrap();
    let directory = job.path().display().to_string();
    let job = job.set("TIDEMARK_PG_BIN", &directory);
    let package = format!("postgresql-client-{}", Version::from_env().major());
    run("old pg_dump", &job, &[], 5, &["pg_dump", "12", &package]);
}

#[test]
fn neither_wal_level_nor_replication_rights_are_needed_and_no_password_is_in_an_argument() {
    let source = Cluster::builder()
        .auth(Auth::Scram)
        .setting("wal_level", "minimal")
        .setting("max_wal_senders", "0")
        .start()
        .unwrap();
    source.create_database("shop").unwrap();
    let role = format!("CREATE ROLE reader LOGIN PASSWORD '{}'", PASSWORD[1]);
    source.psql("postgres", &role).unwrap();
    source.psql("shop", "CREATE TABLE t (id integer PRIMARY KEY, u text); INSERT INTO t SELECT i, 'p0ison' FROM generate_series(1, 3000) i; GRANT SELECT ON t TO reader").unwrap();
    let mut rig = Rig::start();
    let target = rig.target("");
    let (from, to) = (url("reader", PASSWORD[0], source.port(), "shop"), rig.url("boss", &target));
    let job = Job::new("small", &from, &to);
    let mut running = job.start(&["sync", "--snapshot-only", "-vv"]);
    let mut looked = 0;
    while !running.has_ended() {
        assert!(!arguments_of_all().contains("S3cr3t"), "a password is in an argument");
        looked += 1;
    }
    assert!(looked > 0);
    let ran = running.end().expect(0);
    assert_hidden("a good run", job.path(), &ran);
    assert_same((&source, "shop"), (&rig.cluster, &target));
}

/// The arguments of every process.
fn arguments_of_all() -> String {
    let entries = fs::read_dir("/proc").unwrap();
    let texts = entries.filter_map(|entry| fs::read(entry.ok()?.path().join("cmdline")).ok());
    texts.map(|bytes| String::from_utf8_lossy(&bytes).into_owned() + "\n").collect()
}
