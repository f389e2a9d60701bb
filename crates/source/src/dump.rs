//! Dumps the source's schema under the exported snapshot, with the installed `pg_dump`.
//!
//! **Invariant:** the archive shows the schema of the very snapshot that the rows are read under; the password travels in
//! the child's environment, never in its arguments.
//!
//! **Not here:** restoring it (`sink::postgres`).

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use tidemark_wire::{ConnectSpec, LIBPQ_VARIABLES};
use tokio::process::Command;

/// What went wrong around `pg_dump`.
#[derive(Debug, thiserror::Error)]
pub enum DumpError {
    /// It is not installed.
    #[error("run pg_dump, which is needed to create the target's schema: {0}")]
    Missing(#[source] std::io::Error),
    /// It is older than the server.
    #[error(
        "dump the schema of a server of version {server} with pg_dump {tool}: pg_dump must not be older than the server"
    )]
    TooOld {
        /// `pg_dump`'s major version.
        tool: u32,
        /// The server's major version.
        server: u32,
    },
    /// It failed.
    #[error("dump the schema of database {database:?} with pg_dump: {message}")]
    Failed {
        /// The source's database.
        database: String,
        /// The errors that it printed.
        message: String,
    },
    /// It was not let through to a table.
    #[error(
        "dump the schema of database {database:?} with pg_dump: a table stayed locked for {patience:?}: {message}"
    )]
    KeptWaiting {
        /// The source's database.
        database: String,
        /// How long it waited.
        patience: Duration,
        /// The errors that it printed.
        message: String,
    },
}

impl DumpError {
    /// The way out.
    pub fn hint(&self) -> String {
        let package = |major: &str| {
            format!(
                "install the package postgresql-client{major} (Debian, Ubuntu) or postgresql{major} (Fedora, Alpine), \
                 or create the tables yourself and set target.schema = \"exists\""
            )
        };
        match self {
            Self::Missing(_) => package(""),
            Self::TooOld { server, .. } => package(&format!("-{server}")),
            Self::Failed { .. } => {
                "read pg_dump's message above; with target.schema = \"exists\" it is not needed"
                    .to_owned()
            }
            Self::KeptWaiting { .. } => {
                "wait for who has it locked, or raise snapshot.lock_timeout".to_owned()
            }
        }
    }
}

/// The `pg_dump` (or, with another name, `pg_restore`) to use for a server of this major version: the oldest one that is
/// not older and installed where Debian puts them, otherwise the one on `PATH`. `TIDEMARK_PG_BIN` names a directory that comes first.
pub fn client_tool(name: &str, at_least: u32) -> PathBuf {
    if let Some(directory) = std::env::var_os("TIDEMARK_PG_BIN") {
        return Path::new(&directory).join(name);
    }
    let installed = |major: u32| {
        Path::new("/usr/lib/postgresql").join(major.to_string()).join("bin").join(name)
    };
    (at_least..=30).map(installed).find(|path| path.exists()).unwrap_or_else(|| PathBuf::from(name))
}

/// The major version of a client tool.
///
/// # Errors
/// It is not installed or does not say its version.
pub async fn client_tool_version(path: &Path) -> Result<u32, DumpError> {
    let output = Command::new(path)
        .arg("--version")
        .stdin(Stdio::null())
        .output()
        .await
        .map_err(DumpError::Missing)?;
    let text = String::from_utf8_lossy(&output.stdout);
    let version = text.split_whitespace().find_map(|word| {
        let digits: String = word.chars().take_while(char::is_ascii_digit).collect();
        digits.parse().ok()
    });
    version.ok_or_else(|| {
        DumpError::Missing(std::io::Error::other(format!(
            "{} does not say its version",
            path.display()
        )))
    })
}

/// Checks that `pg_dump` is there and new enough for a server of `server_version_num`.
///
/// # Errors
/// [`DumpError::Missing`], [`DumpError::TooOld`].
pub async fn check_tool(server_version_num: u32) -> Result<PathBuf, DumpError> {
    let server = server_version_num / 10_000;
    let path = client_tool("pg_dump", server);
    let tool = client_tool_version(&path).await?;
    if tool < server {
        return Err(DumpError::TooOld { tool, server });
    }
    Ok(path)
}

/// Writes the whole schema, as the snapshot shows it, into a custom-format archive at `archive`. No lock is waited for
/// longer than `patience`: behind an ALTER that waits for the snapshot's holder that would be without end.
///
/// # Errors
/// See [`DumpError`].
pub async fn dump_schema(
    spec: &ConnectSpec,
    server_version_num: u32,
    snapshot_id: &str,
    patience: Duration,
    archive: &Path,
) -> Result<(), DumpError> {
    let tool = check_tool(server_version_num).await?;
    let started = Instant::now();
    let mut command = Command::new(tool);
    for variable in LIBPQ_VARIABLES {
        command.env_remove(variable);
    }
    let output = command
        .args(["--format=custom", "--schema-only", "--no-publications", "--no-subscriptions"])
        .args([
            "--exclude-schema=tidemark",
            "--exclude-schema=tidemark_selftest_*",
            "--no-password",
            "--compress=0",
        ])
        .arg(format!("--snapshot={snapshot_id}"))
        .arg(format!("--lock-wait-timeout={}", crate::snapshot::milliseconds(patience)))
        .arg("--file")
        .arg(archive)
        .envs(spec.libpq_env())
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .map_err(DumpError::Missing)?;
    if output.status.success() {
        return Ok(());
    }
    let message = String::from_utf8_lossy(&output.stderr);
    // Behind its own words it repeats a query of many lines.
    let said: Vec<&str> = message.lines().filter(|line| line.contains("error:")).take(4).collect();
    let (database, said) = (spec.database().to_owned(), said.join("; "));
    // The server's words for it may be in any language; the statement and the time are not.
    let kept_waiting = message.contains("LOCK TABLE") && started.elapsed() >= patience;
    Err(match kept_waiting {
        true => DumpError::KeptWaiting { database, patience, message: said },
        false => DumpError::Failed { database, message: said },
    })
}
