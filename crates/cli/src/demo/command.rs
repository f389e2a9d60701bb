//! `tidemark` itself, as its user runs it: in a directory with its configuration, one command after the other.
//!
//! **Invariant:** a command that was started is gone when its [`Running`] is. Each has a mark in the directory `running`, by
//! which the watchdog ends those of a demonstration that was killed (see [`server`](super::server)).

use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::server::{Place, RUNNING};
use crate::exit::{ExitCode, Failure};

/// Between two looks whether a command has ended.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// The one variable of ours that a command is to know.
const PROGRAMS: &str = "TIDEMARK_PG_BIN";

/// The program, and where it is run.
#[derive(Debug, Clone)]
pub(super) struct Tidemark {
    program: PathBuf,
    directory: PathBuf,
    password: String,
}

/// A command that was started.
#[derive(Debug)]
pub(super) struct Running {
    name: String,
    child: Child,
    mark: PathBuf,
    stdout: File,
    stderr: File,
    started: Instant,
}

/// One that did what it was to do.
#[derive(Debug)]
pub(super) struct Ran {
    pub(super) stdout: String,
    pub(super) time: Duration,
}

impl Ran {
    /// What it said by `--json`.
    pub(super) fn json(&self) -> Result<Value, Failure> {
        serde_json::from_str(&self.stdout)
            .map_err(|error| Failure::internal("read the answer of a command").because(&error))
    }
}

impl Tidemark {
    /// This very program, in the place's directory.
    pub(super) fn at(place: &Place) -> Result<Self, Failure> {
        let program = std::env::current_exe()
            .map_err(|error| Failure::internal("find our own program").because(&error))?;
        let (directory, password) = (place.path().to_owned(), place.password().to_owned());
        Ok(Self { program, directory, password })
    }

    /// Runs a command to its end, which must be 0.
    pub(super) async fn run(&self, args: &[&str]) -> Result<Ran, Failure> {
        self.start(args)?.ended().await
    }

    /// Starts a command.
    pub(super) fn start(&self, args: &[&str]) -> Result<Running, Failure> {
        let name = format!("tidemark {}", args.join(" "));
        let running = self.spawn(&name, args);
        running.map_err(|error| {
            Failure::new(ExitCode::Unavailable, format!("start {name}")).because(&error)
        })
    }

    fn spawn(&self, name: &str, args: &[&str]) -> io::Result<Running> {
        let (stdout, stderr) = (tempfile::tempfile()?, tempfile::tempfile()?);
        let mut command = Command::new(&self.program);
        // Ctrl-C on the terminal is for us; we end the commands.
        command.args(args).current_dir(&self.directory).process_group(0).stdin(Stdio::null());
        command.stdout(stdout.try_clone()?).stderr(stderr.try_clone()?);
        for (variable, _) in std::env::vars_os() {
            let text = variable.to_string_lossy();
            if (text.starts_with("PG") || text.starts_with("TIDEMARK_")) && text != PROGRAMS {
                command.env_remove(&variable);
            }
        }
        let child = command.env("PGPASSWORD", &self.password).spawn()?;
        let mark = self.directory.join(RUNNING).join(child.id().to_string());
        fs::write(&mark, name)?;
        Ok(Running { name: name.to_owned(), child, mark, stdout, stderr, started: Instant::now() })
    }
}

impl Running {
    /// Waits for its end, which must be 0.
    pub(super) async fn ended(mut self) -> Result<Ran, Failure> {
        loop {
            if let Some(status) = self.look()? {
                return match status.success() {
                    true => Ok(Ran { stdout: text(&self.stdout), time: self.started.elapsed() }),
                    false => Err(self.failure(status)),
                };
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Asks it to end in order.
    pub(super) async fn stop(self) -> Result<Ran, Failure> {
        self.signal(Signal::TERM);
        self.ended().await
    }

    /// One that is to go on must not have ended.
    pub(super) fn goes_on(&mut self) -> Result<(), Failure> {
        self.look()?.map_or(Ok(()), |status| Err(self.failure(status)))
    }

    fn look(&mut self) -> Result<Option<ExitStatus>, Failure> {
        let attempt = format!("watch {}", self.name);
        self.child
            .try_wait()
            .map_err(|error| Failure::new(ExitCode::Unavailable, attempt).because(&error))
    }

    /// Why it ended, in its own words.
    fn failure(&self, status: ExitStatus) -> Failure {
        let is_its = |code: &&ExitCode| status.code() == Some(i32::from(code.number()));
        let code = ExitCode::ALL.iter().find(is_its).copied().unwrap_or(ExitCode::Internal);
        // A command that has ended well too early is none of ours.
        let code = if code == ExitCode::Done { ExitCode::Internal } else { code };
        let (said, asked) = (text(&self.stderr), text(&self.stdout));
        let words = said.find("error:").map_or(said.as_str(), |at| &said[at..]);
        Failure::new(code, format!("{}: it ended with {status}", self.name))
            .cause(last_lines(words))
            .cause(last_lines(&asked))
    }

    fn signal(&self, signal: Signal) {
        if let Some(pid) = Pid::from_raw(i32::try_from(self.child.id()).unwrap_or_default()) {
            kill_process(pid, signal).ok();
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            self.child.kill().ok();
            self.child.wait().ok();
        }
        fs::remove_file(&self.mark).ok();
    }
}

fn text(mut file: &File) -> String {
    let mut text = String::new();
    file.rewind().and_then(|()| file.read_to_string(&mut text)).ok();
    text
}

fn last_lines(text: &str) -> String {
    let lines: Vec<&str> = text.trim_end().lines().collect();
    lines[lines.len().saturating_sub(12)..].join("\n")
}
