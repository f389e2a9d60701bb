//! A socket that is not woken for every piece of a burst.
//!
//! **Invariant:** whatever is read and written is what a plain socket would read and write; only *when* differs, by some
//! milliseconds, and only in a burst ([`Pace`]).
//!
//! A pause alone would not do: the runtime is woken by every piece that arrives on a socket that it watches, whether anybody waits
//! for it or not (measured: 115,000 switches of the client in a COPY of 1.2 GB, with and without a pause after each read). So the
//! socket is taken out of the runtime's watch during a burst, and put back as soon as a pause brings nothing.

use std::future::Future;
use std::io::{self, Read, Write};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::Sleep;

use super::pace::{Manner, Pace};

/// Bytes that are made ready at once for a reader whose buffer is not.
const READ_BYTES: usize = 64 * 1024;

/// A connection without TLS.
pub(crate) struct Socket {
    stream: Stream,
    manner: Manner,
    pace: Pace,
    pause: Option<Pin<Box<Sleep>>>,
    /// Somebody waits to write: the watch that will wake them must stay.
    write_waits: bool,
}

enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
    /// Not watched by the runtime.
    Bare(Bare),
    /// Lost while it changed hands.
    Lost,
}

/// A socket that does not block and that nobody watches.
enum Bare {
    Tcp(std::net::TcpStream),
    Unix(std::os::unix::net::UnixStream),
}

impl Socket {
    pub(super) fn tcp(stream: TcpStream, manner: Manner) -> Self {
        Self::new(Stream::Tcp(stream), manner)
    }

    pub(super) fn unix(stream: UnixStream) -> Self {
        Self::new(Stream::Unix(stream), Manner::Bulk)
    }

    fn new(stream: Stream, manner: Manner) -> Self {
        Self { stream, manner, pace: Pace::new(Instant::now()), pause: None, write_waits: false }
    }

    /// Whether it ends on the same machine, where nobody can listen.
    pub(crate) fn is_unix(&self) -> bool {
        matches!(self.stream, Stream::Unix(_) | Stream::Bare(Bare::Unix(_)))
    }

    /// Reads into the spare room of `buf`, as [`AsyncRead`] does; the room need not be made ready before.
    pub(crate) fn poll_read_vec(
        &mut self,
        cx: &mut Context<'_>,
        buf: &mut Vec<u8>,
    ) -> Poll<io::Result<usize>> {
        let room = buf.capacity() - buf.len();
        loop {
            let read = match &mut self.stream {
                Stream::Tcp(stream) => {
                    ready!(stream.poll_read_ready(cx))?;
                    stream.try_read_buf(buf)
                }
                Stream::Unix(stream) => {
                    ready!(stream.poll_read_ready(cx))?;
                    stream.try_read_buf(buf)
                }
                Stream::Bare(bare) => {
                    ready!(pause(&mut self.pause, cx));
                    bare.read_vec(buf)
                }
                Stream::Lost => return Poll::Ready(Err(lost())),
            };
            if let Some(done) = self.after_read(read, room) {
                return Poll::Ready(done);
            }
        }
    }

    /// What follows a read that was tried: `None` is to try again.
    fn after_read(&mut self, read: io::Result<usize>, room: usize) -> Option<io::Result<usize>> {
        match read {
            Ok(n) => Some(self.note(n, room).map(|()| n)),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => None,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.watch().err().map(Err),
            Err(error) => Some(Err(error)),
        }
    }

    /// Notes what was read: in a burst the next read waits, unless there is more that was not read.
    fn note(&mut self, bytes: usize, room: usize) -> io::Result<()> {
        if !self.pace.note(Instant::now(), bytes) || self.write_waits {
            return self.watch();
        }
        self.unwatch()?;
        if !self.manner.has_more(bytes, room) {
            self.pause = Some(Box::pin(tokio::time::sleep(self.manner.pause())));
        }
        Ok(())
    }

    fn unwatch(&mut self) -> io::Result<()> {
        self.stream = match std::mem::replace(&mut self.stream, Stream::Lost) {
            Stream::Tcp(stream) => Stream::Bare(Bare::Tcp(stream.into_std()?)),
            Stream::Unix(stream) => Stream::Bare(Bare::Unix(stream.into_std()?)),
            other => other,
        };
        Ok(())
    }

    fn watch(&mut self) -> io::Result<()> {
        self.pause = None;
        self.stream = match std::mem::replace(&mut self.stream, Stream::Lost) {
            Stream::Bare(Bare::Tcp(stream)) => Stream::Tcp(TcpStream::from_std(stream)?),
            Stream::Bare(Bare::Unix(stream)) => Stream::Unix(UnixStream::from_std(stream)?),
            other => other,
        };
        Ok(())
    }
}

impl Bare {
    fn read_vec(&self, buf: &mut Vec<u8>) -> io::Result<usize> {
        let room = rustix::buffer::spare_capacity(buf);
        let read = match self {
            Self::Tcp(stream) => rustix::io::read(stream, room),
            Self::Unix(stream) => rustix::io::read(stream, room),
        };
        Ok(read?)
    }

    fn read(&self, room: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => (&*stream).read(room),
            Self::Unix(stream) => (&*stream).read(room),
        }
    }

    fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => (&*stream).write(bytes),
            Self::Unix(stream) => (&*stream).write(bytes),
        }
    }
}

/// Waits for the end of the pause, if there is one.
fn pause(pause: &mut Option<Pin<Box<Sleep>>>, cx: &mut Context<'_>) -> Poll<()> {
    if let Some(sleep) = pause {
        ready!(sleep.as_mut().poll(cx));
        *pause = None;
    }
    Poll::Ready(())
}

fn lost() -> io::Error {
    io::Error::new(io::ErrorKind::NotConnected, "the socket was lost by an earlier error")
}

impl AsyncRead for Socket {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let socket = self.get_mut();
        loop {
            let before = buf.filled().len();
            let (read, room) = match &mut socket.stream {
                Stream::Tcp(stream) => {
                    let room = buf.remaining();
                    let read = ready!(Pin::new(stream).poll_read(cx, buf));
                    (read.map(|()| buf.filled().len() - before), room)
                }
                Stream::Unix(stream) => {
                    let room = buf.remaining();
                    let read = ready!(Pin::new(stream).poll_read(cx, buf));
                    (read.map(|()| buf.filled().len() - before), room)
                }
                Stream::Bare(bare) => {
                    ready!(pause(&mut socket.pause, cx));
                    let room = buf.remaining().min(READ_BYTES);
                    let read = bare.read(buf.initialize_unfilled_to(room));
                    if let Ok(n) = read {
                        buf.advance(n);
                    }
                    (read, room)
                }
                Stream::Lost => return Poll::Ready(Err(lost())),
            };
            if let Some(done) = socket.after_read(read, room) {
                return Poll::Ready(done.map(drop));
            }
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let socket = self.get_mut();
        if let Stream::Bare(bare) = &socket.stream {
            match bare.write(bytes) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                done => return Poll::Ready(done),
            }
            socket.watch()?;
        }
        let written = match &mut socket.stream {
            Stream::Tcp(stream) => Pin::new(stream).poll_write(cx, bytes),
            Stream::Unix(stream) => Pin::new(stream).poll_write(cx, bytes),
            Stream::Bare(_) | Stream::Lost => Poll::Ready(Err(lost())),
        };
        socket.write_waits = written.is_pending();
        written
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // Nothing is buffered here.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let socket = self.get_mut();
        socket.watch()?;
        match &mut socket.stream {
            Stream::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Stream::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
            Stream::Bare(_) | Stream::Lost => Poll::Ready(Err(lost())),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    impl Socket {
        fn is_watched(&self) -> bool {
            matches!(self.stream, Stream::Tcp(_) | Stream::Unix(_))
        }
    }

    /// A socket and the plain other end, over TCP and over a unix socket.
    async fn pairs() -> [(Socket, Box<dyn Peer>); 2] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let dialled = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (accepted, _) = listener.accept().await.unwrap();
        let (one, other) = UnixStream::pair().unwrap();
        let dialled = Socket::tcp(dialled, Manner::Bulk);
        [(dialled, Box::new(accepted)), (Socket::unix(one), Box::new(other))]
    }

    trait Peer: AsyncRead + AsyncWrite + Send + Unpin {}
    impl<T: AsyncRead + AsyncWrite + Send + Unpin> Peer for T {}

    fn pattern(len: usize) -> Vec<u8> {
        (0..len).map(|at| (at * 31 % 251) as u8).collect()
    }

    /// Reads `len` bytes in one of the two ways.
    async fn read(socket: &mut Socket, len: usize, into_vec: bool) -> Vec<u8> {
        let mut all = Vec::new();
        while all.len() < len {
            let mut part = Vec::with_capacity(200_000);
            let n = if into_vec {
                std::future::poll_fn(|cx| socket.poll_read_vec(cx, &mut part)).await.unwrap()
            } else {
                socket.read_buf(&mut part).await.unwrap()
            };
            assert_ne!(n, 0, "it ended after {} bytes", all.len());
            assert_eq!(n, part.len());
            all.extend(part);
        }
        all
    }

    #[tokio::test]
    async fn a_burst_arrives_unchanged_and_without_a_watch() {
        for into_vec in [true, false] {
            for (mut socket, mut peer) in pairs().await {
                let sent = pattern(8_000_000);
                let burst = async {
                    for piece in sent.chunks(8192) {
                        peer.write_all(piece).await.unwrap();
                    }
                };
                let (got, ()) = tokio::join!(read(&mut socket, sent.len(), into_vec), burst);
                assert!(got == sent);
                assert!(!socket.is_watched(), "a burst of 8 MB");
                // What comes late is waited for with the watch on, and the end is seen.
                let late = async {
                    tokio::task::yield_now().await;
                    peer.write_all(b"late").await.unwrap();
                    drop(peer);
                };
                let (got, ()) = tokio::join!(read(&mut socket, 4, into_vec), late);
                assert_eq!(got, b"late");
                assert_eq!(socket.read(&mut [0]).await.unwrap(), 0);
            }
        }
    }

    /// The socket of a stream on this machine, and a sender of messages.
    async fn stream() -> (Socket, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        Manner::Messages.prepare(&socket).unwrap();
        let dialled = socket.connect(listener.local_addr().unwrap()).await.unwrap();
        let (accepted, _) = listener.accept().await.unwrap();
        accepted.set_nodelay(true).unwrap();
        (Socket::tcp(dialled, Manner::Messages), accepted)
    }

    /// One that is larger than the open window goes by a timer: a backlog of 460 MB came at 75 kB/s.
    #[tokio::test]
    async fn segments_of_messages_are_smaller_than_any_window() {
        let (mut socket, mut peer) = stream().await;
        // A window that was wide open once is what segments are made by.
        for _ in 0..50 {
            let mut got = vec![0; 60_000];
            let (sent, read) =
                tokio::join!(peer.write_all(&[7; 60_000]), socket.read_exact(&mut got));
            sent.unwrap();
            read.unwrap();
        }
        let segment = socket2::SockRef::from(&peer).tcp_mss().unwrap();
        assert!(segment <= 8192, "{segment} bytes");
    }

    #[tokio::test]
    async fn messages_wait_at_their_sender_and_not_with_us() {
        let (mut socket, mut peer) = stream().await;
        // In a backlog: a sender has room for more the more it has sent (the kernel decides: 0.8 to 2.4 MB were seen).
        let backlog = async {
            for _ in 0..100_000 {
                peer.write_all(&[7; 100]).await.unwrap();
            }
        };
        tokio::join!(read(&mut socket, 10_000_000, true), backlog);
        let mut sent = 0;
        while let Ok(n) = peer.try_write(&[7; 100]) {
            sent += n;
        }
        socket.watch().unwrap();
        let Stream::Tcp(ours) = &socket.stream else { panic!("it is watched") };
        let here = rustix::io::ioctl_fionread(ours).unwrap();
        assert!(here <= 64 * 1024 && sent > 500_000, "{here} of {sent} bytes");
    }

    /// Neither the pauses nor the window stop it: a sender whose segments do not fit sends five of them a second.
    #[tokio::test]
    async fn what_waits_at_its_sender_comes_at_once() {
        for into_vec in [true, false] {
            let (mut socket, mut peer) = stream().await;
            let sent = pattern(16_000_000);
            let (messages, long) = sent.split_at(4_000_000);
            let burst = async {
                for message in messages.chunks(100) {
                    peer.write_all(message).await.unwrap();
                }
                peer.write_all(long).await.unwrap();
            };
            let (got, ()) = tokio::join!(read(&mut socket, sent.len(), into_vec), burst);
            assert!(got == sent);
        }
    }

    #[tokio::test]
    async fn light_load_keeps_its_watch() {
        for (mut socket, mut peer) in pairs().await {
            for _ in 0..20 {
                peer.write_all(b"a message").await.unwrap();
                read(&mut socket, 9, true).await;
                assert!(socket.is_watched());
            }
        }
    }

    #[tokio::test]
    async fn an_idle_socket_gets_its_watch_back() {
        for (mut socket, mut peer) in pairs().await {
            socket.unwatch().unwrap();
            let mut part = Vec::with_capacity(100);
            let mut read =
                std::pin::pin!(std::future::poll_fn(|cx| socket.poll_read_vec(cx, &mut part)));
            assert!(
                std::future::poll_fn(|cx| Poll::Ready(read.as_mut().poll(cx))).await.is_pending()
            );
            peer.write_all(b"x").await.unwrap();
            assert_eq!(read.await.unwrap(), 1);
            assert!(socket.is_watched());
        }
    }

    /// The watch is what wakes them.
    #[tokio::test]
    async fn who_waits_to_write_keeps_the_watch_in_a_burst() {
        for (mut socket, mut peer) in pairs().await {
            let full = std::future::poll_fn(|cx| {
                let mut write = || Pin::new(&mut socket).poll_write(cx, &[0; 100_000]);
                while let Poll::Ready(written) = write() {
                    written.unwrap();
                }
                Poll::Ready(())
            });
            full.await;
            let sent = pattern(2_000_000);
            let (got, written) =
                tokio::join!(read(&mut socket, sent.len(), true), peer.write_all(&sent));
            written.unwrap();
            assert!(got == sent && socket.is_watched());
        }
    }
}
