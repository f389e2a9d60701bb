//! The stream against real servers: versions, positions, slots in use, shutdown.

use std::time::{Duration, Instant};

use tidemark_model::Lsn;
use tidemark_source::{
    Disposition, Frame, Message, ReplicationStream, StreamOptions, emit_barrier, head, identify,
    inspect_slot, retained_by_others,
};
use tidemark_testkit::proxy::{Direction, Fault, Proxy};
use tidemark_testkit::{Cluster, Version};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::stream_support::{
    BARRIER, Parser, SLOT, barrier, cluster, ends, lsn, options, start, until_barrier,
};
use crate::support::{session, spec};

const TABLE: &str = "CREATE TABLE t (id int PRIMARY KEY, v text);";
const CONFIRMED: &str =
    "SELECT confirmed_flush_lsn FROM pg_replication_slots WHERE slot_name = 'tidemark_job'";
const IS_FREE: &str =
    "SELECT NOT active FROM pg_replication_slots WHERE slot_name = 'tidemark_job'";

/// Which session reads the slot.
const READER: &str = "SELECT active_pid FROM pg_replication_slots WHERE slot_name = 'tidemark_job'";

#[tokio::test(flavor = "multi_thread")]
async fn every_version_is_followed_and_keeps_only_what_was_not_acknowledged() {
    for version in Version::ALL.into_iter().filter(|version| *version >= Version::V14) {
        let cluster = cluster(version, TABLE);
        cluster
            .psql("postgres", "INSERT INTO t VALUES (1, 'a'); INSERT INTO t VALUES (2, 'b')")
            .unwrap();
        barrier(&cluster, "first");
        let (mut reader, mut writer) = start(&cluster, &options()).await;
        let first = ends(&until_barrier(&mut reader, "first").await);
        assert_eq!(first.len(), 3, "{version:?}");
        // Only the first transaction is durable.
        writer.status(first[2], first[0], first[0], false).await.unwrap();
        reader.finish(writer).await.unwrap();
        cluster.wait_for("postgres", IS_FREE, "t").unwrap();
        assert_eq!(lsn(&cluster, CONFIRMED), first[0], "{version:?}");
        // An explicit start, and the server's own.
        for start_at in [Lsn::ZERO, first[0]] {
            let options = StreamOptions { start: start_at, ..options() };
            let (mut reader, writer) = start(&cluster, &options).await;
            assert_eq!(ends(&until_barrier(&mut reader, "first").await), first[1..], "{version:?}");
            reader.finish(writer).await.unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn thirteen_is_refused_before_anything_is_begun() {
    if !Version::V13.is_installed() {
        return;
    }
    let cluster = Cluster::builder().version(Version::V13).start().unwrap();
    let spec = spec(&cluster.url("postgres"));
    let error = ReplicationStream::start(&spec, &options()).await.unwrap_err();
    assert_eq!(error.disposition(), Disposition::Refused, "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_barrier_has_everything_before_it_flushed_and_sent() {
    for version in [Version::V15, Version::V17] {
        let cluster = cluster(version, TABLE);
        let client = session(&cluster.url("postgres")).await;
        // The walwriter would flush only after ten seconds.
        client.batch_execute("SET synchronous_commit = off").await.unwrap();
        cluster.configure_setting("wal_writer_delay", "10s").unwrap();
        let (mut reader, _writer) = start(&cluster, &options()).await;
        let began = Instant::now();
        client.batch_execute("INSERT INTO public.t VALUES (1, 'it''s')").await.unwrap();
        let at = emit_barrier(&client, BARRIER, r"o'clock\").await.unwrap();
        assert!(at <= head(&client).await.unwrap());
        let mut parser = Parser::default();
        let mut has_insert = false;
        'all: loop {
            for frame in reader.next().await.unwrap().unwrap().iter() {
                let Frame::XLogData { payload, .. } = frame.unwrap() else { continue };
                match parser.parse(payload) {
                    Message::Row { kind, .. } => has_insert |= kind.is_change(),
                    Message::Logical { prefix, content, transactional, .. } => {
                        assert_eq!((prefix.as_str(), &content[..]), (BARRIER, &b"o'clock\\"[..]));
                        assert_eq!(transactional, version < Version::V17);
                        break 'all;
                    }
                    _ => {}
                }
            }
        }
        assert!(has_insert, "{version:?}");
        assert!(began.elapsed() < Duration::from_secs(5), "{version:?}: {:?}", began.elapsed());
    }
}

/// Reads and acknowledges everything until the stream ends; gives whether it ended in order.
async fn follow(cluster: &Cluster) -> impl Future<Output = bool> + Send + use<> {
    let (mut reader, mut writer) = start(cluster, &options()).await;
    async move {
        let mut acknowledged = Lsn::ZERO;
        loop {
            let frames = match reader.next().await {
                Ok(Some(frames)) => frames,
                Ok(None) => return true,
                Err(_) => return false,
            };
            for frame in frames.iter() {
                let at = match frame.unwrap() {
                    Frame::XLogData { wal_end, .. } => wal_end,
                    Frame::Keepalive { wal_end, .. } => wal_end,
                };
                // Once only: a server that has all it waited for goes, and what it did not read then cuts the connection.
                if at > acknowledged && writer.status(at, at, at, false).await.is_err() {
                    return false;
                }
                acknowledged = acknowledged.max(at);
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fast_shutdown_of_the_source_ends_the_stream_in_order_and_soon() {
    for version in [Version::V14, Version::V15, Version::V18] {
        let cluster = cluster(version, TABLE);
        let mut following = JoinSet::new();
        following.spawn(follow(&cluster).await);
        cluster
            .psql("postgres", "INSERT INTO t SELECT g, 'x' FROM generate_series(1, 1000) g")
            .unwrap();
        let began = Instant::now();
        tokio::task::block_in_place(|| cluster.stop_fast()).unwrap();
        assert!(began.elapsed() < Duration::from_secs(10), "{version:?}: {:?}", began.elapsed());
        let in_order = timeout(Duration::from_secs(10), following.join_next()).await.unwrap();
        assert!(in_order.unwrap().unwrap(), "{version:?}: it ended with an error");
    }
}

/// `hazards.md` C36: the server waits for room in the socket, and hears us all the same.
#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_stands_still_is_kept_alive_by_its_writer() {
    let cluster = Cluster::builder().setting("wal_sender_timeout", "1s").start().unwrap();
    crate::stream_support::prepare(&cluster, TABLE);
    let rows = "INSERT INTO t SELECT g, repeat('x', 1000) FROM generate_series(1, 60000) g";
    cluster.psql("postgres", rows).unwrap();
    barrier(&cluster, "end");
    let (mut reader, mut writer) = start(&cluster, &options()).await;
    let mut interval = tokio::time::interval(Duration::from_millis(100));
    for _ in 0..30 {
        interval.tick().await;
        writer.status(Lsn::new(1), Lsn::ZERO, Lsn::ZERO, false).await.unwrap();
    }
    let mut living = JoinSet::new();
    living.spawn(async move {
        loop {
            interval.tick().await;
            writer.status(Lsn::new(1), Lsn::ZERO, Lsn::ZERO, false).await.unwrap();
        }
    });
    let payloads = until_barrier(&mut reader, "end").await;
    assert_eq!(payloads.iter().filter(|payload| payload[0] == b'I').count(), 60_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminated_session_may_be_tried_again() {
    let cluster = cluster(Version::V15, TABLE);
    let (mut reader, _writer) = start(&cluster, &options()).await;
    let text = format!("SELECT pg_terminate_backend({})", reader.backend_pid());
    cluster.psql("postgres", &text).unwrap();
    let error = loop {
        if let Err(error) = reader.next().await {
            break error;
        }
    };
    assert_eq!(error.disposition(), Disposition::Retry, "{error}");
}

/// A session that the server still believes in: its network is gone without a word.
async fn make_zombie(cluster: &Cluster, proxy: &Proxy, options: &StreamOptions) -> i32 {
    let spec = spec(&proxy.url(&cluster.url("postgres")));
    // The end of the connection may slip through before the hole is black: then once more.
    for _ in 0..20 {
        let stream = ReplicationStream::start(&spec, options).await.unwrap();
        let pid = stream.backend_pid();
        for direction in [Direction::ToServer, Direction::ToClient] {
            proxy.fault(direction, Fault::BlackHole);
        }
        drop(stream);
        if cluster.psql("postgres", READER).unwrap() == pid.to_string() {
            return pid;
        }
        proxy.heal();
    }
    panic!("every session noticed that its client had gone");
}

fn impatient() -> StreamOptions {
    let (patience, silence) = (Duration::from_secs(2), Duration::from_secs(3600));
    StreamOptions { patience, silence, ..options() }
}

/// A server that never gives up on a client.
fn patient_cluster() -> Cluster {
    let cluster = Cluster::builder().setting("wal_sender_timeout", "0").start().unwrap();
    crate::stream_support::prepare(&cluster, TABLE);
    cluster
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_session_of_ours_is_ended_and_its_slot_taken() {
    let cluster = patient_cluster();
    let proxy = Proxy::start(&cluster).unwrap();
    let zombie = make_zombie(&cluster, &proxy, &options()).await;
    // The one that this process has lost, at once; another one of ours, once it has been silent.
    for options in [
        StreamOptions { previous_pid: Some(zombie), ..impatient() },
        StreamOptions { silence: Duration::from_millis(300), ..impatient() },
    ] {
        let (mut reader, writer) = start(&cluster, &options).await;
        assert_eq!(cluster.psql("postgres", READER).unwrap(), reader.backend_pid().to_string());
        barrier(&cluster, "alive");
        until_barrier(&mut reader, "alive").await;
        reader.finish(writer).await.unwrap();
        cluster.wait_for("postgres", IS_FREE, "t").unwrap();
        proxy.heal();
        make_zombie(&cluster, &proxy, &options).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_of_others_or_one_that_lives_is_never_ended() {
    let cluster = patient_cluster();
    let spec = spec(&cluster.url("postgres"));
    // Another name, and dead for all we know.
    let theirs = StreamOptions { application_name: "tidemark_job2".into(), ..options() };
    let proxy = Proxy::start(&cluster).unwrap();
    let pid = make_zombie(&cluster, &proxy, &theirs).await;
    let eager = StreamOptions { previous_pid: Some(pid), silence: Duration::ZERO, ..impatient() };
    let error = ReplicationStream::start(&spec, &eager).await.unwrap_err();
    assert_eq!(error.disposition(), Disposition::Blocked, "{error}");
    let way_out = error.way_out().unwrap();
    assert!(
        way_out.contains(&format!("process {pid} (tidemark_job2, role postgres)")),
        "{way_out}"
    );
    assert_eq!(cluster.psql("postgres", READER).unwrap(), pid.to_string());
    cluster.psql("postgres", &format!("SELECT pg_terminate_backend({pid})")).unwrap();
    cluster.wait_for("postgres", IS_FREE, "t").unwrap();

    // Our name, and alive: it answers.
    let (reader, mut writer) = start(&cluster, &options()).await;
    let mut living = JoinSet::new();
    living.spawn(async move {
        let mut interval = tokio::time::interval(Duration::from_millis(50));
        loop {
            interval.tick().await;
            writer.status(Lsn::new(1), Lsn::ZERO, Lsn::ZERO, false).await.unwrap();
        }
    });
    let replied = "SELECT count(*) FROM pg_stat_replication WHERE reply_time IS NOT NULL";
    cluster.wait_for("postgres", replied, "1").unwrap();
    let second = StreamOptions { silence: Duration::from_millis(700), ..impatient() };
    let error = ReplicationStream::start(&spec, &second).await.unwrap_err();
    assert_eq!(error.disposition(), Disposition::Blocked, "{error}");
    assert_eq!(cluster.psql("postgres", READER).unwrap(), reader.backend_pid().to_string());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_says_who_it_is_and_who_else_keeps_its_wal() {
    let cluster = cluster(Version::V15, TABLE);
    let spec = spec(&cluster.url("postgres"));
    let client = session(&cluster.url("postgres")).await;
    let identity = identify(&spec).await.unwrap();
    let system =
        cluster.psql("postgres", "SELECT system_identifier FROM pg_control_system()").unwrap();
    assert_eq!(identity.system_identifier.to_string(), system);
    assert_eq!((identity.timeline, identity.database.as_str()), (1, "postgres"));
    assert!(identity.history.is_empty() && identity.head > Lsn::ZERO);
    let slot = inspect_slot(&client, SLOT).await.unwrap().unwrap();
    assert_eq!(slot.plugin.as_deref(), Some("pgoutput"));
    assert_eq!(slot.confirmed_flush, Some(lsn(&cluster, CONFIRMED)));
    assert_eq!(slot.invalid_because(), None);
    assert_eq!(inspect_slot(&client, "tidemark_other").await.unwrap(), None);

    assert_eq!(retained_by_others(&client, SLOT).await.unwrap(), None);
    let hold = "SELECT pg_copy_logical_replication_slot('tidemark_job', 'old one'::name::text)";
    assert!(cluster.psql("postgres", hold).is_err(), "slot names are not quoted");
    let hold = "CHECKPOINT; SELECT pg_create_physical_replication_slot('theirs', true);
                BEGIN; INSERT INTO t VALUES (1, 'x'); PREPARE TRANSACTION 'forgotten';
                INSERT INTO t SELECT g, 'x' FROM generate_series(2, 1000) g; CHECKPOINT";
    cluster.psql("postgres", hold).unwrap();
    let text = retained_by_others(&client, SLOT).await.unwrap().unwrap();
    assert!(text.contains("prepared transaction 'forgotten' since "), "{text}");
    // Their slot begins after ours: it keeps nothing that ours does not.
    assert!(!text.contains("theirs"), "{text}");
    cluster.psql("postgres", "SELECT pg_drop_replication_slot('tidemark_job')").unwrap();
    let text = retained_by_others(&client, SLOT).await.unwrap().unwrap();
    assert!(text.contains("slot theirs keeps "), "{text}");
}
