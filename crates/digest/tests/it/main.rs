//! Rows in, sums out: the digest as its callers see it.
#![expect(clippy::unwrap_used, reason = "clippy knows helpers of tests only inside `cfg(test)`")]

mod forms;
mod leaves;
mod locate;
mod malformed;
mod postgres;
mod sums;
mod vectors;

use bytes::Bytes;
use tidemark_digest::{DigestColumn, DigestKey, Forms, LeafBounds, RowHasher};
use tidemark_model::{
    Column, DataType, Generated, Identity, RowSum, TupleForm, Tuples, TypeKind, Wire,
};

/// A row as the fields that COPY BINARY would write.
pub(crate) type Row = Vec<Option<Vec<u8>>>;

pub(crate) fn key() -> DigestKey {
    DigestKey::new([42; 32])
}

pub(crate) fn typed(name: &str, data_type: DataType) -> Column {
    Column {
        attnum: 1,
        name: name.to_owned(),
        type_name: data_type.name.clone(),
        data_type,
        typmod: -1,
        is_nullable: true,
        generated: Generated::No,
        identity: Identity::No,
        has_default: false,
        key_position: None,
        collation: None,
    }
}

pub(crate) fn column(name: &str, type_name: &str) -> Column {
    typed(name, DataType::builtin(0, type_name))
}

pub(crate) fn of_kind(name: &str, kind: TypeKind) -> DataType {
    DataType { kind, ..DataType::builtin(0, name) }
}

pub(crate) fn own(columns: &[Column]) -> Vec<DigestColumn<'_>> {
    columns.iter().map(|column| DigestColumn { column, wire: Wire::Own }).collect()
}

pub(crate) fn tuple(row: &Row) -> Vec<u8> {
    let mut bytes = (row.len() as u16).to_be_bytes().to_vec();
    for field in row {
        match field {
            None => bytes.extend_from_slice(&(-1_i32).to_be_bytes()),
            Some(field) => {
                bytes.extend_from_slice(&(field.len() as u32).to_be_bytes());
                bytes.extend_from_slice(field);
            }
        }
    }
    bytes
}

pub(crate) fn batch(rows: &[Row]) -> Tuples {
    let (mut data, mut ends) = (Vec::new(), Vec::new());
    for row in rows {
        data.extend_from_slice(&tuple(row));
        ends.push(data.len() as u32);
    }
    Tuples { form: TupleForm::PgBinary, data: Bytes::from(data), ends }
}

pub(crate) fn lines(text: &str) -> Tuples {
    let mut end = 0;
    let ends = text.split_inclusive('\n').map(|line| {
        end += line.len() as u32;
        end
    });
    let ends = ends.collect();
    Tuples { form: TupleForm::PgText, data: Bytes::copy_from_slice(text.as_bytes()), ends }
}

pub(crate) fn hasher(columns: &[Column], forms: Forms) -> RowHasher {
    RowHasher::compile(&own(columns), TupleForm::PgBinary, forms, &key(), LeafBounds::single())
        .unwrap()
}

/// Both sums of a table.
pub(crate) fn sum(columns: &[Column], rows: &[Row]) -> RowSum {
    let mut hasher = hasher(columns, Forms::RawAndValue);
    hasher.add(&batch(rows)).unwrap();
    hasher.sum()
}

/// Both sums of one value of a type.
pub(crate) fn sum_of(data_type: &DataType, field: &[u8]) -> RowSum {
    sum(&[typed("c", data_type.clone())], &[vec![Some(field.to_vec())]])
}

pub(crate) fn int4(value: i32) -> Option<Vec<u8>> {
    Some(value.to_be_bytes().to_vec())
}

pub(crate) fn text(value: &str) -> Option<Vec<u8>> {
    Some(value.as_bytes().to_vec())
}

/// The binary form of a numeric, of base-10^4 digits.
pub(crate) fn numeric(sign: u16, weight: i16, dscale: u16, digits: &[u16]) -> Vec<u8> {
    let head = [digits.len() as u16, weight as u16, sign, dscale];
    head.iter().chain(digits).flat_map(|word| word.to_be_bytes()).collect()
}
