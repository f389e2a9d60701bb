//! SQL and COPY IN: `tokio_postgres` on a session that we opened.
//!
//! **Invariant:** `tokio_postgres` sees no password and does no TLS. The session is opened by [`crate::startup`] like every
//! other one; then a stream that answers the library's own start-up packet from memory is put around it. So both kinds of
//! connection have the same settings, the same checks and the same errors.
//!
//! ```text
//! tokio_postgres --StartupMessage--> [swallowed]
//!                <--AuthenticationOk, ParameterStatus, BackendKeyData, ReadyForQuery-- [from memory]
//!                <=========== everything after goes straight through ===========> server
//! ```
//!
//! The task that drives the connection belongs to the [`Client`] and ends with it.

use std::collections::HashMap;
use std::future::poll_fn;
use std::io;
use std::ops::{Deref, DerefMut};
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf, BufMut, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::task::JoinSet;
use tokio_postgres::NoTls;

use crate::cancel::Cancel;
use crate::connection::Mode;
use crate::error::{Fault, Result};
use crate::socket::Transport;
use crate::spec::ConnectSpec;
use crate::startup::{self, Session};

/// A connection for SQL and COPY IN.
#[derive(Debug)]
pub struct Client {
    inner: tokio_postgres::Client,
    driver: JoinSet<()>,
    parameters: HashMap<String, String>,
    version: u32,
    pid: i32,
    cancel: Cancel,
}

impl ConnectSpec {
    /// Connects for SQL and COPY IN.
    ///
    /// # Errors
    /// The server cannot be reached, is not trusted or does not let us in.
    pub async fn connect(&self) -> Result<Client> {
        let session = Box::pin(startup::open(self, Mode::Sql)).await?;
        let mut config = tokio_postgres::Config::new();
        config.user(&self.user).ssl_mode(tokio_postgres::config::SslMode::Disable);
        let (parameters, version) = (session.parameters.clone(), session.version);
        let (pid, cancel) = (session.pid, session.cancel.clone());
        let (inner, mut connection) = config
            .connect_raw(Replayed::new(session), NoTls)
            .await
            .map_err(|error| Fault::from(error).during(format!("connect to {self}")))?;
        let mut driver = JoinSet::new();
        driver.spawn(async move {
            // Notices are dropped: they may quote values.
            while let Some(message) = poll_fn(|cx| connection.poll_message(cx)).await {
                if message.is_err() {
                    tracing::debug!("connection ended with an error");
                    break;
                }
            }
        });
        Ok(Client { inner, driver, parameters, version, pid, cancel })
    }
}

impl Client {
    /// Process id of the server's backend.
    pub fn backend_pid(&self) -> i32 {
        self.pid
    }

    /// The server's version as `server_version_num` counts: 150018 is 15.18.
    pub fn server_version_num(&self) -> u32 {
        self.version
    }

    /// A parameter that the server reported when the connection was opened (`server_encoding`, `in_hot_standby`, ...).
    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters.get(name).map(String::as_str)
    }

    /// What cancels the running statement.
    pub fn cancel_token(&self) -> Cancel {
        self.cancel.clone()
    }

    /// Who, where and which database, without the password.
    pub fn redacted(&self) -> String {
        self.cancel.spec().redacted()
    }

    /// Says goodbye to the server and waits until everything is sent. Dropping closes without a word.
    pub async fn close(self) {
        let Self { inner, mut driver, .. } = self;
        drop(inner);
        while driver.join_next().await.is_some() {}
    }
}

impl Deref for Client {
    type Target = tokio_postgres::Client;

    fn deref(&self) -> &Self::Target {
        &self.inner
    }
}

impl DerefMut for Client {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.inner
    }
}

/// A stream whose start-up has already happened.
struct Replayed {
    transport: Transport,
    /// What is read before the transport.
    prelude: BytesMut,
    /// What the library has written of its start-up packet, until it is whole.
    swallowed: Option<BytesMut>,
}

impl Replayed {
    fn new(session: Session) -> Self {
        let mut prelude = BytesMut::new();
        message(&mut prelude, b'R', |body| body.put_i32(0));
        for (name, value) in &session.parameters {
            message(&mut prelude, b'S', |body| {
                for text in [name, value] {
                    body.put_slice(text.as_bytes());
                    body.put_u8(0);
                }
            });
        }
        message(&mut prelude, b'K', |body| {
            body.put_i32(session.pid);
            body.put_i32(session.key);
        });
        message(&mut prelude, b'Z', |body| body.put_u8(b'I'));
        prelude.put_slice(&session.inbox.buf);
        Self { transport: session.transport, prelude, swallowed: Some(BytesMut::new()) }
    }
}

/// Appends one message.
fn message(out: &mut BytesMut, tag: u8, write: impl FnOnce(&mut BytesMut)) {
    let mut body = BytesMut::new();
    write(&mut body);
    out.put_u8(tag);
    out.put_u32(u32::try_from(body.len() + 4).expect("start-up messages are bounded to 64 KiB"));
    out.put_slice(&body);
}

impl AsyncRead for Replayed {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.prelude.is_empty() {
            return Pin::new(&mut self.transport).poll_read(cx, buf);
        }
        let count = self.prelude.len().min(buf.remaining());
        buf.put_slice(&self.prelude[..count]);
        self.prelude.advance(count);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Replayed {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let Some(packet) = &mut self.swallowed else {
            return Pin::new(&mut self.transport).poll_write(cx, buf);
        };
        // Four bytes of length that count themselves, then the rest of the packet.
        let total = match packet.first_chunk::<4>() {
            Some(length) => u32::from_be_bytes(*length) as usize,
            None => 4,
        };
        let count = buf.len().min(total.saturating_sub(packet.len()));
        packet.put_slice(&buf[..count]);
        let whole = packet.first_chunk::<4>().map(|length| u32::from_be_bytes(*length) as usize);
        if whole.is_some_and(|whole| packet.len() >= whole) {
            self.swallowed = None;
        }
        Poll::Ready(Ok(count))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.transport).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.transport).poll_shutdown(cx)
    }
}
