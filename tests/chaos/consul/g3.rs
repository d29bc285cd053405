//! G3: an instance that is frozen (`SIGSTOP`) costs a time-out or two, and none with retries.

use std::time::Duration;

use http::Method;
use lictor_tower::channel::EndpointState;
use lictor_tower::error::ErrorKind;
use lictor_tower::retry::RetryPolicy;
use support::consul::Agent;
use support::{eventually, length};
use tokio::time::sleep;

use crate::load::{Kind, Load, Samples};
use crate::stage::{SOON, Stage, rate, status, tell};

const TIMEOUT: Duration = Duration::from_secs(1);
const BOTH: &[Kind] = &[Kind::Get, Kind::Post];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g3_a_frozen_instance_costs_a_time_out_in_a_thousand_and_none_with_retries() {
    let agent = Agent::shared().await;
    let stage = Stage::of(agent, 10).await;
    let plain = stage.channel(|builder| builder.timeout(TIMEOUT)).await;
    let retrying = stage
        .channel(|builder| {
            let policy = RetryPolicy::new().methods([Method::POST]);
            builder
                .timeout(2 * TIMEOUT)
                .retry(policy.attempt_timeout(TIMEOUT / 4))
        })
        .await;
    let loads = [&plain, &retrying].map(|channel| Load::start(channel, rate() / 2, BOTH));
    // Connections are opened first, all at one time.
    sleep(Duration::from_secs(1)).await;
    let opened = loads[0].now();
    sleep(length(Duration::from_secs(1), Duration::from_secs(5))).await;
    let frozen = stage.target(7);
    let in_flight = status(&plain, &frozen).map_or(0, |known| known.in_flight);
    let calm = loads[0].now();
    stage.instances[7].freeze();
    let began = loads[0].now();
    sleep(2 * TIMEOUT).await;
    let back = loads[0].now();
    sleep(length(Duration::from_secs(3), Duration::from_secs(20))).await;
    let end = loads[0].now();
    stage.instances[7].thaw();
    let [plain_samples, retried] = loads;
    let (plain_samples, retried) = (plain_samples.stop().await, retried.stop().await);

    retried.assert_none_failed();
    let failed = plain_samples.failed();
    for sample in &failed.0 {
        let failure = sample
            .outcome
            .as_ref()
            .expect_err("no server fails by itself");
        assert_eq!(failure.kind, Some(ErrorKind::Timeout), "{sample:?}");
    }
    let after = plain_samples.between(began, end);
    let most = after.len() / 1_000 + in_flight as usize + 2;
    let p99 = |samples: &Samples, from, to| samples.between(from, to).per_mille(990);
    let times = [&plain_samples, &retried].map(|all| (p99(all, opened, calm), p99(all, back, end)));
    tell(format_args!(
        "{} of {} requests timed out, 0 of {} with retries; p99 before and after {times:?}",
        failed.len(),
        after.len(),
        retried.between(began, end).len(),
    ));
    assert!(
        failed.len() <= most,
        "{} of at most {most}: {failed:?}",
        failed.len()
    );
    for (before, after) in times {
        assert!(
            after < (2 * before).max(TIMEOUT / 4),
            "{before:?} {after:?}"
        );
    }

    // When it goes on, it is called again.
    for channel in [&plain, &retrying] {
        let load = Load::start(channel, rate() / 2, BOTH);
        eventually(SOON, async || {
            let known = status(channel, &frozen).expect("it has not left");
            let answered = load.between(Duration::ZERO, load.now()).by(&frozen);
            known.state == EndpointState::Ready && answered > 5
        })
        .await;
        load.stop().await;
    }
}
