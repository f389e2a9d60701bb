//! Messages that arrived together, whichever way they came.
//!
//! **Invariant:** the messages are shares of the buffer that they arrived in; nothing is copied per message.

use std::fmt;

use bytes::{Buf, Bytes};
use tidemark_model::{Lsn, Reservation, Tuples};
use tidemark_wire::Messages;

use super::fields::Malformed;
use super::message::Frame;

/// Some messages of the stream in order; at least one wherever they are handed out.
pub struct Frames(Kind);

enum Kind {
    /// CopyData of a replication connection.
    Stream(Messages),
    /// Rows (lsn, xid, data) of a binary COPY, and the memory that is held for them.
    Rows(Tuples, Option<Reservation>),
}

/// How much, never what: the bytes are rows.
impl fmt::Debug for Frames {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Frames").field("len", &self.len()).field("bytes", &self.bytes()).finish()
    }
}

impl Frames {
    pub(super) fn of_stream(messages: Messages) -> Self {
        Self(Kind::Stream(messages))
    }

    pub(super) fn of_rows(rows: Tuples, reservation: Reservation) -> Self {
        Self(Kind::Rows(rows, Some(reservation)))
    }

    /// Number of messages.
    #[expect(clippy::len_without_is_empty, reason = "there is always one")]
    pub fn len(&self) -> usize {
        match &self.0 {
            Kind::Stream(messages) => messages.len(),
            Kind::Rows(rows, _) => rows.row_count(),
        }
    }

    /// Bytes of the buffer, which live as long as any message that is kept.
    pub fn bytes(&self) -> usize {
        match &self.0 {
            Kind::Stream(messages) => messages.bytes(),
            Kind::Rows(rows, _) => rows.data.len(),
        }
    }

    /// The memory that was reserved for the buffer, where a budget was given; it is freed with these frames if it is not taken.
    pub fn take_reservation(&mut self) -> Option<Reservation> {
        match &mut self.0 {
            Kind::Stream(_) => None,
            Kind::Rows(_, reservation) => reservation.take(),
        }
    }

    /// One of the messages that came as rows.
    pub(super) fn row(&self, index: usize) -> Option<Result<Frame, Malformed>> {
        let Kind::Rows(rows, _) = &self.0 else { return None };
        let to = *rows.ends.get(index)? as usize;
        let from = index.checked_sub(1).map_or(0, |before| rows.ends[before] as usize);
        Some(row_of(rows, from, to).and_then(frame_of_row))
    }

    /// Takes out the first messages of rows; none may be left.
    pub(super) fn leave_out(&mut self, count: usize) {
        let Kind::Rows(rows, _) = &mut self.0 else { return };
        let Some(end) = count.checked_sub(1).and_then(|last| rows.ends.get(last).copied()) else {
            return;
        };
        rows.data = rows.data.slice((end as usize).min(rows.data.len())..);
        rows.ends.drain(..count);
        rows.ends.iter_mut().for_each(|other| *other = other.saturating_sub(end));
    }

    /// The messages in order.
    pub fn iter(&self) -> Box<dyn Iterator<Item = Result<Frame, Malformed>> + Send + '_> {
        match &self.0 {
            Kind::Stream(messages) => Box::new(messages.shares().map(Frame::parse)),
            Kind::Rows(rows, _) => Box::new(rows_of(rows).map(|row| row.and_then(frame_of_row))),
        }
    }
}

/// The rows as shares of their buffer.
fn rows_of(rows: &Tuples) -> impl Iterator<Item = Result<Bytes, Malformed>> + Send {
    let mut start = 0;
    rows.ends.iter().map(move |&end| {
        let from = std::mem::replace(&mut start, end as usize);
        row_of(rows, from, end as usize)
    })
}

fn row_of(rows: &Tuples, from: usize, to: usize) -> Result<Bytes, Malformed> {
    if from > to || to > rows.data.len() {
        return Err(Malformed::new("a row outside its buffer"));
    }
    Ok(rows.data.slice(from..to))
}

/// Field count, then lsn, xid and data, each behind its length.
fn frame_of_row(mut row: Bytes) -> Result<Frame, Malformed> {
    const DATA: usize = 2 + 4 + 8 + 4 + 4 + 4;
    let malformed = || Malformed::new("a row of the catch-up that is not (lsn, xid, data)");
    let header = row.first_chunk::<DATA>().ok_or_else(malformed)?;
    let [0, 3, 0, 0, 0, 8, l0, l1, l2, l3, l4, l5, l6, l7, 0, 0, 0, 4, _, _, _, _, d0, d1, d2, d3] =
        *header
    else {
        return Err(malformed());
    };
    let length = usize::try_from(u32::from_be_bytes([d0, d1, d2, d3])).map_err(|_| malformed())?;
    if row.len() - DATA != length {
        return Err(malformed());
    }
    let lsn = Lsn::new(u64::from_be_bytes([l0, l1, l2, l3, l4, l5, l6, l7]));
    row.advance(DATA);
    Ok(Frame::XLogData { wal_start: lsn, wal_end: lsn, payload: row })
}

#[cfg(test)]
mod tests {
    use tidemark_model::TupleForm;

    use super::*;

    fn rows(rows: &[&[u8]]) -> Frames {
        let mut ends = Vec::new();
        for row in rows {
            ends.push(ends.last().unwrap_or(&0) + row.len() as u32);
        }
        let data = Bytes::from(rows.concat());
        Frames(Kind::Rows(Tuples { form: TupleForm::PgBinary, data, ends }, None))
    }

    #[test]
    fn what_is_printed_has_no_values() {
        let text = format!("{:?}", rows(&[b"secret"]));
        assert_eq!(text, "Frames { len: 1, bytes: 6 }");
    }

    #[test]
    fn a_row_of_the_catch_up_is_the_frame_that_the_stream_would_bring() {
        let head = [0, 3, 0, 0, 0, 8, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 4, 0, 0, 0, 9];
        let first = [&head[..], &[0, 0, 0, 1], b"C"].concat();
        let second = [&head[..], &[0, 0, 0, 2], b"Bx"].concat();
        let lying = [&head[..], &[0, 0, 0, 3], b"Bx"].concat();
        let frames = rows(&[&first, &second, &lying, &head[..], &[]]);
        let found: Vec<_> = frames.iter().collect();
        let lsn = Lsn::new(0x1_0000_0002);
        let expected = |payload: &'static [u8]| Frame::XLogData {
            wal_start: lsn,
            wal_end: lsn,
            payload: Bytes::from_static(payload),
        };
        assert_eq!(found[0], Ok(expected(b"C")));
        assert_eq!(found[1], Ok(expected(b"Bx")));
        assert!(found[2..].iter().all(Result::is_err) && found.len() == 5);
    }
}
