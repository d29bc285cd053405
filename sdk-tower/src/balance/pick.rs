//! The rule of the pick: two choices by load, taking turns, or by a key, among those who can be reached.

use std::sync::Arc;

use super::Policy;
use super::candidate::Candidate;
use super::hash::HashKey;
use super::ring::Ring;
use super::rng::Rng;
use super::snapshot::{Entry, Favoured, Snapshot, Tier};
use super::tick::Time;
use super::turns::Turns;

/// The most endpoints that one request is tried on.
pub(crate) const MOST_ATTEMPTS: usize = 16;

/// How often two are drawn before the whole tier is looked through.
const ROUNDS: usize = 3;

/// How many turns may fall to somebody who cannot take them before the whole tier is looked
/// through.
const TURNS: usize = 16;

/// Latencies that differ by less than this factor differ by chance: then only the requests in
/// flight count. Otherwise an idle service would send everything to the endpoint whose last
/// answer happened to be quickest.
const NOISE: f32 = 2.0;

/// How many points of the ring are looked at for an endpoint that may be taken.
const STEPS: usize = 256;

/// The endpoints that a request was tried on already, and what it is about.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tried {
    key: Option<HashKey>,
    ids: [u32; MOST_ATTEMPTS],
    len: usize,
}

impl Tried {
    /// A request with this key that was not tried yet.
    pub(crate) fn of(key: Option<HashKey>) -> Self {
        Self {
            key,
            ..Self::default()
        }
    }

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

    fn has<S>(&self, candidate: &Candidate<S>) -> bool {
        self.len > 0 && self.contains(candidate.id())
    }

    pub(crate) fn contains(&self, id: u32) -> bool {
        self.ids.iter().take(self.len).any(|tried| *tried == id)
    }
}

/// The endpoint for the next attempt of a request, or none if all were tried.
///
/// The tiers are asked in turn for somebody who is in rotation and accepts connections as far as
/// is known. If there is nobody in any, those that are ejected will do, and then those that
/// refused of late.
///
/// In a panic, that is if too few are left, ejections are ignored from the start: what is left
/// would be swamped. Refusals are not: one that accepts no connection takes no load off the
/// others, however often it is tried.
#[inline]
pub(crate) fn pick<'a, S>(
    snapshot: &'a Snapshot<S>,
    policy: Policy,
    rng: &mut Rng,
    tried: &Tried,
    now: impl Time,
) -> Option<&'a Arc<Candidate<S>>> {
    let rule = Rule {
        policy,
        median: snapshot.median(),
        heeds: !snapshot.panics(),
        tried,
        now: &now,
    };
    // Drawn once: a second draw for those who are ejected would favour whoever is near.
    let favoured = snapshot.favoured(tried.len(), rng);
    // Nearly all picks end here: nobody in the first tier is nearer than others, or out.
    if favoured.is_empty()
        && let Some(first) = snapshot.tiers().first()
        && let Some(entry) = rule.one_of(first, rng)
    {
        return Some(entry.candidate());
    }
    rule.anybody(snapshot, favoured, rng).map(Entry::candidate)
}

struct Rule<'a, T> {
    policy: Policy,
    median: Option<f32>,
    /// Ejections count.
    heeds: bool,
    tried: &'a Tried,
    now: &'a T,
}

impl<T: Time> Rule<'_, T> {
    /// Whoever can be reached; then those that are ejected; then those that refused of late.
    #[cold]
    fn anybody<'a, S>(
        &self,
        snapshot: &'a Snapshot<S>,
        favoured: Favoured<'a, S>,
        rng: &mut Rng,
    ) -> Option<&'a Entry<S>> {
        self.reachable(snapshot, favoured, rng)
            .or_else(|| {
                let heedless = Rule {
                    heeds: false,
                    ..*self
                };
                self.heeds
                    .then(|| heedless.reachable(snapshot, favoured, rng))
                    .flatten()
            })
            .or_else(|| {
                let mut tiers = snapshot.tiers().iter();
                tiers.find_map(|tier| self.least_loaded(tier))
            })
    }

    fn reachable<'a, S>(
        &self,
        snapshot: &'a Snapshot<S>,
        favoured: Favoured<'a, S>,
        rng: &mut Rng,
    ) -> Option<&'a Entry<S>> {
        let mut tiers = favoured.iter().chain(snapshot.tiers());
        tiers.find_map(|tier| self.one_of(tier, rng).or_else(|| self.first(tier, rng)))
    }

    /// One of a tier by the policy, if those who come into question can be reached.
    #[inline]
    fn one_of<'a, S>(&self, tier: &'a Tier<S>, rng: &mut Rng) -> Option<&'a Entry<S>> {
        match (tier.turns(), tier.ring(), self.tried.key) {
            (Some(turns), _, _) => self.next_in_turn(tier, turns),
            (None, Some(ring), Some(key)) => self.next_on_ring(tier, ring, key),
            (None, _, _) => self.two_choices(tier, rng),
        }
    }

    #[inline]
    fn two_choices<'a, S>(&self, tier: &'a Tier<S>, rng: &mut Rng) -> Option<&'a Entry<S>> {
        let entries = tier.entries();
        for _ in 0..ROUNDS {
            let (first, second) = tier.sampler().draw_two(rng);
            let (first, second) = (entries.get(first)?, entries.get(second)?);
            if self.tried.len == 0 && first.candidate().is_plain() && second.candidate().is_plain()
            {
                return Some(self.better(first, second));
            }
            if let Some(entry) = self.one_or_other(first, second) {
                return Some(entry);
            }
        }
        None
    }

    /// The better of two, one of which may be out of the question.
    #[cold]
    fn one_or_other<'a, S>(
        &self,
        first: &'a Entry<S>,
        second: &'a Entry<S>,
    ) -> Option<&'a Entry<S>> {
        let usable = |entry: &'a Entry<S>| self.may_take(entry).then_some(entry);
        let better = match (usable(first), usable(second)) {
            // Its load says nothing of one that is to be tried: it has none.
            (Some(due), _) | (_, Some(due)) if self.is_due(due) => Some(due),
            (Some(first), Some(second)) => Some(self.better(first, second)),
            (one, other) => one.or(other),
        };
        better.filter(|entry| self.take(entry))
    }

    /// Whose turn it is; who cannot take a turn leaves it to the next one.
    fn next_in_turn<'a, S>(&self, tier: &'a Tier<S>, turns: &Turns) -> Option<&'a Entry<S>> {
        let entries = tier.entries();
        (0..TURNS)
            .filter_map(|_| entries.get(turns.next()))
            .find(|entry| self.may_take(entry) && self.take(entry))
    }

    /// The first from the key on who has room; if nobody has, the first of all.
    fn next_on_ring<'a, S>(
        &self,
        tier: &'a Tier<S>,
        ring: &Ring,
        key: HashKey,
    ) -> Option<&'a Entry<S>> {
        let entries = tier.entries();
        let round = || {
            let places = ring.from(key.value()).take(STEPS);
            places
                .filter_map(|place| entries.get(place))
                .filter(|entry| self.may_take(entry))
        };
        round()
            .find(|entry| tier.has_room(entry) && self.take(entry))
            .or_else(|| round().find(|entry| self.take(entry)))
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
            .filter(|entry| !self.tried.has(entry.candidate()))
            .reduce(|best, entry| {
                if load(entry) < load(best) {
                    entry
                } else {
                    best
                }
            })
    }

    fn is_due<S>(&self, entry: &Entry<S>) -> bool {
        let candidate = entry.candidate();
        !candidate.is_plain() && candidate.is_due(self.now.tick())
    }

    fn may_take<S>(&self, entry: &Entry<S>) -> bool {
        let candidate = entry.candidate();
        if self.tried.has(candidate) {
            return false;
        }
        if candidate.is_plain() {
            return true;
        }
        let now = self.now.tick();
        !candidate.is_avoided(now) && (!self.heeds || candidate.admits(now))
    }

    /// Takes an endpoint; a trial is for one request only.
    fn take<S>(&self, entry: &Entry<S>) -> bool {
        let candidate = entry.candidate();
        if candidate.is_plain() {
            return true;
        }
        let now = self.now.tick();
        candidate.claim(now) && (candidate.enter(now) || !self.heeds)
    }

    /// The one with the lower cost. The first wins a tie: it was drawn by weight, so that shares
    /// follow the weights while nobody is busy.
    #[inline]
    fn better<'a, S>(&self, first: &'a Entry<S>, second: &'a Entry<S>) -> &'a Entry<S> {
        let (first_cost, second_cost) = match self.policy {
            Policy::PendingRequests | Policy::RoundRobin | Policy::RingHash => {
                (load(first), load(second))
            }
            Policy::PeakEwma => {
                // An endpoint that has not answered yet is taken for an average one: a constant
                // would send it everything or nothing, depending on the service.
                let now = self.now.tick();
                let known = [first, second].map(|entry| entry.candidate().faded(now));
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
        if second_cost < first_cost {
            second
        } else {
            first
        }
    }
}

/// Requests in flight, counted by weight.
#[inline]
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
