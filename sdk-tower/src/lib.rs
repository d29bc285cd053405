//! Service discovery from Consul and client-side load balancing for tower and hyper clients.
//!
//! The paved road is the [`Channel`]: a [`tower_service::Service`] of HTTP requests that finds the
//! instances of a service, follows their coming and going, and sends each request to the one that
//! suits best.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use http::Request;
//! use lictor_tower::Channel;
//!
//! let client = lictor::Client::from_env()?;
//! let channel = Channel::builder(client).service("web").build()?;
//! let request = Request::get("/hello").body(String::new())?;
//! let response = channel.request(request).await?;
//! println!("{} by {}", response.status(), response.body().target());
//! # Ok(())
//! # }
//! ```
//!
//! # The parts
//!
//! ```text
//! source ──► endpoint sets ──► discover ──► tower's own Balance, or any other reader of changes
//!    │
//!    └──► channel: driver ──► snapshot ──► pick ──► pool of the endpoint ──► instance
//! ```
//!
//! | I want to | use |
//! |---|---|
//! | call a service by name over HTTP/1.1 or HTTP/2 | [`Channel::builder`] |
//! | call it under TLS, with HTTP/2 where both speak it, and certificates of my own | `channel::Builder::tls`, `channel::Tls`, with the feature `tls`, which is on by default |
//! | bound the connections to an instance and their age, or open them in advance | [`max_connections_per_endpoint`](channel::Builder::max_connections_per_endpoint), [`max_connection_age`](channel::Builder::max_connection_age), [`warm_up`](channel::Builder::warm_up) |
//! | choose instances by tag, filter or datacenter | [`source::HealthSource`] of your own watch, and [`Channel::from_source`] |
//! | find instances by DNS SRV, of Consul or any other server | [`source::SrvSource`] |
//! | name the instances by hand, for good or for a test | [`source::fixed`](source::fixed()), [`source::feed`](source::feed()) |
//! | choose how instances are picked: by load, in turn, by a key | [`Builder::policy`](channel::Builder::policy), [`channel::Policy`] |
//! | prefer instances on the own node or in the own datacenter | [`HealthSource::prefer_near`](source::HealthSource::prefer_near) |
//! | fail over to other datacenters | [`source::ranked`](source::ranked()) |
//! | go on by DNS while Consul's HTTP cannot be reached | [`source::fallback`](source::fallback()) |
//! | find instances in several places at once | [`source::merged`](source::merged()) |
//! | spare new instances, or use a few of very many | [`Builder::slow_start`](channel::Builder::slow_start), [`Builder::subset`](channel::Builder::subset) |
//! | say when a bad instance is left alone, and see which are | [`channel::Ejection`], [`Channel::endpoints`] |
//! | stay up when Consul loses sight of most instances | [`source::HealthSource::critical_below`], [`channel::Lost`] |
//! | weigh instances by the load that they report | [`channel::LoadReport`] |
//! | have failed requests repeated, or slow ones hedged | [`retry`], [`channel::Builder::retry`] |
//! | bound how many requests are under way and waiting | [`channel::Builder::max_in_flight`] |
//! | call several services by the hosts of URIs | [`router::Router`] |
//! | balance another protocol, or over a stack of my own | [`layer::Builder`] |
//! | connect to a database, or speak a protocol of my own | [`tcp::Dialer`] |
//! | keep my hyper client and let it find services | [`connector::Connector`] |
//! | keep reqwest's requests and responses | `reqwest_013`, with the feature `reqwest-013` |
//! | balance with tower's own `Balance` | [`discover::Discover`] |
//! | see how a service fares: spans, metrics, a page | [`telemetry`], [`Channel::snapshot`] |
//! | know which of all this suits me | the [`guide`] |
//!
//! # Guarantees
//!
//! - A source never fails and never ends. *Unknown* is not *empty*: before the first answer a
//!   channel waits, up to a stated time; where Consul says that nobody is there it fails at once.
//! - An outage of Consul leaves the last known endpoints in force.
//! - An endpoint that did not change keeps its connections and its statistics, whatever happens to
//!   the others. One that is removed gets no further request; what is under way on it finishes.
//! - An endpoint that fares badly, by failures in a row, beside the others or in latency, is put out
//!   of rotation for a while and tried by one request at a time; never more than a stated share
//!   of them, and where too few are well, all are called. See [`channel::Ejection`].
//! - A request that was not sent goes to another endpoint, whatever its method and body. What was
//!   sent is not sent again, but for one case that [`Channel`] names, or where a
//!   [`RetryPolicy`](retry::RetryPolicy) says so: within a budget, and never what may not be
//!   repeated.
//! - A pick takes no lock and allocates nothing, under every policy, and costs about the same for
//!   ten endpoints as for ten thousand. A channel runs one task that follows its source, one for
//!   each connection, and one that warms them up if that is asked for; all end with the channel.

// The order of the `mod` lines below is the layering: a module may name, with `crate::`, only
// modules declared above it. `tests/tidy.rs` checks it.

#![cfg_attr(docsrs, feature(doc_cfg))]

// Words.
pub mod error;
pub mod endpoint;

// Who is there.
pub mod source;
pub mod discover;

// What is a failure, and what is done about it.
pub mod retry;

// What is told to those who watch.
pub mod telemetry;

// How a request gets to an endpoint.
mod task;
mod connect;
mod balance;
// For the benches of this repository, which measure the pick without what is around it.
#[cfg(feature = "bench")]
#[doc(hidden)]
pub mod bench;
mod about;
pub mod channel;

// Other doors to the same balance.
mod rotation;
pub mod layer;
pub mod tcp;
pub mod names;
pub mod connector;
pub mod router;
#[cfg(feature = "reqwest-013")]
#[cfg_attr(docsrs, doc(cfg(feature = "reqwest-013")))]
pub mod reqwest_013;

// How to choose among all of this.
pub mod guide {
    #![doc = include_str!("guide.md")]
}

pub use channel::Channel;
pub use error::{Error, ErrorKind, Result};
