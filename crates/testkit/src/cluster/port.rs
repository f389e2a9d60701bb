//! TCP ports that no other test takes, also while the server is down.
//!
//! **Invariant:** while a [`PortLease`] lives, no other testkit process gets its port.
//!
//! Ports lie below the kernel's range for outgoing connections, so that a restart finds its port
//! free; a lock file per port keeps parallel test processes apart.

use std::fs::{File, OpenOptions};
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::PermissionsExt;

use anyhow::{Context, Result, bail};
use rand::Rng;
use rustix::fs::{FlockOperation, flock};

const RANGE: std::ops::Range<u16> = 15_000..32_000;

/// A port and the lock that keeps it.
#[derive(Debug)]
pub(crate) struct PortLease {
    pub(crate) port: u16,
    _lock: File,
}

impl PortLease {
    /// Takes a port that is neither leased nor bound.
    pub(crate) fn take() -> Result<Self> {
        let directory = std::env::temp_dir().join("tidemark-ports");
        std::fs::create_dir_all(&directory).context("create the directory of port locks")?;
        // Shared by all users of the machine; only the owner may change the mode.
        std::fs::set_permissions(&directory, PermissionsExt::from_mode(0o1777)).ok();
        for _ in 0..200 {
            let port = rand::rng().random_range(RANGE);
            let path = directory.join(port.to_string());
            let Ok(lock) = OpenOptions::new().create(true).append(true).open(&path) else {
                continue;
            };
            if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
                continue;
            }
            if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
                return Ok(Self { port, _lock: lock });
            }
        }
        bail!("find a free TCP port from {} to {}", RANGE.start, RANGE.end)
    }
}
