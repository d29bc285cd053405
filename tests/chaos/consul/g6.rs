//! G6: an outage of the registry costs nothing, and is over when it is over.

use std::time::Duration;

use lictor_tower::channel::Channel;
use support::consul::Agent;
use support::{eventually, length};
use tokio::time::{Instant, sleep};

use crate::load::{Kind, Load};
use crate::stage::{SOON, Stage, instances, status, target, tell};

/// Low, because these tests are long and run beside the others.
const RATE: u32 = 100;

const COUNT: usize = 5;

/// How long it takes until a channel knows an instance that has just registered.
async fn news(agent: &Agent, stage: &mut Stage, channel: &Channel) -> Duration {
    let began = Instant::now();
    let more = instances(agent, stage.service(), stage.instances.len(), 1).await;
    stage.instances.extend(more);
    let target = target(&stage.instances[stage.instances.len() - 1]);
    eventually(SOON, async || status(channel, &target).is_some()).await;
    began.elapsed()
}

/// Load on a channel while Consul is away, and one of the instances dies.
async fn outage(
    mut agent: Agent,
    time: Duration,
    begin: impl AsyncFnOnce(&mut Agent),
    end: impl AsyncFnOnce(&mut Agent),
) {
    let mut stage = Stage::beside_others(&agent, COUNT).await;
    let channel = stage.channel(|builder| builder).await;
    let load = Load::start(&channel, RATE, &[Kind::Get]);
    sleep(Duration::from_secs(1)).await;
    begin(&mut agent).await;
    sleep(time / 3).await;
    let dead = stage.target(2);
    stage.instances[2].kill();
    let died = load.now();
    sleep(time * 2 / 3).await;
    end(&mut agent).await;
    let new = news(&agent, &mut stage, &channel).await;
    let samples = load.stop().await;
    samples.assert_none_failed();
    let after = samples.between(died + Duration::from_secs(1), Duration::MAX);
    assert_eq!(after.by(&dead), 0);
    for at in [0, 1, 3, 4] {
        assert!(after.by(&stage.target(at)) > 0);
    }
    tell(format_args!(
        "{} requests, 0 failed; a new instance was called for {new:?} after its start",
        samples.len()
    ));
    assert!(new < Duration::from_secs(5), "{new:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g6_calls_go_on_while_consul_is_dead_and_an_instance_dies() {
    let agent = Agent::options().server().start().await;
    let time = length(Duration::from_secs(20), Duration::from_secs(300));
    let end = async |agent: &mut Agent| agent.restart_with_data().await;
    outage(agent, time, async |agent| agent.kill(), end).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g6_calls_go_on_while_consul_is_frozen_and_an_instance_dies() {
    let agent = Agent::options().server().start().await;
    let time = length(Duration::from_secs(10), Duration::from_secs(300));
    let begin = async |agent: &mut Agent| agent.freeze();
    outage(agent, time, begin, async |agent| agent.thaw()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g6_instances_of_a_consul_that_lost_its_data_are_found_again() {
    let mut agent = Agent::start().await;
    let mut stage = Stage::beside_others(&agent, COUNT).await;
    // An index that the new state will not reach for a long time.
    for n in 0..200 {
        let put = agent.api("PUT", "/v1/kv/other", &n.to_string()).await;
        assert!(put.expect("an agent that runs answers").is_success());
    }
    let channel = stage.channel(|builder| builder).await;
    let load = Load::start(&channel, RATE, &[Kind::Get]);
    sleep(Duration::from_secs(1)).await;
    agent.wipe_and_restart().await;
    let new = news(&agent, &mut stage, &channel).await;
    eventually(SOON, async || channel.endpoints().len() == COUNT + 1).await;
    let samples = load.stop().await;
    samples.assert_none_failed();
    let longest = samples.per_mille(1_000);
    tell(format_args!(
        "{} requests, 0 failed, the longest took {longest:?}; a new instance was called for {new:?} \
         after its start",
        samples.len()
    ));
    assert!(new < Duration::from_secs(10), "{new:?}");
}
