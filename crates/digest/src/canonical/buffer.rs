//! The bytes of one row while it is encoded.
//!
//! **Invariant:** `len <= bytes.len()`; what lies behind `len` is left over from earlier rows and never read. One buffer
//! serves all rows of a hasher, so that no row allocates once the buffer has its size.

use super::json::JsonScratch;

/// A buffer larger than this is given back after the row that needed it.
const KEPT_BYTES: usize = 1 << 20;

/// The bytes of one row.
#[derive(Debug, Default)]
pub struct RowBuffer {
    bytes: Vec<u8>,
    len: usize,
    /// A value of the row was replaced by NULL.
    pub(super) has_replaced: bool,
    pub(super) json: JsonScratch,
}

impl RowBuffer {
    /// An empty buffer.
    pub fn new() -> Self {
        Self::default()
    }

    /// Begins a new row.
    #[inline]
    pub fn clear(&mut self) {
        self.len = 0;
        self.has_replaced = false;
        if self.bytes.len() > KEPT_BYTES {
            self.bytes = Vec::new();
            self.json = JsonScratch::default();
        }
    }

    /// Begins a new row with room for so many bytes.
    #[inline]
    pub(crate) fn begin(&mut self, room: usize) {
        self.clear();
        self.room(room);
    }

    /// The row so far.
    #[inline]
    pub fn as_slice(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    /// Whether a value of the row stands as NULL because its place has no form for it.
    #[inline]
    pub fn has_replaced(&self) -> bool {
        self.has_replaced
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Makes room for `more` bytes, for the `put`s that follow.
    #[inline]
    pub(super) fn room(&mut self, more: usize) {
        if self.bytes.len() - self.len < more {
            self.grow(more);
        }
    }

    #[cold]
    #[inline(never)]
    fn grow(&mut self, more: usize) {
        let wanted = (self.len + more).max(self.bytes.len() * 2).max(256);
        self.bytes.resize(wanted, 0);
    }

    /// Appends bytes for which there is room.
    #[inline]
    pub(super) fn put<const N: usize>(&mut self, bytes: [u8; N]) {
        let end = self.len + N;
        self.bytes[self.len..end].copy_from_slice(&bytes);
        self.len = end;
    }

    /// Appends bytes for which there is room. Short ones are copied as two overlapping words, which is several times
    /// faster than a call of `memcpy`.
    #[inline]
    pub(super) fn put_slice(&mut self, from: &[u8]) {
        let count = from.len();
        let to = &mut self.bytes[self.len..self.len + count];
        match count {
            0 => {}
            1..4 => short(to, from),
            4..8 => ends::<4>(to, from),
            8..16 => ends::<8>(to, from),
            16..=32 => ends::<16>(to, from),
            33..=64 => ends::<32>(to, from),
            _ => to.copy_from_slice(from),
        }
        self.len += count;
    }

    /// The next `N` bytes to write, if there is room for them; [`advance`](Self::advance) says how many count.
    #[inline]
    pub(super) fn window<const N: usize>(&mut self) -> Option<&mut [u8; N]> {
        self.bytes.get_mut(self.len..)?.first_chunk_mut()
    }

    /// Counts bytes that were written through a window.
    #[inline]
    pub(super) fn advance(&mut self, count: usize) {
        self.len += count;
    }

    /// Makes room and appends.
    #[inline]
    pub(crate) fn append(&mut self, from: &[u8]) {
        self.room(from.len());
        self.put_slice(from);
    }

    /// Appends an unsigned LEB128 number; there must be room for 10 bytes.
    #[inline]
    pub(super) fn put_varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.put([value as u8 | 0x80]);
            value >>= 7;
        }
        self.put([value as u8]);
    }

    /// The bytes from `start` on, to be put into another order.
    pub(super) fn tail_mut(&mut self, start: usize) -> &mut [u8] {
        &mut self.bytes[start..self.len]
    }
}

#[inline]
fn short(to: &mut [u8], from: &[u8]) {
    for (to, from) in to.iter_mut().zip(from) {
        *to = *from;
    }
}

#[inline]
fn ends<const N: usize>(to: &mut [u8], from: &[u8]) {
    if let (Some(head), Some(tail)) = (from.first_chunk::<N>(), from.last_chunk::<N>()) {
        if let Some(to) = to.first_chunk_mut::<N>() {
            *to = *head;
        }
        if let Some(to) = to.last_chunk_mut::<N>() {
            *to = *tail;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_of_every_length_arrive_whole() {
        let from: Vec<u8> = (0..200).collect();
        let mut buffer = RowBuffer::new();
        for count in 0..from.len() {
            buffer.clear();
            buffer.append(b"x");
            buffer.append(&from[..count]);
            buffer.append(b"y");
            assert_eq!(buffer.as_slice(), [b"x", &from[..count], b"y"].concat());
        }
    }

    #[test]
    fn a_huge_row_does_not_stay_in_memory() {
        let mut buffer = RowBuffer::new();
        buffer.append(&vec![1; 3 << 20]);
        buffer.clear();
        assert!(buffer.bytes.is_empty());
    }
}
