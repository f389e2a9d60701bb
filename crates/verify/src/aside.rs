//! Rows put aside until those of both sides can be held against each other, in bounded memory.
//!
//! **Invariant:** no more than the limit is in memory, whatever the number of rows: what is beyond is in sorted runs of a file
//! that has no name. The rows come back in the order of their codes, so that those of one key are side by side.
//!
//! ```text
//! chunks of both sides ─ Aside each ─┐ absorbed when the chunk is whole
//!                                    └ sorted runs ─ merged ─ Group: what the two sides have not in common of one key
//! ```

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use tidemark_pipeline::{Error, Kind, Result};

use crate::Which;
use crate::spill::Spill;

/// What is read of a run at a time.
const READ_BYTES: usize = 64 << 10;
/// So many runs are merged into one, in which what both sides have in common is left out.
const RUNS: usize = 64;
/// A row's share of memory beside its body.
const ROW_BYTES: u64 = size_of::<Row>() as u64 + 16;

/// A row of one side.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Row {
    /// Equal for the rows that are compared with each other.
    pub(crate) code: u128,
    pub(crate) raw: u128,
    pub(crate) value: u128,
    pub(crate) is_of_target: bool,
    /// How many of it.
    rows: u64,
    /// As much of its fields as is wanted later.
    pub(crate) body: Box<[u8]>,
}

/// A sorted run.
#[derive(Debug, Clone)]
struct Run {
    file: Arc<File>,
    at: u64,
    end: u64,
}

/// Rows of both sides.
#[derive(Debug)]
pub(crate) struct Aside {
    spill: Arc<Spill>,
    limit: u64,
    bytes: u64,
    rows: Vec<Row>,
    runs: Vec<Run>,
}

impl Aside {
    /// Nothing yet; at most `limit` bytes are kept in memory.
    pub(crate) fn new(spill: &Arc<Spill>, limit: u64) -> Self {
        Self { spill: Arc::clone(spill), limit, bytes: 0, rows: Vec::new(), runs: Vec::new() }
    }

    pub(crate) fn push(&mut self, row: Row) -> Result<()> {
        self.bytes += ROW_BYTES + row.body.len() as u64;
        self.rows.push(row);
        if self.bytes <= self.limit {
            return Ok(());
        }
        self.write_run().map_err(unwritten)?;
        if self.runs.len() >= RUNS { self.merge_runs() } else { Ok(()) }
    }

    /// Takes the rows of a chunk that was read to its end.
    pub(crate) fn absorb(&mut self, other: Self) -> Result<()> {
        self.runs.extend(other.runs);
        if self.runs.len() >= RUNS {
            self.merge_runs()?;
        }
        other.rows.into_iter().try_for_each(|row| self.push(row))
    }

    fn write_run(&mut self) -> io::Result<()> {
        self.rows.sort_unstable();
        let length: u64 = self.rows.iter().map(|row| HEAD as u64 + row.body.len() as u64).sum();
        let (mut out, at) = self.spill.place(length)?;
        self.rows.drain(..).try_for_each(|row| out.put(|bytes| row.write(bytes)))?;
        self.bytes = 0;
        let (file, end) = out.finish()?;
        self.runs.push(Run { file, at, end });
        Ok(())
    }

    fn merge_runs(&mut self) -> Result<()> {
        let runs = std::mem::take(&mut self.runs);
        let mut groups = Groups::of(runs.iter().map(Run::source).collect())?;
        let mut out = self.spill.fresh().map_err(unwritten)?;
        while let Some(group) = groups.next()? {
            let mut rows = group.rows();
            rows.sort_unstable();
            let mut put = |row: &Row| out.put(|bytes| row.write(bytes));
            rows.iter().try_for_each(&mut put).map_err(unwritten)?;
        }
        let (file, end) = out.finish().map_err(unwritten)?;
        self.runs.push(Run { file, at: 0, end });
        Ok(())
    }

    /// What the two sides have not in common, key by key; may be called more than once.
    pub(crate) fn groups(&mut self) -> Result<Groups<'_>> {
        self.rows.sort_unstable();
        let mut sources = vec![Source::Memory(self.rows.iter())];
        sources.extend(self.runs.iter().map(|run| run.source()));
        Groups::of(sources)
    }
}

/// Bytes of a row in a run before its body.
const HEAD: usize = 3 * 16 + 8 + 1 + 4;

impl Row {
    fn write(&self, out: &mut Vec<u8>) {
        for number in [self.code, self.raw, self.value] {
            out.extend_from_slice(&number.to_be_bytes());
        }
        out.extend_from_slice(&self.rows.to_be_bytes());
        out.push(self.is_of_target.into());
        out.extend_from_slice(&(self.body.len() as u32).to_be_bytes());
        out.extend_from_slice(&self.body);
    }

    fn read(from: &mut impl Read) -> io::Result<Self> {
        let mut numbers = [0; 3];
        for number in &mut numbers {
            let mut bytes = [0; 16];
            from.read_exact(&mut bytes)?;
            *number = u128::from_be_bytes(bytes);
        }
        let (mut rows, mut side, mut length) = ([0; 8], [0; 1], [0; 4]);
        from.read_exact(&mut rows)?;
        from.read_exact(&mut side)?;
        from.read_exact(&mut length)?;
        let mut body = vec![0; u32::from_be_bytes(length) as usize];
        from.read_exact(&mut body)?;
        let [code, raw, value] = numbers;
        let (rows, is_of_target) = (u64::from_be_bytes(rows), side == [1]);
        Ok(Self { code, raw, value, is_of_target, rows, body: body.into() })
    }
}

impl Run {
    fn source<'a>(&self) -> Source<'a> {
        Source::Run(Box::new(BufReader::with_capacity(READ_BYTES, self.clone())))
    }
}

impl Read for Run {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.end - self.at).unwrap_or(usize::MAX).min(out.len());
        let read = self.file.read_at(&mut out[..left], self.at)?;
        self.at += read as u64;
        Ok(read)
    }
}

/// Where sorted rows come from.
enum Source<'a> {
    Memory(std::slice::Iter<'a, Row>),
    Run(Box<BufReader<Run>>),
}

impl Source<'_> {
    fn next(&mut self) -> io::Result<Option<Row>> {
        match self {
            Self::Memory(rows) => Ok(rows.next().cloned()),
            Self::Run(run) => {
                let is_at_end = run.buffer().is_empty() && run.get_ref().at == run.get_ref().end;
                if is_at_end { Ok(None) } else { Row::read(run).map(Some) }
            }
        }
    }
}

/// The keys in which both sides differ, in the order of their codes.
pub(crate) struct Groups<'a> {
    sources: Vec<Source<'a>>,
    next: BinaryHeap<Reverse<(Row, usize)>>,
}

/// Equal rows of one key that one side has more of.
#[derive(Debug, Clone)]
pub(crate) struct Surplus {
    pub(crate) raw: u128,
    pub(crate) value: u128,
    /// So many more.
    pub(crate) rows: u64,
    pub(crate) body: Box<[u8]>,
}

/// What both sides have not in common of one key.
#[derive(Debug, Clone, Default)]
pub(crate) struct Group {
    pub(crate) code: u128,
    pub(crate) source: Vec<Surplus>,
    pub(crate) target: Vec<Surplus>,
}

impl Group {
    fn rows(self) -> Vec<Row> {
        let code = self.code;
        let of = |is_of_target: bool| {
            move |surplus: Surplus| {
                let Surplus { raw, value, rows, body } = surplus;
                Row { code, raw, value, is_of_target, rows, body }
            }
        };
        let source = self.source.into_iter().map(of(false));
        source.chain(self.target.into_iter().map(of(true))).collect()
    }
}

impl<'a> Groups<'a> {
    fn of(sources: Vec<Source<'a>>) -> Result<Self> {
        let mut groups = Self { sources, next: BinaryHeap::new() };
        (0..groups.sources.len()).try_for_each(|source| groups.refill(source))?;
        Ok(groups)
    }

    fn refill(&mut self, source: usize) -> Result<()> {
        if let Some(row) = self.sources[source].next().map_err(unread)? {
            self.next.push(Reverse((row, source)));
        }
        Ok(())
    }

    fn pop(&mut self) -> Result<Option<Row>> {
        let Some(Reverse((row, source))) = self.next.pop() else { return Ok(None) };
        self.refill(source)?;
        Ok(Some(row))
    }

    fn peek(&self) -> Option<&Row> {
        self.next.peek().map(|Reverse((row, _))| row)
    }

    /// The next key in which they differ.
    pub(crate) fn next(&mut self) -> Result<Option<Group>> {
        while let Some(first) = self.pop()? {
            let mut group = Group { code: first.code, ..Group::default() };
            self.equal_rows(first, &mut group)?;
            while self.peek().is_some_and(|row| row.code == group.code) {
                let Some(row) = self.pop()? else { break };
                self.equal_rows(row, &mut group)?;
            }
            if !(group.source.is_empty() && group.target.is_empty()) {
                return Ok(Some(group));
            }
        }
        Ok(None)
    }

    /// Counts the rows that are equal to `first`, which come next.
    fn equal_rows(&mut self, first: Row, group: &mut Group) -> Result<()> {
        let mut rows = [0_u64; 2];
        rows[usize::from(first.is_of_target)] = first.rows;
        while self.peek().is_some_and(|row| (row.code, row.raw) == (first.code, first.raw)) {
            let Some(row) = self.pop()? else { break };
            rows[usize::from(row.is_of_target)] += row.rows;
        }
        let [source, target] = rows;
        let surplus =
            |rows| Surplus { raw: first.raw, value: first.value, rows, body: first.body.clone() };
        match () {
            () if source > target => group.source.push(surplus(source - target)),
            () if target > source => group.target.push(surplus(target - source)),
            () => {}
        }
        Ok(())
    }
}

impl Row {
    pub(crate) fn new(which: Which, code: u128, (raw, value): (u128, u128), body: &[u8]) -> Self {
        let is_of_target = which == Which::Target;
        Self { code, raw, value, is_of_target, rows: 1, body: body.into() }
    }
}

fn unwritten(cause: io::Error) -> Error {
    Error::new(Kind::Unavailable, "put rows that may differ aside in a temporary file")
        .because(cause)
        .hint("make room in the state directory (without one: in TMPDIR), and run the same command again")
}

fn unread(cause: io::Error) -> Error {
    Error::new(Kind::Unavailable, "read rows back from a temporary file").because(cause)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    /// Rows of few codes, so that most are there several times on both sides.
    fn some_rows(count: u64) -> Vec<Row> {
        let mut seed = 7_u64;
        let mut below = |bound: u64| {
            seed = seed
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) % bound
        };
        let mut row = || {
            let (code, raw) = (below(40).into(), below(3).into());
            let which = if below(2) == 0 { Which::Source } else { Which::Target };
            Row::new(which, code, (raw, 0), format!("{code} {raw}").as_bytes())
        };
        (0..count).map(|_| row()).collect()
    }

    fn counted(rows: &[Row]) -> BTreeMap<(u128, u128), i64> {
        let mut counts = BTreeMap::new();
        for row in rows {
            *counts.entry((row.code, row.raw)).or_default() +=
                if row.is_of_target { -1 } else { 1 };
        }
        counts.retain(|_, count| *count != 0);
        counts
    }

    fn found(aside: &mut Aside) -> BTreeMap<(u128, u128), i64> {
        let mut groups = aside.groups().unwrap();
        let (mut found, mut last) = (BTreeMap::new(), None);
        while let Some(group) = groups.next().unwrap() {
            assert!(last < Some(group.code), "in the order of the codes, each once");
            last = Some(group.code);
            for (sign, side) in [(1, &group.source), (-1, &group.target)] {
                for surplus in side {
                    let body = format!("{} {}", group.code, surplus.raw);
                    assert_eq!(&*surplus.body, body.as_bytes());
                    found.insert((group.code, surplus.raw), sign * surplus.rows.cast_signed());
                }
            }
        }
        found
    }

    #[test]
    fn what_is_not_in_common_is_what_counting_finds_in_memory_in_runs_and_read_twice() {
        let rows = some_rows(3000);
        for limit in [1 << 20, 9000, 600] {
            let spill = Spill::new(std::env::temp_dir());
            let mut all = Aside::new(&spill, limit);
            for part in rows.chunks(101) {
                let mut chunk = Aside::new(&spill, limit / 2);
                part.iter().for_each(|row| chunk.push(row.clone()).unwrap());
                all.absorb(chunk).unwrap();
            }
            assert_eq!(all.runs.is_empty(), limit == 1 << 20);
            assert!(all.bytes <= limit && all.runs.len() < 2 * RUNS, "{}", all.runs.len());
            let expected = counted(&rows);
            assert!(expected.len() > 50);
            assert_eq!(found(&mut all), expected);
            assert_eq!(found(&mut all), expected);
        }
    }
}
