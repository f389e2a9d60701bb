//! The pages of one column chunk, and what its metadata says about them.
//!
//! **Invariant:** offsets count from the first byte of the chunk; a dictionary page comes before every data page.

use std::io::Write as _;
use std::sync::Arc;

use arrow_buffer::BooleanBufferBuilder;
use bytes::Bytes;
use parquet::basic::{Compression as Codec, Encoding, EncodingMask, PageType};
use parquet::column::page::{CompressedPage, Page, PageWriter as _};
use parquet::column::writer::ColumnCloseResult;
use parquet::errors::{ParquetError, Result};
use parquet::file::metadata::{
    ColumnChunkMetaData, LevelHistogram, OffsetIndexBuilder, PageEncodingStats,
};
use parquet::file::statistics::Statistics;
use parquet::file::writer::{SerializedPageWriter, TrackedWrite};
use parquet::schema::types::ColumnDescPtr;
use zstd::bulk::Compressor;

use super::EncodedColumn;
use super::hybrid;

/// Compresses pages; one serves all columns of a row group.
pub(in crate::parquet) struct Packer {
    codec: Codec,
    zstd: Option<Compressor<'static>>,
}

impl Packer {
    /// A packer for zstd and for no compression.
    pub(in crate::parquet) fn new(codec: Codec) -> Self {
        Self { codec, zstd: None }
    }

    fn pack(&mut self, page: &[u8]) -> Result<Vec<u8>> {
        let Codec::ZSTD(level) = self.codec else {
            return Err(ParquetError::General("pages are packed by zstd only".to_owned()));
        };
        let zstd = match &mut self.zstd {
            Some(zstd) => zstd,
            None => self.zstd.insert(
                Compressor::new(level.compression_level())
                    .map_err(|error| ParquetError::External(Box::new(error)))?,
            ),
        };
        zstd.compress(page).map_err(|error| ParquetError::External(Box::new(error)))
    }
}

/// Which rows of a page hold a value.
#[derive(Default)]
pub(super) struct Levels {
    pub(super) rows: usize,
    nulls: usize,
    present: Option<BooleanBufferBuilder>,
}

impl Levels {
    /// Adds rows.
    pub(super) fn append(&mut self, rows: usize, nulls: Option<&arrow_buffer::NullBuffer>) {
        let null_count = nulls.map_or(0, arrow_buffer::NullBuffer::null_count);
        if null_count > 0 && self.present.is_none() {
            let mut present = BooleanBufferBuilder::new(self.rows + rows);
            present.append_n(self.rows, true);
            self.present = Some(present);
        }
        match (&mut self.present, nulls) {
            (Some(present), Some(nulls)) => present.append_buffer(nulls.inner()),
            (Some(present), None) => present.append_n(rows, true),
            (None, _) => {}
        }
        self.rows += rows;
        self.nulls += null_count;
    }

    /// The definition levels as a page begins with them.
    fn write(&mut self, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend_from_slice(&[0; 4]);
        match &mut self.present {
            None => hybrid::run(1, self.rows, 1, out),
            Some(present) => {
                let levels: Vec<u16> = present.finish().iter().map(u16::from).collect();
                hybrid::encode(&levels, 1, out);
            }
        }
        let len = (out.len() - start - 4) as u32;
        out[start..start + 4].copy_from_slice(&len.to_le_bytes());
    }
}

/// The pages of a column chunk so far.
pub(super) struct Pages {
    column: ColumnDescPtr,
    is_compressed: bool,
    out: TrackedWrite<Vec<u8>>,
    offset_index: OffsetIndexBuilder,
    stats: Vec<PageEncodingStats>,
    dictionary_bytes: usize,
    uncompressed: usize,
    unencoded: Option<i64>,
    rows: usize,
    nulls: usize,
}

impl Pages {
    pub(super) fn new(column: ColumnDescPtr, is_compressed: bool) -> Self {
        Self {
            column,
            is_compressed,
            out: TrackedWrite::new(Vec::new()),
            offset_index: OffsetIndexBuilder::new(),
            stats: Vec::new(),
            dictionary_bytes: 0,
            uncompressed: 0,
            unencoded: None,
            rows: 0,
            nulls: 0,
        }
    }

    /// The column.
    pub(super) fn column(&self) -> &ColumnDescPtr {
        &self.column
    }

    /// Bytes so far.
    pub(super) fn bytes(&self) -> usize {
        self.out.bytes_written()
    }

    /// NULLs so far.
    pub(super) fn null_count(&self) -> u64 {
        self.nulls as u64
    }

    /// Appends the dictionary page; the first of all pages.
    pub(super) fn dictionary(
        &mut self,
        values: Vec<u8>,
        count: usize,
        packer: &mut Packer,
    ) -> Result<()> {
        let encoding = Encoding::PLAIN;
        let page = |buf| Page::DictionaryPage {
            buf,
            num_values: count as u32,
            encoding,
            is_sorted: false,
        };
        self.write(values, page, packer)?;
        self.dictionary_bytes = self.bytes();
        Ok(())
    }

    /// Begins a data page: its levels, behind which the caller puts the values.
    pub(super) fn begin_data(&self, levels: &mut Levels) -> Vec<u8> {
        let mut page = Vec::new();
        if self.column.max_def_level() > 0 {
            levels.write(&mut page);
        }
        page
    }

    /// Appends a data page. `unencoded` are the bytes of its values, if they are of any length.
    pub(super) fn data(
        &mut self,
        page: Vec<u8>,
        levels: &Levels,
        encoding: Encoding,
        unencoded: Option<i64>,
        packer: &mut Packer,
    ) -> Result<()> {
        let offset = self.bytes();
        let of = |buf| Page::DataPage {
            buf,
            num_values: levels.rows as u32,
            encoding,
            def_level_encoding: Encoding::RLE,
            rep_level_encoding: Encoding::RLE,
            statistics: None,
        };
        self.write(page, of, packer)?;
        self.offset_index.append_row_count(levels.rows as i64);
        self.offset_index.append_offset_and_size(offset as i64, (self.bytes() - offset) as i32);
        self.offset_index.append_unencoded_byte_array_data_bytes(unencoded);
        if let Some(unencoded) = unencoded {
            *self.unencoded.get_or_insert(0) += unencoded;
        }
        self.rows += levels.rows;
        self.nulls += levels.nulls;
        Ok(())
    }

    fn write(
        &mut self,
        page: Vec<u8>,
        of: impl FnOnce(Bytes) -> Page,
        packer: &mut Packer,
    ) -> Result<()> {
        let size = page.len();
        let bytes = if self.is_compressed { packer.pack(&page)?.into() } else { page.into() };
        let page = CompressedPage::new(of(bytes), size);
        let (page_type, encoding) = (page.page_type(), page.encoding());
        let spec = SerializedPageWriter::new(&mut self.out).write_page(page)?;
        self.uncompressed += spec.uncompressed_size;
        match self.stats.last_mut() {
            Some(last) if last.page_type == page_type && last.encoding == encoding => {
                last.count += 1;
            }
            _ => self.stats.push(PageEncodingStats { page_type, encoding, count: 1 }),
        }
        Ok(())
    }

    /// Ends the chunk.
    pub(super) fn close(mut self, statistics: Statistics, codec: Codec) -> Result<EncodedColumn> {
        self.out.flush()?;
        let bytes = self.bytes();
        let has_dictionary =
            self.stats.first().is_some_and(|s| s.page_type == PageType::DICTIONARY_PAGE);
        let encodings = self.stats.iter().map(|stats| stats.encoding).chain([Encoding::RLE]);
        let encodings: Vec<_> = encodings.collect();
        let histogram = LevelHistogram::try_new(self.column.max_def_level()).map(|mut levels| {
            levels.increment_by(0, self.nulls as i64);
            levels.increment_by(1, (self.rows - self.nulls) as i64);
            levels
        });
        let metadata = ColumnChunkMetaData::builder(Arc::clone(&self.column))
            .set_compression(if self.is_compressed { codec } else { Codec::UNCOMPRESSED })
            .set_encodings_mask(EncodingMask::new_from_encodings(encodings.iter()))
            .set_page_encoding_stats(self.stats)
            .set_total_compressed_size(bytes as i64)
            .set_total_uncompressed_size(self.uncompressed as i64)
            .set_num_values(self.rows as i64)
            .set_data_page_offset(self.dictionary_bytes as i64)
            .set_dictionary_page_offset(has_dictionary.then_some(0))
            .set_statistics(statistics)
            .set_unencoded_byte_array_data_bytes(self.unencoded)
            .set_definition_level_histogram(histogram)
            .build()?;
        let close = ColumnCloseResult {
            bytes_written: bytes as u64,
            rows_written: self.rows as u64,
            metadata,
            bloom_filter: None,
            column_index: None,
            offset_index: Some(self.offset_index.build()),
        };
        Ok(EncodedColumn::Own { data: self.out.into_inner()?.into(), close: Box::new(close) })
    }
}
