//! Sources that change all the time, or everything at once, under load.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use ::http::{Request, Response};
use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Full};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use lictor_tower::channel::{EndpointStatus, Policy};
use lictor_tower::endpoint::{Endpoint, EndpointSet, Host, Target};
use lictor_tower::source::{self, Feed};
use lictor_tower::{Channel, Error, ErrorKind, layer};
use support::backend::Backend;
use support::{eventually, length};
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use tower::{Service, ServiceExt};

const PATIENCE: Duration = Duration::from_secs(60);
const FLAP: Duration = Duration::from_millis(10);
const CALLERS: usize = 16;

fn tasks() -> usize {
    Handle::current().metrics().num_alive_tasks()
}

fn in_flight(endpoints: &[EndpointStatus]) -> u32 {
    endpoints.iter().map(|endpoint| endpoint.in_flight).sum()
}

fn endpoint(addr: SocketAddr) -> Endpoint {
    Endpoint::new(Target::try_from(addr).unwrap())
}

/// What the source says in turn: all, one half, the other, nobody, all with other weights.
fn flaps(all: &[SocketAddr]) -> [EndpointSet; 5] {
    let (one, other) = all.split_at(all.len() / 2);
    let set = |addrs: &[SocketAddr]| addrs.iter().copied().map(endpoint).collect();
    let weighed = all.iter().zip(1..);
    let weighed = weighed.map(|(addr, weight)| endpoint(*addr).with_weight(weight));
    [
        set(all),
        set(one),
        set(other),
        EndpointSet::empty(),
        weighed.collect(),
    ]
}

/// Changes the set each 10 ms; how often it did.
async fn flap(feed: &Feed, sets: &[EndpointSet], time: Duration) -> u32 {
    let end = Instant::now() + time;
    let mut told = 0;
    for set in sets.iter().cycle() {
        if Instant::now() >= end {
            break;
        }
        feed.set(set.clone());
        told += 1;
        sleep(FLAP).await;
    }
    told
}

/// How many requests were answered, and how many came while nobody was there.
#[derive(Debug, Default)]
struct Counts {
    answered: u32,
    nobody: u32,
}

impl Counts {
    fn add(&mut self, answer: Result<(), Error>) {
        match answer {
            Ok(()) => self.answered += 1,
            Err(error) if error.kind() == ErrorKind::NoEndpoints => self.nobody += 1,
            Err(error) => panic!("{error:?}"),
        }
    }
}

/// Callers that call one after the other, until told to stop.
fn callers<F, Called>(stop: &Arc<AtomicBool>, call: F) -> JoinSet<Counts>
where
    F: Fn() -> Called + Clone + Send + 'static,
    Called: Future<Output = Result<(), Error>> + Send,
{
    let mut callers = JoinSet::new();
    for _ in 0..CALLERS {
        let (stop, call) = (Arc::clone(stop), call.clone());
        callers.spawn(async move {
            let mut counts = Counts::default();
            while !stop.load(Ordering::SeqCst) {
                counts.add(call().await);
                sleep(Duration::from_millis(1)).await;
            }
            counts
        });
    }
    callers
}

/// Stops them all and adds up what they have counted.
async fn stopped(stop: &AtomicBool, callers: JoinSet<Counts>) -> Counts {
    stop.store(true, Ordering::SeqCst);
    let counts = callers.join_all().await.into_iter();
    counts.fold(Counts::default(), |all, one| Counts {
        answered: all.answered + one.answered,
        nobody: all.nobody + one.nobody,
    })
}

async fn get(channel: Channel) -> Result<(), Error> {
    let request = Request::get("/").body(Empty::<Bytes>::new()).unwrap();
    let response = channel.request(request).await?;
    response.into_body().collect().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_that_flaps_each_10_ms_loses_no_request_and_leaves_nothing_behind() {
    let time = length(Duration::from_secs(3), Duration::from_secs(60));
    let mut backends = Vec::new();
    for number in 0..10 {
        backends.push(Backend::start(&number.to_string()).await.unwrap());
    }
    let addrs: Vec<_> = backends.iter().map(Backend::addr).collect();
    let before = tasks();
    let (feed, source) = source::feed();
    let channel = Channel::from_source(source).build().unwrap();
    let stop = Arc::<AtomicBool>::default();
    let calling = channel.clone();
    let callers = callers(&stop, move || get(calling.clone()));
    let sets = flaps(&addrs);
    let flaps = flap(&feed, &sets, time).await;
    let counts = stopped(&stop, callers).await;
    println!("{flaps} changes, {counts:?}");
    assert!(counts.answered > 100 && counts.nobody > 0, "{counts:?}");

    // What flapped works on, and whoever left has no request any more.
    feed.set(sets[1].clone());
    eventually(PATIENCE, async || channel.endpoints().len() == 5).await;
    assert_eq!(in_flight(&channel.endpoints()), 0);
    for _ in 0..50 {
        get(channel.clone()).await.unwrap();
    }
    assert!(backends.iter().all(|backend| backend.in_flight() == 0));
    // A task of the backend for each connection, too.
    drop(channel);
    eventually(PATIENCE, async || tasks() <= before).await;
}

/// A service of which every clone is counted.
#[derive(Debug)]
struct Stub(Arc<AtomicU32>);

impl Stub {
    fn new(alive: &Arc<AtomicU32>) -> Self {
        alive.fetch_add(1, Ordering::SeqCst);
        Self(Arc::clone(alive))
    }
}

impl Clone for Stub {
    fn clone(&self) -> Self {
        Self::new(&self.0)
    }
}

impl Drop for Stub {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Service<u32> for Stub {
    type Response = ();
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<(), Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, takes: u32) -> Self::Future {
        // The call goes on for longer than its endpoint stays.
        let kept = self.clone();
        Box::pin(async move {
            sleep(Duration::from_millis(takes.into())).await;
            drop(kept);
            Ok(())
        })
    }
}

#[tokio::test(start_paused = true)]
async fn a_minute_of_flapping_keeps_no_service_no_task_and_no_request() {
    let before = tasks();
    let alive = Arc::new(AtomicU32::new(0));
    let (feed, source) = source::feed();
    let of_all = Arc::clone(&alive);
    let balanced = layer::Builder::new(source).build(move |_: &Target| Stub::new(&of_all));
    let balanced = balanced.unwrap();
    let stop = Arc::<AtomicBool>::default();
    let (calling, turn) = (balanced.clone(), Arc::new(AtomicU32::new(0)));
    let callers = callers(&stop, move || {
        let takes = turn.fetch_add(7, Ordering::SeqCst) % 40;
        let call = calling.clone().oneshot(takes);
        // Every third is given up half-way.
        let limit = Duration::from_millis(if takes % 3 == 0 { 5 } else { 60_000 });
        async move {
            let answer = tokio::time::timeout(limit, call).await;
            answer.unwrap_or(Ok(()))
        }
    });
    let addrs: Vec<_> = (1..=10)
        .map(|n| (Ipv4Addr::new(10, 0, 0, n), 80).into())
        .collect();
    let sets = flaps(&addrs);
    let flaps = flap(&feed, &sets, Duration::from_secs(60)).await;
    // 16 callers with a service each, and the clones of it that a call has.
    let most = alive.load(Ordering::SeqCst);
    assert!(most <= 10 + 16 * 3, "{most} services after {flaps} changes");
    let counts = stopped(&stop, callers).await;
    assert!(counts.answered > 1_000 && counts.nobody > 0, "{counts:?}");
    assert!(flaps >= 5_000, "{flaps}");

    feed.set(sets[1].clone());
    eventually(PATIENCE, async || balanced.endpoints().len() == 5).await;
    assert_eq!(in_flight(&balanced.endpoints()), 0);
    eventually(PATIENCE, async || alive.load(Ordering::SeqCst) == 5).await;
    drop(balanced);
    eventually(PATIENCE, async || tasks() <= before).await;
    assert_eq!(alive.load(Ordering::SeqCst), 0);
}

/// A server at all addresses of the loopback network, on one port.
struct Everywhere {
    port: u16,
    /// How many connections each address has taken.
    taken: Arc<Mutex<BTreeMap<Ipv4Addr, u32>>>,
    _task: JoinSet<()>,
}

impl Everywhere {
    async fn start() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let taken = Arc::<Mutex<BTreeMap<Ipv4Addr, u32>>>::default();
        let counts = Arc::clone(&taken);
        let mut task = JoinSet::new();
        task.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let SocketAddr::V4(addr) = stream.local_addr().unwrap() else {
                    continue;
                };
                *counts.lock().unwrap().entry(*addr.ip()).or_default() += 1;
                let answer = service_fn(async |_| {
                    Ok::<_, Infallible>(Response::new(Full::new(Bytes::from_static(b"here"))))
                });
                let connection =
                    http1::Builder::new().serve_connection(TokioIo::new(stream), answer);
                connections.spawn(async move { drop(connection.await) });
            }
        });
        Self {
            port,
            taken,
            _task: task,
        }
    }

    fn taken(&self) -> BTreeMap<Ipv4Addr, u32> {
        self.taken.lock().unwrap().clone()
    }

    /// Endpoints with these numbers; those below 1,000 are preferred.
    fn set(&self, numbers: impl IntoIterator<Item = u16>, weight: u32) -> EndpointSet {
        let endpoint = |number: u16| {
            let priority = if number < PREFERRED { 0 } else { 1 };
            let endpoint = endpoint((address(number), self.port).into());
            endpoint.with_weight(weight).with_priority(priority)
        };
        numbers.into_iter().map(endpoint).collect()
    }
}

const PREFERRED: u16 = 1_000;

fn address(number: u16) -> Ipv4Addr {
    let [high, low] = number.to_be_bytes();
    Ipv4Addr::new(127, 1, high, low)
}

/// G10, all of it but the time, which the bench `churn` measures. Few of the 10,000 are called, by
/// their priority: a machine has not so many sockets.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g10_replacing_10_000_endpoints_under_load_connects_to_new_ones_only() {
    let servers = Everywhere::start().await;
    let (feed, source) = source::feed();
    let channel = Channel::from_source(source);
    let channel = channel.policy(Policy::RoundRobin).build().unwrap();
    let called = |numbers: std::ops::Range<u16>| numbers.map(|n| (address(n), 1));
    feed.set(servers.set((0..50).chain(1_000..10_950), 1));
    channel.wait_ready().await.unwrap();
    assert_eq!(channel.endpoints().len(), 10_000);
    // One caller opens one connection to each.
    let calls = async |count: u32| {
        for _ in 0..count {
            get(channel.clone()).await.unwrap();
        }
    };
    calls(200).await;
    assert_eq!(servers.taken(), called(0..50).collect());

    // All but 25 of those that are called are replaced, while they are.
    let replaced = servers.set((25..75).chain(20_000..29_950), 1);
    let is_applied = || {
        let endpoints = channel.endpoints();
        endpoints.len() == 10_000 && endpoints.iter().any(|e| *e.target.host() == host(29_949))
    };
    feed.set(replaced);
    while !is_applied() {
        calls(20).await;
    }
    calls(200).await;
    assert_eq!(servers.taken(), called(0..75).collect());

    // Another weight for everybody is no new connection for anybody.
    feed.set(servers.set((25..75).chain(20_000..29_950), 3));
    while channel
        .endpoints()
        .iter()
        .any(|endpoint| endpoint.weight != 3)
    {
        calls(20).await;
    }
    calls(200).await;
    assert_eq!(servers.taken(), called(0..75).collect());

    // And back: whoever comes back is new.
    feed.set(servers.set((0..50).chain(1_000..10_950), 1));
    while is_applied()
        || channel
            .endpoints()
            .iter()
            .any(|endpoint| endpoint.weight != 1)
    {
        calls(20).await;
    }
    calls(200).await;
    let twice = (0..25).map(|n| (address(n), 2));
    assert_eq!(servers.taken(), called(25..75).chain(twice).collect());
    assert_eq!(in_flight(&channel.endpoints()), 0);
}

fn host(number: u16) -> Host {
    Host::Ip(address(number).into())
}
