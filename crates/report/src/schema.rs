//! The JSON schema of `report.json`.
//!
//! **Invariant:** `docs/reference/report.schema.json` is what [`json_schema`] writes, `migration.schema.json` beside it what
//! [`migration_schema`] does; a test compares them (`UPDATE_DOCS=1`
//! rewrites). Names are sorted, so that the text does not depend on how a library was built.

use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value};

use crate::{MIGRATION_VERSION, MigrationReport, REPORT_VERSION, VerifyReport};

/// The schema as text.
pub fn json_schema() -> String {
    schema_of::<VerifyReport>("Report of tidemark verify", REPORT_VERSION)
}

/// The schema of `migration.json` as text.
pub fn migration_schema() -> String {
    schema_of::<MigrationReport>("Report of a migration by tidemark", MIGRATION_VERSION)
}

fn schema_of<T: JsonSchema>(title: &str, version: u32) -> String {
    let settings = SchemaSettings::draft2020_12().for_serialize();
    let schema = settings.into_generator().into_root_schema_for::<T>();
    let mut schema = schema.to_value();
    schema["title"] = title.into();
    schema["properties"]["report_version"]["const"] = version.into();
    // A report in memory may have none yet, the file always has.
    schema["properties"]["checksum"]["type"] = "string".into();
    if let Some(required) = schema["required"].as_array_mut() {
        required.push("checksum".into());
    }
    format!("{:#}\n", sorted(schema))
}

fn sorted(value: Value) -> Value {
    match value {
        Value::Object(fields) => {
            let mut fields: Vec<_> = fields.into_iter().collect();
            fields.sort_by(|(one, _), (two, _)| one.cmp(two));
            let fields = fields.into_iter().map(|(name, value)| (name, sorted(value)));
            Value::Object(fields.collect::<Map<_, _>>())
        }
        Value::Array(items) => Value::Array(items.into_iter().map(sorted).collect()),
        other => other,
    }
}
