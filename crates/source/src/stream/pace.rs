//! When to read rarely, so that each read brings much.
//!
//! **Invariant:** a pause only ever follows a small read in a burst, so that a source that is slower than [`BYTES_PER_MS`] is read at once;
//! and it is about 1 ms, which no latency that is promised notices.
//!
//! Why: the server sends every message of a backlog by itself, and each wakes a reader that waits. Reading once a millisecond
//! instead halves the time of the whole, because both sides are on the same cores or in the same network queue; from 2 ms
//! on the receive window fills and the server stands still (`prototypes.md` B).

use std::time::{Duration, Instant};

/// What arrives faster is a backlog.
const BYTES_PER_MS: u128 = 2 * 1024;

/// A read that brought as much needs no pause: it was worth waking for. Where the cores are contended, reads are that large
/// by themselves.
const LARGE: usize = 2 * 1024;

/// How far back the rate is taken.
const WINDOW: Duration = Duration::from_millis(4);

/// The runtime's timers count whole milliseconds and round up, so that this is 1 ms and not 2.
const PAUSE: Duration = Duration::from_micros(1);

/// Decides from what has arrived whether the next read may wait.
#[derive(Debug)]
pub(super) struct ReadPace {
    began: Instant,
    bytes: usize,
    is_backlog: bool,
}

impl ReadPace {
    pub(super) fn new(now: Instant) -> Self {
        Self { began: now, bytes: 0, is_backlog: false }
    }

    /// Notes a read and says how long the next one should wait.
    pub(super) fn after(&mut self, now: Instant, bytes: usize) -> Option<Duration> {
        self.bytes = self.bytes.saturating_add(bytes);
        let elapsed = now.saturating_duration_since(self.began);
        if elapsed >= WINDOW || self.bytes as u128 >= BYTES_PER_MS * WINDOW.as_millis() {
            // A window that lasted longer needs as much more.
            let needed = BYTES_PER_MS * elapsed.max(WINDOW).as_micros() / 1_000;
            (self.is_backlog, self.began) = (self.bytes as u128 >= needed, now);
            self.bytes = 0;
        }
        (self.is_backlog && bytes < LARGE).then_some(PAUSE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads of so many bytes, so many microseconds apart; how many of them were followed by a pause.
    fn pauses(reads: usize, bytes: usize, apart_us: u64) -> usize {
        let mut now = Instant::now();
        let mut pace = ReadPace::new(now);
        let mut pauses = 0;
        for _ in 0..reads {
            now += Duration::from_micros(apart_us);
            pauses += usize::from(pace.after(now, bytes).is_some());
        }
        pauses
    }

    #[test]
    fn a_backlog_is_read_with_pauses() {
        // One message at a time, as an eager reader sees a backlog.
        assert!(pauses(10_000, 100, 7) > 9_500);
        // What is large already is not waited for.
        assert_eq!(pauses(1_000, 33_000, 1_100), 0);
        // As a paced reader sees it: all of a millisecond, then one message.
        let mut now = Instant::now();
        let mut pace = ReadPace::new(now);
        for _ in 0..1_000 {
            now += Duration::from_micros(1_100);
            assert_eq!(pace.after(now, 33_000), None);
            now += Duration::from_micros(5);
            assert_eq!(pace.after(now, 100), Some(PAUSE));
        }
    }

    #[test]
    fn light_load_is_read_at_once() {
        // 500 transactions of six messages a second.
        assert_eq!(pauses(3_000, 90, 333), 0);
        assert_eq!(pauses(100, 1_500, 10_000), 0);
    }

    #[test]
    fn a_pause_ends_with_the_backlog() {
        let mut now = Instant::now();
        let mut pace = ReadPace::new(now);
        for _ in 0..100 {
            now += Duration::from_millis(1);
            pace.after(now, 30_000);
        }
        assert!(pace.after(now, 100).is_some());
        now += Duration::from_millis(20);
        assert_eq!(pace.after(now, 100), None);
    }
}
