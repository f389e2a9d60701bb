//! What ends a job, by consequence.
//!
//! **Invariant:** every error of a lower layer becomes exactly one [`Kind`], decided in this file; the kinds are the exit
//! codes of `design.md` section 8.

use tidemark_ledger as ledger;
use tidemark_model::{Finding, RelationName};
use tidemark_sink as sink;
use tidemark_source as source;

use crate::stream::SpoolError;
use crate::{Job, Target};

/// The result of a job's operation.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The consequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Usage, configuration, wrong password or database: mend and run again (2).
    Usage,
    /// Preflight blocks (5).
    Preflight,
    /// The source cannot continue (6).
    SourceCannotContinue,
    /// The target refused (7).
    TargetRefused,
    /// Not reachable, or a resource is missing (8).
    Unavailable,
    /// Another instance holds the job (9).
    Held,
    /// A defect of ours (70).
    Internal,
    /// Interrupted with work left (130).
    Interrupted,
}

/// What ended a job.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    /// The consequence.
    pub kind: Kind,
    /// What was attempted, on which object.
    pub message: String,
    /// The way out.
    pub hint: Option<String>,
    /// For [`Kind::Preflight`]: what blocks.
    pub findings: Vec<Finding>,
    /// Whether the same may be tried again at once (a connection was lost).
    pub is_transient: bool,
    /// Whether the run as a whole must begin again with a new snapshot.
    pub lost_snapshot: bool,
    /// Whether what an unfinished snapshot left cannot be gone on with.
    pub(crate) begin_anew: bool,
    /// The table whose changed definition could not be carried over: the others could go on without it.
    pub(crate) table: Option<Box<RelationName>>,
    /// The cause.
    #[source]
    pub source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    /// An error without a cause.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
            hint: None,
            findings: Vec::new(),
            is_transient: false,
            lost_snapshot: false,
            begin_anew: false,
            table: None,
            source: None,
        }
    }

    /// Adds the way out.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Adds the cause.
    #[must_use]
    pub fn because(mut self, cause: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.source = Some(cause.into());
        self
    }

    /// The cause as text, for a log line.
    pub(crate) fn cause(&self) -> String {
        self.source.as_ref().map(ToString::to_string).unwrap_or_default()
    }

    /// What stops a stream that was interrupted while it was trying again.
    pub(crate) fn interrupted_following() -> Self {
        Self::new(Kind::Interrupted, "interrupted while the job was not able to go on")
            .hint("run the same command again: it goes on from the stored position")
    }

    /// An error of this job: where the source cannot go on, what a new beginning takes into this target.
    pub(crate) fn of_job(mut self, job: &Job) -> Self {
        if self.kind != Kind::SourceCannotContinue {
            return self;
        }
        let more = match &job.target {
            Target::Lake(_) => "a new snapshot replaces what the lake holds: tidemark cleanup --yes, then tidemark sync --target-not-empty truncate --yes; or name an empty directory as the target".to_owned(),
            Target::Postgres(_) => {
                format!(
                    "what the target holds need not be copied again: tidemark sync{} --target-not-empty reconcile --yes moves only what differs (behind tidemark cleanup --yes where the source is another server)",
                    job.wave_option()
                )
            }
        };
        self.hint = Some(self.hint.map_or(more.clone(), |hint| format!("{hint}; {more}")));
        self
    }

    /// The source is on another timeline than when it was looked at. To be looked at anew: how far the two have a history in
    /// common decides whether the job can go on.
    pub(crate) fn promoted(attempt: &str, from: u32, to: u32) -> Self {
        Self::new(
            Kind::Unavailable,
            format!("{attempt}: the source went from timeline {from} to {to} meanwhile"),
        )
        .hint("run the same command again: it compares the source with what the target has")
    }

    /// An error while tables joined: nothing of the others is lost.
    pub(crate) fn of_a_join(mut self) -> Self {
        if self.kind == Kind::Interrupted {
            self.message = "interrupted: the tables that join are not whole".to_owned();
            self.hint = Some(
                "run the same command again: they begin anew, the others stay as they are"
                    .to_owned(),
            );
        }
        self
    }

    /// An error of a first snapshot of which this stays.
    pub(crate) fn staying(mut self, left: &str) -> Self {
        self.hint = match self.hint {
            // That one says that nothing does.
            _ if self.kind == Kind::Interrupted => Some(left.to_owned()),
            Some(hint) => Some(format!("{hint}; {left}")),
            None => Some(left.to_owned()),
        };
        self
    }

    /// What stops a run that was interrupted.
    pub fn interrupted() -> Self {
        Self::new(Kind::Interrupted, "interrupted: the snapshot is not finished")
            .hint("run the same command again: it starts the snapshot over and replaces what this run left on the target")
    }
}

impl From<source::Error> for Error {
    fn from(error: source::Error) -> Self {
        use source::Disposition as From;

        let kind = match error.disposition() {
            From::Retry | From::SnapshotLost | From::Blocked | From::Unreachable => {
                Kind::Unavailable
            }
            From::Refused => Kind::Preflight,
            From::Usage | From::RelationGone => Kind::Usage,
            From::SourceCannotContinue => Kind::SourceCannotContinue,
            From::Internal => Kind::Internal,
        };
        let mut own = Self::new(kind, format!("source: {error}"));
        own.hint = error.way_out().map(str::to_owned);
        own.is_transient = error.disposition() == From::Retry;
        own.lost_snapshot = error.is_snapshot_gone();
        match std::error::Error::source(&error).map(ToString::to_string) {
            Some(cause) => own.because(cause),
            None => own,
        }
    }
}

impl From<SpoolError> for Error {
    fn from(error: SpoolError) -> Self {
        let own = Self::new(Kind::Unavailable, error.to_string())
            .hint("make room in the state directory or mend its rights; the position is kept: run the same command again");
        match std::error::Error::source(&error).map(ToString::to_string) {
            Some(cause) => own.because(cause),
            None => own,
        }
    }
}

impl From<sink::Error> for Error {
    fn from(error: sink::Error) -> Self {
        use sink::Disposition as From;

        let kind = match error.disposition {
            From::Retry | From::Unavailable | From::Unfit => Kind::Unavailable,
            From::Refused | From::Value => Kind::TargetRefused,
            From::Usage => Kind::Usage,
            From::Held => Kind::Held,
            From::Internal => Kind::Internal,
        };
        let mut own = Self::new(kind, format!("target: {error}"));
        own.hint = error.hint;
        own.is_transient = error.disposition == From::Retry;
        own.begin_anew = error.disposition == From::Unfit;
        own.source = error.source;
        own
    }
}

impl From<tidemark_wire::Error> for Error {
    fn from(error: tidemark_wire::Error) -> Self {
        use tidemark_wire::Disposition as From;

        let kind = match error.disposition() {
            From::Retry | From::Unreachable | From::Server => Kind::Unavailable,
            From::Usage => Kind::Usage,
        };
        let mut own = Self::new(kind, error.to_string());
        own.hint = error.hint();
        own.is_transient = error.disposition() == From::Retry;
        own
    }
}

impl From<ledger::Error> for Error {
    fn from(error: ledger::Error) -> Self {
        use ledger::Error as From;

        let (kind, hint) = match &error {
            From::Held { .. } => (
                Kind::Held,
                "stop the other instance, or give this job its own --job and --state-dir",
            ),
            From::UnsafeDirectory { .. } | From::UnsafeFile { .. } => {
                (Kind::Usage, "use a directory that only you can write to (--state-dir)")
            }
            From::OtherJob { .. } => (Kind::Usage, "give each job its own --state-dir"),
            From::Missing { .. } | From::NoRun { .. } => {
                (Kind::Usage, "start the job with tidemark sync")
            }
            From::Damaged { .. } => (
                Kind::Unavailable,
                "move the file away and run again: what the target's own markers say is the truth",
            ),
            From::NewerVersion { .. } => (Kind::Usage, "use the newer tidemark that wrote it"),
            From::Io { .. } | From::Sqlite { .. } => (
                Kind::Unavailable,
                "make room or mend the directory's rights, then run the same command again",
            ),
            _ => (Kind::Internal, "this is a defect of tidemark; please report it"),
        };
        let own = Self::new(kind, error.to_string()).hint(hint);
        match std::error::Error::source(&error).map(ToString::to_string) {
            Some(cause) => own.because(cause),
            None => own,
        }
    }
}
