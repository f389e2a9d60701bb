//! Tables that join a job that follows: against every interleaving with the transactions of the source, killed at every step,
//! given up and taken in again.
//!
//! **Invariant:** equality is the oracle's; that an interleaving came about is asked of the source
//! (`pg_visible_in_snapshot`), not assumed.

use std::io::Write as _;
use std::process::{Child, ChildStdin, Stdio};

use rustix::process::Signal;
use tidemark_testkit::{Cluster, Database, oracle, shared};

use crate::crash::Blocker;
use crate::follow::{Pair, drop_origin, follows, passes};
use crate::support::{Job, Running, reached, side, wait_until};

/// A session of the application that keeps its transaction open.
pub(crate) struct Open<'a> {
    database: &'a Database,
    name: &'static str,
    child: Child,
    input: Option<ChildStdin>,
}

impl<'a> Open<'a> {
    /// Begins a transaction and does something in it.
    #[track_caller]
    pub(crate) fn begin(database: &'a Database, name: &'static str, sql: &str) -> Self {
        let mut command = database.cluster().psql_command(database.name());
        command.env("PGAPPNAME", name).stdin(Stdio::piped());
        let mut child = command.stdout(Stdio::null()).spawn().unwrap();
        let mut input = child.stdin.take().unwrap();
        writeln!(input, "BEGIN; {sql};").unwrap();
        input.flush().unwrap();
        let waits = format!(
            "SELECT count(*) FROM pg_stat_activity WHERE application_name = '{name}' \
             AND datname = current_database() AND state = 'idle in transaction' AND backend_xid IS NOT NULL \
             AND query NOT LIKE 'BEGIN%'"
        );
        wait_until("the transaction is open", || database.psql(&waits).unwrap() == "1");
        Self { database, name, child, input: Some(input) }
    }

    /// Its transaction id.
    pub(crate) fn xid(&self) -> String {
        let sql = format!(
            "SELECT backend_xid FROM pg_stat_activity WHERE application_name = '{}' AND datname = current_database()",
            self.name
        );
        self.database.psql(&sql).unwrap()
    }

    /// Does more in it, without waiting.
    #[track_caller]
    pub(crate) fn more(&mut self, sql: &str) {
        writeln!(self.input.as_mut().unwrap(), "{sql};").unwrap();
    }

    #[track_caller]
    pub(crate) fn commit(mut self) {
        writeln!(self.input.as_mut().unwrap(), "COMMIT;").unwrap();
        drop(self.input.take());
        assert!(self.child.wait().unwrap().success());
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        drop(self.input.take());
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// A table that comes after the job has begun, with values out of line.
pub(crate) const LATE: &str = "CREATE TABLE late (id integer PRIMARY KEY, n integer, body text); \
    ALTER TABLE late ALTER body SET STORAGE EXTERNAL; CREATE INDEX late_n ON late (n); \
    INSERT INTO late SELECT i, i % 10, repeat(md5(i::text), 100) FROM generate_series(1, 3000) i; \
    CREATE TABLE later (late integer REFERENCES late, note text); ALTER TABLE later REPLICA IDENTITY FULL; \
    INSERT INTO later SELECT 1 + i % 100, 'n' || i % 7 FROM generate_series(1, 500) i";

/// Every kind of change, in rows that only this `part` (0 to 9) of them has: inserts, an update that leaves the value out of
/// line alone and moves the row, one of that value, key changes, deletes, a savepoint that is rolled back.
pub(crate) fn changes(part: u32) -> String {
    let mine = format!("id <= 3000 AND id % 10 = {part}");
    format!(
        "SELECT 1; INSERT INTO late SELECT 10000 + {part} * 1000 + i, i, repeat('new', 900) FROM generate_series(1, 40) i; \
         UPDATE late SET n = n + 100 WHERE {mine} AND id < 2000; \
         UPDATE late SET body = repeat('changed', 400) WHERE {mine} AND id BETWEEN 500 AND 900; \
         UPDATE late SET id = id + 100000 WHERE {mine} AND id BETWEEN 1000 AND 1400; \
         DELETE FROM late WHERE {mine} AND id BETWEEN 2000 AND 2300; \
         DELETE FROM late WHERE id = 10000 + {part} * 1000 + 7; \
         INSERT INTO later VALUES (NULL, 'part {part}'), (NULL, 'part {part}'); \
         DELETE FROM later WHERE ctid IN (SELECT ctid FROM later WHERE note = 'n{part}' LIMIT 3); \
         SAVEPOINT s; DELETE FROM late WHERE {mine} AND id > 2300; ROLLBACK TO s; \
         SAVEPOINT t; UPDATE late SET n = -{part} WHERE id = 10000 + {part} * 1000 + 8; RELEASE t; \
         INSERT INTO region VALUES (100 + {part}, 'part', '')"
    )
}

/// Waits until the job waits for transactions that began before its tables were published: it has taken its id by then.
#[track_caller]
pub(crate) fn waits_for_writers(running: &mut Running, source: &Database) {
    let waits = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'tidemark%' \
        AND datname = current_database() AND query LIKE '%pg_snapshot_xmin%'";
    let is_waiting = reached(running, || source.psql(waits).unwrap() != "0");
    assert!(is_waiting, "{}", running.stderr());
}

fn state(pair: &Pair, table: &str) -> String {
    let sql = format!("SELECT state FROM tidemark.relation WHERE relation_name = '{table}'");
    pair.target.psql(&sql).unwrap_or_default()
}

#[track_caller]
pub(crate) fn ends(running: Running) {
    running.signal(Signal::TERM);
    running.end().expect(0);
}

#[test]
fn a_table_that_joins_has_every_change_once_whenever_its_transaction_began_and_ended() {
    let pair = Pair::new("joining");
    let job = pair.job();
    job.run(&["sync", "--until", "now"]).expect(0);
    pair.source.psql(LATE).unwrap();
    // Committed before the table is published.
    pair.source.psql(&format!("BEGIN; {}; COMMIT", changes(0))).unwrap();
    // Begun before, committed after: these changes are not in the stream.
    let early = Open::begin(&pair.source, "early", &changes(1));
    let early_xid = early.xid();
    let mut running = job.start(&["sync"]);
    waits_for_writers(&mut running, &pair.source);
    // Begun and committed between the publication and the snapshot, one of them in two phases.
    pair.source.psql(&format!("BEGIN; {}; COMMIT", changes(2))).unwrap();
    let prepared = format!(
        "BEGIN; {}; PREPARE TRANSACTION 'joining2'; COMMIT PREPARED 'joining2'",
        changes(3)
    );
    pair.source.psql(&prepared).unwrap();
    // In progress at the snapshot, committed after it.
    let late = Open::begin(&pair.source, "late", &changes(4));
    let late_xid = late.xid();
    pair.source.psql(&format!("BEGIN; {}; PREPARE TRANSACTION 'joining1'", changes(5))).unwrap();
    let aborted = Open::begin(&pair.source, "aborted", &changes(6));
    early.commit();
    let is_taken = reached(&mut running, || !state(&pair, "late").is_empty());
    assert!(is_taken, "{}", running.stderr());
    late.commit();
    pair.source.psql("COMMIT PREPARED 'joining1'").unwrap();
    drop(aborted);
    // After it.
    pair.source.psql(&format!("BEGIN; {}; COMMIT", changes(7))).unwrap();
    passes(&mut running, &pair.source, &pair.target);
    pair.source.psql("VACUUM FULL late").unwrap();
    pair.source.psql(&format!("BEGIN; {}; COMMIT", changes(8))).unwrap();
    pair.source
        .psql(
            "BEGIN; DELETE FROM later; DELETE FROM region WHERE r_regionkey = 99; COMMIT; \
        INSERT INTO later VALUES (1, 'last')",
        )
        .unwrap();
    passes(&mut running, &pair.source, &pair.target);
    pair.assert_equal();
    let joined =
        "SELECT DISTINCT read_snapshot FROM tidemark.relation WHERE read_snapshot IS NOT NULL";
    let snapshot = pair.target.psql(joined).unwrap();
    let shown = |xid: &str| {
        let sql =
            format!("SELECT pg_visible_in_snapshot('{xid}'::xid8, '{snapshot}'::pg_snapshot)");
        pair.source.psql(&sql).unwrap() == "t"
    };
    assert!(shown(&early_xid) && !shown(&late_xid), "{early_xid} {late_xid} {snapshot}");
    let indexes = "SELECT count(*) FROM pg_indexes WHERE tablename = 'late'";
    assert_eq!(pair.target.psql(indexes).unwrap(), "2", "key and index are there");
    let validated = "SELECT convalidated FROM pg_constraint WHERE conname = 'later_late_fkey'";
    let is_validated = reached(&mut running, || pair.target.psql(validated).unwrap() == "t");
    assert!(is_validated, "{}", running.stderr());
    ends(running);
    // Where it joined is behind the stream now, and goes on as any other.
    pair.source.psql(&format!("BEGIN; {}; COMMIT", changes(9))).unwrap();
    job.run(&["sync", "--until", "now"]).expect(0);
    pair.assert_equal();
}

#[test]
fn a_truncate_of_several_tables_counts_for_each_as_its_snapshot_says() {
    let pair = Pair::new("emptied");
    let job = pair.job();
    pair.source
        .psql("CREATE TABLE old (id integer PRIMARY KEY); INSERT INTO old VALUES (1), (2)")
        .unwrap();
    job.run(&["sync", "--until", "now"]).expect(0);
    pair.source
        .psql("CREATE TABLE young (id integer PRIMARY KEY); INSERT INTO young VALUES (1)")
        .unwrap();
    let early = Open::begin(
        &pair.source,
        "early",
        "SELECT 1; UPDATE region SET r_comment = 'x' WHERE r_regionkey = 2",
    );
    let mut running = job.start(&["sync"]);
    waits_for_writers(&mut running, &pair.source);
    pair.source
        .psql("TRUNCATE young, old; INSERT INTO young VALUES (5); INSERT INTO old VALUES (6)")
        .unwrap();
    pair.source
        .psql("TRUNCATE old, young; INSERT INTO young VALUES (7); INSERT INTO old VALUES (8)")
        .unwrap();
    early.commit();
    passes(&mut running, &pair.source, &pair.target);
    pair.assert_equal();
    pair.source
        .psql("INSERT INTO young VALUES (9); TRUNCATE young, old; INSERT INTO old VALUES (10)")
        .unwrap();
    passes(&mut running, &pair.source, &pair.target);
    pair.assert_equal();
    ends(running);
}

/// Lets tables join, and kills the run at its first moment of each kind; ends it undisturbed.
#[test]
fn a_run_killed_at_any_step_of_a_join_begins_the_join_again_and_ends_equal() {
    let pair = Pair::new("killjoin");
    let job = pair.job().configured("[snapshot]\nreaders = 2\nchunk_bytes = \"256KiB\"\n");
    job.run(&["sync", "--until", "now"]).expect(0);
    pair.source.psql(LATE).unwrap();
    let published = "SELECT count(*) FROM pg_publication_tables WHERE tablename = 'late'";
    let chunks = "SELECT count(*) FROM tidemark.chunk c JOIN tidemark.relation r USING (job, relation_oid) \
        WHERE r.relation_name = 'late' AND r.state <> 'joined'";
    let moments: [(&str, &dyn Fn() -> bool); 5] = [
        ("published", &|| pair.source.psql(published).unwrap() != "0"),
        ("making", &|| state(&pair, "late") == "making"),
        ("loading", &|| pair.target.psql(chunks).unwrap() != "0"),
        ("keys", &|| pair.target.psql("SELECT to_regclass('late_n')").unwrap() == "late_n"),
        ("joined", &|| state(&pair, "late") == "joined"),
    ];
    for (number, (moment, is_there)) in (0_u32..).zip(moments) {
        let mut running = job.start(&["sync"]);
        let came = reached(&mut running, is_there);
        assert!(came, "{moment}: {}", running.stderr());
        running.signal(Signal::KILL);
        running.end().expect(137);
        pair.source.psql(&format!("BEGIN; {}; COMMIT", changes(number))).unwrap();
    }
    job.run(&["sync", "--until", "now"]).expect(0);
    pair.assert_equal();
    assert_eq!(state(&pair, "late"), "joined");
}

#[test]
fn tables_that_were_given_up_are_copied_again_while_the_others_go_on() {
    let pair = Pair::new("resets");
    let job = pair.job();
    job.run(&["sync", "--until", "now"]).expect(0);
    job.run(&["reset", "public.pet"]).expect(2).says(&["--yes"]);
    job.run(&["reset", "public.nothing", "--yes"]).expect(2).says(&["nothing"]);
    let mut running = job.start(&["sync"]);
    follows(&mut running, &pair.target, "resets");
    passes(&mut running, &pair.source, &pair.target);
    job.run(&["reset", "public.pet", "--yes"]).expect(9);
    ends(running);
    // Rows that nobody but a new copy puts right; a foreign key leads to orders.
    pair.target.psql("SET session_replication_role = replica; DELETE FROM pet WHERE id % 3 = 0; UPDATE orders SET o_comment = 'x'").unwrap();
    pair.source
        .psql("UPDATE pet SET legs = 8 WHERE id % 5 = 0; DELETE FROM pet WHERE id % 7 = 0")
        .unwrap();
    job.run(&["reset", "public.pet", "public.orders", "--yes"]).expect(0);
    job.run(&["reset", "public.pet", "--yes"]).expect(0);
    let ran = job.run(&["sync", "--until", "now", "--json"]).expect(0);
    let report: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(report["joined"]["tables"].as_array().map(Vec::len), Some(2), "{report}");
    assert!(report["snapshot"].is_null(), "{report}");
    pair.assert_equal();
    let ran = job.run(&["sync", "--until", "now", "--json"]).expect(0);
    assert!(!ran.stdout.contains("\"joined\""), "nothing joins twice: {}", ran.stdout);
}

#[test]
fn a_table_that_was_given_up_is_emptied_without_what_refers_to_it() {
    let pair = Pair::new("cascade");
    pair.source
        .psql(
            "CREATE TABLE owner (id integer PRIMARY KEY); \
             CREATE TABLE owned (id integer PRIMARY KEY, owner integer REFERENCES owner ON DELETE CASCADE, note text); \
             INSERT INTO owner SELECT generate_series(1, 50); INSERT INTO owned SELECT i, i, 'n' FROM generate_series(1, 50) i",
        )
        .unwrap();
    // Triggers fire, those of foreign keys too.
    let job = pair.job().configured("triggers = \"as-is\"\n");
    job.run(&["sync", "--until", "now"]).expect(0);
    pair.target.psql("UPDATE owned SET note = 'kept'").unwrap();
    job.run(&["reset", "public.owner", "--yes"]).expect(0);
    job.run(&["sync", "--until", "now"]).expect(0);
    let kept = "SELECT count(*) FROM owned WHERE note = 'kept'";
    assert_eq!(pair.target.psql(kept).unwrap(), "50");
    pair.target.psql("UPDATE owned SET note = 'n'").unwrap();
    pair.assert_equal();
}

#[test]
fn a_key_that_the_target_checks_between_tables_of_two_moments_is_explained_with_a_way_out() {
    let pair = Pair::new("twomoments");
    let setup = "CREATE TABLE owner (id integer PRIMARY KEY); INSERT INTO owner SELECT generate_series(1, 50); \
        CREATE TABLE owned (id integer PRIMARY KEY, owner integer REFERENCES owner); INSERT INTO owned SELECT i, i FROM generate_series(1, 50) i";
    pair.source.psql(setup).unwrap();
    let job = pair.job().configured("triggers = \"as-is\"\n");
    job.run(&["sync", "--until", "now"]).expect(0);
    // The new one and what refers to it come and go again before the table is copied.
    pair.source
        .psql("BEGIN; INSERT INTO owner VALUES (51); INSERT INTO owned VALUES (51, 51); COMMIT")
        .unwrap();
    let here = pair.source.psql("SELECT pg_current_wal_insert_lsn()").unwrap();
    pair.source.psql("INSERT INTO region VALUES (60, 'between', '')").unwrap();
    pair.source
        .psql("BEGIN; DELETE FROM owned WHERE id = 51; DELETE FROM owner WHERE id = 51; COMMIT")
        .unwrap();
    job.run(&["reset", "public.owner", "--yes"]).expect(0);
    job.run(&["sync", "--until", &here]).expect(7).says(&[
        "owned",
        "a table that joins",
        "set it to \"replica\" until",
    ]);
    let job = job.configured("triggers = \"replica\"\n");
    job.run(&["sync", "--until", "now"]).expect(0);
    pair.assert_equal();
    pair.source.psql("INSERT INTO owner VALUES (52); INSERT INTO owned VALUES (52, 52)").unwrap();
    let job = job.configured("triggers = \"as-is\"\n");
    job.run(&["sync", "--until", "now"]).expect(0);
    pair.assert_equal();
}

#[test]
fn a_table_that_was_left_out_for_a_while_is_not_taken_for_whole() {
    let pair = Pair::new("leftout");
    let all = "[snapshot]\nreaders = 2\n";
    let job = pair.job().configured(all);
    job.run(&["sync", "--until", "now"]).expect(0);
    let job = job.configured("[snapshot]\nreaders = 2\n[select]\nexclude = [\"public.pet\"]\n");
    pair.source.psql("DELETE FROM pet WHERE id % 2 = 0").unwrap();
    job.run(&["sync", "--until", "now"]).expect(0);
    let job = job.configured(all);
    job.run(&["sync", "--until", "now"])
        .expect(2)
        .says(&["pet", "tidemark reset public.pet --yes"]);
    job.run(&["reset", "public.pet", "--yes"]).expect(0);
    job.run(&["sync", "--until", "now"]).expect(0);
    pair.assert_equal();
}

#[test]
fn a_new_partition_and_what_belongs_to_a_new_table_are_made_on_the_target() {
    let pair = Pair::new("monthly");
    let job = pair.job();
    pair.source
        .psql(
            "CREATE TABLE month (day date, id integer, note text, PRIMARY KEY (id, day)) PARTITION BY RANGE (day); \
             CREATE INDEX month_note ON month (note); \
             CREATE TABLE month_1 PARTITION OF month FOR VALUES FROM ('2024-01-01') TO ('2024-02-01'); \
             INSERT INTO month SELECT '2024-01-05', i, 'n' FROM generate_series(1, 100) i",
        )
        .unwrap();
    job.run(&["sync", "--until", "now"]).expect(0);
    pair.source
        .psql(
            "CREATE TABLE month_2 PARTITION OF month FOR VALUES FROM ('2024-02-01') TO ('2024-03-01'); \
             INSERT INTO month SELECT '2024-02-05', i, 'n' FROM generate_series(1, 100) i; \
             CREATE TABLE owner (id serial PRIMARY KEY, pet integer REFERENCES pet, name text UNIQUE CHECK (name <> '')); \
             INSERT INTO owner (pet, name) SELECT i, 'o' || i FROM generate_series(1, 50) i",
        )
        .unwrap();
    job.run(&["sync", "--until", "now"]).expect(0);
    pair.source
        .psql("INSERT INTO month VALUES ('2024-02-06', 7, 'later'); UPDATE owner SET name = 'new' WHERE id = 3")
        .unwrap();
    job.run(&["sync", "--until", "now"]).expect(0);
    pair.assert_equal();
    let made = "SELECT (SELECT count(*) FROM pg_inherits WHERE inhparent = 'month'::regclass), \
        (SELECT string_agg(contype::text, '' ORDER BY contype) FROM pg_constraint WHERE conrelid = 'owner'::regclass AND contype <> 'n'), \
        nextval('owner_id_seq')";
    assert_eq!(pair.target.psql(made).unwrap(), "2|cfpu|51");
}

#[test]
fn a_table_that_the_target_lacks_is_named_where_nothing_is_created_there() {
    let pair = Pair::new("lacking");
    let job = pair.job();
    job.run(&["sync", "--until", "now"]).expect(0);
    pair.source
        .psql("CREATE TABLE extra (id integer PRIMARY KEY); INSERT INTO extra VALUES (1)")
        .unwrap();
    let exists = job.configured("schema = \"exists\"\n[snapshot]\nreaders = 2\n");
    let ran = exists.run(&["sync", "--until", "now"]);
    assert!([2, 5].contains(&ran.code), "{ran:?}");
    assert!(ran.stderr.contains("extra"), "{}", ran.stderr);
    pair.target.psql("CREATE TABLE extra (id integer PRIMARY KEY)").unwrap();
    exists.run(&["sync", "--until", "now"]).expect(0);
    pair.assert_equal();
}

#[test]
fn a_table_that_was_dropped_and_made_again_joins_once_it_was_given_up() {
    let pair = Pair::new("remade");
    let job = pair.job();
    pair.source
        .psql("CREATE TABLE thing (id integer PRIMARY KEY, n text); INSERT INTO thing VALUES (1, 'old'), (2, 'old')")
        .unwrap();
    job.run(&["sync", "--until", "now"]).expect(0);
    pair.source
        .psql("DROP TABLE thing; CREATE TABLE thing (id integer PRIMARY KEY, n text); INSERT INTO thing VALUES (2, 'new')")
        .unwrap();
    job.run(&["sync", "--until", "now"]).expect(6).says(&["tidemark reset public.thing --yes"]);
    job.run(&["reset", "public.thing", "--yes"]).expect(0);
    pair.source.psql("INSERT INTO thing VALUES (3, 'new')").unwrap();
    job.run(&["sync", "--until", "now"]).expect(0);
    pair.assert_equal();
}

#[test]
fn a_run_that_ends_behind_a_join_has_checked_its_keys_and_forgotten_the_error_before() {
    let pair = Pair::new("settled");
    let job = pair.job();
    job.run(&["sync", "--until", "now"]).expect(0);
    // One that cannot join: no replica identity for what it would have to change.
    let setup = "CREATE TABLE piece (id integer PRIMARY KEY, pet integer REFERENCES pet); \
        INSERT INTO piece SELECT 1, min(id) FROM pet; CREATE TABLE nameless (i integer)";
    pair.source.psql(setup).unwrap();
    job.run(&["sync", "--until", "now"]).expect(5);
    pair.source.psql("ALTER TABLE nameless ADD PRIMARY KEY (i)").unwrap();
    job.run(&["sync", "--until", "now"]).expect(0);
    pair.assert_equal();
    let validated = "SELECT convalidated FROM pg_constraint WHERE conname = 'piece_pet_fkey'";
    assert_eq!(pair.target.psql(validated).unwrap(), "t");
    let status = job.status().unwrap();
    assert!(status["last_error"].is_null(), "{status}");
}

#[test]
fn tables_that_swapped_their_names_are_not_written_into_each_other() {
    let pair = Pair::new("swapped");
    let setup = "CREATE TABLE blue (id integer PRIMARY KEY, t text); CREATE TABLE green (LIKE blue INCLUDING ALL); \
        INSERT INTO blue VALUES (1, 'blue'); INSERT INTO green VALUES (1, 'green')";
    pair.source.psql(setup).unwrap();
    let job = pair.job();
    job.run(&["sync", "--until", "now"]).expect(0);
    let swap = "BEGIN; ALTER TABLE blue RENAME TO gray; ALTER TABLE green RENAME TO blue; \
        ALTER TABLE gray RENAME TO green; COMMIT";
    pair.source.psql(swap).unwrap();
    pair.source.psql("UPDATE blue SET t = 'was green'").unwrap();
    let refused = job.run(&["sync", "--until", "now"]).expect(6);
    assert!(refused.error().contains("is called"), "{}", refused.stderr);
    // The way out that the message names.
    pair.source.psql(swap).unwrap();
    job.run(&["sync", "--until", "now"]).expect(0);
    pair.assert_equal();
}

#[test]
fn foreign_keys_of_and_to_partitioned_tables_that_join_are_made_once_the_stream_has_passed() {
    let pair = Pair::new("parted");
    let job = pair.job();
    pair.source
        .psql(
            "CREATE TABLE stay (id integer, day date, PRIMARY KEY (id, day)) PARTITION BY RANGE (day); \
             CREATE TABLE stay_1 PARTITION OF stay FOR VALUES FROM ('2024-01-01') TO ('2024-02-01'); \
             CREATE TABLE stay_2 PARTITION OF stay FOR VALUES FROM ('2024-02-01') TO ('2024-03-01'); \
             INSERT INTO stay SELECT i, date '2024-01-01' + i % 60 FROM generate_series(1, 300) i",
        )
        .unwrap();
    job.run(&["sync", "--until", "now"]).expect(0);
    pair.source
        .psql(
            "CREATE TABLE bill (id integer PRIMARY KEY, stay integer, day date, FOREIGN KEY (stay, day) REFERENCES stay); \
             INSERT INTO bill SELECT id, id, day FROM stay; COMMENT ON CONSTRAINT bill_stay_day_fkey ON bill IS 'whose'; \
             CREATE TABLE meal (id integer, pet integer REFERENCES pet, stay integer, day date, PRIMARY KEY (id, day), \
               FOREIGN KEY (stay, day) REFERENCES stay) PARTITION BY RANGE (day); \
             CREATE TABLE meal_1 PARTITION OF meal FOR VALUES FROM ('2024-01-01') TO ('2025-01-01'); \
             INSERT INTO meal SELECT id, (SELECT min(id) FROM pet), id, day FROM stay",
        )
        .unwrap();
    let ran = job.run(&["sync", "--until", "now"]).expect(0);
    pair.assert_equal();
    let keys = "SELECT conrelid::regclass, count(*) FILTER (WHERE conparentid = 0), bool_and(convalidated) FROM pg_constraint WHERE contype = 'f' \
        AND conrelid::regclass::text IN ('bill', 'meal', 'meal_1') GROUP BY 1 ORDER BY conrelid::regclass::text";
    let on_source = pair.source.psql(keys).unwrap();
    assert!(!on_source.contains("|f"), "{on_source}");
    assert_eq!(pair.target.psql(keys).unwrap(), on_source, "{}", ran.stderr);
    assert_eq!(pair.target.psql("SELECT cardinality(owed) FROM tidemark.progress").unwrap(), "0");
}

#[test]
fn a_partition_that_was_carved_out_of_the_default_one_joins_together_with_it() {
    let pair = Pair::new("carved");
    let job = pair.job();
    pair.source
        .psql(
            "CREATE TABLE month (day date, id integer, PRIMARY KEY (id, day)) PARTITION BY RANGE (day); \
             CREATE TABLE month_1 PARTITION OF month FOR VALUES FROM ('2024-01-01') TO ('2024-02-01'); \
             CREATE TABLE month_rest PARTITION OF month DEFAULT; \
             INSERT INTO month SELECT date '2024-01-01' + i % 90, i FROM generate_series(1, 300) i",
        )
        .unwrap();
    job.run(&["sync", "--until", "now"]).expect(0);
    pair.source
        .psql(
            "BEGIN; CREATE TABLE month_2 (LIKE month INCLUDING ALL); \
             WITH gone AS (DELETE FROM month_rest WHERE day < '2024-03-01' RETURNING *) INSERT INTO month_2 SELECT * FROM gone; \
             ALTER TABLE month ATTACH PARTITION month_2 FOR VALUES FROM ('2024-02-01') TO ('2024-03-01'); COMMIT",
        )
        .unwrap();
    job.run(&["sync", "--until", "now"])
        .expect(7)
        .says(&["default partition", "tidemark reset public.month_rest --yes"]);
    job.run(&["reset", "public.month_rest", "--yes"]).expect(0);
    job.run(&["sync", "--until", "now"]).expect(0);
    pair.assert_equal();
}

/// Sessions of ours on the target that wait for a lock.
const WAITS: &str = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'tidemark%' \
    AND datname = current_database() AND wait_event_type = 'Lock'";

#[test]
fn a_join_waits_for_chunks_in_flight_of_whoever_had_the_job() {
    // A cluster of its own: what is published waits for all transactions of the source's.
    let (source, target) = (Cluster::start_default().unwrap(), shared().unwrap());
    source.create_database("shop").unwrap();
    source.psql("shop", "CREATE TABLE early (id integer PRIMARY KEY)").unwrap();
    let job = Job::new("inflight", &source.url("shop"), &target.url());
    job.run(&["sync", "--until", "now"]).expect(0);
    source.psql("shop", LATE).unwrap();
    // A chunk of another process, between its marker and its commit.
    let marker = "SELECT FROM tidemark.progress WHERE job = 'inflight' AND wave = '' FOR KEY SHARE";
    let mut chunk = Blocker::start(&target, marker);
    let mut running = job.start(&["sync", "--until", "now"]);
    let is_noted = || {
        let noted = "SELECT count(*) FROM tidemark.relation WHERE relation_name = 'late'";
        target.psql(noted).unwrap() != "0"
    };
    let came = reached(&mut running, || is_noted() || target.psql(WAITS).unwrap() != "0");
    assert!(
        came && !is_noted(),
        "the table was taken before the chunk had ended: {}",
        running.stderr()
    );
    chunk.end();
    running.end().expect(0);
    oracle::assert_same((&source, "shop"), side(&target));
    target.psql(&drop_origin("inflight")).ok();
}

/// Begins a new timeline on a server, as a promoted standby or one that was restored has it.
#[track_caller]
fn begin_timeline(cluster: &Cluster) {
    cluster.stop_fast().unwrap();
    std::fs::write(cluster.data_dir().join("standby.signal"), "").unwrap();
    cluster.start().unwrap();
    cluster.promote().unwrap();
}

/// What a crash between a join and the position behind it leaves is written by hand: the table has joined under `snapshot`.
#[track_caller]
fn joined_at(target: &Database, table: &str, (lsn, snapshot): (&str, &str)) {
    let sql = format!(
        "UPDATE tidemark.relation SET joined_lsn = '{lsn}', read_snapshot = '{snapshot}', joined_timeline = 1 \
         WHERE relation_name = '{table}' RETURNING 1"
    );
    assert_eq!(target.psql(&sql).unwrap(), "1");
}

#[test]
fn a_table_whose_read_snapshot_is_of_a_timeline_that_was_left_before_joins_anew() {
    let (source, target) = (Cluster::start_default().unwrap(), shared().unwrap());
    source.create_database("shop").unwrap();
    let ask = |sql: &str| source.psql("shop", sql).unwrap();
    ask(
        "CREATE TABLE calm (id integer PRIMARY KEY, n integer); CREATE TABLE lost (LIKE calm INCLUDING ALL); \
         INSERT INTO calm SELECT i, i FROM generate_series(1, 100) i; INSERT INTO lost SELECT * FROM calm",
    );
    let job = Job::new("promoted", &source.url("shop"), &target.url());
    job.run(&["sync", "--until", "now"]).expect(0);
    // Before the timeline ends: what this one shows is the history of both.
    ask("CREATE TABLE other (i integer PRIMARY KEY)");
    let point = ask("SELECT pg_current_wal_insert_lsn() || ' ' || pg_current_snapshot()");
    joined_at(&target, "calm", point.split_once(' ').unwrap());
    begin_timeline(&source);
    // After it: transactions of the old timeline with these ids are gone, and the new one gives the ids to others.
    let point = ask(
        "SELECT pg_current_wal_insert_lsn() || ' ' || x || ':' || x::text::int8 + 1000 || ':' \
         FROM pg_snapshot_xmin(pg_current_snapshot()) x",
    );
    joined_at(&target, "lost", point.split_once(' ').unwrap());
    target.psql("DELETE FROM lost WHERE id > 90; INSERT INTO lost VALUES (1000, 1)").unwrap();
    for table in ["calm", "lost"] {
        ask(&format!(
            "UPDATE {table} SET n = -n WHERE id % 3 = 0; DELETE FROM {table} WHERE id = 50"
        ));
    }
    let ran = job.run(&["sync", "--until", "now", "--json"]).expect(0).says(&["join anew"]);
    let report: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
    let joined: Vec<_> = report["joined"]["tables"].as_array().unwrap().iter().collect();
    assert_eq!(joined.len(), 2, "{report}");
    assert!(!report["joined"].to_string().contains("calm"), "{report}");
    oracle::assert_same((&source, "shop"), side(&target));
    target.psql(&drop_origin("promoted")).ok();
}
