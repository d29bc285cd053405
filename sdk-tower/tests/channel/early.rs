//! Answers that are whole before the request is.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use hyper::body::{Body, Frame};
use lictor_tower::channel::Channel;
use lictor_tower::endpoint::Target;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::support::{eventually, get, in_flight, registry, text};

/// A body that ends when its other half is dropped.
pub(crate) struct Fed(mpsc::UnboundedReceiver<&'static str>);

impl Body for Fed {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0
            .poll_recv(cx)
            .map(|text| text.map(|text| Ok(Frame::data(text.into()))))
    }
}

pub(crate) fn feed() -> (mpsc::UnboundedSender<&'static str>, Fed) {
    let (feed, body) = mpsc::unbounded_channel();
    (feed, Fed(body))
}

fn fed() -> (mpsc::UnboundedSender<&'static str>, Request<Fed>) {
    let (feed, body) = feed();
    feed.send("first").unwrap();
    let request = Request::post("/").body(body);
    (feed, request.unwrap())
}

/// Answers each request as soon as it has its head, and reads what comes after it.
struct Hasty {
    target: Target,
    accepted: Arc<AtomicUsize>,
    open: Arc<AtomicUsize>,
    _tasks: JoinSet<()>,
}

impl Hasty {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let target = Target::try_from(listener.local_addr().unwrap()).unwrap();
        let (accepted, open) = <(Arc<AtomicUsize>, Arc<AtomicUsize>)>::default();
        let (counted, held) = (Arc::clone(&accepted), Arc::clone(&open));
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                counted.fetch_add(1, Ordering::SeqCst);
                held.fetch_add(1, Ordering::SeqCst);
                let held = Arc::clone(&held);
                connections.spawn(async move {
                    answer(stream).await;
                    held.fetch_sub(1, Ordering::SeqCst);
                });
            }
        });
        Self {
            target,
            accepted,
            open,
            _tasks: tasks,
        }
    }

    fn accepted(&self) -> usize {
        self.accepted.load(Ordering::SeqCst)
    }

    fn open(&self) -> usize {
        self.open.load(Ordering::SeqCst)
    }
}

/// The bodies that come hold no head: what ends like one is one.
async fn answer(mut stream: TcpStream) {
    let mut read = Vec::new();
    while stream.read_buf(&mut read).await.is_ok_and(|read| read > 0) {
        while let Some(at) = read.windows(4).position(|four| four == b"\r\n\r\n") {
            let head = read.drain(..at + 4).collect::<Vec<_>>();
            if head.ends_with(b"0\r\n\r\n") && !head.windows(4).any(|four| four == b"HTTP") {
                continue;
            }
            let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
            if stream.write_all(answer).await.is_err() {
                return;
            }
        }
    }
}

#[tokio::test]
async fn a_request_that_never_ends_holds_no_connection_once_it_is_answered() {
    let server = Hasty::start().await;
    let (registry, told) = registry();
    registry.tell(&[&server.target]);
    let channel = Channel::from_source(told)
        .max_connections_per_endpoint(1)
        .waiting_timeout(Duration::from_secs(60))
        .build()
        .unwrap();
    let mut feeds = Vec::new();
    for _ in 0..5 {
        let (feed, request) = fed();
        let call = timeout(Duration::from_secs(30), channel.request(request));
        let response = call.await.expect("the place is free").unwrap();
        assert_eq!(text(response).await, "ok");
        feed.closed().await;
        assert!(feed.send("nobody reads this").is_err());
        feeds.push(feed);
    }
    assert_eq!(in_flight(&channel), 0);
    let response = channel.request(get("/")).await.unwrap();
    assert_eq!(text(response).await, "ok");
    eventually("one is kept", || server.open() == 1).await;
    drop(channel);
    eventually("none is kept", || server.open() == 0).await;
}

#[tokio::test]
async fn a_request_that_never_ends_keeps_no_socket_of_a_channel_that_is_dropped() {
    let server = Hasty::start().await;
    let (registry, told) = registry();
    registry.tell(&[&server.target]);
    let channel = Channel::from_source(told).build().unwrap();
    let (_feed, request) = fed();
    let response = channel.request(request).await.unwrap();
    drop(channel);
    // Its answer is whole, though.
    assert_eq!(text(response).await, "ok");
    eventually("none is kept", || server.open() == 0).await;
}

#[tokio::test]
async fn a_request_that_ends_with_its_answer_keeps_its_connection() {
    let server = Hasty::start().await;
    let (registry, told) = registry();
    registry.tell(&[&server.target]);
    let channel = Channel::from_source(told)
        .max_connections_per_endpoint(1)
        .waiting_timeout(Duration::from_secs(60))
        .build()
        .unwrap();
    for _ in 0..5 {
        let (feed, request) = fed();
        let response = channel.request(request).await.unwrap();
        // Like most who have nothing more to say than what they are asked for.
        assert_eq!(text(response).await, "ok");
        drop(feed);
        let response = channel.request(get("/")).await.unwrap();
        assert_eq!(text(response).await, "ok");
    }
    assert_eq!((server.accepted(), server.open()), (1, 1));
}
