//! Turns the net effect on a table into a few statements that take their values as arrays.
//!
//! **Invariant:** one statement touches a row at most once, and says how many rows it must touch. Unchanged TOAST columns
//! are in no SET list; generated columns are nowhere; identity columns GENERATED ALWAYS are written by INSERT and COPY only
//! and compared elsewhere, so that a new value is noticed by the count (`hazards.md` E75, G98).
//!
//! ```text
//! DELETE .. USING unnest(keys)              keys
//! UPDATE .. FROM unnest(old keys, columns)  key changes, one statement per set of columns
//! UPDATE .. FROM unnest(keys, columns)      one statement per set of columns
//! COPY, or INSERT .. SELECT FROM unnest     new rows; the latter for a few, because COPY takes round trips of its own
//! ```
//!
//! PostgreSQL manual: `UPDATE`, `INSERT` ("OVERRIDING SYSTEM VALUE"), `COPY`, "unnest".

use std::fmt::Write as _;
use std::sync::Arc;

use bytes::{BufMut, Bytes};
use tidemark_model::{Cell, Oid, TupleData, sql::Ident};

use super::cells;
use super::parameter::{Array, Form, Mixed, Parameter, numbers, rows as rows_of};
use super::reduce::{Net, Part};
use super::table::{Access, KeyPart, Layout, TargetColumn, TargetTable};

/// From so many new rows on COPY is worth its two round trips.
const COPY_ROWS: usize = 100;
/// Bytes of one statement's arrays; a larger set takes several statements.
const STATEMENT_BYTES: usize = 32 << 20;
/// Bytes of one piece of COPY data.
const COPY_BYTES: usize = 256 << 10;
/// From so many row images on, the table is sorted once instead of being read once for each.
const SORTED_IMAGES: usize = 4;

const TEXT_ARRAY: &str = "pg_catalog._text";

/// One step of a batch on the target.
#[derive(Debug)]
pub(super) enum Step {
    /// A statement that must touch `rows` rows; `is_sorted` where it joins by sorting, and not by looking up.
    Execute {
        table: Arc<TargetTable>,
        sql: String,
        parameters: Vec<Parameter>,
        rows: u64,
        is_sorted: bool,
    },
    /// Rows by COPY.
    Copy { table: Arc<TargetTable>, sql: String, pieces: Vec<Bytes>, rows: u64 },
    /// A statement whose count means nothing.
    Truncate { table: Arc<TargetTable>, sql: String },
}

impl Step {
    /// The statement.
    pub(super) fn sql(&self) -> &str {
        match self {
            Self::Execute { sql, .. } | Self::Copy { sql, .. } | Self::Truncate { sql, .. } => sql,
        }
    }

    /// Whether its plan is one of its own kind.
    pub(super) fn is_sorted(&self) -> bool {
        matches!(self, Self::Execute { is_sorted: true, .. })
    }

    /// How many rows it must touch.
    pub(super) fn rows(&self) -> Option<u64> {
        match self {
            Self::Execute { rows, .. } | Self::Copy { rows, .. } => Some(*rows),
            Self::Truncate { .. } => None,
        }
    }

    /// The table it touches.
    pub(super) fn table(&self) -> &Arc<TargetTable> {
        match self {
            Self::Execute { table, .. }
            | Self::Copy { table, .. }
            | Self::Truncate { table, .. } => table,
        }
    }
}

/// The steps of a reduced batch; none where its values do not fit into arrays.
pub(super) fn steps(parts: Vec<Part>) -> Option<Vec<Step>> {
    let mut steps = Vec::new();
    for part in parts {
        match part {
            Part::Truncate(tables, restart_identity) => {
                steps.push(truncate(&tables, restart_identity)?);
            }
            Part::Rows(layout, net) => rows(&layout, net, &mut steps).ok()?,
        }
    }
    Some(steps)
}

/// One statement for all of them, and never CASCADE: what the source's own cascade reached is among them (`hazards.md` G99).
pub(super) fn truncate(tables: &[Arc<TargetTable>], restart_identity: bool) -> Option<Step> {
    let names: Vec<String> = tables.iter().map(|table| table.only()).collect();
    let identity = if restart_identity { " RESTART IDENTITY" } else { "" };
    let sql = format!("TRUNCATE {}{identity}", names.join(", "));
    Some(Step::Truncate { table: Arc::clone(tables.first()?), sql })
}

fn rows(layout: &Layout, net: Net, steps: &mut Vec<Step>) -> Result<(), Mixed> {
    if !net.moves.is_empty() && layout.has_fixed_key() {
        return Err(Mixed);
    }
    if !net.removed.is_empty() {
        remove(layout, &net.removed, steps)?;
    }
    if let Access::Key(key) = &layout.access {
        delete(layout, key, &net.deletes, steps)?;
        let moves = net.moves.iter().map(|(origin, row)| (Some(&**origin), row));
        update(layout, key, moves, steps)?;
        update(layout, key, net.updates.iter().map(|row| (None, row)), steps)?;
    }
    insert(layout, &net, steps)
}

/// Columns of a statement's `unnest`, as they fill up.
struct Values<'a> {
    table: &'a TargetTable,
    columns: Vec<(&'a TargetColumn, Array)>,
    rows: u64,
}

impl<'a> Values<'a> {
    fn new(table: &'a TargetTable, columns: impl Iterator<Item = &'a TargetColumn>) -> Self {
        Self { table, columns: columns.map(|column| (column, Array::default())).collect(), rows: 0 }
    }

    fn len(&self) -> usize {
        self.columns.iter().map(|(_, array)| array.len()).sum()
    }

    fn finish(self) -> Result<Source, Mixed> {
        let mut source = Source::default();
        let mut wrapped = Vec::new();
        for (index, (column, array)) in self.columns.into_iter().enumerate() {
            let (array_type, value) = match (array.form(), &column.array_name) {
                (Form::Text, _) => (TEXT_ARRAY, format!("s.c{index}::{}", column.type_name)),
                (Form::Binary, Some(name)) => (name.as_str(), format!("s.c{index}")),
                (Form::Binary, None) => {
                    let same = |other: &TargetColumn| other.name == column.name;
                    let place = self.table.columns.iter().position(same).ok_or(Mixed)?;
                    if wrapped.iter().any(|(other, _)| *other == place) {
                        return Err(Mixed); // an old and a new value of one column
                    }
                    wrapped.push((place, array));
                    source.values.push(format!("s.w{place}"));
                    continue;
                }
            };
            source.values.push(value);
            source.add(array_type, format!("c{index}"), array.finish(column.type_oid));
        }
        if !wrapped.is_empty() {
            let types: Vec<Oid> = self.table.columns.iter().map(|column| column.type_oid).collect();
            let names: Vec<String> = (0..types.len()).map(|place| format!("w{place}")).collect();
            let parameter = rows_of(self.table.row_type, &types, &wrapped);
            source.add(&self.table.row_array, names.join(", "), parameter);
        }
        Ok(source)
    }
}

/// Arrays as rows.
#[derive(Default)]
struct Source {
    /// `$1::..` for each parameter.
    arguments: Vec<String>,
    /// The names of what each parameter becomes.
    names: Vec<String>,
    parameters: Vec<Parameter>,
    /// The expression of each column's value.
    values: Vec<String>,
}

impl Source {
    fn add(&mut self, array_type: &str, name: String, parameter: Parameter) {
        self.parameters.push(parameter);
        self.arguments.push(format!("${}::{array_type}", self.parameters.len()));
        self.names.push(name);
    }

    /// The rows in a FROM list, called `s`.
    fn rows(&self) -> String {
        format!("unnest({}) AS s({})", self.arguments.join(", "), self.names.join(", "))
    }

    /// The same with a number `n` for each row, and its place `i`.
    fn counted_rows(&mut self, counts: impl Iterator<Item = i64>) -> String {
        self.add("pg_catalog._int8", "n".to_owned(), numbers(counts));
        let names = self.names.join(", ");
        format!("unnest({}) WITH ORDINALITY AS s({names}, i)", self.arguments.join(", "))
    }
}

fn key_condition(layout: &Layout, key: &[KeyPart], values: &[String]) -> String {
    let condition =
        |(part, value): (&KeyPart, &String)| part.among(&layout.slots[part.slot].column, value);
    let conditions: Vec<String> = key.iter().zip(values).map(condition).collect();
    conditions.join(" AND ")
}

fn delete(
    layout: &Layout,
    key: &[KeyPart],
    deletes: &[Box<[u8]>],
    steps: &mut Vec<Step>,
) -> Result<(), Mixed> {
    let mut rest = deletes;
    while !rest.is_empty() {
        let mut values =
            Values::new(&layout.table, key.iter().map(|part| &layout.slots[part.slot].column));
        while let Some((first, more)) = rest.split_first() {
            if values.len() >= STATEMENT_BYTES {
                break;
            }
            let row = cells::key_tuple(first);
            for ((_, array), cell) in values.columns.iter_mut().zip(row.cells()) {
                array.push(cell)?;
            }
            values.rows += 1;
            rest = more;
        }
        let rows = values.rows;
        let source = values.finish()?;
        let condition = key_condition(layout, key, &source.values);
        let only = layout.table.only();
        let sql = format!("DELETE FROM {only} AS t USING {} WHERE {condition}", source.rows());
        let parameters = source.parameters;
        steps.push(Step::Execute {
            table: Arc::clone(&layout.table),
            sql,
            parameters,
            rows,
            is_sorted: false,
        });
    }
    Ok(())
}

/// Rows that one UPDATE writes: all of the same columns.
struct Group<'a> {
    /// By slot: whether the row says its value.
    said: Vec<bool>,
    /// The key first, then the columns that are said.
    values: Values<'a>,
}

impl<'a> Group<'a> {
    fn new(layout: &'a Layout, key: &'a [KeyPart], moves: bool, said: Vec<bool>) -> Self {
        let columns = key.iter().map(|part| &layout.slots[part.slot].column).chain(
            layout
                .slots
                .iter()
                .enumerate()
                .filter(|(index, _)| said[*index] && (moves || !layout.is_key[*index]))
                .map(|(_, slot)| &slot.column),
        );
        let values = Values::new(&layout.table, columns);
        Self { said, values }
    }

    fn push(
        &mut self,
        layout: &Layout,
        key: &[KeyPart],
        (origin, row): (Option<&[u8]>, &TupleData),
    ) -> Result<(), Mixed> {
        let (key_arrays, arrays) = self.values.columns.split_at_mut(key.len());
        if let Some(origin) = origin {
            let origin = cells::key_tuple(origin);
            for ((_, array), cell) in key_arrays.iter_mut().zip(origin.cells()) {
                array.push(cell)?;
            }
        }
        let mut arrays = arrays.iter_mut();
        for (slot, cell) in layout.slot_of_cell.iter().zip(row.cells()) {
            let Some(slot) = *slot else { continue };
            if origin.is_none() && layout.is_key[slot] {
                for (part, (_, array)) in key.iter().zip(key_arrays.iter_mut()) {
                    if part.slot == slot {
                        array.push(cell)?;
                    }
                }
            } else if self.said[slot] {
                let (_, array) = arrays.next().ok_or(Mixed)?;
                array.push(cell)?;
            }
        }
        self.values.rows += 1;
        Ok(())
    }

    fn finish(self, layout: &Layout, key: &[KeyPart], moves: bool) -> Result<Option<Step>, Mixed> {
        let rows = self.values.rows;
        let source = self.values.finish()?;
        let mut condition = key_condition(layout, key, &source.values);
        let mut set = Vec::new();
        let written = layout
            .slots
            .iter()
            .enumerate()
            .filter(|(index, _)| self.said[*index] && (moves || !layout.is_key[*index]));
        for ((_, slot), value) in written.zip(&source.values[key.len()..]) {
            let name = Ident(&slot.column.name);
            match slot.column.is_always_identity {
                true => write!(condition, " AND t.{name} IS NOT DISTINCT FROM {value}")
                    .expect("a string takes everything"),
                false => set.push(format!("{name} = {value}")),
            }
        }
        if set.is_empty() {
            return Ok(None); // nothing but a key, or nothing that was sent: the row is as it should be (E77)
        }
        let sql = format!(
            "UPDATE {} AS t SET {} FROM {} WHERE {condition}",
            layout.table.only(),
            set.join(", "),
            source.rows(),
        );
        let parameters = source.parameters;
        Ok(Some(Step::Execute {
            table: Arc::clone(&layout.table),
            sql,
            parameters,
            rows,
            is_sorted: false,
        }))
    }
}

fn update<'r>(
    layout: &Layout,
    key: &[KeyPart],
    rows: impl Iterator<Item = (Option<&'r [u8]>, &'r TupleData)>,
    steps: &mut Vec<Step>,
) -> Result<(), Mixed> {
    let mut groups: Vec<Group<'_>> = Vec::new();
    let mut said = vec![true; layout.slots.len()];
    let mut moves = false;
    for (origin, row) in rows {
        moves = origin.is_some();
        for (slot, cell) in layout.slot_of_cell.iter().zip(row.cells()) {
            if let Some(slot) = *slot {
                said[slot] = cell != Cell::Unchanged;
            }
        }
        let place = groups.iter().position(|group| group.said == said).unwrap_or_else(|| {
            groups.push(Group::new(layout, key, moves, said.clone()));
            groups.len() - 1
        });
        groups[place].push(layout, key, (origin, row))?;
        if groups[place].values.len() >= STATEMENT_BYTES {
            steps.extend(groups.swap_remove(place).finish(layout, key, moves)?);
        }
    }
    for group in groups {
        steps.extend(group.finish(layout, key, moves)?);
    }
    Ok(())
}

/// Each slot's cell of a row.
fn by_slot<'r>(
    layout: &Layout,
    is_projected: bool,
    row: &'r TupleData,
    mut each: impl FnMut(usize, Cell<'r>),
) {
    if is_projected {
        return row.cells().enumerate().for_each(|(slot, cell)| each(slot, cell));
    }
    for (slot, cell) in layout.slot_of_cell.iter().zip(row.cells()) {
        if let Some(slot) = *slot {
            each(slot, cell);
        }
    }
}

fn insert(layout: &Layout, net: &Net, steps: &mut Vec<Step>) -> Result<(), Mixed> {
    let (mut has_text, mut has_binary, mut has_unchanged) = (false, false, false);
    for row in &net.inserts {
        by_slot(layout, net.is_projected, row, |_, cell| match cell {
            Cell::Text(_) => has_text = true,
            Cell::Binary(_) => has_binary = true,
            Cell::Unchanged => has_unchanged = true,
            Cell::Null => {}
        });
    }
    if has_unchanged {
        return Err(Mixed); // the exact order says which row has nothing to keep its value from
    }
    if net.inserts.is_empty() {
        return Ok(());
    }
    if layout.slots.is_empty() || net.inserts.len() >= COPY_ROWS && !(has_text && has_binary) {
        steps.push(copy(layout, net, has_binary));
        return Ok(());
    }
    let mut rest = net.inserts.as_slice();
    while !rest.is_empty() {
        let mut values = Values::new(&layout.table, layout.slots.iter().map(|slot| &slot.column));
        while let Some((row, more)) = rest.split_first() {
            if values.len() >= STATEMENT_BYTES {
                break;
            }
            let mut pushed = Ok(());
            by_slot(layout, net.is_projected, row, |slot, cell| {
                pushed = pushed.and(values.columns[slot].1.push(cell));
            });
            pushed?;
            values.rows += 1;
            rest = more;
        }
        let rows = values.rows;
        let source = values.finish()?;
        let sql = format!(
            "INSERT INTO {} ({}) OVERRIDING SYSTEM VALUE SELECT {} FROM {}",
            layout.table.name,
            names(layout),
            source.values.join(", "),
            source.rows(),
        );
        let parameters = source.parameters;
        steps.push(Step::Execute {
            table: Arc::clone(&layout.table),
            sql,
            parameters,
            rows,
            is_sorted: false,
        });
    }
    Ok(())
}

/// The columns that are written, as a list.
pub(super) fn names(layout: &Layout) -> String {
    let names: Vec<String> =
        layout.slots.iter().map(|slot| Ident(&slot.column.name).to_string()).collect();
    names.join(", ")
}

fn copy(layout: &Layout, net: &Net, is_binary: bool) -> Step {
    let list = match layout.slots.is_empty() {
        true => String::new(),
        false => format!(" ({})", names(layout)),
    };
    let format = if is_binary { "binary" } else { "text" };
    let sql = format!("COPY {}{list} FROM STDIN (FORMAT {format})", layout.table.name);
    let mut pieces = Vec::new();
    let mut data = Vec::with_capacity(COPY_BYTES + 4096);
    if is_binary {
        data.put_slice(b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0");
    }
    for row in &net.inserts {
        match is_binary {
            true => binary_row(layout, net.is_projected, row, &mut data),
            false => text_row(layout, net.is_projected, row, &mut data),
        }
        if data.len() >= COPY_BYTES {
            let full = std::mem::replace(&mut data, Vec::with_capacity(COPY_BYTES + 4096));
            pieces.push(Bytes::from(full));
        }
    }
    if is_binary {
        data.put_i16(-1);
    }
    pieces.push(Bytes::from(data));
    let rows = net.inserts.len() as u64;
    Step::Copy { table: Arc::clone(&layout.table), sql, pieces, rows }
}

fn binary_row(layout: &Layout, is_projected: bool, row: &TupleData, out: &mut Vec<u8>) {
    out.put_u16(u16::try_from(layout.slots.len()).expect("a table has at most 1600 columns"));
    by_slot(layout, is_projected, row, |_, cell| match cell {
        Cell::Null | Cell::Unchanged => out.put_i32(-1),
        Cell::Text(value) | Cell::Binary(value) => {
            out.put_u32(u32::try_from(value.len()).expect("a value of the stream is below 1 GB"));
            out.put_slice(value);
        }
    });
}

fn text_row(layout: &Layout, is_projected: bool, row: &TupleData, out: &mut Vec<u8>) {
    by_slot(layout, is_projected, row, |slot, cell| {
        if slot > 0 {
            out.put_u8(b'\t');
        }
        match cell {
            Cell::Null | Cell::Unchanged => out.put_slice(b"\\N"),
            Cell::Text(value) | Cell::Binary(value) => escape(value, out),
        }
    });
    out.put_u8(b'\n');
}

/// COPY's text format: what would end a value or a line is written with a backslash.
fn escape(value: &[u8], out: &mut Vec<u8>) {
    let mut plain = 0;
    for (index, byte) in value.iter().enumerate() {
        let letter = match byte {
            b'\\' => b'\\',
            b'\n' => b'n',
            b'\r' => b'r',
            b'\t' => b't',
            _ => continue,
        };
        out.put_slice(&value[plain..index]);
        out.put_slice(&[b'\\', letter]);
        plain = index + 1;
    }
    out.put_slice(&value[plain..]);
}

/// Deletes as many rows of each image as there are too many, and picks them among equal ones by their place.
fn remove(
    layout: &Layout,
    removed: &[(TupleData, i64)],
    steps: &mut Vec<Step>,
) -> Result<(), Mixed> {
    if layout.table.is_partitioned || layout.slots.is_empty() {
        return Err(Mixed); // a place says no partition; the exact order looks at both
    }
    let mut values = Values::new(&layout.table, layout.slots.iter().map(|slot| &slot.column));
    for (row, _) in removed {
        for ((_, array), cell) in values.columns.iter_mut().zip(row.cells()) {
            array.push(cell)?;
        }
    }
    let mut source = values.finish()?;
    let counted = source.counted_rows(removed.iter().map(|(_, count)| *count));
    let columns: Vec<String> =
        layout.slots.iter().map(|slot| format!("r.{}", Ident(&slot.column.name))).collect();
    let only = layout.table.only();
    let sql = format!(
        "DELETE FROM {only} AS t WHERE t.ctid = ANY (ARRAY(SELECT m.ctid FROM (\
         SELECT r.ctid, w.n, pg_catalog.row_number() OVER (PARTITION BY w.i) AS o \
         FROM (SELECT s.n, s.i, ROW({}) AS image FROM {counted}) AS w \
         JOIN (SELECT r.ctid, ROW({}) AS image FROM {only} AS r) AS r ON r.image OPERATOR(pg_catalog.*=) w.image) AS m \
         WHERE m.o <= m.n))",
        source.values.join(", "),
        columns.join(", "),
    );
    let parameters = source.parameters;
    let is_sorted = removed.len() >= SORTED_IMAGES;
    // Another text is another plan.
    let sql = if is_sorted { format!("{sql} /* sorted */") } else { sql };
    let rows = removed.iter().map(|(_, count)| u64::try_from(*count).unwrap_or(0)).sum();
    steps.push(Step::Execute {
        table: Arc::clone(&layout.table),
        sql,
        parameters,
        rows,
        is_sorted,
    });
    Ok(())
}
