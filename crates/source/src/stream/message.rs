//! Tells the messages of the stream apart by their headers: what the assembly of transactions needs of each.
//!
//! **Invariant:** the cells of a row are not looked at here, so that this is cheap enough to run for every message of a
//! backlog, also for transactions that are thrown away in the end; bodies are shares of the bytes that arrived.
//!
//! ```text
//! CopyData -> Frame: XLogData (position, payload) | Keepalive
//!             payload -> Message: Begin, Commit, StreamStart .. | Row { kind, body }
//!                                 body -> Relations::decode (decode.rs), at commit
//! ```
//!
//! PostgreSQL manual, sections 55.4 (`START_REPLICATION`), 55.5 and 55.9 (message formats).

use bytes::{Buf, Bytes};
use tidemark_model::Lsn;

use super::fields::{Fields, Malformed};

/// One message of the replication protocol.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// A message of the output plugin.
    XLogData {
        /// Where its WAL record begins; 0 for some messages, and shared by many: not a position to store.
        wal_start: Lsn,
        /// For logical replication the same.
        wal_end: Lsn,
        /// The plugin's message, see [`Message::parse`].
        payload: Bytes,
    },
    /// The server says how far it is.
    Keepalive {
        /// Everything before it was sent.
        wal_end: Lsn,
        /// The server wants a status update at once, or it will close the connection.
        reply: bool,
    },
}

impl Frame {
    /// Reads the payload of one CopyData.
    ///
    /// # Errors
    /// It is shorter than its header, or of an unknown kind.
    pub fn parse(message: Bytes) -> Result<Self, Malformed> {
        let mut fields = Fields::new(message, "frame");
        match fields.u8()? {
            b'w' => {
                let (wal_start, wal_end, _sent_at) = (fields.lsn()?, fields.lsn()?, fields.i64()?);
                let payload = std::mem::take(fields.rest());
                Ok(Self::XLogData { wal_start, wal_end, payload })
            }
            b'k' => {
                let (wal_end, _sent_at, reply) = (fields.lsn()?, fields.i64()?, fields.u8()? != 0);
                fields.end()?;
                Ok(Self::Keepalive { wal_end, reply })
            }
            other => Err(unknown("frame", other)),
        }
    }
}

/// What a [`Message::Row`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RowKind {
    /// `R`: the description of a relation, before its first change and after each change of its definition.
    Relation,
    /// `Y`: the name of a type that is not built in.
    Type,
    /// `I`
    Insert,
    /// `U`
    Update,
    /// `D`
    Delete,
    /// `T`
    Truncate,
}

impl RowKind {
    /// The byte that stands for it in the protocol.
    pub fn tag(self) -> u8 {
        match self {
            Self::Relation => b'R',
            Self::Type => b'Y',
            Self::Insert => b'I',
            Self::Update => b'U',
            Self::Delete => b'D',
            Self::Truncate => b'T',
        }
    }

    /// The kind that a byte stands for.
    pub fn from_tag(tag: u8) -> Option<Self> {
        Some(match tag {
            b'R' => Self::Relation,
            b'Y' => Self::Type,
            b'I' => Self::Insert,
            b'U' => Self::Update,
            b'D' => Self::Delete,
            b'T' => Self::Truncate,
            _ => return None,
        })
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Relation => "Relation",
            Self::Type => "Type",
            Self::Insert => "Insert",
            Self::Update => "Update",
            Self::Delete => "Delete",
            Self::Truncate => "Truncate",
        }
    }

    /// Whether it changes rows.
    pub fn is_change(self) -> bool {
        !matches!(self, Self::Relation | Self::Type)
    }
}

/// One message of pgoutput.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// A transaction that has committed begins.
    Begin {
        /// Start of its commit record: equals `commit_lsn` of the Commit.
        final_lsn: Lsn,
        /// Microseconds since 2000-01-01.
        committed_at: i64,
        /// The top-level transaction id, 32 bits.
        xid: u32,
    },
    /// It ends.
    Commit {
        /// Start of the commit record.
        commit_lsn: Lsn,
        /// First byte after the commit record.
        end_lsn: Lsn,
        /// Microseconds since 2000-01-01.
        committed_at: i64,
    },
    /// The transaction came to the source from elsewhere.
    Origin {
        /// Its commit there.
        lsn: Lsn,
        /// The origin's name on the source.
        name: String,
    },
    /// A piece of a transaction that is still in progress begins.
    StreamStart {
        /// The top-level transaction id.
        xid: u32,
        /// Whether this is its first piece.
        first: bool,
    },
    /// The piece ends.
    StreamStop,
    /// A streamed transaction has committed.
    StreamCommit {
        /// The top-level transaction id.
        xid: u32,
        /// Start of the commit record.
        commit_lsn: Lsn,
        /// First byte after the commit record.
        end_lsn: Lsn,
        /// Microseconds since 2000-01-01.
        committed_at: i64,
    },
    /// A streamed transaction, or a sub-transaction of it, was rolled back. May name transactions of which nothing was
    /// ever sent, from 18 on even when streaming is off (`hazards.md` C43): then there is nothing to do.
    StreamAbort {
        /// The top-level transaction id.
        xid: u32,
        /// What was rolled back: equal to `xid` if all of it was.
        subxid: u32,
    },
    /// What is kept until the commit: Relation, Type and the changes.
    Row {
        /// Inside a streamed piece: the (sub-)transaction.
        subxid: Option<u32>,
        /// What it is.
        kind: RowKind,
        /// The message without its tag and without the transaction id of a streamed piece: the same bytes in both
        /// cases, a share of the payload.
        body: Bytes,
    },
    /// `pg_logical_emit_message`.
    Logical {
        /// Whether it belongs to a transaction; else it comes between any others, at once.
        transactional: bool,
        /// Where it stands in the WAL.
        lsn: Lsn,
        /// Whose it is.
        prefix: String,
        /// What it says.
        content: Bytes,
        /// Inside a streamed piece: the top-level transaction, also where a sub-transaction wrote the message.
        subxid: Option<u32>,
    },
}

impl Message {
    /// Reads one message. `in_stream` says whether a [`Message::StreamStart`] is open: then changes carry a transaction id.
    ///
    /// # Errors
    /// Its fields do not fit its length, or its kind is not known. Two-phase messages are not: they are never asked for,
    /// and a prepared transaction comes as an ordinary one when it commits.
    pub fn parse(payload: Bytes, in_stream: bool) -> Result<Self, Malformed> {
        let Some(&tag) = payload.first() else { return Err(Malformed::new("an empty message")) };
        if let Some(kind) = RowKind::from_tag(tag) {
            return row(payload, kind, in_stream);
        }
        let name = match tag {
            b'B' => "Begin",
            b'C' => "Commit",
            b'O' => "Origin",
            b'S' => "Stream Start",
            b'E' => "Stream Stop",
            b'c' => "Stream Commit",
            b'A' => "Stream Abort",
            b'M' => "Message",
            other => return Err(unknown("message", other)),
        };
        let mut fields = Fields::new(behind_tag(payload), name);
        let message = rest(tag, &mut fields, in_stream)?;
        fields.end()?;
        Ok(message)
    }
}

/// The same share without its first byte: another share would be counted among threads, for every row.
fn behind_tag(mut payload: Bytes) -> Bytes {
    payload.advance(1);
    payload
}

/// A message that is kept as it is.
fn row(payload: Bytes, kind: RowKind, in_stream: bool) -> Result<Message, Malformed> {
    if !in_stream {
        return Ok(Message::Row { subxid: None, kind, body: behind_tag(payload) });
    }
    let mut fields = Fields::new(behind_tag(payload), kind.name());
    let subxid = Some(fields.u32()?);
    Ok(Message::Row { subxid, kind, body: std::mem::take(fields.rest()) })
}

/// Everything else; the tag is one of those that the caller knows.
fn rest(tag: u8, fields: &mut Fields, in_stream: bool) -> Result<Message, Malformed> {
    Ok(match tag {
        b'B' => Message::Begin {
            final_lsn: fields.lsn()?,
            committed_at: fields.i64()?,
            xid: fields.u32()?,
        },
        b'C' => {
            let (commit_lsn, end_lsn, committed_at) = commit(fields)?;
            Message::Commit { commit_lsn, end_lsn, committed_at }
        }
        b'O' => Message::Origin { lsn: fields.lsn()?, name: fields.text()? },
        b'S' => Message::StreamStart { xid: fields.u32()?, first: fields.u8()? != 0 },
        b'E' => Message::StreamStop,
        b'c' => {
            let xid = fields.u32()?;
            let (commit_lsn, end_lsn, committed_at) = commit(fields)?;
            Message::StreamCommit { xid, commit_lsn, end_lsn, committed_at }
        }
        b'A' => {
            let (xid, subxid) = (fields.u32()?, fields.u32()?);
            // With `streaming = parallel` also where and when.
            if fields.remaining() == 16 {
                fields.bytes(16)?;
            }
            Message::StreamAbort { xid, subxid }
        }
        _ => logical(fields, in_stream)?,
    })
}

/// Flags (unused), start and end of the commit record, time.
fn commit(fields: &mut Fields) -> Result<(Lsn, Lsn, i64), Malformed> {
    let _flags = fields.u8()?;
    Ok((fields.lsn()?, fields.lsn()?, fields.i64()?))
}

fn logical(fields: &mut Fields, in_stream: bool) -> Result<Message, Malformed> {
    let subxid = if in_stream { Some(fields.u32()?) } else { None };
    let transactional = fields.u8()? & 1 != 0;
    let (lsn, prefix) = (fields.lsn()?, fields.text()?);
    let length = usize::try_from(fields.u32()?).map_err(|_| fields.malformed("a length"))?;
    let content = fields.bytes(length)?;
    Ok(Message::Logical { transactional, lsn, prefix, content, subxid })
}

fn unknown(what: &str, tag: u8) -> Malformed {
    Malformed::new(format!("an unknown kind of {what}: {:?}", char::from(tag)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(parts: &[&[u8]]) -> Bytes {
        Bytes::from(parts.concat())
    }

    #[test]
    fn a_frame_is_its_position_and_a_share_of_the_bytes() {
        let all = bytes(&[b"w", &[0; 7], &[5], &[0; 7], &[6], &[0; 8], b"payload"]);
        let Frame::XLogData { wal_start, wal_end, payload } = Frame::parse(all.clone()).unwrap()
        else {
            panic!("not XLogData")
        };
        assert_eq!((wal_start, wal_end), (Lsn::new(5), Lsn::new(6)));
        assert_eq!(payload.as_ptr(), all[25..].as_ptr());
        let keepalive = bytes(&[b"k", &[0; 7], &[9], &[0; 8], &[1]]);
        let expected = Frame::Keepalive { wal_end: Lsn::new(9), reply: true };
        assert_eq!(Frame::parse(keepalive).unwrap(), expected);
    }

    #[test]
    fn the_transaction_id_of_a_piece_is_cut_out_of_a_row() {
        let outside = Message::parse(bytes(&[b"I", b"body"]), false).unwrap();
        let body = Bytes::from_static(b"body");
        let kind = RowKind::Insert;
        assert_eq!(outside, Message::Row { subxid: None, kind, body: body.clone() });
        let inside = Message::parse(bytes(&[b"I", &[0, 0, 0, 7], b"body"]), true).unwrap();
        assert_eq!(inside, Message::Row { subxid: Some(7), kind, body });
    }

    #[test]
    fn an_abort_is_read_with_and_without_what_parallel_apply_adds() {
        let short = bytes(&[b"A", &[0, 0, 0, 7, 0, 0, 0, 8]]);
        let long = bytes(&[&short, &[0; 16]]);
        for message in [short.clone(), long] {
            let expected = Message::StreamAbort { xid: 7, subxid: 8 };
            assert_eq!(Message::parse(message, false).unwrap(), expected);
        }
        assert!(Message::parse(bytes(&[&short, &[0; 15]]), false).is_err());
    }

    #[test]
    fn what_is_cut_short_too_long_or_unknown_is_refused() {
        let begin = bytes(&[b"B", &[0; 20]]);
        assert!(Message::parse(begin.clone(), false).is_ok());
        for length in 0..begin.len() {
            assert!(Message::parse(begin.slice(..length), false).is_err(), "{length}");
        }
        assert!(Message::parse(bytes(&[&begin, &[0]]), false).is_err());
        for tag in [b'b', b'P', b'K', b'r', b'p', b'Z', 0, 0xff] {
            assert!(Message::parse(bytes(&[&[tag], &[0; 40]]), false).is_err(), "{tag}");
        }
        let lying = bytes(&[b"M", &[1], &[0; 8], b"p\0", &[0xff; 4], b"x"]);
        assert!(Message::parse(lying, false).is_err());
        assert!(Message::parse(bytes(&[b"I", &[0, 0, 0]]), true).is_err());
        assert!(Frame::parse(bytes(&[b"w", &[0; 23]])).is_err());
        assert!(Frame::parse(Bytes::new()).is_err());
    }

    #[test]
    fn every_kind_of_row_has_its_tag() {
        for tag in 0..=u8::MAX {
            if let Some(kind) = RowKind::from_tag(tag) {
                assert_eq!(kind.tag(), tag);
            }
        }
        assert_eq!((0..=u8::MAX).filter_map(RowKind::from_tag).count(), 6);
    }
}
