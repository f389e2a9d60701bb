//! Between the stream and the target: committed transactions in memory, and in the spool where there is no room or the
//! target is not ready.
//!
//! **Invariant:** what is popped is what was pushed, in order, once. Memory is bounded by the queue's budget; a push waits
//! for room there. While the queue spools, nothing goes to memory: the spool has no gap from its base on.
//!
//! It begins to spool when told to: while the snapshot runs, and when the source keeps more WAL for us than
//! `limits.source_wal`. When it is told to stop, what is in the spool is read while what comes gathers in memory behind it.
//!
//! ```text
//! pop <- before (memory) <- spool <- behind (memory) <- push          spooling: push goes to the spool, `behind` is empty
//! ```

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use tidemark_model::{Budget, Lsn, Oid, Reservation, TransactionHead};
use tokio::sync::Notify;

use super::assemble::{Coming, Committed};
use super::blocks::Blocks;
use super::body::Body;
use super::ladder::DurableLsn;
use super::spool::{Spool, SpoolError, SpoolReader, Spooled, described};

pub(super) use ahead::{Ahead, AheadReader, taken_back};

/// What a transaction takes besides its messages.
const HEAD_BYTES: u64 = 256;

/// What comes out.
#[derive(Debug)]
pub(crate) enum Item {
    /// The description of a relation, as its message.
    Relation(Bytes),
    /// A transaction.
    Transaction(Queued),
    /// A transaction that is still coming.
    Ahead(TransactionHead, AheadReader),
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

/// Where a push goes.
#[derive(PartialEq, Eq)]
enum Way {
    Memory,
    Disk,
    DiskFull,
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
    /// A transaction that is still coming and was not popped.
    ahead: Option<(TransactionHead, AheadReader)>,
    /// One is still coming: nothing else is pushed, and the position where a spool would begin is not known.
    has_ahead: bool,
    /// The target may begin with a transaction that may still be rolled back.
    takes_undecided: bool,
    before: VecDeque<Queued>,
    spool: Option<(Spool, SpoolReader)>,
    /// All of the spool was given out; it stays until that is durable.
    is_read: bool,
    behind: VecDeque<Queued>,
    /// Something behind the spool was given out that is in memory only: what is appended now would leave it out, and a process
    /// that goes on from the spool would never see it.
    is_torn: bool,
    /// Pushes go to the spool.
    is_spooling: bool,
    /// Nothing is given out: a snapshot runs.
    is_held: bool,
    /// The source has more for us than it could just have written.
    is_behind: bool,
    /// The newest descriptions of relations that were pushed, as their messages: a spool begins with them.
    relations: BTreeMap<Oid, Bytes>,
    idle: Lsn,
    idle_given: Lsn,
    /// End of what was pushed last.
    end: Lsn,
    durable: Lsn,
}

impl State {
    /// Whether everything that was pushed was given out, and the next may be, too.
    fn is_passed(&self) -> bool {
        let is_read = self.spool.is_none() || self.is_read;
        let is_empty = is_read && self.before.is_empty() && self.behind.is_empty();
        is_empty && !self.has_ahead && !self.is_held && !self.is_spooling
    }
}

impl Queue {
    /// A queue for what ends after `position`. What ends before `durable` is known to be so.
    pub(crate) fn new(budget: Budget, spool_limit: u64, position: Lsn, durable: Lsn) -> Self {
        let state = State {
            ahead: None,
            has_ahead: false,
            takes_undecided: false,
            before: VecDeque::new(),
            spool: None,
            is_read: false,
            behind: VecDeque::new(),
            is_torn: false,
            is_spooling: false,
            is_held: false,
            is_behind: false,
            relations: BTreeMap::new(),
            idle: position,
            idle_given: position,
            end: position,
            durable,
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

    /// Pushes go to this spool, and nothing is given out, until [`Queue::let_go`].
    pub(crate) fn hold(&self, spool: Spool) {
        self.read_first(spool);
        let mut state = self.state();
        (state.is_spooling, state.is_held) = (true, true);
    }

    /// What this spool holds comes before everything that is pushed.
    pub(crate) fn read_first(&self, spool: Spool) {
        let mut state = self.state();
        let reader = spool.reader();
        state.end = state.end.max(spool.end());
        state.spool = Some((spool, reader));
        (state.is_read, state.is_torn) = (false, false);
        drop(state);
        self.filled.notify_one();
    }

    /// The target is ready: the spool is read, and what comes gathers in memory behind it.
    pub(crate) fn let_go(&self) {
        let mut state = self.state();
        (state.is_spooling, state.is_held) = (false, false);
        drop(state);
        self.filled.notify_one();
        self.turned.notify_waiters();
    }

    /// The target can begin with a transaction of which it is not known where it ends, and whether it commits.
    pub(crate) fn take_undecided(&self) {
        self.state().takes_undecided = true;
    }

    /// Whether such a transaction could be given to the target now.
    pub(crate) fn takes_undecided(&self) -> bool {
        let state = self.state();
        state.takes_undecided && state.is_passed()
    }

    /// Begins to give a transaction out whose end has not come. None where something waits before it, or where it is to go
    /// to disk.
    pub(crate) fn go_ahead(self: &Arc<Self>, coming: Coming) -> Option<Ahead> {
        let mut state = self.state();
        if !state.is_passed() || !(coming.is_decided || state.takes_undecided) {
            return None;
        }
        let mut head = coming.head;
        if !coming.is_decided {
            // Its commit record is behind everything that the server has spoken of.
            let known = head.end_lsn.max(state.end).max(state.idle);
            head.end_lsn = Lsn::new(known.as_u64() + 1);
            head.commit_lsn = head.end_lsn;
        }
        let (ahead, reader) = Ahead::new(self, coming.is_decided);
        state.ahead = Some((head, reader));
        state.has_ahead = true;
        state.is_torn |= state.spool.is_some();
        drop(state);
        self.filled.notify_one();
        Some(ahead)
    }

    /// A part of a transaction that is still coming goes to the target: what it describes is known from now on.
    fn note(&self, body: &Body) {
        let known = known(body);
        if !known.is_empty() {
            self.state().relations.extend(known);
        }
    }

    /// Room for so many bytes of a transaction that is still coming.
    async fn room(&self, bytes: u64) -> Reservation {
        self.budget.reserve(bytes).await
    }

    /// The end of the transaction that went ahead has come.
    fn has_come(&self, end: Lsn) {
        let mut state = self.state();
        state.has_ahead = false;
        state.end = state.end.max(end);
    }

    /// What went ahead is over: either its end has come, or it never will.
    fn take_back(&self) {
        let mut state = self.state();
        if state.has_ahead {
            state.has_ahead = false;
            state.ahead = None;
        }
    }

    /// From here on pushes go to disk; `make` makes a spool with the given base where there is none. What has gathered in
    /// memory behind the spool goes there first, so that it stays without a gap. Where some of that was given out already,
    /// nothing changes: the spool has to go first, when the target has all of it.
    pub(crate) fn turn_to_disk(
        &self,
        make: impl FnOnce(Lsn) -> Result<Spool, SpoolError>,
    ) -> Result<(), SpoolError> {
        let mut state = self.state();
        if state.is_spooling || state.has_ahead || state.is_torn {
            return Ok(());
        }
        let state = &mut *state;
        let (spool, _) = match &mut state.spool {
            Some(spool) => spool,
            None => {
                let mut spool = tokio::task::block_in_place(|| make(state.end))?;
                spool.know(&state.relations);
                let reader = spool.reader();
                state.spool.insert((spool, reader))
            }
        };
        for queued in state.behind.drain(..) {
            tokio::task::block_in_place(|| match queued.is_repeated {
                true => spool.describe(queued.blocks),
                false => spool.append(queued.head, queued.blocks),
            })?;
        }
        (state.is_spooling, state.is_read) = (true, false);
        self.turned.notify_waiters();
        Ok(())
    }

    /// Whether pushes go to a spool, and the end of what was pushed.
    pub(crate) fn spools(&self) -> (bool, Lsn) {
        let state = self.state();
        (state.is_spooling, state.end)
    }

    /// Adds a transaction; waits for room. Whoever pops is told by [`Queue::tell`], or when there is no room.
    ///
    /// # Cancel safety
    /// A dropped future may have added the transaction or not; only to be dropped together with the stream.
    pub(crate) async fn push(
        &self,
        committed: Committed,
        is_repeated: bool,
    ) -> Result<(), SpoolError> {
        let known = known(&committed.body);
        let bytes = committed.body.in_memory() as u64 + HEAD_BYTES;
        let head = committed.head;
        let blocks = Blocks::Body(committed.body.read());
        let mut queued = Queued { head, blocks, is_repeated, reservation: None };
        loop {
            if self.way_of_push() == Way::Memory
                && let Some(reservation) = self.budget.try_reserve(bytes)
            {
                queued.reservation = Some(reservation);
                match self.keep(queued, &known) {
                    None => return Ok(()),
                    Some(back) => queued = back,
                }
            }
            self.filled.notify_one();
            let turned = self.turned.notified();
            tokio::pin!(turned);
            turned.as_mut().enable();
            match self.way_of_push() {
                Way::Disk => return self.append(queued, &known),
                Way::DiskFull => turned.await,
                Way::Memory => tokio::select! {
                    biased;
                    reservation = self.budget.reserve(bytes) => {
                        queued.reservation = Some(reservation);
                        match self.keep(queued, &known) {
                            None => return Ok(()),
                            Some(back) => queued = back,
                        }
                    }
                    () = turned => {}
                },
            }
        }
    }

    /// Tells whoever pops that something was pushed, and whether the source has more that is waiting.
    pub(crate) fn tell(&self, is_behind: bool) {
        self.state().is_behind = is_behind;
        self.filled.notify_one();
    }

    /// Whether more is about to come, so that gathering pays.
    pub(crate) fn is_behind(&self) -> bool {
        self.state().is_behind
    }

    fn way_of_push(&self) -> Way {
        let state = self.state();
        match &state.spool {
            Some((spool, _)) if state.is_spooling && spool.bytes() >= self.spool_limit => {
                Way::DiskFull
            }
            Some(_) if state.is_spooling => Way::Disk,
            _ => Way::Memory,
        }
    }

    /// Keeps a transaction in memory, unless the queue has turned to disk meanwhile.
    fn keep(&self, mut queued: Queued, known: &[(Oid, Bytes)]) -> Option<Queued> {
        let mut state = self.state();
        if state.is_spooling {
            queued.reservation = None;
            return Some(queued);
        }
        state.end = state.end.max(queued.head.end_lsn);
        state.relations.extend(known.iter().cloned());
        match state.spool {
            Some(_) => state.behind.push_back(queued),
            None => state.before.push_back(queued),
        }
        None
    }

    fn append(&self, queued: Queued, known: &[(Oid, Bytes)]) -> Result<(), SpoolError> {
        let end = queued.head.end_lsn;
        let mut state = self.state();
        let (spool, _) = state.spool.as_mut().expect("a queue that spools has a spool");
        tokio::task::block_in_place(|| match queued.is_repeated {
            true => spool.describe(queued.blocks),
            false => spool.append(queued.head, queued.blocks),
        })?;
        state.end = state.end.max(end);
        state.relations.extend(known.iter().cloned());
        Ok(())
    }

    /// Whether everything that ended at or before `lsn` has come.
    pub(crate) fn has_received(&self, lsn: Lsn) -> bool {
        let state = self.state();
        state.end >= lsn || state.idle >= lsn
    }

    /// Whether what comes has no room in the spool.
    pub(crate) fn is_full(&self) -> bool {
        self.way_of_push() == Way::DiskFull
    }

    /// A second reader of what a queue holds that gives nothing out; `None` where something that ended after `position` may
    /// not be there.
    pub(crate) fn reread(&self, position: Lsn) -> Option<SpoolReader> {
        let state = self.state();
        let (spool, _) = state.spool.as_ref().filter(|_| state.is_held)?;
        (spool.identity().base <= position).then(|| spool.reader())
    }

    /// What a second reader comes to next.
    pub(crate) fn read_again(
        &self,
        reader: &mut SpoolReader,
    ) -> Result<Option<Spooled>, SpoolError> {
        let state = self.state();
        match &state.spool {
            Some((spool, _)) => tokio::task::block_in_place(|| spool.read_next(reader)),
            None => Ok(None),
        }
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
        if state.is_held {
            return Ok(None);
        }
        if let Some((head, reader)) = state.ahead.take() {
            return Ok(Some(Item::Ahead(head, reader)));
        }
        if let Some(queued) = state.before.pop_front() {
            return Ok(Some(Item::Transaction(queued)));
        }
        if let Some(item) = self.pop_spool(&mut state)? {
            return Ok(Some(item));
        }
        if let Some(queued) = state.behind.pop_front() {
            state.is_torn = true;
            return Ok(Some(Item::Transaction(queued)));
        }
        if state.idle > state.idle_given && state.idle > state.end {
            state.idle_given = state.idle;
            return Ok(Some(Item::Idle(state.idle)));
        }
        Ok(None)
    }

    fn pop_spool(&self, state: &mut State) -> Result<Option<Item>, SpoolError> {
        let Some((spool, reader)) = &mut state.spool else { return Ok(None) };
        match tokio::task::block_in_place(|| spool.read_next(reader))? {
            Some(Spooled::Relation(message)) => return Ok(Some(Item::Relation(message))),
            Some(Spooled::Transaction(head, body)) => {
                let blocks = Blocks::Spool(body);
                let queued = Queued { head, blocks, is_repeated: false, reservation: None };
                return Ok(Some(Item::Transaction(queued)));
            }
            None => {}
        }
        // Everything in it was given out: what comes may go to memory again, behind it.
        (state.is_spooling, state.is_read) = (false, true);
        self.turned.notify_waiters();
        if spool.end() <= state.durable {
            // What was pushed since is newer.
            for (oid, message) in spool.relations() {
                state.relations.entry(*oid).or_insert_with(|| message.clone());
            }
            spool.clear();
            state.spool = None;
            state.is_torn = false;
            let behind = std::mem::take(&mut state.behind);
            state.before.extend(behind);
        }
        Ok(state.before.pop_front().map(Item::Transaction))
    }

    /// Waits until something may have come since the last [`Queue::try_pop`].
    ///
    /// # Cancel safety
    /// Safe.
    pub(crate) async fn filled(&self) {
        self.filled.notified().await;
    }
}

/// The descriptions of relations in a body. They count from where it is pushed to: what waits before it has others.
fn known(body: &Body) -> Vec<(Oid, Bytes)> {
    body.descriptions().filter_map(|message| Some((described(message)?, message.clone()))).collect()
}

mod ahead;
#[cfg(test)]
mod tests;
