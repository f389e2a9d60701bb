//! Holds what is applied at one exact position for a moment, so that somebody can take a snapshot of the target there.
//!
//! **Invariant:** while the gate stands at a position, everything that ended at or before it is committed and durable on the
//! target, nothing behind it is, and nothing will be before the gate opens. It never stands longer than [`PAUSE_MAX`]: the
//! stream goes on, and whoever asked is told.
//!
//! ```text
//! asker: hold -> (takes a snapshot of the source, whose position is beyond) -> up_to(position) -> (snapshot of the target) -> open
//! ```
//!
//! First held and then let go on to the position, because the position is known only afterwards, and by then the stream
//! could have passed it.

use std::sync::Arc;
use std::time::Duration;

use tidemark_model::Lsn;
use tokio::sync::watch;

use super::ladder::Ladder;
use crate::{Error, Kind, Result};

/// The longest that the stream is held.
const PAUSE_MAX: Duration = Duration::from_secs(30);

/// What the stream is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    /// Go on.
    Open,
    /// Stand wherever everything that was begun is whole.
    Hold,
    /// Apply what ends at or before this, and nothing more.
    UpTo(Lsn),
}

/// One who asks, one who applies.
#[derive(Debug)]
pub(crate) struct Gate {
    order: watch::Sender<Order>,
    stands: watch::Sender<Option<Lsn>>,
    /// The longest that it stands.
    limit: Duration,
}

impl Default for Gate {
    fn default() -> Self {
        let (order, stands) = (watch::Sender::new(Order::Open), watch::Sender::new(None));
        Self { order, stands, limit: PAUSE_MAX }
    }
}

impl Gate {
    /// What is asked for.
    pub(crate) fn order(&self) -> Order {
        *self.order.borrow()
    }

    /// Waits until somebody closes the gate.
    ///
    /// # Cancel safety
    /// Safe.
    pub(crate) async fn closed(&self) {
        self.order.subscribe().wait_for(|order| *order != Order::Open).await.ok();
    }

    /// Closes the gate; through [`Closed`], which opens it again.
    ///
    /// # Errors
    /// Somebody else has closed it.
    fn close(&self) -> Result<()> {
        let is_mine = self.order.send_if_modified(|order| {
            let is_open = *order == Order::Open;
            if is_open {
                *order = Order::Hold;
            }
            is_open
        });
        if !is_mine {
            return Err(Error::new(Kind::Held, "hold the stream: another verification holds it")
                .hint("wait for that one and run the same command again"));
        }
        Ok(())
    }

    /// Lets the stream go on to a position beyond where it stands, and waits until it stands there.
    ///
    /// # Errors
    /// It was held too long and went on, or stands behind the position: then nothing can be said of it there.
    ///
    /// # Cancel safety
    /// The gate stays closed.
    pub(crate) async fn up_to(&self, lsn: Lsn) -> Result<()> {
        self.stands.send_replace(None);
        let is_held = self.order.send_if_modified(|order| {
            let is_held = *order == Order::Hold;
            if is_held {
                *order = Order::UpTo(lsn);
            }
            is_held
        });
        if is_held && self.stands().await? == lsn {
            return Ok(());
        }
        Err(gone_on())
    }

    /// Lets the stream go on.
    pub(crate) fn open(&self) {
        self.order.send_replace(Order::Open);
        self.stands.send_replace(None);
    }

    /// Waits until the stream stands, wherever that is.
    ///
    /// # Errors
    /// It was held too long and went on.
    ///
    /// # Cancel safety
    /// The gate stays closed.
    pub(crate) async fn stands(&self) -> Result<Lsn> {
        let (mut stands, mut order) = (self.stands.subscribe(), self.order.subscribe());
        tokio::select! {
            stands = stands.wait_for(Option::is_some) => {
                stands.ok().and_then(|stands| *stands).ok_or_else(gone_on)
            }
            _ = order.wait_for(|order| *order == Order::Open) => Err(gone_on()),
        }
    }

    /// Says that the stream stands there, and waits for another order.
    ///
    /// # Cancel safety
    /// Safe: whoever asked learns that the stream has gone on.
    pub(crate) async fn stand(&self, at: Lsn, by: Order) {
        let mut order = self.order.subscribe();
        self.stands.send_replace(Some(at));
        let other = order.wait_for(|order| *order != by);
        if tokio::time::timeout(self.limit, other).await.is_err() {
            tracing::warn!(at = %at, "the stream was held for too long; it goes on");
            self.open();
        }
    }
}

/// A gate that is closed until this is dropped, whatever ends whoever has closed it.
pub(crate) struct Closed(Arc<Ladder>);

impl Closed {
    /// Closes the gate of a stream.
    ///
    /// # Errors
    /// Somebody else has closed it.
    pub(crate) fn of(ladder: &Arc<Ladder>) -> Result<Self> {
        ladder.gate.close()?;
        Ok(Self(Arc::clone(ladder)))
    }

    /// The gate.
    pub(crate) fn gate(&self) -> &Gate {
        &self.0.gate
    }
}

impl Drop for Closed {
    fn drop(&mut self) {
        self.0.gate.open();
    }
}

fn gone_on() -> Error {
    Error::new(Kind::Unavailable, "hold the stream at one position: it went on").hint(
        "run the same command again; a large transaction or a long wait for locks was in the way",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT: Lsn = Lsn::new(100);

    #[tokio::test]
    async fn the_stream_stands_where_it_is_and_then_where_it_is_told() {
        let gate = Gate::default();
        let apply = async {
            gate.stand(Lsn::new(90), Order::Hold).await;
            assert_eq!(gate.order(), Order::UpTo(AT));
            gate.stand(AT, Order::UpTo(AT)).await;
            assert_eq!(gate.order(), Order::Open);
        };
        let asks = async {
            gate.close().unwrap();
            assert_eq!(gate.stands().await.unwrap(), Lsn::new(90));
            gate.up_to(AT).await.unwrap();
            gate.open();
        };
        tokio::join!(asks, apply);
    }

    #[tokio::test]
    async fn one_asks_at_a_time_and_a_stream_that_has_gone_on_is_said_to() {
        let gate = Gate::default();
        gate.close().unwrap();
        let (held, ()) = tokio::join!(gate.stands(), async {
            assert_eq!(gate.close().unwrap_err().kind, Kind::Held);
            gate.open();
        });
        assert_eq!(held.unwrap_err().kind, Kind::Unavailable);
        // Beyond the position already.
        let apply = async {
            gate.stand(Lsn::new(90), Order::Hold).await;
            gate.stand(Lsn::new(101), Order::UpTo(AT)).await;
        };
        let asks = async {
            gate.close().unwrap();
            gate.stands().await.unwrap();
            assert!(gate.up_to(AT).await.is_err());
            gate.open();
        };
        tokio::join!(asks, apply);
    }

    #[tokio::test]
    async fn nobody_holds_the_stream_for_long() {
        let gate = Gate { limit: Duration::from_millis(20), ..Gate::default() };
        let asks = async {
            gate.close().unwrap();
            gate.stands().await.unwrap();
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = asks => {}
            () = gate.stand(AT, Order::Hold) => {}
        }
        assert_eq!(gate.order(), Order::Open);
        assert!(gate.up_to(AT).await.is_err());
    }
}
