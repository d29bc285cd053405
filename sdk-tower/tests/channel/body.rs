use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::Request;
use http_body_util::BodyExt;
use hyper::body::{Body as _, Frame};
use lictor_tower::channel::{Channel, Protocol};
use lictor_tower::error::ErrorKind;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use crate::support::{
    Server, channel, channel_with, eventually, get, in_flight, post, registry, text, who,
};

#[tokio::test]
async fn a_response_counts_as_load_until_its_body_has_ended() {
    let server = Server::start().await;
    let (_registry, channel) = channel(&[&server]);
    let response = channel.request(get("/stream")).await.unwrap();
    assert_eq!(in_flight(&channel), 1);
    server.seen.gate.add_permits(1);
    let mut body = response.into_body();
    while let Some(frame) = body.frame().await {
        frame.unwrap();
    }
    assert_eq!(in_flight(&channel), 0);
    drop(body);
    assert_eq!(in_flight(&channel), 0);
}

#[tokio::test]
async fn a_body_of_known_length_frees_its_endpoint_with_the_last_byte() {
    let server = Server::start().await;
    let (_registry, channel) = channel(&[&server]);
    let response = channel.request(get("/")).await.unwrap();
    let mut body = response.into_body();
    assert!(body.size_hint().exact().is_some());
    body.frame().await.unwrap().unwrap();
    assert!(body.is_end_stream());
    assert_eq!(in_flight(&channel), 0);
}

#[tokio::test]
async fn an_empty_body_frees_its_endpoint_at_once() {
    let server = Server::start().await;
    let (_registry, channel) = channel(&[&server]);
    let response = channel.request(get("/fail")).await.unwrap();
    assert!(response.body().is_end_stream());
    assert_eq!(in_flight(&channel), 0);
    for _ in 0..10 {
        channel.request(get("/fail")).await.unwrap();
    }
    assert_eq!(server.seen.accepted(), 1);
}

#[tokio::test]
async fn a_body_dropped_half_way_frees_its_endpoint_and_closes_its_connection() {
    let server = Server::start().await;
    let (_registry, channel) = channel(&[&server]);
    for _ in 0..10 {
        let mut body = channel.request(get("/stream")).await.unwrap().into_body();
        body.frame().await.unwrap().unwrap();
        drop(body);
        assert_eq!(in_flight(&channel), 0);
    }
    eventually("its connections close", || server.seen.open() == 0).await;
    who(&channel).await;
}

#[tokio::test]
async fn a_small_body_that_nobody_reads_does_not_cost_the_connection() {
    let server = Server::start().await;
    let (_registry, channel) = channel(&[&server]);
    for _ in 0..10 {
        let response = channel.request(get("/")).await.unwrap();
        drop(response);
        who(&channel).await;
    }
    assert!(server.seen.accepted() <= 2, "{}", server.seen.accepted());
}

#[tokio::test]
async fn a_body_that_breaks_off_is_an_error_that_names_the_endpoint() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let target = lictor_tower::endpoint::Target::try_from(listener.local_addr().unwrap()).unwrap();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = [0; 1024];
            assert!(stream.read(&mut request).await.unwrap() > 0);
            let short = b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nshort";
            stream.write_all(short).await.unwrap();
        }
    });
    let (registry, told) = registry();
    registry.tell(&[&target]);
    let channel = Channel::from_source(told).build().unwrap();
    let response = channel.request(get("/")).await.unwrap();
    let error = response.into_body().collect().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Body);
    assert!(error.was_sent());
    assert!(error.to_string().contains(&target.to_string()), "{error}");
    assert_eq!(in_flight(&channel), 0);
    assert!(channel.endpoints()[0].is_penalized);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_body_arrives_whole_in_both_directions() {
    let server = Server::start().await;
    let (_registry, channel) = channel(&[&server]);
    let sent = "lictor ".repeat(300_000);
    let response = channel.request(post("/echo", sent.clone())).await.unwrap();
    assert_eq!(text(response).await, sent);
    who(&channel).await;
    // The second call may come before hyper is ready for it on the first connection.
    assert!(server.seen.accepted() <= 2);
}

/// Sends a part and fails.
struct Breaks(bool);

impl hyper::body::Body for Breaks {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        if std::mem::replace(&mut self.0, true) {
            return Poll::Ready(Some(Err(io::Error::other("disk gone"))));
        }
        cx.waker().wake_by_ref();
        Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(b"part")))))
    }
}

#[tokio::test]
async fn a_request_whose_own_body_fails_says_so_and_blames_nobody() {
    for protocol in [Protocol::Http1, Protocol::Http2] {
        let server = Server::speaking(protocol).await;
        let (_registry, channel) = channel_with(&[&server], |b| b.protocol(protocol));
        let request = Request::post("/echo").body(Breaks(false)).unwrap();
        let error = channel.request(request).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidRequest, "{error:?}");
        assert!(error.was_sent());
        assert!(error.to_string().contains("its body failed"), "{error}");
        assert!(!channel.endpoints()[0].is_penalized);
        who(&channel).await;
    }
}
