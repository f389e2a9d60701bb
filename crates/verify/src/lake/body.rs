//! What is kept of a row that may have to be named, the same of either side.
//!
//! **Invariant:** two rows whose cells in a body are equal are equal in that column; a text is what PostgreSQL prints, or the
//! body says that there is none.
//!
//! A body is a row of fields, each with its length in front: of a whole row the cells of all columns in the raw form and in
//! the value form; then the texts of the columns that are shown; then the places of the texts that could not be printed.

use crate::again::fields;
use crate::pair::Shows;

/// Writes a body.
#[derive(Default)]
pub(super) struct BodyWriter {
    bytes: Vec<u8>,
    unprinted: Vec<u8>,
    texts: u16,
}

impl BodyWriter {
    pub(super) fn cell(&mut self, cell: &[u8]) {
        self.field(Some(cell));
    }

    /// The next text; of what could not be printed, nothing.
    pub(super) fn text<E>(&mut self, text: &Result<Option<impl AsRef<[u8]>>, E>) {
        match text {
            Ok(text) => self.field(text.as_ref().map(AsRef::as_ref)),
            Err(_) => {
                self.unprinted.extend_from_slice(&self.texts.to_be_bytes());
                self.field(None);
            }
        }
        self.texts += 1;
    }

    fn field(&mut self, field: Option<&[u8]>) {
        // As long as a field of PostgreSQL at most, so that the length has 31 bits.
        let length = field.map_or(-1, |field| i32::try_from(field.len()).unwrap_or(i32::MAX));
        self.bytes.extend_from_slice(&length.to_be_bytes());
        self.bytes.extend_from_slice(field.unwrap_or_default());
    }

    /// The body; the writer is empty then.
    pub(super) fn finish(&mut self) -> Vec<u8> {
        let unprinted = std::mem::take(&mut self.unprinted);
        self.field(Some(&unprinted));
        self.texts = 0;
        std::mem::take(&mut self.bytes)
    }
}

/// A body that is read.
pub(super) struct Body<'b> {
    fields: Vec<Option<&'b [u8]>>,
    /// Columns whose cells are in it.
    cells: usize,
}

impl<'b> Body<'b> {
    /// Of a body with the cells of so many columns.
    pub(super) fn of(body: &'b [u8], cells: usize) -> Self {
        Self { fields: fields(body, Shows::Key), cells }
    }

    fn field(&self, at: usize) -> Option<&'b [u8]> {
        self.fields.get(at).copied().flatten()
    }

    /// The cells of a column, in the raw form and in the value form.
    pub(super) fn cells(&self, column: usize) -> [Option<&'b [u8]>; 2] {
        [self.field(column), self.field(self.cells + column)]
    }

    /// The text at that place among those that are shown: `None` inside is NULL, `None` outside that it could not be printed.
    pub(super) fn text(&self, place: usize) -> Option<Option<&'b [u8]>> {
        let unprinted = self.fields.last().copied().flatten().unwrap_or_default();
        let is_here = |number: &[u8]| *number == (place as u16).to_be_bytes();
        let is_printed = !unprinted.chunks(2).any(is_here);
        is_printed.then(|| self.field(2 * self.cells + place))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_says_what_was_written_and_what_could_not_be_printed() {
        let mut writer = BodyWriter::default();
        for _ in 0..2 {
            for cell in [&b"raw0"[..], b"raw1", b"value0", b"value1"] {
                writer.cell(cell);
            }
            writer.text::<&str>(&Ok(None::<&[u8]>));
            writer.text::<&str>(&Ok(Some(b"")));
            writer.text(&Err::<Option<&[u8]>, _>("odd"));
            let bytes = writer.finish();
            let body = Body::of(&bytes, 2);
            assert_eq!(body.cells(1), [Some(&b"raw1"[..]), Some(b"value1")]);
            let texts = [0, 1, 2].map(|place| body.text(place));
            assert_eq!(texts, [Some(None), Some(Some(&b""[..])), None]);
        }
    }
}
