//! `verify selftest` from the command line: what it says, what it needs, what it leaves.
//!
//! **Invariant:** that nothing is left on a server is asked of psql.

use rustix::process::Signal;
use serde_json::Value;
use tidemark_testkit::{Database, shared};

use crate::support::{Job, filled};

/// Words that may be nowhere in what is printed.
const SECRETS: &str = "CREATE TABLE secret (name text PRIMARY KEY, card text NOT NULL, born timestamptz); \
    INSERT INTO secret SELECT 'key-geheim-' || i, 'card-geheim-' || i, '2000-01-01' FROM generate_series(1, 30) i";
const LEFT: &str = "SELECT count(*) FROM pg_namespace WHERE nspname LIKE 'tidemark%'";
/// Tables, their rows, and everything else of a database that a user made.
const USERS: &str =
    "SELECT count(*), coalesce(sum(n_tup_ins + n_tup_upd + n_tup_del), 0) FROM pg_stat_user_tables";

fn pair() -> (Database, Database) {
    let (source, target) = (filled(), shared().unwrap());
    source.psql(SECRETS).unwrap();
    target.psql("CREATE TYPE mood AS ENUM ('sad', 'glad')").unwrap();
    (source, target)
}

#[test]
fn it_finds_everything_on_the_users_tables_leaves_nothing_and_shows_no_value() {
    let (source, target) = pair();
    let job = Job::new("tested", &source.url(), &target.url());
    let before = source.psql(USERS).unwrap();
    let ran = job.run(&["verify", "selftest", "-v"]).expect(0);
    assert!(
        ran.stdout.contains("untouched") && ran.stdout.contains("found what was planted"),
        "{}",
        ran.stdout
    );
    assert!(ran.stdout.contains("in a table of its own"), "{}", ran.stdout);
    assert!(!(ran.stdout + &ran.stderr).contains("geheim"));
    let ran = job.run(&["verify", "selftest", "--json"]).expect(0);
    assert!(!ran.stdout.contains("geheim") && !ran.stderr.contains("geheim"));
    let told: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!((&told["found_all"], &told["missed"]), (&true.into(), &Value::Array(Vec::new())));
    let mutations = told["mutations"].as_array().unwrap();
    assert!(
        mutations.len() > 30 && mutations.iter().all(|one| one["tried"] == one["found"]),
        "{told}"
    );
    assert!(mutations.iter().all(|one| one["tried"].as_u64().unwrap() > 0), "{told}");
    let tables: Vec<&str> = told["tables"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| one["table"].as_str().unwrap())
        .collect();
    assert!(tables.contains(&"public.secret") && tables.contains(&"public.keyless"), "{tables:?}");
    assert_eq!((source.psql(LEFT).unwrap(), target.psql(LEFT).unwrap()), ("0".into(), "0".into()));
    assert_eq!(source.psql(USERS).unwrap(), before);
    assert_eq!(
        target.psql("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'").unwrap(),
        "0"
    );
}

#[test]
fn a_table_can_be_chosen_and_urls_are_enough() {
    let (source, target) = pair();
    let job = Job::new("chosen", &source.url(), &target.url());
    let urls = ["--source", &source.url(), "--target", &target.url()];
    let ran = job
        .run(&[&["verify", "selftest", "--table", "public.secret", "--json"], &urls[..]].concat());
    let told: Value = serde_json::from_str(&ran.expect(0).stdout).unwrap();
    assert_eq!(told["tables"], serde_json::json!([{"table": "public.secret", "rows": 30}]));
    // What is of a verification is not taken for something of a self-test.
    job.run(&["verify", "--quiesced", "selftest"]).expect(2);
}

#[test]
fn it_says_what_it_needs() {
    let (source, target) = pair();
    let role = format!("tester_{}", target.name());
    target.psql(&format!("CREATE ROLE {role} LOGIN PASSWORD 'x'")).unwrap();
    let as_role = target.url().replacen("postgres://postgres", &format!("postgres://{role}"), 1);
    let refused =
        Job::new("rights", &source.url(), &as_role).run(&["verify", "selftest"]).expect(7);
    refused.says(&["may not", &format!("GRANT CREATE ON DATABASE {} TO {role}", target.name())]);
    target.psql(&format!("GRANT CREATE ON DATABASE {} TO {role}", target.name())).unwrap();
    Job::new("rights", &source.url(), &as_role).run(&["verify", "selftest"]).expect(0);
    assert_eq!(target.psql(LEFT).unwrap(), "0");
    target.psql(&format!("DROP OWNED BY {role}; DROP ROLE {role}")).unwrap();

    target
        .psql("CREATE SCHEMA tidemark_selftest_ours; CREATE TABLE tidemark_selftest_ours.t (a int)")
        .unwrap();
    let job = Job::new("ours", &source.url(), &target.url());
    job.run(&["verify", "selftest"]).expect(7).says(&["tidemark_selftest_ours", "not ours"]);
    assert_eq!(target.psql("SELECT count(*) FROM tidemark_selftest_ours.t").unwrap(), "0");

    let lake = format!("file://{}", job.path().join("lake").display());
    let refused = Job::new("lake", &source.url(), &lake).run(&["verify", "selftest"]).expect(2);
    refused.says(&["lake", "--target"]);
}

#[test]
fn what_a_killed_one_left_goes_with_the_next_one_or_with_cleanup() {
    let (source, target) = pair();
    let job = Job::new("killed-one", &source.url(), &target.url());
    let there =
        "SELECT count(*) > 4 FROM pg_tables WHERE schemaname = 'tidemark_selftest_killed_one'";
    kill(&job, &target, there);
    assert_eq!(target.psql(LEFT).unwrap(), "1");
    // It is no table of the user's for a verification, and does not keep a copy from being made.
    target.psql("DROP TYPE mood CASCADE").unwrap();
    job.sync(&[]).expect(0);
    job.run(&["verify", "--quiesced"]).expect(0);
    job.run(&["verify", "selftest"]).expect(0);
    assert_eq!(target.psql(LEFT).unwrap(), "1", "the job's own schema");
    kill(&job, &target, there);
    let ran = job.run(&["cleanup", "--yes"]).expect(0);
    assert!(ran.stdout.contains("tidemark_selftest_killed_one"), "{}", ran.stdout);
    assert_eq!(target.psql(LEFT).unwrap(), "0");
}

/// Kills one in the middle of its work.
fn kill(job: &Job, target: &Database, there: &str) {
    let running = job.start(&["verify", "selftest"]);
    target.cluster().wait_for(target.name(), there, "t").unwrap();
    running.signal(Signal::KILL);
    running.end().expect(137);
}

#[test]
fn a_stop_takes_everything_back() {
    let (source, target) = pair();
    let job = Job::new("stopped", &source.url(), &target.url());
    let running = job.start(&["verify", "selftest"]);
    let there = "SELECT count(*) > 4 FROM pg_tables WHERE schemaname = 'tidemark_selftest_stopped'";
    target.cluster().wait_for(target.name(), there, "t").unwrap();
    // Another one waits for nobody.
    job.run(&["verify", "selftest"]).expect(9);
    running.signal(Signal::INT);
    running.end().expect(130);
    assert_eq!(target.psql(LEFT).unwrap(), "0");
}
