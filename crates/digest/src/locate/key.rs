//! How the key of a row becomes 128 bits, and how its values come back.
//!
//! **Invariant:** under one plan, equal keys have equal codes on both sides, whatever the integers' widths and whether they
//! came in binary or as text. A code of a plan of values stands for one key only.

use serde::{Deserialize, Serialize};
use tidemark_model::Wire;

use crate::leaf::parse;
use crate::program::{Fault, Op};
use crate::{DigestColumn, DigestKey, Error, Result};

/// The key of a row in 128 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyCode(pub(super) u128);

impl KeyCode {
    /// The 128 bits.
    pub const fn number(self) -> u128 {
        self.0
    }

    /// Of a key that is hashed, in a table of one leaf: by its cells in the canonical value form, in key order. For rows
    /// that no server has sent.
    pub fn of_cells(key: &DigestKey, cells: &[u8]) -> Self {
        Self::of_hash(0, key.hash(cells))
    }

    /// Of a row of a table without a key.
    #[inline]
    pub(crate) fn of_row(hash: u128) -> Self {
        Self(hash)
    }

    /// Of a key that is one number.
    #[inline]
    pub(crate) fn of_number(number: i64) -> Self {
        Self(u128::from(number as u64))
    }

    /// Of a key that is hashed.
    #[inline]
    pub(crate) fn of_hash(leaf: u32, hash: u128) -> Self {
        Self(u128::from(leaf) << 96 | hash >> 32)
    }
}

/// How the keys of a table become codes. Made once, from the source's columns, and used for both sides.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Plan", into = "Plan")]
pub struct KeyPlan(Plan);

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Plan {
    /// The values, in key order; 16 bytes at most.
    Values(Vec<KeyPart>),
    /// Leaf and hash of so many columns.
    Hashed(usize),
    /// No key.
    Row,
}

impl TryFrom<Plan> for KeyPlan {
    type Error = &'static str;

    fn try_from(plan: Plan) -> Result<Self, Self::Error> {
        let is_good = match &plan {
            Plan::Values(parts) => (1..=8).contains(&parts.len()) && bits(parts) <= 128,
            Plan::Hashed(columns) => *columns > 0,
            Plan::Row => true,
        };
        if is_good { Ok(Self(plan)) } else { Err("a key plan that no columns have") }
    }
}

impl From<KeyPlan> for Plan {
    fn from(KeyPlan(plan): KeyPlan) -> Self {
        plan
    }
}

/// A column whose values are in the code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum KeyPart {
    Int2,
    Int4,
    Int8,
    Uuid,
}

impl KeyPart {
    fn of(op: &Op) -> Option<Self> {
        match op {
            Op::Int2 => Some(Self::Int2),
            Op::Int4 => Some(Self::Int4),
            Op::Int8 => Some(Self::Int8),
            Op::Uuid => Some(Self::Uuid),
            _ => None,
        }
    }

    fn bits(self) -> u32 {
        match self {
            Self::Int2 => 16,
            Self::Int4 => 32,
            Self::Int8 => 64,
            Self::Uuid => 128,
        }
    }

    /// The bits of a field; `None` is a number that is too large for the plan.
    #[inline]
    fn read(self, field: &[u8], read: Read) -> Result<Option<u128>, Fault> {
        const UNREADABLE: Fault = "the key cannot be read";
        if self == Self::Uuid {
            let uuid = match read {
                Read::Binary => field.try_into().ok(),
                Read::Text => parse::uuid(field),
            };
            return uuid.map(u128::from_be_bytes).map(Some).ok_or(UNREADABLE);
        }
        let number = match read {
            Read::Binary => match *field {
                [a, b] => i16::from_be_bytes([a, b]).into(),
                [a, b, c, d] => i32::from_be_bytes([a, b, c, d]).into(),
                _ => i64::from_be_bytes(field.try_into().map_err(|_| UNREADABLE)?),
            },
            Read::Text => std::str::from_utf8(field)
                .ok()
                .and_then(|text| text.parse::<i64>().ok())
                .ok_or(UNREADABLE)?,
        };
        let unused = 64 - self.bits();
        let is_within = (number << unused) >> unused == number;
        Ok(is_within.then_some(u128::from((number as u64) << unused >> unused)))
    }

    fn value(self, bits: u128) -> KeyValue {
        let unused = 128 - self.bits();
        match self {
            Self::Uuid => KeyValue::Uuid(bits.to_be_bytes()),
            _ => KeyValue::Int(((bits << unused).cast_signed() >> unused) as i64),
        }
    }
}

/// How a field is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Read {
    Binary,
    Text,
}

fn bits(parts: &[KeyPart]) -> u32 {
    parts.iter().map(|part| part.bits()).sum()
}

impl KeyPlan {
    /// The plan for these columns, `key` being the numbers of the key columns in the SELECT list, in key order; none of them
    /// means that there is no key.
    ///
    /// # Errors
    /// A key column is none of the columns.
    pub fn of(columns: &[DigestColumn<'_>], key: &[usize]) -> Result<Self> {
        let mut parts = Vec::with_capacity(key.len());
        for index in key {
            let of = columns.get(*index).ok_or(Error::Columns { columns: columns.len() })?;
            parts.push(KeyPart::of(&Op::of(&of.column.data_type, Wire::Own)));
        }
        Ok(Self(match parts.into_iter().collect::<Option<Vec<KeyPart>>>() {
            Some(parts) if parts.is_empty() => Plan::Row,
            // A single number may be wider on the other side.
            Some(parts) if parts.len() == 1 && parts[0] != KeyPart::Uuid => {
                Plan::Values(vec![KeyPart::Int8])
            }
            Some(parts) if bits(&parts) <= 128 => Plan::Values(parts),
            _ => Plan::Hashed(key.len()),
        }))
    }

    /// The plan that hashes a key of so many columns, whatever their types; none of them means that there is no key.
    pub fn hashed(columns: usize) -> Self {
        Self(if columns == 0 { Plan::Row } else { Plan::Hashed(columns) })
    }

    /// Whether the key's values come back, so that nothing has to be read to know them.
    pub fn is_verbatim(&self) -> bool {
        matches!(self.0, Plan::Values(_))
    }

    /// The values of the key that these 128 bits stand for, where the plan keeps them.
    pub fn values(&self, code: u128) -> Option<Vec<KeyValue>> {
        match self.located(KeyCode(code)) {
            LocatedKey::Values(values) => Some(values),
            _ => None,
        }
    }

    pub(crate) fn column_count(&self) -> usize {
        match &self.0 {
            Plan::Values(parts) => parts.len(),
            Plan::Hashed(columns) => *columns,
            Plan::Row => 0,
        }
    }

    pub(crate) fn parts(&self) -> &[KeyPart] {
        match &self.0 {
            Plan::Values(parts) => parts,
            _ => &[],
        }
    }

    /// What a code stands for.
    pub fn located(&self, KeyCode(code): KeyCode) -> LocatedKey {
        match &self.0 {
            Plan::Row => LocatedKey::Row(code),
            Plan::Hashed(_) => {
                LocatedKey::Hashed { leaf: (code >> 96) as u32, code: KeyCode(code) }
            }
            Plan::Values(parts) => {
                let mut shift = bits(parts);
                let values = parts.iter().map(|part| {
                    shift -= part.bits();
                    let mask = u128::MAX >> (128 - part.bits());
                    part.value(code >> shift & mask)
                });
                LocatedKey::Values(values.collect())
            }
        }
    }
}

/// Joins the parts of a key of values.
#[derive(Debug, Default)]
pub(crate) struct Join(u128);

impl Join {
    /// Appends a field. `false`: the key has no code.
    #[inline]
    pub(crate) fn push(
        &mut self,
        part: KeyPart,
        field: Option<&[u8]>,
        read: Read,
    ) -> Result<bool, Fault> {
        let bits = match field {
            Some(field) => part.read(field, read)?,
            None => None,
        };
        let Some(bits) = bits else { return Ok(false) };
        self.0 = if part == KeyPart::Uuid { bits } else { self.0 << part.bits() | bits };
        Ok(true)
    }

    #[inline]
    pub(crate) fn code(self) -> KeyCode {
        KeyCode(self.0)
    }
}

/// A key in which two sides differ.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum LocatedKey {
    /// The values of the key columns, in key order.
    Values(Vec<KeyValue>),
    /// A row of this leaf whose key has this code: read the leaf again to know it.
    Hashed {
        /// The leaf.
        leaf: u32,
        /// What [`RowHasher::name_rows`](crate::RowHasher::name_rows) says of the row.
        code: KeyCode,
    },
    /// A row of a table without a key, by its 128-bit hash.
    Row(u128),
}

/// A value of a key column.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum KeyValue {
    /// int2, int4, int8
    Int(i64),
    /// uuid
    Uuid([u8; 16]),
}
