//! The fence: a database that takes no more writes of the application.
//!
//! **Invariant:** what was set before is put back by the one who opens. A fence is a default that a session may override, so
//! that nobody relies on it alone: whether something was written all the same is seen in the stream.

use std::collections::HashSet;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tidemark_model::sql::{Ident, Literal};
use tidemark_pipeline::{Error, Kind, Result};
use tidemark_wire::{Client, ConnectSpec};
use tokio::time::Instant;

use crate::hook::Hook;

/// Sessions that were told to end are waited for so long.
const PATIENCE: Duration = Duration::from_secs(5);
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// Sessions that are not ours. What one of another role is, we may not be shown; without a role it is the server's own.
const OTHERS: &str = "SELECT pid, usename FROM pg_catalog.pg_stat_activity \
    WHERE datname = pg_catalog.current_database() AND pid <> pg_catalog.pg_backend_pid() AND usesysid IS NOT NULL \
      AND coalesce(backend_type, 'client backend') = 'client backend' AND application_name NOT LIKE 'tidemark\\_%'";
const UNENDABLE: &str = "GRANT pg_signal_backend to our role (sessions of superusers only a superuser can end), or end them by hand";

/// How writes are kept out of the side that is left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fence {
    /// Its database is read-only by default, and the application's sessions are ended.
    ReadOnly,
    /// Triggers on the tables of a wave refuse writes.
    Tables,
    /// Commands of the user's do it.
    Hooks {
        /// Keeps them out.
        up: Hook,
        /// Lets them in again.
        down: Hook,
    },
}

/// What a fence has changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Fenced {
    /// What `default_transaction_read_only` was set to for the database, if it was.
    pub(crate) previous: Option<String>,
    /// Sessions that were ended.
    pub(crate) ended: u64,
}

/// What is set for the database.
async fn setting(client: &Client) -> Result<Option<String>> {
    let sql = "SELECT substr(s, strpos(s, '=') + 1) FROM pg_catalog.pg_db_role_setting r, unnest(r.setconfig) s \
               WHERE r.setrole = 0 AND s LIKE 'default_transaction_read_only=%' \
                 AND r.setdatabase = (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database())";
    let row =
        client.query_opt(sql, &[]).await.map_err(failed("read what is set for the database"))?;
    Ok(row.map(|row| row.get(0)))
}

/// Puts the fence up and ends every session of the application. `before` is what a fence that a killed process has put up
/// found.
pub(crate) async fn fence(spec: &ConnectSpec, before: Option<Fenced>) -> Result<Fenced> {
    let client = spec.connect().await?;
    refuse_prepared(&client).await?;
    let previous = match before {
        Some(before) => before.previous,
        None => setting(&client).await?,
    };
    let database = Ident(spec.database());
    let sql = format!("ALTER DATABASE {database} SET default_transaction_read_only = on");
    client.batch_execute(&sql).await.map_err(failed("make the database read-only"))?;
    let ended = end_all(&client).await?;
    // One may have been prepared until its session was ended.
    refuse_prepared(&client).await?;
    Ok(Fenced { previous, ended })
}

/// Ends sessions of the application once more: one that was just starting when the fence went up may have missed it.
pub(crate) async fn end_again(spec: &ConnectSpec) -> Result<()> {
    end_all(&spec.connect().await?).await.map(drop)
}

/// Whether a database is still behind the fence; it is not if somebody took it away by hand.
pub(crate) async fn is_up(spec: &ConnectSpec) -> Result<bool> {
    let client = spec.connect().await?;
    Ok(setting(&client).await?.as_deref().is_some_and(is_read_only))
}

/// Whether the application could not write here although no fence is up: `fenced` is what our own has changed, if one is up.
///
/// # Errors
/// It could not.
pub(crate) async fn refuse_read_only(
    (spec, side): (&ConnectSpec, &str),
    fenced: Option<Fenced>,
) -> Result<()> {
    let later = match fenced {
        Some(fenced) => fenced.previous,
        None => setting(&spec.connect().await?).await?,
    };
    if !later.as_deref().is_some_and(is_read_only) {
        return Ok(());
    }
    let database = Ident(spec.database());
    let message = format!(
        "open the {side}: database {database} is read-only by default, and not by a fence of this migration"
    );
    Err(Error::new(Kind::Preflight, message).hint(format!(
        "there, in one session and as two statements: SET default_transaction_read_only = off; ALTER DATABASE {database} RESET default_transaction_read_only"
    )))
}

fn is_read_only(setting: &str) -> bool {
    matches!(setting.to_ascii_lowercase().as_str(), "on" | "true" | "yes" | "1")
}

/// Whether we may put a fence up on this side, and nothing is in its way.
pub(crate) async fn check((spec, side): (&ConnectSpec, &str)) -> Result<()> {
    let client = spec.connect().await?;
    refuse_prepared(&client).await?;
    refuse_not_ours(&client, (spec, side)).await?;
    refuse_unendable(&client).await
}

/// Whether a fence could be put up on the side that is gone to, by which the application would come back one day.
pub(crate) async fn check_way_back((spec, side): (&ConnectSpec, &str)) -> Result<()> {
    let client = spec.connect().await?;
    refuse_not_ours(&client, (spec, side)).await?;
    let sql = "SELECT rolsuper OR pg_catalog.pg_has_role('pg_signal_backend', 'MEMBER') FROM pg_catalog.pg_roles WHERE rolname = current_user";
    let row = client.query_one(sql, &[]).await.map_err(failed("look at our role"))?;
    if !row.get::<_, bool>(0) {
        tracing::warn!(
            "our role on the {side} is no member of pg_signal_backend: on the way back it can end no sessions but those of roles that it is a member of"
        );
    }
    Ok(())
}

async fn refuse_not_ours(client: &Client, (spec, side): (&ConnectSpec, &str)) -> Result<()> {
    let sql = "SELECT pg_catalog.pg_has_role(datdba, 'USAGE') FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database()";
    let row = client.query_one(sql, &[]).await.map_err(failed("look whose the database is"))?;
    if !row.get::<_, bool>(0) {
        let database = Ident(spec.database());
        let message =
            format!("fence the {side}: database {database} is not ours to be made read-only");
        return Err(Error::new(Kind::Preflight, message)
            .hint("make our role a member of its owner, or bring a fence of your own (cutover.fence = \"hook\")"));
    }
    Ok(())
}

/// Sessions of a superuser only a superuser can end, those of others their members and whoever may signal backends.
async fn refuse_unendable(client: &Client) -> Result<()> {
    let sql = format!(
        "SELECT DISTINCT r.rolname FROM ({OTHERS}) s JOIN pg_catalog.pg_roles r ON r.rolname = s.usename \
         WHERE NOT (SELECT rolsuper FROM pg_catalog.pg_roles WHERE rolname = current_user) \
           AND (r.rolsuper OR NOT pg_catalog.pg_has_role(r.oid, 'MEMBER') AND NOT pg_catalog.pg_has_role('pg_signal_backend', 'MEMBER')) \
         ORDER BY 1"
    );
    let rows = client.query(&sql, &[]).await.map_err(failed("look whose sessions there are"))?;
    if rows.is_empty() {
        return Ok(());
    }
    let names: Vec<String> = rows.iter().map(|row| Ident(row.get(0)).to_string()).collect();
    let message = format!("fence: sessions of {} are not ours to be ended", names.join(", "));
    Err(Error::new(Kind::Preflight, message).hint(UNENDABLE))
}

/// What the database was set to before a fence, for the journal.
pub(crate) async fn before(spec: &ConnectSpec) -> Result<Fenced> {
    let client = spec.connect().await?;
    Ok(Fenced { previous: setting(&client).await?, ended: 0 })
}

/// Takes the fence away. Sessions that began behind it keep it until they end: they are ended, also where the fence is away
/// by now, because whoever took it away may have died before.
pub(crate) async fn open(spec: &ConnectSpec, fenced: &Fenced) -> Result<()> {
    let client = spec.connect().await?;
    if setting(&client).await? == fenced.previous {
        return end_all(&client).await.map(drop);
    }
    let database = Ident(spec.database());
    let sql = match &fenced.previous {
        Some(value) => format!(
            "ALTER DATABASE {database} SET default_transaction_read_only = {}",
            Literal(value)
        ),
        None => format!("ALTER DATABASE {database} RESET default_transaction_read_only"),
    };
    client.batch_execute(&sql).await.map_err(failed("let the database take writes again"))?;
    end_all(&client).await.map(drop)
}

/// A COMMIT PREPARED writes whatever the default is.
async fn refuse_prepared(client: &Client) -> Result<()> {
    let sql = "SELECT gid FROM pg_catalog.pg_prepared_xacts WHERE database = pg_catalog.current_database() LIMIT 1";
    let row = client.query_opt(sql, &[]).await.map_err(failed("look for prepared transactions"))?;
    let Some(row) = row else { return Ok(()) };
    let message = format!(
        "fence: transaction {:?} is prepared, and whoever commits it writes",
        row.get::<_, &str>(0)
    );
    Err(Error::new(Kind::Preflight, message)
        .hint("COMMIT PREPARED or ROLLBACK PREPARED it, then run the same command again"))
}

/// Ends the sessions of everybody but us, and waits until they are gone; gives how many.
///
/// # Errors
/// Some cannot be ended: they began before the fence, so that they are not behind it.
async fn end_all(client: &Client) -> Result<u64> {
    let (deadline, mut told) = (Instant::now() + PATIENCE, HashSet::new());
    loop {
        let rows = client.query(OTHERS, &[]).await.map_err(failed("look for sessions"))?;
        if rows.is_empty() {
            return Ok(told.len() as u64);
        }
        let mut is_refused = true;
        for pid in rows.iter().map(|row| row.get::<_, i32>(0)) {
            let end = client.query_one("SELECT pg_catalog.pg_terminate_backend($1)", &[&pid]).await;
            if end.is_ok() {
                is_refused = false;
                told.insert(pid);
            }
        }
        if is_refused || Instant::now() >= deadline {
            let left: Vec<String> = rows
                .iter()
                .map(|row| format!("{} of {}", row.get::<_, i32>(0), Ident(row.get(1))))
                .collect();
            let message = format!("fence: sessions that cannot be ended: {}", left.join(", "));
            return Err(Error::new(Kind::TargetRefused, message).hint(UNENDABLE));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

pub(crate) fn failed(
    attempt: &'static str,
) -> impl Fn(tidemark_wire::tokio_postgres::Error) -> Error {
    move |cause| tidemark_wire::Error::sql(attempt)(cause).into()
}
