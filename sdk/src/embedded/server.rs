//! The agent's loopback sockets.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::runtime::Handle;
use tokio::task::JoinSet;

use super::body::Body;
use super::checks;
use super::core::Core;
use super::dns::{self, Transport};
use super::endpoints;
use crate::task::{StopSignal, Worker};

/// Larger than anything the agent stores, and small enough not to hurt.
const MAX_BODY: usize = 8 * 1024 * 1024;
/// More than a question can have.
const UDP_PACKET: usize = 4096;
const DNS_ATTEMPTS: u32 = 16;

#[derive(Debug)]
pub(super) struct Server {
    pub(super) http_addr: SocketAddr,
    pub(super) dns_addr: SocketAddr,
    workers: Mutex<Vec<Worker<()>>>,
}

impl Server {
    pub(super) async fn start(core: &Arc<Core>) -> io::Result<Self> {
        let runtime = Handle::try_current().map_err(io::Error::other)?;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let http_addr = listener.local_addr()?;
        let (dns_tcp, dns_udp) = bind_dns().await?;
        let dns_addr = dns_udp.local_addr()?;
        let shared = || Arc::clone(core);
        let workers = vec![
            Worker::spawn(&runtime, |signal| accept(listener, shared(), signal, http)),
            Worker::spawn(&runtime, |signal| {
                accept(dns_tcp, shared(), signal, dns_stream)
            }),
            Worker::spawn(&runtime, |signal| dns_packets(dns_udp, shared(), signal)),
            Worker::spawn(&runtime, |signal| checks::run(shared(), signal)),
        ];
        Ok(Self {
            http_addr,
            dns_addr,
            workers: Mutex::new(workers),
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

/// Binds one port for both transports.
async fn bind_dns() -> io::Result<(TcpListener, UdpSocket)> {
    let mut attempts = 0;
    loop {
        let tcp = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        match UdpSocket::bind(tcp.local_addr()?).await {
            Ok(udp) => return Ok((tcp, udp)),
            // The port that is free for one need not be free for the other.
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && attempts < DNS_ATTEMPTS => {
                attempts += 1;
            }
            Err(error) => return Err(error),
        }
    }
}

/// Serves connections until the owner asks for the end; open connections end with it.
async fn accept<F>(
    listener: TcpListener,
    core: Arc<Core>,
    mut signal: StopSignal,
    serve: impl Fn(TcpStream, Arc<Core>) -> F + Send,
) where
    F: Future<Output = ()> + Send + 'static,
{
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            _ = signal.recv() => break,
            accepted = listener.accept() => {
                match accepted {
                    Ok((stream, _)) => {
                        connections.spawn(serve(stream, Arc::clone(&core)));
                    }
                    // A connection that broke before it was accepted is nobody's loss. A process
                    // without free descriptors fails again at once: do not spin.
                    Err(_) => tokio::time::sleep(AFTER_ERROR).await,
                }
            }
            Some(_) = connections.join_next() => {}
        }
    }
    connections.shutdown().await;
}

async fn http(stream: TcpStream, core: Arc<Core>) {
    // Without the option small answers are only slower.
    let _ = stream.set_nodelay(true);
    let service = service_fn(move |request| respond(Arc::clone(&core), request));
    // The peer hung up or spoke nonsense, or a fault asked for a broken connection.
    let _ = http1::Builder::new()
        .timer(TokioTimer::new())
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

/// Answers the questions of one TCP connection in turn, each with its length before it.
async fn dns_stream(mut stream: TcpStream, core: Arc<Core>) {
    while let Ok(length) = stream.read_u16().await {
        let mut packet = vec![0; usize::from(length)];
        if stream.read_exact(&mut packet).await.is_err() {
            return;
        }
        core.faults.thawed().await;
        if core.faults.is_away() {
            return;
        }
        let Some(answer) = dns::answer(&core, &packet, Transport::Tcp) else {
            return;
        };
        let Ok(length) = u16::try_from(answer.len()) else {
            return;
        };
        let mut framed = length.to_be_bytes().to_vec();
        framed.extend(answer);
        if stream.write_all(&framed).await.is_err() {
            return;
        }
    }
}

/// How long the loops rest after an error of their socket.
const AFTER_ERROR: Duration = Duration::from_millis(20);

async fn dns_packets(socket: UdpSocket, core: Arc<Core>, mut signal: StopSignal) {
    let answers = async {
        let mut packet = vec![0; UDP_PACKET];
        loop {
            // An error here belongs to an earlier answer that could not be delivered.
            let Ok((length, from)) = socket.recv_from(&mut packet).await else {
                tokio::time::sleep(AFTER_ERROR).await;
                continue;
            };
            core.faults.thawed().await;
            if core.faults.is_away() {
                continue;
            }
            let asked = packet.get(..length).unwrap_or_default();
            if let Some(answer) = dns::answer(&core, asked, Transport::Udp) {
                // A lost packet is what UDP promises.
                let _ = socket.send_to(&answer, from).await;
            }
        }
    };
    tokio::select! {
        _ = signal.recv() => {}
        () = answers => {}
    }
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
