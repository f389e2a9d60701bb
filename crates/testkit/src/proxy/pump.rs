//! Carries the bytes of one connection, both ways, and does what the faults say.
//!
//! **Invariant:** bytes are counted when they are handed on; a cut ends both directions at once.

use std::io;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};

use super::framer::Framer;
use super::{Cut, Direction, Fault, Shared};

/// The request for TLS: a length of 8 and this code (manual, "SSLRequest").
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];

/// What is to be done with bytes just read.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    /// Hand all on.
    Pass,
    /// Hand the first n on, then cut.
    CutAfter(usize, Cut),
    /// Flip a bit of the byte at this index, then hand all on.
    Flip(usize),
    /// Wait until faults change, then ask again.
    Hold,
    /// Wait this long, then hand all on.
    Wait(Duration),
    /// Hand all on unless this reply is among them.
    Watch(&'static str, Cut),
}

enum End {
    Cut(Cut),
    /// A socket failed: the other one goes down with it.
    Io,
}

impl From<io::Error> for End {
    fn from(_: io::Error) -> Self {
        Self::Io
    }
}

/// Carries a connection until both sides have ended or it is cut.
pub(super) async fn serve(mut client: TcpStream, mut server: TcpStream, shared: &Shared) {
    client.set_nodelay(true).ok();
    server.set_nodelay(true).ok();
    let mut cuts = shared.cuts.subscribe();
    let end = tokio::select! {
        end = carry(&mut client, &mut server, shared) => end,
        _ = cuts.changed() => Err(End::Cut(*cuts.borrow())),
    };
    match end {
        Ok(()) | Err(End::Cut(Cut::Fin)) => {
            client.shutdown().await.ok();
            server.shutdown().await.ok();
        }
        Err(End::Cut(Cut::Rst) | End::Io) => {
            client.set_zero_linger().ok();
            server.set_zero_linger().ok();
        }
    }
}

async fn carry(client: &mut TcpStream, server: &mut TcpStream, shared: &Shared) -> Result<(), End> {
    let tls = carry_start(client, server, shared).await?;
    let (client_read, client_write) = client.split();
    let (server_read, server_write) = server.split();
    let up = pump(client_read, server_write, Direction::ToServer, None, shared);
    // What is encrypted, and what a client says, is not looked into.
    let framer = (!tls).then(Framer::default);
    let down = pump(server_read, client_write, Direction::ToClient, framer, shared);
    tokio::try_join!(up, down).map(|_| ())
}

/// Passes a request for TLS and its one-byte answer, which is not a message; whether TLS follows.
async fn carry_start(
    client: &mut TcpStream,
    server: &mut TcpStream,
    shared: &Shared,
) -> Result<bool, End> {
    let mut first = [0; 8];
    loop {
        // Everything that a client may start with is at least eight bytes long.
        let peeked = client.peek(&mut first).await?;
        if peeked == 0 {
            return Ok(false);
        }
        if peeked == first.len() {
            break;
        }
        tokio::task::yield_now().await;
    }
    if first != SSL_REQUEST {
        return Ok(false);
    }
    client.read_exact(&mut first).await?;
    server.write_all(&first).await?;
    let answer = server.read_u8().await?;
    client.write_u8(answer).await?;
    shared.bytes[Direction::ToServer as usize].fetch_add(8, Ordering::Relaxed);
    shared.bytes[Direction::ToClient as usize].fetch_add(1, Ordering::Relaxed);
    Ok(answer == b'S')
}

async fn pump(
    mut from: ReadHalf<'_>,
    mut to: WriteHalf<'_>,
    direction: Direction,
    mut framer: Option<Framer>,
    shared: &Shared,
) -> Result<(), End> {
    let mut buffer = vec![0; 64 * 1024];
    let mut changes = shared.changed.subscribe();
    loop {
        let length = from.read(&mut buffer).await?;
        if length == 0 {
            if let Some(framer) = &mut framer {
                shared.write(&mut to, &framer.release(), direction).await?;
            }
            // A black hole swallows the end of a connection, too: the other side keeps a zombie.
            changes.mark_unchanged();
            while shared.is_black_hole(direction) {
                changes.changed().await.map_err(|_| End::Io)?;
            }
            to.shutdown().await?;
            return Ok(());
        }
        let bytes = &mut buffer[..length];
        let step = loop {
            changes.mark_unchanged();
            match shared.step(direction, bytes.len()) {
                Step::Hold => changes.changed().await.map_err(|_| End::Io)?,
                step => break step,
            }
        };
        let (tag, cut) = match step {
            Step::CutAfter(passing, cut) => {
                if let Some(framer) = &mut framer {
                    shared.write(&mut to, &framer.release(), direction).await?;
                }
                shared.write(&mut to, &bytes[..passing], direction).await?;
                return Err(End::Cut(cut));
            }
            Step::Flip(index) => {
                bytes[index] ^= 1;
                (None, None)
            }
            Step::Wait(pause) => {
                tokio::time::sleep(pause).await;
                (None, None)
            }
            Step::Watch(tag, cut) => (Some(tag), Some(cut)),
            Step::Pass | Step::Hold => (None, None),
        };
        let Some(framer) = &mut framer else {
            shared.write(&mut to, bytes, direction).await?;
            continue;
        };
        let framed = framer.push(bytes, tag);
        shared.write(&mut to, &framed.pass, direction).await?;
        if let (true, Some(cut)) = (framed.found, cut) {
            shared.disarm(direction);
            return Err(End::Cut(cut));
        }
    }
}

impl Shared {
    async fn write(
        &self,
        to: &mut WriteHalf<'_>,
        bytes: &[u8],
        direction: Direction,
    ) -> Result<(), End> {
        to.write_all(bytes).await?;
        self.bytes[direction as usize].fetch_add(bytes.len() as u64, Ordering::Relaxed);
        Ok(())
    }

    fn is_black_hole(&self, direction: Direction) -> bool {
        matches!(self.lock_faults()[direction as usize], Some((Fault::BlackHole, _)))
    }

    fn disarm(&self, direction: Direction) {
        self.lock_faults()[direction as usize] = None;
        self.fired.fetch_add(1, Ordering::Relaxed);
    }

    /// Decides over `length` bytes that were just read, and counts them for the fault.
    fn step(&self, direction: Direction, length: usize) -> Step {
        let mut faults = self.lock_faults();
        let Some((fault, passed)) = faults[direction as usize].as_mut() else { return Step::Pass };
        let start = *passed;
        let position = |at: u64| {
            at.checked_sub(start).and_then(|n| usize::try_from(n).ok()).filter(|n| *n < length)
        };
        let step = match fault {
            Fault::CutAfter(at, cut) => {
                position(*at).map_or(Step::Pass, |n| Step::CutAfter(n, *cut))
            }
            Fault::FlipBit(at) => position(*at).map_or(Step::Pass, Step::Flip),
            Fault::BlackHole => return Step::Hold,
            Fault::Delay(pause) => Step::Wait(*pause),
            Fault::Throttle(rate) => {
                let seconds = length as f64 / (*rate).max(1) as f64;
                Step::Wait(Duration::from_secs_f64(seconds))
            }
            Fault::LoseReply(tag, cut) => Step::Watch(tag, *cut),
        };
        *passed += length as u64;
        if matches!(step, Step::CutAfter(..) | Step::Flip(_)) {
            faults[direction as usize] = None;
            self.fired.fetch_add(1, Ordering::Relaxed);
        }
        step
    }
}
