//! Every way in which a source cannot go on, made on a real server.

use tidemark_model::{Lsn, RelationName};
use tidemark_source::{
    Disposition, Error, Expected, PublicationState, ReplicationStream, RowFilters, Saved,
    check_continuation, check_publication, identify, inspect_slot,
};
use tidemark_testkit::{Cluster, Version};

use crate::stream_support::{
    SLOT, barrier, cluster, lsn, make_slot, options, prepare, start, until_barrier,
};
use crate::support::{session, spec};

const TABLE: &str =
    "CREATE TABLE t (id int PRIMARY KEY, v text); CREATE TABLE u (id int PRIMARY KEY);";
const CONFIRMED: &str =
    "SELECT confirmed_flush_lsn FROM pg_replication_slots WHERE slot_name = 'tidemark_job'";

/// What a target would have saved that is exactly where the slot is.
async fn saved(cluster: &Cluster) -> Saved {
    let identity = identify(&spec(&cluster.url("postgres"))).await.unwrap();
    Saved {
        system_identifier: identity.system_identifier,
        timeline: Some(identity.timeline),
        database: identity.database,
        end_lsn: lsn(cluster, CONFIRMED),
        slot: SLOT.into(),
    }
}

async fn check(cluster: &Cluster, database: &str, saved: &Saved) -> Result<(), Error> {
    let spec = spec(&cluster.url(database));
    let identity = identify(&spec).await.unwrap();
    let client = session(&cluster.url(database)).await;
    let slot = inspect_slot(&client, SLOT).await.unwrap();
    check_continuation(saved, &identity, slot.as_ref())
}

#[track_caller]
fn refused(answer: Result<(), Error>, expected: &[&str]) {
    let error = answer.unwrap_err();
    assert_eq!(error.disposition(), Disposition::SourceCannotContinue, "{error}");
    let text = format!("{error} | {}", error.way_out().unwrap());
    for part in expected {
        assert!(text.contains(part), "{part:?} in {text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_is_missing_made_anew_or_advanced_is_refused() {
    for version in [Version::V14, Version::V15, Version::V18] {
        let cluster = cluster(version, TABLE);
        let saved = saved(&cluster).await;
        check(&cluster, "postgres", &saved).await.unwrap();
        cluster.psql("postgres", "INSERT INTO t VALUES (1, 'lost')").unwrap();
        barrier(&cluster, "a");
        let advance =
            "SELECT pg_replication_slot_advance('tidemark_job', pg_current_wal_flush_lsn())";
        cluster.psql("postgres", advance).unwrap();
        let at = saved.end_lsn.to_string();
        let now = lsn(&cluster, CONFIRMED).to_string();
        let parts = ["\"tidemark_job\"", &now, &at, "advanced", "new snapshot"];
        refused(check(&cluster, "postgres", &saved).await, &parts);

        cluster.psql("postgres", "SELECT pg_drop_replication_slot('tidemark_job')").unwrap();
        refused(check(&cluster, "postgres", &saved).await, &["missing", &at, "tidemark cleanup"]);
        let error = ReplicationStream::start(&spec(&cluster.url("postgres")), &options()).await;
        assert_eq!(error.unwrap_err().disposition(), Disposition::SourceCannotContinue);

        make_slot(&cluster, SLOT);
        refused(check(&cluster, "postgres", &saved).await, &["made anew", &at]);
        cluster.psql("postgres", "SELECT pg_drop_replication_slot('tidemark_job')").unwrap();
        let other = "SELECT pg_create_logical_replication_slot('tidemark_job', 'test_decoding')";
        if cluster.psql("postgres", other).is_ok() {
            refused(check(&cluster, "postgres", &saved).await, &["plugin is \"test_decoding\""]);
            cluster.psql("postgres", "SELECT pg_drop_replication_slot('tidemark_job')").unwrap();
        }
        let physical = "SELECT pg_create_physical_replication_slot('tidemark_job')";
        cluster.psql("postgres", physical).unwrap();
        refused(check(&cluster, "postgres", &saved).await, &["physical slot"]);
        cluster.psql("postgres", "SELECT pg_drop_replication_slot('tidemark_job')").unwrap();
        cluster.create_database("other").unwrap();
        let there = format!("SELECT pg_create_logical_replication_slot('{SLOT}', 'pgoutput')");
        cluster.psql("other", &there).unwrap();
        refused(check(&cluster, "postgres", &saved).await, &["database \"other\""]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_cluster_or_database_behind_the_address_is_refused() {
    // Clusters of one version are copies of one template here, with one identifier.
    let (one, two) = (cluster(Version::V15, TABLE), cluster(Version::V14, TABLE));
    let saved = saved(&one).await;
    refused(check(&two, "postgres", &saved).await, &["another cluster", "source.url"]);
    one.create_database("other").unwrap();
    let error = check(&one, "other", &saved).await.unwrap_err();
    assert_eq!(error.disposition(), Disposition::Usage, "{error}");
    assert!(error.to_string().contains("\"other\", saved was \"postgres\""), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_is_behind_what_was_saved_is_refused() {
    let cluster = cluster(Version::V15, TABLE);
    let mut saved = saved(&cluster).await;
    saved.end_lsn = Lsn::new(saved.end_lsn.as_u64() + (1 << 30));
    let parts = ["the source's WAL ends at", &saved.end_lsn.to_string(), "restored"];
    refused(check(&cluster, "postgres", &saved).await, &parts);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_invalidated_slot_is_refused_with_the_servers_reason() {
    for version in [Version::V15, Version::V16, Version::V17] {
        let small =
            [("max_slot_wal_keep_size", "16MB"), ("max_wal_size", "32MB"), ("wal_keep_size", "0")];
        let mut builder = Cluster::builder().version(version).setting("min_wal_size", "32MB");
        for (name, value) in small {
            builder = builder.setting(name, value);
        }
        let cluster = builder.start().unwrap();
        prepare(&cluster, TABLE);
        let saved = saved(&cluster).await;
        let write =
            "INSERT INTO t SELECT g, repeat('x', 900) FROM generate_series(1, 50000) g; CHECKPOINT;
                     SELECT pg_switch_wal(); CHECKPOINT";
        cluster.psql("postgres", write).unwrap();
        let lost = "SELECT wal_status FROM pg_replication_slots";
        cluster.wait_for("postgres", lost, "lost").unwrap();
        let parts = ["invalidated (wal_removed)", "max_slot_wal_keep_size", "new snapshot"];
        refused(check(&cluster, "postgres", &saved).await, &parts);
        // And the server's own refusal means the same.
        let answer = ReplicationStream::start(&spec(&cluster.url("postgres")), &options()).await;
        let error = answer.unwrap_err();
        assert_eq!(error.disposition(), Disposition::SourceCannotContinue, "{version:?}: {error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_promoted_standby_is_judged_by_where_it_left_the_old_timeline() {
    let primary = cluster(Version::V15, TABLE);
    let standby = primary.standby().unwrap();
    barrier(&primary, "common");
    standby.wait_for_replay(&primary).unwrap();
    let before = Saved { end_lsn: lsn(&primary, CONFIRMED), ..saved(&primary).await };
    primary.stop_fast().unwrap();
    primary.start().unwrap();
    standby.promote().unwrap();
    // The old primary goes on, and so does the target.
    primary
        .psql(
            "postgres",
            "INSERT INTO t SELECT g, repeat('x', 900) FROM generate_series(1, 5000) g",
        )
        .unwrap();
    barrier(&primary, "only here");
    let ahead =
        Saved { end_lsn: lsn(&primary, "SELECT pg_current_wal_flush_lsn()"), ..before.clone() };
    let parts =
        ["the source left timeline 1 at", &ahead.end_lsn.to_string(), "synchronized_standby_slots"];
    refused(check(&standby, "postgres", &ahead).await, &parts);
    // Before the switch the history fits; the slot is not on a standby of 15.
    refused(check(&standby, "postgres", &before).await, &["the slot is missing", "promoted"]);
    make_slot(&standby, SLOT);
    refused(check(&standby, "postgres", &before).await, &["made anew"]);
    // And back to the old one.
    let on_the_new = Saved { timeline: Some(2), ..before };
    refused(check(&primary, "postgres", &on_the_new).await, &["on timeline 1, saved was 2"]);
}

/// What the check says of a job that wants these rows of `t`.
async fn published_as(cluster: &Cluster, wanted: Option<&str>) -> Result<Vec<RelationName>, Error> {
    let client = session(&cluster.url("postgres")).await;
    let rows = client.query("SELECT 't'::text, 'public.t'::regclass::oid", &[]).await.unwrap();
    let tables: Vec<_> = rows
        .iter()
        .map(|row| (row.get(1), RelationName::new("public", row.get::<_, String>(0))))
        .collect();
    let publications = [SLOT.to_owned()];
    let filters: RowFilters =
        tables.iter().filter_map(|(oid, _)| Some((*oid, wanted?.to_owned()))).collect();
    let expected = Expected { publications: &publications, tables: &tables, filters: &filters };
    check_publication(&client, &expected).await
}

async fn published(cluster: &Cluster) -> Result<Vec<RelationName>, Error> {
    published_as(cluster, None).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publication_that_leaves_something_out_is_refused() {
    for version in [Version::V14, Version::V15, Version::V18] {
        let cluster = cluster(version, TABLE);
        // What is published and not followed is told.
        let others = published(&cluster).await.unwrap();
        assert_eq!(others, [RelationName::new("public", "u")]);
        for (narrow, widen, parts) in [
            (
                "SET (publish = 'insert')",
                "SET (publish = 'insert, update, delete, truncate')",
                ["\"tidemark_job\"", "leaves out some of INSERT"],
            ),
            (
                "SET (publish_via_partition_root = true)",
                "SET (publish_via_partition_root = false)",
                ["\"tidemark_job\"", "as their root"],
            ),
            ("DROP TABLE t", "ADD TABLE t", ["\"public\".\"t\"", "not published any more"]),
        ] {
            let alter = |what| format!("ALTER PUBLICATION tidemark_job {what}");
            cluster.psql("postgres", &alter(narrow)).unwrap();
            refused(published(&cluster).await.map(drop), &parts);
            cluster.psql("postgres", &alter(widen)).unwrap();
            published(&cluster).await.unwrap();
        }
        if version >= Version::V15 {
            let set = |tables: &str| {
                let alter = format!("ALTER PUBLICATION tidemark_job SET TABLE {tables}");
                cluster.psql("postgres", &alter).unwrap();
            };
            let wants = async |wanted, parts: &[&str]| {
                refused(published_as(&cluster, wanted).await.map(drop), parts);
            };
            set("t (id), u");
            wants(None, &["\"public\".\"t\"", "leaves out columns"]).await;
            wants(Some("id > 5"), &["leaves out columns"]).await;
            set("t, u");
            wants(Some("id > 5"), &["has all rows", "id > 5", "reset public.t --yes"]).await;
            set("t WHERE (id > 5), u");
            wants(None, &["\"public\".\"t\"", "leaves out rows", "(id > 5)"]).await;
            wants(Some("id > 6"), &["has other rows", "(id > 5)", "id > 6", "reset public.t"])
                .await;
            // However it is written.
            for same in ["id > 5", "(t.id)>5 -- as before", "public.t.id OPERATOR(pg_catalog.>) 5"]
            {
                published_as(&cluster, Some(same)).await.unwrap();
            }
        }
        cluster.psql("postgres", "DROP PUBLICATION tidemark_job").unwrap();
        refused(published(&cluster).await.map(drop), &["publication is missing"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_was_dropped_and_made_again_is_another_one() {
    let cluster = cluster(Version::V15, TABLE);
    let client = session(&cluster.url("postgres")).await;
    let oid: u32 = client.query_one("SELECT 'public.t'::regclass::oid", &[]).await.unwrap().get(0);
    let again = "DROP TABLE t; CREATE TABLE t (id int PRIMARY KEY, v text);
                 ALTER PUBLICATION tidemark_job ADD TABLE t";
    cluster.psql("postgres", again).unwrap();
    let tables = [(oid, RelationName::new("public", "t"))];
    let publications = [SLOT.to_owned()];
    let filters = RowFilters::new();
    let expected = Expected { publications: &publications, tables: &tables, filters: &filters };
    let answer = check_publication(&client, &expected).await;
    refused(answer.map(drop), &["was dropped on the source", "reset"]);
}

/// Decoding looks into the past: a publication that was missing when the rows were written is missing for ever. From 18 on
/// the server only leaves the rows out, which is why the publication is looked at before.
#[tokio::test(flavor = "multi_thread")]
async fn a_publication_that_was_missing_for_a_while_is_refused_or_found_before() {
    for version in [Version::V14, Version::V15, Version::V17] {
        let cluster = cluster(version, TABLE);
        let again = "DROP PUBLICATION tidemark_job; INSERT INTO t VALUES (1, 'lost');
                     CREATE PUBLICATION tidemark_job FOR TABLE t";
        cluster.psql("postgres", again).unwrap();
        let (mut reader, _writer) = start(&cluster, &options()).await;
        let error = loop {
            match reader.next().await {
                Ok(_) => {}
                Err(error) => break error,
            }
        };
        refused(Err(error), &["the publication is missing", "new snapshot"]);
    }
    let cluster = cluster(Version::V18, TABLE);
    cluster
        .psql("postgres", "DROP PUBLICATION tidemark_job; INSERT INTO t VALUES (1, 'lost')")
        .unwrap();
    barrier(&cluster, "end");
    let (mut reader, _writer) = start(&cluster, &options()).await;
    let payloads = until_barrier(&mut reader, "end").await;
    assert!(payloads.iter().all(|payload| payload[0] != b'I'));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publication_that_was_altered_and_put_back_is_noticed() {
    for version in [Version::V14, Version::V18] {
        let cluster = cluster(version, TABLE);
        let client = session(&cluster.url("postgres")).await;
        let names = [SLOT.to_owned()];
        let read = async || PublicationState::read(&client, &names).await.unwrap();
        let mut saved = read().await;
        // What does not take anything away is not noticed.
        let harmless = "CREATE TABLE w (id int PRIMARY KEY); ALTER PUBLICATION tidemark_job ADD TABLE w; VACUUM (FREEZE)";
        cluster.psql("postgres", harmless).unwrap();
        assert!(read().await.has_kept(&saved), "{version:?}");
        for sql in [
            "ALTER PUBLICATION tidemark_job DROP TABLE t; ALTER PUBLICATION tidemark_job ADD TABLE t",
            "ALTER PUBLICATION tidemark_job SET (publish = 'insert');
             ALTER PUBLICATION tidemark_job SET (publish = 'insert, update, delete, truncate')",
            "ALTER PUBLICATION tidemark_job RENAME TO other; ALTER PUBLICATION other RENAME TO tidemark_job",
            "DROP PUBLICATION tidemark_job; CREATE PUBLICATION tidemark_job FOR TABLE t, u, w",
        ] {
            cluster.psql("postgres", sql).unwrap();
            let now = read().await;
            assert!(!now.has_kept(&saved), "{version:?}: {sql}");
            saved = now;
        }
    }
}
