//! Locks of the application while a copy runs: nobody waits for each other (`hazards.md` A11).

use std::process::Stdio;

use tidemark_testkit::{Database, shared};

use crate::crash::Blocker;
use crate::support::{Job, assert_same, filled, markers, reached, run_of, side, wait_until};

/// A statement of the application that somebody keeps waiting.
struct Waiting(std::process::Child);

impl Waiting {
    fn start(source: &Database, sql: &str) -> Self {
        let mut command = source.cluster().psql_command(source.name());
        command.arg("-c").arg(sql).env("PGAPPNAME", "application");
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let waits = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'application' \
            AND datname = current_database() AND wait_event_type = 'Lock'";
        wait_until("the application waits", || source.psql(waits).unwrap() == "1");
        Self(child)
    }

    fn end(mut self) -> bool {
        self.0.wait().unwrap().success()
    }
}

#[test]
fn an_alter_that_waits_for_the_copy_does_not_keep_its_readers_waiting() {
    let (source, target) = (filled(), shared().unwrap());
    let job = Job::new("alter", &source.url(), &target.url());
    let mut running = job.start_sync();
    let has_pet = "SELECT to_regclass('pet') IS NOT NULL";
    assert!(reached(&mut running, || target.psql(has_pet).unwrap() == "t"), "{}", running.stderr());
    // The run stands still with tables that are still to be read.
    let mut blocker = Blocker::start(&target, "LOCK TABLE pet, region, nation");
    assert!(reached(&mut running, || markers(side(&target), "alter") >= 1), "{}", running.stderr());
    let first = run_of(side(&target), "alter");
    let unread = "SELECT count(*) FROM region";
    let before = source.psql(unread).unwrap();
    let alter = Waiting::start(&source, "ALTER TABLE region ADD COLUMN late integer");
    blocker.end();
    running.end().expect(0);
    assert!(alter.end());
    assert_eq!(run_of(side(&target), "alter"), first, "the run began again");
    assert_eq!(target.psql(unread).unwrap(), before);
    source.psql("ALTER TABLE region DROP COLUMN late").unwrap();
    assert_same(side(&source), side(&target));
}

#[test]
fn a_pg_dump_that_is_kept_waiting_gives_up_and_the_run_names_who_did_it() {
    let (source, target) = (filled(), shared().unwrap());
    source.psql("CREATE TABLE busy (id integer)").unwrap();
    // Not copied, so that the snapshot's holder does not meet it; pg_dump locks every table.
    let mut blocker = Blocker::start(&source, "LOCK TABLE busy");
    let more = "[select]\nexclude = [\"public.busy\"]\n[snapshot]\nreaders = 2\nlock_timeout = \"300ms\"\n";
    let job = Job::new("dump", &source.url(), &target.url()).configured(more);
    let ran = job.sync(&[]).expect(8).says(&["pg_dump", "(blocker)", "public.busy", "exclusively"]);
    assert!(ran.error().contains("way out:"), "{}", ran.stderr);
    blocker.end();
    job.sync(&[]).expect(0);
    assert_eq!(target.psql("SELECT count(*) FROM region").unwrap(), "5");
}
