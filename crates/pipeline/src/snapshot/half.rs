//! Tables of which a first snapshot that died has left whole chunks: what is kept of them, and what is read.
//!
//! **Invariant:** a row that the read snapshot `S` shows is read exactly once or has stayed. What it shows in the blocks of
//! the remaining chunks is read with them. What it shows in the blocks of the kept chunks has stayed, unless its key is among
//! the keys that transactions touched between the two snapshots: the rows with these keys were taken out before, and are read
//! by key, in those blocks only. Whatever does not fit lets the table begin anew, and is said.
//!
//! ```text
//! dead run    chunks planned, kept in the journal before the first is copied                note_chunks
//! next start  file, columns, plan still the same                                            fitting
//!             stream received beyond S: the keys it has of the table                        stream/touched.rs
//!             kept chunks counted, keys taken out on the target                             go_on
//!             remaining chunks, and rows of these keys, as chunks of the new run            specs
//! ```
//!
//! `docs/adr/2026-11-21-a-half-copied-table-goes-on.md` proves it.

use std::collections::{HashMap, HashSet};
use std::fmt::Write as _;
use std::sync::{Arc, Mutex};

use serde::{Deserialize, Serialize};
use tidemark_ledger::{JournalEntry, Ledger, RelationRecord};
use tidemark_model::sql::{Ident, Literal};
use tidemark_model::{
    ChunkId, ChunkRange, ChunkSpec, Oid, Relation, RelationName, ReplicaIdentity, SelectColumn,
    TablePlan, TupleForm,
};
use tidemark_sink::{Disposition, KeptChunk, Sink, SnapshotStart, TouchedKeys};
use tidemark_source::{PublicationState, Snapshot, shapes};
use tidemark_wire::Client;
use tokio::sync::oneshot;

use super::engine::blocking;
use super::ranges::chunk_specs;
use super::{Run, joining};
use crate::job::Target;
use crate::{Error, Result};

/// What the journal calls the chunks that a first snapshot has planned for a table.
const CHUNKS_EVENT: &str = "chunks";
/// What the journal calls tables that are to be copied from their first chunk.
const ANEW_EVENT: &str = "anew";
/// One row in so many may have been touched.
const TOUCHED_SHARE: u64 = 20;
/// So many keys are read at a time.
const KEYS_PER_CHUNK: usize = 1000;
/// Types of key columns: their equality is one of `pg_catalog`, and the same on both sides (where a collation does not make
/// different texts equal, as only those of users can).
const KEY_TYPES: [&str; 12] = [
    "int2",
    "int4",
    "int8",
    "text",
    "varchar",
    "bpchar",
    "uuid",
    "date",
    "timestamp",
    "timestamptz",
    "numeric",
    "bytea",
];
/// Whose collations tell all texts apart that are not the same bytes.
const PLAIN_COLLATIONS: &str = "pg_catalog.";

/// What is kept in the journal of a table of several chunks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ChunkPlan {
    run: String,
    oid: Oid,
    /// As [`shapes`] gives it.
    shape: String,
    select: Vec<SelectColumn>,
    form: TupleForm,
    ranges: Vec<ChunkRange>,
}

/// A table that may go on by chunk.
#[derive(Debug, Clone)]
pub(crate) struct Half {
    pub(crate) chunks: ChunkPlan,
    /// How it was published all the time.
    pub(crate) published: PublicationState,
}

impl ChunkPlan {
    pub(crate) fn oid(&self) -> Oid {
        self.oid
    }
}

impl Half {
    pub(crate) fn oid(&self) -> Oid {
        self.chunks.oid
    }
}

/// The keys that the stream has of each table, and how many; or why the table may not go on.
pub(crate) type Touched = HashMap<Oid, Result<(u64, TouchedKeys), String>>;

/// The tables that may go on, and where the keys come from that were touched.
#[derive(Debug, Clone, Default)]
pub(crate) struct Halves {
    pub(crate) tables: Vec<Half>,
    pub(crate) touched: Arc<Mutex<Option<oneshot::Receiver<Touched>>>>,
}

/// What is left to do of a table that goes on.
pub(super) struct Rest {
    ranges: Vec<ChunkRange>,
    kept: HashSet<ChunkId>,
    /// Conditions that rows of the kept blocks are read by.
    conditions: Vec<String>,
}

/// The tables of this run that may go on by chunk, as far as the ledger knows.
pub(crate) fn planned(journal: Vec<JournalEntry>, run: &str) -> Vec<ChunkPlan> {
    let mut plans: HashMap<Oid, ChunkPlan> = HashMap::new();
    for entry in journal {
        if entry.detail["run"] != run {
            continue;
        }
        match entry.event.as_str() {
            CHUNKS_EVENT => {
                if let Ok(plan) = serde_json::from_value::<ChunkPlan>(entry.detail) {
                    plans.insert(plan.oid, plan);
                }
            }
            ANEW_EVENT => {
                let oids: Vec<Oid> =
                    serde_json::from_value(entry.detail["tables"].clone()).unwrap_or_default();
                plans.retain(|oid, _| !oids.contains(oid));
            }
            _ => {}
        }
    }
    plans.into_values().collect()
}

/// How many of them are half copied, as far as the ledger knows.
pub(crate) fn half_copied(
    journal: Vec<JournalEntry>,
    relations: &[RelationRecord],
    run: &str,
) -> usize {
    let is_begun = |plan: &ChunkPlan| {
        let mut known = relations.iter().filter(|known| known.plan.oid == plan.oid);
        known.any(|known| known.chunks_done > 0 && !known.is_finished)
    };
    planned(journal, run).iter().filter(|plan| is_begun(plan)).count()
}

/// Notes that these tables of the run do not go on by chunk any more, whatever the target has of them.
pub(crate) async fn note_anew(ledger: &Arc<Ledger>, run: &str, tables: Vec<Oid>) -> Result<()> {
    if tables.is_empty() {
        return Ok(());
    }
    let ledger = Arc::clone(ledger);
    let detail = serde_json::json!({ "run": run, "tables": tables });
    blocking(move || ledger.write_journal(ANEW_EVENT, &detail)).await??;
    Ok(())
}

/// The columns that the stream tells rows of a table by, where rows can be read by them.
pub(crate) fn touched_key(relation: &Relation) -> Option<&[String]> {
    let key = match &relation.replica_identity {
        ReplicaIdentity::Default => relation.primary_key().filter(|key| !key.is_deferrable),
        ReplicaIdentity::Full => relation.primary_key(),
        ReplicaIdentity::Index(name) => relation.keys.iter().find(|key| key.index == *name),
        ReplicaIdentity::Nothing => None,
    }?;
    let is_plain = |name: &String| {
        let column = relation.columns.iter().find(|column| column.name == *name);
        column.is_some_and(|column| {
            let is_plain = KEY_TYPES.iter().any(|known| column.data_type.is_builtin(known));
            let collation = column.collation.as_deref().unwrap_or(PLAIN_COLLATIONS);
            !column.is_nullable && is_plain && collation.starts_with(PLAIN_COLLATIONS)
        })
    };
    key.columns.iter().all(is_plain).then_some(&key.columns)
}

/// Whether the rows that are copied have such a key.
fn has_key(plan: &TablePlan) -> bool {
    let is_copied = |name: &String| plan.columns.iter().any(|column| column.name == *name);
    touched_key(&plan.relation).is_some_and(|key| key.iter().all(is_copied))
}

impl Run<'_> {
    /// Keeps the chunks of large tables, so that a later process can go on with them. Only a first snapshot that a stream
    /// follows, into tables that it makes, can be gone on with.
    pub(super) async fn note_chunks(
        &self,
        client: &Client,
        (run, plans): (&str, &[TablePlan]),
        chunks: &HashMap<Oid, Vec<ChunkRange>>,
    ) -> Result<()> {
        let is_first = self.continuation.is_some() && self.joining().is_none();
        let is_made = matches!(&self.job.target, Target::Postgres(target)
            if target.schema == tidemark_sink::postgres::SchemaMode::Create);
        if !is_first || !is_made {
            return Ok(());
        }
        let is_large =
            |plan: &&TablePlan| plan.filter.is_none() && is_by_blocks(&chunks[&plan.relation.oid]);
        let large: Vec<&TablePlan> = plans.iter().filter(is_large).collect();
        if large.is_empty() {
            return Ok(());
        }
        let oids: Vec<Oid> = large.iter().map(|plan| plan.relation.oid).collect();
        let mut shapes = shapes(client, &oids).await?;
        let noted = large.into_iter().filter_map(|plan| {
            let oid = plan.relation.oid;
            Some(ChunkPlan {
                run: run.to_owned(),
                oid,
                shape: shapes.remove(&oid)?,
                select: plan.select.clone(),
                form: plan.form,
                ranges: chunks[&oid].clone(),
            })
        });
        let noted: Vec<ChunkPlan> = noted.collect();
        let ledger = Arc::clone(self.ledger);
        blocking(move || {
            for plan in noted {
                let detail = serde_json::to_value(&plan).expect("a plan is plain data");
                ledger.write_journal(CHUNKS_EVENT, &detail)?;
            }
            Ok::<_, tidemark_ledger::Error>(())
        })
        .await??;
        Ok(())
    }

    /// The tables that are still what the dead run has planned to copy. They are locked.
    pub(super) async fn fitting(&self, client: &Client, plans: &[TablePlan]) -> Result<Vec<Oid>> {
        let halves = self.joining().map_or(&[][..], |joining| joining.halves.tables.as_slice());
        let oids: Vec<Oid> = halves.iter().map(Half::oid).collect();
        if oids.is_empty() {
            return Ok(oids);
        }
        let shapes = shapes(client, &oids).await?;
        let mut fitting = Vec::new();
        for half in halves {
            let oid = half.oid();
            let Some(plan) = plans.iter().find(|plan| plan.relation.oid == oid) else { continue };
            let because = match shapes.get(&oid) {
                _ if plan.filter.is_some() || !has_key(plan) => {
                    "it has no key that its rows can be read by"
                }
                Some(shape) if *shape != half.chunks.shape => {
                    "it was rewritten, truncated or altered meanwhile"
                }
                Some(_) if (&plan.select, plan.form) != (&half.chunks.select, half.chunks.form) => {
                    "its columns are copied in another way now"
                }
                Some(_) => {
                    fitting.push(oid);
                    continue;
                }
                None => continue,
            };
            say_anew(&plan.relation.name, because);
        }
        Ok(fitting)
    }

    /// Decides what becomes of half-copied tables, and takes the rows out of them that are to be read again.
    pub(super) async fn go_on(
        &self,
        start: &SnapshotStart,
        sink: &dyn Sink,
        snapshot: &Snapshot,
    ) -> Result<HashMap<Oid, Rest>> {
        let mut rests = HashMap::new();
        let Some(joining::Joining { halves, .. }) = self.joining() else { return Ok(rests) };
        let oids = start.joins.as_ref().map_or(&[][..], |join| join.halves.as_slice());
        if oids.is_empty() {
            return Ok(rests);
        }
        let asked = halves.touched.lock().expect("no holder panics").take();
        let mut touched = match asked {
            None => Touched::new(),
            Some(asked) => tokio::select! {
                biased;
                () = self.stop.cancelled() => return Err(Error::interrupted()),
                lost = snapshot.watch() => return Err(lost.into()),
                touched = asked => touched.unwrap_or_default(),
            },
        };
        for half in halves.tables.iter().filter(|half| oids.contains(&half.oid())) {
            let oid = half.oid();
            let kept = sink.kept_chunks(oid);
            let plan = start.tables.iter().find(|plan| plan.relation.oid == oid);
            let Some(plan) = plan else { continue };
            let name = &plan.relation.name;
            if kept.is_empty() {
                say_anew(name, "the target has no chunks of it that may stay");
                continue;
            }
            let keys =
                touched.remove(&oid).unwrap_or_else(|| Err("the stream was not read".into()));
            match keys.and_then(|keys| few(keys, &kept, half)) {
                Ok(keys) => match rest(half, sink, (plan, &kept), keys).await {
                    Ok(rest) => drop(rests.insert(oid, rest)),
                    // Temporary tables may be forbidden there.
                    Err(refused) if refused.disposition == Disposition::Refused => {
                        say_anew(name, &refused.to_string());
                        sink.begin_table_anew(name).await?;
                    }
                    Err(error) => return Err(error.into()),
                },
                Err(because) => {
                    say_anew(name, &because);
                    sink.begin_table_anew(name).await?;
                }
            }
        }
        Ok(rests)
    }
}

/// Says why a table does not go on by chunk.
pub(crate) fn say_anew(table: &RelationName, because: &str) {
    tracing::info!(%table, because, "a half-copied table is copied from its first chunk");
}

/// Several chunks, by blocks.
fn is_by_blocks(ranges: &[ChunkRange]) -> bool {
    ranges.len() > 1 && ranges.iter().all(|range| matches!(range, ChunkRange::Blocks { .. }))
}

/// The keys, if they are few beside the rows of the table.
fn few(keys: (u64, TouchedKeys), kept: &[KeptChunk], half: &Half) -> Result<TouchedKeys, String> {
    let (number, keys) = keys;
    let rows: u64 = kept.iter().map(|chunk| chunk.rows).sum();
    let all = rows / kept.len() as u64 * half.chunks.ranges.len() as u64;
    if number.saturating_mul(TOUCHED_SHARE) > all {
        return Err(format!("{number} of about {all} rows have changed since"));
    }
    Ok(keys)
}

/// Takes the rows out that were touched, and says how those are read that are there now.
async fn rest(
    half: &Half,
    sink: &dyn Sink,
    (plan, kept): (&TablePlan, &[KeptChunk]),
    keys: TouchedKeys,
) -> tidemark_sink::Result<Rest> {
    let name = &plan.relation.name;
    let columns = keys.columns.clone();
    let values = match keys.rows.is_empty() {
        true => Vec::new(),
        false => sink.take_out(name, keys).await?,
    };
    let ranges = half.chunks.ranges.clone();
    let chunks: HashSet<ChunkId> = kept.iter().map(|chunk| chunk.chunk).collect();
    tracing::info!(
        table = %name,
        "a half-copied table goes on: {} of {} chunks ({} rows) stay, {} keys are read again",
        chunks.len(),
        ranges.len(),
        kept.iter().map(|chunk| chunk.rows).sum::<u64>(),
        values.len()
    );
    let blocks = blocks_of(&ranges, &chunks);
    let conditions = values
        .chunks(KEYS_PER_CHUNK)
        .map(|values| format!("({blocks}) AND {}", with_keys(&plan.relation, &columns, values)));
    Ok(Rest { conditions: conditions.collect(), ranges, kept: chunks })
}

/// Rows that stand in the blocks of these chunks.
fn blocks_of(ranges: &[ChunkRange], kept: &HashSet<ChunkId>) -> String {
    let mut runs: Vec<(u32, Option<u32>)> = Vec::new();
    for (chunk, range) in ranges.iter().enumerate() {
        let ChunkRange::Blocks { from, to } = range else { continue };
        if !ChunkId::try_from(chunk).is_ok_and(|chunk| kept.contains(&chunk)) {
            continue;
        }
        match runs.last_mut() {
            Some((_, end)) if *end == Some(*from) => *end = *to,
            _ => runs.push((*from, *to)),
        }
    }
    let conditions = runs.into_iter().map(|(from, to)| {
        let mut condition = format!("ctid OPERATOR(pg_catalog.>=) '({from},0)'::pg_catalog.tid");
        if let Some(to) = to {
            write!(condition, " AND ctid OPERATOR(pg_catalog.<) '({to},0)'::pg_catalog.tid").ok();
        }
        condition
    });
    conditions.collect::<Vec<_>>().join(" OR ")
}

/// Rows that have one of these keys.
fn with_keys(relation: &Relation, columns: &[String], keys: &[Vec<String>]) -> String {
    let type_of = |name: &String| {
        let column = relation.columns.iter().find(|column| column.name == *name);
        column.map_or("text", |column| column.data_type.name.as_str())
    };
    let names: Vec<String> = columns.iter().map(|name| Ident(name).to_string()).collect();
    let rows = keys.iter().map(|key| {
        let values = key.iter().zip(columns).map(|(value, name)| {
            format!("{}::pg_catalog.{}", Literal(value), Ident(type_of(name)))
        });
        format!("({})", values.collect::<Vec<_>>().join(", "))
    });
    format!("({}) IN (VALUES {})", names.join(", "), rows.collect::<Vec<_>>().join(", "))
}

/// The chunks of a table that are to be read.
pub(super) fn specs(
    start: &SnapshotStart,
    plan: &TablePlan,
    ranges: &[ChunkRange],
    rest: Option<&Rest>,
) -> Vec<ChunkSpec> {
    let Some(rest) = rest else { return chunk_specs(start, plan, ranges) };
    let mut specs = chunk_specs(start, plan, &rest.ranges);
    let Some(last) = specs.last().cloned() else { return specs };
    specs.retain(|spec| !rest.kept.contains(&spec.chunk));
    // A table is finished with the last of its chunks: there is one.
    let nothing = (specs.is_empty() && rest.conditions.is_empty()).then(|| "false".to_owned());
    let numbers = last.chunk + 1..;
    let by_key = rest.conditions.iter().cloned().chain(nothing).zip(numbers);
    specs.extend(by_key.map(|(condition, chunk)| ChunkSpec {
        chunk,
        range: ChunkRange::Whole,
        filter: Some(condition),
        estimated_bytes: 0,
        ..last.clone()
    }));
    specs
}

#[cfg(test)]
mod tests;
