//! Which name an endpoint has to prove.

use std::time::Duration;

use http::Request;
use lictor::Client;
use lictor::api::agent::{CheckDefinition, ServiceDefinition};
use lictor::embedded::Agent;
use lictor::registration::Registration;
use lictor_tower::channel::{Channel, Tls};
use lictor_tower::reqwest_013;
use lictor_tower::router::Router;
use lictor_tower::source;
use support::certs::Authority;
use support::eventually;

use crate::server::{Options, SOON, chain, channel, get, text, version};

fn trusting(authority: &Authority) -> Tls {
    Tls::new().ca_pem(authority.pem())
}

#[tokio::test]
async fn a_template_asks_each_endpoint_for_its_own_name() {
    let authority = Authority::new("names");
    for (template, name) in [
        ("{service}", "web"),
        ("api.example.com", "api.example.com"),
        (
            "{service}.service.{datacenter}.consul",
            "web.service.dc2.consul",
        ),
        ("{node}.node.consul", "n7.node.consul"),
    ] {
        let server = Options::tls(&authority.issue(&[name])).start().await;
        let endpoint = server.endpoint().with_node("n7").with_datacenter("dc2");
        let tls = trusting(&authority).server_name(template);
        let (_feed, channel) = channel([endpoint], tls, |b| b);
        version(&channel).await;
        assert_eq!(server.seen.names(), [Some(name.to_owned())]);
    }
    // An address is proven, but not sent (RFC 6066, 3).
    let server = Options::tls(&authority.issue(&["127.0.0.1"])).start().await;
    let tls = trusting(&authority).server_name("{address}");
    let (_feed, channel) = channel([server.endpoint()], tls, |b| b);
    version(&channel).await;
    assert_eq!(server.seen.names(), [None]);
}

#[tokio::test]
async fn an_endpoint_that_moves_to_another_node_is_asked_for_its_new_name() {
    let authority = Authority::new("names");
    let identity = authority.issue(&["n1.node.consul", "n2.node.consul"]);
    let server = Options::tls(&identity).start().await;
    let tls = trusting(&authority).server_name("{node}.node.consul");
    let first = server.endpoint().with_node("n1");
    let (feed, channel) = channel([first], tls, |b| b.max_idle_per_endpoint(0));
    version(&channel).await;
    feed.set([server.endpoint().with_node("n2")].into_iter().collect());
    eventually(SOON, async || {
        version(&channel).await;
        server
            .seen
            .names()
            .contains(&Some("n2.node.consul".to_owned()))
    })
    .await;
}

#[tokio::test]
async fn what_a_source_does_not_tell_is_named_and_other_endpoints_are_called() {
    let authority = Authority::new("names");
    let server = Options::tls(&authority.issue(&["n1.node.consul"]))
        .start()
        .await;
    let tls = trusting(&authority).server_name("{node}.node.consul");
    let (feed, channel) = channel([server.endpoint()], tls, |b| b);
    let error = channel.request(get("/")).await.unwrap_err();
    assert!(error.is_connect() && !error.was_sent());
    let told = chain(&error);
    assert!(told.contains("the node of the endpoint"), "{told}");
    let other = Options::tls(&authority.issue(&["n1.node.consul"]))
        .start()
        .await;
    let endpoints = [server.endpoint(), other.endpoint().with_node("n1")];
    feed.set(endpoints.into_iter().collect());
    channel.wait_ready().await.unwrap();
    eventually(SOON, async || channel.endpoints().len() == 2).await;
    for _ in 0..10 {
        assert_eq!(version(&channel).await, "HTTP/1.1");
    }
    assert_eq!(server.seen.requests(), 0);
}

/// An agent on the node `n7` in `dc2`, with a service that answers under TLS.
async fn agent(service: &str, server: &crate::server::Server) -> (Agent, Client, Registration) {
    let agent = Agent::builder().node_name("n7").datacenter("dc2");
    let agent = agent.start().await.unwrap();
    let client = Client::builder().address(agent.http_url()).build().unwrap();
    let definition = ServiceDefinition::new(service)
        .listener(server.addr)
        .check(CheckDefinition::alive_only(Duration::from_secs(600)));
    let registration = client.register(definition).await.unwrap();
    (agent, client, registration)
}

#[tokio::test]
async fn a_channel_to_a_service_of_consuls_knows_its_name_node_and_datacenter() {
    let authority = Authority::new("names");
    let name = "orders.n7.dc2.example";
    let server = Options::tls(&authority.issue(&[name, "orders"]))
        .start()
        .await;
    let (agent, client, _registration) = agent("orders", &server).await;
    for (template, asked) in [
        ("{service}.{node}.{datacenter}.example", name),
        ("{service}", "orders"),
    ] {
        let tls = trusting(&authority).server_name(template);
        let channel = Channel::builder(client.clone()).service("orders").tls(tls);
        let channel = channel.build().unwrap();
        assert_eq!(version(&channel).await, "HTTP/1.1");
        assert_eq!(server.seen.names().last(), Some(&Some(asked.to_owned())));
    }
    drop(client);
    agent.stop().await;
}

#[tokio::test]
async fn a_router_and_reqwests_requests_reach_services_by_https() {
    let authority = Authority::new("names");
    let identity = authority.issue(&["orders"]);
    let server = Options::tls(&identity).speaking(&["h2"]).start().await;
    let (agent, client, _registration) = agent("orders", &server).await;
    let tls = trusting(&authority);
    let router = Router::builder(client)
        .channel(move |channel| channel.tls(tls.clone()))
        .build()
        .unwrap();
    for uri in [
        "https://orders/version",
        "http://orders.service.consul/version",
    ] {
        let request = Request::get(uri).body(String::new()).unwrap();
        let response = router.request(request).await.unwrap();
        assert_eq!(text(response).await, "h2 https");
    }
    // With somebody for the rest, https is still the router's where it secures its channels.
    // reqwest asks the process which cryptography to use; all tests of this one agree.
    let _ = tokio_rustls::rustls::crypto::ring::default_provider().install_default();
    let reqwest = reqwest::Client::builder().no_proxy().build().unwrap();
    let others = reqwest_013::Client::new(router.clone()).others(reqwest.clone());
    for door in [reqwest_013::Client::new(router), others] {
        let request = reqwest.get("https://orders/version").build().unwrap();
        let response = door.execute(request).await.unwrap();
        assert_eq!(response.text().await.unwrap(), "h2 https");
    }
    agent.stop().await;
}

#[tokio::test]
async fn settings_that_cannot_work_are_told_when_the_channel_is_built() {
    let authority = Authority::new("names");
    let other = authority.issue(&["other"]);
    let mine = authority.issue(&["me"]);
    let pem = |text: &str| Tls::new().ca_pem(text);
    for (tls, host, says) in [
        (pem("no certificate"), "web", "holds no PEM certificate"),
        (
            Tls::new().ca_file("there/is/none.pem"),
            "web",
            "there/is/none.pem",
        ),
        (Tls::new().ca_dir("there/is/none"), "web", "there/is/none"),
        (
            trusting(&authority).client_certificate_pem(mine.certificate.clone(), "no key"),
            "web",
            "client key",
        ),
        (
            trusting(&authority).client_certificate_pem(mine.certificate.clone(), other.key),
            "web",
            "do not fit",
        ),
        (trusting(&authority).server_name("{srv}"), "web", "{srv}"),
        (
            trusting(&authority).server_name("web:443"),
            "web",
            "has a port",
        ),
        (trusting(&authority), "", "the name of the service"),
    ] {
        let (_feed, source) = source::feed();
        let mut builder = Channel::from_source(source).tls(tls);
        if !host.is_empty() {
            builder = builder.host(host);
        }
        let error = builder.build().unwrap_err();
        assert_eq!(error.kind(), lictor_tower::ErrorKind::Invalid);
        let told = chain(&error);
        assert!(told.contains(says), "{told}");
    }
}
