//! ACCESS SHARE on every chosen table, without getting in the application's way.
//!
//! **Invariant:** no lock is waited for longer than `lock_timeout` at a time: whoever queues behind our waiting request is
//! let through between the attempts (`hazards.md` A11). Each attempt is in a savepoint, so that a failure costs neither the
//! transaction nor the locks taken before.
//!
//! PostgreSQL manual, section 13.3 (explicit locking), and `LOCK`: it takes no snapshot.

use std::collections::HashSet;
use std::time::Duration;

use tidemark_model::{Oid, Relation, RelationName};
use tidemark_wire::{Client, ConnectSpec};

use super::SnapshotOptions;
use crate::{Disposition, Error, Result, sql};

/// Tables per LOCK statement: few round trips, and little to do again after a timeout.
pub(crate) const PER_STATEMENT: usize = 100;
pub(super) const BACKOFF_MIN: Duration = Duration::from_millis(100);
pub(super) const BACKOFF_MAX: Duration = Duration::from_secs(5);

/// A wait as the server's settings count it; 0 would be without end.
pub(crate) fn milliseconds(wait: Duration) -> u128 {
    wait.as_millis().clamp(1, 2_000_000_000)
}

/// Bounds what a session waits for a lock, for as long as it lives.
pub(super) async fn bound_waits(client: &Client, options: &SnapshotOptions) -> Result<()> {
    let timeout = milliseconds(options.lock_timeout);
    sql::execute(client, "set lock_timeout", &format!("SET lock_timeout = {timeout}")).await?;
    Ok(())
}

/// Locks all tables in the holder's transaction; gives the names of those that are not there any more.
pub(super) async fn take(
    holder: &Client,
    side: &Client,
    options: &SnapshotOptions,
    tables: &[Relation],
) -> Result<Vec<RelationName>> {
    let timeout = milliseconds(options.lock_timeout);
    sql::execute(holder, "set lock_timeout", &format!("SET LOCAL lock_timeout = {timeout}"))
        .await?;
    let mut gone = Vec::new();
    for part in tables.chunks(PER_STATEMENT) {
        let part: Vec<&Relation> = part.iter().collect();
        gone.extend(lock_part(holder, side, options, part).await?);
    }
    sql::execute(holder, "reset lock_timeout", "SET LOCAL lock_timeout = 0").await?;
    Ok(gone)
}

async fn lock_part(
    holder: &Client,
    side: &Client,
    options: &SnapshotOptions,
    mut part: Vec<&Relation>,
) -> Result<Vec<RelationName>> {
    let mut gone = Vec::new();
    let mut backoff = BACKOFF_MIN;
    let mut attempt = 0;
    while !part.is_empty() {
        attempt += 1;
        let Err(error) = try_lock(holder, &part).await else { break };
        match error.sqlstate() {
            Some("55P03") if attempt < options.lock_attempts => {
                tracing::info!(attempt, "a table is locked by others, trying again");
                tokio::time::sleep(backoff).await;
                backoff = (backoff * 2).min(BACKOFF_MAX);
            }
            Some("55P03") => return Err(name_blocker(side, &part, error).await),
            Some("42P01" | "3F000") if attempt < options.lock_attempts => {
                let present = present(side, &part).await?;
                let (there, missing): (Vec<_>, Vec<_>) =
                    part.into_iter().partition(|table| present.contains(&table.oid));
                gone.extend(missing.iter().map(|table| table.name.clone()));
                part = there;
            }
            _ => return Err(explain(error, &part)),
        }
    }
    Ok(gone)
}

async fn try_lock(holder: &Client, part: &[&Relation]) -> Result<()> {
    sql::execute(holder, "set a savepoint", "SAVEPOINT tidemark_lock").await?;
    let names: Vec<String> = part.iter().map(|table| format!("ONLY {}", table.name)).collect();
    let text = format!("LOCK TABLE {} IN ACCESS SHARE MODE", names.join(", "));
    let locked = sql::execute(holder, "lock tables", &text).await;
    let end = match &locked {
        Ok(()) => "RELEASE SAVEPOINT tidemark_lock",
        Err(error) if error.sqlstate().is_none() => return locked,
        Err(_) => "ROLLBACK TO SAVEPOINT tidemark_lock; RELEASE SAVEPOINT tidemark_lock",
    };
    sql::execute(holder, "end a savepoint", end).await?;
    locked
}

/// OIDs of those that still are there under their name.
pub(super) async fn present(side: &Client, tables: &[&Relation]) -> Result<HashSet<Oid>> {
    let oids: Vec<Oid> = tables.iter().map(|table| table.oid).collect();
    let text = format!(
        "SELECT c.oid, n.nspname::text, c.relname::text FROM pg_catalog.pg_class c \
         JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = ANY ({})",
        sql::oid_array(&oids)
    );
    let rows = sql::rows(side, "look for tables", &text).await?;
    let now: HashSet<(Oid, RelationName)> = rows
        .iter()
        .map(|row| {
            (row.get(0), RelationName::new(row.get::<_, String>(1), row.get::<_, String>(2)))
        })
        .collect();
    Ok(tables.iter().filter(|t| now.contains(&(t.oid, t.name.clone()))).map(|t| t.oid).collect())
}

fn explain(error: Error, part: &[&Relation]) -> Error {
    let error = match part {
        [only] => error.on(&only.name),
        [first, ..] => error.on(format_args!("{} and {} more", first.name, part.len() - 1)),
        [] => error,
    };
    if error.has_state(&["53200"]) {
        return error.disposed(Disposition::Refused).hint(
            "the lock table is full: raise max_locks_per_transaction on the source and restart it",
        );
    }
    error
}

/// The final error: which table, and who holds or waits for a lock that keeps us out.
pub(super) async fn name_blocker(side: &Client, part: &[&Relation], error: Error) -> Error {
    let oids: Vec<Oid> = part.iter().map(|table| table.oid).collect();
    let in_the_way = match blocker(side, Some(&oids), "AccessExclusiveLock").await {
        // A publication wants more than a reader, and is kept waiting by a VACUUM.
        None => blocker(side, Some(&oids), "ShareUpdateExclusiveLock").await,
        blocker => blocker,
    };
    let Some(blocker) = in_the_way else { return explain(error, part) };
    let error = match part.iter().find(|table| table.oid == blocker.relation) {
        Some(table) => error.on(&table.name),
        None => error,
    };
    error.hint(format!(
        "{}; end that session or wait for it, or raise snapshot.lock_timeout",
        blocker.what
    ))
}

/// The error of a session that came after the holder and was not let through: whoever keeps it out waits for the holder.
/// Only a new snapshot lets them through; the error names them.
pub(crate) async fn behind_an_alter(spec: &ConnectSpec, part: &[&Relation], error: Error) -> Error {
    match error.sqlstate() {
        Some("55P03") => {}
        Some("42P01" | "3F000") => {
            return explain(error, part)
                .disposed(Disposition::SnapshotLost)
                .hint("its schema was renamed meanwhile; the copy starts again");
        }
        _ => return explain(error, part),
    }
    let error = match sql::connect(spec).await {
        Ok(side) => name_blocker(&side, part, error).await,
        Err(_) => explain(error, part),
    };
    error.disposed(Disposition::SnapshotLost)
}

/// Who has, or waits for, an exclusive lock on a table of this database, in words; `None` where nobody does.
///
/// # Errors
/// The connection failed.
pub async fn waiting_for_us(spec: &ConnectSpec) -> Result<Option<String>> {
    let side = sql::connect(spec).await?;
    Ok(blocker(&side, None, "AccessExclusiveLock").await.map(|blocker| blocker.what))
}

struct Blocker {
    relation: Oid,
    what: String,
}

/// Who has, or waits for, a lock of this mode on one of these relations, or on any.
async fn blocker(side: &Client, oids: Option<&[Oid]>, mode: &str) -> Option<Blocker> {
    let of = oids.map_or_else(String::new, |oids| {
        format!("AND l.relation = ANY ({})", sql::oid_array(oids))
    });
    let text = format!(
        "SELECT l.relation, coalesce('process ' || l.pid || coalesce(' (' || nullif(a.application_name, '') || ')', ''), \
           'a prepared transaction'), l.granted, \
           (SELECT string_agg(b::text, ', ') FROM unnest(pg_blocking_pids(l.pid)) b), \
           coalesce(l.relation::regclass::text, 'a table') \
         FROM pg_catalog.pg_locks l LEFT JOIN pg_catalog.pg_stat_activity a ON a.pid = l.pid \
         WHERE l.locktype = 'relation' AND l.mode = '{mode}' {of} \
           AND l.database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database()) \
         ORDER BY l.granted DESC LIMIT 1"
    );
    let rows = sql::rows(side, "look for who holds a lock", &text).await.unwrap_or_default();
    let row = rows.first()?;
    let (who, blocked_by): (String, Option<String>) = (row.get(1), row.get(3));
    let it = if oids.is_some() { "it".to_owned() } else { row.get(4) };
    let what = match (row.get(2), blocked_by) {
        (false, Some(pids)) => format!("{who} waits for {it} exclusively, behind process {pids}"),
        _ => format!("{who} holds {it} exclusively"),
    };
    Some(Blocker { relation: row.get(0), what })
}
