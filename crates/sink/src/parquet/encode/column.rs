//! The way of one column's rows into pages, whatever its kind.
//!
//! **Invariant:** data pages that refer to the dictionary come before all others, and a page is of one encoding. Indices are
//! kept until the dictionary is whole, because their width depends on it.

use arrow_array::{Array, ArrayRef};
use parquet::basic::{Compression as Codec, Encoding};
use parquet::errors::Result;
use parquet::file::statistics::Statistics;
use parquet::schema::types::ColumnDescPtr;

use super::pages::{Levels, Packer, Pages};
use super::{EncodedColumn, FlatColumn, PAGE_ROWS, Spec, hybrid};

/// What depends on the type of the values.
pub(super) trait Kind: Send + 'static {
    /// Encoding of the pages without a dictionary.
    const ENCODING: Encoding;

    /// How many of the first `rows` still fit into the page under construction.
    fn rows_that_fit(&self, array: &dyn Array, start: usize, rows: usize) -> usize;

    /// Takes up the values of an array that are not NULL.
    fn load(&mut self, array: &ArrayRef);

    /// Appends the indices of what was taken up; false if the dictionary cannot hold it, and then there are none.
    fn intern(&mut self, indices: &mut Vec<u16>) -> bool;

    /// Values of the dictionary.
    fn dictionary_len(&self) -> usize;

    /// Gives the dictionary away as a page, and remembers its smallest and largest value.
    fn take_dictionary(&mut self) -> Vec<u8>;

    /// Appends what was taken up to the page under construction.
    fn append(&mut self);

    /// Appends the page under construction to its levels, and begins the next one.
    fn take_page(&mut self, page: &mut Vec<u8>);

    /// Bytes of the values since the last call, if they are of any length.
    fn take_unencoded(&mut self) -> Option<i64>;

    /// Bytes held.
    fn bytes(&self) -> usize;

    /// Statistics of all values; dictionary and pages are taken.
    fn statistics(&self, column: &ColumnDescPtr, null_count: u64) -> Result<Statistics>;
}

/// A page of indices.
struct IndexPage {
    levels: Levels,
    indices: usize,
    unencoded: Option<i64>,
}

/// One column chunk.
pub(super) struct Column<K> {
    kind: K,
    codec: Codec,
    pages: Pages,
    levels: Levels,
    is_dictionary: bool,
    indices: Vec<u16>,
    index_pages: Vec<IndexPage>,
}

impl<K: Kind> Column<K> {
    #[expect(clippy::new_ret_no_self, reason = "every kind is used behind the same trait")]
    pub(super) fn new(kind: K, spec: Spec) -> Box<dyn FlatColumn> {
        Box::new(Self {
            kind,
            codec: spec.codec,
            pages: Pages::new(spec.column, spec.is_compressed && spec.codec != Codec::UNCOMPRESSED),
            levels: Levels::default(),
            is_dictionary: spec.has_dictionary,
            indices: Vec::new(),
            index_pages: Vec::new(),
        })
    }

    /// Takes rows of the page under construction; false, and nothing is taken, if they ended the dictionary.
    fn append_piece(&mut self, piece: &ArrayRef, packer: &mut Packer) -> Result<bool> {
        self.kind.load(piece);
        if !self.is_dictionary {
            self.kind.append();
        } else if !self.kind.intern(&mut self.indices) {
            self.leave_dictionary(packer)?;
            return Ok(false);
        }
        self.levels.append(piece.len(), piece.nulls());
        Ok(true)
    }

    fn end_page(&mut self, packer: &mut Packer) -> Result<()> {
        let mut levels = std::mem::take(&mut self.levels);
        let unencoded = self.kind.take_unencoded();
        if self.is_dictionary {
            let before: usize = self.index_pages.iter().map(|page| page.indices).sum();
            let indices = self.indices.len() - before;
            self.index_pages.push(IndexPage { levels, indices, unencoded });
            return Ok(());
        }
        let mut page = self.pages.begin_data(&mut levels);
        self.kind.take_page(&mut page);
        self.pages.data(page, &levels, K::ENCODING, unencoded, packer)
    }

    /// Writes the dictionary and the pages that refer to it.
    fn leave_dictionary(&mut self, packer: &mut Packer) -> Result<()> {
        if self.levels.rows > 0 {
            self.end_page(packer)?;
        }
        self.is_dictionary = false;
        let index_pages = std::mem::take(&mut self.index_pages);
        let count = self.kind.dictionary_len();
        let dictionary = self.kind.take_dictionary();
        if index_pages.is_empty() {
            return Ok(());
        }
        self.pages.dictionary(dictionary, count, packer)?;
        let width = hybrid::width_for(count.saturating_sub(1));
        let indices = std::mem::take(&mut self.indices);
        let mut rest = indices.as_slice();
        for IndexPage { mut levels, indices, unencoded } in index_pages {
            let (of_page, after) = rest.split_at(indices);
            rest = after;
            let mut page = self.pages.begin_data(&mut levels);
            page.push(width);
            hybrid::encode(of_page, width, &mut page);
            self.pages.data(page, &levels, Encoding::RLE_DICTIONARY, unencoded, packer)?;
        }
        Ok(())
    }
}

impl<K: Kind> FlatColumn for Column<K> {
    fn append(&mut self, values: &dyn Array, packer: &mut Packer) -> Result<()> {
        let mut start = 0;
        while start < values.len() {
            let mut rows = (values.len() - start).min(PAGE_ROWS - self.levels.rows);
            if !self.is_dictionary {
                rows = self.kind.rows_that_fit(values, start, rows);
            }
            if rows > 0 && self.append_piece(&values.slice(start, rows), packer)? {
                start += rows;
            }
            if rows == 0 || self.levels.rows >= PAGE_ROWS {
                self.end_page(packer)?;
            }
        }
        Ok(())
    }

    fn bytes(&self) -> usize {
        self.pages.bytes() + self.kind.bytes() + self.indices.len() * size_of::<u16>()
    }

    fn finish(mut self: Box<Self>, packer: &mut Packer) -> Result<EncodedColumn> {
        if self.levels.rows > 0 {
            self.end_page(packer)?;
        }
        if self.is_dictionary {
            self.leave_dictionary(packer)?;
        }
        let statistics = self.kind.statistics(self.pages.column(), self.pages.null_count())?;
        self.pages.close(statistics, self.codec)
    }
}
