//! When to read rarely, so that each read brings much.
//!
//! **Invariant:** only a sender of more than [`BYTES_PER_MS`] is paced, so that light load is read at once.
//!
//! Why: the server sends a message of the stream, or 8 KiB of COPY, by itself, and each wakes a reader that waits. Waking costs
//! both sides more than the bytes do: a backlog of the stream was read in half the time once a millisecond, and the walsender's
//! part of it is as large as the reader's (`prototypes.md` B).

use std::io;
use std::time::{Duration, Instant};

use tokio::net::TcpSocket;

/// What arrives faster is a burst.
const BYTES_PER_MS: u128 = 2 * 1024;

/// How far back the rate is taken.
const WINDOW: Duration = Duration::from_millis(4);

/// How a sender gives out what it has, which decides how a burst of it is best read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Manner {
    /// Much at once, or from another machine: a pause of a moment spares the reader's wakings.
    Bulk,
    /// Every message by itself, on this machine, where each carries its bytes all the way into our socket at the sender's
    /// expense: two thirds of a walsender's time. Where our window is shut a message is only added to those that wait (its
    /// part of that time falls by half), so the window is small and stays shut for most of the time.
    Messages,
}

/// The window of a sender of messages.
const SHUT_BYTES: u32 = 16 * 1024;
/// A read of so much of it leaves more to be read.
const MORE_BYTES: usize = SHUT_BYTES as usize / 2;
/// Segments of a sender of messages. One that is larger than the open window goes by a timer, five times a second. Left to
/// itself the sender makes them half as large as the largest window that was ever open, and the window falls below that:
/// newer kernels (6.7 on) count what a segment takes in memory by what arrived last, and small messages take much.
const SEGMENT_BYTES: u32 = SHUT_BYTES / 2;

impl Manner {
    /// Prepares a socket that is not connected yet: the buffer that it has then bounds the window, and the segments that it
    /// asks for bound those of the sender, for good (`tcp(7)`, `SO_RCVBUF` and `TCP_MAXSEG`).
    pub(super) fn prepare(self, socket: &TcpSocket) -> io::Result<()> {
        match self {
            Self::Bulk => Ok(()),
            Self::Messages => {
                socket.set_recv_buffer_size(SHUT_BYTES)?;
                socket2::SockRef::from(socket).set_tcp_mss(SEGMENT_BYTES)
            }
        }
    }

    /// How long is waited before the next read of a burst.
    ///
    /// The runtime's timers count whole milliseconds and round up. From another machine it is up to 1 ms and not 2: then the
    /// window of a sender of small messages fills, and it stands still (`prototypes.md` B). What waits at a sender with a
    /// shut window has room for some 40 ms.
    pub(super) fn pause(self) -> Duration {
        match self {
            Self::Bulk => Duration::from_micros(1),
            Self::Messages => Duration::from_millis(8),
        }
    }

    /// Whether a read of so many bytes into so much room leaves more to be read at once.
    pub(super) fn has_more(self, bytes: usize, room: usize) -> bool {
        match self {
            Self::Bulk => bytes >= room,
            Self::Messages => bytes >= room.min(MORE_BYTES),
        }
    }
}

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
