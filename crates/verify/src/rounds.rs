//! The readings of a job's tables at one LSN, or at several where snapshots are not to grow old.
//!
//! **Invariant:** what a round found the same stands until the stream touches it; what it has touched by the next round is read
//! again. So after the last round, which reads all that is left, every leaf is as of that round's LSN.
//!
//! A verification that is interrupted keeps what its rounds, and of the running one its tables that were whole, have proven.

use std::time::{Duration, Instant, SystemTime};

use tidemark_model::Lsn;
use tidemark_pipeline::{Error, Kind, Result};
use tidemark_report::Level;
use tokio_util::sync::CancellationToken;

use crate::Which;
use crate::exact::{Met, Stays, at_one_point};
use crate::known::Shapes;
use crate::outcome::{Barrier, Outcome, Point};
use crate::run::{Moment, Run};
use crate::state::State;

/// So many bytes a second are taken to be read where nothing was read yet.
const BYTES_A_SECOND: f64 = 20e6;
/// After so many rounds in which no less was left to be read than ever before, it is changing faster than it is read.
const VAIN_ROUNDS: u32 = 10;

pub(crate) struct Rounds<'a> {
    run: Run<'a>,
    states: Vec<State>,
    /// None: everything is read in one round.
    age: Option<Duration>,
    barriers: Vec<Barrier>,
    moments: (Option<Moment>, Option<Moment>),
    /// The least that was ever left to be read, and for how many rounds it was not less.
    least: (u64, u32),
}

impl<'a> Rounds<'a> {
    /// Nothing is read yet.
    ///
    /// # Errors
    /// The job's ledger is needed, and is not there or cannot be written.
    pub(crate) async fn begin(run: Run<'a>, states: Vec<State>) -> Result<Self> {
        let hashes = run.request.level > Level::Count;
        let age = run.request.max_snapshot_age.filter(|_| hashes);
        if run.known.is_none() && age.is_some() {
            let attempt = "verify with --max-snapshot-age: the state directory holds no ledger of this job, which tells what the stream touches between two snapshots";
            return Err(Error::new(Kind::Usage, attempt).hint(
                "give the state directory that tidemark sync runs with, or leave the limit out",
            ));
        }
        if let (Some(known), true) = (&run.known, hashes) {
            known.cut_anew(&run.paired.pairs).await?;
        }
        let moments = (None, None);
        Ok(Self { run, states, age, barriers: Vec::new(), moments, least: (u64::MAX, 0) })
    }

    /// Reads until nothing is left to be read.
    ///
    /// # Errors
    /// As [`crate::verify_at_barrier`].
    pub(crate) async fn finish(mut self, stop: &CancellationToken) -> Result<Outcome> {
        let all: Vec<usize> = (0..self.states.len()).collect();
        loop {
            let met =
                at_one_point(&self.run, (&all, Stays::UntilExported), stop, async |met| Ok(met));
            let met = Box::pin(met).await?;
            let (at, since) = (SystemTime::now(), Instant::now());
            let shapes = self.recall().await?;
            let is_all = self.pick(&met);
            let read = Box::pin(self.read(&met, &all)).await;
            self.keep(met.lsn, shapes.as_ref(), is_all && read.is_ok()).await?;
            read?;
            let is_last = is_all || self.least.1 >= VAIN_ROUNDS;
            if is_last {
                let views = (&met.source, &met.target);
                Box::pin(self.run.name(views, &mut self.states, &all)).await?;
            }
            self.moments = (Some(met.source.moment()), Some(met.target.moment()));
            let (lsn, pause, held) = (met.lsn, met.pause, since.elapsed());
            Box::pin(met.release()).await;
            self.barriers.push(Barrier { lsn, pause, at, held });
            if is_last {
                return Ok(self.outcome());
            }
            tracing::info!(%lsn, round = self.barriers.len(), "the snapshots are given up; what is left is read under new ones");
        }
    }

    fn outcome(mut self) -> Outcome {
        self.states.iter_mut().for_each(State::give_up);
        let last = self.barriers.pop();
        let earlier = self.barriers;
        let point = last.map(|last| Point::Barrier {
            lsn: last.lsn,
            pause: last.pause,
            at: last.at,
            held: last.held,
            earlier,
        });
        self.run.outcome(self.states, point, self.moments)
    }

    /// What is known without a reading, now that both sides stand at one point.
    async fn recall(&mut self) -> Result<Option<Shapes>> {
        let hashes = self.run.request.level > Level::Count;
        let Some(mut known) = self.run.known.take().filter(|_| hashes) else { return Ok(None) };
        let shapes = known.shapes(&self.run).await?;
        known.recall(&self.run, &shapes, &mut self.states).await?;
        self.run.known = Some(known);
        Ok(Some(shapes))
    }

    /// Opens what is to be read in this round; gives whether nothing is left for another one.
    fn pick(&mut self, met: &Met) -> bool {
        let views = (&met.source, &met.target);
        let mut order: Vec<(bool, u64, usize)> = Vec::new();
        for (pair, state) in self.states.iter_mut().enumerate() {
            state.reopen();
            let bytes = self.run.bytes_to_read(views, pair, state);
            order.push((state.was_read(), bytes, pair));
        }
        let Some(mut room) = self.room() else { return true };
        let total: u64 = order.iter().map(|(_, bytes, _)| bytes).sum();
        self.least = match total < self.least.0 {
            true => (total, 0),
            false => (self.least.0, self.least.1 + 1),
        };
        // What was never read comes first, so that what changes all the time does not keep others from it.
        order.sort_unstable();
        let mut is_all = true;
        let mut is_first = true;
        for (_, bytes, pair) in &order {
            let state = &mut self.states[*pair];
            if !state.is_kept || *bytes == 0 {
                continue;
            }
            if *bytes as f64 > room {
                is_all &= !state.narrow((room / *bytes as f64).max(0.0), is_first);
                room = 0.0;
            }
            room = (room - *bytes as f64).max(0.0);
            is_first = false;
        }
        // Of what nobody keeps one reading counts, the last.
        for state in self.states.iter_mut().filter(|state| !is_all && !state.is_kept) {
            state.narrow(0.0, false);
        }
        is_all
    }

    /// Bytes that may be read in one round.
    fn room(&self) -> Option<f64> {
        let age = self.age?.as_secs_f64();
        let held: f64 = self.barriers.iter().map(|barrier| barrier.held.as_secs_f64()).sum();
        let progress = &self.run.tools.progress;
        let read = progress.read(Which::Source) + progress.read(Which::Target);
        let speed = if held > 0.0 { read as f64 / held } else { BYTES_A_SECOND };
        let rate = self.run.request.rate.map_or(f64::MAX, |rate| rate as f64);
        Some(age * speed.min(rate).max(1.0))
    }

    async fn read(&mut self, met: &Met, all: &[usize]) -> Result<()> {
        let views = (&met.source, &met.target);
        self.run.read(views, &mut self.states, all).await?;
        // Of a leaf that was read on one side only a difference says nothing yet.
        let again = (0..self.states.len()).filter(|pair| !self.states[*pair].open.is_empty());
        let again: Vec<usize> = again.collect();
        match again.is_empty() {
            true => Ok(()),
            false => self.run.read(views, &mut self.states, &again).await,
        }
    }

    /// Keeps what this round has proven, here and in the ledger.
    async fn keep(&mut self, lsn: Lsn, shapes: Option<&Shapes>, is_all: bool) -> Result<()> {
        self.states.iter_mut().for_each(|state| state.keep(lsn));
        let (Some(known), Some(shapes)) = (&mut self.run.known, shapes) else { return Ok(()) };
        let read = self.states.iter().enumerate().filter(|(_, state)| state.was_read());
        let whole = |state: &State| (is_all && state.is_identical()).then_some(lsn);
        let proofs = read.map(|(pair, state)| (pair, state, whole(state)));
        known.record(&self.run.paired.pairs, shapes, proofs).await
    }
}
