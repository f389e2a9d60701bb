//! A file without a name, for what does not fit into memory.
//!
//! **Invariant:** places do not overlap, whoever asks for them; the file goes with the last one who has a part of it.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

/// What is written at a time.
const WRITE_BYTES: usize = 1 << 20;

/// A file that is made when something is first put into it.
#[derive(Debug)]
pub struct Spill {
    directory: PathBuf,
    file: Mutex<Option<(Arc<File>, u64)>>,
}

impl Spill {
    /// None yet; it is made in that directory.
    pub fn new(directory: PathBuf) -> Arc<Self> {
        Arc::new(Self { directory, file: Mutex::new(None) })
    }

    /// A place for so many bytes, and where it begins.
    ///
    /// # Errors
    /// The file cannot be made.
    pub fn place(&self, bytes: u64) -> io::Result<(SpillWriter, u64)> {
        let mut file = self.file.lock().expect("no holder panics");
        let (opened, at) = match file.take() {
            Some(opened) => opened,
            None => (Arc::new(tempfile::tempfile_in(&self.directory)?), 0),
        };
        *file = Some((Arc::clone(&opened), at + bytes));
        Ok((SpillWriter { file: opened, at, bytes: Vec::new() }, at))
    }

    /// A file that nobody else writes to; the one before is given up when its last part is.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn fresh(&self) -> io::Result<SpillWriter> {
        self.file.lock().expect("no holder panics").take();
        let file = Arc::new(tempfile::tempfile_in(&self.directory)?);
        Ok(SpillWriter { file, at: 0, bytes: Vec::new() })
    }
}

/// Writes into a place, one thing behind the other.
#[derive(Debug)]
pub struct SpillWriter {
    file: Arc<File>,
    at: u64,
    bytes: Vec<u8>,
}

impl SpillWriter {
    /// Adds what `write` appends.
    ///
    /// # Errors
    /// The disk is full, say.
    pub fn put(&mut self, write: impl FnOnce(&mut Vec<u8>)) -> io::Result<()> {
        write(&mut self.bytes);
        if self.bytes.len() < WRITE_BYTES { Ok(()) } else { self.flush() }
    }

    /// The file, and where what was written ends in it.
    ///
    /// # Errors
    /// As of [`put`](Self::put).
    pub fn finish(mut self) -> io::Result<(Arc<File>, u64)> {
        self.flush()?;
        Ok((self.file, self.at))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.write_all_at(&self.bytes, self.at)?;
        self.at += self.bytes.len() as u64;
        self.bytes.clear();
        Ok(())
    }
}
