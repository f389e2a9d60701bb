//! CopyBoth: the replication stream.
//!
//! **Invariant:** reading and writing are independent halves: a slow consumer of the stream never keeps a status update
//! from being sent. Messages are slices of the read buffer; nothing is copied per message.
//!
//! **Not here:** the meaning of the messages (pgoutput) and which position may be acknowledged.
//!
//! PostgreSQL manual: protocol, "Streaming Replication Protocol".

use std::collections::HashMap;
use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use postgres_protocol::message::backend::Message;
use postgres_protocol::message::frontend;
use tidemark_model::Lsn;
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};

use crate::cancel::Cancel;
use crate::connection::RawConnection;
use crate::error::{Fault, Result};
use crate::frame::{Header, MESSAGE_MAX};
use crate::message::{Inbox, Incoming, server_error, unexpected};
use crate::socket::Transport;
use crate::startup::{Session, on_database};

/// Room for one read.
const READ_BYTES: usize = 256 * 1024;

/// Seconds from 1970-01-01 to 2000-01-01, where PostgreSQL's clock begins.
const POSTGRES_EPOCH_SECONDS: u64 = 946_684_800;

/// A stream in both directions.
#[derive(Debug)]
pub struct CopyBoth {
    reader: CopyBothReader,
    writer: CopyBothWriter,
}

impl CopyBoth {
    pub(crate) fn new(connection: RawConnection) -> Self {
        let Session { transport, inbox, parameters, version, pid, key, cancel } =
            connection.session;
        let (read, write) = tokio::io::split(transport);
        let reader = CopyBothReader {
            half: read,
            buf: inbox.buf,
            server_done: false,
            parameters,
            version,
            pid,
            key,
            cancel: cancel.clone(),
        };
        Self {
            reader,
            writer: CopyBothWriter { half: write, buf: BytesMut::new(), done: false, cancel },
        }
    }

    /// The two halves, for two tasks.
    pub fn split(self) -> (CopyBothReader, CopyBothWriter) {
        (self.reader, self.writer)
    }
}

/// Several messages of the stream, without their CopyData headers.
#[derive(Clone)]
pub struct Messages {
    data: Bytes,
    ranges: Vec<(u32, u32)>,
}

/// How much, never what: the bytes are rows.
impl fmt::Debug for Messages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = f.debug_struct("Messages");
        debug.field("len", &self.len()).field("bytes", &self.bytes()).finish_non_exhaustive()
    }
}

impl Messages {
    /// Number of messages, at least one.
    #[expect(clippy::len_without_is_empty, reason = "there is always one")]
    pub fn len(&self) -> usize {
        self.ranges.len()
    }

    /// The messages in order.
    pub fn iter(&self) -> impl Iterator<Item = &[u8]> {
        self.ranges.iter().map(|&(start, end)| &self.data[start as usize..end as usize])
    }

    /// The messages in order, as shares of the buffer that may be kept.
    pub fn shares(&self) -> impl Iterator<Item = Bytes> {
        self.ranges.iter().map(|&(start, end)| self.data.slice(start as usize..end as usize))
    }

    /// Bytes of the buffer that they keep alive.
    pub fn bytes(&self) -> usize {
        self.data.len()
    }
}

/// What the buffer holds.
struct Indexed {
    /// Payloads of CopyData messages.
    ranges: Vec<(u32, u32)>,
    /// Where the last of them ends.
    end: usize,
    behind: Behind,
}

/// What stands behind the CopyData messages.
enum Behind {
    /// The beginning of a message that has this many bytes, as far as is known.
    Part { pending: usize },
    /// A whole message of another kind.
    Control,
}

/// The reading half.
pub struct CopyBothReader {
    half: ReadHalf<Transport>,
    buf: BytesMut,
    server_done: bool,
    parameters: HashMap<String, String>,
    version: u32,
    pid: i32,
    key: i32,
    cancel: Cancel,
}

/// How much, never what: the bytes are rows.
impl fmt::Debug for CopyBothReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CopyBothReader")
            .field("pid", &self.pid)
            .field("buffered", &self.buf.len())
            .field("server_done", &self.server_done)
            .finish_non_exhaustive()
    }
}

impl CopyBothReader {
    /// All messages that are there, waiting for the first. `None` when the server has ended the stream: it shuts down, or
    /// we have asked for it.
    ///
    /// # Errors
    /// The server ended the stream with an error, or the connection was lost.
    ///
    /// # Cancel safety
    /// A dropped future loses nothing; call again.
    pub async fn next(&mut self) -> Result<Option<Messages>> {
        match self.read().await {
            Ok(messages) => Ok(messages),
            Err(fault) => Err(on_database(fault, "read the replication stream", &self.cancel)),
        }
    }

    async fn read(&mut self) -> Result<Option<Messages>, Fault> {
        while !self.server_done {
            let Indexed { ranges, end, behind } = self.index()?;
            if !ranges.is_empty() {
                let data = self.buf.split_to(end).freeze();
                return Ok(Some(Messages { data, ranges }));
            }
            let Behind::Part { pending } = behind else {
                self.control()?;
                continue;
            };
            // Grows with what arrives: the announced length alone costs nothing.
            if self.buf.capacity() - self.buf.len() < READ_BYTES / 8 {
                let room = self.buf.len().clamp(READ_BYTES, READ_BYTES.max(pending));
                self.buf.reserve(room);
            }
            if self.half.read_buf(&mut self.buf).await? == 0 {
                return Err(Fault::Closed);
            }
        }
        Ok(None)
    }

    /// Looks for the CopyData messages at the front of the buffer.
    fn index(&self) -> Result<Indexed, Fault> {
        let mut ranges = Vec::new();
        let mut end = 0;
        let behind = loop {
            let Some(header) = Header::parse(&self.buf[end..])? else {
                break Behind::Part { pending: Header::BYTES };
            };
            let next = end + header.total();
            if next > self.buf.len() {
                break Behind::Part { pending: header.total() };
            }
            if header.tag != b'd' {
                break Behind::Control;
            }
            let position = |at: usize| {
                u32::try_from(at).map_err(|_| Fault::protocol("more than 4 GiB in one read"))
            };
            ranges.push((position(end + Header::BYTES)?, position(next)?));
            end = next;
        };
        Ok(Indexed { ranges, end, behind })
    }

    /// Takes one whole message that is not CopyData.
    fn control(&mut self) -> Result<(), Fault> {
        let malformed = || Fault::protocol("a malformed message in the replication stream");
        let message = Message::parse(&mut self.buf).ok().flatten().ok_or_else(malformed)?;
        match &message {
            // A server that shuts down says CommandComplete, without CopyDone and without what follows else.
            Message::CopyDone | Message::CommandComplete(_) => self.server_done = true,
            Message::ErrorResponse(body) => return Err(Fault::Server(server_error(body))),
            Message::ParameterStatus(_)
            | Message::NoticeResponse(_)
            | Message::NotificationResponse(_) => {}
            other => return Err(unexpected(other)),
        }
        Ok(())
    }

    /// Ends the stream on both sides and gives the connection back. Messages that were on their way are dropped.
    ///
    /// # Errors
    /// The connection was lost, or the server ended the stream with an error.
    pub async fn finish(mut self, mut writer: CopyBothWriter) -> Result<RawConnection> {
        writer.done().await?;
        while self.next().await?.is_some() {}
        let Self { half, buf, parameters, version, pid, key, cancel, .. } = self;
        let transport = half.unsplit(writer.half);
        let inbox = Inbox { buf };
        let session = Session { transport, inbox, parameters, version, pid, key, cancel };
        let mut connection = RawConnection { session, busy: true };
        match leave(&mut connection).await {
            Ok(()) => Ok(connection),
            Err(fault) => Err(connection.fault(fault, "end the replication stream")),
        }
    }
}

/// Reads on to ReadyForQuery. A walsender may go on with what it was sending after its CopyDone.
async fn leave(connection: &mut RawConnection) -> Result<(), Fault> {
    loop {
        let session = &mut connection.session;
        match session.inbox.next(&mut session.transport, MESSAGE_MAX).await? {
            Incoming::Known(Message::CopyData(_) | Message::CopyDone) => {}
            Incoming::Known(Message::ReadyForQuery(_)) => {
                connection.busy = false;
                return Ok(());
            }
            Incoming::Known(Message::ErrorResponse(body)) => {
                return Err(connection.fail(Fault::Server(server_error(&body))).await);
            }
            Incoming::Known(message) => connection.note(&message)?,
            Incoming::CopyBoth => return Err(Fault::protocol("unexpected CopyBothResponse")),
        }
    }
}

/// The writing half.
#[derive(Debug)]
pub struct CopyBothWriter {
    half: WriteHalf<Transport>,
    buf: BytesMut,
    done: bool,
    cancel: Cancel,
}

impl CopyBothWriter {
    /// Sends a standby status update: how far we have received, made durable and applied, and whether the server should
    /// answer at once. The server may throw away what is before `durable`: pass only what is flushed.
    ///
    /// # Errors
    /// The connection was lost.
    ///
    /// # Cancel safety
    /// None: a message may be half sent.
    pub async fn status(
        &mut self,
        received: Lsn,
        durable: Lsn,
        applied: Lsn,
        reply: bool,
    ) -> Result<()> {
        let mut body = [0_u8; 34];
        let mut out = &mut body[..];
        out.put_u8(b'r');
        for lsn in [received, durable, applied] {
            out.put_u64(lsn.as_u64());
        }
        out.put_i64(postgres_clock_us());
        out.put_u8(u8::from(reply));
        self.send(&body).await
    }

    /// Sends one CopyData.
    ///
    /// # Errors
    /// The connection was lost.
    ///
    /// # Cancel safety
    /// None: a message may be half sent.
    pub async fn send(&mut self, payload: &[u8]) -> Result<()> {
        let sent = match frontend::CopyData::new(payload) {
            Ok(message) => {
                message.write(&mut self.buf);
                self.flush().await
            }
            Err(_) => Err(Fault::Client("a message that is too long".to_owned())),
        };
        sent.map_err(|fault| on_database(fault, "send a status update", &self.cancel))
    }

    /// Says that we are done; the server ends the stream.
    ///
    /// # Errors
    /// The connection was lost.
    pub async fn done(&mut self) -> Result<()> {
        if self.done {
            return Ok(());
        }
        self.done = true;
        frontend::copy_done(&mut self.buf);
        let sent = self.flush().await;
        sent.map_err(|fault| on_database(fault, "end the replication stream", &self.cancel))
    }

    async fn flush(&mut self) -> Result<(), Fault> {
        while self.buf.has_remaining() {
            self.half.write_buf(&mut self.buf).await?;
        }
        self.half.flush().await?;
        Ok(())
    }
}

/// Microseconds since 2000-01-01, as the server counts.
fn postgres_clock_us() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let microseconds =
        since.as_micros().saturating_sub(u128::from(POSTGRES_EPOCH_SECONDS) * 1_000_000);
    i64::try_from(microseconds).unwrap_or(i64::MAX)
}
