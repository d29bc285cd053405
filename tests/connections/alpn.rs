//! What is spoken, and who decides.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use lictor_tower::channel::{Protocol, Tls};
use lictor_tower::retry::RetryPolicy;
use support::certs::Authority;
use support::eventually;
use tokio::sync::Barrier;
use tokio::task::JoinSet;

use crate::server::{
    Handshakes, Options, SOON, Server, chain, channel, get, in_flight, text, version,
};

async fn speaking(authority: &Authority, protocols: &[&str]) -> Server {
    let identity = authority.issue(&["web"]);
    Options::tls(&identity).speaking(protocols).start().await
}

fn trusting(authority: &Authority) -> Tls {
    Tls::new().ca_pem(authority.pem())
}

#[tokio::test]
async fn the_best_that_both_speak_is_spoken() {
    let authority = Authority::new("alpn");
    for (protocol, server, spoken, offered) in [
        (
            Protocol::Auto,
            &["h2", "http/1.1"][..],
            "h2 https",
            &["h2", "http/1.1"][..],
        ),
        (
            Protocol::Auto,
            &["http/1.1"],
            "HTTP/1.1",
            &["h2", "http/1.1"],
        ),
        (
            Protocol::Auto,
            &["http/1.1", "h2"],
            "HTTP/1.1",
            &["h2", "http/1.1"],
        ),
        // Who knows nothing of ALPN speaks HTTP/1.1.
        (Protocol::Auto, &[], "HTTP/1.1", &["h2", "http/1.1"]),
        (
            Protocol::Http1,
            &["h2", "http/1.1"],
            "HTTP/1.1",
            &["http/1.1"],
        ),
        (Protocol::Http1, &[], "HTTP/1.1", &["http/1.1"]),
        (Protocol::Http2, &["http/1.1", "h2"], "h2 https", &["h2"]),
    ] {
        let server = speaking(&authority, server).await;
        let tls = trusting(&authority);
        let (_feed, channel) = channel([server.endpoint()], tls, |b| b.protocol(protocol));
        for _ in 0..3 {
            assert_eq!(version(&channel).await, spoken, "{protocol:?}");
        }
        assert_eq!(server.seen.offers(), [offered]);
        assert_eq!(in_flight(&channel), 0);
    }
}

#[tokio::test]
async fn who_does_not_agree_to_http2_refuses_where_nothing_else_will_do() {
    let authority = Authority::new("alpn");
    for (protocols, says) in [
        (&[][..], "did not agree to HTTP/2"),
        (
            &["http/1.1"],
            "none of the versions of HTTP that were offered",
        ),
    ] {
        let server = speaking(&authority, protocols).await;
        let tls = trusting(&authority);
        let endpoints = [server.endpoint()];
        let (_feed, channel) = channel(endpoints, tls, |b| b.protocol(Protocol::Http2));
        let error = channel.request(get("/")).await.unwrap_err();
        assert!(error.is_connect() && !error.was_sent(), "{error}");
        let told = chain(&error);
        assert!(told.contains(says), "{told}");
        assert!(told.contains(&server.addr.to_string()), "{told}");
    }
}

/// So many requests at one moment, each with an answer of its own.
async fn burst(channel: &lictor_tower::Channel, count: usize) {
    let together = Arc::new(Barrier::new(count));
    let mut callers = JoinSet::new();
    for caller in 0..count {
        let (channel, together) = (channel.clone(), Arc::clone(&together));
        callers.spawn(async move {
            together.wait().await;
            let request = http::Request::put("/echo").body(caller.to_string());
            let response = channel.request(request.unwrap()).await.unwrap();
            assert_eq!(text(response).await, caller.to_string());
        });
    }
    while let Some(caller) = callers.join_next().await {
        caller.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_requests_to_an_endpoint_share_one_connection_if_it_is_http2() {
    let authority = Authority::new("alpn");
    let server = speaking(&authority, &["h2"]).await;
    let (_feed, channel) = channel([server.endpoint()], trusting(&authority), |b| b);
    burst(&channel, 64).await;
    burst(&channel, 64).await;
    assert_eq!(server.seen.accepted(), 1);
    assert_eq!(in_flight(&channel), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_requests_to_an_endpoint_get_one_each_if_it_is_not_and_no_more_than_may_be() {
    let authority = Authority::new("alpn");
    let server = speaking(&authority, &[]).await;
    let (_feed, channel) = channel([server.endpoint()], trusting(&authority), |builder| {
        builder
            .max_connections_per_endpoint(8)
            .waiting_timeout(Duration::from_secs(60))
            .connect_timeout(Duration::from_secs(20))
    });
    burst(&channel, 64).await;
    assert_eq!(server.seen.accepted(), 8);
    burst(&channel, 64).await;
    assert_eq!(server.seen.accepted(), 8);
    assert_eq!(in_flight(&channel), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_changes_its_mind_after_a_restart_is_followed() {
    let authority = Authority::new("alpn");
    let identity = authority.issue(&["web"]);
    let mut server = speaking(&authority, &["h2"]).await;
    let (_feed, channel) = channel([server.endpoint()], trusting(&authority), |builder| {
        // A busy machine may take its time for sixteen handshakes. What crosses with the end of the
        // server is sent again.
        builder
            .connect_timeout(Duration::from_secs(20))
            .retry(RetryPolicy::default())
    });
    let addr = server.addr;
    for (protocols, spoken) in [
        (&["http/1.1"][..], "HTTP/1.1"),
        (&["h2"], "h2 https"),
        (&[], "HTTP/1.1"),
        (&["h2", "http/1.1"], "h2 https"),
    ] {
        burst(&channel, 16).await;
        drop(server);
        let options = Options::tls(&identity).speaking(protocols);
        // The old one has to be gone before there can be a new one.
        server = restarted(options, addr).await;
        burst(&channel, 16).await;
        assert_eq!(version(&channel).await, spoken);
        assert!((1..=17).contains(&server.seen.accepted()));
        eventually(SOON, async || {
            spoken == "HTTP/1.1" || server.seen.open() == 1
        })
        .await;
    }
    assert_eq!(in_flight(&channel), 0);
}

/// A request takes what an attempt to connect comes to that was under way before. What that met says
/// nothing of the endpoint now.
#[tokio::test]
async fn an_attempt_that_began_before_a_request_and_fails_is_followed_by_one_for_the_request() {
    let authority = Authority::new("alpn");
    for way in [Handshakes::Break, Handshakes::EndAndClose] {
        let server = speaking(&authority, &[]).await;
        let (_feed, channel) = channel([server.endpoint()], trusting(&authority), |b| b);
        version(&channel).await;
        // The second needs a connection of its own, and is served by the first one's.
        server.seen.handshakes.send_replace(Handshakes::Wait);
        let first = channel.request(get("/stream?5")).await.unwrap();
        let mut second = pin!(version(&channel));
        begin(second.as_mut()).await;
        eventually(SOON, async || server.seen.offers().len() == 2).await;
        text(first).await;
        second.await;

        let mut held = pin!(channel.request(get("/never")));
        begin(held.as_mut()).await;
        let mut joins = pin!(channel.request(get("/version")));
        begin(joins.as_mut()).await;
        server.seen.handshakes.send_replace(way);
        eventually(SOON, async || server.seen.open() == 1).await;
        server.seen.handshakes.send_replace(Handshakes::End);
        assert_eq!(text(joins.await.unwrap()).await, "HTTP/1.1", "{way:?}");
        assert_eq!(server.seen.accepted(), 3, "{way:?}");
    }
}

/// Polls what cannot have ended yet.
async fn begin(mut future: Pin<&mut impl Future>) {
    let is_pending = poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx).is_pending()));
    assert!(is_pending.await);
}

async fn restarted(options: Options, addr: std::net::SocketAddr) -> Server {
    eventually(SOON, async || {
        tokio::net::TcpListener::bind(addr).await.is_ok()
    })
    .await;
    options.on(addr).await
}
