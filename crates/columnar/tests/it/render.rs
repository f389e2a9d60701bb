//! Writes an Arrow value back as an SQL expression of its PostgreSQL type.

use arrow_array::cast::AsArray;
use arrow_array::types::{
    Date32Type, Decimal128Type, Float32Type, Float64Type, Int16Type, Int32Type, Int64Type,
    Time64MicrosecondType, TimestampMicrosecondType, UInt32Type,
};
use arrow_array::{Array, StructArray};
use arrow_schema::{DataType as Arrow, TimeUnit};
use tidemark_model::sql::{Ident, Literal};
use tidemark_model::{DataType, TypeKind};

/// Microseconds from 1970-01-01 to 2000-01-01.
const EPOCH_MICROS: i128 = 946_684_800_000_000;

fn type_sql(data_type: &DataType) -> String {
    format!("{}.{}", Ident(&data_type.schema), Ident(&data_type.name))
}

/// The value in row `row` as an expression of `data_type`, or of text if the column was cast to text.
pub(crate) fn expression(array: &dyn Array, row: usize, data_type: &DataType) -> String {
    if array.is_null(row) {
        return format!("NULL::{}", type_sql(data_type));
    }
    let value = match array.data_type() {
        Arrow::List(_) => elements(array, row, data_type),
        Arrow::Struct(_) => structure(array.as_struct(), row, data_type),
        _ => scalar(array, row),
    };
    format!("({value})::{}", type_sql(data_type))
}

fn scalar(array: &dyn Array, row: usize) -> String {
    let micros = |micros: i128| format!("'{micros} microseconds'::interval");
    match array.data_type() {
        Arrow::Boolean => array.as_boolean().value(row).to_string(),
        Arrow::Int16 => format!("'{}'", array.as_primitive::<Int16Type>().value(row)),
        Arrow::Int32 => format!("'{}'", array.as_primitive::<Int32Type>().value(row)),
        Arrow::Int64 => format!("'{}'", array.as_primitive::<Int64Type>().value(row)),
        Arrow::UInt32 => format!("'{}'", array.as_primitive::<UInt32Type>().value(row)),
        Arrow::Float32 => format!("'{:?}'", array.as_primitive::<Float32Type>().value(row)),
        Arrow::Float64 => format!("'{:?}'", array.as_primitive::<Float64Type>().value(row)),
        Arrow::Decimal128(..) => {
            format!("'{}'", array.as_primitive::<Decimal128Type>().value_as_string(row))
        }
        Arrow::Date32 => {
            let days = i64::from(array.as_primitive::<Date32Type>().value(row));
            // In two steps, because the farthest date is farther from 1970 than the server can add.
            format!("'2000-01-01'::date + ({days} - 10957)::int")
        }
        Arrow::Timestamp(TimeUnit::Microsecond, zone) => {
            let value = array.as_primitive::<TimestampMicrosecondType>().value(row);
            let start = if zone.is_some() {
                "timestamptz '2000-01-01 00:00Z'"
            } else {
                "timestamp '2000-01-01'"
            };
            format!("{start} + {}", micros(i128::from(value) - EPOCH_MICROS))
        }
        Arrow::Time64(_) => {
            let value = array.as_primitive::<Time64MicrosecondType>().value(row);
            format!("time '00:00' + {}", micros(i128::from(value)))
        }
        Arrow::FixedSizeBinary(_) => hex("", array.as_fixed_size_binary().value(row)),
        Arrow::Binary => hex("\\x", array.as_binary::<i32>().value(row)),
        Arrow::Utf8 => Literal(array.as_string::<i32>().value(row)).to_string(),
        other => panic!("no expression for {other}"),
    }
}

fn hex(prefix: &str, bytes: &[u8]) -> String {
    let digits: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("'{prefix}{digits}'")
}

fn elements(array: &dyn Array, row: usize, data_type: &DataType) -> String {
    let list = array.as_list::<i32>().value(row);
    let each = |element: &DataType| {
        (0..list.len()).map(|i| expression(&list, i, element)).collect::<Vec<_>>().join(", ")
    };
    match &data_type.kind {
        TypeKind::Array(element) => format!("ARRAY[{}]", each(element)),
        TypeKind::Domain { base, .. } => elements(array, row, base),
        TypeKind::Multirange(subtype) => {
            // The range type of a multirange is not in the model: the built-in ones follow a rule.
            let name = data_type.name.replace("multirange", "range");
            let mut range = DataType::builtin(0, &name);
            range.kind = TypeKind::Range(subtype.clone());
            format!("{}({})", type_sql(data_type), each(&range))
        }
        other => panic!("a list for {other:?}"),
    }
}

fn structure(array: &StructArray, row: usize, data_type: &DataType) -> String {
    match &data_type.kind {
        TypeKind::Domain { base, .. } => structure(array, row, base),
        TypeKind::Composite(attributes) => {
            let each: Vec<_> = attributes
                .iter()
                .zip(array.columns())
                .map(|((_, attribute, _), part)| expression(part, row, attribute))
                .collect();
            format!("ROW({})", each.join(", "))
        }
        TypeKind::Range(subtype) => range(array, row, data_type, subtype),
        TypeKind::Base => {
            let part = |index: usize| scalar(array.column(index), row).replace('\'', "");
            format!("'{} mons {} days {} microseconds'", part(0), part(1), part(2))
        }
        other => panic!("a struct for {other:?}"),
    }
}

fn range(array: &StructArray, row: usize, data_type: &DataType, subtype: &DataType) -> String {
    let flag = |name: &str| array.column_by_name(name).unwrap().as_boolean().value(row);
    if flag("empty") {
        return "'empty'".to_owned();
    }
    let lower = expression(array.column_by_name("lower").unwrap(), row, subtype);
    let upper = expression(array.column_by_name("upper").unwrap(), row, subtype);
    assert_eq!(flag("lower_inf"), lower.starts_with("NULL"), "a lower bound without its flag");
    assert_eq!(flag("upper_inf"), upper.starts_with("NULL"), "an upper bound without its flag");
    let open = if flag("lower_inc") { '[' } else { '(' };
    let close = if flag("upper_inc") { ']' } else { ')' };
    format!("{}({lower}, {upper}, '{open}{close}')", type_sql(data_type))
}
