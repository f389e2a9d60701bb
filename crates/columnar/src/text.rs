//! Values as PostgreSQL prints them, turned into its binary form.
//!
//! **Invariant:** what [`Mapping::recode_text`] writes is what the type's send function would have written, as far as the
//! decoder looks at it; text that the type's output function does not write is refused. A zero stands for the OIDs that
//! arrays and composites carry, because nothing here reads them.
//!
//! The stream comes as text where not every column of a job can come in binary form. Only one decoder then decides what a
//! value becomes, and both ways into a lake give the same bytes.
//!
//! The settings are those that every connection of ours pins: DateStyle ISO, IntervalStyle postgres, bytea_output hex,
//! extra_float_digits above 0. PostgreSQL manual: chapter 8; arrays 8.15.6, composites 8.16.6, ranges 8.17.5.

mod nested;
mod number;
mod time;

use tidemark_model::Wire;

use crate::Result;
use crate::error::Fault;
use crate::mapping::Mapping;
use crate::shape::Shape;

const MALFORMED: Fault = Fault::Malformed("text that is not of its type");

impl Mapping {
    /// Appends the binary form of a value that came as the text of its output function.
    ///
    /// # Errors
    /// The text is not a value of the column's type; `out` may then hold a part of it.
    pub fn recode_text(&self, text: &[u8], out: &mut Vec<u8>) -> Result<()> {
        if self.wire() == Wire::CastToText {
            out.extend_from_slice(text);
            return Ok(());
        }
        recode(self.shape(), text, out).map_err(|fault| {
            let field = self.field();
            let type_name = field.metadata().get("tidemark:pg_type").map_or("", String::as_str);
            fault.of_column(field.name(), type_name)
        })
    }
}

/// Appends the binary form of one value.
fn recode(shape: &Shape, text: &[u8], out: &mut Vec<u8>) -> Result<(), Fault> {
    match shape {
        Shape::Bool => match text {
            b"t" => out.push(1),
            b"f" => out.push(0),
            _ => return Err(MALFORMED),
        },
        Shape::Int2 => out.extend(parse::<i16>(text)?.to_be_bytes()),
        Shape::Int4 => out.extend(parse::<i32>(text)?.to_be_bytes()),
        Shape::Int8 => out.extend(parse::<i64>(text)?.to_be_bytes()),
        Shape::Unsigned4 => out.extend(parse::<u32>(text)?.to_be_bytes()),
        Shape::Float4 => out.extend(parse::<f32>(text)?.to_be_bytes()),
        Shape::Float8 => out.extend(parse::<f64>(text)?.to_be_bytes()),
        Shape::Decimal { .. } | Shape::NumericText => number::recode_numeric(text, out)?,
        Shape::Text | Shape::TrimmedText => out.extend_from_slice(text),
        Shape::Char => out.push(char_byte(text)?),
        Shape::Jsonb => {
            out.push(1);
            out.extend_from_slice(text);
        }
        Shape::Bytea => {
            let digits = text.strip_prefix(b"\\x").ok_or(MALFORMED)?;
            number::push_hex(digits.iter().copied(), out)?;
        }
        Shape::Uuid => {
            let start = out.len();
            number::push_hex(text.iter().copied().filter(|byte| *byte != b'-'), out)?;
            if out.len() - start != 16 {
                return Err(MALFORMED);
            }
        }
        Shape::Date => out.extend(time::date(text)?.to_be_bytes()),
        Shape::Timestamp => out.extend(time::timestamp(text, false)?.to_be_bytes()),
        Shape::Instant => out.extend(time::timestamp(text, true)?.to_be_bytes()),
        Shape::Time => out.extend(time::time(text)?.to_be_bytes()),
        Shape::Interval => time::recode_interval(text, out)?,
        Shape::List(element, _) => nested::recode_array(element, text, out)?,
        Shape::Struct(shapes, _) => nested::recode_composite(shapes, text, out)?,
        Shape::Range(bound, _) => nested::recode_range(bound, text, out)?,
        Shape::Multirange(bound, _) => nested::recode_multirange(bound, text, out)?,
    }
    Ok(())
}

fn parse<T: std::str::FromStr>(text: &[u8]) -> Result<T, Fault> {
    std::str::from_utf8(text).ok().and_then(|text| text.parse().ok()).ok_or(MALFORMED)
}

/// "char": nothing for zero, octal for what is not ASCII (from version 16 on), otherwise the byte itself.
fn char_byte(text: &[u8]) -> Result<u8, Fault> {
    match *text {
        [] => Ok(0),
        [byte] => Ok(byte),
        [b'\\', high @ b'0'..=b'3', middle @ b'0'..=b'7', low @ b'0'..=b'7'] => {
            Ok((high - b'0') << 6 | (middle - b'0') << 3 | (low - b'0'))
        }
        _ => Err(MALFORMED),
    }
}

/// Appends a length and what `write` appends.
fn push_sized(
    out: &mut Vec<u8>,
    write: impl FnOnce(&mut Vec<u8>) -> Result<(), Fault>,
) -> Result<(), Fault> {
    let at = out.len();
    out.extend([0; 4]);
    write(out)?;
    let len = i32::try_from(out.len() - at - 4).map_err(|_| Fault::TooLarge)?;
    out[at..at + 4].copy_from_slice(&len.to_be_bytes());
    Ok(())
}
