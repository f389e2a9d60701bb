//! The catch-up beside the stream: the same messages, no gap and no overlap where the one goes over into the other.

use std::time::Duration;

use bytes::Bytes;
use tidemark_model::{Budget, Lsn};
use tidemark_source::{CatchUp, CatchUpOptions, Disposition, Frame, StreamOptions};
use tidemark_testkit::{Cluster, Version};

use crate::stream_support::{SLOT, barrier, cluster, ends, lsn, options, start, until_barrier};
use crate::support::{session, spec};

const TABLE: &str = "CREATE TABLE t (id int PRIMARY KEY, v text);";
const SLOTS: &str = "SELECT string_agg(slot_name || ' ' || confirmed_flush_lsn || ' ' || restart_lsn, ', ') \
                     FROM pg_replication_slots WHERE NOT temporary";

fn catch_up() -> CatchUpOptions {
    CatchUpOptions::new(SLOT, SLOT, SLOT)
}

/// Rounds of about so many messages, up to the last.
fn small_rounds(messages: u32) -> CatchUpOptions {
    CatchUpOptions { messages, messages_max: messages, last_bytes: 0, ..catch_up() }
}

async fn open(cluster: &Cluster, options: CatchUpOptions) -> CatchUp {
    CatchUp::open(&spec(&cluster.url("postgres")), options).await.unwrap()
}

/// Whether a transaction in progress lacks its end.
fn is_unfinished(messages: &[Vec<Bytes>]) -> bool {
    let of = |tag| messages.iter().flatten().filter(move |payload| payload[0] == tag);
    let first_blocks = of(b'S').filter(|payload| payload[5] == 1).count();
    first_blocks > of(b'c').count()
}

/// All messages of all rounds, by round.
async fn rounds(catch_up: &mut CatchUp) -> Vec<Vec<Bytes>> {
    rounds_and_behind(catch_up).await.0
}

/// The same, and how many of the rounds went on behind the one before.
async fn rounds_and_behind(catch_up: &mut CatchUp) -> (Vec<Vec<Bytes>>, u32) {
    let budget = Budget::new(64 << 20);
    let (mut all, mut behind) = (Vec::new(), 0);
    while let Some(mut round) = catch_up.round().await.unwrap() {
        let mut payloads = Vec::new();
        while let Some(frames) = round.next(&budget).await.unwrap() {
            payloads.extend(frames.iter().map(|frame| match frame.unwrap() {
                Frame::XLogData { payload, .. } => payload,
                Frame::Keepalive { .. } => panic!("a keepalive in a query's answer"),
            }));
        }
        all.push(payloads);
        if is_unfinished(&all) && catch_up.go_on() {
            behind += 1;
        }
    }
    (all, behind)
}

fn write(cluster: &Cluster, transactions: u32, first: u32) {
    let text: String = (0..transactions)
        .map(|number| {
            let id = first + number * 10;
            format!("BEGIN; INSERT INTO t SELECT g, 'x' FROM generate_series({id}, {id} + 4) g; UPDATE t SET v = 'y' WHERE id = {id}; COMMIT;")
        })
        .collect();
    cluster.psql("postgres", &text).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn rounds_and_then_the_stream_are_what_the_stream_alone_is() {
    for version in [Version::V14, Version::V15, Version::V18] {
        let cluster = cluster(version, TABLE);
        write(&cluster, 20, 0);
        // Begun before the catch-up, committed after it, so that it lies on both sides.
        let open_one = session(&cluster.url("postgres")).await;
        open_one.batch_execute("BEGIN; INSERT INTO public.t VALUES (-1, 'early')").await.unwrap();
        write(&cluster, 20, 10_000);
        barrier(&cluster, "middle");
        let slots = cluster.psql("postgres", SLOTS).unwrap();

        let mut catching = open(&cluster, small_rounds(50)).await;
        write(&cluster, 3, 100_000);
        let rounds = rounds(&mut catching).await;
        assert!(rounds.len() > 3 && !catching.gave_up(), "{version:?}: {} rounds", rounds.len());
        for round in &rounds {
            assert_eq!(
                (round[0][0], round[round.len() - 1][0]),
                (b'B', b'C'),
                "whole transactions"
            );
        }
        assert!(catching.advanced_to() >= catching.goal(), "{version:?}");
        let (advanced, caught) = (catching.advanced_to(), rounds.concat());
        assert!(ends(&caught).iter().all(|end| *end <= advanced));
        catching.close().await;
        assert_eq!(cluster.psql("postgres", SLOTS).unwrap(), slots, "the durable slot stays");
        cluster.wait_for("postgres", "SELECT count(*) FROM pg_replication_slots", "1").unwrap();

        open_one.batch_execute("INSERT INTO public.t VALUES (-2, 'late'); COMMIT").await.unwrap();
        barrier(&cluster, "end");
        let whole = StreamOptions { streaming: false, ..options() };
        let (mut reader, writer) = start(&cluster, &whole).await;
        let expected = until_barrier(&mut reader, "end").await;
        reader.finish(writer).await.unwrap();
        let rest = StreamOptions { start: advanced, ..whole };
        let (mut reader, writer) = start(&cluster, &rest).await;
        let rest = until_barrier(&mut reader, "end").await;
        reader.finish(writer).await.unwrap();
        assert_eq!([ends(&caught), ends(&rest)].concat(), ends(&expected), "{version:?}");
        // Each round describes its relations anew.
        let changes = |all: &[Bytes]| -> Vec<Bytes> {
            all.iter().filter(|payload| payload[0] != b'R').cloned().collect()
        };
        assert!(changes(&[caught, rest].concat()) == changes(&expected), "{version:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rounds_grow_and_the_last_one_has_all_the_rest() {
    let cluster = cluster(Version::V15, TABLE);
    write(&cluster, 100, 0);
    barrier(&cluster, "end");
    let mut lengths = Vec::new();
    for options in [
        CatchUpOptions { messages_max: 160, ..small_rounds(40) },
        CatchUpOptions { last_bytes: u64::MAX, ..small_rounds(40) },
    ] {
        let mut catching = open(&cluster, options).await;
        lengths.push(rounds(&mut catching).await.iter().map(Vec::len).collect::<Vec<_>>());
        assert!(catching.advanced_to() >= catching.goal());
        catching.close().await;
    }
    // Eight messages a transaction, and the barrier.
    let [growing, whole] = lengths.try_into().unwrap();
    assert_eq!(growing.iter().sum::<usize>(), whole[0] + growing.len() - 1, "each describes t");
    assert_eq!(whole.len(), 1);
    let at_least = [40, 80, 160, 160];
    assert!(growing.iter().zip(at_least).all(|(found, least)| *found >= least), "{growing:?}");
    assert!(growing.len() > 4 && growing.iter().all(|found| *found < 180), "{growing:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_nobody_reads_is_moved_to_what_is_durable_and_never_back() {
    let cluster = cluster(Version::V15, TABLE);
    write(&cluster, 10, 0);
    barrier(&cluster, "end");
    let mut whole = open(&cluster, catch_up()).await;
    let all = ends(&rounds(&mut whole).await.concat());
    whole.close().await;
    let client = session(&cluster.url("postgres")).await;
    tidemark_source::advance_slot(&client, SLOT, all[4]).await.unwrap();
    let confirmed = "SELECT confirmed_flush_lsn FROM pg_replication_slots WHERE NOT temporary";
    assert_eq!(lsn(&cluster, confirmed), all[4]);
    assert!(tidemark_source::advance_slot(&client, SLOT, all[3]).await.is_err());
    let mut rest = open(&cluster, catch_up()).await;
    assert_eq!(ends(&rounds(&mut rest).await.concat()), all[5..]);
    rest.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_skips_what_is_there_already() {
    let cluster = cluster(Version::V15, TABLE);
    write(&cluster, 10, 0);
    barrier(&cluster, "end");
    let mut whole = open(&cluster, catch_up()).await;
    let all = ends(&rounds(&mut whole).await.concat());
    assert_eq!(all.len(), 11);
    whole.close().await;
    for skipped in [1, 5, 11] {
        let options = CatchUpOptions { start: all[skipped - 1], ..catch_up() };
        let mut rest = open(&cluster, options).await;
        assert_eq!(ends(&rounds(&mut rest).await.concat()), all[skipped..], "from {skipped}");
        rest.close().await;
    }
    // What the slot has let go of cannot be had.
    let slot = lsn(&cluster, "SELECT confirmed_flush_lsn FROM pg_replication_slots LIMIT 1");
    let before = CatchUpOptions { start: Lsn::new(slot.as_u64() - 8), ..catch_up() };
    let error = CatchUp::open(&spec(&cluster.url("postgres")), before).await.unwrap_err();
    assert_eq!(error.disposition(), Disposition::SourceCannotContinue, "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_that_takes_too_long_is_left_to_the_stream() {
    let cluster = cluster(Version::V15, TABLE);
    let slots = cluster.psql("postgres", SLOTS).unwrap();
    cluster
        .psql("postgres", "INSERT INTO t SELECT g, 'x' FROM generate_series(1, 400000) g")
        .unwrap();
    barrier(&cluster, "end");
    let options = CatchUpOptions { patience: Duration::from_millis(20), ..catch_up() };
    let mut catching = open(&cluster, options).await;
    let before = catching.advanced_to();
    assert!(rounds(&mut catching).await.is_empty() && catching.gave_up());
    assert_eq!(catching.advanced_to(), before, "nothing was given");
    catching.close().await;
    assert_eq!(cluster.psql("postgres", SLOTS).unwrap(), slots);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_transaction_is_given_in_progress_and_small_ones_behind_it_in_rounds() {
    let cluster = cluster(Version::V15, TABLE);
    cluster
        .psql("postgres", "ALTER DATABASE postgres SET logical_decoding_work_mem = '64kB'")
        .unwrap();
    write(&cluster, 10, 0);
    cluster
        .psql("postgres", "INSERT INTO t SELECT g, 'x' FROM generate_series(1000, 101000) g")
        .unwrap();
    write(&cluster, 10, 200_000);
    barrier(&cluster, "end");
    let bounded = CatchUpOptions { wal_bytes: 1 << 20, last_bytes: 0, ..catch_up() };
    let mut catching = open(&cluster, bounded).await;
    let given = rounds(&mut catching).await;
    assert!(!catching.gave_up() && catching.advanced_to() >= catching.goal());
    catching.close().await;
    let count = |tag| {
        given.iter().map(|round| round.iter().filter(|p| p[0] == tag).count()).collect::<Vec<_>>()
    };
    assert_eq!(count(b'c'), [0, 0, 0, 1], "in the fourth round, which has the rest, too");
    assert_eq!(count(b'C'), [10, 0, 0, 11]);
    let rows = count(b'I');
    assert_eq!((rows[0], rows[1], rows[2] + rows[3]), (50, 0, 100_051));
    assert!(rows[2] > 5_000 && rows[3] > 10_000, "the beginning comes first: {rows:?}");
    assert!(count(b'S')[2] > 10, "in blocks, as it was decoded");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_sessions_give_what_one_gives() {
    for version in [Version::V14, Version::V15, Version::V18] {
        let cluster = Cluster::builder()
            .version(version)
            .setting("max_replication_slots", "3")
            .setting("logical_decoding_work_mem", "64kB")
            .start()
            .unwrap();
        crate::stream_support::prepare(&cluster, TABLE);
        // Wherever the first session's part ends, a large one is in progress there.
        let throughout = session(&cluster.url("postgres")).await;
        throughout.batch_execute("BEGIN").await.unwrap();
        // Large ones beside each other, parts of them rolled back, small ones that commit meanwhile.
        for part in 0..6 {
            let first = part * 100_000;
            let rows = format!(
                "INSERT INTO public.t SELECT g, 'z' FROM generate_series(-{0} - 3000, -{0} - 1) g",
                first
            );
            throughout.batch_execute(&rows).await.unwrap();
            let rows = |offset: u32, count: u32| {
                format!(
                    "INSERT INTO t SELECT g, 'x' FROM generate_series({0}, {0} + {count}) g;",
                    first + offset
                )
            };
            let large = format!(
                "BEGIN; {} SAVEPOINT a; {} ROLLBACK TO a; {} COMMIT",
                rows(0, 9_000),
                rows(10_000, 3_000),
                rows(20_000, 9_000)
            );
            std::thread::scope(|scope| {
                scope.spawn(|| cluster.psql("postgres", &large).unwrap());
                scope.spawn(|| write(&cluster, 20, first + 50_000));
            });
        }
        throughout.batch_execute("COMMIT").await.unwrap();
        barrier(&cluster, "end");
        let bounded = CatchUpOptions { wal_bytes: 64 << 10, last_bytes: 0, ..catch_up() };
        let mut catching = open(&cluster, bounded.clone()).await;
        let (by_two, behind) = rounds_and_behind(&mut catching).await;
        assert!(behind > 0, "{version:?}");
        catching.close().await;
        // The copies go with their sessions, a moment later.
        cluster.wait_for("postgres", "SELECT count(*) FROM pg_replication_slots", "1").unwrap();
        // Now only one copy of the slot can be had.
        let taken = "SELECT pg_create_physical_replication_slot('taken')";
        cluster.psql("postgres", taken).unwrap();
        let mut catching = open(&cluster, bounded).await;
        let (by_one, behind) = rounds_and_behind(&mut catching).await;
        assert!(catching.advanced_to() >= catching.goal());
        catching.close().await;
        assert_eq!(behind, 0, "{version:?}: one session gives large rounds whole");
        assert_eq!(by_two.concat(), by_one.concat(), "{version:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn where_nothing_ends_in_much_wal_the_rest_is_left_to_the_stream() {
    let cluster = cluster(Version::V15, TABLE);
    write(&cluster, 10, 0);
    cluster
        .psql("postgres", "INSERT INTO t SELECT g, 'x' FROM generate_series(1000, 101000) g")
        .unwrap();
    barrier(&cluster, "end");
    let bounded =
        CatchUpOptions { wal_bytes: 1 << 20, large_bytes: 1 << 20, last_bytes: 0, ..catch_up() };
    let mut catching = open(&cluster, bounded).await;
    let given = rounds(&mut catching).await;
    assert!(catching.gave_up());
    let lengths = [given[0].len(), given[1].len(), given.last().unwrap().len()];
    assert_eq!(lengths, [81, 0, 0], "ten transactions, nothing, a large round, nothing");
    assert!(given[2..].iter().flatten().all(|payload| payload[0] != b'c' && payload[0] != b'C'));
    let advanced = catching.advanced_to();
    assert!(ends(&given[0]).iter().all(|end| *end <= advanced));
    assert!(advanced < catching.goal());
    catching.close().await;
    // What follows there has all of the large one.
    let rest = StreamOptions { start: advanced, streaming: false, ..options() };
    let (mut reader, writer) = start(&cluster, &rest).await;
    let rest = until_barrier(&mut reader, "end").await;
    reader.finish(writer).await.unwrap();
    assert_eq!(rest.iter().filter(|payload| payload[0] == b'I').count(), 100_001);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_free_slot_there_is_no_catching_up() {
    let cluster = Cluster::builder().setting("max_replication_slots", "1").start().unwrap();
    crate::stream_support::prepare(&cluster, TABLE);
    let answer = CatchUp::open(&spec(&cluster.url("postgres")), catch_up()).await;
    let error = answer.unwrap_err();
    assert_eq!(error.disposition(), Disposition::Refused, "{error}");
    assert!(error.way_out().unwrap().contains("max_replication_slots"));
}
