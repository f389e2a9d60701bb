//! One reading of both sides: sums by leaf, and for tables that are worth it a locator that names the differing rows.
//!
//! **Invariant:** a chunk is in the sums and in the locator as a whole or not at all; both sides of a table have a locator or
//! neither has. Locators never take more than their share of memory: one is made when the first chunk of its table is read,
//! and given up when both sides are read and equal, so that in the common case few are held at a time, however many tables
//! there are. A table for which there is no room is read again if it differs, as one with too many differences is.

use std::collections::HashMap;
use std::sync::Mutex;

use tidemark_digest::{Differences, DigestKey, Locator, RowHasher};
use tidemark_model::{LeafSum, RowSum};
use tidemark_pipeline::{Error, Kind, Result};

use crate::Which;
use crate::pair::Pair;
use crate::scan::{Piece, Take};

/// Differences that a locator has room for: as many as the smallest table of cells holds.
const DIFFERENCES: u32 = 4096;
/// Tables below this size have none: they are read again sooner than a locator is filled and merged.
const WORTH_BYTES: u64 = 4 << 20;

/// What one reading found out.
pub(crate) struct Reading<'a> {
    pairs: &'a [Pair],
    key: &'a DigestKey,
    tables: Mutex<Tables>,
}

struct Tables {
    /// Bytes that locators may still take.
    room: u64,
    of: HashMap<usize, Table>,
}

struct Table {
    /// By leaf, the source's and the target's.
    sums: [Vec<RowSum>; 2],
    /// Chunks that are still to come.
    left: [usize; 2],
    located: Located,
}

enum Located {
    /// It gets a locator if there is room when its first chunk is read.
    Wanted,
    Held(Box<[Option<Locator>; 2]>),
    No,
}

/// Sums by leaf of both sides, and the differing keys where the locators told them all.
pub(crate) struct Found {
    pub(crate) source: Vec<RowSum>,
    pub(crate) target: Vec<RowSum>,
    pub(crate) keys: Option<Differences>,
}

impl Found {
    /// Of a table of so many leaves, none of which was read.
    pub(crate) fn nothing(leaves: usize) -> Self {
        let none = vec![RowSum::default(); leaves];
        Self { source: none.clone(), target: none, keys: None }
    }
}

impl<'a> Reading<'a> {
    /// A reading of these pieces of the source and of the target; `room`: bytes for locators; `size`: bytes of a table.
    pub(crate) fn new(
        (pairs, key): (&'a [Pair], &'a DigestKey),
        pieces: [&[Piece]; 2],
        room: u64,
        size: impl Fn(usize) -> u64,
    ) -> Self {
        let mut of: HashMap<usize, Table> = HashMap::new();
        for (side, pieces) in pieces.into_iter().enumerate() {
            for (pair, _) in pieces {
                let table = of.entry(*pair).or_insert_with(|| {
                    let none = vec![RowSum::default(); pairs[*pair].leaves.count()];
                    let is_worth_it = size(*pair) >= WORTH_BYTES && pairs[*pair].is_hashed();
                    let located = if is_worth_it { Located::Wanted } else { Located::No };
                    Table { sums: [none.clone(), none], left: [0, 0], located }
                });
                table.left[side] += 1;
            }
        }
        Self { pairs, key, tables: Mutex::new(Tables { room, of }) }
    }

    /// What was found of each pair of tables that was read to its end.
    pub(crate) fn finish(self) -> Result<HashMap<usize, Found>> {
        let tables = self.tables.into_inner().expect("no holder panics");
        let whole = tables.of.into_iter().filter(|(_, table)| table.left == [0, 0]);
        let found = whole.map(|(pair, table)| {
            let [source, target] = table.sums;
            let keys = match table.located {
                Located::Held(held) => match *held {
                    [Some(one), Some(other)] => {
                        Some(one.compare(&other).map_err(unlike)?).filter(|found| found.is_complete)
                    }
                    _ => None,
                },
                _ => None,
            };
            Ok((pair, Found { source, target, keys }))
        });
        found.collect()
    }
}

impl Tables {
    /// Whether the chunks of a table feed a locator.
    fn locates(&mut self, pair: usize) -> bool {
        let both = 2 * Locator::bytes_for(DIFFERENCES);
        let Some(table) = self.of.get_mut(&pair) else { return false };
        if matches!(table.located, Located::Wanted) {
            table.located = match self.room.checked_sub(both) {
                Some(room) => {
                    self.room = room;
                    Located::Held(Box::default())
                }
                None => Located::No,
            };
        }
        matches!(table.located, Located::Held(_))
    }
}

impl Take for Reading<'_> {
    type Chunk = RowHasher;

    fn begin(&self, which: Which, pair: usize) -> Result<RowHasher> {
        let locates = self.tables.lock().expect("no holder panics").locates(pair);
        let of = &self.pairs[pair];
        match locates {
            true => of.locating_hasher(which, self.key, DIFFERENCES),
            false => of.hasher(which, self.key),
        }
    }

    fn end(&self, which: Which, pair: usize, mut hasher: RowHasher) -> Result<()> {
        let locator = hasher.take_locator();
        let (_, leaves) = hasher.finish();
        let mut tables = self.tables.lock().expect("no holder panics");
        let tables = &mut *tables;
        let table = tables.of.get_mut(&pair).expect("every piece has its table");
        let side = which as usize;
        for LeafSum { leaf, sum } in leaves {
            table.sums[side][leaf as usize] += sum;
        }
        if let (Located::Held(held), Some(locator)) = (&mut table.located, locator) {
            match &mut held[side] {
                Some(all) => all.merge(&locator).map_err(unlike)?,
                none => *none = Some(locator),
            }
        }
        table.left[side] -= 1;
        let is_equal = table.left == [0, 0] && table.sums[0] == table.sums[1];
        if is_equal && matches!(table.located, Located::Held(_)) {
            table.located = Located::No;
            tables.room += 2 * Locator::bytes_for(DIFFERENCES);
        }
        Ok(())
    }
}

fn unlike(cause: tidemark_digest::Error) -> Error {
    Error::new(Kind::Internal, "name the differing rows").because(cause)
}
