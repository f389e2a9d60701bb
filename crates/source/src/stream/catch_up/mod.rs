//! A faster way through a long backlog: the messages as the answer to a query.
//!
//! **Invariant:** the durable slot is only copied here, never read or moved (`advance_slot` moves it afterwards, to what is
//! durable); the copy is temporary and ends with our session.
//! A round gives whole transactions in commit order, in the same messages as the stream; what it gave is everything up to
//! [`CatchUp::advanced_to`], so that the stream goes on from there without gap. Only a large round has transactions in
//! progress, too; one whose end it does not have [goes on](CatchUp::go_on), or comes again from its beginning.
//!
//! ```text
//! copy.rs: copy the slot -> round: COPY (SELECT .. pg_logical_slot_get_binary_changes(copy, lsn, n)) -> .. -> None
//!         \- moved to `start`      \- where nothing ends in its WAL: a large round, and then the stream
//!                                       \- second.rs: all of it, by a session that decodes it at the same time
//! ```
//!
//! Why: `START_REPLICATION` sends every message by itself; a query's answer fills the socket. The server keeps a round in its
//! temporary files before it sends the first row, which is why a round is bounded by messages, by WAL and by time. Each round
//! reads the WAL from `restart_lsn` again, which is why rounds grow.
//!
//! A large transaction that does not fit into the decoding's memory is written to disk by the server and read back change by
//! change: four times the time. In progress it is given as it is decoded (measured in `docs/benchmarks.md`), its beginning
//! first, so that the target works while the source decodes the rest. A huge one is the stream's business, which keeps nothing
//! of it at the server.
//!
//! PostgreSQL manual, section 9.28.6 (`pg_copy_logical_replication_slot`, `pg_logical_slot_get_binary_changes`).

mod copy;
mod round;
mod second;

use std::pin::pin;
use std::time::Duration;

use tidemark_model::sql::Ident;
use tidemark_model::{Lsn, TupleForm};
use tidemark_wire::ConnectSpec;

pub use round::Round;

use super::connect::explain;
use super::slot::NEW_SNAPSHOT;
use crate::{Disposition, Error, Result};
use copy::Copied;
use second::Second;

/// Messages of the first round: few, so that the target has something to do soon. Each further round is twice as large.
const MESSAGES: u32 = 20_000;
/// Messages of a round at most, and what they may take in the source's temporary files. Many small rounds make the source
/// read much WAL twice (`prototypes.md` B); few large ones let the target wait.
const MESSAGES_MAX: u32 = 400_000;
/// WAL that the first round reads at most, and a later one at least: where no transaction of ours ends in so much, one may be
/// huge.
const WAL_BYTES: u64 = 32 << 20;
/// A round may read so many times the WAL of the one before.
const WAL_GROWTH: u64 = 4;
/// WAL that a large round reads at most; what it gives lies in the source's temporary files meanwhile, and takes less.
const LARGE_BYTES: u64 = 2 << 30;
/// So much of its WAL is the beginning: a source decodes more than twice as fast as a target loads, and has decoded the whole
/// when the target is done with this.
const BEGINNING_PERCENT: u64 = 25;
const ROUND_BYTES: u64 = 64 << 20;
/// WAL that is left for the last round, which has all of it, however many messages that is.
const LAST_BYTES: u64 = 24 << 20;

/// How a backlog is to be read.
#[derive(Debug, Clone)]
pub struct CatchUpOptions {
    /// The durable slot.
    pub slot: String,
    /// The publications.
    pub publications: Vec<String>,
    /// Values in their binary form where the type has one.
    pub binary: bool,
    /// Transactions that end at or before it are not wanted. At or after the slot's `confirmed_flush_lsn`.
    pub start: Lsn,
    /// What our sessions are called.
    pub application_name: String,
    /// About how many messages the first round gives, and what the last one leaves; the last transaction of a round is
    /// always whole.
    pub messages: u32,
    /// About how many messages a later round gives at most.
    pub messages_max: u32,
    /// WAL that the first round reads at most; later ones as much, or four times what the one before read.
    pub wal_bytes: u64,
    /// WAL that a large round reads at most.
    pub large_bytes: u64,
    /// With less WAL than this to the goal, a round is the last one.
    pub last_bytes: u64,
    /// How long a round may take to its first row. A longer one holds a huge transaction.
    pub patience: Duration,
}

impl CatchUpOptions {
    /// Binary, from where the slot is, with rounds of about 20,000 to 400,000 messages.
    pub fn new(
        slot: impl Into<String>,
        publication: impl Into<String>,
        application_name: impl Into<String>,
    ) -> Self {
        Self {
            slot: slot.into(),
            publications: vec![publication.into()],
            binary: true,
            start: Lsn::ZERO,
            application_name: application_name.into(),
            messages: MESSAGES,
            messages_max: MESSAGES_MAX,
            wal_bytes: WAL_BYTES,
            large_bytes: LARGE_BYTES,
            last_bytes: LAST_BYTES,
            patience: Duration::from_secs(20),
        }
    }
}

/// Reads the backlog of a slot through a temporary copy of it.
#[derive(Debug)]
pub struct CatchUp {
    spec: ConnectSpec,
    options: CatchUpOptions,
    session: Copied,
    /// The end of the WAL when this began.
    goal: Lsn,
    advanced: Lsn,
    /// What became of the last round.
    last: Outcome,
    /// There was a large round, and none after it gave anything.
    was_large: bool,
    /// What the next round is asked for.
    next: Asked,
    /// Decodes all of a large round while the session decodes its beginning.
    second: Option<Second>,
}

/// What a round is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asked {
    /// About so many messages, and no more than there are up to a position.
    Messages(u32, Lsn),
    /// Everything up to a position, with transactions in progress.
    Large(Lsn),
    /// What the second session has behind that.
    Behind,
    /// Everything up to the goal.
    Rest,
}

/// What became of a round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    /// The next one is decided: there was none yet, or it goes on behind the last.
    NotBegun,
    /// So many messages came, of so many bytes.
    Messages(u64, u64),
    /// It took too long to its first row, or much WAL had none.
    GaveUp,
}

impl CatchUp {
    /// Connects and copies the slot.
    ///
    /// # Errors
    /// No free slot or no right ([`Disposition::Refused`]), the slot is missing or invalid, the connection failed.
    pub async fn open(spec: &ConnectSpec, options: CatchUpOptions) -> Result<Self> {
        let spec = spec.clone().with_application_name(&options.application_name);
        let mut session = Copied::of(&spec, &options.slot, &options.slot).await?;
        session.take_room().await?;
        let goal = session.flushed().await?;
        let mut this = Self {
            spec,
            options,
            session,
            goal,
            advanced: Lsn::ZERO,
            last: Outcome::NotBegun,
            was_large: false,
            next: Asked::Rest,
            second: None,
        };
        this.skip_to_start().await?;
        this.next = this.asked(this.options.messages, this.options.wal_bytes);
        Ok(this)
    }

    /// Everything that committed before it was given by the rounds before the last call of [`CatchUp::round`], or lay
    /// before the start.
    pub fn advanced_to(&self) -> Lsn {
        self.advanced
    }

    /// Where the source was when this began: the rounds end there.
    pub fn goal(&self) -> Lsn {
        self.goal
    }

    /// Whether a round took too long or gave nothing: the rest is for the stream.
    pub fn gave_up(&self) -> bool {
        self.last == Outcome::GaveUp
    }

    /// Whether the next round can give more of the transactions in progress whose end the last one did not have; then it
    /// does.
    pub fn go_on(&mut self) -> bool {
        let was_beginning = matches!(self.next, Asked::Large(_)) && !self.gave_up();
        let Some(second) = self.second.as_ref().filter(|_| was_beginning) else { return false };
        second.go_on();
        (self.next, self.last) = (Asked::Behind, Outcome::NotBegun);
        true
    }

    /// The next transactions; `None` when all is given that was committed when this began, or when it gave up. A round is
    /// to be read to its end before the next.
    ///
    /// # Errors
    /// The server refused, the connection was lost, or the round before was not read to its end.
    pub async fn round(&mut self) -> Result<Option<Round<'_>>> {
        match self.last {
            Outcome::GaveUp => return Ok(None),
            Outcome::NotBegun => {}
            Outcome::Messages(count, bytes) => match self.after(count, bytes).await? {
                Some(next) => self.next = next,
                None => return Ok(None),
            },
        }
        if self.advanced >= self.goal {
            return Ok(None);
        }
        self.last = Outcome::Messages(0, 0);
        if self.next == Asked::Behind {
            let Some(second) = self.second.as_mut() else { return Ok(None) };
            return Ok(Some(Round::behind(second, self.options.patience, &mut self.last)));
        }
        let statement = self.session.statement(&self.options, self.next, self.goal);
        let raw = self.session.raw();
        let cancel = raw.cancel_token();
        let mut begun = pin!(raw.copy_out(&statement, TupleForm::PgBinary));
        // The server says nothing before it has the whole round.
        let answer = match tokio::time::timeout(self.options.patience, &mut begun).await {
            Ok(answer) => answer,
            Err(_elapsed) => {
                tracing::info!(
                    "catching up takes too long, one transaction may be huge: going on with the stream"
                );
                self.last = Outcome::GaveUp;
                cancel.cancel().await.map_err(|cause| Error::wire("end catching up", cause))?;
                return match begun.await {
                    Ok(copy) => copy.abort().await,
                    Err(error) if error.sqlstate() == Some("57014") => Ok(()),
                    Err(error) => Err(error),
                }
                .map(|()| None)
                .map_err(|cause| Error::wire("end catching up", cause));
            }
        };
        let copy = answer.map_err(|cause| {
            explain(Error::wire("catch up", cause).on(Ident(&self.options.slot)))
        })?;
        Ok(Some(Round::new(copy, self.second.as_ref(), &mut self.last)))
    }

    /// What is asked for after a round that gave so many messages of so many bytes; `None`: nothing.
    async fn after(&mut self, count: u64, bytes: u64) -> Result<Option<Asked>> {
        let before = self.advanced;
        match (self.next, self.second.take()) {
            (Asked::Behind, Some(second)) => self.session = second.finish().await?,
            (_, Some(second)) => second.end().await,
            (_, None) => {}
        }
        self.advanced = self.session.position().await?;
        Ok(match self.next {
            Asked::Rest => None,
            Asked::Large(_) | Asked::Behind => {
                self.session.take_room().await?;
                Some(self.asked(self.options.messages, self.options.wal_bytes))
            }
            Asked::Messages(..) if count > 0 => {
                self.was_large = false;
                let read = self.advanced.bytes_since(before);
                let wal = read.saturating_mul(WAL_GROWTH).max(self.options.wal_bytes);
                Some(self.asked(self.larger(count, bytes), wal))
            }
            Asked::Messages(..) if self.was_large => {
                tracing::info!(
                    at = %self.advanced,
                    "no transaction ends in much WAL, one may be huge: going on with the stream"
                );
                self.last = Outcome::GaveUp;
                None
            }
            Asked::Messages(..) => {
                tracing::debug!(from = %before, to = %self.advanced, "no transaction ends there, one may be large");
                Some(self.large().await?)
            }
        })
    }

    /// Begins a large round. Where a second session can be had, it decodes all of it from now on, and the first gives the
    /// beginning.
    async fn large(&mut self) -> Result<Asked> {
        self.was_large = true;
        self.session.leave_room().await?;
        let end = self.to(self.options.large_bytes);
        match Second::begin(&self.spec, &self.options, &self.session, end).await {
            Ok(second) => {
                self.second = Some(second);
                Ok(Asked::Large(self.to(end.bytes_since(self.advanced) / 100 * BEGINNING_PERCENT)))
            }
            Err(error) => {
                tracing::debug!(%error, "a large round is read by one session");
                Ok(Asked::Large(end))
            }
        }
    }

    /// Ends the session, and the copy of the slot with it.
    pub async fn close(self) {
        if let Some(second) = self.second {
            second.end().await;
        }
        self.session.close().await;
    }

    /// So many messages of so much WAL, or the rest where that is not much.
    fn asked(&self, messages: u32, wal: u64) -> Asked {
        if self.goal.bytes_since(self.advanced) <= self.options.last_bytes {
            return Asked::Rest;
        }
        Asked::Messages(messages, self.to(wal))
    }

    /// So much WAL further, at most to the goal.
    fn to(&self, wal: u64) -> Lsn {
        Lsn::new(self.advanced.as_u64().saturating_add(wal)).min(self.goal)
    }

    /// Twice as many messages as before, as far as messages of this size allow.
    fn larger(&self, count: u64, bytes: u64) -> u32 {
        let Asked::Messages(before, _) = self.next else { return self.options.messages };
        let fitting = ROUND_BYTES / (bytes / count.max(1)).max(1);
        let most = u64::from(self.options.messages_max).min(fitting);
        let messages = u64::from(before).saturating_mul(2).min(most);
        u32::try_from(messages).unwrap_or(u32::MAX).max(1)
    }

    /// Moves the copy to the start; what commits before it is not even decoded.
    async fn skip_to_start(&mut self) -> Result<()> {
        self.advanced = self.session.position().await?;
        let start = self.options.start;
        if start == Lsn::ZERO || start == self.advanced {
            return Ok(());
        }
        if start < self.advanced {
            let attempt =
                format!("catch up from {start}: the slot continues from {}", self.advanced);
            let error = Error::new(Disposition::SourceCannotContinue, attempt);
            return Err(error.on(Ident(&self.options.slot)).hint(NEW_SNAPSHOT));
        }
        self.advanced = self.session.skip_to(start).await?;
        Ok(())
    }
}
