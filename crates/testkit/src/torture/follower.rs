//! Whoever follows the source: the binary under test, or PostgreSQL's own subscription as the yardstick of the rig.
//!
//! **Invariant:** a process that was started here is gone when its [`Follower`] is dropped, and when this process dies.

use std::fs::{self, File};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Resource, Rlimit, Signal, kill_process, prlimit};
use serde_json::Value;

use super::configuration::Configuration;
use super::plan::{Fault, Side};
use super::watch::Questions;
use crate::{Cluster, process};

/// How a process has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// With this exit code.
    Code(i32),
    /// By this signal.
    Signal(i32),
}

impl From<ExitStatus> for Ended {
    fn from(status: ExitStatus) -> Self {
        match (status.code(), status.signal()) {
            (Some(code), _) => Self::Code(code),
            (None, signal) => Self::Signal(signal.unwrap_or_default()),
        }
    }
}

/// What `--until now` said.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Drained {
    pub(super) ended: Ended,
    /// Its report, where it printed one.
    pub(super) report: Option<Value>,
}

/// Follows a source.
pub(super) trait Follower: Send {
    /// Starts it, or starts it again.
    fn start(&mut self) -> Result<()>;
    /// The process to look at; 0 for none.
    fn pid(&self) -> u32;
    /// How it has ended, once; none while it runs.
    fn ended(&mut self) -> Result<Option<Ended>>;
    /// Sends a signal.
    fn signal(&mut self, signal: Signal) -> Result<()>;
    /// Limits the length of the files it writes; none lifts the limit.
    fn limit_files(&mut self, bytes: Option<u64>) -> Result<()>;
    /// Starts a second instance and waits until it ends; none if it does not within the time.
    fn second(&mut self, same_directory: bool, within: Duration) -> Result<Option<Ended>>;
    /// Starts another command of the job, beside it or in its place; none where there are no others.
    fn command(&mut self, arguments: &[&str]) -> Result<Option<Child>>;
    /// Brings the target to where the source is and ends; it does not run now.
    fn drain(&mut self, within: Duration) -> Result<Drained>;
    /// What to ask the servers about it.
    fn questions(&self) -> Questions;
    /// Names of its sessions on a side, a pattern.
    fn sessions(&self, side: Side) -> &'static str;
    /// Whether a fault makes sense for it.
    fn knows(&self, fault: &Fault) -> bool;
    /// Its last words.
    fn said(&self) -> String;
}

/// The job's name in every run.
const JOB: &str = "t";

/// `tidemark sync`, as a process.
#[derive(Debug)]
pub(super) struct Tidemark {
    binary: PathBuf,
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
    /// For the output of each run.
    directory: PathBuf,
    child: Option<Child>,
    runs: u32,
    /// The root, where the target is a lake.
    lake: Option<PathBuf>,
    configuration: Configuration,
}

impl Tidemark {
    pub(super) fn new(
        binary: &Path,
        environment: Vec<(String, String)>,
        directory: &Path,
        urls: (&str, &str),
        (lake, configuration): (Option<PathBuf>, Configuration),
    ) -> Result<Self> {
        // Read by every run: it is the working directory.
        let file = configuration.toml();
        fs::write(directory.join("tidemark.toml"), file).context("write the follower's file")?;
        let pair = |name: &str, value: &str| [name.to_owned(), value.to_owned()];
        let arguments = [
            pair("--source", urls.0),
            pair("--target", urls.1),
            pair("--job", JOB),
            pair("--progress", "none"),
        ];
        Ok(Self {
            binary: binary.to_owned(),
            arguments: arguments.concat(),
            environment,
            directory: directory.to_owned(),
            child: None,
            runs: 0,
            lake,
            configuration,
        })
    }

    pub(super) fn state_dir(directory: &Path) -> PathBuf {
        directory.join("state").join("job")
    }

    fn spawn(&mut self, more: &[&str], state_dir: &Path) -> Result<Child> {
        self.runs += 1;
        let file = |kind: &str| {
            File::create(self.directory.join(format!("run-{:03}.{kind}", self.runs)))
                .context("create a file for the output")
        };
        // It must not outlive this process, however that ends; `setpriv` becomes what it starts.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--"]).arg(&self.binary);
        command.args(more).args(&self.arguments).arg("--state-dir").arg(state_dir);
        command.current_dir(&self.directory).env_clear();
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::null()).stdout(file("out")?).stderr(file("err")?);
        command.spawn().with_context(|| format!("start {}", self.binary.display()))
    }

    fn output(&self, run: u32, kind: &str) -> String {
        let path = self.directory.join(format!("run-{run:03}.{kind}"));
        String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned()
    }

    fn pid_of(&self) -> Option<Pid> {
        self.child.as_ref().and_then(|child| i32::try_from(child.id()).ok()).and_then(Pid::from_raw)
    }
}

impl Drop for Tidemark {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            // It may have ended already.
            child.kill().ok();
            child.wait().ok();
        }
    }
}

/// Waits for a process; kills it when it takes longer.
pub(super) fn end_within(mut child: Child, within: Duration) -> Result<Option<Ended>> {
    let status = process::poll(within, || Ok(child.try_wait()?))?;
    if status.is_none() {
        child.kill().ok();
        child.wait().ok();
    }
    Ok(status.map(Ended::from))
}

impl Follower for Tidemark {
    fn start(&mut self) -> Result<()> {
        let child = self.spawn(&["sync"], &Self::state_dir(&self.directory))?;
        self.child = Some(child);
        Ok(())
    }

    fn pid(&self) -> u32 {
        self.child.as_ref().map_or(0, Child::id)
    }

    fn ended(&mut self) -> Result<Option<Ended>> {
        let Some(child) = &mut self.child else { return Ok(None) };
        let status = child.try_wait().context("ask for the follower's end")?;
        if status.is_some() {
            self.child = None;
        }
        Ok(status.map(Ended::from))
    }

    fn signal(&mut self, signal: Signal) -> Result<()> {
        match self.pid_of() {
            // It was not waited for yet, so the number is still its own.
            Some(pid) => kill_process(pid, signal).context("send the follower a signal"),
            None => Ok(()),
        }
    }

    fn limit_files(&mut self, bytes: Option<u64>) -> Result<()> {
        let Some(pid) = self.pid_of() else { return Ok(()) };
        let limit = Rlimit { current: bytes, maximum: None };
        // It may have ended of the limit already.
        prlimit(Some(pid), Resource::Fsize, limit).ok();
        Ok(())
    }

    fn second(&mut self, same_directory: bool, within: Duration) -> Result<Option<Ended>> {
        let state_dir = match same_directory {
            true => Self::state_dir(&self.directory),
            false => self.directory.join(format!("elsewhere-{}", self.runs)),
        };
        let child = self.spawn(&["sync"], &state_dir)?;
        end_within(child, within)
    }

    fn command(&mut self, arguments: &[&str]) -> Result<Option<Child>> {
        self.spawn(arguments, &Self::state_dir(&self.directory)).map(Some)
    }

    fn drain(&mut self, within: Duration) -> Result<Drained> {
        let state_dir = Self::state_dir(&self.directory);
        let child = self.spawn(&["sync", "--until", "now", "--json"], &state_dir)?;
        let run = self.runs;
        let Some(ended) = end_within(child, within)? else {
            bail!("sync --until now does not end within {within:?}\n{}", self.said());
        };
        Ok(Drained { ended, report: serde_json::from_str(&self.output(run, "out")).ok() })
    }

    fn questions(&self) -> Questions {
        let row = format!("FROM tidemark.progress WHERE job = '{JOB}' AND wave = ''");
        Questions {
            // Tables that joined are ahead of the others until the stream has passed where they joined.
            phase: format!(
                "(SELECT CASE WHEN EXISTS (SELECT FROM tidemark.relation r WHERE r.job = p.job AND r.joined_lsn > p.end_lsn) \
                  THEN 'joining' ELSE phase END FROM tidemark.progress p WHERE job = '{JOB}' AND wave = '')"
            ),
            position: format!("SELECT end_lsn {row}"),
            slots: "tidemark\\_%".to_owned(),
            lake: self.lake.clone(),
            lanes: (self.configuration.lanes > 1)
                .then(|| format!("(SELECT max(end_lsn) FROM tidemark.lane WHERE job = '{JOB}')")),
        }
    }

    fn sessions(&self, _side: Side) -> &'static str {
        "application_name LIKE 'tidemark%'"
    }

    fn knows(&self, fault: &Fault) -> bool {
        // The lake's reader loads into the tables as the storm made them.
        let is_for_tables =
            fault.side() == Some(Side::Target) || matches!(fault, Fault::AddColumn(_));
        self.lake.is_none() || !is_for_tables
    }

    fn said(&self) -> String {
        let last: Vec<String> = (self.runs.saturating_sub(2).max(1)..=self.runs)
            .map(|run| format!("run {run}: {}", process::tail(&self.output(run, "err"), 15)))
            .collect();
        last.join("\n")
    }
}

/// `CREATE SUBSCRIPTION`, PostgreSQL's own: shows what the rig says about a follower that is right.
#[derive(Debug)]
pub(super) struct Subscription {
    source: Arc<Cluster>,
    target: Arc<Cluster>,
    databases: (String, String),
    /// The proxy in front of the source.
    port: u16,
    is_made: bool,
}

impl Subscription {
    pub(super) fn new(
        source: (&Arc<Cluster>, &str),
        target: (&Arc<Cluster>, &str),
        port: u16,
    ) -> Self {
        Self {
            source: Arc::clone(source.0),
            target: Arc::clone(target.0),
            databases: (source.1.to_owned(), target.1.to_owned()),
            port,
            is_made: false,
        }
    }

    fn on_target(&self, sql: &str) -> Result<String> {
        self.target.psql(&self.databases.1, sql)
    }
}

impl Follower for Subscription {
    fn start(&mut self) -> Result<()> {
        if self.is_made {
            return Ok(());
        }
        self.is_made = true;
        self.source.psql(&self.databases.0, "CREATE PUBLICATION rig FOR ALL TABLES")?;
        let sql = format!(
            "CREATE SUBSCRIPTION tidemark_rig CONNECTION 'host=127.0.0.1 port={} user=postgres dbname={}' \
             PUBLICATION rig WITH (streaming = on)",
            self.port, self.databases.0
        );
        self.on_target(&sql).map(drop)
    }

    fn pid(&self) -> u32 {
        0
    }

    fn ended(&mut self) -> Result<Option<Ended>> {
        Ok(None)
    }

    /// Ends its worker: a `kill -9` of that would take the target's server with it.
    fn signal(&mut self, _signal: Signal) -> Result<()> {
        self.on_target(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_subscription WHERE pid IS NOT NULL",
        )
        .map(drop)
    }

    fn limit_files(&mut self, _bytes: Option<u64>) -> Result<()> {
        Ok(())
    }

    fn second(&mut self, _same_directory: bool, _within: Duration) -> Result<Option<Ended>> {
        Ok(None)
    }

    fn command(&mut self, _arguments: &[&str]) -> Result<Option<Child>> {
        Ok(None)
    }

    fn drain(&mut self, within: Duration) -> Result<Drained> {
        let head = self.source.psql(&self.databases.0, "SELECT pg_current_wal_insert_lsn()")?;
        self.source.psql(&self.databases.0, "SELECT pg_switch_wal()")?;
        let sql = format!(
            "SELECT bool_and(confirmed_flush_lsn >= '{head}') FROM pg_replication_slots WHERE slot_name = 'tidemark_rig'"
        );
        let done = process::poll(within, || {
            Ok((self.source.psql(&self.databases.0, &sql)? == "t").then_some(()))
        })?;
        match done {
            Some(()) => Ok(Drained { ended: Ended::Code(0), report: None }),
            None => bail!("the subscription does not come to {head}"),
        }
    }

    fn questions(&self) -> Questions {
        Questions {
            phase: "(SELECT CASE WHEN count(*) > 0 AND bool_and(srsubstate = 'r') THEN 'follow' ELSE 'snapshot' END FROM pg_subscription_rel)".to_owned(),
            position: "SELECT max(remote_lsn) FROM pg_replication_origin_status".to_owned(),
            slots: "tidemark\\_%".to_owned(),
            lake: None,
            lanes: None,
        }
    }

    fn sessions(&self, side: Side) -> &'static str {
        match side {
            Side::Source => "application_name LIKE 'tidemark%'",
            Side::Target => "backend_type = 'logical replication worker'",
        }
    }

    fn knows(&self, fault: &Fault) -> bool {
        !matches!(
            fault,
            Fault::Freeze(_)
                | Fault::CleanStop
                | Fault::SecondInstance { .. }
                | Fault::ShortFiles(..)
                | Fault::FullDisk(_)
                | Fault::LoseCommit(_)
                | Fault::KillBehind(_)
                | Fault::Rejoin(..)
                // Its columns are brought by nobody.
                | Fault::AddColumn(_)
        )
    }

    fn said(&self) -> String {
        process::tail(&self.target.log(), 15)
    }
}

/// Waits until it has ended; none if it has not by then.
pub(super) fn ended_within(follower: &mut dyn Follower, within: Duration) -> Result<Option<Ended>> {
    let until = Instant::now() + within;
    process::poll(until.saturating_duration_since(Instant::now()), || follower.ended())
}
