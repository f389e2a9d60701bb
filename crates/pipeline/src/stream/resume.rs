//! Going on from what the target has stored.
//!
//! **Invariant:** slot, server and publication are compared with what the target has stored before anything is written
//! (`design.md` 3, invariant 4). What the spool holds counts only if it continues the stored position without a gap.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tidemark_ledger::{Ledger, NewRelation};
use tidemark_model::{JoinPoint, Lsn, Oid, Persistence, RelationName, TablePlan, names};
use tidemark_sink::{Stored, StoredStage};
use tidemark_source::{
    Catalog, Expected, Identity as SourceIdentity, PublicationState, RowFilters, Saved,
    check_continuation, check_publication, identify, inspect_slot, read_catalog,
};
use tidemark_wire::Client;

use super::plant::is_planted;
use super::session::SessionStart;
use super::spool::Spool;
use super::unfinished::without_unlogged;
use super::watch::publication_changed;
use crate::job::Job;
use crate::plan::plan_tables;
use crate::snapshot::{Completes, Half, blocking};
use crate::target::target_version;
use crate::{Error, Kind, Result};

/// The publication that the job reads.
pub(super) fn publication_name(job: &Job) -> String {
    job.stream.publication.clone().unwrap_or_else(|| names::publication_name(&job.name))
}

/// The slot that the job reads.
pub(super) fn slot_name(job: &Job) -> String {
    job.stream.slot.clone().unwrap_or_else(|| names::slot_name(&job.name))
}

/// A stream that can go on.
pub(super) struct Resumable {
    /// What it goes on with.
    pub(super) start: SessionStart,
    /// What an earlier process has received.
    pub(super) spool: Option<Spool>,
    /// Chosen tables that the target does not have whole: they join first.
    pub(super) joining: Vec<TablePlan>,
    /// Tables that joined on a timeline that the source has left before it came to where they joined: what their read
    /// snapshots show are other transactions than those that come.
    pub(super) foreign: Vec<RelationName>,
    /// What a first snapshot that died has left, which is to be completed.
    pub(super) completes: Option<Completes>,
    /// Of these of the joining tables whole chunks may be there.
    pub(super) halves: Vec<Half>,
}

/// Checks that the stream can go on.
pub(super) async fn look(job: &Job, stored: &Stored, ledger: &Arc<Ledger>) -> Result<Resumable> {
    let client = job.source.connect().await?;
    refuse_own_target(&client, &job.name).await?;
    let identity = identify(&job.source).await?;
    let slot = slot_name(job);
    let spool = usable_spool(job, stored)?;
    let received = spool.as_ref().map_or(stored.end_lsn, Spool::end).max(stored.end_lsn);
    let saved = Saved {
        system_identifier: stored.system_identifier.parse().unwrap_or_default(),
        timeline: stored.timeline,
        database: stored.database.clone(),
        end_lsn: received,
        slot: slot.clone(),
    };
    let state = inspect_slot(&client, &slot).await?;
    check_continuation(&saved, &identity, state.as_ref()).map_err(|error| {
        let mut error = Error::from(error);
        let moved = state.and_then(|slot| slot.confirmed_flush);
        if error.kind == Kind::SourceCannotContinue && moved.is_some_and(|lsn| lsn > received) {
            let more = "if the job ran with another state directory, run it with that one: its spool may hold what lies between";
            error.hint = Some(error.hint.map_or(more.to_owned(), |hint| format!("{more}; {hint}")));
        }
        error
    })?;
    let catalog = async { Ok(read_catalog(&client).await?) };
    let (catalog, target_version) = tokio::try_join!(catalog, target_version(job))?;
    let mut plans = plan_tables(job, &catalog, target_version)?;
    let mut tables = followed(job, ledger, stored, &plans).await?;
    let is_unfinished = stored.stage == StoredStage::Snapshot;
    without_unlogged(&mut tables, &plans);
    still_named(&catalog, &tables, stored.end_lsn)?;
    let is_followed = |plan: &TablePlan| tables.iter().any(|(oid, _)| *oid == plan.relation.oid);
    let mut joining: Vec<TablePlan> = plans.extract_if(.., |plan| !is_followed(plan)).collect();
    joining.retain(|plan| {
        let is_unlogged = plan.relation.persistence == Persistence::Unlogged && !is_unfinished;
        if is_unlogged {
            tracing::warn!(table = %plan.relation.name, "an unlogged table is not followed, for there is no WAL of its rows; what the first snapshot copied of it stays");
        }
        !is_unlogged
    });
    joining.retain(|plan| !stored.stopped.iter().any(|table| table.name == plan.relation.name));
    let publications = [publication_name(job)];
    let filters = filters_of(job, &tables);
    let expected = Expected { publications: &publications, tables: &tables, filters: &filters };
    let mut others = check_publication(&client, &expected).await?;
    others.retain(|name| joining.iter().all(|plan| plan.relation.name != *name));
    still_published(&client, &expected, ledger, stored).await?;
    if !others.is_empty() {
        tracing::warn!(
            tables = others.len(),
            "the publication has tables that the job does not follow; their changes are ignored"
        );
    }
    let foreign = foreign(stored, &identity);
    let start = SessionStart {
        run: stored.run.clone(),
        system_identifier: identity.system_identifier,
        timeline: identity.timeline,
        database: identity.database,
        source_version: client.server_version_num(),
        target_version,
        plans: Arc::new(plans),
        position: stored.end_lsn,
        joins: joins(stored),
        stopped: stored.stopped.clone(),
    };
    Ok(Resumable { start, spool, joining, foreign, completes: None, halves: Vec::new() })
}

/// Tables whose read snapshots are not of the source's history. One is where everything that it shows ended before the
/// source left its timeline: ids are given anew only to transactions that left nothing in the WAL until then.
fn foreign(stored: &Stored, identity: &SourceIdentity) -> Vec<RelationName> {
    let is_foreign = |join: &JoinPoint| {
        let timeline = join.timeline.or(stored.timeline).unwrap_or(identity.timeline);
        let mut left = identity.history.iter().filter(|(number, _)| *number == timeline);
        stored.end_lsn < join.lsn
            && timeline != identity.timeline
            && !left.any(|(_, left_at)| join.lsn <= *left_at)
    };
    let tables = stored.tables.iter().flatten();
    let foreign = tables.filter(|table| table.join.as_ref().is_some_and(is_foreign));
    foreign.map(|table| table.name.clone()).collect()
}

/// Where tables joined that the stream has not passed yet.
fn joins(stored: &Stored) -> HashMap<Oid, JoinPoint> {
    let tables = stored.tables.iter().flatten();
    let joined = tables.filter_map(|table| Some((table.oid, table.join.clone()?)));
    let is_ahead = |join: &JoinPoint| stored.end_lsn < join.lsn && !is_planted("join-forgotten");
    joined.filter(|(_, join)| is_ahead(join)).collect()
}

/// The tables that the target has whole and that are not left out since. Where a version stored the record that did not tell
/// them apart: those that the job's snapshot copied, as the ledger knows them, or where that was lost the target; where that
/// does not know them either, all chosen ones.
async fn followed(
    job: &Job,
    ledger: &Arc<Ledger>,
    stored: &Stored,
    plans: &[TablePlan],
) -> Result<Vec<(Oid, RelationName)>> {
    if let Some(tables) = &stored.tables {
        let mut followed = Vec::with_capacity(tables.len());
        for table in tables {
            if !job.selection.excludes(&table.name)? {
                followed.push((table.oid, table.name.clone()));
            }
        }
        return Ok(followed);
    }
    let ledger = Arc::clone(ledger);
    let (run, relations) =
        blocking(move || Ok::<_, tidemark_ledger::Error>((ledger.run()?, ledger.relations()?)))
            .await??;
    if run.is_some_and(|run| run.run == stored.run) {
        let mut tables = Vec::with_capacity(relations.len());
        for NewRelation { oid, name, .. } in relations.into_iter().map(|found| found.plan) {
            if !job.selection.excludes(&name)? {
                tables.push((oid, name));
            }
        }
        return Ok(tables);
    }
    let copied = stored.copied.as_ref();
    let is_there = |plan: &&TablePlan| copied.is_none_or(|all| all.contains(&plan.relation.name));
    let there = plans.iter().filter(is_there);
    Ok(there.map(|plan| (plan.relation.oid, plan.relation.name.clone())).collect())
}

/// The rows that the job wants of these tables, of those of which not all: also of one that is not selected any more, for
/// what the target has of it was copied so.
fn filters_of(job: &Job, tables: &[(Oid, RelationName)]) -> RowFilters {
    let filter = |(oid, name): &(Oid, RelationName)| {
        let options = job.tables.iter().find(|options| options.name == *name)?;
        Some((*oid, options.filter.clone()?))
    };
    tables.iter().filter_map(filter).collect()
}

/// How the publication was whenever that was noted for the run, the first time first.
pub(super) async fn noted_publication(
    ledger: &Arc<Ledger>,
    run: &str,
) -> Result<Vec<Option<PublicationState>>> {
    let ledger = Arc::clone(ledger);
    let journal = blocking(move || ledger.journal()).await??;
    let known = journal
        .into_iter()
        .filter(|entry| entry.event == super::PUBLICATION_EVENT && entry.detail["run"] == run);
    Ok(known.map(|entry| serde_json::from_value(entry.detail["state"].clone()).ok()).collect())
}

/// Compares the publication with what it was at the snapshot, where the ledger knows it.
async fn still_published(
    client: &Client,
    expected: &Expected<'_>,
    ledger: &Arc<Ledger>,
    stored: &Stored,
) -> Result<()> {
    let saved = noted_publication(ledger, &stored.run).await?.pop().flatten();
    let now = PublicationState::read(client, expected.publications).await?;
    match saved.map(|saved| saved.of_tables(expected.tables)) {
        Some(saved) if !now.has_kept(&saved) => {
            Err(publication_changed(expected.publications, stored.end_lsn))
        }
        _ => Ok(()),
    }
}

/// What an earlier process spooled, if it goes on from the stored position.
fn usable_spool(job: &Job, stored: &Stored) -> Result<Option<Spool>> {
    let directory = job.state_dir.join("spool");
    let found = tokio::task::block_in_place(|| Spool::recover(&directory))?;
    let Some(spool) = found else { return Ok(None) };
    let identity = spool.identity();
    let fits = identity.job == job.name
        && identity.system_identifier == stored.system_identifier
        && identity.base <= stored.end_lsn
        && spool.end() > stored.end_lsn;
    Ok(fits.then_some(spool))
}

/// Ends a walsender of ours that outlived its process, so that its slot can be dropped: only one of our own name and role.
pub(super) async fn end_own_walsender(client: &Client, job: &Job) -> Result<()> {
    let (slot, application) = (slot_name(job), names::application_name(&job.name));
    let deadline = Instant::now() + Duration::from_secs(15);
    loop {
        let row = client
            .query_one(
                "SELECT count(pg_terminate_backend(a.pid)) FROM pg_catalog.pg_replication_slots s \
                 JOIN pg_catalog.pg_stat_activity a ON a.pid = s.active_pid \
                 WHERE s.slot_name = $1 AND a.application_name = $2 AND a.usename = current_user",
                &[&slot, &application],
            )
            .await
            .map_err(tidemark_wire::Error::sql(
                "end a session of a killed run that holds the slot",
            ))?;
        if row.get::<_, i64>(0) == 0 {
            return Ok(());
        }
        if Instant::now() >= deadline {
            return Err(Error::new(
                Kind::Unavailable,
                format!("end the session that holds slot {slot}"),
            )
            .hint("end it by hand (pg_stat_activity names it), then run again"));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// The source's next transaction id with its epoch: what 32-bit ids of the stream are extended with.
pub(super) async fn next_xid(client: &Client) -> Result<u64> {
    let row = client
        .query_one(
            "SELECT pg_catalog.pg_snapshot_xmax(pg_catalog.pg_current_snapshot())::text",
            &[],
        )
        .await
        .map_err(tidemark_wire::Error::sql("read the source's next transaction id"))?;
    Ok(row.get::<_, &str>(0).parse().unwrap_or_default())
}

/// The origins that a stream of this job the other way round, into this database, gives to its commits: of the same name, or
/// of the job that a migration has for the other way.
pub(super) async fn own_origins(client: &Client, job: &str) -> Result<Vec<String>> {
    let database = database_oid(client).await?;
    let mut origins = names::origin_names(job, database);
    origins.extend(names::origin_names(&names::other_way(job), database));
    origins.push(names::origin_name_of_old(job));
    Ok(origins)
}

/// Refuses a source into which another job of this name writes: what that one writes would be taken for what this one has
/// written itself, and be left out (a chain of two jobs, or two against each other).
pub(super) async fn refuse_own_target(client: &Client, job: &str) -> Result<()> {
    let origin = names::origin_name(job, database_oid(client).await?);
    let there = client
        .query_one(
            "SELECT EXISTS (SELECT FROM pg_catalog.pg_replication_origin WHERE roname = $1)",
            &[&origin],
        )
        .await
        .map_err(tidemark_wire::Error::sql("look for replication origins on the source"))?;
    if !there.get::<_, bool>(0) {
        return Ok(());
    }
    Err(Error::new(
        Kind::Usage,
        format!("follow a database that a job of the name {job} writes into (origin {origin})"),
    )
    .hint("its changes would be taken for this job's own and be left out: give this job another name (--job); an origin that was left behind goes with pg_replication_origin_drop"))
}

async fn database_oid(client: &Client) -> Result<Oid> {
    let row = client
        .query_one(
            "SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database()",
            &[],
        )
        .await
        .map_err(tidemark_wire::Error::sql("read which database the source is"))?;
    Ok(row.get(0))
}

/// Refuses tables that have another name than the target knows them by: which of its tables is meant cannot be told where
/// names were swapped.
fn still_named(catalog: &Catalog, tables: &[(Oid, RelationName)], position: Lsn) -> Result<()> {
    let renamed = tables.iter().find_map(|(oid, name)| {
        let now = catalog.relations.iter().find(|now| now.oid == *oid)?;
        (now.name != *name).then_some((name, &now.name))
    });
    let Some((name, now)) = renamed else { return Ok(()) };
    Err(Error::new(
        Kind::SourceCannotContinue,
        format!("go on at {position}: table {name} is called {now} on the source now, and the target knows it by its old name"),
    )
    .hint("rename it back until the job goes on, or take a new snapshot (tidemark cleanup, then sync); the position is kept"))
}
