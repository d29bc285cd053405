//! The default transport where the agent speaks plain HTTP, over TCP or a unix socket: hyper.
//!
//! A client of one agent needs neither the web's URLs nor redirects, cookies or proxies, and an
//! agent on the same host is asked without TLS: here a call costs two thirds of what it costs by
//! way of reqwest, and nothing of TLS is loaded.
//!
//! A request is sent again only if a kept connection turned out to be closed before the first byte
//! of it was written.

use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use ::http::{Response, Uri};
use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy::connect::{Connected, Connection, HttpConnector};
use hyper_util::client::legacy::{self, Client};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tower_service::Service;

use super::{BoxError, Lane, Request, Settings};
use crate::error::{Error, ErrorKind, Result};

/// One pool of connections per lane, so that a heartbeat never waits for, or inherits the fate of,
/// a connection that a blocking query holds.
#[derive(Clone, Debug)]
pub(crate) struct Plain(Arc<Lanes>);

#[derive(Debug)]
struct Lanes {
    call: Pool,
    poll: Pool,
    beat: Pool,
}

type Pool = Client<Connector, Full<Bytes>>;

impl Plain {
    pub(crate) fn new(settings: &Settings) -> Self {
        let connector = Connector::new(settings);
        Self(Arc::new(Lanes {
            call: pool(&connector),
            poll: pool(&connector),
            beat: pool(&connector),
        }))
    }
}

fn pool(connector: &Connector) -> Pool {
    Client::builder(TokioExecutor::new())
        .timer(TokioTimer::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(Duration::from_secs(90))
        .pool_max_idle_per_host(super::MOST_IDLE)
        .http1_max_buf_size(READ_AT_ONCE)
        .build(connector.clone())
}

/// The most that is read from a connection at once, and the most a head may take.
///
/// A long answer is decoded while it comes; larger pieces of it cost memory and save nothing.
const READ_AT_ONCE: usize = 32 << 10;

impl Service<Request> for Plain {
    type Response = Response<Incoming>;
    type Error = Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request) -> Self::Future {
        let lanes = &*self.0;
        let pool = match request.extensions().get() {
            Some(Lane::Poll) => &lanes.poll,
            Some(Lane::Beat) => &lanes.beat,
            Some(Lane::Call) | None => &lanes.call,
        };
        let sending = pool.request(request.map(Full::new));
        Box::pin(async move { sending.await.map_err(failed) })
    }
}

fn failed(err: legacy::Error) -> Error {
    let kind = if err.is_connect() {
        ErrorKind::Connect
    } else {
        ErrorKind::Transport
    };
    Error::new(kind).caused_by(err)
}

/// Opens connections to the one agent of a client.
#[derive(Clone, Debug)]
struct Connector(Arc<Way>);

#[derive(Debug)]
struct Way {
    to: Place,
    /// How long opening a connection may take.
    timeout: Duration,
}

#[derive(Debug)]
enum Place {
    /// Where a request's URI says, which is always the agent.
    Tcp(HttpConnector),
    Socket(PathBuf),
}

impl Connector {
    fn new(settings: &Settings) -> Self {
        let to = match &settings.unix_socket {
            Some(path) => Place::Socket(path.clone()),
            None => Place::Tcp(tcp()),
        };
        Self(Arc::new(Way {
            to,
            timeout: settings.connect_timeout,
        }))
    }
}

/// A peer that is gone without a word is noticed within a minute.
fn tcp() -> HttpConnector {
    const SILENCE: Duration = Duration::from_secs(15);
    let mut tcp = HttpConnector::new();
    tcp.set_nodelay(true);
    tcp.set_keepalive(Some(SILENCE));
    tcp.set_keepalive_interval(Some(SILENCE));
    tcp.set_keepalive_retries(Some(3));
    #[cfg(any(target_os = "android", target_os = "fuchsia", target_os = "linux"))]
    tcp.set_tcp_user_timeout(Some(2 * SILENCE));
    tcp
}

impl Way {
    async fn open(&self, uri: Uri) -> Result<Stream, BoxError> {
        match &self.to {
            Place::Tcp(tcp) => Ok(Stream(Box::new(tcp.clone().call(uri).await?))),
            Place::Socket(path) => unix(path).await,
        }
    }
}

impl Service<Uri> for Connector {
    type Response = Stream;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Stream, BoxError>> + Send>>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let way = Arc::clone(&self.0);
        Box::pin(async move {
            match tokio::time::timeout(way.timeout, way.open(uri)).await {
                Ok(opened) => opened,
                Err(_) => Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    format!("no connection within {:?}", way.timeout),
                )
                .into()),
            }
        })
    }
}

#[cfg(unix)]
async fn unix(path: &Path) -> Result<Stream, BoxError> {
    let stream = tokio::net::UnixStream::connect(path).await?;
    Ok(Stream(Box::new(TokioIo::new(stream))))
}

#[cfg(not(unix))]
async fn unix(path: &Path) -> Result<Stream, BoxError> {
    let text = format!("unix://{}: this system has no unix sockets", path.display());
    Err(io::Error::new(io::ErrorKind::Unsupported, text).into())
}

/// A connection of any sort.
struct Stream(Box<dyn Io>);

trait Io: Read + Write + Send + Unpin {}

impl<T: Read + Write + Send + Unpin> Io for T {}

impl Connection for Stream {
    // Nothing is told of a connection: what is told would be copied into every answer.
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl Read for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, into)
    }
}

impl Write for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write_vectored(cx, pieces)
    }
}
