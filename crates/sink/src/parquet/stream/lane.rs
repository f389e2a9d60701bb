//! The rows of one table on their way into row groups.
//!
//! **Invariant:** runs on the CPU pool, for one batch at a time, in the order of the batches; what it holds are at most a
//! few thousand decoded rows, the pages of one row group, and finished row groups until they are fetched.

use std::sync::Arc;

use arrow_array::{ArrayRef, RecordBatch, StructArray};
use arrow_buffer::NullBuffer;
use tidemark_columnar::Decoder;
use tidemark_model::{Lsn, Tuples};

use super::super::failure;
use super::super::layout::{
    ColumnChoice, EncodedRowGroup, Layout, ROW_GROUP_ROWS, RowGroupEncoder,
};
use super::super::manifest::OperationCounts;
use super::super::options::Compression;
use super::frame::{Frame, Scratch};
use super::rows::{Held, Pick};
use super::table::StreamTable;
use crate::{Disposition, Error, Result};

/// Rows that are decoded before they are encoded.
const BATCH_ROWS: usize = 8192;

/// A trial of encodings is made with at least so many rows; fewer are not worth it.
const TRIAL_ROWS: usize = 2048;

/// Row groups that share one trial; then the data may have changed its nature.
const ROW_GROUPS_PER_LAYOUT: u32 = 64;

/// When rows and row groups are ended by their size.
#[derive(Debug, Clone, Copy)]
pub(super) struct LaneBounds {
    pub(super) compression: Compression,
    pub(super) batch_bytes: usize,
    pub(super) row_group_bytes: usize,
}

/// The decoders and the encoder of a table; travels to the CPU pool and back.
pub(super) struct Lane {
    pub(super) table: Arc<StreamTable>,
    bounds: LaneBounds,
    frame: Frame,
    decoder: Decoder,
    keys: Decoder,
    layout: Option<(Arc<Layout>, u32)>,
    encoder: Option<RowGroupEncoder>,
    finished: Vec<EncodedRowGroup>,
    counts: OperationCounts,
    replaced_before: Vec<(String, u64)>,
    /// Replaced values that another decoder has counted.
    carried_over: Vec<(String, u64)>,
    last: Lsn,
}

/// Row groups that are ready for a file.
pub(super) struct Finished {
    pub(super) groups: Vec<EncodedRowGroup>,
    /// Gives the file its schema.
    pub(super) layout: Arc<Layout>,
}

impl Lane {
    pub(super) fn new(table: Arc<StreamTable>, bounds: LaneBounds) -> Self {
        Self {
            bounds,
            frame: Frame::new(),
            decoder: table.program.decoder(),
            keys: table.key_program.decoder(),
            layout: None,
            encoder: None,
            finished: Vec::new(),
            counts: OperationCounts::default(),
            replaced_before: Vec::new(),
            carried_over: Vec::new(),
            last: Lsn::ZERO,
            table,
        }
    }

    /// The lane of the same table with other columns, which goes on counting; everything held was taken.
    pub(super) fn followed_by(mut self, table: Arc<StreamTable>, bounds: LaneBounds) -> Self {
        let (counts, carried_over) = self.take_counts();
        Self { counts, carried_over, last: self.last, ..Self::new(table, bounds) }
    }

    /// Takes the rows of a batch.
    pub(super) fn take(&mut self, held: &Held, picks: &[Pick]) -> Result<()> {
        let table = Arc::clone(&self.table);
        let mut scratch = Scratch::default();
        for pick in picks {
            let transaction = &held.transactions[pick.transaction as usize];
            let change = &transaction.changes[pick.change as usize];
            self.last = transaction.head.end_lsn;
            let pushed = self.frame.push(&table, transaction.head, change, pick.seq, &mut scratch);
            let kinds = pushed.map_err(|error| self.place(error))?;
            kinds.iter().for_each(|kind| count(&mut self.counts, *kind));
            if self.frame.is_full() {
                self.decode()?;
            }
        }
        self.decode()
    }

    /// Decodes the rows of the frame, and encodes what is decoded once that is enough.
    fn decode(&mut self) -> Result<()> {
        let (rows, keys) = self.frame.take();
        append(&mut self.decoder, &rows).map_err(|error| self.decode_error(error))?;
        append(&mut self.keys, &keys).map_err(|error| self.decode_error(error))?;
        let is_full = self.decoder.row_count() >= BATCH_ROWS
            || self.decoder.bytes() >= self.bounds.batch_bytes;
        if is_full { self.encode() } else { Ok(()) }
    }

    fn encode(&mut self) -> Result<()> {
        if self.decoder.row_count() == 0 {
            return Ok(());
        }
        let batch = self.record_batch()?;
        let name = self.table.name().clone();
        let failed = |error| failure::parquet("encode changes", &name, error);
        let mut start = 0;
        while start < batch.num_rows() {
            let mut encoder = match self.encoder.take() {
                Some(encoder) => encoder,
                None => self.layout_for(&batch)?.row_group().map_err(failed)?,
            };
            let rows = (batch.num_rows() - start).min(ROW_GROUP_ROWS - encoder.row_count());
            encoder.write(&batch.slice(start, rows)).map_err(failed)?;
            start += rows;
            let is_full = encoder.row_count() >= ROW_GROUP_ROWS
                || encoder.bytes() >= self.bounds.row_group_bytes;
            if is_full {
                self.finished.push(encoder.finish().map_err(failed)?);
            } else {
                self.encoder = Some(encoder);
            }
        }
        Ok(())
    }

    fn record_batch(&mut self) -> Result<RecordBatch> {
        let rows = self.decoder.finish().map_err(|error| self.decode_error(error))?;
        let keys = self.keys.finish().map_err(|error| self.decode_error(error))?;
        let (has_old_key, heads) = self.frame.take_heads();
        let (mut columns, unchanged) = heads.into_columns();
        if !self.table.is_keyless() {
            let fields = self.table.key_fields();
            let old_keys: ArrayRef = if has_old_key.contains(&true) {
                let nulls = NullBuffer::from(has_old_key);
                Arc::new(StructArray::new(fields, keys.columns().to_vec(), Some(nulls)))
            } else {
                Arc::new(StructArray::new_null(fields, rows.num_rows()))
            };
            columns.push(old_keys);
        }
        columns.push(unchanged);
        columns.extend(rows.columns().iter().cloned());
        RecordBatch::try_new(Arc::clone(&self.table.schema), columns).map_err(|error| {
            Error::new(Disposition::Internal, "make rows of changes")
                .on(self.table.name())
                .because(error)
        })
    }

    /// The layout of a row group that begins with these rows.
    fn layout_for(&mut self, first: &RecordBatch) -> Result<Arc<Layout>> {
        if let Some((layout, left @ 1..)) = &mut self.layout {
            *left -= 1;
            return Ok(Arc::clone(layout));
        }
        let failed = |error| failure::parquet("choose encodings", self.table.name(), error);
        let (schema, compression) = (&self.table.schema, self.bounds.compression);
        if first.num_rows() < TRIAL_ROWS {
            let choice = ColumnChoice { has_dictionary: true, is_compressed: true };
            return Layout::uniform(schema, compression, choice).map(Arc::new).map_err(failed);
        }
        let layout = Arc::new(Layout::sampled(schema, compression, first).map_err(failed)?);
        self.layout = Some((Arc::clone(&layout), ROW_GROUPS_PER_LAYOUT));
        Ok(layout)
    }

    /// Ends the row group that is open.
    pub(super) fn finish(&mut self) -> Result<()> {
        self.encode()?;
        if let Some(encoder) = self.encoder.take() {
            let group = encoder
                .finish()
                .map_err(|error| failure::parquet("encode changes", self.table.name(), error))?;
            self.finished.push(group);
        }
        Ok(())
    }

    /// Takes the row groups that are ready.
    pub(super) fn take_finished(&mut self) -> Result<Option<Finished>> {
        if self.finished.is_empty() {
            return Ok(None);
        }
        let layout = match &self.layout {
            Some((layout, _)) => Arc::clone(layout),
            None => {
                let choice = ColumnChoice { has_dictionary: true, is_compressed: true };
                let layout = Layout::uniform(&self.table.schema, self.bounds.compression, choice);
                Arc::new(layout.map_err(|error| {
                    failure::parquet("choose encodings", self.table.name(), error)
                })?)
            }
        };
        Ok(Some(Finished { groups: std::mem::take(&mut self.finished), layout }))
    }

    /// Bytes of the row groups that are ready.
    pub(super) fn finished_bytes(&self) -> u64 {
        self.finished.iter().map(|group| group.bytes).sum()
    }

    /// Bytes that are held in all.
    pub(super) fn bytes(&self) -> u64 {
        let encoder = self.encoder.as_ref().map_or(0, RowGroupEncoder::bytes);
        (encoder + self.decoder.bytes() + self.keys.bytes()) as u64 + self.finished_bytes()
    }

    /// What came since the last call: rows by kind, and values that the policy replaced.
    pub(super) fn take_counts(&mut self) -> (OperationCounts, Vec<(String, u64)>) {
        let now = self.decoder.replaced();
        let before = std::mem::replace(&mut self.replaced_before, now.clone());
        let mut replaced = std::mem::take(&mut self.carried_over);
        for (column, values) in now {
            let known = before.iter().find(|(name, _)| *name == column).map_or(0, |(_, n)| *n);
            match replaced.iter_mut().find(|(name, _)| *name == column) {
                Some((_, sum)) => *sum += values - known,
                None if values > known => replaced.push((column, values - known)),
                None => {}
            }
        }
        (std::mem::take(&mut self.counts), replaced)
    }

    fn decode_error(&self, error: tidemark_columnar::Error) -> Error {
        use tidemark_columnar::Error as E;
        let disposition = match error {
            E::Unrepresentable { .. } | E::NotUtf8 { .. } | E::TooLarge { .. } => {
                Disposition::Value
            }
            _ => Disposition::Internal,
        };
        let hint = error.hint();
        let made = Error::new(disposition, "turn rows into columns").because(error);
        self.place(match hint {
            Some(hint) => made.hint(hint),
            None => made,
        })
    }

    /// Says of an error at which relation and position it came.
    fn place(&self, mut error: Error) -> Error {
        error.attempt = format!("{} (changes up to {})", error.attempt, self.last);
        error.on(self.table.name())
    }
}

fn append(decoder: &mut Decoder, tuples: &Tuples) -> Result<(), tidemark_columnar::Error> {
    if tuples.ends.is_empty() { Ok(()) } else { decoder.append(tuples) }
}

fn count(counts: &mut OperationCounts, kind: u8) {
    match kind {
        b'i' => counts.i += 1,
        b'u' => counts.u += 1,
        b'd' => counts.d += 1,
        _ => counts.t += 1,
    }
}
