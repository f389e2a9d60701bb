//! In which form values come, and what becomes of each.
//!
//! **Invariant:** a column ends in the same Arrow value whichever way it came: as the snapshot's binary COPY, as the stream's
//! binary form or as its text. Where that cannot be, [`binary_is_safe`] says so beforehand, and a value that comes
//! nevertheless is an error that names its column.
//!
//! With `binary` on, the server sends a value by its type's send function, or as text where the type has none. What a lake
//! holds as text is cast to text by the server in a snapshot; the stream has no cast. So it must come as text, but for the
//! types whose binary form is their text.
//!
//! Two casts differ from the output function: `inet` without a prefix length gets one, which is done here; `xml` keeps a
//! declaration that neither form of the stream has (`docs/lake-format.md`).

use tidemark_columnar::{Mapping, map_column};
use tidemark_model::{Cell, Column, DataType, TablePlan, TypeKind, Wire};

use crate::{Disposition, Error, Result};

/// Whether every value of these tables can be taken in binary form. If not, the stream must be asked for text.
pub fn binary_is_safe(plans: &[TablePlan]) -> bool {
    plans.iter().all(|plan| {
        let is_wanted = |column: &&Column| plan.columns.iter().any(|own| own.name == column.name);
        let all = plan.relation.columns.iter();
        let others_can_be_sent =
            all.filter(|column| !is_wanted(column)).all(|column| can_be_sent(&column.data_type));
        let own = plan.columns.iter();
        others_can_be_sent
            && own
                .map(|column| Form::of(column, &map_column(column, plan.unrepresentable)))
                .all(|form| !matches!(form.binary, Binary::Refused))
    })
}

/// Whether the server does not stop at a value: it does at an element without a send function.
fn can_be_sent(data_type: &DataType) -> bool {
    !data_type.has_binary || parts_have_binary(data_type)
}

fn parts_have_binary(data_type: &DataType) -> bool {
    data_type.has_binary
        && match &data_type.kind {
            TypeKind::Base | TypeKind::Enum(_) => true,
            TypeKind::Other => false,
            TypeKind::Array(inner)
            | TypeKind::Domain { base: inner, .. }
            | TypeKind::Range(inner)
            | TypeKind::Multirange(inner) => parts_have_binary(inner),
            TypeKind::Composite(attributes) => {
                attributes.iter().all(|(_, attribute, _)| parts_have_binary(attribute))
            }
        }
}

/// What a value's binary form is to the decoder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Binary {
    /// What it expects.
    AsIs,
    /// Text behind a version byte, which must be 1.
    VersionedText,
    /// Nothing that it knows.
    Refused,
}

/// How the values of one column are taken.
#[derive(Debug)]
pub(super) struct Form {
    mapping: Mapping,
    binary: Binary,
    is_inet: bool,
}

impl Form {
    pub(super) fn of(column: &Column, mapping: &Mapping) -> Self {
        let base = base_of(&column.data_type);
        let is_text = mapping.wire() == Wire::CastToText;
        let binary = match base.name.as_str() {
            _ if !is_text || !column.data_type.has_binary => Binary::AsIs,
            "xml" | "refcursor" if base.schema == "pg_catalog" => Binary::AsIs,
            "jsonpath" if base.schema == "pg_catalog" => Binary::VersionedText,
            "citext" if base.extension.as_deref() == Some("citext") => Binary::AsIs,
            "ltree" | "lquery" | "ltxtquery" if base.extension.as_deref() == Some("ltree") => {
                Binary::VersionedText
            }
            _ => Binary::Refused,
        };
        Self { mapping: mapping.clone(), binary, is_inet: is_text && base.is_builtin("inet") }
    }

    /// Appends a value's length and bytes as the decoder expects them. `Unchanged` is no value.
    pub(super) fn push(&self, cell: Cell<'_>, out: &mut Vec<u8>) -> Result<()> {
        match cell {
            Cell::Null | Cell::Unchanged => out.extend((-1_i32).to_be_bytes()),
            Cell::Binary(bytes) => match (self.binary, bytes) {
                (Binary::AsIs, _) => push_field(bytes, out),
                (Binary::VersionedText, [1, text @ ..]) => push_field(text, out),
                _ => return Err(self.refused()),
            },
            Cell::Text(text) => self.push_text(text, out)?,
        }
        Ok(())
    }

    fn push_text(&self, text: &[u8], out: &mut Vec<u8>) -> Result<()> {
        let at = out.len();
        out.extend([0; 4]);
        self.mapping.recode_text(text, out).map_err(|error| {
            Error::new(Disposition::Internal, "read a value of the stream").because(error)
        })?;
        if self.is_inet && !text.contains(&b'/') {
            out.extend(if text.contains(&b':') { &b"/128"[..] } else { b"/32" });
        }
        // A value of the stream has at most 1 GiB.
        let length = (out.len() - at - 4) as u32;
        out[at..at + 4].copy_from_slice(&length.to_be_bytes());
        Ok(())
    }

    fn refused(&self) -> Error {
        let attempt = format!(
            "read a binary value of column \"{}\", whose form in the lake is text",
            self.mapping.field().name()
        );
        Error::new(Disposition::Internal, attempt)
            .hint("the stream must be asked for text; leaving the column out with `columns` helps until then")
    }
}

fn push_field(bytes: &[u8], out: &mut Vec<u8>) {
    // A cell's length came in 32 bits.
    out.extend((bytes.len() as u32).to_be_bytes());
    out.extend_from_slice(bytes);
}

/// The type under a domain.
fn base_of(data_type: &DataType) -> &DataType {
    match &data_type.kind {
        TypeKind::Domain { base, .. } => base,
        _ => data_type,
    }
}
