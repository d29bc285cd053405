//! One HTTP request at a time, on a connection of its own, for arranging and for looking.
//!
//! It shares no code with the client under test, so that a mistake there cannot hide itself.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, Uri};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

/// Longest wait for a whole answer; no request of this module is a long poll.
const DEADLINE: Duration = Duration::from_secs(10);

/// What a server answered.
#[derive(Debug)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// All headers.
    pub headers: HeaderMap,
    /// The whole body.
    pub body: Bytes,
}

impl Answer {
    /// Whether the status is in 200..300.
    #[must_use]
    pub fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }

    /// The body as text, with what is not UTF-8 replaced.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON.
    ///
    /// # Panics
    ///
    /// When it is none; the message shows the body.
    #[must_use]
    pub fn json(&self) -> serde_json::Value {
        match serde_json::from_slice(&self.body) {
            Ok(value) => value,
            Err(error) => panic!("{error} in answer {}: {}", self.status, self.text()),
        }
    }
}

/// `GET url`.
///
/// # Errors
///
/// When there is no connection or no whole answer within ten seconds.
pub async fn get(url: &str) -> io::Result<Answer> {
    request("GET", url, &[], "").await
}

/// `PUT url` with a body.
///
/// # Errors
///
/// When there is no connection or no whole answer within ten seconds.
pub async fn put(url: &str, body: impl Into<Bytes>) -> io::Result<Answer> {
    request("PUT", url, &[], body).await
}

/// Any request over plain HTTP.
///
/// # Errors
///
/// When there is no connection or no whole answer within ten seconds.
///
/// # Panics
///
/// When method, URL or a header is malformed.
pub async fn request(
    method: &str,
    url: &str,
    headers: &[(&str, &str)],
    body: impl Into<Bytes>,
) -> io::Result<Answer> {
    let uri: Uri = url.parse().expect("a URL");
    assert_eq!(uri.scheme_str(), Some("http"), "plain HTTP only: {url}");
    let authority = uri.authority().expect("a host").clone();
    let addr = match authority.port_u16() {
        Some(_) => authority.to_string(),
        None => format!("{authority}:80"),
    };
    let request = build(method, &uri, headers, body.into());
    within_deadline(async move { exchange(TcpStream::connect(addr).await?, request).await }).await
}

/// Any request over a stream that is already open, such as a TLS session.
///
/// # Errors
///
/// When there is no whole answer within ten seconds.
///
/// # Panics
///
/// When method, URL or a header is malformed.
pub async fn request_over(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    method: &str,
    url: &str,
    headers: &[(&str, &str)],
    body: impl Into<Bytes>,
) -> io::Result<Answer> {
    let uri: Uri = url.parse().expect("a URL");
    let request = build(method, &uri, headers, body.into());
    within_deadline(exchange(stream, request)).await
}

fn build(method: &str, uri: &Uri, headers: &[(&str, &str)], body: Bytes) -> Request<Full<Bytes>> {
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let mut request = Request::builder()
        .method(method)
        .uri(path)
        .header("host", uri.authority().expect("a host").as_str());
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request
        .body(Full::new(body))
        .expect("a method, a path and headers")
}

async fn within_deadline(exchange: impl Future<Output = io::Result<Answer>>) -> io::Result<Answer> {
    match tokio::time::timeout(DEADLINE, exchange).await {
        Ok(answer) => answer,
        Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "no whole answer")),
    }
}

async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    request: Request<Full<Bytes>>,
) -> io::Result<Answer> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .map_err(io::Error::other)?;
    let answer = async {
        let response = sender.send_request(request).await?;
        let (head, body) = response.into_parts();
        let body = body.collect().await?.to_bytes();
        Ok::<_, hyper::Error>(Answer {
            status: head.status.as_u16(),
            headers: head.headers,
            body,
        })
    };
    let mut answer = std::pin::pin!(answer);
    let mut connection = std::pin::pin!(connection);
    tokio::select! {
        done = &mut answer => return done.map_err(io::Error::other),
        // The connection may end before the answer was handed over; its own error shows there.
        _ = &mut connection => {}
    }
    answer.await.map_err(io::Error::other)
}
