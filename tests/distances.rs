//! Two datacenters of a real Consul: the own one is called, and the other steps in for it.

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
}
