use std::time::Duration;

use http::Method;

use super::Canned;
use crate::ErrorKind;
use crate::ident::Token;

#[tokio::test]
async fn any_endpoint_is_reached_with_parameters_and_body() {
    let canned = Canned::good(r#"{"ID":"x"}"#);
    let answer = canned
        .client()
        .raw(Method::PUT, "/v1/event/fire/a b")
        .query("service", "we&b")
        .flag("stale")
        .datacenter("dc2")
        .token(Token::new("secret").unwrap())
        .body("hello")
        .await
        .unwrap();
    assert_eq!(
        canned.asked(),
        "PUT /v1/event/fire/a%20b?service=we%26b&stale&dc=dc2"
    );
    let request = canned.request();
    assert_eq!(request.body(), "hello");
    assert_eq!(
        request.headers()["content-type"],
        "application/octet-stream"
    );
    assert_eq!(request.headers()["x-consul-token"], "secret");
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.meta().index(), Some(7));
    assert_eq!(answer.headers()["x-consul-index"], "7");
    assert_eq!(answer.body(), r#"{"ID":"x"}"#);
    let json: serde_json::Value = answer.decode().unwrap();
    assert_eq!(json["ID"], "x");
    assert_eq!(
        answer.decode::<Vec<u8>>().unwrap_err().kind(),
        ErrorKind::Decode
    );
}

#[tokio::test]
async fn a_body_may_be_json_and_a_read_may_wait() {
    let canned = Canned::good("true");
    canned
        .client()
        .raw(Method::PUT, "/v1/txn")
        .json(&serde_json::json!([{"KV": {}}]))
        .await
        .unwrap();
    let request = canned.request();
    assert_eq!(request.body(), r#"[{"KV":{}}]"#);
    assert_eq!(request.headers()["content-type"], "application/json");

    let canned = Canned::good("[]");
    canned
        .client()
        .raw(Method::GET, "/v1/event/list")
        .wait_for_change(9, Duration::from_secs(5))
        .await
        .unwrap();
    assert_eq!(canned.asked(), "GET /v1/event/list?index=9&wait=5000ms");
}

#[tokio::test]
async fn an_error_answer_is_an_error_unless_any_status_is_wanted() {
    let conflict = || Canned::new(409, &[], r#"{"Errors":[]}"#);
    let canned = conflict();
    let request = canned.client().raw(Method::PUT, "/v1/txn");
    let err = request.clone().await.unwrap_err();
    assert_eq!(err.kind(), ErrorKind::Conflict);
    assert_eq!(err.status().unwrap(), 409);

    let canned = conflict();
    let request = canned.client().raw(Method::PUT, "/v1/txn");
    let answer = request.send_for_any_status().await.unwrap();
    assert_eq!(answer.status(), 409);
    assert_eq!(answer.body(), r#"{"Errors":[]}"#);
}

#[tokio::test]
async fn a_path_or_parameter_that_would_be_misunderstood_is_refused_before_it_is_sent() {
    for path in [
        "",
        "/",
        "/v1",
        "/v1/",
        "v1/kv/a",
        "/v2/kv/a",
        "http://elsewhere/v1/kv/a",
        "/v1//kv/a",
        "/v1/kv/../agent/self",
        "/v1/./kv",
        "/v1/kv/a?stale",
        "/v1/kv/a\r\nX-Evil: 1",
    ] {
        let canned = Canned::good("true");
        let err = canned.client().raw(Method::GET, path).await.unwrap_err();
        assert_eq!(err.kind(), ErrorKind::Invalid, "{path}");
        assert!(canned.was_not_asked(), "{path}");
    }
    for name in ["", "a b", "a=b", "a&b", "ü", "a#"] {
        let canned = Canned::good("true");
        let request = canned.client().raw(Method::GET, "/v1/x").query(name, "1");
        assert_eq!(request.await.unwrap_err().kind(), ErrorKind::Invalid);
        assert!(canned.was_not_asked(), "{name}");
    }
    let client = Canned::good("true").client();
    let late = client.raw(Method::GET, "/v1/x");
    let late = late.wait_for_change(1, Duration::ZERO).await.unwrap_err();
    assert_eq!(late.kind(), ErrorKind::Invalid);
}
