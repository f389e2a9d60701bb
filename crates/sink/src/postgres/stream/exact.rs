//! Turns changes into statements one by one, in the order of the source.
//!
//! **Invariant:** every statement must touch exactly one row, and its place among the batch's changes is known, so that a
//! change that the target does not take can be named.
//!
//! Slow, and used only for a batch that could not be applied by its net effect.
//!
//! **Not here:** when that is (`apply`).

use std::sync::Arc;

use tidemark_model::{Cell, Change, OldRow, Operation, TupleData, sql::Ident};

use super::cells;
use super::layouts::Layouts;
use super::parameter::Parameter;
use super::reduce::{no_identity, with_key};
use super::statement::{self, Step, names};
use super::table::{Access, KeyPart, Layout, Slot, TargetTable};
use crate::{Disposition, Error, Result};

/// A change as statements; none where there is nothing to do.
pub(super) struct Single {
    /// `insert`, `update`, ..
    pub(super) what: &'static str,
    /// The key's columns, for messages.
    pub(super) key_names: String,
    pub(super) table: Arc<TargetTable>,
    /// One statement; two for an update of a table without a key.
    pub(super) steps: Vec<Step>,
}

/// The statements of a change.
///
/// # Errors
/// A change that no target could apply.
pub(super) fn statements(change: &Change, layouts: &Layouts) -> Result<Single> {
    if let Operation::Truncate { with, restart_identity, .. } = &change.operation {
        let tables = layouts.truncated(&change.relation, with)?;
        let steps = statement::truncate(&tables, *restart_identity).into_iter().collect();
        let table = Arc::clone(&tables[0]);
        return Ok(Single { what: "truncate", key_names: String::new(), table, steps });
    }
    let layout = layouts.of(&change.relation)?;
    let (what, steps) = match &change.operation {
        Operation::Insert { new } => ("insert", vec![insert(layout, new)?]),
        Operation::Update { old, new } => ("update", update(layout, old.as_ref(), new)?),
        Operation::Delete { old } => ("delete", vec![delete(layout, old)?]),
        Operation::Truncate { .. } => ("truncate", Vec::new()),
    };
    let table = Arc::clone(&layout.table);
    Ok(Single { what, key_names: layout.key_names(), table, steps })
}

/// A statement as it is put together.
#[derive(Default)]
struct Draft {
    parameters: Vec<Parameter>,
}

impl Draft {
    /// The expression of a slot's value.
    fn value(&mut self, layout: &Layout, slot: usize, cell: Cell<'_>) -> String {
        self.parameters.push(Parameter::of_cell(cell));
        format!("${}::{}", self.parameters.len(), layout.slots[slot].column.type_name)
    }

    fn finish(self, layout: &Layout, sql: String) -> Step {
        let table = Arc::clone(&layout.table);
        Step::Execute { table, sql, parameters: self.parameters, rows: 1, is_sorted: false }
    }

    /// The condition that finds the row; `is_full` where the row says all of its values.
    fn condition(&mut self, layout: &Layout, row: &TupleData, is_full: bool) -> Result<String> {
        match &layout.access {
            // Rows that trade keys have the same one for the moment: then the other values tell them apart.
            Access::Key(parts) if is_full && layout.is_deferrable => {
                let key = self.key(layout, parts, row, "r");
                Ok(self.place(layout, row, &format!(" WHERE {key}")))
            }
            Access::Key(parts) => Ok(self.key(layout, parts, row, "t")),
            Access::Image => Ok(self.place(layout, row, "")),
            Access::InsertOnly => Err(no_identity(&layout.table)),
        }
    }

    fn key(&mut self, layout: &Layout, parts: &[KeyPart], row: &TupleData, alias: &str) -> String {
        let mut conditions = Vec::with_capacity(parts.len());
        for part in parts {
            let value = self.value(layout, part.slot, cell(row, part.cell));
            let column = format!("{alias}.{}", Ident(&layout.slots[part.slot].column.name));
            conditions.push(part.condition(&column, &value));
        }
        conditions.join(" AND ")
    }

    /// The place of one of the rows that have all of these values.
    fn place(&mut self, layout: &Layout, row: &TupleData, narrowed: &str) -> String {
        let mut columns = Vec::with_capacity(layout.slots.len());
        let mut values = Vec::with_capacity(layout.slots.len());
        for (index, slot) in layout.slots.iter().enumerate() {
            columns.push(format!("r.{}", Ident(&slot.column.name)));
            values.push(self.value(layout, index, cell(row, slot.cell)));
        }
        format!(
            "(t.tableoid, t.ctid) = (SELECT m.tableoid, m.ctid FROM \
             (SELECT r.tableoid, r.ctid, ROW({}) AS image FROM {} AS r{narrowed}) AS m \
             WHERE m.image OPERATOR(pg_catalog.*=) ROW({})::record LIMIT 1)",
            columns.join(", "),
            layout.table.only(),
            values.join(", "),
        )
    }
}

fn cell(row: &TupleData, index: usize) -> Cell<'_> {
    row.cells().nth(index).unwrap_or(Cell::Null)
}

fn insert(layout: &Layout, new: &TupleData) -> Result<Step> {
    let mut draft = Draft::default();
    let mut values = Vec::new();
    for (index, slot) in layout.slots.iter().enumerate() {
        let cell = cell(new, slot.cell);
        if cell == Cell::Unchanged {
            return Err(nothing_to_keep(layout, &slot.column.name));
        }
        values.push(draft.value(layout, index, cell));
    }
    if values.is_empty() {
        let sql = format!("INSERT INTO {} DEFAULT VALUES", layout.table.name);
        return Ok(draft.finish(layout, sql));
    }
    let sql = format!(
        "INSERT INTO {} ({}) OVERRIDING SYSTEM VALUE VALUES ({})",
        layout.table.name,
        names(layout),
        values.join(", ")
    );
    Ok(draft.finish(layout, sql))
}

fn nothing_to_keep(layout: &Layout, column: &str) -> Error {
    Error::new(
        Disposition::Refused,
        format!(
            "insert a row whose TOASTed column {} the source did not send, because it had not changed",
            Ident(column)
        ),
    )
    .on(&layout.table.name)
    .hint("the source's row filter made an insert of an update: give the table REPLICA IDENTITY FULL, or take a new snapshot (tidemark cleanup, then sync)")
}

fn delete(layout: &Layout, old: &OldRow) -> Result<Step> {
    let mut draft = Draft::default();
    let condition = draft.condition(layout, old.tuple(), matches!(old, OldRow::Full(_)))?;
    let sql = format!("DELETE FROM {} AS t WHERE {condition}", layout.table.only());
    Ok(draft.finish(layout, sql))
}

fn update(layout: &Layout, old: Option<&OldRow>, new: &TupleData) -> Result<Vec<Step>> {
    if matches!(layout.access, Access::Image) {
        let Some(old) = old else { return Err(no_identity(&layout.table)) };
        let new = cells::overlay(old.tuple(), new.clone());
        return Ok(vec![delete(layout, old)?, insert(layout, &new)?]);
    }
    let new = with_key(layout, old, new);
    let before = old.map_or(&new, OldRow::tuple);
    let is_full = matches!(old, Some(OldRow::Full(_)));
    let same = |slot: &Slot| cell(before, slot.cell) == cell(&new, slot.cell);
    let moves = !layout.slots.iter().zip(&layout.is_key).all(|(slot, key)| !key || same(slot));
    let is_fixed = |(slot, key): (&Slot, &bool)| slot.column.is_always_identity && (moves || !key);
    if layout.slots.iter().zip(&layout.is_key).any(is_fixed) {
        return Ok(vec![replace(layout, before, &new, is_full)?]);
    }
    let mut draft = Draft::default();
    let mut set = Vec::new();
    for (index, slot) in layout.slots.iter().enumerate() {
        let cell = cell(&new, slot.cell);
        if cell != Cell::Unchanged && (moves || !layout.is_key[index]) {
            let value = draft.value(layout, index, cell);
            set.push(format!("{} = {value}", Ident(&slot.column.name)));
        }
    }
    if set.is_empty() {
        return Ok(Vec::new());
    }
    let condition = draft.condition(layout, before, is_full)?;
    let sql =
        format!("UPDATE {} AS t SET {} WHERE {condition}", layout.table.only(), set.join(", "));
    Ok(vec![draft.finish(layout, sql)])
}

/// An update of a table with a column that no UPDATE can write: the row goes and comes again, and keeps what was not sent.
fn replace(layout: &Layout, before: &TupleData, new: &TupleData, is_full: bool) -> Result<Step> {
    let mut draft = Draft::default();
    let mut values = Vec::new();
    for (index, slot) in layout.slots.iter().enumerate() {
        values.push(match cell(new, slot.cell) {
            Cell::Unchanged => format!("gone.{}", Ident(&slot.column.name)),
            cell => draft.value(layout, index, cell),
        });
    }
    let condition = draft.condition(layout, before, is_full)?;
    let sql = format!(
        "WITH gone AS (DELETE FROM {} AS t WHERE {condition} RETURNING t.*) \
         INSERT INTO {} ({}) OVERRIDING SYSTEM VALUE SELECT {} FROM gone",
        layout.table.only(),
        layout.table.name,
        names(layout),
        values.join(", ")
    );
    Ok(draft.finish(layout, sql))
}
