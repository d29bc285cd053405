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

use ::http::Request;
use bytes::Bytes;
use futures_core::Stream;
use http_body_util::{BodyExt, Empty};
use lictor::Client;
use lictor_tower::Channel;
use lictor_tower::endpoint::EndpointSet;
use lictor_tower::source::{self, Fallback, HealthSource, SrvSource};
use serde_json::json;
use support::backend::Backend;
use support::proxy::Proxy;
use support::{eventually, http};
use tokio::task::JoinSet;

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
}

async fn register(lab: &Lab, service: &str, backend: &Backend) {
    let definition = json!({
        "Name": service,
        "ID": backend.name(),
        "Address": "127.0.0.1",
        "Port": backend.addr().port(),
    });
    let url = format!("{}/v1/agent/service/register", lab.http_url);
    let answer = http::request("PUT", &url, &[], definition.to_string()).await;
    assert!(answer.unwrap().is_success());
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
    let url = format!("{}/v1/agent/service/register", lab.http_url);
    let answer = http::request("PUT", &url, &[], definition.to_string()).await;
    assert!(answer.unwrap().is_success());
    let client = Client::builder().address(lab.http_url.clone());
    let client = client.build().unwrap();
    let sources = ["merged-1", "merged-2"].map(|service| health(&client, service));
    let channel = Channel::from_source(source::merged(sources).wait(PATIENCE));
    let channel = channel.build().unwrap();
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
        let url = format!("{}/v1/agent/service/deregister/{id}", lab.http_url);
        let answer = http::request("PUT", &url, &[], String::new()).await;
        assert!(answer.unwrap().is_success());
    }
    eventually(PATIENCE, async || channel.endpoints().len() == 2).await;
    let before = (first.requests(), both.requests());
    for _ in 0..40 {
        call(&channel).await.unwrap();
    }
    assert_eq!(first.requests(), before.0);
    assert!(both.requests() > before.1);
}
