use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::Context;

use tokio::sync::mpsc;
use tokio::task::yield_now;

use crate::balance::{Care, Choice, InFlight, Lost, Picker, Tick, Tried};

use super::*;

#[derive(Default)]
struct Log {
    made: Mutex<Vec<u16>>,
    retired: Mutex<Vec<u16>>,
    aged: AtomicU32,
}

struct Recorded {
    port: u16,
    log: Arc<Log>,
}

impl Backend for Recorded {
    fn retire(&self) {
        self.log.retired.lock().unwrap().push(self.port);
    }

    fn age(&self) {
        self.log.aged.fetch_add(1, Ordering::SeqCst);
    }
}

impl Log {
    fn made(&self) -> Vec<u16> {
        sorted(&self.made)
    }

    fn retired(&self) -> Vec<u16> {
        sorted(&self.retired)
    }
}

fn sorted(ports: &Mutex<Vec<u16>>) -> Vec<u16> {
    let mut ports = ports.lock().unwrap().clone();
    ports.sort_unstable();
    ports
}

struct Sets(mpsc::UnboundedReceiver<EndpointSet>);

impl Stream for Sets {
    type Item = EndpointSet;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<EndpointSet>> {
        self.0.poll_recv(cx)
    }
}

fn endpoint(port: u16) -> Endpoint {
    Endpoint::new(format!("10.0.0.1:{port}").parse().unwrap())
}

fn set(ports: &[u16]) -> EndpointSet {
    ports.iter().copied().map(endpoint).collect()
}

type Service = (
    mpsc::UnboundedSender<EndpointSet>,
    Arc<Balance<Recorded>>,
    Arc<Log>,
);

fn service() -> Service {
    service_with(Rules::of(Policy::PeakEwma))
}

fn service_under(care: Care) -> Service {
    service_with(Rules {
        care,
        ..Rules::of(Policy::PeakEwma)
    })
}

fn service_with(rules: Rules) -> Service {
    let (tell, sets) = mpsc::unbounded_channel();
    let log = Arc::new(Log::default());
    let make = {
        let log = Arc::clone(&log);
        move |target: &Target| {
            log.made.lock().unwrap().push(target.port());
            Recorded {
                port: target.port(),
                log: Arc::clone(&log),
            }
        }
    };
    let runtime = Runtime::current().unwrap();
    let balance = start(&runtime, Sets(sets), rules, &Arc::default(), make);
    (tell, balance, log)
}

async fn known(balance: &Balance<Recorded>, ports: &[u16]) {
    let mut generation = balance.phase();
    loop {
        let snapshot = balance.snapshot();
        let port =
            |entry: &crate::balance::snapshot::Entry<Recorded>| entry.candidate().target().port();
        if snapshot.phase() != Phase::Unknown
            && snapshot.entries().map(port).collect::<Vec<_>>() == ports
        {
            return;
        }
        tokio::time::timeout(Duration::from_millis(1), generation.changed())
            .await
            .ok();
    }
}

#[tokio::test(start_paused = true)]
async fn unchanged_endpoints_keep_their_backend_and_their_statistics() {
    let (tell, balance, log) = service();
    tell.send(set(&[1, 2])).unwrap();
    known(&balance, &[1, 2]).await;
    let before = balance.snapshot();
    let kept = before.entries().nth(1).unwrap().candidate();
    tell.send(set(&[2, 3])).unwrap();
    known(&balance, &[2, 3]).await;
    let after = balance.snapshot();
    assert!(Arc::ptr_eq(
        kept,
        after.entries().next().unwrap().candidate()
    ));
    assert_eq!(log.made(), [1, 2, 3]);
    assert_eq!(log.retired(), [1]);
}

#[tokio::test(start_paused = true)]
async fn a_new_weight_makes_no_new_backend() {
    let (tell, balance, log) = service();
    tell.send(set(&[1, 2])).unwrap();
    known(&balance, &[1, 2]).await;
    let heavier = [endpoint(1).with_weight(7), endpoint(2)];
    tell.send(heavier.into_iter().collect()).unwrap();
    let weight = || balance.snapshot().entries().next().unwrap().weight();
    while weight() != 7 {
        yield_now().await;
    }
    assert_eq!(log.made(), [1, 2]);
    assert!(log.retired().is_empty());
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_that_comes_back_begins_anew() {
    let (tell, balance, log) = service();
    for ports in [&[1, 2][..], &[2], &[1, 2]] {
        tell.send(set(ports)).unwrap();
        known(&balance, ports).await;
    }
    assert_eq!(log.made(), [1, 1, 2]);
    assert_eq!(log.retired(), [1]);
}

#[tokio::test(start_paused = true)]
async fn only_the_newest_of_several_waiting_sets_is_applied() {
    let (tell, balance, log) = service();
    for ports in [&[1][..], &[2], &[3]] {
        tell.send(set(ports)).unwrap();
    }
    known(&balance, &[3]).await;
    assert_eq!(log.made(), [3]);
}

#[tokio::test(start_paused = true)]
async fn a_source_that_ends_leaves_the_last_set() {
    let (tell, balance, log) = service();
    tell.send(set(&[1])).unwrap();
    drop(tell);
    known(&balance, &[1]).await;
    tokio::time::sleep(Duration::from_secs(3_600)).await;
    known(&balance, &[1]).await;
    assert!(log.retired().is_empty());
    assert!(log.aged.load(Ordering::SeqCst) > 100, "the task still runs");
}

#[tokio::test(start_paused = true)]
async fn the_task_ends_and_all_backends_retire_with_the_last_handle() {
    let (tell, balance, log) = service();
    tell.send(set(&[1, 2])).unwrap();
    known(&balance, &[1, 2]).await;
    let picker = Picker::new(&balance);
    drop(balance);
    assert_eq!(log.retired(), [1, 2]);
    drop(picker);
    // The task drops the source when it ends.
    tokio::time::timeout(Duration::from_millis(100), tell.closed())
        .await
        .unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_picker_sees_a_new_set_with_its_next_pick() {
    let (tell, balance, _log) = service();
    let mut picker = Picker::new(&balance);
    let now = balance.now();
    assert!(matches!(picker.pick(&balance, None, now), Choice::Unknown));
    tell.send(set(&[])).unwrap();
    known(&balance, &[]).await;
    assert!(matches!(picker.pick(&balance, None, now), Choice::Empty));
    tell.send(set(&[1])).unwrap();
    known(&balance, &[1]).await;
    assert!(matches!(
        picker.pick(&balance, None, now),
        Choice::Picked(_)
    ));
    let mut tried = Tried::default();
    tried.note(1);
    let mut rng = balance.rng();
    assert!(matches!(
        balance.pick(&mut rng, &tried, now),
        Choice::Exhausted
    ));
}

/// The part of so many requests, each answered at once, that the endpoints at these ports get.
fn share(balance: &Balance<Recorded>, at: impl Fn(u16) -> bool, requests: u32) -> f64 {
    let mut picker = Picker::new(balance);
    let now = balance.now();
    let mut count = 0;
    for _ in 0..requests {
        let Choice::Picked(flight) = picker.pick(balance, None, now) else {
            panic!("nobody was picked");
        };
        count += u32::from(at(flight.target().port()));
    }
    f64::from(count) / f64::from(requests)
}

#[tokio::test(start_paused = true)]
async fn the_share_of_a_newcomer_grows_from_a_tenth_to_its_weight() {
    for policy in [
        Policy::PeakEwma,
        Policy::PendingRequests,
        Policy::RoundRobin,
    ] {
        let (tell, balance, _log) = service_with(Rules {
            slow_start: Duration::from_secs(10),
            ..Rules::of(policy)
        });
        tell.send(set(&[1, 2, 3])).unwrap();
        known(&balance, &[1, 2, 3]).await;
        // The first set has nobody who could do the work of the others.
        assert!(
            (share(&balance, |port| port == 3, 6_000) - 0.333).abs() < 0.02,
            "{policy:?}"
        );
        tell.send(set(&[1, 2, 3, 4])).unwrap();
        known(&balance, &[1, 2, 3, 4]).await;
        for weight in [0.1, 0.5, 1.0] {
            let wanted = weight / (3.0 + weight);
            let share = share(&balance, |port| port == 4, 20_000);
            assert!(
                (share - wanted).abs() < 0.02,
                "{policy:?} {weight}: {share}"
            );
            tokio::time::sleep(Duration::from_secs(5)).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_set_in_which_all_are_new_has_no_slow_start() {
    let (tell, balance, _log) = service_with(Rules {
        slow_start: Duration::from_secs(10),
        ..Rules::of(Policy::RoundRobin)
    });
    for ports in [&[1, 2][..], &[3, 4], &[], &[5, 6]] {
        tell.send(set(ports)).unwrap();
        known(&balance, ports).await;
        if let [one, _] = ports {
            assert_eq!(share(&balance, |port| port == *one, 100), 0.5);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_change_of_the_set_does_not_begin_a_slow_start_anew() {
    let (tell, balance, _log) = service_with(Rules {
        slow_start: Duration::from_secs(10),
        ..Rules::of(Policy::RoundRobin)
    });
    for ports in [&[1][..], &[1, 2]] {
        tell.send(set(ports)).unwrap();
        known(&balance, ports).await;
    }
    tokio::time::sleep(Duration::from_secs(9)).await;
    tell.send(set(&[1, 2, 3])).unwrap();
    known(&balance, &[1, 2, 3]).await;
    let share = share(&balance, |port| port == 2, 20_000);
    assert!((share - 0.9 / 2.0).abs() < 0.02, "{share}");
}

#[tokio::test(start_paused = true)]
async fn all_that_is_new_at_last_shares_evenly() {
    let (tell, balance, _log) = service_with(Rules {
        slow_start: Duration::from_secs(10),
        ..Rules::of(Policy::RoundRobin)
    });
    for ports in [&[1][..], &[1, 2, 3], &[2, 3]] {
        tell.send(set(ports)).unwrap();
        known(&balance, ports).await;
    }
    assert_eq!(share(&balance, |port| port == 2, 100), 0.5);
}

#[tokio::test(start_paused = true)]
async fn the_share_of_the_near_ones_follows_how_many_are_well() {
    let (tell, balance, _log) = service();
    let ports: Vec<u16> = (1..=20).collect();
    let distant = |port: &u16| endpoint(*port).with_distance(u16::from(*port > 10));
    tell.send(ports.iter().map(distant).collect()).unwrap();
    known(&balance, &ports).await;
    let near = |balance: &_| share(balance, |port| port <= 10, 10_000);
    assert_eq!(near(&balance), 1.0);
    let snapshot = balance.snapshot();
    let candidates: Vec<_> = snapshot.entries().map(|entry| entry.candidate()).collect();
    // Five of ten refuse, again and again, until they are left alone for more than a second.
    for left_alone in [100, 200, 400, 800, 0] {
        candidates[..5]
            .iter()
            .for_each(|c| c.refused(balance.now()));
        tokio::time::sleep(Duration::from_millis(left_alone)).await;
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    let share = near(&balance);
    assert!((share - 0.7).abs() < 0.02, "{share}");
    candidates.iter().for_each(|c| c.connected());
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(near(&balance), 1.0);
}

fn member(balance: &Balance<Recorded>, port: u16) -> Arc<Candidate<Recorded>> {
    let snapshot = balance.snapshot();
    let candidates = snapshot.entries().map(|entry| entry.candidate());
    let mut those = candidates.filter(|candidate| candidate.target().port() == port);
    Arc::clone(those.next().unwrap())
}

fn begin(candidate: &Arc<Candidate<Recorded>>, now: Tick) -> InFlight<Recorded> {
    InFlight::begin(Arc::clone(candidate), now)
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_that_fails_is_ejected_before_the_next_sweep_and_comes_back() {
    let (tell, balance, _log) = service();
    tell.send(set(&[1, 2, 3])).unwrap();
    known(&balance, &[1, 2, 3]).await;
    let bad = member(&balance, 2);
    let begun = Instant::now();
    for _ in 0..5 {
        bad.failed(balance.now());
    }
    while !bad.standing().is_out() {
        yield_now().await;
    }
    assert_eq!(begun.elapsed(), Duration::ZERO);
    tokio::time::sleep(Duration::from_secs(2)).await;
    let now = balance.now();
    assert!(bad.is_due(now) && bad.enter(now) && !bad.enter(now));
    for _ in 0..5 {
        bad.answered(Duration::from_millis(1), now);
    }
    assert!(!bad.standing().is_out());
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_that_left_is_known_until_its_requests_have_ended() {
    let (tell, balance, _log) = service();
    tell.send(set(&[1, 2])).unwrap();
    known(&balance, &[1, 2]).await;
    let flight = begin(&member(&balance, 1), balance.now());
    tell.send(set(&[2])).unwrap();
    known(&balance, &[2]).await;
    let ports = || {
        let leaving = balance.leaving();
        let ports = leaving.iter().map(|candidate| candidate.target().port());
        ports.collect::<Vec<_>>()
    };
    while ports().is_empty() {
        yield_now().await;
    }
    assert_eq!(ports(), [1]);
    let left = Arc::downgrade(&flight);
    drop(flight);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(
        left.upgrade().is_none(),
        "it is let go without being asked for"
    );
    assert!(ports().is_empty());
}

#[tokio::test(start_paused = true)]
async fn endpoints_that_the_source_loses_at_once_stay_for_the_time_given() {
    let (tell, balance, log) = service_under(Care {
        lost: Lost::Stay(Duration::from_secs(60)),
        ..Care::default()
    });
    tell.send(set(&[1, 2, 3, 4])).unwrap();
    known(&balance, &[1, 2, 3, 4]).await;
    let kept = member(&balance, 1);
    tell.send(set(&[4])).unwrap();
    tokio::time::sleep(Duration::from_secs(50)).await;
    known(&balance, &[1, 2, 3, 4]).await;
    assert!(Arc::ptr_eq(&kept, &member(&balance, 1)));
    assert!(log.retired().is_empty());
    tokio::time::sleep(Duration::from_secs(15)).await;
    known(&balance, &[4]).await;
    assert_eq!(log.retired(), [1, 2, 3]);
}

#[tokio::test(start_paused = true)]
async fn by_default_endpoints_leave_however_many_they_are() {
    let (tell, balance, log) = service();
    tell.send(set(&[1, 2, 3, 4])).unwrap();
    known(&balance, &[1, 2, 3, 4]).await;
    tell.send(set(&[4])).unwrap();
    known(&balance, &[4]).await;
    yield_now().await;
    assert_eq!(log.retired(), [1, 2, 3]);
}

#[tokio::test(start_paused = true)]
async fn reports_of_load_move_the_shares() {
    let (tell, balance, log) = service_under(Care {
        weighs_reports: true,
        ..Care::default()
    });
    tell.send(set(&[1, 2])).unwrap();
    known(&balance, &[1, 2]).await;
    for _ in 0..15 {
        member(&balance, 1).reported(Ok(100.0), balance.now());
        member(&balance, 2).reported(Ok(300.0), balance.now());
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    let mut picker = Picker::new(&balance);
    let mut first = 0_u32;
    for _ in 0..20_000 {
        if let Choice::Picked(flight) = picker.pick(&balance, None, balance.now()) {
            first += u32::from(flight.target().port() == 1);
        }
    }
    assert!((4_500..5_500).contains(&first), "{first} of 20000");
    assert_eq!(log.made(), [1, 2]);
}
