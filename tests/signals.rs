//! What a `Lifecycle` does with signals that come from outside: `SIGTERM`, Ctrl-C, and a second one.

use std::future::{pending, ready};
use std::process::Command;
use std::time::Duration;

use lictor::Client;
use lictor::api::agent::{CheckDefinition, ServiceDefinition};
use lictor::embedded::Agent;
use lictor::lifecycle::{Cause, Lifecycle, Stage, StageOutcome};
use support::eventually;
use tokio::sync::Mutex;
use tokio::time::timeout;

/// A signal reaches all of a process, so that one of these tests runs at a time.
static TURN: Mutex<()> = Mutex::const_new(());

const SOON: Duration = Duration::from_secs(30);
/// Longer than any of these tests may take.
const LONG: Duration = Duration::from_secs(600);

fn send(signal: &str) {
    // The shell's own `kill`, because a small machine may lack the program.
    let status = Command::new("/bin/sh")
        .args(["-c", "kill -s \"$1\" \"$2\"", "kill", signal])
        .arg(std::process::id().to_string())
        .status();
    assert!(status.is_ok_and(|status| status.success()), "{signal}");
}

async fn web(agent: &Agent) -> Lifecycle {
    let client = Client::builder().transport(agent.clone()).build();
    let definition = ServiceDefinition::new("web").check(CheckDefinition::alive_only(LONG));
    let registered = client.expect("a good client").register(definition).await;
    Lifecycle::of(registered.expect("an agent that takes it"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_signals_begin_a_shutdown_even_before_it_is_waited_for() {
    let _turn = TURN.lock().await;
    for (signal, name) in [("TERM", "SIGTERM"), ("INT", "SIGINT")] {
        let agent = Agent::in_memory();
        let lifecycle = web(&agent).await.lame_duck(Duration::ZERO);
        let lifecycle = lifecycle.shutdown_on_signal().expect("a runtime");
        send(signal);
        let drain = lifecycle.shutdown().reached(Stage::Drain);
        let (report, done) = timeout(SOON, lifecycle.run(drain)).await.expect("in time");
        assert_eq!(report.cause, Cause::Signal(name));
        assert!(done.is_some());
        assert!(report.is_clean(), "{report}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_signal_during_the_start_is_told_at_once_and_keeps_the_service_out() {
    let _turn = TURN.lock().await;
    let agent = Agent::in_memory();
    let client = Client::builder().transport(agent.clone()).build().unwrap();
    let definition = ServiceDefinition::new("web").check(CheckDefinition::alive_only(LONG));
    let registration = client.register(definition).not_ready().await.unwrap();
    let lifecycle = Lifecycle::of(registration).lame_duck(Duration::ZERO);
    let lifecycle = lifecycle.shutdown_on_signal().expect("a runtime");
    let shutdown = lifecycle.shutdown();
    assert!(!shutdown.has_begun());
    send("TERM");
    eventually(SOON, async || shutdown.has_begun()).await;
    lifecycle.ready().await.unwrap();
    let passing = client.health().service("web").passing();
    assert!(passing.send().await.unwrap().is_empty());
    let drain = lifecycle.shutdown().reached(Stage::Drain);
    let (report, _) = timeout(SOON, lifecycle.run(drain)).await.expect("in time");
    assert_eq!(report.cause, Cause::Signal("SIGTERM"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_signal_of_any_kind_cuts_the_waiting_short_but_not_the_goodbye() {
    let _turn = TURN.lock().await;
    for (first, second) in [("TERM", "INT"), ("INT", "INT"), ("TERM", "TERM")] {
        let agent = Agent::in_memory();
        let lifecycle = web(&agent).await.lame_duck(LONG);
        let lifecycle = lifecycle.deadline(Stage::Drain, LONG);
        let lifecycle = lifecycle.shutdown_on_signal().expect("a runtime");
        let lame_duck = lifecycle.shutdown().reached(Stage::LameDuck);
        let signals = async {
            send(first);
            lame_duck.await;
            send(second);
        };
        let run = async { tokio::join!(lifecycle.run(pending::<()>()), signals).0 };
        let (report, done) = timeout(SOON, run).await.expect("in time");
        assert_eq!(done, None);
        let outcome = |stage| report.stage(stage).map(|line| &line.outcome);
        assert_eq!(
            outcome(Stage::LameDuck),
            Some(&StageOutcome::CutShort),
            "{report}"
        );
        assert_eq!(
            outcome(Stage::Drain),
            Some(&StageOutcome::CutShort),
            "{report}"
        );
        assert_eq!(
            outcome(Stage::Deregister),
            Some(&StageOutcome::Done),
            "{report}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn work_that_ends_before_any_signal_needs_none() {
    let _turn = TURN.lock().await;
    let agent = Agent::in_memory();
    let lifecycle = web(&agent).await.shutdown_on_signal().expect("a runtime");
    let lifecycle = lifecycle.lame_duck(Duration::ZERO);
    let (report, done) = timeout(SOON, lifecycle.run(ready(7)))
        .await
        .expect("in time");
    assert_eq!(done, Some(7));
    assert_eq!(report.cause, Cause::WorkEnded);
}
