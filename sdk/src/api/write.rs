//! Writes: what may be asked of every `PUT` and `DELETE` endpoint.

use std::fmt;
use std::future::IntoFuture;
use std::time::Duration;

use bytes::Bytes;
use http::Method;
use serde::Serialize;

use super::endpoint::Answered;
use super::{Endpoint, Sending};
use crate::client::{Call, Client};
use crate::error::{Error, Result};
use crate::ident::{Datacenter, Token};
use crate::proto::query::Target;
use crate::transport::Lane;

/// A write that has not been sent yet.
///
/// Set what is wanted, then await it, or [`send`](Self::send) it.
#[must_use = "a write does nothing until it is awaited"]
#[derive(Clone)]
pub struct Write<E> {
    client: Client,
    pub(crate) call: Call,
    pub(crate) endpoint: E,
    wrong: Option<Error>,
}

impl<E> Write<E> {
    pub(crate) fn put(client: &Client, target: Target, endpoint: E) -> Self {
        Self {
            client: client.clone(),
            call: Call::put(target),
            endpoint,
            wrong: None,
        }
    }

    /// The target of a name that a caller gave; a refused one is told when the call is awaited.
    pub(crate) fn named<N: AsRef<str>>(
        client: &Client,
        path: &'static str,
        name: Result<N>,
        endpoint: E,
    ) -> Self {
        match name {
            Ok(name) => Self::put(client, Target::of(path, name.as_ref()), endpoint),
            Err(err) => Self::put(client, Target::new(path), endpoint).refuse(err),
        }
    }

    pub(crate) fn deleting(mut self) -> Self {
        self.call.method = Method::DELETE;
        self
    }

    pub(super) fn posting(mut self) -> Self {
        self.call.method = Method::POST;
        self
    }

    /// Remembers the first thing that was wrong.
    pub(crate) fn refuse(mut self, err: Error) -> Self {
        self.wrong.get_or_insert(err);
        self
    }

    /// Adds a query parameter.
    pub(crate) fn parameter(mut self, name: &str, value: &str) -> Self {
        self.call.target.push(name, value);
        self
    }

    /// Adds a query parameter without a value.
    pub(crate) fn flag(mut self, name: &str) -> Self {
        self.call.target.flag(name);
        self
    }

    /// Sends these bytes.
    pub(crate) fn bytes(mut self, body: Bytes) -> Self {
        self.call.body = body;
        self.call.content_type = Some("application/octet-stream");
        self
    }

    /// Sends this as JSON.
    pub(crate) fn json<T: Serialize + ?Sized>(mut self, body: &T) -> Self {
        match serde_json::to_vec(body) {
            Ok(json) => {
                self.call.body = json.into();
                self.call.content_type = Some("application/json");
                self
            }
            Err(err) => self.refuse(Error::invalid("cannot be written as JSON").caused_by(err)),
        }
    }

    /// Goes out beside all other calls, because lateness does harm.
    pub(crate) fn beat(mut self) -> Self {
        self.call.lane = Lane::Beat;
        self
    }

    /// The datacenter that takes the write. Default: the client's.
    pub fn datacenter(mut self, datacenter: impl TryInto<Datacenter, Error = Error>) -> Self {
        match datacenter.try_into() {
            Ok(datacenter) => {
                self.client = self.client.with_datacenter(datacenter);
                self
            }
            Err(err) => self.refuse(err),
        }
    }

    /// Asks with this token. Default: the client's.
    pub fn token(mut self, token: Token) -> Self {
        self.client = self.client.with_token(token);
        self
    }

    /// Ends the call after `timeout`. Default: the client's, 15 s.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.call.timeout = Some(timeout);
        self
    }
}

impl<E: Endpoint> Write<E> {
    /// Sends the write, once.
    ///
    /// # Errors
    ///
    /// An argument that was refused, a failure on the way, or what Consul answered instead. After
    /// [`ErrorKind::Timeout`](crate::ErrorKind::Timeout) and
    /// [`ErrorKind::Transport`](crate::ErrorKind::Transport) the write may have taken effect.
    ///
    /// # Cancel safety
    ///
    /// Once polled, the write may take effect even if the future is dropped; its outcome is then
    /// unknown.
    pub async fn send(self) -> Result<E::Output> {
        if let Some(err) = self.wrong {
            return Err(err);
        }
        let raw = self.client.send(self.call).await?;
        self.endpoint.interpret(Answered(raw))
    }
}

impl<E: Endpoint> IntoFuture for Write<E> {
    type Output = Result<E::Output>;
    type IntoFuture = Sending<E::Output>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.send())
    }
}

impl<E> fmt::Debug for Write<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Write")
            .field("method", &self.call.method)
            .field("target", &self.call.target.as_str())
            .field("body", &format_args!("{} bytes", self.call.body.len()))
            .finish_non_exhaustive()
    }
}
