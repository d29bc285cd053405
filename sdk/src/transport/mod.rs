//! Bytes to the agent and back: the seam where another HTTP stack, a proxy or a test can stand.
//!
//! A transport is any [`tower_service::Service`] from [`Request`] to an `http::Response` whose body
//! is an [`http_body::Body`] of [`Bytes`]. The default one is built from the client's settings; to
//! use another, hand it to [`Builder::transport`](crate::client::Builder::transport).
//!
//! A transport sees whole requests, headers and token included. It has no deadline and no size
//! limit of its own to keep: the client puts both around every call. Its errors may be of any type;
//! an [`io::Error`] of the kind [`ConnectionRefused`](io::ErrorKind::ConnectionRefused) says that the
//! request was not sent, any other may have come before or after that.

mod tls;
mod plain;
#[cfg(feature = "tls")]
mod http;

use std::fmt;
use std::future::Future;
use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use ::http::{Response, Uri};
use bytes::{Bytes, BytesMut};
use http_body::Body;
use tower_service::Service;

use crate::error::{Error, ErrorKind, Result};

pub use tls::Tls;

/// What a transport is asked to send.
///
/// The URI is absolute; its path and query are escaped. The extension [`Lane`] tells what kind of
/// call it is.
pub type Request = ::http::Request<Bytes>;

/// An error of any type, as tower's services have it.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// What kind of call a request is: an extension of every [`Request`].
///
/// An agent accepts 200 connections from one address, and a blocking query holds its own for as
/// long as it waits. A transport that shares connections (HTTP/2) or limits them must never let a
/// [`Beat`](Self::Beat) stand behind a [`Poll`](Self::Poll).
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[non_exhaustive]
pub enum Lane {
    /// A call that is answered at once.
    Call,
    /// A blocking query, held open by the agent until something changes.
    Poll,
    /// A heartbeat or a session renewal: late is as bad as lost.
    Beat,
}

/// How many connections of a lane are kept while nobody needs them.
///
/// The agent lets one address have 200 (`http_max_conns_per_client`), for all clients there: what is
/// left of a burst is not to keep others out until it is too old.
const MOST_IDLE: usize = 8;

type Sending<'a> = Pin<Box<dyn Future<Output = Result<Response<Bytes>>> + Send + 'a>>;

/// Takes in the body of a good answer while it comes.
///
/// A body of one piece is not handed over: it is cheaper to read as a whole.
pub(crate) trait Gather: Send {
    fn take(&mut self, piece: &[u8]) -> Result<(), BoxError>;
}

/// How the default transport reaches the agent.
#[derive(Clone, Debug, Default)]
pub(crate) struct Settings {
    /// What all URIs begin with: scheme and authority; its path does not count.
    #[cfg_attr(
        not(feature = "tls"),
        expect(dead_code, reason = "plain requests bear it themselves")
    )]
    pub(crate) origin: Uri,
    /// A unix socket in place of TCP.
    pub(crate) unix_socket: Option<PathBuf>,
    /// The agent's host, where TLS expects another name: connections then go to this host.
    pub(crate) host: String,
    /// TLS settings; used where the URI's scheme is `https`.
    pub(crate) tls: Option<Tls>,
    /// How long a connection may take to open.
    pub(crate) connect_timeout: Duration,
}

/// Something to gather in; it borrows nothing.
pub(crate) type Gathering = dyn Gather + 'static;

/// A transport without its type; it returns whole bodies, up to a limit.
#[derive(Clone)]
pub(crate) struct Transport(Arc<dyn Sender>);

trait Sender: Send + Sync {
    fn send<'a>(
        &'a self,
        request: Request,
        limit: usize,
        gather: Option<&'a mut Gathering>,
    ) -> Sending<'a>;
}

struct Erased<S>(S);

impl Transport {
    pub(crate) fn new<S, B>(service: S) -> Self
    where
        S: Service<Request, Response = Response<B>> + Clone + Send + Sync + 'static,
        S::Error: Into<BoxError>,
        S::Future: Send,
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        Self(Arc::new(Erased(service)))
    }

    /// The default one: hyper for plain HTTP, reqwest for HTTPS.
    pub(crate) fn to(settings: &Settings) -> Result<Self> {
        match &settings.tls {
            None => Ok(Self::new(plain::Plain::new(settings))),
            #[cfg(feature = "tls")]
            Some(_) => Ok(Self::new(http::Http::new(settings)?)),
            #[cfg(not(feature = "tls"))]
            Some(tls) => Err(Error::new(ErrorKind::Config).context(format!(
                "address https://{}: this build has no TLS; turn on the feature `tls` of lictor",
                tls.name().unwrap_or(&settings.host)
            ))),
        }
    }

    /// Sends one request and collects its answer, of at most `limit` bytes.
    ///
    /// What `gather` takes in does not come back as a body.
    pub(crate) fn send<'a>(
        &'a self,
        request: Request,
        limit: usize,
        gather: Option<&'a mut Gathering>,
    ) -> Sending<'a> {
        self.0.send(request, limit, gather)
    }
}

impl fmt::Debug for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Transport")
    }
}

impl<S, B> Sender for Erased<S>
where
    S: Service<Request, Response = Response<B>> + Clone + Send + Sync + 'static,
    S::Error: Into<BoxError>,
    S::Future: Send,
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    fn send<'a>(
        &'a self,
        request: Request,
        limit: usize,
        gather: Option<&'a mut Gathering>,
    ) -> Sending<'a> {
        // A service may only be called after it said it is ready, and readiness belongs to one
        // copy: each request has its own.
        let mut service = self.0.clone();
        Box::pin(async move {
            std::future::poll_fn(|cx| service.poll_ready(cx))
                .await
                .map_err(|err| failed(err.into()))?;
            let response = service
                .call(request)
                .await
                .map_err(|err| failed(err.into()))?;
            let (head, body) = response.into_parts();
            let gather = gather.filter(|_| head.status.is_success());
            let body = collect(body, limit, gather).await?;
            Ok(Response::from_parts(head, body))
        })
    }
}

/// The whole body in one piece, or none of it if it went to `gather`.
///
/// Decoding from a chain of pieces costs a hundred times as much as from one.
async fn collect<B>(body: B, limit: usize, mut gather: Option<&mut Gathering>) -> Result<Bytes>
where
    B: Body<Data = Bytes> + Send,
    B::Error: Into<BoxError>,
{
    let mut body = std::pin::pin!(body);
    let hint = body.size_hint();
    if hint.lower() > limit as u64 {
        return Err(too_large(limit));
    }
    let mut first = None;
    let mut whole = BytesMut::new();
    let mut size = 0;
    while let Some(frame) = std::future::poll_fn(|cx| body.as_mut().poll_frame(cx)).await {
        let Ok(data) = frame.map_err(|err| failed(err.into()))?.into_data() else {
            continue;
        };
        size += data.len();
        if size > limit {
            return Err(too_large(limit));
        }
        if size == data.len() {
            // A body of one piece is handed on without a copy.
            first = Some(data);
            continue;
        }
        if let Some(gather) = &mut gather {
            for piece in [first.take(), Some(data)].into_iter().flatten() {
                gather.take(&piece).map_err(unreadable)?;
            }
            continue;
        }
        if let Some(first) = first.take() {
            // The length a server announces is believed only up to a megabyte ahead of what came.
            let expected = usize::try_from(hint.lower()).unwrap_or(limit);
            whole.reserve(expected.clamp(size, size + AHEAD));
            whole.extend_from_slice(&first);
        }
        whole.extend_from_slice(&data);
    }
    Ok(first.unwrap_or_else(|| whole.freeze()))
}

/// How much memory is taken before the bytes for it have come.
const AHEAD: usize = 1 << 20;

fn unreadable(err: BoxError) -> Error {
    Error::new(ErrorKind::Decode)
        .context("not the JSON this endpoint promises")
        .caused_by(err)
}

fn too_large(limit: usize) -> Error {
    Error::new(ErrorKind::AnswerTooLarge).context(format!(
        "more than {limit} bytes; ask for less or raise the client's `response_limit`"
    ))
}

/// A transport that knows better says so with an [`Error`] of its own; anything else but a refused
/// connection may have happened before or after the request was sent.
fn failed(err: BoxError) -> Error {
    let other = match err.downcast::<Error>() {
        Ok(known) => return *known,
        Err(other) => other,
    };
    let io = other.downcast_ref::<io::Error>();
    let kind = match io.map(io::Error::kind) {
        Some(io::ErrorKind::ConnectionRefused) => ErrorKind::Connect,
        _ => ErrorKind::Transport,
    };
    Error::new(kind).caused_by(other)
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::task::{Context, Poll};

    use super::*;

    struct Pieces(VecDeque<Bytes>);

    impl Body for Pieces {
        type Data = Bytes;
        type Error = BoxError;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _cx: &mut Context<'_>,
        ) -> Poll<Option<Result<http_body::Frame<Bytes>, BoxError>>> {
            Poll::Ready(
                self.0
                    .pop_front()
                    .map(|data| Ok(http_body::Frame::data(data))),
            )
        }
    }

    fn pieces(all: &[&'static str]) -> Pieces {
        Pieces(
            all.iter()
                .map(|one| Bytes::from_static(one.as_bytes()))
                .collect(),
        )
    }

    #[tokio::test]
    async fn a_body_in_pieces_is_put_together() {
        assert_eq!(
            collect(pieces(&["ab", "", "c", "d"]), 4, None)
                .await
                .unwrap(),
            "abcd"
        );
        assert_eq!(collect(pieces(&[]), 4, None).await.unwrap(), "");
    }

    #[tokio::test]
    async fn a_body_above_the_limit_is_refused_while_it_comes() {
        let err = collect(pieces(&["abc", "de"]), 4, None).await.unwrap_err();
        assert_eq!(err.kind(), ErrorKind::AnswerTooLarge);
    }
}
