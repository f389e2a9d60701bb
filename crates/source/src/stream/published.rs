//! Whether everything that is followed is still published.
//!
//! **Invariant:** every table of the job is published with all its operations, all its columns, and exactly the rows that
//! the job wants of it; else changes are missing in the stream without a word, or there are too many (`hazards.md` F83,
//! F84). Tables that are published and not the job's are told and otherwise ignored: a table may be published before the
//! job takes it up, and changes of others are dropped by OID.
//!
//! A publication that was narrowed, dropped or renamed and put back while nobody looked has left changes out all the same:
//! [`PublicationState`] is what to save and to compare, before the start and while the stream runs. From 18 on the server
//! does not even complain of a publication that is missing, it just leaves the changes out.
//!
//! PostgreSQL manual, section 29.1 (publications), `pg_publication_tables`.

use std::collections::{BTreeSet, HashMap};

use serde::{Deserialize, Serialize};
use tidemark_model::sql::{Ident, Literal};
use tidemark_model::{Oid, RelationName};
use tidemark_wire::Client;

use super::slot::NEW_SNAPSHOT;
use crate::filter::{RowFilters, is_same_filter};
use crate::{Disposition, Error, Result, sql};

/// What a job follows.
#[derive(Debug, Clone)]
pub struct Expected<'a> {
    /// The publications that the stream is read with.
    pub publications: &'a [String],
    /// The tables.
    pub tables: &'a [(Oid, RelationName)],
    /// The rows that are wanted of those of which not all are.
    pub filters: &'a RowFilters,
}

/// How a table is published.
#[derive(Debug)]
pub(crate) struct Published {
    pub(crate) name: RelationName,
    /// Not with all columns.
    has_list: bool,
    /// Not with all rows.
    filter: Option<String>,
}

/// Which rows of the catalog make up the publications, each with the transaction that wrote it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PublicationState(BTreeSet<String>);

impl PublicationState {
    /// Reads what is there now.
    ///
    /// # Errors
    /// The connection failed.
    pub async fn read(client: &Client, publications: &[String]) -> Result<Self> {
        let names: Vec<String> =
            publications.iter().map(|name| Literal(name).to_string()).collect();
        let names = names.join(", ");
        // From 15 on there are filters, and whole schemas, which undo them.
        let of_rows = match client.server_version_num() >= 150_000 {
            true => format!(
                " UNION ALL SELECT 'filter ' || r.oid || ' ' || r.xmin || ' ' || r.prrelid \
                    FROM pg_catalog.pg_publication_rel r JOIN pg_catalog.pg_publication p ON p.oid = r.prpubid \
                    WHERE p.pubname IN ({names}) AND r.prqual IS NOT NULL \
                  UNION ALL SELECT 'schema ' || s.oid || ' ' || s.xmin || ' ' || s.pnnspid \
                    FROM pg_catalog.pg_publication_namespace s JOIN pg_catalog.pg_publication p ON p.oid = s.pnpubid \
                    WHERE p.pubname IN ({names})"
            ),
            false => String::new(),
        };
        let text = format!(
            "SELECT 'publication ' || oid || ' ' || xmin || ' ' || quote_ident(pubname) \
               FROM pg_catalog.pg_publication WHERE pubname IN ({names}) \
             UNION ALL SELECT 'table ' || r.oid || ' ' || r.xmin || ' ' || r.prrelid \
               FROM pg_catalog.pg_publication_rel r JOIN pg_catalog.pg_publication p ON p.oid = r.prpubid \
               WHERE p.pubname IN ({names}){of_rows}"
        );
        let rows = sql::rows(client, "read the state of the publication", &text).await?;
        Ok(Self(rows.iter().map(|row| row.get(0)).collect()))
    }

    /// Whether everything of `saved` has been there all the time since: nothing was dropped, renamed or altered, not even for
    /// a while. Tables that were added since do not count; a schema does where there are row filters, for it undoes them.
    pub fn has_kept(&self, saved: &Self) -> bool {
        let of_kind = |kind: &str| {
            let entries = self.0.iter().filter(|entry| entry.starts_with(kind));
            entries.cloned().collect::<BTreeSet<String>>()
        };
        let undoes = !of_kind("filter ").is_empty() && !of_kind("schema ").is_subset(&saved.0);
        saved.0.is_subset(&self.0) && !undoes
    }

    /// Whether a publication names the table itself, so that taking it out shows.
    pub fn names(&self, oid: Oid) -> bool {
        let own = oid.to_string();
        let relations = self.0.iter().filter_map(|entry| entry.strip_prefix("table "));
        relations.filter_map(|rest| rest.rsplit(' ').next()).any(|relation| relation == own)
    }

    /// The same state without the tables that are not among these: what became of them no longer counts.
    #[must_use]
    pub fn of_tables(mut self, tables: &[(Oid, RelationName)]) -> Self {
        self.0.retain(|entry| {
            let of_table = entry.strip_prefix("table ").or_else(|| entry.strip_prefix("filter "));
            let relation = of_table.and_then(|rest| rest.rsplit(' ').next());
            relation.is_none_or(|oid| tables.iter().any(|(own, _)| own.to_string() == oid))
        });
        self
    }
}

/// Checks the publications. Gives the tables that are published and not followed: their changes are ignored.
///
/// # Errors
/// A publication is missing or leaves something out, or a table is not in it any more or was dropped
/// ([`Disposition::SourceCannotContinue`], names the object); the connection failed.
pub async fn check_publication(
    client: &Client,
    expected: &Expected<'_>,
) -> Result<Vec<RelationName>> {
    for name in expected.publications {
        check_options(client, name).await?;
    }
    let published = published_tables(client, expected.publications).await?;
    for (oid, name) in expected.tables {
        let Some(found) = published.get(oid) else {
            return Err(not_published(client, *oid, name).await?);
        };
        let filter = expected.filters.get(oid).map(String::as_str);
        if let Some(what) = misfit(client, found, filter).await? {
            return Err(lost(format!("the publication {what}")).on(name).hint(format!(
                "where the job's `where` was changed, put it back, or let the table join with the new one: tidemark reset {} \
                 --yes; where the publication was changed, some {NEW_SNAPSHOT}",
                name.plain()
            )));
        }
    }
    let ours = |oid: &Oid| expected.tables.iter().any(|(own, _)| own == oid);
    let mut others: Vec<RelationName> =
        published.into_iter().filter(|(oid, _)| !ours(oid)).map(|(_, other)| other.name).collect();
    others.sort();
    Ok(others)
}

fn lost(what: String) -> Error {
    Error::new(Disposition::SourceCannotContinue, format!("continue the stream: {what}"))
        .hint(format!("some {NEW_SNAPSHOT}"))
}

async fn check_options(client: &Client, name: &str) -> Result<()> {
    let text = format!(
        "SELECT pubinsert AND pubupdate AND pubdelete AND pubtruncate, pubviaroot \
         FROM pg_catalog.pg_publication WHERE pubname = {}",
        Literal(name)
    );
    let rows = sql::rows(client, "read the publication", &text).await?;
    let what = match rows.first() {
        None => "the publication is missing",
        Some(row) if !row.get::<_, bool>(0) => {
            "the publication leaves out some of INSERT, UPDATE, DELETE and TRUNCATE"
        }
        Some(row) if row.get(1) => {
            "the publication gives partitions as their root (publish_via_partition_root)"
        }
        Some(_) => return Ok(()),
    };
    Err(lost(what.to_owned()).on(Ident(name)))
}

/// What does not fit in how a table is published, with what is wanted of it.
pub(crate) async fn misfit(
    client: &Client,
    published: &Published,
    filter: Option<&str>,
) -> Result<Option<String>> {
    let name = &published.name;
    if published.has_list {
        return Ok(Some(format!("leaves out columns of {name}")));
    }
    Ok(match (&published.filter, filter) {
        (None, None) => None,
        (Some(there), None) => {
            Some(format!("leaves out rows of {name}: its row filter is {there}"))
        }
        (None, Some(wanted)) => Some(format!("has all rows of {name}, and wanted are {wanted}")),
        (Some(there), Some(wanted)) => match is_same_filter(client, name, [there, wanted]).await? {
            true => None,
            false => Some(format!(
                "has other rows of {name}: its row filter is {there}, and wanted are {wanted}"
            )),
        },
    })
}

/// What is published, by OID. Of several publications a table has the rows of all of them.
pub(crate) async fn published_tables(
    client: &Client,
    publications: &[String],
) -> Result<HashMap<Oid, Published>> {
    let names: Vec<String> = publications.iter().map(|name| Literal(name).to_string()).collect();
    // Whether there is a list, and the filter, by a version's own columns.
    let (list, filter) = match client.server_version_num() >= 150_000 {
        true => (
            "r.prattrs IS NOT NULL",
            // What counts: a publication of the table's schema has all of its rows, whatever it says of the table.
            "CASE WHEN bool_and(t.qual IS NOT NULL) THEN string_agg(pg_catalog.pg_get_expr(t.qual, t.relid), ' OR ') END",
        ),
        false => ("false", "NULL::text"),
    };
    let text = format!(
        "SELECT c.oid, n.nspname::text, c.relname::text, bool_and({list}), {filter} \
         FROM pg_catalog.pg_publication p CROSS JOIN LATERAL pg_catalog.pg_get_publication_tables(p.pubname::text) t \
         JOIN pg_catalog.pg_class c ON c.oid = t.relid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
         LEFT JOIN pg_catalog.pg_publication_rel r ON r.prpubid = p.oid AND r.prrelid = c.oid \
         WHERE p.pubname IN ({}) GROUP BY 1, 2, 3",
        names.join(", ")
    );
    let rows = sql::rows(client, "read the publication's tables", &text).await?;
    let published = |row: &tidemark_wire::tokio_postgres::Row| Published {
        name: RelationName::new(row.get::<_, String>(1), row.get::<_, String>(2)),
        has_list: row.get(3),
        filter: row.get(4),
    };
    Ok(rows.iter().map(|row| (row.get(0), published(row))).collect())
}

/// Why a table is not among the published ones.
async fn not_published(client: &Client, oid: Oid, name: &RelationName) -> Result<Error> {
    let text = format!("SELECT EXISTS (SELECT FROM pg_catalog.pg_class WHERE oid = {oid})");
    let exists: bool = sql::one(client, "look for the table", &text).await?.get(0);
    if exists {
        return Ok(lost(format!("{name} is not published any more")).on(name));
    }
    Ok(Error::new(
        Disposition::SourceCannotContinue,
        format!("continue the stream: {name} was dropped on the source, or dropped and made again"),
    )
    .on(name)
    .hint(
        format!(
            "if it is gone for good, take it out of the job (select.exclude); if it was made again, tidemark reset {} --yes \
             lets it join anew",
            name.plain()
        ),
    ))
}
