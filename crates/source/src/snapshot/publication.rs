//! The publication of exactly the chosen tables.
//!
//! **Invariant:** never FOR ALL TABLES (`hazards.md` E68), and never a table whose UPDATE or DELETE the server would refuse
//! once it is published (E67): no statement of the application fails because of us. A publication that is there already is
//! used only if it publishes exactly these tables, all operations, all columns, and the rows that the job wants; it is never
//! changed. A row filter is in the publication, and only where the replica identity has all of its columns.
//!
//! PostgreSQL manual, `CREATE PUBLICATION`, and sections 29.1 and 29.4.

use std::collections::HashSet;

use tidemark_model::sql::{Ident, Literal};
use tidemark_model::{Oid, Persistence, Relation, ReplicaIdentity};
use tidemark_wire::Client;

use crate::filter::{RowFilters, filter_columns, publication_clause, refuse_open};
use crate::stream::{misfit, published_tables};
use crate::{Disposition, Error, Result, sql};

/// From this version on a publication can have row filters.
const FILTERS_SINCE: u32 = 150_000;

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

/// Why the table cannot be followed with this filter, if it cannot: not every change would say which side of it the row was
/// on, and the server refuses the application's UPDATE and DELETE then.
pub(crate) async fn refused_filter(
    client: &Client,
    relation: &Relation,
    filter: &str,
) -> Result<Option<String>> {
    if client.server_version_num() < FILTERS_SINCE {
        return Ok(Some("a publication has row filters from PostgreSQL 15 on".to_owned()));
    }
    refuse_open(&relation.name, filter)?;
    let Some(identity) = identity_columns(relation) else { return Ok(None) };
    let used = filter_columns(client, (relation.oid, &relation.name), filter).await?;
    let outside = |column: &&tidemark_model::Column| {
        used.contains(&column.attnum) && !identity.contains(&&*column.name)
    };
    let outside: Vec<String> = relation
        .columns
        .iter()
        .filter(outside)
        .map(|column| Ident(&column.name).to_string())
        .collect();
    Ok((!outside.is_empty()).then(|| {
        format!(
            "its row filter uses {}, which the replica identity does not have: the application's UPDATE and DELETE would fail",
            outside.join(", ")
        )
    }))
}

/// The columns that every UPDATE and DELETE carries; `None` for all of them.
fn identity_columns(relation: &Relation) -> Option<Vec<&str>> {
    let columns = match &relation.replica_identity {
        ReplicaIdentity::Full => return None,
        ReplicaIdentity::Nothing => None,
        ReplicaIdentity::Default => relation.primary_key().map(|key| &key.columns),
        ReplicaIdentity::Index(name) => {
            relation.keys.iter().find(|key| key.index == *name).map(|key| &key.columns)
        }
    };
    Some(columns.into_iter().flatten().map(String::as_str).collect())
}

/// Makes the publication, or checks the one that is there. Gives whether it was made.
pub(super) async fn ensure(
    client: &Client,
    name: &str,
    tables: &[&Relation],
    filters: &RowFilters,
) -> Result<bool> {
    let published = publishable(client, tables, filters).await?;
    if exists(client, name).await? {
        check(client, name, &published, filters).await?;
        return Ok(false);
    }
    create(client, name, &published, filters).await?;
    if let Err(error) = check(client, name, &published, filters).await {
        drop(drop_publication(client, name).await);
        return Err(error);
    }
    Ok(true)
}

/// Those that a publication can have.
async fn publishable<'a>(
    client: &Client,
    tables: &[&'a Relation],
    filters: &RowFilters,
) -> Result<Vec<&'a Relation>> {
    let published: Vec<&Relation> =
        tables.iter().copied().filter(|t| t.persistence == Persistence::Permanent).collect();
    let refused =
        |attempt: &str, table: &Relation| Error::new(Disposition::Refused, attempt).on(&table.name);
    if let Some(table) = published.iter().find(|table| !has_identity(table)) {
        return Err(refused("publish a table without a replica identity", table).hint(format!(
            "the application's UPDATE and DELETE would fail: add a primary key, or {}",
            full_identity(table)
        )));
    }
    for table in &published {
        let Some(filter) = filters.get(&table.oid) else { continue };
        if let Some(why) = refused_filter(client, table, filter).await? {
            let attempt = format!("publish a table with its row filter: {why}");
            return Err(refused(&attempt, table).hint(filter_way_out(client, table)));
        }
    }
    Ok(published)
}

fn full_identity(table: &Relation) -> String {
    format!("ALTER TABLE {} REPLICA IDENTITY FULL", table.name)
}

/// What lets a table with a row filter be followed.
pub(crate) fn filter_way_out(client: &Client, table: &Relation) -> String {
    let without = "leave `where` of this table out; or sync --snapshot-only";
    match client.server_version_num() < FILTERS_SINCE {
        true => without.to_owned(),
        false => format!("{}; or {without}", full_identity(table)),
    }
}

/// Makes the publication of a job have these tables, newly: also one that it has already is taken out and put in again, in
/// one transaction, so that no moment is without it.
pub(super) async fn add_anew(
    client: &Client,
    name: &str,
    tables: &[&Relation],
    filters: &RowFilters,
) -> Result<()> {
    let added = publishable(client, tables, filters).await?;
    let there = members(client, name).await?;
    for part in added.chunks(PER_STATEMENT) {
        let old = part.iter().filter(|table| there.contains(&table.oid));
        let old: Vec<String> = old.map(|table| format!("ONLY {}", table.name)).collect();
        let drop = match old.is_empty() {
            true => String::new(),
            false => format!("ALTER PUBLICATION {} DROP TABLE {};", Ident(name), old.join(", ")),
        };
        let add = add_tables(name, part, filters);
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
async fn create(
    client: &Client,
    name: &str,
    tables: &[&Relation],
    filters: &RowFilters,
) -> Result<()> {
    let attempt = "create the publication";
    let text = format!("CREATE PUBLICATION {}", Ident(name));
    sql::execute(client, attempt, &text).await.map_err(|error| explain(error, name))?;
    for part in tables.chunks(PER_STATEMENT) {
        let text = add_tables(name, part, filters);
        if let Err(error) = sql::execute(client, "add tables to the publication", &text).await {
            drop(drop_publication(client, name).await);
            return Err(explain(error, name));
        }
    }
    Ok(())
}

fn add_tables(name: &str, tables: &[&Relation], filters: &RowFilters) -> String {
    let table = |table: &&Relation| {
        format!("ONLY {}{}", table.name, publication_clause(filters.get(&table.oid)))
    };
    let tables: Vec<String> = tables.iter().map(table).collect();
    format!("ALTER PUBLICATION {} ADD TABLE {}", Ident(name), tables.join(", "))
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

async fn check(
    client: &Client,
    name: &str,
    tables: &[&Relation],
    filters: &RowFilters,
) -> Result<()> {
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
    let found = published_tables(client, &[name.to_owned()]).await?;
    for table in tables {
        let Some(published) = found.get(&table.oid) else {
            return Err(wrong(&format!("does not publish {}", table.name)));
        };
        let filter = filters.get(&table.oid).map(String::as_str);
        if let Some(what) = misfit(client, published, filter).await? {
            return Err(wrong(&what));
        }
    }
    let wanted: HashSet<Oid> = tables.iter().map(|table| table.oid).collect();
    match found.iter().find(|(oid, _)| !wanted.contains(oid)) {
        Some((_, other)) => Err(wrong(&format!("also publishes {}", other.name))),
        None => Ok(()),
    }
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
