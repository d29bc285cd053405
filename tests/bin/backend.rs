//! An instance of a service, as a process of its own that can be killed and frozen.
//!
//! `backend CONSUL SERVICE ID PORT CONTROL` serves HTTP/1.1 on `PORT` of the loopback interface and
//! registers itself as `SERVICE` under `ID`, or as the variables of its container say, if there are
//! some of `SERVICE_…`. On `CONTROL` it takes orders, see
//! [`support::instance`]. `SIGTERM` ends it as a
//! `Lifecycle` does: it is not to be found any more, serves on until everybody knows, finishes what is
//! under way, deregisters, and ends.

use std::convert::Infallible;
use std::error::Error;
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Frame, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use lictor::Client;
use lictor::api::agent::{CheckDefinition, ServiceDefinition};
use lictor::lifecycle::{Lifecycle, Stage};
use lictor::registration::Registration;
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

type Reply = Response<BoxBody<Bytes, Infallible>>;

/// How long it serves on when the catalog shows that it leaves.
const DRAIN: Duration = Duration::from_millis(300);
/// How long what is under way may take to finish.
const PATIENCE: Duration = Duration::from_secs(5);
/// Of how many pieces the body of `/pieces` is, and how far they are apart.
const PIECES: (u32, Duration) = (32, Duration::from_millis(2));

struct State {
    id: String,
    status: AtomicU16,
    delay: AtomicU64,
    /// `SIGTERM` closes connections before the goodbye.
    abrupt: AtomicBool,
    requests: AtomicU64,
    in_flight: AtomicU64,
    open: AtomicU64,
    accepted: AtomicU64,
    registration: Mutex<Option<Registration>>,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [consul, service, id, port, control] = arguments.as_slice() else {
        return Err("backend CONSUL SERVICE ID PORT CONTROL".into());
    };
    let mut terminated = signal(SignalKind::terminate())?;
    let listen = async |port: &String| -> Result<TcpListener, Box<dyn Error>> {
        Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, port.parse()?)).await?)
    };
    let listener = listen(port).await?;
    let control = listen(control).await?;
    let addr = listener.local_addr()?;
    let state = Arc::new(State {
        id: id.clone(),
        status: AtomicU16::new(200),
        delay: AtomicU64::new(0),
        abrupt: AtomicBool::new(false),
        requests: AtomicU64::new(0),
        in_flight: AtomicU64::new(0),
        open: AtomicU64::new(0),
        accepted: AtomicU64::new(0),
        registration: Mutex::new(None),
    });
    let (stop, stopped) = watch::channel(false);
    let mut serving = JoinSet::new();
    serving.spawn(serve(listener, Arc::clone(&state), stopped));
    let registration = register(consul, service, id, addr).await?;
    *lock(&state.registration) = Some(registration);
    // Who can give orders finds an instance that is registered.
    serving.spawn(obey(control, Arc::clone(&state)));
    // It listens from here on, so that the signal that ends this wait is the first that it knows.
    let lifecycle = Lifecycle::new().shutdown_on_signal()?;
    terminated.recv().await;
    if state.abrupt.load(Ordering::SeqCst) {
        stop.send_replace(true);
        leave(&state).await;
    } else {
        let registration = lock(&state.registration).take();
        let lifecycle = match registration {
            Some(registration) => lifecycle.registration(registration),
            None => lifecycle,
        };
        let drain = lifecycle.shutdown().reached(Stage::Drain);
        let (report, _) = lifecycle
            .lame_duck(DRAIN)
            .deadline(Stage::Drain, PATIENCE)
            .run(async {
                drain.await;
                stop.send_replace(true);
                serving.join_next().await
            })
            .await;
        println!("{report}");
        return Ok(());
    }
    timeout(PATIENCE, serving.join_next()).await.ok();
    Ok(())
}

async fn register(
    consul: &str,
    service: &str,
    id: &str,
    addr: SocketAddr,
) -> Result<Registration, Box<dyn Error>> {
    let client = Client::builder().address(consul).build()?;
    let described = ServiceDefinition::from_env()?.explicit().listener(addr);
    let definition = match described.services()?.pop() {
        Some(described) => described,
        None => ServiceDefinition::new(service)
            .id(id)
            .listener(addr)
            .check(CheckDefinition::alive_only(Duration::from_secs(15))),
    };
    Ok(client.register(definition).await?)
}

async fn leave(state: &State) {
    let registration = lock(&state.registration).take();
    if let Some(registration) = registration {
        // Consul may be down: then nobody can be told.
        registration.close().await.ok();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Counts something for as long as it is there.
struct Counted(Arc<State>, fn(&State) -> &AtomicU64);

impl Counted {
    fn new(state: &Arc<State>, which: fn(&State) -> &AtomicU64) -> Self {
        which(state).fetch_add(1, Ordering::SeqCst);
        Self(Arc::clone(state), which)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        (self.1)(&self.0).fetch_sub(1, Ordering::SeqCst);
    }
}

async fn serve(listener: TcpListener, state: Arc<State>, mut stopped: watch::Receiver<bool>) {
    let mut connections = JoinSet::new();
    loop {
        let (stream, _) = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok(accepted) => accepted,
                Err(_) => break,
            },
            _ = stopped.changed() => break,
        };
        state.accepted.fetch_add(1, Ordering::SeqCst);
        while connections.try_join_next().is_some() {}
        connections.spawn(connection(stream, Arc::clone(&state), stopped.clone()));
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

async fn connection(stream: TcpStream, state: Arc<State>, mut stopped: watch::Receiver<bool>) {
    stream.set_nodelay(true).ok();
    let _open = Counted::new(&state, |state| &state.open);
    let service = service_fn(|request| answer(request, Arc::clone(&state)));
    let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    tokio::select! {
        _ = connection.as_mut() => return,
        _ = stopped.wait_for(|stopped| *stopped) => connection.as_mut().graceful_shutdown(),
    }
    connection.await.ok();
}

async fn answer(request: Request<Incoming>, state: Arc<State>) -> Result<Reply, hyper::Error> {
    state.requests.fetch_add(1, Ordering::SeqCst);
    let _in_flight = Counted::new(&state, |state| &state.in_flight);
    let in_pieces = request.uri().path() == "/pieces";
    let body = request.into_body().collect().await?.to_bytes();
    let delay = Duration::from_millis(state.delay.load(Ordering::SeqCst));
    if !delay.is_zero() {
        sleep(delay).await;
    }
    let body = if in_pieces {
        Pieces::new().boxed()
    } else {
        Full::new(Bytes::from(format!("{} {}", state.id, body.len()))).boxed()
    };
    let mut response = Response::new(body);
    let status = StatusCode::from_u16(state.status.load(Ordering::SeqCst));
    *response.status_mut() = status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    Ok(response)
}

/// A body that comes bit by bit.
struct Pieces {
    left: u32,
    pause: Pin<Box<tokio::time::Sleep>>,
}

impl Pieces {
    fn new() -> Self {
        let (left, pause) = PIECES;
        Self {
            left,
            pause: Box::pin(sleep(pause)),
        }
    }
}

impl Body for Pieces {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.left == 0 {
            return Poll::Ready(None);
        }
        std::task::ready!(self.pause.as_mut().poll(cx));
        self.left -= 1;
        self.pause = Box::pin(sleep(PIECES.1));
        Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(&[b'x'; 512])))))
    }
}

async fn obey(listener: TcpListener, state: Arc<State>) {
    while let Ok((stream, _)) = listener.accept().await {
        let service = service_fn(|request: Request<Incoming>| order(request, Arc::clone(&state)));
        let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
        connection.await.ok();
    }
}

async fn order(
    request: Request<Incoming>,
    state: Arc<State>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let mut words = request.uri().path().split('/').skip(1);
    let said = match (words.next(), words.next()) {
        (Some("stats"), None) => {
            let read = |count: &AtomicU64| count.load(Ordering::SeqCst);
            format!(
                "{} {} {} {}",
                read(&state.requests),
                read(&state.in_flight),
                read(&state.open),
                read(&state.accepted)
            )
        }
        (Some("status"), Some(status)) => {
            state
                .status
                .store(status.parse().unwrap_or(500), Ordering::SeqCst);
            String::new()
        }
        (Some("delay"), Some(millis)) => {
            state
                .delay
                .store(millis.parse().unwrap_or(0), Ordering::SeqCst);
            String::new()
        }
        (Some("abrupt"), None) => {
            state.abrupt.store(true, Ordering::SeqCst);
            String::new()
        }
        (Some("leave"), None) => {
            leave(&state).await;
            String::new()
        }
        _ => {
            let mut response = Response::new(Full::new(Bytes::from("no such order")));
            *response.status_mut() = StatusCode::NOT_FOUND;
            return Ok(response);
        }
    };
    Ok(Response::new(Full::new(Bytes::from(said))))
}
