use http::{Method, Request};
use serde_json::{Value, json};

use super::{answered, get, put, send};
use crate::embedded::Agent;

async fn node(agent: &Agent, name: &str, seconds: f64) {
    let entry = json!({
        "Node": name, "Address": "192.0.2.9", "Service": {"Service": "web", "ID": name},
    });
    put(agent, "/v1/catalog/register", &entry.to_string()).await;
    place(agent, name, seconds).await;
}

async fn place(agent: &Agent, name: &str, seconds: f64) {
    let vec = [seconds, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0];
    let told = json!({"Node": name, "Coord": {"Vec": vec}});
    let told = put(agent, "/v1/coordinate/update", &told.to_string()).await;
    assert!(told.status.is_success(), "{}", told.text());
}

async fn order(agent: &Agent, uri: &str) -> String {
    let answer = get(agent, uri).await.json();
    let found = answer
        .as_array()
        .or_else(|| answer["Nodes"].as_array())
        .unwrap();
    let name = |item: &Value| {
        let name = item["Node"]["Node"]
            .as_str()
            .or_else(|| item["Node"].as_str());
        name.unwrap().to_owned()
    };
    found.iter().map(name).collect::<Vec<_>>().join(" ")
}

async fn create(agent: &Agent, query: Value) {
    let created = send(agent, Method::POST, "/v1/query", &query.to_string()).await;
    assert!(created.status.is_success(), "{}", created.text());
}

#[tokio::test]
async fn distances_in_another_datacenter_are_from_the_node_of_the_asked_agents_name() {
    let here = Agent::builder().node_name("here").in_memory();
    let there = Agent::builder().datacenter("dc2").in_memory();
    here.join_wan(&there);
    for (name, seconds) in [("a", 0.1), ("b", 0.4), ("here", 0.5)] {
        node(&there, name, seconds).await;
    }
    let near_agent = json!({"Service": "web", "Near": "_agent"});
    create(&there, json!({"Name": "near", "Service": near_agent})).await;
    for path in [
        "/v1/catalog/service/web?dc=dc2&near=_agent",
        "/v1/health/service/web?dc=dc2&near=_agent",
        "/v1/query/near/execute?dc=dc2",
    ] {
        assert_eq!(order(&here, path).await, "here b a", "{path}");
    }
    let path = "/v1/query/near/execute?dc=dc2&near=a";
    assert_eq!(order(&here, path).await, "a b here");
    // Asked there, it is from the other end.
    let path = "/v1/catalog/service/web?near=_agent";
    assert_eq!(order(&there, path).await, "a b here");
}

#[tokio::test]
async fn a_query_turns_to_the_nearest_datacenter_first() {
    let here = Agent::in_memory();
    let mut others = Vec::new();
    for (name, seconds) in [("dc2", 0.3), ("dc3", 0.1), ("dc4", 0.2)] {
        let other = Agent::builder().datacenter(name).in_memory();
        other.move_in_wan(seconds);
        node(&other, name, 0.0).await;
        here.join_wan(&other);
        others.push(other);
    }
    let all = get(&here, "/v1/catalog/datacenters").await.json();
    assert_eq!(all, json!(["dc1", "dc3", "dc4", "dc2"]));
    let failover = json!({"NearestN": 2, "Datacenters": ["dc2", "dc3", "dc9"]});
    let service = json!({"Service": "web", "Failover": failover});
    create(&here, json!({"Name": "web", "Service": service})).await;
    for (number, found) in [(1, "dc3"), (2, "dc4"), (3, "dc2")] {
        let answer = get(&here, "/v1/query/web/execute").await.json();
        assert_eq!(
            (&answer["Failovers"], &answer["Datacenter"]),
            (&json!(number), &json!(found))
        );
        let gone = json!({"Node": found}).to_string();
        let agent = others.iter().find(|it| it.datacenter() == found).unwrap();
        put(agent, "/v1/catalog/deregister", &gone).await;
    }
    let answer = get(&here, "/v1/query/web/execute").await.json();
    assert_eq!(
        (&answer["Failovers"], &answer["Nodes"]),
        (&json!(3), &json!([]))
    );
}

#[tokio::test]
async fn an_agent_that_was_taken_out_of_the_catalog_has_its_place_again_with_its_node() {
    let agent = Agent::in_memory();
    place(&agent, "embedded", 0.7).await;
    put(&agent, "/v1/catalog/deregister", r#"{"Node":"embedded"}"#).await;
    let places = get(&agent, "/v1/coordinate/nodes").await;
    assert_eq!(places.json(), json!([]));
    put(&agent, "/v1/agent/service/register", r#"{"Name":"web"}"#).await;
    let again = get(&agent, "/v1/coordinate/nodes").await;
    assert_eq!(again.json()[0]["Node"], "embedded");
    assert_eq!(again.json()[0]["Coord"]["Vec"][0], 0.0);
    assert!(again.index() > places.index());
}

#[tokio::test]
async fn a_query_near_its_caller_is_told_by_a_proxy_where_that_is() {
    let agent = Agent::in_memory();
    for (name, seconds) in [("a", 0.1), ("b", 0.4)] {
        node(&agent, name, seconds).await;
    }
    let entry = json!({"Node": "caller", "Address": "192.0.2.77"}).to_string();
    put(&agent, "/v1/catalog/register", &entry).await;
    place(&agent, "caller", 0.5).await;
    create(
        &agent,
        json!({"Name": "web", "Service": {"Service": "web", "Near": "_ip"}}),
    )
    .await;
    // Without a word of a proxy it is the agent's own node, at the loopback address.
    assert_eq!(order(&agent, "/v1/query/web/execute").await, "a b");
    let request = Request::get("/v1/query/web/execute");
    let request = request.header("x-forwarded-for", " 192.0.2.77, 192.0.2.1");
    let answer = answered(&agent, request, "").await.json();
    let first = &answer["Nodes"][0]["Node"]["Node"];
    assert_eq!(first, "b");
}
