//! A server that does with each request what a test says.

use std::convert::Infallible;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use lictor_tower::channel::{Builder, Channel};
use lictor_tower::endpoint::Target;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use crate::support::{Registry, Reply, Told, registry};

/// What becomes of a request.
pub(crate) enum Do {
    Answer(Response<Reply>),
    /// No answer ever comes.
    Hang,
    /// The connection is closed.
    Crash,
}

/// A server with a script; its argument is how many requests came before.
pub(crate) struct Scripted {
    pub(crate) target: Target,
    requests: Arc<AtomicU32>,
    given_up: Arc<AtomicU32>,
    bodies: Arc<Mutex<Vec<Bytes>>>,
    _tasks: JoinSet<()>,
}

struct Hanging(Arc<AtomicU32>);

impl Drop for Hanging {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

#[derive(Debug)]
struct Crashed;

impl std::fmt::Display for Crashed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("crashed")
    }
}

impl std::error::Error for Crashed {}

impl Scripted {
    pub(crate) async fn start(script: impl Fn(u32) -> Do + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let target = Target::try_from(listener.local_addr().unwrap()).unwrap();
        let requests = Arc::new(AtomicU32::new(0));
        let given_up = Arc::new(AtomicU32::new(0));
        let bodies = Arc::new(Mutex::new(Vec::new()));
        let mut tasks = JoinSet::new();
        let (counted, gone, read) = (
            Arc::clone(&requests),
            Arc::clone(&given_up),
            Arc::clone(&bodies),
        );
        let script = Arc::new(script);
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                stream.set_nodelay(true).unwrap();
                let (counted, gone, read) =
                    (Arc::clone(&counted), Arc::clone(&gone), Arc::clone(&read));
                let script = Arc::clone(&script);
                let service = service_fn(move |request: Request<Incoming>| {
                    let (counted, gone, read) =
                        (Arc::clone(&counted), Arc::clone(&gone), Arc::clone(&read));
                    let todo = script(counted.fetch_add(1, Ordering::SeqCst));
                    async move {
                        if let Ok(body) = request.into_body().collect().await {
                            read.lock().unwrap().push(body.to_bytes());
                        }
                        match todo {
                            Do::Answer(response) => Ok(response),
                            Do::Crash => Err(Crashed),
                            Do::Hang => {
                                let _hanging = Hanging(gone);
                                std::future::pending().await
                            }
                        }
                    }
                });
                connections.spawn(async move {
                    hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await
                        .ok();
                });
            }
        });
        Self {
            target,
            requests,
            given_up,
            bodies,
            _tasks: tasks,
        }
    }

    pub(crate) fn requests(&self) -> u32 {
        self.requests.load(Ordering::SeqCst)
    }

    /// How many requests that hung were given up by their caller.
    pub(crate) fn given_up(&self) -> u32 {
        self.given_up.load(Ordering::SeqCst)
    }

    /// What came as bodies, as far as it came whole.
    pub(crate) fn bodies(&self) -> Vec<Bytes> {
        self.bodies.lock().unwrap().clone()
    }
}

pub(crate) fn ok() -> Do {
    Do::Answer(Response::new(whole("ok")))
}

pub(crate) fn status(code: u16) -> Do {
    with(code, &[])
}

pub(crate) fn with(code: u16, headers: &[(&'static str, &str)]) -> Do {
    let mut response = Response::new(whole("no"));
    *response.status_mut() = StatusCode::from_u16(code).unwrap();
    for (name, value) in headers {
        response.headers_mut().insert(*name, value.parse().unwrap());
    }
    Do::Answer(response)
}

fn whole(body: &'static str) -> Reply {
    Full::new(Bytes::from_static(body.as_bytes()))
        .map_err(|never: Infallible| never)
        .boxed_unsync()
}

pub(crate) fn over(
    servers: &[&Scripted],
    options: impl FnOnce(Builder<Told>) -> Builder<Told>,
) -> (Registry, Channel) {
    let (registry, told) = registry();
    let targets: Vec<_> = servers.iter().map(|server| &server.target).collect();
    registry.tell(&targets);
    let channel = options(Channel::from_source(told)).build().unwrap();
    (registry, channel)
}

/// A request with a body that is wholly known.
pub(crate) fn known(method: Method, body: &'static str) -> Request<Full<Bytes>> {
    Request::builder()
        .method(method)
        .uri("/")
        .body(Full::new(Bytes::from_static(body.as_bytes())))
        .unwrap()
}
