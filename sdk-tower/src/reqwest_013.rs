//! reqwest 0.13: a client whose URLs name services, and a resolver for one of your own.
//!
//! Two ways, of which the first balances requests and the second connections:
//!
//! | | [`Client`] | [`Resolver`] |
//! |---|---|---|
//! | requests are made | with reqwest's types | with reqwest's client |
//! | they are sent | by a [`Channel`], one for each service | by reqwest |
//! | each request | goes to the instance that suits best | goes where its connection happens to lead |
//! | a new instance, a slow one | gets its share at once, gets less at once | when connections are opened |
//! | redirects, cookies, proxies, decompression | not done | reqwest's |
//! | URLs | `http://web/`, and `https://web/` where the channels are under TLS | `http://web/`, and `https://` where certificates name the host |
//!
//! lictor's default feature `tls` has reqwest built with rustls and without a provider of
//! cryptography. A program that makes clients of reqwest's own, as for [`Resolver`] or
//! [`Client::others`], therefore installs one first, once, or takes reqwest's feature `rustls`;
//! else reqwest panics with "No rustls crypto provider is configured":
//!
//! ```text
//! rustls::crypto::ring::default_provider().install_default().ok();
//! ```
//!
//! Everything here carries reqwest's version in its path, so that its next one will be a module
//! beside this one and break nobody.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::{Request, Uri};
use reqwest::ResponseBuilderExt;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use tokio::net::lookup_host;
use tokio::time::timeout;

use crate::channel::{self, Channel};
use crate::endpoint::{Host, Target};
use crate::error::{BoxError, Error, ErrorKind, Result};
use crate::names::{Directory, Services};
use crate::router::Router;
use crate::tcp::{self, Dialer};

/// Sends a request of reqwest's through a channel.
///
/// The path of its URL matters and its host is what the instance is told, as for any request of the
/// channel; [`Client`] chooses the channel by the host. The timeout of the request, if it has one, is
/// a limit until the head of the response is there.
///
/// # Errors
///
/// Those of the channel; [`Timeout`](ErrorKind::Timeout) for the request's own timeout.
///
/// # Cancel safety
///
/// Dropping it gives the request up: what was not sent is not sent, what was sent may have been
/// received.
pub async fn execute(channel: &Channel, request: reqwest::Request) -> Result<reqwest::Response> {
    let (limit, request) = taken(request)?;
    let url = request.uri().clone();
    answered(limit, &url, channel.request(request)).await
}

/// A client whose URLs name services, ports included: `http://web/hello`.
///
/// Requests are built with reqwest and executed here, and responses are reqwest's. A
/// [`Router`] stands behind it, which keeps a [`Channel`] for each service. A URL that names no
/// service is an error, unless [`others`](Self::others) says who takes it.
///
/// # Examples
///
/// ```no_run
/// use lictor_tower::reqwest_013::Client;
/// use lictor_tower::router::Router;
///
/// # async fn example(consul: lictor::Client) -> Result<(), Box<dyn std::error::Error>> {
/// let http = reqwest::Client::new();
/// let client = Client::new(Router::new(consul)?).others(http.clone());
/// let request = http.post("http://orders/new").body("two of them").build()?;
/// let response = client.execute(request).await?.error_for_status()?;
/// println!("{}", response.text().await?);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Client {
    router: Router,
    others: Option<reqwest::Client>,
}

impl Client {
    /// A client of the services that this router knows.
    #[must_use]
    pub fn new(router: Router) -> Self {
        Self {
            router,
            others: None,
        }
    }

    /// Sets who takes requests whose URLs name no service: other hosts, ports, and `https` unless the
    /// router's channels are under TLS.
    ///
    /// Default nobody: they are an error.
    #[must_use]
    pub fn others(mut self, others: reqwest::Client) -> Self {
        self.others = Some(others);
        self
    }

    /// Sends a request to the service that its URL names.
    ///
    /// # Errors
    ///
    /// Those of [`execute`] and of [`Router::request`]; what the client for others returns is the
    /// source of an error of the kind [`Request`](ErrorKind::Request) or
    /// [`Connect`](ErrorKind::Connect).
    ///
    /// # Cancel safety
    ///
    /// That of [`execute`].
    pub async fn execute(&self, request: reqwest::Request) -> Result<reqwest::Response> {
        if let Some(others) = &self.others
            && !self.is_service(request.url())?
        {
            return others.execute(request).await.map_err(elsewhere);
        }
        let (limit, request) = taken(request)?;
        let url = request.uri().clone();
        answered(limit, &url, self.router.request(request)).await
    }

    fn is_service(&self, url: &reqwest::Url) -> Result<bool> {
        if !matches!(url.scheme(), "http" | "https") || url.port().is_some() {
            return Ok(false);
        }
        let Some(host) = url.host_str() else {
            return Ok(false);
        };
        let channel = self.router.to(host)?;
        Ok(channel.is_some_and(|channel| url.scheme() == "http" || channel.is_secured()))
    }
}

/// The request as a channel takes it, and its timeout.
fn taken(mut request: reqwest::Request) -> Result<(Option<Duration>, Request<reqwest::Body>)> {
    let limit = request.timeout_mut().take();
    // A channel sets the version that it speaks.
    let request = Request::try_from(request).map_err(|error| {
        Error::new(ErrorKind::InvalidRequest)
            .context("reqwest cannot give it away")
            .because(error)
    })?;
    Ok((limit, request))
}

async fn answered(
    limit: Option<Duration>,
    url: &Uri,
    response: impl Future<Output = Result<http::Response<channel::Body>>> + Send,
) -> Result<reqwest::Response> {
    let response = match limit {
        None => response.await?,
        Some(limit) => match timeout(limit, response).await {
            Ok(response) => response?,
            Err(_) => {
                return Err(Error::new(ErrorKind::Timeout)
                    .after_sending(true)
                    .context(format!("no response within the request's own {limit:?}")));
            }
        },
    };
    let (parts, body) = response.into_parts();
    let mut told = http::Response::builder();
    // It was parsed as one before.
    if let Ok(url) = url.to_string().parse() {
        told = told.url(url);
    }
    let mut response = told
        .body(reqwest::Body::wrap(body))
        .map_err(|error| Error::new(ErrorKind::Request).because(error))?;
    *response.status_mut() = parts.status;
    *response.version_mut() = parts.version;
    *response.headers_mut() = parts.headers;
    response.extensions_mut().extend(parts.extensions);
    Ok(response.into())
}

fn elsewhere(error: reqwest::Error) -> Error {
    let kind = if error.is_builder() {
        ErrorKind::InvalidRequest
    } else if error.is_connect() {
        ErrorKind::Connect
    } else if error.is_timeout() {
        ErrorKind::Timeout
    } else {
        ErrorKind::Request
    };
    let sent = matches!(kind, ErrorKind::Timeout | ErrorKind::Request);
    Error::new(kind)
        .after_sending(sent)
        .context("by the client for what is no service")
        .because(error)
}

/// A resolver for reqwest's own client: names of services lead to instances, ports included.
///
/// For a host that names a service, as [`Services`] tells, it gives the addresses of up to 16
/// instances in an order drawn by weight, and reqwest tries them in turn. The port of the instance is
/// used if the URL has none; reqwest overrides it otherwise. Any other host is resolved by the system.
///
/// reqwest asks when it opens a connection and does not say how that went. It keeps connections in a pool under the name of the
/// host, so that this balances connections and not requests: over HTTP/2 all requests go to one
/// instance. [`Client`] balances requests.
///
/// # Examples
///
/// ```no_run
/// use lictor_tower::reqwest_013::Resolver;
///
/// # async fn example(consul: lictor::Client) -> Result<(), Box<dyn std::error::Error>> {
/// let http = reqwest::Client::builder()
///     .dns_resolver(Resolver::new(consul)?)
///     .build()?;
/// println!("{}", http.get("http://web/hello").send().await?.text().await?);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Resolver {
    dialers: Arc<Directory<Dialer>>,
}

impl Resolver {
    /// A resolver of these services; a [`lictor::Client`] stands for all that it finds.
    ///
    /// # Errors
    ///
    /// [`NoRuntime`](ErrorKind::NoRuntime) outside of a Tokio runtime,
    /// [`Invalid`](ErrorKind::Invalid) for an option of [`Services`] out of its range.
    pub fn new(services: impl Into<Services>) -> Result<Self> {
        let dialers = Directory::new(services.into(), |client, wanted| {
            tcp::Builder::wanted(client, wanted).build()
        })?;
        Ok(Self {
            dialers: Arc::new(dialers),
        })
    }
}

impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        let dialers = Arc::clone(&self.dialers);
        Box::pin(async move {
            let Some(dialer) = dialers.find(name.as_str())? else {
                // Port 0 stands for that of the URL's scheme.
                let found: Vec<SocketAddr> = lookup_host((name.as_str(), 0)).await?.collect();
                return Ok(Box::new(found.into_iter()) as Addrs);
            };
            let mut found = Vec::new();
            let mut unknown = None;
            for target in dialer.order().await? {
                match addresses(&target).await {
                    Ok(addresses) => found.extend(addresses),
                    Err(error) => unknown = Some(error),
                }
            }
            match unknown {
                Some(error) if found.is_empty() => Err(error),
                _ => Ok(Box::new(found.into_iter()) as Addrs),
            }
        })
    }
}

async fn addresses(target: &Target) -> Result<Vec<SocketAddr>, BoxError> {
    Ok(match target.host() {
        Host::Ip(ip) => vec![SocketAddr::new(*ip, target.port())],
        Host::Name(name) => lookup_host((&**name, target.port())).await?.collect(),
    })
}

impl fmt::Debug for Resolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Resolver").finish_non_exhaustive()
    }
}
