//! Child processes: how commands are run, and how a state is waited for.
//!
//! **Invariant:** no command inherits `PG*` variables or another library path of the caller, and no
//! server process runs as root.
//!
//! PostgreSQL refuses to run as root (manual, "The PostgreSQL User Account"), so when the tests are
//! root, everything of the server goes through `setpriv` to an unprivileged user.

use std::ffi::OsStr;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// The user and group id that servers run as when the tests run as root (`nobody`, `nogroup`).
pub(crate) const UNPRIVILEGED: (u32, u32) = (65534, 65534);

/// Whether this process is root.
pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// A command with a clean environment: only `PATH`, `HOME`, `TMPDIR` and the C locale.
pub(crate) fn command(program: impl AsRef<OsStr>) -> Command {
    clean(Command::new(program))
}

/// A command that runs as the unprivileged user when we are root.
pub(crate) fn server_command(program: &Path) -> Command {
    if !is_root() {
        return command(program);
    }
    let mut command = command("setpriv");
    let (uid, gid) = UNPRIVILEGED;
    command.arg(format!("--reuid={uid}")).arg(format!("--regid={gid}"));
    command.arg("--clear-groups").arg("--").arg(program);
    command
}

fn clean(mut command: Command) -> Command {
    command.env_clear().env("LC_ALL", "C.UTF-8").current_dir("/");
    for name in ["PATH", "HOME", "TMPDIR"] {
        if let Some(value) = std::env::var_os(name) {
            command.env(name, value);
        }
    }
    command
}

/// Runs a command to its end and gives its output; an exit code other than 0 is an error with the
/// end of what it said on stderr.
pub(crate) fn run(command: &mut Command) -> Result<Output> {
    command.stdin(Stdio::null());
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.output().with_context(|| format!("run {program}"))?;
    if !output.status.success() {
        let args: Vec<_> = command.get_args().map(|a| a.to_string_lossy().into_owned()).collect();
        let stderr = tail(&String::from_utf8_lossy(&output.stderr), 20);
        let shown: String = args.join(" ").chars().take(300).collect();
        bail!("run {program} {shown}: {}\n{stderr}", output.status);
    }
    Ok(output)
}

/// The last `lines` lines of a text.
pub(crate) fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

/// Asks `probe` until it answers, at most `deadline` long; `None` after that.
#[expect(clippy::disallowed_methods, reason = "the one place that polls: a state, with a deadline")]
pub(crate) fn poll<T>(
    deadline: Duration,
    mut probe: impl FnMut() -> Result<Option<T>>,
) -> Result<Option<T>> {
    let end = Instant::now() + deadline;
    let mut pause = Duration::from_millis(2);
    loop {
        if let Some(answer) = probe()? {
            return Ok(Some(answer));
        }
        if Instant::now() >= end {
            return Ok(None);
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(25));
    }
}

/// As [`run`], with bytes on stdin.
pub(crate) fn run_with_input(command: &mut Command, input: &[u8]) -> Result<Output> {
    let program = command.get_program().to_string_lossy().into_owned();
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("spawn {program}"))?;
    let mut stdin = child.stdin.take().context("take the child's stdin")?;
    let output = std::thread::scope(|scope| {
        // A child that ends early closes the pipe: its exit code says more than our EPIPE.
        scope.spawn(move || stdin.write_all(input).ok());
        child.wait_with_output()
    })
    .with_context(|| format!("run {program}"))?;
    if !output.status.success() {
        let stderr = tail(&String::from_utf8_lossy(&output.stderr), 20);
        let shown: String = String::from_utf8_lossy(input).trim().chars().take(400).collect();
        bail!("run {program}: {}\n{stderr}\nwith: {shown}", output.status);
    }
    Ok(output)
}
