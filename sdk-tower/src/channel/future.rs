//! The life of one request, from the pick to the head of the response.

use std::fmt;
use std::mem;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::{Request, Response};
use hyper::body::Incoming;
use pin_project::{pin_project, pinned_drop};
use tokio::time::{Instant, Sleep};

use crate::balance::{Candidate, Choice, HashKey, InFlight, Phase, Rng, Tried};
use crate::connect::{
    Checkout, Fault, Lease, Need, Outgoing, Refused, SendFailed, Unavailable, Waiting,
};
use crate::error::{Error, ErrorKind};

use super::request::{self, Host};
use super::upstream::Upstream;
use super::{Body, Core};

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

/// What is to be known over all attempts.
struct Attempts {
    core: Arc<Core>,
    /// Before it is sent, the request; afterwards the request once more, if it may be sent again
    /// should the connection be closed. It stays in its place, because it is large.
    request: Option<Request<Outgoing>>,
    host: Host,
    tried: Tried,
    rng: Option<Rng>,
    refused: Option<(Arc<Candidate<Upstream>>, Refused)>,
    /// An endpoint of which an idle connection was dead: it is not at fault, and it is tried
    /// again with a new connection if there is nobody else.
    again: Option<Arc<Candidate<Upstream>>>,
    /// An endpoint may have seen the request, but its connection was closed without an answer.
    lost: Option<Error>,
}

enum State {
    Failed(Error),
    /// Nothing is known of the service yet.
    Unresolved(Pin<Box<dyn Future<Output = ()> + Send>>),
    Picked(InFlight<Upstream>, Need),
    Connecting(InFlight<Upstream>, Waiting),
    Sending(Sending),
    Done,
}

struct Sending {
    flight: InFlight<Upstream>,
    lease: Lease,
    started: Instant,
}

/// What to do after a step.
enum Step {
    Go(State),
    Wait(State),
    Answer(Response<Body>),
    Fail(Error),
}

impl ResponseFuture {
    pub(super) fn new(
        core: Arc<Core>,
        request: Request<Outgoing>,
        host: Host,
        key: Option<HashKey>,
        choice: Choice<Upstream>,
    ) -> Self {
        let deadline = core.timeout.map(|limit| {
            let _inside = core.runtime.enter();
            tokio::time::sleep(limit)
        });
        let mut future = Self {
            attempts: Attempts::new(core, Some(request), host, key),
            state: State::Done,
            deadline,
        };
        future.state = match future.attempts.follow(choice) {
            Ok(state) => state,
            Err(error) => State::Failed(error),
        };
        future
    }

    pub(super) fn failed(core: Arc<Core>, error: Error) -> Self {
        Self {
            attempts: Attempts::new(core, None, Host::Kept, None),
            state: State::Failed(error),
            deadline: None,
        }
    }
}

impl Future for ResponseFuture {
    type Output = Result<Response<Body>, Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        loop {
            let outcome = match this.state {
                State::Sending(sending) => match sending.lease.poll_response(cx) {
                    Poll::Ready(outcome) => Some(outcome),
                    Poll::Pending => break,
                },
                _ => None,
            };
            let step = match (mem::replace(this.state, State::Done), outcome) {
                (State::Sending(sending), Some(outcome)) => this.attempts.sent(sending, outcome),
                (State::Failed(error), _) => Step::Fail(error),
                (State::Unresolved(resolved), _) => this.attempts.unresolved(resolved, cx),
                (State::Picked(flight, need), _) => this.attempts.picked(flight, need),
                (State::Connecting(flight, waiting), _) => {
                    this.attempts.connecting(flight, waiting, cx)
                }
                (state @ (State::Sending(_) | State::Done), _) => Step::Wait(state),
            };
            match step {
                Step::Go(state) => *this.state = state,
                Step::Wait(state) => {
                    *this.state = state;
                    break;
                }
                Step::Answer(response) => return Poll::Ready(Ok(response)),
                Step::Fail(error) => return Poll::Ready(Err(error)),
            }
        }
        let Some(deadline) = this.deadline.as_mut().as_pin_mut() else {
            return Poll::Pending;
        };
        match deadline.poll(cx) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(()) => {
                let error = this.attempts.late(this.state);
                this.attempts.blame(this.state);
                *this.state = State::Done;
                Poll::Ready(Err(error))
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

impl Attempts {
    fn new(
        core: Arc<Core>,
        request: Option<Request<Outgoing>>,
        host: Host,
        key: Option<HashKey>,
    ) -> Self {
        Self {
            core,
            request,
            host,
            tried: Tried::of(key),
            rng: None,
            refused: None,
            again: None,
            lost: None,
        }
    }

    fn follow(&mut self, choice: Choice<Upstream>) -> Result<State, Error> {
        match choice {
            Choice::Picked(flight) => {
                // Where one connection was dead, others may be.
                let need = match &self.lost {
                    Some(_) => Need::Fresh,
                    None => Need::Any,
                };
                Ok(State::Picked(flight, need))
            }
            Choice::Exhausted => match self.again.take() {
                Some(candidate) => {
                    let flight = InFlight::begin(candidate, self.core.balance.now());
                    Ok(State::Picked(flight, Need::Fresh))
                }
                None => Err(self.exhausted()),
            },
            Choice::Empty => match self.lost.take() {
                Some(error) => Err(error),
                None => Err(self.core.no_endpoints()),
            },
            Choice::Unknown if self.core.balance.is_deserted() => Err(Core::deserted()),
            Choice::Unknown => self.resolution().map(State::Unresolved),
        }
    }

    /// The wait for the first resolution.
    fn resolution(&self) -> Result<Pin<Box<dyn Future<Output = ()> + Send>>, Error> {
        let limit = self.core.first_resolution;
        let left = limit.saturating_sub(self.core.balance.age());
        if left.is_zero() {
            return Err(self.core.never_resolved());
        }
        // The time runs from the call on, not from the first poll.
        let due = Instant::now().checked_add(left);
        let mut phase = self.core.balance.phase();
        Ok(Box::pin(async move {
            let known = phase.wait_for(|phase| *phase != Phase::Unknown);
            // What came of it is seen by the pick that follows.
            match due {
                Some(due) => drop(tokio::time::timeout_at(due, known).await),
                None => drop(known.await),
            }
        }))
    }

    /// Goes on to the next endpoint with a request that no endpoint has seen, or may see again.
    fn next(&mut self) -> Step {
        let choice = if self.tried.len() < self.core.max_attempts {
            let balance = &self.core.balance;
            let rng = self.rng.get_or_insert_with(|| balance.rng());
            balance.pick(rng, &self.tried, balance.now())
        } else {
            Choice::Exhausted
        };
        match self.follow(choice) {
            Ok(state) => Step::Go(state),
            Err(error) => Step::Fail(error),
        }
    }

    fn unresolved(
        &mut self,
        mut resolved: Pin<Box<dyn Future<Output = ()> + Send>>,
        cx: &mut Context<'_>,
    ) -> Step {
        let polled = {
            let _inside = self.core.runtime.enter();
            resolved.as_mut().poll(cx)
        };
        match polled {
            Poll::Pending => Step::Wait(State::Unresolved(resolved)),
            Poll::Ready(()) => self.next(),
        }
    }

    fn picked(&mut self, flight: InFlight<Upstream>, need: Need) -> Step {
        match flight.backend().pool().checkout(need) {
            Checkout::Ready(lease) => self.send(flight, lease),
            Checkout::Wait(waiting) => Step::Go(State::Connecting(flight, waiting)),
            Checkout::Retired => self.pass(&flight),
        }
    }

    fn connecting(
        &mut self,
        flight: InFlight<Upstream>,
        mut waiting: Waiting,
        cx: &mut Context<'_>,
    ) -> Step {
        match Pin::new(&mut waiting).poll(cx) {
            Poll::Pending => Step::Wait(State::Connecting(flight, waiting)),
            Poll::Ready(Ok(lease)) => {
                if !lease.is_reused() {
                    flight.connected();
                }
                self.send(flight, lease)
            }
            Poll::Ready(Err(Unavailable::Refused(refused))) => {
                flight.refused(self.core.balance.now());
                self.refused = Some((Arc::clone(&flight), refused));
                self.pass(&flight)
            }
            Poll::Ready(Err(Unavailable::Retired)) => self.pass(&flight),
            Poll::Ready(Err(Unavailable::Deserted)) => {
                let sent = self.lost.is_some();
                Step::Fail(Core::deserted().after_sending(sent))
            }
        }
    }

    fn send(&mut self, flight: InFlight<Upstream>, mut lease: Lease) -> Step {
        let Some(mut request) = self.request.take() else {
            // Every way here has put a request in its place.
            return Step::Fail(self.exhausted());
        };
        // A server may say of any request on HTTP/2 that it has not looked at it.
        if self.lost.is_none() && (lease.is_shared() || request.method().is_idempotent()) {
            self.request = request::copy(&request);
        }
        self.host.write(&mut request, flight.backend());
        let started = Instant::now();
        lease.send(request);
        Step::Go(State::Sending(Sending {
            flight,
            lease,
            started,
        }))
    }

    /// Leaves an endpoint for the next one.
    fn pass(&mut self, flight: &InFlight<Upstream>) -> Step {
        self.tried.note(flight.id());
        self.next()
    }

    fn sent(&mut self, sending: Sending, outcome: Result<Response<Incoming>, SendFailed>) -> Step {
        let Sending {
            flight,
            lease,
            started,
        } = sending;
        let SendFailed {
            unsent,
            fault,
            error,
        } = match outcome {
            Ok(response) => return Step::Answer(self.answer(response, flight, lease, started)),
            Err(failed) => failed,
        };
        let clock = self.core.balance.clock();
        let unsent = match fault {
            Fault::Unprocessed => self.request.take(),
            Fault::Body | Fault::Connection => unsent,
        };
        if let Some(request) = unsent {
            tracing::debug!(target = %flight.target(), %error, "request came back unsent");
            self.request = Some(request);
            if !lease.is_reused() {
                flight.refused(clock.now());
            } else if self.tried.len() < self.core.max_attempts {
                self.again = Some(Arc::clone(&flight));
            }
            self.refused = Some((Arc::clone(&flight), Refused::from(error)));
            return self.pass(&flight);
        }
        if fault == Fault::Body {
            return Step::Fail(
                Error::new(ErrorKind::InvalidRequest)
                    .after_sending(true)
                    .context(format!("its body failed on the way to {}", flight.target()))
                    .because(error),
            );
        }
        // An idempotent request "can be repeated automatically if a communication failure occurs
        // before the client is able to read the server's response", and "a client SHOULD NOT
        // automatically retry a failed automatic retry" (RFC 9110, 9.2.2): so a request that
        // brings servers down meets two of them and not all. An answer that cannot be understood
        // is no such failure, nor is a mistake on our side.
        let again = !error.is_parse()
            && !error.is_user()
            && self
                .request
                .as_ref()
                .is_some_and(|copy| copy.method().is_idempotent());
        let reused = lease.is_reused();
        // A mistake on our side is not the endpoint's fault; nor is that an idle connection is closed
        // while a request is on its way.
        let blameless = error.is_user() || (again && reused);
        if !blameless {
            flight.failed(clock.now());
        }
        let lost = Error::new(ErrorKind::Request)
            .after_sending(true)
            .context(flight.target().to_string())
            .because(error);
        if !again {
            return Step::Fail(lost);
        }
        tracing::debug!(target = %flight.target(), "request is sent again");
        self.lost = Some(lost);
        if reused {
            self.again = Some(Arc::clone(&flight));
        }
        self.pass(&flight)
    }

    fn answer(
        &self,
        response: Response<Incoming>,
        flight: InFlight<Upstream>,
        lease: Lease,
        started: Instant,
    ) -> Response<Body> {
        let clock = self.core.balance.clock();
        let now = Instant::now();
        flight.heard();
        let reports = self.core.load_report.as_ref();
        if let Some(report) = reports.and_then(|rule| rule.read(response.headers())) {
            flight.reported(report, clock.at(now));
        }
        // A server error is as fast as it is useless: taken for a latency it would draw traffic.
        if response.status().is_server_error() {
            flight.failed(clock.at(now));
        } else {
            flight.answered(now.saturating_duration_since(started), clock.at(now));
        }
        let target = self.core.tell_target.then(|| flight.target().clone());
        let mut response = response.map(|incoming| Body::new(incoming, flight, lease, clock));
        if let Some(target) = target {
            response.extensions_mut().insert(target);
        }
        response
    }

    fn exhausted(&mut self) -> Error {
        if let Some(lost) = self.lost.take() {
            return lost;
        }
        let tried = self.tried.len();
        let error = Error::new(ErrorKind::Connect);
        match self.refused.take() {
            Some((last, cause)) => error
                .context(format!("{tried} tried, the last was {}", last.target()))
                .because(cause),
            None => error.context(format!("{tried} tried")),
        }
    }

    /// The error for a request whose deadline has passed in this state.
    fn late(&self, state: &State) -> Error {
        let limit = self.core.timeout.unwrap_or_default();
        let sent = self.lost.is_some() || matches!(state, State::Sending(_));
        let error = Error::new(ErrorKind::Timeout).after_sending(sent);
        match state {
            State::Sending(Sending { flight, .. }) => error.context(format!(
                "no response from {} within {limit:?}",
                flight.target()
            )),
            State::Connecting(flight, _) => error.context(format!(
                "no connection to {} within {limit:?}",
                flight.target()
            )),
            State::Unresolved(_) => error.context(format!("no endpoints known within {limit:?}")),
            State::Failed(_) | State::Picked(..) | State::Done => {
                error.context(format!("not sent within {limit:?}"))
            }
        }
    }

    /// The channel's own deadline has passed: unlike a caller who goes, it tells of a failure.
    fn blame(&self, state: &State) {
        if let State::Sending(sending) = state {
            let balance = &self.core.balance;
            let now = balance.now();
            let flight = &sending.flight;
            flight.failed(now);
            balance.late(flight, now);
            flight.backend().pool().distrust(&sending.lease);
        }
    }

    /// The caller waits no longer.
    fn give_up(&self, state: &State) {
        if let State::Sending(sending) = state {
            let now = Instant::now();
            let waited = now.saturating_duration_since(sending.started);
            let now = self.core.balance.clock().at(now);
            sending.flight.given_up(waited, now);
        }
    }
}

impl fmt::Debug for ResponseFuture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.state {
            State::Failed(_) => "ResponseFuture(failed)",
            State::Unresolved(_) => "ResponseFuture(unresolved)",
            State::Picked(..) => "ResponseFuture(picked)",
            State::Connecting(..) => "ResponseFuture(connecting)",
            State::Sending(_) => "ResponseFuture(sending)",
            State::Done => "ResponseFuture(done)",
        })
    }
}
