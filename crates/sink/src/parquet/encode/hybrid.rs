//! Runs and bit-packed groups: how Parquet stores dictionary indices and levels.
//!
//! **Invariant:** a group of eight numbers is either packed or part of a run, so that a run never begins inside of a group.
//!
//! The loop is compiled for every width, so that its shifts are constants.
//! Parquet format: "Run Length Encoding / Bit-Packing Hybrid (RLE = 3)".

/// Groups behind one header, so that the header is one byte.
const GROUPS_MAX: u8 = 63;

/// The widest number.
pub(super) const WIDTH_MAX: u8 = 16;

/// Bits that numbers up to this one need.
pub(super) fn width_for(largest: usize) -> u8 {
    (usize::BITS - largest.leading_zeros()) as u8
}

/// Appends numbers of at most `width` bits, at most [`WIDTH_MAX`].
pub(super) fn encode(numbers: &[u16], width: u8, out: &mut Vec<u8>) {
    macro_rules! of_width {
        ($($width:literal)*) => {
            match width {
                $($width => encode_width::<$width>(numbers, out),)*
                _ => unreachable!("dictionaries and levels are bounded"),
            }
        };
    }
    of_width!(0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16);
}

/// Appends `count` times the same number.
pub(super) fn run(number: u16, count: usize, width: u8, out: &mut Vec<u8>) {
    varint((count as u64) << 1, out);
    out.extend_from_slice(&number.to_le_bytes()[..usize::from(width.div_ceil(8))]);
}

/// Appends an unsigned LEB128 number.
pub(super) fn varint(mut number: u64, out: &mut Vec<u8>) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

fn encode_width<const WIDTH: usize>(numbers: &[u16], out: &mut Vec<u8>) {
    out.reserve(numbers.len() * WIDTH / 8 + numbers.len() / 256 + 16);
    let mut groups = Groups { header: 0, count: 0 };
    let mut rest = numbers;
    while let Some((group, after)) = rest.split_first_chunk::<8>() {
        rest = after;
        // Not `all`: without an early exit the compiler compares the whole group at once.
        let differ = group.iter().fold(0, |differ, number| differ | (number ^ group[0]));
        if differ == 0 {
            let more = after.iter().take_while(|number| **number == group[0]).count();
            rest = &after[more..];
            groups.count = 0;
            run(group[0], 8 + more, WIDTH as u8, out);
        } else {
            groups.push::<WIDTH>(group, out);
        }
    }
    match rest {
        [] => {}
        [first, others @ ..] if others.iter().all(|number| number == first) => {
            run(*first, rest.len(), WIDTH as u8, out);
        }
        _ => {
            let mut group = [0; 8];
            group[..rest.len()].copy_from_slice(rest);
            groups.push::<WIDTH>(&group, out);
        }
    }
}

/// The packed groups behind the last header.
struct Groups {
    header: usize,
    count: u8,
}

impl Groups {
    #[inline]
    fn push<const WIDTH: usize>(&mut self, group: &[u16; 8], out: &mut Vec<u8>) {
        if self.count == 0 || self.count == GROUPS_MAX {
            (self.header, self.count) = (out.len(), 0);
            out.push(0);
        }
        self.count += 1;
        out[self.header] = self.count << 1 | 1;
        if WIDTH <= 8 {
            let fold =
                |bits, (at, number): (usize, &u16)| bits | u64::from(*number) << (at * WIDTH);
            let bits = group.iter().enumerate().fold(0, fold);
            out.extend_from_slice(&bits.to_le_bytes()[..WIDTH.min(8)]);
        } else {
            let fold =
                |bits, (at, number): (usize, &u16)| bits | u128::from(*number) << (at * WIDTH);
            let bits = group.iter().enumerate().fold(0, fold);
            out.extend_from_slice(&bits.to_le_bytes()[..WIDTH]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads as the format says.
    fn decode(mut bytes: &[u8], width: u8, count: usize) -> Vec<u16> {
        let mut numbers = Vec::new();
        while numbers.len() < count {
            let mut header = 0_usize;
            let mut shift = 0;
            loop {
                let byte = bytes[0];
                bytes = &bytes[1..];
                header |= usize::from(byte & 0x7f) << shift;
                shift += 7;
                if byte & 0x80 == 0 {
                    break;
                }
            }
            if header & 1 == 0 {
                let size = usize::from(width.div_ceil(8));
                let mut number = [0; 2];
                number[..size].copy_from_slice(&bytes[..size]);
                bytes = &bytes[size..];
                numbers.extend(std::iter::repeat_n(u16::from_le_bytes(number), header >> 1));
            } else {
                let size = (header >> 1) * usize::from(width);
                let bit = |at: usize| u16::from(bytes[at / 8] >> (at % 8) & 1);
                for at in 0..(header >> 1) * 8 {
                    let of = |k: usize| bit(at * usize::from(width) + k) << k;
                    numbers.push((0..usize::from(width)).map(of).sum());
                }
                bytes = &bytes[size..];
            }
        }
        assert!(bytes.is_empty(), "bytes behind the last number");
        numbers.truncate(count);
        numbers
    }

    #[test]
    fn numbers_of_every_width_come_back() {
        for width in 0..=WIDTH_MAX {
            for count in [0, 1, 7, 8, 9, 100, 504, 505, 512, 5000] {
                for run in [1, 3, 8, 9, 40, 700] {
                    let number =
                        |at: usize| ((at / run * 0x9E37) as u32 & ((1 << width) - 1)) as u16;
                    let numbers: Vec<u16> = (0..count).map(number).collect();
                    let mut bytes = Vec::new();
                    encode(&numbers, width, &mut bytes);
                    assert_eq!(decode(&bytes, width, count), numbers, "{width} {count} {run}");
                }
            }
        }
    }

    #[test]
    fn the_width_holds_the_largest_number() {
        assert_eq!([0, 1, 2, 3, 255, 256, 65_535].map(width_for), [0, 1, 2, 2, 8, 9, 16]);
    }
}
