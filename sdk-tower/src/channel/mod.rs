//! The paved road: a service that calls another service by name, balanced over its instances.

mod admission;
mod attempts;
mod body;
mod builder;
mod effort;
mod future;
mod hedge;
mod outcome;
mod replay;
mod request;
mod service;
mod snapshot;
mod status;
mod tale;
mod upstream;

use std::fmt;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_core::Stream;
use http::request::Parts;
use http::{Request, Response};
use tower_service::Service;

use crate::about::About;
use crate::balance::{Absence, Balance, Picker};
use crate::endpoint::EndpointSet;
use crate::error::{BoxError, Error, ErrorKind};
use crate::retry::Classifier;
use crate::task::Runtime;
use crate::telemetry::Telemetry;

pub use crate::balance::{Ejection, HashKey, LoadReport, Lost, Policy, Reason};
pub use crate::connect::Protocol;
pub use body::Body;
pub use builder::Builder;
pub use future::ResponseFuture;
pub use service::ClientBuilder;
pub use snapshot::Snapshot;
pub use status::{EndpointState, EndpointStatus};

use admission::Admission;
use effort::Persistence;
use request::{Addressing, HostCache};
use upstream::Upstream;

/// A client of one service: every request goes to the instance that suits best.
///
/// It is a [`tower_service::Service`] of [`http::Request`]. A clone is cheap, and all clones share
/// the endpoints, their statistics and their connections. `poll_ready` is always ready: it
/// reserves nothing and never fails; waiting and failing is in the response future.
///
/// What happens to a request:
/// * If as many requests are under way as [`max_in_flight`](Builder::max_in_flight) allows, it waits
///   in line for a place, or is shed if the line is full or does not move
///   ([`ErrorKind::Overloaded`]).
/// * It waits for the first resolution of the service, up to
///   [`first_resolution`](Builder::first_resolution) after the channel was built. If the service
///   has nobody to offer, it fails at once, unless it is to
///   [`wait_for_ready`](Builder::wait_for_ready).
/// * Two endpoints are drawn by weight and the less loaded one is taken, or as another [`Policy`]
///   says; of several priorities the lowest number comes first (RFC 2782).
/// * Before that, the distance is chosen (see
///   [`with_distance`](crate::endpoint::Endpoint::with_distance)). The nearest endpoints
///   take all requests while 72 % of their weight is well; below that they take 1.4 times the part
///   that is, and the rest goes to the next distance, as in Envoy. A request that was tried at one
///   distance goes on to the next one. Well is who is not left alone for a while; it is looked at
///   four times a second.
/// * It is sent on an idle connection of that endpoint, or on a new one.
/// * As long as nothing of it was sent (the endpoint refuses, or the idle connection has just been
///   closed), it goes to another endpoint, whatever its method and body, up to
///   [`max_attempts`](Builder::max_attempts) endpoints. An endpoint that refuses is left alone for
///   100 ms, growing to 5 s, and is tried sooner where 1,000 requests have passed by.
/// * An endpoint that accepts requests and fares badly is [ejected](Ejection) for a while.
/// * A request without a body of which an HTTP/2 server says that it has not processed it (RFC
///   9113, 8.7) counts as not sent.
/// * Else what was sent is not sent again, with one exception: a request with an idempotent method
///   (RFC 9110, 9.2.2) and no body, whose connection was closed before any response, is sent once
///   more, to another endpoint if there is one. Closing an idle connection is every server's
///   right, and the two cross on the wire.
///
/// With [`retry`](Builder::retry), a request that may be repeated, and whose body is empty or short
/// enough to be kept, is sent again
/// * if its connection was lost, or if the answer says that another attempt may do better
///   ([`classify`](Builder::classify)), up to
///   [`max_retries`](crate::retry::RetryPolicy::max_retries) times;
/// * to an endpoint that has not seen it, at once; if all have, to one of them after a pause with
///   jitter, which is not shorter than `Retry-After` within a clamp;
/// * from a budget that all requests of the channel pay into. From it is paid, too, that a request
///   asks more than one of the endpoints that are known to refuse;
/// * in place of an attempt that took longer than
///   [`attempt_timeout`](crate::retry::RetryPolicy::attempt_timeout), if there is somebody to take
///   its place.
///
/// If nothing better comes of it, the caller gets the last answer, and if there was none an error
/// that tells of each attempt ([`Error::attempts`]) and of why there are no more. With
/// [`hedge`](Builder::hedge) such a request goes to a second endpoint while the first is silent.
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
    telemetry: Arc<Telemetry>,
    runtime: Runtime,
    about: About,
    addressing: Addressing,
    first_resolution: Duration,
    timeout: Option<Duration>,
    max_attempts: usize,
    wait_for_ready: Option<Duration>,
    classifier: Classifier,
    /// None if no request is ever sent twice at the user's will.
    persistence: Option<Persistence>,
    admission: Admission,
    tell_target: bool,
    /// None where keys are not asked for.
    key: Option<Keys>,
    load_report: Option<LoadReport>,
}

/// Where the key of a request comes from.
enum Keys {
    /// Its extensions.
    Carried,
    /// Its extensions or else this rule.
    Made(KeyRule),
}

/// Makes the key of a request from all but its body.
type KeyRule = Box<dyn Fn(&Parts) -> Option<HashKey> + Send + Sync>;

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
        let ready = self.core.balance.ready_within(self.core.first_resolution);
        ready.await.map_err(|absence| match absence {
            Absence::Empty => self.core.no_endpoints(),
            Absence::Unknown => self.core.never_resolved(),
            Absence::Deserted => Core::deserted(),
        })
    }

    /// The endpoints and how they fare, the preferred ones first; at the end those that have left
    /// and have requests under way.
    ///
    /// It reads a few atomics of each endpoint and copies its target: cheap enough for a page that
    /// shows it each second, and no request waits for it.
    #[must_use]
    pub fn endpoints(&self) -> Vec<EndpointStatus> {
        EndpointStatus::all(&self.core.balance)
    }

    /// The service as this channel sees it now: its source, its endpoints, and what was counted.
    ///
    /// It costs what [`endpoints`](Self::endpoints) costs, and a few atomics.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        Snapshot::of(&self.core.balance)
    }
}

impl Keys {
    fn of<B>(&self, request: Request<B>) -> (Request<B>, Option<HashKey>) {
        let carried = request.extensions().get().copied();
        match self {
            Self::Made(rule) if carried.is_none() => {
                let (parts, body) = request.into_parts();
                let made = rule(&parts);
                (Request::from_parts(parts, body), made)
            }
            Self::Made(_) | Self::Carried => (request, carried),
        }
    }
}

impl Core {
    fn service(&self) -> Option<&str> {
        self.about.service()
    }

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
        let (request, key) = match &self.core.key {
            Some(keys) => keys.of(request),
            None => (request, None),
        };
        match self.core.addressing.prepare(request, &mut self.hosts) {
            Ok((request, host)) => {
                ResponseFuture::new(&self.core, &mut self.picker, request, host, key)
            }
            Err(error) => ResponseFuture::failed(&self.core, error),
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
