//! What becomes of connections to an endpoint that leaves.

use std::time::Duration;

use http_body_util::BodyExt;
use lictor_tower::channel::{Protocol, Tls};
use support::certs::Authority;
use support::eventually;
use tokio::time::{Instant, timeout};

use crate::server::{Options, SOON, channel, get, in_flight, text};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g11_a_removed_endpoint_loses_its_idle_connections_within_100_ms_and_a_stream_ends_intact()
{
    let length = support::length(Duration::from_secs(1), Duration::from_secs(30));
    let parts = u32::try_from(length.as_millis() / 10).unwrap();
    let authority = Authority::new("draining");
    let identity = authority.issue(&["web"]);
    for (protocol, spoken) in [(Protocol::Http1, "http/1.1"), (Protocol::Http2, "h2")] {
        let stays = Options::tls(&identity).speaking(&[spoken]).start().await;
        let leaves = Options::tls(&identity).speaking(&[spoken]).start().await;
        let tls = Tls::new().ca_pem(authority.pem());
        let endpoints = [stays.endpoint(), leaves.endpoint()];
        let (feed, channel) = channel(endpoints, tls, |b| b.protocol(protocol).warm_up(3));
        let opened = if protocol == Protocol::Http1 { 3 } else { 1 };
        eventually(SOON, async || {
            stays.seen.accepted() == opened && leaves.seen.accepted() == opened
        })
        .await;
        // A stream on the one that will leave; the others are left to be dropped half-way.
        let stream = loop {
            let response = channel.request(get(&format!("/stream?{parts}"))).await;
            let response = response.unwrap();
            if *response.body().target() == leaves.target() {
                break response;
            }
        };
        // No traffic tells the channel; the source does.
        let removed = Instant::now();
        feed.set([stays.endpoint()].into_iter().collect());
        let only_the_stream = async {
            while leaves.seen.open() > 1 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        let closed = timeout(Duration::from_millis(100), only_the_stream).await;
        assert!(
            closed.is_ok(),
            "{} are open after 100 ms",
            leaves.seen.open()
        );
        println!(
            "{protocol:?}: idle ones closed after {:?}",
            removed.elapsed()
        );
        assert_eq!(leaves.seen.open(), 1);

        let told = text(stream).await;
        let whole: String = (1..=parts).map(|part| format!("{part}\n")).collect();
        assert_eq!(told, whole);
        let ended = Instant::now();
        eventually(SOON, async || leaves.seen.open() == 0).await;
        println!(
            "{protocol:?}: the last one closed {:?} after its stream",
            ended.elapsed()
        );
        // The others have not noticed.
        let response = channel.request(get("/")).await.unwrap();
        assert_eq!(*response.body().target(), stays.target());
        response.into_body().collect().await.unwrap();
        assert_eq!(in_flight(&channel), 0);
    }
}
