//! The records of a spool segment on disk.
//!
//! **Invariant:** a record is either whole and as it was written, or it and everything behind it is not there: length, kind
//! and payload are under a checksum that also holds the segment's number, so that a block of an older file of the same name
//! is never taken for one of this.
//!
//! ```text
//! segment = magic (8 bytes) record*
//! record  = length of the payload (u32) | kind (u8) | payload | xxh3-64 of number, kind and payload (u64)     all big-endian
//! ```

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use bytes::{BufMut, Bytes, BytesMut};
use xxhash_rust::xxh3::Xxh3;

/// How a segment begins; the last character is the format's version.
pub(super) const MAGIC: &[u8; 8] = b"TMSPOOL1";
/// Length and kind before the payload, checksum behind it.
const AROUND: usize = 4 + 1 + 8;
/// A payload is a block of frames of which one alone may be larger than a MiB; PostgreSQL's messages end at 1 GiB.
const PAYLOAD_MAX: usize = (1 << 30) + (1 << 20);

/// What a record is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    /// Whose spool this is and from where on; first in every segment.
    Identity = 1,
    /// The description of a relation, as its message.
    Relation = 2,
    /// A transaction begins: its head.
    Begin = 3,
    /// Frames of its body.
    Frames = 4,
    /// It is whole.
    Commit = 5,
}

impl Kind {
    fn of(byte: u8) -> Option<Self> {
        [Self::Identity, Self::Relation, Self::Begin, Self::Frames, Self::Commit]
            .into_iter()
            .find(|kind| *kind as u8 == byte)
    }
}

/// A record that was read.
#[derive(Debug)]
pub(super) struct Record {
    pub(super) kind: Kind,
    pub(super) payload: Bytes,
    /// Where the next one stands.
    pub(super) next: u64,
}

/// Writes a record into a buffer.
pub(super) fn encode(segment: u64, kind: Kind, payload: &[u8], out: &mut BytesMut) {
    out.reserve(AROUND + payload.len());
    out.put_u32(payload.len() as u32);
    out.put_u8(kind as u8);
    out.put_slice(payload);
    out.put_u64(checksum(segment, kind as u8, payload));
}

/// Reads the record at `at`; `None` where none is whole.
///
/// # Errors
/// The disk; a torn or changed record is no error but the end.
pub(super) fn read(file: &File, segment: u64, at: u64, length: u64) -> io::Result<Option<Record>> {
    let mut header = [0; 5];
    if at + AROUND as u64 > length {
        return Ok(None);
    }
    file.read_exact_at(&mut header, at)?;
    let size = u32::from_be_bytes([header[0], header[1], header[2], header[3]]) as usize;
    let next = at + (AROUND + size) as u64;
    if size > PAYLOAD_MAX || next > length {
        return Ok(None);
    }
    let mut rest = vec![0; size + 8];
    file.read_exact_at(&mut rest, at + 5)?;
    let (payload, sum) = rest.split_at(size);
    let is_whole = sum == checksum(segment, header[4], payload).to_be_bytes();
    let Some(kind) = Kind::of(header[4]).filter(|_| is_whole) else { return Ok(None) };
    rest.truncate(size);
    Ok(Some(Record { kind, payload: rest.into(), next }))
}

/// Reads the record at the front of a buffer that begins at `at`; `None` where it is not whole in the buffer or not right.
pub(super) fn read_buffered(buffer: &Bytes, segment: u64, at: u64) -> Option<Record> {
    let header = buffer.first_chunk::<5>()?;
    let size = u32::from_be_bytes([header[0], header[1], header[2], header[3]]) as usize;
    let payload = buffer.get(5..5 + size)?;
    let sum = buffer.get(5 + size..AROUND + size)?;
    let kind = Kind::of(header[4])?;
    let is_right = sum == checksum(segment, header[4], payload).to_be_bytes();
    let record =
        Record { kind, payload: buffer.slice(5..5 + size), next: at + (AROUND + size) as u64 };
    is_right.then_some(record)
}

/// The kind of the record at `at` and where the next one stands, without reading what is in it.
///
/// # Errors
/// The disk, or no record stands there.
pub(super) fn look(file: &File, at: u64) -> io::Result<(Kind, u64)> {
    let mut header = [0; 5];
    file.read_exact_at(&mut header, at)?;
    let size = u32::from_be_bytes([header[0], header[1], header[2], header[3]]) as usize;
    let kind = Kind::of(header[4])
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "no record of a spool"))?;
    Ok((kind, at + (AROUND + size) as u64))
}

fn checksum(segment: u64, kind: u8, payload: &[u8]) -> u64 {
    let mut hasher = Xxh3::with_seed(segment);
    hasher.update(&[kind]);
    hasher.update(payload);
    hasher.digest()
}
