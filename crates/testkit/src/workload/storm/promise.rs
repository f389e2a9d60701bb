//! What a database says about itself: whether it holds a state that the storm has left at some commit.
//!
//! **Invariant:** each answer comes from one statement, hence from one snapshot.

use std::collections::BTreeMap;
use std::fmt;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::Cluster;

/// The bank of the start: 1000 accounts with 1000 each, 100 vaults with 10000 each.
const BANK: i64 = 2_000_000;

/// A promise that does not hold, in words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Broken(pub String);

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The cheap promises: some milliseconds, for a poll.
pub(crate) const GLANCE: &str = "json_build_object(
  'bank', (SELECT sum(balance) FROM storm.account) + (SELECT sum(balance) FROM storm.vault),
  'clock', (SELECT tick FROM storm.clock), 'tick', (SELECT coalesce(max(tick), 0) FROM storm.tick),
  'clients', (SELECT coalesce(json_object_agg(l.client, json_build_array(l.seq,
      (SELECT max(seq) FROM storm.ledger k WHERE k.client = l.client))), '{}') FROM storm.latest l))";

/// All promises: reads both ledgers.
const WHOLE: &str = "SELECT json_build_object(
  'entries', (SELECT count(*) FROM storm.ledger), 'dense', (SELECT coalesce(sum(m), 0) FROM (SELECT max(seq) AS m FROM storm.ledger GROUP BY client) x),
  'copies', (SELECT count(*) FROM storm.ledger_copy), 'distinct', (SELECT count(*) FROM (SELECT DISTINCT client, seq, note FROM storm.ledger_copy) d),
  'strange', (SELECT count(*) FROM storm.ledger_copy c WHERE NOT EXISTS (SELECT FROM storm.ledger k WHERE (k.client, k.seq, k.note) = (c.client, c.seq, c.note))),
  'latest', (SELECT coalesce(sum(seq), 0) FROM storm.latest), 'ticks', (SELECT count(*) FROM storm.tick), 'clock', (SELECT tick FROM storm.clock),
  'bank', (SELECT sum(balance) FROM storm.account) + (SELECT sum(balance) FROM storm.vault))";

/// What a poll has seen so far, for promises about time: nothing goes back.
#[derive(Debug, Default)]
pub struct Watched {
    latest: BTreeMap<String, i64>,
    clock: i64,
}

/// Judges one answer of the cheap query; it must not contradict itself nor go back behind `watched`.
///
/// # Errors
/// The answer cannot be read.
pub fn glance(answer: &Value, watched: &mut Watched) -> Result<Vec<Broken>> {
    let mut broken = Vec::new();
    let bank = answer["bank"].as_i64();
    if bank != Some(BANK) {
        broken.push(Broken(format!("half a transaction: the bank holds {bank:?}, not {BANK}")));
    }
    let clock = answer["clock"].as_i64().context("read the clock")?;
    if answer["tick"].as_i64() != Some(clock) {
        broken.push(Broken(format!(
            "half a transaction: the clock says {clock}, the last tick is {}",
            answer["tick"]
        )));
    }
    if clock < watched.clock {
        broken.push(Broken(format!(
            "back in time: the clock went from {} to {clock}",
            watched.clock
        )));
    }
    watched.clock = watched.clock.max(clock);
    for (client, pair) in answer["clients"].as_object().context("read the clients")? {
        let latest = pair[0].as_i64().context("read a client's last entry")?;
        if pair[1].as_i64() != Some(latest) {
            broken.push(Broken(format!(
                "half a transaction: client {client} is at {latest}, its ledger ends at {}",
                pair[1]
            )));
        }
        let before = watched.latest.entry(client.clone()).or_default();
        if latest < *before {
            broken.push(Broken(format!(
                "back in time: client {client} went from {before} to {latest}"
            )));
        }
        *before = (*before).max(latest);
    }
    Ok(broken)
}

/// Holds a database, source or target, against all promises. Gives the number of transactions with an entry.
///
/// # Errors
/// When it cannot be read.
pub fn promises(cluster: &Cluster, database: &str) -> Result<(u64, Vec<Broken>)> {
    let text = cluster.psql(database, WHOLE)?;
    let found: Value = serde_json::from_str(&text).context("read the storm's counts")?;
    let count = |name: &str| found[name].as_i64().unwrap_or(-1);
    let mut broken = Vec::new();
    let mut same = |what: &str, one: &str, other: i64| {
        if count(one) != other {
            broken.push(Broken(format!("{what}: {one} is {}, not {other}", found[one])));
        }
    };
    let entries = count("entries");
    same("a gap in the ledger", "dense", entries);
    same("an entry doubled or lost in the copy", "copies", entries);
    same("an entry doubled in the copy", "distinct", count("copies"));
    same("an entry of the copy that the ledger does not have", "strange", 0);
    same("the last entries are not those of the ledger", "latest", entries);
    same("a tick lost", "ticks", count("clock"));
    same("half a transfer", "bank", BANK);
    Ok((u64::try_from(entries).unwrap_or_default(), broken))
}
