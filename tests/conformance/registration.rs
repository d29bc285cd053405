//! Registrations that keep themselves: what the catalog shows of them.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use lictor::Client;
use lictor::api::agent::{CheckDefinition, ServiceDefinition};
use lictor::api::health::Status;
use lictor::probe::{Health, Probe};
use lictor::registration::State;
use support::{eventually, eventually_some};
use tokio::time::timeout;

use crate::TestAgent;

on_both_agents![
    a_service_is_routable_when_register_returns,
    a_service_is_not_routable_before_it_says_so,
    a_service_outlives_its_ttl,
    an_id_is_made_of_name_and_address,
    a_closed_service_has_left_the_catalog,
    a_dropped_service_leaves_the_catalog,
    a_deregistered_service_comes_back,
    a_removed_check_comes_back,
    an_overwritten_service_is_taken_back,
    tags_and_meta_change_without_a_gap,
    maintenance_lasts_through_updates_and_ends,
    what_an_earlier_incarnation_left_behind_is_replaced,
    a_dropped_register_leaves_nothing,
    what_probes_find_is_what_the_catalog_shows,
];

const SOON: Duration = Duration::from_secs(30);
const TTL: Duration = Duration::from_secs(3);

fn web(name: &str) -> ServiceDefinition {
    ServiceDefinition::new(name)
        .id(name)
        .port(8080)
        .check(CheckDefinition::alive_only(TTL))
}

/// The ports of the instances that clients are told of.
async fn routable(client: &Client, name: &str) -> Vec<u16> {
    let entries = client.health().service(name).passing().await.unwrap();
    entries.iter().map(|entry| entry.service().port()).collect()
}

async fn in_catalog(client: &Client, name: &str) -> bool {
    !client.catalog().service(name).await.unwrap().is_empty()
}

async fn a_service_is_routable_when_register_returns(agent: &TestAgent) {
    let (client, name) = (agent.client(), agent.name("web"));
    let registration = client.register(web(&name)).await.unwrap();
    assert_eq!(routable(&client, &name).await, [8080]);
    registration.close().await.unwrap();
}

async fn a_service_is_not_routable_before_it_says_so(agent: &TestAgent) {
    let (client, name) = (agent.client(), agent.name("web"));
    let starting = CheckDefinition::alive_only(TTL).status(Status::Critical);
    let definition = ServiceDefinition::new(&*name).port(8080).check(starting);
    let registration = client.register(definition).await.unwrap();
    assert!(routable(&client, &name).await.is_empty());
    registration
        .set_status(Status::Passing, "ready")
        .await
        .unwrap();
    assert_eq!(routable(&client, &name).await, [8080]);
    registration
        .set_status(Status::Critical, "no disk")
        .await
        .unwrap();
    assert!(routable(&client, &name).await.is_empty());
    registration.close().await.unwrap();
}

async fn a_service_outlives_its_ttl(agent: &TestAgent) {
    let (client, name) = (agent.client(), agent.name("web"));
    let ttl = Duration::from_millis(500);
    let definition = ServiceDefinition::new(&*name)
        .port(8080)
        .check(CheckDefinition::alive_only(ttl));
    let registration = client.register(definition).await.unwrap();
    let end = tokio::time::Instant::now() + ttl * 6;
    while tokio::time::Instant::now() < end {
        assert_eq!(routable(&client, &name).await, [8080]);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    registration.close().await.unwrap();
}

async fn an_id_is_made_of_name_and_address(agent: &TestAgent) {
    let (client, name) = (agent.client(), agent.name("web"));
    let bound = SocketAddr::from((Ipv4Addr::LOCALHOST, 4711));
    let definition = ServiceDefinition::new(&*name).listener(bound);
    let registration = client.register(definition).await.unwrap();
    assert_eq!(**registration.id(), *format!("{name}-127.0.0.1-4711"));
    let entries = client.health().service(&*name).passing().await.unwrap();
    let service = entries[0].service();
    assert_eq!((service.address(), service.port()), ("127.0.0.1", 4711));
    registration.close().await.unwrap();
}

async fn a_closed_service_has_left_the_catalog(agent: &TestAgent) {
    let (client, name) = (agent.client(), agent.name("web"));
    let registration = client.register(web(&name)).await.unwrap();
    assert!(in_catalog(&client, &name).await);
    registration.close().await.unwrap();
    assert!(!in_catalog(&client, &name).await);
}

async fn a_dropped_service_leaves_the_catalog(agent: &TestAgent) {
    let (client, name) = (agent.client(), agent.name("web"));
    drop(client.register(web(&name)).await.unwrap());
    eventually(SOON, async || !in_catalog(&client, &name).await).await;
}

async fn a_deregistered_service_comes_back(agent: &TestAgent) {
    let (client, name) = (agent.client(), agent.name("web"));
    let registration = client.register(web(&name)).await.unwrap();
    client.agent().deregister(&*name).await.unwrap();
    // Long before a heartbeat would have noticed.
    eventually(TTL / 4, async || routable(&client, &name).await == [8080]).await;
    registration.close().await.unwrap();
}

async fn a_removed_check_comes_back(agent: &TestAgent) {
    let (client, name) = (agent.client(), agent.name("web"));
    let registration = client.register(web(&name)).await.unwrap();
    let check = format!("service:{name}");
    client.agent().deregister_check(&*check).await.unwrap();
    eventually(SOON, async || {
        client.agent().checks().await.unwrap().contains_key(&*check)
    })
    .await;
    registration.close().await.unwrap();
}

async fn an_overwritten_service_is_taken_back(agent: &TestAgent) {
    let (client, name) = (agent.client(), agent.name("web"));
    let mut registration = client.register(web(&name)).await.unwrap();
    let other = ServiceDefinition::new(&*name).id(&*name).port(9);
    client.agent().register(&other).await.unwrap();
    let told = timeout(SOON, registration.state_changed()).await.unwrap();
    assert!(matches!(told, State::Contested), "{told}");
    eventually(SOON, async || routable(&client, &name).await == [8080]).await;
    registration.close().await.unwrap();
}

async fn tags_and_meta_change_without_a_gap(agent: &TestAgent) {
    let (client, name) = (agent.client(), agent.name("web"));
    let registration = client.register(web(&name)).await.unwrap();
    let watching = async {
        loop {
            assert_eq!(routable(&client, &name).await, [8080]);
        }
    };
    let changing = async {
        for version in 0..20 {
            registration
                .set_tags([format!("v{version}")])
                .await
                .unwrap();
            let value = version.to_string();
            registration.set_meta("version", value).await.unwrap();
        }
    };
    tokio::select! {
        () = watching => {}
        () = changing => {}
    }
    let entries = client.health().service(&*name).passing().await.unwrap();
    let service = entries[0].service();
    assert_eq!(service.tags().iter().collect::<Vec<_>>(), ["v19"]);
    assert_eq!(service.meta().get("version"), Some("19"));
    registration.close().await.unwrap();
}

async fn maintenance_lasts_through_updates_and_ends(agent: &TestAgent) {
    let (client, name) = (agent.client(), agent.name("web"));
    let registration = client.register(web(&name)).await.unwrap();
    registration.maintenance(Some("moving")).await.unwrap();
    assert!(routable(&client, &name).await.is_empty());
    registration.set_tags(["new"]).await.unwrap();
    assert!(routable(&client, &name).await.is_empty());
    client.agent().deregister(&*name).await.unwrap();
    let back = eventually_some(SOON, async || {
        let health = client.agent().health_by_id(&*name).await.unwrap();
        health.into_value().map(|health| health.status())
    });
    assert_eq!(back.await, Status::Maintenance);
    registration.maintenance(None).await.unwrap();
    eventually(SOON, async || routable(&client, &name).await == [8080]).await;

    // One that an operator switched on stays, too.
    client
        .agent()
        .enable_service_maintenance(&*name, "operator")
        .await
        .unwrap();
    registration.set_tags(["newer"]).await.unwrap();
    assert!(routable(&client, &name).await.is_empty());
    registration.close().await.unwrap();
}

async fn what_an_earlier_incarnation_left_behind_is_replaced(agent: &TestAgent) {
    let (client, name) = (agent.client(), agent.name("web"));
    let stale = CheckDefinition::alive_only(TTL).id(format!("{name}-stale"));
    let own = CheckDefinition::alive_only(TTL).id(format!("service:{name}"));
    let earlier = ServiceDefinition::new(&*name).id(&*name).port(1);
    let earlier = earlier.check(own).check(stale);
    client.agent().register(&earlier).await.unwrap();
    let registration = client.register(web(&name)).await.unwrap();
    assert_eq!(routable(&client, &name).await, [8080]);
    registration.close().await.unwrap();
}

async fn a_dropped_register_leaves_nothing(agent: &TestAgent) {
    let client = agent.client();
    let names: Vec<_> = (0..12).map(|n| agent.name(&format!("web{n}"))).collect();
    for (step, name) in names.iter().enumerate() {
        let limit = Duration::from_micros(300 * step as u64);
        drop(timeout(limit, client.register(web(name))).await);
    }
    for name in &names {
        eventually(SOON, async || {
            client.agent().service(&**name).await.unwrap().is_none()
        })
        .await;
    }
    // None comes late.
    tokio::time::sleep(Duration::from_secs(2)).await;
    for name in &names {
        assert!(!in_catalog(&client, name).await, "{name}");
    }
}

async fn what_probes_find_is_what_the_catalog_shows(agent: &TestAgent) {
    let (client, name) = (agent.client(), agent.name("web"));
    let full = Arc::new(AtomicBool::new(true));
    let looked = Arc::clone(&full);
    let disk = Probe::new("disk", move || {
        let full = looked.load(Ordering::SeqCst);
        async move {
            if full {
                Health::critical("full")
            } else {
                Health::passing("")
            }
        }
    })
    .interval(Duration::from_millis(50));
    let registration = client.register(web(&name)).probe(disk).await.unwrap();
    assert!(routable(&client, &name).await.is_empty());
    // The agent has the text at once; the catalog, because the status is what it was, minutes later.
    let checks = client.agent().checks().await.unwrap();
    let own = checks
        .iter()
        .find(|(_, check)| check.service_name().is_some_and(|n| *n == *name));
    assert_eq!(own.unwrap().1.output(), "disk (critical): full");
    for _ in 0..3 {
        full.store(false, Ordering::SeqCst);
        eventually(SOON, async || routable(&client, &name).await == [8080]).await;
        full.store(true, Ordering::SeqCst);
        eventually(SOON, async || routable(&client, &name).await.is_empty()).await;
    }
    registration.close().await.unwrap();
}
