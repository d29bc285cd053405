//! The default transport where the agent speaks HTTPS: reqwest, and the only file that names it.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::uri::Authority;
use http::{Response, Uri};
use reqwest::Url;
use tower_service::Service;

use super::{Lane, Request, Settings};
use crate::error::{Error, ErrorKind, Result};

/// One pool of connections per lane, so that a heartbeat never waits for, or inherits the fate of,
/// a connection that a blocking query holds.
#[derive(Clone, Debug)]
pub(crate) struct Http(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    call: reqwest::Client,
    poll: reqwest::Client,
    beat: reqwest::Client,
    origin: Option<Origin>,
}

impl Http {
    pub(crate) fn new(settings: &Settings) -> Result<Self> {
        Ok(Self(Arc::new(Shared {
            call: client(settings)?,
            poll: client(settings)?,
            beat: client(settings)?,
            origin: Origin::new(&settings.origin),
        })))
    }
}

/// Where requests go, read once: a whole URL, read anew for each, is a tenth of a small call.
#[derive(Debug)]
struct Origin {
    uri: Uri,
    url: Url,
}

impl Origin {
    /// `None` if reqwest will not take it; the request then tells why.
    fn new(uri: &Uri) -> Option<Self> {
        let url = Url::parse(&uri.to_string()).ok()?;
        Some(Self {
            uri: uri.clone(),
            url,
        })
    }

    /// The URL of `uri`, unless it has another origin.
    fn url(&self, uri: &Uri) -> Option<Url> {
        let same = uri.scheme() == self.uri.scheme()
            && uri.authority().map(Authority::as_str)
                == self.uri.authority().map(Authority::as_str);
        same.then(|| {
            let mut url = self.url.clone();
            url.set_path(uri.path());
            url.set_query(uri.query());
            url
        })
    }
}

impl Shared {
    fn request(&self, request: Request) -> reqwest::Result<reqwest::Request> {
        let origin = self.origin.as_ref();
        let Some(url) = origin.and_then(|origin| origin.url(request.uri())) else {
            return reqwest::Request::try_from(request);
        };
        let (head, body) = request.into_parts();
        let mut request = reqwest::Request::new(head.method, url);
        *request.headers_mut() = head.headers;
        *request.body_mut() = Some(body.into());
        Ok(request)
    }
}

fn client(settings: &Settings) -> Result<reqwest::Client> {
    let mut builder = reqwest::Client::builder()
        // A redirect would turn a write into a read: Consul answers `//` in a path with one.
        .redirect(reqwest::redirect::Policy::none())
        // Only the caller knows what may be repeated.
        .retry(reqwest::retry::never())
        // An agent is a neighbour; a proxy of the environment is not meant for it.
        .no_proxy()
        .referer(false)
        .http1_only()
        .tcp_nodelay(true)
        .tcp_keepalive(Duration::from_secs(15))
        .connect_timeout(settings.connect_timeout)
        .pool_idle_timeout(Duration::from_secs(90))
        .pool_max_idle_per_host(super::MOST_IDLE);
    if let Some(tls) = &settings.tls {
        builder = builder.tls_backend_preconfigured(tls.config()?);
        // The URI then bears the name that TLS expects, and every name resolves to the agent.
        if tls.name().is_some() {
            builder = builder.dns_resolver(Arc::new(Always(settings.host.clone())));
        }
    }
    builder.build().map_err(|err| {
        Error::new(ErrorKind::Config)
            .context("HTTP client")
            .caused_by(err)
    })
}

/// Resolves every name to one host.
struct Always(String);

impl reqwest::dns::Resolve for Always {
    fn resolve(&self, _name: reqwest::dns::Name) -> reqwest::dns::Resolving {
        let host = self.0.clone();
        Box::pin(async move {
            let found: Vec<_> = tokio::net::lookup_host((host, 0)).await?.collect();
            let addrs: reqwest::dns::Addrs = Box::new(found.into_iter());
            Ok(addrs)
        })
    }
}

impl Service<Request> for Http {
    type Response = Response<reqwest::Body>;
    type Error = Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request) -> Self::Future {
        let shared = &*self.0;
        let client = match request.extensions().get() {
            Some(Lane::Poll) => &shared.poll,
            Some(Lane::Beat) => &shared.beat,
            Some(Lane::Call) | None => &shared.call,
        };
        let sending = shared
            .request(request)
            .map(|request| client.execute(request));
        Box::pin(async move {
            let response = sending.map_err(failed)?.await.map_err(failed)?;
            Ok(response.into())
        })
    }
}

fn failed(err: reqwest::Error) -> Error {
    let kind = if err.is_builder() {
        ErrorKind::Invalid
    } else if err.is_connect() {
        ErrorKind::Connect
    } else if err.is_timeout() {
        ErrorKind::Timeout
    } else {
        ErrorKind::Transport
    };
    Error::new(kind).caused_by(err.without_url())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_from_its_origin_is_the_url_read_as_a_whole() {
        for origin in [
            "http://127.0.0.1:8500",
            "http://Consul",
            "https://c:443",
            "http://[::1]:85",
        ] {
            let known = Origin::new(&format!("{origin}/prefix/").parse().unwrap()).unwrap();
            for path in [
                "/",
                "/v1/kv/a%20b%3Fc%23d/%C3%BC?raw&dc=a%26b",
                "/p/v1/kv/a//b/?index=1&wait=5000ms",
                "/v1/kv/x'~!$()*,;:@?filter=%22'%22",
            ] {
                let uri: Uri = format!("{origin}{path}").parse().unwrap();
                let whole = Url::parse(&uri.to_string()).unwrap();
                assert_eq!(known.url(&uri), Some(whole));
            }
        }
    }

    #[test]
    fn a_uri_of_another_origin_is_not_sent_to_this_one() {
        let known = Origin::new(&Uri::from_static("http://a:1/")).unwrap();
        for other in ["http://a:2/", "http://b:1/", "https://a:1/", "/"] {
            assert_eq!(known.url(&Uri::from_static(other)), None, "{other}");
        }
    }
}
