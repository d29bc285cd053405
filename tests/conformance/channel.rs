//! A client that finds a service by name and calls it, while instances come, leave and die.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Empty};
use lictor::api::agent::{CheckDefinition, ServiceDefinition};
use lictor::registration::Registration;
use lictor_tower::{Channel, ErrorKind};
use support::backend::Backend;
use support::eventually;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::TestAgent;

on_both_agents![
    calls_are_spread_over_all_instances,
    an_instance_that_leaves_under_load_loses_no_call,
    an_instance_that_dies_under_load_loses_only_calls_it_had_received,
    an_instance_that_joins_is_called,
    a_service_that_nobody_offers_fails_fast,
    critical_instances_are_not_called,
    critical_instances_are_a_last_resort_where_few_are_well,
];

const SOON: Duration = Duration::from_secs(20);

/// How long a server goes on serving after it has deregistered.
const LAME_DUCK: Duration = Duration::from_millis(300);

async fn instance(agent: &TestAgent, service: &str, name: &str) -> (Backend, Registration) {
    let backend = Backend::start(name).await.unwrap();
    let definition = ServiceDefinition::new(service)
        .id(format!("{service}-{name}"))
        .listener(backend.addr())
        .check(CheckDefinition::alive_only(Duration::from_secs(60)));
    let registration = agent.client().register(definition).await.unwrap();
    (backend, registration)
}

async fn channel_to(agent: &TestAgent, service: &str, instances: usize) -> Channel {
    let channel = Channel::builder(agent.client())
        .service(service)
        .timeout(Duration::from_secs(10))
        .build()
        .unwrap();
    eventually(SOON, async || channel.endpoints().len() == instances).await;
    channel
}

/// One call; a backend answers with its name.
async fn call(channel: &Channel) -> Result<String, lictor_tower::Error> {
    let request = Request::get("/").body(Empty::<Bytes>::new()).unwrap();
    let response = channel.request(request).await?;
    let body = response.into_body().collect().await?.to_bytes();
    Ok(String::from_utf8(body.into()).unwrap())
}

/// Sixteen loops that call without a pause until they are stopped.
struct Load {
    loops: JoinSet<(BTreeMap<String, usize>, Vec<Failure>)>,
    stop: Arc<AtomicBool>,
}

#[derive(Debug)]
struct Failure {
    began: Instant,
    ended: Instant,
    was_sent: bool,
    text: String,
}

impl Load {
    fn start(channel: &Channel) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let mut loops = JoinSet::new();
        for _ in 0..16 {
            let (channel, stop) = (channel.clone(), Arc::clone(&stop));
            loops.spawn(async move {
                let (mut answered, mut failed) = (BTreeMap::new(), Vec::new());
                while !stop.load(Ordering::Relaxed) {
                    let began = Instant::now();
                    match call(&channel).await {
                        Ok(name) => *answered.entry(name).or_default() += 1,
                        Err(err) => failed.push(Failure {
                            began,
                            ended: Instant::now(),
                            was_sent: err.was_sent(),
                            text: err.to_string(),
                        }),
                    }
                    tokio::task::yield_now().await;
                }
                (answered, failed)
            });
        }
        Self { loops, stop }
    }

    async fn stop(self) -> (BTreeMap<String, usize>, Vec<Failure>) {
        self.stop.store(true, Ordering::Relaxed);
        let (mut answered, mut failed) = (BTreeMap::new(), Vec::new());
        for (names, failures) in self.loops.join_all().await {
            failed.extend(failures);
            for (name, count) in names {
                *answered.entry(name).or_default() += count;
            }
        }
        (answered, failed)
    }
}

/// Waits until a backend has answered so many more requests.
async fn requests(backend: &Backend, more: usize) {
    let goal = backend.requests() + more;
    eventually(SOON, async || backend.requests() >= goal).await;
}

async fn calls_are_spread_over_all_instances(agent: &TestAgent) {
    let service = agent.name("web");
    let mut up = Vec::new();
    for name in ["one", "two", "three"] {
        up.push(instance(agent, &service, name).await);
    }
    let channel = channel_to(agent, &service, 3).await;
    let load = Load::start(&channel);
    for (backend, _) in &up {
        requests(backend, 100).await;
    }
    let (answered, failed) = load.stop().await;
    assert_eq!((answered.len(), failed.len()), (3, 0), "{failed:?}");
    for (backend, registration) in up {
        registration.close().await.unwrap();
        backend.stop().await;
    }
}

async fn an_instance_that_leaves_under_load_loses_no_call(agent: &TestAgent) {
    let service = agent.name("web");
    let (one, first) = instance(agent, &service, "one").await;
    let (two, _second) = instance(agent, &service, "two").await;
    let channel = channel_to(agent, &service, 2).await;
    let load = Load::start(&channel);
    requests(&one, 100).await;

    first.close().await.unwrap();
    eventually(SOON, async || channel.endpoints().len() == 1).await;
    tokio::time::sleep(LAME_DUCK).await;
    one.stop().await;
    requests(&two, 100).await;

    let (answered, failed) = load.stop().await;
    assert!(failed.is_empty(), "{failed:?}");
    assert!(answered["one"] >= 100 && answered["two"] >= 100);
    two.stop().await;
}

async fn an_instance_that_dies_under_load_loses_only_calls_it_had_received(agent: &TestAgent) {
    let service = agent.name("web");
    let (one, _first) = instance(agent, &service, "one").await;
    let (two, _second) = instance(agent, &service, "two").await;
    let channel = channel_to(agent, &service, 2).await;
    let load = Load::start(&channel);
    requests(&one, 100).await;

    // Nobody tells Consul: the dead instance stays in the set, and its address refuses.
    let dying = Instant::now();
    one.abort().await;
    let dead = Instant::now();
    requests(&two, 1000).await;
    assert_eq!(channel.endpoints().len(), 2);

    let (answered, failed) = load.stop().await;
    assert!(answered["two"] >= 1000);
    for failure in &failed {
        let in_flight = failure.began <= dead && failure.ended >= dying;
        assert!(
            failure.was_sent && in_flight,
            "a call failed that need not: {}, {failure:?}",
            failure.text
        );
    }
    // At most one call of each loop was on its way.
    assert!(failed.len() <= 16, "{failed:?}");
    two.stop().await;
}

async fn an_instance_that_joins_is_called(agent: &TestAgent) {
    let service = agent.name("web");
    let (one, _first) = instance(agent, &service, "one").await;
    let channel = channel_to(agent, &service, 1).await;
    let load = Load::start(&channel);
    requests(&one, 10).await;
    let (two, _second) = instance(agent, &service, "two").await;
    requests(&two, 10).await;
    let (_, failed) = load.stop().await;
    assert!(failed.is_empty(), "{failed:?}");
    one.stop().await;
    two.stop().await;
}

async fn a_service_that_nobody_offers_fails_fast(agent: &TestAgent) {
    let channel = Channel::builder(agent.client())
        .service(agent.name("nobody"))
        .build()
        .unwrap();
    let started = Instant::now();
    let err = call(&channel).await.unwrap_err();
    assert_eq!(err.kind(), ErrorKind::NoEndpoints, "{err}");
    assert!(started.elapsed() < Duration::from_secs(5));
}

async fn critical_instances_are_not_called(agent: &TestAgent) {
    use lictor::api::health::Status;
    let service = agent.name("web");
    let (one, first) = instance(agent, &service, "one").await;
    let (two, _second) = instance(agent, &service, "two").await;
    let channel = channel_to(agent, &service, 2).await;
    first.set_status(Status::Critical, "").await.unwrap();
    eventually(SOON, async || channel.endpoints().len() == 1).await;
    let before = one.requests();
    for _ in 0..50 {
        assert_eq!(call(&channel).await.unwrap(), "two");
    }
    assert_eq!(one.requests(), before);
    first.set_status(Status::Passing, "").await.unwrap();
    eventually(SOON, async || channel.endpoints().len() == 2).await;
    two.stop().await;
}

async fn critical_instances_are_a_last_resort_where_few_are_well(agent: &TestAgent) {
    use lictor::api::health::Status;
    let service = agent.name("web");
    let mut critical = Vec::new();
    let (well, _well) = instance(agent, &service, "well").await;
    for number in 0..4 {
        critical.push(instance(agent, &service, &number.to_string()).await);
    }
    let channel = Channel::builder(agent.client())
        .service(service.as_str())
        .timeout(Duration::from_secs(10))
        .critical_below(0.5)
        .build()
        .unwrap();
    eventually(SOON, async || channel.endpoints().len() == 5).await;
    for (_, registration) in &critical {
        registration.set_status(Status::Critical, "").await.unwrap();
    }
    let behind = || {
        let endpoints = channel.endpoints();
        endpoints.iter().filter(|one| one.tier == 1).count()
    };
    eventually(SOON, async || behind() == 4).await;
    for _ in 0..50 {
        assert_eq!(call(&channel).await.unwrap(), "well");
    }
    well.abort().await;
    for _ in 0..50 {
        assert_ne!(call(&channel).await.unwrap(), "well");
    }
    // Two more are well, so that most are: the others are nobody again.
    for (_, registration) in &critical[..2] {
        registration.set_status(Status::Passing, "").await.unwrap();
    }
    eventually(SOON, async || channel.endpoints().len() == 3).await;
}
