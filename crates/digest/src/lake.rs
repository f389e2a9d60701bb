//! Values of PostgreSQL as a lake has them.
//!
//! **Invariant:** what differs from the plain canonical form is a mapping that `docs/types.md` declares, and nothing else: so
//! equal sums of a source and a lake mean that the lake holds what it promises. Every value that is lost by one of them is
//! noted in its row ([`Encoder::push_replaced`]), so that it can be counted.
//!
//! | type | as the lake has it |
//! |---|---|
//! | `char(n)` | without trailing blanks |
//! | `"char"` | zero as the empty text, bytes above 127 as `\` and three octal digits |
//! | `xml` | in the value form without a declaration, which the stream loses |
//! | dates, times, intervals, decimals, arrays | where values are replaced: NULL for those without a form |

use tidemark_model::{DataType, TypeKind, Wire};

use crate::canonical::{Encoder, Form, Quick, RowBuffer};
use crate::program::{Fault, Op};
use crate::{DigestColumn, Error, Result};

/// From 1970 to 2000.
const EPOCH_MICROS: i64 = 946_684_800_000_000;
const DAY_MICROS: i64 = 86_400_000_000;
/// What PostgreSQL adds to the typmod of a numeric.
const TYPMOD_OFFSET: i32 = 4;

/// The op of a column.
pub(crate) fn op(of: &DigestColumn<'_>, replaces: bool) -> Op {
    let data_type = &of.column.data_type;
    match of.wire {
        Wire::CastToText if is_xml(data_type) => Op::InLake(Box::new(Op::Xml)),
        Wire::CastToText => Op::Text,
        Wire::Own => of_type(data_type, of.column.typmod, replaces),
    }
}

/// One cell as it is in a row, of what the server sends for a column; `None` is NULL.
///
/// # Errors
/// The field is not what the type's send function writes.
pub fn lake_cell(
    of: &DigestColumn<'_>,
    replaces: bool,
    field: Option<&[u8]>,
    form: Form,
) -> Result<Vec<u8>> {
    let op = op(of, replaces);
    let mut row = RowBuffer::new();
    let mut out = Encoder::new(&mut row, form);
    match field {
        None => out.push_null(op.tag()),
        Some(field) => op.push(field, &mut out).map_err(|what| {
            let column = of.column.name.clone();
            Error::MalformedField { row: 0, column, what }
        })?,
    }
    Ok(row.as_slice().to_vec())
}

/// An XML document without its declaration and without the line feeds before the first element: what the server's output
/// function leaves away, and a cast to text keeps.
pub fn without_declaration(document: &[u8]) -> &[u8] {
    let rest = match document.strip_prefix(b"<?xml") {
        Some(rest) => match memchr::memmem::find(rest, b"?>") {
            Some(end) => &rest[end + 2..],
            None => document,
        },
        None => document,
    };
    let feeds = rest.iter().take_while(|byte| **byte == b'\n').count();
    &rest[feeds..]
}

fn is_xml(data_type: &DataType) -> bool {
    match &data_type.kind {
        TypeKind::Domain { base, .. } => is_xml(base),
        _ => data_type.is_builtin("xml"),
    }
}

fn of_type(data_type: &DataType, typmod: i32, replaces: bool) -> Op {
    let limited = |op: Op| if replaces { Op::InLake(Box::new(op)) } else { op };
    match &data_type.kind {
        TypeKind::Domain { base, typmod } => of_type(base, *typmod, replaces),
        TypeKind::Array(element) => {
            limited(Op::Array(Box::new(of_type(element, typmod, replaces))))
        }
        TypeKind::Range(subtype) => Op::Range(Box::new(of_type(subtype, -1, replaces))),
        TypeKind::Multirange(subtype) => {
            let range = match &subtype.kind {
                TypeKind::Range(_) => of_type(subtype, -1, replaces),
                _ => Op::Range(Box::new(of_type(subtype, -1, replaces))),
            };
            Op::Multirange(Box::new(range))
        }
        TypeKind::Composite(attributes) => {
            let of = |(_, of, typmod): &(String, DataType, i32)| of_type(of, *typmod, replaces);
            Op::Composite(attributes.iter().map(of).collect())
        }
        _ => match Op::of_type(data_type) {
            op @ (Op::Char | Op::Bpchar | Op::Xml) => Op::InLake(Box::new(op)),
            op @ (Op::Date | Op::Time | Op::Timestamp | Op::TimestampTz | Op::Interval) => {
                limited(op)
            }
            Op::Numeric if is_decimal(typmod) => limited(Op::Numeric),
            op => op,
        },
    }
}

/// Whether a numeric of this typmod has a precision and a scale that a 128-bit decimal holds.
fn is_decimal(typmod: i32) -> bool {
    let packed = typmod.saturating_sub(TYPMOD_OFFSET);
    let precision = (packed >> 16) & 0xffff;
    // 11 bits, signed.
    let scale = ((packed & 0x7ff) ^ 0x400) - 0x400;
    typmod >= TYPMOD_OFFSET && (1..=38).contains(&precision) && (0..=precision).contains(&scale)
}

pub(crate) fn has_two_forms(of: &Op) -> bool {
    matches!(of, Op::Xml) || !matches!(of, Op::Bpchar) && of.has_two_forms()
}

/// The quick ways leave to the plain one whatever has no form.
pub(crate) fn quick(of: &Op) -> Quick {
    match of {
        Op::Char | Op::Xml | Op::Bpchar => Quick::No,
        _ => of.quick(),
    }
}

pub(crate) fn push(of: &Op, field: &[u8], out: &mut Encoder<'_>) -> Result<(), Fault> {
    match of {
        Op::Char => push_char(field, out),
        Op::Bpchar => {
            let blanks = field.iter().rev().take_while(|byte| **byte == b' ').count();
            out.push_text(&field[..field.len() - blanks]);
            Ok(())
        }
        Op::Xml if out.form() == Form::Value => {
            out.push_text(without_declaration(field));
            Ok(())
        }
        Op::Xml => {
            out.push_text(field);
            Ok(())
        }
        _ if has_form(of, field) => of.push(field, out),
        _ => {
            out.push_replaced(of.tag());
            Ok(())
        }
    }
}

/// As PostgreSQL 16 prints it.
fn push_char(field: &[u8], out: &mut Encoder<'_>) -> Result<(), Fault> {
    match field {
        [0] => out.push_text(b""),
        [byte @ 0x80..=0xff] => {
            let digit = |shift: u8| b'0' + (byte >> shift & 7);
            out.push_text(&[b'\\', digit(6), digit(3), digit(0)]);
        }
        [_] => out.push_text(field),
        _ => return Err("a \"char\" of more than one byte"),
    }
    Ok(())
}

/// Whether the lake has a form for a value. What is malformed is left to the op that reads it.
fn has_form(of: &Op, field: &[u8]) -> bool {
    let int8 = || field.try_into().ok().map(i64::from_be_bytes);
    match of {
        Op::Date => !matches!(field, [0x7f, 0xff, 0xff, 0xff] | [0x80, 0, 0, 0]),
        Op::Time => int8() != Some(DAY_MICROS),
        Op::Timestamp | Op::TimestampTz => int8()
            .is_none_or(|micros| micros != i64::MIN && micros.checked_add(EPOCH_MICROS).is_some()),
        Op::Interval => {
            let is_extreme = |first: u8, rest: u8| {
                // Microseconds, days, months: each at its extreme.
                let starts = [0, 8, 12];
                let byte = |(at, byte): (usize, &u8)| {
                    *byte == if starts.contains(&at) { first } else { rest }
                };
                field.iter().enumerate().all(byte)
            };
            !is_extreme(0x7f, 0xff) && !is_extreme(0x80, 0)
        }
        // The sign is 0 or 0x4000 for numbers.
        Op::Numeric => !matches!(field, [_, _, _, _, 0xc0..=0xff, ..]),
        // Dimensions, a flag, the element's OID, then length and lower bound of each.
        Op::Array(_) => match field.split_first_chunk::<4>() {
            Some(([0, 0, 0, 0], _)) => true,
            Some(([0, 0, 0, 1], rest)) => rest.get(12..16) == Some(&[0, 0, 0, 1]),
            _ => false,
        },
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_declaration_goes_and_nothing_else() {
        for (document, rest) in [
            ("<?xml version=\"1.0\"?>\n<a/>", "<a/>"),
            ("<?xml version='1.0' encoding='utf-8'?><a>\n</a>", "<a>\n</a>"),
            ("<a/>", "<a/>"),
            ("\n\n<a/>", "<a/>"),
            (" <a/>", " <a/>"),
            ("<?xml", "<?xml"),
            ("text", "text"),
        ] {
            assert_eq!(without_declaration(document.as_bytes()), rest.as_bytes(), "{document}");
        }
    }

    #[test]
    fn what_a_lake_cannot_hold_is_told_from_its_neighbours() {
        let int8 = i64::to_be_bytes;
        let last = i64::MAX - EPOCH_MICROS;
        let cases: [(&Op, &[u8], bool); 14] = [
            (&Op::Date, &i32::MAX.to_be_bytes(), false),
            (&Op::Date, &i32::MIN.to_be_bytes(), false),
            (&Op::Date, &(i32::MAX - 1).to_be_bytes(), true),
            (&Op::Time, &int8(DAY_MICROS), false),
            (&Op::Time, &int8(DAY_MICROS - 1), true),
            (&Op::Timestamp, &int8(i64::MAX), false),
            (&Op::Timestamp, &int8(i64::MIN), false),
            (&Op::TimestampTz, &int8(last + 1), false),
            (&Op::TimestampTz, &int8(last), true),
            (&Op::Numeric, &[0, 0, 0, 0, 0xc0, 0, 0, 0], false),
            (&Op::Numeric, &[0, 1, 0, 0, 0x40, 0, 0, 0, 0, 1], true),
            (&Op::Interval, &[0; 16], true),
            (
                &Op::Interval,
                &[&int8(i64::MAX)[..], &i32::MAX.to_be_bytes(), &i32::MAX.to_be_bytes()].concat(),
                false,
            ),
            (
                &Op::Interval,
                &[&int8(i64::MIN)[..], &i32::MIN.to_be_bytes(), &i32::MIN.to_be_bytes()].concat(),
                false,
            ),
        ];
        for (op, field, expected) in cases {
            assert_eq!(has_form(op, field), expected, "{op:?} {field:?}");
        }
    }

    #[test]
    fn a_decimal_is_what_its_typmod_says() {
        let typmod = |precision: i32, scale: i32| (precision << 16 | scale & 0x7ff) + TYPMOD_OFFSET;
        for (typmod, expected) in [
            (-1, false),
            (typmod(10, 2), true),
            (typmod(38, 38), true),
            (typmod(39, 0), false),
            (typmod(3, -2), false),
            (typmod(2, 5), false),
        ] {
            assert_eq!(is_decimal(typmod), expected, "{typmod}");
        }
    }
}
