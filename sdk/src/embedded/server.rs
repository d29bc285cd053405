//! The agent's loopback sockets.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;
use tokio::task::JoinSet;

use super::body::Body;
use super::core::Core;
use super::endpoints;
use crate::task::{StopSignal, Worker};

/// Larger than anything the agent stores, and small enough not to hurt.
const MAX_BODY: usize = 8 * 1024 * 1024;

#[derive(Debug)]
pub(super) struct Server {
    pub(super) http_addr: SocketAddr,
    workers: Mutex<Vec<Worker<()>>>,
}

impl Server {
    pub(super) async fn start(core: &Arc<Core>) -> io::Result<Self> {
        let runtime = Handle::try_current().map_err(io::Error::other)?;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let http_addr = listener.local_addr()?;
        let core = Arc::clone(core);
        let http = Worker::spawn(&runtime, |signal| accept(listener, core, signal));
        Ok(Self {
            http_addr,
            workers: Mutex::new(vec![http]),
        })
    }

    /// Ends all tasks and returns when they have ended.
    pub(super) async fn stop(&self) {
        let workers =
            std::mem::take(&mut *self.workers.lock().unwrap_or_else(PoisonError::into_inner));
        for worker in workers {
            worker.stop().await;
        }
    }
}

/// Serves connections until the owner asks for the end; open connections end with it.
async fn accept(listener: TcpListener, core: Arc<Core>, mut signal: StopSignal) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            _ = signal.recv() => break,
            accepted = listener.accept() => {
                // A connection that broke before it was accepted is nobody's loss.
                if let Ok((stream, _)) = accepted {
                    connections.spawn(connection(stream, Arc::clone(&core)));
                }
            }
            Some(_) = connections.join_next() => {}
        }
    }
    connections.shutdown().await;
}

async fn connection(stream: TcpStream, core: Arc<Core>) {
    // Delay of small answers would hide in every measurement; without the option it is only slow.
    let _ = stream.set_nodelay(true);
    let service = service_fn(move |request| respond(Arc::clone(&core), request));
    // The peer hung up or spoke nonsense, or a fault asked for a broken connection.
    let _ = http1::Builder::new()
        .timer(TokioTimer::new())
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

async fn respond(core: Arc<Core>, request: Request<Incoming>) -> io::Result<Response<Body>> {
    let (head, body) = request.into_parts();
    let body = match Limited::new(body, MAX_BODY).collect().await {
        Ok(body) => body.to_bytes(),
        Err(error) if error.is::<http_body_util::LengthLimitError>() => {
            let mut refused =
                Response::new(Body::whole(Bytes::from_static(b"Request body too large")));
            *refused.status_mut() = StatusCode::PAYLOAD_TOO_LARGE;
            return Ok(refused);
        }
        Err(error) => return Err(io::Error::other(error)),
    };
    endpoints::serve(core, Request::from_parts(head, body)).await
}
