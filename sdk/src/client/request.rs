//! One request: from a call to its answer.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION, CACHE_CONTROL, CONTENT_TYPE, HeaderMap, HeaderValue};
use http::{Method, StatusCode};
use serde::de::DeserializeOwned;
use tokio::runtime::Handle;

use super::{Client, Shared};
use crate::error::{Error, ErrorKind, Result};
use crate::ident::{Datacenter, Token, text};
use crate::proto::json;
use crate::proto::meta::Meta;
use crate::proto::query::Target;
use crate::proto::status;
use crate::transport::{Gathering, Lane};

/// What to ask, before the client adds what all requests have in common.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub(crate) method: Method,
    pub(crate) target: Target,
    pub(crate) body: Bytes,
    pub(crate) content_type: Option<&'static str>,
    pub(crate) cache_control: Option<HeaderValue>,
    pub(crate) lane: Lane,
    /// The client's default where absent.
    pub(crate) timeout: Option<Duration>,
    /// The client's own where absent.
    pub(crate) token: Option<Token>,
    /// The client's own where absent.
    pub(crate) datacenter: Option<Datacenter>,
}

impl Call {
    pub(crate) fn new(method: Method, target: Target) -> Self {
        Self {
            method,
            target,
            body: Bytes::new(),
            content_type: None,
            cache_control: None,
            lane: Lane::Call,
            timeout: None,
            token: None,
            datacenter: None,
        }
    }

    pub(crate) fn get(target: Target) -> Self {
        Self::new(Method::GET, target)
    }

    pub(crate) fn put(target: Target) -> Self {
        Self::new(Method::PUT, target)
    }
}

/// An answer as it came, whatever its status.
#[derive(Debug)]
pub(crate) struct Raw {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
    asked: Asked,
}

/// What the answer is to, for error texts: without query or token.
struct Asked {
    method: Method,
    target: Target,
    token: Option<Token>,
    shared: Arc<Shared>,
}

impl Client {
    /// Sends one request, once.
    ///
    /// Whatever Consul answers is an answer: [`Raw::good`] tells good ones from others.
    pub(crate) async fn send(&self, call: Call) -> Result<Raw> {
        self.send_gathering(call, None).await
    }

    /// The same; the body of a good answer goes to `gather` if it comes in several pieces.
    pub(crate) async fn send_gathering(
        &self,
        call: Call,
        gather: Option<&mut Gathering>,
    ) -> Result<Raw> {
        if Handle::try_current().is_err() {
            return Err(Error::new(ErrorKind::NoRuntime)
                .context("a request needs one for its deadline: call this inside one"));
        }
        let scope = &*self.scope;
        let mut target = call.target;
        if let Some(datacenter) = call.datacenter.as_ref().or(scope.datacenter.as_ref()) {
            target.push("dc", datacenter);
        }
        if let Some(namespace) = &scope.namespace {
            target.push("ns", namespace);
        }
        if let Some(partition) = &scope.partition {
            target.push("partition", partition);
        }
        let token = call.token.or_else(|| scope.token.current());
        let asked = Asked {
            method: call.method,
            target,
            token,
            shared: Arc::clone(&self.shared),
        };
        let mut request = http::Request::new(call.body);
        *request.method_mut() = asked.method.clone();
        *request.uri_mut() = self.shared.address.uri(asked.target.as_str())?;
        request.extensions_mut().insert(call.lane);
        let headers = request.headers_mut();
        headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
        if let Some(content_type) = call.content_type {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
        }
        if let Some(cache_control) = call.cache_control {
            headers.insert(CACHE_CONTROL, cache_control);
        }
        if let Some(auth) = &self.shared.basic_auth {
            headers.insert(AUTHORIZATION, auth.clone());
        }
        if let Some(token) = &asked.token {
            let mut value = HeaderValue::from_str(token.expose())
                .map_err(|_| Error::invalid("token: cannot stand in a header"))?;
            value.set_sensitive(true);
            headers.insert("x-consul-token", value);
        }
        let timeout = call.timeout.unwrap_or(scope.timeout);
        let sending = self
            .shared
            .transport
            .send(request, self.shared.response_limit, gather);
        match tokio::time::timeout(timeout, sending).await {
            Ok(Ok(response)) => {
                let (head, body) = response.into_parts();
                Ok(Raw {
                    status: head.status,
                    headers: head.headers,
                    body,
                    asked,
                })
            }
            Ok(Err(err)) => {
                let place = asked.place();
                Err(asked.without_secrets(err).at(&place))
            }
            Err(_) => Err(Error::new(ErrorKind::Timeout)
                .context(format!("{}: no answer within {timeout:?}", asked.place(),))),
        }
    }
}

impl Raw {
    /// The answer itself if its status is a success, else the error it tells.
    pub(crate) fn good(self) -> Result<Self> {
        if self.status.is_success() {
            Ok(self)
        } else {
            Err(self.error())
        }
    }

    /// The error that this answer tells.
    pub(crate) fn error(&self) -> Error {
        let body = String::from_utf8_lossy(&self.body);
        let kind = status::kind(self.status, &body);
        let place = self.asked.place();
        let text = self.excerpt(&body);
        let mut context = if text.is_empty() {
            format!("{place}: status {}", self.status.as_u16())
        } else {
            format!("{place}: status {}: {text}", self.status.as_u16())
        };
        if kind == ErrorKind::PermissionDenied {
            context.push_str(self.asked.missing_right(&body));
        }
        Error::new(kind).with_status(self.status).context(context)
    }

    /// What the headers say.
    pub(crate) fn meta(&self) -> Meta {
        Meta::read(self.status, &self.headers)
    }

    /// The body as JSON; `null` is the default value, because Consul writes it for empty lists.
    pub(crate) fn json<T: DeserializeOwned + Default>(&self) -> Result<T> {
        Ok(self.decode::<Option<T>>()?.unwrap_or_default())
    }

    /// The body as JSON.
    pub(crate) fn decode<T: DeserializeOwned>(&self) -> Result<T> {
        let _shared = text::Scope::open(self.body.len());
        json::read(&self.body).map_err(|err| self.unexpected(err))
    }

    /// The body is not what the endpoint promises.
    pub(crate) fn unexpected(&self, err: impl Into<crate::transport::BoxError>) -> Error {
        Error::new(ErrorKind::Decode)
            .with_status(self.status)
            .context(format!(
                "{}: {} bytes, not the JSON this endpoint promises",
                self.asked.place(),
                self.body.len()
            ))
            // What did not fit may be what the server repeated of the request.
            .caused_by(self.asked.masked(&err.into().to_string()))
    }

    /// A text of the answer, without secrets, should the server have repeated them.
    pub(crate) fn masked(&self, text: &str) -> String {
        self.asked.masked(text)
    }

    /// A line of the body, short and without secrets, should the server have repeated them.
    fn excerpt(&self, body: &str) -> String {
        const MOST: usize = 300;
        let body = self.asked.masked(body);
        let mut line: String = body
            .trim()
            .chars()
            .map(|c| if c.is_control() { ' ' } else { c })
            .take(MOST)
            .collect();
        if body.trim().chars().nth(MOST).is_some() {
            line.push('…');
        }
        line
    }
}

impl fmt::Debug for Asked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.place())
    }
}

impl Asked {
    fn place(&self) -> String {
        format!(
            "{} {} on {}",
            self.method,
            self.target.path(),
            self.shared.address
        )
    }

    /// What Consul before 1.11 does not say of a refusal: which right is missing.
    fn missing_right(&self, body: &str) -> &'static str {
        if self.token.is_none() {
            return " (no token was sent)";
        }
        let path = self.target.path();
        let reads = self.method == Method::GET;
        let of = |family| {
            path.strip_prefix("/v1/")
                .is_some_and(|path| path.starts_with(family))
        };
        match reads {
            _ if body.contains("permission '") => "",
            true if of("kv/") => " (the token needs `key:read`)",
            false if of("kv/") => " (the token needs `key:write`)",
            true if of("session/") => " (the token needs `session:read`)",
            false if of("session/") => " (the token needs `session:write`)",
            false if of("agent/service/") => " (the token needs `service:write`)",
            true if of("agent/") => " (the token needs `agent:read`)",
            _ => "",
        }
    }

    /// A text that came from outside, without the secrets of this request.
    fn masked(&self, text: &str) -> String {
        let mut text = match &self.token {
            Some(token) => text.replace(token.expose(), "<token>"),
            None => text.to_owned(),
        };
        let auth = self.shared.basic_auth.as_ref();
        let auth = auth.and_then(|auth| auth.to_str().ok());
        if let Some(encoded) = auth.and_then(|auth| auth.strip_prefix("Basic ")) {
            text = text.replace(encoded, "<basic auth>");
        }
        text
    }

    /// The same error; if a transport put a secret into it, only what is safe to tell.
    fn without_secrets(&self, err: Error) -> Error {
        let told = format!("{err:?}");
        if self.masked(&told) == told {
            return err;
        }
        Error::new(err.kind()).context(self.masked(&err.to_string()))
    }
}
