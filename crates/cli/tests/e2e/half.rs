//! A large table that a first snapshot has half copied goes on by chunk, and ends as one that was copied undisturbed.
//!
//! **Invariant:** equality is the oracle's; that chunks have stayed is read from the markers: those of the run that went on
//! name the rows that were read.

use std::sync::atomic::{AtomicBool, Ordering};

use rustix::process::Signal;

use crate::crash::Blocker;
use crate::follow::Pair;
use crate::support::{Job, assert_source_clean, reached, run_of, side};
use crate::unfinished::{
    begins_anew, count, died_with, goes_on, kill, opens, same_rows, waits_in_lineitem,
};

/// Rows with values outside of them, and room for rows that move: in every block of `lineitem`.
const BEFORE: &str = "
ALTER TABLE lineitem ADD long text;
ALTER TABLE lineitem ALTER long SET STORAGE EXTERNAL;
UPDATE lineitem SET long = repeat(md5(l_comment), 80) WHERE l_orderkey % 61 = 0;
DELETE FROM lineitem WHERE l_orderkey % 29 = 7;
";

/// Of every kind, to less than one row in forty. @ is another number each time.
const CHANGES: &str = "
UPDATE lineitem SET l_comment = 'moved @' WHERE l_orderkey % 421 = @;
UPDATE lineitem SET l_linenumber = l_linenumber + 100 WHERE l_orderkey % 307 = @ AND l_linenumber < 100;
DELETE FROM lineitem WHERE l_orderkey % 401 = @;
INSERT INTO lineitem SELECT l_orderkey, l_partkey, l_suppkey, l_linenumber + 1000 * @, l_quantity, l_extendedprice, l_discount,
  l_tax, l_returnflag, l_linestatus, l_shipdate, l_commitdate, l_receiptdate, l_shipinstruct, l_shipmode, l_comment, long
  FROM lineitem WHERE l_orderkey % 503 = @ AND l_linenumber < 1000;
UPDATE lineitem SET l_tax = 0.5 WHERE l_orderkey % 61 = 0 AND l_orderkey % 10 = @;
UPDATE lineitem SET long = repeat('new @', 700) WHERE l_orderkey % 61 = 0 AND l_orderkey % 11 = @;
WITH gone AS (DELETE FROM lineitem WHERE l_orderkey % 601 = @ RETURNING *) INSERT INTO lineitem SELECT * FROM gone;
BEGIN; UPDATE lineitem SET l_tax = 0.9 WHERE l_orderkey % 3 = 0; ROLLBACK;
BEGIN; SAVEPOINT a; DELETE FROM lineitem WHERE l_orderkey % 97 = 1; ROLLBACK TO a; DELETE FROM lineitem WHERE l_orderkey % 997 = @; COMMIT;
UPDATE orders SET o_comment = '@' WHERE o_orderkey % 7 = @;
";

/// The same, few at a time.
const STEADY: &str = "
UPDATE lineitem SET l_comment = 'moved @' WHERE l_orderkey % 4001 = @;
UPDATE lineitem SET l_linenumber = l_linenumber + 100 WHERE l_orderkey % 6007 = @ AND l_linenumber < 100;
DELETE FROM lineitem WHERE l_orderkey % 7001 = @;
INSERT INTO lineitem SELECT l_orderkey, l_partkey, l_suppkey, l_linenumber + 1000 * @, l_quantity, l_extendedprice, l_discount,
  l_tax, l_returnflag, l_linestatus, l_shipdate, l_commitdate, l_receiptdate, l_shipinstruct, l_shipmode, l_comment, long
  FROM lineitem WHERE l_orderkey % 5003 = @ AND l_linenumber < 1000;
UPDATE lineitem SET l_tax = 0.5 WHERE l_orderkey % 61 = 0 AND l_orderkey % 1009 = @;
";

const GOES_ON: &str = "a half-copied table goes on";
const ANEW: &str = "a half-copied table is copied from its first chunk";

fn changes(number: usize) -> String {
    CHANGES.replace('@', &number.to_string())
}

#[track_caller]
fn died(name: &'static str) -> (Pair, Job, String) {
    let died = died_with(name, BEFORE);
    // Rows come to where others were: between blocks of chunks that stay and of the one that is missing.
    died.0.source.psql("VACUUM lineitem").unwrap();
    died
}

/// Rows of `lineitem` that the run which went on has read.
fn read_again(pair: &Pair, run: &str) -> u64 {
    let oid = pair.source.psql("SELECT 'lineitem'::regclass::oid").unwrap();
    let sql = format!(
        "SELECT coalesce(sum(rows), 0) FROM tidemark.chunk WHERE relation_oid = {oid} AND run <> '{run}'"
    );
    count(pair, &sql)
}

#[test]
fn a_half_copied_table_reads_what_is_missing_and_what_has_changed_and_no_more() {
    let died = died("half");
    let (pair, _, run) = &died;
    pair.source.psql(&changes(1)).unwrap();
    pair.source.psql("VACUUM lineitem").unwrap();
    pair.source.psql(&changes(2)).unwrap();
    let stays = count(pair, "SELECT count(*) FROM lineitem");
    let said = goes_on(&died);
    assert!(said.contains(GOES_ON), "{said}");
    same_rows(pair);
    let all = count(pair, "SELECT count(*) FROM lineitem");
    let read = read_again(pair, run);
    assert!(read > 0 && read < all - stays / 2, "{read} of {all} rows were read, {stays} stayed");
    let key = "SELECT count(*) FROM pg_constraint WHERE conrelid = 'lineitem'::regclass AND contype = 'p'";
    assert_eq!(count(pair, key), 1);
    pair.source.psql(&changes(3)).unwrap();
    died.1.run(&["sync", "--until", "now"]).expect(0);
    same_rows(pair);
}

#[test]
fn a_half_copied_table_that_nobody_has_changed_reads_only_what_is_missing() {
    let died = died("quiet");
    let (pair, _, run) = &died;
    let stays = count(pair, "SELECT count(*) FROM lineitem");
    let said = goes_on(&died);
    assert!(said.contains(GOES_ON) && said.contains(" 0 keys are read again"), "{said}");
    same_rows(pair);
    assert_eq!(read_again(pair, run) + stays, count(pair, "SELECT count(*) FROM lineitem"));
}

#[test]
fn a_half_copied_table_goes_on_while_it_is_written_to() {
    let died = died("written");
    let (pair, job, _) = &died;
    let stop = AtomicBool::new(false);
    let said = std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut number = 0;
            while !stop.load(Ordering::Relaxed) && number < 900 {
                number += 1;
                pair.source.psql(&STEADY.replace('@', &number.to_string())).unwrap();
            }
            number
        });
        let said = goes_on(&died);
        stop.store(true, Ordering::Relaxed);
        assert!(writer.join().unwrap() > 1);
        said
    });
    assert!(said.contains(GOES_ON), "{said}");
    job.run(&["sync", "--until", "now"]).expect(0);
    same_rows(pair);
}

/// What was done meanwhile lets the table be copied from its first chunk, and is said.
#[track_caller]
fn is_copied_anew(name: &'static str, sql: &str, because: &str) {
    let died = died(name);
    let (pair, ..) = &died;
    pair.source.psql(sql).unwrap();
    pair.source.psql(&changes(1)).unwrap();
    let said = goes_on(&died);
    assert!(said.contains(ANEW) && said.contains(because), "{said}");
    same_rows(pair);
}

#[test]
fn a_half_copied_table_that_was_rewritten_is_copied_anew_and_says_why() {
    is_copied_anew("rewritten", "VACUUM FULL lineitem", "rewritten, truncated or altered");
}

#[test]
fn a_half_copied_table_that_was_truncated_is_copied_anew_and_says_why() {
    let sql = "BEGIN; CREATE TEMP TABLE kept AS TABLE lineitem; TRUNCATE lineitem; INSERT INTO lineitem TABLE kept; COMMIT";
    is_copied_anew("truncated", sql, "rewritten, truncated or altered");
}

#[test]
fn a_half_copied_table_that_had_another_column_is_copied_anew_and_says_why() {
    let sql = "ALTER TABLE lineitem ADD more integer DEFAULT 7; ALTER TABLE lineitem DROP more";
    is_copied_anew("column", sql, "rewritten, truncated or altered");
}

#[test]
fn a_half_copied_table_of_which_much_has_changed_is_copied_anew_and_says_why() {
    let sql = "UPDATE lineitem SET l_tax = 0.25 WHERE l_orderkey % 13 = 3";
    is_copied_anew("touched", sql, "rows have changed since");
}

#[test]
fn a_half_copied_table_with_another_column_name_for_a_while_is_copied_anew_and_says_why() {
    let sql = "ALTER TABLE lineitem RENAME l_tax TO was; UPDATE lineitem SET was = 0.25 WHERE l_orderkey % 211 = 3; \
        ALTER TABLE lineitem RENAME was TO l_tax";
    is_copied_anew("renamed", sql, "columns were others");
}

#[test]
fn a_half_copied_table_with_another_identity_for_a_while_is_copied_anew_and_says_why() {
    let sql = "CREATE UNIQUE INDEX other ON lineitem (l_linenumber, l_orderkey, l_partkey); \
        ALTER TABLE lineitem REPLICA IDENTITY USING INDEX other; UPDATE lineitem SET l_tax = 0.25 WHERE l_orderkey % 211 = 3; \
        ALTER TABLE lineitem REPLICA IDENTITY NOTHING; INSERT INTO lineitem (SELECT l_orderkey, l_partkey, l_suppkey, 9000, \
        l_quantity, l_extendedprice, l_discount, l_tax, l_returnflag, l_linestatus, l_shipdate, l_commitdate, l_receiptdate, \
        l_shipinstruct, l_shipmode, l_comment FROM lineitem WHERE l_linenumber = 1 LIMIT 3); \
        ALTER TABLE lineitem REPLICA IDENTITY DEFAULT; DROP INDEX other";
    is_copied_anew("identity", sql, "replica identity");
}

#[test]
fn a_half_copied_table_that_is_unlogged_on_the_target_is_copied_anew_and_says_why() {
    let died = died("unlogged");
    // A crash of the target would leave the markers and none of the rows.
    died.0.target.psql("ALTER TABLE lineitem SET UNLOGGED").unwrap();
    let said = goes_on(&died);
    assert!(said.contains(ANEW) && said.contains("no chunks of it that may stay"), "{said}");
    same_rows(&died.0);
}

#[test]
fn chunks_that_a_crash_of_the_target_took_are_read_again_whatever_the_ledger_knows() {
    let died = died("unflushed");
    let (pair, ..) = &died;
    // Commits of chunks do not wait for the disk: the last one is lost with its marker.
    let lost = "WITH lost AS (DELETE FROM tidemark.chunk c WHERE chunk = (SELECT max(chunk) FROM tidemark.chunk o \
          WHERE o.relation_oid = c.relation_oid) AND relation_oid = LINEITEM RETURNING xid), \
        gone AS (DELETE FROM lineitem USING lost WHERE lineitem.xmin::text::int8 = lost.xid RETURNING 1) \
        SELECT count(*) FROM gone";
    let oid = pair.source.psql("SELECT 'lineitem'::regclass::oid").unwrap();
    let gone: u64 = pair.target.psql(&lost.replace("LINEITEM", &oid)).unwrap().parse().unwrap();
    assert!(gone > 0);
    pair.source.psql(&changes(1)).unwrap();
    let said = goes_on(&died);
    assert!(said.contains(GOES_ON), "{said}");
    same_rows(pair);
}

/// `lineitem` is a partition, with a generated column.
const PARTITION: &str = "
ALTER TABLE lineitem ADD total numeric GENERATED ALWAYS AS (l_quantity * l_tax) STORED;
CREATE TABLE items (LIKE lineitem INCLUDING GENERATED) PARTITION BY RANGE (l_orderkey);
ALTER TABLE items ATTACH PARTITION lineitem FOR VALUES FROM (MINVALUE) TO (10000000);
CREATE TABLE items_2 PARTITION OF items FOR VALUES FROM (10000000) TO (MAXVALUE);
ALTER TABLE items_2 ADD PRIMARY KEY (l_orderkey, l_linenumber);
DELETE FROM items WHERE l_orderkey % 29 = 7;
UPDATE items SET l_orderkey = l_orderkey + 20000000 WHERE l_orderkey % 53 = 1;
";

/// Rows go to another partition, come from it, and change.
const MOVES: &str = "
UPDATE items SET l_orderkey = l_orderkey + 10000000 WHERE l_orderkey < 10000000 AND l_orderkey % 421 = 3;
UPDATE items SET l_orderkey = l_orderkey - 20000000 WHERE l_orderkey > 20000000 AND l_orderkey % 3 = 1;
UPDATE items SET l_tax = l_tax + 0.01, l_linenumber = l_linenumber + 100 WHERE l_orderkey < 10000000 AND l_orderkey % 307 = 5;
DELETE FROM items WHERE l_orderkey % 401 = 9;
";

#[test]
fn a_half_copied_partition_goes_on_whose_rows_go_and_come() {
    let died = died_with("part", PARTITION);
    died.0.source.psql("VACUUM lineitem").unwrap();
    died.0.source.psql(MOVES).unwrap();
    let said = goes_on(&died);
    assert!(said.contains(GOES_ON), "{said}");
    same_rows(&died.0);
}

#[test]
fn a_process_that_dies_before_rows_are_taken_out_of_a_half_copied_table_lets_it_begin_anew() {
    let joining = "SELECT count(*) FROM tidemark.relation WHERE relation_name = 'lineitem' AND state = 'joining'";
    dies_again("halfjoins", joining);
}

#[test]
fn a_process_that_dies_once_rows_were_taken_out_of_a_half_copied_table_lets_it_begin_anew() {
    dies_again("takenout", "SELECT count(*) = 0 FROM lineitem WHERE l_orderkey % 401 = 1");
}

#[test]
fn a_process_that_dies_while_a_half_copied_table_goes_on_lets_it_begin_anew() {
    let loading = "SELECT count(*) FROM tidemark.chunk c, tidemark.progress p WHERE c.run <> p.run";
    dies_again("halfloads", loading);
}

/// Once `sql` on the target says that it is there.
#[track_caller]
fn dies_again(name: &'static str, sql: &str) {
    let died = died(name);
    let (pair, job, run) = &died;
    pair.source.psql(&changes(1)).unwrap();
    let is_there = || {
        let answer = pair.target.psql(sql).unwrap_or_default();
        !matches!(answer.as_str(), "0" | "f" | "")
    };
    let mut running = job.start(&["sync"]);
    let came = reached(&mut running, is_there);
    assert!(came, "{}", running.stderr());
    kill(running);
    pair.source.psql(&changes(2)).unwrap();
    let said = goes_on(&died);
    assert!(!said.contains(GOES_ON), "{said}");
    assert_eq!(run_of(side(&pair.target), name), *run);
    same_rows(pair);
}

/// The largest table comes first: where it is half copied, none may be whole. Its old rows come as a whole.
#[track_caller]
fn first(name: &'static str) -> (Pair, Job) {
    let pair = Pair::new(name);
    pair.source.psql(BEFORE).unwrap();
    pair.source.psql("ALTER TABLE lineitem REPLICA IDENTITY FULL").unwrap();
    let job = pair.job().configured("[snapshot]\nreaders = 1\nchunk_bytes = \"1600KiB\"\n");
    (pair, job)
}

#[test]
fn a_half_copied_table_goes_on_where_no_table_is_whole() {
    let (pair, job) = first("alone");
    let (running, blocker) = waits_in_lineitem(&pair, &job, "alone", 0);
    kill(running);
    opens(&pair, blocker);
    let status = job.status().unwrap();
    let said = status["activity"].as_str().unwrap();
    assert!(said.contains("keeps the chunks that are done"), "{said}");
    let run = run_of(side(&pair.target), "alone");
    pair.source.psql(&changes(1)).unwrap();
    let died = (pair, job, run);
    let said = goes_on(&died);
    assert!(said.contains(GOES_ON) && said.contains("; 0 of "), "{said}");
    same_rows(&died.0);
}

#[test]
fn a_stop_keeps_a_half_copied_table_once_and_then_leaves_nothing_on_the_source() {
    let (pair, job) = first("halfstop");
    let (running, blocker) = waits_in_lineitem(&pair, &job, "halfstop", 0);
    running.signal(Signal::INT);
    let stopped = running.end().expect(130);
    opens(&pair, blocker);
    stopped.says(&[
        "0 tables are whole and 1 half copied, and stay: the same tidemark sync copies the rest",
        "slot tidemark_halfstop stays on the source",
    ]);
    // Tried once it does not go on again, also where it did not fit.
    pair.source.psql("VACUUM FULL lineitem").unwrap();
    let mut blocker = Blocker::start(&pair.target, "LOCK TABLE lineitem IN SHARE MODE");
    let mut running = job.start(&["sync"]);
    let waits =
        "SELECT count(*) FROM pg_locks WHERE relation = 'lineitem'::regclass AND NOT granted";
    assert!(reached(&mut running, || count(&pair, waits) > 0), "{}", running.stderr());
    running.signal(Signal::INT);
    let said = ["; 0 of ", " tables are whole and stay", "it starts the snapshot over"];
    let ran = running.end().expect(130).says(&said);
    assert!(!ran.stderr.contains("stays on the source"), "{}", ran.stderr);
    blocker.end();
    assert_source_clean(side(&pair.source));
    job.run(&["sync", "--until", "now"]).expect(0).says(&["begins anew"]);
    same_rows(&pair);
}

#[test]
fn a_half_copied_table_whose_snapshot_begins_anew_keeps_nothing() {
    let died = died("anewhalf");
    died.0.source.psql("ALTER TABLE region ADD more integer").unwrap();
    died.0.source.psql(&changes(1)).unwrap();
    begins_anew(&died, "definitions on the source have changed");
}
