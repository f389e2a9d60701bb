//! Since when the target has been behind: what has come, or must come, and is not on the target yet.
//!
//! **Invariant:** times are the source's alone (its commits, its clock when it was looked at), so clocks of two machines are
//! never compared (`hazards.md` G104). The answer is the age of the oldest transaction that the target does not show, however
//! little of what is behind it was received: a reader that is held back cannot make the lag look small.
//!
//! Not every transaction is kept, only one in a while: the answer may be wrong by that while.

use std::collections::VecDeque;

use tidemark_model::Lsn;

/// Microseconds between two marks, as long as there are few.
const SPACING: i64 = 100_000;
/// So many marks are kept; then every second one goes.
const MARKS: usize = 4096;
/// For so long the source may be ahead of what has come: it tells about WAL without changes of ours only now and then.
const QUIET: i64 = 5_000_000;

/// Positions of the source with their times, thinned out.
#[derive(Debug)]
struct Marks {
    marks: VecDeque<(Lsn, i64)>,
    spacing: i64,
}

impl Default for Marks {
    fn default() -> Self {
        Self { marks: VecDeque::new(), spacing: SPACING }
    }
}

impl Marks {
    fn push(&mut self, lsn: Lsn, time: i64) {
        let is_due = self.marks.back().is_none_or(|(_, last)| time - last >= self.spacing);
        if !is_due {
            return;
        }
        self.marks.push_back((lsn, time));
        if self.marks.len() > MARKS {
            let mut number = 0_usize;
            self.marks.retain(|_| {
                number += 1;
                number % 2 == 1
            });
            self.spacing *= 2;
        }
    }

    fn pop_to(&mut self, lsn: Lsn) {
        while self.marks.front().is_some_and(|(mark, _)| *mark <= lsn) {
            self.marks.pop_front();
        }
        if self.marks.is_empty() {
            self.spacing = SPACING;
        }
    }

    fn first(&self) -> Option<i64> {
        self.marks.front().map(|(_, time)| *time)
    }
}

/// A batch on its way to the target.
#[derive(Debug)]
struct Given {
    end: Lsn,
    /// When the oldest of its transactions committed.
    since: i64,
    /// Up to here nothing came behind it that had a row for the target.
    covers: Lsn,
}

/// What waits.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    /// Transactions that have come.
    received: Marks,
    newest: Option<(Lsn, i64)>,
    on_the_way: VecDeque<Given>,
    /// The target shows everything up to here.
    done: Lsn,
    /// Where the source was when it was looked at, beyond what has come.
    heads: Marks,
    /// The source's clock when it was looked at last.
    clock: Option<i64>,
}

impl Waiting {
    /// A transaction that ends at `end` and committed at `time` has come whole.
    pub(super) fn received(&mut self, end: Lsn, time: i64) {
        self.heads.pop_to(end);
        let is_known = end <= self.done || self.newest.is_some_and(|(newest, _)| end <= newest);
        if !is_known {
            self.newest = Some((end, time));
            self.received.push(end, time);
        }
    }

    /// The source has sent everything up to `lsn`.
    pub(super) fn reached(&mut self, lsn: Lsn) {
        self.heads.pop_to(lsn);
    }

    /// The target was given everything up to `end`, of which the oldest transaction committed at `since`.
    pub(super) fn given(&mut self, end: Lsn, since: i64) {
        self.on_the_way.push_back(Given { end, since, covers: end });
    }

    /// Up to `lsn` there was nothing for the target behind what it was given.
    pub(super) fn passed(&mut self, lsn: Lsn) {
        match self.on_the_way.back_mut() {
            Some(given) => given.covers = given.covers.max(lsn),
            None => self.done_to(lsn),
        }
    }

    /// The target shows everything up to `lsn`.
    pub(super) fn applied(&mut self, lsn: Lsn) {
        let mut done = lsn;
        while let Some(given) = self.on_the_way.front()
            && given.end <= lsn
        {
            done = done.max(given.covers);
            self.on_the_way.pop_front();
        }
        self.done_to(done);
    }

    fn done_to(&mut self, lsn: Lsn) {
        self.done = self.done.max(lsn);
        self.received.pop_to(self.done);
    }

    /// The source was at `head` when its clock showed `time`; what has come ends at `received`.
    pub(super) fn looked(&mut self, head: Lsn, time: i64, received: Lsn) {
        self.clock = Some(time);
        self.heads.pop_to(received);
        if head > received {
            self.heads.push(head, time);
        }
    }

    /// For how many microseconds the target has been behind, `later` microseconds after the source was looked at.
    pub(super) fn for_how_long(&self, later: i64) -> i64 {
        let Some(now) = self.clock.map(|clock| clock + later) else { return 0 };
        let newest = self.newest.filter(|(end, _)| *end > self.done).map(|(_, time)| time);
        let come =
            [self.received.first().or(newest), self.on_the_way.front().map(|given| given.since)];
        let come = come.into_iter().flatten().min();
        let to_come = self.heads.first().filter(|time| now - time >= QUIET);
        come.into_iter().chain(to_come).min().map_or(0, |since| (now - since).max(0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: i64 = 1_000_000;

    fn lsn(position: u64) -> Lsn {
        Lsn::new(position)
    }

    #[test]
    fn a_reader_that_is_held_back_does_not_make_the_lag_look_small() {
        let mut waiting = Waiting::default();
        waiting.received(lsn(10), SECOND);
        waiting.received(lsn(20), 2 * SECOND);
        // Nothing more is read; the source goes on for a minute.
        waiting.looked(lsn(9000), 60 * SECOND, lsn(20));
        assert_eq!(waiting.for_how_long(0), 59 * SECOND);
        waiting.applied(lsn(10));
        assert_eq!(waiting.for_how_long(SECOND), 59 * SECOND);
    }

    #[test]
    fn a_transaction_after_a_long_silence_is_as_old_as_it_is() {
        let mut waiting = Waiting::default();
        waiting.received(lsn(10), SECOND);
        waiting.given(lsn(10), SECOND);
        waiting.applied(lsn(10));
        waiting.looked(lsn(10), 3600 * SECOND, lsn(10));
        assert_eq!(waiting.for_how_long(0), 0);
        waiting.received(lsn(20), 3600 * SECOND);
        assert_eq!(waiting.for_how_long(SECOND), SECOND);
    }

    #[test]
    fn a_source_that_sends_nothing_is_a_lag_and_one_that_is_quiet_is_none() {
        let mut waiting = Waiting::default();
        waiting.looked(lsn(100), SECOND, lsn(50));
        assert_eq!(waiting.for_how_long(SECOND), 0);
        waiting.looked(lsn(200), 2 * SECOND, lsn(50));
        assert_eq!(waiting.for_how_long(8 * SECOND), 9 * SECOND);
        waiting.reached(lsn(100));
        assert_eq!(waiting.for_how_long(8 * SECOND), 8 * SECOND);
        waiting.reached(lsn(200));
        assert_eq!(waiting.for_how_long(8 * SECOND), 0);
    }

    #[test]
    fn what_has_no_row_for_the_target_waits_only_with_what_is_before_it() {
        let mut waiting = Waiting::default();
        waiting.looked(lsn(40), 10 * SECOND, lsn(40));
        waiting.received(lsn(10), 2 * SECOND);
        waiting.received(lsn(20), 4 * SECOND);
        waiting.given(lsn(10), 2 * SECOND);
        waiting.passed(lsn(20));
        assert_eq!(waiting.for_how_long(0), 8 * SECOND);
        waiting.applied(lsn(10));
        assert_eq!(waiting.for_how_long(0), 0);
        waiting.received(lsn(30), 9 * SECOND);
        waiting.passed(lsn(30));
        assert_eq!(waiting.for_how_long(0), 0);
    }

    #[test]
    fn what_an_earlier_process_spooled_counts_from_the_moment_it_is_given() {
        let mut waiting = Waiting::default();
        waiting.looked(lsn(90), 100 * SECOND, lsn(90));
        waiting.received(lsn(90), 90 * SECOND);
        waiting.given(lsn(30), 20 * SECOND);
        assert_eq!(waiting.for_how_long(0), 80 * SECOND);
        waiting.applied(lsn(30));
        assert_eq!(waiting.for_how_long(0), 10 * SECOND);
    }

    #[test]
    fn a_long_backlog_keeps_few_marks_and_the_oldest_of_them() {
        let mut waiting = Waiting::default();
        for number in 1..=100_000_u64 {
            waiting.received(lsn(number), number as i64 * SPACING);
        }
        assert!(waiting.received.marks.len() <= MARKS);
        waiting.looked(lsn(100_000), 100_000 * SPACING, lsn(100_000));
        assert_eq!(waiting.for_how_long(0), 99_999 * SPACING);
        // Marks are thinned, so that the answer may be early, but by no more than their distance.
        waiting.applied(lsn(50_000));
        let wrong = 50_000 * SPACING - waiting.for_how_long(0);
        assert!((0..=64 * SPACING).contains(&wrong), "{wrong}");
    }

    #[test]
    fn transactions_that_come_again_do_not_wait_again() {
        let mut waiting = Waiting::default();
        waiting.looked(lsn(20), 10 * SECOND, lsn(20));
        waiting.received(lsn(10), SECOND);
        waiting.received(lsn(20), 2 * SECOND);
        waiting.applied(lsn(20));
        waiting.received(lsn(10), SECOND);
        waiting.received(lsn(20), 2 * SECOND);
        assert_eq!(waiting.for_how_long(0), 0);
    }
}
