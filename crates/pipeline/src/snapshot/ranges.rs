//! Which ranges of which tables a snapshot reads, and which leaves their rows are summed in.
//!
//! **Invariant:** the ranges of a table cover all of its rows once, whatever grows or comes before the copy: the last one is
//! open (`source::plan_chunks`, `source::key_bounds`).

use std::collections::HashMap;

use tidemark_digest::LeafBounds;
use tidemark_model::{ChunkRange, ChunkSpec, TablePlan};
use tidemark_sink::SnapshotStart;
use tidemark_source::Catalog;
use tidemark_wire::Client;

use crate::job::Job;

/// So many pieces for each reader, if they are not smaller than this.
const CHUNKS_PER_READER: u64 = 16;
const CHUNK_BYTES_MIN: u64 = 16 << 20;

pub(super) async fn leaf_bounds(
    client: &Client,
    plans: &[TablePlan],
) -> tidemark_source::Result<HashMap<u32, LeafBounds>> {
    let relations: Vec<_> = plans.iter().map(|plan| plan.relation.clone()).collect();
    let mut texts = tidemark_source::leaf_bounds(client, &relations).await?;
    let bounds = plans.iter().filter_map(|plan| {
        let (column_name, bounds) = texts.remove(&plan.relation.oid)?;
        let index = plan.columns.iter().position(|column| column.name == column_name)?;
        Some((
            plan.relation.oid,
            LeafBounds::from_text_bounds(&plan.columns[index], index, &bounds),
        ))
    });
    Ok(bounds.collect())
}

pub(super) async fn plan_chunks(
    job: &Job,
    client: &Client,
    catalog: &Catalog,
    plans: &[TablePlan],
) -> tidemark_source::Result<HashMap<u32, Vec<ChunkRange>>> {
    let version = catalog.server.version_num;
    let chunk_bytes = effective_chunk_bytes(job, plans);
    let mut chunks = HashMap::with_capacity(plans.len());
    for plan in plans {
        let relation = &plan.relation;
        let parts = tidemark_source::parts_of(relation, chunk_bytes);
        let ranges = if version < 140_000 && parts > 1 {
            tidemark_source::key_bounds(client, relation, parts).await?
        } else {
            tidemark_source::plan_chunks(relation, version, chunk_bytes)
        };
        chunks.insert(relation.oid, ranges);
    }
    Ok(chunks)
}

/// The user's size, or less where that many would leave readers without work while the last ones run: each reader gets at
/// least [`CHUNKS_PER_READER`], so that the tail is a small share of the run.
fn effective_chunk_bytes(job: &Job, plans: &[TablePlan]) -> u64 {
    let bytes = |plan: &TablePlan| plan.relation.heap_bytes + plan.relation.toast_bytes;
    let share =
        plans.iter().map(bytes).sum::<u64>() / (job.readers.max(1) as u64 * CHUNKS_PER_READER);
    share.clamp(CHUNK_BYTES_MIN.min(job.chunk_bytes), job.chunk_bytes)
}

pub(super) fn chunk_specs(
    start: &SnapshotStart,
    plan: &TablePlan,
    ranges: &[ChunkRange],
) -> Vec<ChunkSpec> {
    let spec = |(chunk, range): (usize, &ChunkRange)| ChunkSpec {
        job: start.job.clone(),
        run: start.run.clone(),
        snapshot_id: start.snapshot_id.clone(),
        relation_oid: plan.relation.oid,
        relation: plan.relation.name.clone(),
        chunk: chunk as u32,
        range: range.clone(),
        filter: plan.filter.clone(),
        columns: plan.select.clone(),
        form: plan.form,
        estimated_bytes: tidemark_source::estimated_bytes(&plan.relation, range, ranges.len()),
    };
    ranges.iter().enumerate().map(spec).collect()
}
