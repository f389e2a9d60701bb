//! A lake as its readers see it: commits, members, the bytes of files.
//!
//! **Invariant:** nothing is written. A file is read in ranges, so that its size costs no memory.
//!
//! **Not here:** what the bytes of a file say; a verifier has readers of its own (`verify`).

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::sync::Arc;

use bytes::Bytes;
use object_store::path::Path as ObjectPath;
use object_store::{ObjectStore, ObjectStoreExt as _};
use parquet::errors::ParquetError;
use parquet::file::reader::{ChunkReader, Length};
use tokio::runtime::Handle;

use super::manifest::{Commit, Member, SNAPSHOT_COMMIT};
use super::root::{Place, Root};
use super::stream::{last_commit, members_of, read_commit};
use super::{FileEntry, failure};
use crate::{Disposition, Error, Result};

/// Bytes that are asked of an object store at a time where a reader does not say how many it needs.
const BLOCK_BYTES: u64 = 1 << 20;

/// A lake that is read.
#[derive(Debug, Clone)]
pub struct Lake {
    root: Root,
}

impl Lake {
    /// The lake below this root, be there one or not.
    pub fn new(root: Root) -> Self {
        Self { root }
    }

    /// Where it is.
    pub fn root(&self) -> &Root {
        &self.root
    }

    /// The commit that is the last one now; `None` where no snapshot was committed yet.
    ///
    /// # Errors
    /// The lake cannot be reached, or a document makes no sense.
    pub async fn last(&self) -> Result<Option<Commit>> {
        if !self.root.exists(SNAPSHOT_COMMIT).await? {
            return Ok(None);
        }
        let snapshot = read_commit(&self.root, 0).await?;
        last_commit(&self.root, snapshot).await.map(Some)
    }

    /// The commit with this number.
    ///
    /// # Errors
    /// As [`Lake::last`]; also where it is not there.
    pub async fn commit(&self, number: u64) -> Result<Commit> {
        read_commit(&self.root, number).await
    }

    /// Every table that the lake has or has had as of a commit; `None` where an earlier version wrote it, which did not say.
    ///
    /// # Errors
    /// As [`Lake::last`].
    pub async fn members(&self, last: &Commit) -> Result<Option<Vec<Member>>> {
        members_of(&self.root, last).await
    }

    /// Opens a file that a commit lists. What is read of it blocks the thread, which must not be one that serves sockets.
    ///
    /// # Errors
    /// It is not there, or cannot be reached.
    pub async fn open(&self, file: &FileEntry) -> Result<StoredFile> {
        let attempt = || format!("read {} of the lake {}", file.path, self.root);
        let is_plain = |segment: &str| !matches!(segment, "" | "." | "..");
        if !file.path.split('/').all(is_plain) {
            return Err(Error::new(Disposition::Refused, attempt())
                .hint("a commit names a path that we never write"));
        }
        let bytes = match self.root.place() {
            Place::Local(root) => {
                let opened = File::open(root.join(&file.path));
                let opened = opened.map_err(|error| failure::io(attempt(), error))?;
                let length =
                    opened.metadata().map_err(|error| failure::io(attempt(), error))?.len();
                return Ok(StoredFile { length, bytes: Stored::Disk(Arc::new(opened)) });
            }
            Place::Objects { store, prefix } => Object {
                store: Arc::clone(store),
                path: Root::object_path(prefix, &file.path),
                runtime: Handle::current(),
            },
        };
        let found = bytes.store.head(&bytes.path).await;
        let length = found.map_err(|error| failure::object_store(attempt(), error))?.size;
        Ok(StoredFile { length, bytes: Stored::Object(bytes) })
    }
}

/// A file of a lake, for readers of Parquet. Clones read the same file; they share where it is read, so that one reads at a
/// time.
#[derive(Debug, Clone)]
pub struct StoredFile {
    length: u64,
    bytes: Stored,
}

#[derive(Debug, Clone)]
enum Stored {
    Disk(Arc<File>),
    Object(Object),
}

#[derive(Debug, Clone)]
struct Object {
    store: Arc<dyn ObjectStore>,
    path: ObjectPath,
    runtime: Handle,
}

impl Object {
    fn range(&self, start: u64, end: u64) -> io::Result<Bytes> {
        let read = self.store.get_range(&self.path, start..end);
        self.runtime.block_on(read).map_err(io::Error::other)
    }
}

impl Length for StoredFile {
    fn len(&self) -> u64 {
        self.length
    }
}

impl ChunkReader for StoredFile {
    type T = StoredBytes;

    fn get_read(&self, start: u64) -> parquet::errors::Result<StoredBytes> {
        Ok(match &self.bytes {
            Stored::Disk(file) => StoredBytes(Rest::Disk(file.get_read(start)?)),
            Stored::Object(object) => StoredBytes(Rest::Object {
                object: object.clone(),
                at: start,
                end: self.length,
                block: Bytes::new(),
            }),
        })
    }

    fn get_bytes(&self, start: u64, length: usize) -> parquet::errors::Result<Bytes> {
        let end = start.checked_add(length as u64).filter(|end| *end <= self.length);
        let end = end.ok_or_else(|| ParquetError::EOF("the file ends before".to_owned()))?;
        match &self.bytes {
            Stored::Disk(file) => file.get_bytes(start, length),
            Stored::Object(_) if length == 0 => Ok(Bytes::new()),
            Stored::Object(object) => Ok(object.range(start, end)?),
        }
    }
}

/// The bytes of a file from a place on.
#[derive(Debug)]
pub struct StoredBytes(Rest);

#[derive(Debug)]
enum Rest {
    Disk(BufReader<File>),
    Object { object: Object, at: u64, end: u64, block: Bytes },
}

impl Read for StoredBytes {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match &mut self.0 {
            Rest::Disk(file) => file.read(buffer),
            Rest::Object { object, at, end, block } => {
                if block.is_empty() && at < end {
                    let to = (*end).min(*at + BLOCK_BYTES);
                    *block = object.range(*at, to)?;
                    *at = to;
                }
                let count = buffer.len().min(block.len());
                buffer[..count].copy_from_slice(&block.split_to(count));
                Ok(count)
            }
        }
    }
}
