//! One lazily started cluster per test process, with a fresh database per caller.
//!
//! **Invariant:** two callers never get the same database.
//!
//! Cheaper than a cluster each, for tests that neither stop the server nor change its settings. The
//! cluster is never dropped; the watchdog ends it with the process.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};

use anyhow::Result;

use super::Cluster;

static CLUSTER: Mutex<Option<&'static Cluster>> = Mutex::new(None);
static NEXT: AtomicU32 = AtomicU32::new(1);

/// A database of its own in the process's shared cluster; dropped with this value.
#[derive(Debug)]
pub struct Database {
    cluster: &'static Cluster,
    name: String,
}

impl Database {
    /// The shared cluster.
    pub fn cluster(&self) -> &'static Cluster {
        self.cluster
    }

    /// The database's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A URL over TCP.
    pub fn url(&self) -> String {
        self.cluster.url(&self.name)
    }

    /// A URL over the unix socket.
    pub fn socket_url(&self) -> String {
        self.cluster.socket_url(&self.name)
    }

    /// Runs SQL in this database; as [`Cluster::psql`].
    ///
    /// # Errors
    /// When any statement fails.
    pub fn psql(&self, sql: &str) -> Result<String> {
        self.cluster.psql(&self.name, sql)
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        self.cluster.drop_database(&self.name).ok();
    }
}

/// Makes a fresh database in the process's shared cluster, which the first call starts.
///
/// # Errors
/// When the cluster does not start.
pub fn shared() -> Result<Database> {
    shared_from(Cluster::start_default)
}

/// The same, where the cluster that the first call starts is a [filled](Cluster::start_filled) one. In a cluster that was
/// started before, nothing is filled.
///
/// # Errors
/// When the cluster does not start, or cannot be filled.
pub fn shared_filled(name: &str, fill: impl FnOnce(&Cluster) -> Result<()>) -> Result<Database> {
    shared_from(|| Cluster::start_filled(name, fill))
}

fn shared_from(start: impl FnOnce() -> Result<Cluster>) -> Result<Database> {
    let mut slot = CLUSTER.lock().unwrap_or_else(PoisonError::into_inner);
    let cluster = match *slot {
        Some(cluster) => cluster,
        None => *slot.insert(Box::leak(Box::new(start()?))),
    };
    drop(slot);
    let name = format!("test_{}", NEXT.fetch_add(1, Ordering::Relaxed));
    cluster.create_database(&name)?;
    Ok(Database { cluster, name })
}
