//! The JSON schema of the file, for editors.
//!
//! **Invariant:** the shape comes from [`RawConfig`], words and choices from the table of keys.

use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

use super::keys::{Key, Kind, SECTIONS, key};
use super::raw::RawConfig;

/// The schema.
pub fn schema() -> Value {
    let settings =
        SchemaSettings::draft2020_12().with(|settings| settings.inline_subschemas = true);
    let mut schema = settings.into_generator().into_root_schema_for::<RawConfig>().to_value();
    schema["title"] = json!("Tidemark");
    schema["description"] = json!("The configuration of one job.");
    for section in &SECTIONS {
        let value = &mut schema["properties"][section.name];
        let keys = if section.repeated { &mut value["items"] } else { &mut *value };
        if let Some(properties) = keys["properties"].as_object_mut() {
            describe(section.name, properties);
        }
        value["description"] = json!(section.why);
        if let Some(value) = value.as_object_mut() {
            value.remove("default");
        }
    }
    schema
}

/// The keys that the schema has, as `section.key`.
pub fn paths() -> Vec<String> {
    let schema = schema();
    let mut paths = Vec::new();
    for (section, value) in schema["properties"].as_object().into_iter().flatten() {
        let keys = if value["type"] == "array" { &value["items"] } else { value };
        for name in keys["properties"].as_object().into_iter().flat_map(Map::keys) {
            paths.push(format!("{section}.{name}"));
        }
    }
    paths
}

fn describe(section: &str, properties: &mut Map<String, Value>) {
    for (name, value) in properties {
        if let Some(key) = key(&format!("{section}.{name}")) {
            *value = describe_key(key);
        }
    }
}

fn describe_key(key: &Key) -> Value {
    let mut value = match key.kind {
        Kind::Count => json!({ "type": "integer", "minimum": 1 }),
        Kind::Switch => json!({ "type": "boolean" }),
        Kind::Texts => json!({ "type": "array", "items": { "type": "string" } }),
        Kind::Choice(choices) => choice(choices),
        Kind::Choices(choices) => json!({ "type": "array", "items": choice(choices) }),
        Kind::Text | Kind::Url | Kind::Bytes | Kind::Duration => json!({ "type": "string" }),
    };
    value["description"] = json!(key.why);
    if let Some(default) = key.default {
        value["default"] = json!(default);
    }
    value
}

/// It may also be a reference such as ${VAR}, which an editor must not underline.
fn choice(choices: &[&str]) -> Value {
    json!({ "type": "string", "anyOf": [{ "enum": choices }, { "pattern": "\\$\\{" }] })
}

#[cfg(test)]
mod tests {
    use super::super::keys::KEYS;
    use super::*;

    #[test]
    fn the_table_of_keys_and_the_parsed_type_have_the_same_keys() {
        let mut parsed = paths();
        let mut listed: Vec<String> = KEYS.iter().map(|key| key.path.to_owned()).collect();
        parsed.sort();
        listed.sort();
        assert_eq!(parsed, listed);
    }
}
