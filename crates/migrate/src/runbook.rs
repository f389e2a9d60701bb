//! What was done of a migration, as its journal says.
//!
//! **Invariant:** the state is what the lines of the journal add up to, and nothing else; a line is on the disk before what
//! comes after it begins.

use std::path::Path;

use serde::{Deserialize, Serialize};
use tidemark_ledger::{Journal, JournalEntry, LedgerReader};
use tidemark_model::Lsn;
use tidemark_pipeline::Result;

/// What the journal calls our lines.
const EVENT: &str = "migrate";

/// From where to where the stream goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Direction {
    /// From the source to the target.
    #[default]
    Forward,
    /// From the target, which takes the writes by now, to the source.
    Back,
}

/// Which way the application goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Way {
    /// Over to the target.
    Cutover,
    /// Back to the source.
    Fallback,
}

impl Way {
    /// From where to where the stream goes before it.
    pub fn from(self) -> Direction {
        match self {
            Self::Cutover => Direction::Forward,
            Self::Fallback => Direction::Back,
        }
    }

    /// The same afterwards.
    pub fn to(self) -> Direction {
        match self {
            Self::Cutover => Direction::Back,
            Self::Fallback => Direction::Forward,
        }
    }

    /// As the command is called.
    pub fn word(self) -> &'static str {
        match self {
            Self::Cutover => "cutover",
            Self::Fallback => "fallback",
        }
    }
}

/// A step of a cutover or a fallback, in their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Step {
    /// The lag is small enough, and nothing stands in the way.
    Check,
    /// Every table is proven while the application writes.
    Prove,
    /// The side that is left takes no more writes of the application.
    Fence,
    /// The other side has everything up to a barrier, and nothing came behind it.
    Drain,
    /// Sequences of the other side go on behind those of this one.
    Sequences,
    /// What the stream has touched since is proven.
    Verify,
    /// The stream back has its slot, and nothing was written since the barrier.
    Reverse,
    /// The other side takes writes.
    Open,
    /// The application is told.
    Switch,
    /// Whoever runs the job follows the other side.
    Turn,
    /// What the stream had on the side that was left is removed.
    Retire,
}

impl Step {
    /// All of them.
    pub const ALL: [Self; 11] = [
        Self::Check,
        Self::Prove,
        Self::Fence,
        Self::Drain,
        Self::Sequences,
        Self::Verify,
        Self::Reverse,
        Self::Open,
        Self::Switch,
        Self::Turn,
        Self::Retire,
    ];

    /// As the journal has it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Check => "check",
            Self::Prove => "prove",
            Self::Fence => "fence",
            Self::Drain => "drain",
            Self::Sequences => "sequences",
            Self::Verify => "verify",
            Self::Reverse => "reverse",
            Self::Open => "open",
            Self::Switch => "switch",
            Self::Turn => "turn",
            Self::Retire => "retire",
        }
    }
}

/// What became of a step, or of the whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Event {
    /// An attempt begins, or a step of it.
    Begun,
    /// It is done.
    Done,
    /// It went wrong; it may be tried again.
    Failed,
    /// What was done begins to be taken back: from here on it cannot be gone on with.
    TakingBack,
    /// Everything before the point of no return was taken back.
    Aborted,
    /// The migration is over: there is no way back any more.
    Completed,
}

/// A line of the journal.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// When, in milliseconds since 1970.
    #[serde(default)]
    pub at_ms: i64,
    /// Which way; of the end of a migration the last one.
    pub way: Way,
    /// Which step; of an attempt as a whole none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<Step>,
    /// What became of it.
    pub event: Event,
    /// More.
    #[serde(default, skip_serializing_if = "serde_json::Value::is_null")]
    pub detail: serde_json::Value,
}

/// A cutover or a fallback that is not at its end.
#[derive(Debug, Clone, PartialEq)]
pub struct Attempt {
    /// Which way.
    pub way: Way,
    /// Its lines.
    pub entries: Vec<Entry>,
}

impl Attempt {
    /// Whether a step is done.
    pub fn is_done(&self, step: Step) -> bool {
        self.entries.iter().any(|entry| entry.step == Some(step) && entry.event == Event::Done)
    }

    /// Whether a step was begun.
    pub fn has_begun(&self, step: Step) -> bool {
        self.entries.iter().any(|entry| entry.step == Some(step))
    }

    /// Whether it is being taken back.
    pub fn is_taken_back(&self) -> bool {
        self.entries.iter().any(|entry| entry.event == Event::TakingBack)
    }

    /// Whether the other side may take writes by now: from here on there is only forward.
    pub fn is_beyond_return(&self) -> bool {
        self.has_begun(Step::Open)
    }

    /// The barrier that it was drained to, if it was.
    pub fn drained_to(&self) -> Option<Lsn> {
        let is_drained =
            |entry: &&Entry| (entry.step, entry.event) == (Some(Step::Drain), Event::Done);
        let drained = self.entries.iter().rfind(is_drained)?;
        drained.detail["lsn"].as_str()?.parse().ok()
    }

    /// When the fence began to be put up, if it was.
    pub fn fenced_at(&self) -> Option<i64> {
        let mut fences = self.entries.iter().filter(|entry| entry.step == Some(Step::Fence));
        fences.next().map(|entry| entry.at_ms)
    }
}

/// Where a migration is.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct State {
    /// Which way the stream goes.
    pub direction: Direction,
    /// What is under way.
    pub attempt: Option<Attempt>,
    /// Everything that was done, oldest first.
    pub entries: Vec<Entry>,
    /// There is no way back any more.
    pub is_complete: bool,
}

impl State {
    pub(crate) fn of(journal: Vec<JournalEntry>) -> Self {
        let mut state = Self::default();
        for line in journal.into_iter().filter(|line| line.event == EVENT) {
            // A later version's line is not ours to understand.
            let Ok(entry) = serde_json::from_value::<Entry>(line.detail) else { continue };
            state.add(Entry { at_ms: line.at_ms, ..entry });
        }
        state
    }

    fn add(&mut self, entry: Entry) {
        match (entry.step, entry.event) {
            (None, Event::Begun) => {
                self.attempt = Some(Attempt { way: entry.way, entries: Vec::new() });
            }
            (None, Event::Completed) => self.is_complete = true,
            (None, Event::TakingBack) => {}
            (None, _) => self.attempt = None,
            (Some(Step::Turn), Event::Done) => self.direction = entry.way.to(),
            (Some(_), _) => {}
        }
        if let Some(attempt) = &mut self.attempt {
            attempt.entries.push(entry.clone());
        }
        self.entries.push(entry);
    }

    /// Whether anything was ever done.
    pub fn has_begun(&self) -> bool {
        !self.entries.is_empty()
    }

    /// What was noted of the last fence on the side that the stream comes from in this direction, if it was put up.
    pub(crate) fn last_fence(&self, from: Direction) -> Option<&serde_json::Value> {
        let is_fence = |entry: &&Entry| {
            entry.step == Some(Step::Fence)
                && entry.event == Event::Done
                && entry.way.from() == from
        };
        self.entries.iter().rev().find(is_fence).map(|entry| &entry.detail)
    }
}

/// Where the migration of a state directory is; at its beginning where there is no ledger.
///
/// # Errors
/// The ledger cannot be read.
pub fn state(state_dir: &Path) -> Result<State> {
    match LedgerReader::open(state_dir) {
        Ok(reader) => Ok(State::of(reader.journal()?)),
        Err(tidemark_ledger::Error::Missing { .. }) => Ok(State::default()),
        Err(error) => Err(error.into()),
    }
}

/// The journal, held.
pub(crate) struct Runbook {
    journal: Journal,
    pub(crate) state: State,
}

impl Runbook {
    pub(crate) fn open(state_dir: &Path) -> Result<Self> {
        let journal = Journal::open(state_dir)?;
        let state = State::of(journal.entries()?);
        Ok(Self { journal, state })
    }

    /// Writes a line.
    pub(crate) fn note(
        &mut self,
        way: Way,
        step: Option<Step>,
        event: Event,
        detail: serde_json::Value,
    ) -> Result<()> {
        let entry = Entry { at_ms: tidemark_ledger::now_ms(), way, step, event, detail };
        let line = serde_json::to_value(&entry).expect("entries are plain data");
        self.journal.write(EVENT, &line)?;
        self.state.add(entry);
        Ok(())
    }
}
