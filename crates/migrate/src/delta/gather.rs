//! Reads a side and keeps of every row the code of its key, its hash and its place.
//!
//! **Invariant:** a chunk's rows are kept as a whole or not at all, and those of a table come back sorted; what is in memory is
//! bounded, whatever the number of rows and tables.

use std::sync::{Arc, Mutex};

use bytes::{BufMut as _, BytesMut};
use tidemark_digest::{DigestKey, RowHasher};
use tidemark_model::{SelectColumn, TupleForm, Tuples, Wire};
use tidemark_pipeline::{Error, Kind, Result};
use tidemark_verify::{Pair, Spill, Take, TakeRows, Which};

use super::classify::{Passes, Row};
use super::runs::Sorter;

/// The place of a row, which is selected behind its columns.
const PLACE: &str = "ctid";
/// Bytes of a place in COPY BINARY: length, block, number in the block.
const PLACE_BYTES: usize = 4 + 4 + 2;
/// Of a table no more than that stays in memory between chunks, so that there may be many.
const BETWEEN_CHUNKS: u64 = 16 << 10;

/// The column that gives a row's place.
pub(super) fn place_column() -> SelectColumn {
    SelectColumn { name: PLACE.to_owned(), wire: Wire::Own }
}

/// A place as the server writes it.
pub(super) fn place_text(place: u64) -> String {
    format!("({},{})", place >> 16, place & 0xffff)
}

/// Rows without their places, which are their last columns, and the places.
pub(super) fn split_places(tuples: &Tuples) -> Option<(Tuples, Vec<u64>)> {
    let mut data = BytesMut::with_capacity(tuples.data.len());
    let (mut ends, mut places) = (Vec::with_capacity(tuples.ends.len()), Vec::new());
    for row in tuples.rows() {
        let place = match tuples.form {
            TupleForm::PgBinary => {
                let (head, place) = row.split_at_checked(row.len().checked_sub(PLACE_BYTES)?)?;
                let columns = u16::from_be_bytes(*head.first_chunk()?).checked_sub(1)?;
                data.put_u16(columns);
                data.put_slice(head.get(2..)?);
                let block = u32::from_be_bytes(*place.get(4..)?.first_chunk()?);
                let number = u16::from_be_bytes(*place.get(8..)?.first_chunk()?);
                u64::from(block) << 16 | u64::from(number)
            }
            TupleForm::PgText => {
                let tab = row.iter().rposition(|byte| *byte == b'\t')?;
                data.put_slice(&row[..tab]);
                data.put_u8(b'\n');
                let text = std::str::from_utf8(row.get(tab + 1..row.len() - 1)?).ok()?;
                let (block, number) = text.strip_prefix('(')?.strip_suffix(')')?.split_once(',')?;
                block.parse::<u64>().ok()? << 16 | number.parse::<u64>().ok()?
            }
        };
        places.push(place);
        ends.push(u32::try_from(data.len()).ok()?);
    }
    Some((Tuples { form: tuples.form, data: data.freeze(), ends }, places))
}

/// What was read of one table.
#[derive(Debug)]
pub(super) struct Gathered {
    pub(super) rows: Sorter<Row>,
    pub(super) count: u64,
    pub(super) bytes: u64,
}

/// What is read of all tables, one pass after the other.
pub(super) struct Gather<'a> {
    pairs: &'a [Pair],
    key: &'a DigestKey,
    spill: Arc<Spill>,
    /// Bytes that a chunk keeps in memory.
    of_chunk: u64,
    pub(super) passes: Passes,
    tables: Mutex<Vec<Gathered>>,
}

impl<'a> Gather<'a> {
    /// Of these pairs; chunks that are read at once share so many bytes of memory.
    pub(super) fn new(
        pairs: &'a [Pair],
        key: &'a DigestKey,
        spill: &Arc<Spill>,
        of_chunk: u64,
    ) -> Self {
        let none =
            |_: &Pair| Gathered { rows: Sorter::new(spill, BETWEEN_CHUNKS), count: 0, bytes: 0 };
        let tables = Mutex::new(pairs.iter().map(none).collect());
        Self { pairs, key, spill: Arc::clone(spill), of_chunk, passes: Passes::Both, tables }
    }

    pub(super) fn finish(self) -> Vec<Gathered> {
        self.tables.into_inner().expect("no holder panics")
    }
}

impl Take for Gather<'_> {
    type Chunk = Gathering;

    fn begin(&self, which: Which, pair: usize) -> Result<Gathering> {
        Ok(Gathering {
            hasher: self.pairs[pair].naming_hasher(which, self.key)?,
            is_keyless: self.pairs[pair].key.is_empty(),
            passes: self.passes,
            rows: Sorter::new(&self.spill, self.of_chunk),
            count: 0,
            bytes: 0,
        })
    }

    fn end(&self, _: Which, pair: usize, chunk: Gathering) -> Result<()> {
        let table = &mut self.tables.lock().expect("no holder panics")[pair];
        table.count += chunk.count;
        table.bytes += chunk.bytes;
        table.rows.absorb(chunk.rows)
    }
}

/// The rows of one chunk.
pub(super) struct Gathering {
    hasher: RowHasher,
    is_keyless: bool,
    passes: Passes,
    rows: Sorter<Row>,
    count: u64,
    bytes: u64,
}

impl TakeRows for Gathering {
    fn add(&mut self, tuples: &Tuples) -> Result<()> {
        self.count += tuples.row_count() as u64;
        self.bytes += tuples.data.len() as u64;
        let malformed = || Error::new(Kind::Internal, "find the places of the rows");
        let (hashed, places) = split_places(tuples).ok_or_else(malformed)?;
        let Self { hasher, is_keyless, passes, rows, .. } = self;
        let mut put = Ok(());
        let named = hasher.name_rows(&hashed, |named| {
            let hash = named.sum.raw;
            // A key without a code is one that the source cannot have.
            let code = named.code.filter(|_| !*is_keyless).map_or(hash, |code| code.number());
            if put.is_ok() {
                put = rows.push(Row { code, hash, passes: *passes, place: places[named.row] });
            }
        });
        named.map_err(|cause| Error::new(Kind::Internal, "hash the rows").because(cause))?;
        put
    }

    fn close(&mut self) -> Result<()> {
        if self.rows.bytes() > BETWEEN_CHUNKS { self.rows.flush() } else { Ok(()) }
    }

    fn rows(&self) -> u64 {
        self.count
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    #[test]
    fn places_are_taken_off_rows_of_both_forms() {
        let place = u64::from(u32::MAX - 1) << 16 | 291;
        assert_eq!(place_text(place), "(4294967294,291)");
        let binary =
            [&[0, 2, 0, 0, 0, 1, 7, 0, 0, 0, 6][..], &[255, 255, 255, 254, 1, 35]].concat();
        let text = b"a\\tb\tc\t(4294967294,291)\n".to_vec();
        for (form, row, without) in [
            (TupleForm::PgBinary, binary, vec![0, 1, 0, 0, 0, 1, 7]),
            (TupleForm::PgText, text, b"a\\tb\tc\n".to_vec()),
        ] {
            let end = u32::try_from(row.len()).unwrap();
            let data = Bytes::from([row.clone(), row].concat());
            let tuples = Tuples { form, data, ends: vec![end, 2 * end] };
            let (rows, places) = split_places(&tuples).unwrap();
            assert_eq!(places, [place, place]);
            assert!(rows.rows().all(|row| row == without));
        }
        let cut =
            Tuples { form: TupleForm::PgBinary, data: Bytes::from_static(&[0, 1]), ends: vec![2] };
        assert!(split_places(&cut).is_none());
    }
}
