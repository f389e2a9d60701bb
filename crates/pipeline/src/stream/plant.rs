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
    use bytes::{BufMut as _, BytesMut};

    let mut out = BytesMut::new();
    out.put_u16(row.len() as u16);
    for cell in row.cells() {
        let (kind, value) = match cell {
            Cell::Null | Cell::Unchanged => {
                out.put_u8(b'n');
                continue;
            }
            Cell::Text(value) => (b't', value),
            Cell::Binary(value) => (b'b', value),
        };
        out.put_u8(kind);
        out.put_u32(value.len() as u32);
        out.put_slice(value);
    }
    TupleData::split_from(&mut out.freeze()).expect("it was made here")
}
