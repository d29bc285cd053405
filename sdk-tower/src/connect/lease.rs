//! A connection in the hands of one request.

use std::error::Error as StdError;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::TrySendError;
use tokio_util::sync::ReusableBoxFuture;

use super::Wire;
use super::body::{BodyFailed, Outgoing};
use super::http1::Http1;
use super::http2::Http2;
#[cfg(feature = "tls")]
use super::tls::is_refusal;

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
    pub(crate) fault: Fault,
    pub(crate) error: Failure,
}

/// What went wrong; reads like the error that is nearest to the cause.
#[derive(Debug)]
pub(crate) struct Failure {
    /// None if the connection took no more requests when this one was to be sent.
    error: Option<hyper::Error>,
    /// What has ended the connection, where the request was only told that it has.
    ended: Option<Arc<hyper::Error>>,
}

impl Failure {
    /// The answer cannot be understood.
    pub(crate) fn is_parse(&self) -> bool {
        self.error.as_ref().is_some_and(hyper::Error::is_parse)
    }

    /// It is a mistake on our side.
    pub(crate) fn is_user(&self) -> bool {
        self.error.as_ref().is_some_and(hyper::Error::is_user)
    }

    fn told(&self) -> Option<&hyper::Error> {
        self.ended.as_deref().or(self.error.as_ref())
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.told() {
            Some(told) => told.fmt(f),
            None => f.write_str("the connection takes no more requests"),
        }
    }
}

impl StdError for Failure {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.told()?.source()
    }
}

/// Whose fault it is that there is no response.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Fault {
    Connection,
    /// The request's own body failed.
    Body,
    /// The endpoint guarantees that the request was not processed: it says so (RFC 9113, 8.7), or
    /// has refused the TLS handshake.
    Unprocessed,
}

impl Fault {
    fn of(error: &hyper::Error) -> Self {
        if error.is_body_write_aborted() {
            return Self::Body;
        }
        let mut cause = error.source();
        while let Some(error) = cause {
            if error.is::<BodyFailed>() {
                return Self::Body;
            }
            if let Some(error) = error.downcast_ref::<h2::Error>() {
                return Self::of_stream(error);
            }
            if error.downcast_ref().is_some_and(is_refusal) {
                return Self::Unprocessed;
            }
            cause = error.source();
        }
        Self::Connection
    }

    fn of_stream(error: &h2::Error) -> Self {
        // A GOAWAY ends those streams alone that are above the last one it names.
        let refused = error.is_go_away() || error.reason() == Some(h2::Reason::REFUSED_STREAM);
        if error.is_remote() && refused || error.get_io().is_some_and(is_refusal) {
            Self::Unprocessed
        } else if error.is_reset() && !error.is_remote() && !error.is_library() {
            // The only stream that hyper resets while its response is awaited.
            Self::Body
        } else {
            Self::Connection
        }
    }
}

/// Nobody refuses a handshake in plain text.
#[cfg(not(feature = "tls"))]
fn is_refusal(_: &std::io::Error) -> bool {
    false
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

    /// The attempt that it came of was under way before the request that gets it.
    pub(super) fn stood_before(&mut self) {
        match self {
            Self::Http1(connection) => connection.rest(),
            Self::Http2(stream) => stream.stood_before(),
        }
    }

    /// What is spoken on the connection.
    pub(crate) fn wire(&self) -> Wire {
        match self {
            Self::Http1(_) => Wire::Http1,
            Self::Http2(_) => Wire::Http2,
        }
    }

    /// Whether other requests may be under way on the same connection.
    pub(crate) fn is_shared(&self) -> bool {
        matches!(self, Self::Http2(_))
    }

    /// Whether what was to be sent may have left: on a shared connection it may have to wait.
    pub(crate) fn is_sent(&self) -> bool {
        match self {
            Self::Http1(_) => true,
            Self::Http2(stream) => stream.is_sent(),
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
        if let Self::Http2(stream) = self
            && let Some(request) = ready!(stream.poll_queued(cx))
        {
            return Poll::Ready(Err(SendFailed {
                unsent: Some(request),
                fault: Fault::Connection,
                error: Failure {
                    error: None,
                    ended: stream.ended(),
                },
            }));
        }
        let call = match self {
            Self::Http1(connection) => connection.call(),
            Self::Http2(stream) => stream.call(),
        };
        let sent = ready!(Pin::new(call).poll(cx));
        if let (Self::Http2(stream), Ok(_)) = (&*self, &sent) {
            stream.answered();
        }
        Poll::Ready(sent.map_err(|mut failed| {
            let ended = match &*self {
                Self::Http2(stream) if failed.error().is_canceled() => stream.ended(),
                Self::Http1(_) | Self::Http2(_) => None,
            };
            SendFailed {
                unsent: failed.take_message(),
                fault: Fault::of(ended.as_deref().unwrap_or_else(|| failed.error())),
                error: Failure {
                    error: Some(failed.into_error()),
                    ended,
                },
            }
        }))
    }
}
