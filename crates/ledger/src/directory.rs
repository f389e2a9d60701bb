//! The state directory and the files in it.
//!
//! **Invariant:** the directory is a real one (no symbolic link), belongs to the user who runs us and can be written by
//! nobody else; files are created with mode 0600 and never through a symbolic link. So nobody else can put a file where
//! we write (`hazards.md` S10).

use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

use crate::{Error, Result};

/// Makes the directory if it is not there and checks it; gives its path without symbolic links above it.
pub(crate) fn prepare(directory: &Path) -> Result<PathBuf> {
    if let Some(parent) = directory.parent()
        && !parent.as_os_str().is_empty()
    {
        std::fs::create_dir_all(parent).map_err(io("create the parent of", directory))?;
    }
    match DirBuilder::new().mode(0o700).create(directory) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            return Err(io("create the state directory", directory)(error));
        }
        _ => {}
    }
    check(directory)
}

/// Checks a directory that should be there.
pub(crate) fn check(directory: &Path) -> Result<PathBuf> {
    let refuse = |reason| Err(Error::UnsafeDirectory { directory: directory.to_owned(), reason });
    let metadata = match directory.symlink_metadata() {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(Error::Missing { directory: directory.to_owned() });
        }
        Err(error) => return Err(io("look at the state directory", directory)(error)),
    };
    if metadata.is_symlink() {
        return refuse("it is a symbolic link");
    }
    if !metadata.is_dir() {
        return refuse("it is not a directory");
    }
    if metadata.uid() != rustix::process::geteuid().as_raw() {
        return refuse("it belongs to another user");
    }
    if metadata.mode() & 0o022 != 0 {
        return refuse("others can write to it (chmod 700)");
    }
    directory.canonicalize().map_err(io("find the state directory", directory))
}

/// Opens a file of ours, creating it for us alone.
pub(crate) fn open_file(path: &Path) -> Result<File> {
    let refuse = |reason| Err(Error::UnsafeFile { path: path.to_owned(), reason });
    // NONBLOCK, because opening somebody's named pipe would wait for ever.
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(flags.bits() as i32)
        .open(path);
    let file = match file {
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error()) => {
            return refuse("it is a symbolic link");
        }
        other => other.map_err(io("open", path))?,
    };
    let metadata = file.metadata().map_err(io("look at", path))?;
    if !metadata.is_file() {
        return refuse("it is not a plain file");
    }
    if metadata.uid() != rustix::process::geteuid().as_raw() {
        return refuse("it belongs to another user");
    }
    if metadata.mode() & 0o077 != 0 {
        return refuse("others can read or write it (chmod 600)");
    }
    Ok(file)
}

pub(crate) fn io(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Io { doing, path, source }
}
