//! The messages of one committed transaction, wherever they are: in memory, in a file of their own, in the spool.
//!
//! **Invariant:** a reader gives each of them once, in order, in blocks of whole frames; what was read by another one plays no
//! part.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::sync::Arc;

use bytes::Bytes;

use super::body::BodyReader;
use super::segment;
use crate::{Error, Kind};

/// Where the messages of a transaction are.
#[derive(Debug)]
pub(crate) enum Blocks {
    /// In memory, or in a file of their own.
    Body(BodyReader),
    /// In the spool.
    Spool(SpoolBody),
}

impl Blocks {
    /// A second reader of what is left.
    ///
    /// # Errors
    /// No more files can be opened.
    pub(crate) fn fork(&self) -> io::Result<Self> {
        Ok(match self {
            Self::Body(reader) => Self::Body(reader.fork()?),
            Self::Spool(body) => Self::Spool(body.clone()),
        })
    }

    /// The next whole frames; `None` at the end.
    ///
    /// # Errors
    /// The disk.
    pub(crate) fn next(&mut self) -> io::Result<Option<Bytes>> {
        match self {
            Self::Body(reader) if reader.is_in_memory() => reader.next(),
            Self::Body(reader) => tokio::task::block_in_place(|| reader.next()),
            Self::Spool(body) if body.is_in_memory() => body.next(),
            Self::Spool(body) => tokio::task::block_in_place(|| body.next()),
        }
    }
}

/// The body of a transaction in a spool.
#[derive(Debug, Clone)]
pub(crate) enum SpoolBody {
    /// A small one, read already.
    Read(VecDeque<Bytes>),
    /// A large one, read block by block.
    File {
        /// The segment.
        file: Arc<File>,
        /// Its number.
        number: u64,
        /// The next record.
        at: u64,
        /// Where the Commit stands.
        end: u64,
    },
}

impl SpoolBody {
    /// Whether it was read already.
    pub(crate) fn is_in_memory(&self) -> bool {
        matches!(self, Self::Read(_))
    }

    /// The next frames; `None` at the end.
    pub(crate) fn next(&mut self) -> io::Result<Option<Bytes>> {
        let (file, number, at, end) = match self {
            Self::Read(blocks) => return Ok(blocks.pop_front()),
            Self::File { file, number, at, end } => (file, *number, at, *end),
        };
        if *at >= end {
            return Ok(None);
        }
        let record = segment::read(file, number, *at, end)?;
        let record = record.ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidData, "a record changed after it was written")
        })?;
        *at = record.next;
        Ok(Some(record.payload))
    }
}

/// What a received transaction that cannot be read back means.
pub(super) fn unreadable(cause: io::Error) -> Error {
    Error::new(Kind::Unavailable, "read a received transaction back from the state directory")
        .hint("the position is kept: run the same command again")
        .because(cause)
}
