//! The running job's control socket: `<state_dir>/control.sock`.
//!
//! **Invariant:** the socket is 0600 inside a 0700 directory and exists only while a process holds the job's lock; a
//! request is one line of JSON with a version, and so is the answer. An answer holds no secret and no row.
//!
//! ```text
//! -> {"version":1,"command":"status"}
//! <- {"version":1,"status":{...}}            or  {"version":1,"error":"..."}
//!
//! -> {"version":1,"command":"hold"}                       the stream stands; it goes on when the connection ends
//! <- {"version":1,"lsn":"0/1A2B3C"}
//! -> {"version":1,"command":"up-to","lsn":"0/1A2B40"}     it goes on to there and stands again
//! <- {"version":1,"lsn":"0/1A2B40"}
//! ```

use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tidemark_ledger::Ledger;
use tidemark_model::Lsn;
use tokio::io::{
    AsyncBufRead, AsyncBufReadExt as _, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _,
    BufReader,
};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinSet;

use crate::job::Job;
use crate::progress::Progress;
use crate::status::{Lag, SnapshotStatus, Status, StreamStatus};
use crate::stream::{Closed, Ladder};
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
    #[serde(default, skip_serializing_if = "Option::is_none")]
    lsn: Option<Lsn>,
}

impl Request {
    fn line(command: &str, lsn: Option<Lsn>) -> String {
        let request = Self { version: CONTROL_VERSION, command: command.to_owned(), lsn };
        serde_json::to_string(&request).expect("requests are plain data") + "\n"
    }
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Answer {
    version: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    status: Option<Status>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    lsn: Option<Lsn>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

impl Answer {
    fn line(self) -> String {
        let answer = Self { version: CONTROL_VERSION, ..self };
        serde_json::to_string(&answer).expect("answers are plain data") + "\n"
    }

    fn error(text: impl Into<String>) -> Self {
        Self { error: Some(text.into()), ..Self::default() }
    }
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
                        drop(answer(stream, &shared).await);
                    });
                }
            }
            Some(_) = clients.join_next() => {}
        }
    }
}

async fn answer(stream: UnixStream, shared: &Shared) -> std::io::Result<()> {
    let (read, mut write) = stream.into_split();
    let mut lines = BufReader::new(read.take(REQUEST_BYTES));
    let mut line = String::new();
    match tokio::time::timeout(PATIENCE, lines.read_line(&mut line)).await {
        Ok(read) => read?,
        Err(_) => return Ok(()),
    };
    match request(&line) {
        Ok(Request { command, .. }) if command == "hold" => hold(lines, write, shared).await,
        Ok(Request { command, .. }) if command == "status" => {
            let status = Some(shared.status());
            write.write_all(Answer { status, ..Answer::default() }.line().as_bytes()).await
        }
        Ok(Request { command, .. }) => {
            let answer = Answer::error(format!("unknown command {command:?}"));
            write.write_all(answer.line().as_bytes()).await
        }
        Err(wrong) => write.write_all(Answer::error(wrong).line().as_bytes()).await,
    }
}

/// A request, or what is wrong with it.
fn request(line: &str) -> Result<Request, String> {
    match serde_json::from_str::<Request>(line) {
        Ok(Request { version, .. }) if version != CONTROL_VERSION => {
            Err(format!("this process speaks version {CONTROL_VERSION}, not {version}"))
        }
        Ok(request) => Ok(request),
        Err(_) => Err("the request is not a line of JSON with version and command".to_owned()),
    }
}

/// Holds the stream for as long as the client stays.
async fn hold(
    mut lines: impl AsyncBufRead + Unpin,
    mut write: impl AsyncWrite + Unpin,
    shared: &Shared,
) -> std::io::Result<()> {
    let Some(ladder) = shared.progress.ladder().filter(|_| shared.progress.follows()) else {
        let answer = Answer::error("the job does not follow the source yet");
        return write.write_all(answer.line().as_bytes()).await;
    };
    let held = match Closed::of(&ladder) {
        Ok(held) => held,
        Err(error) => return write.write_all(Answer::error(error.message).line().as_bytes()).await,
    };
    let gate = held.gate();
    let mut line = String::new();
    let mut answer = tokio::select! {
        stands = gate.stands() => said(stands),
        // Nothing is to come before the answer: the client has gone.
        _ = lines.read_line(&mut line) => return Ok(()),
    };
    loop {
        write.write_all(answer.line().as_bytes()).await?;
        line.clear();
        if lines.read_line(&mut line).await? == 0 {
            return Ok(());
        }
        let asked = request(&line);
        line.clear();
        answer = match asked {
            Ok(Request { command, lsn: Some(lsn), .. }) if command == "up-to" => tokio::select! {
                stands = gate.up_to(lsn) => said(stands.map(|()| lsn)),
                // As above: what keeps the stream from there may be the client's own locks.
                _ = lines.read_line(&mut line) => return Ok(()),
            },
            Ok(_) => Answer::error("while the stream is held only up-to is understood"),
            Err(wrong) => Answer::error(wrong),
        };
    }
}

fn said(stands: Result<Lsn>) -> Answer {
    match stands {
        Ok(lsn) => Answer { lsn: Some(lsn), ..Answer::default() },
        Err(error) => Answer::error(error.message),
    }
}

/// The stream of a job, standing at one position until this is dropped.
pub struct Held {
    by: HeldBy,
    /// Since when it stands.
    since: Instant,
    /// For how long it stood before.
    stood: Duration,
}

enum HeldBy {
    /// The process that runs the job.
    Process(BufReader<UnixStream>),
    /// This one.
    Gate(Closed),
}

impl Held {
    /// Holds the stream of the job that runs in another process; `None` where none does.
    ///
    /// # Errors
    /// The job does not follow yet, somebody else holds it, or it does not answer.
    pub async fn of_process(state_dir: &Path) -> Result<Option<Self>> {
        let Ok(stream) = UnixStream::connect(socket_path(state_dir)).await else { return Ok(None) };
        let mut held = Self::by(HeldBy::Process(BufReader::new(stream)));
        held.ask("hold", None).await?;
        held.since = Instant::now();
        Ok(Some(held))
    }

    /// Holds the stream of the job that runs in this process, once it follows.
    ///
    /// # Errors
    /// As [`Held::of_process`].
    pub async fn of_own(progress: &Progress) -> Result<Option<Self>> {
        let Some(ladder) = progress.ladder().filter(|_| progress.follows()) else {
            return Ok(None);
        };
        let closed = Closed::of(&ladder)?;
        closed.gate().stands().await?;
        let mut held = Self::by(HeldBy::Gate(closed));
        held.since = Instant::now();
        Ok(Some(held))
    }

    /// Lets it go on to a position beyond where it stands, and waits until everything up to there is on the target, and
    /// nothing more.
    ///
    /// # Errors
    /// It went on: a snapshot of the target would show something else.
    pub async fn up_to(&mut self, lsn: Lsn) -> Result<()> {
        self.stood += self.since.elapsed();
        match &self.by {
            HeldBy::Gate(closed) => closed.gate().up_to(lsn).await?,
            HeldBy::Process(_) => self.ask("up-to", Some(lsn)).await?,
        }
        self.since = Instant::now();
        Ok(())
    }

    /// Lets the stream go on; gives for how long it stood.
    pub fn open(self) -> Duration {
        self.stood + self.since.elapsed()
    }

    fn by(by: HeldBy) -> Self {
        Self { by, since: Instant::now(), stood: Duration::ZERO }
    }

    async fn ask(&mut self, command: &str, lsn: Option<Lsn>) -> Result<()> {
        let HeldBy::Process(stream) = &mut self.by else { return Ok(()) };
        let failed = |cause: std::io::Error| {
            Error::new(Kind::Unavailable, "ask the running job to hold its stream").because(cause)
        };
        stream.write_all(Request::line(command, lsn).as_bytes()).await.map_err(failed)?;
        let mut line = String::new();
        stream.read_line(&mut line).await.map_err(failed)?;
        let answer: Answer = serde_json::from_str(&line).map_err(|cause| {
            Error::new(Kind::Unavailable, "ask the running job to hold its stream: it has ended")
                .because(cause)
        })?;
        match answer {
            Answer { lsn: Some(_), .. } => Ok(()),
            Answer { error, .. } => {
                let error = error.unwrap_or_else(|| "empty answer".to_owned());
                Err(Error::new(Kind::Unavailable, format!("hold the job's stream: {error}"))
                    .hint("run the same command again"))
            }
        }
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
        write.write_all(Request::line("status", None).as_bytes()).await?;
        let mut line = String::new();
        BufReader::new(read).read_line(&mut line).await?;
        Ok::<_, std::io::Error>(line)
    };
    let line = match tokio::time::timeout(PATIENCE, exchange).await {
        // It ended while we asked.
        Ok(Err(error))
            if matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe) =>
        {
            return Ok(None);
        }
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

#[cfg(test)]
mod tests {
    use tokio::io::{duplex, split};

    use super::*;
    use crate::progress::Phase;
    use crate::stream::Order;

    #[tokio::test]
    async fn a_client_that_goes_away_while_the_stream_is_on_its_way_lets_it_go_on() {
        let (progress, ladder) = (Arc::new(Progress::default()), Arc::new(Ladder::default()));
        progress.watch_stream(&ladder);
        progress.enter(Phase::Follow, "following");
        let shared = Shared { job: String::new(), progress, ledger: Weak::new(), lanes: 1 };
        let (client, server) = duplex(1024);
        let (read, write) = split(server);
        let serving = async { hold(BufReader::new(read), write, &shared).await.unwrap() };
        let asking = async {
            let mut client = BufReader::new(client);
            let mut line = String::new();
            client.read_line(&mut line).await.unwrap();
            assert!(line.contains("0/5"), "{line}");
            let request = Request::line("up-to", Some(Lsn::new(9)));
            client.write_all(request.as_bytes()).await.unwrap();
            while ladder.gate.order() != Order::UpTo(Lsn::new(9)) {
                tokio::task::yield_now().await;
            }
        };
        let standing = ladder.gate.stand(Lsn::new(5), Order::Hold);
        let all = async { tokio::join!(serving, asking, standing) };
        tokio::time::timeout(Duration::from_secs(5), all).await.unwrap();
        assert_eq!(ladder.gate.order(), Order::Open);
    }
}
