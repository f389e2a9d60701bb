//! Receives the stream: from the connection to the queue, and acknowledgements back.
//!
//! **Invariant:** acknowledgements are sent by a task of their own, so that a slow target never starves them (`hazards.md`
//! C36); it ends together with the stream's other tasks, so that a dead job stops saying that it is alive (C37). What it
//! sends comes from [`Ladder`], which takes only a [`DurableLsn`](super::ladder::DurableLsn).
//!
//! A connection that is lost is made again, with growing pauses, from the end of what was pushed: the server sends whole
//! transactions, the assembler knows those that it has given out. Where it leads to another timeline the session ends, and
//! what begins anew compares the source with the target.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tidemark_model::{Budget, Lsn};
use tidemark_source::{
    CatchUp, CatchUpOptions, Frame, Malformed, Message, ReplicationReader, ReplicationStream,
    ReplicationWriter, StreamOptions, has_committed, identify, inspect_slot,
};
use tidemark_wire::{Client, ConnectSpec};

use super::assemble::{AssembleError, Assembler, Coming, Overtaken, Step};
use super::gate::Order;
use super::ladder::Ladder;
use super::plant::is_planted;
use super::queue::{Ahead, Queue, taken_back};
use crate::{Error, Kind, Result};

/// Between two acknowledgements where nothing changed; far below the server's `wal_sender_timeout`.
const SAY_EVERY: Duration = Duration::from_secs(1);
/// A source that cannot be reached for so long ends the job.
const PATIENCE: Duration = Duration::from_secs(180);
/// The first pause before a new connection; it doubles.
const PAUSE_MIN: Duration = Duration::from_millis(100);
/// The longest pause.
const PAUSE_MAX: Duration = Duration::from_secs(10);
/// The spool is made durable and acknowledged in steps of so many bytes of WAL.
const SPOOL_SYNC_BYTES: u64 = 8 << 20;

/// A stream that is behind by so much is caught up with in rounds before it is received: several times cheaper for the
/// source, which otherwise sends every message by itself (`prototypes.md` B).
const CATCH_UP_BYTES: u64 = 32 << 20;

/// The target is waited for so long before a stream that was caught up with begins.
const SETTLING: Duration = Duration::from_secs(5);
const SETTLING_STEP: Duration = Duration::from_millis(5);

/// A job that ends moves the slot only where the source then keeps so much less WAL: the server reads all of it for that.
const RELEASE_BYTES: u64 = 256 << 20;

/// Behind by so much, the target is given larger batches.
const BEHIND_BYTES: u64 = 1 << 20;

/// A transaction of so many bytes goes to the target while the rest of it comes,
const AHEAD_BYTES: u64 = 8 << 20;
/// in pieces of at least so many.
const PIECE_BYTES: u64 = 512 << 10;
/// One that is in progress in the stream, although the source has committed it long ago, does where so much of it came
/// and nothing else ended meanwhile,
pub(super) const UNDECIDED_BYTES: u64 = match cfg!(feature = "planted-bugs") {
    // The campaign's transactions are small, and what is overtaken there is to be seen.
    true => 32 << 10,
    false => 32 << 20,
};
/// which the source is asked so often;
const ASK_EVERY: Duration = Duration::from_secs(1);
/// where that was in vain, the next ones are waited for.
const AFTER_OVERTAKEN: Duration = Duration::from_secs(300);

/// So many internal errors of the server's decoding in a row are no accident.
const DECODING_ATTEMPTS: u32 = 5;

/// The receiving side of a stream.
pub(crate) struct Feed {
    pub(crate) source: ConnectSpec,
    /// The source's timeline when it was compared with the target.
    pub(crate) timeline: u32,
    pub(crate) options: StreamOptions,
    pub(crate) assembler: Assembler,
    pub(crate) queue: Arc<Queue>,
    pub(crate) ladder: Arc<Ladder>,
    /// The source may keep so much WAL because of us; beyond it what the spool holds is acknowledged.
    pub(crate) source_wal: u64,
    /// Whether a long backlog is read in rounds.
    pub(crate) catches_up: bool,
    /// Memory for what is read in rounds.
    pub(crate) buffers: Budget,
    /// Whether a large transaction may go to the target while it comes: not where it gathers what it is given.
    pub(crate) gives_ahead: bool,
    /// So much of a transaction has to come where its end is not known.
    pub(crate) undecided_bytes: u64,
    /// The transaction that does.
    pub(crate) ahead: Option<Ahead>,
    /// When the source was asked last whether a transaction has committed.
    pub(crate) asked: Option<Instant>,
    /// Decodings in a row that failed inside the server.
    pub(crate) failures: u32,
    /// Only the defect `skip-by-begin-lsn` sets it.
    pub(crate) is_skipping: bool,
    /// The source is on another timeline: no connection of this session mends that.
    pub(crate) is_elsewhere: bool,
}

impl Feed {
    /// Receives until something is wrong that a new connection does not mend.
    pub(crate) async fn run(mut self) -> Result<()> {
        let mut since = Instant::now();
        let mut pause = PAUSE_MIN;
        loop {
            let before = self.ladder.view().received;
            let ended = self.connection().await;
            self.queue.tell(false);
            if self.ladder.view().received > before {
                (since, pause) = (Instant::now(), PAUSE_MIN);
            }
            let error = match ended {
                Ok(()) => Error::new(Kind::Unavailable, "read the stream: the source shuts down"),
                Err(error) => error,
            };
            let is_final = error.kind != Kind::Unavailable || since.elapsed() >= PATIENCE;
            if is_final || self.is_elsewhere {
                return Err(error);
            }
            tracing::warn!(%error, "the stream was interrupted; connecting again");
            tokio::time::sleep(jitter(pause)).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    /// One connection, from its start to its end.
    async fn connection(&mut self) -> Result<()> {
        self.ahead = None;
        // A push may have been given up when the connection was lost: what counts is what the queue has.
        self.assembler.reconnected(self.queue.spools().1);
        if self.catches_up && self.is_far_behind().await? {
            let now = identify(&self.source).await?.timeline;
            self.expect_timeline(now)?;
            if let Err(error) = self.catch_up().await {
                if error.kind != Kind::Preflight {
                    return Err(error);
                }
                // No free slot, or no right to copy one: the stream does it too, more slowly.
                tracing::info!(%error, "a backlog cannot be read in rounds; it is received as a stream");
            }
            self.ahead = None;
            self.assembler.reconnected(self.queue.spools().1);
        }
        self.options.start = self.assembler.position();
        let stream = ReplicationStream::start(&self.source, &self.options).await?;
        self.expect_timeline(stream.timeline())?;
        self.options.previous_pid = Some(stream.backend_pid());
        tracing::debug!(from = %self.options.start, "the stream has begun");
        let (mut reader, writer) = stream.split();
        let ladder = Arc::clone(&self.ladder);
        tokio::select! {
            read = self.read(&mut reader) => read,
            said = acknowledge(writer, &ladder) => said,
        }
    }

    /// The source may have been promoted between two connections: then everything is compared anew.
    fn expect_timeline(&mut self, now: u32) -> Result<()> {
        self.is_elsewhere = now != self.timeline;
        match self.is_elsewhere {
            true => Err(Error::promoted("read the stream", self.timeline, now)),
            false => Ok(()),
        }
    }

    /// Whether the source had much for us that has not come, when it was looked at last.
    fn is_behind(&self) -> bool {
        let view = self.ladder.view();
        view.head.bytes_since(view.received) >= BEHIND_BYTES
    }

    async fn is_far_behind(&self) -> Result<bool> {
        let client = self.source.connect().await?;
        let head = tidemark_source::head(&client).await?;
        Ok(head.bytes_since(self.assembler.position()) >= CATCH_UP_BYTES)
    }

    /// Reads what was committed until now through a temporary copy of the slot; the slot itself is moved afterwards, to
    /// what is durable by then.
    async fn catch_up(&mut self) -> Result<()> {
        let stream = &self.options;
        let mut options =
            CatchUpOptions::new(&stream.slot, &stream.publications[0], &stream.application_name);
        options.publications.clone_from(&stream.publications);
        options.binary = stream.binary;
        options.start = self.assembler.position();
        let mut rounds = match CatchUp::open(&self.source, options).await {
            Ok(rounds) => rounds,
            Err(error) => return Err(self.undecodable(error)),
        };
        tracing::debug!(from = %self.assembler.position(), to = %rounds.goal(), "catching up");
        let read = self.read_rounds(&mut rounds).await;
        // All that committed before it was given.
        let reached = rounds.advanced_to().max(self.assembler.position());
        let gave_up = rounds.gave_up();
        // Also after an error: what the server still decodes for us would keep a slot from the next attempt.
        rounds.close().await;
        read?;
        self.ladder.set_received(reached);
        self.queue.set_idle(reached);
        if !gave_up {
            self.advance_slot(reached).await;
        }
        Ok(())
    }

    /// Takes all rounds to the queue, up to where the job ends.
    async fn read_rounds(&mut self, rounds: &mut CatchUp) -> Result<()> {
        while !self.ladder.ends_at(self.assembler.position())
            && let Some(mut round) =
                rounds.round().await.map_err(|error| self.undecodable(error))?
        {
            while let Some(frames) =
                round.next(&self.buffers).await.map_err(|error| self.undecodable(error))?
            {
                for frame in frames.iter() {
                    if let Frame::XLogData { payload, .. } = frame.map_err(malformed)? {
                        self.message(payload).await?;
                    }
                }
                self.queue.tell(true);
                self.give_ahead().await?;
            }
            self.queue.tell(false);
            let goes_on = self.assembler.has_unfinished() && rounds.go_on();
            if !goes_on && let Some(overtaken) = self.assembler.round_ended() {
                return Err(self.take_back(overtaken).await);
            }
        }
        Ok(())
    }

    /// Waits until the target has what it was given, or what the job ends with, and moves the slot there: the stream would read
    /// all of it again.
    async fn advance_slot(&self, reached: Lsn) {
        let began = Instant::now();
        let end = self.queue.spools().1;
        let has_enough = |durable: Lsn| durable >= end || self.ladder.ends_at(durable);
        while !has_enough(self.ladder.view().acknowledged) {
            if self.queue.spools().0 || began.elapsed() >= SETTLING {
                return;
            }
            tokio::time::sleep(SETTLING_STEP).await;
        }
        let durable = self.ladder.view().acknowledged;
        let slot = &self.options.slot;
        let moved = async {
            let client = self.source.connect().await?;
            if self.ladder.ends_at(reached) && !self.keeps_much(&client, reached).await? {
                // The stream says goodbye with that position; nobody waits for what the server reads again.
                return Ok(false);
            }
            tidemark_source::advance_slot(&client, slot, durable).await?;
            Ok::<_, Error>(true)
        };
        match moved.await {
            Ok(true) => self.ladder.set_said(durable),
            Ok(false) => {}
            // It is only that the stream takes longer to begin.
            Err(error) => tracing::debug!(%error, "the slot was not moved"),
        }
    }

    /// Whether the source keeps so much WAL for the slot that it is worth a moment to let go of it.
    async fn keeps_much(&self, client: &Client, reached: Lsn) -> Result<bool> {
        let slot = inspect_slot(client, &self.options.slot).await?;
        let restart = slot.and_then(|slot| slot.restart_lsn).unwrap_or(reached);
        Ok(reached.bytes_since(restart) >= RELEASE_BYTES.min(self.source_wal / 2))
    }

    async fn read(&mut self, reader: &mut ReplicationReader) -> Result<()> {
        while let Some(frames) = reader.next().await.map_err(|error| self.undecodable(error))? {
            for frame in frames.iter() {
                match frame.map_err(malformed)? {
                    Frame::XLogData { wal_start, wal_end, payload } => {
                        if is_planted("skip-by-begin-lsn") && self.skips(wal_start, &payload) {
                            continue;
                        }
                        self.message(payload).await?;
                        self.ladder.set_received(wal_end);
                    }
                    Frame::Keepalive { wal_end, reply } => self.keepalive(wal_end, reply),
                }
            }
            self.queue.tell(self.is_behind());
            self.give_ahead().await?;
            self.guard()?;
        }
        Ok(())
    }

    /// The defect `skip-by-begin-lsn`: a transaction that began before the last one ended is taken for known.
    fn skips(&mut self, begin: Lsn, payload: &[u8]) -> bool {
        self.is_skipping = match payload.first() {
            Some(b'B') => begin < self.assembler.position(),
            Some(b'C') if self.is_skipping => {
                self.is_skipping = false;
                return true;
            }
            _ => self.is_skipping,
        };
        self.is_skipping
    }

    async fn message(&mut self, payload: bytes::Bytes) -> Result<()> {
        let message = Message::parse(payload, self.assembler.in_stream()).map_err(malformed)?;
        let (committed, is_repeated) = match self.assembler.take(message).map_err(assembly)? {
            Step::Open => return Ok(()),
            Step::Passed => {
                self.ladder.ask();
                return Ok(());
            }
            Step::Committed(committed) => (committed, false),
            Step::Repeated(committed) => (committed, true),
            Step::Overtaken(overtaken) => return Err(self.take_back(overtaken).await),
        };
        let head = committed.head;
        self.ladder.set_received_commit(head.end_lsn, head.committed_at);
        if is_planted("acknowledge-early") {
            let early = tidemark_sink::Flushed::up_to(committed.head.end_lsn);
            self.ladder.acknowledge(super::ladder::DurableLsn::answered(early));
        }
        match self.ahead.take() {
            Some(ahead) => ahead.finish(head, committed.body).await,
            None => self.queue.push(committed, is_repeated).await?,
        }
        self.failures = 0;
        Ok(())
    }

    /// Gives on what has come of a large transaction.
    async fn give_ahead(&mut self) -> Result<()> {
        let least = if self.ahead.is_some() { PIECE_BYTES } else { AHEAD_BYTES };
        if !self.gives_ahead {
            return Ok(());
        }
        let Some(coming) = self.assembler.ahead(least.min(self.undecided_bytes)) else {
            return Ok(());
        };
        if self.ahead.is_none() && self.may_go_ahead(&coming).await? {
            self.ahead = self.queue.go_ahead(coming);
            if self.ahead.is_some() {
                let Coming { head, is_decided, .. } = coming;
                tracing::debug!(
                    xid = head.xid,
                    is_decided,
                    "a large transaction is applied while it comes"
                );
            }
        }
        if let Some(ahead) = &self.ahead {
            ahead.push(self.assembler.take_ahead()).await;
        }
        Ok(())
    }

    /// Whether a transaction may be begun on the target. One that is in progress in the stream may be followed there by
    /// anything: only a backlog has those that committed long ago and come whole in a moment.
    async fn may_go_ahead(&mut self, coming: &Coming) -> Result<bool> {
        if self.ladder.is_to_be_whole(coming.head.xid) {
            return Ok(false);
        }
        if coming.is_decided {
            return Ok(coming.bytes >= AHEAD_BYTES);
        }
        let was_overtaken =
            self.ladder.since_overtaken().is_some_and(|since| since < AFTER_OVERTAKEN);
        let was_asked = self.asked.is_some_and(|asked| asked.elapsed() < ASK_EVERY);
        let is_small = coming.bytes < self.undecided_bytes;
        let is_held = self.ladder.gate.order() != Order::Open;
        if is_small || was_overtaken || was_asked || is_held || !self.queue.takes_undecided() {
            return Ok(false);
        }
        self.asked = Some(Instant::now());
        let client = self.source.connect().await?;
        Ok(has_committed(&client, coming.head.xid).await?)
    }

    /// What was begun on the target ends without a commit; the stream gives it again from its beginning.
    async fn take_back(&mut self, Overtaken { xid, because }: Overtaken) -> Error {
        self.ladder.was_overtaken(xid);
        if let Some(ahead) = self.ahead.take() {
            ahead.give_up(because).await;
        }
        taken_back(xid, because)
    }

    /// What follows from an error of the source. An internal error of its decoding may be one of a moment: it is tried again,
    /// and one that stays is a defect of the server that no client can get around.
    fn undecodable(&mut self, error: tidemark_source::Error) -> Error {
        let is_internal = error.sqlstate() == Some("XX000");
        let mut error = Error::from(error);
        if !is_internal {
            return error;
        }
        self.failures += 1;
        error.kind = match self.failures < DECODING_ATTEMPTS {
            true => Kind::Unavailable,
            false => Kind::SourceCannotContinue,
        };
        error.hint(
            "the server cannot decode its own WAL, a defect of the server: update it to its newest minor version and take \
             a new snapshot (tidemark cleanup, then sync); the position is kept",
        )
    }

    /// With nothing of a committed transaction on its way, the server has nothing for us before `wal_end`.
    fn keepalive(&mut self, wal_end: Lsn, reply: bool) {
        if !self.assembler.is_inside() {
            self.ladder.set_quiet(wal_end);
            self.queue.set_idle(wal_end);
        }
        if reply {
            self.ladder.say.notify_one();
        }
    }

    /// Lets the source throw away what the spool holds, once it keeps too much because of us.
    fn guard(&mut self) -> Result<()> {
        let view = self.ladder.view();
        let (spools, end) = self.queue.spools();
        self.ladder.set_spool_bytes(self.queue.spool_bytes() + self.assembler.on_disk());
        if !spools || end.bytes_since(view.acknowledged) < SPOOL_SYNC_BYTES.min(self.source_wal) {
            return Ok(());
        }
        if end.bytes_since(view.acknowledged) < self.source_wal && view.retained < self.source_wal {
            return Ok(());
        }
        if let Some(durable) = self.queue.sync_spool()? {
            self.ladder.acknowledge(durable);
        }
        Ok(())
    }
}

/// Sends what may be acknowledged, whenever that changes and every second.
async fn acknowledge(mut writer: ReplicationWriter, ladder: &Ladder) -> Result<()> {
    let mut interval = tokio::time::interval(SAY_EVERY);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        // Now and then the server is asked how far it is: on an idle source nothing else would say.
        let asks = tokio::select! {
            _ = interval.tick() => true,
            () = ladder.say.notified() => ladder.wants_answer(),
        };
        let view = ladder.view();
        let durable = view.acknowledged;
        let received = view.received.max(durable);
        writer.status(received, durable, durable, asks).await?;
        ladder.set_said(durable);
    }
}

/// Between half and the whole of a pause, so that several jobs do not come back at the same moment.
fn jitter(pause: Duration) -> Duration {
    let nanos = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| since.subsec_nanos());
    pause / 2 + pause / 2 * (nanos % 1000) / 1000
}

fn malformed(cause: Malformed) -> Error {
    Error::new(Kind::Internal, "read the stream: the source sent what is not understood")
        .hint("the position is kept; please report it with the source's version")
        .because(cause)
}

fn assembly(cause: AssembleError) -> Error {
    let kind = match cause {
        AssembleError::OutOfPlace { .. } => Kind::Internal,
        AssembleError::Spill { .. } => Kind::Unavailable,
    };
    let error = Error::new(kind, "put the stream's transactions together").because(cause);
    match kind {
        Kind::Unavailable => error.hint("make room in the state directory; the position is kept"),
        _ => error,
    }
}
