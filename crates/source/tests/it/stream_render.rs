//! Messages as lines of text: ours, and those of another decoder, in the same words.

use std::fmt::Write as _;

use bytes::Bytes;
use pg_walstream::{ColumnData, LogicalReplicationMessage as Theirs};
use tidemark_model::{Cell, Change, OldRow, Operation, StreamRelation, TupleData};
use tidemark_source::{Decoded, Message, Relations};

use crate::stream_support::Parser;

/// All messages, one line each, rows decoded in the order of arrival.
pub(crate) fn ours(payloads: &[Bytes]) -> Vec<String> {
    let (mut parser, mut relations) = (Parser::default(), Relations::new());
    payloads.iter().map(|payload| one(parser.parse(payload.clone()), &mut relations)).collect()
}

fn one(message: Message, relations: &mut Relations) -> String {
    match message {
        Message::Begin { final_lsn, committed_at, xid } => {
            format!("begin {xid} {final_lsn} {committed_at}")
        }
        Message::Commit { commit_lsn, end_lsn, committed_at } => {
            format!("commit {commit_lsn} {end_lsn} {committed_at}")
        }
        Message::Origin { lsn, name } => format!("origin {name} {lsn}"),
        Message::StreamStart { xid, first } => format!("stream start {xid} {first}"),
        Message::StreamStop => "stream stop".to_owned(),
        Message::StreamCommit { xid, commit_lsn, end_lsn, committed_at } => {
            format!("stream commit {xid} {commit_lsn} {end_lsn} {committed_at}")
        }
        Message::StreamAbort { xid, subxid } => format!("stream abort {xid} {subxid}"),
        Message::Logical { transactional, lsn, prefix, content, subxid } => {
            logical(subxid, transactional, lsn.as_u64(), &prefix, &content)
        }
        Message::Row { subxid, kind, body } => {
            let text = match relations.decode(kind, body).unwrap() {
                Decoded::Change(change) => change_line(&change),
                Decoded::Relation(relation) => relation_line(&relation),
                Decoded::Nothing => format!("{kind:?}: nothing new"),
            };
            with_xid(subxid, text)
        }
    }
}

fn with_xid(subxid: Option<u32>, text: String) -> String {
    subxid.map_or(text.clone(), |xid| format!("[{xid}] {text}"))
}

fn logical(
    subxid: Option<u32>,
    transactional: bool,
    lsn: u64,
    prefix: &str,
    content: &[u8],
) -> String {
    let content = String::from_utf8_lossy(content);
    with_xid(subxid, format!("message {transactional} {lsn} {prefix} {content}"))
}

fn relation_line(relation: &StreamRelation) -> String {
    let mut text = format!(
        "relation {} {}.{} {}",
        relation.oid, relation.name.schema, relation.name.name, relation.replica_identity
    );
    for column in &relation.columns {
        let key = if column.is_identity { "*" } else { "" };
        write!(text, ", {}{key} {} {}", column.name, column.type_oid, column.typmod).unwrap();
    }
    text
}

fn change_line(change: &Change) -> String {
    let oid = change.relation.oid;
    match &change.operation {
        Operation::Insert { new } => format!("insert {oid} {}", row(new)),
        Operation::Update { old, new } => {
            format!("update {oid} {} {}", old.as_ref().map_or("-".to_owned(), old_row), row(new))
        }
        Operation::Delete { old } => format!("delete {oid} {}", old_row(old)),
        Operation::Truncate { with, cascade, restart_identity } => {
            let mut oids = vec![oid];
            oids.extend(with.iter().map(|relation| relation.oid));
            let flags = u8::from(*cascade) | u8::from(*restart_identity) << 1;
            format!("truncate {oids:?} {flags}")
        }
    }
}

fn old_row(old: &OldRow) -> String {
    let kind = if matches!(old, OldRow::Key(_)) { 'K' } else { 'O' };
    format!("{kind}{}", row(old.tuple()))
}

fn row(tuple: &TupleData) -> String {
    let cells = tuple.cells().map(|cell| match cell {
        Cell::Null => "null".to_owned(),
        Cell::Unchanged => "unchanged".to_owned(),
        Cell::Text(text) => text_cell(text),
        Cell::Binary(bytes) => format!("b{}", hex(bytes)),
    });
    format!("({})", cells.collect::<Vec<_>>().join(", "))
}

fn text_cell(text: &[u8]) -> String {
    format!("t{:?}", String::from_utf8_lossy(text))
}

/// One message of the other decoder; `subxid` is what it found before a change.
pub(crate) fn theirs(message: &Theirs, subxid: Option<u32>) -> String {
    let lsn = tidemark_model::Lsn::new;
    match message {
        Theirs::Begin { final_lsn, timestamp, xid } => {
            format!("begin {xid} {} {timestamp}", lsn(*final_lsn))
        }
        Theirs::Commit { commit_lsn, end_lsn, timestamp, .. } => {
            format!("commit {} {} {timestamp}", lsn(*commit_lsn), lsn(*end_lsn))
        }
        Theirs::Origin { origin_lsn, origin_name } => {
            format!("origin {origin_name} {}", lsn(*origin_lsn))
        }
        Theirs::StreamStart { xid, first_segment } => format!("stream start {xid} {first_segment}"),
        Theirs::StreamStop => "stream stop".to_owned(),
        Theirs::StreamCommit { xid, commit_lsn, end_lsn, timestamp, .. } => {
            format!("stream commit {xid} {} {} {timestamp}", lsn(*commit_lsn), lsn(*end_lsn))
        }
        Theirs::StreamAbort { xid, subtransaction_xid, .. } => {
            format!("stream abort {xid} {subtransaction_xid}")
        }
        Theirs::Message { flags, lsn, prefix, content } => {
            logical(subxid, flags & 1 != 0, *lsn, prefix, content)
        }
        row => with_xid(subxid, their_row(row)),
    }
}

fn their_row(message: &Theirs) -> String {
    match message {
        Theirs::Relation { relation_id, namespace, relation_name, replica_identity, columns } => {
            let identity = char::from(*replica_identity);
            let mut text = format!("relation {relation_id} {namespace}.{relation_name} {identity}");
            for column in columns {
                let key = if column.is_key() { "*" } else { "" };
                let (name, oid, typmod) = (&column.name, column.type_id, column.type_modifier);
                write!(text, ", {name}{key} {oid} {typmod}").unwrap();
            }
            text
        }
        Theirs::Insert { relation_id, tuple } => {
            format!("insert {relation_id} {}", their_cells(&tuple.columns))
        }
        Theirs::Update { relation_id, old_tuple, new_tuple, key_type } => {
            let old = old_tuple.as_ref().map_or("-".to_owned(), |old| {
                format!("{}{}", key_type.unwrap(), their_cells(&old.columns))
            });
            format!("update {relation_id} {old} {}", their_cells(&new_tuple.columns))
        }
        Theirs::Delete { relation_id, old_tuple, key_type } => {
            format!("delete {relation_id} {key_type}{}", their_cells(&old_tuple.columns))
        }
        Theirs::Truncate { relation_ids, flags } => format!("truncate {relation_ids:?} {flags}"),
        Theirs::Type { .. } => "Type: nothing new".to_owned(),
        other => panic!("{other:?}"),
    }
}

fn their_cells(columns: &[ColumnData]) -> String {
    let cells = columns.iter().map(|column| match column.data_type {
        b'n' => "null".to_owned(),
        b'u' => "unchanged".to_owned(),
        b't' => text_cell(column.as_bytes()),
        b'b' => format!("b{}", hex(column.as_bytes())),
        other => panic!("a cell of kind {other}"),
    });
    format!("({})", cells.collect::<Vec<_>>().join(", "))
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}

pub(crate) fn unhex(text: &str) -> Bytes {
    let digits: Vec<u8> = text.bytes().map(|c| char::from(c).to_digit(16).unwrap() as u8).collect();
    digits.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect()
}
