//! Reduces the changes of a batch to their net effect per key.
//!
//! **Invariant:** applied in the order deletes, key changes, updates, inserts, the net effect leaves each table as the
//! changes one after the other would have: a row that was there before the batch is touched by one statement at most, and a
//! row that came and went is not touched at all. Where that cannot be told from the bytes, the answer is
//! [`Reduced::Doubtful`], and the batch is applied in the order of the source.
//!
//! ```text
//! first seen as   then                    net effect
//! insert          update ..               insert of the last values, unchanged TOAST from the earlier ones
//! insert          .. delete               nothing
//! update          update ..               one update, column by column the newest value
//! update          key change, update ..   one key change: UPDATE of the key that the row had before the batch
//! update          .. delete               delete of the key that the row had before the batch
//! delete          insert of the same key  delete, then insert (columns that only the target has start afresh)
//! ```
//!
//! Tables without a key are multisets: a row image that came as often as it went is not touched. TRUNCATE is a barrier for
//! all tables; what the same batch did before to a truncated table is not applied at all.
//!
//! **Not here:** statements (`statement`), what is done with counts (`apply`).

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use rustc_hash::FxHashMap;
use tidemark_model::{Change, Oid, OldRow, Operation, StreamRelation, Transaction, TupleData};

use super::cells;
use super::layouts::Layouts;
use super::table::{Access, KeyPart, Layout, TargetTable};
use crate::{Disposition, Error, Result};

/// What a batch comes to.
#[derive(Debug)]
pub(super) enum Reduced {
    /// These, one after the other.
    Parts(Vec<Part>),
    /// The changes as they came.
    Doubtful,
}

/// A step of a reduced batch.
#[derive(Debug)]
pub(super) enum Part {
    /// Rows of one table.
    Rows(Arc<Layout>, Net),
    /// Tables that one statement empties.
    Truncate(Vec<Arc<TargetTable>>, bool),
}

/// The net effect on one table.
#[derive(Debug, Default)]
pub(super) struct Net {
    /// Keys of rows that go.
    pub(super) deletes: Vec<Box<[u8]>>,
    /// Key before the batch, and the row after it.
    pub(super) moves: Vec<(Box<[u8]>, TupleData)>,
    /// Rows that keep their key.
    pub(super) updates: Vec<TupleData>,
    /// New rows.
    pub(super) inserts: Vec<TupleData>,
    /// Row images of a table without a key, and how many of each go.
    pub(super) removed: Vec<(TupleData, i64)>,
    /// The rows hold the slots' cells only, in the slots' order.
    pub(super) is_projected: bool,
}

/// Reduces a batch.
///
/// # Errors
/// A change that no target could apply.
pub(super) fn reduce(transactions: &[Transaction], layouts: &Layouts) -> Result<Reduced> {
    let mut reduction =
        Reduction { layouts, parts: Vec::new(), open: Vec::new(), index: FxHashMap::default() };
    for transaction in transactions {
        for change in &transaction.changes {
            if !reduction.change(change)? {
                return Ok(Reduced::Doubtful);
            }
        }
    }
    Ok(match reduction.close() {
        true => Reduced::Parts(reduction.parts),
        false => Reduced::Doubtful,
    })
}

struct Reduction<'a> {
    layouts: &'a Layouts,
    parts: Vec<Part>,
    /// Tables that were touched since the last barrier, in the order of their first change.
    open: Vec<(Arc<Layout>, Rows)>,
    index: FxHashMap<Oid, usize>,
}

enum Rows {
    Keyed(Keyed),
    Images(Images),
    Inserts(Vec<TupleData>),
}

impl Reduction<'_> {
    /// Takes a change in; false where the net effect cannot be told.
    fn change(&mut self, change: &Change) -> Result<bool> {
        if let Operation::Truncate { with, restart_identity, .. } = &change.operation {
            return self.truncate(&change.relation, with, *restart_identity);
        }
        let layout = self.layouts.of(&change.relation)?;
        let place = match self.index.get(&change.relation.oid) {
            Some(&place) if Arc::ptr_eq(&self.open[place].0, layout) => place,
            found => {
                // Rows of another description are not mixed with these.
                if found.is_some() && !self.close() {
                    return Ok(false);
                }
                self.open.push((Arc::clone(layout), Rows::new(layout)));
                self.index.insert(change.relation.oid, self.open.len() - 1);
                self.open.len() - 1
            }
        };
        let (layout, rows) = &mut self.open[place];
        match rows {
            Rows::Keyed(rows) => rows.change(layout, &change.operation),
            Rows::Images(rows) => rows.change(layout, &change.operation),
            Rows::Inserts(rows) => match &change.operation {
                Operation::Insert { new } => {
                    rows.push(new.clone());
                    Ok(true)
                }
                _ => Err(no_identity(&layout.table)),
            },
        }
    }

    fn truncate(
        &mut self,
        relation: &Arc<StreamRelation>,
        with: &[Arc<StreamRelation>],
        restart_identity: bool,
    ) -> Result<bool> {
        let tables = self.layouts.truncated(relation, with)?;
        let is_kept = |layout: &Layout| !tables.iter().any(|table| table.name == layout.table.name);
        self.open.retain(|(layout, _)| is_kept(layout));
        let is_told = self.close();
        self.parts.push(Part::Truncate(tables, restart_identity));
        Ok(is_told)
    }

    /// Ends a stretch between barriers.
    fn close(&mut self) -> bool {
        self.index.clear();
        for (layout, rows) in self.open.drain(..) {
            let net = match rows {
                Rows::Keyed(rows) => rows.net(&layout),
                Rows::Images(rows) => Some(rows.net()),
                Rows::Inserts(inserts) => Some(Net { inserts, ..Net::default() }),
            };
            let Some(net) = net else { return false };
            self.parts.push(Part::Rows(layout, net));
        }
        true
    }
}

impl Rows {
    fn new(layout: &Layout) -> Self {
        match &layout.access {
            Access::Key(_) => Self::Keyed(Keyed::default()),
            Access::Image => Self::Images(Images::default()),
            Access::InsertOnly => Self::Inserts(Vec::new()),
        }
    }
}

pub(super) fn no_identity(table: &TargetTable) -> Error {
    Error::new(Disposition::Refused, "apply an update or a delete that says no key")
        .on(&table.name)
        .hint("give the source's table a primary key or REPLICA IDENTITY FULL, then take a new snapshot (tidemark cleanup, then sync)")
}

/// Where a row of a keyed table was before the batch.
#[derive(Debug)]
enum Origin {
    /// Nowhere.
    New,
    /// Under the key that its row has.
    Same,
    /// Under this key.
    Moved(Box<[u8]>),
}

#[derive(Debug)]
struct Entry {
    origin: Origin,
    /// None once it is gone.
    row: Option<TupleData>,
    /// Another live row under the same key, for the moment: a deferrable key allows that inside a transaction.
    next: Option<usize>,
}

/// Rows by key.
#[derive(Default)]
struct Keyed {
    /// As long as rows only come, their keys are not looked at: the target's index says whether two are the same.
    inserts: Vec<TupleData>,
    entries: Vec<Entry>,
    live: HashMap<Box<[u8]>, usize>,
    deletes: Vec<Box<[u8]>>,
    key: Vec<u8>,
    old_key: Vec<u8>,
}

fn parts_of(layout: &Layout) -> &[KeyPart] {
    match &layout.access {
        Access::Key(parts) => parts,
        Access::Image | Access::InsertOnly => &[],
    }
}

/// The row with its key's unchanged TOAST from the old row, which holds the key then.
pub(super) fn with_key(layout: &Layout, old: Option<&OldRow>, new: &TupleData) -> TupleData {
    let is_missing =
        |part: &KeyPart| new.cells().nth(part.cell) == Some(tidemark_model::Cell::Unchanged);
    let parts = parts_of(layout);
    match old {
        Some(old) if parts.iter().any(is_missing) => {
            let cells: Vec<_> = new
                .cells()
                .zip(old.tuple().cells())
                .enumerate()
                .map(|(index, (new, old))| {
                    let is_key = parts.iter().any(|part| part.cell == index);
                    let is_sent = new != tidemark_model::Cell::Unchanged;
                    if is_key && !is_sent { old } else { new }
                })
                .collect();
            TupleData::of(cells.into_iter())
        }
        _ => new.clone(),
    }
}

impl Keyed {
    fn change(&mut self, layout: &Layout, operation: &Operation) -> Result<bool> {
        let parts = parts_of(layout);
        let key_cells = || parts.iter().map(|part| part.cell);
        match operation {
            Operation::Insert { new } if self.has_only_inserts(layout) => {
                self.inserts.push(new.clone());
            }
            Operation::Insert { new } => self.insert(parts, new.clone()),
            Operation::Update { old, new } => {
                self.look_at_inserts(parts);
                let new = with_key(layout, old.as_ref(), new);
                cells::key_bytes(&new, key_cells(), &mut self.key);
                match old {
                    Some(old) => cells::key_bytes(old.tuple(), key_cells(), &mut self.old_key),
                    None => self.old_key.clone_from(&self.key),
                }
                self.update(old.as_ref(), new);
            }
            Operation::Delete { old } => {
                self.look_at_inserts(parts);
                cells::key_bytes(old.tuple(), key_cells(), &mut self.old_key);
                self.delete(old);
            }
            Operation::Truncate { .. } => return Ok(false),
        }
        Ok(true)
    }

    /// Whether nothing but rows that came is known. A key that is not enforced at once cannot tell two of them apart.
    fn has_only_inserts(&self, layout: &Layout) -> bool {
        self.entries.is_empty() && self.deletes.is_empty() && !layout.is_deferrable
    }

    fn insert(&mut self, parts: &[KeyPart], new: TupleData) {
        cells::key_bytes(&new, parts.iter().map(|part| part.cell), &mut self.key);
        self.entries.push(Entry { origin: Origin::New, row: Some(new), next: None });
        self.link(self.entries.len() - 1);
    }

    fn look_at_inserts(&mut self, parts: &[KeyPart]) {
        for new in std::mem::take(&mut self.inserts) {
            self.insert(parts, new);
        }
    }

    fn update(&mut self, old: Option<&OldRow>, new: TupleData) {
        let moves = self.old_key != self.key;
        let Some(index) = self.find(old) else {
            let origin = match moves {
                true => Origin::Moved(self.old_key.as_slice().into()),
                false => Origin::Same,
            };
            self.entries.push(Entry { origin, row: Some(new), next: None });
            return self.link(self.entries.len() - 1);
        };
        let entry = &mut self.entries[index];
        entry.row = Some(match entry.row.take() {
            Some(older) => cells::overlay(&older, new),
            None => new,
        });
        if moves {
            if matches!(entry.origin, Origin::Same) {
                entry.origin = Origin::Moved(self.old_key.as_slice().into());
            }
            self.unlink(index);
            self.link(index);
        }
    }

    fn delete(&mut self, old: &OldRow) {
        let origin = match self.find(Some(old)) {
            None => Origin::Same,
            Some(index) => {
                self.unlink(index);
                self.entries[index].row = None;
                std::mem::replace(&mut self.entries[index].origin, Origin::New)
            }
        };
        match origin {
            Origin::New => {}
            Origin::Same => self.deletes.push(self.old_key.as_slice().into()),
            Origin::Moved(key) => self.deletes.push(key),
        }
    }

    /// The row that a change of the key `old_key` means, if an earlier change of this batch left it there.
    ///
    /// Where rows trade keys inside one statement (which takes a deferrable key, and so REPLICA IDENTITY FULL), one that has
    /// just come to a key is not the one that was there before: then the old row says which is meant.
    fn find(&self, old: Option<&OldRow>) -> Option<usize> {
        let mut place = self.live.get(self.old_key.as_slice()).copied();
        let Some(OldRow::Full(image)) = old else { return place };
        while let Some(index) = place {
            let entry = &self.entries[index];
            if matches!(entry.origin, Origin::Same) && entry.next.is_none()
                || entry.row.as_ref().is_some_and(|row| cells::agree(row, image))
            {
                return Some(index);
            }
            place = entry.next;
        }
        None
    }

    /// Puts a row under the key `key`.
    fn link(&mut self, index: usize) {
        // Most keys are new here or there already; an owned copy is made for the former only.
        match self.live.get_mut(self.key.as_slice()) {
            Some(first) => {
                self.entries[index].next = Some(*first);
                *first = index;
            }
            None => {
                self.entries[index].next = None;
                self.live.insert(self.key.as_slice().into(), index);
            }
        }
    }

    /// Takes a row away from the key `old_key`.
    fn unlink(&mut self, index: usize) {
        let next = self.entries[index].next.take();
        let Some(first) = self.live.get_mut(self.old_key.as_slice()) else { return };
        if *first != index {
            let mut place = *first;
            while let Some(following) = self.entries[place].next {
                if following == index {
                    self.entries[place].next = next;
                    return;
                }
                place = following;
            }
            return;
        }
        match next {
            Some(next) => *first = next,
            None => {
                self.live.remove(self.old_key.as_slice());
            }
        }
    }

    /// The net effect; none where two rows are left under one key.
    fn net(mut self, layout: &Layout) -> Option<Net> {
        let (deletes, inserts) =
            (std::mem::take(&mut self.deletes), std::mem::take(&mut self.inserts));
        let mut net = Net { deletes, inserts, ..Net::default() };
        for entry in self.entries {
            let Some(row) = entry.row else { continue };
            if entry.next.is_some() {
                return None;
            }
            match entry.origin {
                Origin::New => net.inserts.push(row),
                Origin::Same => net.updates.push(row),
                Origin::Moved(origin) => {
                    let cells = parts_of(layout).iter().map(|part| part.cell);
                    cells::key_bytes(&row, cells, &mut self.key);
                    match self.key == *origin {
                        true => net.updates.push(row),
                        false => net.moves.push((origin, row)),
                    }
                }
            }
        }
        Some(net)
    }
}

/// How often each row image came, less how often it went.
#[derive(Default)]
struct Images {
    counts: Vec<(Bytes, i64)>,
    index: HashMap<Bytes, usize>,
    /// As long as rows only come, they are not compared.
    inserts: Vec<TupleData>,
    scratch: Vec<u8>,
}

impl Images {
    fn change(&mut self, layout: &Layout, operation: &Operation) -> Result<bool> {
        let cells = || layout.slots.iter().map(|slot| slot.cell);
        match operation {
            Operation::Insert { new } if self.counts.is_empty() => {
                cells::key_bytes(new, cells(), &mut self.scratch);
                self.inserts.push(cells::key_tuple(&self.scratch));
                return Ok(true);
            }
            Operation::Insert { new } => {
                cells::key_bytes(new, cells(), &mut self.scratch);
                self.count(1);
                return Ok(true);
            }
            Operation::Update { .. } | Operation::Delete { .. } => {}
            Operation::Truncate { .. } => return Ok(false),
        }
        let (old, new) = match operation {
            Operation::Update { old, new } => (old.as_ref(), Some(new)),
            Operation::Delete { old } => (Some(old), None),
            Operation::Insert { .. } | Operation::Truncate { .. } => (None, None),
        };
        let Some(OldRow::Full(old)) = old else { return Err(no_identity(&layout.table)) };
        self.count_inserts();
        cells::key_bytes(old, cells(), &mut self.scratch);
        self.count(-1);
        if let Some(new) = new {
            cells::key_bytes(&cells::overlay(old, new.clone()), cells(), &mut self.scratch);
            self.count(1);
        }
        Ok(true)
    }

    fn count_inserts(&mut self) {
        for row in std::mem::take(&mut self.inserts) {
            cells::key_bytes(&row, 0..row.len(), &mut self.scratch);
            self.count(1);
        }
    }

    fn count(&mut self, times: i64) {
        if let Some(&place) = self.index.get(self.scratch.as_slice()) {
            self.counts[place].1 += times;
            return;
        }
        let image = Bytes::copy_from_slice(&self.scratch);
        self.index.insert(image.clone(), self.counts.len());
        self.counts.push((image, times));
    }

    fn net(self) -> Net {
        let mut net = Net { inserts: self.inserts, is_projected: true, ..Net::default() };
        for (image, count) in self.counts {
            let row = cells::key_tuple(&image);
            if count < 0 {
                net.removed.push((row, -count));
                continue;
            }
            (0..count).for_each(|_| net.inserts.push(row.clone()));
        }
        net
    }
}
