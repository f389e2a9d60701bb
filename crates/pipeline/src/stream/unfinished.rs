//! Going on with a first snapshot that died, instead of beginning it anew.
//!
//! **Invariant:** only what the target itself calls whole is kept, and only while slot, publication, source and this state
//! directory are those that the snapshot was begun with: the slot has then everything from its consistent point on, which is
//! what the whole tables are as of. The other tables join the stream at a new read snapshot. What does not fit is said, and
//! the snapshot begins anew.
//!
//! `docs/adr/2026-11-21-a-snapshot-goes-on-after-a-crash.md` proves it.
//!
//! **Not here:** the joining (`join.rs`), what the target keeps (`sink::postgres`).

use std::collections::HashMap;
use std::sync::Arc;

use tidemark_model::{Oid, Persistence, RelationName, TablePlan};
use tidemark_sink::Stored;
use tidemark_source::identify;

use super::resume::{self, Resumable};
use super::{SLOT_EVENT, Sync};
use crate::job::Target;
use crate::snapshot::{Completes, blocking};
use crate::{Error, Kind, Result};

/// What the journal says once a slot is there and the target is prepared for its snapshot.
const MADE: &str = "made";

impl Sync<'_> {
    /// What a snapshot that died has left, if the job can go on from it.
    pub(super) async fn unfinished(&self, mut stored: Stored) -> Result<Option<Resumable>> {
        if matches!(self.job.target, Target::Lake(_)) {
            return Ok(None);
        }
        if stored.tables.as_ref().is_none_or(Vec::is_empty) {
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

    /// Whether the source is the one that the snapshot was begun on.
    async fn is_same_source(&self, stored: &Stored) -> Result<bool> {
        let identity = identify(&self.job.source).await?;
        Ok(identity.system_identifier.to_string() == stored.system_identifier
            && identity.database == stored.database)
    }

    /// Notes that the slot's stream and the target's run belong together; only a target whose tables can join goes on.
    pub(super) async fn note_made(&self, slot: &str, run: &str) -> Result<()> {
        if matches!(self.job.target, Target::Lake(_)) {
            return Ok(());
        }
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
