//! G1: a rolling restart of all ten loses no request.

use std::time::Duration;

use http::Method;
use lictor_tower::channel::{Channel, EndpointState};
use lictor_tower::retry::RetryPolicy;
use support::consul::Agent;
use support::{eventually, is_long, length};
use tokio::time::sleep;

use crate::load::{Kind, Load};
use crate::stage::{SOON, Stage, rate, status, tell};

const BOTH: &[Kind] = &[Kind::Get, Kind::Post];

/// Restarts all, round by round, for so long; how many rounds.
async fn restart_all(
    load: &Load,
    stage: &mut Stage,
    mut stop: impl AsyncFnMut(usize, &mut Stage),
) -> usize {
    let limit = length(Duration::from_secs(2), Duration::from_secs(60));
    let least = if is_long() { 3 } else { 1 };
    let mut rounds = 0;
    while rounds < least || load.now() < limit {
        for at in 0..stage.instances.len() {
            stop(at, stage).await;
            stage.instances[at].start_again().await;
            // Thirty restarts a second would be a test of the machine.
            sleep(Duration::from_millis(100)).await;
        }
        rounds += 1;
    }
    rounds
}

fn has_left(channel: &Channel, stage: &Stage, at: usize) -> bool {
    let known = status(channel, &stage.target(at));
    known.is_none_or(|known| known.state == EndpointState::Draining)
}

async fn all_are_back(channel: &Channel, stage: &Stage) {
    eventually(SOON, async || {
        let all = channel.endpoints();
        let there = all
            .iter()
            .filter(|one| one.state != EndpointState::Draining);
        there.count() == stage.instances.len()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g1_a_rolling_restart_of_all_ten_loses_no_request() {
    let agent = Agent::shared().await;
    let mut stage = Stage::of(agent, 10).await;
    let channel = stage.channel(|builder| builder).await;
    let load = Load::start(&channel, rate(), BOTH);
    let rounds = restart_all(&load, &mut stage, async |at, stage| {
        if at % 2 == 0 {
            // As an operator does it: out of Consul, and closed when nobody comes any more.
            stage.instances[at].be_abrupt().await;
            stage.instances[at].deregister().await;
            eventually(SOON, async || has_left(&channel, stage, at)).await;
        }
        // The others are terminated as they are, and leave by themselves.
        stage.instances[at].terminate().await;
    })
    .await;
    all_are_back(&channel, &stage).await;
    let samples = load.stop().await;
    samples.assert_none_failed();
    tell(format_args!(
        "{rounds} rounds, {} requests, 0 failed, p99 {:?}",
        samples.len(),
        samples.per_mille(990)
    ));
    for at in 0..10 {
        assert!(samples.by(&stage.target(at)) > 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g1_nor_where_servers_close_before_they_say_goodbye_and_requests_may_be_repeated() {
    let agent = Agent::shared().await;
    let mut stage = Stage::of(agent, 10).await;
    let channel = stage
        .channel(|builder| builder.retry(RetryPolicy::new().methods([Method::POST])))
        .await;
    let load = Load::start(&channel, rate(), BOTH);
    let rounds = restart_all(&load, &mut stage, async |at, stage| {
        stage.instances[at].be_abrupt().await;
        stage.instances[at].terminate().await;
    })
    .await;
    all_are_back(&channel, &stage).await;
    let samples = load.stop().await;
    samples.assert_none_failed();
    tell(format_args!(
        "{rounds} rounds, {} requests, 0 failed, p99 {:?}",
        samples.len(),
        samples.per_mille(990)
    ));
}
