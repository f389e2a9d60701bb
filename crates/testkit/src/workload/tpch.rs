//! TPC-H by its real generator: eight tables with keys, indexes and foreign keys.
//!
//! **Invariant:** rows go in before keys and indexes, as a mover does too; two tables at a time.
//!
//! The generator is the `tpchgen` crate; rows go as CSV through `psql`'s `COPY FROM STDIN`.

use std::fmt::Display;
use std::io::{BufWriter, Write};
use std::process::Stdio;

use anyhow::{Context, Result, bail};
use tpchgen::csv::{
    CustomerCsv, LineItemCsv, NationCsv, OrderCsv, PartCsv, PartSuppCsv, RegionCsv, SupplierCsv,
};
use tpchgen::generators::{
    CustomerGenerator, LineItemGenerator, NationGenerator, OrderGenerator, PartGenerator,
    PartSuppGenerator, RegionGenerator, SupplierGenerator,
};

use crate::{Cluster, process};

/// The tables of TPC-H, biggest first.
pub const TABLES: [&str; 8] =
    ["lineitem", "orders", "partsupp", "part", "customer", "supplier", "nation", "region"];

/// The tables, keys and indexes.
pub const SCHEMA: &str = include_str!("../../../../testdata/demo/tpch.sql");

/// Loads all eight tables at a scale factor into the schema `public`, then makes keys, indexes and
/// foreign keys, then analyzes.
///
/// # Errors
/// When a table exists or a statement fails.
pub fn load(cluster: &Cluster, database: &str, scale: f64) -> Result<()> {
    cluster.psql(database, &statements(|s| s.starts_with("CREATE TABLE")))?;
    let (lineitem, others) = TABLES.split_first().context("there are tables")?;
    std::thread::scope(|scope| {
        let biggest = scope.spawn(|| load_table(cluster, database, lineitem, scale));
        for table in others {
            load_table(cluster, database, table, scale)?;
        }
        biggest.join().expect("the loader does not panic")
    })?;
    cluster.psql(
        database,
        &statements(|s| s.starts_with("ALTER TABLE") || s.starts_with("CREATE INDEX")),
    )?;
    cluster.psql(database, "VACUUM (ANALYZE)").map(drop)
}

/// Fills one of the tables, which must be there and empty.
///
/// # Errors
/// When there is no such table.
pub fn load_table(cluster: &Cluster, database: &str, table: &str, scale: f64) -> Result<()> {
    let rows: Box<dyn Iterator<Item = Box<dyn Display>>> = match table {
        "region" => rows(RegionGenerator::new(scale, 1, 1).iter().map(RegionCsv::new)),
        "nation" => rows(NationGenerator::new(scale, 1, 1).iter().map(NationCsv::new)),
        "supplier" => rows(SupplierGenerator::new(scale, 1, 1).iter().map(SupplierCsv::new)),
        "part" => rows(PartGenerator::new(scale, 1, 1).iter().map(PartCsv::new)),
        "partsupp" => rows(PartSuppGenerator::new(scale, 1, 1).iter().map(PartSuppCsv::new)),
        "customer" => rows(CustomerGenerator::new(scale, 1, 1).iter().map(CustomerCsv::new)),
        "orders" => rows(OrderGenerator::new(scale, 1, 1).iter().map(OrderCsv::new)),
        "lineitem" => rows(LineItemGenerator::new(scale, 1, 1).iter().map(LineItemCsv::new)),
        other => bail!("load TPC-H: there is no table {other}"),
    };
    let mut command = cluster.psql_command(database);
    command.arg("-c").arg(format!("COPY {table} FROM STDIN (FORMAT csv)"));
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().context("spawn psql")?;
    let mut input = BufWriter::with_capacity(1 << 18, child.stdin.take().context("take stdin")?);
    for row in rows {
        writeln!(input, "{row}").with_context(|| format!("write rows of {table} to psql"))?;
    }
    drop(input.into_inner().with_context(|| format!("write rows of {table} to psql"))?);
    let output = child.wait_with_output().context("wait for psql")?;
    if !output.status.success() {
        let stderr = process::tail(&String::from_utf8_lossy(&output.stderr), 5);
        bail!("load TPC-H table {table}: {stderr}");
    }
    Ok(())
}

fn rows<'a, T: Display + 'a>(
    rows: impl Iterator<Item = T> + 'a,
) -> Box<dyn Iterator<Item = Box<dyn Display + 'a>> + 'a> {
    Box::new(rows.map(|row| Box::new(row) as Box<dyn Display + 'a>))
}

/// The schema's statements that `wanted` takes, from the file that `tidemark demo` uses too.
fn statements(wanted: impl Fn(&str) -> bool) -> String {
    SCHEMA
        .split(";\n")
        .map(|statement| {
            statement.lines().filter(|line| !line.starts_with("--")).collect::<String>()
        })
        .filter(|statement| wanted(statement))
        .map(|statement| format!("{statement};\n"))
        .collect()
}
