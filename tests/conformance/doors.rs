//! The doors beside the channel: services by the hosts of URIs, over hyper, reqwest and raw TCP.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Uri};
use http_body_util::{BodyExt, Empty};
use hyper_util::client::legacy::Client as HyperClient;
use hyper_util::rt::TokioExecutor;
use lictor::api::agent::{CheckDefinition, ServiceDefinition};
use lictor::registration::Registration;
use lictor_tower::channel::Policy;
use lictor_tower::connector::{Connector, Others};
use lictor_tower::layer;
use lictor_tower::names::Services;
use lictor_tower::reqwest_013;
use lictor_tower::router::Router;
use lictor_tower::tcp::Dialer;
use lictor_tower::{Error, ErrorKind};
use support::backend::Backend;
use support::eventually;
use tower::{Service, ServiceExt, service_fn};

use crate::TestAgent;

on_both_agents![
    a_router_sends_each_request_where_its_host_says,
    a_router_says_what_is_wrong_with_a_uri,
    a_router_finds_a_service_again_that_it_has_forgotten,
    a_connector_finds_services_and_passes_the_rest_by,
    a_connector_goes_on_to_the_next_instance_when_one_refuses,
    a_dialer_follows_the_instances,
    requests_of_reqwest_are_spread_by_channels,
    a_request_of_reqwest_keeps_its_own_timeout,
    the_resolver_tells_reqwest_the_ports,
    a_stack_of_reqwest_clients_is_balanced,
];

const SOON: Duration = Duration::from_secs(20);

struct Instance {
    backend: Backend,
    registration: Registration,
}

async fn instance(agent: &TestAgent, service: &str, name: &str, tags: &[&str]) -> Instance {
    let backend = Backend::start(name).await.unwrap();
    let mut definition = ServiceDefinition::new(service)
        .id(format!("{service}-{name}"))
        .listener(backend.addr())
        .check(CheckDefinition::alive_only(Duration::from_secs(60)));
    for tag in tags {
        definition = definition.tag(*tag);
    }
    let registration = agent.client().register(definition).await.unwrap();
    Instance {
        backend,
        registration,
    }
}

async fn three(agent: &TestAgent, service: &str) -> Vec<Instance> {
    let mut all = Vec::new();
    for name in ["one", "two", "three"] {
        all.push(instance(agent, service, name, &[]).await);
    }
    all
}

fn get(uri: &str) -> Request<Empty<Bytes>> {
    Request::get(uri).body(Empty::new()).unwrap()
}

/// A router that spreads requests evenly: latencies on a busy machine would say who is slow.
fn even(agent: &TestAgent) -> Router {
    Router::builder(agent.client())
        .channel(|channel| channel.policy(Policy::PendingRequests))
        .build()
        .unwrap()
}

fn reqwest_builder() -> reqwest::ClientBuilder {
    // In a build with lictor's feature `tls` reqwest wants to know whose cryptography it is to use.
    // An error says that another test has told it before.
    let _ = tokio_rustls::rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder().no_proxy()
}

fn reqwest_client() -> reqwest::Client {
    reqwest_builder().build().unwrap()
}

/// A backend answers with its name.
async fn call(router: &Router, uri: &str) -> Result<String, Error> {
    let body = router.request(get(uri)).await?.into_body();
    let name = body.collect().await?.to_bytes();
    Ok(String::from_utf8(name.into()).unwrap())
}

/// How often each was named in so many tries.
async fn counted<E: std::fmt::Debug>(
    tries: usize,
    mut name: impl AsyncFnMut() -> Result<String, E>,
) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for _ in 0..tries {
        *counts.entry(name().await.unwrap()).or_default() += 1;
    }
    counts
}

async fn a_router_sends_each_request_where_its_host_says(agent: &TestAgent) {
    let (web, api) = (agent.name("web"), agent.name("api"));
    let _old = instance(agent, &web, "old", &["v1"]).await;
    let _new = instance(agent, &web, "new", &["v2", "1.2"]).await;
    let _api = instance(agent, &api, "api", &[]).await;
    let router = even(agent);
    let only = [
        (format!("http://{api}/"), "api"),
        (format!("http://{api}.service.consul/"), "api"),
        (
            format!("http://{}.SERVICE.consul./", api.to_uppercase()),
            "api",
        ),
        (format!("http://v1.{web}.service.consul/"), "old"),
        (format!("http://v2.{web}.service.dc1.consul/"), "new"),
        (format!("http://1.2.{web}.service.consul/"), "new"),
        (format!("http://_{web}._v1.service.consul/"), "old"),
    ];
    for (uri, name) in only {
        assert_eq!(call(&router, &uri).await.unwrap(), name, "{uri}");
    }
    let both = format!("http://_{web}._tcp.service.consul/");
    let counts = counted(100, async || call(&router, &both).await).await;
    assert!(counts.values().all(|count| *count >= 20), "{counts:?}");
    assert_eq!(counts.len(), 2);
    // The first three name one service, and the channel to it is one.
    let one = router.to(&api).unwrap().unwrap();
    let same = router
        .to(&format!("{api}.service.consul"))
        .unwrap()
        .unwrap();
    assert_eq!(one.endpoints().len(), 1);
    assert_eq!(same.endpoints()[0].latency, one.endpoints()[0].latency);
}

async fn a_router_says_what_is_wrong_with_a_uri(agent: &TestAgent) {
    let router = Router::new(agent.client()).unwrap();
    let wrong = [
        ("/hello", "names no host; write http://web/hello"),
        ("http://web:8080/x", "the port 8080"),
        ("http://example.com/", "names no service"),
        ("http://127.0.0.1/", "names no service"),
        ("http://localhost/", "names no service"),
        ("http://[::1]/", "names no service"),
        ("http://web.query.consul/", "names no service"),
        ("http://service.consul/", "write web.service.consul"),
        ("https://web/", "plain http"),
    ];
    for (uri, why) in wrong {
        let error = call(&router, uri).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidRequest, "{uri}: {error}");
        assert!(error.to_string().contains(why), "{uri}: {error}");
        assert!(!error.was_sent());
    }
    let nobody = agent.name("nobody");
    let error = call(&router, &format!("http://{nobody}/"))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoEndpoints);
    assert!(error.to_string().contains(&nobody), "{error}");
    let elsewhere = format!("http://{nobody}.service.atlantis.consul/");
    let router = Router::builder(agent.client())
        .channel(|channel| channel.first_resolution(Duration::from_millis(500)))
        .build()
        .unwrap();
    let error = call(&router, &elsewhere).await.unwrap_err();
    assert!(error.is_no_endpoints(), "{error}");
    assert!(error.to_string().contains("in atlantis"), "{error}");
}

async fn a_router_finds_a_service_again_that_it_has_forgotten(agent: &TestAgent) {
    let web = agent.name("web");
    let _one = instance(agent, &web, "one", &[]).await;
    let services = Services::new(agent.client()).forget_after(Duration::from_millis(200));
    let router = Router::new(services).unwrap();
    let uri = format!("http://{web}/");
    assert_eq!(call(&router, &uri).await.unwrap(), "one");
    // A body that is under way is not disturbed.
    let response = router.request(get(&uri)).await.unwrap();
    eventually(SOON, async || router.services() == 0).await;
    let body = response.into_body().collect().await.unwrap();
    assert_eq!(body.to_bytes(), "one");
    assert_eq!(call(&router, &uri).await.unwrap(), "one");
    assert_eq!(router.services(), 1);
}

fn hyper(connector: &Connector) -> HyperClient<Connector, Empty<Bytes>> {
    // Each request opens a connection, so that each is balanced.
    HyperClient::builder(TokioExecutor::new())
        .pool_max_idle_per_host(0)
        .build(connector.clone())
}

async fn by_hyper(
    http: &HyperClient<Connector, Empty<Bytes>>,
    uri: &str,
) -> Result<String, String> {
    let uri: Uri = uri.parse().unwrap();
    let response = http.get(uri).await.map_err(|err| told(&err))?;
    let body = response.into_body().collect().await.unwrap().to_bytes();
    Ok(String::from_utf8(body.into()).unwrap())
}

/// The whole chain of an error.
fn told(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(cause) => format!("{error}: {}", told(cause)),
        None => error.to_string(),
    }
}

async fn a_connector_finds_services_and_passes_the_rest_by(agent: &TestAgent) {
    let web = agent.name("web");
    let instances = three(agent, &web).await;
    let alone = Backend::start("alone").await.unwrap();
    let connector = Connector::new(agent.client()).unwrap();
    let http = hyper(&connector);
    for host in [web.clone(), format!("{web}.service.dc1.consul")] {
        let uri = format!("http://{host}/");
        let counts = counted(90, async || by_hyper(&http, &uri).await).await;
        assert_eq!(counts.len(), 3, "{counts:?}");
        assert!(counts.values().all(|count| *count >= 10), "{counts:?}");
    }
    // A port in the URI means that very port; and nothing of this is a service.
    let port = alone.addr().port();
    for host in ["127.0.0.1", "localhost"] {
        let uri = format!("http://{host}:{port}/");
        assert_eq!(by_hyper(&http, &uri).await.unwrap(), "alone");
    }
    assert_eq!(connector.services(), 2);

    let strict = Connector::builder(agent.client()).others(Others::Refuse);
    let strict = strict.build().unwrap();
    let http = hyper(&strict);
    let error = by_hyper(&http, &format!("http://127.0.0.1:{port}/")).await;
    assert!(error.unwrap_err().contains("names no service"));
    assert!(by_hyper(&http, &format!("http://{web}/")).await.is_ok());

    let mut bare = connector.clone();
    for (uri, why) in [
        ("/path", "names no host"),
        ("http://127.0.0.1:0/", "port 0"),
        ("ftp://example.com/", "neither a port"),
    ] {
        let error = bare.call(uri.parse().unwrap()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidRequest, "{uri}");
        assert!(error.to_string().contains(why), "{uri}: {error}");
    }
    let connection = bare.call(format!("http://{web}").parse().unwrap()).await;
    let target = connection.unwrap().target().unwrap().port();
    let ports = instances.iter().map(|one| one.backend.addr().port());
    assert!(ports.into_iter().any(|port| port == target));
}

async fn a_connector_goes_on_to_the_next_instance_when_one_refuses(agent: &TestAgent) {
    let web = agent.name("web");
    let mut instances = three(agent, &web).await;
    let Instance {
        backend,
        registration,
    } = instances.remove(0);
    // Consul goes on to list it as passing.
    backend.abort().await;
    let http = hyper(&Connector::new(agent.client()).unwrap());
    let uri = format!("http://{web}/");
    let counts = counted(60, async || by_hyper(&http, &uri).await).await;
    assert_eq!(counts.len(), 2, "{counts:?}");
    drop(registration);
}

async fn a_dialer_follows_the_instances(agent: &TestAgent) {
    let db = agent.name("db");
    let dialer = Dialer::new(&agent.client(), &db).unwrap();
    let error = dialer.connect().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoEndpoints);
    assert!(error.to_string().contains(&db), "{error}");

    let first = instance(agent, &db, "first", &[]).await;
    eventually(SOON, async || dialer.connect().await.is_ok()).await;
    let kept = dialer.connect().await.unwrap();
    assert_eq!(kept.target().port(), first.backend.addr().port());

    let second = instance(agent, &db, "second", &[]).await;
    first.registration.close().await.unwrap();
    let port = second.backend.addr().port();
    eventually(SOON, async || {
        let connection = dialer.connect().await.unwrap();
        connection.target().port() == port
    })
    .await;
    // The connection to the one that has left stays open until its user drops it.
    assert_eq!(kept.target().port(), first.backend.addr().port());
    assert!(kept.stream().peer_addr().is_ok());
}

async fn requests_of_reqwest_are_spread_by_channels(agent: &TestAgent) {
    let web = agent.name("web");
    let mut instances = three(agent, &web).await;
    let http = reqwest_client();
    let client = reqwest_013::Client::new(even(agent));
    let uri = format!("http://{web}/some/path");
    let call = async || {
        let request = http.post(&uri).body("question").build().unwrap();
        let response = client.execute(request).await?;
        assert_eq!(response.url().as_str(), uri);
        assert_eq!(response.status(), 200);
        Ok::<_, Error>(response.text().await.unwrap())
    };
    let counts = counted(90, call).await;
    assert_eq!(counts.len(), 3, "{counts:?}");
    assert!(counts.values().all(|count| *count >= 10), "{counts:?}");

    // One that dies costs no request that it has not received.
    instances.remove(0).backend.abort().await;
    let counts = counted(60, async || {
        // Its connections are closed; a request that crosses with that is the caller's to repeat.
        match call().await {
            Err(error) if error.was_sent() => call().await,
            other => other,
        }
    })
    .await;
    assert_eq!(counts.len(), 2, "{counts:?}");

    // What names no service is refused, or somebody else's.
    let alone = Backend::start("alone").await.unwrap();
    let other = || {
        http.get(format!("http://{}/", alone.addr()))
            .build()
            .unwrap()
    };
    let error = client.execute(other()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidRequest);
    let client = client.others(http.clone());
    let answer = client.execute(other()).await.unwrap();
    assert_eq!(answer.text().await.unwrap(), "alone");
    let request = http.get(&uri).build().unwrap();
    assert!(client.execute(request).await.is_ok());
    let addr = alone.addr();
    alone.abort().await;
    let nobody = http.get(format!("http://{addr}/")).build().unwrap();
    let error = client.execute(nobody).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Connect);
}

async fn a_request_of_reqwest_keeps_its_own_timeout(agent: &TestAgent) {
    let web = agent.name("web");
    let slow = instance(agent, &web, "slow", &[]).await;
    slow.backend.delay(Duration::from_secs(60));
    let http = reqwest_client();
    let router = Router::new(agent.client()).unwrap();
    let client = reqwest_013::Client::new(router.clone());
    let request = http.get(format!("http://{web}/"));
    let request = request.timeout(Duration::from_millis(100)).build().unwrap();
    let error = client.execute(request).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout);

    slow.backend.delay(Duration::ZERO);
    let channel = router.to(&web).unwrap().unwrap();
    let request = http.get(format!("http://{web}/")).build().unwrap();
    let answer = reqwest_013::execute(&channel, request).await.unwrap();
    assert_eq!(answer.text().await.unwrap(), "slow");
}

async fn the_resolver_tells_reqwest_the_ports(agent: &TestAgent) {
    let web = agent.name("web");
    let mut instances = three(agent, &web).await;
    let resolver = reqwest_013::Resolver::new(agent.client()).unwrap();
    let http = reqwest_builder()
        .dns_resolver(resolver)
        .pool_max_idle_per_host(0)
        .build()
        .unwrap();
    let call = async |uri: &str| http.get(uri).send().await?.text().await;
    let uri = format!("http://{web}.service.consul/");
    let counts = counted(90, async || call(&uri).await).await;
    assert_eq!(counts.len(), 3, "{counts:?}");

    // reqwest goes on to the next address when one refuses.
    instances.remove(0).backend.abort().await;
    let counts = counted(60, async || call(&uri).await).await;
    assert_eq!(counts.len(), 2, "{counts:?}");

    // Another name is the system's to resolve, and a port in the URL counts.
    let port = instances[0].backend.addr().port();
    let local = format!("http://localhost:{port}/");
    assert_eq!(call(&local).await.unwrap(), instances[0].backend.name());

    let nobody = format!("http://{}/", agent.name("nobody"));
    let error = call(&nobody).await.unwrap_err();
    assert!(
        told(&error).contains("has no endpoints"),
        "{}",
        told(&error)
    );
}

async fn a_stack_of_reqwest_clients_is_balanced(agent: &TestAgent) {
    let web = agent.name("web");
    let _instances = three(agent, &web).await;
    let http = Arc::new(reqwest_client());
    let balanced = layer::Builder::service(&agent.client(), &web)
        .policy(Policy::PendingRequests)
        .build(move |target| {
            let (http, target) = (Arc::clone(&http), target.clone());
            service_fn(move |path: &'static str| {
                let called = http.get(format!("http://{target}{path}")).send();
                async move { called.await?.text().await }
            })
        })
        .unwrap();
    let counts = counted(90, async || balanced.clone().oneshot("/x").await).await;
    assert_eq!(counts.len(), 3, "{counts:?}");
    assert!(counts.values().all(|count| *count >= 10), "{counts:?}");
    assert!(balanced.endpoints().iter().all(|one| one.in_flight == 0));
}
