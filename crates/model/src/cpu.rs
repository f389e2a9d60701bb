//! The bounded pool for decoding, encoding, hashing and compression.
//!
//! **Invariant:** work that takes more than about 100 µs runs here, handed over per batch, never per row; the threads that
//! serve sockets only move bytes.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;

use tokio::sync::oneshot;

/// A shared pool of CPU threads.
#[derive(Debug, Clone)]
pub struct Cpu {
    pool: Arc<rayon::ThreadPool>,
}

impl Cpu {
    /// A pool of `threads` threads, at least one.
    ///
    /// # Errors
    /// The operating system refused the threads.
    pub fn new(threads: usize) -> Result<Self, rayon::ThreadPoolBuildError> {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads.max(1))
            .thread_name(|index| format!("cpu-{index}"))
            .build()?;
        Ok(Self { pool: Arc::new(pool) })
    }

    /// Number of threads.
    pub fn threads(&self) -> usize {
        self.pool.current_num_threads()
    }

    /// Runs `work` on the pool; a panic in it goes on in the caller.
    ///
    /// # Cancel safety
    /// Work that has been handed over runs to its end; its result is dropped.
    pub async fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let (tx, rx) = oneshot::channel();
        self.pool.spawn(move || {
            // The receiver is gone only if the caller was cancelled: then nobody wants the result.
            drop(tx.send(catch_unwind(AssertUnwindSafe(work))));
        });
        match rx.await.expect("the pool answers every piece of work") {
            Ok(value) => value,
            Err(panic) => resume_unwind(panic),
        }
    }
}
