//! Rows of a lake's files, in batches.
//!
//! **Invariant:** a file gives exactly the rows that its footer says, or an error that names the file; what is held of it at a
//! time does not grow with its size.

use std::ops::Range;

use arrow_array::RecordBatch;
use arrow_schema::SchemaRef;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{
    ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReaderBuilder,
};
use parquet::file::metadata::ColumnChunkMetaData;
use tidemark_sink::parquet::{FileEntry, StoredFile};

use super::Trouble;

/// The most rows of a batch,
const BATCH_ROWS: u64 = 8192;
/// and about so many bytes.
const BATCH_BYTES: u64 = 4 << 20;

/// An open file.
pub(super) struct OpenFile {
    pub(super) path: String,
    file: StoredFile,
    metadata: ArrowReaderMetadata,
    /// What its commit and its footer do not agree on.
    pub(super) note: Option<String>,
}

impl OpenFile {
    /// Reads the footer.
    pub(super) fn of(entry: &FileEntry, file: StoredFile) -> Result<Self, Trouble> {
        let options = ArrowReaderOptions::new();
        let metadata = ArrowReaderMetadata::load(&file, options)
            .map_err(|cause| damaged(&entry.path, "its footer", &cause))?;
        let rows = metadata.metadata().file_metadata().num_rows();
        let note = (u64::try_from(rows) != Ok(entry.rows))
            .then(|| format!("{} has {rows} rows, its commit says {}", entry.path, entry.rows));
        Ok(Self { path: entry.path.clone(), file, metadata, note })
    }

    pub(super) fn schema(&self) -> &SchemaRef {
        self.metadata.schema()
    }

    pub(super) fn row_groups(&self) -> Range<usize> {
        0..self.metadata.metadata().num_row_groups()
    }

    /// Rows of a row group, and the bytes that they take in the file and, about, in memory.
    pub(super) fn size(&self, row_group: usize) -> (u64, u64, u64) {
        let group = self.metadata.metadata().row_group(row_group);
        let number = |number: i64| u64::try_from(number).unwrap_or(0);
        let rows = number(group.num_rows());
        // Values that repeat may be there once in the file, so the size that it says they have without that comes first.
        let plain = |column: &ColumnChunkMetaData| match column.unencoded_byte_array_data_bytes() {
            Some(bytes) => number(bytes),
            None => number(column.uncompressed_size()).saturating_mul(2),
        };
        let bytes = group.columns().iter().map(plain).fold(0, u64::saturating_add);
        let heads = rows.saturating_mul(8 * group.columns().len() as u64);
        (rows, number(group.compressed_size()), bytes.saturating_add(heads))
    }

    /// Batches of these rows of a row group; only these columns.
    pub(super) fn read<'a>(
        &'a self,
        row_group: usize,
        rows: Range<u64>,
        wanted: &dyn Fn(&str) -> bool,
    ) -> Result<impl Iterator<Item = Result<RecordBatch, Trouble>> + 'a, Trouble> {
        let (total, _, bytes) = self.size(row_group);
        let each = (bytes / total.max(1)).max(1);
        let batch = (BATCH_BYTES / each).clamp(1, BATCH_ROWS).min(rows.end - rows.start);
        let fields = self.schema().fields().iter().enumerate();
        let wanted = fields.filter(|(_, field)| wanted(field.name())).map(|(at, _)| at);
        let mask = ProjectionMask::roots(self.metadata.parquet_schema(), wanted);
        let builder = ParquetRecordBatchReaderBuilder::new_with_metadata(
            self.file.clone(),
            self.metadata.clone(),
        );
        let index = |rows: u64| usize::try_from(rows).unwrap_or(usize::MAX);
        let reader = builder
            .with_row_groups(vec![row_group])
            .with_projection(mask)
            .with_offset(index(rows.start))
            .with_limit(index(rows.end - rows.start))
            .with_batch_size(index(batch))
            .build()
            .map_err(|cause| damaged(&self.path, "its columns", &cause))?;
        let mut left = rows.end - rows.start;
        let mut batches = reader.map(|batch| batch.map_err(|cause| cause.to_string()));
        Ok(std::iter::from_fn(move || match batches.next() {
            Some(Ok(batch)) => {
                left = left.saturating_sub(batch.num_rows() as u64);
                Some(Ok(batch))
            }
            Some(Err(cause)) => Some(Err(damaged(&self.path, "its pages", &cause))),
            None if std::mem::take(&mut left) > 0 => {
                Some(Err(damaged(&self.path, "its pages", &"they end before its rows")))
            }
            None => None,
        }))
    }
}

fn damaged(path: &str, what: &str, cause: &dyn std::fmt::Display) -> Trouble {
    Trouble::Table(format!("{path} cannot be read, {what} are damaged: {cause}"))
}
