//! Sockets: dialling a server, and the stream that everything else reads and writes.
//!
//! **Invariant:** every TCP connection has `TCP_NODELAY` and keepalive on, so that a dead peer is noticed within about
//! a minute and a half.

use std::fmt;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::net::{TcpSocket, TcpStream, UnixStream};
use tokio_rustls::client::TlsStream;

use crate::connection::Mode;
use crate::error::Fault;
use crate::spec::{ConnectSpec, Host, Keepalive};

mod pace;
mod paced;

use pace::Manner;

pub(crate) use paced::Socket;

/// One address of a server; a cancel request goes to the same one.
#[derive(Debug, Clone)]
pub(crate) enum Endpoint {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

impl Endpoint {
    pub(crate) fn is_unix(&self) -> bool {
        matches!(self, Self::Unix(_))
    }

    /// All addresses of a specification, in the resolver's order.
    pub(crate) async fn resolve(spec: &ConnectSpec) -> Result<Vec<Self>, Fault> {
        let (name, address) = match &spec.host {
            Host::Unix(directory) => {
                return Ok(vec![Self::Unix(directory.join(format!(".s.PGSQL.{}", spec.port)))]);
            }
            Host::Tcp { name, address } => (name.as_deref().unwrap_or("localhost"), address),
        };
        if let Some(address) = address {
            return Ok(vec![Self::Tcp(SocketAddr::new(*address, spec.port))]);
        }
        let found: Vec<Self> = tokio::net::lookup_host((name, spec.port))
            .await
            .map_err(Fault::UnknownHost)?
            .map(Self::Tcp)
            .collect();
        if found.is_empty() {
            return Err(Fault::UnknownHost(io::Error::from(io::ErrorKind::NotFound)));
        }
        Ok(found)
    }

    pub(crate) async fn dial(&self, keepalive: &Keepalive, mode: Mode) -> Result<Socket, Fault> {
        let dialled = match self {
            Self::Unix(path) => UnixStream::connect(path).await.map(Socket::unix),
            Self::Tcp(address) => dial_tcp(*address, keepalive, mode).await,
        };
        dialled.map_err(Fault::Unreachable)
    }
}

async fn dial_tcp(address: SocketAddr, keepalive: &Keepalive, mode: Mode) -> io::Result<Socket> {
    let manner = match mode {
        Mode::Replication if address.ip().is_loopback() => Manner::Messages,
        Mode::Replication | Mode::Sql => Manner::Bulk,
    };
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    manner.prepare(&socket)?;
    let stream = socket.connect(address).await?;
    configure(&stream, keepalive)?;
    Ok(Socket::tcp(stream, manner))
}

fn configure(stream: &TcpStream, keepalive: &Keepalive) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = socket2::SockRef::from(stream);
    if keepalive.on {
        let settings = socket2::TcpKeepalive::new()
            .with_time(keepalive.idle)
            .with_interval(keepalive.interval)
            .with_retries(keepalive.count);
        socket.set_tcp_keepalive(&settings)?;
    }
    if keepalive.user_timeout.is_some() {
        socket.set_tcp_user_timeout(keepalive.user_timeout)?;
    }
    Ok(())
}

/// `future` within `limit`; zero is no limit.
pub(crate) async fn within<T>(
    limit: Duration,
    future: impl Future<Output = Result<T, Fault>>,
) -> Result<T, Fault> {
    if limit.is_zero() {
        return future.await;
    }
    tokio::time::timeout(limit, future)
        .await
        .unwrap_or_else(|_| Err(Fault::TimedOut(limit.as_secs())))
}

/// A stream to the server.
pub(crate) enum Transport {
    Plain(Socket),
    Tls(Box<TlsStream<Socket>>),
}

impl Transport {
    pub(crate) fn is_tls(&self) -> bool {
        matches!(self, Self::Tls(_))
    }

    /// Whether nobody on a network can read what is sent.
    pub(crate) fn is_private(&self) -> bool {
        !matches!(self, Self::Plain(socket) if !socket.is_unix())
    }

    /// Reads into the spare room of `buf`; 0 is the end.
    pub(crate) async fn read_vec(&mut self, buf: &mut Vec<u8>) -> io::Result<usize> {
        match self {
            Self::Plain(socket) => poll_fn(|cx| socket.poll_read_vec(cx, buf)).await,
            Self::Tls(stream) => stream.read_buf(buf).await,
        }
    }

    /// The certificate that the server showed.
    pub(crate) fn server_certificate(&self) -> Option<&[u8]> {
        match self {
            Self::Plain(_) => None,
            Self::Tls(stream) => stream.get_ref().1.peer_certificates()?.first().map(AsRef::as_ref),
        }
    }
}

impl fmt::Debug for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Plain(socket) if socket.is_unix() => "Unix",
            Self::Plain(_) => "Tcp",
            Self::Tls(_) => "Tls",
        })
    }
}

/// Hands a call to whichever stream is inside.
macro_rules! each {
    ($self:ident, $stream:ident => $call:expr) => {
        match $self.get_mut() {
            Transport::Plain(stream) => {
                let $stream = Pin::new(stream);
                $call
            }
            Transport::Tls(stream) => {
                let $stream = Pin::new(stream.as_mut());
                $call
            }
        }
    };
}

impl AsyncRead for Transport {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        each!(self, stream => stream.poll_read(cx, buf))
    }
}

impl AsyncWrite for Transport {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        each!(self, stream => stream.poll_write(cx, buf))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, stream => stream.poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, stream => stream.poll_shutdown(cx))
    }
}
