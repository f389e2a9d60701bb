//! What is different where single tables join a job that follows.
//!
//! **Invariant:** the run that the job has stays: nothing of the other tables is forgotten, on the target or in the ledger.
//! The read snapshot is taken after the tables were published, and the join point's position after the snapshot.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use tidemark_model::{JoinPoint, Lsn, Oid, Relation, SchemaObjects, TablePlan};
use tidemark_sink::Join;
use tidemark_source::{Catalog, Snapshot, head, identify};
use tidemark_wire::{Client, ConnectSpec};

use super::half::Halves;
use crate::plan::above;
use crate::{Error, Kind, Result};

/// Which tables join, and whom.
#[derive(Debug, Clone)]
pub(crate) struct Joining {
    /// The run that the job has on the target.
    pub(crate) run: String,
    /// Where the target stood before the tables were published.
    pub(crate) position: Lsn,
    /// The source's timeline then.
    pub(crate) timeline: u32,
    /// The tables.
    pub(crate) tables: HashSet<Oid>,
    /// Those that are followed already.
    pub(crate) followed: Vec<Relation>,
    /// The run is a first snapshot that died: these tables of it are whole, with so many rows.
    pub(crate) completes: Option<Completes>,
    /// Of these tables whole chunks may be there.
    pub(crate) halves: Halves,
}

/// What a first snapshot that died has left.
#[derive(Debug, Clone)]
pub(crate) struct Completes {
    /// The tables that are whole.
    pub(crate) whole: Arc<Vec<TablePlan>>,
    /// Their rows, as far as the ledger knows them.
    pub(crate) rows: HashMap<Oid, u64>,
}

impl Joining {
    /// Where the tables join, once their snapshot is held. A source that was promoted since the position was read is looked at
    /// anew.
    pub(super) async fn join(
        &self,
        (spec, client): (&ConnectSpec, &Client),
        snapshot: &Snapshot,
        catalog: &Catalog,
        plans: &[TablePlan],
        halves: Vec<Oid>,
    ) -> Result<Join> {
        let read = snapshot.read_snapshot().parse().map_err(|cause| {
            Error::new(Kind::Internal, "understand the source's read snapshot").because(cause)
        })?;
        let lsn = head(client).await?;
        let timeline = identify(spec).await?.timeline;
        if timeline != self.timeline {
            return Err(Error::promoted("let tables join", self.timeline, timeline));
        }
        let point = JoinPoint { snapshot: read, lsn, timeline: Some(timeline) };
        let above = above(catalog, plans);
        let followed = self.followed.iter().map(|table| (table.name.clone(), table.oid)).collect();
        let completes = self.completes.as_ref().map(|left| Arc::clone(&left.whole));
        let (run, position) = (self.run.clone(), self.position);
        Ok(Join { run, point, position, followed, above, completes, halves })
    }
}

/// Leaves what stands around the tables that join: of foreign keys also those that lead to them from followed ones, of
/// sequences only their own.
pub(super) fn restrict(
    objects: &mut SchemaObjects,
    joining: &Joining,
    catalog: &Catalog,
    plans: &[TablePlan],
) {
    let mut chosen: HashSet<_> = plans.iter().map(|plan| plan.relation.name.clone()).collect();
    objects
        .sequences
        .retain(|sequence| sequence.owner.as_ref().is_some_and(|owner| chosen.contains(owner)));
    chosen.extend(plans.iter().flat_map(|plan| catalog.ancestors(&plan.relation)).cloned());
    objects.indexes.retain(|index| chosen.contains(&index.table));
    objects
        .foreign_keys
        .retain(|key| chosen.contains(&key.table) || chosen.contains(&key.references));
    for relation in &joining.followed {
        chosen.insert(relation.name.clone());
        chosen.extend(catalog.ancestors(relation).into_iter().cloned());
    }
    objects
        .foreign_keys
        .retain(|key| chosen.contains(&key.table) && chosen.contains(&key.references));
    objects.materialized_views.clear();
}
