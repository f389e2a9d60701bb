//! Follows a source into a PostgreSQL target.
//!
//! **Invariant:** a transaction of the source is applied once: its changes and the position behind it are in one transaction
//! of the target, and only the run that the record names can commit one (`apply`, `open`).
//!
//! ```text
//! accept    layouts: fit descriptions to tables    reduce: net effect per key    statement: arrays      (this batch)
//!   |  handed over when the applier is idle
//! applier   apply: BEGIN, statements, counts, position, COMMIT                                          (the one before)
//! ```
//!
//! So one batch is prepared while the one before is executed and committed, and `accept` comes back when the applier has
//! taken the batch: no more than two are held.
//!
//! **Not here:** which transactions are grouped into a batch, and how large it may be (`pipeline`).
//!
//! PostgreSQL manual: "Logical Replication Message Formats", "Replication Progress Tracking".

mod apply;
mod cells;
mod columns;
mod exact;
mod layouts;
mod open;
mod parameter;
mod reduce;
mod statement;
mod table;

use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use tidemark_model::{Lsn, RelationName, StreamBatch};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::task::JoinSet;

use super::PostgresOptions;
use super::control::Control;
use super::session::{Sessions, server_error, wait_for_end};
use crate::{
    Disposition, Error, Flushed, NewColumn, OpenStream, Positions, Result, Stored, StreamCounters,
    StreamStart, StreamWriter,
};

use apply::{Applier, Prepared};
use layouts::Layouts;

/// From so many changes on a batch is prepared on a thread of its own.
const SMALL: usize = 200;

/// What the stream has of the job, from one `open_stream` to the next.
#[derive(Default)]
pub(super) struct Hold {
    /// Has the job's lock, if anything of this process has.
    pub(super) control: Option<Arc<Control>>,
    /// The backend that applied last: its commit may still be on its way.
    backend: Option<i32>,
}

/// Where the target stands.
pub(super) async fn stored(sessions: &Sessions, job: &str) -> Result<Option<Stored>> {
    let client = sessions.plain().await?;
    open::stored(&client, job).await
}

/// Opens the target for the stream.
pub(super) async fn open(
    options: &PostgresOptions,
    sessions: &Sessions,
    start: &StreamStart,
    hold: &mut Hold,
) -> Result<OpenStream> {
    let control = match hold.control.take().filter(|control| control.alive().is_ok()) {
        Some(control) => control,
        None => {
            // Before anything is made there: a target that knows nothing of the job is left as it is.
            let client = sessions.plain().await?;
            open::compare(open::stored(&client, &start.job).await?, start)?;
            Arc::new(Control::open(options, sessions, &start.run).await?)
        }
    };
    hold.control = Some(Arc::clone(&control));
    if let Some(backend) = hold.backend.take() {
        wait_for_end(control.client(), backend, &start.job).await?;
    }
    open::compare(open::stored(control.client(), &start.job).await?, start)?;
    let (fence, position) = open::claim(control.client(), start).await?;
    super::join::leave_others(control.client(), start).await?;
    let client = open::session(options, sessions).await?;
    hold.backend = Some(client.backend_pid());
    let layouts = Layouts::read(control.client(), &start.tables).await?;
    let columns = layouts.columns();
    let writer = PostgresStream::new(Applier::new(client, fence), control, layouts, position);
    Ok(OpenStream { writer: Box::new(writer), position, columns })
}

/// An error once the session that holds the job is gone. Opening the stream again takes the job again, or says who has it.
fn holds(control: &Control) -> Result<()> {
    control.alive().map_err(|_| {
        Error::new(
            Disposition::Retry,
            "go on after the session that holds the job on the target was lost",
        )
    })
}

/// What the applier is asked for.
enum Work {
    Batch(Prepared),
    Advance(Lsn, oneshot::Sender<()>),
    AddColumns(RelationName, Vec<NewColumn>, oneshot::Sender<()>),
    Close(oneshot::Sender<()>),
}

/// The writer.
struct PostgresStream {
    control: Arc<Control>,
    layouts: Arc<Layouts>,
    work: mpsc::Sender<(Work, tokio::sync::OwnedSemaphorePermit)>,
    /// One permit: whoever has it may ask the applier for something; it comes back when that is done.
    idle: Arc<Semaphore>,
    applier: JoinSet<Result<()>>,
    positions: watch::Receiver<Positions>,
    counters: Arc<Mutex<StreamCounters>>,
    /// End of the last batch that was accepted, and whether its transaction goes on.
    accepted: (Lsn, bool),
}

impl PostgresStream {
    fn new(applier: Applier, control: Arc<Control>, layouts: Layouts, position: Lsn) -> Self {
        let positions = Positions { applied: position, durable: Flushed::up_to(position) };
        let (report, positions) = watch::channel(positions);
        let idle = Arc::new(Semaphore::new(1));
        // One place: the permit keeps it free.
        let (work, orders) = mpsc::channel(1);
        let counters = Arc::default();
        let mut tasks = JoinSet::new();
        let task = Task {
            applier,
            orders,
            report,
            counters: Arc::clone(&counters),
            idle: Arc::clone(&idle),
            control: Arc::clone(&control),
        };
        tasks.spawn(task.run());
        Self {
            control,
            layouts: Arc::new(layouts),
            work,
            idle,
            applier: tasks,
            positions,
            counters,
            accepted: (position, false),
        }
    }

    /// Asks the applier for something once it is idle.
    async fn ask(&mut self, work: Work) -> Result<()> {
        let Ok(permit) = Arc::clone(&self.idle).acquire_owned().await else {
            return Err(self.failure().await);
        };
        match self.work.send((work, permit)).await {
            Ok(()) => Ok(()),
            Err(_) => Err(self.failure().await),
        }
    }

    /// Asks for something and waits until it is done.
    async fn done(&mut self, work: impl FnOnce(oneshot::Sender<()>) -> Work) -> Result<Flushed> {
        let (done, answer) = oneshot::channel();
        self.ask(work(done)).await?;
        match answer.await {
            Ok(()) => Ok(self.positions.borrow().durable),
            Err(_) => Err(self.failure().await),
        }
    }

    /// Waits until the applier has nothing to do.
    async fn settled(&mut self) -> Result<()> {
        let settled = self.idle.acquire().await.is_ok();
        match (settled, self.accepted.1) {
            (false, _) => Err(self.failure().await),
            (true, false) => Ok(()),
            (true, true) => {
                Err(Error::new(Disposition::Internal, "flush in the middle of a transaction"))
            }
        }
    }

    /// What ended the applier.
    async fn failure(&mut self) -> Error {
        match self.applier.join_next().await {
            Some(Ok(Err(error))) => error,
            Some(Ok(Ok(()))) | None => Error::new(
                Disposition::Internal,
                "go on with a stream that has failed or was closed",
            ),
            Some(Err(panic)) => {
                Error::new(Disposition::Internal, "apply changes").because(panic.to_string())
            }
        }
    }

    /// Knows every description of the batch.
    async fn learn(&mut self, batch: &StreamBatch) -> Result<()> {
        let changes = batch.transactions.iter().flat_map(|transaction| &transaction.changes);
        for change in changes {
            if matches!(change.operation, tidemark_model::Operation::Truncate { .. }) {
                continue;
            }
            if !self.layouts.knows(&change.relation) {
                let layouts = Arc::make_mut(&mut self.layouts);
                layouts.learn(self.control.client(), &change.relation).await?;
            }
        }
        Ok(())
    }
}

#[async_trait]
impl StreamWriter for PostgresStream {
    async fn accept(&mut self, batch: StreamBatch) -> Result<()> {
        holds(&self.control)?;
        let (last, is_open) = self.accepted;
        let end_lsn = batch.end_lsn();
        if (is_open && end_lsn != last) || (!is_open && end_lsn <= last) {
            return Err(Error::new(
                Disposition::Internal,
                format!("apply a batch that ends at {end_lsn} after {last}"),
            ));
        }
        self.accepted = (end_lsn, batch.continues);
        self.learn(&batch).await?;
        let layouts = Arc::clone(&self.layouts);
        let prepared = match batch.change_count() {
            ..SMALL => Prepared::new(batch, layouts)?,
            _ => tokio::task::spawn_blocking(move || Prepared::new(batch, layouts))
                .await
                .map_err(|panic| {
                    Error::new(Disposition::Internal, "prepare a batch").because(panic.to_string())
                })??,
        };
        self.ask(Work::Batch(prepared)).await
    }

    async fn flush(&mut self) -> Result<Flushed> {
        self.settled().await?;
        Ok(self.positions.borrow().durable)
    }

    async fn advance(&mut self, lsn: Lsn) -> Result<Flushed> {
        self.settled().await?;
        if lsn <= self.accepted.0 {
            return Ok(self.positions.borrow().durable);
        }
        self.accepted.0 = lsn;
        self.done(|done| Work::Advance(lsn, done)).await
    }

    async fn add_columns(&mut self, relation: &RelationName, columns: &[NewColumn]) -> Result<()> {
        self.settled().await?;
        self.done(|done| Work::AddColumns(relation.clone(), columns.to_vec(), done)).await?;
        let names = columns.iter().map(|new| new.column.name.clone());
        Arc::make_mut(&mut self.layouts).added(self.control.client(), relation, names).await
    }

    fn positions(&self) -> watch::Receiver<Positions> {
        self.positions.clone()
    }

    fn counters(&self) -> StreamCounters {
        *self.counters.lock().expect("no holder of this lock panics")
    }

    async fn close(mut self: Box<Self>) -> Result<Flushed> {
        self.settled().await?;
        let flushed = self.done(Work::Close).await?;
        self.control.release().await?;
        Ok(flushed)
    }
}

/// The task that applies.
struct Task {
    applier: Applier,
    orders: mpsc::Receiver<(Work, tokio::sync::OwnedSemaphorePermit)>,
    report: watch::Sender<Positions>,
    counters: Arc<Mutex<StreamCounters>>,
    idle: Arc<Semaphore>,
    control: Arc<Control>,
}

impl Task {
    async fn run(mut self) -> Result<()> {
        while let Some((work, permit)) = self.orders.recv().await {
            let done = match work {
                Work::Close(done) => {
                    let closed = self.applier.close().await;
                    if closed.is_ok() {
                        done.send(()).ok();
                    }
                    self.idle.close();
                    return closed;
                }
                work => self.work(work).await,
            };
            if let Err(error) = done {
                // Whoever waits for the permit learns of it before it could come back.
                self.idle.close();
                return Err(error);
            }
            drop(permit);
        }
        Ok(())
    }

    async fn work(&mut self, work: Work) -> Result<()> {
        holds(&self.control)?;
        match work {
            Work::Batch(prepared) => {
                self.applier.apply(&prepared).await?;
                if !self.applier.is_open() {
                    self.report(prepared.batch().end_lsn());
                }
                *self.counters.lock().expect("no holder of this lock panics") =
                    self.applier.counters;
            }
            Work::Advance(lsn, done) => {
                self.applier.advance(lsn).await?;
                self.report(lsn);
                done.send(()).ok();
            }
            Work::AddColumns(relation, columns, done) => {
                let sql = columns::statement(self.applier.client(), &relation, &columns).await?;
                self.applier.alter(&sql).await.map_err(|cause| {
                    server_error("add the source's new columns", Some(&relation), cause)
                        .hint("the target's role must own the table; or add them yourself and run the same command again")
                })?;
                done.send(()).ok();
            }
            Work::Close(_) => {}
        }
        Ok(())
    }

    /// A commit was answered: everything up to here is applied, and durable by the session's `synchronous_commit`.
    fn report(&self, lsn: Lsn) {
        self.report.send_replace(Positions { applied: lsn, durable: Flushed::up_to(lsn) });
    }
}
