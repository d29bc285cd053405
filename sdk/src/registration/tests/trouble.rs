//! A registration and an agent that breaks at the wrong moment.

use std::sync::atomic::{AtomicU64, Ordering};

use super::*;

const HEALTH: &str = "/v1/agent/health/";
const DEREGISTER: &str = "/v1/agent/service/deregister/";
const HICCUP: StatusCode = StatusCode::INTERNAL_SERVER_ERROR;

#[tokio::test(start_paused = true)]
async fn a_token_that_changed_during_an_outage_is_told_to_the_agent_before_the_goodbye() {
    let path = std::env::temp_dir().join(format!("lictor-outage-{}", std::process::id()));
    std::fs::write(&path, "first").unwrap();
    let agent = Agent::in_memory();
    let client = Client::builder()
        .transport(agent.clone())
        .token_file(&path)
        .build()
        .unwrap();
    let registration = client.register(beating()).await.unwrap();
    agent.inject(Fault::disconnect());
    std::fs::write(&path, "second-one").unwrap();
    sleep(Duration::from_secs(35)).await;
    let before = agent.requests().count(&Method::PUT, REGISTER);
    agent.clear_faults();
    registration.close().await.unwrap();
    let after = agent.requests().count(&Method::PUT, REGISTER);
    assert_eq!(after - before, 1);
    assert!(service(&client).await.is_none());
    std::fs::remove_file(&path).unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_goodbye_with_a_new_token_waits_for_an_agent_that_is_coming_back() {
    let path = std::env::temp_dir().join(format!("lictor-return-{}", std::process::id()));
    std::fs::write(&path, "first").unwrap();
    let agent = Agent::in_memory();
    let client = Client::builder()
        .transport(agent.clone())
        .token_file(&path)
        .build()
        .unwrap();
    let registration = client.register(web()).await.unwrap();
    std::fs::write(&path, "second-one").unwrap();
    sleep(Duration::from_secs(2)).await;
    agent.inject(Fault::disconnect());
    let back = async {
        sleep(Duration::from_secs(5)).await;
        agent.clear_faults();
        agent.requests().count(&Method::PUT, REGISTER)
    };
    let (closed, before) = tokio::join!(registration.close(), back);
    closed.unwrap();
    let after = agent.requests().count(&Method::PUT, REGISTER);
    assert_eq!(after - before, 1);
    assert!(service(&client).await.is_none());
    std::fs::remove_file(&path).unwrap();
}

#[tokio::test(start_paused = true)]
async fn an_operators_maintenance_outlives_a_look_that_fails_before_a_registration() {
    let faults = [
        Fault::answer(HICCUP, "rpc error: hiccup"),
        Fault::disconnect(),
        Fault::garble(),
        Fault::hang(),
    ];
    for fault in faults {
        let agent = Agent::in_memory();
        let client = client(&agent);
        let registration = client.register(beating()).await.unwrap();
        let operator = client.agent();
        let enable = operator.enable_service_maintenance("web-1", "disk swap");
        enable.await.unwrap();
        agent.inject(fault.under(HEALTH).times(1));
        registration.update(|web| web.tag("new")).await.unwrap_err();
        eventually(async || service(&client).await.unwrap().tags().contains("new")).await;
        assert_eq!(status(&client).await, Some(Status::Maintenance));
        eventually(async || registration.state().is_registered()).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_token_that_may_not_look_or_an_agent_that_cannot_tell_is_no_hindrance() {
    let deaf = [
        (StatusCode::FORBIDDEN, "Permission denied"),
        (StatusCode::METHOD_NOT_ALLOWED, "method GET not allowed"),
    ];
    for (code, text) in deaf {
        let agent = Agent::in_memory();
        agent.inject(Fault::answer(code, text).under(HEALTH));
        let client = client(&agent);
        let registration = client.register(beating()).await.unwrap();
        registration.set_tags(["new"]).await.unwrap();
        registration.close().await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn the_survivor_of_a_contest_is_back_at_once_when_the_other_has_left() {
    let agent = Agent::in_memory();
    let client = client(&agent);
    let registration = client.register(beating()).await.unwrap();
    let other = async |port: u32| {
        let other = ServiceDefinition::new("other").id("web-1").port(port);
        client.agent().register(&other).await.unwrap();
    };
    let port = async || service(&client).await.unwrap().port();
    for round in 81..86 {
        other(round).await;
        eventually(async || port().await == 80).await;
    }
    // Now it waits for its next turn, for about a minute.
    other(90).await;
    sleep(Duration::from_millis(100)).await;
    assert_eq!(port().await, 90);
    client.agent().deregister("web-1").await.unwrap();
    let gone = eventually(async || service(&client).await.is_some()).await;
    assert!(gone <= Duration::from_millis(100), "{gone:?}");
    assert_eq!(port().await, 80);
    let contested = eventually(async || registration.state().is_registered()).await;
    assert!(contested <= Duration::from_secs(11), "{contested:?}");
}

#[tokio::test(start_paused = true)]
async fn a_contest_over_checks_of_other_names_is_not_fought_at_full_speed_either() {
    let agent = Agent::in_memory();
    let client = client(&agent);
    let _one = client.register(beating()).await.unwrap();
    let own = CheckDefinition::alive_only(TTL).id("own");
    let _two = client.register(web().port(81).check(own)).await.unwrap();
    sleep(Duration::from_secs(600)).await;
    let registers = agent.requests().count(&Method::PUT, REGISTER);
    assert!(registers < 100, "{registers} in ten minutes");
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_comes_back_empty_does_not_wait_for_the_planned_repetition() {
    for extra in 0..10 {
        let agent = Agent::in_memory();
        let client = client(&agent);
        let registration = client.register(beating()).await.unwrap();
        agent.inject(Fault::disconnect());
        registration.set_meta("k", "v").await.unwrap_err();
        sleep(Duration::from_secs(60 + extra)).await;
        agent.wipe();
        agent.clear_faults();
        let gone = eventually(async || service(&client).await.is_some()).await;
        assert!(gone <= Duration::from_secs(1), "{gone:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_has_forgotten_and_refuses_is_not_asked_at_full_speed() {
    let agent = Agent::in_memory();
    let client = client(&agent);
    let registration = client.register(beating()).await.unwrap();
    let denial = Fault::answer(StatusCode::FORBIDDEN, "Permission denied");
    agent.inject(denial.under(REGISTER));
    agent.wipe();
    sleep(Duration::from_secs(20)).await;
    let before = agent.requests().count(&Method::PUT, REGISTER);
    for _ in 0..300 {
        sleep(Duration::from_secs(1)).await;
        assert!(matches!(registration.state(), State::Denied { .. }));
    }
    let registers = agent.requests().count(&Method::PUT, REGISTER) - before;
    assert!(registers < 90, "{registers} in five minutes");
    agent.clear_faults();
    eventually(async || registration.state().is_registered()).await;
    // The looks in between have used nothing up.
    agent.wipe();
    let gone = eventually(async || service(&client).await.is_some()).await;
    assert!(gone <= Duration::from_secs(2), "{gone:?}");
}

#[tokio::test(start_paused = true)]
async fn a_change_that_is_refused_at_its_repetition_leaves_a_registered_state() {
    let agent = Agent::in_memory();
    let client = client(&agent);
    let registration = client.register(beating()).await.unwrap();
    let refusal = Fault::answer(StatusCode::BAD_REQUEST, "Invalid service: no such thing");
    agent.inject(Fault::answer(HICCUP, "hiccup").under(REGISTER).times(1));
    agent.inject(refusal.under(REGISTER).times(1));
    registration.update(|web| web.tag("b")).await.unwrap_err();
    let healing = eventually(async || registration.state().is_registered()).await;
    assert!(healing <= Duration::from_secs(1), "{healing:?}");
    sleep(TTL * 4).await;
    assert!(registration.state().is_registered());
    let none = service(&client).await.unwrap().tags().is_empty();
    assert!(none && registration.definition() == beating());
}

#[tokio::test(start_paused = true)]
async fn a_refused_change_is_undone_on_an_agent_that_has_forgotten_the_service() {
    let agent = Agent::in_memory();
    let client = client(&agent);
    let registration = client.register(beating()).await.unwrap();
    let refusal = Fault::answer(StatusCode::BAD_REQUEST, "Invalid service: no such thing");
    agent.inject(Fault::answer(HICCUP, "hiccup").under(REGISTER).times(1));
    agent.inject(refusal.under(REGISTER).times(1));
    registration.update(|web| web.tag("b")).await.unwrap_err();
    agent.wipe();
    let gone = eventually(async || service(&client).await.is_some()).await;
    assert!(gone <= Duration::from_millis(300), "{gone:?}");
    eventually(async || registration.state().is_registered()).await;
    assert!(service(&client).await.unwrap().tags().is_empty());
}

#[tokio::test(start_paused = true)]
async fn checks_with_a_long_ttl_do_not_hold_up_one_with_a_short_ttl() {
    let agent = Agent::in_memory();
    let client = client(&agent);
    let long = Duration::from_secs(40);
    let mut definition = web();
    for n in 0..3 {
        definition = definition.check(CheckDefinition::alive_only(long).id(format!("slow-{n}")));
    }
    let quick = CheckDefinition::alive_only(Duration::from_secs(5)).id("quick");
    let _registration = client.register(definition.check(quick)).await.unwrap();
    agent.inject(Fault::hang().under("/v1/agent/check/update/slow"));
    for _ in 0..1200 {
        sleep(Duration::from_millis(100)).await;
        let checks = client.agent().checks().await.unwrap();
        assert_eq!(checks.get("quick").unwrap().status(), Status::Passing);
    }
}

#[tokio::test(start_paused = true)]
async fn a_goodbye_over_a_dead_connection_is_said_again_over_another_one() {
    for dead in 1..=3 {
        for close in [true, false] {
            let agent = Agent::in_memory();
            let client = client(&agent);
            let registration = client.register(beating()).await.unwrap();
            agent.inject(Fault::hang().under(DEREGISTER).times(dead));
            if close {
                registration.close().await.unwrap();
            } else {
                drop(registration);
                sleep(Duration::from_secs(10)).await;
            }
            assert!(service(&client).await.is_none(), "{dead} dead ones");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_goodbye_that_is_answered_late_counts() {
    let agent = Agent::in_memory();
    let client = client(&agent);
    let registration = client.register(beating()).await.unwrap();
    agent.inject(Fault::delay(Duration::from_secs(7)).under(DEREGISTER));
    let start = Instant::now();
    registration.close().await.unwrap();
    assert!(start.elapsed() <= Duration::from_millis(7_010));
}

#[tokio::test(start_paused = true)]
async fn a_goodbye_with_a_new_token_gets_by_a_dead_connection() {
    let path = std::env::temp_dir().join(format!("lictor-dead-{}", std::process::id()));
    std::fs::write(&path, "first").unwrap();
    let agent = Agent::in_memory();
    let client = Client::builder()
        .transport(agent.clone())
        .token_file(&path)
        .build()
        .unwrap();
    for stage in ["/v1/agent/service/web-1", HEALTH, REGISTER, DEREGISTER] {
        let registration = client.register(web()).await.unwrap();
        std::fs::write(&path, format!("second-{}", stage.len())).unwrap();
        sleep(Duration::from_secs(2)).await;
        agent.inject(Fault::hang().under(stage).times(1));
        registration.close().await.unwrap();
        assert!(service(&client).await.is_none(), "{stage}");
        agent.clear_faults();
    }
    std::fs::remove_file(&path).unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_goodbye_that_fails_tells_what_it_failed_with_last() {
    let agent = Agent::in_memory();
    let client = client(&agent);
    let registration = client.register(beating()).await.unwrap();
    agent.inject(Fault::answer(HICCUP, "rpc error: hiccup"));
    let err = registration.close().await.unwrap_err();
    assert_eq!(err.kind(), ErrorKind::Timeout);
    let cause = std::error::Error::source(&err).unwrap();
    assert!(cause.to_string().contains("hiccup"), "{cause}");
}

/// An agent in front of which connections may be refused, as where nobody listens.
#[derive(Clone)]
pub(super) struct Refusing {
    pub(super) agent: Agent,
    pub(super) refuses: watch::Receiver<bool>,
    /// How often somebody has tried.
    pub(super) tried: Arc<AtomicU64>,
}

impl tower_service::Service<http::Request<bytes::Bytes>> for Refusing {
    type Response = http::Response<crate::embedded::Body>;
    type Error = std::io::Error;
    type Future =
        std::pin::Pin<Box<dyn Future<Output = std::io::Result<Self::Response>> + Send + 'static>>;

    fn poll_ready(
        &mut self,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<bytes::Bytes>) -> Self::Future {
        self.tried.fetch_add(1, Ordering::Relaxed);
        let mut refuses = self.refuses.clone();
        let answer = self.agent.call(request);
        Box::pin(async move {
            tokio::select! {
                biased;
                _ = refuses.wait_for(|refuses| *refuses) => {
                    Err(std::io::ErrorKind::ConnectionRefused.into())
                }
                answer = answer => answer,
            }
        })
    }
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_restarts_without_its_data_has_the_service_within_a_twentieth_second() {
    let agent = Agent::in_memory();
    let (switch, refuses) = watch::channel(false);
    let transport = Refusing {
        agent: agent.clone(),
        refuses,
        tried: Arc::default(),
    };
    let reaching = Client::builder().transport(transport).build().unwrap();
    let registration = reaching.register(beating()).await.unwrap();
    let client = client(&agent);
    for away in [1, 10, 25] {
        switch.send_replace(true);
        sleep(Duration::from_secs(away)).await;
        agent.wipe();
        switch.send_replace(false);
        let late = eventually(async || service(&client).await.is_some()).await;
        assert!(late <= Duration::from_millis(60), "{late:?}");
        eventually(async || registration.state().is_registered()).await;
    }
}
