//! What databases are filled with: TPC-H, the schema zoo, the type matrix, hostile names, a live writer.
//!
//! **Invariant:** the same call makes the same rows, on every machine and every version; whatever is
//! random prints its seed.
//!
//! The SQL files live in `testdata/`; those under `testdata/demo/` are also what `tidemark demo` loads.

pub mod storm;
mod tpch;
mod writer;

use anyhow::{Context, Result};

use crate::Cluster;

pub use storm::{Storm, StormOptions, StormReport};
pub use tpch::{
    SCHEMA as TPCH_SCHEMA, TABLES as TPCH_TABLES, load as load_tpch, load_table as load_tpch_table,
};
pub use writer::{Writer, WriterOptions, WriterReport, check_ledger};

/// One small example of everything that a schema can hold, in the schema `zoo`.
pub const SCHEMA_ZOO: &str = include_str!("../../../testdata/demo/zoo.sql");
/// A table with row-level security, in the schema `secured`.
pub const ROW_SECURITY: &str = include_str!("../../../testdata/row_security.sql");
/// Tables whose names break whoever pastes text together, in the schema `hostile` and in their own.
pub const HOSTILE_NAMES: &str = include_str!("../../../testdata/hostile_names.sql");
/// Every type with its extreme values, in the schema `matrix`; it also changes the database's settings.
pub const TYPE_MATRIX: &str = include_str!("../../../testdata/type_matrix.sql");

/// Loads the schema zoo into a database.
///
/// # Errors
/// When a statement fails.
pub fn load_zoo(cluster: &Cluster, database: &str) -> Result<()> {
    cluster.psql(database, SCHEMA_ZOO).map(drop).context("load the schema zoo")
}

/// Loads the type matrix into a database.
///
/// # Errors
/// When a statement fails.
pub fn load_type_matrix(cluster: &Cluster, database: &str) -> Result<()> {
    cluster.psql(database, TYPE_MATRIX).map(drop).context("load the type matrix")
}

/// Loads the hostile names into a database.
///
/// # Errors
/// When a statement fails.
pub fn load_hostile_names(cluster: &Cluster, database: &str) -> Result<()> {
    cluster.psql(database, HOSTILE_NAMES).map(drop).context("load the hostile names")
}

/// Loads a table with row-level security into a database.
///
/// # Errors
/// When a statement fails.
pub fn load_row_security(cluster: &Cluster, database: &str) -> Result<()> {
    cluster.psql(database, ROW_SECURITY).map(drop).context("load row-level security")
}

/// Makes `count` empty tables `many.t1`, `many.t2`, .. with a key each, some thousand per second.
///
/// # Errors
/// When a statement fails.
pub fn load_many_tables(cluster: &Cluster, database: &str, count: usize) -> Result<()> {
    let mut script = String::from("CREATE SCHEMA many;\n");
    for first in (1..=count).step_by(1000) {
        // One transaction per thousand: each new table holds a lock until its end.
        let last = count.min(first + 999);
        script.push_str(&format!(
            "DO $do$ BEGIN FOR i IN {first}..{last} LOOP EXECUTE format('CREATE TABLE many.t%s \
             (id integer PRIMARY KEY, a text, b numeric)', i); END LOOP; END $do$;\n"
        ));
    }
    cluster.psql(database, &script).map(drop).context("make many tables")
}

/// Makes the table `wide_rows` with `rows` rows of `bytes` bytes that do not compress.
///
/// # Errors
/// When a statement fails.
pub fn load_wide_rows(cluster: &Cluster, database: &str, rows: u32, bytes: u32) -> Result<()> {
    let sql = format!(
        "CREATE TABLE wide_rows (id integer PRIMARY KEY, body bytea NOT NULL);
         ALTER TABLE wide_rows ALTER body SET STORAGE EXTERNAL;
         INSERT INTO wide_rows SELECT i, substring(decode(repeat(md5(i::text), {bytes} / 16 + 1), 'hex') FOR {bytes})
             FROM generate_series(1, {rows}) i;"
    );
    cluster.psql(database, &sql).map(drop).context("make wide rows")
}
