//! How a request gets to one endpoint: a pool of connections that gives unsent requests back.
//!
//! A [`Pool`] belongs to one endpoint. It opens connections when they are needed, keeps them for
//! reuse, and says of every failure whether the request had left: what was not sent can go to
//! another endpoint with its body untouched.

mod body;
mod dial;
mod http1;
mod http2;
mod lease;
mod pool;

use std::time::Duration;

use crate::task::Runtime;

pub(crate) use body::Outgoing;
pub(crate) use dial::dial;
pub(crate) use lease::{Fault, Lease, SendFailed};
pub(crate) use pool::{Checkout, Need, Pool, Unavailable, Waiting};

/// The version of HTTP that endpoints are spoken to.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
#[non_exhaustive]
pub enum Protocol {
    /// HTTP/1.1: one request at a time on a connection, idle connections are reused.
    #[default]
    Http1,
    /// HTTP/2 without negotiation ("prior knowledge"): all requests share one connection.
    Http2,
}

/// What all pools of a channel have in common.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) runtime: Runtime,
    pub(crate) protocol: Protocol,
    pub(crate) connect_timeout: Duration,
    pub(crate) most_idle: usize,
}

/// After how many calls of [`Pool::age`] an unused connection is closed.
pub(crate) const IDLE_AGES: u32 = 4;
