//! Jobs into a lake, verified as of one position.
//!
//! **Invariant:** what the verdict has to be follows from what was done to the source and to the lake's files, never from
//! what a reader of ours says of them.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tempfile::TempDir;
use tidemark_model::{Lsn, RelationName, Unrepresentable};
use tidemark_pipeline::{
    Compression, Kind, LakeTarget, NotEmpty, Phase, TableOptions, Target, ask_status, reset,
    snapshot_only,
};
use tidemark_report::{Level, Verdict};
use tidemark_sink::parquet::Root;
use tidemark_testkit::workload::{self, Writer, WriterOptions};
use tidemark_testkit::{Database, shared};
use tidemark_verify::{Outcome, Point, Request, Which, verify_at_barrier, verify_quiesced};
use tokio_util::sync::CancellationToken;

use crate::moving::Follower;
use crate::support::{request, table};
use crate::values::{AS_TEXT, OWN, SETUP};

/// A source, and a lake that a job fills from it.
pub(crate) struct Lake {
    pub(crate) source: Database,
    pub(crate) request: Request,
    directory: TempDir,
}

impl Lake {
    /// Waits until a process that runs the job follows.
    pub(crate) async fn follows(&self) {
        let directory = &self.request.job.state_dir;
        while ask_status(directory).await.unwrap().is_none_or(|seen| seen.phase != Phase::Follow) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub(crate) fn new(name: &str, sql: &str) -> Self {
        let (source, directory) = (shared().unwrap(), TempDir::new().unwrap());
        let mut request = request(&source.url(), &source.url());
        let job = &mut request.job;
        job.name = name.to_owned();
        job.state_dir = directory.path().join("state");
        job.follows = true;
        job.stream.commit_interval = Duration::from_millis(200);
        job.target = Target::Lake(LakeTarget {
            root: Root::local(directory.path().join("lake")),
            compression: Compression::Zstd { level: 1 },
            file_bytes: 1 << 20,
            not_empty: NotEmpty::Refuse,
        });
        source.psql(sql).unwrap();
        Self { source, request, directory }
    }

    pub(crate) fn root(&self) -> PathBuf {
        self.directory.path().join("lake")
    }

    pub(crate) fn sql(&self, sql: &str) {
        self.source.psql(sql).unwrap();
    }

    /// Sets what happens to values without a form.
    pub(crate) fn unrepresentable(&mut self, table: &str, policy: Unrepresentable) {
        self.request.job.tables.push(TableOptions {
            name: RelationName::new("public", table),
            filter: None,
            columns: None,
            unrepresentable: policy,
        });
    }

    /// Runs the job until it follows.
    pub(crate) async fn follow(&self) -> Follower {
        let follower = Follower::start(&self.request.job);
        loop {
            let status = ask_status(&self.request.job.state_dir).await.unwrap();
            if status.is_some_and(|status| status.phase == Phase::Follow) {
                return follower;
            }
            assert!(!follower.has_ended(), "the job has ended");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Copies what is there.
    pub(crate) async fn fill(&self) {
        self.follow().await.stop();
    }

    pub(crate) async fn verify(&self) -> Outcome {
        verify_at_barrier(&self.request, &CancellationToken::new()).await.unwrap()
    }

    #[track_caller]
    fn assert_identical(outcome: &Outcome) -> Lsn {
        assert_eq!(outcome.verdict(), Verdict::Identical, "{outcome:#?}");
        match outcome.point {
            Some(Point::Barrier { lsn, .. }) => lsn,
            _ => panic!("{outcome:?}"),
        }
    }

    /// The files of a table in a directory of its own, `snapshot` or `changes`.
    pub(crate) fn files(&self, table: &str, which: &str) -> Vec<PathBuf> {
        let directory = self.root().join("public").join(table).join(which);
        let entries = std::fs::read_dir(directory).into_iter().flatten();
        let mut files: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
        files.sort();
        files
    }

    /// A path as a commit has it.
    pub(crate) fn listed(&self, file: &Path) -> String {
        file.strip_prefix(self.root()).unwrap().display().to_string()
    }
}

impl Drop for Lake {
    fn drop(&mut self) {
        let sql = "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE database = current_database() AND NOT active";
        self.source.psql(sql).ok();
        let origin = format!("tidemark_{}", self.request.job.name);
        let sql =
            "SELECT pg_replication_origin_drop(roname) FROM pg_replication_origin WHERE roname =";
        self.source.psql(&format!("{sql} '{origin}'")).ok();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lake_in_an_object_store_is_read_in_ranges() {
    let mut lake = Lake::new("objects", TABLES);
    let store = Arc::new(object_store::memory::InMemory::new());
    if let Target::Lake(target) = &mut lake.request.job.target {
        target.root = Root::objects(store, object_store::path::Path::from("a/prefix"), "memory");
    }
    lake.fill().await;
    lake.sql(CHANGES);
    Lake::assert_identical(&lake.verify().await);
}

/// Values out of line, a key of two columns, a replica identity of its own, doubles, a table that is emptied.
const TABLES: &str = "
CREATE TABLE pet (id int4 PRIMARY KEY, name text, body text);
ALTER TABLE pet ALTER body SET STORAGE EXTERNAL;
INSERT INTO pet SELECT i, 'n' || i, repeat(md5(i::text), 90) FROM generate_series(1, 3000) i;
CREATE TABLE whole (a int4, b text, body text, PRIMARY KEY (b, a));
ALTER TABLE whole ALTER body SET STORAGE EXTERNAL;
ALTER TABLE whole REPLICA IDENTITY FULL;
INSERT INTO whole SELECT i, 'b' || i % 7, repeat(md5(i::text), 90) FROM generate_series(1, 300) i;
CREATE TABLE other (id int4 PRIMARY KEY, code text NOT NULL UNIQUE, body text);
ALTER TABLE other ALTER body SET STORAGE EXTERNAL;
ALTER TABLE other REPLICA IDENTITY USING INDEX other_code_key;
INSERT INTO other SELECT i, 'c' || i, repeat(md5(i::text), 90) FROM generate_series(1, 300) i;
CREATE TABLE keyless (day date, note text);
ALTER TABLE keyless REPLICA IDENTITY FULL;
INSERT INTO keyless SELECT '2026-01-01', 'n' || i % 7 FROM generate_series(1, 3000) i;
CREATE TABLE emptied (id int4 PRIMARY KEY, v int4);
INSERT INTO emptied SELECT i, i FROM generate_series(1, 100) i;
CREATE TABLE still (id int4 PRIMARY KEY, v int4);
INSERT INTO still SELECT i, i FROM generate_series(1, 100) i;
CREATE TABLE empty (id int4 PRIMARY KEY, v int4);
";

/// Every kind of change, some of them of one row several times in and out of one transaction.
const CHANGES: &str = "
UPDATE pet SET id = id + 100000 WHERE id % 97 = 3 AND id < 100000;
UPDATE pet SET name = name || '.' WHERE id % 11 = 4;
UPDATE pet SET name = name || '!' WHERE id % 11 = 4;
UPDATE pet SET body = body || 'x' WHERE id % 13 = 5;
DELETE FROM pet WHERE id % 301 = 5;
BEGIN; INSERT INTO pet VALUES (-1, 'new', repeat('y', 5000)); UPDATE pet SET name = 'newer' WHERE id = -1;
UPDATE pet SET id = -2 WHERE id = -1; UPDATE pet SET id = -1, name = NULL WHERE id = -2; COMMIT;
UPDATE pet SET id = -3 WHERE id = 1; UPDATE pet SET id = 1 WHERE id = 2; UPDATE pet SET id = 2 WHERE id = -3;
DELETE FROM pet WHERE id = -1;
UPDATE whole SET a = a + 1000 WHERE a % 5 = 1; UPDATE whole SET b = b || 'z' WHERE a % 3 = 0; DELETE FROM whole WHERE a % 50 = 7;
UPDATE other SET id = id + 1000 WHERE id % 5 = 1; UPDATE other SET code = code || 'z' WHERE id % 3 = 0; DELETE FROM other WHERE id % 50 = 7;
INSERT INTO keyless SELECT '2026-01-01', 'n' || i % 7 FROM generate_series(1, 20) i;
INSERT INTO keyless VALUES (NULL, NULL), (NULL, NULL);
DELETE FROM keyless WHERE ctid IN (SELECT ctid FROM keyless WHERE note = 'n3' LIMIT 15);
UPDATE keyless SET note = 'changed' WHERE ctid IN (SELECT ctid FROM keyless WHERE note = 'n4' LIMIT 5);
INSERT INTO emptied VALUES (1000, 1); UPDATE emptied SET v = 5 WHERE id = 3; TRUNCATE emptied; INSERT INTO emptied VALUES (3, 7), (4, NULL); UPDATE emptied SET v = v + 1 WHERE id = 3;
";

#[tokio::test(flavor = "multi_thread")]
async fn a_lake_is_identical_after_the_snapshot_and_after_every_kind_of_change() {
    let lake = Lake::new("changes", TABLES);
    lake.fill().await;
    // Nobody runs the job: it is run to the point here.
    let first = Lake::assert_identical(&lake.verify().await);
    for _ in 0..2 {
        lake.sql(CHANGES);
        assert!(Lake::assert_identical(&lake.verify().await) > first);
    }
    // Rows that come when the table has just been emptied, and nothing after a TRUNCATE.
    lake.sql(
        "TRUNCATE pet, keyless; INSERT INTO keyless VALUES ('2026-01-01', 'n'); TRUNCATE emptied",
    );
    let outcome = lake.verify().await;
    Lake::assert_identical(&outcome);
    let rows = |name| table(&outcome, name).target.count;
    assert_eq!((rows("pet"), rows("keyless"), rows("emptied"), rows("still")), (0, 1, 0, 100));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lake_that_is_written_to_is_identical_at_every_point() {
    let lake = Lake::new("lakemoving", TABLES);
    let options = WriterOptions { clients: 2, seed: 7, pause: Duration::from_millis(2) };
    let writer = Writer::start(lake.source.cluster(), lake.source.name(), &options).unwrap();
    let follower = lake.follow().await;
    let mut before = Lsn::ZERO;
    for round in 0..5 {
        lake.sql(CHANGES);
        let outcome = lake.verify().await;
        let lsn = Lake::assert_identical(&outcome);
        let Some(Point::Barrier { pause, .. }) = outcome.point else { panic!() };
        assert!(lsn > before && pause < Duration::from_secs(5), "round {round}: {outcome:?}");
        before = lsn;
    }
    writer.stop().unwrap();
    // Nothing has been written since the point before: the last commit is of it all the same.
    for _ in 0..2 {
        let lsn = Lake::assert_identical(&lake.verify().await);
        assert!(lsn > before);
        before = lsn;
    }
    follower.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_that_do_not_fit_into_memory_are_taken_in_parts() {
    let mut lake = Lake::new("parts", TABLES);
    lake.fill().await;
    lake.sql(CHANGES);
    lake.sql(
        "UPDATE pet SET name = name || '?'; UPDATE pet SET id = id + 1000000 WHERE id % 2 = 0",
    );
    Lake::assert_identical(&lake.verify().await);
    lake.request.progress = Arc::default();
    Lake::assert_identical(&lake.verify().await);
    let plenty = std::mem::take(&mut lake.request.progress);
    // An eighth of it are some 300 keys.
    lake.request.job.memory = 128 << 10;
    lake.request.job.stream.batch_bytes = 64 << 10;
    let follower = {
        let mut job = lake.request.job.clone();
        job.memory = 64 << 20;
        Follower::start(&job)
    };
    lake.follows().await;
    Lake::assert_identical(&lake.verify().await);
    follower.stop();
    // What is read several times is expected so often.
    let [(once, expected), (often, more)] = [&plenty, &lake.request.progress]
        .map(|progress| (progress.read(Which::Target), progress.expected()));
    assert!(often > 3 * once, "{often} of {once} bytes");
    assert!(more - expected >= often - once, "{expected} and {more} for {once} and {often}");
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_that_join_and_tables_that_are_given_up() {
    let lake = Lake::new("joins", TABLES);
    lake.fill().await;
    lake.sql("CREATE TABLE late (id int4 PRIMARY KEY, body text); ALTER TABLE late ALTER body SET STORAGE EXTERNAL; \
        INSERT INTO late SELECT i, repeat(md5(i::text), 90) FROM generate_series(1, 500) i");
    lake.sql(CHANGES);
    lake.fill().await;
    lake.sql("UPDATE late SET id = id + 1000 WHERE id % 7 = 2");
    let outcome = lake.verify().await;
    Lake::assert_identical(&outcome);
    assert_eq!(table(&outcome, "late").target.count, 500);
    // Given up, it has not joined again before the job runs; a verification makes no copy by itself, but lets the job run.
    reset(&lake.request.job, &[RelationName::new("public", "pet")]).await.unwrap();
    lake.sql("UPDATE pet SET name = 'while it was away' WHERE id % 3 = 1");
    lake.fill().await;
    lake.sql("UPDATE pet SET name = name || '.' WHERE id % 5 = 1");
    Lake::assert_identical(&lake.verify().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn columns_that_are_added_have_their_default_in_the_rows_of_before() {
    let lake = Lake::new("columns", TABLES);
    lake.fill().await;
    lake.sql("UPDATE pet SET name = 'before' WHERE id % 10 = 1");
    lake.sql(
        "ALTER TABLE pet ADD COLUMN n numeric(10,2) DEFAULT 1.5, ADD COLUMN t text DEFAULT 'it''s', \
         ADD COLUMN j jsonb DEFAULT '{\"a\": 1}', ADD COLUMN z int4, ADD COLUMN p inet DEFAULT '10.0.0.1'",
    );
    lake.sql("UPDATE pet SET name = 'after' WHERE id % 10 = 2");
    lake.sql("ALTER TABLE keyless ADD COLUMN more int4; INSERT INTO keyless VALUES ('2026-01-02', 'x', 5)");
    Lake::assert_identical(&lake.verify().await);
    // A later run's commits do not repeat the defaults.
    lake.sql("UPDATE pet SET n = 2, t = NULL, z = 3 WHERE id % 10 = 3; DELETE FROM keyless WHERE note = 'n1'");
    Lake::assert_identical(&lake.verify().await);
}

/// All types as columns of one table; every value has a row of its own.
struct Matrix {
    create: String,
    insert: String,
}

impl Matrix {
    fn new(table: &str) -> Self {
        let types: Vec<_> = OWN.iter().chain(AS_TEXT).collect();
        let columns = types.iter().enumerate().map(|(at, (of, _))| format!(", c{at} {of}"));
        let columns: String = columns.collect();
        let mut insert = String::new();
        for (at, (_, values)) in types.iter().enumerate() {
            for value in *values {
                writeln!(insert, "INSERT INTO {table} (c{at}) VALUES ({value});").unwrap();
            }
        }
        Self { create: format!("CREATE TABLE {table} (id serial PRIMARY KEY{columns});"), insert }
    }
}

/// Without what the stream cannot keep: the declaration of a document.
fn without_declarations(insert: &str) -> String {
    insert
        .lines()
        .filter(|line| !line.contains("<?xml"))
        .fold(String::new(), |all, line| all + line + "\n")
}

#[tokio::test(flavor = "multi_thread")]
async fn every_type_is_equal_in_the_lake_whichever_way_it_came() {
    let (plain, as_text) = (Matrix::new("plain"), Matrix::new("as_text"));
    let create =
        format!("{SETUP} {} {} {} {}", plain.create, as_text.create, plain.insert, as_text.insert);
    let mut lake = Lake::new("types", &create);
    lake.unrepresentable("as_text", Unrepresentable::Text);
    lake.fill().await;
    Lake::assert_identical(&lake.verify().await);
    let rows = lake.source.psql("SELECT count(*) FROM plain").unwrap();
    lake.sql(&without_declarations(&format!("{}{}", plain.insert, as_text.insert)));
    let outcome = lake.verify().await;
    Lake::assert_identical(&outcome);
    let expected: u64 = rows.parse().unwrap();
    assert_eq!(table(&outcome, "plain").target.count, 2 * expected - 1);
    // A declaration that the stream has lost is equivalent, and nothing less.
    lake.sql(plain.insert.lines().find(|line| line.contains("<?xml")).unwrap());
    let found = table(&lake.verify().await, "plain");
    assert_eq!((found.verdict, found.lossy), (Verdict::Equivalent, Some(0)), "{found:?}");
}

/// What a lake has no form for, and its neighbours.
const ODD: &str = "
CREATE TYPE span AS (d date, r daterange);
CREATE TABLE odd (id serial PRIMARY KEY, d date, ts timestamp, tz timestamptz, t time, n numeric(10,2), free numeric, a int4[], das date[], s span, r tsrange, m datemultirange);
";
const ODD_VALUES: &str = "
INSERT INTO odd (d, ts, tz, t, n, free) VALUES ('infinity', '-infinity', 'infinity', '24:00', 'NaN', 'NaN');
INSERT INTO odd (ts) VALUES ('294276-12-31 23:59:59.999999'), ('294246-12-31');
INSERT INTO odd (a) VALUES ('[0:1]={1,2}'), ('{{1,2},{3,4}}'), ('{}'), ('{1}');
INSERT INTO odd (das, s, r, m) VALUES ('{infinity,2026-01-01}', ROW('infinity', '[2026-01-01,infinity)'), '[-infinity,2026-01-01)', '{[2026-01-01,infinity)}');
INSERT INTO odd (d) VALUES ('2026-01-01'), (NULL);
";

#[tokio::test(flavor = "multi_thread")]
async fn values_that_were_replaced_are_counted_and_not_called_identical() {
    let mut lake = Lake::new("replaced", &format!("{ODD} {ODD_VALUES}"));
    lake.unrepresentable("odd", Unrepresentable::Null);
    lake.fill().await;
    let found = table(&lake.verify().await, "odd");
    assert_eq!((found.verdict, found.lossy), (Verdict::Equivalent, Some(5)), "{found:?}");
    lake.sql(ODD_VALUES);
    let found = table(&lake.verify().await, "odd");
    assert_eq!((found.verdict, found.lossy), (Verdict::Equivalent, Some(10)), "{found:?}");
    // Read without the policy they are what they are.
    lake.request.job.tables.clear();
    let found = {
        let follower = {
            let mut job = lake.request.job.clone();
            job.tables.push(TableOptions {
                name: RelationName::new("public", "odd"),
                filter: None,
                columns: None,
                unrepresentable: Unrepresentable::Null,
            });
            Follower::start(&job)
        };
        lake.follows().await;
        let found = table(&lake.verify().await, "odd");
        follower.stop();
        found
    };
    assert_eq!(found.verdict, Verdict::Different, "{found:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_type_matrix_is_at_least_equivalent_by_the_snapshot_and_by_the_stream() {
    let mut lake = Lake::new("matrix", "SELECT");
    workload::load_type_matrix(lake.source.cluster(), lake.source.name()).unwrap();
    // What cannot be followed into a lake: without a key, or with generated columns.
    lake.sql(
        "DO $$ DECLARE t oid; BEGIN FOR t IN SELECT oid FROM pg_class c WHERE relnamespace = 'matrix'::regnamespace AND relkind = 'r' \
         AND (NOT EXISTS (SELECT FROM pg_index WHERE indrelid = c.oid AND indisprimary) \
           OR EXISTS (SELECT FROM pg_attribute WHERE attrelid = c.oid AND attgenerated <> '')) LOOP \
         EXECUTE format('DROP TABLE %s CASCADE', t::regclass); END LOOP; END $$",
    );
    let names = "SELECT relname FROM pg_class WHERE relnamespace = 'matrix'::regnamespace AND relkind = 'r'";
    let names = lake.source.psql(names).unwrap();
    for name in names.lines() {
        let name = RelationName::new("matrix", name);
        let (filter, columns) = (None, None);
        let unrepresentable = Unrepresentable::Null;
        lake.request.job.tables.push(TableOptions { name, filter, columns, unrepresentable });
    }
    lake.fill().await;
    let assert_equivalent = |outcome: &Outcome| {
        for table in &outcome.tables {
            let is_equal = table.verdict <= Verdict::Equivalent;
            assert!(is_equal && table.source.count == table.target.count, "{table:?}");
        }
        assert_eq!(outcome.tables.len(), names.lines().count());
    };
    let before = lake.verify().await;
    assert_equivalent(&before);
    for name in names.lines() {
        lake.sql(&format!("UPDATE matrix.{name} SET id = id + 100000"));
    }
    let after = lake.verify().await;
    assert_equivalent(&after);
    let lossy =
        |outcome: &Outcome| outcome.tables.iter().filter_map(|table| table.lossy).sum::<u64>();
    assert!(lossy(&before) > 0 && lossy(&before) == lossy(&after), "{after:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn levels_say_what_they_looked_at() {
    let mut lake = Lake::new("levels", TABLES);
    lake.fill().await;
    lake.sql(CHANGES);
    lake.request.level = Level::Count;
    let outcome = lake.verify().await;
    let pet = table(&outcome, "pet");
    let rows: u64 = lake.source.psql("SELECT count(*) FROM pet").unwrap().parse().unwrap();
    assert_eq!((pet.verdict, pet.because, pet.target.count), (Verdict::Incomplete, None, rows));
    lake.request.level = Level::Schema;
    let outcome = lake.verify().await;
    assert!(outcome.findings.is_empty(), "{outcome:?}");
    lake.sql("ALTER TABLE still ADD COLUMN more int4; DROP TABLE empty; CREATE TABLE new (a int4)");
    let outcome = lake.verify().await;
    let mut kinds: Vec<_> = outcome.findings.iter().map(|finding| finding.kind).collect();
    kinds.sort_unstable();
    assert_eq!(kinds, ["column-missing", "table-extra", "table-missing"], "{outcome:?}");
    assert_eq!(outcome.verdict(), Verdict::Different);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lake_is_verified_with_the_stream_that_fills_it_and_not_otherwise() {
    let mut lake = Lake::new("alone", TABLES);
    let stop = CancellationToken::new();
    let error = verify_at_barrier(&lake.request, &stop).await.unwrap_err();
    assert_eq!(error.kind, Kind::Usage, "{error}");
    assert!(!lake.root().join("_tidemark").exists(), "nothing was made");
    lake.request.job.follows = false;
    snapshot_only(&lake.request.job, &Arc::default(), &stop).await.unwrap();
    let error = verify_at_barrier(&lake.request, &stop).await.unwrap_err();
    assert!(error.message.contains("nothing follows"), "{error}");
    let error = verify_quiesced(&lake.request, &stop).await.unwrap_err();
    assert_eq!(error.kind, Kind::Usage, "{error}");
    assert!(error.hint.unwrap().contains("PostgreSQL"));
}
