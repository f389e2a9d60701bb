//! Every readiness finding, and that the exact rights suffice.

use tidemark_model::{ChunkRange, Finding, Severity};
use tidemark_source::{
    Disposition, Needs, Selection, SlotOptions, Snapshot, SnapshotOptions, check, read_catalog,
};
use tidemark_testkit::{Cluster, shared};

use crate::support::{plan, rows_of, session, spec};

const COPY: Needs = Needs {
    replication: false,
    given_publication: false,
    connections: 0,
    source_wal: 0,
    dumps: false,
};
const STREAM: Needs = Needs { replication: true, ..COPY };

async fn findings(url: &str, needs: Needs) -> Vec<Finding> {
    let client = session(url).await;
    let catalog = read_catalog(&client).await.unwrap();
    let chosen = Selection::default().apply(&catalog).unwrap();
    let plans: Vec<_> = chosen.iter().map(plan).collect();
    check(&client, &catalog, &plans, needs).await.unwrap()
}

fn blocking(findings: &[Finding]) -> Vec<&str> {
    let is_blocking = |finding: &&Finding| finding.severity == Severity::Blocking;
    let mut codes: Vec<&str> =
        findings.iter().filter(is_blocking).map(|finding| finding.code.as_str()).collect();
    codes.sort_unstable();
    codes
}

fn find<'a>(findings: &'a [Finding], code: &str, object: &str) -> &'a Finding {
    let found = findings.iter().find(|finding| finding.code == code && finding.object == object);
    found.unwrap_or_else(|| panic!("no {code} of {object} in {findings:?}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn select_alone_is_enough_for_a_copy_and_each_missing_right_is_told() {
    let cluster = Cluster::start_default().unwrap();
    let run = |sql: &str| cluster.psql("postgres", sql).unwrap();
    run(
        "CREATE SCHEMA app; CREATE TABLE app.t (id serial PRIMARY KEY); INSERT INTO app.t VALUES (1); CREATE ROLE reader LOGIN",
    );
    let url = cluster.url_as("reader", "x", "postgres");
    let before = findings(&url, COPY).await;
    assert_eq!(blocking(&before), ["schema-right"]);
    run(find(&before, "schema-right", "\"app\"").fix.as_ref().unwrap());
    let before = findings(&url, COPY).await;
    assert_eq!(blocking(&before), ["select-right"]);
    run(find(&before, "select-right", "\"app\".\"t\"").fix.as_ref().unwrap());
    let before = findings(&url, COPY).await;
    assert!(blocking(&before).is_empty(), "{before:?}");
    find(&before, "sequence-right", "\"app\".\"t_id_seq\"");
    let catalog = read_catalog(&session(&url).await).await.unwrap();
    let tables = Selection::default().apply(&catalog).unwrap();
    let snapshot =
        Snapshot::take(&spec(&url), &SnapshotOptions::new(tables, "test")).await.unwrap();
    let rows = rows_of(&url, &snapshot.tables()[0], snapshot.id(), vec![ChunkRange::Whole]).await;
    assert_eq!(rows, ["1\n"]);
    let streaming = findings(&url, STREAM).await;
    assert_eq!(blocking(&streaming), ["owner", "publication-right", "replication-right"]);
    let given = Needs { given_publication: true, ..STREAM };
    assert_eq!(blocking(&findings(&url, given).await), ["replication-right"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn row_security_blocks_also_through_inherited_roles() {
    let cluster = Cluster::start_default().unwrap();
    let run = |sql: &str| cluster.psql("postgres", sql).unwrap();
    run("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1); \
         CREATE ROLE app; CREATE ROLE reader LOGIN IN ROLE app; GRANT SELECT ON t TO app; \
         CREATE POLICY none ON t TO app USING (false); ALTER TABLE t ENABLE ROW LEVEL SECURITY");
    let url = cluster.url_as("reader", "x", "postgres");
    let before = findings(&url, COPY).await;
    assert_eq!(blocking(&before), ["row-security"]);
    let catalog = read_catalog(&session(&url).await).await.unwrap();
    let tables = Selection::default().apply(&catalog).unwrap();
    let snapshot =
        Snapshot::take(&spec(&url), &SnapshotOptions::new(tables, "test")).await.unwrap();
    let mut reader = tidemark_source::Reader::open(&spec(&url), snapshot.id()).await.unwrap();
    let chunk = crate::support::chunk(&snapshot.tables()[0], snapshot.id(), ChunkRange::Whole);
    let Err(error) = reader.copy(&chunk).await else {
        panic!("row_security = off makes it an error, not no rows");
    };
    assert_eq!(error.sqlstate(), Some("42501"));
    drop(reader);
    snapshot.release().await;
    run(find(&before, "row-security", "\"public\".\"t\"").fix.as_ref().unwrap());
    assert!(blocking(&findings(&url, COPY).await).is_empty());
    run("ALTER ROLE reader NOBYPASSRLS; GRANT postgres TO reader; ALTER TABLE t OWNER TO app");
    assert!(blocking(&findings(&url, COPY).await).is_empty(), "an owner by membership is exempt");
    run("ALTER TABLE t FORCE ROW LEVEL SECURITY");
    assert_eq!(blocking(&findings(&url, COPY).await), ["row-security"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn identities_that_would_stop_the_application_block_a_stream_only() {
    let database = shared().unwrap();
    database
        .psql(
            "CREATE TABLE good (id int PRIMARY KEY); CREATE TABLE keyless (a int); \
             CREATE TABLE nothing (id int PRIMARY KEY); ALTER TABLE nothing REPLICA IDENTITY NOTHING; \
             CREATE TABLE late (id int PRIMARY KEY DEFERRABLE); \
             CREATE TABLE whole (a int); ALTER TABLE whole REPLICA IDENTITY FULL; \
             CREATE TABLE lost (a int NOT NULL); CREATE UNIQUE INDEX lost_a ON lost (a); \
             ALTER TABLE lost REPLICA IDENTITY USING INDEX lost_a; DROP INDEX lost_a",
        )
        .unwrap();
    let stream = findings(&database.url(), STREAM).await;
    assert_eq!(blocking(&stream), ["replica-identity"; 4]);
    for table in ["keyless", "nothing", "late", "lost"] {
        let finding = find(&stream, "replica-identity", &format!("\"public\".\"{table}\""));
        assert!(finding.fix.as_ref().unwrap().contains("REPLICA IDENTITY FULL"));
    }
    assert_eq!(find(&stream, "no-key", "\"public\".\"whole\"").severity, Severity::Warning);
    let copy = findings(&database.url(), COPY).await;
    assert!(blocking(&copy).is_empty(), "{copy:?}");
    assert_eq!(find(&copy, "no-key", "\"public\".\"keyless\"").severity, Severity::Note);
    find(&copy, "deferrable-key", "\"public\".\"late\"");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_moved_is_listed_with_counts() {
    let database = shared().unwrap();
    database
        .psql(
            "CREATE UNLOGGED TABLE u (id int PRIMARY KEY); CREATE VIEW v AS SELECT 1 AS a; \
             CREATE MATERIALIZED VIEW m AS SELECT 1 AS a; CREATE MATERIALIZED VIEW n AS SELECT 1 AS a; \
             CREATE FOREIGN DATA WRAPPER far; CREATE SERVER away FOREIGN DATA WRAPPER far; \
             CREATE FOREIGN TABLE f (a int) SERVER away; SELECT lo_create(0)",
        )
        .unwrap();
    let other = session(&database.url()).await;
    other.batch_execute("CREATE TEMP TABLE passing (a int)").await.unwrap();
    let all = findings(&database.url(), COPY).await;
    assert!(find(&all, "materialized-views", "source").message.starts_with("2 materialized views"));
    assert!(find(&all, "foreign-tables", "source").message.contains("\"public\".\"f\""));
    assert!(find(&all, "views", "source").message.starts_with("1 view:"));
    assert!(find(&all, "large-objects", "pg_largeobject").message.starts_with("1 large"));
    find(&all, "temporary-tables", "source");
    assert_eq!(find(&all, "unlogged", "\"public\".\"u\"").severity, Severity::Note);
    let stream = findings(&database.url(), STREAM).await;
    assert_eq!(find(&stream, "unlogged", "\"public\".\"u\"").severity, Severity::Warning);
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_that_a_slot_needs_block_before_anything_is_made() {
    let cluster = Cluster::builder()
        .setting("wal_level", "replica")
        .setting("max_replication_slots", "1")
        .setting("max_locks_per_transaction", "10")
        .setting("max_connections", "20")
        .start()
        .unwrap();
    cluster.psql("postgres", "SELECT pg_create_physical_replication_slot('taken')").unwrap();
    cluster.psql("postgres", "ALTER ROLE postgres SET default_transaction_read_only = on").unwrap();
    let url = cluster.url("postgres");
    let all = findings(&url, STREAM).await;
    let codes = blocking(&all);
    for code in ["slots", "wal-level"] {
        assert!(codes.contains(&code), "{code}: {all:?}");
    }
    assert!(codes.contains(&"read-only"), "{all:?}");
    let many = Needs { connections: 50, ..COPY };
    assert_eq!(blocking(&findings(&url, many).await), ["connections"]);
    let client = session(&url).await;
    let catalog = read_catalog(&client).await.unwrap();
    assert!(catalog.server.max_locks < 1000, "{}", catalog.server.max_locks);
}

#[tokio::test(flavor = "multi_thread")]
async fn open_and_prepared_transactions_are_named_before_a_slot_waits_for_them() {
    let cluster = Cluster::start_default().unwrap();
    cluster.psql("postgres", "CREATE TABLE t (id int PRIMARY KEY)").unwrap();
    cluster.psql("postgres", "BEGIN; INSERT INTO t VALUES (1); PREPARE TRANSACTION 'old'").unwrap();
    let all = findings(&cluster.url("postgres"), STREAM).await;
    let finding = find(&all, "long-transaction", "prepared transaction 'old'");
    assert!(finding.fix.as_ref().unwrap().contains("PREPARED 'old'"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_is_told_and_refused_for_a_stream_before_a_slot_waits_there() {
    let cluster = Cluster::start_default().unwrap();
    cluster.psql("postgres", "CREATE TABLE t (id int PRIMARY KEY)").unwrap();
    let standby = cluster.standby().unwrap();
    standby.wait_for_replay(&cluster).unwrap();
    let url = standby.url("postgres");
    let copy = findings(&url, COPY).await;
    assert!(blocking(&copy).is_empty(), "{copy:?}");
    assert_eq!(find(&copy, "standby", "source").severity, Severity::Warning);
    let stream = findings(&url, STREAM).await;
    assert!(blocking(&stream).contains(&"standby"), "{stream:?}");
    let finding = find(&stream, "standby", "source");
    assert!(finding.fix.as_ref().unwrap().contains("primary"), "{finding:?}");
    let mut options = crate::support::options(&url, &["public.t"]).await;
    options.slot = Some(SlotOptions {
        is_given: false,
        slot: "tidemark_standby".into(),
        publication: "tidemark_standby".into(),
        failover: false,
    });
    let error = Snapshot::take(&spec(&url), &options).await.unwrap_err();
    assert_eq!(error.disposition(), Disposition::Refused, "{error:?}");
    assert!(error.to_string().contains("standby"), "{error}");
    options.slot = None;
    Snapshot::take(&spec(&url), &options).await.unwrap();
}

/// What a filter uses is asked of a temporary view, which PUBLIC may make unless that was revoked.
#[tokio::test(flavor = "multi_thread")]
async fn a_row_filter_without_the_right_to_temporary_views_is_a_finding() {
    let cluster = Cluster::builder().version(tidemark_testkit::Version::V15).start().unwrap();
    let setup = "CREATE ROLE mover LOGIN REPLICATION; CREATE TABLE \"Ta ble\" (id int PRIMARY KEY, \"Fa x\" int); \
        ALTER TABLE \"Ta ble\" OWNER TO mover; GRANT CREATE ON DATABASE postgres TO mover; \
        REVOKE TEMPORARY ON DATABASE postgres FROM PUBLIC";
    cluster.psql("postgres", setup).unwrap();
    let client = session(&cluster.url_as("mover", "x", "postgres")).await;
    let found = async |filter: &str| {
        let catalog = read_catalog(&client).await.unwrap();
        let chosen = Selection::default().apply(&catalog).unwrap();
        let mut plans: Vec<_> = chosen.iter().map(plan).collect();
        plans[0].filter = Some(filter.to_owned());
        let needs = Needs { replication: true, ..Needs::default() };
        let findings = check(&client, &catalog, &plans, needs).await.unwrap();
        let of_filters =
            |finding: &Finding| ["temporary-right", "row-filter"].contains(&&*finding.code);
        findings.into_iter().find(of_filters)
    };
    let finding = found("id > 1").await.unwrap();
    assert_eq!(finding.code, "temporary-right");
    assert_eq!(finding.fix.unwrap(), "GRANT TEMPORARY ON DATABASE \"postgres\" TO \"mover\"");
    cluster.psql("postgres", "GRANT TEMPORARY ON DATABASE postgres TO mover").unwrap();
    assert!(found("id > 1").await.is_none());
    let finding = found("\"Fa x\" > 1").await.unwrap();
    assert!(finding.message.contains("\"Fa x\""), "{}", finding.message);
    assert!(
        finding.fix.unwrap().starts_with("ALTER TABLE \"public\".\"Ta ble\" REPLICA IDENTITY FULL")
    );
}

/// What is found of these tables.
async fn findings_of(url: &str, globs: &[&str], needs: Needs) -> Vec<Finding> {
    let client = session(url).await;
    let catalog = read_catalog(&client).await.unwrap();
    let include = globs.iter().map(|glob| (*glob).to_owned()).collect();
    let chosen = Selection::new(include, vec![]).apply(&catalog).unwrap();
    let plans: Vec<_> = chosen.iter().map(plan).collect();
    check(&client, &catalog, &plans, needs).await.unwrap()
}

fn has(findings: &[Finding], code: &str) -> bool {
    findings.iter().any(|finding| finding.code == code)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_would_end_the_slot_is_told_and_so_is_who_else_keeps_wal() {
    let cluster = Cluster::builder().setting("max_slot_wal_keep_size", "64MB").start().unwrap();
    cluster.psql("postgres", "CREATE TABLE t (id int PRIMARY KEY)").unwrap();
    let url = cluster.url("postgres");
    let ample = Needs { source_wal: 1 << 30, ..STREAM };
    let all = findings(&url, ample).await;
    let finding = find(&all, "wal-keep-size", "max_slot_wal_keep_size");
    assert!(finding.message.contains("64 MiB"), "{finding:?}");
    assert!(!has(&all, "slot-left"), "{all:?}");
    assert!(!has(&findings(&url, Needs { source_wal: 64 << 20, ..STREAM }).await, "wal-keep-size"));
    cluster.psql("postgres", "SELECT pg_create_physical_replication_slot('left', true)").unwrap();
    let all = findings(&url, ample).await;
    let finding = find(&all, "slot-left", "slot \"left\"");
    assert_eq!(finding.severity, Severity::Note);
    // The ways out that the findings name.
    let drop = finding.fix.as_ref().unwrap().split_once(" or ").unwrap().1;
    cluster.psql("postgres", drop).unwrap();
    let fix = find(&all, "wal-keep-size", "max_slot_wal_keep_size").fix.as_ref().unwrap();
    for statement in fix.split_once("; or ").unwrap().1.split("; ") {
        cluster.psql("postgres", statement).unwrap();
    }
    cluster.wait_for("postgres", "SHOW max_slot_wal_keep_size", "2GB").unwrap();
    let all = findings(&url, ample).await;
    assert!(!has(&all, "slot-left") && !has(&all, "wal-keep-size"), "{all:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_18_ends_while_the_job_is_stopped_is_told() {
    let setting = "idle_replication_slot_timeout";
    let cluster = Cluster::builder().version(tidemark_testkit::Version::V18);
    let cluster = cluster.setting(setting, "2d").start().unwrap();
    cluster.psql("postgres", "CREATE TABLE t (id int PRIMARY KEY)").unwrap();
    let url = cluster.url("postgres");
    let all = findings(&url, STREAM).await;
    let finding = find(&all, "slot-idle-timeout", setting);
    assert!(finding.message.contains("2d"), "{finding:?}");
    assert!(!has(&findings(&url, COPY).await, "slot-idle-timeout"));
    for statement in finding.fix.as_ref().unwrap().split("; ") {
        cluster.psql("postgres", statement).unwrap();
    }
    cluster.wait_for("postgres", &format!("SHOW {setting}"), "0").unwrap();
    assert!(!has(&findings(&url, STREAM).await, "slot-idle-timeout"));
}

/// A prepared transaction keeps VACUUM from freezing while 200,000 transaction ids are used up.
#[tokio::test(flavor = "multi_thread")]
async fn an_old_transaction_id_is_told_before_a_slot_makes_it_older() {
    let cluster =
        Cluster::builder().setting("autovacuum_freeze_max_age", "100000").start().unwrap();
    let run = |sql: &str| cluster.psql("postgres", sql).unwrap();
    run("CREATE TABLE t (id int PRIMARY KEY)");
    let url = cluster.url("postgres");
    assert!(!has(&findings(&url, COPY).await, "xid-age"));
    run("BEGIN; INSERT INTO t VALUES (1); PREPARE TRANSACTION 'old'");
    run("DO $$ BEGIN FOR i IN 1..210000 LOOP \
           BEGIN INSERT INTO t VALUES (2); RAISE EXCEPTION 'x'; EXCEPTION WHEN raise_exception THEN END; \
         END LOOP; END $$");
    let all = findings(&url, COPY).await;
    let finding = find(&all, "xid-age", "source");
    assert_eq!(finding.severity, Severity::Warning);
    assert!(finding.message.contains("transaction id"), "{finding:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sequence_near_the_end_of_its_column_or_of_a_table_that_stays_is_told() {
    let database = shared().unwrap();
    database
        .psql(
            "CREATE TABLE near (id serial PRIMARY KEY); SELECT setval('near_id_seq', 2000000000); \
             CREATE SEQUENCE wide; CREATE TABLE narrow (id int PRIMARY KEY DEFAULT nextval('wide')); \
             ALTER SEQUENCE wide OWNED BY narrow.id; SELECT setval('wide', 2000000000); \
             CREATE TABLE far (id bigserial PRIMARY KEY); SELECT setval('far_id_seq', 2000000000); \
             CREATE SEQUENCE again MAXVALUE 10 CYCLE; SELECT setval('again', 10); \
             CREATE TABLE parted (id bigserial, day date) PARTITION BY RANGE (day); \
             CREATE TABLE parted_1 PARTITION OF parted FOR VALUES FROM ('2024-01-01') TO ('2025-01-01'); \
             CREATE TABLE guest (id bigint PRIMARY KEY DEFAULT nextval('far_id_seq'))",
        )
        .unwrap();
    let all = findings(&database.url(), COPY).await;
    let near: Vec<&str> = all
        .iter()
        .filter(|finding| finding.code == "sequence-near-end")
        .map(|finding| finding.object.as_str())
        .collect();
    assert_eq!(near, ["\"public\".\"near_id_seq\"", "\"public\".\"narrow\".\"id\""], "{all:?}");
    assert!(!has(&all, "sequence-not-moved"), "{all:?}");
    let guest = findings_of(&database.url(), &["public.guest"], COPY).await;
    let finding = find(&guest, "sequence-not-moved", "\"public\".\"guest\".\"id\"");
    assert!(finding.message.contains("\"far_id_seq\""), "{finding:?}");
    assert!(!has(&guest, "sequence-near-end"), "{guest:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_owners_role_what_a_dump_reads_and_what_others_do_are_told_with_their_grants() {
    let cluster = Cluster::start_default().unwrap();
    let run = |sql: &str| cluster.psql("postgres", sql).unwrap();
    run("CREATE ROLE \"app owner\"; CREATE ROLE reader LOGIN; CREATE SCHEMA aside; \
         CREATE TABLE t (id int PRIMARY KEY); CREATE TABLE aside.other (id int PRIMARY KEY); \
         ALTER TABLE t OWNER TO \"app owner\"; GRANT SELECT ON t TO reader");
    let url = cluster.url_as("reader", "x", "postgres");
    let found = async |needs: Needs| findings_of(&url, &["public.*"], needs).await;
    let mend = |finding: &Finding| {
        let fix = finding.fix.as_ref().unwrap();
        let statements = fix.split("; ").filter(|statement| statement.starts_with("GRANT"));
        statements.for_each(|statement| drop(run(statement)));
    };
    assert!(blocking(&found(COPY).await).is_empty());
    let dumps = Needs { dumps: true, ..COPY };
    let all = found(dumps).await;
    assert_eq!(blocking(&all), ["dump-right"], "{all:?}");
    mend(find(&all, "dump-right", "\"aside\".\"other\""));
    assert!(blocking(&found(dumps).await).is_empty());
    let all = found(STREAM).await;
    let note = find(&all, "activity-right", "\"reader\"");
    assert_eq!(note.severity, Severity::Note);
    mend(note);
    let owner = find(&all, "owner", "\"public\".\"t\"");
    assert!(owner.fix.as_ref().unwrap().starts_with("GRANT \"app owner\" TO \"reader\""));
    mend(owner);
    let all = found(STREAM).await;
    assert!(!has(&all, "owner") && !has(&all, "activity-right"), "{all:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_gives_replication_by_a_role_has_its_own_grant() {
    let cluster = Cluster::start_default().unwrap();
    let run = |sql: &str| cluster.psql("postgres", sql).unwrap();
    run(
        "CREATE TABLE t (id int PRIMARY KEY); CREATE ROLE reader LOGIN; GRANT SELECT ON t TO reader",
    );
    let url = cluster.url_as("reader", "x", "postgres");
    let fix = async || {
        let found = findings(&url, STREAM).await;
        let right = found.into_iter().find(|finding| finding.code == "replication-right");
        right.map(|finding| finding.fix.unwrap())
    };
    assert_eq!(fix().await.unwrap(), "ALTER ROLE \"reader\" REPLICATION");
    run("CREATE ROLE rds_replication");
    let grant = fix().await.unwrap();
    assert_eq!(grant, "GRANT rds_replication TO \"reader\"");
    run(&grant);
    assert_eq!(fix().await, None);
}
