//! Which leaves of the followed tables the stream touches, so that a later verification reads only those again.
//!
//! **Invariant:** a leaf is marked in the ledger, on disk, before a change of it goes to the target. A mark says after which
//! position: the last at which the stream stood for a verification, or where the session began. What stood there was read
//! with everything before it and nothing behind it; so a leaf whose last mark is of an earlier position is as it was then.
//!
//! Where somebody else may have brought changes to the target since the ledger was written last (another state directory,
//! one that was put back from a backup), the target's epoch has moved on without it, and all that is known is forgotten.
//!
//! Only the first touch of a leaf after a position costs a write; of a table of which all leaves are marked nothing is looked
//! at any more.

use std::sync::Arc;

use rustc_hash::FxHashMap;
use tidemark_digest::{LeafBounds, LeafCut};
use tidemark_ledger::Ledger;
use tidemark_model::{
    Cell, Change, Column, Lsn, Oid, Operation, StreamBatch, StreamRelation, TablePlan, TupleData,
    TupleForm,
};

use crate::Result;
use crate::snapshot::blocking;

/// What a session has to know so that it can go on marking.
pub(crate) struct Track<'a> {
    pub(crate) ledger: &'a Arc<Ledger>,
    /// The target's epoch before the session, where this process knows that nobody but the ledger's own sessions came before.
    pub(crate) epoch: Option<i64>,
}

impl Track<'_> {
    /// The marks of the session that the target counts by `epoch`; none where the target counts none.
    ///
    /// # Errors
    /// The ledger cannot be read or written.
    pub(crate) async fn marks(
        self,
        epoch: Option<i64>,
        plans: &Arc<Vec<TablePlan>>,
        position: Lsn,
    ) -> Result<Option<Marks>> {
        let Some(epoch) = epoch else { return Ok(None) };
        let is_next = self.epoch.is_some_and(|before| before + 1 == epoch);
        let ledger = Arc::clone(self.ledger);
        let known = blocking(move || -> Result<bool, tidemark_ledger::Error> {
            if ledger.run()?.is_none() {
                return Ok(false);
            }
            if !is_next {
                ledger.forget_leaves()?;
            }
            ledger.set_epoch(epoch).map(|()| true)
        });
        match known.await?? {
            true => Marks::begin(self.ledger, plans, position).await.map(Some),
            // A ledger that was lost: there is nothing to mark in.
            false => Ok(None),
        }
    }
}

/// The marks of one session.
pub(crate) struct Marks {
    ledger: Arc<Ledger>,
    plans: Arc<Vec<TablePlan>>,
    tables: FxHashMap<Oid, Table>,
    after: Lsn,
    /// The ledger as the tables' cuts were read from it.
    version: i64,
    /// Marks that are not in the ledger yet.
    new: Vec<(Oid, u32)>,
}

struct Table {
    leaves: LeafBounds,
    /// The column that is cut; none where there is one leaf.
    column: Option<String>,
    marked: Vec<bool>,
    unmarked: usize,
    /// The leaf that was touched last.
    near: usize,
    place: Option<Place>,
}

/// Where the stream has the column.
struct Place {
    of: Arc<StreamRelation>,
    index: Option<usize>,
    is_identity: bool,
}

impl Marks {
    /// Begins to mark; everything that comes is behind `position`.
    ///
    /// # Errors
    /// The ledger cannot be read or written.
    pub(crate) async fn begin(
        ledger: &Arc<Ledger>,
        plans: &Arc<Vec<TablePlan>>,
        position: Lsn,
    ) -> Result<Self> {
        let mut marks = Self {
            ledger: Arc::clone(ledger),
            plans: Arc::clone(plans),
            tables: FxHashMap::default(),
            after: position,
            version: 0,
            new: Vec::new(),
        };
        let reader = Arc::clone(ledger);
        let stood = blocking(move || reader.stood()).await??;
        // A verification may still be reading what stood there.
        marks.after = position.max(stood.unwrap_or(Lsn::ZERO));
        let others = marks.cut().await?;
        marks.new.extend(others);
        marks.keep().await?;
        Ok(marks)
    }

    /// Marks what a batch is about to touch.
    ///
    /// # Errors
    /// The ledger cannot be written: then nothing of the batch may go to the target.
    pub(crate) async fn touch(&mut self, batch: &StreamBatch) -> Result<()> {
        let changes = batch.transactions.iter().flat_map(|transaction| &transaction.changes);
        changes.for_each(|change| self.change(change));
        self.keep().await
    }

    /// Marks all leaves of a table whose definition changes.
    ///
    /// # Errors
    /// As [`Marks::touch`].
    pub(crate) async fn touch_all(&mut self, oid: Oid) -> Result<()> {
        self.all(oid);
        self.keep().await
    }

    /// The stream stands there for a verification: what comes is behind it.
    ///
    /// # Errors
    /// The ledger cannot be read or written.
    pub(crate) async fn stand(&mut self, at: Lsn) -> Result<()> {
        self.after = self.after.max(at);
        let (ledger, after) = (Arc::clone(&self.ledger), self.after);
        let version = blocking(move || {
            ledger.set_stood(after)?;
            ledger.data_version()
        });
        if version.await?? == self.version {
            self.tables.values_mut().for_each(Table::forget);
            return Ok(());
        }
        self.cut().await.map(drop)
    }

    /// Reads how the tables are cut, and gives all leaves of those that are not followed: nothing is known of their changes.
    async fn cut(&mut self) -> Result<Vec<(Oid, u32)>> {
        let ledger = Arc::clone(&self.ledger);
        let read = blocking(move || {
            Ok::<_, tidemark_ledger::Error>((ledger.data_version()?, ledger.cuts()?))
        });
        let (version, cuts) = read.await??;
        self.version = version;
        self.tables.clear();
        let mut others = Vec::new();
        for (oid, cut) in cuts {
            let cut: Option<LeafCut> = serde_json::from_str(&cut).unwrap_or(None);
            match self.plans.iter().find(|plan| plan.relation.oid == oid) {
                Some(plan) => {
                    self.tables.insert(oid, Table::new(cut, &plan.relation.columns));
                }
                None => {
                    let leaves = cut.map_or(1, |cut| cut.bounds.len() + 1);
                    others.extend((0..leaves as u32).map(|leaf| (oid, leaf)));
                }
            }
        }
        Ok(others)
    }

    async fn keep(&mut self) -> Result<()> {
        if self.new.is_empty() {
            return Ok(());
        }
        let (new, after) = (std::mem::take(&mut self.new), self.after);
        let ledger = Arc::clone(&self.ledger);
        Ok(blocking(move || ledger.mark_touched(&new, after)).await??)
    }

    fn change(&mut self, change: &Change) {
        let relation = &change.relation;
        match &change.operation {
            Operation::Truncate { with, .. } => {
                with.iter().for_each(|relation| self.all(relation.oid));
                self.all(relation.oid);
            }
            Operation::Insert { new } => self.row(relation, new, false),
            // Without its old row it has the identity that it had.
            Operation::Update { old: None, new } => self.row(relation, new, true),
            Operation::Update { old: Some(old), new } => {
                self.row(relation, old.tuple(), true);
                self.row(relation, new, true);
            }
            Operation::Delete { old } => self.row(relation, old.tuple(), true),
        }
    }

    /// `by_identity`: there was a row before, of which no more than its identity is known.
    fn row(&mut self, relation: &Arc<StreamRelation>, row: &TupleData, by_identity: bool) {
        let Some(table) = self.tables.get_mut(&relation.oid) else { return };
        if table.unmarked == 0 {
            return;
        }
        match table.leaf_of(relation, row, by_identity) {
            Some(leaf) if table.mark(leaf) => self.new.push((relation.oid, leaf as u32)),
            Some(_) => {}
            None => self.all(relation.oid),
        }
    }

    fn all(&mut self, oid: Oid) {
        let Some(table) = self.tables.get_mut(&oid) else { return };
        let leaves = (0..table.marked.len()).filter(|leaf| table.mark(*leaf));
        self.new.extend(leaves.map(|leaf| (oid, leaf as u32)));
    }
}

impl Table {
    fn new(cut: Option<LeafCut>, columns: &[Column]) -> Self {
        let leaves = cut.as_ref().map_or_else(LeafBounds::single, |cut| cut.among(columns));
        let count = leaves.leaf_count();
        let column = cut.filter(|_| count > 1).map(|cut| cut.column);
        Self { leaves, column, marked: vec![false; count], unmarked: count, near: 0, place: None }
    }

    fn forget(&mut self) {
        self.marked.fill(false);
        self.unmarked = self.marked.len();
    }

    /// Whether it is the first touch.
    fn mark(&mut self, leaf: usize) -> bool {
        let is_first = !std::mem::replace(&mut self.marked[leaf], true);
        self.unmarked -= usize::from(is_first);
        is_first
    }

    /// The leaf of a row; none where what is there of it does not tell.
    fn leaf_of(
        &mut self,
        relation: &Arc<StreamRelation>,
        row: &TupleData,
        by_identity: bool,
    ) -> Option<usize> {
        let Some(column) = &self.column else { return Some(0) };
        let known = self.place.take().filter(|place| Arc::ptr_eq(&place.of, relation));
        let place = self.place.insert(known.unwrap_or_else(|| Place::of(relation, column)));
        if by_identity && !place.is_identity {
            return None;
        }
        let leaf = match row.cells().nth(place.index?)? {
            Cell::Binary(key) => self.leaves.leaf_of(TupleForm::PgBinary, key, self.near),
            Cell::Text(key) => self.leaves.leaf_of(TupleForm::PgText, key, self.near),
            Cell::Null | Cell::Unchanged => None,
        };
        self.near = leaf.unwrap_or(self.near);
        leaf
    }
}

impl Place {
    fn of(relation: &Arc<StreamRelation>, column: &str) -> Self {
        let index = relation.columns.iter().position(|described| described.name == column);
        let is_identity = index.is_some_and(|index| relation.columns[index].is_identity);
        Self { of: Arc::clone(relation), index, is_identity }
    }
}
