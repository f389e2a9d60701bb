//! The report of a migration: what was done, when, and how it was proven, for whoever has to sign it.
//!
//! **Invariant:** it is made of what was written down when it happened (the job's journal); nothing in it is looked up or
//! judged anew. No value of a row is in it.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{Level, Result, Verdict, checksum};

/// The version of the form of `migration.json`.
pub const MIGRATION_VERSION: u32 = 1;

/// A migration, from its copy to its end.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct MigrationReport {
    /// The version of this form.
    pub report_version: u32,
    /// The program that wrote it.
    pub tool_version: String,
    /// When it was written (RFC 3339).
    pub written_at: String,
    /// The job.
    pub job: String,
    /// Where the migration is.
    pub stage: Stage,
    /// The side that the application came from; none before a copy was begun.
    pub source: Option<MigrationSide>,
    /// The side that it goes to; known once a cutover has looked at it.
    pub target: Option<MigrationSide>,
    /// When the copy was begun.
    pub copied_from: Option<String>,
    /// When all rows were there.
    pub copied_to: Option<String>,
    /// Tables that were copied, and that joined later.
    pub tables: u64,
    /// Cutovers and fallbacks, oldest first.
    pub attempts: Vec<AttemptReport>,
    /// Verifications, those within attempts included, oldest first.
    pub verifications: Vec<VerificationReport>,
    /// What was found on source and target, and whether it is still there.
    pub findings: Vec<FindingReport>,
    /// When it was said to be complete: there is no way back since.
    pub completed_at: Option<String>,
    /// SHA-256 of the rest, taken as that of `report.json` is.
    pub checksum: Option<String>,
}

/// Where a migration is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Stage {
    /// Rows are copied.
    Copying,
    /// The target follows the source.
    Following,
    /// A cutover or a fallback is not at its end.
    Switching,
    /// The application is on the target, the source follows.
    Hypercare,
    /// There is no way back any more.
    Complete,
}

impl Stage {
    /// In words for people.
    pub fn word(self) -> &'static str {
        match self {
            Self::Copying => "copying",
            Self::Following => "following",
            Self::Switching => "switching",
            Self::Hypercare => "hypercare",
            Self::Complete => "complete",
        }
    }
}

/// A server as it was when it was read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct MigrationSide {
    /// PostgreSQL's `server_version_num`.
    pub version: u32,
    /// The cluster's system identifier.
    pub system_identifier: String,
    /// The database.
    pub database: String,
}

/// A cutover or a fallback.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct AttemptReport {
    /// `cutover` or `fallback`.
    pub way: String,
    /// When it began.
    pub began_at: String,
    /// When it ended, if it has.
    pub ended_at: Option<String>,
    /// What became of it.
    pub outcome: Settled,
    /// Why it was taken back.
    pub because: Option<String>,
    /// The last barrier.
    pub lsn: Option<String>,
    /// For how long nobody could write.
    pub write_block_ms: Option<u64>,
    /// Steps in the order in which they were begun; one that a killed process began stands there twice.
    pub steps: Vec<StepReport>,
}

/// A step of a cutover or a fallback.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct StepReport {
    /// Its name.
    pub step: String,
    /// When it began.
    pub began_at: String,
    /// How long it took, if it ended.
    pub duration_ms: Option<u64>,
    /// What became of it.
    pub outcome: Settled,
    /// What it found and did.
    pub detail: Value,
}

/// What became of an attempt or a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Settled {
    /// It is done.
    Done,
    /// It went wrong.
    Failed,
    /// Everything was taken back.
    TakenBack,
    /// It is under way, or whoever did it was killed.
    Open,
}

impl Settled {
    /// In words for people.
    pub fn word(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Failed => "failed",
            Self::TakenBack => "taken back",
            Self::Open => "not ended",
        }
    }
}

/// A verification of the two sides.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct VerificationReport {
    /// When it ended.
    pub at: String,
    /// What it found.
    pub verdict: Verdict,
    /// The position, on the side that the stream came from, at which both were compared.
    pub lsn: Option<String>,
    /// How closely.
    pub level: Level,
    /// Tables that were compared.
    pub tables: u64,
    /// Their rows.
    pub rows: u64,
    /// The cutover or fallback that it was a step of; none where somebody asked for it.
    pub step_of: Option<String>,
}

/// A finding of `check`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct FindingReport {
    /// How much it matters.
    pub severity: String,
    /// Its stable name.
    pub code: String,
    /// What it is about.
    pub object: String,
    /// What was found.
    pub message: String,
    /// What mends it.
    pub fix: Option<String>,
    /// When it was seen first.
    pub first_seen: String,
    /// When it was seen last.
    pub last_seen: String,
    /// The last look did not find it any more.
    pub is_settled: bool,
}

/// The text of `migration.json`, with its checksum.
///
/// # Errors
/// The report does not fit into JSON.
pub fn migration_to_json(report: &MigrationReport) -> Result<String> {
    let unsealed = MigrationReport { checksum: None, ..report.clone() };
    let checksum = Some(checksum::of(&unsealed)?);
    checksum::pretty(&MigrationReport { checksum, ..unsealed })
}
