//! Handles of metrics, looked up once and kept.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, OnceLock, PoisonError};
use std::time::Duration;

use metrics::{Counter, Gauge, Histogram, counter, gauge, histogram};

use crate::endpoint::Target;
use crate::source::Status;

use super::{Ending, Fate, Telemetry, words};

/// Counters of one service.
#[derive(Default)]
pub(super) struct Meters {
    service: Arc<str>,
    has_endpoint_gauges: bool,
    requests: Series<16>,
    attempts: Series<9>,
    retries: Series<9>,
    hedges: OnceLock<Counter>,
    starved: OnceLock<Counter>,
    duration: OnceLock<Histogram>,
}

/// One counter by the values of a label. Each is looked up when it counts for the first time.
struct Series<const N: usize>([OnceLock<Counter>; N]);

impl<const N: usize> Default for Series<N> {
    fn default() -> Self {
        Self(std::array::from_fn(|_| OnceLock::new()))
    }
}

impl<const N: usize> Series<N> {
    fn add(&self, index: usize, look_up: impl FnOnce() -> Counter) {
        match self.0.get(index) {
            Some(place) => place.get_or_init(look_up).increment(1),
            // A label that has no place yet is looked up each time.
            None => look_up().increment(1),
        }
    }
}

impl Meters {
    pub(super) fn new(service: Option<&str>, has_endpoint_gauges: bool) -> Self {
        Self {
            has_endpoint_gauges,
            service: service.unwrap_or_default().into(),
            ..Self::default()
        }
    }

    fn service(&self) -> Arc<str> {
        Arc::clone(&self.service)
    }

    pub(super) fn request(&self, ending: Ending) {
        self.requests.add(ending.index(), || {
            let outcome = ending.name();
            counter!("lictor_requests_total", "service" => self.service(), "outcome" => outcome)
        });
    }

    pub(super) fn attempt(&self, fate: Fate) {
        self.attempts.add(fate as usize, || {
            let outcome = fate.name();
            counter!("lictor_attempts_total", "service" => self.service(), "outcome" => outcome)
        });
    }

    pub(super) fn retry(&self, after: Fate) {
        self.retries.add(after as usize, || {
            let reason = after.name();
            counter!("lictor_retries_total", "service" => self.service(), "reason" => reason)
        });
    }

    pub(super) fn hedge(&self) {
        let look_up = || counter!("lictor_hedges_total", "service" => self.service());
        self.hedges.get_or_init(look_up).increment(1);
    }

    pub(super) fn starved(&self) {
        let look_up =
            || counter!("lictor_retry_budget_exhausted_total", "service" => self.service());
        self.starved.get_or_init(look_up).increment(1);
    }

    /// Seldom enough to be looked up each time.
    pub(super) fn ejection(&self, reason: &'static str) {
        let service = self.service();
        counter!("lictor_ejections_total", "service" => service, "reason" => reason).increment(1);
    }

    pub(super) fn duration(&self, latency: Duration) {
        let look_up = || histogram!("lictor_attempt_duration_seconds", "service" => self.service());
        self.duration
            .get_or_init(look_up)
            .record(latency.as_secs_f64());
    }
}

impl Telemetry {
    fn is_source_stale(&self) -> bool {
        let source = self.source.lock().unwrap_or_else(PoisonError::into_inner);
        matches!(&*source, Some((Status::Stale { .. }, _)))
    }
}

/// What the gauges of a service show at one moment.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Sample {
    pub(crate) endpoints: u32,
    pub(crate) ejected: u32,
    pub(crate) in_flight: u32,
}

/// The gauges of a service, which tell differences: several channels to it add up. What was told
/// is taken back when this is dropped.
pub(crate) struct Gauges {
    telemetry: Arc<Telemetry>,
    all: Option<[Moving; 5]>,
    each: HashMap<u32, Each>,
}

struct Each {
    in_flight: Moving,
    ejected: Moving,
    seen: bool,
}

/// A gauge, and what it was told last.
struct Moving(Gauge, u32);

impl Moving {
    fn to(&mut self, value: u32) {
        let before = std::mem::replace(&mut self.1, value);
        if before != value {
            self.0.increment(f64::from(value) - f64::from(before));
        }
    }
}

impl Gauges {
    /// Whether there is somebody to tell.
    pub(crate) const ARE_TOLD: bool = true;

    pub(crate) fn new(telemetry: Arc<Telemetry>) -> Self {
        Self {
            telemetry,
            all: None,
            each: HashMap::new(),
        }
    }

    /// Whether the endpoints are told of one by one.
    pub(crate) fn tell_each(&self) -> bool {
        self.telemetry.meters.has_endpoint_gauges
    }

    pub(crate) fn tell(&mut self, sample: Sample) {
        let telemetry = &self.telemetry;
        let gauges = self.all.get_or_insert_with(|| {
            words::describe();
            let service = || telemetry.meters.service();
            [
                gauge!("lictor_endpoints", "service" => service()),
                gauge!("lictor_endpoints_ejected", "service" => service()),
                gauge!("lictor_requests_in_flight", "service" => service()),
                gauge!("lictor_requests_waiting", "service" => service()),
                gauge!("lictor_source_stale", "service" => service()),
            ]
            .map(|gauge| Moving(gauge, 0))
        });
        let values = [
            sample.endpoints,
            sample.ejected,
            sample.in_flight,
            u32::try_from(telemetry.waiting()).unwrap_or(u32::MAX),
            u32::from(telemetry.is_source_stale()),
        ];
        for (gauge, value) in gauges.iter_mut().zip(values) {
            gauge.to(value);
        }
    }

    pub(crate) fn tell_endpoint(&mut self, id: u32, target: &Target, in_flight: u32, out: bool) {
        let service = || self.telemetry.meters.service();
        let each = self.each.entry(id).or_insert_with(|| {
            let endpoint: Arc<str> = target.to_string().into();
            let in_flight = gauge!(
                "lictor_endpoint_in_flight",
                "service" => service(), "endpoint" => Arc::clone(&endpoint)
            );
            let ejected = gauge!(
                "lictor_endpoint_ejected", "service" => service(), "endpoint" => endpoint
            );
            Each {
                in_flight: Moving(in_flight, 0),
                ejected: Moving(ejected, 0),
                seen: true,
            }
        });
        each.seen = true;
        each.in_flight.to(in_flight);
        each.ejected.to(u32::from(out));
    }

    /// Those of whom nothing was told since the last call have left.
    pub(crate) fn forget_others(&mut self) {
        self.each.retain(|_, each| {
            let seen = std::mem::take(&mut each.seen);
            if !seen {
                each.take_back();
            }
            seen
        });
    }
}

impl Each {
    fn take_back(&mut self) {
        self.in_flight.to(0);
        self.ejected.to(0);
    }
}

impl Drop for Gauges {
    fn drop(&mut self) {
        for gauge in self.all.iter_mut().flatten() {
            gauge.to(0);
        }
        for each in self.each.values_mut() {
            each.take_back();
        }
    }
}

impl fmt::Debug for Gauges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gauges").finish_non_exhaustive()
    }
}
