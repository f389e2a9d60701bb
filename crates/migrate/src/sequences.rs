//! Sequences, which no stream carries.
//!
//! **Invariant:** a sequence is only ever moved forward, in its own direction, and to within its bounds.

use std::collections::HashSet;

use tidemark_model::RelationName;
use tidemark_pipeline::{Error, Kind, Result};
use tidemark_wire::tokio_postgres::Row;
use tidemark_wire::{Client, ConnectSpec};

use crate::fence::failed;

/// Where a sequence is.
struct Position {
    /// What it handed out last; before the first value the one before that.
    last: i64,
    /// It has handed out nothing, and nobody has moved it.
    is_fresh: bool,
}

/// Sets the other side's sequences behind this side's: by `margin` values more than were handed out. Gives how many were
/// moved.
///
/// # Errors
/// One of them may not be read on either side, or not be set.
pub(crate) async fn carry(from: &ConnectSpec, to: &ConnectSpec, margin: u64) -> Result<u64> {
    let (from, to) = tokio::try_join!(from.connect(), to.connect())?;
    let list = "SELECT n.nspname, c.relname, s.seqincrement, s.seqmin, s.seqmax, s.seqstart \
                FROM pg_catalog.pg_sequence s JOIN pg_catalog.pg_class c ON c.oid = s.seqrelid \
                JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
                WHERE n.nspname NOT IN ('pg_catalog', 'information_schema', 'tidemark') AND c.relpersistence <> 't' ORDER BY 1, 2";
    let there = to.query(list, &[]).await.map_err(failed("list the sequences"))?;
    let name_of = |row: &Row| RelationName::new(row.get::<_, String>(0), row.get::<_, String>(1));
    let there: HashSet<RelationName> = there.iter().map(name_of).collect();
    let rows = from.query(list, &[]).await.map_err(failed("list the sequences"))?;
    let mut moved = 0;
    for (row, name) in
        rows.iter().map(|row| (row, name_of(row))).filter(|(_, name)| there.contains(name))
    {
        let (increment, least, most, start): (i64, i64, i64, i64) =
            (row.get(2), row.get(3), row.get(4), row.get(5));
        let here = position(&from, &name, (increment, start)).await?;
        if here.is_fresh {
            continue;
        }
        let margin = i64::try_from(margin).unwrap_or(i64::MAX).saturating_mul(increment);
        let wanted = here.last.saturating_add(margin).clamp(least, most);
        let other = position(&to, &name, (increment, start)).await?;
        let is_behind = if increment > 0 { other.last < wanted } else { other.last > wanted };
        if is_behind {
            let set = "SELECT pg_catalog.setval($1::text::regclass, $2, true)";
            let set = to.query_one(set, &[&name.to_string(), &wanted]).await;
            set.map_err(|cause| refused("set", &name, &cause))?;
            moved += 1;
        }
    }
    Ok(moved)
}

async fn position(
    client: &Client,
    name: &RelationName,
    (increment, start): (i64, i64),
) -> Result<Position> {
    let read = client.query_one(&format!("SELECT last_value, is_called FROM {name}"), &[]).await;
    let row = read.map_err(|cause| refused("read", name, &cause))?;
    let (value, is_called): (i64, bool) = (row.get(0), row.get(1));
    Ok(Position {
        last: if is_called { value } else { value.saturating_sub(increment) },
        is_fresh: !is_called && value == start,
    })
}

fn refused(
    doing: &str,
    name: &RelationName,
    cause: &tidemark_wire::tokio_postgres::Error,
) -> Error {
    let why =
        cause.as_db_error().map_or_else(|| cause.to_string(), |error| error.message().to_owned());
    Error::new(Kind::TargetRefused, format!("{doing} sequence {name}: {why}"))
        .hint("its bounds have to hold the other side's position; GRANT SELECT, UPDATE on it to our role, on both sides")
}
