//! Hashes the rows of a table as COPY wrote them.
//!
//! **Invariant:** the sums depend on the multiset of rows, the scheme and the key, not on how the rows were cut into
//! batches or chunks. The sum of the leaves is the sum of the table. After an error the hasher counts for nothing.
//!
//! The raw sum has one of three schemes ([`RawScheme`]); only sums of one scheme, over the same SELECT list, can be
//! compared. The value sum is always over the canonical value form.
//!
//! Why one-shot XXH3: it is three times as fast as its streaming form on rows of 100 to 300 bytes.

use serde::{Deserialize, Serialize};
use tidemark_model::{Column, LeafSum, RowSum, TupleForm, Tuples, Wire};

use crate::canonical::{Encoder, Form, Quick, RowBuffer, SHORT};
use crate::lake;
use crate::locate::{Feeding, Join, KeyPart, Read};
use crate::program::{Fault, Op};
use crate::{
    DigestKey, Error, KeyCode, KeyPlan, LeafBounds, LocatedForm, Locator, Result, is_tuple_stable,
};

/// What is summed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Forms {
    /// The raw sum, by the fastest scheme that the columns allow; the value sum is the same.
    Raw,
    /// The raw sum in the canonical form, for two sides whose columns differ in order or width; the value sum is the same.
    RawCanonical,
    /// Both sums.
    RawAndValue,
    /// Both sums, the raw one in the canonical form, for two sides whose columns differ in order or width.
    CanonicalAndValue,
}

/// What the raw hash of a row is taken over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RawScheme {
    /// The line of COPY text without its line feed.
    TextLine,
    /// The tuple of COPY BINARY.
    Tuple,
    /// The canonical form.
    Canonical,
}

/// One column of the SELECT list.
#[derive(Debug, Clone, Copy)]
pub struct DigestColumn<'a> {
    /// The column.
    pub column: &'a Column,
    /// How it is selected.
    pub wire: Wire,
}

/// Length of a field that is NULL.
const NULL: u32 = u32::MAX;

/// Where a field is in its row.
#[derive(Debug, Clone, Copy, Default)]
struct Field {
    at: u32,
    len: u32,
}

/// How one field becomes a cell.
#[derive(Debug)]
struct Cell {
    field: usize,
    quick: Quick,
    op: Op,
}

/// What feeds a locator.
#[derive(Debug)]
struct Feed {
    locator: Feeding,
    of: LocatedForm,
    /// In key order.
    key: Vec<KeyColumn>,
}

/// A key column: its number in the SELECT list.
#[derive(Debug)]
struct KeyColumn {
    field: usize,
    op: Op,
    read: Read,
}

impl Feed {
    #[inline]
    fn hash(&self, sum: &RowSum) -> u128 {
        match self.of {
            LocatedForm::Raw => sum.raw,
            LocatedForm::Value => sum.value,
        }
    }
}

/// What a locator knows of one row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NamedRow {
    /// Its number in the batch.
    pub row: usize,
    /// Its leaf.
    pub leaf: u32,
    /// The code of its key; `None` if it has none.
    pub code: Option<KeyCode>,
    /// Its hashes.
    pub sum: RowSum,
}

/// A row that cannot be hashed: the column's number if it is one column's fault.
struct BadRow(Option<usize>, Fault);

impl From<Fault> for BadRow {
    fn from(fault: Fault) -> Self {
        Self(None, fault)
    }
}

/// Whether the value sum of these columns may be another one than the raw sum: some type has values that are equal and
/// look different.
pub fn has_value_form(columns: &[DigestColumn<'_>]) -> bool {
    columns.iter().any(|of| Op::of(&of.column.data_type, of.wire).has_two_forms())
}

/// Hashes the rows of one table.
#[derive(Debug)]
pub struct RowHasher {
    form: TupleForm,
    raw: RawScheme,
    /// Whether the value hash is another one than the raw hash.
    has_value: bool,
    key: DigestKey,
    names: Vec<String>,
    /// In the byte order of the column names.
    cells: Vec<Cell>,
    /// In the order of the SELECT list: bytes of every value, or 0 if they vary.
    widths: Vec<u32>,
    fields: Vec<Field>,
    row: RowBuffer,
    leaves: LeafBounds,
    key_is_text: bool,
    near: usize,
    sums: Vec<RowSum>,
    /// Rows with a value that was replaced.
    replaced_rows: u64,
    feed: Option<Box<Feed>>,
}

impl RowHasher {
    /// Prepares for rows of these columns.
    ///
    /// # Errors
    /// Value forms were asked of text rows, or the leaf key is none of the columns.
    pub fn compile(
        columns: &[DigestColumn<'_>],
        form: TupleForm,
        forms: Forms,
        key: &DigestKey,
        leaves: LeafBounds,
    ) -> Result<Self> {
        let op = |of: &DigestColumn<'_>| Op::of(&of.column.data_type, of.wire);
        Self::with_ops((columns, op), form, forms, key, leaves)
    }

    /// Prepares for binary rows of these columns that are to be compared with those of a lake, in both forms;
    /// `replaces`: values without a form there stand as NULL. The leaf is the table.
    ///
    /// # Errors
    /// There are too many columns.
    pub fn compile_for_lake(
        columns: &[DigestColumn<'_>],
        replaces: bool,
        key: &DigestKey,
    ) -> Result<Self> {
        let op = |of: &DigestColumn<'_>| lake::op(of, replaces);
        let forms = Forms::CanonicalAndValue;
        Self::with_ops((columns, op), TupleForm::PgBinary, forms, key, LeafBounds::single())
    }

    fn with_ops(
        (columns, op): (&[DigestColumn<'_>], impl Fn(&DigestColumn<'_>) -> Op),
        form: TupleForm,
        forms: Forms,
        key: &DigestKey,
        leaves: LeafBounds,
    ) -> Result<Self> {
        let key_index = leaves.key_index();
        if columns.len() > 1600 || key_index.is_some_and(|index| index >= columns.len()) {
            return Err(Error::Columns { columns: columns.len() });
        }
        let mut cells: Vec<Cell> = columns
            .iter()
            .enumerate()
            .map(|(field, of)| {
                let op = op(of);
                Cell { field, quick: op.quick(), op }
            })
            .collect();
        let wants_value = matches!(forms, Forms::RawAndValue | Forms::CanonicalAndValue);
        let has_value = wants_value && cells.iter().any(|c| c.op.has_two_forms());
        let raw = match (form, forms) {
            (TupleForm::PgText, Forms::Raw) => RawScheme::TextLine,
            (TupleForm::PgText, _) => return Err(Error::TextHasNoValueForm),
            (_, Forms::Raw) if is_tuple_stable(columns) => RawScheme::Tuple,
            (_, Forms::RawAndValue) if has_value && is_tuple_stable(columns) => RawScheme::Tuple,
            _ => RawScheme::Canonical,
        };
        let widths = cells.iter().map(|cell| cell.op.fixed_width()).collect();
        cells.sort_by_key(|cell| columns[cell.field].column.name.as_bytes());
        Ok(Self {
            form,
            raw,
            has_value,
            key: key.clone(),
            names: columns.iter().map(|of| of.column.name.clone()).collect(),
            cells,
            widths,
            fields: vec![Field::default(); columns.len()],
            row: RowBuffer::new(),
            key_is_text: key_index.is_some_and(|index| columns[index].wire == Wire::CastToText),
            near: 0,
            sums: vec![RowSum::default(); leaves.leaf_count()],
            leaves,
            replaced_rows: 0,
            feed: None,
        })
    }

    /// Feeds a locator with every row from now on. `key` are the numbers of the key columns in the SELECT list, in the
    /// order of the locator's plan.
    ///
    /// # Errors
    /// The locator is of another key, or has seen hashes of another kind.
    pub fn locate(mut self, mut locator: Locator, key: &[usize], of: LocatedForm) -> Result<Self> {
        let columns = key.len();
        let mut found = Vec::with_capacity(columns);
        for field in key {
            let cell = self.cells.iter().find(|cell| cell.field == *field);
            let op = cell.ok_or(Error::LocatorKey { columns })?.op.clone();
            let is_text =
                self.form == TupleForm::PgText || matches!(op, Op::Text | Op::Char | Op::Xml);
            let read = if is_text { Read::Text } else { Read::Binary };
            found.push(KeyColumn { field: *field, op, read });
        }
        if columns != locator.plan().column_count() {
            return Err(Error::LocatorKey { columns });
        }
        let of = if self.has_value { of } else { LocatedForm::Raw };
        let scheme = if of == LocatedForm::Value { RawScheme::Canonical } else { self.raw };
        locator.begin(&self.key, (of, scheme))?;
        self.feed = Some(Box::new(Feed { locator: Feeding::new(locator), of, key: found }));
        Ok(self)
    }

    /// The locator, with all rows so far.
    pub fn take_locator(&mut self) -> Option<Locator> {
        self.feed.take().map(|feed| feed.locator.finish())
    }

    /// What the raw sum is taken over; kept beside the sum, because only sums of one scheme can be compared.
    pub fn raw_scheme(&self) -> RawScheme {
        self.raw
    }

    /// Whether the value sum is another one than the raw sum.
    pub fn has_value_sum(&self) -> bool {
        self.has_value
    }

    /// Rows that have a value without a form in the lake, which stands as NULL.
    pub fn replaced_rows(&self) -> u64 {
        self.replaced_rows
    }

    /// Names of the columns whose type has no canonical form of its own: their bytes are compared as the send function
    /// writes them. To be listed in a report.
    pub fn opaque_columns(&self) -> impl Iterator<Item = &str> {
        let opaque = |cell: &&Cell| cell.op == Op::Opaque;
        self.cells.iter().filter(opaque).map(|cell| self.names[cell.field].as_str())
    }

    /// Hashes the rows of a batch.
    ///
    /// # Errors
    /// The batch is not in the form that the hasher was made for, or a row is malformed.
    pub fn add(&mut self, tuples: &Tuples) -> Result<()> {
        match self.feed.take() {
            None => self.each(tuples, |hasher, row, window| hasher.add_row(row, window).map(drop)),
            Some(mut feed) => {
                let added = self.each(tuples, |hasher, row, window| {
                    let sum = hasher.add_row(row, window)?;
                    let hash = feed.hash(&sum);
                    let code = hasher.key_code(feed.locator.plan(), &feed.key, row, hash)?;
                    feed.locator.add(code, hash);
                    Ok(())
                });
                self.feed = Some(feed);
                added
            }
        }
    }

    /// Says of every row of a batch by which name the locator knows it, without adding it to anything. For the second
    /// reading of leaves in which there are keys that were hashed, and for tables without a key.
    ///
    /// # Errors
    /// As [`add`](Self::add), or there is no locator.
    pub fn name_rows(&mut self, tuples: &Tuples, mut name: impl FnMut(NamedRow)) -> Result<()> {
        let feed = self.feed.take().ok_or(Error::LocatorKey { columns: 0 })?;
        let mut number = 0;
        let named = self.each(tuples, |hasher, row, window| {
            let sum = hasher.hash_row(row, window)?;
            let leaf = hasher.near as u32;
            let code = hasher.key_code(feed.locator.plan(), &feed.key, row, feed.hash(&sum))?;
            name(NamedRow { row: number, leaf, code, sum });
            number += 1;
            Ok(())
        });
        self.feed = Some(feed);
        named
    }

    /// Calls with each row of a batch, and with the row and what follows it.
    #[inline]
    fn each(
        &mut self,
        tuples: &Tuples,
        mut row_and_window: impl FnMut(&mut Self, &[u8], &[u8]) -> Result<(), BadRow>,
    ) -> Result<()> {
        if tuples.form != self.form {
            return Err(Error::OtherForm);
        }
        let mut start = 0;
        for (number, &end) in tuples.ends.iter().enumerate() {
            let end = end as usize;
            let row = tuples.data.get(start..end).ok_or_else(|| malformed(tuples))?;
            let window = &tuples.data[start..];
            row_and_window(self, row, window).map_err(|bad| self.error(number, bad))?;
            start = end;
        }
        if start == tuples.data.len() { Ok(()) } else { Err(malformed(tuples)) }
    }

    /// The sum of all rows so far.
    pub fn sum(&self) -> RowSum {
        let mut sum = RowSum::default();
        for leaf in &self.sums {
            sum += *leaf;
        }
        sum
    }

    /// The sum of all rows, and of each leaf that has rows.
    pub fn finish(self) -> (RowSum, Vec<LeafSum>) {
        let leaves = (0_u32..)
            .zip(&self.sums)
            .filter(|(_, sum)| sum.count > 0)
            .map(|(leaf, sum)| LeafSum { leaf, sum: *sum })
            .collect();
        (self.sum(), leaves)
    }

    #[expect(clippy::inline_always, reason = "called once per row from two loops; measured")]
    #[inline(always)]
    fn add_row(&mut self, row: &[u8], window: &[u8]) -> Result<RowSum, BadRow> {
        let sum = self.hash_row(row, window)?;
        self.sums[self.near] += sum;
        Ok(sum)
    }

    /// The hashes of a row; its leaf is `near` then.
    #[expect(clippy::inline_always, reason = "called once per row from two loops; measured")]
    #[inline(always)]
    fn hash_row(&mut self, row: &[u8], window: &[u8]) -> Result<RowSum, BadRow> {
        let raw = match self.raw {
            RawScheme::TextLine => {
                let line = row.strip_suffix(b"\n").ok_or("a line without its line feed")?;
                self.key.hash(line)
            }
            RawScheme::Tuple => {
                check_count(row, self.widths.len())?;
                self.key.hash(row)
            }
            RawScheme::Canonical => {
                walk(row, &self.widths, &mut self.fields)?;
                let raw = self.canonical(row, window, Form::Raw)?;
                self.replaced_rows += u64::from(self.row.has_replaced());
                raw
            }
        };
        let value = if self.has_value {
            if self.raw == RawScheme::Tuple {
                walk(row, &self.widths, &mut self.fields)?;
            }
            self.canonical(row, window, Form::Value)?
        } else {
            raw
        };
        if let Some(index) = self.leaves.key_index() {
            self.near = self.leaf(row, index)?;
        }
        Ok(RowSum { count: 1, raw, value })
    }

    /// The code of a row's key, once the row was hashed; `None` if it has none.
    #[expect(clippy::inline_always, reason = "called once per row from two loops; measured")]
    #[inline(always)]
    fn key_code(
        &mut self,
        plan: &KeyPlan,
        key: &[KeyColumn],
        row: &[u8],
        hash: u128,
    ) -> Result<Option<KeyCode>, BadRow> {
        if key.is_empty() {
            return Ok(Some(KeyCode::of_row(hash)));
        }
        // The usual key, without a detour.
        if let ([KeyPart::Int8], [column]) = (plan.parts(), key)
            && column.read == Read::Binary
        {
            let number = match *binary_field(row, column.field)?.unwrap_or_default() {
                [a, b, c, d] => i32::from_be_bytes([a, b, c, d]).into(),
                [a, b, c, d, e, f, g, h] => i64::from_be_bytes([a, b, c, d, e, f, g, h]),
                _ => return self.joined_key(plan, key, row),
            };
            return Ok(Some(KeyCode::of_number(number)));
        }
        if plan.parts().is_empty() {
            return self.hashed_key(key, row).map(Some);
        }
        self.joined_key(plan, key, row)
    }

    /// The code of a key of values.
    #[inline]
    fn joined_key(
        &self,
        plan: &KeyPlan,
        key: &[KeyColumn],
        row: &[u8],
    ) -> Result<Option<KeyCode>, BadRow> {
        let mut join = Join::default();
        for (part, column) in plan.parts().iter().zip(key) {
            let blame = |fault| BadRow(Some(column.field), fault);
            let has_code = if self.form == TupleForm::PgText {
                let field = text_field(row, column.field)?;
                join.push(*part, field.as_deref(), column.read)
            } else {
                join.push(*part, binary_field(row, column.field)?, column.read)
            };
            if !has_code.map_err(blame)? {
                return Ok(None);
            }
        }
        Ok(Some(join.code()))
    }

    /// Binary keys are hashed in the canonical value form, so that 1.0 and 1.00 are one key. Of COPY text, which is
    /// compared as it is, the fields with their escapes.
    fn hashed_key(&mut self, key: &[KeyColumn], row: &[u8]) -> Result<KeyCode, BadRow> {
        self.row.clear();
        for column in key {
            if self.form == TupleForm::PgText {
                self.row.append(escaped_field(row, column.field)?);
                self.row.append(b"\t");
                continue;
            }
            let mut out = Encoder::new(&mut self.row, Form::Value);
            match binary_field(row, column.field)? {
                None => out.push_null(column.op.tag()),
                Some(field) => column
                    .op
                    .push(field, &mut out)
                    .map_err(|fault| BadRow(Some(column.field), fault))?,
            }
        }
        Ok(KeyCode::of_hash(self.near as u32, self.key.hash(self.row.as_slice())))
    }

    /// `window` is the row and what follows it in the batch: a short value is copied together with bytes behind it, which
    /// the next cell overwrites.
    #[inline]
    fn canonical(&mut self, row: &[u8], window: &[u8], form: Form) -> Result<u128, BadRow> {
        self.row.begin(self.cells.len() * (2 + SHORT));
        let mut out = Encoder::new(&mut self.row, form);
        for cell in &self.cells {
            let Field { at, len } = self.fields[cell.field];
            if len == NULL {
                out.push_null(cell.op.tag());
                continue;
            }
            let (at, len) = (at as usize, len as usize);
            let behind = window.get(at..).and_then(<[u8]>::first_chunk::<SHORT>);
            if behind.is_some_and(|field| out.push_quick(cell.quick, field, len)) {
                continue;
            }
            let field = row.get(at..at + len);
            let field = field.ok_or(BadRow(Some(cell.field), TRUNCATED))?;
            cell.op.push(field, &mut out).map_err(|fault| BadRow(Some(cell.field), fault))?;
        }
        Ok(self.key.hash(self.row.as_slice()))
    }

    #[inline]
    fn leaf(&self, row: &[u8], index: usize) -> Result<usize, BadRow> {
        let blame = |fault| BadRow(Some(index), fault);
        if self.form == TupleForm::PgText {
            return match text_field(row, index)? {
                None => Ok(0),
                Some(text) => self.leaves.leaf_of_text(&text, self.near).map_err(blame),
            };
        }
        match binary_field(row, index)? {
            None => Ok(0),
            Some(field) if self.key_is_text => {
                self.leaves.leaf_of_text(field, self.near).map_err(blame)
            }
            Some(field) => self.leaves.leaf_of_binary(field, self.near).map_err(blame),
        }
    }

    #[cold]
    fn error(&self, row: usize, BadRow(column, what): BadRow) -> Error {
        match column {
            None => Error::MalformedRow { row, what },
            Some(column) => Error::MalformedField { row, column: self.names[column].clone(), what },
        }
    }
}

const TRUNCATED: Fault = "the row is shorter or longer than its fields";

#[cold]
fn malformed(tuples: &Tuples) -> Error {
    Error::MalformedBatch { rows: tuples.ends.len() }
}

#[inline]
fn check_count(row: &[u8], count: usize) -> Result<(), Fault> {
    match row {
        [a, b, ..] if usize::from(u16::from_be_bytes([*a, *b])) == count => Ok(()),
        _ => Err("the number of fields is not the number of columns"),
    }
}

/// Finds the fields of a binary tuple and checks that they fill it exactly.
#[inline]
fn walk(row: &[u8], widths: &[u32], fields: &mut [Field]) -> Result<(), Fault> {
    check_count(row, widths.len())?;
    let mut at = 2;
    for (field, &width) in fields.iter_mut().zip(widths) {
        let len =
            u32::from_be_bytes(*row.get(at..).and_then(<[u8]>::first_chunk).ok_or(TRUNCATED)?);
        at += 4;
        *field = Field { at: at as u32, len };
        // A length that does not lie ends here: `at` only grows, so the next field or the end is missed.
        if len == width {
            at += width as usize;
        } else if len != NULL {
            at += len as usize;
        }
    }
    if at == row.len() { Ok(()) } else { Err(TRUNCATED) }
}

/// One field of a binary tuple; `None` is NULL.
#[inline]
fn binary_field(row: &[u8], index: usize) -> Result<Option<&[u8]>, Fault> {
    let mut rest = row.get(2..).ok_or(TRUNCATED)?;
    for _ in 0..index {
        let (len, after) = rest.split_first_chunk().ok_or(TRUNCATED)?;
        let len = u32::from_be_bytes(*len);
        let skip = if len == NULL { 0 } else { len as usize };
        rest = after.get(skip..).ok_or(TRUNCATED)?;
    }
    let (len, after) = rest.split_first_chunk().ok_or(TRUNCATED)?;
    match u32::from_be_bytes(*len) {
        NULL => Ok(None),
        len => after.get(..len as usize).map(Some).ok_or(TRUNCATED),
    }
}

/// One field of a line of COPY text as it is written.
fn escaped_field(line: &[u8], index: usize) -> Result<&[u8], Fault> {
    let mut rest = line.strip_suffix(b"\n").unwrap_or(line);
    for _ in 0..index {
        let tab = memchr::memchr(b'\t', rest).ok_or("a line with too few fields")?;
        rest = &rest[tab + 1..];
    }
    Ok(&rest[..memchr::memchr(b'\t', rest).unwrap_or(rest.len())])
}

/// One field of a line of COPY text without its escapes; `None` is NULL.
fn text_field(line: &[u8], index: usize) -> Result<Option<std::borrow::Cow<'_, [u8]>>, Fault> {
    let field = escaped_field(line, index)?;
    if field == b"\\N" {
        return Ok(None);
    }
    if memchr::memchr(b'\\', field).is_none() {
        return Ok(Some(field.into()));
    }
    let mut plain = Vec::with_capacity(field.len());
    let mut bytes = field.iter();
    while let Some(&byte) = bytes.next() {
        let unescaped = match byte {
            b'\\' => match bytes.next().ok_or("a line that ends in an escape")? {
                b'b' => 0x08,
                b'f' => 0x0c,
                b'n' => b'\n',
                b'r' => b'\r',
                b't' => b'\t',
                b'v' => 0x0b,
                other => *other,
            },
            byte => byte,
        };
        plain.push(unescaped);
    }
    Ok(Some(plain.into()))
}
