//! Moves what was found of one table.
//!
//! **Invariant:** rows, and the generation that names the file which knows of them, are one transaction of the target; the file
//! is whole and synced before. A row is read again by its place under the snapshot in which it was found.

use std::sync::Arc;

use rustc_hash::FxHashMap;
use tidemark_ledger::{KnownRow, NewRows};
use tidemark_model::{Budget, ChunkRange};
use tidemark_pipeline::{Error, Kind, Result, blocking};
use tidemark_sink::postgres::{DeltaTarget, DeltaWriter, RefusedRow};
use tidemark_source::Reader;
use tidemark_verify::{Pair, Spill, View, Which};

use super::classify::{Gone, Put};
use super::gather::{place_column, place_text, split_places};
use super::plan::Table;
use super::report::TableDelta;
use super::runs::{Sorted, Sorter};

/// Rows that one statement asks for.
const ROWS_AT_ONCE: usize = 2000;
/// The same of rows that were refused: two of them may be in each other's way.
const REFUSED_AT_ONCE: usize = 10_000;
/// Bytes of rows that are written at once.
const BYTES_AT_ONCE: usize = 4 << 20;
/// Rows that go with one statement.
const GONE_AT_ONCE: usize = 2000;

/// What is to be done with one table.
pub(super) struct Work<'a> {
    pub(super) pair: &'a Pair,
    pub(super) table: &'a Table,
    pub(super) source: &'a View,
    pub(super) budget: &'a Budget,
    pub(super) spill: &'a Arc<Spill>,
}

/// What was found, and the file of it that is being written.
pub(super) struct Findings {
    pub(super) puts: Sorter<Put>,
    pub(super) gone: Sorted<Gone>,
    pub(super) rows: NewRows,
    pub(super) refused: Vec<KnownRow>,
}

impl Work<'_> {
    /// Writes all of it and commits it as this generation.
    pub(super) async fn write(
        &self,
        target: &mut DeltaTarget,
        findings: Findings,
        (generation, told): (&str, &mut TableDelta),
    ) -> Result<()> {
        let Findings { puts, gone, rows, mut refused } = findings;
        let mut writer = target.begin(&self.table.write, self.table.generation.as_deref()).await?;
        self.take(&mut writer, gone, (&mut refused, told)).await?;
        let mut reader = None;
        let first = self.put(&mut writer, (puts, ROWS_AT_ONCE), &mut reader).await?;
        // What was in the way of a row may have come after it.
        writer.try_again();
        let mut again = Sorter::new(self.spill, u64::MAX);
        first.into_iter().try_for_each(|(put, _)| again.push(put))?;
        for (put, why) in self.put(&mut writer, (again, REFUSED_AT_ONCE), &mut reader).await? {
            told.refuse(put.class, &why);
            let (hash, is_there) = (put.before.unwrap_or_default(), put.before.is_some());
            refused.push(KnownRow { code: put.code, hash, is_there, is_refused: true });
        }
        blocking(move || rows.finish(refused)).await??;
        Ok(writer.commit(generation).await?)
    }

    async fn take(
        &self,
        writer: &mut DeltaWriter<'_>,
        mut gone: Sorted<Gone>,
        (refused, told): (&mut Vec<KnownRow>, &mut TableDelta),
    ) -> Result<()> {
        loop {
            let part = some_of(&mut gone, GONE_AT_ONCE)?;
            if part.is_empty() {
                return Ok(());
            }
            for RefusedRow { row, why } in self.take_some(writer, &part).await? {
                let Gone { code, hash, class, .. } = part[row];
                told.refuse(class, &why);
                refused.push(KnownRow { code, hash, is_there: true, is_refused: true });
            }
        }
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

    /// Puts all of these rows; gives those that were refused.
    async fn put(
        &self,
        writer: &mut DeltaWriter<'_>,
        (puts, at_once): (Sorter<Put>, usize),
        reader: &mut Option<Reader>,
    ) -> Result<Vec<(Put, String)>> {
        let (mut puts, mut refused) = (puts.sorted()?, Vec::new());
        loop {
            let part = some_of(&mut puts, at_once)?;
            if part.is_empty() {
                return Ok(refused);
            }
            let reader = match &mut *reader {
                Some(reader) => reader,
                none => none.insert(self.source.reader().await?),
            };
            refused.extend(self.put_some(writer, part, reader).await?);
        }
    }

    async fn put_some(
        &self,
        writer: &mut DeltaWriter<'_>,
        part: Vec<Put>,
        reader: &mut Reader,
    ) -> Result<Vec<(Put, String)>> {
        let places: Vec<String> =
            part.iter().map(|put| format!("\"{}\"", place_text(put.place))).collect();
        let mut spec = self.pair.chunk(Which::Source, 0, ChunkRange::Whole);
        spec.columns = self.table.select.clone();
        spec.columns.push(place_column());
        spec.form = self.table.form;
        spec.filter = Some(format!(
            "ctid OPERATOR(pg_catalog.=) ANY ('{{{}}}'::pg_catalog.tid[])",
            places.join(",")
        ));
        let mut wanted: FxHashMap<u64, Put> =
            part.into_iter().map(|put| (put.place, put)).collect();
        let defect = |what: &str| {
            let message = format!("read the rows of {} that changed: {what}", self.pair.name());
            Error::new(Kind::Internal, message)
        };
        let mut refused = Vec::new();
        let mut copy = reader.copy(&spec).await.map_err(|error| self.source.of(error))?;
        let of = |error: tidemark_wire::Error| self.source.of(error);
        while let Some((tuples, _held)) = copy.next(BYTES_AT_ONCE, self.budget).await.map_err(of)? {
            let (rows, places) =
                split_places(&tuples).ok_or_else(|| defect("a row without its place"))?;
            let puts: Option<Vec<Put>> = places.iter().map(|place| wanted.remove(place)).collect();
            let puts = puts.ok_or_else(|| defect("a row that was not asked for"))?;
            let some = writer.put(&rows).await?;
            refused.extend(some.into_iter().map(|RefusedRow { row, why }| (puts[row], why)));
        }
        match wanted.is_empty() {
            true => Ok(refused),
            false => Err(defect("some are gone although the snapshot is held")),
        }
    }
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
