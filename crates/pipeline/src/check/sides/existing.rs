//! Tables that the target has already: what in their definitions would refuse rows, or lets go unnoticed what the source
//! refuses (`hazards.md` F124, E73, G125).
//!
//! **Invariant:** column by column the sink compares; here is what belongs to the table. Only differences from the source
//! are told: what both sides refuse no row of the source has.

use std::collections::HashSet;

use tidemark_model::sql::Ident;
use tidemark_model::{Finding, Oid, Persistence, Relation, RelationName, Severity, TablePlan};
use tidemark_source::{
    Catalog, Definition, DefinitionKind, Definitions, read_catalog, read_definitions,
};

use super::super::LOCK_TIMEOUT;
use super::{Sides, of_target};
use crate::Result;

impl Sides<'_> {
    pub(super) async fn existing(&self, there: &[(RelationName, Oid)]) -> Result<Vec<Finding>> {
        let catalog = match read_catalog(self.target).await {
            Err(error) if error.sqlstate() == Some(LOCK_TIMEOUT) => return Ok(vec![locked()]),
            read => read.map_err(of_target)?,
        };
        let mut findings = self.sequences(&catalog).await?;
        let pairs: Vec<(&TablePlan, &Relation)> = self
            .plans
            .iter()
            .filter_map(|plan| Some((plan, catalog.relation(&plan.relation.name)?)))
            .collect();
        for (plan, relation) in &pairs {
            findings.extend(self.rows_hidden(&catalog, relation));
            findings.extend(unlogged(plan, relation));
            findings.extend(self.keys(plan, relation));
        }
        findings.extend(self.refusals(&pairs, there).await?);
        Ok(findings)
    }

    fn rows_hidden(&self, catalog: &Catalog, relation: &Relation) -> Option<Finding> {
        let message =
            "row security of the target applies to the role: rows would be hidden or refused";
        relation.row_security_applies.then(|| {
            let object = relation.name.to_string();
            Finding::new(Severity::Blocking, "target-row-security", object, message).with_fix(
                format!("on the target: ALTER ROLE {} BYPASSRLS", Ident(&catalog.server.user)),
            )
        })
    }

    fn keys(&self, plan: &TablePlan, relation: &Relation) -> Vec<Finding> {
        let object = relation.name.to_string();
        let warning =
            |code, message: String| Finding::new(Severity::Warning, code, &object, message);
        let mut findings = Vec::new();
        if let (true, Some(key), true) =
            (self.job.follows, plan.relation.keys.first(), relation.keys.is_empty())
        {
            let columns: Vec<String> =
                key.columns.iter().map(|column| Ident(column).to_string()).collect();
            let message =
                "it has no key on the target: each change is looked for in the whole table";
            findings.push(warning("target-key-missing", message.to_owned()).with_fix(format!(
                "on the target: ALTER TABLE {object} ADD PRIMARY KEY ({})",
                columns.join(", ")
            )));
        }
        if let Some(key) = relation.keys.iter().find(|key| key.is_deferrable) {
            let message = format!(
                "key {} is deferrable on the target: with triggers off the server does not check it",
                Ident(&key.index)
            );
            let fix = "make it an immediate one until the migration is done";
            findings.push(warning("target-deferrable-key", message).with_fix(fix));
        }
        findings
    }

    /// Unique indexes and constraints that the source does not have.
    async fn refusals(
        &self,
        pairs: &[(&TablePlan, &Relation)],
        there: &[(RelationName, Oid)],
    ) -> Result<Vec<Finding>> {
        let oids: Vec<Oid> = there.iter().map(|(_, oid)| *oid).collect();
        let to = match read_definitions(self.target, &oids).await {
            Err(error) if error.sqlstate() == Some(LOCK_TIMEOUT) => return Ok(vec![locked()]),
            read => read.map_err(of_target)?,
        };
        let oids: Vec<Oid> = pairs.iter().map(|(plan, _)| plan.relation.oid).collect();
        let read = async || read_definitions(self.source, &oids).await;
        let from = super::super::patiently(&self.job.source, read).await?;
        let of = |definitions: &Definitions, oid: Oid| {
            definitions.get(&oid).cloned().unwrap_or_default()
        };
        let found = pairs.iter().flat_map(|(plan, relation)| {
            extra(&relation.name, &of(&from, plan.relation.oid), &of(&to, relation.oid))
        });
        Ok(found.collect())
    }

    /// Sequences that get the source's values at the end of the copy; one whose value cannot be seen would be set back.
    async fn sequences(&self, catalog: &Catalog) -> Result<Vec<Finding>> {
        let chosen: HashSet<&RelationName> =
            self.plans.iter().map(|plan| &plan.relation.name).collect();
        let moved = self.catalog.sequences.iter().filter(|sequence| {
            sequence.owned_by.as_ref().is_none_or(|(table, _)| chosen.contains(table))
        });
        let (schemas, names): (Vec<&str>, Vec<&str>) = moved
            .map(|sequence| (sequence.name.schema.as_str(), sequence.name.name.as_str()))
            .unzip();
        let rows = self
            .target
            .query(
                "SELECT n.nspname::text, c.relname::text FROM unnest($1::text[], $2::text[]) AS wanted(nsp, rel) \
                 JOIN pg_catalog.pg_namespace n ON n.nspname = wanted.nsp \
                 JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relname = wanted.rel AND c.relkind = 'S' \
                 WHERE NOT (has_sequence_privilege(c.oid, 'UPDATE') AND has_sequence_privilege(c.oid, 'SELECT, USAGE'))",
                &[&schemas, &names],
            )
            .await
            .map_err(tidemark_wire::Error::sql("ask for rights on the target's sequences"))?;
        let finding = |row: &tidemark_wire::tokio_postgres::Row| {
            let name = RelationName::new(row.get::<_, String>(0), row.get::<_, String>(1));
            let message = "the role may not see and set the value of the sequence";
            let finding = Finding::new(
                Severity::Blocking,
                "target-sequence-right",
                name.to_string(),
                message,
            );
            finding.with_fix(format!(
                "on the target: GRANT SELECT, UPDATE ON SEQUENCE {name} TO {}",
                Ident(&catalog.server.user)
            ))
        };
        Ok(rows.iter().map(finding).collect())
    }
}

fn locked() -> Finding {
    let message =
        "somebody keeps a table locked: the definitions of the target's tables were not compared";
    Finding::new(Severity::Note, "target-locked", "target", message)
        .with_fix("tidemark check once more")
}

fn unlogged(plan: &TablePlan, relation: &Relation) -> Option<Finding> {
    let is_only_there = relation.persistence == Persistence::Unlogged
        && plan.relation.persistence == Persistence::Permanent;
    let message = "it is unlogged on the target: a crash there empties it";
    is_only_there.then(|| {
        let object = relation.name.to_string();
        let fix = format!("on the target: ALTER TABLE {object} SET LOGGED");
        Finding::new(Severity::Warning, "target-unlogged", object, message).with_fix(fix)
    })
}

fn extra(table: &RelationName, from: &[Definition], to: &[Definition]) -> Vec<Finding> {
    let ours: Vec<&str> = from.iter().filter_map(unique).collect();
    let is_held =
        |wanted: &str| ours.iter().any(|unique| *unique == wanted || is_implied(unique, wanted));
    let checks: HashSet<&str> = from.iter().filter_map(check).collect();
    let exclusions: HashSet<&str> = from.iter().filter_map(exclusion).collect();
    let finding = |definition: &Definition| {
        let is_unique = unique(definition).is_some_and(|wanted| !is_held(wanted))
            || exclusion(definition).is_some_and(|text| !exclusions.contains(text));
        let is_check = check(definition).is_some_and(|text| !checks.contains(text));
        let code = match (is_unique, is_check) {
            (true, _) => "target-unique-extra",
            (_, true) => "target-check-extra",
            _ => return None,
        };
        let name = Ident(&definition.name);
        let message = format!(
            "the source does not have {name} of the target, which may refuse its rows: {}",
            definition.text
        );
        let fix = match definition.kind {
            DefinitionKind::Index => {
                format!("on the target: DROP INDEX {}.{name}", Ident(&table.schema))
            }
            _ => format!("on the target: ALTER TABLE {table} DROP CONSTRAINT {name}"),
        };
        Some(Finding::new(Severity::Warning, code, table.to_string(), message).with_fix(fix))
    };
    to.iter().filter_map(finding).collect()
}

/// What a unique key, constraint or index holds apart, as the server prints it: columns, and what else decides.
fn unique(definition: &Definition) -> Option<&str> {
    let text = definition.text.as_str();
    let held = match definition.kind {
        DefinitionKind::PrimaryKey => text.strip_prefix("PRIMARY KEY "),
        DefinitionKind::Constraint => text.strip_prefix("UNIQUE "),
        DefinitionKind::Index if text.starts_with("CREATE UNIQUE INDEX ") => {
            text.split_once(" USING btree ").map(|(_, held)| held)
        }
        _ => None,
    }?;
    Some(held.split(" DEFERRABLE").next().unwrap_or(held))
}

fn exclusion(definition: &Definition) -> Option<&str> {
    let is_one = definition.kind == DefinitionKind::Constraint;
    let text = definition.text.as_str();
    (is_one && text.starts_with("EXCLUDE ")).then_some(text)
}

/// One that is not validated refuses new rows all the same.
fn check(definition: &Definition) -> Option<&str> {
    let is_one = definition.kind == DefinitionKind::Constraint;
    let text = definition.text.as_str();
    let text = text.strip_suffix(" NOT VALID").unwrap_or(text);
    (is_one && text.starts_with("CHECK ") && !text.ends_with(" NOT ENFORCED")).then_some(text)
}

/// Rows that differ in the columns of `held` differ in those of `wanted`, if these are among them.
fn is_implied(held: &str, wanted: &str) -> bool {
    let columns = |text: &str| -> Option<HashSet<String>> {
        let inner = text.strip_prefix('(')?.strip_suffix(')')?;
        let is_plain = !inner.contains(['(', ')', '"']);
        is_plain.then(|| inner.split(", ").map(str::to_owned).collect())
    };
    matches!((columns(held), columns(wanted)), (Some(held), Some(wanted)) if held.is_subset(&wanted))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn definition(kind: DefinitionKind, text: &str) -> Definition {
        Definition { kind, name: "it".into(), text: text.into() }
    }

    #[test]
    fn what_the_source_holds_apart_no_index_of_the_target_refuses() {
        let table = RelationName::new("public", "t");
        let codes = |from: &[Definition], to: &str| {
            let to = [definition(DefinitionKind::Index, to)];
            extra(&table, from, &to).into_iter().map(|found| found.code).collect::<Vec<_>>()
        };
        let key = [definition(DefinitionKind::PrimaryKey, "PRIMARY KEY (id)")];
        let index = |held: &str| format!("CREATE UNIQUE INDEX ON public.t USING btree {held}");
        assert!(codes(&key, &index("(id)")).is_empty());
        assert!(codes(&key, &index("(id, day)")).is_empty());
        assert!(codes(&key, "CREATE INDEX ON public.t USING btree (note)").is_empty());
        assert_eq!(codes(&key, &index("(note)")), ["target-unique-extra"]);
        assert_eq!(codes(&key, &index("(lower(note))")), ["target-unique-extra"]);
        assert_eq!(codes(&key, &index("(note) WHERE (id > 1)")), ["target-unique-extra"]);
    }

    #[test]
    fn a_check_of_the_target_is_told_where_the_source_does_not_hold_it() {
        let table = RelationName::new("public", "t");
        let constraint = |text: &str| [definition(DefinitionKind::Constraint, text)];
        let found = |from: &str, to: &str| extra(&table, &constraint(from), &constraint(to)).len();
        assert_eq!(found("CHECK ((a > 0))", "CHECK ((a > 0)) NOT VALID"), 0);
        assert_eq!(found("CHECK ((a > 0))", "CHECK ((a > 1))"), 1);
        assert_eq!(found("CHECK ((a > 0))", "CHECK ((a > 1)) NOT ENFORCED"), 0);
        assert_eq!(found("UNIQUE (a)", "FOREIGN KEY (a) REFERENCES public.b(a)"), 0);
    }
}
