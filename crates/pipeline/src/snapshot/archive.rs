//! The source's schema as an archive of `pg_dump`, for as long as the run needs it.
//!
//! **Invariant:** it shows the schema of the snapshot that the rows are read under, and it is gone when the run ends.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use tidemark_sink::postgres::SchemaMode;
use tidemark_source::{Catalog, Snapshot, dump};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use xxhash_rust::xxh3::Xxh3;

use super::Run;
use crate::job::{TableOptions, Target};
use crate::{Error, Kind, Result};

/// What libpq says when a connection cannot be made or was lost; `pg_dump`'s exit code is the same for everything.
const CONNECTION_LOST: [&str; 5] = [
    "server closed the connection",
    "terminating connection",
    "connection to server",
    "could not receive data",
    // The session that exported it was lost before pg_dump imported it.
    "invalid snapshot identifier",
];

/// The schema dump and its list; removed when the run ends.
pub(super) struct Archive {
    pub(super) path: PathBuf,
    /// Of its definitions; none where a run needs none.
    pub(super) digest: Option<String>,
}

impl Drop for Archive {
    fn drop(&mut self) {
        for extension in ["dump", "list", "late", "last"] {
            // It may never have been written.
            drop(std::fs::remove_file(self.path.with_extension(extension)));
        }
    }
}

impl Run<'_> {
    pub(super) async fn dump_schema(
        &self,
        catalog: &Catalog,
        snapshot: &Snapshot,
    ) -> Result<Option<Archive>> {
        let Target::Postgres(target) = &self.job.target else { return Ok(None) };
        if target.schema == SchemaMode::Exists {
            return Ok(None);
        }
        let mut archive = Archive { path: self.job.state_dir.join("schema.dump"), digest: None };
        let dumped = dump::dump_schema(
            &self.job.source,
            catalog.server.version_num,
            snapshot.id(),
            self.job.lock_timeout,
            &archive.path,
        );
        match dumped.await {
            Ok(()) => {}
            Err(cause) => return Err(self.dump_error(cause).await),
        }
        if self.continuation.is_some() {
            let digest = digest(&archive.path, catalog.server.version_num).await;
            archive.digest = Some(digest.map_err(|cause| {
                Error::new(Kind::Usage, "read the schema's archive with pg_restore")
                    .hint(
                        "install the package postgresql-client, or set target.schema = \"exists\"",
                    )
                    .because(cause)
            })?);
        }
        Ok(Some(archive))
    }

    /// Nothing has been moved yet: where a connection was lost, or somebody waits for the snapshot's holder and `pg_dump`
    /// for them, the run begins again.
    async fn dump_error(&self, cause: dump::DumpError) -> Error {
        let message = cause.to_string();
        let is_cut = CONNECTION_LOST.iter().any(|words| message.contains(words));
        let is_blocked = matches!(cause, dump::DumpError::KeptWaiting { .. });
        let waits = match is_blocked {
            true => tidemark_source::waiting_for_us(&self.job.source).await.ok().flatten(),
            false => None,
        };
        let is_lost = is_cut || is_blocked;
        let kind = if is_lost { Kind::Unavailable } else { Kind::Usage };
        let hint = waits.map_or_else(
            || cause.hint(),
            |waits| format!("{waits}; end that session or wait for it, then run again"),
        );
        let mut error = Error::new(kind, message).hint(hint);
        error.lost_snapshot = is_lost;
        error
    }
}

/// What a snapshot copies its rows into and which columns it takes: what is whole stays whole only where this stays. None
/// where the archive's definitions were not summed.
pub(super) fn definitions(archive: Option<&Archive>, options: &[TableOptions]) -> Option<String> {
    let mut sum = Xxh3::new();
    if let Some(archive) = archive {
        sum.update(archive.digest.as_ref()?.as_bytes());
    }
    let mut chosen: Vec<_> = options
        .iter()
        .filter_map(|table| Some((table.name.to_string(), table.columns.as_ref()?)))
        .collect();
    chosen.sort();
    for (table, columns) in chosen {
        let mut columns = columns.clone();
        columns.sort();
        sum.update(format!("{table} {columns:?}\n").as_bytes());
    }
    let filter =
        |table: &TableOptions| Some(format!("{} {}\n", table.name, table.filter.as_ref()?));
    let mut filters: Vec<String> = options.iter().filter_map(filter).collect();
    filters.sort();
    filters.iter().for_each(|filter| sum.update(filter.as_bytes()));
    Some(format!("{:032x}", sum.digest128()))
}

/// What the archive's definitions come to: of the statements that it would be restored with, without comments, which carry
/// versions and times, and without the key that newer tools write at random around them.
async fn digest(archive: &Path, server_version: u32) -> std::io::Result<String> {
    let tool = dump::client_tool("pg_restore", server_version / 10_000);
    let mut command = tokio::process::Command::new(tool);
    command.arg("--file=-").arg(archive).stdin(Stdio::null()).kill_on_drop(true);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
    let output = child.stdout.take().ok_or_else(|| std::io::Error::other("it has no output"))?;
    let mut output = BufReader::new(output);
    let (mut sum, mut line) = (Xxh3::new(), Vec::new());
    while output.read_until(b'\n', &mut line).await? > 0 {
        let is_meant = !["--", "\\restrict ", "\\unrestrict "]
            .iter()
            .any(|start| line.starts_with(start.as_bytes()));
        if is_meant {
            sum.update(&line);
        }
        line.clear();
    }
    let status = child.wait().await?;
    if !status.success() {
        return Err(std::io::Error::other(format!("pg_restore ended with {status}")));
    }
    Ok(format!("{:032x}", sum.digest128()))
}
