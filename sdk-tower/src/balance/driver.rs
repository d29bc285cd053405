//! The task that turns endpoint sets into snapshots: one per service, the only writer.

use std::collections::HashMap;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, OnceLock, Weak};
use std::task::Poll;
use std::time::Duration;

use arc_swap::ArcSwap;
use futures_core::Stream;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep_until};

use crate::endpoint::{Endpoint, EndpointSet, Target};
use crate::task::{Runtime, StopSignal, Worker};

use super::candidate::Candidate;
use super::loads::Loads;
use super::lost::Guard;
use super::snapshot::{Phase, Snapshot};
use super::sweep::{self, Sweeper};
use super::tick::Clock;
use super::ward::Ward;
use super::{Backend, Balance, Care, Policy};

/// Sets up a balanced service and starts its driver.
///
/// `make` gives the backend of an endpoint that joins. The driver holds the balance weakly and
/// ends when it is dropped; a source that ends leaves the set as it is.
pub(crate) fn start<S, St, F>(
    runtime: &Runtime,
    source: St,
    policy: Policy,
    care: Care,
    age_every: Duration,
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
        policy,
        clock: Clock::start(),
        seed: AtomicU64::new(rand::random()),
        driver: OnceLock::new(),
        leaving: Mutex::default(),
    });
    let ward = Arc::new(Ward::new(care.ejection, rand::random()));
    let driver = Driver {
        balance: Arc::downgrade(&balance),
        sweeper: Sweeper::new(Arc::clone(&ward), care.panic_threshold),
        guard: Guard::new(care.lost, care.panic_threshold),
        weighs_reports: care.weighs_reports,
        loads: Loads::default(),
        ward,
        members: HashMap::new(),
        next_id: 0,
        make,
    };
    let source = Box::pin(source);
    balance
        .driver
        .get_or_init(|| Worker::spawn(runtime, move |stop| driver.run(source, age_every, stop)));
    balance
}

struct Driver<S: Backend, F> {
    balance: Weak<Balance<S>>,
    ward: Arc<Ward>,
    sweeper: Sweeper,
    guard: Guard,
    weighs_reports: bool,
    loads: Loads,
    members: HashMap<Target, Member<S>>,
    next_id: u32,
    make: F,
}

struct Member<S> {
    candidate: Arc<Candidate<S>>,
    /// The number of the last set that had it.
    seen: u64,
}

impl<S, F> Driver<S, F>
where
    S: Backend,
    F: Fn(&Target) -> S + Send + 'static,
{
    async fn run<St>(mut self, mut source: Pin<Box<St>>, age_every: Duration, mut stop: StopSignal)
    where
        St: Stream<Item = EndpointSet> + Send + 'static,
    {
        let mut ageing = interval_at(Instant::now() + age_every, age_every);
        ageing.set_missed_tick_behavior(MissedTickBehavior::Delay);
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
                        if self.follow(&set, round).is_none() {
                            return;
                        }
                    }
                    Newest { set: None, .. } => {
                        tracing::debug!("the source of endpoints has ended, the set stays");
                        ended = true;
                    }
                },
                _ = ageing.tick() => {
                    if self.age().is_none() {
                        return;
                    }
                }
                () = told(&ward, quiet_until) => {
                    if self.sweep().is_none() {
                        return;
                    }
                    quiet_until = Instant::now() + sweep::LEAST_APART;
                }
                _ = sweeping.tick() => {
                    round += 1;
                    if self.sweep().is_none() || self.expire(round).is_none() {
                        return;
                    }
                }
            }
        }
    }

    /// Takes a set from the source. None if nobody is left to publish it to.
    fn follow(&mut self, set: &EndpointSet, round: u64) -> Option<()> {
        let now = self.balance.upgrade()?.now();
        self.guard.note(set, now);
        self.apply(&self.guard.complete(set), round)
    }

    /// Lets those leave whose time is over.
    fn expire(&mut self, round: u64) -> Option<()> {
        let now = self.balance.upgrade()?.now();
        match self.guard.expire(now) {
            Some(set) => self.apply(&set, round),
            None => Some(()),
        }
    }

    /// Publishes a set. None if nobody is left to publish it to.
    fn apply(&mut self, set: &EndpointSet, round: u64) -> Option<()> {
        let balance = self.balance.upgrade()?;
        let members = set
            .iter()
            .map(|endpoint| {
                let candidate = self.admit(endpoint, round);
                (candidate, endpoint.priority(), endpoint.weight())
            })
            .collect();
        let now = balance.now();
        let snapshot = Snapshot::new(members, now);
        // The share that may be out is that of this set from its first moment on.
        self.sweeper.sweep(&snapshot, now);
        balance.publish(snapshot);
        // Out of rotation first, then retired: whoever picks now finds the new set, and whoever
        // picked before finds its request refused unsent by the retired backend.
        self.members.retain(|target, member| {
            let stays = member.seen == round;
            if !stays {
                tracing::debug!(%target, "endpoint has left");
                member.candidate.backend().retire();
                balance.part(Arc::clone(&member.candidate));
            }
            stays
        });
        Some(())
    }

    fn sweep(&mut self) -> Option<()> {
        let balance = self.balance.upgrade()?;
        let (snapshot, now) = (balance.snapshot(), balance.now());
        if self.weighs_reports && self.loads.weigh(&snapshot, now) {
            let renewed = snapshot.renewed(now);
            self.sweeper.sweep(&renewed, now);
            balance.publish(renewed);
        } else {
            self.sweeper.sweep(&snapshot, now);
        }
        // Who has finished is held no longer.
        drop(balance.leaving());
        Some(())
    }

    fn age(&self) -> Option<()> {
        let now = self.balance.upgrade()?.now();
        for member in self.members.values() {
            member.candidate.age(now);
            member.candidate.backend().age();
        }
        Some(())
    }

    fn admit(&mut self, endpoint: &Endpoint, round: u64) -> Arc<Candidate<S>> {
        let target = endpoint.target();
        if let Some(member) = self.members.get_mut(target) {
            member.seen = round;
            return Arc::clone(&member.candidate);
        }
        tracing::debug!(%target, "endpoint has joined");
        self.next_id = self.next_id.wrapping_add(1);
        let backend = (self.make)(target);
        let candidate = Candidate::new(self.next_id, target.clone(), backend);
        let candidate = Arc::new(candidate.under(Arc::clone(&self.ward)));
        let member = Member {
            candidate: Arc::clone(&candidate),
            seen: round,
        };
        self.members.insert(target.clone(), member);
        candidate
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
