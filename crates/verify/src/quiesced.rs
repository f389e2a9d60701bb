//! A pair that stands still, or nearly: no job, no LSN that both sides share.
//!
//! **Invariant:** equal sums of two read snapshots are a proof by themselves, each at its own position. Sums that differ are
//! none: what differed is read again under new snapshots (only the rows that differed, where a locator told them all), and is
//! called different only when both sides were read twice and neither has changed; what is still changing after the last
//! reading makes the table incomplete (`design.md` 7).

use std::time::Duration;

use tidemark_pipeline::Result;
use tidemark_report::Level;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::outcome::{Outcome, Point};
use crate::run::{Moment, Run};
use crate::state::State;
use crate::{Request, Which};

/// Readings of what differs, the first one of everything.
const READINGS: u32 = 4;
/// From the snapshots of one to those of the next, so that whatever keeps the sides in step may catch up.
const APART: Duration = Duration::from_secs(1);

/// Compares two databases that nobody is to write to.
///
/// # Errors
/// A side cannot be reached or read, or the selection does not fit; nothing was changed on either side.
///
/// # Cancel safety
/// Safe: sessions end with the future.
pub async fn verify_quiesced(request: &Request, stop: &CancellationToken) -> Result<Outcome> {
    compare(Run::open(request, false, stop).await?).await
}

/// The same of what was opened and paired already.
pub(crate) async fn compare(run: Run<'_>) -> Result<Outcome> {
    let (request, stop) = (run.request, run.tools.stop.clone());
    let mut states = run.states(State::new);
    let mut moments = (None, None);
    let mut wanted: Vec<usize> = (0..states.len()).collect();
    let (mut reading, mut last) = (0, Instant::now());
    while request.level > Level::Schema && !wanted.is_empty() && reading < READINGS {
        if reading > 0 {
            tracing::info!(tables = wanted.len(), "what differs is read again");
            tokio::select! {
                () = stop.cancelled() => {}
                () = tokio::time::sleep_until(last + APART) => {}
            }
        }
        (reading, last) = (reading + 1, Instant::now());
        let (one, other) = Box::pin(read_once(&run, &mut states, &wanted)).await?;
        moments.0.get_or_insert(one);
        moments.1.get_or_insert(other);
        wanted.retain(|pair| states[*pair].wants_reading());
    }
    let point = (reading > 0).then_some(Point::Quiesced);
    Ok(run.outcome(states, point, moments))
}

/// One reading under two new snapshots; gives their moments.
async fn read_once(
    run: &Run<'_>,
    states: &mut [State],
    wanted: &[usize],
) -> Result<(Moment, Moment)> {
    let (one, other) = tokio::try_join!(
        run.source.view(run.relations(Which::Source, wanted)),
        run.target.view(run.relations(Which::Target, wanted)),
    )?;
    let moments = (one.moment(), other.moment());
    let views = (&one, &other);
    run.confirm(views, states, wanted).await?;
    let open: Vec<usize> =
        wanted.iter().copied().filter(|pair| states[*pair].wants_reading()).collect();
    run.read(views, states, &open).await?;
    run.name(views, states, &open).await?;
    tokio::join!(one.release(), other.release());
    Ok(moments)
}
