//! Handshakes that fail: nothing was sent, the next endpoint is called, and the error says why.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::task::{Context, Poll};
use std::time::Duration;

use lictor_tower::channel::{Channel, Protocol, Tls};
use lictor_tower::endpoint::{Endpoint, Target};
use lictor_tower::{Error, source};
use support::certs::Authority;
use support::eventually;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_rustls::rustls::version::{TLS12, TLS13};

use crate::server::{Options, SOON, Server, chain, channel, get, in_flight, version};

fn trusting(authority: &Authority) -> Tls {
    Tls::new().ca_pem(authority.pem())
}

/// What becomes of a request to this server alone, and that the next server is called beside it.
async fn refused(bad: &Server, good: &Server, tls: Tls) -> Error {
    for protocol in [Protocol::Auto, Protocol::Http1] {
        let endpoints = [bad.endpoint(), good.endpoint()];
        let (_feed, both) = channel(endpoints, tls.clone(), |b| b.protocol(protocol));
        for _ in 0..8 {
            // A body that could not be sent twice.
            let request = http::Request::post("/").body(Once(Some("sent once")));
            let response = both.request(request.unwrap()).await.unwrap();
            assert_eq!(*response.body().target(), good.target());
        }
        let avoided = both.endpoints().into_iter().find(|e| e.is_avoided);
        assert_eq!(avoided.map(|e| e.target), Some(bad.target()));
        assert_eq!(in_flight(&both), 0);
    }
    let (_feed, alone) = channel([bad.endpoint()], tls, |b| b);
    let error = alone.request(get("/")).await.unwrap_err();
    assert!(error.is_connect() && !error.was_sent(), "{}", chain(&error));
    assert_eq!(in_flight(&alone), 0);
    assert_eq!(bad.seen.requests(), 0);
    let told = chain(&error);
    assert!(told.contains(&bad.addr.to_string()), "{told}");
    error
}

struct Once(Option<&'static str>);

impl hyper::body::Body for Once {
    type Data = bytes::Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _cx: &mut Context<'_>,
    ) -> Poll<Option<Result<hyper::body::Frame<bytes::Bytes>, Self::Error>>> {
        let text = self.0.take();
        Poll::Ready(text.map(|text| Ok(hyper::body::Frame::data(text.into()))))
    }
}

#[tokio::test]
async fn a_certificate_that_proves_nothing_is_told_with_the_name_that_was_asked_for() {
    let authority = Authority::new("handshakes");
    let stranger = Authority::new("stranger");
    let good = Options::tls(&authority.issue(&["web"])).start().await;
    for (identity, says) in [
        (
            stranger.issue(&["web"]),
            &["\"web\"", "Tls::ca_file", "UnknownIssuer"][..],
        ),
        (
            authority.issue(&["api", "db.example.com"]),
            &["\"web\"", "Tls::server_name", "api", "db.example.com"],
        ),
        (
            authority.issue_expired(&["web"]),
            &["\"web\"", "has expired"],
        ),
    ] {
        let bad = Options::tls(&identity).start().await;
        let error = refused(&bad, &good, trusting(&authority)).await;
        let told = chain(&error);
        for says in says {
            assert!(told.contains(says), "{told}");
        }
        // For a test that cannot have a better one.
        let tls = trusting(&authority).danger_skip_verification();
        let (_feed, careless) = channel([bad.endpoint()], tls, |b| b);
        assert_eq!(version(&careless).await, "HTTP/1.1");
    }
}

#[tokio::test]
async fn who_cannot_show_the_certificate_that_is_asked_for_has_sent_nothing() {
    let authority = Authority::new("handshakes");
    let stranger = Authority::new("stranger");
    let good = Options::tls(&authority.issue(&["web"])).start().await;
    let mine = authority.issue(&["me"]);
    let theirs = stranger.issue(&["me"]);
    for tls_version in [&TLS12, &TLS13] {
        let asks = Options::for_callers(&authority.issue(&["web"]), &authority, tls_version);
        let asks = asks.start().await;
        let error = refused(&asks, &good, trusting(&authority)).await;
        let told = chain(&error);
        assert!(
            told.contains("certificate") || told.contains("handshake"),
            "{told}"
        );
        if tls_version.version == TLS13.version {
            assert!(told.contains("Tls::client_certificate_pem"), "{told}");
        }
        let (certificate, key) = (theirs.certificate.clone(), theirs.key.clone());
        let tls = trusting(&authority).client_certificate_pem(certificate, key);
        refused(&asks, &good, tls).await;
        let (certificate, key) = (mine.certificate.clone(), mine.key.clone());
        let tls = trusting(&authority).client_certificate_pem(certificate, key);
        let (_feed, known) = channel([asks.endpoint()], tls, |b| b);
        assert_eq!(version(&known).await, "HTTP/1.1");
    }
}

#[tokio::test]
async fn plain_text_and_tls_that_meet_are_told_from_other_failures() {
    let authority = Authority::new("handshakes");
    let good = Options::tls(&authority.issue(&["web"])).start().await;
    let plain = Options::plain().start().await;
    let error = refused(&plain, &good, trusting(&authority)).await;
    let told = chain(&error);
    assert!(told.contains("it may speak plain text"), "{told}");

    for protocol in [Protocol::Http1, Protocol::Http2] {
        let source = source::fixed([good.endpoint()]);
        let channel = Channel::from_source(source).protocol(protocol);
        let channel = channel.build().unwrap();
        let error = channel.request(get("/")).await.unwrap_err();
        let told = chain(&error);
        assert!(told.contains("the endpoint speaks TLS"), "{told}");
        assert!(told.contains(&good.addr.to_string()), "{told}");
        let https = http::Request::get("https://web/").body(String::new());
        let error = channel.request(https.unwrap()).await.unwrap_err();
        assert!(error.to_string().contains("Builder::tls"), "{error}");
    }
}

/// A listener that accepts and says nothing; what it has accepted and still holds.
struct Silent {
    target: Target,
    open: Arc<AtomicUsize>,
    most: Arc<AtomicUsize>,
    accepted: Arc<AtomicUsize>,
    _tasks: JoinSet<()>,
}

impl Silent {
    async fn on(address: &str) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (open, most, accepted) =
            <(Arc<AtomicUsize>, Arc<AtomicUsize>, Arc<AtomicUsize>)>::default();
        let mut tasks = JoinSet::new();
        let (counted, seen, told) = (open.clone(), most.clone(), accepted.clone());
        tasks.spawn(async move {
            let mut held = JoinSet::new();
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                told.fetch_add(1, SeqCst);
                seen.fetch_max(counted.fetch_add(1, SeqCst) + 1, SeqCst);
                let counted = counted.clone();
                held.spawn(async move {
                    let mut hello = [0; 4096];
                    while stream.read(&mut hello).await.is_ok_and(|read| read > 0) {}
                    counted.fetch_sub(1, SeqCst);
                });
            }
        });
        Self {
            target: format!("127.0.0.1:{port}").parse().unwrap(),
            open,
            most,
            accepted,
            _tasks: tasks,
        }
    }

    fn open(&self) -> usize {
        self.open.load(SeqCst)
    }
}

#[tokio::test]
async fn a_handshake_that_hangs_ends_with_the_time_for_connecting() {
    let authority = Authority::new("handshakes");
    let good = Options::tls(&authority.issue(&["web"])).start().await;
    let silent = Silent::on("127.0.0.1:0").await;
    let endpoint = Endpoint::new(silent.target.clone());
    let soon = |b: lictor_tower::channel::Builder<_>| b.connect_timeout(Duration::from_millis(100));
    let (feed, channel) = channel([endpoint.clone()], trusting(&authority), soon);
    let error = channel.request(get("/")).await.unwrap_err();
    assert!(error.is_connect() && !error.was_sent());
    let told = chain(&error);
    assert!(
        told.contains("a connection, but no TLS handshake within 100ms"),
        "{told}"
    );
    feed.set([endpoint, good.endpoint()].into_iter().collect());
    eventually(SOON, async || channel.endpoints().len() == 2).await;
    for _ in 0..4 {
        assert_eq!(version(&channel).await, "HTTP/1.1");
    }
    // Who gives up leaves nothing behind.
    feed.set([Endpoint::new(silent.target.clone())].into_iter().collect());
    eventually(SOON, async || channel.endpoints().len() == 1).await;
    for _ in 0..20 {
        let mut call = std::pin::pin!(channel.request(get("/")));
        tokio::select! {
            biased;
            _ = call.as_mut() => {}
            () = tokio::task::yield_now() => {}
        }
    }
    assert_eq!(in_flight(&channel), 0);
    eventually(SOON, async || silent.open() == 0).await;
    drop(channel);
}

#[tokio::test]
async fn a_channel_that_is_dropped_ends_its_handshakes() {
    let authority = Authority::new("handshakes");
    let silent = Silent::on("127.0.0.1:0").await;
    let endpoint = Endpoint::new(silent.target.clone());
    let long = |b: lictor_tower::channel::Builder<_>| b.connect_timeout(Duration::from_secs(600));
    let (_feed, channel) = channel([endpoint], trusting(&authority), long);
    channel.wait_ready().await.unwrap();
    let mut calls = JoinSet::new();
    for _ in 0..10 {
        calls.spawn(channel.request(get("/")));
    }
    eventually(SOON, async || silent.open() > 0).await;
    calls.shutdown().await;
    assert_eq!(in_flight(&channel), 0);
    drop(channel);
    eventually(SOON, async || silent.open() == 0).await;
}

#[tokio::test]
async fn warming_up_connects_to_32_endpoints_at_a_time_and_once_to_each_that_refuses() {
    let authority = Authority::new("handshakes");
    // On many addresses at once, as many endpoints.
    let silent = Silent::on("0.0.0.0:0").await;
    let port = silent.target.port();
    let endpoints = (1..=100).map(|last| {
        let target = format!("127.0.2.{last}:{port}").parse().unwrap();
        Endpoint::new(target)
    });
    let (_feed, _channel) = channel(endpoints, trusting(&authority), |builder| {
        builder
            .warm_up(2)
            .connect_timeout(Duration::from_millis(300))
    });
    eventually(SOON, async || silent.accepted.load(SeqCst) == 100).await;
    let most = silent.most.load(SeqCst);
    // A server hears of 32 that are closed when it may have accepted 32 others.
    assert!((1..=64).contains(&most), "{most}");
}

#[tokio::test]
async fn tls_over_a_raw_connection_is_the_callers() {
    use tokio_rustls::rustls::pki_types::pem::PemObject;
    use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
    use tokio_rustls::rustls::{ClientConfig, RootCertStore, crypto::ring};

    let authority = Authority::new("handshakes");
    let server = Options::tls(&authority.issue(&["db"])).start().await;
    let dialer = lictor_tower::tcp::Builder::new(source::fixed([server.endpoint()]));
    let dialer = dialer.build().unwrap();
    let mut roots = RootCertStore::empty();
    let root = CertificateDer::from_pem_slice(authority.pem().as_bytes()).unwrap();
    roots.add(root).unwrap();
    let config = ClientConfig::builder_with_provider(ring::default_provider().into())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let connection = dialer.connect().await.unwrap();
    let name = ServerName::try_from("db").unwrap();
    let mut secured = connector.connect(name, connection).await.unwrap();
    secured
        .write_all(b"GET /version HTTP/1.1\r\nhost: db\r\nconnection: close\r\n\r\n")
        .await
        .unwrap();
    let mut answer = String::new();
    secured.read_to_string(&mut answer).await.unwrap();
    assert!(answer.ends_with("HTTP/1.1"), "{answer}");
    assert_eq!(dialer.endpoints()[0].in_flight, 1);
    drop(secured);
    assert_eq!(dialer.endpoints()[0].in_flight, 0);
}
