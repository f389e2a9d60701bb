//! The cells, and how they are peeled.
//!
//! **Invariant:** lanes are added and subtracted modulo 2^64, so a table is the exact sum of its symbols in any order, and
//! equal symbols of two tables cancel to the last bit. A symbol is in one cell of each sub-table, and its row hash alone
//! says in which.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::KeyCode;
use crate::DigestKey;

const LANES: usize = 8;
/// Cells per symbol; also the number of sub-tables.
const SUB_TABLES: usize = 3;
/// Cells of a sub-table, at least: below that, two symbols share all three cells too easily.
const SUB_TABLE_MIN: usize = 4096;
/// From so many copies on, a lane's sum may have wrapped.
const COUNT_MAX: u64 = 1 << 31;

/// A table up to this size is in a core's own cache, and is added to directly.
const DIRECT_BYTES: u64 = 1 << 20;
/// Cells of a part, as a power of two: 256 KiB.
const PART_SHIFT: u32 = 12;
const PARTS_MAX: usize = 128;
/// Symbols that wait for one part. All parts' together are at most 256 KiB.
const PART_SYMBOLS: usize = 32;

/// A symbol that was found, and how often: above 0 on the source, below on the target.
pub(super) type Found = (KeyCode, u64, i64);

/// Count, four limbs of the key, two of the row hash, one of the check. One cache line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[repr(align(64))]
struct Cell([u64; LANES]);

impl Cell {
    #[inline]
    fn add(&mut self, other: &Self) {
        for (lane, other) in self.0.iter_mut().zip(&other.0) {
            *lane = lane.wrapping_add(*other);
        }
    }

    #[inline]
    fn subtract(&mut self, other: &Self) {
        for (lane, other) in self.0.iter_mut().zip(&other.0) {
            *lane = lane.wrapping_sub(*other);
        }
    }

    fn times(mut self, count: i64) -> Self {
        for lane in &mut self.0 {
            *lane = lane.wrapping_mul(count as u64);
        }
        self
    }
}

/// The cells of all sub-tables, one behind the other.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Stored")]
pub(super) struct Table {
    sub_table: u32,
    secret: [u64; 2],
    cells: Vec<Cell>,
}

impl fmt::Debug for Table {
    /// Cells hold keys, which belong in no log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Table({} cells)", self.cells.len())
    }
}

/// A table as it is read back, not yet believed.
#[derive(Deserialize)]
struct Stored {
    sub_table: u32,
    secret: [u64; 2],
    cells: Vec<Cell>,
}

impl TryFrom<Stored> for Table {
    type Error = &'static str;

    fn try_from(stored: Stored) -> Result<Self, Self::Error> {
        let Stored { sub_table, secret, cells } = stored;
        if sub_table == 0 || cells.len() != sub_table as usize * SUB_TABLES {
            return Err("the number of cells does not fit the size of a locator");
        }
        Ok(Self { sub_table, secret, cells })
    }
}

impl Table {
    /// Room for so many differences, of two symbols each.
    pub(super) fn new(max_differences: u32, key: &DigestKey) -> Self {
        Self::with_sub_table(sub_table_for(max_differences), key)
    }

    fn with_sub_table(sub_table: u32, key: &DigestKey) -> Self {
        let secret = key.hash(b"tidemark locator");
        let cells = vec![Cell::default(); sub_table as usize * SUB_TABLES];
        Self { sub_table, secret: [secret as u64, (secret >> 64) as u64], cells }
    }

    pub(super) fn bytes_for(max_differences: u32) -> u64 {
        u64::from(sub_table_for(max_differences)) * (SUB_TABLES * size_of::<Cell>()) as u64
    }

    pub(super) fn bytes(&self) -> u64 {
        (self.cells.len() * size_of::<Cell>()) as u64
    }

    pub(super) fn is_like(&self, other: &Self) -> bool {
        self.sub_table == other.sub_table && self.secret == other.secret
    }

    #[inline]
    pub(super) fn add(&mut self, code: KeyCode, hash: u64) {
        let symbol = self.symbol(code, hash);
        for position in self.positions(hash) {
            self.cells[position].add(&symbol);
        }
    }

    /// Adds later: see [`Pending`].
    #[inline]
    pub(super) fn add_through(&mut self, pending: &mut Pending, code: KeyCode, hash: u64) {
        let mut symbol = self.symbol(code, hash);
        for position in self.positions(hash) {
            symbol.0[0] = position as u64;
            pending.push(symbol, &mut self.cells);
        }
    }

    pub(super) fn flush(&mut self, pending: &mut Pending) {
        for part in 0..pending.lens.len() {
            pending.flush(part, &mut self.cells);
        }
    }

    /// What rows wait in, if the table is too large for a core's own cache.
    pub(super) fn pending(&self) -> Option<Pending> {
        (self.bytes() > DIRECT_BYTES).then(|| {
            let mut shift = PART_SHIFT;
            while self.cells.len() >> shift >= PARTS_MAX {
                shift += 1;
            }
            let parts = (self.cells.len() >> shift) + 1;
            Pending {
                shift,
                lens: vec![0; parts],
                symbols: vec![Cell::default(); parts * PART_SYMBOLS],
            }
        })
    }

    pub(super) fn merge(&mut self, other: &Self) {
        for (cell, other) in self.cells.iter_mut().zip(&other.cells) {
            cell.add(other);
        }
    }

    pub(super) fn subtract(&mut self, other: &Self) {
        for (cell, other) in self.cells.iter_mut().zip(&other.cells) {
            cell.subtract(other);
        }
    }

    /// Takes out what can be told apart, and says whether nothing is left.
    pub(super) fn peel(&mut self) -> (Vec<Found>, bool) {
        let mut found: Vec<Found> = Vec::new();
        let mut queue: Vec<usize> =
            (0..self.cells.len()).filter(|at| self.cells[*at].0[0] != 0).collect();
        // A true symbol empties a cell for good. A made-up one could go round for ever.
        let mut steps_left = 2 * self.cells.len();
        while let Some(at) = queue.pop() {
            let Some((code, hash, count)) = self.only_symbol(at) else { continue };
            if steps_left == 0 {
                break;
            }
            steps_left -= 1;
            let copies = self.symbol(code, hash).times(count);
            for position in self.positions(hash) {
                self.cells[position].subtract(&copies);
                queue.push(position);
            }
            found.push((code, hash, count));
        }
        let is_peeled = self.cells.iter().all(|cell| *cell == Cell::default());
        (net(found), is_peeled)
    }

    /// The symbol of a cell that holds copies of one symbol and nothing else.
    fn only_symbol(&self, at: usize) -> Option<Found> {
        let lanes = self.cells[at].0.map(u64::cast_signed);
        let count = lanes[0];
        if count == 0 || count.unsigned_abs() >= COUNT_MAX {
            return None;
        }
        let mut limbs = [0_u32; LANES];
        for (limb, lane) in limbs.iter_mut().zip(&lanes) {
            if lane % count != 0 {
                return None;
            }
            *limb = u32::try_from(lane / count).ok()?;
        }
        let [_, k0, k1, k2, k3, h0, h1, check] = limbs;
        let wide = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
        let code = KeyCode(u128::from(wide(k0, k1)) | u128::from(wide(k2, k3)) << 64);
        let hash = wide(h0, h1);
        let is_here = self.positions(hash).contains(&at);
        (is_here && check == self.check(code, hash)).then_some((code, hash, count))
    }

    #[inline]
    fn symbol(&self, KeyCode(code): KeyCode, hash: u64) -> Cell {
        let limb = |shift: u32| u64::from((code >> shift) as u32);
        let check = u64::from(self.check(KeyCode(code), hash));
        let (low, high) = (u64::from(hash as u32), hash >> 32);
        Cell([1, limb(0), limb(32), limb(64), limb(96), low, high, check])
    }

    /// Binds key and row hash together; not linear, so that a sum of symbols does not look like one.
    #[inline]
    fn check(&self, KeyCode(code): KeyCode, hash: u64) -> u32 {
        let [one, two] = self.secret;
        let high = ((code >> 64) as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(32);
        let product = u128::from(hash ^ one) * u128::from((code as u64 ^ two).wrapping_add(high));
        (((product >> 64) as u64 ^ product as u64) >> 32) as u32
    }

    /// The row hash is keyed and uniform already, so its bits are the positions.
    #[inline]
    fn positions(&self, hash: u64) -> [usize; SUB_TABLES] {
        let size = u64::from(self.sub_table);
        let within = |bits: u64| ((bits * size) >> 32) as usize;
        let start = self.sub_table as usize;
        let mixed = hash.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        [within(hash & 0xffff_ffff), start + within(hash >> 32), 2 * start + within(mixed)]
    }
}

/// Symbols that wait, by the part of the table that they belong to. Added one by one, every symbol would miss the caches
/// and the TLB three times in a table of 20 MB; a part's symbols together overlap their misses, in few pages.
#[derive(Debug)]
pub(super) struct Pending {
    shift: u32,
    lens: Vec<u32>,
    /// In lane 0 their position.
    symbols: Vec<Cell>,
}

impl Pending {
    #[inline]
    fn push(&mut self, symbol: Cell, cells: &mut [Cell]) {
        let part = (symbol.0[0] >> self.shift) as usize;
        let len = self.lens[part] as usize;
        self.symbols[part * PART_SYMBOLS + len] = symbol;
        self.lens[part] = len as u32 + 1;
        if len + 1 == PART_SYMBOLS {
            self.flush(part, cells);
        }
    }

    fn flush(&mut self, part: usize, cells: &mut [Cell]) {
        let start = part * PART_SYMBOLS;
        let len = std::mem::take(&mut self.lens[part]) as usize;
        for symbol in &self.symbols[start..start + len] {
            let mut symbol = *symbol;
            let position = std::mem::replace(&mut symbol.0[0], 1);
            cells[position as usize].add(&symbol);
        }
    }
}

/// As many cells as symbols and half as many again, in three sub-tables: one cell per difference in each.
fn sub_table_for(max_differences: u32) -> u32 {
    max_differences.max(SUB_TABLE_MIN as u32)
}

/// A symbol that was taken out wrongly and put back comes to nothing.
fn net(mut found: Vec<Found>) -> Vec<Found> {
    found.sort_unstable();
    found.dedup_by(|next, kept| {
        let is_same = (next.0, next.1) == (kept.0, kept.1);
        if is_same {
            kept.2 += next.2;
        }
        is_same
    });
    found.retain(|(_, _, count)| *count != 0);
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    /// SplitMix64: a stream of hashes that a seed names.
    struct Hashes(u64);

    impl Hashes {
        fn next(&mut self) -> u64 {
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
            mixed ^ mixed >> 31
        }
    }

    fn key() -> DigestKey {
        DigestKey::new([5; 32])
    }

    fn table(sub_table: u32) -> Table {
        Table::with_sub_table(sub_table, &key())
    }

    /// How many of so many full tables are not peeled.
    fn overflows(sub_table: u32, tables: u32, seed: u64) -> u32 {
        let mut hashes = Hashes(seed);
        let mut count = 0;
        for _ in 0..tables {
            let mut table = table(sub_table);
            for id in 0..sub_table {
                table.add(KeyCode(id.into()), hashes.next());
                table.add(KeyCode(id.into()), hashes.next());
            }
            let (found, is_peeled) = table.peel();
            assert!(!is_peeled || found.len() == 2 * sub_table as usize, "seed {seed}");
            count += u32::from(!is_peeled);
        }
        count
    }

    #[test]
    fn at_full_size_two_in_d_tables_overflow() {
        // Predicted: two of the 2 d symbols share three cells: (2 d)^2 / 2 / d^3 = 2 / d.
        let (tables, seed) = (4000, 11);
        let seen = overflows(256, tables, seed);
        let predicted = 2 * tables / 256;
        assert!((predicted / 2..=predicted * 2).contains(&seen), "{seen} for {predicted}, {seed}");
        assert!(overflows(4096, 60, seed) <= 1);
    }

    #[test]
    fn a_thousand_differences_among_six_million_rows_are_all_found() {
        let (mut source, mut target) = (Table::new(1000, &key()), Table::new(1000, &key()));
        let mut hashes = Hashes(3);
        let mut wanted = Vec::new();
        for id in 0..6_000_000_u32 {
            let code = KeyCode(id.into());
            let (ours, theirs) = (hashes.next(), id % 6000 == 17);
            source.add(code, ours);
            if theirs {
                let other = hashes.next();
                target.add(code, other);
                wanted.extend([(code, ours, 1), (code, other, -1)]);
            } else {
                target.add(code, ours);
            }
        }
        source.subtract(&target);
        let (found, is_peeled) = source.peel();
        assert!(is_peeled);
        wanted.sort_unstable();
        assert_eq!(wanted.len(), 2000);
        assert!(found == wanted);
    }

    #[test]
    fn counts_up_to_2_to_the_31_come_back_and_more_is_said() {
        let code = KeyCode(u128::MAX);
        for (count, is_found) in [
            (1, true),
            (-1, true),
            (1 << 20, true),
            (-(1 << 20), true),
            ((1 << 31) - 1, true),
            (1 - (1 << 31), true),
            (1 << 31, false),
            (-(1 << 32), false),
            (i64::MIN, false),
        ] {
            let mut table = table(64);
            let copies = table.symbol(code, u64::MAX).times(count);
            for position in table.positions(u64::MAX) {
                table.cells[position].add(&copies);
            }
            let (found, is_peeled) = table.peel();
            assert_eq!(is_peeled, is_found, "{count}");
            assert_eq!(found, if is_found { vec![(code, u64::MAX, count)] } else { Vec::new() });
        }
    }

    #[test]
    fn a_cell_of_two_symbols_is_not_taken_for_one() {
        let mut hashes = Hashes(17);
        let mut peeled = 0;
        for id in 0..20_000_u32 {
            // One cell per sub-table: whatever is in it, the positions fit.
            let mut table = table(1);
            let mut symbols = [0, 1, 2].map(|more| (KeyCode((id + more).into()), hashes.next()));
            symbols[2].0 = symbols[0].0;
            for (code, hash) in symbols {
                table.add(code, hash);
            }
            let mut other = Table::with_sub_table(1, &key());
            other.add(KeyCode(7), hashes.next());
            other.add(KeyCode(8), hashes.next());
            table.subtract(&other);
            peeled += table.peel().0.len();
        }
        assert_eq!(peeled, 0);
    }
}
