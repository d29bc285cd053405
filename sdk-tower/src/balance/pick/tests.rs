use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use crate::balance::InFlight;
use crate::balance::snapshot::Seat;
use crate::endpoint::Endpoint;

use super::super::tick::Tick;
use super::*;

mod distribution;

struct Backend;

type Members = Vec<Arc<Candidate<Backend>>>;

fn members(count: u32) -> Members {
    (1..=count)
        .map(|id| {
            let target = format!("10.0.0.1:{id}").parse().unwrap();
            Arc::new(Candidate::new(id, target, Backend))
        })
        .collect()
}

fn weighted(members: &Members, weights: &[u32]) -> Snapshot<Backend> {
    let with = members.iter().zip(weights);
    let with = with.map(|(member, weight)| (Arc::clone(member), 1, *weight));
    Snapshot::new(with.collect(), at(0))
}

fn even(members: &Members) -> Snapshot<Backend> {
    weighted(members, &vec![1; members.len()])
}

fn at(millis: u64) -> Tick {
    Tick::default().plus(Duration::from_millis(millis))
}

/// What an endpoint does with a request.
#[derive(Clone, Copy)]
enum Deed {
    Answer(u64),
    Fail(u64),
}

/// So many callers from that time on, each of which sends its next request when the last one has ended; gives how
/// many requests each endpoint got.
fn closed_loop(
    snapshot: &Snapshot<Backend>,
    policy: Policy,
    callers: u32,
    requests: u32,
    begin: u64,
    deed: impl Fn(u32, u64) -> Deed,
) -> Vec<u32> {
    let mut rng = Rng::seeded(1);
    let mut counts = vec![0; snapshot.entries().count()];
    let mut busy = BinaryHeap::new();
    let mut flights = std::collections::HashMap::new();
    let mut now = begin;
    for request in 0..requests {
        if request >= callers {
            let Reverse((end, done)) = busy.pop().unwrap();
            now = end;
            let (flight, started): (InFlight<Backend>, u64) = flights.remove(&done).unwrap();
            match deed(flight.id(), started) {
                Deed::Answer(_) => flight.answered(Duration::from_millis(end - started), at(end)),
                Deed::Fail(_) => flight.failed(at(end)),
            }
        }
        let picked = pick(snapshot, policy, &mut rng, &Tried::default(), at(now)).unwrap();
        counts[picked.id() as usize - 1] += 1;
        let (Deed::Answer(takes) | Deed::Fail(takes)) = deed(picked.id(), now);
        busy.push(Reverse((now + takes, request)));
        let flight = InFlight::begin(Arc::clone(picked), at(now));
        flights.insert(request, (flight, now));
    }
    counts
}

#[test]
fn idle_endpoints_share_evenly_under_both_policies() {
    for policy in [Policy::PendingRequests, Policy::PeakEwma] {
        let members = members(10);
        let snapshot = even(&members);
        let mut rng = Rng::seeded(5);
        let mut counts = [0_u32; 10];
        for _ in 0..100_000 {
            let picked = pick(&snapshot, policy, &mut rng, &Tried::default(), at(0)).unwrap();
            counts[picked.id() as usize - 1] += 1;
        }
        for count in counts {
            assert!((9_500..10_500).contains(&count), "{policy:?}: {counts:?}");
        }
    }
}

#[test]
fn idle_endpoints_share_by_weight_under_both_policies() {
    for policy in [Policy::PendingRequests, Policy::PeakEwma] {
        let members = members(2);
        let snapshot = weighted(&members, &[1, 3]);
        let mut rng = Rng::seeded(5);
        let mut first = 0_u32;
        for _ in 0..100_000 {
            let picked = pick(&snapshot, policy, &mut rng, &Tried::default(), at(0)).unwrap();
            first += u32::from(picked.id() == 1);
        }
        assert!((24_000..26_000).contains(&first), "{policy:?}: {first}");
    }
}

#[test]
fn busy_endpoints_of_equal_speed_share_by_weight() {
    for weights in [vec![1, 3], vec![1, 1, 1, 1, 1, 1, 1, 1, 1, 10]] {
        let members = members(weights.len().try_into().unwrap());
        let snapshot = weighted(&members, &weights);
        let answer = |_, _| Deed::Answer(10);
        let counts = closed_loop(&snapshot, Policy::PendingRequests, 64, 50_000, 0, answer);
        let total = f64::from(weights.iter().sum::<u32>());
        for (weight, count) in weights.iter().zip(&counts) {
            let wanted = 50_000.0 * f64::from(*weight) / total;
            let off = (f64::from(*count) - wanted).abs() / wanted;
            assert!(off < 0.3, "{weights:?}: {counts:?}");
        }
    }
}

#[test]
fn a_slow_endpoint_gets_next_to_nothing_at_any_scale_of_time() {
    for scale in [1, 10, 1_000] {
        let members = members(10);
        let snapshot = even(&members);
        let deed = |id, _| Deed::Answer(if id == 3 { 20 * scale } else { 2 * scale });
        let counts = closed_loop(&snapshot, Policy::PeakEwma, 16, 20_000, 0, deed);
        assert!(counts[2] < 200, "scale {scale}: {counts:?}");
        for (at, count) in counts.iter().enumerate() {
            assert!(at == 2 || *count > 1_500, "scale {scale}: {counts:?}");
        }
    }
}

#[test]
fn a_healthy_idle_service_is_spread_in_spite_of_noise() {
    for callers in [1, 3] {
        let members = members(3);
        let snapshot = even(&members);
        // Between 2 and 5 ms, and every fiftieth answer takes 40 ms.
        let deed = |id, now: u64| {
            let noise = Rng::seeded(now * 31 + u64::from(id)).next();
            Deed::Answer(if noise.is_multiple_of(50) {
                40
            } else {
                2 + noise % 4
            })
        };
        let counts = closed_loop(&snapshot, Policy::PeakEwma, callers, 9_000, 0, deed);
        for count in &counts {
            assert!(*count > 1_800, "{callers}: {counts:?}");
        }
    }
}

#[test]
fn an_endpoint_that_fails_fast_does_not_draw_traffic() {
    let members = members(10);
    let snapshot = even(&members);
    let deed = |id, _| match id {
        3 => Deed::Fail(1),
        _ => Deed::Answer(20),
    };
    let counts = closed_loop(&snapshot, Policy::PeakEwma, 20, 50_000, 0, deed);
    assert!((1..50).contains(&counts[2]), "{counts:?}");
}

#[test]
fn an_endpoint_that_recovers_gets_its_share_back() {
    let members = members(10);
    let snapshot = even(&members);
    let deed = |id, now| match (id, now) {
        (3, ..5_000) => Deed::Fail(1),
        _ => Deed::Answer(20),
    };
    // 20 callers at 20 ms are one request each millisecond.
    let before = closed_loop(&snapshot, Policy::PeakEwma, 20, 5_000, 0, deed);
    let after = closed_loop(&snapshot, Policy::PeakEwma, 20, 30_000, 5_000, deed);
    assert!(before[2] < 20, "{before:?}");
    assert!(after[2] > 1_500, "{after:?}");
}

#[test]
fn after_a_failure_of_all_the_first_that_recovers_does_not_get_everything() {
    for count in [2, 10] {
        let members = members(count);
        let snapshot = even(&members);
        let deed = |_, now| match now {
            ..2_000 => Deed::Fail(1),
            _ => Deed::Answer(20),
        };
        let failing = 20 * 2_000;
        let before = closed_loop(&snapshot, Policy::PeakEwma, 20, failing, 0, deed);
        // Ten seconds at one request each millisecond.
        let well = closed_loop(&snapshot, Policy::PeakEwma, 20, 10_000, 2_000, deed);
        let fair = 10_000 / count;
        assert!(before.iter().all(|calls| *calls > fair / 2), "{before:?}");
        assert!(well.iter().all(|calls| *calls > fair / 2), "{well:?}");
    }
}

#[test]
fn a_new_endpoint_is_taken_for_an_average_one() {
    let members = members(10);
    for member in &members[1..] {
        member.answered(Duration::from_millis(20), at(0));
    }
    let snapshot = even(&members);
    // Nobody answers yet: the newcomer must not get them all meanwhile.
    let mut rng = Rng::seeded(7);
    let mut flights = Vec::new();
    for _ in 0..100 {
        let tried = Tried::default();
        let picked = pick(&snapshot, Policy::PeakEwma, &mut rng, &tried, at(0)).unwrap();
        flights.push(InFlight::begin(Arc::clone(picked), at(0)));
    }
    let newcomer = members[0].in_flight();
    assert!((7..=13).contains(&newcomer), "{newcomer}");
}

#[test]
fn a_forgotten_slow_endpoint_is_asked_by_one_request_and_not_by_many() {
    let members = members(2);
    members[0].answered(Duration::from_millis(2_000), at(0));
    members[1].answered(Duration::from_millis(20), at(0));
    let snapshot = even(&members);
    let mut rng = Rng::seeded(8);
    let mut flights = Vec::new();
    let now = at(100_000);
    members[1].answered(Duration::from_millis(20), now);
    for _ in 0..20 {
        let picked = pick(
            &snapshot,
            Policy::PeakEwma,
            &mut rng,
            &Tried::default(),
            now,
        )
        .unwrap();
        flights.push(InFlight::begin(Arc::clone(picked), now));
    }
    assert_eq!(members[0].in_flight(), 1);
}

#[test]
fn what_was_tried_is_not_picked_again() {
    let members = members(5);
    let snapshot = even(&members);
    let mut rng = Rng::seeded(1);
    let mut tried = Tried::default();
    let mut seen = Vec::new();
    while let Some(picked) = pick(&snapshot, Policy::PeakEwma, &mut rng, &tried, at(0)) {
        seen.push(picked.id());
        tried.note(picked.id());
    }
    seen.sort_unstable();
    assert_eq!(seen, [1, 2, 3, 4, 5]);
    assert_eq!(tried.len(), 5);
}

#[test]
fn an_endpoint_that_refuses_is_avoided_unless_all_do() {
    let members = members(3);
    let snapshot = even(&members);
    let mut rng = Rng::seeded(1);
    let none = Tried::default();
    members[0].refused(at(0));
    members[1].refused(at(0));
    for _ in 0..100 {
        let picked = pick(&snapshot, Policy::PeakEwma, &mut rng, &none, at(10)).unwrap();
        assert_eq!(picked.id(), 3);
    }
    members[2].refused(at(0));
    let mut tried = Tried::default();
    for _ in 0..3 {
        let picked = pick(&snapshot, Policy::PeakEwma, &mut rng, &tried, at(10)).unwrap();
        tried.note(picked.id());
    }
    assert!(pick(&snapshot, Policy::PeakEwma, &mut rng, &tried, at(10)).is_none());
}

#[test]
fn one_request_at_a_time_tries_a_refusing_endpoint_again() {
    let members = members(2);
    let snapshot = even(&members);
    let mut rng = Rng::seeded(1);
    members[0].refused(at(0));
    let mut tried_again = 0;
    for _ in 0..1_000 {
        let tried = Tried::default();
        let picked = pick(
            &snapshot,
            Policy::PendingRequests,
            &mut rng,
            &tried,
            at(150),
        )
        .unwrap();
        tried_again += u32::from(picked.id() == 1);
    }
    assert_eq!(tried_again, 1);
}

#[test]
fn the_next_priority_steps_in_when_the_first_refuses_or_was_tried() {
    let members = members(2);
    let with = |(member, priority)| (Arc::clone(member), priority, 1);
    let snapshot = Snapshot::new(members.iter().zip([1, 2]).map(with).collect(), at(0));
    let mut rng = Rng::seeded(1);
    let mut picked = |tried: &Tried, now| {
        pick(&snapshot, Policy::PeakEwma, &mut rng, tried, now).map(|picked| picked.id())
    };
    for _ in 0..100 {
        assert_eq!(picked(&Tried::default(), at(0)), Some(1));
    }
    let mut tried = Tried::default();
    tried.note(1);
    assert_eq!(picked(&tried, at(0)), Some(2));
    members[0].refused(at(0));
    assert_eq!(picked(&Tried::default(), at(50)), Some(2));
    members[1].refused(at(0));
    assert_eq!(picked(&Tried::default(), at(50)), Some(1));
}

#[test]
fn an_empty_snapshot_gives_nobody() {
    let snapshot = even(&Vec::new());
    let mut rng = Rng::seeded(1);
    assert!(
        pick(
            &snapshot,
            Policy::PeakEwma,
            &mut rng,
            &Tried::default(),
            at(0)
        )
        .is_none()
    );
}

fn in_turn(members: &Members, weights: &[u32]) -> Snapshot<Backend> {
    let with = members.iter().zip(weights);
    let with = with.map(|(member, weight)| (Arc::clone(member), 1, *weight));
    Snapshot::under(Policy::RoundRobin, with.collect(), at(0))
}

fn shares(snapshot: &Snapshot<Backend>, policy: Policy, requests: u32, now: Tick) -> Vec<u32> {
    let mut rng = Rng::seeded(5);
    let mut counts = vec![0; snapshot.entries().count()];
    for _ in 0..requests {
        let picked = pick(snapshot, policy, &mut rng, &Tried::default(), now).unwrap();
        counts[picked.id() as usize - 1] += 1;
    }
    counts
}

#[test]
fn round_robin_gives_each_its_exact_share_of_each_cycle() {
    let snapshot = in_turn(&members(4), &[1, 2, 3, 4]);
    for _ in 0..5 {
        assert_eq!(
            shares(&snapshot, Policy::RoundRobin, 10, at(0)),
            [1, 2, 3, 4]
        );
    }
}

#[test]
fn round_robin_shares_the_turns_of_one_who_refuses_among_the_others() {
    let members = members(5);
    let snapshot = in_turn(&members, &[1, 2, 3, 4, 90]);
    members[4].refused(at(0));
    let counts = shares(&snapshot, Policy::RoundRobin, 10_000, at(50));
    for (count, wanted) in counts.iter().zip([1_000, 2_000, 3_000, 4_000, 0]) {
        assert!(count.abs_diff(wanted) <= wanted / 20, "{counts:?}");
    }
    members[..4].iter().for_each(|member| member.refused(at(0)));
    members[4].connected();
    let counts = shares(&snapshot, Policy::RoundRobin, 100, at(50));
    assert_eq!(counts, [0, 0, 0, 0, 100]);
}

#[test]
fn round_robin_tries_each_endpoint_once() {
    let members = members(10);
    let snapshot = in_turn(&members, &[1; 10]);
    let mut rng = Rng::seeded(1);
    let mut tried = Tried::default();
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..10 {
        let picked = pick(&snapshot, Policy::RoundRobin, &mut rng, &tried, at(0)).unwrap();
        assert!(seen.insert(picked.id()));
        tried.note(picked.id());
    }
    assert!(pick(&snapshot, Policy::RoundRobin, &mut rng, &tried, at(0)).is_none());
}

/// Members whose requests in flight are counted together, on a ring.
fn on_ring(count: u32) -> (Members, Snapshot<Backend>) {
    let crowd = Some(Arc::default());
    let members: Members = (1..=count)
        .map(|id| {
            let target = format!("10.0.0.1:{id}").parse().unwrap();
            Arc::new(Candidate::new(id, target, Backend).among(crowd.clone()))
        })
        .collect();
    let with = members.iter().map(|member| (Arc::clone(member), 1, 1));
    let snapshot = Snapshot::under(Policy::RingHash, with.collect(), at(0));
    (members, snapshot)
}

fn key(number: u32) -> Tried {
    Tried::of(Some(HashKey::new(number.to_string())))
}

fn hashed(snapshot: &Snapshot<Backend>, tried: &Tried, now: Tick) -> Option<u32> {
    let mut rng = Rng::seeded(1);
    let picked = pick(snapshot, Policy::RingHash, &mut rng, tried, now);
    picked.map(|picked| picked.id())
}

#[test]
fn equal_keys_go_to_one_endpoint_and_different_ones_to_all() {
    let (_, snapshot) = on_ring(10);
    let mut seen = std::collections::BTreeSet::new();
    for number in 0..200 {
        let owner = hashed(&snapshot, &key(number), at(0));
        assert_eq!(hashed(&snapshot, &key(number), at(9)), owner);
        seen.insert(owner);
    }
    assert_eq!(seen.len(), 10);
}

#[test]
fn a_key_passes_on_to_the_same_next_endpoint_when_its_own_refuses_or_was_tried() {
    let (members, snapshot) = on_ring(10);
    for number in 0..50 {
        let mut tried = key(number);
        let owner = hashed(&snapshot, &tried, at(0)).unwrap();
        tried.note(owner);
        let next = hashed(&snapshot, &tried, at(0)).unwrap();
        assert_ne!(owner, next);
        members[owner as usize - 1].refused(at(0));
        assert_eq!(hashed(&snapshot, &key(number), at(50)), Some(next));
        members[owner as usize - 1].connected();
        assert_eq!(hashed(&snapshot, &key(number), at(50)), Some(owner));
    }
}

#[test]
fn a_key_in_fashion_fills_nobody_beyond_the_bound() {
    let (members, snapshot) = on_ring(10);
    let mut flights = Vec::new();
    for _ in 0..400 {
        let mut rng = Rng::seeded(1);
        let picked = pick(&snapshot, Policy::RingHash, &mut rng, &key(7), at(0)).unwrap();
        flights.push(InFlight::begin(Arc::clone(picked), at(0)));
    }
    let most = members.iter().map(|member| member.in_flight()).max();
    assert_eq!(most, Some(50));
    drop(flights);
    assert_eq!(members[0].crowd(), Some(0));
}

#[test]
fn a_request_without_a_key_goes_to_the_less_loaded_of_two() {
    let (members, snapshot) = on_ring(2);
    let _busy = InFlight::begin(Arc::clone(&members[0]), at(0));
    for _ in 0..50 {
        assert_eq!(hashed(&snapshot, &Tried::default(), at(0)), Some(2));
    }
}

#[test]
fn a_key_whose_endpoints_all_refuse_is_tried_all_the_same() {
    let (members, snapshot) = on_ring(3);
    members.iter().for_each(|member| member.refused(at(0)));
    assert!(hashed(&snapshot, &key(1), at(50)).is_some());
}

/// Members at these distances.
fn at_distances(members: &Members, distances: &[u16]) -> Snapshot<Backend> {
    let seats = members.iter().zip(distances).map(|(member, distance)| {
        let endpoint = Endpoint::new(member.target().clone()).with_distance(*distance);
        Seat::of(Arc::clone(member), &endpoint)
    });
    Snapshot::seated(Policy::PendingRequests, &seats.collect::<Vec<_>>(), at(0))
}

fn nearest(snapshot: &Snapshot<Backend>, near: usize, now: Tick) -> f64 {
    snapshot.spread(now);
    let counts = shares(snapshot, Policy::PendingRequests, 10_000, now);
    f64::from(counts[..near].iter().sum::<u32>()) / 10_000.0
}

#[test]
fn g13_all_traffic_is_near_while_72_percent_are_well_and_spills_in_proportion_below() {
    let members = members(20);
    let distances: Vec<u16> = (0..20).map(|at| at / 10).collect();
    let snapshot = at_distances(&members, &distances);
    for (refusing, wanted) in [
        (0, 1.0),
        (2, 1.0),
        (3, 0.98),
        (5, 0.7),
        (8, 0.28),
        (10, 0.0),
    ] {
        members[..refusing]
            .iter()
            .for_each(|member| member.refused(at(0)));
        let share = nearest(&snapshot, 10, at(50));
        assert!((share - wanted).abs() < 0.02, "{refusing}: {share}");
    }
    // And back again, as they accept connections.
    members.iter().for_each(|member| member.connected());
    assert_eq!(nearest(&snapshot, 10, at(50)), 1.0);
}

#[test]
fn a_request_that_failed_near_is_tried_further_away_next() {
    let members = members(6);
    let snapshot = at_distances(&members, &[0, 0, 3, 3, 9, 9]);
    let mut rng = Rng::seeded(1);
    let mut tried = Tried::default();
    let mut distances = Vec::new();
    while let Some(picked) = pick(&snapshot, Policy::PeakEwma, &mut rng, &tried, at(0)) {
        distances.push((picked.id() - 1) / 2);
        tried.note(picked.id());
    }
    assert_eq!(distances, [0, 1, 2, 0, 1, 2]);
}

#[test]
fn who_is_further_away_steps_in_before_the_next_sweep() {
    let members = members(4);
    let snapshot = at_distances(&members, &[0, 0, 1, 1]);
    members[..2].iter().for_each(|member| member.refused(at(0)));
    let counts = shares(&snapshot, Policy::PendingRequests, 1_000, at(50));
    assert_eq!((counts[0], counts[1]), (0, 0));
}

#[test]
fn priorities_are_used_one_after_the_other_within_a_distance() {
    let members = members(3);
    let with = |(member, (distance, priority)): (&Arc<Candidate<Backend>>, _)| {
        let endpoint = Endpoint::new(member.target().clone());
        let endpoint = endpoint.with_distance(distance).with_priority(priority);
        Seat::of(Arc::clone(member), &endpoint)
    };
    let ranks = [(1, 1), (0, 9), (0, 8)];
    let seats: Vec<_> = members.iter().zip(ranks).map(with).collect();
    let snapshot = Snapshot::seated(Policy::PeakEwma, &seats, at(0));
    assert_eq!(
        shares(&snapshot, Policy::PeakEwma, 100, at(0)).iter().max(),
        Some(&100)
    );
    let tiers = snapshot
        .tiers()
        .iter()
        .map(|tier| tier.entries()[0].candidate().id());
    assert_eq!(tiers.collect::<Vec<_>>(), [3, 2, 1]);
}
