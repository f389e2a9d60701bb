//! What is known of a pair of tables while it is compared.
//!
//! **Invariant:** a leaf is open until its sums are equal, or differ for certain; no leaf is settled that was not read.

use tidemark_model::RowSum;

use crate::outcome::{TableOutcome, Verdict};
use crate::pair::Pair;
use crate::scan::Sums;
use crate::{Level, Which};

/// A table while it is compared.
pub(crate) struct State {
    pub(crate) source: Vec<RowSum>,
    pub(crate) target: Vec<RowSum>,
    /// Leaves that differed when they were read last.
    pub(crate) open: Vec<u32>,
    /// Leaves that differ and hold still.
    pub(crate) different: Vec<u32>,
    pub(crate) readings: u32,
    pub(crate) gone: Option<Which>,
}

impl State {
    pub(crate) fn new(pair: &Pair) -> Self {
        let none = vec![RowSum::default(); pair.leaves.count()];
        Self {
            source: none.clone(),
            target: none,
            open: (0..pair.leaves.count() as u32).collect(),
            different: Vec::new(),
            readings: 0,
            gone: None,
        }
    }

    /// Takes a reading in: what is equal now is settled, what differs as it did before is different.
    pub(crate) fn settle(&mut self, ours: &Sums, theirs: &Sums, pair: usize) {
        let (Some(ours), Some(theirs)) = (ours.get(&pair), theirs.get(&pair)) else { return };
        let is_first = self.readings == 0;
        self.readings += 1;
        for leaf in std::mem::take(&mut self.open) {
            let at = leaf as usize;
            let (one, other) = (ours[at], theirs[at]);
            let was_so = !is_first && (one, other) == (self.source[at], self.target[at]);
            (self.source[at], self.target[at]) = (one, other);
            match is_same(one, other) {
                true => {}
                false if was_so => self.different.push(leaf),
                false => self.open.push(leaf),
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
        }
    }
}

/// Whether two leaves hold the same values, be it in other representations.
fn is_same(one: RowSum, other: RowSum) -> bool {
    one.count == other.count && one.value == other.value
}
