//! The five positions of a stream, and the only way to acknowledge one.
//!
//! **Invariant 1 of `design.md` 3:** what is acknowledged to the source is a [`DurableLsn`], and only
//! [`DurableLsn::answered`] makes one, from a [`Flushed`] of a sink or of the spool. Every position only grows.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use tidemark_model::Lsn;
use tidemark_sink::Flushed;
use tokio::sync::Notify;

use super::gate::Gate;
use super::waiting::Waiting;

/// A position that may be acknowledged: whoever holds what is before it has answered that it is flushed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct DurableLsn(Lsn);

impl DurableLsn {
    /// From the answer of a sink or of the spool.
    pub(crate) fn answered(flushed: Flushed) -> Self {
        Self(flushed.lsn())
    }

    pub(crate) fn lsn(self) -> Lsn {
        self.0
    }
}

/// Where the stream stands, read by the feedback task and by `status`.
#[derive(Debug, Default)]
pub(crate) struct Ladder {
    head: AtomicU64,
    sent: AtomicU64,
    received: AtomicU64,
    applied: AtomicU64,
    durable: AtomicU64,
    acknowledged: AtomicU64,
    /// What was acknowledged and sent.
    said: AtomicU64,
    /// What the target does not show yet, and when the source was looked at last.
    waiting: Mutex<(Waiting, Option<Instant>)>,
    /// Who else keeps WAL on the source.
    others: Mutex<Option<String>>,
    transactions: AtomicU64,
    changes: AtomicU64,
    /// Changes a second, lately.
    rate: AtomicU64,
    retained: AtomicU64,
    spool_bytes: AtomicU64,
    wants_answer: AtomicBool,
    /// Where the job ends; 0 where it goes on.
    goal: AtomicU64,
    /// This transaction is to be applied when all of it has come.
    whole: AtomicU64,
    /// When one that was begun before it was known where it ends had to be taken back.
    overtaken: Mutex<Option<Instant>>,
    /// Something may be acknowledged that was not, or the source asked for an answer.
    pub(crate) say: Notify,
    /// Where somebody else reads the target at one position.
    pub(crate) gate: Gate,
}

impl Ladder {
    /// The source's insert position when its clock showed that many microseconds since 2000, the last that its walsender
    /// has sent, and what it keeps.
    pub(crate) fn set_source(&self, (head, clock): (Lsn, i64), sent: Option<Lsn>, retained: u64) {
        raise(&self.head, head);
        if let Some(sent) = sent {
            raise(&self.sent, sent);
        }
        self.retained.store(retained, Ordering::Relaxed);
        let received = Lsn::new(self.received.load(Ordering::Acquire));
        let mut waiting = self.waiting();
        waiting.0.looked(head, clock, received);
        waiting.1 = Some(Instant::now());
    }

    /// Who else keeps WAL on the source, for people.
    pub(crate) fn set_others(&self, others: Option<String>) {
        *self.others.lock().expect("no holder panics") = others;
    }

    /// Who else keeps WAL on the source, for people.
    pub(crate) fn others(&self) -> Option<String> {
        self.others.lock().expect("no holder panics").clone()
    }

    fn waiting(&self) -> MutexGuard<'_, (Waiting, Option<Instant>)> {
        self.waiting.lock().expect("no holder panics")
    }

    /// A message of the stream that ends at `lsn` has come.
    pub(crate) fn set_received(&self, lsn: Lsn) {
        raise(&self.received, lsn);
        raise(&self.sent, lsn);
    }

    /// A transaction has come whole.
    pub(crate) fn set_received_commit(&self, end: Lsn, committed_at: i64) {
        self.set_received(end);
        self.waiting().0.received(end, committed_at);
    }

    /// The source has nothing for us up to `lsn` behind what has come.
    pub(crate) fn set_quiet(&self, lsn: Lsn) {
        self.set_received(lsn);
        self.waiting().0.reached(lsn);
    }

    /// The target was given everything up to `end`, of which the oldest transaction committed at `since`.
    pub(crate) fn set_given(&self, end: Lsn, since: i64) {
        self.waiting().0.given(end, since);
    }

    /// There was nothing for the target between what it was given and `lsn`.
    pub(crate) fn set_passed(&self, lsn: Lsn) {
        self.waiting().0.passed(lsn);
    }

    /// The target shows everything up to `lsn`.
    pub(crate) fn set_applied(&self, lsn: Lsn) {
        raise(&self.applied, lsn);
        self.waiting().0.applied(lsn);
    }

    /// Changes a second, lately.
    pub(crate) fn set_rate(&self, rate: u64) {
        self.rate.store(rate, Ordering::Relaxed);
    }

    /// The source was told that everything up to `lsn` may go.
    pub(crate) fn set_said(&self, lsn: Lsn) {
        raise(&self.said, lsn);
    }

    /// The target has made everything up to there durable.
    pub(crate) fn set_durable(&self, durable: DurableLsn) {
        raise(&self.durable, durable.lsn());
        self.set_applied(durable.lsn());
        self.acknowledge(durable);
    }

    /// The source need not keep what is before it.
    pub(crate) fn acknowledge(&self, durable: DurableLsn) {
        if raise(&self.acknowledged, durable.lsn()) {
            self.say.notify_one();
        }
    }

    /// The server is to say how far it is.
    pub(crate) fn ask(&self) {
        self.wants_answer.store(true, Ordering::Relaxed);
        self.say.notify_one();
    }

    /// Whether the server is to be asked; the asking is done with it.
    pub(crate) fn wants_answer(&self) -> bool {
        self.wants_answer.swap(false, Ordering::Relaxed)
    }

    /// Once this is durable the job ends.
    pub(crate) fn set_goal(&self, goal: Option<Lsn>) {
        self.goal.store(goal.map_or(0, Lsn::as_u64), Ordering::Release);
    }

    /// Whether the job ends with what comes before `position`.
    pub(crate) fn ends_at(&self, position: Lsn) -> bool {
        let goal = Lsn::new(self.goal.load(Ordering::Acquire));
        goal > Lsn::ZERO && goal <= position
    }

    /// This transaction cannot be applied while it comes.
    pub(crate) fn want_whole(&self, xid: u64) {
        self.whole.store(xid, Ordering::Release);
    }

    /// Whether that was said of it.
    pub(crate) fn is_to_be_whole(&self, xid: u64) -> bool {
        self.whole.load(Ordering::Acquire) == xid
    }

    /// It was begun before it was known where it ends, and in vain.
    pub(crate) fn was_overtaken(&self, xid: u64) {
        self.want_whole(xid);
        *self.overtaken.lock().expect("no holder panics") = Some(Instant::now());
    }

    /// For how long no transaction was begun in vain; `None` where none ever was.
    pub(crate) fn since_overtaken(&self) -> Option<Duration> {
        self.overtaken.lock().expect("no holder panics").map(|at| at.elapsed())
    }

    /// Adds to the counters.
    pub(crate) fn count(&self, transactions: u64, changes: u64) {
        self.transactions.fetch_add(transactions, Ordering::Relaxed);
        self.changes.fetch_add(changes, Ordering::Relaxed);
    }

    /// Bytes that the spool takes on disk.
    pub(crate) fn set_spool_bytes(&self, bytes: u64) {
        self.spool_bytes.store(bytes, Ordering::Relaxed);
    }

    /// For how many seconds the target has not shown all that the source had committed.
    pub(crate) fn seconds_behind(&self) -> f64 {
        let waiting = self.waiting();
        let later = waiting.1.map_or(0, |at| i64::try_from(at.elapsed().as_micros()).unwrap_or(0));
        waiting.0.for_how_long(later) as f64 / 1e6
    }

    /// Since when the source has not answered; what is said of the lag is as of then.
    pub(crate) fn source_silent(&self) -> Option<Duration> {
        self.waiting().1.map(|at| at.elapsed())
    }

    /// The picture of this moment.
    pub(crate) fn view(&self) -> LadderView {
        let lsn = |position: &AtomicU64| Lsn::new(position.load(Ordering::Acquire));
        let received = lsn(&self.received);
        // The source is looked at once a second; what has come since was there, too.
        let head = match lsn(&self.head) {
            Lsn::ZERO => Lsn::ZERO,
            head => head.max(received),
        };
        LadderView {
            head,
            sent: lsn(&self.sent),
            received,
            applied: lsn(&self.applied),
            durable: lsn(&self.durable),
            acknowledged: lsn(&self.acknowledged),
            said: lsn(&self.said),
            rate: self.rate.load(Ordering::Relaxed),
            transactions: self.transactions.load(Ordering::Relaxed),
            changes: self.changes.load(Ordering::Relaxed),
            retained: self.retained.load(Ordering::Relaxed),
            spool_bytes: self.spool_bytes.load(Ordering::Relaxed),
        }
    }
}

impl LadderView {
    /// Bytes of WAL between the source's head and what is durable on the target.
    pub(crate) fn bytes_behind(&self) -> u64 {
        self.head.bytes_since(self.durable)
    }
}

/// Sets a position if it is beyond the old one; says whether it was.
fn raise(position: &AtomicU64, lsn: Lsn) -> bool {
    position.fetch_max(lsn.as_u64(), Ordering::AcqRel) < lsn.as_u64()
}

/// The positions and counters of one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct LadderView {
    pub(crate) head: Lsn,
    pub(crate) sent: Lsn,
    pub(crate) received: Lsn,
    pub(crate) applied: Lsn,
    pub(crate) durable: Lsn,
    pub(crate) acknowledged: Lsn,
    pub(crate) said: Lsn,
    pub(crate) rate: u64,
    pub(crate) transactions: u64,
    pub(crate) changes: u64,
    pub(crate) retained: u64,
    pub(crate) spool_bytes: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_come_counts_as_the_sources_head_between_two_looks() {
        let ladder = Ladder::default();
        ladder.set_source((Lsn::new(100), 1), None, 0);
        ladder.set_durable(DurableLsn::answered(Flushed::up_to(Lsn::new(90))));
        ladder.set_received(Lsn::new(150));
        assert_eq!(ladder.view().bytes_behind(), 60);
    }

    #[test]
    fn positions_never_go_back() {
        let ladder = Ladder::default();
        let durable = |lsn| DurableLsn::answered(Flushed::up_to(Lsn::new(lsn)));
        ladder.set_durable(durable(20));
        ladder.set_durable(durable(10));
        ladder.set_received(Lsn::new(30));
        ladder.set_received(Lsn::new(5));
        let view = ladder.view();
        assert_eq!((view.durable, view.acknowledged), (Lsn::new(20), Lsn::new(20)));
        assert_eq!(view.received, Lsn::new(30));
    }
}
