//! The order, on the embedded agent under a paused clock.

use std::sync::{Mutex, PoisonError};

use tokio::time::{Instant, sleep};

use super::*;
use crate::api::agent::{CheckDefinition, ServiceDefinition};
use crate::api::health::Status;
use crate::client::Client;
use crate::embedded::{Agent, Fault};

const TTL: Duration = Duration::from_secs(15);
const BEAT: &str = "/v1/agent/check/update/";

fn client(agent: &Agent) -> Client {
    let client = Client::builder().transport(agent.clone()).build();
    client.unwrap()
}

fn web(number: u16) -> ServiceDefinition {
    let web = ServiceDefinition::new("web").port(number);
    web.id(format!("web-{number}"))
        .check(CheckDefinition::alive_only(TTL))
}

async fn registered(client: &Client, number: u16) -> Registration {
    client.register(web(number)).await.unwrap()
}

/// How many the catalog gives to those who ask for instances that pass, and how many in all.
async fn listed(client: &Client) -> (usize, usize) {
    let service = client.health().service("web");
    let passing = service.clone().passing().await.unwrap().len();
    (passing, service.await.unwrap().len())
}

fn outcomes(report: &Report) -> Vec<StageOutcome> {
    let lines = report.stages.iter();
    lines.map(|line| line.outcome.clone()).collect()
}

/// What happened, in its order.
#[derive(Clone, Default)]
struct Diary(Arc<Mutex<Vec<String>>>);

impl Diary {
    fn note(&self, what: impl Into<String>) {
        let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        lines.push(what.into());
    }

    fn read(&self) -> Vec<String> {
        let lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        lines.clone()
    }
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_keeps_its_order_and_the_report_tells_it() {
    let agent = Agent::in_memory();
    let client = client(&agent);
    let diary = Diary::default();
    let of = |what: &'static str| {
        let (diary, client) = (diary.clone(), client.clone());
        async move {
            let (passing, all) = listed(&client).await;
            diary.note(format!("{what}: {passing} of {all}"));
            Ok::<_, crate::Error>(())
        }
    };
    let lock = client.lock("jobs/nightly").acquire().await.unwrap();
    let lifecycle = Lifecycle::of(registered(&client, 1).await)
        .registration(registered(&client, 2).await)
        .step_down("mailer", of("step down"))
        .step_down("nightly", lock.release())
        .end("reader", of("end"));
    let shutdown = lifecycle.shutdown();
    assert!(!shutdown.has_begun());
    let (lame_duck, drain) = (
        shutdown.reached(Stage::LameDuck),
        shutdown.reached(Stage::Drain),
    );
    let work = async {
        of("work").await.ok();
        lame_duck.await;
        of("lame duck").await.ok();
        drain.await;
        of("drain").await.ok();
        sleep(Duration::from_secs(2)).await;
        "finished"
    };
    let begin = async {
        sleep(Duration::from_secs(60)).await;
        shutdown.begin();
    };
    let ((report, output), ()) = tokio::join!(lifecycle.run(work), begin);
    assert_eq!(output, Some("finished"));
    assert!(report.is_clean(), "{report}");
    assert_eq!(report.cause, Cause::Asked);
    let stages: Vec<Stage> = report.stages.iter().map(|line| line.stage).collect();
    assert_eq!(stages, Stage::ALL);
    let took = |stage| report.stage(stage).unwrap().took;
    assert_eq!(took(Stage::LameDuck).as_secs(), 1);
    assert_eq!(took(Stage::Drain).as_secs(), 2);
    assert_eq!(
        diary.read(),
        [
            "work: 2 of 2",
            "lame duck: 0 of 2",
            "drain: 0 of 2",
            "step down: 0 of 2",
            "end: 0 of 0"
        ]
    );
    assert_eq!(agent.requests().open_queries(), 0);
    let free = client.lock("jobs/nightly").try_acquire().await.unwrap();
    assert!(free.acquired().is_some());
}

#[tokio::test(start_paused = true)]
async fn what_is_never_done_costs_its_deadline_and_holds_up_nothing_else() {
    let agent = Agent::in_memory();
    let client = client(&agent);
    let lifecycle = Lifecycle::of(registered(&client, 1).await)
        .lame_duck(Duration::from_millis(300))
        .deadline(Stage::Drain, Duration::from_millis(700))
        .step_down("a task", std::future::pending::<Result<()>>())
        .end("another", async { Err::<(), _>("broke") });
    let shutdown = lifecycle.shutdown();
    shutdown.begin();
    let start = Instant::now();
    let (report, output) = lifecycle.run(std::future::pending::<()>()).await;
    assert!(output.is_none());
    let took = start.elapsed();
    assert!(took >= Duration::from_secs(2) && took < Duration::from_millis(2_100));
    assert_eq!(
        outcomes(&report),
        [
            StageOutcome::Done,
            StageOutcome::Done,
            StageOutcome::TimedOut("the work had not ended, and is dropped".into()),
            StageOutcome::TimedOut("a task".into()),
            StageOutcome::Done,
            StageOutcome::Failed("another: broke".into()),
        ]
    );
    assert_eq!(listed(&client).await, (0, 0));
}

#[tokio::test(start_paused = true)]
async fn an_agent_out_of_reach_delays_the_end_by_the_deadlines_and_no_longer() {
    let faults = [Fault::disconnect(), Fault::hang()];
    for fault in faults {
        let agent = Agent::in_memory();
        let client = client(&agent);
        let lifecycle = Lifecycle::of(registered(&client, 1).await);
        let shutdown = lifecycle.shutdown();
        let drain = shutdown.reached(Stage::Drain);
        agent.inject(fault);
        shutdown.begin();
        let start = Instant::now();
        let (report, drained) = lifecycle.run(drain).await;
        assert_eq!(drained, Some(()));
        let took = start.elapsed();
        assert!(took <= Duration::from_millis(4_100), "{took:?}: {report}");
        let unroutable = report.stage(Stage::Unroutable).unwrap();
        let expected = StageOutcome::TimedOut("the agent has not taken it".into());
        assert_eq!(unroutable.outcome, expected);
        assert!(!report.is_clean());
        // What the deadline cut off goes on in the background.
        agent.clear_faults();
        sleep(Duration::from_secs(10)).await;
        assert_eq!(listed(&client).await, (0, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn a_second_request_cuts_the_waiting_short_but_not_the_goodbye() {
    let agent = Agent::in_memory();
    let client = client(&agent);
    let lifecycle = Lifecycle::of(registered(&client, 1).await)
        .lame_duck(Duration::from_secs(30))
        .deadline(Stage::Drain, Duration::from_secs(30))
        .step_down("a second of work", async {
            sleep(Duration::from_millis(900)).await;
            Ok::<_, crate::Error>(())
        });
    let shutdown = lifecycle.shutdown();
    let twice = async {
        shutdown.begin();
        sleep(Duration::from_secs(5)).await;
        shutdown.begin();
    };
    let start = Instant::now();
    let ((report, _), ()) = tokio::join!(lifecycle.run(std::future::pending::<()>()), twice);
    assert_eq!(start.elapsed().as_millis() / 100, 59, "{report}");
    assert_eq!(
        outcomes(&report),
        [
            StageOutcome::Done,
            StageOutcome::CutShort,
            StageOutcome::CutShort,
            StageOutcome::Done,
            StageOutcome::Done,
            StageOutcome::Done,
        ]
    );
    assert_eq!(listed(&client).await, (0, 0));
}

#[tokio::test(start_paused = true)]
async fn work_that_ends_by_itself_leaves_nobody_to_wait_for() {
    let agent = Agent::in_memory();
    let client = client(&agent);
    let lifecycle = Lifecycle::of(registered(&client, 1).await);
    let start = Instant::now();
    let (report, output) = lifecycle.run(async { "broken" }).await;
    assert_eq!(
        (report.cause.clone(), output),
        (Cause::WorkEnded, Some("broken"))
    );
    assert!(start.elapsed() < Duration::from_millis(100));
    let skipped = StageOutcome::Skipped("the work has ended".into());
    assert_eq!(report.stage(Stage::Drain).unwrap().outcome, skipped);
    assert_eq!(listed(&client).await, (0, 0));
}

#[tokio::test(start_paused = true)]
async fn the_lame_duck_waits_until_the_catalog_shows_it() {
    let agent = Agent::in_memory();
    let client = client(&agent);
    let lifecycle = Lifecycle::of(registered(&client, 1).await)
        .deadline(Stage::Unroutable, Duration::from_secs(20));
    let shutdown = lifecycle.shutdown();
    let lame_duck = shutdown.reached(Stage::LameDuck);
    // The agent takes what it is told, and nobody learns of it.
    agent.inject(Fault::disconnect().under("/v1/health/service/"));
    shutdown.begin();
    let begin = Instant::now();
    let caught_up = async {
        sleep(Duration::from_secs(5)).await;
        let checks = client.agent().checks().await.unwrap();
        assert!(
            checks
                .values()
                .all(|check| check.status() == Status::Critical)
        );
        assert!(checks.values().all(|check| check.output() == "leaving"));
        agent.clear_faults();
    };
    let seen = async {
        lame_duck.await;
        begin.elapsed()
    };
    let ((report, _), (), seen) = tokio::join!(
        lifecycle.run(shutdown.reached(Stage::Drain)),
        caught_up,
        seen
    );
    assert!(seen >= Duration::from_secs(5), "{seen:?}");
    assert!(report.is_clean(), "{report}");
}

#[tokio::test(start_paused = true)]
async fn a_service_that_is_not_ready_is_not_found_for_a_moment() {
    let agent = Agent::in_memory();
    let client = client(&agent);
    // The second has no TTL check to say it by.
    let tcp = ServiceDefinition::new("web").id("web-2").port(2);
    let both = Lifecycle::of(client.register(web(1)).not_ready().await.unwrap())
        .registration(client.register(tcp).not_ready().await.unwrap());
    assert_eq!(listed(&client).await, (0, 2));
    both.ready().await.unwrap();
    assert_eq!(listed(&client).await, (2, 2));
    both.readiness().not_ready("cache is cold").await.unwrap();
    assert_eq!(listed(&client).await, (0, 2));
    let checks = client.agent().checks().await.unwrap();
    let texts = |check: &crate::api::health::Check| [check.output(), check.notes()].concat();
    let mut texts: Vec<String> = checks.values().map(|check| texts(check)).collect();
    texts.sort();
    assert_eq!(
        texts,
        [
            "by the service itself: not ready: cache is cold",
            "not ready: cache is cold"
        ]
    );
    // It stays so on an agent that forgets.
    agent.wipe();
    sleep(Duration::from_secs(2)).await;
    assert_eq!(listed(&client).await, (0, 2));
    both.ready().await.unwrap();
    assert_eq!(listed(&client).await, (2, 2));
    // Nobody opens it any more once it leaves.
    let readiness = both.readiness();
    readiness.leave("leaving").await.unwrap();
    readiness.ready().await.unwrap();
    assert_eq!(listed(&client).await, (0, 2));
}

#[tokio::test(start_paused = true)]
async fn an_operators_maintenance_outlives_that_the_service_is_ready_and_a_former_selfs_does_not() {
    let agent = Agent::in_memory();
    let client = client(&agent);
    let plain = || ServiceDefinition::new("web").id("web-1").port(1);
    let first = client.register(plain()).await.unwrap();
    let operator = client.agent();
    let enable = operator.enable_service_maintenance("web-1", "disk swap");
    enable.await.unwrap();
    first.not_ready("").await.unwrap();
    first.ready().await.unwrap();
    assert_eq!(listed(&client).await, (0, 1));
    first.maintenance(None).await.unwrap();
    assert_eq!(listed(&client).await, (1, 1));
    // It dies while it is not ready, and comes back.
    first.not_ready("").await.unwrap();
    assert_eq!(listed(&client).await, (0, 1));
    agent.inject(Fault::disconnect().under("/v1/agent/service/deregister/"));
    first.close().await.unwrap_err();
    agent.clear_faults();
    let _second = client.register(plain()).await.unwrap();
    assert_eq!(listed(&client).await, (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_lifecycle_that_is_dropped_lets_go_of_all_who_wait() {
    let agent = Agent::in_memory();
    let client = client(&agent);
    let lifecycle = Lifecycle::of(registered(&client, 1).await);
    let shutdown = lifecycle.shutdown();
    let end = shutdown.reached(Stage::End);
    drop(lifecycle);
    end.await;
    shutdown.reached(Stage::Drain).await;
    sleep(Duration::from_secs(1)).await;
    assert_eq!(listed(&client).await, (0, 0));
    let beats = agent.requests().count_under(BEAT);
    sleep(TTL).await;
    assert_eq!(agent.requests().count_under(BEAT), beats);
}
