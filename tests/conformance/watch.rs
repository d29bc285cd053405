//! Watches on a living agent: what is told, when, and what is not.

use std::sync::Arc;
use std::time::Duration;

use lictor::Client;
use lictor::api::agent::{CheckDefinition, ServiceDefinition};
use lictor::api::health::Status;
use lictor::watch::{Snapshot, Watch};
use tokio::time::timeout;

use crate::TestAgent;

on_both_agents![
    a_key_is_followed_from_nothing_through_a_value_to_nothing,
    a_prefix_tells_what_was_added_changed_and_removed,
    another_key_does_not_make_a_watch_speak,
    the_same_value_written_again_is_not_told,
    an_instance_appears_turns_critical_and_leaves,
    a_watch_of_passing_instances_tells_only_those,
    a_filtered_watch_is_not_woken_by_what_it_does_not_select,
    instances_that_did_not_change_stay_the_same_allocation,
    checks_of_a_service_are_followed,
    a_service_that_does_not_exist_is_a_snapshot_of_nothing,
    many_readers_of_one_watch_all_hear_of_a_change,
    a_wrong_filter_is_told_at_once,
    the_list_of_services_is_followed_and_tells_nothing_twice,
    nodes_are_followed,
    catalog_instances_are_followed_whatever_their_health,
];

/// Long enough for a slow machine; a watch that works answers in milliseconds.
const SOON: Duration = Duration::from_secs(20);

/// Short enough not to bore; what is not told by then is not going to be told.
const QUIET: Duration = Duration::from_millis(400);

async fn next<T: lictor::watch::Watched>(watch: &mut Watch<T>) -> Snapshot<T> {
    let changed = timeout(SOON, watch.changed()).await;
    changed
        .expect("a change is told")
        .expect("the runtime lives")
}

async fn until<T: lictor::watch::Watched>(
    watch: &mut Watch<T>,
    mut wanted: impl FnMut(&Snapshot<T>) -> bool,
) -> Snapshot<T> {
    timeout(SOON, async {
        loop {
            let snapshot = watch.changed().await.expect("the runtime lives");
            if wanted(&snapshot) {
                return snapshot;
            }
        }
    })
    .await
    .expect("the change is told")
}

async fn silent<T: lictor::watch::Watched>(watch: &mut Watch<T>) {
    if let Ok(told) = timeout(QUIET, watch.changed()).await {
        panic!("told without a reason: {told:?}");
    }
}

async fn register(client: &Client, name: &str, id: &str, status: Status) {
    let definition = ServiceDefinition::new(name)
        .id(id)
        .address("10.0.0.1")
        .port(8080_u16)
        .check(CheckDefinition::alive_only(Duration::from_secs(600)).status(status));
    client.agent().register(&definition).await.unwrap();
}

async fn set(client: &Client, id: &str, status: Status) {
    let check = format!("service:{id}");
    client
        .agent()
        .update_check(check.as_str(), status, "")
        .await
        .unwrap();
}

async fn a_key_is_followed_from_nothing_through_a_value_to_nothing(agent: &TestAgent) {
    let (client, key) = (agent.client(), agent.name("key"));
    let mut watch = client.kv().get(key.as_str()).watch().unwrap();
    assert!(next(&mut watch).await.is_empty());
    client.kv().put(key.as_str(), "one").await.unwrap();
    let one = next(&mut watch).await;
    assert_eq!(one[0].value(), b"one");
    assert!(one.index() >= Some(one[0].modify_index()));
    client.kv().put(key.as_str(), "two").await.unwrap();
    assert_eq!(next(&mut watch).await[0].value(), b"two");
    client.kv().delete(key.as_str()).await.unwrap();
    assert!(next(&mut watch).await.is_empty());
    // After a deletion the key's index may be lower than before: it must not get stuck.
    client.kv().put(key.as_str(), "three").await.unwrap();
    assert_eq!(next(&mut watch).await[0].value(), b"three");
}

async fn a_prefix_tells_what_was_added_changed_and_removed(agent: &TestAgent) {
    let (client, prefix) = (agent.client(), agent.name("dir/"));
    let key = |name: &str| format!("{prefix}{name}");
    for name in ["a", "b", "c"] {
        client.kv().put(key(name), "1").await.unwrap();
    }
    let mut changes = client.kv().list(&prefix).watch().unwrap().changes();
    let first = timeout(SOON, changes.next()).await.unwrap().unwrap();
    assert_eq!(first.added.len(), 3);

    client.kv().put(key("b"), "2").await.unwrap();
    let second = timeout(SOON, changes.next()).await.unwrap().unwrap();
    assert_eq!((second.added.len(), second.removed.len()), (0, 0));
    assert_eq!(second.changed[0].0.value(), b"1");
    assert_eq!(second.changed[0].1.value(), b"2");

    client.kv().delete(key("a")).await.unwrap();
    let third = timeout(SOON, changes.next()).await.unwrap().unwrap();
    assert_eq!(third.removed[0].key().as_str(), key("a"));
}

async fn another_key_does_not_make_a_watch_speak(agent: &TestAgent) {
    let client = agent.client();
    let (mine, other) = (agent.name("mine"), agent.name("other"));
    client.kv().put(mine.as_str(), "1").await.unwrap();
    let mut watch = client.kv().get(mine.as_str()).watch().unwrap();
    next(&mut watch).await;
    client.kv().put(other.as_str(), "1").await.unwrap();
    silent(&mut watch).await;
}

async fn the_same_value_written_again_is_not_told(agent: &TestAgent) {
    let (client, key) = (agent.client(), agent.name("key"));
    client.kv().put(key.as_str(), "1").await.unwrap();
    let mut watch = client.kv().get(key.as_str()).watch().unwrap();
    next(&mut watch).await;
    client.kv().put(key.as_str(), "1").await.unwrap();
    silent(&mut watch).await;
}

async fn an_instance_appears_turns_critical_and_leaves(agent: &TestAgent) {
    let (client, web) = (agent.client(), agent.name("web"));
    let mut watch = client.health().service(web.as_str()).watch().unwrap();
    assert!(next(&mut watch).await.is_empty());
    register(&client, &web, &web, Status::Passing).await;
    let up = until(&mut watch, |all| all.len() == 1).await;
    assert_eq!(up[0].service().id().as_str(), web);
    assert_eq!((up[0].address(), up[0].port()), ("10.0.0.1", 8080));
    assert_eq!(up[0].status(), Status::Passing);
    set(&client, &web, Status::Critical).await;
    until(&mut watch, |all| all[0].status() == Status::Critical).await;
    client.agent().deregister(web.as_str()).await.unwrap();
    until(&mut watch, |all| all.is_empty()).await;
    // The service is gone as a whole; a new registration must be seen all the same.
    register(&client, &web, &web, Status::Passing).await;
    until(&mut watch, |all| all.len() == 1).await;
}

async fn a_watch_of_passing_instances_tells_only_those(agent: &TestAgent) {
    let (client, web) = (agent.client(), agent.name("web"));
    let (one, two) = (format!("{web}-1"), format!("{web}-2"));
    register(&client, &web, &one, Status::Passing).await;
    register(&client, &web, &two, Status::Critical).await;
    let passing = client.health().service(web.as_str()).passing();
    let mut watch = passing.watch().unwrap();
    let first = until(&mut watch, |all| all.len() == 1).await;
    assert_eq!(first[0].service().id().as_str(), one);
    set(&client, &two, Status::Passing).await;
    until(&mut watch, |all| all.len() == 2).await;
    set(&client, &one, Status::Warning).await;
    let last = until(&mut watch, |all| all.len() == 1).await;
    assert_eq!(last[0].service().id().as_str(), two);
    // From one state that does not pass to another: nothing that was asked for changes.
    set(&client, &one, Status::Critical).await;
    silent(&mut watch).await;
}

async fn a_filtered_watch_is_not_woken_by_what_it_does_not_select(agent: &TestAgent) {
    let client = agent.client();
    let web = agent.name("web");
    let tagged = |id: &str, tag: &str| {
        ServiceDefinition::new(web.as_str())
            .id(id)
            .port(80_u16)
            .tag(tag)
    };
    let (blue, green) = (format!("{web}-blue"), format!("{web}-green"));
    client
        .agent()
        .register(&tagged(&blue, "blue"))
        .await
        .unwrap();
    let query = client.health().service(web.as_str()).tag("blue");
    let mut watch = query.watch().unwrap();
    until(&mut watch, |all| all.len() == 1).await;
    client
        .agent()
        .register(&tagged(&green, "green"))
        .await
        .unwrap();
    silent(&mut watch).await;
}

async fn instances_that_did_not_change_stay_the_same_allocation(agent: &TestAgent) {
    let (client, web) = (agent.client(), agent.name("web"));
    let ids: Vec<_> = (0..5).map(|n| format!("{web}-{n}")).collect();
    for id in &ids {
        register(&client, &web, id, Status::Passing).await;
    }
    let mut watch = client.health().service(web.as_str()).watch().unwrap();
    let before = until(&mut watch, |all| all.len() == 5).await;
    set(&client, &ids[2], Status::Critical).await;
    let after = until(&mut watch, |all| {
        all.iter().any(|one| one.status() == Status::Critical)
    })
    .await;
    let find = |all: &Snapshot<_>, id: &str| {
        let entry =
            |one: &&Arc<lictor::api::health::ServiceEntry>| one.service().id().as_str() == id;
        Arc::clone(all.iter().find(entry).unwrap())
    };
    for (at, id) in ids.iter().enumerate() {
        let same = Arc::ptr_eq(&find(&before, id), &find(&after, id));
        assert_eq!(same, at != 2, "{id}");
    }
}

async fn checks_of_a_service_are_followed(agent: &TestAgent) {
    let (client, web) = (agent.client(), agent.name("web"));
    register(&client, &web, &web, Status::Passing).await;
    let mut watch = client.health().checks(web.as_str()).watch().unwrap();
    let first = until(&mut watch, |all| all.len() == 1).await;
    assert_eq!(first[0].id().as_str(), format!("service:{web}"));
    set(&client, &web, Status::Warning).await;
    until(&mut watch, |all| all[0].status() == Status::Warning).await;
}

async fn a_service_that_does_not_exist_is_a_snapshot_of_nothing(agent: &TestAgent) {
    let client = agent.client();
    let nobody = agent.name("nobody");
    let watch = client.health().service(nobody.as_str()).watch().unwrap();
    let snapshot = timeout(SOON, watch.ready()).await.unwrap().unwrap();
    assert!(snapshot.is_empty());
    assert!(snapshot.status().is_live());
    assert!(snapshot.index().is_some());
}

async fn many_readers_of_one_watch_all_hear_of_a_change(agent: &TestAgent) {
    let (client, key) = (agent.client(), agent.name("key"));
    let watch = client.kv().get(key.as_str()).watch().unwrap();
    watch.ready().await.unwrap();
    let mut readers: Vec<_> = (0..50).map(|_| watch.clone()).collect();
    client.kv().put(key.as_str(), "1").await.unwrap();
    for reader in &mut readers {
        until(reader, |pairs| pairs.len() == 1).await;
    }
}

async fn a_wrong_filter_is_told_at_once(agent: &TestAgent) {
    let client = agent.client();
    let query = client
        .health()
        .service(agent.name("web"))
        .filter("not a filter");
    let watch = query.watch().unwrap();
    let refused = timeout(SOON, watch.ready()).await.unwrap().unwrap_err();
    assert_eq!(refused.kind(), lictor::ErrorKind::Refused, "{refused}");
}

async fn the_list_of_services_is_followed_and_tells_nothing_twice(agent: &TestAgent) {
    let (client, web) = (agent.client(), agent.name("web"));
    let tagged = |id: &str, tags: &[&str]| {
        let definition = ServiceDefinition::new(web.as_str()).id(id).port(80_u16);
        definition.tags(tags.iter().copied())
    };
    let mut changes = client.catalog().services().watch().unwrap().changes();
    let all = ["e", "d", "c", "b", "a"];
    client.agent().register(&tagged("one", &all)).await.unwrap();
    // Other cases come and go on the same agent; this case looks at its own service only.
    let mut told = Vec::new();
    let mine = timeout(SOON, async {
        loop {
            let difference = changes.next().await.unwrap();
            let added = difference
                .added
                .iter()
                .chain(difference.changed.iter().map(|(_, new)| new));
            for service in added.filter(|service| *service.name() == *web) {
                told.push(service.tags().iter().map(str::to_owned).collect::<Vec<_>>());
            }
            if told.last().is_some_and(|tags| tags.len() == 5) {
                return told;
            }
        }
    });
    let told = mine.await.expect("the service is told");
    assert_eq!(told.last().unwrap(), &["a", "b", "c", "d", "e"]);
    // Consul lists tags in another order each time: that is no change.
    let other = agent.name("other");
    let unrelated = ServiceDefinition::new(other.as_str()).port(80_u16);
    client.agent().register(&unrelated).await.unwrap();
    let again = timeout(QUIET, async {
        loop {
            let difference = changes.next().await.unwrap();
            if difference
                .changed
                .iter()
                .any(|(_, new)| *new.name() == *web)
            {
                return;
            }
        }
    });
    assert!(again.await.is_err(), "an order is told as a change");
}

async fn nodes_are_followed(agent: &TestAgent) {
    let (client, name) = (agent.client(), agent.name("node"));
    let mut watch = client.catalog().nodes().watch().unwrap();
    let known =
        |all: &Snapshot<lictor::api::catalog::Node>| all.iter().any(|one| *one.name() == *name);
    until(&mut watch, |all| !all.is_empty()).await;
    let entry = lictor::api::catalog::Entry::new(name.as_str(), "10.9.8.7");
    client.catalog().register(entry).await.unwrap();
    until(&mut watch, known).await;
    client
        .catalog()
        .deregister_node(name.as_str())
        .await
        .unwrap();
    until(&mut watch, |all| !known(all)).await;
}

async fn catalog_instances_are_followed_whatever_their_health(agent: &TestAgent) {
    let (client, web) = (agent.client(), agent.name("web"));
    register(&client, &web, &web, Status::Critical).await;
    let mut watch = client.catalog().service(web.as_str()).watch().unwrap();
    let up = until(&mut watch, |all| all.len() == 1).await;
    assert_eq!(up[0].service().id().as_str(), web);
    client.agent().deregister(web.as_str()).await.unwrap();
    until(&mut watch, |all| all.is_empty()).await;
}
