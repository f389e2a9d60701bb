//! From the catalog and the user's words to one [`TablePlan`] per table.
//!
//! **Invariant:** every chosen table has exactly one plan; a column that the target computes itself is not moved to a
//! PostgreSQL target and is moved to a lake, where nothing would compute it.

use std::collections::{HashMap, HashSet};

use tidemark_model::{
    Column, Generated, Oid, Relation, RelationKind, RelationName, SelectColumn, TablePlan,
    Unrepresentable, Wire,
};
use tidemark_sink::{parquet::lake_plan, postgres::copy_form};
use tidemark_source::Catalog;

use crate::job::{Job, TableOptions, Target};
use crate::{Error, Kind, Result};

/// The plans of all chosen tables, in catalog order. `target_version` is the PostgreSQL target's, if it is one.
pub(crate) fn plan_tables(
    job: &Job,
    catalog: &Catalog,
    target_version: Option<u32>,
) -> Result<Vec<TablePlan>> {
    let relations = job.selection.apply(catalog)?;
    let mut special: HashMap<&RelationName, &TableOptions> =
        job.tables.iter().map(|options| (&options.name, options)).collect();
    let mut plans = Vec::with_capacity(relations.len());
    for relation in relations {
        let options = special.remove(&relation.name);
        plans.push(plan_table(job, catalog, relation, options, target_version)?);
    }
    if job.selection.is_part() && !special.is_empty() {
        let others = job.selection.whole().apply(catalog)?;
        special.retain(|name, _| !others.iter().any(|relation| relation.name == **name));
    }
    if let Some(name) = special.keys().next() {
        return Err(Error::new(
            Kind::Usage,
            format!("configure table {name}: it is not among the chosen tables"),
        )
        .hint("mend the name in [[table]], or choose the table in [select]; partitions are named each by itself"));
    }
    if plans.is_empty() {
        return Err(Error::new(Kind::Usage, "choose tables: the source database has none to move")
            .hint("check the database's name and the role's rights"));
    }
    Ok(plans)
}

fn plan_table(
    job: &Job,
    catalog: &Catalog,
    relation: Relation,
    options: Option<&TableOptions>,
    target_version: Option<u32>,
) -> Result<TablePlan> {
    let is_lake = matches!(job.target, Target::Lake(_));
    let wanted = options.and_then(|options| options.columns.as_ref());
    let columns = choose_columns(&relation, wanted, is_lake)?;
    let policy = options.map_or(Unrepresentable::Error, |options| options.unrepresentable);
    let (select, form) = match target_version {
        Some(target) => {
            (own_forms(&columns), copy_form(&columns, catalog.server.version_num, target))
        }
        None => lake_plan(&columns, policy),
    };
    Ok(TablePlan {
        relation,
        columns,
        select,
        form,
        filter: options.and_then(|options| options.filter.clone()),
        unrepresentable: policy,
    })
}

fn own_forms(columns: &[Column]) -> Vec<SelectColumn> {
    let select = |column: &Column| SelectColumn { name: column.name.clone(), wire: Wire::Own };
    columns.iter().map(select).collect()
}

fn choose_columns(
    relation: &Relation,
    wanted: Option<&Vec<String>>,
    is_lake: bool,
) -> Result<Vec<Column>> {
    if let Some(wanted) = wanted {
        let there: HashSet<&str> =
            relation.columns.iter().map(|column| column.name.as_str()).collect();
        if let Some(missing) = wanted.iter().find(|name| !there.contains(name.as_str())) {
            return Err(Error::new(
                Kind::Usage,
                format!("choose columns of {}: there is no column {missing:?}", relation.name),
            )
            .hint("mend columns = [...] of this [[table]]"));
        }
    }
    let is_chosen = |column: &&Column| {
        let is_named = wanted.is_none_or(|wanted| wanted.contains(&column.name));
        is_named && (is_lake || column.generated == Generated::No)
    };
    Ok(relation.columns.iter().filter(is_chosen).cloned().collect())
}

/// Tables that were not chosen, by their OIDs, so that they stay out of a created schema. A partitioned table stays in if one of
/// its partitions was chosen or if it has none at all.
pub(crate) fn excluded_relations(
    catalog: &Catalog,
    plans: &[TablePlan],
) -> HashMap<Oid, RelationName> {
    let chosen: HashSet<&RelationName> = plans.iter().map(|plan| &plan.relation.name).collect();
    let mut above: HashSet<&RelationName> = HashSet::new();
    let mut has_leaf: HashSet<&RelationName> = HashSet::new();
    for relation in &catalog.relations {
        for ancestor in catalog.ancestors(relation) {
            if relation.kind == RelationKind::Table {
                has_leaf.insert(ancestor);
            }
            if chosen.contains(&relation.name) {
                above.insert(ancestor);
            }
        }
    }
    let is_excluded = |relation: &&Relation| match relation.kind {
        RelationKind::Table => !chosen.contains(&relation.name),
        RelationKind::PartitionedTable => {
            has_leaf.contains(&relation.name) && !above.contains(&relation.name)
        }
        _ => false,
    };
    let excluded = catalog.relations.iter().filter(is_excluded);
    excluded.map(|relation| (relation.oid, relation.name.clone())).collect()
}

/// The partitioned tables above these, each once.
pub(crate) fn above(catalog: &Catalog, plans: &[TablePlan]) -> Vec<(Oid, RelationName)> {
    let names: HashSet<_> =
        plans.iter().flat_map(|plan| catalog.ancestors(&plan.relation)).collect();
    let relations = catalog.relations.iter().filter(|relation| names.contains(&relation.name));
    relations.map(|relation| (relation.oid, relation.name.clone())).collect()
}

/// The plans once more with the relations as they are under the snapshot's locks: sizes are read after the locks.
pub(crate) fn refresh(plans: &mut [TablePlan], locked: &[Relation]) {
    let by_oid: HashMap<Oid, &Relation> =
        locked.iter().map(|relation| (relation.oid, relation)).collect();
    for plan in plans {
        if let Some(relation) = by_oid.get(&plan.relation.oid) {
            plan.relation.heap_bytes = relation.heap_bytes;
            plan.relation.toast_bytes = relation.toast_bytes;
        }
    }
}
