//! `report.json` as text, and its checksum.
//!
//! **Invariant:** [`check_json`] accepts what [`to_json`] wrote, byte for byte or formatted anew, and nothing whose content is
//! another one. A name that stands twice in an object is refused, because two readers would see two reports.
//!
//! The checksum is SHA-256 over the canonical text of the report without `checksum`: names sorted by their bytes, no spaces,
//! whole numbers only, the fewest escapes (the field's own description has it in full, with a way to recompute it without
//! this program). It shows damage and careless edits. It is no signature: who edits on purpose can make it anew.

use std::fmt;

use serde::Serialize;
use serde::de::{self, Deserialize, DeserializeOwned, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};
use sha2::{Digest as _, Sha256};

use crate::redact::hex;
use crate::{Error, MIGRATION_VERSION, MigrationReport, REPORT_VERSION, Result, VerifyReport};

const FIELD: &str = "checksum";

/// The text of `report.json`, with its checksum, for people to read, too.
///
/// # Errors
/// The report does not fit into JSON.
pub fn to_json(report: &VerifyReport) -> Result<String> {
    pretty(&VerifyReport { checksum: Some(checksum_of(report)?), ..report.clone() })
}

pub(crate) fn pretty(report: &impl Serialize) -> Result<String> {
    let mut text = serde_json::to_string_pretty(report).map_err(Error::Unwritable)?;
    text.push('\n');
    Ok(text)
}

/// The checksum of a report, whatever its field says.
///
/// # Errors
/// The report does not fit into JSON.
pub fn checksum_of(report: &VerifyReport) -> Result<String> {
    of(report)
}

pub(crate) fn of(report: &impl Serialize) -> Result<String> {
    let value = serde_json::to_value(report).map_err(Error::Unwritable)?;
    let Value::Object(fields) = value else { return Err(Error::NoChecksum) };
    checksum_of_fields(&fields)
}

/// Reads `report.json` and holds it against its checksum and against itself.
///
/// # Errors
/// It is no report, it was edited or damaged, a later version wrote it, or it contradicts itself; the error says which.
pub fn check_json(text: &str) -> Result<VerifyReport> {
    let report: VerifyReport = unsealed(text, REPORT_VERSION)?;
    let contradictions = report.contradictions();
    if contradictions.is_empty() { Ok(report) } else { Err(Error::Contradicts(contradictions)) }
}

/// Reads `migration.json` and holds it against its checksum.
///
/// # Errors
/// It is no report of a migration, it was edited or damaged, or a later version wrote it.
pub fn check_migration_json(text: &str) -> Result<MigrationReport> {
    unsealed(text, MIGRATION_VERSION)
}

fn unsealed<T: DeserializeOwned>(text: &str, supported: u32) -> Result<T> {
    let Strict(value) = serde_json::from_str(text).map_err(distinguished)?;
    let Value::Object(fields) = &value else {
        return Err(Error::Malformed(de::Error::custom("it is no object")));
    };
    let stated = fields.get(FIELD).and_then(Value::as_str).ok_or(Error::NoChecksum)?.to_owned();
    let computed = checksum_of_fields(fields)?;
    if stated != computed {
        return Err(Error::Edited { stated, computed });
    }
    let found = fields.get("report_version").and_then(Value::as_u64).unwrap_or(0);
    if found > u64::from(supported) {
        let found = u32::try_from(found).unwrap_or(u32::MAX);
        return Err(Error::LaterVersion { found, supported });
    }
    serde_json::from_value(value).map_err(Error::Malformed)
}

fn checksum_of_fields(fields: &Map<String, Value>) -> Result<String> {
    let rest = fields.iter().filter(|(name, _)| *name != FIELD);
    let mut text = String::new();
    write_object(rest, &mut text)?;
    Ok(hex(&Sha256::digest(text)))
}

fn write_object<'a>(
    fields: impl Iterator<Item = (&'a String, &'a Value)>,
    into: &mut String,
) -> Result<()> {
    let mut fields: Vec<_> = fields.collect();
    // Of bytes: the same as by code points, and not what serde_json's map happens to do.
    fields.sort_unstable_by_key(|(name, _)| name.as_bytes());
    into.push('{');
    for (index, (name, value)) in fields.into_iter().enumerate() {
        if index > 0 {
            into.push(',');
        }
        write_string(name, into)?;
        into.push(':');
        write_canonical(value, into)?;
    }
    into.push('}');
    Ok(())
}

fn write_canonical(value: &Value, into: &mut String) -> Result<()> {
    match value {
        Value::Null => into.push_str("null"),
        Value::Bool(true) => into.push_str("true"),
        Value::Bool(false) => into.push_str("false"),
        Value::Number(number) if number.is_u64() || number.is_i64() => {
            into.push_str(&number.to_string());
        }
        Value::Number(number) => return Err(Error::NotWhole(number.to_string())),
        Value::String(text) => write_string(text, into)?,
        Value::Array(items) => {
            into.push('[');
            for (index, item) in items.iter().enumerate() {
                if index > 0 {
                    into.push(',');
                }
                write_canonical(item, into)?;
            }
            into.push(']');
        }
        Value::Object(fields) => write_object(fields.iter(), into)?,
    }
    Ok(())
}

/// serde_json escapes exactly what the field's description says.
fn write_string(text: &str, into: &mut String) -> Result<()> {
    into.push_str(&serde_json::to_string(text).map_err(Error::Unwritable)?);
    Ok(())
}

const TWICE: &str = "tidemark: name twice: ";

/// Turns the error of [`Strict`] about a repeated name into its own kind.
fn distinguished(error: serde_json::Error) -> Error {
    let text = error.to_string();
    match text.strip_prefix(TWICE) {
        Some(rest) => {
            let name = rest.rsplit_once(" at line ").map_or(rest, |(name, _)| name);
            Error::DuplicateName(name.to_owned())
        }
        None => Error::Malformed(error),
    }
}

/// JSON in which no object has a name twice.
struct Strict(Value);

impl<'de> Deserialize<'de> for Strict {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(StrictVisitor).map(Self)
    }
}

struct StrictVisitor;

impl<'de> Visitor<'de> for StrictVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, text: &str) -> Result<Value, E> {
        Ok(text.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(Strict(item)) = items.next_element()? {
            list.push(item);
        }
        Ok(Value::Array(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut fields = Map::new();
        while let Some((name, Strict(value))) = entries.next_entry::<String, Strict>()? {
            if fields.contains_key(&name) {
                return Err(de::Error::custom(format_args!("{TWICE}{name}")));
            }
            fields.insert(name, value);
        }
        Ok(Value::Object(fields))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Names that sort differently by bytes, by UTF-16 and without case; every kind of escape; numbers beyond a double.
    const HARD: &str = r#"{
        "checksum": "left out", "B": 1, "a": [true, false, null, [], {}], "": "",
        "ab": 18446744073709551615, "aB": -9223372036854775808, "\uffee": 2, "\ud83c\udf0a": 3, "e\u0301": "\u00e9\u4e2d",
        "text": "\u0001\u001f\u007f\u0080\u2028 \"\\/ \b\t\n\f\r <&>", "nested": {"checksum": "stays", "z": 1, "y": [{"d": 1, "c": 2}]}
    }"#;

    /// The value was computed by the Python program that the field's description gives.
    #[test]
    fn the_checksum_is_the_one_that_the_documented_program_computes() {
        let Strict(value) = serde_json::from_str(HARD).unwrap();
        let Value::Object(fields) = value else { panic!("no object") };
        let expected = "38eeac4b4a6dd3eac4c5d092e0d0d8667405ead62ee891a322597a27a083ea48";
        assert_eq!(checksum_of_fields(&fields).unwrap(), expected);
    }
}
