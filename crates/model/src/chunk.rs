//! The unit of snapshot work and what comes of it.
//!
//! **Invariant:** a [`ChunkSpec`] is self-contained and serialisable: it names connections, it never carries a URL, a
//! secret or a row, so that another process can run it. A [`ChunkResult`] carries counts and sums, never rows.

use std::ops::AddAssign;

use serde::{Deserialize, Serialize};

use crate::{Oid, RelationName, TupleForm};

/// Number of a chunk within its relation, from 0.
pub type ChunkId = u32;

/// Which rows of the relation a chunk holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ChunkRange {
    /// All of them.
    Whole,
    /// Heap blocks `from..to`; `None` is open-ended, because the table may have grown.
    Blocks {
        /// First block.
        from: u32,
        /// First block after, or open.
        to: Option<u32>,
    },
    /// Keys `from <= column < to` of any of some ranges that do not meet, as SQL literals of the column's type compared by the
    /// server only (leaves; 13, which has no TID range scan). NULLs cannot be here because the column is NOT NULL.
    Keys {
        /// Unquoted column name.
        column: String,
        /// The column's type as `format_type` prints it.
        type_name: String,
        /// Lower bound and, exclusive, upper bound of each, as text that is cast to the column's type; `None` is open.
        ranges: Vec<(Option<String>, Option<String>)>,
    },
}

/// How a column is selected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Wire {
    /// As it is: its own binary or text form.
    Own,
    /// Cast to text by the server: its text output, also inside COPY BINARY.
    CastToText,
}

/// One entry of the SELECT list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SelectColumn {
    /// Unquoted column name.
    pub name: String,
    /// How it is selected.
    pub wire: Wire,
}

/// One piece of one table, to be read under one snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChunkSpec {
    /// The job.
    pub job: String,
    /// Which run of the job; markers and file names carry it.
    pub run: String,
    /// The exported snapshot to import.
    pub snapshot_id: String,
    /// OID of the relation on the source.
    pub relation_oid: Oid,
    /// Its name.
    pub relation: RelationName,
    /// Number within the relation.
    pub chunk: ChunkId,
    /// Which rows.
    pub range: ChunkRange,
    /// The user's row filter, an SQL expression, if there is one.
    pub filter: Option<String>,
    /// The SELECT list, in order.
    pub columns: Vec<SelectColumn>,
    /// How COPY writes the rows.
    pub form: TupleForm,
    /// Bytes of heap and TOAST that it is expected to read.
    pub estimated_bytes: u64,
}

/// Count and keyed sums of a multiset of rows; order-free and mergeable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct RowSum {
    /// Rows.
    pub count: u64,
    /// Wrapping sum of the 128-bit hashes of the rows' exact (raw) forms.
    #[serde(with = "hex128")]
    pub raw: u128,
    /// The same over value forms; equals `raw` where only one form was asked for.
    #[serde(with = "hex128")]
    pub value: u128,
}

impl AddAssign for RowSum {
    fn add_assign(&mut self, other: Self) {
        self.count += other.count;
        self.raw = self.raw.wrapping_add(other.raw);
        self.value = self.value.wrapping_add(other.value);
    }
}

/// The sum of one leaf.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeafSum {
    /// Number of the leaf within its table.
    pub leaf: u32,
    /// Its rows.
    pub sum: RowSum,
}

/// What came of a chunk once both sides said that they are done with it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChunkResult {
    /// OID of the relation on the source.
    pub relation_oid: Oid,
    /// Number within the relation.
    pub chunk: ChunkId,
    /// Rows that the source's CommandComplete named.
    pub rows_out: u64,
    /// Rows that the sink says it holds.
    pub rows_in: u64,
    /// Bytes of rows, as COPY wrote them.
    pub bytes: u64,
    /// All rows of the chunk.
    pub sum: RowSum,
    /// The same by leaf; only leaves with rows.
    pub leaves: Vec<LeafSum>,
    /// Values that had no lake form and were replaced, by column name.
    pub replaced: Vec<(String, u64)>,
    /// From the first byte asked for to the sink's commit.
    pub duration_ms: u64,
}

mod hex128 {
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(value: &u128, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{value:032x}"))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<u128, D::Error> {
        let text = String::deserialize(deserializer)?;
        u128::from_str_radix(&text, 16).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_are_order_free_and_keep_duplicates() {
        let row = |hash| RowSum { count: 1, raw: hash, value: hash };
        let mut pair = RowSum::default();
        pair += row(u128::MAX);
        pair += row(u128::MAX);
        assert_eq!(pair, RowSum { count: 2, raw: u128::MAX - 1, value: u128::MAX - 1 });
    }
}
