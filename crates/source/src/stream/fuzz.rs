//! The one function that the fuzz target and its corpus test run; not for use.
//!
//! **Invariant:** whatever the bytes are: no panic, no allocation by a length that was not there, and what is accepted keeps
//! the promises of `decode.rs`.
//!
//! Input: messages, each behind a byte of flags (1: a frame with its header, 2: inside a streamed piece) and two bytes of length.

use bytes::{Buf, Bytes};
use tidemark_model::{Change, Operation};

use super::{Decoded, Frame, Message, Relations, RowKind, encode_relation};

/// Parses and decodes all messages of `input`; gives how many changes were found.
///
/// # Panics
/// When a promise is broken.
pub fn messages(input: &[u8]) -> usize {
    let mut rest = Bytes::copy_from_slice(input);
    let mut relations = Relations::new();
    let mut changes = 0;
    while rest.len() >= 3 {
        let (flags, length) = (rest.get_u8(), usize::from(rest.get_u16()));
        let message = rest.split_to(length.min(rest.len()));
        changes += usize::from(one(&mut relations, message, flags));
    }
    changes
}

/// One message; whether it was a change.
fn one(relations: &mut Relations, message: Bytes, flags: u8) -> bool {
    let payload = match flags & 1 {
        0 => message,
        _ => match Frame::parse(message) {
            Ok(Frame::XLogData { payload, .. }) => payload,
            Ok(Frame::Keepalive { .. }) | Err(_) => return false,
        },
    };
    let Ok(Message::Row { kind, body, .. }) = Message::parse(payload, flags & 2 != 0) else {
        return false;
    };
    match relations.decode(kind, body.clone()) {
        Ok(Decoded::Change(change)) => {
            check(&change);
            true
        }
        Ok(Decoded::Relation(relation)) => {
            let again = relations.decode(RowKind::Relation, encode_relation(&relation));
            assert_eq!(
                again,
                Ok(Decoded::Nothing),
                "a description is itself when it is written again"
            );
            false
        }
        Ok(Decoded::Nothing) | Err(_) => false,
    }
}

/// Every row has the cells that its relation describes, and all of them can be read.
fn check(change: &Change) {
    let columns = change.relation.columns.len();
    let rows = match &change.operation {
        Operation::Insert { new } => vec![new],
        Operation::Update { old, new } => {
            old.iter().map(tidemark_model::OldRow::tuple).chain([new]).collect()
        }
        Operation::Delete { old } => vec![old.tuple()],
        Operation::Truncate { .. } => vec![],
    };
    for row in rows {
        assert_eq!((row.len(), row.cells().count()), (columns, columns), "cells as described");
    }
}
