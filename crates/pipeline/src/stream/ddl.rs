//! What the application does to its tables while they are followed.
//!
//! **Invariant:** a change of a table's definition is carried over where that is certain to be right (a new column without
//! a default, or with a constant one), and otherwise stops the job with the position kept: nothing is guessed
//! (`hazards.md` F78, F79). Tables are known by OID: a renamed one goes on under its old name on the target.
//!
//! The stream says of a column only its name, type and place; the rest is read from the source's catalog as it is now. A
//! description may be older than the catalog (a stream that was behind): a column that it lacks and the catalog has is
//! still to come, one that it has and the catalog lacks was dropped since.

use std::collections::{HashMap, HashSet};

use tidemark_model::{
    Column, Generated, Identity, Oid, Relation, RelationName, StreamRelation, TablePlan,
};
use tidemark_sink::NewColumn;
use tidemark_source::read_catalog;
use tidemark_wire::{Client, ConnectSpec};

use crate::{Error, Kind, Result};

/// What may be carried over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DdlPolicy {
    /// New columns.
    #[default]
    Additive,
    /// New columns; at anything else that table stops and the others go on.
    StopTable,
    /// Nothing: the job stops.
    Stop,
}

/// The definitions of the followed tables, on both sides.
pub(crate) struct Ddl {
    source: ConnectSpec,
    policy: DdlPolicy,
    tables: HashMap<Oid, Known>,
}

struct Known {
    plan: TablePlan,
    on_target: HashSet<String>,
    /// The user named the columns: others stay out.
    is_chosen: bool,
}

impl Ddl {
    /// From the plans, what the target has, and the tables whose columns the user has named.
    pub(crate) fn new(
        source: &ConnectSpec,
        policy: DdlPolicy,
        plans: &[TablePlan],
        on_target: &HashMap<RelationName, Vec<String>>,
        chosen: &HashSet<RelationName>,
    ) -> Self {
        let known = |plan: &TablePlan| {
            let name = &plan.relation.name;
            let there = on_target.get(name).into_iter().flatten().cloned().collect();
            let known =
                Known { plan: plan.clone(), on_target: there, is_chosen: chosen.contains(name) };
            (plan.relation.oid, known)
        };
        Self { source: source.clone(), policy, tables: plans.iter().map(known).collect() }
    }

    /// The columns of a description that the target lacks; `None` if it lacks none.
    ///
    /// # Errors
    /// The table was changed in a way that is not carried over.
    pub(crate) async fn new_columns(
        &self,
        relation: &StreamRelation,
    ) -> Result<Option<(RelationName, Vec<NewColumn>)>> {
        let Some(known) = self.tables.get(&relation.oid) else { return Ok(None) };
        let name = &known.plan.relation.name;
        if relation.name != *name {
            tracing::warn!(table = %name, now = %relation.name, "the source has renamed a table; the target keeps the old name");
        }
        let differs =
            known.lacks(relation) || known.has_more(relation) || known.retyped(relation).is_some();
        if !differs {
            return Ok(None);
        }
        let client = self.source.connect().await?;
        let catalog = read_catalog(&client).await?;
        let now = catalog.relations.iter().find(|now| now.oid == relation.oid);
        let now = now.ok_or_else(|| self.refuse(name, "was dropped on the source", "-"))?;
        self.still_the_same(known, relation, now)?;
        let missing: Vec<&Column> = relation
            .columns
            .iter()
            .filter(|column| known.is_new(&column.name))
            .filter_map(|column| now.columns.iter().find(|there| there.name == column.name))
            .collect();
        if missing.is_empty() {
            return Ok(None);
        }
        if self.policy == DdlPolicy::Stop {
            return Err(self.refuse(
                name,
                "has got a column, and stream.ddl says stop:",
                &missing[0].name,
            ));
        }
        let mut columns = Vec::with_capacity(missing.len());
        for column in missing {
            columns.push(self.addition(&client, name, relation.oid, column).await?);
        }
        Ok(Some((name.clone(), columns)))
    }

    /// The target has these columns now.
    pub(crate) fn added(&mut self, name: &RelationName, columns: &[NewColumn]) {
        for known in self.tables.values_mut().filter(|known| known.plan.relation.name == *name) {
            for new in columns {
                known.on_target.insert(new.column.name.clone());
                if !known.plan.relation.columns.iter().any(|there| there.name == new.column.name) {
                    known.plan.relation.columns.push(new.column.clone());
                    known.plan.columns.push(new.column.clone());
                }
            }
        }
    }

    /// Columns that are gone and columns of another type stop the job.
    fn still_the_same(
        &self,
        known: &Known,
        relation: &StreamRelation,
        now: &Relation,
    ) -> Result<()> {
        let name = &known.plan.relation.name;
        for column in &known.plan.columns {
            let is_described = relation.columns.iter().any(|there| there.name == column.name);
            let is_there = now
                .columns
                .iter()
                .any(|there| there.attnum == column.attnum && there.name == column.name);
            if !is_described && !is_there {
                return Err(self.refuse(
                    name,
                    "has lost or renamed a column on the source:",
                    &column.name,
                ));
            }
        }
        if let Some(column) = known.retyped(relation) {
            return Err(self.refuse(
                name,
                "has a column of another type than the target was made with:",
                column,
            ));
        }
        if let Some(column) = relation.columns.iter().find(|column| {
            known.is_new(&column.name) && !now.columns.iter().any(|there| there.name == column.name)
        }) {
            return Err(self.refuse(
                name,
                "had a column for a while that is gone again:",
                &column.name,
            ));
        }
        Ok(())
    }

    async fn addition(
        &self,
        client: &Client,
        name: &RelationName,
        oid: Oid,
        column: &Column,
    ) -> Result<NewColumn> {
        let is_plain = column.generated == Generated::No && column.identity == Identity::No;
        if is_plain && column.is_nullable && !column.has_default {
            return Ok(NewColumn { column: column.clone(), default: None });
        }
        let row = client
            .query_opt(
                "SELECT pg_catalog.pg_get_expr(d.adbin, d.adrelid) FROM pg_catalog.pg_attrdef d \
                 WHERE d.adrelid = $1 AND d.adnum = $2",
                &[&oid, &column.attnum],
            )
            .await
            .map_err(tidemark_wire::Error::sql("read the default of a new column"))?;
        let default: Option<String> = row.and_then(|row| row.get(0));
        match default {
            Some(default) if is_plain && is_constant(&default) => {
                Ok(NewColumn { column: column.clone(), default: Some(default) })
            }
            _ => Err(self.refuse(
                name,
                "has got a column that cannot be added by itself (a default that is no constant, NOT NULL without one, generated, or an identity):",
                &column.name,
            )),
        }
    }

    fn refuse(&self, name: &RelationName, what: &str, column: &str) -> Error {
        let column = if column == "-" { String::new() } else { format!(" {column:?}") };
        let mut error =
            Error::new(Kind::TargetRefused, format!("follow table {name}: it {what}{column}"))
                .hint("make the same change on the target by hand and run again, or take the table out of the job; the position is kept");
        error.table = Some(Box::new(name.clone()));
        error
    }
}

impl Known {
    fn is_new(&self, column: &str) -> bool {
        let is_left_out = self.plan.relation.columns.iter().any(|there| there.name == column)
            && !self.plan.columns.iter().any(|there| there.name == column);
        !self.is_chosen && !is_left_out && !self.on_target.contains(column)
    }

    fn lacks(&self, relation: &StreamRelation) -> bool {
        relation.columns.iter().any(|column| self.is_new(&column.name))
    }

    fn has_more(&self, relation: &StreamRelation) -> bool {
        let described: HashSet<&str> =
            relation.columns.iter().map(|column| column.name.as_str()).collect();
        self.plan.columns.iter().any(|column| {
            column.generated == Generated::No && !described.contains(column.name.as_str())
        })
    }

    /// A column whose type is another than planned.
    fn retyped<'a>(&self, relation: &'a StreamRelation) -> Option<&'a str> {
        let planned = |name: &str| self.plan.columns.iter().find(|column| column.name == name);
        let column = relation.columns.iter().find(|column| {
            planned(&column.name).is_some_and(|planned| {
                planned.data_type.oid != column.type_oid || planned.typmod != column.typmod
            })
        });
        column.map(|column| column.name.as_str())
    }
}

/// Whether an expression is one literal, with a cast or without: what it means cannot depend on anything.
fn is_constant(expression: &str) -> bool {
    let (literal, cast) = match expression.strip_prefix('\'') {
        Some(rest) => {
            let Some(end) = end_of_string(rest) else { return false };
            ("", &rest[end..])
        }
        None => expression.split_at(expression.find("::").unwrap_or(expression.len())),
    };
    let bare = literal.trim_start_matches('(').trim_end_matches(')');
    let is_literal = literal.is_empty() && expression.starts_with('\'')
        || matches!(literal, "true" | "false" | "NULL")
        || bare.parse::<f64>().is_ok_and(f64::is_finite);
    let is_cast = cast.is_empty()
        || cast.strip_prefix("::").is_some_and(|name| {
            // A volatile conversion of a text, such as to a time of "now".
            let name = name.to_ascii_lowercase();
            let is_name = name.chars().all(|c| c.is_alphanumeric() || " _.,()[]\"".contains(c));
            is_name && !["timestamp", "time", "date", "reg"].iter().any(|word| name.contains(word))
        });
    is_literal && is_cast
}

/// Behind the closing quote.
fn end_of_string(rest: &str) -> Option<usize> {
    let bytes = rest.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        if bytes[at] == b'\'' {
            if bytes.get(at + 1) != Some(&b'\'') {
                return Some(at + 1);
            }
            at += 1;
        }
        at += 1;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_literals_are_constant() {
        for constant in [
            "0",
            "-1",
            "(-1)",
            "1.5",
            "true",
            "'a''b'::text",
            "'{}'::jsonb",
            "NULL::text",
            "'x'::character varying(10)",
            "0::numeric(10,2)",
        ] {
            assert!(is_constant(constant), "{constant}");
        }
        for other in [
            "now()",
            "'now'::timestamp without time zone",
            "nextval('s'::regclass)",
            "'a' || 'b'",
            "'s'::regclass",
            "random()",
            "'x'::text || f()",
            "CURRENT_DATE",
            "1 + f()",
            "inf",
            "'open",
        ] {
            assert!(!is_constant(other), "{other}");
        }
    }
}
