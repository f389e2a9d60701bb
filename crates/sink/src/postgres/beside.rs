//! The waves of one job, which make their parts of one schema.
//!
//! **Invariant:** one wave at a time makes what does not belong to a table alone. The first one makes all of it (schemas,
//! types, functions, sequences); each later one makes its tables, what belongs to them, and what reads them together with
//! tables that are there. A foreign key between two waves is not made: while an application is on one side with the one and
//! on the other side with the other, a row that it refers to is not where it is asked for.

use std::collections::HashSet;
use std::time::Duration;

use tidemark_model::names::schema_lock_key;
use tidemark_model::{Oid, RelationName, TablePlan};
use tidemark_wire::Client;

use super::PostgresOptions;
use super::begin::relations_there;
use super::restore::Part;
use super::session::{Sessions, server_error};
use crate::{Disposition, Error, Result, SnapshotStart};

/// Between two looks whether another wave is through.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// The other waves wait while this lives: the session has an advisory lock.
pub(super) struct Turn {
    _session: Client,
}

impl Turn {
    /// Waits for the others; a job without waves has none.
    pub(super) async fn take(
        options: &PostgresOptions,
        sessions: &Sessions,
    ) -> Result<Option<Self>> {
        let Some(wave) = &options.wave else { return Ok(None) };
        let session = sessions.plain().await?;
        let key = schema_lock_key(&wave.job);
        loop {
            let row = session.query_one("SELECT pg_try_advisory_lock($1)", &[&key]).await;
            let row = row.map_err(|cause| {
                server_error(
                    "wait for the other waves to make their part of the schema",
                    None,
                    cause,
                )
            })?;
            if row.get(0) {
                return Ok(Some(Self { _session: session }));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
}

/// What a wave makes of a schema of which others have made their parts.
pub(super) struct Beside {
    /// Its relations that are not there yet, by their OID on the source.
    own: HashSet<Oid>,
    /// Relations that others have made.
    there: HashSet<RelationName>,
}

impl Beside {
    /// Where another wave has made the schema already: of one that is over, whose record is gone, the tables tell it.
    ///
    /// # Errors
    /// One has died while it did.
    pub(super) async fn of_others(
        options: &PostgresOptions,
        client: &Client,
        start: &SnapshotStart,
    ) -> Result<Option<Self>> {
        let Some(wave) = &options.wave else { return Ok(None) };
        let Some(beside) = Self::of(options, client, start).await? else { return Ok(None) };
        let rows = client
            .query(
                "SELECT job, schema_state FROM tidemark.progress WHERE job = ANY ($1) AND wave = '' AND schema_state <> 'none' ORDER BY 2",
                &[&wave.others],
            )
            .await
            .map_err(|cause| server_error("read what the other waves have made", None, cause))?;
        let is_made = rows.iter().any(|row| row.get::<_, &str>(1) == "made");
        match rows.first().map(|row| row.get::<_, String>(0)) {
            Some(other) if !is_made && !beside.there.is_empty() => Err(died(&other)),
            _ if is_made => Ok(Some(beside)),
            _ => {
                let is_there = start.excluded.values().any(|name| beside.there.contains(name));
                Ok(is_there.then_some(beside))
            }
        }
    }

    /// Where this is a wave.
    pub(super) async fn of(
        options: &PostgresOptions,
        client: &Client,
        start: &SnapshotStart,
    ) -> Result<Option<Self>> {
        if options.wave.is_none() {
            return Ok(None);
        }
        let there: HashSet<RelationName> = relations_there(client).await?.into_iter().collect();
        let whole = start.joins.as_ref().and_then(|join| join.completes.as_deref());
        let tables = start.tables.iter().chain(whole.into_iter().flatten());
        let tables = tables.map(|plan: &TablePlan| plan.relation.oid);
        let above = start.above.iter().filter(|(_, name)| !there.contains(name));
        let own = tables.chain(above.map(|(oid, _)| *oid)).collect();
        Ok(Some(Self { own, there }))
    }

    pub(super) fn part(&self) -> Part<'_> {
        Part { only: Some(&self.own), there: Some(&self.there) }
    }
}

fn died(other: &str) -> Error {
    let attempt = format!(
        "make the schema beside that of job {other:?}, which has died while it made its part"
    );
    Error::new(Disposition::Usage, attempt).hint(
        "let that wave go on first: run the same command again, with --wave if this one comes first again",
    )
}

/// Whether another wave still makes what an event trigger would fire on.
pub(super) async fn is_any_at_work(options: &PostgresOptions, client: &Client) -> Result<bool> {
    let Some(wave) = &options.wave else { return Ok(false) };
    let row = client
        .query_one(
            "SELECT EXISTS (SELECT FROM tidemark.progress WHERE job = ANY ($1) AND wave = '' AND phase IN ('prepare', 'snapshot', 'finish'))",
            &[&wave.others],
        )
        .await
        .map_err(|cause| server_error("read how far the other waves are", None, cause))?;
    Ok(row.get(0))
}
