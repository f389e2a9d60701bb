//! Drives the lanes: all execute their part of a batch, and only when all have done so they commit, the first one last.
//!
//! **Invariant:** until every lane has executed its part and counted its rows nothing is committed; whatever stands in the
//! way until then (a lock, a refusal, a wrong count) takes all lanes back, and the first one applies the batch alone, where
//! the server sees every wait and the exact order is tried. After that each lane commits its rows with its own position, and
//! the first one, whose position is the job's, when the others were answered. Where one is lost in between, the others are
//! ahead, and the stream is opened anew (`record`, [`Redo`](super::Redo)).
//!
//! A lane may wait for a session that waits for another lane: the server cannot see that, so no lane waits for a lock for
//! long (`lock_timeout`).

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use futures::future::{join_all, try_join_all};
use tidemark_model::{Lsn, Reservation, Transaction};

use super::super::apply::{Applier, Prepared};
use super::super::layouts::Layouts;
use super::{Order, Split};
use crate::{Disposition, Error, Result};

/// After lanes got into each other's way so many batches are applied by one; the number doubles up to this.
const REST_MAX: u32 = 64;

/// A batch that lanes are ready to apply.
pub(in super::super) struct Laned {
    parts: Vec<Prepared>,
    order: Order,
    end_lsn: Lsn,
    layouts: Arc<Layouts>,
    reservation: Reservation,
}

impl Laned {
    /// Reduces and encodes each lane's part, each on a thread of its own.
    ///
    /// # Errors
    /// A change that no target could apply.
    pub(in super::super) async fn new(
        split: Split,
        layouts: Arc<Layouts>,
        reservation: Reservation,
    ) -> Result<Self> {
        let Split { parts, order } = split;
        let end_lsn = order.last().map_or(Lsn::ZERO, |(head, _)| head.end_lsn);
        let prepare = |part: Vec<Transaction>| {
            let layouts = Arc::clone(&layouts);
            async move {
                let prepared = move || Prepared::new(part, (end_lsn, false), None, layouts);
                tokio::task::spawn_blocking(prepared).await.map_err(|panic| {
                    Error::new(Disposition::Internal, "prepare a lane's part of a batch")
                        .because(panic.to_string())
                })?
            }
        };
        let parts = try_join_all(parts.into_iter().map(prepare)).await?;
        Ok(Self { parts, order, end_lsn, layouts, reservation })
    }

    pub(in super::super) fn end_lsn(&self) -> Lsn {
        self.end_lsn
    }

    /// The same for one lane.
    pub(in super::super) fn alone(self) -> Result<Prepared> {
        let Self { parts, order, end_lsn, layouts, reservation } = self;
        let parts = parts.into_iter().map(Prepared::into_transactions);
        Prepared::new(Split::join(parts, order), (end_lsn, false), Some(reservation), layouts)
    }
}

/// The lanes beside the first.
pub(in super::super) struct Crew {
    others: Vec<Applier>,
    /// How often lately they got into each other's way.
    failures: u32,
    /// So many batches are not given to lanes.
    rest: Arc<AtomicU32>,
}

impl Crew {
    pub(in super::super) fn new(others: Vec<Applier>, rest: Arc<AtomicU32>) -> Self {
        Self { others, failures: 0, rest }
    }

    /// Applies a batch in lanes; false where nothing was applied and one lane has to do it.
    ///
    /// # Errors
    /// A lane was lost, or the job was taken over. Lanes may stand apart then.
    pub(in super::super) async fn apply(
        &mut self,
        first: &mut Applier,
        batch: &Laned,
    ) -> Result<bool> {
        let lsn = batch.end_lsn;
        let Some((own, parts)) = batch.parts.split_first() else { return Ok(false) };
        let mut busy: Vec<(&mut Applier, &Prepared)> =
            self.others.iter_mut().zip(parts).filter(|(_, part)| !part.is_empty()).collect();
        let others = busy.iter_mut().map(|(lane, part)| lane.stage(part, lsn));
        let (own, others) = futures::join!(first.stage(own, lsn), join_all(others));
        let mut is_staged = own?;
        for staged in others {
            is_staged &= staged?;
        }
        if !is_staged {
            first.undo().await?;
            try_join_all(busy.iter_mut().map(|(lane, _)| lane.undo())).await?;
            self.failures = (self.failures + 1).min(REST_MAX.ilog2());
            self.rest.store(1 << self.failures, Ordering::Relaxed);
            tracing::info!(%lsn, "the lanes got into each other's way: one of them applies the next batches");
            return Ok(false);
        }
        self.failures = 0;
        if crate::plant::is_planted("first-lane-first") {
            first.commit_staged(lsn).await?;
        }
        for committed in join_all(busy.iter_mut().map(|(lane, _)| lane.commit_staged(lsn))).await {
            committed?;
        }
        if !crate::plant::is_planted("first-lane-first") {
            first.commit_staged(lsn).await?;
        }
        first.counters.transactions += batch.order.len() as u64;
        first.counters.changes +=
            batch.order.iter().map(|(_, lanes)| lanes.len() as u64).sum::<u64>();
        first.counters.commits += 1;
        first.counters.in_lanes += 1;
        Ok(true)
    }

    /// Every statement is prepared anew.
    pub(in super::super) fn forget_statements(&mut self) {
        self.others.iter_mut().for_each(Applier::forget_statements);
    }

    /// Lets the origins go and says goodbye.
    pub(in super::super) async fn close(self) -> Result<()> {
        try_join_all(self.others.into_iter().map(Applier::close)).await?;
        Ok(())
    }
}
