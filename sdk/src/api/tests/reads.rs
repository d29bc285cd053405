//! What all reads and writes have in common.

use std::time::Duration;

use super::Canned;
use crate::api::{Cached, Consistency};
use crate::ident::Token;
use crate::{Client, ErrorKind};

#[tokio::test]
async fn options_of_a_read_become_parameters() {
    let canned = Canned::good("[]");
    canned
        .client()
        .catalog()
        .nodes()
        .stale()
        .filter(r#"Meta.os == "linux""#)
        .near("_agent")
        .node_meta("os", "linux")
        .node_meta("rack", "a b")
        .datacenter("dc2")
        .await
        .unwrap();
    assert_eq!(
        canned.asked(),
        "GET /v1/catalog/nodes?filter=Meta.os%20%3D%3D%20%22linux%22&near=_agent\
         &node-meta=os%3Alinux&node-meta=rack%3Aa%20b&stale&dc=dc2"
    );
    assert!(canned.request().headers().get("cache-control").is_none());
    assert!(canned.request().headers().get("x-consul-token").is_none());
}

#[tokio::test]
async fn each_consistency_has_its_parameter() {
    for (consistency, query) in [
        (Consistency::Default, ""),
        (Consistency::Stale, "?stale"),
        (Consistency::Consistent, "?consistent"),
        (Consistency::Leader, "?leader"),
        (
            Consistency::MaxStale(Duration::from_secs(5)),
            "?max_stale=5000ms",
        ),
    ] {
        let canned = Canned::good("[]");
        let client = canned.client();
        let read = client.catalog().nodes().consistency(consistency);
        read.await.unwrap();
        assert_eq!(canned.asked(), format!("GET /v1/catalog/nodes{query}"));
    }
}

#[tokio::test]
async fn a_cached_read_says_how_old_it_may_be_and_a_consistent_one_cannot_be_cached() {
    let canned = Canned::good("[]");
    let client = canned.client();
    let cached = Cached::any_age()
        .max_age(Duration::from_secs(3))
        .stale_if_error(Duration::from_secs(9));
    client.catalog().nodes().cached(cached).await.unwrap();
    assert_eq!(canned.asked(), "GET /v1/catalog/nodes?cached");
    assert_eq!(
        canned.request().headers()["cache-control"],
        "max-age=3, stale-if-error=9"
    );

    let canned = Canned::good("[]");
    let client = canned.client();
    let both = client.catalog().nodes().consistent();
    let err = both.cached(Cached::any_age()).await.unwrap_err();
    assert_eq!(err.kind(), ErrorKind::Invalid);
    assert!(canned.was_not_asked());
}

#[tokio::test]
async fn a_blocking_read_sends_index_and_wait() {
    let canned = Canned::good("[]");
    let client = canned.client();
    let read = client.catalog().nodes();
    read.wait_for_change(u64::MAX, Duration::from_millis(1500))
        .await
        .unwrap();
    assert_eq!(
        canned.asked(),
        "GET /v1/catalog/nodes?index=18446744073709551615&wait=1500ms"
    );
}

#[tokio::test]
async fn what_consul_says_about_an_answer_is_handed_on() {
    let canned = Canned::new(
        200,
        &[
            ("X-Consul-Index", "42"),
            ("X-Consul-KnownLeader", "true"),
            ("X-Consul-LastContact", "15"),
            ("X-Cache", "HIT"),
            ("Age", "4"),
        ],
        "[]",
    );
    let answer = canned.client().catalog().nodes().await.unwrap();
    let meta = answer.meta();
    assert_eq!(meta.index(), Some(42));
    assert_eq!(meta.known_leader(), Some(true));
    assert_eq!(meta.last_contact(), Some(Duration::from_millis(15)));
    assert!(meta.cache().unwrap().hit);
}

#[tokio::test]
async fn client_and_call_settings_meet_and_the_calls_prevail() {
    let canned = Canned::good("[]");
    let client = Client::builder()
        .transport(canned.clone())
        .address("https://consul.internal:8501/gate")
        .token("of-the-client")
        .datacenter("dc1")
        .namespace("team a")
        .partition("part")
        .basic_auth("user", "pass")
        .build()
        .unwrap();
    let read = client.catalog().nodes().datacenter("dc2");
    read.token(Token::new("of-the-call").unwrap())
        .await
        .unwrap();
    let request = canned.request();
    assert_eq!(
        request.uri(),
        "https://consul.internal:8501/gate/v1/catalog/nodes?dc=dc2&ns=team%20a&partition=part"
    );
    assert_eq!(request.headers()["x-consul-token"], "of-the-call");
    assert!(request.headers()["x-consul-token"].is_sensitive());
    assert_eq!(request.headers()["authorization"], "Basic dXNlcjpwYXNz");
}

#[tokio::test]
async fn a_datacenter_that_cannot_be_is_refused_before_it_is_sent() {
    let canned = Canned::good("[]");
    let client = canned.client();
    let err = client
        .catalog()
        .nodes()
        .datacenter("a/b")
        .await
        .unwrap_err();
    assert_eq!(err.kind(), ErrorKind::Invalid);
    assert!(canned.was_not_asked());
}

#[tokio::test]
async fn a_token_that_the_server_repeats_does_not_reach_the_error() {
    let canned = Canned::new(403, &[], "token s3cr3t: Permission denied");
    let token = Token::new("s3cr3t").unwrap();
    let client = canned.client().with_token(token);
    let err = client.catalog().nodes().await.unwrap_err();
    assert_eq!(err.kind(), ErrorKind::PermissionDenied);
    let told = format!("{err} {err:?}");
    assert!(!told.contains("s3cr3t"), "{told}");
    assert!(told.contains("GET /v1/catalog/nodes"), "{told}");
}

#[tokio::test]
async fn answers_that_are_not_json_of_the_endpoint_are_decoding_errors() {
    for body in [
        &b""[..],
        b"<html>",
        b"[",
        b"[{\"Node\":{}}]",
        b"{\"a\":1}",
        b"\xff\xfe",
        b"[1]",
        b"[null]",
        b"[] trailing",
    ] {
        let canned = Canned::good(bytes::Bytes::copy_from_slice(body));
        let err = canned.client().health().service("web").await.unwrap_err();
        assert_eq!(err.kind(), ErrorKind::Decode, "{body:?}: {err}");
        assert_eq!(err.status().unwrap(), 200);
    }
}

#[tokio::test]
async fn deep_nesting_is_an_error_and_not_a_stack_overflow() {
    let canned = Canned::good("[".repeat(1_000_000));
    let err = canned.client().health().service("web").await.unwrap_err();
    assert_eq!(err.kind(), ErrorKind::Decode);
    let deep = format!(
        r#"[{{"Node":{{"Node":"n"}},"Service":{{"ID":"a","Service":"a"}},"New":{}"#,
        "[".repeat(1_000_000)
    );
    let canned = Canned::good(deep);
    let err = canned.client().health().service("web").await.unwrap_err();
    assert_eq!(err.kind(), ErrorKind::Decode);
}
