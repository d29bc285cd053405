//! Endpoints by DNS and over HTTP: both sources tell the same of the same service.
//!
//! A case runs on the embedded agent and on a real Consul; the few that only the latter can do
//! stand in its module.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use futures_core::Stream;
use lictor::Client;
use lictor_tower::endpoint::EndpointSet;
use lictor_tower::source::{
    self, HealthSource, Place, Source, SrvSource, SrvSourceBuilder, Status,
};
use serde_json::{Value, json};
use support::http;

const PATIENCE: Duration = Duration::from_secs(30);

/// An agent of either kind.
struct Lab {
    http_url: String,
    dns_addr: SocketAddr,
}

impl Lab {
    async fn api(&self, method: &str, path: &str, body: &str) -> http::Answer {
        let url = format!("{}{path}", self.http_url);
        let answer = http::request(method, &url, &[], body.to_owned());
        answer.await.unwrap()
    }
}

macro_rules! on_both_agents {
    ($($case:ident),* $(,)?) => {
        mod embedded {
            $(
                #[tokio::test]
                async fn $case() {
                    let agent = lictor::embedded::Agent::start().await.unwrap();
                    let lab = super::Lab {
                        http_url: agent.http_url(),
                        dns_addr: agent.dns_addr(),
                    };
                    super::$case(&lab).await;
                    agent.stop().await;
                }
            )*
        }

        mod consul {
            use super::real::on_consul;

            $(
                #[tokio::test]
                async fn $case() {
                    on_consul(super::$case).await;
                }
            )*
        }
    };
}

on_both_agents![
    each_kind_of_address_gives_the_endpoints_that_http_gives,
    every_form_of_the_name_finds_the_service,
    all_of_120_instances_are_found,
    the_state_of_an_instance_chooses_its_weight_or_takes_it_out,
    maintenance_takes_an_instance_out_of_both_sources,
    a_service_whose_instances_are_all_critical_is_empty_after_the_grace_period,
    a_service_that_flickers_within_the_grace_period_stays,
    a_service_that_does_not_exist_is_empty_and_not_unknown,
    an_instance_without_a_port_is_nobody_to_call,
    a_registration_is_seen_and_so_is_its_end,
    a_change_that_does_not_matter_for_calls_is_not_told,
    instances_on_the_own_node_are_nearer_than_others,
    the_first_instances_of_a_sorted_answer_are_near,
    ranked_services_are_one_further_away_than_the_other,
];

/// Fast, so that no test waits for the pace of production.
fn builder(agent: &Lab, name: &str) -> SrvSourceBuilder {
    SrvSource::builder(name)
        .server(agent.dns_addr)
        .min_refresh(Duration::from_millis(20))
}

fn source(agent: &Lab, service: &str) -> SrvSource {
    let name = format!("{service}.service.consul");
    builder(agent, &name).build().unwrap()
}

fn client(agent: &Lab) -> Client {
    let builder = Client::builder().address(agent.http_url.clone());
    builder.build().unwrap()
}

fn health(agent: &Lab, service: &str) -> HealthSource {
    let watch = client(agent).health().service(service).watch();
    HealthSource::new(watch.unwrap())
}

async fn next(source: &mut (impl Source + Unpin)) -> EndpointSet {
    let next = std::future::poll_fn(|cx| Pin::new(&mut *source).poll_next(cx));
    let next = tokio::time::timeout(PATIENCE, next).await;
    next.expect("a set in time").expect("no end")
}

/// Reads sets until one has these endpoints.
async fn until(source: &mut (impl Source + Unpin), wanted: &BTreeMap<String, u32>) {
    let mut last = None;
    let read = async {
        loop {
            let set = shown(&next(source).await);
            if set == *wanted {
                return;
            }
            last = Some(set);
        }
    };
    if tokio::time::timeout(PATIENCE, read).await.is_err() {
        panic!("wanted {wanted:?}, the last set was {last:?}");
    }
}

async fn until_status(source: &mut (impl Source + Unpin), fits: impl Fn(&Status) -> bool) {
    let driven = std::future::poll_fn(|cx| {
        let told = Pin::new(&mut *source).poll_next(cx);
        assert!(told.is_pending(), "no set is told: {told:?}");
        if fits(&source.status()) {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    });
    let driven = tokio::time::timeout(PATIENCE, driven);
    driven.await.expect("the status in time");
}

fn shown(set: &EndpointSet) -> BTreeMap<String, u32> {
    assert!(set.iter().all(|endpoint| endpoint.priority() == 1));
    set.iter()
        .map(|endpoint| (endpoint.target().to_string(), endpoint.weight()))
        .collect()
}

fn pairs(pairs: &[(&str, u32)]) -> BTreeMap<String, u32> {
    let pairs = pairs.iter();
    pairs.map(|&(target, n)| (target.to_owned(), n)).collect()
}

async fn put(agent: &Lab, path: &str, body: &Value) {
    let answer = agent.api("PUT", path, &body.to_string()).await;
    assert!(answer.is_success(), "{path}: {}", answer.text());
}

async fn register(agent: &Lab, definition: Value) {
    put(agent, "/v1/agent/service/register", &definition).await;
}

/// Registers an instance on a node of its own, as an agent elsewhere would.
async fn register_on(agent: &Lab, node: &str, address: &str, service: Value) {
    let body = json!({ "Node": node, "Address": address, "Service": service });
    put(agent, "/v1/catalog/register", &body).await;
}

/// What the HTTP API says of the instances that may be called, read on its own.
async fn by_http(agent: &Lab, service: &str) -> BTreeMap<String, u32> {
    let path = format!("/v1/health/service/{service}");
    let entries = agent.api("GET", &path, "").await.json();
    let mut found = BTreeMap::new();
    for entry in entries.as_array().unwrap() {
        let states: Vec<&str> = entry["Checks"].as_array().map_or(Vec::new(), |checks| {
            checks.iter().filter_map(|c| c["Status"].as_str()).collect()
        });
        let weights = &entry["Service"]["Weights"];
        let weight = match () {
            () if states.contains(&"critical") => continue,
            () if states.contains(&"warning") => &weights["Warning"],
            () => &weights["Passing"],
        };
        let own = entry["Service"]["Address"].as_str().unwrap();
        let node = entry["Node"]["Address"].as_str().unwrap();
        let host = if own.is_empty() { node } else { own };
        let host = match host.parse::<IpAddr>() {
            Ok(IpAddr::V6(ip)) => format!("[{ip}]"),
            _ => host.to_lowercase(),
        };
        let target = format!("{host}:{}", entry["Service"]["Port"]);
        found.insert(target, u32::try_from(weight.as_u64().unwrap()).unwrap());
    }
    found
}

async fn each_kind_of_address_gives_the_endpoints_that_http_gives(agent: &Lab) {
    let name = "kinds";
    register(
        agent,
        json!({ "Name": name, "ID": "k1", "Address": "10.1.0.1", "Port": 80 }),
    )
    .await;
    register(
        agent,
        json!({ "Name": name, "ID": "k2", "Address": "2001:db8::1", "Port": 80 }),
    )
    .await;
    register(agent, json!({ "Name": name, "ID": "k3", "Port": 8081 })).await;
    let fqdn = "Web-1.Example.com";
    register(
        agent,
        json!({ "Name": name, "ID": "k4", "Address": fqdn, "Port": 443 }),
    )
    .await;
    let weights = json!({ "Passing": 7, "Warning": 2 });
    let weighed =
        json!({ "Name": name, "ID": "k5", "Address": "10.1.0.2", "Port": 80, "Weights": weights });
    register(agent, weighed).await;
    let service = || json!({ "Service": name, "Port": 82 });
    register_on(agent, "kinds-v4", "10.1.0.3", service()).await;
    register_on(agent, "kinds-v6", "2001:db8::3", service()).await;
    register_on(agent, "kinds-named", "outside.example.com", service()).await;
    register_on(agent, "kinds.dotted", "10.1.0.5", service()).await;

    let wanted = pairs(&[
        ("10.1.0.1:80", 1),
        ("[2001:db8::1]:80", 1),
        ("127.0.0.1:8081", 1),
        ("web-1.example.com:443", 1),
        ("10.1.0.2:80", 7),
        ("10.1.0.3:82", 1),
        ("[2001:db8::3]:82", 1),
        ("outside.example.com:82", 1),
        ("10.1.0.5:82", 1),
    ]);
    assert_eq!(by_http(agent, name).await, wanted);
    let mut by_dns = source(agent, name);
    until(&mut by_dns, &wanted).await;
    assert_eq!(by_dns.status(), Status::Live);
    let mut by_http = health(agent, name);
    until(&mut by_http, &wanted).await;
    assert_eq!(by_http.status(), Status::Live);
}

/// Registers an instance on the agent's own node and one elsewhere.
async fn register_here_and_there(agent: &Lab, name: &str) {
    let here = json!({ "Name": name, "Address": "10.3.0.1", "Port": 80 });
    register(agent, here).await;
    let there = json!({ "Service": name, "Port": 80 });
    register_on(agent, &format!("{name}-elsewhere"), "10.3.0.2", there).await;
}

/// Reads sets until there are two endpoints, and gives how far away they are.
async fn distances(source: &mut (impl Source + Unpin)) -> BTreeMap<String, u16> {
    loop {
        let set = next(source).await;
        if set.len() == 2 {
            let told = set.iter();
            return told
                .map(|endpoint| (endpoint.target().to_string(), endpoint.distance()))
                .collect();
        }
    }
}

async fn instances_on_the_own_node_are_nearer_than_others(agent: &Lab) {
    register_here_and_there(agent, "places").await;
    let here = Place::of_agent(&client(agent)).await.unwrap();
    let mut near = health(agent, "places").prefer_near(here);
    let told = distances(&mut near).await;
    assert_eq!((told["10.3.0.1:80"], told["10.3.0.2:80"]), (0, 1));
    let elsewhere = Place::new().node("places-elsewhere").datacenter("dc1");
    let told = distances(&mut health(agent, "places").prefer_near(elsewhere)).await;
    assert_eq!((told["10.3.0.1:80"], told["10.3.0.2:80"]), (1, 0));
    let told = distances(&mut health(agent, "places")).await;
    assert_eq!((told["10.3.0.1:80"], told["10.3.0.2:80"]), (0, 0));
}

async fn the_first_instances_of_a_sorted_answer_are_near(agent: &Lab) {
    register_here_and_there(agent, "sorted").await;
    let sorted = client(agent).health().service("sorted").near("_agent");
    let watch = sorted.watch().unwrap();
    let told = distances(&mut HealthSource::new(watch).prefer_first(1)).await;
    let mut distances: Vec<_> = told.into_values().collect();
    distances.sort_unstable();
    assert_eq!(distances, [0, 1]);
}

async fn ranked_services_are_one_further_away_than_the_other(agent: &Lab) {
    for (name, address) in [("rank-1", "10.3.1.1"), ("rank-2", "10.3.1.2")] {
        let definition = json!({ "Name": name, "Address": address, "Port": 80 });
        register(agent, definition).await;
    }
    let mut ranked = source::ranked(["rank-1", "rank-2"].map(|name| health(agent, name)));
    let told = distances(&mut ranked).await;
    assert!(told["10.3.1.1:80"] < told["10.3.1.2:80"], "{told:?}");
    assert_eq!(ranked.status(), Status::Live);
}

async fn every_form_of_the_name_finds_the_service(agent: &Lab) {
    let tags = json!(["v1", "v1.2"]);
    let definition = json!({ "Name": "forms", "Tags": tags, "Address": "10.2.0.1", "Port": 80 });
    register(agent, definition).await;
    let wanted = pairs(&[("10.2.0.1:80", 1)]);
    for name in [
        "forms.service.consul",
        "Forms.Service.Consul.",
        "forms.service.dc1.consul",
        "v1.forms.service.consul",
        "v1.2.forms.service.consul",
        "_forms._tcp.service.consul",
        "_forms._v1.service.dc1.consul",
        "_forms._tcp.consul",
    ] {
        let mut source = builder(agent, name).build().unwrap();
        assert_eq!(shown(&next(&mut source).await), wanted, "{name}");
    }
}

async fn all_of_120_instances_are_found(agent: &Lab) {
    for n in 1..=120 {
        let node = format!("many{n}");
        let service = json!({ "Service": "many", "Port": 80 });
        register_on(agent, &node, &format!("10.4.0.{n}"), service).await;
    }
    let mut source = source(agent, "many");
    let set = next(&mut source).await;
    assert_eq!(set.len(), 120);
    assert_eq!(shown(&set), by_http(agent, "many").await);
}

/// Registers an instance whose state is set by hand.
async fn register_checked(agent: &Lab, service: &str, id: &str, address: &str) {
    let definition = json!({
        "Name": service,
        "ID": id,
        "Address": address,
        "Port": 80,
        "Weights": { "Passing": 10, "Warning": 3 },
        "Check": { "CheckID": format!("{id}-check"), "TTL": "1h", "Status": "passing" },
    });
    register(agent, definition).await;
}

async fn set_state(agent: &Lab, id: &str, state: &str) {
    let path = format!("/v1/agent/check/update/{id}-check");
    put(agent, &path, &json!({ "Status": state })).await;
}

async fn the_state_of_an_instance_chooses_its_weight_or_takes_it_out(agent: &Lab) {
    register_checked(agent, "states", "s1", "10.5.0.1").await;
    register_checked(agent, "states", "s2", "10.5.0.2").await;
    let mut by_dns = source(agent, "states");
    let mut by_watch = health(agent, "states");
    for (id, state, wanted) in [
        (
            "s1",
            "passing",
            &[("10.5.0.1:80", 10), ("10.5.0.2:80", 10)][..],
        ),
        ("s1", "warning", &[("10.5.0.1:80", 3), ("10.5.0.2:80", 10)]),
        ("s1", "critical", &[("10.5.0.2:80", 10)]),
        ("s2", "warning", &[("10.5.0.2:80", 3)]),
        ("s1", "passing", &[("10.5.0.1:80", 10), ("10.5.0.2:80", 3)]),
    ] {
        set_state(agent, id, state).await;
        let wanted = pairs(wanted);
        until(&mut by_dns, &wanted).await;
        until(&mut by_watch, &wanted).await;
        assert_eq!(by_http(agent, "states").await, wanted);
    }
}

async fn maintenance_takes_an_instance_out_of_both_sources(agent: &Lab) {
    register_checked(agent, "mended", "m1", "10.12.0.1").await;
    register_checked(agent, "mended", "m2", "10.12.0.2").await;
    let mut by_dns = source(agent, "mended");
    let mut by_watch = health(agent, "mended");
    let both = pairs(&[("10.12.0.1:80", 10), ("10.12.0.2:80", 10)]);
    until(&mut by_dns, &both).await;
    until(&mut by_watch, &both).await;
    for (enable, wanted) in [("true", pairs(&[("10.12.0.2:80", 10)])), ("false", both)] {
        let path = format!("/v1/agent/service/maintenance/m1?enable={enable}");
        put(agent, &path, &json!(null)).await;
        until(&mut by_dns, &wanted).await;
        until(&mut by_watch, &wanted).await;
    }
}

async fn a_service_whose_instances_are_all_critical_is_empty_after_the_grace_period(agent: &Lab) {
    register_checked(agent, "doomed", "d1", "10.6.0.1").await;
    let builder = builder(agent, "doomed.service.consul");
    let mut source = builder.grace(Duration::from_millis(400)).build().unwrap();
    assert_eq!(next(&mut source).await.len(), 1);

    set_state(agent, "d1", "critical").await;
    until_status(&mut source, |status| matches!(status, Status::Stale { .. })).await;
    assert_eq!(next(&mut source).await, EndpointSet::empty());
    assert_eq!(source.status(), Status::Live);

    set_state(agent, "d1", "passing").await;
    until(&mut source, &pairs(&[("10.6.0.1:80", 10)])).await;
}

async fn a_service_that_flickers_within_the_grace_period_stays(agent: &Lab) {
    register_checked(agent, "flicker", "f1", "10.7.0.1").await;
    let mut source = source(agent, "flicker");
    assert_eq!(next(&mut source).await.len(), 1);
    set_state(agent, "f1", "critical").await;
    until_status(&mut source, |status| matches!(status, Status::Stale { .. })).await;
    set_state(agent, "f1", "passing").await;
    until_status(&mut source, |status| *status == Status::Live).await;
}

async fn a_service_that_does_not_exist_is_empty_and_not_unknown(agent: &Lab) {
    let mut by_watch = health(agent, "nosuch");
    assert_eq!(by_watch.status(), Status::Unknown);
    assert_eq!(next(&mut by_watch).await, EndpointSet::empty());
    assert_eq!(by_watch.status(), Status::Live);
    for name in ["nosuch.service.consul", "nosuch.service.dc9.consul"] {
        let mut source = builder(agent, name).build().unwrap();
        assert_eq!(source.status(), Status::Unknown);
        assert_eq!(next(&mut source).await, EndpointSet::empty(), "{name}");
        assert_eq!(source.status(), Status::Live);
    }
}

async fn an_instance_without_a_port_is_nobody_to_call(agent: &Lab) {
    register(agent, json!({ "Name": "portless", "Address": "10.8.0.1" })).await;
    assert_eq!(
        next(&mut source(agent, "portless")).await,
        EndpointSet::empty()
    );
    assert_eq!(
        next(&mut health(agent, "portless")).await,
        EndpointSet::empty()
    );
}

async fn a_registration_is_seen_and_so_is_its_end(agent: &Lab) {
    register(
        agent,
        json!({ "Name": "comes", "ID": "c1", "Address": "10.9.0.1", "Port": 80 }),
    )
    .await;
    let mut source = source(agent, "comes");
    assert_eq!(next(&mut source).await.len(), 1);
    register(
        agent,
        json!({ "Name": "comes", "ID": "c2", "Address": "10.9.0.2", "Port": 80 }),
    )
    .await;
    assert_eq!(next(&mut source).await.len(), 2);
    put(agent, "/v1/agent/service/deregister/c1", &json!(null)).await;
    assert_eq!(
        shown(&next(&mut source).await),
        pairs(&[("10.9.0.2:80", 1)])
    );
}

async fn a_change_that_does_not_matter_for_calls_is_not_told(agent: &Lab) {
    let definition = |id: &str, port: u16, tag: &str| json!({ "Name": "tagged", "ID": id, "Tags": [tag], "Address": "10.14.0.1", "Port": port });
    register(agent, definition("t1", 80, "old")).await;
    let mut by_watch = health(agent, "tagged");
    assert_eq!(next(&mut by_watch).await.len(), 1);

    register(agent, definition("t1", 80, "new")).await;
    // Another client's watch tells when Consul has it; the source hears of it within moments.
    let client = Client::builder().address(agent.http_url.clone());
    let client = client.build().unwrap();
    let mut raw = client.health().service("tagged").watch().unwrap();
    let seen = async {
        loop {
            let snapshot = raw.changed().await.unwrap();
            if snapshot.iter().any(|e| e.service().tags().contains("new")) {
                return;
            }
        }
    };
    tokio::time::timeout(PATIENCE, seen).await.unwrap();
    let quiet = std::future::poll_fn(|cx| Pin::new(&mut by_watch).poll_next(cx));
    let told = tokio::time::timeout(Duration::from_millis(300), quiet).await;
    assert!(told.is_err(), "no endpoint has changed: {told:?}");

    register(agent, definition("t2", 81, "new")).await;
    let wanted = pairs(&[("10.14.0.1:80", 1), ("10.14.0.1:81", 1)]);
    assert_eq!(shown(&next(&mut by_watch).await), wanted);
}

/// What only a real Consul can do, or has to be shown on.
mod real {
    use support::consul::Agent;

    use super::*;

    fn lab(consul: &Agent) -> Lab {
        Lab {
            http_url: consul.http_url(),
            dns_addr: consul.dns_addr(),
        }
    }

    async fn shared() -> Lab {
        lab(Agent::shared().await)
    }

    pub(super) async fn on_consul(case: impl AsyncFnOnce(&Lab)) {
        case(&shared().await).await;
    }

    /// By its name `tests/run --embedded-only` leaves these out.
    mod consul {
        use super::*;

        #[tokio::test]
        async fn a_prepared_query_is_a_name_like_any_other() {
            let agent = &shared().await;
            let definition = json!({ "Name": "prepared", "Address": "10.3.0.1", "Port": 80 });
            register(agent, definition).await;
            let query = json!({ "Name": "asked", "Service": { "Service": "prepared" } });
            let answer = agent.api("POST", "/v1/query", &query.to_string()).await;
            assert!(answer.is_success(), "{}", answer.text());
            let mut source = builder(agent, "asked.query.consul").build().unwrap();
            assert_eq!(
                shown(&next(&mut source).await),
                pairs(&[("10.3.0.1:80", 1)])
            );
        }

        /// Consul takes such a node and writes its name as it is.
        #[tokio::test]
        async fn a_node_whose_name_is_no_host_name_is_found_by_its_address() {
            let agent = &shared().await;
            let service = json!({ "Service": "odd", "Port": 80 });
            register_on(agent, "odd node_name", "10.13.0.1", service).await;
            let wanted = pairs(&[("10.13.0.1:80", 1)]);
            assert_eq!(shown(&next(&mut source(agent, "odd")).await), wanted);
        }

        #[tokio::test]
        async fn all_of_1200_instances_are_found_over_several_answers_and_stay() {
            let agent = &shared().await;
            for n in 0..1200 {
                let node = format!("huge{n}");
                let address = format!("10.11.{}.{}", n / 250, n % 250 + 1);
                register_on(
                    agent,
                    &node,
                    &address,
                    json!({ "Service": "huge", "Port": 80 }),
                )
                .await;
            }
            let wanted = by_http(agent, "huge").await;
            assert_eq!(wanted.len(), 1200);
            let mut source = source(agent, "huge");
            assert!(next(&mut source).await.len() <= 1024);
            until(&mut source, &wanted).await;
            let quiet = std::future::poll_fn(|cx| Pin::new(&mut source).poll_next(cx));
            let told = tokio::time::timeout(Duration::from_secs(1), quiet).await;
            assert!(told.is_err(), "nothing has changed: {told:?}");
        }

        #[tokio::test]
        async fn a_dead_and_a_frozen_agent_leave_the_set_and_the_next_answer_confirms_it() {
            let mut consul = Agent::options().server().start().await;
            let agent = lab(&consul);
            register(
                &agent,
                json!({ "Name": "web", "Address": "10.10.0.1", "Port": 80 }),
            )
            .await;
            let builder = builder(&agent, "web.service.consul");
            let builder = builder.timeout(Duration::from_millis(300));
            let mut source = builder.grace(PATIENCE).build().unwrap();
            until(&mut source, &pairs(&[("10.10.0.1:80", 1)])).await;
            let stale = |status: &Status| matches!(status, Status::Stale { .. });

            consul.freeze();
            until_status(&mut source, stale).await;
            consul.thaw();
            until_status(&mut source, |status| *status == Status::Live).await;

            let mut by_watch = health(&agent, "web");
            assert_eq!(next(&mut by_watch).await.len(), 1);
            consul.kill();
            until_status(&mut source, stale).await;
            until_status(&mut by_watch, stale).await;
            consul.restart_with_data().await;
            until_status(&mut source, |status| *status == Status::Live).await;
            until_status(&mut by_watch, |status| *status == Status::Live).await;
        }
    }
}
