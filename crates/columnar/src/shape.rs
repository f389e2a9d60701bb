//! What the bytes of a column's values are and what they become.
//!
//! **Invariant:** every shape has exactly one Arrow type, and it says whether some PostgreSQL value of it has no form there.

use std::sync::Arc;

use arrow_schema::{DataType, Field, FieldRef, Fields, TimeUnit};

/// How the binary form of a type is decoded.
#[derive(Debug, Clone)]
pub(crate) enum Shape {
    Bool,
    Int2,
    Int4,
    Int8,
    /// oid, xid.
    Unsigned4,
    Float4,
    Float8,
    /// numeric of a declared precision that a Decimal128 holds.
    Decimal {
        precision: u8,
        scale: u8,
    },
    /// Every other numeric.
    NumericText,
    /// Text as it is, or whatever the server cast to text.
    Text,
    /// bpchar.
    TrimmedText,
    /// The one-byte type "char".
    Char,
    /// Text behind a version byte.
    Jsonb,
    Bytea,
    Uuid,
    Date,
    Timestamp,
    /// timestamptz.
    Instant,
    Time,
    Interval,
    List(Box<Shape>, FieldRef),
    Struct(Vec<Shape>, Fields),
    /// The bounds' shape, and the fields of [`range_fields`].
    Range(Box<Shape>, Fields),
    /// The bounds' shape, and the range's fields.
    Multirange(Box<Shape>, Fields),
}

impl Shape {
    /// The Arrow type.
    pub(crate) fn data_type(&self) -> DataType {
        match self {
            Self::Bool => DataType::Boolean,
            Self::Int2 => DataType::Int16,
            Self::Int4 => DataType::Int32,
            Self::Int8 => DataType::Int64,
            Self::Unsigned4 => DataType::UInt32,
            Self::Float4 => DataType::Float32,
            Self::Float8 => DataType::Float64,
            // A scale of 0..=38.
            Self::Decimal { precision, scale } => DataType::Decimal128(*precision, *scale as i8),
            Self::NumericText | Self::Text | Self::TrimmedText | Self::Char | Self::Jsonb => {
                DataType::Utf8
            }
            Self::Bytea => DataType::Binary,
            Self::Uuid => DataType::FixedSizeBinary(16),
            Self::Date => DataType::Date32,
            Self::Timestamp => DataType::Timestamp(TimeUnit::Microsecond, None),
            Self::Instant => DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())),
            Self::Time => DataType::Time64(TimeUnit::Microsecond),
            Self::Interval => DataType::Struct(interval_fields()),
            Self::List(_, item) => DataType::List(Arc::clone(item)),
            Self::Struct(_, fields) | Self::Range(_, fields) => DataType::Struct(fields.clone()),
            Self::Multirange(_, fields) => DataType::List(multirange_item(fields)),
        }
    }

    /// Whether PostgreSQL has values of this shape that the Arrow type has not.
    pub(crate) fn can_be_unrepresentable(&self) -> bool {
        match self {
            Self::Decimal { .. }
            | Self::Date
            | Self::Timestamp
            | Self::Instant
            | Self::Time
            | Self::Interval
            | Self::List(..) => true,
            Self::Struct(shapes, _) => shapes.iter().any(Self::can_be_unrepresentable),
            Self::Range(bound, _) | Self::Multirange(bound, _) => bound.can_be_unrepresentable(),
            _ => false,
        }
    }
}

/// `months`, `days`, `micros`: the three numbers that PostgreSQL stores, which no other interval type keeps apart.
pub(crate) fn interval_fields() -> Fields {
    Fields::from(vec![
        Field::new("months", DataType::Int32, false),
        Field::new("days", DataType::Int32, false),
        Field::new("micros", DataType::Int64, false),
    ])
}

/// A range keeps both bounds and every flag. A bound is null if the range has none there (`lower_inf`, or `empty`); a null
/// bound without its flag is one that the policy replaced.
pub(crate) fn range_fields(bound: &Field) -> Fields {
    let flag = |name: &str| Field::new(name, DataType::Boolean, false);
    Fields::from(vec![
        bound.clone().with_name("lower").with_nullable(true),
        bound.clone().with_name("upper").with_nullable(true),
        flag("lower_inc"),
        flag("upper_inc"),
        flag("lower_inf"),
        flag("upper_inf"),
        flag("empty"),
    ])
}

/// The ranges inside a multirange are never null.
pub(crate) fn multirange_item(fields: &Fields) -> FieldRef {
    Arc::new(Field::new_list_field(DataType::Struct(fields.clone()), false))
}
