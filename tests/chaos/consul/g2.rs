//! G2: a `kill -9`, of which the registry knows nothing, costs what was in flight and no more.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use support::consul::Agent;
use support::length;
use tokio::net::TcpListener;
use tokio::time::sleep;

use crate::load::{Kind, Load};
use crate::stage::{Stage, rate, status, tell};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g2_a_kill_costs_what_was_in_flight_there_and_may_not_be_repeated() {
    let agent = Agent::shared().await;
    let mut stage = Stage::of(agent, 10).await;
    for instance in &stage.instances {
        // So that there is something in flight.
        instance.delay(Duration::from_millis(20)).await;
    }
    let channel = stage.channel(|builder| builder).await;
    let load = Load::start(&channel, rate(), &[Kind::Get, Kind::Post]);
    sleep(Duration::from_secs(1)).await;
    let dead = stage.target(3);
    let in_flight = || status(&channel, &dead).map_or(0, |known| known.in_flight);
    let (before, mut most) = (load.now(), in_flight());
    stage.instances[3].kill();
    most = most.max(in_flight());
    let killed = load.now();
    sleep(length(Duration::from_secs(2), Duration::from_secs(10))).await;
    let samples = load.stop().await;
    let failed = samples.failed();
    for sample in &failed.0 {
        let failure = sample
            .outcome
            .as_ref()
            .expect_err("no server fails by itself");
        // One that was not sent, or may be repeated, went elsewhere.
        assert_eq!(sample.kind, Kind::Post, "{sample:?}");
        assert!(failure.was_sent, "{sample:?}");
        assert!(failure.told.contains(&dead.to_string()), "{sample:?}");
        // Nothing is lost later; the end of a connection takes a moment to be noticed.
        assert!(
            sample.at < killed + Duration::from_millis(200),
            "{killed:?} {sample:?}"
        );
    }
    // What came while it died may have been lost, too.
    let came = (killed - before).as_secs_f64() * f64::from(rate()) / 10.0;
    let most = most as usize + came.ceil() as usize + 2;
    assert!(failed.len() <= most, "{} of at most {most}", failed.len());
    tell(format_args!(
        "{} of {} requests failed, at most {most} were in flight there",
        failed.len(),
        samples.len()
    ));

    // Who accepts connections now and closes them gets few.
    let listener = TcpListener::bind(stage.instances[3].addr())
        .await
        .expect("the port is free");
    let accepted = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&accepted);
    let closing = tokio::runtime::Handle::current().spawn(async move {
        while listener.accept().await.is_ok() {
            counted.fetch_add(1, Ordering::SeqCst);
        }
    });
    let load = Load::start(&channel, rate(), &[Kind::Get]);
    let time = length(Duration::from_secs(3), Duration::from_secs(10));
    sleep(time).await;
    let samples = load.stop().await;
    closing.abort();
    samples.assert_none_failed();
    let (accepted, seconds) = (accepted.load(Ordering::SeqCst), time.as_secs_f64());
    tell(format_args!(
        "{accepted} connections to the dead port in {seconds} s"
    ));
    assert!(
        f64::from(accepted) <= 5.0 * seconds,
        "{accepted} in {seconds} s"
    );
}
