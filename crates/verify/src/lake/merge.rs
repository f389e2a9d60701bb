//! The present rows of a table: their sum, or each of them.
//!
//! **Invariant:** each row of the state that the commits describe is given out exactly once, and no other row is. Memory is
//! bounded: where the keys of all changes do not fit, the files are read once for each part of the keys.
//!
//! The changes are read backwards, newest first, so that the first image of a key is the one that counts:
//!
//! ```text
//! change of a key not seen yet   i, u   the row is there: given out     d  it is not    (its key counts as seen)
//!                         seen          older than what is known: left out
//! u with _unchanged              the row waits for these values: the next older image of it, under the key that it had then
//! t                              nothing older counts, the rows of the beginning included
//! rows of the beginning          given out, but for those with a key that was seen
//! ```
//!
//! Rows without a key are given out as they come and as they go: what is left is a multiset.

use std::collections::{HashMap, HashSet};
use std::ops::{ControlFlow, RangeInclusive};
use std::sync::Mutex;

use arrow_array::RecordBatch;
use tidemark_digest::DigestKey;
use tidemark_model::{Lsn, RowSum};
use tidemark_sink::parquet::{FileEntry, Lake};
use tokio::runtime::Handle;

use super::Trouble;
use super::files::OpenFile;
use super::rows::{HEADS, Hasher, Heads, Image, Partial, RowForm, Rows};
use super::table::{ChangeFile, LakeTable};
use crate::Which;
use crate::scan::{Tools, interrupted};

/// What a key takes that was seen.
const SEEN_BYTES: u64 = 48;

/// What the merging of one table works with. It blocks its thread.
pub(super) struct Merge<'a> {
    pub(super) lake: &'a Lake,
    pub(super) tools: &'a Tools,
    pub(super) table: &'a LakeTable,
    pub(super) form: &'a RowForm,
    pub(super) key: &'a DigestKey,
    /// The columns whose text is wanted.
    pub(super) shown: &'a [usize],
    /// Bytes that it may hold.
    pub(super) room: u64,
    pub(super) runtime: &'a Handle,
    /// The file that is being read.
    pub(super) current: &'a Mutex<String>,
}

/// The sum of a table, and what is odd about its files though they could be read.
#[derive(Debug, Default)]
pub(super) struct Merged {
    pub(super) sum: RowSum,
    pub(super) notes: Vec<String>,
}

/// Where the changes lead to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Beginning {
    /// The rows of the beginning count.
    Counts,
    /// The table was emptied since.
    IsGone,
}

/// What becomes of the rows that a table has.
pub(super) trait Present: Sized {
    /// The same, of no row yet.
    fn part(&self) -> Self;

    /// Takes in a part that was read to its end.
    fn absorb(&mut self, part: Self) -> Result<(), Trouble>;

    /// A row that is there, or of a table without a key one that is gone, perhaps before it has come.
    fn take(
        &mut self,
        hasher: &mut Hasher<'_>,
        image: &Image<'_>,
        goes: Goes,
    ) -> Result<(), Trouble>;
}

/// Whether a row comes or goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Goes {
    In,
    Out,
}

impl Present for RowSum {
    fn part(&self) -> Self {
        Self::default()
    }

    fn absorb(&mut self, part: Self) -> Result<(), Trouble> {
        add(self, part);
        Ok(())
    }

    fn take(
        &mut self,
        hasher: &mut Hasher<'_>,
        image: &Image<'_>,
        goes: Goes,
    ) -> Result<(), Trouble> {
        let row = hasher.sum(image)?;
        match goes {
            Goes::In => add(self, row),
            Goes::Out => subtract(self, row),
        }
        Ok(())
    }
}

impl<'a> Merge<'a> {
    /// The sum of the rows that the table has.
    pub(super) fn sum(&self) -> Result<Merged, Trouble> {
        let mut sum = RowSum::default();
        let notes = self.give(&mut sum)?;
        Ok(Merged { sum, notes })
    }

    /// Gives all rows that the table has; what is odd about its files though they could be read.
    pub(super) fn give(&self, rows: &mut impl Present) -> Result<Vec<String>, Trouble> {
        let mut notes = Vec::new();
        if self.table.key.is_empty() || self.table.changes.is_empty() {
            self.multiset(rows, &mut notes)?;
        } else {
            self.by_key(rows, &mut notes)?;
        }
        notes.sort_unstable();
        notes.dedup();
        Ok(notes)
    }

    fn hasher(&self) -> Hasher<'a> {
        Hasher::new(self.form, self.key.clone(), self.shown)
    }

    fn multiset(&self, out: &mut impl Present, notes: &mut Vec<String>) -> Result<(), Trouble> {
        let mut hasher = self.hasher();
        let beginning = self.changes(notes, |rows, heads, row| {
            let goes = match heads.operation.value(row) {
                "i" => Goes::In,
                "d" => Goes::Out,
                "t" => return Ok(ControlFlow::Break(())),
                _ => return Err(unknown()),
            };
            out.take(&mut hasher, &Image::Read(rows, row), goes)?;
            Ok(ControlFlow::Continue(()))
        })?;
        if beginning == Beginning::Counts {
            self.beginning(notes, |rows, row| {
                out.take(&mut hasher, &Image::Read(rows, row), Goes::In)
            })?;
        }
        Ok(())
    }

    fn by_key(&self, out: &mut impl Present, notes: &mut Vec<String>) -> Result<(), Trouble> {
        // About as many keys as fit at once; where that was too many, in halves.
        let bytes = self.table.change_rows().saturating_mul(SEEN_BYTES);
        let parts = bytes.div_ceil(self.room.max(1)).clamp(1, 1 << 20);
        let width = u64::MAX / parts;
        let part = |number: u64| {
            let end = if number + 1 == parts { u64::MAX } else { (number + 1) * width - 1 };
            number * width..=end
        };
        let mut open: Vec<RangeInclusive<u64>> = (0..parts).rev().map(part).collect();
        // The files were expected to be read once.
        self.tools.progress.expect((parts - 1).saturating_mul(self.table.bytes()));
        while let Some(keys) = open.pop() {
            match self.part(&keys, out.part(), notes) {
                Ok(part) => out.absorb(part)?,
                Err(Trouble::Full) => {
                    let (from, to) = keys.into_inner();
                    let middle = from + (to - from) / 2;
                    if to - from < u64::MAX >> 24 {
                        return Err(Trouble::Table(
                            "its changes do not fit into limits.memory: raise it".to_owned(),
                        ));
                    }
                    open.extend([middle + 1..=to, from..=middle]);
                    self.tools.progress.expect(self.table.bytes().saturating_mul(2));
                }
                Err(trouble) => return Err(trouble),
            }
        }
        Ok(())
    }

    /// The rows whose keys have these codes.
    fn part<P: Present>(
        &self,
        keys: &RangeInclusive<u64>,
        part: P,
        notes: &mut Vec<String>,
    ) -> Result<P, Trouble> {
        let mut state = State::new(self.hasher(), keys, self.room, part);
        let beginning = self.changes(notes, |rows, heads, row| {
            if heads.operation.value(row) == "t" {
                return Ok(ControlFlow::Break(()));
            }
            state.change(rows, heads, row)?;
            Ok(ControlFlow::Continue(()))
        })?;
        if beginning == Beginning::Counts {
            self.beginning(notes, |rows, row| state.begun(rows, row))?;
        }
        if !state.waiting.is_empty() {
            let rows = state.waiting.len();
            return Err(Trouble::Table(format!(
                "{rows} of its rows have values that did not change and that no earlier row has"
            )));
        }
        Ok(state.out)
    }

    /// All changes, newest first, until one breaks.
    fn changes(
        &self,
        notes: &mut Vec<String>,
        mut take: impl FnMut(&Rows<'_>, &Heads, usize) -> Result<ControlFlow<()>, Trouble>,
    ) -> Result<Beginning, Trouble> {
        let mut after = None;
        for change in self.table.changes.iter().rev() {
            let file = self.open(&change.file, notes)?;
            for row_group in file.row_groups().rev() {
                if self.row_group(&file, row_group, (change, &mut after), &mut take)?.is_break() {
                    return Ok(Beginning::IsGone);
                }
            }
        }
        Ok(Beginning::Counts)
    }

    fn row_group(
        &self,
        file: &OpenFile,
        row_group: usize,
        (change, after): (&ChangeFile, &mut Option<(u64, i64)>),
        take: &mut impl FnMut(&Rows<'_>, &Heads, usize) -> Result<ControlFlow<()>, Trouble>,
    ) -> Result<ControlFlow<()>, Trouble> {
        let (count, stored, bytes) = file.size(row_group);
        self.pass(stored)?;
        // Pages are read forwards: as many rows are held as fit, from the end.
        let fit = (u128::from(count) * u128::from(self.room) / u128::from(bytes.max(1))).max(1);
        let fit = u64::try_from(fit).unwrap_or(u64::MAX);
        let mut end = count;
        while end > 0 {
            let start = end.saturating_sub(fit);
            let wants = |name: &str| self.form.wants(name) || HEADS.contains(&name);
            let batches: Vec<RecordBatch> =
                file.read(row_group, start..end, &wants)?.collect::<Result<_, _>>()?;
            for batch in batches.iter().rev() {
                let heads = Heads::of(self.form, &file.path, batch)?;
                let rows = Rows::of(self.form, &file.path, batch)?;
                for row in (0..rows.count).rev() {
                    let place = (heads.lsn.value(row), heads.seq.value(row));
                    follows(place, change, *after)?;
                    *after = Some(place);
                    if take(&rows, &heads, row)?.is_break() {
                        return Ok(ControlFlow::Break(()));
                    }
                }
            }
            end = start;
        }
        Ok(ControlFlow::Continue(()))
    }

    /// All rows with which the table begins.
    fn beginning(
        &self,
        notes: &mut Vec<String>,
        mut take: impl FnMut(&Rows<'_>, usize) -> Result<(), Trouble>,
    ) -> Result<(), Trouble> {
        for entry in &self.table.base {
            let file = self.open(entry, notes)?;
            for row_group in file.row_groups() {
                let (count, stored, _) = file.size(row_group);
                self.pass(stored)?;
                if count == 0 {
                    continue;
                }
                for batch in file.read(row_group, 0..count, &|name| self.form.wants(name))? {
                    let rows = Rows::of(self.form, &file.path, &batch?)?;
                    (0..rows.count).try_for_each(|row| take(&rows, row))?;
                }
            }
        }
        Ok(())
    }

    fn open(&self, entry: &FileEntry, notes: &mut Vec<String>) -> Result<OpenFile, Trouble> {
        self.current.lock().expect("no holder panics").clone_from(&entry.path);
        let file = self.runtime.block_on(self.lake.open(entry)).map_err(|cause| {
            let why = std::error::Error::source(&cause).map(|cause| format!(": {cause}"));
            Trouble::Table(format!("{} cannot be opened{}", entry.path, why.unwrap_or_default()))
        })?;
        let file = OpenFile::of(entry, file)?;
        notes.extend(file.note.clone());
        Ok(file)
    }

    /// So many bytes are about to be read.
    fn pass(&self, bytes: u64) -> Result<(), Trouble> {
        if self.tools.stop.is_cancelled() {
            return Err(Trouble::Run(interrupted()));
        }
        self.tools.progress.add(Which::Target, bytes);
        self.runtime.block_on(self.tools.pass(bytes));
        Ok(())
    }
}

/// A change has its place among those of its commit, and before the one that was read before it.
fn follows(
    place: (u64, i64),
    change: &ChangeFile,
    after: Option<(u64, i64)>,
) -> Result<(), Trouble> {
    let lsn = Lsn::new(place.0);
    let is_in_commit = change.after < lsn && lsn <= change.up_to;
    if is_in_commit && after.is_none_or(|after| place < after) {
        return Ok(());
    }
    let what = match is_in_commit {
        true => "is not in its order",
        false => "is outside of its commit",
    };
    Err(Trouble::Table(format!("{}: the change {lsn}/{} {what}", change.file.path, place.1)))
}

fn unknown() -> Trouble {
    Trouble::Table("it has a change of an unknown kind".to_owned())
}

/// Read backwards, rows may be gone before they have come.
fn add(sum: &mut RowSum, row: RowSum) {
    sum.count = sum.count.wrapping_add(row.count);
    sum.raw = sum.raw.wrapping_add(row.raw);
    sum.value = sum.value.wrapping_add(row.value);
}

fn subtract(sum: &mut RowSum, row: RowSum) {
    sum.count = sum.count.wrapping_sub(row.count);
    sum.raw = sum.raw.wrapping_sub(row.raw);
    sum.value = sum.value.wrapping_sub(row.value);
}

/// What is known of the rows of some keys, while the changes are read backwards.
struct State<'a, P> {
    hasher: Hasher<'a>,
    keys: &'a RangeInclusive<u64>,
    room: u64,
    /// Takes the rows that are there.
    out: P,
    /// Keys of which it is known what became of them.
    seen: HashSet<u128>,
    /// Rows that are there and want values of older images, by the key that they had at the change that was read last. These
    /// may be keys of another part.
    waiting: HashMap<u128, Partial>,
    waiting_bytes: u64,
}

impl<'a, P: Present> State<'a, P> {
    fn new(hasher: Hasher<'a>, keys: &'a RangeInclusive<u64>, room: u64, out: P) -> Self {
        Self {
            hasher,
            keys,
            room,
            out,
            seen: HashSet::new(),
            waiting: HashMap::new(),
            waiting_bytes: 0,
        }
    }

    fn is_ours(&self, code: u128) -> bool {
        self.keys.contains(&((code >> 64) as u64))
    }

    /// Notes that nothing older of a key counts; whether that is new.
    fn see(&mut self, code: u128) -> Result<bool, Trouble> {
        if !self.is_ours(code) {
            return Ok(false);
        }
        let is_new = self.seen.insert(code);
        self.is_full().map(|()| is_new)
    }

    fn is_full(&self) -> Result<(), Trouble> {
        let bytes = self.seen.len() as u64 * SEEN_BYTES + self.waiting_bytes;
        if bytes > self.room { Err(Trouble::Full) } else { Ok(()) }
    }

    fn change(&mut self, rows: &Rows<'_>, heads: &Heads, row: usize) -> Result<(), Trouble> {
        let old = self.hasher.old_code(rows, heads, row)?;
        match (heads.operation.value(row), old) {
            ("i", _) => {
                let code = self.hasher.code(rows, row)?;
                self.image((rows, row), code, &[], code)
            }
            ("u", old) => {
                let code = self.hasher.code(rows, row)?;
                let before = old.unwrap_or(code);
                let unchanged = match heads.has_unchanged(row) {
                    true => heads.unchanged(self.hasher.form(), row),
                    false => Vec::new(),
                };
                self.image((rows, row), code, &unchanged, before)?;
                self.see(before).map(drop)
            }
            ("d", Some(old)) => {
                if self.waiting.contains_key(&old) {
                    return Err(Trouble::Table(
                        "a row was changed after it was deleted, without an insert".to_owned(),
                    ));
                }
                self.see(old).map(drop)
            }
            _ => Err(unknown()),
        }
    }

    /// An image that a row had from a change on; `before`: the key that it had until then.
    fn image(
        &mut self,
        (rows, row): (&Rows<'_>, usize),
        code: u128,
        unchanged: &[usize],
        before: u128,
    ) -> Result<(), Trouble> {
        let mut partial = match self.waiting.remove(&code) {
            Some(partial) => {
                self.waiting_bytes -= partial.bytes;
                partial
            }
            None if !self.see(code)? => return Ok(()),
            None if unchanged.is_empty() => {
                return self.is_there(&Image::Read(rows, row));
            }
            None => self.hasher.partial(),
        };
        self.hasher.fill(&mut partial, (rows, row), unchanged)?;
        if partial.is_whole() {
            return self.is_there(&Image::Joined(&partial));
        }
        self.waiting_bytes += partial.bytes;
        if self.waiting.insert(before, partial).is_some() {
            return Err(Trouble::Table(
                "two of its rows have values that did not change since one earlier row".to_owned(),
            ));
        }
        self.is_full()
    }

    fn is_there(&mut self, image: &Image<'_>) -> Result<(), Trouble> {
        self.out.take(&mut self.hasher, image, Goes::In)
    }

    /// A row with which the table begins.
    fn begun(&mut self, rows: &Rows<'_>, row: usize) -> Result<(), Trouble> {
        let code = self.hasher.code(rows, row)?;
        if let Some(mut partial) = self.waiting.remove(&code) {
            self.waiting_bytes -= partial.bytes;
            self.hasher.fill(&mut partial, (rows, row), &[])?;
            self.is_there(&Image::Joined(&partial))?;
        } else if self.is_ours(code) && !self.seen.contains(&code) {
            self.is_there(&Image::Read(rows, row))?;
        }
        Ok(())
    }
}

/// A thread that died while it read a file.
pub(super) fn died(current: &Mutex<String>) -> Trouble {
    let path = current.lock().map(|path| path.clone()).unwrap_or_default();
    Trouble::Table(format!("{path} cannot be read: the reader of Parquet gave up"))
}
