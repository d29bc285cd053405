//! The registration on the embedded agent, under a paused clock.

use std::time::Duration;

use http::{Method, StatusCode};
use tokio::runtime::Handle;
use tokio::time::{Instant, sleep};

use super::*;
use crate::Client;
use crate::api::agent::{AgentService, CheckDefinition};
use crate::embedded::{Agent, Fault};

mod badges;
mod crowd;
mod probes;
mod trouble;
mod twins;

const TTL: Duration = Duration::from_secs(15);
const SERVICE: &str = "/v1/agent/service/";
const REGISTER: &str = "/v1/agent/service/register";
const BEAT: &str = "/v1/agent/check/update/";

fn client(agent: &Agent) -> Client {
    let client = Client::builder().transport(agent.clone()).build();
    client.unwrap()
}

fn web() -> ServiceDefinition {
    ServiceDefinition::new("web").id("web-1").port(80)
}

fn beating() -> ServiceDefinition {
    web().check(CheckDefinition::alive_only(TTL))
}

async fn status(client: &Client) -> Option<Status> {
    let health = client.agent().health_by_id("web-1").await.unwrap();
    health.into_value().map(|health| health.status())
}

async fn service(client: &Client) -> Option<AgentService> {
    client.agent().service("web-1").await.unwrap().into_value()
}

/// Waits on the paused clock, which then jumps.
async fn eventually<F: AsyncFnMut() -> bool>(mut holds: F) -> Duration {
    let start = Instant::now();
    while !holds().await {
        assert!(start.elapsed() < Duration::from_secs(300), "not in 300 s");
        sleep(Duration::from_millis(10)).await;
    }
    start.elapsed()
}

#[tokio::test(start_paused = true)]
async fn a_service_passes_when_register_returns_and_for_as_long_as_the_guard_lives() {
    let agent = Agent::in_memory();
    let client = client(&agent);
    let registration = client.register(beating()).await.unwrap();
    assert_eq!(registration.id(), "web-1");
    for _ in 0..600 {
        assert_eq!(status(&client).await, Some(Status::Passing));
        sleep(Duration::from_secs(1)).await;
    }
    let beats = agent.requests().count_under(BEAT);
    assert!((110..=136).contains(&beats), "{beats} in 600 s");
    assert_eq!(agent.requests().count(&Method::PUT, REGISTER), 1);
    assert!(registration.state().is_registered());
}

#[tokio::test(start_paused = true)]
async fn heartbeats_wake_no_watcher_of_the_service() {
    let agent = Agent::in_memory();
    let client = client(&agent);
    let _registration = client.register(beating()).await.unwrap();
    let before = client.health().service("web").await.unwrap();
    let index = before.meta().index().unwrap();
    let wait = Duration::from_secs(120);
    let watch = client.health().service("web").wait_for_change(index, wait);
    let start = Instant::now();
    let after = watch.await.unwrap();
    assert_eq!(after.meta().index(), Some(index));
    assert!(start.elapsed() >= wait);
}

#[tokio::test(start_paused = true)]
async fn close_deregisters_and_ends_the_task() {
    let agent = Agent::in_memory();
    let client = client(&agent);
    let registration = client.register(beating()).await.unwrap();
    let mut states = registration.states();
    registration.close().await.unwrap();
    assert!(service(&client).await.is_none());
    let mut last = None;
    while let Some(state) = states.next().await {
        last = Some(state);
    }
    assert!(matches!(last, Some(State::Closed)));
    let requests = agent.requests().total();
    sleep(TTL * 10).await;
    assert_eq!(agent.requests().total(), requests);
    assert_eq!(agent.requests().open_queries(), 0);
}

#[tokio::test(start_paused = true)]
async fn dropping_the_guard_deregisters_in_the_background() {
    let agent = Agent::in_memory();
    let client = client(&agent);
    drop(client.register(beating()).await.unwrap());
    eventually(async || service(&client).await.is_none()).await;
}

#[tokio::test(start_paused = true)]
async fn dropping_the_register_future_at_any_point_leaves_no_service() {
    for steps in 0..40 {
        let agent = Agent::in_memory();
        // Each answer takes its time, so that the drop falls into any of the requests.
        agent.inject(Fault::delay(Duration::from_millis(7)));
        let client = client(&agent);
        let register = client.register(beating());
        let limit = Duration::from_millis(steps);
        drop(tokio::time::timeout(limit, register).await);
        sleep(Duration::from_secs(20)).await;
        agent.clear_faults();
        assert!(service(&client).await.is_none(), "dropped after {limit:?}");
        let requests = agent.requests().total();
        sleep(TTL * 4).await;
        assert_eq!(agent.requests().total(), requests, "still at work");
    }
}

#[tokio::test(start_paused = true)]
async fn a_wiped_agent_has_the_service_again_at_once() {
    for definition in [web(), beating()] {
        let agent = Agent::in_memory();
        let client = client(&agent);
        let registration = client.register(definition).await.unwrap();
        sleep(Duration::from_secs(100)).await;
        agent.wipe();
        let gone = eventually(async || service(&client).await.is_some()).await;
        assert!(gone <= Duration::from_millis(100), "{gone:?}");
        assert_eq!(status(&client).await, Some(Status::Passing));
        eventually(async || registration.state().is_registered()).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_deregistered_service_comes_back_with_its_status_and_its_maintenance() {
    let agent = Agent::in_memory();
    let client = client(&agent);
    let registration = client.register(beating()).await.unwrap();
    registration
        .set_status(Status::Warning, "slow disk")
        .await
        .unwrap();
    assert_eq!(status(&client).await, Some(Status::Warning));
    registration.maintenance(Some("moving")).await.unwrap();
    assert_eq!(status(&client).await, Some(Status::Maintenance));

    client.agent().deregister("web-1").await.unwrap();
    eventually(async || service(&client).await.is_some()).await;
    assert_eq!(status(&client).await, Some(Status::Maintenance));
    registration.maintenance(None).await.unwrap();
    assert_eq!(status(&client).await, Some(Status::Warning));
}

#[tokio::test(start_paused = true)]
async fn a_lone_check_that_was_removed_comes_back_with_the_next_heartbeat() {
    let agent = Agent::in_memory();
    let client = client(&agent);
    let _registration = client.register(beating()).await.unwrap();
    client
        .agent()
        .deregister_check("service:web-1")
        .await
        .unwrap();
    sleep(TTL / 2).await;
    assert!(
        client
            .agent()
            .checks()
            .await
            .unwrap()
            .contains_key("service:web-1")
    );
    assert_eq!(status(&client).await, Some(Status::Passing));
}

#[tokio::test(start_paused = true)]
async fn an_overwritten_service_is_taken_back_and_the_state_tells_it() {
    let agent = Agent::in_memory();
    let client = client(&agent);
    let mut registration = client.register(beating()).await.unwrap();
    let other = ServiceDefinition::new("other").id("web-1").port(81);
    client.agent().register(&other).await.unwrap();
    assert!(matches!(
        registration.state_changed().await,
        State::Contested
    ));
    let taken = eventually(async || service(&client).await.unwrap().port() == 80).await;
    assert!(taken <= Duration::from_millis(100), "{taken:?}");
    assert!(registration.state_changed().await.is_registered());
}

#[tokio::test(start_paused = true)]
async fn two_of_one_id_do_not_fight_at_full_speed() {
    let agent = Agent::in_memory();
    let client = client(&agent);
    let one = client.register(beating()).await.unwrap();
    let two = client.register(beating().port(81)).await.unwrap();
    sleep(Duration::from_secs(600)).await;
    let registers = agent.requests().count(&Method::PUT, REGISTER);
    // Each registers, the older answers, the younger takes it back, and the older lets go.
    assert!(registers <= 5, "{registers} in ten minutes");
    assert!(matches!(one.state(), State::Yielded), "{one:?}");
    assert!(two.state().is_registered(), "{two:?}");
    drop(two);
    eventually(async || one.state().is_registered()).await;
}

/// An agent that writes addresses in a way of its own.
#[derive(Clone)]
struct Willful(Agent);

impl tower_service::Service<http::Request<bytes::Bytes>> for Willful {
    type Response = http::Response<http_body_util::Full<bytes::Bytes>>;
    type Error = std::io::Error;
    type Future = std::pin::Pin<
        Box<dyn Future<Output = std::result::Result<Self::Response, Self::Error>> + Send>,
    >;

    fn poll_ready(
        &mut self,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<std::result::Result<(), Self::Error>> {
        tower_service::Service::<http::Request<bytes::Bytes>>::poll_ready(&mut self.0, cx)
    }

    fn call(&mut self, request: http::Request<bytes::Bytes>) -> Self::Future {
        let answer = tower_service::Service::call(&mut self.0, request);
        Box::pin(async move {
            let (head, body) = answer.await?.into_parts();
            let body = http_body_util::BodyExt::collect(body).await.unwrap();
            let text = String::from_utf8(body.to_bytes().to_vec()).unwrap();
            let text = text.replace(r#""Address":"""#, r#""Address":"node.example""#);
            Ok(http::Response::from_parts(head, text.into_bytes().into()))
        })
    }
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_writes_it_otherwise_is_not_fought() {
    let agent = Agent::in_memory();
    let client = Client::builder().transport(Willful(agent.clone())).build();
    let registration = client.unwrap().register(beating()).await.unwrap();
    sleep(Duration::from_secs(120)).await;
    assert!(registration.state().is_registered());
    assert_eq!(agent.requests().count(&Method::PUT, REGISTER), 4);
    sleep(Duration::from_secs(600)).await;
    assert_eq!(agent.requests().count(&Method::PUT, REGISTER), 4);
    registration.set_tags(["new"]).await.unwrap();
    sleep(Duration::from_secs(120)).await;
    assert!(registration.state().is_registered());
}

#[tokio::test(start_paused = true)]
async fn an_update_changes_tags_and_meta_and_nothing_flaps() {
    let agent = Agent::in_memory();
    let client = client(&agent);
    let registration = client.register(beating()).await.unwrap();
    registration.set_tags(["v2", "eu"]).await.unwrap();
    registration.set_meta("build", "7").await.unwrap();
    let found = service(&client).await.unwrap();
    assert!(found.tags().contains("v2") && found.tags().contains("eu"));
    assert_eq!(found.meta().get("build"), Some("7"));
    assert_eq!(status(&client).await, Some(Status::Passing));
    sleep(Duration::from_secs(60)).await;
    assert!(registration.state().is_registered());
    assert_eq!(agent.requests().count(&Method::PUT, REGISTER), 3);
}

#[tokio::test(start_paused = true)]
async fn an_update_that_is_nonsense_or_refused_changes_nothing() {
    let agent = Agent::in_memory();
    let client = client(&agent);
    let registration = client.register(beating()).await.unwrap();
    let err = registration.update(|web| web.port(0)).await.unwrap_err();
    assert_eq!(err.kind(), ErrorKind::Invalid);

    let refusal = "Request decode failed: json: unknown field \"Locality\"";
    let fault = Fault::answer(StatusCode::BAD_REQUEST, refusal);
    agent.inject(fault.under(REGISTER).times(1));
    let err = registration.update(|web| web.tag("new")).await.unwrap_err();
    assert_eq!(err.kind(), ErrorKind::Refused);
    assert!(err.to_string().contains("Locality"), "{err}");
    sleep(Duration::from_secs(300)).await;
    assert!(registration.state().is_registered());
    assert!(service(&client).await.unwrap().tags().is_empty());
}

#[tokio::test(start_paused = true)]
async fn updates_that_come_together_all_take_effect() {
    let agent = Agent::in_memory();
    let client = client(&agent);
    let registration = client.register(beating()).await.unwrap();
    let (one, two, three) = tokio::join!(
        registration.update(|web| web.tag("one")),
        registration.update(|web| web.tag("two")),
        registration.set_meta("three", "3"),
    );
    one.and(two).and(three).unwrap();
    let found = service(&client).await.unwrap();
    assert!(found.tags().contains("one") && found.tags().contains("two"));
    assert_eq!(found.meta().get("three"), Some("3"));
    assert!(found.id() == "web-1" && registration.definition().validate().is_ok());
}

#[tokio::test(start_paused = true)]
async fn an_update_that_panics_or_takes_another_id_leaves_the_registration_alone() {
    let agent = Agent::in_memory();
    let client = client(&agent);
    let registration = Arc::new(client.register(beating()).await.unwrap());
    let moved = registration.update(|web| web.id("web-2")).await;
    assert!(moved.unwrap_err().is_invalid());
    let own = Arc::clone(&registration);
    let change = Worker::spawn(&Handle::current(), |_| async move {
        own.update(|_| panic!("in a change")).await
    });
    assert!(change.stop().await.is_none());
    registration.update(|web| web.tag("after")).await.unwrap();
    sleep(TTL * 3).await;
    assert!(registration.state().is_registered());
    assert_eq!(status(&client).await, Some(Status::Passing));
}

#[tokio::test(start_paused = true)]
async fn checks_can_be_added_and_removed_live() {
    let agent = Agent::in_memory();
    let client = client(&agent);
    let registration = client.register(web()).await.unwrap();
    assert!(
        registration
            .set_status(Status::Passing, "")
            .await
            .unwrap_err()
            .is_invalid()
    );
    registration
        .update(|web| web.check(CheckDefinition::alive_only(TTL).id("alive")))
        .await
        .unwrap();
    sleep(TTL * 3).await;
    assert_eq!(status(&client).await, Some(Status::Passing));
    assert!(client.agent().checks().await.unwrap().contains_key("alive"));
    registration.update(|_| web()).await.unwrap();
    assert!(client.agent().checks().await.unwrap().is_empty());
    sleep(TTL * 3).await;
    assert!(registration.state().is_registered());
}

#[tokio::test(start_paused = true)]
async fn a_failed_heartbeat_is_repeated_before_the_ttl_is_over() {
    let agent = Agent::in_memory();
    let client = client(&agent);
    let mut registration = client.register(beating()).await.unwrap();
    agent.inject(Fault::disconnect().under(BEAT).times(4));
    assert!(matches!(
        registration.state_changed().await,
        State::Healing { .. }
    ));
    assert!(registration.state_changed().await.is_registered());
    assert_eq!(status(&client).await, Some(Status::Passing));
    agent.inject(Fault::hang().under(BEAT).times(1));
    for _ in 0..60 {
        sleep(Duration::from_secs(1)).await;
        assert_eq!(status(&client).await, Some(Status::Passing));
    }
}

#[tokio::test(start_paused = true)]
async fn a_frozen_agent_is_told_by_the_state_and_healed_when_it_thaws() {
    let agent = Agent::in_memory();
    let client = client(&agent);
    let mut registration = client.register(beating()).await.unwrap();
    agent.freeze();
    assert!(matches!(
        registration.state_changed().await,
        State::Healing { .. }
    ));
    sleep(TTL * 10).await;
    agent.thaw();
    assert!(registration.state_changed().await.is_registered());
    assert_eq!(status(&client).await, Some(Status::Passing));
}

#[tokio::test(start_paused = true)]
async fn a_lost_leader_costs_no_heartbeat() {
    let agent = Agent::in_memory();
    let client = client(&agent);
    let registration = client.register(beating()).await.unwrap();
    agent.lose_leader();
    for _ in 0..60 {
        sleep(Duration::from_secs(1)).await;
        assert_eq!(status(&client).await, Some(Status::Passing));
        assert!(registration.state().is_registered());
    }
}

#[tokio::test(start_paused = true)]
async fn a_first_registration_that_fails_is_an_error_and_leaves_nothing() {
    let agent = Agent::in_memory();
    let client = client(&agent);
    agent.inject(
        Fault::answer(StatusCode::FORBIDDEN, "Permission denied")
            .under(REGISTER)
            .times(1),
    );
    let err = client.register(beating()).await.unwrap_err();
    assert_eq!(err.kind(), ErrorKind::PermissionDenied);
    agent.inject(
        Fault::answer(StatusCode::FORBIDDEN, "Permission denied")
            .under(BEAT)
            .times(1),
    );
    let err = client.register(beating()).await.unwrap_err();
    assert_eq!(err.kind(), ErrorKind::PermissionDenied);
    eventually(async || service(&client).await.is_none()).await;
    agent.inject(Fault::hang().under(SERVICE));
    let err = client.register(beating()).await.unwrap_err();
    assert_eq!(err.kind(), ErrorKind::Timeout);
}

#[tokio::test(start_paused = true)]
async fn a_revoked_token_is_told_and_a_new_one_is_used() {
    let path = std::env::temp_dir().join(format!("lictor-rotation-{}", std::process::id()));
    std::fs::write(&path, "first").unwrap();
    let agent = Agent::builder().require_token("first").in_memory();
    let client = Client::builder()
        .transport(agent.clone())
        .token_file(&path)
        .build()
        .unwrap();
    let mut registration = client.register(beating()).await.unwrap();
    agent.revoke_tokens();
    let denied = registration.state_changed().await;
    assert!(matches!(denied, State::Denied { .. }), "{denied}");
    assert!(!format!("{denied:?}").contains("first"));

    std::fs::write(&path, "second-one").unwrap();
    agent.accept_token("second-one");
    assert!(registration.state_changed().await.is_registered());
    assert_eq!(status(&client).await, Some(Status::Passing));
    std::fs::remove_file(&path).unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_goodbye_with_a_new_token_makes_it_known_to_the_agent_first() {
    let path = std::env::temp_dir().join(format!("lictor-goodbye-{}", std::process::id()));
    std::fs::write(&path, "first").unwrap();
    let agent = Agent::in_memory();
    let client = Client::builder()
        .transport(agent.clone())
        .token_file(&path)
        .build()
        .unwrap();
    let registration = client.register(beating()).await.unwrap();
    std::fs::write(&path, "second-one").unwrap();
    // Before anything else looks at the file.
    sleep(Duration::from_secs(2)).await;
    registration.close().await.unwrap();
    assert_eq!(agent.requests().count(&Method::PUT, REGISTER), 2);
    assert!(service(&client).await.is_none());
    std::fs::remove_file(&path).unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_definition_that_consul_would_misread_is_refused_before_anything_is_sent() {
    let agent = Agent::in_memory();
    let err = client(&agent)
        .register(web().port(70_000))
        .await
        .unwrap_err();
    assert_eq!(err.kind(), ErrorKind::Invalid);
    assert_eq!(agent.requests().total(), 0);
}

#[test]
fn outside_a_runtime_it_is_an_error() {
    let agent = Agent::in_memory();
    let client = client(&agent);
    let mut register = Box::pin(client.register(web()).send());
    let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
    let std::task::Poll::Ready(Err(err)) = register.as_mut().poll(&mut cx) else {
        panic!("registered");
    };
    assert_eq!(err.kind(), ErrorKind::NoRuntime);
}

#[test]
fn a_guard_dropped_outside_or_after_its_runtime_does_not_panic() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let agent = Agent::in_memory();
    let client = client(&agent);
    let outside = runtime.block_on(client.register(web()).send()).unwrap();
    drop(outside);
    runtime.block_on(async {
        for _ in 0..500 {
            if service(&client).await.is_none() {
                return;
            }
            sleep(Duration::from_millis(10)).await;
        }
        panic!("still registered");
    });
    let after = runtime.block_on(client.register(web()).send()).unwrap();
    drop(runtime);
    assert!(matches!(after.state(), State::Registered | State::Closed));
    drop(after);
}
