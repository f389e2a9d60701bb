//! One table of a run: its open file, the files it has, the chunks that are in them.
//!
//! **Invariant:** a chunk's row groups are in the table's files wholly or not at all; after a failed write the shared file is gone
//! and the table takes no more, because the chunks in it are lost (the run ends and is recognised as unfinished).
//!
//! Chunks take turns at the shared file: whoever holds its lock appends finished row groups, which is a copy of bytes.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use arrow_array::RecordBatch;
use tidemark_columnar::Program;
use tidemark_model::{ChunkId, RelationName, TablePlan};

use super::failure;
use super::file::{FileEntry, FileSpec, LakeFile};
use super::layout::{ColumnChoice, EncodedRowGroup, Layout, SAMPLE_ROWS};
use super::manifest;
use super::options::{Bounds, Compression, ParquetOptions};
use super::root::Root;
use crate::{Committed, Disposition, Error, Result};

/// Chunks that share one trial of encodings (at 64 MiB each 1 GiB of the table); then the data may have changed its nature.
const CHUNKS_PER_LAYOUT: u32 = 16;

/// Rows of which a trial takes at most this many bytes.
const SAMPLE_BYTES: usize = 4 << 20;

/// A table while its chunks come in.
pub(super) struct Table {
    pub(super) name: RelationName,
    pub(super) program: Program,
    pub(super) bounds: Bounds,
    root: Root,
    run: String,
    directory: String,
    compression: Compression,
    file_bytes: u64,
    next_file: AtomicU32,
    layout: Mutex<Option<(Arc<Layout>, u32)>>,
    shared: tokio::sync::Mutex<SharedFile>,
    outcome: Mutex<Outcome>,
}

enum SharedFile {
    NotOpen,
    Open(Box<LakeFile>),
    /// A write failed or was cancelled half-way.
    Broken,
    /// Every chunk is in.
    Closed,
}

/// What a table has come to.
#[derive(Debug, Clone, Default)]
struct Outcome {
    files: Vec<FileEntry>,
    committed: HashMap<ChunkId, Committed>,
    is_closed: bool,
}

impl Table {
    pub(super) fn new(
        root: &Root,
        run: &str,
        plan: &TablePlan,
        options: &ParquetOptions,
    ) -> Result<Self> {
        let name = plan.relation.name.clone();
        let program = Program::compile(&plan.columns, plan.unrepresentable).map_err(|error| {
            Error::new(Disposition::Refused, "map the columns to Arrow").on(&name).because(error)
        })?;
        Ok(Self {
            name,
            program,
            bounds: options.bounds(),
            root: root.clone(),
            run: run.to_owned(),
            directory: manifest::snapshot_directory(&plan.relation.name),
            compression: options.compression,
            file_bytes: options.file_bytes.max(1),
            next_file: AtomicU32::new(0),
            layout: Mutex::new(None),
            shared: tokio::sync::Mutex::new(SharedFile::NotOpen),
            outcome: Mutex::new(Outcome::default()),
        })
    }

    /// What an earlier commit of the chunk said.
    pub(super) fn committed(&self, chunk: ChunkId) -> Option<Committed> {
        self.outcome().committed.get(&chunk).cloned()
    }

    /// The layout for a chunk that begins with these rows.
    pub(super) fn layout_for(&self, first: &RecordBatch) -> Result<Arc<Layout>> {
        {
            let mut cached = self.layout.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some((layout, left @ 1..)) = cached.as_mut() {
                *left -= 1;
                return Ok(Arc::clone(layout));
            }
        }
        let row_bytes = first.get_array_memory_size() / first.num_rows().max(1);
        let rows = (SAMPLE_BYTES / row_bytes.max(1)).min(SAMPLE_ROWS).min(first.num_rows());
        if rows == 0 {
            return self.plain_layout();
        }
        let schema = self.program.schema();
        let layout = Layout::sampled(&schema, self.compression, &first.slice(0, rows))
            .map_err(|error| failure::parquet("choose encodings", &self.name, error))?;
        let layout = Arc::new(layout);
        if rows * 2 >= SAMPLE_ROWS {
            let mut cached = self.layout.lock().unwrap_or_else(PoisonError::into_inner);
            *cached = Some((Arc::clone(&layout), CHUNKS_PER_LAYOUT - 1));
        }
        Ok(layout)
    }

    fn plain_layout(&self) -> Result<Arc<Layout>> {
        let choice = ColumnChoice { has_dictionary: false, is_compressed: true };
        Layout::uniform(&self.program.schema(), self.compression, choice)
            .map(Arc::new)
            .map_err(|error| failure::parquet("choose encodings", &self.name, error))
    }

    /// Opens a new file.
    pub(super) async fn create_file(&self, layout: &Layout) -> Result<LakeFile> {
        let number = self.next_file.fetch_add(1, Ordering::Relaxed);
        let spec = FileSpec {
            root: self.root.clone(),
            relation: self.name.clone(),
            directory: self.directory.clone(),
            name: manifest::file_name(&self.run, number),
        };
        LakeFile::create(spec, layout).await
    }

    /// Puts a chunk's row groups into the shared file and marks it committed.
    pub(super) async fn commit_shared(
        &self,
        chunk: ChunkId,
        committed: Committed,
        groups: Vec<EncodedRowGroup>,
        layout: Option<&Layout>,
    ) -> Result<()> {
        let mut shared = self.shared.lock().await;
        // Broken until the write is over: also if this future is dropped in between.
        let before = std::mem::replace(&mut *shared, SharedFile::Broken);
        let file = match (before, layout) {
            (SharedFile::Broken, _) => return Err(self.broken()),
            (SharedFile::Closed, _) => {
                *shared = SharedFile::Closed;
                return Err(self.misuse("commit a chunk of a table that was declared loaded"));
            }
            (before, None) => {
                *shared = before;
                self.outcome().committed.insert(chunk, committed);
                return Ok(());
            }
            (SharedFile::Open(file), Some(_)) => *file,
            (SharedFile::NotOpen, Some(layout)) => self.create_file(layout).await?,
        };
        let file = file.append(groups).await?;
        if file.bytes() >= self.file_bytes {
            let entry = file.close().await?;
            self.outcome().files.push(entry);
            *shared = SharedFile::NotOpen;
        } else {
            *shared = SharedFile::Open(Box::new(file));
        }
        self.outcome().committed.insert(chunk, committed);
        Ok(())
    }

    /// Closes a file that holds one chunk alone and marks that committed.
    pub(super) async fn commit_own(
        &self,
        chunk: ChunkId,
        committed: Committed,
        file: LakeFile,
    ) -> Result<()> {
        let entry = file.close().await?;
        let mut outcome = self.outcome();
        outcome.files.push(entry);
        outcome.committed.insert(chunk, committed);
        Ok(())
    }

    /// Closes the shared file; a table without rows gets a file that has its schema.
    pub(super) async fn close(&self) -> Result<()> {
        let mut shared = self.shared.lock().await;
        match std::mem::replace(&mut *shared, SharedFile::Broken) {
            SharedFile::Broken => return Err(self.broken()),
            SharedFile::Open(file) => {
                let entry = file.close().await?;
                self.outcome().files.push(entry);
            }
            SharedFile::NotOpen if self.outcome().files.is_empty() => {
                let file = self.create_file(self.plain_layout()?.as_ref()).await?;
                let entry = file.close().await?;
                self.outcome().files.push(entry);
            }
            SharedFile::NotOpen | SharedFile::Closed => {}
        }
        *shared = SharedFile::Closed;
        self.outcome().is_closed = true;
        Ok(())
    }

    /// The files in order, once the table is closed.
    pub(super) fn files(&self) -> Result<Vec<FileEntry>> {
        let outcome = self.outcome();
        if !outcome.is_closed {
            drop(outcome);
            return Err(self.misuse("finish a run before this table was declared loaded"));
        }
        let mut files = outcome.files.clone();
        files.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(files)
    }

    fn outcome(&self) -> std::sync::MutexGuard<'_, Outcome> {
        self.outcome.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn broken(&self) -> Error {
        Error::new(
            Disposition::Unavailable,
            "write to a file after an earlier write to it had failed",
        )
        .on(&self.name)
        .hint("run the same command again: the snapshot starts over")
    }

    fn misuse(&self, attempt: &str) -> Error {
        Error::new(Disposition::Internal, attempt).on(&self.name)
    }
}
