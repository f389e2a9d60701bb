//! Columns of text and bytes.
//!
//! **Invariant:** smallest and largest are those of all values that are not NULL, compared byte by byte.
//!
//! In a dictionary the first 32 bytes of a value are four words, filled up with zeros: with its length they tell short values
//! apart without a call.

use arrow_array::cast::AsArray;
use arrow_array::types::{BinaryType, ByteArrayType, Utf8Type};
use arrow_array::{Array, ArrayRef, GenericByteArray};
use arrow_buffer::Buffer;
use parquet::basic::Encoding;
use parquet::column::writer::{ColumnWriter, get_column_writer};
use parquet::data_type::ByteArray;
use parquet::errors::Result;
use parquet::file::properties::WriterProperties;
use parquet::file::statistics::{Statistics, ValueStatistics};
use parquet::file::writer::{SerializedPageWriter, TrackedWrite};
use parquet::schema::types::ColumnDescPtr;

use super::column::Kind;
use super::{DICTIONARY_BYTES_MAX, DICTIONARY_VALUES_MAX, PAGE_BYTES, delta};

/// Bytes of a value that its key in a dictionary holds.
const HEAD: usize = 32;

/// Places of a new dictionary.
const PLACES: usize = 256;

/// Steps from a value's place after which a dictionary is given up: its values collide, by chance or on purpose.
const STEPS_MAX: usize = 128;

/// A page's buffer larger than this is given back after the page.
const KEPT_BYTES: usize = 2 * PAGE_BYTES;

/// Much more than the crate keeps of a value in the statistics.
const FRONT_BYTES: usize = 256;

/// Where a value lies.
#[derive(Clone, Copy)]
struct Span {
    start: u32,
    len: u32,
}

/// Text or bytes.
pub(super) struct Strings {
    is_text: bool,
    data: Buffer,
    spans: Vec<Span>,
    lengths: Vec<i32>,
    page: Vec<u8>,
    dictionary: Dictionary,
    unencoded: i64,
    smallest: Bound,
    largest: Bound,
}

/// A smallest or largest value, and its first bytes as a number.
#[derive(Default)]
struct Bound {
    head: u64,
    value: Option<Vec<u8>>,
}

impl Strings {
    /// A column of text.
    pub(super) fn text() -> Self {
        Self::new(true)
    }

    /// A column of bytes.
    pub(super) fn binary() -> Self {
        Self::new(false)
    }

    fn new(is_text: bool) -> Self {
        Self {
            is_text,
            data: Buffer::default(),
            spans: Vec::new(),
            lengths: Vec::new(),
            page: Vec::new(),
            dictionary: Dictionary::default(),
            unencoded: 0,
            smallest: Bound::default(),
            largest: Bound::default(),
        }
    }

    fn load_bytes<T: ByteArrayType<Offset = i32>>(&mut self, array: &GenericByteArray<T>) {
        self.data = array.values().clone();
        self.spans.clear();
        let ends = array.value_offsets().windows(2);
        // Offsets are never negative.
        let spans =
            ends.map(|ends| Span { start: ends[0] as u32, len: (ends[1] - ends[0]) as u32 });
        match array.nulls().filter(|nulls| nulls.null_count() > 0) {
            None => self.spans.extend(spans),
            Some(nulls) => {
                self.spans.extend(
                    spans.zip(nulls).filter(|(_, is_present)| *is_present).map(|(span, _)| span),
                );
            }
        }
    }

    fn offsets<'a>(&self, array: &'a dyn Array) -> &'a [i32] {
        if self.is_text {
            array.as_bytes::<Utf8Type>().value_offsets()
        } else {
            array.as_bytes::<BinaryType>().value_offsets()
        }
    }

    /// Keeps the smallest and the largest value; most are told by their first bytes.
    #[inline]
    fn note(&mut self, data: &[u8], span: Span) {
        let head = head(data, span);
        if head <= self.smallest.head || self.smallest.value.is_none() {
            let value = bytes(data, span);
            if self.smallest.value.as_deref().is_none_or(|smallest| value < smallest) {
                self.smallest = Bound { head, value: Some(value.to_vec()) };
            }
        }
        if head >= self.largest.head {
            let value = bytes(data, span);
            if self.largest.value.as_deref().is_none_or(|largest| value > largest) {
                self.largest = Bound { head, value: Some(value.to_vec()) };
            }
        }
    }
}

#[inline]
fn bytes(data: &[u8], span: Span) -> &[u8] {
    let start = span.start as usize;
    &data[start..start + span.len as usize]
}

/// The first eight bytes as a number that orders like them; what is missing is zero.
#[inline]
fn head(data: &[u8], span: Span) -> u64 {
    let start = span.start as usize;
    let window = match data.get(start..).and_then(<[u8]>::first_chunk::<8>) {
        Some(window) => *window,
        None => {
            let mut window = [0; 8];
            let value = bytes(data, span);
            let len = value.len().min(8);
            window[..len].copy_from_slice(&value[..len]);
            window
        }
    };
    // At most 64: the bits of a long value are more than a u32 holds.
    let kept = !u64::MAX.unbounded_shr(8 * span.len.min(8));
    u64::from_be_bytes(window) & kept
}

impl Kind for Strings {
    const ENCODING: Encoding = Encoding::DELTA_LENGTH_BYTE_ARRAY;

    fn rows_that_fit(&self, array: &dyn Array, start: usize, rows: usize) -> usize {
        let offsets = &self.offsets(array)[start..=start + rows];
        let room = PAGE_BYTES.saturating_sub(self.unencoded as usize);
        let fit = offsets.partition_point(|offset| (offset - offsets[0]) as usize <= room) - 1;
        // One value of any size is a page of its own.
        if fit == 0 && self.unencoded == 0 { 1 } else { fit }
    }

    fn load(&mut self, array: &ArrayRef) {
        if self.is_text {
            self.load_bytes(array.as_bytes::<Utf8Type>());
        } else {
            self.load_bytes(array.as_bytes::<BinaryType>());
        }
    }

    fn intern(&mut self, indices: &mut Vec<u16>) -> bool {
        let before = indices.len();
        match self.dictionary.intern(&self.data, &self.spans, indices) {
            Some(unencoded) => {
                self.data = Buffer::default();
                self.unencoded += unencoded;
                true
            }
            None => {
                indices.truncate(before);
                false
            }
        }
    }

    fn dictionary_len(&self) -> usize {
        self.dictionary.entries.len()
    }

    fn take_dictionary(&mut self) -> Vec<u8> {
        let Dictionary { entries, page, .. } = std::mem::take(&mut self.dictionary);
        for Entry { key, start } in &entries {
            self.note(&page, Span { start: *start, len: key.len });
        }
        page
    }

    fn append(&mut self) {
        let data = std::mem::take(&mut self.data);
        let spans = std::mem::take(&mut self.spans);
        spans.iter().for_each(|span| self.note(&data, *span));
        self.spans = spans;
        let total: usize = self.spans.iter().map(|span| span.len as usize).sum();
        self.lengths.extend(self.spans.iter().map(|span| span.len as i32));
        let (first, last) = (self.spans.first(), self.spans.last());
        if let (Some(first), Some(last)) = (first, last) {
            let whole = &data[first.start as usize..(last.start + last.len) as usize];
            if whole.len() == total {
                self.page.extend_from_slice(whole);
            } else {
                self.spans.iter().for_each(|span| self.page.extend_from_slice(bytes(&data, *span)));
            }
        }
        self.unencoded += total as i64;
    }

    fn take_page(&mut self, page: &mut Vec<u8>) {
        delta::encode(&self.lengths, page);
        page.extend_from_slice(&self.page);
        self.lengths.clear();
        self.page.clear();
        self.page.shrink_to(KEPT_BYTES);
    }

    fn take_unencoded(&mut self) -> Option<i64> {
        Some(std::mem::take(&mut self.unencoded))
    }

    fn bytes(&self) -> usize {
        self.page.len()
            + self.lengths.len() * size_of::<i32>()
            + self.spans.len() * size_of::<Span>()
            + self.dictionary.bytes()
            + [&self.smallest, &self.largest]
                .map(|bound| bound.value.as_ref().map_or(0, Vec::len))
                .iter()
                .sum::<usize>()
    }

    fn statistics(&self, column: &ColumnDescPtr, null_count: u64) -> Result<Statistics> {
        let (Some(smallest), Some(largest)) = (&self.smallest.value, &self.largest.value) else {
            let none = ValueStatistics::new(None, None, None, Some(null_count), false);
            return Ok(Statistics::ByteArray(none));
        };
        let cut = |value: &[u8]| ByteArray::from(front(value, self.is_text));
        let (low, high) = (cut(smallest), cut(largest));
        let is_cut = high.len() < largest.len();
        let mut bounds = bounds(column, low.clone(), high)?;
        if is_cut && bounds.max_is_exact() {
            // What is left of it has no successor of that length: only the whole value is above all others.
            bounds = self::bounds(column, low, ByteArray::from(largest.as_slice()))?;
        }
        Ok(Statistics::ByteArray(
            ValueStatistics::new(
                bounds.min_opt().cloned(),
                bounds.max_opt().cloned(),
                None,
                Some(null_count),
                false,
            )
            .with_min_is_exact(bounds.min_is_exact())
            .with_max_is_exact(bounds.max_is_exact()),
        ))
    }
}

/// As much of a value as decides how it is cut in the statistics; a character is not cut through.
fn front(value: &[u8], is_text: bool) -> &[u8] {
    let mut end = value.len().min(FRONT_BYTES);
    while is_text && end < value.len() && value[end] & 0xC0 == 0x80 {
        end -= 1;
    }
    &value[..end]
}

/// The smallest and the largest value as the crate's own writer cuts them.
fn bounds(
    column: &ColumnDescPtr,
    smallest: ByteArray,
    largest: ByteArray,
) -> Result<ValueStatistics<ByteArray>> {
    let mut out = TrackedWrite::new(Vec::new());
    let pages = Box::new(SerializedPageWriter::new(&mut out));
    let properties = WriterProperties::builder().set_dictionary_enabled(false).build();
    let writer = get_column_writer(column.clone(), properties.into(), pages);
    let ColumnWriter::ByteArrayColumnWriter(mut writer) = writer else {
        unreachable!("a column of strings is a column of byte arrays")
    };
    let levels = [column.max_def_level(); 2];
    writer.write_batch(&[smallest, largest], Some(&levels), None)?;
    match writer.close()?.metadata.statistics() {
        Some(Statistics::ByteArray(cut)) => Ok(cut.clone()),
        _ => unreachable!("statistics of byte arrays are on unless they are turned off"),
    }
}

/// What tells most values apart: the first bytes, and how many there are in all.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Key {
    words: [u64; 4],
    len: u32,
}

/// A window of it holds a mask for every length.
const MASKS: [u8; 2 * HEAD] = {
    let mut masks = [0; 2 * HEAD];
    let mut at = 0;
    while at < HEAD {
        masks[at] = 0xff;
        at += 1;
    }
    masks
};

impl Key {
    #[inline]
    fn of(data: &[u8], span: Span) -> Self {
        let len = (span.len as usize).min(HEAD);
        let start = span.start as usize;
        let mut window = match data.get(start..).and_then(<[u8]>::first_chunk::<HEAD>) {
            Some(window) => *window,
            None => {
                let mut window = [0; HEAD];
                window[..len].copy_from_slice(&bytes(data, span)[..len]);
                window
            }
        };
        for (byte, mask) in window.iter_mut().zip(&MASKS[HEAD - len..][..HEAD]) {
            *byte &= mask;
        }
        let mut words = [0; 4];
        for (word, bytes) in words.iter_mut().zip(window.chunks_exact(8)) {
            *word = u64::from_le_bytes(bytes.try_into().unwrap_or_default());
        }
        Self { words, len: span.len }
    }

    #[inline]
    fn hash(&self, tail: &[u8]) -> u64 {
        let [a, b, c, d] = self.words;
        let mut sum = a.wrapping_mul(0x9E37_79B9_7F4A_7C15)
            ^ b.wrapping_mul(0xC2B2_AE3D_27D4_EB4F)
            ^ c.wrapping_mul(0x1656_67B1_9E37_79F9)
            ^ d.wrapping_mul(0x27D4_EB2F_1656_67C5)
            ^ u64::from(self.len);
        for bytes in tail.chunks(8) {
            let mut word = [0; 8];
            word[..bytes.len()].copy_from_slice(bytes);
            sum = (sum.rotate_left(29) ^ u64::from_le_bytes(word))
                .wrapping_mul(0xC2B2_AE3D_27D4_EB4F);
        }
        (sum ^ sum >> 32).wrapping_mul(0x9E37_79B9_7F4A_7C15)
    }
}

/// A value of the dictionary.
struct Entry {
    key: Key,
    /// Where its bytes begin in the dictionary page.
    start: u32,
}

/// Distinct values in the order in which they came. At least half of the places are free.
#[derive(Default)]
struct Dictionary {
    entries: Vec<Entry>,
    /// One more than the number of the value; 0 is free.
    places: Vec<u32>,
    page: Vec<u8>,
}

impl Dictionary {
    /// The bytes of the values, or `None` if one has no place.
    fn intern(&mut self, data: &[u8], spans: &[Span], indices: &mut Vec<u16>) -> Option<i64> {
        indices.reserve(spans.len());
        if self.places.is_empty() {
            self.places = vec![0; PLACES];
        }
        let mut unencoded = 0;
        for span in spans {
            let key = Key::of(data, *span);
            let tail = if span.len as usize > HEAD { &bytes(data, *span)[HEAD..] } else { &[] };
            indices.push(self.find(&key, tail, data, *span)?);
            unencoded += i64::from(span.len);
        }
        Some(unencoded)
    }

    #[inline]
    fn find(&mut self, key: &Key, tail: &[u8], data: &[u8], span: Span) -> Option<u16> {
        let mut at = self.first_place(key, tail);
        for _ in 0..STEPS_MAX {
            let number = self.places[at];
            if number == 0 {
                return self.insert(*key, bytes(data, span), at);
            }
            let entry = &self.entries[number as usize - 1];
            if entry.key == *key && (tail.is_empty() || self.tail(entry) == tail) {
                return Some((number - 1) as u16);
            }
            at = (at + 1) & (self.places.len() - 1);
        }
        None
    }

    #[inline]
    fn first_place(&self, key: &Key, tail: &[u8]) -> usize {
        (key.hash(tail) >> (u64::BITS - self.places.len().trailing_zeros())) as usize
    }

    /// The bytes of a value that its key has not.
    fn tail(&self, entry: &Entry) -> &[u8] {
        let span = Span { start: entry.start, len: entry.key.len };
        bytes(&self.page, span).get(HEAD..).unwrap_or_default()
    }

    #[cold]
    fn insert(&mut self, key: Key, value: &[u8], at: usize) -> Option<u16> {
        let number = self.entries.len();
        let page_bytes = self.page.len() + size_of::<u32>() + value.len();
        if number == DICTIONARY_VALUES_MAX || page_bytes > DICTIONARY_BYTES_MAX {
            return None;
        }
        self.page.extend_from_slice(&key.len.to_le_bytes());
        self.entries.push(Entry { key, start: self.page.len() as u32 });
        self.page.extend_from_slice(value);
        self.places[at] = number as u32 + 1;
        if self.entries.len() * 2 > self.places.len() {
            self.grow();
        }
        Some(number as u16)
    }

    fn grow(&mut self) {
        self.places = vec![0; self.places.len() * 4];
        for (number, entry) in (1..).zip(&self.entries) {
            let mut at = self.first_place(&entry.key, self.tail(entry));
            while self.places[at] != 0 {
                at = (at + 1) & (self.places.len() - 1);
            }
            self.places[at] = number;
        }
    }

    fn bytes(&self) -> usize {
        self.entries.len() * size_of::<Entry>()
            + self.places.len() * size_of::<u32>()
            + self.page.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_bytes_of_a_value_of_half_a_gigabyte_count() {
        let data = b"zzzzzzzzzz";
        for len in [8, 9, 10, (1 << 29) - 1, 1 << 29, (1 << 29) + 3, u32::MAX] {
            assert_eq!(
                head(data, Span { start: 0, len }),
                u64::from_be_bytes(*b"zzzzzzzz"),
                "{len}"
            );
        }
        assert_eq!(head(data, Span { start: 0, len: 2 }), u64::from_be_bytes(*b"zz\0\0\0\0\0\0"));
    }

    fn place(value: &str) -> u64 {
        let span = Span { start: 0, len: value.len() as u32 };
        let tail = value.as_bytes().get(HEAD..).unwrap_or_default();
        Key::of(value.as_bytes(), span).hash(tail) >> (u64::BITS - PLACES.trailing_zeros())
    }

    #[test]
    fn values_of_one_beginning_that_meet_in_one_place_are_told_apart() {
        let short = "a".repeat(HEAD);
        let meets = |long: &String| place(long) == place(&short);
        let mut longer = (0..10_000).map(|number| format!("{short}{number:04}")).filter(meets);
        let values = [longer.next().unwrap(), longer.next().unwrap(), short.clone()];
        let data = values.concat();
        let mut at = 0;
        let spans = values.each_ref().map(|value| {
            at += value.len() as u32;
            Span { start: at - value.len() as u32, len: value.len() as u32 }
        });
        for order in [[0, 1, 2], [2, 1, 0], [1, 2, 0]] {
            let mut dictionary = Dictionary::default();
            let mut indices = Vec::new();
            let spans = [order, order].concat().into_iter().map(|number| spans[number]);
            dictionary.intern(data.as_bytes(), &spans.collect::<Vec<_>>(), &mut indices);
            assert_eq!(indices, [0, 1, 2, 0, 1, 2], "{order:?}");
        }
    }
}
