//! One process per state directory.
//!
//! **Invariant:** the lock ends with the process, however it ends: it is a `flock` on an open file, not the file's
//! existence. The process number in the file is for the message only.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::Path;

use rustix::fs::FlockOperation;
use rustix::io::Errno;

use crate::directory::{io, open_file};
use crate::{Error, Result};

const FILE: &str = "lock";
/// [`holder`] takes the lock for a moment: so often is a refusal tried again before it is believed.
const ATTEMPTS: u32 = 100;

/// The lock of a state directory; given up when dropped.
#[derive(Debug)]
pub(crate) struct Lock {
    _file: File,
}

impl Lock {
    /// Takes the lock, or says who has it.
    pub(crate) fn take(directory: &Path) -> Result<Self> {
        Self::take_file(directory, FILE)
    }

    /// The same of a file of this name.
    pub(crate) fn take_file(directory: &Path, name: &str) -> Result<Self> {
        let path = directory.join(name);
        let mut file = open_file(&path)?;
        for attempt in 1.. {
            match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => break,
                Err(Errno::WOULDBLOCK) if attempt < ATTEMPTS => std::thread::yield_now(),
                Err(Errno::WOULDBLOCK) => {
                    let pid = read_pid(&mut file);
                    return Err(Error::Held { directory: directory.to_owned(), pid });
                }
                Err(error) => return Err(io("lock", &path)(error.into())),
            }
        }
        write_pid(&mut file).map_err(io("write", &path))?;
        Ok(Self { _file: file })
    }
}

/// Whether a process holds the lock, and which one if it has said so.
pub(crate) fn holder(directory: &Path) -> Option<Option<u32>> {
    let mut file = File::open(directory.join(FILE)).ok()?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared) {
        Err(Errno::WOULDBLOCK) => Some(read_pid(&mut file)),
        _ => None,
    }
}

fn read_pid(file: &mut File) -> Option<u32> {
    let mut text = String::new();
    file.seek(SeekFrom::Start(0)).ok()?;
    file.take(20).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

fn write_pid(file: &mut File) -> std::io::Result<()> {
    file.set_len(0)?;
    file.seek(SeekFrom::Start(0))?;
    writeln!(file, "{}", std::process::id())
}
