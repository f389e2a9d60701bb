//! `diff.ndjson`: every differing row, one JSON object a line.
//!
//! **Invariant:** every difference that was given to [`DiffWriter::write`] is a line of the file, or an error was returned:
//! there is no cap. Number of lines and SHA-256 go into the report ([`DiffFile`]), so that a file that was cut later is known
//! for it ([`DiffReader::finish`]). Values pass through a [`Redactor`] and are never kept.

use std::collections::BTreeMap;
use std::io::{BufRead, Write};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tidemark_model::RelationName;

use crate::redact::hex;
use crate::{Error, FieldValue, Key, Redactor, Result, Shown, ShownKey};

/// In which way a row differs.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum DiffKind {
    /// On the source only.
    Missing,
    /// On the target only.
    Extra,
    /// On both, with other values.
    Changed,
    /// On both, with equal values in another representation.
    Equivalent,
    /// On both, with values that a declared mapping cannot carry in full.
    Lossy,
}

impl DiffKind {
    /// The word as it is in `diff.ndjson`.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Extra => "extra",
            Self::Changed => "changed",
            Self::Equivalent => "equivalent",
            Self::Lossy => "lossy",
        }
    }
}

/// A column of a row that differs, as it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ColumnDifference {
    /// The column.
    pub column: String,
    /// `changed`, `equivalent` or `lossy`.
    pub class: DiffKind,
    /// Its value on the source.
    pub source: FieldValue,
    /// Its value on the target.
    pub target: FieldValue,
}

/// A row that differs, as it was read. Nothing of it is shown before a [`DiffWriter`] has redacted it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// Its table.
    pub table: RelationName,
    /// Its key.
    pub key: Key,
    /// In which way it differs.
    pub kind: DiffKind,
    /// How many such rows there are; more than one only in a table without a key.
    pub copies: u64,
    /// The columns that differ, where the row is on both sides and the level is `rows`.
    pub columns: Vec<ColumnDifference>,
}

/// A column of a line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiffColumn {
    /// `changed`, `equivalent` or `lossy`.
    pub class: DiffKind,
    /// What is shown of its value on the source.
    pub source: Shown,
    /// What is shown of its value on the target.
    pub target: Shown,
}

/// A line of `diff.ndjson`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiffLine {
    /// The table's schema.
    pub schema: String,
    /// The table.
    pub table: String,
    /// In which way the row differs.
    pub kind: DiffKind,
    /// What is shown of its key.
    pub key: ShownKey,
    /// How many such rows there are; left out where there is one.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub copies: u64,
    /// The columns that differ; left out where there is none to name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub columns: BTreeMap<String, DiffColumn>,
}

fn one() -> u64 {
    1
}

fn is_one(copies: &u64) -> bool {
    *copies == 1
}

/// Rows by the way in which they differ. 64-bit: may exceed 2^53.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct DiffCounts {
    /// Rows on the source only.
    pub missing: u64,
    /// Rows on the target only.
    pub extra: u64,
    /// Rows with other values.
    pub changed: u64,
    /// Rows with equal values in another representation.
    pub equivalent: u64,
    /// Rows with values that a declared mapping cannot carry in full.
    pub lossy: u64,
}

impl DiffCounts {
    /// All of them together.
    pub fn total(&self) -> u64 {
        [self.missing, self.extra, self.changed, self.equivalent, self.lossy]
            .iter()
            .fold(0, |sum, count| sum.saturating_add(*count))
    }

    fn add(&mut self, kind: DiffKind, rows: u64) {
        let count = match kind {
            DiffKind::Missing => &mut self.missing,
            DiffKind::Extra => &mut self.extra,
            DiffKind::Changed => &mut self.changed,
            DiffKind::Equivalent => &mut self.equivalent,
            DiffKind::Lossy => &mut self.lossy,
        };
        *count = count.saturating_add(rows);
    }
}

/// What a report says of its `diff.ndjson`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DiffFile {
    /// The file's name, beside the report.
    pub name: String,
    /// Its lines: one for each differing row, or kind of equal rows of a table without a key.
    pub lines: u64,
    /// The rows that the lines stand for.
    pub rows: DiffCounts,
    /// SHA-256 of the whole file, hexadecimal.
    pub sha256: String,
}

/// Writes differences as they are found.
pub struct DiffWriter<W> {
    file: W,
    redactor: Redactor,
    lines: u64,
    rows: DiffCounts,
    sha256: Sha256,
}

impl<W: Write> DiffWriter<W> {
    /// A writer into `file`, which should be buffered.
    pub fn new(file: W, redactor: Redactor) -> Self {
        let (lines, rows, sha256) = (0, DiffCounts::default(), Sha256::new());
        Self { file, redactor, lines, rows, sha256 }
    }

    /// The redaction in force, for a table's first and last differing key.
    pub fn redactor(&self) -> &Redactor {
        &self.redactor
    }

    /// Writes one difference as one line.
    ///
    /// # Errors
    /// The file does not take it. It is then not complete, and nothing more should be written.
    pub fn write(&mut self, difference: &Difference) -> Result<()> {
        let line = self.line_of(difference);
        let mut text = serde_json::to_vec(&line).map_err(Error::Unwritable)?;
        text.push(b'\n');
        let number = self.lines + 1;
        let write_error = |source| Error::DiffWrite { line: number, source };
        self.file.write_all(&text).map_err(write_error)?;
        self.sha256.update(&text);
        self.lines = number;
        self.rows.add(difference.kind, difference.copies);
        Ok(())
    }

    /// Flushes, and gives the file back with what the report has to say of it under `name`.
    ///
    /// # Errors
    /// The file could not be flushed: it is not complete.
    pub fn finish(mut self, name: &str) -> Result<(W, DiffFile)> {
        let line = self.lines;
        self.file.flush().map_err(|source| Error::DiffWrite { line, source })?;
        let sha256 = hex(&self.sha256.finalize());
        Ok((self.file, DiffFile { name: name.to_owned(), lines: line, rows: self.rows, sha256 }))
    }

    fn line_of(&self, difference: &Difference) -> DiffLine {
        let table = &difference.table;
        let shown = |found: &ColumnDifference| {
            let value = |value| self.redactor.value(table, &found.column, value);
            let (source, target) = (value(&found.source), value(&found.target));
            (found.column.clone(), DiffColumn { class: found.class, source, target })
        };
        DiffLine {
            schema: table.schema.clone(),
            table: table.name.clone(),
            kind: difference.kind,
            key: self.redactor.key(table, &difference.key),
            copies: difference.copies,
            columns: difference.columns.iter().map(shown).collect(),
        }
    }
}

/// Reads `diff.ndjson` line by line.
pub struct DiffReader<R> {
    file: R,
    lines: u64,
    sha256: Sha256,
}

impl<R: BufRead> DiffReader<R> {
    /// A reader of `file`.
    pub fn new(file: R) -> Self {
        Self { file, lines: 0, sha256: Sha256::new() }
    }

    /// Compares what was read with what the report says of the file; call it when the iterator has ended.
    ///
    /// # Errors
    /// Lines are missing, or were edited.
    pub fn finish(self, report: &DiffFile) -> Result<()> {
        let found = hex(&self.sha256.finalize());
        if found == report.sha256 && self.lines == report.lines {
            return Ok(());
        }
        Err(Error::DiffEdited {
            expected_lines: report.lines,
            expected: report.sha256.clone(),
            lines: self.lines,
            found,
        })
    }

    fn read(&mut self) -> Result<Option<DiffLine>> {
        let line = self.lines + 1;
        let mut text = Vec::new();
        let read = self.file.read_until(b'\n', &mut text);
        if read.map_err(|source| Error::DiffRead { line, source })? == 0 {
            return Ok(None);
        }
        self.sha256.update(&text);
        self.lines = line;
        let difference = serde_json::from_slice(&text);
        difference.map(Some).map_err(|source| Error::DiffMalformed { line, source })
    }
}

impl<R: BufRead> Iterator for DiffReader<R> {
    type Item = Result<DiffLine>;

    fn next(&mut self) -> Option<Self::Item> {
        self.read().transpose()
    }
}
