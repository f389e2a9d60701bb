//! Sorts more records than memory holds.
//!
//! **Invariant:** no more than the limit is in memory: what is beyond is in sorted runs of a file that has no name. Every record
//! that was pushed comes back exactly once, in order.

use std::cmp::Reverse;
use std::collections::binary_heap::PeekMut;
use std::collections::{BinaryHeap, VecDeque};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::{Arc, mpsc};

use tidemark_pipeline::{Error, Kind, Result};
use tidemark_verify::Spill;

/// What is read of a run at a time.
const READ_BYTES: usize = 64 << 10;
/// So many runs are merged into one, so that few buffers are in memory.
const RUNS: usize = 64;

/// So many records are handed over at a time to whoever takes them on another thread.
const AHEAD: usize = 4096;

/// Something that can be put into a file.
pub(super) trait Record: Ord + Copy + Send + 'static {
    /// How many bytes it takes at most.
    const BYTES: usize;

    /// Appends it; `last` is the one before it, if there is one, and the nearer that is, the fewer bytes it takes.
    fn write(&self, last: Option<&Self>, out: &mut Vec<u8>);

    /// From what begins with it, and how many bytes it takes.
    fn read(last: Option<&Self>, bytes: &[u8]) -> (Self, usize);
}

/// Takes records in any order.
#[derive(Debug)]
pub(super) struct Sorter<T> {
    spill: Arc<Spill>,
    /// Records that are kept in memory.
    limit: usize,
    records: Vec<T>,
    runs: Vec<Run>,
}

/// A sorted run.
#[derive(Debug)]
struct Run {
    file: Arc<File>,
    at: u64,
    end: u64,
}

impl<T: Record> Sorter<T> {
    /// Nothing yet; about so many bytes are kept in memory.
    pub(super) fn new(spill: &Arc<Spill>, bytes: u64) -> Self {
        let limit = usize::try_from(bytes / size_of::<T>() as u64).unwrap_or(usize::MAX).max(1);
        Self { spill: Arc::clone(spill), limit, records: Vec::new(), runs: Vec::new() }
    }

    pub(super) fn push(&mut self, record: T) -> Result<()> {
        if self.records.len() >= self.limit {
            self.flush()?;
        }
        self.records.push(record);
        Ok(())
    }

    /// Takes what another one holds.
    pub(super) fn absorb(&mut self, other: Self) -> Result<()> {
        self.runs.extend(other.runs);
        if self.records.is_empty() && other.records.len() <= self.limit {
            self.records = other.records;
        } else {
            other.records.into_iter().try_for_each(|record| self.push(record))?;
        }
        Ok(())
    }

    /// Bytes that it holds in memory.
    pub(super) fn bytes(&self) -> u64 {
        (self.records.capacity() * size_of::<T>()) as u64
    }

    /// Puts what is in memory into the file.
    pub(super) fn flush(&mut self) -> Result<()> {
        if self.records.is_empty() {
            return Ok(());
        }
        self.records.sort_unstable();
        let length = (self.records.len() * T::BYTES) as u64;
        let (mut out, at) = self.spill.place(length).map_err(unwritten)?;
        let mut last = None;
        for record in &self.records {
            out.put(|bytes| record.write(last, bytes)).map_err(unwritten)?;
            last = Some(record);
        }
        let (file, end) = out.finish().map_err(unwritten)?;
        self.records = Vec::new();
        self.runs.push(Run { file, at, end });
        Ok(())
    }

    /// All of them, in order. With very many runs it takes as long as some of them take to be merged.
    pub(super) fn sorted(mut self) -> Result<Sorted<T>> {
        self.records.sort_unstable();
        let mut runs = VecDeque::from(self.runs);
        while runs.len() > RUNS {
            let some = runs.drain(..RUNS.min(runs.len() - RUNS + 1)).collect();
            runs.push_back(Run::merged::<T>(some, &self.spill)?);
        }
        Sorted::of(self.records, runs.into())
    }
}

impl Run {
    /// One run of several.
    fn merged<T: Record>(runs: Vec<Self>, spill: &Spill) -> Result<Self> {
        let length = runs.iter().map(|run| run.end - run.at).sum();
        let mut sorted = Sorted::<T>::of(Vec::new(), runs)?;
        // The one before a record is not farther from it than the one before it was in its run.
        let (mut out, at) = spill.place(length).map_err(unwritten)?;
        let mut last = None;
        while let Some(record) = sorted.next()? {
            out.put(|bytes| record.write(last.as_ref(), bytes)).map_err(unwritten)?;
            last = Some(record);
        }
        let (file, end) = out.finish().map_err(unwritten)?;
        Ok(Self { file, at, end })
    }

    /// Reads on behind what of the buffer was not read yet.
    fn fill(&mut self, buffer: &mut Vec<u8>, read: &mut usize) -> io::Result<()> {
        buffer.drain(..*read);
        *read = 0;
        let (kept, left) = (buffer.len(), usize::try_from(self.end - self.at));
        let more = left.unwrap_or(usize::MAX).min(READ_BYTES);
        buffer.resize(kept + more, 0);
        self.file.read_exact_at(&mut buffer[kept..], self.at)?;
        self.at += more as u64;
        Ok(())
    }
}

/// Where sorted records come from.
enum Source<T> {
    Memory(std::vec::IntoIter<T>),
    Run { run: Run, buffer: Vec<u8>, read: usize, last: Option<T> },
}

impl<T: Record> Source<T> {
    fn next(&mut self) -> io::Result<Option<T>> {
        match self {
            Self::Memory(records) => Ok(records.next()),
            Self::Run { run, buffer, read, last } => {
                if buffer.len() - *read < T::BYTES && run.at < run.end {
                    run.fill(buffer, read)?;
                }
                if *read == buffer.len() {
                    return Ok(None);
                }
                let (record, bytes) = T::read(last.as_ref(), &buffer[*read..]);
                *read += bytes;
                *last = Some(record);
                Ok(Some(record))
            }
        }
    }
}

/// Records in order.
pub(super) struct Sorted<T> {
    sources: Vec<Source<T>>,
    /// The smallest of all, and the number of its source.
    first: Option<(T, usize)>,
    /// The first ones of the other sources.
    heads: BinaryHeap<Reverse<(T, usize)>>,
}

impl<T: Record> Sorted<T> {
    fn of(records: Vec<T>, runs: Vec<Run>) -> Result<Self> {
        let mut sources = vec![Source::Memory(records.into_iter())];
        sources.extend(runs.into_iter().map(|run| Source::Run {
            run,
            buffer: Vec::new(),
            read: 0,
            last: None,
        }));
        let mut heads = BinaryHeap::with_capacity(sources.len());
        for (number, source) in sources.iter_mut().enumerate() {
            if let Some(record) = source.next().map_err(unread)? {
                heads.push(Reverse((record, number)));
            }
        }
        let first = heads.pop().map(|Reverse(first)| first);
        Ok(Self { sources, first, heads })
    }

    /// The smallest of those that are left.
    pub(super) fn next(&mut self) -> Result<Option<T>> {
        let Some((record, number)) = self.first else { return Ok(None) };
        let next = self.sources[number].next().map_err(unread)?;
        // Runs mostly follow each other: then the next one is of the same run.
        self.first = match (next.map(|next| (next, number)), self.heads.peek_mut()) {
            (Some(next), Some(mut other)) if other.0 < next => {
                Some(std::mem::replace(&mut *other, Reverse(next)).0)
            }
            (None, Some(other)) => Some(PeekMut::pop(other).0),
            (next, _) => next,
        };
        Ok(Some(record))
    }

    /// Merges on a thread of its own, a little ahead of `take`, which is given what fetches the next record.
    pub(super) fn ahead<R>(
        mut self,
        take: impl FnOnce(&mut dyn FnMut() -> Result<Option<T>>) -> Result<R>,
    ) -> Result<R> {
        let mut merge = move || -> Result<Vec<T>> {
            let mut some = Vec::with_capacity(AHEAD);
            while some.len() < AHEAD
                && let Some(record) = self.next()?
            {
                some.push(record);
            }
            Ok(some)
        };
        std::thread::scope(|threads| {
            let (send, receive) = mpsc::sync_channel(2);
            threads.spawn(move || {
                loop {
                    let some = merge();
                    let is_last = !some.as_ref().is_ok_and(|some| some.len() == AHEAD);
                    // Nobody hears it when `take` has failed.
                    if send.send(some).is_err() || is_last {
                        return;
                    }
                }
            });
            let mut some = Vec::new().into_iter();
            take(&mut || {
                if some.len() == 0 {
                    // The other end is gone once it has sent the last ones.
                    some = receive.recv().unwrap_or_else(|_| Ok(Vec::new()))?.into_iter();
                }
                Ok(some.next())
            })
        })
    }
}

fn unwritten(cause: io::Error) -> Error {
    Error::new(Kind::Unavailable, "put hashes of rows into a temporary file")
        .because(cause)
        .hint("make room in the state directory, and run the same command again")
}

fn unread(cause: io::Error) -> Error {
    Error::new(Kind::Unavailable, "read hashes of rows back from a temporary file").because(cause)
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Record for u64 {
        const BYTES: usize = 9;

        fn write(&self, last: Option<&Self>, out: &mut Vec<u8>) {
            let step = self - last.copied().unwrap_or(0);
            let zeros = step.leading_zeros() as usize / 8;
            out.push(zeros as u8);
            out.extend_from_slice(&step.to_be_bytes()[zeros..]);
        }

        fn read(last: Option<&Self>, bytes: &[u8]) -> (Self, usize) {
            let (zeros, mut step) = (usize::from(bytes[0]), [0; 8]);
            step[zeros..].copy_from_slice(&bytes[1..][..8 - zeros]);
            (last.copied().unwrap_or(0) + Self::from_be_bytes(step), 9 - zeros)
        }
    }

    #[test]
    fn what_was_pushed_comes_back_in_order_from_memory_from_runs_and_from_runs_of_runs() {
        let mut seed = 7_u64;
        let mut next = || {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            seed >> 44
        };
        let records: Vec<u64> = (0..30_000).map(|_| next()).collect();
        let mut expected = records.clone();
        expected.sort_unstable();
        for limit in [0x10_0000, 0x8000, 0x1000] {
            let spill = Spill::new(std::env::temp_dir());
            let mut all = Sorter::new(&spill, limit);
            for part in records.chunks(997) {
                let mut one = Sorter::new(&spill, limit / 2);
                part.iter().for_each(|record| one.push(*record).unwrap());
                all.absorb(one).unwrap();
                assert!(all.bytes() <= 2 * limit);
            }
            // None, those of some, and more than are merged at once.
            let runs = match limit {
                0x1000 => RUNS + 1..usize::MAX,
                0x8000 => 1..RUNS,
                _ => 0..1,
            };
            assert!(runs.contains(&all.runs.len()), "{limit}: {}", all.runs.len());
            let all = all.sorted().unwrap();
            let found = all.ahead(|next| {
                let mut found = Vec::new();
                while let Some(record) = next()? {
                    found.push(record);
                }
                assert!(next()?.is_none(), "the end stays the end");
                Ok(found)
            });
            assert_eq!(found.unwrap(), expected);
        }
    }
}
