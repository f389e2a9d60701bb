//! What is known of the rows of a table on the target, in sorted files: hashes of keys and of rows, nothing of their values.
//!
//! **Invariant:** a file is named by its table and its generation and is whole, synced, from the moment it has that name;
//! which generation counts is what the target says. Rows are in the order of the codes of their keys, so that two files, or
//! a file and a scan, are compared with one row of each in memory.
//!
//! ```text
//! magic | length of the head | head: text of whoever wrote it | rows | refused rows | numbers of both | magic
//! ```
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
const MAGIC: &[u8; 8] = b"tmrows1\n";
/// Code, hash, whether the target has it.
const ROW_BYTES: usize = 33;
const READ_ROWS: usize = 4096;
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
            last: None,
            counts: [0, 0],
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
    last: Option<u128>,
    counts: [u64; 2],
}

impl NewRows {
    /// The next row, in the order of the codes: so the target will have it.
    ///
    /// # Errors
    /// The disk is full, say.
    pub fn push(&mut self, code: u128, hash: u128) -> Result<()> {
        self.row(0, (code, hash, true))
    }

    /// Ends the file: these were refused, and are on the target as they say.
    ///
    /// # Errors
    /// The disk is full, say.
    pub fn finish(mut self, mut refused: Vec<KnownRow>) -> Result<()> {
        refused.sort_unstable_by_key(|row| (row.code, row.hash));
        self.last = None;
        for row in refused {
            self.row(1, (row.code, row.hash, row.is_there))?;
        }
        for count in self.counts {
            self.write(&count.to_be_bytes())?;
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
        debug_assert!(self.last <= Some(code), "rows come in the order of their codes");
        self.last = Some(code);
        self.counts[section] += 1;
        let mut bytes = [0; ROW_BYTES];
        bytes[..16].copy_from_slice(&code.to_be_bytes());
        bytes[16..32].copy_from_slice(&hash.to_be_bytes());
        bytes[32] = u8::from(is_there);
        self.write(&bytes)
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
        let bytes = |rows: u64| rows.checked_mul(ROW_BYTES as u64);
        let (Some(rows), Some(refused)) = (bytes(number(0)), bytes(number(8))) else {
            return Err(damaged());
        };
        let middle = begin.saturating_add(rows);
        if &end[16..] != MAGIC || middle.saturating_add(refused) != at {
            return Err(damaged());
        }
        let other = file.try_clone().map_err(failed("read", &path))?;
        Ok(Self {
            head,
            is_multiset,
            rows: Section::new(path.clone(), file, begin..middle),
            refused: Section::new(path, other, middle..at),
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
                match self.rows.peek()? {
                    Some(row) if row.code == code && self.covered > 0 => {
                        self.covered -= 1;
                        self.rows.pop()?;
                    }
                    Some(row) if row.code == code => return self.rows.pop(),
                    _ => return Ok(self.waiting.pop()),
                }
                continue;
            }
            let refused = self.refused.peek()?.map(|row| row.code);
            let row = self.rows.peek()?.map(|row| row.code);
            match (row, refused) {
                (Some(row), Some(refused)) if refused <= row => self.wait(refused)?,
                (None, Some(refused)) => self.wait(refused)?,
                _ => return self.rows.pop(),
            }
        }
    }

    fn wait(&mut self, code: u128) -> Result<()> {
        self.covered = 0;
        while self.refused.peek()?.is_some_and(|row| row.code == code) {
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
    last: Option<u128>,
}

impl Section {
    fn new(path: PathBuf, file: File, range: std::ops::Range<u64>) -> Self {
        let (at, end) = (range.start, range.end);
        Self { path, file, at, end, buffer: Vec::new(), read: 0, last: None }
    }

    fn peek(&mut self) -> Result<Option<KnownRow>> {
        if self.read == self.buffer.len() {
            let left = usize::try_from(self.end - self.at).unwrap_or(usize::MAX);
            self.buffer.resize(left.min(READ_ROWS * ROW_BYTES), 0);
            let read = self.file.read_exact_at(&mut self.buffer, self.at);
            read.map_err(failed("read", &self.path))?;
            self.at += self.buffer.len() as u64;
            self.read = 0;
        }
        let bytes = self.buffer.get(self.read..self.read + ROW_BYTES);
        let number =
            |bytes: &[u8]| bytes.first_chunk().map_or(0, |bytes| u128::from_be_bytes(*bytes));
        Ok(bytes.map(|bytes| KnownRow {
            code: number(bytes),
            hash: number(&bytes[16..]),
            is_there: bytes[32] == 1,
            is_refused: false,
        }))
    }

    fn pop(&mut self) -> Result<Option<KnownRow>> {
        let row = self.peek()?;
        if let Some(row) = &row {
            if self.last > Some(row.code) {
                return Err(Error::Damaged { path: self.path.clone(), source: None });
            }
            self.last = Some(row.code);
            self.read += ROW_BYTES;
        }
        Ok(row)
    }
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
    fn the_key_is_made_once() {
        let (_directory, files) = files();
        assert_eq!(files.key(|| "first".to_owned()).unwrap(), "first");
        assert_eq!(files.key(|| "second".to_owned()).unwrap(), "first");
    }
}
