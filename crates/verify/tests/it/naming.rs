//! The rows that differ, each named with its key, whatever the key and however many there are.
//!
//! **Invariant:** what has to be named is written beside what was put into the two tables, or is what the server's `EXCEPT ALL`
//! says; the lines are read as a user would read them.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write;
use std::sync::{Arc, Mutex};

use serde_json::Value;
use tidemark_report::{DiffCounts, DiffFile, Level, Redaction, Redactor, Verdict};
use tidemark_verify::{Lines, Outcome, Request, Which, verify_quiesced};
use tidemark_wire::ConnectSpec;
use tokio_util::sync::CancellationToken;

use crate::generated::Lcg;
use crate::support::{Pair, table};

/// Keeps what is written.
#[derive(Clone, Default)]
pub(crate) struct Kept(Arc<Mutex<Vec<u8>>>);

impl Write for Kept {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Kept {
    /// Lines that are kept, from now on.
    pub(crate) fn new(request: &mut Request, redaction: Redaction) -> Self {
        let kept = Self::default();
        request.lines = Lines::new(Box::new(kept.clone()), Redactor::new(redaction, [3; 32]));
        kept
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }

    /// `kind key=value ...` of each line of a table, sorted, `x n` behind it if there are several.
    pub(crate) fn of(&self, table: &str) -> Vec<String> {
        let lines = self.text();
        let lines = lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        let mut found: Vec<String> =
            lines.filter(|line| line["table"] == table).map(|line| short(&line)).collect();
        found.sort();
        found
    }
}

fn short(line: &Value) -> String {
    let mut text = line["kind"].as_str().unwrap().to_owned();
    for (column, value) in line["key"].as_object().unwrap() {
        write!(text, " {column}={value}").unwrap();
    }
    if let Some(copies) = line["copies"].as_u64() {
        write!(text, " x{copies}").unwrap();
    }
    for (column, found) in line.get("columns").and_then(Value::as_object).into_iter().flatten() {
        let (class, source, target) = (&found["class"], &found["source"], &found["target"]);
        write!(text, " {column}:{}({source}->{target})", class.as_str().unwrap()).unwrap();
    }
    text
}

/// What was found, and its lines.
pub(crate) async fn named(
    pair: &Pair,
    level: Level,
    redaction: Redaction,
) -> (Outcome, Kept, DiffFile) {
    let mut request = pair.request.clone();
    request.level = level;
    let kept = Kept::new(&mut request, redaction);
    let outcome = verify_quiesced(&request, &CancellationToken::new()).await.unwrap();
    let file = request.lines.finish("diff.ndjson").unwrap();
    assert_eq!(file.lines, kept.text().lines().count() as u64);
    (outcome, kept, file)
}

/// Name, definition and rows on the source, what the target does to it, and the lines.
const CASES: &[(&str, &str, &str, &[&str])] = &[
    (
        "number",
        "(id int PRIMARY KEY, a text); INSERT INTO number SELECT i, 'r' || i FROM generate_series(1, 50) i",
        "DELETE FROM number WHERE id = 3; UPDATE number SET a = 'x' WHERE id IN (5, 50); INSERT INTO number VALUES (-7, 'new')",
        &["changed id=5", "changed id=50", "extra id=-7", "missing id=3"],
    ),
    (
        "big",
        "(id bigint PRIMARY KEY, a text); INSERT INTO big VALUES (9007199254740993, 'a'), (-9223372036854775808, 'b')",
        "UPDATE big SET a = 'x'",
        &[r#"changed id="-9223372036854775808""#, r#"changed id="9007199254740993""#],
    ),
    (
        "moved",
        "(id int PRIMARY KEY, a text); INSERT INTO moved SELECT i, 'r' FROM generate_series(1, 9) i",
        "UPDATE moved SET id = 90 WHERE id = 4",
        &["extra id=90", "missing id=4"],
    ),
    (
        "word",
        "(k text PRIMARY KEY, n numeric); INSERT INTO word VALUES ('a', 1), ('A', 1), ('it''s', 2), (E'back\\\\slash\\n', 3), ('é', 1.0)",
        "UPDATE word SET n = 9 WHERE k IN ('A', 'it''s'); DELETE FROM word WHERE k LIKE 'back%'; UPDATE word SET n = 1.00 WHERE k = 'é'",
        &[
            r#"changed k="A""#,
            r#"changed k="it's""#,
            r#"equivalent k="é""#,
            r#"missing k="back\\slash\n""#,
        ],
    ),
    (
        "pairwise",
        "(b text, a int, v bytea, PRIMARY KEY (a, b)); INSERT INTO pairwise SELECT 'k' || i % 3, i / 3, '\\x00' FROM generate_series(0, 11) i",
        "UPDATE pairwise SET v = '\\x01' WHERE (a, b) = (2, 'k1'); DELETE FROM pairwise WHERE (a, b) = (0, 'k0')",
        &[r#"changed a=2 b="k1""#, r#"missing a=0 b="k0""#],
    ),
    (
        "two_numbers",
        "(a int, b smallint, v text, PRIMARY KEY (a, b)); INSERT INTO two_numbers SELECT -i, i % 2, 'v' FROM generate_series(1, 9) i",
        "UPDATE two_numbers SET v = 'w' WHERE a = -4",
        &["changed a=-4 b=0"],
    ),
    (
        "uuids",
        "(id uuid PRIMARY KEY, a int); INSERT INTO uuids SELECT md5(i::text)::uuid, i FROM generate_series(1, 9) i",
        "DELETE FROM uuids WHERE a = 1; UPDATE uuids SET a = 0 WHERE a = 2",
        &[
            r#"changed id="c81e728d-9d4c-2f63-6f06-7f89cc14862c""#,
            r#"missing id="c4ca4238-a0b9-2382-0dcc-509a6f75849b""#,
        ],
    ),
    (
        "keyless",
        "(a text, b int); INSERT INTO keyless VALUES ('A', 1), ('A', 1), ('B', NULL), ('c', 1)",
        "DELETE FROM keyless; INSERT INTO keyless VALUES ('A', 1), ('B', NULL), ('B', NULL), ('B', NULL), ('c', 1)",
        &[r#"extra a="B" b=null x2"#, r#"missing a="A" b=1"#],
    ),
    (
        "keyless_value",
        "(a text, n numeric); INSERT INTO keyless_value VALUES ('A', 1.0), ('A', 1.0), ('B', 1), ('B', 1)",
        "DELETE FROM keyless_value; INSERT INTO keyless_value VALUES ('A', 1.0), ('A', 1.000), ('B', 1)",
        &[r#"equivalent a="A" n="1.0""#, r#"missing a="B" n="1""#],
    ),
    (
        "no_key_there",
        "(id int PRIMARY KEY, a text); INSERT INTO no_key_there VALUES (1, 'a'), (2, 'b')",
        "ALTER TABLE no_key_there DROP CONSTRAINT no_key_there_pkey; ALTER TABLE no_key_there ALTER id DROP NOT NULL; \
         INSERT INTO no_key_there VALUES (NULL, 'n'), (NULL, 'n'), (2, 'b')",
        &["extra id=2", "extra id=null x2"],
    ),
    (
        "widened",
        "(id int PRIMARY KEY, a text); INSERT INTO widened SELECT i, 'r' FROM generate_series(1, 9) i",
        "ALTER TABLE widened ALTER id TYPE bigint; UPDATE widened SET a = 'x' WHERE id = 8; INSERT INTO widened VALUES (5000000000, 'big')",
        &["changed id=8", r#"extra id="5000000000""#],
    ),
    (
        "only_value",
        "(id int PRIMARY KEY, n numeric, f float8); INSERT INTO only_value VALUES (1, 1.0, 0), (2, 2, 0), (3, 3, 1)",
        "UPDATE only_value SET n = 1.00 WHERE id = 1; UPDATE only_value SET f = '-0' WHERE id = 2",
        &["equivalent id=1", "equivalent id=2"],
    ),
    (
        "at_times",
        "(t timestamptz, d date, PRIMARY KEY (t, d), a int); INSERT INTO at_times SELECT '2026-01-01 00:00Z'::timestamptz + i * '1 hour'::interval, '2026-01-01', i FROM generate_series(1, 5) i",
        "DELETE FROM at_times WHERE a = 2",
        &[r#"missing d="2026-01-01" t="2026-01-01 02:00:00+00""#],
    ),
    (
        "parted",
        "(id int PRIMARY KEY, a text) PARTITION BY RANGE (id); CREATE TABLE parted_1 PARTITION OF parted FOR VALUES FROM (0) TO (10); \
         CREATE TABLE parted_2 PARTITION OF parted FOR VALUES FROM (10) TO (20); INSERT INTO parted SELECT i, 'r' FROM generate_series(0, 19) i",
        "UPDATE parted SET a = 'x' WHERE id = 13",
        &[],
    ),
];

#[tokio::test(flavor = "multi_thread")]
async fn every_differing_row_is_named_by_its_key() {
    let pair = Pair::new();
    for (name, rows, change, _) in CASES {
        pair.both(&format!("CREATE TABLE {name} {rows}"));
        pair.target.psql(change).unwrap();
    }
    // Names that only quotes can hold.
    pair.both(r#"CREATE TABLE "a ""t""" ("k.x" text PRIMARY KEY, "v""w" int); INSERT INTO "a ""t""" VALUES ('x', 1), ('y', 2)"#);
    pair.target.psql(r#"UPDATE "a ""t""" SET "v""w" = 3 WHERE "k.x" = 'x'"#).unwrap();
    for level in [Level::Digest, Level::Rows] {
        let (outcome, kept, file) = named(&pair, level, Redaction::None).await;
        for (name, _, _, lines) in CASES {
            let found = kept.of(name);
            let found: Vec<&str> =
                found.iter().map(|line| line.split(':').next().unwrap_or_default()).collect();
            // At level rows the columns follow.
            let fits = found.len() == lines.len()
                && found
                    .iter()
                    .zip(*lines)
                    .all(|(found, line)| line.starts_with(found) || found.starts_with(line));
            assert!(fits, "{level:?} {name}: {:?}", kept.of(name));
        }
        assert_eq!(kept.of("parted_2").len(), 1, "{}", kept.text());
        assert!(kept.of("a \"t\"")[0].starts_with(r#"changed k.x="x""#), "{}", kept.text());
        let all = outcome.tables.iter().map(|table| table.named.clone().unwrap().rows);
        let total = all.fold(DiffCounts::default(), |sum, rows| DiffCounts {
            missing: sum.missing + rows.missing,
            extra: sum.extra + rows.extra,
            changed: sum.changed + rows.changed,
            equivalent: sum.equivalent + rows.equivalent,
            lossy: sum.lossy + rows.lossy,
        });
        assert_eq!(total, file.rows, "the report and the file count the same");
        let first = table(&outcome, "number").named.unwrap().ends.unwrap();
        let ends = [first.0, first.1].map(|key| key.columns().next().unwrap().1.as_text());
        assert_eq!(ends, ["-7", "50"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn at_level_rows_each_column_is_told_with_both_values_and_what_sql_calls_equal_is_equivalent()
{
    let pair = Pair::new();
    pair.both(
        "CREATE EXTENSION citext; CREATE COLLATION lax (provider = icu, locale = 'und-u-ks-level2', deterministic = false); \
         CREATE TABLE t (id int PRIMARY KEY, name citext, label text COLLATE lax, n numeric, f float8, b bytea, j jsonb); \
         INSERT INTO t SELECT i, 'Ann', 'Straße', 1.0, 0, '\\x00', '{}' FROM generate_series(1, 6) i; \
         CREATE TABLE same (id int PRIMARY KEY, name citext); INSERT INTO same VALUES (1, 'Foo')",
    );
    pair.target
        .psql(
            "UPDATE same SET name = 'foo'; UPDATE t SET name = 'ANN', n = 1.00 WHERE id = 1; \
             UPDATE t SET name = 'Anna', label = 'STRASSE' WHERE id = 2; UPDATE t SET label = 'straße' WHERE id = 3; \
             UPDATE t SET f = '-0', b = NULL, j = '[]' WHERE id = 4; DELETE FROM t WHERE id = 6",
        )
        .unwrap();
    let (outcome, kept, _) = named(&pair, Level::Rows, Redaction::None).await;
    assert_eq!(
        kept.of("t"),
        [
            r#"changed id=2 label:changed("Straße"->"STRASSE") name:changed("Ann"->"Anna")"#,
            r#"changed id=4 b:changed("\\x00"->null) f:equivalent("0"->"-0") j:changed("{}"->"[]")"#,
            r#"equivalent id=1 n:equivalent("1.0"->"1.00") name:equivalent("Ann"->"ANN")"#,
            r#"equivalent id=3 label:equivalent("Straße"->"straße")"#,
            "missing id=6",
        ]
    );
    assert_eq!(kept.of("same"), [r#"equivalent id=1 name:equivalent("Foo"->"foo")"#]);
    assert_eq!(table(&outcome, "same").verdict, Verdict::Equivalent);
    assert_eq!(table(&outcome, "t").verdict, Verdict::Different);
    // The sums alone cannot tell.
    let (outcome, ..) = named(&pair, Level::Digest, Redaction::None).await;
    assert_eq!(table(&outcome, "same").verdict, Verdict::Different);
}

/// Rows enough for chunks, leaves and a locator, of about 6 MB.
const LARGE: &str = "INSERT INTO t SELECT i, md5(i::text) || repeat('x', 200), i / 4.0 FROM generate_series(1, 24000) i; ANALYZE t";

/// A large table in one leaf, and the bytes of one reading of its source.
async fn in_one_leaf() -> (Pair, u64) {
    let pair = Pair::new();
    // Without statistics it is one leaf, so that every reading reads all of it.
    pair.both("CREATE TABLE t (id int PRIMARY KEY, a text, n int) WITH (autovacuum_enabled = off)");
    pair.both(&LARGE.replace("i / 4.0", "i").replace("; ANALYZE t", ""));
    let mut request = pair.request.clone();
    request.progress = Arc::default();
    verify_quiesced(&request, &CancellationToken::new()).await.unwrap();
    let once = request.progress.read(Which::Source);
    assert!(once > 4 << 20, "{once}");
    (pair, once)
}

const SOME: &str = "UPDATE t SET a = 'x' WHERE id % 1000 = 0; DELETE FROM t WHERE id = 7";

#[tokio::test(flavor = "multi_thread")]
async fn of_a_large_table_with_few_differences_only_the_differing_rows_are_read_again() {
    let (pair, once) = in_one_leaf().await;
    pair.target.psql(SOME).unwrap();
    let mut request = pair.request.clone();
    let kept = Kept::new(&mut request, Redaction::None);
    let outcome = verify_quiesced(&request, &CancellationToken::new()).await.unwrap();
    assert_eq!(kept.of("t").len(), 25);
    let found = table(&outcome, "t");
    assert_eq!((found.verdict, found.readings, found.different), (Verdict::Different, 2, vec![0]));
    let rows = found.named.unwrap().rows;
    assert_eq!((rows.missing, rows.changed, rows.total()), (1, 24, 25));
    let read = request.progress.read(Which::Source);
    assert!(read > once && read < once + once / 100, "{read} of {once}");
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_are_other_ones_when_they_are_read_again_are_not_called_different() {
    for (meanwhile, verdict, readings, lines) in [
        ("UPDATE public.t SET a = 'y' WHERE id = 1000", Verdict::Different, 3, 25),
        (
            "INSERT INTO public.t SELECT 7, md5('7') || repeat('x', 200), 7",
            Verdict::Different,
            3,
            24,
        ),
        (
            "UPDATE public.t SET a = md5(id::text) || repeat('x', 200) WHERE a = 'x'; \
             INSERT INTO public.t SELECT 7, md5('7') || repeat('x', 200), 7",
            Verdict::Identical,
            2,
            0,
        ),
    ] {
        let (pair, once) = in_one_leaf().await;
        pair.target.psql(SOME).unwrap();
        let mut request = pair.request.clone();
        let kept = Kept::new(&mut request, Redaction::None);
        let change = async {
            // Both snapshots of the first reading are taken by then, those of the second are not for a while.
            let begun = async {
                while request.progress.read(Which::Target) == 0 {
                    tokio::time::sleep(std::time::Duration::from_millis(1)).await;
                }
            };
            tokio::time::timeout(std::time::Duration::from_secs(60), begun).await.unwrap();
            let target = ConnectSpec::parse(&pair.target.url()).unwrap().connect().await.unwrap();
            target.batch_execute(meanwhile).await.unwrap();
        };
        let stop = CancellationToken::new();
        let (outcome, ()) = tokio::join!(verify_quiesced(&request, &stop), change);
        let found = table(&outcome.unwrap(), "t");
        assert_eq!((found.verdict, found.readings), (verdict, readings), "{meanwhile}");
        assert_eq!(kept.of("t").len(), lines, "{meanwhile}");
        assert!(request.progress.read(Which::Source) >= 2 * once, "{meanwhile}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn more_differences_than_a_locator_holds_are_all_named() {
    for (key, level) in [
        ("id int PRIMARY KEY, a text", Level::Digest),
        ("id text COLLATE \"C\" PRIMARY KEY, a text", Level::Digest),
        ("id text PRIMARY KEY, a text", Level::Rows),
        ("id int, a text", Level::Digest),
    ] {
        let pair = Pair::new();
        pair.both(&format!("CREATE TABLE t ({key}, n numeric)"));
        pair.both(LARGE);
        pair.target
            .psql("UPDATE t SET a = 'x' || id WHERE n <= 1500; DELETE FROM t WHERE n > 5750; INSERT INTO t VALUES (90001, 'x', 1)")
            .unwrap();
        let mut request = pair.request.clone();
        // Less than the rows that are put aside take.
        request.job.memory = 8 << 20;
        request.level = level;
        let kept = Kept::new(&mut request, Redaction::None);
        let outcome = verify_quiesced(&request, &CancellationToken::new()).await.unwrap();
        let rows = table(&outcome, "t").named.unwrap().rows;
        let expected = match key.contains("KEY") {
            true => DiffCounts { missing: 1000, extra: 1, changed: 6000, ..DiffCounts::default() },
            false => DiffCounts { missing: 7000, extra: 6001, ..DiffCounts::default() },
        };
        assert_eq!(rows, expected, "{key}");
        let lines = kept.text();
        assert_eq!(lines.lines().count() as u64, expected.total(), "{key}");
        let distinct: std::collections::HashSet<&str> = lines.lines().collect();
        assert_eq!(distinct.len() as u64, expected.total(), "{key}: each once");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_redacted_is_in_no_line() {
    let pair = Pair::new();
    pair.both(
        "CREATE TABLE t (key text PRIMARY KEY, v text); INSERT INTO t VALUES ('geheim-key', 'geheim-value'), ('stays', 'same'); \
         CREATE TABLE keyless (v text); INSERT INTO keyless VALUES ('geheim-value')",
    );
    pair.target
        .psql("UPDATE t SET v = 'geheim-other' WHERE v LIKE 'geheim%'; UPDATE keyless SET v = 'geheim-other'")
        .unwrap();
    for (redaction, shows_key) in [(Redaction::Values, true), (Redaction::Keys, false)] {
        for level in [Level::Digest, Level::Rows] {
            let (outcome, kept, _) = named(&pair, level, redaction).await;
            let all = format!("{}{outcome:?}", kept.text());
            assert!(!all.contains("geheim-value") && !all.contains("geheim-other"), "{all}");
            assert_eq!(all.contains("geheim-key"), shows_key, "{all}");
            assert_eq!(kept.text().lines().count(), 3);
        }
    }
}

/// A row of the generated tables: the key's column, then values of which many are equal.
fn generated(random: &mut Lcg, id: u64) -> String {
    let text = ["''", "NULL", "'a'", "'a '"][random.below(4) as usize];
    let number = ["0", "NULL", "1.5", "-1"][random.below(4) as usize];
    format!("({id}, {text}, {number})")
}

#[tokio::test(flavor = "multi_thread")]
async fn the_named_rows_are_those_of_except_all_in_both_directions() {
    let seed =
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    println!("seed {seed}");
    let mut random = Lcg(seed);
    let pair = Pair::new();
    const TABLES: u64 = 60;
    let columns = |table: u64| match table % 3 {
        0 => "(k int, t text, n float8)",
        1 => "(k int PRIMARY KEY, t text, n float8)",
        _ => "(k text PRIMARY KEY, t text, n float8)",
    };
    let (mut ours, mut theirs, mut beside) =
        (String::new(), String::new(), "CREATE SCHEMA b;".to_owned());
    for number in 0..TABLES {
        let is_keyless = number % 3 == 0;
        let mut side = |keep: u64| -> Vec<String> {
            let ids = (0..20).map(|id| if is_keyless { id / 5 } else { id });
            ids.filter(|_| random.below(10) < keep)
                .map(|id| generated(&mut random_of(seed, number, id), id))
                .collect()
        };
        let (one, mut other) = (side(10), side(8));
        if let Some(row) = other.first_mut() {
            *row = generated(&mut random, 0);
        }
        for (sql, table, rows) in [
            (&mut ours, format!("t{number}"), &one),
            (&mut theirs, format!("t{number}"), &other),
            (&mut beside, format!("b.t{number}"), &other),
        ] {
            writeln!(sql, "CREATE TABLE {table} {};", columns(number)).unwrap();
            if !rows.is_empty() {
                writeln!(sql, "INSERT INTO {table} VALUES {};", rows.join(", ")).unwrap();
            }
        }
    }
    pair.source.psql(&ours).unwrap();
    pair.target.psql(&theirs).unwrap();
    pair.source.psql(&beside).unwrap();
    let mut request = pair.request.clone();
    request.job.selection =
        tidemark_source::Selection::new(vec!["public.*".to_owned()], Vec::new());
    let kept = Kept::new(&mut request, Redaction::None);
    verify_quiesced(&request, &CancellationToken::new()).await.unwrap();
    let mut differences = 0;
    for number in 0..TABLES {
        // By key where there is one, by row where there is none: rows that the one side has more of.
        let key = if number % 3 == 0 { "k, t, n" } else { "k" };
        let of = |one: &str, other: &str| {
            let sql = format!(
                "SELECT to_json(d.*)::text, count(*) FROM (SELECT {key} FROM (TABLE {one} EXCEPT ALL TABLE {other}) x) d GROUP BY to_json(d.*)::text"
            );
            counted(&pair.source.psql(&sql).unwrap())
        };
        let (table, beside) = (format!("public.t{number}"), format!("b.t{number}"));
        let mut expected: BTreeMap<String, (u64, u64)> = BTreeMap::new();
        for (key, rows) in of(&table, &beside) {
            expected.entry(key).or_default().0 += rows;
        }
        for (key, rows) in of(&beside, &table) {
            expected.entry(key).or_default().1 += rows;
        }
        assert_eq!(found_of(&kept, &format!("t{number}")), expected, "seed {seed}: t{number}");
        differences += expected.len();
    }
    assert!(differences > 100, "{differences}");
}

/// The same row for the same key on both sides.
fn random_of(seed: u64, table: u64, id: u64) -> Lcg {
    let mut random = Lcg(seed ^ (table << 32) ^ (id << 8));
    random.below(7);
    random
}

/// `{key as JSON}|rows` of each line.
fn counted(answer: &str) -> Vec<(String, u64)> {
    let lines = answer.lines().filter_map(|line| line.rsplit_once('|'));
    lines
        .map(|(key, rows)| (plain(&serde_json::from_str(key).unwrap()), rows.parse().unwrap()))
        .collect()
}

/// Rows that the source and the target have more of, by key, as the lines tell them.
fn found_of(kept: &Kept, table: &str) -> BTreeMap<String, (u64, u64)> {
    let mut found: BTreeMap<String, (u64, u64)> = BTreeMap::new();
    for line in kept.text().lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        if line["table"] != table {
            continue;
        }
        let copies = line["copies"].as_u64().unwrap_or(1);
        let rows = found.entry(plain(&line["key"])).or_default();
        match line["kind"].as_str().unwrap() {
            "missing" => rows.0 += copies,
            "extra" => rows.1 += copies,
            _ => *rows = (rows.0 + copies, rows.1 + copies),
        }
    }
    found
}

/// Columns by name, numbers as text.
fn plain(key: &Value) -> String {
    let columns = key.as_object().unwrap().iter().map(|(column, value)| {
        let value = match value {
            Value::Number(number) => format!("{:?}", number.as_f64().unwrap().to_string()),
            Value::String(text) => format!("{text:?}"),
            other => other.to_string(),
        };
        (column.clone(), value)
    });
    format!("{:?}", columns.collect::<BTreeMap<String, String>>())
}
