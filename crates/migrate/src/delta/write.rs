//! Moves what was found of one table.
//!
//! **Invariant:** rows, and the generation that names the file which knows of them, are one transaction of the target; the file
//! is whole and synced before. A row is read again by its place, or by a key that is one integer, under the snapshot in which
//! it was found.

use std::sync::Arc;

use rustc_hash::FxHashMap;
use tidemark_ledger::{KnownRow, NewRows};
use tidemark_model::{Budget, ChunkRange, Reservation, Tuples};
use tidemark_pipeline::{Error, Kind, Result, blocking};
use tidemark_sink::postgres::{DeltaTarget, DeltaWriter, RefusedRow};
use tidemark_source::Reader;
use tidemark_verify::{Pair, Spill, View, Which};
use tokio::sync::mpsc;

use super::classify::{Gone, Put};
use super::gather::{ReadBy, place_text};
use super::plan::Table;
use super::report::TableDelta;
use super::runs::{Sorted, Sorter};

/// Rows that one statement asks for.
const ROWS_AT_ONCE: usize = 8000;
/// The same of rows that were refused: two of them may be in each other's way.
const REFUSED_AT_ONCE: usize = 10_000;
/// Bytes of rows that are written at once.
const BYTES_AT_ONCE: usize = 4 << 20;
/// Rows that go with one statement.
pub(super) const GONE_AT_ONCE: usize = 8000;

/// What is to be done with one table.
pub(super) struct Work<'a> {
    pub(super) pair: &'a Pair,
    pub(super) table: &'a Table,
    pub(super) source: &'a View,
    pub(super) budget: &'a Budget,
    pub(super) spill: &'a Arc<Spill>,
}

/// What was found, and the file of it that is being written, if one is.
pub(super) struct Findings {
    pub(super) puts: Sorter<Put>,
    /// Rows that the target did not let go, and why.
    pub(super) taken: Vec<(Gone, String)>,
    pub(super) file: Option<NewRows>,
    pub(super) refused: Vec<KnownRow>,
}

/// The target, where a table's transaction begins with the first thing that is written.
pub(super) enum Writing<'t> {
    Idle(Option<&'t mut DeltaTarget>),
    Begun(DeltaWriter<'t>),
}

impl<'t> Writing<'t> {
    pub(super) fn new(target: &'t mut DeltaTarget) -> Self {
        Self::Idle(Some(target))
    }

    async fn writer(&mut self, table: &'t Table) -> Result<&mut DeltaWriter<'t>> {
        if let Self::Idle(target) = self
            && let Some(target) = target.take()
        {
            let writer = target.begin(&table.write, table.generation.as_deref()).await?;
            *self = Self::Begun(writer);
        }
        match self {
            Self::Begun(writer) => Ok(writer),
            Self::Idle(_) => Err(Error::new(Kind::Internal, "write after a failure")),
        }
    }
}

/// Where rows come from that go.
pub(super) enum Goes {
    /// As they are found, some at a time.
    Found(mpsc::Receiver<Vec<Gone>>),
    Sorted(Sorted<Gone>),
}

impl Goes {
    /// Some of them; none at the end.
    async fn next(&mut self) -> Result<Vec<Gone>> {
        match self {
            Self::Found(found) => Ok(found.recv().await.unwrap_or_default()),
            Self::Sorted(gone) => some_of(gone, GONE_AT_ONCE),
        }
    }

    /// All of them.
    pub(super) async fn all(mut self, mut into: Sorter<Gone>) -> Result<Sorter<Gone>> {
        loop {
            let some = self.next().await?;
            if some.is_empty() {
                return Ok(into);
            }
            some.into_iter().try_for_each(|gone| into.push(gone))?;
        }
    }
}

impl<'t> Work<'t> {
    /// Writes all of it and commits it, as this generation if a file tells of it.
    pub(super) async fn write(
        &self,
        mut writing: Writing<'t>,
        findings: Findings,
        (generation, told): (Option<&str>, &mut TableDelta),
    ) -> Result<()> {
        let Findings { puts, taken, mut file, mut refused } = findings;
        for (Gone { code, hash, class, .. }, why) in taken {
            told.refuse(class, &why);
            refused.push(KnownRow { code, hash, is_there: true, is_refused: true });
        }
        let writer = writing.writer(self.table).await?;
        // The disk has the time that the target takes.
        let sync = async {
            let sync = move || file.as_mut().map_or(Ok(()), NewRows::sync).map(|()| file);
            Ok(blocking(sync).await??)
        };
        let (file, not_put) = tokio::try_join!(sync, self.put_all(writer, puts))?;
        for (put, why) in not_put {
            told.refuse(put.class, &why);
            let Put { code, before: hash, is_new, .. } = put;
            refused.push(KnownRow { code, hash, is_there: !is_new, is_refused: true });
        }
        if let Some(file) = file {
            blocking(move || file.finish(refused)).await??;
        }
        Ok(writer.commit(generation).await?)
    }

    /// Takes these rows out; gives those that were refused, and why.
    pub(super) async fn take(
        &self,
        writing: &mut Writing<'t>,
        mut goes: Goes,
    ) -> Result<Vec<(Gone, String)>> {
        let mut refused = Vec::new();
        loop {
            let part = goes.next().await?;
            if part.is_empty() {
                return Ok(refused);
            }
            let some = self.take_some(writing.writer(self.table).await?, &part).await?;
            refused.extend(some.into_iter().map(|RefusedRow { row, why }| (part[row], why)));
        }
    }

    /// Puts all of these rows; gives those that were refused in the end.
    async fn put_all(
        &self,
        writer: &mut DeltaWriter<'_>,
        puts: Sorter<Put>,
    ) -> Result<Vec<(Put, String)>> {
        let mut reader = None;
        let first = self.put(writer, (puts, ROWS_AT_ONCE), &mut reader).await?;
        // What was in the way of a row may have come after it.
        writer.try_again();
        let mut again = Sorter::new(self.spill, u64::MAX);
        first.into_iter().try_for_each(|(put, _)| again.push(put))?;
        self.put(writer, (again, REFUSED_AT_ONCE), &mut reader).await
    }

    async fn take_some(
        &self,
        writer: &mut DeltaWriter<'_>,
        part: &[Gone],
    ) -> Result<Vec<RefusedRow>> {
        let places: Option<Vec<String>> =
            part.iter().map(|gone| gone.place.map(place_text)).collect();
        if let Some(places) = places {
            return Ok(writer.take_places(&places).await?);
        }
        let keys =
            part.iter().map(|gone| self.pair.key_texts(gone.code)).collect::<Option<Vec<_>>>();
        let unknown = || {
            let message =
                format!("take rows out of {}: their places are not known", self.pair.name());
            Error::new(Kind::Internal, message)
        };
        Ok(writer.take_keys(&keys.ok_or_else(unknown)?).await?)
    }

    /// Puts all of these rows, some while the next ones are read; gives those that were refused.
    async fn put(
        &self,
        writer: &mut DeltaWriter<'_>,
        (puts, at_once): (Sorter<Put>, usize),
        reader: &mut Option<Reader>,
    ) -> Result<Vec<(Put, String)>> {
        let (send, mut receive) = mpsc::channel(1);
        let read = self.read((puts, at_once), reader, send);
        let write = async {
            let mut refused = Vec::new();
            while let Some(Batch { rows, puts, _held }) = receive.recv().await {
                let is_new = puts.iter().all(|put| put.is_new);
                let some = writer.put(&rows, is_new).await?;
                refused.extend(some.into_iter().map(|RefusedRow { row, why }| (puts[row], why)));
            }
            Ok(refused)
        };
        let ((), refused) = tokio::try_join!(read, write)?;
        Ok(refused)
    }

    async fn read(
        &self,
        (puts, at_once): (Sorter<Put>, usize),
        reader: &mut Option<Reader>,
        send: mpsc::Sender<Batch>,
    ) -> Result<()> {
        let mut puts = puts.sorted()?;
        loop {
            let part = some_of(&mut puts, at_once)?;
            if part.is_empty() {
                return Ok(());
            }
            let reader = match &mut *reader {
                Some(reader) => reader,
                none => none.insert(self.source.reader().await?),
            };
            self.read_some(part, reader, &send).await?;
        }
    }

    async fn read_some(
        &self,
        part: Vec<Put>,
        reader: &mut Reader,
        send: &mpsc::Sender<Batch>,
    ) -> Result<()> {
        let by = ReadBy::of(self.pair);
        let defect = |what: &str| {
            let message = format!("read the rows of {} that changed: {what}", self.pair.name());
            Error::new(Kind::Internal, message)
        };
        let known_by = |put: &Put| match by {
            ReadBy::Place => Some(put.place),
            ReadBy::Integer { .. } => {
                let key = self.pair.key_texts(put.code)?.pop()?;
                key.parse::<i64>().ok().map(i64::cast_unsigned)
            }
        };
        let known: Option<Vec<u64>> = part.iter().map(known_by).collect();
        let known = known.ok_or_else(|| defect("a key that is no number"))?;
        let mut spec = self.pair.chunk(Which::Source, 0, ChunkRange::Whole);
        spec.columns = self.table.select.clone();
        spec.columns.push(by.column());
        spec.form = self.table.form;
        spec.filter = Some(by.condition(&known));
        let mut wanted: FxHashMap<u64, Put> = known.into_iter().zip(part).collect();
        let mut copy = reader.copy(&spec).await.map_err(|error| self.source.of(error))?;
        let of = |error: tidemark_wire::Error| self.source.of(error);
        while let Some((tuples, held)) = copy.next(BYTES_AT_ONCE, self.budget).await.map_err(of)? {
            let (rows, known) =
                by.split(&tuples).ok_or_else(|| defect("a row that cannot be told"))?;
            let puts: Option<Vec<Put>> = known.iter().map(|known| wanted.remove(known)).collect();
            let puts = puts.ok_or_else(|| defect("a row that was not asked for"))?;
            // Whoever writes has failed, and says why.
            send.send(Batch { rows, puts, _held: held }).await.ok();
        }
        match wanted.is_empty() {
            true => Ok(()),
            false => Err(defect("some are gone although the snapshot is held")),
        }
    }
}

/// Rows that were read again, on their way to the target.
struct Batch {
    rows: Tuples,
    puts: Vec<Put>,
    _held: Reservation,
}

fn some_of<T: super::runs::Record>(from: &mut Sorted<T>, at_most: usize) -> Result<Vec<T>> {
    let mut some = Vec::new();
    while some.len() < at_most
        && let Some(one) = from.next()?
    {
        some.push(one);
    }
    Ok(some)
}
