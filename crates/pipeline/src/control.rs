//! The running job's control socket: `<state_dir>/control.sock`.
//!
//! **Invariant:** the socket is 0600 inside a 0700 directory and exists only while a process holds the job's lock; a
//! request is one line of JSON with a version, and so is the answer. An answer holds no secret and no row.
//!
//! ```text
//! -> {"version":1,"command":"status"}
//! <- {"version":1,"status":{...}}            or  {"version":1,"error":"..."}
//! ```

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tidemark_ledger::Ledger;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinSet;

use crate::job::Job;
use crate::progress::Progress;
use crate::status::{Lag, SnapshotStatus, Status, StreamStatus};
use crate::stream::Ladder;
use crate::{Error, Kind, Result};

/// The version of the protocol.
pub const CONTROL_VERSION: u32 = 1;

/// A request is short; more is not read.
const REQUEST_BYTES: u64 = 64 * 1024;
/// Who asks waits this long at most, and who is slow to ask is dropped after it.
const PATIENCE: Duration = Duration::from_secs(5);

#[derive(Debug, Serialize, Deserialize)]
struct Request {
    version: u32,
    command: String,
}

#[derive(Debug, Serialize, Deserialize)]
struct Answer {
    version: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<Status>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

/// What the socket may tell.
#[derive(Clone)]
pub(crate) struct Shared {
    job: String,
    progress: Arc<Progress>,
    /// Not held: the job's lock goes with the ledger, and a task that answers may outlive the job by a moment.
    ledger: Weak<Ledger>,
    /// How many lanes apply the stream.
    lanes: usize,
}

impl Shared {
    pub(crate) fn new(job: &Job, progress: &Arc<Progress>, ledger: &Arc<Ledger>) -> Self {
        Self {
            job: job.name.clone(),
            progress: Arc::clone(progress),
            ledger: Arc::downgrade(ledger),
            lanes: job.stream.lanes,
        }
    }

    fn last_error(&self) -> Option<String> {
        self.ledger.upgrade()?.run().ok()??.last_error
    }

    fn status(&self) -> Status {
        let view = self.progress.view();
        let ladder = self.progress.ladder();
        let ladder = ladder.as_deref();
        let stream = ladder.map(Ladder::view);
        Status {
            lag: ladder.map(Lag::of).unwrap_or_default(),
            stream: stream.map(|view| StreamStatus::of(view, self.lanes)).unwrap_or_default(),
            retained_wal_bytes: stream.map_or(0, |view| view.retained),
            retained_by_others: ladder.and_then(Ladder::others),
            spool_bytes: stream.map_or(0, |view| view.spool_bytes),
            job: self.job.clone(),
            phase: view.phase,
            activity: view.activity.clone(),
            is_running: true,
            memory_bytes: view.memory_bytes,
            snapshot: SnapshotStatus::of(view),
            last_error: self.last_error(),
            ..Status::default()
        }
    }
}

/// The listening socket; dropping it ends its tasks and removes the file.
pub(crate) struct Listener {
    path: PathBuf,
    _tasks: JoinSet<()>,
}

impl Drop for Listener {
    fn drop(&mut self) {
        // Another process cannot have made its own meanwhile: it would need the job's lock first.
        drop(std::fs::remove_file(&self.path));
    }
}

/// Listens. Where the path is too long for a socket or the file system has none, the job runs without: `status` then
/// reads the ledger.
pub(crate) async fn listen(state_dir: &Path, shared: Shared) -> Option<Listener> {
    let path = socket_path(state_dir);
    // We hold the job's lock: a socket that is there belongs to a dead run.
    drop(std::fs::remove_file(&path));
    let listener = match UnixListener::bind(&path) {
        Ok(listener) => listener,
        Err(error) => {
            tracing::warn!(%error, path = %path.display(), "no control socket: status will read the ledger");
            return None;
        }
    };
    if let Err(error) = std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)) {
        tracing::warn!(%error, "the control socket keeps the directory's protection only");
    }
    let mut tasks = JoinSet::new();
    tasks.spawn(serve(listener, shared));
    Some(Listener { path, _tasks: tasks })
}

fn socket_path(state_dir: &Path) -> PathBuf {
    state_dir.join("control.sock")
}

async fn serve(listener: UnixListener, shared: Shared) {
    let mut clients = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                if let Ok((stream, _)) = accepted {
                    let shared = shared.clone();
                    clients.spawn(async move {
                        // A client that goes away in the middle is its own affair.
                        drop(tokio::time::timeout(PATIENCE, answer(stream, &shared)).await);
                    });
                }
            }
            Some(_) = clients.join_next() => {}
        }
    }
}

async fn answer(stream: UnixStream, shared: &Shared) -> std::io::Result<()> {
    let (read, mut write) = stream.into_split();
    let mut line = String::new();
    BufReader::new(read.take(REQUEST_BYTES)).read_line(&mut line).await?;
    let mut text = serde_json::to_string(&reply(&line, shared)).expect("answers are plain data");
    text.push('\n');
    write.write_all(text.as_bytes()).await
}

fn reply(line: &str, shared: &Shared) -> Answer {
    let error = |text: String| Answer { version: CONTROL_VERSION, status: None, error: Some(text) };
    match serde_json::from_str::<Request>(line) {
        Ok(Request { version, .. }) if version != CONTROL_VERSION => {
            error(format!("this process speaks version {CONTROL_VERSION}, not {version}"))
        }
        Ok(Request { command, .. }) if command == "status" => {
            Answer { version: CONTROL_VERSION, status: Some(shared.status()), error: None }
        }
        Ok(Request { command, .. }) => error(format!("unknown command {command:?}")),
        Err(_) => error("the request is not a line of JSON with version and command".to_owned()),
    }
}

/// Asks the process that runs the job; `None` where none does.
///
/// # Errors
/// A process is there and its answer makes no sense.
pub async fn ask_status(state_dir: &Path) -> Result<Option<Status>> {
    let Ok(stream) = UnixStream::connect(socket_path(state_dir)).await else { return Ok(None) };
    let failed = |cause: std::io::Error| {
        Error::new(Kind::Unavailable, "ask the running job for its status").because(cause)
    };
    let exchange = async {
        let (read, mut write) = stream.into_split();
        let request = Request { version: CONTROL_VERSION, command: "status".to_owned() };
        let mut text = serde_json::to_string(&request).expect("requests are plain data");
        text.push('\n');
        write.write_all(text.as_bytes()).await?;
        let mut line = String::new();
        BufReader::new(read).read_line(&mut line).await?;
        Ok(line)
    };
    let line = match tokio::time::timeout(PATIENCE, exchange).await {
        Ok(line) => line.map_err(failed)?,
        Err(_) => {
            return Err(Error::new(
                Kind::Unavailable,
                "ask the running job for its status: no answer",
            ));
        }
    };
    if line.is_empty() {
        return Ok(None); // it ended while we asked
    }
    let answer: Answer = serde_json::from_str(&line).map_err(|cause| {
        Error::new(Kind::Internal, "read the running job's answer").because(cause)
    })?;
    match (answer.status, answer.error) {
        (Some(status), _) => Ok(Some(status)),
        (None, error) => {
            Err(Error::new(Kind::Internal, error.unwrap_or_else(|| "empty answer".to_owned())))
        }
    }
}
