//! What is known of the rows of a table on the target, in sorted files: hashes of keys and of rows, nothing of their values.
//!
//! **Invariant:** a file is named by its table and its generation and is whole, synced, from the moment it has that name;
//! which generation counts is what the target says. Rows are in the order of the codes of their keys, so that two files, or
//! a file and a scan, are compared with one row of each in memory.
//!
//! ```text
//! magic | length of the head | head: text of whoever wrote it | rows | refused rows | bytes of both | magic
//! row: whether it is there, and how many bytes the next number takes | how far its code is behind the last one's | hash
//! ```
//!
//! Most codes are near the last one's, so that a row takes 18 bytes instead of 33.
//!
//! A row that the target refused counts as moved among the rows, and a refused row beside it says what the target really has:
//! which rows are refused is known only when all of them were sent.

use std::fs::{self, DirBuilder, File};
use std::io::{self, BufWriter, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _};
use std::path::{Path, PathBuf};

use tidemark_model::RelationName;

use crate::directory::{io as failed, open_file};
use crate::{Error, Result};

const DIRECTORY: &str = "delta";
const MAGIC: &[u8; 8] = b"tmrows2\n";
/// What a row takes at most.
const ROW_BYTES: usize = 1 + 16 + 16;
/// In the first byte of a row, beside the number of bytes of its code.
const IS_THERE: u8 = 0x80;
const READ_BYTES: usize = 128 << 10;
const WRITE_BYTES: usize = 1 << 20;
const HEAD_MAX: u32 = 16 << 20;
/// Of a file that is being written.
const UNFINISHED: &str = "part";

/// What is known of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KnownRow {
    /// The code of its key, or the hash of a row without one.
    pub code: u128,
    /// The hash of what the target has of it.
    pub hash: u128,
    /// Whether the target has it at all; always, unless it was refused.
    pub is_there: bool,
    /// Whether the target refused what the source had.
    pub is_refused: bool,
}

/// The files of a job.
#[derive(Debug, Clone)]
pub struct RowFiles {
    directory: PathBuf,
}

impl RowFiles {
    /// The files in this state directory, which must have been looked at ([`Ledger::open`](crate::Ledger::open)).
    ///
    /// # Errors
    /// The directory for them cannot be made.
    pub fn open(state_dir: &Path) -> Result<Self> {
        let directory = state_dir.join(DIRECTORY);
        match DirBuilder::new().mode(0o700).create(&directory) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                Err(failed("create", &directory)(error))
            }
            _ => Ok(Self { directory: crate::directory::check(&directory)? }),
        }
    }

    /// The key of the hashes, made the first time.
    ///
    /// # Errors
    /// The file of the key cannot be read or written.
    pub fn key(&self, make: impl FnOnce() -> String) -> Result<String> {
        let path = self.directory.join("key");
        let mut text = String::new();
        let mut file = open_file(&path)?;
        file.read_to_string(&mut text).map_err(failed("read", &path))?;
        if text.trim().is_empty() {
            text = make();
            file.write_all(text.as_bytes()).map_err(failed("write", &path))?;
            file.sync_all().map_err(failed("write", &path))?;
        }
        Ok(text.trim().to_owned())
    }

    /// Whether there is a file of this table, of any generation.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn has_any(&self, table: &RelationName) -> Result<bool> {
        Ok(self.of_table(table)?.iter().any(|path| !is_unfinished(path)))
    }

    /// What is known of a table as of this generation; `is_multiset`: its rows have no key.
    ///
    /// # Errors
    /// The file cannot be read, or is damaged.
    pub fn read(
        &self,
        table: &RelationName,
        generation: &str,
        is_multiset: bool,
    ) -> Result<Option<KnownRows>> {
        let path = self.path(table, generation);
        if !path.exists() {
            return Ok(None);
        }
        KnownRows::open(path, is_multiset).map(Some)
    }

    /// Begins a file of this table.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn begin(&self, table: &RelationName, generation: &str, head: &str) -> Result<NewRows> {
        let path = self.path(table, generation);
        let unfinished = path.with_extension(UNFINISHED);
        let file = open_file(&unfinished)?;
        file.set_len(0).map_err(failed("write", &unfinished))?;
        let mut rows = NewRows {
            out: BufWriter::with_capacity(WRITE_BYTES, file),
            path,
            unfinished,
            last: 0,
            lengths: [0, 0],
        };
        let length = u32::try_from(head.len()).map_err(|_| Error::TooLarge { what: "a head" })?;
        rows.write(MAGIC)?;
        rows.write(&length.to_be_bytes())?;
        rows.write(head.as_bytes())?;
        Ok(rows)
    }

    /// Removes the files of this table but the one of that generation.
    ///
    /// # Errors
    /// The directory cannot be read, or a file cannot be removed.
    pub fn keep_only(&self, table: &RelationName, generation: Option<&str>) -> Result<()> {
        let kept = generation.map(|generation| self.path(table, generation));
        for path in self.of_table(table)? {
            if Some(&path) != kept.as_ref() {
                fs::remove_file(&path).map_err(failed("remove", &path))?;
            }
        }
        Ok(())
    }

    fn of_table(&self, table: &RelationName) -> Result<Vec<PathBuf>> {
        let stem = format!("{}.", stem(table));
        let entries = fs::read_dir(&self.directory).map_err(failed("read", &self.directory))?;
        let mut found = Vec::new();
        for entry in entries {
            let path = entry.map_err(failed("read", &self.directory))?.path();
            let name = path.file_name().and_then(|name| name.to_str());
            if name.is_some_and(|name| name.starts_with(&stem)) {
                found.push(path);
            }
        }
        Ok(found)
    }

    fn path(&self, table: &RelationName, generation: &str) -> PathBuf {
        self.directory.join(format!("{}.{generation}", stem(table)))
    }
}

fn is_unfinished(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == UNFINISHED)
}

/// The table's name as far as it can be shown, and a number that no other table of the job has.
fn stem(table: &RelationName) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() || c == '_' { c } else { '-' };
    let shown: String = table.plain().chars().take(60).map(plain).collect();
    let hash = |seed: u64| {
        let bytes = table.schema.bytes().chain([0]).chain(table.name.bytes());
        bytes.fold(seed, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3))
    };
    format!("{shown}-{:016x}{:016x}", hash(0xcbf2_9ce4_8422_2325), hash(0x9e37_79b9_7f4a_7c15))
}

/// A file that is being written; what is dropped unfinished stays behind under a name that nobody reads.
#[derive(Debug)]
pub struct NewRows {
    out: BufWriter<File>,
    path: PathBuf,
    unfinished: PathBuf,
    /// The code of the last row.
    last: u128,
    /// Bytes of the rows, and of those that were refused.
    lengths: [u64; 2],
}

impl NewRows {
    /// The next row, in the order of the codes: so the target will have it.
    ///
    /// # Errors
    /// The disk is full, say.
    pub fn push(&mut self, code: u128, hash: u128) -> Result<()> {
        self.row(0, (code, hash, true))
    }

    /// Makes what was written so far durable, so that little is left to wait for when the file ends.
    ///
    /// # Errors
    /// The disk is full, say.
    pub fn sync(&mut self) -> Result<()> {
        let synced = self.out.flush().and_then(|()| self.out.get_ref().sync_data());
        synced.map_err(failed("write", &self.unfinished))
    }

    /// Ends the file: these were refused, and are on the target as they say.
    ///
    /// # Errors
    /// The disk is full, say.
    pub fn finish(mut self, mut refused: Vec<KnownRow>) -> Result<()> {
        refused.sort_unstable_by_key(|row| (row.code, row.hash));
        self.last = 0;
        for row in refused {
            self.row(1, (row.code, row.hash, row.is_there))?;
        }
        for length in self.lengths {
            self.write(&length.to_be_bytes())?;
        }
        self.write(MAGIC)?;
        let Self { out, path, unfinished, .. } = self;
        let file =
            out.into_inner().map_err(|error| failed("write", &unfinished)(error.into_error()))?;
        file.sync_all().map_err(failed("write", &unfinished))?;
        fs::rename(&unfinished, &path).map_err(failed("rename", &unfinished))?;
        let directory = path.parent().unwrap_or(&path);
        let synced = File::open(directory).and_then(|directory| directory.sync_all());
        synced.map_err(failed("sync", directory))
    }

    fn row(&mut self, section: usize, (code, hash, is_there): (u128, u128, bool)) -> Result<()> {
        debug_assert!(self.last <= code, "rows come in the order of their codes");
        let step = code.wrapping_sub(self.last);
        self.last = code;
        let zeros = step.leading_zeros() as usize / 8;
        let (mut bytes, length) = ([0; ROW_BYTES], 16 - zeros);
        bytes[0] = length as u8 | if is_there { IS_THERE } else { 0 };
        bytes[1..=length].copy_from_slice(&step.to_be_bytes()[zeros..]);
        bytes[1 + length..][..16].copy_from_slice(&hash.to_be_bytes());
        let bytes = &bytes[..1 + length + 16];
        self.lengths[section] += bytes.len() as u64;
        self.write(bytes)
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.out.write_all(bytes).map_err(failed("write", &self.unfinished))
    }
}

/// What is known of the rows of a table.
#[derive(Debug)]
pub struct KnownRows {
    head: String,
    is_multiset: bool,
    rows: Section,
    refused: Section,
    /// Refused rows of the code that the rows are at, to come when they are through with it.
    waiting: Vec<KnownRow>,
    /// So many of the rows of that code stand for refused ones.
    covered: usize,
}

impl KnownRows {
    fn open(path: PathBuf, is_multiset: bool) -> Result<Self> {
        let damaged = || Error::Damaged { path: path.clone(), source: None };
        let mut file = open_file(&path)?;
        let mut start = [0; 12];
        file.read_exact(&mut start).map_err(failed("read", &path))?;
        let (magic, length) = start.split_at(8);
        let length = u32::from_be_bytes(*length.first_chunk().ok_or_else(damaged)?);
        if magic != MAGIC || length > HEAD_MAX {
            return Err(damaged());
        }
        let mut head = vec![0; length as usize];
        file.read_exact(&mut head).map_err(failed("read", &path))?;
        let head = String::from_utf8(head).map_err(|_| damaged())?;
        let size = file.metadata().map_err(failed("look at", &path))?.len();
        let mut end = [0; 24];
        let at = size.checked_sub(24).ok_or_else(damaged)?;
        file.read_exact_at(&mut end, at).map_err(failed("read", &path))?;
        let number =
            |at: usize| end[at..].first_chunk().map_or(0, |bytes| u64::from_be_bytes(*bytes));
        let begin = 12 + u64::from(length);
        let middle = begin.saturating_add(number(0));
        if &end[16..] != MAGIC || middle.saturating_add(number(8)) != at {
            return Err(damaged());
        }
        let other = file.try_clone().map_err(failed("read", &path))?;
        Ok(Self {
            head,
            is_multiset,
            rows: Section::open(path.clone(), file, begin..middle)?,
            refused: Section::open(path, other, middle..at)?,
            waiting: Vec::new(),
            covered: 0,
        })
    }

    /// What whoever wrote the file said of it.
    pub fn head(&self) -> &str {
        &self.head
    }

    /// The next row in the order of the codes; of one code those that are as the source had them come first.
    ///
    /// # Errors
    /// The file cannot be read, or is damaged.
    pub fn read_next(&mut self) -> Result<Option<KnownRow>> {
        loop {
            if let Some(waiting) = self.waiting.last() {
                let code = waiting.code;
                match self.rows.next {
                    Some(row) if row.code == code && self.covered > 0 => {
                        self.covered -= 1;
                        self.rows.pop()?;
                    }
                    Some(row) if row.code == code => return self.rows.pop(),
                    _ => return Ok(self.waiting.pop()),
                }
                continue;
            }
            match (self.rows.next, self.refused.next) {
                (Some(row), Some(refused)) if refused.code <= row.code => {
                    self.wait(refused.code)?;
                }
                (None, Some(refused)) => self.wait(refused.code)?,
                _ => return self.rows.pop(),
            }
        }
    }

    fn wait(&mut self, code: u128) -> Result<()> {
        self.covered = 0;
        while self.refused.next.is_some_and(|row| row.code == code) {
            let Some(row) = self.refused.pop()? else { break };
            // Of equal rows without a key one that was to go is not among the rows.
            self.covered += usize::from(!(self.is_multiset && row.is_there));
            self.waiting.push(KnownRow { is_refused: true, ..row });
        }
        Ok(())
    }
}

/// Rows that lie behind each other.
#[derive(Debug)]
struct Section {
    path: PathBuf,
    file: File,
    at: u64,
    end: u64,
    buffer: Vec<u8>,
    read: usize,
    next: Option<KnownRow>,
}

impl Section {
    fn open(path: PathBuf, file: File, range: std::ops::Range<u64>) -> Result<Self> {
        let (at, end) = (range.start, range.end);
        let mut section = Self { path, file, at, end, buffer: Vec::new(), read: 0, next: None };
        section.next = section.read()?;
        Ok(section)
    }

    /// The row behind `next`.
    fn read(&mut self) -> Result<Option<KnownRow>> {
        if self.buffer.len() - self.read < ROW_BYTES && self.at < self.end {
            self.fill()?;
        }
        let bytes = &self.buffer[self.read..];
        if bytes.is_empty() {
            return Ok(None);
        }
        let last = self.next.map_or(0, |row| row.code);
        let row = row_of(bytes, last);
        let (row, length) =
            row.ok_or_else(|| Error::Damaged { path: self.path.clone(), source: None })?;
        self.read += length;
        Ok(Some(row))
    }

    fn fill(&mut self) -> Result<()> {
        self.buffer.drain(..self.read);
        self.read = 0;
        let (kept, left) = (self.buffer.len(), usize::try_from(self.end - self.at));
        let more = left.unwrap_or(usize::MAX).min(READ_BYTES);
        self.buffer.resize(kept + more, 0);
        let read = self.file.read_exact_at(&mut self.buffer[kept..], self.at);
        read.map_err(failed("read", &self.path))?;
        self.at += more as u64;
        Ok(())
    }

    /// The next row, and reads the one behind it.
    fn pop(&mut self) -> Result<Option<KnownRow>> {
        let Some(row) = self.next else { return Ok(None) };
        self.next = self.read()?;
        Ok(Some(row))
    }
}

/// The row that these bytes begin with, behind one with that code, and how many bytes it takes.
fn row_of(bytes: &[u8], last: u128) -> Option<(KnownRow, usize)> {
    let (head, rest) = bytes.split_first()?;
    let length = usize::from(head & !IS_THERE);
    let mut step = [0; 16];
    step.get_mut(16_usize.checked_sub(length)?..)?.copy_from_slice(rest.get(..length)?);
    let code = last.checked_add(u128::from_be_bytes(step))?;
    let hash = u128::from_be_bytes(*rest[length..].first_chunk()?);
    let is_there = head & IS_THERE != 0;
    Some((KnownRow { code, hash, is_there, is_refused: false }, 1 + length + 16))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files() -> (tempfile::TempDir, RowFiles) {
        let directory = tempfile::tempdir().unwrap();
        let files = RowFiles::open(directory.path()).unwrap();
        (directory, files)
    }

    fn table() -> RelationName {
        RelationName::new("public", "a/b")
    }

    fn refused(code: u128, hash: u128, is_there: bool) -> KnownRow {
        KnownRow { code, hash, is_there, is_refused: true }
    }

    fn all(files: &RowFiles, generation: &str, is_multiset: bool) -> Vec<(u128, u128, bool, bool)> {
        let mut rows = files.read(&table(), generation, is_multiset).unwrap().unwrap();
        let next = || rows.read_next().unwrap();
        std::iter::from_fn(next).map(|r| (r.code, r.hash, r.is_there, r.is_refused)).collect()
    }

    #[test]
    fn rows_come_back_in_order_and_a_refused_row_stands_for_the_one_that_was_sent() {
        let (_directory, files) = files();
        let mut rows = files.begin(&table(), "g1", "the head").unwrap();
        (0..10_000).for_each(|code| rows.push(code * 2, code).unwrap());
        // A change, a new row and a row that was to go were refused.
        let refused = vec![refused(5, 9, true), refused(8, 77, true), refused(6, 0, false)];
        rows.finish(refused).unwrap();
        let known = files.read(&table(), "g1", false).unwrap().unwrap();
        assert_eq!(known.head(), "the head");
        let all = all(&files, "g1", false);
        assert_eq!(all.len(), 10_001);
        let first: Vec<_> = all[..7].to_vec();
        let moved = |code: u128| (code, code / 2, true, false);
        let expected = [
            moved(0),
            moved(2),
            moved(4),
            (5, 9, true, true),
            (6, 0, false, true),
            (8, 77, true, true),
            moved(10),
        ];
        assert_eq!(first, expected);
    }

    #[test]
    fn of_equal_rows_without_a_key_as_many_are_refused_as_were() {
        let (_directory, files) = files();
        let mut rows = files.begin(&table(), "g1", "").unwrap();
        [1, 1, 1, 2, 3].into_iter().for_each(|code| rows.push(code, code).unwrap());
        rows.finish(vec![refused(1, 1, false), refused(1, 1, false), refused(3, 3, true)]).unwrap();
        let expected = [
            (1, 1, true, false),
            (1, 1, false, true),
            (1, 1, false, true),
            (2, 2, true, false),
            (3, 3, true, false),
            (3, 3, true, true),
        ];
        assert_eq!(all(&files, "g1", true), expected);
    }

    #[test]
    fn a_file_counts_only_when_it_is_whole_and_of_the_generation_that_was_asked_for() {
        let (directory, files) = files();
        drop(files.begin(&table(), "g1", "").unwrap());
        assert!(files.read(&table(), "g1", false).unwrap().is_none());
        assert!(!files.has_any(&table()).unwrap());
        for generation in ["g1", "g2"] {
            let mut rows = files.begin(&table(), generation, "").unwrap();
            rows.push(1, 1).unwrap();
            rows.finish(Vec::new()).unwrap();
        }
        files.keep_only(&table(), Some("g2")).unwrap();
        assert!(files.read(&table(), "g1", false).unwrap().is_none());
        assert_eq!(all(&files, "g2", false).len(), 1);
        let left: Vec<_> = fs::read_dir(directory.path().join(DIRECTORY)).unwrap().collect();
        assert_eq!(left.len(), 1, "{left:?}");
        let path = files.path(&table(), "g2");
        let length = fs::metadata(&path).unwrap().len();
        File::options().write(true).open(&path).unwrap().set_len(length - 1).unwrap();
        assert!(matches!(files.read(&table(), "g2", false), Err(Error::Damaged { .. })));
    }

    #[test]
    fn codes_of_any_distance_come_back_and_bytes_that_are_no_row_are_damage() {
        let (_directory, files) = files();
        let codes =
            [0, 0, 1, 255, 256, 1 << 64, (1 << 64) + 1, u128::MAX - 1, u128::MAX, u128::MAX];
        let mut rows = files.begin(&table(), "g1", "").unwrap();
        codes.into_iter().for_each(|code| rows.push(code, !code).unwrap());
        rows.finish(vec![refused(u128::MAX, 3, false)]).unwrap();
        let path = files.path(&table(), "g1");
        let all = all(&files, "g1", true);
        assert_eq!(all.len(), codes.len());
        assert!(
            all.iter().zip(codes).take(9).all(|(row, code)| *row == (code, !code, true, false))
        );
        assert_eq!(all[9], (u128::MAX, 3, false, true));
        let whole = fs::read(&path).unwrap();
        // Of the last two rows: a code beyond all, a row that is longer than what is left; of the first: a number of 127 bytes.
        let refused_at = whole.len() - 24 - 33;
        for (at, byte) in [(refused_at - 17 - 17, 2), (refused_at - 17, 0x81), (12, 0xff)] {
            let mut bytes = whole.clone();
            bytes[at] = byte;
            fs::write(&path, &bytes).unwrap();
            let read = files.read(&table(), "g1", false).and_then(|rows| {
                let mut rows = rows.unwrap();
                while rows.read_next()?.is_some() {}
                Ok(())
            });
            assert!(matches!(read, Err(Error::Damaged { .. })), "{read:?}");
        }
    }

    #[test]
    fn the_key_is_made_once() {
        let (_directory, files) = files();
        assert_eq!(files.key(|| "first".to_owned()).unwrap(), "first");
        assert_eq!(files.key(|| "second".to_owned()).unwrap(), "first");
    }
}
