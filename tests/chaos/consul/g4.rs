//! G4: an instance that fails fast does not attract traffic, and is back soon after its repair.

use std::time::Duration;

use lictor_tower::channel::{EndpointState, Policy};
use support::consul::Agent;
use support::{eventually, is_long, length};
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::load::{Kind, Load, call};
use crate::stage::{SOON, Stage, rate, status, tell};

async fn a_black_hole(policy: Policy, code: u16) {
    let agent = Agent::shared().await;
    let stage = Stage::of(agent, 10).await;
    let channel = stage.channel(|builder| builder.policy(policy)).await;
    let load = Load::start(&channel, rate(), &[Kind::Get]);
    sleep(Duration::from_secs(1)).await;
    let bad = stage.target(5);
    let began = load.now();
    stage.instances[5].status(code).await;
    sleep(Duration::from_secs(1) + length(Duration::from_secs(3), Duration::from_secs(20))).await;
    let end = load.now();
    let first = load.between(began, began + Duration::from_secs(1));
    let rest = load.between(began + Duration::from_secs(1), end);
    let (early, late) = (first.failed().len(), rest.failed().len());
    // A thousandth, and the requests that asked whether it is well: a second after it was put out,
    // and each time after twice as long.
    let seconds = (end - began).as_secs_f64();
    let asked = (seconds + 1.0).log2().ceil() as usize;
    tell(format_args!(
        "{policy:?}: {early} of {} failed in the first second, {late} of {} after it",
        first.len(),
        rest.len()
    ));
    assert!(early <= 5 + first.len() / 100, "{early} of {}", first.len());
    assert!(
        late <= rest.len() / 1_000 + asked,
        "{late} of {}",
        rest.len()
    );

    stage.instances[5].status(200).await;
    let repaired = load.now();
    eventually(SOON, async || {
        let known = status(&channel, &bad).expect("it has not left");
        known.state == EndpointState::Ready && !known.is_penalized
    })
    .await;
    let back = load.now() - repaired;
    load.stop().await;
    // Its share of many, which are made as fast as they go: chance makes less of a difference.
    let before = stage.instances[5].counts().await.requests;
    let (callers, each) = (16, if is_long() { 2_000 } else { 300 });
    let mut calls = JoinSet::new();
    for _ in 0..callers {
        let channel = channel.clone();
        calls.spawn(async move {
            for _ in 0..each {
                let called = call(&channel, Kind::Get).await;
                assert!(called.is_ok_and(|(_, status)| status.is_success()));
            }
        });
    }
    calls.join_all().await;
    let got = stage.instances[5].counts().await.requests - before;
    let fair = callers * each / 10;
    tell(format_args!(
        "{policy:?}: back after {back:?}, with {got} of {fair} requests"
    ));
    let least = if is_long() { 90 } else { 70 };
    assert!(got * 100 >= fair * least, "{got} of {fair}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g4_an_instance_that_answers_500_in_a_millisecond_attracts_no_traffic() {
    a_black_hole(Policy::PeakEwma, 500).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g4_nor_does_one_that_answers_503_where_requests_in_flight_count() {
    a_black_hole(Policy::PendingRequests, 503).await;
}
