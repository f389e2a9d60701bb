//! Applies batches to the target, one target transaction for a batch or for the parts of one transaction.
//!
//! **Invariant:** the rows and the position that belongs to them are committed by one transaction, which changes exactly one
//! row of `tidemark.progress`: that of this job, run and epoch. Where another run has taken the job over there is no such
//! row, and nothing is committed (`hazards.md` G90, G101).
//!
//! **Invariant:** a position is called durable only after the server has said that a commit at or behind it is on disk
//! (`synchronous_commit = on` in this session; a flush of the WAL takes along what was written before). A commit that another
//! batch waits behind need not wait for the disk: one in two seconds does. An answer that is lost leaves the outcome open: the
//! error says so (`Retry`), and the stored position tells when the stream is opened again (G93).
//!
//! ```text
//! BEGIN                        first part        SAVEPOINT     every further part
//!   net effect: statements sent without waiting, counts compared
//!     | a wrong count, or the target refuses
//!   back to the start of this part, then one change after the other; what fails now is named and ends the stream
//!     | deadlock, lock timeout: back to the start of this part and again, a few times
//! position; COMMIT             last part
//! ```
//!
//! Where there are several lanes (`lanes`), each is such a session with a position of its own: what it has [staged](Applier::stage)
//! waits for the others before it is committed.

use std::collections::HashMap;
use std::future::{Future, poll_fn};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::SinkExt;
use futures::future::maybe_done;
use tidemark_model::{Lsn, Reservation, Transaction};
use tidemark_wire::{Client, tokio_postgres};
use tokio_postgres::Statement;
use tokio_postgres::types::ToSql;

use super::super::record::held;
use super::super::session::{row_hint, server_error};
use super::exact::{self, Single};
use super::layouts::Layouts;
use super::reduce::{Reduced, reduce};
use super::statement::{Step, steps};
use crate::plant::is_planted;
use crate::{Disposition, Error, Result, StreamCounters};

/// How often a part is begun again after a deadlock or a lock timeout.
const ATTEMPTS: u32 = 8;
/// Statements that are kept prepared; a table has one per set of columns that its updates write.
const STATEMENTS: usize = 2000;
/// Changes that are sent without waiting while they are applied one by one.
const WINDOW: usize = 256;
/// So often a commit waits for the disk, however many batches wait behind it.
const ON_DISK_EVERY: Duration = Duration::from_secs(2);
/// The first wait after a deadlock; it doubles.
const PAUSE: Duration = Duration::from_millis(20);

/// A batch that is ready to be applied.
pub(super) struct Prepared {
    /// The changes, for the exact order.
    transactions: Vec<Transaction>,
    /// The position that belongs to it.
    end_lsn: Lsn,
    /// Its transaction goes on in the next one.
    continues: bool,
    _reservation: Option<Reservation>,
    layouts: Arc<Layouts>,
    /// The net effect; none where only the exact order will do.
    steps: Option<Vec<Step>>,
}

impl Prepared {
    /// Reduces a batch and encodes what is left.
    ///
    /// # Errors
    /// A change that no target could apply.
    pub(super) fn new(
        transactions: Vec<Transaction>,
        (end_lsn, continues): (Lsn, bool),
        reservation: Option<Reservation>,
        layouts: Arc<Layouts>,
    ) -> Result<Self> {
        let steps = match reduce(&transactions, &layouts)? {
            Reduced::Parts(parts) => steps(parts),
            Reduced::Doubtful => None,
        };
        Ok(Self { transactions, end_lsn, continues, _reservation: reservation, layouts, steps })
    }

    pub(super) fn end_lsn(&self) -> Lsn {
        self.end_lsn
    }

    /// Whether nothing is to be done but to store the position.
    pub(super) fn is_empty(&self) -> bool {
        self.transactions.is_empty()
    }

    pub(super) fn into_transactions(self) -> Vec<Transaction> {
        self.transactions
    }

    fn change_count(&self) -> u64 {
        self.transactions.iter().map(|transaction| transaction.changes.len() as u64).sum()
    }
}

/// Who may write the position.
#[derive(Debug, Clone)]
pub(super) struct Fence {
    pub(super) job: String,
    pub(super) run: String,
    pub(super) epoch: i64,
    /// Which lane writes its position, in a row of its own; none for the first, whose position is the job's.
    pub(super) lane: Option<i32>,
}

/// The session that applies.
pub(super) struct Applier {
    client: Client,
    fence: Fence,
    statements: HashMap<String, Statement>,
    /// A part was applied whose transaction goes on.
    is_open: bool,
    /// Another batch waits for this one.
    is_awaited: Arc<AtomicBool>,
    /// When a commit was waited for on disk.
    waited_at: Instant,
    /// There was none since that was not.
    is_durable: bool,
    pub(super) counters: StreamCounters,
}

/// Something to be sent.
enum Request<'a> {
    Run(&'static str),
    Step(&'a Step, Statement),
    /// The position, as text.
    Position(Statement, String),
}

/// Why a part was not applied.
enum Failure {
    /// The net effect did not fit: try the exact order.
    Unfit,
    /// Somebody was in the way: try again.
    Contended(Error),
    /// It ends here.
    Fatal(Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Fatal(error)
    }
}

/// SQLSTATEs that say that somebody was in the way: serialization, deadlock, lock not available, cancelled.
fn is_contended(cause: &tokio_postgres::Error) -> bool {
    cause.code().is_some_and(|code| matches!(code.code(), "40001" | "40P01" | "55P03" | "57014"))
}

impl Applier {
    pub(super) fn new(client: Client, fence: Fence, is_awaited: Arc<AtomicBool>) -> Self {
        Self {
            client,
            fence,
            statements: HashMap::new(),
            is_open: false,
            is_awaited,
            waited_at: Instant::now(),
            is_durable: true,
            counters: StreamCounters::default(),
        }
    }

    /// Whether the parts of a transaction are applied whose last one has not come.
    pub(super) fn is_open(&self) -> bool {
        self.is_open
    }

    /// Whether everything that was committed is on disk.
    pub(super) fn is_durable(&self) -> bool {
        self.is_durable
    }

    /// Applies a batch; commits unless its transaction goes on.
    pub(super) async fn apply(&mut self, prepared: &Prepared) -> Result<()> {
        let mut exact = prepared.steps.is_none();
        let mut contended = 0;
        let mut pause = PAUSE;
        while let Err(failure) = self.attempt(prepared, exact).await {
            match failure {
                Failure::Fatal(error) => return Err(error),
                Failure::Unfit if exact => {
                    return Err(Error::new(Disposition::Internal, "apply changes one by one"));
                }
                Failure::Unfit => exact = true,
                Failure::Contended(error) => {
                    contended += 1;
                    if contended == ATTEMPTS {
                        return Err(Error { disposition: Disposition::Unavailable, ..error }
                            .hint("another session on the target keeps these rows or tables locked: end it and run the same command again"));
                    }
                    tokio::time::sleep(pause).await;
                    pause *= 2;
                }
            }
            self.back().await?;
        }
        if exact {
            self.counters.exact_order += 1;
        }
        self.counters.changes += prepared.change_count();
        self.is_open = prepared.continues;
        if !self.is_open {
            self.counters.transactions += prepared.transactions.len() as u64;
            self.counters.commits += 1;
        }
        Ok(())
    }

    /// Executes one lane's part of a batch that ends at `lsn`, all but the COMMIT; false where one lane had better apply all
    /// of the batch.
    ///
    /// # Errors
    /// The session was lost, or the job was taken over.
    pub(super) async fn stage(&mut self, prepared: &Prepared, lsn: Lsn) -> Result<bool> {
        let Some(steps) = &prepared.steps else { return Ok(false) };
        match self.staged(steps, lsn).await {
            Ok(()) => Ok(true),
            Err(Failure::Unfit | Failure::Contended(_)) => Ok(false),
            Err(Failure::Fatal(error)) => Err(error),
        }
    }

    async fn staged(&mut self, steps: &[Step], lsn: Lsn) -> Result<(), Failure> {
        self.requests(vec![Request::Run(BEGIN_IN_LANE)]).await?;
        let mut requests = self.net(steps).await?;
        let position = self.prepare(self.fence.statement()).await.map_err(position_error)?;
        requests.push(Request::Position(position, lsn.to_string()));
        self.requests(requests).await
    }

    /// Takes back what was staged.
    pub(super) async fn undo(&mut self) -> Result<()> {
        let undone = self.client.batch_execute("ROLLBACK").await;
        undone.map_err(|cause| server_error("take a lane's part of a batch back", None, cause))
    }

    /// Commits what was staged. Whatever goes wrong here leaves the lanes apart, and opening the stream again brings them
    /// together.
    pub(super) async fn commit_staged(&mut self, lsn: Lsn) -> Result<()> {
        self.commit(lsn, true).await.map_err(|failure| match failure {
            Failure::Contended(error) | Failure::Fatal(error) => {
                Error { disposition: Disposition::Retry, ..error }
            }
            Failure::Unfit => Error::new(Disposition::Internal, "commit a lane's part of a batch"),
        })
    }

    /// Every statement is prepared anew.
    pub(super) fn forget_statements(&mut self) {
        self.statements.clear();
    }

    /// Stores a position that no rows belong to.
    pub(super) async fn advance(&mut self, lsn: Lsn) -> Result<()> {
        let statement = self.prepare(self.fence.statement()).await.map_err(position_error)?;
        let request = Request::Position(statement, lsn.to_string());
        let rows = self.request(&request).await.map_err(position_error)?;
        self.note_commit(true);
        self.expect_own(rows)
    }

    /// Runs DDL in a transaction of its own; every statement is prepared anew after it.
    pub(super) async fn alter(&mut self, sql: &str) -> Result<(), tokio_postgres::Error> {
        self.forget_statements();
        self.client.batch_execute(sql).await
    }

    pub(super) fn client(&self) -> &Client {
        &self.client
    }

    /// Lets the origin go and says goodbye.
    pub(super) async fn close(self) -> Result<()> {
        self.client
            .batch_execute("SELECT pg_replication_origin_session_reset()")
            .await
            .map_err(|cause| server_error("let go of the replication origin", None, cause))?;
        self.client.close().await;
        Ok(())
    }

    fn expect_own(&self, rows: u64) -> Result<()> {
        if rows == 1 { Ok(()) } else { Err(held(&self.fence.job)) }
    }

    async fn attempt(&mut self, prepared: &Prepared, exact: bool) -> Result<(), Failure> {
        let begin = match self.is_open {
            true => "SAVEPOINT tidemark_part",
            false => "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE",
        };
        let lsn = prepared.end_lsn;
        let position = self.prepare(self.fence.statement()).await.map_err(position_error)?;
        let end = match (prepared.continues, self.is_open) {
            (true, true) => Some(Request::Run("RELEASE SAVEPOINT tidemark_part")),
            (true, false) => None,
            (false, _) => Some(Request::Position(position, lsn.to_string())),
        };
        let mut requests = vec![Request::Run(begin)];
        if self.is_open {
            // A statement that cannot be prepared ends the transaction: the way back must be there before.
            self.requests(std::mem::take(&mut requests)).await?;
        }
        match (&prepared.steps, exact) {
            (Some(steps), false) => requests.extend(self.net(steps).await?),
            _ => {
                self.requests(std::mem::take(&mut requests)).await?;
                self.exact(prepared).await?;
            }
        }
        requests.extend(end);
        self.requests(requests).await?;
        if prepared.continues {
            return Ok(());
        }
        let is_due = self.waited_at.elapsed() >= ON_DISK_EVERY;
        let on_disk = is_due || !self.is_awaited.load(Ordering::Relaxed);
        self.commit(lsn, on_disk && !is_planted("durable-before-disk")).await
    }

    /// The requests of a net effect.
    async fn net<'a>(&mut self, steps: &'a [Step]) -> Result<Vec<Request<'a>>, Failure> {
        let mut requests = Vec::with_capacity(steps.len());
        for step in steps {
            let statement = self.prepare(step.sql()).await;
            let statement = statement.map_err(|cause| sort(step, cause))?;
            let request = Request::Step(step, statement);
            match step.is_sorted() {
                true => {
                    requests.extend([Request::Run(SORTED), request, Request::Run(LOOKED_UP)]);
                }
                false => requests.push(request),
            }
        }
        Ok(requests)
    }

    /// Sends requests without waiting for the answers of those before; COPY has to wait.
    async fn requests(&self, mut requests: Vec<Request<'_>>) -> Result<(), Failure> {
        while !requests.is_empty() {
            let is_copy =
                |request: &Request<'_>| matches!(request, Request::Step(Step::Copy { .. }, _));
            let count = requests.iter().position(is_copy).unwrap_or(requests.len()).max(1);
            let group: Vec<_> = requests.drain(..count).collect();
            let answers = pipelined(group.iter().map(|request| self.request(request))).await;
            for (request, answer) in group.iter().zip(answers) {
                match (request, answer) {
                    (Request::Run(_), Ok(_)) => {}
                    (Request::Run(_), Err(cause)) => {
                        return Err(server_error("apply a batch", None, cause).into());
                    }
                    (Request::Step(step, _), answer) => {
                        let touched = answer.map_err(|cause| sort(step, cause))?;
                        if step.rows().is_some_and(|rows| rows != touched) {
                            tracing::debug!(relation = %step.table().name, touched, "another number of rows than meant");
                            return Err(Failure::Unfit);
                        }
                    }
                    (Request::Position(..), Ok(rows)) => self.expect_own(rows)?,
                    (Request::Position(..), Err(cause)) => {
                        let contended = is_contended(&cause);
                        let error = position_error(cause);
                        return Err(if contended {
                            Failure::Contended(error)
                        } else {
                            error.into()
                        });
                    }
                }
            }
        }
        Ok(())
    }

    async fn request(&self, request: &Request<'_>) -> Result<u64, tokio_postgres::Error> {
        match request {
            Request::Run(sql) => self.client.batch_execute(sql).await.map(|()| 0),
            Request::Step(step, statement) => self.run_step(step, statement).await,
            Request::Position(statement, lsn) => {
                let Fence { job, run, epoch, lane } = &self.fence;
                match lane {
                    None => self.client.execute(statement, &[lsn, job, run, epoch]).await,
                    Some(lane) => self.client.execute(statement, &[lsn, job, lane, epoch]).await,
                }
            }
        }
    }

    async fn run(&self, sql: &str) -> Result<()> {
        let done = self.client.batch_execute(sql).await;
        done.map_err(|cause| server_error("apply a batch", None, cause))
    }

    /// Takes back what was done of the present part.
    async fn back(&mut self) -> Result<()> {
        match self.is_open {
            true => {
                self.run("ROLLBACK TO SAVEPOINT tidemark_part; RELEASE SAVEPOINT tidemark_part")
                    .await
            }
            false => self.run("ROLLBACK").await,
        }
    }

    async fn commit(&mut self, lsn: Lsn, on_disk: bool) -> Result<(), Failure> {
        let sql = if on_disk { "COMMIT" } else { "SET LOCAL synchronous_commit = off; COMMIT" };
        self.client.batch_execute(sql).await.map_err(|cause| {
            let contended = is_contended(&cause);
            let attempt = format!("commit the transactions up to {lsn} on the target");
            let error = server_error(attempt, None, cause);
            if contended { Failure::Contended(error) } else { Failure::Fatal(error) }
        })?;
        self.note_commit(on_disk);
        Ok(())
    }

    fn note_commit(&mut self, on_disk: bool) {
        self.is_durable = on_disk;
        if on_disk {
            self.waited_at = Instant::now();
        }
    }

    /// A prepared statement, kept for the next batch.
    async fn prepare(&mut self, sql: &str) -> Result<Statement, tokio_postgres::Error> {
        if let Some(statement) = self.statements.get(sql) {
            return Ok(statement.clone());
        }
        if self.statements.len() >= STATEMENTS {
            self.statements.clear();
        }
        let statement = self.client.prepare(sql).await?;
        self.statements.insert(sql.to_owned(), statement.clone());
        Ok(statement)
    }

    async fn run_step(
        &self,
        step: &Step,
        statement: &Statement,
    ) -> Result<u64, tokio_postgres::Error> {
        match step {
            Step::Execute { parameters, .. } => {
                let values = parameters.iter().map(|value| value as &(dyn ToSql + Sync));
                self.client.execute_raw(statement, values).await
            }
            Step::Truncate { .. } => self.client.execute(statement, &[]).await,
            Step::Copy { pieces, .. } => {
                let mut sink = Box::pin(self.client.copy_in::<_, Bytes>(statement).await?);
                for piece in pieces {
                    sink.feed(piece.clone()).await?;
                }
                sink.as_mut().finish().await
            }
        }
    }

    /// Applies the changes one by one.
    async fn exact(&mut self, prepared: &Prepared) -> Result<(), Failure> {
        for transaction in &prepared.transactions {
            let end_lsn = transaction.head.end_lsn;
            for window in transaction.changes.chunks(WINDOW) {
                let singles: Vec<Single> = window
                    .iter()
                    .map(|change| exact::statements(change, &prepared.layouts))
                    .collect::<Result<_>>()
                    .map_err(|error| at(error, end_lsn))?;
                self.window(&singles, end_lsn).await?;
            }
        }
        Ok(())
    }

    async fn window(&mut self, singles: &[Single], end_lsn: Lsn) -> Result<(), Failure> {
        let mut all = Vec::with_capacity(singles.len());
        for single in singles {
            for step in &single.steps {
                let statement = self.prepare(step.sql()).await;
                all.push((
                    single,
                    step,
                    statement.map_err(|cause| refused(single, end_lsn, cause))?,
                ));
            }
        }
        let answers =
            pipelined(all.iter().map(|(_, step, statement)| self.run_step(step, statement)));
        for ((single, step, _), answer) in all.iter().zip(answers.await) {
            let touched = answer.map_err(|cause| refused(single, end_lsn, cause))?;
            if step.rows().is_some_and(|rows| rows != touched) {
                return Err(not_one_row(single, end_lsn, touched).into());
            }
        }
        Ok(())
    }
}

/// Runs requests so that all are sent, in this order, before the first answer is waited for.
async fn pipelined<F: Future>(requests: impl Iterator<Item = F>) -> Vec<F::Output> {
    let mut requests: Vec<_> = requests.map(|request| Box::pin(maybe_done(request))).collect();
    // The first poll of a request sends it.
    poll_fn(|context| {
        for request in &mut requests {
            let _sent = request.as_mut().poll(context);
        }
        Poll::Ready(())
    })
    .await;
    let mut answers = Vec::with_capacity(requests.len());
    for mut request in requests {
        request.as_mut().await;
        answers.extend(request.as_mut().take_output());
    }
    answers
}

fn not_one_row(single: &Single, end_lsn: Lsn, touched: u64) -> Error {
    Error::new(
        Disposition::Refused,
        format!("{}: the target has {touched} such rows", naming(single, end_lsn)),
    )
    .on(&single.table.name)
    .hint("something else writes to the target's table, or it was not whole: mend the row there and run the same command again, or take a new snapshot (tidemark cleanup, then sync)")
}

/// A join that has no index is made by sorting both sides; the session's own settings come back after it.
const SORTED: &str = "SET LOCAL enable_mergejoin = on; SET LOCAL enable_nestloop = off";
const LOOKED_UP: &str = "SET LOCAL enable_mergejoin = off; SET LOCAL enable_nestloop = on";

impl Fence {
    /// The statement that moves the position; the planted defects leave it where it is.
    fn statement(&self) -> &'static str {
        match self.lane {
            Some(_) if crate::plant::is_planted("lane-without-position") => LANE_KEPT,
            Some(_) => LANE_POSITION,
            None if crate::plant::is_planted("commit-without-progress") => POSITION_KEPT,
            None => POSITION,
        }
    }
}

/// A lane gives way soon: it may wait for a session that waits for another lane, which no server can see.
const BEGIN_IN_LANE: &str =
    "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE; SET LOCAL lock_timeout = '2s'";

const POSITION_KEPT: &str = "UPDATE tidemark.progress SET end_lsn = least(end_lsn, $1::text::pg_lsn) \
    WHERE job = $2 AND wave = '' AND run = $3 AND epoch = $4 AND phase = 'follow'";

/// Moves the position; exactly one row, or the job is another's.
const POSITION: &str = "UPDATE tidemark.progress SET end_lsn = $1::text::pg_lsn \
    WHERE job = $2 AND wave = '' AND run = $3 AND epoch = $4 AND phase = 'follow'";

const LANE_KEPT: &str = "UPDATE tidemark.lane SET end_lsn = least(end_lsn, $1::text::pg_lsn) \
    WHERE job = $2 AND lane = $3 AND epoch = $4";

/// The same for a lane that has a row of its own.
const LANE_POSITION: &str = "UPDATE tidemark.lane SET end_lsn = $1::text::pg_lsn \
    WHERE job = $2 AND lane = $3 AND epoch = $4";

fn position_error(cause: tokio_postgres::Error) -> Error {
    server_error("store the position on the target", None, cause)
}

/// What follows from a statement of the net effect that failed: whatever the target refuses is tried in the exact order,
/// which may do better and otherwise names the change.
fn sort(step: &Step, cause: tokio_postgres::Error) -> Failure {
    let contended = is_contended(&cause);
    let error = server_error("apply a batch", Some(&step.table().name), cause);
    match error.disposition {
        _ if contended => Failure::Contended(error),
        Disposition::Refused => {
            tracing::debug!(relation = %step.table().name, cause = ?error.source, "the net effect was refused");
            Failure::Unfit
        }
        _ => Failure::Fatal(error),
    }
}

fn naming(single: &Single, end_lsn: Lsn) -> String {
    let key = match single.key_names.as_str() {
        "" => String::new(),
        names => format!(", key columns {names}"),
    };
    format!("apply an {} of the transaction that ends at {end_lsn}{key}", single.what)
        .replace("an delete", "a delete")
        .replace("an truncate", "a truncate")
}

fn refused(single: &Single, end_lsn: Lsn, cause: tokio_postgres::Error) -> Failure {
    let contended = is_contended(&cause);
    let hint = row_hint(
        &cause,
        "mend the target's table or the row there, then run the same command again: nothing of this transaction was applied",
    );
    let error = server_error(naming(single, end_lsn), Some(&single.table.name), cause);
    match error.disposition {
        _ if contended => Failure::Contended(error),
        Disposition::Refused => Failure::Fatal(error.hint(hint)),
        _ => Failure::Fatal(error),
    }
}

fn at(error: Error, end_lsn: Lsn) -> Error {
    Error {
        attempt: format!("{} in the transaction that ends at {end_lsn}", error.attempt),
        ..error
    }
}
