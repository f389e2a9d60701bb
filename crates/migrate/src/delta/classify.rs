//! What has become of each row since the last run.
//!
//! **Invariant:** every row of the source and every one that the target has is told of exactly once. What is written of a row
//! for the next run is what the target has of it once this run is done, so that what was only reported is found again.
//! Both come in the order of their codes; of rows without a key, whose code is their hash, each stands for one of the other
//! side, so that equal rows are counted.

use serde::Serialize;
use tidemark_ledger::KnownRow;
use tidemark_pipeline::Result;

use super::runs::Record;

/// What has become of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Class {
    /// The target does not have it.
    New,
    /// The target has another one of this key.
    Modified,
    /// The source does not have it any more.
    Deleted,
    /// The target refused it the last time.
    Failed,
    /// The filter lets it through and did not before, or the other way round.
    Unfiltered,
}

impl Class {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::New, Self::Modified, Self::Deleted, Self::Failed, Self::Unfiltered];

    /// As it is written in a report.
    pub const fn word(self) -> &'static str {
        match self {
            Self::New => "new",
            Self::Modified => "modified",
            Self::Deleted => "deleted",
            Self::Failed => "failed",
            Self::Unfiltered => "unfiltered",
        }
    }
}

/// What is done with the rows of a class.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// They are moved.
    Apply,
    /// They are counted; the next run finds them again.
    Report,
    /// The same, and they are not counted as found.
    Skip,
}

/// What is done with each class.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Actions {
    /// [`Class::New`]
    pub new: Action,
    /// [`Class::Modified`]
    pub modified: Action,
    /// [`Class::Deleted`]
    pub deleted: Action,
    /// [`Class::Failed`]
    pub failed: Action,
    /// [`Class::Unfiltered`]
    pub unfiltered: Action,
}

impl Default for Actions {
    fn default() -> Self {
        let apply = Action::Apply;
        Self {
            new: apply,
            modified: apply,
            deleted: Action::Report,
            failed: apply,
            unfiltered: apply,
        }
    }
}

impl Actions {
    /// What is done with rows of this class.
    pub const fn of(&self, class: Class) -> Action {
        match class {
            Class::New => self.new,
            Class::Modified => self.modified,
            Class::Deleted => self.deleted,
            Class::Failed => self.failed,
            Class::Unfiltered => self.unfiltered,
        }
    }
}

/// Which of two filters let a row of the source through.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Passes {
    /// This run's, and the last one's, which may be the same.
    Both,
    /// This run's only.
    Now,
    /// The last one's only.
    Before,
}

/// A row that was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Row {
    pub(super) code: u128,
    pub(super) hash: u128,
    pub(super) passes: Passes,
    /// Block and number in it.
    pub(super) place: u64,
}

/// What the target has, as a file or the target itself says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Base {
    pub(super) known: KnownRow,
    /// Where it was seen on the target.
    pub(super) place: Option<u64>,
}

/// A row that is read again and put into the target: first those that take the place of another one, which may free something
/// unique, in the order of the source's places.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Put {
    /// Whether the target is known to have none of this key.
    pub(super) is_new: bool,
    pub(super) place: u64,
    pub(super) code: u128,
    pub(super) class: Class,
    /// The hash of what the target has in its place, if it has something.
    pub(super) before: u128,
}

/// A row that goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Gone {
    pub(super) code: u128,
    pub(super) hash: u128,
    pub(super) class: Class,
    /// Where it is on the target, if that is known.
    pub(super) place: Option<u64>,
}

/// Takes what is found.
pub(super) trait Found {
    /// The target will have this row.
    fn keep(&mut self, code: u128, hash: u128) -> Result<()>;
    /// The target has refused it before, and is not asked now.
    fn still_refused(&mut self, row: KnownRow) -> Result<()>;
    fn put(&mut self, row: Put) -> Result<()>;
    fn take(&mut self, row: Gone) -> Result<()>;
}

/// Rows of each class.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Counts {
    /// Rows of the source that this run's filter lets through.
    pub(super) rows: u64,
    /// By the number of the class.
    pub(super) found: [u64; 5],
}

/// Holds what was read against what the target has.
pub(super) struct Classify<'a, F> {
    pub(super) actions: Actions,
    pub(super) found: &'a mut F,
    pub(super) counts: Counts,
}

impl<F: Found> Classify<'_, F> {
    pub(super) fn run(
        mut self,
        mut source: impl FnMut() -> Result<Option<Row>>,
        mut base: impl FnMut() -> Result<Option<Base>>,
    ) -> Result<Counts> {
        let (mut row, mut there) = (source()?, base()?);
        loop {
            match (row, there) {
                (None, None) => return Ok(self.counts),
                (Some(one), Some(other)) if one.code == other.known.code => {
                    self.both(one, other)?;
                    (row, there) = (source()?, base()?);
                }
                (Some(one), other) if other.is_none_or(|other| one.code < other.known.code) => {
                    self.on_source(one)?;
                    row = source()?;
                }
                (_, Some(other)) => {
                    self.on_target(other, Class::Deleted)?;
                    there = base()?;
                }
                (Some(_), None) => unreachable!("a row of the source alone is one of those above"),
            }
        }
    }

    fn on_source(&mut self, row: Row) -> Result<()> {
        match row.passes {
            Passes::Before => Ok(()),
            Passes::Now => self.comes(row, Class::Unfiltered, None),
            Passes::Both => self.comes(row, Class::New, None),
        }
    }

    fn both(&mut self, row: Row, base: Base) -> Result<()> {
        let known = base.known;
        let is_equal = known.is_there && known.hash == row.hash;
        match () {
            () if row.passes == Passes::Before => self.on_target(base, Class::Unfiltered),
            () if is_equal => {
                self.counts.rows += 1;
                self.found.keep(row.code, row.hash)
            }
            () if known.is_refused => self.comes(row, Class::Failed, Some(known)),
            () => self.comes(row, Class::Modified, Some(known)),
        }
    }

    /// The source has a row that the target is to have.
    fn comes(&mut self, row: Row, class: Class, known: Option<KnownRow>) -> Result<()> {
        self.counts.rows += 1;
        self.counts.found[class as usize] += 1;
        if self.actions.of(class) == Action::Apply {
            let before = known.filter(|known| known.is_there);
            self.found.put(Put {
                is_new: before.is_none(),
                place: row.place,
                code: row.code,
                class,
                before: before.map_or(0, |known| known.hash),
            })?;
            return self.found.keep(row.code, row.hash);
        }
        match known {
            Some(known) if known.is_refused => {
                self.found.keep(row.code, row.hash)?;
                self.found.still_refused(known)
            }
            Some(known) => self.found.keep(known.code, known.hash),
            None => Ok(()),
        }
    }

    /// The target has a row that the source does not let it have.
    fn on_target(&mut self, base: Base, class: Class) -> Result<()> {
        let known = base.known;
        if !known.is_there {
            return Ok(());
        }
        self.counts.found[class as usize] += 1;
        if self.actions.of(class) == Action::Apply {
            let Base { place, .. } = base;
            return self.found.take(Gone { code: known.code, hash: known.hash, class, place });
        }
        self.found.keep(known.code, known.hash)
    }
}

fn u128_at(bytes: &[u8], at: usize) -> u128 {
    bytes[at..].first_chunk().map_or(0, |bytes| u128::from_be_bytes(*bytes))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes[at..].first_chunk().map_or(0, |bytes| u64::from_be_bytes(*bytes))
}

impl Record for Row {
    const BYTES: usize = 1 + 16 + 16 + 8;

    /// Of the code, how far it is behind the last one, without the zeros that begin it: their number is in the first byte.
    fn write(&self, last: Option<&Self>, out: &mut Vec<u8>) {
        let step = self.code.wrapping_sub(last.map_or(0, |last| last.code));
        let zeros = step.leading_zeros() as usize / 8;
        out.push((self.passes as u8) << 5 | zeros as u8);
        out.extend_from_slice(&step.to_be_bytes()[zeros..]);
        out.extend_from_slice(&self.hash.to_be_bytes());
        out.extend_from_slice(&self.place.to_be_bytes());
    }

    fn read(last: Option<&Self>, bytes: &[u8]) -> (Self, usize) {
        let (zeros, mut step) = (usize::from(bytes[0] & 0x1f), [0; 16]);
        let passes = [Passes::Both, Passes::Now, Passes::Before][usize::from(bytes[0] >> 5)];
        step[zeros..].copy_from_slice(&bytes[1..][..16 - zeros]);
        let code = last.map_or(0, |last| last.code).wrapping_add(u128::from_be_bytes(step));
        let at = 17 - zeros;
        let (hash, place) = (u128_at(bytes, at), u64_at(bytes, at + 16));
        (Self { code, hash, passes, place }, at + 24)
    }
}

impl Record for Put {
    const BYTES: usize = 1 + 8 + 16 + 1 + 16;

    fn write(&self, _: Option<&Self>, out: &mut Vec<u8>) {
        out.push(u8::from(self.is_new));
        out.extend_from_slice(&self.place.to_be_bytes());
        out.extend_from_slice(&self.code.to_be_bytes());
        out.push(self.class as u8);
        out.extend_from_slice(&self.before.to_be_bytes());
    }

    fn read(_: Option<&Self>, bytes: &[u8]) -> (Self, usize) {
        let (is_new, class) = (bytes[0] == 1, Class::ALL[usize::from(bytes[25])]);
        let (place, code) = (u64_at(bytes, 1), u128_at(bytes, 9));
        (Self { is_new, place, code, class, before: u128_at(bytes, 26) }, Self::BYTES)
    }
}

impl Record for Gone {
    const BYTES: usize = 16 + 16 + 1 + 1 + 8;

    fn write(&self, _: Option<&Self>, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.code.to_be_bytes());
        out.extend_from_slice(&self.hash.to_be_bytes());
        out.push(self.class as u8);
        out.push(u8::from(self.place.is_some()));
        out.extend_from_slice(&self.place.unwrap_or_default().to_be_bytes());
    }

    fn read(_: Option<&Self>, bytes: &[u8]) -> (Self, usize) {
        let place = (bytes[33] == 1).then(|| u64_at(bytes, 34));
        let class = Class::ALL[usize::from(bytes[32])];
        (Self { code: u128_at(bytes, 0), hash: u128_at(bytes, 16), class, place }, Self::BYTES)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Told {
        kept: Vec<(u128, u128)>,
        refused: Vec<u128>,
        put: Vec<(u128, Class)>,
        gone: Vec<(u128, Class)>,
    }

    impl Found for Told {
        fn keep(&mut self, code: u128, hash: u128) -> Result<()> {
            self.kept.push((code, hash));
            Ok(())
        }
        fn still_refused(&mut self, row: KnownRow) -> Result<()> {
            self.refused.push(row.code);
            Ok(())
        }
        fn put(&mut self, row: Put) -> Result<()> {
            self.put.push((row.code, row.class));
            Ok(())
        }
        fn take(&mut self, row: Gone) -> Result<()> {
            self.gone.push((row.code, row.class));
            Ok(())
        }
    }

    fn row(code: u128, hash: u128, passes: Passes) -> Row {
        Row { code, hash, passes, place: 0 }
    }

    fn known(code: u128, hash: u128) -> Base {
        let known = KnownRow { code, hash, is_there: true, is_refused: false };
        Base { known, place: None }
    }

    fn refused(code: u128, hash: u128, is_there: bool) -> Base {
        Base { known: KnownRow { code, hash, is_there, is_refused: true }, place: None }
    }

    fn told(actions: Actions, source: Vec<Row>, base: Vec<Base>) -> (Told, Counts) {
        let mut found = Told::default();
        let (mut source, mut base) = (source.into_iter(), base.into_iter());
        let classify = Classify { actions, found: &mut found, counts: Counts::default() };
        let counts = classify.run(|| Ok(source.next()), || Ok(base.next())).unwrap();
        (found, counts)
    }

    fn all(action: Action) -> Actions {
        Actions {
            new: action,
            modified: action,
            deleted: action,
            failed: action,
            unfiltered: action,
        }
    }

    /// Code 1 is as it was, 2 another row, 3 new, 4 gone; 5 and 6 came in and went out with the filter, of which neither has
    /// let 7 through for the target; 8 and 9 were refused, and 10 has gone since.
    fn example() -> (Vec<Row>, Vec<Base>) {
        use Passes::{Before, Both, Now};
        let source = vec![
            row(1, 1, Both),
            row(2, 22, Both),
            row(3, 3, Both),
            row(5, 5, Now),
            row(6, 6, Before),
            row(7, 7, Before),
            row(8, 88, Both),
            row(9, 9, Both),
        ];
        let base = vec![
            known(1, 1),
            known(2, 2),
            known(4, 4),
            known(6, 6),
            refused(8, 8, true),
            refused(9, 0, false),
            refused(10, 0, false),
        ];
        (source, base)
    }

    #[test]
    fn every_row_is_of_one_class_and_what_is_applied_is_known_as_moved() {
        let (source, base) = example();
        let (told, counts) = told(all(Action::Apply), source, base);
        assert_eq!(counts, Counts { rows: 6, found: [1, 1, 1, 2, 2] });
        let put = [
            (2, Class::Modified),
            (3, Class::New),
            (5, Class::Unfiltered),
            (8, Class::Failed),
            (9, Class::Failed),
        ];
        assert_eq!(told.put, put);
        assert_eq!(told.gone, [(4, Class::Deleted), (6, Class::Unfiltered)]);
        assert_eq!(told.kept, [(1, 1), (2, 22), (3, 3), (5, 5), (8, 88), (9, 9)]);
        assert!(told.refused.is_empty());
    }

    #[test]
    fn what_is_only_reported_stays_as_it_was_for_the_next_run() {
        let (source, base) = example();
        let (told, counts) = told(all(Action::Report), source, base);
        assert_eq!(counts.found, [1, 1, 1, 2, 2]);
        assert!(told.put.is_empty() && told.gone.is_empty());
        assert_eq!(told.kept, [(1, 1), (2, 2), (4, 4), (6, 6), (8, 88), (9, 9)]);
        assert_eq!(told.refused, [8, 9]);
    }

    #[test]
    fn equal_rows_without_a_key_are_counted() {
        let three = vec![row(1, 1, Passes::Both); 3];
        let one = vec![known(1, 1)];
        let (told, counts) = told(all(Action::Apply), three.clone(), one.clone());
        assert_eq!((counts.found, told.kept.len()), ([2, 0, 0, 0, 0], 3));
        let (source, base) = (vec![three[0]], vec![one[0]; 4]);
        let (told, counts) = self::told(all(Action::Apply), source, base);
        assert_eq!((counts.found, told.kept.len()), ([0, 0, 3, 0, 0], 1));
    }

    #[test]
    fn records_come_back_from_a_file() {
        fn again<T: Record>(last: Option<T>, record: T) -> T {
            let mut bytes = Vec::new();
            record.write(last.as_ref(), &mut bytes);
            let length = bytes.len();
            assert!(length <= T::BYTES);
            bytes.extend([255; 50]);
            let (found, read) = T::read(last.as_ref(), &bytes);
            assert_eq!(read, length);
            found
        }
        for passes in [Passes::Both, Passes::Now, Passes::Before] {
            let last = row(u128::MAX - 5, 7 << 100, passes);
            assert_eq!(again(None, last), last);
            for code in [u128::MAX - 5, u128::MAX - 4, u128::MAX] {
                let row = Row { place: u64::MAX, ..row(code, 3, passes) };
                assert_eq!(again(Some(last), row), row);
            }
            assert_eq!(again(Some(row(0, 0, passes)), last), last);
        }
        for class in Class::ALL {
            let put = Put { is_new: true, place: 7 << 16 | 3, code: 9, class, before: 4 };
            assert_eq!(again(None, put), put);
            let gone = Gone { code: 1, hash: 2, class, place: None };
            assert_eq!(again(None, gone), gone);
        }
    }
}
