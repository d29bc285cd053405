//! Instances with their checks.

use std::time::Duration;

use lictor::api::Cached;
use lictor::api::agent::{CheckDefinition, ServiceDefinition};
use lictor::api::catalog::{Entry, NewCheck, NewService};
use lictor::api::health::{ServiceKind, State, Status};
use lictor::{Client, ErrorKind};

use crate::{Kind, TestAgent, woken};

on_both_agents![
    a_service_that_nobody_registered_is_an_empty_list,
    an_instance_has_what_was_registered,
    an_instance_without_an_address_is_called_at_its_nodes,
    a_new_check_is_critical_until_it_is_updated,
    only_passing_instances_are_listed_on_request,
    the_worst_check_is_the_status_of_the_instance,
    maintenance_is_told_from_other_critical_states,
    tags_must_all_fit_in_any_case,
    a_filter_selects_instances,
    checks_are_listed_by_service_node_and_state,
    a_definition_in_the_catalog_comes_back,
    the_status_of_a_check_wakes_who_waits_for_it,
    another_service_does_not_wake_who_waits,
    a_cached_answer_says_so,
    nodes_are_selected_by_their_metadata,
    the_nearest_may_come_first,
    a_service_outside_of_the_mesh_has_no_proxies,
    a_native_service_is_its_own_proxy,
];

/// Longer than any test.
const LONG: Duration = Duration::from_secs(60);

/// A TTL that does not run out during a test.
fn ttl(status: Status) -> CheckDefinition {
    CheckDefinition::alive_only(Duration::from_secs(600)).status(status)
}

fn instance(name: &str, id: &str, status: Status) -> ServiceDefinition {
    ServiceDefinition::new(name)
        .id(id)
        .address("10.0.0.1")
        .port(8080_u16)
        .check(ttl(status))
}

async fn register(client: &Client, definition: &ServiceDefinition) {
    client.agent().register(definition).await.unwrap();
}

async fn ids(
    agent: &TestAgent,
    read: lictor::api::Read<lictor::api::health::Instances>,
) -> Vec<String> {
    let own = agent.name("");
    let mut ids: Vec<String> = read
        .await
        .unwrap()
        .iter()
        .map(|entry| entry.service().id().strip_prefix(&own).unwrap().to_owned())
        .collect();
    ids.sort_unstable();
    ids
}

async fn a_service_that_nobody_registered_is_an_empty_list(agent: &TestAgent) {
    let health = agent.client().health();
    let none = health.service(agent.name("none")).await.unwrap();
    assert!(none.is_empty());
    assert!(none.meta().index().unwrap() > 0);
    assert_eq!(none.meta().known_leader(), Some(true));
    assert!(health.connect(agent.name("none")).await.unwrap().is_empty());
    assert!(health.checks(agent.name("none")).await.unwrap().is_empty());
    assert!(health.node(agent.name("none")).await.unwrap().is_empty());
}

async fn an_instance_has_what_was_registered(agent: &TestAgent) {
    let (client, web, id) = (agent.client(), agent.name("Web"), agent.name("web 1/ü"));
    let definition = ServiceDefinition::new(web.as_str())
        .id(id.as_str())
        .address("10.1.2.3")
        .port(8080_u16)
        .tag("v1")
        .tag("Eu")
        .meta("version", "1.2")
        .weights(10_u16, 2_u16)
        .tagged_address("wan", "192.0.2.1", 80_u16)
        .enable_tag_override()
        .check(ttl(Status::Passing).notes("why"));
    register(&client, &definition).await;

    let found = client.health().service(web.as_str()).await.unwrap();
    assert_eq!(found.len(), 1);
    let entry = &found[0];
    let service = entry.service();
    assert_eq!(
        (service.id().as_str(), service.name().as_str()),
        (&*id, &*web)
    );
    assert_eq!(service.kind(), ServiceKind::Typical);
    assert_eq!(service.tags().iter().collect::<Vec<_>>(), ["v1", "Eu"]);
    assert_eq!((entry.address(), entry.port()), ("10.1.2.3", 8080));
    assert_eq!(
        service.meta().iter().collect::<Vec<_>>(),
        [("version", "1.2")]
    );
    let weights = service.weights();
    assert_eq!((weights.passing(), weights.warning()), (10, 2));
    let wan = service.tagged_addresses().get("wan").unwrap();
    assert_eq!((wan.address(), wan.port()), ("192.0.2.1", 80));
    // Consul adds the address itself under the names of its family.
    let lan = service.tagged_addresses().get("lan_ipv4").unwrap();
    assert_eq!((lan.address(), lan.port()), ("10.1.2.3", 8080));
    assert!(service.enable_tag_override());
    assert!(service.proxy().is_none() && service.connect().is_none());
    assert!(service.create_index() > 0 && service.modify_index() >= service.create_index());
    assert!(found.meta().index().unwrap() >= service.modify_index());

    let about = client.agent().about().await.unwrap();
    let node = entry.node();
    assert_eq!(node.name(), about.config().node_name());
    assert_eq!(node.id().len(), 36);
    assert!(!node.address().is_empty() && node.datacenter().is_some());
    assert_eq!(node.tagged_addresses().get("lan"), Some(node.address()));

    let checks = entry.checks();
    assert_eq!(checks.len(), 2, "{checks:?}");
    let node_check = checks
        .iter()
        .find(|check| &**check.id() == "serfHealth")
        .unwrap();
    assert_eq!(node_check.status(), Status::Passing);
    assert!(node_check.service_id().is_none() && node_check.service_tags().is_empty());
    let check = checks
        .iter()
        .find(|check| check.service_id().is_some())
        .unwrap();
    assert_eq!(check.id().as_str(), format!("service:{id}"));
    assert_eq!(check.name(), format!("Service '{web}' check"));
    assert_eq!((check.kind(), check.notes()), ("ttl", "why"));
    assert_eq!(check.node(), node.name());
    assert_eq!(check.service_id().unwrap().as_str(), id);
    assert_eq!(check.service_name().unwrap().as_str(), web);
    assert_eq!(check.service_tags(), service.tags());
    assert_eq!((entry.status(), entry.weight()), (Status::Passing, 10));
}

async fn an_instance_without_an_address_is_called_at_its_nodes(agent: &TestAgent) {
    let (client, web) = (agent.client(), agent.name("web"));
    register(&client, &ServiceDefinition::new(web.as_str())).await;
    let found = client.health().service(web.as_str()).await.unwrap();
    let entry = &found[0];
    assert_eq!(entry.service().id().as_str(), web);
    assert_eq!((entry.service().address(), entry.port()), ("", 0));
    assert_eq!(entry.address(), entry.node().address());
    assert!(entry.service().tags().is_empty() && entry.service().meta().is_empty());
    assert!(entry.service().tagged_addresses().is_empty());
    assert_eq!(entry.status(), Status::Passing);
    assert_eq!(entry.weight(), 1);
}

async fn a_new_check_is_critical_until_it_is_updated(agent: &TestAgent) {
    let (client, web) = (agent.client(), agent.name("web"));
    let check = CheckDefinition::alive_only(Duration::from_secs(600));
    register(&client, &ServiceDefinition::new(web.as_str()).check(check)).await;
    let status = async || client.health().service(web.as_str()).await.unwrap()[0].status();
    assert_eq!(status().await, Status::Critical);
    let check = format!("service:{web}");
    for wanted in [Status::Passing, Status::Warning, Status::Critical] {
        let agent = client.agent();
        agent
            .update_check(check.as_str(), wanted, "said")
            .await
            .unwrap();
        assert_eq!(status().await, wanted);
        let found = client.health().checks(web.as_str()).await.unwrap();
        assert_eq!((found.len(), found[0].status()), (1, wanted));
        assert_eq!(found[0].output(), "said");
    }
}

async fn only_passing_instances_are_listed_on_request(agent: &TestAgent) {
    let (client, web) = (agent.client(), agent.name("web"));
    for (id, status) in [
        ("a", Status::Passing),
        ("b", Status::Warning),
        ("c", Status::Critical),
    ] {
        register(&client, &instance(&web, &agent.name(id), status)).await;
    }
    let health = client.health();
    assert_eq!(
        ids(agent, health.service(web.as_str())).await,
        ["a", "b", "c"]
    );
    assert_eq!(
        ids(agent, health.service(web.as_str()).passing()).await,
        ["a"]
    );
}

async fn the_worst_check_is_the_status_of_the_instance(agent: &TestAgent) {
    let (client, web) = (agent.client(), agent.name("web"));
    let definition = ServiceDefinition::new(web.as_str())
        .weights(5_u16, 2_u16)
        .check(ttl(Status::Passing).id(agent.name("one")))
        .check(ttl(Status::Warning).id(agent.name("two")));
    register(&client, &definition).await;
    let found = client.health().service(web.as_str()).await.unwrap();
    assert_eq!((found[0].status(), found[0].weight()), (Status::Warning, 2));
    let agent_api = client.agent();
    let one = agent.name("one");
    agent_api
        .update_check(one, Status::Critical, "")
        .await
        .unwrap();
    let found = client.health().service(web.as_str()).await.unwrap();
    assert_eq!(
        (found[0].status(), found[0].weight()),
        (Status::Critical, 0)
    );
    assert_eq!(found[0].checks().len(), 3);
}

async fn maintenance_is_told_from_other_critical_states(agent: &TestAgent) {
    let (client, web) = (agent.client(), agent.name("web"));
    register(&client, &instance(&web, &web, Status::Passing)).await;
    let maintenance = client.agent();
    maintenance
        .enable_service_maintenance(web.as_str(), "new disks")
        .await
        .unwrap();
    let found = client.health().service(web.as_str()).await.unwrap();
    assert_eq!(
        (found[0].status(), found[0].weight()),
        (Status::Maintenance, 0)
    );
    let id = format!("_service_maintenance:{web}");
    let check = found[0]
        .checks()
        .iter()
        .find(|check| *check.id() == id.as_str())
        .unwrap();
    assert_eq!(check.notes(), "new disks");
    assert_eq!(check.status(), Status::Critical);
    assert!(
        client
            .health()
            .service(web.as_str())
            .passing()
            .await
            .unwrap()
            .is_empty()
    );
    maintenance
        .disable_service_maintenance(web.as_str())
        .await
        .unwrap();
    let found = client.health().service(web.as_str()).await.unwrap();
    assert_eq!(found[0].status(), Status::Passing);
}

async fn tags_must_all_fit_in_any_case(agent: &TestAgent) {
    let (client, web) = (agent.client(), agent.name("web"));
    let tagged = |id: &str, tags: &[&str]| {
        instance(&web, &agent.name(id), Status::Passing)
            .tags(tags.iter().map(|&tag| tag.to_owned()))
    };
    register(&client, &tagged("a", &["v1", "Primary"])).await;
    register(&client, &tagged("b", &["v1"])).await;
    register(&client, &tagged("c", &[])).await;
    let service = || client.health().service(web.as_str());
    assert_eq!(ids(agent, service().tag("v1")).await, ["a", "b"]);
    assert_eq!(ids(agent, service().tag("v1").tag("primary")).await, ["a"]);
    assert_eq!(ids(agent, service().tag("V1").tag("PRIMARY")).await, ["a"]);
    assert!(ids(agent, service().tag("v2")).await.is_empty());
}

async fn a_filter_selects_instances(agent: &TestAgent) {
    let (client, web) = (agent.client(), agent.name("web"));
    for (id, version) in [("a", "1"), ("b", "2")] {
        let definition = instance(&web, &agent.name(id), Status::Passing)
            .tag(format!("v{version}"))
            .meta("version", version);
        register(&client, &definition).await;
    }
    for (filter, expected) in [
        (r#"Service.Meta.version == "2""#, vec!["b"]),
        (r#""v1" in Service.Tags"#, vec!["a"]),
        (
            r#"Service.Tags contains "v1" or Service.Meta.version == "2""#,
            vec!["a", "b"],
        ),
        (
            r#"Service.Port == 8080 and not ("v1" in Service.Tags)"#,
            vec!["b"],
        ),
        (r#"Service.Port == 1"#, vec![]),
        (r#"Checks.Status == "critical""#, vec![]),
    ] {
        let read = client.health().service(web.as_str()).filter(filter);
        assert_eq!(ids(agent, read).await, expected, "{filter}");
    } // The embedded agent has no regular expressions, and says so.
    let read = client.health().service(web.as_str());
    let read = read.filter(r#"Service.ID matches "-b$""#);
    match agent.kind() {
        Kind::Consul(..) => assert_eq!(ids(agent, read).await, ["b"]),
        Kind::Embedded => {
            let err = read.await.unwrap_err();
            assert_eq!(err.kind(), ErrorKind::Unsupported);
        }
    }
}

async fn checks_are_listed_by_service_node_and_state(agent: &TestAgent) {
    let (client, web) = (agent.client(), agent.name("web"));
    register(&client, &instance(&web, &web, Status::Warning)).await;
    let health = client.health();
    let id = format!("service:{web}");
    let of_service = health.checks(web.as_str()).await.unwrap();
    assert_eq!(of_service.len(), 1);
    assert_eq!(*of_service[0].id(), id.as_str());
    let node = of_service[0].node().to_string();
    let of_node = health.node(node).await.unwrap();
    assert!(of_node.iter().any(|check| &**check.id() == "serfHealth"));
    assert!(of_node.iter().any(|check| *check == of_service[0]));
    for (state, there) in [
        (State::Any, true),
        (State::Warning, true),
        (State::Passing, false),
        (State::Critical, false),
    ] {
        let found = health.state(state).await.unwrap();
        let is_there = found.iter().any(|check| *check.id() == id.as_str());
        assert_eq!(is_there, there, "{state:?}");
    }
}

async fn a_definition_in_the_catalog_comes_back(agent: &TestAgent) {
    let (client, node, db) = (agent.client(), agent.name("node"), agent.name("db"));
    let entry = Entry::new(node.as_str(), "192.0.2.9")
        .service(NewService::new(db.as_str()).port(5432))
        .check(
            NewCheck::new("alive", "Database answers", Status::Passing)
                .service_id(db.as_str())
                .notes("from outside")
                .output("ok")
                .http("http://192.0.2.9/health")
                .interval(Duration::from_secs(30))
                .timeout(Duration::from_millis(1500))
                .deregister_critical_service_after(Duration::from_secs(5400)),
        );
    client.catalog().register(entry).await.unwrap();
    let found = client.health().service(db.as_str()).await.unwrap();
    assert_eq!((found[0].address(), found[0].port()), ("192.0.2.9", 5432));
    let check = &found[0].checks()[0];
    assert_eq!((check.notes(), check.output()), ("from outside", "ok"));
    let how = check.definition().unwrap();
    assert_eq!(how.http(), Some("http://192.0.2.9/health"));
    assert_eq!(how.interval(), Some(Duration::from_secs(30)));
    assert_eq!(how.timeout(), Some(Duration::from_millis(1500)));
    assert_eq!(
        how.deregister_critical_service_after(),
        Some(Duration::from_secs(5400))
    );
    client.catalog().deregister_node(node).await.unwrap();
}

async fn the_status_of_a_check_wakes_who_waits_for_it(agent: &TestAgent) {
    let (client, web) = (agent.client(), agent.name("web"));
    register(&client, &instance(&web, &web, Status::Passing)).await;
    let first = client.health().service(web.as_str()).await.unwrap();
    let index = first.meta().index().unwrap();
    let read = client.health().service(web.as_str());
    let found = woken(read.wait_for_change(index, LONG), async || {
        let (api, check) = (client.agent(), format!("service:{web}"));
        api.update_check(check, Status::Critical, "").await.unwrap();
    });
    let found = found.await.unwrap();
    assert!(found.meta().index().unwrap() > index);
    assert_eq!(found[0].status(), Status::Critical);

    let index = found.meta().index().unwrap();
    let read = client.health().service(web.as_str());
    let gone = woken(read.wait_for_change(index, LONG), async || {
        client.agent().deregister(web.as_str()).await.unwrap();
    });
    let gone = gone.await.unwrap();
    assert!(gone.is_empty());
}

async fn another_service_does_not_wake_who_waits(agent: &TestAgent) {
    let (client, web, other) = (agent.client(), agent.name("web"), agent.name("other"));
    register(&client, &instance(&web, &web, Status::Passing)).await;
    let first = client.health().service(web.as_str()).await.unwrap();
    let index = first.meta().index().unwrap();
    let wait = Duration::from_millis(500);
    let read = client.health().service(web.as_str());
    let found = woken(read.wait_for_change(index, wait), async || {
        register(&client, &instance(&other, &other, Status::Passing)).await;
    });
    let found = found.await.unwrap();
    assert_eq!(found.meta().index(), Some(index));
    assert_eq!(*found, *first);
}

async fn a_cached_answer_says_so(agent: &TestAgent) {
    let (client, web) = (agent.client(), agent.name("web"));
    register(&client, &instance(&web, &web, Status::Passing)).await;
    let read = || {
        client
            .health()
            .service(web.as_str())
            .cached(Cached::any_age())
    };
    let first = read().await.unwrap();
    assert!(!first.meta().cache().unwrap().hit);
    let second = read().await.unwrap();
    let cache = second.meta().cache().unwrap();
    assert!(cache.hit && cache.age.is_some());
    assert_eq!(*first, *second);
    let uncached = client.health().service(web.as_str()).await.unwrap();
    assert_eq!(uncached.meta().cache(), None);
}

async fn nodes_are_selected_by_their_metadata(agent: &TestAgent) {
    let (client, web) = (agent.client(), agent.name("web"));
    for (stem, rack) in [("n1", "r1"), ("n2", "r2")] {
        let entry = Entry::new(agent.name(stem), "192.0.2.9")
            .meta("rack", rack)
            .meta("os", "linux")
            .service(NewService::new(web.as_str()).id(agent.name(stem)));
        client.catalog().register(entry).await.unwrap();
    }
    let service = || client.health().service(web.as_str());
    assert_eq!(
        ids(agent, service().node_meta("os", "linux")).await,
        ["n1", "n2"]
    );
    let both = service().node_meta("os", "linux").node_meta("rack", "r2");
    assert_eq!(ids(agent, both).await, ["n2"]);
    assert!(
        ids(agent, service().node_meta("rack", "r3"))
            .await
            .is_empty()
    );
    for stem in ["n1", "n2"] {
        client
            .catalog()
            .deregister_node(agent.name(stem))
            .await
            .unwrap();
    }
}

async fn the_nearest_may_come_first(agent: &TestAgent) {
    let (client, web) = (agent.client(), agent.name("web"));
    for id in ["a", "b"] {
        register(&client, &instance(&web, &agent.name(id), Status::Passing)).await;
    }
    for near in ["_agent", "no-such-node"] {
        let read = client.health().service(web.as_str()).near(near);
        assert_eq!(ids(agent, read).await, ["a", "b"], "{near}");
    }
}

async fn a_service_outside_of_the_mesh_has_no_proxies(agent: &TestAgent) {
    let (client, web) = (agent.client(), agent.name("web"));
    register(&client, &instance(&web, &web, Status::Passing)).await;
    assert!(
        client
            .health()
            .connect(web.as_str())
            .await
            .unwrap()
            .is_empty()
    );
    assert!(
        client
            .catalog()
            .connect(web.as_str())
            .await
            .unwrap()
            .is_empty()
    );
}

async fn a_native_service_is_its_own_proxy(agent: &TestAgent) {
    let (client, web) = (agent.client(), agent.name("web"));
    let native = instance(&web, &web, Status::Passing).connect_native();
    register(&client, &native).await;
    let found = client.health().connect(web.as_str()).await.unwrap();
    assert_eq!(found[0].service().id().as_str(), web);
    assert!(found[0].service().connect().unwrap().native());
    let found = client.catalog().connect(web.as_str()).await.unwrap();
    assert!(found[0].service().connect().unwrap().native());
}
