use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, StatusCode};
use serde_json::{Value, json};
use tokio::time::Instant;
use tower_service::Service as _;

use super::{get, park, put, register, send};
use crate::embedded::Agent;

/// Creates a session that depends on its node alone.
pub(super) async fn create(agent: &Agent, mut wish: Value) -> String {
    if wish.get("NodeChecks").is_none() {
        wish["NodeChecks"] = json!([]);
    }
    let created = put(agent, "/v1/session/create", &wish.to_string()).await;
    assert_eq!(created.status, StatusCode::OK, "{}", created.text());
    created.json()["ID"].as_str().unwrap().to_owned()
}

pub(super) async fn acquire(agent: &Agent, key: &str, session: &str) -> bool {
    let uri = format!("/v1/kv/{key}?acquire={session}");
    put(agent, &uri, "v").await.text() == "true"
}

pub(super) async fn key(agent: &Agent, key: &str) -> Value {
    get(agent, &format!("/v1/kv/{key}")).await.json()[0].clone()
}

#[tokio::test]
async fn a_session_that_says_nothing_is_bound_to_the_nodes_health() {
    let agent = Agent::in_memory();
    let created = put(&agent, "/v1/session/create", "").await.json();
    let id = created["ID"].as_str().unwrap();
    let info = get(&agent, &format!("/v1/session/info/{id}")).await;
    assert_eq!(
        info.json(),
        json!([{
            "ID": id,
            "Name": "",
            "Node": "embedded",
            "LockDelay": 15_000_000_000_u64,
            "Behavior": "release",
            "TTL": "",
            "NodeChecks": ["serfHealth"],
            "ServiceChecks": null,
            "CreateIndex": 13,
            "ModifyIndex": 13,
        }])
    );
    assert_eq!(info.index(), 13);
    assert_eq!(info.header("x-consul-effective-consistency"), "");
    assert_eq!(get(&agent, "/v1/session/list").await.json(), info.json());
    let of_node = get(&agent, "/v1/session/node/EMBEDDED").await;
    assert_eq!(of_node.json(), info.json());
    assert_eq!(get(&agent, "/v1/session/node/no").await.json(), json!([]));
}

#[tokio::test]
async fn a_session_is_what_it_asked_to_be() {
    let agent = Agent::in_memory();
    for (wish, member, want) in [
        (
            json!({"LockDelay": "500ms"}),
            "LockDelay",
            json!(500_000_000),
        ),
        (
            json!({"LockDelay": 5}),
            "LockDelay",
            json!(5_000_000_000_u64),
        ),
        (json!({"LockDelay": 1.5}), "LockDelay", json!(1_000_000_000)),
        (json!({"LockDelay": 1000}), "LockDelay", json!(1000)),
        (json!({"LockDelay": 0}), "LockDelay", json!(0)),
        (
            json!({"LockDelay": "120s"}),
            "LockDelay",
            json!(120_000_000_000_u64),
        ),
        (json!({"ttl": "1m30s"}), "TTL", json!("1m30s")),
        (json!({"TTL": "86400s"}), "TTL", json!("86400s")),
        (json!({"Behavior": "delete"}), "Behavior", json!("delete")),
        (json!({"Name": "n", "Foo": 1}), "Name", json!("n")),
        (json!({"NodeChecks": []}), "NodeChecks", json!([])),
        (json!({"NodeChecks": null}), "NodeChecks", json!(null)),
        (json!({"Checks": []}), "NodeChecks", json!([])),
        (
            json!({"Checks": ["serfHealth"], "NodeChecks": ["serfHealth"]}),
            "Checks",
            json!(null),
        ),
        (json!({"ServiceChecks": []}), "ServiceChecks", json!([])),
        (
            json!({"ServiceChecks": [{"ID": "serfHealth"}]}),
            "ServiceChecks",
            json!([{"ID": "serfHealth", "Namespace": ""}]),
        ),
    ] {
        let created = put(&agent, "/v1/session/create", &wish.to_string()).await;
        let created = created.json();
        let id = created["ID"].as_str().unwrap();
        let info = get(&agent, &format!("/v1/session/info/{id}")).await;
        assert_eq!(info.json()[0][member], want, "{wish}");
    }
}

#[tokio::test]
async fn a_session_that_cannot_be_is_refused_in_consuls_words() {
    let agent = Agent::in_memory();
    for (body, status, text) in [
        (
            r#"{"TTL":"9s"}"#,
            500,
            "Invalid Session TTL '9000000000', must be between [10s=24h0m0s]",
        ),
        (
            r#"{"TTL":"-10s"}"#,
            500,
            "Invalid Session TTL '-10000000000', must be between [10s=24h0m0s]",
        ),
        (
            r#"{"TTL":"10"}"#,
            500,
            "Session TTL '10' invalid: time: missing unit in duration \"10\"",
        ),
        (
            r#"{"TTL":10}"#,
            400,
            "Request decode failed: json: cannot unmarshal number into Go struct field .TTL of type string",
        ),
        (r#"{"Behavior":"x"}"#, 500, "Invalid Behavior setting 'x'"),
        (r#"{"Node":""}"#, 500, "Must provide Node"),
        (r#"{"Node":"x"}"#, 500, "Missing node registration"),
        (
            r#"{"NodeChecks":["x"]}"#,
            500,
            "Missing check 'x' registration",
        ),
        (
            r#"{"LockDelay":"x"}"#,
            400,
            "Request decode failed: time: invalid duration \"x\"",
        ),
        ("{", 400, "Request decode failed: unexpected EOF"),
        (
            "[]",
            400,
            "Request decode failed: json: cannot unmarshal array into Go value of type struct { LockDelay interface {}; *structs.Alias }",
        ),
    ] {
        let refused = put(&agent, "/v1/session/create", body).await;
        assert_eq!(
            (refused.status.as_u16(), refused.text()),
            (status, text),
            "{body}"
        );
    }
}

#[tokio::test]
async fn a_wish_that_came_in_pieces_is_not_looked_at() {
    let agent = Agent::in_memory();
    let request = Request::put("/v1/session/create")
        .header("Transfer-Encoding", "chunked")
        .body(Bytes::from_static(br#"{"TTL":"10s"}"#))
        .unwrap();
    let created = agent.clone().call(request).await.unwrap();
    assert_eq!(created.status(), StatusCode::OK);
    let session = &get(&agent, "/v1/session/list").await.json()[0];
    assert_eq!(
        (&session["TTL"], &session["NodeChecks"]),
        (&json!(""), &json!(["serfHealth"]))
    );
}

const UNKNOWN: &str = "11111111-1111-1111-1111-111111111111";

#[tokio::test]
async fn unknown_sessions_are_told_from_what_is_no_session() {
    let agent = Agent::in_memory();
    let malformed = "failed session lookup: index error: UUID must be 36 characters";
    let gone = format!("Session id '{UNKNOWN}' not found");
    for (method, path, id, status, text) in [
        (Method::PUT, "destroy", UNKNOWN, 200, "true"),
        (Method::PUT, "destroy", "abc", 500, malformed),
        (Method::PUT, "destroy", "", 400, "Missing session"),
        (Method::PUT, "renew", UNKNOWN, 404, &gone),
        (Method::PUT, "renew", "abc", 500, malformed),
        (Method::PUT, "renew", "", 400, "Missing session"),
        (Method::GET, "info", UNKNOWN, 200, "[]"),
        (Method::GET, "info", "abc", 500, malformed),
        (Method::GET, "info", "", 400, "Missing session"),
        (Method::GET, "node", "", 400, "Missing node name"),
        (
            Method::POST,
            "renew",
            UNKNOWN,
            405,
            "method POST not allowed",
        ),
    ] {
        let uri = format!("/v1/session/{path}/{id}");
        let answer = send(&agent, method, &uri, "").await;
        let got = (answer.status.as_u16(), answer.text());
        assert_eq!(got, (status, text), "{uri}");
    }
    let failed = get(&agent, "/v1/session/info/abc").await;
    assert_eq!(failed.index(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_session_lives_as_long_as_it_is_renewed() {
    let agent = Agent::in_memory();
    let id = create(&agent, json!({"TTL": "10s", "LockDelay": "0s"})).await;
    assert!(acquire(&agent, "k", &id).await);
    let parked = park(&agent, &format!("/v1/session/info/{id}?index=13")).await;
    tokio::time::sleep(Duration::from_secs(15)).await;
    let renewed = put(&agent, &format!("/v1/session/renew/{id}"), "").await;
    assert_eq!(renewed.json()[0]["TTL"], "10s");
    assert_eq!(renewed.header("x-consul-index"), "");
    let (ended, took) = parked.answer().await;
    assert_eq!(took, Duration::from_secs(35));
    assert_eq!((ended.json(), ended.index()), (json!([]), 15));
    assert_eq!(key(&agent, "k").await["Session"], Value::Null);
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_a_key_is_woken_when_its_holder_ends() {
    let agent = Agent::in_memory();
    register(&agent, super::WEB).await;
    let bound = json!({"ServiceChecks": [{"ID": "service:w1"}], "LockDelay": "5s"});
    let one = create(&agent, bound).await;
    let two = create(&agent, json!({})).await;
    assert!(acquire(&agent, "k", &one).await);
    let held = get(&agent, "/v1/kv/k").await;
    assert_eq!(held.json()[0]["Session"], one.as_str());
    let parked = park(&agent, &format!("/v1/kv/k?index={}", held.index())).await;
    assert!(!acquire(&agent, "k", &two).await);
    // The check misses its heartbeat.
    let (freed, took) = parked.answer().await;
    assert_eq!(took, Duration::from_secs(10));
    let freed = &freed.json()[0];
    assert_eq!(
        (&freed["Session"], &freed["LockIndex"]),
        (&json!(null), &json!(1))
    );
    let started = Instant::now();
    assert!(!acquire(&agent, "k", &two).await);
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert!(acquire(&agent, "k", &two).await);
    assert_eq!(started.elapsed(), Duration::from_secs(5));
    assert_eq!(key(&agent, "k").await["LockIndex"], 2);
}

#[tokio::test(start_paused = true)]
async fn a_watch_of_sessions_wakes_for_those_it_asked_for() {
    let agent = Agent::in_memory();
    let mine = create(&agent, json!({})).await;
    let node = r#"{"Node":"ext","Address":"10.0.0.1"}"#;
    put(&agent, "/v1/catalog/register", node).await;
    let watched = format!("/v1/session/info/{mine}?index=13&wait=4s");
    let info = park(&agent, &watched).await;
    let of_node = park(&agent, "/v1/session/node/embedded?index=13&wait=4s").await;
    let list = park(&agent, "/v1/session/list?index=13&wait=4s").await;
    create(&agent, json!({"Node": "ext"})).await;
    let (list, took) = list.answer().await;
    assert_eq!((list.index(), took), (15, Duration::ZERO));
    for slept in [info, of_node] {
        let (answer, took) = slept.answer().await;
        assert!(took >= Duration::from_secs(4));
        assert_eq!(
            (answer.index(), answer.json().as_array().unwrap().len()),
            (13, 1)
        );
    }
}

#[tokio::test]
async fn a_key_is_acquired_and_released_as_by_consul() {
    let agent = Agent::in_memory();
    let id = create(&agent, json!({})).await;
    let invalid = format!("invalid session \"{UNKNOWN}\"");
    let malformed = "failed session lookup: index error: UUID must be 36 characters";
    for (query, status, text) in [
        ("acquire=", 500, "missing session"),
        ("release=", 500, "missing session"),
        ("acquire=abc", 500, malformed),
        ("release=abc", 200, "false"),
        (&format!("acquire={UNKNOWN}"), 500, &invalid),
        (&format!("release={UNKNOWN}"), 200, "false"),
        (&format!("acquire={id}&flags=7"), 200, "true"),
        (
            "release=a&acquire=b+c&x=%2F",
            400,
            "Conflicting flags: acquire=b+c&release=a&x=%2F",
        ),
    ] {
        let answer = put(&agent, &format!("/v1/kv/k?{query}"), "v").await;
        let got = (answer.status.as_u16(), answer.text());
        assert_eq!(got, (status, text), "{query}");
    }
    let held = key(&agent, "k").await;
    assert_eq!((&held["Flags"], &held["LockIndex"]), (&json!(7), &json!(1)));
    let released = put(&agent, &format!("/v1/kv/k?release={id}"), "").await;
    assert_eq!(released.text(), "true");
    let free = key(&agent, "k").await;
    assert_eq!((&free["Flags"], &free["Value"]), (&json!(0), &json!(null)));
    assert!(free.get("Session").is_none());
}
