//! Sequences, which no stream carries.
//!
//! **Invariant:** a sequence is only ever moved forward, in its own direction, and to within its bounds.

use std::collections::HashSet;

use tidemark_model::RelationName;
use tidemark_pipeline::{Error, Kind, Result, SequenceRoom};
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

/// Every sequence of the user's, as far as the catalog tells.
const LIST: &str = "SELECT n.nspname, c.relname, s.seqincrement, s.seqmin, s.seqmax, s.seqstart, \
      pg_catalog.has_sequence_privilege(c.oid, 'SELECT'), pg_catalog.has_sequence_privilege(c.oid, 'UPDATE') \
    FROM pg_catalog.pg_sequence s JOIN pg_catalog.pg_class c ON c.oid = s.seqrelid \
    JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
    WHERE n.nspname NOT IN ('pg_catalog', 'information_schema', 'tidemark') AND c.relpersistence <> 't'";
/// Of these tables only: sequences that they own or that a default of theirs draws from.
const OF_TABLES: &str = "AND c.oid IN ( \
    SELECT d.objid FROM pg_catalog.pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.refclassid = 'pg_class'::regclass \
      AND d.deptype IN ('a', 'i') AND d.refobjid = ANY ($1::text[]::regclass[]::oid[]) \
    UNION SELECT d.refobjid FROM pg_catalog.pg_depend d JOIN pg_catalog.pg_attrdef a ON a.oid = d.objid \
      WHERE d.classid = 'pg_attrdef'::regclass AND d.refclassid = 'pg_class'::regclass AND a.adrelid = ANY ($1::text[]::regclass[]::oid[]))";

/// The sequences of a side, or those of these tables only, in the order of their names.
async fn list(client: &Client, of_tables: Option<&[String]>) -> Result<Vec<Row>> {
    let rows = match of_tables {
        Some(tables) => {
            client.query(&format!("{LIST} {OF_TABLES} ORDER BY 1, 2"), &[&tables]).await
        }
        None => client.query(&format!("{LIST} ORDER BY 1, 2"), &[]).await,
    };
    rows.map_err(failed("list the sequences"))
}

/// Whether we may read the sequences here and set them there.
///
/// # Errors
/// We may not; of the first one.
pub(crate) async fn check(
    from: &ConnectSpec,
    to: &ConnectSpec,
    of_tables: Option<&[String]>,
) -> Result<()> {
    let (from, to) = tokio::try_join!(from.connect(), to.connect())?;
    let (here, there) = (list(&from, of_tables).await?, list(&to, None).await?);
    let refuse = |row: &Row, missing: &str, side: &str| {
        let name = name_of(row);
        let message = format!("sequence {name}: our role may not {missing} it on the {side}");
        let grant = format!("GRANT SELECT, UPDATE ON SEQUENCE {name} TO our role, there");
        Err(Error::new(Kind::Preflight, message).hint(grant))
    };
    let carried: HashSet<RelationName> = here.iter().map(name_of).collect();
    if let Some(row) = here.iter().find(|row| !row.get::<_, bool>(6)) {
        return refuse(row, "read", "side that is left");
    }
    let is_ready = |row: &&Row| row.get(6) && row.get(7) || !carried.contains(&name_of(row));
    match there.iter().find(|row| !is_ready(row)) {
        Some(row) => refuse(row, "read and set", "side that the application goes to"),
        None => Ok(()),
    }
}

fn name_of(row: &Row) -> RelationName {
    RelationName::new(row.get::<_, String>(0), row.get::<_, String>(1))
}

/// Sets the other side's sequences behind this side's: by `margin` values more than were handed out. Gives how many were
/// moved. Without `of_tables` it is all of them.
///
/// # Errors
/// One of them may not be read on either side, or not be set.
pub(crate) async fn carry(
    from: &ConnectSpec,
    to: &ConnectSpec,
    margin: u64,
    of_tables: Option<&[String]>,
) -> Result<u64> {
    let (from, to) = tokio::try_join!(from.connect(), to.connect())?;
    let there: HashSet<RelationName> = list(&to, None).await?.iter().map(name_of).collect();
    let rows = list(&from, of_tables).await?;
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

/// The sequence with the least room, up to its end or to that of its column's type.
pub(crate) async fn fullest(spec: &ConnectSpec) -> Result<Option<SequenceRoom>> {
    let sql = "SELECT q.schemaname::text, q.sequencename::text, \
          CASE WHEN q.increment_by > 0 THEN m.most::float8 - q.last_value::float8 ELSE q.last_value::float8 - q.min_value::float8 END \
            / greatest(m.most::float8 - q.min_value::float8, 1) \
        FROM pg_catalog.pg_sequences q JOIN pg_catalog.pg_namespace n ON n.nspname = q.schemaname \
        JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relname = q.sequencename \
        LEFT JOIN pg_catalog.pg_depend d ON d.classid = 'pg_catalog.pg_class'::regclass AND d.objid = c.oid \
          AND d.deptype IN ('a', 'i') AND d.refclassid = 'pg_catalog.pg_class'::regclass \
        LEFT JOIN pg_catalog.pg_attribute a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid, \
        LATERAL (SELECT least(q.max_value, CASE a.atttypid WHEN 21 THEN 32767 WHEN 23 THEN 2147483647 ELSE q.max_value END) AS most) m \
        WHERE q.last_value IS NOT NULL AND NOT q.cycle AND q.schemaname <> 'tidemark' ORDER BY 3 LIMIT 1";
    let client = spec.connect().await?;
    let row =
        client.query_opt(sql, &[]).await.map_err(failed("look how full the sequences are"))?;
    Ok(row.map(|row| SequenceRoom { name: name_of(&row).to_string(), free: row.get(2) }))
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
