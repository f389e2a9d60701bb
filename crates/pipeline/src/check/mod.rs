//! Collects what source and sink find before anything moves, and what only both together can tell.

mod local;
mod sides;
mod waves;

use std::collections::HashSet;
use std::time::Duration;

use tidemark_model::{Column, Finding, Generated, Oid, Severity, TablePlan, sql::Ident};
use tidemark_sink::{Sink, parquet};
use tidemark_source::names::slot_name;
use tidemark_source::{
    AddressOf, Catalog, Needs, check_filters, check_given_slot, connect_refused, inspect_slot,
    pooler_behind, pooler_that_refused, read_catalog, slot_object,
};
use tidemark_wire::{Client, ConnectSpec};

use crate::job::{Job, Target};
use crate::plan::plan_tables;
use crate::target::sink;
use crate::{Error, Kind, Result};

use sides::Sides;

pub use waves::ties_between_waves;

/// The SQLSTATE of a statement that gave a lock up.
const LOCK_TIMEOUT: &str = "55P03";
/// How often the catalog is read when others keep a table locked, and how long is paused in between.
const ATTEMPTS: u32 = 10;
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(1);
/// Catalog, snapshot holder and `pg_dump`.
const SESSIONS_BESIDE_READERS: u32 = 3;
/// The oldest server that can be a target.
const TARGET_FROM: u32 = 140_000;

/// What a look at both sides gives.
pub(crate) struct Looked {
    pub(crate) catalog: Catalog,
    pub(crate) plans: Vec<TablePlan>,
    pub(crate) findings: Vec<Finding>,
    /// The connection to the source that was used.
    pub(crate) client: Client,
}

/// Whether the job has any table: a wave that is the rest of others may be left with none.
///
/// # Errors
/// The source cannot be reached, or the selection makes no sense.
pub async fn has_tables(job: &Job) -> Result<bool> {
    let client = job.source.connect().await?;
    limit_waits(&client, job.lock_timeout).await?;
    let catalog = patiently(&job.source, async || read_catalog(&client).await).await?;
    Ok(!job.selection.apply(&catalog)?.is_empty())
}

/// Readiness of source and target for this job: findings, blocking ones first. Changes nothing.
///
/// # Errors
/// A side cannot be reached or the selection makes no sense; findings are no errors.
pub async fn check(job: &Job) -> Result<Vec<Finding>> {
    let cpu = tidemark_model::Cpu::new(1)
        .map_err(|cause| Error::new(Kind::Unavailable, "start the CPU threads").because(cause))?;
    let budget = tidemark_model::Budget::new(job.memory / 2);
    let sink = sink(job, &cpu, &budget);
    match look(job, sink.as_ref()).await {
        Ok(looked) => Ok(looked.findings),
        // What keeps us from looking any further is a finding, too.
        Err(error) if !error.findings.is_empty() => Ok(error.findings),
        Err(error) => Err(error),
    }
}

pub(crate) async fn look(job: &Job, sink: &dyn Sink) -> Result<Looked> {
    look_at(job, sink, None).await
}

/// The same, of `only` these tables, which join a job that follows.
pub(crate) async fn look_at(
    job: &Job,
    sink: &dyn Sink,
    only: Option<&HashSet<Oid>>,
) -> Result<Looked> {
    let (client, mut findings) = connect(&job.source, AddressOf::Source).await?;
    limit_waits(&client, job.lock_timeout).await?;
    let catalog = patiently(&job.source, async || read_catalog(&client).await).await?;
    let target = match &job.target {
        Target::Postgres(to) => {
            let (client, found) = connect(&to.spec, AddressOf::Target).await?;
            limit_waits(&client, job.lock_timeout).await?;
            findings.extend(found);
            Some((to, client))
        }
        Target::Lake(_) => None,
    };
    let target_version = target.as_ref().map(|(_, client)| client.server_version_num());
    let mut plans = plan_tables(job, &catalog, target_version)?;
    plans.retain(|plan| only.is_none_or(|only| only.contains(&plan.relation.oid)));
    patiently(&job.source, async || check_filters(&client, &plans).await).await?;
    let needs = Needs {
        replication: job.follows,
        given_publication: job.stream.publication.is_some(),
        connections: job.readers as u32 + SESSIONS_BESIDE_READERS,
        source_wal: job.stream.source_wal,
        dumps: job.creates(),
    };
    let checked = async || tidemark_source::check(&client, &catalog, &plans, needs).await;
    findings.extend(patiently(&job.source, checked).await?);
    if let (true, Some(slot)) = (job.follows, &job.stream.slot) {
        findings.extend(check_given_slot(&client, slot).await?);
    }
    findings.extend(generated_columns(job, &client, &plans).await?);
    if job.follows && matches!(job.target, Target::Lake(_)) {
        findings.extend(plans.iter().flat_map(parquet::check_followed));
    }
    findings.extend(local::password_findings(job));
    findings.extend(local::space_for_spool(job));
    findings.extend(local::schema_tool_findings(job, &catalog).await);
    findings.extend(sink.check(&plans).await?);
    // An older one is a finding of the sink's.
    if let Some((to, target)) =
        target.as_ref().filter(|(_, client)| client.server_version_num() >= TARGET_FROM)
    {
        let sides = Sides { job, to, source: &client, target, catalog: &catalog, plans: &plans };
        findings.extend(sides.check().await?);
    }
    // Between two runs nobody reads from the job's own slot.
    let own = job.stream.slot.clone().unwrap_or_else(|| slot_name(&job.name));
    findings.retain(|finding| finding.code != "slot-left" || finding.object != slot_object(&own));
    if job.stream.slot.is_none() && findings.iter().any(|finding| finding.code == "slots") {
        // It goes before another is made.
        let has_own = inspect_slot(&client, &own).await?.is_some();
        findings.retain(|finding| finding.code != "slots" || !has_own);
    }
    if only.is_some() {
        // The target holds the job's other tables: what it has of these is looked at when they are prepared.
        findings.retain(|finding| finding.code != "target-not-empty");
    }
    findings.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
    Ok(Looked { catalog, plans, findings, client })
}

/// The definition of an index is read under a lock: who queues behind our waiting is let through now and then.
///
/// # Errors
/// The connection failed.
pub async fn limit_waits(client: &Client, lock_timeout: Duration) -> Result<()> {
    let timeout = lock_timeout.as_millis().clamp(1, 2_000_000_000);
    let set = client.batch_execute(&format!("SET lock_timeout = {timeout}")).await;
    Ok(set.map_err(tidemark_wire::Error::sql("set up the session that reads the catalog"))?)
}

/// Reads what may have to wait for an exclusive lock of the application, as patiently as the snapshot's holder waits for
/// its locks; in the end the error names who has it. `read` goes by a session of [`limit_waits`].
///
/// # Errors
/// Those of `read`, and that somebody keeps a lock.
pub async fn patiently<T>(
    source: &ConnectSpec,
    read: impl AsyncFn() -> tidemark_source::Result<T>,
) -> Result<T> {
    let (mut attempt, mut pause) = (1, PAUSE_MIN);
    loop {
        let error = match read().await {
            Ok(read) => return Ok(read),
            Err(error) => error,
        };
        if error.sqlstate() != Some(LOCK_TIMEOUT) {
            return Err(error.into());
        }
        if attempt == ATTEMPTS {
            return Err(kept_waiting(source, error).await);
        }
        tracing::info!(attempt, %error, "a table is locked by others, trying again");
        tokio::time::sleep(pause).await;
        (attempt, pause) = (attempt + 1, (pause * 2).min(PAUSE_MAX));
    }
}

/// The error of a statement that waited for a lock until `lock_timeout`, with who keeps it.
async fn kept_waiting(source: &ConnectSpec, error: impl Into<Error>) -> Error {
    let mut error = error.into();
    let waits = tidemark_source::waiting_for_us(source).await.ok().flatten();
    if let Some(waits) = waits {
        error.hint = Some(format!(
            "{waits}; end that session or wait for it, or raise snapshot.lock_timeout"
        ));
    }
    error
}

/// Somebody may wait for the holder, and what we read beside it for them: only a new snapshot lets them through.
pub(crate) async fn let_through<T, E: Into<Error>>(
    job: &Job,
    read: std::result::Result<T, E>,
    sqlstate: impl Fn(&E) -> Option<&str>,
) -> Result<T> {
    match read {
        Ok(read) => Ok(read),
        Err(error) if sqlstate(&error) == Some(LOCK_TIMEOUT) => {
            let mut error = kept_waiting(&job.source, error).await;
            error.lost_snapshot = true;
            Err(error)
        }
        Err(error) => Err(error.into()),
    }
}

/// A connection to a server of its own; behind a pooler nothing that follows would mean what it says.
async fn connect(spec: &ConnectSpec, side: AddressOf) -> Result<(Client, Vec<Finding>)> {
    let refuse = |finding: Finding| {
        let mut error =
            Error::new(Kind::Preflight, format!("use {}: {}", finding.object, finding.message));
        error.hint.clone_from(&finding.fix);
        error.findings = vec![finding];
        error
    };
    let client = match spec.connect().await {
        Ok(client) => client,
        Err(cause) => {
            let finding =
                pooler_that_refused(&cause, side).or_else(|| connect_refused(&cause, spec, side));
            return Err(match finding {
                Some(finding) => refuse(finding),
                None => cause.into(),
            });
        }
    };
    match pooler_behind(&client, spec, side).await? {
        Some(finding) if finding.severity == Severity::Blocking => Err(refuse(finding)),
        found => Ok((client, found.into_iter().collect())),
    }
}

/// A lake is given generated columns, which nothing there would compute; a stream does not carry them. From 18 on a
/// publication of somebody else's can publish the stored ones.
async fn generated_columns(
    job: &Job,
    client: &Client,
    plans: &[TablePlan],
) -> Result<Vec<Finding>> {
    if !job.follows || !matches!(job.target, Target::Lake(_)) {
        return Ok(Vec::new());
    }
    let publishes_stored = match &job.stream.publication {
        Some(name) => client
            .query_opt(
                "SELECT coalesce(to_jsonb(p) ->> 'pubgencols' = 's', false) FROM pg_publication p WHERE pubname = $1",
                &[name],
            )
            .await
            .map_err(tidemark_wire::Error::sql("look at the publication"))?
            .is_some_and(|row| row.get(0)),
        None => false,
    };
    let is_missing = |column: &&Column| match column.generated {
        Generated::No => false,
        Generated::Stored => !publishes_stored,
        Generated::Virtual => true,
    };
    let finding = |plan: &TablePlan, column: &Column| {
        let name = &plan.relation.name;
        let others = plan.columns.iter().filter(|other| other.generated == Generated::No);
        let others: Vec<String> = others.map(|other| format!("{:?}", other.name)).collect();
        let message =
            "a stream does not carry generated columns, and nothing computes them in a lake";
        let object = format!("{name}.{}", Ident(&column.name));
        Finding::new(Severity::Blocking, "generated-column", object, message).with_fix(format!(
            "[[table]] name = \"{}.{}\", columns = [{}]; or sync --snapshot-only",
            name.schema,
            name.name,
            others.join(", ")
        ))
    };
    let of_table = |plan: &TablePlan| {
        let missing = plan.columns.iter().filter(is_missing);
        missing.map(|column| finding(plan, column)).collect::<Vec<_>>()
    };
    Ok(plans.iter().flat_map(of_table).collect())
}
