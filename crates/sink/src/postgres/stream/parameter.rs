//! Values as parameters of statements, as the stream carried them.
//!
//! **Invariant:** bytes are passed on, never decoded: binary cells as elements of a binary array of the target column's own
//! type, text cells as elements of `text[]` that the statement casts, so that the target's input function reads them.
//!
//! PostgreSQL's `array_recv`: dimensions, a flag for nulls, the element's OID, then per dimension its length and lower bound,
//! then per element its length (-1 for NULL) and bytes.

use std::error::Error as StdError;
use std::fmt;

use bytes::{BufMut, Bytes, BytesMut};
use tidemark_model::{Cell, Oid};
use tidemark_wire::tokio_postgres::types::{Format, IsNull, ToSql, Type, to_sql_checked};

/// `pg_type.oid` of `text`.
const TEXT: Oid = 25;
/// Bytes of an array before its first element.
const HEADER: usize = 20;

/// How a value is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// By the type's output function.
    Text,
    /// By the type's send function.
    Binary,
}

/// A parameter in the form in which it is sent. Its `Debug` shows no value.
#[derive(Clone)]
pub(super) struct Parameter {
    value: Option<Bytes>,
    form: Form,
}

impl Parameter {
    /// A single value.
    pub(super) fn of_cell(cell: Cell<'_>) -> Self {
        let (value, form) = match cell {
            Cell::Null | Cell::Unchanged => (None, Form::Text),
            Cell::Text(value) => (Some(Bytes::copy_from_slice(value)), Form::Text),
            Cell::Binary(value) => (Some(Bytes::copy_from_slice(value)), Form::Binary),
        };
        Self { value, form }
    }

    /// Bytes that are sent.
    pub(super) fn len(&self) -> usize {
        self.value.as_ref().map_or(0, Bytes::len)
    }
}

impl fmt::Debug for Parameter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Parameter({:?}, {} bytes)", self.form, self.len())
    }
}

impl ToSql for Parameter {
    fn to_sql(
        &self,
        _: &Type,
        out: &mut BytesMut,
    ) -> Result<IsNull, Box<dyn StdError + Sync + Send>> {
        let Some(value) = &self.value else { return Ok(IsNull::Yes) };
        out.put_slice(value);
        Ok(IsNull::No)
    }

    fn accepts(_: &Type) -> bool {
        true
    }

    fn encode_format(&self, _: &Type) -> Format {
        match self.form {
            Form::Text => Format::Text,
            Form::Binary => Format::Binary,
        }
    }

    to_sql_checked!();
}

/// The column holds values of both forms, so that no array can hold it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Mixed;

/// An array that grows value by value.
#[derive(Debug, Default)]
pub(super) struct Array {
    bytes: Vec<u8>,
    rows: u32,
    has_null: bool,
    form: Option<Form>,
}

impl Array {
    /// Appends a value.
    pub(super) fn push(&mut self, cell: Cell<'_>) -> Result<(), Mixed> {
        if self.bytes.is_empty() {
            self.bytes.resize(HEADER, 0);
        }
        let (form, value) = match cell {
            Cell::Null | Cell::Unchanged => {
                self.has_null = true;
                self.rows += 1;
                self.bytes.put_i32(-1);
                return Ok(());
            }
            Cell::Text(value) => (Form::Text, value),
            Cell::Binary(value) => (Form::Binary, value),
        };
        if *self.form.get_or_insert(form) != form {
            return Err(Mixed);
        }
        self.rows += 1;
        self.bytes.put_u32(u32::try_from(value.len()).map_err(|_| Mixed)?);
        self.bytes.put_slice(value);
        Ok(())
    }

    /// Bytes so far.
    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    fn elements(&self) -> &[u8] {
        self.bytes.get(HEADER..).unwrap_or_default()
    }

    /// The form of its values; a column of nulls is passed as text, which every type can be cast from.
    pub(super) fn form(&self) -> Form {
        self.form.unwrap_or(Form::Text)
    }

    /// The whole array, of a column of this type.
    pub(super) fn finish(mut self, type_oid: Oid) -> Parameter {
        let element = if self.form() == Form::Binary { type_oid } else { TEXT };
        if self.bytes.is_empty() {
            self.bytes.resize(HEADER, 0);
        }
        let mut header = &mut self.bytes[..HEADER];
        header.put_i32(1);
        header.put_i32(i32::from(self.has_null));
        header.put_u32(element);
        header.put_u32(self.rows);
        header.put_i32(1);
        Parameter { value: Some(self.bytes.into()), form: Form::Binary }
    }
}

/// An array of rows of a table, in which only some columns are filled in: the way of values that no array can hold, because
/// they are arrays themselves. `columns` has the type of each of the table's columns, `filled` the values of some, by index.
pub(super) fn rows(row_type: Oid, columns: &[Oid], filled: &[(usize, Array)]) -> Parameter {
    let count = filled.first().map_or(0, |(_, array)| array.rows);
    let mut rest: Vec<&[u8]> = filled.iter().map(|(_, array)| array.elements()).collect();
    let mut all = Array { form: Some(Form::Binary), ..Array::default() };
    let mut row = Vec::new();
    for _ in 0..count {
        row.clear();
        row.put_u32(u32::try_from(columns.len()).expect("a table has at most 1600 columns"));
        for (index, type_oid) in columns.iter().enumerate() {
            row.put_u32(*type_oid);
            match filled.iter().position(|(column, _)| *column == index) {
                Some(place) => row.put_slice(split_element(&mut rest[place])),
                None => row.put_i32(-1),
            }
        }
        all.push(Cell::Binary(&row)).expect("all of them are binary");
    }
    all.finish(row_type)
}

/// Takes an element with its length off the front.
fn split_element<'a>(elements: &mut &'a [u8]) -> &'a [u8] {
    let length = elements.first_chunk::<4>().map_or(-1, |length| i32::from_be_bytes(*length));
    let end = 4 + usize::try_from(length).unwrap_or(0);
    let (element, rest) = elements.split_at(end.min(elements.len()));
    *elements = rest;
    element
}

/// An array of our own numbers.
pub(super) fn numbers(values: impl Iterator<Item = i64>) -> Parameter {
    let mut array = Array::default();
    for value in values {
        array.push(Cell::Binary(&value.to_be_bytes())).expect("all of them are binary");
    }
    // int8
    array.form.get_or_insert(Form::Binary);
    array.finish(20)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_array_has_the_form_that_the_server_reads() {
        let mut array = Array::default();
        array.push(Cell::Binary(&[0, 7])).unwrap();
        array.push(Cell::Null).unwrap();
        let Parameter { value, form } = array.finish(21);
        assert_eq!(form, Form::Binary);
        let expected: [&[u8]; 8] = [
            &[0, 0, 0, 1],
            &[0, 0, 0, 1],
            &[0, 0, 0, 21],
            &[0, 0, 0, 2],
            &[0, 0, 0, 1],
            &[0, 0, 0, 2],
            &[0, 7],
            &[255, 255, 255, 255],
        ];
        assert_eq!(value.unwrap(), expected.concat());
    }

    #[test]
    fn text_goes_as_text_whatever_the_column_is() {
        let mut array = Array::default();
        array.push(Cell::Text(b"7")).unwrap();
        assert_eq!(array.form(), Form::Text);
        assert_eq!(&array.finish(21).value.unwrap()[8..12], &25_u32.to_be_bytes());
    }

    #[test]
    fn two_forms_do_not_fit_into_one_array() {
        let mut array = Array::default();
        array.push(Cell::Text(b"7")).unwrap();
        assert_eq!(array.push(Cell::Binary(b"7")), Err(Mixed));
    }

    #[test]
    fn debug_shows_no_value() {
        assert_eq!(
            format!("{:?}", Parameter::of_cell(Cell::Text(b"4111"))),
            "Parameter(Text, 4 bytes)"
        );
    }
}
