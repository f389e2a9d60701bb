//! Finds the rows in which two copies of a table differ, in the same scan that sums them.
//!
//! A [`Locator`] is an invertible Bloom lookup table of (key, row hash). Every worker of a side feeds one, a side's are
//! merged, one side's is taken from the other's, and what is left over is peeled: the differing keys, exactly, however
//! many rows are equal.
//!
//! **Invariant:** [`Differences::is_complete`] is true only if what was found explains every cell to the last bit; two
//! scans of equal tables never give a key. The result depends on the multiset of rows, not on their order, on batches or
//! on workers. No row allocates, and [`Locator::bytes`] never grows.
//!
//! ```text
//! row ── row hash, 128 bits ─ low 64 ─┐                    ┌ a cell of sub-table 0 ┐  count    i64
//!     └─ key code, 128 bits ──────────┴─ symbol, added to ─┼ a cell of sub-table 1 ┤  key      4 x 32 bits ┐ each in a
//!                                                          └ a cell of sub-table 2 ┘  row hash 2 x 32 bits ├ lane of
//!                                                                                     check    1 x 32 bits ┘ 64 bits
//! source - target, then: a cell that holds m copies of one symbol gives it up, which makes others hold one ..
//! ```
//!
//! - **Sums, not XOR**: m equal rows are m times the symbol, so {A,A} against {B,B} and 4 copies against 2 are found. A
//!   limb of 32 bits has a lane of 64, and lanes add without carries (one vector instruction for two lanes). Whatever is
//!   equal on both sides cancels; what is left must be fewer than 2^31 rows per cell, or the result is incomplete.
//! - **Keys**: up to 16 bytes of int2/int4/int8/uuid columns are the code itself, and their values come back. Any other key
//!   is its leaf's number and 96 bits of its keyed hash: the caller reads those leaves again and compares
//!   ([`RowHasher::name_rows`](crate::RowHasher::name_rows)). Without a key the row hash is the code.
//! - **Size**: a changed row is two symbols, and there are 1.5 cells per symbol: 192 bytes per difference, at least 768 KiB
//!   (19.2 MB for 100,000). Every worker has a table of its own. A table above 1 MiB is fed through a buffer of at most
//!   256 KiB, and peeling takes about as much as the table again, for a moment.
//! - **Odds** that as many differences as asked for are not all found: two symbols share all three cells with a chance of
//!   about 2/d for d differences at full size, 3 in 100,000 for 1,000 of them (`at_full_size_two_in_d_tables_overflow`
//!   measures it). Then, as with too many differences, the result says that it is incomplete. A sum of
//!   several symbols passes for one with a chance below 2^-28 per table, and leaves cells that are not zero.
//!
//! **Not here:** whether the tables are equal. That is what the sums of 128 bits say ([`crate::RowHasher::sum`]).
//!
//! Goodrich and Mitzenmacher, "Invertible Bloom Lookup Tables" (arXiv 1101.2245).

mod key;
mod table;

use serde::{Deserialize, Serialize};

pub(crate) use key::{Join, KeyPart, Read};
pub use key::{KeyCode, KeyPlan, KeyValue, LocatedKey};
use table::{Pending, Table};

use crate::{DigestKey, Error, RawScheme, Result};

/// Which hash of a row makes it differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LocatedForm {
    /// The raw hash: rows that are not identical.
    Raw,
    /// The value hash: rows that are not even equivalent.
    Value,
}

/// What rows of one side were seen, to be compared with the other side's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Locator {
    plan: KeyPlan,
    /// [`DigestKey::id`]
    key_id: String,
    /// What the hashes are taken over; set by the hasher that feeds it.
    of: Option<(LocatedForm, RawScheme)>,
    /// Rows whose key has no code: a NULL, or a number too large for the plan.
    unplaced: u64,
    table: Table,
}

impl Locator {
    /// An empty one that finds up to `max_differences` missing, extra or changed rows.
    pub fn new(plan: KeyPlan, max_differences: u32, key: &DigestKey) -> Self {
        let table = Table::new(max_differences, key);
        Self { plan, key_id: key.id(), of: None, unplaced: 0, table }
    }

    /// Memory that such a locator takes.
    pub fn bytes_for(max_differences: u32) -> u64 {
        Table::bytes_for(max_differences)
    }

    /// Memory that it takes.
    pub fn bytes(&self) -> u64 {
        self.table.bytes()
    }

    /// How keys are written.
    pub fn plan(&self) -> &KeyPlan {
        &self.plan
    }

    /// Adds the rows that another worker of the same side saw.
    ///
    /// # Errors
    /// The two are of another plan, size, digest key or kind of hash.
    pub fn merge(&mut self, other: &Self) -> Result<()> {
        self.check(other)?;
        self.of = self.of.or(other.of);
        self.unplaced += other.unplaced;
        self.table.merge(&other.table);
        Ok(())
    }

    /// What is on the source (`self`) and not on the target, and the other way round.
    ///
    /// # Errors
    /// The two are of another plan, size, digest key or kind of hash.
    pub fn compare(mut self, target: &Self) -> Result<Differences> {
        self.check(target)?;
        self.table.subtract(&target.table);
        let (mut symbols, is_peeled) = self.table.peel();
        symbols.sort_unstable();
        let mut found: Vec<Difference> = Vec::new();
        let mut last = None;
        for (code, _hash, count) in symbols {
            if last != Some(code) {
                let key = self.plan.located(code);
                found.push(Difference { key, source_rows: 0, target_rows: 0 });
                last = Some(code);
            }
            if let Some(difference) = found.last_mut() {
                let rows = if count > 0 {
                    &mut difference.source_rows
                } else {
                    &mut difference.target_rows
                };
                *rows += count.unsigned_abs();
            }
        }
        let is_complete = is_peeled && self.unplaced == 0 && target.unplaced == 0;
        Ok(Differences { is_complete, found })
    }

    /// Fixes what the hashes are taken over.
    pub(crate) fn begin(&mut self, key: &DigestKey, of: (LocatedForm, RawScheme)) -> Result<()> {
        if self.key_id != key.id() || self.of.is_some_and(|before| before != of) {
            return Err(Error::OtherLocator);
        }
        self.of = Some(of);
        Ok(())
    }

    fn check(&self, other: &Self) -> Result<()> {
        let is_same_hash = match (self.of, other.of) {
            (Some(one), Some(two)) => one == two,
            _ => true,
        };
        let is_same = is_same_hash
            && self.plan == other.plan
            && self.key_id == other.key_id
            && self.table.is_like(&other.table);
        if is_same { Ok(()) } else { Err(Error::OtherLocator) }
    }
}

/// Rows that are added at once.
const WAITING: usize = 128;

/// A locator while it is fed.
#[derive(Debug)]
pub(crate) struct Feeding {
    locator: Locator,
    pending: Option<Pending>,
    /// Rows that were hashed. Adding several at once overlaps their cache misses.
    waiting: Vec<(KeyCode, u64)>,
}

impl Feeding {
    pub(crate) fn new(locator: Locator) -> Self {
        Self { pending: locator.table.pending(), locator, waiting: Vec::with_capacity(WAITING) }
    }

    pub(crate) fn plan(&self) -> &KeyPlan {
        &self.locator.plan
    }

    #[inline]
    pub(crate) fn add(&mut self, code: Option<KeyCode>, hash: u128) {
        let Some(code) = code else {
            self.locator.unplaced += 1;
            return;
        };
        self.waiting.push((code, hash as u64));
        if self.waiting.len() == WAITING {
            self.flush();
        }
    }

    #[inline(never)]
    fn flush(&mut self) {
        let table = &mut self.locator.table;
        match &mut self.pending {
            None => self.waiting.iter().for_each(|(code, hash)| table.add(*code, *hash)),
            Some(pending) => {
                self.waiting
                    .iter()
                    .for_each(|(code, hash)| table.add_through(pending, *code, *hash));
            }
        }
        self.waiting.clear();
    }

    /// The locator, with all that was added.
    pub(crate) fn finish(mut self) -> Locator {
        self.flush();
        if let Some(pending) = &mut self.pending {
            self.locator.table.flush(pending);
        }
        self.locator
    }
}

/// In what two copies of a table differ.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Differences {
    /// Whether `found` is everything. If not, it is a part at best: more differed than the locator had room for, or a row
    /// had a key that cannot be named.
    pub is_complete: bool,
    /// One per key, in the order of the key codes.
    pub found: Vec<Difference>,
}

/// One key whose rows are not the same on both sides. Rows that both sides have are not counted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// The key.
    pub key: LocatedKey,
    /// Rows that the source has more of.
    pub source_rows: u64,
    /// Rows that the target has more of.
    pub target_rows: u64,
}

/// On which side a key has rows that the other side lacks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Side {
    /// The target misses rows.
    OnlySource,
    /// The target has extra rows.
    OnlyTarget,
    /// Both sides have rows of this key, and not the same ones.
    Both,
}

impl Difference {
    /// On which side there are rows that the other lacks.
    pub fn side(&self) -> Side {
        match (self.source_rows, self.target_rows) {
            (_, 0) => Side::OnlySource,
            (0, _) => Side::OnlyTarget,
            _ => Side::Both,
        }
    }
}
