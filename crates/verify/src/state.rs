//! What is known of a pair of tables while it is compared.
//!
//! **Invariant:** equality is only ever concluded from one reading of all leaves, under one snapshot of each side; a leaf is
//! different when it differs in two readings and neither side has changed in between, or at one LSN.

use tidemark_model::{Lsn, RowSum};
use tidemark_report::{Level, Verdict};

use crate::Which;
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
    /// The source's position at the last of them.
    pub(crate) lsn: Option<Lsn>,
    pub(crate) gone: Option<Which>,
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
            lsn: None,
            gone: None,
        }
    }

    /// Whether another reading may tell more.
    pub(crate) fn wants_reading(&self) -> bool {
        !self.open.is_empty() && self.different.is_empty()
    }

    /// Takes a reading of the open leaves in. What differs as it did before is different. What has changed since the reading
    /// of the other leaves proves nothing of them: a row may have gone from one to another in between, so that all of them
    /// are open again.
    pub(crate) fn settle(&mut self, ours: &[RowSum], theirs: &[RowSum]) {
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

    pub(crate) fn outcome(self, pair: &Pair, level: Level) -> TableOutcome {
        let total = |leaves: &[RowSum]| {
            leaves.iter().fold(RowSum::default(), |mut sum, leaf| {
                sum += *leaf;
                sum
            })
        };
        let (source, target) = (total(&self.source), total(&self.target));
        let is_exact = self.source == self.target;
        let (verdict, because) = match self.gone {
            _ if pair.is_other => {
                (Verdict::Different, Some("its columns are not the same".to_owned()))
            }
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
            lsn: self.lsn,
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
