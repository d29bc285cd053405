//! User events, network coordinates, and several datacenters.

use std::time::Duration;

use ::http::Method;
use lictor::api::agent::ServiceDefinition;
use lictor::api::catalog::{Entry, NewService};
use lictor::watch::Failover;
use lictor::{Error, ErrorKind};
use serde_json::json;
use support::{eventually, http};
use tokio::time::timeout;

use crate::TestAgent;

on_both_agents![
    an_event_is_fired_listed_and_told_to_who_follows,
    an_event_that_gossip_has_no_room_for_is_refused_before_it_is_sent,
    an_event_that_consul_refuses_is_not_worth_repeating,
    events_are_answered_alike,
    an_event_for_others_is_not_listed,
    an_event_for_a_service_is_for_its_id_on_the_agent_that_it_is_registered_with,
    nodes_have_places_and_distances,
    the_own_datacenter_is_the_first_to_turn_to,
    a_view_over_datacenters_tells_one_that_does_not_exist,
];

const SOON: Duration = Duration::from_secs(20);

async fn an_event_is_fired_listed_and_told_to_who_follows(agent: &TestAgent) {
    let (client, name) = (agent.client(), agent.name("deploy"));
    let before = client.event().fire(&*name, "before").await.unwrap();
    assert_eq!((before.payload(), before.time()), (&b"before"[..], 0));
    eventually(SOON, async || {
        client.event().list().name(&name).await.unwrap().len() == 1
    })
    .await;
    let mut followed = client.event().list().name(&name).follow().unwrap();
    followed.ready().await.unwrap();
    client.event().fire(agent.name("other"), "").await.unwrap();
    let mut fired = Vec::new();
    for number in 0..5_u8 {
        let event = client.event().fire(&*name, vec![number]).await.unwrap();
        let told = timeout(SOON, followed.next()).await.unwrap().unwrap();
        assert_eq!((told.id(), told.payload()), (event.id(), &[number][..]));
        assert!(told.time() > 0);
        fired.push(event.id().to_owned());
    }
    let listed = client.event().list().name(&name).await.unwrap();
    let listed: Vec<_> = listed.iter().map(|event| event.id().to_owned()).collect();
    assert_eq!(listed[1..], fired);
}

async fn an_event_that_gossip_has_no_room_for_is_refused_before_it_is_sent(agent: &TestAgent) {
    let client = agent.client();
    let name = agent.name("big");
    let err = client.event().fire(&*name, vec![0; 600]).await.unwrap_err();
    assert_eq!(err.kind(), ErrorKind::Invalid);
    let told = err.to_string();
    let room: usize = told
        .split("has room for ")
        .nth(1)
        .and_then(|rest| rest.split(' ').next())
        .and_then(|room| room.parse().ok())
        .unwrap_or_else(|| panic!("{told}"));
    // As far as a large Lamport time leaves room.
    let most = client.event().fire(&*name, vec![0; room - 8]).await;
    most.unwrap();
    let over = client.event().fire(&*name, vec![0; room + 1]).await;
    assert_eq!(over.unwrap_err().kind(), ErrorKind::Invalid);
    let err = client.event().fire("n".repeat(220), "").await.unwrap_err();
    assert_eq!(err.kind(), ErrorKind::Invalid);
    let filtered = client.event().fire(&*name, vec![0; room - 8]);
    let err = filtered.node("n".repeat(20)).await.unwrap_err();
    assert_eq!(err.kind(), ErrorKind::Invalid);
    let nameless = client.event().fire("", "").await;
    assert_eq!(nameless.unwrap_err().kind(), ErrorKind::Invalid);
}

/// A refusal that no repetition changes.
pub(super) fn is(err: &Error, kind: ErrorKind) {
    assert_eq!(err.kind(), kind, "{err}");
    assert!(!err.is_transient(), "{err}");
}

async fn an_event_that_consul_refuses_is_not_worth_repeating(agent: &TestAgent) {
    let (client, name) = (agent.client(), agent.name("refused"));
    let fire = || client.event().fire(&*name, "");
    is(&fire().tag("a").await.unwrap_err(), ErrorKind::Refused);
    is(&fire().node("(").await.unwrap_err(), ErrorKind::Refused);
    is(&fire().service("(").await.unwrap_err(), ErrorKind::Refused);
    let service = fire().service("a").tag("(");
    is(&service.await.unwrap_err(), ErrorKind::Refused);
    let big = client.raw(Method::PUT, format!("/v1/event/fire/{name}"));
    let big = big.body(vec![b'a'; 480]).await.unwrap_err();
    is(&big, ErrorKind::RequestTooLarge);
}

/// The status and the body of an answer.
pub(super) async fn send(agent: &TestAgent, method: &str, path: &str, body: &str) -> (u16, String) {
    let url = format!("{}{path}", agent.http_url());
    let answer = http::request(method, &url, &[], body.to_owned())
        .await
        .unwrap();
    (answer.status, answer.text())
}

async fn events_are_answered_alike(agent: &TestAgent) {
    for (path, status, text) in [
        ("/v1/event/fire/", 400, "Missing name"),
        (
            "/v1/event/fire/x?tag=a",
            500,
            "Cannot provide tag filter without service filter",
        ),
        (
            "/v1/event/fire/x?node=%28",
            500,
            "Invalid node filter: error parsing regexp: missing closing ): `(`",
        ),
        ("/v1/event/fire/x?dc=nowhere", 500, "No path to datacenter"),
    ] {
        let answer = send(agent, "PUT", path, "").await;
        assert_eq!(answer, (status, text.to_owned()), "{path}");
    }
    let big = "a".repeat(480);
    let (status, text) = send(agent, "PUT", "/v1/event/fire/x", &big).await;
    assert_eq!(status, 500);
    let told = "user event exceeds configured limit of 512 bytes before encoding";
    assert!(text.contains(told), "{text}");
    let path = format!("/v1/event/list?name={}", agent.name("none"));
    let url = format!("{}{path}", agent.http_url());
    let none = http::get(&url).await.unwrap();
    assert_eq!(none.json(), json!([]));
    assert_eq!(none.headers["x-consul-index"], "1");
}

async fn an_event_for_others_is_not_listed(agent: &TestAgent) {
    let (client, name) = (agent.client(), agent.name("some"));
    let service = ServiceDefinition::new(&*name).tag("blue");
    client.agent().register(&service).await.unwrap();
    let event = |payload: &'static str| client.event().fire(&*name, payload);
    event("a").node("no-such-node").await.unwrap();
    event("b").service("no-such-service").await.unwrap();
    event("c").service(&name).tag("red").await.unwrap();
    let ours = event("d").service(&name).tag("blue").await.unwrap();
    assert_eq!(ours.tag_filter(), Some("blue"));
    eventually(SOON, async || {
        let listed = client.event().list().name(&name).await.unwrap();
        listed.iter().any(|event| event.payload() == b"d")
    })
    .await;
    assert_eq!(client.event().list().name(&name).await.unwrap().len(), 1);
    client.agent().deregister(&*name).await.unwrap();
}

async fn an_event_for_a_service_is_for_its_id_on_the_agent_that_it_is_registered_with(
    agent: &TestAgent,
) {
    let (client, name, id) = (agent.client(), agent.name("name"), agent.name("id"));
    let service = ServiceDefinition::new(&*name).id(&*id);
    client.agent().register(&service).await.unwrap();
    let own = client.agent().about().await.unwrap();
    let own = own.config().node_name().to_string();
    let by_hand = agent.name("by-hand");
    let entry = Entry::new(own, "127.0.0.1").skip_node_update();
    let entry = entry.service(NewService::new(&*by_hand));
    client.catalog().register(entry).await.unwrap();
    // What the servers put into the catalog themselves is registered with no agent either.
    for other in [&*name, &*by_hand, "consul"] {
        client
            .event()
            .fire(&*name, "")
            .service(other)
            .await
            .unwrap();
    }
    client.event().fire(&*name, "").service(&id).await.unwrap();
    let listed = async || client.event().list().name(&name).await.unwrap();
    eventually(SOON, async || !listed().await.is_empty()).await;
    let listed = listed().await;
    assert_eq!(listed.len(), 1);
    assert_eq!(listed[0].service_filter(), Some(&*id));
    client.agent().deregister(&*id).await.unwrap();
}

async fn nodes_have_places_and_distances(agent: &TestAgent) {
    let client = agent.client();
    let about = client.agent().about().await.unwrap();
    let own = about.config().node_name().to_string();
    // A real agent tells its place some time after it has started.
    let mut places = client.coordinate().nodes().watch().unwrap();
    let told = async {
        loop {
            let places = places.changed().await.unwrap();
            if let Some(place) = places.iter().find(|place| place.node() == &*own) {
                return place.coordinate().clone();
            }
        }
    };
    let place = timeout(Duration::from_secs(60), told).await.unwrap();
    assert_eq!(place.vector().len(), 8);
    let node = client.coordinate().node(&*own).await.unwrap();
    assert_eq!(node.len(), 1);
    // Beside itself only the way out and back in is left.
    let itself = node[0].coordinate().distance_to(&place).unwrap();
    assert!(itself < Duration::from_millis(50), "{itself:?}");
    assert!(
        client
            .coordinate()
            .node(agent.name("none"))
            .await
            .unwrap()
            .is_empty()
    );
    let all = client.coordinate().datacenters().await.unwrap();
    assert_eq!(
        (all[0].datacenter(), all[0].area()),
        (&"dc1".parse().unwrap(), "wan")
    );
    assert_eq!(all[0].servers().len(), 1);
}

async fn the_own_datacenter_is_the_first_to_turn_to(agent: &TestAgent) {
    let client = agent.client();
    let order = Failover::new().nearest(5).then("dc9").order(&client).await;
    assert_eq!(order.unwrap(), ["dc1", "dc9"]);
    let far = client.with_datacenter("dc7".parse().unwrap());
    let order = Failover::new().nearest(5).order(&far).await.unwrap();
    assert_eq!(order, ["dc7", "dc1"]);
    let odd = Failover::new().then("a/b").order(&client).await;
    assert_eq!(odd.unwrap_err().kind(), ErrorKind::Invalid);
}

async fn a_view_over_datacenters_tells_one_that_does_not_exist(agent: &TestAgent) {
    let client = agent.client();
    let order = Failover::new()
        .then("nowhere")
        .order(&client)
        .await
        .unwrap();
    let consul = client.health().service("consul");
    let mut across = consul.watch_across(order).unwrap();
    let both = async {
        loop {
            let regions = across.changed().await.unwrap();
            let error = regions[1].status().error();
            if regions[0].status().is_live() && error.is_some() {
                return regions;
            }
        }
    };
    let regions = timeout(SOON, both).await.unwrap();
    assert_eq!(regions[0].len(), 1);
    let error = regions[1].status().error().unwrap();
    assert_eq!(error.kind(), ErrorKind::UnknownDatacenter);
    assert!(regions[1].snapshot().is_none());
    assert_eq!(across.preferred().unwrap().datacenter(), &"dc1");
    let none = client.health().service("consul").watch_across([]);
    assert_eq!(none.unwrap_err().kind(), ErrorKind::Invalid);
}
