//! A rolling deployment: six instances are replaced one by one under load, each by a `Lifecycle`, and
//! no request fails.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use lictor::Client;
use lictor::api::agent::{CheckDefinition, ServiceDefinition};
use lictor::lifecycle::{Lifecycle, Report, Shutdown, Stage};
use lictor_tower::channel::Channel;
use support::{eventually, is_long};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::sleep;

use crate::load::{Kind, Load};
use crate::stage::{SOON, tell};

const INSTANCES: usize = 6;

/// An instance in this process.
struct Served {
    addr: SocketAddr,
    shutdown: Shutdown,
    running: JoinHandle<Report>,
}

impl Served {
    /// One that is registered and ready.
    async fn start(client: &Client, service: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let addr = listener.local_addr().expect("an address");
        let definition = ServiceDefinition::new(service)
            .listener(addr)
            .check(CheckDefinition::alive_only(Duration::from_secs(15)));
        let registered = client.register(definition).not_ready().await;
        let lifecycle =
            Lifecycle::of(registered.expect("registered")).lame_duck(Duration::from_millis(100));
        let shutdown = lifecycle.shutdown();
        let ready = lifecycle.ready();
        let running = {
            let shutdown = shutdown.clone();
            let run = async move { lifecycle.run(serve(listener, shutdown)).await.0 };
            tokio::runtime::Handle::current().spawn(run)
        };
        ready.await.expect("ready");
        Self {
            addr,
            shutdown,
            running,
        }
    }

    async fn stop(self) -> Report {
        self.shutdown.begin();
        self.running.await.expect("no panic")
    }
}

/// Serves until the drain, and then until all connections are done.
async fn serve(listener: TcpListener, shutdown: Shutdown) {
    let mut connections = JoinSet::new();
    let mut drain = std::pin::pin!(shutdown.reached(Stage::Drain));
    loop {
        tokio::select! {
            () = &mut drain => break,
            accepted = listener.accept() => {
                let (stream, _) = accepted.expect("a connection");
                connections.spawn(connection(stream, shutdown.reached(Stage::Drain)));
            }
        }
    }
    drop(listener);
    connections.join_all().await;
}

async fn connection(stream: TcpStream, drain: impl Future<Output = ()>) {
    stream.set_nodelay(true).ok();
    let answer = service_fn(async |request: Request<Incoming>| {
        let body = request.into_body().collect().await?.to_bytes();
        // Something is under way when the drain begins.
        sleep(Duration::from_millis(5)).await;
        let said = Bytes::from(format!("served {}", body.len()));
        Ok::<_, hyper::Error>(Response::new(Full::new(said)))
    });
    let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), answer);
    let mut connection = std::pin::pin!(connection);
    tokio::select! {
        _ = connection.as_mut() => return,
        () = drain => connection.as_mut().graceful_shutdown(),
    }
    connection.await.ok();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn six_instances_that_are_replaced_one_by_one_lose_no_request() {
    let agent = lictor::embedded::Agent::start().await.expect("an agent");
    let client = Client::builder().address(agent.http_url());
    let client = client.build().expect("a plain address");
    let mut served = Vec::new();
    for _ in 0..INSTANCES {
        served.push(Served::start(&client, "rolling").await);
    }
    let channel = Channel::builder(client.clone()).service("rolling");
    let channel = channel.build().expect("good options");
    eventually(SOON, async || channel.endpoints().len() == INSTANCES).await;
    let load = Load::start(&channel, 200, &[Kind::Get, Kind::Post]);
    let rounds = if is_long() { 10 } else { 1 };
    let mut slowest = Duration::ZERO;
    for round in 0..rounds * INSTANCES {
        let old = served.remove(0);
        let gone = old.addr;
        served.push(Served::start(&client, "rolling").await);
        let report = old.stop().await;
        assert!(report.is_clean(), "round {round}, {gone}: {report}");
        slowest = slowest.max(report.took());
    }
    let samples = load.stop().await;
    samples.assert_none_failed();
    tell(format_args!(
        "{} replaced, {} requests, 0 failed, slowest shutdown {slowest:?}",
        rounds * INSTANCES,
        samples.len(),
    ));
    for one in served {
        one.shutdown.begin();
        one.shutdown.begin();
        drop(one.running.await);
    }
}
