//! What can go wrong with a report.
//!
//! **Invariant:** a message names the file's part that is meant and the way out, never a value of a row; what lies below is its `source`.

use crate::Contradiction;

/// A report could not be written, read or trusted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The text is not JSON, or not a report.
    #[error("read report.json: it is no report of this form")]
    Malformed(#[source] serde_json::Error),
    /// The same name stands twice in one object, so that readers may see different things.
    #[error(
        "read report.json: the name \"{0}\" stands twice in one object; tidemark never writes that, so the file was edited"
    )]
    DuplicateName(String),
    /// A number has a fraction or more than 64 bits, which a report never holds.
    #[error(
        "read report.json: the number {0} is no whole number of 64 bits; tidemark never writes that, so the file was edited"
    )]
    NotWhole(String),
    /// There is no checksum.
    #[error(
        "check report.json: it has no \"checksum\", so nothing shows that it was not edited; run verify again"
    )]
    NoChecksum,
    /// The checksum does not belong to the text.
    #[error(
        "check report.json: it says checksum {stated}, its content has {computed}: it was edited or damaged after it was written; run verify again"
    )]
    Edited {
        /// What the file says.
        stated: String,
        /// What follows from its content.
        computed: String,
    },
    /// Made by a later version.
    #[error(
        "read report.json: it has report_version {found}, this tidemark reads {supported}; use the version that wrote it (tool_version)"
    )]
    LaterVersion {
        /// What the file says.
        found: u32,
        /// What is known here.
        supported: u32,
    },
    /// The report says things that cannot all be true.
    #[error("check report.json: it contradicts itself: {}", list(.0))]
    Contradicts(Vec<Contradiction>),
    /// The report could not be turned into JSON.
    #[error("write report.json")]
    Unwritable(#[source] serde_json::Error),
    /// `diff.ndjson` could not be written.
    #[error("write line {line} of diff.ndjson; the differences after it are not in the file")]
    DiffWrite {
        /// Which line, from 1.
        line: u64,
        /// Why.
        source: std::io::Error,
    },
    /// `diff.ndjson` could not be read.
    #[error("read line {line} of diff.ndjson")]
    DiffRead {
        /// Which line, from 1.
        line: u64,
        /// Why.
        source: std::io::Error,
    },
    /// A line of `diff.ndjson` is no difference.
    #[error("read line {line} of diff.ndjson: it is no difference")]
    DiffMalformed {
        /// Which line, from 1.
        line: u64,
        /// Why.
        source: serde_json::Error,
    },
    /// `diff.ndjson` is not the file that the report speaks of.
    #[error(
        "check diff.ndjson: the report speaks of {expected_lines} lines with SHA-256 {expected}, the file has {lines} with {found}: it was cut, edited or belongs to another run"
    )]
    DiffEdited {
        /// Lines by the report.
        expected_lines: u64,
        /// SHA-256 by the report.
        expected: String,
        /// Lines of the file.
        lines: u64,
        /// SHA-256 of the file.
        found: String,
    },
}

fn list(contradictions: &[Contradiction]) -> String {
    contradictions.iter().map(Contradiction::to_string).collect::<Vec<_>>().join("; ")
}
