//! The replication origin that marks what a job commits on its target.
//!
//! **Invariant:** its name has the job and the database: origins belong to the whole cluster, and one session at a time may
//! use each. It is dropped by `cleanup` only: whoever decodes the target's WAL needs it to know our commits.
//!
//! PostgreSQL manual, chapter 50 ("Replication Progress Tracking").

use std::time::Duration;

use tidemark_model::names::{origin_name, origin_name_of_old};
use tidemark_wire::Client;
use tidemark_wire::tokio_postgres;
use tokio::time::Instant;

use super::session::server_error;
use crate::{Error, Result};

/// How long an origin may still belong to a session that was ended.
const LOST_ORIGIN: Duration = Duration::from_secs(10);
/// What the stream calls.
const USED: [&str; 2] =
    ["pg_replication_origin_create(text)", "pg_replication_origin_session_setup(text)"];

fn grant(functions: &[impl AsRef<str>], role: &str) -> String {
    let names: Vec<&str> = functions.iter().map(AsRef::as_ref).collect();
    format!(
        "as a superuser on the target: GRANT EXECUTE ON FUNCTION {} TO {role}",
        names.join(", ")
    )
}

/// Marks what the session commits from now on.
pub(super) async fn set_up(client: &Client, job: &str) -> Result<()> {
    let origin = origin_name(job, database_oid(client).await?);
    let attempt = "use the replication origin on the target";
    let there = "SELECT FROM pg_replication_origin WHERE roname = $1";
    let there = client.query_opt(there, &[&origin]).await;
    if there.map_err(|cause| explain(attempt, cause))?.is_none() {
        let created = client.query("SELECT pg_replication_origin_create($1)", &[&origin]).await;
        created.map_err(|cause| explain("create the replication origin on the target", cause))?;
    }
    let deadline = Instant::now() + LOST_ORIGIN;
    loop {
        let set = client.query("SELECT pg_replication_origin_session_setup($1)", &[&origin]).await;
        match set {
            Ok(_) => return Ok(()),
            // A session of a killed run had it and is on its way out.
            Err(cause) if is_in_use(&cause) && Instant::now() < deadline => {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            Err(cause) => return Err(explain(attempt, cause)),
        }
    }
}

fn is_in_use(cause: &tokio_postgres::Error) -> bool {
    cause.code().is_some_and(|code| code.code() == "55006")
}

fn explain(attempt: &str, cause: tokio_postgres::Error) -> Error {
    let denied = cause.code().is_some_and(|code| code.code() == "42501");
    let full = cause.code().is_some_and(|code| matches!(code.code(), "53400" | "55000"));
    let error = server_error(attempt, None, cause);
    if denied {
        return error.hint(grant(&USED, "the role"));
    }
    if full {
        return error.hint("raise max_replication_slots on the target (max_active_replication_origins from 18 on): each job uses one origin");
    }
    error
}

/// Drops the job's origins, those of the first version too, and says what it did. One of the old form that a session uses
/// is a job's of this name in another database.
pub(super) async fn drop_all(client: &Client, job: &str) -> Result<Vec<String>> {
    let database = database_oid(client).await?;
    let mut done = Vec::new();
    for origin in [origin_name(job, database), origin_name_of_old(job)] {
        let dropped = client
            .query(
                "SELECT pg_replication_origin_drop(roname) FROM pg_replication_origin WHERE roname = $1",
                &[&origin],
            )
            .await;
        let cause = match dropped {
            Ok(rows) if rows.is_empty() => continue,
            Ok(_) => {
                done.push(format!("target: dropped the replication origin {origin}"));
                continue;
            }
            Err(cause) => cause,
        };
        let left = match cause.code().map(tokio_postgres::error::SqlState::code) {
            Some("42501") => "the role lacks EXECUTE on pg_replication_origin_drop(text)",
            Some("55006") => "a session uses it",
            _ => return Err(server_error("drop the replication origin", None, cause)),
        };
        done.push(format!("target: left the replication origin {origin}: {left}"));
    }
    Ok(done)
}

async fn database_oid(client: &Client) -> Result<u32> {
    let row = client
        .query_one("SELECT oid FROM pg_database WHERE datname = current_database()", &[])
        .await
        .map_err(|cause| server_error("read which database the target is", None, cause))?;
    Ok(row.get(0))
}
