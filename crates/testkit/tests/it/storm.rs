//! The storm keeps its promises, says what it has committed, and its judge sees every way to break them.

use std::sync::Arc;

use tidemark_testkit::workload::storm::{self, Watched};
use tidemark_testkit::{Cluster, Storm, StormOptions};

fn blown(options: &StormOptions, until: &str) -> (Arc<Cluster>, u64) {
    let cluster = Arc::new(Cluster::start_default().unwrap());
    Storm::prepare(&cluster, "postgres").unwrap();
    let storm = Storm::start(&cluster, "postgres", options).unwrap();
    cluster.wait_for("postgres", until, "t").unwrap();
    let report = storm.stop().unwrap();
    assert_eq!(report.lost_connections, 0);
    (cluster, report.committed)
}

#[test]
fn a_storm_keeps_its_promises_and_every_kind_of_client_writes() {
    let options = StormOptions { seed: 5, ..StormOptions::default() };
    let sql = "SELECT count(*) > 300 AND count(DISTINCT client) = 13 FROM storm.ledger";
    let (cluster, committed) = blown(&options, sql);
    let (held, broken) = storm::promises(&cluster, "postgres").unwrap();
    assert_eq!(broken, []);
    assert_eq!(held, committed);
    let left = cluster.psql("postgres", "SELECT count(*) FROM pg_prepared_xacts").unwrap();
    assert_eq!(left, "0");
}

#[test]
fn a_storm_outlives_the_death_of_its_server_and_knows_what_committed() {
    let cluster = Arc::new(Cluster::builder().durable().start().unwrap());
    Storm::prepare(&cluster, "postgres").unwrap();
    let options = StormOptions { seed: 9, ..StormOptions::default() };
    let storm = Storm::start(&cluster, "postgres", &options).unwrap();
    for count in [50, 150] {
        let sql = format!("SELECT count(*) > {count} FROM storm.ledger");
        cluster.wait_for("postgres", &sql, "t").unwrap();
        cluster.stop_immediate().unwrap();
        cluster.start().unwrap();
    }
    cluster.wait_for("postgres", "SELECT count(*) > 300 FROM storm.ledger", "t").unwrap();
    let report = storm.stop().unwrap();
    assert!(report.lost_connections > 5, "{report:?}");
    let (held, broken) = storm::promises(&cluster, "postgres").unwrap();
    assert_eq!(broken, []);
    assert_eq!(held, report.committed);
}

#[test]
fn every_broken_promise_is_seen() {
    let (cluster, _) = blown(&StormOptions::default(), "SELECT count(*) > 100 FROM storm.ledger");
    let entry = "(SELECT client FROM storm.ledger LIMIT 1)";
    for damage in [
        format!("DELETE FROM storm.ledger WHERE client = {entry} AND seq = 1"),
        format!("DELETE FROM storm.ledger_copy WHERE client = {entry} AND seq = 1"),
        "INSERT INTO storm.ledger_copy SELECT * FROM storm.ledger_copy LIMIT 1".to_owned(),
        "UPDATE storm.ledger_copy SET note = 'another' WHERE ctid = (SELECT min(ctid) FROM storm.ledger_copy)".to_owned(),
        format!("UPDATE storm.latest SET seq = seq - 1 WHERE client = {entry}"),
        "UPDATE storm.account SET balance = balance - 1 WHERE id = 7".to_owned(),
        "DELETE FROM storm.tick WHERE tick = 1".to_owned(),
    ] {
        let script = format!("{damage};");
        cluster.psql("template1", "CREATE DATABASE damaged TEMPLATE postgres").unwrap();
        cluster.psql("damaged", &script).unwrap();
        let (_, broken) = storm::promises(&cluster, "damaged").unwrap();
        assert!(!broken.is_empty(), "not seen: {damage}");
        cluster.drop_database("damaged").unwrap();
    }
}

#[test]
fn a_glance_sees_halves_and_steps_back() {
    let answer = |bank: i64, clock: i64, tick: i64, latest: i64, top: i64| serde_json::json!({"bank": bank, "clock": clock, "tick": tick, "clients": {"3": [latest, top]}});
    let mut watched = Watched::default();
    assert_eq!(storm::glance(&answer(2_000_000, 5, 5, 7, 7), &mut watched).unwrap(), []);
    for (wrong, word) in [
        (answer(1_999_999, 5, 5, 7, 7), "bank"),
        (answer(2_000_000, 5, 6, 7, 7), "clock"),
        (answer(2_000_000, 5, 5, 7, 8), "client 3"),
        (answer(2_000_000, 4, 4, 7, 7), "back in time: the clock"),
        (answer(2_000_000, 5, 5, 6, 6), "back in time: client"),
    ] {
        let broken = storm::glance(&wrong, &mut watched).unwrap();
        assert_eq!(broken.len(), 1, "{broken:?}");
        assert!(broken[0].0.contains(word), "{broken:?}");
    }
}
