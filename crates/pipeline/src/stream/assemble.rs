//! From the messages of the stream to committed transactions.
//!
//! **Invariant:** a transaction is given out once, whole, when its commit came, in the order of commits; what was rolled
//! back, the sub-transactions included, is in none. Only its end LSN decides whether it was given out before
//! (`hazards.md` C38-C41): never the position of a row, never the order or the position of its begin.
//!
//! Of streamed transactions (in progress while others commit) several are open at once, each by its xid. A STREAM ABORT of
//! a sub-transaction cuts the body off where that sub-transaction's first change stands: what follows it is its own or its
//! children's, because a savepoint that was released can be rolled back only with its parent (C42).
//!
//! PostgreSQL manual: protocol, "Logical Streaming Replication Protocol"; `src/backend/replication/logical/worker.c`.

use std::io;
use std::path::{Path, PathBuf};

use rustc_hash::FxHashMap;
use tidemark_model::{Lsn, TransactionHead};
use tidemark_source::{Message, RowKind};

use super::body::Body;
use super::plant::is_planted;

/// A transaction whose commit came.
#[derive(Debug)]
pub(crate) struct Committed {
    pub(crate) head: TransactionHead,
    pub(crate) body: Body,
}

/// What a message led to.
#[derive(Debug)]
pub(crate) enum Step {
    /// Nothing to give out yet.
    Open,
    /// A message outside transactions came: everything that committed before it has come.
    Passed,
    /// A transaction is whole.
    Committed(Committed),
    /// A transaction that was given out before, or that we brought to the source ourselves. Its body is there because the
    /// descriptions of relations in it still count.
    Repeated(Committed),
    /// What was given ahead of its end cannot go on: its rest, or its beginning, is not what follows there.
    Overtaken(Overtaken),
}

/// A transaction that was given ahead and has to be given whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Overtaken {
    /// Which.
    pub(crate) xid: u64,
    /// Why.
    pub(crate) because: &'static str,
}

/// A transaction that is still coming.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Coming {
    /// Its positions are only bounds: they lie before its end and beyond what was given out.
    pub(crate) head: TransactionHead,
    /// Bytes that have come and were not taken.
    pub(crate) bytes: u64,
    /// The stream has said that it committed, and gives nothing else before its end.
    pub(crate) is_decided: bool,
}

/// The stream broke its own rules.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AssembleError {
    /// A message came where none may.
    #[error("a {message} message came {place}")]
    OutOfPlace {
        /// Which.
        message: &'static str,
        /// Where.
        place: &'static str,
    },
    /// The spill file.
    #[error("keep a large transaction on disk in {}", directory.display())]
    Spill {
        /// Where.
        directory: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// What a Begin says of its transaction.
#[derive(Debug, Clone, Copy)]
struct Begun {
    xid: u32,
    commit_lsn: Lsn,
    committed_at: i64,
}

/// A transaction that is not committed yet.
#[derive(Debug, Default)]
struct Open {
    body: Body,
    /// Where the first change of each sub-transaction stands.
    starts: FxHashMap<u32, u64>,
    /// We brought it to the source ourselves, as the stream of the other direction.
    is_ours: bool,
    /// Another transaction ended since it began to come.
    has_company: bool,
}

/// Puts transactions together.
#[derive(Debug)]
pub(crate) struct Assembler {
    directory: PathBuf,
    /// Bytes of all open bodies that may be in memory.
    memory: usize,
    in_memory: usize,
    /// The last position that was given out.
    position: Lsn,
    epoch: XidEpoch,
    /// The transaction between Begin and Commit.
    current: Option<(Begun, Open)>,
    /// Transactions in progress, by xid.
    streamed: FxHashMap<u32, Open>,
    /// The one whose block of the stream is open.
    streaming: Option<u32>,
    /// The one of them of which parts were taken.
    given: Option<u32>,
    /// Transactions that carry one of these origins are not given out: they would go in a circle.
    own_origins: Vec<String>,
}

impl Assembler {
    /// Begins after `position`. Bodies beyond `memory` bytes in all go to files in `directory`.
    pub(crate) fn new(
        directory: &Path,
        memory: usize,
        position: Lsn,
        next_xid: u64,
        own_origins: Vec<String>,
    ) -> Self {
        Self {
            own_origins,
            directory: directory.to_owned(),
            memory,
            in_memory: 0,
            position,
            epoch: XidEpoch { near: next_xid },
            current: None,
            streamed: FxHashMap::default(),
            streaming: None,
            given: None,
        }
    }

    /// The end of the last transaction that was given out.
    pub(crate) fn position(&self) -> Lsn {
        self.position
    }

    /// Forgets what is open, and what was given out after `position` and got lost on its way: a new connection sends both
    /// again from their beginning.
    pub(crate) fn reconnected(&mut self, position: Lsn) {
        self.position = position;
        self.current = None;
        self.streaming = None;
        self.given = None;
        if is_planted("dup-on-reconnect") {
            return;
        }
        self.streamed.clear();
        self.in_memory = 0;
    }

    /// Whether transactions in progress are being received.
    pub(crate) fn has_unfinished(&self) -> bool {
        !self.streamed.is_empty()
    }

    /// The answer to a query ends here: what is in progress comes again from its beginning. What was given ahead of that
    /// cannot go on.
    pub(crate) fn round_ended(&mut self) -> Option<Overtaken> {
        let given = self.given.take();
        for (_, open) in self.streamed.drain() {
            self.in_memory -= open.body.in_memory();
        }
        let xid = self.epoch.extend(given?);
        Some(Overtaken { xid, because: "it is too large for a round of catching up" })
    }

    /// Whether the next message belongs to a block of a transaction in progress; messages carry an xid there.
    pub(crate) fn in_stream(&self) -> bool {
        self.streaming.is_some()
    }

    /// Whether a transaction that has committed is being received.
    pub(crate) fn is_inside(&self) -> bool {
        self.current.is_some()
    }

    /// A transaction that may be given out before its end, of which so many bytes have come: one between Begin and Commit, or
    /// the only one in progress beside which none has ended.
    pub(crate) fn ahead(&mut self, bytes: u64) -> Option<Coming> {
        let (xid, commit_lsn, committed_at, open) = match (&self.current, self.given) {
            (None, Some(xid)) => (xid, self.position, 0, self.streamed.get(&xid)?),
            (Some((begun, open)), None) if begun.commit_lsn >= self.position => {
                (begun.xid, begun.commit_lsn, begun.committed_at, open)
            }
            (None, None) if self.streamed.len() == 1 => {
                let (xid, open) = self.streamed.iter().find(|(_, open)| !open.has_company)?;
                (*xid, self.position, 0, open)
            }
            _ => return None,
        };
        let (length, is_decided) = (open.body.length(), self.current.is_some());
        if open.is_ours || length < bytes {
            return None;
        }
        let xid = self.epoch.extend(xid);
        // A position is never inside a commit record, so that its start tells what its end does.
        let end_lsn = Lsn::new(commit_lsn.as_u64() + 1);
        let head = TransactionHead { xid, commit_lsn, end_lsn, committed_at };
        Some(Coming { head, bytes: length, is_decided })
    }

    /// What has come of that transaction and was not taken before.
    pub(crate) fn take_ahead(&mut self) -> Body {
        let (xid, open) = match (&mut self.current, self.streamed.iter_mut().next()) {
            (Some((_, open)), _) => (None, open),
            (None, Some((xid, _))) => {
                let xid = self.given.unwrap_or(*xid);
                let Some(open) = self.streamed.get_mut(&xid) else { return Body::default() };
                (Some(xid), open)
            }
            (None, None) => return Body::default(),
        };
        self.given = xid;
        let body = std::mem::take(&mut open.body);
        self.in_memory -= body.in_memory();
        body
    }

    /// Bytes of open transactions on disk.
    pub(crate) fn on_disk(&self) -> u64 {
        let current = self.current.iter().map(|(_, open)| open);
        current.chain(self.streamed.values()).map(|open| open.body.spilled()).sum()
    }

    /// Takes the next message.
    pub(crate) fn take(&mut self, message: Message) -> Result<Step, AssembleError> {
        match message {
            Message::Begin { final_lsn: commit_lsn, committed_at, xid } => {
                self.begin(Begun { xid, commit_lsn, committed_at })
            }
            Message::Commit { commit_lsn, end_lsn, committed_at } => {
                let Some((begun, open)) = self.current.take() else {
                    return Err(out_of_place("Commit", "outside a transaction"));
                };
                Ok(self.commit(begun.xid, open, (commit_lsn, end_lsn, committed_at)))
            }
            Message::Row { subxid, kind, body } => self.row(subxid, kind, &body),
            Message::StreamStart { xid, first } => self.stream_start(xid, first),
            Message::StreamStop => match self.streaming.take() {
                Some(_) => Ok(Step::Open),
                None => Err(out_of_place("Stream Stop", "outside a block of the stream")),
            },
            Message::StreamCommit { xid, commit_lsn, end_lsn, committed_at } => {
                let open = self.streamed.remove(&xid).unwrap_or_default();
                Ok(self.commit(xid, open, (commit_lsn, end_lsn, committed_at)))
            }
            Message::StreamAbort { xid, subxid } => self.stream_abort(xid, subxid),
            Message::Origin { name, .. } => self.origin(&name),
            Message::Logical { transactional: false, .. } => Ok(Step::Passed),
            Message::Logical { .. } => Ok(Step::Open),
        }
    }

    fn begin(&mut self, begun: Begun) -> Result<Step, AssembleError> {
        if self.current.is_some() || self.streaming.is_some() {
            return Err(out_of_place("Begin", "inside a transaction"));
        }
        self.current = Some((begun, Open::default()));
        Ok(Step::Open)
    }

    fn stream_start(&mut self, xid: u32, first: bool) -> Result<Step, AssembleError> {
        if self.current.is_some() || self.streaming.is_some() {
            return Err(out_of_place("Stream Start", "inside a transaction"));
        }
        let is_stale = first && !is_planted("dup-on-reconnect");
        if is_stale && let Some(old) = self.streamed.remove(&xid) {
            self.in_memory -= old.body.in_memory();
        }
        self.streamed.entry(xid).or_default();
        self.streaming = Some(xid);
        Ok(Step::Open)
    }

    /// The transaction that the message belongs to.
    fn open(&mut self) -> Option<&mut Open> {
        match (&mut self.current, self.streaming) {
            (Some((_, open)), _) => Some(open),
            (None, Some(xid)) => Some(self.streamed.entry(xid).or_default()),
            (None, None) => None,
        }
    }

    fn origin(&mut self, name: &str) -> Result<Step, AssembleError> {
        let is_ours = self.own_origins.iter().any(|own| own == name);
        let open = self.open().ok_or_else(|| out_of_place("Origin", "outside a transaction"))?;
        open.is_ours |= is_ours;
        Ok(Step::Open)
    }

    fn row(
        &mut self,
        subxid: Option<u32>,
        kind: RowKind,
        message: &[u8],
    ) -> Result<Step, AssembleError> {
        let open = self.open().ok_or_else(|| out_of_place("row", "outside a transaction"))?;
        if let Some(subxid) = subxid {
            let length = open.body.length();
            open.starts.entry(subxid).or_insert(length);
        }
        let before = open.body.in_memory();
        if is_planted("last-of-stream-lost") && is_unlucky(subxid, open.body.length(), kind) {
            return Ok(Step::Open);
        }
        open.body.push(kind.tag(), message);
        let added = open.body.in_memory() - before;
        self.in_memory += added;
        if self.in_memory > self.memory {
            self.spill_largest()?;
        }
        Ok(Step::Open)
    }

    fn stream_abort(&mut self, xid: u32, subxid: u32) -> Result<Step, AssembleError> {
        // 18 sends it also for a transaction of which nothing was streamed (`hazards.md` C43).
        if xid == subxid {
            if let Some(open) = self.streamed.remove(&xid) {
                self.in_memory -= open.body.in_memory();
            }
            if self.given == Some(xid) {
                return Ok(self.overtaken("it was rolled back"));
            }
            return Ok(Step::Open);
        }
        if is_planted("forget-subabort") {
            return Ok(Step::Open);
        }
        let Some(open) = self.streamed.get_mut(&xid) else { return Ok(Step::Open) };
        let Some(start) = open.starts.remove(&subxid) else { return Ok(Step::Open) };
        if self.given == Some(xid) {
            // Its beginning may have been taken: where it stands in what is left says nothing.
            return Ok(self.overtaken("a part of it was rolled back"));
        }
        let before = open.body.in_memory();
        let cut = open.body.cut(start);
        self.in_memory -= before - open.body.in_memory();
        open.starts.retain(|_, other| *other < start);
        cut.map_err(|source| AssembleError::Spill { directory: self.directory.clone(), source })?;
        Ok(Step::Open)
    }

    fn overtaken(&mut self, because: &'static str) -> Step {
        let xid = self.given.take().map_or(0, |xid| self.epoch.extend(xid));
        Step::Overtaken(Overtaken { xid, because })
    }

    fn commit(
        &mut self,
        xid: u32,
        open: Open,
        (commit_lsn, end_lsn, committed_at): (Lsn, Lsn, i64),
    ) -> Step {
        self.in_memory -= open.body.in_memory();
        match self.given {
            Some(given) if given != xid && !is_planted("overtake-ahead") => {
                return self.overtaken("another transaction committed before it");
            }
            Some(_) if open.is_ours || end_lsn <= self.position => {
                return self.overtaken("it is not to be given out");
            }
            _ => self.given = None,
        }
        for open in self.streamed.values_mut() {
            open.has_company = true;
        }
        let head =
            TransactionHead { xid: self.epoch.extend(xid), commit_lsn, end_lsn, committed_at };
        let committed = Committed { head, body: open.body };
        if end_lsn <= self.position {
            return Step::Repeated(committed);
        }
        self.position = end_lsn;
        if open.is_ours {
            return Step::Repeated(committed);
        }
        Step::Committed(committed)
    }

    fn spill_largest(&mut self) -> Result<(), AssembleError> {
        let current = self.current.iter_mut().map(|(_, open)| open);
        let all = current.chain(self.streamed.values_mut());
        let Some(largest) = all.max_by_key(|open| open.body.in_memory()) else { return Ok(()) };
        let before = largest.body.in_memory();
        largest
            .body
            .spill(&self.directory)
            .map_err(|source| AssembleError::Spill { directory: self.directory.clone(), source })?;
        self.in_memory -= before;
        Ok(())
    }
}

/// Which row the defect `last-of-stream-lost` loses: now and then one of a streamed transaction.
fn is_unlucky(subxid: Option<u32>, length: u64, kind: RowKind) -> bool {
    subxid.is_some() && kind.is_change() && length.is_multiple_of(97)
}

fn out_of_place(message: &'static str, place: &'static str) -> AssembleError {
    AssembleError::OutOfPlace { message, place }
}

/// Extends 32-bit transaction ids to 64 bits: an id that comes is less than 2^31 away from the ones before it.
#[derive(Debug)]
struct XidEpoch {
    near: u64,
}

impl XidEpoch {
    fn extend(&mut self, xid: u32) -> u64 {
        let distance = xid.wrapping_sub(self.near as u32) as i32;
        let full = self.near.saturating_add_signed(i64::from(distance));
        self.near = self.near.max(full);
        full
    }
}

#[cfg(test)]
mod tests;
