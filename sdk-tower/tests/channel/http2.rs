use lictor_tower::channel::{Channel, Protocol};
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
    let again = Server::on(
        tokio::net::TcpListener::bind(addr).await.unwrap(),
        Protocol::Http2,
    );
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
