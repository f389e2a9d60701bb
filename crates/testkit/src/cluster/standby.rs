//! Standbys: a copy of a running cluster that follows it, and promotion.
//!
//! **Invariant:** the primary goes on while it is copied.
//!
//! The packages of the newer versions have no `pg_basebackup`, so this is the low-level base backup of
//! the manual ("Making a Base Backup Using the Low Level API"): one psql session holds the backup
//! open around the copy. Slots are not copied, as `pg_basebackup` does not either.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};

use super::{Cluster, DEADLINE, Version, give_to_server};
use crate::process;

impl Cluster {
    /// Starts a hot standby that streams from this cluster.
    ///
    /// # Errors
    /// When the copy cannot be made or the standby does not start.
    pub fn standby(&self) -> Result<Self> {
        let standby = Self::prepare(self.builder.clone(), |_, _, data| self.base_backup(data))?;
        let primary = format!(
            "\nprimary_conninfo = 'host={} port={} user=postgres'\n",
            self.socket_dir().display(),
            self.port()
        );
        let path = standby.data_dir().join("postgresql.auto.conf");
        let mut text = fs::read_to_string(&path).unwrap_or_default();
        text.push_str(&primary);
        standby.write_server_file("postgresql.auto.conf", &text)?;
        standby.write_server_file("standby.signal", "")?;
        standby.start()?;
        Ok(standby)
    }

    fn base_backup(&self, target: &Path) -> Result<()> {
        let (start, stop) = if self.version() >= Version::V15 {
            ("pg_backup_start('testkit', true)", "pg_backup_stop(false)")
        } else {
            ("pg_start_backup('testkit', true, false)", "pg_stop_backup(false)")
        };
        let (from, to) = (self.data_dir(), target);
        let (from, to) = (from.display(), to.display());
        // Files may vanish under cp: the WAL from the start of the backup repairs that.
        let script = format!(
            "SELECT {start};\n\\! cp -a '{from}' '{to}' 2>/dev/null\n\\o '{to}/backup_label'\n\
             SELECT labelfile FROM {stop};\n"
        );
        self.psql("postgres", &script).context("copy the primary")?;
        for name in ["postmaster.pid", "postmaster.opts"] {
            fs::remove_file(target.join(name)).ok();
        }
        let slots = target.join("pg_replslot");
        fs::remove_dir_all(&slots).context("remove the copied slots")?;
        fs::create_dir(&slots).context("make an empty directory of slots")?;
        give_to_server(&slots)?;
        give_to_server(&target.join("backup_label"))
    }

    /// Promotes this standby and waits until it takes writes.
    ///
    /// # Errors
    /// When it is not a standby.
    pub fn promote(&self) -> Result<()> {
        if self.psql("postgres", "SELECT pg_promote(true, 60)")? != "t" {
            bail!("promote the standby on port {}", self.port());
        }
        self.wait_for("postgres", "SELECT pg_is_in_recovery()", "f")
    }

    /// Waits until this standby has replayed all that `primary` has written so far.
    ///
    /// # Errors
    /// When it has not within a minute.
    pub fn wait_for_replay(&self, primary: &Self) -> Result<()> {
        let head = primary.psql("postgres", "SELECT pg_current_wal_insert_lsn()")?;
        let sql = format!("SELECT pg_last_wal_replay_lsn() >= '{head}'::pg_lsn");
        let replayed =
            process::poll(DEADLINE, || Ok((self.psql("postgres", &sql)? == "t").then_some(())))?;
        replayed.with_context(|| format!("wait for the standby to replay {head}"))
    }
}
