//! Rows of a batch as hashes.
//!
//! **Invariant:** a row of the lake has the bytes that the same row of the source has: the cells of all columns in the byte
//! order of their names. A column that a file does not have is what the row of then has in it: its default, or NULL.

use arrow_array::cast::AsArray as _;
use arrow_array::types::{Int64Type, UInt64Type};
use arrow_array::{Array as _, ArrayRef, ListArray, PrimitiveArray, RecordBatch, StringArray};
use arrow_buffer::NullBuffer;
use tidemark_digest::canonical::{Encoder, Form, RowBuffer};
use tidemark_digest::{DigestKey, KeyCode};
use tidemark_model::{DataType, RowSum, Wire};

use super::Trouble;
use super::cells::{Cell, Fault, Values};

/// A column that counts.
#[derive(Debug, Clone)]
pub(super) struct FormColumn {
    pub(super) name: String,
    pub(super) data_type: DataType,
    pub(super) typmod: i32,
    pub(super) wire: Wire,
    /// Its cell in rows of files that do not have it, in both forms.
    pub(super) absent: [Vec<u8>; 2],
    /// The text of its value there; `None` is NULL.
    pub(super) absent_text: Option<String>,
}

/// What is hashed of a table's rows.
#[derive(Debug, Clone)]
pub(super) struct RowForm {
    /// In the byte order of their names.
    pub(super) columns: Vec<FormColumn>,
    /// Whether they are hashed, or read only where they are the key.
    pub(super) is_hashed: bool,
    /// The places of the key's columns, in key order.
    pub(super) key: Vec<usize>,
    /// Whether values that are equal may look different.
    pub(super) has_value: bool,
}

impl RowForm {
    /// Whether a column of the table's files is read.
    pub(super) fn wants(&self, name: &str) -> bool {
        let at = self.columns.iter().position(|column| column.name == name);
        at.is_some_and(|at| self.is_hashed || self.key.contains(&at))
    }

    fn cell(&self, at: usize, field: &arrow_schema::DataType) -> Option<Cell> {
        let column = &self.columns[at];
        Cell::of((&column.data_type, column.typmod), column.wire, field)
    }
}

/// The rows of one batch.
pub(super) struct Rows<'f> {
    form: &'f RowForm,
    path: &'f str,
    columns: Vec<Option<Values>>,
    pub(super) count: usize,
}

impl<'f> Rows<'f> {
    pub(super) fn of(
        form: &'f RowForm,
        path: &'f str,
        batch: &RecordBatch,
    ) -> Result<Self, Trouble> {
        let columns = (0..form.columns.len()).map(|at| {
            let column = &form.columns[at];
            let Some(array) = batch.column_by_name(&column.name) else { return Ok(None) };
            bind(form, at, array).map(Some).ok_or_else(|| untyped(path, &column.name, array))
        });
        let columns = columns.collect::<Result<_, _>>()?;
        Ok(Self { form, path, columns, count: batch.num_rows() })
    }

    fn blame(&self, at: usize, fault: Fault) -> Trouble {
        let column = &self.form.columns[at].name;
        Trouble::Table(format!("{}: column {column:?} has {fault}", self.path))
    }
}

fn bind(form: &RowForm, at: usize, array: &ArrayRef) -> Option<Values> {
    form.cell(at, array.data_type())?.bind(array)
}

fn untyped(path: &str, column: &str, array: &ArrayRef) -> Trouble {
    let found = array.data_type();
    Trouble::Table(format!(
        "{path}: column {column:?} is of type {found}, which is not the lake's form of its PostgreSQL type"
    ))
}

/// What the rows of a change file say of themselves.
pub(super) struct Heads {
    pub(super) operation: StringArray,
    pub(super) lsn: PrimitiveArray<UInt64Type>,
    pub(super) seq: PrimitiveArray<Int64Type>,
    old_key: Option<(Option<NullBuffer>, Vec<Values>)>,
    unchanged: ListArray,
    /// The names of all rows.
    names: StringArray,
}

pub(super) const HEADS: [&str; 5] = ["_op", "_commit_lsn", "_seq", "_old_key", "_unchanged"];

impl Heads {
    pub(super) fn of(form: &RowForm, path: &str, batch: &RecordBatch) -> Result<Self, Trouble> {
        let heads = || {
            let column = |name: &str| batch.column_by_name(name);
            let unchanged = column("_unchanged")?.as_list_opt::<i32>()?.clone();
            let old_key = match column("_old_key") {
                None => None,
                Some(array) => {
                    let parts = array.as_struct_opt()?;
                    let bound = form
                        .key
                        .iter()
                        .map(|at| bind(form, *at, parts.column_by_name(&form.columns[*at].name)?));
                    Some((array.nulls().cloned(), bound.collect::<Option<Vec<_>>>()?))
                }
            };
            Some(Self {
                operation: column("_op")?.as_string_opt::<i32>()?.clone(),
                lsn: column("_commit_lsn")?.as_primitive_opt()?.clone(),
                seq: column("_seq")?.as_primitive_opt()?.clone(),
                names: unchanged.values().as_string_opt::<i32>()?.clone(),
                unchanged,
                old_key,
            })
        };
        heads().ok_or_else(|| {
            Trouble::Table(format!("{path} does not have the columns of a file of changes"))
        })
    }

    /// The columns of the row's form whose values were not sent.
    pub(super) fn unchanged(&self, form: &RowForm, row: usize) -> Vec<usize> {
        let offsets = self.unchanged.value_offsets();
        let names = (offsets[row]..offsets[row + 1]).map(|at| self.names.value(at as usize));
        let place = |name: &str| form.columns.iter().position(|column| column.name == name);
        names.filter(|_| form.is_hashed).filter_map(place).collect()
    }

    pub(super) fn has_unchanged(&self, row: usize) -> bool {
        let offsets = self.unchanged.value_offsets();
        offsets[row] != offsets[row + 1]
    }
}

/// A row that is there.
pub(super) enum Image<'a> {
    /// As it is in a batch.
    Read(&'a Rows<'a>, usize),
    /// Put together from several changes.
    Joined(&'a Partial),
}

/// Hashes rows; its buffer serves all of them.
pub(super) struct Hasher<'f> {
    form: &'f RowForm,
    key: DigestKey,
    buffer: RowBuffer,
    /// The columns whose text is wanted.
    shown: &'f [usize],
}

/// The text of a value; `None` inside is NULL.
pub(super) type Text = Result<Option<Box<[u8]>>, Fault>;

/// A row of which not all values are known yet.
pub(super) struct Partial {
    cells: Vec<Option<Known>>,
    missing: usize,
    pub(super) bytes: u64,
}

/// A value of such a row.
#[derive(Clone)]
struct Known {
    /// Its cell in both forms.
    cells: [Box<[u8]>; 2],
    /// Where it is wanted.
    text: Option<Text>,
}

impl Partial {
    pub(super) fn is_whole(&self) -> bool {
        self.missing == 0
    }
}

impl<'f> Hasher<'f> {
    /// `shown`: the columns whose text is wanted.
    pub(super) fn new(form: &'f RowForm, key: DigestKey, shown: &'f [usize]) -> Self {
        Self { form, key, buffer: RowBuffer::new(), shown }
    }

    pub(super) fn form(&self) -> &'f RowForm {
        self.form
    }

    /// The sum of one row.
    pub(super) fn sum(&mut self, image: &Image<'_>) -> Result<RowSum, Trouble> {
        let raw = self.hash(image, Form::Raw)?;
        let value = match self.form.has_value {
            true => self.hash(image, Form::Value)?,
            false => raw,
        };
        Ok(RowSum { count: 1, raw, value })
    }

    fn hash(&mut self, image: &Image<'_>, form: Form) -> Result<u128, Trouble> {
        self.buffer.clear();
        if self.form.is_hashed {
            for at in 0..self.form.columns.len() {
                self.push(image, at, form)?;
            }
        }
        Ok(self.key.hash(self.buffer.as_slice()))
    }

    /// Appends the cell of a column to the buffer.
    fn push(&mut self, image: &Image<'_>, at: usize, form: Form) -> Result<(), Trouble> {
        let mut out = Encoder::new(&mut self.buffer, form);
        let of_form = usize::from(form == Form::Value);
        match image {
            Image::Read(rows, row) => match &rows.columns[at] {
                Some(values) => {
                    values.push(*row, &mut out).map_err(|fault| rows.blame(at, fault))?
                }
                None => out.push_cell(&self.form.columns[at].absent[of_form]),
            },
            Image::Joined(partial) => {
                partial.cells[at].iter().for_each(|known| out.push_cell(&known.cells[of_form]));
            }
        }
        Ok(())
    }

    /// The cell of a column.
    pub(super) fn cell(
        &mut self,
        image: &Image<'_>,
        at: usize,
        form: Form,
    ) -> Result<&[u8], Trouble> {
        self.buffer.clear();
        self.push(image, at, form)?;
        Ok(self.buffer.as_slice())
    }

    /// The text of a column that is shown.
    pub(super) fn text(&self, image: &Image<'_>, at: usize) -> Text {
        match image {
            Image::Read(rows, row) => match &rows.columns[at] {
                Some(values) => {
                    let mut text = Vec::new();
                    Ok(values.print(*row, &mut text)?.then(|| text.into()))
                }
                None => {
                    let text = self.form.columns[at].absent_text.as_deref();
                    Ok(text.map(|text| text.as_bytes().into()))
                }
            },
            Image::Joined(partial) => {
                let known = partial.cells[at].as_ref();
                known.and_then(|known| known.text.clone()).unwrap_or(Ok(None))
            }
        }
    }

    /// The name of a row among those of both sides, by these columns.
    pub(super) fn name(&mut self, image: &Image<'_>, by: &[usize]) -> Result<u128, Trouble> {
        self.buffer.clear();
        by.iter().try_for_each(|at| self.push(image, *at, Form::Value))?;
        Ok(KeyCode::of_cells(&self.key, self.buffer.as_slice()).number())
    }

    /// The code of a row's key.
    pub(super) fn code(&mut self, rows: &Rows<'_>, row: usize) -> Result<u128, Trouble> {
        self.buffer.clear();
        let form = self.form;
        for at in &form.key {
            self.push(&Image::Read(rows, row), *at, Form::Raw)?;
        }
        Ok(self.key.hash(self.buffer.as_slice()))
    }

    /// The code of the key that a row had before, where the change says it.
    pub(super) fn old_code(
        &mut self,
        rows: &Rows<'_>,
        heads: &Heads,
        row: usize,
    ) -> Result<Option<u128>, Trouble> {
        let Some((nulls, values)) = &heads.old_key else { return Ok(None) };
        if nulls.as_ref().is_some_and(|nulls| nulls.is_null(row)) {
            return Ok(None);
        }
        self.buffer.clear();
        for (at, values) in self.form.key.iter().zip(values) {
            let mut out = Encoder::new(&mut self.buffer, Form::Raw);
            values.push(row, &mut out).map_err(|fault| rows.blame(*at, fault))?;
        }
        Ok(Some(self.key.hash(self.buffer.as_slice())))
    }

    /// Nothing is known of a row.
    pub(super) fn partial(&self) -> Partial {
        let missing = self.form.columns.len();
        Partial { cells: vec![None; missing], missing, bytes: 64 * missing as u64 }
    }

    /// Takes what is not known yet from an earlier image of the row.
    pub(super) fn fill(
        &mut self,
        partial: &mut Partial,
        (rows, row): (&Rows<'_>, usize),
        unchanged: &[usize],
    ) -> Result<(), Trouble> {
        for at in 0..partial.cells.len() {
            if partial.cells[at].is_some() || unchanged.contains(&at) {
                continue;
            }
            let image = Image::Read(rows, row);
            let cells: [Box<[u8]>; 2] = [
                self.cell(&image, at, Form::Raw)?.into(),
                self.cell(&image, at, Form::Value)?.into(),
            ];
            let text = self.shown.contains(&at).then(|| self.text(&image, at));
            partial.bytes += cells.iter().map(|cell| cell.len() as u64).sum::<u64>();
            partial.bytes +=
                text.iter().flatten().flatten().map(|text| text.len() as u64).sum::<u64>();
            partial.cells[at] = Some(Known { cells, text });
            partial.missing -= 1;
        }
        Ok(())
    }
}
