//! Reads and writes cells: keys as bytes, rows put together from an older and a newer one.
//!
//! **Invariant:** a value is never decoded. Two keys are the same here when their bytes are; where the target's operator
//! thinks otherwise, the row counts tell (`hazards.md` D122).

use bytes::{BufMut, Bytes, BytesMut};
use tidemark_model::{Cell, TupleData};

/// Appends a cell in the form of TupleData.
pub(super) fn put(out: &mut impl BufMut, cell: Cell<'_>) {
    let (kind, value) = match cell {
        Cell::Null => return out.put_u8(b'n'),
        Cell::Unchanged => return out.put_u8(b'u'),
        Cell::Text(value) => (b't', value),
        Cell::Binary(value) => (b'b', value),
    };
    out.put_u8(kind);
    out.put_u32(u32::try_from(value.len()).expect("a value of the stream is below 1 GB"));
    out.put_slice(value);
}

/// A row of these cells.
pub(super) fn tuple<'a>(cells: impl ExactSizeIterator<Item = Cell<'a>>) -> TupleData {
    let mut bytes = BytesMut::new();
    bytes.put_u16(u16::try_from(cells.len()).expect("a row has at most 1600 columns"));
    cells.for_each(|cell| put(&mut bytes, cell));
    let mut bytes = bytes.freeze();
    TupleData::split_from(&mut bytes).expect("the cells were written just above")
}

/// A key as bytes: a row of the key's cells, ready for [`key_tuple`].
pub(super) fn key_bytes(
    row: &TupleData,
    cells: impl ExactSizeIterator<Item = usize>,
    out: &mut Vec<u8>,
) {
    out.clear();
    out.put_u16(u16::try_from(cells.len()).expect("a key has at most 32 columns"));
    for index in cells {
        put(out, row.cells().nth(index).unwrap_or(Cell::Null));
    }
}

/// The cells of a key that [`key_bytes`] made.
pub(super) fn key_tuple(key: &[u8]) -> TupleData {
    TupleData::split_from(&mut Bytes::copy_from_slice(key)).expect("key_bytes made it")
}

/// Whether a cell of the row was not sent.
pub(super) fn has_unchanged(row: &TupleData) -> bool {
    row.cells().any(|cell| cell == Cell::Unchanged)
}

/// The newer row, with what it does not say taken from the older one.
pub(super) fn overlay(older: &TupleData, newer: TupleData) -> TupleData {
    if !has_unchanged(&newer) {
        return newer;
    }
    let merged: Vec<Cell<'_>> = newer
        .cells()
        .zip(older.cells().chain(std::iter::repeat(Cell::Unchanged)))
        .map(|(new, old)| if new == Cell::Unchanged { old } else { new })
        .collect();
    tuple(merged.into_iter())
}

/// Whether two rows may be the same: values that were not sent agree with everything.
pub(super) fn agree(one: &TupleData, other: &TupleData) -> bool {
    one.len() == other.len()
        && one
            .cells()
            .zip(other.cells())
            .all(|(one, other)| one == other || one == Cell::Unchanged || other == Cell::Unchanged)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(cells: &[Cell<'_>]) -> TupleData {
        tuple(cells.iter().copied())
    }

    #[test]
    fn what_was_not_sent_comes_from_the_older_row() {
        let older = row(&[Cell::Text(b"1"), Cell::Text(b"long"), Cell::Unchanged]);
        let newer = row(&[Cell::Null, Cell::Unchanged, Cell::Unchanged]);
        assert_eq!(
            overlay(&older, newer),
            row(&[Cell::Null, Cell::Text(b"long"), Cell::Unchanged])
        );
    }

    #[test]
    fn keys_tell_null_from_empty_and_text_from_binary() {
        let rows = [Cell::Null, Cell::Text(b""), Cell::Binary(b""), Cell::Text(b"n")]
            .map(|cell| row(&[cell]));
        let mut keys = std::collections::HashSet::new();
        for row in &rows {
            let mut key = Vec::new();
            key_bytes(row, [0].into_iter(), &mut key);
            assert_eq!(key_tuple(&key), *row);
            keys.insert(key);
        }
        assert_eq!(keys.len(), rows.len());
    }

    #[test]
    fn keys_keep_the_order_that_they_are_asked_in() {
        let row = row(&[Cell::Text(b"a"), Cell::Text(b"b")]);
        let mut key = Vec::new();
        key_bytes(&row, [1, 0].into_iter(), &mut key);
        assert_eq!(key_tuple(&key).cells().next(), Some(Cell::Text(b"b")));
    }
}
