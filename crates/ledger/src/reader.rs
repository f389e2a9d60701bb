//! Reads the ledger, also while another process writes it.
//!
//! **Invariant:** each method reads one state of the file: one statement, or one transaction.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rusqlite::types::Type;
use rusqlite::{Connection, OptionalExtension as _, Row};
use tidemark_model::{LeafSum, Oid, RelationName, RowSum};

use crate::record::{ChunkRecord, JournalEntry, NewRelation, RelationRecord, RunRecord};
use crate::schema::of_sqlite;
use crate::{Error, Result, directory, lock, schema};

/// Read access.
#[derive(Debug)]
pub struct LedgerReader {
    connection: Mutex<Connection>,
    path: PathBuf,
}

impl LedgerReader {
    /// Opens the ledger of a state directory, whether or not a run holds it.
    ///
    /// # Errors
    /// [`Error::Missing`] if there is none; it is damaged, or written by a later version.
    pub fn open(state_dir: &Path) -> Result<Self> {
        let directory = directory::check(state_dir)?;
        let path = directory.join(schema::FILE);
        if !path.exists() {
            return Err(Error::Missing { directory: state_dir.to_owned() });
        }
        Ok(Self::new(schema::open_for_reading(&path)?, path))
    }

    pub(crate) fn new(connection: Connection, path: PathBuf) -> Self {
        Self { connection: Mutex::new(connection), path }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Connection> {
        // A panic in between leaves no half transaction: it is rolled back when it is dropped.
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a process works on the job now: `None` if not, else its number if it has written it.
    pub fn holder(&self) -> Option<Option<u32>> {
        lock::holder(self.path.parent()?)
    }

    /// The job that the state directory belongs to.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn job(&self) -> Result<String> {
        self.lock()
            .query_row("SELECT job FROM owner", (), |row| row.get(0))
            .map_err(|error| self.failed("read the job", error))
    }

    /// The present or last run.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn run(&self) -> Result<Option<RunRecord>> {
        self.lock()
            .query_row("SELECT * FROM run", (), run_of)
            .optional()
            .map_err(|error| self.failed("read the run", error))
    }

    /// All relations of the run, by schema and name.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn relations(&self) -> Result<Vec<RelationRecord>> {
        self.read_relations().map_err(|error| self.failed("read the relations", error))
    }

    fn read_relations(&self) -> rusqlite::Result<Vec<RelationRecord>> {
        let mut connection = self.lock();
        let transaction = connection.transaction()?;
        let mut relations = transaction
            .prepare_cached("SELECT * FROM relation ORDER BY oid")?
            .query_map((), relation_of)?
            .collect::<rusqlite::Result<Vec<_>>>()?;
        let mut statement = transaction.prepare_cached("SELECT * FROM chunk")?;
        let mut chunks = statement.query(())?;
        while let Some(row) = chunks.next()? {
            let oid: Oid = row.get("relation_oid")?;
            if let Ok(at) = relations.binary_search_by_key(&oid, |relation| relation.plan.oid) {
                add_chunk(&mut relations[at], &chunk_of(row)?, &replaced_of(row)?);
            }
        }
        relations.sort_by(|one, two| one.plan.name.cmp(&two.plan.name));
        Ok(relations)
    }

    /// The leaf sums of a relation, over the chunks that are done.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn leaves(&self, oid: Oid) -> Result<Vec<LeafSum>> {
        let leaf_of = |row: &Row<'_>| Ok(LeafSum { leaf: row.get("leaf")?, sum: sum_of(row)? });
        self.rows("SELECT * FROM leaf WHERE relation_oid = ?1 ORDER BY leaf", [oid], leaf_of)
            .map_err(|error| self.failed("read the leaves", error))
    }

    /// The chunks of a relation that are done.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn chunks(&self, oid: Oid) -> Result<Vec<ChunkRecord>> {
        self.rows("SELECT * FROM chunk WHERE relation_oid = ?1 ORDER BY chunk", [oid], chunk_of)
            .map_err(|error| self.failed("read the chunks", error))
    }

    /// What happened, oldest first, over all runs.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn journal(&self) -> Result<Vec<JournalEntry>> {
        self.rows("SELECT * FROM journal ORDER BY id", (), journal_of)
            .map_err(|error| self.failed("read the journal", error))
    }

    pub(crate) fn rows<T>(
        &self,
        statement: &str,
        parameters: impl rusqlite::Params,
        read: impl FnMut(&Row<'_>) -> rusqlite::Result<T>,
    ) -> rusqlite::Result<Vec<T>> {
        self.lock().prepare_cached(statement)?.query_map(parameters, read)?.collect()
    }

    pub(crate) fn failed(&self, doing: &'static str, error: rusqlite::Error) -> Error {
        of_sqlite(doing, &self.path, error)
    }
}

fn add_chunk(relation: &mut RelationRecord, chunk: &ChunkRecord, replaced: &[(String, u64)]) {
    relation.chunks_done += 1;
    relation.rows_out += chunk.rows_out;
    relation.rows_in += chunk.rows_in;
    relation.bytes += chunk.bytes;
    relation.sum += chunk.sum;
    if replaced.is_empty() {
        return;
    }
    let mut all: BTreeMap<String, u64> = relation.replaced.drain(..).collect();
    for (column, count) in replaced {
        *all.entry(column.clone()).or_default() += count;
    }
    relation.replaced = all.into_iter().collect();
}

fn run_of(row: &Row<'_>) -> rusqlite::Result<RunRecord> {
    Ok(RunRecord {
        job: row.get("job")?,
        run: row.get("run")?,
        phase: row.get("phase")?,
        system_identifier: parsed(row, "system_identifier")?,
        database: row.get("database")?,
        server_version: row.get("server_version")?,
        snapshot_lsn: parsed(row, "snapshot_lsn")?,
        digest_key: row.get("digest_key")?,
        canonical_version: row.get("canonical_version")?,
        started_at_ms: row.get("started_at_ms")?,
        finished_at_ms: row.get("finished_at_ms")?,
        last_error: row.get("last_error")?,
    })
}

fn relation_of(row: &Row<'_>) -> rusqlite::Result<RelationRecord> {
    let plan = NewRelation {
        oid: row.get("oid")?,
        name: RelationName::new(row.get::<_, String>("schema")?, row.get::<_, String>("name")?),
        chunks_total: row.get("chunks_total")?,
        leaf_bounds: row.get("leaf_bounds")?,
        raw_scheme: row.get("raw_scheme")?,
        estimated_rows: number(row, "estimated_rows")?,
        estimated_bytes: number(row, "estimated_bytes")?,
        // A file of version 1 that nobody has brought up yet has none.
        shape: row.get("shape").or_else(|error| match error {
            rusqlite::Error::InvalidColumnName(_) => Ok(String::new()),
            error => Err(error),
        })?,
    };
    Ok(RelationRecord {
        plan,
        chunks_done: 0,
        rows_out: 0,
        rows_in: 0,
        bytes: 0,
        sum: RowSum::default(),
        replaced: Vec::new(),
        is_finished: row.get("is_finished")?,
    })
}

pub(crate) fn chunk_of(row: &Row<'_>) -> rusqlite::Result<ChunkRecord> {
    Ok(ChunkRecord {
        chunk: row.get("chunk")?,
        rows_out: number(row, "rows_out")?,
        rows_in: number(row, "rows_in")?,
        bytes: number(row, "bytes")?,
        sum: sum_of(row)?,
        duration_ms: number(row, "duration_ms")?,
    })
}

fn replaced_of(row: &Row<'_>) -> rusqlite::Result<Vec<(String, u64)>> {
    json(row, "replaced")
}

fn journal_of(row: &Row<'_>) -> rusqlite::Result<JournalEntry> {
    Ok(JournalEntry {
        at_ms: row.get("at_ms")?,
        run: row.get("run")?,
        event: row.get("event")?,
        detail: json(row, "detail")?,
    })
}

pub(crate) fn sum_of(row: &Row<'_>) -> rusqlite::Result<RowSum> {
    let blob = |name| row.get::<_, [u8; 16]>(name).map(u128::from_be_bytes);
    Ok(RowSum { count: number(row, "row_count")?, raw: blob("raw")?, value: blob("value")? })
}

/// SQLite's numbers are signed; a negative count is damage.
fn number(row: &Row<'_>, column: &str) -> rusqlite::Result<u64> {
    let number: i64 = row.get(column)?;
    u64::try_from(number).map_err(|error| unreadable(row, column, Box::new(error)))
}

pub(crate) fn parsed<T>(row: &Row<'_>, column: &str) -> rusqlite::Result<T>
where
    T: std::str::FromStr<Err: std::error::Error + Send + Sync + 'static>,
{
    let text: String = row.get(column)?;
    text.parse().map_err(|error: T::Err| unreadable(row, column, Box::new(error)))
}

fn json<T: serde::de::DeserializeOwned>(row: &Row<'_>, column: &str) -> rusqlite::Result<T> {
    let text: String = row.get(column)?;
    serde_json::from_str(&text).map_err(|error| unreadable(row, column, Box::new(error)))
}

fn unreadable(
    row: &Row<'_>,
    column: &str,
    error: Box<dyn std::error::Error + Send + Sync>,
) -> rusqlite::Error {
    let index = row.as_ref().column_index(column).unwrap_or_default();
    rusqlite::Error::FromSqlConversionFailure(index, Type::Text, error)
}
