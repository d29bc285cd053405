//! One client for many services: each request goes to the service that its URI names.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::{Request, Response};
use pin_project::pin_project;
use tower_service::Service;

use crate::about::watched;
use crate::channel::{self, Body, Channel};
use crate::error::{BoxError, Error, ErrorKind, Result};
use crate::names::{Directory, Services};
use crate::source::HealthSource;

/// A [`Service`] of HTTP requests whose URIs name services.
///
/// It keeps one [`Channel`] for each service that was asked for, made by the first request. What the
/// hosts of URIs mean, how many services are kept and for how long is told by [`Services`]. A request
/// whose URI names no service is an error and goes nowhere: the host of a URI is never looked up in DNS.
///
/// Each request costs a look-up under a lock besides what it costs in the channel; who calls one
/// service takes a [`Channel`]. A clone is cheap and shares everything. It runs one task that forgets
/// services nobody asks for, besides those of its channels; it ends with the last clone.
///
/// With `channel(|channel| channel.tls(tls.clone()))` all of them are under TLS, each with the name of
/// its service, and URIs may say `https`; the files that it names are read once.
///
/// # Examples
///
/// ```no_run
/// # async fn example(client: lictor::Client) -> Result<(), Box<dyn std::error::Error>> {
/// use std::time::Duration;
///
/// use http::Request;
/// use lictor_tower::router::Router;
///
/// let router = Router::builder(client)
///     .channel(|channel| channel.timeout(Duration::from_secs(5)))
///     .build()?;
/// let basket = Request::get("http://basket/items").body(String::new())?;
/// let prices = Request::get("http://v2.prices.service.dc2.consul/").body(String::new())?;
/// let (basket, prices) = (router.request(basket).await?, router.request(prices).await?);
/// # drop((basket, prices));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Router {
    channels: Arc<Directory<Channel>>,
}

/// Builds a [`Router`].
#[must_use = "a builder does nothing until it is built"]
pub struct Builder {
    services: Services,
    configure: Box<dyn Fn(ChannelBuilder) -> ChannelBuilder + Send + Sync>,
}

/// What sets the options of the channels.
pub type ChannelBuilder = channel::Builder<HealthSource>;

impl Router {
    /// A router with all defaults.
    ///
    /// # Errors
    ///
    /// Those of [`Builder::build`].
    pub fn new(services: impl Into<Services>) -> Result<Self> {
        Self::builder(services).build()
    }

    /// Begins a router to these services; a [`lictor::Client`] stands for all that it finds.
    pub fn builder(services: impl Into<Services>) -> Builder {
        Builder {
            services: services.into(),
            configure: Box::new(|channel| channel),
        }
    }

    /// Sends a request to the service that its URI names.
    pub fn request<B>(&self, request: Request<B>) -> ResponseFuture
    where
        B: http_body::Body + Send + 'static,
        B::Data: Send,
        B::Error: Into<BoxError>,
    {
        ResponseFuture(match self.channel(&request) {
            Ok(channel) => State::Sent(channel.request(request)),
            Err(error) => State::Failed(Some(error)),
        })
    }

    /// The channel to the service that this host names; `None` if it names none.
    ///
    /// # Errors
    ///
    /// [`InvalidRequest`](ErrorKind::InvalidRequest) for a name of Consul's that can be no service's.
    /// What the router's own options are refused for, such as a deadline of zero, comes out here and
    /// in each request.
    pub fn to(&self, host: &str) -> Result<Option<Channel>> {
        self.channels.find(host)
    }

    /// How many names of services are known at the moment.
    #[must_use]
    pub fn services(&self) -> usize {
        self.channels.len()
    }

    fn channel<B>(&self, request: &Request<B>) -> Result<Channel> {
        let uri = request.uri();
        let Some(host) = uri.host().filter(|host| !host.is_empty()) else {
            return Err(unfit(format!(
                "the URI {uri} names no host; write http://web{}",
                uri.path()
            )));
        };
        if let Some(port) = uri.port() {
            return Err(unfit(format!(
                "the URI has the port {port}, but the instances of a service have their own; \
                 write http://{host}{}",
                uri.path()
            )));
        }
        let found = self.to(host)?;
        found.ok_or_else(|| unfit(format!("the host {host:?} names no service")))
    }
}

fn unfit(why: String) -> Error {
    Error::new(ErrorKind::InvalidRequest).context(why)
}

impl Builder {
    /// Sets the options of each channel.
    ///
    /// The closure is called when a service is asked for first. Default: those of a [`Channel`].
    pub fn channel(
        mut self,
        configure: impl Fn(ChannelBuilder) -> ChannelBuilder + Send + Sync + 'static,
    ) -> Self {
        self.configure = Box::new(configure);
        self
    }

    /// Checks the options; nothing is asked or connected yet.
    ///
    /// # Errors
    ///
    /// [`NoRuntime`](ErrorKind::NoRuntime) outside of a Tokio runtime,
    /// [`Invalid`](ErrorKind::Invalid) for an option of [`Services`] out of its range.
    pub fn build(self) -> Result<Router> {
        let configure = self.configure;
        let channels = Directory::new(self.services, move |client, wanted| {
            let (source, about) = watched(client, wanted);
            configure(channel::Builder::new(source).about(about)).build()
        })?;
        Ok(Router {
            channels: Arc::new(channels),
        })
    }
}

impl fmt::Debug for Builder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Builder")
            .field("services", &self.services)
            .finish_non_exhaustive()
    }
}

impl<B> Service<Request<B>> for Router
where
    B: http_body::Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<BoxError>,
{
    type Response = Response<Body>;
    type Error = Error;
    type Future = ResponseFuture;

    /// Always ready, never an error: an error here would end every tower middleware above.
    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> ResponseFuture {
        self.request(request)
    }
}

/// The response to a request, once its head has arrived.
///
/// # Cancel safety
///
/// That of a channel's [`ResponseFuture`](channel::ResponseFuture).
#[derive(Debug)]
#[must_use = "futures do nothing unless polled"]
#[pin_project]
pub struct ResponseFuture(#[pin] State);

#[derive(Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "nearly all are sent, and a box would be an allocation for each"
)]
#[pin_project(project = StateProj)]
enum State {
    Failed(Option<Error>),
    Sent(#[pin] channel::ResponseFuture),
}

impl Future for ResponseFuture {
    type Output = Result<Response<Body>>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project().0.project() {
            StateProj::Failed(error) => match error.take() {
                Some(error) => Poll::Ready(Err(error)),
                None => Poll::Pending,
            },
            StateProj::Sent(response) => response.poll(cx),
        }
    }
}
