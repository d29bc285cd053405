mod leaving;
mod places;
mod sessions;
mod txn;

use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::BodyExt as _;
use serde_json::{Value, json};
use tokio::time::Instant;
use tower_service::Service as _;

use crate::embedded::{Agent, Fault};
use crate::task::Worker;

struct Answer {
    status: StatusCode,
    head: Response<()>,
    body: Bytes,
}

impl Answer {
    fn header(&self, name: &str) -> &str {
        self.head
            .headers()
            .get(name)
            .map_or("", |value| value.to_str().unwrap())
    }

    fn index(&self) -> u64 {
        self.header("x-consul-index").parse().unwrap()
    }

    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }
}

async fn send(agent: &Agent, method: Method, uri: &str, body: &str) -> Answer {
    let request = Request::builder().method(method).uri(uri);
    answered(agent, request, body).await
}

async fn answered(agent: &Agent, request: http::request::Builder, body: &str) -> Answer {
    let request = request.body(Bytes::from(body.to_owned())).unwrap();
    let (head, body) = agent.clone().call(request).await.unwrap().into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    Answer {
        status: head.status,
        head: Response::from_parts(head, ()),
        body,
    }
}

async fn get(agent: &Agent, uri: &str) -> Answer {
    send(agent, Method::GET, uri, "").await
}

async fn put(agent: &Agent, uri: &str, body: &str) -> Answer {
    send(agent, Method::PUT, uri, body).await
}

async fn register(agent: &Agent, body: &str) {
    let answer = put(agent, "/v1/agent/service/register", body).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
}

/// A query in the background, parked when this returns.
async fn park(agent: &Agent, uri: &str) -> Parked {
    let before = agent.requests().open_queries();
    let started = Instant::now();
    let (mine, uri) = (agent.clone(), uri.to_owned());
    let worker = Worker::spawn(&tokio::runtime::Handle::current(), |_| async move {
        (get(&mine, &uri).await, started.elapsed())
    });
    while agent.requests().open_queries() == before {
        tokio::task::yield_now().await;
    }
    tokio::task::yield_now().await;
    Parked(worker)
}

struct Parked(Worker<(Answer, Duration)>);

impl Parked {
    async fn answer(self) -> (Answer, Duration) {
        self.0.stop().await.unwrap()
    }
}

const WEB: &str = r#"{"Name":"web","ID":"w1","Port":80,"Check":{"TTL":"10s","Status":"passing"}}"#;

#[tokio::test(start_paused = true)]
async fn a_blocking_query_returns_when_its_index_grows() {
    let agent = Agent::in_memory();
    register(&agent, WEB).await;
    let index = get(&agent, "/v1/health/service/web").await.index();
    assert_eq!(index, 13);
    let parked = park(&agent, "/v1/health/service/web?index=13&wait=60s").await;
    register(&agent, r#"{"Name":"other"}"#).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    put(&agent, "/v1/agent/check/fail/service:w1", "").await;
    let (answer, took) = parked.answer().await;
    assert_eq!(took, Duration::from_secs(3));
    assert!(answer.index() > index);
    assert_eq!(answer.json()[0]["Checks"][1]["Status"], "critical");
    assert_eq!(agent.requests().open_queries(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_blocking_query_ends_with_its_wait_and_at_most_a_sixteenth_more() {
    let agent = Agent::in_memory();
    for (wait, whole) in [("16s", 16), ("0s", 300), ("1h", 600)] {
        let uri = format!("/v1/kv/none?index=1&wait={wait}");
        let started = Instant::now();
        let answer = get(&agent, &uri).await;
        let took = started.elapsed();
        let whole = Duration::from_secs(whole);
        assert!(
            took >= whole && took <= whole + whole / 16,
            "{wait}: {took:?}"
        );
        assert_eq!(answer.status, StatusCode::NOT_FOUND);
        assert_eq!(answer.index(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn an_index_beyond_the_servers_is_held_through_changes() {
    let agent = Agent::in_memory();
    let parked = park(&agent, "/v1/kv/k?index=9999&wait=20s").await;
    put(&agent, "/v1/kv/k", "v").await;
    let (answer, took) = parked.answer().await;
    assert!(took >= Duration::from_secs(20));
    assert_eq!(answer.index(), 13);
}

#[tokio::test(start_paused = true)]
async fn a_query_is_not_woken_by_what_it_did_not_read_even_if_its_index_moves() {
    let agent = Agent::in_memory();
    register(&agent, WEB).await;
    register(&agent, r#"{"Name":"other"}"#).await;
    let index = get(&agent, "/v1/health/checks/web").await.index();
    let uri = format!("/v1/health/checks/web?index={index}&wait=5s");
    let parked = park(&agent, &uri).await;
    put(&agent, "/v1/agent/service/deregister/other", "").await;
    let (answer, took) = parked.answer().await;
    assert!(took >= Duration::from_secs(5));
    assert_eq!(answer.index(), index);
    assert!(get(&agent, "/v1/health/checks/web").await.index() > index);
}

#[tokio::test(start_paused = true)]
async fn a_missed_heartbeat_wakes_who_watches_exactly_then() {
    let agent = Agent::in_memory();
    register(&agent, WEB).await;
    let parked = park(&agent, "/v1/health/service/web?index=13&wait=60s&passing").await;
    let (answer, took) = parked.answer().await;
    assert_eq!(took, Duration::from_secs(10));
    assert_eq!(answer.json(), json!([]));
}

#[tokio::test(start_paused = true)]
async fn a_thousand_simulated_hours_of_heartbeats_take_no_time() {
    let agent = Agent::in_memory();
    register(&agent, WEB).await;
    for _ in 0..10_000 {
        tokio::time::sleep(Duration::from_secs(360)).await;
        put(&agent, "/v1/agent/check/pass/service:w1", "").await;
    }
    let answer = get(&agent, "/v1/health/service/web?passing").await;
    assert_eq!(answer.json().as_array().unwrap().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_dropped_query_is_no_longer_counted() {
    let agent = Agent::in_memory();
    let uri = "/v1/kv/k?index=9999";
    let waited = tokio::time::timeout(Duration::from_secs(1), get(&agent, uri)).await;
    assert!(waited.is_err());
    assert_eq!(agent.requests().open_queries(), 0);
    assert_eq!(agent.requests().count(&Method::GET, "/v1/kv/k"), 1);
    assert_eq!(agent.requests().count_under("/v1/health/"), 0);
}

#[tokio::test(start_paused = true)]
async fn one_service_is_watched_by_its_hash() {
    let agent = Agent::in_memory();
    register(&agent, WEB).await;
    let first = get(&agent, "/v1/agent/service/w1").await;
    let hash = first.header("x-consul-contenthash").to_owned();
    assert_eq!(first.json()["ContentHash"], hash.as_str());
    let parked = park(&agent, &format!("/v1/agent/service/w1?hash={hash}")).await;
    put(&agent, "/v1/agent/check/warn/service:w1", "").await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    register(&agent, r#"{"Name":"web","ID":"w1","Port":81}"#).await;
    let (second, took) = parked.answer().await;
    assert_eq!(took, Duration::from_secs(5));
    assert_ne!(second.header("x-consul-contenthash"), hash);
    assert_eq!(second.json()["Port"], 81);
}

#[tokio::test(start_paused = true)]
async fn a_service_that_goes_while_it_is_watched_is_not_found_at_once() {
    let agent = Agent::in_memory();
    register(&agent, WEB).await;
    let hash = get(&agent, "/v1/agent/service/w1").await;
    let hash = hash.header("x-consul-contenthash");
    let parked = park(&agent, &format!("/v1/agent/service/w1?hash={hash}")).await;
    put(&agent, "/v1/agent/service/deregister/w1", "").await;
    let (answer, took) = parked.answer().await;
    assert_eq!(
        (answer.status, took),
        (StatusCode::NOT_FOUND, Duration::ZERO)
    );
    assert_eq!(answer.text(), "unknown service ID: w1");
}

#[tokio::test(start_paused = true)]
async fn a_restore_wakes_a_watch_with_the_old_answer_and_lowers_the_index() {
    let agent = Agent::in_memory();
    put(&agent, "/v1/kv/k", "old").await;
    let snapshot = agent.snapshot();
    put(&agent, "/v1/kv/k", "new").await;
    let parked = park(&agent, "/v1/kv/k?index=14&wait=20s").await;
    agent.restore(&snapshot);
    let (woken, took) = parked.answer().await;
    assert_eq!(took, Duration::ZERO);
    assert_eq!(
        (woken.index(), &woken.json()[0]["Value"]),
        (14, &json!("bmV3"))
    );
    let now = get(&agent, "/v1/kv/k").await;
    assert_eq!((now.index(), &now.json()[0]["Value"]), (13, &json!("b2xk")));
    put(&agent, "/v1/kv/k", "newer").await;
    assert!(get(&agent, "/v1/kv/k").await.index() > 14);
}

#[tokio::test(start_paused = true)]
async fn new_servers_begin_at_a_low_index_and_learn_the_agents_services() {
    let agent = Agent::in_memory();
    for at in 0..50 {
        put(&agent, "/v1/kv/k", &at.to_string()).await;
    }
    register(&agent, WEB).await;
    agent.reset_servers();
    assert_eq!(get(&agent, "/v1/kv/k").await.status, StatusCode::NOT_FOUND);
    let health = get(&agent, "/v1/health/service/web").await;
    assert!(health.index() < 20, "{}", health.index());
    assert_eq!(health.json()[0]["Checks"].as_array().unwrap().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn without_a_leader_stale_reads_go_on_and_all_else_fails() {
    let agent = Agent::in_memory();
    register(&agent, WEB).await;
    let strict = park(&agent, "/v1/health/service/web?index=13").await;
    let stale = park(&agent, "/v1/health/service/web?index=13&wait=4s&stale").await;
    agent.lose_leader();
    let (failed, took) = strict.answer().await;
    assert_eq!(took, Duration::ZERO);
    assert_eq!(failed.status, StatusCode::INTERNAL_SERVER_ERROR);
    assert_eq!(failed.text(), "rpc error making call: EOF");
    assert_eq!(
        (failed.index(), failed.header("x-consul-knownleader")),
        (1, "false")
    );
    let (kept, took) = stale.answer().await;
    assert!(took >= Duration::from_secs(4));
    assert_eq!(kept.header("x-consul-knownleader"), "false");
    let started = Instant::now();
    let put = put(&agent, "/v1/kv/k", "v").await;
    assert_eq!(started.elapsed(), Duration::from_secs(7));
    assert_eq!(
        (put.status.as_u16(), put.text()),
        (500, "No cluster leader")
    );
    agent.elect_leader();
    assert_eq!(get(&agent, "/v1/kv/k").await.status, StatusCode::NOT_FOUND);
}

#[tokio::test(start_paused = true)]
async fn faults_hit_as_often_and_where_they_should() {
    let agent = Agent::in_memory();
    let refused = Fault::answer(StatusCode::INTERNAL_SERVER_ERROR, "No cluster leader");
    agent.inject(refused.under("/v1/kv/").times(2));
    agent.inject(Fault::delay(Duration::from_secs(2)));
    for want in [500, 500, 404] {
        let started = Instant::now();
        assert_eq!(get(&agent, "/v1/kv/k").await.status.as_u16(), want);
        assert_eq!(started.elapsed(), Duration::from_secs(2));
    }
    assert_eq!(get(&agent, "/v1/agent/checks").await.status, StatusCode::OK);
    agent.clear_faults();
    agent.inject(Fault::hang().times(1));
    let hung = tokio::time::timeout(Duration::from_secs(3600), get(&agent, "/v1/kv/k")).await;
    assert!(hung.is_err());
    assert_eq!(get(&agent, "/v1/kv/k").await.status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn bodies_can_be_cut_garbled_and_refused() {
    let agent = Agent::in_memory();
    let request = || {
        Request::get("/v1/catalog/nodes")
            .body(Bytes::new())
            .unwrap()
    };
    agent.inject(Fault::truncate().times(1));
    let cut = agent.clone().call(request()).await.unwrap();
    let error = cut.into_body().collect().await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::UnexpectedEof);
    agent.inject(Fault::garble().times(1));
    let garbled = get(&agent, "/v1/catalog/nodes").await;
    assert!(serde_json::from_slice::<Value>(&garbled.body).is_err());
    agent.inject(Fault::disconnect().times(1));
    let error = agent.clone().call(request()).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    assert_eq!(
        get(&agent, "/v1/catalog/nodes").await.status,
        StatusCode::OK
    );
}

#[tokio::test(start_paused = true)]
async fn a_frozen_agent_answers_when_it_thaws() {
    let agent = Agent::in_memory();
    register(&agent, WEB).await;
    agent.freeze();
    let waited = tokio::time::timeout(Duration::from_secs(60), get(&agent, "/v1/kv/k")).await;
    assert!(waited.is_err());
    agent.thaw();
    let checks = get(&agent, "/v1/agent/checks").await.json();
    assert_eq!(checks["service:w1"]["Output"], "TTL expired");
}

#[tokio::test]
async fn a_token_is_asked_for() {
    let agent = Agent::builder().require_token("s3cret").in_memory();
    assert!(!format!("{agent:?}").contains("s3cret"));
    let missing = put(&agent, "/v1/kv/k", "v").await;
    assert_eq!(
        (missing.status.as_u16(), missing.text()),
        (403, "Permission denied")
    );
    let wrong = put(&agent, "/v1/kv/k?token=other", "v").await;
    assert_eq!(
        (wrong.status.as_u16(), wrong.text()),
        (403, "ACL not found")
    );
    let right = Request::put("/v1/kv/k")
        .header("X-Consul-Token", "s3cret")
        .body(Bytes::from_static(b"v"))
        .unwrap();
    let right = agent.clone().call(right).await.unwrap();
    assert_eq!(right.status(), StatusCode::OK);
    agent.revoke_tokens();
    let revoked = get(&agent, "/v1/kv/k?token=s3cret").await;
    assert_eq!(revoked.text(), "ACL not found");
}

#[tokio::test]
async fn errors_have_consuls_status_and_text() {
    let agent = Agent::in_memory();
    let big = "x".repeat(512 * 1024 + 1);
    for (method, uri, body, status, text) in [
        (
            Method::GET,
            "/v1/kv/k?stale&consistent",
            "",
            400,
            "Cannot specify ?stale with ?consistent, conflicting semantics.",
        ),
        (Method::GET, "/v1/kv/k?wait=5", "", 400, "Invalid wait time"),
        (Method::GET, "/v1/kv/k?index=x", "", 400, "Invalid index"),
        (
            Method::GET,
            "/v1/kv/k?dc=nope",
            "",
            500,
            "No path to datacenter",
        ),
        (Method::GET, "/v1/kv/", "", 400, "Missing key name"),
        (
            Method::GET,
            "/v1/kv/k?ns=a",
            "",
            400,
            "Bad request: Invalid query parameter: \"ns\" - Namespaces are a Consul Enterprise feature",
        ),
        (Method::POST, "/v1/kv/k", "", 405, "method POST not allowed"),
        (
            Method::PUT,
            "/v1/kv/k?cas=x",
            "",
            500,
            "strconv.ParseUint: parsing \"x\": invalid syntax",
        ),
        (
            Method::PUT,
            "/v1/kv/k",
            big.as_str(),
            413,
            "Request body(524289 bytes) too large, max size: 524288 bytes. See https://www.consul.io/docs/agent/options.html#kv_max_value_size.",
        ),
        (
            Method::PUT,
            "/v1/agent/service/register",
            "",
            400,
            "Request decode failed: EOF",
        ),
        (
            Method::PUT,
            "/v1/agent/service/register",
            r#"{"Name":"x","Foo":1}"#,
            400,
            "Request decode failed: json: unknown field \"Foo\"",
        ),
        (
            Method::PUT,
            "/v1/agent/service/register",
            r#"{"Name":"x","Check":{"TTL":"10"}}"#,
            400,
            "Request decode failed: time: missing unit in duration \"10\"",
        ),
        (
            Method::PUT,
            "/v1/agent/check/pass/nope",
            "",
            500,
            "CheckID \"nope\" does not have associated TTL",
        ),
        (
            Method::GET,
            "/v1/agent/services?filter=Foo==1",
            "",
            500,
            "Failed to create boolean expression evaluator: Selector \"Foo\" is not valid",
        ),
        (
            Method::PUT,
            "/v1/acl/token",
            "{}",
            501,
            "The embedded agent does not serve PUT /v1/acl/token",
        ),
        (Method::GET, "/v1/nope", "", 404, ""),
        (Method::GET, "/v1/kv/a%00b", "", 400, ""),
    ] {
        let answer = send(&agent, method, uri, body).await;
        assert_eq!(
            (answer.status.as_u16(), answer.text()),
            (status, text),
            "{uri}"
        );
    }
}

#[tokio::test]
async fn a_path_that_is_not_clean_is_redirected() {
    let agent = Agent::in_memory();
    for (uri, to) in [
        ("/v1/kv/a//b", "/v1/kv/a/b"),
        ("/v1/kv/a/../b?x=y", "/v1/kv/b?x=y"),
        ("/v1/kv", "/v1/kv/"),
    ] {
        let answer = get(&agent, uri).await;
        assert_eq!(answer.status, StatusCode::MOVED_PERMANENTLY);
        assert_eq!(answer.header("location"), to);
    }
}

#[tokio::test]
async fn keys_keep_their_bytes_and_their_names() {
    let agent = Agent::in_memory();
    let answer = put(&agent, "/v1/kv/a%2Fb%20c%3F%C3%A9?flags=7", "v\u{0}v").await;
    assert_eq!(answer.text(), "true");
    let key = &get(&agent, "/v1/kv/a/b%20c%3f%c3%a9").await.json()[0];
    assert_eq!(key["Key"], "a/b c?é");
    assert_eq!((&key["Flags"], &key["Value"]), (&json!(7), &json!("dgB2")));
    let raw = get(&agent, "/v1/kv/a/b%20c%3f%c3%a9?raw").await;
    assert_eq!(&raw.body[..], b"v\0v");
    put(&agent, "/v1/kv/a/d/e", "").await;
    let keys = get(&agent, "/v1/kv/a/?keys&separator=/").await.json();
    assert_eq!(keys, json!(["a/b c?é", "a/d/"]));
}

#[tokio::test]
async fn equal_seeds_give_equal_answers() {
    let mut bodies = Vec::new();
    for _ in 0..2 {
        let agent = Agent::builder().seed(3).in_memory();
        register(&agent, WEB).await;
        bodies.push(get(&agent, "/v1/health/service/web").await.body);
    }
    assert_eq!(bodies[0], bodies[1]);
}

#[test]
fn the_answers_future_can_be_sent() {
    fn assert_send<T: Send>(_: &T) {}
    let request = Request::get("/").body(Bytes::new()).unwrap();
    assert_send(&Agent::in_memory().call(request));
}
