//! What can be watched: spans and events, metrics, snapshots.
//!
//! Nothing of this is needed to call a service, and what nobody listens to costs next to nothing:
//! without a subscriber a span is one atomic read, and without the feature `metrics` there is no
//! code for metrics at all. No header, no body, no path and no token is ever told; of a request
//! nothing but its method.
//!
//! | I want to | use |
//! |---|---|
//! | follow one request from attempt to attempt | the [spans](#spans), at `DEBUG` |
//! | be told when something turns for the worse or the better | the [events](#events), at `INFO` and `WARN` |
//! | have numbers over time, and alarms | the [metrics](#metrics) |
//! | see all endpoints at this moment, on a debug page | [`Channel::snapshot`](crate::Channel::snapshot) |
//!
//! # Levels
//!
//! | Level | what |
//! |---|---|
//! | `WARN` | something needs somebody: endpoints that nobody can call, a source that cannot be asked, too few endpoints that are well |
//! | `INFO` | an endpoint is ejected or back, what was wrong is well again |
//! | `DEBUG` | spans; what happens to one request; endpoints that join and leave, in the course of things |
//!
//! `lictor_tower=info` is for production. The names of spans and of their fields, and the target
//! of the spans, `lictor_tower::request`, are stable: they change as a public function would.
//! The texts and targets of events are for people and may change.
//!
//! # Spans
//!
//! A [`Channel`](crate::Channel) opens them. `request` lasts from the call until the head of the
//! response is there, or until the request is given up; what its future does happens inside it.
//! Each attempt is a child of it; two are open at one time while a request is hedged.
//!
//! | Span | field | what |
//! |---|---|---|
//! | `request` | `service` | the name of the service; missing if the channel knows none |
//! | | `method` | of the request |
//! | | `attempts` | how many there were; when it ends |
//! | | `status` | the status of the response, if there is one; when it ends |
//! | | `outcome` | see [outcomes of requests](#outcomes-of-requests); when it ends |
//! | `attempt` | `endpoint` | where it goes, as `host:port` |
//! | | `attempt` | its number, from 1 on |
//! | | `kind` | `first`, `retry` or `hedge` |
//! | | `reason` | of a retry: the outcome of the attempt before it |
//! | | `outcome` | see [outcomes of attempts](#outcomes-of-attempts); when it ends |
//!
//! # Outcomes of requests
//!
//! | Outcome | what the caller got |
//! |---|---|
//! | `answered` | a response that does not count as a failure |
//! | `failed` | a response that counts as a failure, see [`classify`](crate::channel::Builder::classify) |
//! | `given_up` | nothing: the future of the response was dropped before |
//! | `connect`, `request`, `timeout`, `overloaded`, `no_endpoints`, `never_resolved`, … | an error of that [kind](crate::ErrorKind), in small letters; `overloaded` is a request that was shed |
//!
//! # Outcomes of attempts
//!
//! | Outcome | what became of the attempt |
//! |---|---|
//! | `answered`, `failed` | a response, judged as that of a request is |
//! | `refused` | no connection could be opened; nothing was sent |
//! | `unsent` | the connection had just been closed, or the server said that it did not look at it; nothing was done |
//! | `lost` | the connection failed after the request was sent |
//! | `late` | the time of the attempt, or of the request, has passed |
//! | `busy` | as many connections as there may be to the endpoint were in use; nothing was sent |
//! | `outrun` | another attempt of the same request has answered first |
//! | `left` | the endpoint has left meanwhile; nothing was sent |
//! | `given_up` | the future of the response was dropped |
//!
//! # Events
//!
//! | Level | event | fields |
//! |---|---|---|
//! | `INFO` | an endpoint is ejected, is back in rotation | `service`, `target`, `why`, `time` |
//! | `WARN`, `INFO` | too few endpoints are well: ejections are ignored; enough are well again | `service` |
//! | `WARN`, `INFO` | the source has lost most endpoints; lists them again; they leave now | `service`, `left`, `lost` |
//! | `INFO` | the source is stale; confirms the endpoints again | `service`, `reason` |
//! | `WARN` | of a source: it cannot be asked, it lists nobody, or somebody who cannot be called | `name`, `reason`, … |
//! | `DEBUG` | an endpoint has joined, has left | `service`, `target` |
//! | `DEBUG` | within `request`: it is sent to another endpoint, it is hedged, and why not | `target`, `reason`, … |
//!
//! # Metrics
//!
//! With the feature `metrics`, through the facade of the crate [`metrics`](https://docs.rs/metrics):
//! whatever recorder the program has installed gets them. Install it before the first request.
//! Handles are looked up once and kept; a series is there from the first time that it counts.
//! Counts of several channels to one service add up, gauges as well.
//!
//! | Name | kind | labels | unit and meaning |
//! |---|---|---|---|
//! | `lictor_requests_total` | counter | `service`, `outcome` | requests of a channel or a [`Balanced`](crate::layer::Balanced) that are over; shed ones are `overloaded` |
//! | `lictor_attempts_total` | counter | `service`, `outcome` | attempts that are over; refused connections are `refused` |
//! | `lictor_retries_total` | counter | `service`, `reason` | attempts after another, by the outcome of that one |
//! | `lictor_hedges_total` | counter | `service` | attempts beside another |
//! | `lictor_retry_budget_exhausted_total` | counter | `service` | retries that the budget had nothing left for |
//! | `lictor_ejections_total` | counter | `service`, `reason` | endpoints put out of rotation: `consecutive_failures`, `silence`, `success_rate`, `latency` |
//! | `lictor_attempt_duration_seconds` | histogram | `service` | seconds from sending to the head of the response |
//! | `lictor_endpoints` | gauge | `service` | endpoints in the set |
//! | `lictor_endpoints_ejected` | gauge | `service` | of them out of rotation, or on the way back |
//! | `lictor_requests_in_flight` | gauge | `service` | requests whose response has not ended; of a dialer open connections |
//! | `lictor_requests_waiting` | gauge | `service` | requests in line for a place, an endpoint, the first resolution |
//! | `lictor_source_stale` | gauge | `service` | 1 while the source cannot confirm the endpoints |
//! | `lictor_endpoint_in_flight` | gauge | `service`, `endpoint` | as above, for one endpoint |
//! | `lictor_endpoint_ejected` | gauge | `service`, `endpoint` | 1 while it is out of rotation or on the way back |
//!
//! Gauges are renewed twice a second. The last two are told only by channels that are
//! [asked to](crate::channel::Builder::endpoint_gauges): a series per endpoint can become many.
//! `service` is the name that the service was found by, or was [given](crate::channel::Builder::name);
//! it is empty if there is none. Dialers and `Balanced` have no retries, hedges and durations; an
//! attempt of a dialer is a connection, `answered` if it was opened and `refused` if not, or if its
//! user had no use for it.

#[cfg(feature = "metrics")]
mod meters;
#[cfg(feature = "metrics")]
use meters as told;
#[cfg(not(feature = "metrics"))]
mod silent;
#[cfg(not(feature = "metrics"))]
use silent as told;

mod outcome;
mod serial;
mod source;
#[cfg(feature = "metrics")]
mod words;

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::source::Status;

pub(crate) use outcome::{Ending, Fate};
pub(crate) use serial::millis;
pub(crate) use source::{Followed, Probe};
pub(crate) use told::{Gauges, Sample};

/// What is told of one service by one door to it.
#[derive(Default)]
pub(crate) struct Telemetry {
    service: Option<Box<str>>,
    totals: Totals,
    /// The last status of the source, and when it was so; none if the source tells none.
    source: Mutex<Option<(Status, Instant)>>,
    waiting: OnceLock<Waiting>,
    meters: told::Meters,
}

/// Reads how many requests wait.
type Waiting = Box<dyn Fn() -> usize + Send + Sync>;

/// Counts of what is rare: nothing here is written by a request that goes well.
#[derive(Debug, Default)]
struct Totals {
    retries: AtomicU64,
    hedges: AtomicU64,
    refused: AtomicU64,
    shed: AtomicU64,
    starved: AtomicU64,
}

/// The same for one endpoint.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    retries: AtomicU64,
    hedges: AtomicU64,
    refused: AtomicU64,
}

/// [`Counts`] and [`Totals`] as they were read.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counted {
    pub(crate) retries: u64,
    pub(crate) hedges: u64,
    pub(crate) refused: u64,
    pub(crate) shed: u64,
    pub(crate) starved: u64,
}

fn add(count: &AtomicU64) {
    count.fetch_add(1, Ordering::Relaxed);
}

fn read(count: &AtomicU64) -> u64 {
    count.load(Ordering::Relaxed)
}

impl Counts {
    pub(crate) fn read(&self) -> Counted {
        Counted {
            retries: read(&self.retries),
            hedges: read(&self.hedges),
            refused: read(&self.refused),
            ..Counted::default()
        }
    }
}

impl Telemetry {
    pub(crate) fn new(service: Option<&str>, has_endpoint_gauges: bool) -> Self {
        Self {
            service: service.map(Into::into),
            meters: told::Meters::new(service, has_endpoint_gauges),
            ..Self::default()
        }
    }

    /// The name of the service, for spans and events: a field that is none is not told.
    pub(crate) fn service(&self) -> Option<&str> {
        self.service.as_deref()
    }

    /// Says how the number of requests that wait is read.
    pub(crate) fn watch_waiting(&self, read: impl Fn() -> usize + Send + Sync + 'static) {
        self.waiting.get_or_init(|| Box::new(read));
    }

    pub(crate) fn waiting(&self) -> usize {
        self.waiting.get().map_or(0, |read| read())
    }

    /// How well the source knows the service, as of now.
    pub(crate) fn source(&self) -> Option<Status> {
        let source = self.source.lock().unwrap_or_else(PoisonError::into_inner);
        let (status, at) = source.as_ref()?;
        Some(match status {
            Status::Stale { age, reason } => Status::Stale {
                age: age.saturating_add(at.elapsed()),
                reason: reason.clone(),
            },
            other => other.clone(),
        })
    }

    pub(crate) fn totals(&self) -> Counted {
        let totals = &self.totals;
        Counted {
            retries: read(&totals.retries),
            hedges: read(&totals.hedges),
            refused: read(&totals.refused),
            shed: read(&totals.shed),
            starved: read(&totals.starved),
        }
    }

    /// A request is over.
    pub(crate) fn request_ended(&self, ending: Ending) {
        if ending.is_shed() {
            add(&self.totals.shed);
        }
        self.meters.request(ending);
    }

    /// An attempt is over.
    pub(crate) fn attempt_ended(&self, fate: Fate, at: Option<&Counts>) {
        if fate == Fate::Refused {
            add(&self.totals.refused);
            if let Some(at) = at {
                add(&at.refused);
            }
        }
        self.meters.attempt(fate);
    }

    /// A request goes to another endpoint after an attempt that ended so.
    pub(crate) fn retries(&self, after: Fate, at: Option<&Counts>) {
        add(&self.totals.retries);
        if let Some(at) = at {
            add(&at.retries);
        }
        self.meters.retry(after);
    }

    /// A request goes to a second endpoint beside the first.
    pub(crate) fn hedges(&self, at: Option<&Counts>) {
        add(&self.totals.hedges);
        if let Some(at) = at {
            add(&at.hedges);
        }
        self.meters.hedge();
    }

    /// The budget has nothing left for a retry.
    pub(crate) fn starves(&self) {
        add(&self.totals.starved);
        self.meters.starved();
    }

    /// An endpoint is put out of rotation.
    pub(crate) fn ejects(&self, reason: &'static str) {
        self.meters.ejection(reason);
    }

    /// The head of a response has come after this time.
    pub(crate) fn answered_after(&self, latency: Duration) {
        self.meters.duration(latency);
    }
}

impl fmt::Debug for Telemetry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Telemetry")
            .field("service", &self.service)
            .field("totals", &self.totals)
            .finish_non_exhaustive()
    }
}
