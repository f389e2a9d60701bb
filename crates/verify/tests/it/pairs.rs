//! Tables as a whole: what is there, what is missing, what may not be read, what does not hold still.

use std::io::Write as _;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tidemark_report::{Level, SchemaSeverity, Verdict};
use tidemark_testkit::workload;
use tidemark_verify::Which;

use crate::support::Pair;

/// Enough rows for several leaves and chunks.
const ROWS: &str = "CREATE TABLE t (id int PRIMARY KEY, a text, n numeric); \
    INSERT INTO t SELECT i, md5(i::text), i / 4.0 FROM generate_series(1, 20000) i; ANALYZE t";

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_is_identical_table_by_table_whatever_the_order_of_its_rows() {
    let pair = Pair::new();
    workload::load_tpch(pair.source.cluster(), pair.source.name(), 0.01).unwrap();
    workload::load_tpch(pair.target.cluster(), pair.target.name(), 0.01).unwrap();
    pair.both(ROWS);
    pair.target.psql("UPDATE t SET a = a WHERE id % 3 = 0; VACUUM FULL t").unwrap();
    let outcome = pair.verify().await;
    assert_eq!(outcome.verdict(), Verdict::Identical, "{outcome:?}");
    assert!(outcome.tables.len() >= 9 && pair.request.progress.read(Which::Source) > 1 << 20);
    let found = pair.table("t").await;
    assert_eq!((found.source.count, found.target.count), (20_000, 20_000));
    assert!(found.leaves.len() > 50 && found.readings == 1, "{found:?}");
}

/// Each reader has a batch that is hashed and asks for the next one: what all have together must not be what all wait for.
#[tokio::test(flavor = "multi_thread")]
async fn readers_that_share_little_memory_all_come_to_the_end() {
    let mut pair = Pair::new();
    for side in [&pair.source, &pair.target] {
        workload::load_wide_rows(side.cluster(), side.name(), 60, 300_000).unwrap();
    }
    (pair.request.readers, pair.request.job.memory) = (4, 4 << 20);
    pair.request.job.chunk_bytes = 1 << 30;
    let verified = tokio::time::timeout(Duration::from_secs(60), pair.verify()).await;
    let outcome = verified.expect("the readers wait for each other");
    assert_eq!(outcome.verdict(), Verdict::Identical, "{outcome:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_row_that_differs_is_found_in_its_leaf_which_is_read_twice() {
    for change in [
        "UPDATE t SET a = a || ' ' WHERE id = 9000",
        "DELETE FROM t WHERE id = 9000",
        "INSERT INTO t VALUES (-5, 'new', 1)",
        "UPDATE t SET id = 90000 WHERE id = 9000",
    ] {
        let pair = Pair::new();
        pair.both(ROWS);
        pair.target.psql(change).unwrap();
        let found = pair.table("t").await;
        assert_eq!(found.verdict, Verdict::Different, "{change}");
        assert!((1..=2).contains(&found.different.len()) && found.readings == 2, "{found:?}");
        assert_eq!(pair.verify().await.verdict(), Verdict::Different);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_or_a_column_that_one_side_lacks_is_a_difference() {
    let pair = Pair::new();
    pair.both(
        "CREATE TABLE t (a int, b int); INSERT INTO t VALUES (1, 2); CREATE INDEX i ON t (a)",
    );
    pair.source.psql("CREATE TABLE only_here (a int)").unwrap();
    pair.target.psql("CREATE TABLE only_there (a int)").unwrap();
    let outcome = pair.verify().await;
    let mut alone: Vec<&str> = outcome.alone.iter().map(|name| name.name.as_str()).collect();
    alone.sort_unstable();
    assert_eq!((outcome.verdict(), alone), (Verdict::Different, vec!["only_here", "only_there"]));

    let pair = Pair::new();
    pair.both(
        "CREATE TABLE t (a int, b int); INSERT INTO t VALUES (1, 2); CREATE INDEX i ON t (a)",
    );
    pair.target.psql("ALTER TABLE t DROP b; ALTER TABLE t ADD c int; DROP INDEX i").unwrap();
    let outcome = pair.verify().await;
    let kinds: Vec<_> =
        outcome.findings.iter().map(|finding| (finding.kind, finding.severity)).collect();
    let expected = [
        ("column-missing", SchemaSeverity::Different),
        ("column-extra", SchemaSeverity::Different),
        ("index-missing", SchemaSeverity::Warning),
    ];
    assert_eq!((outcome.verdict(), kinds), (Verdict::Different, expected.to_vec()));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_may_not_be_read_as_a_whole_makes_it_incomplete_with_the_reason() {
    let pair = Pair::new();
    pair.both("CREATE TABLE t (a int); CREATE TABLE p (a int)");
    pair.target.psql("DROP TABLE p; CREATE TABLE p (a int) PARTITION BY RANGE (a)").unwrap();
    let outcome = pair.verify().await;
    assert_eq!(outcome.verdict(), Verdict::Incomplete);
    assert!(outcome.skipped[0].because.contains("partitioned there"), "{outcome:?}");

    // Of a table that is cut on one side only nothing is known, and nothing is different.
    let cut = "CREATE TABLE t (a int) PARTITION BY RANGE (a); CREATE TABLE t_1 PARTITION OF t FOR VALUES FROM (1) TO (9)";
    for (source, target) in [("CREATE TABLE t (a int)", cut), (cut, "CREATE TABLE t (a int)")] {
        let pair = Pair::new();
        pair.source.psql(source).unwrap();
        pair.target.psql(target).unwrap();
        let outcome = pair.verify().await;
        let skipped: Vec<&str> =
            outcome.skipped.iter().map(|skipped| skipped.because.as_str()).collect();
        assert_eq!((outcome.verdict(), outcome.alone.len()), (Verdict::Incomplete, 0));
        assert!(
            matches!(skipped[..], [because] if because.contains("not compared")),
            "{skipped:?}"
        );
    }

    let empty = Pair::new();
    assert_eq!(empty.verify().await.verdict(), Verdict::Incomplete, "nothing is no proof");
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_row_security_hides_are_never_called_equal() {
    let mut pair = Pair::new();
    let role = format!("reader_{}", pair.source.name());
    let sql = "CREATE TABLE t (a int); INSERT INTO t VALUES (1)";
    pair.both(sql);
    pair.source.psql(&format!("DROP ROLE IF EXISTS {role}; CREATE ROLE {role} LOGIN")).unwrap();
    for side in [&pair.source, &pair.target] {
        side.psql(&format!("GRANT SELECT ON t TO {role}")).unwrap();
    }
    pair.target
        .psql("ALTER TABLE t ENABLE ROW LEVEL SECURITY; CREATE POLICY p ON t USING (a < 0)")
        .unwrap();
    let as_role =
        |url: String| url.replacen("postgres://postgres", &format!("postgres://{role}"), 1);
    pair.request =
        crate::support::request(&as_role(pair.source.url()), &as_role(pair.target.url()));
    let outcome = pair.verify().await;
    assert_eq!(outcome.verdict(), Verdict::Incomplete, "{outcome:?}");
    assert!(outcome.skipped[0].because.contains("row security"), "{outcome:?}");
    for side in [&pair.source, &pair.target] {
        side.psql(&format!("DROP OWNED BY {role}")).unwrap();
    }
    pair.source.psql(&format!("DROP ROLE {role}")).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn counting_finds_missing_rows_and_proves_nothing() {
    let mut pair = Pair::new();
    pair.both(ROWS);
    pair.request.level = Level::Count;
    let same = pair.table("t").await;
    assert_eq!((same.verdict, same.source.count), (Verdict::Incomplete, 20_000));
    assert_eq!(same.because, None, "it was asked for");
    pair.target.psql("UPDATE t SET a = 'x'; DELETE FROM t WHERE id = 7").unwrap();
    assert_eq!(pair.table("t").await.verdict, Verdict::Different);
    pair.request.level = Level::Schema;
    assert_eq!(pair.table("t").await.verdict, Verdict::Incomplete);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sequence_that_lags_behind_is_told_and_changes_no_verdict() {
    let pair = Pair::new();
    pair.both("CREATE TABLE t (a serial); INSERT INTO t SELECT FROM generate_series(1, 50)");
    pair.target.psql("SELECT setval('t_a_seq', 3)").unwrap();
    let outcome = pair.verify().await;
    assert_eq!(outcome.verdict(), Verdict::Identical);
    let found = &outcome.findings[0];
    assert_eq!(
        (found.kind, found.source.as_deref(), found.target.as_deref()),
        ("sequence-behind", Some("50"), Some("3"))
    );
}

/// Writes to the source until it is dropped.
pub(crate) struct Restless {
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Restless {
    pub(crate) fn start(pair: &Pair, sql: &'static str) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (seen, mut command) =
            (Arc::clone(&stop), pair.source.cluster().psql_command(pair.source.name()));
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        let mut input = child.stdin.take().unwrap();
        let thread = std::thread::spawn(move || {
            while !seen.load(Ordering::Relaxed) {
                // Padded, so that few are on their way to psql when it is to stop.
                writeln!(input, "{sql}; SELECT pg_sleep(0.01); {:8000}", "").unwrap();
            }
            drop(input);
            child.wait().unwrap();
        });
        Self { stop, thread: Some(thread) }
    }
}

impl Drop for Restless {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_hold_still_is_neither_equal_nor_different() {
    let pair = Pair::new();
    pair.both(ROWS);
    let before = pair.source.psql("SELECT n FROM t WHERE id = 77").unwrap();
    let restless = Restless::start(&pair, "UPDATE t SET n = n + 1 WHERE id = 77");
    let moved = || pair.source.psql("SELECT n FROM t WHERE id = 77").unwrap() != before;
    while !moved() {}
    let found = pair.table("t").await;
    assert_eq!((found.verdict, found.readings), (Verdict::Incomplete, 4), "{found:?}");
    assert!(found.because.unwrap().contains("still changing"));
    // Another row differs and holds still: that is a difference whatever moves beside it.
    pair.target.psql("DELETE FROM t WHERE id = 15000").unwrap();
    assert_eq!(pair.table("t").await.verdict, Verdict::Different);
    drop(restless);
    pair.source
        .psql(&format!("UPDATE t SET n = {before} WHERE id = 77; DELETE FROM t WHERE id = 15000"))
        .unwrap();
    assert_eq!(pair.table("t").await.verdict, Verdict::Identical);
}
