//! What is known of the leaves of a job without reading them: the source as it was copied, both sides as they were proven,
//! and which leaves the stream has touched since.
//!
//! **Invariant:** what is known counts only for rows of the same shape (the same files and columns on both sides, hashed in
//! the same way under the job's key) and for leaves that the stream has left alone. The marks are read after both sides have
//! met: what was applied before is marked by then, and a mark too many only costs a reading.

use std::collections::HashMap;
use std::path::PathBuf;

use tidemark_digest::{CANONICAL_VERSION, DigestKey, LeafBounds, LeafCut, shape_of};
use tidemark_ledger::{
    CopyId, LeafRecord, LedgerReader, NewProof, ProofRecord, Proofs, ProvenLeaf, now_ms,
};
use tidemark_model::{Column, Generated, LeafSum, Lsn, Oid, Relation, RowSum, TupleForm};
use tidemark_pipeline::{Job, Result, blocking};
use tidemark_source::{Catalog, shapes};

use crate::pair::{Bounds, Pair};
use crate::run::Run;
use crate::state::{Before, State};
use crate::{Reads, Which};

/// The ledger of a job, as far as it is about leaves.
pub(crate) struct Known {
    pub(crate) key: DigestKey,
    state_dir: PathBuf,
    copied_at: Lsn,
    records: HashMap<Oid, LeafRecord>,
}

/// What the sums of a pair are comparable with.
struct Shape {
    copy: CopyId,
    /// The source's, as the copy notes it.
    of_source: String,
    /// Of both sides and of how they are hashed.
    scheme: String,
}

/// The shapes of the pairs at one point; none where nothing is known or to be kept of a pair.
pub(crate) struct Shapes(Vec<Option<Shape>>);

impl Known {
    /// What the job's ledger knows; none where there is no ledger, or it is of another source.
    pub(crate) async fn of(job: &Job, source: &Catalog) -> Option<Self> {
        let (state_dir, name) = (job.state_dir.clone(), job.name.clone());
        let server = (source.server.system_identifier, source.server.database.clone());
        let read = move || {
            let ledger = LedgerReader::open(&state_dir)?;
            let run = ledger.run()?.filter(|run| {
                let is_same = (run.system_identifier, run.database.clone()) == server;
                is_same && run.job == name && run.canonical_version == CANONICAL_VERSION
            });
            let Some(run) = run else { return Ok(None) };
            let Ok(key) = DigestKey::from_hex(&run.digest_key) else { return Ok(None) };
            let records = by_oid(ledger.leaf_records()?);
            Ok(Some(Self { key, state_dir, copied_at: run.snapshot_lsn, records }))
        };
        let read = blocking(read).await;
        read.unwrap_or(Ok(None)).unwrap_or_else(|error: tidemark_ledger::Error| {
            tracing::debug!(%error, "the job's ledger tells nothing of its leaves");
            None
        })
    }

    /// Cuts tables as the ledger has them cut. Where everything is read, those whose leaves their rows have outgrown stay as the
    /// statistics of the source have them by now.
    pub(crate) fn cut(&self, source: &Catalog, reads: Reads, bounds: &mut Bounds) {
        for (oid, record) in &self.records {
            let Some(cut) = cut_of(record) else { continue };
            let relation = source.relations.iter().find(|relation| relation.oid == *oid);
            let is_outgrown = |relation: &Relation| {
                let now = bounds.get(oid);
                now.is_some_and(|(_, now)| has_outgrown(&cut.among(&relation.columns), now))
            };
            if reads != Reads::All || !relation.is_some_and(is_outgrown) {
                bounds.insert(*oid, (cut.column, cut.bounds));
            }
        }
    }

    /// Writes down how those are cut that the ledger has cut in another way.
    pub(crate) async fn cut_anew(&self, pairs: &[Pair]) -> Result<()> {
        let new = pairs.iter().filter_map(|pair| {
            let record = self.records.get(&pair.source.oid())?;
            let cut = pair.leaves.cut().filter(|cut| cut_of(record).as_ref() != Some(cut))?;
            Some((record.copy, serde_json::to_string(&Some(cut)).expect("bounds are plain data")))
        });
        let new: Vec<_> = new.collect();
        if new.is_empty() {
            return Ok(());
        }
        self.write(move |proofs| proofs.cut(&new)).await
    }

    /// The shapes of the pairs, which both sides' locks keep as they are.
    pub(crate) async fn shapes(&self, run: &Run<'_>) -> Result<Shapes> {
        let pairs = &run.paired.pairs;
        let mut both = Vec::new();
        for side in [&run.source, &run.target] {
            let oids: Vec<Oid> = pairs.iter().map(|pair| pair.half(side.which).oid()).collect();
            let client = side.spec().connect().await.map_err(|error| side.of(error))?;
            both.push(shapes(&client, &oids).await.map_err(|error| side.of(error))?);
        }
        let shape = |pair: &Pair| {
            let copy = self.records.get(&pair.source.oid())?.copy;
            let of = |which: Which| {
                let half = pair.half(which);
                let file = both[which as usize].get(&half.oid())?;
                Some(shape_of(file, &half.columns))
            };
            let (of_source, of_target) = (of(Which::Source)?, of(Which::Target)?);
            let is_stable = |column: &Column| column.generated != Generated::Virtual;
            let halves = [&pair.source, &pair.target];
            if !halves.into_iter().flat_map(|half| &half.columns).all(is_stable) {
                // Its expression can be changed without a trace in the rows.
                return None;
            }
            let cut = pair.leaves.cut().map_or_else(String::new, |cut| cut.id());
            let scheme = format!("{of_source} | {of_target} | {} | {cut}", pair.hashed_as());
            Some(Shape { copy, of_source, scheme })
        };
        Ok(Shapes(pairs.iter().map(shape).collect()))
    }

    /// Notes in each state what is known of its leaves, and forgets of what was found by an earlier round what the stream has
    /// touched since.
    pub(crate) async fn recall(
        &mut self,
        run: &Run<'_>,
        shapes: &Shapes,
        states: &mut [State],
    ) -> Result<()> {
        let reads = run.request.reads;
        self.records = {
            let state_dir = self.state_dir.clone();
            let read = move || LedgerReader::open(&state_dir)?.leaf_records();
            by_oid(blocking(read).await??)
        };
        for ((pair, state), shape) in run.paired.pairs.iter().zip(states).zip(&shapes.0) {
            let record = self.records.get(&pair.source.oid());
            // Another verification may have cut the table anew meanwhile.
            let known = shape.as_ref().zip(record).filter(|(shape, record)| {
                shape.copy == record.copy && cut_of(record) == pair.leaves.cut()
            });
            state.is_kept = known.is_some();
            match known {
                Some((shape, record)) => self.recall_one(pair, (shape, record), state, reads)?,
                None => state.before.fill(Before::Nothing),
            }
        }
        Ok(())
    }

    fn recall_one(
        &self,
        pair: &Pair,
        (shape, record): (&Shape, &LeafRecord),
        state: &mut State,
        reads: Reads,
    ) -> Result<()> {
        forget_touched(&mut state.before, record);
        if reads == Reads::All || state.was_read() {
            return Ok(());
        }
        let copied = record.copied.as_ref().filter(|copied| copied.shape == shape.of_source);
        let copied = match copied {
            Some(copied) if pair.is_hashed_as(&copied.raw_scheme)? => Some(copied),
            _ => None,
        };
        if let Some(copied) = copied {
            let sums: HashMap<u32, RowSum> =
                copied.leaves.iter().map(|found| (found.leaf, found.sum)).collect();
            for leaf in 0..state.before.len() as u32 {
                let sum = sums.get(&leaf).copied().unwrap_or_default();
                if record.is_untouched(leaf, None) {
                    state.before[leaf as usize] = Before::Copied(sum, self.copied_at);
                }
            }
        }
        let proof = record.proof.as_ref().filter(|proof| proof.scheme == shape.scheme);
        for ProvenLeaf { lsn, sum } in proof.iter().flat_map(|proof| &proof.leaves) {
            if record.is_untouched(sum.leaf, Some(*lsn)) {
                state.before[sum.leaf as usize] = Before::Proven([sum.sum; 2], *lsn);
            }
        }
        Ok(())
    }

    /// Keeps what was proven of these pairs, with the position at which all of one is the same, if it is.
    pub(crate) async fn record(
        &mut self,
        pairs: &[Pair],
        shapes: &Shapes,
        states: impl Iterator<Item = (usize, &State, Option<Lsn>)>,
    ) -> Result<()> {
        let records = &mut self.records;
        let proof = |(number, state, whole): (usize, &State, Option<Lsn>)| {
            let shape = shapes.0[number].as_ref().filter(|_| state.is_kept)?;
            let leaves = (0..).zip(&state.before).filter_map(|(leaf, before)| match before {
                Before::Proven([one, other], lsn) if one == other => {
                    Some(ProvenLeaf { lsn: *lsn, sum: LeafSum { leaf, sum: *one } })
                }
                _ => None,
            });
            let leaves = leaves.collect();
            let record = records.get_mut(&pairs[number].source.oid())?;
            let last = record.proof.take().and_then(|proof| proof.last);
            let last = whole.map(|lsn| (lsn, now_ms())).or(last);
            let scheme = shape.scheme.clone();
            record.proof = Some(ProofRecord { scheme: scheme.clone(), last, leaves: Vec::new() });
            Some(NewProof { copy: shape.copy, scheme, leaves, whole })
        };
        let proofs: Vec<NewProof> = states.filter_map(proof).collect();
        self.write(move |ledger| ledger.record(&proofs)).await
    }

    /// Position and time of the last verification that found a table the same.
    pub(crate) fn last_proven(&self, pair: &Pair) -> Option<(Lsn, i64)> {
        self.records.get(&pair.source.oid())?.proof.as_ref()?.last
    }

    async fn write(
        &self,
        write: impl FnOnce(&Proofs) -> tidemark_ledger::Result<()> + Send + 'static,
    ) -> Result<()> {
        let state_dir = self.state_dir.clone();
        Ok(blocking(move || write(&Proofs::open(&state_dir)?)).await??)
    }
}

/// Of what an earlier round has found only that is known which the stream has left alone since.
fn forget_touched(before: &mut [Before], record: &LeafRecord) {
    for (leaf, before) in (0..).zip(before) {
        if before.lsn().is_some_and(|lsn| !record.is_untouched(leaf, Some(lsn))) {
            *before = Before::Nothing;
        }
    }
}

/// So many bounds may come to lie in one leaf by chance, since statistics are a sample.
const BY_CHANCE: usize = 8;

/// Whether one leaf holds more than a hundredth of the table by now, as far as the bounds tell that its statistics have.
fn has_outgrown(leaves: &LeafBounds, now: &[String]) -> bool {
    let mut held = vec![0; leaves.leaf_count()];
    for bound in now {
        if let Some(leaf) = leaves.leaf_of(TupleForm::PgText, bound.as_bytes(), 0) {
            held[leaf] += 1;
        }
    }
    held.into_iter().max().is_some_and(|most: usize| most > BY_CHANCE && most * 100 > now.len())
}

fn by_oid(records: Vec<LeafRecord>) -> HashMap<Oid, LeafRecord> {
    records.into_iter().map(|record| (record.copy.oid, record)).collect()
}

fn cut_of(record: &LeafRecord) -> Option<LeafCut> {
    serde_json::from_str(&record.leaf_bounds).unwrap_or(None)
}

#[cfg(test)]
mod tests {
    use tidemark_ledger::{Ledger, NewRelation, RunRecord};
    use tidemark_model::RelationName;

    use super::*;

    #[test]
    fn what_was_touched_since_an_earlier_round_is_forgotten_and_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(directory.path(), "shop").unwrap();
        ledger
            .begin_run(&RunRecord {
                job: "shop".to_owned(),
                run: "r".to_owned(),
                phase: "follow".to_owned(),
                system_identifier: 1,
                database: "shop".to_owned(),
                server_version: 150_000,
                snapshot_lsn: Lsn::new(10),
                digest_key: String::new(),
                canonical_version: 1,
                started_at_ms: 0,
                finished_at_ms: None,
                last_error: None,
            })
            .unwrap();
        let relation = NewRelation {
            oid: 7,
            name: RelationName::new("public", "a"),
            chunks_total: 1,
            leaf_bounds: "null".to_owned(),
            raw_scheme: String::new(),
            shape: String::new(),
            estimated_rows: 0,
            estimated_bytes: 0,
        };
        ledger.add_relation(&relation).unwrap();
        ledger.mark_touched(&[(7, 0)], Lsn::new(40)).unwrap();
        ledger.mark_touched(&[(7, 1)], Lsn::new(50)).unwrap();
        let record = ledger.leaf_records().unwrap().remove(0);
        let proven = Before::Proven([RowSum::default(); 2], Lsn::new(50));
        let mut before = [proven; 3];
        forget_touched(&mut before, &record);
        assert_eq!(before, [proven, Before::Nothing, proven]);
    }
}
