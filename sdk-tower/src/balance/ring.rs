//! A ring of points: which endpoint a key belongs to, whoever else comes and goes.
//!
//! Each endpoint stands on the ring at as many points as its weight asks for, and a key belongs
//! to the first point after it (Karger's consistent hashing, as in ketama). The points of an
//! endpoint depend on its target and its weight alone: when one joins, it takes over the keys just
//! before its own points and no others move.

use super::cuts::Cuts;
use super::hash::mix;

/// The points of an endpoint of middle weight: shares differ from the weights by about a tenth.
///
/// ketama takes 160; what differs here is bounded by the load, too.
const POINTS: u64 = 100;

/// The most points of one endpoint, so that one weight of a million does not fill the memory.
const MOST_POINTS: u64 = 64 * POINTS;

/// How many more requests than its share an endpoint takes before keys pass on to the next one.
///
/// A quarter, as in "Consistent hashing with bounded loads" (Mirrokni and others) as HAProxy and
/// Envoy have it; both name 1.2 to 2 as useful.
const BOUND: f64 = 1.25;

#[derive(Debug)]
pub(crate) struct Ring {
    points: Cuts,
    /// The place of the endpoint that each point belongs to.
    owners: Box<[u32]>,
}

/// What takes part in a ring.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Station {
    /// The hash of its target.
    pub(crate) hash: u64,
    pub(crate) weight: u32,
}

impl Ring {
    pub(crate) fn new(stations: &[Station]) -> Self {
        let unit = unit(stations);
        // Point and owner in one number each: of ten thousand endpoints there are a million.
        let mut points = Vec::new();
        for (owner, station) in (0_u32..).zip(stations) {
            for number in 0..count(station.weight, unit) {
                let point = upper(mix(station.hash ^ mix(number)));
                points.push((u64::from(point) << 32) | u64::from(owner));
            }
        }
        points.sort_unstable();
        Self {
            points: Cuts::new(points.iter().copied().map(upper).collect()),
            owners: points.iter().copied().map(lower).collect(),
        }
    }

    /// The places of the endpoints from the owner of this key on, round the ring.
    pub(crate) fn from(&self, key: u64) -> impl Iterator<Item = usize> {
        let first = self.points.not_above(upper(key));
        let (before, after) = self
            .owners
            .split_at_checked(first)
            .unwrap_or((&self.owners, &[]));
        let owners = after.iter().chain(before);
        owners.filter_map(|owner| usize::try_from(*owner).ok())
    }
}

fn upper(number: u64) -> u32 {
    let [a, b, c, d, ..] = number.to_be_bytes();
    u32::from_be_bytes([a, b, c, d])
}

fn lower(number: u64) -> u32 {
    let [.., a, b, c, d] = number.to_be_bytes();
    u32::from_be_bytes([a, b, c, d])
}

/// The weight that `POINTS` points stand for: the middle one, rounded down to a power of two.
///
/// It must hardly ever change, because with it the points of everybody do.
fn unit(stations: &[Station]) -> u64 {
    let mut weights: Vec<u32> = stations.iter().map(|station| station.weight).collect();
    let middle = weights.len() / 2;
    if weights.is_empty() {
        return 1;
    }
    let (_, middle, _) = weights.select_nth_unstable(middle);
    1 << middle.max(&mut 1).ilog2()
}

fn count(weight: u32, unit: u64) -> u64 {
    (u64::from(weight) * POINTS)
        .div_ceil(unit)
        .clamp(1, MOST_POINTS)
}

/// Whether an endpoint with so many requests in flight may take one more, if there are `total` in
/// flight on all of them and its weight is this part of all weights.
pub(crate) fn has_room(in_flight: u32, total: u32, weight: u32, whole: f64) -> bool {
    let share = BOUND * (f64::from(total) + 1.0) * f64::from(weight);
    f64::from(in_flight) * whole < share
}

#[cfg(test)]
mod tests {
    use super::super::hash::HashKey;
    use super::*;

    const KEYS: u32 = 20_000;

    fn station(id: u32, weight: u32) -> Station {
        let target = format!("10.0.{}.{}:80", id / 256, id % 256);
        let hash = HashKey::new(target).value();
        Station { hash, weight }
    }

    fn even(ids: impl IntoIterator<Item = u32>) -> Vec<Station> {
        ids.into_iter().map(|id| station(id, 1)).collect()
    }

    fn key(number: u32) -> u64 {
        HashKey::new(format!("user-{number}")).value()
    }

    fn owner(ring: &Ring, key: u64) -> usize {
        ring.from(key).next().unwrap()
    }

    /// The hash of the owner of each key.
    fn owners(stations: &[Station]) -> Vec<u64> {
        let ring = Ring::new(stations);
        let owner = |number| stations[owner(&ring, key(number))].hash;
        (0..KEYS).map(owner).collect()
    }

    fn moved(before: &[Station], after: &[Station]) -> f64 {
        let moved = owners(before)
            .into_iter()
            .zip(owners(after))
            .filter(|(before, after)| before != after)
            .count();
        moved as f64 / f64::from(KEYS)
    }

    #[test]
    fn one_that_joins_moves_its_share_of_the_keys_and_no_more() {
        for count in [1, 2, 5, 10, 100] {
            let before = even(0..count);
            let after = even(0..=count);
            let moved = moved(&before, &after);
            let share = 1.0 / f64::from(count + 1);
            assert!(moved < share + 0.05, "{count}: {moved}");
            assert!(moved > share / 2.0, "{count}: {moved}");
            let newcomer = after.last().unwrap().hash;
            for (before, after) in owners(&before).into_iter().zip(owners(&after)) {
                assert!(before == after || after == newcomer, "{count}");
            }
        }
    }

    #[test]
    fn one_that_leaves_moves_its_own_keys_only() {
        let before = even(0..10);
        let mut after = before.clone();
        let gone = after.remove(4).hash;
        for (before, after) in owners(&before).into_iter().zip(owners(&after)) {
            assert!(before == after || before == gone);
        }
    }

    #[test]
    fn a_weight_that_changes_moves_no_keys_between_others() {
        let before = even(0..10);
        let mut after = before.clone();
        after[3].weight = 2;
        let heavier = after[3].hash;
        for (before, after) in owners(&before).into_iter().zip(owners(&after)) {
            assert!(before == after || after == heavier);
        }
        assert!(moved(&before, &after) < 0.15);
    }

    #[test]
    fn keys_are_spread_by_weight() {
        for weights in [vec![1; 10], vec![1, 3], vec![1, 1, 1, 1, 1, 1, 1, 1, 1, 10]] {
            let stations: Vec<_> = (0..)
                .zip(&weights)
                .map(|(id, weight)| station(id, *weight))
                .collect();
            let owners = owners(&stations);
            let total = f64::from(weights.iter().sum::<u32>());
            for station in &stations {
                let count = owners.iter().filter(|hash| **hash == station.hash).count();
                let share = count as f64 / f64::from(KEYS);
                let wanted = f64::from(station.weight) / total;
                assert!(
                    (share - wanted).abs() < 0.35 * wanted,
                    "{weights:?} {share}"
                );
            }
        }
    }

    #[test]
    fn the_order_in_which_endpoints_are_told_does_not_matter() {
        let stations = even(0..20);
        let mut reversed = stations.clone();
        reversed.reverse();
        assert_eq!(owners(&stations), owners(&reversed));
    }

    #[test]
    fn the_way_round_the_ring_meets_everybody() {
        let stations = even(0..20);
        let ring = Ring::new(&stations);
        for number in 0..50 {
            let met: std::collections::BTreeSet<_> = ring.from(key(number)).collect();
            assert_eq!(met.len(), 20);
        }
        assert_eq!(Ring::new(&[]).from(key(1)).next(), None);
    }

    #[test]
    fn enormous_weights_make_no_enormous_ring() {
        let stations: Vec<_> = [1, 1_000_000, u32::MAX, 0]
            .into_iter()
            .zip(0..)
            .map(|(weight, id)| station(id, weight))
            .collect();
        let ring = Ring::new(&stations);
        assert!(ring.owners.len() < 20_000, "{}", ring.owners.len());
    }

    #[test]
    fn there_is_always_somebody_with_room() {
        for total in [0_u32, 1, 7, 64, 1_000] {
            for count in [1_u32, 2, 10] {
                // However they are spread, one of them has at most the even share.
                let whole = f64::from(count);
                assert!(has_room(total / count, total, 1, whole), "{total} {count}");
            }
        }
        assert!(has_room(0, 0, 1, 1_000.0));
        assert!(!has_room(13, 99, 1, 10.0));
        assert!(has_room(12, 99, 1, 10.0));
    }
}
