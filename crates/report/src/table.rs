//! What was found of one table.
//!
//! **Invariant:** a table's verdict follows from its other fields ([`TableReport::judge`]). What is missing among them counts
//! as not proven, never as equal: no digest, no row count or no statement of the proof makes it `incomplete`.

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use tidemark_model::{Lsn, RowSum};

use crate::{Deviations, DiffKind, HeatMap, LeafState, Level, Proof, Shortfall, ShownKey, Verdict};

/// The keyed sums over all rows of one side; comparable under one key only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Digest {
    /// Over the rows' exact forms: 32 hexadecimal digits.
    #[serde(serialize_with = "to_hex", deserialize_with = "from_hex")]
    #[schemars(with = "String", regex(pattern = r"^[0-9a-f]{32}$"))]
    pub raw: u128,
    /// Over their values, whatever the representation: 32 hexadecimal digits.
    #[serde(serialize_with = "to_hex", deserialize_with = "from_hex")]
    #[schemars(with = "String", regex(pattern = r"^[0-9a-f]{32}$"))]
    pub value: u128,
}

impl From<RowSum> for Digest {
    fn from(sum: RowSum) -> Self {
        Self { raw: sum.raw, value: sum.value }
    }
}

fn to_hex<S: Serializer>(sum: &u128, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&format_args!("{sum:032x}"))
}

fn from_hex<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u128, D::Error> {
    let text = String::deserialize(deserializer)?;
    let digits = text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    let sum = digits.then(|| u128::from_str_radix(&text, 16).ok()).flatten();
    sum.ok_or_else(|| serde::de::Error::custom("a sum has 32 hexadecimal digits"))
}

/// A column in which rows differ.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ColumnFinding {
    /// The column.
    pub column: String,
    /// Rows in which its value is another one. 64-bit: may exceed 2^53.
    pub changed: u64,
    /// Rows in which its value is equal, in another representation.
    pub equivalent: u64,
    /// Rows in which its value could not be carried in full.
    pub lossy: u64,
    /// What would accept it, where the whole column deviates in one way, or null.
    pub hint: Option<String>,
}

/// When a table was last proven.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LastProven {
    /// At which position of the source, or null where there was none.
    #[schemars(with = "Option<String>")]
    pub lsn: Option<Lsn>,
    /// When (RFC 3339, UTC).
    pub at: String,
}

/// One table. Numbers that were not determined are null, never 0; all of them are 64-bit and may exceed 2^53.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TableReport {
    /// Its schema.
    pub schema: String,
    /// Its name.
    pub table: String,
    /// What is known of it.
    pub verdict: Verdict,
    /// What was read for it, or null where it is not proven.
    pub proof: Option<Proof>,
    /// The level that was reached, or null where nothing was compared.
    pub level: Option<Level>,
    /// Rows of the source.
    pub source_rows: Option<u64>,
    /// Rows of the target.
    pub target_rows: Option<u64>,
    /// Sums over the source.
    pub source_digest: Option<Digest>,
    /// Sums over the target, in the forms of the source.
    pub target_digest: Option<Digest>,
    /// Rows on the source only.
    pub missing: Option<u64>,
    /// Rows on the target only.
    pub extra: Option<u64>,
    /// Rows on both sides with other values.
    pub changed: Option<u64>,
    /// Rows on both sides with equal values in another representation.
    pub equivalent: Option<u64>,
    /// Rows on both sides with values that a declared mapping cannot carry in full.
    pub lossy: Option<u64>,
    /// Why the table was skipped or could not be proven, or null.
    pub skipped_reason: Option<String>,
    /// How long it took.
    pub duration_ms: u64,
    /// The position at which it was compared, or null where there was none.
    #[schemars(with = "Option<String>")]
    pub lsn: Option<Lsn>,
    /// With an incremental proof: the position at which the leaf was read whose reading is the oldest.
    #[schemars(with = "Option<String>")]
    pub oldest_leaf_lsn: Option<Lsn>,
    /// When it was last proven identical or equivalent, this run included, or null if never.
    pub last_proven: Option<LastProven>,
    /// Bytes of rows read from the source.
    pub source_bytes: Option<u64>,
    /// Bytes of rows read from the target.
    pub target_bytes: Option<u64>,
    /// The columns of the key that rows are matched by; none: rows are compared as a multiset.
    pub key_columns: Vec<String>,
    /// Leaves.
    pub leaves: u64,
    /// Leaves that differ.
    pub differing_leaves: u64,
    /// The leaves in key order, or null where none were read.
    pub heat_map: Option<HeatMap>,
    /// How often its rows were read on each side.
    pub readings: u32,
    /// Findings about its definition that make it different, among them that one side does not have it.
    pub differing_definitions: u64,
    /// Columns in which rows differ.
    pub columns: Vec<ColumnFinding>,
    /// Columns of types without a known canonical form, compared by the bytes that the type's own output function gives.
    pub opaque_columns: Vec<String>,
    /// The first differing key in key order, as the redaction shows it, or null.
    pub first_key: Option<ShownKey>,
    /// The last one.
    pub last_key: Option<ShownKey>,
}

impl TableReport {
    /// A table of which nothing is known yet; its verdict is `incomplete`.
    pub fn new(schema: impl Into<String>, table: impl Into<String>) -> Self {
        Self {
            schema: schema.into(),
            table: table.into(),
            verdict: Verdict::Incomplete,
            proof: None,
            level: None,
            source_rows: None,
            target_rows: None,
            source_digest: None,
            target_digest: None,
            missing: None,
            extra: None,
            changed: None,
            equivalent: None,
            lossy: None,
            skipped_reason: None,
            duration_ms: 0,
            lsn: None,
            oldest_leaf_lsn: None,
            last_proven: None,
            source_bytes: None,
            target_bytes: None,
            key_columns: Vec::new(),
            leaves: 0,
            differing_leaves: 0,
            heat_map: None,
            readings: 0,
            differing_definitions: 0,
            columns: Vec::new(),
            opaque_columns: Vec::new(),
            first_key: None,
            last_key: None,
        }
    }

    /// A table that was not compared.
    pub fn skipped(
        schema: impl Into<String>,
        table: impl Into<String>,
        reason: impl Into<String>,
    ) -> Self {
        Self { skipped_reason: Some(reason.into()), ..Self::new(schema, table) }
    }

    /// `schema.table` without quotes, as people read it.
    pub fn plain_name(&self) -> String {
        format!("{}.{}", self.schema, self.table)
    }

    /// The verdict that follows from the other fields.
    pub fn judge(&self) -> Verdict {
        if self.is_different() {
            Verdict::Different
        } else if self.shortfall(Level::Digest).is_some() {
            Verdict::Incomplete
        } else if self.deviates() {
            Verdict::Equivalent
        } else {
            Verdict::Identical
        }
    }

    /// What keeps this table from being called proven, if the run asked for `asked`. Where digests agree there is no row to
    /// look at, so that `rows` asks for no more than `digest`.
    pub fn shortfall(&self, asked: Level) -> Option<Shortfall> {
        let asked = asked.min(Level::Digest);
        let reached = self.level.filter(|level| *level >= asked);
        let complete = match reached {
            None => false,
            Some(Level::Schema) => true,
            Some(Level::Count) => self.counts().is_some(),
            Some(Level::Digest | Level::Rows) => self.is_read_in_full(),
        };
        if self.skipped_reason.is_some() || !complete {
            Some(Shortfall::NotProven)
        } else if asked.reads_rows() || reached.is_some_and(Level::reads_rows) {
            None
        } else {
            Some(Shortfall::LevelReadsNoRows)
        }
    }

    /// Which deviations it has. A digest that differs in its raw form alone is an equivalent one.
    pub fn deviations(&self) -> Deviations {
        let some = |count: Option<u64>| count.unwrap_or(0) > 0;
        let lossy = some(self.lossy);
        Deviations { lossy, equivalent: some(self.equivalent) || self.deviates() && !lossy }
    }

    /// How many rows differ in which way, of the ways that there are.
    pub fn differing_rows(&self) -> impl Iterator<Item = (DiffKind, u64)> {
        let kinds = [
            (DiffKind::Missing, self.missing),
            (DiffKind::Extra, self.extra),
            (DiffKind::Changed, self.changed),
            (DiffKind::Equivalent, self.equivalent),
            (DiffKind::Lossy, self.lossy),
        ];
        kinds.into_iter().filter_map(|(kind, rows)| Some((kind, rows.filter(|rows| *rows > 0)?)))
    }

    fn counts(&self) -> Option<(u64, u64)> {
        self.source_rows.zip(self.target_rows)
    }

    /// Rows, digests and the kind of proof are there, no leaf is left, and the leaves hold all the rows.
    fn is_read_in_full(&self) -> bool {
        let leaves_fit = self.heat_map.as_ref().is_none_or(|map| {
            let rows = map.rows.iter().try_fold(0_u64, |sum, rows| sum.checked_add(*rows));
            rows == self.source_rows
                && map.rows.len() == map.states.len()
                && !map.states.contains(&LeafState::Unproven)
        });
        self.counts().is_some()
            && self.source_digest.is_some()
            && self.target_digest.is_some()
            && self.proof.is_some()
            && leaves_fit
    }

    /// Whether a difference was found. Sums and leaves that differ in value are one, unless every row that makes them
    /// differ was looked at and is equal by SQL or by a declared mapping.
    fn is_different(&self) -> bool {
        let found = [self.missing, self.extra, self.changed];
        let classified = self.level == Some(Level::Rows)
            && found.iter().all(|count| *count == Some(0))
            && self.equivalent.unwrap_or(0).saturating_add(self.lossy.unwrap_or(0)) > 0;
        let sums_differ = match (self.source_digest, self.target_digest) {
            (Some(source), Some(target)) => source.value != target.value,
            _ => false,
        };
        let worst_leaf = self.heat_map.as_ref().and_then(HeatMap::worst);
        let leaves_differ = self.differing_leaves > 0 || worst_leaf == Some(LeafState::Different);
        self.differing_definitions > 0
            || found.iter().any(|count| count.unwrap_or(0) > 0)
            || self.counts().is_some_and(|(source, target)| source != target)
            || (sums_differ || leaves_differ) && !classified
    }

    fn deviates(&self) -> bool {
        let worst_leaf = self.heat_map.as_ref().and_then(HeatMap::worst);
        self.equivalent.unwrap_or(0) > 0
            || self.lossy.unwrap_or(0) > 0
            || self.source_digest != self.target_digest
            || worst_leaf >= Some(LeafState::Equivalent)
    }
}

#[cfg(test)]
mod tests;
