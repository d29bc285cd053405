//! The paved road: a service that calls another service by name, balanced over its instances.

mod body;
mod builder;
mod future;
mod request;
mod service;
mod upstream;

use std::fmt;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_core::Stream;
use http::{Request, Response};
use tower_service::Service;

use crate::about::About;
use crate::balance::{Backend, Balance, Phase, Picker};
use crate::endpoint::{EndpointSet, Target};
use crate::error::{BoxError, Error, ErrorKind};
use crate::task::Runtime;

pub use crate::balance::Policy;
pub use crate::connect::Protocol;
pub use body::Body;
pub use builder::Builder;
pub use future::ResponseFuture;
pub use service::ClientBuilder;

use request::{Addressing, HostCache};
use upstream::Upstream;

/// A client of one service: every request goes to the instance that suits best.
///
/// It is a [`tower_service::Service`] of [`http::Request`]. A clone is cheap, and all clones share
/// the endpoints, their statistics and their connections. `poll_ready` is always ready: it
/// reserves nothing and never fails; waiting and failing is in the response future.
///
/// What happens to a request:
/// * It waits for the first resolution of the service, up to
///   [`first_resolution`](Builder::first_resolution) after the channel was built. If the service
///   has nobody to offer, it fails at once.
/// * Two endpoints are drawn by weight and the less loaded one is taken (see [`Policy`]); of
///   several priorities the lowest number comes first (RFC 2782).
/// * It is sent on an idle connection of that endpoint, or on a new one.
/// * As long as nothing of it was sent (the endpoint refuses, or the idle connection has just been
///   closed), it goes to another endpoint, whatever its method and body, up to
///   [`max_attempts`](Builder::max_attempts) endpoints. An endpoint that refuses is left alone for
///   100 ms, growing to 5 s.
/// * A request without a body of which an HTTP/2 server says that it has not processed it (RFC
///   9113, 8.7) counts as not sent.
/// * Else what was sent is not sent again, with one exception: a request with an idempotent method
///   (RFC 9110, 9.2.2) and no body, whose connection was closed before any response, is sent once
///   more, to another endpoint if there is one. Closing an idle connection is every server's
///   right, and the two cross on the wire.
///
/// Endpoints that leave get no new request from that moment; their idle connections are closed at
/// once, and requests under way finish, streaming bodies included.
///
/// A channel runs one task, which follows the source, and one or more per connection. When the
/// last clone and the last response future are dropped, the task ends and idle connections close;
/// a [`Body`] that is still being read keeps its connection until its end.
///
/// # Examples
///
/// ```no_run
/// # async fn call(mut channel: lictor_tower::channel::Channel)
/// # -> Result<(), Box<dyn std::error::Error>> {
/// use http::Request;
/// use tower_service::Service;
///
/// let request = Request::get("http://web/hello").body(String::new())?;
/// let response = channel.call(request).await?;
/// println!("{} by {}", response.status(), response.body().target());
/// # Ok(()) }
/// ```
pub struct Channel {
    core: Arc<Core>,
    picker: Picker<Upstream>,
    hosts: HostCache,
}

/// What all clones of a channel share.
struct Core {
    balance: Arc<Balance<Upstream>>,
    runtime: Runtime,
    about: About,
    addressing: Addressing,
    first_resolution: Duration,
    timeout: Option<Duration>,
    max_attempts: usize,
    tell_target: bool,
}

/// How an endpoint of a channel fares, for logs and debugging.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct EndpointStatus {
    /// Where it listens.
    pub target: Target,
    /// Its priority; a lower number is preferred.
    pub priority: u16,
    /// Its share of traffic relative to others of the same priority.
    pub weight: u32,
    /// Requests whose response has not ended.
    pub in_flight: u32,
    /// The moving average of its latency; none before its first answer.
    pub latency: Option<Duration>,
    /// It failed after the last answer: the latency is a penalty and not measured.
    pub is_penalized: bool,
    /// It refused connections and is left alone for a while.
    pub is_avoided: bool,
}

impl Channel {
    /// Begins a channel over a source of endpoint sets.
    ///
    /// The source is any stream that yields the whole set whenever it changes; until its first
    /// item the set is unknown, an empty set means that nobody offers the service, and if it ends
    /// the last set stays. Hand it over unread: what was read is not told again.
    pub fn from_source<S>(source: S) -> Builder<S>
    where
        S: Stream<Item = EndpointSet> + Send + 'static,
    {
        Builder::new(Ok(source))
    }

    /// Sends a request, like [`call`](Service::call) but from a shared reference.
    pub fn request<B>(&self, request: Request<B>) -> ResponseFuture
    where
        B: http_body::Body + Send + 'static,
        B::Data: Send,
        B::Error: Into<BoxError>,
    {
        self.clone().call(request)
    }

    /// Waits until there is an endpoint to call.
    ///
    /// Requests wait for the first resolution by themselves; this is for a program that wants to
    /// know at its start that the service is there.
    ///
    /// # Errors
    ///
    /// After [`first_resolution`](Builder::first_resolution) from this call:
    /// [`ErrorKind::NeverResolved`] if the source has not answered, [`ErrorKind::NoEndpoints`] if
    /// it says that there is nobody.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost.
    pub async fn wait_ready(&self) -> Result<(), Error> {
        let mut phase = self.core.balance.phase();
        let limit = self.core.first_resolution;
        // The sender is in the balance, which this handle keeps: the wait ends in no other way.
        let ready = phase.wait_for(|phase| *phase == Phase::Ready);
        if tokio::time::timeout(limit, ready).await.is_ok() {
            return Ok(());
        }
        let last = *phase.borrow();
        match last {
            Phase::Ready => Ok(()),
            Phase::Empty => Err(self.core.no_endpoints()),
            Phase::Unknown if self.core.balance.is_deserted() => Err(Core::deserted()),
            Phase::Unknown => Err(self.core.never_resolved()),
        }
    }

    /// The endpoints in rotation and how they fare, the preferred ones first.
    #[must_use]
    pub fn endpoints(&self) -> Vec<EndpointStatus> {
        EndpointStatus::all(&self.core.balance)
    }
}

impl EndpointStatus {
    /// How all endpoints in rotation fare, the preferred ones first.
    pub(crate) fn all<S: Backend>(balance: &Balance<S>) -> Vec<Self> {
        let now = balance.now();
        balance
            .snapshot()
            .entries()
            .map(|entry| {
                let candidate = entry.candidate();
                let estimate = candidate.estimate();
                Self {
                    target: candidate.target().clone(),
                    priority: entry.priority(),
                    weight: entry.weight(),
                    in_flight: candidate.in_flight(),
                    latency: estimate.map(|known| known.latency()),
                    is_penalized: estimate.is_some_and(|known| known.is_penalty()),
                    is_avoided: candidate.is_avoided(now),
                }
            })
            .collect()
    }
}

impl Core {
    fn never_resolved(&self) -> Error {
        self.about.never_resolved(self.first_resolution)
    }

    fn deserted() -> Error {
        Error::new(ErrorKind::NoRuntime).context("the one that the channel was built in has ended")
    }

    fn no_endpoints(&self) -> Error {
        self.about.no_endpoints()
    }
}

impl<B> Service<Request<B>> for Channel
where
    B: http_body::Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<BoxError>,
{
    type Response = Response<Body>;
    type Error = Error;
    type Future = ResponseFuture;

    /// Always ready, never an error: an error here would end every tower middleware above.
    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Poll::Ready(Ok(()))
    }

    /// Picks the endpoint; the request leaves when the future is polled.
    fn call(&mut self, request: Request<B>) -> ResponseFuture {
        let balance = &self.core.balance;
        match self.core.addressing.prepare(request, &mut self.hosts) {
            Ok((request, host)) => {
                let choice = self.picker.pick(balance, balance.now());
                ResponseFuture::new(Arc::clone(&self.core), request, host, choice)
            }
            Err(error) => ResponseFuture::failed(Arc::clone(&self.core), error),
        }
    }
}

impl Clone for Channel {
    fn clone(&self) -> Self {
        Self {
            picker: self.picker.another(&self.core.balance),
            core: Arc::clone(&self.core),
            hosts: self.hosts.clone(),
        }
    }
}

impl fmt::Debug for Channel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Channel")
            .field("endpoints", &self.core.balance.snapshot().entries().count())
            .finish_non_exhaustive()
    }
}
