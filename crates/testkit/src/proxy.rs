//! A TCP proxy in front of a server that misbehaves exactly where a test wants it.
//!
//! **Invariant:** without a fault every byte passes unchanged and in order; a fault fires once, at the
//! byte or message it names, counted over all connections since it was set.
//!
//! ```text
//! client --to server--> [fault, count] --> server
//! client <--to client-- [fault, count] <-- server
//! ```
//!
//! It runs on a runtime of its own, so that sync and async tests use it alike. Replies are recognised
//! by their message headers (manual, "Message Formats"), which works without TLS only.

mod framer;
mod pump;

use std::net::{Ipv4Addr, SocketAddr, TcpListener as StdListener};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::Cluster;

/// Which way bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From the client to the server.
    ToServer,
    /// From the server to the client.
    ToClient,
}

/// How a connection is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// Both sides see a reset.
    Rst,
    /// Both sides see an orderly end.
    Fin,
}

/// What goes wrong in one direction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// Cuts the connection that carries this byte, before it; once.
    CutAfter(u64, Cut),
    /// Flips the lowest bit of this byte; once.
    FlipBit(u64),
    /// Keeps connections open and passes nothing more, until [`Proxy::heal`].
    BlackHole,
    /// Holds every read back this long, until [`Proxy::heal`].
    Delay(Duration),
    /// Passes at most this many bytes per second and connection, until [`Proxy::heal`].
    Throttle(u64),
    /// Loses the reply whose command tag starts so (`COMMIT`, `COPY`) and cuts; once, to the client.
    LoseReply(&'static str, Cut),
}

/// The state that all connections share.
#[derive(Debug)]
struct Shared {
    /// By direction: the fault and how many bytes have passed since it was set.
    faults: Mutex<[Option<(Fault, u64)>; 2]>,
    /// Changes wake whoever waits in a black hole.
    changed: watch::Sender<u64>,
    /// Changes cut every open connection this way.
    cuts: watch::Sender<Cut>,
    refuse: Mutex<bool>,
    bytes: [AtomicU64; 2],
    connections: AtomicU64,
    fired: AtomicU64,
}

/// A proxy in front of one server; dropping it cuts all connections.
#[derive(Debug)]
pub struct Proxy {
    port: u16,
    upstream: SocketAddr,
    shared: Arc<Shared>,
    runtime: Option<Runtime>,
}

impl Proxy {
    /// Listens on a free port in front of a cluster.
    ///
    /// # Errors
    /// When no port can be opened.
    pub fn start(upstream: &Cluster) -> Result<Self> {
        Self::start_at(SocketAddr::from((Ipv4Addr::LOCALHOST, upstream.port())))
    }

    /// Listens on a free port in front of any address.
    ///
    /// # Errors
    /// When no port can be opened.
    pub fn start_at(upstream: SocketAddr) -> Result<Self> {
        let listener =
            StdListener::bind((Ipv4Addr::LOCALHOST, 0)).context("open the proxy's port")?;
        listener.set_nonblocking(true).context("make the proxy's port non-blocking")?;
        let port = listener.local_addr().context("read the proxy's port")?.port();
        let shared = Arc::new(Shared {
            faults: Mutex::new([None, None]),
            changed: watch::Sender::new(0),
            cuts: watch::Sender::new(Cut::Rst),
            refuse: Mutex::new(false),
            bytes: [AtomicU64::new(0), AtomicU64::new(0)],
            connections: AtomicU64::new(0),
            fired: AtomicU64::new(0),
        });
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("fault-proxy")
            .enable_all()
            .build()
            .context("start the proxy's runtime")?;
        let state = Arc::clone(&shared);
        // The runtime owns the task and ends it when the proxy is dropped.
        runtime.spawn(accept(listener, upstream, state));
        Ok(Self { port, upstream, shared, runtime: Some(runtime) })
    }

    /// The port that clients connect to.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The same URL with the proxy's port in place of the server's.
    pub fn url(&self, url: &str) -> String {
        url.replacen(&format!(":{}", self.upstream.port()), &format!(":{}", self.port), 1)
    }

    /// Sets the fault of one direction, in place of an earlier one; counting starts now.
    pub fn fault(&self, direction: Direction, fault: Fault) {
        self.shared.lock_faults()[direction as usize] = Some((fault, 0));
        self.shared.changed.send_modify(|n| *n += 1);
    }

    /// Takes all faults away: black holes let go, new connections are taken again.
    pub fn heal(&self) {
        *self.shared.lock_faults() = [None, None];
        self.refuse_connections(false);
        self.shared.changed.send_modify(|n| *n += 1);
    }

    /// Whether new connections are closed at once.
    pub fn refuse_connections(&self, refuse: bool) {
        *self.shared.refuse.lock().unwrap_or_else(PoisonError::into_inner) = refuse;
    }

    /// Cuts every open connection, idle ones and those in a black hole, too; returns at once.
    pub fn cut_all(&self, cut: Cut) {
        self.shared.cuts.send_replace(cut);
    }

    /// Cuts the connection that carries the next byte to a client; returns at once.
    pub fn cut_next(&self, cut: Cut) {
        self.fault(Direction::ToClient, Fault::CutAfter(0, cut));
    }

    /// How many bytes have passed in a direction.
    pub fn bytes(&self, direction: Direction) -> u64 {
        self.shared.bytes[direction as usize].load(Ordering::Relaxed)
    }

    /// How many connections were taken.
    pub fn connections(&self) -> u64 {
        self.shared.connections.load(Ordering::Relaxed)
    }

    /// How many faults that fire once have fired.
    pub fn fired(&self) -> u64 {
        self.shared.fired.load(Ordering::Relaxed)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // Not a blocking shutdown: the proxy may be dropped inside another runtime.
            runtime.shutdown_background();
        }
    }
}

impl Shared {
    fn lock_faults(&self) -> std::sync::MutexGuard<'_, [Option<(Fault, u64)>; 2]> {
        self.faults.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn refuses(&self) -> bool {
        *self.refuse.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn accept(listener: StdListener, upstream: SocketAddr, shared: Arc<Shared>) {
    let Ok(listener) = TcpListener::from_std(listener) else { return };
    let mut connections = JoinSet::new();
    loop {
        let Ok((client, _)) = listener.accept().await else { return };
        shared.connections.fetch_add(1, Ordering::Relaxed);
        if shared.refuses() {
            client.set_zero_linger().ok();
            continue;
        }
        let shared = Arc::clone(&shared);
        connections.spawn(async move {
            // An upstream that is down looks to the client like one that hangs up.
            if let Ok(server) = TcpStream::connect(upstream).await {
                pump::serve(client, server, &shared).await;
            }
        });
        while connections.try_join_next().is_some() {}
    }
}
