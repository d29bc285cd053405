//! HTTP/1.1 servers in a process of their own, so that CPU time of the client is the client's.

use std::convert::Infallible;
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use crate::Outcome;
use crate::worker::{self, Worker};

/// The first argument that makes this program the backends; the second is the time that each of
/// them takes to answer, in microseconds.
pub(super) const MODE: &str = "__backends";

/// How many there are in most benches.
pub(super) const COUNT: usize = 10;

/// What each answers.
pub(super) const ANSWER: &[u8] = b"Hello from one of ten backends.\n";

/// The header of an answer that says which of the backends it is from.
pub(super) const NUMBER: &str = "backend";

/// The running backends; they end with this.
#[derive(Debug)]
pub(super) struct Fleet {
    _process: Worker,
    pub(super) addresses: Vec<String>,
}

impl Fleet {
    /// Starts a backend for each of these times to answer, in microseconds.
    pub(super) async fn start(program: &Path, delays_us: &[u64]) -> Outcome<Self> {
        let mut process = Worker::with_job(program, MODE, &delays_us)?;
        let addresses = serde_json::from_str(&process.line().await?)?;
        Ok(Self {
            _process: process,
            addresses,
        })
    }
}

pub(super) async fn serve(delays: Option<String>) -> Outcome<()> {
    let delays: Vec<u64> = serde_json::from_str(&delays.ok_or("no delays")?)?;
    let mut addresses = Vec::new();
    let mut servers = JoinSet::new();
    for (number, delay) in (0_u16..).zip(delays) {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        addresses.push(listener.local_addr()?.to_string());
        servers.spawn(accept(listener, number, Duration::from_micros(delay)));
    }
    println!("{}", serde_json::to_string(&addresses)?);
    std::io::stdout().flush()?;
    worker::input_ended().await;
    Ok(())
}

async fn accept(listener: TcpListener, number: u16, delay: Duration) {
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        stream.set_nodelay(true).ok();
        let answer = move |_: Request<Incoming>| async move {
            if !delay.is_zero() {
                tokio::time::sleep(delay).await;
            }
            let mut response = Response::new(Full::new(Bytes::from_static(ANSWER)));
            let headers = response.headers_mut();
            headers.insert(NUMBER, HeaderValue::from(number));
            Ok::<_, Infallible>(response)
        };
        connections.spawn(
            http1::Builder::new().serve_connection(TokioIo::new(stream), service_fn(answer)),
        );
        while connections.try_join_next().is_some() {}
    }
}
