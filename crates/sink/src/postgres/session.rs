//! Connections to the target, and what its errors mean.
//!
//! **Invariant:** every connection carries our application name, so that a later run can tell the sessions of a killed one.
//! A connection goes back to its pool only after everything on it went well.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tidemark_model::RelationName;
use tidemark_model::names::application_name;
use tidemark_wire::tokio_postgres::error::SqlState;
use tidemark_wire::{Client, ConnectSpec, tokio_postgres};
use tokio::time::Instant;

use super::{PostgresOptions, Triggers};
use crate::{Disposition, Error, Result};

/// How long a backend may go on after its connection was lost and it was told to end.
const LOST_SESSION: Duration = Duration::from_secs(30);

/// Opens connections of the kinds that a run needs.
#[derive(Debug, Clone)]
pub(super) struct Sessions {
    spec: ConnectSpec,
    triggers: Triggers,
}

impl Sessions {
    pub(super) fn new(options: &PostgresOptions) -> Self {
        let spec = options.spec.clone().with_application_name(&application_name(&options.job));
        Self { spec, triggers: options.triggers }
    }

    /// A connection with the pinned settings only.
    pub(super) async fn plain(&self) -> Result<Client> {
        self.spec.connect().await.map_err(|cause| connect_error(&self.spec, cause))
    }

    /// A connection for COPY: commits need not wait for the disk (the closing record's commit flushes them all, and the
    /// markers are counted before), and triggers do not fire.
    async fn load(&self) -> Result<Client> {
        let client = self.plain().await?;
        let mut settings = String::from("SET synchronous_commit = off");
        if self.triggers == Triggers::Replica && may_replicate(&client).await? {
            settings.push_str("; SET session_replication_role = replica");
        }
        client
            .batch_execute(&settings)
            .await
            .map_err(|cause| server_error("set up a session for loading", None, cause))?;
        Ok(client)
    }

    /// A connection for building indexes: more memory for sorting than an ordinary session is given.
    async fn build(&self) -> Result<Client> {
        let client = self.plain().await?;
        client
            .batch_execute(
                "SET synchronous_commit = off; \
                 SELECT set_config('maintenance_work_mem', '256MB', false) \
                 WHERE pg_size_bytes(current_setting('maintenance_work_mem')) < pg_size_bytes('256MB')",
            )
            .await
            .map_err(|cause| server_error("set up a session for building indexes", None, cause))?;
        Ok(client)
    }
}

/// What a pool's connections are set up for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// COPY.
    Load,
    /// Indexes and keys.
    Build,
}

/// Connections of one purpose, used again and again.
#[derive(Clone)]
pub(super) struct Pool {
    sessions: Sessions,
    purpose: Purpose,
    idle: Arc<Mutex<Vec<Client>>>,
}

impl Pool {
    pub(super) fn new(sessions: &Sessions, purpose: Purpose) -> Self {
        Self { sessions: sessions.clone(), purpose, idle: Arc::default() }
    }

    /// An idle connection, or a new one.
    pub(super) async fn take(&self) -> Result<Client> {
        loop {
            let idle = self.idle.lock().expect("no holder of this lock panics").pop();
            match (idle, self.purpose) {
                (Some(client), _) if client.is_closed() => {}
                (Some(client), _) => return Ok(client),
                (None, Purpose::Load) => return self.sessions.load().await,
                (None, Purpose::Build) => return self.sessions.build().await,
            }
        }
    }

    /// Keeps a connection for the next one; only after everything on it went well.
    pub(super) fn give_back(&self, client: Client) {
        self.idle.lock().expect("no holder of this lock panics").push(client);
    }
}

/// Waits until a backend of this job whose connection was lost has ended.
pub(super) async fn wait_for_end(client: &Client, backend: i32, job: &str) -> Result<()> {
    let attempt = "wait for the end of a lost session on the target";
    let name = application_name(job);
    let deadline = Instant::now() + LOST_SESSION;
    while backend != client.backend_pid() {
        let row = client
            .query_one(
                "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE pid = $1 AND application_name = $2 AND usename = current_user",
                &[&backend, &name],
            )
            .await
            .map_err(|cause| server_error(attempt, None, cause))?;
        if row.get::<_, i64>(0) == 0 {
            return Ok(());
        }
        if Instant::now() >= deadline {
            return Err(Error::new(
                Disposition::Unavailable,
                format!("{attempt}: backend {backend} goes on"),
            )
            .hint("run the same command again: it starts the snapshot over"));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

/// Whether this session may switch triggers off: superusers always, others by GRANT SET from 15 on.
pub(super) async fn may_replicate(client: &Client) -> Result<bool> {
    let statement = if client.server_version_num() >= 150_000 {
        "SELECT has_parameter_privilege('session_replication_role', 'SET')"
    } else {
        "SELECT rolsuper FROM pg_roles WHERE rolname = current_user"
    };
    let row = client
        .query_one(statement, &[])
        .await
        .map_err(|cause| server_error("ask whether triggers may be switched off", None, cause))?;
    Ok(row.get(0))
}

fn connect_error(spec: &ConnectSpec, cause: tidemark_wire::Error) -> Error {
    use tidemark_wire::Disposition as Wire;

    let disposition = match cause.disposition() {
        Wire::Retry => Disposition::Retry,
        Wire::Usage => Disposition::Usage,
        Wire::Unreachable => Disposition::Unavailable,
        Wire::Server => Disposition::Refused,
    };
    let hint = cause.hint();
    let mut error = Error::new(disposition, format!("connect to the target {}", spec.redacted()));
    error.hint = hint;
    error.because(cause)
}

/// An error of a statement, sorted by what follows from it.
pub(super) fn server_error(
    attempt: impl Into<String>,
    relation: Option<&RelationName>,
    cause: tokio_postgres::Error,
) -> Error {
    let disposition = disposition_of(&cause);
    let mut error = Error::new(disposition, attempt);
    error.relation = relation.cloned();
    if disposition == Disposition::Unavailable {
        error.hint =
            Some("free the resource on the target and run the same command again".to_owned());
    }
    // `wire` keeps of the server's answer what cannot quote a row.
    let cause = tidemark_wire::Error::sql("")(cause);
    match cause.server() {
        Some(answer) => error.because(answer.to_string()),
        None => error.because(cause.to_string().trim_start_matches(": ").to_owned()),
    }
}

/// The way out of a row that the target refuses. A foreign key is only asked where triggers fire (`triggers = "as-is"`), and
/// need not hold between a table that joins and others until the stream has passed the join.
pub(super) fn row_hint(cause: &tokio_postgres::Error, otherwise: &str) -> String {
    if cause.code() != Some(&SqlState::FOREIGN_KEY_VIOLATION) {
        return otherwise.to_owned();
    }
    format!(
        "with target.triggers = \"as-is\" the target checks foreign keys, also between a table that joins (tidemark reset) \
         and others that are not as of the same moment yet: set it to \"replica\" until sync --until now has ended, or drop \
         the key on the target for as long; if no table joins, {otherwise}"
    )
}

fn disposition_of(cause: &tokio_postgres::Error) -> Disposition {
    let Some(state) = cause.code() else {
        return Disposition::Retry; // no answer of the server: the connection is gone
    };
    match state.code() {
        "57P01" | "57P02" | "57P03" | "53300" | "40001" | "40P01" => Disposition::Retry,
        code if code.starts_with("08") => Disposition::Retry,
        code if code.starts_with("53") || code.starts_with("58") => Disposition::Unavailable,
        _ => Disposition::Refused,
    }
}
