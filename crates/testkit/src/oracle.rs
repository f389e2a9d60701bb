//! The oracle: says whether two databases hold the same, by a way that shares nothing with the mover.
//!
//! **Invariant:** it reads only through `psql` and hashes with SHA-256; every setting that changes how
//! a value looks is pinned in its own session.
//!
//! ```text
//! compare = schema_diff + data_diff
//! schema_diff   every object's definition, as the server prints it
//! data_diff     rows and SHA-256 of `COPY (SELECT .. ORDER BY .. COLLATE "C") TO STDOUT` per table,
//!               and the state of every sequence
//! ```
//!
//! Not compared: privileges, owners, statistics, large objects, and the schema `tidemark`, which is the
//! mover's own on the target. Definitions are compared as text, so both servers should be of one major
//! version for [`schema_diff`]; [`data_diff`] works across versions.

mod data;
mod schema;

use std::fmt;

use anyhow::Result;

use crate::Cluster;

pub use data::{
    RowDifference, TableHash, data_diff, data_diff_counted, data_diff_of, row_difference,
    table_hash,
};
pub use schema::schema_diff;

/// Settings that change the text of values, pinned in each session.
pub(crate) const PINNED: &str = "SET client_min_messages = warning; SET search_path = ''; SET datestyle = 'ISO, YMD'; \
    SET intervalstyle = postgres; SET timezone = 'UTC'; SET extra_float_digits = 3; \
    SET bytea_output = hex; SET xmloption = content; SET lc_monetary = 'C'; SET row_security = off; \
    SET client_encoding = 'UTF8'; SET statement_timeout = 0; SET default_transaction_read_only = on;\n";

/// One thing that is not the same on both sides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// What it is: `table`, `column`, `index`, `rows`, `sequence`, ..
    pub kind: String,
    /// Its qualified name.
    pub object: String,
    /// What is on the source and what on the target.
    pub detail: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: {}", self.kind, self.object, self.detail)
    }
}

/// Compares everything: definitions, rows, sequences. Empty means that both hold the same.
///
/// # Errors
/// When one side cannot be read.
pub fn compare(source: (&Cluster, &str), target: (&Cluster, &str)) -> Result<Vec<Difference>> {
    let mut found = schema_diff(source, target)?;
    found.extend(data_diff(source, target)?);
    Ok(found)
}

/// Panics with the list of differences if there are any.
///
/// # Panics
/// When the two differ or cannot be read.
#[track_caller]
pub fn assert_same(source: (&Cluster, &str), target: (&Cluster, &str)) {
    let found = compare(source, target).expect("the oracle reads both sides");
    let lines: Vec<String> = found.iter().map(ToString::to_string).collect();
    assert!(found.is_empty(), "{} differences:\n{}", lines.len(), lines.join("\n"));
}
