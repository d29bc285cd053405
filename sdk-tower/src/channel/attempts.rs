//! The life of one request, from the pick to the head of the response: attempt after attempt.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::{Request, Response};
use hyper::body::Incoming;
use tokio::time::Instant;

use crate::balance::{Candidate, Choice, HashKey, InFlight, Rng, Tried};
use crate::connect::{
    Checkout, Fault, Lease, Need, Outgoing, Protocol, SendFailed, Unavailable, Waiting, Whose,
};
use crate::error::{Error, ErrorKind};
use crate::retry::{BODY_LIMIT, MayRepeat, Standing, retry_after};
use crate::telemetry::Fate;

use super::admission::{Entry, Line, Place, Wait};
use super::body::Read;
use super::effort::{Effort, Enough, Persistence};
use super::future::{Awaited, Sending, State, Step};
use super::replay::Spare;
use super::request::{self, Host};
use super::tale::Tale;
use super::upstream::Upstream;
use super::{Core, Picker};

/// What is to be known over all attempts.
pub(super) struct Attempts {
    pub(super) core: Arc<Core>,
    /// Before it is sent, the request; afterwards the request once more without its body, if it
    /// may have to be sent again. It stays in its place, because it is large.
    pub(super) request: Option<Request<Outgoing>>,
    /// What the copy lacks.
    pub(super) spare: Spare,
    pub(super) host: Host,
    pub(super) tried: Tried,
    pub(super) key: Option<HashKey>,
    rng: Option<Rng>,
    /// An endpoint of which an idle connection was dead, or an attempt to connect that had begun
    /// before the request came: it may not be at fault, and it is tried again with a new connection
    /// if there is nobody else.
    again: Option<Arc<Candidate<Upstream>>>,
    /// The first endpoint whose connections were all in use: where there is nobody else, the request
    /// stands in line there.
    busy: Option<Arc<Candidate<Upstream>>>,
    /// How many endpoints were busy.
    pub(super) busy_seen: u8,
    pub(super) line: Option<Box<Line>>,
    /// An endpoint may have seen the request.
    pub(super) was_sent: bool,
    /// What went wrong so far.
    pub(super) failures: Vec<Error>,
    /// The budget had nothing left for an endpoint that is known to refuse.
    pub(super) is_starved: bool,
    pub(super) place: Option<Place>,
    /// Until when the request waits for an endpoint that can be reached.
    ready_by: Option<Instant>,
    /// What is left of the channel's patience with this request; none if it has none.
    pub(super) effort: Option<Box<Effort>>,
    pub(super) tale: Tale,
}

impl Attempts {
    pub(super) fn new(
        core: Arc<Core>,
        mut request: Option<Request<Outgoing>>,
        host: Host,
        key: Option<HashKey>,
        effort: Option<Box<Effort>>,
    ) -> Self {
        // A server may say of any request on HTTP/2, which may come of `Auto`, that it has not looked at it.
        let is_shared = core.addressing.protocol != Protocol::Http1;
        let is_needed = is_shared || effort.as_ref().is_some_and(|effort| effort.may_repeat());
        let limit = core.persistence.as_ref().map(Persistence::body_limit);
        let spare = request.as_mut().map_or(Spare::Gone, |request| {
            Spare::of(request, is_needed, limit.unwrap_or(BODY_LIMIT))
        });
        Self {
            tale: Tale::begin(&core.telemetry, request.as_ref()),
            core,
            request,
            spare,
            host,
            tried: Tried::of(key),
            key,
            rng: None,
            again: None,
            busy: None,
            busy_seen: 0,
            line: None,
            was_sent: false,
            failures: Vec::new(),
            is_starved: false,
            place: None,
            ready_by: None,
            effort,
        }
    }

    /// The first pick, or the wait before it.
    pub(super) fn begin(&mut self, picker: &mut Picker<Upstream>) -> Result<State, Error> {
        match self.core.admission.enter() {
            Entry::Open(place) => {
                self.place = place;
                let balance = &self.core.balance;
                let choice = picker.pick(balance, self.key, balance.moment());
                self.follow(choice)
            }
            Entry::Full => {
                let place = self.core.admission.place();
                let place = place.map_err(|error| error.about(self.core.service()))?;
                Ok(State::Waiting(place, Awaited::Place))
            }
        }
    }

    fn follow(&mut self, choice: Choice<Upstream>) -> Result<State, Error> {
        match choice {
            Choice::Picked(flight) => {
                // Where one connection was dead, others may be.
                let was_lost = |failure: &Error| failure.kind() == ErrorKind::Request;
                let need = if self.failures.iter().any(was_lost) {
                    Need::Fresh
                } else {
                    Need::Any
                };
                Ok(State::Picked(flight, need))
            }
            Choice::Exhausted => {
                if let Some(candidate) = self.again.take() {
                    let flight = InFlight::begin(candidate, self.core.balance.now());
                    return Ok(State::Picked(flight, Need::Fresh));
                }
                if let Some(candidate) = self.busy.take() {
                    return self.stand_in_line(candidate);
                }
                if self.effort.as_ref().is_some_and(|effort| effort.granted) {
                    return self.pause();
                }
                let error = self.exhausted(Enough::Nobody);
                self.await_endpoint(error)
            }
            Choice::Empty if self.was_sent => Err(self.exhausted(Enough::Nobody)),
            Choice::Empty => {
                let error = self.core.no_endpoints();
                self.await_endpoint(error)
            }
            Choice::Unknown if self.core.balance.is_deserted() => Err(Core::deserted()),
            Choice::Unknown => {
                let limit = self.core.first_resolution;
                let left = limit.saturating_sub(self.core.balance.age());
                if left.is_zero() {
                    return Err(self.core.never_resolved());
                }
                let resolution = self.core.admission.resolution(&self.core.balance, left);
                let resolution = resolution.map_err(|error| error.about(self.core.service()))?;
                Ok(State::Waiting(resolution, Awaited::Resolution))
            }
        }
    }

    /// All have been asked, and one of them has connections that are in use: they will be free again.
    fn stand_in_line(&mut self, candidate: Arc<Candidate<Upstream>>) -> Result<State, Error> {
        if self.line.is_none() {
            let line = {
                let _inside = self.core.runtime.enter();
                self.core.admission.line()
            };
            self.line = Some(line.map_err(|error| self.shed(error))?);
        }
        let flight = InFlight::begin(candidate, self.core.balance.now());
        Ok(State::Picked(flight, Need::InLine))
    }

    /// What is to be done while the request stands in line, if it does.
    ///
    /// An answer that is kept, in case that nothing better comes, has a connection: perhaps the very one
    /// that is waited for. What is left of it is read, so that neither the answer is lost nor the place.
    /// One that is too long to be kept is given to the caller: an answer in the hand is better than
    /// none at all.
    fn in_line(&mut self, cx: &mut Context<'_>) -> Result<(), Error> {
        let Some(line) = &mut self.line else {
            return Ok(());
        };
        if let Some(error) = line.poll_over(cx) {
            return Err(self.shed(error));
        }
        let Some(effort) = &mut self.effort else {
            return Ok(());
        };
        let held = effort.held.as_mut();
        match held.map(|held| held.body_mut().poll_ahead(cx, BODY_LIMIT)) {
            Some(Poll::Ready(Read::Long)) => Err(self.exhausted(Enough::Nobody)),
            Some(Poll::Ready(Read::Broken)) => {
                effort.held = None;
                Ok(())
            }
            Some(Poll::Ready(Read::Whole) | Poll::Pending) | None => Ok(()),
        }
    }

    fn shed(&mut self, error: Error) -> Error {
        let failures = std::mem::take(&mut self.failures);
        error
            .about(self.core.service())
            .after_sending(self.was_sent)
            .after(failures)
    }

    /// All have been asked, and a retry is paid for: somebody is asked once more after a pause.
    fn pause(&mut self) -> Result<State, Error> {
        let draw = self.rng().next_u32();
        let paused = match (&mut self.effort, &self.core.persistence) {
            (Some(effort), Some(rules)) => {
                effort.granted = false;
                effort.pause(rules, draw)
            }
            _ => None,
        };
        let Some(pause) = paused else {
            return Err(self.exhausted(Enough::TooLate));
        };
        self.tried = Tried::of(self.key);
        let wait: Wait = Box::pin(async move {
            tokio::time::sleep(pause).await;
            Ok(None)
        });
        Ok(State::Waiting(wait, Awaited::Pause))
    }

    /// Nothing was sent, and nobody can be reached: fails, or waits if the user prefers that.
    fn await_endpoint(&mut self, otherwise: Error) -> Result<State, Error> {
        let Some(limit) = self.core.wait_for_ready.filter(|_| !self.was_sent) else {
            return Err(otherwise);
        };
        let now = Instant::now();
        // A limit that no clock reaches is none.
        let due = match self.ready_by {
            Some(due) => Some(due),
            None => now.checked_add(limit),
        };
        if due.is_some_and(|due| due <= now) {
            return Err(otherwise);
        }
        self.ready_by = due;
        self.tried = Tried::of(self.key);
        let balance = Arc::clone(&self.core.balance);
        let wait = self.core.admission.endpoint(balance, due, otherwise);
        let wait = wait.map_err(|error| error.about(self.core.service()))?;
        Ok(State::Waiting(wait, Awaited::Endpoint))
    }

    /// Goes on to the next endpoint with a request that no endpoint has seen, or may see again.
    fn next(&mut self) -> Step {
        let choice = self.pick();
        match self.follow(choice) {
            Ok(state) => Step::Go(state),
            Err(error) => Step::Fail(error),
        }
    }

    fn pick(&mut self) -> Choice<Upstream> {
        loop {
            if self.tried.len() >= self.core.max_attempts {
                return Choice::Exhausted;
            }
            let tried = self.tried.clone();
            let choice = self.pick_beside(&tried);
            // Who refuses connections is asked by each request once; if all do, a request that
            // went through all of them would multiply what they have to refuse.
            if let (Choice::Picked(flight), Some(rules)) = (&choice, &self.core.persistence)
                && self.tried.len() > 0
                && !self.effort.as_ref().is_some_and(|effort| effort.granted)
                && flight.is_avoided(self.core.balance.now())
                && !rules.budget().withdraw()
            {
                self.core.telemetry.starves();
                self.is_starved = true;
                self.tried.note(flight.id());
                continue;
            }
            return choice;
        }
    }

    pub(super) fn pick_beside(&mut self, tried: &Tried) -> Choice<Upstream> {
        let now = self.core.balance.now();
        let core = Arc::clone(&self.core);
        core.balance.pick(self.rng(), tried, now)
    }

    fn rng(&mut self) -> &mut Rng {
        let balance = &self.core.balance;
        self.rng.get_or_insert_with(|| balance.rng())
    }

    pub(super) fn waiting(
        &mut self,
        mut wait: Wait,
        awaited: Awaited,
        cx: &mut Context<'_>,
    ) -> Step {
        let polled = {
            let _inside = self.core.runtime.enter();
            wait.as_mut().poll(cx)
        };
        match polled {
            Poll::Pending => Step::Wait(State::Waiting(wait, awaited)),
            Poll::Ready(Ok(place)) => {
                if place.is_some() {
                    self.place = place;
                }
                self.next()
            }
            Poll::Ready(Err(error)) => Step::Fail(error.about(self.core.service())),
        }
    }

    pub(super) fn picked(&mut self, flight: InFlight<Upstream>, need: Need) -> Step {
        if let (Some(effort), Some(rules)) = (&mut self.effort, &self.core.persistence) {
            let _inside = self.core.runtime.enter();
            effort.attempt_begins(rules);
        }
        self.tale.tries(&self.core.telemetry, &flight);
        match flight.backend().pool().checkout(need) {
            Checkout::Ready(lease) => self.send(flight, lease),
            Checkout::Wait(waiting) => Step::Go(State::Connecting(flight, waiting)),
            Checkout::Busy => self.pass_by(&flight),
            Checkout::Retired => self.left(&flight),
        }
    }

    pub(super) fn connecting(
        &mut self,
        flight: InFlight<Upstream>,
        mut waiting: Waiting,
        cx: &mut Context<'_>,
    ) -> Step {
        match Pin::new(&mut waiting).poll(cx) {
            Poll::Pending => match self.in_line(cx) {
                Ok(()) => Step::Wait(State::Connecting(flight, waiting)),
                Err(error) => Step::Fail(error),
            },
            Poll::Ready(Ok(lease)) => {
                self.line = None;
                if !lease.is_reused() {
                    flight.connected();
                }
                self.send(flight, lease)
            }
            Poll::Ready(Err(Unavailable::Refused(refused, whose))) => {
                if whose == Whose::Older && self.tried.len() < self.core.max_attempts {
                    self.again = Some(Arc::clone(&flight));
                }
                flight.refused(self.core.balance.now());
                self.tale.ends(&self.core.telemetry, &flight, Fate::Refused);
                self.refusal(flight.target(), refused);
                self.pass(&flight)
            }
            Poll::Ready(Err(Unavailable::Busy)) => self.pass_by(&flight),
            Poll::Ready(Err(Unavailable::Retired)) if self.line.is_some() => {
                self.tale.ends(&self.core.telemetry, &flight, Fate::Left);
                // The others are asked anew, and what is left of the patience holds for all.
                self.tried = Tried::of(self.key);
                self.next()
            }
            Poll::Ready(Err(Unavailable::Retired)) => self.left(&flight),
            Poll::Ready(Err(Unavailable::Deserted)) => {
                Step::Fail(Core::deserted().after_sending(self.was_sent))
            }
        }
    }

    fn send(&mut self, flight: InFlight<Upstream>, mut lease: Lease) -> Step {
        self.line = None;
        let Some(mut request) = self.request.take() else {
            // Every way here has put a request in its place.
            return Step::Fail(self.exhausted(Enough::Nobody));
        };
        let may_return = match &self.effort {
            Some(effort) => effort.may_repeat(),
            None => !self.was_sent && request.method().is_idempotent(),
        };
        let is_kept = self.spare.is_there() && (may_return || lease.is_shared());
        if is_kept {
            self.request = Some(request::copy(&request));
        }
        if let (Some(effort), Some(rules)) = (&mut self.effort, &self.core.persistence) {
            let _inside = self.core.runtime.enter();
            effort.sends(rules, !self.was_sent && is_kept);
        }
        self.host
            .write(&mut request, flight.backend(), lease.wire());
        let started = Instant::now();
        lease.send(request);
        Step::Go(State::Sending(Sending {
            flight,
            lease,
            started,
        }))
    }

    /// Leaves an endpoint whose connections are all in use, perhaps not for good.
    fn pass_by(&mut self, flight: &InFlight<Upstream>) -> Step {
        self.tale.ends(&self.core.telemetry, flight, Fate::Busy);
        self.busy_seen = self.busy_seen.saturating_add(1);
        self.busy.get_or_insert_with(|| Arc::clone(flight));
        self.tried.note(flight.id());
        self.next()
    }

    /// The endpoint has left since it was picked.
    fn left(&mut self, flight: &InFlight<Upstream>) -> Step {
        self.tale.ends(&self.core.telemetry, flight, Fate::Left);
        self.pass(flight)
    }

    /// Leaves an endpoint for the next one.
    fn pass(&mut self, flight: &InFlight<Upstream>) -> Step {
        self.line = None;
        self.tried.note(flight.id());
        self.next()
    }

    pub(super) fn sent(
        &mut self,
        sending: Sending,
        outcome: Result<Response<Incoming>, SendFailed>,
    ) -> Step {
        match outcome {
            Ok(response) => self.responded(sending, response),
            Err(failed) => self.lost(sending, failed),
        }
    }

    fn lost(&mut self, sending: Sending, failed: SendFailed) -> Step {
        let Sending { flight, lease, .. } = sending;
        let SendFailed {
            unsent,
            fault,
            error,
        } = failed;
        let clock = self.core.balance.clock();
        let unsent = match fault {
            Fault::Unprocessed => unsent.or_else(|| self.repetition()),
            Fault::Body | Fault::Connection => unsent,
        };
        let reused = lease.is_reused();
        drop(lease);
        if let Some(request) = unsent {
            tracing::debug!(target = %flight.target(), %error, "request came back unsent");
            self.tale.ends(&self.core.telemetry, &flight, Fate::Unsent);
            self.request = Some(request);
            if !reused {
                flight.refused(clock.now());
            } else if self.tried.len() < self.core.max_attempts {
                self.again = Some(Arc::clone(&flight));
            }
            self.refusal(flight.target(), error);
            self.tried.note(flight.id());
            return self.promote().unwrap_or_else(|| self.next());
        }
        self.tale.ends(&self.core.telemetry, &flight, Fate::Lost);
        if fault == Fault::Body {
            return Step::Fail(
                Error::new(ErrorKind::InvalidRequest)
                    .after_sending(true)
                    .context(format!("its body failed on the way to {}", flight.target()))
                    .because(error),
            );
        }
        // An answer that cannot be understood is no reason to ask again, nor is a mistake on our
        // side.
        let is_hopeless = error.is_parse() || error.is_user();
        let is_free = !is_hopeless && self.is_free(reused);
        // A mistake on our side is not the endpoint's fault; nor is that an idle connection is
        // closed while a request is on its way.
        let is_blameless = error.is_user() || (is_free && reused);
        let error = Error::new(ErrorKind::Request)
            .after_sending(true)
            .context(flight.target().to_string())
            .because(error);
        let verdict = self.core.classifier.failure(&error);
        if !is_blameless && verdict.standing() == Standing::Failed {
            flight.failed(clock.now());
        }
        self.was_sent = true;
        self.failures.push(error);
        if let Some(step) = self.promote() {
            self.tried.note(flight.id());
            return step;
        }
        if !is_free {
            let paid = if is_hopeless || !verdict.is_retryable() {
                Err(Enough::Outcome)
            } else {
                self.pay()
            };
            if let Err(enough) = paid {
                return Step::Fail(self.exhausted(enough));
            }
        } else if reused {
            self.again = Some(Arc::clone(&flight));
        }
        tracing::debug!(target = %flight.target(), "request is sent again: no answer has come");
        self.repeat(flight.id())
    }

    /// Whether a request is sent once more though nobody has asked for retries.
    ///
    /// An idempotent request "can be repeated automatically if a communication failure occurs
    /// before the client is able to read the server's response", and "a client SHOULD NOT
    /// automatically retry a failed automatic retry" (RFC 9110, 9.2.2): so a request that brings
    /// servers down meets two of them and not all. With a policy it is the policy that says so,
    /// save where an idle connection was closed: this is no sign of trouble, and costs nothing.
    fn is_free(&self, reused: bool) -> bool {
        if self.was_sent {
            return false;
        }
        match (&self.effort, &self.core.persistence) {
            (Some(effort), Some(rules)) => reused && effort.can_repeat(&self.spare, rules).is_ok(),
            _ if !self.spare.is_empty() => false,
            _ => self.request.as_ref().is_some_and(|copy| {
                copy.method().is_idempotent() && copy.extensions().get() != Some(&MayRepeat(false))
            }),
        }
    }

    /// Sends a request again that this endpoint has seen.
    fn repeat(&mut self, id: u32) -> Step {
        let Some(request) = self.repetition() else {
            return Step::Fail(self.exhausted(Enough::NotRepeatable));
        };
        self.request = Some(request);
        self.tried.note(id);
        self.next()
    }

    /// The copy of a request that was sent, with its body.
    pub(super) fn repetition(&mut self) -> Option<Request<Outgoing>> {
        let copy = self.request.take()?;
        self.spare.refill(copy)
    }

    pub(super) fn pay(&mut self) -> Result<(), Enough> {
        let paid = match (&mut self.effort, &self.core.persistence) {
            (Some(effort), Some(rules)) => effort.pay(&self.spare, rules),
            _ => Err(Enough::Off),
        };
        if matches!(paid, Err(Enough::Budget)) {
            self.core.telemetry.starves();
        }
        paid
    }

    fn responded(&mut self, sending: Sending, response: Response<Incoming>) -> Step {
        if self.effort.is_none() {
            return Step::Answer(self.judged(sending, response).1);
        }
        let flight = Arc::clone(&sending.flight);
        let (verdict, response) = self.judged(sending, response);
        if !verdict.is_retryable() {
            return Step::Answer(response);
        }
        self.was_sent = true;
        let told = retry_after(response.headers());
        if let Some(effort) = &mut self.effort {
            effort.told = effort.told.max(told);
        }
        if let Some(step) = self.promote() {
            self.tried.note(flight.id());
            self.hold(response);
            return step;
        }
        let target = flight.target();
        let status = response.status();
        if let Err(enough) = self.pay() {
            tracing::debug!(%target, %status, %enough, "request is not sent again");
            return Step::Answer(response);
        }
        tracing::debug!(%target, %status, "request is sent again");
        self.hold(response);
        self.repeat(flight.id())
    }
}
