//! What comes out of a queue that goes to disk and back.

use tidemark_sink::Flushed;

use super::super::body::Body;
use super::super::spool::Identity;
use super::*;

fn committed(end: u64, bytes: usize) -> Committed {
    let mut body = Body::default();
    body.push(b'I', &vec![0; bytes]);
    let (commit_lsn, end_lsn) = (Lsn::new(end - 1), Lsn::new(end));
    Committed { head: TransactionHead { xid: end, commit_lsn, end_lsn, committed_at: 0 }, body }
}

fn spool(directory: &std::path::Path, base: u64) -> Spool {
    let identity = Identity {
        job: String::new(),
        run: String::new(),
        system_identifier: String::new(),
        base: Lsn::new(base),
    };
    Spool::create(directory, identity).unwrap()
}

fn durable(lsn: u64) -> DurableLsn {
    DurableLsn::answered(Flushed::up_to(Lsn::new(lsn)))
}

fn end_of(item: Option<Item>) -> u64 {
    match item {
        Some(Item::Transaction(queued)) => queued.head.end_lsn.as_u64(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_push_waits_for_memory_and_goes_on_when_it_is_popped() {
    let queue = Queue::new(Budget::new(4096), 1 << 30, Lsn::new(0), Lsn::new(0));
    queue.push(committed(10, 3000), false).await.unwrap();
    let pusher = queue.push(committed(20, 3000), false);
    tokio::pin!(pusher);
    assert!(futures::poll!(&mut pusher).is_pending());
    assert_eq!(end_of(queue.try_pop().unwrap()), 10);
    pusher.await.unwrap();
    assert_eq!(end_of(queue.try_pop().unwrap()), 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_pops_is_told_of_many_pushes_at_once_or_when_there_is_no_room() {
    let queue = Queue::new(Budget::new(4096), 1 << 30, Lsn::new(0), Lsn::new(0));
    queue.push(committed(10, 10), false).await.unwrap();
    queue.push(committed(20, 10), false).await.unwrap();
    let told = queue.filled();
    tokio::pin!(told);
    assert!(futures::poll!(&mut told).is_pending());
    queue.tell(true);
    assert!(futures::poll!(&mut told).is_ready() && queue.is_behind());
    queue.tell(false);
    queue.filled().await;
    assert!(!queue.is_behind());
    let (told, pusher) = (queue.filled(), queue.push(committed(30, 3000), false));
    tokio::pin!(told, pusher);
    assert!(futures::poll!(&mut told).is_pending());
    assert!(futures::poll!(&mut pusher).is_pending());
    assert!(futures::poll!(&mut told).is_ready(), "what was pushed has to go first");
    assert_eq!(end_of(queue.try_pop().unwrap()), 10);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_that_turns_to_disk_keeps_the_order_and_comes_back() {
    let directory = tempfile::tempdir().unwrap();
    let queue = Queue::new(Budget::new(1 << 20), 1 << 30, Lsn::new(0), Lsn::new(0));
    queue.push(committed(10, 10), false).await.unwrap();
    queue.turn_to_disk(|base| Ok(spool(directory.path(), base.as_u64()))).unwrap();
    queue.push(committed(20, 10), false).await.unwrap();
    assert_eq!(queue.sync_spool().unwrap(), None, "what is before the base is not durable");
    assert_eq!(end_of(queue.try_pop().unwrap()), 10);
    assert_eq!(end_of(queue.try_pop().unwrap()), 20);
    queue.set_durable(durable(10));
    assert_eq!(queue.sync_spool().unwrap(), Some(durable(20)));
    assert!(queue.spools().0);
    assert!(queue.try_pop().unwrap().is_none());
    assert!(!queue.spools().0, "all of it was given out");
    queue.push(committed(30, 10), false).await.unwrap();
    queue.push(committed(40, 10), false).await.unwrap();
    assert_eq!(queue.sync_spool().unwrap(), Some(durable(20)), "30 is in memory");
    assert_eq!(end_of(queue.try_pop().unwrap()), 30);
    queue.set_durable(durable(20));
    assert_eq!(end_of(queue.try_pop().unwrap()), 40);
    assert!(queue.try_pop().unwrap().is_none());
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
}

/// A queue that has 20 in its spool and 30 in memory, and gives out both.
async fn with_one_in_the_spool_and_one_behind(directory: &std::path::Path) -> Queue {
    let queue = Queue::new(Budget::new(1 << 20), 1 << 30, Lsn::new(10), Lsn::new(10));
    queue.hold(spool(directory, 10));
    queue.push(committed(20, 10), false).await.unwrap();
    queue.let_go();
    queue.push(committed(30, 10), false).await.unwrap();
    queue
}

#[tokio::test(flavor = "multi_thread")]
async fn what_gathered_behind_a_spool_goes_into_it_before_anything_that_comes() {
    let directory = tempfile::tempdir().unwrap();
    let queue = with_one_in_the_spool_and_one_behind(directory.path()).await;
    queue.push(committed(40, 10), false).await.unwrap();
    queue.turn_to_disk(|_| panic!("there is a spool")).unwrap();
    queue.push(committed(50, 10), false).await.unwrap();
    assert_eq!(queue.sync_spool().unwrap(), Some(durable(50)));
    for end in [20, 30, 40, 50] {
        assert_eq!(end_of(queue.try_pop().unwrap()), end);
    }
    assert!(queue.try_pop().unwrap().is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_spool_is_not_gone_on_with_behind_what_was_given_out_from_memory() {
    let directory = tempfile::tempdir().unwrap();
    let queue = with_one_in_the_spool_and_one_behind(directory.path()).await;
    for end in [20, 30] {
        assert_eq!(end_of(queue.try_pop().unwrap()), end);
    }
    // What comes now would be in the spool behind 20, and 30 nowhere once this process is gone.
    queue.turn_to_disk(|_| panic!("there is a spool")).unwrap();
    queue.push(committed(40, 10), false).await.unwrap();
    assert!(!queue.spools().0);
    // The target has what the spool held: it goes, and the next one begins behind everything that was pushed.
    queue.set_durable(durable(30));
    assert_eq!(end_of(queue.try_pop().unwrap()), 40);
    queue.turn_to_disk(|base| Ok(spool(directory.path(), base.as_u64()))).unwrap();
    assert_eq!(queue.spools(), (true, Lsn::new(40)));
    queue.push(committed(50, 10), false).await.unwrap();
    assert_eq!(queue.sync_spool().unwrap(), None, "40 is not on the target");
    queue.set_durable(durable(40));
    assert_eq!(queue.sync_spool().unwrap(), Some(durable(50)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_held_spool_is_filled_and_not_read() {
    let directory = tempfile::tempdir().unwrap();
    let queue = Queue::new(Budget::new(1 << 20), 1 << 30, Lsn::new(10), Lsn::new(10));
    queue.hold(spool(directory.path(), 10));
    queue.push(committed(20, 10), false).await.unwrap();
    queue.set_idle(Lsn::new(25));
    assert!(queue.try_pop().unwrap().is_none());
    queue.let_go();
    assert_eq!(end_of(queue.try_pop().unwrap()), 20);
    assert!(matches!(queue.try_pop().unwrap(), Some(Item::Idle(lsn)) if lsn == Lsn::new(25)));
    assert!(queue.try_pop().unwrap().is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_for_us_is_said_only_behind_everything_that_was_pushed() {
    let queue = Queue::new(Budget::new(1 << 20), 1 << 30, Lsn::new(0), Lsn::new(0));
    queue.push(committed(10, 10), false).await.unwrap();
    queue.set_idle(Lsn::new(5));
    assert_eq!(end_of(queue.try_pop().unwrap()), 10);
    assert!(queue.try_pop().unwrap().is_none(), "5 is before what was popped");
    queue.set_idle(Lsn::new(15));
    queue.push(committed(20, 10), false).await.unwrap();
    assert_eq!(end_of(queue.try_pop().unwrap()), 20);
    assert!(queue.try_pop().unwrap().is_none(), "15 is before what was popped");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_spool_makes_the_push_wait() {
    let directory = tempfile::tempdir().unwrap();
    let queue = Queue::new(Budget::new(1 << 20), 1000, Lsn::new(10), Lsn::new(10));
    queue.turn_to_disk(|_| Ok(spool(directory.path(), 10))).unwrap();
    queue.push(committed(20, 2000), false).await.unwrap();
    let pusher = queue.push(committed(30, 10), false);
    tokio::pin!(pusher);
    assert!(futures::poll!(&mut pusher).is_pending());
    assert_eq!(end_of(queue.try_pop().unwrap()), 20);
    queue.set_durable(durable(20));
    assert!(queue.try_pop().unwrap().is_none());
    pusher.await.unwrap();
    assert_eq!(end_of(queue.try_pop().unwrap()), 30);
}

fn head(commit: u64) -> TransactionHead {
    let (commit_lsn, end_lsn) = (Lsn::new(commit), Lsn::new(commit + 1));
    TransactionHead { xid: commit, commit_lsn, end_lsn, committed_at: 0 }
}

fn queue_of(bytes: u64) -> Arc<Queue> {
    Arc::new(Queue::new(Budget::new(bytes), 1 << 30, Lsn::new(0), Lsn::new(0)))
}

fn coming(end: u64) -> Coming {
    Coming { head: head(end), bytes: 0, is_decided: true }
}

fn body(bytes: usize) -> Body {
    committed(1, bytes).body
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_that_goes_ahead_comes_in_pieces_and_with_its_true_end() {
    let queue = queue_of(4096);
    let ahead = queue.go_ahead(coming(15)).unwrap();
    ahead.push(body(3000)).await;
    let Some(Item::Ahead(mut head, mut reader)) = queue.try_pop().unwrap() else { panic!() };
    assert!(queue.try_pop().unwrap().is_none());
    let mut pusher = Box::pin(ahead.push(body(3000)));
    assert!(futures::poll!(&mut pusher).is_pending(), "there is no room");
    assert_eq!(reader.next(&mut head).await.unwrap().unwrap().len(), 3005);
    let mut second = Box::pin(reader.next(&mut head));
    assert!(futures::poll!(&mut second).is_pending());
    pusher.await;
    assert_eq!(second.await.unwrap().unwrap().len(), 3005);
    assert_eq!(queue.spools().1, Lsn::new(0), "a new connection begins before it");
    let (whole, rest) = (committed(20, 7).head, body(7));
    let (_, last) = tokio::join!(ahead.finish(whole, rest), reader.next(&mut head));
    assert_eq!(last.unwrap().unwrap().len(), 12);
    assert!(reader.next(&mut head).await.unwrap().is_none());
    assert_eq!((head.end_lsn, queue.spools().1), (Lsn::new(20), Lsn::new(20)));
    queue.push(committed(30, 10), false).await.unwrap();
    assert_eq!(end_of(queue.try_pop().unwrap()), 30);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_goes_ahead_only_where_nothing_is_before_it_or_goes_to_disk() {
    let directory = tempfile::tempdir().unwrap();
    let queue = queue_of(1 << 20);
    queue.push(committed(10, 10), false).await.unwrap();
    assert!(queue.go_ahead(coming(15)).is_none(), "one waits before it");
    queue.try_pop().unwrap();
    let ahead = queue.go_ahead(coming(15)).unwrap();
    // Where a spool would begin is not known before its end.
    queue.turn_to_disk(|_| panic!("not now")).unwrap();
    ahead.finish(committed(20, 7).head, body(7)).await;
    queue.turn_to_disk(|base| Ok(spool(directory.path(), base.as_u64()))).unwrap();
    assert!(queue.spools().0);
    assert!(queue.go_ahead(coming(25)).is_none(), "it goes to disk");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_whose_connection_is_lost_is_taken_back_or_fails() {
    let queue = queue_of(1 << 20);
    drop(queue.go_ahead(coming(15)).unwrap());
    assert!(queue.try_pop().unwrap().is_none());
    let ahead = queue.go_ahead(coming(15)).unwrap();
    let Some(Item::Ahead(mut head, mut reader)) = queue.try_pop().unwrap() else { panic!() };
    ahead.push(body(10)).await;
    drop(ahead);
    assert!(reader.next(&mut head).await.unwrap().is_some());
    let error = reader.next(&mut head).await.unwrap_err();
    assert_eq!(error.kind, crate::Kind::Unavailable);
    assert_eq!(queue.spools().1, Lsn::new(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn one_in_progress_goes_ahead_only_where_the_target_takes_it_and_ends_beyond_all_that_was_said()
 {
    let queue = queue_of(1 << 20);
    let open = || Coming { is_decided: false, ..coming(15) };
    assert!(!queue.takes_undecided() && queue.go_ahead(open()).is_none());
    queue.take_undecided();
    queue.push(committed(20, 10), false).await.unwrap();
    assert!(!queue.takes_undecided() && queue.go_ahead(open()).is_none(), "one waits before it");
    queue.try_pop().unwrap();
    queue.set_idle(Lsn::new(30));
    let ahead = queue.go_ahead(open()).unwrap();
    let Some(Item::Ahead(mut head, mut reader)) = queue.try_pop().unwrap() else { panic!() };
    assert_eq!((head.commit_lsn, head.end_lsn), (Lsn::new(31), Lsn::new(31)));
    ahead.push(body(10)).await;
    ahead.give_up("it was rolled back").await;
    assert!(reader.next(&mut head).await.unwrap().is_some());
    let error = reader.next(&mut head).await.unwrap_err();
    assert_eq!(error.kind, crate::Kind::Unavailable);
    assert!(error.cause().contains("rolled back"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_goes_ahead_behind_a_spool_that_was_read_and_the_spool_is_not_gone_on_with() {
    let directory = tempfile::tempdir().unwrap();
    let queue = queue_of(1 << 20);
    let mut left = spool(directory.path(), 0);
    let first = committed(10, 10);
    left.append(first.head, Blocks::Body(first.body.read())).unwrap();
    queue.read_first(left);
    assert!(queue.go_ahead(coming(15)).is_none(), "nobody has read it");
    assert_eq!(end_of(queue.try_pop().unwrap()), 10);
    assert!(queue.go_ahead(coming(15)).is_none(), "nobody knows that this was all");
    assert!(queue.try_pop().unwrap().is_none());
    let ahead = queue.go_ahead(coming(15)).unwrap();
    let Some(Item::Ahead(..)) = queue.try_pop().unwrap() else { panic!() };
    ahead.finish(committed(20, 7).head, body(7)).await;
    // What comes now would be in the spool behind 10, and 20 nowhere once this process is gone.
    queue.turn_to_disk(|_| panic!("there is a spool")).unwrap();
    assert!(!queue.spools().0);
    queue.set_durable(durable(20));
    assert!(queue.try_pop().unwrap().is_none());
    queue.turn_to_disk(|base| Ok(spool(directory.path(), base.as_u64()))).unwrap();
    assert_eq!(queue.spools(), (true, Lsn::new(20)));
}
