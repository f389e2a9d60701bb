//! `verify` from the command line: of a job that follows, of one that was stopped, of two databases without a job.
//!
//! **Invariant:** what differs was planted by psql; the report is judged by what is in its files.

use std::fs;
use std::path::Path;

use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;

use crate::follow::{Pair, follows, passes};
use crate::support::Job;

fn report_in(directory: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(directory.join("report.json")).unwrap()).unwrap()
}

fn table<'a>(report: &'a Value, name: &str) -> &'a Value {
    let mut tables = report["tables"].as_array().unwrap().iter();
    tables.find(|table| table["table"] == name).unwrap()
}

#[test]
fn a_job_is_verified_at_one_lsn_while_it_runs_and_after_it_was_stopped() {
    let (pair, directory) = (Pair::new("verify"), TempDir::new().unwrap());
    let (job, place) = (pair.job(), directory.path().join("report"));
    let verify = ["verify", "--report", place.to_str().unwrap()];
    let writer = pair.writer();
    let mut running = job.start(&["sync"]);
    follows(&mut running, &pair.target, "verify");
    passes(&mut running, &pair.source, &pair.target);
    let ran = job.run(&verify).expect(0);
    assert!(ran.stdout.contains("identical: source and target at "), "{}", ran.stdout);
    let report = report_in(&place);
    assert_eq!((&report["verdict"], &report["proof"]), (&"identical".into(), &"full".into()));
    assert_eq!(report["lsn"], report["point"]["barriers"][0]["lsn"], "{report}");
    let pet = table(&report, "pet");
    assert_eq!(pet["source_digest"], pet["target_digest"]);
    let html = fs::read_to_string(place.join("report.html")).unwrap();
    assert!(html.contains(report["lsn"].as_str().unwrap()) && html.contains("pet"));
    assert!(fs::read_to_string(place.join("report.junit.xml")).unwrap().contains("<testsuite"));

    running.signal(Signal::INT);
    running.end().expect(0);
    pair.target.psql("UPDATE pet SET legs = legs + 1 WHERE id = 5").unwrap();
    pair.source.psql("UPDATE pet SET legs = 7 WHERE id = 6").unwrap();
    let ran = job.run(&verify).expect(1);
    assert!(ran.stdout.contains("different: source and target at "), "{}", ran.stdout);
    let report = report_in(&place);
    let pet = table(&report, "pet");
    assert_eq!((&pet["verdict"], &pet["differing_leaves"]), (&"different".into(), &1.into()));
    assert_eq!(table(&report, "keyless")["verdict"], "identical");
    writer.stop().unwrap();
}

#[test]
fn two_databases_without_a_job_are_compared_where_they_stand_still() {
    let pair = Pair::new("still");
    let job = Job::new("still", &pair.source.url(), &pair.target.url());
    let refused = job.run(&["verify"]).expect(2);
    assert!(refused.stderr.contains("--quiesced"), "{}", refused.stderr);
    pair.job().run(&["sync", "--snapshot-only"]).expect(0);
    let ran = job.run(&["verify", "--quiesced", "--json"]).expect(0);
    let report: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(
        (&report["verdict"], &report["point"]["kind"]),
        (&"identical".into(), &"quiesced".into())
    );
    // Only counted, that is: nothing was proven, and what was asked for holds.
    let ran = job.run(&["verify", "--quiesced", "--level", "count", "--json"]).expect(0);
    let report: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(report["verdict"], "incomplete");
    pair.source.psql("CREATE TABLE scale (n numeric); INSERT INTO scale VALUES (1.0)").unwrap();
    pair.target.psql("CREATE TABLE scale (n numeric); INSERT INTO scale VALUES (1.00)").unwrap();
    let ran = job.run(&["verify", "--quiesced", "--table", "public.scale"]).expect(4);
    assert!(ran.stdout.contains("equivalent"), "{}", ran.stdout);
    job.run(&["verify", "--quiesced", "--table", "public.scale", "--allow", "equivalent"])
        .expect(0);
    pair.source.psql("CREATE TABLE only_here (a int)").unwrap();
    let ran = job.run(&["verify", "--quiesced"]).expect(1);
    assert!(ran.stdout.contains("only_here"), "{}", ran.stdout);
}
