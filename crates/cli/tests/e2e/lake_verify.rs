//! `verify` of a job into a lake, from the command line.
//!
//! **Invariant:** what differs was done to the lake's files; the report is judged by what is in its files.

use std::fs;
use std::path::Path;

use rustix::process::Signal;
use serde_json::Value;
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

/// The lines of a table in a report's directory, sorted.
fn lines(directory: &Path, table: &str) -> Vec<String> {
    let text = fs::read_to_string(directory.join("diff.ndjson")).unwrap();
    let lines = text.lines().map(|line| (line, serde_json::from_str::<Value>(line).unwrap()));
    let mut found: Vec<String> =
        lines.filter(|(_, of)| of["table"] == table).map(|(line, _)| line.to_owned()).collect();
    found.sort();
    found
}

#[test]
fn every_differing_row_of_a_lake_is_a_line_and_its_repair_is_a_copy() {
    let (lake, directory) = (Lake::new("lakediff"), TempDir::new().unwrap());
    let (job, place) = (lake.job(), directory.path().join("report"));
    let verify = |more: &[&'static str]| {
        let mut args = vec!["verify", "--report", place.to_str().unwrap()];
        args.extend(more);
        job.run(&args)
    };
    lake.source
        .psql(
            "CREATE TABLE keyless (a text, n numeric); ALTER TABLE keyless REPLICA IDENTITY FULL; \
        INSERT INTO keyless VALUES ('x', 1.0), ('x', 1.0), ('y', NULL)",
        )
        .unwrap();
    job.run(&["sync", "--until", "now"]).expect(0);
    lake.source.psql("UPDATE pet SET note = 'streamed' WHERE id <= 20").unwrap();
    verify(&[]).expect(0);
    // What carries this origin the stream takes for what a job of its name has written.
    let origin = "SELECT pg_replication_origin_create('tidemark_lakediff'); SELECT pg_replication_origin_session_setup('tidemark_lakediff');";
    lake.source.psql(&format!("{origin} UPDATE pet SET legs = 77, note = 'geheim' WHERE id = 7; DELETE FROM pet WHERE id = 8; \
        INSERT INTO pet VALUES (-1, 4, 'geheim'); DELETE FROM keyless WHERE a = 'x'; INSERT INTO keyless VALUES ('y', NULL)")).unwrap();

    let ran = verify(&["--level", "rows", "--redact", "none"]).expect(1);
    for says in [
        "public.pet: 1 missing, 1 extra, 1 changed",
        "missing id=-1",
        "public.keyless: 1 missing, 2 extra",
    ] {
        assert!(ran.stdout.contains(says), "{says}: {}", ran.stdout);
    }
    assert_eq!(
        lines(&place, "pet"),
        [
            r#"{"schema":"public","table":"pet","kind":"changed","key":{"id":7},"columns":{"legs":{"class":"changed","source":77,"target":2},"note":{"class":"changed","source":"geheim","target":"streamed"}}}"#,
            r#"{"schema":"public","table":"pet","kind":"extra","key":{"id":8}}"#,
            r#"{"schema":"public","table":"pet","kind":"missing","key":{"id":-1}}"#,
        ]
    );
    assert_eq!(
        lines(&place, "keyless"),
        [
            r#"{"schema":"public","table":"keyless","kind":"extra","key":{"a":"x","n":"1.0"},"copies":2}"#,
            r#"{"schema":"public","table":"keyless","kind":"missing","key":{"a":"y","n":null}}"#,
        ]
    );
    let report = report_in(&place);
    let pet = table(&report, "pet");
    assert_eq!(
        [&pet["missing"], &pet["extra"], &pet["changed"], &pet["equivalent"]],
        [&1, &1, &1, &0].map(|n| Value::from(*n)).each_ref()
    );
    assert_eq!((&pet["first_key"]["id"], &pet["last_key"]["id"]), (&(-1).into(), &8.into()));
    assert_eq!(pet["skipped_reason"], Value::Null);
    assert_eq!(report["diff"]["lines"], 5);

    // Without the values, which is the default, and without the keys.
    verify(&[]).expect(1);
    let all = fs::read_to_string(place.join("diff.ndjson")).unwrap();
    assert!(!all.contains("geheim") && all.contains(r#"{"id":-1}"#), "{all}");
    verify(&["--redact", "keys"]).expect(1);
    let all = fs::read_to_string(place.join("diff.ndjson")).unwrap();
    assert!(!all.contains(r#"{"id":-1}"#) && all.lines().count() == 5, "{all}");

    let refused = job.run(&["repair", place.to_str().unwrap(), "--apply"]).expect(2);
    let way_out = "tidemark reset public.keyless public.pet --yes";
    assert!(refused.stderr.contains(way_out), "{}", refused.stderr);
    job.run(&["reset", "public.keyless", "public.pet", "--yes"]).expect(0);
    job.run(&["sync", "--until", "now"]).expect(0);
    verify(&[]).expect(0);
    assert_eq!(fs::read_to_string(place.join("diff.ndjson")).unwrap(), "");
    lake.source.psql("SELECT pg_replication_origin_drop('tidemark_lakediff')").unwrap();
}
