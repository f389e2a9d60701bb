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
//! With `stream.lanes` above one a large batch is spread over several such sessions, which commit together up to a lost
//! connection: `lanes` says how that stays exactly once.
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
mod lanes;
mod layouts;
mod open;
mod parameter;
mod reduce;
mod statement;
mod table;

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use tidemark_model::{Lsn, RelationName, StreamBatch, TablePlan};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::task::JoinSet;

use super::control::Control;
use super::session::{Sessions, server_error, wait_for_end};
use super::{PostgresOptions, Triggers};
use crate::plant::is_planted;
use crate::{
    Disposition, Error, Flushed, NewColumn, OpenStream, Positions, Result, Stored, StreamCounters,
    StreamStart, StreamWriter,
};

use apply::{Applier, Fence, Prepared};
use lanes::crew::{Crew, Laned};
use lanes::{Redo, Splitter, record};
use layouts::Layouts;

pub use lanes::LANES_FROM;
pub(super) use lanes::record::claim as claim_lanes;

/// From so many changes on a batch is prepared on a thread of its own.
const SMALL: usize = 200;

/// What the stream has of the job, from one `open_stream` to the next.
#[derive(Default)]
pub(super) struct Hold {
    /// Has the job's lock, if anything of this process has.
    pub(super) control: Option<Arc<Control>>,
    /// The backends that applied last: their commits may still be on their way.
    backends: Vec<i32>,
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
    refuse_lanes_with_triggers(options)?;
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
    for backend in hold.backends.drain(..) {
        wait_for_end(control.client(), backend, &start.job).await?;
    }
    open::compare(open::stored(control.client(), &start.job).await?, start)?;
    let (fence, position) = open::claim(control.client(), start).await?;
    let redo = record::apart(control.client(), &fence, position, &start.tables).await?;
    super::join::leave_others(control.client(), start).await?;
    let layouts = Layouts::read(control.client(), &start.tables).await?;
    let columns = layouts.columns();
    let mut lanes = Lanes {
        count: options.lanes.max(1),
        from: options.lanes_from,
        fence: fence.clone(),
        tables: Arc::clone(&start.tables),
        redo,
        splitter: None,
        rest: Arc::default(),
    };
    match &lanes.redo {
        Some(redo) => {
            tracing::info!(from = %position, until = %redo.until, "the lanes of an earlier run stand apart: what some of them have is passed over");
        }
        None => lanes.begin(control.client()).await?,
    }
    // Which lane has which part of a transaction is decided by its end.
    let takes_undecided = lanes.count == 1 && lanes.redo.is_none();
    let mut appliers = Vec::with_capacity(lanes.count);
    let is_awaited = Arc::new(AtomicBool::new(false));
    for lane in 0..lanes.count {
        let client = open::session(options, sessions, lane).await?;
        hold.backends.push(client.backend_pid());
        let lane = i32::try_from(lane).ok().filter(|lane| *lane > 0);
        appliers.push(Applier::new(
            client,
            Fence { lane, ..fence.clone() },
            Arc::clone(&is_awaited),
        ));
    }
    let epoch = Some(fence.epoch);
    let writer = PostgresStream::new((appliers, is_awaited), control, layouts, lanes, position);
    Ok(OpenStream { writer: Box::new(writer), position, columns, takes_undecided, epoch })
}

/// A trigger or a foreign key that fires in one lane would look for rows that another one has not committed.
fn refuse_lanes_with_triggers(options: &PostgresOptions) -> Result<()> {
    if options.lanes <= 1 || options.triggers == Triggers::Replica {
        return Ok(());
    }
    Err(Error::new(Disposition::Usage, "apply changes in several lanes while triggers fire")
        .hint("set stream.lanes = 1, or target.triggers = \"replica\""))
}

/// What the writer knows of its lanes.
struct Lanes {
    count: usize,
    /// Smaller batches are left to one.
    from: usize,
    fence: Fence,
    tables: Arc<Vec<TablePlan>>,
    /// Those of an earlier run stand apart.
    redo: Option<Redo>,
    /// None as long as one lane applies everything.
    splitter: Option<Splitter>,
    /// So many batches more are given to one lane, because several got into each other's way.
    rest: Arc<AtomicU32>,
}

impl Lanes {
    /// From here on batches may be spread. To be called where all lanes stand at one position, which is durable.
    async fn begin(&mut self, client: &tidemark_wire::Client) -> Result<()> {
        if self.count > 1 {
            let made = record::begin(client, &self.fence, &self.tables, self.count).await?;
            self.splitter = Some(made);
        }
        Ok(())
    }

    /// Whether a batch is worth spreading. The end of a transaction belongs where its parts before are.
    fn take(&self, batch: &StreamBatch, is_open: bool) -> bool {
        let is_whole = !is_open && !batch.continues;
        if self.splitter.is_none() || !is_whole || batch.change_count() < self.from {
            return false;
        }
        let rest = |rest: u32| rest.checked_sub(1);
        self.rest.fetch_update(Ordering::Relaxed, Ordering::Relaxed, rest).is_err()
    }
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
    Lanes(Laned),
    Advance(Lsn, oneshot::Sender<()>),
    AddColumns(RelationName, Vec<NewColumn>, oneshot::Sender<()>),
    Close(oneshot::Sender<()>),
}

/// The writer.
struct PostgresStream {
    control: Arc<Control>,
    layouts: Arc<Layouts>,
    lanes: Lanes,
    work: mpsc::Sender<(Work, tokio::sync::OwnedSemaphorePermit)>,
    /// One permit: whoever has it may ask the applier for something; it comes back when that is done.
    idle: Arc<Semaphore>,
    /// Something waits for that permit.
    is_awaited: Arc<AtomicBool>,
    applier: JoinSet<Result<()>>,
    positions: watch::Receiver<Positions>,
    counters: Arc<Mutex<StreamCounters>>,
    /// End of the last batch that was accepted, and whether its transaction goes on.
    accepted: (Lsn, bool),
}

impl PostgresStream {
    /// The first of the appliers is the one that works alone where need be.
    fn new(
        (mut appliers, is_awaited): (Vec<Applier>, Arc<AtomicBool>),
        control: Arc<Control>,
        layouts: Layouts,
        lanes: Lanes,
        position: Lsn,
    ) -> Self {
        let others = appliers.split_off(1);
        let applier = appliers.remove(0);
        let positions = Positions { applied: position, durable: Flushed::up_to(position) };
        let (report, positions) = watch::channel(positions);
        let idle = Arc::new(Semaphore::new(1));
        // One place: the permit keeps it free.
        let (work, orders) = mpsc::channel(1);
        let counters = Arc::default();
        let mut tasks = JoinSet::new();
        let task = Task {
            applier,
            crew: Crew::new(others, Arc::clone(&lanes.rest)),
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
            lanes,
            work,
            idle,
            is_awaited,
            applier: tasks,
            positions,
            counters,
            accepted: (position, false),
        }
    }

    /// Asks the applier for something once it is idle.
    async fn ask(&mut self, work: Work) -> Result<()> {
        self.is_awaited.store(true, Ordering::Relaxed);
        let permit = Arc::clone(&self.idle).acquire_owned().await;
        self.is_awaited.store(false, Ordering::Relaxed);
        let Ok(permit) = permit else { return Err(self.failure().await) };
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

    /// Waits until the applier has nothing to do. Nothing waited behind what it did last, so that this is on disk.
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

impl PostgresStream {
    /// Takes out what lanes have that are ahead, and begins to use lanes when none is any more.
    async fn pass_over(&mut self, batch: &mut StreamBatch) -> Result<()> {
        let Some(redo) = &mut self.lanes.redo else { return Ok(()) };
        let first = batch.transactions.first().map_or(Lsn::ZERO, |first| first.head.end_lsn);
        if first <= redo.until {
            if is_planted("forget-lanes") {
                return Ok(());
            }
            return redo.pass_over(&mut batch.transactions);
        }
        if self.accepted.1 {
            return Ok(());
        }
        // What was passed over is stored as the job's position before the rules are written anew.
        self.settled().await?;
        self.lanes.redo = None;
        self.lanes.begin(self.control.client()).await
    }

    /// Reduces and encodes a batch, for one lane or for several; `is_open`: the batch before was a part of its transaction.
    async fn prepare(&mut self, batch: StreamBatch, is_open: bool) -> Result<Work> {
        let layouts = Arc::clone(&self.layouts);
        let end = (batch.end_lsn(), batch.continues);
        let splitter =
            if self.lanes.take(&batch, is_open) { self.lanes.splitter.take() } else { None };
        let is_small = batch.change_count() < SMALL;
        let StreamBatch { mut transactions, reservation, .. } = batch;
        if let Some(mut splitter) = splitter {
            let split = in_thread(move || (splitter.split(transactions), splitter)).await?;
            self.lanes.splitter = Some(split.1);
            match split.0 {
                Ok(split) => {
                    return Ok(Work::Lanes(Laned::new(split, layouts, reservation).await?));
                }
                Err(all) => transactions = all,
            }
        }
        let prepare = move || Prepared::new(transactions, end, Some(reservation), layouts);
        Ok(Work::Batch(if is_small { prepare()? } else { in_thread(prepare).await?? }))
    }
}

/// Does something that takes its time on a thread of its own.
async fn in_thread<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(|panic| {
        Error::new(Disposition::Internal, "prepare a batch").because(panic.to_string())
    })
}

#[async_trait]
impl StreamWriter for PostgresStream {
    async fn accept(&mut self, mut batch: StreamBatch) -> Result<()> {
        holds(&self.control)?;
        let (last, is_open) = self.accepted;
        let end_lsn = batch.end_lsn();
        // The end of a transaction that is applied while it comes is known with its last part only.
        if (is_open && end_lsn < last) || (!is_open && end_lsn <= last) {
            return Err(Error::new(
                Disposition::Internal,
                format!("apply a batch that ends at {end_lsn} after {last}"),
            ));
        }
        self.pass_over(&mut batch).await?;
        self.accepted = (end_lsn, batch.continues);
        self.learn(&batch).await?;
        let work = self.prepare(batch, is_open).await?;
        self.ask(work).await
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
    crew: Crew,
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
                    let closed = match self.crew.close().await {
                        Ok(()) => self.applier.close().await,
                        failed => failed,
                    };
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
                    self.report(prepared.end_lsn());
                }
                self.count();
            }
            Work::Lanes(batch) => {
                let lsn = batch.end_lsn();
                if !self.crew.apply(&mut self.applier, &batch).await? {
                    let prepared = in_thread(move || batch.alone()).await??;
                    self.applier.apply(&prepared).await?;
                }
                self.report(lsn);
                self.count();
            }
            Work::Advance(lsn, done) => {
                self.applier.advance(lsn).await?;
                self.report(lsn);
                done.send(()).ok();
            }
            Work::AddColumns(relation, columns, done) => {
                self.crew.forget_statements();
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

    fn count(&self) {
        *self.counters.lock().expect("no holder of this lock panics") = self.applier.counters;
    }

    /// A commit was answered: everything up to here is applied, and durable if it was waited for on disk.
    fn report(&self, lsn: Lsn) {
        let is_durable = self.applier.is_durable() || is_planted("durable-before-disk");
        self.report.send_modify(|positions| {
            positions.applied = lsn;
            if is_durable {
                positions.durable = Flushed::up_to(lsn);
            }
        });
    }
}
