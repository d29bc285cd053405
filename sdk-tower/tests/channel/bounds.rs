//! How many requests are under way and waiting at one time, and for what they wait.

use std::sync::atomic::Ordering;
use std::time::Duration;

use http_body_util::BodyExt;
use lictor_tower::channel::{Channel, Ejection, EndpointState, Protocol, ResponseFuture};
use lictor_tower::endpoint::Target;
use lictor_tower::error::ErrorKind;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::support::{
    Server, channel_with, eventually, get, in_flight, nobody, registry, text, who,
};

fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

#[tokio::test]
async fn a_place_is_taken_from_the_call_to_the_end_of_the_body() {
    let server = Server::start().await;
    let (_registry, channel) = channel_with(&[&server], |builder| {
        builder.max_in_flight(2).max_waiting(1)
    });
    channel.wait_ready().await.unwrap();
    let first = channel.request(get("/stream")).await.unwrap();
    let second = channel.request(get("/stream")).await.unwrap();
    // One may wait; the next finds no place in the line either.
    let mut third = std::pin::pin!(channel.request(get("/")));
    let error = channel.request(get("/")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Overloaded);
    assert!(error.is_overloaded() && error.is_transient() && !error.was_sent());
    assert!(
        error.to_string().contains("1 requests are waiting"),
        "{error}"
    );
    tokio::select! {
        biased;
        _ = third.as_mut() => panic!("two bodies are open"),
        () = tokio::task::yield_now() => {}
    }
    drop(first);
    assert_eq!(text(third.await.unwrap()).await, server.port().to_string());
    // A body that was read to its end has left, too.
    server.seen.gate.add_permits(1);
    assert_eq!(text(second).await, "headtail");
    let both = [channel.request(get("/")), channel.request(get("/"))];
    for call in both {
        drop(text(call.await.unwrap()).await);
    }
    assert_eq!(in_flight(&channel), 0);
}

#[tokio::test(start_paused = true)]
async fn who_waits_too_long_for_a_place_is_shed() {
    let (_registry, told) = registry();
    let channel = Channel::from_source(told)
        .max_in_flight(1)
        .waiting_timeout(ms(300))
        .first_resolution(Duration::from_secs(60))
        .build()
        .unwrap();
    let _holds = channel.request(get("/"));
    let start = Instant::now();
    let error = channel.request(get("/")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Overloaded);
    assert_eq!(start.elapsed().as_millis(), 300);
    assert!(
        error.to_string().contains("1 requests under way"),
        "{error}"
    );
}

#[tokio::test]
async fn a_request_that_ends_in_any_way_gives_its_place_back() {
    let server = Server::start().await;
    let (_registry, channel) = channel_with(&[&server], |builder| {
        builder
            .max_in_flight(1)
            .waiting_timeout(Duration::ZERO)
            .timeout(Duration::from_secs(2))
    });
    channel.wait_ready().await.unwrap();
    let pending = channel.request(get("/slow"));
    let error = channel.request(get("/")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Overloaded);
    drop(pending);
    // Failed, and its future is still there.
    let mut late = std::pin::pin!(channel.request(get("/slow")));
    let error = late.as_mut().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout);
    drop(text(channel.request(get("/fail")).await.unwrap()).await);
    who(&channel).await;
}
#[tokio::test]
async fn g16_ten_thousand_waiters_are_bounded_and_random_drops_leave_nothing() {
    let server = Server::start().await;
    let (registry, told) = registry();
    let channel = Channel::from_source(told)
        .max_waiting(1_000)
        // A thousand connections are opened at one time.
        .connect_timeout(Duration::from_secs(60))
        .build()
        .unwrap();
    let mut shed = 0;
    let mut waiting: Vec<ResponseFuture> = Vec::new();
    for _ in 0..10_000 {
        let call = channel.request(get("/"));
        if format!("{call:?}").contains("unresolved") {
            waiting.push(call);
        } else {
            let error = call.await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Overloaded);
            shed += 1;
        }
    }
    assert_eq!((waiting.len(), shed), (1_000, 9_000));
    // Half of them go, at random; as many others may come.
    let mut draw = 0x2545_F491_4F6C_DD1D_u64;
    waiting.retain(|_| {
        draw ^= draw << 13;
        draw ^= draw >> 7;
        draw ^= draw << 17;
        draw.is_multiple_of(2)
    });
    let free = 1_000 - waiting.len();
    assert!((400..600).contains(&free), "{free}");
    waiting.extend((0..free).map(|_| channel.request(get("/"))));
    let error = channel.request(get("/")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Overloaded);
    registry.tell(&[&server.target]);
    let mut answered = JoinSet::new();
    for (at, call) in waiting.into_iter().enumerate() {
        // Some are dropped as soon as they could be sent.
        answered.spawn(async move {
            let limit = if at.is_multiple_of(3) {
                ms(5)
            } else {
                Duration::from_secs(30)
            };
            match tokio::time::timeout(limit, call).await {
                Ok(response) => drop(text(response.unwrap()).await),
                Err(_) => assert_eq!(at % 3, 0),
            }
        });
    }
    while let Some(done) = answered.join_next().await {
        done.unwrap();
    }
    assert_eq!(in_flight(&channel), 0);
    who(&channel).await;
}
#[tokio::test]
async fn g17_a_hundred_open_bodies_are_load_until_they_end_and_no_latency() {
    let server = Server::start().await;
    let (_registry, channel) = channel_with(&[&server], |builder| builder);
    let mut bodies = Vec::new();
    for _ in 0..100 {
        bodies.push(channel.request(get("/stream")).await.unwrap().into_body());
    }
    assert_eq!(in_flight(&channel), 100);
    let latency = || channel.endpoints()[0].latency.unwrap();
    let before = latency();
    tokio::time::sleep(ms(300)).await;
    // Half end by themselves, half are dropped.
    let rest = bodies.split_off(50);
    drop(rest);
    assert_eq!(in_flight(&channel), 50);
    server.seen.gate.add_permits(50);
    for body in bodies {
        assert_eq!(body.collect().await.unwrap().to_bytes(), "headtail");
    }
    assert_eq!(in_flight(&channel), 0);
    assert_eq!(latency(), before);
}

#[tokio::test]
async fn a_request_may_wait_for_a_service_that_has_nobody() {
    let server = Server::start().await;
    let (registry, told) = registry();
    registry.tell(&[]);
    let channel = Channel::from_source(told)
        .wait_for_ready(Duration::from_secs(30))
        .build()
        .unwrap();
    let mut call = std::pin::pin!(channel.request(get("/")));
    tokio::select! {
        _ = call.as_mut() => panic!("there is nobody"),
        () = tokio::time::sleep(ms(20)) => {}
    }
    registry.tell(&[&server.target]);
    assert_eq!(text(call.await.unwrap()).await, server.port().to_string());
}

#[tokio::test]
async fn a_request_may_wait_for_an_endpoint_that_accepts_connections() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    drop(listener);
    let (registry, told) = registry();
    registry.tell(&[&Target::try_from(addr).unwrap(), &nobody().await]);
    let channel = Channel::from_source(told)
        .wait_for_ready(Duration::from_secs(30))
        .build()
        .unwrap();
    let mut calls = JoinSet::new();
    for _ in 0..100 {
        let call = channel.request(get("/"));
        calls.spawn(async move { text(call.await.unwrap()).await });
    }
    eventually("both have refused", || {
        let told = channel.endpoints();
        told.len() == 2 && told.iter().all(|e| e.is_avoided)
    })
    .await;
    let listener = TcpListener::bind(addr).await.unwrap();
    let server = Server::on(listener, Protocol::Http1);
    while let Some(answer) = calls.join_next().await {
        assert_eq!(answer.unwrap(), server.port().to_string());
    }
    assert_eq!(in_flight(&channel), 0);
}

#[tokio::test]
async fn a_request_that_waits_is_not_held_back_by_an_ejection() {
    let server = Server::start().await;
    let (registry, told) = registry();
    registry.tell(&[&server.target, &nobody().await]);
    let long = Duration::from_secs(60);
    let channel = Channel::from_source(told)
        .ejection(Ejection::default().times(long, long))
        .wait_for_ready(Duration::from_secs(30))
        .build()
        .unwrap();
    let is_ejected = || {
        let mut states = channel.endpoints().into_iter().map(|one| one.state);
        states.any(|state| matches!(state, EndpointState::Ejected { .. }))
    };
    server.seen.fails.store(true, Ordering::SeqCst);
    while !is_ejected() {
        channel.request(get("/")).await.unwrap();
    }
    let addr = format!("127.0.0.1:{}", server.port());
    server.stop().await;
    let mut calls = JoinSet::new();
    for _ in 0..10 {
        let call = channel.request(get("/"));
        calls.spawn(async move { text(call.await.unwrap()).await });
    }
    eventually("both have refused", || {
        channel.endpoints().iter().all(|one| one.is_avoided)
    })
    .await;
    let start = Instant::now();
    let server = Server::on(TcpListener::bind(addr).await.unwrap(), Protocol::Http1);
    while let Some(answer) = calls.join_next().await {
        assert_eq!(answer.unwrap(), server.port().to_string());
    }
    assert!(start.elapsed() < Duration::from_secs(20));
}

#[tokio::test]
async fn the_wait_for_an_endpoint_ends_as_it_would_have_without() {
    let (registry, told) = registry();
    registry.tell(&[]);
    let channel = Channel::from_source(told)
        .wait_for_ready(ms(100))
        .max_waiting(1)
        .build()
        .unwrap();
    eventually("it is known to be empty", || {
        format!("{:?}", channel.request(get("/"))).contains("without")
    })
    .await;
    let start = Instant::now();
    let waits = channel.request(get("/"));
    let error = channel.request(get("/")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Overloaded);
    let error = waits.await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoEndpoints);
    assert!(start.elapsed() >= ms(100));
    registry.tell(&[&nobody().await]);
    eventually("it is known", || channel.endpoints().len() == 1).await;
    let start = Instant::now();
    let error = channel.request(get("/")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Connect);
    assert!(start.elapsed() >= ms(100), "{:?}", start.elapsed());
    assert!(error.to_string().contains("1 tried"), "{error}");
}

#[tokio::test]
async fn bounds_out_of_range_are_refused() {
    let (_registry, told) = registry();
    let error = Channel::from_source(told)
        .max_in_flight(0)
        .build()
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    assert!(error.to_string().contains("max_in_flight"), "{error}");
}
