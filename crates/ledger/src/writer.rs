//! Writes the ledger.
//!
//! **Invariant:** whoever has a [`Ledger`] holds the job: no other process can have one on the same directory. Every
//! method is one transaction that is on disk when it returns.

use std::path::Path;

use rusqlite::{OptionalExtension as _, Row, Transaction, TransactionBehavior, params};
use serde_json::Value;
use tidemark_model::{ChunkResult, LeafSum, Lsn, Oid, RowSum};

use crate::lock::Lock;
use crate::reader::{chunk_of, parsed, sum_of};
use crate::record::{
    ChunkRecord, JournalEntry, LeafRecord, NewRelation, RelationRecord, RunRecord, now_ms,
};
use crate::{Error, LedgerReader, Result, directory, schema};

/// The ledger of a job, held by this process.
#[derive(Debug)]
pub struct Ledger {
    // Closed before the lock is given up: fields are dropped in this order.
    reader: LedgerReader,
    _lock: Lock,
}

impl Ledger {
    /// Takes the job: makes the state directory and the ledger if they are not there, and locks them until dropped.
    ///
    /// # Errors
    /// [`Error::Held`] if another process has it; the directory is not safe, is of another job, or the file is damaged.
    pub fn open(state_dir: &Path, job: &str) -> Result<Self> {
        let directory = directory::prepare(state_dir)?;
        let lock = Lock::take(&directory)?;
        let path = directory.join(schema::FILE);
        drop(directory::open_file(&path)?);
        let connection = schema::open_for_writing(&path, job)?;
        let reader = LedgerReader::new(connection, path);
        let found = reader.job()?;
        if found != job {
            return Err(Error::OtherJob { directory, found, wanted: job.to_owned() });
        }
        Ok(Self { reader, _lock: lock })
    }

    /// Begins a run and forgets the relations, chunks and leaves of the one before; the journal stays.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn begin_run(&self, record: &RunRecord) -> Result<()> {
        self.write("begin a run", |transaction| {
            transaction.execute_batch(
                "DELETE FROM leaf; DELETE FROM chunk; DELETE FROM relation; DELETE FROM run",
            )?;
            transaction.execute(
                "INSERT INTO run VALUES (1, ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, NULL, NULL)",
                params![
                    record.job,
                    record.run,
                    record.phase,
                    record.system_identifier.to_string(),
                    record.database,
                    record.server_version,
                    record.snapshot_lsn.to_string(),
                    record.digest_key,
                    record.canonical_version,
                    record.started_at_ms,
                    record.finished_at_ms,
                    record.last_error,
                ],
            )?;
            Ok(())
        })
    }

    /// Adds one relation to the run.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn add_relation(&self, relation: &NewRelation) -> Result<()> {
        self.add_relations(std::slice::from_ref(relation))
    }

    /// Adds many relations in one transaction; one that is there already is planned anew and loses its chunks.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn add_relations(&self, relations: &[NewRelation]) -> Result<()> {
        self.write("add relations", |transaction| {
            let mut forget = transaction.prepare_cached("DELETE FROM relation WHERE oid = ?1")?;
            let mut insert = transaction.prepare_cached(
                "INSERT INTO relation VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, 0, ?9, random())",
            )?;
            for relation in relations {
                forget.execute([relation.oid])?;
                insert.execute(params![
                    relation.oid,
                    relation.name.schema,
                    relation.name.name,
                    relation.chunks_total,
                    relation.leaf_bounds,
                    relation.raw_scheme,
                    stored(relation.estimated_rows, "a number of rows")?,
                    stored(relation.estimated_bytes, "a number of bytes")?,
                    relation.shape,
                ])?;
            }
            Ok(())
        })
    }

    /// Records a chunk that is durable in the target, and adds its leaf sums. The same chunk again changes nothing.
    ///
    /// # Errors
    /// [`Error::ChunkDiffers`] if it is recorded with other counts or sums; [`Error::UnknownRelation`]; the file cannot be
    /// written.
    pub fn record_chunk(&self, result: &ChunkResult) -> Result<()> {
        self.write("record a chunk", |transaction| {
            known(transaction, result.relation_oid)?;
            let found = transaction
                .prepare_cached("SELECT * FROM chunk WHERE relation_oid = ?1 AND chunk = ?2")?
                .query_row(params![result.relation_oid, result.chunk], chunk_of)
                .optional()?;
            match found {
                Some(found) if is_same(&found, result) => Ok(()),
                Some(_) => Err(Failure::Ours(Error::ChunkDiffers {
                    oid: result.relation_oid,
                    chunk: result.chunk,
                })),
                None => insert_chunk(transaction, result),
            }
        })
    }

    /// Says that everything of a relation is in, keys and indexes included.
    ///
    /// # Errors
    /// [`Error::UnknownRelation`]; the file cannot be written.
    pub fn finish_relation(&self, oid: Oid) -> Result<()> {
        self.write("finish a relation", |transaction| {
            known(transaction, oid)?;
            transaction.execute("UPDATE relation SET is_finished = 1 WHERE oid = ?1", [oid])?;
            Ok(())
        })
    }

    /// Moves the run to another phase.
    ///
    /// # Errors
    /// [`Error::NoRun`]; the file cannot be written.
    pub fn set_phase(&self, phase: &str) -> Result<()> {
        self.update_run("set the phase", "UPDATE run SET phase = ?1", phase)
    }

    /// Keeps what stopped the run, for `status`. The text must carry no row values.
    ///
    /// # Errors
    /// [`Error::NoRun`]; the file cannot be written.
    pub fn set_error(&self, error: Option<&str>) -> Result<()> {
        self.update_run("set the error", "UPDATE run SET last_error = ?1", error)
    }

    /// Says that the run is done: no error, finished now.
    ///
    /// # Errors
    /// [`Error::NoRun`]; the file cannot be written.
    pub fn finish_run(&self) -> Result<()> {
        let statement = "UPDATE run SET finished_at_ms = ?1, last_error = NULL";
        self.update_run("finish the run", statement, now_ms())
    }

    /// Notes that the stream is about to touch these leaves, each of them after this position, and waits for the disk: what
    /// the target has must never be missing here. Leaves of relations that are not known are passed over.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn mark_touched(&self, leaves: &[(Oid, u32)], after: Lsn) -> Result<()> {
        self.set_synchronous("FULL")?;
        let marked = self.write("note touched leaves", |transaction| {
            let mut known = transaction.prepare_cached("SELECT 1 FROM relation WHERE oid = ?1")?;
            let mut mark =
                transaction.prepare_cached("INSERT OR REPLACE INTO touched VALUES (?1, ?2, ?3)")?;
            for (oid, leaf) in leaves {
                if known.exists([oid])? {
                    mark.execute(params![oid, leaf, after.to_string()])?;
                }
            }
            Ok(())
        });
        self.set_synchronous("NORMAL")?;
        marked
    }

    fn set_synchronous(&self, how: &str) -> Result<()> {
        let set = self.reader.lock().pragma_update(None, "synchronous", how);
        set.map_err(|error| self.reader.failed("set how commits wait for the disk", error))
    }

    /// Notes which session of the target marks the leaves from now on.
    ///
    /// # Errors
    /// [`Error::NoRun`]; the file cannot be written.
    pub fn set_epoch(&self, epoch: i64) -> Result<()> {
        self.update_run("note the session", "UPDATE run SET epoch = ?1", epoch)
    }

    /// The session that marked the leaves last; none where none did in this run.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn epoch(&self) -> Result<Option<i64>> {
        let read = self.reader.lock().query_row("SELECT epoch FROM run", (), |row| row.get(0));
        let found =
            read.optional().map_err(|error| self.reader.failed("read the session", error))?;
        Ok(found.flatten())
    }

    /// Notes that the stream stands there for a verification.
    ///
    /// # Errors
    /// [`Error::NoRun`]; the file cannot be written.
    pub fn set_stood(&self, at: Lsn) -> Result<()> {
        self.update_run("note the position", "UPDATE run SET stood = ?1", at.to_string())
    }

    /// Where the stream stood last for a verification.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn stood(&self) -> Result<Option<Lsn>> {
        let stood = |row: &Row<'_>| match row.get::<_, Option<String>>(0)? {
            Some(_) => parsed(row, "stood").map(Some),
            None => Ok(None),
        };
        let read = self.reader.lock().query_row("SELECT stood FROM run", (), stood);
        let found =
            read.optional().map_err(|error| self.reader.failed("read the position", error))?;
        Ok(found.flatten())
    }

    /// Forgets what is known of all leaves: somebody else may have brought changes to the target.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn forget_leaves(&self) -> Result<()> {
        self.write("forget what is known of leaves", |transaction| {
            transaction.execute_batch(
                "DELETE FROM proven; DELETE FROM proof; DELETE FROM touched; UPDATE relation SET shape = '', generation = random()",
            )?;
            Ok(())
        })
    }

    /// See [`LedgerReader::leaf_records`].
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn leaf_records(&self) -> Result<Vec<LeafRecord>> {
        self.reader.leaf_records()
    }

    /// See [`LedgerReader::cuts`].
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn cuts(&self) -> Result<Vec<(Oid, String)>> {
        self.reader.cuts()
    }

    /// A number that is another one whenever somebody else has written to the file.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn data_version(&self) -> Result<i64> {
        let read = self.reader.lock().pragma_query_value(None, "data_version", |row| row.get(0));
        read.map_err(|error| self.reader.failed("look for changes", error))
    }

    /// Adds a line to the journal.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write_journal(&self, event: &str, detail: &Value) -> Result<()> {
        self.write("write the journal", |transaction| {
            transaction.execute(
                "INSERT INTO journal (at_ms, run, event, detail)
                 VALUES (?1, (SELECT run FROM run), ?2, ?3)",
                params![now_ms(), event, detail.to_string()],
            )?;
            Ok(())
        })
    }

    /// See [`LedgerReader::run`].
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn run(&self) -> Result<Option<RunRecord>> {
        self.reader.run()
    }

    /// See [`LedgerReader::relations`].
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn relations(&self) -> Result<Vec<RelationRecord>> {
        self.reader.relations()
    }

    /// See [`LedgerReader::leaves`].
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn leaves(&self, oid: Oid) -> Result<Vec<LeafSum>> {
        self.reader.leaves(oid)
    }

    /// See [`LedgerReader::chunks`].
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn chunks(&self, oid: Oid) -> Result<Vec<ChunkRecord>> {
        self.reader.chunks(oid)
    }

    /// See [`LedgerReader::journal`].
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn journal(&self) -> Result<Vec<JournalEntry>> {
        self.reader.journal()
    }

    fn update_run(
        &self,
        doing: &'static str,
        statement: &str,
        value: impl rusqlite::ToSql,
    ) -> Result<()> {
        self.write(doing, |transaction| match transaction.execute(statement, [value])? {
            0 => Err(Failure::Ours(Error::NoRun { path: self.reader.path().to_owned() })),
            _ => Ok(()),
        })
    }

    fn write(
        &self,
        doing: &'static str,
        work: impl FnOnce(&Transaction<'_>) -> Result<(), Failure>,
    ) -> Result<()> {
        let mut connection = self.reader.lock();
        let run = || -> Result<(), Failure> {
            // Not deferred: what was read may be another writer's by the time it is written.
            let behavior = TransactionBehavior::Immediate;
            let transaction = connection.transaction_with_behavior(behavior)?;
            work(&transaction)?;
            Ok(transaction.commit()?)
        };
        run().map_err(|failure| match failure {
            Failure::Ours(error) => error,
            Failure::Sqlite(error) => self.reader.failed(doing, error),
        })
    }
}

/// Why a transaction was rolled back.
pub(crate) enum Failure {
    Ours(Error),
    Sqlite(rusqlite::Error),
}

impl From<rusqlite::Error> for Failure {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sqlite(error)
    }
}

fn known(transaction: &Transaction<'_>, oid: Oid) -> Result<(), Failure> {
    let is_known =
        transaction.prepare_cached("SELECT 1 FROM relation WHERE oid = ?1")?.exists([oid])?;
    if is_known { Ok(()) } else { Err(Failure::Ours(Error::UnknownRelation { oid })) }
}

/// Whether a chunk is the same work done again; how long it took may differ.
fn is_same(found: &ChunkRecord, result: &ChunkResult) -> bool {
    (found.rows_out, found.rows_in, found.bytes, found.sum)
        == (result.rows_out, result.rows_in, result.bytes, result.sum)
}

fn insert_chunk(transaction: &Transaction<'_>, result: &ChunkResult) -> Result<(), Failure> {
    transaction
        .prepare_cached("INSERT INTO chunk VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)")?
        .execute(params![
            result.relation_oid,
            result.chunk,
            stored(result.rows_out, "a number of rows")?,
            stored(result.rows_in, "a number of rows")?,
            stored(result.bytes, "a number of bytes")?,
            stored(result.sum.count, "a number of rows")?,
            result.sum.raw.to_be_bytes(),
            result.sum.value.to_be_bytes(),
            serde_json::json!(result.replaced).to_string(),
            stored(result.duration_ms, "a duration")?,
        ])?;
    for leaf in &result.leaves {
        add_leaf(transaction, result.relation_oid, leaf)?;
    }
    Ok(())
}

/// Adds to a leaf's sum. SQLite has no 128-bit numbers, so it is read, added and written.
fn add_leaf(transaction: &Transaction<'_>, oid: Oid, leaf: &LeafSum) -> Result<(), Failure> {
    let mut sum: RowSum = transaction
        .prepare_cached("SELECT * FROM leaf WHERE relation_oid = ?1 AND leaf = ?2")?
        .query_row(params![oid, leaf.leaf], sum_of)
        .optional()?
        .unwrap_or_default();
    sum += leaf.sum;
    transaction
        .prepare_cached("INSERT OR REPLACE INTO leaf VALUES (?1, ?2, ?3, ?4, ?5)")?
        .execute(params![
            oid,
            leaf.leaf,
            stored(sum.count, "a number of rows")?,
            sum.raw.to_be_bytes(),
            sum.value.to_be_bytes(),
        ])?;
    Ok(())
}

pub(crate) fn stored(number: u64, what: &'static str) -> Result<i64, Failure> {
    i64::try_from(number).map_err(|_| Failure::Ours(Error::TooLarge { what }))
}
