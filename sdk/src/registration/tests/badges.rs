//! Tags that are worn beside those of the definition.

use super::*;

fn tag() -> Arc<str> {
    "leader".into()
}

async fn tags(client: &Client) -> Vec<String> {
    let service = service(client).await;
    let tags = service.iter().flat_map(|service| service.tags());
    tags.map(str::to_owned).collect()
}

#[tokio::test(start_paused = true)]
async fn a_badge_that_is_taken_off_while_the_agent_is_out_of_reach_goes_when_it_is_back() {
    let agent = Agent::in_memory();
    let client = client(&agent);
    let registration = client.register(beating().tag("blue")).await.unwrap();
    let mut badge = registration.badges().wear(&tag());
    eventually(async || tags(&client).await == ["blue", "leader"]).await;
    assert_eq!(registration.definition(), beating().tag("blue"));
    agent.inject(Fault::disconnect().under(REGISTER));
    badge.take_off();
    badge.take_off();
    let gone = badge.gone();
    drop(badge);
    assert!(
        tokio::time::timeout(Duration::from_secs(60), gone)
            .await
            .is_err()
    );
    assert_eq!(tags(&client).await, ["blue", "leader"]);
    agent.clear_faults();
    let took = eventually(async || tags(&client).await == ["blue"]).await;
    assert!(took <= Duration::from_secs(10), "{took:?}");
    registration.close().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_forgets_the_service_is_told_of_its_badges_too() {
    let agent = Agent::in_memory();
    let client = client(&agent);
    let registration = client.register(beating()).await.unwrap();
    let badge = registration.badges().wear(&tag());
    eventually(async || tags(&client).await == ["leader"]).await;
    agent.wipe();
    eventually(async || tags(&client).await == ["leader"]).await;
    drop(badge);
    eventually(async || service(&client).await.is_some() && tags(&client).await.is_empty()).await;
    let mut badge = registration.badges().wear(&tag());
    badge.take_off();
    let gone = badge.gone();
    registration.close().await.unwrap();
    // Nobody tells the agent any more.
    gone.await;
}

#[tokio::test(start_paused = true)]
async fn a_change_that_is_refused_takes_no_badge_with_it() {
    let agent = Agent::in_memory();
    let client = client(&agent);
    let registration = client.register(beating()).await.unwrap();
    let refusal = Fault::answer(StatusCode::BAD_REQUEST, "Invalid service: no such thing");
    agent.inject(refusal.under(REGISTER));
    let refused = async {
        let err = registration
            .update(|web| web.tag("green"))
            .await
            .unwrap_err();
        assert_eq!(err.kind(), ErrorKind::Refused);
        agent.clear_faults();
    };
    let badge = registration.badges().wear(&tag());
    refused.await;
    eventually(async || tags(&client).await == ["leader"]).await;
    assert_eq!(registration.definition(), beating());
    drop(badge);
    eventually(async || tags(&client).await.is_empty()).await;
}
