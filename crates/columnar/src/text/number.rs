//! Text of numerics and of bytes.

use super::MALFORMED;
use crate::error::Fault;

const NEGATIVE: u16 = 0x4000;
const NAN: u16 = 0xC000;
const INFINITY: u16 = 0xD000;
const NEGATIVE_INFINITY: u16 = 0xF000;

/// Decimal digits in one base-10000 digit.
const GROUP: usize = 4;

/// Appends the binary form of a numeric: digit count, weight, sign, display scale, base-10000 digits.
pub(super) fn recode_numeric(text: &[u8], out: &mut Vec<u8>) -> Result<(), Fault> {
    let special = match text {
        b"NaN" => Some(NAN),
        b"Infinity" => Some(INFINITY),
        b"-Infinity" => Some(NEGATIVE_INFINITY),
        _ => None,
    };
    if let Some(sign) = special {
        push_words(out, [0, 0, sign, 0]);
        return Ok(());
    }
    let (sign, digits) = match text {
        [b'-', rest @ ..] => (NEGATIVE, rest),
        _ => (0, text),
    };
    let point = digits.iter().position(|byte| *byte == b'.').unwrap_or(digits.len());
    let (whole, fraction) = (&digits[..point], digits.get(point + 1..).unwrap_or_default());
    let is_number = !whole.is_empty() && whole.iter().chain(fraction).all(u8::is_ascii_digit);
    if !is_number {
        return Err(MALFORMED);
    }
    let scale = u16::try_from(fraction.len()).map_err(|_| MALFORMED)?;
    let groups = groups_of(whole, fraction);
    let leading = groups.iter().take_while(|group| **group == 0).count();
    let trailing = groups[leading..].iter().rev().take_while(|group| **group == 0).count();
    let kept = &groups[leading..groups.len() - trailing];
    let weight = whole.len().div_ceil(GROUP) as i64 - 1 - leading as i64;
    let weight = if kept.is_empty() { 0 } else { weight };
    let sign = if kept.is_empty() { 0 } else { sign };
    let count = u16::try_from(kept.len()).map_err(|_| MALFORMED)?;
    let weight = i16::try_from(weight).map_err(|_| MALFORMED)?;
    push_words(out, [count, weight as u16, sign, scale]);
    out.extend(kept.iter().flat_map(|group| group.to_be_bytes()));
    Ok(())
}

/// Base-10000 digits: those before the point fill groups from the right, those behind it from the left.
fn groups_of(whole: &[u8], fraction: &[u8]) -> Vec<u16> {
    let value = |digits: &[u8]| {
        digits.iter().fold(0_u16, |value, digit| value * 10 + u16::from(digit - b'0'))
    };
    let (first, rest) = whole.split_at(whole.len() % GROUP);
    let mut groups = Vec::with_capacity(whole.len() / GROUP + fraction.len() / GROUP + 2);
    if !first.is_empty() {
        groups.push(value(first));
    }
    groups.extend(rest.chunks(GROUP).map(value));
    groups.extend(fraction.chunks(GROUP).map(|digits| {
        // A missing digit is a zero.
        value(digits) * 10_u16.pow((GROUP - digits.len()) as u32)
    }));
    groups
}

fn push_words(out: &mut Vec<u8>, words: [u16; 4]) {
    out.extend(words.iter().flat_map(|word| word.to_be_bytes()));
}

/// Appends the bytes that pairs of hexadecimal digits stand for.
pub(super) fn push_hex(
    mut digits: impl Iterator<Item = u8>,
    out: &mut Vec<u8>,
) -> Result<(), Fault> {
    while let Some(high) = digits.next() {
        let low = digits.next().ok_or(MALFORMED)?;
        out.push(hex_value(high)? << 4 | hex_value(low)?);
    }
    Ok(())
}

fn hex_value(digit: u8) -> Result<u8, Fault> {
    match digit {
        b'0'..=b'9' => Ok(digit - b'0'),
        b'a'..=b'f' => Ok(digit - b'a' + 10),
        b'A'..=b'F' => Ok(digit - b'A' + 10),
        _ => Err(MALFORMED),
    }
}
