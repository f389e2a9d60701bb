//! A large transaction on its way to the target while the rest of it still comes.
//!
//! **Invariant:** only a transaction that the source has committed is given ahead (between Begin and Commit of the stream, or
//! in progress there while the source's own records have it committed), and only where nothing waits before it. Its end is
//! the last piece; where the connection is lost before, or another transaction ends before it, the reader gets an error, and
//! what the target has of the transaction is never committed.
//!
//! Why: the source sends a large transaction for as long as the target takes to apply a good part of it.
//!
//! ```text
//! feed: Queue::go_ahead -> push, push, .. finish(end)      apply: next, next, .. None (the head is whole now)
//! ```

use std::sync::Arc;

use bytes::Bytes;
use tidemark_model::{Reservation, TransactionHead};
use tokio::sync::mpsc;

use super::super::blocks::unreadable;
use super::super::body::{Body, BodyReader};
use super::Queue;
use crate::{Error, Kind, Result};

/// Pieces under way at most; their bytes are bounded by the queue.
const PIECES: usize = 16;

/// What has come of the transaction.
#[derive(Debug)]
enum Piece {
    Some(BodyReader, Reservation),
    /// Nothing more comes; this is its head.
    End(TransactionHead),
    /// Its end cannot come this way.
    Never(&'static str),
}

/// The writing end. Dropped before it is finished it takes the transaction back.
#[derive(Debug)]
pub(crate) struct Ahead {
    queue: Arc<Queue>,
    pieces: mpsc::Sender<Piece>,
}

impl Ahead {
    /// Both ends.
    pub(super) fn new(queue: &Arc<Queue>, is_decided: bool) -> (Self, AheadReader) {
        let (pieces, reader) = mpsc::channel(PIECES);
        let reader = AheadReader { pieces: reader, now: None, is_decided };
        (Self { queue: Arc::clone(queue), pieces }, reader)
    }

    /// Gives what has come; waits for room.
    ///
    /// # Cancel safety
    /// None: to be dropped together with the stream.
    pub(crate) async fn push(&self, body: Body) {
        self.queue.note(&body);
        let reservation = self.queue.room(body.in_memory() as u64).await;
        // Whoever reads it has failed otherwise, which ends the session.
        self.pieces.send(Piece::Some(body.read(), reservation)).await.ok();
    }

    /// Gives the rest. The head is that of the Commit.
    pub(crate) async fn finish(self, head: TransactionHead, rest: Body) {
        self.push(rest).await;
        self.queue.has_come(head.end_lsn);
        self.pieces.send(Piece::End(head)).await.ok();
    }

    /// Takes the transaction back.
    pub(crate) async fn give_up(self, because: &'static str) {
        self.pieces.send(Piece::Never(because)).await.ok();
    }
}

impl Drop for Ahead {
    fn drop(&mut self) {
        self.queue.take_back();
    }
}

/// The reading end.
#[derive(Debug)]
pub(crate) struct AheadReader {
    pieces: mpsc::Receiver<Piece>,
    now: Option<(BodyReader, Reservation)>,
    /// Where it ends is known, but for the length of its commit record.
    pub(crate) is_decided: bool,
}

impl AheadReader {
    /// The next whole frames, as soon as they have come; at the end none, and the head is that of the Commit.
    ///
    /// # Errors
    /// The connection was lost in the middle, or the disk.
    ///
    /// # Cancel safety
    /// Safe.
    pub(crate) async fn next(&mut self, head: &mut TransactionHead) -> Result<Option<Bytes>> {
        loop {
            if let Some((reader, _)) = &mut self.now {
                let read = tokio::task::block_in_place(|| reader.next());
                if let Some(block) = read.map_err(unreadable)? {
                    return Ok(Some(block));
                }
                self.now = None;
            }
            match self.pieces.recv().await {
                Some(Piece::Some(reader, reservation)) => self.now = Some((reader, reservation)),
                Some(Piece::End(whole)) => {
                    *head = whole;
                    return Ok(None);
                }
                Some(Piece::Never(because)) => return Err(taken_back(head.xid, because)),
                None => {
                    let because = "the stream was interrupted in the middle of it";
                    return Err(taken_back(head.xid, because));
                }
            }
        }
    }
}

/// What ends the session where a transaction was begun on the target and its end does not come.
pub(crate) fn taken_back(xid: u64, because: &'static str) -> Error {
    Error::new(Kind::Unavailable, format!("apply the source's transaction {xid} while it came"))
        .because(because)
        .hint("nothing of it is on the target: run the same command again")
}
