//! Sorts more records than memory holds.
//!
//! **Invariant:** no more than the limit is in memory: what is beyond is in sorted runs of a file that has no name. Every record
//! that was pushed comes back exactly once, in order.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::collections::binary_heap::PeekMut;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use tidemark_pipeline::{Error, Kind, Result};
use tidemark_verify::Spill;

/// What is read of a run at a time.
const READ_BYTES: usize = 64 << 10;
/// So many runs are merged into one, so that few buffers are in memory.
const RUNS: usize = 64;

/// Something of a fixed size that can be put into a file.
pub(super) trait Record: Ord + Copy + Send + 'static {
    /// How many bytes it takes.
    const BYTES: usize;

    fn write(&self, out: &mut Vec<u8>);

    /// From that many bytes.
    fn read(bytes: &[u8]) -> Self;
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
        if self.runs.len() >= RUNS { self.merge_runs() } else { Ok(()) }
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
        for record in &self.records {
            out.put(|bytes| record.write(bytes)).map_err(unwritten)?;
        }
        let (file, end) = out.finish().map_err(unwritten)?;
        self.records = Vec::new();
        self.runs.push(Run { file, at, end });
        if self.runs.len() >= RUNS { self.merge_runs() } else { Ok(()) }
    }

    fn merge_runs(&mut self) -> Result<()> {
        let runs = std::mem::take(&mut self.runs);
        let length = runs.iter().map(|run| run.end - run.at).sum();
        let mut sorted = Sorted::<T>::of(Vec::new(), runs)?;
        let (mut out, at) = self.spill.place(length).map_err(unwritten)?;
        while let Some(record) = sorted.next()? {
            out.put(|bytes| record.write(bytes)).map_err(unwritten)?;
        }
        let (file, end) = out.finish().map_err(unwritten)?;
        self.runs.push(Run { file, at, end });
        Ok(())
    }

    /// All of them, in order.
    pub(super) fn sorted(mut self) -> Result<Sorted<T>> {
        self.records.sort_unstable();
        Sorted::of(self.records, self.runs)
    }
}

/// Where sorted records come from.
enum Source<T> {
    Memory(std::vec::IntoIter<T>),
    Run { run: Run, buffer: Vec<u8>, read: usize },
}

impl<T: Record> Source<T> {
    fn next(&mut self) -> io::Result<Option<T>> {
        match self {
            Self::Memory(records) => Ok(records.next()),
            Self::Run { run, buffer, read } => {
                if *read == buffer.len() {
                    let left = usize::try_from(run.end - run.at).unwrap_or(usize::MAX);
                    buffer.resize(left.min(READ_BYTES / T::BYTES * T::BYTES), 0);
                    run.file.read_exact_at(buffer, run.at)?;
                    run.at += buffer.len() as u64;
                    *read = 0;
                }
                let record = buffer.get(*read..*read + T::BYTES).map(T::read);
                *read += record.map_or(0, |_| T::BYTES);
                Ok(record)
            }
        }
    }
}

/// Records in order.
pub(super) struct Sorted<T> {
    sources: Vec<Source<T>>,
    heads: BinaryHeap<Reverse<(T, usize)>>,
}

impl<T: Record> Sorted<T> {
    fn of(records: Vec<T>, runs: Vec<Run>) -> Result<Self> {
        let mut sources = vec![Source::Memory(records.into_iter())];
        sources.extend(runs.into_iter().map(|run| Source::Run {
            run,
            buffer: Vec::new(),
            read: 0,
        }));
        let mut heads = BinaryHeap::with_capacity(sources.len());
        for (number, source) in sources.iter_mut().enumerate() {
            if let Some(record) = source.next().map_err(unread)? {
                heads.push(Reverse((record, number)));
            }
        }
        Ok(Self { sources, heads })
    }

    /// The smallest of those that are left.
    pub(super) fn next(&mut self) -> Result<Option<T>> {
        let Some(mut first) = self.heads.peek_mut() else { return Ok(None) };
        let Reverse((record, number)) = *first;
        match self.sources[number].next().map_err(unread)? {
            Some(next) => *first = Reverse((next, number)),
            None => drop(PeekMut::pop(first)),
        }
        Ok(Some(record))
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
        const BYTES: usize = 8;

        fn write(&self, out: &mut Vec<u8>) {
            out.extend_from_slice(&self.to_be_bytes());
        }

        fn read(bytes: &[u8]) -> Self {
            Self::from_be_bytes(bytes.try_into().expect("eight bytes"))
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
        for limit in [1 << 20, 4096, 512] {
            let spill = Spill::new(std::env::temp_dir());
            let mut all = Sorter::new(&spill, limit);
            for part in records.chunks(997) {
                let mut one = Sorter::new(&spill, limit / 2);
                part.iter().for_each(|record| one.push(*record).unwrap());
                all.absorb(one).unwrap();
                assert!(all.bytes() <= 2 * limit && all.runs.len() < 2 * RUNS);
            }
            assert_eq!(all.runs.is_empty(), limit == 1 << 20);
            let mut sorted = all.sorted().unwrap();
            let found: Vec<u64> = std::iter::from_fn(|| sorted.next().unwrap()).collect();
            assert_eq!(found, expected);
        }
    }
}
