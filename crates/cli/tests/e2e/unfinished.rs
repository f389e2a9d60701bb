//! A first snapshot that died while the source was to be followed: what was whole stays, the rest joins, and the end is that
//! of an undisturbed run.
//!
//! **Invariant:** equality is the oracle's; that the snapshot went on, and did not begin anew, is read from the run that the
//! target's record names, which only a new snapshot changes.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rustix::process::Signal;
use tidemark_testkit::workload::check_ledger;

use crate::crash::Blocker;
use crate::follow::{Pair, follows, passes};
use crate::support::{
    Job, Running, assert_same, assert_source_clean, move_slot, phase, reached, run_of, say, side,
};

/// What hangs on the tables, and is made when they are in.
const AROUND: &str = "
ALTER TABLE pet ADD COLUMN kind integer;
CREATE TABLE owner (id integer PRIMARY KEY, pet integer REFERENCES pet, born date) ;
INSERT INTO owner SELECT i, 1 + i % 100, '2024-01-01' FROM generate_series(1, 2000) i;
CREATE TABLE visit (id integer, day date, pet integer REFERENCES pet, PRIMARY KEY (id, day)) PARTITION BY RANGE (day);
CREATE TABLE visit_1 PARTITION OF visit FOR VALUES FROM ('2024-01-01') TO ('2024-07-01');
CREATE TABLE visit_2 PARTITION OF visit FOR VALUES FROM ('2024-07-01') TO ('2025-01-01');
CREATE INDEX visit_pet ON visit (pet);
INSERT INTO visit SELECT i, date '2024-01-01' + i % 300, 1 + i % 100 FROM generate_series(1, 3000) i;
CREATE TABLE bill (id integer PRIMARY KEY, visit integer, day date, FOREIGN KEY (visit, day) REFERENCES visit);
INSERT INTO bill SELECT i, i, date '2024-01-01' + i % 300 FROM generate_series(1, 500) i WHERE i % 5 = 1;
CREATE TABLE paper (id integer PRIMARY KEY, n integer, body text);
ALTER TABLE paper ALTER body SET STORAGE EXTERNAL;
INSERT INTO paper SELECT i, i, repeat(md5(i::text), 100) FROM generate_series(1, 400) i;
CREATE FUNCTION nothing() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
CREATE TRIGGER nothing BEFORE UPDATE ON owner FOR EACH ROW EXECUTE FUNCTION nothing();
CREATE RULE quiet AS ON DELETE TO glad DO INSTEAD NOTHING;
ALTER TABLE owner ENABLE ROW LEVEL SECURITY;
CREATE POLICY mine ON owner USING (id > 0);
CREATE STATISTICS both_of ON id, pet FROM owner;
COMMENT ON CONSTRAINT owner_pet_fkey ON owner IS 'whose';
CREATE MATERIALIZED VIEW busy AS SELECT pet, count(*) AS n FROM visit GROUP BY pet;
CREATE UNIQUE INDEX busy_pet ON busy (pet);
CREATE UNLOGGED TABLE scratch (id integer PRIMARY KEY);
INSERT INTO scratch SELECT generate_series(1, 500);
";

/// `lineitem` has several chunks.
const READERS: &str = "[snapshot]\nreaders = 4\nchunk_bytes = \"1600KiB\"\n";

pub(crate) fn count(pair: &Pair, sql: &str) -> u64 {
    pair.target.psql(sql).ok().and_then(|text| text.parse().ok()).unwrap_or(0)
}

fn whole(pair: &Pair) -> u64 {
    count(pair, "SELECT count(*) FROM tidemark.relation WHERE state = 'whole'")
}

fn chunks_of(pair: &Pair, job: &str, table: &str) -> u64 {
    let oid = pair.source.psql(&format!("SELECT '{table}'::regclass::oid")).unwrap();
    count(
        pair,
        &format!(
            "SELECT count(*) FROM tidemark.chunk WHERE job = '{job}' AND relation_oid = {oid}"
        ),
    )
}

fn tables(pair: &Pair) -> u64 {
    let sql = "SELECT count(*) FROM pg_class WHERE relkind = 'r' AND relnamespace::regnamespace::text IN ('public', 'load')";
    pair.source.psql(sql).unwrap().parse().unwrap()
}

/// Holds one chunk of `lineitem` up before its marker, however the two sides are timed: a lock could come too late.
const GATE: &str = "
CREATE SCHEMA gate;
CREATE FUNCTION gate.waits() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF NEW.chunk = 1 AND NEW.relation_oid = GATED THEN PERFORM pg_advisory_xact_lock_shared(77); END IF;
  RETURN NEW;
END $$;
CREATE FUNCTION gate.closes() RETURNS event_trigger LANGUAGE plpgsql AS $$
BEGIN
  IF to_regclass('tidemark.chunk') IS NULL THEN RETURN; END IF;
  IF EXISTS (SELECT FROM pg_trigger WHERE tgrelid = 'tidemark.chunk'::regclass) THEN RETURN; END IF;
  CREATE TRIGGER waits BEFORE INSERT ON tidemark.chunk FOR EACH ROW EXECUTE FUNCTION gate.waits();
  ALTER TABLE tidemark.chunk ENABLE ALWAYS TRIGGER waits;
END $$;
CREATE EVENT TRIGGER closes ON ddl_command_end WHEN TAG IN ('CREATE TABLE') EXECUTE FUNCTION gate.closes();
ALTER EVENT TRIGGER closes ENABLE ALWAYS;
";

/// How many tables are whole when all but `lineitem` are.
fn others(pair: &Pair) -> u64 {
    let unlogged = "SELECT count(*) FROM pg_class WHERE relkind = 'r' AND relpersistence = 'u'";
    tables(pair) - 1 - pair.source.psql(unlogged).unwrap().parse::<u64>().unwrap()
}

/// A job that waits in its first snapshot: `lineitem` is half there, so many others are whole.
#[track_caller]
pub(crate) fn waits_in_lineitem<'a>(
    pair: &'a Pair,
    job: &Job,
    name: &str,
    others: u64,
) -> (Running, Blocker<'a>) {
    let oid = pair.source.psql("SELECT 'lineitem'::regclass::oid").unwrap();
    pair.target.psql(&GATE.replace("GATED", &oid)).unwrap();
    // Records of an earlier job are there already, and so is their table.
    pair.target.psql("CREATE TABLE gate.now (); DROP TABLE gate.now").unwrap();
    let blocker = Blocker::start(&pair.target, "SELECT pg_advisory_lock(77)");
    let mut running = job.start(&["sync"]);
    let came =
        reached(&mut running, || chunks_of(pair, name, "lineitem") >= 1 && whole(pair) == others);
    assert!(came, "{}", running.stderr());
    (running, blocker)
}

/// The job has ended, and nothing holds the next one up.
#[track_caller]
pub(crate) fn opens(pair: &Pair, mut blocker: Blocker<'_>) {
    // A session that waits would go on with what it was told.
    let ends = "SELECT count(pg_terminate_backend(pid, 10000)) FROM pg_stat_activity \
        WHERE application_name LIKE 'tidemark%' AND datname = current_database()";
    pair.target.psql(ends).unwrap();
    blocker.end();
    pair.target.psql("DROP SCHEMA gate CASCADE").unwrap();
}

/// A job that was killed in its first snapshot: `lineitem` was half there, all others were whole.
#[track_caller]
fn dies_in_lineitem(pair: &Pair, job: &Job, name: &str) {
    let (running, blocker) = waits_in_lineitem(pair, job, name, others(pair));
    kill(running);
    opens(pair, blocker);
}

#[track_caller]
pub(crate) fn kill(running: Running) {
    running.signal(Signal::KILL);
    running.end().expect(137);
}

/// A pair with everything that hangs on tables, whose job died in `lineitem`.
#[track_caller]
fn died(name: &'static str) -> (Pair, Job, String) {
    died_with(name, AROUND)
}

/// The same, with what `sql` makes.
#[track_caller]
pub(crate) fn died_with(name: &'static str, sql: &str) -> (Pair, Job, String) {
    let pair = Pair::new(name);
    pair.source.psql(sql).unwrap();
    let job = pair.job().configured(READERS);
    dies_in_lineitem(&pair, &job, name);
    let run = run_of(side(&pair.target), name);
    (pair, job, run)
}

/// The job goes on with what is there.
#[track_caller]
pub(crate) fn goes_on((pair, job, run): &(Pair, Job, String)) -> String {
    let ran = job.run(&["sync", "--until", "now"]).expect(0).says(&["are whole and stay"]);
    assert_eq!(run_of(side(&pair.target), pair.name()), *run, "it began anew: {}", ran.stderr);
    ran.stderr
}

/// The same rows; what a materialized view holds is each side's own.
#[track_caller]
pub(crate) fn same_rows(pair: &Pair) {
    for side in [&pair.source, &pair.target] {
        let views = "SELECT format('REFRESH MATERIALIZED VIEW %s', oid::regclass) FROM pg_class WHERE relkind = 'm'";
        side.psql(&side.psql(views).unwrap().replace('\n', ";\n")).unwrap();
    }
    pair.assert_equal();
}

/// The job begins anew and says why.
#[track_caller]
pub(crate) fn begins_anew((pair, job, run): &(Pair, Job, String), because: &str) {
    let ran = job.run(&["sync", "--until", "now"]).expect(0).says(&["begins anew", because]);
    assert_ne!(run_of(side(&pair.target), pair.name()), *run, "{}", ran.stderr);
    same_rows(pair);
}

/// The session that holds a snapshot is the first of those that lock the tables.
pub(crate) const END_HOLDER: &str = "SELECT pg_terminate_backend(pid, 10000) FROM ( \
    SELECT pid FROM pg_stat_activity WHERE application_name LIKE 'tidemark%' AND backend_type = 'client backend' \
      AND pid IN (SELECT pid FROM pg_locks WHERE relation = 'region'::regclass AND granted) \
    ORDER BY backend_start LIMIT 1) AS holder";

/// Every kind of change to tables that are whole and to the one that is not.
const CHANGES: &str = "
UPDATE orders SET o_comment = 'changed' WHERE o_orderkey % 7 = 0;
UPDATE pet SET id = id + 100000 WHERE id % 11 = 0 AND id > 200;
DELETE FROM keyless WHERE ctid IN (SELECT ctid FROM keyless WHERE note = 'n3' LIMIT 100);
INSERT INTO keyless VALUES ('2025-01-01', 'twice'), ('2025-01-01', 'twice');
UPDATE lineitem SET l_comment = left(md5(l_orderkey::text), 40) WHERE l_orderkey % 13 = 0;
DELETE FROM lineitem WHERE l_orderkey % 17 = 0;
UPDATE lineitem SET l_linenumber = l_linenumber + 100 WHERE l_orderkey % 19 = 0;
INSERT INTO region VALUES (50, 'new', '');
UPDATE paper SET n = n + 1 WHERE id % 4 = 0;
UPDATE paper SET body = repeat('changed', 900) WHERE id % 4 = 1;
DELETE FROM owner WHERE id % 3 = 0;
UPDATE visit SET day = day + 100 WHERE id % 5 = 0 AND day < '2024-06-01';
";

#[test]
fn what_was_whole_stays_and_the_rest_joins() {
    let died = died("stays");
    let (pair, job, _) = &died;
    let status = job.status().unwrap();
    let said = status["activity"].as_str().unwrap();
    assert!(said.contains("keeps the tables that are done"), "{status}");
    let all = tables(pair);
    // The unlogged one is copied again.
    let said = goes_on(&died);
    let wanted = format!("{} of {all} tables are whole and stay, 2 join", all - 2);
    assert!(said.contains(&wanted), "no {wanted:?} in {said}");
    assert_same(side(&pair.source), side(&pair.target));
    let open = "SELECT (SELECT count(*) FROM pg_constraint WHERE NOT convalidated) + \
        (SELECT cardinality(owed) FROM tidemark.progress) + (SELECT count(*) FROM pg_class WHERE relkind = 'm' AND NOT relispopulated)";
    assert_eq!(pair.target.psql(open).unwrap(), "0", "something is left open");
    pair.source.psql(CHANGES).unwrap();
    goes_on_following(pair, job);
}

#[track_caller]
fn goes_on_following(pair: &Pair, job: &Job) {
    let ran = job.run(&["sync", "--until", "now"]).expect(0);
    assert!(!ran.stderr.contains("whole and stay"), "{}", ran.stderr);
    same_rows(pair);
}

#[test]
fn changes_between_the_crash_and_the_next_start_are_there_once() {
    let died = died("changed");
    let (pair, job, _) = &died;
    pair.source.psql(CHANGES).unwrap();
    pair.source.psql("VACUUM FULL lineitem; VACUUM FULL orders").unwrap();
    pair.source.psql(&CHANGES.replace("% 1", "% 2").replace("(50,", "(51,")).unwrap();
    goes_on(&died);
    same_rows(pair);
    goes_on_following(pair, job);
}

#[test]
fn tables_that_were_truncated_meanwhile_are_as_on_the_source() {
    let died = died("emptied");
    let (pair, ..) = &died;
    pair.source
        .psql("TRUNCATE keyless, owner; INSERT INTO keyless VALUES ('2025-05-05', 'after'); TRUNCATE lineitem")
        .unwrap();
    goes_on(&died);
    same_rows(pair);
}

#[test]
fn the_next_start_may_die_at_any_step_and_keeps_what_it_has_joined() {
    let (pair, job, run) = died("dying");
    let name = pair.name();
    let is_joining = "SELECT count(*) FROM tidemark.relation WHERE relation_name = 'lineitem' AND state = 'joining'";
    let loading = "SELECT count(*) FROM tidemark.chunk c, tidemark.progress p WHERE c.run <> p.run";
    let joined = "SELECT count(*) FROM tidemark.relation WHERE state = 'whole' AND read_snapshot IS NOT NULL";
    let triggers = "SELECT count(*) FROM pg_trigger WHERE tgname = 'nothing'";
    let keys = "SELECT count(*) FROM pg_constraint WHERE contype = 'f' AND NOT convalidated";
    let moments: [(&str, &dyn Fn() -> bool); 7] = [
        ("joining", &|| count(&pair, is_joining) == 1),
        ("loading", &|| count(&pair, loading) >= 2),
        ("joined", &|| count(&pair, joined) >= 1),
        ("finish", &|| phase(side(&pair.target), name) == "finish"),
        ("triggers", &|| count(&pair, triggers) == 1),
        ("keys", &|| count(&pair, keys) >= 1),
        ("follow", &|| phase(side(&pair.target), name) == "follow"),
    ];
    for (number, (moment, is_there)) in moments.into_iter().enumerate() {
        let mut running = job.start(&["sync"]);
        let came = reached(&mut running, is_there);
        assert!(came, "{moment}: {}", running.stderr());
        kill(running);
        let changes = CHANGES.replace("(50,", &format!("({},", 60 + number));
        pair.source.psql(&changes).unwrap();
    }
    job.run(&["sync", "--until", "now"]).expect(0);
    assert_eq!(run_of(side(&pair.target), name), run);
    same_rows(&pair);
    let open = "SELECT (SELECT count(*) FROM pg_constraint WHERE NOT convalidated) + (SELECT cardinality(owed) FROM tidemark.progress)";
    assert_eq!(pair.target.psql(open).unwrap(), "0", "something is left open");
}

#[test]
fn a_snapshot_that_died_in_its_last_part_copies_nothing_again() {
    let pair = Pair::new("lastly");
    pair.source.psql(AROUND).unwrap();
    pair.source.psql("DROP TABLE scratch").unwrap();
    let job = pair.job();
    let mut running = job.start(&["sync"]);
    assert!(reached(&mut running, || phase(side(&pair.target), "lastly") == "finish"));
    kill(running);
    let run = run_of(side(&pair.target), "lastly");
    let died = (pair, job, run);
    let said = goes_on(&died);
    assert!(said.contains("0 join"), "{said}");
    assert_same(side(&died.0.source), side(&died.0.target));
}

#[test]
fn a_stop_keeps_what_is_whole_and_says_how_to_go_on_and_how_to_give_up() {
    let name = "stopped";
    let pair = Pair::new(name);
    pair.source.psql(AROUND).unwrap();
    let job = pair.job().configured(READERS);
    let (running, blocker) = waits_in_lineitem(&pair, &job, name, others(&pair));
    running.signal(Signal::INT);
    let stopped = running.end().expect(130);
    opens(&pair, blocker);
    let slot = "SELECT restart_lsn FROM pg_replication_slots WHERE slot_name = 'tidemark_stopped'";
    let from = pair.source.psql(slot).unwrap();
    stopped.says(&[
        &format!(
            "{} tables are whole and 1 half copied, and stay: the same tidemark sync",
            whole(&pair)
        ),
        &format!("slot tidemark_stopped stays on the source, which keeps its WAL from {from} on"),
        "tidemark cleanup --yes gives the job up and drops the slot",
    ]);
    let status = job.status().unwrap();
    let said = status["activity"].as_str().unwrap();
    assert!(said.contains("the slot stays") && said.contains("tidemark cleanup"), "{said}");
    let run = run_of(side(&pair.target), name);
    pair.source.psql(CHANGES).unwrap();
    let stopped = (pair, job, run);
    goes_on(&stopped);
    same_rows(&stopped.0);
}

#[test]
fn a_stop_before_a_table_is_whole_leaves_nothing_on_the_source() {
    let pair = Pair::new("tooearly");
    let mut blocker = Blocker::start(&pair.source, "LOCK TABLE region");
    let job = pair.job().configured(READERS);
    let mut running = job.start(&["sync"]);
    let waits = "SELECT count(*) FROM pg_locks WHERE relation = 'region'::regclass AND NOT granted";
    assert!(
        reached(&mut running, || pair.source.psql(waits).unwrap() != "0"),
        "{}",
        running.stderr()
    );
    running.signal(Signal::INT);
    let ran = running.end().expect(130).says(&["it starts the snapshot over"]);
    assert!(!ran.stderr.contains("stays on the source"), "{}", ran.stderr);
    blocker.end();
    assert_source_clean(side(&pair.source));
}

#[test]
fn a_snapshot_whose_holder_is_lost_goes_on_with_what_is_whole() {
    let name = "holder";
    let pair = Pair::new(name);
    pair.source.psql(AROUND).unwrap();
    let job = pair.job().configured(READERS);
    let (mut running, mut blocker) = waits_in_lineitem(&pair, &job, name, others(&pair));
    let run = run_of(side(&pair.target), name);
    assert_eq!(pair.source.psql(END_HOLDER).unwrap(), "t");
    let joins = "SELECT count(*) FROM tidemark.relation WHERE relation_name = 'lineitem' AND state = 'joining'";
    assert!(reached(&mut running, || count(&pair, joins) == 1), "{}", running.stderr());
    blocker.end();
    pair.source.psql(CHANGES).unwrap();
    follows(&mut running, &pair.target, name);
    passes(&mut running, &pair.source, &pair.target);
    running.signal(Signal::TERM);
    let said = ["the holder's session ended", "tables are whole and stay, 2 join"];
    running.end().expect(0).says(&said);
    pair.target.psql("DROP SCHEMA gate CASCADE").unwrap();
    assert_eq!(run_of(side(&pair.target), name), run, "it began anew");
    same_rows(&pair);
}

#[test]
fn a_slot_that_is_gone_lets_the_snapshot_begin_anew() {
    let died = died("slotless");
    died.0.source.psql("SELECT pg_drop_replication_slot('tidemark_slotless')").unwrap();
    died.0.source.psql(CHANGES).unwrap();
    begins_anew(&died, "tidemark_slotless");
}

#[test]
fn a_slot_that_was_made_again_or_moved_lets_the_snapshot_begin_anew() {
    let died = died("moved");
    died.0.source.psql(CHANGES).unwrap();
    move_slot(&died.0.source, "tidemark_moved");
    begins_anew(&died, "tidemark_moved");
}

#[test]
fn a_whole_table_that_was_taken_out_of_the_publication_lets_the_snapshot_begin_anew() {
    let died = died("narrower");
    let publication = |what: &str| {
        let sql = format!("ALTER PUBLICATION tidemark_narrower {what} TABLE owner");
        died.0.source.psql(&sql).unwrap();
    };
    publication("DROP");
    died.0.source.psql(CHANGES).unwrap();
    publication("ADD");
    begins_anew(&died, "publication");
}

#[test]
fn a_half_copied_table_that_was_taken_out_of_the_publication_joins_all_the_same() {
    let died = died("halfout");
    let publication = |what: &str| {
        let sql = format!("ALTER PUBLICATION tidemark_halfout {what} TABLE lineitem");
        died.0.source.psql(&sql).unwrap();
    };
    publication("DROP");
    died.0.source.psql(CHANGES).unwrap();
    goes_on(&died);
    same_rows(&died.0);
}

#[test]
fn definitions_that_have_changed_let_the_snapshot_begin_anew() {
    let changed = "definitions on the source have changed";
    for (name, sql, because) in [
        ("altered", "ALTER TABLE lineitem ADD COLUMN more integer DEFAULT 7", changed),
        ("added", "ALTER TABLE region ADD COLUMN more integer", changed),
        ("dropped", "DROP TABLE owner", "owner"),
        ("remade", "DROP TABLE lineitem; CREATE TABLE lineitem (id integer PRIMARY KEY)", changed),
    ] {
        let died = died(name);
        died.0.source.psql(sql).unwrap();
        begins_anew(&died, because);
    }
}

#[test]
fn tables_that_were_there_keep_their_rows_and_lose_ours() {
    let pair = Pair::new("kept");
    let job = pair.job();
    // An undisturbed snapshot makes the tables; a second job then finds them.
    job.run(&["sync", "--snapshot-only"]).expect(0);
    pair.target.psql("TRUNCATE region, nation, supplier, customer, part, partsupp, orders, lineitem, keyless, pet").unwrap();
    let exists = "schema = \"exists\"\n[snapshot]\nreaders = 4\nchunk_bytes = \"1600KiB\"\n[select]\ninclude = [\"public.*\"]\n";
    let job = Job::new("keeper", &pair.source.url(), &pair.target.url()).configured(exists);
    dies_in_lineitem(&pair, &job, "keeper");
    pair.source.psql("UPDATE orders SET o_comment = 'x' WHERE o_orderkey % 7 = 0; DELETE FROM lineitem WHERE l_orderkey % 17 = 0").unwrap();
    let ran = job.run(&["sync", "--until", "now"]).expect(0).says(&["are whole and stay, 1 join"]);
    say(&ran.stderr);
    pair.assert_equal();
    pair.target
        .psql("SELECT pg_replication_origin_drop(roname) FROM pg_replication_origin WHERE roname LIKE 'tidemark_keeper@%'")
        .unwrap();
}

#[test]
fn keys_of_tables_that_were_there_do_not_stop_a_job_whose_tables_are_of_two_moments() {
    let pair = Pair::new("parents");
    pair.source
        .psql("CREATE TABLE keeper (id integer PRIMARY KEY); INSERT INTO keeper SELECT generate_series(1, 20); ALTER TABLE pet ADD kept integer REFERENCES keeper")
        .unwrap();
    pair.job().run(&["sync", "--snapshot-only"]).expect(0);
    pair.target.psql("TRUNCATE region, nation, supplier, customer, part, partsupp, orders, lineitem, keyless, pet, keeper").unwrap();
    let exists = |columns: &str| {
        format!(
            "schema = \"exists\"\n[snapshot]\nreaders = 4\nchunk_bytes = \"1600KiB\"\n[select]\ninclude = [\"public.*\"]\n{columns}"
        )
    };
    let job = Job::new("keyed", &pair.source.url(), &pair.target.url()).configured(&exists(""));
    let mut blocker = Blocker::start(&pair.target, "LOCK TABLE pet IN SHARE MODE");
    let mut running = job.start(&["sync"]);
    let others = tables(&pair) - 1;
    assert!(reached(&mut running, || whole(&pair) == others), "{}", running.stderr());
    kill(running);
    blocker.end();
    // The parent is whole without it, and the child is copied with it.
    pair.source
        .psql("INSERT INTO keeper VALUES (21); UPDATE pet SET kept = 21 WHERE id % 5 = 0")
        .unwrap();
    let ran = job.run(&["sync", "--until", "now"]).expect(0).says(&["are whole and stay, 1 join"]);
    say(&ran.stderr);
    pair.assert_equal();
    pair.target
        .psql("SELECT pg_replication_origin_drop(roname) FROM pg_replication_origin WHERE roname LIKE 'tidemark_keyed@%'")
        .unwrap();
}

#[test]
fn a_table_of_which_other_columns_are_chosen_now_is_not_taken_for_whole() {
    let pair = Pair::new("columns");
    pair.source.psql("ALTER TABLE customer ALTER c_comment DROP NOT NULL").unwrap();
    let config = |columns: &str| {
        format!(
            "[snapshot]\nreaders = 4\nchunk_bytes = \"1600KiB\"\n[[table]]\nname = \"public.customer\"\ncolumns = [{columns}]\n"
        )
    };
    let few = "\"c_custkey\", \"c_name\", \"c_address\", \"c_nationkey\", \"c_phone\", \"c_acctbal\", \"c_mktsegment\"";
    let job = pair.job().configured(&config(few));
    dies_in_lineitem(&pair, &job, "columns");
    // A mistake in the file is said, and costs nothing of what is there.
    let job = job.configured(&config(few).replace("public.customer", "public.costumer"));
    job.run(&["sync", "--until", "now"]).expect(2).says(&["costumer"]);
    let job = job.configured(&config(&format!("{few}, \"c_comment\"")));
    let ran = job.run(&["sync", "--until", "now"]).expect(0).says(&["begins anew"]);
    say(&ran.stderr);
    pair.assert_equal();
}

#[test]
fn snapshots_that_die_again_and_again_under_load_lose_nothing_and_double_nothing() {
    let seed = 0x7265_7375;
    say(&format!("seed {seed}"));
    let mut random = StdRng::seed_from_u64(seed);
    let pair = Pair::new("loaded");
    pair.source.psql(AROUND).unwrap();
    let writer = pair.writer();
    let job = pair.job().configured(READERS);
    dies_in_lineitem(&pair, &job, "loaded");
    let run = run_of(side(&pair.target), "loaded");
    let taken = "SELECT epoch FROM tidemark.progress";
    let mut kept = 0;
    for round in 0..5 {
        let before = count(&pair, taken);
        let mut running = job.start(&["sync"]);
        let mut looks = random.random_range(0..8);
        let came = reached(&mut running, || {
            looks -= i32::from(count(&pair, taken) > before);
            looks < 0
        });
        assert!(came, "{}", running.stderr());
        kept += u32::from(running.stderr().contains("are whole and stay"));
        kill(running);
        let stands = phase(side(&pair.target), "loaded");
        say(&format!("round {round}: killed in {stands}, {} whole", whole(&pair)));
    }
    assert!(kept > 0, "no snapshot has gone on");
    assert_eq!(run_of(side(&pair.target), "loaded"), run);
    let mut running = job.start(&["sync"]);
    follows(&mut running, &pair.target, "loaded");
    passes(&mut running, &pair.source, &pair.target);
    let written = writer.stop().unwrap();
    running.signal(Signal::TERM);
    running.end().expect(0);
    job.run(&["sync", "--until", "now"]).expect(0);
    same_rows(&pair);
    assert_eq!(check_ledger(pair.target.cluster(), pair.target.name()).unwrap(), written.committed);
}

#[test]
fn marks_that_the_target_has_lost_are_named_and_their_tables_are_copied_again() {
    let died = died("unmarked");
    let (pair, job, run) = &died;
    // Its last part makes a trigger on it.
    let mut blocker = Blocker::start(&pair.target, "LOCK TABLE owner IN SHARE MODE");
    let mut running = job.start(&["sync", "--until", "now"]);
    let is_last = reached(&mut running, || phase(side(&pair.target), "unmarked") == "finish");
    assert!(is_last, "{}", running.stderr());
    // What a crash of the target leaves that had not written its last commits to the disk.
    pair.target
        .psql("UPDATE tidemark.relation SET state = NULL WHERE relation_name IN ('pet', 'region')")
        .unwrap();
    blocker.end();
    running.end().expect(8).says(&[
        "lost the marks of 2 table(s)",
        "pet",
        "copies these tables anew",
    ]);
    assert_eq!(run_of(side(&pair.target), "unmarked"), *run);
    goes_on(&died);
    same_rows(pair);
}

#[test]
fn rows_of_others_are_refused_with_a_way_out_that_an_unfinished_snapshot_has() {
    let pair = Pair::new("guarded");
    pair.job().run(&["sync", "--snapshot-only"]).expect(0);
    pair.target.psql("TRUNCATE region, nation, supplier, customer, part, partsupp, orders, lineitem, keyless, pet").unwrap();
    let exists = "schema = \"exists\"\n[snapshot]\nreaders = 4\nchunk_bytes = \"1600KiB\"\n[select]\ninclude = [\"public.*\"]\n";
    let job = Job::new("guard", &pair.source.url(), &pair.target.url()).configured(exists);
    dies_in_lineitem(&pair, &job, "guard");
    // Not a row of ours any more.
    pair.target
        .psql("UPDATE lineitem SET l_linenumber = 900 WHERE ctid = (SELECT ctid FROM lineitem LIMIT 1)")
        .unwrap();
    let ran = job.run(&["sync", "--until", "now"]).expect(2).says(&["lineitem", "it has rows"]);
    assert!(!ran.error().contains("reset"), "{}", ran.stderr);
    assert!(ran.error().contains("empty the table on the target"), "{}", ran.stderr);
    pair.target.psql("TRUNCATE lineitem").unwrap();
    job.run(&["sync", "--until", "now"]).expect(0);
    pair.assert_equal();
    pair.target
        .psql("SELECT pg_replication_origin_drop(roname) FROM pg_replication_origin WHERE roname LIKE 'tidemark_guard@%'")
        .unwrap();
}
