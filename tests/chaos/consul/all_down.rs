//! All instances down and back: a quick and clear error meanwhile, and calls that succeed at once
//! afterwards.

use std::time::Duration;

use lictor_tower::error::ErrorKind;
use support::consul::Agent;
use support::length;
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::load::{Kind, Load};
use crate::stage::{Stage, rate, tell};

/// In how long a call fails while nobody is there.
const SLOWEST: Duration = Duration::from_millis(500);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_fail_fast_while_all_are_down_and_succeed_within_a_second_of_their_return() {
    let agent = Agent::shared().await;
    let mut stage = Stage::of(agent, 4).await;
    let channel = stage.channel(|builder| builder).await;
    let load = Load::start(&channel, rate() / 2, &[Kind::Get, Kind::Post]);
    sleep(Duration::from_secs(1)).await;
    let alive = load.now();
    for instance in &mut stage.instances {
        instance.kill();
    }
    // What crossed with the end of a connection has ended.
    sleep(Duration::from_millis(300)).await;
    let down = load.now();
    sleep(length(Duration::from_secs(3), Duration::from_secs(8))).await;
    let up = load.now();
    let mut starting = JoinSet::new();
    for mut instance in stage.instances.drain(..) {
        starting.spawn(async move {
            instance.start_again().await;
            instance
        });
    }
    stage.instances = starting.join_all().await;
    let back = load.now();
    sleep(Duration::from_secs(2)).await;
    let samples = load.stop().await;

    samples.between(Duration::ZERO, alive).assert_none_failed();
    // One that begins shortly before they return may be tried again when they have.
    let meanwhile = samples.between(down, up.saturating_sub(SLOWEST));
    assert_eq!(meanwhile.failed().len(), meanwhile.len());
    for sample in &meanwhile.0 {
        let failure = sample.outcome.as_ref().expect_err("all are down");
        assert_eq!(failure.kind, Some(ErrorKind::Connect), "{sample:?}");
        assert!(!failure.was_sent, "{sample:?}");
    }
    let slowest = meanwhile.per_mille(990);
    assert!(slowest < SLOWEST, "{slowest:?}");
    let afterwards = samples.between(back + Duration::from_secs(1), Duration::MAX);
    afterwards.assert_none_failed();
    let last = samples.failed().0.iter().map(|sample| sample.at).max();
    tell(format_args!(
        "{} calls failed, 99 % of them within {slowest:?}; the last was begun {:?} before all were back",
        meanwhile.len(),
        back.saturating_sub(last.unwrap_or_default()),
    ));
}
