//! Both sides of a verification, opened and paired, and what both ways of finding a moment share.
//!
//! **Invariant:** nothing is written to either side.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::Ordering;
use std::time::Instant;

use tidemark_model::{Lsn, Oid};
use tidemark_pipeline::{Error, Kind, Result, Target};
use tokio_util::sync::CancellationToken;

use crate::definitions;
use crate::known::Known;
use crate::naming::{confirm, name};
use crate::outcome::{Outcome, Point, TableOutcome, side_report};
use crate::pair::{Pair, Paired, pair};
use crate::reading::{Found, Reading};
use crate::scan::{Piece, Tools, plan, scan};
use crate::side::{Side, View};
use crate::state::State;
use crate::{Reads, Request, Which};

/// Position and `pg_current_snapshot()` of a side's moment.
pub(crate) type Moment = (Lsn, String);

pub(crate) struct Run<'a> {
    pub(crate) request: &'a Request,
    pub(crate) tools: Tools,
    pub(crate) source: Side,
    pub(crate) target: Side,
    pub(crate) paired: Paired,
    /// Of a job that follows, as its ledger has it.
    pub(crate) known: Option<Known>,
    began: Instant,
}

impl<'a> Run<'a> {
    /// Connects, reads both catalogs, and pairs the tables; `moves`: a stream keeps them in step.
    pub(crate) async fn open(
        request: &'a Request,
        moves: bool,
        stop: &CancellationToken,
    ) -> Result<Self> {
        let began = Instant::now();
        let job = &request.job;
        let Target::Postgres(of_target) = &job.target else {
            let attempt = "compare a lake without the job that fills it";
            return Err(Error::new(Kind::Usage, attempt).hint(
                "verify the job at one position (without --quiesced); two databases that stand still must both be PostgreSQL",
            ));
        };
        // Not the job's own: sessions of that name are ended by whoever takes the job over.
        let application = format!("{}:verify", tidemark_model::names::application_name(&job.name));
        let how = (application.as_str(), job.lock_timeout);
        let (source, target) = tokio::try_join!(
            Side::open(Which::Source, &job.source, how),
            Side::open(Which::Target, &of_target.spec, how),
        )?;
        let mut bounds = source.bounds().await?;
        let known = if moves { Known::of(job, &source.catalog).await } else { None };
        match &known {
            Some(known) => known.cut(&source.catalog, request.reads, &mut bounds),
            None if request.reads == Reads::Dirty => {
                tracing::warn!(
                    "nothing is known of the leaves (no ledger of this job in the state directory): everything is read"
                );
            }
            None => {}
        }
        let mut paired = pair(request, moves, (&source.catalog, &target.catalog), &mut bounds)?;
        paired.findings.extend(definitions::compare(job, &source, &target).await?);
        let mut run = Self { began, ..Self::of(request, stop, (source, target), paired)? };
        if let Some(known) = &known {
            // Sums that are kept compare under one key only.
            run.tools.key = known.key.clone();
        }
        Ok(Self { known, ..run })
    }

    /// What was opened and paired already.
    pub(crate) fn of(
        request: &'a Request,
        stop: &CancellationToken,
        (source, target): (Side, Side),
        paired: Paired,
    ) -> Result<Self> {
        let tools = Tools::new(request, stop)?;
        Ok(Self { request, tools, source, target, paired, known: None, began: Instant::now() })
    }

    /// Nothing is known yet.
    pub(crate) fn states(&self, state: impl Fn(usize) -> State) -> Vec<State> {
        self.paired.pairs.iter().map(|pair| state(pair.leaves.count())).collect()
    }

    /// The relations of these pairs on one side.
    pub(crate) fn relations(
        &self,
        which: Which,
        wanted: &[usize],
    ) -> Vec<tidemark_model::Relation> {
        wanted.iter().map(|pair| self.paired.pairs[*pair].half(which).relation.clone()).collect()
    }

    /// Those of these pairs that both sides still have; the others are noted as gone.
    fn still_there(
        &self,
        views: (&View, &View),
        states: &mut [State],
        wanted: &[usize],
    ) -> Vec<usize> {
        for view in [views.0, views.1] {
            let there: HashSet<Oid> = view.tables().iter().map(|table| table.oid).collect();
            for pair in wanted {
                if !there.contains(&self.paired.pairs[*pair].half(view.which).oid()) {
                    states[*pair].gone = Some(view.which);
                    states[*pair].open.clear();
                }
            }
        }
        wanted.iter().copied().filter(|pair| states[*pair].gone.is_none()).collect()
    }

    /// Reads the rows again that a reading has told to differ, so that those tables are settled where they hold still.
    pub(crate) async fn confirm(
        &self,
        views: (&View, &View),
        states: &mut [State],
        wanted: &[usize],
    ) -> Result<()> {
        for pair in self.still_there(views, states, wanted) {
            confirm(self, [views.0, views.1], pair, &mut states[pair]).await?;
        }
        Ok(())
    }

    /// Reads what is open of these pairs, both sides at once, and settles what it can.
    pub(crate) async fn read(
        &self,
        views: (&View, &View),
        states: &mut [State],
        wanted: &[usize],
    ) -> Result<()> {
        let there = self.still_there(views, states, wanted);
        for pair in &there {
            states[*pair].widen(|leaves| self.paired.pairs[*pair].ranges_of(leaves).is_some());
        }
        let bytes = there.iter().map(|pair| self.bytes_to_read(views, *pair, &states[*pair]));
        self.tools.progress.begin_reading(bytes.sum());
        let again = there.iter().filter(|pair| states[**pair].readings == 1);
        let leaves = again.map(|pair| states[*pair].open.len() as u64);
        self.tools.progress.read_again.fetch_add(leaves.sum(), Ordering::Relaxed);
        let [ours, theirs] = [views.0, views.1].map(|view| self.pieces(view, states, &there));
        let sizes: HashMap<usize, u64> = there
            .iter()
            .map(|pair| (*pair, self.size(views.0, *pair).max(self.size(views.1, *pair))))
            .collect();
        let room = self.request.job.memory / 4;
        let of = (self.paired.pairs.as_slice(), &self.tools.key);
        // What is read on one side only can be located on none.
        let is_on_both = |state: &State| {
            state.to_read(Which::Source).len() == state.to_read(Which::Target).len()
        };
        let size = |pair: usize| if is_on_both(&states[pair]) { sizes[&pair] } else { 0 };
        let reading = Reading::new(of, [&ours, &theirs], room, size);
        let scanned = tokio::try_join!(
            scan(&self.tools, views.0, ours, &reading),
            scan(&self.tools, views.1, theirs, &reading),
        );
        let mut found = reading.finish()?;
        // What was read to its end counts whatever became of the rest.
        let is_settled = |pair: &usize| scanned.is_ok() || found.contains_key(pair);
        let settled: Vec<usize> = there.into_iter().filter(is_settled).collect();
        for pair in settled {
            let state = &mut states[pair];
            let read = state.to_read(Which::Source);
            let is_whole = read.len() == state.source.len();
            let has_read = is_whole || self.paired.pairs[pair].ranges_of(&read).is_some();
            let none = || Found::nothing(state.source.len());
            let found = found.remove(&pair).unwrap_or_else(none);
            state.settle(&found.source, &found.target);
            // Of leaves that were read beside those in question nothing is to be named.
            state.keys = found.keys.filter(|_| has_read).map(|keys| (keys, read));
            state.lsn = Some(views.0.moment().0);
        }
        scanned.map(drop)
    }

    /// About so many bytes of a pair are to be read from both sides.
    pub(crate) fn bytes_to_read(&self, views: (&View, &View), pair: usize, state: &State) -> u64 {
        let leaves = state.source.len().max(1) as f64;
        let of = |view: &View| {
            let share = state.to_read(view.which).len() as f64 / leaves;
            (self.size(view, pair) as f64 * share) as u64
        };
        of(views.0) + of(views.1)
    }

    /// Names the differing rows of these pairs under the snapshots that were read last, where the verdict stands.
    pub(crate) async fn name(
        &self,
        views: (&View, &View),
        states: &mut [State],
        wanted: &[usize],
    ) -> Result<()> {
        for pair in wanted.iter().copied().filter(|pair| self.paired.pairs[*pair].is_hashed()) {
            if states[pair].gone.is_none() && states[pair].wants_names() {
                name(self, [views.0, views.1], pair, &mut states[pair]).await?;
            }
        }
        Ok(())
    }

    /// Bytes of a table that are to be read.
    fn size(&self, view: &View, pair: usize) -> u64 {
        let oid = self.paired.pairs[pair].half(view.which).relation.oid;
        let table = view.tables().iter().find(|table| table.oid == oid);
        table.map_or(0, |table| table.heap_bytes + table.toast_bytes)
    }

    fn pieces(&self, view: &View, states: &[State], wanted: &[usize]) -> Vec<Piece> {
        let some = |pair: &usize| {
            let state = &states[*pair];
            let leaves = state.to_read(view.which);
            let ranges = match leaves.len() {
                0 => return None,
                all if all == state.source.len() => None,
                _ => self.paired.pairs[*pair].ranges_of(&leaves),
            };
            Some((*pair, ranges))
        };
        plan(self.request, view, &self.paired.pairs, wanted.iter().filter_map(some))
    }

    /// What came of it.
    pub(crate) fn outcome(
        self,
        states: Vec<State>,
        point: Option<Point>,
        (of_source, of_target): (Option<Moment>, Option<Moment>),
    ) -> Outcome {
        let level = self.request.level;
        let pairs = self.paired.pairs.iter().zip(states);
        let known = self.known.as_ref();
        let outcome = |(pair, state): (&Pair, State)| TableOutcome {
            last_proven: known.and_then(|known| known.last_proven(pair)),
            ..state.outcome(pair, level)
        };
        let mut tables: Vec<TableOutcome> = pairs.map(outcome).collect();
        tables.sort_by(|one, other| one.name.cmp(&other.name));
        Outcome {
            level,
            point,
            source: side_report(&self.source, of_source),
            target: side_report(&self.target, of_target),
            tables,
            alone: self.paired.alone,
            skipped: self.paired.skipped,
            findings: self.paired.findings,
            key_id: self.tools.key.id(),
            duration: self.began.elapsed(),
        }
    }
}
