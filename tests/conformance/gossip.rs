//! User events, network coordinates and prepared queries.

use std::time::Duration;

use ::http::Method;
use lictor::api::agent::{CheckDefinition, ServiceDefinition};
use lictor::api::health::Status;
use lictor::api::query::PreparedQuery;
use lictor::ident::QueryId;
use lictor::watch::{Failover, Status as WatchStatus};
use lictor::{Error, ErrorKind};
use serde_json::{Value, json};
use support::{eventually, http};
use tokio::time::timeout;

use crate::TestAgent;

on_both_agents![
    an_event_is_fired_listed_and_told_to_who_follows,
    an_event_that_gossip_has_no_room_for_is_refused_before_it_is_sent,
    an_event_that_consul_refuses_is_not_worth_repeating,
    events_are_answered_alike,
    an_event_for_others_is_not_listed,
    a_query_is_kept_changed_and_deleted,
    a_query_finds_instances_by_health_tags_and_limit,
    a_template_answers_for_every_name_that_begins_alike,
    queries_are_answered_alike,
    a_query_is_followed_by_polling,
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
fn is(err: &Error, kind: ErrorKind) {
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

async fn send(agent: &TestAgent, method: &str, path: &str, body: &str) -> (u16, String) {
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

async fn a_query_is_kept_changed_and_deleted(agent: &TestAgent) {
    let (client, name) = (agent.client(), agent.name("query"));
    let query = PreparedQuery::new("web")
        .name(&name)
        .only_passing()
        .tag("v1")
        .failover_to_nearest(2)
        .failover_to("dc9")
        .dns_ttl(Duration::from_secs(10));
    let id = client.query().create(&query).await.unwrap();
    let kept = client
        .query()
        .read(&id)
        .await
        .unwrap()
        .into_value()
        .unwrap();
    assert_eq!((kept.name(), kept.nearest()), (Some(&*name), 2));
    assert_eq!((kept.service().as_str(), kept.tags().len()), ("web", 1));
    assert!(kept.is_only_passing() && kept.datacenters()[0] == "dc9");
    let listed = client.query().list().await.unwrap();
    assert!(listed.iter().any(|query| **query == kept));

    let taken = client.query().create(&query).await.unwrap_err();
    assert!(taken.to_string().contains("aliases an existing"), "{taken}");
    is(&taken, ErrorKind::Conflict);
    let other = PreparedQuery::new("db").name(&name);
    client.query().update(&id, &other).await.unwrap();
    let explained = client.query().explain(&*name).await.unwrap();
    assert_eq!((explained.service().as_str(), explained.id()), ("db", &id));
    assert!(explained.modify_index() > explained.create_index());

    client.query().delete(&id).await.unwrap();
    assert!(client.query().read(&id).await.unwrap().is_none());
    let gone = client.query().execute(&*name).await.unwrap_err();
    assert_eq!(gone.kind(), ErrorKind::NotFound);
    is(
        &client.query().delete(&id).await.unwrap_err(),
        ErrorKind::NotFound,
    );
    is(
        &client.query().update(&id, &query).await.unwrap_err(),
        ErrorKind::NotFound,
    );
    let odd = QueryId::new("no-uuid").unwrap();
    is(
        &client.query().delete(&odd).await.unwrap_err(),
        ErrorKind::NotFound,
    );
    assert!(client.query().read(&odd).await.unwrap().is_none());
    let nameless = PreparedQuery::new("");
    let err = client.query().create(&nameless).await.unwrap_err();
    assert_eq!(err.kind(), ErrorKind::Invalid);
}

async fn register(agent: &TestAgent, name: &str, id: &str, tag: &str, status: Status) {
    let check = CheckDefinition::ttl(Duration::from_secs(600)).status(status);
    let service = ServiceDefinition::new(name).id(id).tag(tag).check(check);
    agent.client().agent().register(&service).await.unwrap();
}

async fn a_query_finds_instances_by_health_tags_and_limit(agent: &TestAgent) {
    let (client, web) = (agent.client(), agent.name("web"));
    let id = |number: u8| format!("{web}-{number}");
    register(agent, &web, &id(1), "blue", Status::Passing).await;
    register(agent, &web, &id(2), "blue", Status::Warning).await;
    register(agent, &web, &id(3), "red", Status::Passing).await;
    register(agent, &web, &id(4), "red", Status::Critical).await;
    eventually(SOON, async || {
        client.catalog().service(&*web).await.unwrap().len() == 4
    })
    .await;
    let found = async |name: &str, query: PreparedQuery| {
        let name = agent.name(name);
        client.query().create(&query.name(&name)).await.unwrap();
        let found = client.query().execute(&*name).await.unwrap();
        assert_eq!(found.failovers(), 0);
        let ids = found.nodes().iter().map(|entry| entry.service().id());
        let mut ids: Vec<String> = ids.map(|id| id.as_str().to_owned()).collect();
        ids.sort();
        ids
    };
    let query = || PreparedQuery::new(&*web);
    assert_eq!(found("all", query()).await, [id(1), id(2), id(3)]);
    assert_eq!(found("pass", query().only_passing()).await, [id(1), id(3)]);
    assert_eq!(found("blue", query().tag("blue")).await, [id(1), id(2)]);
    assert_eq!(found("notblue", query().tag("!blue")).await, [id(3)]);
    let limited = client.query().execute(agent.name("all")).limit(2).await;
    assert_eq!(limited.unwrap().nodes().len(), 2);
    for number in 1..=4 {
        client.agent().deregister(id(number)).await.unwrap();
    }
}

async fn a_template_answers_for_every_name_that_begins_alike(agent: &TestAgent) {
    let (client, prefix) = (agent.client(), agent.name("tpl-"));
    let template = PreparedQuery::new("${name.suffix}")
        .name(&prefix)
        .template();
    let id = client.query().create(&template).await.unwrap();
    let explained = client.query().explain(format!("{prefix}consul")).await;
    assert_eq!(explained.unwrap().service(), &"consul");
    let found = client.query().execute(format!("{prefix}consul")).await;
    let found = found.unwrap();
    assert_eq!(found.nodes().len(), 1);
    assert_eq!(found.datacenter(), &"dc1");
    client.query().delete(&id).await.unwrap();
}

/// Answers of a long list of requests, which say the same on both agents.
async fn queries_are_answered_alike(agent: &TestAgent) {
    let unknown = "/v1/query/8f246b77-f3e1-ff88-5b48-8ec93abf3e05";
    let modify = "Cannot modify non-existent prepared query: \
                  '8f246b77-f3e1-ff88-5b48-8ec93abf3e05'";
    let lookup = "failed prepared query lookup: index error: UUID must be 36 characters";
    let looked_up = format!("Prepared Query lookup failed: {lookup}");
    let good = r#"{"Service":{"Service":"x"}}"#;
    for (method, path, body, status, text) in [
        (
            "GET",
            "/v1/query/nope-zz/execute",
            "",
            404,
            "Query not found",
        ),
        (
            "GET",
            "/v1/query/nope-zz/explain",
            "",
            404,
            "Query not found",
        ),
        ("GET", unknown, "", 404, "Query not found"),
        ("GET", "/v1/query/nope", "", 500, lookup),
        ("PUT", unknown, good, 500, modify),
        ("DELETE", unknown, "", 500, modify),
        ("DELETE", "/v1/query/zzz", "", 500, &*looked_up),
        ("PUT", "/v1/query/zzz", good, 500, &*looked_up),
        (
            "POST",
            "/v1/query",
            r#"{"Name":"z1","Service":{}}"#,
            500,
            "Invalid prepared query: Must provide a Service name to query",
        ),
        (
            "POST",
            "/v1/query",
            r#"{"Nme":"z1"}"#,
            400,
            "Request decode failed: json: unknown field \"Nme\"",
        ),
        ("POST", "/v1/query", "", 400, "Request decode failed: EOF"),
        (
            "POST",
            "/v1/query",
            r#"{"Name":"z1","Service":{"Service":"x","Failover":{"NearestN":-1}}}"#,
            500,
            "Invalid prepared query: Bad NearestN '-1', must be >= 0",
        ),
        (
            "POST",
            "/v1/query",
            r#"{"Name":"z1","Service":{"Service":"x"},"DNS":{"TTL":"5x"}}"#,
            500,
            "Invalid prepared query: Bad DNS TTL '5x': time: unknown unit \"x\" in duration \"5x\"",
        ),
    ] {
        let answer = send(agent, method, path, body).await;
        assert_eq!(answer, (status, text.to_owned()), "{method} {path} {body}");
    }
    // The shape of an answer, field by field.
    let name = agent.name("shape");
    let body = json!({"Name": name, "Service": {"Service": name}}).to_string();
    let (status, created) = send(agent, "POST", "/v1/query", &body).await;
    assert_eq!(status, 200);
    let created: Value = serde_json::from_str(&created).unwrap();
    let (_, found) = send(agent, "GET", &format!("/v1/query/{name}/execute"), "").await;
    let found: Value = serde_json::from_str(&found).unwrap();
    let expected = json!({
        "Service": name, "Nodes": [], "DNS": {"TTL": ""}, "Datacenter": "dc1", "Failovers": 0,
        "Index": 0, "LastContact": 0, "KnownLeader": true, "ConsistencyLevel": "leader",
    });
    assert_eq!(found, expected);
    let path = format!("/v1/query/{}", created["ID"].as_str().unwrap());
    let (_, kept) = send(agent, "GET", &path, "").await;
    let kept: Value = serde_json::from_str(&kept).unwrap();
    let expected = json!([{
        "ID": created["ID"], "Name": name, "Session": "", "Token": "",
        "Template": {"Type": "", "Regexp": "", "RemoveEmptyTags": false},
        "Service": {
            "Service": name, "Failover": {"NearestN": 0, "Datacenters": null},
            "OnlyPassing": false, "IgnoreCheckIDs": null, "Near": "", "Tags": null,
            "NodeMeta": null, "ServiceMeta": null, "Connect": false,
        },
        "DNS": {"TTL": ""},
        "CreateIndex": kept[0]["CreateIndex"], "ModifyIndex": kept[0]["CreateIndex"],
    }]);
    assert_eq!(kept, expected);
    assert_eq!(send(agent, "DELETE", &path, "").await, (200, String::new()));
}

async fn a_query_is_followed_by_polling(agent: &TestAgent) {
    let (client, web) = (agent.client(), agent.name("polled"));
    let query = PreparedQuery::new(&*web).name(&web);
    let id = client.query().create(&query).await.unwrap();
    let every = Duration::from_secs(1);
    let hasty = client.query().execute(&*web).watch_every(every / 2);
    assert_eq!(hasty.unwrap_err().kind(), ErrorKind::Invalid);
    let mut watch = client.query().execute(&*web).watch_every(every).unwrap();
    let next = async |watch: &mut lictor::watch::Watch<_>| {
        timeout(SOON, watch.changed()).await.unwrap().unwrap()
    };
    assert!(next(&mut watch).await.is_empty());
    register(agent, &web, &web, "blue", Status::Passing).await;
    let there = next(&mut watch).await;
    assert_eq!(there[0].service().id(), &*web);
    client.query().delete(&id).await.unwrap();
    let stale = async {
        loop {
            if let WatchStatus::Stale(outage) = watch.status_changed().await.unwrap() {
                return outage;
            }
        }
    };
    let outage = timeout(SOON, stale).await.unwrap();
    assert_eq!(outage.error().kind(), ErrorKind::NotFound);
    assert_eq!(watch.latest().unwrap().len(), 1);
    client.agent().deregister(&*web).await.unwrap();
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
