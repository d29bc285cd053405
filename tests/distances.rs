//! Two datacenters: the own one is called, and the other steps in for it; both are watched at once.

/// By its name `tests/run --embedded-only` leaves it out.
mod consul {
    use std::collections::BTreeMap;
    use std::time::Duration;

    use ::http::Request;
    use bytes::Bytes;
    use http_body_util::{BodyExt, Empty};
    use lictor::Client;
    use lictor_tower::Channel;
    use lictor_tower::source::{self, HealthSource};
    use serde_json::json;
    use support::backend::Backend;
    use support::consul::Agent;
    use support::{eventually, http};

    const PATIENCE: Duration = Duration::from_secs(60);

    async fn backends(agent: &Agent, prefix: &str, count: usize) -> Vec<Backend> {
        let mut backends = Vec::new();
        for number in 0..count {
            let name = format!("{prefix}{number}");
            let backend = Backend::start(&name).await.unwrap();
            let definition = json!({
                "Name": "web",
                "ID": name,
                "Address": "127.0.0.1",
                "Port": backend.addr().port(),
            });
            let url = format!("{}/v1/agent/service/register", agent.http_url());
            let answer = http::request("PUT", &url, &[], definition.to_string()).await;
            assert!(answer.unwrap().is_success());
            backends.push(backend);
        }
        backends
    }

    /// How often backends with each first letter answer; a request that fails fails the test.
    async fn calls(channel: &Channel, count: u32) -> BTreeMap<char, u32> {
        let mut calls = BTreeMap::new();
        for _ in 0..count {
            let request = Request::get("/").body(Empty::<Bytes>::new()).unwrap();
            let response = channel.request(request).await.unwrap();
            let name = response.into_body().collect().await.unwrap().to_bytes();
            *calls.entry(char::from(name[0])).or_default() += 1;
        }
        calls
    }

    /// Nothing fails when a datacenter is lost, and all comes back when it does.
    #[tokio::test]
    async fn g13_the_other_datacenter_steps_in_without_a_failed_request_and_steps_back() {
        let own = Agent::start().await;
        let other = Agent::options()
            .node_name("far")
            .config("datacenter", "dc2".into())
            .config("retry_join_wan", vec![own.wan_addr()].into())
            .start()
            .await;
        let mut near = backends(&own, "near", 3).await;
        let _far = backends(&other, "far", 2).await;
        let client = Client::builder().address(own.http_url()).build().unwrap();
        let web = || client.health().service("web");
        let there = || web().datacenter("dc2");
        eventually(PATIENCE, async || {
            there().await.is_ok_and(|listed| listed.len() == 2)
        })
        .await;
        let watches = [web().watch().unwrap(), there().watch().unwrap()];
        let channel = Channel::from_source(source::ranked(watches.map(HealthSource::new)));
        let channel = channel.max_attempts(2).build().unwrap();
        channel.wait_ready().await.unwrap();
        assert_eq!(channel.endpoints().len(), 5);
        assert_eq!(calls(&channel, 100).await, BTreeMap::from([('n', 100)]));

        // Consul knows nothing of this: there are no checks.
        let addresses: Vec<_> = near.iter().map(Backend::addr).collect();
        for backend in near.drain(..) {
            backend.abort().await;
        }
        assert_eq!(calls(&channel, 200).await, BTreeMap::from([('f', 200)]));

        for addr in addresses {
            near.push(Backend::start_on(addr, "near").await.unwrap());
        }
        eventually(PATIENCE, async || {
            calls(&channel, 50).await == BTreeMap::from([('n', 50)])
        })
        .await;
    }

    /// One view over both, while one of them dies and comes back; a prepared query fails over.
    #[tokio::test]
    async fn a_datacenter_that_dies_is_told_as_stale_and_comes_back_while_the_other_goes_on() {
        let own = Agent::start().await;
        let mut other = Agent::options()
            .server()
            .node_name("far")
            .config("datacenter", "dc2".into())
            .config("retry_join_wan", vec![own.wan_addr()].into())
            .start()
            .await;
        let client = Client::builder().address(own.http_url()).build().unwrap();
        let far = Client::builder().address(other.http_url()).build().unwrap();
        super::two_datacenters(&client, &far, async |up| match up {
            true => other.restart_with_data().await,
            false => other.kill(),
        })
        .await;
    }
}

mod embedded {
    use lictor::Client;
    use lictor::embedded::Agent;

    #[tokio::test]
    async fn a_datacenter_that_is_cut_off_is_told_as_stale_and_comes_back_while_the_other_goes_on()
    {
        let own = Agent::start().await.unwrap();
        let other = Agent::builder().datacenter("dc2").node_name("far");
        let other = other.start().await.unwrap();
        own.join_wan(&other);
        let client = |agent: &Agent| Client::builder().address(agent.http_url()).build().unwrap();
        super::two_datacenters(&client(&own), &client(&other), async |up| match up {
            true => own.join_wan(&other),
            false => own.part_wan(&other),
        })
        .await;
    }

    #[tokio::test]
    async fn the_nearest_datacenters_come_first_and_then_the_named() {
        use lictor::watch::Failover;

        let own = Agent::start().await.unwrap();
        let mut others = Vec::new();
        for (name, seconds) in [("far", 0.2), ("near", 0.01), ("middle", 0.05)] {
            let other = Agent::builder().datacenter(name).in_memory();
            other.move_in_wan(seconds);
            own.join_wan(&other);
            others.push(other);
        }
        let client = Client::builder().address(own.http_url()).build().unwrap();
        let order = Failover::new().nearest(2).then("moon").order(&client).await;
        assert_eq!(order.unwrap(), ["dc1", "near", "middle", "moon"]);
    }
}

use std::time::Duration;

use lictor::Client;
use lictor::api::agent::ServiceDefinition;
use lictor::api::query::PreparedQuery;
use lictor::watch::{Across, Region, Status, Watched};
use support::eventually;

const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until the view is such.
async fn until<T: Watched>(across: &mut Across<T>, wanted: impl Fn(&[Region<T>]) -> bool) {
    let reached = async {
        while !wanted(&across.regions()) {
            across.changed().await.unwrap();
        }
    };
    if tokio::time::timeout(PATIENCE, reached).await.is_err() {
        let regions: Vec<String> = across.regions().iter().map(Region::to_string).collect();
        panic!("still {regions:?}");
    }
}

/// The same story with two agents, however the second is cut off and comes back.
async fn two_datacenters(client: &Client, far: &Client, mut reach: impl AsyncFnMut(bool)) {
    let register = async |client: &Client, id: &str| {
        let web = ServiceDefinition::new("web").id(id).port(80);
        client.agent().register(&web).await.unwrap();
    };
    let order = ["dc1", "dc2"].map(|name| name.parse().unwrap());
    let web = client.health().service("web").passing();
    let mut across = web.watch_across(order).unwrap();
    register(far, "far-1").await;
    until(&mut across, |regions| {
        regions[1].len() == 1 && regions[0].status().is_live()
    })
    .await;
    assert_eq!(across.preferred().unwrap().datacenter(), &"dc2");
    let query = PreparedQuery::new("web")
        .name("web-anywhere")
        .failover_to("dc2");
    client.query().create(&query).await.unwrap();
    let found = client.query().execute("web-anywhere").await.unwrap();
    assert_eq!((found.datacenter().as_str(), found.failovers()), ("dc2", 1));
    assert_eq!(found.nodes()[0].service().id(), &"far-1");

    reach(false).await;
    until(&mut across, |regions| {
        matches!(regions[1].status(), Status::Stale(_))
    })
    .await;
    assert_eq!(across.regions()[1].len(), 1);
    // What happens here is told as if nothing had happened there.
    register(client, "near-1").await;
    until(&mut across, |regions| regions[0].len() == 1).await;
    assert!(across.regions()[0].status().is_live());
    assert_eq!(across.preferred().unwrap().datacenter(), &"dc1");
    eventually(PATIENCE, async || {
        let found = client.query().execute("web-anywhere").await;
        found.is_ok_and(|found| (found.datacenter().as_str(), found.failovers()) == ("dc1", 0))
    })
    .await;

    reach(true).await;
    eventually(PATIENCE, async || {
        let web = ServiceDefinition::new("web").id("far-2").port(80);
        far.agent().register(&web).await.is_ok()
    })
    .await;
    until(&mut across, |regions| {
        let ids: Vec<&str> = regions[1]
            .snapshot()
            .into_iter()
            .flat_map(|snapshot| snapshot.items())
            .map(|entry| entry.service().id().as_str())
            .collect();
        regions[1].status().is_live() && ids.contains(&"far-2")
    })
    .await;
}
