//! Tables that join a job that follows into a lake: the same interleavings, kills and resets as into PostgreSQL.
//!
//! **Invariant:** equality is the oracle's (psql and SHA-256) over what a reader of its own makes of the lake; that an
//! interleaving came about is asked of the source.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;
use tidemark_testkit::{Database, lake, oracle, shared};

use crate::joining::{LATE, Open, changes, ends, waits_for_writers};
use crate::support::{Job, Running, files_below, reached, side};

/// What the lake has from the first snapshot on.
pub(crate) const FIRST: &str = "CREATE TABLE region (r_regionkey integer PRIMARY KEY, r_name text, r_comment text); \
    INSERT INTO region SELECT i, 'r' || i, NULL FROM generate_series(1, 50) i; \
    CREATE TABLE pet (id integer PRIMARY KEY, legs integer, note text); \
    INSERT INTO pet SELECT i, i % 5, repeat('p', i % 40) FROM generate_series(1, 2000) i";

/// Types that a source may have, for its tables in another database.
const TYPES: &str = "CREATE SCHEMA gate; CREATE TYPE gate.slow AS (at polygon)";

/// The statements that make the source's tables in a database that has none.
const TABLES: &str = "SELECT format('CREATE TABLE %s (%s%s);', c.oid::regclass, \
      string_agg(format('%I %s', attname, format_type(atttypid, atttypmod)), ', ' ORDER BY attnum), \
      (SELECT ', ' || pg_get_constraintdef(k.oid) FROM pg_constraint k WHERE k.conrelid = c.oid AND contype = 'p')) \
    FROM pg_class c JOIN pg_attribute a ON attrelid = c.oid AND attnum > 0 AND NOT attisdropped \
    WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace GROUP BY c.oid";

const DROP_SLOTS: &str = "SELECT pg_terminate_backend(active_pid, 5000) FROM pg_replication_slots \
    WHERE database = current_database() AND active_pid IS NOT NULL; \
    SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE database = current_database() AND NOT active";

/// A source and a lake.
pub(crate) struct Lake {
    pub(crate) source: Database,
    directory: TempDir,
    name: &'static str,
}

impl Lake {
    pub(crate) fn new(name: &'static str) -> Self {
        let source = shared().unwrap();
        source.psql(FIRST).unwrap();
        Self { source, directory: TempDir::new().unwrap(), name }
    }

    pub(crate) fn root(&self) -> PathBuf {
        self.directory.path().join("lake")
    }

    pub(crate) fn job(&self) -> Job {
        let url = format!("file://{}", self.root().display());
        Job::new(self.name, &self.source.url(), &url).configured(&settings(""))
    }

    pub(crate) fn commits(&self) -> Vec<Value> {
        let directory = self.root().join("_tidemark/commits");
        let mut names = files_below(&directory);
        names.retain(|name| !name.starts_with('.'));
        let read = |name: &String| fs::read_to_string(directory.join(name)).unwrap();
        names.iter().map(|name| serde_json::from_str(&read(name)).unwrap()).collect()
    }

    /// What a table is as of the last commit; empty if the lake has never had it.
    fn state(&self, table: &str) -> String {
        let commits = self.commits();
        let members = commits.iter().rev().find_map(|commit| commit["members"].as_array());
        let member = members.into_iter().flatten().find(|member| member["name"] == table);
        member.map_or(String::new(), |member| member["state"].as_str().unwrap().to_owned())
    }

    /// Whether a copy has begun that has not been forgotten.
    pub(crate) fn copies(&self) -> bool {
        let job = fs::read_to_string(self.root().join("_tidemark/job.json")).unwrap_or_default();
        job.contains("\"joining\"")
    }

    pub(crate) fn has_file(&self, below: &str, wanted: impl Fn(&str) -> bool) -> bool {
        files_below(&self.root().join(below)).iter().any(|name| wanted(name))
    }

    /// Waits until a commit has passed everything that was written so far.
    #[track_caller]
    pub(crate) fn passes(&self, running: &mut Running) {
        let here = self.source.psql("SELECT pg_current_wal_insert_lsn()").unwrap();
        let marker = "INSERT INTO region SELECT max(r_regionkey) + 1000, 'marker', '' FROM region";
        self.source.psql(marker).unwrap();
        let is_there = reached(running, || {
            let commits = self.commits();
            let end = commits.last().map(|commit| number(commit["end_lsn"].as_str().unwrap()));
            end > Some(number(&here))
        });
        assert!(is_there, "{}", running.stderr());
    }

    /// The rows of the lake are those of the source, and every file below it is one that a reader of the commits reads.
    #[track_caller]
    pub(crate) fn assert_equal(&self) {
        self.assert_equal_but(&[]);
    }

    /// The same, but for tables that the lake is without.
    #[track_caller]
    fn assert_equal_but(&self, without: &[&str]) {
        let target = shared().unwrap();
        target.psql(TYPES).unwrap();
        target.psql(&self.source.psql(TABLES).unwrap()).unwrap();
        lake::load(&self.root(), side(&target)).unwrap();
        let is_wanted = |name: &str| without.iter().all(|table| !name.ends_with(table));
        let found = oracle::data_diff_of(side(&self.source), side(&target), is_wanted).unwrap();
        let found: Vec<String> = found.iter().map(ToString::to_string).collect();
        assert!(found.is_empty(), "{} tables differ:\n{}", found.len(), found.join("\n"));
        assert_eq!(self.debris(), [""; 0]);
    }

    /// Data files that are not among the tables' present ones.
    fn debris(&self) -> Vec<String> {
        let mut present: Vec<(Value, Vec<String>)> = Vec::new();
        for commit in self.commits() {
            for table in commit["tables"].as_array().unwrap() {
                let files = table["files"].as_array().unwrap().iter();
                let files = files.map(|file| file["path"].as_str().unwrap().to_owned());
                let name = table["name"].clone();
                if commit["kind"] != "changes" {
                    present.retain(|(known, _)| *known != name);
                }
                present.push((name, files.collect()));
            }
        }
        let present: Vec<String> = present.into_iter().flat_map(|(_, files)| files).collect();
        let mut found = files_below(&self.root());
        found.retain(|path| !path.starts_with("_tidemark/") && !present.contains(path));
        found
    }
}

impl Drop for Lake {
    fn drop(&mut self) {
        // The shared cluster has room for few slots, and a database with one cannot be dropped.
        self.source.psql(DROP_SLOTS).ok();
    }
}

fn settings(more: &str) -> String {
    format!(
        "[snapshot]\nreaders = 2\nchunk_bytes = \"256KiB\"\n[parquet]\nfile_bytes = \"1MiB\"\ncommit_interval = \"200ms\"\n{more}"
    )
}

fn number(lsn: &str) -> u64 {
    let (high, low) = lsn.split_once('/').unwrap();
    (u64::from_str_radix(high, 16).unwrap() << 32) + u64::from_str_radix(low, 16).unwrap()
}

#[test]
fn a_table_that_joins_a_lake_has_every_change_once_whenever_its_transaction_began_and_ended() {
    let lake = Lake::new("lakejoin");
    let job = lake.job();
    job.run(&["sync", "--until", "now"]).expect(0);
    lake.source.psql(LATE).unwrap();
    // Committed before the table is published; begun before and committed after.
    lake.source.psql(&format!("BEGIN; {}; COMMIT", changes(0))).unwrap();
    let early = Open::begin(&lake.source, "early", &changes(1));
    let early_xid = early.xid();
    let mut running = job.start(&["sync"]);
    waits_for_writers(&mut running, &lake.source);
    // Between the publication and the snapshot, one of them in two phases.
    lake.source.psql(&format!("BEGIN; {}; COMMIT", changes(2))).unwrap();
    let two_phases = format!(
        "BEGIN; {}; PREPARE TRANSACTION 'lakejoin2'; COMMIT PREPARED 'lakejoin2'",
        changes(3)
    );
    lake.source.psql(&two_phases).unwrap();
    // In progress at the snapshot, committed after it.
    let late = Open::begin(&lake.source, "late", &changes(4));
    let late_xid = late.xid();
    lake.source.psql(&format!("BEGIN; {}; PREPARE TRANSACTION 'lakejoin1'", changes(5))).unwrap();
    let aborted = Open::begin(&lake.source, "aborted", &changes(6));
    early.commit();
    assert!(reached(&mut running, || lake.copies()), "{}", running.stderr());
    late.commit();
    lake.source.psql("COMMIT PREPARED 'lakejoin1'").unwrap();
    drop(aborted);
    lake.source.psql(&format!("BEGIN; {}; COMMIT", changes(7))).unwrap();
    lake.passes(&mut running);
    lake.source.psql("VACUUM FULL late").unwrap();
    lake.source.psql(&format!("BEGIN; {}; COMMIT", changes(8))).unwrap();
    lake.source.psql("BEGIN; DELETE FROM later; DELETE FROM region WHERE r_regionkey = 9; COMMIT; INSERT INTO later VALUES (1, 'last')").unwrap();
    lake.passes(&mut running);
    ends(running);
    lake.assert_equal();
    let joins: Vec<Value> =
        lake.commits().into_iter().filter(|commit| commit["kind"] == "join").collect();
    let [join] = &joins[..] else { panic!("{} commits let tables join", joins.len()) };
    assert_eq!(join["tables"].as_array().unwrap().len(), 2, "in one commit");
    let snapshot = join["tables"][0]["join"]["snapshot"].as_str().unwrap();
    let shown = |xid: &str| {
        let sql =
            format!("SELECT pg_visible_in_snapshot('{xid}'::xid8, '{snapshot}'::pg_snapshot)");
        lake.source.psql(&sql).unwrap() == "t"
    };
    assert!(shown(&early_xid) && !shown(&late_xid), "{early_xid} {late_xid} {snapshot}");
    // Where it joined is behind the stream now, and goes on as any other.
    lake.source.psql(&format!("BEGIN; {}; COMMIT", changes(9))).unwrap();
    job.run(&["sync", "--until", "now"]).expect(0);
    lake.assert_equal();
}

#[test]
fn a_truncate_of_several_tables_of_a_lake_counts_for_each_as_its_snapshot_says() {
    let lake = Lake::new("lakeempty");
    lake.source
        .psql("CREATE TABLE old (id integer PRIMARY KEY); INSERT INTO old VALUES (1), (2)")
        .unwrap();
    let job = lake.job();
    job.run(&["sync", "--until", "now"]).expect(0);
    lake.source
        .psql("CREATE TABLE young (id integer PRIMARY KEY); INSERT INTO young VALUES (1)")
        .unwrap();
    let early = Open::begin(
        &lake.source,
        "early",
        "SELECT 1; UPDATE region SET r_comment = 'x' WHERE r_regionkey = 2",
    );
    let mut running = job.start(&["sync"]);
    waits_for_writers(&mut running, &lake.source);
    for sql in [
        "TRUNCATE young, old; INSERT INTO young VALUES (5); INSERT INTO old VALUES (6)",
        "TRUNCATE old, young; INSERT INTO young VALUES (7); INSERT INTO old VALUES (8)",
    ] {
        lake.source.psql(sql).unwrap();
    }
    early.commit();
    lake.passes(&mut running);
    lake.source
        .psql("INSERT INTO young VALUES (9); TRUNCATE young, old; INSERT INTO old VALUES (10)")
        .unwrap();
    lake.passes(&mut running);
    ends(running);
    lake.assert_equal();
}

#[test]
fn a_run_killed_at_any_step_of_a_join_into_a_lake_begins_it_again_and_ends_equal() {
    let lake = Lake::new("lakekill");
    let job = lake.job();
    job.run(&["sync", "--until", "now"]).expect(0);
    lake.source.psql(LATE).unwrap();
    let published = "SELECT count(*) FROM pg_publication_tables WHERE tablename = 'late'";
    let commits = || lake.commits().len();
    let is_whole = |name: &str| !name.starts_with('.');
    let before = commits();
    let moments: [(&str, &dyn Fn() -> bool); 7] = [
        ("published", &|| lake.source.psql(published).unwrap() != "0"),
        ("taken", &|| commits() > before),
        ("copying", &|| lake.has_file("public/late/snapshot", |_| true)),
        ("a whole file", &|| lake.has_file("public/late/snapshot", is_whole)),
        ("all files of one", &|| lake.has_file("public/later/snapshot", is_whole)),
        ("joined", &|| lake.state("late") == "joined"),
        ("followed", &|| lake.has_file("public/late/changes", |_| true)),
    ];
    for (part, (moment, is_there)) in (0_u32..).zip(moments) {
        let mut running = job.start(&["sync"]);
        assert!(reached(&mut running, is_there), "{moment}: {}", running.stderr());
        running.signal(Signal::KILL);
        running.end().expect(137);
        lake.source.psql(&format!("BEGIN; {}; COMMIT", changes(part))).unwrap();
    }
    job.run(&["sync", "--until", "now"]).expect(0);
    lake.assert_equal();
    assert_eq!(lake.state("late"), "joined");
}

#[test]
fn tables_of_a_lake_that_were_given_up_are_copied_again_while_the_others_go_on() {
    let lake = Lake::new("lakereset");
    lake.source.psql(LATE).unwrap();
    let job = lake.job();
    job.run(&["sync", "--until", "now"]).expect(0);
    job.run(&["reset", "public.late"]).expect(2).says(&["--yes"]);
    job.run(&["reset", "public.nothing", "--yes"]).expect(2).says(&["nothing"]);
    lake.source.psql(&format!("BEGIN; {}; COMMIT", changes(0))).unwrap();
    let mut running = job.start(&["sync"]);
    lake.passes(&mut running);
    job.run(&["reset", "public.late", "--yes"]).expect(9);
    ends(running);
    lake.assert_equal();
    let others = || files_below(&lake.root().join("public/pet"));
    let pets = others();
    lake.source.psql(&format!("BEGIN; {}; COMMIT", changes(1))).unwrap();
    job.run(&["reset", "public.late", "public.later", "--yes"]).expect(0);
    assert_eq!(lake.commits().last().unwrap()["kind"], "reset");
    assert_eq!(files_below(&lake.root().join("public/late")), [""; 0]);
    assert_eq!(others(), pets);
    job.run(&["reset", "public.late", "--yes"]).expect(0);
    lake.source.psql(&format!("BEGIN; {}; COMMIT", changes(2))).unwrap();
    let ran = job.run(&["sync", "--until", "now", "--json"]).expect(0);
    let report: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(report["joined"]["tables"].as_array().map(Vec::len), Some(2), "{report}");
    assert!(report["snapshot"].is_null(), "{report}");
    assert!(!ran.stderr.contains("does not follow"), "they are about to join: {}", ran.stderr);
    lake.assert_equal();
    lake.source.psql(&format!("BEGIN; {}; COMMIT", changes(3))).unwrap();
    let ran = job.run(&["sync", "--until", "now", "--json"]).expect(0);
    assert!(!ran.stdout.contains("\"joined\""), "nothing joins twice: {}", ran.stdout);
    lake.assert_equal();
}

#[test]
fn a_run_killed_while_tables_of_a_lake_are_given_up_and_join_again_ends_equal() {
    let lake = Lake::new("lakeagain");
    lake.source.psql(LATE).unwrap();
    let job = lake.job();
    job.run(&["sync", "--until", "now"]).expect(0);
    for round in 0..2 {
        lake.source.psql(&format!("BEGIN; {}; COMMIT", changes(round))).unwrap();
        job.run(&["sync", "--until", "now"]).expect(0);
        let before = lake.commits().len();
        let mut reset = job.start(&["reset", "public.late", "--yes"]);
        // With the commit, or in the middle of what it removes.
        let left = |count: usize| files_below(&lake.root().join("public/late")).len() < count;
        let count = files_below(&lake.root().join("public/late")).len();
        reached(&mut reset, || match round % 2 {
            0 => lake.commits().len() > before,
            _ => left(count),
        });
        reset.signal(Signal::KILL);
        reset.end();
        lake.source.psql(&format!("BEGIN; {}; COMMIT", changes(round + 5))).unwrap();
        let mut running = job.start(&["sync"]);
        let is_there = |name: &str| !name.starts_with('.');
        reached(&mut running, || lake.has_file("public/late/snapshot", is_there));
        running.signal(Signal::KILL);
        running.end();
        job.run(&["sync", "--until", "now"]).expect(0);
        lake.assert_equal();
    }
}

#[test]
fn a_new_table_joins_a_lake_whose_state_directory_was_lost() {
    let lake = Lake::new("lakelost");
    let job = lake.job();
    job.run(&["sync", "--until", "now"]).expect(0);
    fs::remove_dir_all(job.path().join("state")).unwrap();
    lake.source.psql(LATE).unwrap();
    lake.source.psql(&format!("BEGIN; {}; COMMIT", changes(1))).unwrap();
    job.run(&["sync", "--until", "now"]).expect(0);
    lake.assert_equal();
    fs::remove_dir_all(job.path().join("state")).unwrap();
    lake.source.psql(&format!("BEGIN; {}; COMMIT", changes(2))).unwrap();
    job.run(&["sync", "--until", "now"]).expect(0);
    lake.assert_equal();
}

#[test]
fn check_names_columns_that_a_followed_lake_cannot_have_and_a_snapshot_can() {
    let lake = Lake::new("lakenames");
    lake.source.psql("CREATE TABLE odd (id integer PRIMARY KEY, \"_OP\" text)").unwrap();
    let job = lake.job();
    let check = job.run(&["check"]).expect(5);
    assert!(check.stdout.contains("_OP"), "{}", check.stdout);
    job.run(&["sync", "--until", "now"]).expect(5);
    job.run(&["check", "--snapshot-only"]).expect(0);
}

/// Makes a lake one of format version 1, which did not say which tables it has.
#[track_caller]
fn forget_the_roster(lake: &Lake) {
    let below = lake.root().join("_tidemark");
    let documents = files_below(&below).into_iter().filter(|name| name.ends_with(".json"));
    for path in documents.map(|name| below.join(name)) {
        let mut document: Value =
            serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
        let fields = document.as_object_mut().unwrap();
        fields.retain(|name, _| name != "roster" && name != "members");
        fields.insert("format_version".to_owned(), 1.into());
        fs::write(&path, serde_json::to_vec(&document).unwrap()).unwrap();
    }
}

#[test]
fn a_new_table_joins_a_lake_of_version_1_whose_state_directory_was_lost() {
    let lake = Lake::new("lakeolder");
    let job = lake.job();
    job.run(&["sync", "--until", "now"]).expect(0);
    forget_the_roster(&lake);
    fs::remove_dir_all(job.path().join("state")).unwrap();
    lake.source.psql(LATE).unwrap();
    job.run(&["sync", "--until", "now"]).expect(0);
    assert_eq!(lake.state("late"), "joined");
    lake.assert_equal();
}

#[test]
fn a_lake_passes_a_join_although_the_source_is_quiet() {
    let lake = Lake::new("lakequiet");
    let job = lake.job();
    job.run(&["sync", "--until", "now"]).expect(0);
    lake.source
        .psql("CREATE TABLE late (id integer PRIMARY KEY); INSERT INTO late VALUES (1), (2)")
        .unwrap();
    let mut running = job.start(&["sync"]);
    assert!(reached(&mut running, || lake.state("late") == "joined"), "{}", running.stderr());
    let joined = || -> Option<u64> {
        let commits = lake.commits();
        let join = commits.iter().find(|commit| commit["kind"] == "join")?;
        Some(number(join["tables"][0]["join"]["lsn"].as_str()?))
    };
    let end = || lake.commits().last().map(|commit| number(commit["end_lsn"].as_str().unwrap()));
    // Nobody writes.
    let deadline = Instant::now() + Duration::from_secs(60);
    let is_there = reached(&mut running, || end() >= joined() || Instant::now() > deadline);
    assert!(is_there && end() >= joined(), "{:?} {:?} {}", end(), joined(), running.stderr());
    ends(running);
    lake.assert_equal();
}

#[test]
fn after_cleanup_the_message_names_what_a_lake_needs_for_a_new_snapshot() {
    let lake = Lake::new("lakeclean");
    let job = lake.job();
    job.run(&["sync", "--until", "now"]).expect(0);
    job.run(&["cleanup", "--yes"]).expect(0);
    lake.source.psql("UPDATE pet SET legs = legs + 1").unwrap();
    let refused = job.run(&["sync", "--until", "now"]).expect(6);
    assert!(refused.error().contains("--target-not-empty truncate --yes"), "{}", refused.stderr);
    job.run(&["sync", "--until", "now", "--target-not-empty", "truncate", "--yes"]).expect(0);
    lake.assert_equal();
}

#[test]
fn a_table_of_a_lake_that_was_left_out_for_a_while_is_not_taken_for_whole() {
    let lake = Lake::new("lakeleft");
    let job = lake.job();
    job.run(&["sync", "--until", "now"]).expect(0);
    let job = job.configured(&settings("[select]\nexclude = [\"public.pet\"]\n"));
    lake.source.psql("DELETE FROM pet WHERE id % 2 = 0").unwrap();
    job.run(&["sync", "--until", "now"]).expect(0);
    assert_eq!(lake.state("pet"), "left");
    lake.assert_equal_but(&["pet"]);
    let job = job.configured(&settings(""));
    let refused = job.run(&["sync", "--until", "now"]).expect(2);
    refused.says(&["pet", "tidemark reset public.pet --yes"]);
    job.run(&["reset", "public.pet", "--yes"]).expect(0);
    job.run(&["sync", "--until", "now"]).expect(0);
    lake.assert_equal();
}

#[test]
fn a_table_that_was_dropped_and_made_again_joins_a_lake_once_it_was_given_up() {
    let lake = Lake::new("lakeremade");
    let job = lake.job();
    lake.source
        .psql("CREATE TABLE thing (id integer PRIMARY KEY, n text); INSERT INTO thing VALUES (1, 'old'), (2, 'old')")
        .unwrap();
    job.run(&["sync", "--until", "now"]).expect(0);
    lake.source.psql("UPDATE thing SET n = 'older'").unwrap();
    job.run(&["sync", "--until", "now"]).expect(0);
    lake.source
        .psql("DROP TABLE thing; CREATE TABLE thing (id integer PRIMARY KEY, other date, n integer); INSERT INTO thing VALUES (2, '2024-01-01', 7)")
        .unwrap();
    job.run(&["sync", "--until", "now"]).expect(6).says(&["tidemark reset public.thing --yes"]);
    job.run(&["reset", "public.thing", "--yes"]).expect(0);
    lake.source.psql("INSERT INTO thing VALUES (3, NULL, 8)").unwrap();
    job.run(&["sync", "--until", "now"]).expect(0);
    lake.source
        .psql("UPDATE thing SET other = '2024-02-02' WHERE id = 3; DELETE FROM thing WHERE id = 2")
        .unwrap();
    job.run(&["sync", "--until", "now"]).expect(0);
    lake.assert_equal();
}

#[test]
fn a_second_instance_is_refused_while_tables_join_a_lake() {
    let lake = Lake::new("laketwo");
    let job = lake.job();
    job.run(&["sync", "--until", "now"]).expect(0);
    lake.source.psql(LATE).unwrap();
    let mut running = job.start(&["sync"]);
    assert!(reached(&mut running, || lake.copies()), "{}", running.stderr());
    let elsewhere = TempDir::new().unwrap();
    let state = elsewhere.path().join("state");
    lake.job().state_at(&state).run(&["sync", "--until", "now"]).expect(9);
    lake.job().state_at(&state).run(&["reset", "public.pet", "--yes"]).expect(9);
    lake.passes(&mut running);
    ends(running);
    lake.assert_equal();
}
