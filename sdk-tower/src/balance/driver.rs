//! The task that turns endpoint sets into snapshots: one per service, the only writer.

use std::collections::HashMap;
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
        members: HashMap::new(),
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
    members: HashMap<Target, Member<S>>,
    /// The members in the order of their set.
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
    /// The number of the last set that had it.
    seen: u64,
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
        let mut round = 0;
        loop {
            tokio::select! {
                biased;
                () = stop.recv() => return,
                set = newest(source.as_mut()), if !ended => match set {
                    Newest { set: Some(set), over } => {
                        ended = over;
                        round += 1;
                        if self.follow(&set, round).await.is_none() {
                            return;
                        }
                        let_go(set).await;
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
                    if self.age().is_none() {
                        return;
                    }
                }
                () = told(&ward, quiet_until) => {
                    if self.sweep().await.is_none() {
                        return;
                    }
                    quiet_until = Instant::now() + sweep::LEAST_APART;
                }
                _ = sweeping.tick() => {
                    round += 1;
                    if self.sweep().await.is_none() || self.expire(round).await.is_none() {
                        return;
                    }
                    self.forget().await;
                }
            }
        }
    }

    /// Takes a set from the source. None if nobody is left to publish it to.
    async fn follow(&mut self, set: &EndpointSet, round: u64) -> Option<()> {
        let now = self.balance.upgrade()?.now();
        self.guard.note(set, now);
        self.apply(&self.guard.complete(set), round).await
    }

    /// Lets those leave whose time is over.
    async fn expire(&mut self, round: u64) -> Option<()> {
        let now = self.balance.upgrade()?.now();
        match self.guard.expire(now) {
            Some(set) => self.apply(&set, round).await,
            None => Some(()),
        }
    }

    /// Publishes a set. None if nobody is left to publish it to.
    ///
    /// Others get their turn now and then: where there is one thread, requests wait for it.
    async fn apply(&mut self, set: &EndpointSet, round: u64) -> Option<()> {
        let balance = self.balance.upgrade()?;
        let now = balance.now();
        let used = match self.rules.subset {
            Some(subset) => subset.of(set),
            None => set.iter().collect(),
        };
        let mut pace = Pace::default();
        // Where all are new there is nobody who could do their work meanwhile.
        let mut others = false;
        if !self.rules.slow_start.is_zero() {
            for endpoint in &used {
                others = self.members.contains_key(endpoint.target());
                if others {
                    break;
                }
                pace.step().await;
            }
        }
        let joined = others.then_some(now);
        let mut seats = Vec::with_capacity(used.len());
        for endpoint in used {
            seats.push(self.admit(endpoint, round, joined, balance.telemetry.service()));
            pace.long_step().await;
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
        let left = self.members.extract_if(|_, member| member.seen != round);
        for (target, member) in left {
            let service = balance.telemetry.service();
            tracing::debug!(service, %target, "endpoint has left");
            member.candidate.backend().retire();
            balance.part(member.candidate);
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
        for member in self.members.values_mut() {
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

    fn age(&self) -> Option<()> {
        let now = self.balance.upgrade()?.now();
        for member in self.members.values() {
            member.candidate.age(now);
            member.candidate.backend().age();
        }
        Some(())
    }

    fn admit(
        &mut self,
        endpoint: &Endpoint,
        round: u64,
        joined: Option<Tick>,
        service: Option<&str>,
    ) -> Seat<S> {
        let target = endpoint.target();
        if let Some(member) = self.members.get_mut(target) {
            member.seen = round;
            member.candidate.backend().follow(endpoint);
            return member.seat(endpoint);
        }
        tracing::debug!(service, %target, "endpoint has joined");
        self.next_id = self.next_id.wrapping_add(1);
        let backend = (self.make)(target);
        let candidate = Candidate::new(self.next_id, target.clone(), backend)
            .among(self.crowd.clone())
            .under(Arc::clone(&self.ward));
        let candidate = Arc::new(candidate);
        candidate.backend().follow(endpoint);
        self.newcomers.push(Arc::clone(&candidate));
        let member = Member {
            candidate,
            hash: hash::of_target(target),
            joined,
            seen: round,
        };
        let seat = member.seat(endpoint);
        self.members.insert(target.clone(), member);
        seat
    }
}

impl<S> Member<S> {
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
