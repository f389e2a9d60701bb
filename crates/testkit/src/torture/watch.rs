//! Looks at a run from outside while it goes on: the target's promises, the position, memory, retained WAL.
//!
//! **Invariant:** it talks to both servers over their own sockets, past the fault proxies, and changes nothing there.
//!
//! Promises hold from the moment when the target says that it follows (`design.md` section 3: before that, tables join one by one). After a
//! crash of the target what was visible may be gone, because it need not have been durable: promises about time begin anew.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::Value;

use crate::Cluster;
use crate::session::Session;
use crate::workload::storm::{self, Calm, GLANCE, Watched};

/// How often the target is looked at: a transaction that is visible by halves is so for milliseconds.
const GLANCES: Duration = Duration::from_millis(40);
/// All promises are read once in so many glances.
const WHOLE_EVERY: u64 = 40;
const ELSE: Duration = Duration::from_millis(100);
/// More would say nothing new.
const BROKEN_MAX: usize = 20;

/// What has been seen so far.
#[derive(Debug, Clone, Default)]
pub(super) struct Seen {
    /// Whether the target has said that it follows.
    pub(super) follows: bool,
    /// Whether tables have joined that are still ahead of the others.
    pub(super) is_joining: bool,
    /// The target's position, as a number.
    pub(super) position: u64,
    /// The source's position.
    pub(super) head: u64,
    /// Broken promises, each with the time since the start.
    pub(super) broken: Vec<String>,
    /// How often the promises were judged.
    pub(super) glances: u64,
    /// How often several lanes were seen to have moved.
    pub(super) lane_moves: u64,
    /// How often some were seen beyond the position, so that nothing was judged.
    pub(super) apart: u64,
    /// From a kill until the position moved again.
    pub(super) recoveries: Vec<Duration>,
    /// When the follower was killed last, until the position moves.
    killed_at: Option<Instant>,
    /// The largest memory of any run of the follower, in kB.
    pub(super) peak_rss_kb: u64,
    /// The most WAL that the source kept for the follower, in bytes.
    pub(super) peak_wal_bytes: u64,
}

#[derive(Debug)]
struct Shared {
    seen: Mutex<Seen>,
    calm: Calm,
    pid: AtomicU32,
    target_crashes: AtomicU64,
    began: Instant,
}

impl Shared {
    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What to ask the two servers.
#[derive(Debug, Clone)]
pub(super) struct Questions {
    /// An SQL expression: the phase, `joining` while tables that joined are ahead, `follow` once none is.
    pub(super) phase: String,
    /// An SQL expression: the position on the target.
    pub(super) position: String,
    /// A pattern of the follower's slots.
    pub(super) slots: String,
    /// The root of a lake, which has no promises to be judged while it is written to.
    pub(super) lake: Option<PathBuf>,
    /// With several lanes: an SQL expression, how far the foremost of them is. The target is a state of the source only
    /// where that is not beyond the position.
    pub(super) lanes: Option<String>,
}

/// The threads that watch; they end when this is dropped.
#[derive(Debug)]
pub(super) struct Watch {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl Watch {
    /// Begins to watch.
    pub(super) fn start(
        source: (&Arc<Cluster>, &str),
        target: (&Arc<Cluster>, &str),
        questions: &Questions,
        began: Instant,
    ) -> Result<Self> {
        let shared = Arc::new(Shared {
            seen: Mutex::default(),
            calm: Calm::default(),
            pid: AtomicU32::new(0),
            target_crashes: AtomicU64::new(0),
            began,
        });
        let mut threads = Vec::new();
        let mut spawn = |name: &str, work: Box<dyn FnOnce(&Shared) + Send>| -> Result<()> {
            let shared = Arc::clone(&shared);
            let thread = std::thread::Builder::new().name(name.into()).spawn(move || work(&shared));
            threads.push(thread.context("start a watching thread")?);
            Ok(())
        };
        if let Some(root) = questions.lake.clone() {
            spawn("watch-lake", Box::new(move |shared| watch_lake(shared, &root)))?;
        } else {
            let (cluster, database) = (Arc::clone(target.0), target.1.to_owned());
            let view = View { cluster, database, session: None };
            let questions = questions.clone();
            spawn("watch-target", Box::new(move |shared| watch_target(shared, view, &questions)))?;
        }
        let view =
            View { cluster: Arc::clone(source.0), database: source.1.to_owned(), session: None };
        let slots = questions.slots.clone();
        spawn("watch-source", Box::new(move |shared| watch_source(shared, view, &slots)))?;
        Ok(Self { shared, threads })
    }

    pub(super) fn seen(&self) -> Seen {
        self.shared.seen().clone()
    }

    /// The process whose memory is looked at; 0 for none.
    pub(super) fn follower_is(&self, pid: u32) {
        self.shared.pid.store(pid, Ordering::Relaxed);
    }

    /// The follower was killed just now: measures until the position moves.
    pub(super) fn follower_was_killed(&self) {
        self.shared.seen().killed_at = Some(Instant::now());
    }

    /// Something else went wrong: a recovery that is not over would measure that.
    pub(super) fn other_fault(&self) {
        self.shared.seen().killed_at = None;
    }

    /// The target is about to be stopped hard.
    pub(super) fn target_crashes(&self) {
        self.shared.target_crashes.fetch_add(1, Ordering::SeqCst);
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.shared.calm.set();
        for thread in self.threads.drain(..) {
            // What a watcher would say is in what was seen.
            thread.join().ok();
        }
    }
}

/// A session that is made again whenever it is lost.
struct View {
    cluster: Arc<Cluster>,
    database: String,
    session: Option<Session>,
}

impl View {
    /// The answer, or none while there is nobody who could give it.
    fn ask(&mut self, sql: &str) -> Option<Value> {
        if self.session.is_none() {
            self.session = Session::lenient(&self.cluster, &self.database).ok();
        }
        let Some(answer) = self.session.as_mut()?.ask(sql) else {
            self.session = None;
            return None;
        };
        serde_json::from_str(&answer).ok()
    }
}

/// The position of a lake is that of its last commit.
fn watch_lake(shared: &Shared, root: &Path) {
    let commits = root.join("_tidemark/commits");
    while !shared.calm.within(ELSE) {
        let Ok(entries) = std::fs::read_dir(&commits) else { continue };
        let names = entries.filter_map(|entry| entry.ok().map(|entry| entry.path()));
        let last = names.filter(|path| path.extension().is_some_and(|end| end == "json")).max();
        let text = last.and_then(|path| std::fs::read_to_string(path).ok()).unwrap_or_default();
        let Ok(commit) = serde_json::from_str::<Value>(&text) else { continue };
        note(shared, &serde_json::json!({"phase": "follow", "position": commit["end_lsn"]}));
    }
}

fn watch_target(shared: &Shared, mut view: View, questions: &Questions) {
    let lanes = questions.lanes.as_deref().unwrap_or("NULL");
    let position = format!(
        "'phase', {}, 'position', ({})::text, 'lanes', {lanes}::text",
        questions.phase, questions.position
    );
    let both = format!("SELECT json_build_object({position}, 'glance', {GLANCE});");
    let position = format!("SELECT json_build_object({position});");
    let mut watched = Watched::default();
    let mut foremost = 0;
    let mut crashes = 0;
    let mut rounds = 0_u64;
    while !shared.calm.within(GLANCES) {
        rounds += 1;
        let now = shared.target_crashes.load(Ordering::SeqCst);
        if now != crashes {
            // Also an answer that was given before the crash must not count after it.
            crashes = now;
            watched = Watched::default();
            shared.seen().position = 0;
        }
        let follows = shared.seen().follows;
        let Some(answer) = view.ask(if follows { &both } else { &position }) else { continue };
        if shared.target_crashes.load(Ordering::SeqCst) != crashes {
            continue;
        }
        note(shared, &answer);
        if !follows || lanes_stand_apart(shared, &answer, &mut foremost) {
            continue;
        }
        let mut broken = match storm::glance(&answer["glance"], &mut watched) {
            Ok(broken) => broken,
            Err(cause) => vec![storm::Broken(format!("{cause:#}"))],
        };
        // In several lanes a second statement might not find them together.
        if rounds.is_multiple_of(WHOLE_EVERY)
            && questions.lanes.is_none()
            && let Ok((_, more)) = storm::promises(&view.cluster, &view.database)
        {
            broken.extend(more);
        }
        let mut seen = shared.seen();
        seen.glances += 1;
        for promise in broken {
            if seen.broken.len() < BROKEN_MAX {
                seen.broken
                    .push(format!("{:.1} s: {promise}", shared.began.elapsed().as_secs_f64()));
            }
        }
    }
}

/// Whether some lanes have what others have not: then the target is no state that the source had.
fn lanes_stand_apart(shared: &Shared, answer: &Value, foremost: &mut u64) -> bool {
    let Some(now) = answer["lanes"].as_str().and_then(lsn) else { return false };
    let mut seen = shared.seen();
    if now > std::mem::replace(foremost, now) {
        seen.lane_moves += 1;
    }
    let is_apart = answer["position"].as_str().and_then(lsn).is_none_or(|position| now > position);
    seen.apart += u64::from(is_apart);
    is_apart
}

/// Notes phase and position.
fn note(shared: &Shared, answer: &Value) {
    let position = answer["position"].as_str().and_then(lsn).unwrap_or(0);
    let mut seen = shared.seen();
    seen.follows |= answer["phase"] == "follow";
    seen.is_joining = answer["phase"] == "joining";
    if position < seen.position && seen.follows {
        let text = format!(
            "{:.1} s: the position went back from {} to {}",
            shared.began.elapsed().as_secs_f64(),
            show(seen.position),
            show(position)
        );
        seen.broken.push(text);
    }
    if position > seen.position
        && let Some(killed_at) = seen.killed_at.take()
    {
        seen.recoveries.push(killed_at.elapsed());
    }
    seen.position = position;
}

fn watch_source(shared: &Shared, mut view: View, slots: &str) {
    let sql = format!(
        "SELECT json_build_object('head', pg_current_wal_lsn()::text, 'kept', (SELECT max(pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn)) \
         FROM pg_replication_slots WHERE slot_name LIKE '{slots}'));"
    );
    while !shared.calm.within(ELSE) {
        let rss = peak_rss_kb(shared.pid.load(Ordering::Relaxed));
        let answer = view.ask(&sql);
        let mut seen = shared.seen();
        seen.peak_rss_kb = seen.peak_rss_kb.max(rss);
        let Some(answer) = answer else { continue };
        seen.head = answer["head"].as_str().and_then(lsn).unwrap_or(seen.head);
        seen.peak_wal_bytes = seen.peak_wal_bytes.max(answer["kept"].as_u64().unwrap_or(0));
    }
}

/// The most memory that a process has had; 0 when it is gone.
fn peak_rss_kb(pid: u32) -> u64 {
    if pid == 0 {
        return 0;
    }
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|rest| rest.trim().trim_end_matches(" kB").parse().ok()).unwrap_or(0)
}

/// `16/B374D848` as a number.
pub(super) fn lsn(text: &str) -> Option<u64> {
    let (high, low) = text.split_once('/')?;
    Some(u64::from_str_radix(high, 16).ok()? << 32 | u64::from_str_radix(low, 16).ok()?)
}

/// A number as `16/B374D848`.
pub(super) fn show(lsn: u64) -> String {
    format!("{:X}/{:X}", lsn >> 32, lsn & 0xFFFF_FFFF)
}
