//! The bounded pool for decoding, encoding, hashing and compression.
//!
//! **Invariant:** work that takes more than about 100 µs runs here, handed over per batch, never per row; the threads that
//! serve sockets only move bytes. A waiting thread sleeps at once: work comes a few thousand times a second, and threads
//! that spin for it take the core from the server on the same machine.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Arc, Condvar, Mutex};

use tokio::sync::oneshot;

type Work = Box<dyn FnOnce() + Send>;

/// A shared pool of CPU threads; they end with the last handle.
#[derive(Debug, Clone)]
pub struct Cpu {
    pool: Arc<Pool>,
}

#[derive(Debug)]
struct Pool {
    shared: Arc<Shared>,
    threads: usize,
}

#[derive(Default)]
struct Shared {
    queue: Mutex<Queue>,
    wake: Condvar,
}

/// Bounded by its callers: each waits for its piece of work.
#[derive(Default)]
struct Queue {
    work: VecDeque<Work>,
    is_closed: bool,
}

impl Cpu {
    /// A pool of `threads` threads, at least one.
    ///
    /// # Errors
    /// The operating system refused the threads.
    pub fn new(threads: usize) -> std::io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let pool = Arc::new(Pool { shared: Arc::clone(&shared), threads: threads.max(1) });
        for index in 0..pool.threads {
            let shared = Arc::clone(&shared);
            std::thread::Builder::new()
                .name(format!("cpu-{index}"))
                .spawn(move || serve(&shared))?;
        }
        Ok(Self { pool })
    }

    /// Number of threads.
    pub fn threads(&self) -> usize {
        self.pool.threads
    }

    /// Runs `work` on the pool; a panic in it goes on in the caller.
    ///
    /// # Cancel safety
    /// Work that has been handed over runs to its end; its result is dropped.
    pub async fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let (tx, rx) = oneshot::channel();
        self.pool.shared.push(Box::new(move || {
            // The receiver is gone only if the caller was cancelled: then nobody wants the result.
            drop(tx.send(catch_unwind(AssertUnwindSafe(work))));
        }));
        match rx.await.expect("the pool answers every piece of work") {
            Ok(value) => value,
            Err(panic) => resume_unwind(panic),
        }
    }
}

impl Shared {
    fn push(&self, work: Work) {
        self.queue.lock().expect("no holder panics").work.push_back(work);
        self.wake.notify_one();
    }
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").finish_non_exhaustive()
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.queue.lock().expect("no holder panics").is_closed = true;
        self.shared.wake.notify_all();
    }
}

/// Work until the pool is closed and its queue empty.
fn serve(shared: &Shared) {
    let mut queue = shared.queue.lock().expect("no holder panics");
    loop {
        if let Some(work) = queue.work.pop_front() {
            drop(queue);
            work();
            queue = shared.queue.lock().expect("no holder panics");
        } else if queue.is_closed {
            return;
        } else {
            queue = shared.wake.wait(queue).expect("no holder panics");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn work_comes_back_and_a_panic_goes_on_in_the_caller() {
        let cpu = Cpu::new(2).unwrap();
        assert_eq!(cpu.run(|| 6 * 7).await, 42);
        let mut tasks = tokio::task::JoinSet::new();
        let shared = cpu.clone();
        tasks.spawn(async move { shared.run(|| panic!("on purpose")).await });
        assert!(tasks.join_next().await.unwrap().unwrap_err().is_panic());
        assert_eq!(cpu.run(|| "the thread lives on").await, "the thread lives on");
    }

    #[tokio::test]
    async fn more_work_than_threads_is_all_done() {
        let cpu = Cpu::new(2).unwrap();
        let all = (0..100_u64).map(|number| cpu.run(move || number));
        let mut sum = 0;
        for work in all {
            sum += work.await;
        }
        assert_eq!(sum, 4950);
    }
}
