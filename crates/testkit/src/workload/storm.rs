//! A storm: every kind of transaction that logical replication has been seen to lose, at once, by a seed.
//!
//! **Invariant:** each committed transaction of a client has one entry in `storm.ledger` (keyed) and one in
//! `storm.ledger_copy` (no key), numbered densely per client; the sum of the bank is constant; `storm.latest` and
//! `storm.tick` only grow, the latter in commit order over all clients. So at any moment, in any one snapshot, a database
//! says by itself whether it holds a state that the source has had: [`promises`].
//!
//! **Invariant:** what the storm says it has committed is what the database holds, also after the server was killed: a
//! client that lost its connection reads its own last entry before it goes on.
//!
//! ```text
//! bank, order, churn   short transactions on one session each
//! bulk                 up to a million rows, COPY, TRUNCATE of two tables, sub-transactions by the hundred
//! weave                three sessions whose BEGIN and COMMIT orders differ, some big enough to be streamed
//! two-phase            PREPARE, other transactions, COMMIT PREPARED or ROLLBACK PREPARED
//! noise                empty transactions, temporary tables, logical messages
//! ```
//!
//! **Not here:** the faults ([`torture`](crate::torture)).

mod actor;
mod promise;
mod script;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::Cluster;

use actor::{Actor, Kind};
pub(crate) use promise::GLANCE;
pub use promise::{Broken, Watched, glance, promises};

const SCHEMA: &str = include_str!("storm/schema.sql");

/// How the storm blows.
#[derive(Debug, Clone)]
pub struct StormOptions {
    /// The seed of what is written.
    pub seed: u64,
    /// The pause after each short transaction of a client; a bulk client's is thirty times as long.
    pub pause: Duration,
    /// The rows of the largest transaction.
    pub rows_max: u64,
    /// One in so many changes of a place swaps two keys or unique values: what no set-based statement can follow.
    pub swaps_one_in: u32,
}

impl Default for StormOptions {
    fn default() -> Self {
        Self { seed: 1, pause: Duration::from_millis(20), rows_max: 20_000, swaps_one_in: 1 }
    }
}

/// What the storm has done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StormReport {
    /// Transactions with an entry that committed.
    pub committed: u64,
    /// Transactions rolled back on purpose.
    pub rolled_back: u64,
    /// Transactions that committed two-phase; counted in `committed`, too.
    pub prepared: u64,
    /// Transactions that the server refused (a lock timeout, a deadlock).
    pub refused: u64,
    /// Connections that were lost.
    pub lost_connections: u64,
}

impl StormReport {
    fn add(&mut self, other: Self) {
        self.committed += other.committed;
        self.rolled_back += other.rolled_back;
        self.prepared += other.prepared;
        self.refused += other.refused;
        self.lost_connections += other.lost_connections;
    }
}

/// A storm that blows until it is stopped or dropped.
#[derive(Debug)]
pub struct Storm {
    calm: Arc<Calm>,
    pace: Arc<Pace>,
    threads: Vec<JoinHandle<Result<StormReport>>>,
}

impl Storm {
    /// Makes the tables in the schema `storm`, with some rows.
    ///
    /// # Errors
    /// When they exist.
    pub fn prepare(cluster: &Cluster, database: &str) -> Result<()> {
        cluster.psql(database, SCHEMA).map(drop).context("make the storm's tables")
    }

    /// Makes the tables without rows, for a follower that brings none itself.
    ///
    /// # Errors
    /// When they exist.
    pub fn prepare_empty(cluster: &Cluster, database: &str) -> Result<()> {
        Self::prepare(cluster, database)?;
        let sql = "SELECT format('TRUNCATE %s;', string_agg(oid::regclass::text, ', ')) FROM pg_class \
                   WHERE relkind = 'r' AND relnamespace = 'storm'::regnamespace";
        let truncate = cluster.psql(database, sql)?;
        cluster.psql(database, &truncate).map(drop).context("empty the storm's tables")
    }

    /// Begins to write to tables that [`Storm::prepare`] made.
    ///
    /// # Errors
    /// When a thread cannot be started.
    pub fn start(cluster: &Arc<Cluster>, database: &str, options: &StormOptions) -> Result<Self> {
        let calm = Arc::new(Calm::default());
        let pace = Arc::new(Pace::default());
        let mut threads = Vec::new();
        let mut client = 0;
        for kind in Kind::ALL {
            let actor = Actor::new(kind, client, Arc::clone(cluster), database, options);
            client += kind.seats();
            let (calm, pace) = (Arc::clone(&calm), Arc::clone(&pace));
            let thread = std::thread::Builder::new()
                .name(format!("storm-{kind:?}"))
                .spawn(move || actor.run(&calm, &pace))
                .context("start a thread of the storm")?;
            threads.push(thread);
        }
        Ok(Self { calm, pace, threads })
    }

    /// How fast it blows, to be changed while it does.
    pub fn pace(&self) -> Arc<Pace> {
        Arc::clone(&self.pace)
    }

    /// Ends after the transactions in flight; the server must be up. Nothing prepared is left.
    ///
    /// # Errors
    /// When a statement was refused that should not be.
    pub fn stop(mut self) -> Result<StormReport> {
        self.calm.set();
        let mut total = StormReport::default();
        for thread in self.threads.drain(..) {
            match thread.join() {
                Ok(report) => total.add(report?),
                Err(_) => bail!("a thread of the storm panicked"),
            }
        }
        Ok(total)
    }

    /// Whether all clients still write: one that failed says why in [`Storm::stop`].
    pub fn is_alive(&self) -> bool {
        !self.threads.iter().any(JoinHandle::is_finished)
    }
}

impl Drop for Storm {
    fn drop(&mut self) {
        self.calm.set();
        for thread in self.threads.drain(..) {
            // A run that failed elsewhere must not be hidden by the storm's own result.
            thread.join().ok();
        }
    }
}

/// How fast a storm blows.
#[derive(Debug, Default)]
pub struct Pace {
    is_slow: AtomicBool,
}

impl Pace {
    /// Makes all pauses eight times as long, or as they were.
    pub fn slow_down(&self, is_slow: bool) {
        self.is_slow.store(is_slow, Ordering::Relaxed);
    }

    fn factor(&self) -> u32 {
        if self.is_slow.load(Ordering::Relaxed) { 8 } else { 1 }
    }
}

/// Says that it is over, and lets threads wait for that.
#[derive(Debug, Default)]
pub(crate) struct Calm {
    is_over: Mutex<bool>,
    changed: Condvar,
}

impl Calm {
    pub(crate) fn set(&self) {
        *self.lock() = true;
        self.changed.notify_all();
    }

    /// Waits this long, or until it is over; whether it is.
    pub(crate) fn within(&self, pause: Duration) -> bool {
        let guard = self.lock();
        let waited = self.changed.wait_timeout_while(guard, pause, |is_over| !*is_over);
        *waited.unwrap_or_else(PoisonError::into_inner).0
    }

    fn lock(&self) -> MutexGuard<'_, bool> {
        self.is_over.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
