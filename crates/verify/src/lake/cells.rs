//! From Arrow values to canonical cells.
//!
//! **Invariant:** nothing of what wrote the lake is used. How a value is read follows from its PostgreSQL type and from the
//! Arrow type that the file has; a pair that `docs/types.md` does not have is refused, never guessed.

use std::sync::Arc;

use arrow_array::cast::AsArray as _;
use arrow_array::types::{
    Date32Type, Decimal128Type, Float32Type, Float64Type, Int16Type, Int32Type, Int64Type,
    Time64MicrosecondType, TimestampMicrosecondType, UInt32Type,
};
use arrow_array::{
    Array, ArrayRef, BinaryArray, BooleanArray, FixedSizeBinaryArray, ListArray, PrimitiveArray,
    StringArray, StructArray,
};
use arrow_schema::{DataType as Arrow, TimeUnit};
use tidemark_digest::canonical::{Encoder, Form, NumericSpecial, tag};
use tidemark_digest::without_declaration;
use tidemark_model::{DataType, TypeKind, Wire};

/// From 1970 to 2000.
const EPOCH_DAYS: i32 = 10_957;
const EPOCH_MICROS: i64 = 946_684_800_000_000;
/// What PostgreSQL adds to the typmod of a `char(n)`.
const VARHDRSZ: i32 = 4;

/// What is wrong with a value.
pub(super) type Fault = &'static str;

/// How the values of a type are read.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Cell {
    Bool,
    Int2,
    Int4,
    Int8,
    Oid,
    Float4,
    Float8,
    Decimal(i16),
    NumericText,
    Text,
    /// `char(n)`, with its n if it has one: a lake has it without trailing blanks.
    Bpchar(Option<usize>),
    Xml,
    Json,
    Uuid,
    Bytea,
    Date,
    Timestamp,
    TimestampTz,
    Time,
    Interval,
    List(Box<Cell>),
    Struct(Vec<Cell>),
    Range(Box<Cell>),
    Multirange(Box<Cell>),
}

/// How the source has to send a column whose Arrow type is this: what a lake has as text the server casts, but for types
/// whose own form is text or is read from it.
pub(super) fn wire_of(data_type: &DataType, arrow: &str) -> Wire {
    match arrow == "Utf8" && !is_read_from_text(data_type) {
        true => Wire::CastToText,
        false => Wire::Own,
    }
}

fn is_read_from_text(data_type: &DataType) -> bool {
    const NAMES: [&str; 8] =
        ["text", "varchar", "name", "bpchar", "char", "json", "jsonb", "numeric"];
    match &data_type.kind {
        TypeKind::Domain { base, .. } => is_read_from_text(base),
        TypeKind::Enum(_) => true,
        TypeKind::Base => NAMES.iter().any(|name| data_type.is_builtin(name)),
        _ => false,
    }
}

impl Cell {
    /// How a column is read; `None` where a lake has no such pair of types.
    pub(super) fn of(
        (data_type, typmod): (&DataType, i32),
        wire: Wire,
        arrow: &Arrow,
    ) -> Option<Self> {
        match wire {
            Wire::Own => Self::of_type(data_type, typmod, arrow),
            Wire::CastToText if *arrow != Arrow::Utf8 => None,
            Wire::CastToText if base_of(data_type).is_builtin("xml") => Some(Self::Xml),
            Wire::CastToText => Some(Self::Text),
        }
    }

    fn of_type(data_type: &DataType, typmod: i32, arrow: &Arrow) -> Option<Self> {
        match (&data_type.kind, arrow) {
            (TypeKind::Domain { base, typmod }, _) => Self::of_type(base, *typmod, arrow),
            (TypeKind::Enum(_), Arrow::Utf8) => Some(Self::Text),
            (TypeKind::Array(element), Arrow::List(item)) => {
                Some(Self::List(Box::new(Self::of_type(element, typmod, item.data_type())?)))
            }
            (TypeKind::Composite(attributes), Arrow::Struct(fields)) => {
                let is_same = |((name, _, _), field): (&(String, DataType, i32), &Arc<_>)| {
                    let field: &arrow_schema::Field = field;
                    field.name() == name
                };
                let fits =
                    attributes.len() == fields.len() && attributes.iter().zip(fields).all(is_same);
                let both = attributes.iter().zip(fields).filter(|_| fits);
                let cells = both
                    .map(|((_, of, typmod), field)| Self::of_type(of, *typmod, field.data_type()));
                let cells: Vec<Self> = cells.collect::<Option<_>>()?;
                fits.then_some(Self::Struct(cells))
            }
            (TypeKind::Range(subtype), Arrow::Struct(_)) => {
                Self::range(subtype, arrow).map(|bound| Self::Range(Box::new(bound)))
            }
            (TypeKind::Multirange(range), Arrow::List(item)) => {
                let subtype = match &range.kind {
                    TypeKind::Range(subtype) => subtype,
                    _ => range,
                };
                let bound = Self::range(subtype, item.data_type())?;
                Some(Self::Multirange(Box::new(bound)))
            }
            (TypeKind::Base, _) if data_type.schema == "pg_catalog" => {
                Self::of_base(&data_type.name, typmod, arrow)
            }
            _ => None,
        }
    }

    fn of_base(name: &str, typmod: i32, arrow: &Arrow) -> Option<Self> {
        Some(match (name, arrow) {
            ("bool", Arrow::Boolean) => Self::Bool,
            ("int2", Arrow::Int16) => Self::Int2,
            ("int4", Arrow::Int32) => Self::Int4,
            ("int8", Arrow::Int64) => Self::Int8,
            ("oid" | "xid", Arrow::UInt32) => Self::Oid,
            ("float4", Arrow::Float32) => Self::Float4,
            ("float8", Arrow::Float64) => Self::Float8,
            ("numeric", Arrow::Decimal128(_, scale)) => Self::Decimal((*scale).into()),
            ("numeric", Arrow::Utf8) => Self::NumericText,
            ("text" | "varchar" | "name" | "char", Arrow::Utf8) => Self::Text,
            ("bpchar", Arrow::Utf8) => {
                Self::Bpchar(typmod.checked_sub(VARHDRSZ).and_then(|n| usize::try_from(n).ok()))
            }
            ("json" | "jsonb", Arrow::Utf8) => Self::Json,
            ("uuid", Arrow::FixedSizeBinary(16)) => Self::Uuid,
            ("bytea", Arrow::Binary) => Self::Bytea,
            ("date", Arrow::Date32) => Self::Date,
            ("timestamp", Arrow::Timestamp(TimeUnit::Microsecond, None)) => Self::Timestamp,
            ("timestamptz", Arrow::Timestamp(TimeUnit::Microsecond, Some(zone)))
                if zone.as_ref() == "UTC" =>
            {
                Self::TimestampTz
            }
            ("time", Arrow::Time64(TimeUnit::Microsecond)) => Self::Time,
            ("interval", Arrow::Struct(fields)) => {
                let is = |at: usize, name: &str, of: &Arrow| {
                    fields.get(at).is_some_and(|f| f.name() == name && f.data_type() == of)
                };
                let fits = fields.len() == 3
                    && is(0, "months", &Arrow::Int32)
                    && is(1, "days", &Arrow::Int32)
                    && is(2, "micros", &Arrow::Int64);
                return fits.then_some(Self::Interval);
            }
            _ => return None,
        })
    }

    fn range(subtype: &DataType, arrow: &Arrow) -> Option<Self> {
        const FLAGS: [&str; 5] = ["lower_inc", "upper_inc", "lower_inf", "upper_inf", "empty"];
        let Arrow::Struct(fields) = arrow else { return None };
        let [lower, upper, flags @ ..] = &fields[..] else { return None };
        let is_flag = |(field, name): (&Arc<arrow_schema::Field>, &str)| {
            field.name() == name && *field.data_type() == Arrow::Boolean
        };
        let fits = lower.name() == "lower"
            && upper.name() == "upper"
            && lower.data_type() == upper.data_type()
            && flags.len() == FLAGS.len()
            && flags.iter().zip(FLAGS).all(is_flag);
        if !fits {
            return None;
        }
        Self::of_type(subtype, -1, lower.data_type())
    }

    /// The tag of a NULL.
    pub(super) fn tag(&self) -> u8 {
        match self {
            Self::Bool => tag::BOOL,
            Self::Int2 | Self::Int4 | Self::Int8 | Self::Oid => tag::INT,
            Self::Float4 => tag::FLOAT4,
            Self::Float8 => tag::FLOAT8,
            Self::Decimal(_) | Self::NumericText => tag::NUMERIC,
            Self::Text | Self::Bpchar(_) | Self::Xml => tag::TEXT,
            Self::Json => tag::JSON,
            Self::Uuid => tag::UUID,
            Self::Bytea => tag::BYTEA,
            Self::Date => tag::DATE,
            Self::Timestamp => tag::TIMESTAMP,
            Self::TimestampTz => tag::TIMESTAMPTZ,
            Self::Time => tag::TIME,
            Self::Interval => tag::INTERVAL,
            Self::List(_) => tag::ARRAY,
            Self::Struct(_) => tag::COMPOSITE,
            Self::Range(_) => tag::RANGE,
            Self::Multirange(_) => tag::MULTIRANGE,
        }
    }

    /// The values of an array; `None` where it is of another type than the cell was made for.
    pub(super) fn bind(&self, array: &ArrayRef) -> Option<Values> {
        Some(Values { tag: self.tag(), nulls: array.nulls().cloned(), of: self.bind_kind(array)? })
    }

    fn bind_kind(&self, array: &ArrayRef) -> Option<Kind> {
        Some(match self {
            Self::Bool => Kind::Bool(array.as_boolean_opt()?.clone()),
            Self::Int2 => Kind::Int2(array.as_primitive_opt()?.clone()),
            Self::Int4 => Kind::Int4(array.as_primitive_opt()?.clone()),
            Self::Int8 => Kind::Int8(array.as_primitive_opt()?.clone()),
            Self::Oid => Kind::Oid(array.as_primitive_opt()?.clone()),
            Self::Float4 => Kind::Float4(array.as_primitive_opt()?.clone()),
            Self::Float8 => Kind::Float8(array.as_primitive_opt()?.clone()),
            Self::Decimal(scale) => Kind::Decimal(array.as_primitive_opt()?.clone(), *scale),
            Self::NumericText => Kind::NumericText(array.as_string_opt::<i32>()?.clone()),
            Self::Text => Kind::Text(array.as_string_opt::<i32>()?.clone()),
            Self::Bpchar(width) => Kind::Bpchar(array.as_string_opt::<i32>()?.clone(), *width),
            Self::Xml => Kind::Xml(array.as_string_opt::<i32>()?.clone()),
            Self::Json => Kind::Json(array.as_string_opt::<i32>()?.clone()),
            Self::Uuid => Kind::Uuid(array.as_fixed_size_binary_opt()?.clone()),
            Self::Bytea => Kind::Bytea(array.as_binary_opt::<i32>()?.clone()),
            Self::Date => Kind::Date(array.as_primitive_opt()?.clone()),
            Self::Timestamp => Kind::Timestamp(array.as_primitive_opt()?.clone()),
            Self::TimestampTz => Kind::TimestampTz(array.as_primitive_opt()?.clone()),
            Self::Time => Kind::Time(array.as_primitive_opt()?.clone()),
            Self::Interval => {
                let parts = parts(array)?;
                let [months, days, micros] = parts.columns() else { return None };
                Kind::Interval(
                    months.as_primitive_opt()?.clone(),
                    days.as_primitive_opt()?.clone(),
                    micros.as_primitive_opt()?.clone(),
                )
            }
            Self::List(element) => {
                let list = array.as_list_opt::<i32>()?;
                Kind::List(list.clone(), Box::new(element.bind(list.values())?))
            }
            Self::Struct(attributes) => {
                let columns = parts(array)?.columns();
                if columns.len() != attributes.len() {
                    return None;
                }
                let bound = attributes.iter().zip(columns).map(|(cell, column)| cell.bind(column));
                Kind::Struct(bound.collect::<Option<_>>()?)
            }
            Self::Range(bound) => Kind::Range(Box::new(Range::of(bound, array)?)),
            Self::Multirange(bound) => {
                let list = array.as_list_opt::<i32>()?;
                Kind::Multirange(list.clone(), Box::new(Range::of(bound, list.values())?))
            }
        })
    }
}

fn parts(array: &ArrayRef) -> Option<&StructArray> {
    array.as_struct_opt()
}

fn base_of(data_type: &DataType) -> &DataType {
    match &data_type.kind {
        TypeKind::Domain { base, .. } => base_of(base),
        _ => data_type,
    }
}

/// The values of one column of a batch.
#[derive(Debug)]
pub(super) struct Values {
    tag: u8,
    nulls: Option<arrow_buffer::NullBuffer>,
    pub(super) of: Kind,
}

#[derive(Debug)]
pub(super) enum Kind {
    Bool(BooleanArray),
    Int2(PrimitiveArray<Int16Type>),
    Int4(PrimitiveArray<Int32Type>),
    Int8(PrimitiveArray<Int64Type>),
    Oid(PrimitiveArray<UInt32Type>),
    Float4(PrimitiveArray<Float32Type>),
    Float8(PrimitiveArray<Float64Type>),
    Decimal(PrimitiveArray<Decimal128Type>, i16),
    NumericText(StringArray),
    Text(StringArray),
    Bpchar(StringArray, Option<usize>),
    Xml(StringArray),
    Json(StringArray),
    Uuid(FixedSizeBinaryArray),
    Bytea(BinaryArray),
    Date(PrimitiveArray<Date32Type>),
    Timestamp(PrimitiveArray<TimestampMicrosecondType>),
    TimestampTz(PrimitiveArray<TimestampMicrosecondType>),
    Time(PrimitiveArray<Time64MicrosecondType>),
    Interval(PrimitiveArray<Int32Type>, PrimitiveArray<Int32Type>, PrimitiveArray<Int64Type>),
    List(ListArray, Box<Values>),
    Struct(Vec<Values>),
    Range(Box<Range>),
    Multirange(ListArray, Box<Range>),
}

impl Values {
    pub(super) fn is_null(&self, row: usize) -> bool {
        self.nulls.as_ref().is_some_and(|nulls| nulls.is_null(row))
    }

    /// Appends the cell of a row.
    pub(super) fn push(&self, row: usize, out: &mut Encoder<'_>) -> Result<(), Fault> {
        if self.is_null(row) {
            out.push_null(self.tag);
            return Ok(());
        }
        match &self.of {
            Kind::Bool(values) => out.push_bool(values.value(row)),
            Kind::Int2(values) => out.push_int(values.value(row).into()),
            Kind::Int4(values) => out.push_int(values.value(row).into()),
            Kind::Int8(values) => out.push_int(values.value(row)),
            Kind::Oid(values) => out.push_int(values.value(row).into()),
            Kind::Float4(values) => out.push_float4(values.value(row)),
            Kind::Float8(values) => out.push_float(values.value(row)),
            Kind::Decimal(values, scale) => out.push_decimal(values.value(row), *scale),
            Kind::NumericText(values) => push_numeric(values.value(row).as_bytes(), out)?,
            Kind::Text(values) | Kind::Bpchar(values, _) => {
                out.push_text(values.value(row).as_bytes());
            }
            Kind::Xml(values) => {
                let document = values.value(row).as_bytes();
                out.push_text(match out.form() {
                    Form::Raw => document,
                    Form::Value => without_declaration(document),
                });
            }
            Kind::Json(values) => out.push_json(values.value(row).as_bytes())?,
            Kind::Uuid(values) => {
                out.push_uuid(
                    values.value(row).try_into().map_err(|_| "a uuid of another length")?,
                );
            }
            Kind::Bytea(values) => out.push_bytea(values.value(row)),
            Kind::Date(values) => match values.value(row).checked_sub(EPOCH_DAYS) {
                Some(days) if days != i32::MIN => out.push_date(days),
                _ => return Err("a date that PostgreSQL does not have"),
            },
            Kind::Timestamp(values) => out.push_timestamp(since_2000(values.value(row))?),
            Kind::TimestampTz(values) => out.push_timestamptz(since_2000(values.value(row))?),
            Kind::Time(values) => out.push_time(values.value(row)),
            Kind::Interval(months, days, micros) => {
                out.push_interval(months.value(row), days.value(row), micros.value(row));
            }
            Kind::List(list, elements) => {
                let (from, to) = ends(list, row)?;
                match i32::try_from(to - from).map_err(|_| "a list that is too long")? {
                    0 => out.begin_array([].into_iter()),
                    length => out.begin_array([(length, 1)].into_iter()),
                }
                (from..to).try_for_each(|at| elements.push(at, out))?;
            }
            Kind::Struct(attributes) => {
                out.begin_composite(attributes.len());
                attributes.iter().try_for_each(|attribute| attribute.push(row, out))?;
            }
            Kind::Range(range) => range.push(row, out)?,
            Kind::Multirange(list, range) => {
                let (from, to) = ends(list, row)?;
                out.begin_multirange(to - from);
                (from..to).try_for_each(|at| range.push(at, out))?;
            }
        }
        Ok(())
    }
}

/// Bounds and flags of ranges.
#[derive(Debug)]
pub(super) struct Range {
    pub(super) bounds: [Values; 2],
    /// In the order of PostgreSQL's bits: empty, lower inclusive, upper inclusive, no lower, no upper.
    pub(super) flags: [BooleanArray; 5],
}

impl Range {
    fn of(bound: &Cell, array: &ArrayRef) -> Option<Self> {
        let [lower, upper, lower_inc, upper_inc, lower_inf, upper_inf, empty] =
            parts(array)?.columns()
        else {
            return None;
        };
        let flag = |array: &ArrayRef| array.as_boolean_opt().cloned();
        Some(Self {
            bounds: [bound.bind(lower)?, bound.bind(upper)?],
            flags: [
                flag(empty)?,
                flag(lower_inc)?,
                flag(upper_inc)?,
                flag(lower_inf)?,
                flag(upper_inf)?,
            ],
        })
    }

    fn push(&self, row: usize, out: &mut Encoder<'_>) -> Result<(), Fault> {
        const EMPTY: u8 = 0x01;
        const UNBOUNDED: [u8; 2] = [0x08, 0x10];
        let bits = self.flags.iter().enumerate();
        let flags = bits.fold(0, |bits, (bit, flag)| bits | u8::from(flag.value(row)) << bit);
        out.begin_range(flags);
        if flags == EMPTY {
            return Ok(());
        }
        for (unbounded, bound) in UNBOUNDED.iter().zip(&self.bounds) {
            if flags & unbounded == 0 {
                bound.push(row, out)?;
            }
        }
        Ok(())
    }
}

pub(super) fn ends(list: &ListArray, row: usize) -> Result<(usize, usize), Fault> {
    let offset = |at: usize| usize::try_from(list.value_offsets()[at]).map_err(|_| "a bad offset");
    Ok((offset(row)?, offset(row + 1)?))
}

fn since_2000(micros: i64) -> Result<i64, Fault> {
    let found = micros.checked_sub(EPOCH_MICROS).filter(|micros| *micros != i64::MIN);
    found.ok_or("a moment that PostgreSQL does not have")
}

/// A numeric as PostgreSQL prints it.
fn push_numeric(text: &[u8], out: &mut Encoder<'_>) -> Result<(), Fault> {
    let special = match text {
        b"NaN" => Some(NumericSpecial::NaN),
        b"Infinity" => Some(NumericSpecial::Infinity),
        b"-Infinity" => Some(NumericSpecial::NegativeInfinity),
        _ => None,
    };
    if let Some(special) = special {
        out.push_numeric_special(special);
        return Ok(());
    }
    let (is_negative, digits) = match text {
        [b'-', digits @ ..] => (true, digits),
        digits => (false, digits),
    };
    let point = digits.iter().position(|byte| *byte == b'.').unwrap_or(digits.len());
    let (whole, fraction) = (&digits[..point], digits.get(point + 1..).unwrap_or_default());
    let is_number = |part: &[u8]| part.iter().all(u8::is_ascii_digit);
    if whole.is_empty() || !is_number(whole) || !is_number(fraction) {
        return Err("a numeric that PostgreSQL would not print");
    }
    let scale = u16::try_from(fraction.len()).map_err(|_| "a numeric with too many digits")?;
    let mut words = Vec::with_capacity(2 * (whole.len() / 4 + fraction.len() / 4 + 2));
    let mut word = |digits: &[u8], fill: usize| {
        let value = digits.iter().fold(0_u16, |value, digit| value * 10 + u16::from(digit - b'0'));
        words.extend_from_slice(&(value * 10_u16.pow(fill as u32)).to_be_bytes());
    };
    let (first, rest) = whole.split_at(whole.len() % 4);
    if !first.is_empty() {
        word(first, 0);
    }
    rest.chunks(4).for_each(|digits| word(digits, 0));
    fraction.chunks(4).for_each(|digits| word(digits, 4 - digits.len()));
    let weight = whole.len().div_ceil(4) as i32 - 1;
    out.push_numeric_parts(is_negative, weight, scale, &words);
    Ok(())
}

#[cfg(test)]
mod tests {
    use tidemark_digest::canonical::RowBuffer;

    use super::*;

    fn cell(push: impl FnOnce(&mut Encoder<'_>)) -> Vec<u8> {
        let mut row = RowBuffer::new();
        push(&mut Encoder::new(&mut row, Form::Raw));
        row.as_slice().to_vec()
    }

    #[test]
    fn a_printed_numeric_is_the_decimal_that_it_shows() {
        for (text, unscaled, scale) in [
            ("0", 0, 0),
            ("0.00", 0, 2),
            ("-12345.678", -12_345_678, 3),
            ("10000", 10_000, 0),
            ("0.0001", 1, 4),
            ("0.00001", 1, 5),
            (
                "123456789012345678901234567890.12345678",
                12_345_678_901_234_567_890_123_456_789_012_345_678,
                8,
            ),
        ] {
            let printed = cell(|out| push_numeric(text.as_bytes(), out).unwrap());
            assert_eq!(printed, cell(|out| out.push_decimal(unscaled, scale)), "{text}");
        }
        for text in ["", "-", ".5", "1e5", "+1", "1.2.3", "nan"] {
            let mut row = RowBuffer::new();
            let mut out = Encoder::new(&mut row, Form::Raw);
            assert!(push_numeric(text.as_bytes(), &mut out).is_err(), "{text}");
        }
    }
}
