//! What comes of a request: the answer, or the error that tells of all attempts.

use std::mem;

use http::Response;
use hyper::body::Incoming;
use tokio::time::Instant;

use crate::endpoint::Target;
use crate::error::{BoxError, Error, ErrorKind};
use crate::retry::{Standing, Verdict, is_grpc};

use super::Body;
use super::attempts::Attempts;
use super::body::Grading;
use super::effort::Enough;
use super::future::{Awaited, Sending, State};
use super::hedge::Rival;

impl Attempts {
    /// Keeps an answer for the case that no better one comes.
    pub(super) fn hold(&mut self, response: Response<Body>) {
        if let Some(effort) = &mut self.effort {
            effort.held = Some(response);
        }
    }

    /// Tells the endpoint's statistics of a response.
    pub(super) fn judged(
        &mut self,
        sending: Sending,
        response: Response<Incoming>,
    ) -> (Verdict, Response<Body>) {
        let Sending {
            flight,
            lease,
            started,
        } = sending;
        let core = &self.core;
        let clock = core.balance.clock();
        let now = Instant::now();
        let latency = now.saturating_duration_since(started);
        flight.heard();
        let reports = core.load_report.as_ref();
        if let Some(report) = reports.and_then(|rule| rule.read(response.headers())) {
            flight.reported(report, clock.at(now));
        }
        let verdict = core
            .classifier
            .response(response.status(), response.headers());
        // Whether a call of gRPC went well stands in its trailers, if not in its head.
        let is_open =
            is_grpc(response.headers()) && !response.headers().contains_key("grpc-status");
        let mut grading = None;
        match verdict.standing() {
            Standing::Answered if is_open => {
                grading = Some(Grading::new(core.classifier.clone(), latency));
            }
            Standing::Answered => flight.answered(latency, clock.at(now)),
            // An error is as fast as it is useless: taken for a latency it would draw traffic.
            Standing::Failed => flight.failed(clock.at(now)),
            Standing::Unrated => {}
        }
        let fate = self.tale.judged(verdict.standing());
        self.tale.ends(&core.telemetry, &flight, fate);
        core.telemetry.answered_after(latency);
        if let Some(rules) = &core.persistence
            && verdict.standing() == Standing::Answered
        {
            rules.record(latency);
        }
        let target = core.tell_target.then(|| flight.target().clone());
        let mut response =
            response.map(|incoming| Body::new(incoming, flight, lease, clock, grading));
        if let Some(target) = target {
            response.extensions_mut().insert(target);
        }
        (verdict, response)
    }

    /// Hands the answer over, with what ends when its body does.
    pub(super) fn deliver(&mut self, mut response: Response<Body>) -> Response<Body> {
        if let Some(mut effort) = self.effort.take()
            && let Some(Rival::Sending(slower)) = effort.rival.take()
        {
            self.outrun(&slower);
        }
        if let Some(place) = self.place.take() {
            response.body_mut().hold(place);
        }
        self.tale.answered(&self.core.telemetry, response.status());
        response
    }

    /// There are no more attempts: with the last answer if there was one, else with the error.
    pub(super) fn end(&mut self, error: Error) -> Result<Response<Body>, Error> {
        let held = self.effort.as_mut().and_then(|effort| effort.held.take());
        let ended = held.map(|response| self.deliver(response));
        self.place = None;
        if ended.is_none() {
            self.tale.failed(&self.core.telemetry, &error);
        }
        ended.ok_or(error)
    }

    pub(super) fn refusal(&mut self, target: &Target, cause: impl Into<BoxError>) {
        self.failures.push(
            Error::new(ErrorKind::Connect)
                .context(target.to_string())
                .because(cause),
        );
    }

    /// The error of a request for which there is no other attempt.
    pub(super) fn exhausted(&mut self, enough: Enough) -> Error {
        let mut failures = mem::take(&mut self.failures);
        let count = failures.len();
        let sent = failures.iter().rfind(|failure| failure.was_sent());
        let Some(told) = sent else {
            let mut context = format!("{count} tried");
            if let Some(last) = failures.last() {
                context = format!("{context}, the last was {}", last.told());
            }
            if self.is_starved {
                context = format!("{context}; {}", Enough::Budget);
            }
            if self.busy_seen > 0 && count == 0 {
                let error = Error::new(ErrorKind::Overloaded).about(self.core.service());
                return error.context("all connections are in use");
            }
            let error = Error::new(ErrorKind::Connect).context(context);
            return error.after(failures);
        };
        let why = match &self.effort {
            Some(_) => format!("; {enough}"),
            None => String::new(),
        };
        let error = Error::new(told.kind());
        if count > 1 {
            let context = format!("{count} attempts, the last sent to {}{why}", told.told());
            return error.context(context).after(failures);
        }
        let context = format!("{}{why}", told.told());
        match failures.pop() {
            Some(only) => only.context(context),
            None => error.context(context),
        }
    }

    /// What comes of a request whose deadline has passed in this state.
    ///
    /// It is the channel's own deadline: unlike a caller who goes, it tells of a failure.
    pub(super) fn late(&mut self, state: &State) -> Result<Response<Body>, Error> {
        self.tale.is_late();
        let rival = self.effort.as_mut().and_then(|effort| effort.rival.take());
        let rival = rival.and_then(Rival::into_sending);
        let is_sent = |sending: &Sending| sending.lease.is_sent();
        let mut was_sent = self.was_sent || rival.as_ref().is_some_and(is_sent);
        if let State::Sending(sending) = state {
            self.blame(sending);
            was_sent |= is_sent(sending);
        }
        if let Some(rival) = &rival {
            self.blame(rival);
        }
        let limit = self.core.timeout.unwrap_or_default();
        let context = match state {
            State::Sending(Sending { flight, .. }) => {
                format!("no response from {} within {limit:?}", flight.target())
            }
            State::Connecting(flight, _) => {
                format!("no connection to {} within {limit:?}", flight.target())
            }
            State::Waiting(_, Awaited::Resolution) => {
                format!("no endpoints known within {limit:?}")
            }
            State::Waiting(_, Awaited::Endpoint) => {
                format!("no endpoint to be reached within {limit:?}")
            }
            State::Waiting(_, Awaited::Place | Awaited::Pause)
            | State::Failed(_)
            | State::Picked(..)
            | State::Done => {
                format!("not sent within {limit:?}")
            }
        };
        let context = match self.failures.len() {
            0 => context,
            before => format!("{context}; failed attempts before: {before}"),
        };
        let failures = mem::take(&mut self.failures);
        let error = Error::new(ErrorKind::Timeout)
            .after_sending(was_sent)
            .context(context)
            .after(failures);
        self.end(error)
    }

    /// An endpoint has let the time of an attempt pass.
    pub(super) fn blame(&self, sending: &Sending) {
        let balance = &self.core.balance;
        let now = balance.now();
        let flight = &sending.flight;
        flight.failed(now);
        balance.late(flight, now);
        flight.backend().pool().distrust(&sending.lease);
    }

    /// The caller waits no longer.
    pub(super) fn give_up(&mut self, state: &State) {
        let rival = self.effort.as_mut().and_then(|effort| effort.rival.take());
        let rival = rival.and_then(Rival::into_sending);
        if let State::Sending(sending) = state {
            self.let_go(sending);
        }
        if let Some(rival) = &rival {
            self.let_go(rival);
        }
        self.tale.given_up(&self.core.telemetry);
    }

    pub(super) fn let_go(&self, sending: &Sending) {
        let now = Instant::now();
        let waited = now.saturating_duration_since(sending.started);
        let now = self.core.balance.clock().at(now);
        sending.flight.given_up(waited, now);
    }
}
