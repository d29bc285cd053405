//! The body of a response.

use std::collections::VecDeque;
use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::body::Incoming;

use crate::balance::{Clock, InFlight};
use crate::connect::Lease;
use crate::endpoint::Target;
use crate::error::{Error, ErrorKind};
use crate::retry::{Classifier, Standing};

use super::admission::Place;
use super::upstream::Upstream;

/// The body of a response, as it arrives.
///
/// Until it has ended or is dropped, the request counts as load of its endpoint, and as one under
/// way on its channel. Its connection
/// is used again when it was read to the end; dropping it before closes the connection, unless
/// the rest has arrived already. It is independent of the channel's life.
pub struct Body {
    incoming: Option<Incoming>,
    flight: InFlight<Upstream>,
    lease: Option<Lease>,
    clock: Clock,
    /// How well the call went, if that is known at the end only.
    grading: Option<Box<Grading>>,
    /// Its place among the requests of the channel.
    place: Option<Place>,
    /// What was read before anybody asked for it.
    ahead: Option<Box<Ahead>>,
}

#[derive(Default)]
struct Ahead {
    frames: VecDeque<Frame<Bytes>>,
    /// The bytes of data among them.
    size: usize,
}

/// What comes of reading ahead.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Read {
    /// All is there, and the connection is free.
    Whole,
    /// There is more than may be kept.
    Long,
    /// It has failed: the rest will not come.
    Broken,
}

/// What is told of an endpoint at the end of a body.
///
/// A call of gRPC that failed has a head like any other and says so in its trailers. Its latency
/// is that of the head, and is told when it is known that the call did not fail.
pub(super) struct Grading {
    classifier: Classifier,
    latency: Duration,
}

impl Grading {
    pub(super) fn new(classifier: Classifier, latency: Duration) -> Box<Self> {
        Box::new(Self {
            classifier,
            latency,
        })
    }
}

impl Body {
    pub(super) fn new(
        incoming: Incoming,
        flight: InFlight<Upstream>,
        lease: Lease,
        clock: Clock,
        grading: Option<Box<Grading>>,
    ) -> Self {
        let mut body = Self {
            incoming: Some(incoming),
            flight,
            lease: Some(lease),
            clock,
            grading,
            place: None,
            ahead: None,
        };
        if body.is_end_stream() {
            body.end();
        }
        body
    }

    /// The endpoint that answered.
    #[must_use]
    pub fn target(&self) -> &Target {
        self.flight.target()
    }

    /// Keeps a place taken until the body has ended.
    pub(super) fn hold(&mut self, place: Place) {
        if self.lease.is_some() {
            self.place = Some(place);
        }
    }

    /// Reads to the end what is kept for the caller, to free its connection; up to so many bytes.
    pub(super) fn poll_ahead(&mut self, cx: &mut Context<'_>, limit: usize) -> Poll<Read> {
        loop {
            if self.ahead.as_ref().is_some_and(|ahead| ahead.size > limit) {
                return Poll::Ready(Read::Long);
            }
            match ready!(self.poll_incoming(cx)) {
                Some(Ok(frame)) => {
                    let ahead = self.ahead.get_or_insert_default();
                    ahead.size += frame.data_ref().map_or(0, Bytes::len);
                    ahead.frames.push_back(frame);
                }
                Some(Err(_)) => return Poll::Ready(Read::Broken),
                None => return Poll::Ready(Read::Whole),
            }
        }
    }

    fn take_ahead(&mut self) -> Option<Frame<Bytes>> {
        let ahead = self.ahead.as_mut()?;
        let Some(frame) = ahead.frames.pop_front() else {
            self.ahead = None;
            return None;
        };
        let size = frame.data_ref().map_or(0, Bytes::len);
        ahead.size = ahead.size.saturating_sub(size);
        Some(frame)
    }

    fn end(&mut self) {
        self.settle(Standing::Answered);
        self.place = None;
        self.flight.end();
        if let Some(lease) = self.lease.take() {
            self.flight.backend().pool().release(lease);
        }
    }

    fn poll_incoming(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let Some(incoming) = &mut self.incoming else {
            return Poll::Ready(None);
        };
        let frame = ready!(Pin::new(&mut *incoming).poll_frame(cx));
        match frame {
            Some(Ok(frame)) => {
                let is_over = incoming.is_end_stream();
                if let Some(trailers) = frame.trailers_ref() {
                    self.grade(trailers);
                }
                if is_over {
                    self.end();
                }
                Poll::Ready(Some(Ok(frame)))
            }
            None => {
                self.end();
                Poll::Ready(None)
            }
            Some(Err(error)) => {
                self.grading = None;
                self.place = None;
                self.flight.failed(self.clock.now());
                self.flight.end();
                // Nothing more can come of this connection.
                self.incoming = None;
                self.lease = None;
                let target = self.target().to_string();
                Poll::Ready(Some(Err(Error::new(ErrorKind::Body)
                    .context(target)
                    .because(error))))
            }
        }
    }

    fn grade(&mut self, trailers: &HeaderMap) {
        if let Some(grading) = &self.grading {
            let verdict = grading.classifier.trailers(trailers);
            self.settle(verdict.standing());
        }
    }

    fn settle(&mut self, standing: Standing) {
        let Some(grading) = self.grading.take() else {
            return;
        };
        let now = self.clock.now();
        match standing {
            Standing::Answered => self.flight.answered(grading.latency, now),
            Standing::Failed => self.flight.failed(now),
            Standing::Unrated => {}
        }
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let body = self.get_mut();
        match body.take_ahead() {
            Some(frame) => Poll::Ready(Some(Ok(frame))),
            None => body.poll_incoming(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        let has_frames = |ahead: &Ahead| !ahead.frames.is_empty();
        self.incoming.as_ref().is_none_or(Incoming::is_end_stream)
            && !self.ahead.as_deref().is_some_and(has_frames)
    }

    fn size_hint(&self) -> SizeHint {
        let rest = match &self.incoming {
            Some(incoming) => incoming.size_hint(),
            None => SizeHint::with_exact(0),
        };
        let Some(ahead) = &self.ahead else {
            return rest;
        };
        let ahead = u64::try_from(ahead.size).unwrap_or(u64::MAX);
        let mut hint = SizeHint::new();
        hint.set_lower(rest.lower().saturating_add(ahead));
        if let Some(upper) = rest.upper() {
            hint.set_upper(upper.saturating_add(ahead));
        }
        hint
    }
}

impl Drop for Body {
    fn drop(&mut self) {
        // hyper sees first that nobody reads on, and then whether the connection can be kept.
        self.incoming = None;
        self.end();
    }
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Body")
            .field("target", self.target())
            .field("is_end_stream", &self.is_end_stream())
            .finish_non_exhaustive()
    }
}
