//! What happens to a job while it follows: changed definitions, very large transactions, idle tables on a busy server, and
//! what monitoring is told.
//!
//! **Invariant:** a state is waited for on the servers or over HTTP, never a time.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};

use rustix::process::Signal;
use tempfile::TempDir;
use tidemark_testkit::proxy::{Cut, Direction, Fault, Proxy};
use tidemark_testkit::{Cluster, Version, shared};

use crate::follow::{Pair, follows, passes};
use crate::support::{Job, Running, reached, wait_until};

#[test]
fn new_columns_are_carried_over_and_a_lost_one_stops_the_job() {
    let pair = Pair::new("altered");
    let job = pair.job();
    let mut running = job.start(&["sync"]);
    follows(&mut running, &pair.target, "altered");
    pair.source
        .psql(
            "BEGIN; ALTER TABLE pet ADD note text, ADD rank integer DEFAULT 7; \
             UPDATE pet SET note = 'first' WHERE id = (SELECT min(id) FROM pet); COMMIT; \
             UPDATE pet SET rank = 8 WHERE id = (SELECT max(id) FROM pet)",
        )
        .unwrap();
    passes(&mut running, &pair.source, &pair.target);
    pair.assert_equal();
    let values = "SELECT count(note), count(*) FILTER (WHERE rank = 7) > 0, max(rank) FROM pet";
    assert_eq!(pair.target.psql(values).unwrap(), "1|t|8");
    pair.source
        .psql("ALTER TABLE pet DROP COLUMN note; UPDATE pet SET rank = 9 WHERE rank = 8")
        .unwrap();
    let ended = running.end().expect(7);
    assert!(ended.error().contains("pet") && ended.error().contains("note"), "{}", ended.stderr);
    // The way out that the message names.
    pair.target.psql("ALTER TABLE pet DROP COLUMN note").unwrap();
    job.run(&["sync", "--until", "now"]).expect(0);
    pair.assert_equal();
}

#[test]
fn a_followed_lake_is_told_of_generated_columns_before_anything_moves() {
    let pair = Pair::new("computed");
    let lake = TempDir::new().unwrap();
    let url = format!("file://{}/lake", lake.path().display());
    let job = || Job::new("computed", &pair.source.url(), &url);
    let check = job().run(&["check"]).expect(5);
    assert!(check.stdout.contains("\"pet\".\"twice\""), "{}", check.stdout);
    assert!(
        check.stdout.contains(r#"columns = ["id", "mood", "tags", "legs"]"#),
        "{}",
        check.stdout
    );
    job().run(&["sync", "--until", "now"]).expect(5);
    assert!(!lake.path().join("lake").exists());
    job().run(&["check", "--snapshot-only"]).expect(0);
    // The way out that the finding names.
    let columns =
        "[[table]]\nname = \"public.pet\"\ncolumns = [\"id\", \"mood\", \"tags\", \"legs\"]\n";
    let job = job().configured(columns);
    job.run(&["sync", "--until", "now"]).expect(0);
    pair.source.psql("UPDATE pet SET legs = legs + 1 WHERE id = 1").unwrap();
    job.run(&["sync", "--until", "now"]).expect(0);
    let changed = std::fs::read_dir(lake.path().join("lake/public/pet/changes")).unwrap().count();
    assert_eq!(changed, 1);
}

#[test]
fn stored_columns_that_a_publication_of_18_has_are_followed_into_a_lake() {
    let source = Cluster::builder().version(Version::V18).start().unwrap();
    source.create_database("shop").unwrap();
    let make = "CREATE TABLE t (id integer PRIMARY KEY, twice integer GENERATED ALWAYS AS (id * 2) STORED); \
        INSERT INTO t VALUES (1); \
        CREATE PUBLICATION by_dba FOR TABLE t WITH (publish_generated_columns = stored)";
    source.psql("shop", make).unwrap();
    let lake = TempDir::new().unwrap();
    let url = format!("file://{}/lake", lake.path().display());
    let job = Job::new("stored", &source.url("shop"), &url).of_source("publication = \"by_dba\"");
    job.run(&["sync", "--until", "now"]).expect(0);
    source.psql("shop", "INSERT INTO t VALUES (7); UPDATE t SET id = 8 WHERE id = 1").unwrap();
    let ran = job.run(&["sync", "--until", "now", "--json"]).expect(0);
    assert!(
        ran.stdout.contains("\"changes\":2") || ran.stdout.contains("\"changes\": 2"),
        "{}",
        ran.stdout
    );
    // A virtual one no publication has.
    source.psql("shop", "ALTER TABLE t ADD thrice integer GENERATED ALWAYS AS (id * 3)").unwrap();
    let check = Job::new("virtual", &source.url("shop"), &format!("{url}2"));
    let check = check.of_source("publication = \"by_dba\"").run(&["check"]).expect(5);
    assert!(
        check.stdout.contains("\"thrice\"") && !check.stdout.contains("\"t\".\"twice\""),
        "{}",
        check.stdout
    );
}

#[test]
fn a_table_that_stops_lets_the_others_go_on_and_joins_again_by_reset() {
    let pair = Pair::new("halts");
    let job = pair.job().configured("[stream]\nddl = \"stop-table\"\n");
    let mut running = job.start(&["sync"]);
    follows(&mut running, &pair.target, "halts");
    passes(&mut running, &pair.source, &pair.target);
    let legs = "SELECT legs FROM pet WHERE id = 1";
    let before = pair.target.psql(legs).unwrap();
    pair.source
        .psql(
            "ALTER TABLE pet DROP COLUMN tags; UPDATE pet SET legs = legs + 10 WHERE id = 1; \
             INSERT INTO region VALUES (77, 'goes on', '')",
        )
        .unwrap();
    let goes_on = "SELECT count(*) FROM region WHERE r_regionkey = 77";
    let is_there = reached(&mut running, || pair.target.psql(goes_on).is_ok_and(|n| n == "1"));
    assert!(is_there, "{}", running.stderr());
    running.signal(Signal::TERM);
    running.end().expect(7).says(&["pet", "tags", "reset public.pet"]);
    assert_eq!(pair.target.psql(legs).unwrap(), before);
    // Made by hand, it fits again: what the table has missed meanwhile must not be forgotten for that.
    pair.target.psql("ALTER TABLE pet DROP COLUMN tags").unwrap();
    pair.source.psql("UPDATE pet SET legs = legs + 10 WHERE id = 2").unwrap();
    job.run(&["sync", "--until", "now"]).expect(7).says(&["pet", "tags"]);
    assert_eq!(pair.target.psql(legs).unwrap(), before);
    let stands = "SELECT state || ' ' || (stopped_lsn < end_lsn) FROM tidemark.relation r JOIN tidemark.progress USING (job) WHERE relation_name = 'pet'";
    assert_eq!(pair.target.psql(stands).unwrap(), "stopped true");
    let status = job.status().unwrap();
    let said = status["last_error"].as_str().unwrap_or_default();
    assert!(said.contains("stopped") && said.contains("tags"), "{status}");
    job.run(&["reset", "public.pet", "--yes"]).expect(0);
    job.run(&["sync", "--until", "now"]).expect(0);
    pair.assert_equal();
}

#[test]
fn a_default_that_is_no_constant_stops_the_job_and_keeps_the_position() {
    let pair = Pair::new("volatile");
    let job = pair.job();
    let mut running = job.start(&["sync"]);
    follows(&mut running, &pair.target, "volatile");
    pair.source
        .psql("ALTER TABLE pet ADD born timestamptz DEFAULT clock_timestamp(); UPDATE pet SET legs = legs")
        .unwrap();
    let ended = running.end().expect(7);
    assert!(ended.error().contains("born"), "{}", ended.stderr);
    let columns = "SELECT count(*) FROM information_schema.columns WHERE table_name = 'pet' AND column_name = 'born'";
    assert_eq!(pair.target.psql(columns).unwrap(), "0");
}

#[test]
fn a_transaction_far_larger_than_memory_arrives_whole() {
    let pair = Pair::new("large");
    pair.source.psql("CREATE TABLE bulk (id bigint PRIMARY KEY, body text NOT NULL)").unwrap();
    let job = pair.job().configured("[limits]\nmemory = \"16MiB\"\n");
    job.run(&["sync", "--until", "now"]).expect(0);
    pair.source
        .psql(
            "BEGIN; INSERT INTO bulk SELECT i, repeat(md5(i::text), 8) FROM generate_series(1, 120000) i; \
             SAVEPOINT s; INSERT INTO bulk SELECT -i, 'rolled back' FROM generate_series(1, 5000) i; ROLLBACK TO s; \
             UPDATE bulk SET body = 'changed' WHERE id % 10 = 0; DELETE FROM bulk WHERE id % 7 = 0; COMMIT",
        )
        .unwrap();
    job.run(&["sync", "--until", "now"]).expect(0);
    pair.assert_equal();
    assert_eq!(pair.target.psql("SELECT count(*) FROM bulk WHERE id < 0").unwrap(), "0");
    // The source was told before the job ended, although the slot was not moved by reading its WAL again.
    let stored = pair.target.psql("SELECT end_lsn FROM tidemark.progress").unwrap();
    let told = format!(
        "SELECT confirmed_flush_lsn = '{stored}' FROM pg_replication_slots WHERE slot_name = 'tidemark_large'"
    );
    assert_eq!(pair.source.psql(&told).unwrap(), "t");
}

/// Once the first part of a transaction is on the target nothing but its changes can go there.
#[test]
fn a_new_column_that_first_shows_in_the_middle_of_a_huge_transaction_is_carried_over() {
    let pair = Pair::new("columns");
    let setup = "CREATE TABLE bulk (id bigint PRIMARY KEY, body text NOT NULL); \
        CREATE TABLE small (id bigint PRIMARY KEY, body text NOT NULL)";
    pair.source.psql(setup).unwrap();
    let job = pair.job().configured("[limits]\nmemory = \"16MiB\"\n");
    job.run(&["sync", "--until", "now"]).expect(0);
    pair.source
        .psql(
            "ALTER TABLE small ADD COLUMN note text; \
             BEGIN; INSERT INTO small VALUES (0, 'before'); \
             INSERT INTO bulk SELECT i, repeat(md5(i::text), 8) FROM generate_series(1, 120000) i; \
             ALTER TABLE bulk ADD COLUMN level integer DEFAULT 7; \
             INSERT INTO bulk VALUES (0, 'later', 8); INSERT INTO small VALUES (1, 'a', 'noted'); COMMIT",
        )
        .unwrap();
    job.run(&["sync", "--until", "now"]).expect(0);
    pair.assert_equal();
}

/// A job whose source sends so slowly that a part of a huge transaction is on the target while the rest still comes.
#[track_caller]
fn coming(pair: &Pair, proxy: &Proxy) -> (Job, Running) {
    pair.source.psql("CREATE TABLE bulk (id bigint PRIMARY KEY, body text NOT NULL)").unwrap();
    let job = Job::new(pair.name(), &proxy.url(&pair.source.url()), &pair.target.url())
        .configured("[limits]\nmemory = \"16MiB\"\n");
    job.run(&["sync", "--until", "now"]).expect(0);
    let insert =
        "INSERT INTO bulk SELECT i, repeat(md5(i::text), 8) FROM generate_series(1, 200000) i";
    pair.source.psql(insert).unwrap();
    proxy.fault(Direction::ToClient, Fault::Throttle(4_000_000));
    let mut running = job.start(&["sync", "--until", "now"]);
    // Rows that nobody sees yet take room all the same.
    let has_some = || pair.target.psql("SELECT pg_relation_size('bulk') > 2000000").unwrap() == "t";
    assert!(reached(&mut running, has_some), "{}", running.stderr());
    assert_eq!(pair.target.psql("SELECT count(*) FROM bulk").unwrap(), "0");
    (job, running)
}

#[test]
fn a_huge_transaction_whose_connection_is_cut_while_it_is_applied_begins_again() {
    let pair = Pair::new("ahead");
    let proxy = Proxy::start(pair.source.cluster()).unwrap();
    let (_job, running) = coming(&pair, &proxy);
    proxy.heal();
    proxy.cut_all(Cut::Rst);
    let ran = running.end().expect(0);
    ran.says(&["interrupted in the middle of it"]);
    pair.assert_equal();
}

#[test]
fn a_stop_does_not_wait_for_a_huge_transaction_that_is_coming() {
    let pair = Pair::new("halted");
    let proxy = Proxy::start(pair.source.cluster()).unwrap();
    let (job, running) = coming(&pair, &proxy);
    proxy.fault(Direction::ToClient, Fault::BlackHole);
    running.signal(Signal::TERM);
    running.end();
    proxy.heal();
    assert_eq!(pair.target.psql("SELECT count(*) FROM bulk").unwrap(), "0");
    job.run(&["sync", "--until", "now"]).expect(0);
    pair.assert_equal();
}

#[test]
fn a_busy_server_with_idle_tables_of_ours_keeps_no_wal_for_us() {
    let pair = Pair::new("idle");
    let job = pair.job();
    let mut running = job.start(&["sync"]);
    follows(&mut running, &pair.target, "idle");
    pair.source
        .psql(
            "CREATE TABLE others AS SELECT i, repeat(md5(i::text), 20) AS body FROM generate_series(1, 90000) i; \
             UPDATE others SET i = -i",
        )
        .unwrap();
    let behind = "SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), confirmed_flush_lsn) < 20000000 \
        FROM pg_replication_slots WHERE slot_name = 'tidemark_idle'";
    let moved = reached(&mut running, || pair.source.psql(behind).is_ok_and(|is| is == "t"));
    assert!(moved, "{}", running.stderr());
    running.signal(Signal::TERM);
    running.end().expect(0);
    pair.source.psql("DROP TABLE others").unwrap();
    // What was acknowledged is stored on the target, too: the next run accepts the slot.
    job.run(&["sync", "--until", "now"]).expect(0);
    pair.assert_equal();
}

#[test]
fn an_unlogged_table_is_copied_once_and_does_not_stop_the_next_run() {
    let pair = Pair::new("unlogged");
    pair.source.psql("CREATE UNLOGGED TABLE scratch AS SELECT generate_series(1, 7) AS i").unwrap();
    let job = pair.job();
    job.run(&["sync", "--until", "now"]).expect(0);
    pair.source.psql("UPDATE pet SET legs = 5 WHERE id = (SELECT min(id) FROM pet)").unwrap();
    job.run(&["sync", "--until", "now"]).expect(0);
    pair.assert_equal();
    assert_eq!(pair.target.psql("SELECT count(*) FROM scratch").unwrap(), "7");
}

#[test]
fn an_unlogged_table_that_becomes_logged_is_not_taken_for_whole() {
    // Added to the publication by hand, its changes come from then on, without those before.
    for (name, by_hand) in [("nowlogged", false), ("byhand", true)] {
        let pair = Pair::new(name);
        pair.source
            .psql("CREATE UNLOGGED TABLE scratch (id integer PRIMARY KEY); INSERT INTO scratch VALUES (1), (2)")
            .unwrap();
        let job = pair.job();
        job.run(&["sync", "--until", "now"]).expect(0);
        pair.source
            .psql("DELETE FROM scratch WHERE id = 1; INSERT INTO scratch VALUES (3); ALTER TABLE scratch SET LOGGED")
            .unwrap();
        if by_hand {
            pair.source.psql("ALTER PUBLICATION tidemark_byhand ADD TABLE ONLY scratch").unwrap();
        }
        pair.source.psql("INSERT INTO scratch VALUES (4)").unwrap();
        job.run(&["sync", "--until", "now"])
            .expect(2)
            .says(&["scratch", "tidemark reset public.scratch --yes"]);
        job.run(&["reset", "public.scratch", "--yes"]).expect(0);
        job.run(&["sync", "--until", "now"]).expect(0);
        pair.source.psql("INSERT INTO scratch VALUES (5)").unwrap();
        job.run(&["sync", "--until", "now"]).expect(0);
        pair.assert_equal();
    }
}

#[test]
fn a_prepared_transaction_that_keeps_wal_is_named_by_the_status() {
    // A cluster of its own: who makes a slot elsewhere would wait for the transaction.
    let source = Cluster::start_default().unwrap();
    source.create_database("shop").unwrap();
    source.psql("shop", "CREATE TABLE pet (id integer PRIMARY KEY)").unwrap();
    let target = shared().unwrap();
    let job = Job::new("named", &source.url("shop"), &target.url());
    let mut running = job.start(&["sync"]);
    follows(&mut running, &target, "named");
    assert!(job.status().unwrap()["retained_by_others"].is_null());
    source.psql("shop", "BEGIN; INSERT INTO pet VALUES (1); PREPARE TRANSACTION 'stuck'").unwrap();
    source
        .psql(
            "shop",
            "CREATE TABLE others AS SELECT i, repeat(md5(i::text), 20) AS body FROM generate_series(1, 150000) i",
        )
        .unwrap();
    let told = |job: &Job| job.status().map(|status| status["retained_by_others"].clone());
    let is_named = reached(&mut running, || {
        told(&job).is_some_and(|told| told.as_str().is_some_and(|told| told.contains("'stuck'")))
    });
    assert!(is_named, "{}", running.stderr());
    source.psql("shop", "COMMIT PREPARED 'stuck'").unwrap();
    let is_over = reached(&mut running, || {
        // The server lets WAL go after it has noted its running transactions.
        source.psql("shop", "CHECKPOINT").unwrap();
        told(&job).is_some_and(|told| told.is_null())
    });
    assert!(is_over, "{}", running.stderr());
    running.signal(Signal::TERM);
    running.end().expect(0);
    assert_eq!(target.psql("SELECT count(*) FROM pet").unwrap(), "1");
}

/// Sends a request as it stands and gives the whole answer.
fn ask(address: SocketAddr, request: &str) -> Option<String> {
    let mut stream = TcpStream::connect(address).ok()?;
    stream.write_all(request.as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    Some(answer)
}

fn get(address: SocketAddr, path: &str) -> String {
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\n\r\n");
    ask(address, &request).unwrap_or_default()
}

#[test]
fn monitoring_is_told_the_lag_and_nobody_can_change_anything() {
    let pair = Pair::new("served");
    // Free now; another process that takes it in between would be told by exit code 2.
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let job = pair.job().configured(&format!("[serve]\nlisten = \"{address}\"\n"));
    let mut running = job.start(&["sync"]);
    follows(&mut running, &pair.target, "served");
    passes(&mut running, &pair.source, &pair.target);
    wait_until("the metrics have the head", || {
        get(address, "/metrics").contains("tidemark_position_bytes{job=\"served\",step=\"head\"}")
    });
    let metrics = get(address, "/metrics");
    assert!(metrics.contains("tidemark_up{job=\"served\"} 1\n"), "{metrics}");
    assert!(metrics.contains("tidemark_phase{job=\"served\",phase=\"follow\"} 1\n"), "{metrics}");
    assert!(get(address, "/status").contains("\"durable_lsn\""));
    assert!(get(address, "/healthz").starts_with("HTTP/1.1 200 "));
    assert!(get(address, "/anything").starts_with("HTTP/1.1 404 "));
    let post = format!("POST /status HTTP/1.1\r\nHost: {address}\r\nContent-Length: 0\r\n\r\n");
    assert!(ask(address, &post).unwrap().starts_with("HTTP/1.1 405 "));
    let rebound = "GET /status HTTP/1.1\r\nHost: evil.example\r\n\r\n";
    assert!(ask(address, rebound).unwrap().starts_with("HTTP/1.1 403 "));
    // Not the address is wrong, which the running job has, but that it runs.
    job.run(&["sync"]).expect(9);
    job.run(&["cleanup", "--yes"]).expect(9);
    running.signal(Signal::TERM);
    running.end().expect(0);
    assert!(ask(address, rebound).is_none(), "it ended with the job");
    // One that goes on copies nothing, and does not speak of tables.
    let mut again = job.start(&["sync"]);
    follows(&mut again, &pair.target, "served");
    wait_until("it is said to follow", || {
        job.run(&["status"]).expect(0).stdout.contains("phase      follow")
    });
    let status = job.run(&["status"]).expect(0).stdout;
    assert!(!status.contains("tables"), "{status}");
    again.signal(Signal::TERM);
    again.end().expect(0);
    job.run(&["cleanup", "--yes"]).expect(0);
    let status = job.run(&["status"]).expect(0).stdout;
    assert!(status.contains("cleaned up") && !status.contains("goes on"), "{status}");
}

#[test]
fn a_table_that_was_dropped_stops_the_job_until_it_is_left_out() {
    let pair = Pair::new("dropped");
    pair.source.psql("CREATE TABLE going (id integer PRIMARY KEY)").unwrap();
    let job = pair.job();
    job.run(&["sync", "--until", "now"]).expect(0);
    pair.source.psql("DROP TABLE going; UPDATE pet SET legs = legs + 1").unwrap();
    let refused = job.run(&["sync", "--until", "now"]).expect(6);
    assert!(refused.error().contains("going"), "{}", refused.stderr);
    assert!(refused.stderr.contains("select.exclude"), "{}", refused.stderr);
    // The way out that the message names.
    job.configured("[select]\nexclude = [\"public.going\"]\n")
        .run(&["sync", "--until", "now"])
        .expect(0);
    pair.target.psql("DROP TABLE going").unwrap();
    pair.assert_equal();
}
