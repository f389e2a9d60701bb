//! Applications that write to the source while it is copied.
//!
//! **Invariant:** what is counted was committed. Each writer has keys of its own, so that no two wait for each other in a
//! circle. The sum of all balances in `live.account` is the same in every state that the database ever has.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tidemark_wire::tokio_postgres::Statement;
use tidemark_wire::{Client, ConnectSpec};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::data::OPEN;
use super::server::query_failed;
use crate::exit::Failure;

/// Connections that write.
pub(super) const WRITERS: i64 = 3;
/// A transaction of each writer, at most this often: a busy shop that leaves the machine room to copy.
const EVERY: Duration = Duration::from_millis(8);

/// The transactions, in turn. `$1` is a number that no other writer has.
const NEW_ORDER: &[&str] = &[
    "INSERT INTO orders SELECT 1000000000 + $1::bigint, c_custkey, 'O', 100 + $1::bigint % 900, current_date, '1-URGENT', \
     'Clerk#000000001', 0, 'placed while it was copied' FROM customer WHERE c_custkey = 1 + $1::bigint % 150",
    "INSERT INTO lineitem SELECT 1000000000 + $1::bigint, ps_partkey, ps_suppkey, row_number() OVER (), 1, 100, 0, 0.05, 'N', 'O', \
     current_date, current_date, current_date, 'NONE', 'MAIL', 'new line' FROM partsupp WHERE ps_partkey = 1 + $1::bigint % 200",
    "UPDATE customer SET c_acctbal = c_acctbal - 1 WHERE c_custkey = 1 + $1::bigint % 150",
];
const SHIP: &[&str] = &[
    "UPDATE orders SET o_orderstatus = 'F' WHERE o_orderkey = 1000000000 + $1::bigint",
    "UPDATE lineitem SET l_linestatus = 'F', l_comment = 'shipped' WHERE l_orderkey = 1000000000 + $1::bigint",
];
const CANCEL: &[&str] = &[
    "DELETE FROM lineitem WHERE l_orderkey = 1 + $1::bigint",
    "DELETE FROM orders WHERE o_orderkey = 1 + $1::bigint",
];
const TRANSFER: &str = "CALL live.transfer()";

/// The writers at work.
#[derive(Debug)]
pub(super) struct Writers {
    tasks: JoinSet<Result<(), Failure>>,
    stop: CancellationToken,
    committed: Arc<AtomicU64>,
    started: Instant,
}

/// What they did.
#[derive(Debug, Clone, Copy)]
pub(super) struct Written {
    /// Transactions.
    pub(super) transactions: u64,
    /// For how long.
    pub(super) time: Duration,
}

impl Writers {
    /// Connects all of them and lets them write.
    pub(super) async fn start(spec: &ConnectSpec) -> Result<Self, Failure> {
        let stop = CancellationToken::new();
        let committed = Arc::new(AtomicU64::new(0));
        let mut tasks = JoinSet::new();
        for number in 0..WRITERS {
            let spec = spec.clone().with_application_name("shop");
            let client = spec.connect().await.map_err(|error| query_failed(&error))?;
            client.batch_execute(OPEN).await.map_err(|error| query_failed(&error))?;
            let writer = Writer { client, number, committed: Arc::clone(&committed) };
            tasks.spawn(writer.run(stop.clone()));
        }
        Ok(Self { tasks, stop, committed, started: Instant::now() })
    }

    /// Transactions so far.
    pub(super) fn committed(&self) -> u64 {
        self.committed.load(Ordering::Relaxed)
    }

    /// Lets each of them end its transaction.
    pub(super) async fn finish(mut self) -> Result<Written, Failure> {
        let time = self.started.elapsed();
        self.stop.cancel();
        while let Some(ended) = self.tasks.join_next().await {
            ended.map_err(|error| Failure::internal("join a writer").because(&error))??;
        }
        Ok(Written { transactions: self.committed(), time })
    }
}

/// One connection that writes.
struct Writer {
    client: Client,
    number: i64,
    committed: Arc<AtomicU64>,
}

impl Writer {
    async fn run(mut self, stop: CancellationToken) -> Result<(), Failure> {
        let ended = self.write_until(&stop).await;
        ended.map_err(|error| query_failed(&error).cause("one of the writers failed"))
    }

    async fn write_until(
        &mut self,
        stop: &CancellationToken,
    ) -> Result<(), tidemark_wire::tokio_postgres::Error> {
        let order = self.prepare(NEW_ORDER).await?;
        let ship = self.prepare(SHIP).await?;
        let cancel = self.prepare(CANCEL).await?;
        let mut pace = tokio::time::interval(EVERY);
        pace.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut round = 0;
        while !stop.is_cancelled() {
            pace.tick().await;
            let number = round / 4 * WRITERS + self.number;
            match round % 4 {
                0 => self.transaction(&order, number).await?,
                1 => self.client.batch_execute(TRANSFER).await?,
                2 => self.transaction(&ship, number).await?,
                _ => self.transaction(&cancel, number).await?,
            }
            self.committed.fetch_add(1, Ordering::Relaxed);
            round += 1;
        }
        Ok(())
    }

    async fn prepare(
        &self,
        texts: &[&str],
    ) -> Result<Vec<Statement>, tidemark_wire::tokio_postgres::Error> {
        let mut statements = Vec::with_capacity(texts.len());
        for text in texts {
            statements.push(self.client.prepare(text).await?);
        }
        Ok(statements)
    }

    async fn transaction(
        &mut self,
        statements: &[Statement],
        number: i64,
    ) -> Result<(), tidemark_wire::tokio_postgres::Error> {
        let transaction = self.client.transaction().await?;
        for statement in statements {
            transaction.execute(statement, &[&number]).await?;
        }
        transaction.commit().await
    }
}
