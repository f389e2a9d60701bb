//! What is to be moved of one table, agreed before anything moves.

use serde::{Deserialize, Serialize};

use crate::{Column, Relation, SelectColumn, TupleForm};

/// What happens to a value that the lake type cannot hold (infinity, NaN in a decimal, 24:00:00, year 294276).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Unrepresentable {
    /// The job stops and names table and column.
    #[default]
    Error,
    /// It becomes NULL and is counted.
    Null,
    /// The whole column is written as PostgreSQL's text, so that nothing is lost.
    Text,
}

/// One table of the job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TablePlan {
    /// The relation on the source.
    pub relation: Relation,
    /// The columns that are moved, in attribute order: chosen by the user, generated ones left out where the target
    /// computes them itself.
    pub columns: Vec<Column>,
    /// The SELECT list, one entry per column.
    pub select: Vec<SelectColumn>,
    /// How COPY writes its rows.
    pub form: TupleForm,
    /// The user's row filter.
    pub filter: Option<String>,
    /// What happens to values without a lake form.
    pub unrepresentable: Unrepresentable,
}
