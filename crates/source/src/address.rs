//! Whether an address is a server's own: a pooler between us and it takes away what a copy stands on.
//!
//! **Invariant:** asked in the simple protocol only, before anything else, because a prepared statement or a setting may
//! already be lost there. Nothing is changed (`hazards.md` A120).
//!
//! A pooler that gives each transaction to any server connection loses snapshots, locks and prepared statements; one that
//! swallows start-up settings loses the pinned ones, so that values arrive in another form. Both are refused. What pools
//! sessions and passes everything on is only told of.
//!
//! PostgreSQL manual, section 55.2.1 (start-up); PgBouncer's documentation, `ignore_startup_parameters`.

use tidemark_model::sql::Ident;
use tidemark_model::{Finding, Severity};
use tidemark_wire::tokio_postgres::SimpleQueryMessage;
use tidemark_wire::{Client, ConnectSpec};

use crate::{Error, Result};

/// Pinned settings whose loss changes values or the meaning of a name, and that hardly any role has by default.
const PINNED: &str = "SELECT pg_catalog.pg_backend_pid(), pg_catalog.current_setting('extra_float_digits') = '3' \
    AND pg_catalog.current_setting('search_path') IN ('', '\"\"') AND pg_catalog.current_setting('row_security') = 'off' \
    AND pg_catalog.current_setting('IntervalStyle') = 'postgres'";

/// Where an address is written, for the finding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AddressOf {
    /// `source.url`.
    Source,
    /// `target.url`.
    Target,
}

impl AddressOf {
    fn key(self) -> &'static str {
        match self {
            Self::Source => "source.url",
            Self::Target => "target.url",
        }
    }

    /// The side, as a finding names it.
    pub fn server(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Target => "target",
        }
    }

    fn finding(self, severity: Severity, message: &str) -> Finding {
        let fix = format!("give the server's own address as {}", self.key());
        Finding::new(severity, "pooler", self.key(), message).with_fix(fix)
    }
}

/// Whether a connection pooler answers at this address, seen over the connection that it gave.
///
/// # Errors
/// The connection failed.
pub async fn pooler_behind(
    client: &Client,
    spec: &ConnectSpec,
    side: AddressOf,
) -> Result<Option<Finding>> {
    let (pid, is_pinned) = look(client).await?;
    if !is_pinned {
        let message = "a connection pooler is behind the address: it drops the settings that a session starts with";
        return Ok(Some(side.finding(Severity::Blocking, message)));
    }
    if pid == client.backend_pid().to_string() {
        return Ok(None);
    }
    // Its own number for the connection, not a backend's. Another transaction may now be given the backend that was ours.
    let other =
        spec.connect().await.map_err(|cause| Error::wire("connect a second time", cause))?;
    ask(&other, "BEGIN; SELECT 1").await?;
    let (now, _) = look(client).await?;
    let message = if now == pid {
        "a connection pooler seems to be behind the address"
    } else {
        "a connection pooler in transaction mode is behind the address: a snapshot cannot be held"
    };
    let severity = if now == pid { Severity::Warning } else { Severity::Blocking };
    Ok(Some(side.finding(severity, message)))
}

/// What a refused start-up says of a pooler, if that is what refused it.
pub fn pooler_that_refused(error: &tidemark_wire::Error, side: AddressOf) -> Option<Finding> {
    let answer = error.server()?;
    // No server refuses a parameter in this way; a pooler does, in words of its own and never translated.
    let is_pooler = answer.sqlstate() == "08P01" && answer.message().contains("startup parameter");
    let message = "a connection pooler is behind the address: it refuses the settings that a session starts with";
    is_pooler.then(|| side.finding(Severity::Blocking, message))
}

/// What a refused connection says of the right to connect, if that is what was missing.
pub fn connect_refused(
    error: &tidemark_wire::Error,
    spec: &ConnectSpec,
    side: AddressOf,
) -> Option<Finding> {
    // Asked before anything else runs in the session, so that no other right can be meant.
    let is_missing = error.sqlstate() == Some("42501");
    let grant =
        format!("GRANT CONNECT ON DATABASE {} TO {}", Ident(spec.database()), Ident(spec.user()));
    let message = "the role may not connect to the database";
    is_missing.then(|| {
        Finding::new(Severity::Blocking, "connect-right", side.server(), message).with_fix(grant)
    })
}

async fn look(client: &Client) -> Result<(String, bool)> {
    let row = ask(client, PINNED).await?;
    let [Some(pid), Some(is_pinned)] = row.as_slice() else { return Ok((String::new(), false)) };
    Ok((pid.clone(), is_pinned == "t"))
}

/// The last row of an answer.
async fn ask(client: &Client, text: &str) -> Result<Vec<Option<String>>> {
    let attempt = "ask who answers at the address";
    let answer = client.simple_query(text).await;
    let answer =
        answer.map_err(|cause| Error::wire(attempt, tidemark_wire::Error::sql("query")(cause)))?;
    let rows = answer.into_iter().filter_map(|message| match message {
        SimpleQueryMessage::Row(row) => {
            Some((0..row.len()).map(|index| row.get(index).map(str::to_owned)).collect())
        }
        _ => None,
    });
    Ok(rows.last().unwrap_or_default())
}
