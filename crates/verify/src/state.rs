//! What is known of a pair of tables while it is compared.
//!
//! **Invariant:** equality is only ever concluded from one reading of all leaves, under one snapshot of each side, or of a pair
//! at one LSN from readings of leaves that the stream has not touched since; a leaf is different when it differs in two
//! readings and neither side has changed in between, when the rows that it differs by were read again and are the same ones, or
//! at one LSN, read on both sides.

use std::collections::HashSet;

use tidemark_digest::Differences;
use tidemark_model::{Lsn, RowSum};
use tidemark_report::{Level, Verdict};

use crate::Which;
use crate::naming::{Excess, Named};
use crate::outcome::TableOutcome;
use crate::pair::Pair;

/// A table while it is compared.
pub(crate) struct State {
    pub(crate) source: Vec<RowSum>,
    pub(crate) target: Vec<RowSum>,
    /// Leaves that differed when they were read last.
    pub(crate) open: Vec<u32>,
    /// Leaves that differ and hold still.
    pub(crate) different: Vec<u32>,
    pub(crate) readings: u32,
    /// What is known of each leaf without reading it.
    pub(crate) before: Vec<Before>,
    /// Whether what is found the same is known when the rest is read under another snapshot.
    pub(crate) is_kept: bool,
    /// Leaves that are left for another snapshot.
    later: Vec<u32>,
    is_at_one_point: bool,
    /// The source's position at the last of them.
    pub(crate) lsn: Option<Lsn>,
    pub(crate) gone: Option<Which>,
    /// The keys that differed in the last reading, where a locator told them all, and the leaves that were read.
    pub(crate) keys: Option<(Differences, Vec<u32>)>,
    pub(crate) named: Option<Named>,
    /// Why the differing rows are not all named.
    pub(crate) unnamed: Option<String>,
}

impl State {
    /// Nothing is known of a table of so many leaves.
    pub(crate) fn new(leaves: usize) -> Self {
        let none = vec![RowSum::default(); leaves];
        Self {
            source: none.clone(),
            target: none,
            open: (0..leaves as u32).collect(),
            different: Vec::new(),
            readings: 0,
            before: vec![Before::Nothing; leaves],
            is_kept: false,
            later: Vec::new(),
            is_at_one_point: false,
            lsn: None,
            gone: None,
            keys: None,
            named: None,
            unnamed: None,
        }
    }

    /// The same of a pair that is read at one LSN.
    pub(crate) fn at_one_point(leaves: usize) -> Self {
        Self { is_at_one_point: true, ..Self::new(leaves) }
    }

    /// Whether another reading may tell more.
    pub(crate) fn wants_reading(&self) -> bool {
        !self.open.is_empty() && self.different.is_empty()
    }

    /// Of the open leaves those that are to be read on a side.
    pub(crate) fn to_read(&self, which: Which) -> Vec<u32> {
        let is_wanted = |leaf: &&u32| match self.before[**leaf as usize] {
            Before::Nothing => true,
            Before::Copied(..) => which == Which::Target,
            Before::Proven(..) => false,
        };
        self.open.iter().filter(is_wanted).copied().collect()
    }

    /// Opens all leaves if those that are open are not to be had without the others, so that what is read counts.
    pub(crate) fn widen(&mut self, can_be_read_alone: impl Fn(&[u32]) -> bool) {
        if !self.is_at_one_point && !can_be_read_alone(&self.open) {
            self.open = (0..self.source.len() as u32).collect();
        }
    }

    /// Whether it was read, be it in part.
    pub(crate) fn was_read(&self) -> bool {
        self.readings > 0
    }

    /// Whether both sides have the same rows in the same representation, all of which are known.
    pub(crate) fn is_identical(&self) -> bool {
        let is_same =
            |before: &Before| matches!(before, Before::Proven([one, other], _) if one == other);
        self.gone.is_none() && self.before.iter().all(is_same)
    }

    /// Opens all leaves that are to be read at a new point.
    pub(crate) fn reopen(&mut self) {
        (self.open, self.later, self.different) = Default::default();
        for (leaf, before) in (0..).zip(&self.before) {
            match before {
                Before::Proven([one, other], _) => {
                    (self.source[leaf as usize], self.target[leaf as usize]) = (*one, *other);
                }
                _ => self.open.push(leaf),
            }
        }
    }

    /// Leaves a part of the open leaves for another point, so that no more than a share is read, but `at_least_one`; gives
    /// whether there are any left.
    pub(crate) fn narrow(&mut self, share: f64, at_least_one: bool) -> bool {
        let wanted = (self.open.len() as f64 * share) as usize;
        let wanted = wanted.max(usize::from(at_least_one)).min(self.open.len());
        self.later = self.open.split_off(wanted);
        !self.later.is_empty()
    }

    /// What is left for later stays unknown.
    pub(crate) fn give_up(&mut self) {
        self.open.append(&mut self.later);
        self.open.sort_unstable();
    }

    /// Keeps what was found the same by a reading at this position.
    pub(crate) fn keep(&mut self, lsn: Lsn) {
        let unknown: HashSet<u32> =
            [&self.open, &self.later, &self.different].into_iter().flatten().copied().collect();
        for (leaf, before) in (0..).zip(&mut self.before) {
            let sums = [self.source[leaf as usize], self.target[leaf as usize]];
            if self.readings > 0 && !unknown.contains(&leaf) {
                *before = Before::Proven(sums, before.lsn().unwrap_or(lsn));
            }
        }
    }

    /// The position of the oldest reading that it stands on, where that is not `lsn`.
    pub(crate) fn oldest(&self, lsn: Lsn) -> Option<Lsn> {
        let known = self.before.iter().filter_map(|before| before.lsn());
        known.min().filter(|oldest| *oldest < lsn)
    }

    /// Whether there are rows to be named: their verdict stands, and they are not the same.
    pub(crate) fn wants_names(&self) -> bool {
        let is_settled = self.open.is_empty() || !self.different.is_empty();
        let is_unknown = self.named.is_none() && self.unnamed.is_none();
        self.readings > 0 && is_settled && is_unknown && !self.leaves_that_differ().is_empty()
    }

    /// The leaves whose rows are not the same, be it in their representation only; not those of which nothing is known.
    pub(crate) fn leaves_that_differ(&self) -> Vec<u32> {
        let open: HashSet<u32> = self.open.iter().copied().collect();
        let both = (0_u32..).zip(self.source.iter().zip(&self.target));
        let differ = both.filter(|(leaf, (one, other))| one != other && !open.contains(leaf));
        differ.map(|(leaf, _)| leaf).collect()
    }

    /// The keys of these leaves, where a locator told them all.
    pub(crate) fn take_keys(&mut self, leaves: &[u32]) -> Option<Differences> {
        let (keys, read) = self.keys.take()?;
        let has_read_all = leaves.iter().all(|leaf| read.binary_search(leaf).is_ok());
        (self.open.is_empty() && has_read_all).then_some(keys)
    }

    /// Takes for granted that what the last reading has found to differ does, until [`State::conclude`]: the differing keys and
    /// leaves, if a locator told them all.
    pub(crate) fn suppose(&mut self) -> Option<(Differences, Vec<u32>)> {
        if self.is_at_one_point || !self.wants_reading() || self.keys.is_none() {
            return None;
        }
        self.different = std::mem::take(&mut self.open);
        let leaves = self.leaves_that_differ();
        let keys = self.take_keys(&leaves);
        if keys.is_none() {
            self.conclude(None);
        }
        keys.map(|keys| (keys, leaves))
    }

    /// It does, in these rows, as a second reading has shown; or another one of everything has to tell.
    pub(crate) fn conclude(&mut self, named: Option<Named>) {
        match named {
            Some(_) => self.readings += 1,
            None => self.open = std::mem::take(&mut self.different),
        }
        self.named = named;
    }

    /// What the source has more of in them.
    pub(crate) fn excess(&self) -> Excess {
        let mut excess = Excess::default();
        for leaf in self.leaves_that_differ() {
            let (one, other) = (self.source[leaf as usize], self.target[leaf as usize]);
            excess.rows = excess.rows.wrapping_add(one.count.wrapping_sub(other.count));
            excess.raw = excess.raw.wrapping_add(one.raw.wrapping_sub(other.raw));
            excess.value = excess.value.wrapping_add(one.value.wrapping_sub(other.value));
        }
        excess
    }

    /// Takes a reading of the open leaves in. What differs as it did before is different. What has changed since the reading
    /// of the other leaves proves nothing of them: a row may have gone from one to another in between, so that all of them
    /// are open again.
    pub(crate) fn settle(&mut self, ours: &[RowSum], theirs: &[RowSum]) {
        if self.is_at_one_point {
            return self.settle_at_one_point(ours, theirs);
        }
        let (is_first, is_whole) = (self.readings == 0, self.open.len() == self.source.len());
        self.readings += 1;
        let mut has_changed = false;
        for leaf in std::mem::take(&mut self.open) {
            let at = leaf as usize;
            let (one, other) = (ours[at], theirs[at]);
            let was_so = !is_first && (one, other) == (self.source[at], self.target[at]);
            (self.source[at], self.target[at]) = (one, other);
            has_changed |= !was_so;
            match is_same(one, other) {
                true => {}
                false if was_so => self.different.push(leaf),
                false => self.open.push(leaf),
            }
        }
        if has_changed && !is_whole && self.different.is_empty() {
            self.open = (0..self.source.len() as u32).collect();
        }
    }

    /// The same where all readings are of one LSN: what differs, differs, if it was read on both sides.
    fn settle_at_one_point(&mut self, ours: &[RowSum], theirs: &[RowSum]) {
        self.readings += 1;
        for leaf in std::mem::take(&mut self.open) {
            let at = leaf as usize;
            let before = self.before[at];
            let (one, other) = before.with(ours[at], theirs[at]);
            (self.source[at], self.target[at]) = (one, other);
            match is_same(one, other) {
                true => {}
                false if before == Before::Nothing => self.different.push(leaf),
                false => {
                    self.before[at] = Before::Nothing;
                    self.open.push(leaf);
                }
            }
        }
    }

    pub(crate) fn outcome(self, pair: &Pair, level: Level) -> TableOutcome {
        let total = |leaves: &[RowSum]| {
            leaves.iter().fold(RowSum::default(), |mut sum, leaf| {
                sum += *leaf;
                sum
            })
        };
        let (source, target) = (total(&self.source), total(&self.target));
        let oldest_leaf = self.lsn.and_then(|lsn| self.oldest(lsn));
        let is_exact = self.source == self.target;
        // What no sum can tell: every differing row was looked at, and the source calls it equal.
        let is_equal_to_sql = level == Level::Rows
            && self.open.is_empty()
            && self.named.as_ref().is_some_and(Named::is_equivalent);
        let (verdict, because) = match self.gone {
            _ if pair.is_other => {
                (Verdict::Different, Some("its columns are not the same".to_owned()))
            }
            _ if is_equal_to_sql => (Verdict::Equivalent, None),
            _ if !self.different.is_empty() => (Verdict::Different, None),
            Some(which) => {
                let because =
                    format!("it was dropped or renamed on the {} meanwhile", which.word());
                (Verdict::Incomplete, Some(because))
            }
            // Nothing was read, as it was asked for.
            None if level == Level::Schema => (Verdict::Incomplete, None),
            None if !self.open.is_empty() => {
                let because = format!("it was still changing after {} readings", self.readings);
                (Verdict::Incomplete, Some(because))
            }
            None if level == Level::Count => (Verdict::Incomplete, None),
            None if is_exact => (Verdict::Identical, None),
            None => (Verdict::Equivalent, None),
        };
        TableOutcome {
            name: pair.name().clone(),
            verdict,
            because,
            source,
            target,
            leaves: self.source.into_iter().zip(self.target).collect(),
            different: self.different,
            unsettled: self.open,
            readings: self.readings,
            oldest_leaf,
            last_proven: None,
            lsn: self.lsn,
            key_columns: pair.key.iter().map(|at| pair.source.columns[*at].name.clone()).collect(),
            named: match verdict {
                Verdict::Identical => Some(Named::default()),
                _ => self.named,
            },
            unnamed: self.unnamed,
            lossy: None,
        }
    }
}

/// What is known of a leaf without reading it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Before {
    Nothing,
    /// The source had this sum when it was copied, at this position, and has it still. Its value form need not be known.
    Copied(RowSum, Lsn),
    /// The source's sum and the target's, of the same values, when they were read, the older one at this position; the stream
    /// has not touched them since.
    Proven([RowSum; 2], Lsn),
}

impl Before {
    pub(crate) fn lsn(self) -> Option<Lsn> {
        match self {
            Self::Nothing => None,
            Self::Copied(_, lsn) | Self::Proven(_, lsn) => Some(lsn),
        }
    }

    /// The sums of both sides, of which `ours` and `theirs` are what was read.
    fn with(self, ours: RowSum, theirs: RowSum) -> (RowSum, RowSum) {
        match self {
            Self::Nothing => (ours, theirs),
            Self::Proven([one, other], _) => (one, other),
            // The same bytes have the same value; of others only a reading tells.
            Self::Copied(sum, _) if (sum.count, sum.raw) == (theirs.count, theirs.raw) => {
                (theirs, theirs)
            }
            Self::Copied(sum, _) => (RowSum { value: !theirs.value, ..sum }, theirs),
        }
    }
}

/// Whether two leaves hold the same values, be it in other representations.
fn is_same(one: RowSum, other: RowSum) -> bool {
    one.count == other.count && one.value == other.value
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(rows: u64) -> RowSum {
        RowSum { count: rows, raw: rows.into(), value: rows.into() }
    }

    #[test]
    fn a_row_that_goes_from_a_leaf_to_another_between_two_readings_is_not_lost_sight_of() {
        let mut state = State::new(2);
        state.settle(&[sum(5), sum(4)], &[sum(5), sum(3)]);
        assert_eq!(state.open, [1]);
        // The row that the target lacks is in leaf 0 of the source by now, which is not read here.
        state.settle(&[sum(0), sum(3)], &[sum(0), sum(3)]);
        assert_eq!(state.open, [0, 1]);
        state.settle(&[sum(6), sum(3)], &[sum(5), sum(3)]);
        assert_eq!(state.open, [0]);
        state.settle(&[sum(6), sum(0)], &[sum(5), sum(0)]);
        assert_eq!((state.different, state.open), (vec![0], vec![]));
    }

    #[test]
    fn one_reading_of_all_leaves_is_a_proof_and_one_difference_that_stays_is_enough() {
        let mut caught_up = State::new(2);
        caught_up.settle(&[sum(5), sum(4)], &[sum(4), sum(3)]);
        caught_up.settle(&[sum(5), sum(4)], &[sum(5), sum(4)]);
        assert!(!caught_up.wants_reading(), "all leaves differed, so that all were read again");
        let mut beside = State::new(3);
        beside.settle(&[sum(5), sum(4), sum(1)], &[sum(4), sum(3), sum(1)]);
        beside.settle(&[sum(5), sum(9), sum(0)], &[sum(4), sum(3), sum(0)]);
        assert!(!beside.wants_reading());
        assert_eq!((beside.different, beside.open), (vec![0], vec![1]));
    }
}
