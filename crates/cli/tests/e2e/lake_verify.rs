//! `verify` of a job into a lake, from the command line.
//!
//! **Invariant:** what differs was done to the lake's files; the report is judged by what is in its files.

use std::fs;

use rustix::process::Signal;
use tempfile::TempDir;

use crate::lake_joining::Lake;
use crate::support::files_below;
use crate::verify::{report_in, table};

#[test]
fn a_lake_is_verified_at_one_lsn_while_its_job_runs_and_after_it_was_stopped() {
    let (lake, directory) = (Lake::new("lakeverify"), TempDir::new().unwrap());
    let (job, place) = (lake.job(), directory.path().join("report"));
    let verify = ["verify", "--report", place.to_str().unwrap()];
    job.run(&["verify"]).expect(2).says(&["tidemark sync"]);
    job.run(&["sync", "--until", "now"]).expect(0);
    let mut running = job.start(&["sync"]);
    lake.passes(&mut running);
    for round in 0..3 {
        let changes = format!(
            "UPDATE pet SET legs = legs + 1 WHERE id % 7 = {round}; UPDATE pet SET id = -id WHERE id = 10 + {round}; \
             DELETE FROM pet WHERE id = 20 + {round}; INSERT INTO pet VALUES (5000 + {round}, NULL, '')"
        );
        lake.source.psql(&changes).unwrap();
        let ran = job.run(&verify).expect(0);
        assert!(ran.stdout.contains("identical: source and target at "), "{}", ran.stdout);
        let report = report_in(&place);
        assert_eq!((&report["verdict"], &report["proof"]), (&"identical".into(), &"full".into()));
        assert_eq!(report["lsn"], report["point"]["barriers"][0]["lsn"], "{report}");
        assert!(report["target"]["address"].as_str().unwrap().starts_with("file:///"), "{report}");
        assert!(report["target"]["version"].as_str().unwrap().contains("commit"), "{report}");
        let pet = table(&report, "pet");
        assert_eq!((&pet["target_rows"], &pet["missing"]), (&2000.into(), &0.into()));
        assert_eq!(pet["source_digest"], pet["target_digest"]);
    }
    running.signal(Signal::INT);
    running.end().expect(0);
    lake.source.psql("UPDATE pet SET note = 'later' WHERE id = 1500").unwrap();
    job.run(&verify).expect(0);
    job.run(&["verify", "--quiesced"]).expect(2).says(&["PostgreSQL"]);

    // One of two change files of one table takes the place of the other.
    let changes = lake.root().join("public/pet/changes");
    let files = files_below(&changes);
    let (first, other) = (changes.join(&files[0]), changes.join(&files[1]));
    let whole = fs::read(&first).unwrap();
    fs::copy(&other, &first).unwrap();
    let ran = job.run(&verify);
    assert!([1, 3].contains(&ran.code), "{ran:?}");
    assert_ne!(table(&report_in(&place), "pet")["verdict"], "identical");
    fs::remove_file(&first).unwrap();
    let ran = job.run(&verify).expect(3);
    let report = report_in(&place);
    let pet = table(&report, "pet");
    let reason = pet["skipped_reason"].as_str().unwrap();
    assert!(reason.contains(&files[0]), "{reason}");
    assert!(ran.stdout.contains(&files[0]), "{}", ran.stdout);
    assert_eq!(table(&report, "region")["verdict"], "identical");
    fs::write(&first, whole).unwrap();
    job.run(&verify).expect(0);
}
