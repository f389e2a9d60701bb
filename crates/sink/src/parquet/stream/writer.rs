//! Takes the batches of a stream, and commits what has come.
//!
//! **Invariant:** a commit lists the files of whole transactions and of all of them since the commit before it, and carries
//! the end LSN of the last. After an error nothing is committed any more.
//!
//! ```text
//! accept: [wait for the batch before] -> sort the rows by table -> hand each table's to the CPU pool -> return
//!    pool: tuples -> decode -> encode; the batch's reservation is given back with its last row
//!    finished row groups beyond a bound -> files
//! flush:  [wait] -> end the row groups -> close the files -> commit
//! ```
//!
//! The memory of rows is not kept until they are durable, because the pipeline may need it to send what ends a
//! transaction; what is held encoded is bounded by the sink's own share.

use std::sync::Arc;

use async_trait::async_trait;
use futures::future::{BoxFuture, join_all};
use futures::{FutureExt as _, StreamExt as _, TryStreamExt as _};
use tidemark_model::{Cpu, Lsn, RelationName, StreamBatch};
use tokio::sync::watch;

use super::super::manifest::{CommitTable, Replaced};
use super::super::options::ParquetOptions;
use super::commits::Commits;
use super::files::{Destination, Files};
use super::lane::{Lane, LaneBounds};
use super::rows::{Held, Routes};
use super::table::StreamTable;
use crate::{
    Disposition, Error, Flushed, NewColumn, Positions, Result, StreamCounters, StreamWriter,
};

/// Tables whose files are written at once.
const FILES_AT_ONCE: usize = 8;

/// Tables whose buffers are kept from one commit to the next.
const LANES_KEPT: usize = 64;

/// Finished row groups of a table are written out beyond this.
const FINISHED_BYTES: u64 = 16 << 20;

/// A table on its way.
struct TableState {
    table: Arc<StreamTable>,
    /// Made with the first row: a job may have a great many tables.
    lane: Option<Box<Lane>>,
    /// The pool works on the lane.
    is_away: bool,
    files: Files,
}

impl TableState {
    async fn write_finished(&mut self, to: &Destination, beyond: u64, closes: bool) -> Result<()> {
        let Some(lane) = &mut self.lane else { return Ok(()) };
        if lane.finished_bytes() > beyond
            && let Some(finished) = lane.take_finished()?
        {
            self.files.append(to, Arc::clone(&lane.table), finished).await?;
        }
        if closes { self.files.close().await } else { Ok(()) }
    }
}

type Work = BoxFuture<'static, Vec<(usize, Box<Lane>, Result<()>)>>;

/// What was accepted since the last commit.
#[derive(Debug, Clone, Copy, Default)]
struct Pending {
    transactions: u64,
    changes: u64,
}

/// The writer of a lake's changes.
pub(super) struct LakeWriter {
    commits: Commits,
    tables: Vec<TableState>,
    names: Vec<RelationName>,
    routes: Arc<Routes>,
    bounds: LaneBounds,
    /// Bytes that all tables together may hold encoded.
    memory: u64,
    file_bytes: u64,
    cpu: Cpu,
    work: Option<Work>,
    /// End of the last transaction of which something was accepted.
    end: Lsn,
    /// The next `_seq` of the transaction that goes on, if one does.
    goes_on: Option<i64>,
    pending: Pending,
    counters: StreamCounters,
    positions: watch::Sender<Positions>,
    is_dead: bool,
}

impl LakeWriter {
    pub(super) fn new(
        commits: Commits,
        tables: Vec<Arc<StreamTable>>,
        options: &ParquetOptions,
        cpu: &Cpu,
    ) -> Self {
        let memory = (options.memory / 2).max(4 << 20);
        let bounds = LaneBounds {
            compression: options.compression,
            batch_bytes: (memory / 8) as usize,
            row_group_bytes: (memory / 4) as usize,
        };
        let position = commits.position();
        let positions = Positions { applied: position, durable: Flushed::up_to(position) };
        let oid_of = |table: &Arc<StreamTable>| (table.plan.relation.oid, table.is_keyless());
        Self {
            commits,
            routes: Arc::new(Routes::new(tables.iter().map(oid_of))),
            names: tables.iter().map(|table| table.name().clone()).collect(),
            tables: tables
                .into_iter()
                .map(|table| TableState {
                    table,
                    lane: None,
                    is_away: false,
                    files: Files::default(),
                })
                .collect(),
            bounds,
            memory,
            file_bytes: options.file_bytes.max(1),
            cpu: cpu.clone(),
            work: None,
            end: position,
            goes_on: None,
            pending: Pending::default(),
            counters: StreamCounters::default(),
            positions: watch::Sender::new(positions),
            is_dead: false,
        }
    }

    /// Begins an operation. The writer counts as dead until it is [over](Self::over): also if its future is dropped.
    fn begin(&mut self) -> Result<()> {
        if self.is_dead {
            let attempt = "write to a lake after an earlier write to it had failed";
            return Err(Error::new(Disposition::Internal, attempt));
        }
        self.is_dead = true;
        Ok(())
    }

    /// Ends an operation; after an error there is none any more.
    fn over<T>(&mut self, outcome: Result<T>) -> Result<T> {
        self.is_dead = outcome.is_err();
        outcome
    }

    async fn accept_batch(&mut self, batch: StreamBatch) -> Result<()> {
        self.check_order(&batch)?;
        self.settle().await?;
        if self.goes_on.is_none() && self.pending_bytes() >= self.file_bytes {
            self.commit(self.end).await?;
        }
        let (end, changes) = (batch.end_lsn(), batch.change_count() as u64);
        let (transactions, continues) = (batch.transactions.len() as u64, batch.continues);
        let held =
            Arc::new(Held { transactions: batch.transactions, _reservation: batch.reservation });
        let (routes, sorted, first_seq) =
            (Arc::clone(&self.routes), Arc::clone(&held), self.goes_on.unwrap_or(0));
        let (picks, seq) =
            self.cpu.run(move || routes.split(&sorted.transactions, first_seq)).await?;
        let mut work = Vec::new();
        for (index, picks) in picks.into_iter().enumerate().filter(|(_, picks)| !picks.is_empty()) {
            let mut lane = self.lane(index)?;
            let (held, cpu) = (Arc::clone(&held), self.cpu.clone());
            work.push(async move {
                cpu.run(move || {
                    let outcome = lane.take(&held, &picks);
                    drop(held);
                    (index, lane, outcome)
                })
                .await
            });
        }
        drop(held);
        let mut work = join_all(work).boxed();
        // The first poll hands the work to the pool.
        match futures::poll!(&mut work) {
            std::task::Poll::Ready(done) => self.take_back(done)?,
            std::task::Poll::Pending => self.work = Some(work),
        }
        self.end = end;
        self.goes_on = continues.then_some(seq);
        self.pending.changes += changes;
        if !continues {
            self.pending.transactions += transactions;
        }
        Ok(())
    }

    /// Commit order, nothing twice, and nothing between the parts of a transaction.
    fn check_order(&self, batch: &StreamBatch) -> Result<()> {
        let mut ends = batch.transactions.iter().map(|transaction| transaction.head.end_lsn);
        let is_whole = !batch.continues || batch.transactions.len() == 1;
        let fits = match (ends.next(), self.goes_on) {
            (None, _) => false,
            (Some(first), Some(_)) => first == self.end && batch.transactions.len() == 1,
            (Some(first), None) => first > self.end,
        };
        let is_ascending =
            batch.transactions.windows(2).all(|pair| pair[0].head.end_lsn < pair[1].head.end_lsn);
        if is_whole && fits && is_ascending {
            return Ok(());
        }
        let attempt = format!("take a batch that does not follow on {}", self.end);
        Err(Error::new(Disposition::Internal, attempt))
    }

    /// Takes a table's lane for the pool.
    fn lane(&mut self, index: usize) -> Result<Box<Lane>> {
        let state = &mut self.tables[index];
        if std::mem::replace(&mut state.is_away, true) {
            let attempt = "write to a table that is being written to";
            return Err(Error::new(Disposition::Internal, attempt).on(state.table.name()));
        }
        let made = || Box::new(Lane::new(Arc::clone(&state.table), self.bounds));
        Ok(state.lane.take().unwrap_or_else(made))
    }

    fn take_back(&mut self, done: Vec<(usize, Box<Lane>, Result<()>)>) -> Result<()> {
        let mut outcome = Ok(());
        for (index, lane, done) in done {
            self.tables[index].lane = Some(lane);
            self.tables[index].is_away = false;
            outcome = outcome.and(done);
        }
        outcome
    }

    /// Waits for the batch before, and writes out what is too much to hold.
    async fn settle(&mut self) -> Result<()> {
        if let Some(work) = self.work.take() {
            let done = work.await;
            self.take_back(done)?;
        }
        if self.held_bytes() > self.memory {
            self.end_row_groups().await?;
            return self.write_finished(0, false).await;
        }
        self.write_finished(FINISHED_BYTES, false).await
    }

    /// Bytes that all tables hold.
    fn held_bytes(&self) -> u64 {
        let lanes = self.tables.iter().filter_map(|table| table.lane.as_ref());
        lanes.map(|lane| lane.bytes()).sum()
    }

    /// Ends every row group that is open.
    async fn end_row_groups(&mut self) -> Result<()> {
        let mut work = Vec::new();
        for index in 0..self.tables.len() {
            if self.tables[index].lane.as_ref().is_none_or(|lane| lane.bytes() == 0) {
                continue;
            }
            let (mut lane, cpu) = (self.lane(index)?, self.cpu.clone());
            work.push(async move {
                cpu.run(move || {
                    let outcome = lane.finish();
                    (index, lane, outcome)
                })
                .await
            });
        }
        let done = join_all(work).await;
        self.take_back(done)
    }

    /// Writes the finished row groups of tables that have more than this, and closes the files where asked.
    async fn write_finished(&mut self, beyond: u64, closes: bool) -> Result<()> {
        let to = self.destination();
        let tables = self.tables.iter_mut();
        let writes: Vec<_> =
            tables.map(|table| table.write_finished(&to, beyond, closes).boxed()).collect();
        futures::stream::iter(writes).buffer_unordered(FILES_AT_ONCE).try_collect().await
    }

    fn destination(&self) -> Destination {
        Destination {
            root: self.commits.root().clone(),
            run: self.commits.run().to_owned(),
            commit: self.commits.next(),
            file_bytes: self.file_bytes,
        }
    }

    /// Bytes that the next commit would list.
    fn pending_bytes(&self) -> u64 {
        let held = |table: &TableState| table.lane.as_ref().map_or(0, |lane| lane.finished_bytes());
        self.tables.iter().map(|table| table.files.bytes() + held(table)).sum()
    }

    /// Commits everything accepted, as of this position.
    async fn commit(&mut self, end: Lsn) -> Result<Flushed> {
        self.end_row_groups().await?;
        self.write_finished(0, true).await?;
        let tables: Vec<_> = self.tables.iter_mut().filter_map(listed).collect();
        self.commits.commit(end, tables).await?;
        self.end = end;
        let pending = std::mem::take(&mut self.pending);
        self.counters.transactions += pending.transactions;
        self.counters.changes += pending.changes;
        self.counters.commits += 1;
        let durable = Flushed::up_to(end);
        self.positions.send_replace(Positions { applied: end, durable });
        self.forget_lanes();
        Ok(durable)
    }

    /// Gives back the buffers of tables whose rows are all committed, if they are many.
    fn forget_lanes(&mut self) {
        if self.tables.iter().filter(|state| state.lane.is_some()).count() > LANES_KEPT {
            self.tables.iter_mut().for_each(|state| state.lane = None);
        }
    }

    /// Commits what was accepted, up to a position at least.
    async fn flush_to(&mut self, lsn: Lsn) -> Result<Flushed> {
        if self.goes_on.is_some() {
            let attempt = "make a part of a transaction durable whose end has not come";
            return Err(Error::new(Disposition::Internal, attempt));
        }
        self.settle().await?;
        let end = lsn.max(self.end);
        if end == self.commits.position() {
            return Ok(Flushed::up_to(end));
        }
        self.commit(end).await
    }

    async fn add(&mut self, relation: &RelationName, columns: &[NewColumn]) -> Result<()> {
        self.settle().await?;
        let index = self.names.iter().position(|name| name == relation).ok_or_else(|| {
            let attempt = "add columns to a table that the stream does not have";
            Error::new(Disposition::Internal, attempt).on(relation)
        })?;
        let mut lane = self.lane(index)?;
        if let Some(table) = lane.table.with_columns(columns)? {
            self.commits.note_columns(relation, &table.plan.columns).await?;
            // A file has one schema: what came before goes into one of its own.
            let (mut old, outcome) = self
                .cpu
                .run(move || {
                    let outcome = lane.finish();
                    (lane, outcome)
                })
                .await;
            outcome?;
            let to = self.destination();
            let files = &mut self.tables[index].files;
            if let Some(finished) = old.take_finished()? {
                files.append(&to, Arc::clone(&old.table), finished).await?;
            }
            files.close().await?;
            let table = Arc::new(table);
            self.tables[index].table = Arc::clone(&table);
            lane = Box::new(old.followed_by(table, self.bounds));
        }
        self.take_back(vec![(index, lane, Ok(()))])
    }
}

/// What a commit lists of a table, if it has any rows.
fn listed(table: &mut TableState) -> Option<CommitTable> {
    let lane = table.lane.as_mut()?;
    let files = table.files.take();
    if files.is_empty() {
        return None;
    }
    let (operations, replaced) = lane.take_counts();
    let table = &lane.table;
    Some(CommitTable {
        schema: table.name().schema.clone(),
        name: table.name().name.clone(),
        columns: table.commit_columns(),
        key: table.key_names(),
        filter: table.plan.filter.clone(),
        rows: files.iter().map(|file| file.rows).sum(),
        digest: None,
        operations: Some(operations),
        replaced: replaced
            .into_iter()
            .map(|(column, values)| Replaced { column, values })
            .collect(),
        files,
        join: None,
    })
}

#[async_trait]
impl StreamWriter for LakeWriter {
    async fn accept(&mut self, batch: StreamBatch) -> Result<()> {
        self.begin()?;
        let outcome = self.accept_batch(batch).await;
        self.over(outcome)
    }

    async fn flush(&mut self) -> Result<Flushed> {
        self.begin()?;
        let outcome = self.flush_to(Lsn::ZERO).await;
        self.over(outcome)
    }

    async fn advance(&mut self, lsn: Lsn) -> Result<Flushed> {
        self.begin()?;
        let outcome = self.flush_to(lsn).await;
        self.over(outcome)
    }

    async fn add_columns(&mut self, relation: &RelationName, columns: &[NewColumn]) -> Result<()> {
        self.begin()?;
        let outcome = self.add(relation, columns).await;
        self.over(outcome)
    }

    fn positions(&self) -> watch::Receiver<Positions> {
        self.positions.subscribe()
    }

    fn counters(&self) -> StreamCounters {
        self.counters
    }

    async fn close(mut self: Box<Self>) -> Result<Flushed> {
        self.flush().await
    }
}
