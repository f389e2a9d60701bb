//! Which ranges of which tables a snapshot reads, and which leaves their rows are summed in.
//!
//! **Invariant:** the ranges of a table cover all of its rows once, whatever grows or comes before the copy: the last one is
//! open (`source::plan_chunks`, `source::key_bounds`).

use std::collections::HashMap;

use tidemark_digest::LeafCut;
use tidemark_model::{ChunkRange, ChunkSpec, TablePlan};
use tidemark_sink::SnapshotStart;
use tidemark_source::Catalog;
use tidemark_wire::Client;

use crate::job::Job;

/// How tables are cut into leaves; those that are not are one leaf.
pub(super) async fn leaf_cuts(
    client: &Client,
    plans: &[TablePlan],
) -> tidemark_source::Result<HashMap<u32, LeafCut>> {
    let relations: Vec<_> = plans.iter().map(|plan| plan.relation.clone()).collect();
    let found = tidemark_source::leaf_bounds(client, &relations).await?;
    let cuts = found.into_iter().map(|(oid, (column, bounds))| (oid, LeafCut { column, bounds }));
    Ok(cuts.collect())
}

pub(super) async fn plan_chunks(
    job: &Job,
    client: &Client,
    catalog: &Catalog,
    plans: &[TablePlan],
) -> tidemark_source::Result<HashMap<u32, Vec<ChunkRange>>> {
    let version = catalog.server.version_num;
    let bytes = |plan: &TablePlan| plan.relation.heap_bytes + plan.relation.toast_bytes;
    let total = plans.iter().map(bytes).sum();
    let chunk_bytes = tidemark_source::even_chunk_bytes(total, job.readers, job.chunk_bytes);
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
