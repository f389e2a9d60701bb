//! Integers as packed differences, Parquet's `DELTA_BINARY_PACKED`.
//!
//! **Invariant:** differences wrap in the width of the type, so that no miniblock needs more bits than the type has.
//!
//! Parquet format: "Delta Encoding (DELTA_BINARY_PACKED = 5)".

use parquet::file::statistics::{Statistics, ValueStatistics};

use super::hybrid::varint;

/// Miniblocks of a block.
const MINIBLOCKS: usize = 4;

/// Values of the largest block.
const BLOCK_MAX: usize = 256;

/// Up to this width a value and the bits of an unfinished byte fit into one word.
const WORD_WIDTH: usize = 56;

/// An integer that Parquet stores.
pub(super) trait Integer: Copy + Ord + Default + Send + 'static {
    /// Values of a miniblock.
    const MINIBLOCK: usize;

    /// The difference, wrapping.
    fn minus(self, other: Self) -> Self;

    /// Its bits, without its sign.
    fn bits(self) -> u64;

    /// Its value.
    fn wide(self) -> i64;

    /// Statistics of a column of signed order with these bounds.
    fn statistics(bounds: Option<(Self, Self)>, null_count: u64) -> Statistics;
}

impl Integer for i32 {
    const MINIBLOCK: usize = 32;

    #[inline]
    fn minus(self, other: Self) -> Self {
        self.wrapping_sub(other)
    }

    #[inline]
    fn bits(self) -> u64 {
        u64::from(self as u32)
    }

    #[inline]
    fn wide(self) -> i64 {
        i64::from(self)
    }

    fn statistics(bounds: Option<(Self, Self)>, null_count: u64) -> Statistics {
        let (smallest, largest) = bounds.unzip();
        ValueStatistics::new(smallest, largest, None, Some(null_count), false)
            .with_backwards_compatible_min_max(true)
            .into()
    }
}

impl Integer for i64 {
    const MINIBLOCK: usize = 64;

    #[inline]
    fn minus(self, other: Self) -> Self {
        self.wrapping_sub(other)
    }

    #[inline]
    fn bits(self) -> u64 {
        self as u64
    }

    #[inline]
    fn wide(self) -> i64 {
        self
    }

    fn statistics(bounds: Option<(Self, Self)>, null_count: u64) -> Statistics {
        let (smallest, largest) = bounds.unzip();
        ValueStatistics::new(smallest, largest, None, Some(null_count), false)
            .with_backwards_compatible_min_max(true)
            .into()
    }
}

/// Appends the values.
pub(super) fn encode<T: Integer>(values: &[T], out: &mut Vec<u8>) {
    let block = T::MINIBLOCK * MINIBLOCKS;
    varint(block as u64, out);
    varint(MINIBLOCKS as u64, out);
    varint(values.len() as u64, out);
    let Some((first, rest)) = values.split_first() else { return zigzag(0, out) };
    zigzag(first.wide(), out);
    for (before, after) in values.chunks(block).zip(rest.chunks(block)) {
        encode_block(before, after, out);
    }
}

/// Appends the differences of each value of `after` to that at the same place of `before`.
fn encode_block<T: Integer>(before: &[T], after: &[T], out: &mut Vec<u8>) {
    let mut differences = [T::default(); BLOCK_MAX];
    for ((difference, before), after) in differences.iter_mut().zip(before).zip(after) {
        *difference = after.minus(*before);
    }
    let differences = &differences[..after.len()];
    let least = differences.iter().copied().min().unwrap_or_default();
    zigzag(least.wide(), out);
    let widths = out.len();
    out.extend_from_slice(&[0; MINIBLOCKS]);
    for (number, miniblock) in differences.chunks(T::MINIBLOCK).enumerate() {
        let mut packed = [0; BLOCK_MAX / MINIBLOCKS];
        let mut any = 0;
        for (packed, difference) in packed.iter_mut().zip(miniblock) {
            *packed = difference.minus(least).bits();
            any |= *packed;
        }
        let width = (u64::BITS - any.leading_zeros()) as usize;
        out[widths + number] = width as u8;
        pack(&packed[..T::MINIBLOCK], width, out);
    }
}

/// Appends the low `width` bits of each value; their number is a multiple of eight.
fn pack(values: &[u64], width: usize, out: &mut Vec<u8>) {
    let start = out.len();
    let end = start + values.len() * width / 8;
    out.resize(end + 16, 0);
    let target = &mut out[start..];
    let mut at = 0;
    let mut filled = 0;
    // Whole words are written and only whole bytes of them kept, so that no branch depends on the width.
    if width <= WORD_WIDTH {
        let mut bits = 0_u64;
        for value in values {
            bits |= value << filled;
            filled += width;
            target[at..at + 8].copy_from_slice(&bits.to_le_bytes());
            at += filled / 8;
            bits >>= filled & !7;
            filled &= 7;
        }
    } else {
        let mut bits = 0_u128;
        for value in values {
            bits |= u128::from(*value) << filled;
            filled += width;
            target[at..at + 16].copy_from_slice(&bits.to_le_bytes());
            at += filled / 8;
            bits >>= filled & !7;
            filled &= 7;
        }
    }
    out.truncate(end);
}

fn zigzag(number: i64, out: &mut Vec<u8>) {
    varint((number << 1 ^ number >> 63) as u64, out);
}
