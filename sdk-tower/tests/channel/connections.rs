//! How many connections there are, how old they get, and which are opened in advance.

use std::sync::Arc;
use std::time::Duration;

use http_body_util::BodyExt;
use lictor_tower::channel::{Builder, Channel, EndpointState, Policy, Protocol};
use lictor_tower::error::ErrorKind;
use lictor_tower::retry::RetryPolicy;
use tokio::net::TcpListener;
use tokio::sync::Barrier;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::scripted::{Scripted, over, status};
use crate::support::{
    Server, Told, channel_with, eventually, get, in_flight, nobody, post, registry, text, who,
};

fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// A channel whose requests stand in line for as long as a test may take.
fn bounded(most: usize) -> impl FnOnce(Builder<Told>) -> Builder<Told> {
    move |builder| {
        builder
            .max_connections_per_endpoint(most)
            .waiting_timeout(Duration::from_secs(60))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_more_connections_are_open_than_may_be_at_a_concurrency_of_64() {
    let server = Server::start().await;
    let (_registry, channel) = channel_with(&[&server], bounded(4));
    let together = Arc::new(Barrier::new(64));
    let mut callers = JoinSet::new();
    for caller in 0..64 {
        let (channel, together) = (channel.clone(), Arc::clone(&together));
        callers.spawn(async move {
            together.wait().await;
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
    assert_eq!(server.seen.requests(), 64 * 20);
    assert_eq!(server.seen.accepted(), 4);
    assert_eq!(in_flight(&channel), 0);
}

#[tokio::test]
async fn a_request_goes_to_an_endpoint_with_room_before_it_stands_in_line() {
    for policy in [Policy::PeakEwma, Policy::RoundRobin] {
        let servers = [Server::start().await, Server::start().await];
        let (_registry, channel) = channel_with(&[&servers[0], &servers[1]], |builder| {
            bounded(1)(builder).policy(policy)
        });
        // Wherever the first goes, the second finds room at the other.
        let mut held = Vec::new();
        for _ in 0..2 {
            held.push(channel.request(get("/stream")).await.unwrap());
        }
        let mut asked: Vec<_> = held.iter().map(|one| one.body().target().port()).collect();
        asked.sort_unstable();
        let mut ports = [servers[0].port(), servers[1].port()];
        ports.sort_unstable();
        assert_eq!(asked, ports);
        // The third has to wait, and is served by the one that is free first.
        let mut third = std::pin::pin!(who(&channel));
        tokio::select! {
            _ = third.as_mut() => panic!("all connections are in use"),
            () = tokio::time::sleep(ms(20)) => {}
        }
        drop(held);
        let port = third.await;
        assert!(ports.contains(&port));
        assert_eq!(in_flight(&channel), 0);
    }
}

#[tokio::test]
async fn those_in_line_are_served_in_the_order_of_their_coming() {
    let server = Server::start().await;
    let (_registry, channel) = channel_with(&[&server], bounded(1));
    channel.wait_ready().await.unwrap();
    let first = channel.request(get("/stream")).await.unwrap();
    let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
    let mut callers = JoinSet::new();
    for caller in 0..10 {
        let (calling, tell) = (channel.clone(), tell.clone());
        callers.spawn(async move {
            who(&calling).await;
            tell.send(caller).unwrap();
        });
        // It has come when it counts.
        let so_many = caller + 2;
        eventually("it stands in line", || in_flight(&channel) == so_many).await;
        tokio::task::yield_now().await;
    }
    drop(tell);
    drop(first);
    let mut served = Vec::new();
    while let Some(caller) = told.recv().await {
        served.push(caller);
    }
    assert_eq!(served, (0..10).collect::<Vec<_>>());
    assert_eq!(server.seen.most_open(), 1);
}

#[tokio::test]
async fn those_who_give_up_lose_no_connection() {
    let server = Server::start().await;
    let (_registry, channel) = channel_with(&[&server], bounded(2));
    channel.wait_ready().await.unwrap();
    for round in 0..50_u32 {
        let mut calls: Vec<_> = (0..8)
            .map(|_| Box::pin(channel.request(get("/slow"))))
            .collect();
        // Some have a connection by now, some open one, some stand in line.
        for call in &mut calls {
            tokio::select! {
                biased;
                _ = call => panic!("the gate is shut"),
                () = tokio::task::yield_now() => {}
            }
        }
        for _ in 0..round % 5 {
            tokio::task::yield_now().await;
        }
        // From either end.
        if round % 2 == 0 {
            calls.reverse();
        }
        drop(calls);
        assert_eq!(in_flight(&channel), 0);
    }
    for _ in 0..4 {
        who(&channel).await;
    }
    // The server may not have heard yet that a socket is closed; the channel has closed it.
    eventually("the others are closed", || server.seen.open() <= 2).await;
    // Both slots are there.
    let both = [
        channel.request(get("/stream")).await.unwrap(),
        channel.request(get("/stream")).await.unwrap(),
    ];
    drop(both);
}

#[tokio::test]
async fn who_stands_in_line_too_long_is_shed_and_so_is_who_finds_it_full() {
    let server = Server::start().await;
    let (_registry, channel) = channel_with(&[&server], |builder| {
        builder
            .max_connections_per_endpoint(1)
            .waiting_timeout(ms(60))
            .max_waiting(1)
    });
    channel.wait_ready().await.unwrap();
    let _held = channel.request(get("/stream")).await.unwrap();
    let mut first = std::pin::pin!(channel.request(get("/")));
    let began = Instant::now();
    tokio::select! {
        biased;
        _ = first.as_mut() => panic!("the connection is in use"),
        () = tokio::task::yield_now() => {}
    }
    let full = channel.request(get("/")).await.unwrap_err();
    let late = first.await.unwrap_err();
    assert!(began.elapsed() >= ms(60));
    for (error, says) in [
        (full, "1 requests are waiting already"),
        (late, "all connections were in use for 60ms"),
    ] {
        assert_eq!(error.kind(), ErrorKind::Overloaded);
        assert!(!error.was_sent());
        assert!(error.to_string().contains(says), "{error}");
    }
    assert_eq!(in_flight(&channel), 1);
}

#[tokio::test]
async fn a_line_at_an_endpoint_that_leaves_or_breaks_goes_elsewhere() {
    let (server, other) = (Server::start().await, Server::start().await);
    let (registry, told) = registry();
    registry.tell(&[&server.target]);
    let channel = bounded(1)(Channel::from_source(told)).build().unwrap();
    channel.wait_ready().await.unwrap();
    let _held = channel.request(get("/stream")).await.unwrap();
    let mut calls = JoinSet::new();
    let calling = channel.clone();
    calls.spawn(async move { who(&calling).await });
    eventually("it stands in line", || in_flight(&channel) == 2).await;
    registry.tell(&[&other.target]);
    assert_eq!(calls.join_next().await.unwrap().unwrap(), other.port());

    // Now the server dies under somebody in line.
    let mut calls = JoinSet::new();
    calls.spawn(channel.request(get("/slow")));
    eventually("it is sent", || other.seen.requests() == 2).await;
    calls.spawn(channel.request(get("/")));
    eventually("it stands in line", || in_flight(&channel) == 3).await;
    drop(other);
    // The one that was sent, and the one in line.
    let errors = calls.join_all().await.into_iter();
    let errors: Vec<_> = errors.map(|ended| ended.unwrap_err()).collect();
    let in_line: Vec<_> = errors.iter().filter(|error| !error.was_sent()).collect();
    assert_eq!((errors.len(), in_line.len()), (2, 1), "{errors:?}");
    assert!(in_line[0].is_connect(), "{}", in_line[0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_end_at_their_age_under_load_and_no_request_fails() {
    for protocol in [Protocol::Http1, Protocol::Http2] {
        let server = Server::speaking(protocol).await;
        let (_registry, channel) = channel_with(&[&server], |builder| {
            builder.protocol(protocol).max_connection_age(ms(64))
        });
        // Sixteen of HTTP/1.1, one of HTTP/2, and four generations of them.
        let enough = if protocol == Protocol::Http1 { 64 } else { 4 };
        let began = Instant::now();
        let mut callers = JoinSet::new();
        for caller in 0..16 {
            let (channel, seen) = (channel.clone(), Arc::clone(&server.seen));
            callers.spawn(async move {
                let mut calls = 0_u32;
                while seen.accepted() < enough {
                    assert!(began.elapsed() < Duration::from_secs(30));
                    let sent = format!("{caller} {calls}");
                    let response = channel.request(post("/echo", sent.clone())).await.unwrap();
                    assert_eq!(text(response).await, sent);
                    calls += 1;
                }
                calls
            });
        }
        let mut calls = 0;
        while let Some(made) = callers.join_next().await {
            calls += made.unwrap();
        }
        assert_eq!(server.seen.requests(), calls);
        // Nothing that is over its time stays open.
        eventually("all are closed", || server.seen.open() == 0).await;
    }
}

#[tokio::test]
async fn a_shared_connection_past_its_age_takes_no_request_and_finishes_its_own() {
    let server = Server::speaking(Protocol::Http2).await;
    let (_registry, channel) = channel_with(&[&server], |builder| {
        builder.protocol(Protocol::Http2).max_connection_age(ms(64))
    });
    let mut long = channel.request(get("/stream")).await.unwrap();
    let head = long.body_mut().frame().await.unwrap().unwrap();
    assert_eq!(head.into_data().unwrap(), "head");
    tokio::time::sleep(ms(200)).await;
    who(&channel).await;
    assert!(server.seen.accepted() >= 2);
    eventually("the young one is over, too", || server.seen.open() == 1).await;
    server.seen.gate.add_permits(1);
    assert_eq!(text(long).await, "tail");
    eventually("nothing holds it", || server.seen.open() == 0).await;
    assert_eq!(in_flight(&channel), 0);
}

#[tokio::test]
async fn no_more_idle_connections_are_kept_than_may_be_and_none_for_longer_than_it_may() {
    let server = Server::start().await;
    let (_registry, channel) = channel_with(&[&server], |builder| {
        builder.max_idle_per_endpoint(2).idle_timeout(ms(400))
    });
    channel.wait_ready().await.unwrap();
    let mut held = Vec::new();
    for _ in 0..8 {
        held.push(channel.request(get("/stream")).await.unwrap());
    }
    server.seen.gate.add_permits(8);
    for response in held {
        assert_eq!(text(response).await, "headtail");
    }
    let idle_since = Instant::now();
    eventually("two are kept", || server.seen.open() == 2).await;
    eventually("none is kept", || server.seen.open() == 0).await;
    // Between three quarters of the time and the whole, and later where the machine is busy.
    assert!(
        idle_since.elapsed() >= ms(300) - ms(10),
        "{:?}",
        idle_since.elapsed()
    );
    assert_eq!(server.seen.accepted(), 8);
}

#[tokio::test]
async fn an_endpoint_has_its_connections_before_there_are_requests() {
    for (protocol, opened) in [(Protocol::Http1, 3), (Protocol::Http2, 1)] {
        let first = Server::speaking(protocol).await;
        let (registry, channel) =
            channel_with(&[&first], |builder| builder.protocol(protocol).warm_up(3));
        eventually("it is warm", || first.seen.accepted() == opened).await;
        // One that joins is warmed up, one that stays is not once more.
        let second = Server::speaking(protocol).await;
        registry.tell(&[&first.target, &second.target]);
        eventually("it is warm", || second.seen.accepted() == opened).await;
        let mut callers = JoinSet::new();
        for _ in 0..3 {
            let channel = channel.clone();
            callers.spawn(async move { who(&channel).await });
        }
        while let Some(port) = callers.join_next().await {
            port.unwrap();
        }
        assert_eq!(
            (first.seen.accepted(), second.seen.accepted()),
            (opened, opened)
        );
        assert_eq!(in_flight(&channel), 0);
        registry.tell(&[]);
        eventually("all have closed", || {
            first.seen.open() + second.seen.open() == 0
        })
        .await;
        drop(channel);
        registry.deserted().await;
    }
}

#[tokio::test]
async fn one_that_refuses_is_known_before_there_are_requests() {
    let server = Server::start().await;
    let (registry, told) = registry();
    let dead = nobody().await;
    registry.tell(&[&dead, &server.target]);
    let channel = Channel::from_source(told).warm_up(1).build().unwrap();
    let is_known = || {
        let endpoints = channel.endpoints();
        endpoints.iter().any(|e| e.target == dead && e.is_avoided)
    };
    eventually("it has refused", is_known).await;
    assert_eq!(server.seen.requests(), 0);
    assert_eq!(who(&channel).await, server.port());
}

#[tokio::test]
async fn a_connection_is_opened_in_advance_to_many_and_each_once() {
    // One listener on many addresses, as many endpoints.
    let listener = TcpListener::bind("0.0.0.0:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let server = Server::on_port(listener, port);
    let targets: Vec<_> = (1..=200)
        .map(|last| format!("127.0.1.{last}:{port}").parse().unwrap())
        .collect();
    let (registry, told) = registry();
    registry.tell(&targets.iter().collect::<Vec<_>>());
    let channel = Channel::from_source(told).warm_up(1).build().unwrap();
    eventually("all are warm", || server.seen.open() == 200).await;
    assert_eq!(server.seen.accepted(), 200);
    drop(channel);
    eventually("all have closed", || server.seen.open() == 0).await;
}

#[tokio::test]
async fn options_that_cannot_work_are_refused_with_what_would() {
    type Change = fn(Builder<Told>) -> Builder<Told>;
    let cases: [(Change, &str); 4] = [
        (
            |builder| builder.max_connections_per_endpoint(0),
            "max_connections_per_endpoint is 0; give 1 or more",
        ),
        (
            |builder| builder.max_connection_age(Duration::ZERO),
            "max_connection_age is zero",
        ),
        (
            |builder| builder.max_connections_per_endpoint(2).warm_up(3),
            "warm_up is 3, but max_connections_per_endpoint only 2",
        ),
        (
            |builder| builder.max_idle_per_endpoint(0).warm_up(1),
            "warm_up is 1, but max_idle_per_endpoint only 0",
        ),
    ];
    for (option, says) in cases {
        let (_registry, told) = registry();
        let error = option(Channel::from_source(told)).build().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
        assert!(error.to_string().contains(says), "{error}");
    }
}

#[tokio::test]
async fn requests_in_line_at_an_endpoint_that_leaves_stand_in_line_elsewhere() {
    let servers = [Server::start().await, Server::start().await];
    let (registry, channel) = channel_with(&[&servers[0], &servers[1]], bounded(1));
    let mut slow = JoinSet::new();
    for _ in 0..2 {
        let call = channel.request(get("/slow"));
        slow.spawn(async move { text(call.await.unwrap()).await });
    }
    eventually("both are busy", || {
        servers.iter().all(|server| server.seen.requests() == 1)
    })
    .await;
    let mut waiting = JoinSet::new();
    for _ in 0..8 {
        let call = channel.request(get("/"));
        waiting.spawn(async move { text(call.await.unwrap()).await });
    }
    eventually("all stand in line", || channel.snapshot().waiting == 8).await;
    registry.tell(&[&servers[1].target]);
    eventually("the other one has left", || channel.endpoints().len() <= 2).await;
    servers[1].seen.gate.add_permits(1);
    let stayed = servers[1].port().to_string();
    while let Some(answer) = waiting.join_next().await {
        assert_eq!(answer.unwrap(), stayed);
    }
    servers[0].seen.gate.add_permits(1);
    while let Some(answer) = slow.join_next().await {
        answer.unwrap();
    }
    assert_eq!(in_flight(&channel), 0);
}

#[tokio::test]
async fn an_answer_that_is_kept_does_not_hold_up_the_retry_that_it_is_kept_for() {
    let server = Scripted::start(|_| status(503)).await;
    let (_registry, channel) = over(&[&server], |builder| {
        let builder = builder
            .retry(RetryPolicy::new())
            .max_connections_per_endpoint(1);
        builder.waiting_timeout(Duration::from_secs(600))
    });
    let call = tokio::time::timeout(Duration::from_secs(30), channel.request(get("/")));
    let response = call
        .await
        .expect("it waits for its own connection")
        .unwrap();
    assert_eq!(response.status(), 503);
    assert_eq!(text(response).await, "no");
}

#[tokio::test]
async fn an_endpoint_that_comes_back_counts_what_is_open_from_before() {
    let server = Server::start().await;
    let (registry, channel) = channel_with(&[&server], bounded(1));
    channel.wait_ready().await.unwrap();
    let all = |draining: bool| {
        let endpoints = channel.endpoints();
        let mut states = endpoints.iter().map(|one| one.state);
        states.all(|state| (state == EndpointState::Draining) == draining)
    };
    for round in 1..=5 {
        let held = channel.request(get("/stream")).await.unwrap();
        registry.tell(&[]);
        eventually("it has left", || all(true)).await;
        registry.tell(&[&server.target]);
        eventually("it is back", || !all(true)).await;
        let mut next = std::pin::pin!(who(&channel));
        tokio::select! {
            _ = next.as_mut() => panic!("its only connection is in use"),
            () = tokio::time::sleep(ms(10)) => {}
        }
        assert_eq!(server.seen.accepted(), round);
        // As soon as the old one is closed.
        server.seen.gate.add_permits(1);
        assert_eq!(text(held).await, "headtail");
        assert_eq!(next.await, server.port());
        assert_eq!(server.seen.requests(), 2 * round);
    }
    assert!(all(false));
    assert_eq!(in_flight(&channel), 0);
}
