//! The catalog.

use std::time::Duration;

use lictor::ErrorKind;
use lictor::api::agent::ServiceDefinition;
use lictor::api::catalog::{Entry, NewCheck, NewService};
use lictor::api::health::Status;

use crate::{TestAgent, woken};

on_both_agents![
    there_is_one_datacenter_and_it_answers_by_name,
    the_agents_own_node_is_listed,
    services_are_listed_with_the_tags_of_all_instances,
    an_instance_has_what_was_registered,
    instances_are_selected_by_tag_and_filter,
    a_node_is_listed_with_its_instances,
    an_unknown_node_is_none,
    what_is_put_in_by_hand_is_there_until_it_is_taken_out,
    a_node_is_updated_unless_that_is_unwanted,
    an_entry_that_consul_refuses_is_told_as_refused,
    nodes_are_selected_by_metadata_and_filter,
    a_new_service_wakes_who_waits_for_the_list,
    a_changed_service_wakes_who_waits_for_it,
];

/// Longer than any test.
const LONG: Duration = Duration::from_secs(60);

async fn there_is_one_datacenter_and_it_answers_by_name(agent: &TestAgent) {
    let catalog = agent.client().catalog();
    let all = catalog.datacenters().await.unwrap().into_value();
    assert_eq!(all.len(), 1);
    let there = catalog.nodes().datacenter(all[0].as_str()).await.unwrap();
    assert!(!there.is_empty());
    let elsewhere = catalog.nodes().datacenter("nowhere").await.unwrap_err();
    assert_eq!(elsewhere.kind(), ErrorKind::UnknownDatacenter);
}

async fn the_agents_own_node_is_listed(agent: &TestAgent) {
    let client = agent.client();
    let about = client.agent().about().await.unwrap();
    let nodes = client.catalog().nodes().await.unwrap();
    assert!(nodes.meta().index().is_some());
    let own = nodes
        .iter()
        .find(|node| node.name() == about.config().node_name())
        .unwrap();
    assert_eq!(own.id().len(), 36);
    assert_eq!(own.datacenter().unwrap(), about.config().datacenter());
    assert_eq!(own.tagged_addresses().get("lan"), Some(own.address()));
    assert!(own.create_index() > 0 && own.modify_index() >= own.create_index());
}

async fn services_are_listed_with_the_tags_of_all_instances(agent: &TestAgent) {
    let (client, web, api) = (agent.client(), agent.name("web"), agent.name("api"));
    for (id, tag) in [("w1", "v1"), ("w2", "v2")] {
        let definition = ServiceDefinition::new(web.as_str())
            .id(agent.name(id))
            .tag(tag)
            .tag("both");
        client.agent().register(&definition).await.unwrap();
    }
    let definition = ServiceDefinition::new(api.as_str());
    client.agent().register(&definition).await.unwrap();

    let all = client.catalog().services().await.unwrap();
    assert!(all.is_sorted_by(|one, other| one.name() < other.name()));
    let tags = |name: &str| -> Option<Vec<String>> {
        let found = all.iter().find(|service| &**service.name() == name)?;
        let mut tags: Vec<String> = found.tags().iter().map(str::to_owned).collect();
        tags.sort_unstable();
        Some(tags)
    };
    assert_eq!(tags(&web).unwrap(), ["both", "v1", "v2"]);
    assert!(tags(&api).unwrap().is_empty());
    assert!(tags("consul").is_some());

    client.agent().deregister(api.as_str()).await.unwrap();
    let all = client.catalog().services().await.unwrap();
    assert!(all.iter().all(|service| *service.name() != api.as_str()));
}

async fn an_instance_has_what_was_registered(agent: &TestAgent) {
    let (client, web, id) = (agent.client(), agent.name("web"), agent.name("w1"));
    let definition = ServiceDefinition::new(web.as_str())
        .id(id.as_str())
        .address("10.1.2.3")
        .port(8080_u16)
        .tag("v1")
        .meta("version", "1.2")
        .weights(10_u16, 2_u16)
        .enable_tag_override();
    client.agent().register(&definition).await.unwrap();
    let found = client.catalog().service(web.as_str()).await.unwrap();
    assert_eq!(found.len(), 1);
    let (node, service) = (found[0].node(), found[0].service());
    assert_eq!(
        (service.id().as_str(), service.name().as_str()),
        (&*id, &*web)
    );
    assert_eq!((found[0].address(), found[0].port()), ("10.1.2.3", 8080));
    assert!(service.tags().contains("v1"));
    assert_eq!(service.meta().get("version"), Some("1.2"));
    let weights = service.weights();
    assert_eq!((weights.passing(), weights.warning()), (10, 2));
    assert!(service.enable_tag_override());
    let lan = service.tagged_addresses().get("lan_ipv4").unwrap();
    assert_eq!((lan.address(), lan.port()), ("10.1.2.3", 8080));
    assert!(service.proxy().is_none() && service.connect().is_none());
    assert!(service.modify_index() > 0);
    let about = client.agent().about().await.unwrap();
    assert_eq!(node.name(), about.config().node_name());
    assert_eq!(node.id().len(), 36);
    let health = client.health().service(web.as_str()).await.unwrap();
    assert_eq!(health[0].service(), service);
    assert!(
        client
            .catalog()
            .service(agent.name("none"))
            .await
            .unwrap()
            .is_empty()
    );
}

async fn instances_are_selected_by_tag_and_filter(agent: &TestAgent) {
    let (client, web) = (agent.client(), agent.name("web"));
    for (id, tags) in [("a", &["v1", "Eu"][..]), ("b", &["v1"])] {
        let definition = ServiceDefinition::new(web.as_str())
            .id(agent.name(id))
            .tags(tags.iter().copied());
        client.agent().register(&definition).await.unwrap();
    }
    let count =
        async |read: lictor::api::Read<lictor::api::catalog::Instances>| read.await.unwrap().len();
    let service = || client.catalog().service(web.as_str());
    assert_eq!(count(service().tag("v1")).await, 2);
    assert_eq!(count(service().tag("V1").tag("eu")).await, 1);
    assert_eq!(count(service().tag("v2")).await, 0);
    assert_eq!(count(service().filter(r#""Eu" in ServiceTags"#)).await, 1);
    assert_eq!(count(service().filter("ServicePort == 9")).await, 0);
}

async fn a_node_is_listed_with_its_instances(agent: &TestAgent) {
    let (client, name) = (agent.client(), agent.name("node"));
    for id in ["b", "a"] {
        let entry = Entry::new(name.as_str(), "192.0.2.9")
            .service(NewService::new(agent.name("db")).id(id).port(5432));
        client.catalog().register(entry).await.unwrap();
    }
    for read in [
        client.catalog().node(name.as_str()),
        client.catalog().node_services(name.as_str()),
    ] {
        let found = read.await.unwrap().into_value().unwrap();
        assert_eq!(found.node().name().as_str(), name);
        assert_eq!(found.node().address(), "192.0.2.9");
        let ids: Vec<_> = found
            .services()
            .iter()
            .map(|one| one.id().as_str())
            .collect();
        assert_eq!(ids, ["a", "b"]);
        assert_eq!(found.services()[0].port(), 5432);
    }
    client.catalog().deregister_node(name).await.unwrap();
}

async fn an_unknown_node_is_none(agent: &TestAgent) {
    let catalog = agent.client().catalog();
    let unknown = catalog.node(agent.name("none")).await.unwrap();
    assert_eq!(*unknown, None);
    assert!(unknown.meta().index().is_some());
    assert_eq!(
        *catalog.node_services(agent.name("none")).await.unwrap(),
        None
    );
}

async fn what_is_put_in_by_hand_is_there_until_it_is_taken_out(agent: &TestAgent) {
    let (client, node, db) = (agent.client(), agent.name("node"), agent.name("db"));
    let catalog = client.catalog();
    let entry = Entry::new(node.as_str(), "192.0.2.9")
        .tagged_address("wan", "198.51.100.1")
        .meta("external-node", "true")
        .service(
            NewService::new(db.as_str())
                .id("db-1")
                .tag("primary")
                .address("db.example.org")
                .port(5432)
                .tagged_address("wan", "198.51.100.1", 5433)
                .meta("engine", "pg")
                .weights(3, 0)
                .enable_tag_override(),
        )
        .check(NewCheck::new("node-alive", "Node", Status::Passing))
        .check(NewCheck::new("db-alive", "Db", Status::Warning).service_id("db-1"));
    catalog.register(entry).await.unwrap();

    let found = client.health().service(db.as_str()).await.unwrap();
    let entry = &found[0];
    assert_eq!(entry.node().id(), "");
    assert_eq!(entry.node().meta().get("external-node"), Some("true"));
    assert_eq!(
        entry.node().tagged_addresses().get("wan"),
        Some("198.51.100.1")
    );
    assert_eq!((entry.address(), entry.port()), ("db.example.org", 5432));
    let service = entry.service();
    assert_eq!(service.tagged_addresses().get("wan").unwrap().port(), 5433);
    assert_eq!(service.meta().get("engine"), Some("pg"));
    assert_eq!(
        (service.weights().passing(), service.weights().warning()),
        (3, 0)
    );
    assert!(service.enable_tag_override());
    assert_eq!(entry.checks().len(), 2);
    assert_eq!(entry.status(), Status::Warning);

    catalog
        .deregister_check(node.as_str(), "db-alive")
        .await
        .unwrap();
    let found = client.health().service(db.as_str()).await.unwrap();
    assert_eq!(
        (found[0].checks().len(), found[0].status()),
        (1, Status::Passing)
    );
    catalog
        .deregister_service(node.as_str(), "db-1")
        .await
        .unwrap();
    assert!(
        client
            .health()
            .service(db.as_str())
            .await
            .unwrap()
            .is_empty()
    );
    assert_eq!(client.health().node(node.as_str()).await.unwrap().len(), 1);
    catalog.deregister_node(node.as_str()).await.unwrap();
    assert_eq!(*catalog.node(node.as_str()).await.unwrap(), None);

    // What is gone can be taken out again.
    catalog
        .deregister_check(node.as_str(), "db-alive")
        .await
        .unwrap();
    catalog
        .deregister_service(node.as_str(), "db-1")
        .await
        .unwrap();
    catalog.deregister_node(node.as_str()).await.unwrap();
}

async fn a_node_is_updated_unless_that_is_unwanted(agent: &TestAgent) {
    let (client, name) = (agent.client(), agent.name("node"));
    let address = async |entry: Entry| {
        client.catalog().register(entry).await.unwrap();
        let found = client.catalog().node(name.as_str()).await.unwrap();
        found.into_value().unwrap().node().address().to_owned()
    };
    assert_eq!(
        address(Entry::new(name.as_str(), "192.0.2.1")).await,
        "192.0.2.1"
    );
    let kept = Entry::new(name.as_str(), "192.0.2.2").skip_node_update();
    assert_eq!(address(kept).await, "192.0.2.1");
    assert_eq!(
        address(Entry::new(name.as_str(), "192.0.2.3")).await,
        "192.0.2.3"
    );
    client
        .catalog()
        .deregister_node(name.as_str())
        .await
        .unwrap();
}

async fn an_entry_that_consul_refuses_is_told_as_refused(agent: &TestAgent) {
    let catalog = agent.client().catalog();
    let entry = Entry::new(agent.name("node"), "192.0.2.1").id("not-a-uuid");
    let err = catalog.register(entry).await.unwrap_err();
    assert_eq!(err.kind(), ErrorKind::Refused, "{err}");
    assert_eq!(*catalog.node(agent.name("node")).await.unwrap(), None);
}

async fn nodes_are_selected_by_metadata_and_filter(agent: &TestAgent) {
    let client = agent.client();
    for (stem, rack) in [("n1", "r1"), ("n2", "r2")] {
        let entry = Entry::new(agent.name(stem), "192.0.2.9")
            .meta("rack", rack)
            .meta("of", agent.name("case"));
        client.catalog().register(entry).await.unwrap();
    }
    let nodes = || client.catalog().nodes().node_meta("of", agent.name("case"));
    let names = async |read: lictor::api::Read<lictor::api::catalog::Nodes>| {
        let mut names: Vec<String> = read
            .await
            .unwrap()
            .iter()
            .map(|node| node.name().to_string())
            .collect();
        names.sort_unstable();
        names
    };
    let (n1, n2) = (agent.name("n1"), agent.name("n2"));
    assert_eq!(names(nodes()).await, [n1.clone(), n2.clone()]);
    assert_eq!(names(nodes().node_meta("rack", "r2")).await, [n2.as_str()]);
    assert_eq!(
        names(nodes().filter(r#"Meta.rack == "r1""#)).await,
        [n1.as_str()]
    );
    assert_eq!(names(nodes().near("_agent")).await.len(), 2);
    for name in [n1, n2] {
        client.catalog().deregister_node(name).await.unwrap();
    }
}

async fn a_new_service_wakes_who_waits_for_the_list(agent: &TestAgent) {
    let (client, web) = (agent.client(), agent.name("web"));
    let definition = ServiceDefinition::new(web.as_str());
    let mut index = client
        .catalog()
        .services()
        .await
        .unwrap()
        .meta()
        .index()
        .unwrap();
    let listed = async {
        loop {
            let read = client.catalog().services();
            let found = read.wait_for_change(index, LONG).await.unwrap();
            if found.iter().any(|service| *service.name() == web.as_str()) {
                return;
            }
            // Other cases register services, too.
            index = found.meta().index().unwrap();
        }
    };
    let registering = async || client.agent().register(&definition).await.unwrap();
    woken(listed, registering).await;
}

async fn a_changed_service_wakes_who_waits_for_it(agent: &TestAgent) {
    let (client, web) = (agent.client(), agent.name("web"));
    let definition = ServiceDefinition::new(web.as_str()).port(1_u16);
    client.agent().register(&definition).await.unwrap();
    let first = client.catalog().service(web.as_str()).await.unwrap();
    let index = first.meta().index().unwrap();
    let read = client.catalog().service(web.as_str());
    let found = woken(read.wait_for_change(index, LONG), async || {
        let definition = ServiceDefinition::new(web.as_str()).port(2_u16);
        client.agent().register(&definition).await.unwrap();
    });
    let found = found.await.unwrap();
    assert_eq!(found[0].port(), 2);
    assert_eq!(
        found[0].service().create_index(),
        first[0].service().create_index()
    );
    assert!(found[0].service().modify_index() > first[0].service().modify_index());
}
