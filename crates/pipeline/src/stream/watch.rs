//! Looks at the source while it is followed: where it is, what it keeps because of us, and who else keeps it.
//!
//! **Invariant:** that it cannot look is no reason to stop. Where the source keeps more than `limits.source_wal` because the
//! target is behind, the queue is turned to disk here, and the feed acknowledges what the spool holds; it is said in time,
//! with the rate and the cause (`hazards.md` G126).

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tidemark_model::Lsn;
use tidemark_source::{PublicationState, drop_slot, emit_barrier, retained_by_others};
use tidemark_wire::{Client, ConnectSpec};

use super::ladder::Ladder;
use super::queue::Queue;
use super::spool::{Identity, Spool};
use crate::job::OnFull;
use crate::{Error, Kind, Result};

/// Between two looks.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Between two looks at the publication, and at who else keeps WAL.
const LOOK_AT_PUBLICATION_EVERY: Duration = Duration::from_secs(5);
/// Between two warnings of the same kind.
const WARN_EVERY: Duration = Duration::from_secs(60);
/// What the source keeps beyond what we have acknowledged is somebody else's doing from so many bytes on: a server lets WAL
/// go by whole segments, and only after it has noted its running transactions.
const OTHERS_FROM_BYTES: u64 = 64 << 20;
/// What a queue with much room keeps in memory all the same.
const SPOOL_FROM_BYTES: u64 = 8 << 20;

/// What is looked at.
pub(crate) struct Watch {
    pub(crate) source: ConnectSpec,
    pub(crate) slot: String,
    pub(crate) ladder: Arc<Ladder>,
    pub(crate) source_wal: u64,
    pub(crate) queue: Arc<Queue>,
    /// The publications, and how they were when the session began.
    pub(crate) publications: Vec<String>,
    pub(crate) published: PublicationState,
    pub(crate) spool: SpoolPlace,
    /// What happens when both are full.
    pub(crate) on_full: OnFull,
    /// A message into the WAL so often.
    pub(crate) heartbeat: Option<Duration>,
}

/// Where a spool is made when one is needed.
pub(crate) struct SpoolPlace {
    pub(crate) directory: PathBuf,
    /// Whose it is; the base is set when it is made.
    pub(crate) identity: Identity,
    /// Bytes that it may take.
    pub(crate) limit: u64,
    /// Less than this is not worth going to disk for; never more than the queue has room for, which would wait for the target
    /// while the source keeps all that comes.
    pub(crate) from: u64,
}

impl SpoolPlace {
    /// From so many bytes on, where the queue has room for so many.
    pub(crate) fn worth(queue: u64) -> u64 {
        SPOOL_FROM_BYTES.min(queue / 4)
    }
}

/// One look.
struct Seen {
    head: Lsn,
    /// The source's clock, in microseconds since 2000.
    clock: i64,
    sent: Option<Lsn>,
    restart: Option<Lsn>,
    retained: u64,
    /// How much more the server lets a slot keep, where it has a limit.
    safe: Option<i64>,
}

impl Watch {
    /// Looks until it is dropped.
    pub(crate) async fn run(self) -> Result<()> {
        let mut client: Option<Client> = None;
        let mut interval = tokio::time::interval(LOOK_EVERY);
        interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut rates = Rates::default();
        let mut warned: Option<Instant> = None;
        let mut beaten = Instant::now();
        let mut compared = Instant::now();
        loop {
            interval.tick().await;
            if client.as_ref().is_none_or(|client| client.is_closed()) {
                client = self.source.connect().await.ok();
            }
            let Some(open) = &client else { continue };
            let seen = match self.look(open).await {
                Ok(seen) => seen,
                Err(error) => {
                    tracing::debug!(%error, "the source could not be looked at");
                    client = None;
                    continue;
                }
            };
            self.ladder.set_source((seen.head, seen.clock), seen.sent, seen.retained);
            let view = self.ladder.view();
            rates.note(seen.head, view.changes);
            self.ladder.set_rate(rates.changes_a_second());
            if self.heartbeat.is_some_and(|every| beaten.elapsed() >= every) {
                beaten = Instant::now();
                if let Err(error) = emit_barrier(open, "tidemark", "heartbeat").await {
                    tracing::debug!(%error, "no heartbeat could be written");
                }
            }
            if compared.elapsed() >= LOOK_AT_PUBLICATION_EVERY {
                compared = Instant::now();
                self.compare_publication(open).await?;
                self.ladder.set_others(self.others(open, &seen).await);
            }
            self.turn_to_disk_if_needed(&seen)?;
            self.give_up_if_full(open, &seen).await?;
            let is_due = warned.is_none_or(|at| at.elapsed() >= WARN_EVERY);
            if is_due && self.warn(open, &seen, &rates).await {
                warned = Some(Instant::now());
            }
        }
    }

    async fn look(&self, client: &Client) -> Result<Seen> {
        let row = client
            .query_one(
                "SELECT pg_catalog.pg_current_wal_insert_lsn()::text, s.restart_lsn::text, s.safe_wal_size, r.sent_lsn::text, \
                 (extract(epoch FROM pg_catalog.clock_timestamp() - '2000-01-01 00:00:00+00'::pg_catalog.timestamptz) * 1000000)::pg_catalog.int8 \
                 FROM (SELECT) AS one LEFT JOIN pg_catalog.pg_replication_slots s ON s.slot_name = $1 \
                 LEFT JOIN pg_catalog.pg_stat_replication r ON r.pid = s.active_pid",
                &[&self.slot],
            )
            .await
            .map_err(tidemark_wire::Error::sql("read the source's position"))?;
        let lsn =
            |column: usize| row.get::<_, Option<&str>>(column).and_then(|text| text.parse().ok());
        let head: Lsn = lsn(0).unwrap_or_default();
        let restart: Option<Lsn> = lsn(1);
        let retained = restart.map_or(0, |restart| head.bytes_since(restart));
        Ok(Seen { head, clock: row.get(4), sent: lsn(3), restart, retained, safe: row.get(2) })
    }

    /// From 18 on a server leaves changes out without a word when the publication goes away under a running stream.
    async fn compare_publication(&self, client: &Client) -> Result<()> {
        match PublicationState::read(client, &self.publications).await {
            Ok(now) if !now.has_kept(&self.published) => {
                Err(publication_changed(&self.publications, self.ladder.view().acknowledged))
            }
            Ok(_) => Ok(()),
            Err(error) => {
                tracing::debug!(%error, "the publication could not be looked at");
                Ok(())
            }
        }
    }

    /// Who else keeps WAL on the source, where it keeps more than we need, or more than it may.
    async fn others(&self, client: &Client, seen: &Seen) -> Option<String> {
        let acknowledged = self.ladder.view().acknowledged;
        let beyond = seen.restart.map_or(0, |restart| acknowledged.bytes_since(restart));
        if beyond < OTHERS_FROM_BYTES && seen.retained < self.source_wal {
            return None;
        }
        retained_by_others(client, &self.slot).await.ok().flatten()
    }

    /// Where the target is so far behind that the source keeps too much, what comes goes to our disk and is acknowledged.
    fn turn_to_disk_if_needed(&self, seen: &Seen) -> Result<()> {
        let view = self.ladder.view();
        let waits = view.received.bytes_since(view.durable);
        if seen.retained < self.source_wal || waits < self.spool.from {
            return Ok(());
        }
        let make = |base| {
            let identity = Identity { base, ..self.spool.identity.clone() };
            Spool::create(&self.spool.directory, identity)
        };
        Ok(self.queue.turn_to_disk(make)?)
    }

    /// Where the user wants it, the slot goes before the source's disk is full.
    async fn give_up_if_full(&self, client: &Client, seen: &Seen) -> Result<()> {
        let view = self.ladder.view();
        let is_full = seen.retained >= self.source_wal && view.spool_bytes >= self.spool.limit;
        if self.on_full != OnFull::DropSlot || !is_full {
            return Ok(());
        }
        let ended = client
            .query(
                "SELECT pg_terminate_backend(active_pid) FROM pg_catalog.pg_replication_slots \
                 WHERE slot_name = $1 AND active_pid IS NOT NULL",
                &[&self.slot],
            )
            .await;
        ended.map_err(tidemark_wire::Error::sql("end the stream before its slot is dropped"))?;
        drop_slot(client, &self.slot).await?;
        Err(Error::new(
            Kind::SourceCannotContinue,
            format!(
                "follow the source: the spool is full, the source kept {} bytes of WAL for us, and limits.on_full = \"drop-slot\": the slot was dropped at {}",
                seen.retained, view.acknowledged
            ),
        )
        .hint("give the spool more room or the target more speed; tidemark cleanup, then sync takes a new snapshot"))
    }

    /// Says what is about to go wrong; whether something was said.
    async fn warn(&self, client: &Client, seen: &Seen, rates: &Rates) -> bool {
        let rate = rates.bytes_a_second();
        if let Some(safe) = seen.safe
            && safe < (seen.retained / 4) as i64
        {
            let seconds = safe.max(0) as u64 / rate.max(1);
            tracing::warn!(
                retained_bytes = seen.retained,
                left_bytes = safe,
                bytes_per_second = rate,
                seconds_left = seconds,
                "the source is about to invalidate the slot (max_slot_wal_keep_size)"
            );
            return true;
        }
        if seen.retained < self.source_wal {
            return false;
        }
        let others = retained_by_others(client, &self.slot).await.ok().flatten();
        tracing::warn!(
            retained_bytes = seen.retained,
            limit_bytes = self.source_wal,
            bytes_per_second = rate,
            others = others.unwrap_or_default(),
            "the source keeps more WAL than limits.source_wal"
        );
        true
    }
}

/// A publication that was dropped, narrowed or altered, even if it was put back: changes may be missing in the stream.
pub(crate) fn publication_changed(publications: &[String], position: Lsn) -> Error {
    Error::new(
        Kind::SourceCannotContinue,
        format!(
            "follow the source: publication {} was dropped or altered (stored position {position})",
            publications.join(", ")
        ),
    )
    .hint("if a followed table was dropped, leave it out (select.exclude) and run again; otherwise changes may have been left out of the stream meanwhile: tidemark cleanup, then sync takes a new snapshot")
}

/// The last looks, for rates.
#[derive(Debug, Default)]
struct Rates {
    looks: std::collections::VecDeque<(Instant, Lsn, u64)>,
}

impl Rates {
    fn note(&mut self, head: Lsn, changes: u64) {
        self.looks.push_back((Instant::now(), head, changes));
        if self.looks.len() > 6 {
            self.looks.pop_front();
        }
    }

    fn per_second(
        &self,
        amount: impl Fn(&(Instant, Lsn, u64), &(Instant, Lsn, u64)) -> u64,
    ) -> u64 {
        let (Some(first), Some(last)) = (self.looks.front(), self.looks.back()) else { return 0 };
        let seconds = last.0.duration_since(first.0).as_secs_f64();
        if seconds <= 0.0 { 0 } else { (amount(first, last) as f64 / seconds) as u64 }
    }

    fn bytes_a_second(&self) -> u64 {
        self.per_second(|first, last| last.1.bytes_since(first.1))
    }

    fn changes_a_second(&self) -> u64 {
        self.per_second(|first, last| last.2.saturating_sub(first.2))
    }
}
