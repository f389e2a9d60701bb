//! Where the differing rows go, line by line.
//!
//! **Invariant:** what was found of a row leaves this crate through the redactor only.

use std::fmt;
use std::io::Write;
use std::sync::{Arc, Mutex};

use tidemark_model::RelationName;
use tidemark_pipeline::{Error, Kind, Result};
use tidemark_report::{DiffFile, DiffWriter, Difference, Key, Redaction, Redactor, ShownKey};

type Writer = DiffWriter<Box<dyn Write + Send>>;

/// Takes every differing row, of all tables; clones write to the same file.
#[derive(Clone)]
pub struct Lines(Arc<Mutex<Option<Writer>>>);

impl fmt::Debug for Lines {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Lines")
    }
}

impl Lines {
    /// Lines into `file`, which should be buffered.
    pub fn new(file: Box<dyn Write + Send>, redactor: Redactor) -> Self {
        Self(Arc::new(Mutex::new(Some(DiffWriter::new(file, redactor)))))
    }

    /// Lines that nobody reads.
    pub fn nowhere() -> Self {
        Self::new(Box::new(std::io::sink()), Redactor::new(Redaction::Keys, [0; 32]))
    }

    /// Flushes; what the report has to say of the file under this name.
    ///
    /// # Errors
    /// The file could not be written, or it was finished before.
    pub fn finish(&self, name: &str) -> Result<DiffFile> {
        let writer = self.0.lock().expect("no holder panics").take().ok_or_else(finished)?;
        writer.finish(name).map(|(_, file)| file).map_err(unwritten)
    }

    pub(crate) fn write(&self, difference: &Difference) -> Result<()> {
        self.with(|writer| writer.write(difference).map_err(unwritten))
    }

    pub(crate) fn shown(&self, table: &RelationName, key: &Key) -> Result<ShownKey> {
        self.with(|writer| Ok(writer.redactor().key(table, key)))
    }

    fn with<T>(&self, with: impl FnOnce(&mut Writer) -> Result<T>) -> Result<T> {
        let mut writer = self.0.lock().expect("no holder panics");
        writer.as_mut().ok_or_else(finished).and_then(with)
    }
}

fn unwritten(cause: tidemark_report::Error) -> Error {
    Error::new(Kind::Unavailable, "write the differing rows")
        .because(cause)
        .hint("make room, or name another directory with --report")
}

fn finished() -> Error {
    Error::new(Kind::Internal, "write the differing rows: the file is closed")
}
