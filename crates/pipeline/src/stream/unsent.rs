//! Large values that the source did not send of a row that is new to the target.
//!
//! A row filter lets an UPDATE come as the INSERT of a row that was not among the wanted ones before. The server still leaves
//! out the large values (TOAST) that the UPDATE did not change, unless the old row has them (REPLICA IDENTITY FULL), and the
//! target has no row to keep them from. They are read from the source, by the key.
//!
//! **Invariant:** no value is guessed. Where the row is not there any more under its key the table stops, with the position
//! kept. A value that is there may be newer than the transaction: whatever changed it is still to come in the stream, and
//! carries it; until then the target shows it too early.
//!
//! PostgreSQL manual, sections 29.4 (row filters) and 53.9 (TupleData).

use std::collections::HashSet;

use bytes::BytesMut;
use tidemark_model::sql::Ident;
use tidemark_model::{
    Cell, Change, Lsn, Oid, Operation, StreamColumn, StreamRelation, TablePlan, TupleData,
};
use tidemark_wire::tokio_postgres::types::{Format, IsNull, ToSql, Type, to_sql_checked};
use tidemark_wire::{Client, ConnectSpec};

use crate::{Error, Kind, Result};

/// Reads what was not sent.
pub(crate) struct Unsent {
    source: ConnectSpec,
    /// The tables that have a row filter: of the others every new row comes whole.
    filtered: HashSet<Oid>,
    client: Option<Client>,
}

impl Unsent {
    pub(crate) fn new(source: &ConnectSpec, plans: &[TablePlan]) -> Self {
        let filtered = plans.iter().filter(|plan| plan.filter.is_some());
        let filtered = filtered.map(|plan| plan.relation.oid).collect();
        Self { source: source.clone(), filtered, client: None }
    }

    /// Whether the row of a change has to be read from the source first.
    pub(crate) fn concerns(&self, change: &Change) -> bool {
        !self.filtered.is_empty()
            && self.filtered.contains(&change.relation.oid)
            && matches!(&change.operation, Operation::Insert { new } if new.cells().any(|cell| cell == Cell::Unchanged))
    }

    /// Reads it. `position` is what the target has before the transaction.
    ///
    /// # Errors
    /// The row is not there any more, or has no key; the source cannot be reached.
    pub(crate) async fn fill(&mut self, change: &mut Change, position: Lsn) -> Result<()> {
        let Operation::Insert { new } = &mut change.operation else { return Ok(()) };
        let relation = &change.relation;
        let client = match self.client.take().filter(|client| !client.is_closed()) {
            Some(client) => client,
            None => self.source.connect().await?,
        };
        let text = Statement::of(relation, new).ok_or_else(|| gone(relation, new, position))?;
        let values: Vec<Value<'_>> = text.key.iter().map(|cell| Value(*cell)).collect();
        let values: Vec<&(dyn ToSql + Sync)> = values.iter().map(|value| value as _).collect();
        let found = client.query(&text.sql, &values).await.map_err(tidemark_wire::Error::sql(
            "read a large value that the stream did not send",
        ))?;
        let [row] = &found[..] else { return Err(gone(relation, new, position)) };
        let read: Vec<Option<&str>> = (0..row.len()).map(|at| row.get(at)).collect();
        let mut read = read.into_iter();
        let fill = |cell| match cell {
            Cell::Unchanged => {
                read.next().flatten().map_or(Cell::Null, |text| Cell::Text(text.as_bytes()))
            }
            sent => sent,
        };
        let cells: Vec<Cell<'_>> = new.cells().map(fill).collect();
        *new = TupleData::of(cells.into_iter());
        self.client = Some(client);
        Ok(())
    }
}

/// The columns that were not sent, by the key.
struct Statement<'a> {
    sql: String,
    key: Vec<Cell<'a>>,
}

impl<'a> Statement<'a> {
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
            "SELECT {} FROM ONLY {} WHERE {}",
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
