//! Where values lie: splitting rows, and reading big-endian numbers out of them.
//!
//! **Invariant:** a slot that is not NULL lies wholly inside the row it came from; whoever makes slots checks that, so that
//! the loops over them need no check of their own.
//!
//! PostgreSQL manual: COPY, "Binary Format", "Tuples".

use crate::error::{Error, Fault};

/// One value in the bytes of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Slot {
    /// First byte.
    pub(crate) start: u32,
    /// Bytes, or [`NULL_LEN`].
    pub(crate) len: u32,
}

const NULL_LEN: u32 = u32::MAX;

impl Slot {
    pub(crate) const NULL: Self = Self { start: 0, len: NULL_LEN };

    pub(crate) fn is_null(self) -> bool {
        self.len == NULL_LEN
    }

    /// The bytes of a value that is not NULL.
    #[inline]
    pub(crate) fn bytes(self, data: &[u8]) -> &[u8] {
        let start = self.start as usize;
        data.get(start..start + self.len as usize).unwrap_or_default()
    }

    /// A reader over the bytes of a value that is not NULL.
    pub(crate) fn reader(self, data: &[u8]) -> Reader<'_> {
        let at = self.start as usize;
        let end = at.saturating_add(self.len as usize);
        Reader { data: data.get(..end).unwrap_or(data), at }
    }
}

/// Reads a value made of parts, from its first byte to its last.
pub(crate) struct Reader<'a> {
    data: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    pub(crate) fn remaining(&self) -> usize {
        self.data.len().saturating_sub(self.at)
    }

    pub(crate) fn byte(&mut self) -> Result<u8, Fault> {
        let byte = self.data.get(self.at).ok_or(Fault::Malformed("a value is cut short"))?;
        self.at += 1;
        Ok(*byte)
    }

    pub(crate) fn int(&mut self) -> Result<i32, Fault> {
        let rest = self.data.get(self.at..).unwrap_or_default();
        let bytes = rest.first_chunk::<4>().ok_or(Fault::Malformed("a value is cut short"))?;
        self.at += 4;
        Ok(i32::from_be_bytes(*bytes))
    }

    /// A length and that many bytes; -1 is NULL.
    pub(crate) fn slot(&mut self) -> Result<Slot, Fault> {
        let len = self.int()?;
        if len == -1 {
            return Ok(Slot::NULL);
        }
        let len = u32::try_from(len).map_err(|_| Fault::Malformed("a negative length"))?;
        if len as usize > self.remaining() {
            return Err(Fault::Malformed("a part is longer than the value it lies in"));
        }
        let start = u32::try_from(self.at).map_err(|_| Fault::TooLarge)?;
        self.at += len as usize;
        Ok(Slot { start, len })
    }

    pub(crate) fn finish(self) -> Result<(), Fault> {
        if self.remaining() == 0 { Ok(()) } else { Err(Fault::Malformed("bytes behind a value")) }
    }
}

/// The slots of a block of rows, column by column.
#[derive(Debug)]
pub(crate) struct SlotTable {
    slots: Vec<Slot>,
    column_count: usize,
    /// Slots from one column to the next; not a multiple of a memory page, or all columns would share few cache lines.
    stride: usize,
    row_count: usize,
}

/// Rows per block: large enough to pay for the change of column, small enough that the rows stay in the cache.
const BLOCK_ROWS: usize = 504;
/// Slots per block at most, so that 1600 columns do not take megabytes.
const BLOCK_SLOTS: usize = 128 * 1024;

impl SlotTable {
    pub(crate) fn new(column_count: usize) -> Self {
        let stride = (BLOCK_SLOTS / column_count.max(1)).clamp(8, BLOCK_ROWS);
        Self { slots: vec![Slot::NULL; stride * column_count], column_count, stride, row_count: 0 }
    }

    /// Rows that [`SlotTable::split`] takes at once.
    pub(crate) fn block_rows(&self) -> usize {
        self.stride
    }

    /// The slots of one column, one per row of the block.
    pub(crate) fn column(&mut self, index: usize) -> &mut [Slot] {
        let start = index * self.stride;
        &mut self.slots[start..start + self.row_count]
    }

    /// Splits rows that begin at `start` and end at each of `ends`; returns where the last one ends.
    pub(crate) fn split(
        &mut self,
        data: &[u8],
        start: usize,
        ends: &[u32],
    ) -> Result<usize, Error> {
        debug_assert!(ends.len() <= self.stride, "a block has at most stride rows");
        self.row_count = 0;
        let mut start = start;
        for (row_index, &end) in ends.iter().enumerate() {
            let end = end as usize;
            let row = data.get(..end).ok_or_else(|| Fault::of_row("it ends behind its batch"))?;
            if self.split_row(row, start, row_index)? != end {
                return Err(Fault::of_row("its fields do not fill it"));
            }
            // Not where the fields ended, although it is the same: the processor can so begin with the next row while it
            // still walks along the lengths of this one.
            start = end;
        }
        self.row_count = ends.len();
        Ok(start)
    }

    /// Splits the row from `at` to the end of `row`.
    #[inline]
    fn split_row(&mut self, row: &[u8], at: usize, row_index: usize) -> Result<usize, Error> {
        let head = row.get(at..).and_then(<[u8]>::first_chunk::<2>);
        let Some(&head) = head else { return Err(Fault::of_row("it has no field count")) };
        if usize::try_from(i16::from_be_bytes(head)) != Ok(self.column_count) {
            return Err(Fault::of_row("its field count is not that of the table"));
        }
        let mut at = at + 2;
        for slot in self.slots.iter_mut().skip(row_index).step_by(self.stride) {
            let Some(&head) = row.get(at..).and_then(<[u8]>::first_chunk::<4>) else {
                return Err(Fault::of_row("it is cut short"));
            };
            at += 4;
            let len = u32::from_be_bytes(head);
            // What a slot holds is checked here, once: a length beyond the row, negative ones included.
            *slot = if len == NULL_LEN {
                Slot::NULL
            } else if len as usize > row.len() - at {
                return Err(Fault::of_row("a field is longer than its row"));
            } else {
                let start = at;
                at += len as usize;
                Slot { start: start as u32, len }
            };
        }
        Ok(at)
    }
}
