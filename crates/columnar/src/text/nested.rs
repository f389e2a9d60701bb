//! Text of arrays, composites, ranges and multiranges.
//!
//! **Invariant:** the text is walked once, from its first byte to its last; what is quoted is copied without its quotes before
//! it is read as a value of the part's type.

use super::{MALFORMED, push_sized, recode};
use crate::error::Fault;
use crate::shape::Shape;

/// The flags of `range_send`.
mod flag {
    pub(super) const EMPTY: u8 = 0x01;
    pub(super) const LOWER_INC: u8 = 0x02;
    pub(super) const UPPER_INC: u8 = 0x04;
    pub(super) const LOWER_INF: u8 = 0x08;
    pub(super) const UPPER_INF: u8 = 0x10;
}

/// One part of a larger value.
struct Part {
    text: Vec<u8>,
    was_quoted: bool,
}

struct Cursor<'a> {
    rest: &'a [u8],
}

impl Cursor<'_> {
    fn peek(&self) -> Option<u8> {
        self.rest.first().copied()
    }

    fn next(&mut self) -> Result<u8, Fault> {
        let (&byte, rest) = self.rest.split_first().ok_or(MALFORMED)?;
        self.rest = rest;
        Ok(byte)
    }

    fn expect(&mut self, byte: u8) -> Result<(), Fault> {
        if self.next()? == byte { Ok(()) } else { Err(MALFORMED) }
    }

    fn finish(self) -> Result<(), Fault> {
        if self.rest.is_empty() { Ok(()) } else { Err(MALFORMED) }
    }

    /// Reads up to one of `ends`, which stays. A backslash takes the next byte as it is; inside quotes two quotes are one.
    fn part(&mut self, ends: &[u8]) -> Result<Part, Fault> {
        let mut part = Part { text: Vec::new(), was_quoted: false };
        let mut is_quoted = false;
        loop {
            let byte = self.peek().ok_or(MALFORMED)?;
            if !is_quoted && ends.contains(&byte) {
                return Ok(part);
            }
            self.rest = &self.rest[1..];
            match byte {
                b'\\' => part.text.push(self.next()?),
                b'"' if is_quoted && self.peek() == Some(b'"') => part.text.push(self.next()?),
                b'"' => {
                    is_quoted = !is_quoted;
                    part.was_quoted = true;
                }
                _ => part.text.push(byte),
            }
        }
    }
}

/// Appends `array_send`'s form. Of arrays that are no lists only as much as tells the decoder so.
pub(super) fn recode_array(element: &Shape, text: &[u8], out: &mut Vec<u8>) -> Result<(), Fault> {
    let (bounds, text) = match text.iter().position(|byte| *byte == b'=') {
        Some(at) if text.first() == Some(&b'[') => (&text[..at], &text[at + 1..]),
        _ => (&b""[..], text),
    };
    let dimensions = text.iter().take_while(|byte| **byte == b'{').count();
    if text == b"{}" {
        push_ints(out, &[0, 0, 0]);
        return Ok(());
    }
    if dimensions == 0 {
        return Err(MALFORMED);
    }
    if dimensions != 1 {
        let dimensions = i32::try_from(dimensions).map_err(|_| MALFORMED)?;
        push_ints(out, &[dimensions, 0, 0]);
        return Ok(());
    }
    push_ints(out, &[1, 0, 0, 0, lower_bound(bounds)?]);
    let count_at = out.len() - 8;
    let mut cursor = Cursor { rest: text };
    cursor.expect(b'{')?;
    let mut count = 0_i32;
    loop {
        let part = cursor.part(b",}")?;
        if !part.was_quoted && part.text == b"NULL" {
            push_ints(out, &[-1]);
        } else {
            push_sized(out, |out| recode(element, &part.text, out))?;
        }
        count += 1;
        if cursor.next()? == b'}' {
            break;
        }
    }
    out[count_at..count_at + 4].copy_from_slice(&count.to_be_bytes());
    cursor.finish()
}

/// `[l:u]`, or nothing where it is 1.
fn lower_bound(bounds: &[u8]) -> Result<i32, Fault> {
    if bounds.is_empty() {
        return Ok(1);
    }
    let bounds = bounds.strip_prefix(b"[").and_then(|bounds| bounds.strip_suffix(b"]"));
    let bounds = bounds.ok_or(MALFORMED)?;
    let colon = bounds.iter().position(|byte| *byte == b':').ok_or(MALFORMED)?;
    super::parse(&bounds[..colon])
}

/// Appends `record_send`'s form.
pub(super) fn recode_composite(
    shapes: &[Shape],
    text: &[u8],
    out: &mut Vec<u8>,
) -> Result<(), Fault> {
    let mut cursor = Cursor { rest: text };
    cursor.expect(b'(')?;
    push_ints(out, &[i32::try_from(shapes.len()).map_err(|_| MALFORMED)?]);
    for (index, shape) in shapes.iter().enumerate() {
        let part = cursor.part(b",)")?;
        push_ints(out, &[0]);
        if part.text.is_empty() && !part.was_quoted {
            push_ints(out, &[-1]);
        } else {
            push_sized(out, |out| recode(shape, &part.text, out))?;
        }
        let end = if index + 1 == shapes.len() { b')' } else { b',' };
        cursor.expect(end)?;
    }
    cursor.finish()
}

/// Appends `range_send`'s form.
pub(super) fn recode_range(bound: &Shape, text: &[u8], out: &mut Vec<u8>) -> Result<(), Fault> {
    if text == b"empty" {
        out.push(flag::EMPTY);
        return Ok(());
    }
    let mut cursor = Cursor { rest: text };
    push_range(&mut cursor, bound, out)?;
    cursor.finish()
}

/// Appends `multirange_send`'s form.
pub(super) fn recode_multirange(
    bound: &Shape,
    text: &[u8],
    out: &mut Vec<u8>,
) -> Result<(), Fault> {
    let count_at = out.len();
    push_ints(out, &[0]);
    let mut cursor = Cursor { rest: text };
    cursor.expect(b'{')?;
    let mut count = 0_i32;
    while cursor.peek() != Some(b'}') {
        if count > 0 {
            cursor.expect(b',')?;
        }
        push_sized(out, |out| push_range(&mut cursor, bound, out))?;
        count += 1;
    }
    cursor.expect(b'}')?;
    out[count_at..count_at + 4].copy_from_slice(&count.to_be_bytes());
    cursor.finish()
}

fn push_range(cursor: &mut Cursor<'_>, bound: &Shape, out: &mut Vec<u8>) -> Result<(), Fault> {
    let mut flags = match cursor.next()? {
        b'[' => flag::LOWER_INC,
        b'(' => 0,
        _ => return Err(MALFORMED),
    };
    let flags_at = out.len();
    out.push(0);
    for (ends, infinite) in [(&b","[..], flag::LOWER_INF), (b")]", flag::UPPER_INF)] {
        let part = cursor.part(ends)?;
        if part.text.is_empty() && !part.was_quoted {
            flags |= infinite;
        } else {
            push_sized(out, |out| recode(bound, &part.text, out))?;
        }
        if cursor.next()? == b']' {
            flags |= flag::UPPER_INC;
        }
    }
    out[flags_at] = flags;
    Ok(())
}

fn push_ints(out: &mut Vec<u8>, ints: &[i32]) {
    out.extend(ints.iter().flat_map(|int| int.to_be_bytes()));
}
