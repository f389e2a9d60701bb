//! The rows in which a lake differs, each named with its key as PostgreSQL prints it.
//!
//! **Invariant:** what has to be named is written beside what was done to one side only: to the lake's files, or to the source
//! while the stream was told to leave the table out. The lines are read as a user would read them.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::Path;
use std::sync::Arc;

use arrow_array::{ArrayRef, Int32Array, RecordBatch};
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use serde_json::Value;
use tidemark_model::Unrepresentable;
use tidemark_report::{ColumnFinding, DiffCounts, Level, Redaction, Verdict};
use tidemark_verify::{Outcome, TableOutcome, verify_at_barrier};
use tokio_util::sync::CancellationToken;

use crate::lake::Lake;
use crate::moving::Follower;
use crate::naming::Kept;
use crate::support::table;
use crate::values::{AS_TEXT, OWN, SETUP};

impl Lake {
    /// Does something to the source that the stream leaves out: it takes it for what a job of the same name has written.
    fn beside_the_stream(&self, sql: &str) {
        let origin = format!("tidemark_{}", self.request.job.name);
        self.sql(&format!(
            "SELECT pg_replication_origin_create('{origin}'); \
             SELECT pg_replication_origin_session_setup('{origin}'); {sql}"
        ));
    }

    /// Verifies, and keeps the lines.
    async fn named(&self, level: Level, redaction: Redaction) -> (Outcome, Kept) {
        let mut request = self.request.clone();
        request.level = level;
        request.progress = Arc::default();
        let kept = Kept::new(&mut request, redaction);
        let outcome = verify_at_barrier(&request, &CancellationToken::new()).await.unwrap();
        let file = request.lines.finish("diff.ndjson").unwrap();
        let named = outcome.tables.iter().filter_map(|table| table.named.as_ref());
        let rows = named.map(|named| named.rows.total()).sum::<u64>();
        assert_eq!(file.rows.total(), rows, "the report and the file count the same");
        (outcome, kept)
    }
}

/// Name, definition and rows, changes that come by the stream, what is done to the source beside it, and the lines: those of
/// level `rows`, whose columns are left out at level `digest`.
const CASES: &[(&str, &str, &str, &str, &[&str])] = &[
    (
        "number",
        "(id int PRIMARY KEY, a text, n numeric); INSERT INTO number SELECT i, 'r' || i, i FROM generate_series(1, 50) i",
        "",
        "INSERT INTO number VALUES (-7, 'new', 0); UPDATE number SET a = 'x' WHERE id = 5; UPDATE number SET a = NULL, n = 2.00 WHERE id = 50; \
         DELETE FROM number WHERE id = 3; UPDATE number SET n = 7.0 WHERE id = 7",
        &[
            r#"changed id=5 a:changed("x"->"r5")"#,
            r#"changed id=50 a:changed(null->"r50") n:changed("2.00"->"50")"#,
            r#"equivalent id=7 n:equivalent("7.0"->"7")"#,
            "extra id=3",
            "missing id=-7",
        ],
    ),
    (
        "changed",
        "(id bigint PRIMARY KEY, a text); INSERT INTO changed SELECT i, 'r' || i FROM generate_series(1, 9) i",
        "INSERT INTO changed VALUES (9007199254740993, 'in'); UPDATE changed SET a = 'new' WHERE id = 2; UPDATE changed SET id = 40 WHERE id = 4; \
         DELETE FROM changed WHERE id = 6",
        "DELETE FROM changed WHERE id IN (9007199254740993, 40); UPDATE changed SET a = 'r2' WHERE id = 2; INSERT INTO changed VALUES (6, 'r6')",
        &[
            r#"changed id="2" a:changed("r2"->"new")"#,
            r#"extra id="40""#,
            r#"extra id="9007199254740993""#,
            r#"missing id="6""#,
        ],
    ),
    (
        "kept_out_of_line",
        "(id int PRIMARY KEY, body text, n int); ALTER TABLE kept_out_of_line ALTER body SET STORAGE EXTERNAL; \
         INSERT INTO kept_out_of_line SELECT i, repeat(chr(96 + i), 3000), 0 FROM generate_series(1, 5) i",
        "UPDATE kept_out_of_line SET n = 1 WHERE id <= 3; UPDATE kept_out_of_line SET id = 40 WHERE id = 4; UPDATE kept_out_of_line SET n = 2 WHERE id = 1",
        "UPDATE kept_out_of_line SET n = 0 WHERE id = 1; UPDATE kept_out_of_line SET body = 'b' WHERE id = 2; DELETE FROM kept_out_of_line WHERE id = 40",
        &["changed id=1 n:changed(0->2)", "changed id=2 body:changed(\"b\"->BODY)", "extra id=40"],
    ),
    (
        "word",
        "(k text PRIMARY KEY, n numeric); INSERT INTO word VALUES ('a', 1), ('A', 1), ('it''s', 2), (E'back\\\\slash\\n', 3), ('é', 1.0), ('', 0)",
        "UPDATE word SET n = 5 WHERE k = 'a'",
        "UPDATE word SET n = 9 WHERE k IN ('A', 'it''s'); DELETE FROM word WHERE k LIKE 'back%' OR k = ''; UPDATE word SET n = 1.00 WHERE k = 'é'",
        &[
            r#"changed k="A" n:changed("9"->"1")"#,
            r#"changed k="it's" n:changed("9"->"2")"#,
            r#"equivalent k="é" n:equivalent("1.00"->"1.0")"#,
            r#"extra k="" "#,
            r#"extra k="back\\slash\n""#,
        ],
    ),
    (
        "pairwise",
        "(b text, a int, v bytea, PRIMARY KEY (a, b)); INSERT INTO pairwise SELECT 'k' || i % 3, i / 3, '\\x00' FROM generate_series(0, 11) i",
        "UPDATE pairwise SET v = '\\x02' WHERE (a, b) = (3, 'k0')",
        "UPDATE pairwise SET v = '\\x01' WHERE (a, b) = (2, 'k1'); DELETE FROM pairwise WHERE (a, b) IN ((0, 'k0'), (3, 'k0')); INSERT INTO pairwise VALUES ('k', 7, NULL)",
        &[
            r#"changed a=2 b="k1" v:changed("\\x01"->"\\x00")"#,
            r#"extra a=0 b="k0""#,
            r#"extra a=3 b="k0""#,
            r#"missing a=7 b="k""#,
        ],
    ),
    (
        "uuids",
        "(id uuid PRIMARY KEY, a int); INSERT INTO uuids SELECT md5(i::text)::uuid, i FROM generate_series(1, 9) i",
        "",
        "DELETE FROM uuids WHERE a = 1; UPDATE uuids SET a = 0 WHERE a = 2; INSERT INTO uuids VALUES ('00000000-0000-0000-0000-000000000000', 0)",
        &[
            r#"changed id="c81e728d-9d4c-2f63-6f06-7f89cc14862c" a:changed(0->2)"#,
            r#"extra id="c4ca4238-a0b9-2382-0dcc-509a6f75849b""#,
            r#"missing id="00000000-0000-0000-0000-000000000000""#,
        ],
    ),
    (
        "decimals",
        "(k numeric PRIMARY KEY, a text); INSERT INTO decimals VALUES (1.0, 'a'), (2.50, 'b'), (3, 'c')",
        "",
        "UPDATE decimals SET k = 1.00 WHERE k = 1; DELETE FROM decimals WHERE k = 2.5",
        &[r#"equivalent k="1.00" k:equivalent("1.00"->"1.0")"#, r#"extra k="2.50""#],
    ),
    (
        "at_times",
        "(t timestamptz, d date, PRIMARY KEY (t, d), a int); INSERT INTO at_times SELECT '2026-01-01 00:00Z'::timestamptz + i * '1 hour'::interval, '2026-01-01', i FROM generate_series(1, 5) i",
        "",
        "DELETE FROM at_times WHERE a = 2; INSERT INTO at_times VALUES ('0044-03-15 BC', '0001-01-01', 0)",
        &[
            r#"extra d="2026-01-01" t="2026-01-01 02:00:00+00""#,
            r#"missing d="0001-01-01" t="0044-03-15 00:00:00+00 BC""#,
        ],
    ),
    (
        "keyless",
        "(a text, b int); ALTER TABLE keyless REPLICA IDENTITY FULL; INSERT INTO keyless VALUES ('A', 1), ('A', 1), ('B', NULL), ('c', 1), ('d', 1)",
        "INSERT INTO keyless VALUES ('A', 1), ('new', 0), ('new', 0); DELETE FROM keyless WHERE a = 'd'; UPDATE keyless SET b = 2 WHERE a = 'c'",
        "DELETE FROM keyless WHERE a IN ('A', 'new'); INSERT INTO keyless VALUES ('A', 1), ('B', NULL), ('B', NULL), (NULL, NULL), ('d', 1)",
        &[
            r#"extra a="A" b=1 x2"#,
            r#"extra a="new" b=0 x2"#,
            r#"missing a="B" b=null x2"#,
            r#"missing a="d" b=1"#,
            "missing a=null b=null",
        ],
    ),
    (
        "keyless_value",
        "(a text, n numeric); ALTER TABLE keyless_value REPLICA IDENTITY FULL; INSERT INTO keyless_value VALUES ('A', 1.0), ('A', 1.0), ('B', 1), ('B', 1)",
        "",
        "DELETE FROM keyless_value; INSERT INTO keyless_value VALUES ('A', 1.0), ('A', 1.000), ('B', 1)",
        &[r#"equivalent a="A" n="1.000" n:equivalent("1.000"->"1.0")"#, r#"extra a="B" n="1""#],
    ),
    (
        // What tells rows apart in the changes is not what they are named by.
        "other_identity",
        "(id int PRIMARY KEY, code text NOT NULL UNIQUE, a int); ALTER TABLE other_identity REPLICA IDENTITY USING INDEX other_identity_code_key; \
         INSERT INTO other_identity SELECT i, 'c' || i, i FROM generate_series(1, 5) i",
        "UPDATE other_identity SET a = 9 WHERE id = 1; UPDATE other_identity SET code = 'd2' WHERE id = 2",
        "UPDATE other_identity SET a = 1 WHERE id = 1; DELETE FROM other_identity WHERE id = 2",
        &[r#"changed id=1 a:changed(1->9)"#, "extra id=2"],
    ),
    (
        // The files of before do not have the column: the value is its default.
        "added",
        "(id int PRIMARY KEY, a text); INSERT INTO added VALUES (1, 'a'), (2, 'b'), (3, 'c')",
        "ALTER TABLE added ADD COLUMN n numeric(10,2) DEFAULT 1.5; UPDATE added SET a = 'x' WHERE id = 1",
        "UPDATE added SET n = 2 WHERE id IN (1, 3)",
        &[r#"changed id=1 n:changed("2.00"->"1.50")"#, r#"changed id=3 n:changed("2.00"->"1.50")"#],
    ),
    (
        "emptied",
        "(id int PRIMARY KEY, a text); INSERT INTO emptied VALUES (1, 'a'), (2, 'b')",
        "TRUNCATE emptied; INSERT INTO emptied VALUES (3, 'c')",
        "INSERT INTO emptied VALUES (1, 'a'); DELETE FROM emptied WHERE id = 3",
        &["extra id=3", "missing id=1"],
    ),
];

/// The lines, without what only level `rows` says.
fn without_columns(line: &str) -> String {
    let words = line.split(' ').filter(|word| !is_column(word));
    words.collect::<Vec<_>>().join(" ").trim_end().to_owned()
}

fn is_column(word: &str) -> bool {
    [":changed(", ":equivalent("].iter().any(|class| word.contains(class))
}

#[tokio::test(flavor = "multi_thread")]
async fn every_differing_row_of_a_lake_is_named_by_its_key() {
    let create: String =
        CASES.iter().map(|(name, rows, ..)| format!("CREATE TABLE {name} {rows};\n")).collect();
    let lake = Lake::new("lakerows", &create);
    lake.fill().await;
    for (_, _, changes, ..) in CASES {
        lake.sql(changes);
    }
    assert_eq!(lake.verify().await.verdict(), Verdict::Identical);
    let beside: Vec<&str> = CASES.iter().map(|(_, _, _, beside, _)| *beside).collect();
    lake.beside_the_stream(&beside.join("; "));
    for level in [Level::Digest, Level::Rows] {
        let (outcome, kept) = lake.named(level, Redaction::None).await;
        for (name, _, _, _, lines) in CASES {
            let found: Vec<String> = kept
                .of(name)
                .iter()
                .map(|line| line.replace(&"b".repeat(3000), "BODY").replace("\"BODY\"", "BODY"))
                .collect();
            let lines: Vec<String> = lines
                .iter()
                .map(|line| match level {
                    Level::Rows => line.trim_end().to_owned(),
                    _ => without_columns(line),
                })
                .collect();
            assert_eq!(found, lines, "{level:?} {name}");
            let of = table(&outcome, name);
            let is_known = of.named.is_some() && of.unnamed.is_none();
            assert!(is_known && of.verdict == Verdict::Different, "{of:?}");
        }
        let number = table(&outcome, "number");
        let named = number.named.unwrap();
        let (first, last) = named.ends.unwrap();
        let ends = [first, last].map(|key| key.columns().next().unwrap().1.as_text());
        assert_eq!(ends, ["-7", "50"]);
        assert_eq!(
            named.rows,
            DiffCounts { missing: 1, extra: 1, changed: 2, equivalent: 1, lossy: 0 }
        );
        assert_eq!(number.key_columns, ["id"]);
        assert_eq!(table(&outcome, "other_identity").key_columns, ["id"]);
        let of_column =
            |column: &ColumnFinding| (column.column.clone(), column.changed, column.equivalent);
        let columns: BTreeSet<_> = named.columns.iter().map(of_column).collect();
        let expected = [("a".to_owned(), 2, 0), ("n".to_owned(), 1, 1)];
        let is_told = level == Level::Rows;
        assert_eq!(columns, expected.into_iter().filter(|_| is_told).collect());
    }
}

/// Writes a file anew: some of its rows, from one on so many, and the ids larger by so much.
fn replant(path: &Path, rows: &[(usize, usize)], more: i32) {
    let reader = ParquetRecordBatchReaderBuilder::try_new(File::open(path).unwrap()).unwrap();
    let schema = Arc::clone(reader.schema());
    let reader = reader.with_batch_size(1 << 20).build().unwrap();
    let batches: Vec<RecordBatch> = reader.map(Result::unwrap).collect();
    let [batch] = &batches[..] else { panic!("{} batches", batches.len()) };
    let columns = schema.fields().iter().zip(batch.columns()).map(|(field, column)| {
        if field.name() != "id" {
            return Arc::clone(column);
        }
        let ids = column.as_any().downcast_ref::<Int32Array>().unwrap().iter();
        Arc::new(ids.map(|id| id.map(|id| id + more)).collect::<Int32Array>()) as ArrayRef
    });
    let batch = RecordBatch::try_new(Arc::clone(&schema), columns.collect()).unwrap();
    let mut writer = ArrowWriter::try_new(File::create(path).unwrap(), schema, None).unwrap();
    for (first, count) in rows {
        writer.write(&batch.slice(*first, *count.min(&batch.num_rows()))).unwrap();
    }
    writer.close().unwrap();
}

/// Moves the ids of all rows of a table's only file.
fn move_ids(lake: &Lake, table: &str) {
    let files = lake.files(table, "snapshot");
    assert_eq!(files.len(), 1, "{files:?}");
    replant(&files[0], &[(0, usize::MAX)], MORE);
}

const MORE: i32 = 1_000_000;

/// Floats of every size, and those whose shortest digits are in the middle of two.
const FLOATS: &str = "INSERT INTO floats (f8, f4) SELECT \
    ('x' || md5(i::text))::bit(64)::bigint::text::float8 * power(10::float8, i % 580 - 300), \
    (('x' || md5(i::text))::bit(24)::int * power(10::float8, i % 60 - 40))::float4 FROM generate_series(1, 4000) i; \
    INSERT INTO floats (f8, f4) SELECT power(2::float8, i), power(2::float8, i / 8)::float4 FROM generate_series(-1022, 1023) i WHERE abs(i / 8) < 126; \
    INSERT INTO floats (f8) SELECT (d || 'e' || i)::float8 FROM generate_series(-323, 308) i, generate_series(1, 9) d WHERE i < 308 OR d = 1; \
    INSERT INTO floats (f8, f4) VALUES (1e23, 8589973000), (9007199254740993, 33554432), (2e-323, 1.17549435e-38), (5e-324, 1e-45);";

/// Values whose text depends on where they stand.
const NESTED: &str = "
CREATE TYPE blank AS (c char(4), b bool, t text, n blank_of_none);
CREATE TABLE nested (id int4, b bool, c char(5)[], bs bool[], r blank, rs blank[], tr textrange, ts timestamp[], ds date[], iv interval[], by bytea[], ir interval);
ALTER TABLE nested REPLICA IDENTITY FULL;
INSERT INTO nested VALUES (1, true, '{a,NULL,\"b  c\",\"\"}', '{t,f,NULL}', ROW('é', true, '(a,\"b\\c)', NULL), ARRAY[ROW('x', NULL, 'null', NULL), NULL]::blank[],
  textrange('a\\b', E'c d\\te'), '{\"0044-03-15 12:00:00.5 BC\",NULL}', '{5000-01-01,\"0001-12-31 BC\"}', '{\"-1 mon +2 days\",\"1 year -3:00\"}', '{\"\\\\x00\",NULL}', '1 year 2 mons -3 days 04:05:06.70'),
 (2, false, '{}', '{}', ROW(NULL, NULL, '', ROW(1)), '{}', textrange('', 'null'), '{}', '{}', '{0,\"24:00\"}', '{}', '-1 day -00:00:01'),
 (3, NULL, NULL, NULL, NULL, NULL, textrange(NULL, '[x'), NULL, NULL, '{\"-1 year -1 mon -1 day +00:00:01\"}', NULL, '178000000 years'),
 (4, NULL, ARRAY[' x', '{', 'a,b'], NULL, ROW('', false, E' \\n', NULL), NULL, 'empty', NULL, NULL, NULL, NULL, '1 mon 1 day 1 us');
";

#[tokio::test(flavor = "multi_thread")]
async fn a_value_of_the_lake_has_the_text_that_the_source_prints() {
    let types: Vec<_> = OWN.iter().chain(AS_TEXT).collect();
    let columns = types.iter().enumerate().map(|(at, (of, _))| format!(", c{at} {of}"));
    let columns: String = columns.collect();
    let mut insert = String::new();
    for name in ["plain", "as_text"] {
        for (at, (_, values)) in types.iter().enumerate() {
            // Of one text more than a page of a terminal is no use to anybody.
            for value in values.iter().filter(|value| !value.contains("repeat(")) {
                insert += &format!("INSERT INTO {name} (id, c{at}) VALUES (1, {value});\n");
            }
        }
    }
    let create = format!(
        "{SETUP} CREATE TYPE blank_of_none AS (i int4); {NESTED} CREATE TABLE plain (id int4{columns}); CREATE TABLE as_text (id int4{columns}); \
         CREATE TABLE floats (id int4 DEFAULT 1, f8 float8, f4 float4); {FLOATS} {insert}
         ALTER TABLE plain REPLICA IDENTITY FULL; ALTER TABLE as_text REPLICA IDENTITY FULL; ALTER TABLE floats REPLICA IDENTITY FULL"
    );
    let mut lake = Lake::new("laketexts", &create);
    lake.unrepresentable("as_text", Unrepresentable::Text);
    lake.fill().await;
    assert_eq!(lake.verify().await.verdict(), Verdict::Identical);
    for name in ["plain", "as_text", "floats", "nested"] {
        move_ids(&lake, name);
    }
    let (outcome, kept) = lake.named(Level::Digest, Redaction::None).await;
    for name in ["plain", "as_text", "floats", "nested"] {
        let of = table(&outcome, name);
        assert!(of.unnamed.is_none(), "{of:?}");
        let rows = of.named.unwrap().rows;
        assert!(rows.missing == of.source.count && rows.extra == of.source.count, "{rows:?}");
        let (mut ours, mut theirs) = (BTreeSet::new(), BTreeSet::new());
        for line in kept.text().lines() {
            let mut line: Value = serde_json::from_str(line).unwrap();
            if line["table"] != name {
                continue;
            }
            let id = line["key"]["id"].take().as_i64().unwrap();
            let side = if line["kind"] == "missing" { &mut ours } else { &mut theirs };
            let was = if line["kind"] == "missing" { id } else { id - i64::from(MORE) };
            line["key"]["id"] = was.into();
            side.insert(line["key"].to_string());
        }
        let only: Vec<_> = ours.symmetric_difference(&theirs).collect();
        assert!(ours.len() > 3 && only.is_empty(), "{name}: {only:#?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_redacted_is_in_no_line_of_a_lake() {
    let lake = Lake::new(
        "lakeredacted",
        "CREATE TABLE t (key text PRIMARY KEY, v text); INSERT INTO t VALUES ('geheim-key', 'geheim-value'), ('stays', 'same'); \
         CREATE TABLE keyless (v text); ALTER TABLE keyless REPLICA IDENTITY FULL; INSERT INTO keyless VALUES ('geheim-value')",
    );
    lake.fill().await;
    lake.beside_the_stream("UPDATE t SET v = 'geheim-other' WHERE v LIKE 'geheim%'; UPDATE keyless SET v = 'geheim-other'");
    for (redaction, shows_key) in [(Redaction::Values, true), (Redaction::Keys, false)] {
        for level in [Level::Digest, Level::Rows] {
            let (outcome, kept) = lake.named(level, redaction).await;
            let all = format!("{}{outcome:?}", kept.text());
            assert!(!all.contains("geheim-value") && !all.contains("geheim-other"), "{all}");
            assert_eq!(all.contains("geheim-key"), shows_key, "{all}");
            assert_eq!(kept.text().lines().count(), 3);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn more_differences_than_memory_are_all_named_each_once() {
    let rows = "INSERT INTO t SELECT i, md5(i::text) FROM generate_series(1, 24000) i";
    for (number, (key, level)) in [
        ("id int4 PRIMARY KEY, a text", Level::Digest),
        ("id int4 PRIMARY KEY, a text", Level::Rows),
        ("id int4, a text", Level::Digest),
    ]
    .into_iter()
    .enumerate()
    {
        let name = format!("lakemany{number}");
        let mut lake = Lake::new(
            &name,
            &format!("CREATE TABLE t ({key}); ALTER TABLE t REPLICA IDENTITY FULL; {rows}"),
        );
        lake.fill().await;
        lake.sql("UPDATE t SET a = a || '.' WHERE id <= 3000");
        lake.verify().await;
        lake.beside_the_stream("UPDATE t SET a = 'x' WHERE id % 4 = 0 AND id <= 20000; DELETE FROM t WHERE id > 23000; INSERT INTO t VALUES (90001, 'x')");
        let job = {
            let mut job = lake.request.job.clone();
            job.memory = 64 << 20;
            job
        };
        let follower = Follower::start(&job);
        lake.follows().await;
        // Names of some 1,000 rows, and keys of changes that do not fit at once.
        lake.request.job.memory = 256 << 10;
        let (outcome, kept) = lake.named(level, Redaction::None).await;
        follower.stop();
        let found = table(&outcome, "t");
        let expected = match key.contains("KEY") {
            true => DiffCounts { missing: 1, extra: 1000, changed: 5000, ..DiffCounts::default() },
            false => DiffCounts { missing: 5001, extra: 6000, ..DiffCounts::default() },
        };
        assert_eq!(
            found.named.as_ref().map(|named| named.rows),
            Some(expected),
            "{key}: {found:?}"
        );
        let lines = kept.text();
        let distinct: BTreeSet<&str> = lines.lines().collect();
        assert_eq!(
            (lines.lines().count() as u64, distinct.len() as u64),
            (expected.total(), expected.total()),
            "{key}"
        );
    }
}

/// The hashes of what is named add up to what the sums differ by, or nothing is said to be complete.
#[tokio::test(flavor = "multi_thread")]
async fn files_that_are_others_when_they_are_read_again_are_no_complete_list() {
    let mut lake = Lake::new(
        "lakeagain",
        "CREATE TABLE t (id int4 PRIMARY KEY, a text); INSERT INTO t SELECT i, md5(i::text) FROM generate_series(1, 1000) i",
    );
    lake.fill().await;
    lake.sql("UPDATE t SET a = md5(a) WHERE id <= 900");
    lake.verify().await;
    lake.beside_the_stream("UPDATE t SET a = 'x' WHERE id = 950");
    let base = lake.files("t", "snapshot").pop().unwrap();
    // The second reading waits for this before it comes to the file with which the table begins.
    lake.request.rate = Some(40_000);
    lake.request.progress = Arc::default();
    let progress = Arc::clone(&lake.request.progress);
    let changing = async {
        while progress.reading() < 2 {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        let other = base.with_extension("other");
        fs::copy(&base, &other).unwrap();
        replant(&other, &[(0, 990), (985, 10)], 0);
        fs::rename(&other, &base).unwrap();
    };
    let (outcome, ()) = tokio::join!(lake.verify(), changing);
    let found = table(&outcome, "t");
    assert_eq!((found.verdict, found.named.as_ref()), (Verdict::Different, None));
    assert!(found.unnamed.as_ref().unwrap().contains("it changed while"), "{found:?}");
}

/// A value that no server has: what is on it is a difference, and no text is made up for it.
#[tokio::test(flavor = "multi_thread")]
async fn a_value_that_postgresql_would_not_print_is_told_and_not_guessed() {
    let lake = Lake::new(
        "lakeodd",
        "CREATE TABLE t (id int4 PRIMARY KEY, d date); INSERT INTO t VALUES (1, '2026-01-01'), (2, NULL)",
    );
    lake.fill().await;
    let file = lake.files("t", "snapshot").pop().unwrap();
    let reader = ParquetRecordBatchReaderBuilder::try_new(File::open(&file).unwrap()).unwrap();
    let schema = Arc::clone(reader.schema());
    let columns: [ArrayRef; 2] = [
        Arc::new(Int32Array::from(vec![1, 2])),
        Arc::new(arrow_array::Date32Array::from(vec![Some(-2_500_000), None])),
    ];
    let batch = RecordBatch::try_new(Arc::clone(&schema), columns.to_vec()).unwrap();
    let mut writer = ArrowWriter::try_new(File::create(&file).unwrap(), schema, None).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
    let of =
        async |level| -> TableOutcome { table(&lake.named(level, Redaction::None).await.0, "t") };
    let found = of(Level::Digest).await;
    assert_eq!(found.named.unwrap().rows.changed, 1, "the key can be printed");
    let found = of(Level::Rows).await;
    assert_eq!((found.verdict, found.named.as_ref()), (Verdict::Different, None));
    assert!(found.unnamed.as_ref().unwrap().contains("\"d\""), "{found:?}");
}
