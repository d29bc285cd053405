use std::error::Error as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use lictor_tower::channel::Channel;
use lictor_tower::error::ErrorKind;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use crate::support::{
    Server, channel, channel_with, eventually, get, in_flight, nobody, post, registry, text, who,
};

#[tokio::test]
async fn a_streaming_body_reaches_the_next_endpoint_when_the_first_refuses() {
    let server = Server::start().await;
    let (registry, told) = registry();
    registry.tell(&[&nobody().await, &nobody().await, &server.target]);
    let channel = Channel::from_source(told).build().unwrap();
    for call in 0..50 {
        let sent = format!("body {call}");
        let response = channel.request(post("/echo", sent.clone())).await.unwrap();
        assert_eq!(text(response).await, sent);
    }
    assert_eq!(server.seen.requests(), 50);
}

#[tokio::test]
async fn all_refusing_is_an_error_that_tells_how_many_and_why() {
    let (registry, told) = registry();
    registry.tell(&[&nobody().await, &nobody().await, &nobody().await]);
    let channel = Channel::from_source(told).build().unwrap();
    // Also while all of them are avoided.
    for _ in 0..2 {
        let error = channel.request(post("/echo", "x")).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Connect);
        assert!(error.is_connect() && !error.was_sent());
        assert!(error.to_string().contains("3 tried"), "{error}");
        let cause = error.source().unwrap().to_string();
        assert!(cause.to_lowercase().contains("refused"), "{cause}");
    }
    assert!(channel.endpoints().iter().all(|e| e.is_avoided));
    assert_eq!(in_flight(&channel), 0);
}

#[tokio::test]
async fn no_more_endpoints_are_tried_than_allowed() {
    let (registry, told) = registry();
    registry.tell(&[&nobody().await, &nobody().await, &nobody().await]);
    let channel = Channel::from_source(told).max_attempts(2).build().unwrap();
    let error = channel.request(get("/")).await.unwrap_err();
    assert!(error.to_string().contains("2 tried"), "{error}");
}

#[tokio::test]
async fn g2_a_dead_endpoint_costs_few_attempts_however_many_the_requests() {
    let server = Server::start().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let dead = lictor_tower::endpoint::Target::try_from(listener.local_addr().unwrap()).unwrap();
    let attempts = Arc::new(AtomicU32::new(0));
    let mut tasks = JoinSet::new();
    tasks.spawn({
        let attempts = Arc::clone(&attempts);
        async move {
            // Takes connections and closes them before anything can be sent.
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                attempts.fetch_add(1, Ordering::SeqCst);
                stream.set_zero_linger().unwrap();
                drop(stream);
            }
        }
    });
    let (registry, told) = registry();
    registry.tell(&[&dead, &server.target]);
    let channel = Channel::from_source(told).build().unwrap();
    let mut failed = 0;
    for _ in 0..500 {
        match channel.request(get("/")).await {
            Ok(response) => drop(text(response).await),
            // It may have been written before the reset arrived.
            Err(error) => {
                assert!(error.was_sent(), "{error}");
                failed += 1;
            }
        }
    }
    assert!(failed < 10, "{failed}");
    assert!(attempts.load(Ordering::SeqCst) < 20);
}

#[tokio::test]
async fn an_endpoint_that_comes_back_is_used_again() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let first = Server::on(listener, lictor_tower::channel::Protocol::Http1);
    let other = Server::start().await;
    let (_registry, channel) = channel(&[&first, &other]);
    for _ in 0..20 {
        who(&channel).await;
    }
    drop(first);
    for _ in 0..50 {
        who(&channel).await;
    }
    let again = Server::on(
        TcpListener::bind(addr).await.unwrap(),
        lictor_tower::channel::Protocol::Http1,
    );
    let deadline = tokio::time::Instant::now() + Duration::from_secs(15);
    while again.seen.requests() == 0 {
        assert!(tokio::time::Instant::now() < deadline);
        who(&channel).await;
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_graceful_stop_under_load_loses_no_call() {
    let servers = [
        Server::start().await,
        Server::start().await,
        Server::start().await,
    ];
    let (registry, channel) = channel(&[&servers[0], &servers[1], &servers[2]]);
    let [leaving, stays, also] = servers;
    let load = Load::start(&channel, 32, true);
    eventually("it runs", || load.done() > 200).await;
    // First out of the registry, then drained, then down: the channel closes its connections as
    // soon as the requests on them are answered.
    registry.tell(&[&stays.target, &also.target]);
    eventually("it is drained", || leaving.seen.open() == 0).await;
    leaving.stop().await;
    let then = load.done();
    eventually("it goes on", || load.done() > then + 200).await;
    load.finish(0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_graceful_stop_that_is_not_announced_loses_no_get() {
    let servers = [
        Server::start().await,
        Server::start().await,
        Server::start().await,
    ];
    let (_registry, channel) = channel(&[&servers[0], &servers[1], &servers[2]]);
    let [leaving, _stays, _also] = servers;
    let load = Load::start(&channel, 32, false);
    eventually("it runs", || load.done() > 200).await;
    leaving.stop().await;
    let then = load.done();
    eventually("it goes on", || load.done() > then + 200).await;
    load.finish(0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_loses_only_what_is_in_flight_on_the_instance() {
    let servers = [
        Server::start().await,
        Server::start().await,
        Server::start().await,
    ];
    let (_registry, channel) = channel(&[&servers[0], &servers[1], &servers[2]]);
    let [leaving, _stays, _also] = servers;
    let load = Load::start(&channel, 32, true);
    eventually("it runs", || load.done() > 500).await;
    drop(leaving);
    let then = load.done();
    eventually("it goes on", || load.done() > then + 500).await;
    // No caller has more than one call in flight, and after the crash it finds another instance.
    load.finish(32).await;
}

/// Callers that call as fast as they can, half of them with a body.
struct Load {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU32>,
    callers: JoinSet<u32>,
}

impl Load {
    fn start(channel: &Channel, callers: u32, with_bodies: bool) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let done = Arc::new(AtomicU32::new(0));
        let mut tasks = JoinSet::new();
        for caller in 0..callers {
            let (stop, done, channel) = (Arc::clone(&stop), Arc::clone(&done), channel.clone());
            tasks.spawn(async move {
                let mut failed = 0;
                while !stop.load(Ordering::SeqCst) {
                    let called = if with_bodies && caller % 2 == 0 {
                        channel.request(post("/echo", "x")).await
                    } else {
                        channel.request(get("/")).await
                    };
                    match called {
                        Ok(response) => drop(text(response).await),
                        Err(error) => {
                            assert!(error.was_sent(), "{error:?}");
                            failed += 1;
                        }
                    }
                    done.fetch_add(1, Ordering::SeqCst);
                }
                failed
            });
        }
        Self {
            stop,
            done,
            callers: tasks,
        }
    }

    fn done(&self) -> u32 {
        self.done.load(Ordering::SeqCst)
    }

    async fn finish(mut self, most: u32) {
        self.stop.store(true, Ordering::SeqCst);
        let mut failed = 0;
        while let Some(caller) = self.callers.join_next().await {
            failed += caller.unwrap();
        }
        assert!(failed <= most, "{failed} failed");
    }
}

#[tokio::test]
async fn a_get_on_an_idle_connection_that_dies_is_sent_again() {
    let (target, _tasks) = closes_the_second_request().await;
    let (registry, told) = registry();
    registry.tell(&[&target]);
    let channel = Channel::from_source(told).build().unwrap();
    for _ in 0..4 {
        let response = channel.request(get("/")).await.unwrap();
        assert_eq!(text(response).await, "ok");
    }
}

#[tokio::test]
async fn a_post_on_an_idle_connection_that_dies_is_not_sent_again() {
    let (target, _tasks) = closes_the_second_request().await;
    let (registry, told) = registry();
    registry.tell(&[&target]);
    let channel = Channel::from_source(told).build().unwrap();
    let response = channel.request(post("/", "x")).await.unwrap();
    assert_eq!(text(response).await, "ok");
    let error = channel.request(post("/", "x")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Request);
    assert!(error.was_sent());
    assert_eq!(in_flight(&channel), 0);
}

/// Answers one request per connection, reads the next and closes without an answer: what the
/// crossing of a request with the close of an idle connection looks like.
async fn closes_the_second_request() -> (lictor_tower::endpoint::Target, JoinSet<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let target = lictor_tower::endpoint::Target::try_from(listener.local_addr().unwrap()).unwrap();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut buffer = [0; 1024];
            let mut read = Vec::new();
            loop {
                let count = stream.read(&mut buffer).await.unwrap();
                read.extend_from_slice(&buffer[..count]);
                let head = read.windows(4).any(|w| w == b"\r\n\r\n");
                let is_post = read.starts_with(b"POST");
                if head && (!is_post || read.ends_with(b"0\r\n\r\n")) {
                    break;
                }
            }
            stream
                .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
                .await
                .unwrap();
            drop(stream.read(&mut buffer).await);
        }
    });
    (target, tasks)
}

#[tokio::test]
async fn a_get_that_brings_servers_down_is_sent_twice_and_no_more() {
    let mut tasks = JoinSet::new();
    let requests = Arc::new(AtomicU32::new(0));
    let mut targets = Vec::new();
    for _ in 0..5 {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        targets.push(lictor_tower::endpoint::Target::try_from(addr).unwrap());
        let requests = Arc::clone(&requests);
        tasks.spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut buffer = [0; 1024];
                if stream.read(&mut buffer).await.unwrap() > 0 {
                    requests.fetch_add(1, Ordering::SeqCst);
                }
            }
        });
    }
    let (registry, told) = registry();
    registry.tell(&targets.iter().collect::<Vec<_>>());
    let channel = Channel::from_source(told).build().unwrap();
    let error = channel.request(get("/")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Request);
    assert!(error.was_sent() && error.source().is_some());
    assert_eq!(requests.load(Ordering::SeqCst), 2);
    assert_eq!(in_flight(&channel), 0);
}

#[tokio::test]
async fn a_lost_get_with_nobody_else_to_ask_tells_why_it_was_lost() {
    let (target, mut tasks) = closes_the_second_request().await;
    let (registry, told) = registry();
    registry.tell(&[&target]);
    let channel = Channel::from_source(told).build().unwrap();
    let response = channel.request(get("/")).await.unwrap();
    assert_eq!(text(response).await, "ok");
    // The listener closes; the idle connection is still served by nobody.
    tasks.shutdown().await;
    let error = channel.request(get("/")).await.unwrap_err();
    assert!(
        matches!(error.kind(), ErrorKind::Request | ErrorKind::Connect),
        "{error:?}"
    );
    assert_eq!(error.was_sent(), error.kind() == ErrorKind::Request);
    assert!(error.source().is_some());
}

#[tokio::test]
async fn garbage_for_an_answer_is_an_error_and_the_connection_is_dropped() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let target = lictor_tower::endpoint::Target::try_from(listener.local_addr().unwrap()).unwrap();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream
                .write_all(b"SSH-2.0-not http at all\r\n\r\n")
                .await
                .ok();
            let mut rest = Vec::new();
            stream.read_to_end(&mut rest).await.ok();
        }
    });
    let (registry, told) = registry();
    registry.tell(&[&target]);
    let channel = Channel::from_source(told).build().unwrap();
    for _ in 0..3 {
        let error = channel.request(get("/")).await.unwrap_err();
        assert!(
            matches!(error.kind(), ErrorKind::Request | ErrorKind::Connect),
            "{error:?}"
        );
        assert!(error.source().is_some());
    }
    assert_eq!(in_flight(&channel), 0);
}

#[tokio::test]
async fn with_no_idle_connections_allowed_each_call_opens_one() {
    let server = Server::start().await;
    let (_registry, channel) = channel_with(&[&server], |builder| builder.max_idle_per_endpoint(0));
    for _ in 0..5 {
        who(&channel).await;
    }
    assert_eq!(server.seen.accepted(), 5);
    eventually("all are closed", || server.seen.open() == 0).await;
}
