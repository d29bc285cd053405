//! A connection that counts as load of its endpoint, and what its user has to say of it.

use std::fmt;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::balance::InFlight;
use crate::endpoint::Target;
use crate::error::Result;
use crate::rotation::Round;

use super::{Dialer, Line};

/// A TCP connection to one endpoint of a service.
///
/// It counts as load of the endpoint until it is dropped, and closes then. Nagle's algorithm is off.
#[derive(Debug)]
pub struct Connection {
    stream: TcpStream,
    usage: InUse,
}

/// The part of a connection that counts: for those who hand the stream to somebody else.
///
/// Made by [`Connection::into_parts`]. Keep it as long as the stream is open.
pub struct InUse {
    dialer: Dialer,
    flight: InFlight<Line>,
    /// When it was opened, if the endpoint has yet to show that it is good again.
    on_trial: Option<Instant>,
}

/// How long a connection is used before it speaks for an endpoint that was found bad.
///
/// Longer than a handshake takes, in which most turn out that are bad.
const TRIAL: Duration = Duration::from_secs(1);

impl Connection {
    pub(super) fn new(stream: TcpStream, dialer: Dialer, flight: InFlight<Line>) -> Self {
        let on_trial = flight.backend().is_distrusted().then(Instant::now);
        if on_trial.is_none() {
            flight.connected();
        }
        Self {
            stream,
            usage: InUse {
                dialer,
                flight,
                on_trial,
            },
        }
    }

    /// The endpoint that it is connected to.
    #[must_use]
    pub fn target(&self) -> &Target {
        self.usage.target()
    }

    /// Closes this connection, which is of no use, and opens one to another endpoint.
    ///
    /// The endpoint of this one is left alone for a while: 100 ms, doubled each time that it is found
    /// bad again, up to 5 s. That it accepts connections does not end that, for a database that is
    /// starting up or has become a replica accepts them as well; what ends it is a connection that
    /// is read from for a second, or dropped without this call.
    ///
    /// # Errors
    ///
    /// Those of [`Dialer::connect`]; [`Connect`](crate::ErrorKind::Connect) if there is no other
    /// endpoint.
    ///
    /// # Cancel safety
    ///
    /// Before it is polled nothing has been said, and this connection closes like any other. From the
    /// first poll on the endpoint is left alone and this connection closed; another one that is being
    /// opened is given up.
    pub async fn next(self) -> Result<Self> {
        let Self { stream, usage } = self;
        drop(stream);
        usage.next().await
    }

    /// The stream alone, and the part that counts.
    ///
    /// For a client library that takes a [`TcpStream`] and nothing else.
    #[must_use]
    pub fn into_parts(self) -> (TcpStream, InUse) {
        (self.stream, self.usage)
    }

    /// The stream, for its options and addresses.
    #[must_use]
    pub fn stream(&self) -> &TcpStream {
        &self.stream
    }
}

impl InUse {
    /// The endpoint that the connection is to.
    #[must_use]
    pub fn target(&self) -> &Target {
        self.flight.target()
    }

    /// Says that the connection is of no use, and opens one to another endpoint.
    ///
    /// As [`Connection::next`], but that closing the stream is left to whoever has it.
    ///
    /// # Errors
    ///
    /// Those of [`Connection::next`].
    ///
    /// # Cancel safety
    ///
    /// Before it is polled nothing has been said. From the first poll on the endpoint is left alone;
    /// another connection that is being opened is given up.
    pub async fn next(mut self) -> Result<Connection> {
        let dialer = self.dialer.clone();
        let mut round = Round::new();
        self.on_trial = None;
        self.flight.backend().distrust(true);
        round.refused(
            &dialer.rotation,
            &self.flight,
            "its user found it to be of no use".into(),
        );
        drop(self);
        dialer.dial(round).await
    }

    /// The endpoint has shown that it is good.
    fn acquit(&mut self) {
        if self.on_trial.take().is_some() {
            self.flight.backend().distrust(false);
            self.flight.connected();
        }
    }

    fn has_read(&mut self) {
        if self.on_trial.is_some_and(|since| since.elapsed() >= TRIAL) {
            self.acquit();
        }
    }
}

impl Drop for InUse {
    fn drop(&mut self) {
        self.acquit();
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        ready!(Pin::new(&mut this.stream).poll_read(cx, buf))?;
        if buf.filled().len() > before {
            this.usage.has_read();
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

impl fmt::Debug for InUse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InUse")
            .field("target", self.target())
            .finish_non_exhaustive()
    }
}
