//! What a verify found, as files for people and for scripts.
//!
//! `verify` fills a [`VerifyReport`] with facts and calls [`VerifyReport::judge`]; the verdicts follow from the facts alone.
//! The files are made from it: [`to_json`] (`report.json`, with a checksum that [`check_json`] holds it against),
//! [`to_html`] (`report.html`), [`to_junit`] (`report.junit.xml`). [`DiffWriter`] writes `diff.ndjson` while the keys are found.
//!
//! A migration as a whole has a report of its own ([`MigrationReport`]: `migration.json`, `migration.html`).
//!
//! **Invariant:** a value of a row is in no file but `diff.ndjson`, and there, as in a table's first and last differing key,
//! only as the [`Redactor`] shows it: what holds one ([`Shown`], [`ShownKey`]) can be made by a redactor alone, or read from
//! a file. `identical` is never said of what was skipped, not read in full, or not read at all.
//!
//! **Not here:** how two sides are read and compared (`verify`), how a row is hashed (`digest`), which files are opened where
//! (`cli`). This crate does no I/O beyond the writer that it is given.

mod checksum;
mod claim;
mod contradiction;
mod diff;
mod error;
mod heat;
mod html;
mod junit;
mod migration;
mod redact;
mod report;
mod schema;
mod table;
mod verdict;
mod words;

pub use checksum::{check_json, check_migration_json, checksum_of, to_json};
pub use contradiction::Contradiction;
pub use diff::{
    ColumnDifference, DiffColumn, DiffCounts, DiffFile, DiffKind, DiffLine, DiffReader, DiffWriter,
    Difference,
};
pub use error::Error;
pub use heat::{HeatMap, LeafState};
pub use html::{migration_to_html, to_html};
pub use junit::to_junit;
pub use migration::{
    AttemptReport, FindingReport, MIGRATION_VERSION, MigrationReport, MigrationSide, Settled,
    Stage, StepReport, VerificationReport, migration_to_json,
};
pub use redact::{FieldValue, Key, Redaction, Redactor, Shown, ShownKey};
pub use report::{
    Barrier, DigestMethod, KeysSetAside, Mapping, Point, Policy, Reading, SchemaFinding,
    SchemaSeverity, Scope, Side, SideKind, SideSnapshot, Skipped, VerifyReport,
};
pub use schema::{json_schema, migration_schema};
pub use table::{ColumnFinding, Digest, LastProven, TableReport};
pub use verdict::{Allowance, Deviations, Level, Outcome, Proof, Shortfall, Verdict};

/// The version of the form of `report.json`; it grows when a field changes its meaning or goes, not when one comes.
pub const REPORT_VERSION: u32 = 1;

/// A result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;
