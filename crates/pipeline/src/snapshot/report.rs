//! What a finished snapshot says of its tables.
//!
//! **Invariant:** counts and digests are sums over the chunks that the target has committed.

use std::collections::HashSet;

use serde::{Deserialize, Serialize};
use tidemark_model::{ChunkResult, Lsn, RelationName, RowSum, TablePlan};
use tidemark_sink::{SnapshotStart, TableSummary};

use super::engine::Engine;
use crate::reconcile::ReconciledTable;

/// What a finished snapshot says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// The job.
    pub job: String,
    /// The run.
    pub run: String,
    /// The source's position that belongs to the snapshot.
    pub lsn: Lsn,
    /// Every table, largest first.
    pub tables: Vec<TableReport>,
    /// From start to durable.
    pub duration_ms: u64,
    /// Connections that read.
    pub readers: usize,
    /// Tables that were dropped between being chosen and being locked: not copied.
    pub gone: Vec<RelationName>,
    /// Where the target held rows already: what was moved of each table, instead of all of it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub reconciled: Vec<ReconciledTable>,
}

/// One table of the report.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableReport {
    /// Counts and digest.
    #[serde(flatten)]
    pub summary: TableSummary,
    /// The chunks' time added up, which is more than the wall time where several ran at once.
    pub duration_ms: u64,
    /// Number of chunks.
    pub chunks: u64,
    /// Number of leaves with rows.
    pub leaves: u64,
}

pub(super) fn report_of(engine: &Engine, start: &SnapshotStart, readers: usize) -> Report {
    let done = engine.done.lock().expect("no holder panics");
    let mut tables: Vec<TableReport> = start
        .tables
        .iter()
        .map(|plan| table_report(plan, done.get(&plan.relation.oid).map_or(&[], Vec::as_slice)))
        .collect();
    tables.sort_by_key(|table| std::cmp::Reverse(table.summary.bytes));
    Report {
        job: start.job.clone(),
        run: start.run.clone(),
        lsn: start.lsn,
        tables,
        duration_ms: 0,
        readers,
        gone: Vec::new(),
        reconciled: Vec::new(),
    }
}

/// What one table has come to.
pub(super) fn table_report(plan: &TablePlan, results: &[ChunkResult]) -> TableReport {
    let mut sum = RowSum::default();
    let mut replaced: Vec<(String, u64)> = Vec::new();
    let mut leaves = HashSet::new();
    for result in results {
        sum += result.sum;
        leaves.extend(result.leaves.iter().map(|leaf| leaf.leaf));
        for (column, count) in &result.replaced {
            match replaced.iter_mut().find(|(name, _)| name == column) {
                Some((_, sum)) => *sum += count,
                None => replaced.push((column.clone(), *count)),
            }
        }
    }
    let total = |count: fn(&ChunkResult) -> u64| results.iter().map(count).sum::<u64>();
    TableReport {
        summary: TableSummary {
            relation: plan.relation.name.clone(),
            rows_out: total(|result| result.rows_out),
            rows_in: total(|result| result.rows_in),
            bytes: total(|result| result.bytes),
            sum,
            replaced,
        },
        duration_ms: total(|result| result.duration_ms),
        chunks: results.len() as u64,
        leaves: leaves.len() as u64,
    }
}
