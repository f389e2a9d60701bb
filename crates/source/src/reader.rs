//! Reads chunks under an exported snapshot.
//!
//! **Invariant:** a reader sees exactly what the snapshot's holder sees, or fails: it imports the snapshot before its first
//! statement and never begins a transaction of its own.
//!
//! PostgreSQL manual, `SET TRANSACTION SNAPSHOT`.

use std::time::Duration;

use tidemark_model::sql::Literal;
use tidemark_model::{ChunkSpec, Relation};
use tidemark_wire::{Cancel, ConnectSpec, CopyOut, Mode, RawConnection};

use crate::chunks::copy_statement;
use crate::snapshot::{PER_STATEMENT, behind_an_alter, milliseconds};
use crate::{Disposition, Error, LOCK_WAIT, Result, sql};

/// One connection that reads chunks, one after another.
pub struct Reader {
    raw: RawConnection,
    spec: ConnectSpec,
}

impl Reader {
    /// Connects and imports the snapshot. Also the way to replace a reader whose connection was lost while the holder lives.
    ///
    /// # Errors
    /// [`Error::is_snapshot_gone`] when the holder is gone: then the run starts again as a whole.
    pub async fn open(spec: &ConnectSpec, snapshot_id: &str) -> Result<Self> {
        let mut raw = sql::connect_raw(spec, Mode::Sql).await?;
        let begin = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";
        sql::raw(&mut raw, "begin a reader's transaction", begin).await?;
        // There are as many readers as there are to be: a statement of one is not to start workers of the server's beside them.
        let import = format!(
            "SET TRANSACTION SNAPSHOT {}; SET LOCAL max_parallel_workers_per_gather = 0",
            Literal(snapshot_id)
        );
        sql::raw(&mut raw, "import the snapshot", &import).await.map_err(snapshot_gone)?;
        let mut reader = Self { raw, spec: spec.clone() };
        reader.wait_at_most(LOCK_WAIT).await?;
        Ok(reader)
    }

    /// Bounds every wait for a lock from here on.
    ///
    /// # Errors
    /// The connection failed.
    pub async fn wait_at_most(&mut self, patience: Duration) -> Result<()> {
        let bound = format!("SET LOCAL lock_timeout = {}", milliseconds(patience));
        sql::raw(&mut self.raw, "bound a reader's waits for locks", &bound).await?;
        Ok(())
    }

    /// Locks tables for as long as this reader lives, so that an ALTER that comes later keeps it from none of them. To be
    /// called right after the snapshot was taken.
    ///
    /// # Errors
    /// With [`Error::is_snapshot_gone`] somebody waits for the holder already: only a new snapshot lets them through.
    pub async fn lock(&mut self, tables: &[&Relation]) -> Result<()> {
        for part in tables.chunks(PER_STATEMENT) {
            let names: Vec<String> =
                part.iter().map(|table| format!("ONLY {}", table.name)).collect();
            let text = format!("LOCK TABLE {} IN ACCESS SHARE MODE", names.join(", "));
            if let Err(error) = sql::raw(&mut self.raw, "lock tables for a reader", &text).await {
                return Err(behind_an_alter(&self.spec, part, error).await);
            }
        }
        Ok(())
    }

    /// Starts reading a chunk. Read it to its end before the next; a reader whose copy failed is dropped.
    ///
    /// # Errors
    /// The server refused the statement or the connection failed; the error names the relation. With
    /// [`Error::is_snapshot_gone`] the table cannot be had under this snapshot any more: its schema has another name, or
    /// somebody waits for it behind the holder.
    pub async fn copy<'a>(&'a mut self, chunk: &ChunkSpec) -> Result<CopyOut<'a>> {
        let statement = copy_statement(chunk);
        let answer = self.raw.copy_out(&statement, chunk.form).await;
        answer.map_err(|cause| refused(Error::wire("read a chunk", cause).on(&chunk.relation)))
    }

    /// The backend that serves this reader.
    pub fn backend_pid(&self) -> i32 {
        self.raw.backend_pid()
    }

    /// Ends the statement that runs, from anywhere.
    pub fn cancel_token(&self) -> Cancel {
        self.raw.cancel_token()
    }
}

/// What the refusal of a chunk's statement means. The holder's lock keeps the table from being dropped or renamed, but not
/// its schema from being renamed.
fn refused(error: Error) -> Error {
    match error.sqlstate() {
        Some("55P03") => error.disposed(Disposition::SnapshotLost).hint(
            "an ALTER or DROP of the application waits for the copy; the copy starts again after it",
        ),
        Some("42P01" | "3F000") => error
            .disposed(Disposition::SnapshotLost)
            .hint("its schema was renamed while it was copied; the copy starts again"),
        _ => error,
    }
}

/// The import fails with one of these when nobody holds the snapshot any more; which one depends on the version.
pub(crate) fn snapshot_gone(error: Error) -> Error {
    if error.has_state(&["22023", "55000", "42704"]) {
        return error.disposed(Disposition::SnapshotLost).hint(
            "the session that held the snapshot ended; the copy starts again with a new one",
        );
    }
    error
}
