//! A server of HTTP under TLS, or in plain text, that tells what it has seen.

use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, Version};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Frame, Incoming};
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use lictor_tower::Channel;
use lictor_tower::channel::{Builder, Tls};
use lictor_tower::endpoint::{Endpoint, Target};
use lictor_tower::source::{self, Feed, FeedSource};
use support::certs::{Authority, Identity};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Sleep, sleep};
use tokio_rustls::rustls;
use tokio_rustls::{LazyConfigAcceptor, TlsAcceptor};

use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{Acceptor, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConfig, SupportedProtocolVersion};

/// Longer than anything takes, on a machine that is busy with other tests.
pub(crate) const SOON: Duration = Duration::from_secs(20);

/// How a server behaves.
pub(crate) struct Options {
    config: Option<Arc<ServerConfig>>,
}

/// A server on a free port. Dropping it is a crash: all sockets close at once.
pub(crate) struct Server {
    pub(crate) addr: SocketAddr,
    pub(crate) seen: Arc<Seen>,
    _tasks: JoinSet<()>,
}

#[derive(Default)]
pub(crate) struct Seen {
    accepted: AtomicU32,
    open: AtomicU32,
    requests: AtomicU32,
    /// The name that each connection asked for, and the protocols that it offered.
    hellos: Mutex<Vec<(Option<String>, Vec<String>)>>,
    pub(crate) handshakes: watch::Sender<Handshakes>,
}

/// What becomes of the handshakes that are under way or begin.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) enum Handshakes {
    #[default]
    End,
    Wait,
    /// The connection is closed instead.
    Break,
    /// The connection is closed as soon as it could be used.
    EndAndClose,
}

impl Seen {
    pub(crate) fn accepted(&self) -> u32 {
        self.accepted.load(Ordering::SeqCst)
    }

    pub(crate) fn open(&self) -> u32 {
        self.open.load(Ordering::SeqCst)
    }

    pub(crate) fn requests(&self) -> u32 {
        self.requests.load(Ordering::SeqCst)
    }

    pub(crate) fn names(&self) -> Vec<Option<String>> {
        let hellos = self.hellos.lock().unwrap();
        hellos.iter().map(|(name, _)| name.clone()).collect()
    }

    pub(crate) fn offers(&self) -> Vec<Vec<String>> {
        let hellos = self.hellos.lock().unwrap();
        hellos.iter().map(|(_, offered)| offered.clone()).collect()
    }
}

impl Options {
    /// HTTP/1.1 in plain text.
    pub(crate) fn plain() -> Self {
        Self { config: None }
    }

    /// Under TLS, with HTTP/1.1 and nothing to agree on.
    pub(crate) fn tls(identity: &Identity) -> Self {
        Self::under(identity, None, rustls::ALL_VERSIONS)
    }

    /// Under TLS of one version, for callers whom this authority vouches for.
    pub(crate) fn for_callers(
        identity: &Identity,
        authority: &Authority,
        version: &'static SupportedProtocolVersion,
    ) -> Self {
        Self::under(identity, Some(authority), &[version])
    }

    fn under(
        identity: &Identity,
        callers: Option<&Authority>,
        versions: &[&'static SupportedProtocolVersion],
    ) -> Self {
        let provider = Arc::new(ring::default_provider());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(versions)
            .unwrap();
        let builder = match callers {
            None => builder.with_no_client_auth(),
            Some(authority) => {
                let mut roots = RootCertStore::empty();
                let root = CertificateDer::from_pem_slice(authority.pem().as_bytes()).unwrap();
                roots.add(root).unwrap();
                let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider);
                builder.with_client_cert_verifier(verifier.build().unwrap())
            }
        };
        let certificate = CertificateDer::from_pem_slice(identity.certificate.as_bytes()).unwrap();
        let key = PrivateKeyDer::from_pem_slice(identity.key.as_bytes()).unwrap();
        let config = builder.with_single_cert(vec![certificate], key).unwrap();
        Self {
            config: Some(Arc::new(config)),
        }
    }

    /// What it agrees to by ALPN, the preferred first.
    pub(crate) fn speaking(mut self, protocols: &[&str]) -> Self {
        let config = self.config.as_mut().expect("TLS");
        let config = Arc::get_mut(config).expect("a config of its own");
        config.alpn_protocols = protocols
            .iter()
            .map(|name| name.as_bytes().into())
            .collect();
        self
    }

    pub(crate) async fn start(self) -> Server {
        self.on((Ipv4Addr::LOCALHOST, 0).into()).await
    }

    pub(crate) async fn on(self, addr: SocketAddr) -> Server {
        let listener = TcpListener::bind(addr).await.unwrap();
        let addr = listener.local_addr().unwrap();
        let seen = Arc::new(Seen::default());
        let mut tasks = JoinSet::new();
        tasks.spawn(accept(listener, self.config, Arc::clone(&seen)));
        Server {
            addr,
            seen,
            _tasks: tasks,
        }
    }
}

impl Server {
    pub(crate) fn target(&self) -> Target {
        Target::try_from(self.addr).unwrap()
    }

    pub(crate) fn endpoint(&self) -> Endpoint {
        Endpoint::new(self.target())
    }
}

/// What holds a connection open, counted.
struct Open(Arc<Seen>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::SeqCst);
    }
}

async fn accept(listener: TcpListener, config: Option<Arc<ServerConfig>>, seen: Arc<Seen>) {
    // They end with this task.
    let mut connections = JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        stream.set_nodelay(true).unwrap();
        seen.accepted.fetch_add(1, Ordering::SeqCst);
        seen.open.fetch_add(1, Ordering::SeqCst);
        let open = Open(Arc::clone(&seen));
        connections.spawn(connection(stream, config.clone(), open));
    }
}

async fn connection(stream: TcpStream, config: Option<Arc<ServerConfig>>, open: Open) {
    let seen = Arc::clone(&open.0);
    let Some(config) = config else {
        return serve(stream, false, seen).await;
    };
    // The acceptor below is silent to whoever does not speak TLS; most servers are not.
    let mut first = [0];
    if stream.peek(&mut first).await.is_ok() && first != [22] {
        TlsAcceptor::from(config).accept(stream).await.ok();
        return;
    }
    let Ok(start) = LazyConfigAcceptor::new(Acceptor::default(), stream).await else {
        return;
    };
    let hello = start.client_hello();
    let offered = hello.alpn().into_iter().flatten();
    let offered = offered.map(|name| String::from_utf8_lossy(name).into_owned());
    let name = hello.server_name().map(str::to_owned);
    let told = (name, offered.collect());
    seen.hellos.lock().unwrap().push(told);
    let mut handshakes = seen.handshakes.subscribe();
    let way = handshakes.wait_for(|way| *way != Handshakes::Wait);
    let way = way.await.map(|way| *way).unwrap_or_default();
    if way == Handshakes::Break {
        return;
    }
    let Ok(stream) = start.into_stream(config).await else {
        return;
    };
    if way == Handshakes::EndAndClose {
        return;
    }
    let is_h2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
    serve(stream, is_h2, seen).await;
}

async fn serve(stream: impl AsyncRead + AsyncWrite + Send + Unpin, is_h2: bool, seen: Arc<Seen>) {
    let service = service_fn(move |request| answer(request, Arc::clone(&seen)));
    let io = TokioIo::new(stream);
    if is_h2 {
        let builder = http2::Builder::new(TokioExecutor::new());
        builder.serve_connection(io, service).await.ok();
    } else {
        let builder = http1::Builder::new();
        builder.serve_connection(io, service).await.ok();
    }
}

type Reply = UnsyncBoxBody<Bytes, Infallible>;

/// `/version` says what is spoken, `/stream?PARTS` numbers so many parts, 10 ms from one to the next,
/// `/never` reads all and answers nothing, and everything else is sent back.
async fn answer(
    request: Request<Incoming>,
    seen: Arc<Seen>,
) -> Result<Response<Reply>, Infallible> {
    seen.requests.fetch_add(1, Ordering::SeqCst);
    let full = |text: Bytes| Full::new(text).boxed_unsync();
    let reply = match request.uri().path() {
        "/version" => full(match (request.version(), request.uri().scheme_str()) {
            (Version::HTTP_2, Some(scheme)) => format!("h2 {scheme}").into(),
            (version, _) => format!("{version:?}").into(),
        }),
        "/stream" => Parts {
            next: 0,
            count: request.uri().query().unwrap().parse().unwrap(),
            pause: Box::pin(sleep(Duration::ZERO)),
        }
        .boxed_unsync(),
        "/never" => {
            request.into_body().collect().await.ok();
            std::future::pending().await
        }
        _ => full(match request.into_body().collect().await {
            Ok(body) => body.to_bytes(),
            Err(error) => error.to_string().into(),
        }),
    };
    Ok(Response::new(reply))
}

struct Parts {
    next: u32,
    count: u32,
    pause: Pin<Box<Sleep>>,
}

impl Body for Parts {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.next == self.count {
            return Poll::Ready(None);
        }
        std::task::ready!(self.pause.as_mut().poll(cx));
        self.pause = Box::pin(sleep(Duration::from_millis(10)));
        self.next += 1;
        let part = format!("{}\n", self.next);
        Poll::Ready(Some(Ok(Frame::data(part.into()))))
    }
}

/// A channel over these endpoints under TLS, and what changes them.
pub(crate) fn channel(
    endpoints: impl IntoIterator<Item = Endpoint>,
    tls: Tls,
    options: impl FnOnce(Builder<FeedSource>) -> Builder<FeedSource>,
) -> (Feed, Channel) {
    let (feed, source) = source::feed();
    feed.set(endpoints.into_iter().collect());
    let channel = options(Channel::from_source(source).host("web").tls(tls));
    (feed, channel.build().unwrap())
}

pub(crate) fn get(path: &str) -> Request<String> {
    Request::get(path).body(String::new()).unwrap()
}

pub(crate) async fn text(response: Response<lictor_tower::channel::Body>) -> String {
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// What is spoken with the endpoint that answers.
pub(crate) async fn version(channel: &Channel) -> String {
    text(channel.request(get("/version")).await.unwrap()).await
}

pub(crate) fn in_flight(channel: &Channel) -> u32 {
    channel.endpoints().iter().map(|e| e.in_flight).sum()
}

/// An error with all its causes.
pub(crate) fn chain(error: &lictor_tower::Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
