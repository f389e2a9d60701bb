//! What can be chosen about the files.

use serde::{Deserialize, Serialize};

use crate::NotEmpty;

/// How pages are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Compression {
    /// Zstandard.
    Zstd {
        /// 1 to 22.
        level: i32,
    },
    /// LZ4 as the Parquet format defines it now (`LZ4_RAW`).
    Lz4,
    /// Snappy.
    Snappy,
    /// None.
    None,
}

/// Settings of the Parquet sink.
#[derive(Debug, Clone)]
pub struct ParquetOptions {
    /// How pages are compressed.
    pub compression: Compression,
    /// A table's file is closed once it is this large.
    pub file_bytes: u64,
    /// How many chunks are open at once; the memory is shared out among them.
    pub writers: usize,
    /// What to do with a lake that is there.
    pub not_empty: NotEmpty,
    /// Bytes that all open chunks together may hold. Each takes its share for decoded rows, the row group being encoded and the
    /// finished ones; beyond that only one row at a time of any size.
    pub memory: u64,
}

impl Default for ParquetOptions {
    fn default() -> Self {
        Self {
            compression: Compression::Zstd { level: 1 },
            file_bytes: 256 << 20,
            writers: 4,
            not_empty: NotEmpty::Refuse,
            memory: 256 << 20,
        }
    }
}

/// The bounds of one open chunk, derived from the options.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    /// Decoded rows are encoded at this many bytes.
    pub(crate) batch_bytes: usize,
    /// A row group ends at this many encoded bytes.
    pub(crate) row_group_bytes: usize,
    /// Beyond this many finished bytes the chunk gets a file of its own.
    pub(crate) held_bytes: u64,
}

impl ParquetOptions {
    pub(crate) fn bounds(&self) -> Bounds {
        let share = (self.memory / self.writers.max(1) as u64).clamp(4 << 20, 256 << 20);
        Bounds {
            batch_bytes: (share / 8) as usize,
            row_group_bytes: (share / 4) as usize,
            held_bytes: share / 2,
        }
    }
}
