//! Deliberate defects, for the campaign that must find them (`scripts/torture --planted`).
//!
//! **Invariant:** without the feature `planted-bugs` nothing here is ever true, and the compiler removes what it guards; no
//! build that a user gets has the feature.

#[cfg(feature = "planted-bugs")]
use tidemark_model::{Cell, Change, Operation, TupleData};

pub(super) use tidemark_sink::plant::is_planted;

/// Spoils a change as the planted defect does.
#[cfg(feature = "planted-bugs")]
pub(super) fn spoil(mut change: Change) -> Option<Change> {
    match &mut change.operation {
        Operation::Truncate { .. } if is_planted("drop-truncate") => return None,
        Operation::Update { old, .. } if is_planted("ignore-key-change") => *old = None,
        Operation::Update { new, .. } if is_planted("drop-unchanged") => *new = nulled(new),
        _ => {}
    }
    Some(change)
}

/// The row with NULL where it was unchanged.
#[cfg(feature = "planted-bugs")]
fn nulled(row: &TupleData) -> TupleData {
    let sent = |cell| if cell == Cell::Unchanged { Cell::Null } else { cell };
    let cells: Vec<Cell<'_>> = row.cells().map(sent).collect();
    TupleData::of(cells.into_iter())
}
