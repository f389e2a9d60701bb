//! Changes of one table as COPY BINARY tuples, which the snapshot's decoder reads.
//!
//! **Invariant:** a column is found by its name in the description that the change carries. What the description lacks is
//! NULL, because the row is older than the column; what the plan lacks is left out, because the user did not choose it.
//! Of an old row that holds only a key nothing but the key is a value (`hazards.md` C44). A value that the source did not
//! send is filled from the old row where that has it, and named in `_unchanged` where it has not (E75).

use std::sync::Arc;

use tidemark_model::{
    Cell, Change, Column, OldRow, Operation, StreamRelation, TransactionHead, TupleData, TupleForm,
    Tuples,
};

use super::heads::{Head, Heads};
use super::table::StreamTable;
use crate::{Disposition, Error, Result};

/// Rows and bytes after which a block is decoded: what stays in the cache.
const BLOCK_ROWS: usize = 1024;
const BLOCK_BYTES: usize = 256 << 10;

/// Where the plan's columns are in a description.
#[derive(Debug)]
struct Binding {
    relation: Arc<StreamRelation>,
    /// For each column of the plan.
    columns: Vec<Option<usize>>,
    /// Whether an old row with only a key has the whole key.
    has_key: bool,
}

/// Rows on their way to the decoder.
#[derive(Debug)]
pub(super) struct Frame {
    binding: Option<Binding>,
    rows: Block,
    /// One for each row of a table with a key; NULLs where the row has no old key.
    keys: Block,
    has_old_key: Vec<bool>,
    heads: Heads,
}

#[derive(Debug, Default)]
struct Block {
    data: Vec<u8>,
    ends: Vec<u32>,
}

impl Block {
    fn begin_row(&mut self, columns: usize) {
        // A table has at most 1664.
        self.data.extend((columns as u16).to_be_bytes());
    }

    fn end_row(&mut self) {
        // A row has at most 1 GiB, and a block is taken when it is much smaller.
        self.ends.push(self.data.len() as u32);
    }

    fn take(&mut self) -> Tuples {
        let next = Self {
            data: Vec::with_capacity(self.data.len().min(BLOCK_BYTES)),
            ends: Vec::with_capacity(self.ends.len()),
        };
        let Self { data, ends } = std::mem::replace(self, next);
        Tuples { form: TupleForm::PgBinary, data: data.into(), ends }
    }
}

/// The cells of a change, kept so that a row costs no allocation.
#[derive(Debug, Default)]
pub(super) struct Scratch<'a> {
    new: Vec<Cell<'a>>,
    old: Vec<Cell<'a>>,
}

/// The cells of one row, and where to look for what was not sent.
#[derive(Clone, Copy)]
struct Image<'r, 'a> {
    cells: &'r [Cell<'a>],
    is_key_only: bool,
    fallback: Option<Old<'r, 'a>>,
}

/// The cells of an old row.
#[derive(Clone, Copy)]
struct Old<'r, 'a> {
    cells: &'r [Cell<'a>],
    is_key_only: bool,
}

/// A table, and where its columns are.
#[derive(Clone, Copy)]
struct Place<'t> {
    table: &'t StreamTable,
    binding: &'t Binding,
}

impl Frame {
    pub(super) fn new() -> Self {
        Self {
            binding: None,
            rows: Block::default(),
            keys: Block::default(),
            has_old_key: Vec::new(),
            heads: Heads::new(),
        }
    }

    pub(super) fn is_full(&self) -> bool {
        self.rows.ends.len() >= BLOCK_ROWS || self.rows.data.len() >= BLOCK_BYTES
    }

    /// Takes the rows, and their old keys.
    pub(super) fn take(&mut self) -> (Tuples, Tuples) {
        (self.rows.take(), self.keys.take())
    }

    /// What belongs to all rows since the last call: which have an old key, and the columns of ours.
    pub(super) fn take_heads(&mut self) -> (Vec<bool>, Heads) {
        let heads = std::mem::replace(&mut self.heads, Heads::new());
        (std::mem::take(&mut self.has_old_key), heads)
    }

    /// Appends the rows of a change, the first of them with this number; returns their kinds.
    pub(super) fn push<'a>(
        &mut self,
        table: &StreamTable,
        transaction: TransactionHead,
        change: &'a Change,
        seq: i64,
        scratch: &mut Scratch<'a>,
    ) -> Result<&'static [u8]> {
        let head = |operation, seq| Head { operation, seq, transaction };
        if let Operation::Truncate { .. } = change.operation {
            self.push_truncate(table, head(b't', seq));
            return Ok(b"t");
        }
        let binding = match self.binding.take() {
            Some(binding) if Arc::ptr_eq(&binding.relation, &change.relation) => binding,
            _ => Binding::new(table, &change.relation)?,
        };
        let place = Place { table, binding: &binding };
        let kinds: &[u8] = match &change.operation {
            Operation::Insert { new } => {
                place.read(new, &mut scratch.new)?;
                self.push_row(place, head(b'i', seq), Image::new(&scratch.new), None)?;
                b"i"
            }
            Operation::Update { old, new } => {
                place.read(new, &mut scratch.new)?;
                let old = match old {
                    Some(old) => Some(place.read_old(old, &mut scratch.old)?),
                    None => None,
                };
                if table.is_keyless() {
                    self.push_pair(
                        place,
                        (head(b'd', seq), head(b'i', seq + 1)),
                        &scratch.new,
                        old,
                    )?;
                    b"di"
                } else {
                    let key = old.filter(|old| place.key_differs(old.cells, &scratch.new));
                    let image = Image { fallback: old, ..Image::new(&scratch.new) };
                    self.push_row(place, head(b'u', seq), image, key)?;
                    b"u"
                }
            }
            Operation::Delete { old } => {
                let old = place.read_old(old, &mut scratch.old)?;
                let image = Image { is_key_only: old.is_key_only, ..Image::new(old.cells) };
                self.push_row(place, head(b'd', seq), image, Some(old))?;
                b"d"
            }
            Operation::Truncate { .. } => b"",
        };
        self.binding = Some(binding);
        Ok(kinds)
    }

    /// An update of a row that is told by all its columns: the old one goes, the new one comes.
    fn push_pair(
        &mut self,
        place: Place<'_>,
        (gone, come): (Head, Head),
        new: &[Cell<'_>],
        old: Option<Old<'_, '_>>,
    ) -> Result<()> {
        let Some(old) = old else {
            let attempt = "write an update without the old row to a table without a key";
            return Err(
                place.refuse(attempt, "set REPLICA IDENTITY FULL, or give it a primary key")
            );
        };
        self.push_row(place, gone, Image::new(old.cells), None)?;
        self.push_row(place, come, Image { fallback: Some(old), ..Image::new(new) }, None)
    }

    fn push_row(
        &mut self,
        place: Place<'_>,
        head: Head,
        image: Image<'_, '_>,
        old_key: Option<Old<'_, '_>>,
    ) -> Result<()> {
        let Place { table, binding } = place;
        self.rows.begin_row(table.forms.len());
        for (column, (form, at)) in table.forms.iter().zip(&binding.columns).enumerate() {
            let cell = at.map_or(Cell::Null, |at| image.cell(at, &binding.relation));
            if cell == Cell::Unchanged {
                let name = &table.plan.columns[column].name;
                if head.operation == b'i' {
                    return Err(place.unknown_value(name));
                }
                self.heads.push_unchanged(name);
            }
            form.push(cell, &mut self.rows.data).map_err(|error| error.on(table.name()))?;
        }
        self.rows.end_row();
        if !table.is_keyless() {
            self.keys.begin_row(table.key.len());
            for column in &table.key {
                let at = binding.columns[*column];
                let cell = old_key.zip(at).map_or(Cell::Null, |(old, at)| old.cells[at]);
                table.forms[*column]
                    .push(cell, &mut self.keys.data)
                    .map_err(|error| error.on(table.name()))?;
            }
            self.keys.end_row();
            self.has_old_key.push(old_key.is_some());
        }
        self.heads.push(head);
        Ok(())
    }

    fn push_truncate(&mut self, table: &StreamTable, head: Head) {
        let nulls = |block: &mut Block, columns: usize| {
            block.begin_row(columns);
            block.data.extend(std::iter::repeat_n(0xFF, 4 * columns));
            block.end_row();
        };
        nulls(&mut self.rows, table.forms.len());
        if !table.is_keyless() {
            nulls(&mut self.keys, table.key.len());
            self.has_old_key.push(false);
        }
        self.heads.push(head);
    }
}

impl<'r, 'a> Image<'r, 'a> {
    fn new(cells: &'r [Cell<'a>]) -> Self {
        Self { cells, is_key_only: false, fallback: None }
    }

    /// The cell at a position, or what is known of it from elsewhere.
    fn cell(&self, at: usize, relation: &StreamRelation) -> Cell<'a> {
        let is_identity = relation.columns[at].is_identity;
        if self.is_key_only && !is_identity {
            return Cell::Null;
        }
        match (self.cells[at], self.fallback) {
            (Cell::Unchanged, Some(old)) if !old.is_key_only || is_identity => old.cells[at],
            (cell, _) => cell,
        }
    }
}

impl Binding {
    fn new(table: &StreamTable, relation: &Arc<StreamRelation>) -> Result<Self> {
        let mut columns = Vec::with_capacity(table.forms.len());
        for (index, column) in table.plan.columns.iter().enumerate() {
            let at = relation.columns.iter().position(|known| known.name == column.name);
            match at {
                None => table.may_be_missing(index)?,
                Some(at) if relation.columns[at].type_oid != column.data_type.oid => {
                    let attempt = format!(
                        "write changes of column \"{}\", which is no longer of type {}",
                        column.name, column.type_name
                    );
                    return Err(Error::new(Disposition::Refused, attempt).on(table.name()).hint(
                        "the lake holds the old type: leave the column out, or make a new snapshot",
                    ));
                }
                Some(_) => {}
            }
            columns.push(at);
        }
        let is_sent =
            |column: &&Column| relation.columns.iter().any(|sent| sent.name == column.name);
        if let Some(column) = table.to_come.iter().find(is_sent) {
            let attempt = format!("write column \"{}\" before it was added", column.name);
            return Err(Error::new(Disposition::Internal, attempt).on(table.name()));
        }
        let is_identity =
            |column: &usize| columns[*column].is_some_and(|at| relation.columns[at].is_identity);
        let has_key = table.key.iter().all(is_identity);
        Ok(Self { relation: Arc::clone(relation), columns, has_key })
    }
}

impl Place<'_> {
    fn read<'a>(&self, tuple: &'a TupleData, cells: &mut Vec<Cell<'a>>) -> Result<()> {
        cells.clear();
        cells.extend(tuple.cells());
        if cells.len() == self.binding.relation.columns.len() {
            return Ok(());
        }
        let attempt = "read a row of the stream that has other columns than its description";
        Err(Error::new(Disposition::Internal, attempt).on(self.table.name()))
    }

    fn read_old<'r, 'a>(
        &self,
        old: &'a OldRow,
        cells: &'r mut Vec<Cell<'a>>,
    ) -> Result<Old<'r, 'a>> {
        self.read(old.tuple(), cells)?;
        let is_key_only = matches!(old, OldRow::Key(_));
        if is_key_only && (self.table.is_keyless() || !self.binding.has_key) {
            let attempt = "write a change whose old row does not have the key of the snapshot";
            return Err(self.refuse(
                attempt,
                "the table's replica identity was changed: set it back, or make a new snapshot",
            ));
        }
        Ok(Old { cells, is_key_only })
    }

    /// Whether the old row has another key. A cell that was not sent is as before.
    fn key_differs(&self, old: &[Cell<'_>], new: &[Cell<'_>]) -> bool {
        let mut cells = self.table.key.iter().filter_map(|column| self.binding.columns[*column]);
        cells.any(|at| new[at] != Cell::Unchanged && new[at] != old[at])
    }

    fn refuse(&self, attempt: &str, hint: &str) -> Error {
        Error::new(Disposition::Refused, attempt).on(self.table.name()).hint(hint)
    }

    fn unknown_value(&self, column: &str) -> Error {
        let attempt = format!("write a new row without its value of column \"{column}\"");
        self.refuse(
            &attempt,
            "the row filter let an updated row in whose large values the source did not send:              set REPLICA IDENTITY FULL on the table, or take the filter away",
        )
    }
}
