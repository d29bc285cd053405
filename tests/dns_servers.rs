//! SRV records of another DNS server than Consul: NSD, with zones as Kubernetes, Mesos-DNS and
//! CoreDNS name their services.
//!
//! Where there is no NSD these tests say so, and `tests/run` counts them as left out.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use ::http::Request;
use bytes::Bytes;
use futures_core::Stream;
use hickory_resolver::proto::op::{Message, MessageType, OpCode, Query};
use hickory_resolver::proto::rr::{Name, Record, RecordType};
use http_body_util::{BodyExt, Empty};
use lictor_tower::Channel;
use lictor_tower::channel::Policy;
use lictor_tower::endpoint::EndpointSet;
use lictor_tower::source::{Source, SrvSource, SrvSourceBuilder, Status};
use support::backend::Backend;
use support::nsd::{self, Nsd};
use support::{eventually, left_out};
use tokio::net::UdpSocket;
use tokio::time::Instant;

const PATIENCE: Duration = Duration::from_secs(30);

/// An NSD that serves these zones; `None`, said loudly, where there is none.
async fn serving(zones: &[(&str, Option<&str>)]) -> Option<Nsd> {
    match nsd::binary() {
        Ok(binary) => Some(Nsd::start(binary, zones).await),
        Err(why) => {
            left_out("nsd", &why);
            None
        }
    }
}

fn builder(nsd: &Nsd, name: &str) -> SrvSourceBuilder {
    SrvSource::builder(name)
        .server(nsd.addr())
        .timeout(Duration::from_secs(10))
        .min_refresh(Duration::from_millis(50))
}

fn resolving(nsd: &Nsd, name: &str) -> SrvSource {
    builder(nsd, name).resolve_targets(true).build().unwrap()
}

async fn next(source: &mut SrvSource) -> EndpointSet {
    let next = std::future::poll_fn(|cx| Pin::new(&mut *source).poll_next(cx));
    let next = tokio::time::timeout(PATIENCE, next).await;
    next.expect("a set in time").expect("no end")
}

/// Drives a source until its status fits; it must not tell a set meanwhile.
async fn until(source: &mut SrvSource, fits: impl Fn(&Status) -> bool) -> Status {
    let driven = std::future::poll_fn(|cx| {
        let told = Pin::new(&mut *source).poll_next(cx);
        assert!(told.is_pending(), "no set is told: {told:?}");
        let status = source.status();
        match fits(&status) {
            true => Poll::Ready(status),
            false => Poll::Pending,
        }
    });
    let driven = tokio::time::timeout(PATIENCE, driven);
    driven.await.expect("the status in time")
}

fn reason(status: &Status) -> &str {
    match status {
        Status::Failing { reason } | Status::Stale { reason, .. } => reason,
        other => panic!("no reason in {other:?}"),
    }
}

/// Target, priority and weight of each.
fn shown(set: &EndpointSet) -> Vec<String> {
    let endpoints = set.iter();
    endpoints
        .map(|e| format!("{} {} {}", e.target(), e.priority(), e.weight()))
        .collect()
}

/// What the server itself says to a client without retries over TCP.
async fn by_udp(server: SocketAddr, name: &str) -> Message {
    let mut question = Message::new(7, MessageType::Query, OpCode::Query);
    question.add_query(Query::query(
        Name::from_ascii(name).unwrap(),
        RecordType::SRV,
    ));
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let asked = async {
        socket
            .send_to(&question.to_vec().unwrap(), server)
            .await
            .unwrap();
        let mut answer = vec![0; 65_536];
        let length = socket.recv(&mut answer).await.unwrap();
        Message::from_vec(&answer[..length]).unwrap()
    };
    tokio::time::timeout(PATIENCE, asked).await.unwrap()
}

/// A headless service, one of whose pods has a name of its own, and one with both families.
const KUBERNETES: &str = "\
_http._tcp.web.default.svc IN SRV 0 33 8080 10-1-2-3.web.default.svc
_http._tcp.web.default.svc IN SRV 0 33 8080 10-1-2-4.web.default.svc
_http._tcp.web.default.svc IN SRV 0 33 8080 web-0.web.default.svc
_http._tcp.web.default.svc IN SRV 0 33 8080 2001-db8--5.web.default.svc
10-1-2-3.web.default.svc IN A 10.1.2.3
10-1-2-4.web.default.svc IN A 10.1.2.4
web-0.web.default.svc IN A 10.1.2.9
web-0.web.default.svc IN AAAA 2001:db8::9
2001-db8--5.web.default.svc IN AAAA 2001:db8::5
_http._tcp.node.default.svc IN SRV 0 100 80 10-1-2-7.node.default.svc
10-1-2-7.node.default.svc IN A 10.1.2.7
";

const MESOS: &str = "\
_web._tcp.marathon IN SRV 0 0 31302 web-s4a5-s0.marathon.slave
_web._tcp.marathon IN SRV 0 0 31891 web-x2b1-s1.marathon.slave
web-s4a5-s0.marathon.slave IN A 10.2.0.1
web-x2b1-s1.marathon.slave IN A 10.2.0.1
";

/// What CoreDNS makes of etcd's keys: no label with an underscore, and targets within the name.
const COREDNS: &str = "\
web.default IN SRV 10 100 8080 x1.web.default
web.default IN SRV 20 50 8081 x2.web.default
x1.web.default IN A 10.3.0.1
x2.web.default IN CNAME somewhere
somewhere IN A 10.3.0.2
";

#[tokio::test]
async fn services_are_found_as_kubernetes_mesos_dns_and_coredns_name_them() {
    let zones = [
        ("cluster.local", Some(KUBERNETES)),
        ("mesos", Some(MESOS)),
        ("skydns.local", Some(COREDNS)),
    ];
    let Some(nsd) = serving(&zones).await else {
        return;
    };
    for (name, addresses, names) in [
        (
            "_http._tcp.web.default.svc.cluster.local",
            &[
                "10.1.2.3:8080 0 33",
                "10.1.2.4:8080 0 33",
                "10.1.2.9:8080 0 33",
                "[2001:db8::5]:8080 0 33",
            ][..],
            &[
                "10-1-2-3.web.default.svc.cluster.local:8080 0 33",
                "10-1-2-4.web.default.svc.cluster.local:8080 0 33",
                "2001-db8--5.web.default.svc.cluster.local:8080 0 33",
                "web-0.web.default.svc.cluster.local:8080 0 33",
            ][..],
        ),
        (
            "_web._tcp.marathon.mesos",
            &["10.2.0.1:31302 0 0", "10.2.0.1:31891 0 0"],
            &[
                "web-s4a5-s0.marathon.slave.mesos:31302 0 0",
                "web-x2b1-s1.marathon.slave.mesos:31891 0 0",
            ],
        ),
        (
            "web.default.skydns.local",
            &["10.3.0.1:8080 10 100", "10.3.0.2:8081 20 50"],
            &[
                "x1.web.default.skydns.local:8080 10 100",
                "x2.web.default.skydns.local:8081 20 50",
            ],
        ),
    ] {
        let mut source = resolving(&nsd, name);
        assert_eq!(shown(&next(&mut source).await), addresses, "{name}");
        assert_eq!(source.status(), Status::Live);
        let mut source = builder(&nsd, name).build().unwrap();
        assert_eq!(shown(&next(&mut source).await), names, "{name}");
    }
    // A service whose name Consul's DNS would use for a node.
    let mut source = resolving(&nsd, "_http._tcp.node.default.svc.cluster.local");
    assert_eq!(shown(&next(&mut source).await), ["10.1.2.7:80 0 100"]);
}

#[tokio::test]
async fn targets_without_additional_records_are_looked_up() {
    // The server does not add what lies in another zone.
    let services = "\
_web._tcp IN SRV 1 1 80 four.hosts.test.
_web._tcp IN SRV 1 1 80 six.hosts.test.
_web._tcp IN SRV 1 1 80 alias.hosts.test.
_web._tcp IN SRV 1 1 80 two.hosts.test.
_web._tcp IN SRV 1 1 80 gone.hosts.test.
_web._tcp IN SRV 1 1 80 www.example.com.
";
    let hosts = "\
four IN A 192.0.2.4
six IN AAAA 2001:db8::6
alias IN CNAME real
real IN A 192.0.2.5
two IN A 192.0.2.7
two IN A 192.0.2.8
";
    let zones = [
        ("services.test", Some(services)),
        ("hosts.test", Some(hosts)),
    ];
    let Some(nsd) = serving(&zones).await else {
        return;
    };
    let told = by_udp(nsd.addr(), "_web._tcp.services.test.").await;
    assert_eq!(told.answers.len(), 6);
    let named = |record: &&Record| record.name.to_string().ends_with(".hosts.test.");
    assert_eq!(told.additionals.iter().filter(named).count(), 0, "{told:?}");
    let mut source = resolving(&nsd, "_web._tcp.services.test");
    assert_eq!(
        shown(&next(&mut source).await),
        [
            "192.0.2.4:80 1 1",
            "192.0.2.5:80 1 1",
            "192.0.2.7:80 1 1",
            "192.0.2.8:80 1 1",
            "[2001:db8::6]:80 1 1",
            // It is not for this server to say.
            "www.example.com:80 1 1",
        ]
    );
}

fn many(count: usize) -> String {
    let mut zone = String::new();
    for n in 1..=count {
        writeln!(zone, "_web._tcp IN SRV 1 1 {n} h").unwrap();
    }
    zone.push_str("h IN A 192.0.2.1\n");
    zone
}

#[tokio::test]
async fn what_is_cut_over_udp_is_whole_over_tcp_and_what_no_message_holds_is_a_failure() {
    let (large, huge) = (many(2_000), many(5_000));
    let zones = [("large.test", Some(&*large)), ("huge.test", Some(&*huge))];
    let Some(nsd) = serving(&zones).await else {
        return;
    };
    let told = by_udp(nsd.addr(), "_web._tcp.large.test.").await;
    assert!(told.truncation, "{:?}", told.metadata);
    assert!(told.answers.len() < 2_000);
    let mut source = resolving(&nsd, "_web._tcp.large.test");
    let set = next(&mut source).await;
    assert_eq!(set.len(), 2_000);
    assert_eq!(shown(&set)[0], "192.0.2.1:1 1 1");

    let mut source = resolving(&nsd, "_web._tcp.huge.test");
    let status = until(&mut source, |status| *status != Status::Unknown).await;
    assert!(matches!(status, Status::Failing { .. }), "{status:?}");
    assert!(reason(&status).contains("cut to nothing"), "{status:?}");
}

#[tokio::test]
async fn a_zone_that_changes_is_noticed_within_the_ttl() {
    let zone = |last: &str| format!("_web._tcp IN SRV 1 1 80 h\nh IN A 192.0.2.{last}\n");
    let Some(nsd) = serving(&[("web.test", Some(&zone("1")))]).await else {
        return;
    };
    let mut source = resolving(&nsd, "_web._tcp.web.test");
    assert_eq!(shown(&next(&mut source).await), ["192.0.2.1:80 1 1"]);
    for last in ["2", "3"] {
        nsd.set("web.test", &zone(last));
        // When the server has it, at once or not, is not the source's concern.
        let mut fresh = resolving(&nsd, "_web._tcp.web.test");
        let wanted = [format!("192.0.2.{last}:80 1 1")];
        while shown(&next(&mut fresh).await) != wanted {}
        let served = Instant::now();
        assert_eq!(shown(&next(&mut source).await), wanted);
        // The TTL is one second, and a quarter of it is for jitter; the rest is for a machine
        // that does other things, too.
        let late = served.elapsed();
        assert!(late < Duration::from_secs(5), "{late:?}");
    }
}

#[tokio::test]
async fn a_name_that_is_not_there_is_empty_and_a_server_that_cannot_tell_is_unknown() {
    let web = "_web._tcp IN SRV 1 1 80 h\nh IN A 192.0.2.1\n_off._tcp IN SRV 0 0 0 .\n";
    let zones = [("web.test", Some(web)), ("broken.test", None)];
    let Some(nsd) = serving(&zones).await else {
        return;
    };
    for name in [
        // No such name; a name without SRV records; a service that is decidedly not there.
        "_nosuch._tcp.web.test",
        "h.web.test",
        "_off._tcp.web.test",
    ] {
        let mut source = builder(&nsd, name).grace(PATIENCE).build().unwrap();
        assert_eq!(next(&mut source).await, EndpointSet::empty(), "{name}");
        assert_eq!(source.status(), Status::Live, "{name}");
    }
    for (name, says) in [
        ("_web._tcp.broken.test", "Server Failure"),
        ("_web._tcp.example.com", "Query Refused"),
    ] {
        let mut source = resolving(&nsd, name);
        let status = until(&mut source, |status| *status != Status::Unknown).await;
        assert!(
            matches!(status, Status::Failing { .. }),
            "{name}: {status:?}"
        );
        assert!(reason(&status).contains(says), "{name}: {status:?}");
    }

    // A known set outlives the claim that there is no such name for the grace period only.
    let grace = Duration::from_millis(1_500);
    let source = builder(&nsd, "_web._tcp.web.test").grace(grace);
    let mut source = source.build().unwrap();
    assert_eq!(next(&mut source).await.len(), 1);
    nsd.set("web.test", "h IN A 192.0.2.1");
    let status = until(&mut source, |status| *status != Status::Live).await;
    let denied = Instant::now();
    assert!(reason(&status).contains("no such name"), "{status:?}");
    assert!(next(&mut source).await.is_empty());
    assert!(denied.elapsed() >= grace);
}

/// The names of the backends that answer so many requests, and how often; none may fail.
async fn calls(channel: &Channel, count: u32) -> BTreeMap<String, u32> {
    let mut calls = BTreeMap::new();
    for _ in 0..count {
        let request = Request::get("/").body(Empty::<Bytes>::new()).unwrap();
        let response = channel.request(request).await.unwrap();
        let name = response.into_body().collect().await.unwrap().to_bytes();
        *calls
            .entry(String::from_utf8(name.to_vec()).unwrap())
            .or_default() += 1;
    }
    calls
}

#[tokio::test]
async fn requests_follow_priorities_and_weights_while_the_server_is_gone_and_back() {
    let mut backends = Vec::new();
    for name in ["a", "b", "spare"] {
        backends.push(Backend::start(name).await.unwrap());
    }
    let [a, b, spare] = [0, 1, 2].map(|at| backends[at].addr().port());
    // Nobody of the first priority has a weight, as with Mesos-DNS.
    let zone = format!(
        "_web._tcp IN SRV 0 0 {a} h\n_web._tcp IN SRV 0 0 {b} h\n\
         _web._tcp IN SRV 9 100 {spare} h\nh IN A 127.0.0.1\n"
    );
    let Some(mut nsd) = serving(&[("web.test", Some(&zone))]).await else {
        return;
    };
    let channel = Channel::from_source(resolving(&nsd, "_web._tcp.web.test"));
    // Which of two is the faster one is not what is asked here.
    let channel = channel.policy(Policy::PendingRequests).build().unwrap();
    channel.wait_ready().await.unwrap();
    let shares = calls(&channel, 200).await;
    assert_eq!(shares.keys().collect::<Vec<_>>(), ["a", "b"]);
    assert!(shares.values().all(|share| *share >= 50), "{shares:?}");

    nsd.kill();
    // Long enough for several refreshes to fail.
    let gone = Instant::now();
    while gone.elapsed() < Duration::from_secs(3) {
        assert!(!calls(&channel, 20).await.contains_key("spare"));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // Those who die meanwhile are found out without it.
    for backend in backends.drain(..2) {
        backend.abort().await;
    }
    assert_eq!(
        calls(&channel, 50).await,
        BTreeMap::from([("spare".to_owned(), 50)])
    );

    let newcomer = Backend::start("newcomer").await.unwrap();
    let zone = format!(
        "_web._tcp IN SRV 0 1 {} h\nh IN A 127.0.0.1\n",
        newcomer.addr().port()
    );
    nsd.restart().await;
    nsd.set("web.test", &zone);
    eventually(PATIENCE, async || {
        calls(&channel, 5).await.contains_key("newcomer")
    })
    .await;
    assert_eq!(calls(&channel, 20).await.len(), 1);
}
