//! What is told of one request while it goes on: to spans, to counters, to nobody.
//!
//! The names and fields are those of [`telemetry`](crate::telemetry). Where nobody listens a
//! request costs one look at the interest in spans, and each attempt a few writes to memory that
//! is at hand anyway.

use http::Request;
use tracing::Span;
use tracing::field::Empty;
use tracing::span::EnteredSpan;

use crate::balance::{Backend, InFlight};
use crate::connect::Outgoing;
use crate::error::Error;
use crate::retry::Standing;
use crate::telemetry::{Ending, Fate, Telemetry};

use super::upstream::Upstream;

/// The story of one request.
pub(super) struct Tale {
    attempts: u16,
    /// How the attempt ended that made another one necessary.
    last: Option<Fate>,
    /// An attempt is under way.
    is_trying: bool,
    /// A second one is.
    has_rival: bool,
    /// How the last answer was judged.
    judged: Ending,
    is_over: bool,
    /// What becomes of attempts that are under way when the request is over.
    rest: Fate,
    /// None if nobody asks for spans.
    spans: Option<Box<Spans>>,
}

struct Spans {
    request: Span,
    attempt: Span,
    rival: Span,
}

impl Tale {
    /// A request begins; without one it has failed before.
    pub(super) fn begin(telemetry: &Telemetry, request: Option<&Request<Outgoing>>) -> Self {
        let method = request.map(|request| request.method().as_str());
        let span = tracing::debug_span!(
            target: "lictor_tower::request",
            "request",
            service = telemetry.service(),
            method,
            attempts = Empty,
            status = Empty,
            outcome = Empty,
        );
        let spans = (!span.is_disabled()).then(|| {
            Box::new(Spans {
                request: span,
                attempt: Span::none(),
                rival: Span::none(),
            })
        });
        Self {
            attempts: 0,
            last: None,
            is_trying: false,
            has_rival: false,
            judged: Ending::Answered,
            is_over: false,
            rest: Fate::Outrun,
            spans,
        }
    }

    /// What happens until the guard is dropped happens within this request.
    pub(super) fn enter(&self) -> Option<EnteredSpan> {
        let spans = self.spans.as_ref()?;
        Some(spans.request.clone().entered())
    }

    /// An attempt begins: the first, or one after another.
    pub(super) fn tries(&mut self, telemetry: &Telemetry, flight: &InFlight<Upstream>) {
        self.attempts = self.attempts.saturating_add(1);
        self.is_trying = true;
        let after = self.last.take();
        if let Some(after) = after {
            telemetry.retries(after, flight.backend().counts());
        }
        if let Some(spans) = &mut self.spans {
            let kind = if after.is_some() { "retry" } else { "first" };
            let reason = after.map(Fate::name);
            if let Some(reason) = reason {
                let target = flight.target();
                tracing::debug!(%target, reason, "request goes to another endpoint");
            }
            spans.attempt = attempt(&spans.request, flight, self.attempts, kind, reason);
        }
    }

    /// An attempt begins beside the one under way.
    pub(super) fn hedges(&mut self, telemetry: &Telemetry, flight: &InFlight<Upstream>) {
        self.attempts = self.attempts.saturating_add(1);
        self.has_rival = true;
        telemetry.hedges(flight.backend().counts());
        if let Some(spans) = &mut self.spans {
            spans.rival = attempt(&spans.request, flight, self.attempts, "hedge", None);
        }
    }

    /// The attempt under way is over.
    pub(super) fn ends(&mut self, telemetry: &Telemetry, flight: &InFlight<Upstream>, fate: Fate) {
        self.is_trying = false;
        // That an endpoint has left, or that its connections are all in use, is no failure of the
        // attempt: nobody was asked.
        if !matches!(fate, Fate::Left | Fate::Busy) {
            self.last = Some(fate);
        }
        telemetry.attempt_ended(fate, flight.backend().counts());
        if let Some(spans) = &mut self.spans {
            std::mem::replace(&mut spans.attempt, Span::none()).record("outcome", fate.name());
        }
    }

    /// The second attempt is over.
    pub(super) fn rival_ends(
        &mut self,
        telemetry: &Telemetry,
        flight: &InFlight<Upstream>,
        fate: Fate,
    ) {
        self.has_rival = false;
        telemetry.attempt_ended(fate, flight.backend().counts());
        if let Some(spans) = &mut self.spans {
            std::mem::replace(&mut spans.rival, Span::none()).record("outcome", fate.name());
        }
    }

    /// The second attempt takes the place of the one that is over.
    pub(super) fn rival_takes_over(&mut self) {
        self.is_trying = std::mem::take(&mut self.has_rival);
        self.last = None;
        if let Some(spans) = &mut self.spans {
            spans.attempt = std::mem::replace(&mut spans.rival, Span::none());
        }
    }

    /// The two attempts under way change places: what is told next is told of the second.
    pub(super) fn swap(&mut self) {
        std::mem::swap(&mut self.is_trying, &mut self.has_rival);
        if let Some(spans) = &mut self.spans {
            let Spans { attempt, rival, .. } = &mut **spans;
            std::mem::swap(attempt, rival);
        }
    }

    /// How an answer was judged, which may be the last.
    pub(super) fn judged(&mut self, standing: Standing) -> Fate {
        let (ending, fate) = match standing {
            Standing::Failed => (Ending::Failed, Fate::Failed),
            Standing::Answered | Standing::Unrated => (Ending::Answered, Fate::Answered),
        };
        self.judged = ending;
        fate
    }

    /// The caller gets an answer.
    pub(super) fn answered(&mut self, telemetry: &Telemetry, status: http::StatusCode) {
        if let Some(spans) = &self.spans {
            spans.request.record("status", status.as_u16());
        }
        self.over(telemetry, self.judged);
    }

    /// The caller gets an error.
    pub(super) fn failed(&mut self, telemetry: &Telemetry, error: &Error) {
        self.over(telemetry, Ending::Error(error.kind()));
    }

    /// The caller waits no longer; nothing is told if the request is over.
    pub(super) fn given_up(&mut self, telemetry: &Telemetry) {
        self.rest = Fate::GivenUp;
        self.over(telemetry, Ending::GivenUp);
    }

    /// The deadline of the request has passed, whatever the caller gets now.
    pub(super) fn is_late(&mut self) {
        self.rest = Fate::Late;
    }

    fn over(&mut self, telemetry: &Telemetry, ending: Ending) {
        if std::mem::replace(&mut self.is_over, true) {
            return;
        }
        for _ in 0..u8::from(self.is_trying) + u8::from(self.has_rival) {
            telemetry.attempt_ended(self.rest, None);
        }
        telemetry.request_ended(ending);
        if let Some(spans) = self.spans.take() {
            spans.attempt.record("outcome", self.rest.name());
            spans.rival.record("outcome", self.rest.name());
            spans.request.record("attempts", self.attempts);
            spans.request.record("outcome", ending.name());
        }
    }
}

fn attempt(
    request: &Span,
    flight: &InFlight<Upstream>,
    number: u16,
    kind: &'static str,
    reason: Option<&'static str>,
) -> Span {
    tracing::debug_span!(
        target: "lictor_tower::request",
        parent: request,
        "attempt",
        endpoint = %flight.target(),
        attempt = number,
        kind,
        reason,
        outcome = Empty,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_subscriber_nothing_is_kept_for_spans() {
        let telemetry = Telemetry::default();
        let request = Request::new(Outgoing::Empty);
        let _nobody = tracing::subscriber::set_default(tracing::subscriber::NoSubscriber::new());
        let tale = Tale::begin(&telemetry, Some(&request));
        assert!(tale.spans.is_none());
        assert!(tale.enter().is_none());
    }

    #[test]
    fn a_request_is_over_once() {
        let telemetry = Telemetry::new(Some("web"), false);
        let mut tale = Tale::begin(&telemetry, None);
        tale.failed(&telemetry, &Error::new(crate::ErrorKind::Overloaded));
        tale.failed(&telemetry, &Error::new(crate::ErrorKind::Overloaded));
        tale.given_up(&telemetry);
        assert_eq!(telemetry.totals().shed, 1);
    }
}
