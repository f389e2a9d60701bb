//! Versions of the collations that are in use.
//!
//! **Invariant:** only the server is asked; a collation whose provider has no versions (`C`) is left out.
//!
//! PostgreSQL manual, `ALTER COLLATION`, "Notes": an index whose text was sorted by another version may be wrong.

use tidemark_model::Oid;
use tidemark_wire::Client;
use tidemark_wire::tokio_postgres::Row;

use crate::{Result, sql};

/// A collation and its versions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CollationVersion {
    /// Schema and name, or `default` for the database's.
    pub name: String,
    /// The version that indexes were made with, as the catalog has noted it.
    pub recorded: Option<String>,
    /// The version of the library that is in use.
    pub actual: String,
}

/// Reads the versions of the collations of these tables' columns and, from 15 on, of the database.
///
/// # Errors
/// The connection failed.
pub async fn read_collation_versions(
    client: &Client,
    version_num: u32,
    tables: &[Oid],
) -> Result<Vec<CollationVersion>> {
    let of_columns = format!(
        "SELECT n.nspname || '.' || c.collname AS name, c.collversion AS recorded, \
           pg_collation_actual_version(c.oid) AS actual \
         FROM pg_catalog.pg_collation c JOIN pg_catalog.pg_namespace n ON n.oid = c.collnamespace \
         WHERE c.collprovider <> 'd' AND c.oid IN (SELECT attcollation FROM pg_catalog.pg_attribute \
           WHERE attrelid = ANY ({}) AND attnum > 0 AND NOT attisdropped)",
        sql::oid_array(tables)
    );
    let of_database = match version_num {
        ..150_000 => "",
        _ => {
            " UNION ALL SELECT 'default', datcollversion, pg_database_collation_actual_version(oid) \
             FROM pg_catalog.pg_database WHERE datname = current_database()"
        }
    };
    let text = format!(
        "SELECT name, recorded, actual FROM ({of_columns}{of_database}) AS used \
         WHERE actual IS NOT NULL ORDER BY name COLLATE \"C\""
    );
    let rows = sql::rows(client, "read the versions of collations", &text).await?;
    let version = |row: &Row| {
        let (name, recorded, actual) = (row.get(0), row.get(1), row.get(2));
        CollationVersion { name, recorded, actual }
    };
    Ok(rows.iter().map(version).collect())
}
