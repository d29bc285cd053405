//! The options of a balanced stack.

use std::fmt;
use std::time::Duration;

use futures_core::Stream;
use lictor::Client;
use tower_layer::Layer;

use crate::about::{About, Wanted, watched};
use crate::channel::Policy;
use crate::endpoint::{EndpointSet, Target};
use crate::error::Result;
use crate::rotation::{Options, Rotation};
use crate::source::{HealthSource, Source};
use crate::telemetry::Probe;

use super::leaf::Leaf;
use super::{Balanced, Errors};

/// Builds a [`Balanced`].
#[must_use = "a builder does nothing until it is built"]
pub struct Builder<St, C = Errors> {
    source: Result<St>,
    probe: Probe<St>,
    about: About,
    options: Options,
    classify: C,
}

impl Builder<HealthSource> {
    /// Begins with the instances of a service, as its health is known to Consul.
    ///
    /// All that are passing or in warning, each by its weight. To choose by tag, datacenter or
    /// filter, hand a [`HealthSource`] of your own watch to [`new`](Self::new).
    pub fn service(client: &Client, name: impl Into<String>) -> Self {
        let (source, about) = watched(client, &Wanted::from(name.into()));
        Self::begin(source, about).observe_source()
    }
}

impl<St> Builder<St>
where
    St: Stream<Item = EndpointSet> + Send + 'static,
{
    /// Begins with a source of endpoint sets, of the kind that
    /// [`Channel::from_source`](crate::channel::Channel::from_source) takes.
    pub fn new(source: St) -> Self {
        Self::begin(Ok(source), About::default())
    }

    fn begin(source: Result<St>, about: About) -> Self {
        Self {
            source,
            probe: None,
            about,
            options: Options::new(Policy::default()),
            classify: Errors,
        }
    }
}

impl<St, C> Builder<St, C>
where
    St: Stream<Item = EndpointSet> + Send + 'static,
{
    /// Says what the service is called in events, metrics, snapshots and errors.
    ///
    /// It is sent nowhere. Any text, best a short one, for it becomes a label of
    /// [metrics](crate::telemetry#metrics). Default: the name that the service was found by.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.about = self.about.named(name.into());
        self
    }

    /// Lets `snapshot` and events tell how well the source knows the service, as
    /// [`observe_source`](crate::channel::Builder::observe_source) of a channel does.
    pub fn observe_source(mut self) -> Self
    where
        St: Source,
    {
        self.probe = Some(St::status);
        self
    }

    /// Sets how the better of two endpoints is told.
    ///
    /// Default [`Policy::PeakEwma`].
    pub fn policy(mut self, policy: Policy) -> Self {
        self.options.policy = policy;
        self
    }

    /// Sets how long after the build requests wait for the first set of endpoints.
    ///
    /// After that they fail with [`NeverResolved`](crate::ErrorKind::NeverResolved) at once, until
    /// the set is there. Zero means not to wait. Default 10 s, as for a
    /// [`Channel`](crate::channel::Builder::first_resolution).
    pub fn first_resolution(mut self, limit: Duration) -> Self {
        self.options.first_resolution = limit;
        self
    }

    /// Sets how long the service of an endpoint may take to become ready.
    ///
    /// After that the request goes to another endpoint, as if the service had failed to become ready.
    /// Above zero. Default 1 s, as long as a channel takes for a connection; give more if the stack
    /// has a limit that requests are to wait at.
    pub fn ready_timeout(mut self, limit: Duration) -> Self {
        self.options.patience = limit;
        self
    }

    /// Sets on how many endpoints a request is tried that do not become ready.
    ///
    /// 1 to 16. Default 16: each endpoint is tried at most once.
    pub fn max_attempts(mut self, most: usize) -> Self {
        self.options.max_attempts = most;
        self
    }

    /// Sets what counts as a failure of an endpoint; see [`Classify`](super::Classify).
    ///
    /// Default [`Errors`]: what the service returns as an error.
    pub fn classify<D>(self, classify: D) -> Builder<St, D> {
        Builder {
            source: self.source,
            probe: self.probe,
            about: self.about,
            options: self.options,
            classify,
        }
    }

    /// Starts to follow the source.
    ///
    /// `make` is called once for each endpoint that joins, in the task that follows the source: it
    /// must not block, and what it makes should connect when it is first readied or called. One that
    /// panics ends that task, and with it all changes of the set.
    ///
    /// # Errors
    ///
    /// [`NoRuntime`](crate::ErrorKind::NoRuntime) outside of a Tokio runtime,
    /// [`Invalid`](crate::ErrorKind::Invalid) for an option out of its range or a service with a name
    /// that none can have.
    pub fn build<F, S>(self, make: F) -> Result<Balanced<S, C>>
    where
        F: Fn(&Target) -> S + Send + 'static,
        S: Send + 'static,
    {
        let (started, classify) = self.start(make);
        Ok(Balanced::new(started?, classify))
    }

    fn start<F, S>(self, make: F) -> (Result<Rotation<Leaf<S>>>, C)
    where
        F: Fn(&Target) -> S + Send + 'static,
        S: Send + 'static,
    {
        let Self {
            source,
            probe,
            about,
            options,
            classify,
        } = self;
        let leaf = move |target: &Target| Leaf::new(make(target));
        let started = options
            .check("ready_timeout")
            .and(source)
            .and_then(|source| Rotation::start(source, probe, about, options, leaf));
        (started, classify)
    }
}

impl<St, C> fmt::Debug for Builder<St, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Builder")
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

/// A [`Layer`] over the closure that makes the service of an endpoint.
///
/// For a `ServiceBuilder` whose lowest layer is the balancing. A layer may be used several times and
/// a source cannot, so this takes a closure that begins a [`Builder`] each time. A layer cannot fail
/// either: what [`Builder::build`] would refuse is the error of each request.
///
/// # Examples
///
/// ```
/// use std::time::Duration;
///
/// use lictor_tower::endpoint::{Endpoint, Target};
/// use lictor_tower::layer::{BalanceLayer, Builder};
/// use lictor_tower::source;
/// use tower::{ServiceBuilder, ServiceExt, service_fn};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
/// let endpoint = Endpoint::new("10.0.0.1:80".parse()?);
/// let client = ServiceBuilder::new()
///     .map_request(|name: &'static str| format!("hello {name}"))
///     .layer(BalanceLayer::new(move || Builder::new(source::fixed([endpoint.clone()]))))
///     .service(|_: &Target| service_fn(|said: String| async { Ok::<_, std::io::Error>(said) }));
/// assert_eq!(client.oneshot("you").await?, "hello you");
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct BalanceLayer<M> {
    begin: M,
}

impl<M> BalanceLayer<M> {
    /// A layer that balances by what this closure begins.
    pub fn new<St, C>(begin: M) -> Self
    where
        M: Fn() -> Builder<St, C>,
    {
        Self { begin }
    }
}

impl<M, St, C, F, S> Layer<F> for BalanceLayer<M>
where
    M: Fn() -> Builder<St, C>,
    St: Stream<Item = EndpointSet> + Send + 'static,
    F: Fn(&Target) -> S + Send + 'static,
    S: Send + 'static,
{
    type Service = Balanced<S, C>;

    fn layer(&self, make: F) -> Balanced<S, C> {
        match (self.begin)().start(make) {
            (Ok(rotation), classify) => Balanced::new(rotation, classify),
            (Err(error), classify) => Balanced::broken(error, classify),
        }
    }
}
