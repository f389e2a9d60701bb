//! `tidemark delta`: after a run with all classes applied both sides hold the same rows, whatever was changed, killed, refused or
//! run elsewhere before.

use std::time::Instant;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;
use tidemark_testkit::{Database, shared};

use crate::crash::Blocker;
use crate::support::{Job, reached, say, sessions_end, side};

/// Keys of every kind: a number, a uuid, a text, several columns, none; a column that the target computes, one that it counts.
const TABLES: &str = r#"
CREATE TABLE number (id bigint PRIMARY KEY, note text, amount numeric);
CREATE TABLE uuids (id uuid PRIMARY KEY, note text);
CREATE TABLE words (word text PRIMARY KEY, note text);
CREATE TABLE pairs (a int, b text, note text, PRIMARY KEY (b, a));
CREATE TABLE keyless (note text, day date);
CREATE TABLE counted (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, note text, length int GENERATED ALWAYS AS (length(note)) STORED);
CREATE TABLE "Odd ""Name" ("the key" int PRIMARY KEY, "Val'ue" text[]);
"#;
const NAMES: [&str; 7] =
    ["number", "uuids", "words", "pairs", "keyless", "counted", "\"Odd \"\"Name\""];

const ROWS: &str = r#"
INSERT INTO number SELECT i, 'n' || i, i * 1.50 FROM generate_series(-1000, 2000) i;
INSERT INTO uuids SELECT md5(i::text)::uuid, 'u' || i FROM generate_series(1, 1000) i;
INSERT INTO words SELECT 'w' || i, repeat('x', i % 300) FROM generate_series(1, 1000) i;
INSERT INTO pairs SELECT i % 50, 'b' || i / 50, NULL FROM generate_series(1, 1000) i;
INSERT INTO keyless SELECT 'k' || i % 7, date '2024-01-01' + i % 3 FROM generate_series(1, 1000) i;
INSERT INTO counted (note) SELECT 'c' || i FROM generate_series(1, 1000) i;
INSERT INTO "Odd ""Name" SELECT i, ARRAY['a,b', NULL, i::text] FROM generate_series(1, 1000) i;
"#;

const CHANGES: &str = r#"
INSERT INTO number SELECT i, 'new', 0 FROM generate_series(3001, 3020) i;
UPDATE number SET note = note || '!' WHERE id BETWEEN -10 AND 19;
DELETE FROM number WHERE id BETWEEN 100 AND 109;
INSERT INTO uuids SELECT md5(i::text)::uuid, 'u' || i FROM generate_series(1001, 1005) i;
UPDATE uuids SET note = NULL WHERE note LIKE 'u9__';
DELETE FROM uuids WHERE note IN ('u7', 'u8');
INSERT INTO words VALUES ('new', 'x');
UPDATE words SET note = 'y' WHERE word IN ('w1', 'w2', 'w3');
DELETE FROM words WHERE word IN ('w10', 'w11');
UPDATE pairs SET note = 'p' WHERE a = 7;
DELETE FROM pairs WHERE a = 8 AND b = 'b3';
INSERT INTO keyless SELECT 'k1', date '2024-01-01' FROM generate_series(1, 3);
DELETE FROM keyless WHERE ctid IN (SELECT ctid FROM keyless WHERE note = 'k2' LIMIT 4);
UPDATE counted SET note = 'longer than before' WHERE id <= 5;
DELETE FROM counted WHERE id = 900;
UPDATE "Odd ""Name" SET "Val'ue" = '{}' WHERE "the key" = 5;
"#;

fn both(sides: (&Database, &Database), sql: &str) {
    sides.0.psql(sql).unwrap();
    sides.1.psql(sql).unwrap();
}

/// A pair of databases with the tables, of which the source has rows.
fn filled_pair() -> (Database, Database) {
    let (source, target) = (shared().unwrap(), shared().unwrap());
    both((&source, &target), TABLES);
    source.psql(ROWS).unwrap();
    (source, target)
}

/// All rows of a table as text, in order: equal texts are equal multisets.
fn rows(database: &Database, table: &str) -> String {
    database.psql(&format!("SELECT t::text FROM {table} t ORDER BY 1")).unwrap()
}

#[track_caller]
fn assert_same_rows((source, target): (&Database, &Database), tables: &[&str]) {
    for table in tables {
        assert_eq!(rows(source, table), rows(target, table), "{table}");
    }
}

/// What a run said, with everything applied.
#[track_caller]
fn delta(job: &Job, code: i32, more: &[&str]) -> Value {
    let ran = job.run(&[&["delta", "--json"], more].concat()).expect(code);
    serde_json::from_str(&ran.stdout).unwrap()
}

const APPLY: &[&str] = &["--deleted", "apply"];

/// Found rows of the classes new, modified, deleted, failed, unfiltered.
fn found(report: &Value, table: &str) -> [u64; 5] {
    let table = of_table(report, table);
    let class = |at: usize| table["classes"][at]["found"].as_u64().unwrap_or(0);
    [class(0), class(1), class(2), class(3), class(4)]
}

/// The same of those that were moved, or would be.
fn moved(report: &Value, table: &str) -> [u64; 5] {
    let table = of_table(report, table);
    [0, 1, 2, 3, 4].map(|at| table["classes"][at]["moved"].as_u64().unwrap())
}

fn of_table<'a>(report: &'a Value, table: &str) -> &'a Value {
    let tables = report["tables"].as_array().unwrap();
    tables.iter().find(|of| of["table"] == table).unwrap_or_else(|| panic!("{table}: {report}"))
}

#[test]
fn a_delta_moves_exactly_what_is_new_modified_and_deleted_since_the_last_run() {
    let (source, target) = filled_pair();
    let job = Job::new("delta", &source.url(), &target.url());
    let first = delta(&job, 0, &[]);
    assert_eq!(found(&first, "number"), [3001, 0, 0, 0, 0]);
    assert_same_rows((&source, &target), &NAMES);
    source.psql(CHANGES).unwrap();
    let seen = NAMES.map(|table| rows(&target, table));
    let dry = delta(&job, 0, &["--dry-run", "--deleted", "apply"]);
    assert_eq!(found(&dry, "number"), [20, 30, 10, 0, 0]);
    assert!(of_table(&dry, "number")["classes"][0]["bytes"].as_u64().unwrap() > 200);
    assert_eq!(NAMES.map(|table| rows(&target, table)), seen, "a dry run has written");
    let second = delta(&job, 0, APPLY);
    for (table, expected) in [
        ("number", [20, 30, 10, 0, 0]),
        ("uuids", [5, 100, 2, 0, 0]),
        ("words", [1, 3, 2, 0, 0]),
        ("pairs", [0, 20, 1, 0, 0]),
        ("keyless", [3, 0, 4, 0, 0]),
        ("counted", [0, 5, 1, 0, 0]),
        ("Odd \"Name", [0, 1, 0, 0, 0]),
    ] {
        assert_eq!(found(&second, table), expected, "{table}");
    }
    assert_same_rows((&source, &target), &NAMES);
    let third = delta(&job, 0, APPLY);
    for table in ["number", "keyless", "words"] {
        assert_eq!(found(&third, table), [0; 5], "{table}");
    }
    assert!(target.psql("SELECT count(*) FROM pg_temp.tidemark_rows").is_err());
}

#[test]
fn what_is_only_reported_or_skipped_is_found_again() {
    let (source, target) = filled_pair();
    let job = Job::new("kept", &source.url(), &target.url());
    delta(&job, 0, &[]);
    source.psql(CHANGES).unwrap();
    let seen = rows(&target, "number");
    let report = ["--new", "report", "--modified", "skip"];
    for _ in 0..2 {
        // Rows that are gone are only reported unless it is asked for.
        let told = delta(&job, 0, &report);
        assert_eq!(found(&told, "number"), [20, 0, 10, 0, 0]);
        assert_eq!(moved(&told, "number"), [0; 5], "nothing was moved");
        assert_eq!(of_table(&told, "number")["classes"][2]["action"], "report");
        assert_eq!(rows(&target, "number"), seen);
    }
    // Beside what is applied, too.
    let told = delta(&job, 0, &["--modified", "report"]);
    assert_eq!(found(&told, "number"), [20, 30, 10, 0, 0]);
    assert_eq!(moved(&told, "number"), [20, 0, 0, 0, 0]);
    let told = delta(&job, 0, APPLY);
    assert_eq!(found(&told, "number"), [0, 30, 10, 0, 0]);
    assert_eq!(moved(&told, "number"), [0, 30, 10, 0, 0]);
    assert_same_rows((&source, &target), &NAMES);
}

/// Some statement that changes some rows of some tables.
fn some_change(random: &mut StdRng) -> String {
    let (low, step) = (random.random_range(-1000..3000), random.random_range(1..40));
    let high = low + random.random_range(0..60);
    match random.random_range(0..10) {
        0 => format!(
            "INSERT INTO number SELECT i, 'r{step}', {step} FROM generate_series({low}, {high}) i ON CONFLICT DO NOTHING"
        ),
        1 => format!("UPDATE number SET note = note || {step} WHERE id BETWEEN {low} AND {high}"),
        2 => format!("DELETE FROM number WHERE id BETWEEN {low} AND {high}"),
        // Keys far away from all others.
        3 => {
            let away = random.random_range(1_i64..1_000_000) * 10_000;
            format!("UPDATE number SET id = id + {away} WHERE id BETWEEN {low} AND {high}")
        }
        4 => format!(
            "UPDATE words SET word = word || '-{step}' WHERE word IN (SELECT word FROM words ORDER BY md5(word || {step}) LIMIT 5)"
        ),
        5 => format!(
            "DELETE FROM words WHERE word IN (SELECT word FROM words ORDER BY md5(word || {step}) LIMIT 3)"
        ),
        6 => format!(
            "INSERT INTO keyless SELECT 'k' || {step} % 7, '2024-01-02' FROM generate_series(1, {step})"
        ),
        7 => format!(
            "DELETE FROM keyless WHERE ctid IN (SELECT ctid FROM keyless ORDER BY md5(ctid::text || {step}) LIMIT {step})"
        ),
        8 => format!(
            "UPDATE keyless SET note = 'k' || {step} % 9 WHERE ctid IN (SELECT ctid FROM keyless ORDER BY md5(ctid::text || {step}) LIMIT {step})"
        ),
        _ => format!(
            "INSERT INTO uuids SELECT md5({step}::text || i)::uuid, 'r' FROM generate_series(1, {step}) i ON CONFLICT DO NOTHING; DELETE FROM uuids WHERE note = 'u{high}'"
        ),
    }
}

#[test]
fn random_changes_between_runs_are_moved_exactly_also_with_runs_killed_in_between() {
    let seed = 0x6465_6c74;
    let mut random = StdRng::seed_from_u64(seed);
    let (source, target) = filled_pair();
    let job = Job::new("random", &source.url(), &target.url());
    let began = Instant::now();
    delta(&job, 0, APPLY);
    let whole = began.elapsed();
    let mut killed = 0;
    for round in 0..12 {
        for _ in 0..random.random_range(1..12) {
            let change = some_change(&mut random);
            source.psql(&change).unwrap();
        }
        if round % 3 < 2 {
            let moment = whole.mul_f64(random.random_range(0.05..0.7));
            let (mut running, began) = (job.start(&[&["delta"], APPLY].concat()), Instant::now());
            if reached(&mut running, || began.elapsed() >= moment) {
                running.signal(Signal::KILL);
                killed += 1;
            }
            let code = running.end().code;
            say(&format!("seed {seed:x}, round {round}: killed after {moment:?}: exit {code}"));
            sessions_end(side(&target));
        }
        if round % 3 > 0 {
            delta(&job, 0, APPLY);
            assert_same_rows((&source, &target), &NAMES);
        }
    }
    assert!(killed >= 3, "only {killed} runs were killed: they are too fast");
}

/// How the transaction of a table ends when it is about to say its generation.
fn break_generations(target: &Database) {
    target
        .psql(
            "CREATE FUNCTION tidemark.no() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_terminate_backend(pg_backend_pid()); RETURN NEW; END $$;
             CREATE TRIGGER no BEFORE INSERT OR UPDATE ON tidemark.delta FOR EACH ROW EXECUTE FUNCTION tidemark.no();
             ALTER TABLE tidemark.delta ENABLE ALWAYS TRIGGER no",
        )
        .unwrap();
}

#[test]
fn a_run_that_dies_between_the_file_and_the_commit_is_as_if_it_had_not_been() {
    let (source, target) = filled_pair();
    let job = Job::new("between", &source.url(), &target.url());
    delta(&job, 0, &[]);
    source.psql(CHANGES).unwrap();
    break_generations(&target);
    let seen = NAMES.map(|table| rows(&target, table));
    job.run(&[&["delta"], APPLY].concat()).expect(8);
    sessions_end(side(&target));
    assert_eq!(NAMES.map(|table| rows(&target, table)), seen);
    target.psql("DROP FUNCTION tidemark.no CASCADE").unwrap();
    assert_eq!(found(&delta(&job, 0, APPLY), "keyless"), [3, 0, 4, 0, 0]);
    assert_same_rows((&source, &target), &NAMES);
}

#[test]
fn a_run_elsewhere_moves_nothing_twice_and_says_the_way_out() {
    let (source, target) = filled_pair();
    let elsewhere = TempDir::new().unwrap();
    let one = Job::new("machines", &source.url(), &target.url());
    let other = Job::new("machines", &source.url(), &target.url())
        .state_at(&elsewhere.path().join("state"));
    delta(&one, 0, &[]);
    source.psql(CHANGES).unwrap();
    let told = delta(&other, 3, APPLY);
    let reason = of_table(&told, "keyless")["skipped_reason"].as_str().unwrap();
    assert!(reason.contains("--scan-target"), "{reason}");
    let told = delta(&other, 0, &["--scan-target", "--deleted", "apply"]);
    assert_eq!(found(&told, "keyless"), [3, 0, 4, 0, 0]);
    assert_same_rows((&source, &target), &NAMES);
    // Now the first one's files do not tell what the target has.
    source.psql("INSERT INTO keyless VALUES ('k1', '2024-01-01')").unwrap();
    let told = delta(&one, 3, APPLY);
    assert!(of_table(&told, "keyless")["skipped_reason"].is_string(), "{told}");
    assert_eq!(found(&delta(&other, 0, APPLY), "keyless"), [1, 0, 0, 0, 0]);
    assert_same_rows((&source, &target), &NAMES);
}

#[test]
fn two_machines_at_once_move_every_row_once() {
    let (source, target) = filled_pair();
    let elsewhere = TempDir::new().unwrap();
    let one = Job::new("at-once", &source.url(), &target.url());
    let other =
        Job::new("at-once", &source.url(), &target.url()).state_at(&elsewhere.path().join("state"));
    let hold = Blocker::start(&target, "LOCK TABLE keyless IN SHARE MODE");
    let mut first = one.start(&["delta"]);
    let waiting = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
    assert!(reached(&mut first, || target.psql(waiting).unwrap() == "1"), "{}", first.stderr());
    let mut second = other.start(&["delta"]);
    let both_write = reached(&mut second, || target.psql(waiting).unwrap() == "2");
    assert!(!both_write, "both are about to put the rows of a table without a key");
    second.end().expect(9).says(&["another instance", "way out"]);
    drop(hold);
    first.end().expect(0);
    assert_same_rows((&source, &target), &NAMES);
}

#[test]
fn rows_that_another_filter_lets_through_come_and_those_that_it_does_not_go() {
    let (source, target) = filled_pair();
    let with = |filter: &str| {
        format!(
            "[select]\ninclude = [\"public.number\", \"public.keyless\"]\n[[table]]\nname = \"public.number\"\nwhere = {filter:?}\n[[table]]\nname = \"public.keyless\"\nwhere = \"note <> 'k2' -- not these\"\n[snapshot]\nreaders = 2\n"
        )
    };
    let state = TempDir::new().unwrap();
    let job = |filter: &str| {
        Job::new("filters", &source.url(), &target.url())
            .configured(&with(filter))
            .state_at(&state.path().join("state"))
    };
    let number = |filter: &str| {
        let sql = format!("SELECT t::text FROM number t WHERE {filter} ORDER BY 1");
        source.psql(&sql).unwrap()
    };
    delta(&job("id < 1000"), 0, &[]);
    assert_eq!(rows(&target, "number"), number("id < 1000"));
    // Of those that are new some would have come under the old filter, too.
    source.psql("INSERT INTO number SELECT i, 'n', 0 FROM generate_series(-1100, -1051) i; INSERT INTO number VALUES (9000, 'n', 0); DELETE FROM number WHERE id IN (1, 2, 1500)").unwrap();
    let told = delta(&job("id < 1200 -- wider"), 0, &["--unfiltered", "report"]);
    assert_eq!(found(&told, "number"), [50, 0, 2, 0, 200]);
    // What was only reported is found again as what it is.
    let told = delta(&job("id < 1300"), 0, APPLY);
    assert_eq!(found(&told, "number"), [0, 0, 2, 0, 300]);
    assert_eq!(rows(&target, "number"), number("id < 1300"));
    let told = delta(&job("id < 0"), 0, &[]);
    assert_eq!(found(&told, "number"), [0, 0, 0, 0, 1298]);
    assert_eq!(rows(&target, "number"), number("id < 0"));
    assert_eq!(found(&told, "keyless"), [0; 5]);
    assert_eq!(target.psql("SELECT count(*) FROM keyless WHERE note = 'k2'").unwrap(), "0");
}

#[test]
fn rows_that_the_target_refuses_are_noted_and_tried_again_and_the_others_go_on() {
    let (source, target) = filled_pair();
    target.psql("ALTER TABLE number ADD CONSTRAINT small CHECK (id < 1990 AND note <> 'bad'); ALTER TABLE keyless ADD CONSTRAINT no_k3 CHECK (note <> 'k3')").unwrap();
    let job = Job::new("refused", &source.url(), &target.url());
    let told = delta(&job, 7, &[]);
    let number = of_table(&told, "number");
    assert_eq!(number["refused"], 11);
    assert_eq!(number["refusals"], serde_json::json!({"SQLSTATE 23514, constraint \"small\"": 11}));
    assert_eq!(number["classes"][0]["moved"], 3001 - 11);
    assert_same_rows((&source, &target), &["words", "uuids", "counted"]);
    assert_eq!(target.psql("SELECT count(*), max(id) FROM number").unwrap(), "2990|1989");
    source.psql("UPDATE number SET note = 'bad' WHERE id = 5; UPDATE number SET note = 'good' WHERE id = 6").unwrap();
    let told = delta(&job, 7, &["--failed", "skip"]);
    assert_eq!(found(&told, "number"), [0, 2, 0, 0, 0]);
    let told = delta(&job, 7, &[]);
    assert_eq!(found(&told, "number"), [0, 0, 0, 12, 0]);
    assert_eq!(
        target.psql("SELECT note FROM number WHERE id IN (5, 6) ORDER BY id").unwrap(),
        "n5\ngood"
    );
    target
        .psql("ALTER TABLE number DROP CONSTRAINT small; ALTER TABLE keyless DROP CONSTRAINT no_k3")
        .unwrap();
    source.psql("DELETE FROM number WHERE id = 2000").unwrap();
    let told = delta(&job, 0, &[]);
    // The one that has gone meanwhile never came.
    assert_eq!(found(&told, "number"), [0, 0, 0, 11, 0]);
    assert_same_rows((&source, &target), &NAMES);
}

#[test]
fn two_rows_that_swap_what_is_unique_are_both_moved() {
    let (source, target) = (shared().unwrap(), shared().unwrap());
    both(
        (&source, &target),
        "CREATE TABLE people (id int PRIMARY KEY, mail text UNIQUE DEFERRABLE INITIALLY DEFERRED)",
    );
    target.psql("ALTER TABLE people DROP CONSTRAINT people_mail_key; CREATE UNIQUE INDEX ON people (mail)").unwrap();
    source.psql("INSERT INTO people SELECT i, 'm' || i FROM generate_series(1, 9000) i").unwrap();
    let job = Job::new("swap", &source.url(), &target.url());
    delta(&job, 0, &[]);
    // Near each other, and so far away that the two come in different parts.
    source.psql("UPDATE people SET mail = 'm' || (9001 - id)").unwrap();
    delta(&job, 0, &[]);
    assert_same_rows((&source, &target), &["people"]);
}

#[test]
fn a_scan_of_the_target_mends_what_others_did_to_it_and_is_the_way_back_without_files() {
    let (source, target) = filled_pair();
    target.psql(ROWS).unwrap();
    target.psql("UPDATE number SET note = 'other' WHERE id = 3; DELETE FROM words WHERE word = 'w9'; INSERT INTO keyless VALUES ('extra', NULL); INSERT INTO words VALUES ('extra', NULL), ('more', NULL)").unwrap();
    let job = Job::new("scan", &source.url(), &target.url());
    // Nothing is known of the rows that are there: those with a key could be put in their places, the others not.
    let told = delta(&job, 3, &["--dry-run"]);
    assert!(
        of_table(&told, "keyless")["skipped_reason"].as_str().unwrap().contains("--scan-target")
    );
    let told = delta(&job, 0, &["--scan-target"]);
    assert_eq!(found(&told, "number"), [0, 1, 0, 0, 0]);
    assert_eq!(found(&told, "words"), [1, 0, 2, 0, 0]);
    assert_eq!(found(&told, "keyless"), [0, 0, 1, 0, 0]);
    // Rows that only were told of are known from there on.
    let told = delta(&job, 0, APPLY);
    assert_eq!(found(&told, "words"), [0, 0, 2, 0, 0]);
    assert_same_rows((&source, &target), &NAMES);
    // With the columns another way of hashing, too: what is known compares with nothing.
    both((&source, &target), "ALTER TABLE words ADD COLUMN more int DEFAULT 5");
    let told = delta(&job, 3, APPLY);
    assert!(of_table(&told, "words")["skipped_reason"].as_str().unwrap().contains("columns"));
    source.psql("UPDATE words SET more = 6 WHERE word = 'w1'").unwrap();
    assert_eq!(found(&delta(&job, 0, &["--scan-target"]), "words"), [0, 1, 0, 0, 0]);
    assert_same_rows((&source, &target), &NAMES);
}

#[test]
fn a_reset_forgets_what_was_moved_of_a_table() {
    let (source, target) = filled_pair();
    let job = Job::new("forget", &source.url(), &target.url());
    delta(&job, 0, &[]);
    target.psql("DELETE FROM number WHERE id < 0").unwrap();
    assert_eq!(found(&delta(&job, 0, &[]), "number"), [0; 5]);
    let ran = job.run(&["reset", "public.number", "--yes"]).expect(0);
    assert!(ran.stdout.contains("all new to the next tidemark delta"), "{}", ran.stdout);
    assert_eq!(found(&delta(&job, 0, &[]), "number"), [3001, 0, 0, 0, 0]);
    assert_same_rows((&source, &target), &NAMES);
    job.run(&["cleanup", "--yes"]).expect(0);
    assert_eq!(target.psql("SELECT to_regclass('tidemark.delta') IS NULL").unwrap(), "t");
}

#[test]
fn select_on_the_source_is_enough_and_tables_that_cannot_be_moved_are_named() {
    let (source, target) = filled_pair();
    source.psql("CREATE TABLE alone (id int PRIMARY KEY)").unwrap();
    both((&source, &target), "CREATE TABLE narrow (id int PRIMARY KEY, gone text)");
    target
        .psql("ALTER TABLE narrow DROP COLUMN gone; ALTER TABLE words DROP CONSTRAINT words_pkey")
        .unwrap();
    let role = format!("reader_{}", source.name());
    source.psql(&format!("CREATE ROLE {role} LOGIN PASSWORD 'x'; GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role}")).unwrap();
    let url = source.cluster().url_as(&role, "x", source.name());
    let job = Job::new("reader", &url, &target.url());
    let told = delta(&job, 3, &[]);
    for (table, because) in
        [("alone", "does not have it"), ("narrow", "\"gone\""), ("words", "unique key over (word)")]
    {
        let reason = of_table(&told, table)["skipped_reason"].as_str().unwrap();
        assert!(reason.contains(because), "{table}: {reason}");
    }
    assert_same_rows((&source, &target), &["number", "uuids", "pairs", "keyless", "counted"]);
    source.psql(&format!("DROP OWNED BY {role}; DROP ROLE {role}")).unwrap();
}
