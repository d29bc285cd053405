//! Bodies that count as load of their endpoint until they have ended.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use http::Response;
use http_body::{Body, Frame, SizeHint};
use pin_project::pin_project;
use tower_service::Service;

use crate::balance::InFlight;
use crate::endpoint::Target;
use crate::error::{BoxError, Result};

use super::classify::Classify;
use super::future::ResponseFuture;
use super::leaf::Leaf;

/// The response of a [`CountBodies`](super::CountBodies).
///
/// # Cancel safety
///
/// That of [`ResponseFuture`].
#[must_use = "futures do nothing unless polled"]
#[pin_project]
pub struct BodyFuture<S, Req, C>
where
    S: Service<Req> + Send + 'static,
{
    #[pin]
    response: ResponseFuture<S, Req, C>,
}

impl<S, Req, C> BodyFuture<S, Req, C>
where
    S: Service<Req> + Send + 'static,
{
    pub(super) fn new(response: ResponseFuture<S, Req, C>) -> Self {
        Self { response }
    }
}

impl<S, Req, C, B> Future for BodyFuture<S, Req, C>
where
    S: Service<Req, Response = Response<B>> + Clone + Send + 'static,
    S::Error: Into<BoxError>,
    C: Classify<S::Response, S::Error>,
    B: Body,
{
    type Output = Result<Response<Counted<B, S>>>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let answered = ready!(self.project().response.poll_answer(cx));
        Poll::Ready(answered.map(|(response, flight)| {
            response.map(|body| Counted {
                flight: flight.filter(|_| !body.is_end_stream()),
                body,
            })
        }))
    }
}

impl<S, Req, C> fmt::Debug for BodyFuture<S, Req, C>
where
    S: Service<Req> + Send + 'static,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("BodyFuture").field(&self.response).finish()
    }
}

/// A body that counts as load of its endpoint until it has ended, failed or is dropped.
#[pin_project]
pub struct Counted<B, S>
where
    S: Send + 'static,
{
    #[pin]
    body: B,
    flight: Option<InFlight<Leaf<S>>>,
}

impl<B, S> Counted<B, S>
where
    S: Send + 'static,
{
    /// The endpoint that answered, as long as the body goes on.
    #[must_use]
    pub fn target(&self) -> Option<&Target> {
        self.flight.as_ref().map(|flight| flight.target())
    }

    /// The body itself; it counts no longer.
    #[must_use]
    pub fn into_inner(self) -> B {
        self.body
    }
}

impl<B, S> Body for Counted<B, S>
where
    B: Body,
    S: Send + 'static,
{
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let mut this = self.project();
        let frame = ready!(this.body.as_mut().poll_frame(cx));
        if !matches!(frame, Some(Ok(_))) || this.body.is_end_stream() {
            *this.flight = None;
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl<B, S> fmt::Debug for Counted<B, S>
where
    S: Send + 'static,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Counted")
            .field("target", &self.target())
            .finish_non_exhaustive()
    }
}
