//! Commands of the user's that are run at a step.

use std::process::Stdio;

use tidemark_pipeline::{Error, Kind, Result};
use tokio::process::Command;

/// What is kept of what a hook prints.
const KEPT_BYTES: usize = 4096;

/// What a hook is told, in its environment.
#[derive(Debug, Clone)]
pub(crate) struct Told<'a> {
    pub(crate) job: &'a str,
    /// Empty where all tables go over together.
    pub(crate) wave: &'a str,
    pub(crate) way: &'a str,
    /// Why it is run: `fence`, `open`, `switch`, or `abort`.
    pub(crate) step: &'a str,
    /// Which side it is about: `source` or `target`.
    pub(crate) side: &'a str,
    pub(crate) lsn: String,
}

/// Runs a command to its end; gives what it printed.
///
/// # Errors
/// It could not be started, or ended with something else than 0.
pub(crate) async fn run(command: &[String], told: &Told<'_>) -> Result<String> {
    let Some((program, arguments)) = command.split_first() else { return Ok(String::new()) };
    let ran = Command::new(program)
        .args(arguments)
        .env("TIDEMARK_JOB", told.job)
        .env("TIDEMARK_WAVE", told.wave)
        .env("TIDEMARK_WAY", told.way)
        .env("TIDEMARK_STEP", told.step)
        .env("TIDEMARK_SIDE", told.side)
        .env("TIDEMARK_LSN", &told.lsn)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await;
    let ran = ran.map_err(|cause| {
        Error::new(Kind::Usage, format!("run the hook {program}")).because(cause)
    })?;
    let mut said = String::from_utf8_lossy(&ran.stdout).into_owned();
    said.push_str(&String::from_utf8_lossy(&ran.stderr));
    let kept: String = said.chars().take(KEPT_BYTES).collect();
    if ran.status.success() {
        return Ok(kept);
    }
    let message = format!("the hook {program} ended with {}: {}", ran.status, kept.trim_end());
    Err(Error::new(Kind::Unavailable, message).hint("mend it, and run the same command again"))
}
