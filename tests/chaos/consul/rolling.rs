//! A rolling deployment of processes: `SIGTERM` ends each as its `Lifecycle` says, and no request
//! fails.

use support::consul::Agent;
use support::{eventually, is_long};

use crate::load::{Kind, Load};
use crate::stage::{SOON, Stage, tell};

const INSTANCES: usize = 6;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn six_processes_that_are_terminated_and_replaced_one_by_one_lose_no_request() {
    let agent = Agent::shared().await;
    let mut stage = Stage::of(agent, INSTANCES).await;
    let channel = stage.channel(|builder| builder).await;
    let load = Load::start(&channel, 200, &[Kind::Get, Kind::Post]);
    let rounds = if is_long() { 10 } else { 1 };
    for _ in 0..rounds {
        for at in 0..INSTANCES {
            let target = stage.target(at);
            stage.instances[at].terminate().await;
            let said = stage.instances[at].log();
            let clean = ["not routable", "lame duck", "drain", "deregister"];
            for stage in clean {
                let line = said.lines().rev().find(|line| line.starts_with(stage));
                let is_done = line.is_some_and(|line| line.ends_with("  done"));
                assert!(is_done, "{stage} of {target}: {said}");
            }
            assert!(said.contains("shut down: signal SIGTERM"), "{said}");
            stage.instances[at].start_again().await;
        }
    }
    eventually(SOON, async || channel.endpoints().len() == INSTANCES).await;
    let samples = load.stop().await;
    samples.assert_none_failed();
    tell(format_args!(
        "{} replaced, {} requests, 0 failed",
        rounds * INSTANCES,
        samples.len(),
    ));
}
