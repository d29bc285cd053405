//! Servers that do as they are told, and a source that says what it is told.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_core::Stream;
use http::{Method, Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty, Full};
use hyper::body::{Body, Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use lictor_tower::channel::{Builder, Channel, Protocol};
use lictor_tower::endpoint::{Endpoint, EndpointSet, Target};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinSet;

pub(crate) type Reply = UnsyncBoxBody<Bytes, Infallible>;

/// A server on a free port. Dropping it is a crash: all sockets close at once.
pub(crate) struct Server {
    pub(crate) target: Target,
    pub(crate) seen: Arc<Seen>,
    stop: watch::Sender<bool>,
    tasks: JoinSet<()>,
}

/// What a server has seen, and what holds up its answers.
pub(crate) struct Seen {
    port: u16,
    accepted: AtomicU32,
    open: AtomicU32,
    most_open: AtomicU32,
    requests: AtomicU32,
    /// Every answer is a 503.
    pub(crate) fails: AtomicBool,
    /// `/slow` and the tail of `/stream` take a permit each.
    pub(crate) gate: Semaphore,
}

impl Seen {
    pub(crate) fn accepted(&self) -> u32 {
        self.accepted.load(Ordering::SeqCst)
    }

    pub(crate) fn open(&self) -> u32 {
        self.open.load(Ordering::SeqCst)
    }

    pub(crate) fn most_open(&self) -> u32 {
        self.most_open.load(Ordering::SeqCst)
    }

    pub(crate) fn requests(&self) -> u32 {
        self.requests.load(Ordering::SeqCst)
    }
}

impl Server {
    pub(crate) async fn start() -> Self {
        Self::speaking(Protocol::Http1).await
    }

    pub(crate) async fn speaking(protocol: Protocol) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Self::on(listener, protocol)
    }

    pub(crate) fn on(listener: TcpListener, protocol: Protocol) -> Self {
        let target = Target::try_from(listener.local_addr().unwrap()).unwrap();
        Self::at(listener, protocol, target)
    }

    /// On a listener of all addresses: the target is one of them.
    pub(crate) fn on_port(listener: TcpListener, port: u16) -> Self {
        let target = format!("127.0.0.1:{port}").parse().unwrap();
        Self::at(listener, Protocol::Http1, target)
    }

    fn at(listener: TcpListener, protocol: Protocol, target: Target) -> Self {
        let seen = Arc::new(Seen {
            port: target.port(),
            accepted: AtomicU32::new(0),
            open: AtomicU32::new(0),
            most_open: AtomicU32::new(0),
            requests: AtomicU32::new(0),
            fails: AtomicBool::new(false),
            gate: Semaphore::new(0),
        });
        let (stop, stopped) = watch::channel(false);
        let mut tasks = JoinSet::new();
        tasks.spawn(accept(listener, protocol, Arc::clone(&seen), stopped));
        Self {
            target,
            seen,
            stop,
            tasks,
        }
    }

    pub(crate) fn port(&self) -> u16 {
        self.target.port()
    }

    /// Stops as a good server does: no new connection, idle ones close, requests finish.
    pub(crate) async fn stop(mut self) {
        self.stop.send(true).unwrap();
        self.tasks.join_next().await;
    }
}

async fn accept(
    listener: TcpListener,
    protocol: Protocol,
    seen: Arc<Seen>,
    mut stopped: watch::Receiver<bool>,
) {
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = stopped.changed() => break,
        };
        let (stream, _) = accepted.unwrap();
        stream.set_nodelay(true).unwrap();
        seen.accepted.fetch_add(1, Ordering::SeqCst);
        connections.spawn(serve(stream, protocol, Arc::clone(&seen), stopped.clone()));
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

struct Open(Arc<Seen>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::SeqCst);
    }
}

async fn serve(
    stream: TcpStream,
    protocol: Protocol,
    seen: Arc<Seen>,
    mut stopped: watch::Receiver<bool>,
) {
    let open = seen.open.fetch_add(1, Ordering::SeqCst) + 1;
    seen.most_open.fetch_max(open, Ordering::SeqCst);
    let _open = Open(Arc::clone(&seen));
    let service = service_fn(move |request| answer(request, Arc::clone(&seen)));
    let io = TokioIo::new(stream);
    macro_rules! until_stopped {
        ($connection:expr) => {{
            let mut connection = std::pin::pin!($connection);
            tokio::select! {
                ended = connection.as_mut() => ended.ok(),
                _ = stopped.changed() => {
                    connection.as_mut().graceful_shutdown();
                    connection.await.ok()
                }
            }
        }};
    }
    match protocol {
        Protocol::Http1 => {
            until_stopped!(hyper::server::conn::http1::Builder::new().serve_connection(io, service))
        }
        _ => until_stopped!(
            hyper::server::conn::http2::Builder::new(Tasks).serve_connection(io, service)
        ),
    };
}

#[derive(Clone)]
struct Tasks;

impl<F: Future<Output = ()> + Send + 'static> hyper::rt::Executor<F> for Tasks {
    fn execute(&self, task: F) {
        tokio::runtime::Handle::current().spawn(task);
    }
}

async fn answer(
    request: Request<Incoming>,
    seen: Arc<Seen>,
) -> Result<Response<Reply>, Infallible> {
    seen.requests.fetch_add(1, Ordering::SeqCst);
    if seen.fails.load(Ordering::SeqCst) {
        return Ok(status(StatusCode::SERVICE_UNAVAILABLE));
    }
    let port = full(seen.port.to_string());
    let reply = match request.uri().path() {
        "/slow" => {
            seen.gate.acquire().await.unwrap().forget();
            port
        }
        "/stream" => Gated {
            sent: 0,
            tail: None,
            seen,
        }
        .boxed_unsync(),
        "/echo" => match request.into_body().collect().await {
            Ok(body) => full(body.to_bytes()),
            Err(_) => return Ok(status(StatusCode::BAD_REQUEST)),
        },
        "/host" => {
            let header = request.headers().get("host");
            let host = match (header, request.uri().authority()) {
                (Some(header), None) => header.to_str().unwrap().to_owned(),
                (None, Some(authority)) => authority.to_string(),
                both => format!("{both:?}"),
            };
            full(format!("{host} {}", request.uri().path()))
        }
        "/fail" => return Ok(status(StatusCode::SERVICE_UNAVAILABLE)),
        _ => port,
    };
    Ok(Response::new(reply))
}

fn full(body: impl Into<Bytes>) -> Reply {
    Full::new(body.into()).boxed_unsync()
}

fn status(status: StatusCode) -> Response<Reply> {
    let mut response = Response::new(Empty::new().boxed_unsync());
    *response.status_mut() = status;
    response
}

/// Sends "head", waits at the gate, sends "tail".
struct Gated {
    sent: u8,
    tail: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
    seen: Arc<Seen>,
}

impl Body for Gated {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match self.sent {
            0 => {
                self.sent = 1;
                let seen = Arc::clone(&self.seen);
                self.tail = Some(Box::pin(async move {
                    seen.gate.acquire().await.unwrap().forget();
                }));
                Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(b"head")))))
            }
            1 => {
                std::task::ready!(self.tail.as_mut().unwrap().as_mut().poll(cx));
                self.sent = 2;
                Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(b"tail")))))
            }
            _ => Poll::Ready(None),
        }
    }
}

/// Says who is there.
pub(crate) struct Registry(mpsc::UnboundedSender<EndpointSet>);

pub(crate) struct Told(mpsc::UnboundedReceiver<EndpointSet>);

pub(crate) fn registry() -> (Registry, Told) {
    let (tell, told) = mpsc::unbounded_channel();
    (Registry(tell), Told(told))
}

impl Registry {
    pub(crate) fn tell(&self, targets: &[&Target]) {
        let set = targets
            .iter()
            .map(|target| Endpoint::new((*target).clone()));
        self.tell_set(set.collect());
    }

    pub(crate) fn tell_set(&self, set: EndpointSet) {
        self.0.send(set).unwrap();
    }

    /// Resolves when the channel has let go of the source.
    pub(crate) async fn deserted(&self) {
        self.0.closed().await;
    }
}

impl Stream for Told {
    type Item = EndpointSet;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<EndpointSet>> {
        self.0.poll_recv(cx)
    }
}

/// A channel over these servers, and the registry that can change them.
pub(crate) fn channel(servers: &[&Server]) -> (Registry, Channel) {
    channel_with(servers, |builder| builder)
}

pub(crate) fn channel_with(
    servers: &[&Server],
    options: impl FnOnce(Builder<Told>) -> Builder<Told>,
) -> (Registry, Channel) {
    let (registry, told) = registry();
    let targets: Vec<_> = servers.iter().map(|server| &server.target).collect();
    registry.tell(&targets);
    let channel = options(Channel::from_source(told)).build().unwrap();
    (registry, channel)
}

pub(crate) fn get(path: &str) -> Request<Empty<Bytes>> {
    Request::get(path).body(Empty::new()).unwrap()
}

pub(crate) fn post(path: &str, body: impl Into<Bytes>) -> Request<Streamed> {
    Request::builder()
        .method(Method::POST)
        .uri(path)
        .body(Streamed(Some(body.into())))
        .unwrap()
}

/// A request body that cannot be cloned and has no known length.
pub(crate) struct Streamed(Option<Bytes>);

impl Body for Streamed {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.0.take().map(|data| Ok(Frame::data(data))))
    }
}

/// Calls `/` and gives the port of the server that answered.
pub(crate) async fn who(channel: &Channel) -> u16 {
    let response = channel.request(get("/")).await.unwrap();
    let told = response.body().target().port();
    let body = text(response).await;
    assert_eq!(body, told.to_string());
    told
}

pub(crate) async fn text(response: Response<lictor_tower::channel::Body>) -> String {
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// Waits until something is so; half a minute is a failure, for a machine may be busy.
#[track_caller]
pub(crate) fn eventually(
    what: &'static str,
    so: impl Fn() -> bool + Send,
) -> impl Future<Output = ()> + Send {
    let at = std::panic::Location::caller();
    async move {
        within(Duration::from_secs(30), at, what, so).await;
    }
}

pub(crate) async fn within(
    limit: Duration,
    at: &'static std::panic::Location<'static>,
    what: &str,
    so: impl Fn() -> bool + Send,
) {
    let polled = async move {
        while !so() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    let done = tokio::time::timeout(limit, polled).await;
    assert!(done.is_ok(), "not within {limit:?}: {what} ({at})");
}

pub(crate) fn in_flight(channel: &Channel) -> u32 {
    channel.endpoints().iter().map(|e| e.in_flight).sum()
}

/// A target that nobody listens on.
pub(crate) async fn nobody() -> Target {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let target = Target::try_from(socket.local_addr().unwrap()).unwrap();
    // Bound until the process ends: else a server of another test may get the port.
    Box::leak(Box::new(socket));
    target
}
