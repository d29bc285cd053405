//! Balancing over a service of your own for each endpoint.
//!
//! [`Channel`](crate::channel::Channel) speaks HTTP and has its own connections. [`Balanced`] has
//! none: a closure makes, for each endpoint, whatever carries requests there, of any protocol and
//! with any middleware around it; `Balanced` follows the endpoints, picks among them as the channel
//! does, and counts.
//!
//! | Take | when |
//! |---|---|
//! | [`Channel`](crate::channel::Channel) | the service speaks HTTP/1.1 or HTTP/2: it alone gets an unsent request back and knows idle connections from dead ones |
//! | [`Balanced`] | the protocol is another one, or each endpoint needs a stack of its own: a limit of concurrency, a circuit breaker, a client library with a pool in it |
//! | [`Discover`](crate::discover::Discover) | you want tower's own `Balance` |
//!
//! ```
//! use lictor_tower::endpoint::{Endpoint, Target};
//! use lictor_tower::layer::Builder;
//! use lictor_tower::source;
//! use tower::{ServiceExt, service_fn};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), lictor_tower::Error> {
//! let source = source::fixed([Endpoint::new("10.0.0.1:80".parse()?)]);
//! let balanced = Builder::new(source).build(|target: &Target| {
//!     let target = target.clone();
//!     service_fn(move |question: &'static str| {
//!         let answer = format!("{target} heard {question:?}");
//!         async move { Ok::<_, std::io::Error>(answer) }
//!     })
//! })?;
//! assert_eq!(balanced.oneshot("hello").await?, r#"10.0.0.1:80 heard "hello""#);
//! # Ok(())
//! # }
//! ```

mod body;
mod builder;
mod classify;
mod future;
mod leaf;

use std::fmt;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::Response;
use tower_service::Service;

use crate::balance::Picker;
use crate::channel::{EndpointStatus, Snapshot};
use crate::error::{BoxError, Error, Result};
use crate::rotation::Rotation;

pub use body::{BodyFuture, Counted};
pub use builder::{BalanceLayer, Builder};
pub use classify::{Classify, Errors, ServerErrors};
pub use future::ResponseFuture;

use leaf::Leaf;

/// A service over one service per endpoint: each request goes to the one that suits best.
///
/// `S` is the service of an endpoint, `C` tells failures from answers. A clone is cheap and shares
/// everything. `poll_ready` is always ready: it reserves nothing and never fails.
///
/// What happens to a request, all of it in the response future:
/// * It waits for the first resolution, up to [`first_resolution`](Builder::first_resolution) after
///   `Balanced` was built. If there is nobody, it fails at once.
/// * Two endpoints are drawn by weight and the less loaded one is taken, see
///   [`Policy`](crate::channel::Policy).
/// * The service of that endpoint is cloned and readied. If it fails to become ready, or takes longer
///   than [`ready_timeout`](Builder::ready_timeout), nothing was sent: the endpoint is left alone for
///   100 ms, growing to 5 s, and the request goes to another one, whatever it is.
/// * The service is called. What comes of that is the caller's: it is not called again, because only
///   the caller knows whether that is safe. Put tower's `Retry` around `Balanced` for that.
/// * The request counts as load of its endpoint until its future is done or dropped; see
///   [`count_bodies`](Self::count_bodies) for responses that go on after that.
///
/// A service that connects in `call` and says that it is always ready, such as hyper-util's client,
/// has lost the request when it cannot connect: here that is a failed call, and the endpoint is only
/// avoided as one that fails.
///
/// The service of an endpoint that leaves is dropped at once, and calls that are under way finish on
/// their clones. `Balanced` runs one task, which follows the source and ends when the last clone and
/// the last response future are dropped. To clone the service of an endpoint takes a lock that
/// nobody holds for longer than that, so that `S` need not be `Sync`; nothing is allocated.
pub struct Balanced<S, C = Errors>
where
    S: Send + 'static,
{
    handle: Result<Handle<S>, Arc<Error>>,
    classify: C,
}

struct Handle<S: Send + 'static> {
    rotation: Arc<Rotation<Leaf<S>>>,
    picker: Picker<Leaf<S>>,
}

impl<S: Send + 'static> Clone for Handle<S> {
    fn clone(&self) -> Self {
        Self {
            picker: self.picker.another(self.rotation.balance()),
            rotation: Arc::clone(&self.rotation),
        }
    }
}

impl<S, C> Balanced<S, C>
where
    S: Send + 'static,
{
    fn new(rotation: Rotation<Leaf<S>>, classify: C) -> Self {
        let rotation = Arc::new(rotation);
        Self {
            handle: Ok(Handle {
                picker: rotation.picker(),
                rotation,
            }),
            classify,
        }
    }

    /// What a layer gives that cannot fail: each request fails instead.
    fn broken(error: Error, classify: C) -> Self {
        Self {
            handle: Err(Arc::new(error)),
            classify,
        }
    }

    /// Counts a request as load of its endpoint until the body of its response has ended.
    ///
    /// For services that answer with [`http::Response`]s whose bodies take their time. The body is
    /// wrapped in [`Counted`].
    #[must_use]
    pub fn count_bodies(self) -> CountBodies<S, C> {
        CountBodies(self)
    }

    /// Waits until there is an endpoint to call.
    ///
    /// # Errors
    ///
    /// After [`first_resolution`](Builder::first_resolution) from this call:
    /// [`NeverResolved`](crate::ErrorKind::NeverResolved) if the source has not answered, [`NoEndpoints`](crate::ErrorKind::NoEndpoints) if
    /// it says that there is nobody.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost.
    pub fn wait_ready(&self) -> impl Future<Output = Result<()>> + Send + use<S, C> {
        let handle = self.handle.as_ref();
        let rotation = handle.map(|handle| Arc::clone(&handle.rotation));
        let rotation = rotation.map_err(copy);
        async move { rotation?.wait_ready().await }
    }

    /// The endpoints in rotation and how they fare, the preferred ones first.
    #[must_use]
    pub fn endpoints(&self) -> Vec<EndpointStatus> {
        let handle = self.handle.as_ref();
        handle.map_or_else(|_| Vec::new(), |handle| handle.rotation.statuses())
    }

    /// The service as it is seen from here now: its source, its endpoints, and what was counted.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        let handle = self.handle.as_ref();
        handle.map_or_else(|_| Snapshot::closed(), |handle| handle.rotation.told())
    }
}

/// The same failure for each request.
fn copy(broken: &Arc<Error>) -> Error {
    Error::new(broken.kind())
        .context("nothing can be called")
        .because(Arc::clone(broken))
}

impl<S, C, Req> Service<Req> for Balanced<S, C>
where
    S: Service<Req> + Clone + Send + 'static,
    S::Error: Into<BoxError>,
    C: Classify<S::Response, S::Error> + Clone,
{
    type Response = S::Response;
    type Error = Error;
    type Future = ResponseFuture<S, Req, C>;

    /// Always ready, never an error: an error here would end every tower middleware above.
    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<()>> {
        Poll::Ready(Ok(()))
    }

    /// Picks the endpoint; its service is readied and called when the future is polled.
    fn call(&mut self, request: Req) -> ResponseFuture<S, Req, C> {
        let classify = self.classify.clone();
        match &mut self.handle {
            Ok(handle) => {
                let balance = handle.rotation.balance();
                let choice = handle.picker.pick(balance, None, balance.moment());
                ResponseFuture::new(Arc::clone(&handle.rotation), request, classify, choice)
            }
            Err(broken) => ResponseFuture::failed(copy(broken), classify),
        }
    }
}

impl<S, C> Clone for Balanced<S, C>
where
    S: Send + 'static,
    C: Clone,
{
    fn clone(&self) -> Self {
        Self {
            handle: self.handle.clone(),
            classify: self.classify.clone(),
        }
    }
}

impl<S, C> fmt::Debug for Balanced<S, C>
where
    S: Send + 'static,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Balanced")
            .field("endpoints", &self.endpoints().len())
            .finish_non_exhaustive()
    }
}

/// A [`Balanced`] that counts requests until their bodies have ended.
///
/// Made by [`Balanced::count_bodies`].
pub struct CountBodies<S, C = Errors>(Balanced<S, C>)
where
    S: Send + 'static;

impl<S, C> CountBodies<S, C>
where
    S: Send + 'static,
{
    /// What is counted, to wait for endpoints or to list them.
    #[must_use]
    pub fn balanced(&self) -> &Balanced<S, C> {
        &self.0
    }
}

impl<S, C, Req, B> Service<Req> for CountBodies<S, C>
where
    S: Service<Req, Response = Response<B>> + Clone + Send + 'static,
    S::Error: Into<BoxError>,
    C: Classify<S::Response, S::Error> + Clone,
    B: http_body::Body,
{
    type Response = Response<Counted<B, S>>;
    type Error = Error;
    type Future = BodyFuture<S, Req, C>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Req) -> BodyFuture<S, Req, C> {
        BodyFuture::new(self.0.call(request))
    }
}

impl<S, C> Clone for CountBodies<S, C>
where
    S: Send + 'static,
    C: Clone,
{
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<S, C> fmt::Debug for CountBodies<S, C>
where
    S: Send + 'static,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("CountBodies").field(&self.0).finish()
    }
}

#[cfg(test)]
mod tests;
