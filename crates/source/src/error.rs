//! What can go wrong at a source, and what follows from it.
//!
//! **Invariant:** an error names what was attempted and on which object, never a row value or a secret: of a server's
//! error only the SQLSTATE and the primary message of a statement of ours are kept, as the cause.
//!
//! PostgreSQL manual, appendix A (error codes).

use std::error::Error as StdError;
use std::fmt;

/// What a caller should do about an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Disposition {
    /// A connection went away or the server was short of something: the same call may be tried again.
    Retry,
    /// The exported snapshot is gone: the run as a whole starts again, two snapshots are never mixed.
    SnapshotLost,
    /// Others hold what is needed (a lock, a long transaction): the message names them. Exit code 8 after the retries.
    Blocked,
    /// A right is missing or the server is not set up for it: exit code 5.
    Refused,
    /// What the user asked for cannot be done: exit code 2.
    Usage,
    /// The source cannot go on from where it was: exit code 6, a new snapshot is needed.
    SourceCannotContinue,
    /// Not reachable: exit code 8 after the retries.
    Unreachable,
    /// One relation is not there any more (dropped or renamed); the others can go on.
    RelationGone,
    /// A defect of ours: exit code 70.
    Internal,
}

/// An error of a source. `Display` prints what was attempted and on which object; the cause is in `source()`.
#[derive(Debug)]
pub struct Error {
    attempt: String,
    object: Option<String>,
    disposition: Disposition,
    sqlstate: Option<String>,
    hint: Option<String>,
    cause: Option<Box<tidemark_wire::Error>>,
}

/// The result of a source's operation.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    pub(crate) fn new(disposition: Disposition, attempt: impl Into<String>) -> Self {
        let attempt = attempt.into();
        Self { attempt, object: None, disposition, sqlstate: None, hint: None, cause: None }
    }

    /// An error that a server or its connection gave.
    pub(crate) fn wire(attempt: impl Into<String>, cause: tidemark_wire::Error) -> Self {
        let mut error = Self::new(consequence(&cause), attempt);
        error.sqlstate = cause.sqlstate().map(str::to_owned);
        error.hint = cause.hint();
        error.cause = Some(Box::new(cause));
        error
    }

    pub(crate) fn on(mut self, object: impl fmt::Display) -> Self {
        self.object = Some(object.to_string());
        self
    }

    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    pub(crate) fn disposed(mut self, disposition: Disposition) -> Self {
        self.disposition = disposition;
        self
    }

    /// What follows from it.
    pub fn disposition(&self) -> Disposition {
        self.disposition
    }

    /// The object it concerned, quoted as SQL would.
    pub fn object(&self) -> Option<&str> {
        self.object.as_deref()
    }

    /// The way out, for people.
    pub fn way_out(&self) -> Option<&str> {
        self.hint.as_deref()
    }

    /// The five characters that the server gave.
    pub fn sqlstate(&self) -> Option<&str> {
        self.sqlstate.as_deref()
    }

    /// Whether the exported snapshot is gone: the run starts again as a whole (`hazards.md` A5).
    pub fn is_snapshot_gone(&self) -> bool {
        self.disposition == Disposition::SnapshotLost
    }

    pub(crate) fn has_state(&self, states: &[&str]) -> bool {
        self.sqlstate.as_deref().is_some_and(|state| states.contains(&state))
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.attempt)?;
        match &self.object {
            Some(object) => write!(f, " ({object})"),
            None => Ok(()),
        }
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.cause.as_ref().map(|cause| {
            let cause: &(dyn StdError + 'static) = cause.as_ref();
            cause
        })
    }
}

fn consequence(cause: &tidemark_wire::Error) -> Disposition {
    use tidemark_wire::Disposition as Wire;

    match cause.disposition() {
        Wire::Retry => Disposition::Retry,
        Wire::Usage => Disposition::Usage,
        Wire::Unreachable => Disposition::Unreachable,
        Wire::Server => cause.sqlstate().map_or(Disposition::Internal, of_sqlstate),
    }
}

/// What follows from a SQLSTATE where nothing more is known about the statement.
fn of_sqlstate(state: &str) -> Disposition {
    match state {
        "55P03" | "55006" => Disposition::Blocked,
        "42P01" | "3F000" => Disposition::RelationGone,
        "42501" | "55000" => Disposition::Refused,
        "53400" => Disposition::Refused,
        "57014" => Disposition::Retry,
        _ => match state.get(..2).unwrap_or_default() {
            "40" | "53" | "57" => Disposition::Retry,
            "28" | "42" => Disposition::Usage,
            "58" => Disposition::Unreachable,
            _ => Disposition::Internal,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_class_of_sqlstate_has_its_consequence() {
        for (state, expected) in [
            ("57014", Disposition::Retry),
            ("40001", Disposition::Retry),
            ("55P03", Disposition::Blocked),
            ("42P01", Disposition::RelationGone),
            ("42501", Disposition::Refused),
            ("42601", Disposition::Usage),
            ("58030", Disposition::Unreachable),
            ("XX000", Disposition::Internal),
            ("", Disposition::Internal),
        ] {
            assert_eq!(of_sqlstate(state), expected, "{state:?}");
        }
    }

    #[test]
    fn an_error_names_its_object_and_its_way_out() {
        let error = Error::new(Disposition::Blocked, "lock the table")
            .on("\"public\".\"a\"")
            .hint("end the session");
        assert_eq!(error.to_string(), "lock the table (\"public\".\"a\")");
        assert_eq!(error.way_out(), Some("end the session"));
    }
}
