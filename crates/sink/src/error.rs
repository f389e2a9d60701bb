//! What can go wrong in a target, and what follows from it.

use tidemark_model::RelationName;

/// What a caller should do about an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Disposition {
    /// A connection or a resource went away: the same chunk may be tried again with a new writer.
    Retry,
    /// The target refused (constraint, privilege, type): exit code 7, position kept.
    Refused,
    /// A resource is missing or unreachable (disk, network after retries): exit code 8.
    Unavailable,
    /// What the user asked for cannot be done: exit code 2.
    Usage,
    /// A value has no form in the target and the policy says stop: exit code 7.
    Value,
    /// Another instance holds the job: exit code 9.
    Held,
    /// What an unfinished snapshot left cannot be gone on from: it begins anew.
    Unfit,
    /// A defect of ours: exit code 70.
    Internal,
}

/// An error of a sink. `Display` prints what was attempted and on which object; the cause is in `source()`.
#[derive(Debug, thiserror::Error)]
#[error("{attempt}{}", .relation.as_ref().map(|name| format!(" (relation {name})")).unwrap_or_default())]
pub struct Error {
    /// What was attempted, lower case, no full stop.
    pub attempt: String,
    /// The relation it concerned.
    pub relation: Option<RelationName>,
    /// What follows.
    pub disposition: Disposition,
    /// The way out, for people.
    pub hint: Option<String>,
    /// The cause.
    #[source]
    pub source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    /// An error without a cause.
    pub fn new(disposition: Disposition, attempt: impl Into<String>) -> Self {
        Self { attempt: attempt.into(), relation: None, disposition, hint: None, source: None }
    }

    /// Adds the relation.
    #[must_use]
    pub fn on(mut self, relation: &RelationName) -> Self {
        self.relation = Some(relation.clone());
        self
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
}

/// The result of a sink's operation.
pub type Result<T, E = Error> = std::result::Result<T, E>;
