//! Any endpoint, also those that have no method here.

use std::fmt;
use std::future::IntoFuture;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::read::wait_for;
use super::{Meta, Sending};
use crate::client::{self, Call, Client};
use crate::error::{Error, Result};
use crate::ident::{Datacenter, Token, prefix_like, shortened};
use crate::proto::query::Target;

impl Client {
    /// A request to any endpoint, for what has no method of its own here.
    ///
    /// The path is Consul's, such as `/v1/acl/tokens`, without a query string and not escaped:
    /// everything but `/`, letters, digits and `-._~` is escaped here. Address, token, datacenter
    /// and time-out are the client's, and an error answer is told like that of any other call.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # async fn example(client: lictor::Client) -> lictor::Result<()> {
    /// use http::Method;
    ///
    /// let event = client
    ///     .raw(Method::PUT, "/v1/event/fire/deploy")
    ///     .query("service", "web")
    ///     .body("build 1207")
    ///     .await?;
    /// println!("{}", String::from_utf8_lossy(event.body()));
    /// # Ok(())
    /// # }
    /// ```
    #[doc(alias = "Raw")]
    pub fn raw(&self, method: Method, path: impl AsRef<str>) -> Request {
        let path = path.as_ref();
        let (target, wrong) = match checked(path) {
            Ok(rest) => (Target::of("/v1/", rest), None),
            Err(reason) => {
                let err = Error::invalid(format!("path {:?}: {reason}", shortened(path)));
                (Target::new("/v1/"), Some(err))
            }
        };
        Request {
            client: self.clone(),
            call: Call::new(method, target),
            wrong,
        }
    }
}

/// What stands behind `/v1/`.
fn checked(path: &str) -> Result<&str, &'static str> {
    let Some(rest) = path.strip_prefix("/v1/") else {
        return Err("must begin with `/v1/`");
    };
    if rest.is_empty() {
        return Err("must name an endpoint behind `/v1/`");
    }
    if rest.contains('?') {
        return Err("must not hold `?`; use `query` and `flag` for parameters");
    }
    prefix_like(rest)?;
    Ok(rest)
}

/// A request to any endpoint that has not been sent yet: [`Client::raw`].
///
/// Set what is wanted, then await it, or [`send`](Self::send) it.
#[must_use = "a request does nothing until it is awaited"]
#[derive(Clone)]
pub struct Request {
    client: Client,
    call: Call,
    wrong: Option<Error>,
}

impl Request {
    /// Adds a query parameter; the value is escaped here.
    ///
    /// The name may hold letters, digits, `-` and `_`.
    pub fn query(mut self, name: impl AsRef<str>, value: impl AsRef<str>) -> Self {
        if let Some(name) = self.parameter(name.as_ref()) {
            self.call.target.push(name, value.as_ref());
        }
        self
    }

    /// Adds a query parameter without a value, such as `stale`.
    pub fn flag(mut self, name: impl AsRef<str>) -> Self {
        if let Some(name) = self.parameter(name.as_ref()) {
            self.call.target.flag(name);
        }
        self
    }

    /// Sends these bytes, as `application/octet-stream`. Default: nothing.
    pub fn body(mut self, bytes: impl Into<Bytes>) -> Self {
        self.call.body = bytes.into();
        self.call.content_type = Some("application/octet-stream");
        self
    }

    /// Sends this as JSON. Default: nothing.
    pub fn json<T: Serialize + ?Sized>(mut self, body: &T) -> Self {
        match serde_json::to_vec(body) {
            Ok(json) => {
                self.call.body = json.into();
                self.call.content_type = Some("application/json");
            }
            Err(err) => {
                self.refuse(Error::invalid("cannot be written as JSON").caused_by(err));
            }
        }
        self
    }

    /// The datacenter that answers. Default: the client's.
    pub fn datacenter(mut self, datacenter: impl TryInto<Datacenter, Error = Error>) -> Self {
        match datacenter.try_into() {
            Ok(datacenter) => self.call.datacenter = Some(datacenter),
            Err(err) => self.refuse(err),
        }
        self
    }

    /// Asks with this token. Default: the client's.
    pub fn token(mut self, token: Token) -> Self {
        self.call.token = Some(token);
        self
    }

    /// Ends the call after `timeout`. Default: the client's, 15 s.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.call.timeout = Some(timeout);
        self
    }

    /// Waits for a change since `index`, for at most `wait`, where the endpoint can.
    ///
    /// The same as [`Read::wait_for_change`](super::Read::wait_for_change).
    pub fn wait_for_change(mut self, index: u64, wait: Duration) -> Self {
        self.call.target.push_number("index", index);
        if let Err(err) = wait_for(&mut self.call, wait) {
            self.refuse(err);
        }
        self
    }

    /// Sends the request, once; an answer that is not a success is an error.
    ///
    /// # Errors
    ///
    /// An argument that was refused, a failure on the way, or what Consul answered instead.
    ///
    /// # Cancel safety
    ///
    /// Once polled, the request may take effect even if the future is dropped; its outcome is then
    /// unknown.
    pub async fn send(self) -> Result<Response> {
        Ok(Response(self.answer().await?.good()?))
    }

    /// Sends the request, once; an answer of any status is an answer.
    ///
    /// For endpoints that say something by the status, such as `/v1/txn`, whose 409 has a body.
    ///
    /// # Errors
    ///
    /// An argument that was refused, or a failure on the way.
    ///
    /// # Cancel safety
    ///
    /// As for [`send`](Self::send).
    pub async fn send_for_any_status(self) -> Result<Response> {
        Ok(Response(self.answer().await?))
    }

    async fn answer(self) -> Result<client::Raw> {
        match self.wrong {
            Some(err) => Err(err),
            None => self.client.send(self.call).await,
        }
    }

    /// A parameter's name, unless it is refused.
    fn parameter<'a>(&mut self, name: &'a str) -> Option<&'a str> {
        let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
        if !name.is_empty() && name.bytes().all(plain) {
            return Some(name);
        }
        self.refuse(Error::invalid(format!(
            "query parameter {:?}: may hold only letters, digits, `-` and `_`",
            shortened(name)
        )));
        None
    }

    /// Remembers the first thing that was wrong.
    fn refuse(&mut self, err: Error) {
        self.wrong.get_or_insert(err);
    }
}

impl IntoFuture for Request {
    type Output = Result<Response>;
    type IntoFuture = Sending<Response>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.send())
    }
}

impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Request")
            .field("method", &self.call.method)
            .field("target", &self.call.target.as_str())
            .field("body", &format_args!("{} bytes", self.call.body.len()))
            .finish_non_exhaustive()
    }
}

/// What any endpoint answered: [`Client::raw`].
#[derive(Debug)]
pub struct Response(client::Raw);

impl Response {
    /// The HTTP status.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        self.0.status
    }

    /// All headers.
    #[must_use]
    pub fn headers(&self) -> &HeaderMap {
        &self.0.headers
    }

    /// Index, last contact, leader, cache and backend, as far as the headers tell them.
    #[must_use]
    pub fn meta(&self) -> Meta {
        self.0.meta()
    }

    /// The body as it came.
    #[must_use]
    pub fn body(&self) -> &Bytes {
        &self.0.body
    }

    /// The body as JSON.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Decode`](crate::ErrorKind::Decode) if it is not what the type wants.
    pub fn decode<T: DeserializeOwned>(&self) -> Result<T> {
        self.0.decode()
    }
}
