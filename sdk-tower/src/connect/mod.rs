//! How a request gets to one endpoint: a pool of connections that gives unsent requests back.
//!
//! A [`Pool`] belongs to one endpoint. It opens connections when they are needed, keeps them for
//! reuse, and says of every failure whether the request had left: what was not sent can go to
//! another endpoint with its body untouched.

mod body;
mod dial;
mod fence;
mod frames;
mod http1;
mod http2;
mod lease;
mod pool;
mod room;
mod slots;
mod stream;
#[cfg(feature = "tls")]
mod tls;

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use crate::task::Runtime;

pub(crate) use body::Outgoing;
pub(crate) use dial::dial;
pub(crate) use lease::{Fault, Lease, SendFailed};
pub(crate) use pool::{Checkout, Need, Pool, Unavailable, Waiting, Whose};
pub(crate) use slots::Addresses;
#[cfg(feature = "tls")]
pub(crate) use tls::Secured;
#[cfg(feature = "tls")]
pub use tls::Tls;

/// The version of HTTP that endpoints are spoken to.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
#[non_exhaustive]
pub enum Protocol {
    /// The best that both sides speak: under TLS HTTP/2 if the endpoint chooses it by ALPN (RFC 7301),
    /// else HTTP/1.1.
    ///
    /// It is known for each endpoint from its first connection on, and learned anew when an endpoint
    /// changes its mind. In plain text there is nothing to choose by, and this is
    /// [`Http1`](Self::Http1).
    #[default]
    Auto,
    /// HTTP/1.1: one request at a time on a connection, idle connections are reused.
    ///
    /// An answer that is whole before its request is given up with it: a body that does not end
    /// within 50 ms of its answer is not sent to its end, and the connection is closed.
    Http1,
    /// HTTP/2: all requests share one connection.
    ///
    /// Those beyond the number of streams that the endpoint allows wait for one that ends. Nothing of
    /// them is sent: if the connection ends meanwhile they go elsewhere.
    ///
    /// In plain text without negotiation ("prior knowledge"); under TLS an endpoint that does not
    /// agree to it counts as one that refuses connections.
    Http2,
}

/// What is spoken on a connection.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Wire {
    Http1,
    Http2,
}

/// What all pools of a channel have in common.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) runtime: Runtime,
    /// Never [`Protocol::Auto`] in plain text.
    pub(crate) protocol: Protocol,
    pub(crate) connect_timeout: Duration,
    pub(crate) most_idle: usize,
    /// How many connections of HTTP/1.1 may be open to one endpoint.
    pub(crate) most_open: usize,
    /// Where those are counted.
    pub(crate) addresses: Addresses,
    /// After how many calls of [`Pool::age`] an unused connection is closed.
    pub(crate) idle_ages: u32,
    /// After how many calls of [`Pool::age`] a connection takes no new request: a number of these.
    pub(crate) lifetime: Option<RangeInclusive<u32>>,
    #[cfg(feature = "tls")]
    pub(crate) tls: Option<Secured>,
}

impl Settings {
    /// What an endpoint speaks of which nothing is known yet, if that can be told.
    fn wire(&self) -> Option<Wire> {
        match self.protocol {
            Protocol::Auto => None,
            Protocol::Http1 => Some(Wire::Http1),
            Protocol::Http2 => Some(Wire::Http2),
        }
    }

    #[cfg_attr(
        not(feature = "tls"),
        expect(clippy::unused_self, reason = "without TLS nothing is secured")
    )]
    fn is_secured(&self) -> bool {
        #[cfg(feature = "tls")]
        return self.tls.is_some();
        #[cfg(not(feature = "tls"))]
        return false;
    }
}

#[cfg(test)]
impl Settings {
    /// Plain HTTP/1.1 with one idle connection at most.
    pub(crate) fn plain(runtime: Runtime) -> Self {
        Self {
            runtime,
            protocol: Protocol::Http1,
            connect_timeout: Duration::from_secs(1),
            most_idle: 1,
            most_open: usize::MAX,
            addresses: Addresses::default(),
            idle_ages: 4,
            lifetime: None,
            #[cfg(feature = "tls")]
            tls: None,
        }
    }
}

/// Where an endpoint lives, as far as is known: names may be made of it.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Residence {
    pub(crate) node: Option<Arc<str>>,
    pub(crate) datacenter: Option<Arc<str>>,
}
