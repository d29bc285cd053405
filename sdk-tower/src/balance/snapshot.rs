//! The set of candidates at one moment, arranged for picking.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::candidate::Candidate;
use super::sample::Sampler;
use super::tick::Tick;

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
    /// What an endpoint without an answer yet is taken for, in seconds: the middle of the others.
    median: Option<f32>,
    /// Too few are left for ejections to count.
    panics: AtomicBool,
}

/// Candidates that are preferred equally.
#[derive(Debug)]
pub(crate) struct Tier<S> {
    entries: Box<[Entry<S>]>,
    sampler: Sampler,
}

/// A candidate as it takes part in this snapshot.
#[derive(Debug)]
pub(crate) struct Entry<S> {
    candidate: Arc<Candidate<S>>,
    priority: u16,
    weight: u32,
    /// The mean weight of the tier divided by this one: what one request in flight counts.
    relief: f32,
}

impl<S> Snapshot<S> {
    pub(crate) fn unknown() -> Self {
        Self {
            known: false,
            tiers: Box::default(),
            median: None,
            panics: AtomicBool::new(false),
        }
    }

    /// Arranges candidates into tiers.
    ///
    /// "A client MUST attempt to contact the target host with the lowest-numbered priority it can
    /// reach" (RFC 2782). Within a priority, weight 0 is for when nobody else is left.
    pub(crate) fn new(members: Vec<(Arc<Candidate<S>>, u16, u32)>, now: Tick) -> Self {
        let median = median(members.iter().map(|(candidate, _, _)| candidate), now);
        let mut entries: Vec<_> = members
            .into_iter()
            .map(|(candidate, priority, weight)| Entry {
                candidate,
                priority,
                weight,
                relief: 1.0,
            })
            .collect();
        entries.sort_by_key(Entry::tier);
        let mut tiers = Vec::new();
        let mut entries = entries.into_iter().peekable();
        while let Some(first) = entries.next() {
            let rank = first.tier();
            let mut tier = vec![first];
            while let Some(next) = entries.next_if(|entry| entry.tier() == rank) {
                tier.push(next);
            }
            tiers.push(Tier::new(tier));
        }
        Self {
            known: true,
            tiers: tiers.into(),
            median,
            panics: AtomicBool::new(false),
        }
    }

    /// The same candidates, arranged by what is known of them now.
    pub(crate) fn renewed(&self, now: Tick) -> Self {
        let members = self.entries().map(|entry| {
            let candidate = Arc::clone(&entry.candidate);
            (candidate, entry.priority, entry.weight)
        });
        Self {
            known: self.known,
            ..Self::new(members.collect(), now)
        }
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

    /// All entries, the preferred ones first.
    pub(crate) fn entries(&self) -> impl Iterator<Item = &Entry<S>> {
        self.tiers.iter().flat_map(|tier| tier.entries.iter())
    }
}

impl<S> Tier<S> {
    fn new(mut entries: Vec<Entry<S>>) -> Self {
        let weights = drawn(&entries);
        let mean = weights.iter().copied().map(f64::from).sum::<f64>() / count(weights.len());
        for (entry, weight) in entries.iter_mut().zip(&weights) {
            if *weight > 0 {
                #[expect(
                    clippy::cast_possible_truncation,
                    reason = "a ratio of weights; f32 holds all of them closely enough"
                )]
                let relief = (mean / f64::from(*weight)) as f32;
                entry.relief = relief;
            }
        }
        Self {
            sampler: Sampler::new(&weights),
            entries: entries.into(),
        }
    }

    pub(crate) fn entries(&self) -> &[Entry<S>] {
        &self.entries
    }

    pub(crate) fn sampler(&self) -> &Sampler {
        &self.sampler
    }
}

impl<S> Entry<S> {
    pub(crate) fn candidate(&self) -> &Arc<Candidate<S>> {
        &self.candidate
    }

    pub(crate) fn priority(&self) -> u16 {
        self.priority
    }

    pub(crate) fn weight(&self) -> u32 {
        self.weight
    }

    pub(crate) fn relief(&self) -> f32 {
        self.relief
    }

    fn tier(&self) -> (u16, bool) {
        (self.priority, self.weight == 0)
    }
}

/// The weights that endpoints are drawn by: those of the source, each times its factor.
fn drawn<S>(entries: &[Entry<S>]) -> Vec<u32> {
    /// Fine enough for a factor of a tenth on a weight of one.
    const GRAIN: f64 = 100.0;
    let factor = |entry: &Entry<S>| f64::from(entry.candidate.factor());
    let plain = entries.iter().all(|entry| entry.candidate.factor() == 1.0);
    entries
        .iter()
        .map(|entry| match entry.weight {
            weight if plain || weight == 0 => weight,
            weight => {
                let drawn = (f64::from(weight) * factor(entry) * GRAIN).max(1.0);
                #[expect(
                    clippy::cast_possible_truncation,
                    clippy::cast_sign_loss,
                    reason = "above zero, and the greatest value stands for all above it"
                )]
                let drawn = drawn as u32;
                drawn
            }
        })
        .collect()
}

fn count(len: usize) -> f64 {
    u32::try_from(len).map_or(f64::MAX, f64::from).max(1.0)
}

/// The middle of what is measured; penalties are no measurements.
fn median<'a, S: 'a>(
    candidates: impl Iterator<Item = &'a Arc<Candidate<S>>>,
    now: Tick,
) -> Option<f32> {
    let mut known: Vec<f32> = candidates
        .filter(|candidate| candidate.estimate().is_some_and(|e| !e.is_penalty()))
        .filter_map(|candidate| candidate.faded(now))
        .collect();
    known.sort_by(f32::total_cmp);
    known.get(known.len() / 2).copied()
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
        assert_eq!(snapshot.median(), Some(0.020));
    }
}
