//! The rule of the pick: power of two choices by load, among those who can be reached.

use std::sync::Arc;

use super::Policy;
use super::candidate::Candidate;
use super::rng::Rng;
use super::snapshot::{Entry, Snapshot, Tier};
use super::tick::Tick;

/// The most endpoints that one request is tried on.
pub(crate) const MOST_ATTEMPTS: usize = 16;

/// How often two are drawn before the whole tier is looked through.
const ROUNDS: usize = 3;

/// Latencies that differ by less than this factor differ by chance: then only the requests in
/// flight count. Otherwise an idle service would send everything to the endpoint whose last
/// answer happened to be quickest.
const NOISE: f32 = 2.0;

/// The endpoints that a request was tried on already.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tried {
    ids: [u32; MOST_ATTEMPTS],
    len: usize,
}

impl Tried {
    /// Notes an endpoint; what does not fit is forgotten, and the caller stops by the length.
    pub(crate) fn note(&mut self, id: u32) {
        if let Some(slot) = self.ids.get_mut(self.len) {
            *slot = id;
            self.len += 1;
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    fn contains(&self, id: u32) -> bool {
        self.ids.iter().take(self.len).any(|tried| *tried == id)
    }
}

/// The endpoint for the next attempt of a request, or none if all were tried.
///
/// The tiers are asked in their order for somebody who is in rotation and accepts connections as
/// far as is known. If there is nobody in any, those that are ejected will do, and then those
/// that refused of late.
///
/// In a panic, that is if too few are left, ejections are ignored from the start: what is left
/// would be swamped. Refusals are not: one that accepts no connection takes no load off the
/// others, however often it is tried.
pub(crate) fn pick<'a, S>(
    snapshot: &'a Snapshot<S>,
    policy: Policy,
    rng: &mut Rng,
    tried: &Tried,
    now: Tick,
) -> Option<&'a Arc<Candidate<S>>> {
    let rule = Rule {
        policy,
        median: snapshot.median(),
        heeds: !snapshot.panics(),
        tried,
        now,
    };
    let tiers = snapshot.tiers();
    let reachable = |rule: &Rule<'_>, rng: &mut Rng| {
        tiers.iter().find_map(|tier| {
            rule.two_choices(tier, rng)
                .or_else(|| rule.first(tier, rng))
        })
    };
    let anybody = Rule {
        heeds: false,
        ..rule
    };
    reachable(&rule, rng)
        .or_else(|| rule.heeds.then(|| reachable(&anybody, rng)).flatten())
        .or_else(|| tiers.iter().find_map(|tier| rule.least_loaded(tier)))
        .map(Entry::candidate)
}

#[derive(Clone, Copy)]
struct Rule<'a> {
    policy: Policy,
    median: Option<f32>,
    /// Ejections count.
    heeds: bool,
    tried: &'a Tried,
    now: Tick,
}

impl Rule<'_> {
    fn two_choices<'a, S>(&self, tier: &'a Tier<S>, rng: &mut Rng) -> Option<&'a Entry<S>> {
        let entries = tier.entries();
        for _ in 0..ROUNDS {
            let (first, second) = tier.sampler().draw_two(rng);
            let first = entries.get(first).filter(|entry| self.may_take(entry));
            let second = entries.get(second).filter(|entry| self.may_take(entry));
            let better = match (first, second) {
                // Its load says nothing of one that is to be tried: it has none.
                (Some(due), _) | (_, Some(due)) if due.candidate().is_due(self.now) => Some(due),
                (Some(first), Some(second)) => self.better(first, second),
                (one, other) => one.or(other),
            };
            if let Some(entry) = better.filter(|entry| self.take(entry)) {
                return Some(entry);
            }
        }
        None
    }

    /// Anybody who may be taken, looked for from a random place on.
    fn first<'a, S>(&self, tier: &'a Tier<S>, rng: &mut Rng) -> Option<&'a Entry<S>> {
        let entries = tier.entries();
        let (before, after) = entries.split_at_checked(rng.below(entries.len()))?;
        after
            .iter()
            .chain(before)
            .find(|entry| self.may_take(entry) && self.take(entry))
    }

    /// The last resort, when everybody refuses connections.
    fn least_loaded<'a, S>(&self, tier: &'a Tier<S>) -> Option<&'a Entry<S>> {
        tier.entries()
            .iter()
            .filter(|entry| !self.tried.contains(entry.candidate().id()))
            .reduce(|best, entry| {
                if load(entry) < load(best) {
                    entry
                } else {
                    best
                }
            })
    }

    fn may_take<S>(&self, entry: &Entry<S>) -> bool {
        let candidate = entry.candidate();
        !self.tried.contains(candidate.id())
            && !candidate.is_avoided(self.now)
            && (!self.heeds || candidate.admits(self.now))
    }

    /// Takes an endpoint; a trial is for one request only.
    fn take<S>(&self, entry: &Entry<S>) -> bool {
        let candidate = entry.candidate();
        candidate.claim(self.now) && (candidate.enter(self.now) || !self.heeds)
    }

    /// The one with the lower cost. The first wins a tie: it was drawn by weight, so that shares
    /// follow the weights while nobody is busy.
    fn better<'a, S>(&self, first: &'a Entry<S>, second: &'a Entry<S>) -> Option<&'a Entry<S>> {
        let (first_cost, second_cost) = match self.policy {
            Policy::PendingRequests => (load(first), load(second)),
            Policy::PeakEwma => {
                // An endpoint that has not answered yet is taken for an average one: a constant
                // would send it everything or nothing, depending on the service.
                let known = [first, second].map(|entry| entry.candidate().faded(self.now));
                let [one, other] = known;
                let one = one.or(self.median).or(other).unwrap_or(1.0);
                let other = other.or(self.median).unwrap_or(one);
                if one < NOISE * other && other < NOISE * one {
                    (load(first), load(second))
                } else {
                    (one * (load(first) + 1.0), other * (load(second) + 1.0))
                }
            }
        };
        Some(if second_cost < first_cost {
            second
        } else {
            first
        })
    }
}

/// Requests in flight, counted by weight.
fn load<S>(entry: &Entry<S>) -> f32 {
    #[expect(
        clippy::cast_precision_loss,
        reason = "beyond 2^24 requests in flight one more does not matter"
    )]
    let in_flight = entry.candidate().in_flight() as f32;
    in_flight * entry.relief()
}

#[cfg(test)]
mod tests;
