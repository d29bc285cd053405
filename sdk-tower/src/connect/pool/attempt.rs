//! An attempt to connect, from the socket to a connection that is ready for requests.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout};

use crate::connect::dial;
use crate::connect::http1::Http1;
use crate::connect::http2::Connection;
use crate::connect::slots::Slot;
use crate::connect::stream::{Io, Stream};
use crate::connect::{Settings, Wire};
use crate::error::BoxError;

use super::Shared;
use super::waiting::{Refused, RuntimeEnded};

/// An attempt that is under way; whatever ends it, those who wait are told.
pub(super) struct Attempt {
    pool: Option<Arc<Shared>>,
    /// Which of the pool's attempts it is.
    number: u64,
    /// Its part of what may be open, until a stream has it.
    slot: Option<Slot>,
    /// Who asked for it, if no request did.
    tell: Option<oneshot::Sender<Result<(), Refused>>>,
}

/// What came of it.
pub(super) enum Opened {
    Http1(Box<Http1>),
    Http2(Connection),
}

impl Attempt {
    /// One that the state of the pool counts already.
    pub(super) fn of(
        pool: &Arc<Shared>,
        number: u64,
        tell: Option<oneshot::Sender<Result<(), Refused>>>,
    ) -> Self {
        Self {
            pool: Some(Arc::clone(pool)),
            number,
            slot: Some(pool.slot()),
            tell,
        }
    }

    pub(super) async fn run(mut self) {
        let Some(pool) = self.pool.clone() else {
            return;
        };
        let opened = open(&pool, &mut self.slot).await;
        self.end(opened);
    }

    fn end(&mut self, opened: Result<Opened, BoxError>) {
        let Some(pool) = self.pool.take() else {
            return;
        };
        let opened = opened.map_err(Refused::because);
        let told = opened.as_ref().map(|_| ()).map_err(Clone::clone);
        pool.opened(self.number, opened);
        if let Some(tell) = self.tell.take() {
            tell.send(told).ok();
        }
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        self.end(Err(RuntimeEnded.into()));
    }
}

async fn open(pool: &Arc<Shared>, slot: &mut Option<Slot>) -> Result<Opened, BoxError> {
    let limit = pool.settings.connect_timeout;
    let began = Instant::now();
    let stream = match timeout(limit, dial(&pool.target)).await {
        Ok(stream) => stream?,
        Err(_) => return Err(late("no connection", limit)),
    };
    let left = limit.saturating_sub(began.elapsed());
    match timeout(left, begin(pool, stream, slot)).await {
        Ok(opened) => opened,
        Err(_) => Err(late("a connection, but no TLS handshake", limit)),
    }
}

fn late(what: &str, limit: Duration) -> BoxError {
    io::Error::new(io::ErrorKind::TimedOut, format!("{what} within {limit:?}")).into()
}

/// Makes a connection of a socket.
async fn begin(
    pool: &Arc<Shared>,
    socket: TcpStream,
    slot: &mut Option<Slot>,
) -> Result<Opened, BoxError> {
    let (io, wire) = dress(pool, socket).await?;
    let runtime = &pool.settings.runtime;
    let stream = Stream::new(io, slot.take());
    Ok(match wire {
        Wire::Http1 => Opened::Http1(Http1::start(stream, runtime, Arc::downgrade(pool)).await?),
        Wire::Http2 => Opened::Http2(Connection::start(stream, runtime).await?),
    })
}

async fn dress(pool: &Shared, socket: TcpStream) -> Result<(Io, Wire), BoxError> {
    #[cfg(feature = "tls")]
    if let Some(tls) = &pool.settings.tls {
        let at = pool.residence().clone();
        let (stream, wire) = tls.dress(socket, &pool.target, &at).await?;
        return Ok((Io::Tls(Box::new(stream)), wire));
    }
    Ok((Io::Plain(socket), plain(&pool.settings)))
}

/// What is spoken in plain text, where nothing is agreed on.
fn plain(settings: &Settings) -> Wire {
    settings.wire().unwrap_or(Wire::Http1)
}
