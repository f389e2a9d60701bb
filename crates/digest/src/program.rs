//! From the binary field of a type to its canonical cell.
//!
//! **Invariant:** every length is checked before it is used: a field that the type's send function cannot have written is
//! an error, never a panic. Which function reads a type is decided once per column, not per value.
//!
//! PostgreSQL manual, "COPY", "Binary Format"; the send functions in `src/backend/utils/adt`.

use tidemark_model::{DataType, TypeKind, Wire};

use crate::canonical::{Encoder, NumericSpecial, Quick, tag};
use crate::lake;

/// What is wrong with a field.
pub(crate) type Fault = &'static str;

const LENGTH: Fault = "the length does not fit the type";

/// How the values of a column are read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Op {
    Bool,
    Int2,
    Int4,
    Int8,
    Oid,
    Float4,
    Float8,
    Numeric,
    Money,
    Date,
    Time,
    TimeTz,
    Timestamp,
    TimestampTz,
    Interval,
    Uuid,
    Bytea,
    Text,
    /// The one-byte type "char".
    Char,
    Xml,
    Bpchar,
    Bits,
    Json,
    Jsonb,
    Inet,
    Mac,
    Mac8,
    Opaque,
    Array(Box<Op>),
    Range(Box<Op>),
    Multirange(Box<Op>),
    Composite(Vec<Op>),
    /// As a lake has it: see [`crate::lake`].
    InLake(Box<Op>),
}

impl Op {
    /// The op for a column of this type.
    pub(crate) fn of(data_type: &DataType, wire: Wire) -> Self {
        match wire {
            Wire::CastToText => Self::Text,
            Wire::Own => Self::of_type(data_type),
        }
    }

    pub(crate) fn of_type(data_type: &DataType) -> Self {
        match &data_type.kind {
            TypeKind::Domain { base, .. } => Self::of_type(base),
            TypeKind::Enum(_) => Self::Text,
            TypeKind::Array(element) => Self::Array(Box::new(Self::of_type(element))),
            TypeKind::Range(subtype) => Self::Range(Box::new(Self::of_type(subtype))),
            TypeKind::Multirange(subtype) => {
                let range = match &subtype.kind {
                    // Some catalogs name the range, others its subtype.
                    TypeKind::Range(_) => Self::of_type(subtype),
                    _ => Self::Range(Box::new(Self::of_type(subtype))),
                };
                Self::Multirange(Box::new(range))
            }
            TypeKind::Composite(attributes) => {
                Self::Composite(attributes.iter().map(|(_, of, _)| Self::of_type(of)).collect())
            }
            TypeKind::Base if data_type.schema == "pg_catalog" => Self::of_base(&data_type.name),
            TypeKind::Base if data_type.extension.as_deref() == Some("citext") => Self::Text,
            TypeKind::Base | TypeKind::Other => Self::Opaque,
        }
    }

    fn of_base(name: &str) -> Self {
        match name {
            "bool" => Self::Bool,
            "int2" => Self::Int2,
            "int4" => Self::Int4,
            "int8" => Self::Int8,
            "oid" | "xid" | "cid" | "regproc" | "regprocedure" | "regoper" | "regoperator"
            | "regclass" | "regtype" | "regrole" | "regnamespace" | "regconfig"
            | "regdictionary" | "regcollation" | "regdatabase" => Self::Oid,
            "float4" => Self::Float4,
            "float8" => Self::Float8,
            "numeric" => Self::Numeric,
            "money" => Self::Money,
            "date" => Self::Date,
            "time" => Self::Time,
            "timetz" => Self::TimeTz,
            "timestamp" => Self::Timestamp,
            "timestamptz" => Self::TimestampTz,
            "interval" => Self::Interval,
            "uuid" => Self::Uuid,
            "bytea" => Self::Bytea,
            "text" | "varchar" | "name" | "unknown" => Self::Text,
            "char" => Self::Char,
            "xml" => Self::Xml,
            "bpchar" => Self::Bpchar,
            "bit" | "varbit" => Self::Bits,
            "json" => Self::Json,
            "jsonb" => Self::Jsonb,
            "inet" | "cidr" => Self::Inet,
            "macaddr" => Self::Mac,
            "macaddr8" => Self::Mac8,
            _ => Self::Opaque,
        }
    }

    /// Whether a value of the type can have two forms.
    pub(crate) fn has_two_forms(&self) -> bool {
        match self {
            Self::Float4
            | Self::Float8
            | Self::Numeric
            | Self::Interval
            | Self::Bpchar
            | Self::Json
            | Self::Jsonb
            | Self::Mac => true,
            Self::Array(inner) | Self::Range(inner) | Self::Multirange(inner) => {
                inner.has_two_forms()
            }
            Self::Composite(attributes) => attributes.iter().any(Self::has_two_forms),
            Self::InLake(of) => lake::has_two_forms(of),
            _ => false,
        }
    }

    /// Bytes of every value, or 0 if they vary.
    pub(crate) fn fixed_width(&self) -> u32 {
        match self {
            Self::Bool => 1,
            Self::Int2 => 2,
            Self::Int4 | Self::Oid | Self::Float4 | Self::Date => 4,
            Self::Int8
            | Self::Float8
            | Self::Money
            | Self::Time
            | Self::Timestamp
            | Self::TimestampTz
            | Self::Mac8 => 8,
            Self::Interval | Self::Uuid => 16,
            Self::InLake(of) => of.fixed_width(),
            _ => 0,
        }
    }

    /// The quick way of its short values.
    pub(crate) fn quick(&self) -> Quick {
        match self {
            Self::Int4 => Quick::Int4,
            Self::Int8 => Quick::Int8,
            Self::Date => Quick::Date,
            Self::Text | Self::Char | Self::Xml => Quick::Text,
            Self::Bpchar => Quick::Bpchar,
            Self::Numeric => Quick::Numeric,
            Self::InLake(of) => lake::quick(of),
            _ => Quick::No,
        }
    }

    pub(crate) fn tag(&self) -> u8 {
        match self {
            Self::Bool => tag::BOOL,
            Self::Int2 | Self::Int4 | Self::Int8 | Self::Oid => tag::INT,
            Self::Float4 => tag::FLOAT4,
            Self::Float8 => tag::FLOAT8,
            Self::Numeric => tag::NUMERIC,
            Self::Money => tag::MONEY,
            Self::Date => tag::DATE,
            Self::Time => tag::TIME,
            Self::TimeTz => tag::TIMETZ,
            Self::Timestamp => tag::TIMESTAMP,
            Self::TimestampTz => tag::TIMESTAMPTZ,
            Self::Interval => tag::INTERVAL,
            Self::Uuid => tag::UUID,
            Self::Bytea => tag::BYTEA,
            Self::Text | Self::Char | Self::Xml | Self::Bpchar => tag::TEXT,
            Self::Bits => tag::BIT,
            Self::Json | Self::Jsonb => tag::JSON,
            Self::Inet => tag::INET,
            Self::Mac | Self::Mac8 => tag::MAC,
            Self::Opaque => tag::OPAQUE,
            Self::Array(_) => tag::ARRAY,
            Self::Range(_) => tag::RANGE,
            Self::Multirange(_) => tag::MULTIRANGE,
            Self::Composite(_) => tag::COMPOSITE,
            Self::InLake(of) => of.tag(),
        }
    }

    /// Appends the cell of one field.
    #[inline]
    pub(crate) fn push(&self, field: &[u8], out: &mut Encoder<'_>) -> Result<(), Fault> {
        match self {
            Self::Int4 => out.push_int(i32::from_be_bytes(fixed(field)?).into()),
            Self::Int8 => out.push_int(i64::from_be_bytes(fixed(field)?)),
            Self::Numeric => numeric(field, out)?,
            Self::Text => out.push_text(field),
            Self::Bpchar => out.push_bpchar(field),
            Self::Date => out.push_date(i32::from_be_bytes(fixed(field)?)),
            Self::Timestamp => out.push_timestamp(i64::from_be_bytes(fixed(field)?)),
            Self::TimestampTz => out.push_timestamptz(i64::from_be_bytes(fixed(field)?)),
            Self::Float8 => out.push_float(f64::from_be_bytes(fixed(field)?)),
            Self::Bool => out.push_bool(fixed::<1>(field)? != [0]),
            Self::Uuid => out.push_uuid(fixed(field)?),
            _ => self.push_rare(field, out)?,
        }
        Ok(())
    }

    fn push_rare(&self, field: &[u8], out: &mut Encoder<'_>) -> Result<(), Fault> {
        match self {
            Self::Int2 => out.push_int(i16::from_be_bytes(fixed(field)?).into()),
            Self::Oid => out.push_int(u32::from_be_bytes(fixed(field)?).into()),
            Self::Float4 => out.push_float4(f32::from_be_bytes(fixed(field)?)),
            Self::Money => out.push_money(i64::from_be_bytes(fixed(field)?)),
            Self::Time => out.push_time(i64::from_be_bytes(fixed(field)?)),
            Self::TimeTz => {
                let mut rest = Rest(field);
                out.push_timetz(rest.i64()?, rest.i32()?);
                rest.end()?;
            }
            Self::Interval => {
                let mut rest = Rest(field);
                let (micros, days, months) = (rest.i64()?, rest.i32()?, rest.i32()?);
                rest.end()?;
                out.push_interval(months, days, micros);
            }
            Self::Bytea => out.push_bytea(field),
            Self::Bits => bits(field, out)?,
            Self::Json => out.push_json(field)?,
            Self::Jsonb => match field {
                [1, text @ ..] => out.push_json(text)?,
                _ => return Err("an unknown version of jsonb"),
            },
            Self::Inet => inet(field, out)?,
            Self::Mac => out.push_macaddr(fixed(field)?),
            Self::Mac8 => out.push_macaddr8(fixed(field)?),
            Self::Array(element) => array(element, field, out)?,
            Self::Range(subtype) => range(subtype, field, out)?,
            Self::Multirange(of) => multirange(of, field, out)?,
            Self::Composite(attributes) => composite(attributes, field, out)?,
            Self::Char | Self::Xml => out.push_text(field),
            Self::InLake(of) => lake::push(of, field, out)?,
            _ => out.push_opaque(field),
        }
        Ok(())
    }
}

#[inline]
fn fixed<const N: usize>(field: &[u8]) -> Result<[u8; N], Fault> {
    field.try_into().map_err(|_| LENGTH)
}

#[inline]
fn numeric(field: &[u8], out: &mut Encoder<'_>) -> Result<(), Fault> {
    let Some((&[n0, n1, w0, w1, s0, s1, d0, d1], digits)) = field.split_first_chunk::<8>() else {
        return Err(LENGTH);
    };
    if digits.len() != 2 * usize::from(u16::from_be_bytes([n0, n1])) {
        return Err(LENGTH);
    }
    let weight = i16::from_be_bytes([w0, w1]).into();
    let dscale = u16::from_be_bytes([d0, d1]);
    match u16::from_be_bytes([s0, s1]) {
        sign @ (0x0000 | 0x4000) => out.push_numeric_parts(sign != 0, weight, dscale, digits),
        0xc000 => out.push_numeric_special(NumericSpecial::NaN),
        0xd000 => out.push_numeric_special(NumericSpecial::Infinity),
        0xf000 => out.push_numeric_special(NumericSpecial::NegativeInfinity),
        _ => return Err("an unknown sign of numeric"),
    }
    Ok(())
}

fn bits(field: &[u8], out: &mut Encoder<'_>) -> Result<(), Fault> {
    let mut rest = Rest(field);
    let count = u32::try_from(rest.i32()?).map_err(|_| LENGTH)?;
    if rest.0.len() != count.div_ceil(8) as usize {
        return Err(LENGTH);
    }
    out.push_bits(count, rest.0);
    Ok(())
}

fn inet(field: &[u8], out: &mut Encoder<'_>) -> Result<(), Fault> {
    // Family 2 is IPv4, 3 is IPv6 on every platform; the third byte tells cidr from inet.
    match field {
        [2, bits, _, 4, address @ ..] if address.len() == 4 => out.push_inet(*bits, address),
        [3, bits, _, 16, address @ ..] if address.len() == 16 => out.push_inet(*bits, address),
        _ => return Err(LENGTH),
    }
    Ok(())
}

fn array(element: &Op, field: &[u8], out: &mut Encoder<'_>) -> Result<(), Fault> {
    let mut rest = Rest(field);
    let dimension_count = usize::try_from(rest.i32()?).map_err(|_| LENGTH)?;
    // A flag that says whether there may be NULLs, and the element type's OID: neither belongs to the value.
    rest.take(8)?;
    if dimension_count > 6 {
        return Err("more than 6 dimensions");
    }
    let mut dimensions = [(0, 0); 6];
    let mut count = usize::from(dimension_count > 0);
    for dimension in &mut dimensions[..dimension_count] {
        *dimension = (rest.i32()?, rest.i32()?);
        let length = usize::try_from(dimension.0).map_err(|_| LENGTH)?;
        count = count.checked_mul(length).ok_or(LENGTH)?;
    }
    out.begin_array(dimensions[..dimension_count].iter().copied());
    for _ in 0..count {
        rest.cell(element, out)?;
    }
    rest.end()
}

fn range(subtype: &Op, field: &[u8], out: &mut Encoder<'_>) -> Result<(), Fault> {
    const EMPTY: u8 = 0x01;
    const UNBOUNDED: [u8; 2] = [0x08, 0x10];
    let mut rest = Rest(field);
    let flags = rest.take(1)?[0];
    if flags & !0x1f != 0 {
        return Err("an unknown flag of a range");
    }
    if flags & EMPTY != 0 {
        out.begin_range(EMPTY);
        return rest.end();
    }
    out.begin_range(flags);
    for unbounded in UNBOUNDED {
        if flags & unbounded == 0 {
            rest.cell(subtype, out)?;
        }
    }
    rest.end()
}

fn multirange(of: &Op, field: &[u8], out: &mut Encoder<'_>) -> Result<(), Fault> {
    let mut rest = Rest(field);
    let count = usize::try_from(rest.i32()?).map_err(|_| LENGTH)?;
    out.begin_multirange(count);
    for _ in 0..count {
        rest.cell(of, out)?;
    }
    rest.end()
}

fn composite(attributes: &[Op], field: &[u8], out: &mut Encoder<'_>) -> Result<(), Fault> {
    let mut rest = Rest(field);
    if usize::try_from(rest.i32()?) != Ok(attributes.len()) {
        return Err("the number of attributes does not fit the type");
    }
    out.begin_composite(attributes.len());
    for attribute in attributes {
        // The attribute type's OID: it does not belong to the value.
        rest.take(4)?;
        rest.cell(attribute, out)?;
    }
    rest.end()
}

/// What is left of a field.
struct Rest<'a>(&'a [u8]);

impl<'a> Rest<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], Fault> {
        let (head, rest) = self.0.split_at_checked(count).ok_or(LENGTH)?;
        self.0 = rest;
        Ok(head)
    }

    fn i32(&mut self) -> Result<i32, Fault> {
        Ok(i32::from_be_bytes(fixed(self.take(4)?)?))
    }

    fn i64(&mut self) -> Result<i64, Fault> {
        Ok(i64::from_be_bytes(fixed(self.take(8)?)?))
    }

    /// A length and that many bytes, as one cell.
    fn cell(&mut self, op: &Op, out: &mut Encoder<'_>) -> Result<(), Fault> {
        match self.i32()? {
            -1 => {
                out.push_null(op.tag());
                Ok(())
            }
            len => {
                let field = self.take(usize::try_from(len).map_err(|_| LENGTH)?)?;
                op.push(field, out)
            }
        }
    }

    fn end(&self) -> Result<(), Fault> {
        if self.0.is_empty() { Ok(()) } else { Err(LENGTH) }
    }
}
