//! Who writes beside the process that holds the job: a verification what it has proven, a migration what it has done.
//!
//! **Invariant:** nothing of the run, its tables and chunks is written here; each call is one transaction.

use std::path::{Path, PathBuf};
use std::sync::Mutex;

use rusqlite::{Connection, Transaction, TransactionBehavior, params};
use serde_json::Value;

use crate::lock::Lock;
use crate::record::now_ms;
use crate::schema::of_sqlite;
use crate::writer::Failure;
use crate::{Error, JournalEntry, LedgerReader, Result, directory, schema};

/// A connection to the ledger of a job that somebody else may hold.
#[derive(Debug)]
pub(crate) struct Beside {
    connection: Mutex<Connection>,
    path: PathBuf,
}

impl Beside {
    pub(crate) fn open(state_dir: &Path) -> Result<Self> {
        let path = directory::check(state_dir)?.join(schema::FILE);
        if !path.exists() {
            return Err(Error::Missing { directory: state_dir.to_owned() });
        }
        Ok(Self { connection: Mutex::new(schema::open_beside(&path)?), path })
    }

    fn wait_for_the_disk(&self) -> Result<()> {
        let connection = self.connection.lock().expect("no holder panics");
        let set = connection.pragma_update(None, "synchronous", "FULL");
        set.map_err(|error| of_sqlite("open the journal", &self.path, error))
    }

    pub(crate) fn write(
        &self,
        doing: &'static str,
        work: impl FnOnce(&Transaction<'_>) -> Result<(), Failure>,
    ) -> Result<()> {
        let mut connection = self.connection.lock().expect("no holder panics");
        let run = || -> Result<(), Failure> {
            let transaction =
                connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            work(&transaction)?;
            Ok(transaction.commit()?)
        };
        run().map_err(|failure| match failure {
            Failure::Ours(error) => error,
            Failure::Sqlite(error) => of_sqlite(doing, &self.path, error),
        })
    }
}

fn add_line(transaction: &Transaction<'_>, event: &str, detail: &Value) -> Result<(), Failure> {
    transaction.execute(
        "INSERT INTO journal (at_ms, run, event, detail) VALUES (?1, (SELECT run FROM run), ?2, ?3)",
        params![now_ms(), event, detail.to_string()],
    )?;
    Ok(())
}

/// Adds a line to the journal, whoever holds or migrates the job.
///
/// # Errors
/// There is no ledger, it is damaged, or it cannot be written.
pub fn note(state_dir: &Path, event: &str, detail: &Value) -> Result<()> {
    let beside = Beside::open(state_dir)?;
    beside.write("write the journal", |transaction| add_line(transaction, event, detail))
}

/// The file whose lock says that somebody migrates.
const LOCK: &str = "migrate.lock";

/// Writes the journal beside whoever holds the job; one process at a time.
#[derive(Debug)]
pub struct Journal {
    beside: Beside,
    reader: LedgerReader,
    _lock: Lock,
}

impl Journal {
    /// Opens the ledger of a state directory.
    ///
    /// # Errors
    /// There is none, it is damaged, or another process has its journal.
    pub fn open(state_dir: &Path) -> Result<Self> {
        let beside = Beside::open(state_dir)?;
        // A machine that loses power must not forget what was done to servers.
        beside.wait_for_the_disk()?;
        let lock = Lock::take_file(&directory::check(state_dir)?, LOCK)?;
        Ok(Self { beside, reader: LedgerReader::open(state_dir)?, _lock: lock })
    }

    /// Adds a line; it is on the disk when this returns.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write(&self, event: &str, detail: &Value) -> Result<()> {
        self.beside.write("write the journal", |transaction| add_line(transaction, event, detail))
    }

    /// All lines, oldest first.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn entries(&self) -> Result<Vec<JournalEntry>> {
        self.reader.journal()
    }
}
