//! A read snapshot: which transactions a reader sees.
//!
//! **Invariant:** [`ReadSnapshot::shows`] answers as `pg_visible_in_snapshot` does, for transactions that have committed. It
//! knows top-level transactions only: sub-transactions are seen with them.
//!
//! PostgreSQL manual, section 9.27.8 (`pg_current_snapshot`, `pg_visible_in_snapshot`): `xmin:xmax:xip,xip,...`, 64-bit ids
//! with their epoch.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::Lsn;

/// A read snapshot as `pg_current_snapshot()` gives it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadSnapshot {
    /// Every transaction before it had ended.
    xmin: u64,
    /// None from it on had.
    xmax: u64,
    /// Those between that had not, in ascending order.
    in_progress: Vec<u64>,
}

impl ReadSnapshot {
    /// Whether a transaction that has committed is seen. `xid` is the top-level one, with its epoch.
    pub fn shows(&self, xid: u64) -> bool {
        xid < self.xmin || (xid < self.xmax && self.in_progress.binary_search(&xid).is_err())
    }
}

impl fmt::Display for ReadSnapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:", self.xmin, self.xmax)?;
        for (index, xid) in self.in_progress.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            write!(f, "{comma}{xid}")?;
        }
        Ok(())
    }
}

/// The text is no read snapshot.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no read snapshot")]
pub struct MalformedSnapshot(String);

impl FromStr for ReadSnapshot {
    type Err = MalformedSnapshot;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        parse(text).ok_or_else(|| MalformedSnapshot(text.to_owned()))
    }
}

fn parse(text: &str) -> Option<ReadSnapshot> {
    let mut parts = text.splitn(3, ':');
    let (xmin, xmax) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
    let list = parts.next()?;
    let xids = list.split(',').filter(|_| !list.is_empty());
    let in_progress: Vec<u64> = xids.map(str::parse).collect::<Result<_, _>>().ok()?;
    let fits = xmin <= xmax
        && in_progress.is_sorted_by(|one, two| one < two)
        && in_progress.iter().all(|xid| (xmin..xmax).contains(xid));
    fits.then_some(ReadSnapshot { xmin, xmax, in_progress })
}

impl Serialize for ReadSnapshot {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ReadSnapshot {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Where a table joined the stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinPoint {
    /// The table was copied under it: what it shows is not applied to the table again.
    pub snapshot: ReadSnapshot,
    /// The source's position after the snapshot was taken: every transaction that it shows ended at or before it. Until the
    /// stream has passed it, this table is ahead of others.
    pub lsn: Lsn,
    /// The source's timeline that the snapshot was taken on: on another one the ids of the snapshot may be those of other
    /// transactions. None where a version stored the point that did not keep it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeline: Option<u32>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_shows_what_had_ended_and_nothing_that_was_in_progress_or_came_later() {
        let snapshot: ReadSnapshot = "100:110:100,105".parse().unwrap();
        let shown: Vec<u64> = (98..112).filter(|xid| snapshot.shows(*xid)).collect();
        assert_eq!(shown, [98, 99, 101, 102, 103, 104, 106, 107, 108, 109]);
    }

    #[test]
    fn ids_are_compared_with_their_epoch() {
        let epoch = 3_u64 << 32;
        let snapshot: ReadSnapshot = format!("{}:{}:", epoch + 5, epoch + 5).parse().unwrap();
        assert!(snapshot.shows((2 << 32) + 4_000_000_000), "of the epoch before");
        assert!(snapshot.shows(epoch + 4) && !snapshot.shows(epoch + 5));
    }

    #[test]
    fn it_reads_what_it_writes_and_nothing_else() {
        for text in ["1:1:", "10:20:10,15,16", "12884901889:12884901899:12884901890"] {
            assert_eq!(text.parse::<ReadSnapshot>().unwrap().to_string(), text);
        }
        for text in
            ["", "1", "1:2", "2:1:", "1:5:9", "1:5:0", "1:5:3,2", "1:5:2,2", "1:5:x", "a:b:"]
        {
            assert!(text.parse::<ReadSnapshot>().is_err(), "{text}");
        }
    }
}
