//! Commands and URLs of the user's that are told at a step.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use futures::future::Either;
use rustix::process::{Pid, Signal};
use serde::Serialize;
use tidemark_pipeline::{Error, Kind, Result};
use tokio::process::Command;

/// What is kept of what a hook prints.
const KEPT_BYTES: usize = 4096;

/// What a hook is told, in its environment or as JSON.
#[derive(Debug, Clone, Serialize)]
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

/// How somebody is told that it is their turn.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Hook {
    /// Nobody is.
    #[default]
    None,
    /// A command with its arguments is run.
    Command(Vec<String>),
    /// A POST to this URL, which may hold a secret, with JSON as its body.
    Url(String),
}

/// Runs a hook to its end; gives what it printed or answered.
///
/// # Errors
/// It could not be started or reached, ended with something else than success, or took too long.
pub(crate) async fn run(hook: &Hook, told: &Told<'_>, patience: Duration) -> Result<String> {
    let (name, running) = match hook {
        Hook::None => return Ok(String::new()),
        Hook::Command(words) => {
            let Some((program, arguments)) = words.split_first() else { return Ok(String::new()) };
            (program.as_str(), Either::Left(command(program, arguments, told)))
        }
        Hook::Url(url) => (shown(url), Either::Right(call(url, told))),
    };
    let said = tokio::time::timeout(patience, running).await.map_err(|_| {
        let message = format!(
            "the hook {name} was not done after {} s (cutover.hook_timeout)",
            patience.as_secs()
        );
        Error::new(Kind::Unavailable, message).hint("mend it, and run the same command again")
    })?;
    said.map(|said| said.chars().take(KEPT_BYTES).collect())
}

async fn command(program: &str, arguments: &[String], told: &Told<'_>) -> Result<String> {
    let child = Command::new(program)
        .args(arguments)
        .env("TIDEMARK_JOB", told.job)
        .env("TIDEMARK_WAVE", told.wave)
        .env("TIDEMARK_WAY", told.way)
        .env("TIDEMARK_STEP", told.step)
        .env("TIDEMARK_SIDE", told.side)
        .env("TIDEMARK_LSN", &told.lsn)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true)
        .spawn();
    let failed = |cause: std::io::Error| {
        Error::new(Kind::Usage, format!("run the hook {program}")).because(cause)
    };
    let child = child.map_err(failed)?;
    let id = child.id().and_then(|id| Pid::from_raw(id.cast_signed()));
    let mut group = Group(id);
    let ran = child.wait_with_output().await.map_err(failed)?;
    // What it leaves running on purpose stays.
    group.0 = None;
    let mut said = String::from_utf8_lossy(&ran.stdout).into_owned();
    said.push_str(&String::from_utf8_lossy(&ran.stderr));
    match ran.status.success() {
        true => Ok(said),
        false => Err(refused(program, &ran.status.to_string(), &said)),
    }
}

async fn call(url: &str, told: &Told<'_>) -> Result<String> {
    let name = shown(url);
    let failed = |attempt: &str, cause: reqwest::Error| {
        // The URL in its text may hold a secret.
        Error::new(Kind::Unavailable, format!("{attempt} the hook {name}"))
            .because(cause.without_url())
            .hint("mend it, and run the same command again")
    };
    let policy = reqwest::redirect::Policy::none();
    let client = reqwest::Client::builder().redirect(policy).build();
    let client = client.map_err(|cause| failed("prepare to call", cause))?;
    let body = serde_json::to_string(told).expect("it is plain data");
    let request = client.post(url).header("content-type", "application/json").body(body);
    let answer = request.send().await.map_err(|cause| failed("call", cause))?;
    let status = answer.status();
    let said = answer.text().await.map_err(|cause| failed("read the answer of", cause))?;
    match status.is_success() {
        true => Ok(said),
        false => Err(refused(name, &status.to_string(), &said)),
    }
}

fn refused(name: &str, ended: &str, said: &str) -> Error {
    let said: String = said.chars().take(KEPT_BYTES).collect();
    let message = format!("the hook {name} ended with {ended}: {}", said.trim_end());
    Error::new(Kind::Unavailable, message).hint("mend it, and run the same command again")
}

/// A URL without what may be a secret: of a path nobody knows.
fn shown(url: &str) -> &str {
    let (_, rest) = url.split_once("://").unwrap_or(("", url));
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    rest[..end].rsplit_once('@').map_or(&rest[..end], |(_, host)| host)
}

/// Whether a command can be started at all.
///
/// # Errors
/// There is no such program.
pub(crate) fn check(hook: &Hook) -> Result<()> {
    let Hook::Command(words) = hook else { return Ok(()) };
    let Some(program) = words.first() else { return Ok(()) };
    let may_run = |path: &Path| {
        path.metadata().is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
    };
    let path = std::env::var_os("PATH").unwrap_or_default();
    let is_there = match program.contains('/') {
        true => may_run(Path::new(program)),
        false => std::env::split_paths(&path).any(|directory| may_run(&directory.join(program))),
    };
    match is_there {
        true => Ok(()),
        false => Err(Error::new(Kind::Preflight, format!("the hook {program} cannot be run"))
            .hint("look at its name and whether it is executable (chmod +x)")),
    }
}

/// A hook's processes, which are ended when nobody waits for them any more: what it has started would go on otherwise, behind
/// whatever is done next.
struct Group(Option<Pid>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            rustix::process::kill_process_group(group, Signal::KILL).ok();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_shown_without_its_secrets() {
        for url in [
            "https://a.example:80/x?token=1#y",
            "https://me:secret@a.example:80/x",
            "http://a.example:80?t",
        ] {
            assert_eq!(shown(url), "a.example:80");
        }
        assert_eq!(shown("https://hooks.example/services/T0/SECRET"), "hooks.example");
    }
}
