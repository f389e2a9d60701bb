//! Whether a report agrees with itself.
//!
//! **Invariant:** a report that [`VerifyReport::judge`] has filled has no contradiction of verdict or proof; a file whose
//! verdict was edited has one, even if its checksum was made anew.

use std::fmt;

use tidemark_model::RelationName;

use crate::{TableReport, Verdict, VerifyReport};

/// Two statements of a report that cannot both be true.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Contradiction {
    /// A table's verdict does not follow from what the report says of it.
    Table {
        /// The table.
        table: RelationName,
        /// The verdict in the report.
        stated: Verdict,
        /// The one that follows.
        derived: Verdict,
    },
    /// The run's verdict does not follow from its tables and from what was skipped.
    Run {
        /// The verdict in the report.
        stated: Verdict,
        /// The one that follows.
        derived: Verdict,
    },
    /// The run's proof does not follow from its tables.
    Proof,
    /// The tables count other differing rows than `diff.ndjson` holds.
    DiffRows {
        /// By the tables.
        tables: u64,
        /// In the file.
        file: u64,
    },
}

impl fmt::Display for Contradiction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Table { table, stated, derived } => write!(
                f,
                "it calls table {table} {}, what it says of the table means {}",
                stated.word(),
                derived.word()
            ),
            Self::Run { stated, derived } => write!(
                f,
                "it calls the whole {}, what it says of the parts means {}",
                stated.word(),
                derived.word()
            ),
            Self::Proof => write!(f, "its proof is not the weakest of its tables"),
            Self::DiffRows { tables, file } => write!(
                f,
                "its tables count {tables} differing rows, its diff.ndjson stands for {file}"
            ),
        }
    }
}

impl VerifyReport {
    /// Every contradiction in it; none in a report that was made by [`VerifyReport::judge`] from complete counts.
    pub fn contradictions(&self) -> Vec<Contradiction> {
        let tables = self.tables.iter().filter(|table| table.verdict != table.judge());
        let mut found: Vec<_> = tables
            .map(|table| Contradiction::Table {
                table: RelationName::new(&table.schema, &table.table),
                stated: table.verdict,
                derived: table.judge(),
            })
            .collect();
        let derived = self.derived_verdict();
        if self.verdict != derived {
            found.push(Contradiction::Run { stated: self.verdict, derived });
        }
        if self.proof != self.derived_proof() {
            found.push(Contradiction::Proof);
        }
        found.extend(self.diff_contradiction());
        found
    }

    /// Counts of all tables are held against the file's; a table whose rows were not all looked at may have any number. Lossy
    /// rows need no line: of a mapping that is declared they are known by what the source has.
    fn diff_contradiction(&self) -> Option<Contradiction> {
        let rows = &self.diff.as_ref()?.rows;
        let file = rows.total().saturating_sub(rows.lossy);
        let counted = self.tables.iter().filter_map(differing_rows);
        let tables = counted.fold(0_u64, u64::saturating_add);
        let all_are_counted = self.tables.iter().all(|table| {
            table.level.is_none_or(|level| !level.reads_rows()) || differing_rows(table).is_some()
        });
        let fits = if all_are_counted { tables == file } else { tables <= file };
        (!fits).then_some(Contradiction::DiffRows { tables, file })
    }
}

/// Differing rows of a table, without the lossy ones, if all were looked at.
fn differing_rows(table: &TableReport) -> Option<u64> {
    let counts = [table.missing?, table.extra?, table.changed?, table.equivalent?];
    Some(counts.iter().fold(0_u64, |sum, count| sum.saturating_add(*count)))
}
