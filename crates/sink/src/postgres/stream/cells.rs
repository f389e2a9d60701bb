//! Reads and writes cells: keys as bytes, rows put together from an older and a newer one.
//!
//! **Invariant:** a value is never decoded. Two keys are the same here when their bytes are; where the target's operator
//! thinks otherwise, the row counts tell (`hazards.md` D122).

use bytes::{BufMut, Bytes};
use tidemark_model::{Cell, TupleData};

/// A key as bytes: a row of the key's cells, ready for [`key_tuple`].
pub(super) fn key_bytes(
    row: &TupleData,
    cells: impl ExactSizeIterator<Item = usize>,
    out: &mut Vec<u8>,
) {
    out.clear();
    out.put_u16(u16::try_from(cells.len()).expect("a key has at most 32 columns"));
    for index in cells {
        row.cells().nth(index).unwrap_or(Cell::Null).put(out);
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
    TupleData::of(merged.into_iter())
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
        TupleData::of(cells.iter().copied())
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
