//! Raw TCP connections to a service: for Postgres, Redis and whatever else speaks a protocol of its
//! own.
//!
//! A [`Dialer`] gives [`Connection`]s to the instances of a service. It balances connections: one
//! goes where the fewest of this dialer are open, by weight. What is said on it is not looked at, so
//! the caller tells when an instance is of no use: [`Connection::next`] gives another one.
//!
//! ```no_run
//! use lictor_tower::tcp::Dialer;
//! use tokio::io::{AsyncReadExt, AsyncWriteExt};
//!
//! # async fn example(client: lictor::Client) -> Result<(), Box<dyn std::error::Error>> {
//! let dialer = Dialer::new(&client, "redis")?;
//! let mut connection = dialer.connect().await?;
//! let mut pause = std::time::Duration::from_millis(10);
//! let answer = loop {
//!     let mut answer = [0; 7];
//!     connection.write_all(b"PING\r\n").await?;
//!     connection.read_exact(&mut answer).await?;
//!     if answer == *b"+PONG\r\n" {
//!         break answer;
//!     }
//!     // "-LOADING", "-MASTERDOWN": this instance is of no use now. Where all are, `next` goes round
//!     // among them without a pause of its own.
//!     tokio::time::sleep(pause).await;
//!     pause = (pause * 2).min(std::time::Duration::from_secs(1));
//!     connection = connection.next().await?;
//! };
//! # drop(answer);
//! # Ok(())
//! # }
//! ```
//!
//! # TLS
//!
//! It is put on top: any TLS library for tokio takes a [`Connection`] as its stream, under the name
//! that the certificates of the service are for. Many databases begin in plain text and change over
//! within their protocol, which only their clients know how to do. Whoever takes a connection apart
//! first ([`Connection::into_parts`]) can go on to another instance where the handshake fails
//! ([`InUse::next`]).
//!
//! # Tokio's types
//!
//! A connection is a [`TcpStream`] and implements tokio's [`AsyncRead`](tokio::io::AsyncRead) and
//! [`AsyncWrite`](tokio::io::AsyncWrite): that is what clients of databases take, and tokio 1 is
//! promised to stay compatible.

mod builder;
mod connection;

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use lictor::Client;
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::balance::{Backend, InFlight};
use crate::channel::{EndpointStatus, Snapshot};
use crate::connect::dial;
use crate::error::{BoxError, Result};
use crate::rotation::{Rotation, Round};
use crate::telemetry::{Counts, Fate};

pub use builder::Builder;
pub use connection::{Connection, InUse};

/// Opens connections to the instances of a service.
///
/// A clone is cheap and shares the endpoints and the counts. A dialer runs one task, which follows
/// the source and ends when the last clone and the last [`Connection`] are dropped. It keeps no
/// connections: each [`connect`](Self::connect) opens one, and pooling is the caller's.
///
/// An endpoint that refuses is left alone for 100 ms, growing to 5 s; if all have refused of late,
/// they are tried after all.
#[derive(Clone)]
pub struct Dialer {
    rotation: Arc<Rotation<Line>>,
}

/// What is kept for an endpoint.
#[derive(Debug, Default)]
pub(crate) struct Line {
    /// Somebody found a connection to it bad: that it accepts another one proves nothing.
    distrusted: AtomicBool,
    counts: Counts,
}

impl Backend for Line {
    fn retire(&self) {}

    fn age(&self) {}

    fn counts(&self) -> Option<&Counts> {
        Some(&self.counts)
    }
}

impl Line {
    fn is_distrusted(&self) -> bool {
        self.distrusted.load(Ordering::Relaxed)
    }

    fn distrust(&self, yes: bool) {
        self.distrusted.store(yes, Ordering::Relaxed);
    }
}

impl Dialer {
    /// A dialer with all defaults to the instances of a service, as its health is known to Consul.
    ///
    /// # Errors
    ///
    /// Those of [`Builder::build`].
    pub fn new(client: &Client, service: impl Into<String>) -> Result<Self> {
        Builder::service(client, service).build()
    }

    /// Opens a connection to the endpoint that has the fewest for its weight.
    ///
    /// It waits for the first resolution, up to [`first_resolution`](Builder::first_resolution) after
    /// the dialer was built. An endpoint that refuses, or does not accept within
    /// [`connect_timeout`](Builder::connect_timeout), is passed over for the next one.
    ///
    /// # Errors
    ///
    /// [`Connect`](crate::ErrorKind::Connect) if no endpoint accepts,
    /// [`NeverResolved`](crate::ErrorKind::NeverResolved) or
    /// [`NoEndpoints`](crate::ErrorKind::NoEndpoints) if there is nobody.
    ///
    /// # Cancel safety
    ///
    /// A connection that is being opened is given up; nothing is lost.
    pub async fn connect(&self) -> Result<Connection> {
        self.dial(Round::new()).await
    }

    /// Waits until there is an endpoint to connect to.
    ///
    /// # Errors
    ///
    /// After [`first_resolution`](Builder::first_resolution) from this call:
    /// [`NeverResolved`](crate::ErrorKind::NeverResolved) if the source has not answered,
    /// [`NoEndpoints`](crate::ErrorKind::NoEndpoints) if it says that there is nobody.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost.
    pub async fn wait_ready(&self) -> Result<()> {
        self.rotation.wait_ready().await
    }

    /// The endpoints in rotation, the preferred ones first; `in_flight` counts open connections.
    #[must_use]
    pub fn endpoints(&self) -> Vec<EndpointStatus> {
        self.rotation.statuses()
    }

    /// The service as this dialer sees it now; `in_flight` counts open connections.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        self.rotation.told()
    }

    async fn dial(&self, mut round: Round<Line>) -> Result<Connection> {
        loop {
            let flight = round.found(&self.rotation).await?;
            match self.open(&flight).await {
                Ok(stream) => {
                    let telemetry = self.rotation.telemetry();
                    telemetry.attempt_ended(Fate::Answered, None);
                    return Ok(Connection::new(stream, self.clone(), flight));
                }
                Err(why) => round.refused(&self.rotation, &flight, why),
            }
        }
    }

    async fn open(&self, flight: &InFlight<Line>) -> Result<TcpStream, BoxError> {
        let limit = self.rotation.options().patience;
        match timeout(limit, dial(flight.target())).await {
            Ok(opened) => Ok(opened?),
            Err(_) => Err(io::Error::new(
                io::ErrorKind::TimedOut,
                format!("no connection within {limit:?}"),
            )
            .into()),
        }
    }

    /// The endpoints that a connection would be tried on, in this order.
    #[cfg(feature = "reqwest-013")]
    pub(crate) async fn order(&self) -> Result<Vec<crate::endpoint::Target>> {
        let mut round = Round::new();
        let mut order = Vec::new();
        loop {
            match round.found(&self.rotation).await {
                Ok(flight) => {
                    order.push(flight.target().clone());
                    round.pass(&flight);
                }
                Err(error) if order.is_empty() => return Err(error),
                Err(_) => return Ok(order),
            }
        }
    }
}

impl fmt::Debug for Dialer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dialer")
            .field("endpoints", &self.endpoints().len())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
