//! A socket, in plain text or under TLS.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::frames::Frames;
use super::slots::Slot;
#[cfg(feature = "tls")]
use super::tls::TlsStream;

/// What a connection reads from and writes to.
pub(super) struct Stream {
    /// Closed before the slot is given back.
    io: Io,
    /// Something has been read.
    heard: bool,
    /// Who follows what is read, where HTTP/2 is spoken.
    frames: Option<Frames>,
    /// Its part of what may be open to the endpoint.
    _slot: Option<Slot>,
}

/// What is under a [`Stream`].
pub(super) enum Io {
    Plain(TcpStream),
    #[cfg(feature = "tls")]
    Tls(Box<TlsStream>),
}

impl Stream {
    pub(super) fn new(io: Io, slot: Option<Slot>) -> Self {
        Self {
            io,
            heard: false,
            frames: None,
            _slot: slot,
        }
    }

    /// Lets these follow what is read.
    pub(super) fn followed_by(mut self, frames: Frames) -> Self {
        self.frames = Some(frames);
        self
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        ready!(match &mut this.io {
            Io::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            #[cfg(feature = "tls")]
            Io::Tls(stream) => stream.poll_read(cx, buf),
        })?;
        let is_first = !std::mem::replace(&mut this.heard, true);
        let read = buf.filled().get(before..).unwrap_or_default();
        if is_first && matches!(this.io, Io::Plain(_)) && is_tls_alert(read) {
            return Poll::Ready(Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "the endpoint speaks TLS, and this channel plain text",
            )));
        }
        if let Some(frames) = &mut this.frames {
            frames.pass(read);
        }
        Poll::Ready(Ok(()))
    }
}

/// What a server of TLS says to somebody who does not speak it: a record of the type alert (21)
/// and a version of TLS (RFC 8446, 5.1).
///
/// No response of HTTP/1.1 begins so, and as the head of a frame of HTTP/2 it would be longer than
/// any that a client has agreed to.
fn is_tls_alert(first: &[u8]) -> bool {
    matches!(first, [21, 3, 0..=4, ..])
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().io {
            Io::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            #[cfg(feature = "tls")]
            Io::Tls(stream) => Pin::new(stream.inner()).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().io {
            Io::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            #[cfg(feature = "tls")]
            Io::Tls(stream) => Pin::new(stream.inner()).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        // Both are: rustls takes several slices into one record.
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().io {
            Io::Plain(stream) => Pin::new(stream).poll_flush(cx),
            #[cfg(feature = "tls")]
            Io::Tls(stream) => Pin::new(stream.inner()).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().io {
            Io::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            // The goodbye of TLS is written if it can be at once: a peer that reads nothing would
            // else keep the socket open for as long as it likes.
            #[cfg(feature = "tls")]
            Io::Tls(stream) => match Pin::new(stream.inner()).poll_shutdown(cx) {
                Poll::Pending => Poll::Ready(Ok(())),
                done @ Poll::Ready(_) => done,
            },
        }
    }
}
