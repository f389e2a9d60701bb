//! What a readiness check found.
//!
//! **Invariant:** every code is in [`CODES`], which the reference is made from; a test build refuses one that is not.

mod codes;

use serde::{Deserialize, Serialize};

pub use codes::{CODES, Code, Side};

/// How much a finding matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    /// Good to know.
    Note,
    /// The job runs, but something is not carried or is at risk.
    Warning,
    /// The job would fail or lose something: it is not started (exit code 5).
    Blocking,
}

impl Severity {
    /// Its word, as in JSON.
    pub fn word(self) -> &'static str {
        match self {
            Self::Note => "note",
            Self::Warning => "warning",
            Self::Blocking => "blocking",
        }
    }
}

/// One finding of `check`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// How much it matters.
    pub severity: Severity,
    /// A stable name for scripts, kebab-case: `row-security`, `target-not-empty`.
    pub code: String,
    /// The object, quoted as SQL would, or the server or setting.
    pub object: String,
    /// What was found, one sentence without a full stop.
    pub message: String,
    /// The SQL, setting or command that mends it, if there is one.
    pub fix: Option<String>,
}

impl Finding {
    /// A finding without a remedy; add one with [`Finding::with_fix`].
    pub fn new(
        severity: Severity,
        code: &str,
        object: impl Into<String>,
        message: impl Into<String>,
    ) -> Self {
        debug_assert!(
            CODES.iter().any(|known| known.name == code && known.severities.contains(&severity)),
            "{code} as {severity:?} is not in the table of codes"
        );
        Self {
            severity,
            code: code.to_owned(),
            object: object.into(),
            message: message.into(),
            fix: None,
        }
    }

    /// Adds what mends it.
    #[must_use]
    pub fn with_fix(mut self, fix: impl Into<String>) -> Self {
        self.fix = Some(fix.into());
        self
    }
}
