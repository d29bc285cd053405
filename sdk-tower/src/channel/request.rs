//! What a request looks like on the wire: its form, its host, and whether it may be repeated.

use std::borrow::Cow;

use http::header::HOST;
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderValue, Method, Request, Uri, Version};

use crate::connect::{Outgoing, Protocol, Wire};
use crate::error::{BoxError, Error, ErrorKind};

use super::upstream::Upstream;

/// The rules by which requests are written.
#[derive(Debug)]
pub(super) struct Addressing {
    /// [`Protocol::Auto`] only under TLS.
    pub(super) protocol: Protocol,
    pub(super) is_secured: bool,
    /// The name of the service, for requests that name no host.
    pub(super) host: Option<Name>,
}

/// A host name in both forms in which it is sent.
#[derive(Clone, Debug)]
pub(super) struct Name {
    /// As it was given, with credentials if there were any.
    asked: Authority,
    authority: Authority,
    value: HeaderValue,
}

/// The name that the last request of this handle had: it is mostly the same.
pub(super) type HostCache = Option<Name>;

/// What to say where the request says no more.
pub(super) enum Host {
    /// The request's own `Host` header stays.
    Kept,
    /// HTTP/1.1's `Host`.
    Header(HeaderValue),
    /// HTTP/2's `:authority`.
    Authority(Authority),
    /// Either, as the connection turns out to be.
    Named(Box<Name>),
    /// Nobody has named a host: the endpoint's address is the name.
    Endpoint,
}

impl Name {
    pub(super) fn new(asked: &Authority) -> Option<Self> {
        // Credentials in an authority are not part of the host (RFC 9110, 4.2.4).
        let host = asked.as_str().rsplit('@').next()?;
        let value = HeaderValue::from_str(host).ok()?;
        let authority = if host.len() == asked.as_str().len() {
            asked.clone()
        } else {
            Authority::try_from(host).ok()?
        };
        Some(Self {
            asked: asked.clone(),
            authority,
            value,
        })
    }

    /// Without credentials, port, and the brackets of an IPv6 address.
    pub(super) fn host(&self) -> &str {
        let host = self.authority.host();
        host.trim_start_matches('[').trim_end_matches(']')
    }
}

impl Addressing {
    /// Brings a request into the form in which it is sent.
    ///
    /// The path is what matters: `/hello` and `http://web/hello` go the same way. The authority of
    /// an absolute URI is the host that is told (RFC 9112, 3.2.2), before a `Host` header, before
    /// the name of the service, before the address of the endpoint.
    pub(super) fn prepare<B>(
        &self,
        request: Request<B>,
        cache: &mut HostCache,
    ) -> Result<(Request<Outgoing>, Host), Error>
    where
        B: http_body::Body + Send + 'static,
        B::Data: Send,
        B::Error: Into<BoxError>,
    {
        let mut request = request.map(Outgoing::new);
        if request.method() == Method::CONNECT {
            return Err(unsendable("CONNECT asks for a tunnel to one host"));
        }
        let uri = std::mem::take(request.uri_mut()).into_parts();
        match &uri.scheme {
            None => {
                // `hello` is parsed as a host, and would be sent as `/`.
                if let Some(host) = &uri.authority {
                    return Err(unsendable(format!(
                        "its URI is a bare host; a path begins with `/`: /{host}"
                    )));
                }
            }
            Some(scheme) if *scheme == Scheme::HTTP => {}
            // Whoever says http to a channel under TLS gets more than was asked for.
            Some(scheme) if *scheme == Scheme::HTTPS && self.is_secured => {}
            Some(scheme) if *scheme == Scheme::HTTPS => {
                return Err(unsendable(
                    "this channel speaks plain http, not https; see Builder::tls",
                ));
            }
            Some(scheme) => {
                return Err(unsendable(format!("{scheme} is not the scheme http")));
            }
        }
        let path = uri
            .path_and_query
            .unwrap_or_else(|| PathAndQuery::from_static("/"));
        // "The asterisk-form of request-target is only used for a server-wide OPTIONS request"
        // (RFC 9112, 3.2.4).
        if path.path() == "*" && request.method() != Method::OPTIONS {
            return Err(unsendable("the path * is for OPTIONS alone"));
        }
        *request.uri_mut() = Uri::from(path);
        let name = match uri.authority {
            Some(authority) => Some(self.named(&authority, cache)?),
            None => match (self.protocol, request.headers().get(HOST)) {
                (Protocol::Http1, Some(_)) => return Ok((request, Host::Kept)),
                (Protocol::Http2 | Protocol::Auto, Some(value)) => {
                    let authority = Authority::try_from(value.as_bytes())
                        .map_err(|error| unsendable("its Host header is no host").because(error))?;
                    Some(self.named(&authority, cache)?)
                }
                (_, None) => self.host.as_ref(),
            },
        };
        let host = match (self.protocol, name) {
            (_, None) => Host::Endpoint,
            (Protocol::Http1, Some(name)) => Host::Header(name.value.clone()),
            (Protocol::Http2, Some(name)) => Host::Authority(name.authority.clone()),
            (Protocol::Auto, Some(name)) => Host::Named(Box::new(name.clone())),
        };
        Ok((request, host))
    }

    /// The name as it is sent: mostly that of the service, or that of the request before.
    fn named<'a>(
        &'a self,
        authority: &Authority,
        cache: &'a mut HostCache,
    ) -> Result<&'a Name, Error> {
        // Compared by letter: credentials, which are cut off, differ by case.
        let is_known = |name: &&Name| name.asked.as_str() == authority.as_str();
        if let Some(name) = self.host.as_ref().filter(is_known) {
            return Ok(name);
        }
        if cache.as_ref().filter(is_known).is_none() {
            *cache = Name::new(authority);
        }
        cache
            .as_ref()
            .ok_or_else(|| unsendable("the host in its URI is no host"))
    }
}

impl Host {
    /// Writes the host into a request that goes to this endpoint, in the form that its connection asks
    /// for.
    ///
    /// A request that came back unsent may have been written in the other form before.
    pub(super) fn write(&self, request: &mut Request<Outgoing>, to: &Upstream, wire: Wire) {
        match wire {
            Wire::Http1 => {
                *request.version_mut() = Version::HTTP_11;
                if request.uri().authority().is_some() {
                    write_path(request);
                }
                let header = match self {
                    Self::Kept | Self::Authority(_) => None,
                    Self::Header(value) => Some(value),
                    Self::Named(name) => Some(&name.value),
                    Self::Endpoint => to.host(),
                };
                if let Some(value) = header {
                    request.headers_mut().insert(HOST, value.clone());
                }
            }
            Wire::Http2 => {
                *request.version_mut() = Version::HTTP_2;
                let authority = match self {
                    Self::Kept | Self::Header(_) => None,
                    Self::Authority(authority) => Some(authority),
                    Self::Named(name) => Some(&name.authority),
                    Self::Endpoint => to.authority(),
                };
                // HTTP/2 says it in `:authority` (RFC 9113, 8.3.1).
                request.headers_mut().remove(HOST);
                if let Some(authority) = authority {
                    write_authority(request, authority, to.scheme());
                }
            }
        }
    }
}

/// A copy without the body.
///
/// Taken before the host is written: a request without headers of its own costs no allocation.
pub(super) fn copy(request: &Request<Outgoing>) -> Request<Outgoing> {
    let mut copy = Request::new(Outgoing::Empty);
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.version_mut() = request.version();
    if !request.headers().is_empty() {
        *copy.headers_mut() = request.headers().clone();
    }
    if !request.extensions().is_empty() {
        *copy.extensions_mut() = request.extensions().clone();
    }
    copy
}

fn write_path(request: &mut Request<Outgoing>) {
    let path = std::mem::take(request.uri_mut())
        .into_parts()
        .path_and_query;
    *request.uri_mut() = Uri::from(path.unwrap_or_else(|| PathAndQuery::from_static("/")));
}

fn write_authority(request: &mut Request<Outgoing>, authority: &Authority, scheme: Scheme) {
    let mut parts = std::mem::take(request.uri_mut()).into_parts();
    parts.scheme = Some(scheme);
    parts.authority = Some(authority.clone());
    if parts.path_and_query.is_none() {
        parts.path_and_query = Some(PathAndQuery::from_static("/"));
    }
    // A URI of scheme, authority and path is always whole.
    *request.uri_mut() = Uri::from_parts(parts).unwrap_or_default();
}

fn unsendable(why: impl Into<Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::InvalidRequest).context(why)
}

#[cfg(test)]
mod tests {
    use http_body_util::{Empty, Full};

    use bytes::Bytes;

    use super::*;

    fn addressing(protocol: Protocol, host: Option<&str>) -> Addressing {
        let host = host.map(|host| Name::new(&host.parse().unwrap()).unwrap());
        Addressing {
            protocol,
            is_secured: false,
            host,
        }
    }

    fn get(uri: &str) -> http::request::Builder {
        Request::get(uri)
    }

    fn sent_to(
        rules: &Addressing,
        request: http::request::Builder,
    ) -> Result<Request<Outgoing>, Error> {
        let wire = match rules.protocol {
            Protocol::Http2 => Wire::Http2,
            Protocol::Http1 | Protocol::Auto => Wire::Http1,
        };
        let target = "10.0.0.1:8080".parse().unwrap();
        let to = Upstream::unconnected(&target);
        let request = request.body(Empty::<Bytes>::new()).unwrap();
        let (mut request, host) = rules.prepare(request, &mut None)?;
        host.write(&mut request, &to, wire);
        Ok(request)
    }

    #[test]
    fn http1_tells_path_and_host_in_the_stated_order() {
        let named = addressing(Protocol::Http1, Some("web"));
        let unnamed = addressing(Protocol::Http1, None);
        let cases = [
            (
                &named,
                get("http://api:81/a?b=c").header(HOST, "own"),
                "/a?b=c",
                "api:81",
            ),
            (&named, get("http://me:secret@api/a"), "/a", "api"),
            (&named, get("http://api"), "/", "api"),
            (&named, get("/a").header(HOST, "own"), "/a", "own"),
            (&named, get("/a"), "/a", "web"),
            (&unnamed, get("/a"), "/a", "10.0.0.1:8080"),
        ];
        for (rules, request, uri, host) in cases {
            let sent = sent_to(rules, request).unwrap();
            assert_eq!(sent.uri(), uri);
            assert_eq!(sent.headers()[HOST], host);
            assert_eq!(sent.version(), Version::HTTP_11);
        }
    }

    #[test]
    fn http2_tells_the_host_in_the_authority_only() {
        let named = addressing(Protocol::Http2, Some("web"));
        let unnamed = addressing(Protocol::Http2, None);
        let cases = [
            (
                &named,
                get("http://api:81/a").header(HOST, "own"),
                "http://api:81/a",
            ),
            (
                &named,
                get("/a?b").header(HOST, "own:1"),
                "http://own:1/a?b",
            ),
            (&named, get("/a"), "http://web/a"),
            (&unnamed, get("/a"), "http://10.0.0.1:8080/a"),
        ];
        for (rules, request, uri) in cases {
            let sent = sent_to(rules, request).unwrap();
            assert_eq!(sent.uri(), uri);
            assert!(!sent.headers().contains_key(HOST));
            assert_eq!(sent.version(), Version::HTTP_2);
        }
    }

    #[test]
    fn a_request_that_came_back_is_written_in_the_form_of_its_next_connection() {
        let target = "10.0.0.1:8080".parse().unwrap();
        let to = Upstream::unconnected(&target);
        for (host, request, told) in [
            (Some("web"), get("/a?b"), "web"),
            (Some("web"), get("/a?b").header(HOST, "own"), "own"),
            (Some("web"), get("https://api:81/a?b"), "api:81"),
            (None, get("/a?b"), "10.0.0.1:8080"),
        ] {
            let mut rules = addressing(Protocol::Auto, host);
            rules.is_secured = true;
            let request = request.body(Empty::<Bytes>::new()).unwrap();
            let (mut request, host) = rules.prepare(request, &mut None).unwrap();
            for _ in 0..2 {
                host.write(&mut request, &to, Wire::Http2);
                assert_eq!(request.uri().authority().unwrap(), told);
                assert!(!request.headers().contains_key(HOST));
                assert_eq!(request.version(), Version::HTTP_2);
                host.write(&mut request, &to, Wire::Http1);
                assert_eq!(request.uri(), "/a?b");
                assert_eq!(request.headers()[HOST], told);
                assert_eq!(request.version(), Version::HTTP_11);
            }
        }
    }

    #[test]
    fn what_cannot_be_sent_is_refused_with_the_reason() {
        let rules = addressing(Protocol::Http1, None);
        for (request, why) in [
            (get("https://web/"), "https"),
            (get("ftp://web/"), "ftp"),
            (get("web:80").method(Method::CONNECT), "CONNECT"),
            (get("hello"), "a path begins with `/`: /hello"),
            (get("*"), "OPTIONS"),
        ] {
            let error = sent_to(&rules, request).err().unwrap();
            assert_eq!(error.kind(), ErrorKind::InvalidRequest);
            assert!(error.to_string().contains(why), "{error}");
        }
        sent_to(&rules, get("*").method(Method::OPTIONS)).unwrap();
        let rules = addressing(Protocol::Http2, None);
        let error = sent_to(&rules, get("/").header(HOST, "a b")).err().unwrap();
        assert_eq!(error.kind(), ErrorKind::InvalidRequest);
    }

    #[test]
    fn the_host_of_the_last_request_is_remembered() {
        let rules = addressing(Protocol::Http1, None);
        let mut cache = None;
        for (uri, host) in [
            ("http://a/", "a"),
            ("http://a/", "a"),
            ("http://b/", "b"),
            ("http://x:Y@c/", "c"),
            ("http://x:y@c/", "c"),
        ] {
            let request = get(uri).body(Empty::<Bytes>::new()).unwrap();
            let (_, written) = rules.prepare(request, &mut cache).unwrap();
            let Host::Header(value) = written else {
                panic!("{uri}");
            };
            assert_eq!(value, host);
        }
    }

    #[test]
    fn a_copy_is_the_same_but_for_its_body() {
        let rules = addressing(Protocol::Http1, None);
        let prepared = |method: Method, body: &'static str| {
            let request = Request::builder()
                .method(method)
                .uri("/a?b")
                .header("x", "y")
                .extension(7_u8)
                .body(Full::new(Bytes::from_static(body.as_bytes())))
                .unwrap();
            rules.prepare(request, &mut None).unwrap().0
        };
        for method in [Method::GET, Method::HEAD, Method::PUT, Method::POST] {
            let copied = copy(&prepared(method.clone(), "x"));
            assert!(copied.body().is_empty());
            assert_eq!(copied.method(), method);
            assert_eq!(copied.uri(), "/a?b");
            assert_eq!(copied.headers()["x"], "y");
            assert_eq!(copied.extensions().get::<u8>(), Some(&7));
        }
    }
}
