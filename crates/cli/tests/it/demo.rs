//! `tidemark demo` from its start to its end, and stopped in the middle: nothing is left either way.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};

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

/// Command lines of processes that name a directory, or work below it.
fn processes_in(directory: &Path) -> Vec<String> {
    let name = directory.to_str().unwrap();
    let lines = std::fs::read_dir("/proc").unwrap().filter_map(|entry| {
        let process = entry.ok()?.path();
        let line = std::fs::read(process.join("cmdline")).ok()?;
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        // Of one that has ended already there is no directory.
        let place = std::fs::read_link(process.join("cwd")).unwrap_or_default();
        (line.contains(name) || place.starts_with(directory)).then_some(line)
    });
    lines.collect()
}

fn assert_nothing_is_left(temporary: &Path) {
    assert_eq!(processes_in(temporary), Vec::<String>::new());
    let files: Vec<_> = std::fs::read_dir(temporary).unwrap().collect();
    assert!(files.is_empty(), "{files:?}");
}

/// One of the reports that it leaves.
fn report(place: &Place, file: &str) -> Value {
    serde_json::from_slice(&std::fs::read(place.path().join(file)).unwrap()).unwrap()
}

#[test]
fn the_demo_migrates_a_living_database_and_loses_nothing() {
    let (place, temporary) = place();
    let ran = place.run(&["demo", "--scale", "0.002", "--progress", "plain"]);
    assert_eq!(ran.code, 0, "{}\n{}", ran.stderr, ran.stdout);
    let last = ran.stdout.lines().last().unwrap();
    assert_says(
        last,
        &["held: no row lost", "tidemark-demo/demo.json", "{pilot,rest}/{migration,report}.html"],
    );
    let told = report(&place, "tidemark-demo/demo.json");
    assert_eq!((&told["verdict"], &told["problems"]), (&"held".into(), &json!([])));
    let ways = told["switches"].as_array().unwrap().iter();
    let ways: Vec<_> = ways.map(|switch| json!([switch["way"], switch["wave"]])).collect();
    let wanted = json!([
        ["cutover", "pilot"],
        ["fallback", "pilot"],
        ["cutover", "pilot"],
        ["cutover", "rest"]
    ]);
    assert_eq!(json!(ways), wanted);
    for switch in told["switches"].as_array().unwrap() {
        assert!(switch["write_block_ms"].as_u64().unwrap() > 0, "{switch}");
        assert_eq!(switch["others_refused"], 0, "{switch}");
    }
    for count in told["count"].as_array().unwrap() {
        assert!(count["committed"].as_u64().unwrap() > 100, "{count}");
        assert_eq!(count["given_twice"], 0, "{count}");
        for side in count["sides"].as_array().unwrap() {
            assert_eq!(side["rows"], count["committed"], "{count}");
            for wrong in ["missing", "repeated", "unknown", "ids_twice", "not_whole"] {
                assert_eq!(side[wrong], 0, "{wrong} {count}");
            }
        }
    }
    for wave in ["pilot", "rest"] {
        let directory = format!("tidemark-demo/{wave}");
        assert_eq!(report(&place, &format!("{directory}/report.json"))["verdict"], "identical");
        assert_eq!(report(&place, &format!("{directory}/migration.json"))["stage"], "complete");
    }
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
    assert!(lines.any(|line| line.contains("copy it to PostgreSQL")), "it never came so far");
    assert!(!processes_in(&temporary).is_empty());
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
    // Commands run in the background by then.
    assert!(lines.any(|line| line.contains("s behind")), "it never came so far");
    child.kill().unwrap();
    child.wait().unwrap();
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
    let is_left = || {
        std::fs::read_dir(&temporary).unwrap().next().is_some()
            || !processes_in(&temporary).is_empty()
    };
    while is_left() {
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
