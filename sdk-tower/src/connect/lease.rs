//! A connection in the hands of one request.

use std::pin::Pin;
use std::task::{Context, Poll};

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::TrySendError;
use tokio_util::sync::ReusableBoxFuture;

use super::body::Outgoing;
use super::http1::Http1;
use super::http2::Http2;

/// What a connection says of one request.
pub(super) type Sent = Result<Response<Incoming>, TrySendError<Request<Outgoing>>>;

/// The wait for [`Sent`]: hyper's future has no name, so it is boxed, in a box that is kept.
pub(super) type Call = ReusableBoxFuture<'static, Sent>;

/// A connection that one request may use; dropping it gives the request up.
pub(crate) enum Lease {
    /// The whole connection; it goes back to the pool by [`Pool::release`](super::Pool::release).
    Http1(Box<Http1>),
    /// One stream of a shared connection.
    Http2(Http2),
}

/// Why there is no response.
pub(crate) struct SendFailed {
    /// The request, if nothing of it was written.
    pub(crate) unsent: Option<Request<Outgoing>>,
    pub(crate) error: hyper::Error,
}

impl Lease {
    /// Whether the connection stood before this request: the endpoint may have closed it by the
    /// time the request arrives.
    pub(crate) fn is_reused(&self) -> bool {
        match self {
            Self::Http1(connection) => connection.is_reused(),
            Self::Http2(stream) => stream.is_reused(),
        }
    }

    pub(crate) fn send(&mut self, request: Request<Outgoing>) {
        match self {
            Self::Http1(connection) => connection.send(request),
            Self::Http2(stream) => stream.send(request),
        }
    }

    /// Waits for the head of the response to what was sent; not to be polled after it is there.
    pub(crate) fn poll_response(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Response<Incoming>, SendFailed>> {
        let call = match self {
            Self::Http1(connection) => connection.call(),
            Self::Http2(stream) => stream.call(),
        };
        let sent = std::task::ready!(Pin::new(call).poll(cx));
        if let (Self::Http2(stream), Ok(_)) = (&*self, &sent) {
            stream.answered();
        }
        Poll::Ready(sent.map_err(|mut failed| SendFailed {
            unsent: failed.take_message(),
            error: failed.into_error(),
        }))
    }
}
