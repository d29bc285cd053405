//! What is sorted by round-trip time, and from where.

use std::time::Duration;

use lictor::api::catalog::{Entry, NewCheck, NewService};
use lictor::api::health::Status;
use lictor::api::query::PreparedQuery;
use serde_json::{Value, json};
use support::{eventually, http};

use crate::{TestAgent, woken};

on_both_agents![
    lists_are_sorted_from_a_node_and_those_without_a_place_come_last,
    from_a_node_without_a_place_nothing_is_sorted,
    distances_count_heights_and_adjustments,
    a_place_that_changed_wakes_nobody,
    a_node_takes_its_place_with_it,
    a_query_sorts_what_it_finds,
];

const SOON: Duration = Duration::from_secs(20);
/// Longer than any test.
const LONG: Duration = Duration::from_secs(60);

/// A node with one instance of the case's service; with a place, if it is told.
async fn node(agent: &TestAgent, stem: &str, seconds: Option<f64>) {
    let entry = Entry::new(agent.name(stem), "192.0.2.9")
        .meta("of", agent.name("case"))
        .service(NewService::new(agent.name("web")).id(stem).port(80))
        .check(NewCheck::new(stem, "Alive", Status::Passing).service_id(stem));
    agent.client().catalog().register(entry).await.unwrap();
    if let Some(seconds) = seconds {
        place(agent, stem, [seconds, 0.0], 0.0, 0.000_01).await;
    }
}

async fn place(agent: &TestAgent, stem: &str, at: [f64; 2], adjustment: f64, height: f64) {
    let vec = [at[0], at[1], 0.0, 0.0, 0.0, 0.0, 0.0, 0.0];
    let body = json!({
        "Node": agent.name(stem),
        "Coord": {"Vec": vec, "Error": 0.1, "Adjustment": adjustment, "Height": height},
    });
    let url = format!("{}/v1/coordinate/update", agent.http_url());
    let told = http::put(&url, body.to_string()).await.unwrap();
    assert_eq!(told.status, 200, "{}", told.text());
    // Consul gathers them for some time.
    let client = agent.client();
    eventually(SOON, async || {
        let known = client.coordinate().node(agent.name(stem)).await.unwrap();
        known
            .first()
            .is_some_and(|known| known.coordinate().vector() == vec)
    })
    .await;
}

/// Four nodes, of which `c` has no place; `b` is the nearest to the agent itself.
async fn four(agent: &TestAgent) {
    for (stem, seconds) in [
        ("a", Some(0.3)),
        ("b", Some(0.1)),
        ("c", None),
        ("d", Some(0.2)),
    ] {
        node(agent, stem, seconds).await;
    }
}

/// An agent tells its own place some time after it has started.
async fn placed(agent: &TestAgent) {
    let client = agent.client();
    let about = client.agent().about().await.unwrap();
    let own = about.config().node_name().to_string();
    eventually(LONG, async || {
        let known = client.coordinate().node(&*own).await.unwrap();
        !known.is_empty()
    })
    .await;
}

async fn gone(agent: &TestAgent, stems: &[&str]) {
    for stem in stems {
        let catalog = agent.client().catalog();
        catalog.deregister_node(agent.name(stem)).await.unwrap();
    }
}

/// The stems of the nodes that an answer lists, in its order.
async fn order(agent: &TestAgent, path: &str, near: &str) -> String {
    let of = agent.name("case");
    let url = agent.http_url();
    let url = format!("{url}/v1/{path}?node-meta=of:{of}&near={near}");
    let answer = http::get(&url).await.unwrap();
    stems(agent, &answer.json())
}

fn stems(agent: &TestAgent, list: &Value) -> String {
    let nodes = list.as_array().expect("a list").iter();
    let names = nodes.map(|item| {
        let name = item["Node"]["Node"].as_str().or(item["Node"].as_str());
        name.expect("a name")
    });
    let prefix = agent.name("");
    names
        .filter_map(|name| name.strip_prefix(&prefix))
        .collect()
}

async fn lists_are_sorted_from_a_node_and_those_without_a_place_come_last(agent: &TestAgent) {
    four(agent).await;
    let web = agent.name("web");
    placed(agent).await;
    for path in [
        "catalog/nodes",
        &*format!("catalog/service/{web}"),
        &*format!("health/service/{web}"),
        &*format!("health/checks/{web}"),
        "health/state/passing",
    ] {
        for (near, sorted) in [("b", "bdac"), ("d", "dabc"), ("a", "adbc")] {
            let near = agent.name(near);
            assert_eq!(order(agent, path, &near).await, sorted, "{path}");
            let shouted = near.to_uppercase();
            assert_eq!(order(agent, path, &shouted).await, sorted, "{path}");
        }
        assert_eq!(order(agent, path, "_agent").await, "bdac", "{path}");
        // One that nobody knows, and one of which a query alone makes something.
        for near in [agent.name("none"), "_ip".to_owned(), String::new()] {
            assert_eq!(order(agent, path, &near).await, "abcd", "{path} {near}");
        }
    }
    // What of two is named first counts.
    let twice = format!("{}&near={}", agent.name("a"), agent.name("b"));
    assert_eq!(order(agent, "catalog/nodes", &twice).await, "adbc");
    let client = agent.client();
    let nodes = client.catalog().nodes().near(agent.name("b"));
    let sorted = nodes.node_meta("of", agent.name("case")).await.unwrap();
    assert_eq!(sorted[0].name(), agent.name("b").as_str());
    gone(agent, &["a", "b", "c", "d"]).await;
}

async fn from_a_node_without_a_place_nothing_is_sorted(agent: &TestAgent) {
    four(agent).await;
    let path = format!("health/service/{}", agent.name("web"));
    let near = agent.name("c");
    assert_eq!(order(agent, &path, &near).await, "abcd");
    assert_eq!(order(agent, "catalog/nodes", &near).await, "abcd");
    gone(agent, &["a", "b", "c", "d"]).await;
}

async fn distances_count_heights_and_adjustments(agent: &TestAgent) {
    for stem in ["a", "b", "c", "d", "e"] {
        node(agent, stem, None).await;
    }
    place(agent, "a", [0.0, 0.0], 0.0, 0.0).await;
    // 50 ms by 3, 4 and 5, behind 30 ms of its own.
    place(agent, "b", [0.03, 0.04], 0.0, 0.03).await;
    // 90 ms that are measured to be 60.
    place(agent, "c", [0.09, 0.0], -0.03, 0.0).await;
    // An adjustment that would make the whole negative does not count.
    place(agent, "d", [0.07, 0.0], -0.2, 0.0).await;
    place(agent, "e", [0.05, 0.0], 0.04, 0.0).await;
    let near = agent.name("a");
    assert_eq!(order(agent, "catalog/nodes", &near).await, "acdbe");
    gone(agent, &["a", "b", "c", "d", "e"]).await;
}

async fn a_place_that_changed_wakes_nobody(agent: &TestAgent) {
    four(agent).await;
    let (client, web) = (agent.client(), agent.name("web"));
    let read = || client.health().service(&*web).near(agent.name("b"));
    let nodes = |found: &[std::sync::Arc<lictor::api::health::ServiceEntry>]| {
        let stem = |name: &str| name.strip_prefix(&*agent.name("")).unwrap().to_owned();
        let names = found.iter().map(|entry| stem(entry.node().name().as_str()));
        names.collect::<String>()
    };
    let found = read().await.unwrap();
    assert_eq!(nodes(&found), "bdac");
    let index = found.meta().index().unwrap();
    let changing = async || {
        place(agent, "a", [0.11, 0.0], 0.0, 0.000_01).await;
        let entry = Entry::new(agent.name("c"), "192.0.2.9")
            .meta("of", agent.name("case"))
            .service(NewService::new(&*web).id("c").port(81));
        client.catalog().register(entry).await.unwrap();
    };
    let woke = woken(read().wait_for_change(index, LONG), changing).await;
    let woke = woke.unwrap();
    // Whoever waited has slept through the one, and then sees both.
    assert_eq!(nodes(&woke), "badc");
    assert_eq!(woke[3].port(), 81);
    gone(agent, &["a", "b", "c", "d"]).await;
}

async fn a_node_takes_its_place_with_it(agent: &TestAgent) {
    four(agent).await;
    let client = agent.client();
    // Whoever asks is told the name by which it asked.
    let shouted = agent.name("b").to_uppercase();
    let known = client.coordinate().node(&*shouted).await.unwrap();
    assert_eq!(known[0].node(), shouted.as_str());
    let index = async || client.coordinate().nodes().await.unwrap().meta().index();
    let before = index().await;
    gone(agent, &["b"]).await;
    assert!(index().await > before);
    let places = client.coordinate().node(agent.name("b")).await.unwrap();
    assert!(places.is_empty());
    node(agent, "b", None).await;
    let near = agent.name("a");
    assert_eq!(order(agent, "catalog/nodes", &near).await, "adbc");
    gone(agent, &["a", "b", "c", "d"]).await;
}

async fn a_query_sorts_what_it_finds(agent: &TestAgent) {
    four(agent).await;
    placed(agent).await;
    let (client, web) = (agent.client(), agent.name("web"));
    let query = |name: &str, near: Option<&str>| {
        let query = PreparedQuery::new(&*web).name(agent.name(name));
        match near {
            Some(near) => query.near(near),
            None => query,
        }
    };
    let (a, c) = (agent.name("a"), agent.name("c"));
    for (name, near) in [
        ("shuffled", None),
        ("from-a", Some(&*a)),
        ("from-c", Some(&*c)),
        ("from-agent", Some("_agent")),
        ("from-caller", Some("_ip")),
    ] {
        let created = client.query().create(&query(name, near)).await;
        created.unwrap();
    }
    let url = agent.http_url();
    let found = async |name: &str, parameters: &str| {
        let name = agent.name(name);
        let url = format!("{url}/v1/query/{name}/execute?{parameters}");
        let answer = http::get(&url).await.unwrap().json();
        stems(agent, &answer["Nodes"])
    };
    let (near_b, near_c) = (
        format!("near={}", agent.name("b")),
        format!("near={}", agent.name("c")),
    );
    for _ in 0..4 {
        assert_eq!(found("from-a", "").await, "adbc");
        assert_eq!(found("from-agent", "").await, "bdac");
        // Who asks does so from where the agent is.
        assert_eq!(found("from-caller", "").await, "bdac");
        // Who asks has the last word.
        assert_eq!(found("from-a", &near_b).await, "bdac");
        assert_eq!(found("shuffled", "near=_agent&limit=2").await, "bd");
        // One without a place is the nearest to itself, and the rest stays shuffled.
        for name in ["from-c", "shuffled"] {
            let mut rest = found(name, &near_c).await.into_bytes();
            assert_eq!(rest.remove(0), b'c');
            rest.sort_unstable();
            assert_eq!(rest, b"abd");
        }
        assert_eq!(found("from-c", "limit=1").await, "c");
    }
    let mut orders = Vec::new();
    eventually(SOON, async || {
        orders.push(found("shuffled", "").await);
        orders.iter().any(|order| *order != orders[0])
    })
    .await;
    let kept = client.query().explain(agent.name("from-a")).await.unwrap();
    let url = format!("{url}/v1/query/{}", kept.id());
    let kept = http::get(&url).await.unwrap().json();
    assert_eq!(kept[0]["Service"]["Near"], a);
    for name in ["shuffled", "from-a", "from-c", "from-agent", "from-caller"] {
        let kept = client.query().explain(agent.name(name)).await.unwrap();
        client.query().delete(kept.id()).await.unwrap();
    }
    gone(agent, &["a", "b", "c", "d"]).await;
}
