//! How a process ends: the exit codes and the message that goes with a failure.
//!
//! **Invariant:** numbers and sentences are a contract with scripts; `docs/reference/exit-codes.md` is made from this
//! table. A failure names what was attempted, why it did not work, and the way out.

use std::error::Error;
use std::fmt::Write as _;

use serde_json::json;

use crate::redact;

/// What a process ends with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum ExitCode {
    /// Done.
    Done = 0,
    /// A difference was found.
    Different = 1,
    /// The call or the configuration must be mended.
    Usage = 2,
    /// Not everything could be looked at.
    Incomplete = 3,
    /// Findings that the policy does not allow.
    NotAllowed = 4,
    /// The readiness check found something that blocks.
    Blocked = 5,
    /// The source cannot go on from where the job stands.
    SourceLost = 6,
    /// The target refused.
    Refused = 7,
    /// Something is not reachable or used up.
    Unavailable = 8,
    /// Another instance holds the job.
    Held = 9,
    /// A defect of ours.
    Internal = 70,
    /// Interrupted with work left.
    Interrupted = 130,
}

impl ExitCode {
    /// Every code, by number.
    pub const ALL: [Self; 12] = [
        Self::Done,
        Self::Different,
        Self::Usage,
        Self::Incomplete,
        Self::NotAllowed,
        Self::Blocked,
        Self::SourceLost,
        Self::Refused,
        Self::Unavailable,
        Self::Held,
        Self::Internal,
        Self::Interrupted,
    ];

    /// The one that a process ends with of which several things ended with these: what keeps a job from going on comes before
    /// what it has found.
    pub fn worst(codes: impl IntoIterator<Item = Self>) -> Self {
        const ORDER: [ExitCode; 12] = [
            ExitCode::Internal,
            ExitCode::SourceLost,
            ExitCode::Refused,
            ExitCode::Unavailable,
            ExitCode::Held,
            ExitCode::Usage,
            ExitCode::Blocked,
            ExitCode::Interrupted,
            ExitCode::Different,
            ExitCode::Incomplete,
            ExitCode::NotAllowed,
            ExitCode::Done,
        ];
        let rank = |code: &Self| ORDER.iter().position(|other| other == code);
        codes.into_iter().min_by_key(rank).unwrap_or(Self::Done)
    }

    /// The number that the system sees.
    pub fn number(self) -> u8 {
        self as u8
    }

    /// What it means, one sentence.
    pub fn meaning(self) -> &'static str {
        match self {
            Self::Done => "done, and verified where asked",
            Self::Different => "a difference was found",
            Self::Usage => "usage, configuration, wrong password or unknown database",
            Self::Incomplete => "incomplete or not verifiable",
            Self::NotAllowed => "only equivalent or lossy findings that the policy does not allow",
            Self::Blocked => "the readiness check found something that blocks",
            Self::SourceLost => {
                "the source cannot continue (slot lost, other cluster, older timeline)"
            }
            Self::Refused => {
                "the target refused (constraint, privilege), or a table is stopped; the position is kept"
            }
            Self::Unavailable => {
                "not reachable, or a local or remote resource is missing (disk), after retries; the position is kept"
            }
            Self::Held => "another instance holds the job",
            Self::Internal => "internal error",
            Self::Interrupted => "interrupted with work left; resumable",
        }
    }

    /// What to do about it.
    pub fn way_out(self) -> &'static str {
        match self {
            Self::Done => "nothing",
            Self::Different => "read the report, repair, verify again",
            Self::Usage => "mend what the message names and run again",
            Self::Incomplete => "the output names what was skipped and why",
            Self::NotAllowed => "allow the finding in the policy, or change what is moved",
            Self::Blocked => "`tidemark check` prints each finding with what mends it",
            Self::SourceLost => {
                "a new snapshot is needed: `tidemark sync --target-not-empty reconcile --yes` keeps what the target holds, `truncate` copies all of it again"
            }
            Self::Refused => "mend the target as the message says and run again",
            Self::Unavailable => "bring the server, the network or the space back and run again",
            Self::Held => "wait for it, or stop it; `tidemark status` shows it",
            Self::Internal => "report it as a defect",
            Self::Interrupted => "run the same command again",
        }
    }
}

/// Why a command did not end well, ready to be printed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// What the process ends with.
    pub code: ExitCode,
    /// What was attempted, then its causes; empty means that nothing is printed.
    pub chain: Vec<String>,
    /// The way out, for people.
    pub hint: Option<String>,
}

impl Failure {
    /// A failure with what was attempted.
    pub fn new(code: ExitCode, attempt: impl Into<String>) -> Self {
        Self { code, chain: vec![attempt.into()], hint: None }
    }

    /// The caller must change the call or the configuration.
    pub fn usage(attempt: impl Into<String>) -> Self {
        Self::new(ExitCode::Usage, attempt)
    }

    /// A defect of ours.
    pub fn internal(attempt: impl Into<String>) -> Self {
        Self::new(ExitCode::Internal, attempt)
    }

    /// An error and everything below it.
    pub fn of(code: ExitCode, error: &(dyn Error + 'static)) -> Self {
        let mut failure = Self::new(code, error.to_string());
        if let Some(source) = error.source() {
            failure = failure.because(source);
        }
        failure
    }

    /// The reader of our output went away (`| head`): that is no failure and says nothing.
    pub fn reader_gone() -> Self {
        Self { code: ExitCode::Done, chain: Vec::new(), hint: None }
    }

    /// Adds a cause and everything below it. A cause that repeats what is said already is left out.
    #[must_use]
    pub fn because(mut self, error: &(dyn Error + 'static)) -> Self {
        let mut next = Some(error);
        while let Some(error) = next {
            self = self.cause(error.to_string());
            next = error.source();
        }
        self
    }

    /// Adds a cause by its text.
    #[must_use]
    pub fn cause(mut self, text: impl Into<String>) -> Self {
        let text = text.into();
        if !text.is_empty() && !self.chain.iter().any(|said| said.contains(&text)) {
            self.chain.push(text);
        }
        self
    }

    /// Adds the way out.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// For people: `error: ...`, `caused by: ...`, `way out: ...`, with a last line end.
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        for (index, line) in self.chain.iter().enumerate() {
            let label = if index == 0 { "error" } else { "  caused by" };
            writeln!(text, "{label}: {}", indented(line)).ok();
        }
        if let Some(hint) = &self.hint {
            writeln!(text, "  way out: {}", indented(hint)).ok();
        }
        text
    }

    /// For machines: the shape of a log line, with the exit code.
    pub fn to_json(&self) -> String {
        let Some((error, causes)) = self.chain.split_first() else {
            return String::new();
        };
        let causes: Vec<String> = causes.iter().map(|line| redact::text(line)).collect();
        let line = json!({
            "level": "ERROR",
            "fields": {
                "message": redact::text(error),
                "causes": causes,
                "way_out": self.hint.as_deref().map(redact::text),
                "exit_code": self.code.number(),
            },
        });
        format!("{line}\n")
    }
}

/// Without secrets, and with further lines indented, so that the next label stays visible.
fn indented(text: &str) -> String {
    redact::text(text.trim_end()).replace('\n', "\n    ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_those_of_the_contract() {
        let numbers: Vec<u8> = ExitCode::ALL.iter().map(|code| code.number()).collect();
        assert_eq!(numbers, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 70, 130]);
    }

    #[test]
    fn what_keeps_a_job_from_going_on_comes_before_what_it_has_found() {
        use ExitCode::{Different, Done, Incomplete, NotAllowed, Refused, SourceLost, Unavailable};

        assert_eq!(ExitCode::worst([Done, Different, Unavailable, Refused]), Refused);
        assert_eq!(ExitCode::worst([Refused, SourceLost]), SourceLost);
        assert_eq!(ExitCode::worst([NotAllowed, Incomplete, Done]), Incomplete);
        assert_eq!(ExitCode::worst([Incomplete, Different]), Different);
        assert_eq!(ExitCode::worst([]), Done);
        for code in ExitCode::ALL {
            assert_eq!(ExitCode::worst([Done, code]), code);
        }
    }

    #[test]
    fn a_failure_prints_its_chain_and_the_way_out_without_secrets() {
        let cause = std::io::Error::other("refused by postgres://u:S3cr3t@db1/shop");
        let failure = Failure::new(ExitCode::Unavailable, "connect to the source")
            .because(&cause)
            .hint("start the server");
        assert_eq!(
            failure.to_text(),
            "error: connect to the source\n  caused by: refused by postgres://u:***@db1/shop\n  way out: start the server\n"
        );
        let json: serde_json::Value = serde_json::from_str(&failure.to_json()).unwrap();
        assert_eq!(json["fields"]["exit_code"], 8);
        assert!(!failure.to_json().contains("S3cr3t"));
    }

    #[test]
    fn a_cause_that_repeats_the_message_is_said_once() {
        let failure = Failure::usage("open x: no such file").cause("no such file");
        assert_eq!(failure.chain.len(), 1);
    }

    #[test]
    fn a_reader_that_went_away_is_no_failure() {
        assert_eq!(Failure::reader_gone().to_text(), "");
        assert_eq!(Failure::reader_gone().to_json(), "");
        assert_eq!(Failure::reader_gone().code, ExitCode::Done);
    }
}
