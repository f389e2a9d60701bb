//! Workloads: deterministic, complete, and honest about what they committed.

use std::time::{Duration, Instant};

use tidemark_testkit::workload::{self, Writer, WriterOptions};
use tidemark_testkit::{Cluster, oracle, shared};

#[test]
fn tpch_has_its_rows_keys_and_foreign_keys() {
    let database = shared().unwrap();
    let before = Instant::now();
    workload::load_tpch(database.cluster(), database.name(), 0.01).unwrap();
    println!("TPC-H at 0.01 took {:?}", before.elapsed());
    let count = |table: &str| database.psql(&format!("SELECT count(*) FROM {table}")).unwrap();
    assert_eq!(count("lineitem"), "60175");
    assert_eq!(count("orders"), "15000");
    assert_eq!(count("nation"), "25");
    let sql = "SELECT count(*) FILTER (WHERE contype = 'p'), count(*) FILTER (WHERE contype = 'f') \
               FROM pg_constraint WHERE connamespace = 'public'::regnamespace";
    assert_eq!(database.psql(sql).unwrap(), "8|8");
}

#[test]
fn the_demos_tpch_has_the_same_schema() {
    let (one, two) = (shared().unwrap(), shared().unwrap());
    workload::load_tpch(one.cluster(), one.name(), 0.01).unwrap();
    let demo = include_str!("../../../../testdata/demo/tpch.sql").replace("{{scale}}", "0.01");
    two.psql(&demo).unwrap();
    let found =
        oracle::schema_diff((one.cluster(), one.name()), (two.cluster(), two.name())).unwrap();
    let objects: Vec<String> = found
        .iter()
        .filter(|d| !d.object.contains("revenue") && d.kind != "comment")
        .map(ToString::to_string)
        .collect();
    assert_eq!(objects, Vec::<String>::new());
}

#[test]
fn the_demos_live_load_keeps_the_sum_of_the_accounts() {
    let database = shared().unwrap();
    database.psql(include_str!("../../../../testdata/demo/live.sql")).unwrap();
    database.psql(&"CALL live.transfer();".repeat(50)).unwrap();
    let sql = "SELECT sum(balance), (SELECT count(*) FROM live.ledger_copy) FROM live.account";
    assert_eq!(database.psql(sql).unwrap(), "1000000|50");
}

#[test]
fn the_writer_reports_what_it_committed() {
    let database = shared().unwrap();
    let options = WriterOptions { clients: 2, seed: 7, pause: Duration::from_millis(1) };
    let writer = Writer::start(database.cluster(), database.name(), &options).unwrap();
    let sql = "SELECT count(*) > 100 FROM load.ledger";
    database.cluster().wait_for(database.name(), sql, "t").unwrap();
    let report = writer.stop().unwrap();
    assert_eq!(report.lost_clients, 0);
    assert!(report.rolled_back > 0, "{report:?}");
    let held = workload::check_ledger(database.cluster(), database.name()).unwrap();
    assert_eq!(held, report.committed);
    let writer = Writer::resume(database.cluster(), database.name(), &options).unwrap();
    let more = writer.stop().unwrap().committed;
    let held = workload::check_ledger(database.cluster(), database.name()).unwrap();
    assert_eq!(held, report.committed + more);
}

#[test]
fn a_lost_or_doubled_transaction_shows_in_the_ledger() {
    let database = shared().unwrap();
    let (cluster, name) = (database.cluster(), database.name());
    let writer = Writer::start(cluster, name, &WriterOptions::default()).unwrap();
    cluster.wait_for(name, "SELECT count(*) > 5 FROM load.ledger", "t").unwrap();
    writer.stop().unwrap();
    workload::check_ledger(cluster, name).unwrap();
    for damage in [
        "DELETE FROM load.ledger WHERE seq = 3",
        "DELETE FROM load.ledger_copy WHERE seq = 3",
        "INSERT INTO load.ledger_copy SELECT * FROM load.ledger_copy WHERE seq = 3",
        "UPDATE load.account SET balance = balance + 1 WHERE id = 1",
        "UPDATE load.latest SET seq = seq - 1",
    ] {
        database.psql("CREATE SCHEMA keep; CREATE TABLE keep.a AS TABLE load.account; CREATE TABLE keep.b AS TABLE load.ledger;
            CREATE TABLE keep.c AS TABLE load.ledger_copy; CREATE TABLE keep.d AS TABLE load.latest").unwrap();
        database.psql(damage).unwrap();
        assert!(workload::check_ledger(cluster, name).is_err(), "not seen: {damage}");
        database.psql("TRUNCATE load.account, load.ledger, load.ledger_copy, load.latest; INSERT INTO load.account TABLE keep.a;
            INSERT INTO load.ledger TABLE keep.b; INSERT INTO load.ledger_copy TABLE keep.c; INSERT INTO load.latest TABLE keep.d; DROP SCHEMA keep CASCADE").unwrap();
        workload::check_ledger(cluster, name).unwrap();
    }
}

#[test]
fn a_writer_outlives_the_death_of_its_server() {
    let cluster = Cluster::builder().durable().start().unwrap();
    let writer = Writer::start(&cluster, "postgres", &WriterOptions::default()).unwrap();
    cluster.wait_for("postgres", "SELECT count(*) > 20 FROM load.ledger", "t").unwrap();
    cluster.stop_immediate().unwrap();
    let report = writer.stop().unwrap();
    assert_eq!(report.lost_clients, 1);
    cluster.start().unwrap();
    let held = workload::check_ledger(&cluster, "postgres").unwrap();
    let promised = report.committed..=report.committed + 1;
    assert!(promised.contains(&held), "{held} held, {report:?}");
}

#[test]
fn many_tables_and_wide_rows_are_made() {
    let database = shared().unwrap();
    workload::load_many_tables(database.cluster(), database.name(), 1500).unwrap();
    let sql =
        "SELECT count(*) FROM pg_class WHERE relkind = 'r' AND relnamespace = 'many'::regnamespace";
    assert_eq!(database.psql(sql).unwrap(), "1500");
    workload::load_wide_rows(database.cluster(), database.name(), 2, 3_000_000).unwrap();
    let sql = "SELECT count(*), min(length(body)), count(DISTINCT body) FROM wide_rows";
    assert_eq!(database.psql(sql).unwrap(), "2|3000000|2");
}
