//! A `psql` that is kept open: statements go in, lines come out.
//!
//! **Invariant:** an answer is complete: a line that no query prints marks the end of each.
//!
//! The workloads talk to servers through these, so that a rig that dies with a driver's defect is no possibility. A
//! lost connection ends the `psql`; [`Session::finish`] then says why.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, Stdio};

use anyhow::{Context, Result, bail};

use crate::Cluster;

const END: &str = "---- end of answer";

/// Why a `psql` has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Ending {
    /// It was told to, or its connection was lost.
    Lost,
    /// The server refused a statement with this SQLSTATE, one of those that the caller expects.
    Refused(String),
}

/// An open `psql`.
#[derive(Debug)]
pub(crate) struct Session {
    child: Child,
    /// Gone once psql was told to end.
    stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
}

impl Session {
    /// A session that ends with the first error.
    pub(crate) fn strict(cluster: &Cluster, database: &str) -> Result<Self> {
        Self::open(cluster, database, true)
    }

    /// A session that outlives errors and says nothing about them.
    pub(crate) fn lenient(cluster: &Cluster, database: &str) -> Result<Self> {
        Self::open(cluster, database, false)
    }

    fn open(cluster: &Cluster, database: &str, is_strict: bool) -> Result<Self> {
        let mut command = cluster.psql_command(database);
        command.args(["-v", "VERBOSITY=verbose"]).stdin(Stdio::piped()).stdout(Stdio::piped());
        if is_strict {
            command.stderr(Stdio::piped());
        } else {
            // Nobody reads it, and a full pipe would stop psql.
            command.args(["-v", "ON_ERROR_STOP=0"]).stderr(Stdio::null());
        }
        let mut child = command.spawn().context("spawn psql")?;
        let stdin = Some(child.stdin.take().context("take psql's stdin")?);
        let stdout = BufReader::new(child.stdout.take().context("take psql's stdout")?);
        Ok(Self { child, stdin, stdout })
    }

    /// Runs statements and gives what they printed; `None` when psql ended before all were answered.
    pub(crate) fn ask(&mut self, sql: &str) -> Option<String> {
        let stdin = self.stdin.as_mut()?;
        write!(stdin, "{sql}\n\\echo {END}\n").and_then(|()| stdin.flush()).ok()?;
        let mut answer = String::new();
        loop {
            let start = answer.len();
            if self.stdout.read_line(&mut answer).ok()? == 0 {
                return None;
            }
            if answer[start..].trim_end() == END {
                answer.truncate(start);
                return Some(answer.trim_end_matches('\n').to_owned());
            }
        }
    }

    /// Runs statements; `false` when psql ended before all were answered.
    pub(crate) fn run(&mut self, sql: &str) -> bool {
        self.ask(sql).is_some()
    }

    /// Ends psql. An error when a statement was refused for another reason than a lost connection or one of `expected`.
    pub(crate) fn finish(mut self, expected: &[&str]) -> Result<Ending> {
        drop(self.stdin.take());
        let mut text = String::new();
        if let Some(stderr) = self.child.stderr.as_mut() {
            stderr.read_to_string(&mut text).context("read psql's messages")?;
        }
        let status = self.child.wait().context("wait for psql")?;
        let lost =
            ["connection", "terminating", "57P0", "58000"].iter().any(|word| text.contains(word));
        if status.success() || lost {
            return Ok(Ending::Lost);
        }
        match expected.iter().find(|state| text.contains(&format!("ERROR:  {state}:"))) {
            Some(state) => Ok(Ending::Refused((*state).to_owned())),
            None => bail!("a workload's psql failed: {status}\n{text}"),
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // It may have ended already.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}
