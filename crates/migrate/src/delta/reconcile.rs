//! A stream that begins at a target which holds the rows already: after a lost slot, or where something else has brought them
//! there.
//!
//! **Invariant:** what is compared and moved is the snapshot that the stream begins with, and all of it: a table that is left
//! out, or a row that the target refuses, is an error, and nothing is followed. No file tells of the rows, for the stream
//! goes on with them.

use std::sync::Arc;

use futures::FutureExt as _;
use futures::future::LocalBoxFuture;
use tidemark_digest::DigestKey;
use tidemark_ledger::RowFiles;
use tidemark_model::RelationName;
use tidemark_pipeline::{
    Error, Job, Kind, Moment, Reconcile, ReconciledTable, Result, Target, blocking,
};
use tidemark_sink::postgres::DeltaTarget;

use super::{Action, Actions, Class, Delta, Request, TableDelta, open};

/// Compares with the target's rows and moves whatever differs.
#[derive(Debug, Clone, Copy)]
pub struct Reconciler;

impl Reconcile for Reconciler {
    fn reconcile<'a>(
        &'a self,
        job: &'a Job,
        moment: Moment<'a>,
    ) -> LocalBoxFuture<'a, Result<Vec<ReconciledTable>>> {
        reconcile(job, moment).boxed_local()
    }
}

async fn reconcile(job: &Job, moment: Moment<'_>) -> Result<Vec<ReconciledTable>> {
    let Target::Postgres(to) = &job.target else {
        return Err(Error::new(Kind::Internal, "compare rows with those of a lake"));
    };
    let request = Request {
        // The other half is the stream's, which is received meanwhile.
        job: Job { memory: job.memory / 2, ..job.clone() },
        actions: Actions {
            new: Action::Apply,
            modified: Action::Apply,
            deleted: Action::Apply,
            failed: Action::Apply,
            unfiltered: Action::Apply,
        },
        dry_run: false,
        scan_target: true,
        progress: Arc::default(),
    };
    let state_dir = job.state_dir.clone();
    let files = blocking(move || RowFiles::open(&state_dir)).await??;
    let target = DeltaTarget::of_run(&to.spec, &job.name, (to.triggers, moment.run)).await?;
    let sides = open(job, to).await?;
    let mut delta = Delta::new(&request, &sides, (target, files, DigestKey::random()))?;
    delta.remembers = false;
    let mut planned = delta.plan(to.triggers).await?;
    let tables = moment.snapshot.tables();
    // A table that came later joins when the job is started again.
    planned.retain(|(pair, _)| tables.iter().any(|table| table.oid == pair.source.relation.oid));
    refuse_left_out(&delta.told, tables.iter().map(|table| &table.name))?;
    let view = sides.source.view_of(moment.snapshot).await?;
    delta.tables(&view, planned).await?;
    view.release().await;
    tables.iter().map(|table| reconciled(&delta.told, &table.name)).collect()
}

/// Before anything is read: a table that cannot be compared is followed by nobody.
fn refuse_left_out<'a>(
    told: &[TableDelta],
    mut tables: impl Iterator<Item = &'a RelationName>,
) -> Result<()> {
    let left_out = |name: &'a RelationName| {
        told_of(told, name)?.skipped_reason.as_ref().map(|because| (name, because))
    };
    match tables.find_map(left_out) {
        Some((name, because)) => Err(not_brought(name, because)),
        None => Ok(()),
    }
}

fn told_of<'t>(told: &'t [TableDelta], name: &RelationName) -> Option<&'t TableDelta> {
    told.iter().find(|told| told.schema == name.schema && told.table == name.name)
}

/// What was moved of a table, all of which went there.
fn reconciled(told: &[TableDelta], name: &RelationName) -> Result<ReconciledTable> {
    let Some(told) = told_of(told, name) else {
        return Err(not_brought(name, "it was not compared"));
    };
    if let Some(because) = told.skipped_reason.as_ref().or(told.failed.as_ref()) {
        return Err(not_brought(name, because));
    }
    if let Some((why, rows)) = told.refusals.first_key_value() {
        let because = format!("the target refuses {} rows, {rows} of them by {why}", told.refused);
        return Err(not_brought(name, &because));
    }
    let moved =
        |class: Class| told.classes.iter().find(|of| of.class == class).map_or(0, |of| of.moved);
    let reconciled = ReconciledTable {
        relation: name.clone(),
        rows: told.rows,
        new: moved(Class::New),
        modified: moved(Class::Modified),
        deleted: moved(Class::Deleted),
    };
    let ReconciledTable { rows, new, modified, deleted, .. } = reconciled;
    tracing::info!(table = %name, rows, new, modified, deleted, "compared, and brought to the source's rows");
    Ok(reconciled)
}

fn not_brought(name: &RelationName, because: &str) -> Error {
    let message = format!("begin with what the target holds of {name}: {because}");
    Error::new(Kind::TargetRefused, message)
        .hint("mend it and run the same command again; nothing is followed until then, and tables that were brought to the source's rows stay so")
}
