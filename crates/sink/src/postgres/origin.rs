//! The replication origin that marks what a job commits on its target.
//!
//! **Invariant:** its name has the job and the database, and beside the first lane the lane: origins belong to the whole
//! cluster, and one session at a time may use each. It is dropped by `cleanup` only: whoever decodes the target's WAL needs it to know our commits.
//!
//! PostgreSQL manual, chapter 50 ("Replication Progress Tracking").

use std::time::Duration;

use tidemark_model::names::{origin_name, origin_name_of_lane, origin_name_of_old, origin_names};
use tidemark_model::sql::Ident;
use tidemark_model::{Finding, Severity};
use tidemark_wire::Client;
use tidemark_wire::tokio_postgres;
use tokio::time::Instant;

use super::session::server_error;
use crate::{Error, Result};

/// How long an origin may still belong to a session that was ended.
const LOST_ORIGIN: Duration = Duration::from_secs(10);
/// What the stream calls.
const USED: [&str; 3] = [
    "pg_replication_origin_create(text)",
    "pg_replication_origin_session_setup(text)",
    "pg_replication_origin_session_reset()",
];
/// What `cleanup` calls.
const DROP: &str = "pg_replication_origin_drop(text)";

/// Looks whether the origins of a job that follows in so many lanes can be used.
pub(super) async fn check(client: &Client, job: &str, lanes: usize) -> Result<Vec<Finding>> {
    let mut origins = origin_names(job, database_oid(client).await?);
    origins.truncate(lanes.max(1));
    let attempt = |cause| server_error("look at the target's replication origins", None, cause);
    let row = client
        .query_one(
            "SELECT current_user::text, \
               ARRAY(SELECT f FROM unnest($2::text[]) AS f WHERE NOT has_function_privilege(f, 'EXECUTE')), \
               has_function_privilege('pg_show_replication_origin_status()', 'EXECUTE'), \
               (SELECT count(*) FROM pg_replication_origin WHERE roname <> ALL ($1::text[])), \
               current_setting('max_active_replication_origins', true), current_setting('max_replication_slots'), \
               (SELECT count(*) = cardinality($1) FROM pg_replication_origin WHERE roname = ANY ($1))",
            &[&origins, &USED.iter().copied().chain([DROP]).collect::<Vec<_>>()],
        )
        .await
        .map_err(attempt)?;
    let mut findings = Vec::new();
    let (mut missing, is_made): (Vec<String>, bool) = (row.get(1), row.get(6));
    missing.retain(|function| !is_made || function != USED[0]);
    if missing.iter().any(|function| USED.contains(&function.as_str())) {
        let role = Ident(row.get(0)).to_string();
        let message =
            "the role may not use replication origins, which mark what the stream commits";
        findings.push(
            Finding::new(Severity::Blocking, "target-origin", format!("role {role}"), message)
                .with_fix(grant(&missing, &role)),
        );
    }
    let of_its_own: Option<String> = row.get(4);
    let setting = match of_its_own {
        Some(_) => "max_active_replication_origins",
        None => "max_replication_slots",
    };
    let places = of_its_own.unwrap_or_else(|| row.get(5)).parse().unwrap_or(i64::MAX);
    let (sees, made): (bool, i64) = (row.get(2), row.get(3));
    // One that was made and never used takes no place; only some roles can tell.
    let used = match sees && made >= places {
        true => {
            let used = "SELECT count(*) FROM pg_show_replication_origin_status() WHERE external_id <> ALL ($1::text[])";
            client.query_one(used, &[&origins]).await.map_err(attempt)?.get(0)
        }
        false => made,
    };
    findings.extend(no_place(setting, (used, places), origins.len(), sees));
    Ok(findings)
}

fn no_place(
    setting: &str,
    (used, places): (i64, i64),
    wanted: usize,
    is_certain: bool,
) -> Option<Finding> {
    if used + i64::try_from(wanted).unwrap_or(i64::MAX) <= places {
        return None;
    }
    let severity = if is_certain || places == 0 { Severity::Blocking } else { Severity::Warning };
    let message = match wanted {
        1 => format!("no replication origin is free: {used} are there, {setting} is {places}"),
        _ => format!(
            "{wanted} lanes need {wanted} replication origins: {used} others are there, {setting} is {places}"
        ),
    };
    Some(Finding::new(severity, "target-origins", setting, message).with_fix(format!(
        "raise {setting} on the target and restart it, or drop an origin that nobody uses"
    )))
}

fn grant(functions: &[impl AsRef<str>], role: &str) -> String {
    let names: Vec<&str> = functions.iter().map(AsRef::as_ref).collect();
    format!(
        "as a superuser, in the target database: GRANT EXECUTE ON FUNCTION {} TO {role}",
        names.join(", ")
    )
}

/// Marks what the session of this lane commits from now on.
pub(super) async fn set_up(client: &Client, job: &str, lane: usize) -> Result<()> {
    let database = database_oid(client).await?;
    let origin = match lane {
        0 => origin_name(job, database),
        lane => origin_name_of_lane(job, database, lane),
    };
    let attempt = "use the replication origin on the target";
    if !is_there(client, &origin).await.map_err(|cause| explain(attempt, cause))? {
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

async fn is_there(
    client: &Client,
    origin: &str,
) -> std::result::Result<bool, tokio_postgres::Error> {
    let found = "SELECT FROM pg_replication_origin WHERE roname = $1";
    Ok(client.query_opt(found, &[&origin]).await?.is_some())
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
        return error.hint("raise max_replication_slots on the target (max_active_replication_origins from 18 on): each job uses one origin for each of its lanes");
    }
    error
}

/// Drops the job's origins, those of the first version too, and says what it did. One of the old form that a session uses
/// is a job's of this name in another database.
pub(super) async fn drop_all(client: &Client, job: &str) -> Result<Vec<String>> {
    let database = database_oid(client).await?;
    let mut done = Vec::new();
    let mut names = origin_names(job, database);
    names.push(origin_name_of_old(job));
    // Looked for first: a role that may not drop is refused even where there is nothing to drop.
    let there =
        "SELECT roname::text FROM pg_replication_origin WHERE roname = ANY ($1) ORDER BY roname";
    let there = client
        .query(there, &[&names])
        .await
        .map_err(|cause| explain("look for the replication origin on the target", cause))?;
    for origin in there.iter().map(|row| row.get::<_, String>(0)) {
        let dropped = client.query("SELECT pg_replication_origin_drop($1)", &[&origin]).await;
        let Err(cause) = dropped else {
            done.push(format!("target: dropped the replication origin {origin}"));
            continue;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_table_of_origins_blocks_only_where_we_can_be_certain() {
        let severity = |used, places, sees| {
            no_place("max_replication_slots", (used, places), 1, sees).map(|found| found.severity)
        };
        assert_eq!(severity(9, 10, false), None);
        assert_eq!(severity(10, 10, false), Some(Severity::Warning));
        assert_eq!(severity(10, 10, true), Some(Severity::Blocking));
        assert_eq!(severity(0, 0, false), Some(Severity::Blocking));
    }

    #[test]
    fn each_lane_needs_an_origin() {
        let findings = |used, wanted| no_place("max_replication_slots", (used, 10), wanted, true);
        assert_eq!(findings(7, 3), None);
        assert!(findings(8, 3).unwrap().message.contains("3 lanes need 3 replication origins"));
    }
}
