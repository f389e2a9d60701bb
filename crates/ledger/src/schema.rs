//! The tables of the ledger and how its file is opened.
//!
//! **Invariant:** a file is used only if it carries our application identifier and a version that is known here, and
//! passes SQLite's quick check. An empty file is a new ledger; one of an earlier version is brought up to this one by
//! whoever writes first. Sums are 16-byte blobs, big-endian.
//!
//! SQLite manual: "PRAGMA application_id", "PRAGMA user_version", "Write-Ahead Logging".

use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, OpenFlags, TransactionBehavior};

use crate::{Error, Result, directory};

/// Name of the file in the state directory.
pub(crate) const FILE: &str = "ledger.sqlite";
pub(crate) const VERSION: i64 = 2;
/// "tide" in ASCII.
const APPLICATION_ID: i64 = 0x7469_6465;
/// A reader that copies while the writer checkpoints, and the other way round, are done long before.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);

const TABLES: &str = "
CREATE TABLE owner (id INTEGER PRIMARY KEY CHECK (id = 1), job TEXT NOT NULL) STRICT;
CREATE TABLE run (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    job TEXT NOT NULL,
    run TEXT NOT NULL,
    phase TEXT NOT NULL,
    system_identifier TEXT NOT NULL,
    database TEXT NOT NULL,
    server_version INTEGER NOT NULL,
    snapshot_lsn TEXT NOT NULL,
    digest_key TEXT NOT NULL,
    canonical_version INTEGER NOT NULL,
    started_at_ms INTEGER NOT NULL,
    finished_at_ms INTEGER,
    last_error TEXT
) STRICT;
CREATE TABLE relation (
    oid INTEGER PRIMARY KEY,
    schema TEXT NOT NULL,
    name TEXT NOT NULL,
    chunks_total INTEGER NOT NULL,
    leaf_bounds TEXT NOT NULL,
    raw_scheme TEXT NOT NULL,
    estimated_rows INTEGER NOT NULL,
    estimated_bytes INTEGER NOT NULL,
    is_finished INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE TABLE chunk (
    relation_oid INTEGER NOT NULL REFERENCES relation (oid) ON DELETE CASCADE,
    chunk INTEGER NOT NULL,
    rows_out INTEGER NOT NULL,
    rows_in INTEGER NOT NULL,
    bytes INTEGER NOT NULL,
    row_count INTEGER NOT NULL,
    raw BLOB NOT NULL,
    value BLOB NOT NULL,
    replaced TEXT NOT NULL,
    duration_ms INTEGER NOT NULL,
    PRIMARY KEY (relation_oid, chunk)
) STRICT, WITHOUT ROWID;
CREATE TABLE leaf (
    relation_oid INTEGER NOT NULL REFERENCES relation (oid) ON DELETE CASCADE,
    leaf INTEGER NOT NULL,
    row_count INTEGER NOT NULL,
    raw BLOB NOT NULL,
    value BLOB NOT NULL,
    PRIMARY KEY (relation_oid, leaf)
) STRICT, WITHOUT ROWID;
CREATE TABLE journal (
    id INTEGER PRIMARY KEY,
    at_ms INTEGER NOT NULL,
    run TEXT,
    event TEXT NOT NULL,
    detail TEXT NOT NULL
) STRICT;
";

/// From version 1 to 2: what is known of leaves. Leaves that version 1 cut compare with nothing.
const LEAVES: &str = "
ALTER TABLE run ADD COLUMN epoch INTEGER;
ALTER TABLE run ADD COLUMN stood TEXT;
ALTER TABLE relation ADD COLUMN shape TEXT NOT NULL DEFAULT '';
ALTER TABLE relation ADD COLUMN generation INTEGER NOT NULL DEFAULT 0;
UPDATE relation SET leaf_bounds = 'null', raw_scheme = '';
CREATE TABLE touched (
    relation_oid INTEGER NOT NULL REFERENCES relation (oid) ON DELETE CASCADE,
    leaf INTEGER NOT NULL,
    since TEXT NOT NULL,
    PRIMARY KEY (relation_oid, leaf)
) STRICT, WITHOUT ROWID;
CREATE TABLE proof (
    relation_oid INTEGER PRIMARY KEY REFERENCES relation (oid) ON DELETE CASCADE,
    scheme TEXT NOT NULL,
    lsn TEXT,
    at_ms INTEGER
) STRICT;
CREATE TABLE proven (
    relation_oid INTEGER NOT NULL REFERENCES proof (relation_oid) ON DELETE CASCADE,
    leaf INTEGER NOT NULL,
    lsn TEXT NOT NULL,
    row_count INTEGER NOT NULL,
    raw BLOB NOT NULL,
    value BLOB NOT NULL,
    PRIMARY KEY (relation_oid, leaf)
) STRICT, WITHOUT ROWID;
";

/// Opens for writing and makes the tables in an empty file.
pub(crate) fn open_for_writing(path: &Path, job: &str) -> Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | common_flags();
    let mut connection = open(path, flags)?;
    let is_new = is_empty(&connection).map_err(|error| of_sqlite("read", path, error))?;
    if !is_new {
        // Before anything is set, so that a file that is not ours stays as it is.
        check_version(&connection, path)?;
    }
    let setting = |connection: &Connection| -> rusqlite::Result<()> {
        connection.pragma_update_and_check(None, "journal_mode", "WAL", |_| Ok(()))?;
        // Commits need not wait for the disk: what the target's own markers say is the truth, and the file stays whole.
        connection.pragma_update(None, "synchronous", "NORMAL")?;
        connection.pragma_update(None, "foreign_keys", true)
    };
    setting(&connection).map_err(|error| of_sqlite("set up", path, error))?;
    if is_new {
        create(&mut connection, job)
            .map_err(|error| of_sqlite("create the tables", path, error))?;
    }
    bring_up(&mut connection).map_err(|error| of_sqlite("bring up to date", path, error))?;
    check_pages(&connection, path)?;
    Ok(connection)
}

/// Opens a file of this version for writing beside whoever holds the job.
pub(crate) fn open_beside(path: &Path) -> Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | common_flags();
    let connection = open(path, flags)?;
    if is_empty(&connection).map_err(|error| of_sqlite("read", path, error))? {
        return Err(Error::Missing { directory: path.parent().unwrap_or(path).to_owned() });
    }
    if check_version(&connection, path)? < VERSION {
        return Err(Error::NoRun { path: path.to_owned() });
    }
    let setting = connection.pragma_update(None, "foreign_keys", true);
    setting.map_err(|error| of_sqlite("set up", path, error))?;
    Ok(connection)
}

/// Opens for reading while somebody else may be writing.
pub(crate) fn open_for_reading(path: &Path) -> Result<Connection> {
    let connection = open(path, OpenFlags::SQLITE_OPEN_READ_ONLY | common_flags())?;
    if is_empty(&connection).map_err(|error| of_sqlite("read", path, error))? {
        let directory = path.parent().unwrap_or(path).to_owned();
        return Err(Error::Missing { directory });
    }
    check_version(&connection, path)?;
    Ok(connection)
}

/// SQLite's error as ours.
pub(crate) fn of_sqlite(doing: &'static str, path: &Path, error: rusqlite::Error) -> Error {
    let path = path.to_owned();
    match error.sqlite_error_code() {
        Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt) => {
            Error::Damaged { path, source: Some(error) }
        }
        _ => Error::Sqlite { doing, path, source: error },
    }
}

fn common_flags() -> OpenFlags {
    OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_NOFOLLOW
}

fn open(path: &Path, flags: OpenFlags) -> Result<Connection> {
    // SQLite takes a file that is shorter than its smallest page for an empty one and would write over it.
    let len = path.metadata().map_err(directory::io("look at", path))?.len();
    if (1..512).contains(&len) {
        return Err(Error::Damaged { path: path.to_owned(), source: None });
    }
    let connection = Connection::open_with_flags(path, flags)
        .map_err(|error| of_sqlite("open the file", path, error))?;
    connection
        .busy_timeout(BUSY_TIMEOUT)
        .map_err(|error| of_sqlite("set the time to wait", path, error))?;
    Ok(connection)
}

fn is_empty(connection: &Connection) -> rusqlite::Result<bool> {
    connection.query_row("SELECT NOT EXISTS (SELECT 1 FROM sqlite_schema)", (), |row| row.get(0))
}

fn create(connection: &mut Connection, job: &str) -> rusqlite::Result<()> {
    let transaction = connection.transaction()?;
    transaction.execute_batch(TABLES)?;
    transaction.execute("INSERT INTO owner VALUES (1, ?1)", [job])?;
    transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
    transaction.pragma_update(None, "user_version", 1)?;
    transaction.commit()
}

/// Brings a file of an earlier version up to this one.
fn bring_up(connection: &mut Connection) -> rusqlite::Result<()> {
    let version: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
    if version == VERSION {
        return Ok(());
    }
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    transaction.execute_batch(LEAVES)?;
    transaction.pragma_update(None, "user_version", VERSION)?;
    transaction.commit()
}

fn check_pages(connection: &Connection, path: &Path) -> Result<()> {
    let answer: String = connection
        .query_row("PRAGMA quick_check(1)", (), |row| row.get(0))
        .map_err(|error| of_sqlite("check the file", path, error))?;
    if answer == "ok" {
        Ok(())
    } else {
        Err(Error::Damaged { path: path.to_owned(), source: None })
    }
}

fn check_version(connection: &Connection, path: &Path) -> Result<i64> {
    let number = |pragma| {
        connection
            .pragma_query_value(None, pragma, |row| row.get::<_, i64>(0))
            .map_err(|error| of_sqlite("read the version", path, error))
    };
    let found = number("user_version")?;
    if number("application_id")? != APPLICATION_ID || found < 1 {
        return Err(Error::Damaged { path: path.to_owned(), source: None });
    }
    if found > VERSION {
        return Err(Error::NewerVersion { path: path.to_owned(), found, known: VERSION });
    }
    Ok(found)
}
