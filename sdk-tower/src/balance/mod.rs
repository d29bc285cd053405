//! Who gets the next request, out of a set that changes under way.
//!
//! The hot path is a [`Picker`]: it reads an immutable [`Snapshot`](snapshot::Snapshot) and a few
//! atomics, takes no lock and allocates nothing. One task per service, the [`driver`], turns the
//! source's endpoint sets into snapshots and is the only writer. The rules ([`estimate`],
//! [`avoid`], [`standing`], [`judge`], [`sample`], [`turns`], [`ring`], [`newcomer`], [`spill`],
//! [`subset`], [`pick`]) are pure: time and randomness are arguments. The [`sweep`] is where the
//! driver applies those of ejection.

mod avoid;
mod candidate;
mod cuts;
mod driver;
mod eject;
mod estimate;
mod hash;
mod judge;
mod loads;
mod lost;
mod newcomer;
mod pace;
mod pick;
mod report;
mod ring;
mod rng;
mod sample;
mod snapshot;
mod spill;
mod standing;
mod subset;
mod sweep;
mod tick;
mod turns;
mod ward;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::endpoint::Endpoint;
use crate::task::Worker;
use crate::telemetry::{Counts, Telemetry};

pub use hash::HashKey;

pub(crate) use candidate::{Candidate, InFlight};
pub(crate) use driver::start;
pub use eject::{Ejection, Reason};
pub use lost::Lost;
use pace::Pace;
pub(crate) use pick::{MOST_ATTEMPTS, Tried};
pub use report::LoadReport;
pub(crate) use rng::Rng;
pub(crate) use snapshot::{Phase, Snapshot};
pub(crate) use standing::Stage;
pub(crate) use subset::Subset;
pub(crate) use tick::{Clock, Moment, Tick, Time};

/// How the endpoint for a request is chosen.
///
/// | Policy | Use it when |
/// |---|---|
/// | [`PeakEwma`](Self::PeakEwma) | in doubt: it finds slow and failing endpoints by itself |
/// | [`PendingRequests`](Self::PendingRequests) | latencies say little, because requests differ much in cost |
/// | [`RoundRobin`](Self::RoundRobin) | shares must be exact, and all requests cost about the same |
/// | [`RingHash`](Self::RingHash) | endpoints keep something for a user, a document, a session |
///
/// The first two draw two endpoints at random, by weight, and take the one with less load; this
/// spreads well, and does not send every client to the same "best" endpoint. All of them leave
/// those alone who refuse connections, take weights as shares of the traffic, and cost the same
/// for ten endpoints and for ten thousand. A request that is tried again goes to an endpoint that
/// it was not tried on.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
#[non_exhaustive]
pub enum Policy {
    /// Load is the moving average of the latency times the requests in flight.
    ///
    /// A slow endpoint is left alone after its first slow answer and tried again, by one request,
    /// as the memory fades (time constant 2 s, or eight times the latency if that is longer; each
    /// time that it is as slow again the constant doubles, to eight times that and 240 s at the
    /// most, until it answers quickly once).
    /// Latencies within a factor of two of each other count as equal. An endpoint that fails fast,
    /// by a lost connection or with a status of 500 or above, looks slow and not fast.
    #[default]
    PeakEwma,
    /// Load is the number of requests in flight, including unfinished response bodies.
    ///
    /// An endpoint that lets three deadlines of the channel pass in a row without an answer
    /// between them is [ejected](Ejection), and where nobody is ejected it is left alone like one
    /// that refuses connections.
    PendingRequests,
    /// Each in its turn, as often as its weight says.
    ///
    /// The share of an endpoint is exact over each cycle, which is as many requests as the weights
    /// add up to after division by their common divisor; the turns of a heavy endpoint are spread
    /// over the cycle. All clones of a channel take turns together. A slow endpoint keeps its
    /// share; deadlines that pass count as under [`PendingRequests`](Self::PendingRequests).
    RoundRobin,
    /// The one that the [`HashKey`] of the request belongs to.
    ///
    /// All clients send a key to the same endpoint while it can be reached, and when endpoints
    /// come and go hardly more keys move than must: with one that joins, those that it takes
    /// over. An endpoint has 100 points on the ring, or more or less by its weight; shares of the
    /// keys are within about a tenth of the weights. An endpoint with more than 1.25 times its
    /// share of the requests in flight passes a key on to the next one on the ring, as does one
    /// that refuses connections; while there are fewer requests than endpoints, that share is one
    /// request. A request without a key goes to the less loaded of two endpoints.
    /// Deadlines that pass count as under [`PendingRequests`](Self::PendingRequests).
    RingHash,
}

/// How a service is to be balanced.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rules {
    pub(crate) policy: Policy,
    /// How long the share of an endpoint grows that joins others.
    pub(crate) slow_start: Duration,
    /// Which endpoints are used, if not all.
    pub(crate) subset: Option<Subset>,
    /// How endpoints are kept away from that fare badly.
    pub(crate) care: Care,
    /// How often backends and statistics are told that time passes.
    pub(crate) age_every: Duration,
}

impl Rules {
    /// What nobody has chosen otherwise.
    pub(crate) fn of(policy: Policy) -> Self {
        Self {
            policy,
            slow_start: Duration::ZERO,
            subset: None,
            care: Care::default(),
            age_every: Duration::from_secs(10),
        }
    }
}

/// How endpoints are kept away from that fare badly.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Care {
    pub(crate) ejection: Ejection,
    /// The share of endpoints that has to be left for ejections to count.
    pub(crate) panic_threshold: f64,
    /// What happens to endpoints when the source loses most of them.
    pub(crate) lost: Lost,
    /// Servers report their load.
    pub(crate) weighs_reports: bool,
}

impl Default for Care {
    fn default() -> Self {
        Self {
            ejection: Ejection::default(),
            // Envoy's: with half of them gone, the others bear twice their load.
            panic_threshold: 0.5,
            lost: Lost::default(),
            weighs_reports: false,
        }
    }
}

/// What the balancer needs of the thing that carries requests to one endpoint.
pub(crate) trait Backend: Send + Sync + 'static {
    /// The endpoint has left: let go of what is idle, let finish what is under way.
    fn retire(&self);

    /// Called often enough that things age without a clock of their own.
    fn age(&self);

    /// What is known of the endpoint; told when it joins, and with each set that has it.
    fn follow(&self, _endpoint: &Endpoint) {}

    /// It is in rotation from now on.
    fn joined(_member: &Arc<Candidate<Self>>, _clock: Clock)
    where
        Self: Sized,
    {
    }

    /// What is counted for the endpoint, if anything is.
    fn counts(&self) -> Option<&Counts> {
        None
    }
}

/// How many of those that leave are looked at under their lock.
const LOOKED_AT: usize = 64;

/// One balanced service: the current snapshot, and the task that renews it.
///
/// The task ends when this is dropped, and all backends are retired.
pub(crate) struct Balance<S: Backend> {
    snapshot: ArcSwap<Snapshot<S>>,
    generation: AtomicU64,
    phase: watch::Sender<Phase>,
    policy: Policy,
    clock: Clock,
    seed: AtomicU64,
    /// Held so that the driver ends with this value; it starts when the rest stands.
    driver: OnceLock<Worker>,
    /// Endpoints that have left with requests under way; for those who look, not for requests.
    leaving: Mutex<Vec<Arc<Candidate<S>>>>,
    telemetry: Arc<Telemetry>,
}

/// What a handle has of its own for picking: a cached snapshot and random numbers.
pub(crate) struct Picker<S> {
    cached: Arc<Snapshot<S>>,
    generation: u64,
    rng: Rng,
}

impl<S: Backend> Balance<S> {
    pub(crate) fn now(&self) -> Tick {
        self.clock.now()
    }

    /// Now, if the pick asks for it.
    pub(crate) fn moment(&self) -> Moment {
        self.clock.moment()
    }

    pub(crate) fn clock(&self) -> Clock {
        self.clock
    }

    pub(crate) fn snapshot(&self) -> Arc<Snapshot<S>> {
        self.snapshot.load_full()
    }

    pub(crate) fn telemetry(&self) -> &Arc<Telemetry> {
        &self.telemetry
    }

    pub(crate) fn phase(&self) -> watch::Receiver<Phase> {
        self.phase.subscribe()
    }

    /// Waits until there is somebody to call, at most so long.
    pub(crate) async fn ready_within(&self, limit: Duration) -> Result<(), Absence> {
        let mut phase = self.phase();
        // The sender is in this value, which the caller keeps: the wait ends in no other way.
        let ready = phase.wait_for(|phase| *phase == Phase::Ready);
        if tokio::time::timeout(limit, ready).await.is_ok() {
            return Ok(());
        }
        let last = *phase.borrow();
        match last {
            Phase::Ready => Ok(()),
            Phase::Empty => Err(Absence::Empty),
            Phase::Unknown if self.is_deserted() => Err(Absence::Deserted),
            Phase::Unknown => Err(Absence::Unknown),
        }
    }

    /// The wait for the first set, which ends after so long without one, too: what came of it is
    /// seen by the pick that follows.
    ///
    /// The time runs from this call on, not from the first poll.
    pub(crate) fn resolved(&self, left: Duration) -> impl Future<Output = ()> + Send + use<S> {
        let due = Instant::now().checked_add(left);
        let mut phase = self.phase();
        async move {
            let known = phase.wait_for(|phase| *phase != Phase::Unknown);
            match due {
                Some(due) => drop(tokio::time::timeout_at(due, known).await),
                None => drop(known.await),
            }
        }
    }

    /// An endpoint has let the deadline of a request pass without a word.
    ///
    /// Where latencies count, the penalty for the failure is enough.
    pub(crate) fn late(&self, candidate: &Candidate<S>, now: Tick) {
        if self.policy != Policy::PeakEwma {
            candidate.late(now);
        }
    }

    /// Time since the service was set up: how long its first resolution has taken so far.
    pub(crate) fn age(&self) -> Duration {
        self.clock.age()
    }

    /// Whether the set will never change again, because the runtime of the driver has ended.
    pub(crate) fn is_deserted(&self) -> bool {
        self.driver.get().is_some_and(Worker::has_ended)
    }

    /// A pick off the hot path: after a wait, or after a failed attempt.
    pub(crate) fn pick(&self, rng: &mut Rng, tried: &Tried, now: Tick) -> Choice<S> {
        choose(&self.snapshot.load(), self.policy, rng, tried, &now)
    }

    /// Puts a new snapshot in place, and gives the old one back; only the driver does.
    #[must_use = "whoever drops it frees it"]
    fn publish(&self, snapshot: Snapshot<S>) -> Arc<Snapshot<S>> {
        let phase = snapshot.phase();
        let old = self.snapshot.swap(Arc::new(snapshot));
        self.generation.fetch_add(1, Ordering::Release);
        self.phase.send_if_modified(|told| {
            let news = *told != phase;
            *told = phase;
            news
        });
        old
    }

    /// Endpoints that have left and have requests under way still.
    pub(crate) fn leaving(&self) -> Vec<Arc<Candidate<S>>> {
        let leaving = self.leaving.lock().unwrap_or_else(PoisonError::into_inner);
        let busy = leaving.iter().filter(|one| one.in_flight() > 0);
        busy.cloned().collect()
    }

    /// Lets go of those that have left and have nothing under way any more; only the driver does.
    async fn dismiss(&self) {
        let mut pace = Pace::default();
        let mut place = 0;
        while let Some(done) = self.dismissed(&mut place) {
            pace.list(LOOKED_AT).await;
            pace.free(done).await;
        }
    }

    /// Those that are done among the next of the list, from a place in it on. None at its end.
    fn dismissed(&self, place: &mut usize) -> Option<Vec<Arc<Candidate<S>>>> {
        let mut leaving = self.leaving.lock().unwrap_or_else(PoisonError::into_inner);
        leaving.get(*place)?;
        let mut done = Vec::new();
        for _ in 0..LOOKED_AT {
            match leaving.get(*place).map(|one| one.in_flight() > 0) {
                Some(true) => *place += 1,
                Some(false) => done.push(leaving.swap_remove(*place)),
                None => break,
            }
        }
        Some(done)
    }

    /// An endpoint leaves; only the driver says so.
    fn part(&self, candidate: Arc<Candidate<S>>) {
        let mut leaving = self.leaving.lock().unwrap_or_else(PoisonError::into_inner);
        leaving.push(candidate);
    }

    /// Random numbers that nobody else has.
    pub(crate) fn rng(&self) -> Rng {
        Rng::seeded(self.seed.fetch_add(1, Ordering::Relaxed))
    }
}

impl<S: Backend> Drop for Balance<S> {
    fn drop(&mut self) {
        for entry in self.snapshot.load().entries() {
            entry.candidate().backend().retire();
        }
    }
}

/// Why there is nobody to call.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Absence {
    /// The service has no endpoints.
    Empty,
    /// Nothing is known of the service yet.
    Unknown,
    /// Nothing will ever be, because the runtime of the driver has ended.
    Deserted,
}

/// What came of a pick.
pub(crate) enum Choice<S> {
    /// This endpoint, which counts the request from now on.
    Picked(InFlight<S>),
    /// Nobody is left who was not tried.
    Exhausted,
    /// The service has no endpoints.
    Empty,
    /// Nothing is known of the service yet.
    Unknown,
}

#[inline]
fn choose<S>(
    snapshot: &Snapshot<S>,
    policy: Policy,
    rng: &mut Rng,
    tried: &Tried,
    now: &impl Time,
) -> Choice<S> {
    match pick::pick(snapshot, policy, rng, tried, now) {
        Some(candidate) => {
            let candidate = Arc::clone(candidate);
            Choice::Picked(match policy {
                Policy::PeakEwma => InFlight::begin(candidate, now.tick()),
                Policy::PendingRequests | Policy::RoundRobin | Policy::RingHash => {
                    InFlight::untimed(candidate)
                }
            })
        }
        None => match snapshot.phase() {
            Phase::Unknown => Choice::Unknown,
            Phase::Empty => Choice::Empty,
            Phase::Ready => Choice::Exhausted,
        },
    }
}

impl<S: Backend> Picker<S> {
    pub(crate) fn new(balance: &Balance<S>) -> Self {
        let generation = balance.generation.load(Ordering::Acquire);
        Self {
            cached: balance.snapshot.load_full(),
            generation,
            rng: balance.rng(),
        }
    }

    pub(crate) fn another(&self, balance: &Balance<S>) -> Self {
        Self {
            cached: Arc::clone(&self.cached),
            generation: self.generation,
            rng: balance.rng(),
        }
    }

    /// Picks the endpoint for a new request: no lock, no allocation.
    #[inline]
    pub(crate) fn pick(
        &mut self,
        balance: &Balance<S>,
        key: Option<HashKey>,
        now: impl Time,
    ) -> Choice<S> {
        // The snapshot is stored before its number: whoever reads the number finds the snapshot,
        // or one that is newer still.
        let generation = balance.generation.load(Ordering::Acquire);
        if generation != self.generation {
            self.cached = balance.snapshot.load_full();
            self.generation = generation;
        }
        let tried = Tried::of(key);
        choose(&self.cached, balance.policy, &mut self.rng, &tried, &now)
    }
}
