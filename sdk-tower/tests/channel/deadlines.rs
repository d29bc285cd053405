use std::error::Error;
use std::future::pending;
use std::pin::{Pin, pin};
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use futures_core::Stream;
use lictor_tower::channel::Channel;
use lictor_tower::endpoint::EndpointSet;
use lictor_tower::error::ErrorKind;
use tokio::net::TcpListener;
use tokio::time::Instant;

use crate::support::{
    Server, channel, channel_with, eventually, get, in_flight, registry, text, who,
};

/// A source that never says anything.
struct Silent;

impl Stream for Silent {
    type Item = EndpointSet;

    fn poll_next(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<Option<EndpointSet>> {
        Poll::Pending
    }
}

#[tokio::test(start_paused = true)]
async fn g16_a_service_that_is_never_resolved_fails_after_the_time_given_and_then_at_once() {
    let channel = Channel::from_source(Silent).build().unwrap();
    let start = Instant::now();
    let error = channel.request(get("/")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NeverResolved);
    assert!(error.is_no_endpoints() && error.is_transient() && !error.was_sent());
    assert_eq!(start.elapsed().as_secs(), 10);
    channel.request(get("/")).await.unwrap_err();
    assert_eq!(start.elapsed().as_secs(), 10);
}

#[tokio::test]
async fn an_unresolved_service_is_named_with_the_reason_why() {
    let agent = Server::start().await;
    agent.seen.fails.store(true, Ordering::SeqCst);
    let client = lictor::Client::builder()
        .address(format!("http://{}", agent.target))
        .build()
        .unwrap();
    let channel = Channel::builder(client)
        .service("web")
        .first_resolution(Duration::ZERO)
        .build()
        .unwrap();
    eventually("Consul has refused", || agent.seen.requests() > 0).await;
    let error = loop {
        let error = channel.request(get("/")).await.unwrap_err();
        if error.source().is_some() {
            break error;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    };
    assert_eq!(error.kind(), ErrorKind::NeverResolved);
    assert!(error.to_string().contains("\"web\""), "{error}");
    let reason = error.source().unwrap().to_string();
    assert!(reason.contains("503"), "{reason}");
}

#[tokio::test(start_paused = true)]
async fn the_time_for_the_first_resolution_can_be_set() {
    let limit = Duration::from_millis(300);
    let channel = Channel::from_source(Silent)
        .first_resolution(limit)
        .build()
        .unwrap();
    let start = Instant::now();
    let errors = [channel.request(get("/")), channel.request(get("/"))];
    for error in errors {
        assert_eq!(error.await.unwrap_err().kind(), ErrorKind::NeverResolved);
    }
    assert!((300..310).contains(&start.elapsed().as_millis()));
    let error = channel.wait_ready().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NeverResolved);
}

#[tokio::test(start_paused = true)]
async fn a_source_that_ends_without_a_word_is_never_resolved() {
    let (registry, told) = registry();
    drop(registry);
    let channel = Channel::from_source(told).build().unwrap();
    let error = channel.request(get("/")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NeverResolved);
}

#[tokio::test(start_paused = true)]
async fn g7_an_empty_service_fails_at_once() {
    let (registry, told) = registry();
    registry.tell(&[]);
    let channel = Channel::from_source(told).build().unwrap();
    let start = Instant::now();
    for _ in 0..2 {
        let error = channel.request(get("/")).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NoEndpoints);
        assert!(error.is_no_endpoints());
    }
    assert_eq!(start.elapsed(), Duration::ZERO);
    let error = channel.wait_ready().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoEndpoints);
}

#[tokio::test]
async fn requests_sent_before_the_first_resolution_go_out_with_it() {
    let server = Server::start().await;
    let (registry, told) = registry();
    let channel = Channel::from_source(told).build().unwrap();
    let calls = [channel.request(get("/")), channel.request(get("/"))];
    let tell = async {
        tokio::task::yield_now().await;
        registry.tell(&[&server.target]);
        pending::<()>().await;
    };
    let answered = async {
        for call in calls {
            assert_eq!(text(call.await.unwrap()).await, server.port().to_string());
        }
    };
    tokio::select! {
        () = answered => {}
        () = tell => {}
    }
    channel.wait_ready().await.unwrap();
}

#[tokio::test]
async fn the_deadline_of_a_request_ends_it_wherever_it_is() {
    let limit = Duration::from_millis(50);
    // Before the first resolution.
    let channel = Channel::from_source(Silent).timeout(limit).build().unwrap();
    let error = channel.request(get("/")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout);
    assert!(error.is_timeout() && !error.was_sent());
    // After it was sent.
    let server = Server::start().await;
    let (_registry, channel) = channel_with(&[&server], |builder| builder.timeout(limit));
    let error = channel.request(get("/slow")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout);
    assert!(error.was_sent());
    assert!(
        error.to_string().contains(&server.target.to_string()),
        "{error}"
    );
    assert_eq!(in_flight(&channel), 0);
    // A request in time is not touched.
    who(&channel).await;
}

#[tokio::test]
async fn an_endpoint_that_does_not_accept_is_given_up_after_the_connect_timeout() {
    // A listener whose backlog is full does not answer the handshake.
    let listener = tokio::net::TcpSocket::new_v4().unwrap();
    listener.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = listener.listen(1).unwrap();
    let addr = listener.local_addr().unwrap();
    let mut stuck = Vec::new();
    let fill = async {
        loop {
            stuck.push(tokio::net::TcpStream::connect(addr).await);
        }
    };
    tokio::time::timeout(Duration::from_millis(200), fill)
        .await
        .unwrap_err();
    let server = Server::start().await;
    let (registry, told) = registry();
    let black_hole = lictor_tower::endpoint::Target::try_from(addr).unwrap();
    registry.tell(&[&black_hole]);
    let limit = Duration::from_millis(100);
    let channel = Channel::from_source(told)
        .connect_timeout(limit)
        .build()
        .unwrap();
    let start = Instant::now();
    let error = channel.request(get("/")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Connect);
    assert!(start.elapsed() >= limit && start.elapsed() < Duration::from_secs(3));
    registry.tell(&[&black_hole, &server.target]);
    eventually("both are known", || channel.endpoints().len() == 2).await;
    for _ in 0..20 {
        assert_eq!(who(&channel).await, server.port());
    }
}

#[tokio::test]
async fn a_cancelled_request_leaves_nothing_behind() {
    let server = Server::start().await;
    let (_registry, channel) = channel(&[&server]);
    channel.wait_ready().await.unwrap();
    // Never polled, polled once, and sent.
    drop(channel.request(get("/slow")));
    let mut call = Box::pin(channel.request(get("/slow")));
    let mut cx = Context::from_waker(Waker::noop());
    assert!(call.as_mut().poll(&mut cx).is_pending());
    assert_eq!(in_flight(&channel), 1);
    drop(call);
    for _ in 0..20 {
        let seen = server.seen.requests();
        let call = pin!(channel.request(get("/slow")));
        tokio::select! {
            _ = call => panic!("the gate is shut"),
            () = eventually("it was sent", || server.seen.requests() > seen) => {}
        }
    }
    assert_eq!(in_flight(&channel), 0);
    eventually("connections of lost requests close", || {
        server.seen.open() <= 1
    })
    .await;
    who(&channel).await;
}

#[tokio::test]
async fn a_connection_being_opened_for_a_cancelled_request_serves_the_next() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let server = Server::on(listener, lictor_tower::channel::Protocol::Http1);
    let (_registry, channel) = channel(&[&server]);
    channel.wait_ready().await.unwrap();
    let mut call = Box::pin(channel.request(get("/")));
    let mut cx = Context::from_waker(Waker::noop());
    assert!(call.as_mut().poll(&mut cx).is_pending());
    drop(call);
    eventually("it is open", || server.seen.open() == 1).await;
    who(&channel).await;
    assert_eq!(server.seen.accepted(), 1);
}

#[test]
fn a_channel_without_a_runtime_is_an_error() {
    let error = Channel::from_source(Silent).build().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoRuntime);
    assert!(error.to_string().contains("build it inside"), "{error}");
}

#[tokio::test]
async fn the_longest_times_are_taken_for_for_ever() {
    let server = Server::start().await;
    let (_registry, channel) = channel_with(&[&server], |builder| {
        builder
            .first_resolution(Duration::MAX)
            .connect_timeout(Duration::MAX)
            .timeout(Duration::MAX)
            .idle_timeout(Duration::MAX)
    });
    who(&channel).await;
}

#[tokio::test]
async fn options_out_of_range_are_refused() {
    let zero = Duration::ZERO;
    for (builder, named) in [
        (
            Channel::from_source(Silent).connect_timeout(zero),
            "connect_timeout",
        ),
        (Channel::from_source(Silent).timeout(zero), "timeout"),
        (
            Channel::from_source(Silent).idle_timeout(zero),
            "idle_timeout",
        ),
        (Channel::from_source(Silent).max_attempts(0), "max_attempts"),
        (
            Channel::from_source(Silent).max_attempts(17),
            "max_attempts",
        ),
        (Channel::from_source(Silent).host("a b"), "a b"),
        (Channel::from_source(Silent).host("me@web"), "me@web"),
    ] {
        let error = builder.build().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
        assert!(error.to_string().contains(named), "{error}");
    }
}

#[tokio::test]
async fn what_cannot_be_sent_is_refused_without_a_try() {
    let server = Server::start().await;
    let (_registry, channel) = channel(&[&server]);
    let error = channel.request(get("https://web/")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidRequest);
    assert!(!error.is_transient());
    assert_eq!(server.seen.accepted(), 0);
}

#[test]
fn a_channel_whose_runtime_has_ended_fails_and_does_not_hang() {
    let lives = tokio::runtime::Runtime::new().unwrap();
    let ends = tokio::runtime::Runtime::new().unwrap();
    let server = lives.block_on(Server::start());
    let (channel, silent) = ends.block_on(async {
        let (_registry, channel) = channel(&[&server]);
        who(&channel).await;
        let silent = Channel::from_source(Silent)
            .first_resolution(Duration::from_millis(50))
            .build()
            .unwrap();
        (channel, silent)
    });
    drop(ends);
    lives.block_on(async {
        for _ in 0..3 {
            let error = channel.request(get("/")).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::NoRuntime);
            assert!(!error.was_sent());
        }
        let error = silent.request(get("/")).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NoRuntime);
    });
}

#[test]
fn a_request_can_be_awaited_outside_of_the_runtime() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let (server, channel) = runtime.block_on(async {
        let server = Server::start().await;
        let (_registry, channel) = channel_with(&[&server], |builder| {
            builder.timeout(Duration::from_secs(5))
        });
        (server, channel)
    });
    let call = channel.request(get("/"));
    let mut call = pin!(call);
    struct Unpark(std::thread::Thread);
    impl std::task::Wake for Unpark {
        fn wake(self: std::sync::Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = std::sync::Arc::new(Unpark(std::thread::current())).into();
    let mut cx = Context::from_waker(&waker);
    let response = loop {
        match call.as_mut().poll(&mut cx) {
            Poll::Ready(response) => break response.unwrap(),
            Poll::Pending => std::thread::park_timeout(Duration::from_secs(5)),
        }
    };
    assert_eq!(response.body().target(), &server.target);
}
