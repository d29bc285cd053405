//! Several sources as one, under load: the HTTP port of an agent goes and comes back, and no
//! request and no connection is lost.
//!
//! A case runs on the embedded agent and on a real Consul.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use ::http::{Request, StatusCode};
use bytes::Bytes;
use futures_core::Stream;
use http_body_util::{BodyExt, Empty};
use lictor::embedded::Fault;
use lictor::{Client, watch};
use lictor_tower::channel::Policy;
use lictor_tower::endpoint::EndpointSet;
use lictor_tower::source::{self, Fallback, HealthSource, SrvSource};
use lictor_tower::{Channel, ErrorKind};
use serde_json::json;
use support::backend::Backend;
use support::proxy::Proxy;
use support::{eventually, eventually_some, http};
use tokio::task::JoinSet;
use tokio::time::Instant;

const PATIENCE: Duration = Duration::from_secs(60);

/// An agent of either kind.
struct Lab {
    http_url: String,
    dns_addr: SocketAddr,
}

mod embedded {
    use super::*;

    async fn on_embedded(case: impl AsyncFnOnce(&Lab)) {
        let agent = lictor::embedded::Agent::start().await.unwrap();
        let lab = Lab {
            http_url: agent.http_url(),
            dns_addr: agent.dns_addr(),
        };
        case(&lab).await;
        agent.stop().await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn g18_a_cut_http_port_costs_no_request_and_no_connection() {
        on_embedded(cut_and_mend).await;
    }

    #[tokio::test]
    async fn services_that_are_merged_are_called_as_one() {
        on_embedded(merge).await;
    }

    #[tokio::test]
    async fn g7_who_is_told_to_be_gone_is_called_no_more_and_whoever_comes_back_is() {
        on_embedded(empty_and_fill).await;
    }

    #[tokio::test]
    async fn nonsense_in_the_catalog_is_nobody_and_keeps_nobody_from_being_called() {
        on_embedded(nonsense).await;
    }

    /// G7: an answer that is none changes nothing.
    #[tokio::test]
    async fn g7_whatever_goes_wrong_with_an_answer_the_set_is_kept() {
        let agent = lictor::embedded::Agent::start().await.unwrap();
        let lab = Lab {
            http_url: agent.http_url(),
            dns_addr: agent.dns_addr(),
        };
        let _backend = registered(&lab, "g7", "g7").await;
        let client = Client::builder().address(agent.http_url());
        let client = client.build().unwrap();
        let watch = client.health().service("g7").watch().unwrap();
        let channel = Channel::from_source(health(&client, "g7"));
        let channel = channel.build().unwrap();
        channel.wait_ready().await.unwrap();
        for (number, fault) in [
            Fault::answer(StatusCode::INTERNAL_SERVER_ERROR, "No cluster leader"),
            Fault::answer(StatusCode::FORBIDDEN, "Permission denied"),
            Fault::answer(StatusCode::TOO_MANY_REQUESTS, "Your IP is issuing too many"),
            Fault::answer(StatusCode::NOT_FOUND, "no such page"),
            Fault::answer(StatusCode::OK, "[]]"),
            Fault::answer(StatusCode::OK, "<html>"),
            Fault::disconnect(),
            Fault::truncate(),
            Fault::garble(),
        ]
        .into_iter()
        .enumerate()
        {
            agent.inject(fault.clone().under("/v1/health/service/g7"));
            // A change ends the query that waits, and the next one meets the fault: when it
            // arrives, or when the next change has it answered.
            let other = Backend::start(&format!("other-{number}")).await.unwrap();
            let mut change = 0;
            eventually(PATIENCE, async || {
                change += 1;
                let definition = json!({
                    "Name": "g7",
                    "ID": other.name(),
                    "Tags": [change.to_string()],
                    "Address": "127.0.0.1",
                    "Port": other.addr().port(),
                });
                put(&lab, "/v1/agent/service/register", definition.to_string()).await;
                matches!(watch.status(), watch::Status::Stale(_))
            })
            .await;
            for _ in 0..20 {
                call(&channel).await.unwrap();
            }
            deregister(&lab, other.name()).await;
            assert!(!channel.endpoints().is_empty(), "{fault:?}");
            agent.clear_faults();
            eventually(PATIENCE, async || watch.status().is_live()).await;
            eventually(PATIENCE, async || channel.endpoints().len() == 1).await;
        }
        agent.stop().await;
    }
}

mod consul {
    use super::*;
    use support::consul::Agent;

    async fn on_consul(case: impl AsyncFnOnce(&Lab)) {
        let agent = Agent::shared().await;
        let lab = Lab {
            http_url: agent.http_url(),
            dns_addr: agent.dns_addr(),
        };
        case(&lab).await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn g18_a_cut_http_port_costs_no_request_and_no_connection() {
        on_consul(cut_and_mend).await;
    }

    #[tokio::test]
    async fn services_that_are_merged_are_called_as_one() {
        on_consul(merge).await;
    }

    #[tokio::test]
    async fn g7_who_is_told_to_be_gone_is_called_no_more_and_whoever_comes_back_is() {
        on_consul(empty_and_fill).await;
    }

    #[tokio::test]
    async fn nonsense_in_the_catalog_is_nobody_and_keeps_nobody_from_being_called() {
        on_consul(nonsense).await;
    }
}

async fn register(lab: &Lab, service: &str, backend: &Backend) {
    let definition = json!({
        "Name": service,
        "ID": backend.name(),
        "Address": "127.0.0.1",
        "Port": backend.addr().port(),
    });
    put(lab, "/v1/agent/service/register", definition.to_string()).await;
}

async fn put(lab: &Lab, path: &str, body: String) {
    let url = format!("{}{path}", lab.http_url);
    let answer = http::request("PUT", &url, &[], body).await.unwrap();
    assert!(answer.is_success(), "{path}: {}", answer.text());
}

async fn deregister(lab: &Lab, id: &str) {
    let path = format!("/v1/agent/service/deregister/{id}");
    put(lab, &path, String::new()).await;
}

async fn registered(lab: &Lab, service: &str, name: &str) -> Backend {
    let backend = Backend::start(name).await.unwrap();
    register(lab, service, &backend).await;
    backend
}

fn health(client: &Client, service: &str) -> HealthSource {
    HealthSource::new(client.health().service(service).watch().unwrap())
}

/// A fall-back that tells from outside which source is in use.
struct Seen {
    source: Fallback,
    /// One more than the number of the source in use, 0 before there is one.
    in_use: Arc<AtomicUsize>,
}

impl Stream for Seen {
    type Item = EndpointSet;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<EndpointSet>> {
        let told = Pin::new(&mut self.source).poll_next(cx);
        let in_use = self.source.in_use().map_or(0, |in_use| in_use + 1);
        self.in_use.store(in_use, Ordering::SeqCst);
        told
    }
}

/// The backend that answers one request.
async fn call(channel: &Channel) -> Result<String, String> {
    let request = Request::get("/").body(Empty::<Bytes>::new()).unwrap();
    let response = channel.request(request).await;
    let response = response.map_err(|why| format!("{why:?}"))?;
    let body = response.into_body().collect().await;
    let body = body.map_err(|why| format!("{why:?}"))?.to_bytes();
    Ok(String::from_utf8(body.to_vec()).unwrap())
}

const CALLERS: usize = 8;

/// Callers that call one after the other, until they are stopped.
struct Load {
    stop: Arc<AtomicBool>,
    calls: Arc<AtomicUsize>,
    callers: JoinSet<Vec<String>>,
}

impl Load {
    fn start(channel: &Channel) -> Self {
        let (stop, calls) = (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default());
        let mut callers = JoinSet::new();
        for _ in 0..CALLERS {
            let (channel, stop, calls) = (channel.clone(), Arc::clone(&stop), Arc::clone(&calls));
            callers.spawn(async move {
                let mut failed = Vec::new();
                while !stop.load(Ordering::SeqCst) {
                    failed.extend(call(&channel).await.err());
                    calls.fetch_add(1, Ordering::SeqCst);
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
                failed
            });
        }
        Self {
            stop,
            calls,
            callers,
        }
    }

    /// Waits until something is so, and for some requests more.
    async fn until(&self, so: impl Fn() -> bool) {
        eventually(PATIENCE, async || so()).await;
        let more = self.calls.load(Ordering::SeqCst) + 200;
        eventually(PATIENCE, async || self.calls.load(Ordering::SeqCst) > more).await;
    }

    /// How many requests there were, and what failed.
    async fn stop(self) -> (usize, Vec<String>) {
        self.stop.store(true, Ordering::SeqCst);
        let failed = self.callers.join_all().await;
        (self.calls.load(Ordering::SeqCst), failed.concat())
    }
}

/// Opens so many connections to each that callers never need another one.
async fn fill_pools(channel: &Channel, backends: &[Backend]) {
    for backend in backends {
        backend.delay(Duration::from_millis(300));
    }
    let enough = || backends.iter().all(|b| b.connections() >= CALLERS);
    while !enough() {
        let mut calls = JoinSet::new();
        for _ in 0..backends.len() * CALLERS * 2 {
            let channel = channel.clone();
            calls.spawn(async move { call(&channel).await.unwrap() });
        }
        calls.join_all().await;
    }
    for backend in backends {
        backend.delay(Duration::ZERO);
    }
}

fn connections(backends: &[Backend]) -> Vec<usize> {
    backends.iter().map(Backend::connections).collect()
}

/// G18: nothing but the HTTP port goes; SRV takes over, and back.
async fn cut_and_mend(lab: &Lab) {
    let mut backends = Vec::new();
    for name in ["a", "b", "c", "d"] {
        backends.push(registered(lab, "g18", name).await);
    }
    let proxy = Proxy::start(lab.http_url.trim_start_matches("http://").parse().unwrap());
    let proxy = proxy.await.unwrap();
    let client = Client::builder().address(proxy.url()).build().unwrap();
    let by_dns = SrvSource::builder("g18.service.consul")
        .server(lab.dns_addr)
        .min_refresh(Duration::from_millis(100))
        .build()
        .unwrap();
    let in_use = Arc::new(AtomicUsize::new(0));
    let source = source::fallback(health(&client, "g18"))
        .then(by_dns)
        .after(Duration::from_secs(1))
        .back_after(Duration::from_secs(1));
    let seen = Seen {
        source,
        in_use: Arc::clone(&in_use),
    };
    let channel = Channel::from_source(seen).build().unwrap();
    channel.wait_ready().await.unwrap();
    assert_eq!(channel.endpoints().len(), backends.len());
    let uses = |number: usize| in_use.load(Ordering::SeqCst) == number + 1;
    assert!(uses(0));

    fill_pools(&channel, &backends).await;
    let before = connections(&backends);
    let load = Load::start(&channel);
    load.until(|| true).await;

    proxy.cut();
    load.until(|| uses(1)).await;
    // What changes meanwhile is seen by DNS.
    let fifth = registered(lab, "g18", "e").await;
    load.until(|| fifth.requests() > 0).await;

    proxy.resume();
    load.until(|| uses(0)).await;
    let sixth = registered(lab, "g18", "f").await;
    load.until(|| sixth.requests() > 0).await;

    let (calls, failed) = load.stop().await;
    assert!(failed.is_empty(), "{} of {calls}: {failed:?}", failed.len());
    assert_eq!(connections(&backends), before);
    println!("{calls} requests, 0 failed, 0 new connections to {before:?}");
}

async fn merge(lab: &Lab) {
    let first = registered(lab, "merged-1", "first").await;
    let second = registered(lab, "merged-2", "second").await;
    // One instance with two names.
    let both = Backend::start("both").await.unwrap();
    register(lab, "merged-1", &both).await;
    let definition = json!({
        "Name": "merged-2",
        "ID": "both-again",
        "Address": "127.0.0.1",
        "Port": both.addr().port(),
    });
    put(lab, "/v1/agent/service/register", definition.to_string()).await;
    let client = Client::builder().address(lab.http_url.clone());
    let client = client.build().unwrap();
    let sources = ["merged-1", "merged-2"].map(|service| health(&client, service));
    let channel = Channel::from_source(source::merged(sources).wait(PATIENCE));
    // Which of them is the fastest is not what is asked here.
    let channel = channel.policy(Policy::PendingRequests).build().unwrap();
    channel.wait_ready().await.unwrap();
    assert_eq!(channel.endpoints().len(), 3);
    for _ in 0..60 {
        call(&channel).await.unwrap();
    }
    for backend in [&first, &second, &both] {
        assert!(backend.requests() > 0, "{}", backend.name());
    }
    // All of one service go; the instance that the other has, too, stays.
    for id in ["first", "both"] {
        deregister(lab, id).await;
    }
    eventually(PATIENCE, async || channel.endpoints().len() == 2).await;
    let before = (first.requests(), both.requests());
    for _ in 0..40 {
        call(&channel).await.unwrap();
    }
    assert_eq!(first.requests(), before.0);
    assert!(both.requests() > before.1);
}

/// The ways in which Consul says that nobody is there, and the way back.
#[derive(Clone, Copy, Debug)]
enum Gone {
    Deregistered,
    Critical,
    Maintenance,
}

impl Gone {
    async fn begin(self, lab: &Lab, id: &str) {
        match self {
            Self::Deregistered => deregister(lab, id).await,
            Self::Critical => set_state(lab, id, "critical").await,
            Self::Maintenance => {
                let path = format!("/v1/agent/service/maintenance/{id}?enable=true");
                put(lab, &path, String::new()).await;
            }
        }
    }

    async fn end(self, lab: &Lab, service: &str, backend: &Backend, id: &str) {
        match self {
            Self::Deregistered => register_checked(lab, service, backend, id).await,
            Self::Critical => set_state(lab, id, "passing").await,
            Self::Maintenance => {
                let path = format!("/v1/agent/service/maintenance/{id}?enable=false");
                put(lab, &path, String::new()).await;
            }
        }
    }
}

async fn set_state(lab: &Lab, id: &str, state: &str) {
    let path = format!("/v1/agent/check/update/{id}-check");
    put(lab, &path, json!({ "Status": state }).to_string()).await;
}

async fn register_checked(lab: &Lab, service: &str, backend: &Backend, id: &str) {
    let definition = json!({
        "Name": service,
        "ID": id,
        "Address": "127.0.0.1",
        "Port": backend.addr().port(),
        "Check": { "CheckID": format!("{id}-check"), "TTL": "1h", "Status": "passing" },
    });
    put(lab, "/v1/agent/service/register", definition.to_string()).await;
}

/// G7: nobody is told at once over HTTP, and after the grace period by DNS.
async fn empty_and_fill(lab: &Lab) {
    const GRACE: Duration = Duration::from_millis(700);
    let service = "g7-empty";
    let backend = Backend::start(service).await.unwrap();
    register_checked(lab, service, &backend, service).await;
    let client = Client::builder().address(lab.http_url.clone());
    let client = client.build().unwrap();
    let by_dns = SrvSource::builder(format!("{service}.service.consul"))
        .server(lab.dns_addr)
        .min_refresh(Duration::from_millis(50))
        .grace(GRACE)
        .build()
        .unwrap();
    let by_http = Channel::from_source(health(&client, service)).build();
    let by_dns = Channel::from_source(by_dns).build();
    for (channel, kept) in [(by_http.unwrap(), Duration::ZERO), (by_dns.unwrap(), GRACE)] {
        channel.wait_ready().await.unwrap();
        for gone in [Gone::Deregistered, Gone::Critical, Gone::Maintenance] {
            call(&channel).await.unwrap();
            let began = Instant::now();
            gone.begin(lab, service).await;
            let refused = eventually_some(PATIENCE, async || {
                let request = Request::get("/").body(Empty::<Bytes>::new()).unwrap();
                channel.request(request).await.err()
            });
            let error = refused.await;
            assert_eq!(error.kind(), ErrorKind::NoEndpoints, "{gone:?}: {error:?}");
            assert!(began.elapsed() >= kept, "{gone:?}: {:?}", began.elapsed());
            gone.end(lab, service, &backend, service).await;
            // Whoever is listed is called by the next request.
            eventually(PATIENCE, async || !channel.endpoints().is_empty()).await;
            call(&channel).await.unwrap();
        }
    }
}

/// The catalog takes what any agent, or anybody with a right to write, says of an instance.
async fn nonsense(lab: &Lab) {
    let good = Backend::start("good").await.unwrap();
    let port = good.addr().port();
    let mut nodes = vec![("good", "127.0.0.1", port, json!(1))];
    nodes.extend([
        ("no-port", "127.0.0.1", 0, json!(1)),
        ("wildcard", "0.0.0.0", port, json!(1)),
        ("wildcard-6", "::", port, json!(1_000_000)),
        ("many", "224.0.0.1", port, json!(0)),
        ("all", "255.255.255.255", port, json!(65_535)),
        ("url", "http://10.0.0.1", port, json!(1)),
        ("twice", "10.0.0.1:80", port, json!(1)),
    ]);
    for (node, address, port, weight) in nodes {
        let body = json!({
            "Node": format!("nonsense-{node}"),
            "Address": "10.0.0.250",
            "Service": {
                "Service": "nonsense",
                "Address": address,
                "Port": port,
                "Weights": { "Passing": weight, "Warning": 1 },
            },
        });
        let url = format!("{}/v1/catalog/register", lab.http_url);
        let answer = http::request("PUT", &url, &[], body.to_string()).await;
        let answer = answer.unwrap();
        // Consul itself refuses wildcards, and takes all the rest.
        let is_refused = address == "0.0.0.0" || address == "::";
        assert!(
            answer.is_success() || is_refused,
            "{node}: {}",
            answer.text()
        );
    }
    let client = Client::builder().address(lab.http_url.clone());
    let source = health(&client.build().unwrap(), "nonsense");
    let channel = Channel::from_source(source).build().unwrap();
    channel.wait_ready().await.unwrap();
    let listed = || {
        channel
            .endpoints()
            .iter()
            .map(|e| e.target.to_string())
            .collect()
    };
    let listed: Vec<String> = listed();
    assert_eq!(listed, [good.addr().to_string()]);
    for _ in 0..20 {
        call(&channel).await.unwrap();
    }
}
