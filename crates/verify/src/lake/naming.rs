//! Names the rows in which the source and the lake differ.
//!
//! **Invariant:** that of [`crate::naming`]: the hashes of the rows that are named add up to the difference of the sums, or
//! nothing is said to be complete; neither the number of the rows nor their size is in memory. A row is shown with the same
//! text whichever side it is of.
//!
//! ```text
//! keys only                    both sides again, key and hashes of every row aside ───────────┐
//! whole rows, or without a key both sides again for the hashes alone, then as many of those   ├ Aside ─ groups ─ lines
//!                              rows as fit, again and again, with all their columns ──────────┘
//! ```
//!
//! A row of a table without a key that goes from the lake is put aside as one that the source has more of: what is left over
//! is the difference of the two multisets in any case.

use std::collections::HashSet;
use std::sync::{Arc, Mutex};

use tidemark_digest::canonical::Form;
use tidemark_digest::{NamedRow, RowHasher};
use tidemark_model::{RowSum, SelectColumn, Tuples, Wire};
use tidemark_pipeline::{Error, Kind, Result};
use tidemark_report::{ColumnDifference, DiffKind, FieldValue, Key, Level};

use super::body::{Body, BodyWriter};
use super::merge::{Goes, Present};
use super::pair::LakePair;
use super::rows::{Hasher, Image};
use super::{LakeRun, Trouble};
use crate::again::{Parts, fields, parts};
use crate::aside::{Aside, Row};
use crate::naming::{CHANGED, Excess, Found, Named, Telling, field_value, matched};
use crate::pair::Shows;
use crate::scan::{Piece, Take, TakeRows, plan_chunks, scan};
use crate::side::View;
use crate::spill::Spill;
use crate::{Which, spill_directory};

/// What the name of a row takes that is looked for.
const NAME_BYTES: u64 = 48;

/// Names the rows of a pair; each one becomes a line.
pub(super) async fn name(
    run: &LakeRun<'_>,
    view: &View,
    (number, pair): (usize, &LakePair),
    expected: Excess,
) -> Result<Named, Trouble> {
    let telling = Telling::new(&run.request.lines, &pair.relation.name);
    let mut naming = Naming { run, view, number, pair, telling };
    Box::pin(naming.tell(expected)).await?;
    Ok(naming.telling.finish()?)
}

struct Naming<'a> {
    run: &'a LakeRun<'a>,
    view: &'a View,
    number: usize,
    pair: &'a LakePair,
    telling: Telling<'a>,
}

impl Naming<'_> {
    async fn tell(&mut self, expected: Excess) -> Result<(), Trouble> {
        let is_keyless = self.pair.named_by.is_empty();
        if self.run.request.level < Level::Rows && !is_keyless {
            let mut aside = self.read_again(None, Shows::Key).await?;
            is_what(&mut aside, expected)?;
            return self.tell_all(aside, Shows::Key);
        }
        // Whole rows are read when it is known which.
        let mut aside = self.read_again(None, Shows::Nothing).await?;
        is_what(&mut aside, expected)?;
        self.tell_parts(aside).await
    }

    /// Reads the rows whose names are aside, so many at a time, and tells them.
    async fn tell_parts(&mut self, mut aside: Aside) -> Result<(), Trouble> {
        let at_once = (self.run.request.job.memory / 8 / NAME_BYTES).max(1024);
        let at_once = usize::try_from(at_once).unwrap_or(usize::MAX);
        let is_keyless = self.pair.named_by.is_empty();
        let mut groups = aside.groups()?;
        let (mut names, mut excess) = (HashSet::new(), Excess::default());
        loop {
            let group = groups.next()?;
            let is_last = group.is_none();
            if let Some(group) = group {
                excess.add_group(&group);
                let both = group.source.iter().chain(&group.target);
                names.extend(both.map(|one| if is_keyless { one.raw } else { group.code }));
            }
            if names.len() >= at_once || is_last && !names.is_empty() {
                let names = std::mem::take(&mut names);
                let mut rows = self.read_again(Some(names), Shows::Row).await?;
                is_what(&mut rows, std::mem::take(&mut excess))?;
                self.tell_all(rows, Shows::Row)?;
            }
            if is_last {
                return Ok(());
            }
        }
    }

    /// Reads both sides again and puts aside the rows with these names, or all.
    async fn read_again(
        &self,
        names: Option<HashSet<u128>>,
        shows: Shows,
    ) -> Result<Aside, Trouble> {
        let (run, pair) = (self.run, self.pair);
        let memory = (run.request.job.memory / 8).max(1 << 20);
        let spill = Spill::new(spill_directory(&run.request.job));
        let picks = Arc::new(Picks {
            pair: pair.clone(),
            names,
            shows,
            of_chunk: memory / 4 / run.tools.readers.max(1) as u64,
            all: Mutex::new(Aside::new(&spill, memory / 2)),
            spill,
        });
        let shown = pair.shown(shows);
        let of_source = self.view.tables().iter().find(|table| table.oid == pair.relation.oid);
        let of_source = of_source.map_or(0, |table| table.heap_bytes + table.toast_bytes);
        run.tools.progress.begin_reading(of_source.saturating_add(pair.table.bytes()));
        // The thread that reads files is not dropped with the future that waits for it.
        let ended = run.tools.stop.child_token();
        let _ends_it = ended.clone().drop_guard();
        let mut of_lake = OfLake::new(&picks);
        let room = run.request.job.memory / 4;
        let lake = run.merging(pair, (shown.clone(), room), &ended, move |merge| {
            merge.give(&mut of_lake)?;
            of_lake.end()
        });
        let of_source = OfSource { run, picks: &picks };
        let source =
            async { Ok(scan(&run.tools, self.view, self.pieces(&shown), &of_source).await?) };
        tokio::try_join!(source, lake)?;
        let all = Aside::new(&picks.spill, 0);
        Ok(std::mem::replace(&mut *picks.all.lock().expect("no holder panics"), all))
    }

    /// The chunks of the source, with the text of these columns behind the others.
    fn pieces(&self, shown: &[usize]) -> Vec<Piece> {
        let pair = self.pair;
        let text = |at: &usize| SelectColumn {
            name: pair.columns[*at].0.name.clone(),
            wire: Wire::CastToText,
        };
        let chunk = |_, number, range| {
            let mut spec = pair.chunk(number, range);
            spec.columns.extend(shown.iter().map(text));
            spec
        };
        let wanted = std::iter::once((self.number, pair.relation.oid, None));
        plan_chunks(self.run.request, self.view, wanted, chunk)
    }

    fn tell_all(&mut self, mut aside: Aside, shows: Shows) -> Result<(), Trouble> {
        let mut groups = aside.groups()?;
        while let Some(group) = groups.next()? {
            matched(group).iter().try_for_each(|found| self.tell_found(found, shows))?;
        }
        Ok(())
    }

    fn tell_found(&mut self, found: &Found, shows: Shows) -> Result<(), Trouble> {
        let pair = self.pair;
        let cells = if shows == Shows::Row { pair.columns.len() } else { 0 };
        let [source, target] =
            [0, 1].map(|side| found.bodies[side].as_deref().map(|body| Body::of(body, cells)));
        let Some(one) = source.as_ref().or(target.as_ref()) else { return Ok(()) };
        let is_keyless = pair.named_by.is_empty();
        let key = if is_keyless { pair.shown(Shows::Row) } else { pair.named_by.clone() };
        let value_of = |(place, at): (usize, &usize)| {
            let place = if shows == Shows::Row { *at } else { place };
            Ok((pair.columns[*at].0.name.clone(), self.value(one, place, *at)?))
        };
        let key: Result<Vec<_>, Trouble> = key.iter().enumerate().map(value_of).collect();
        let key = if is_keyless { Key::WholeRow(key?) } else { Key::Columns(key?) };
        let columns = match (&source, &target) {
            (Some(source), Some(target)) if self.run.request.level == Level::Rows => {
                self.columns(source, target)?
            }
            _ => Vec::new(),
        };
        Ok(self.telling.tell(found.kind, found.copies, key, columns)?)
    }

    /// The columns in which a row on both sides differs.
    fn columns(
        &self,
        source: &Body<'_>,
        target: &Body<'_>,
    ) -> Result<Vec<ColumnDifference>, Trouble> {
        let mut found = Vec::new();
        for (at, (column, _)) in self.pair.columns.iter().enumerate() {
            let ([raw, value], [other_raw, other_value]) = (source.cells(at), target.cells(at));
            if raw == other_raw {
                continue;
            }
            found.push(ColumnDifference {
                column: column.name.clone(),
                class: if value == other_value { DiffKind::Equivalent } else { DiffKind::Changed },
                source: self.value(source, at, at)?,
                target: self.value(target, at, at)?,
            });
        }
        Ok(found)
    }

    fn value(&self, body: &Body<'_>, place: usize, at: usize) -> Result<FieldValue, Trouble> {
        let (column, _) = &self.pair.columns[at];
        match body.text(place) {
            Some(text) => Ok(field_value(column, text)),
            None => Err(Trouble::Table(format!(
                "its column {:?} has a value in the lake that PostgreSQL would not print",
                column.name
            ))),
        }
    }
}

/// What is aside has to be what the sums differ by.
fn is_what(aside: &mut Aside, expected: Excess) -> Result<(), Trouble> {
    match Excess::of(aside)? == expected {
        true => Ok(()),
        false => Err(Trouble::Table(CHANGED.to_owned())),
    }
}

/// Which rows are put aside, what of them, and where.
struct Picks {
    pair: LakePair,
    /// Names by which they are known: those of their keys, or without a key their hashes; none: all rows.
    names: Option<HashSet<u128>>,
    shows: Shows,
    /// Bytes that a chunk keeps in memory.
    of_chunk: u64,
    spill: Arc<Spill>,
    all: Mutex<Aside>,
}

impl Picks {
    fn chunk(&self) -> Aside {
        Aside::new(&self.spill, self.of_chunk)
    }

    fn absorb(&self, chunk: Aside) -> Result<()> {
        self.all.lock().expect("no holder panics").absorb(chunk)
    }

    /// The code that rows of both sides share which are compared, if a row of this name is wanted: `code` is that of its key.
    fn code(&self, code: u128, sum: &RowSum) -> Option<u128> {
        // Of rows without a key those of one value are compared, be it in several representations.
        let (name, code) = match self.pair.named_by.is_empty() {
            true => (sum.raw, sum.value),
            false => (code, code),
        };
        self.names.as_ref().is_none_or(|names| names.contains(&name)).then_some(code)
    }
}

/// Puts rows of the source aside.
struct OfSource<'a> {
    run: &'a LakeRun<'a>,
    picks: &'a Arc<Picks>,
}

impl Take for OfSource<'_> {
    type Chunk = Picking;

    fn begin(&self, _: Which, _: usize) -> Result<Picking> {
        Ok(Picking {
            hasher: self.picks.pair.naming_hasher(&self.run.tools.key)?,
            picks: Arc::clone(self.picks),
            aside: self.picks.chunk(),
            rows: 0,
        })
    }

    fn end(&self, _: Which, _: usize, chunk: Picking) -> Result<()> {
        self.picks.absorb(chunk.aside)
    }
}

/// Picks rows of one chunk.
struct Picking {
    hasher: RowHasher,
    picks: Arc<Picks>,
    aside: Aside,
    rows: u64,
}

impl TakeRows for Picking {
    fn add(&mut self, tuples: &Tuples) -> Result<()> {
        self.rows += tuples.row_count() as u64;
        let defect = || Error::new(Kind::Internal, "find the fields in the rows");
        let count = self.picks.pair.columns.len();
        let Parts { hashed, .. } = parts(tuples, count).ok_or_else(defect)?;
        let whole: Vec<&[u8]> = tuples.rows().collect();
        let Self { hasher, picks, aside, .. } = self;
        let mut put = Ok(());
        let named = hasher.name_rows(&hashed, |NamedRow { row, code, sum, .. }| {
            let code = code.map_or(sum.raw, |code| code.number());
            let Some(code) = picks.code(code, &sum).filter(|_| put.is_ok()) else { return };
            put = body_of(&picks.pair, picks.shows, whole[row]).and_then(|body| {
                aside.push(Row::new(Which::Source, code, (sum.raw, sum.value), &body))
            });
        });
        named.map_err(|cause| Error::new(Kind::Internal, "hash the rows").because(cause))?;
        put
    }

    fn rows(&self) -> u64 {
        self.rows
    }
}

/// The body of a row that the source has sent: its columns, and behind them the text of those that are shown.
fn body_of(pair: &LakePair, shows: Shows, row: &[u8]) -> Result<Vec<u8>> {
    if shows == Shows::Nothing {
        return Ok(Vec::new());
    }
    let (fields, mut body) = (fields(row, Shows::Row), BodyWriter::default());
    let (columns, texts) = fields.split_at(pair.columns.len().min(fields.len()));
    if shows == Shows::Row {
        for form in [Form::Raw, Form::Value] {
            for (at, field) in columns.iter().enumerate() {
                body.cell(&pair.cell(at, *field, form)?);
            }
        }
    }
    texts.iter().for_each(|text| body.text::<()>(&Ok(*text)));
    Ok(body.finish())
}

/// Puts rows of the lake aside.
struct OfLake {
    picks: Arc<Picks>,
    aside: Aside,
}

impl OfLake {
    fn new(picks: &Arc<Picks>) -> Self {
        Self { picks: Arc::clone(picks), aside: picks.chunk() }
    }

    fn end(self) -> Result<(), Trouble> {
        Ok(self.picks.absorb(self.aside)?)
    }

    fn body(&self, hasher: &mut Hasher<'_>, image: &Image<'_>) -> Result<Vec<u8>, Trouble> {
        let Picks { pair, shows, .. } = &*self.picks;
        if *shows == Shows::Nothing {
            return Ok(Vec::new());
        }
        let mut body = BodyWriter::default();
        if *shows == Shows::Row {
            for form in [Form::Raw, Form::Value] {
                for at in 0..pair.columns.len() {
                    body.cell(hasher.cell(image, at, form)?);
                }
            }
        }
        pair.shown(*shows).iter().for_each(|at| body.text(&hasher.text(image, *at)));
        Ok(body.finish())
    }
}

impl Present for OfLake {
    fn part(&self) -> Self {
        Self::new(&self.picks)
    }

    fn absorb(&mut self, part: Self) -> Result<(), Trouble> {
        Ok(self.aside.absorb(part.aside)?)
    }

    fn take(
        &mut self,
        hasher: &mut Hasher<'_>,
        image: &Image<'_>,
        goes: Goes,
    ) -> Result<(), Trouble> {
        let sum = hasher.sum(image)?;
        let code = hasher.name(image, &self.picks.pair.named_by)?;
        let Some(code) = self.picks.code(code, &sum) else { return Ok(()) };
        let body = self.body(hasher, image)?;
        let which = if goes == Goes::In { Which::Target } else { Which::Source };
        Ok(self.aside.push(Row::new(which, code, (sum.raw, sum.value), &body))?)
    }
}
