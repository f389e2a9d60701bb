//! The machinery of one run: two servers, a fault proxy before each, a directory for what the follower keeps and says.
//!
//! **Invariant:** nothing of a run outlives it, unless it is asked to keep what a failed one leaves.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use tempfile::TempDir;

use super::plan::Side;
use crate::proxy::Proxy;
use crate::{Cluster, Version, process};

/// The database on both sides.
pub(super) const DATABASE: &str = "storm";
/// Room for the state of the follower, where it has a disk of its own.
const DISK_BYTES: u64 = 1 << 30;

/// Two servers and what stands before them.
#[derive(Debug)]
pub(super) struct Rig {
    pub(super) source: Arc<Cluster>,
    pub(super) target: Arc<Cluster>,
    pub(super) source_proxy: Proxy,
    pub(super) target_proxy: Proxy,
    disk: Option<Disk>,
    directory: TempDir,
}

impl Rig {
    /// Starts everything. `own_disk`: the follower's state shall be on a small disk of its own, where that can be had.
    pub(super) fn start(version: Version, own_disk: bool) -> Result<Self> {
        let common = Cluster::builder()
            .version(version)
            .setting("shared_buffers", "64MB")
            .setting("max_connections", "60")
            .setting("max_wal_size", "256MB")
            .setting("wal_keep_size", "0")
            .setting("logical_decoding_work_mem", "64kB")
            .setting("wal_sender_timeout", "5s")
            .setting("wal_retrieve_retry_interval", "200ms")
            .setting("max_prepared_transactions", "20");
        // The source dies with its process, never with its machine: what it wrote is there without fsync.
        let source = common.clone().durable().setting("fsync", "off").start()?;
        // A crash takes along all that nobody has asked to be on the disk, not only the last moments of it.
        let target = common.durable().setting("wal_writer_delay", "10s").start()?;
        source.create_database(DATABASE)?;
        target.create_database(DATABASE)?;
        let directory = TempDir::with_prefix("tidemark-torture-")?;
        let state = directory.path().join("state");
        fs::create_dir(&state).context("create the state's place")?;
        Ok(Self {
            source_proxy: Proxy::start(&source)?,
            target_proxy: Proxy::start(&target)?,
            source: Arc::new(source),
            target: Arc::new(target),
            disk: if own_disk { Disk::mount(&state) } else { None },
            directory,
        })
    }

    pub(super) fn path(&self) -> &Path {
        self.directory.path()
    }

    pub(super) fn cluster(&self, side: Side) -> &Arc<Cluster> {
        match side {
            Side::Source => &self.source,
            Side::Target => &self.target,
        }
    }

    pub(super) fn proxy(&self, side: Side) -> &Proxy {
        match side {
            Side::Source => &self.source_proxy,
            Side::Target => &self.target_proxy,
        }
    }

    /// The URL of a side through its proxy.
    pub(super) fn url(&self, side: Side) -> String {
        self.proxy(side).url(&self.cluster(side).url(DATABASE))
    }

    /// Where a lake may be made.
    pub(super) fn lake(&self) -> PathBuf {
        self.path().join("lake")
    }

    pub(super) fn disk(&self) -> Option<&Disk> {
        self.disk.as_ref()
    }

    /// Copies what the run leaves: both servers (stopped for it) when `with_data`, their logs, the state, the output.
    pub(super) fn keep(&self, to: &Path, with_data: bool) -> Result<()> {
        fs::create_dir_all(to).with_context(|| format!("create {}", to.display()))?;
        for (name, cluster) in [("source", &self.source), ("target", &self.target)] {
            cluster.stop_fast().or_else(|_| cluster.kill())?;
            fs::write(to.join(format!("{name}.log")), cluster.log())
                .context("keep a server's log")?;
            if with_data {
                copy(&cluster.data_dir(), &to.join(format!("{name}-data")))?;
            }
        }
        copy(self.path(), &to.join("follower"))
    }
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    if to.exists() {
        fs::remove_dir_all(to).with_context(|| format!("make room at {}", to.display()))?;
    }
    process::run(process::command("cp").arg("-a").arg(from).arg(to)).map(drop)
}

/// A small file system of its own, for root only; a mount that nobody sees if the caller has a namespace of its own.
#[derive(Debug)]
pub(super) struct Disk {
    at: PathBuf,
}

impl Disk {
    fn mount(at: &Path) -> Option<Self> {
        if !process::is_root() {
            return None;
        }
        let mut command = process::command("mount");
        command
            .args([
                "-t",
                "tmpfs",
                "-o",
                &format!("size={DISK_BYTES},mode=0700"),
                "tidemark-torture",
            ])
            .arg(at);
        // In a container without the right to mount there is no such disk, and no such fault.
        process::run(&mut command).ok()?;
        Some(Self { at: at.to_owned() })
    }

    /// Takes all the room that is left.
    pub(super) fn fill(&self) -> Result<()> {
        let file = File::create(self.at.join("filler")).context("create the filler")?;
        let block = vec![0; 1 << 20];
        let mut at = 0;
        for size in [block.len(), 4096] {
            while let Ok(written) = file.write_at(&block[..size], at)
                && written > 0
            {
                at += written as u64;
            }
        }
        Ok(())
    }

    /// Gives it back.
    pub(super) fn free(&self) -> Result<()> {
        fs::remove_file(self.at.join("filler")).context("remove the filler")
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazily: a process that is being ended may still have files open there.
        process::run(process::command("umount").arg("-l").arg(&self.at)).ok();
    }
}
