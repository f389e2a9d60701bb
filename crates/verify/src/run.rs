//! Both sides of a verification, opened and paired, and what both ways of finding a moment share.
//!
//! **Invariant:** nothing is written to either side.

use std::sync::atomic::Ordering;
use std::time::Instant;

use tidemark_model::Lsn;
use tidemark_pipeline::{Error, Kind, Result, Target};
use tokio_util::sync::CancellationToken;

use crate::outcome::{Outcome, Point, TableOutcome, side_report};
use crate::pair::{Paired, pair};
use crate::scan::{Sums, Tools, plan, scan};
use crate::side::{Side, View};
use crate::state::State;
use crate::{Request, Which};

/// Position and `pg_current_snapshot()` of a side's moment.
pub(crate) type Moment = (Lsn, String);

pub(crate) struct Run<'a> {
    pub(crate) request: &'a Request,
    pub(crate) tools: Tools,
    pub(crate) source: Side,
    pub(crate) target: Side,
    pub(crate) paired: Paired,
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
            return Err(Error::new(Kind::Usage, "verify a Parquet target: not built yet")
                .hint("only PostgreSQL targets can be verified in this version"));
        };
        // Not the job's own: sessions of that name are ended by whoever takes the job over.
        let application = format!("{}:verify", tidemark_model::names::application_name(&job.name));
        let how = (application.as_str(), job.lock_timeout);
        let (source, target) = tokio::try_join!(
            Side::open(Which::Source, &job.source, how),
            Side::open(Which::Target, &of_target.spec, how),
        )?;
        let mut bounds = source.bounds().await?;
        let paired = pair(request, moves, (&source.catalog, &target.catalog), &mut bounds)?;
        let tools = Tools::new(request, stop)?;
        Ok(Self { request, tools, source, target, paired, began })
    }

    pub(crate) fn states(&self) -> Vec<State> {
        self.paired.pairs.iter().map(|pair| State::new(pair.leaves.count())).collect()
    }

    /// The relations of these pairs on one side.
    pub(crate) fn relations(
        &self,
        which: Which,
        wanted: &[usize],
    ) -> Vec<tidemark_model::Relation> {
        wanted.iter().map(|pair| self.paired.pairs[*pair].half(which).relation.clone()).collect()
    }

    /// Reads what is open of these pairs, both sides at once, and settles what it can.
    pub(crate) async fn read(
        &self,
        views: (&View, &View),
        states: &mut [State],
        wanted: &[usize],
    ) -> Result<()> {
        for view in [views.0, views.1] {
            for pair in wanted {
                let oid = self.paired.pairs[*pair].half(view.which).relation.oid;
                if !view.tables().iter().any(|table| table.oid == oid) {
                    states[*pair].gone = Some(view.which);
                    states[*pair].open.clear();
                }
            }
        }
        let there: Vec<usize> =
            wanted.iter().copied().filter(|pair| states[*pair].gone.is_none()).collect();
        let tables = views.0.tables().iter().chain(views.1.tables());
        let sizes = tables.map(|relation| relation.heap_bytes + relation.toast_bytes);
        self.tools.progress.begin_reading(sizes.sum());
        let again = there.iter().filter(|pair| states[**pair].readings == 1);
        let leaves = again.map(|pair| states[*pair].open.len() as u64);
        self.tools.progress.read_again.fetch_add(leaves.sum(), Ordering::Relaxed);
        let (ours, theirs) = tokio::try_join!(
            self.scan(views.0, states, &there),
            self.scan(views.1, states, &there),
        )?;
        for pair in there {
            if let (Some(ours), Some(theirs)) = (ours.get(&pair), theirs.get(&pair)) {
                states[pair].settle(ours, theirs);
                states[pair].lsn = Some(views.0.moment().0);
            }
        }
        Ok(())
    }

    async fn scan(&self, view: &View, states: &[State], wanted: &[usize]) -> Result<Sums> {
        let some = |pair: &usize| {
            let state = &states[*pair];
            let ranges = match state.readings {
                0 => None,
                _ => self.paired.pairs[*pair].ranges_of(&state.open),
            };
            (*pair, ranges)
        };
        let pieces = plan(self.request, view, &self.paired.pairs, wanted.iter().map(some));
        scan(&self.tools, view, (&self.paired.pairs, pieces), self.request.readers).await
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
        let mut tables: Vec<TableOutcome> =
            pairs.map(|(pair, state)| state.outcome(pair, level)).collect();
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
