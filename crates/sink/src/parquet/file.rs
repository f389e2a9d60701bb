//! One Parquet file on its way into the lake.
//!
//! **Invariant:** nobody sees the file before [`LakeFile::close`] returned: on a local disk it has a temporary name that no reader
//! takes for Parquet (`.<name>.tmp-<random>`), is synced, renamed and its directory synced; in an object store it is a
//! multipart upload that is completed last. A file that is dropped or [discarded](LakeFile::discard) is gone (an upload that was only
//! dropped is left to the bucket's lifecycle rule for incomplete uploads).
//!
//! Row groups arrive encoded, so that only their bytes are moved here. On a local disk they are written back while more are coming.

use std::fs::File;
use std::io::{self, Write};
use std::path::PathBuf;

use object_store::{ObjectStoreExt as _, WriteMultipart};
use parquet::errors::ParquetError;
use parquet::file::writer::SerializedFileWriter;
use serde::{Deserialize, Serialize};
use tempfile::{NamedTempFile, TempPath};
use tidemark_model::RelationName;
use tokio::task::JoinSet;

use super::failure;
use super::layout::{EncodedRowGroup, Layout};
use super::root::{Place, Root, blocking, create_directory, make_readable};
use crate::Result;

/// Bytes of one part of an upload: above S3's least (5 MiB), small enough to be held a few times.
const PART_BYTES: usize = 8 << 20;

/// Parts on their way at once.
const PARTS_IN_FLIGHT: usize = 4;

/// Bytes written that are worth beginning to put on the disk, so that the sync at the end finds little left to do.
const WRITE_BACK_BYTES: u64 = 16 << 20;

/// A file as the manifest lists it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileEntry {
    /// Path relative to the root.
    pub path: String,
    /// Rows in it.
    pub rows: u64,
    /// Its size.
    pub bytes: u64,
    /// Row groups in it.
    pub row_groups: u64,
}

/// Where a new file goes.
pub(super) struct FileSpec {
    pub(super) root: Root,
    pub(super) relation: RelationName,
    /// Directory relative to the root.
    pub(super) directory: String,
    /// File name.
    pub(super) name: String,
}

/// An open file.
pub(super) struct LakeFile {
    writer: SerializedFileWriter<Out>,
    spec: FileSpec,
    rows: u64,
    row_groups: u64,
    target: Target,
}

enum Target {
    Local { temporary: TempPath, directory: PathBuf, write_back: WriteBack },
    Upload(Box<WriteMultipart>),
}

/// Puts what is written on the disk while more is coming.
///
/// An error of it is one of the file: the system tells of a lost page only once, and the sync at the end may not hear of it.
#[derive(Default)]
struct WriteBack {
    under_way: JoinSet<io::Result<()>>,
    begun_at: u64,
}

impl WriteBack {
    /// Begins to write back, if that is worth it and the last time is over.
    fn advance(&mut self, file: &File, bytes: u64) -> io::Result<()> {
        while let Some(ended) = self.under_way.try_join_next() {
            ended.map_err(io::Error::other)??;
        }
        if bytes - self.begun_at >= WRITE_BACK_BYTES && self.under_way.is_empty() {
            self.begun_at = bytes;
            let file = file.try_clone()?;
            self.under_way.spawn_blocking(move || file.sync_data());
        }
        Ok(())
    }

    async fn finish(mut self) -> io::Result<()> {
        while let Some(ended) = self.under_way.join_next().await {
            ended.map_err(io::Error::other)??;
        }
        Ok(())
    }
}

/// Where the encoder's bytes go: straight to the disk, or into memory until they make a part.
enum Out {
    File(File),
    Buffer(Vec<u8>),
}

impl Write for Out {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::File(file) => file.write(bytes),
            Self::Buffer(buffer) => buffer.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::File(file) => file.flush(),
            Self::Buffer(_) => Ok(()),
        }
    }
}

impl LakeFile {
    /// Opens a file. The layout gives schema and metadata; row groups may come from other layouts of the same schema.
    pub(super) async fn create(spec: FileSpec, layout: &Layout) -> Result<Self> {
        let (out, target) = match spec.root.place() {
            Place::Local(root) => {
                let (root, directory, name) =
                    (root.clone(), spec.directory.clone(), spec.name.clone());
                blocking(move || create_temporary(&root, &directory, &name)).await.map_err(
                    |error| failure::io(spec.attempt("create"), error).on(&spec.relation),
                )?
            }
            Place::Objects { store, prefix } => {
                let path = Root::object_path(prefix, &spec.path());
                let upload = store.put_multipart(&path).await.map_err(|error| {
                    failure::object_store(spec.attempt("create"), error).on(&spec.relation)
                })?;
                let upload = WriteMultipart::new_with_chunk_size(upload, PART_BYTES);
                (Out::Buffer(Vec::new()), Target::Upload(Box::new(upload)))
            }
        };
        let (schema, properties) = layout.file_parts();
        let writer = SerializedFileWriter::new(out, schema, properties)
            .map_err(|error| failure::parquet(spec.attempt("begin"), &spec.relation, error))?;
        Ok(Self { writer, spec, rows: 0, row_groups: 0, target })
    }

    /// Bytes written so far.
    pub(super) fn bytes(&self) -> u64 {
        self.writer.bytes_written() as u64
    }

    /// Appends row groups. After an error the file is gone.
    pub(super) async fn append(self, groups: Vec<EncodedRowGroup>) -> Result<Self> {
        let mut file = match self.target {
            Target::Local { .. } => blocking(move || self.append_now(groups)).await?,
            Target::Upload(_) => self.append_now(groups)?,
        };
        file.write_back()?;
        file.upload_full_parts().await?;
        Ok(file)
    }

    fn append_now(mut self, groups: Vec<EncodedRowGroup>) -> Result<Self> {
        for group in groups {
            self.rows += group.rows;
            self.row_groups += 1;
            if let Err(error) = append_row_group(&mut self.writer, group) {
                return Err(failure::parquet(
                    self.spec.attempt("write"),
                    &self.spec.relation,
                    error,
                ));
            }
        }
        Ok(self)
    }

    fn write_back(&mut self) -> Result<()> {
        let bytes = self.bytes();
        if let (Out::File(file), Target::Local { write_back, .. }) =
            (self.writer.inner(), &mut self.target)
        {
            write_back.advance(file, bytes).map_err(|error| {
                failure::io(self.spec.attempt("write"), error).on(&self.spec.relation)
            })?;
        }
        Ok(())
    }

    async fn upload_full_parts(&mut self) -> Result<()> {
        let Target::Upload(upload) = &mut self.target else { return Ok(()) };
        upload.wait_for_capacity(PARTS_IN_FLIGHT).await.map_err(|error| {
            failure::object_store(self.spec.attempt("upload"), error).on(&self.spec.relation)
        })?;
        if let Out::Buffer(buffer) = self.writer.inner_mut() {
            upload.put(std::mem::take(buffer).into());
        }
        Ok(())
    }

    /// Writes the footer and makes the file visible and durable.
    pub(super) async fn close(self) -> Result<FileEntry> {
        let Self { mut writer, spec, rows, row_groups, target } = self;
        let of_relation = |error| failure::parquet(spec.attempt("close"), &spec.relation, error);
        writer.finish().map_err(of_relation)?;
        let bytes = writer.bytes_written() as u64;
        // `finish` has flushed everything into it.
        let out = std::mem::replace(writer.inner_mut(), Out::Buffer(Vec::new()));
        match (out, target) {
            (Out::File(file), Target::Local { temporary, directory, write_back }) => {
                let name = spec.name.clone();
                write_back.finish().await.map_err(|error| {
                    failure::io(spec.attempt("close"), error).on(&spec.relation)
                })?;
                blocking(move || publish(&file, temporary, &directory, &name)).await.map_err(
                    |error| failure::io(spec.attempt("close"), error).on(&spec.relation),
                )?;
            }
            (Out::Buffer(rest), Target::Upload(mut upload)) => {
                upload.put(rest.into());
                upload.finish().await.map_err(|error| {
                    failure::object_store(spec.attempt("complete"), error).on(&spec.relation)
                })?;
            }
            _ => unreachable!("a file and its target are made together"),
        }
        Ok(FileEntry { path: spec.path(), rows, bytes, row_groups })
    }

    /// Takes the file back.
    pub(super) async fn discard(self) {
        match self.target {
            Target::Local { write_back, temporary, .. } => {
                if let Err(error) = write_back.finish().await {
                    tracing::debug!(%error, ?temporary, "writing back a file that is not wanted");
                }
            }
            Target::Upload(upload) => {
                if let Err(error) = upload.abort().await {
                    let path = self.spec.path();
                    tracing::warn!(%error, path, "could not abort an upload");
                }
            }
        }
    }
}

impl FileSpec {
    fn path(&self) -> String {
        format!("{}/{}", self.directory, self.name)
    }

    fn attempt(&self, verb: &str) -> String {
        format!("{verb} {} of the lake {}", self.path(), self.root)
    }
}

fn append_row_group(
    writer: &mut SerializedFileWriter<Out>,
    group: EncodedRowGroup,
) -> Result<(), ParquetError> {
    let mut row_group = writer.next_row_group()?;
    for column in group.columns {
        column.append_to(&mut row_group)?;
    }
    row_group.close()?;
    Ok(())
}

fn create_temporary(
    root: &std::path::Path,
    directory: &str,
    name: &str,
) -> io::Result<(Out, Target)> {
    let directory = create_directory(root, directory)?;
    let temporary =
        tempfile::Builder::new().prefix(&format!(".{name}.tmp-")).tempfile_in(&directory)?;
    let (file, temporary) = NamedTempFile::into_parts(temporary);
    make_readable(&file)?;
    let write_back = WriteBack::default();
    Ok((Out::File(file), Target::Local { temporary, directory, write_back }))
}

fn publish(
    file: &File,
    temporary: TempPath,
    directory: &std::path::Path,
    name: &str,
) -> io::Result<()> {
    file.sync_all()?;
    temporary.persist_noclobber(directory.join(name)).map_err(|error| error.error)?;
    File::open(directory)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_error_of_writing_back_fails_the_file() {
        // Not a file that can be synced.
        let null = File::open("/dev/null").unwrap();
        let mut write_back = WriteBack::default();
        write_back.advance(&null, WRITE_BACK_BYTES - 1).unwrap();
        assert!(write_back.under_way.is_empty(), "not worth it yet");
        write_back.advance(&null, WRITE_BACK_BYTES).unwrap();
        assert_eq!(write_back.under_way.len(), 1);
        assert!(write_back.finish().await.is_err());

        let mut write_back = WriteBack::default();
        write_back.advance(&null, WRITE_BACK_BYTES).unwrap();
        let mut ended = Ok(());
        while ended.is_ok() {
            tokio::task::yield_now().await;
            ended = write_back.advance(&null, WRITE_BACK_BYTES);
        }
    }
}
