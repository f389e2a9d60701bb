//! Framing of what a server sends, as pure functions over bytes: no sockets, no clock.
//!
//! **Invariant:** whatever the bytes are and however they are split, the outcome is the same rows or an error, never a panic;
//! a length is checked before anything is done with it, and nothing here allocates by a length that it read.
//!
//! The buffer of a COPY OUT always looks like this; payloads are moved down over the message headers, so that a batch is
//! one contiguous run of rows and no row is allocated:
//!
//! ```text
//! | rows, one behind the other | the beginning of a message that is not whole yet | free |
//! 0                       rows_end                                          buf.len()
//! ```
//!
//! PostgreSQL manual: protocol, "COPY Operations" (one CopyData of the backend is one row); COPY, "Binary Format".

use bytes::BytesMut;
use tidemark_model::TupleForm;

/// Longest message of a COPY: a row of 1 GiB and room for its header.
pub const MESSAGE_MAX: usize = (1 << 30) + (1 << 16);

/// Longest message that is not a row: errors may quote a whole statement.
const CONTROL_MESSAGE_MAX: usize = 16 << 20;

/// What a binary COPY begins with.
const SIGNATURE: &[u8; 11] = b"PGCOPY\n\xff\r\n\0";

/// Signature, flags and length of the extension.
const SIGNATURE_BYTES: usize = 19;

/// Flags that a reader must understand.
const CRITICAL_FLAGS: u32 = 0xFFFF_0000;

/// The bytes are not what the protocol allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FrameError {
    /// A length below its own size.
    #[error("a message announces a length of {0} bytes")]
    Length(i32),
    /// A length above what a message of this kind can have.
    #[error("a message of kind {:?} announces {length} bytes", char::from(*tag))]
    TooLong {
        /// The kind.
        tag: u8,
        /// What it announces.
        length: usize,
    },
    /// COPY BINARY does not begin as it must.
    #[error("COPY BINARY does not begin with its signature, or has flags that are not known")]
    Signature,
    /// A row that cannot be one.
    #[error("COPY sent something that is not a row")]
    Row,
    /// Data after the end of the data.
    #[error("COPY sent data after its end")]
    AfterTrailer,
    /// The end of the data without its trailer.
    #[error("COPY BINARY ended without its trailer")]
    NoTrailer,
    /// More rows in one buffer than positions of 32 bits can tell apart.
    #[error("a batch of more than 4 GiB")]
    Batch,
}

impl From<FrameError> for crate::error::Fault {
    fn from(error: FrameError) -> Self {
        Self::Protocol(error.to_string())
    }
}

/// The first five bytes of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// The kind of message.
    pub tag: u8,
    length: usize,
}

impl Header {
    /// Bytes of a header.
    pub const BYTES: usize = 5;

    /// Reads a header if all of it is there.
    ///
    /// # Errors
    /// The length is negative or shorter than itself, or longer than any message can be.
    #[inline]
    pub fn parse(bytes: &[u8]) -> Result<Option<Self>, FrameError> {
        let Some(&[tag, a, b, c, d]) = bytes.first_chunk::<5>() else { return Ok(None) };
        let length = i32::from_be_bytes([a, b, c, d]);
        if length < 4 {
            return Err(FrameError::Length(length));
        }
        // Not negative: checked above.
        let length = length.unsigned_abs() as usize;
        if length > MESSAGE_MAX {
            return Err(FrameError::TooLong { tag, length });
        }
        Ok(Some(Self { tag, length }))
    }

    /// Bytes of the whole message, header included.
    #[inline]
    pub fn total(self) -> usize {
        self.length + 1
    }
}

/// Where a COPY is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Signature,
    Rows,
    Trailer,
}

/// What the framer found.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// Every whole message is taken; the next one, with its header, will need this many bytes behind the rows.
    More {
        /// Bytes, [`Header::BYTES`] while its length is not known yet.
        pending: usize,
    },
    /// A message that is not CopyData, header included, taken out of the buffer.
    Message(BytesMut),
}

/// Turns CopyData messages into rows, in place.
#[derive(Debug)]
pub struct Framer {
    form: TupleForm,
    stage: Stage,
    ends: Vec<u32>,
    rows_end: usize,
    row_count: u64,
}

impl Framer {
    /// A framer at the beginning of a COPY.
    pub fn new(form: TupleForm) -> Self {
        let stage = match form {
            TupleForm::PgBinary => Stage::Signature,
            TupleForm::PgText => Stage::Rows,
        };
        Self { form, stage, ends: Vec::new(), rows_end: 0, row_count: 0 }
    }

    /// Where the rows in the buffer end and what is not framed yet begins.
    pub fn rows_end(&self) -> usize {
        self.rows_end
    }

    /// Rows since the beginning of the COPY.
    pub fn row_count(&self) -> u64 {
        self.row_count
    }

    /// Whether the buffer holds rows.
    pub fn has_rows(&self) -> bool {
        !self.ends.is_empty()
    }

    /// Takes the ends of the rows in the buffer. The caller takes `rows_end` bytes from the front of the buffer.
    pub fn take_ends(&mut self) -> Vec<u32> {
        self.rows_end = 0;
        let capacity = self.ends.len();
        std::mem::replace(&mut self.ends, Vec::with_capacity(capacity))
    }

    /// Ends the data, when the server says CopyDone; what comes after is refused.
    ///
    /// # Errors
    /// Binary data without its trailer.
    pub fn end(&mut self) -> Result<(), FrameError> {
        if self.form == TupleForm::PgBinary && self.stage != Stage::Trailer {
            return Err(FrameError::NoTrailer);
        }
        self.stage = Stage::Trailer;
        Ok(())
    }

    /// Frames what is whole in `buf`, whose first [`Framer::rows_end`] bytes are rows already.
    ///
    /// # Errors
    /// The bytes are not what the protocol allows.
    pub fn step(&mut self, buf: &mut Vec<u8>) -> Result<Step, FrameError> {
        let mut read = self.rows_end;
        let mut write = self.rows_end;
        let step = loop {
            let Some(header) = Header::parse(&buf[read..])? else {
                break Step::More { pending: Header::BYTES };
            };
            if header.tag != b'd' && header.total() > CONTROL_MESSAGE_MAX {
                return Err(FrameError::TooLong { tag: header.tag, length: header.total() });
            }
            let end = read + header.total();
            if buf.len() < end {
                break Step::More { pending: header.total() };
            }
            if header.tag != b'd' {
                let message = BytesMut::from(&buf[read..end]);
                read = end;
                break Step::Message(message);
            }
            let payload = read + Header::BYTES;
            if let Some(skip) = self.row(&buf[payload..end])? {
                buf.copy_within(payload + skip..end, write);
                write += end - payload - skip;
                self.ends.push(u32::try_from(write).map_err(|_| FrameError::Batch)?);
                self.row_count += 1;
            }
            read = end;
        };
        if read > write {
            buf.copy_within(read.., write);
            buf.truncate(buf.len() - (read - write));
        }
        self.rows_end = write;
        Ok(step)
    }

    /// Looks at one CopyData: where the row begins in it, or `None` if there is no row.
    #[inline]
    fn row(&mut self, payload: &[u8]) -> Result<Option<usize>, FrameError> {
        match self.stage {
            Stage::Rows if self.form == TupleForm::PgText => {
                if payload.last() == Some(&b'\n') {
                    Ok(Some(0))
                } else {
                    Err(FrameError::Row)
                }
            }
            Stage::Rows => self.binary_row(payload, 0),
            Stage::Signature => {
                let skip = signature(payload)?;
                self.stage = Stage::Rows;
                if skip == payload.len() {
                    Ok(None)
                } else {
                    self.binary_row(&payload[skip..], skip)
                }
            }
            Stage::Trailer => Err(FrameError::AfterTrailer),
        }
    }

    #[inline]
    fn binary_row(&mut self, row: &[u8], skip: usize) -> Result<Option<usize>, FrameError> {
        let Some(&[high, low]) = row.first_chunk::<2>() else { return Err(FrameError::Row) };
        match i16::from_be_bytes([high, low]) {
            0.. => Ok(Some(skip)),
            -1 if row.len() == 2 => {
                self.stage = Stage::Trailer;
                Ok(None)
            }
            _ => Err(FrameError::Row),
        }
    }
}

/// Length of the header of a binary COPY.
fn signature(payload: &[u8]) -> Result<usize, FrameError> {
    let rest = payload.strip_prefix(SIGNATURE).ok_or(FrameError::Signature)?;
    let number = |at: usize| -> Result<u32, FrameError> {
        let bytes = rest.get(at..).and_then(<[u8]>::first_chunk).ok_or(FrameError::Signature)?;
        Ok(u32::from_be_bytes(*bytes))
    };
    if number(0)? & CRITICAL_FLAGS != 0 {
        return Err(FrameError::Signature);
    }
    let extension = usize::try_from(number(4)?).map_err(|_| FrameError::Signature)?;
    SIGNATURE_BYTES
        .checked_add(extension)
        .filter(|length| *length <= payload.len())
        .ok_or(FrameError::Signature)
}

/// What the fuzz target runs: the first byte picks the form and the size of the pieces, the rest is what a server sends.
/// Panics where an invariant is broken.
#[doc(hidden)]
pub fn fuzz(bytes: &[u8]) {
    let Some((&control, stream)) = bytes.split_first() else { return };
    let form = if control & 1 == 0 { TupleForm::PgBinary } else { TupleForm::PgText };
    let whole = fuzz_rows(form, stream, stream.len().max(1));
    let pieces = fuzz_rows(form, stream, usize::from(control >> 1) + 1);
    assert_eq!(whole, pieces, "rows depend on how the bytes were split");
}

fn fuzz_rows(form: TupleForm, stream: &[u8], piece: usize) -> (Vec<u8>, Vec<u32>, bool) {
    let mut framer = Framer::new(form);
    let mut buf = Vec::new();
    for bytes in stream.chunks(piece) {
        buf.extend_from_slice(bytes);
        loop {
            match framer.step(&mut buf) {
                Ok(Step::Message(_)) => {}
                Ok(Step::More { pending }) => {
                    assert!(pending > buf.len() - framer.rows_end());
                    break;
                }
                Err(_) => return (Vec::new(), Vec::new(), false),
            }
        }
    }
    buf.truncate(framer.rows_end());
    let ends = framer.take_ends();
    assert_eq!(ends.last().map_or(0, |end| *end as usize), buf.len());
    (buf, ends, true)
}

#[cfg(test)]
mod tests;
