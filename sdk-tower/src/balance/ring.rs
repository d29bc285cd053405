//! A ring of points: which endpoint a key belongs to, whoever else comes and goes.
//!
//! Each endpoint stands on the ring at as many points as its weight asks for, and a key belongs
//! to the first point after it (Karger's consistent hashing, as in ketama). The points of an
//! endpoint depend on its target and its weight alone: when one joins, it takes over the keys just
//! before its own points and no others move.

use std::collections::HashMap;

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
    /// Who takes part, for the ring that comes after this one.
    stations: Box<[Station]>,
    unit: u64,
}

/// What takes part in a ring.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(crate) struct Station {
    /// The hash of its target.
    pub(crate) hash: u64,
    pub(crate) weight: u32,
}

impl Ring {
    /// The ring of these, made of the one before as far as they have stayed the same.
    pub(crate) fn new(stations: Vec<Station>, before: Option<&Self>) -> Self {
        let unit = unit(&stations);
        let stay = before.and_then(|ring| Some((ring, ring.places_in(&stations, unit)?)));
        let points = match stay {
            Some((before, places)) => {
                let mut is_new = vec![true; stations.len()];
                for place in places.iter().flatten() {
                    if let Some(is_new) = usize::try_from(*place)
                        .ok()
                        .and_then(|at| is_new.get_mut(at))
                    {
                        *is_new = false;
                    }
                }
                let newcomers = points(&stations, unit, |owner| is_new.get(owner) == Some(&true));
                merged(before.points_of(&places), newcomers)
            }
            None => points(&stations, unit, |_| true),
        };
        Self {
            points: Cuts::new(points.iter().copied().map(upper).collect()),
            owners: points.iter().copied().map(lower).collect(),
            stations: stations.into(),
            unit,
        }
    }

    /// Where each of this ring stands in another one with such points; none if so few do, or in
    /// another order, that a new ring is made sooner than this one changed.
    fn places_in(&self, stations: &[Station], unit: u64) -> Option<Vec<Option<u32>>> {
        if unit != self.unit {
            return None;
        }
        let places: HashMap<_, u32> = stations.iter().zip(0..).collect();
        let places: Vec<_> = self
            .stations
            .iter()
            .map(|station| places.get(station).copied())
            .collect();
        // Two points may be at one place; then the order of their owners decides.
        let in_order = places.iter().flatten().is_sorted();
        let stay = places.iter().flatten().count();
        (in_order && stay > stations.len() / 2).then_some(places)
    }

    /// The points of those who have a place, with it.
    fn points_of(&self, places: &[Option<u32>]) -> impl Iterator<Item = u64> {
        let points = self.points.sorted().iter().zip(&self.owners);
        points.filter_map(|(point, owner)| {
            let owner = usize::try_from(*owner).ok()?;
            let place = places.get(owner).copied().flatten()?;
            Some(joined(*point, place))
        })
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

/// The points of these, in order. Point and owner are in one number each: of ten thousand
/// endpoints there are a million.
fn points(stations: &[Station], unit: u64, takes: impl Fn(usize) -> bool) -> Vec<u64> {
    let mut points = Vec::new();
    let taken = (0_u32..).zip(stations).enumerate();
    for (_, (owner, station)) in taken.filter(|(at, _)| takes(*at)) {
        for number in 0..count(station.weight, unit) {
            let point = upper(mix(station.hash ^ mix(number)));
            points.push(joined(point, owner));
        }
    }
    points.sort_unstable();
    points
}

/// Two ordered lists as one.
fn merged(stay: impl Iterator<Item = u64>, newcomers: Vec<u64>) -> Vec<u64> {
    let mut all = Vec::with_capacity(newcomers.len() + stay.size_hint().1.unwrap_or(0));
    let mut newcomers = newcomers.into_iter().peekable();
    for point in stay {
        while let Some(newcomer) = newcomers.next_if(|newcomer| *newcomer < point) {
            all.push(newcomer);
        }
        all.push(point);
    }
    all.extend(newcomers);
    all
}

fn joined(point: u32, owner: u32) -> u64 {
    (u64::from(point) << 32) | u64::from(owner)
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

    fn ring(stations: &[Station]) -> Ring {
        Ring::new(stations.to_vec(), None)
    }

    fn owner(ring: &Ring, key: u64) -> usize {
        ring.from(key).next().unwrap()
    }

    /// The hash of the owner of each key.
    fn owners(stations: &[Station]) -> Vec<u64> {
        let ring = ring(stations);
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
    fn a_ring_made_of_the_one_before_is_the_one_that_is_made_anew() {
        let mut rng = super::super::rng::Rng::seeded(3);
        let mut stations = even(0..300);
        let mut before = ring(&stations);
        for round in 0..60 {
            match rng.below(4) {
                0 => drop(stations.remove(rng.below(stations.len()))),
                1 => stations.insert(rng.below(stations.len()), station(1_000 + round, 1)),
                2 => stations[rng.below(200)].weight = u32::try_from(rng.below(9)).unwrap(),
                // Beyond what is made of the ring before.
                _ => stations.rotate_left(1),
            }
            let after = Ring::new(stations.clone(), Some(&before));
            let anew = ring(&stations);
            assert_eq!(after.points.sorted(), anew.points.sorted(), "{round}");
            assert_eq!(after.owners, anew.owners, "{round}");
            before = after;
        }
    }

    #[test]
    fn the_way_round_the_ring_meets_everybody() {
        let stations = even(0..20);
        let ring = ring(&stations);
        for number in 0..50 {
            let met: std::collections::BTreeSet<_> = ring.from(key(number)).collect();
            assert_eq!(met.len(), 20);
        }
        assert_eq!(Ring::new(Vec::new(), None).from(key(1)).next(), None);
    }

    #[test]
    fn enormous_weights_make_no_enormous_ring() {
        let stations: Vec<_> = [1, 1_000_000, u32::MAX, 0]
            .into_iter()
            .zip(0..)
            .map(|(weight, id)| station(id, weight))
            .collect();
        let ring = ring(&stations);
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
