//! Sequences, which no stream carries.
//!
//! **Invariant:** a sequence is only ever moved forward, in its own direction, and to within its bounds.

use tidemark_model::RelationName;
use tidemark_pipeline::{Error, Kind, Result};
use tidemark_wire::ConnectSpec;

use crate::fence::failed;

/// Sets the other side's sequences behind this side's: by `margin` values more than were handed out. Gives how many were
/// moved.
pub(crate) async fn carry(from: &ConnectSpec, to: &ConnectSpec, margin: u64) -> Result<u64> {
    let (from, to) = tokio::try_join!(from.connect(), to.connect())?;
    let read = "SELECT schemaname, sequencename, last_value, increment_by, min_value, max_value FROM pg_catalog.pg_sequences \
                WHERE schemaname <> 'tidemark' ORDER BY 1, 2";
    let rows = from.query(read, &[]).await.map_err(failed("read the sequences"))?;
    let mut moved = 0;
    for row in rows {
        let name = RelationName::new(row.get::<_, String>(0), row.get::<_, String>(1));
        // One that has handed out nothing may do so from its beginning on either side.
        let Some(last) = row.get::<_, Option<i64>>(2) else { continue };
        let (increment, least, most): (i64, i64, i64) = (row.get(3), row.get(4), row.get(5));
        let margin = i64::try_from(margin).unwrap_or(i64::MAX).saturating_mul(increment);
        let wanted = last.saturating_add(margin).clamp(least, most);
        let set = "SELECT pg_catalog.setval(s.oid, $3::int8, true) FROM ( \
                     SELECT c.oid, (SELECT q.last_value FROM pg_catalog.pg_sequences q WHERE q.schemaname = n.nspname AND q.sequencename = c.relname) AS last \
                     FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
                     WHERE c.relkind = 'S' AND n.nspname = $1 AND c.relname = $2) s \
                   WHERE s.last IS NULL OR CASE WHEN $4::int8 > 0 THEN s.last < $3 ELSE s.last > $3 END";
        let set = to.query(set, &[&name.schema, &name.name, &wanted, &increment]).await;
        moved += set.map_err(|cause| refused(&name, &cause))?.len() as u64;
    }
    Ok(moved)
}

fn refused(name: &RelationName, cause: &tidemark_wire::tokio_postgres::Error) -> Error {
    let why =
        cause.as_db_error().map_or_else(|| cause.to_string(), |error| error.message().to_owned());
    Error::new(Kind::TargetRefused, format!("set sequence {name}: {why}"))
        .hint("its bounds have to hold the other side's position; GRANT UPDATE on it to our role")
}
