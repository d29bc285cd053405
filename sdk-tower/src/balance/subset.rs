//! A part of a large service for each client, so that not everybody connects to everybody.
//!
//! The endpoints are ranked by a hash of the client's seed and their target (rendezvous hashing),
//! and the first ones are taken. One endpoint that comes or goes changes at most one place in a
//! subset; and as clients rank differently, each endpoint is taken by about as many of them.

use std::sync::Arc;

use crate::endpoint::{Endpoint, EndpointSet};

use super::hash::{mix, of_target};
use super::snapshot::Rank;

#[derive(Clone, Copy, Debug)]
pub(crate) struct Subset {
    pub(crate) size: usize,
    pub(crate) seed: u64,
}

impl Subset {
    /// The endpoints to be used, in the order of the set; of each rank so many, because others
    /// than the preferred ones are needed, too.
    pub(crate) fn of(self, set: &EndpointSet) -> Vec<&Arc<Endpoint>> {
        let seed = mix(self.seed);
        let mut ranked: Vec<_> = set
            .iter()
            .enumerate()
            .map(|(at, endpoint)| {
                let score = mix(seed ^ of_target(endpoint.target()));
                (Rank::of(endpoint), score, at, endpoint)
            })
            .collect();
        ranked.sort_unstable_by_key(|(rank, score, at, _)| (*rank, *score, *at));
        let mut chosen: Vec<_> = ranked
            .chunk_by(|(one, ..), (other, ..)| one == other)
            .flat_map(|rank| rank.iter().take(self.size))
            .map(|(_, _, at, endpoint)| (*at, *endpoint))
            .collect();
        chosen.sort_unstable_by_key(|(at, _)| *at);
        chosen.into_iter().map(|(_, endpoint)| endpoint).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;

    fn set(ids: impl IntoIterator<Item = u32>) -> EndpointSet {
        ids.into_iter()
            .map(|id| {
                let target = format!("10.0.{}.{}:80", id / 250, id % 250 + 1);
                Endpoint::new(target.parse().unwrap())
            })
            .collect()
    }

    fn chosen(set: &EndpointSet, size: usize, seed: u64) -> BTreeSet<String> {
        let chosen = Subset { size, seed }.of(set);
        let targets = chosen.iter().map(|e| e.target().to_string());
        targets.collect()
    }

    #[test]
    fn a_subset_has_its_size_and_does_not_change_by_itself() {
        let all = set(0..1_000);
        assert_eq!(chosen(&all, 20, 1).len(), 20);
        assert_eq!(chosen(&all, 20, 1), chosen(&all, 20, 1));
        assert_ne!(chosen(&all, 20, 1), chosen(&all, 20, 2));
        assert_eq!(chosen(&all, 1_000, 1).len(), 1_000);
        assert_eq!(chosen(&set(0..3), 20, 1).len(), 3);
        assert!(chosen(&set([]), 20, 1).is_empty());
    }

    #[test]
    fn one_that_comes_or_goes_changes_at_most_one_place() {
        let all = set(0..1_000);
        for seed in 0..20 {
            let before = chosen(&all, 20, seed);
            let joined = chosen(&set(0..1_001), 20, seed);
            assert!(before.intersection(&joined).count() >= 19);
            // Whoever leaves: somebody of the subset, or somebody else.
            for gone in (0..1_000).step_by(37) {
                let left = chosen(&set((0..1_000).filter(|id| *id != gone)), 20, seed);
                assert!(before.intersection(&left).count() >= 19);
            }
        }
    }

    #[test]
    fn many_clients_use_all_endpoints_about_equally() {
        let all = set(0..100);
        let mut uses: BTreeMap<String, u32> = BTreeMap::new();
        for seed in 0..2_000 {
            for target in chosen(&all, 10, seed) {
                *uses.entry(target).or_default() += 1;
            }
        }
        assert_eq!(uses.len(), 100);
        // 200 each, with a standard deviation of 13.
        assert!(
            uses.values().all(|uses| (140..260).contains(uses)),
            "{uses:?}"
        );
    }

    #[test]
    fn each_rank_has_a_subset_of_its_own() {
        let all: EndpointSet = set(0..100)
            .iter()
            .zip(0_u16..)
            .map(|(endpoint, at)| (**endpoint).clone().with_priority(at / 50))
            .collect();
        let chosen = Subset { size: 5, seed: 3 }.of(&all);
        assert_eq!(chosen.len(), 10);
        assert_eq!(chosen.iter().filter(|e| e.priority() == 0).count(), 5);
    }
}
