//! The publication of exactly the chosen tables.
//!
//! **Invariant:** never FOR ALL TABLES (`hazards.md` E68), and never a table whose UPDATE or DELETE the server would refuse
//! once it is published (E67): no statement of the application fails because of us. A publication that is there already is
//! used only if it publishes exactly these tables, all operations, all rows, all columns; it is never changed.
//!
//! PostgreSQL manual, `CREATE PUBLICATION`, and section 29.1.

use std::collections::HashSet;

use tidemark_model::sql::{Ident, Literal};
use tidemark_model::{Oid, Persistence, Relation, ReplicaIdentity};
use tidemark_wire::Client;

use crate::{Disposition, Error, Result, sql};

/// Tables per ALTER PUBLICATION: each takes a lock per table until its end.
const PER_STATEMENT: usize = 200;

/// Whether UPDATE and DELETE of the table can be published.
pub(crate) fn has_identity(relation: &Relation) -> bool {
    match relation.replica_identity {
        ReplicaIdentity::Default => relation.primary_key().is_some_and(|key| !key.is_deferrable),
        ReplicaIdentity::Full | ReplicaIdentity::Index(_) => true,
        ReplicaIdentity::Nothing => false,
    }
}

/// Makes the publication, or checks the one that is there. Gives whether it was made.
pub(super) async fn ensure(client: &Client, name: &str, tables: &[&Relation]) -> Result<bool> {
    let published = publishable(tables)?;
    if exists(client, name).await? {
        check(client, name, &published).await?;
        return Ok(false);
    }
    create(client, name, &published).await?;
    if let Err(error) = check(client, name, &published).await {
        drop(drop_publication(client, name).await);
        return Err(error);
    }
    Ok(true)
}

/// Those that a publication can have.
fn publishable<'a>(tables: &[&'a Relation]) -> Result<Vec<&'a Relation>> {
    let published: Vec<&Relation> =
        tables.iter().copied().filter(|t| t.persistence == Persistence::Permanent).collect();
    match published.iter().find(|table| !has_identity(table)) {
        None => Ok(published),
        Some(table) => Err(Error::new(Disposition::Refused, "publish a table without a replica identity")
            .on(&table.name)
            .hint(format!(
                "the application's UPDATE and DELETE would fail: add a primary key, or ALTER TABLE {} REPLICA IDENTITY FULL",
                table.name
            ))),
    }
}

/// Makes the publication of a job have these tables, newly: also one that it has already is taken out and put in again, in
/// one transaction, so that no moment is without it.
pub(super) async fn add_anew(client: &Client, name: &str, tables: &[&Relation]) -> Result<()> {
    let added = publishable(tables)?;
    let there = members(client, name).await?;
    for part in added.chunks(PER_STATEMENT) {
        let list = |tables: &[&Relation]| {
            let names: Vec<String> =
                tables.iter().map(|table| format!("ONLY {}", table.name)).collect();
            names.join(", ")
        };
        let old: Vec<&Relation> =
            part.iter().copied().filter(|table| there.contains(&table.oid)).collect();
        let drop = match old.is_empty() {
            true => String::new(),
            false => format!("ALTER PUBLICATION {} DROP TABLE {};", Ident(name), list(&old)),
        };
        let add = format!("ALTER PUBLICATION {} ADD TABLE {}", Ident(name), list(part));
        let text = format!("BEGIN; {drop} {add}; COMMIT");
        if let Err(error) = sql::execute(client, "add tables to the publication", &text).await {
            // The session is in a transaction that failed; where it is gone, so is that.
            sql::execute(client, "go back", "ROLLBACK").await.ok();
            return Err(explain(error, name));
        }
    }
    Ok(())
}

/// The tables that the publication names itself.
async fn members(client: &Client, name: &str) -> Result<HashSet<Oid>> {
    let text = format!(
        "SELECT r.prrelid FROM pg_catalog.pg_publication_rel r \
         JOIN pg_catalog.pg_publication p ON p.oid = r.prpubid WHERE p.pubname = {}",
        Literal(name)
    );
    let rows = sql::rows(client, "read the publication's tables", &text).await?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// In several statements, so that few locks are held at a time; what was made is taken back when one of them fails.
async fn create(client: &Client, name: &str, tables: &[&Relation]) -> Result<()> {
    let attempt = "create the publication";
    let text = format!("CREATE PUBLICATION {}", Ident(name));
    sql::execute(client, attempt, &text).await.map_err(|error| explain(error, name))?;
    for part in tables.chunks(PER_STATEMENT) {
        let names: Vec<String> = part.iter().map(|table| format!("ONLY {}", table.name)).collect();
        let text = format!("ALTER PUBLICATION {} ADD TABLE {}", Ident(name), names.join(", "));
        if let Err(error) = sql::execute(client, "add tables to the publication", &text).await {
            drop(drop_publication(client, name).await);
            return Err(explain(error, name));
        }
    }
    Ok(())
}

fn explain(error: Error, name: &str) -> Error {
    let error = error.on(Ident(name));
    if error.has_state(&["42501"]) {
        return error.hint(
            "creating a publication needs CREATE on the database and ownership of the tables; \
             a DBA can create it beforehand: source.publication",
        );
    }
    error
}

async fn exists(client: &Client, name: &str) -> Result<bool> {
    let text = format!(
        "SELECT EXISTS (SELECT FROM pg_catalog.pg_publication WHERE pubname = {})",
        Literal(name)
    );
    Ok(sql::one(client, "look for the publication", &text).await?.get(0))
}

async fn check(client: &Client, name: &str, tables: &[&Relation]) -> Result<()> {
    let wrong = |what: &str| {
        Error::new(Disposition::Usage, format!("use the publication: it {what}"))
            .on(Ident(name))
            .hint(format!(
                "DROP PUBLICATION {}, or name another one in source.publication",
                Ident(name)
            ))
    };
    let text = format!(
        "SELECT puballtables, pubinsert AND pubupdate AND pubdelete AND pubtruncate, pubviaroot \
         FROM pg_catalog.pg_publication WHERE pubname = {}",
        Literal(name)
    );
    let row = sql::one(client, "read the publication", &text).await?;
    if row.get(0) {
        return Err(wrong("is FOR ALL TABLES"));
    }
    if !row.get::<_, bool>(1) {
        return Err(wrong("leaves out some of INSERT, UPDATE, DELETE and TRUNCATE"));
    }
    if row.get(2) {
        return Err(wrong("publishes partitions as their root (publish_via_partition_root)"));
    }
    if is_restricted(client, name).await? {
        return Err(wrong("has row filters or column lists"));
    }
    let text = format!(
        "SELECT c.oid, quote_ident(p.schemaname) || '.' || quote_ident(p.tablename) \
         FROM pg_catalog.pg_publication_tables p JOIN pg_catalog.pg_namespace n ON n.nspname = p.schemaname \
         JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relname = p.tablename WHERE p.pubname = {}",
        Literal(name)
    );
    let rows = sql::rows(client, "read the publication's tables", &text).await?;
    let found: HashSet<Oid> = rows.iter().map(|row| row.get(0)).collect();
    let wanted: HashSet<Oid> = tables.iter().map(|table| table.oid).collect();
    if let Some(missing) = tables.iter().find(|table| !found.contains(&table.oid)) {
        return Err(wrong(&format!("does not publish {}", missing.name)));
    }
    match rows.iter().find(|row| !wanted.contains(&row.get(0))) {
        Some(row) => Err(wrong(&format!("also publishes {}", row.get::<_, String>(1)))),
        None => Ok(()),
    }
}

async fn is_restricted(client: &Client, name: &str) -> Result<bool> {
    let text = "SELECT current_setting('server_version_num')::int4 >= 150000";
    if !sql::one(client, "read the version", text).await?.get::<_, bool>(0) {
        return Ok(false);
    }
    let text = format!(
        "SELECT EXISTS (SELECT FROM pg_catalog.pg_publication_rel r JOIN pg_catalog.pg_publication p ON p.oid = r.prpubid \
           WHERE p.pubname = {} AND (r.prqual IS NOT NULL OR r.prattrs IS NOT NULL))",
        Literal(name)
    );
    Ok(sql::one(client, "read the publication's filters", &text).await?.get(0))
}

/// Drops the publication of exactly this name, if it is there; gives whether it was.
///
/// # Errors
/// Rights are missing, or the connection failed.
pub async fn drop_publication(client: &Client, name: &str) -> Result<bool> {
    if !exists(client, name).await? {
        return Ok(false);
    }
    let text = format!("DROP PUBLICATION IF EXISTS {}", Ident(name));
    sql::execute(client, "drop the publication", &text).await.map_err(|e| e.on(Ident(name)))?;
    Ok(true)
}
