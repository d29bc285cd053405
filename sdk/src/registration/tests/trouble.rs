//! A registration and an agent that breaks at the wrong moment.

use super::*;

const HEALTH: &str = "/v1/agent/health/";
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
    let registration = client.register(beating()).await.unwrap();
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
