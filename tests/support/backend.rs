//! A small HTTP/1 server that says who it is, for tests of whoever calls it.

use std::convert::Infallible;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU16, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Response};
use http_body_util::Full;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// Answers every request with its name.
///
/// It starts one task, which owns all connections. Dropping it is [`abort`](Self::abort).
#[derive(Debug)]
pub struct Backend {
    addr: SocketAddr,
    shared: Arc<Shared>,
    delay: watch::Sender<Duration>,
    stop: watch::Sender<bool>,
    task: JoinSet<()>,
}

#[derive(Debug)]
struct Shared {
    name: String,
    status: AtomicU16,
    load: Mutex<Option<HeaderValue>>,
    requests: AtomicUsize,
    in_flight: AtomicUsize,
    connections: AtomicUsize,
}

impl Backend {
    /// Starts to serve on a free port of the loopback interface.
    ///
    /// # Errors
    ///
    /// When there is no such port.
    pub async fn start(name: &str) -> io::Result<Self> {
        Self::start_on((Ipv4Addr::LOCALHOST, 0).into(), name).await
    }

    /// Starts to serve on a given address, such as the one of a backend that was stopped.
    ///
    /// # Errors
    ///
    /// When the address is taken.
    pub async fn start_on(addr: SocketAddr, name: &str) -> io::Result<Self> {
        let listener = TcpListener::bind(addr).await?;
        let addr = listener.local_addr()?;
        let shared = Arc::new(Shared {
            name: name.to_owned(),
            status: AtomicU16::new(200),
            load: Mutex::new(None),
            requests: AtomicUsize::new(0),
            in_flight: AtomicUsize::new(0),
            connections: AtomicUsize::new(0),
        });
        let (delay, delayed) = watch::channel(Duration::ZERO);
        let (stop, stopped) = watch::channel(false);
        let mut task = JoinSet::new();
        task.spawn(accept(listener, Arc::clone(&shared), delayed, stopped));
        Ok(Self {
            addr,
            shared,
            delay,
            stop,
            task,
        })
    }

    /// Where it listens.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Its name, the body of every answer.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.shared.name
    }

    /// How many requests it has begun to answer.
    #[must_use]
    pub fn requests(&self) -> usize {
        self.shared.requests.load(Ordering::SeqCst)
    }

    /// How many requests it is answering now.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.shared.in_flight.load(Ordering::SeqCst)
    }

    /// How many connections it has taken.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::SeqCst)
    }

    /// Takes so long for each answer from now on.
    pub fn delay(&self, delay: Duration) {
        self.delay.send_replace(delay);
    }

    /// Answers with this status from now on.
    pub fn status(&self, status: u16) {
        self.shared.status.store(status, Ordering::SeqCst);
    }

    /// Reports this load with each answer from now on, in the header `endpoint-load-metrics`.
    pub fn load(&self, report: &'static str) {
        let mut load = self
            .shared
            .load
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        *load = Some(HeaderValue::from_static(report));
    }

    /// Takes no new connection, finishes the requests in flight, and returns when all are done.
    pub async fn stop(mut self) {
        self.stop.send_replace(true);
        self.task.join_next().await;
    }

    /// Ends at once, in the middle of whatever it does, as a crash would.
    pub async fn abort(mut self) {
        self.task.shutdown().await;
    }
}

async fn accept(
    listener: TcpListener,
    shared: Arc<Shared>,
    delay: watch::Receiver<Duration>,
    mut stop: watch::Receiver<bool>,
) {
    let mut connections = JoinSet::new();
    loop {
        let stopped = stop.clone();
        tokio::select! {
            _ = stop.wait_for(|stop| *stop) => break,
            accepted = listener.accept() => {
                let Ok((stream, _)) = accepted else { break };
                while connections.try_join_next().is_some() {}
                connections.spawn(serve(stream, Arc::clone(&shared), delay.clone(), stopped));
            }
        }
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

async fn serve(
    stream: TcpStream,
    shared: Arc<Shared>,
    delay: watch::Receiver<Duration>,
    mut stop: watch::Receiver<bool>,
) {
    stream.set_nodelay(true).ok();
    shared.connections.fetch_add(1, Ordering::SeqCst);
    let answer = service_fn(|_request| {
        let answering = Answering::new(Arc::clone(&shared));
        let delay = *delay.borrow();
        async move {
            if !delay.is_zero() {
                tokio::time::sleep(delay).await;
            }
            let Shared {
                name, status, load, ..
            } = &*answering.0;
            let mut response = Response::new(Full::new(Bytes::from(name.clone())));
            *response.status_mut() = status
                .load(Ordering::SeqCst)
                .try_into()
                .unwrap_or(http::StatusCode::INTERNAL_SERVER_ERROR);
            let load = load.lock().unwrap_or_else(PoisonError::into_inner).clone();
            if let Some(load) = load {
                response.headers_mut().insert("endpoint-load-metrics", load);
            }
            Ok::<_, Infallible>(response)
        }
    });
    let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), answer);
    let mut connection = std::pin::pin!(connection);
    tokio::select! {
        _ = &mut connection => return,
        _ = stop.wait_for(|stop| *stop) => connection.as_mut().graceful_shutdown(),
    }
    connection.await.ok();
}

/// Counts a request as in flight until it is answered or given up.
struct Answering(Arc<Shared>);

impl Answering {
    fn new(shared: Arc<Shared>) -> Self {
        shared.requests.fetch_add(1, Ordering::SeqCst);
        shared.in_flight.fetch_add(1, Ordering::SeqCst);
        Self(shared)
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http;
    use crate::wait::eventually;

    #[tokio::test]
    async fn it_answers_with_its_name_and_counts() {
        let backend = Backend::start("first").await.unwrap();
        let url = format!("http://{}/any/path", backend.addr());
        assert_eq!(http::get(&url).await.unwrap().text(), "first");
        backend.status(503);
        assert_eq!(http::get(&url).await.unwrap().status, 503);
        assert_eq!(backend.requests(), 2);
        assert_eq!(backend.in_flight(), 0);
    }

    #[tokio::test]
    async fn a_graceful_stop_answers_what_is_in_flight_and_refuses_the_rest() {
        let backend = Backend::start("slow").await.unwrap();
        backend.delay(Duration::from_millis(200));
        let addr = backend.addr();
        let url = format!("http://{addr}/");
        let stop = async {
            eventually(Duration::from_secs(5), async || backend.in_flight() == 1).await;
            backend.stop().await;
        };
        let (answer, ()) = tokio::join!(http::get(&url), stop);
        assert_eq!(answer.unwrap().text(), "slow");
        assert!(TcpStream::connect(addr).await.is_err());
    }

    #[tokio::test]
    async fn an_abort_breaks_what_is_in_flight() {
        let backend = Backend::start("slow").await.unwrap();
        backend.delay(Duration::from_secs(60));
        let addr = backend.addr();
        let url = format!("http://{addr}/");
        let abort = async {
            eventually(Duration::from_secs(5), async || backend.in_flight() == 1).await;
            backend.abort().await;
        };
        let (answer, ()) = tokio::join!(http::get(&url), abort);
        assert!(answer.is_err());
        assert!(TcpStream::connect(addr).await.is_err());
    }
}
