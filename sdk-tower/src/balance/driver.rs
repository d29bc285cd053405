//! The task that turns endpoint sets into snapshots: one per service, the only writer.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::atomic::{AtomicU32, AtomicU64};
use std::sync::{Arc, Mutex, OnceLock, Weak};
use std::task::Poll;
use std::time::Duration;

use arc_swap::ArcSwap;
use futures_core::Stream;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval, interval_at, sleep_until};

use crate::endpoint::{Endpoint, EndpointSet, Target};
use crate::task::{Runtime, StopSignal, Worker};
use crate::telemetry::{Gauges, Sample, Telemetry};

use super::candidate::Candidate;
use super::hash;
use super::loads::Loads;
use super::lost::Guard;
use super::newcomer;
use super::pace::Pace;
use super::rng::Rng;
use super::snapshot::{Phase, Rank, Seat, Snapshot};
use super::sweep::{self, Sweeper};
use super::tick::{Clock, Tick};
use super::ward::Ward;
use super::{Backend, Balance, Policy, Rules};

/// How often shares are reckoned anew while they change by themselves: often enough for a share to
/// grow in steps that nobody notices, and for a group of endpoints that fails to be left soon.
const SHARES_EVERY: Duration = Duration::from_millis(250);

/// Sets up a balanced service and starts its driver.
///
/// `make` gives the backend of an endpoint that joins. The driver holds the balance weakly and
/// ends when it is dropped; a source that ends leaves the set as it is.
pub(crate) fn start<S, St, F>(
    runtime: &Runtime,
    source: St,
    rules: Rules,
    telemetry: &Arc<Telemetry>,
    make: F,
) -> Arc<Balance<S>>
where
    S: Backend,
    St: Stream<Item = EndpointSet> + Send + 'static,
    F: Fn(&Target) -> S + Send + 'static,
{
    let balance = Arc::new(Balance {
        snapshot: ArcSwap::from_pointee(Snapshot::unknown()),
        generation: AtomicU64::new(0),
        phase: watch::Sender::new(Phase::Unknown),
        policy: rules.policy,
        clock: Clock::start(),
        seed: AtomicU64::new(rand::random()),
        driver: OnceLock::new(),
        leaving: Mutex::default(),
        telemetry: Arc::clone(telemetry),
    });
    let crowd = (rules.policy == Policy::RingHash).then(Arc::default);
    let care = rules.care;
    let ward = Arc::new(Ward::new(care.ejection, rand::random()));
    let driver = Driver {
        balance: Arc::downgrade(&balance),
        rng: balance.rng(),
        rules,
        crowd,
        sweeper: Sweeper::new(Arc::clone(&ward), care.panic_threshold).telling(telemetry),
        guard: Guard::new(care.lost, care.panic_threshold).telling(telemetry),
        gauges: Gauges::new(Arc::clone(telemetry)),
        loads: Loads::default(),
        ward,
        members: Vec::new(),
        followed: EndpointSet::empty(),
        seats: Vec::new(),
        outdated: Vec::new(),
        growing: false,
        spreading: false,
        next_id: 0,
        newcomers: Vec::new(),
        make,
    };
    let source = Box::pin(source);
    balance
        .driver
        .get_or_init(|| Worker::spawn(runtime, move |stop| driver.run(source, stop)));
    balance
}

struct Driver<S: Backend, F> {
    balance: Weak<Balance<S>>,
    rng: Rng,
    rules: Rules,
    /// The requests in flight on all members, if the policy asks for them.
    crowd: Option<Arc<AtomicU32>>,
    ward: Arc<Ward>,
    sweeper: Sweeper,
    guard: Guard,
    gauges: Gauges,
    loads: Loads,
    /// In the order of their targets, as sets are: what is the same is found without a table, which
    /// would have to be built anew now and then, for several milliseconds at ten thousand.
    members: Vec<Member<S>>,
    /// The set that was followed last. Held so that its source does not free it in one go.
    followed: EndpointSet,
    /// The places of the members, in the same order.
    seats: Vec<Seat<S>>,
    /// Snapshots that handles may read still. Held so that none is freed by a pick: of ten
    /// thousand endpoints that takes a millisecond.
    outdated: Vec<Arc<Snapshot<S>>>,
    /// The share of somebody is growing.
    growing: bool,
    /// There are several distances.
    spreading: bool,
    next_id: u32,
    /// Who is new in the set that is being applied.
    newcomers: Vec<Arc<Candidate<S>>>,
    make: F,
}

struct Member<S> {
    candidate: Arc<Candidate<S>>,
    /// The hash of its target.
    hash: u64,
    /// When it joined others, if its share is growing.
    joined: Option<Tick>,
}

impl<S, F> Driver<S, F>
where
    S: Backend,
    F: Fn(&Target) -> S + Send + 'static,
{
    async fn run<St>(mut self, mut source: Pin<Box<St>>, mut stop: StopSignal)
    where
        St: Stream<Item = EndpointSet> + Send + 'static,
    {
        let age_every = self.rules.age_every;
        let mut ageing = interval_at(Instant::now() + age_every, age_every);
        ageing.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut shares = interval(SHARES_EVERY);
        shares.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut sweeping = interval_at(Instant::now() + sweep::EVERY, sweep::EVERY);
        sweeping.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let ward = Arc::clone(&self.ward);
        let mut quiet_until = Instant::now();
        let mut ended = false;
        loop {
            tokio::select! {
                biased;
                () = stop.recv() => return,
                set = newest(source.as_mut()), if !ended => match set {
                    Newest { set: Some(set), over } => {
                        ended = over;
                        if self.follow(&set).await.is_none() {
                            return;
                        }
                        let_go(std::mem::replace(&mut self.followed, set)).await;
                    }
                    Newest { set: None, .. } => {
                        tracing::debug!("the source of endpoints has ended, the set stays");
                        ended = true;
                    }
                },
                _ = shares.tick(), if self.growing || self.spreading => {
                    if self.share().await.is_none() {
                        return;
                    }
                }
                _ = ageing.tick() => {
                    let Some(balance) = self.balance.upgrade() else {
                        return;
                    };
                    age(&self.seats, balance.now()).await;
                }
                () = told(&ward, quiet_until) => {
                    if self.sweep().await.is_none() {
                        return;
                    }
                    quiet_until = Instant::now() + sweep::LEAST_APART;
                }
                _ = sweeping.tick() => {
                    if self.sweep().await.is_none() || self.expire().await.is_none() {
                        return;
                    }
                    self.forget().await;
                }
            }
        }
    }

    /// Takes a set from the source. None if nobody is left to publish it to.
    async fn follow(&mut self, set: &EndpointSet) -> Option<()> {
        let now = self.balance.upgrade()?.now();
        self.guard.note(set, now);
        self.apply(&self.guard.complete(set)).await
    }

    /// Lets those leave whose time is over.
    async fn expire(&mut self) -> Option<()> {
        let now = self.balance.upgrade()?.now();
        match self.guard.expire(now) {
            Some(set) => self.apply(&set).await,
            None => Some(()),
        }
    }

    /// Publishes a set. None if nobody is left to publish it to.
    ///
    /// Others get their turn now and then: where there is one thread, requests wait for it.
    async fn apply(&mut self, set: &EndpointSet) -> Option<()> {
        let balance = self.balance.upgrade()?;
        let now = balance.now();
        let used = match self.rules.subset {
            Some(subset) => subset.of(set),
            None => set.iter().collect(),
        };
        let mut pace = Pace::default();
        // Where all are new there is nobody who could do their work meanwhile.
        let others =
            !self.rules.slow_start.is_zero() && has_any(&self.members, &used, &mut pace).await;
        let joined = others.then_some(now);
        pace.list(used.len()).await;
        let mut former = std::mem::take(&mut self.members).into_iter().peekable();
        let mut left = Vec::new();
        self.members.reserve_exact(used.len());
        let mut seats = Vec::with_capacity(used.len());
        for endpoint in used {
            let target = endpoint.target();
            while let Some(gone) = former.next_if(|member| member.target() < target) {
                left.push(gone.candidate);
                pace.step().await;
            }
            let member = match former.next_if(|member| member.target() == target) {
                Some(member) => member,
                None => self.admit(target, joined, balance.telemetry.service()),
            };
            member.candidate.backend().follow(endpoint);
            seats.push(member.seat(endpoint));
            self.members.push(member);
            pace.long_step().await;
        }
        for gone in former {
            left.push(gone.candidate);
            pace.step().await;
        }
        let former = std::mem::replace(&mut self.seats, seats);
        pace.free(former).await;
        self.arrange(&balance, now).await;
        for newcomer in std::mem::take(&mut self.newcomers) {
            S::joined(&newcomer, balance.clock());
            pace.step().await;
        }
        // Out of rotation first, then retired: whoever picks now finds the new set, and whoever
        // picked before finds its request refused unsent by the retired backend.
        for candidate in left {
            let (service, target) = (balance.telemetry.service(), candidate.target());
            tracing::debug!(service, %target, "endpoint has left");
            candidate.backend().retire();
            balance.part(candidate);
            pace.long_step().await;
        }
        self.forget().await;
        Some(())
    }

    /// Arranges the members anew and publishes that.
    async fn arrange(&mut self, balance: &Balance<S>, now: Tick) {
        let before = balance.snapshot();
        let (seats, rules) = (&self.seats, &self.rules);
        let snapshot = Snapshot::arranged(seats, rules, &before, &mut self.rng, now).await;
        self.spreading = snapshot.has_distances();
        self.growing = seats.iter().any(|seat| seat.joined.is_some());
        // The share that may be out is that of this set from its first moment on.
        self.sweeper.sweep(&snapshot, now).await;
        snapshot.spread(now);
        self.outdated.push(balance.publish(snapshot));
    }

    /// Reckons anew the shares that change by themselves.
    async fn share(&mut self) -> Option<()> {
        let balance = self.balance.upgrade()?;
        let now = balance.now();
        if self.growing {
            self.grow(&balance, now).await;
        } else {
            balance.snapshot().spread(now);
        }
        Some(())
    }

    /// Gives those who joined of late the share that they have by now.
    async fn grow(&mut self, balance: &Balance<S>, now: Tick) {
        let window = self.rules.slow_start;
        let growing = |joined: &Tick| newcomer::share(Some(*joined), window, now) < newcomer::WHOLE;
        for seat in &mut self.seats {
            seat.joined = seat.joined.filter(growing);
        }
        for member in &mut self.members {
            member.joined = member.joined.filter(growing);
        }
        self.arrange(balance, now).await;
    }

    /// Looks at how all members fare.
    async fn sweep(&mut self) -> Option<()> {
        let balance = self.balance.upgrade()?;
        let (snapshot, now) = (balance.snapshot(), balance.now());
        if self.rules.care.weighs_reports && self.loads.weigh(&snapshot, now) {
            self.arrange(&balance, now).await;
        } else {
            self.sweeper.sweep(&snapshot, now).await;
            snapshot.spread(now);
        }
        // Who has finished is held no longer.
        balance.dismiss().await;
        if Gauges::ARE_TOLD {
            self.measure(&balance.leaving());
        }
        Some(())
    }

    /// Tells the gauges how things stand.
    fn measure(&mut self, leaving: &[Arc<Candidate<S>>]) {
        let mut sample = Sample::default();
        let each = self.gauges.tell_each();
        for seat in &self.seats {
            let candidate = &seat.candidate;
            let (in_flight, out) = (candidate.in_flight(), candidate.standing().is_out());
            sample.endpoints += 1;
            sample.ejected += u32::from(out);
            sample.in_flight += in_flight;
            if each {
                let target = candidate.target();
                self.gauges
                    .tell_endpoint(candidate.id(), target, in_flight, out);
            }
        }
        let rest = leaving.iter().map(|candidate| candidate.in_flight());
        sample.in_flight += rest.sum::<u32>();
        self.gauges.forget_others();
        self.gauges.tell(sample);
    }

    /// Frees the snapshots that no handle has any more.
    ///
    /// A handle lets go of the one that it has with its next pick. From then on nobody can come by
    /// it: a clone of a handle is the only way to one that is outdated.
    async fn forget(&mut self) {
        let free = |old: &mut Arc<_>| Arc::strong_count(old) == 1;
        let outdated: Vec<_> = self.outdated.extract_if(.., free).collect();
        let mut pace = Pace::default();
        for old in outdated.into_iter().filter_map(Arc::into_inner) {
            for entries in old.into_entries() {
                pace.free(entries).await;
            }
        }
    }

    fn admit(&mut self, target: &Target, joined: Option<Tick>, service: Option<&str>) -> Member<S> {
        tracing::debug!(service, %target, "endpoint has joined");
        self.next_id = self.next_id.wrapping_add(1);
        let backend = (self.make)(target);
        let candidate = Candidate::new(self.next_id, target.clone(), backend)
            .among(self.crowd.clone())
            .under(Arc::clone(&self.ward));
        let candidate = Arc::new(candidate);
        self.newcomers.push(Arc::clone(&candidate));
        Member {
            candidate,
            hash: hash::of_target(target),
            joined,
        }
    }
}

impl<S> Member<S> {
    fn target(&self) -> &Target {
        self.candidate.target()
    }

    fn seat(&self, endpoint: &Endpoint) -> Seat<S> {
        Seat {
            candidate: Arc::clone(&self.candidate),
            rank: Rank::of(endpoint),
            weight: endpoint.weight(),
            hash: self.hash,
            joined: self.joined,
        }
    }
}

async fn age<S: Backend>(seats: &[Seat<S>], now: Tick) {
    let mut pace = Pace::default();
    for seat in seats {
        seat.candidate.age(now);
        seat.candidate.backend().age();
        pace.long_step().await;
    }
}

/// Whether any of these endpoints is a member; both are in order.
async fn has_any<S: Backend>(
    members: &[Member<S>],
    endpoints: &[&Arc<Endpoint>],
    pace: &mut Pace,
) -> bool {
    let mut members = members.iter().map(Member::target).peekable();
    for endpoint in endpoints {
        let target = endpoint.target();
        while members.next_if(|member| *member < target).is_some() {
            pace.step().await;
        }
        if members.peek() == Some(&target) {
            return true;
        }
        pace.step().await;
    }
    false
}

/// Frees a set in pieces, if nobody else has it.
async fn let_go(mut set: EndpointSet) {
    let mut pace = Pace::default();
    if let Some(list) = set.unshared()
        && let Some(first) = list.first().cloned()
    {
        for endpoint in list {
            *endpoint = Arc::clone(&first);
            pace.long_step().await;
        }
    }
    let len = set.len();
    drop(set);
    pace.list(len).await;
}

/// Waits for news of an endpoint, but not before a time.
async fn told(ward: &Ward, quiet_until: Instant) {
    if Instant::now() < quiet_until {
        sleep_until(quiet_until).await;
    }
    ward.told().await;
}

struct Newest {
    set: Option<EndpointSet>,
    /// The source has ended after this set.
    over: bool,
}

/// Waits for a set and, if several are there, takes the last of them.
///
/// A bound on how many are skipped keeps a source that is always ready from holding up the task.
async fn newest<St>(mut source: Pin<&mut St>) -> Newest
where
    St: Stream<Item = EndpointSet>,
{
    const MOST_SKIPPED: usize = 64;
    poll_fn(move |cx| {
        let mut set = None;
        for _ in 0..MOST_SKIPPED {
            match source.as_mut().poll_next(cx) {
                Poll::Ready(Some(newer)) => set = Some(newer),
                Poll::Ready(None) => return Poll::Ready(Newest { set, over: true }),
                Poll::Pending if set.is_none() => return Poll::Pending,
                Poll::Pending => break,
            }
        }
        Poll::Ready(Newest { set, over: false })
    })
    .await
}

#[cfg(test)]
mod tests;
