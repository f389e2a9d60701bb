//! A live writer: keeps changing a database until it is stopped, and says what it committed.
//!
//! **Invariant:** `seq` in `load.ledger` (keyed) and `load.ledger_copy` (no key) is dense per client
//! over the committed transactions, so that a lost transaction shows as a gap and one applied twice as
//! a duplicate in the copy, which an upsert would hide.
//!
//! Each transaction moves money between accounts (their sum is constant), writes both ledgers, and
//! now and then inserts, changes (also the key of), or deletes a row of `load.churn`; one in ten is
//! rolled back, one in ten has a savepoint that is. A `psql` per client does it; a line on its stdout
//! says that the commit is done.

use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::Cluster;
use crate::session::Session;

const SCHEMA: &str = "
CREATE SCHEMA IF NOT EXISTS load;
CREATE TABLE load.account (id integer PRIMARY KEY, balance bigint NOT NULL);
INSERT INTO load.account SELECT i, 1000 FROM generate_series(1, 1000) i;
CREATE TABLE load.ledger (client integer, seq bigint, note text, PRIMARY KEY (client, seq));
CREATE TABLE load.ledger_copy (client integer, seq bigint, note text);
ALTER TABLE load.ledger_copy REPLICA IDENTITY FULL;
CREATE TABLE load.latest (client integer PRIMARY KEY, seq bigint NOT NULL);
CREATE TABLE load.churn (id bigint PRIMARY KEY, big text, small integer);
INSERT INTO load.churn SELECT i, repeat(md5(i::text), i % 100), i FROM generate_series(1, 2000) i;
";

/// How the writer writes.
#[derive(Debug, Clone)]
pub struct WriterOptions {
    /// Parallel clients, each with its own connection and its own dense sequence.
    pub clients: u32,
    /// The seed of what is written; client n uses `seed + n`.
    pub seed: u64,
    /// The pause after each transaction of a client.
    pub pause: Duration,
}

impl Default for WriterOptions {
    fn default() -> Self {
        Self { clients: 1, seed: 1, pause: Duration::from_millis(2) }
    }
}

/// What the writer has done.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WriterReport {
    /// Transactions whose commit was answered.
    pub committed: u64,
    /// Transactions rolled back on purpose.
    pub rolled_back: u64,
    /// Clients that lost their connection: each may have one more transaction committed.
    pub lost_clients: u32,
}

/// A writer that runs until it is stopped or dropped.
#[derive(Debug)]
pub struct Writer {
    clients: Vec<Client>,
}

#[derive(Debug)]
struct Client {
    stop: Option<SyncSender<()>>,
    thread: Option<JoinHandle<Result<WriterReport>>>,
}

impl Writer {
    /// Makes the tables in the schema `load`, then starts to write.
    ///
    /// # Errors
    /// When the tables exist or the clients cannot be started.
    pub fn start(cluster: &Cluster, database: &str, options: &WriterOptions) -> Result<Self> {
        cluster.psql(database, SCHEMA).context("make the writer's tables")?;
        Self::resume(cluster, database, options)
    }

    /// Starts to write to tables that an earlier writer left; sequences go on where they were.
    ///
    /// # Errors
    /// When the tables are not there.
    pub fn resume(cluster: &Cluster, database: &str, options: &WriterOptions) -> Result<Self> {
        let mut clients = Vec::new();
        for client in 0..options.clients {
            let sql =
                format!("SELECT coalesce(max(seq), 0) FROM load.ledger WHERE client = {client}");
            let last: u64 = cluster.psql(database, &sql)?.parse().context("read the last seq")?;
            let session = Session::strict(cluster, database)?;
            let (stop, stopped) = sync_channel(1);
            let random = StdRng::seed_from_u64(options.seed + u64::from(client));
            let pause = options.pause;
            let work = Work { session, random, client, seq: last, report: WriterReport::default() };
            let thread = std::thread::Builder::new()
                .name(format!("writer-{client}"))
                .spawn(move || work.run(&stopped, pause))
                .context("start a writer thread")?;
            clients.push(Client { stop: Some(stop), thread: Some(thread) });
        }
        Ok(Self { clients })
    }

    /// Stops after the transactions in flight and says what was done.
    ///
    /// # Errors
    /// When a statement failed for another reason than a lost connection.
    pub fn stop(mut self) -> Result<WriterReport> {
        let mut total = WriterReport::default();
        for client in &mut self.clients {
            drop(client.stop.take());
        }
        for client in &mut self.clients {
            let Some(thread) = client.thread.take() else { continue };
            let report = match thread.join() {
                Ok(report) => report?,
                Err(_) => bail!("a writer thread panicked"),
            };
            total.committed += report.committed;
            total.rolled_back += report.rolled_back;
            total.lost_clients += report.lost_clients;
        }
        Ok(total)
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        for client in &mut self.clients {
            drop(client.stop.take());
            if let Some(thread) = client.thread.take() {
                // A test that fails elsewhere must not be hidden by the writer's own result.
                thread.join().ok();
            }
        }
    }
}

struct Work {
    session: Session,
    random: StdRng,
    client: u32,
    seq: u64,
    report: WriterReport,
}

impl Work {
    fn run(mut self, stopped: &Receiver<()>, pause: Duration) -> Result<WriterReport> {
        let limit = "SET lock_timeout = '20s';";
        let mut alive = self.session.run(limit);
        while alive {
            let rolls_back = self.random.random_ratio(1, 10);
            let sql = self.transaction(rolls_back);
            alive = self.session.run(&sql);
            if alive && rolls_back {
                self.report.rolled_back += 1;
            } else if alive {
                self.seq += 1;
                self.report.committed += 1;
            }
            match stopped.recv_timeout(pause) {
                Err(RecvTimeoutError::Timeout) => {}
                Ok(()) | Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        if !alive {
            self.report.lost_clients = 1;
        }
        self.session.finish(&[])?;
        Ok(self.report)
    }

    fn transaction(&mut self, rolls_back: bool) -> String {
        let (client, seq) = (self.client, self.seq + 1);
        let mut from = self.random.random_range(1..=1000);
        let mut to = self.random.random_range(1..=1000);
        // Locks in one order, so that clients never wait for each other in a circle.
        let mut amount: i32 = self.random.random_range(1..50);
        if from > to {
            (from, to, amount) = (to, from, -amount);
        }
        let mut sql = format!(
            "BEGIN; UPDATE load.account SET balance = balance - {amount} WHERE id = {from}; \
             UPDATE load.account SET balance = balance + {amount} WHERE id = {to}; \
             INSERT INTO load.ledger VALUES ({client}, {seq}, 'c{client} s{seq}'); \
             INSERT INTO load.ledger_copy VALUES ({client}, {seq}, 'c{client} s{seq}'); \
             INSERT INTO load.latest VALUES ({client}, {seq}) ON CONFLICT (client) DO UPDATE SET seq = {seq}; "
        );
        if self.random.random_ratio(1, 10) {
            // Its own row only: two clients that touch each other's would wait in a circle.
            sql.push_str(&format!(
                "SAVEPOINT s; UPDATE load.latest SET seq = -1 WHERE client = {client}; ROLLBACK TO s; "
            ));
        }
        sql.push_str(&self.churn());
        sql.push_str(if rolls_back { "ROLLBACK;" } else { "COMMIT;" });
        sql
    }

    /// One change of a row that no other client touches.
    fn churn(&mut self) -> String {
        let clients_own = u64::from(self.client) * 1_000_000 + 10_000;
        let id = clients_own + self.random.random_range(0..500_u64);
        match self.random.random_range(0..5) {
            0 | 1 => format!(
                "INSERT INTO load.churn VALUES ({id}, repeat(md5('{id}'), {}), 0) ON CONFLICT DO NOTHING; ",
                self.random.random_range(0..300)
            ),
            2 => format!("UPDATE load.churn SET small = small + 1 WHERE id = {id}; "),
            3 => format!(
                "UPDATE load.churn SET id = {id} + 500 WHERE id = {id} AND NOT EXISTS \
                 (SELECT FROM load.churn WHERE id = {id} + 500); "
            ),
            _ => format!("DELETE FROM load.churn WHERE id IN ({id}, {id} + 500); "),
        }
    }
}

/// Checks the writer's promises on a database, source or target: dense sequences without duplicates
/// in both ledgers, and the sum of the accounts. Gives the number of transactions it holds.
///
/// # Errors
/// When a transaction is missing, there twice, or half there.
pub fn check_ledger(cluster: &Cluster, database: &str) -> Result<u64> {
    let sql = "SELECT json_build_object(
        'keyed', (SELECT count(*) FROM load.ledger),
        'copied', (SELECT count(*) FROM load.ledger_copy),
        'distinct', (SELECT count(*) FROM (SELECT DISTINCT client, seq FROM load.ledger_copy) d),
        'dense', (SELECT coalesce(sum(m), 0) FROM (SELECT max(seq) AS m FROM load.ledger GROUP BY client) x),
        'latest', (SELECT coalesce(sum(seq), 0) FROM load.latest),
        'balance', (SELECT sum(balance) FROM load.account))";
    let text = cluster.psql(database, sql)?;
    let found: serde_json::Value =
        serde_json::from_str(&text).context("read the ledger's counts")?;
    let keyed = found["keyed"].as_u64().context("read the ledger's count")?;
    let same = ["copied", "distinct", "dense", "latest"].iter().all(|name| found[*name] == keyed);
    if !same || found["balance"] != 1_000_000 {
        bail!("the ledger of database {database} is not what one history leaves: {text}");
    }
    Ok(keyed)
}
