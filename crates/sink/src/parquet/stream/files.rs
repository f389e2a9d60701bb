//! The files of one table that the next commit will list.
//!
//! **Invariant:** a file gets its own name only when it is whole and durable; its name says which run wrote it for which
//! commit, so that it can be told whether that commit lists it.

use std::sync::Arc;

use super::super::file::{FileEntry, FileSpec, LakeFile};
use super::super::manifest;
use super::super::root::Root;
use super::lane::Finished;
use super::table::StreamTable;
use crate::Result;

/// Where the next file goes.
#[derive(Debug, Clone)]
pub(super) struct Destination {
    pub(super) root: Root,
    pub(super) run: String,
    /// The commit that will list it.
    pub(super) commit: u64,
    /// A file is closed at this size.
    pub(super) file_bytes: u64,
}

/// Files of one table since the last commit.
#[derive(Default)]
pub(super) struct Files {
    open: Option<LakeFile>,
    closed: Vec<FileEntry>,
    next: u32,
}

impl Files {
    /// Appends row groups to the open file, or to a new one.
    pub(super) async fn append(
        &mut self,
        to: &Destination,
        table: Arc<StreamTable>,
        finished: Finished,
    ) -> Result<()> {
        let file = match self.open.take() {
            Some(file) => file,
            None => {
                let spec = FileSpec {
                    root: to.root.clone(),
                    relation: table.name().clone(),
                    directory: manifest::changes_directory(table.name()),
                    name: manifest::change_file_name(&to.run, to.commit, self.next),
                };
                self.next += 1;
                LakeFile::create(spec, &finished.layout).await?
            }
        };
        let file = file.append(finished.groups).await?;
        let is_full = file.bytes() >= to.file_bytes;
        self.open = Some(file);
        if is_full { self.close().await } else { Ok(()) }
    }

    /// Makes the open file visible and durable.
    pub(super) async fn close(&mut self) -> Result<()> {
        if let Some(file) = self.open.take() {
            self.closed.push(file.close().await?);
        }
        Ok(())
    }

    /// Bytes on the disk that wait for a commit.
    pub(super) fn bytes(&self) -> u64 {
        let closed: u64 = self.closed.iter().map(|file| file.bytes).sum();
        closed + self.open.as_ref().map_or(0, LakeFile::bytes)
    }

    /// Takes the files, which must be closed.
    pub(super) fn take(&mut self) -> Vec<FileEntry> {
        self.next = 0;
        std::mem::take(&mut self.closed)
    }
}
