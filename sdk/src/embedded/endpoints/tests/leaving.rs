use std::io;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode};
use serde_json::json;
use tower_service::Service as _;

use super::sessions::{acquire, create, key};
use super::{WEB, get, park, put, register};
use crate::embedded::{Agent, Fault};

async fn attempt(agent: &Agent, request: http::request::Builder) -> io::Result<StatusCode> {
    let request = request.body(Bytes::from_static(b"v")).unwrap();
    let answer = agent.clone().call(request).await?;
    Ok(answer.status())
}

async fn failed(agent: &Agent, request: http::request::Builder) -> io::ErrorKind {
    attempt(agent, request).await.unwrap_err().kind()
}

#[tokio::test(start_paused = true)]
async fn a_session_can_be_expired() {
    let agent = Agent::in_memory();
    let id = create(&agent, json!({"TTL": "10s", "LockDelay": "5s"})).await;
    assert!(acquire(&agent, "k", &id).await);
    let parked = park(&agent, "/v1/kv/k?index=14").await;
    assert!(agent.expire_session(&id));
    let (freed, took) = parked.answer().await;
    assert_eq!(took, Duration::ZERO);
    assert_eq!(
        (freed.index(), &freed.json()[0]["Session"]),
        (15, &json!(null))
    );
    let renewed = put(&agent, &format!("/v1/session/renew/{id}"), "").await;
    assert_eq!(renewed.status, StatusCode::NOT_FOUND);
    let other = create(&agent, json!({})).await;
    assert!(!acquire(&agent, "k", &other).await);
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert!(acquire(&agent, "k", &other).await);
    assert!(!agent.expire_session(&id));
    assert!(!agent.expire_session("no session"));
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_left_answers_nobody_until_it_is_back() {
    let agent = Agent::in_memory();
    register(&agent, WEB).await;
    let id = create(&agent, json!({})).await;
    assert!(acquire(&agent, "k", &id).await);
    let index = get(&agent, "/v1/kv/k").await.index();
    let strict = park(&agent, &format!("/v1/kv/k?index={index}")).await;
    let stale = park(&agent, "/v1/health/service/web?index=13&stale").await;
    agent.leave();
    for parked in [strict, stale] {
        let (answer, took) = parked.answer().await;
        assert_eq!(took, Duration::ZERO);
        assert_eq!(answer.status, StatusCode::INTERNAL_SERVER_ERROR);
        assert_eq!(answer.text(), "rpc error making call: EOF");
    }
    let asked = agent.requests().total();
    let refused = failed(&agent, Request::get("/v1/kv/k")).await;
    assert_eq!(refused, io::ErrorKind::ConnectionRefused);
    assert_eq!(agent.requests().total(), asked, "it never arrived");

    agent.rejoin();
    assert_eq!(key(&agent, "k").await["Session"], json!(null));
    assert_eq!(get(&agent, "/v1/session/list").await.json(), json!([]));
    let services = get(&agent, "/v1/catalog/services").await.json();
    assert_eq!(services, json!({"consul": [], "web": []}));
    create(&agent, json!({})).await;
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_is_told_to_leave_says_so_last() {
    let agent = Agent::in_memory();
    register(&agent, WEB).await;
    let left = put(&agent, "/v1/agent/leave?ns=a", "").await;
    assert_eq!((left.status, left.text()), (StatusCode::OK, ""));
    let refused = failed(&agent, Request::get("/v1/agent/self")).await;
    assert_eq!(refused, io::ErrorKind::ConnectionRefused);
    agent.wipe();
    agent.rejoin();
    let services = get(&agent, "/v1/catalog/services").await.json();
    assert_eq!(
        services,
        json!({"consul": []}),
        "it comes back with nothing"
    );
}

#[tokio::test(start_paused = true)]
async fn who_is_held_up_when_the_agent_leaves_is_cut_off() {
    let agent = Agent::in_memory();
    agent.inject(Fault::hang().times(1));
    let leave = async {
        while agent.requests().total() == 0 {
            tokio::task::yield_now().await;
        }
        agent.leave();
    };
    let (cut, ()) = tokio::join!(failed(&agent, Request::get("/v1/kv/k")), leave);
    assert_eq!(cut, io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn a_lost_answer_is_of_a_request_that_was_carried_out() {
    let agent = Agent::in_memory();
    agent.inject(Fault::lose_answer().under("/v1/kv/").times(1));
    let lost = failed(&agent, Request::put("/v1/kv/k")).await;
    assert_eq!(lost, io::ErrorKind::ConnectionReset);
    assert_eq!(key(&agent, "k").await["Value"], "dg==");
    agent.inject(Fault::disconnect().times(1));
    failed(&agent, Request::put("/v1/kv/other")).await;
    let other = get(&agent, "/v1/kv/other").await;
    assert_eq!(other.status, StatusCode::NOT_FOUND);
}
