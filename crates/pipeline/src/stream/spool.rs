//! Committed transactions on the local disk: received while the snapshot runs, and where the target cannot keep up.
//!
//! **Invariant:** the spool holds, without a gap and in commit order, every transaction of the stream that ended after its
//! base. What [`Spool::sync`] answered survives a crash of the machine. A torn end is cut off at the last whole transaction
//! when the spool is opened, and the stream goes on from there.
//!
//! Segments are files `<20 digits>.seg`; each begins with the descriptions of the relations known so far, so that it can be
//! read when those before it are gone. A segment goes when all of it is durable on the target.

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::io::{self, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use serde::{Deserialize, Serialize};
use tidemark_model::{Lsn, Oid, TransactionHead};
use tidemark_sink::Flushed;

use super::blocks::{Blocks, SpoolBody};
use super::body::{DESCRIPTION, messages};
use super::segment::{self, Kind, MAGIC, Record};

/// A segment is closed when it has this size.
const SEGMENT_BYTES: u64 = 64 << 20;
/// Bytes read at once.
const READ_BYTES: usize = 1 << 20;

/// Whose transactions a spool holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Identity {
    /// The job.
    pub(crate) job: String,
    /// The run whose snapshot the stream continues.
    pub(crate) run: String,
    /// The source's system identifier.
    pub(crate) system_identifier: String,
    /// Everything that ended after it is here, up to the end.
    pub(crate) base: Lsn,
}

/// What can go wrong with a spool.
#[derive(Debug, thiserror::Error)]
#[error("{attempt} {}", path.display())]
pub(crate) struct SpoolError {
    attempt: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// The writing side, and the list of segments.
#[derive(Debug)]
pub(crate) struct Spool {
    directory: PathBuf,
    identity: Identity,
    segments: VecDeque<Segment>,
    /// The last segment, while it is written.
    open: Option<File>,
    /// The newest description of each relation, as its message.
    relations: BTreeMap<Oid, Bytes>,
    buffer: BytesMut,
    end: Lsn,
    synced: Lsn,
}

/// One file.
#[derive(Debug, Clone)]
struct Segment {
    number: u64,
    /// Bytes up to the end of the last whole transaction.
    length: u64,
    /// The end of its last transaction.
    end: Lsn,
}

impl Spool {
    /// Begins an empty spool, removing what is in the directory.
    pub(crate) fn create(directory: &Path, identity: Identity) -> Result<Self, SpoolError> {
        let failed = |source| failure("make the spool in", directory, source);
        std::fs::create_dir_all(directory).map_err(failed)?;
        for number in numbers(directory).map_err(failed)? {
            std::fs::remove_file(path_of(directory, number)).map_err(failed)?;
        }
        Ok(Self::empty(directory, identity))
    }

    /// Opens what an earlier process left; `None` where nothing usable is.
    pub(crate) fn recover(directory: &Path) -> Result<Option<Self>, SpoolError> {
        let failed = |source| failure("read the spool in", directory, source);
        if !directory.exists() {
            return Ok(None);
        }
        let mut found: Option<Self> = None;
        let mut torn = false;
        for number in numbers(directory).map_err(failed)? {
            let path = path_of(directory, number);
            if torn {
                // What comes behind a torn segment has a gap before it.
                std::fs::remove_file(&path).map_err(failed)?;
                continue;
            }
            let scanned = scan(&path, number).map_err(failed)?;
            torn = scanned.is_torn;
            let Some(identity) = scanned.identity else {
                std::fs::remove_file(&path).map_err(failed)?;
                torn = true;
                continue;
            };
            let spool = found.get_or_insert_with(|| Self::empty(directory, identity.clone()));
            spool.relations.extend(scanned.relations);
            if torn {
                let file = File::options().write(true).open(&path).map_err(failed)?;
                file.set_len(scanned.length).and_then(|()| file.sync_all()).map_err(failed)?;
            }
            spool.end = spool.end.max(scanned.end);
            spool.segments.push_back(Segment { number, length: scanned.length, end: spool.end });
        }
        if let Some(spool) = &mut found {
            spool.synced = spool.end;
        }
        Ok(found)
    }

    fn empty(directory: &Path, identity: Identity) -> Self {
        let base = identity.base;
        Self {
            directory: directory.to_owned(),
            identity,
            segments: VecDeque::new(),
            open: None,
            relations: BTreeMap::new(),
            buffer: BytesMut::new(),
            end: base,
            synced: base,
        }
    }

    /// What is known of relations where it begins: the source describes each only once, and a process that goes on from here
    /// has nothing else.
    pub(crate) fn know(&mut self, relations: &BTreeMap<Oid, Bytes>) {
        let known = relations.iter().map(|(oid, message)| (*oid, message.clone()));
        self.relations.extend(known);
    }

    /// The newest descriptions of relations up to its end.
    pub(crate) fn relations(&self) -> &BTreeMap<Oid, Bytes> {
        &self.relations
    }

    /// Whose it is.
    pub(crate) fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Everything from the base to here is in it.
    pub(crate) fn end(&self) -> Lsn {
        self.end
    }

    /// Bytes of its files.
    pub(crate) fn bytes(&self) -> u64 {
        self.segments.iter().map(|segment| segment.length).sum()
    }

    /// Adds a transaction; it is durable after the next [`Spool::sync`].
    ///
    /// # Errors
    /// The disk: the transaction is not in the spool, which can be written to again.
    pub(crate) fn append(
        &mut self,
        head: TransactionHead,
        blocks: Blocks,
    ) -> Result<(), SpoolError> {
        let end = head.end_lsn;
        let number = self.current()?;
        let start = self.segments.back().map_or(0, |segment| segment.length);
        match self.write_transaction((number, start), head, blocks) {
            Ok(length) => {
                let last = self.segments.back_mut().expect("a segment was begun");
                (last.length, last.end) = (length, end);
                self.end = end;
                if length >= SEGMENT_BYTES {
                    self.sync()?;
                    self.open = None;
                }
                Ok(())
            }
            Err(source) => {
                // Nothing of it may be read later.
                if let Some(file) = &self.open {
                    drop(file.set_len(start));
                }
                let path = path_of(&self.directory, number);
                Err(failure("write to the spool", &path, source))
            }
        }
    }

    /// Keeps the descriptions of relations of a transaction that is already here, or that the target has: a new connection
    /// sends them only once.
    pub(crate) fn describe(&mut self, mut blocks: Blocks) -> Result<(), SpoolError> {
        let number = self.current()?;
        let path = path_of(&self.directory, number);
        let failed = |source| failure("write to the spool", &path, source);
        let mut found = Vec::new();
        while let Some(block) = blocks.next().map_err(failed)? {
            found.extend(messages(&block).filter(|message| described(message).is_some()));
        }
        self.buffer.clear();
        for message in &found {
            segment::encode(number, Kind::Relation, message, &mut self.buffer);
        }
        let mut at = self.segments.back().map_or(0, |segment| segment.length);
        self.flush_buffer(&mut at).map_err(failed)?;
        self.segments.back_mut().expect("a segment was begun").length = at;
        let newest = found.into_iter().filter_map(|message| Some((described(&message)?, message)));
        self.relations.extend(newest);
        Ok(())
    }

    /// Makes everything that was added durable.
    pub(crate) fn sync(&mut self) -> Result<Flushed, SpoolError> {
        if let (Some(file), Some(last)) = (&self.open, self.segments.back())
            && self.synced < self.end
        {
            let path = path_of(&self.directory, last.number);
            file.sync_data().map_err(|source| failure("make durable the spool", &path, source))?;
        }
        self.synced = self.end;
        Ok(Flushed::up_to(self.synced))
    }

    /// Removes segments of which everything ended at or before `durable`, and that nobody reads any more.
    pub(crate) fn release(&mut self, durable: Lsn, reader: &SpoolReader) {
        while let Some(first) = self.segments.front()
            && first.end <= durable
            && first.number < reader.number
        {
            // It may be gone; what stays is removed when a spool is made here again.
            drop(std::fs::remove_file(path_of(&self.directory, first.number)));
            self.segments.pop_front();
        }
    }

    /// Removes everything; all of it must be durable on the target.
    pub(crate) fn clear(&mut self) {
        self.open = None;
        for segment in self.segments.drain(..) {
            drop(std::fs::remove_file(path_of(&self.directory, segment.number)));
        }
        self.identity.base = self.end;
    }

    /// Reads from the beginning.
    pub(crate) fn reader(&self) -> SpoolReader {
        let number = self.segments.front().map_or(0, |segment| segment.number);
        SpoolReader::at_start(number)
    }

    /// What the reader comes to next; `None` when it is at the end.
    pub(crate) fn read_next(
        &self,
        reader: &mut SpoolReader,
    ) -> Result<Option<Spooled>, SpoolError> {
        loop {
            let Some(segment) = self.segments.iter().find(|s| s.number >= reader.number) else {
                return Ok(None);
            };
            let path = path_of(&self.directory, segment.number);
            let found = reader.read_in(segment, &path);
            match found.map_err(|source| failure("read the spool", &path, source))? {
                Some(spooled) => return Ok(Some(spooled)),
                None if self.segments.back().is_some_and(|last| last.number == segment.number) => {
                    return Ok(None);
                }
                None => *reader = SpoolReader::at_start(segment.number + 1),
            }
        }
    }

    /// The number of the segment that is written, which is begun if need be.
    fn current(&mut self) -> Result<u64, SpoolError> {
        if let (Some(_), Some(last)) = (&self.open, self.segments.back()) {
            return Ok(last.number);
        }
        let number = self.segments.back().map_or(1, |last| last.number + 1);
        let path = path_of(&self.directory, number);
        let begin = || -> io::Result<(File, u64)> {
            use std::os::unix::fs::OpenOptionsExt as _;

            let mut options = File::options();
            let mut file = options
                .create(true)
                .truncate(true)
                .read(true)
                .write(true)
                .mode(0o600)
                .open(&path)?;
            let mut start = BytesMut::from(&MAGIC[..]);
            let identity = serde_json::to_vec(&self.identity).expect("an identity is plain data");
            segment::encode(number, Kind::Identity, &identity, &mut start);
            for message in self.relations.values() {
                segment::encode(number, Kind::Relation, message, &mut start);
            }
            file.write_all(&start)?;
            // The file's name must survive before anything in it is called durable.
            file.sync_all()?;
            File::open(&self.directory)?.sync_all()?;
            Ok((file, start.len() as u64))
        };
        let (file, length) =
            begin().map_err(|source| failure("begin a segment of the spool", &path, source))?;
        self.open = Some(file);
        self.segments.push_back(Segment { number, length, end: self.end });
        Ok(number)
    }

    /// Gives the length of the segment after it.
    fn write_transaction(
        &mut self,
        (number, start): (u64, u64),
        head: TransactionHead,
        mut blocks: Blocks,
    ) -> io::Result<u64> {
        let mut at = start;
        self.buffer.clear();
        let text = serde_json::to_vec(&head).expect("a head is plain data");
        segment::encode(number, Kind::Begin, &text, &mut self.buffer);
        while let Some(block) = blocks.next()? {
            self.note_relations(&block);
            segment::encode(number, Kind::Frames, &block, &mut self.buffer);
            if self.buffer.len() > READ_BYTES {
                self.flush_buffer(&mut at)?;
            }
        }
        segment::encode(number, Kind::Commit, &[], &mut self.buffer);
        let file = self.open.as_ref().expect("a segment was begun");
        file.write_all_at(&self.buffer, at)?;
        Ok(at + self.buffer.len() as u64)
    }

    fn flush_buffer(&mut self, at: &mut u64) -> io::Result<()> {
        let file = self.open.as_ref().expect("a segment was begun");
        file.write_all_at(&self.buffer, *at)?;
        *at += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }

    fn note_relations(&mut self, block: &Bytes) {
        for message in messages(block) {
            if let Some(oid) = described(&message) {
                self.relations.insert(oid, message);
            }
        }
    }
}

/// The relation that a message describes, if it is a Relation message: tag `R`, then the OID.
pub(super) fn described(message: &Bytes) -> Option<Oid> {
    let (tag, rest) = message.split_first()?;
    (*tag == DESCRIPTION).then(|| rest.first_chunk().map(|oid| u32::from_be_bytes(*oid)))?
}

/// Where a reader stands.
#[derive(Debug)]
pub(crate) struct SpoolReader {
    number: u64,
    at: u64,
    file: Option<(u64, Arc<File>)>,
    /// Bytes of the segment from `buffered_at` on, so that small records are not read one by one.
    buffer: Bytes,
    buffered_at: u64,
}

/// What a spool gives.
#[derive(Debug)]
pub(crate) enum Spooled {
    /// The description of a relation, as its message.
    Relation(Bytes),
    /// A transaction.
    Transaction(TransactionHead, SpoolBody),
}

impl SpoolReader {
    fn at_start(number: u64) -> Self {
        let at = MAGIC.len() as u64;
        Self { number, at, file: None, buffer: Bytes::new(), buffered_at: 0 }
    }

    fn read_in(&mut self, segment: &Segment, path: &Path) -> io::Result<Option<Spooled>> {
        if segment.number != self.number {
            *self = Self::at_start(segment.number);
        }
        let file = match &self.file {
            Some((number, file)) if *number == segment.number => Arc::clone(file),
            _ => Arc::new(File::open(path)?),
        };
        self.file = Some((segment.number, Arc::clone(&file)));
        while let Some(record) = self.record(&file, segment, self.at)? {
            self.at = record.next;
            match record.kind {
                Kind::Relation => return Ok(Some(Spooled::Relation(record.payload))),
                Kind::Begin => {
                    let head = serde_json::from_slice(&record.payload)
                        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
                    return Ok(Some(Spooled::Transaction(head, self.body(file, segment)?)));
                }
                Kind::Identity | Kind::Frames | Kind::Commit => {}
            }
        }
        Ok(None)
    }

    /// The record at `at`, from the buffer where it is whole there.
    fn record(&mut self, file: &File, segment: &Segment, at: u64) -> io::Result<Option<Record>> {
        if let Some(record) = self.buffered(segment, at) {
            return Ok(Some(record));
        }
        if at >= segment.length {
            return Ok(None);
        }
        let room = usize::try_from(segment.length - at).unwrap_or(usize::MAX).min(READ_BYTES);
        let mut buffer = vec![0; room];
        file.read_exact_at(&mut buffer, at)?;
        (self.buffer, self.buffered_at) = (buffer.into(), at);
        match self.buffered(segment, at) {
            Some(record) => Ok(Some(record)),
            None => segment::read(file, segment.number, at, segment.length),
        }
    }

    fn buffered(&self, segment: &Segment, at: u64) -> Option<Record> {
        let offset = usize::try_from(at.checked_sub(self.buffered_at)?).ok()?;
        if offset >= self.buffer.len() {
            return None;
        }
        segment::read_buffered(&self.buffer.slice(offset..), segment.number, at)
    }

    /// Goes behind the transaction's Commit. A small transaction is read on the way.
    fn body(&mut self, file: Arc<File>, segment: &Segment) -> io::Result<SpoolBody> {
        let start = self.at;
        let mut blocks = VecDeque::new();
        let mut bytes = 0;
        while let Some(record) = self.record(&file, segment, self.at)? {
            self.at = record.next;
            if record.kind == Kind::Commit {
                return Ok(SpoolBody::Read(blocks));
            }
            bytes += record.payload.len();
            if bytes > READ_BYTES {
                return self.large_body(file, segment, start);
            }
            blocks.push_back(record.payload);
        }
        Err(without_end())
    }

    fn large_body(
        &mut self,
        file: Arc<File>,
        segment: &Segment,
        start: u64,
    ) -> io::Result<SpoolBody> {
        while self.at < segment.length {
            let at = self.at;
            let (kind, next) = segment::look(&file, at)?;
            self.at = next;
            if kind == Kind::Commit {
                return Ok(SpoolBody::File { file, number: segment.number, at: start, end: at });
            }
        }
        Err(without_end())
    }
}

fn without_end() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "a transaction without its end")
}

/// What a look at a segment of an earlier process gives.
#[derive(Default)]
struct Scanned {
    identity: Option<Identity>,
    relations: BTreeMap<Oid, Bytes>,
    /// Up to the end of the last whole transaction.
    length: u64,
    end: Lsn,
    /// Something stands behind that.
    is_torn: bool,
}

fn scan(path: &Path, number: u64) -> io::Result<Scanned> {
    let file = File::open(path)?;
    let size = file.metadata()?.len();
    let mut scanned = Scanned { is_torn: true, ..Scanned::default() };
    let mut magic = [0; MAGIC.len()];
    if size < magic.len() as u64 {
        return Ok(scanned);
    }
    file.read_exact_at(&mut magic, 0)?;
    if &magic != MAGIC {
        return Ok(scanned);
    }
    let mut at = magic.len() as u64;
    let mut open: Option<TransactionHead> = None;
    while let Some(record) = segment::read(&file, number, at, size)? {
        at = record.next;
        match record.kind {
            Kind::Identity => scanned.identity = serde_json::from_slice(&record.payload).ok(),
            Kind::Relation => {
                scanned
                    .relations
                    .extend(described(&record.payload).map(|oid| (oid, record.payload)));
            }
            Kind::Begin => open = serde_json::from_slice(&record.payload).ok(),
            Kind::Frames => {
                let all = messages(&record.payload);
                scanned.relations.extend(all.filter_map(|m| described(&m).map(|oid| (oid, m))));
            }
            Kind::Commit => {
                if let Some(head) = open.take() {
                    scanned.end = head.end_lsn;
                }
            }
        }
        if open.is_none() {
            scanned.length = at;
        }
    }
    scanned.is_torn = scanned.length < size;
    Ok(scanned)
}

fn numbers(directory: &Path) -> io::Result<Vec<u64>> {
    let mut numbers = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let name = entry?.file_name();
        let number: Option<u64> =
            name.to_str().and_then(|name| name.strip_suffix(".seg")?.parse().ok());
        numbers.extend(number);
    }
    numbers.sort_unstable();
    Ok(numbers)
}

fn path_of(directory: &Path, number: u64) -> PathBuf {
    directory.join(format!("{number:020}.seg"))
}

fn failure(attempt: &'static str, path: &Path, source: io::Error) -> SpoolError {
    SpoolError { attempt, path: path.to_owned(), source }
}

#[cfg(test)]
mod tests;
