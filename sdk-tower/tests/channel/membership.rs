use std::panic::Location;
use std::time::Duration;

use http_body_util::BodyExt;
use lictor_tower::channel::{Channel, EndpointState, Protocol};
use lictor_tower::endpoint::Endpoint;

use crate::support::{
    Server, channel, channel_with, eventually, get, in_flight, registry, text, who, within,
};

/// It takes a few milliseconds; the rest is for a machine that does other things too.
const SOON: Duration = Duration::from_secs(1);

#[tokio::test]
async fn a_removed_endpoint_gets_no_more_calls_and_its_idle_connections_close_without_traffic() {
    for protocol in [Protocol::Http1, Protocol::Http2] {
        let leaves = Server::speaking(protocol).await;
        let stays = Server::speaking(protocol).await;
        let (registry, channel) = channel_with(&[&leaves, &stays], |b| b.protocol(protocol));
        while leaves.seen.requests() == 0 {
            who(&channel).await;
        }
        assert_eq!(leaves.seen.open(), 1);
        registry.tell(&[&stays.target]);
        within(SOON, Location::caller(), "idle connections close", || {
            leaves.seen.open() == 0
        })
        .await;
        for _ in 0..20 {
            assert_eq!(who(&channel).await, stays.port());
        }
    }
}

/// Nobody is in rotation, and the one that was has a request under way still.
fn is_leaving(channel: &Channel) -> bool {
    let endpoints = channel.endpoints();
    let mut states = endpoints.iter().map(|endpoint| endpoint.state);
    endpoints.len() == 1 && states.all(|state| state == EndpointState::Draining)
}

#[tokio::test]
async fn a_response_that_streams_while_its_endpoint_leaves_arrives_whole() {
    for protocol in [Protocol::Http1, Protocol::Http2] {
        let leaves = Server::speaking(protocol).await;
        let (registry, channel) = channel_with(&[&leaves], |b| b.protocol(protocol));
        let response = channel.request(get("/stream")).await.unwrap();
        let mut body = response.into_body();
        let head = body.frame().await.unwrap().unwrap().into_data().unwrap();
        assert_eq!(head, "head");
        registry.tell(&[]);
        eventually("it has left", || is_leaving(&channel)).await;
        assert_eq!(leaves.seen.open(), 1);
        leaves.seen.gate.add_permits(1);
        assert_eq!(body.collect().await.unwrap().to_bytes(), "tail");
        within(SOON, Location::caller(), "its connection closes", || {
            leaves.seen.open() == 0
        })
        .await;
    }
}

#[tokio::test]
async fn a_request_that_is_under_way_while_its_endpoint_leaves_is_answered() {
    let leaves = Server::start().await;
    let (registry, channel) = channel(&[&leaves]);
    let call = channel.request(get("/slow"));
    let mut call = Box::pin(call);
    tokio::select! {
        _ = call.as_mut() => panic!("the gate is shut"),
        () = eventually("it is there", || leaves.seen.requests() == 1) => {}
    }
    registry.tell(&[]);
    eventually("it has left", || is_leaving(&channel)).await;
    leaves.seen.gate.add_permits(1);
    assert_eq!(text(call.await.unwrap()).await, leaves.port().to_string());
}

#[tokio::test]
async fn g10_endpoints_that_stay_keep_their_connections_when_others_or_weights_change() {
    let stays = Server::start().await;
    let other = Server::start().await;
    let (registry, channel) = channel(&[&stays]);
    who(&channel).await;
    registry.tell(&[&stays.target, &other.target]);
    eventually("the other has joined", || channel.endpoints().len() == 2).await;
    for _ in 0..20 {
        who(&channel).await;
    }
    let heavier = Endpoint::new(stays.target.clone()).with_weight(10);
    registry.tell_set([heavier].into_iter().collect());
    eventually("the weight is known", || {
        channel.endpoints().iter().any(|e| e.weight == 10)
    })
    .await;
    for _ in 0..20 {
        who(&channel).await;
    }
    assert_eq!(stays.seen.accepted(), 1);
}

#[tokio::test]
async fn a_new_endpoint_is_called_as_soon_as_it_is_known() {
    let first = Server::start().await;
    let (registry, channel) = channel(&[&first]);
    who(&channel).await;
    let joins = Server::start().await;
    registry.tell(&[&first.target, &joins.target]);
    eventually("it has joined", || channel.endpoints().len() == 2).await;
    for _ in 0..50 {
        who(&channel).await;
    }
    assert!(joins.seen.requests() > 0);
}

#[tokio::test]
async fn the_last_handle_ends_the_source_and_all_connections() {
    for protocol in [Protocol::Http1, Protocol::Http2] {
        let server = Server::speaking(protocol).await;
        let (registry, channel) = channel_with(&[&server], |b| b.protocol(protocol));
        let other = channel.clone();
        who(&channel).await;
        drop(channel);
        who(&other).await;
        assert_eq!(server.seen.open(), 1);
        drop(other);
        tokio::time::timeout(SOON, registry.deserted())
            .await
            .unwrap();
        within(SOON, Location::caller(), "connections close", || {
            server.seen.open() == 0
        })
        .await;
    }
}

#[tokio::test]
async fn a_body_outlives_the_channel() {
    let server = Server::start().await;
    let (_registry, channel) = channel(&[&server]);
    let response = channel.request(get("/stream")).await.unwrap();
    drop(channel);
    server.seen.gate.add_permits(1);
    assert_eq!(text(response).await, "headtail");
    eventually("its connection closes", || server.seen.open() == 0).await;
}

#[tokio::test]
async fn unused_connections_close_after_the_idle_timeout() {
    for protocol in [Protocol::Http1, Protocol::Http2] {
        let server = Server::speaking(protocol).await;
        let (_registry, channel) = channel_with(&[&server], |builder| {
            builder
                .protocol(protocol)
                .idle_timeout(Duration::from_millis(200))
        });
        who(&channel).await;
        assert_eq!(server.seen.open(), 1);
        eventually("it is closed", || server.seen.open() == 0).await;
        who(&channel).await;
        assert_eq!(server.seen.accepted(), 2);
    }
}

#[tokio::test]
async fn connections_in_use_outlive_the_idle_timeout() {
    let server = Server::start().await;
    let (_registry, channel) = channel_with(&[&server], |builder| {
        builder.idle_timeout(Duration::from_millis(40))
    });
    let response = channel.request(get("/stream")).await.unwrap();
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(in_flight(&channel), 1);
    server.seen.gate.add_permits(1);
    assert_eq!(text(response).await, "headtail");
    assert_eq!(in_flight(&channel), 0);
}

#[tokio::test]
async fn an_idle_connection_that_the_server_closes_is_replaced() {
    let server = Server::start().await;
    let listener_target = server.target.clone();
    let (registry, told) = registry();
    registry.tell(&[&listener_target]);
    let channel = Channel::from_source(told).build().unwrap();
    who(&channel).await;
    let addr = format!("127.0.0.1:{}", server.port());
    server.stop().await;
    let again = Server::on(
        tokio::net::TcpListener::bind(addr).await.unwrap(),
        Protocol::Http1,
    );
    who(&channel).await;
    assert_eq!(again.seen.requests(), 1);
}
