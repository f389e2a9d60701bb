//! What every command does that takes its time: threads, signals, a look now and then.

use std::time::Duration;

use tidemark_pipeline as pipeline;
use tokio_util::sync::CancellationToken;

use crate::exit::{ExitCode, Failure};

/// Between two looks at the counters.
pub(crate) const LOOK_EVERY: Duration = Duration::from_millis(250);
pub(crate) fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::internal("start the threads that serve sockets").because(&error))
}

/// Runs `work` to its end, and looks every so often how far it is. A signal asks it to stop, a second one ends the process.
pub(crate) async fn stoppable<T>(
    work: impl Future<Output = pipeline::Result<T>>,
    stop: &CancellationToken,
    (every, mut look): (Duration, impl FnMut()),
) -> Result<pipeline::Result<T>, Failure> {
    tokio::pin!(work);
    let mut signals = Signals::new()?;
    let mut ticks = tokio::time::interval_at(tokio::time::Instant::now() + every, every);
    loop {
        tokio::select! {
            biased;
            ended = &mut work => return Ok(ended),
            () = signals.next() => {
                if stop.is_cancelled() {
                    std::process::exit(i32::from(ExitCode::Interrupted.number()));
                }
                tracing::info!("stopping; once more ends at once");
                stop.cancel();
            }
            _ = ticks.tick() => look(),
        }
    }
}

/// SIGINT and SIGTERM.
pub(crate) struct Signals {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
}

impl Signals {
    pub(crate) fn new() -> Result<Self, Failure> {
        use tokio::signal::unix::{SignalKind, signal};

        let failed =
            |error: std::io::Error| Failure::internal("listen for signals").because(&error);
        Ok(Self {
            interrupt: signal(SignalKind::interrupt()).map_err(failed)?,
            terminate: signal(SignalKind::terminate()).map_err(failed)?,
        })
    }

    pub(crate) async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}
