//! Options that cannot be meant are told when the channel is built, with what would be right.

use std::time::Duration;

use http::Request;
use lictor_tower::channel::{Builder, Channel};
use lictor_tower::error::ErrorKind;
use lictor_tower::retry::{Hedge, RetryPolicy};

use crate::support::{Server, Told, channel_with, get, registry, text};

fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

#[tokio::test]
async fn times_that_could_never_count_are_refused() {
    type Change = fn(Builder<Told>) -> Builder<Told>;
    let attempt = |millis| RetryPolicy::new().attempt_timeout(ms(millis));
    let cases: [(Change, &str); 5] = [
        (
            |builder| builder.retry(RetryPolicy::new().attempt_timeout(Duration::ZERO)),
            "attempt_timeout is zero; give a time above",
        ),
        (
            |builder| {
                let policy = RetryPolicy::new().attempt_timeout(ms(5_000));
                builder.timeout(ms(1_000)).retry(policy)
            },
            "attempt_timeout is 5s, but timeout only 1s; give no more",
        ),
        (
            |builder| builder.timeout(ms(100)).hedge(Hedge::after(ms(101))),
            "hedge is 101ms, but timeout only 100ms; give no more",
        ),
        (
            |builder| builder.retry(RetryPolicy::new().backoff(ms(250), ms(25))),
            "backoff begins with 250ms and ends with 25ms; give the shorter one first",
        ),
        (
            |builder| builder.hedge(Hedge::after(Duration::ZERO)),
            "hedge is zero; give a time above",
        ),
    ];
    for (change, says) in cases {
        let (_registry, told) = registry();
        let error = change(Channel::from_source(told)).build().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
        assert!(error.to_string().contains(says), "{error}");
    }
    // What is only of no use is not wrong.
    let (_registry, told) = registry();
    let builder = Channel::from_source(told).timeout(ms(250));
    let policy = attempt(250).backoff(Duration::ZERO, Duration::ZERO);
    let builder = builder.retry(policy).wait_for_ready(Duration::ZERO);
    assert!(builder.build().is_ok());
}

#[tokio::test]
async fn a_channel_that_waits_for_no_time_fails_at_once() {
    let (registry, channel) = channel_with(&[], |builder| builder.wait_for_ready(Duration::ZERO));
    registry.tell(&[]);
    let error = channel.request(get("/")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoEndpoints);
}

#[tokio::test]
async fn a_name_that_consul_cannot_be_asked_for_is_told_at_once() {
    let client = lictor::Client::builder().build().unwrap();
    for (name, says) in [
        ("", "must not be empty"),
        ("/web", "must not begin with `/`"),
        ("a\nb", "service name"),
    ] {
        let error = Channel::builder(client.clone()).service(name).build();
        let error = error.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid, "{name:?}");
        let cause = std::error::Error::source(&error).unwrap().to_string();
        assert!(cause.contains(says), "{cause}");
    }
    // Consul takes all of these.
    for name in ["a b", "a@b", "web:", "*", "[", "Größe", "web/api"] {
        let built = Channel::builder(client.clone()).service(name).build();
        assert!(built.is_ok(), "{name:?} {built:?}");
    }
}

#[tokio::test]
async fn a_host_that_no_request_can_name_is_told_at_once() {
    for host in ["", "a b", "a@b", "web/api"] {
        let (_registry, told) = registry();
        let error = Channel::from_source(told).host(host).build().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
        assert!(error.to_string().contains("is no host"), "{error}");
    }
    let server = Server::start().await;
    let (_registry, channel) = channel_with(&[&server], |builder| builder.host("web:8080"));
    let request = Request::get("/host").body(String::new()).unwrap();
    let response = channel.request(request).await.unwrap();
    assert_eq!(text(response).await, "web:8080 /host");
}
