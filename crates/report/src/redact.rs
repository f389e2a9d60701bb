//! What may be shown of a row.
//!
//! **Invariant:** [`Shown`] and [`ShownKey`] are the only forms in which a value of a row leaves this crate, and only
//! [`Redactor`] makes them. With [`Redaction::Values`] no value outside the key can be read from them (none at all of a
//! table without a key), with
//! [`Redaction::Keys`] none at all, nor whether it is NULL; equal values of one column have equal hashes, so that rows
//! can still be told apart and swapped values seen.
//!
//! A hash is the first 64 bits of SHA-256 over a secret key, the column's full name and the value, each with its length.
//! Without the key nobody can try values; the key is the caller's, and a new one for each report makes reports unlinkable.

use std::collections::BTreeMap;
use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use tidemark_model::RelationName;

/// How much of the rows is hidden.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Default,
    Serialize,
    Deserialize,
    JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Redaction {
    /// Nothing.
    None,
    /// Values outside the key.
    #[default]
    Values,
    /// Values and keys.
    Keys,
}

impl Redaction {
    /// The word as it is in `report.json` and on the command line.
    pub const fn word(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Values => "values",
            Self::Keys => "keys",
        }
    }
}

/// A value of a row, in the form in which it is shown. `Debug` tells its kind only.
#[derive(Clone, PartialEq, Eq)]
pub enum FieldValue {
    /// NULL, shown as `null`.
    Null,
    /// A boolean, shown as one.
    Bool(bool),
    /// An int2 or int4, shown as a number.
    Int4(i32),
    /// An int8, shown as a string: readers of JSON may keep 53 bits only.
    Int8(i64),
    /// bytea, shown as PostgreSQL shows it: `\x` and hexadecimal digits.
    Bytes(Vec<u8>),
    /// Anything else, as the server writes it as text.
    Text(String),
}

impl fmt::Debug for FieldValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Null => "Null",
            Self::Bool(_) => "Bool(..)",
            Self::Int4(_) => "Int4(..)",
            Self::Int8(_) => "Int8(..)",
            Self::Bytes(_) => "Bytes(..)",
            Self::Text(_) => "Text(..)",
        })
    }
}

impl FieldValue {
    fn to_json(&self) -> Value {
        match self {
            Self::Null => Value::Null,
            Self::Bool(value) => (*value).into(),
            Self::Int4(value) => (*value).into(),
            Self::Int8(value) => value.to_string().into(),
            Self::Bytes(bytes) => format!("\\x{}", hex(bytes)).into(),
            Self::Text(text) => text.as_str().into(),
        }
    }
}

/// What a row is known by: columns with their values.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Key {
    /// The columns of a key, in its order.
    Columns(Vec<(String, FieldValue)>),
    /// All columns, of a table without a key: hidden as values are, because they are the values.
    WholeRow(Vec<(String, FieldValue)>),
}

/// A value of a row as the redaction in force lets it be seen: `null`, `true`, a number, a string, or `{"hash": "..."}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct Shown(Value);

impl Shown {
    /// The value as JSON.
    pub fn as_json(&self) -> &Value {
        &self.0
    }

    /// The value for people: a string without quotes, a hash as `#` and its digits.
    pub fn as_text(&self) -> String {
        match (&self.0, self.0.get("hash")) {
            (Value::String(text), _) => text.clone(),
            (_, Some(Value::String(hash))) => format!("#{hash}"),
            (other, _) => other.to_string(),
        }
    }

    /// Whether it is a hash instead of the value.
    pub fn is_redacted(&self) -> bool {
        self.0.is_object()
    }
}

/// The key of a row as the redaction in force lets it be seen: columns with their values.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct ShownKey(BTreeMap<String, Shown>);

impl ShownKey {
    /// Columns and what is shown of them, by column name.
    pub fn columns(&self) -> impl Iterator<Item = (&str, &Shown)> {
        self.0.iter().map(|(column, shown)| (column.as_str(), shown))
    }
}

/// Shows values as one level of redaction allows.
pub struct Redactor {
    level: Redaction,
    key: [u8; 32],
}

impl Redactor {
    /// A redactor whose hashes need `key` to be tried out: draw it at random for each report, and keep it nowhere unless
    /// hashes of two reports are to be compared.
    pub fn new(level: Redaction, key: [u8; 32]) -> Self {
        Self { level, key }
    }

    /// The level in force.
    pub fn level(&self) -> Redaction {
        self.level
    }

    /// What is shown of a key.
    pub fn key(&self, table: &RelationName, key: &Key) -> ShownKey {
        let (columns, hidden_from) = match key {
            Key::Columns(columns) => (columns, Redaction::Keys),
            Key::WholeRow(columns) => (columns, Redaction::Values),
        };
        let hide = self.level >= hidden_from;
        let shown = |(column, value): &(String, FieldValue)| {
            (column.clone(), self.shown(hide, table, column, value))
        };
        ShownKey(columns.iter().map(shown).collect())
    }

    /// What is shown of a value outside the key.
    pub fn value(&self, table: &RelationName, column: &str, value: &FieldValue) -> Shown {
        self.shown(self.level >= Redaction::Values, table, column, value)
    }

    fn shown(&self, hide: bool, table: &RelationName, column: &str, value: &FieldValue) -> Shown {
        if !hide {
            return Shown(value.to_json());
        }
        let mut hash = Sha256::new().chain_update(b"tidemark redaction 1").chain_update(self.key);
        let text = value.to_json().to_string();
        for part in [table.schema.as_str(), table.name.as_str(), column, text.as_str()] {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        Shown(serde_json::json!({ "hash": hex(&hash.finalize()[..8]) }))
    }
}

/// Lower-case hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        for nibble in [byte >> 4, byte & 15] {
            text.extend(char::from_digit(u32::from(nibble), 16));
        }
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> RelationName {
        RelationName::new("public", "orders")
    }

    fn every_value() -> Vec<FieldValue> {
        vec![
            FieldValue::Null,
            FieldValue::Bool(true),
            FieldValue::Int4(-7),
            FieldValue::Int8(9_007_199_254_740_993),
            FieldValue::Bytes(vec![0, 1, 0xab, 0xff]),
            FieldValue::Text("a \"quoted\" text".to_owned()),
        ]
    }

    #[test]
    fn int8_are_strings_bytea_is_hexadecimal_and_small_integers_are_numbers() {
        let redactor = Redactor::new(Redaction::None, [1; 32]);
        let shown = every_value()
            .iter()
            .map(|value| redactor.value(&table(), "c", value).as_json().to_string())
            .collect::<Vec<_>>();
        assert_eq!(
            shown,
            [
                "null",
                "true",
                "-7",
                r#""9007199254740993""#,
                r#""\\x0001abff""#,
                r#""a \"quoted\" text""#
            ]
        );
    }

    #[test]
    fn each_level_hides_what_it_says_and_nothing_else() {
        for (level, hides_key, hides_value) in [
            (Redaction::None, false, false),
            (Redaction::Values, false, true),
            (Redaction::Keys, true, true),
        ] {
            let redactor = Redactor::new(level, [1; 32]);
            for value in every_value() {
                let columns = vec![("id".to_owned(), value.clone())];
                let key = redactor.key(&table(), &Key::Columns(columns.clone()));
                assert!(key.columns().all(|(_, shown)| shown.is_redacted() == hides_key));
                let row = redactor.key(&table(), &Key::WholeRow(columns));
                assert!(row.columns().all(|(_, shown)| shown.is_redacted() == hides_value));
                let shown = redactor.value(&table(), "c", &value);
                assert_eq!(shown.is_redacted(), hides_value, "{level:?} {value:?}");
            }
        }
    }

    #[test]
    fn what_is_printed_for_developers_holds_no_value() {
        let printed = format!("{:?}", every_value());
        assert_eq!(printed, "[Null, Bool(..), Int4(..), Int8(..), Bytes(..), Text(..)]");
    }

    #[test]
    fn what_nobody_asked_to_show_is_hidden() {
        assert_eq!(Redaction::default(), Redaction::Values);
    }

    #[test]
    fn a_hash_depends_on_key_table_column_and_value_alone() {
        let redactor = Redactor::new(Redaction::Keys, [1; 32]);
        let value = |text: &str| FieldValue::Text(text.to_owned());
        let same = redactor.value(&table(), "c", &value("x"));
        assert_eq!(same, redactor.value(&table(), "c", &value("x")));
        let others = [
            redactor.value(&table(), "c", &value("y")),
            redactor.value(&table(), "d", &value("x")),
            redactor.value(&RelationName::new("public", "order"), "c", &value("x")),
            Redactor::new(Redaction::Keys, [2; 32]).value(&table(), "c", &value("x")),
            redactor.value(&table(), "c", &FieldValue::Null),
            // The same letters, cut in another place.
            redactor.value(&RelationName::new("public", "ordersc"), "", &value("x")),
        ];
        for other in others {
            assert_ne!(same, other);
        }
    }
}
