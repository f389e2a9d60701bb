//! What a lake says its tables hold, read by a program that shares nothing with what wrote it.
//!
//! **Invariant:** only what `docs/lake-format.md` says is used; whatever a reader could not make sense of is an error.

use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::Cluster;
use crate::process;

const READER: &str = include_str!("lake.py");

/// A psql script that loads the present rows of all tables of a lake into empty tables.
///
/// # Errors
/// There is no Python with pyarrow, or the lake is not as its documents say.
pub fn script(root: &Path) -> Result<Vec<u8>> {
    Ok(process::run(process::command(python()).args(["-c", READER]).arg(root))?.stdout)
}

/// Loads the present rows of all tables of a lake into empty tables.
///
/// # Errors
/// As for [`script`], and where a table is not there or its rows do not fit.
pub fn load(root: &Path, (cluster, database): (&Cluster, &str)) -> Result<()> {
    let script = script(root)?;
    process::run_with_input(&mut cluster.psql_command(database), &script)?;
    Ok(())
}

/// The Python that has pyarrow: `scripts/lib.sh` makes it.
pub(crate) fn python() -> PathBuf {
    let made = || crate::cluster::cache_home().join("python/bin/python");
    std::env::var_os("TIDEMARK_PYTHON").map_or_else(made, PathBuf::from)
}
