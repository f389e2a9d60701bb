//! What a delta did, as people and scripts read it.

use std::collections::BTreeMap;

use serde::Serialize;

use super::classify::{Action, Actions, Class, Counts};

/// What came of a run.
#[derive(Debug, Clone, Serialize)]
pub struct DeltaReport {
    /// The job's name.
    pub job: String,
    /// Nothing was written.
    pub dry_run: bool,
    /// The source's position just before its snapshot was taken; none where no table was read.
    pub lsn: Option<String>,
    /// Every chosen table, by name.
    pub tables: Vec<TableDelta>,
    /// How long it took.
    pub duration_ms: u64,
}

impl DeltaReport {
    /// Rows that the target refused.
    pub fn refused(&self) -> u64 {
        self.tables.iter().map(|table| table.refused).sum()
    }

    /// Whether the target refused a table as a whole.
    pub fn has_failed(&self) -> bool {
        self.tables.iter().any(|table| table.failed.is_some())
    }

    /// Whether a table was left out.
    pub fn has_skipped(&self) -> bool {
        self.tables.iter().any(|table| table.skipped_reason.is_some())
    }
}

/// What came of one table.
#[derive(Debug, Clone, Serialize)]
pub struct TableDelta {
    /// Its schema.
    pub schema: String,
    /// Its name.
    pub table: String,
    /// What the source was compared with.
    pub compared_with: Option<ComparedWith>,
    /// Rows of the source that the filter lets through.
    pub rows: u64,
    /// What was found of each class.
    pub classes: Vec<ClassDelta>,
    /// Rows that the target refused; the next run tries them again.
    pub refused: u64,
    /// Why, and how many.
    pub refusals: BTreeMap<String, u64>,
    /// Why the table was left out.
    pub skipped_reason: Option<String>,
    /// Why the target refused it as a whole: nothing of it was moved.
    pub failed: Option<String>,
    /// How long its comparison and its rows took, the reading of the source not counted.
    pub duration_ms: u64,
}

/// What the source is compared with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ComparedWith {
    /// Nothing is known of the target: every row is new.
    Nothing,
    /// What earlier runs have moved.
    Ledger,
    /// The target's rows.
    Target,
}

/// What was found of one class.
#[derive(Debug, Clone, Serialize)]
pub struct ClassDelta {
    /// Which.
    pub class: Class,
    /// What is done with it.
    pub action: Action,
    /// Rows.
    pub found: u64,
    /// Rows that were moved, or would be.
    pub moved: u64,
    /// About so many bytes these are.
    pub bytes: u64,
}

impl TableDelta {
    pub(super) fn new(name: &tidemark_model::RelationName) -> Self {
        Self {
            schema: name.schema.clone(),
            table: name.name.clone(),
            compared_with: None,
            rows: 0,
            classes: Vec::new(),
            refused: 0,
            refusals: BTreeMap::new(),
            skipped_reason: None,
            failed: None,
            duration_ms: 0,
        }
    }

    /// What was found; `row_bytes`: what a row of the source takes on its way, about.
    pub(super) fn found(&mut self, counts: &Counts, actions: &Actions, row_bytes: u64) {
        self.rows = counts.rows;
        let of = |class: Class| {
            let (action, found) = (actions.of(class), counts.found[class as usize]);
            let moved = if action == Action::Apply { found } else { 0 };
            // What is skipped is nobody's business.
            let found = if action == Action::Skip { 0 } else { found };
            // Of a row that goes hardly more than its key is sent.
            let bytes = if class == Class::Deleted { moved * 16 } else { moved * row_bytes };
            ClassDelta { class, action, found, moved, bytes }
        };
        self.classes = Class::ALL.into_iter().map(of).collect();
    }

    /// The target refused a row of this class.
    pub(super) fn refuse(&mut self, class: Class, why: &str) {
        self.refused += 1;
        *self.refusals.entry(why.to_owned()).or_default() += 1;
        if let Some(of) = self.classes.iter_mut().find(|of| of.class == class) {
            of.moved = of.moved.saturating_sub(1);
        }
    }
}
