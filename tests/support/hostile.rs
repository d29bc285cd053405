//! A server that answers as no server should.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

/// What it does with a request once it has read it whole.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Reply {
    /// Sends exactly these bytes and closes.
    Raw(Bytes),
    /// Sends exactly these bytes and then neither closes nor says more.
    ThenSilence(Bytes),
    /// Sends the first bytes once and the second for ever.
    Endless(Bytes, Bytes),
    /// Sends these bytes one by one, with this pause before each, and closes.
    Drip(Bytes, Duration),
    /// Resets the connection.
    Reset,
    /// Never says anything.
    Hang,
}

impl Reply {
    /// A well-formed answer.
    #[must_use]
    pub fn status(code: u16, body: &str) -> Self {
        let length = body.len();
        Self::raw(format!(
            "HTTP/1.1 {code} Stated\r\ncontent-type: application/json\r\n\
             content-length: {length}\r\nconnection: close\r\n\r\n{body}"
        ))
    }

    /// Well-formed, with more headers; each line of `headers` ends with `\r\n`.
    #[must_use]
    pub fn with_headers(code: u16, headers: &str, body: &str) -> Self {
        let length = body.len();
        Self::raw(format!(
            "HTTP/1.1 {code} Stated\r\n{headers}content-length: {length}\r\n\
             connection: close\r\n\r\n{body}"
        ))
    }

    /// Bytes that are not HTTP at all.
    #[must_use]
    pub fn garbage() -> Self {
        Self::Raw(Bytes::from_static(
            b"\x16\x03\x01\x00\xff\xfe\x00 this is not HTTP \r\n\r\n\x00\x01\x02",
        ))
    }

    /// A success whose body ends before the length it states.
    #[must_use]
    pub fn truncated(body: &str) -> Self {
        Self::lying_length(body, body.len() + 100)
    }

    /// A success that states another length than its body has, and closes.
    #[must_use]
    pub fn lying_length(body: &str, length: usize) -> Self {
        Self::raw(format!(
            "HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n{body}"
        ))
    }

    /// A success whose chunked body breaks off in the middle of a chunk.
    #[must_use]
    pub fn broken_chunk() -> Self {
        Self::raw("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1000\r\n[{".to_owned())
    }

    /// A success whose chunked body never ends: a JSON list of this element, again and again.
    #[must_use]
    pub fn endless(element: &str) -> Self {
        let items = format!("{element},").repeat(0x4000_usize.div_ceil(element.len() + 1));
        Self::Endless(
            Bytes::from_static(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\n[\r\n"),
            Bytes::from(format!("{:x}\r\n{items}\r\n", items.len())),
        )
    }

    /// A head that never ends.
    #[must_use]
    pub fn endless_head() -> Self {
        Self::Endless(
            Bytes::from_static(b"HTTP/1.1 200 OK\r\n"),
            Bytes::from_static(b"x-more: and more and more and more\r\n"),
        )
    }

    /// Sends the caller elsewhere.
    #[must_use]
    pub fn redirect(code: u16, to: &str) -> Self {
        Self::with_headers(code, &format!("location: {to}\r\n"), "")
    }

    fn raw(text: String) -> Self {
        Self::Raw(Bytes::from(text))
    }
}

/// Listens on a free port of the loopback interface and gives everybody the same bad answer.
///
/// It starts one task, which owns all connections. Dropping it ends them all.
#[derive(Debug)]
pub struct Hostile {
    addr: SocketAddr,
    shared: Arc<Shared>,
    _task: JoinSet<()>,
}

#[derive(Debug)]
struct Shared {
    reply: Mutex<Reply>,
    heads: Mutex<Vec<String>>,
    open: AtomicUsize,
    sent: AtomicUsize,
}

impl Hostile {
    /// Starts to listen.
    ///
    /// # Errors
    ///
    /// When the loopback interface gives no port.
    pub async fn start(reply: Reply) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let addr = listener.local_addr()?;
        let shared = Arc::new(Shared {
            reply: Mutex::new(reply),
            heads: Mutex::new(Vec::new()),
            open: AtomicUsize::new(0),
            sent: AtomicUsize::new(0),
        });
        let mut task = JoinSet::new();
        task.spawn(accept(listener, Arc::clone(&shared)));
        Ok(Self {
            addr,
            shared,
            _task: task,
        })
    }

    /// Where it listens.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Where it listens, as a URL without a slash at its end.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// Answers differently from the next request on.
    pub fn reply(&self, reply: Reply) {
        *lock(&self.shared.reply) = reply;
    }

    /// The heads of all requests so far: request line and headers as they came.
    #[must_use]
    pub fn requests(&self) -> Vec<String> {
        lock(&self.shared.heads).clone()
    }

    /// How many connections are open now.
    #[must_use]
    pub fn open(&self) -> usize {
        self.shared.open.load(Ordering::SeqCst)
    }

    /// How many bytes the callers' side has taken so far.
    #[must_use]
    pub fn sent(&self) -> usize {
        self.shared.sent.load(Ordering::SeqCst)
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        while connections.try_join_next().is_some() {}
        let shared = Arc::clone(&shared);
        connections.spawn(async move {
            let open = Open::new(shared);
            // The caller may leave at any time; that is its right.
            answer(stream, &open.0).await.ok();
        });
    }
}

struct Open(Arc<Shared>);

impl Open {
    fn new(shared: Arc<Shared>) -> Self {
        shared.open.fetch_add(1, Ordering::SeqCst);
        Self(shared)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::SeqCst);
    }
}

async fn answer(mut stream: TcpStream, shared: &Shared) -> io::Result<()> {
    read_request(&mut stream, shared).await?;
    let reply = lock(&shared.reply).clone();
    match reply {
        Reply::Raw(bytes) => {
            send(&mut stream, &bytes, shared).await?;
            stream.shutdown().await
        }
        Reply::ThenSilence(bytes) => {
            send(&mut stream, &bytes, shared).await?;
            until_closed(&mut stream).await
        }
        Reply::Endless(first, more) => {
            send(&mut stream, &first, shared).await?;
            loop {
                send(&mut stream, &more, shared).await?;
            }
        }
        Reply::Drip(bytes, pause) => {
            for byte in bytes {
                tokio::time::sleep(pause).await;
                send(&mut stream, &[byte], shared).await?;
            }
            stream.shutdown().await
        }
        Reply::Reset => stream.set_zero_linger(),
        Reply::Hang => until_closed(&mut stream).await,
    }
}

async fn send(stream: &mut TcpStream, bytes: &[u8], shared: &Shared) -> io::Result<()> {
    stream.write_all(bytes).await?;
    shared.sent.fetch_add(bytes.len(), Ordering::SeqCst);
    Ok(())
}

async fn until_closed(stream: &mut TcpStream) -> io::Result<()> {
    let mut rest = [0; 1024];
    while stream.read(&mut rest).await? > 0 {}
    Ok(())
}

/// Reads head and body, so that closing afterwards sends an end and not a reset.
async fn read_request(stream: &mut TcpStream, shared: &Shared) -> io::Result<()> {
    let mut taken = Vec::new();
    let (head, body_read) = loop {
        let mut piece = [0; 4096];
        let read = stream.read(&mut piece).await?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        taken.extend_from_slice(&piece[..read]);
        if let Some(at) = taken.windows(4).position(|four| four == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&taken[..at]).into_owned();
            break (head, taken.len() - at - 4);
        }
    };
    let length: usize = head
        .lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        .and_then(|(_, length)| length.trim().parse().ok())
        .unwrap_or(0);
    let mut missing = length.saturating_sub(body_read);
    while missing > 0 {
        let mut piece = [0; 4096];
        match stream.read(&mut piece).await? {
            0 => break,
            read => missing = missing.saturating_sub(read),
        }
    }
    lock(&shared.heads).push(head);
    Ok(())
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http;
    use crate::wait::eventually;

    async fn get(reply: Reply) -> io::Result<http::Answer> {
        let server = Hostile::start(reply).await?;
        http::get(&server.url()).await
    }

    async fn silent(reply: Reply) -> bool {
        let asked = get(reply);
        tokio::time::timeout(Duration::from_millis(200), asked)
            .await
            .is_err()
    }

    #[tokio::test]
    async fn well_formed_answers_arrive_as_stated() {
        let answer = get(Reply::status(503, "{}")).await.unwrap();
        assert_eq!((answer.status, answer.text().as_str()), (503, "{}"));
        let answer = get(Reply::redirect(302, "http://other/")).await.unwrap();
        assert_eq!(answer.status, 302);
        assert_eq!(answer.headers["location"], "http://other/");
    }

    #[tokio::test]
    async fn malformed_answers_fail_in_a_strict_reader() {
        assert!(get(Reply::garbage()).await.is_err());
        assert!(get(Reply::truncated("[]")).await.is_err());
        assert!(get(Reply::broken_chunk()).await.is_err());
        assert!(get(Reply::endless_head()).await.is_err());
        assert!(get(Reply::Reset).await.is_err());
    }

    #[tokio::test]
    async fn unfinished_answers_keep_the_reader_waiting() {
        assert!(silent(Reply::Hang).await);
        let head = Bytes::from_static(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n");
        assert!(silent(Reply::ThenSilence(head.clone())).await);
        assert!(silent(Reply::Drip(head, Duration::from_millis(50))).await);
    }

    #[tokio::test]
    async fn an_endless_answer_goes_on_until_the_reader_leaves() {
        let server = Hostile::start(Reply::endless("1")).await.unwrap();
        let url = server.url();
        let reading = http::get(&url);
        let enough = eventually(Duration::from_secs(10), async || server.sent() > 1 << 20);
        tokio::select! {
            answer = reading => panic!("it ended: {:?}", answer.map(|answer| answer.status)),
            () = enough => {}
        }
        eventually(Duration::from_secs(10), async || server.open() == 0).await;
    }

    #[tokio::test]
    async fn it_keeps_the_heads_and_can_change_its_mind() {
        let server = Hostile::start(Reply::status(500, "no")).await.unwrap();
        let url = format!("{}/v1/kv/a?raw", server.url());
        assert_eq!(http::put(&url, "body").await.unwrap().status, 500);
        server.reply(Reply::status(200, "true"));
        assert_eq!(http::put(&url, "body").await.unwrap().status, 200);
        let heads = server.requests();
        assert_eq!(heads.len(), 2);
        assert!(heads[0].starts_with("PUT /v1/kv/a?raw HTTP/1.1\r\n"));
    }
}
