//! Large values that the source did not send of a row that is new to the target.
//!
//! A row filter lets an UPDATE come as the INSERT of a row that was not among the wanted ones before. The server still leaves
//! out the large values (TOAST) that the UPDATE did not change, unless the old row has them (REPLICA IDENTITY FULL), and the
//! target has no row to keep them from. They are read from the source, by the key.
//!
//! **Invariant:** no value is guessed. Where the row is not there any more under its key the table stops, with the position
//! kept. It is read once the source shows the transaction, which may be after it sent it (a synchronous standby). A value that
//! is there may be newer than the transaction: whatever changed it is still to come in the stream, and carries it; until then
//! the target shows it too early, and no position before the reading is given out as a state of the source.
//!
//! PostgreSQL manual, sections 29.4 (row filters) and 53.9 (TupleData).

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use tidemark_model::sql::Ident;
use tidemark_model::{
    Cell, Change, Lsn, Oid, Operation, StreamColumn, StreamRelation, TablePlan, TupleData,
};
use tidemark_source::has_committed;
use tidemark_wire::tokio_postgres::types::{Format, IsNull, ToSql, Type, to_sql_checked};
use tidemark_wire::{Client, ConnectSpec};

use crate::{Error, Kind, Result};

/// How long a transaction that was sent may stay invisible on the source.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two looks; it doubles up to the second.
const LOOK_MIN: Duration = Duration::from_millis(2);
const LOOK_MAX: Duration = Duration::from_millis(200);

/// Reads what was not sent.
pub(crate) struct Unsent {
    source: ConnectSpec,
    /// The tables that have a row filter: of the others every new row comes whole.
    filtered: HashSet<Oid>,
    session: Option<Session>,
    /// The newest that was read may be as new as this.
    read_at: Lsn,
}

/// A session on the source, with what was prepared in it and the last transaction that it was seen to show.
struct Session {
    client: Client,
    prepared: HashMap<String, tidemark_wire::tokio_postgres::Statement>,
    shows: u64,
}

impl Unsent {
    pub(crate) fn new(source: &ConnectSpec, plans: &[TablePlan]) -> Self {
        let filtered = plans.iter().filter(|plan| plan.filter.is_some());
        let filtered = filtered.map(|plan| plan.relation.oid).collect();
        Self { source: source.clone(), filtered, session: None, read_at: Lsn::ZERO }
    }

    /// Whether the row of a change has to be read from the source first.
    pub(crate) fn concerns(&self, change: &Change) -> bool {
        !self.filtered.is_empty()
            && self.filtered.contains(&change.relation.oid)
            && matches!(&change.operation, Operation::Insert { new } if new.cells().any(|cell| cell == Cell::Unchanged))
    }

    /// Where the source stood when something was read last: before that the target may have what is newer.
    pub(crate) fn read_at(&self) -> Lsn {
        self.read_at
    }

    /// Reads it, and gives how many bytes came to the change. `position` is what the target has before the transaction.
    ///
    /// # Errors
    /// The row is not there any more, or has no key; the source cannot be reached, or does not show the transaction.
    pub(crate) async fn fill(
        &mut self,
        change: &mut Change,
        xid: u64,
        position: Lsn,
    ) -> Result<u64> {
        let Operation::Insert { new } = &mut change.operation else { return Ok(0) };
        let relation = &change.relation;
        let question = Question::of(relation, new).ok_or_else(|| gone(relation, new, position))?;
        let mut session = match self.session.take().filter(|kept| !kept.client.is_closed()) {
            Some(session) => session,
            None => {
                Session { client: self.source.connect().await?, prepared: HashMap::new(), shows: 0 }
            }
        };
        session.wait_for(xid).await?;
        let found = session.ask(&question).await?;
        let [row] = &found[..] else { return Err(gone(relation, new, position)) };
        let read: Vec<Option<&str>> = (0..row.len()).map(|at| row.get(at)).collect();
        let mut read = read.into_iter();
        let now = read.next().flatten().and_then(|lsn| lsn.parse().ok()).unwrap_or(Lsn::ZERO);
        let fill = |cell| match cell {
            Cell::Unchanged => {
                read.next().flatten().map_or(Cell::Null, |text| Cell::Text(text.as_bytes()))
            }
            sent => sent,
        };
        let cells: Vec<Cell<'_>> = new.cells().map(fill).collect();
        let filled = TupleData::of(cells.into_iter());
        let added = filled.byte_len().saturating_sub(new.byte_len()) as u64;
        *new = filled;
        self.read_at = self.read_at.max(now);
        self.session = Some(session);
        Ok(added)
    }
}

impl Session {
    /// Waits until the source shows the transaction: it sends one as soon as its commit is in the WAL.
    async fn wait_for(&mut self, xid: u64) -> Result<()> {
        let (until, mut pause) = (Instant::now() + PATIENCE, LOOK_MIN);
        while self.shows != xid {
            if has_committed(&self.client, xid).await? {
                self.shows = xid;
            } else if Instant::now() >= until {
                let attempt =
                    format!("read a row of transaction {xid}, which the source does not show yet");
                return Err(Error::new(Kind::Unavailable, attempt)
                    .hint("a synchronous standby of the source may not answer (synchronous_standby_names); the position is kept"));
            } else {
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(LOOK_MAX);
            }
        }
        Ok(())
    }

    async fn ask(
        &mut self,
        question: &Question<'_>,
    ) -> Result<Vec<tidemark_wire::tokio_postgres::Row>> {
        let failed =
            || tidemark_wire::Error::sql("read a large value that the stream did not send");
        let Self { client, prepared, .. } = self;
        if !prepared.contains_key(&question.sql) {
            let statement = client.prepare(&question.sql).await.map_err(failed())?;
            prepared.insert(question.sql.clone(), statement);
        }
        let values: Vec<Value<'_>> = question.key.iter().map(|cell| Value(*cell)).collect();
        let values: Vec<&(dyn ToSql + Sync)> = values.iter().map(|value| value as _).collect();
        Ok(client.query(&prepared[&question.sql], &values).await.map_err(failed())?)
    }
}

/// The columns that were not sent, by the key.
struct Question<'a> {
    sql: String,
    key: Vec<Cell<'a>>,
}

impl<'a> Question<'a> {
    /// `None` where a part of the key was not sent either.
    fn of(relation: &StreamRelation, new: &'a TupleData) -> Option<Self> {
        let (mut wanted, mut conditions, mut key) = (Vec::new(), Vec::new(), Vec::new());
        for (column, cell) in relation.columns.iter().zip(new.cells()) {
            let name = Ident(&column.name);
            match cell {
                Cell::Null | Cell::Unchanged if column.is_identity => return None,
                // As the type's output function writes it, which a cast to text does not for all types.
                Cell::Unchanged => wanted.push(format!(
                    "CASE WHEN {name} IS NOT NULL THEN pg_catalog.format('%s', {name}) END"
                )),
                cell if column.is_identity => {
                    key.push(cell);
                    conditions.push(format!("{name} = ${}", key.len()));
                }
                _ => {}
            }
        }
        let sql = format!(
            "SELECT pg_catalog.pg_current_wal_insert_lsn()::text, {} FROM ONLY {} WHERE {}",
            wanted.join(", "),
            relation.name,
            conditions.join(" AND ")
        );
        (!key.is_empty()).then_some(Self { sql, key })
    }
}

fn gone(relation: &StreamRelation, new: &TupleData, position: Lsn) -> Error {
    let unsent = |(column, cell): (&StreamColumn, Cell<'_>)| {
        (cell == Cell::Unchanged).then(|| Ident(&column.name).to_string())
    };
    let columns: Vec<String> =
        relation.columns.iter().zip(new.cells()).filter_map(unsent).collect();
    let name = &relation.name;
    let mut error = Error::new(
        Kind::TargetRefused,
        format!(
            "take a row of {name} that an UPDATE brought into the row filter, behind {position}: the source did not send {} of \
             it, and does not have the row under this key any more",
            columns.join(", ")
        ),
    )
    .hint(format!(
        "tidemark reset {} --yes lets the table join anew; with REPLICA IDENTITY FULL all values are sent; the position is kept",
        name.plain()
    ));
    error.table = Some(Box::new(name.clone()));
    error
}

/// A value of the stream in the form it came in.
#[derive(Debug)]
struct Value<'a>(Cell<'a>);

impl ToSql for Value<'_> {
    fn to_sql(
        &self,
        _: &Type,
        out: &mut BytesMut,
    ) -> std::result::Result<IsNull, Box<dyn std::error::Error + Sync + Send>> {
        match self.0 {
            Cell::Null | Cell::Unchanged => return Ok(IsNull::Yes),
            Cell::Text(value) | Cell::Binary(value) => out.extend_from_slice(value),
        }
        Ok(IsNull::No)
    }

    fn accepts(_: &Type) -> bool {
        true
    }

    fn encode_format(&self, _: &Type) -> Format {
        match self.0 {
            Cell::Text(_) => Format::Text,
            _ => Format::Binary,
        }
    }

    to_sql_checked!();
}
