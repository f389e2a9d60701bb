//! Between the stream and the target: committed transactions in memory, and in the spool where there is no room or the
//! target is not ready.
//!
//! **Invariant:** what is popped is what was pushed, in order, once. Memory is bounded by the queue's budget; a push waits
//! for room there. While the queue spools, nothing goes to memory: the spool has no gap from its base on.
//!
//! It begins to spool when told to: while the snapshot runs, and when the source keeps more WAL for us than
//! `limits.source_wal`. It stops when everything in the spool is durable on the target.

use std::collections::VecDeque;
use std::io;
use std::sync::{Mutex, MutexGuard};

use bytes::Bytes;
use tidemark_model::{Budget, Lsn, Reservation, TransactionHead};
use tokio::sync::Notify;

use super::assemble::Committed;
use super::body::BodyReader;
use super::ladder::DurableLsn;
use super::spool::{Spool, SpoolBody, SpoolError, SpoolReader, Spooled};

/// What a transaction takes besides its messages.
const HEAD_BYTES: u64 = 256;

/// What comes out.
#[derive(Debug)]
pub(crate) enum Item {
    /// The description of a relation, as its message.
    Relation(Bytes),
    /// A transaction.
    Transaction(Queued),
    /// Up to here the source has nothing more for us; everything before it was popped.
    Idle(Lsn),
}

/// A transaction in the queue.
#[derive(Debug)]
pub(crate) struct Queued {
    pub(crate) head: TransactionHead,
    pub(crate) blocks: Blocks,
    /// It was given out before: only its descriptions of relations count.
    pub(crate) is_repeated: bool,
    pub(crate) reservation: Option<Reservation>,
}

/// Where the messages of a transaction are.
#[derive(Debug)]
pub(crate) enum Blocks {
    /// In memory, or in a file of their own.
    Body(BodyReader),
    /// In the spool.
    Spool(SpoolBody),
}

impl Blocks {
    /// The next whole frames; `None` at the end.
    ///
    /// # Errors
    /// The disk.
    pub(crate) fn next(&mut self) -> io::Result<Option<Bytes>> {
        match self {
            Self::Body(reader) => reader.next(),
            Self::Spool(body) => body.next(),
        }
    }
}

/// The queue; one task pushes, one pops.
#[derive(Debug)]
pub(crate) struct Queue {
    state: Mutex<State>,
    /// Something can be popped.
    filled: Notify,
    /// Room in the spool, or another way to go for one who waits to push.
    turned: Notify,
    budget: Budget,
    spool_limit: u64,
}

#[derive(Debug)]
struct State {
    memory: VecDeque<Item>,
    spool: Option<(Spool, SpoolReader)>,
    /// Pushes go to the spool.
    is_spooling: bool,
    /// The spool is not to be left although it is empty, and not to be read: a snapshot runs.
    is_held: bool,
    idle: Lsn,
    idle_given: Lsn,
    /// End of what was pushed last.
    end: Lsn,
    durable: Lsn,
}

impl Queue {
    /// A queue for what ends after `position`.
    pub(crate) fn new(budget: Budget, spool_limit: u64, position: Lsn) -> Self {
        let state = State {
            memory: VecDeque::new(),
            spool: None,
            is_spooling: false,
            is_held: false,
            idle: position,
            idle_given: position,
            end: position,
            durable: position,
        };
        Self {
            state: Mutex::new(state),
            filled: Notify::new(),
            turned: Notify::new(),
            budget,
            spool_limit,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder panics")
    }

    /// From here on pushes go to this spool. With `is_held` it is only filled until [`Queue::let_go`].
    pub(crate) fn begin_spooling(&self, spool: Spool, is_held: bool) {
        let mut state = self.state();
        let reader = spool.reader();
        state.end = state.end.max(spool.end());
        state.spool = Some((spool, reader));
        state.is_spooling = true;
        state.is_held = is_held;
        drop(state);
        self.turned.notify_waiters();
        self.filled.notify_one();
    }

    /// The target is ready: the spool is read.
    pub(crate) fn let_go(&self) {
        self.state().is_held = false;
        self.filled.notify_one();
    }

    /// Whether pushes go to a spool, and the end of what was pushed.
    pub(crate) fn spools(&self) -> (bool, Lsn) {
        let state = self.state();
        (state.is_spooling, state.end)
    }

    /// Adds a transaction; waits for room.
    ///
    /// # Cancel safety
    /// A dropped future may have added the transaction or not; only to be dropped together with the stream.
    pub(crate) async fn push(&self, committed: Committed, is_repeated: bool) -> Result<(), SpoolError> {
        let Some((committed, reservation)) = self.room(committed, is_repeated).await? else {
            self.filled.notify_one();
            return Ok(());
        };
        let mut state = self.state();
        state.end = state.end.max(committed.head.end_lsn);
        state.memory.push_back(Item::Transaction(Queued {
            head: committed.head,
            blocks: Blocks::Body(committed.body.read()),
            is_repeated,
            reservation: Some(reservation),
        }));
        drop(state);
        self.filled.notify_one();
        Ok(())
    }

    /// Memory for a transaction; `None` when it went to the spool instead.
    async fn room(
        &self,
        committed: Committed,
        is_repeated: bool,
    ) -> Result<Option<(Committed, Reservation)>, SpoolError> {
        let bytes = committed.body.in_memory() as u64 + HEAD_BYTES;
        loop {
            let turned = self.turned.notified();
            tokio::pin!(turned);
            turned.as_mut().enable();
            let wants_spool = {
                let state = self.state();
                let bytes = state.spool.as_ref().map_or(0, |(spool, _)| spool.bytes());
                state.is_spooling.then_some(bytes < self.spool_limit)
            };
            match wants_spool {
                Some(true) => {
                    self.append(committed, is_repeated)?;
                    return Ok(None);
                }
                Some(false) => turned.await,
                None => {
                    tokio::select! {
                        biased;
                        reservation = self.budget.reserve(bytes) => {
                            if !self.state().is_spooling {
                                return Ok(Some((committed, reservation)));
                            }
                        }
                        () = turned => {}
                    }
                }
            }
        }
    }

    fn append(&self, committed: Committed, is_repeated: bool) -> Result<(), SpoolError> {
        let end = committed.head.end_lsn;
        let mut state = self.state();
        let (spool, _) = state.spool.as_mut().expect("a queue that spools has a spool");
        tokio::task::block_in_place(|| {
            if is_repeated { spool.describe(committed) } else { spool.append(committed) }
        })?;
        state.end = state.end.max(end);
        Ok(())
    }

    /// Makes the spool durable; `None` where nothing of it may be acknowledged: there is none, or something before its
    /// base is not durable on the target.
    pub(crate) fn sync_spool(&self) -> Result<Option<DurableLsn>, SpoolError> {
        let mut state = self.state();
        let durable = state.durable;
        match &mut state.spool {
            Some((spool, _)) if spool.identity().base <= durable => {
                let flushed = tokio::task::block_in_place(|| spool.sync())?;
                Ok(Some(DurableLsn::answered(flushed)))
            }
            _ => Ok(None),
        }
    }

    /// The source has nothing for us up to `lsn` behind what was pushed.
    pub(crate) fn set_idle(&self, lsn: Lsn) {
        let mut state = self.state();
        if lsn <= state.idle {
            return;
        }
        state.idle = lsn;
        drop(state);
        self.filled.notify_one();
    }

    /// The target has made everything up to `durable` durable: segments may go, and the spool as a whole when it is done.
    pub(crate) fn set_durable(&self, durable: DurableLsn) {
        let mut state = self.state();
        state.durable = state.durable.max(durable.lsn());
        let durable = state.durable;
        if let Some((spool, reader)) = &mut state.spool {
            spool.release(durable, reader);
        }
        drop(state);
        self.turned.notify_waiters();
    }

    /// Bytes of the spool on disk.
    pub(crate) fn spool_bytes(&self) -> u64 {
        self.state().spool.as_ref().map_or(0, |(spool, _)| spool.bytes())
    }

    /// The next item if one is there.
    pub(crate) fn try_pop(&self) -> Result<Option<Item>, SpoolError> {
        let mut state = self.state();
        if let Some(item) = state.memory.pop_front() {
            return Ok(Some(item));
        }
        if state.is_held {
            return Ok(None);
        }
        let state = &mut *state;
        if let Some((spool, reader)) = &mut state.spool {
            match tokio::task::block_in_place(|| spool.read_next(reader))? {
                Some(Spooled::Relation(message)) => return Ok(Some(Item::Relation(message))),
                Some(Spooled::Transaction(head, body)) => {
                    let blocks = Blocks::Spool(body);
                    let queued = Queued { head, blocks, is_repeated: false, reservation: None };
                    return Ok(Some(Item::Transaction(queued)));
                }
                None if spool.end() <= state.durable => {
                    spool.clear();
                    state.spool = None;
                    state.is_spooling = false;
                    self.turned.notify_waiters();
                }
                None => {}
            }
        }
        if state.idle > state.idle_given && state.idle > state.end {
            state.idle_given = state.idle;
            return Ok(Some(Item::Idle(state.idle)));
        }
        Ok(None)
    }

    /// The next item, waiting for it.
    ///
    /// # Cancel safety
    /// Safe: a dropped future pops nothing.
    pub(crate) async fn pop(&self) -> Result<Item, SpoolError> {
        loop {
            let filled = self.filled.notified();
            if let Some(item) = self.try_pop()? {
                return Ok(item);
            }
            filled.await;
        }
    }
}

#[cfg(test)]
mod tests;
