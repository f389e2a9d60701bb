//! Makes the stream carry all changes of tables that join it.
//!
//! **Invariant:** when [`publish_for_join`] returns, every change of these tables that a transaction makes which is still to
//! end is in the stream. A read snapshot that is taken afterwards misses no change that the stream does not have.
//!
//! A publication counts as it stood when a change was written to the WAL, so a transaction that wrote to the table before it
//! was added and commits afterwards is sent without those changes. It is waited for, as a new slot waits:
//!
//! ```text
//! add the tables -> take a transaction id N -> wait until everything before N has ended -> add the tables anew
//! ```
//!
//! Who wrote before the tables were added had an id by then, and so one below N. `pg_current_snapshot()` alone would not do:
//! its `xmax` is the last id that has *ended*, plus one; a running transaction may be beyond it.
//!
//! They are added a second time because servers before 14.18, 15.13, 16.9 and 17.5 keep what they found while they decoded a
//! transaction that had begun before the tables were added ("not published"), also for all later ones. The second time tells
//! them to look again, when no such transaction is left.
//!
//! PostgreSQL manual, `ALTER PUBLICATION`; section 9.27.8 (`pg_current_xact_id`).

use std::collections::HashSet;
use std::time::{Duration, Instant};

use tidemark_model::sql::{Ident, Literal};
use tidemark_model::{Oid, Relation};
use tidemark_wire::{Client, ConnectSpec};

use super::slot::oldest_transactions;
use super::{SnapshotOptions, locks, publication};
use crate::{Disposition, Error, Result, sql};

/// Between two looks whether they have ended; it doubles up to the second.
const LOOK_MIN: Duration = Duration::from_millis(5);
const LOOK_MAX: Duration = Duration::from_millis(500);

/// Adds the tables of `options` to a publication of ours, or leaves one of a DBA as it is, and waits until every transaction
/// that may have changed them unpublished has ended: as long as for all locks of a snapshot.
///
/// # Errors
/// [`Disposition::Blocked`] names who is waited for; [`Disposition::Refused`] where a right or a replica identity is missing.
///
/// # Cancel safety
/// Safe: the tables may be in the publication or not.
pub async fn publish_for_join(
    spec: &ConnectSpec,
    options: &SnapshotOptions,
    publication: &str,
    is_ours: bool,
) -> Result<()> {
    let spec = spec.clone().with_application_name(&options.application_name);
    let client = sql::connect(&spec).await?;
    locks::bound_waits(&client, options).await?;
    let tables: Vec<&Relation> = options.tables.iter().collect();
    if is_ours {
        publication::add_anew(&client, publication, &tables, &options.filters).await?;
    }
    refuse_unpublished(&client, publication, &tables).await?;
    let patience = options.lock_timeout.saturating_mul(options.lock_attempts.max(1));
    wait_for_earlier(&client, patience).await?;
    if is_ours {
        publication::add_anew(&client, publication, &tables, &options.filters).await?;
    }
    Ok(())
}

async fn refuse_unpublished(client: &Client, name: &str, tables: &[&Relation]) -> Result<()> {
    let text = format!("SELECT relid FROM pg_catalog.pg_get_publication_tables({})", Literal(name));
    let rows = sql::rows(client, "read the publication's tables", &text).await?;
    let published: HashSet<Oid> = rows.iter().map(|row| row.get(0)).collect();
    match tables.iter().find(|table| !published.contains(&table.oid)) {
        None => Ok(()),
        Some(table) => {
            Err(Error::new(Disposition::Refused, "let a table join that is not published")
                .on(&table.name)
                .hint(format!(
                    "ALTER PUBLICATION {} ADD TABLE {}, or leave the table out (select.exclude)",
                    Ident(name),
                    table.name
                )))
        }
    }
}

/// Waits until every transaction that has an id by now has ended, prepared ones included.
async fn wait_for_earlier(client: &Client, patience: Duration) -> Result<()> {
    let attempt = "wait for transactions that began before the table was published";
    let text = "SELECT pg_catalog.pg_current_xact_id()::text";
    let own: String = sql::one(client, "take a transaction id", text).await?.get(0);
    let text = format!(
        "SELECT pg_catalog.pg_snapshot_xmin(pg_catalog.pg_current_snapshot()) > '{own}'::pg_catalog.xid8"
    );
    let deadline = Instant::now() + patience;
    let mut pause = LOOK_MIN;
    while !sql::one(client, attempt, &text).await?.get::<_, bool>(0) {
        if Instant::now() >= deadline {
            let who = oldest_transactions(client).await.unwrap_or_default();
            return Err(Error::new(Disposition::Blocked, attempt)
                .hint(format!("it waits for {who}; end it or wait for it, then run again")));
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LOOK_MAX);
    }
    Ok(())
}
