//! The set of candidates at one moment, arranged for picking.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use crate::endpoint::Endpoint;

use super::candidate::Candidate;
use super::newcomer;
use super::pace::Pace;
use super::ring::{self, Ring, Station};
use super::rng::Rng;
use super::sample::Sampler;
use super::spill;
use super::tick::Tick;
use super::turns::{Counter, Turns};
use super::{Policy, Rules};

/// What is known of the set.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Phase {
    /// The source has not answered yet.
    Unknown,
    /// The source says that there is nobody.
    Empty,
    /// There is somebody to call.
    Ready,
}

/// All candidates, in the order in which they are to be preferred.
#[derive(Debug)]
pub(crate) struct Snapshot<S> {
    known: bool,
    tiers: Box<[Tier<S>]>,
    /// The tiers by their distance.
    groups: Box<[Group]>,
    /// What an endpoint without an answer yet is taken for, in seconds: the middle of the others.
    median: Option<f32>,
    /// Too few are left for ejections to count.
    panics: AtomicBool,
}

/// Tiers of one distance, which share the traffic with those of others as far as they are well.
#[derive(Debug)]
struct Group {
    tiers: Range<usize>,
    /// Draws below this number are for this group, unless they are for one before it.
    bound: AtomicU32,
}

/// The tiers that a request begins with.
pub(crate) type Favoured<'a, S> = &'a [Tier<S>];

/// Candidates that are preferred equally.
#[derive(Debug)]
pub(crate) struct Tier<S> {
    rank: Rank,
    entries: Box<[Entry<S>]>,
    sampler: Sampler,
    /// For round robin only.
    turns: Option<Turns>,
    /// For hashing only.
    ring: Option<Ring>,
    /// The sum of the weights, where 0 counts as 1.
    whole: f64,
}

/// What decides which candidates are preferred to which: the lower goes first.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) struct Rank {
    distance: u16,
    priority: u16,
    /// Its weight is 0: for when nobody else is left.
    is_spare: bool,
}

/// A candidate that is to take part in a snapshot.
#[derive(Debug)]
pub(crate) struct Seat<S> {
    pub(crate) candidate: Arc<Candidate<S>>,
    pub(crate) rank: Rank,
    pub(crate) weight: u32,
    /// The hash of its target; asked for by hashing only.
    pub(crate) hash: u64,
    /// When it joined others, while its share is growing.
    pub(crate) joined: Option<Tick>,
}

/// A candidate as it takes part in this snapshot.
#[derive(Debug)]
pub(crate) struct Entry<S> {
    candidate: Arc<Candidate<S>>,
    rank: Rank,
    weight: u32,
    hash: u64,
    /// How much of its weight counts, of [`newcomer::WHOLE`].
    grown: u32,
    /// The mean weight of the tier divided by this one: what one request in flight counts.
    relief: f32,
}

impl Rank {
    pub(crate) fn of(endpoint: &Endpoint) -> Self {
        Self {
            distance: endpoint.distance(),
            priority: endpoint.priority(),
            is_spare: endpoint.weight() == 0,
        }
    }
}

impl<S> Snapshot<S> {
    pub(crate) fn unknown() -> Self {
        Self {
            known: false,
            tiers: Box::default(),
            groups: Box::default(),
            median: None,
            panics: AtomicBool::new(false),
        }
    }

    /// Arranges candidates into tiers. How the traffic is spread over distances is reckoned by
    /// [`spread`](Self::spread), once it is known who is well.
    ///
    /// "A client MUST attempt to contact the target host with the lowest-numbered priority it can
    /// reach" (RFC 2782). Within a priority, weight 0 is for when nobody else is left.
    pub(crate) async fn arranged(
        seats: &[Seat<S>],
        rules: &Rules,
        before: &Self,
        rng: &mut Rng,
        now: Tick,
    ) -> Self
    where
        S: Send + Sync,
    {
        let mut pace = Pace::default();
        let median = median(seats, now, &mut pace).await;
        let grown = |seat: &Seat<S>| match rules.policy {
            // A key must not wander from one to the other while a share grows.
            Policy::RingHash => newcomer::WHOLE,
            _ => newcomer::share(seat.joined, rules.slow_start, now),
        };
        let mut entries = Vec::with_capacity(seats.len());
        for seat in seats {
            entries.push(Entry::new(seat, grown(seat)));
            pace.step().await;
        }
        entries.sort_by_key(|entry| entry.rank);
        pace.list(entries.len()).await;
        let mut tiers = Vec::new();
        let mut entries = entries.into_iter().peekable();
        while let Some(first) = entries.next() {
            let rank = first.rank;
            let mut tier = vec![first];
            while let Some(next) = entries.next_if(|entry| entry.rank == rank) {
                tier.push(next);
            }
            pace.list(tier.len()).await;
            let before = before.tiers.iter().find(|tier| tier.rank == rank);
            tiers.push(Tier::new(rank, tier, rules.policy, before, rng, &mut pace).await);
        }
        Self {
            known: true,
            groups: groups(&tiers),
            tiers: tiers.into(),
            median,
            panics: AtomicBool::new(false),
        }
    }

    /// Whether there are distances between which the traffic is to be spread.
    pub(crate) fn has_distances(&self) -> bool {
        self.groups.len() > 1
    }

    /// Reckons anew how much of the traffic falls to each distance.
    pub(crate) fn spread(&self, now: Tick) {
        if !self.has_distances() {
            return;
        }
        let tiers = |group: &Group| self.tiers.get(group.tiers.clone()).unwrap_or_default();
        let health: Vec<_> = self
            .groups
            .iter()
            .map(|group| health(tiers(group), now))
            .collect();
        for (group, bound) in self.groups.iter().zip(spill::bounds(&health)) {
            group.bound.store(bound, Ordering::Relaxed);
        }
    }

    /// The tiers that a request asks before all the others, nearest first.
    ///
    /// The first attempt begins with the distance that the draw says. Each attempt after that
    /// begins one distance further away, as far as there are more: where all that are near have
    /// failed at the same time, a request does not have to find that out from each of them.
    pub(crate) fn favoured(&self, attempt: usize, rng: &mut Rng) -> Favoured<'_, S> {
        let begin = if self.has_distances() {
            match attempt {
                0 => self.drawn(rng),
                _ => self.groups.get(attempt),
            }
        } else {
            None
        };
        let favoured = begin.and_then(|group| self.tiers.get(group.tiers.clone()));
        favoured.unwrap_or_default()
    }

    fn drawn(&self, rng: &mut Rng) -> Option<&Group> {
        let draw = rng.next_u32() % spill::WHOLE;
        self.groups
            .iter()
            .find(|group| draw < group.bound.load(Ordering::Relaxed))
    }

    /// Whether ejections are ignored, because too few endpoints would be left.
    pub(crate) fn panics(&self) -> bool {
        self.panics.load(Ordering::Relaxed)
    }

    /// Sets whether they are; only the driver does.
    pub(crate) fn set_panics(&self, panics: bool) {
        self.panics.store(panics, Ordering::Relaxed);
    }

    pub(crate) fn phase(&self) -> Phase {
        if !self.known {
            Phase::Unknown
        } else if self.tiers.is_empty() {
            Phase::Empty
        } else {
            Phase::Ready
        }
    }

    pub(crate) fn tiers(&self) -> &[Tier<S>] {
        &self.tiers
    }

    pub(crate) fn median(&self) -> Option<f32> {
        self.median
    }

    /// The entries of each tier, to be freed little by little.
    pub(crate) fn into_entries(self) -> impl Iterator<Item = Vec<Entry<S>>> {
        self.tiers.into_iter().map(|tier| tier.entries.into_vec())
    }

    /// How many entries there are.
    pub(crate) fn len(&self) -> usize {
        self.tiers.iter().map(|tier| tier.entries.len()).sum()
    }

    /// All entries, the preferred ones first.
    pub(crate) fn entries(&self) -> impl Iterator<Item = &Entry<S>> {
        self.tiers.iter().flat_map(|tier| tier.entries.iter())
    }
}

fn groups<S>(tiers: &[Tier<S>]) -> Box<[Group]> {
    let mut begin = 0;
    let distances = tiers.chunk_by(|one, other| one.rank.distance == other.rank.distance);
    distances
        .map(|tiers| {
            let end = begin + tiers.len();
            let tiers = std::mem::replace(&mut begin, end)..end;
            Group {
                tiers,
                bound: AtomicU32::new(spill::WHOLE),
            }
        })
        .collect()
}

/// How much of the weight of these tiers may be called now; none if they have no weight.
fn health<S>(tiers: &[Tier<S>], now: Tick) -> Option<f64> {
    let (mut well, mut all) = (0.0, 0.0);
    for entry in tiers.iter().flat_map(|tier| &tier.entries) {
        let weight = f64::from(entry.weight);
        all += weight;
        if entry.candidate.is_well(now) {
            well += weight;
        }
    }
    (all > 0.0).then(|| well / all)
}

impl<S> Tier<S> {
    async fn new(
        rank: Rank,
        mut entries: Vec<Entry<S>>,
        policy: Policy,
        before: Option<&Self>,
        rng: &mut Rng,
        pace: &mut Pace,
    ) -> Self
    where
        S: Send + Sync,
    {
        let weights = drawn(&entries, pace).await;
        for (entry, relief) in entries.iter_mut().zip(reliefs(&weights)) {
            entry.relief = relief;
        }
        let turns = (policy == Policy::RoundRobin).then(|| {
            let counter = before.and_then(|tier| tier.turns.as_ref()).map_or_else(
                || Arc::new(Counter::starting(rng.next_u32())),
                |turns| Arc::clone(turns.counter()),
            );
            Turns::new(&weights, counter)
        });
        let ring = (policy == Policy::RingHash).then(|| {
            let stations = entries.iter().map(|entry| Station {
                hash: entry.hash,
                weight: entry.weight,
            });
            let before = before.and_then(|tier| tier.ring.as_ref());
            Ring::new(stations.collect(), before)
        });
        pace.list(entries.len()).await;
        let sampler = Sampler::new(&weights);
        pace.list(entries.len()).await;
        Self {
            rank,
            sampler,
            turns,
            ring,
            whole: entries.iter().map(|e| f64::from(e.weight.max(1))).sum(),
            entries: entries.into(),
        }
    }

    pub(crate) fn entries(&self) -> &[Entry<S>] {
        &self.entries
    }

    pub(crate) fn sampler(&self) -> &Sampler {
        &self.sampler
    }

    pub(crate) fn turns(&self) -> Option<&Turns> {
        self.turns.as_ref()
    }

    pub(crate) fn ring(&self) -> Option<&Ring> {
        self.ring.as_ref()
    }

    /// Whether a key may bring this endpoint one more request.
    pub(crate) fn has_room(&self, entry: &Entry<S>) -> bool {
        let candidate = entry.candidate();
        candidate.crowd().is_none_or(|crowd| {
            let weight = entry.weight.max(1);
            ring::has_room(candidate.in_flight(), crowd, weight, self.whole)
        })
    }
}

impl<S> Entry<S> {
    fn new(seat: &Seat<S>, grown: u32) -> Self {
        Self {
            candidate: Arc::clone(&seat.candidate),
            rank: seat.rank,
            weight: seat.weight,
            hash: seat.hash,
            grown,
            relief: 1.0,
        }
    }

    pub(crate) fn candidate(&self) -> &Arc<Candidate<S>> {
        &self.candidate
    }

    pub(crate) fn distance(&self) -> u16 {
        self.rank.distance
    }

    pub(crate) fn priority(&self) -> u16 {
        self.rank.priority
    }

    pub(crate) fn weight(&self) -> u32 {
        self.weight
    }

    pub(crate) fn relief(&self) -> f32 {
        self.relief
    }
}

/// The weights that endpoints are drawn by: those of the source, each as far as it has grown, times
/// its factor.
async fn drawn<S: Send + Sync>(entries: &[Entry<S>], pace: &mut Pace) -> Vec<u64> {
    /// Fine enough for a factor of a tenth on a weight of one.
    const GRAIN: f64 = 100.0;
    // If all have the same part of their weights, it is as if they had the whole.
    let mut pairs = entries.windows(2);
    let alike = pairs.all(|pair| matches!(pair, [one, other] if one.grown == other.grown));
    // Read once: each is somewhere else in memory.
    let mut factors = Vec::with_capacity(entries.len());
    for entry in entries {
        factors.push(entry.candidate.factor());
        pace.step().await;
    }
    let plain = factors.iter().all(|factor| *factor == 1.0);
    entries
        .iter()
        .zip(factors)
        .map(|(entry, factor)| {
            let grown = if alike { 1 } else { entry.grown };
            let weight = u64::from(entry.weight) * u64::from(grown);
            if plain || weight == 0 {
                return weight;
            }
            let grown = f64::from(entry.weight) * f64::from(grown);
            let drawn = (grown * f64::from(factor) * GRAIN).max(1.0);
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "above zero, and the greatest value stands for all above it"
            )]
            let drawn = drawn as u64;
            drawn
        })
        .collect()
}

/// What one request in flight counts on each.
fn reliefs(weights: &[u64]) -> Vec<f32> {
    #[expect(
        clippy::cast_precision_loss,
        reason = "a ratio of weights need not be exact"
    )]
    let wide = |weight: u128| weight as f64;
    let sum = wide(weights.iter().copied().map(u128::from).sum());
    let mean = sum / wide(weights.len() as u128).max(1.0);
    weights
        .iter()
        .map(|weight| match weight {
            0 => 1.0,
            #[expect(
                clippy::cast_possible_truncation,
                reason = "a ratio of weights; f32 holds all of them closely enough"
            )]
            weight => (mean / wide(u128::from(*weight))) as f32,
        })
        .collect()
}

/// The middle of what is measured; penalties are no measurements.
async fn median<S: Send + Sync>(seats: &[Seat<S>], now: Tick, pace: &mut Pace) -> Option<f32> {
    let mut known = Vec::with_capacity(seats.len());
    for seat in seats {
        let candidate = &seat.candidate;
        if candidate.estimate().is_some_and(|e| !e.is_penalty()) {
            known.extend(candidate.faded(now));
        }
        pace.step().await;
    }
    if known.is_empty() {
        return None;
    }
    let half = known.len() / 2;
    let (_, middle, _) = known.select_nth_unstable_by(half, f32::total_cmp);
    Some(*middle)
}

#[cfg(test)]
impl<S: Send + Sync> Snapshot<S> {
    /// Candidates with priority and weight.
    pub(crate) fn new(members: Vec<(Arc<Candidate<S>>, u16, u32)>, now: Tick) -> Self {
        Self::under(Policy::default(), members, now)
    }

    /// The same, arranged for a policy.
    pub(crate) fn under(
        policy: Policy,
        members: Vec<(Arc<Candidate<S>>, u16, u32)>,
        now: Tick,
    ) -> Self {
        let seats = members.into_iter().map(|(candidate, priority, weight)| {
            let endpoint = Endpoint::new(candidate.target().clone());
            Seat::of(
                candidate,
                &endpoint.with_priority(priority).with_weight(weight),
            )
        });
        let seats: Vec<_> = seats.collect();
        Self::seated(policy, &seats, now)
    }

    pub(crate) fn seated(policy: Policy, seats: &[Seat<S>], now: Tick) -> Self {
        let rules = Rules::of(policy);
        let (before, mut rng) = (Self::unknown(), Rng::seeded(1));
        let snapshot = Self::arranged(seats, &rules, &before, &mut rng, now);
        let snapshot = super::pace::at_once(snapshot);
        snapshot.spread(now);
        snapshot
    }
}

#[cfg(test)]
impl<S> Seat<S> {
    pub(crate) fn of(candidate: Arc<Candidate<S>>, endpoint: &Endpoint) -> Self {
        Self {
            candidate,
            rank: Rank::of(endpoint),
            weight: endpoint.weight(),
            hash: super::hash::of_target(endpoint.target()),
            joined: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn candidate(port: u32) -> Arc<Candidate<()>> {
        let target = format!("127.0.0.1:{port}").parse().unwrap();
        Arc::new(Candidate::new(port, target, ()))
    }

    fn ports(snapshot: &Snapshot<()>) -> Vec<Vec<u32>> {
        let port = |entry: &Entry<()>| entry.candidate().id();
        snapshot
            .tiers()
            .iter()
            .map(|tier| tier.entries().iter().map(port).collect())
            .collect()
    }

    #[test]
    fn lower_priority_numbers_come_first_and_weight_zero_last_among_them() {
        let snapshot = Snapshot::new(
            vec![
                (candidate(1), 2, 5),
                (candidate(2), 1, 0),
                (candidate(3), 1, 7),
                (candidate(4), 1, 1),
            ],
            Tick::default(),
        );
        assert_eq!(ports(&snapshot), [vec![3, 4], vec![2], vec![1]]);
        assert_eq!(snapshot.phase(), Phase::Ready);
    }

    #[test]
    fn unknown_is_not_empty() {
        assert_eq!(Snapshot::<()>::unknown().phase(), Phase::Unknown);
        let empty = Snapshot::<()>::new(Vec::new(), Tick::default());
        assert_eq!(empty.phase(), Phase::Empty);
    }

    #[test]
    fn a_request_counts_less_on_a_heavy_endpoint() {
        let snapshot = Snapshot::new(
            vec![(candidate(1), 1, 1), (candidate(2), 1, 3)],
            Tick::default(),
        );
        let relief: Vec<f32> = snapshot.entries().map(Entry::relief).collect();
        assert_eq!(relief, [2.0, 2.0 / 3.0]);
    }

    #[test]
    fn a_factor_counts_on_top_of_the_weight_and_gives_no_weight_to_one_without() {
        let members = vec![
            (candidate(1), 1, 1),
            (candidate(2), 1, 3),
            (candidate(3), 1, 0),
        ];
        members[0].0.set_factor(1.5);
        members[1].0.set_factor(0.5);
        members[2].0.set_factor(9.0);
        let snapshot = Snapshot::new(members, Tick::default());
        let relief: Vec<f32> = snapshot.entries().map(Entry::relief).collect();
        assert_eq!(relief, [1.0, 1.0, 1.0]);
        let weights: Vec<u32> = snapshot.entries().map(Entry::weight).collect();
        assert_eq!(weights, [1, 3, 0], "what the source says is told");
        assert_eq!(ports(&snapshot), [vec![1, 2], vec![3]]);
    }

    #[test]
    fn the_median_is_of_what_was_measured() {
        let members: Vec<_> = (1..=5).map(|port| (candidate(port), 1, 1)).collect();
        let now = Tick::default();
        for (millis, (member, _, _)) in [10, 30, 20].into_iter().zip(&members) {
            member.answered(Duration::from_millis(millis), now);
        }
        members.last().unwrap().0.failed(now);
        let snapshot = Snapshot::new(members, now);
        let median = snapshot.median().unwrap();
        assert!((median - 0.020).abs() < 1e-6, "{median}");
    }
}
