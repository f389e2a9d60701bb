//! Reads chunks under an exported snapshot.
//!
//! **Invariant:** a reader sees exactly what the snapshot's holder sees, or fails: it imports the snapshot before its first
//! statement and never begins a transaction of its own.
//!
//! PostgreSQL manual, `SET TRANSACTION SNAPSHOT`.

use tidemark_model::ChunkSpec;
use tidemark_model::sql::Literal;
use tidemark_wire::{Cancel, ConnectSpec, CopyOut, Mode, RawConnection};

use crate::chunks::copy_statement;
use crate::{Disposition, Error, Result, sql};

/// One connection that reads chunks, one after another.
pub struct Reader {
    raw: RawConnection,
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
        let import = format!("SET TRANSACTION SNAPSHOT {}", Literal(snapshot_id));
        sql::raw(&mut raw, "import the snapshot", &import).await.map_err(snapshot_gone)?;
        let bound = format!("SET LOCAL lock_timeout = {}", crate::LOCK_WAIT_MS);
        sql::raw(&mut raw, "bound a reader's waits for locks", &bound).await?;
        Ok(Self { raw })
    }

    /// Starts reading a chunk. Read it to its end before the next; a reader whose copy failed is dropped.
    ///
    /// # Errors
    /// The server refused the statement or the connection failed; the error names the relation.
    pub async fn copy<'a>(&'a mut self, chunk: &ChunkSpec) -> Result<CopyOut<'a>> {
        let statement = copy_statement(chunk);
        let answer = self.raw.copy_out(&statement, chunk.form).await;
        answer.map_err(|cause| Error::wire("read a chunk", cause).on(&chunk.relation))
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

/// The import fails with one of these when nobody holds the snapshot any more; which one depends on the version.
pub(crate) fn snapshot_gone(error: Error) -> Error {
    if error.has_state(&["22023", "55000", "42704"]) {
        return error.disposed(Disposition::SnapshotLost).hint(
            "the session that held the snapshot ended; the copy starts again with a new one",
        );
    }
    error
}
