//! A faster way through a long backlog: the messages as the answer to a query.
//!
//! **Invariant:** the durable slot is only copied here, never read or moved (`advance_slot` moves it afterwards, to what is
//! durable); the copy is temporary and ends with our session.
//! A round gives whole transactions in commit order, in the same messages as the stream; what it gave is everything up to
//! [`CatchUp::advanced_to`], so that the stream goes on from there without gap. Only a large round has transactions in
//! progress, too; one whose end it does not have comes again from its beginning.
//!
//! ```text
//! open: copy the slot -> round: COPY (SELECT .. pg_logical_slot_get_binary_changes(copy, lsn, n)) -> .. -> None
//!         \- moved to `start`      \- where nothing ends in its WAL: a large round, and then the stream
//! ```
//!
//! Why: `START_REPLICATION` sends every message by itself; a query's answer fills the socket. The server keeps a round in its
//! temporary files before it sends the first row, which is why a round is bounded by messages, by WAL and by time. Each round
//! reads the WAL from `restart_lsn` again, which is why rounds grow.
//!
//! A large transaction that does not fit into the decoding's memory is written to disk by the server and read back change by
//! change: four times the time. In progress it is given as it is decoded (measured in `docs/benchmarks.md`); a huge one is
//! the stream's business, which keeps nothing of it at the server.
//!
//! PostgreSQL manual, section 9.28.6 (`pg_copy_logical_replication_slot`, `pg_logical_slot_get_binary_changes`).

use std::pin::pin;
use std::time::Duration;

use tidemark_model::sql::{Ident, Literal};
use tidemark_model::{Budget, Lsn, TupleForm};
use tidemark_wire::{ConnectSpec, CopyOut, Mode, RawConnection};

use super::connect::{explain, quoted_names};
use super::frames::Frames;
use super::slot::{NEW_SNAPSHOT, parse_lsn};
use crate::{Disposition, Error, Result, sql};

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
const ROUND_BYTES: u64 = 64 << 20;
/// WAL that is left for the last round, which has all of it, however many messages that is.
const LAST_BYTES: u64 = 24 << 20;

/// The end of what can be decoded.
const FLUSHED: &str = "SELECT (CASE WHEN pg_catalog.pg_is_in_recovery() THEN pg_catalog.pg_last_wal_replay_lsn() \
     ELSE pg_catalog.pg_current_wal_flush_lsn() END)::pg_catalog.text";

/// A transaction that does not fit into the decoding's memory is written to the source's disk and read back change by
/// change: three times the time. The room is taken only while a large transaction is decoded, and is measured by what the server
/// has for its own buffers.
const ROOM: &str = "SELECT pg_catalog.set_config('logical_decoding_work_mem', (GREATEST(\
     pg_catalog.pg_size_bytes(pg_catalog.current_setting('logical_decoding_work_mem')), \
     LEAST(1073741824, pg_catalog.pg_size_bytes(pg_catalog.current_setting('shared_buffers')) / 2)) / 1024)::text || 'kB', false)";

/// Beyond what the server is set to, a large round gives transactions as they are decoded, and needs no room for them.
const NO_ROOM: &str = "RESET logical_decoding_work_mem";

/// Rows that are handed over at once.
const BATCH_BYTES: usize = 256 * 1024;

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
    raw: RawConnection,
    options: CatchUpOptions,
    /// The temporary slot.
    copy: String,
    /// The end of the WAL when this began.
    goal: Lsn,
    advanced: Lsn,
    /// What became of the last round.
    last: Outcome,
    /// There was a large round, and none after it gave anything.
    was_large: bool,
    /// What the next round is asked for.
    next: Asked,
}

/// What a round is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asked {
    /// About so many messages, and no more than there are up to a position.
    Messages(u32, Lsn),
    /// Everything up to a position, with transactions in progress.
    Large(Lsn),
    /// Everything up to the goal.
    Rest,
}

/// What became of a round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    /// There was none yet.
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
        let mut raw = sql::connect_raw(&spec, Mode::Sql).await?;
        // One of ours may end while the next begins: the process id keeps them apart.
        let stem: String = options.slot.chars().take(40).collect();
        let copy = format!("{stem}_catch_up_{}", raw.backend_pid());
        let on = Ident(&options.slot);
        let copied = format!(
            "SELECT pg_catalog.pg_copy_logical_replication_slot({}, {}, true, 'pgoutput')",
            Literal(&options.slot),
            Literal(&copy)
        );
        sql::raw(&mut raw, "copy the slot", &copied).await.map_err(|error| {
            let error = explain(error.on(on));
            if error.has_state(&["53400"]) {
                return error.hint("catching up needs one more slot: raise max_replication_slots");
            }
            error
        })?;
        let mut this = Self {
            raw,
            options,
            copy,
            goal: Lsn::ZERO,
            advanced: Lsn::ZERO,
            last: Outcome::NotBegun,
            was_large: false,
            next: Asked::Rest,
        };
        this.set(ROOM).await?;
        this.goal = this.ask(FLUSHED).await?;
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

    /// The next transactions; `None` when all is given that was committed when this began, or when it gave up. A round is
    /// to be read to its end before the next.
    ///
    /// # Errors
    /// The server refused, the connection was lost, or the round before was not read to its end.
    pub async fn round(&mut self) -> Result<Option<Round<'_>>> {
        match self.last {
            Outcome::GaveUp => return Ok(None),
            Outcome::NotBegun => {}
            Outcome::Messages(count, bytes) => {
                let before = self.advanced;
                self.advanced = self.position().await?;
                if self.next == Asked::Rest {
                    return Ok(None);
                }
                let read = self.advanced.bytes_since(before);
                let was = self.next;
                self.next = match was {
                    Asked::Large(_) => self.asked(self.options.messages, self.options.wal_bytes),
                    _ if count > 0 => {
                        self.was_large = false;
                        let wal = read.saturating_mul(WAL_GROWTH).max(self.options.wal_bytes);
                        self.asked(self.larger(count, bytes), wal)
                    }
                    _ if self.was_large => {
                        tracing::info!(
                            at = %self.advanced,
                            "no transaction ends in much WAL, one may be huge: going on with the stream"
                        );
                        self.last = Outcome::GaveUp;
                        return Ok(None);
                    }
                    _ => {
                        tracing::debug!(from = %before, to = %self.advanced, "no transaction ends there, one may be large");
                        self.was_large = true;
                        Asked::Large(self.to(self.options.large_bytes))
                    }
                };
                match (was, self.next) {
                    (Asked::Messages(..), Asked::Large(_)) => self.set(NO_ROOM).await?,
                    (Asked::Large(_), _) => self.set(ROOM).await?,
                    _ => {}
                }
            }
        }
        if self.advanced >= self.goal {
            return Ok(None);
        }
        self.last = Outcome::Messages(0, 0);
        let cancel = self.raw.cancel_token();
        let statement = statement(&self.copy, &self.options, self.next, self.goal);
        let mut begun = pin!(self.raw.copy_out(&statement, TupleForm::PgBinary));
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
        Ok(Some(Round { copy: Some(copy), outcome: &mut self.last }))
    }

    /// Ends the session, and the copy of the slot with it.
    pub async fn close(self) {
        self.raw.close().await;
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

    async fn set(&mut self, memory: &str) -> Result<()> {
        sql::raw(&mut self.raw, "set the memory of the decoding", memory).await.map(drop)
    }

    async fn ask(&mut self, text: &str) -> Result<Lsn> {
        let rows = sql::raw(&mut self.raw, "read a position for catching up", text).await?;
        let found = rows.into_iter().next().and_then(|row| row.into_iter().next()).flatten();
        parse_lsn(&found.unwrap_or_default())
    }

    async fn position(&mut self) -> Result<Lsn> {
        let text = format!(
            "SELECT confirmed_flush_lsn::text FROM pg_catalog.pg_replication_slots WHERE slot_name = {}",
            Literal(&self.copy)
        );
        self.ask(&text).await
    }

    /// Moves the copy to the start; what commits before it is not even decoded.
    async fn skip_to_start(&mut self) -> Result<()> {
        self.advanced = self.position().await?;
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
        let text = format!(
            "SELECT pg_catalog.pg_replication_slot_advance({}, {})",
            Literal(&self.copy),
            Literal(&start.to_string())
        );
        sql::raw(&mut self.raw, "move the copy of the slot to the start", &text).await?;
        self.advanced = self.position().await?;
        Ok(())
    }
}

fn statement(copy: &str, options: &CatchUpOptions, asked: Asked, goal: Lsn) -> String {
    let binary = if options.binary { ", 'binary', 'true'" } else { "" };
    let bounds = match asked {
        Asked::Messages(count, end) => {
            format!("{}, {}", Literal(&end.to_string()), count.clamp(1, i32::MAX.unsigned_abs()))
        }
        Asked::Large(end) => format!("{}, NULL", Literal(&end.to_string())),
        Asked::Rest => format!("{}, NULL", Literal(&goal.to_string())),
    };
    let form = match asked {
        Asked::Large(_) => "'proto_version', '2', 'streaming', 'on'",
        Asked::Messages(..) | Asked::Rest => "'proto_version', '1'",
    };
    format!(
        "COPY (SELECT lsn, xid, data FROM pg_catalog.pg_logical_slot_get_binary_changes({}, {bounds}, \
           {form}, 'publication_names', {}, 'messages', 'true'{binary})) TO STDOUT (FORMAT binary)",
        Literal(copy),
        Literal(&quoted_names(&options.publications))
    )
}

/// One answer of the server.
#[derive(Debug)]
pub struct Round<'a> {
    copy: Option<CopyOut<'a>>,
    outcome: &'a mut Outcome,
}

impl Round<'_> {
    /// Some messages of the round, `None` after the last.
    ///
    /// # Errors
    /// The server ended the answer with an error, or the connection was lost.
    ///
    /// # Cancel safety
    /// A dropped future loses nothing; call again.
    pub async fn next(&mut self, budget: &Budget) -> Result<Option<Frames>> {
        let Some(copy) = self.copy.as_mut() else { return Ok(None) };
        let answer = copy.next(BATCH_BYTES, budget).await;
        let answer = answer.map_err(|cause| explain(Error::wire("catch up", cause)))?;
        let Some((rows, reservation)) = answer else {
            self.copy = None;
            return Ok(None);
        };
        if let Outcome::Messages(count, bytes) = self.outcome {
            *count += rows.row_count() as u64;
            *bytes += rows.data.len() as u64;
        }
        Ok(Some(Frames::of_rows(rows, reservation)))
    }
}
