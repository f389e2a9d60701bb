//! The lock of a lake on a local disk.
//!
//! **Invariant:** at most one process at a time holds it; the kernel gives it back when the process ends, however it ends.
//! Nothing relies on it alone: a commit is put-if-absent, which also holds on a network and in an object store. It tells
//! people at once what two writers would only find out by their next commit.

use std::fs::{File, OpenOptions};

use rustix::fs::{FlockOperation, flock};

use super::super::failure;
use super::super::manifest::DOCUMENTS;
use super::super::root::{Root, create_directory};
use crate::{Disposition, Error, Result};

/// Held until it is dropped.
#[derive(Debug, Default)]
pub(crate) struct Lock {
    _file: Option<File>,
}

impl Lock {
    /// Takes the lock, where the root is a directory that is there; does not wait.
    pub(crate) fn take(root: &Root) -> Result<Self> {
        let attempt = || format!("lock the lake {root}");
        let Some(path) = root.local_path().filter(|path| path.join(DOCUMENTS).is_dir()) else {
            return Ok(Self { _file: None });
        };
        let open = || {
            let path = create_directory(path, DOCUMENTS)?.join("lock");
            OpenOptions::new().create(true).truncate(false).write(true).open(path)
        };
        let file = open().map_err(|error| failure::io(attempt(), error))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Self { _file: Some(file) }),
            Err(rustix::io::Errno::WOULDBLOCK) => Err(Error::new(Disposition::Held, attempt())
                .hint("another process writes to it: let it finish, or stop it")),
            Err(error) => Err(failure::io(attempt(), error.into())),
        }
    }
}
