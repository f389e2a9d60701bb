//! What the demonstration leaves beside the reports of the commands: `demo.json`.
//!
//! **Invariant:** the verdict is `held` only if nothing is among the problems.

use std::path::Path;

use serde::Serialize;

use super::count::Count;
use crate::exit::{ExitCode, Failure};

/// The whole demonstration.
#[derive(Debug, Clone, Serialize)]
pub(super) struct DemoReport {
    /// Version of this program.
    pub(super) tool_version: &'static str,
    /// `held` or `broken`.
    pub(super) verdict: &'static str,
    /// What did not hold, in sentences.
    pub(super) problems: Vec<String>,
    /// RFC 3339, UTC.
    pub(super) started_at: String,
    /// From the first server to the last command.
    pub(super) seconds: f64,
    /// TPC-H's scale factor.
    pub(super) scale: f64,
    /// PostgreSQL's version, of both servers.
    pub(super) server_version: String,
    /// Tables of the source, and its bytes with indexes.
    pub(super) tables: u64,
    pub(super) bytes: u64,
    /// Every command that was run, in order.
    pub(super) commands: Vec<CommandReport>,
    /// How far behind both copies were, second by second.
    pub(super) lag: Vec<Behind>,
    /// Each time that a service went to the other side.
    pub(super) switches: Vec<Switch>,
    /// The independent count, for each service.
    pub(super) count: Vec<Count>,
}

/// A command.
#[derive(Debug, Clone, Serialize)]
pub(super) struct CommandReport {
    pub(super) command: String,
    pub(super) seconds: f64,
}

/// How far behind a copy is.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Behind {
    pub(super) job: &'static str,
    pub(super) bytes: u64,
    pub(super) seconds: f64,
}

/// A service that went over, or back.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Switch {
    pub(super) way: &'static str,
    pub(super) wave: &'static str,
    /// By the journal of the cutover.
    pub(super) write_block_ms: u64,
    /// By the application: attempts of the wave's writers that were refused, and the longest that one of them waited.
    pub(super) refused: u64,
    pub(super) waited_ms: u64,
    /// Attempts of the other wave's writers that were refused meanwhile.
    pub(super) others_refused: u64,
}

/// Writes it.
pub(super) fn write(report: &DemoReport, directory: &Path) -> Result<(), Failure> {
    let json = serde_json::to_string_pretty(report)
        .map_err(|error| Failure::internal("write the report as JSON").because(&error))?;
    let path = directory.join("demo.json");
    let written =
        std::fs::create_dir_all(directory).and_then(|()| std::fs::write(&path, json + "\n"));
    written.map_err(|error| {
        Failure::new(ExitCode::Unavailable, format!("write {}", path.display())).because(&error)
    })
}
