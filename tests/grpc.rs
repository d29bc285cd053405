//! A channel as the transport of a client that tonic has generated.
//!
//! The service is gRPC's own health service, client and server as `tonic-health` brings them.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use hyper::server::conn::http2;
use hyper::service::Service as _;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::service::TowerToHyperService;
use lictor_tower::Channel;
use lictor_tower::channel::{Builder, Policy, Protocol};
use lictor_tower::endpoint::{Endpoint, EndpointSet, Target};
use lictor_tower::retry::RetryPolicy;
use lictor_tower::source::{self, Feed, FeedSource};
use support::eventually;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_stream::StreamExt;
use tonic::Code;
use tonic_health::ServingStatus;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;
use tonic_health::pb::health_server::HealthServer;
use tonic_health::server::{HealthReporter, HealthService};

/// A gRPC server, which counts its calls. Dropping it is a crash.
struct Server {
    addr: SocketAddr,
    calls: Arc<AtomicU32>,
    reporter: HealthReporter,
    stop: watch::Sender<bool>,
    tasks: JoinSet<()>,
}

impl Server {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let reporter = HealthReporter::new();
        reporter
            .set_service_status("", ServingStatus::Serving)
            .await;
        let health = HealthServer::new(HealthService::from_health_reporter(reporter.clone()));
        let calls = Arc::new(AtomicU32::new(0));
        let (stop, stopped) = watch::channel(false);
        let mut tasks = JoinSet::new();
        tasks.spawn(accept(listener, health, Arc::clone(&calls), stopped));
        Self {
            addr,
            calls,
            reporter,
            stop,
            tasks,
        }
    }

    fn calls(&self) -> u32 {
        self.calls.load(Ordering::SeqCst)
    }

    fn endpoint(&self) -> Endpoint {
        Endpoint::new(Target::try_from(self.addr).unwrap())
    }

    /// No new connection, a GOAWAY on each that is open, and what is under way finishes.
    async fn stop(mut self) {
        self.stop.send_replace(true);
        self.tasks.join_next().await;
    }

    /// As `kill -9` would: all sockets close at once.
    async fn kill(&mut self) {
        self.tasks.shutdown().await;
    }
}

async fn accept(
    listener: TcpListener,
    health: HealthServer<HealthService>,
    calls: Arc<AtomicU32>,
    mut stopped: watch::Receiver<bool>,
) {
    let mut connections = JoinSet::new();
    loop {
        let (stream, _) = tokio::select! {
            accepted = listener.accept() => accepted.unwrap(),
            _ = stopped.changed() => break,
        };
        let (health, calls) = (TowerToHyperService::new(health.clone()), Arc::clone(&calls));
        let mut stopped = stopped.clone();
        let answer = hyper::service::service_fn(move |request| {
            calls.fetch_add(1, Ordering::SeqCst);
            health.call(request)
        });
        connections.spawn(async move {
            let connection = http2::Builder::new(TokioExecutor::new())
                .serve_connection(TokioIo::new(stream), answer);
            let mut connection = std::pin::pin!(connection);
            tokio::select! {
                _ = connection.as_mut() => return,
                _ = stopped.changed() => connection.as_mut().graceful_shutdown(),
            }
            connection.await.ok();
        });
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

async fn servers(number: usize) -> Vec<Server> {
    let mut all = Vec::new();
    for _ in 0..number {
        all.push(Server::start().await);
    }
    all
}

fn channel(servers: &[Server], policy: Policy) -> (Feed, Channel) {
    let (feed, builder) = builder(servers);
    (feed, builder.policy(policy).build().unwrap())
}

fn builder(servers: &[Server]) -> (Feed, Builder<FeedSource>) {
    let (feed, source) = source::feed();
    feed.set(servers.iter().map(Server::endpoint).collect());
    let builder = Channel::from_source(source).protocol(Protocol::Http2);
    (feed, builder)
}

/// A channel that repeats calls: gRPC's method is always POST, so the caller has to say so.
fn repeating(servers: &[Server]) -> (Feed, Channel) {
    let (feed, builder) = builder(servers);
    let policy = RetryPolicy::new().methods([http::Method::POST]);
    (feed, builder.retry(policy).build().unwrap())
}

/// One unary call.
async fn check(health: &HealthClient<Channel>) -> Result<(), tonic::Status> {
    let answer = health.clone().check(HealthCheckRequest::default()).await?;
    assert_eq!(answer.get_ref().status, ServingStatus::Serving as i32);
    Ok(())
}

/// So many calls, sixteen at a time; what failed.
async fn load(health: &HealthClient<Channel>, calls: u32) -> Vec<tonic::Status> {
    let mut workers = JoinSet::new();
    for _ in 0..16 {
        let health = health.clone();
        workers.spawn(async move {
            let mut failed = Vec::new();
            for _ in 0..calls / 16 {
                failed.extend(check(&health).await.err());
            }
            failed
        });
    }
    workers.join_all().await.into_iter().flatten().collect()
}

/// Ten servers over HTTP/2, an even distribution, one killed, and no unary call fails.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g19_calls_are_spread_evenly_and_none_fails_when_one_server_is_killed() {
    let mut all = servers(10).await;
    // By the requests in flight: latencies on one busy machine are not those of ten.
    let (_feed, channel) = channel(&all, Policy::PendingRequests);
    let health = HealthClient::new(channel.clone());
    assert!(load(&health, 4_000).await.is_empty());
    // Chi-squared with nine degrees of freedom is above 27.9 in one of a thousand runs of fair dice;
    // two choices spread better than dice.
    let counts: Vec<u32> = all.iter().map(Server::calls).collect();
    let squared: f64 = counts
        .iter()
        .map(|count| (f64::from(*count) - 400.0).powi(2) / 400.0)
        .sum();
    assert_eq!(counts.iter().sum::<u32>(), 4_000);
    assert!(squared < 27.9, "{squared} of {counts:?}");

    // Killed between two calls. One that crosses with the end of its connection may have arrived, so
    // that nobody may repeat it unasked; no other may be lost.
    all[0].kill().await;
    let dead = all[0].endpoint();
    let mut crossed = 0;
    eventually(Duration::from_secs(20), async || {
        crossed += u32::from(check(&health).await.is_err());
        let told = channel.endpoints();
        let dead = told.iter().find(|one| one.target == *dead.target());
        dead.unwrap().is_avoided
    })
    .await;
    assert!(crossed <= 1, "{crossed} calls are lost");
    let failed = load(&health, 4_000).await;
    assert!(failed.is_empty(), "{failed:?}");
    assert!(channel.endpoints().iter().all(|one| one.in_flight == 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_stops_under_load_costs_no_call() {
    let mut all = servers(4).await;
    let (_feed, channel) = channel(&all, Policy::PeakEwma);
    let health = HealthClient::new(channel);
    let loading = load(&health, 4_000);
    let stopping = async {
        eventually(Duration::from_secs(20), async || all[0].calls() > 100).await;
        all.remove(0).stop().await;
    };
    let (failed, ()) = tokio::join!(loading, stopping);
    // A call above the last one that the server's GOAWAY names goes to another, with its body.
    assert!(failed.is_empty(), "{failed:?}");
    assert!(load(&health, 400).await.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_killed_under_load_costs_the_calls_in_flight_on_it_and_no_more() {
    let mut all = servers(4).await;
    let (_feed, channel) = channel(&all, Policy::PeakEwma);
    let health = HealthClient::new(channel);
    let loading = load(&health, 4_000);
    let killing = async {
        eventually(Duration::from_secs(20), async || all[0].calls() > 100).await;
        all[0].kill().await;
    };
    let (failed, ()) = tokio::join!(loading, killing);
    // Sixteen are under way at most.
    assert!(failed.len() <= 16, "{failed:?}");
    for status in &failed {
        let cause = std::error::Error::source(status).unwrap();
        let cause: &lictor_tower::Error = cause.downcast_ref().unwrap();
        assert!(cause.was_sent(), "{status:?}");
    }
    assert!(load(&health, 400).await.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_killed_under_load_costs_no_call_where_calls_may_be_repeated() {
    let mut all = servers(4).await;
    let (_feed, channel) = repeating(&all);
    let health = HealthClient::new(channel.clone());
    let loading = load(&health, 4_000);
    let killing = async {
        eventually(Duration::from_secs(20), async || all[0].calls() > 100).await;
        all[0].kill().await;
    };
    let (failed, ()) = tokio::join!(loading, killing);
    assert!(failed.is_empty(), "{failed:?}");
    assert!(load(&health, 400).await.is_empty());
    assert!(channel.endpoints().iter().all(|one| one.in_flight == 0));
}

#[tokio::test]
async fn a_stream_counts_as_load_until_it_ends() {
    let all = servers(1).await;
    let (_feed, channel) = channel(&all, Policy::PeakEwma);
    let mut health = HealthClient::new(channel.clone());
    let answer = health.watch(HealthCheckRequest::default()).await.unwrap();
    let mut changes = answer.into_inner();
    let first = changes.next().await.unwrap().unwrap();
    assert_eq!(first.status, ServingStatus::Serving as i32);
    assert_eq!(channel.endpoints()[0].in_flight, 1);
    all[0]
        .reporter
        .set_service_status("", ServingStatus::NotServing)
        .await;
    let second = changes.next().await.unwrap().unwrap();
    assert_eq!(second.status, ServingStatus::NotServing as i32);
    drop(changes);
    assert_eq!(channel.endpoints()[0].in_flight, 0);
}

#[tokio::test]
async fn what_goes_wrong_is_told_by_the_codes_of_grpc() {
    let all = servers(1).await;
    let (feed, channel) = channel(&all, Policy::PeakEwma);
    let mut health = HealthClient::new(channel);
    let request = HealthCheckRequest {
        service: "unknown".to_owned(),
    };
    let status = health.check(request).await.unwrap_err();
    assert_eq!(status.code(), Code::NotFound);

    feed.set(EndpointSet::empty());
    eventually(Duration::from_secs(20), async || {
        let status = health.check(HealthCheckRequest::default()).await;
        status.is_err_and(|status| format!("{status:?}").contains("NoEndpoints"))
    })
    .await;
}
