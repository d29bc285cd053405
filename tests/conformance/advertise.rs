//! A leader that is found by a tag of its registration.

use std::pin::Pin;
use std::time::Duration;

use futures_core::Stream;
use lictor::ErrorKind;
use lictor::api::agent::{CheckDefinition, ServiceDefinition};
use lictor::coordination::{LossCause, Next, Outcome, Role, Term};
use lictor::registration::Registration;
use lictor_tower::source::SrvSource;
use support::eventually;
use tokio::sync::oneshot;

use crate::TestAgent;

on_both_agents![
    a_leader_is_found_by_its_tag_for_as_long_as_it_leads,
    a_leader_that_steps_down_takes_its_tag_off_before_it_stops_leading,
    a_leadership_that_is_lost_takes_its_tag_off,
    tags_of_others_come_and_go_beside_the_leaders,
];

const LONG: Duration = Duration::from_secs(30);

async fn registered(agent: &TestAgent, service: &str) -> Registration {
    let definition = ServiceDefinition::new(service)
        .port(8080)
        .address("10.1.2.3")
        .tag("blue")
        .check(CheckDefinition::alive_only(Duration::from_secs(30)));
    agent.client().register(definition).await.unwrap()
}

/// What the agent says that the service carries.
async fn tags(agent: &TestAgent, registration: &Registration) -> Vec<String> {
    let read = agent.client().agent().service(registration.id().as_str());
    let service = read.await.unwrap().into_value().unwrap();
    service.tags().iter().map(str::to_owned).collect()
}

/// How many instances with the tag the catalog has.
async fn in_catalog(agent: &TestAgent, service: &str, tag: &str) -> usize {
    let read = agent.client().health().service(service).tag(tag).passing();
    read.await.unwrap().len()
}

/// Waits until DNS knows so many instances by the name.
async fn in_dns(agent: &TestAgent, name: &str, count: usize) {
    let source = SrvSource::builder(name).server(agent.dns_addr());
    let source = source.min_refresh(Duration::from_millis(20)).build();
    let mut source = source.unwrap();
    let found = async {
        loop {
            let next = std::future::poll_fn(|cx| Pin::new(&mut source).poll_next(cx)).await;
            if next.expect("no end").len() == count {
                return;
            }
        }
    };
    tokio::time::timeout(LONG, found).await.expect("in time");
}

async fn a_leader_is_found_by_its_tag_for_as_long_as_it_leads(agent: &TestAgent) {
    let (client, service) = (agent.client(), agent.name("mailer"));
    let registration = registered(agent, &service).await;
    let election = client.election(agent.name("election"));
    let election = election.advertise(&registration, "leader");
    assert_eq!(tags(agent, &registration).await, ["blue"]);
    let leadership = election.campaign().await.unwrap();
    eventually(LONG, async || {
        in_catalog(agent, &service, "leader").await == 1
    })
    .await;
    assert_eq!(tags(agent, &registration).await, ["blue", "leader"]);
    let name = format!("leader.{service}.service.consul");
    in_dns(agent, &name, 1).await;
    leadership.resign().await.unwrap();
    // The hand-over has waited for it.
    assert_eq!(tags(agent, &registration).await, ["blue"]);
    eventually(LONG, async || {
        in_catalog(agent, &service, "leader").await == 0
    })
    .await;
    in_dns(agent, &name, 0).await;
    assert_eq!(in_catalog(agent, &service, "blue").await, 1, "it flapped");
    let err = election.advertise(&registration, "").campaign().await;
    assert_eq!(err.unwrap_err().kind(), ErrorKind::Invalid);
    registration.close().await.unwrap();
}

async fn a_leader_that_steps_down_takes_its_tag_off_before_it_stops_leading(agent: &TestAgent) {
    let (client, service) = (agent.client(), agent.name("mailer"));
    let registration = registered(agent, &service).await;
    let election = client.election(agent.name("election"));
    let election = election.advertise(&registration, "leader");
    let (stop, stopped) = oneshot::channel::<()>();
    let mut stop = Some(stop);
    let run = election.run(async move { drop(stopped.await) }, async |term: Term| {
        eventually(LONG, async || tags(agent, &registration).await.len() == 2).await;
        stop.take().expect("it leads once").send(()).unwrap();
        term.stopping().await;
        eventually(LONG, async || tags(agent, &registration).await == ["blue"]).await;
        term.check().unwrap();
        Next::Stop
    });
    let outcome = run.await.unwrap();
    assert!(matches!(outcome, Outcome::SteppedDown), "{outcome:?}");
    registration.close().await.unwrap();
}

async fn a_leadership_that_is_lost_takes_its_tag_off(agent: &TestAgent) {
    let (client, service) = (agent.client(), agent.name("mailer"));
    let registration = registered(agent, &service).await;
    let election = client.election(agent.name("election"));
    let election = election.advertise(&registration, "leader");
    let leadership = election.campaign().await.unwrap();
    eventually(LONG, async || tags(agent, &registration).await.len() == 2).await;
    client
        .session()
        .destroy(leadership.session())
        .await
        .unwrap();
    let lost = leadership.lost().await;
    assert_ne!(lost.cause(), LossCause::Released);
    // The guard is there still: nobody has to let go of it.
    eventually(LONG, async || tags(agent, &registration).await == ["blue"]).await;
    assert!(matches!(election.roles().next().await, Some(Role::Idle)));
    drop(leadership);
    registration.close().await.unwrap();
}

async fn tags_of_others_come_and_go_beside_the_leaders(agent: &TestAgent) {
    let (client, service) = (agent.client(), agent.name("mailer"));
    let registration = registered(agent, &service).await;
    let lead = async |election: &str| {
        let election = client.election(agent.name(election));
        let election = election.advertise(&registration, "leader");
        election.campaign().await.unwrap()
    };
    let (one, two) = (lead("one").await, lead("two").await);
    // Whoever sets exactly these tags does not take the leader's off.
    registration.set_tags(["green", "red"]).await.unwrap();
    let both = ["green", "red", "leader"];
    eventually(LONG, async || tags(agent, &registration).await == both).await;
    one.resign().await.unwrap();
    assert_eq!(tags(agent, &registration).await, both, "another one leads");
    // A tag of the same name that is the caller's own stays.
    registration
        .update(|mailer| mailer.tag("leader"))
        .await
        .unwrap();
    two.resign().await.unwrap();
    assert_eq!(tags(agent, &registration).await, both);
    registration.set_tags(["blue"]).await.unwrap();
    assert_eq!(tags(agent, &registration).await, ["blue"]);
    registration.close().await.unwrap();
}
