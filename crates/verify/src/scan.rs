//! Reads chunks of one moment of a side and hands their rows over.
//!
//! **Invariant:** a chunk counts only when the server said how many rows it sent and as many were taken; a chunk whose
//! connection was lost counts for nothing and is read again under the same snapshot.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tidemark_digest::{DigestKey, RowHasher};
use tidemark_model::{Budget, ChunkRange, ChunkSpec, Cpu, Oid, Relation, Tuples};
use tidemark_pipeline::{Error, Kind, Result};
use tidemark_source::Reader;
use tokio_util::sync::CancellationToken;

use crate::pair::Pair;
use crate::side::View;
use crate::{Progress, Request, Which};

/// Bytes of rows that are hashed at a time.
const BATCH_BYTES: usize = 1 << 20;
/// How often a chunk is read while the snapshot lives.
const ATTEMPTS: u32 = 6;
/// Wait before the second try; doubles.
const BACKOFF: Duration = Duration::from_millis(200);

/// What all scans of one run share.
#[derive(Clone)]
pub struct Tools {
    /// Rows are hashed there.
    pub cpu: Cpu,
    /// Bytes of rows on their way.
    pub budget: Budget,
    /// What rows are hashed with.
    pub key: DigestKey,
    pub(crate) throttle: Arc<Throttle>,
    pub(crate) progress: Arc<Progress>,
    pub(crate) stop: CancellationToken,
    /// Sessions that read each side.
    pub(crate) readers: usize,
}

impl Tools {
    /// Those of a request, with a key of their own; what is stopped ends as interrupted.
    ///
    /// # Errors
    /// No threads can be started.
    pub fn new(request: &Request, stop: &CancellationToken) -> Result<Self> {
        let threads = std::thread::available_parallelism().map_or(2, usize::from);
        let cpu = Cpu::new(threads).map_err(|cause| {
            Error::new(Kind::Unavailable, "start threads that hash").because(cause)
        })?;
        Ok(Self {
            cpu,
            budget: Budget::new(request.job.memory / 2),
            key: DigestKey::random(),
            throttle: Arc::new(Throttle::new(request.rate)),
            progress: Arc::clone(&request.progress),
            stop: stop.clone(),
            readers: request.readers,
        })
    }
}

impl Tools {
    /// Waits as the rate asks for.
    pub(crate) async fn pass(&self, bytes: u64) {
        let Some(due) = self.throttle.due(bytes) else { return };
        let wait = due.saturating_duration_since(Instant::now());
        tokio::time::sleep(wait).await;
        let waited = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
        self.progress.throttled_ms.fetch_add(waited, Ordering::Relaxed);
    }
}

/// Lets no more than so many bytes a second pass.
#[derive(Debug)]
pub(crate) struct Throttle {
    rate: Option<u64>,
    since: Instant,
    passed: AtomicU64,
}

impl Throttle {
    /// At most `rate` bytes a second, from now on.
    pub(crate) fn new(rate: Option<u64>) -> Self {
        Self { rate, since: Instant::now(), passed: AtomicU64::new(0) }
    }

    /// When so many more may have passed.
    fn due(&self, bytes: u64) -> Option<Instant> {
        let rate = self.rate?;
        let passed = self.passed.fetch_add(bytes, Ordering::Relaxed) + bytes;
        Some(self.since + Duration::from_secs_f64(passed as f64 / rate.max(1) as f64))
    }
}

/// A chunk of the pair with that number.
pub type Piece = (usize, ChunkSpec);

/// The chunks of a side, those of the largest table first: of each pair these ranges, or all of it.
pub fn plan(
    request: &Request,
    view: &View,
    pairs: &[Pair],
    wanted: impl Iterator<Item = (usize, Option<Vec<ChunkRange>>)>,
) -> Vec<Piece> {
    let wanted = wanted.map(|(pair, ranges)| (pair, pairs[pair].half(view.which).oid(), ranges));
    let chunk = |pair: usize, number, range| pairs[pair].chunk(view.which, number, range);
    plan_chunks(request, view, wanted, chunk)
}

/// The same of tables that `chunk` makes chunks of.
pub(crate) fn plan_chunks(
    request: &Request,
    view: &View,
    wanted: impl Iterator<Item = (usize, Oid, Option<Vec<ChunkRange>>)>,
    chunk: impl Fn(usize, u32, ChunkRange) -> ChunkSpec,
) -> Vec<Piece> {
    let by_oid: HashMap<Oid, &Relation> =
        view.tables().iter().map(|relation| (relation.oid, relation)).collect();
    let bytes = |relation: &Relation| relation.heap_bytes + relation.toast_bytes;
    let total = view.tables().iter().map(bytes).sum();
    let (readers, at_most) = (request.readers, request.job.chunk_bytes);
    let chunk_bytes = tidemark_source::even_chunk_bytes(total, readers, at_most);
    let mut pieces: Vec<(u64, Piece)> = Vec::new();
    for (pair, oid, ranges) in wanted {
        let Some(relation) = by_oid.get(&oid) else { continue };
        let whole = || tidemark_source::plan_chunks(relation, view.version(), chunk_bytes);
        let ranges = ranges.unwrap_or_else(whole);
        let size = bytes(relation) / ranges.len().max(1) as u64;
        let chunks = (0..).zip(ranges).map(|(number, range)| chunk(pair, number, range));
        pieces.extend(chunks.map(|spec| (size, (pair, spec))));
    }
    pieces.sort_by_key(|(size, _)| std::cmp::Reverse(*size));
    pieces.into_iter().map(|(_, piece)| piece).collect()
}

/// What becomes of the chunks of a scan.
pub trait Take: Sync {
    /// What takes the rows of one chunk.
    type Chunk: TakeRows;

    /// A chunk is about to be read, perhaps not for the first time.
    ///
    /// # Errors
    /// Its rows cannot be taken.
    fn begin(&self, which: Which, pair: usize) -> Result<Self::Chunk>;

    /// It was read to its end.
    ///
    /// # Errors
    /// There is no room for what is kept of it.
    fn end(&self, which: Which, pair: usize, chunk: Self::Chunk) -> Result<()>;
}

/// What takes the rows of one chunk.
pub trait TakeRows: Sized + Send + 'static {
    /// The next rows.
    ///
    /// # Errors
    /// What was attempted with them, not of which table.
    fn add(&mut self, tuples: &Tuples) -> Result<()>;

    /// All rows are there: what is left to do that is too much for the thread that reads.
    ///
    /// # Errors
    /// There is no room for what is kept of them.
    fn close(&mut self) -> Result<()> {
        Ok(())
    }

    /// So many rows it has taken.
    fn rows(&self) -> u64;
}

/// Reads all pieces with so many sessions.
///
/// # Errors
/// The snapshot or the server is lost, or a value cannot be read.
pub async fn scan<T: Take>(
    tools: &Tools,
    view: &View,
    pieces: Vec<Piece>,
    taker: &T,
) -> Result<()> {
    let scan = Scan { tools, view, taker, queue: Mutex::new(pieces.into()) };
    let workers = (0..tools.readers.max(1)).map(|_| scan.work());
    tokio::select! {
        biased;
        () = tools.stop.cancelled() => Err(interrupted()),
        worked = futures::future::try_join_all(workers) => worked.map(drop),
    }
}

pub(crate) fn interrupted() -> Error {
    Error::new(Kind::Interrupted, "interrupted: the verification is not finished")
        .hint("run the same command again; nothing was changed on either side")
}

struct Scan<'a, T> {
    tools: &'a Tools,
    view: &'a View,
    taker: &'a T,
    queue: Mutex<VecDeque<Piece>>,
}

impl<T: Take> Scan<'_, T> {
    async fn work(&self) -> Result<()> {
        let (mut reader, mut last) = (None, None);
        while let Some((pair, spec)) = self.next() {
            // What is left to do with a chunk is done while the next one is read.
            let read = self.piece(&mut reader, pair, &spec);
            let (chunk, ()) = tokio::try_join!(read, self.close(last.take()))?;
            last = Some((pair, chunk));
        }
        self.close(last).await
    }

    async fn close(&self, read: Option<(usize, T::Chunk)>) -> Result<()> {
        let Some((pair, mut chunk)) = read else { return Ok(()) };
        let closed = self.tools.cpu.run(move || chunk.close().map(|()| chunk)).await?;
        self.taker.end(self.view.which, pair, closed)
    }

    fn next(&self) -> Option<Piece> {
        self.queue.lock().expect("no holder panics").pop_front()
    }

    async fn piece(
        &self,
        reader: &mut Option<Reader>,
        pair: usize,
        spec: &ChunkSpec,
    ) -> Result<T::Chunk> {
        let mut attempt = 1;
        loop {
            let error = match self.attempt(reader, pair, spec).await {
                Ok(chunk) => return Ok(chunk),
                Err(error) => error,
            };
            *reader = None;
            if !error.is_transient || error.lost_snapshot || attempt == ATTEMPTS {
                return Err(error);
            }
            tracing::warn!(relation = %spec.relation, chunk = spec.chunk, attempt, %error, "a connection was lost; the chunk is read again");
            self.tools.progress.retries.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(BACKOFF * (1 << (attempt - 1))).await;
            attempt += 1;
        }
    }

    async fn attempt(
        &self,
        reader: &mut Option<Reader>,
        pair: usize,
        spec: &ChunkSpec,
    ) -> Result<T::Chunk> {
        let mut chunk = self.taker.begin(self.view.which, pair)?;
        let reader = match reader {
            Some(reader) => reader,
            None => reader.insert(self.view.reader().await?),
        };
        let of = |error: tidemark_wire::Error| {
            let mut error = self.view.of(error);
            error.message =
                format!("{} (chunk {} of {})", error.message, spec.chunk, spec.relation);
            error
        };
        let mut copy = reader.copy(spec).await.map_err(|error| self.view.of(error))?;
        let mut next = copy.next(BATCH_BYTES, &self.tools.budget).await.map_err(of)?;
        while let Some((tuples, reservation)) = next {
            let bytes = tuples.data.len() as u64;
            self.tools.progress.add(self.view.which, bytes);
            self.tools.pass(bytes).await;
            // The next batch is read while this one is taken, whose memory is given back whether or not the next one has any
            // yet: a reader of the other side may wait for it before that one.
            let read = async { copy.next(BATCH_BYTES, &self.tools.budget).await.map_err(of) };
            let take = async {
                let taken = self.take(chunk, tuples, spec).await;
                drop(reservation);
                taken
            };
            (next, chunk) = tokio::try_join!(read, take)?;
        }
        let said = copy.rows().unwrap_or_default();
        let arrived = chunk.rows();
        if arrived == said {
            return Ok(chunk);
        }
        let message = format!(
            "{}: chunk {} of {}: the server announced {said} rows, {arrived} arrived",
            self.view.attempt(),
            spec.chunk,
            spec.relation,
        );
        Err(Error::new(Kind::Internal, message))
    }

    async fn take(
        &self,
        mut chunk: T::Chunk,
        tuples: Tuples,
        spec: &ChunkSpec,
    ) -> Result<T::Chunk> {
        let taken = self.tools.cpu.run(move || chunk.add(&tuples).map(|()| chunk)).await;
        taken.map_err(|mut error| {
            let attempt = self.view.attempt();
            error.message = format!("{attempt}: {} of {}", error.message, spec.relation);
            error
        })
    }
}

impl TakeRows for RowHasher {
    fn add(&mut self, tuples: &Tuples) -> Result<()> {
        Self::add(self, tuples)
            .map_err(|cause| Error::new(Kind::Internal, "hash the rows").because(cause))
    }

    fn rows(&self) -> u64 {
        self.sum().count
    }
}
