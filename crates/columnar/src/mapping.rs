//! Which Arrow type a PostgreSQL type becomes.
//!
//! **Invariant:** every type has a form: what has none of its own is cast to text by the server and marked `arrow.opaque`.
//! The types are told by schema-qualified name, because OIDs of anything not built in differ between databases.
//!
//! Field metadata: `tidemark:pg_type`, `tidemark:pg_typmod`, `tidemark:nullable`, `tidemark:key` (1-based position in the
//! primary key), `tidemark:labels` (of an enum, JSON), `tidemark:wire_note` (what a reader of the values should know).
//! The whole table is in `docs/types.md`.

use std::collections::HashMap;
use std::sync::Arc;

use arrow_schema::extension::{Json, Opaque, Uuid};
use arrow_schema::{Field, FieldRef, Fields};
use tidemark_model::{Column, DataType, TypeKind, Unrepresentable, Wire};

use crate::shape::{Shape, range_fields};

/// Composites in composites deeper than this are written as text.
const DEPTH_MAX: usize = 16;
/// VARHDRSZ: what PostgreSQL adds to the typmods of numeric, char and varchar.
const TYPMOD_OFFSET: i32 = 4;

const AS_TEXT: &str = "written as text";

/// What becomes of one column.
#[derive(Debug, Clone)]
pub struct Mapping {
    field: FieldRef,
    wire: Wire,
    note: Option<&'static str>,
    shape: Shape,
}

impl Mapping {
    /// The Arrow field, with its extension type and metadata.
    pub fn field(&self) -> &FieldRef {
        &self.field
    }

    /// How the column is selected.
    pub fn wire(&self) -> Wire {
        self.wire
    }

    /// What is not kept as one would expect, if anything.
    pub fn note(&self) -> Option<&str> {
        self.note
    }

    pub(crate) fn shape(&self) -> &Shape {
        &self.shape
    }
}

/// Maps a column. Nothing is refused.
pub fn map_column(column: &Column, policy: Unrepresentable) -> Mapping {
    let (wire, form) = match form_of(&column.data_type, column.typmod, 0) {
        Some(form) if policy != Unrepresentable::Text || !form.shape.can_be_unrepresentable() => {
            (Wire::Own, form)
        }
        _ => (Wire::CastToText, text_form(&column.data_type, &column.type_name)),
    };
    let can_be_replaced = policy == Unrepresentable::Null && form.shape.can_be_unrepresentable();
    let is_nullable = column.is_nullable || can_be_replaced;
    let mut metadata = HashMap::from([
        ("tidemark:pg_type".to_owned(), column.type_name.clone()),
        ("tidemark:nullable".to_owned(), column.is_nullable.to_string()),
    ]);
    if column.typmod != -1 {
        metadata.insert("tidemark:pg_typmod".to_owned(), column.typmod.to_string());
    }
    if let Some(position) = column.key_position {
        metadata.insert("tidemark:key".to_owned(), position.to_string());
    }
    let mut field = form.field(&column.name, is_nullable);
    metadata.extend(std::mem::take(field.metadata_mut()));
    field.set_metadata(metadata);
    Mapping { field: Arc::new(field), wire, note: form.note, shape: form.shape }
}

/// The form of a type, of a column or inside one.
struct Form {
    shape: Shape,
    mark: Mark,
    labels: Option<String>,
    note: Option<&'static str>,
}

/// The Arrow extension type.
enum Mark {
    None,
    Json,
    Uuid,
    /// Text of a PostgreSQL type with this name.
    Opaque(String),
}

impl Form {
    fn plain(shape: Shape) -> Self {
        Self { shape, mark: Mark::None, labels: None, note: None }
    }

    fn marked(shape: Shape, mark: Mark) -> Self {
        Self { mark, ..Self::plain(shape) }
    }

    /// A field of this form; what is inside another type has no name of its own to remember, so the type's is enough.
    fn field(&self, name: &str, is_nullable: bool) -> Field {
        let mut metadata = HashMap::new();
        if let Some(labels) = &self.labels {
            metadata.insert("tidemark:labels".to_owned(), labels.clone());
        }
        if let Some(note) = self.note {
            metadata.insert("tidemark:wire_note".to_owned(), note.to_owned());
        }
        let field = Field::new(name, self.shape.data_type(), is_nullable).with_metadata(metadata);
        match &self.mark {
            Mark::None => field,
            Mark::Json => field.with_extension_type(Json::default()),
            Mark::Uuid => field.with_extension_type(Uuid),
            Mark::Opaque(type_name) => {
                field.with_extension_type(Opaque::new(type_name, "PostgreSQL"))
            }
        }
    }

    /// A field inside another type: NULL is always possible there.
    fn inner_field(&self, name: &str, data_type: &DataType) -> Field {
        let mut field = self.field(name, true);
        field.metadata_mut().insert("tidemark:pg_type".to_owned(), qualified(data_type));
        field
    }
}

/// The name that tells a type apart, without the schema for built-in ones.
fn qualified(data_type: &DataType) -> String {
    if data_type.schema == "pg_catalog" {
        data_type.name.clone()
    } else {
        format!("{}.{}", data_type.schema, data_type.name)
    }
}

/// The fallback: the server's text output.
fn text_form(data_type: &DataType, type_name: &str) -> Form {
    let note = if data_type.is_builtin("money") {
        "written as text, as lc_monetary = C prints it"
    } else if data_type.name == "geometry" || data_type.name == "geography" {
        "written as text: hexadecimal EWKB"
    } else {
        AS_TEXT
    };
    let note = Some(note);
    Form { note, ..Form::marked(Shape::Text, Mark::Opaque(type_name.to_owned())) }
}

/// The form that a type has by its own binary output; `None` if the server must cast it.
fn form_of(data_type: &DataType, typmod: i32, depth: usize) -> Option<Form> {
    if depth > DEPTH_MAX || !data_type.has_binary {
        return None;
    }
    let inner = |inner: &DataType, typmod| form_of(inner, typmod, depth + 1);
    match &data_type.kind {
        TypeKind::Base => base_form(data_type, typmod),
        TypeKind::Domain { base, typmod } => inner(base, *typmod),
        TypeKind::Enum(labels) => Some(Form {
            labels: Some(serde_json::Value::from(labels.clone()).to_string()),
            ..Form::marked(Shape::Text, Mark::Opaque(qualified(data_type)))
        }),
        TypeKind::Array(element) => {
            let form = inner(element, typmod)?;
            let item = Arc::new(form.inner_field(Field::LIST_FIELD_DEFAULT_NAME, element));
            let note = form.note;
            Some(Form { note, ..Form::plain(Shape::List(Box::new(form.shape), item)) })
        }
        TypeKind::Composite(attributes) => composite_form(attributes, depth),
        TypeKind::Range(subtype) => {
            let form = inner(subtype, -1)?;
            let fields = range_fields(&form.inner_field("lower", subtype));
            Some(Form::plain(Shape::Range(Box::new(form.shape), fields)))
        }
        TypeKind::Multirange(subtype) => {
            let form = inner(subtype, -1)?;
            let fields = range_fields(&form.inner_field("lower", subtype));
            Some(Form::plain(Shape::Multirange(Box::new(form.shape), fields)))
        }
        TypeKind::Other => None,
    }
}

/// A composite without attributes is written as text: Parquet has no empty group.
fn composite_form(attributes: &[(String, DataType, i32)], depth: usize) -> Option<Form> {
    if attributes.is_empty() {
        return None;
    }
    let mut shapes = Vec::with_capacity(attributes.len());
    let mut fields = Vec::with_capacity(attributes.len());
    for (name, data_type, typmod) in attributes {
        let form = form_of(data_type, *typmod, depth + 1)?;
        fields.push(form.inner_field(name, data_type));
        shapes.push(form.shape);
    }
    Some(Form::plain(Shape::Struct(shapes, Fields::from(fields))))
}

fn base_form(data_type: &DataType, typmod: i32) -> Option<Form> {
    if data_type.schema != "pg_catalog" {
        return None;
    }
    let shape = match data_type.name.as_str() {
        "bool" => Shape::Bool,
        "int2" => Shape::Int2,
        "int4" => Shape::Int4,
        "int8" => Shape::Int8,
        "oid" | "xid" => Shape::Unsigned4,
        "float4" => Shape::Float4,
        "float8" => Shape::Float8,
        "text" | "varchar" | "name" => Shape::Text,
        "char" => Shape::Char,
        "bytea" => Shape::Bytea,
        "date" => Shape::Date,
        "timestamp" => Shape::Timestamp,
        "timestamptz" => Shape::Instant,
        "time" => Shape::Time,
        "interval" => Shape::Interval,
        "numeric" => return Some(numeric_form(typmod)),
        "bpchar" => {
            let note = Some("trailing blanks removed");
            return Some(Form { note, ..Form::plain(Shape::TrimmedText) });
        }
        "json" => return Some(Form::marked(Shape::Text, Mark::Json)),
        "jsonb" => return Some(Form::marked(Shape::Jsonb, Mark::Json)),
        "uuid" => return Some(Form::marked(Shape::Uuid, Mark::Uuid)),
        _ => return None,
    };
    Some(Form::plain(shape))
}

/// A decimal where the typmod declares one that Arrow has; otherwise the exact text. The scale is 11 bits, signed.
fn numeric_form(typmod: i32) -> Form {
    if typmod >= TYPMOD_OFFSET {
        let packed = typmod - TYPMOD_OFFSET;
        let precision = (packed >> 16) & 0xFFFF;
        let scale = ((packed & 0x7FF) ^ 1024) - 1024;
        if (1..=38).contains(&precision) && (0..=precision).contains(&scale) {
            // Both are at most 38.
            let (precision, scale) = (precision as u8, scale as u8);
            return Form::plain(Shape::Decimal { precision, scale });
        }
    }
    Form::marked(Shape::NumericText, Mark::Opaque("numeric".to_owned()))
}

#[cfg(test)]
mod tests;
