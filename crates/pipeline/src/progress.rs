//! How far a job is, for bars, lines, `status` and the control socket.
//!
//! **Invariant:** counters only grow within a run and are written by batch, never by row; reading them blocks nobody.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, RwLock};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tidemark_model::{Budget, Oid, RelationName, TablePlan};

use crate::stream::Ladder;

/// Where a job stands; the names are `design.md` section 8's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// Looking for what would stop it.
    #[default]
    Check,
    /// Snapshot, schema.
    Prepare,
    /// Rows are being copied.
    Snapshot,
    /// The source is followed.
    Follow,
    /// Everything received is being brought to the target before the job ends.
    Drain,
    /// A cutover keeps the application from writing.
    Fence,
    /// A cutover proves both sides and begins the stream back.
    Verify,
    /// A cutover takes the application over.
    Switch,
    /// The application is on the target, and the source follows it.
    Hypercare,
    /// The application goes back to the source.
    Fallback,
    /// Done.
    Complete,
    /// Not running.
    Stopped,
}

/// Shared counters of a running job.
#[derive(Debug)]
pub struct Progress {
    started: Instant,
    phase: Mutex<(Phase, &'static str)>,
    tables: RwLock<HashMap<Oid, Arc<TableProgress>>>,
    /// Those that the next tables begin beside.
    kept: Mutex<Vec<(Oid, Arc<TableProgress>)>>,
    snapshot_started: Mutex<Option<Instant>>,
    budget: Mutex<Option<Budget>>,
    ladder: Mutex<Option<Arc<Ladder>>>,
}

/// Counters of one table.
#[derive(Debug)]
pub(crate) struct TableProgress {
    name: RelationName,
    rows_estimate: u64,
    bytes_estimate: u64,
    chunks: u64,
    chunks_done: AtomicU64,
    rows: AtomicU64,
    bytes: AtomicU64,
    /// 0 waiting, 1 copying, 2 building keys, 3 done.
    stage: AtomicU64,
}

/// A picture of the counters at one moment.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ProgressView {
    /// Where the job stands.
    pub phase: Phase,
    /// What it is doing, in a few words.
    pub activity: String,
    /// Tables whose rows and keys are in.
    pub tables_done: u64,
    /// All tables.
    pub tables_total: u64,
    /// Rows taken over by the target, committed or not yet.
    pub rows_done: u64,
    /// Rows expected; an estimate of the server's.
    pub rows_estimate: u64,
    /// Bytes of heap and TOAST behind the rows copied so far, by the share of chunks and rows.
    pub bytes_done: u64,
    /// Bytes of heap and TOAST of all tables.
    pub bytes_total: u64,
    /// Bytes of rows as COPY wrote them.
    pub copied_bytes: u64,
    /// Tables being copied or indexed now.
    pub active: Vec<ActiveTable>,
    /// Bytes of rows on their way.
    pub memory_bytes: u64,
    /// Since the job began.
    pub elapsed: Duration,
    /// Since rows began to flow.
    pub copying: Duration,
}

/// One table at work.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ActiveTable {
    /// `schema.table`.
    pub name: String,
    /// `copy` or `keys`.
    pub stage: String,
    /// Rows so far.
    pub rows_done: u64,
    /// Rows expected.
    pub rows_estimate: u64,
    /// Bytes of heap and TOAST so far.
    pub bytes_done: u64,
    /// Bytes of heap and TOAST.
    pub bytes_total: u64,
}

impl Default for Progress {
    fn default() -> Self {
        Self {
            started: Instant::now(),
            phase: Mutex::new((Phase::Check, "reading the catalog")),
            tables: RwLock::default(),
            kept: Mutex::default(),
            snapshot_started: Mutex::new(None),
            budget: Mutex::new(None),
            ladder: Mutex::new(None),
        }
    }
}

impl Progress {
    pub(crate) fn enter(&self, phase: Phase, activity: &'static str) {
        *self.phase.lock().expect("no holder panics") = (phase, activity);
        if phase == Phase::Snapshot {
            self.snapshot_started
                .lock()
                .expect("no holder panics")
                .get_or_insert_with(Instant::now);
        }
        tracing::debug!(?phase, activity, "phase");
    }

    /// Whether the source is followed and every table has joined.
    pub(crate) fn follows(&self) -> bool {
        self.phase.lock().expect("no holder panics").0 == Phase::Follow
    }

    /// Whose use `memory_bytes` is.
    pub(crate) fn watch_memory(&self, budget: &Budget) {
        *self.budget.lock().expect("no holder panics") = Some(budget.clone());
    }

    /// Whose positions `status` shows.
    pub(crate) fn watch_stream(&self, ladder: &Arc<Ladder>) {
        *self.ladder.lock().expect("no holder panics") = Some(Arc::clone(ladder));
    }

    /// The stream's positions, once there is a stream.
    pub(crate) fn ladder(&self) -> Option<Arc<Ladder>> {
        self.ladder.lock().expect("no holder panics").clone()
    }

    /// Tables that an earlier process has brought to their end, with their rows: they count as done beside those that
    /// [`Self::begin`] begins with.
    pub(crate) fn keep<'a>(&self, tables: impl Iterator<Item = (&'a TablePlan, u64)>) {
        let kept = tables.map(|(plan, rows)| {
            let table = TableProgress::new(plan, 0);
            table.is_there(rows);
            (plan.relation.oid, Arc::new(table))
        });
        *self.kept.lock().expect("no holder panics") = kept.collect();
    }

    /// Forgets the tables of an earlier try and begins with these.
    pub(crate) fn begin<'a>(&self, tables: impl Iterator<Item = (&'a TablePlan, usize)>) {
        let fresh = tables
            .map(|(plan, chunks)| (plan.relation.oid, Arc::new(TableProgress::new(plan, chunks))));
        let kept = std::mem::take(&mut *self.kept.lock().expect("no holder panics"));
        *self.tables.write().expect("no holder panics") = fresh.chain(kept).collect();
    }

    pub(crate) fn table(&self, oid: Oid) -> Option<Arc<TableProgress>> {
        self.tables.read().expect("no holder panics").get(&oid).cloned()
    }

    /// The counters now.
    pub fn view(&self) -> ProgressView {
        let (phase, activity) = *self.phase.lock().expect("no holder panics");
        let mut view = ProgressView {
            phase,
            activity: activity.to_owned(),
            elapsed: self.started.elapsed(),
            memory_bytes: self
                .budget
                .lock()
                .expect("no holder panics")
                .as_ref()
                .map_or(0, Budget::used),
            copying: self
                .snapshot_started
                .lock()
                .expect("no holder panics")
                .map_or(Duration::ZERO, |since| since.elapsed()),
            ..ProgressView::default()
        };
        for table in self.tables.read().expect("no holder panics").values() {
            table.add_to(&mut view);
        }
        view.active.sort_by(|a, b| b.bytes_total.cmp(&a.bytes_total).then(a.name.cmp(&b.name)));
        view
    }
}

impl TableProgress {
    fn new(plan: &TablePlan, chunks: usize) -> Self {
        let relation = &plan.relation;
        Self {
            name: relation.name.clone(),
            rows_estimate: relation.row_estimate,
            bytes_estimate: relation.heap_bytes + relation.toast_bytes,
            chunks: chunks as u64,
            chunks_done: AtomicU64::new(0),
            rows: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            stage: AtomicU64::new(0),
        }
    }

    pub(crate) fn copying(&self) {
        self.stage.fetch_max(1, Ordering::Relaxed);
    }

    pub(crate) fn add(&self, rows: u64, bytes: u64) {
        self.rows.fetch_add(rows, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Takes the counts of a chunk that is tried again back.
    pub(crate) fn take_back(&self, rows: u64, bytes: u64) {
        self.rows.fetch_sub(rows, Ordering::Relaxed);
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Returns whether this was the last one.
    pub(crate) fn chunk_done(&self) -> bool {
        self.chunks_done.fetch_add(1, Ordering::AcqRel) + 1 == self.chunks
    }

    pub(crate) fn building(&self) {
        self.stage.store(2, Ordering::Relaxed);
    }

    /// All of its rows are on the target without having been copied.
    pub(crate) fn is_there(&self, rows: u64) {
        self.rows.store(rows, Ordering::Relaxed);
        self.done();
    }

    pub(crate) fn done(&self) {
        self.stage.store(3, Ordering::Relaxed);
    }

    fn add_to(&self, view: &mut ProgressView) {
        let stage = self.stage.load(Ordering::Relaxed);
        let rows = self.rows.load(Ordering::Relaxed);
        let bytes_done = match stage {
            0 => 0,
            1 => self.estimate_done(rows),
            _ => self.bytes_estimate,
        };
        view.tables_total += 1;
        view.tables_done += u64::from(stage == 3);
        view.rows_done += rows;
        view.rows_estimate += if stage >= 2 { rows } else { self.rows_estimate.max(rows) };
        view.copied_bytes += self.bytes.load(Ordering::Relaxed);
        view.bytes_done += bytes_done;
        view.bytes_total += self.bytes_estimate;
        if stage == 1 || stage == 2 {
            view.active.push(ActiveTable {
                name: self.name.plain(),
                stage: if stage == 1 { "copy" } else { "keys" }.to_owned(),
                rows_done: rows,
                rows_estimate: self.rows_estimate.max(rows),
                bytes_done,
                bytes_total: self.bytes_estimate,
            });
        }
    }

    /// Bytes of the table behind the rows so far: by rows where the server has an estimate, otherwise by chunks.
    fn estimate_done(&self, rows: u64) -> u64 {
        let by_chunks = self.chunks_done.load(Ordering::Relaxed) as f64 / self.chunks.max(1) as f64;
        let by_rows = match self.rows_estimate {
            0 => 0.0,
            estimate => (rows as f64 / estimate as f64).min(0.99),
        };
        (self.bytes_estimate as f64 * by_chunks.max(by_rows).min(1.0)) as u64
    }
}
