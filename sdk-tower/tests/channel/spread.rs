use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::time::Duration;

use lictor_tower::channel::Policy;
use lictor_tower::endpoint::{Endpoint, Target};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tower_service::Service;

use crate::support::{
    Server, channel, channel_with, eventually, get, in_flight, post, registry, text, who,
};
use lictor_tower::channel::Channel;

#[tokio::test]
async fn calls_are_spread_over_all_instances() {
    for policy in [Policy::PeakEwma, Policy::PendingRequests] {
        let servers = [
            Server::start().await,
            Server::start().await,
            Server::start().await,
        ];
        let (_registry, channel) = channel_with(&[&servers[0], &servers[1], &servers[2]], |b| {
            b.policy(policy)
        });
        // An answer that was slow by chance sets an instance aside for some seconds.
        let deadline = Instant::now() + Duration::from_secs(30);
        let mut calls: HashMap<u16, u32> = HashMap::new();
        while calls.len() < 3 || calls.values().any(|calls| *calls < 60) {
            assert!(Instant::now() < deadline, "{policy:?}: {calls:?}");
            *calls.entry(who(&channel).await).or_default() += 1;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_callers_share_few_connections_and_nothing_stays_in_flight() {
    let servers = [Server::start().await, Server::start().await];
    let (_registry, channel) = channel(&[&servers[0], &servers[1]]);
    let mut callers = JoinSet::new();
    for caller in 0..64 {
        let channel = channel.clone();
        callers.spawn(async move {
            for call in 0..50 {
                let sent = format!("{caller} {call}");
                let response = channel.request(post("/echo", sent.clone())).await.unwrap();
                assert_eq!(text(response).await, sent);
                who(&channel).await;
            }
        });
    }
    while let Some(caller) = callers.join_next().await {
        caller.unwrap();
    }
    assert_eq!(in_flight(&channel), 0);
    let requests: u32 = servers.iter().map(|s| s.seen.requests()).sum();
    assert_eq!(requests, 64 * 100);
    for server in &servers {
        assert!(server.seen.accepted() <= 128, "{}", server.seen.accepted());
        assert!(server.seen.requests() > 64 * 20);
    }
}

#[tokio::test]
async fn one_caller_uses_one_connection_per_instance() {
    let server = Server::start().await;
    let (_registry, channel) = channel(&[&server]);
    for _ in 0..50 {
        who(&channel).await;
    }
    assert_eq!(server.seen.accepted(), 1);
}

#[tokio::test]
async fn a_lower_priority_number_takes_all_while_it_can_be_reached() {
    let near = Server::start().await;
    let far = Server::start().await;
    let (registry, told) = registry();
    let with = |target: &Target, priority| Endpoint::new(target.clone()).with_priority(priority);
    registry.tell_set(
        [with(&near.target, 1), with(&far.target, 2)]
            .into_iter()
            .collect(),
    );
    let channel = Channel::from_source(told).build().unwrap();
    for _ in 0..50 {
        assert_eq!(who(&channel).await, near.port());
    }
    drop(near);
    for _ in 0..50 {
        assert_eq!(who(&channel).await, far.port());
    }
}

#[tokio::test]
async fn weights_are_followed_while_nobody_is_busy() {
    let light = Server::start().await;
    let heavy = Server::start().await;
    let (registry, told) = registry();
    let with = |target: &Target, weight| Endpoint::new(target.clone()).with_weight(weight);
    registry.tell_set(
        [with(&light.target, 1), with(&heavy.target, 9)]
            .into_iter()
            .collect(),
    );
    let channel = Channel::from_source(told)
        .policy(Policy::PendingRequests)
        .build()
        .unwrap();
    let mut calls = 0;
    for _ in 0..1_000 {
        calls += u32::from(who(&channel).await == light.port());
    }
    assert!((50..160).contains(&calls), "{calls}");
}

#[tokio::test]
async fn an_instance_that_answers_with_errors_is_left_alone() {
    let good = Server::start().await;
    let bad = Server::start().await;
    let (_registry, channel) = channel(&[&good, &bad]);
    bad.seen.fails.store(true, Ordering::SeqCst);
    for _ in 0..300 {
        let response = channel.request(get("/")).await.unwrap();
        text(response).await;
    }
    assert!((1..10).contains(&bad.seen.requests()));
    assert!(channel.endpoints().iter().any(|e| e.is_penalized));
}

#[tokio::test]
async fn the_state_of_all_endpoints_can_be_looked_at() {
    let server = Server::start().await;
    let (_registry, channel) = channel(&[&server]);
    channel.wait_ready().await.unwrap();
    let before = channel.endpoints();
    assert_eq!(before.len(), 1);
    assert_eq!(before[0].target, server.target);
    assert_eq!((before[0].weight, before[0].priority), (1, 1));
    assert_eq!(before[0].latency, None);
    let mut caller = channel.clone();
    let call = tokio::time::timeout(Duration::from_millis(50), caller.call(get("/slow")));
    assert!(call.await.is_err());
    eventually("nothing is in flight", || in_flight(&channel) == 0).await;
    who(&channel).await;
    assert!(channel.endpoints()[0].latency.is_some());
}

#[tokio::test]
async fn the_extension_names_the_endpoint_if_asked_for() {
    let server = Server::start().await;
    let (_registry, plain) = channel(&[&server]);
    let response = plain.request(get("/")).await.unwrap();
    assert!(response.extensions().get::<Target>().is_none());
    let (_registry, telling) = channel_with(&[&server], |builder| builder.target_extension());
    let response = telling.request(get("/")).await.unwrap();
    assert_eq!(response.extensions().get::<Target>(), Some(&server.target));
}

#[tokio::test]
async fn the_host_is_what_the_request_or_the_builder_says() {
    let server = Server::start().await;
    let (_registry, named) = channel_with(&[&server], |builder| builder.host("web"));
    let (_registry, unnamed) = channel(&[&server]);
    let with_header = http::Request::get("/host")
        .header("host", "own")
        .body(http_body_util::Empty::<bytes::Bytes>::new())
        .unwrap();
    let cases = [
        (&named, get("http://api:81/host"), "api:81 /host".to_owned()),
        (&named, get("/host"), "web /host".to_owned()),
        (&named, with_header, "own /host".to_owned()),
        (&unnamed, get("/host"), format!("{} /host", server.target)),
    ];
    for (channel, request, expected) in cases {
        let response = channel.request(request).await.unwrap();
        assert_eq!(text(response).await, expected);
    }
}
