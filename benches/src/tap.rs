//! A wire tap between a client and the agent: it forwards bytes, counts queries, and notes when
//! the agent's answer came, on the clock that is the same in every process.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::{Outcome, usage};

/// A listening tap; dropping it cuts its connections.
#[derive(Debug)]
pub struct Tap {
    address: SocketAddr,
    agent: SocketAddr,
    counts: Arc<Mutex<Counts>>,
    tasks: JoinSet<()>,
}

/// What has passed.
#[derive(Debug, Clone, Copy, Default)]
pub struct Counts {
    /// Connections opened by clients.
    pub connections: u64,
    /// Queries (`GET`), whether answered or not.
    pub requests: u64,
    /// Writes (`PUT`), whether answered or not.
    pub writes: u64,
    /// Answers of which at least the first byte came.
    pub answers: u64,
    /// Requests by which locks are taken and released: for keys, transactions, new sessions.
    pub requests_of_locks: u64,
    /// When the first answer since [`Tap::arm`] began, in nanoseconds of the monotonic clock.
    pub first_answer_at: Option<u64>,
}

impl Tap {
    /// Listens on a free port of loopback and forwards to `agent`.
    ///
    /// # Errors
    /// If no port is free.
    pub async fn start(agent: SocketAddr) -> Outcome<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let counts = Arc::default();
        let mut tasks = JoinSet::new();
        tasks.spawn(accept(listener, agent, Arc::clone(&counts)));
        Ok(Self {
            address,
            agent,
            counts,
            tasks,
        })
    }

    /// Cuts all connections and refuses others, as if nobody were there.
    pub async fn close(&mut self) {
        self.tasks.shutdown().await;
    }

    /// Listens again where it did before [`Tap::close`].
    ///
    /// # Errors
    /// If somebody else has taken the port.
    pub async fn open(&mut self) -> Outcome<()> {
        let listener = TcpListener::bind(self.address).await?;
        let counts = Arc::clone(&self.counts);
        self.tasks.spawn(accept(listener, self.agent, counts));
        Ok(())
    }

    /// What clients connect to, as `http://127.0.0.1:PORT`.
    #[must_use]
    pub fn address(&self) -> String {
        format!("http://{}", self.address)
    }

    /// What has passed so far.
    #[must_use]
    pub fn counts(&self) -> Counts {
        *lock(&self.counts)
    }

    /// Forgets the last answer, so that the next one is noted.
    pub fn arm(&self) {
        lock(&self.counts).first_answer_at = None;
    }

    /// Waits until at least so many queries are blocked at the agent and nothing moves for 20 ms;
    /// returns how many are.
    ///
    /// # Errors
    /// If it is not so within a minute.
    pub async fn settled(&self, at_least: u64) -> Outcome<u64> {
        let deadline = Instant::now() + Duration::from_secs(60);
        let mut before = self.counts();
        let mut steady = 0;
        loop {
            tokio::time::sleep(Duration::from_millis(2)).await;
            let now = self.counts();
            let blocked = now.requests - now.answers;
            let still = (now.requests, now.answers) == (before.requests, before.answers);
            steady = if still && blocked >= at_least {
                steady + 1
            } else {
                0
            };
            if steady == 10 {
                return Ok(blocked);
            }
            if Instant::now() > deadline {
                return Err(format!("{blocked} queries are blocked, not {at_least}").into());
            }
            before = now;
        }
    }
}

/// How requests begin by which locks are taken and released.
const OF_LOCKS: [&[u8]; 4] = [
    b"GET /v1/kv/",
    b"PUT /v1/kv/",
    b"PUT /v1/txn",
    b"PUT /v1/session/create",
];

async fn accept(listener: TcpListener, agent: SocketAddr, counts: Arc<Mutex<Counts>>) {
    let mut connections = JoinSet::new();
    while let Ok((client, _)) = listener.accept().await {
        lock(&counts).connections += 1;
        connections.spawn(forward(client, agent, Arc::clone(&counts)));
        while connections.try_join_next().is_some() {}
    }
}

async fn forward(client: TcpStream, agent: SocketAddr, counts: Arc<Mutex<Counts>>) {
    let Ok(agent) = TcpStream::connect(agent).await else {
        return;
    };
    client.set_nodelay(true).ok();
    agent.set_nodelay(true).ok();
    let (from_client, to_client) = client.into_split();
    let (from_agent, to_agent) = agent.into_split();
    let waiting = Mutex::new(false);
    // An error in one direction is the end of both: the peers see a closed connection.
    tokio::select! {
        _ = requests(from_client, to_agent, &counts, &waiting) => {}
        _ = answers(from_agent, to_client, &counts, &waiting) => {}
    }
}

async fn requests(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    counts: &Mutex<Counts>,
    waiting: &Mutex<bool>,
) -> std::io::Result<()> {
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let piece = read(&mut from, &mut buffer).await?;
        // The heads of these benches' requests fit one segment.
        if OF_LOCKS.iter().any(|head| piece.starts_with(head)) {
            lock(counts).requests_of_locks += 1;
        }
        if piece.starts_with(b"PUT ") {
            lock(counts).writes += 1;
        }
        if piece.starts_with(b"GET ") {
            lock(counts).requests += 1;
            *lock(waiting) = true;
        }
        to.write_all(piece).await?;
    }
}

async fn answers(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    counts: &Mutex<Counts>,
    waiting: &Mutex<bool>,
) -> std::io::Result<()> {
    let mut buffer = vec![0; 128 * 1024];
    loop {
        let piece = read(&mut from, &mut buffer).await?;
        if std::mem::take(&mut *lock(waiting)) {
            let mut counts = lock(counts);
            counts.answers += 1;
            counts
                .first_answer_at
                .get_or_insert_with(usage::monotonic_nanos);
        }
        to.write_all(piece).await?;
    }
}

async fn read<'a>(from: &mut OwnedReadHalf, buffer: &'a mut [u8]) -> std::io::Result<&'a [u8]> {
    match from.read(buffer).await? {
        0 => Err(std::io::ErrorKind::UnexpectedEof.into()),
        length => Ok(buffer.get(..length).unwrap_or_default()),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Counters are whole after every statement.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
