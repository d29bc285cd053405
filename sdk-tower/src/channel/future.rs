//! The response to a request: the states it goes through, and its deadline.

use std::fmt;
use std::mem;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::{Request, Response};
use pin_project::{pin_project, pinned_drop};
use tokio::time::{Instant, Sleep};

use crate::balance::{HashKey, InFlight};
use crate::connect::{Lease, Need, Outgoing, Waiting};
use crate::error::Error;

use super::admission::Wait;
use super::attempts::Attempts;
use super::request::Host;
use super::upstream::Upstream;
use super::{Body, Core, Picker};

/// The response to a request, once its head has arrived.
///
/// # Cancel safety
///
/// Dropping it gives the request up: what was not sent is not sent, what was sent may have been
/// received, and its connection is closed (on HTTP/2, its stream is reset). A connection that was
/// being opened is kept for the next request.
#[must_use = "futures do nothing unless polled"]
#[pin_project(PinnedDrop)]
pub struct ResponseFuture {
    attempts: Attempts,
    state: State,
    #[pin]
    deadline: Option<Sleep>,
}

pub(super) enum State {
    Failed(Error),
    /// Something has to come before there is a pick.
    Waiting(Wait, Awaited),
    Picked(InFlight<Upstream>, Need),
    Connecting(InFlight<Upstream>, Waiting),
    Sending(Sending),
    Done,
}

/// What a request waits for, as it is said to whom the time gets long.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Awaited {
    /// Nothing is known of the service yet.
    Resolution,
    /// As many requests are under way as may be.
    Place,
    /// The service has nobody who can be reached.
    Endpoint,
    /// All have been asked, and one is to be asked again after a pause.
    Pause,
}

pub(super) struct Sending {
    pub(super) flight: InFlight<Upstream>,
    pub(super) lease: Lease,
    pub(super) started: Instant,
}

/// What to do after a step.
pub(super) enum Step {
    Go(State),
    Wait(State),
    Answer(Response<Body>),
    Fail(Error),
}

impl ResponseFuture {
    pub(super) fn new(
        core: &Arc<Core>,
        picker: &mut Picker<Upstream>,
        mut request: Request<Outgoing>,
        host: Host,
        key: Option<HashKey>,
    ) -> Self {
        let deadline = core.timeout.map(|limit| {
            let _inside = core.runtime.enter();
            tokio::time::sleep(limit)
        });
        let due = deadline.as_ref().map(Sleep::deadline);
        let persistence = core.persistence.as_ref();
        let effort = persistence.map(|rules| rules.begin(&mut request, due));
        let mut attempts = Attempts::new(Arc::clone(core), Some(request), host, key, effort);
        let state = match attempts.begin(picker) {
            Ok(state) => state,
            Err(error) => State::Failed(error),
        };
        Self {
            attempts,
            state,
            deadline,
        }
    }

    pub(super) fn failed(core: &Arc<Core>, error: Error) -> Self {
        Self {
            attempts: Attempts::new(Arc::clone(core), None, Host::Kept, None, None),
            state: State::Failed(error),
            deadline: None,
        }
    }
}

impl Future for ResponseFuture {
    type Output = Result<Response<Body>, Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        let _within = this.attempts.tale.enter();
        loop {
            let outcome = match this.state {
                State::Sending(sending) => match sending.lease.poll_response(cx) {
                    Poll::Ready(outcome) => Some(outcome),
                    Poll::Pending => None,
                },
                _ => None,
            };
            let step = match (mem::replace(this.state, State::Done), outcome) {
                (State::Sending(sending), Some(outcome)) => this.attempts.sent(sending, outcome),
                (State::Failed(error), _) => Step::Fail(error),
                (State::Waiting(wait, awaited), _) => this.attempts.waiting(wait, awaited, cx),
                (State::Picked(flight, need), _) => this.attempts.picked(flight, need),
                (State::Connecting(flight, waiting), _) => {
                    this.attempts.connecting(flight, waiting, cx)
                }
                (state @ (State::Sending(_) | State::Done), _) => Step::Wait(state),
            };
            let step = match step {
                Step::Wait(state) => {
                    *this.state = state;
                    match this.attempts.meanwhile(this.state, cx) {
                        Some(step) => step,
                        None => break,
                    }
                }
                other => other,
            };
            match step {
                Step::Go(state) | Step::Wait(state) => *this.state = state,
                Step::Answer(response) => {
                    *this.state = State::Done;
                    return Poll::Ready(Ok(this.attempts.deliver(response)));
                }
                Step::Fail(error) => return Poll::Ready(this.attempts.end(error)),
            }
        }
        let Some(deadline) = this.deadline.as_mut().as_pin_mut() else {
            return Poll::Pending;
        };
        match deadline.poll(cx) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(()) => {
                let state = mem::replace(this.state, State::Done);
                Poll::Ready(this.attempts.late(&state))
            }
        }
    }
}

#[pinned_drop]
impl PinnedDrop for ResponseFuture {
    fn drop(self: Pin<&mut Self>) {
        let this = self.project();
        this.attempts.give_up(this.state);
    }
}

impl State {
    fn name(&self) -> &'static str {
        match self {
            Self::Failed(_) => "failed",
            Self::Waiting(_, Awaited::Resolution) => "unresolved",
            Self::Waiting(_, Awaited::Place) => "queued",
            Self::Waiting(_, Awaited::Endpoint) => "without an endpoint",
            Self::Waiting(_, Awaited::Pause) => "pausing",
            Self::Picked(..) => "picked",
            Self::Connecting(..) => "connecting",
            Self::Sending(_) => "sending",
            Self::Done => "done",
        }
    }
}

impl fmt::Debug for ResponseFuture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ResponseFuture({})", self.state.name())
    }
}
