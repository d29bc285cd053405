use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};

use crate::balance::candidate::InFlight;
use crate::balance::eject::Ejection;
use crate::balance::pick::{Tried, pick};
use crate::balance::rng::Rng;
use crate::balance::{Policy, Tick};

use super::super::pace::at_once;
use super::super::snapshot::Entry;
use super::*;

struct Backend;

type Member = Arc<Candidate<Backend>>;

fn at(millis: u64) -> Tick {
    Tick::default().plus(Duration::from_millis(millis))
}

/// A service in virtual time.
struct World {
    ward: Arc<Ward>,
    sweeper: Sweeper,
    members: Vec<Member>,
    snapshot: Snapshot<Backend>,
    rng: Rng,
    swept: u64,
}

/// What an endpoint does with a request.
#[derive(Clone, Copy)]
enum Deed {
    Answer(u64),
    Fail(u64),
}

/// A request that was sent, when and to whom.
struct Sent {
    at: u64,
    to: u32,
}

impl World {
    fn new(count: u32) -> Self {
        Self::with(count, Ejection::default())
    }

    fn with(count: u32, ejection: Ejection) -> Self {
        let ward = Arc::new(Ward::new(ejection, 7));
        let member = |id| {
            let target = format!("10.0.0.1:{id}").parse().unwrap();
            let candidate = Candidate::new(id, target, Backend);
            Arc::new(candidate.under(Arc::clone(&ward)))
        };
        let members: Vec<Member> = (1..=count).map(member).collect();
        let mut world = Self {
            sweeper: Sweeper::new(Arc::clone(&ward), 0.5),
            ward,
            snapshot: Snapshot::unknown(),
            members,
            rng: Rng::seeded(3),
            swept: 0,
        };
        world.list(&vec![1; count as usize], 0);
        world
    }

    /// The source lists the members with these priorities; 0 is not listed.
    fn list(&mut self, priorities: &[u16], now: u64) {
        let listed = self.members.iter().zip(priorities);
        let listed = listed.filter(|(_, priority)| **priority > 0);
        let listed = listed.map(|(member, priority)| (Arc::clone(member), *priority, 1));
        self.snapshot = Snapshot::new(listed.collect(), at(now));
        self.sweep(now);
    }

    fn sweep(&mut self, now: u64) {
        at_once(self.sweeper.sweep(&self.snapshot, at(now)));
        self.swept = now;
    }

    /// What the driver does: sweep every now and then, and when the bell rings.
    fn drive(&mut self, now: u64) {
        let every = u64::try_from(EVERY.as_millis()).unwrap();
        while self.swept + every <= now {
            self.sweep(self.swept + every);
        }
        if self.ward.has_news() {
            at_once(self.sweeper.sweep(&self.snapshot, at(now)));
        }
    }

    fn pick(&mut self, policy: Policy, now: u64) -> Option<Member> {
        let tried = Tried::default();
        pick(&self.snapshot, policy, &mut self.rng, &tried, at(now)).map(Arc::clone)
    }

    /// So many callers from one time to another, each of which sends its next request when the
    /// last one has ended.
    fn load(
        &mut self,
        policy: Policy,
        callers: usize,
        (begin, end): (u64, u64),
        mut deed: impl FnMut(u32, u64) -> Deed,
    ) -> Vec<Sent> {
        let mut sent = Vec::new();
        let mut busy = BinaryHeap::new();
        let mut flights = HashMap::new();
        for caller in 0..callers {
            busy.push(Reverse((begin, caller)));
        }
        while let Some(Reverse((now, caller))) = busy.pop() {
            if let Some((flight, done)) = flights.remove(&caller) {
                let flight: InFlight<Backend> = flight;
                match done {
                    Deed::Answer(takes) => {
                        flight.heard();
                        flight.answered(Duration::from_millis(takes), at(now));
                    }
                    Deed::Fail(_) => {
                        flight.heard();
                        flight.failed(at(now));
                    }
                }
            }
            if now >= end {
                continue;
            }
            self.drive(now);
            let member = self.pick(policy, now).unwrap();
            sent.push(Sent {
                at: now,
                to: member.id(),
            });
            let deed = deed(member.id(), now);
            let (Deed::Answer(takes) | Deed::Fail(takes)) = deed;
            flights.insert(caller, (InFlight::begin(member, at(now)), deed));
            busy.push(Reverse((now + takes, caller)));
        }
        sent
    }

    fn out(&self) -> Vec<u32> {
        let entries = self.snapshot.entries().map(Entry::candidate);
        let out = entries.filter(|candidate| candidate.standing().is_out());
        out.map(|candidate| candidate.id()).collect()
    }

    fn stages(&self) -> Vec<Stage> {
        let standing = |member: &Member| member.standing().stage();
        self.members.iter().map(standing).collect()
    }

    fn fail(&self, id: usize, times: u32, now: u64) {
        for _ in 0..times {
            self.members[id - 1].failed(at(now));
        }
    }
}

/// How many went to an endpoint in a time, and how many there were.
fn shares(sent: &[Sent], to: u32, (begin, end): (u64, u64)) -> (usize, usize) {
    let there = || sent.iter().filter(|sent| (begin..end).contains(&sent.at));
    (
        there().filter(|sent| sent.to == to).count(),
        there().count(),
    )
}

#[test]
fn five_failures_in_a_row_eject_and_four_do_not() {
    let mut world = World::new(10);
    world.fail(3, 4, 0);
    assert!(!world.ward.has_news());
    world.sweep(1);
    assert!(world.out().is_empty());
    world.fail(3, 1, 2);
    assert!(world.ward.has_news());
    world.sweep(2);
    assert_eq!(world.out(), [3]);
    let standing = world.members[2].standing();
    assert_eq!(standing.why(), Some(Reason::ConsecutiveFailures));
    assert_eq!(world.members[2].ejections(), 1);
    for _ in 0..1_000 {
        assert_ne!(world.pick(Policy::PendingRequests, 500).unwrap().id(), 3);
    }
}

#[test]
fn a_success_between_failures_counts_from_the_beginning() {
    let mut world = World::new(10);
    for _ in 0..10 {
        world.fail(3, 4, 0);
        world.members[2].answered(Duration::from_millis(1), at(0));
    }
    world.sweep(1);
    assert!(world.out().is_empty());
}

#[test]
fn half_may_be_out_and_the_rest_is_spared() {
    let mut world = World::new(4);
    world.fail(1, 5, 0);
    world.fail(2, 5, 0);
    world.sweep(0);
    assert_eq!(world.out(), [1, 2]);
    assert!(!world.snapshot.panics());
    world.fail(3, 5, 0);
    world.sweep(0);
    assert_eq!(world.out(), [1, 2]);
    assert_eq!(world.stages()[2], Stage::Spared);
    assert!(world.snapshot.panics());
    // One that is spared and well again is like the others.
    world.members[2].answered(Duration::from_millis(1), at(1));
    world.sweep(1);
    assert_eq!(world.stages()[2], Stage::Ready);
    assert!(!world.snapshot.panics());
}

#[test]
fn the_last_endpoint_is_never_ejected() {
    for share in [0.5, 1.0] {
        let mut world = World::with(1, Ejection::default().max_share(share));
        world.fail(1, 100, 0);
        world.sweep(0);
        assert!(world.out().is_empty());
        let mut world = World::with(2, Ejection::default().max_share(share));
        world.fail(1, 100, 0);
        world.fail(2, 100, 0);
        world.sweep(0);
        assert_eq!(world.out().len(), 1);
        assert!(world.pick(Policy::PeakEwma, 0).is_some());
    }
}

#[test]
fn nobody_is_ejected_where_ejection_is_off() {
    let mut world = World::with(10, Ejection::off());
    world.fail(3, 1_000, 0);
    assert!(!world.ward.has_news());
    world.sweep(0);
    assert!(world.out().is_empty());
    assert_eq!(world.stages()[2], Stage::Ready);
}

#[test]
fn when_the_set_shrinks_those_go_back_that_are_too_many() {
    let mut world = World::new(10);
    for id in 1..=5 {
        world.fail(id, 5, 0);
        world.sweep(u64::try_from(id).unwrap() * 10);
    }
    assert_eq!(world.out(), [1, 2, 3, 4, 5]);
    // Seven are left, three of which may be out: the last that were put out.
    world.list(&[1, 1, 1, 1, 1, 1, 1, 0, 0, 0], 60);
    assert_eq!(world.out().len(), 3);
    world.list(&[1, 0, 0, 0, 0, 0, 0, 0, 0, 0], 70);
    assert!(world.out().is_empty());
}

#[test]
fn deadlines_that_pass_in_silence_eject_until_there_is_an_answer() {
    let mut world = World::new(4);
    for _ in 0..3 {
        world.members[1].failed(at(0));
        world.members[1].late(at(0));
    }
    assert!(world.ward.has_news());
    world.sweep(0);
    assert_eq!(world.out(), [2]);
    assert_eq!(world.members[1].standing().why(), Some(Reason::Silence));
    // It accepts connections all the while.
    world.members[1].connected();
    assert!(!world.members[1].admits(at(500)));
    assert!(world.members[1].enter(at(1_000)));
    for _ in 0..5 {
        world.members[1].heard();
        world.members[1].answered(Duration::from_millis(5), at(1_005));
    }
    world.sweep(1_010);
    assert!(world.out().is_empty());
}

#[test]
fn one_that_fails_more_often_than_the_others_is_ejected_though_never_five_in_a_row() {
    let mut world = World::new(10);
    // Every third moment is a bad one for the third endpoint.
    let deed = |id, now: u64| match (id, now % 3) {
        (3, 0) => Deed::Fail(20),
        _ => Deed::Answer(20),
    };
    let load = (0, 10_000);
    world.load(Policy::PendingRequests, 20, load, deed);
    assert!(world.members[2].ejections() >= 1);
    let tally = world.members[2].tally();
    // Half of its fair share or less, after the second or two it took to see.
    assert!(tally.requests() < 500, "{tally:?}");
    for member in world.members.iter().filter(|member| member.id() != 3) {
        assert_eq!(member.ejections(), 0);
    }
}

#[test]
fn when_all_fail_alike_requests_spread_over_all() {
    for policy in [Policy::PendingRequests, Policy::PeakEwma] {
        let mut world = World::new(10);
        let deed = |_, _| Deed::Fail(20);
        let sent = world.load(policy, 20, (0, 10_000), deed);
        assert!(world.snapshot.panics());
        for id in 1..=10 {
            let (count, all) = shares(&sent, id, (1_000, 10_000));
            assert!(count * 20 > all, "{policy:?}: {id} got {count} of {all}");
        }
    }
}

#[test]
fn g14_sixty_percent_bad_spread_over_all_and_come_back_together() {
    let mut world = World::new(10);
    let bad = |id, now| id <= 6 && now < 20_000;
    let deed = |id, now| match bad(id, now) {
        true => Deed::Fail(20),
        false => Deed::Answer(20),
    };
    let sent = world.load(Policy::PendingRequests, 20, (0, 60_000), deed);
    for id in 1..=10 {
        let (count, all) = shares(&sent, id, (1_000, 20_000));
        assert!(count * 20 > all, "{id} got {count} of {all}");
        let (count, all) = shares(&sent, id, (40_000, 60_000));
        assert!(count * 11 > all, "{id} got {count} of {all} afterwards");
    }
    assert!(!world.snapshot.panics());
    assert_eq!(world.stages(), [Stage::Ready; 10]);
}

#[test]
fn where_another_priority_is_well_nobody_puts_up_with_bad_endpoints() {
    let mut world = World::with(6, Ejection::default().max_share(1.0));
    world.list(&[1, 1, 1, 2, 2, 2], 0);
    for id in 1..=3 {
        world.fail(id, 5, 0);
    }
    world.sweep(0);
    assert_eq!(world.out(), [1, 2, 3]);
    assert!(!world.snapshot.panics());
    for _ in 0..100 {
        assert!(world.pick(Policy::PeakEwma, 10).unwrap().id() > 3);
    }
}

#[test]
fn those_that_refuse_are_left_alone_even_in_a_panic() {
    let mut world = World::new(4);
    for id in [2, 3] {
        world.members[id - 1].refused(at(0));
    }
    world.sweep(0);
    assert!(!world.snapshot.panics(), "nobody is ejected");
    world.fail(1, 5, 0);
    world.sweep(0);
    assert!(world.snapshot.panics());
    let mut got = [0; 4];
    for _ in 0..100 {
        let member = world.pick(Policy::PendingRequests, 10).unwrap();
        got[member.id() as usize - 1] += 1;
    }
    assert!(got[0] > 30 && got[3] > 30, "{got:?}");
    assert_eq!(got[1..3], [0, 0]);
    // Unless nobody is left.
    for id in [1, 4] {
        world.members[id - 1].refused(at(0));
    }
    assert!(world.pick(Policy::PendingRequests, 10).is_some());
}

#[test]
fn g4_a_black_hole_gets_next_to_nothing_and_its_share_two_seconds_after_its_repair() {
    for policy in [Policy::PendingRequests, Policy::PeakEwma] {
        for repaired in [16_000, 40_000, 120_000] {
            let mut world = World::new(10);
            let deed = |id, now| match (id, now) {
                (3, 5_000..) if now < repaired => Deed::Fail(1),
                _ => Deed::Answer(20),
            };
            // 20 callers at 20 ms are one request each millisecond.
            let end = repaired + 12_000;
            let sent = world.load(policy, 20, (0, end), deed);
            let (bad, all) = shares(&sent, 3, (6_000, repaired));
            assert!(bad * 1_000 <= all, "{policy:?}: {bad} of {all}");
            assert!(bad > 0, "nobody asks how it is");
            let (well, all) = shares(&sent, 3, (repaired + 2_000, end));
            let fair = all / 10;
            assert!(
                well * 10 >= fair * 9,
                "{policy:?}, {repaired}: {well} of {fair}"
            );
        }
    }
}

#[test]
fn g4_an_endpoint_that_refuses_is_back_two_seconds_after_its_repair() {
    let mut world = World::new(10);
    let mut tries = 0;
    let (mut late, mut after) = (0, 0);
    // One request each millisecond, which goes elsewhere if it is refused.
    for now in 0..60_000_u64 {
        world.drive(now);
        let member = world.pick(Policy::PendingRequests, now).unwrap();
        if member.id() == 3 && now < 40_000 {
            member.refused(at(now));
            tries += usize::from(now > 1_000);
            continue;
        }
        if member.id() == 3 {
            member.connected();
        }
        member.answered(Duration::from_millis(1), at(now));
        after += usize::from(now > 42_000);
        late += usize::from(now > 42_000 && member.id() == 3);
    }
    assert!((5..=39).contains(&tries), "{tries}");
    assert!(late * 10 * 10 >= after * 9, "{late} of {after}");
}

#[test]
fn g5_a_slow_endpoint_gets_a_thousandth_at_any_scale_of_time() {
    for scale in [1, 10, 1_000] {
        let mut world = World::new(10);
        let deed = |id, _| Deed::Answer(if id == 3 { 20 * scale } else { 2 * scale });
        // 40,000 requests.
        let end = 4_000 * scale;
        let sent = world.load(Policy::PeakEwma, 20, (0, end), deed);
        let (slow, all) = shares(&sent, 3, (0, end));
        assert!(slow * 1_000 <= all, "scale {scale}: {slow} of {all}");
        for id in [1, 2, 4, 10] {
            let (count, _) = shares(&sent, id, (0, end));
            assert!(count * 12 > all, "scale {scale}: {id} got {count} of {all}");
        }
    }
}

#[test]
fn a_slow_endpoint_is_ejected_where_latency_does_not_count_for_the_pick() {
    for scale in [1, 10, 1_000] {
        let mut world = World::new(10);
        let deed = |id, _| Deed::Answer(if id == 3 { 20 * scale } else { 2 * scale });
        let end = 10_000 * scale;
        let sent = world.load(Policy::PendingRequests, 20, (0, end), deed);
        let slow = &world.members[2];
        assert_eq!(
            slow.standing().why(),
            Some(Reason::Latency),
            "scale {scale}"
        );
        let (late, all) = shares(&sent, 3, (end / 2, end));
        // Without ejection it is one in fifty.
        assert!(late * 400 <= all, "scale {scale}: {late} of {all}");
        assert!(late > 0, "scale {scale}: nobody asks how it is");
    }
}

#[test]
fn a_slow_endpoint_that_recovers_comes_back() {
    let mut world = World::new(10);
    let deed = |id, now| match (id, now) {
        (3, ..20_000) => Deed::Answer(200),
        _ => Deed::Answer(20),
    };
    let sent = world.load(Policy::PendingRequests, 20, (0, 120_000), deed);
    assert!(world.members[2].ejections() > 0);
    let (count, all) = shares(&sent, 3, (90_000, 120_000));
    assert!(count * 11 > all, "{count} of {all}");
}

#[test]
fn noise_ejects_nobody() {
    for policy in [Policy::PendingRequests, Policy::PeakEwma] {
        let mut world = World::new(10);
        // Between 2 and 5 ms; each twentieth answer takes 80 ms, and each fiftieth request fails.
        let mut noise = Rng::seeded(4);
        let deed = |_, _| match noise.below(100) {
            0 | 1 => Deed::Fail(2),
            2..=6 => Deed::Answer(80),
            other => Deed::Answer(2 + u64::try_from(other % 4).unwrap()),
        };
        world.load(policy, 20, (0, 30_000), deed);
        for member in &world.members {
            assert_eq!(member.ejections(), 0, "{policy:?}");
        }
    }
}

#[test]
fn the_time_of_trials_doubles_while_they_fail() {
    let mut world = World::new(2);
    // A tenth of a request each second: nothing passes by to hasten it.
    let mut tried = Vec::new();
    world.fail(1, 5, 0);
    for now in (0..200_000).step_by(10) {
        world.drive(now);
        if world.members[0].is_due(at(now)) && world.members[0].enter(at(now)) {
            tried.push(now);
            world.members[0].failed(at(now));
        }
    }
    let gaps: Vec<_> = tried.windows(2).map(|pair| pair[1] - pair[0]).collect();
    let expected = [2, 4, 8, 16, 32, 60];
    for (gap, seconds) in gaps.iter().zip(expected) {
        let range = seconds * 750..=seconds * 1_000 + 10;
        assert!(range.contains(gap), "{gaps:?}");
    }
    assert!(gaps.len() >= 5, "{gaps:?}");
}

/// Anything may happen; see what must hold all the while.
#[test]
fn g14_random_histories_never_exceed_the_share_and_never_leave_nobody() {
    let mut ejected = 0;
    for seed in 0..200 {
        let mut rng = Rng::seeded(seed);
        let count = 1 + u32::try_from(rng.below(12)).unwrap();
        let share = [0.1, 0.3, 0.5, 1.0][rng.below(4)];
        let ejection = Ejection::default()
            .max_share(share)
            .success_rate_needs(3, 10)
            .consecutive_failures(1 + rng.next_u32() % 5);
        let mut world = World::with(count, ejection);
        let mut badness = vec![0_usize; count as usize];
        let mut flights: Vec<InFlight<Backend>> = Vec::new();
        let mut now = 0;
        for _ in 0..2_000 {
            now += u64::try_from(rng.below(100)).unwrap();
            match rng.below(40) {
                0 => badness[rng.below(count as usize)] = rng.below(101),
                1 => {
                    let listed: Vec<u16> = (0..count)
                        .map(|_| u16::try_from(rng.below(3)).unwrap())
                        .collect();
                    world.list(&listed, now);
                }
                2 => world.members[rng.below(count as usize)].refused(at(now)),
                3 => world.members[rng.below(count as usize)].late(at(now)),
                _ => {}
            }
            world.drive(now);
            let listed = world.snapshot.entries().count();
            let policy = [Policy::PeakEwma, Policy::PendingRequests][rng.below(2)];
            match world.pick(policy, now) {
                Some(member) => flights.push(InFlight::begin(member, at(now))),
                None => assert_eq!(listed, 0, "seed {seed}: nobody is picked of {listed}"),
            }
            while !flights.is_empty() && rng.below(3) > 0 {
                let flight = flights.swap_remove(rng.below(flights.len()));
                if rng.below(100) < badness[flight.id() as usize - 1] {
                    flight.failed(at(now));
                } else {
                    let latency = Duration::from_millis(1 + rng.next() % 50);
                    flight.answered(latency, at(now));
                }
            }
            let out = world.out().len();
            let most = ejection.most(listed);
            assert!(out <= most, "seed {seed}: {out} of {listed} are out");
        }
        ejected += world.members.iter().map(|one| one.ejections()).sum::<u32>();
    }
    // The histories are such that much happens in them.
    assert!(ejected > 1_000, "{ejected}");
}
