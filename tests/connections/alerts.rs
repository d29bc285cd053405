//! Alerts of TLS that come after a request was processed: it is not sent again.

use std::net::SocketAddr;
use std::sync::Arc;

use http::Request;
use lictor_tower::channel::{Protocol, Tls};
use lictor_tower::endpoint::{Endpoint, Target};
use support::certs::Authority;
use support::eventually;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::server::{Options, SOON, chain, channel, in_flight};

/// Passes everything on, and a record that nobody can decrypt when it is told to.
struct Spoiler {
    target: Target,
    now: Arc<Notify>,
    _tasks: JoinSet<()>,
}

impl Spoiler {
    async fn before(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let target = Target::try_from(listener.local_addr().unwrap()).unwrap();
        let now = Arc::new(Notify::new());
        let told = Arc::clone(&now);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (client, _) = listener.accept().await.unwrap();
                connections.spawn(pass(client, server, Arc::clone(&told)));
            }
        });
        Self {
            target,
            now,
            _tasks: tasks,
        }
    }
}

async fn pass(client: TcpStream, server: SocketAddr, spoil: Arc<Notify>) {
    let (mut from_client, mut to_client) = client.into_split();
    let server = TcpStream::connect(server).await.unwrap();
    let (mut from_server, mut to_server) = server.into_split();
    let there = async {
        let mut buffer = vec![0; 16_384];
        loop {
            tokio::select! {
                read = from_client.read(&mut buffer) => match read {
                    Ok(read) if read > 0 => to_server.write_all(&buffer[..read]).await.unwrap(),
                    _ => return,
                },
                () = spoil.notified() => {
                    // Application data of 32 bytes (RFC 8446, 5.1).
                    let record = [&[23, 3, 3, 0, 32][..], &[0; 32]].concat();
                    to_server.write_all(&record).await.unwrap();
                }
            }
        }
    };
    let back = tokio::io::copy(&mut from_server, &mut to_client);
    tokio::select! {
        () = there => {}
        _ = back => {}
    }
}

#[tokio::test]
async fn what_was_processed_before_an_alert_is_not_sent_again() {
    let authority = Authority::new("alerts");
    for spoken in ["http/1.1", "h2"] {
        let identity = authority.issue(&["web"]);
        let server = Options::tls(&identity).speaking(&[spoken]).start().await;
        let other = Options::tls(&identity).speaking(&[spoken]).start().await;
        let spoiler = Spoiler::before(server.addr).await;
        let tls = Tls::new().ca_pem(authority.pem());
        let endpoint = Endpoint::new(spoiler.target.clone());
        let (feed, channel) = channel([endpoint.clone()], tls, |b| b.protocol(Protocol::Auto));
        // Idempotent, and short enough to be kept: it could be sent again.
        let request = Request::put("/never").body("a body".to_owned()).unwrap();
        let mut call = JoinSet::new();
        call.spawn(channel.request(request));
        eventually(SOON, async || server.seen.requests() == 1).await;
        feed.set([endpoint, other.endpoint()].into_iter().collect());
        eventually(SOON, async || channel.endpoints().len() == 2).await;
        spoiler.now.notify_one();
        let ended = timeout(SOON, call.join_next()).await;
        let ended = ended.expect("it was sent again, and waits for another answer");
        let error = ended.unwrap().unwrap().unwrap_err();
        let told = chain(&error);
        assert!(error.was_sent(), "{told}");
        assert!(told.contains("BadRecordMac"), "{told}");
        assert_eq!((server.seen.requests(), other.seen.requests()), (1, 0));
        assert_eq!(in_flight(&channel), 0);
    }
}
