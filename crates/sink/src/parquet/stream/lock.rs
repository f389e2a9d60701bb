//! The lock of a lake on a local disk.
//!
//! **Invariant:** at most one process at a time holds it; the kernel gives it back when the process ends, however it ends.
//! Nothing relies on it alone: a commit is put-if-absent, which also holds on a network and in an object store. It tells
//! people at once what two writers would only find out by their next commit.

use std::fs::{File, OpenOptions};
use std::io::ErrorKind;

use rustix::fs::{FlockOperation, flock};

use super::super::failure;
use super::super::manifest::DOCUMENTS;
use super::super::root::Root;
use crate::{Disposition, Error, Result};

/// Held until it is dropped.
#[derive(Debug, Default)]
pub(crate) struct Lock {
    _file: Option<File>,
}

impl Lock {
    /// Takes the lock of a lake that is there, where it is a directory; does not wait.
    pub(crate) fn take(root: &Root) -> Result<Self> {
        Self::open(root, OpenOptions::new().create(true).truncate(false).write(true))
    }

    /// The same, but leaves alone what has never been locked, because it may not be ours.
    pub(crate) fn take_if_there(root: &Root) -> Result<Self> {
        Self::open(root, OpenOptions::new().write(true))
    }

    fn open(root: &Root, how: &OpenOptions) -> Result<Self> {
        let attempt = || format!("lock the lake {root}");
        let Some(path) = root.local_path() else { return Ok(Self::default()) };
        let file = match how.open(path.join(DOCUMENTS).join("lock")) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => return Err(failure::io(attempt(), error)),
        };
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Self { _file: Some(file) }),
            Err(rustix::io::Errno::WOULDBLOCK) => Err(Error::new(Disposition::Held, attempt())
                .hint("another process writes to it: let it finish, or stop it")),
            Err(error) => Err(failure::io(attempt(), error.into())),
        }
    }
}
