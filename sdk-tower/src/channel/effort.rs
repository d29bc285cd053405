//! What a channel does for a request beyond the first attempt, and what one request has left of it.

use std::fmt;
use std::pin::Pin;
use std::task::Context;
use std::time::Duration;

use http::{Request, Response};
use tokio::time::{Instant, Sleep};

use crate::connect::Outgoing;
use crate::retry::{Budget, Delay, Hedge, Latencies, RetryPolicy};

use super::Body;
use super::hedge::Rival;
use super::replay::Spare;

/// The options of a channel that repeats requests.
#[derive(Debug)]
pub(super) struct Persistence {
    policy: RetryPolicy,
    hedge: Option<Hedging>,
}

#[derive(Debug)]
struct Hedging {
    hedge: Hedge,
    latencies: Option<Latencies>,
}

/// What is left of it for one request.
pub(super) struct Effort {
    /// By its method or by the caller's word.
    may_repeat: bool,
    retries: u32,
    pauses: u32,
    /// A retry is paid for and not sent yet.
    pub(super) granted: bool,
    /// The longest time that a response asked for.
    pub(super) told: Option<Duration>,
    /// When the request as a whole is late.
    due: Option<Instant>,
    attempt: Option<Pin<Box<Sleep>>>,
    hedge: Option<Pin<Box<Sleep>>>,
    pub(super) rival: Option<Rival>,
    /// A retry may not be better than this.
    pub(super) held: Option<Response<Body>>,
}

/// Why a request is not sent again.
#[derive(Clone, Copy, Debug)]
pub(super) enum Enough {
    /// No retries are asked for.
    Off,
    NotRepeatable,
    Body(usize),
    Retries(u32),
    Budget,
    Outcome,
    Nobody,
    TooLate,
}

impl Persistence {
    pub(super) fn new(retry: Option<RetryPolicy>, hedge: Option<Hedge>) -> Option<Self> {
        if retry.is_none() && hedge.is_none() {
            return None;
        }
        Some(Self {
            // Who hedges only sends nothing again after a failure.
            policy: retry.unwrap_or_else(|| RetryPolicy::new().max_retries(0)),
            hedge: hedge.map(|hedge| Hedging {
                hedge,
                latencies: match hedge.delay() {
                    Delay::Fixed(_) => None,
                    Delay::Percentile(share) => Some(Latencies::new(share)),
                },
            }),
        })
    }

    /// Begins a request: it pays its share.
    pub(super) fn begin(&self, request: &Request<Outgoing>, due: Option<Instant>) -> Box<Effort> {
        self.policy.purse().deposit();
        Box::new(Effort {
            may_repeat: self.policy.may_repeat(request),
            retries: self.policy.limits().max_retries,
            pauses: 0,
            granted: false,
            told: None,
            due,
            attempt: None,
            hedge: None,
            rival: None,
            held: None,
        })
    }

    pub(super) fn body_limit(&self) -> usize {
        self.policy.limits().body_limit
    }

    pub(super) fn budget(&self) -> &Budget {
        self.policy.purse()
    }

    /// An answer has come after this time, or was not there when it was given up.
    pub(super) fn record(&self, latency: Duration) {
        if let Some(latencies) = self.hedge.as_ref().and_then(|it| it.latencies.as_ref()) {
            latencies.record(latency);
        }
    }

    fn hedge_delay(&self) -> Option<Duration> {
        let hedging = self.hedge.as_ref()?;
        let delay = match hedging.hedge.delay() {
            Delay::Fixed(time) => time,
            Delay::Percentile(_) => hedging.latencies.as_ref()?.percentile()?,
        };
        Some(delay.max(hedging.hedge.floor()))
    }
}

impl Effort {
    /// An attempt begins: its own time runs from here.
    pub(super) fn attempt_begins(&mut self, rules: &Persistence) {
        let limit = rules.policy.limits().attempt_timeout;
        self.attempt = limit
            .filter(|_| self.may_repeat)
            .map(|limit| Box::pin(tokio::time::sleep(limit)));
    }

    /// The request is sent. `first` says that it is for the first time, and can be sent again.
    pub(super) fn sends(&mut self, rules: &Persistence, first: bool) {
        self.granted = false;
        if first && self.may_repeat {
            self.hedge = rules
                .hedge_delay()
                .map(|delay| Box::pin(tokio::time::sleep(delay)));
        }
    }

    pub(super) fn is_attempt_late(&mut self, cx: &mut Context<'_>) -> bool {
        is_over(&mut self.attempt, cx)
    }

    pub(super) fn is_hedge_due(&mut self, cx: &mut Context<'_>) -> bool {
        is_over(&mut self.hedge, cx)
    }

    pub(super) fn may_repeat(&self) -> bool {
        self.may_repeat
    }

    /// Whether the request may and can be sent again, whatever it costs.
    pub(super) fn can_repeat(&self, spare: &Spare, rules: &Persistence) -> Result<(), Enough> {
        if !self.may_repeat {
            return Err(Enough::NotRepeatable);
        }
        if spare.is_lost() {
            return Err(Enough::Body(rules.body_limit()));
        }
        Ok(())
    }

    /// Takes one retry for this request, if it may have one.
    pub(super) fn pay(&mut self, spare: &Spare, rules: &Persistence) -> Result<(), Enough> {
        self.can_repeat(spare, rules)?;
        let Some(left) = self.retries.checked_sub(1) else {
            return Err(Enough::Retries(rules.policy.limits().max_retries));
        };
        if !rules.budget().withdraw() {
            return Err(Enough::Budget);
        }
        self.retries = left;
        self.granted = true;
        Ok(())
    }

    /// Takes a hedge for this request; its body has to have gone out whole, for only one attempt
    /// can ask for more of it.
    pub(super) fn pay_hedge(&self, spare: &Spare, rules: &Persistence) -> bool {
        self.may_repeat && spare.is_whole() && rules.budget().withdraw()
    }

    /// The pause before endpoints are asked once more; none if the request is late by then.
    pub(super) fn pause(&mut self, rules: &Persistence, draw: u32) -> Option<Duration> {
        let pause = rules.policy.pause(self.pauses, self.told.take(), draw);
        self.pauses += 1;
        let ends = Instant::now().checked_add(pause)?;
        self.due.is_none_or(|due| ends < due).then_some(pause)
    }
}

fn is_over(timer: &mut Option<Pin<Box<Sleep>>>, cx: &mut Context<'_>) -> bool {
    let over = timer
        .as_mut()
        .is_some_and(|timer| timer.as_mut().poll(cx).is_ready());
    if over {
        *timer = None;
    }
    over
}

impl fmt::Display for Enough {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Off => f.write_str("retries are off"),
            Self::NotRepeatable => f.write_str("its method or its caller forbids a repetition"),
            Self::Body(limit) => write!(f, "its body is longer than the {limit} bytes kept"),
            Self::Retries(most) => write!(f, "max_retries is {most}"),
            Self::Budget => f.write_str("the retry budget is used up"),
            Self::Outcome => f.write_str("such a failure is not retried"),
            Self::Nobody => f.write_str("nobody else is there"),
            Self::TooLate => f.write_str("the pause before would outlast its deadline"),
        }
    }
}
