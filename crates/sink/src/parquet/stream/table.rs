//! One followed table: its key, the form of its values, the schema of its change files.
//!
//! **Invariant:** the columns of a table have in change files the Arrow types and metadata that they have in the snapshot's,
//! except that each may be NULL.

use std::sync::Arc;

use arrow_schema::{DataType, Field, Fields, Schema, SchemaRef, TimeUnit};
use tidemark_columnar::{Program, map_column};
use tidemark_model::sql::Ident;
use tidemark_model::{
    Column, Finding, Generated, Key, RelationName, ReplicaIdentity, Severity, TablePlan,
};

use super::super::manifest::{self, CommitColumn};
use super::commits::Commits;
use super::forms::Form;
use crate::{Disposition, Error, NewColumn, Result};

/// What a change file has in front of the table's columns. `_old_key` only where the table has a key.
pub(super) const HEAD_COLUMNS: [&str; 7] =
    ["_op", "_commit_lsn", "_seq", "_commit_ts", "_xid", "_old_key", "_unchanged"];

/// A table as it is now.
#[derive(Debug)]
pub(super) struct StreamTable {
    pub(super) plan: TablePlan,
    /// Columns of the source that the lake has not yet.
    pub(super) to_come: Vec<Column>,
    /// Positions in `plan.columns`; empty for a table whose rows are told by all their columns.
    pub(super) key: Vec<usize>,
    /// One for each column of the plan.
    pub(super) forms: Vec<Form>,
    pub(super) program: Program,
    /// Of the key's columns alone.
    pub(super) key_program: Program,
    pub(super) schema: SchemaRef,
    defaults: Vec<(String, String)>,
}

/// Compiles all tables of a stream, with the columns that the lake has; others come by `add_columns`.
pub(super) fn compile(plans: &[TablePlan], commits: &Commits) -> Result<Vec<Arc<StreamTable>>> {
    let tables = plans.iter().map(|plan| {
        let known = commits.columns(&plan.relation.name);
        let mut plan = plan.clone();
        let (known, to_come) = std::mem::take(&mut plan.columns)
            .into_iter()
            .partition(|column| known.contains(&column.name));
        plan.columns = known;
        StreamTable::new(plan, to_come, Vec::new()).map(Arc::new)
    });
    tables.collect()
}

/// Refuses tables whose changes have no form in a lake.
pub(crate) fn refuse_unfollowable(plans: &[TablePlan]) -> Result<()> {
    plans
        .iter()
        .try_for_each(|plan| StreamTable::new(plan.clone(), Vec::new(), Vec::new()).map(drop))
}

impl StreamTable {
    fn new(plan: TablePlan, to_come: Vec<Column>, defaults: Vec<(String, String)>) -> Result<Self> {
        let name = &plan.relation.name;
        refuse_reserved_names(&plan)?;
        let key = key_of(&plan)?;
        let compile = |columns: &[Column]| {
            Program::compile(columns, plan.unrepresentable).map_err(|error| {
                Error::new(Disposition::Refused, "map the columns to Arrow").on(name).because(error)
            })
        };
        let may_be_null = |column: &Column| Column { is_nullable: true, ..column.clone() };
        let relaxed: Vec<_> = plan.columns.iter().map(may_be_null).collect();
        let program = compile(&relaxed)?;
        let key_columns: Vec<_> = key.iter().map(|index| relaxed[*index].clone()).collect();
        let key_program = compile(&key_columns)?;
        let forms = plan.columns.iter().zip(program.mappings());
        let forms = forms.map(|(column, mapping)| Form::of(column, mapping)).collect();
        let schema = Arc::new(schema_of(&plan, &key));
        Ok(Self { plan, to_come, key, forms, program, key_program, schema, defaults })
    }

    /// The same table with more columns; `None` if it has them all.
    pub(super) fn with_columns(&self, columns: &[NewColumn]) -> Result<Option<Self>> {
        let mut plan = self.plan.clone();
        let mut defaults = self.defaults.clone();
        let before = plan.columns.len();
        for NewColumn { column, default } in columns {
            if plan.columns.iter().any(|known| known.name == column.name) {
                continue;
            }
            if let Some(default) = default {
                self.refuse_default_without_key(column)?;
                defaults.push((column.name.clone(), default.clone()));
            }
            plan.columns.push(column.clone());
        }
        if plan.columns.len() == before {
            return Ok(None);
        }
        let mut to_come = self.to_come.clone();
        to_come.retain(|column| plan.columns.iter().all(|known| known.name != column.name));
        Self::new(plan, to_come, defaults).map(Some)
    }

    /// Rows that are told by all their columns would no longer be found: in older files they have not the default.
    fn refuse_default_without_key(&self, column: &Column) -> Result<()> {
        if !self.is_keyless() {
            return Ok(());
        }
        let attempt =
            format!("add column \"{}\" with a default to a table without a key", column.name);
        Err(Error::new(Disposition::Refused, attempt).on(self.name()).hint(
            "give the table a primary key, or leave it out of the job, and start again with a new snapshot",
        ))
    }

    pub(super) fn name(&self) -> &RelationName {
        &self.plan.relation.name
    }

    pub(super) fn is_keyless(&self) -> bool {
        self.key.is_empty()
    }

    /// All columns by name.
    pub(super) fn column_names(&self) -> Vec<String> {
        self.plan.columns.iter().map(|column| column.name.clone()).collect()
    }

    /// The key's columns by name.
    pub(super) fn key_names(&self) -> Vec<String> {
        self.key.iter().map(|index| self.plan.columns[*index].name.clone()).collect()
    }

    /// The table's columns as a commit shows them.
    pub(super) fn commit_columns(&self) -> Vec<CommitColumn> {
        let mut columns = manifest::commit_columns(&self.plan.columns, &self.program.schema());
        for column in &mut columns {
            let default = self.defaults.iter().find(|(name, _)| *name == column.name);
            column.default = default.map(|(_, default)| default.clone());
        }
        columns
    }

    /// The fields of `_old_key`.
    pub(super) fn key_fields(&self) -> Fields {
        key_fields(&self.plan, &self.key)
    }

    /// A column that the stream never carries cannot be followed.
    pub(super) fn may_be_missing(&self, column: usize) -> Result<()> {
        let column = &self.plan.columns[column];
        if column.generated == Generated::No {
            return Ok(());
        }
        let attempt =
            format!("follow the generated column \"{}\", which is not published", column.name);
        Err(Error::new(Disposition::Refused, attempt)
            .on(self.name())
            .hint("leave it out with `columns` of this table, and start again with a new snapshot"))
    }
}

/// The columns that tell a row of the stream apart, as positions in the plan's columns.
fn key_of(plan: &TablePlan) -> Result<Vec<usize>> {
    let relation = &plan.relation;
    // While a deferrable key is checked late, two rows may have it at once.
    let primary = relation.primary_key().filter(|key| !key.is_deferrable);
    let key: Option<&Key> = match &relation.replica_identity {
        ReplicaIdentity::Nothing => None,
        ReplicaIdentity::Default | ReplicaIdentity::Full => primary,
        ReplicaIdentity::Index(index) => relation.keys.iter().find(|key| key.index == *index),
    };
    let Some(key) = key else { return Ok(Vec::new()) };
    let mut positions = Vec::with_capacity(key.columns.len());
    for name in &key.columns {
        match plan.columns.iter().position(|column| column.name == *name) {
            Some(position) => positions.push(position),
            None if relation.replica_identity == ReplicaIdentity::Full => return Ok(Vec::new()),
            None => {
                let attempt = format!("follow a table without its key column \"{name}\"");
                return Err(Error::new(Disposition::Refused, attempt)
                    .on(&relation.name)
                    .hint("add the column to `columns` of this table"));
            }
        }
    }
    Ok(positions)
}

const RESERVED_NAME: &str = "leave it out with `columns` of this table, or rename it";

/// Columns whose names are those of the columns that change files have in front.
fn reserved_names(plan: &TablePlan) -> impl Iterator<Item = &Column> {
    // Readers such as DuckDB do not tell upper case from lower case.
    let is_ours = |name: &str| HEAD_COLUMNS.iter().any(|own| own.eq_ignore_ascii_case(name));
    plan.columns.iter().filter(move |column| is_ours(&column.name))
}

fn refuse_reserved_names(plan: &TablePlan) -> Result<()> {
    let Some(column) = reserved_names(plan).next() else { return Ok(()) };
    let attempt = format!("follow a table with a column \"{}\", a name of ours", column.name);
    Err(Error::new(Disposition::Refused, attempt).on(&plan.relation.name).hint(RESERVED_NAME))
}

/// What stands in the way of following this table into a lake.
pub fn check_followed(plan: &TablePlan) -> Vec<Finding> {
    let finding = |column: &Column| {
        let object = format!("{}.{}", plan.relation.name, Ident(&column.name));
        let message = "the name is one of those that change files have in front of the columns";
        Finding::new(Severity::Blocking, "reserved-column", object, message).with_fix(RESERVED_NAME)
    };
    reserved_names(plan).map(finding).collect()
}

fn column_field(plan: &TablePlan, column: &Column) -> Field {
    map_column(column, plan.unrepresentable).field().as_ref().clone().with_nullable(true)
}

fn key_fields(plan: &TablePlan, key: &[usize]) -> Fields {
    key.iter().map(|index| column_field(plan, &plan.columns[*index])).collect()
}

fn schema_of(plan: &TablePlan, key: &[usize]) -> Schema {
    let instant = DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()));
    let mut fields = vec![
        Field::new("_op", DataType::Utf8, false),
        Field::new("_commit_lsn", DataType::UInt64, false),
        Field::new("_seq", DataType::Int64, false),
        Field::new("_commit_ts", instant, false),
        Field::new("_xid", DataType::UInt64, false),
    ];
    if !key.is_empty() {
        fields.push(Field::new("_old_key", DataType::Struct(key_fields(plan, key)), true));
    }
    let item = Field::new_list_field(DataType::Utf8, false);
    fields.push(Field::new("_unchanged", DataType::List(Arc::new(item)), false));
    fields.extend(plan.columns.iter().map(|column| column_field(plan, column)));
    Schema::new(fields)
}
