//! Reads rows a second time under the snapshots of the first, so that they can be named.
//!
//! **Invariant:** what is put aside of a row is enough to tell whether the other side has the same one: its hashes, exactly
//! those that were summed, and a code that both sides' rows of one key share. A row whose key has no code (a NULL, a number
//! wider than the source's column) is on the target only, so that it is a key of its own.

use std::collections::HashSet;
use std::sync::{Arc, Mutex};

use bytes::{BufMut as _, BytesMut};
use tidemark_digest::{NamedRow, RowHasher};
use tidemark_model::{SelectColumn, TupleForm, Tuples, Wire};
use tidemark_pipeline::{Error, Kind, Result};

use crate::aside::{Aside, Row};
use crate::pair::{Pair, Shows};
use crate::run::Run;
use crate::scan::{Piece, Take, TakeRows, plan, scan};
use crate::side::View;
use crate::spill::Spill;
use crate::{Which, spill_directory};

/// Keys that one statement asks for.
const KEYS_PER_CHUNK: usize = 500;

/// Which rows are read.
pub(crate) enum Ask {
    /// Those of these leaves.
    Leaves(Vec<u32>),
    /// Of these leaves only those that are known by these: the code of the key, or without a key the hash of the row.
    Some(Vec<u32>, HashSet<u128>),
    /// Those with these keys, or without a key these rows, as text.
    Keys(Vec<Vec<Option<String>>>),
}

/// Reads them on both sides.
///
/// # Errors
/// A side cannot be read, or there is no room on the disk.
pub(crate) async fn read_again(
    run: &Run<'_>,
    views: [&View; 2],
    number: usize,
    (ask, shows): (Ask, Shows),
) -> Result<Aside> {
    let pair = &run.paired.pairs[number];
    let [ours, theirs] = views.map(|view| pieces(run, view, number, (&ask, shows)));
    let (leaves, some) = match ask {
        Ask::Leaves(leaves) => (Some(leaves), None),
        Ask::Some(leaves, some) => (Some(leaves), Some(some)),
        Ask::Keys(_) => (None, None),
    };
    let wanted = Wanted { leaves: leaves.map(|leaves| leaves.into_iter().collect()), some, shows };
    let memory = (run.request.job.memory / 8).max(1 << 20);
    let spill = Spill::new(spill_directory(&run.request.job));
    let again = Again {
        run,
        pair,
        wanted: Arc::new(wanted),
        of_chunk: memory / 4 / run.tools.readers.max(1) as u64,
        all: Mutex::new(Aside::new(&spill, memory / 2)),
        spill,
    };
    tokio::try_join!(
        scan(&run.tools, views[0], ours, &again),
        scan(&run.tools, views[1], theirs, &again),
    )?;
    Ok(again.all.into_inner().expect("no holder panics"))
}

fn pieces(run: &Run<'_>, view: &View, number: usize, (ask, shows): (&Ask, Shows)) -> Vec<Piece> {
    let (pairs, which) = (&run.paired.pairs, view.which);
    let pair = &pairs[number];
    let mut pieces = match ask {
        Ask::Leaves(leaves) | Ask::Some(leaves, _) => {
            let ranges = pair.ranges_of(leaves);
            plan(run.request, view, pairs, std::iter::once((number, ranges)))
        }
        Ask::Keys(keys) => {
            let chunks = (0..).zip(keys.chunks(KEYS_PER_CHUNK));
            let chunk = |(chunk, keys)| {
                let mut spec = pair.chunk(which, chunk, tidemark_model::ChunkRange::Whole);
                let keys = pair.has_key(which, keys);
                spec.filter = Some(match spec.filter {
                    // The line feed ends a comment that the user's expression may end with.
                    Some(filter) => format!("({filter}\n) AND {keys}"),
                    None => keys,
                });
                (number, spec)
            };
            chunks.map(chunk).collect()
        }
    };
    for (_, spec) in &mut pieces {
        let text = |at: &usize| SelectColumn {
            name: pair.half(which).columns[*at].name.clone(),
            wire: Wire::CastToText,
        };
        spec.columns.extend(pair.shown(shows).iter().map(text));
    }
    pieces
}

/// What is looked for among the rows that are read.
struct Wanted {
    leaves: Option<HashSet<u32>>,
    some: Option<HashSet<u128>>,
    shows: Shows,
}

struct Again<'a> {
    run: &'a Run<'a>,
    pair: &'a Pair,
    wanted: Arc<Wanted>,
    /// Bytes that a chunk keeps in memory.
    of_chunk: u64,
    spill: Arc<Spill>,
    all: Mutex<Aside>,
}

impl Take for Again<'_> {
    type Chunk = Picking;

    fn begin(&self, which: Which, _: usize) -> Result<Picking> {
        Ok(Picking {
            which,
            // It is fed nothing: the hasher only names rows as a locator would know them.
            hasher: self.pair.locating_hasher(which, &self.run.tools.key, 0)?,
            hashed: self.pair.half(which).columns.len(),
            is_keyless: self.pair.key.is_empty(),
            wanted: Arc::clone(&self.wanted),
            aside: Aside::new(&self.spill, self.of_chunk),
            rows: 0,
        })
    }

    fn end(&self, _: Which, _: usize, chunk: Picking) -> Result<()> {
        self.all.lock().expect("no holder panics").absorb(chunk.aside)
    }
}

/// Picks rows of one chunk.
struct Picking {
    which: Which,
    hasher: RowHasher,
    /// Columns that are hashed; those behind are text to be shown.
    hashed: usize,
    is_keyless: bool,
    wanted: Arc<Wanted>,
    aside: Aside,
    rows: u64,
}

impl TakeRows for Picking {
    fn add(&mut self, tuples: &Tuples) -> Result<()> {
        self.rows += tuples.row_count() as u64;
        let malformed = || Error::new(Kind::Internal, "find the fields in the rows");
        let Parts { hashed, tails } = match self.wanted.shows {
            Shows::Nothing => Parts { hashed: tuples.clone(), tails: Vec::new() },
            _ => parts(tuples, self.hashed).ok_or_else(malformed)?,
        };
        let whole: Vec<&[u8]> = tuples.rows().collect();
        let Self { which, hasher, is_keyless, wanted, aside, .. } = self;
        let mut put = Ok(());
        let named = hasher.name_rows(&hashed, |named: NamedRow| {
            let NamedRow { row, leaf, code, sum } = named;
            // Of rows without a key those of one value are compared, be it in several representations.
            let code = if *is_keyless { None } else { code.map(|code| code.number()) };
            let name = code.unwrap_or(sum.raw);
            let is_wanted = wanted.leaves.as_ref().is_none_or(|leaves| leaves.contains(&leaf))
                && wanted.some.as_ref().is_none_or(|some| some.contains(&name));
            if !is_wanted || put.is_err() {
                return;
            }
            let body = match wanted.shows {
                Shows::Nothing => &[],
                Shows::Key => &whole[row][tails[row]..],
                Shows::Row => whole[row],
            };
            let code = if *is_keyless { sum.value } else { name };
            put = aside.push(Row::new(*which, code, (sum.raw, sum.value), body));
        });
        named.map_err(|cause| Error::new(Kind::Internal, "hash the rows").because(cause))?;
        put
    }

    fn rows(&self) -> u64 {
        self.rows
    }
}

/// Rows whose last columns are text that is not hashed.
pub(crate) struct Parts {
    /// The rows as they were summed.
    pub(crate) hashed: Tuples,
    /// Where in each row the text begins.
    pub(crate) tails: Vec<usize>,
}

pub(crate) fn parts(tuples: &Tuples, hashed: usize) -> Option<Parts> {
    let mut data = BytesMut::with_capacity(tuples.data.len());
    let (mut ends, mut tails) = (Vec::new(), Vec::new());
    for row in tuples.rows() {
        let mut at = 2;
        for _ in 0..hashed {
            at += 4 + field_at(row, at)?.map_or(0, <[u8]>::len);
        }
        data.put_u16(u16::try_from(hashed).ok()?);
        data.put_slice(row.get(2..at)?);
        ends.push(u32::try_from(data.len()).ok()?);
        tails.push(at);
    }
    Some(Parts { hashed: Tuples { form: TupleForm::PgBinary, data: data.freeze(), ends }, tails })
}

/// The field whose length is at that place, `None` inside being NULL.
fn field_at(row: &[u8], at: usize) -> Option<Option<&[u8]>> {
    let length = i32::from_be_bytes(*row.get(at..)?.first_chunk()?);
    match usize::try_from(length) {
        Err(_) => Some(None),
        Ok(length) => row.get(at + 4..at + 4 + length).map(Some),
    }
}

/// The fields of what was put aside, one after the other.
pub(crate) fn fields(body: &[u8], shows: Shows) -> Vec<Option<&[u8]>> {
    let (mut at, mut fields) = (if shows == Shows::Row { 2 } else { 0 }, Vec::new());
    while let Some(field) = field_at(body, at) {
        at += 4 + field.map_or(0, <[u8]>::len);
        fields.push(field);
    }
    fields
}
