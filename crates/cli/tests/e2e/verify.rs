//! `verify` from the command line: of a job that follows, of one that was stopped, of two databases without a job.
//!
//! **Invariant:** what differs was planted by psql; the report is judged by what is in its files.

use std::fs;
use std::path::Path;

use rustix::process::Signal;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;

use crate::follow::{Pair, follows, passes};
use crate::support::Job;

/// What a verification has written there.
pub(crate) fn report_in(directory: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(directory.join("report.json")).unwrap()).unwrap()
}

/// What a report says of a table.
pub(crate) fn table<'a>(report: &'a Value, name: &str) -> &'a Value {
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

    let ran = job.run(&[&verify[..], &["--dirty", "--max-snapshot-age", "10m"]].concat()).expect(0);
    assert!(ran.stdout.contains("\nincremental: "), "{}", ran.stdout);
    let later = report_in(&place);
    assert_eq!((&later["verdict"], &later["proof"]), (&"identical".into(), &"incremental".into()));
    assert!(later["oldest_leaf_lsn"].as_str().is_some() && later["assumption"].as_str().is_some());
    assert_eq!(table(&later, "pet")["last_proven"]["lsn"], later["lsn"], "{later}");
    let ran = job.run(&["verify", "--dirty", "--level", "count"]).expect(2);
    assert!(ran.stderr.contains("--level digest or rows"), "{}", ran.stderr);
    job.run(&["verify", "--dirty", "--quiesced"]).expect(2);

    running.signal(Signal::INT);
    running.end().expect(0);
    pair.target.psql("UPDATE pet SET legs = legs + 1 WHERE id = 5").unwrap();
    pair.source.psql("UPDATE pet SET legs = 7 WHERE id = 6").unwrap();
    let ran = job.run(&verify).expect(1);
    assert!(ran.stdout.contains("different: source and target at "), "{}", ran.stdout);
    let report = report_in(&place);
    let pet = table(&report, "pet");
    assert_eq!((&pet["verdict"], &pet["differing_leaves"]), (&"different".into(), &1.into()));
    assert_eq!((&pet["changed"], &pet["missing"]), (&1.into(), &0.into()));
    assert_eq!((&pet["first_key"], &pet["key_columns"][0]), (&json!({"id": 5}), &"id".into()));
    assert!(ran.stdout.contains("pet: 1 changed\n  changed id=5\n"), "{}", ran.stdout);
    let lines = fs::read(place.join("diff.ndjson")).unwrap();
    let line: Value = serde_json::from_slice(&lines).unwrap();
    assert_eq!((&line["kind"], &line["key"]), (&"changed".into(), &json!({"id": 5})));
    assert_eq!(report["diff"]["lines"], 1);
    let sha256: String = Sha256::digest(&lines).iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(report["diff"]["sha256"], sha256);
    assert_eq!(table(&report, "keyless")["verdict"], "identical");
    // An earlier report's rows are not left beside one that has none.
    job.run(&["verify", "--level", "schema", "--report", place.to_str().unwrap()]).expect(0);
    assert!(!place.join("diff.ndjson").exists() && report_in(&place)["diff"].is_null());
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
    let says = "[verify]\nlevel = \"rows\"\njobs = 3\nrate = \"1GiB\"\nallow = [\"equivalent\"]\n";
    let told = Job::new("told", &pair.source.url(), &pair.target.url()).configured(says);
    let of_scale = ["verify", "--quiesced", "--table", "public.scale", "--json"];
    let ran = told.run(&of_scale).expect(0);
    let report: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!((&report["level"], &report["reading"]["jobs"]), (&"rows".into(), &3.into()));
    assert_eq!(report["policy"]["allow"], json!(["equivalent"]));
    let flags = ["--allow", "lossy", "--level", "digest", "--jobs", "1"];
    let ran = told.run(&[&of_scale[..], &flags].concat()).expect(4);
    let report: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!((&report["level"], &report["reading"]["jobs"]), (&"digest".into(), &1.into()));
    pair.source.psql("CREATE TABLE only_here (a int)").unwrap();
    let ran = job.run(&["verify", "--quiesced"]).expect(1);
    assert!(ran.stdout.contains("only_here"), "{}", ran.stdout);
}

#[test]
fn what_one_side_lacks_is_different_and_what_may_not_be_read_is_incomplete_and_both_say_why() {
    let (pair, directory) = (Pair::new("unread"), TempDir::new().unwrap());
    let role = format!("reader_{}", pair.source.name());
    pair.source.psql(&format!("CREATE ROLE {role} LOGIN")).unwrap();
    let rows = "CREATE TABLE shown (id int PRIMARY KEY); CREATE TABLE hidden (id int PRIMARY KEY); INSERT INTO hidden VALUES (1)";
    for side in [&pair.source, &pair.target] {
        side.psql(&format!("{rows}; GRANT SELECT ON shown, hidden TO {role}")).unwrap();
    }
    let policy =
        "ALTER TABLE hidden ENABLE ROW LEVEL SECURITY; CREATE POLICY p ON hidden USING (id < 0)";
    pair.source.psql(policy).unwrap();
    let as_role =
        |url: String| url.replacen("postgres://postgres", &format!("postgres://{role}"), 1);
    let job = Job::new("unread", &as_role(pair.source.url()), &as_role(pair.target.url()));
    let place = directory.path().join("report");
    let chosen = ["verify", "--quiesced", "--table", "public.shown", "--table", "public.hidden"];
    let verify = [&chosen[..], &["--report", place.to_str().unwrap()]].concat();
    let ran = job.run(&verify).expect(3);
    assert!(ran.stdout.contains("public.hidden: row security hides rows"), "{}", ran.stdout);
    let report = report_in(&place);
    assert_eq!(table(&report, "hidden")["verdict"], "incomplete");
    assert_eq!(table(&report, "shown")["verdict"], "identical");

    let chosen = ["verify", "--quiesced", "--table", "public.supplier"];
    let verify = [&chosen[..], &["--report", place.to_str().unwrap()]].concat();
    let ran = job.run(&verify).expect(1);
    assert!(ran.stdout.contains("public.supplier: only the source has it"), "{}", ran.stdout);
    let report = report_in(&place);
    let supplier = table(&report, "supplier");
    assert_eq!(supplier["verdict"], "different");
    assert_eq!(supplier["differing_definitions"], 1);
    for side in [&pair.source, &pair.target] {
        side.psql(&format!("DROP OWNED BY {role}")).unwrap();
    }
    pair.source.psql(&format!("DROP ROLE {role}")).unwrap();
}

/// All that a report's directory holds.
fn all_of(place: &Path) -> String {
    let files =
        fs::read_dir(place).unwrap().map(|file| fs::read_to_string(file.unwrap().path()).unwrap());
    files.collect()
}

#[test]
fn what_is_to_be_hidden_is_in_no_file_of_the_report_and_not_on_the_terminal() {
    let (pair, directory) = (Pair::new("hidden"), TempDir::new().unwrap());
    let rows = "CREATE TABLE person (name text PRIMARY KEY, card text); INSERT INTO person VALUES ('key-ann', 'card-1'), ('key-bob', 'card-2'); \
        CREATE TABLE note (body text); INSERT INTO note VALUES ('card-3')";
    pair.source.psql(rows).unwrap();
    pair.target.psql(rows).unwrap();
    pair.target.psql("UPDATE person SET card = 'card-9'; UPDATE note SET body = 'card-8'").unwrap();
    let job = Job::new("hidden", &pair.source.url(), &pair.target.url());
    for (redact, hides_keys, hides_values) in
        [(None, false, true), (Some("keys"), true, true), (Some("none"), false, false)]
    {
        for level in ["digest", "rows"] {
            let place = directory.path().join(format!("{redact:?}-{level}"));
            let mut args =
                vec!["verify", "--quiesced", "--level", level, "--table", "public.person"];
            args.extend(["--table", "public.note", "--report", place.to_str().unwrap()]);
            args.extend(redact.iter().flat_map(|what| ["--redact", what]));
            let ran = job.run(&args).expect(1);
            let all = all_of(&place) + &ran.stdout + &ran.stderr;
            assert_eq!(!all.contains("key-"), hides_keys, "{redact:?} {level}: {all}");
            assert_eq!(!all.contains("card-"), hides_values, "{redact:?} {level}: {all}");
            let report = report_in(&place);
            assert_eq!(report["redaction"], redact.unwrap_or("values"));
            assert_eq!(report["diff"]["lines"], 4);
        }
    }
}

#[test]
fn a_report_is_repaired_by_its_directory_and_not_when_it_was_cut_or_hides_the_keys() {
    let (pair, directory) = (Pair::new("mended"), TempDir::new().unwrap());
    let rows = "CREATE TABLE mended (id int PRIMARY KEY, a text); INSERT INTO mended SELECT i, 'r' FROM generate_series(1, 9) i";
    pair.source.psql(rows).unwrap();
    pair.target.psql(rows).unwrap();
    pair.target
        .psql("UPDATE mended SET a = 'x' WHERE id = 2; DELETE FROM mended WHERE id = 3")
        .unwrap();
    let job = Job::new("mended", &pair.source.url(), &pair.target.url());
    let place = directory.path().join("report");
    let place = place.to_str().unwrap();
    let verify = ["verify", "--quiesced", "--table", "public.mended", "--report", place];
    let hidden = verify.iter().copied().chain(["--redact", "keys"]).collect::<Vec<_>>();
    job.run(&hidden).expect(1);
    let refused = job.run(&["repair", place]).expect(2);
    assert!(refused.stderr.contains("--redact"), "{}", refused.stderr);

    job.run(&verify).expect(1);
    let ran = job.run(&["repair", place]).expect(0);
    assert!(ran.stdout.contains("INSERT INTO \"public\".\"mended\""), "{}", ran.stdout);
    job.run(&verify).expect(1);
    let json = format!("{place}/report.json");
    let ran = job.run(&["repair", &json, "--apply"]).expect(0);
    assert!(ran.stdout.is_empty() && ran.stderr.contains("2 rows written"), "{}", ran.stderr);
    job.run(&["repair", place, "--apply"]).expect(0);
    let lines = Path::new(place).join("diff.ndjson");
    let whole = fs::read_to_string(&lines).unwrap();
    fs::write(&lines, whole.lines().next().unwrap()).unwrap();
    let refused = job.run(&["repair", place, "--apply"]).expect(2);
    assert!(refused.stderr.contains("diff.ndjson"), "{}", refused.stderr);
    job.run(&verify).expect(0);
}
