//! `tidemark demo` from its start to its end, and stopped in the middle: nothing is left either way.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::{Place, assert_says, ran};

/// A place whose temporary files are its own, so that what is left can be told from what others do.
fn place() -> (Place, PathBuf) {
    let place = Place::new();
    let temporary = place.path().join("tmp");
    std::fs::create_dir(&temporary).unwrap();
    // The servers' user must get through when we are root.
    for directory in [place.path(), &temporary] {
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(directory, open).unwrap();
    }
    let place = place.set("TMPDIR", temporary.to_str().unwrap());
    (place, temporary)
}

/// Command lines of processes that name a directory.
fn processes_naming(directory: &Path) -> Vec<String> {
    let name = directory.to_str().unwrap();
    let lines = std::fs::read_dir("/proc").unwrap().filter_map(|entry| {
        let line = std::fs::read(entry.ok()?.path().join("cmdline")).ok()?;
        Some(String::from_utf8_lossy(&line).replace('\0', " "))
    });
    lines.filter(|line| line.contains(name)).collect()
}

fn assert_nothing_is_left(temporary: &Path) {
    assert_eq!(processes_naming(temporary), Vec::<String>::new());
    let files: Vec<_> = std::fs::read_dir(temporary).unwrap().collect();
    assert!(files.is_empty(), "{files:?}");
}

#[test]
fn the_demo_copies_a_living_database_twice_and_leaves_only_its_report() {
    let (place, temporary) = place();
    let ran = place.run(&["demo", "--scale", "0.002", "--progress", "plain"]);
    assert_eq!(ran.code, 0, "{}\n{}", ran.stderr, ran.stdout);
    assert_says(ran.stdout.lines().last().unwrap(), &["identical", "tidemark-demo/report.html"]);
    let json = std::fs::read(place.path().join("tidemark-demo/report.json")).unwrap();
    let report: serde_json::Value = serde_json::from_slice(&json).unwrap();
    assert_eq!(report["verdict"], "identical");
    assert_eq!(report["copies"].as_array().unwrap().len(), 2);
    let tables = report["copies"][0]["tables"].as_array().unwrap();
    let lines = tables.iter().find(|table| table["table"] == "lineitem").unwrap();
    assert!(lines["source_rows"].as_u64().unwrap() > 1000, "{lines}");
    assert_eq!(lines["source_digest"], lines["target_digest"]);
    assert!(report["copies"][0]["transactions_meanwhile"].as_u64().unwrap() > 0, "{report}");
    assert!(report["writers"]["transactions"].as_u64().unwrap() > 0, "{report}");
    for copy in report["copies"].as_array().unwrap() {
        assert_eq!(copy["tables"][0]["source_rows"], copy["tables"][0]["target_rows"], "{copy}");
        assert!(copy["followed"]["changes"].as_u64().unwrap() > 0, "{copy}");
        assert!(copy["caught_up"]["changes"].as_u64().unwrap() > 0, "{copy}");
        assert!(!copy["lag"].as_array().unwrap().is_empty(), "{copy}");
        assert_ne!(copy["snapshot_lsn"], copy["lsn"]);
    }
    let html = std::fs::read_to_string(place.path().join("tidemark-demo/report.html")).unwrap();
    assert_says(&html, &["<h1>identical</h1>", "public.lineitem"]);
    assert_nothing_is_left(&temporary);
}

#[test]
fn a_demo_that_is_stopped_in_the_middle_leaves_nothing() {
    let (place, temporary) = place();
    let mut child = place
        .command(&["demo", "--scale", "0.002", "--progress", "plain"])
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let stderr = BufReader::new(child.stderr.take().unwrap());
    let mut lines = stderr.lines().map(Result::unwrap);
    assert!(lines.any(|line| line.contains("copy to PostgreSQL")), "it never came so far");
    assert!(!processes_naming(&temporary).is_empty());
    let pid = child.id().to_string();
    assert!(Command::new("/bin/kill").args(["-TERM", &pid]).status().unwrap().success());
    let rest: Vec<String> = lines.collect();
    assert_eq!(child.wait().unwrap().code(), Some(130), "{rest:?}");
    assert_nothing_is_left(&temporary);
}

#[test]
fn a_demo_that_is_killed_is_cleaned_up_after() {
    let (place, temporary) = place();
    let mut child = place
        .command(&["demo", "--scale", "0.002", "--progress", "plain"])
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let stderr = BufReader::new(child.stderr.take().unwrap());
    let mut lines = stderr.lines().map(Result::unwrap);
    assert!(lines.any(|line| line.contains("copy to PostgreSQL")), "it never came so far");
    child.kill().unwrap();
    child.wait().unwrap();
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
    while std::fs::read_dir(&temporary).unwrap().next().is_some() {
        assert!(std::time::Instant::now() < deadline, "the watchdog did not clean up");
        std::thread::yield_now();
    }
}

#[test]
fn without_the_server_programs_it_names_the_package() {
    let (place, temporary) = place();
    let place = place.set("TIDEMARK_PG_BIN", "/nowhere");
    let ran = ran(place.command(&["demo"]).output().unwrap());
    assert_says(&ran.usage(), &["find PostgreSQL's server programs", "apt-get install postgresql"]);
    assert_nothing_is_left(&temporary);
}

#[test]
fn it_takes_no_database_of_the_user() {
    let place = Place::new();
    let ran = place.run(&["demo", "--source", "postgres://app@db1/shop"]);
    assert_says(&ran.usage(), &["starts its own servers", "tidemark sync"]);
}
