//! How closely traffic follows the weights.

use super::*;

const REQUESTS: u32 = 100_000;

const POLICIES: [Policy; 3] = [
    Policy::PeakEwma,
    Policy::PendingRequests,
    Policy::RoundRobin,
];

fn under(policy: Policy, members: &Members, weights: &[u32]) -> Snapshot<Backend> {
    let with = members.iter().zip(weights);
    let with = with.map(|(member, weight)| (Arc::clone(member), 1, *weight));
    Snapshot::under(policy, with.collect(), at(0))
}

/// How many of 100,000 requests each gets, one after the other.
fn counts(policy: Policy, weights: &[u32]) -> Vec<u32> {
    let members = members(weights.len().try_into().unwrap());
    shares(&under(policy, &members, weights), policy, REQUESTS, at(0))
}

#[test]
fn g12_shares_are_within_five_percent_of_the_weights_while_nobody_is_busy() {
    for policy in POLICIES {
        for weights in [
            vec![1; 10],
            vec![1, 3],
            vec![1, 1, 1, 1, 1, 1, 1, 1, 1, 10],
            vec![5, 10, 20, 40, 100],
            vec![1_000_000, 2_000_000, 999_999],
            vec![65_535, 65_534, 30_000],
        ] {
            let total: f64 = weights.iter().copied().map(f64::from).sum();
            for (weight, count) in weights.iter().zip(counts(policy, &weights)) {
                let wanted = f64::from(REQUESTS) * f64::from(*weight) / total;
                let off = (f64::from(count) - wanted).abs() / wanted;
                assert!(off < 0.05, "{policy:?} {weights:?}: {count} for {wanted}");
            }
        }
    }
}

#[test]
fn g12_shares_of_busy_endpoints_are_within_thirty_percent_at_any_concurrency() {
    for weights in [vec![1; 10], vec![1, 1, 1, 1, 1, 1, 1, 1, 1, 10]] {
        for callers in [16, 64, 256] {
            let members = members(10);
            let snapshot = under(Policy::PendingRequests, &members, &weights);
            let answer = |_, _| Deed::Answer(10);
            let policy = Policy::PendingRequests;
            let counts = closed_loop(&snapshot, policy, callers, REQUESTS, 0, answer);
            let total: f64 = weights.iter().copied().map(f64::from).sum();
            for (weight, count) in weights.iter().zip(&counts) {
                let wanted = f64::from(REQUESTS) * f64::from(*weight) / total;
                let off = (f64::from(*count) - wanted).abs() / wanted;
                assert!(off < 0.3, "{weights:?} {callers}: {counts:?}");
            }
        }
    }
}

#[test]
fn g12_round_robin_is_exact_at_any_concurrency() {
    for callers in [1, 16, 256] {
        let members = members(3);
        let snapshot = under(Policy::RoundRobin, &members, &[1, 3, 6]);
        let deed = |id, _| Deed::Answer(if id == 1 { 100 } else { 10 });
        let counts = closed_loop(&snapshot, Policy::RoundRobin, callers, REQUESTS, 0, deed);
        assert_eq!(counts, [10_000, 30_000, 60_000]);
    }
}

#[test]
fn g12_one_that_warns_gets_the_weight_of_its_state() {
    // Ten instances with the weights 10 and 5, as they are while one of them warns.
    for policy in POLICIES {
        let mut weights = [10; 10];
        weights[4] = 5;
        let counts = counts(policy, &weights);
        let wanted = f64::from(REQUESTS) * 5.0 / 95.0;
        let off = (f64::from(counts[4]) - wanted).abs() / wanted;
        assert!(off < 0.05, "{policy:?}: {counts:?}");
    }
}

#[test]
fn g12_weight_zero_gets_something_only_if_nobody_else_is_left() {
    for policy in [POLICIES.as_slice(), &[Policy::RingHash]].concat() {
        let members = members(4);
        let snapshot = under(policy, &members, &[0, 1, 2, 0]);
        let well = shares(&snapshot, policy, 1_000, at(0));
        assert_eq!((well[0], well[3]), (0, 0), "{policy:?}");
        members[1].refused(at(0));
        members[2].refused(at(0));
        let rest = shares(&snapshot, policy, 1_000, at(50));
        assert_eq!((rest[1], rest[2]), (0, 0), "{policy:?}");
        assert!(rest[0] > 400 && rest[3] > 400, "{policy:?}: {rest:?}");
    }
}

#[test]
fn one_of_a_million_beside_one_of_one_gets_nearly_everything() {
    for policy in POLICIES {
        let counts = counts(policy, &[1, 1_000_000]);
        assert!(counts[0] <= 2, "{policy:?}: {counts:?}");
    }
}

#[test]
fn ten_thousand_endpoints_all_get_their_share() {
    for policy in POLICIES {
        let counts = counts(policy, &vec![1; 10_000]);
        assert!(counts.iter().all(|count| *count <= 40), "{policy:?}");
        let none = counts.iter().filter(|count| **count == 0).count();
        assert!(none < 20, "{policy:?}: {none} of ten thousand got nothing");
    }
    let turns = counts(Policy::RoundRobin, &vec![1; 10_000]);
    assert!(turns.iter().all(|count| *count == 10));
}
