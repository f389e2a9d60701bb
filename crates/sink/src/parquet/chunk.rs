//! One chunk on its way into the lake.
//!
//! **Invariant:** nothing of a chunk is in a file that others share before its commit; at most one batch of rows is being decoded
//! and encoded for it at any time, and what it holds stays within its [`Bounds`] plus one row.
//!
//! ```text
//! accept: [wait for the batch before] -> hand this one to the CPU pool -> return     (so that reading goes on meanwhile)
//!    pool: decode -> release the reservation -> encode into the row group -> finished row group
//!    held row groups beyond the bound -> a file of the chunk's own
//! commit: rest of the rows -> count compared -> row groups appended to the table's shared file, or own file closed
//! ```
//!
//! A batch larger than [`WIDE_BYTES`] (rows of many megabytes) is encoded and written while `accept` waits, one at a time in
//! the whole sink: encoding needs several times its size.

use std::sync::Arc;

use async_trait::async_trait;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use tidemark_columnar::Decoder;
use tidemark_model::{ChunkId, ChunkResult, Cpu, Reservation, Tuples};
use tokio::sync::Semaphore;

use super::failure;
use super::file::LakeFile;
use super::layout::{EncodedRowGroup, Layout, ROW_GROUP_ROWS, RowGroupEncoder, SAMPLE_ROWS};
use super::table::Table;
use crate::{ChunkWriter, Committed, Disposition, Error, Result};

/// Rows that are decoded before they are encoded; small enough to stay in the cache.
const BATCH_ROWS: usize = SAMPLE_ROWS;

/// Batches of rows above this size are handled one at a time.
pub(super) const WIDE_BYTES: usize = 8 << 20;

/// The decoder and the encoder of a chunk; travels to the CPU pool and back.
struct Lane {
    table: Arc<Table>,
    decoder: Decoder,
    layout: Option<Arc<Layout>>,
    encoder: Option<RowGroupEncoder>,
    finished: Vec<EncodedRowGroup>,
    rows: u64,
}

impl Lane {
    fn take(&mut self, tuples: Tuples, reservation: Reservation) -> Result<()> {
        let decoded = self.decoder.append(&tuples);
        drop((tuples, reservation));
        decoded.map_err(|error| self.decode_error(error))?;
        let is_full = self.decoder.row_count() >= BATCH_ROWS
            || self.decoder.bytes() >= self.table.bounds.batch_bytes;
        if is_full { self.encode() } else { Ok(()) }
    }

    /// Encodes the decoded rows, and ends row groups that are full.
    fn encode(&mut self) -> Result<()> {
        if self.decoder.row_count() == 0 {
            return Ok(());
        }
        let batch = self.decoder.finish().map_err(|error| self.decode_error(error))?;
        self.rows += batch.num_rows() as u64;
        let layout = match &self.layout {
            Some(layout) => Arc::clone(layout),
            None => Arc::clone(self.layout.insert(self.table.layout_for(&batch)?)),
        };
        let failed = |error| failure::parquet("encode rows", &self.table.name, error);
        let mut start = 0;
        while start < batch.num_rows() {
            let mut encoder = match self.encoder.take() {
                Some(encoder) => encoder,
                None => layout.row_group().map_err(failed)?,
            };
            let rows = (batch.num_rows() - start).min(ROW_GROUP_ROWS - encoder.row_count());
            encoder.write(&batch.slice(start, rows)).map_err(failed)?;
            start += rows;
            let is_full = encoder.row_count() >= ROW_GROUP_ROWS
                || encoder.bytes() >= self.table.bounds.row_group_bytes;
            if is_full {
                self.finished.push(encoder.finish().map_err(failed)?);
            } else {
                self.encoder = Some(encoder);
            }
        }
        Ok(())
    }

    /// Encodes what is left and ends the last row group.
    fn finish(&mut self) -> Result<()> {
        self.encode()?;
        if let Some(encoder) = self.encoder.take() {
            let group = encoder.finish();
            let group =
                group.map_err(|error| failure::parquet("encode rows", &self.table.name, error))?;
            self.finished.push(group);
        }
        Ok(())
    }

    fn decode_error(&self, error: tidemark_columnar::Error) -> Error {
        use tidemark_columnar::Error as E;
        let disposition = match error {
            E::Unrepresentable { .. } | E::NotUtf8 { .. } | E::TooLarge { .. } => {
                Disposition::Value
            }
            _ => Disposition::Internal,
        };
        let hint = error.hint();
        let made =
            Error::new(disposition, "turn rows into columns").on(&self.table.name).because(error);
        match hint {
            Some(hint) => made.hint(hint),
            None => made,
        }
    }
}

type Work = BoxFuture<'static, (Box<Lane>, Result<()>)>;

enum Stage {
    Idle(Box<Lane>),
    Busy(Work),
    /// An error was reported.
    Dead,
}

/// The writer of one chunk.
pub(super) struct ParquetChunk {
    table: Arc<Table>,
    chunk: ChunkId,
    cpu: Cpu,
    wide: Arc<Semaphore>,
    stage: Stage,
    layout: Option<Arc<Layout>>,
    held: Vec<EncodedRowGroup>,
    held_bytes: u64,
    own: Option<LakeFile>,
}

impl ParquetChunk {
    pub(super) fn new(table: Arc<Table>, chunk: ChunkId, cpu: Cpu, wide: Arc<Semaphore>) -> Self {
        let lane = Lane {
            table: Arc::clone(&table),
            decoder: table.program.decoder(),
            layout: None,
            encoder: None,
            finished: Vec::new(),
            rows: 0,
        };
        Self {
            table,
            chunk,
            cpu,
            wide,
            stage: Stage::Idle(Box::new(lane)),
            layout: None,
            held: Vec::new(),
            held_bytes: 0,
            own: None,
        }
    }

    /// Hands work to the pool and starts it, without waiting for its end.
    fn start(
        &mut self,
        mut lane: Box<Lane>,
        work: impl FnOnce(&mut Lane) -> Result<()> + Send + 'static,
    ) {
        let cpu = self.cpu.clone();
        let run = async move {
            cpu.run(move || {
                let outcome = work(&mut lane);
                (lane, outcome)
            })
            .await
        };
        self.stage = Stage::Busy(run.boxed());
    }

    /// Waits for the work under way and takes what it finished; writes it out if that is too much to hold.
    async fn settle(&mut self) -> Result<Box<Lane>> {
        let mut lane = match std::mem::replace(&mut self.stage, Stage::Dead) {
            Stage::Idle(lane) => lane,
            Stage::Busy(work) => {
                let (lane, outcome) = work.await;
                outcome?;
                lane
            }
            Stage::Dead => {
                return Err(Error::new(
                    Disposition::Internal,
                    "use a chunk's writer after its error",
                )
                .on(&self.table.name));
            }
        };
        self.layout.clone_from(&lane.layout);
        for group in lane.finished.drain(..) {
            self.held_bytes += group.bytes;
            self.held.push(group);
        }
        if self.held_bytes > self.table.bounds.held_bytes {
            self.write_held().await?;
        }
        Ok(lane)
    }

    async fn write_held(&mut self) -> Result<()> {
        let Some(layout) = &self.layout else { return Ok(()) };
        let file = match self.own.take() {
            Some(file) => file,
            None => self.table.create_file(layout).await?,
        };
        self.held_bytes = 0;
        self.own = Some(file.append(std::mem::take(&mut self.held)).await?);
        Ok(())
    }

    async fn accept_wide(&mut self, tuples: Tuples, reservation: Reservation) -> Result<()> {
        let _turn = Arc::clone(&self.wide)
            .acquire_owned()
            .await
            .expect("the semaphore for wide rows is never closed");
        let lane = self.settle().await?;
        self.start(lane, |lane| {
            lane.take(tuples, reservation)?;
            lane.encode()
        });
        let lane = self.settle().await?;
        self.stage = Stage::Idle(lane);
        Ok(())
    }

    async fn finish(&mut self, expected: u64) -> Result<Committed> {
        let lane = self.settle().await?;
        self.start(lane, Lane::finish);
        let lane = self.settle().await?;
        if lane.rows != expected {
            let attempt = format!(
                "commit chunk {}: the source sent {expected} rows, {} arrived",
                self.chunk, lane.rows
            );
            return Err(Error::new(Disposition::Internal, attempt).on(&self.table.name));
        }
        Ok(Committed { rows: lane.rows, replaced: lane.decoder.replaced() })
    }

    async fn publish(&mut self, committed: Committed) -> Result<()> {
        if self.own.is_some() {
            self.write_held().await?;
        }
        match self.own.take() {
            Some(file) => self.table.commit_own(self.chunk, committed, file).await,
            None => {
                let groups = std::mem::take(&mut self.held);
                let layout = self.layout.as_deref();
                self.table.commit_shared(self.chunk, committed, groups, layout).await
            }
        }
    }

    async fn discard(&mut self) {
        if let Stage::Busy(work) = std::mem::replace(&mut self.stage, Stage::Dead) {
            // Its result is not wanted, but its memory must be free when this returns.
            drop(work.await);
        }
        self.held.clear();
        if let Some(file) = self.own.take() {
            file.discard().await;
        }
    }
}

#[async_trait]
impl ChunkWriter for ParquetChunk {
    async fn accept(&mut self, tuples: Tuples, reservation: Reservation) -> Result<()> {
        if tuples.data.len() > WIDE_BYTES {
            return self.accept_wide(tuples, reservation).await;
        }
        let lane = self.settle().await?;
        self.start(lane, |lane| lane.take(tuples, reservation));
        if let Stage::Busy(work) = &mut self.stage {
            // The first poll hands the work to the pool.
            if let std::task::Poll::Ready((lane, outcome)) = futures::poll!(work) {
                self.stage = Stage::Dead;
                outcome?;
                self.stage = Stage::Idle(lane);
            }
        }
        Ok(())
    }

    async fn commit(mut self: Box<Self>, result: &ChunkResult) -> Result<Committed> {
        let outcome = match self.finish(result.rows_out).await {
            Ok(committed) => self.publish(committed.clone()).await.map(|()| committed),
            Err(error) => Err(error),
        };
        if outcome.is_err() {
            self.discard().await;
        }
        outcome
    }

    async fn abort(mut self: Box<Self>) {
        self.discard().await;
    }
}
