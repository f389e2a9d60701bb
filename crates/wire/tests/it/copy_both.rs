//! CopyBoth with a real slot and pgoutput.

use tidemark_model::Lsn;
use tidemark_wire::Mode;

use crate::cluster::cluster;

fn lsn(message: &[u8], at: usize) -> Lsn {
    Lsn::new(u64::from_be_bytes(message[at..at + 8].try_into().unwrap()))
}

#[tokio::test]
async fn a_slot_streams_what_was_committed_and_moves_by_our_status_alone() {
    let spec = cluster().unix();
    let admin = spec.connect().await.unwrap();
    admin
        .batch_execute("create table public.streamed (id int primary key); create publication p for table public.streamed")
        .await
        .unwrap();
    let mut raw = spec.connect_raw(Mode::Replication).await.unwrap();
    let system = raw.simple_query("IDENTIFY_SYSTEM").await.unwrap();
    assert_eq!(system[0][3].as_deref(), Some("postgres"));
    let created = "CREATE_REPLICATION_SLOT wire_slot TEMPORARY LOGICAL pgoutput NOEXPORT_SNAPSHOT";
    let slot = raw.simple_query(created).await.unwrap();
    let start: Lsn = slot[0][1].as_deref().unwrap().parse().unwrap();
    admin
        .batch_execute("insert into public.streamed select generate_series(1, 5000)")
        .await
        .unwrap();

    let command = format!(
        "START_REPLICATION SLOT wire_slot LOGICAL {start} (proto_version '3', publication_names 'p', binary 'true')"
    );
    let (mut reader, mut writer) = raw.copy_both(&command).await.unwrap().split();
    let (mut inserts, mut end) = (0, None);
    while end.is_none() {
        let messages = reader.next().await.unwrap().expect("the stream goes on");
        assert!(messages.len() > 0);
        for message in messages.iter() {
            match (message[0], message.get(25)) {
                (b'w', Some(b'I')) => inserts += 1,
                (b'w', Some(b'C')) => end = Some(lsn(message, 25 + 10)),
                _ => {}
            }
        }
    }
    assert_eq!(inserts, 5000);
    let end = end.unwrap();
    writer.status(end, end, end, true).await.unwrap();
    // The answer to our request proves that the status was read.
    'answer: loop {
        for message in reader.next().await.unwrap().unwrap().shares() {
            if message[0] == b'k' && lsn(&message, 1) >= end {
                break 'answer;
            }
        }
    }
    let confirmed: String = admin
        .query_one("select confirmed_flush_lsn::text from pg_replication_slots where slot_name = 'wire_slot'", &[])
        .await
        .unwrap()
        .get(0);
    assert_eq!(confirmed.parse::<Lsn>().unwrap(), end);

    let mut raw = reader.finish(writer).await.unwrap();
    assert!(!raw.is_busy());
    assert_eq!(raw.simple_query("IDENTIFY_SYSTEM").await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_terminated_walsender_ends_the_stream_with_an_error() {
    let spec = cluster().unix();
    let admin = spec.connect().await.unwrap();
    let mut raw = spec.connect_raw(Mode::Replication).await.unwrap();
    let pid = raw.backend_pid();
    raw.simple_query(
        "CREATE_REPLICATION_SLOT cut_slot TEMPORARY LOGICAL pgoutput NOEXPORT_SNAPSHOT",
    )
    .await
    .unwrap();
    admin.batch_execute("create publication nothing").await.unwrap();
    let command = "START_REPLICATION SLOT cut_slot LOGICAL 0/0 (proto_version '3', publication_names 'nothing')";
    let (mut reader, _writer) = raw.copy_both(command).await.unwrap().split();
    admin.execute("select pg_terminate_backend($1)", &[&pid]).await.unwrap();
    let error = loop {
        match reader.next().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("an end without an error"),
            Err(error) => break error,
        }
    };
    assert!(error.is_closed(), "{error}");
}

#[tokio::test]
async fn a_refused_start_names_the_servers_reason() {
    let raw = cluster().unix().connect_raw(Mode::Replication).await.unwrap();
    let command = "START_REPLICATION SLOT no_such_slot LOGICAL 0/0 (proto_version '3', publication_names 'p')";
    let error = raw.copy_both(command).await.map(drop).unwrap_err();
    assert_eq!(error.sqlstate(), Some("42704"));
}
