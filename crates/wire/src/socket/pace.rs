//! When to read rarely, so that each read brings much.
//!
//! **Invariant:** only a sender of more than [`BYTES_PER_MS`] is paced, so that light load is read at once.
//!
//! Why: the server sends a message of the stream, or 8 KiB of COPY, by itself, and each wakes a reader that waits. Waking costs
//! both sides more than the bytes do: a backlog of the stream was read in half the time once a millisecond, and the walsender's
//! part of it is as large as the reader's (`prototypes.md` B).

use std::time::{Duration, Instant};

/// What arrives faster is a burst.
const BYTES_PER_MS: u128 = 2 * 1024;

/// How far back the rate is taken.
const WINDOW: Duration = Duration::from_millis(4);

/// Tells from what has arrived whether more is about to.
#[derive(Debug)]
pub(super) struct Pace {
    began: Instant,
    bytes: usize,
    is_burst: bool,
}

impl Pace {
    pub(super) fn new(now: Instant) -> Self {
        Self { began: now, bytes: 0, is_burst: false }
    }

    /// Notes a read and says whether it belongs to a burst.
    pub(super) fn note(&mut self, now: Instant, bytes: usize) -> bool {
        self.bytes = self.bytes.saturating_add(bytes);
        let elapsed = now.saturating_duration_since(self.began);
        if elapsed >= WINDOW || self.bytes as u128 >= BYTES_PER_MS * WINDOW.as_millis() {
            // A window that lasted longer needs as much more.
            let needed = BYTES_PER_MS * elapsed.max(WINDOW).as_micros() / 1_000;
            (self.is_burst, self.began) = (self.bytes as u128 >= needed, now);
            self.bytes = 0;
        }
        self.is_burst
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads of so many bytes, so many microseconds apart; how many of them belonged to a burst.
    fn in_bursts(reads: usize, bytes: usize, apart_us: u64) -> usize {
        let mut now = Instant::now();
        let mut pace = Pace::new(now);
        let mut count = 0;
        for _ in 0..reads {
            now += Duration::from_micros(apart_us);
            count += usize::from(pace.note(now, bytes));
        }
        count
    }

    #[test]
    fn a_backlog_is_a_burst() {
        // One message at a time, as an eager reader sees a backlog, and all of a millisecond, as a paced one does.
        assert!(in_bursts(10_000, 100, 7) > 9_500);
        assert!(in_bursts(1_000, 33_000, 1_100) > 990);
    }

    #[test]
    fn light_load_is_no_burst() {
        // 500 transactions of six messages a second.
        assert_eq!(in_bursts(3_000, 90, 333), 0);
        assert_eq!(in_bursts(100, 1_500, 10_000), 0);
    }

    #[test]
    fn a_burst_ends() {
        let mut now = Instant::now();
        let mut pace = Pace::new(now);
        for _ in 0..100 {
            now += Duration::from_millis(1);
            pace.note(now, 30_000);
        }
        assert!(pace.note(now, 100));
        now += Duration::from_millis(20);
        assert!(!pace.note(now, 100));
    }
}
