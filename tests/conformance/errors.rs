//! Each kind of error that an agent in good health can give, told from the others.

use std::time::Duration;

use http::Method;
use lictor::api::health::Status;
use lictor::{Error, ErrorKind};

use crate::{Kind, TestAgent};

on_both_agents![
    a_request_that_is_wrong_is_refused,
    a_filter_that_is_wrong_is_refused,
    an_unknown_endpoint_or_method_is_told,
    an_unknown_check_is_told,
    an_unknown_service_is_told,
    an_unknown_datacenter_is_told,
    a_body_above_consuls_limit_is_told,
    a_definition_that_consul_refuses_is_told,
    an_error_says_what_was_asked_and_what_was_answered,
    an_error_of_the_agent_has_no_index,
];

/// An error must be of the expected kind, with a text that is Consul's and names the request.
fn is(err: &Error, kind: ErrorKind, status: u16) {
    assert_eq!(err.kind(), kind, "{err}");
    assert_eq!(err.status().unwrap().as_u16(), status, "{err}");
    assert!(!err.is_transient(), "{err}");
}

async fn a_request_that_is_wrong_is_refused(agent: &TestAgent) {
    let client = agent.client();
    let key = agent.name("key");
    for (parameter, value) in [
        ("index", "x"),
        ("wait", "5"),
        ("wait", "x"),
        ("index", "-1"),
    ] {
        let request = client.raw(Method::GET, format!("/v1/kv/{key}"));
        let err = request.query(parameter, value).await.unwrap_err();
        is(&err, ErrorKind::Refused, 400);
    }
    let request = client.raw(Method::GET, format!("/v1/kv/{key}"));
    let err = request.flag("stale").flag("consistent").await.unwrap_err();
    is(&err, ErrorKind::Refused, 400);
    let request = client.raw(Method::PUT, "/v1/catalog/register");
    let err = request.body("{").await.unwrap_err();
    is(&err, ErrorKind::Refused, 400);
    let request = client.raw(Method::PUT, format!("/v1/kv/{key}"));
    let err = request
        .query("cas", "1")
        .query("acquire", "x")
        .await
        .unwrap_err();
    is(&err, ErrorKind::Refused, 400);
}

async fn a_filter_that_is_wrong_is_refused(agent: &TestAgent) {
    let health = agent.client().health();
    for filter in [
        "Service.ID ==",
        "Service.Nothing == \"x\"",
        "(",
        "Service.Port == \"x\"",
    ] {
        let read = health.service(agent.name("web")).filter(filter);
        let err = read.await.unwrap_err();
        assert_eq!(err.kind(), ErrorKind::Refused, "{filter}: {err}");
    }
}

async fn an_unknown_endpoint_or_method_is_told(agent: &TestAgent) {
    let client = agent.client();
    let request = client.raw(Method::GET, "/v1/no/such/endpoint");
    let err = request.await.unwrap_err();
    match agent.kind() {
        // Up to 1.10 the body is empty, so that no more can be said.
        Kind::Consul(major, minor) if (major, minor) < (1, 11) => {
            is(&err, ErrorKind::NotFound, 404);
        }
        Kind::Consul(..) => is(&err, ErrorKind::Unsupported, 404),
        Kind::Embedded => {
            assert!(matches!(
                err.kind(),
                ErrorKind::NotFound | ErrorKind::Unsupported
            ));
        }
    }
    let request = client.raw(Method::DELETE, "/v1/catalog/nodes");
    is(&request.await.unwrap_err(), ErrorKind::Unsupported, 405);
}

async fn an_unknown_check_is_told(agent: &TestAgent) {
    let client = agent.client().agent();
    let update = client.update_check(agent.name("none"), Status::Passing, "");
    let err = update.await.unwrap_err();
    assert_eq!(err.kind(), ErrorKind::UnknownCheck, "{err}");
    assert!(err.is_unknown_check() && err.is_not_found());
    assert!(!err.is_transient());
}

async fn an_unknown_service_is_told(agent: &TestAgent) {
    let client = agent.client().agent();
    let maintenance = client.enable_service_maintenance(agent.name("none"), "");
    let err = maintenance.await.unwrap_err();
    is(&err, ErrorKind::UnknownService, 404);
    assert!(err.is_not_found());
}

async fn an_unknown_datacenter_is_told(agent: &TestAgent) {
    let kv = agent.client().kv();
    let err = kv
        .get(agent.name("key"))
        .datacenter("nowhere")
        .await
        .unwrap_err();
    is(&err, ErrorKind::UnknownDatacenter, 500);
    let err = kv
        .put(agent.name("key"), "")
        .datacenter("nowhere")
        .await
        .unwrap_err();
    is(&err, ErrorKind::UnknownDatacenter, 500);
}

async fn a_body_above_consuls_limit_is_told(agent: &TestAgent) {
    let key = agent.name("key");
    let request = agent.client().raw(Method::PUT, format!("/v1/kv/{key}"));
    let err = request.body(vec![b'x'; 512 * 1024 + 1]).await.unwrap_err();
    is(&err, ErrorKind::RequestTooLarge, 413);
}

async fn a_definition_that_consul_refuses_is_told(agent: &TestAgent) {
    let client = agent.client();
    for body in [
        r#"{"Name":""}"#.to_owned(),
        format!(r#"{{"Name":"{}","NoSuchField":1}}"#, agent.name("web")),
        format!(r#"{{"Name":"{}","Port":"x"}}"#, agent.name("web")),
        format!(
            r#"{{"Name":"{}","Check":{{"HTTP":"http://x"}}}}"#,
            agent.name("web")
        ),
    ] {
        let request = client.raw(Method::PUT, "/v1/agent/service/register");
        let err = request.body(body.clone()).await.unwrap_err();
        assert_eq!(err.kind(), ErrorKind::Refused, "{body}: {err}");
    }
}

async fn an_error_says_what_was_asked_and_what_was_answered(agent: &TestAgent) {
    let key = agent.name("key");
    let request = agent.client().raw(Method::GET, format!("/v1/kv/{key}"));
    let err = request.query("wait", "5 lightyears").await.unwrap_err();
    let text = err.to_string();
    assert!(text.contains(&format!("GET /v1/kv/{key}")), "{text}");
    assert!(text.contains("400") && text.contains("wait time"), "{text}");
    assert!(text.contains(" on http"), "which agent: {text}");
    // Not the query: it may hold what is nobody's business.
    assert!(!text.contains("lightyears"), "{text}");
}

async fn an_error_of_the_agent_has_no_index(agent: &TestAgent) {
    let client = agent.client();
    let request = client.raw(Method::GET, "/v1/catalog/nodes");
    let request = request
        .query("dc", "nowhere")
        .timeout(Duration::from_secs(20));
    let answer = request.send_for_any_status().await.unwrap();
    assert_eq!(answer.status(), 500);
    // Consul writes made-up ones into the headers of its errors.
    assert_eq!(answer.meta().index(), None);
}
