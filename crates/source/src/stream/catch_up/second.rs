//! A second session that decodes a large round as a whole while the first gives the beginning of it.
//!
//! The server gives a round only when it has all of it. What the first gave is decoded again by the second, and left out
//! here: as it comes from the first, so that the two are where the first ends at about the same time.
//!
//! **Invariant:** what is left out is what was given. The same WAL is decoded from the same position to the same messages but
//! for descriptions of relations: the server may send one once more. The last message of a round ends a block or a
//! transaction, and no two of those stand at one position. So where the same one has the same number again, all before it are
//! the same as before; where it has not, the rest is [not found](Behind::NotFound).

use tidemark_model::{Budget, Lsn, TupleForm};
use tidemark_wire::{Cancel, ConnectSpec};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use super::super::fields::Malformed;
use super::super::frames::Frames;
use super::super::message::Frame;
use super::copy::Copied;
use super::round::BATCH_BYTES;
use super::{Asked, CatchUpOptions};
use crate::{Disposition, Error, Result};

/// Batches that wait for whoever reads; the rest is at the server.
const WAITING: usize = 2;

/// What the second session has.
#[derive(Debug)]
pub(super) enum Behind {
    Next(Frames),
    End,
    /// The last message that was given is not where it was.
    NotFound,
}

/// The session, at work in a task of its own.
#[derive(Debug)]
pub(super) struct Second {
    given: watch::Sender<Given>,
    behind: mpsc::Receiver<Result<Behind>>,
    reading: JoinSet<Copied>,
    cancel: Cancel,
}

/// How many messages were given, and where and what the last of them was.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Given {
    count: u64,
    last: Option<(Lsn, u8)>,
    /// No more will be.
    is_all: bool,
}

impl Given {
    fn add(&mut self, frames: &Frames, count: usize) {
        let Some(last) = count.checked_sub(1) else { return };
        self.count += count as u64;
        self.last = mark(frames.row(last));
    }
}

/// Where and what a message is.
fn mark(message: Option<Result<Frame, Malformed>>) -> Option<(Lsn, u8)> {
    match message? {
        Ok(Frame::XLogData { wal_start, payload, .. }) => Some((wal_start, *payload.first()?)),
        _ => None,
    }
}

impl Second {
    /// Connects, copies the first session's slot and begins to decode up to `end`.
    pub(super) async fn begin(
        spec: &ConnectSpec,
        options: &CatchUpOptions,
        first: &Copied,
        end: Lsn,
    ) -> Result<Self> {
        let mut session = first.again(spec, &options.slot).await?;
        let statement = session.statement(options, Asked::Large(end), end);
        let cancel = session.raw().cancel_token();
        let (give, behind) = mpsc::channel(WAITING);
        let (given, known) = watch::channel(Given::default());
        let mut reading = JoinSet::new();
        reading.spawn(async move {
            let mut skipping = Skipping { known, seen: Given::default() };
            let end = read(&mut session, &statement, &mut skipping, &give).await;
            // Where nobody listens any more there is nothing to tell.
            drop(give.send(end).await);
            session
        });
        Ok(Self { given, behind, reading, cancel })
    }

    /// The first session gave these.
    pub(super) fn was_given(&self, frames: &Frames) {
        self.given.send_modify(|given| given.add(frames, frames.len()));
    }

    /// The first session has given all that it has.
    pub(super) fn go_on(&self) {
        self.given.send_modify(|given| given.is_all = true);
    }

    /// The next messages behind those of the first session.
    ///
    /// # Cancel safety
    /// A dropped future loses nothing; call again.
    pub(super) async fn next(&mut self) -> Result<Behind> {
        self.behind.recv().await.unwrap_or(Ok(Behind::End))
    }

    /// The session, after all was read.
    pub(super) async fn finish(mut self) -> Result<Copied> {
        self.behind.close();
        let session = self.reading.join_next().await.and_then(|ended| ended.ok());
        session.ok_or_else(|| {
            Error::new(Disposition::Internal, "catch up: the second session's task has ended")
        })
    }

    /// Gives up what is not read.
    pub(super) async fn end(mut self) {
        self.reading.abort_all();
        // Where nobody listens any more the server would decode to the end all the same.
        if let Err(error) = self.cancel.cancel().await {
            tracing::debug!(%error, "a session that catches up was not cancelled");
        }
    }
}

/// Gives on what lies behind the first session's messages; what there is to say at the end.
async fn read(
    session: &mut Copied,
    statement: &str,
    skipping: &mut Skipping,
    give: &mpsc::Sender<Result<Behind>>,
) -> Result<Behind> {
    let failed = |cause| Error::wire("catch up", cause);
    let budget = Budget::new((BATCH_BYTES * (WAITING + 2)) as u64);
    let mut copy = session.raw().copy_out(statement, TupleForm::PgBinary).await.map_err(failed)?;
    while let Some((rows, held)) = copy.next(BATCH_BYTES, &budget).await.map_err(failed)? {
        let mut frames = Frames::of_rows(rows, held);
        if !skipping.leave_out(&mut frames).await {
            return Ok(Behind::NotFound);
        }
        if frames.len() > 0 && give.send(Ok(Behind::Next(frames))).await.is_err() {
            return Ok(Behind::End);
        }
    }
    Ok(if skipping.is_behind() { Behind::End } else { Behind::NotFound })
}

/// Leaves out what the first session gives.
struct Skipping {
    known: watch::Receiver<Given>,
    /// What was left out.
    seen: Given,
}

impl Skipping {
    /// Takes out what was given, waiting until it is known; false where something else is in its place.
    async fn leave_out(&mut self, frames: &mut Frames) -> bool {
        if self.is_behind() {
            return true;
        }
        let end = self.seen.count + frames.len() as u64;
        let known = self.known.wait_for(|known| known.is_all || known.count >= end).await;
        let Ok(known) = known.map(|known| *known) else { return false };
        let missing = usize::try_from(known.count - self.seen.count).unwrap_or(usize::MAX);
        let here = missing.min(frames.len());
        self.seen.add(frames, here);
        frames.leave_out(here);
        if known.is_all && self.seen.count == known.count {
            self.seen.is_all = true;
            return self.seen == known && (known.last.is_some() || known.count == 0);
        }
        true
    }

    fn is_behind(&self) -> bool {
        self.seen.is_all
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use tidemark_model::Tuples;

    use super::*;

    /// Rows of the server with a position and a message of one byte each.
    fn frames(messages: &[(u8, u8)]) -> Frames {
        let row = |&(at, tag): &(u8, u8)| {
            let head = [0, 3, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, at, 0, 0, 0, 4, 0, 0, 0, 9];
            [&head[..], &[0, 0, 0, 1, tag]].concat()
        };
        let rows: Vec<Vec<u8>> = messages.iter().map(row).collect();
        let ends = (1..).map(|row| row * 27).take(rows.len()).collect();
        let data = Bytes::from(rows.concat());
        let tuples = Tuples { form: TupleForm::PgBinary, data, ends };
        let held = Budget::new(1 << 20).try_reserve(1).unwrap();
        Frames::of_rows(tuples, held)
    }

    /// What is left of batches behind those that are known; `None` where something else is there.
    async fn left(given: &[&[(u8, u8)]], batches: &[&[(u8, u8)]]) -> Option<Vec<(Lsn, u8)>> {
        let (tell, known) = watch::channel(Given::default());
        let mut skipping = Skipping { known, seen: Given::default() };
        for batch in given {
            tell.send_modify(|known| known.add(&frames(batch), batch.len()));
        }
        let mut left = Vec::new();
        for batch in batches {
            let mut frames = frames(batch);
            let is_known = tell.borrow().count >= skipping.seen.count + batch.len() as u64;
            if !is_known {
                tell.send_modify(|known| known.is_all = true);
            }
            if !skipping.leave_out(&mut frames).await {
                return None;
            }
            left.extend((0..frames.len()).filter_map(|index| mark(frames.row(index))));
        }
        skipping.is_behind().then_some(left)
    }

    #[tokio::test]
    async fn what_was_given_is_left_out_where_it_is_the_same() {
        let given: [&[(u8, u8)]; 2] = [&[(1, b'S'), (1, b'I')], &[(2, b'I'), (2, b'E')]];
        let all = [(1, b'S'), (1, b'I'), (2, b'I'), (2, b'E'), (3, b'S'), (3, b'I')];
        let rest = vec![(Lsn::new(3), b'S'), (Lsn::new(3), b'I')];
        for cut in 1..all.len() {
            let found = left(&given, &[&all[..cut], &all[cut..]]).await;
            assert_eq!(found, Some(rest.clone()), "{cut}");
        }
        assert_eq!(left(&[], &[&all]).await.map(|left| left.len()), Some(all.len()));
        // A description more, and everything stands one further.
        let other = [(1, b'S'), (1, b'R'), (1, b'I'), (2, b'I'), (2, b'E'), (3, b'S')];
        assert_eq!(left(&given, &[&other]).await, None);
        let elsewhere = [(1, b'S'), (1, b'I'), (2, b'I'), (3, b'E'), (3, b'S')];
        assert_eq!(left(&given, &[&elsewhere]).await, None);
        assert_eq!(left(&given, &[&all[..3]]).await, None, "it ends too soon");
    }
}
