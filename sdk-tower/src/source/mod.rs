//! Who is there: streams of endpoint sets that neither fail nor end.
//!
//! A [`Source`] yields one [`EndpointSet`] per change. Three states must not be confused:
//!
//! - *unknown*: nothing was yielded yet, because nobody could be asked so far;
//! - *empty*: a set without endpoints was yielded, the registry says that nobody is there;
//! - *stale*: the registry cannot be asked at the moment; the last set stays in force.
//!
//! A failure is therefore never an item and never the end of the stream. It is a state, told by
//! [`Source::status`] and once per incident by a `tracing` event; an outage of the registry does
//! not become an outage of the application.
//!
//! | Source | Use it when |
//! |---|---|
//! | [`HealthSource`] | there is a Consul agent to ask over HTTP |
//! | [`SrvSource`] | the service is found by DNS SRV records, Consul's or any other |
//! | [`fixed`] | the endpoints are known beforehand |
//! | [`feed`] | something else knows the endpoints, or a test plays the registry |
//! | [`ranked`] | other instances are to help out: other datacenters |
//! | [`fallback`] | the same instances are known in another way: DNS while HTTP cannot be reached |
//! | [`merged`] | several sources know a part of the instances each |

mod fallback;
mod fixed;
mod http;
mod merged;
mod parts;
mod place;
mod ranked;
mod refresh;
mod srv;
mod turns;
mod zone;

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_core::Stream;

use crate::endpoint::EndpointSet;

pub use self::fallback::{Fallback, fallback};
pub use self::fixed::{Feed, FeedSource, Fixed, feed, fixed};
pub use self::http::HealthSource;
pub(crate) use self::http::trouble;
pub use self::merged::{Merged, merged};
pub use self::place::Place;
pub use self::ranked::{Ranked, ranked};
pub use self::srv::{SrvSource, SrvSourceBuilder};

/// A stream of endpoint sets that cannot fail and never ends: one item per change.
///
/// Implementations keep the last known set through a failure of the registry, tell the same
/// content only once, and stop all work when they are dropped. Whoever reads a source should go
/// on with the last set if a source of somebody else ends in spite of this contract.
///
/// # Cancel safety
///
/// Waiting for the next item can be given up at any time; nothing is lost.
pub trait Source: Stream<Item = EndpointSet> + Send + 'static {
    /// How well the source knows the service at the moment.
    ///
    /// Whoever waits for the next item should be woken when this changes, as when a set is there:
    /// [`fallback`] looks at it then, and twice a second besides.
    fn status(&self) -> Status;
}

/// How well a source knows its service.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum Status {
    /// Nothing was heard yet, neither an answer nor a failure.
    Unknown,
    /// Nothing is known, because every attempt so far has failed.
    Failing {
        /// Why the last attempt failed.
        reason: Arc<str>,
    },
    /// The last set is what the registry said when it was last asked.
    Live,
    /// The last set is kept, although the registry could not confirm it when last asked.
    Stale {
        /// Time since the last answer that confirmed the set.
        age: Duration,
        /// Why the registry did not confirm it.
        reason: Arc<str>,
    },
}

/// As people read it: `live`, `stale for 3.2s: connection refused`.
impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown => f.write_str("not heard of yet"),
            Self::Failing { reason } => write!(f, "failing: {reason}"),
            Self::Live => f.write_str("live"),
            Self::Stale { age, reason } => write!(f, "stale for {age:.1?}: {reason}"),
        }
    }
}

impl Status {
    /// Whether a set is known, be it stale or empty.
    #[must_use]
    pub fn is_known(&self) -> bool {
        matches!(self, Self::Live | Self::Stale { .. })
    }
}

impl<S: Source + Unpin + ?Sized> Source for Box<S> {
    fn status(&self) -> Status {
        (**self).status()
    }
}

impl<S: Source + ?Sized> Source for Pin<Box<S>> {
    fn status(&self) -> Status {
        self.as_ref().get_ref().status()
    }
}
