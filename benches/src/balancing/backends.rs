//! Ten HTTP/1.1 servers in a process of their own, so that CPU time of the client is the client's.

use std::convert::Infallible;
use std::io::Write;
use std::path::Path;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use crate::Outcome;
use crate::worker::{self, Worker};

/// The first argument that makes this program the backends.
pub(super) const MODE: &str = "__backends";

/// How many there are.
pub(super) const COUNT: usize = 10;

/// What each answers.
pub(super) const ANSWER: &[u8] = b"Hello from one of ten backends.\n";

/// The running backends; they end with this.
#[derive(Debug)]
pub(super) struct Backends {
    _process: Worker,
    pub(super) addresses: Vec<String>,
}

impl Backends {
    pub(super) async fn start(program: &Path) -> Outcome<Self> {
        let mut process = Worker::start(program, [MODE])?;
        let addresses = serde_json::from_str(&process.line().await?)?;
        Ok(Self {
            _process: process,
            addresses,
        })
    }
}

pub(super) async fn serve() -> Outcome<()> {
    let mut addresses = Vec::new();
    let mut servers = JoinSet::new();
    for _ in 0..COUNT {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        addresses.push(listener.local_addr()?.to_string());
        servers.spawn(accept(listener));
    }
    println!("{}", serde_json::to_string(&addresses)?);
    std::io::stdout().flush()?;
    worker::input_ended().await;
    Ok(())
}

async fn accept(listener: TcpListener) {
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        stream.set_nodelay(true).ok();
        connections.spawn(http1::Builder::new().serve_connection(
            TokioIo::new(stream),
            service_fn(|_: Request<Incoming>| async {
                Ok::<_, Infallible>(Response::new(Full::new(Bytes::from_static(ANSWER))))
            }),
        ));
        while connections.try_join_next().is_some() {}
    }
}
