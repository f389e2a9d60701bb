//! Reading single messages: everything but the hot path of COPY OUT.
//!
//! **Invariant:** a message's length is checked against a bound before a byte of it is waited for; the buffer grows with
//! what arrives, not with what is announced.
//!
//! PostgreSQL manual: protocol, "Message Formats".

use bytes::{Buf, BytesMut};
use postgres_protocol::message::backend::Message;
use tokio::io::{AsyncRead, AsyncReadExt};

use crate::error::Fault;
use crate::frame::Header;
use crate::server_error::ServerError;

/// Longest message before the server has accepted us.
pub(crate) const STARTUP_MESSAGE_MAX: usize = 64 * 1024;

/// Longest message of a simple query; one row of a catalog query may hold a long definition.
pub(crate) const QUERY_MESSAGE_MAX: usize = 64 * 1024 * 1024;

/// A message of the server.
pub(crate) enum Incoming {
    Known(Message),
    /// CopyBothResponse, which `postgres_protocol` does not know.
    CopyBoth,
}

/// What was read and not used yet.
#[derive(Debug, Default)]
pub(crate) struct Inbox {
    pub(crate) buf: BytesMut,
}

impl Inbox {
    /// The next message, at most `max` bytes of it.
    ///
    /// # Cancel safety
    /// What was read stays in the inbox.
    pub(crate) async fn next<S>(&mut self, stream: &mut S, max: usize) -> Result<Incoming, Fault>
    where
        S: AsyncRead + Unpin,
    {
        loop {
            if let Some(message) = self.take(max)? {
                return Ok(message);
            }
            self.buf.reserve(8 * 1024);
            if stream.read_buf(&mut self.buf).await? == 0 {
                return Err(Fault::Closed);
            }
        }
    }

    fn take(&mut self, max: usize) -> Result<Option<Incoming>, Fault> {
        let Some(header) = Header::parse(&self.buf).map_err(Fault::from)? else { return Ok(None) };
        if header.total() > max {
            return Err(Fault::protocol(format!(
                "a message of {} bytes where at most {max} are expected",
                header.total()
            )));
        }
        if self.buf.len() < header.total() {
            return Ok(None);
        }
        if header.tag == b'W' {
            self.buf.advance(header.total());
            return Ok(Some(Incoming::CopyBoth));
        }
        let message = Message::parse(&mut self.buf).map_err(|_| {
            Fault::protocol(format!("a malformed message ({:?})", header.tag as char))
        })?;
        Ok(message.map(Incoming::Known))
    }
}

/// The error of an ErrorResponse.
pub(crate) fn server_error(
    body: &postgres_protocol::message::backend::ErrorResponseBody,
) -> Box<ServerError> {
    Box::new(ServerError::read(body.fields()))
}

/// The name of a message, for errors.
pub(crate) fn name(message: &Message) -> &'static str {
    match message {
        Message::AuthenticationOk => "AuthenticationOk",
        Message::BackendKeyData(_) => "BackendKeyData",
        Message::CommandComplete(_) => "CommandComplete",
        Message::CopyData(_) => "CopyData",
        Message::CopyDone => "CopyDone",
        Message::CopyInResponse(_) => "CopyInResponse",
        Message::CopyOutResponse(_) => "CopyOutResponse",
        Message::DataRow(_) => "DataRow",
        Message::EmptyQueryResponse => "EmptyQueryResponse",
        Message::ErrorResponse(_) => "ErrorResponse",
        Message::ParameterStatus(_) => "ParameterStatus",
        Message::ReadyForQuery(_) => "ReadyForQuery",
        Message::RowDescription(_) => "RowDescription",
        _ => "a message that does not belong here",
    }
}

/// That this message does not belong here.
pub(crate) fn unexpected(message: &Message) -> Fault {
    Fault::protocol(format!("unexpected {}", name(message)))
}
