//! What goes on beside the attempt under way: a second one, and the time of the first.

use std::mem;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::Request;
use tokio::time::Instant;

use crate::balance::{Choice, InFlight, Tried};
use crate::connect::{Checkout, Fault, Lease, Need, Outgoing, SendFailed, Unavailable, Waiting};
use crate::error::{Error, ErrorKind};
use crate::retry::{Standing, Verdict};
use crate::telemetry::Fate;

use super::admission::has_reachable;
use super::attempts::Attempts;
use super::future::{Sending, State, Step};
use super::request;
use super::upstream::Upstream;

/// A second attempt of a request whose first is still under way.
pub(super) enum Rival {
    Connecting(InFlight<Upstream>, Waiting, Box<Request<Outgoing>>),
    Sending(Sending),
}

impl Rival {
    pub(super) fn into_sending(self) -> Option<Sending> {
        match self {
            Self::Sending(sending) => Some(sending),
            Self::Connecting(..) => None,
        }
    }
}

impl Attempts {
    /// What is to be done while the attempt under way gives no sign; mostly nothing.
    pub(super) fn meanwhile(&mut self, state: &mut State, cx: &mut Context<'_>) -> Option<Step> {
        let effort = self.effort.as_mut()?;
        if let State::Sending(first) = state
            && effort.is_hedge_due(cx)
        {
            self.hedge(first);
        }
        if let Some(step) = self.poll_rival(state, cx) {
            return Some(step);
        }
        if self.effort.as_mut()?.is_attempt_late(cx) {
            return self.cut(state);
        }
        None
    }

    /// Starts a second attempt, if there is somebody for it and it can be paid.
    fn hedge(&mut self, first: &Sending) {
        let core = Arc::clone(&self.core);
        let mut tried = self.tried.clone();
        tried.note(first.flight.id());
        let copy = self.request.as_ref().map(request::copy);
        let (Some(copy), Some(rules)) = (copy, core.persistence.as_ref()) else {
            return;
        };
        let Choice::Picked(flight) = self.pick_beside(&tried) else {
            return;
        };
        let Some(effort) = &self.effort else {
            return;
        };
        if !effort.pay_hedge(&self.spare, rules) {
            return;
        }
        let Some(request) = self.spare.refill(copy) else {
            return;
        };
        tracing::debug!(
            target = %flight.target(), slow = %first.flight.target(), "request is hedged"
        );
        self.tale.hedges(&core.telemetry, &flight);
        let rival = match flight.backend().pool().checkout(Need::Any) {
            Checkout::Ready(lease) => self.send_rival(flight, lease, request),
            Checkout::Wait(waiting) => Rival::Connecting(flight, waiting, Box::new(request)),
            Checkout::Busy => {
                self.tale.rival_ends(&core.telemetry, &flight, Fate::Busy);
                return;
            }
            Checkout::Retired => {
                self.tale.rival_ends(&core.telemetry, &flight, Fate::Left);
                return;
            }
        };
        if let Some(effort) = &mut self.effort {
            effort.rival = Some(rival);
        }
    }

    fn send_rival(
        &self,
        flight: InFlight<Upstream>,
        mut lease: Lease,
        mut request: Request<Outgoing>,
    ) -> Rival {
        self.host
            .write(&mut request, flight.backend(), lease.wire());
        let started = Instant::now();
        lease.send(request);
        Rival::Sending(Sending {
            flight,
            lease,
            started,
        })
    }

    /// Drives the second attempt; its answer ends the first.
    fn poll_rival(&mut self, state: &mut State, cx: &mut Context<'_>) -> Option<Step> {
        loop {
            let next = match self.effort.as_mut()?.rival.take()? {
                Rival::Connecting(flight, mut waiting, request) => {
                    match Pin::new(&mut waiting).poll(cx) {
                        Poll::Pending => {
                            return self.keep(Rival::Connecting(flight, waiting, request));
                        }
                        Poll::Ready(Ok(lease)) => {
                            if !lease.is_reused() {
                                flight.connected();
                            }
                            self.send_rival(flight, lease, *request)
                        }
                        Poll::Ready(Err(unavailable)) => {
                            let mut fate = Fate::Left;
                            if let Unavailable::Refused(refused, _) = unavailable {
                                fate = Fate::Refused;
                                flight.refused(self.core.balance.now());
                                self.refusal(flight.target(), refused);
                            }
                            self.tale.rival_ends(&self.core.telemetry, &flight, fate);
                            self.tried.note(flight.id());
                            return None;
                        }
                    }
                }
                Rival::Sending(mut sending) => match sending.lease.poll_response(cx) {
                    Poll::Pending => return self.keep(Rival::Sending(sending)),
                    Poll::Ready(Err(failed)) => {
                        self.rival_lost(&sending, failed);
                        return None;
                    }
                    Poll::Ready(Ok(response)) => {
                        let id = sending.flight.id();
                        self.tale.swap();
                        let (verdict, response) = self.judged(sending, response);
                        if verdict.is_retryable() {
                            self.tale.swap();
                            self.tried.note(id);
                            self.was_sent = true;
                            self.hold(response);
                            return None;
                        }
                        if let State::Sending(first) = state {
                            self.outrun(first);
                        }
                        *state = State::Done;
                        return Some(Step::Answer(response));
                    }
                },
            };
            self.keep(next);
        }
    }

    fn keep(&mut self, rival: Rival) -> Option<Step> {
        if let Some(effort) = &mut self.effort {
            effort.rival = Some(rival);
        }
        None
    }

    fn rival_lost(&mut self, sending: &Sending, failed: SendFailed) {
        let flight = &sending.flight;
        let SendFailed {
            unsent,
            fault,
            error,
        } = failed;
        self.tried.note(flight.id());
        let was_sent = unsent.is_none() && fault != Fault::Unprocessed;
        let kind = if was_sent {
            ErrorKind::Request
        } else {
            ErrorKind::Connect
        };
        let is_blameless = !was_sent || error.is_user() || sending.lease.is_reused();
        let error = Error::new(kind)
            .after_sending(was_sent)
            .context(flight.target().to_string())
            .because(error);
        let verdict = self.core.classifier.failure(&error);
        if !is_blameless && verdict.standing() == Standing::Failed {
            flight.failed(self.core.balance.now());
        }
        let fate = if was_sent { Fate::Lost } else { Fate::Unsent };
        self.tale.rival_ends(&self.core.telemetry, flight, fate);
        self.was_sent |= was_sent;
        self.failures.push(error);
    }

    /// The first attempt has failed: the second takes its place.
    pub(super) fn promote(&mut self) -> Option<Step> {
        let effort = self.effort.as_mut()?;
        let rival = effort.rival.take()?;
        self.tale.rival_takes_over();
        if let Some(rules) = &self.core.persistence {
            let _inside = self.core.runtime.enter();
            effort.attempt_begins(rules);
        }
        let state = match rival {
            Rival::Connecting(flight, waiting, request) => {
                self.request = Some(*request);
                State::Connecting(flight, waiting)
            }
            Rival::Sending(sending) => State::Sending(sending),
        };
        Some(Step::Go(state))
    }

    /// The attempt under way has had its time: another takes its place, if there is one.
    fn cut(&mut self, state: &mut State) -> Option<Step> {
        let (flight, was_sent, what) = match &*state {
            State::Connecting(flight, _) => (flight, false, "no connection"),
            State::Sending(sending) => (&sending.flight, true, "no response"),
            _ => return None,
        };
        let error = Error::new(ErrorKind::Timeout)
            .after_sending(was_sent)
            .context(format!("{what} from {} within its time", flight.target()));
        let verdict = self.core.classifier.failure(&error);
        let mut tried = self.tried.clone();
        tried.note(flight.id());
        if self.effort.as_ref()?.rival.is_none() {
            if !verdict.is_retryable() {
                return None;
            }
            let id = flight.id();
            let is_new = tried.len() < self.core.max_attempts;
            let fresh = is_new.then(|| self.pick_replacement(&tried)).flatten();
            let returns = fresh.is_none();
            let next = match fresh {
                Some(next) => next,
                // Where there are few, somebody who was asked before is better than to wait on.
                // What was not sent is tried on so many endpoints and no more.
                None if is_new || was_sent => {
                    tried = Tried::of(self.key);
                    tried.note(id);
                    self.pick_replacement(&tried)?
                }
                None => return None,
            };
            if was_sent || returns {
                self.pay().ok()?;
            }
            if was_sent {
                self.request = Some(self.repetition()?);
            }
            let old = mem::replace(state, State::Done);
            self.late_attempt(&old, verdict, error);
            self.tried = tried;
            return Some(Step::Go(State::Picked(next, Need::Any)));
        }
        let old = mem::replace(state, State::Done);
        self.late_attempt(&old, verdict, error);
        self.tried = tried;
        self.promote()
    }

    /// Somebody in place of an attempt that has had its time. Who refuses connections is worse
    /// than a slow answer.
    fn pick_replacement(&mut self, tried: &Tried) -> Option<InFlight<Upstream>> {
        if !has_reachable(&self.core.balance, tried) {
            return None;
        }
        match self.pick_beside(tried) {
            Choice::Picked(next) => Some(next),
            Choice::Exhausted | Choice::Empty | Choice::Unknown => None,
        }
    }

    fn late_attempt(&mut self, state: &State, verdict: Verdict, error: Error) {
        tracing::debug!(%error, "attempt is cut off");
        self.line = None;
        let is_failure = verdict.standing() == Standing::Failed;
        match state {
            State::Sending(sending) if is_failure => self.blame(sending),
            State::Sending(sending) => self.let_go(sending),
            State::Connecting(flight, _) if is_failure => flight.failed(self.core.balance.now()),
            _ => {}
        }
        if let State::Sending(Sending { flight, .. }) | State::Connecting(flight, _) = state {
            self.tale.ends(&self.core.telemetry, flight, Fate::Late);
        }
        self.was_sent |= error.was_sent();
        self.failures.push(error);
    }

    /// Another attempt has answered first. This one has taken that long at least.
    pub(super) fn outrun(&self, slower: &Sending) {
        self.let_go(slower);
        if let Some(rules) = &self.core.persistence {
            rules.record(slower.started.elapsed());
        }
    }
}
