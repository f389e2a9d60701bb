//! How each column of a table is encoded, and the encoding of row groups.
//!
//! **Invariant:** a choice changes size and time only: every file holds the same values whatever is chosen, with encodings
//! that the Parquet format has had since version 2 (dictionary, delta, delta length), which every current reader knows.
//!
//! The choice is made by trying: the first rows are encoded with and without a dictionary, with and without
//! compression, and the smallest wins, with two corrections. A dictionary is paid once per row group, so its page is
//! scaled from the sample to a row group by how it grew from half the sample to the whole. Compression that saves less
//! than 8 % is left off, because it costs time on both sides. The trial is cheap (some ms) and deterministic.
//! Measured on TPC-H `lineitem` in `benches/encode.rs`.
//!
//! Parquet format: <https://parquet.apache.org/docs/file-format/data-pages/encodings/>

use std::sync::Arc;

use arrow_array::RecordBatch;
use arrow_schema::SchemaRef;
use parquet::arrow::arrow_writer::{ArrowColumnWriter, ArrowRowGroupWriterFactory, compute_leaves};
use parquet::arrow::{ArrowSchemaConverter, add_encoded_arrow_schema_to_metadata};
use parquet::basic::{Compression as Codec, Encoding, Type as Physical, ZstdLevel};
use parquet::errors::Result;
use parquet::file::properties::{EnabledStatistics, WriterProperties, WriterPropertiesPtr};
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::types::{ColumnDescriptor, SchemaDescriptor, TypePtr};

use super::encode::{self, EncodedColumn, FlatColumn, Packer, Spec};
use super::options::Compression;

/// Rows of a full row group: DuckDB's vector size times 60, what its own writer and its readers are tuned for.
pub const ROW_GROUP_ROWS: usize = 122_880;

/// Rows that the trial looks at.
pub const SAMPLE_ROWS: usize = 8_192;

/// Compression stays on where it leaves at most this much.
const WORTHWHILE: f64 = 0.92;

/// A dictionary larger than this is given up by the encoder for the rest of the row group.
const DICTIONARY_BYTES_MAX: usize = 1 << 20;

/// How one leaf column is encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ColumnChoice {
    /// Whether values go through a dictionary.
    pub has_dictionary: bool,
    /// Whether pages are compressed.
    pub is_compressed: bool,
}

/// A schema with the encoding of each of its leaf columns.
#[derive(Debug)]
pub struct Layout {
    schema: SchemaRef,
    descriptor: SchemaDescriptor,
    root: TypePtr,
    properties: WriterPropertiesPtr,
    factory: ArrowRowGroupWriterFactory,
    codec: Codec,
    choices: Vec<ColumnChoice>,
}

impl Layout {
    /// A layout with the same choice for every column: for tables without rows, and for the trial.
    ///
    /// # Errors
    /// The schema has a type that Parquet has not.
    pub fn uniform(
        schema: &SchemaRef,
        compression: Compression,
        choice: ColumnChoice,
    ) -> Result<Self> {
        Self::new(schema, compression, |_| choice)
    }

    /// A layout chosen by encoding `sample` in several ways.
    ///
    /// # Errors
    /// The schema has a type that Parquet has not.
    pub fn sampled(
        schema: &SchemaRef,
        compression: Compression,
        sample: &RecordBatch,
    ) -> Result<Self> {
        let sample = sample.slice(0, sample.num_rows().min(SAMPLE_ROWS));
        let trial = |has_dictionary, is_compressed, rows: &RecordBatch| -> Result<Vec<Trial>> {
            let choice = ColumnChoice { has_dictionary, is_compressed };
            let mut encoder = Self::uniform(schema, compression, choice)?.row_group()?;
            encoder.write(rows)?;
            Ok(encoder.finish()?.columns.iter().map(Trial::of).collect())
        };
        let half = trial(true, false, &sample.slice(0, sample.num_rows().div_ceil(2)))?;
        let ways = [(true, true), (true, false), (false, true), (false, false)];
        let mut trials = Vec::with_capacity(ways.len());
        for (has_dictionary, is_compressed) in ways {
            trials.push(trial(has_dictionary, is_compressed, &sample)?);
        }
        let scale = (ROW_GROUP_ROWS / sample.num_rows().max(1)).max(1) as f64;
        Self::new(schema, compression, |leaf| {
            let dictionary_growth = trials[1][leaf].growth_from(&half[leaf], scale);
            let size = |way: usize| trials[way][leaf].at_scale(scale, dictionary_growth);
            let has_dictionary = size(0).min(size(1)) < size(2).min(size(3));
            let (packed, plain) =
                if has_dictionary { (size(0), size(1)) } else { (size(2), size(3)) };
            ColumnChoice { has_dictionary, is_compressed: packed <= plain * WORTHWHILE }
        })
    }

    fn new(
        schema: &SchemaRef,
        compression: Compression,
        choose: impl Fn(usize) -> ColumnChoice,
    ) -> Result<Self> {
        let descriptor = ArrowSchemaConverter::new().convert(schema)?;
        let codec = codec(compression)?;
        let choices: Vec<_> = (0..descriptor.num_columns()).map(choose).collect();
        let mut builder = WriterProperties::builder()
            .set_created_by(concat!("tidemark ", env!("CARGO_PKG_VERSION")).to_owned())
            .set_statistics_enabled(EnabledStatistics::Chunk)
            .set_dictionary_page_size_limit(DICTIONARY_BYTES_MAX);
        for (column, choice) in descriptor.columns().iter().zip(&choices) {
            let path = column.path().clone();
            builder = builder
                .set_column_dictionary_enabled(path.clone(), choice.has_dictionary)
                .set_column_encoding(path.clone(), encoding_without_dictionary(column))
                .set_column_compression(
                    path,
                    if choice.is_compressed { codec } else { Codec::UNCOMPRESSED },
                );
        }
        let mut properties = builder.build();
        add_encoded_arrow_schema_to_metadata(schema, &mut properties);
        let properties = Arc::new(properties);
        let root = descriptor.root_schema_ptr();
        let template =
            SerializedFileWriter::new(Vec::new(), Arc::clone(&root), Arc::clone(&properties))?;
        let factory = ArrowRowGroupWriterFactory::new(&template, Arc::clone(schema));
        let schema = Arc::clone(schema);
        Ok(Self { schema, descriptor, root, properties, factory, codec, choices })
    }

    /// The schema.
    pub fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    /// What was chosen for each leaf column.
    pub fn choices(&self) -> &[ColumnChoice] {
        &self.choices
    }

    /// The Parquet schema and the properties for a file writer.
    pub fn file_parts(&self) -> (TypePtr, WriterPropertiesPtr) {
        (Arc::clone(&self.root), Arc::clone(&self.properties))
    }

    /// Begins a row group.
    ///
    /// # Errors
    /// The schema has a type that Parquet has not.
    pub fn row_group(&self) -> Result<RowGroupEncoder> {
        let writers = self.factory.create_column_writers(0)?.into_iter().enumerate();
        let writers = writers.map(|(leaf, writer)| match self.own_column(leaf) {
            Some(column) => LeafWriter::Own(column),
            None => LeafWriter::Library(Box::new(writer)),
        });
        Ok(RowGroupEncoder {
            schema: Arc::clone(&self.schema),
            writers: writers.collect(),
            packer: Packer::new(self.codec),
            rows: 0,
        })
    }

    fn own_column(&self, leaf: usize) -> Option<Box<dyn FlatColumn>> {
        let field = self.schema.field(self.descriptor.get_column_root_idx(leaf));
        let ColumnChoice { has_dictionary, is_compressed } = self.choices[leaf];
        let column = self.descriptor.column(leaf);
        let spec = Spec { column, codec: self.codec, has_dictionary, is_compressed };
        encode::flat_column(field.data_type(), spec)
    }
}

/// Who encodes a leaf column.
enum LeafWriter {
    Own(Box<dyn FlatColumn>),
    Library(Box<ArrowColumnWriter>),
}

/// The columns of one row group while rows come in. Holds encoded pages, hence less than the rows it was given.
pub struct RowGroupEncoder {
    schema: SchemaRef,
    writers: Vec<LeafWriter>,
    packer: Packer,
    rows: usize,
}

impl RowGroupEncoder {
    /// Encodes rows.
    ///
    /// # Errors
    /// The batch does not fit the schema.
    pub fn write(&mut self, batch: &RecordBatch) -> Result<()> {
        let mut writers = self.writers.iter_mut();
        let mut next = || writers.next().expect("one writer for each leaf of the schema");
        for (field, column) in self.schema.fields().iter().zip(batch.columns()) {
            let mut writer = next();
            if let LeafWriter::Own(own) = writer {
                own.append(column, &mut self.packer)?;
                continue;
            }
            for (number, leaf) in compute_leaves(field, column)?.iter().enumerate() {
                if number > 0 {
                    writer = next();
                }
                let LeafWriter::Library(library) = &mut *writer else {
                    unreachable!("only columns of one leaf are encoded by us")
                };
                library.write(leaf)?;
            }
        }
        self.rows += batch.num_rows();
        Ok(())
    }

    /// Rows so far.
    pub fn row_count(&self) -> usize {
        self.rows
    }

    /// Bytes held now.
    pub fn bytes(&self) -> usize {
        let bytes = |writer: &LeafWriter| match writer {
            LeafWriter::Own(own) => own.bytes(),
            LeafWriter::Library(library) => library.memory_size(),
        };
        self.writers.iter().map(bytes).sum()
    }

    /// Ends the row group.
    ///
    /// # Errors
    /// Compression failed.
    pub fn finish(self) -> Result<EncodedRowGroup> {
        let Self { writers, mut packer, rows, .. } = self;
        let columns = writers.into_iter().map(|writer| match writer {
            LeafWriter::Own(own) => own.finish(&mut packer),
            LeafWriter::Library(library) => Ok(EncodedColumn::Library(Box::new(library.close()?))),
        });
        let columns = columns.collect::<Result<Vec<_>>>()?;
        let bytes = columns.iter().map(|column| column.close().bytes_written).sum();
        Ok(EncodedRowGroup { columns, rows: rows as u64, bytes })
    }
}

/// A row group ready to be put into a file.
#[derive(Debug)]
pub struct EncodedRowGroup {
    /// The column chunks in leaf order.
    pub columns: Vec<EncodedColumn>,
    /// Rows.
    pub rows: u64,
    /// Bytes in the file.
    pub bytes: u64,
}

/// What a leaf column came to in a trial.
#[derive(Debug, Clone, Copy)]
struct Trial {
    dictionary: f64,
    data: f64,
}

impl Trial {
    fn of(column: &EncodedColumn) -> Self {
        let total = column.close().bytes_written as f64;
        let data = column.close().offset_index.as_ref().map_or(total, |index| {
            index.page_locations().iter().map(|page| f64::from(page.compressed_page_size)).sum()
        });
        Self { dictionary: (total - data).max(0.0), data }
    }

    /// How much larger the dictionary of a row group `scale` times this sample will be, judged by how it grew from the
    /// first half: distinct values follow a power of the rows (Heaps' law).
    fn growth_from(&self, half: &Self, scale: f64) -> f64 {
        if half.dictionary <= 0.0 {
            return 1.0;
        }
        let exponent = (self.dictionary / half.dictionary).log2().clamp(0.0, 1.0);
        scale.powf(exponent)
    }

    /// Bytes of a row group `scale` times as large.
    fn at_scale(&self, scale: f64, dictionary_growth: f64) -> f64 {
        self.data * scale + self.dictionary * dictionary_growth
    }
}

fn codec(compression: Compression) -> Result<Codec> {
    Ok(match compression {
        Compression::Zstd { level } => Codec::ZSTD(ZstdLevel::try_new(level)?),
        Compression::Lz4 => Codec::LZ4_RAW,
        Compression::Snappy => Codec::SNAPPY,
        Compression::None => Codec::UNCOMPRESSED,
    })
}

fn encoding_without_dictionary(column: &ColumnDescriptor) -> Encoding {
    match column.physical_type() {
        Physical::INT32 | Physical::INT64 => Encoding::DELTA_BINARY_PACKED,
        Physical::BYTE_ARRAY => Encoding::DELTA_LENGTH_BYTE_ARRAY,
        _ => Encoding::PLAIN,
    }
}
