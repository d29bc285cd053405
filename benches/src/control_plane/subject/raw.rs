//! The floor under all: one hyper connection per loop, no pool, no JSON.

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use super::{Kv, Subject};
use crate::Outcome;

/// See the module.
pub(in crate::control_plane) struct Raw {
    sender: SendRequest<Full<Bytes>>,
    host: String,
    _connection: JoinSet<()>,
}

impl Raw {
    async fn exchange(&mut self, method: &str, key: &str, body: &'static [u8]) -> Outcome<Bytes> {
        let request = Request::builder()
            .method(method)
            .uri(format!("/v1/kv/{key}"))
            .header("Host", &self.host)
            .body(Full::new(Bytes::from_static(body)))?;
        self.sender.ready().await?;
        let answer = self.sender.send_request(request).await?;
        if !answer.status().is_success() {
            return Err(format!("status {}", answer.status()).into());
        }
        Ok(answer.into_body().collect().await?.to_bytes())
    }
}

impl Subject for Raw {
    async fn connect(address: &str) -> Outcome<Self> {
        let host = address
            .strip_prefix("http://")
            .ok_or("not an HTTP address")?;
        let stream = TcpStream::connect(host).await?;
        stream.set_nodelay(true)?;
        let (sender, connection) = handshake(TokioIo::new(stream)).await?;
        let mut task = JoinSet::new();
        task.spawn(async {
            // Its error is the sender's error too.
            connection.await.ok();
        });
        Ok(Self {
            sender,
            host: host.to_owned(),
            _connection: task,
        })
    }

    async fn another(&self) -> Outcome<Self> {
        Self::connect(&format!("http://{}", self.host)).await
    }
}

impl Kv for Raw {
    async fn get(&mut self, key: &str) -> Outcome<usize> {
        let body = self.exchange("GET", key, b"").await?;
        // The value's length is known from the base64 text between its quotes: 4 letters are 3 bytes.
        let text = body
            .split(|byte| *byte == b'"')
            .skip_while(|part| part != b"Value")
            .nth(2)
            .ok_or("no value")?;
        let padding = text
            .iter()
            .rev()
            .take_while(|letter| **letter == b'=')
            .count();
        Ok(text.len() / 4 * 3 - padding)
    }

    async fn put(&mut self, key: &str, value: &'static [u8]) -> Outcome<()> {
        match &*self.exchange("PUT", key, value).await? {
            b"true" => Ok(()),
            _ => Err("not written".into()),
        }
    }
}
