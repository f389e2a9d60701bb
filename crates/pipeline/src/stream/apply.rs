//! From the queue to the target: decodes transactions, groups them into batches, and lets new columns through.
//!
//! **Invariant 3 of `design.md` 3:** a batch holds whole transactions in commit order; one that is larger than a batch goes
//! in parts, with nothing else between them. While the target is busy transactions gather in the queue, so that batches
//! grow by themselves; an idle target gets what is there at once.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tidemark_model::{
    Budget, Change, Lsn, Operation, Reservation, StreamBatch, StreamRelation, Transaction,
    TransactionHead,
};
use tidemark_sink::{OpenStream, StreamWriter};
use tidemark_source::{Decoded, Relations, RowKind};
use tokio_util::sync::CancellationToken;

use super::blocks::{Blocks, unreadable};
use super::body::messages;
use super::ddl::Ddl;
use super::followed::Followed;
use super::gate::Order;
use super::ladder::{DurableLsn, Ladder};
use super::marks::Marks;
use super::plant::is_planted;
use super::queue::{AheadReader, Item, Queue, Queued};
use super::unsent::Unsent;
use crate::{Error, Kind, Result};

/// A decoded change takes about so much besides its bytes.
const CHANGE_BYTES: u64 = 112;
/// The shortest change; what a block of frames can hold at most follows from it.
const FRAME_BYTES: u64 = 16;
/// In a backlog a target that has nothing to do is given batches of at least so many bytes of messages: some ten thousand
/// small transactions, beyond which a larger batch is not applied any faster (`prototypes.md` B).
const GATHER_BYTES: u64 = 4 << 20;
/// Positions without rows are stored on the target when so many bytes of WAL have passed,
const ADVANCE_BYTES: u64 = 16 << 20;
/// or so much time.
const ADVANCE_EVERY: Duration = Duration::from_secs(10);

/// When a target is asked to make durable what it has taken.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rhythm {
    /// The most bytes of messages in a batch.
    pub(crate) batch_bytes: u64,
    /// A batch is gathered no longer than this.
    pub(crate) batch_delay: Duration,
    /// A target that gathers (a lake) is flushed so often; `None` for one that commits each batch.
    pub(crate) flush_every: Option<Duration>,
    /// Where tables joined: that the stream has passed it is stored at once, because until then they are ahead of the others.
    pub(crate) joined_at: Lsn,
}

/// What ended the stream in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    /// Everything up to the wanted position is durable.
    Reached(Lsn),
    /// The user stopped it; everything up to here is durable.
    Stopped(Lsn),
}

/// Takes the queue's items to the writer.
pub(crate) struct Apply {
    queue: Arc<Queue>,
    ladder: Arc<Ladder>,
    writer: Box<dyn StreamWriter>,
    relations: Relations,
    followed: Followed,
    ddl: Ddl,
    unsent: Unsent,
    marks: Option<Marks>,
    budget: Budget,
    rhythm: Rhythm,
    pending: Vec<Transaction>,
    pending_bytes: u64,
    pending_since: Instant,
    held: Option<Reservation>,
    /// End of the last transaction that was accepted or passed over.
    accepted: Lsn,
    flushed_at: Instant,
    advanced_at: Instant,
    /// A lake holds transactions that are not durable.
    unflushed: bool,
    /// The last that came was that there is nothing up to here.
    is_idle: bool,
    /// The target has parts of this transaction, whose end has not come.
    cut_ahead: Option<TransactionHead>,
    /// What was popped and lies behind where the gate stands.
    kept: Option<Item>,
    /// The end of the last transaction that was taken.
    taken: Lsn,
}

/// The messages of a transaction.
enum Messages {
    /// All of it has come.
    Whole(Blocks),
    /// It is still coming, and is not waited for after a stop.
    Ahead(AheadReader, CancellationToken),
}

impl Messages {
    /// The next whole frames; at the end none, and the head is whole.
    async fn next(&mut self, head: &mut TransactionHead) -> Result<Option<Bytes>> {
        match self {
            Self::Whole(blocks) => blocks.next().map_err(unreadable),
            Self::Ahead(reader, stop) => tokio::select! {
                biased;
                () = stop.cancelled() => Err(Error::interrupted_following()),
                next = reader.next(head) => next,
            },
        }
    }
}

impl Apply {
    pub(crate) fn new(
        queue: &Arc<Queue>,
        ladder: &Arc<Ladder>,
        open: OpenStream,
        followed: Followed,
        (ddl, unsent, marks): (Ddl, Unsent, Option<Marks>),
        (budget, rhythm): (Budget, Rhythm),
    ) -> Self {
        if open.takes_undecided {
            queue.take_undecided();
        }
        Self {
            queue: Arc::clone(queue),
            ladder: Arc::clone(ladder),
            writer: open.writer,
            relations: Relations::new(),
            followed,
            ddl,
            unsent,
            marks,
            budget,
            rhythm,
            pending: Vec::new(),
            pending_bytes: 0,
            pending_since: Instant::now(),
            held: None,
            accepted: open.position,
            flushed_at: Instant::now(),
            advanced_at: Instant::now(),
            unflushed: false,
            is_idle: false,
            cut_ahead: None,
            kept: None,
            taken: Lsn::ZERO,
        }
    }

    /// Runs until `until` is durable, or until `stop`; then everything accepted is durable and the target is closed.
    pub(crate) async fn run(
        mut self,
        until: Option<Lsn>,
        stop: &CancellationToken,
    ) -> Result<Ended> {
        let mut interval = tokio::time::interval(Duration::from_millis(200));
        interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        while !stop.is_cancelled() {
            if until.is_some_and(|until| self.accepted >= until) {
                let durable = self.close().await?;
                return Ok(Ended::Reached(durable));
            }
            if self.stands(stop).await? {
                continue;
            }
            let next = match self.kept.take() {
                None => self.queue.try_pop()?,
                kept => kept,
            };
            let item = match next {
                Some(item) => match self.is_behind_gate(&item) {
                    Some(true) => {
                        self.kept = Some(item);
                        continue;
                    }
                    Some(false) => item,
                    None => {
                        // Whoever asked has to ask again.
                        self.ladder.gate.open();
                        item
                    }
                },
                None => {
                    if !self.gathers() {
                        self.send(false).await?;
                    }
                    let is_gathering = !self.pending.is_empty();
                    let ladder = Arc::clone(&self.ladder);
                    let is_open = ladder.gate.order() == Order::Open;
                    tokio::select! {
                        biased;
                        () = stop.cancelled() => break,
                        () = ladder.gate.closed(), if is_open => {}
                        () = self.queue.filled() => {}
                        () = tokio::time::sleep_until(self.gathered_at().into()), if is_gathering => {}
                        _ = interval.tick() => self.flush_in_time().await?,
                    }
                    continue;
                }
            };
            if !self.item(item, stop).await? {
                return Ok(Ended::Stopped(self.give_up().await?));
            }
            self.flush_in_time().await?;
        }
        Ok(Ended::Stopped(self.close().await?))
    }

    /// Stands at the gate for as long as it is closed and nothing before it is left. Everything is durable then.
    async fn stands(&mut self, stop: &CancellationToken) -> Result<bool> {
        let order = self.ladder.gate.order();
        let at = match order {
            Order::Open => return Ok(false),
            Order::Hold => self.accepted,
            // What was kept may have been behind another position, whose gate has opened and closed since.
            Order::UpTo(lsn) if self.keeps_behind(lsn) || self.accepted >= lsn => {
                lsn.max(self.taken)
            }
            Order::UpTo(_) => return Ok(false),
        };
        if order != Order::Hold && at < self.unsent.read_at() {
            // The target may have what is newer: whoever asked has to ask again.
            self.ladder.gate.open();
            return Ok(false);
        }
        self.send(false).await?;
        let is_lake = self.rhythm.flush_every.is_some();
        let flushed = match order {
            // Readers of a lake see where it stands by its last commit alone.
            Order::UpTo(_) if is_lake => self.writer.advance(at).await?,
            _ => self.writer.flush().await?,
        };
        self.note(DurableLsn::answered(flushed));
        self.accepted = self.accepted.max(flushed.lsn());
        (self.flushed_at, self.unflushed) = (Instant::now(), false);
        if let (Order::UpTo(_), Some(marks)) = (order, &mut self.marks) {
            marks.stand(at).await?;
        }
        let ladder = Arc::clone(&self.ladder);
        tokio::select! {
            () = stop.cancelled() => self.ladder.gate.open(),
            () = ladder.gate.stand(at, order) => {}
        }
        Ok(true)
    }

    /// Whether an item is not to be applied before the gate opens. Of a transaction whose end nobody knows that cannot be
    /// said.
    fn is_behind_gate(&self, item: &Item) -> Option<bool> {
        match self.ladder.gate.order() {
            Order::UpTo(lsn) => is_behind(item, lsn),
            Order::Open | Order::Hold => Some(false),
        }
    }

    fn keeps_behind(&self, lsn: Lsn) -> bool {
        self.kept.as_ref().is_some_and(|kept| is_behind(kept, lsn) == Some(true))
    }

    /// Whether it is worth waiting for more: each commit costs the target the same, whatever is in it, and where the source
    /// has a backlog for us more is about to come.
    fn gathers(&self) -> bool {
        !self.pending.is_empty()
            && self.queue.is_behind()
            && self.pending_bytes < GATHER_BYTES
            && Instant::now() < self.gathered_at()
    }

    /// When a batch is sent, whatever it holds.
    fn gathered_at(&self) -> Instant {
        self.pending_since + self.rhythm.batch_delay
    }

    /// False where a transaction that is still coming was given up because of `stop`.
    async fn item(&mut self, item: Item, stop: &CancellationToken) -> Result<bool> {
        match item {
            Item::Relation(message) => {
                self.decode(&message, None, &mut Vec::new()).await?;
            }
            Item::Transaction(queued) => {
                let Queued { head, blocks, is_repeated, reservation } = queued;
                self.transaction(head, Messages::Whole(blocks), is_repeated).await?;
                drop(reservation);
            }
            Item::Ahead(head, reader) => {
                let coming = Messages::Ahead(reader, stop.clone());
                match self.transaction(head, coming, false).await {
                    Err(error) if error.kind == Kind::Interrupted => return Ok(false),
                    taken => taken?,
                }
                self.cut_ahead = None;
            }
            Item::Idle(lsn) => self.idle(lsn).await?,
        }
        Ok(true)
    }

    async fn transaction(
        &mut self,
        mut head: TransactionHead,
        mut rest: Messages,
        is_repeated: bool,
    ) -> Result<()> {
        self.is_idle = false;
        let is_known = is_repeated || head.end_lsn <= self.accepted;
        let mut changes = Vec::new();
        let mut bytes = 0;
        let mut parts = 0_u64;
        while let Some(block) = rest.next(&mut head).await? {
            if bytes > 0 && bytes + block.len() as u64 > self.rhythm.batch_bytes && !is_known {
                self.cut(head, (&block, &rest), &mut changes, parts == 0).await?;
                (bytes, parts) = (0, parts + 1);
            }
            if !is_known && !self.hold(block.len() as u64) {
                // What is held is sent on first, so that nobody waits for himself.
                if changes.is_empty() {
                    self.send(false).await?;
                } else {
                    self.cut(head, (&block, &rest), &mut changes, parts == 0).await?;
                    (bytes, parts) = (0, parts + 1);
                }
                self.hold_alone(block.len() as u64).await;
            }
            bytes += block.len() as u64;
            for message in messages(&block) {
                self.decode(&message, Some(head.xid), &mut changes).await?;
                // What the target has already is thrown away, and may be gone from the source.
                let is_unsent = |change: &Change| !is_known && self.unsent.concerns(change);
                let Some(change) = changes.last_mut().filter(|change| is_unsent(change)) else {
                    continue;
                };
                let added = Box::pin(self.unsent.fill(change, head.xid, self.accepted)).await?;
                bytes += added;
                if bytes > self.rhythm.batch_bytes || !self.hold(added) {
                    self.cut(head, (&block, &rest), &mut changes, parts == 0).await?;
                    (bytes, parts) = (0, parts + 1);
                    self.hold_alone(block.len() as u64).await;
                }
            }
        }
        if is_known {
            return Ok(());
        }
        if parts > 0 {
            return self.part(head, changes, false).await;
        }
        if changes.is_empty() {
            // Nothing of the job's tables: no commit on the target for it, only a position.
            self.took(head.end_lsn);
            self.is_idle = true;
            if self.pending.is_empty() {
                self.ladder.set_passed(head.end_lsn);
            }
            return Ok(());
        }
        if is_planted("half-transaction") && changes.len() > 1 {
            let rest = changes.split_off(changes.len() / 2);
            self.send(false).await?;
            self.part(head, changes, false).await?;
            return self.part(head, rest, false).await;
        }
        if self.pending.is_empty() {
            self.pending_since = Instant::now();
        }
        self.pending.push(Transaction { head, changes });
        self.pending_bytes += bytes;
        self.took(head.end_lsn);
        let is_old = self.pending_since.elapsed() >= self.rhythm.batch_delay;
        if is_old || self.pending_bytes >= self.rhythm.batch_bytes {
            self.send(false).await?;
        }
        Ok(())
    }

    /// A transaction is over.
    fn took(&mut self, end: Lsn) {
        (self.accepted, self.taken) = (end, end);
    }

    /// Larger than a batch, or than the memory that is left: what is whole goes first, then this one goes in parts.
    async fn cut(
        &mut self,
        head: TransactionHead,
        (block, rest): (&Bytes, &Messages),
        changes: &mut Vec<Change>,
        is_first: bool,
    ) -> Result<()> {
        self.send(false).await?;
        match rest {
            Messages::Whole(rest) if is_first => {
                self.describe_ahead((block, rest), head.xid).await?
            }
            Messages::Whole(_) => {}
            Messages::Ahead(..) => self.cut_ahead = Some(head),
        }
        self.part(head, std::mem::take(changes), true).await
    }

    /// Gives the target the columns that the rest of a transaction has: once its first part is there, nothing but its
    /// changes can go to the target.
    async fn describe_ahead(&mut self, (block, rest): (&Bytes, &Blocks), xid: u64) -> Result<()> {
        // Not the descriptions in use: the changes before a description are not of its form.
        let mut relations = Relations::new();
        let mut rest = rest.fork().map_err(unreadable)?;
        let mut next = Some(block.clone());
        while let Some(block) = next {
            for message in messages(&block) {
                let kind = message.first().and_then(|tag| RowKind::from_tag(*tag));
                if kind != Some(RowKind::Relation) {
                    continue;
                }
                let decoded = relations.decode(RowKind::Relation, message.slice(1..));
                if let Ok(Decoded::Relation(relation)) = decoded {
                    self.described(&relation, Some(xid)).await?;
                }
            }
            next = rest.next().map_err(unreadable)?;
        }
        Ok(())
    }

    /// Takes memory for a block beside what is held, if there is any.
    fn hold(&mut self, length: u64) -> bool {
        let Some(reservation) = self.budget.try_reserve(decoded_bytes(length)) else {
            return false;
        };
        match &mut self.held {
            Some(held) => held.merge(reservation),
            None => self.held = Some(reservation),
        }
        true
    }

    /// Waits for the memory for a block, holding nothing.
    async fn hold_alone(&mut self, length: u64) {
        // What is still held was for rows that nobody wants: waiting with it would be waiting for ourselves.
        self.held = None;
        self.held = Some(self.budget.reserve(decoded_bytes(length)).await);
    }

    /// `xid` is none of a description that stands by itself.
    async fn decode(
        &mut self,
        message: &Bytes,
        xid: Option<u64>,
        changes: &mut Vec<Change>,
    ) -> Result<()> {
        let kind = message.first().and_then(|tag| RowKind::from_tag(*tag));
        let kind = kind.ok_or_else(|| {
            Error::new(Kind::Internal, "decode a transaction: a message of an unknown kind")
        })?;
        let decoded = self.relations.decode(kind, message.slice(1..)).map_err(|cause| {
            Error::new(Kind::Internal, "decode a transaction of the stream").because(cause)
        })?;
        match decoded {
            Decoded::Change(change) => changes.extend(self.ours(change, xid)),
            Decoded::Relation(relation) => self.described(&relation, xid).await?,
            Decoded::Nothing => {}
        }
        Ok(())
    }

    /// The change, if it is of a table that is followed; a TRUNCATE names several.
    fn ours(&self, mut change: Change, xid: Option<u64>) -> Option<Change> {
        let is_ours = |oid| self.followed.takes(oid, xid);
        if let Operation::Truncate { with, .. } = &mut change.operation {
            with.retain(|relation| is_ours(relation.oid));
            if !is_ours(change.relation.oid) {
                if with.is_empty() {
                    return None;
                }
                change.relation = with.remove(0);
            }
            return spoiled(change);
        }
        if !is_ours(change.relation.oid) {
            return None;
        }
        spoiled(change)
    }

    /// A description that is new: columns that the target lacks are added before any change that has them.
    async fn described(&mut self, relation: &Arc<StreamRelation>, xid: Option<u64>) -> Result<()> {
        if !self.followed.takes(relation.oid, xid) {
            return Ok(());
        }
        let Some((name, columns)) = self.ddl.new_columns(relation).await? else { return Ok(()) };
        if let Some(head) = self.cut_ahead {
            self.ladder.want_whole(head.xid);
            let attempt = format!("add new columns to {name} in the middle of a transaction");
            return Err(Error::new(Kind::Unavailable, attempt)
                .because("a part of it was applied while it came; it begins again and is applied when all of it has come"));
        }
        self.send(false).await?;
        if let Some(marks) = &mut self.marks {
            marks.touch_all(relation.oid).await?;
        }
        self.writer.add_columns(&name, &columns).await?;
        let names: Vec<&str> = columns.iter().map(|new| new.column.name.as_str()).collect();
        tracing::info!(table = %name, columns = ?names, "columns that the source has got were added to the target");
        self.ddl.added(&name, &columns);
        Ok(())
    }

    /// Sends what is pending.
    async fn send(&mut self, continues: bool) -> Result<()> {
        if self.pending.is_empty() {
            return Ok(());
        }
        let transactions = std::mem::take(&mut self.pending);
        self.pending_bytes = 0;
        let reservation = match self.held.take() {
            Some(held) => held,
            None => self.budget.reserve(0).await,
        };
        let batch = StreamBatch { transactions, continues, reservation };
        if let Some(marks) = &mut self.marks {
            marks.touch(&batch).await?;
        }
        let (count, changes) = (batch.transactions.len() as u64, batch.change_count() as u64);
        let heads = (batch.transactions.first(), batch.transactions.last());
        if let ((Some(first), Some(last)), false) = (heads, continues) {
            self.ladder.set_given(last.head.end_lsn, first.head.committed_at);
            self.ladder.set_passed(self.accepted);
        }
        self.writer.accept(batch).await?;
        self.unflushed = true;
        self.ladder.count(if continues { 0 } else { count }, changes);
        Ok(())
    }

    async fn part(
        &mut self,
        head: TransactionHead,
        changes: Vec<Change>,
        continues: bool,
    ) -> Result<()> {
        self.pending.push(Transaction { head, changes });
        self.send(continues).await?;
        if !continues {
            self.took(head.end_lsn);
        }
        Ok(())
    }

    /// Up to there the source has nothing for us.
    async fn idle(&mut self, lsn: Lsn) -> Result<()> {
        self.send(false).await?;
        self.accepted = self.accepted.max(lsn);
        self.is_idle = true;
        Ok(())
    }

    /// Lets a lake write what it has gathered, and stores positions that passed without rows.
    async fn flush_in_time(&mut self) -> Result<()> {
        if let Some(every) = self.rhythm.flush_every
            && self.unflushed
            && self.flushed_at.elapsed() >= every
        {
            self.send(false).await?;
            let flushed = self.writer.flush().await?;
            self.note(DurableLsn::answered(flushed));
            self.flushed_at = Instant::now();
            self.unflushed = false;
        }
        // The next commit of a lake stores the position; a commit of its own would be one more file for nothing.
        let is_gathering = self.unflushed && self.rhythm.flush_every.is_some();
        let durable = self.ladder.view().durable;
        let ahead = self.accepted.bytes_since(durable);
        let passes_join = durable < self.rhythm.joined_at && self.accepted >= self.rhythm.joined_at;
        let is_time = ahead >= ADVANCE_BYTES
            || passes_join
            || (self.rhythm.flush_every.is_none() && self.advanced_at.elapsed() >= ADVANCE_EVERY);
        if self.is_idle && self.pending.is_empty() && ahead > 0 && is_time && !is_gathering {
            self.advance().await?;
        }
        Ok(())
    }

    async fn advance(&mut self) -> Result<()> {
        let flushed = self.writer.advance(self.accepted).await?;
        self.note(DurableLsn::answered(flushed));
        self.advanced_at = Instant::now();
        Ok(())
    }

    fn note(&self, durable: DurableLsn) {
        self.ladder.set_durable(durable);
        self.queue.set_durable(durable);
    }

    /// Ends without the transaction that is coming; what the target has of it goes with the session.
    async fn give_up(self) -> Result<Lsn> {
        match self.cut_ahead {
            Some(_) => Ok(self.ladder.view().durable),
            None => self.close().await,
        }
    }

    /// Makes everything accepted durable and gives the target back.
    async fn close(mut self) -> Result<Lsn> {
        self.send(false).await?;
        let flushed = self.writer.flush().await?;
        self.note(DurableLsn::answered(flushed));
        if self.accepted > flushed.lsn() {
            self.advance().await?;
        }
        let flushed = self.writer.close().await?;
        let durable = DurableLsn::answered(flushed);
        self.ladder.set_durable(durable);
        self.queue.set_durable(durable);
        Ok(durable.lsn())
    }
}

/// Whether an item ends behind a position; unknown of a transaction whose end is.
fn is_behind(item: &Item, lsn: Lsn) -> Option<bool> {
    match item {
        Item::Transaction(queued) => Some(!queued.is_repeated && queued.head.end_lsn > lsn),
        Item::Ahead(head, reader) => reader.is_decided.then_some(head.commit_lsn >= lsn),
        Item::Relation(_) | Item::Idle(_) => Some(false),
    }
}

/// What a block takes once it is decoded.
fn decoded_bytes(length: u64) -> u64 {
    length + length / FRAME_BYTES * CHANGE_BYTES / 4
}

#[cfg(feature = "planted-bugs")]
use super::plant::spoil as spoiled;

/// The change as it is.
#[cfg(not(feature = "planted-bugs"))]
fn spoiled(change: Change) -> Option<Change> {
    Some(change)
}
