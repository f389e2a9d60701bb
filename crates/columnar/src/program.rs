//! A table's column program, and the decoder that runs it.
//!
//! **Invariant:** a record batch holds whole rows, in the order in which they were appended, and it has the program's schema.
//! A decoder that has reported an error gives out no batch.

use std::sync::Arc;

use arrow_array::{ArrayRef, RecordBatch, RecordBatchOptions};
use arrow_schema::{Schema, SchemaRef};
use tidemark_model::{Column, SelectColumn, TupleForm, Tuples, Unrepresentable};

use crate::buffer::{ColumnBuffer, Context, for_shape};
use crate::error::{Error, Fault, Result};
use crate::mapping::{Mapping, map_column};
use crate::slot::SlotTable;

/// MaxTupleAttributeNumber: what a SELECT list can hold.
const COLUMNS_MAX: usize = 1664;

/// How the rows of one table become Arrow; compiled once, shared by all workers.
#[derive(Debug, Clone)]
pub struct Program {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    mappings: Vec<Mapping>,
    type_names: Vec<String>,
    schema: SchemaRef,
    policy: Unrepresentable,
}

impl Program {
    /// Compiles the columns, in the order in which they are selected.
    ///
    /// # Errors
    /// There are more columns than a SELECT list can have.
    pub fn compile(columns: &[Column], policy: Unrepresentable) -> Result<Self> {
        if columns.len() > COLUMNS_MAX {
            return Err(Error::TooManyColumns { count: columns.len() });
        }
        let mappings: Vec<_> = columns.iter().map(|column| map_column(column, policy)).collect();
        let fields: Vec<_> = mappings.iter().map(|mapping| Arc::clone(mapping.field())).collect();
        let type_names = columns.iter().map(|column| column.type_name.clone()).collect();
        let schema = Arc::new(Schema::new(fields));
        Ok(Self { inner: Arc::new(Inner { mappings, type_names, schema, policy }) })
    }

    /// The schema of every record batch.
    pub fn schema(&self) -> SchemaRef {
        Arc::clone(&self.inner.schema)
    }

    /// The SELECT list that gives the rows the form which the decoder expects.
    pub fn select(&self) -> Vec<SelectColumn> {
        let column = |mapping: &Mapping| SelectColumn {
            name: mapping.field().name().clone(),
            wire: mapping.wire(),
        };
        self.inner.mappings.iter().map(column).collect()
    }

    /// What becomes of each column.
    pub fn mappings(&self) -> &[Mapping] {
        &self.inner.mappings
    }

    /// A decoder with empty buffers; one per worker.
    pub fn decoder(&self) -> Decoder {
        let columns = self.inner.mappings.iter().map(|mapping| for_shape(mapping.shape()));
        Decoder {
            program: Arc::clone(&self.inner),
            slots: SlotTable::new(self.inner.mappings.len()),
            columns: columns.collect(),
            replaced: vec![0; self.inner.mappings.len()],
            row_count: 0,
            has_failed: false,
        }
    }
}

impl Inner {
    fn error(&self, column_index: usize, fault: Fault) -> Error {
        let name = self.mappings[column_index].field().name();
        fault.of_column(name, &self.type_names[column_index])
    }
}

/// Decodes rows into column buffers.
pub struct Decoder {
    program: Arc<Inner>,
    slots: SlotTable,
    columns: Vec<Box<dyn ColumnBuffer>>,
    replaced: Vec<u64>,
    row_count: usize,
    has_failed: bool,
}

impl std::fmt::Debug for Decoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Decoder")
            .field("columns", &self.columns.len())
            .field("row_count", &self.row_count)
            .field("has_failed", &self.has_failed)
            .finish()
    }
}

impl Decoder {
    /// Decodes all rows of a batch behind those that are held.
    ///
    /// # Errors
    /// A row is malformed, a value has no form and the policy is to stop, or a column would pass 2 GiB (call
    /// [`Decoder::finish`] in time: see [`Decoder::bytes`]). The decoder must then be dropped.
    pub fn append(&mut self, tuples: &Tuples) -> Result<()> {
        self.check_alive()?;
        let appended = self.append_blocks(tuples);
        self.has_failed = appended.is_err();
        appended
    }

    fn append_blocks(&mut self, tuples: &Tuples) -> Result<()> {
        if tuples.form != TupleForm::PgBinary {
            return Err(Error::NotBinary);
        }
        let data = tuples.data.as_ref();
        let mut start = 0;
        for ends in tuples.ends.chunks(self.slots.block_rows()) {
            start = self.slots.split(data, start, ends)?;
            self.append_block(data)?;
            self.row_count += ends.len();
        }
        if start != data.len() {
            return Err(Fault::of_row("bytes behind the last one"));
        }
        Ok(())
    }

    fn append_block(&mut self, data: &[u8]) -> Result<()> {
        let mut ctx = Context { policy: self.program.policy, replaced: 0 };
        for (index, column) in self.columns.iter_mut().enumerate() {
            ctx.replaced = 0;
            column
                .append(data, self.slots.column(index), &mut ctx)
                .map_err(|fault| self.program.error(index, fault))?;
            self.replaced[index] += ctx.replaced;
        }
        Ok(())
    }

    /// Rows held.
    pub fn row_count(&self) -> usize {
        self.row_count
    }

    /// Bytes that the buffers hold.
    pub fn bytes(&self) -> usize {
        self.columns.iter().map(|column| column.bytes()).sum()
    }

    /// Takes what is held as a record batch; the decoder is empty afterwards and can be used again.
    ///
    /// # Errors
    /// Text of a column is not UTF-8, or a column that the catalog calls NOT NULL holds NULL. The decoder must then be dropped.
    pub fn finish(&mut self) -> Result<RecordBatch> {
        self.check_alive()?;
        let finished = self.finish_columns();
        self.has_failed = finished.is_err();
        finished
    }

    fn finish_columns(&mut self) -> Result<RecordBatch> {
        let mut arrays: Vec<ArrayRef> = Vec::with_capacity(self.columns.len());
        for (index, column) in self.columns.iter_mut().enumerate() {
            let array = column.finish().map_err(|fault| self.program.error(index, fault))?;
            if array.null_count() > 0 && !self.program.schema.field(index).is_nullable() {
                let fault = Fault::Malformed("NULL in a column that is declared NOT NULL");
                return Err(self.program.error(index, fault));
            }
            arrays.push(array);
        }
        let row_count = std::mem::take(&mut self.row_count);
        let options = RecordBatchOptions::new().with_row_count(Some(row_count));
        let schema = Arc::clone(&self.program.schema);
        RecordBatch::try_new_with_options(schema, arrays, &options)
            .map_err(|_| Fault::of_row("the columns do not fit the schema"))
    }

    fn check_alive(&self) -> Result<()> {
        if self.has_failed { Err(Error::Failed) } else { Ok(()) }
    }

    /// Values replaced by the policy since the decoder was made, by column; only columns with any.
    pub fn replaced(&self) -> Vec<(String, u64)> {
        let fields = self.program.schema.fields().iter();
        fields
            .zip(&self.replaced)
            .filter(|(_, count)| **count > 0)
            .map(|(field, count)| (field.name().clone(), *count))
            .collect()
    }
}

#[cfg(test)]
mod tests;
