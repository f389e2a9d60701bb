//! Whether tables are what the snapshot shows of them.
//!
//! **Invariant:** a table whose file or columns changed after the snapshot was taken is found, once it is locked. A rewrite
//! (TRUNCATE, VACUUM FULL, CLUSTER, ALTER TYPE) gives the table a new file, in which the old snapshot sees no or other
//! rows, and writes nothing into the stream (`hazards.md` A10).
//!
//! The snapshot's view is `pg_class.relfilenode` and `pg_attribute` read under it; the present one is
//! `pg_relation_filenode()`, which reads the server's caches, and `pg_attribute` read by another session.

use std::collections::HashMap;

use tidemark_model::Oid;
use tidemark_wire::Client;

use crate::{Result, sql};

/// What must stay for rows of a table that were read under one snapshot to stand where they stood under a later one: its
/// file, its columns with those that were dropped, and that its changes are in the WAL. As text, to be kept and compared.
/// Tables that are not there any more are left out.
///
/// # Errors
/// The connection failed.
pub async fn shapes(client: &Client, oids: &[Oid]) -> Result<HashMap<Oid, String>> {
    let text = |shape: Shape| {
        format!("{} {} {}", shape.present_filenode, shape.persistence, shape.columns)
    };
    let shapes = read(client, oids).await?;
    Ok(shapes.into_iter().map(|(oid, shape)| (oid, text(shape))).collect())
}

/// The name of the first table that is not what the holder's snapshot shows.
pub(super) async fn first_difference(
    holder: &Client,
    side: &Client,
    oids: &[Oid],
) -> Result<Option<String>> {
    let seen = read(holder, oids).await?;
    let mut now: HashMap<Oid, Shape> = read(side, oids).await?.into_iter().collect();
    for (oid, shape) in &seen {
        let is_same = now.remove(oid).is_some_and(|now| {
            shape.filenode == shape.present_filenode
                && now.filenode == shape.filenode
                && now.columns == shape.columns
        });
        if !is_same {
            return Ok(Some(shape.name.clone()));
        }
    }
    // What is left was created after the snapshot.
    Ok(now.into_values().map(|shape| shape.name).next())
}

struct Shape {
    name: String,
    filenode: i64,
    present_filenode: i64,
    columns: String,
    persistence: String,
}

async fn read(client: &Client, oids: &[Oid]) -> Result<Vec<(Oid, Shape)>> {
    let text = format!(
        "SELECT c.oid, quote_ident(n.nspname) || '.' || quote_ident(c.relname), c.relfilenode::int8, \
           coalesce(pg_relation_filenode(c.oid)::int8, 0), \
           coalesce((SELECT string_agg(concat_ws(' ', a.attnum, quote_ident(a.attname), a.atttypid, a.atttypmod, \
             a.attisdropped, a.attgenerated), ',' ORDER BY a.attnum) \
             FROM pg_catalog.pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0), ''), c.relpersistence::text \
         FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
         WHERE c.oid = ANY ({}) ORDER BY c.oid",
        sql::oid_array(oids)
    );
    let rows = sql::rows(client, "compare tables with the snapshot", &text).await?;
    let shapes = rows.iter().map(|row| {
        let shape = Shape {
            name: row.get(1),
            filenode: row.get(2),
            present_filenode: row.get(3),
            columns: row.get(4),
            persistence: row.get(5),
        };
        (row.get(0), shape)
    });
    Ok(shapes.collect())
}
