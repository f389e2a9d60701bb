//! The fence of a wave: triggers on its tables that refuse writes, while all other tables stay as they are.
//!
//! **Invariant:** all triggers are put up by one transaction that has waited for every writer in progress, and what they do
//! is in one function of this wave: they are open the moment it is replaced, without a lock on any table. Both happen under one
//! advisory lock, so that a statement of a process that was killed never ends after what came behind it. Sessions of ours
//! pass: those that keep triggers from firing, and where they fire (`triggers = "as-is"`), by their name.
//!
//! PostgreSQL manual: CREATE TRIGGER; section 13.3 (SHARE ROW EXCLUSIVE); section 43.10 (trigger functions).

use std::collections::HashSet;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tidemark_model::names::{OUR_SCHEMA_LOCK, fence_function};
use tidemark_model::sql::{Ident, Literal};
use tidemark_model::{RelationKind, RelationName};
use tidemark_pipeline::{Error, Job, Kind, Result, Wave, patiently};
use tidemark_source::read_catalog;
use tidemark_wire::tokio_postgres::error::SqlState;
use tidemark_wire::{Client, ConnectSpec};
use tokio::time::Instant;

use crate::fence::failed;

/// Writers queue behind us for so long at most, before they go on and we try again: less than the time after which the server
/// looks for a deadlock, and ends one of those who wait.
const QUEUED: &str = "500ms";
/// Where that time stands in the statements.
const PATIENTLY: &str = "%PATIENTLY%";
/// Between two tries to get the locks.
const PAUSE: Duration = Duration::from_millis(100);
/// What is left of a fence that does nothing any more is tried to be dropped for so long.
const PATIENCE: Duration = Duration::from_secs(5);

const TRIGGER: &str = "tidemark_fence";
const ROW_TRIGGER: &str = "tidemark_fence_rows";

/// What was put up, for the journal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PutUp {
    /// The function, in the schema `tidemark`.
    pub(crate) function: String,
    /// The tables that have triggers of it.
    pub(crate) tables: Vec<String>,
}

/// The tables of a wave on one side.
pub(crate) struct Tables {
    /// Those that hold rows.
    pub(crate) leaves: Vec<RelationName>,
    /// Partitioned tables of which it has every partition.
    roots: Vec<RelationName>,
    /// All partitioned tables above its own.
    pub(crate) above: Vec<RelationName>,
}

/// What the job has on the side that its stream comes from.
pub(crate) async fn tables(client: &Client, job: &Job) -> Result<Tables> {
    let catalog = patiently(&job.source, async || read_catalog(client).await).await?;
    let chosen = job.selection.apply(&catalog)?;
    let names: HashSet<&RelationName> = chosen.iter().map(|relation| &relation.name).collect();
    let (mut above, mut shared) = (HashSet::new(), HashSet::new());
    for relation in &catalog.relations {
        let ancestors = catalog.ancestors(relation);
        if names.contains(&relation.name) {
            above.extend(ancestors);
        } else if relation.kind != RelationKind::PartitionedTable {
            shared.extend(ancestors);
        }
    }
    let sorted = |names: Vec<&RelationName>| -> Vec<RelationName> {
        let mut names: Vec<RelationName> = names.into_iter().cloned().collect();
        names.sort();
        names
    };
    Ok(Tables {
        leaves: sorted(names.into_iter().collect()),
        roots: sorted(above.difference(&shared).copied().collect()),
        above: sorted(above.into_iter().collect()),
    })
}

/// What a fence of this wave would be.
pub(crate) fn function(forward: &str) -> PutUp {
    PutUp { function: fence_function(forward), tables: Vec::new() }
}

/// Whether we may put triggers on the tables.
pub(crate) async fn check(job: &Job) -> Result<()> {
    let client = job.source.connect().await?;
    let tables = tables(&client, job).await?;
    let names: Vec<String> =
        tables.leaves.iter().chain(&tables.roots).map(ToString::to_string).collect();
    let sql = "SELECT t FROM unnest($1::text[]) AS t WHERE NOT pg_catalog.has_table_privilege(t::regclass, 'TRIGGER') LIMIT 1";
    let row = client.query_opt(sql, &[&names]).await;
    let row = row.map_err(failed("look whether triggers may be put on the tables"))?;
    if let Some(row) = row {
        let table: String = row.get(0);
        let message = format!("fence: table {table} may not get a trigger of ours");
        return Err(Error::new(Kind::Preflight, message)
            .hint(format!("GRANT TRIGGER ON {table} TO our role, or bring a fence of your own (cutover.fence = \"hook\")")));
    }
    let sql = "SELECT CASE WHEN pg_catalog.to_regnamespace('tidemark') IS NULL \
                 THEN pg_catalog.has_database_privilege(pg_catalog.current_database(), 'CREATE') \
                 ELSE pg_catalog.has_schema_privilege('tidemark', 'CREATE') END";
    let row = client.query_one(sql, &[]).await.map_err(failed("look at the schema tidemark"))?;
    if row.get(0) {
        return Ok(());
    }
    let message = "fence: our role may not make a function in the schema tidemark".to_owned();
    Err(Error::new(Kind::Preflight, message).hint(
        "GRANT CREATE ON DATABASE to it (or ON SCHEMA tidemark, where that is there), or bring a fence of your own (cutover.fence = \"hook\")",
    ))
}

/// Puts the triggers up; whoever writes to one of the tables at the moment is waited for. `forward`: the name of the job from
/// the source to the target.
pub(crate) async fn put_up(job: &Job, forward: &str, wave: &Wave) -> Result<PutUp> {
    let client = job.source.connect().await?;
    let tables = tables(&client, job).await?;
    let function = fence_function(forward);
    let statements = statements(&client, &tables, &function, wave).await?;
    let (mut said, mut patience) = (None, QUEUED.to_owned());
    while let Err(cause) = client.batch_execute(&statements.replace(PATIENTLY, &patience)).await {
        let is_waiting = matches!(
            cause.code(),
            Some(
                &SqlState::QUERY_CANCELED
                    | &SqlState::LOCK_NOT_AVAILABLE
                    | &SqlState::T_R_DEADLOCK_DETECTED
            )
        );
        if !is_waiting {
            return Err(failed("put the fence of the wave up")(cause));
        }
        client.batch_execute("ROLLBACK").await.map_err(failed("wait for writers"))?;
        let (writers, is_autovacuum) = writers(&client, &tables).await?;
        // The server ends an autovacuum for who has waited for as long as it looks for deadlocks.
        patience =
            if is_autovacuum { until_autovacuum_ends(&client).await? } else { QUEUED.to_owned() };
        if said.as_ref() != Some(&writers) {
            tracing::info!(
                writers,
                "the fence waits for transactions that write to tables of the wave"
            );
            said = Some(writers);
        }
        tokio::time::sleep(PAUSE).await;
    }
    let tables = tables.leaves.iter().chain(&tables.roots).map(ToString::to_string).collect();
    Ok(PutUp { function, tables })
}

/// One transaction: locks, function, triggers. A wait ends by itself, with everything that was done.
async fn statements(
    client: &Client,
    tables: &Tables,
    function: &str,
    wave: &Wave,
) -> Result<String> {
    let function = format!("tidemark.{}", Ident(function));
    let names = |tables: &[RelationName]| tables.iter().map(ToString::to_string).collect();
    let (roots, leaves): (Vec<String>, Vec<String>) = (names(&tables.roots), names(&tables.leaves));
    // In the order in which a writer takes them, and all in one statement, whose time is the most that others wait for us.
    let locks = [roots.as_slice(), leaves.as_slice()].concat().join(", ONLY ");
    let mut text = format!(
        "BEGIN; SELECT pg_catalog.pg_advisory_xact_lock({OUR_SCHEMA_LOCK}); SET LOCAL client_min_messages = warning; \
         CREATE SCHEMA IF NOT EXISTS tidemark; SET LOCAL statement_timeout = '{PATIENTLY}'; \
         LOCK TABLE ONLY {locks} IN SHARE ROW EXCLUSIVE MODE; {};",
        definition(&function, &refusal(wave)),
    );
    // A row that comes by way of a table above fires no trigger that is for each statement.
    let sql = "SELECT t FROM unnest($1::text[]) AS t WHERE EXISTS (SELECT FROM pg_catalog.pg_inherits WHERE inhrelid = t::regclass)";
    let below = client.query(sql, &[&leaves]).await.map_err(failed("look for partitions"))?;
    let below: Vec<String> = below.iter().map(|row| row.get(0)).collect();
    for table in leaves.into_iter().chain(roots) {
        text.push_str(&format!(
            "CREATE OR REPLACE TRIGGER {TRIGGER} BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON {table} EXECUTE FUNCTION {function}();"
        ));
    }
    for table in below {
        text.push_str(&format!(
            "CREATE OR REPLACE TRIGGER {ROW_TRIGGER} BEFORE INSERT OR UPDATE OR DELETE ON {table} FOR EACH ROW EXECUTE FUNCTION {function}();"
        ));
    }
    text.push_str("COMMIT");
    Ok(text)
}

/// What a writer is told; SQLSTATE 25006, as of a database that is read-only.
fn refusal(wave: &Wave) -> String {
    let whose = format!("wave {} of job {}", wave.name, wave.job);
    let message = Literal(&format!("tidemark: table %I.%I has moved, or is being moved ({whose})"))
        .to_string();
    let hint = Literal("Write to the other server; one that is being moved is there in a moment.")
        .to_string();
    format!(
        "IF NOT pg_catalog.starts_with(pg_catalog.current_setting('application_name'), 'tidemark_') THEN \
           RAISE EXCEPTION USING ERRCODE = '25006', HINT = {hint}, \
             MESSAGE = pg_catalog.format({message}, TG_TABLE_SCHEMA, TG_TABLE_NAME); \
         END IF;"
    )
}

fn definition(function: &str, first: &str) -> String {
    format!(
        "CREATE OR REPLACE FUNCTION {function}() RETURNS trigger LANGUAGE plpgsql AS $tidemark$ \
         BEGIN {first} IF TG_OP = 'DELETE' THEN RETURN OLD; END IF; RETURN NEW; END $tidemark$"
    )
}

/// A little longer than the server waits before it ends an autovacuum that is in the way.
async fn until_autovacuum_ends(client: &Client) -> Result<String> {
    let sql =
        "SELECT setting::int8 + 500 FROM pg_catalog.pg_settings WHERE name = 'deadlock_timeout'";
    let row = client.query_one(sql, &[]).await.map_err(failed("look how long it waits"))?;
    Ok(format!("{}ms", row.get::<_, i64>(0)))
}

/// Who has locks on the tables that are in our way, and whether they are all autovacuum's.
async fn writers(client: &Client, tables: &Tables) -> Result<(String, bool)> {
    let names: Vec<String> = tables.leaves.iter().map(ToString::to_string).collect();
    let sql = "SELECT coalesce(string_agg(DISTINCT CASE WHEN l.pid IS NULL THEN 'a prepared transaction' \
                   ELSE l.pid::text || ' of ' || coalesce(quote_ident(a.usename), a.backend_type, 'somebody') END, ', '), ''), \
                 coalesce(bool_and(coalesce(a.backend_type = 'autovacuum worker', false)), false) \
               FROM pg_catalog.pg_locks l LEFT JOIN pg_catalog.pg_stat_activity a USING (pid) \
               WHERE l.granted AND l.locktype = 'relation' AND l.relation = ANY ($1::text[]::regclass[]::oid[]) \
                 AND l.database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database()) \
                 AND l.mode NOT IN ('AccessShareLock', 'RowShareLock')";
    let row = client.query_one(sql, &[&names]).await.map_err(failed("look who writes"))?;
    Ok((row.get(0), row.get(1)))
}

/// Lets writes through at once.
pub(crate) async fn open(spec: &ConnectSpec, forward: &str) -> Result<()> {
    let Some((client, function)) = locked(spec, forward).await? else { return Ok(()) };
    let sql = definition(&function, "");
    client.batch_execute(&sql).await.map_err(failed("open the fence of the wave"))
}

/// Whether the fence refuses writes; it does not if somebody took it away by hand.
pub(crate) async fn is_up(spec: &ConnectSpec, forward: &str) -> Result<bool> {
    let client = spec.connect().await?;
    let function = format!("tidemark.{}()", Ident(&fence_function(forward)));
    let sql = "SELECT EXISTS (SELECT FROM pg_catalog.pg_trigger t JOIN pg_catalog.pg_proc p ON p.oid = t.tgfoid \
                 WHERE p.oid = pg_catalog.to_regprocedure($1) AND p.prosrc LIKE '%RAISE EXCEPTION%' AND t.tgenabled <> 'D')";
    let row = client.query_one(sql, &[&function]).await;
    Ok(row.map_err(failed("look for the fence of the wave"))?.get(0))
}

/// A session that nobody puts a fence up beside, and the name of the function; none where there is none.
async fn locked(spec: &ConnectSpec, forward: &str) -> Result<Option<(Client, String)>> {
    let client = spec.connect().await?;
    let function = format!("tidemark.{}", Ident(&fence_function(forward)));
    // Whatever a killed process has sent is through by then.
    let lock = format!("SELECT pg_catalog.pg_advisory_lock({OUR_SCHEMA_LOCK})");
    client.batch_execute(&lock).await.map_err(failed("wait for a fence that is put up"))?;
    let sql = "SELECT pg_catalog.to_regprocedure($1) IS NOT NULL";
    let row = client.query_one(sql, &[&format!("{function}()")]).await;
    let is_there: bool = row.map_err(failed("look for the fence of the wave"))?.get(0);
    Ok(is_there.then_some((client, function)))
}

/// Drops the triggers of a fence that is open. Readers of a table may keep us from it for longer than we wait: what is left
/// does nothing, and goes with the next fence.
pub(crate) async fn clear(spec: &ConnectSpec, forward: &str) -> Result<()> {
    let Some((client, function)) = locked(spec, forward).await? else { return Ok(()) };
    let sql = "SELECT tgrelid::regclass::text, quote_ident(tgname) FROM pg_catalog.pg_trigger \
               WHERE tgfoid = $1::text::regprocedure AND tgparentid = 0";
    let rows = client.query(sql, &[&format!("{function}()")]).await;
    let mut left: Vec<(String, String)> = rows
        .map_err(failed("list the triggers of the fence"))?
        .iter()
        .map(|row| (row.get(0), row.get(1)))
        .collect();
    let deadline = Instant::now() + PATIENCE;
    while !left.is_empty() && Instant::now() < deadline {
        let mut kept = Vec::new();
        for (table, trigger) in left {
            let sql = format!(
                "SET lock_timeout = '{QUEUED}'; DROP TRIGGER IF EXISTS {trigger} ON {table}"
            );
            match client.batch_execute(&sql).await {
                Err(cause) if cause.code() == Some(&SqlState::LOCK_NOT_AVAILABLE) => {
                    kept.push((table, trigger));
                    tokio::time::sleep(PAUSE).await;
                }
                dropped => dropped.map_err(failed("drop a trigger of the fence"))?,
            }
        }
        left = kept;
    }
    if left.is_empty() {
        let sql = format!("DROP FUNCTION IF EXISTS {function}()");
        client.batch_execute(&sql).await.map_err(failed("drop the function of the fence"))?;
        return drop_schema(&client).await;
    }
    let tables: Vec<String> = left.into_iter().map(|(table, _)| table).collect();
    tracing::warn!(
        tables = tables.join(", "),
        "triggers of an open fence could not be dropped yet: they let everything through"
    );
    Ok(())
}

/// The schema goes with what was last in it.
async fn drop_schema(client: &Client) -> Result<()> {
    match client.batch_execute("DROP SCHEMA IF EXISTS tidemark").await {
        Err(cause) if cause.code() == Some(&SqlState::DEPENDENT_OBJECTS_STILL_EXIST) => Ok(()),
        dropped => dropped.map_err(failed("drop the schema tidemark")),
    }
}
