//! `status` from another process, and `cleanup` by exact name.

use rustix::process::Signal;
use tidemark_ledger::{Ledger, RunRecord};
use tidemark_testkit::shared;

use crate::follow::Pair;
use crate::support::{Job, filled, markers, reached, side};

#[test]
fn status_answers_while_the_job_runs_after_it_was_killed_and_when_it_is_done() {
    let (source, target) = (filled(), shared().unwrap());
    let job = Job::new("asked", &source.url(), &target.url());
    job.run(&["status", "--json"]).expect(2);
    let mut running = job.start_sync();
    assert!(reached(&mut running, || markers(side(&target), "asked") >= 1), "{}", running.stderr());
    let status = job.status().unwrap();
    assert_eq!(status["job"], "asked");
    assert_eq!(status["is_running"], true, "{status}");
    assert_eq!(status["phase"], "snapshot", "{status}");
    let snapshot = &status["snapshot"];
    assert_eq!(snapshot["tables_total"], 10, "{status}");
    assert!(snapshot["rows_done"].as_u64().unwrap() > 0, "{status}");
    assert!(snapshot["bytes_done"].as_u64() <= snapshot["bytes_total"].as_u64(), "{status}");
    for field in
        ["head_lsn", "sent_lsn", "received_lsn", "applied_lsn", "durable_lsn", "bytes", "seconds"]
    {
        assert!(status["lag"].get(field).is_some(), "lag.{field}");
    }
    for field in ["transactions", "changes", "changes_per_second"] {
        assert!(status["stream"].get(field).is_some(), "stream.{field}");
    }
    for field in ["retained_wal_bytes", "spool_bytes", "memory_bytes", "last_error", "waves"] {
        assert!(status.get(field).is_some(), "{field}");
    }
    running.signal(Signal::KILL);
    running.end();
    let status = job.status().unwrap();
    assert_eq!(
        (&status["phase"], &status["is_running"]),
        (&"stopped".into(), &false.into()),
        "{status}"
    );
    job.sync(&[]).expect(0);
    let status = job.status().unwrap();
    assert_eq!(status["phase"], "complete", "{status}");
    assert_eq!(status["snapshot"]["tables_done"], 10, "{status}");
    assert!(status["lag"]["durable_lsn"].is_string(), "{status}");
    let rows = "SELECT sum((xpath('/row/c/text()', query_to_xml('SELECT count(*) AS c FROM ' || oid::regclass, true, true, '')))[1]::text::int8) \
        FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace";
    assert_eq!(status["snapshot"]["rows_done"].to_string(), source.psql(rows).unwrap());
}

#[test]
fn cleanup_takes_only_the_records_of_its_own_job_and_keeps_the_data() {
    let (source, target) = (shared().unwrap(), shared().unwrap());
    source.psql("CREATE TABLE a (id integer); CREATE TABLE b (id integer); INSERT INTO a VALUES (1); INSERT INTO b VALUES (2)").unwrap();
    target.psql("CREATE TABLE a (id integer); CREATE TABLE b (id integer)").unwrap();
    let job = |name: &str, table: &str| {
        let more = format!("schema = \"exists\"\n[select]\ninclude = [\"public.{table}\"]\n");
        Job::new(name, &source.url(), &target.url()).configured(&more)
    };
    let (one, two) = (job("a-1", "a"), job("ax1", "b"));
    one.sync(&[]).expect(0);
    two.sync(&[]).expect(0);
    one.run(&["cleanup"]).expect(2).says(&["--yes"]);
    let jobs = "SELECT string_agg(job, ' ' ORDER BY job) FROM (SELECT job FROM tidemark.progress UNION ALL SELECT DISTINCT job FROM tidemark.chunk UNION ALL SELECT job FROM tidemark.relation) j";
    assert_eq!(target.psql(jobs).unwrap(), "a-1 a-1 a-1 ax1 ax1 ax1");
    one.run(&["cleanup", "--yes"]).expect(0);
    assert_eq!(target.psql(jobs).unwrap(), "ax1 ax1 ax1");
    two.run(&["cleanup", "--yes"]).expect(0);
    assert_eq!(
        target.psql("SELECT count(*) FROM pg_namespace WHERE nspname = 'tidemark'").unwrap(),
        "0"
    );
    assert_eq!(target.psql("SELECT (SELECT id FROM a), (SELECT id FROM b)").unwrap(), "1|2");
}

#[test]
fn a_job_that_died_between_the_targets_last_word_and_the_ledgers_goes_on_and_says_so() {
    let pair = Pair::new("lastword");
    let job = pair.job();
    job.run(&["sync", "--until", "now"]).expect(0);
    {
        // As it was before the last word.
        let ledger = Ledger::open(&job.path().join("state"), "lastword").unwrap();
        let (run, relations) = (ledger.run().unwrap().unwrap(), ledger.relations().unwrap());
        ledger
            .begin_run(&RunRecord { phase: "snapshot".into(), finished_at_ms: None, ..run })
            .unwrap();
        for relation in relations {
            ledger.add_relation(&relation.plan).unwrap();
            ledger.finish_relation(relation.plan.oid).unwrap();
        }
    }
    let activity = || job.status().unwrap()["activity"].as_str().unwrap().to_owned();
    assert!(activity().contains("all tables are in"), "{}", activity());
    job.run(&["sync", "--until", "now"]).expect(0);
    assert_eq!(activity(), "not running; the same sync goes on where it stopped");
}
