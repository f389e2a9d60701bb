//! What the assembly gives out, in which order, and what it must not.

use bytes::Bytes;
use tidemark_model::Lsn;
use tidemark_source::{Message, RowKind};

use super::super::body::messages;
use super::*;

fn assembler(directory: &Path, memory: usize, position: u64) -> Assembler {
    let own = vec!["tidemark_job".to_owned()];
    Assembler::new(directory, memory, Lsn::new(position), 0x1_0000_0000, own)
}

fn begin(xid: u32) -> Message {
    Message::Begin { final_lsn: Lsn::new(0), committed_at: 0, xid }
}

fn commit(end: u64) -> Message {
    Message::Commit { commit_lsn: Lsn::new(end - 1), end_lsn: Lsn::new(end), committed_at: 7 }
}

fn start(xid: u32, first: bool) -> Message {
    Message::StreamStart { xid, first }
}

fn stream_commit(xid: u32, end: u64) -> Message {
    let (commit_lsn, end_lsn) = (Lsn::new(end - 1), Lsn::new(end));
    Message::StreamCommit { xid, commit_lsn, end_lsn, committed_at: 7 }
}

fn row(subxid: Option<u32>, text: &str) -> Message {
    Message::Row { subxid, kind: RowKind::Insert, body: Bytes::copy_from_slice(text.as_bytes()) }
}

fn rows(committed: Committed) -> Vec<String> {
    let mut reader = committed.body.read();
    let mut found = Vec::new();
    while let Some(block) = reader.next().unwrap() {
        found.extend(messages(&block).map(|m| String::from_utf8(m[1..].to_vec()).unwrap()));
    }
    found
}

/// Feeds messages and gives what came out: end, rows, and whether it was a repetition.
fn feed(assembler: &mut Assembler, all: Vec<Message>) -> Vec<(u64, Vec<String>, bool)> {
    let mut out = Vec::new();
    for message in all {
        match assembler.take(message).unwrap() {
            Step::Open | Step::Passed => {}
            Step::Committed(committed) => {
                out.push((committed.head.end_lsn.as_u64(), rows(committed), false));
            }
            Step::Repeated(committed) => {
                out.push((committed.head.end_lsn.as_u64(), rows(committed), true));
            }
            Step::Overtaken(overtaken) => panic!("{overtaken:?}"),
        }
    }
    out
}

fn texts(texts: &[&str]) -> Vec<String> {
    texts.iter().map(ToString::to_string).collect()
}

#[test]
fn transactions_come_whole_in_the_order_of_commits() {
    let directory = tempfile::tempdir().unwrap();
    let mut assembler = assembler(directory.path(), 1 << 20, 0);
    let all = vec![
        start(9, true),
        row(Some(9), "a1"),
        Message::StreamStop,
        begin(10),
        row(None, "b1"),
        commit(50),
        start(9, false),
        row(Some(9), "a2"),
        Message::StreamStop,
        start(11, true),
        row(Some(11), "c1"),
        Message::StreamStop,
        stream_commit(11, 60),
        stream_commit(9, 70),
    ];
    let expected = vec![
        (50, texts(&["b1"]), false),
        (60, texts(&["c1"]), false),
        (70, texts(&["a1", "a2"]), false),
    ];
    assert_eq!(feed(&mut assembler, all), expected);
    assert_eq!(assembler.in_memory, 0);
}

#[test]
fn what_was_rolled_back_is_in_none_whether_on_disk_or_not() {
    for memory in [1 << 20, 1] {
        let directory = tempfile::tempdir().unwrap();
        let mut assembler = assembler(directory.path(), memory, 0);
        let all = vec![
            start(5, true),
            row(Some(5), "kept"),
            row(Some(6), "lost 6"),
            row(Some(7), "lost 7, a child of 6"),
            Message::StreamStop,
            Message::StreamAbort { xid: 5, subxid: 7 },
            Message::StreamAbort { xid: 5, subxid: 6 },
            start(5, false),
            row(Some(8), "kept too"),
            row(Some(5), "and this"),
            Message::StreamStop,
            start(20, true),
            row(Some(20), "gone"),
            Message::StreamStop,
            Message::StreamAbort { xid: 20, subxid: 20 },
            // Nothing of it was ever streamed.
            Message::StreamAbort { xid: 77, subxid: 78 },
            stream_commit(5, 90),
        ];
        let expected = vec![(90, texts(&["kept", "kept too", "and this"]), false)];
        assert_eq!(feed(&mut assembler, all), expected, "memory {memory}");
        assert_eq!((assembler.in_memory, assembler.on_disk()), (0, 0));
    }
}

#[test]
fn only_the_end_decides_what_was_given_out_before() {
    let directory = tempfile::tempdir().unwrap();
    let mut assembler = assembler(directory.path(), 1 << 20, 50);
    // One that ends exactly there was; the next one begins where it ends (hazards C39).
    let all = vec![begin(1), row(None, "old"), commit(50), begin(2), row(None, "new"), commit(51)];
    let expected = vec![(50, texts(&["old"]), true), (51, texts(&["new"]), false)];
    assert_eq!(feed(&mut assembler, all), expected);
}

#[test]
fn a_new_connection_begins_open_transactions_again() {
    let directory = tempfile::tempdir().unwrap();
    let mut assembler = assembler(directory.path(), 1 << 20, 0);
    let all = vec![begin(1), row(None, "first"), commit(10), start(3, true), row(Some(3), "half")];
    feed(&mut assembler, all);
    assembler.reconnected(Lsn::new(10));
    let again = vec![
        begin(1),
        row(None, "first"),
        commit(10),
        start(3, true),
        row(Some(3), "half"),
        row(Some(3), "whole"),
        Message::StreamStop,
        stream_commit(3, 20),
    ];
    let expected = vec![(10, texts(&["first"]), true), (20, texts(&["half", "whole"]), false)];
    assert_eq!(feed(&mut assembler, again), expected);
}

#[test]
fn what_was_given_out_and_did_not_arrive_is_given_out_again() {
    let directory = tempfile::tempdir().unwrap();
    let mut assembler = assembler(directory.path(), 1 << 20, 0);
    feed(&mut assembler, vec![begin(1), row(None, "kept"), commit(10), begin(2), commit(20)]);
    // The second one was on its way to the queue when the connection was lost.
    assembler.reconnected(Lsn::new(10));
    let again = vec![begin(2), row(None, "lost on the way"), commit(20)];
    assert_eq!(feed(&mut assembler, again), [(20, texts(&["lost on the way"]), false)]);
}

#[test]
fn what_we_brought_to_the_source_does_not_come_back() {
    let directory = tempfile::tempdir().unwrap();
    let mut assembler = assembler(directory.path(), 1 << 20, 0);
    let origin = |name: &str| Message::Origin { lsn: Lsn::new(3), name: name.to_owned() };
    let all = vec![
        begin(1),
        origin("tidemark_job"),
        row(None, "ours"),
        commit(10),
        begin(2),
        origin("tidemark_job2"),
        row(None, "somebody else's"),
        commit(20),
    ];
    let found = feed(&mut assembler, all);
    assert!(found[0].2);
    assert_eq!(found[1], (20, texts(&["somebody else's"]), false));
    assert_eq!(assembler.position(), Lsn::new(20));
}

#[test]
fn messages_out_of_place_are_refused() {
    for wrong in [
        vec![row(None, "x")],
        vec![commit(5)],
        vec![Message::StreamStop],
        vec![begin(1), begin(2)],
        vec![begin(1), start(2, true)],
        vec![start(2, true), start(3, true)],
    ] {
        let directory = tempfile::tempdir().unwrap();
        let mut assembler = assembler(directory.path(), 1 << 20, 0);
        let failed = wrong.into_iter().any(|message| assembler.take(message).is_err());
        assert!(failed);
    }
}

#[test]
fn memory_of_open_transactions_is_bounded() {
    let directory = tempfile::tempdir().unwrap();
    let mut assembler = assembler(directory.path(), 10_000, 0);
    for xid in 1..=5 {
        feed(&mut assembler, vec![start(xid, true)]);
        for _ in 0..100 {
            feed(&mut assembler, vec![row(Some(xid), &"x".repeat(100))]);
            assert!(assembler.in_memory <= 10_000);
        }
        feed(&mut assembler, vec![Message::StreamStop]);
    }
    let found =
        feed(&mut assembler, (1..=5).map(|xid| stream_commit(xid, 10 + u64::from(xid))).collect());
    assert!(found.iter().all(|(_, rows, _)| rows.len() == 100));
}

#[test]
fn transaction_ids_are_extended_across_a_wrap() {
    let mut epoch = XidEpoch { near: 0x1_FFFF_FFF0 };
    assert_eq!(epoch.extend(0xFFFF_FFE0), 0x1_FFFF_FFE0);
    assert_eq!(epoch.extend(0xFFFF_FFFF), 0x1_FFFF_FFFF);
    assert_eq!(epoch.extend(3), 0x2_0000_0003);
    assert_eq!(epoch.extend(0xFFFF_FFF5), 0x1_FFFF_FFF5);
}

#[test]
fn a_large_transaction_is_given_ahead_once_it_is_large_and_never_again_or_when_it_is_ours() {
    let directory = tempfile::tempdir().unwrap();
    let begin = |xid, commit| Message::Begin { final_lsn: Lsn::new(commit), committed_at: 7, xid };
    let mut assembler = assembler(directory.path(), 1 << 20, 100);
    feed(&mut assembler, vec![begin(5, 100), row(None, "a")]);
    assert!(assembler.ahead(100).is_none(), "it is small yet");
    feed(&mut assembler, vec![row(None, &"b".repeat(100))]);
    let Coming { head, is_decided: true, .. } = assembler.ahead(100).unwrap() else { panic!() };
    assert_eq!((head.xid, head.commit_lsn), (0x1_0000_0005, Lsn::new(100)));
    let body = assembler.take_ahead();
    assert_eq!(rows(Committed { head, body }), ["a".to_owned(), "b".repeat(100)]);
    assert!(assembler.ahead(100).is_none());
    let rest = feed(&mut assembler, vec![row(None, "c"), commit(110)]);
    assert_eq!(rest, [(110, vec!["c".to_owned()], false)]);
    // Its commit record begins before the position: it was given out.
    feed(&mut assembler, vec![begin(6, 109), row(None, &"d".repeat(100))]);
    assert!(assembler.ahead(100).is_none());
    feed(&mut assembler, vec![commit(110)]);
    let ours = Message::Origin { lsn: Lsn::new(0), name: "tidemark_job".to_owned() };
    feed(&mut assembler, vec![begin(7, 120), ours, row(None, &"e".repeat(100))]);
    assert!(assembler.ahead(100).is_none(), "we brought it there");
}

fn stop() -> Message {
    Message::StreamStop
}

/// One in progress of which 100 bytes and more were taken.
fn given(directory: &Path) -> Assembler {
    let mut assembler = assembler(directory, 1 << 20, 100);
    let rows = vec![start(5, true), row(Some(5), "a"), row(Some(6), &"b".repeat(100)), stop()];
    feed(&mut assembler, rows);
    let coming = assembler.ahead(100).unwrap();
    assert!(!coming.is_decided && coming.bytes > 100 && coming.head.xid == 0x1_0000_0005);
    assert!(assembler.take_ahead().length() > 100 && assembler.ahead(1).is_none());
    assembler
}

fn overtaken(assembler: &mut Assembler, message: Message) -> &'static str {
    match assembler.take(message).unwrap() {
        Step::Overtaken(Overtaken { xid: 0x1_0000_0005, because }) => because,
        other => panic!("{other:?}"),
    }
}

#[test]
fn one_in_progress_is_given_ahead_where_nothing_ends_before_it() {
    let directory = tempfile::tempdir().unwrap();
    let mut alone = given(directory.path());
    feed(&mut alone, vec![start(5, false), row(Some(5), "c"), stop(), start(8, true), stop()]);
    assert_eq!(alone.ahead(1).unwrap().head.xid, 0x1_0000_0005, "whatever else began");
    let rest = feed(&mut alone, vec![stream_commit(5, 110)]);
    assert_eq!(rest, [(110, vec!["c".to_owned()], false)]);
    assert!(alone.ahead(0).is_none(), "one ended since the other began");

    let mut both = assembler(directory.path(), 1 << 20, 100);
    feed(&mut both, vec![start(5, true), row(Some(5), "a"), stop(), start(6, true), stop()]);
    assert!(both.ahead(1).is_none(), "two are in progress");
    feed(&mut both, vec![Message::StreamAbort { xid: 6, subxid: 6 }]);
    assert!(both.ahead(1).is_some());

    let mut ours = assembler(directory.path(), 1 << 20, 100);
    let origin = Message::Origin { lsn: Lsn::new(0), name: "tidemark_job".to_owned() };
    feed(&mut ours, vec![start(5, true), origin, row(Some(5), "a"), stop()]);
    assert!(ours.ahead(1).is_none(), "we brought it there");
}

#[test]
fn one_that_was_given_ahead_is_taken_back_where_its_end_does_not_follow() {
    let directory = tempfile::tempdir().unwrap();
    let abort = |subxid| Message::StreamAbort { xid: 5, subxid };
    assert_eq!(overtaken(&mut given(directory.path()), abort(5)), "it was rolled back");
    let mut part = given(directory.path());
    feed(&mut part, vec![abort(7)]);
    assert_eq!(overtaken(&mut part, abort(6)), "a part of it was rolled back");
    let mut other = given(directory.path());
    feed(&mut other, vec![begin(9), row(None, &"x".repeat(100))]);
    assert!(other.ahead(1).is_none(), "rows of another are none of it");
    let because = "another transaction committed before it";
    assert_eq!(overtaken(&mut other, commit(105)), because);
    let mut streamed = given(directory.path());
    feed(&mut streamed, vec![start(9, true), stop()]);
    assert_eq!(overtaken(&mut streamed, stream_commit(9, 105)), because);
    let mut old = given(directory.path());
    assert_eq!(overtaken(&mut old, stream_commit(5, 100)), "it is not to be given out");
    // The connection that follows gives it from its beginning.
    old.reconnected(Lsn::new(100));
    let all = vec![start(5, true), row(Some(5), "a"), stop(), stream_commit(5, 110)];
    assert_eq!(feed(&mut old, all), [(110, vec!["a".to_owned()], false)]);
}
