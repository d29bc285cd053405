//! One HTTP/2 connection, shared by all requests to an endpoint.

use http::Request;
use hyper::client::conn::http2;
use hyper_util::rt::TokioIo;
use std::future::pending;
use tokio::net::TcpStream;
use tokio_util::sync::ReusableBoxFuture;

use crate::task::Runtime;

use super::body::Outgoing;
use super::lease::Call;

/// The pool's handle of a connection. It closes when this and all streams are gone.
pub(super) struct Connection {
    sender: http2::SendRequest<Outgoing>,
    used: bool,
    /// The pool's age when the connection was last asked for.
    pub(super) aged: u32,
}

/// One request's part of a connection.
pub(crate) struct Http2 {
    sender: http2::SendRequest<Outgoing>,
    call: Call,
    reused: bool,
}

impl Connection {
    /// Makes a connection of a socket and starts the tasks that drive it, which end with it.
    pub(super) async fn start(stream: TcpStream, runtime: &Runtime) -> hyper::Result<Self> {
        let (sender, connection) = http2::handshake(runtime.clone(), TokioIo::new(stream)).await?;
        runtime.drive(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "connection ended");
            }
        });
        Ok(Self {
            sender,
            used: false,
            aged: 0,
        })
    }

    pub(super) fn is_closed(&self) -> bool {
        self.sender.is_closed()
    }

    pub(super) fn stream(&mut self) -> Http2 {
        Http2 {
            sender: self.sender.clone(),
            call: ReusableBoxFuture::new(pending()),
            reused: std::mem::replace(&mut self.used, true),
        }
    }
}

impl Http2 {
    pub(super) fn is_reused(&self) -> bool {
        self.reused
    }

    pub(super) fn send(&mut self, request: Request<Outgoing>) {
        self.call.set(self.sender.try_send_request(request));
    }

    pub(super) fn call(&mut self) -> &mut Call {
        &mut self.call
    }
}
