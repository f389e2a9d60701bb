//! Column chunks of flat columns of the commonest types, encoded here instead of by the parquet crate.
//!
//! **Invariant:** a reader gets the same values, statistics and kinds of pages that the crate's own writer would have
//! written; what is not known here (nested columns, other types and codecs) is left to it.
//!
//! ```text
//! rows -> values (load) -> indices into the dictionary of the row group (intern)
//!                       -> or, without one or when it became too large: differences, lengths and bytes (append)
//!      -> a page per 20,480 rows or 1 MiB -> compressed -> column chunk, spliced into the file
//! ```
//!
//! Why: the crate compares every string twice for the statistics and once in its dictionary, by a call for each, hashes
//! numbers like strings, and packs bits one value after the other; here smallest and largest come from the dictionary
//! or from the first eight bytes, short strings are compared as four words, and bits are packed by the word.
//! Measured in `benches/encode.rs`.

mod column;
mod delta;
mod hybrid;
mod integers;
mod pages;
mod strings;

#[cfg(test)]
mod tests;

use std::io::Write;

use arrow_array::Array;
use arrow_array::types::{
    Date32Type, Int16Type, Int32Type, Int64Type, Time64MicrosecondType, TimestampMicrosecondType,
};
use arrow_schema::{DataType, TimeUnit};
use bytes::Bytes;
use parquet::arrow::arrow_writer::ArrowColumnChunk;
use parquet::basic::{Compression as Codec, SortOrder, Type as Physical};
use parquet::column::writer::ColumnCloseResult;
use parquet::errors::Result;
use parquet::file::writer::SerializedRowGroupWriter;
use parquet::schema::types::ColumnDescPtr;

use column::Column;
use integers::Integers;
pub(super) use pages::Packer;
use strings::Strings;

/// Rows of a page: what the crate comes to with its batches of 1024 and its limit of 20,000.
const PAGE_ROWS: usize = 20_480;

/// Bytes of a page, unless one value is larger.
const PAGE_BYTES: usize = 1 << 20;

/// Values of a dictionary; their numbers are kept in 16 bits.
const DICTIONARY_VALUES_MAX: usize = 1 << hybrid::WIDTH_MAX;

/// Bytes of a dictionary page.
const DICTIONARY_BYTES_MAX: usize = 1 << 20;

/// How a column is to be encoded.
pub(super) struct Spec {
    pub(super) column: ColumnDescPtr,
    pub(super) codec: Codec,
    pub(super) has_dictionary: bool,
    pub(super) is_compressed: bool,
}

/// A column chunk while rows come in.
pub(super) trait FlatColumn: Send {
    /// Encodes values.
    fn append(&mut self, values: &dyn Array, packer: &mut Packer) -> Result<()>;

    /// Bytes held now.
    fn bytes(&self) -> usize;

    /// Ends the chunk.
    fn finish(self: Box<Self>, packer: &mut Packer) -> Result<EncodedColumn>;
}

/// A writer for a column, if its kind is known here.
pub(super) fn flat_column(data_type: &DataType, spec: Spec) -> Option<Box<dyn FlatColumn>> {
    let column = &spec.column;
    let is_flat = column.path().parts().len() == 1
        && column.max_rep_level() == 0
        && column.max_def_level() <= 1;
    if !is_flat || !matches!(spec.codec, Codec::ZSTD(_) | Codec::UNCOMPRESSED) {
        return None;
    }
    let order = match column.physical_type() {
        Physical::BYTE_ARRAY => SortOrder::UNSIGNED,
        _ => SortOrder::SIGNED,
    };
    if column.sort_order() != order {
        return None;
    }
    Some(match (data_type, column.physical_type()) {
        (DataType::Utf8, Physical::BYTE_ARRAY) => Column::new(Strings::text(), spec),
        (DataType::Binary, Physical::BYTE_ARRAY) => Column::new(Strings::binary(), spec),
        (DataType::Int16, Physical::INT32) => {
            Column::new(Integers::<i32>::of::<Int16Type>(i32::from), spec)
        }
        (DataType::Int32, Physical::INT32) => Column::new(Integers::plain::<Int32Type>(), spec),
        (DataType::Date32, Physical::INT32) => Column::new(Integers::plain::<Date32Type>(), spec),
        (DataType::Int64, Physical::INT64) => Column::new(Integers::plain::<Int64Type>(), spec),
        (DataType::Timestamp(TimeUnit::Microsecond, _), Physical::INT64) => {
            Column::new(Integers::plain::<TimestampMicrosecondType>(), spec)
        }
        (DataType::Time64(TimeUnit::Microsecond), Physical::INT64) => {
            Column::new(Integers::plain::<Time64MicrosecondType>(), spec)
        }
        // The precision that gave the physical type keeps the values in its range.
        (DataType::Decimal128(_, _), Physical::INT32) => {
            Column::new(Integers::decimal(|value| value as i32), spec)
        }
        (DataType::Decimal128(_, _), Physical::INT64) => {
            Column::new(Integers::decimal(|value| value as i64), spec)
        }
        _ => return None,
    })
}

/// A column chunk ready to be put into a file.
#[derive(Debug)]
pub enum EncodedColumn {
    /// By the parquet crate.
    Library(Box<ArrowColumnChunk>),
    /// By us.
    Own {
        /// Its pages.
        data: Bytes,
        /// What is known about it.
        close: Box<ColumnCloseResult>,
    },
}

impl EncodedColumn {
    /// What is known about it.
    pub fn close(&self) -> &ColumnCloseResult {
        match self {
            Self::Library(chunk) => chunk.close(),
            Self::Own { close, .. } => close,
        }
    }

    /// Puts it into a file as the next column of a row group.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn append_to<W: Write + Send>(
        self,
        group: &mut SerializedRowGroupWriter<'_, W>,
    ) -> Result<()> {
        match self {
            Self::Library(chunk) => (*chunk).append_to_row_group(group),
            Self::Own { data, close } => group.append_column(&data, *close),
        }
    }
}
