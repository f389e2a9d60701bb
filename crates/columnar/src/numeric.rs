//! The binary form of numeric: as a scaled integer, and as the text that numeric_out prints.
//!
//! **Invariant:** the scaled integer is exact: digits behind the scale or above the precision are an error, never rounded.
//!
//! The form is four 16-bit words (digit count, weight, sign, display scale) and base-10000 digits, most significant first;
//! the first digit stands for `10000 ^ weight`. PostgreSQL's `numeric_send`; manual, section 8.1.2.

use crate::error::Fault;
use crate::slot::Slot;

const NEGATIVE: u16 = 0x4000;
const NAN: u16 = 0xC000;
const INFINITY: u16 = 0xD000;
const NEGATIVE_INFINITY: u16 = 0xF000;
/// NUMERIC_DSCALE_MAX: no numeric shows more digits behind the point.
const DISPLAY_SCALE_MAX: u16 = 0x3FFF;

const HEADER: usize = 8;
/// Base-10000 digits that the fast path takes: those of one 64-bit word.
const DIGITS_IN_WORD: i32 = 4;
/// One in each 16-bit lane of a word.
const LANES: u64 = 0x0001_0001_0001_0001;
const LANE_TOPS: u64 = 0x8000 * LANES;

const MALFORMED: Fault = Fault::Malformed("not a numeric");
const NOT_DECLARED: Fault = Fault::Malformed("a numeric with more digits than its type declares");

/// The four words in front of the digits, and the digits as bytes.
struct Numeric<'a> {
    weight: i32,
    sign: u16,
    display_scale: u16,
    digits: &'a [u8],
}

impl<'a> Numeric<'a> {
    #[inline]
    fn parse(bytes: &'a [u8]) -> Option<Self> {
        let (head, digits) = bytes.split_first_chunk::<HEADER>()?;
        let word = |index: usize| u16::from_be_bytes([head[index], head[index + 1]]);
        if digits.len() != usize::from(word(0)) * 2 {
            return None;
        }
        Some(Self {
            weight: i32::from(word(2) as i16),
            sign: word(4),
            display_scale: word(6),
            digits,
        })
    }

    fn digit_count(&self) -> i32 {
        // A count of 16 bits.
        (self.digits.len() / 2) as i32
    }

    /// The digit at `index`; those before the first and behind the last are zero.
    #[inline]
    fn digit(&self, index: i32) -> u16 {
        let at = usize::try_from(index).unwrap_or(usize::MAX / 4) * 2;
        match self.digits.get(at..).and_then(<[u8]>::first_chunk::<2>) {
            Some(&bytes) => u16::from_be_bytes(bytes),
            None => 0,
        }
    }

    /// Names a value that is not a number of finite size.
    fn special(&self) -> Option<&'static str> {
        match self.sign {
            NAN => Some("NaN"),
            INFINITY => Some("Infinity"),
            NEGATIVE_INFINITY => Some("-Infinity"),
            _ => None,
        }
    }

    fn check(&self) -> Result<(), Fault> {
        let digits_fit = (0..self.digit_count()).all(|index| self.digit(index) < 10_000);
        let sign_fits = matches!(self.sign, 0 | NEGATIVE);
        if digits_fit && sign_fits && self.display_scale <= DISPLAY_SCALE_MAX {
            return Ok(());
        }
        Err(MALFORMED)
    }
}

/// How numerics of one column become integers: the value times ten to the scale.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Scaling {
    /// Whole base-10000 digits behind the point.
    scale_groups: i32,
    /// Ten to the precision: every value is below it.
    limit: u128,
    /// The same as far as the fast path reaches.
    small_limit: u64,
}

impl Scaling {
    pub(crate) fn new(precision: u8, scale: u8) -> Self {
        Self {
            scale_groups: i32::from(scale / 4),
            limit: 10u128.pow(u32::from(precision.min(38))),
            small_limit: 10u64.pow(u32::from(precision.min(18))),
        }
    }

    /// The common case: finite, few digits, fits; `None` sends the value to [`Scaling::exact`]. `REST` is the scale modulo 4.
    ///
    /// Header and first four digits are two words, whatever the number of digits: no loop, hence no branch that depends on
    /// the value. Reads up to 16 bytes from the value's start; what lies behind the value is masked.
    #[inline]
    pub(crate) fn small<const REST: u32>(self, data: &[u8], slot: Slot) -> Option<i64> {
        let bytes = data.get(slot.start as usize..)?.first_chunk::<16>()?;
        let (head, digits) = bytes.split_first_chunk::<8>()?;
        let head = u64::from_be_bytes(*head);
        let digits = u64::from_be_bytes(*digits.first_chunk()?);
        let digit_count = (head >> 48) as u32;
        let weight = i32::from((head >> 32) as i16);
        let sign = (head >> 16) as u16;
        // Base-10000 digits from the first one to the one that the scale ends in.
        let kept = weight + 1 + self.scale_groups + i32::from(REST > 0);
        let digits_fit = (digit_count as i32..=DIGITS_IN_WORD).contains(&kept);
        let length_fits = slot.len == HEADER as u32 + 2 * digit_count;
        if !digits_fit || !length_fits || sign & !NEGATIVE != 0 {
            return None;
        }
        let present = digits & !u64::MAX.unbounded_shr(16 * digit_count);
        let lanes = present.unbounded_shr(16 * (DIGITS_IN_WORD - kept) as u32);
        // Sets the top bit of each 16-bit lane that holds 10000 or more.
        let too_large = ((lanes & !LANE_TOPS) + (0x8000 - 10_000) * LANES) | lanes;
        let lane = |index: u32| (lanes >> (16 * index)) & 0xFFFF;
        let high = lane(3) * 10_000 + lane(2);
        let low = lane(1) * 10_000 + lane(0);
        let value = high * 100_000_000 + low;
        let cut = if REST > 0 { 10u64.pow(4 - REST) } else { 1 };
        if too_large & LANE_TOPS != 0 || !value.is_multiple_of(cut) {
            return None;
        }
        let value = value / cut;
        if value >= self.small_limit {
            return None;
        }
        // Below 10^16, so the sign bit is free.
        let value = value as i64;
        Some(if sign == NEGATIVE { -value } else { value })
    }

    /// Every case, or why there is none.
    pub(crate) fn exact(self, bytes: &[u8], rest: u32) -> Result<i128, Fault> {
        let numeric = Numeric::parse(bytes).ok_or(MALFORMED)?;
        if let Some(what) = numeric.special() {
            return Err(Fault::Unrepresentable(what));
        }
        numeric.check()?;
        if numeric.digit_count() == 0 {
            return Ok(0);
        }
        let groups = numeric.weight + 1 + self.scale_groups;
        let mut value = 0u128;
        for index in 0..groups {
            value = value
                .checked_mul(10_000)
                .and_then(|value| value.checked_add(u128::from(numeric.digit(index))))
                .ok_or(NOT_DECLARED)?;
            if value >= self.limit {
                return Err(NOT_DECLARED);
            }
        }
        // One digit may be cut; whatever is behind it must be zero.
        let digit = if groups >= 0 { u128::from(numeric.digit(groups)) } else { 0 };
        let cut = 10u128.pow(4 - rest);
        let behind = if groups >= 0 { groups + 1 } else { 0 };
        let is_exact = digit.is_multiple_of(cut)
            && (behind..numeric.digit_count()).all(|index| numeric.digit(index) == 0);
        let value = value.checked_mul(10u128.pow(rest)).and_then(|v| v.checked_add(digit / cut));
        match value {
            // Below 10^38, so the sign bit is free.
            Some(value) if is_exact && value < self.limit => {
                let value = value as i128;
                Ok(if numeric.sign == NEGATIVE { -value } else { value })
            }
            _ => Err(NOT_DECLARED),
        }
    }
}

/// Appends what numeric_out prints.
pub(crate) fn write_text(bytes: &[u8], out: &mut Vec<u8>) -> Result<(), Fault> {
    let numeric = Numeric::parse(bytes).ok_or(MALFORMED)?;
    if let Some(what) = numeric.special() {
        out.extend_from_slice(what.as_bytes());
        return Ok(());
    }
    numeric.check()?;
    if numeric.sign == NEGATIVE {
        out.push(b'-');
    }
    write_whole(&numeric, out);
    let mut left = usize::from(numeric.display_scale);
    if left > 0 {
        out.push(b'.');
    }
    let mut index = numeric.weight + 1;
    while left > 0 {
        let take = left.min(4);
        out.extend_from_slice(&decimal_digits(numeric.digit(index))[..take]);
        left -= take;
        index += 1;
    }
    Ok(())
}

/// The digits in front of the point, without leading zeros.
fn write_whole(numeric: &Numeric<'_>, out: &mut Vec<u8>) {
    if numeric.weight < 0 {
        out.push(b'0');
        return;
    }
    let first = decimal_digits(numeric.digit(0));
    let zeros = first.iter().take(3).take_while(|&&digit| digit == b'0').count();
    out.extend_from_slice(&first[zeros..]);
    for index in 1..=numeric.weight {
        out.extend_from_slice(&decimal_digits(numeric.digit(index)));
    }
}

fn decimal_digits(digit: u16) -> [u8; 4] {
    [1000, 100, 10, 1].map(|unit| b'0' + (digit / unit % 10) as u8)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numeric(weight: i16, sign: u16, scale: u16, digits: &[u16]) -> Vec<u8> {
        let words = [digits.len() as u16, weight as u16, sign, scale];
        words.iter().chain(digits).flat_map(|word| word.to_be_bytes()).collect()
    }

    /// The fast path, with other bytes behind the value as in a row.
    fn small<const REST: u32>(scaling: Scaling, bytes: &[u8]) -> Option<i64> {
        let data = [bytes, &[0x12; 16]].concat();
        scaling.small::<REST>(&data, Slot { start: 0, len: bytes.len() as u32 })
    }

    fn text(bytes: &[u8]) -> String {
        let mut out = Vec::new();
        write_text(bytes, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn the_fast_path_and_the_exact_path_agree() {
        let scaling = Scaling::new(15, 2);
        let price = numeric(1, NEGATIVE, 2, &[2, 1168, 2300]);
        assert_eq!(small::<2>(scaling, &price), Some(-2_116_823));
        assert_eq!(scaling.exact(&price, 2), Ok(-2_116_823));
        let million = numeric(1, 0, 2, &[100]);
        assert_eq!(small::<2>(scaling, &million), Some(100_000_000));
        assert_eq!(scaling.exact(&million, 2), Ok(100_000_000));
    }

    #[test]
    fn digits_behind_the_scale_are_refused_and_not_rounded() {
        let third = numeric(-1, 0, 3, &[3330]);
        let scaling = Scaling::new(15, 2);
        assert_eq!(small::<2>(scaling, &third), None);
        assert_eq!(scaling.exact(&third, 2), Err(NOT_DECLARED));
        let far = numeric(-3, 0, 12, &[1]);
        assert_eq!(small::<2>(scaling, &far), None);
        assert_eq!(scaling.exact(&far, 2), Err(NOT_DECLARED));
    }

    #[test]
    fn digits_above_the_precision_are_refused() {
        let scaling = Scaling::new(3, 0);
        let thousand = numeric(0, 0, 0, &[1000]);
        assert_eq!(small::<0>(scaling, &thousand), None);
        assert_eq!(scaling.exact(&thousand, 0), Err(NOT_DECLARED));
        assert_eq!(scaling.exact(&numeric(0, 0, 0, &[999]), 0), Ok(999));
    }

    #[test]
    fn the_widest_decimal_fits() {
        let nines = numeric(9, 0, 0, &[99, 9999, 9999, 9999, 9999, 9999, 9999, 9999, 9999, 9999]);
        assert_eq!(Scaling::new(38, 0).exact(&nines, 0), Ok(10i128.pow(38) - 1));
        assert_eq!(Scaling::new(37, 0).exact(&nines, 0), Err(NOT_DECLARED));
    }

    #[test]
    fn values_that_are_no_numbers_are_named() {
        for (sign, name) in [(NAN, "NaN"), (INFINITY, "Infinity"), (NEGATIVE_INFINITY, "-Infinity")]
        {
            let value = numeric(0, sign, 0, &[]);
            assert_eq!(small::<2>(Scaling::new(15, 2), &value), None);
            assert_eq!(Scaling::new(15, 2).exact(&value, 2), Err(Fault::Unrepresentable(name)));
            assert_eq!(text(&value), name);
        }
    }

    #[test]
    fn text_keeps_the_display_scale_and_pads_groups() {
        assert_eq!(text(&numeric(0, 0, 2, &[1])), "1.00");
        assert_eq!(text(&numeric(1, NEGATIVE, 3, &[12, 34, 5000])), "-120034.500");
        assert_eq!(text(&numeric(-2, 0, 9, &[12])), "0.000000120");
        assert_eq!(text(&numeric(0, 0, 0, &[])), "0");
        assert_eq!(text(&numeric(2, 0, 0, &[7])), "700000000");
    }

    #[test]
    fn a_digit_of_ten_thousand_is_malformed() {
        let bytes = numeric(0, 0, 0, &[10_000]);
        assert_eq!(small::<2>(Scaling::new(15, 2), &bytes), None);
        assert_eq!(Scaling::new(15, 2).exact(&bytes, 2), Err(MALFORMED));
        assert_eq!(write_text(&bytes, &mut Vec::new()), Err(MALFORMED));
    }
}
