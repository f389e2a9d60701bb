//! Reads a side and keeps of every row the code of its key, its hash and its place.
//!
//! **Invariant:** a chunk's rows are kept as a whole or not at all, and those of a table come back sorted; what is in memory is
//! bounded, whatever the number of rows and tables.

use std::sync::{Arc, Mutex};

use bytes::{BufMut as _, BytesMut};
use tidemark_digest::{DigestKey, RowHasher};
use tidemark_model::sql::Ident;
use tidemark_model::{SelectColumn, TupleForm, Tuples, Wire};
use tidemark_pipeline::{Error, Kind, Result};
use tidemark_verify::{Pair, Spill, Take, TakeRows, Which};

use super::classify::{Passes, Row};
use super::runs::Sorter;

/// The place of a row.
const PLACE: &str = "ctid";
/// Of a table no more than that stays in memory between chunks, so that there may be many.
const BETWEEN_CHUNKS: u64 = 16 << 10;

/// What a row of the source is read again by. It is selected behind the row's columns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ReadBy<'a> {
    /// Its place.
    Place,
    /// Its key, one integer of so many bytes, which its code holds: no more than that need be known of it.
    Integer { column: &'a str, bytes: usize },
}

impl<'a> ReadBy<'a> {
    pub(super) fn of(pair: &'a Pair) -> Self {
        let [at] = pair.key[..] else { return Self::Place };
        let column = &pair.source.columns[at];
        let bytes = [("int2", 2), ("int4", 4), ("int8", 8)]
            .iter()
            .find(|(name, _)| column.data_type.is_builtin(name) && pair.has_verbatim_key());
        bytes
            .map_or(Self::Place, |(_, bytes)| Self::Integer { column: &column.name, bytes: *bytes })
    }

    /// Whether the places of a side's rows are kept: on the target two rows may have one key.
    pub(super) fn wants_places(self, which: Which) -> bool {
        which == Which::Target || self == Self::Place
    }

    /// The column that tells it.
    pub(super) fn column(self) -> SelectColumn {
        let name = match self {
            Self::Place => PLACE,
            Self::Integer { column, .. } => column,
        };
        SelectColumn { name: name.to_owned(), wire: Wire::Own }
    }

    /// The condition that rows meet which are known by these.
    pub(super) fn condition(self, known_by: &[u64]) -> String {
        let list = |text: &dyn Fn(u64) -> String| {
            known_by.iter().map(|known| text(*known)).collect::<Vec<_>>().join(",")
        };
        match self {
            Self::Place => {
                let places = list(&|place| format!("\"{}\"", place_text(place)));
                format!("ctid OPERATOR(pg_catalog.=) ANY ('{{{places}}}'::pg_catalog.tid[])")
            }
            Self::Integer { column, bytes } => {
                let keys = list(&|key| key.cast_signed().to_string());
                let column = Ident(column);
                format!(
                    "{column} OPERATOR(pg_catalog.=) ANY ('{{{keys}}}'::pg_catalog.int{bytes}[])"
                )
            }
        }
    }

    /// Bytes of the field in COPY BINARY, its length included.
    fn field_bytes(self) -> usize {
        match self {
            // Block, and number in the block.
            Self::Place => 4 + 4 + 2,
            Self::Integer { bytes, .. } => 4 + bytes,
        }
    }

    fn read_binary(self, field: &[u8]) -> Option<u64> {
        let value = field.get(4..)?;
        Some(match self {
            Self::Place => {
                let block = u32::from_be_bytes(*value.first_chunk()?);
                u64::from(block) << 16 | u64::from(u16::from_be_bytes(*value.last_chunk()?))
            }
            Self::Integer { bytes: 2, .. } => {
                i64::from(i16::from_be_bytes(*value.first_chunk()?)).cast_unsigned()
            }
            Self::Integer { bytes: 4, .. } => {
                i64::from(i32::from_be_bytes(*value.first_chunk()?)).cast_unsigned()
            }
            Self::Integer { .. } => u64::from_be_bytes(*value.first_chunk()?),
        })
    }

    fn read_text(self, text: &str) -> Option<u64> {
        match self {
            Self::Place => {
                let (block, number) = text.strip_prefix('(')?.strip_suffix(')')?.split_once(',')?;
                Some(block.parse::<u64>().ok()? << 16 | number.parse::<u64>().ok()?)
            }
            Self::Integer { .. } => text.parse::<i64>().ok().map(i64::cast_unsigned),
        }
    }

    /// Rows without their last columns, which tell what they are known by, and that.
    pub(super) fn split(self, tuples: &Tuples) -> Option<(Tuples, Vec<u64>)> {
        let mut data = BytesMut::with_capacity(tuples.data.len());
        let (mut ends, mut known_by) = (Vec::with_capacity(tuples.ends.len()), Vec::new());
        for row in tuples.rows() {
            known_by.push(match tuples.form {
                TupleForm::PgBinary => {
                    let at = row.len().checked_sub(self.field_bytes())?;
                    let (head, field) = row.split_at_checked(at)?;
                    let columns = u16::from_be_bytes(*head.first_chunk()?).checked_sub(1)?;
                    data.put_u16(columns);
                    data.put_slice(head.get(2..)?);
                    self.read_binary(field)?
                }
                TupleForm::PgText => {
                    let tab = row.iter().rposition(|byte| *byte == b'\t')?;
                    data.put_slice(&row[..tab]);
                    data.put_u8(b'\n');
                    let text = std::str::from_utf8(row.get(tab + 1..row.len() - 1)?).ok()?;
                    self.read_text(text)?
                }
            });
            ends.push(u32::try_from(data.len()).ok()?);
        }
        Some((Tuples { form: tuples.form, data: data.freeze(), ends }, known_by))
    }
}

/// A place as the server writes it.
pub(super) fn place_text(place: u64) -> String {
    format!("({},{})", place >> 16, place & 0xffff)
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
            has_places: ReadBy::of(&self.pairs[pair]).wants_places(which),
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
    has_places: bool,
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
        let split = match self.has_places {
            true => Some(ReadBy::Place.split(tuples).ok_or_else(malformed)?),
            false => None,
        };
        let (hashed, places) =
            split.as_ref().map_or((tuples, &[][..]), |(rows, places)| (rows, places));
        let Self { hasher, is_keyless, passes, rows, .. } = self;
        let mut put = Ok(());
        let named = hasher.name_rows(hashed, |named| {
            let hash = named.sum.raw;
            // A key without a code is one that the source cannot have.
            let code = named.code.filter(|_| !*is_keyless).map_or(hash, |code| code.number());
            if put.is_ok() {
                let place = places.get(named.row).copied().unwrap_or_default();
                put = rows.push(Row { code, hash, passes: *passes, place });
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
            let (rows, places) = ReadBy::Place.split(&tuples).unwrap();
            assert_eq!(places, [place, place]);
            assert!(rows.rows().all(|row| row == without));
        }
        let cut =
            Tuples { form: TupleForm::PgBinary, data: Bytes::from_static(&[0, 1]), ends: vec![2] };
        assert!(ReadBy::Place.split(&cut).is_none());
    }

    #[test]
    fn keys_are_taken_off_rows_of_every_width() {
        for (bytes, key) in [(2, -7_i64), (4, i64::from(i32::MIN)), (8, i64::MAX)] {
            let by = ReadBy::Integer { column: "a\"b", bytes };
            let head = [0, 2, 0, 0, 0, 1, 7, 0, 0, 0, bytes as u8];
            let binary = [&head[..], &key.to_be_bytes()[8 - bytes..]].concat();
            let text = format!("x\t{key}\n").into_bytes();
            for (form, row) in [(TupleForm::PgBinary, binary), (TupleForm::PgText, text)] {
                let ends = vec![u32::try_from(row.len()).unwrap()];
                let tuples = Tuples { form, data: Bytes::from(row), ends };
                let (rows, keys) = by.split(&tuples).unwrap();
                assert_eq!(keys, [key.cast_unsigned()]);
                let without: &[u8] =
                    if form == TupleForm::PgText { b"x\n" } else { &[0, 1, 0, 0, 0, 1, 7] };
                assert!(rows.rows().all(|row| row == without));
            }
            let condition = by.condition(&[key.cast_unsigned(), 3]);
            let array = format!("'{{{key},3}}'::pg_catalog.int{bytes}[]");
            assert!(
                condition.starts_with("\"a\"\"b\"") && condition.contains(&array),
                "{condition}"
            );
        }
    }
}
