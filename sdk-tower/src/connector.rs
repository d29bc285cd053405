//! A connector for hyper's clients that knows services by name.
//!
//! For a program that has a hyper client already, with its pool and its TLS, and wants it to find
//! `http://web/` in Consul. With hyper-util's client:
//!
//! ```no_run
//! # #[cfg(feature = "hyper-util-01")]
//! # async fn example(client: lictor::Client) -> Result<(), Box<dyn std::error::Error>> {
//! use http_body_util::Empty;
//! use hyper::body::Bytes;
//! use hyper_util::client::legacy::Client;
//! use hyper_util::rt::TokioExecutor;
//! use lictor_tower::connector::Connector;
//!
//! let connector = Connector::new(client)?;
//! let http: Client<_, Empty<Bytes>> = Client::builder(TokioExecutor::new()).build(connector);
//! let response = http.get("http://web/hello".parse()?).await?;
//! # drop(response);
//! # Ok(())
//! # }
//! ```
//!
//! # What it does not do
//!
//! It balances connections and not requests: the client keeps a connection in a pool under the name
//! of the host and sends as many requests on it as it likes, all of them over HTTP/2. A new instance
//! gets nothing until a connection is opened, and a slow one keeps what it has. A
//! [`Channel`](crate::channel::Channel), or a [`Router`](crate::router::Router) over several
//! services, balances each request.

use std::fmt;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::Uri;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tower_service::Service;

use crate::endpoint::Target;
use crate::error::{Error, ErrorKind, Result};
use crate::names::{Directory, Services};
use crate::tcp::{self, Dialer, InUse};

/// A [`Service`] of URIs: it opens the connection on which a request to that URI goes.
///
/// A host that names a service, as [`Services`] tells, is connected to one of its instances, at the
/// port of the instance: where the fewest connections of this connector are open, and if it refuses
/// to another one. Everything else is connected to as it stands: other hosts, IP addresses, and any
/// host with a port in the URI; see [`others`](Builder::others). The scheme matters only for the port
/// of those: TLS is put on top by a connector around this one.
///
/// A service is followed from its first connection on, by a watch that all users of equal watches of
/// one client share. A clone is cheap and shares everything. It runs one task that forgets services
/// nobody asks for and one for each service; they end when the last clone, and the last connection to
/// an instance, are dropped.
#[derive(Clone, Debug)]
pub struct Connector {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    dialers: Directory<Dialer>,
    others: Others,
    connect_timeout: Duration,
}

/// Builds a [`Connector`].
#[derive(Clone, Debug)]
#[must_use = "a builder does nothing until it is built"]
pub struct Builder {
    services: Services,
    others: Others,
    first_resolution: Duration,
    connect_timeout: Duration,
}

/// What is done with a URI that names no service.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
#[non_exhaustive]
pub enum Others {
    /// It is connected to as any client does, its name resolved by the system.
    #[default]
    Connect,
    /// It is an error: for a program that is to reach services and nothing else.
    Refuse,
}

impl Connector {
    /// A connector with all defaults.
    ///
    /// # Errors
    ///
    /// Those of [`Builder::build`].
    pub fn new(services: impl Into<Services>) -> Result<Self> {
        Self::builder(services).build()
    }

    /// Begins a connector to these services; a [`lictor::Client`] stands for all that it finds.
    pub fn builder(services: impl Into<Services>) -> Builder {
        Builder {
            services: services.into(),
            others: Others::default(),
            first_resolution: Duration::from_secs(10),
            connect_timeout: Duration::from_secs(1),
        }
    }

    /// How many names of services are known at the moment.
    #[must_use]
    pub fn services(&self) -> usize {
        self.shared.dialers.len()
    }
}

impl Builder {
    /// Sets what is done with a URI that names no service.
    ///
    /// Default [`Others::Connect`].
    pub fn others(mut self, others: Others) -> Self {
        self.others = others;
        self
    }

    /// Sets how long the first connections to a service wait for its instances to be known.
    ///
    /// Zero means not to wait. Default 10 s, see
    /// [`tcp::Builder::first_resolution`](crate::tcp::Builder::first_resolution).
    pub fn first_resolution(mut self, limit: Duration) -> Self {
        self.first_resolution = limit;
        self
    }

    /// Sets the limit for opening one connection, from the DNS query on if there is one.
    ///
    /// Above zero. Default 1 s. A client's own limit for the whole should leave room for several.
    pub fn connect_timeout(mut self, limit: Duration) -> Self {
        self.connect_timeout = limit;
        self
    }

    /// Checks the options; nothing is asked or connected yet.
    ///
    /// # Errors
    ///
    /// [`NoRuntime`](ErrorKind::NoRuntime) outside of a Tokio runtime,
    /// [`Invalid`](ErrorKind::Invalid) for an option out of its range.
    pub fn build(self) -> Result<Connector> {
        let (first_resolution, connect_timeout) = (self.first_resolution, self.connect_timeout);
        if connect_timeout.is_zero() {
            return Err(Error::new(ErrorKind::Invalid)
                .context("connect_timeout is zero; give a time above"));
        }
        let dialers = Directory::new(self.services, move |client, wanted| {
            tcp::Builder::wanted(client, wanted)
                .first_resolution(first_resolution)
                .connect_timeout(connect_timeout)
                .build()
        })?;
        Ok(Connector {
            shared: Arc::new(Shared {
                dialers,
                others: self.others,
                connect_timeout,
            }),
        })
    }
}

impl Shared {
    async fn open(&self, uri: Uri) -> Result<Connection> {
        let Some(host) = uri.host().filter(|host| !host.is_empty()) else {
            return Err(unfit(format!(
                "the URI {uri} names no host; write http://web/path"
            )));
        };
        let port = uri.port_u16();
        if port.is_none()
            && let Some(dialer) = self.dialers.find(host)?
        {
            let (stream, usage) = dialer.connect().await?.into_parts();
            return Ok(Connection::new(stream, Some(usage)));
        }
        if self.others == Others::Refuse {
            return Err(unfit(format!(
                "{uri} names no service, and this connector connects to nothing else"
            )));
        }
        let port = match (port, uri.scheme_str()) {
            (Some(port), _) => port,
            (None, Some("http")) => 80,
            (None, Some("https")) => 443,
            (None, _) => {
                return Err(unfit(format!(
                    "{uri} says neither a port nor http or https"
                )));
            }
        };
        if port == 0 {
            return Err(unfit(format!("nobody listens on the port 0 of {uri}")));
        }
        let limit = self.connect_timeout;
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        let connected = match timeout(limit, TcpStream::connect((bare, port))).await {
            Ok(connected) => connected,
            Err(_) => Err(io::Error::new(
                io::ErrorKind::TimedOut,
                format!("no connection within {limit:?}"),
            )),
        };
        match connected.and_then(|stream| stream.set_nodelay(true).map(|()| stream)) {
            Ok(stream) => Ok(Connection::new(stream, None)),
            Err(error) => Err(Error::new(ErrorKind::Connect)
                .context(format!("{host}:{port}"))
                .because(error)),
        }
    }
}

fn unfit(why: String) -> Error {
    Error::new(ErrorKind::InvalidRequest).context(why)
}

impl Service<Uri> for Connector {
    type Response = Connection;
    type Error = Error;
    type Future = Connecting;

    /// Always ready; a URI that cannot be connected to fails when it is.
    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Connecting {
        let shared = Arc::clone(&self.shared);
        Connecting(Box::pin(async move { shared.open(uri).await }))
    }
}

/// The connection, once it is open.
///
/// # Cancel safety
///
/// Dropping it gives up what is being opened; nothing is lost.
#[must_use = "futures do nothing unless polled"]
pub struct Connecting(Pin<Box<dyn Future<Output = Result<Connection>> + Send>>);

impl Future for Connecting {
    type Output = Result<Connection>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.get_mut().0.as_mut().poll(cx)
    }
}

impl fmt::Debug for Connecting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Connecting")
    }
}

/// An open connection, for hyper.
///
/// It implements hyper's [`Read`] and [`Write`], and with the feature `hyper-util-01` the trait that
/// hyper-util's client asks for. One to an instance counts as its load until it is dropped.
#[derive(Debug)]
pub struct Connection {
    io: TokioIo<TcpStream>,
    usage: Option<InUse>,
}

impl Connection {
    fn new(stream: TcpStream, usage: Option<InUse>) -> Self {
        Self {
            io: TokioIo::new(stream),
            usage,
        }
    }

    /// The instance that it leads to; none if the URI named no service.
    #[must_use]
    pub fn target(&self) -> Option<&Target> {
        self.usage.as_ref().map(InUse::target)
    }
}

impl Read for Connection {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_read(cx, buf)
    }
}

impl Write for Connection {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_shutdown(cx)
    }
}

#[cfg(feature = "hyper-util-01")]
impl hyper_util::client::legacy::connect::Connection for Connection {
    fn connected(&self) -> hyper_util::client::legacy::connect::Connected {
        hyper_util::client::legacy::connect::Connection::connected(self.io.inner())
    }
}
