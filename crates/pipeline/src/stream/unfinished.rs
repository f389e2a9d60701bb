//! Going on with a first snapshot that died, instead of beginning it anew.
//!
//! **Invariant:** only what the target itself calls whole is kept, and only while slot, publication, source and this state
//! directory are those that the snapshot was begun with: the slot has then everything from its consistent point on, which is
//! what the whole tables are as of. The other tables join the stream at a new read snapshot. What does not fit is said, and
//! the snapshot begins anew. Of a table that joins, chunks may stay (`snapshot::half`).
//!
//! `docs/adr/2026-11-21-a-snapshot-goes-on-after-a-crash.md` proves it.
//!
//! **Not here:** the joining (`join.rs`), what the target keeps (`sink::postgres`).

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tidemark_model::{Oid, Persistence, RelationName, TablePlan};
use tidemark_sink::{Stored, StoredStage};
use tidemark_source::{PublicationState, head, identify, inspect_slot};

use super::resume::{self, Resumable};
use super::spool::Spool;
use super::touched::is_worth_waiting;
use super::{SLOT_EVENT, Sync};
use crate::snapshot::{self, Completes, Half, Tools, blocking};
use crate::{Error, Kind, Result};

/// How long target and source are asked what stays when a snapshot ends before its end.
const LOOK: Duration = Duration::from_secs(5);
/// What the journal says once a slot is there and the target is prepared for its snapshot.
const MADE: &str = "made";

/// What is there of a first snapshot that ended before its end.
pub(super) enum Left {
    /// What the next start can go on with, in words.
    Stays(String),
    /// Nothing.
    Nothing,
    /// It is not known, or not for this process to say.
    Unknown,
}

impl Sync<'_> {
    /// What a snapshot that died has left, if the job can go on from it.
    pub(super) async fn unfinished(&self, mut stored: Stored) -> Result<Option<Resumable>> {
        let is_nothing_whole = stored.tables.get_or_insert_default().is_empty();
        if is_nothing_whole && self.half_copied(&stored.run).await? == 0 {
            tracing::info!(
                "a snapshot was left unfinished before a table was whole; it begins anew"
            );
            return Ok(None);
        }
        let Some(timeline) = self.made_by(&stored.run).await? else {
            tracing::warn!(
                "a snapshot was left unfinished by a run that this state directory does not know; it begins anew"
            );
            return Ok(None);
        };
        stored.timeline = Some(timeline);
        let mut resumable = match resume::look(self.job, &stored, self.ledger).await {
            Ok(resumable) => resumable,
            // What is dropped when it begins anew would be another server's.
            Err(error) if is_final(&error) && self.is_same_source(&stored).await? => {
                tracing::warn!(because = %error, "a snapshot was left unfinished and cannot be gone on with; it begins anew");
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        if let Some(table) = resumable.foreign.first() {
            tracing::warn!(%table, "the source was promoted while a table was joining; the unfinished snapshot begins anew");
            return Ok(None);
        }
        resumable.halves = self.halves(&stored.run, &resumable.joining).await?;
        if is_nothing_whole && !self.is_worth_it(&resumable).await? {
            tracing::info!(
                "a snapshot was left unfinished with nothing to go on with; it begins anew"
            );
            return Ok(None);
        }
        let whole = Arc::clone(&resumable.start.plans);
        let joining: Vec<&RelationName> =
            resumable.joining.iter().map(|plan| &plan.relation.name).collect();
        tracing::info!(
            "a snapshot was left unfinished; {} of {} tables are whole and stay, {} join",
            whole.len(),
            whole.len() + joining.len(),
            joining.len()
        );
        resumable.completes = Some(self.left_in_ledger(whole).await?);
        Ok(Some(resumable))
    }

    /// What stays of a first snapshot that was stopped, or whose holder was lost, if the next start can go on with it: then
    /// the slot stays, too.
    pub(super) async fn left(&self, tools: &Tools, error: &Error) -> Left {
        let is_meant = error.kind == Kind::Interrupted || error.lost_snapshot;
        if !is_meant || error.begin_anew {
            return Left::Unknown;
        }
        match tokio::time::timeout(LOOK, self.look_what_stays(tools)).await {
            Ok(Ok(left)) => left,
            Ok(Err(cause)) => {
                tracing::warn!(%cause, "what is whole on the target could not be asked");
                Left::Unknown
            }
            Err(_) => {
                tracing::warn!("what is whole on the target could not be asked in time");
                Left::Unknown
            }
        }
    }

    async fn look_what_stays(&self, tools: &Tools) -> Result<Left> {
        let Some(stored) = tools.sink.stored().await? else { return Ok(Left::Unknown) };
        if stored.stage != StoredStage::Snapshot || self.made_by(&stored.run).await?.is_none() {
            return Ok(Left::Unknown);
        }
        let whole = stored.tables.as_ref().map_or(0, Vec::len);
        let half = self.half_copied(&stored.run).await?;
        if whole + half == 0 {
            return Ok(Left::Nothing);
        }
        let slot = resume::slot_name(self.job);
        let client = self.job.source.connect().await?;
        let state = inspect_slot(&client, &slot).await?;
        let Some(state) = state.filter(|state| state.invalid_because().is_none()) else {
            return Ok(Left::Unknown);
        };
        let from = state.restart_lsn.map_or_else(String::new, |lsn| format!(" from {lsn} on"));
        let drops = match self.job.stream.slot {
            None => "gives the job up and drops the slot",
            Some(_) => "gives the job up; the slot, which is not ours, is then yours to drop",
        };
        let stay = match half {
            0 => format!(
                "{whole} tables are whole and stay: the same tidemark sync copies the others"
            ),
            _ => format!(
                "{whole} tables are whole and {half} half copied, and stay: the same tidemark sync copies the rest"
            ),
        };
        Ok(Left::Stays(format!(
            "{stay} and goes on. Until then slot {slot} stays on the source, which keeps its WAL{from} for it; \
             tidemark cleanup --yes {drops}"
        )))
    }

    /// Whether half-copied tables alone are worth going on with: all others are copied anyway.
    async fn is_worth_it(&self, resumable: &Resumable) -> Result<bool> {
        let client = self.job.source.connect().await?;
        let received = resumable.spool.as_ref().map_or(resumable.start.position, Spool::end);
        let is_half =
            |plan: &&TablePlan| resumable.halves.iter().any(|half| half.oid() == plan.relation.oid);
        let tables = resumable.joining.iter().filter(is_half);
        let bytes = tables.map(|plan| plan.relation.heap_bytes).sum();
        let is_near = is_worth_waiting(bytes, received, head(&client).await?);
        Ok(is_near && !resumable.halves.is_empty())
    }

    /// How many tables of the run are half copied and may go on by chunk, as far as the ledger knows.
    async fn half_copied(&self, run: &str) -> Result<usize> {
        let (ledger, run) = (Arc::clone(self.ledger), run.to_owned());
        let count = blocking(move || {
            let (journal, relations) = (ledger.journal()?, ledger.relations()?);
            Ok::<_, tidemark_ledger::Error>(snapshot::half_copied(journal, &relations, &run))
        });
        Ok(count.await??)
    }

    /// The tables that may go on by chunk: the run has planned them, nobody has begun them anew since, and they were published
    /// all the time. Of the others it is noted that they do not, before how they are published is noted anew.
    async fn halves(&self, run: &str, joining: &[TablePlan]) -> Result<Vec<Half>> {
        let ledger = Arc::clone(self.ledger);
        let planned = snapshot::planned(blocking(move || ledger.journal()).await??, run);
        if planned.is_empty() {
            return Ok(Vec::new());
        }
        // How it was at first, whatever was done to it and noted since.
        let noted = resume::noted_publication(self.ledger, run).await?;
        let noted = noted.into_iter().next().flatten().unwrap_or_default();
        let client = self.job.source.connect().await?;
        let now = PublicationState::read(&client, &[resume::publication_name(self.job)]).await?;
        let mut halves = Vec::new();
        let mut others = Vec::new();
        for chunks in planned {
            let oid = chunks.oid();
            let plan = joining.iter().find(|plan| plan.relation.oid == oid);
            // A filter is put into the publication only with the table, which then begins anew.
            let whole = plan.filter(|plan| plan.filter.is_none());
            let published = whole.map(|plan| {
                let table = (oid, plan.relation.name.clone());
                noted.clone().of_tables(&[table])
            });
            match published.filter(|was| was.names(oid) && now.has_kept(was)) {
                Some(published) => halves.push(Half { chunks, published }),
                None => {
                    if let Some(plan) = plan {
                        let why = match plan.filter {
                            Some(_) => "it has a row filter",
                            None => "it was not published all the time",
                        };
                        snapshot::say_anew(&plan.relation.name, why);
                    }
                    others.push(oid);
                }
            }
        }
        snapshot::note_anew(self.ledger, run, others).await?;
        Ok(halves)
    }

    /// Whether the source is the one that the snapshot was begun on.
    async fn is_same_source(&self, stored: &Stored) -> Result<bool> {
        let identity = identify(&self.job.source).await?;
        Ok(identity.system_identifier.to_string() == stored.system_identifier
            && identity.database == stored.database)
    }

    /// Notes that the slot's stream and the target's run belong together.
    pub(super) async fn note_made(&self, slot: &str, run: &str) -> Result<()> {
        let timeline = identify(&self.job.source).await?.timeline;
        let ledger = Arc::clone(self.ledger);
        let detail =
            serde_json::json!({ "slot": slot, "state": MADE, "run": run, "timeline": timeline });
        blocking(move || ledger.write_journal(SLOT_EVENT, &detail)).await??;
        Ok(())
    }

    /// The timeline that the slot of this run was made on; none where the ledger's last slot is another one's.
    async fn made_by(&self, run: &str) -> Result<Option<u32>> {
        let ledger = Arc::clone(self.ledger);
        let (known, journal) =
            blocking(move || Ok::<_, tidemark_ledger::Error>((ledger.run()?, ledger.journal()?)))
                .await??;
        if known.is_none_or(|known| known.run != run) {
            return Ok(None);
        }
        let last = journal.iter().rev().find(|entry| entry.event == SLOT_EVENT);
        let made = last.filter(|last| last.detail["state"] == MADE && last.detail["run"] == run);
        let timeline = made.and_then(|made| made.detail["timeline"].as_u64());
        Ok(timeline.and_then(|timeline| u32::try_from(timeline).ok()))
    }

    /// What the ledger has of the whole tables. The process may have died before it had their end.
    async fn left_in_ledger(&self, whole: Arc<Vec<TablePlan>>) -> Result<Completes> {
        let ledger = Arc::clone(self.ledger);
        let tables = Arc::clone(&whole);
        let rows = blocking(move || {
            let known = ledger.relations()?;
            let rows: HashMap<_, _> =
                known.iter().map(|relation| (relation.plan.oid, relation.rows_in)).collect();
            let oids = tables.iter().map(|plan| plan.relation.oid);
            for oid in oids.filter(|oid| rows.contains_key(oid)) {
                ledger.finish_relation(oid)?;
            }
            Ok::<_, tidemark_ledger::Error>(rows)
        })
        .await??;
        Ok(Completes { whole, rows })
    }
}

/// Tables of which no WAL is written are never whole: what changed since they were copied would be lost.
pub(super) fn without_unlogged(tables: &mut Vec<(Oid, RelationName)>, plans: &[TablePlan]) {
    let is_unlogged = |oid: Oid| {
        let mut unlogged = plans
            .iter()
            .map(|plan| &plan.relation)
            .filter(|relation| relation.persistence == Persistence::Unlogged);
        unlogged.any(|relation| relation.oid == oid)
    };
    tables.retain(|(oid, _)| !is_unlogged(*oid));
}

/// The run that the last slot of a journal was made for.
pub(crate) fn made_run(journal: &[tidemark_ledger::JournalEntry]) -> Option<&str> {
    let last = journal.iter().rev().find(|entry| entry.event == SLOT_EVENT)?;
    (last.detail["state"] == MADE).then(|| last.detail["run"].as_str()).flatten()
}

/// Whether the same look would find the same again, with the same configuration.
fn is_final(error: &Error) -> bool {
    error.kind == Kind::SourceCannotContinue
}
