use bytes::Bytes;
use http::Request;
use http_body_util::Empty;
use lictor_tower::channel::{Channel, Protocol};
use lictor_tower::endpoint::Target;
use lictor_tower::error::ErrorKind;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::support::{
    Server, channel_with, eventually, get, in_flight, nobody, post, registry, text, who,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_requests_to_an_endpoint_share_one_connection() {
    let server = Server::speaking(Protocol::Http2).await;
    let (_registry, channel) = channel_with(&[&server], |b| b.protocol(Protocol::Http2));
    let mut callers = JoinSet::new();
    for caller in 0..64 {
        let channel = channel.clone();
        callers.spawn(async move {
            for call in 0..20 {
                let sent = format!("{caller} {call}");
                let response = channel.request(post("/echo", sent.clone())).await.unwrap();
                assert_eq!(text(response).await, sent);
            }
        });
    }
    while let Some(caller) = callers.join_next().await {
        caller.unwrap();
    }
    assert_eq!(server.seen.accepted(), 1);
    assert_eq!(in_flight(&channel), 0);
}

#[tokio::test]
async fn a_connection_that_dies_is_opened_again() {
    let server = Server::speaking(Protocol::Http2).await;
    let (_registry, channel) = channel_with(&[&server], |b| b.protocol(Protocol::Http2));
    who(&channel).await;
    let addr = format!("127.0.0.1:{}", server.port());
    server.stop().await;
    let again = Server::on(TcpListener::bind(addr).await.unwrap(), Protocol::Http2);
    for _ in 0..5 {
        who(&channel).await;
    }
    assert_eq!(again.seen.accepted(), 1);
}

#[tokio::test]
async fn a_refused_connection_fails_all_who_wait_for_it_once_and_goes_on_elsewhere() {
    let server = Server::speaking(Protocol::Http2).await;
    let (registry, told) = registry();
    registry.tell(&[&nobody().await, &server.target]);
    let channel = Channel::from_source(told)
        .protocol(Protocol::Http2)
        .build()
        .unwrap();
    let mut callers = JoinSet::new();
    for _ in 0..32 {
        let channel = channel.clone();
        callers.spawn(async move { who(&channel).await });
    }
    while let Some(caller) = callers.join_next().await {
        assert_eq!(caller.unwrap(), server.port());
    }
}

#[tokio::test]
async fn the_host_is_told_as_authority() {
    let server = Server::speaking(Protocol::Http2).await;
    let (_registry, channel) = channel_with(&[&server], |builder| {
        builder.protocol(Protocol::Http2).host("web")
    });
    for (uri, told) in [("/host", "web /host"), ("http://api/host", "api /host")] {
        let response = channel.request(get(uri)).await.unwrap();
        assert_eq!(text(response).await, told);
    }
}

#[tokio::test]
async fn a_dropped_request_resets_its_stream_and_keeps_the_connection() {
    let server = Server::speaking(Protocol::Http2).await;
    let (_registry, channel) = channel_with(&[&server], |b| b.protocol(Protocol::Http2));
    for count in 1..=10 {
        let call = std::pin::pin!(channel.request(get("/slow")));
        tokio::select! {
            _ = call => panic!("the gate is shut"),
            () = eventually("it was sent", || server.seen.requests() == count) => {}
        }
    }
    assert_eq!(in_flight(&channel), 0);
    who(&channel).await;
    assert_eq!(server.seen.accepted(), 1);
}

/// How a server says of a request that it has not processed it.
#[derive(Clone, Copy, Debug)]
enum Unprocessed {
    RefusedStream,
    /// With this reason.
    GoAway(u8),
}

/// Answers each connection's first request so.
async fn refusing(how: Unprocessed) -> (Target, JoinSet<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let target = Target::try_from(listener.local_addr().unwrap()).unwrap();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let mut connections = JoinSet::new();
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            connections.spawn(async move { refuse(stream, how).await.ok() });
        }
    });
    (target, tasks)
}

async fn refuse(mut stream: TcpStream, how: Unprocessed) -> std::io::Result<()> {
    const HEADERS: u8 = 1;
    let settings = [0, 0, 0, 4, 0, 0, 0, 0, 0];
    stream.write_all(&settings).await?;
    let mut preface = [0; 24];
    stream.read_exact(&mut preface).await?;
    loop {
        let mut head = [0; 9];
        stream.read_exact(&mut head).await?;
        let [a, b, c, kind, _, id @ ..] = head;
        let length = u32::from_be_bytes([0, a, b, c]);
        let mut payload = vec![0; length.try_into().unwrap()];
        stream.read_exact(&mut payload).await?;
        if kind == HEADERS {
            let frame = match how {
                Unprocessed::RefusedStream => {
                    [&[0, 0, 4, 3, 0], id.as_slice(), &[0, 0, 0, 7]].concat()
                }
                Unprocessed::GoAway(reason) => {
                    let mut frame = vec![0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
                    frame.push(reason);
                    frame
                }
            };
            stream.write_all(&frame).await?;
        }
    }
}

#[tokio::test]
async fn a_request_that_a_server_has_not_processed_goes_to_another() {
    for how in [
        Unprocessed::RefusedStream,
        Unprocessed::GoAway(0),
        Unprocessed::GoAway(11),
    ] {
        let (refusing, _tasks) = refusing(how).await;
        let server = Server::speaking(Protocol::Http2).await;
        let (registry, told) = registry();
        registry.tell(&[&refusing, &server.target]);
        let channel = Channel::from_source(told)
            .protocol(Protocol::Http2)
            .build()
            .unwrap();
        let mut callers = JoinSet::new();
        for call in 0..40 {
            let method = if call % 2 == 0 { "GET" } else { "POST" };
            let request = Request::builder().method(method).uri("/");
            let request = request.body(Empty::<Bytes>::new()).unwrap();
            callers.spawn(channel.request(request));
        }
        while let Some(called) = callers.join_next().await {
            let response = called
                .unwrap()
                .unwrap_or_else(|error| panic!("{how:?} {error:?}"));
            assert_eq!(text(response).await, server.port().to_string());
        }
        // A body, part of which may have left, goes whole.
        let mut callers = JoinSet::new();
        for call in 0..40 {
            let channel = channel.clone();
            callers.spawn(async move {
                let sent = format!("body {call}");
                let response = channel.request(post("/echo", sent.clone())).await;
                let response = response.unwrap_or_else(|error| panic!("{how:?} {error:?}"));
                assert_eq!(text(response).await, sent);
            });
        }
        while let Some(called) = callers.join_next().await {
            called.unwrap();
        }
        // With nobody else to ask, it ends.
        registry.tell(&[&refusing]);
        eventually("one is left", || channel.endpoints().len() == 1).await;
        let error = channel.request(get("/")).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Connect);
        assert!(!error.was_sent());
        let error = channel.request(post("/", "x")).await.unwrap_err();
        assert!(!error.was_sent(), "{error:?}");
        // One that is too long to be kept may have been read in part.
        let long = vec![b'x'; 70_000];
        let error = channel.request(post("/", long)).await.unwrap_err();
        assert!(error.was_sent(), "{error:?}");
    }
}
