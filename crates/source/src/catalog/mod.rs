//! The catalog of one PostgreSQL, read in a handful of set-based queries whatever the number of tables.
//!
//! **Invariant:** the number of queries does not depend on the number of relations (only the values of sequences are read
//! in batches). Relations carry only what their side says; an OID of one side means nothing on the other.
//!
//! Functions and operators are `pg_catalog`'s because every connection pins `search_path` to nothing; relations are
//! qualified besides, because a temporary schema is searched first for them.
//!
//! PostgreSQL manual, chapter 53 (system catalogs).

mod collations;
mod columns;
mod definitions;
mod firing;
mod keys;
mod relations;
mod sequences;
mod server;
mod types;

use std::collections::HashMap;

use tidemark_model::{Oid, Relation, RelationName};
use tidemark_wire::Client;

use crate::{Result, sql};

pub use collations::{CollationVersion, read_collation_versions};
pub use definitions::{Definition, DefinitionKind, Definitions, read_definitions};
pub use firing::{Fires, Firing, read_firing};
pub use sequences::{Sequence, read_owned_ends, read_sequences};
pub use server::{Server, read_server};

/// What one database holds.
#[derive(Debug, Clone)]
pub struct Catalog {
    /// The server and the session.
    pub server: Server,
    /// Tables, partitioned tables, foreign tables, views and materialized views; no system and no temporary ones.
    pub relations: Vec<Relation>,
    /// The sequences, without their values where the role may not read them.
    pub sequences: Vec<Sequence>,
    /// Number of large objects.
    pub large_objects: u64,
    /// Number of temporary tables of all sessions at this moment.
    pub temporary_tables: u64,
    /// Extensions and their versions.
    pub extensions: Vec<(String, String)>,
    /// The direct parent of every partition.
    pub partition_parents: HashMap<Oid, RelationName>,
}

impl Catalog {
    /// The relation of this name.
    pub fn relation(&self, name: &RelationName) -> Option<&Relation> {
        self.relations.iter().find(|relation| relation.name == *name)
    }

    /// All partitioned tables above a partition, the nearest first.
    pub fn ancestors(&self, relation: &Relation) -> Vec<&RelationName> {
        let mut above = Vec::new();
        let mut oid = relation.oid;
        while let Some(parent) = self.partition_parents.get(&oid) {
            above.push(parent);
            match self.relation(parent) {
                Some(next) if above.len() < 64 => oid = next.oid,
                _ => break,
            }
        }
        above
    }
}

/// Reads the whole catalog of the database that `client` is connected to; either side.
///
/// # Errors
/// The connection failed or the server is older than 13.
pub async fn read_catalog(client: &Client) -> Result<Catalog> {
    for _ in 1..ATTEMPTS {
        match read_once(client).await {
            Err(error) if error.has_state(&[DROPPED_MEANWHILE]) => {}
            read => return read,
        }
    }
    read_once(client).await
}

/// Definitions are of now, and lists of the beginning of their statement: what somebody drops in between cannot be opened.
const DROPPED_MEANWHILE: &str = "XX000";
/// How often that may happen.
const ATTEMPTS: u32 = 10;

async fn read_once(client: &Client) -> Result<Catalog> {
    let server = read_server(client).await?;
    let found = relations::read(client, &server).await?;
    let sequences = read_sequences(client).await?;
    let (large_objects, temporary_tables) = read_counts(client).await?;
    let extensions = read_extensions(client).await?;
    Ok(Catalog {
        server,
        relations: found.relations,
        sequences,
        large_objects,
        temporary_tables,
        extensions,
        partition_parents: found.partition_parents,
    })
}

/// Reads relations again by OID: what of them is still there, as it is now.
pub(crate) async fn reread(client: &Client, oids: &[Oid]) -> Result<Vec<Relation>> {
    let server = read_server(client).await?;
    Ok(relations::read_some(client, &server, Some(oids)).await?.relations)
}

async fn read_counts(client: &Client) -> Result<(u64, u64)> {
    let text = "SELECT (SELECT count(*) FROM pg_catalog.pg_largeobject_metadata), \
                (SELECT count(*) FROM pg_catalog.pg_class WHERE relpersistence = 't' AND relkind IN ('r', 'p'))";
    let row = sql::one(client, "count large objects and temporary tables", text).await?;
    Ok((sql::unsigned(row.get(0)), sql::unsigned(row.get(1))))
}

async fn read_extensions(client: &Client) -> Result<Vec<(String, String)>> {
    let text = "SELECT extname::text, extversion FROM pg_catalog.pg_extension ORDER BY extname";
    let rows = sql::rows(client, "list the extensions", text).await?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}
