//! The session that holds the job on the target, and how a job is taken from a run that is dead.
//!
//! **Invariant:** one session holds the job's advisory lock from before the first change to the target until the end; its
//! task renews the heartbeat, and where that fails the run stops. The session does nothing else, so that a slow statement
//! never looks like a dead run.
//!
//! **Not here:** the job's record (`record`), what a first snapshot does with what it finds (`begin`).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tidemark_model::names::{advisory_lock_key, application_name};
use tidemark_model::sql::Ident;
use tidemark_wire::Client;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::Instant;

use super::PostgresOptions;
use super::delta::has_generations;
use super::record::{TABLES, heartbeat_of, held, read_record};
use super::session::{Sessions, server_error};
use crate::{Disposition, Error, Result};

/// How often the heartbeat is renewed.
const HEARTBEAT: Duration = Duration::from_secs(3);
/// A holder whose heartbeat stood still for this long is dead. Several heartbeats, so that a busy target is no proof.
const STALE: Duration = Duration::from_secs(12);

/// The session that holds the job.
pub(super) struct Control {
    /// Has the advisory lock and renews the heartbeat.
    holder: Arc<Client>,
    /// For statements.
    pub(super) client: Client,
    pub(super) job: String,
    pub(super) run: String,
    lost: Arc<AtomicBool>,
    /// Ends with the value, or when the job is given back.
    _heartbeat: JoinSet<()>,
    heartbeat: AbortHandle,
}

impl Control {
    /// Takes the job's advisory lock, ends the sessions of a killed run and creates our tables.
    pub(super) async fn open(
        options: &PostgresOptions,
        sessions: &Sessions,
        run: &str,
    ) -> Result<Self> {
        let holder = Arc::new(sessions.plain().await?);
        take_lock(&holder, options).await?;
        end_other_sessions(&holder, &options.job).await?;
        let client = sessions.plain().await?;
        client
            .batch_execute(&format!("SET client_min_messages = warning; {TABLES}"))
            .await
            .map_err(|cause| {
                server_error("create the schema tidemark for the job's record", None, cause)
                    .hint("the role needs CREATE on the target's database, and the target must not be read-only or a standby")
            })?;
        let lost = Arc::new(AtomicBool::new(false));
        let mut beating = JoinSet::new();
        let heartbeat =
            beating.spawn(beat(Arc::clone(&holder), options.job.clone(), Arc::clone(&lost)));
        Ok(Self {
            holder,
            client,
            job: options.job.clone(),
            run: run.to_owned(),
            lost,
            _heartbeat: beating,
            heartbeat,
        })
    }

    pub(super) fn client(&self) -> &Client {
        &self.client
    }

    /// An error once the session that holds the job is gone: another run may have taken it over.
    pub(super) fn alive(&self) -> Result<()> {
        if !self.lost.load(Ordering::Relaxed) && !self.holder.is_closed() {
            return Ok(());
        }
        Err(Error::new(
            Disposition::Unavailable,
            "go on after the session that holds the job was lost",
        )
        .hint("run the same command again: it starts the snapshot over"))
    }

    /// Gives the job back: whoever asks for it next has it at once.
    pub(super) async fn release(&self) -> Result<()> {
        self.lost.store(true, Ordering::Relaxed);
        self.heartbeat.abort();
        let key = advisory_lock_key(&self.job);
        self.holder
            .query("SELECT pg_advisory_unlock($1)", &[&key])
            .await
            .map_err(|cause| server_error("give the job back on the target", None, cause))?;
        Ok(())
    }
}

async fn beat(client: Arc<Client>, job: String, lost: Arc<AtomicBool>) {
    loop {
        tokio::time::sleep(HEARTBEAT).await;
        let beaten = client
            .execute(
                "UPDATE tidemark.progress SET heartbeat = clock_timestamp() WHERE job = $1",
                &[&job],
            )
            .await;
        if let Err(error) = beaten {
            tracing::error!(%error, "the session that holds the job on the target is lost");
            lost.store(true, Ordering::Relaxed);
            return;
        }
    }
}

/// Refuses where a session whose heartbeat goes on has the job. The lock is given back with the session that takes it here.
pub(super) async fn refuse_if_held(options: &PostgresOptions, sessions: &Sessions) -> Result<()> {
    let client = sessions.plain().await?;
    take_lock(&client, options).await
}

/// Takes the job for a command that ends at once; where nothing knows of any job that is an error.
pub(super) async fn take_the_job(client: &Client, options: &PostgresOptions) -> Result<()> {
    if heartbeat_of(client, &options.job).await?.is_none() {
        return Err(Error::new(
            Disposition::Usage,
            format!("take job {:?} on the target: the target does not know it", options.job),
        )
        .hint("tidemark sync starts the job"));
    }
    take_lock(client, options).await?;
    end_other_sessions(client, &options.job).await?;
    client
        .batch_execute(&format!("SET client_min_messages = warning; {TABLES}"))
        .await
        .map_err(|cause| server_error("bring the job's record up to date", None, cause))
}

/// Takes the advisory lock, from a dead run if need be.
async fn take_lock(client: &Client, options: &PostgresOptions) -> Result<()> {
    let attempt = |cause| server_error("take the job's advisory lock on the target", None, cause);
    let key = advisory_lock_key(&options.job);
    let deadline = Instant::now() + STALE;
    let mut seen = heartbeat_of(client, &options.job).await?;
    loop {
        let row =
            client.query_one("SELECT pg_try_advisory_lock($1)", &[&key]).await.map_err(attempt)?;
        if row.get(0) {
            return Ok(());
        }
        let beat = heartbeat_of(client, &options.job).await?;
        if beat != seen && seen.is_some() {
            return Err(held(&options.job));
        }
        seen = beat;
        if Instant::now() >= deadline {
            return end_holder(client, key, options).await;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

async fn end_holder(client: &Client, key: i64, options: &PostgresOptions) -> Result<()> {
    let attempt = |cause| server_error("end the session of a dead run on the target", None, cause);
    let name = application_name(&options.job);
    client
        .query(
            "SELECT pg_terminate_backend(a.pid) FROM pg_locks l JOIN pg_stat_activity a USING (pid) \
             WHERE l.locktype = 'advisory' AND l.objsubid = 1 AND l.granted \
               AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database()) \
               AND (l.classid::int8 << 32 | l.objid::int8) = $1 \
               AND a.application_name = $2 AND a.usename = current_user",
            &[&key, &name],
        )
        .await
        .map_err(attempt)?;
    let deadline = Instant::now() + STALE;
    while Instant::now() < deadline {
        let row =
            client.query_one("SELECT pg_try_advisory_lock($1)", &[&key]).await.map_err(attempt)?;
        if row.get(0) {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Err(held(&options.job))
}

/// Ends sessions of this job that a killed run left on the target, and waits until they are gone: a statement of theirs may
/// still run. Only ours: same role and application name, begun before this one.
async fn end_other_sessions(client: &Client, job: &str) -> Result<()> {
    let attempt = "end the sessions of a killed run on the target";
    let name = application_name(job);
    let deadline = Instant::now() + STALE;
    // Often it is only our own last session on its way out.
    let mut pause = Duration::from_millis(2);
    loop {
        let ended = client
            .query(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
                 WHERE application_name = $1 AND usename = current_user AND datname = current_database() AND pid <> pg_backend_pid()",
                &[&name],
            )
            .await
            .map_err(|cause| server_error(attempt, None, cause))?;
        if ended.is_empty() {
            return Ok(());
        }
        if Instant::now() >= deadline {
            return Err(Error::new(
                Disposition::Unavailable,
                format!("{attempt}: {} of them go on", ended.len()),
            )
            .hint(
                "end them by hand (pg_stat_activity names them) and run the same command again",
            ));
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}

/// Whether the closing commit of this run is on the target. The job's sessions are ended first, so that the answer stays
/// true; only for a run of this very process, which does not go on.
///
/// # Errors
/// The target cannot be reached.
pub async fn closed_run(options: &PostgresOptions, run: &str) -> Result<bool> {
    let client = options.spec.connect().await.map_err(|cause| {
        Error::new(Disposition::Unavailable, "connect to the target").because(cause)
    })?;
    let ours = async || {
        let record = read_record(&client, &options.job).await?;
        Ok::<_, Error>(record.filter(|record| record.run == run))
    };
    // Another instance that has taken the job over is left alone.
    match ours().await? {
        None => return Ok(false),
        Some(record) if record.is_finished() => return Ok(true),
        Some(_) => end_other_sessions(&client, &options.job).await?,
    }
    Ok(ours().await?.is_some_and(|record| record.is_finished()))
}

/// Whether the job has moved tables by delta.
async fn has_generations_of(client: &Client, job: &str) -> Result<bool> {
    if !has_generations(client).await? {
        return Ok(false);
    }
    let sql = "SELECT EXISTS (SELECT FROM tidemark.delta WHERE job = $1)";
    let row = client.query_one(sql, &[&job]).await;
    let failed = |cause| server_error("look for the generations of tables", None, cause);
    Ok(row.map_err(failed)?.get(0))
}

/// Removes the job's records from the target, by exact name, and the schema `tidemark` with the last of them. Data stays.
/// Returns what was done, one line each.
///
/// # Errors
/// Another instance holds the job, or the target refuses.
pub async fn cleanup(options: &PostgresOptions) -> Result<Vec<String>> {
    let attempt = |cause| server_error("remove the job's records from the target", None, cause);
    let sessions = Sessions::new(options);
    let client = sessions.plain().await?;
    let has_rows_of_delta = has_generations_of(&client, &options.job).await?;
    if heartbeat_of(&client, &options.job).await?.is_none() && !has_rows_of_delta {
        return Ok(Vec::new());
    }
    take_lock(&client, options).await?;
    end_other_sessions(&client, &options.job).await?;
    let mut done = Vec::new();
    // A record of a version without lanes has no table of them.
    let tables = format!("SET client_min_messages = warning; {TABLES}");
    client.batch_execute(&tables).await.map_err(attempt)?;
    for table in ["chunk", "lane", "relation", "delta", "progress"] {
        let statement = format!("DELETE FROM tidemark.{} WHERE job = $1", Ident(table));
        let rows = client.execute(&statement, &[&options.job]).await.map_err(attempt)?;
        if rows > 0 {
            done.push(format!(
                "target: removed {rows} rows of job {:?} from tidemark.{table}",
                options.job
            ));
        }
    }
    // A fence keeps writes out for as long as its function is there.
    let left = "SELECT (SELECT count(*) FROM tidemark.progress) + (SELECT count(*) FROM tidemark.delta) \
                + (SELECT count(*) FROM pg_proc WHERE pronamespace = 'tidemark'::regnamespace)";
    let row = client.query_one(left, &[]).await.map_err(attempt)?;
    if row.get::<_, i64>(0) == 0 {
        client
            .batch_execute("DROP TABLE tidemark.chunk, tidemark.lane, tidemark.relation, tidemark.delta, tidemark.progress; DROP SCHEMA tidemark")
            .await
            .map_err(attempt)?;
        done.push("target: dropped the schema tidemark".to_owned());
    }
    done.extend(super::origin::drop_all(&client, &options.job).await?);
    Ok(done)
}
