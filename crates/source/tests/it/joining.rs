//! Tables that are published for a stream that goes on: whom the publishing waits for.

use tidemark_source::{Disposition, publish_for_join};
use tidemark_testkit::Cluster;

use crate::support::{options, session, spec};

const SCHEMA: &str = "CREATE TABLE t (id integer PRIMARY KEY); CREATE TABLE other (id integer PRIMARY KEY); \
    CREATE PUBLICATION ours FOR TABLE other; CREATE PUBLICATION theirs FOR TABLE t";

#[tokio::test(flavor = "multi_thread")]
async fn whoever_may_have_written_unpublished_rows_is_waited_for_and_named() {
    let cluster = Cluster::start_default().unwrap();
    cluster.psql("postgres", SCHEMA).unwrap();
    let url = cluster.url("postgres");
    let options = options(&url, &["public.t"]).await;
    let writer = session(&url).await;
    for (publication, is_ours) in [("ours", true), ("theirs", false)] {
        // The newest transaction of all: beyond the xmax of every snapshot.
        let id = i32::from(is_ours);
        writer.batch_execute(&format!("BEGIN; INSERT INTO public.t VALUES ({id})")).await.unwrap();
        let error =
            publish_for_join(&spec(&url), &options, publication, is_ours).await.unwrap_err();
        assert_eq!(error.disposition(), Disposition::Blocked, "{error}");
        let pid = writer.backend_pid().to_string();
        assert!(error.way_out().unwrap_or_default().contains(&pid), "{:?}", error.way_out());
        writer.batch_execute("COMMIT").await.unwrap();
        publish_for_join(&spec(&url), &options, publication, is_ours).await.unwrap();
    }
    writer
        .batch_execute("BEGIN; INSERT INTO public.t VALUES (5); PREPARE TRANSACTION 'p'")
        .await
        .unwrap();
    let error = publish_for_join(&spec(&url), &options, "ours", true).await.unwrap_err();
    assert!(error.way_out().unwrap_or_default().contains("'p'"), "{:?}", error.way_out());
    writer.batch_execute("ROLLBACK PREPARED 'p'").await.unwrap();
    let published = "SELECT string_agg(tablename, ',' ORDER BY tablename) FROM pg_publication_tables WHERE pubname = 'ours'";
    assert_eq!(cluster.psql("postgres", published).unwrap(), "other,t");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publication_of_somebody_else_is_not_changed_and_must_have_the_table() {
    let cluster = Cluster::start_default().unwrap();
    cluster.psql("postgres", SCHEMA).unwrap();
    let url = cluster.url("postgres");
    let options = options(&url, &["public.other"]).await;
    let error = publish_for_join(&spec(&url), &options, "theirs", false).await.unwrap_err();
    assert_eq!(error.disposition(), Disposition::Refused, "{error}");
    assert!(error.way_out().unwrap_or_default().contains("ADD TABLE"), "{:?}", error.way_out());
    let published =
        "SELECT string_agg(tablename, ',') FROM pg_publication_tables WHERE pubname = 'theirs'";
    assert_eq!(cluster.psql("postgres", published).unwrap(), "t");
}
