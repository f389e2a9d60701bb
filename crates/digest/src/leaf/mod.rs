//! Which leaf of its table a row belongs to.
//!
//! **Invariant:** leaf `i` holds the keys from bound `i-1` (inclusive) to bound `i` (exclusive); the first and the last are
//! open. Every row is in exactly one leaf: a row whose key is NULL is in leaf 0. Only key types are cut whose order is the
//! same everywhere and is known here: a text key needs a collation that compares bytes.
//!
//! The bounds come from `pg_stats.histogram_bounds`, so they need no scan. PostgreSQL manual, section 54.27 (`pg_stats`).

pub(crate) mod parse;

use serde::{Deserialize, Serialize};
use tidemark_model::{Column, DataType, TupleForm, TypeKind};

use crate::program::Fault;

/// How keys are read and compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum KeyKind {
    Int2,
    Int4,
    Int8,
    Date,
    Timestamp,
    TimestampTz,
    Uuid,
    Text,
}

impl KeyKind {
    fn of(column: &Column) -> Option<Self> {
        let data_type = base_of(&column.data_type);
        if data_type.schema != "pg_catalog" || !matches!(data_type.kind, TypeKind::Base) {
            return None;
        }
        match data_type.name.as_str() {
            "int2" => Some(Self::Int2),
            "int4" => Some(Self::Int4),
            "int8" => Some(Self::Int8),
            "date" => Some(Self::Date),
            "timestamp" => Some(Self::Timestamp),
            "timestamptz" => Some(Self::TimestampTz),
            "uuid" => Some(Self::Uuid),
            "text" | "varchar" if compares_bytes(column.collation.as_deref()) => Some(Self::Text),
            _ => None,
        }
    }
}

fn base_of(data_type: &DataType) -> &DataType {
    match &data_type.kind {
        TypeKind::Domain { base, .. } => base,
        _ => data_type,
    }
}

/// The collations that compare the bytes of a string, in every database encoding.
fn compares_bytes(collation: Option<&str>) -> bool {
    let name = collation.unwrap_or_default().replace('"', "");
    matches!(name.as_str(), "pg_catalog.C" | "pg_catalog.POSIX" | "pg_catalog.ucs_basic")
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Bounds {
    #[default]
    None,
    Number(Vec<i64>),
    Uuid(Vec<[u8; 16]>),
    Text(Vec<String>),
}

/// How a table is cut into leaves, as the server writes it. The ledger keeps it, so that sums that were taken at different
/// times are of the same leaves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeafCut {
    /// The key column.
    pub column: String,
    /// The bounds as text, ascending.
    pub bounds: Vec<String>,
}

impl LeafCut {
    /// What tells it from other cuts.
    pub fn id(&self) -> String {
        let text = serde_json::to_vec(self).expect("a cut is plain data");
        format!("{:032x}", xxhash_rust::xxh3::xxh3_128(&text))
    }

    /// The leaves among these columns; one where the column is not among them, or its bounds cannot be used.
    pub fn among(&self, columns: &[Column]) -> LeafBounds {
        let index = columns.iter().position(|column| column.name == self.column);
        index.map_or_else(LeafBounds::single, |index| {
            LeafBounds::from_text_bounds(&columns[index], index, &self.bounds)
        })
    }
}

/// What rows have to have in common so that sums which were taken at different times compare: the table's `file` and columns
/// as the server describes them, and these columns' types with all that they are made of (an enum's label can be renamed
/// without a trace in the rows).
pub fn shape_of(file: &str, columns: &[Column]) -> String {
    let columns: Vec<_> =
        columns.iter().map(|column| (&column.name, &column.data_type, column.typmod)).collect();
    let types = serde_json::to_vec(&columns).expect("types are plain data");
    format!("{file} {:032x}", xxhash_rust::xxh3::xxh3_128(&types))
}

/// The leaves of a table: a key column and ascending bounds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeafBounds {
    key: Option<(usize, KeyKind)>,
    bounds: Bounds,
}

impl LeafBounds {
    /// One leaf: the whole table.
    pub fn single() -> Self {
        Self::default()
    }

    /// Leaves between the elements of `pg_stats.histogram_bounds`, each as text (ISO date style), for a key that is the
    /// column number `index_in_select` of the SELECT list. A type whose order is not known here, a bound that cannot be
    /// read or bounds that do not ascend give [`LeafBounds::single`].
    pub fn from_text_bounds(
        key_column: &Column,
        index_in_select: usize,
        bounds: &[String],
    ) -> Self {
        let Some(kind) = KeyKind::of(key_column) else { return Self::single() };
        let parsed = match kind {
            KeyKind::Uuid => {
                ascending(bounds, |text| parse::uuid(text.as_bytes())).map(Bounds::Uuid)
            }
            KeyKind::Text => ascending(bounds, |text| Some(text.to_owned())).map(Bounds::Text),
            _ => ascending(bounds, |text| number_of_text(kind, text)).map(Bounds::Number),
        };
        match parsed {
            Some(bounds) => Self { key: Some((index_in_select, kind)), bounds },
            None => Self::single(),
        }
    }

    /// Number of leaves, at least 1.
    pub fn leaf_count(&self) -> usize {
        1 + match &self.bounds {
            Bounds::None => 0,
            Bounds::Number(bounds) => bounds.len(),
            Bounds::Uuid(bounds) => bounds.len(),
            Bounds::Text(bounds) => bounds.len(),
        }
    }

    /// The key column's number in the SELECT list, if there is more than one leaf.
    pub fn key_index(&self) -> Option<usize> {
        self.key.map(|(index, _)| index)
    }

    /// The leaf of a row with this key, `near` being a good guess; none where the key cannot be read.
    pub fn leaf_of(&self, form: TupleForm, key: &[u8], near: usize) -> Option<usize> {
        match form {
            TupleForm::PgBinary => self.leaf_of_binary(key, near).ok(),
            TupleForm::PgText => self.leaf_of_text(key, near).ok(),
        }
    }

    /// The leaf of a binary field, `near` being a good guess.
    #[inline]
    pub(crate) fn leaf_of_binary(&self, field: &[u8], near: usize) -> Result<usize, Fault> {
        const LENGTH: Fault = "the length does not fit the type of the leaf key";
        let Some((_, kind)) = self.key else { return Ok(0) };
        match &self.bounds {
            Bounds::None => Ok(0),
            Bounds::Number(bounds) => {
                let number = match (kind, field.len()) {
                    (KeyKind::Int2, 2) => i16::from_be_bytes([field[0], field[1]]).into(),
                    (KeyKind::Int4 | KeyKind::Date, 4) => {
                        i32::from_be_bytes(field.try_into().map_err(|_| LENGTH)?).into()
                    }
                    (KeyKind::Int8 | KeyKind::Timestamp | KeyKind::TimestampTz, 8) => {
                        i64::from_be_bytes(field.try_into().map_err(|_| LENGTH)?)
                    }
                    _ => return Err(LENGTH),
                };
                Ok(leaf_among(bounds, near, |bound| *bound <= number))
            }
            Bounds::Uuid(bounds) if field.len() == 16 => {
                Ok(leaf_among(bounds, near, |bound| &bound[..] <= field))
            }
            Bounds::Uuid(_) => Err(LENGTH),
            Bounds::Text(bounds) => Ok(leaf_among(bounds, near, |bound| bound.as_bytes() <= field)),
        }
    }

    /// The leaf of a key in its text form.
    pub(crate) fn leaf_of_text(&self, text: &[u8], near: usize) -> Result<usize, Fault> {
        const UNREADABLE: Fault = "the leaf key cannot be read";
        let Some((_, kind)) = self.key else { return Ok(0) };
        if kind == KeyKind::Text {
            return self.leaf_of_binary(text, near);
        }
        let text = std::str::from_utf8(text).map_err(|_| UNREADABLE)?;
        match &self.bounds {
            Bounds::Number(bounds) => {
                let number = number_of_text(kind, text).ok_or(UNREADABLE)?;
                Ok(leaf_among(bounds, near, |bound| *bound <= number))
            }
            Bounds::Uuid(_) => {
                self.leaf_of_binary(&parse::uuid(text.as_bytes()).ok_or(UNREADABLE)?, near)
            }
            Bounds::None | Bounds::Text(_) => Ok(0),
        }
    }
}

/// The number of bounds at or below the key. Rows come clustered, so the leaf of the row before is tried first.
#[inline]
fn leaf_among<B>(bounds: &[B], near: usize, is_at_or_below_key: impl Fn(&B) -> bool) -> usize {
    let above_lower = near == 0 || bounds.get(near - 1).is_some_and(&is_at_or_below_key);
    if above_lower && !bounds.get(near).is_some_and(&is_at_or_below_key) {
        return near.min(bounds.len());
    }
    bounds.partition_point(is_at_or_below_key)
}

fn ascending<B: Ord>(texts: &[String], parse: impl Fn(&str) -> Option<B>) -> Option<Vec<B>> {
    let mut bounds = texts.iter().map(|text| parse(text)).collect::<Option<Vec<_>>>()?;
    if bounds.is_empty() || !bounds.is_sorted() {
        return None;
    }
    bounds.dedup();
    Some(bounds)
}

fn number_of_text(kind: KeyKind, text: &str) -> Option<i64> {
    match kind {
        KeyKind::Int2 => text.parse::<i16>().ok().map(i64::from),
        KeyKind::Int4 => text.parse::<i32>().ok().map(i64::from),
        KeyKind::Int8 => text.parse().ok(),
        KeyKind::Date => parse::date(text),
        KeyKind::Timestamp => parse::timestamp(text, false),
        KeyKind::TimestampTz => parse::timestamp(text, true),
        KeyKind::Uuid | KeyKind::Text => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guess_never_changes_the_leaf() {
        let bounds = [-5_i64, 0, 0, 7];
        for key in -8..=9 {
            let wanted = bounds.iter().filter(|bound| **bound <= key).count();
            for near in 0..=6 {
                assert_eq!(
                    leaf_among(&bounds, near, |bound| *bound <= key),
                    wanted,
                    "{key} {near}"
                );
            }
        }
    }
}
