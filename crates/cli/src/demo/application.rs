//! The application: two services that write all the while, each to the server that it was told.
//!
//! **Invariant:** it keeps books of its own: of every transaction that a server has said is committed, and of every value that
//! a sequence has given it. What is refused (a fence, the end of a session) it tries again with the same number until it is
//! committed; whether an attempt that was cut off was committed, its receipt tells. Each writer has keys of its own, so
//! that no two wait for each other in a circle.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tidemark_wire::tokio_postgres::{self, Statement};
use tidemark_wire::{Client, ConnectSpec};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::data::OPEN;
use super::services::{SERVICES, Service, Side, told_in};
use crate::exit::{ExitCode, Failure};

/// A transaction of each writer, at most this often: a busy shop that leaves the machine room to copy.
const EVERY: Duration = Duration::from_millis(8);
/// One that was refused is tried again so soon.
const AGAIN: Duration = Duration::from_millis(20);
/// Whoever is refused for longer gives up.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two looks at what the writers do.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// What a service has noted.
#[derive(Debug, Default)]
pub(super) struct Book {
    /// By writer and number: the value that the receipt got from its sequence.
    pub(super) committed: BTreeMap<(i32, i64), i64>,
    /// Attempts that were refused.
    pub(super) refused: u64,
    /// Values that a sequence gave a second time, and keys made of a sequence that were there already.
    pub(super) given_twice: u64,
    given: HashSet<i64>,
    waited: Waited,
    /// Where each writer has committed since that was asked for.
    on: HashMap<i32, Side>,
}

/// What refused writers went through.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Waited {
    /// Attempts.
    pub(super) refused: u64,
    /// The longest time from an attempt that was refused to one that was committed.
    pub(super) longest: Duration,
}

impl Book {
    fn note(&mut self, key: (i32, i64), side: Side, id: i64) {
        self.committed.insert(key, id);
        self.on.insert(key.0, side);
    }

    fn note_value(&mut self, id: i64) {
        self.given_twice += u64::from(!self.given.insert(id));
    }

    fn note_wait(&mut self, refused: u64, time: Duration) {
        self.refused += refused;
        self.waited.refused += refused;
        self.waited.longest = self.waited.longest.max(time);
    }
}

/// The services at work.
#[derive(Debug)]
pub(super) struct Application {
    tasks: JoinSet<Result<(), Failure>>,
    stop: CancellationToken,
    books: [Arc<Mutex<Book>>; 2],
    started: Instant,
}

impl Application {
    /// Starts all writers; they look into the directory for where to write.
    pub(super) fn start(directory: &Path, sides: [&ConnectSpec; 2]) -> Self {
        let sides = sides.map(|spec| spec.clone().with_application_name("shop"));
        let (stop, books) = (CancellationToken::new(), <[Arc<Mutex<Book>>; 2]>::default());
        let mut tasks = JoinSet::new();
        for (service, book) in SERVICES.iter().zip(&books) {
            for number in 0..service.writers {
                let writer = Writer {
                    service,
                    number,
                    sides: sides.clone(),
                    told: directory.join(told_in(service.wave)),
                    book: Arc::clone(book),
                    session: None,
                    stop: stop.clone(),
                };
                tasks.spawn(writer.work());
            }
        }
        Self { tasks, stop, books, started: Instant::now() }
    }

    /// Transactions so far.
    pub(super) fn committed(&self) -> usize {
        self.books.iter().map(|book| locked(book).committed.len()).sum()
    }

    /// How long it has been at work.
    pub(super) fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// The last transaction of a service.
    pub(super) fn last_of(&self, service: usize) -> Option<(i32, i64)> {
        let book = locked(&self.books[service]);
        let last = book.committed.keys().rfind(|(writer, _)| *writer == 0);
        last.copied()
    }

    /// Waits until every writer of a service has committed on this side from now on.
    pub(super) async fn writes_on(&mut self, service: usize, side: Side) -> Result<(), Failure> {
        locked(&self.books[service]).on.clear();
        let (begun, writers) = (Instant::now(), SERVICES[service].writers);
        loop {
            if let Some(ended) = self.tasks.try_join_next() {
                joined(ended)?;
                return Err(Failure::internal("keep the writers writing: one has ended"));
            }
            let on = |writer| locked(&self.books[service]).on.get(&writer) == Some(&side);
            if (0..writers).all(on) {
                return Ok(());
            }
            if begun.elapsed() > PATIENCE {
                let attempt =
                    format!("see {} write to the {}", SERVICES[service].name, side.word());
                return Err(Failure::new(ExitCode::Unavailable, attempt));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// What its writers went through since this was asked last.
    pub(super) fn waited(&self, service: usize) -> Waited {
        std::mem::take(&mut locked(&self.books[service]).waited)
    }

    /// Lets each writer end its transaction; gives the books.
    pub(super) async fn stop(&mut self) -> Result<[Book; 2], Failure> {
        self.stop.cancel();
        while let Some(ended) = self.tasks.join_next().await {
            joined(ended)?;
        }
        Ok([0, 1].map(|service: usize| std::mem::take(&mut *locked(&self.books[service]))))
    }
}

fn joined(ended: Result<Result<(), Failure>, tokio::task::JoinError>) -> Result<(), Failure> {
    ended.map_err(|error| Failure::internal("join a writer").because(&error))?
}

fn locked(book: &Mutex<Book>) -> MutexGuard<'_, Book> {
    book.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One connection that writes.
struct Writer {
    service: &'static Service,
    number: i32,
    sides: [ConnectSpec; 2],
    told: PathBuf,
    book: Arc<Mutex<Book>>,
    session: Option<Session>,
    stop: CancellationToken,
}

/// A connection with its statements.
struct Session {
    side: Side,
    client: Client,
    receipt: Statement,
    look: Statement,
    work: Vec<Vec<Statement>>,
}

/// Why an attempt was not committed.
enum Trouble {
    /// It is tried again.
    Refused(String),
    /// A key made of a sequence was there already.
    Taken,
    /// It must not be.
    Wrong(Failure),
}

impl From<tokio_postgres::Error> for Trouble {
    fn from(error: tokio_postgres::Error) -> Self {
        match error.code().map(|code| code.code()) {
            // The connection broke: as a server is stopped, or a session is ended.
            None => Self::Refused(error.to_string()),
            // Read-only, or a conflict with somebody else.
            Some("25006" | "40001" | "40P01" | "55P03") => Self::Refused(error.to_string()),
            Some(code) if code.starts_with("57P") || code.starts_with("08") => {
                Self::Refused(error.to_string())
            }
            Some("23505") => Self::Taken,
            Some(_) => Self::Wrong(
                Failure::new(ExitCode::Unavailable, "write as the application does")
                    .because(&error),
            ),
        }
    }
}

impl Writer {
    async fn work(mut self) -> Result<(), Failure> {
        let mut pace = tokio::time::interval(EVERY);
        pace.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        for number in 0.. {
            pace.tick().await;
            if self.stop.is_cancelled() {
                break;
            }
            self.until_committed(number).await?;
        }
        Ok(())
    }

    async fn until_committed(&mut self, number: i64) -> Result<(), Failure> {
        let (begun, mut refused) = (Instant::now(), 0);
        loop {
            let (why, pause) = match self.attempt(number).await {
                Ok((side, id)) => {
                    let mut book = locked(&self.book);
                    book.note((self.number, number), side, id);
                    if refused > 0 {
                        book.note_wait(refused, begun.elapsed());
                    }
                    return Ok(());
                }
                Err(Trouble::Wrong(failure)) => return Err(failure),
                Err(Trouble::Taken) => {
                    locked(&self.book).given_twice += 1;
                    ("its key is taken".to_owned(), Duration::ZERO)
                }
                Err(Trouble::Refused(why)) => {
                    self.session = None;
                    (why, AGAIN)
                }
            };
            refused += 1;
            if self.stop.is_cancelled() {
                return Ok(());
            }
            if begun.elapsed() > PATIENCE {
                let attempt = format!("write for {}", self.service.name);
                return Err(Failure::new(ExitCode::Unavailable, attempt).cause(why));
            }
            tokio::time::sleep(pause).await;
        }
    }

    /// One transaction: where it was committed, and what its receipt got from the sequence.
    async fn attempt(&mut self, number: i64) -> Result<(Side, i64), Trouble> {
        let side = self.side();
        if self.session.as_ref().is_none_or(|session| session.side != side) {
            self.session = None;
            self.session = Some(Session::open(self.service, side, &self.sides).await?);
        }
        let Some(session) = &mut self.session else {
            return Err(Trouble::Refused("there is no session".to_owned()));
        };
        let transaction = session.client.transaction().await?;
        let key: [&(dyn tokio_postgres::types::ToSql + Sync); 2] = [&self.number, &number];
        let Some(row) = transaction.query_opt(&session.receipt, &key).await? else {
            // An attempt that was cut off was committed all the same.
            return Ok((side, transaction.query_one(&session.look, &key).await?.get(0)));
        };
        let id = row.get(0);
        locked(&self.book).note_value(id);
        let kinds = i64::try_from(session.work.len()).unwrap_or(1);
        let own = number / kinds * i64::from(self.service.writers) + i64::from(self.number);
        let kind = usize::try_from(number % kinds).unwrap_or_default();
        for statement in &session.work[kind] {
            match statement.params() {
                [] => transaction.execute(statement, &[]).await?,
                _ => transaction.execute(statement, &[&own]).await?,
            };
        }
        transaction.commit().await?;
        Ok((side, id))
    }

    /// Where the switch hook has told it to write.
    fn side(&self) -> Side {
        match fs::read_to_string(&self.told).is_ok_and(|told| told.trim() == "target") {
            true => Side::Target,
            false => Side::Source,
        }
    }
}

impl Session {
    async fn open(
        service: &Service,
        side: Side,
        sides: &[ConnectSpec; 2],
    ) -> Result<Self, Trouble> {
        let connected = sides[side as usize].connect().await;
        let client = connected.map_err(|error| Trouble::Refused(error.to_string()))?;
        client.batch_execute(OPEN).await?;
        let table = service.receipts;
        let receipt = format!(
            "INSERT INTO {table} (writer, number) VALUES ($1, $2) ON CONFLICT (writer, number) DO NOTHING RETURNING id"
        );
        let receipt = client.prepare(&receipt).await?;
        let look = format!("SELECT id FROM {table} WHERE writer = $1 AND number = $2");
        let look = client.prepare(&look).await?;
        let mut work = Vec::new();
        for texts in service.work {
            let mut statements = Vec::new();
            for text in *texts {
                statements.push(client.prepare(text).await?);
            }
            work.push(statements);
        }
        Ok(Self { side, client, receipt, look, work })
    }
}
