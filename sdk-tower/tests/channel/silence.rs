//! Endpoints and connections that fall silent without being closed.

use std::net::SocketAddr;
use std::time::Duration;

use lictor_tower::channel::{Channel, Policy, Protocol};
use lictor_tower::endpoint::Target;
use lictor_tower::error::ErrorKind;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::support::{Server, eventually, get, in_flight, post, registry, text, who};

/// A way to a server on which all connections can go dead; those opened afterwards are well.
struct Path {
    target: Target,
    dead: watch::Sender<u32>,
    _tasks: JoinSet<()>,
}

impl Path {
    async fn to(server: &Server) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let target = Target::try_from(listener.local_addr().unwrap()).unwrap();
        let end: SocketAddr = server.target.to_string().parse().unwrap();
        let (dead, goes) = watch::channel(0);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut ways = JoinSet::new();
            loop {
                let (mut near, _) = listener.accept().await.unwrap();
                let mut goes = goes.clone();
                goes.mark_unchanged();
                ways.spawn(async move {
                    let mut far = TcpStream::connect(end).await.unwrap();
                    tokio::select! {
                        _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
                        _ = goes.changed() => std::future::pending().await,
                    }
                });
            }
        });
        Self {
            target,
            dead,
            _tasks: tasks,
        }
    }

    /// From now on nothing passes on the connections that stand.
    fn dies(&self) {
        self.dead.send_modify(|times| *times += 1);
    }
}

/// A target that accepts connections and never answers.
fn mute() -> (Target, std::net::TcpListener) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let target = Target::try_from(listener.local_addr().unwrap()).unwrap();
    (target, listener)
}

async fn answers(channel: &Channel, server: &Server) {
    let response = channel.request(get("/")).await.unwrap();
    assert_eq!(text(response).await, server.port().to_string());
}

#[tokio::test]
async fn after_a_deadline_on_a_shared_connection_the_next_request_has_a_new_one() {
    let server = Server::speaking(Protocol::Http2).await;
    let path = Path::to(&server).await;
    let (registry, told) = registry();
    registry.tell(&[&path.target]);
    let channel = Channel::from_source(told)
        .protocol(Protocol::Http2)
        .timeout(Duration::from_millis(300))
        .build()
        .unwrap();
    answers(&channel, &server).await;
    path.dies();
    let error = channel.request(get("/")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout);
    answers(&channel, &server).await;
    assert_eq!(server.seen.accepted(), 2);
}

#[tokio::test]
async fn a_slow_answer_costs_no_connection_on_which_others_are_answered() {
    let server = Server::speaking(Protocol::Http2).await;
    let (registry, told) = registry();
    registry.tell(&[&server.target]);
    let channel = Channel::from_source(told)
        .protocol(Protocol::Http2)
        .timeout(Duration::from_millis(300))
        .build()
        .unwrap();
    let mut slow = JoinSet::new();
    slow.spawn(channel.request(get("/slow")));
    eventually("it was sent", || server.seen.requests() == 1).await;
    who(&channel).await;
    let error = slow.join_next().await.unwrap().unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout);
    who(&channel).await;
    assert_eq!(server.seen.accepted(), 1);
}

#[tokio::test]
async fn after_a_deadline_on_an_idle_connection_those_idle_for_longer_are_not_used() {
    let server = Server::start().await;
    let path = Path::to(&server).await;
    let (registry, told) = registry();
    registry.tell(&[&path.target]);
    let channel = Channel::from_source(told)
        .timeout(Duration::from_millis(500))
        .build()
        .unwrap();
    channel.wait_ready().await.unwrap();
    let mut callers = JoinSet::new();
    for _ in 0..8 {
        callers.spawn(channel.request(get("/slow")));
    }
    eventually("all were sent", || server.seen.requests() == 8).await;
    server.seen.gate.add_permits(8);
    while let Some(answered) = callers.join_next().await {
        text(answered.unwrap().unwrap()).await;
    }
    assert_eq!(in_flight(&channel), 0);
    path.dies();
    let error = channel.request(get("/")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout);
    answers(&channel, &server).await;
    assert_eq!(server.seen.accepted(), 9);
}

#[tokio::test]
async fn a_shared_connection_that_dies_is_found_dead_with_and_without_a_request_on_it() {
    let server = Server::speaking(Protocol::Http2).await;
    let path = Path::to(&server).await;
    let (registry, told) = registry();
    registry.tell(&[&path.target]);
    let channel = Channel::from_source(told)
        .protocol(Protocol::Http2)
        .connect_timeout(Duration::from_secs(3_600))
        .idle_timeout(Duration::from_secs(3_600))
        .build()
        .unwrap();
    answers(&channel, &server).await;
    path.dies();
    tokio::time::pause();
    // Nobody waits for it: the next request, which could not be repeated, meets a new connection.
    tokio::time::sleep(Duration::from_secs(16)).await;
    let response = channel.request(post("/echo", "once")).await.unwrap();
    assert_eq!(text(response).await, "once");
    assert_eq!(server.seen.accepted(), 2);
    // A request that waits for an answer goes to a new connection.
    path.dies();
    answers(&channel, &server).await;
    assert_eq!(server.seen.accepted(), 3);
}

#[tokio::test]
async fn an_endpoint_that_never_answers_is_left_alone_after_a_few_deadlines() {
    for policy in [Policy::PeakEwma, Policy::PendingRequests] {
        let server = Server::start().await;
        let (mute, _listener) = mute();
        let (registry, told) = registry();
        registry.tell(&[&mute, &server.target]);
        let channel = Channel::from_source(told)
            .policy(policy)
            .timeout(Duration::from_millis(50))
            .build()
            .unwrap();
        channel.wait_ready().await.unwrap();
        let mut late = 0;
        for _ in 0..60 {
            match channel.request(get("/")).await {
                Ok(response) => drop(text(response).await),
                Err(_) => late += 1,
            }
        }
        assert!(late <= 15, "{policy:?}: {late} of 60");
    }
}
