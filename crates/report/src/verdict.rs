//! Verdicts, and the exit code that follows from them.
//!
//! **Invariant:** everything here is a pure function. `identical` is the verdict only where nothing says otherwise, and of
//! nothing at all it is never said: no tables is `incomplete`. The worst counts: a difference that was found stays one,
//! whatever else could not be read; what could not be proven comes before what is merely written in another way.
//!
//! The verdict answers "do both sides hold the same data?", the exit code "was what I asked for done, and did it hold?".
//! They part in one place: `--level schema` and `--level count` compare no rows, so their verdict is at best `incomplete`,
//! but where all that was asked for was compared and agrees, the exit code is 0.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What is known of two sides.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Every row was read on both sides, and all are the same, value and representation.
    Identical,
    /// Equal as SQL sees it, or by a declared mapping, but not the same bytes.
    Equivalent,
    /// No difference was found in what was compared, but not everything was.
    Incomplete,
    /// At least one difference was found.
    Different,
}

impl Verdict {
    /// All of them, the best first.
    pub const ALL: [Self; 4] =
        [Self::Identical, Self::Equivalent, Self::Incomplete, Self::Different];

    /// The verdict over several parts: the worst of them. Of no part at all nothing is known.
    pub fn of_all(parts: impl IntoIterator<Item = Self>) -> Self {
        parts.into_iter().max().unwrap_or(Self::Incomplete)
    }

    /// The word as it is in `report.json`.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Identical => "identical",
            Self::Equivalent => "equivalent",
            Self::Incomplete => "incomplete",
            Self::Different => "different",
        }
    }
}

/// How much of what a verdict says was read for it.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Proof {
    /// Every leaf of both sides was read in this run.
    Full,
    /// Leaves that the stream has not touched since they were last read were not read again. This assumes that nothing but
    /// the stream has written to the target.
    Incremental,
}

impl Proof {
    /// The proof of several parts: as weak as the weakest. None where there is no part.
    pub fn of_all(parts: impl IntoIterator<Item = Self>) -> Option<Self> {
        parts.into_iter().max()
    }

    /// The word as it is in `report.json`.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Incremental => "incremental",
        }
    }
}

/// What is compared; each level contains those before it.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// Definitions.
    Schema,
    /// Numbers of rows.
    Count,
    /// Digests over every row.
    Digest,
    /// Every differing row, column by column.
    Rows,
}

impl Level {
    /// The word as it is in `report.json` and on the command line.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Schema => "schema",
            Self::Count => "count",
            Self::Digest => "digest",
            Self::Rows => "rows",
        }
    }

    /// Whether every row is read at this level, which is what `identical` needs.
    pub const fn reads_rows(self) -> bool {
        matches!(self, Self::Digest | Self::Rows)
    }
}

/// Why something counts as not proven.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Shortfall {
    /// All that was asked for was compared, but the level that was asked for reads no rows.
    LevelReadsNoRows,
    /// Something that was asked for was skipped, could not be read, or was read in part.
    NotProven,
}

/// A deviation that a policy may allow.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Allowance {
    /// Equal values in another representation.
    Equivalent,
    /// Values that a declared mapping cannot carry in full.
    Lossy,
}

/// Which deviations a run has found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Deviations {
    /// Equal values in another representation were found.
    pub equivalent: bool,
    /// Values that a declared mapping cannot carry in full were found.
    pub lossy: bool,
}

impl Deviations {
    /// Whether the policy allows all that was found.
    pub fn are_allowed(self, allow: &[Allowance]) -> bool {
        (!self.equivalent || allow.contains(&Allowance::Equivalent))
            && (!self.lossy || allow.contains(&Allowance::Lossy))
    }
}

/// How a verify ends, as far as the comparison decides it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// What was asked for was done and holds.
    Agreed,
    /// A difference was found.
    Different,
    /// Something could not be proven.
    Incomplete,
    /// Only deviations were found, and the policy does not allow all of them.
    NotAllowed,
}

impl Outcome {
    /// The outcome of a verdict. `shortfall` is the worst of those that the run has, if it has any.
    pub fn of(
        verdict: Verdict,
        shortfall: Option<Shortfall>,
        deviations: Deviations,
        allow: &[Allowance],
    ) -> Self {
        match (verdict, shortfall) {
            (Verdict::Different, _) => Self::Different,
            (_, Some(Shortfall::NotProven)) => Self::Incomplete,
            (Verdict::Incomplete, None) => Self::Incomplete,
            (_, _) if deviations.are_allowed(allow) => Self::Agreed,
            (_, _) => Self::NotAllowed,
        }
    }

    /// The process's exit code for it (`docs/reference/exit-codes.md`).
    pub const fn exit_code(self) -> u8 {
        match self {
            Self::Agreed => 0,
            Self::Different => 1,
            Self::Incomplete => 3,
            Self::NotAllowed => 4,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Verdict::{Different, Equivalent, Identical, Incomplete};
    use super::*;

    /// Every set of verdicts that tables may have, with how many they are.
    fn every_set() -> impl Iterator<Item = Vec<Verdict>> {
        (0_u8..16).map(|bits| {
            let chosen = Verdict::ALL.iter().enumerate().filter(move |(i, _)| bits >> i & 1 == 1);
            chosen.map(|(_, verdict)| *verdict).collect()
        })
    }

    #[test]
    fn a_run_is_identical_only_if_it_has_tables_and_all_of_them_are() {
        for set in every_set() {
            assert_eq!(Verdict::of_all(set.clone()) == Identical, set == [Identical], "{set:?}");
        }
    }

    #[test]
    fn the_worst_table_decides_whatever_their_order_and_number() {
        for set in every_set() {
            let expected = match &set {
                set if set.contains(&Different) => Different,
                set if set.contains(&Incomplete) || set.is_empty() => Incomplete,
                set if set.contains(&Equivalent) => Equivalent,
                _ => Identical,
            };
            let twice = set.iter().chain(&set).copied();
            assert_eq!(Verdict::of_all(set.iter().copied()), expected, "{set:?}");
            assert_eq!(Verdict::of_all(twice), expected, "{set:?} twice");
            assert_eq!(Verdict::of_all(set.iter().rev().copied()), expected, "{set:?} reversed");
        }
    }

    #[test]
    fn one_table_proven_in_part_from_earlier_reads_makes_the_proof_incremental() {
        use Proof::{Full, Incremental};
        assert_eq!(Proof::of_all([]), None);
        assert_eq!(Proof::of_all([Full, Full]), Some(Full));
        assert_eq!(Proof::of_all([Full, Incremental, Full]), Some(Incremental));
    }

    /// Every combination that [`Outcome::of`] may meet, against design.md 8 word by word.
    #[test]
    fn exit_codes_are_1_before_3_before_4_before_0() {
        let allowances = [
            &[][..],
            &[Allowance::Equivalent],
            &[Allowance::Lossy],
            &[Allowance::Lossy, Allowance::Equivalent],
        ];
        let shortfalls = [None, Some(Shortfall::LevelReadsNoRows), Some(Shortfall::NotProven)];
        for verdict in Verdict::ALL {
            for shortfall in shortfalls {
                for allow in allowances {
                    for (equivalent, lossy) in
                        [(false, false), (false, true), (true, false), (true, true)]
                    {
                        let forbidden = equivalent && !allow.contains(&Allowance::Equivalent)
                            || lossy && !allow.contains(&Allowance::Lossy);
                        let unproven = shortfall == Some(Shortfall::NotProven)
                            || verdict == Incomplete && shortfall.is_none();
                        let expected = match verdict {
                            Different => 1,
                            _ if unproven => 3,
                            _ if forbidden => 4,
                            _ => 0,
                        };
                        let deviations = Deviations { equivalent, lossy };
                        let outcome = Outcome::of(verdict, shortfall, deviations, allow);
                        assert_eq!(
                            outcome.exit_code(),
                            expected,
                            "{verdict:?} {shortfall:?} {deviations:?} {allow:?}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn words_are_those_of_the_files() {
        for verdict in Verdict::ALL {
            assert_eq!(serde_json::to_value(verdict).unwrap(), verdict.word());
        }
        for level in [Level::Schema, Level::Count, Level::Digest, Level::Rows] {
            assert_eq!(serde_json::to_value(level).unwrap(), level.word());
        }
        for proof in [Proof::Full, Proof::Incremental] {
            assert_eq!(serde_json::to_value(proof).unwrap(), proof.word());
        }
    }

    #[test]
    fn levels_ascend_and_only_the_last_two_read_rows() {
        let levels = [Level::Schema, Level::Count, Level::Digest, Level::Rows];
        assert!(levels.is_sorted());
        assert_eq!(levels.map(Level::reads_rows), [false, false, true, true]);
    }
}
