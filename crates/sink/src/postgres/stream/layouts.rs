//! Which description of a relation fits which table of the target, for as long as a stream is open.
//!
//! **Invariant:** a relation is known by its OID on the source, whatever it is called in a message; where rows go is decided
//! by the plan (`hazards.md` C45, F81, S2).

use std::collections::HashMap;
use std::sync::Arc;

use rustc_hash::FxHashMap;
use tidemark_model::{Oid, RelationName, StreamRelation, TablePlan};
use tidemark_wire::Client;

use super::table::{Layout, TargetTable, read_tables};
use crate::{Disposition, Error, Result};

/// The descriptions seen so far.
#[derive(Debug, Clone)]
pub(super) struct Layouts {
    plans: FxHashMap<Oid, Followed>,
}

#[derive(Debug, Clone)]
struct Followed {
    plan: Arc<TablePlan>,
    table: Arc<TargetTable>,
    /// Columns that the target has got since the plan was made.
    added: Vec<String>,
    layouts: Vec<(Arc<StreamRelation>, Arc<Layout>)>,
}

impl Layouts {
    /// Reads what the target has of these tables.
    ///
    /// # Errors
    /// A table is not there.
    pub(super) async fn read(client: &Client, plans: &[TablePlan]) -> Result<Self> {
        let names: Vec<&RelationName> = plans.iter().map(|plan| &plan.relation.name).collect();
        let tables = read_tables(client, &names).await?;
        let mut followed = FxHashMap::default();
        for plan in plans {
            let table =
                tables.get(&plan.relation.name).ok_or_else(|| missing(&plan.relation.name))?;
            let table = Arc::new(table.clone());
            let plan = Arc::new(plan.clone());
            let oid = plan.relation.oid;
            followed.insert(oid, Followed { plan, table, added: Vec::new(), layouts: Vec::new() });
        }
        Ok(Self { plans: followed })
    }

    /// The columns that the target has of each table.
    pub(super) fn columns(&self) -> HashMap<RelationName, Vec<String>> {
        let tables = self.plans.values().map(|followed| &followed.table);
        tables.map(|table| (table.name.clone(), table.column_names())).collect()
    }

    /// The layout of a description that [`Layouts::learn`] was shown.
    pub(super) fn of(&self, relation: &Arc<StreamRelation>) -> Result<&Arc<Layout>> {
        let followed = self.plans.get(&relation.oid).ok_or_else(|| unknown(relation))?;
        followed.find(relation).ok_or_else(|| unknown(relation))
    }

    /// Whether the description is known.
    pub(super) fn knows(&self, relation: &Arc<StreamRelation>) -> bool {
        self.plans.get(&relation.oid).is_some_and(|followed| followed.find(relation).is_some())
    }

    /// Fits a description to the target's table, reading its catalog again where it does not fit what is known.
    ///
    /// # Errors
    /// The relation is not followed, or the target lacks a column.
    pub(super) async fn learn(
        &mut self,
        client: &Client,
        relation: &Arc<StreamRelation>,
    ) -> Result<()> {
        let followed = self.plans.get_mut(&relation.oid).ok_or_else(|| unknown(relation))?;
        if followed.layout(relation).is_err() {
            followed.read_again(client).await?;
        }
        let layout = Arc::new(followed.layout(relation)?);
        followed.layouts.push((Arc::clone(relation), layout));
        Ok(())
    }

    /// Reads a table again after columns were added to it.
    pub(super) async fn added(
        &mut self,
        client: &Client,
        name: &RelationName,
        columns: impl Iterator<Item = String>,
    ) -> Result<()> {
        let followed =
            self.plans.values_mut().find(|followed| followed.plan.relation.name == *name);
        let Some(followed) = followed else { return Ok(()) };
        followed.added.extend(columns);
        followed.layouts.clear();
        followed.read_again(client).await
    }

    /// The tables that a TRUNCATE of these empties; those that are not followed stay out.
    pub(super) fn truncated(
        &self,
        relation: &Arc<StreamRelation>,
        with: &[Arc<StreamRelation>],
    ) -> Result<Vec<Arc<TargetTable>>> {
        let own = self.plans.get(&relation.oid).ok_or_else(|| unknown(relation))?;
        let others = with.iter().filter_map(|relation| self.plans.get(&relation.oid));
        let mut tables: Vec<Arc<TargetTable>> = Vec::new();
        for followed in std::iter::once(own).chain(others) {
            if !tables.iter().any(|table| table.name == followed.table.name) {
                tables.push(Arc::clone(&followed.table));
            }
        }
        Ok(tables)
    }
}

impl Followed {
    fn find(&self, relation: &Arc<StreamRelation>) -> Option<&Arc<Layout>> {
        let same = self.layouts.iter().find(|(known, _)| Arc::ptr_eq(known, relation));
        let equal = || self.layouts.iter().find(|(known, _)| known == relation);
        same.or_else(equal).map(|(_, layout)| layout)
    }

    fn layout(&self, relation: &StreamRelation) -> Result<Layout> {
        Layout::new(relation, &self.plan, &self.added, &self.table)
    }

    async fn read_again(&mut self, client: &Client) -> Result<()> {
        let name = &self.plan.relation.name;
        let mut tables = read_tables(client, &[name]).await?;
        self.table = Arc::new(tables.remove(name).ok_or_else(|| missing(name))?);
        Ok(())
    }
}

fn missing(name: &RelationName) -> Error {
    Error::new(Disposition::Refused, "follow a table that the target has not").on(name).hint(
        "create the table on the target as the source has it, or take a new snapshot (tidemark cleanup, then sync)",
    )
}

fn unknown(relation: &StreamRelation) -> Error {
    Error::new(Disposition::Internal, "apply changes of a relation that is not followed")
        .on(&relation.name)
}
