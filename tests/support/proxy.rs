//! A TCP proxy whose line can be slow, cut or dead.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// Forwards every connection it takes to one address, as long as it is told to.
///
/// It starts one task, which owns all connections. Dropping it ends them all.
#[derive(Debug)]
pub struct Proxy {
    addr: SocketAddr,
    line: watch::Sender<Line>,
    counts: Arc<Counts>,
    _task: JoinSet<()>,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Line {
    state: State,
    /// Grows when all open connections are to be reset; each remembers the one it began in.
    epoch: u64,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum State {
    Forwarding { delay: Duration },
    Cut,
    Dead,
}

#[derive(Debug, Default)]
struct Counts {
    accepted: AtomicUsize,
    open: AtomicUsize,
    up: AtomicUsize,
    down: AtomicUsize,
}

impl Proxy {
    /// Starts to forward to `target`, which need not be there yet.
    ///
    /// # Errors
    ///
    /// When the loopback interface gives no port.
    pub async fn start(target: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let addr = listener.local_addr()?;
        let state = State::Forwarding {
            delay: Duration::ZERO,
        };
        let (line, seen) = watch::channel(Line { state, epoch: 0 });
        let counts = Arc::new(Counts::default());
        let mut task = JoinSet::new();
        task.spawn(accept(listener, target, seen, Arc::clone(&counts)));
        Ok(Self {
            addr,
            line,
            counts,
            _task: task,
        })
    }

    /// Where it listens.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Where it listens, as an `http` URL without a slash at its end.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// Holds every piece of data back for so long, in each direction.
    pub fn delay(&self, delay: Duration) {
        self.set(State::Forwarding { delay });
    }

    /// Resets all open connections, and every new one until [`resume`](Self::resume).
    pub fn cut(&self) {
        self.line.send_modify(|line| {
            line.state = State::Cut;
            line.epoch += 1;
        });
    }

    /// Resets all open connections and goes on forwarding new ones.
    pub fn reset_open(&self) {
        self.line.send_modify(|line| line.epoch += 1);
    }

    /// Takes everything, connections too, and passes nothing on until [`resume`](Self::resume).
    pub fn black_hole(&self) {
        self.set(State::Dead);
    }

    /// Forwards again, at once; what a black hole held back is delivered.
    pub fn resume(&self) {
        self.delay(Duration::ZERO);
    }

    /// How many connections it has taken since its start.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.counts.accepted.load(Ordering::SeqCst)
    }

    /// How many connections are open now.
    #[must_use]
    pub fn open(&self) -> usize {
        self.counts.open.load(Ordering::SeqCst)
    }

    /// How many bytes it has passed on to the target.
    #[must_use]
    pub fn bytes_up(&self) -> usize {
        self.counts.up.load(Ordering::SeqCst)
    }

    /// How many bytes it has passed on to its callers.
    #[must_use]
    pub fn bytes_down(&self) -> usize {
        self.counts.down.load(Ordering::SeqCst)
    }

    fn set(&self, state: State) {
        self.line.send_modify(|line| line.state = state);
    }
}

async fn accept(
    listener: TcpListener,
    target: SocketAddr,
    line: watch::Receiver<Line>,
    counts: Arc<Counts>,
) {
    let mut connections = JoinSet::new();
    while let Ok((caller, _)) = listener.accept().await {
        while connections.try_join_next().is_some() {}
        counts.accepted.fetch_add(1, Ordering::SeqCst);
        connections.spawn(serve(caller, target, line.clone(), Arc::clone(&counts)));
    }
}

/// Counts a connection as open for as long as it lives, also when its task is aborted.
struct Open(Arc<Counts>);

impl Open {
    fn new(counts: Arc<Counts>) -> Self {
        counts.open.fetch_add(1, Ordering::SeqCst);
        Self(counts)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::SeqCst);
    }
}

async fn serve(
    mut caller: TcpStream,
    target: SocketAddr,
    mut line: watch::Receiver<Line>,
    counts: Arc<Counts>,
) {
    let open = Open::new(counts);
    let Line { state, epoch } = *line.borrow_and_update();
    if state == State::Cut {
        caller.set_zero_linger().ok();
        return;
    }
    let mut watched = line.clone();
    let cut = watched.wait_for(|line| line.epoch != epoch);
    let mut cut = std::pin::pin!(cut);

    let connected = async {
        usable(&mut line).await;
        TcpStream::connect(target).await
    };
    let target = tokio::select! {
        _ = &mut cut => Err(io::ErrorKind::ConnectionReset.into()),
        connected = connected => connected,
    };
    let Ok(mut target) = target else {
        caller.set_zero_linger().ok();
        return;
    };
    caller.set_nodelay(true).ok();
    target.set_nodelay(true).ok();

    let done = {
        let (caller_read, caller_write) = caller.split();
        let (target_read, target_write) = target.split();
        let both = async {
            tokio::try_join!(
                pump(caller_read, target_write, line.clone(), &open.0.up),
                pump(target_read, caller_write, line.clone(), &open.0.down),
            )
            .is_ok()
        };
        tokio::select! {
            _ = &mut cut => false,
            done = both => done,
        }
    };
    if !done {
        caller.set_zero_linger().ok();
        target.set_zero_linger().ok();
    }
}

async fn pump(
    mut from: impl tokio::io::AsyncRead + Unpin,
    mut to: impl tokio::io::AsyncWrite + Unpin,
    mut line: watch::Receiver<Line>,
    count: &AtomicUsize,
) -> io::Result<()> {
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let read = from.read(&mut buffer).await?;
        // A dead line swallows the end of a stream like everything else.
        let delay = usable(&mut line).await;
        tokio::time::sleep(delay).await;
        usable(&mut line).await;
        let Some(piece) = buffer.get(..read).filter(|piece| !piece.is_empty()) else {
            return to.shutdown().await;
        };
        to.write_all(piece).await?;
        count.fetch_add(read, Ordering::SeqCst);
    }
}

/// Waits until the line is not dead, and says how slow it is.
async fn usable(line: &mut watch::Receiver<Line>) -> Duration {
    let usable = line.wait_for(|line| line.state != State::Dead).await;
    match usable.map(|line| line.state) {
        Ok(State::Forwarding { delay }) => delay,
        // Cut connections are ended elsewhere; without a sender the proxy is gone.
        Ok(State::Cut | State::Dead) | Err(_) => Duration::ZERO,
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;
    use crate::backend::Backend;
    use crate::wait::eventually;

    const SOON: Duration = Duration::from_secs(5);

    async fn proxied() -> (Backend, Proxy, TcpStream) {
        let backend = Backend::start("b").await.unwrap();
        let proxy = Proxy::start(backend.addr()).await.unwrap();
        let stream = TcpStream::connect(proxy.addr()).await.unwrap();
        (backend, proxy, stream)
    }

    async fn ask(stream: &mut TcpStream) -> io::Result<String> {
        stream
            .write_all(b"GET / HTTP/1.1\r\nhost: b\r\n\r\n")
            .await?;
        answer(stream).await
    }

    async fn answer(stream: &mut TcpStream) -> io::Result<String> {
        let mut answer = vec![0; 4096];
        let read = stream.read(&mut answer).await?;
        Ok(String::from_utf8_lossy(&answer[..read]).into_owned())
    }

    #[tokio::test]
    async fn it_forwards_and_counts() {
        let (_backend, proxy, mut stream) = proxied().await;
        let answer = ask(&mut stream).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        assert_eq!(proxy.connections(), 1);
        assert_eq!(proxy.open(), 1);
        eventually(SOON, async || proxy.bytes_up() == 27).await;
        eventually(SOON, async || proxy.bytes_down() >= answer.len()).await;
        drop(stream);
        eventually(SOON, async || proxy.open() == 0).await;
    }

    #[tokio::test]
    async fn a_cut_resets_open_and_new_connections_until_it_resumes() {
        let (_backend, proxy, mut stream) = proxied().await;
        ask(&mut stream).await.unwrap();
        proxy.cut();
        let error = answer(&mut stream).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        // The kernel completes the handshake; the reset follows.
        if let Ok(mut stream) = TcpStream::connect(proxy.addr()).await {
            assert!(ask(&mut stream).await.is_err());
        }
        proxy.resume();
        let mut stream = TcpStream::connect(proxy.addr()).await.unwrap();
        assert!(ask(&mut stream).await.unwrap().contains("200"));
    }

    #[tokio::test]
    async fn a_reset_of_the_open_ones_spares_the_new_ones() {
        let (_backend, proxy, mut stream) = proxied().await;
        ask(&mut stream).await.unwrap();
        proxy.reset_open();
        assert!(answer(&mut stream).await.is_err());
        let mut stream = TcpStream::connect(proxy.addr()).await.unwrap();
        assert!(ask(&mut stream).await.unwrap().contains("200"));
    }

    #[tokio::test]
    async fn a_black_hole_answers_nothing_and_gives_back_what_it_took() {
        let (backend, proxy, mut stream) = proxied().await;
        ask(&mut stream).await.unwrap();
        proxy.black_hole();
        let silent = tokio::time::timeout(Duration::from_millis(200), ask(&mut stream)).await;
        assert!(silent.is_err(), "a black hole answered: {silent:?}");
        let mut second = TcpStream::connect(proxy.addr()).await.unwrap();
        let silent = tokio::time::timeout(Duration::from_millis(200), ask(&mut second)).await;
        assert!(silent.is_err(), "a black hole answered: {silent:?}");
        assert_eq!(backend.requests(), 1);
        proxy.resume();
        assert!(answer(&mut stream).await.unwrap().contains("200"));
        assert!(answer(&mut second).await.unwrap().contains("200"));
    }

    #[tokio::test]
    async fn a_delay_holds_back_request_and_answer() {
        let (_backend, proxy, mut stream) = proxied().await;
        ask(&mut stream).await.unwrap();
        proxy.delay(Duration::from_millis(60));
        let start = Instant::now();
        ask(&mut stream).await.unwrap();
        assert!(start.elapsed() >= Duration::from_millis(120));
    }

    #[tokio::test]
    async fn a_target_that_is_not_there_resets_the_caller() {
        let nobody = (Ipv4Addr::LOCALHOST, crate::free_port()).into();
        let proxy = Proxy::start(nobody).await.unwrap();
        let mut stream = TcpStream::connect(proxy.addr()).await.unwrap();
        assert!(answer(&mut stream).await.is_err());
    }
}
