//! Answers that are kept while a retry needs the connection that they came on.

use std::sync::Mutex;
use std::time::Duration;

use bytes::Bytes;
use http::Response;
use http_body_util::{BodyExt, Full};
use lictor_tower::channel::Builder;
use lictor_tower::retry::RetryPolicy;

use crate::early::feed;
use crate::scripted::{Do, Scripted, ok, over, status};
use crate::support::{Reply, Told, get, in_flight, text};

/// One connection, which a retry has to share with the answer before it.
fn one(waiting: Duration) -> impl FnOnce(Builder<Told>) -> Builder<Told> {
    move |builder| {
        builder
            .retry(RetryPolicy::new())
            .max_connections_per_endpoint(1)
            .waiting_timeout(waiting)
    }
}

fn unavailable(body: Reply) -> Do {
    let mut response = Response::new(body);
    *response.status_mut() = http::StatusCode::SERVICE_UNAVAILABLE;
    Do::Answer(response)
}

fn whole(body: Vec<u8>) -> Reply {
    Full::new(Bytes::from(body)).boxed_unsync()
}

const LONG: Duration = Duration::from_secs(60);

#[tokio::test]
async fn a_retry_gets_the_only_connection_when_the_answer_before_it_is_read() {
    for size in [2, 60_000] {
        let server = Scripted::start(move |before| match before {
            0 => unavailable(whole(vec![b'x'; size])),
            _ => ok(),
        })
        .await;
        let (_registry, channel) = over(&[&server], one(LONG));
        let response = channel.request(get("/")).await.unwrap();
        assert_eq!((response.status().as_u16(), server.requests()), (200, 2));
        assert_eq!(text(response).await, "ok");
        assert_eq!(in_flight(&channel), 0);
    }
}

#[tokio::test]
async fn an_answer_that_is_read_ahead_is_given_whole_if_no_better_one_comes() {
    let server = Scripted::start(|before| match before % 2 {
        0 => unavailable(whole(vec![b'x'; 50_000])),
        _ => Do::Crash,
    })
    .await;
    let (_registry, channel) = over(&[&server], |builder| {
        one(LONG)(builder).retry(RetryPolicy::new().max_retries(1))
    });
    let response = channel.request(get("/")).await.unwrap();
    assert_eq!((response.status().as_u16(), server.requests()), (503, 2));
    assert_eq!(
        http_body::Body::size_hint(response.body()).exact(),
        Some(50_000)
    );
    assert_eq!(text(response).await, "x".repeat(50_000));
    assert_eq!(in_flight(&channel), 0);
}

#[tokio::test]
async fn an_answer_that_is_too_long_to_be_kept_is_the_answer() {
    let server = Scripted::start(|_| unavailable(whole(vec![b'x'; 1_000_000]))).await;
    let (_registry, channel) = over(&[&server], one(LONG));
    let response = channel.request(get("/")).await.unwrap();
    assert_eq!((response.status().as_u16(), server.requests()), (503, 1));
    assert_eq!(text(response).await, "x".repeat(1_000_000));
    assert_eq!(in_flight(&channel), 0);
}

#[tokio::test]
async fn an_answer_that_does_not_end_is_given_when_the_time_in_line_is_over() {
    let (feed, body) = feed();
    feed.send("first").unwrap();
    let body = Mutex::new(Some(body.boxed_unsync()));
    let server = Scripted::start(move |_| match body.lock().unwrap().take() {
        Some(body) => unavailable(body),
        None => status(500),
    })
    .await;
    let (_registry, channel) = over(&[&server], one(Duration::from_millis(50)));
    let response = channel.request(get("/")).await.unwrap();
    assert_eq!((response.status().as_u16(), server.requests()), (503, 1));
    feed.send(" and last").unwrap();
    drop(feed);
    assert_eq!(text(response).await, "first and last");
    assert_eq!(in_flight(&channel), 0);
}
