//! Row filters of a job that follows: in the publication, and so the same rows in the copy and in the stream.
//!
//! **Invariant:** what the target has is compared with what the source gives for the filter, and by `verify`, after every
//! step.

use rustix::process::Signal;
use tempfile::TempDir;
use tidemark_testkit::{Cluster, Version, lake, shared};

use crate::follow::{Pair, drop_origin, follows};
use crate::joining::Open;
use crate::support::{Job, files_below, side, wait_until};

const CROWD: &str = "CREATE TABLE crowd (id integer PRIMARY KEY, legs integer, note text); \
    INSERT INTO crowd SELECT i, i % 5, 'n' || i FROM generate_series(1, 2000) i; \
    CREATE TABLE other (id integer PRIMARY KEY); INSERT INTO other SELECT generate_series(1, 10);";

/// The filter is over the key, and a value lies out of line.
const PLACED: &str = "CREATE TABLE placed (id integer, region text, body text, none text, PRIMARY KEY (id, region)); \
    ALTER TABLE placed ALTER body SET STORAGE EXTERNAL; \
    INSERT INTO placed SELECT i, CASE WHEN i % 2 = 0 THEN 'eu' ELSE 'us' END, repeat(md5(i::text), 200) FROM generate_series(1, 200) i;";

/// A job over the tables of these tests, with what stands in `[[table]]`.
fn job(pair: &Pair, table: &str) -> Job {
    let is_placed = pair.name() == "placed";
    let select =
        if is_placed { "[\"public.placed\"]" } else { "[\"public.crowd\", \"public.other\"]" };
    let select = format!("[select]\ninclude = {select}\n");
    pair.job().configured(&format!("{select}{table}"))
}

fn only(table: &str, filter: &str) -> String {
    format!("[[table]]\nname = \"public.{table}\"\nwhere = \"{filter}\"\n")
}

/// Brings the target up to now and compares: by digest, and with what the source itself gives.
#[track_caller]
fn in_step(pair: &Pair, job: &Job, (table, filter): (&str, &str)) {
    job.run(&["sync", "--until", "now"]).expect(0);
    same_rows(pair, (table, filter));
    let verified = job.run(&["verify"]).expect(0);
    assert!(verified.stdout.contains("identical"), "{}", verified.stdout);
}

#[track_caller]
fn same_rows(pair: &Pair, (table, filter): (&str, &str)) {
    let rows = |filter: &str| {
        format!(
            "SELECT count(*) || ' ' || coalesce(md5(string_agg(t::text, ';' ORDER BY t::text)), '-') FROM {table} t WHERE {filter}"
        )
    };
    assert_eq!(pair.target.psql(&rows("true")).unwrap(), pair.source.psql(&rows(filter)).unwrap());
}

/// A publication has row filters from 15 on.
fn knows_filters() -> bool {
    Version::from_env() >= Version::V15
}

#[test]
fn a_row_filter_is_followed_and_changes_of_it_are_refused_until_the_table_joins_anew() {
    let pair = Pair::new("filtered");
    pair.source.psql(CROWD).unwrap();
    let filtered = || job(&pair, &only("crowd", "legs > 2 -- two"));
    if !knows_filters() {
        let check = filtered().run(&["check"]).expect(5);
        assert!(check.stdout.contains("from PostgreSQL 15 on"), "{}", check.stdout);
        return;
    }
    // The key alone would not say on which side of the filter a changed row was.
    let check = filtered().run(&["check"]).expect(5);
    for part in ["legs", "public\".\"crowd\" REPLICA IDENTITY FULL"] {
        assert!(check.stdout.contains(part), "no {part} in {}", check.stdout);
    }
    filtered().run(&["sync", "--until", "now"]).expect(5).says(&["crowd", "legs"]);
    pair.source.psql("UPDATE crowd SET legs = 4 WHERE id = 1").unwrap();

    pair.source.psql("ALTER TABLE crowd REPLICA IDENTITY FULL").unwrap();
    let state = TempDir::new().unwrap();
    let filtered = filtered().state_at(state.path());
    filtered.run(&["check"]).expect(0);
    in_step(&pair, &filtered, ("crowd", "legs > 2"));
    pair.source
        .psql(
            "INSERT INTO crowd SELECT i, i % 5, 'new' FROM generate_series(3001, 3100) i; \
             UPDATE crowd SET legs = 3 - legs WHERE id % 7 = 0; UPDATE crowd SET note = 'x' WHERE id % 11 = 0; \
             UPDATE crowd SET id = id + 10000 WHERE id % 13 = 0; DELETE FROM crowd WHERE id % 17 = 0; \
             UPDATE crowd SET legs = NULL WHERE id % 19 = 0",
        )
        .unwrap();
    in_step(&pair, &filtered, ("crowd", "legs > 2"));

    // Another filter, or none, is not what the target has.
    for (table, says) in
        [(only("crowd", "legs > 3"), "has other rows"), (String::new(), "leaves out rows")]
    {
        let other = job(&pair, &table).state_at(state.path());
        other.run(&["sync", "--until", "now"]).expect(6).says(&[
            says,
            "legs > 2",
            "reset public.crowd",
        ]);
    }
    in_step(&pair, &filtered, ("crowd", "legs > 2"));
    let wider = job(&pair, &only("crowd", "legs > 1")).state_at(state.path());
    wider.run(&["reset", "public.crowd", "--yes"]).expect(0);
    in_step(&pair, &wider, ("crowd", "legs > 1"));
    pair.source.psql("UPDATE crowd SET legs = 2 WHERE legs = 0; TRUNCATE other").unwrap();
    in_step(&pair, &wider, ("crowd", "legs > 1"));
    same_rows(&pair, ("other", "true"));
    let all = job(&pair, "").state_at(state.path());
    all.run(&["reset", "public.crowd", "--yes"]).expect(0);
    in_step(&pair, &all, ("crowd", "true"));
}

#[test]
fn a_filter_that_cannot_be_published_is_a_finding_and_a_given_publication_has_to_have_it() {
    if !knows_filters() {
        return;
    }
    let pair = Pair::new("unfit");
    pair.source.psql(CROWD).unwrap();
    let check = job(&pair, &only("crowd", "id > random()")).run(&["check"]).expect(5);
    assert!(check.stdout.contains("cannot be published"), "{}", check.stdout);
    assert_eq!(pair.source.psql("SELECT count(*) FROM pg_publication").unwrap(), "0");
    pair.source
        .psql("CREATE PUBLICATION made FOR TABLE ONLY crowd WHERE (id < 500), other")
        .unwrap();
    let given = |filter| job(&pair, &only("crowd", filter)).of_source("publication = \"made\"");
    given("id < 600")
        .run(&["sync", "--until", "now"])
        .expect(2)
        .says(&["has other rows", "id < 500"]);
    let state = TempDir::new().unwrap();
    let fits = given("(crowd.id) < 500").state_at(state.path());
    in_step(&pair, &fits, ("crowd", "id < 500"));
    // A publication of the whole schema has all rows, whatever it says of the table.
    let schema = |what: &str| {
        pair.source.psql(&format!("ALTER PUBLICATION made {what} TABLES IN SCHEMA public"))
    };
    schema("ADD").unwrap();
    pair.source.psql("INSERT INTO crowd VALUES (9001, 1, 'not wanted')").unwrap();
    fits.run(&["sync", "--until", "now"]).expect(6).says(&["has all rows", "id"]);
    schema("DROP").unwrap();
    same_rows(&pair, ("crowd", "id < 500"));
}

/// The server sends a transaction as soon as its commit is in the WAL, and shows it when its standby has answered.
#[test]
fn a_value_that_was_not_sent_is_read_when_the_source_shows_the_transaction() {
    if !knows_filters() {
        return;
    }
    let source = Cluster::start_default().unwrap();
    source.create_database("shop").unwrap();
    source.psql("shop", PLACED).unwrap();
    let target = shared().unwrap();
    let select = "[select]\ninclude = [\"public.placed\"]\n";
    let job = Job::new("unseen", &source.url("shop"), &target.url())
        .configured(&format!("{select}{}", only("placed", "region = 'eu'")));
    let mut running = job.start(&["sync"]);
    follows(&mut running, &target, "unseen");
    source.psql("postgres", "ALTER SYSTEM SET synchronous_standby_names = 'nobody'").unwrap();
    source.psql("postgres", "SELECT pg_reload_conf()").unwrap();
    // What is seen until then has another row under the new key.
    let moves = "SET synchronous_commit = on; BEGIN; DELETE FROM placed WHERE id = 2; \
        UPDATE placed SET id = 2, region = 'eu' WHERE id = 1; COMMIT";
    let mut moving = source.psql_command("shop").args(["-c", moves]).spawn().unwrap();
    let asked = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep' \
        OR query LIKE '%pg_xact_status%' AND pid <> pg_backend_pid() AND datname = 'shop'";
    wait_until("it is sent and not shown", || source.psql("postgres", asked).unwrap() == "2");
    let body = "SELECT left(body, 32) FROM placed WHERE id = 2";
    assert_eq!(target.psql(body).unwrap(), "c81e728d9d4c2f636f067f89cc14862c");
    source.psql("postgres", "ALTER SYSTEM RESET synchronous_standby_names").unwrap();
    source.psql("postgres", "SELECT pg_reload_conf()").unwrap();
    assert!(moving.wait().unwrap().success());
    wait_until("the row is there", || {
        target.psql(body).unwrap() == "c4ca4238a0b923820dcc509a6f75849b"
    });
    running.signal(Signal::TERM);
    running.end().expect(0);
    target.psql(&drop_origin("unseen")).unwrap();
}

/// An UPDATE that moves a row into the filter arrives as the INSERT of a row whose large value was not sent.
#[test]
fn large_values_of_rows_that_come_into_a_filter_are_read_from_the_source() {
    if !knows_filters() {
        return;
    }
    let pair = Pair::new("placed");
    pair.source.psql(PLACED).unwrap();
    let state = TempDir::new().unwrap();
    let job = job(&pair, &only("placed", "region = 'eu'")).state_at(state.path());
    in_step(&pair, &job, ("placed", "region = 'eu'"));
    let moves =
        |ids: &str| format!("UPDATE placed SET region = 'eu' WHERE region = 'us' AND id {ids}");
    pair.source.psql(&moves("< 40")).unwrap();
    in_step(&pair, &job, ("placed", "region = 'eu'"));
    // What is newer on the source comes later in the stream, too.
    pair.source.psql(&moves("= 41")).unwrap();
    pair.source.psql("UPDATE placed SET body = 'short', none = 'some' WHERE id = 41").unwrap();
    in_step(&pair, &job, ("placed", "region = 'eu'"));
    // Moved again, it cannot be read: nothing is guessed.
    pair.source.psql(&moves("= 43")).unwrap();
    pair.source.psql("UPDATE placed SET region = 'us' WHERE id = 43").unwrap();
    let ran = job.run(&["sync", "--until", "now"]).expect(7);
    let ran = ran.says(&["\"placed\"", "body", "reset public.placed --yes"]);
    assert!(
        !ran.stderr.contains(&"17e62166fc8586dfa4d1bc0e1742c08b"[..8]),
        "a value is in the message"
    );
    job.run(&["reset", "public.placed", "--yes"]).expect(0);
    in_step(&pair, &job, ("placed", "region = 'eu'"));
}

/// A spool begins before what the target has of it: rows come again that the source may not have any more. With so little
/// memory it has to be gone to all the same.
#[test]
fn what_the_target_has_already_is_not_read_again_after_a_kill() {
    if !knows_filters() {
        return;
    }
    let pair = Pair::new("placed");
    pair.source.psql(PLACED).unwrap();
    pair.source.psql("CREATE TABLE before (id integer PRIMARY KEY, body text)").unwrap();
    pair.source.psql("CREATE TABLE behind (id integer PRIMARY KEY, body text)").unwrap();
    let select = "[select]\ninclude = [\"public.placed\", \"public.be*\"]\n\
        [stream]\nbatch_bytes = \"64KiB\"\ncatch_up = false\n\
        [limits]\nmemory = \"16MiB\"\nsource_wal = \"16MiB\"\n";
    let job = pair.job().configured(&format!("{select}{}", only("placed", "region = 'eu'")));
    job.run(&["sync", "--until", "now"]).expect(0);
    let running = job.start(&["sync"]);
    let moves = |id: u32| format!("UPDATE placed SET region = 'eu' WHERE id = {id}");
    let is_there = |id: u32| {
        let there = format!("SELECT count(*) FROM placed WHERE id = {id}");
        pair.target.psql(&there).unwrap() == "1"
    };
    pair.source.psql(&moves(41)).unwrap();
    wait_until("it follows", || is_there(41));
    let blocked = |name: &'static str, table: &str| {
        let lock = format!("LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE; SELECT txid_current()");
        Open::begin(&pair.target, name, &lock)
    };
    let (before, behind) = (blocked("blocks before", "before"), blocked("blocks behind", "behind"));
    let bulk = |table: &str| {
        let sql = format!(
            "DO $$ BEGIN FOR t IN 0..599 LOOP INSERT INTO {table} SELECT t * 100 + i, repeat(md5(i::text), 40) \
             FROM generate_series(1, 100) i; COMMIT; END LOOP; END $$"
        );
        pair.source.psql(&sql).unwrap();
    };
    bulk("before");
    let spool = job.path().join("state").join("spool");
    wait_until("there is a spool", || {
        spool.exists() && files_below(&spool).iter().any(|file| file.ends_with(".seg"))
    });
    pair.source.psql(&moves(43)).unwrap();
    // It fills the batch, which would otherwise wait for the first change behind it.
    pair.source.psql("UPDATE before SET body = body || 'x' WHERE id <= 200").unwrap();
    bulk("behind");
    drop(before);
    wait_until("the row came out of the spool", || is_there(43));
    running.signal(Signal::KILL);
    running.end();
    drop(behind);
    pair.source.psql("UPDATE placed SET region = 'us' WHERE id = 43").unwrap();
    in_step(&pair, &job, ("placed", "region = 'eu'"));
    same_rows(&pair, ("before", "true"));
    same_rows(&pair, ("behind", "true"));
}

#[test]
fn a_lake_has_the_rows_of_the_filter_with_values_that_were_not_sent() {
    if !knows_filters() {
        return;
    }
    let pair = Pair::new("lakefilter");
    pair.source.psql(PLACED).unwrap();
    let root = TempDir::new().unwrap();
    let url = format!("file://{}", root.path().join("lake").display());
    let select = "[select]\ninclude = [\"public.placed\"]\n";
    let job = Job::new(pair.name(), &pair.source.url(), &url)
        .configured(&format!("{select}{}", only("placed", "region = 'eu'")));
    job.run(&["sync", "--until", "now"]).expect(0);
    pair.source.psql("UPDATE placed SET region = CASE region WHEN 'us' THEN 'eu' ELSE 'us' END WHERE id < 50").unwrap();
    job.run(&["sync", "--until", "now"]).expect(0);
    let read = shared().unwrap();
    read.psql(PLACED.split("ALTER").next().unwrap()).unwrap();
    lake::load(&root.path().join("lake"), side(&read)).unwrap();
    let rows = |filter: &str| {
        format!(
            "SELECT count(*) || md5(string_agg(t::text, ';' ORDER BY t::text)) FROM placed t WHERE {filter}"
        )
    };
    assert_eq!(
        read.psql(&rows("true")).unwrap(),
        pair.source.psql(&rows("region = 'eu'")).unwrap()
    );
}
