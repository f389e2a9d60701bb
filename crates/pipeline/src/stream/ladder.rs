//! The five positions of a stream, and the only way to acknowledge one.
//!
//! **Invariant 1 of `design.md` 3:** what is acknowledged to the source is a [`DurableLsn`], and only
//! [`DurableLsn::answered`] makes one, from a [`Flushed`] of a sink or of the spool. Every position only grows.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};

use tidemark_model::Lsn;
use tidemark_sink::Flushed;
use tokio::sync::Notify;

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
    /// Commit time of the last transaction that the target shows, in microseconds since 2000.
    applied_commit: AtomicI64,
    /// Commit time of the last transaction that was received.
    received_commit: AtomicI64,
    /// Ends and commit times of what was sent to the target and is not seen there yet, for whole batches.
    on_the_way: Mutex<VecDeque<(Lsn, i64)>>,
    transactions: AtomicU64,
    changes: AtomicU64,
    /// Changes a second, lately.
    rate: AtomicU64,
    retained: AtomicU64,
    spool_bytes: AtomicU64,
    wants_answer: AtomicBool,
    /// Something may be acknowledged that was not, or the source asked for an answer.
    pub(crate) say: Notify,
}

impl Ladder {
    /// The source's insert position and the last that its walsender has sent.
    pub(crate) fn set_source(&self, head: Lsn, sent: Option<Lsn>, retained: u64) {
        raise(&self.head, head);
        if let Some(sent) = sent {
            raise(&self.sent, sent);
        }
        self.retained.store(retained, Ordering::Relaxed);
    }

    /// A message of the stream that ends at `lsn` has come.
    pub(crate) fn set_received(&self, lsn: Lsn) {
        raise(&self.received, lsn);
        raise(&self.sent, lsn);
    }

    /// The commit time of a transaction that has come whole.
    pub(crate) fn set_received_commit(&self, committed_at: i64) {
        self.received_commit.store(committed_at, Ordering::Relaxed);
    }

    /// The target was given everything up to `lsn`, which committed at that time.
    pub(crate) fn set_given(&self, lsn: Lsn, committed_at: i64) {
        self.on_the_way.lock().expect("no holder panics").push_back((lsn, committed_at));
    }

    /// The target shows everything up to `lsn`.
    pub(crate) fn set_applied(&self, lsn: Lsn) {
        raise(&self.applied, lsn);
        let mut on_the_way = self.on_the_way.lock().expect("no holder panics");
        while let Some(&(end, committed_at)) = on_the_way.front()
            && end <= lsn
        {
            self.applied_commit.store(committed_at, Ordering::Relaxed);
            on_the_way.pop_front();
        }
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

    /// Adds to the counters.
    pub(crate) fn count(&self, transactions: u64, changes: u64) {
        self.transactions.fetch_add(transactions, Ordering::Relaxed);
        self.changes.fetch_add(changes, Ordering::Relaxed);
    }

    /// Bytes that the spool takes on disk.
    pub(crate) fn set_spool_bytes(&self, bytes: u64) {
        self.spool_bytes.store(bytes, Ordering::Relaxed);
    }

    /// The picture of this moment.
    pub(crate) fn view(&self) -> LadderView {
        let lsn = |position: &AtomicU64| Lsn::new(position.load(Ordering::Acquire));
        LadderView {
            head: lsn(&self.head),
            sent: lsn(&self.sent),
            received: lsn(&self.received),
            applied: lsn(&self.applied),
            durable: lsn(&self.durable),
            acknowledged: lsn(&self.acknowledged),
            said: lsn(&self.said),
            rate: self.rate.load(Ordering::Relaxed),
            applied_commit: self.applied_commit.load(Ordering::Relaxed),
            received_commit: self.received_commit.load(Ordering::Relaxed),
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

    /// By how much the target is behind, by the source's clock: from the commit of what it shows last to that of what has
    /// come last. Clocks of two machines are never compared (`hazards.md` G104).
    pub(crate) fn seconds_behind(&self) -> f64 {
        if self.applied >= self.received || self.applied_commit == 0 {
            return 0.0;
        }
        (self.received_commit - self.applied_commit).max(0) as f64 / 1e6
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
    pub(crate) applied_commit: i64,
    pub(crate) received_commit: i64,
    pub(crate) transactions: u64,
    pub(crate) changes: u64,
    pub(crate) retained: u64,
    pub(crate) spool_bytes: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

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
