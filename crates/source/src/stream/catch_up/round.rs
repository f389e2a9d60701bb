//! One answer of the server.

use std::time::Duration;

use tidemark_model::Budget;
use tidemark_wire::CopyOut;

use super::super::connect::explain;
use super::super::frames::Frames;
use super::Outcome;
use super::second::{Behind, Second};
use crate::{Error, Result};

/// Rows that are handed over at once.
pub(super) const BATCH_BYTES: usize = 256 * 1024;

/// One answer of the server.
#[derive(Debug)]
pub struct Round<'a> {
    rows: Option<Rows<'a>>,
    outcome: &'a mut Outcome,
}

/// Where the messages come from.
#[derive(Debug)]
enum Rows<'a> {
    /// Our session; the second one is told what came.
    Own(CopyOut<'a>, Option<&'a Second>),
    /// The second one has this long for its first.
    Behind(&'a mut Second, Duration),
}

impl<'a> Round<'a> {
    /// `second`: whoever may go on behind this round.
    pub(super) fn new(
        copy: CopyOut<'a>,
        second: Option<&'a Second>,
        outcome: &'a mut Outcome,
    ) -> Self {
        Self { rows: Some(Rows::Own(copy, second)), outcome }
    }

    /// What the second session has behind the last round.
    pub(super) fn behind(
        second: &'a mut Second,
        patience: Duration,
        outcome: &'a mut Outcome,
    ) -> Self {
        Self { rows: Some(Rows::Behind(second, patience)), outcome }
    }

    /// Some messages of the round, `None` after the last.
    ///
    /// # Errors
    /// The server ended the answer with an error, or the connection was lost.
    ///
    /// # Cancel safety
    /// A dropped future loses nothing; call again.
    pub async fn next(&mut self, budget: &Budget) -> Result<Option<Frames>> {
        let Outcome::Messages(count, bytes) = self.outcome else { return Ok(None) };
        let frames = match &mut self.rows {
            None => None,
            Some(Rows::Own(copy, second)) => {
                let answer = copy.next(BATCH_BYTES, budget).await;
                let answer = answer.map_err(|cause| explain(Error::wire("catch up", cause)))?;
                let frames = answer.map(|(rows, held)| Frames::of_rows(rows, held));
                if let (Some(second), Some(frames)) = (second, &frames) {
                    second.was_given(frames);
                }
                frames
            }
            Some(Rows::Behind(second, patience)) => {
                let next = match *count {
                    0 => tokio::time::timeout(*patience, second.next()).await,
                    _ => Ok(second.next().await),
                };
                match next.unwrap_or(Ok(Behind::NotFound))? {
                    Behind::Next(frames) => Some(frames),
                    Behind::End => None,
                    Behind::NotFound => {
                        tracing::info!(
                            "the rest of a large transaction was not found: going on with the stream"
                        );
                        *self.outcome = Outcome::GaveUp;
                        return Ok(None);
                    }
                }
            }
        };
        match &frames {
            Some(frames) => {
                *count += frames.len() as u64;
                *bytes += frames.bytes() as u64;
            }
            None => self.rows = None,
        }
        Ok(frames)
    }
}
