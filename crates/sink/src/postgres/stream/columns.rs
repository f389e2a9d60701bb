//! Adds columns to a table of the target.
//!
//! **Invariant:** what comes from the source's catalog is hostile here (`hazards.md` S2): names are quoted, a type must read
//! as one type name on the target and nothing else, and a default must be one constant.
//!
//! PostgreSQL manual: `ALTER TABLE`, `to_regtype`.

use tidemark_model::{RelationName, sql::Ident};
use tidemark_wire::Client;

use super::super::session::server_error;
use crate::{Disposition, Error, NewColumn, Result};

/// The statement that adds these columns, for a transaction of its own.
///
/// # Errors
/// The target does not know a type, or a default is no constant.
pub(super) async fn statement(
    client: &Client,
    relation: &RelationName,
    columns: &[NewColumn],
) -> Result<String> {
    let mut clauses = Vec::with_capacity(columns.len());
    for NewColumn { column, default } in columns {
        let name = Ident(&column.name);
        expect_type(client, relation, &column.name, &column.type_name).await?;
        let mut clause = format!("ADD COLUMN IF NOT EXISTS {name} {}", column.type_name);
        if let Some((schema, collation)) =
            column.collation.as_deref().and_then(|collation| collation.split_once('.'))
            && (schema, collation) != ("pg_catalog", "default")
        {
            clause.push_str(&format!(" COLLATE {}.{}", Ident(schema), Ident(collation)));
        }
        if let Some(default) = default {
            expect_constant(client, relation, &column.name, default).await?;
            clause.push_str(&format!(" DEFAULT {default}"));
            if !column.is_nullable {
                clause.push_str(" NOT NULL");
            }
        }
        clauses.push(clause);
    }
    Ok(format!("ALTER TABLE {relation} {}", clauses.join(", ")))
}

async fn expect_type(
    client: &Client,
    relation: &RelationName,
    column: &str,
    type_name: &str,
) -> Result<()> {
    let row = client
        .query_one("SELECT to_regtype($1) IS NOT NULL", &[&type_name])
        .await
        .map_err(|cause| server_error("look a type up on the target", Some(relation), cause))?;
    if row.get(0) {
        return Ok(());
    }
    Err(Error::new(
        Disposition::Refused,
        format!("add column {}: the target has no type {type_name:?}", Ident(column)),
    )
    .on(relation)
    .hint("create the type on the target and run the same command again"))
}

async fn expect_constant(
    client: &Client,
    relation: &RelationName,
    column: &str,
    default: &str,
) -> Result<()> {
    match constant(default) {
        Some(None) => return Ok(()),
        Some(Some(type_name)) => return expect_type(client, relation, column, type_name).await,
        None => {}
    }
    Err(Error::new(
        Disposition::Refused,
        format!("add column {}: its default is no constant", Ident(column)),
    )
    .on(relation)
    .hint("add the column to the target's table yourself and run the same command again"))
}

/// Whether an expression, as the server prints it, is a literal; with the name of the type that it is cast to.
fn constant(expression: &str) -> Option<Option<&str>> {
    if let Some(inner) = expression.strip_prefix('(').and_then(|inner| inner.strip_suffix(')')) {
        let is_number =
            !inner.is_empty() && constant(inner) == Some(None) && !inner.starts_with('\'');
        return is_number.then_some(None);
    }
    let (literal, type_name) = match string_literal(expression) {
        Some(end) => expression.split_at(end),
        None => expression
            .split_once("::")
            .map_or((expression, ""), |(literal, _)| expression.split_at(literal.len())),
    };
    let is_number = |text: &str| {
        let digits = text.strip_prefix('-').unwrap_or(text);
        digits.starts_with(|c: char| c.is_ascii_digit())
            && digits.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.')
    };
    let is_word = matches!(literal, "true" | "false" | "NULL");
    if string_literal(literal) != Some(literal.len()) && !is_number(literal) && !is_word {
        return None;
    }
    match type_name.strip_prefix("::") {
        Some(type_name) => Some(Some(type_name)),
        None => type_name.is_empty().then_some(None),
    }
}

/// Where the string literal at the front ends. Without `E`: the server prints that form for backslashes only, and those are
/// left to people.
fn string_literal(text: &str) -> Option<usize> {
    let bytes = text.as_bytes();
    if bytes.first() != Some(&b'\'') {
        return None;
    }
    let mut index = 1;
    while index < bytes.len() {
        match (bytes[index], bytes.get(index + 1)) {
            (b'\'', Some(b'\'')) => index += 2,
            (b'\'', _) => return Some(index + 1),
            _ => index += 1,
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn literals_are_constants() {
        for (text, type_name) in [
            ("'a''b'::text", Some("text")),
            ("'-1'::integer", Some("integer")),
            ("'x'::character varying(3)", Some("character varying(3)")),
            ("'(1)'::text", Some("text")),
            ("7", None),
            ("1.5", None),
            ("(-1)", None),
            ("true", None),
            ("NULL::text", Some("text")),
        ] {
            assert_eq!(constant(text), Some(type_name), "{text}");
        }
    }

    #[test]
    fn everything_else_is_none() {
        for text in [
            "",
            "now()",
            "pg_sleep(100)",
            "'a' || 'b'",
            "'a'; drop table x",
            "nextval('s'::regclass)",
            "('a'::text || 'b'::text)",
            "1 + 1",
            "CURRENT_DATE",
            "(('1')",
            "'unfinished",
        ] {
            let open = constant(text);
            // A cast's type is looked up on the target, which refuses all but one type name.
            assert!(open.is_none(), "{text}: {open:?}");
        }
    }
}
