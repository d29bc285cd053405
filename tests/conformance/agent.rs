//! The agent's own endpoints: services, checks, local health and maintenance.

use std::time::Duration;

use lictor::api::agent::{CheckDefinition, MemberStatus, ServiceDefinition};
use lictor::api::health::Status;
use lictor::{Client, ErrorKind};
use support::eventually;
use tokio::time::Instant;

use crate::{Kind, TestAgent};

on_both_agents![
    it_tells_who_it_is,
    it_is_a_living_member_of_its_cluster,
    a_service_is_told_back_as_it_was_registered,
    an_id_may_hold_what_a_path_must_escape,
    a_service_that_was_never_registered_is_none,
    a_change_ends_a_wait_for_another_hash,
    a_deregistration_ends_a_wait_with_none,
    a_wait_for_another_hash_ends_unchanged,
    local_health_tells_every_status_and_none,
    maintenance_stands_above_all_checks_and_passes,
    maintenance_of_an_unknown_service_is_an_error,
    a_heartbeat_tells_status_and_output,
    a_heartbeat_of_an_unknown_check_is_an_unknown_check,
    a_heartbeat_of_a_check_without_ttl_is_an_unknown_check,
    a_check_without_a_heartbeat_turns_critical,
    registering_again_keeps_the_status_of_a_check,
    checks_that_are_not_replaced_stay,
    a_check_of_the_node_belongs_to_no_service,
    a_check_of_an_unknown_service_is_refused,
    several_checks_are_numbered,
    a_field_of_a_newer_version_is_refused_by_an_older_agent,
    a_tcp_check_is_run_by_the_agent,
    an_http_check_is_run_by_the_agent,
];

const SOON: Duration = Duration::from_secs(20);
const TTL: Duration = Duration::from_secs(600);

fn ttl() -> CheckDefinition {
    CheckDefinition::alive_only(TTL)
}

async fn status(client: &Client, id: &str) -> Option<Status> {
    let health = client.agent().health_by_id(id).await.expect("an answer");
    health.into_value().map(|health| health.status())
}

async fn hash(client: &Client, id: &str) -> String {
    let service = client.agent().service(id).await.expect("an answer");
    let service = service.into_value().expect("registered");
    service.content_hash().expect("a hash").to_owned()
}

async fn it_tells_who_it_is(agent: &TestAgent) {
    let about = agent.client().agent().about().await.unwrap();
    let config = about.config();
    assert_eq!(config.datacenter(), "dc1");
    assert!(config.is_server());
    assert!(!config.node_name().is_empty());
    assert!(config.version().is_some());
    assert!(config.node_id().is_some());
    assert!(about.member().is_some_and(|member| member.is_server()));
}

async fn it_is_a_living_member_of_its_cluster(agent: &TestAgent) {
    let client = agent.client();
    let about = client.agent().about().await.unwrap();
    let members = client.agent().members().await.unwrap();
    let own = members
        .iter()
        .find(|member| member.name() == about.config().node_name())
        .expect("itself");
    assert_eq!(own.status(), MemberStatus::Alive);
    assert_eq!(own.tags().get("dc"), Some("dc1"));
    assert!(!client.agent().members().wan().await.unwrap().is_empty());
}

async fn a_service_is_told_back_as_it_was_registered(agent: &TestAgent) {
    let client = agent.client();
    let name = agent.name("web");
    let id = format!("{name}-1");
    let definition = ServiceDefinition::new(&*name)
        .id(&*id)
        .address("10.0.0.1")
        .port(8080)
        .tags(["v1", "eu"])
        .meta("k", "v")
        .weights(10, 2)
        .tagged_address("wan", "1.2.3.4", 80)
        .enable_tag_override();
    client.agent().register(&definition).await.unwrap();

    let service = client.agent().service(&*id).await.unwrap();
    let service = service.into_value().expect("registered");
    assert_eq!(*service.id(), *id);
    assert_eq!(*service.name(), *name);
    assert_eq!((service.address(), service.port()), ("10.0.0.1", 8080));
    assert_eq!(service.tags().iter().collect::<Vec<_>>(), ["v1", "eu"]);
    assert_eq!(service.meta().get("k"), Some("v"));
    assert_eq!(
        (service.weights().passing(), service.weights().warning()),
        (10, 2)
    );
    let wan = service.tagged_addresses().get("wan").expect("wan");
    assert_eq!((wan.address(), wan.port()), ("1.2.3.4", 80));
    assert!(service.enable_tag_override());
    assert!(service.content_hash().is_some());

    let all = client.agent().services().await.unwrap();
    assert_eq!(all.get(&*id).expect("listed").port(), 8080);

    client.agent().deregister(&*id).await.unwrap();
    assert!(client.agent().service(&*id).await.unwrap().is_none());
    assert!(!client.agent().services().await.unwrap().contains_key(&*id));
}

async fn an_id_may_hold_what_a_path_must_escape(agent: &TestAgent) {
    let client = agent.client();
    let id = format!("{}/a b?c#d&e+ü", agent.name("odd"));
    let definition = ServiceDefinition::new(&*id).check(ttl());
    client.agent().register(&definition).await.unwrap();
    assert_eq!(status(&client, &id).await, Some(Status::Critical));
    let check = format!("service:{id}");
    client
        .agent()
        .update_check(check, Status::Passing, "")
        .await
        .unwrap();
    assert_eq!(status(&client, &id).await, Some(Status::Passing));
    client.agent().deregister(&*id).await.unwrap();
    assert_eq!(status(&client, &id).await, None);
}

async fn a_service_that_was_never_registered_is_none(agent: &TestAgent) {
    let client = agent.client();
    let id = agent.name("nobody");
    assert!(client.agent().service(&*id).await.unwrap().is_none());
    assert!(client.agent().health_by_id(&*id).await.unwrap().is_none());
    assert!(client.agent().health_by_name(&*id).await.unwrap().is_none());
    // Consul 1.12 says that it is unknown, an older one without access control does not.
    if let Err(err) = client.agent().deregister(&*id).await {
        assert_eq!(err.kind(), ErrorKind::UnknownService);
    }
}

async fn a_change_ends_a_wait_for_another_hash(agent: &TestAgent) {
    let client = agent.client();
    let id = agent.name("web");
    let definition = ServiceDefinition::new(&*id).port(80);
    client.agent().register(&definition).await.unwrap();
    let before = hash(&client, &id).await;
    let wait = client
        .agent()
        .service(&*id)
        .wait_for_change_of(&*before, SOON);
    let changed = definition.tag("new");
    let (seen, registered) = tokio::join!(wait.send(), async {
        // Whichever is first, the wait ends with the change.
        client.agent().register(&changed).await
    });
    registered.unwrap();
    let seen = seen.unwrap().into_value().expect("registered");
    assert!(seen.tags().contains("new"));
    assert_ne!(seen.content_hash(), Some(&*before));
}

async fn a_deregistration_ends_a_wait_with_none(agent: &TestAgent) {
    let client = agent.client();
    let id = agent.name("web");
    let definition = ServiceDefinition::new(&*id);
    client.agent().register(&definition).await.unwrap();
    let before = hash(&client, &id).await;
    let start = Instant::now();
    let wait = client
        .agent()
        .service(&*id)
        .wait_for_change_of(before, SOON);
    let (seen, gone) = tokio::join!(wait.send(), async { client.agent().deregister(&*id).await });
    gone.unwrap();
    assert!(seen.unwrap().is_none());
    assert!(start.elapsed() < SOON / 2);
}

async fn a_wait_for_another_hash_ends_unchanged(agent: &TestAgent) {
    let client = agent.client();
    let id = agent.name("web");
    let definition = ServiceDefinition::new(&*id);
    client.agent().register(&definition).await.unwrap();
    let before = hash(&client, &id).await;
    let wait = Duration::from_millis(300);
    let start = Instant::now();
    let seen = client
        .agent()
        .service(&*id)
        .wait_for_change_of(&*before, wait)
        .await
        .unwrap();
    assert!(start.elapsed() >= wait);
    let seen = seen.into_value().expect("registered");
    assert_eq!(seen.content_hash(), Some(&*before));
}

async fn local_health_tells_every_status_and_none(agent: &TestAgent) {
    let client = agent.client();
    let name = agent.name("web");
    assert!(
        client
            .agent()
            .health_by_name(&*name)
            .await
            .unwrap()
            .is_none()
    );
    let id = format!("{name}-1");
    let definition = ServiceDefinition::new(&*name).id(&*id).check(ttl());
    client.agent().register(&definition).await.unwrap();
    for said in [Status::Critical, Status::Warning, Status::Passing] {
        client
            .agent()
            .update_check(format!("service:{id}"), said, "x")
            .await
            .unwrap();
        let by_id = client.agent().health_by_id(&*id).await.unwrap();
        let by_id = by_id.into_value().expect("registered");
        assert_eq!(by_id.status(), said);
        assert_eq!(*by_id.service().id(), *id);
        assert!(by_id.checks().iter().any(|check| check.output() == "x"));
        let by_name = client.agent().health_by_name(&*name).await.unwrap();
        let by_name = by_name.into_value().expect("registered");
        assert_eq!(by_name.status(), said);
        assert_eq!(by_name.instances().len(), 1);
    }
}

async fn maintenance_stands_above_all_checks_and_passes(agent: &TestAgent) {
    let client = agent.client();
    let id = agent.name("web");
    let definition = ServiceDefinition::new(&*id).check(ttl().status(Status::Passing));
    client.agent().register(&definition).await.unwrap();
    client
        .agent()
        .enable_service_maintenance(&*id, "moving & more")
        .await
        .unwrap();
    assert_eq!(status(&client, &id).await, Some(Status::Maintenance));
    let checks = client.agent().checks().await.unwrap();
    let check = checks.get(&*format!("_service_maintenance:{id}"));
    assert_eq!(check.expect("a check").notes(), "moving & more");
    client
        .agent()
        .disable_service_maintenance(&*id)
        .await
        .unwrap();
    assert_eq!(status(&client, &id).await, Some(Status::Passing));

    // A registration that replaces the checks ends it; see `Registration`.
    client
        .agent()
        .enable_service_maintenance(&*id, "again")
        .await
        .unwrap();
    let register = client.agent().register(&definition);
    register.replace_existing_checks().await.unwrap();
    assert_eq!(status(&client, &id).await, Some(Status::Passing));
}

async fn maintenance_of_an_unknown_service_is_an_error(agent: &TestAgent) {
    let agent_calls = agent.client().agent();
    let id = agent.name("nobody");
    let enable = agent_calls.enable_service_maintenance(id, "x").await;
    assert_eq!(enable.unwrap_err().kind(), ErrorKind::UnknownService);
}

async fn a_heartbeat_tells_status_and_output(agent: &TestAgent) {
    let client = agent.client();
    let id = agent.name("web");
    let definition = ServiceDefinition::new(&*id).check(ttl().id(&*id));
    client.agent().register(&definition).await.unwrap();
    client
        .agent()
        .update_check(&*id, Status::Warning, "slow disk")
        .await
        .unwrap();
    let checks = client.agent().checks().await.unwrap();
    let check = checks.get(&*id).expect("registered");
    assert_eq!(check.status(), Status::Warning);
    assert_eq!(check.output(), "slow disk");
    assert_eq!(check.kind(), "ttl");
    assert_eq!(**check.service_id().expect("of a service"), *id);
}

async fn a_heartbeat_of_an_unknown_check_is_an_unknown_check(agent: &TestAgent) {
    let id = agent.name("nobody");
    let client = agent.client();
    let beat = client.agent().update_check(id, Status::Passing, "").await;
    assert!(beat.unwrap_err().is_unknown_check());
}

async fn a_heartbeat_of_a_check_without_ttl_is_an_unknown_check(agent: &TestAgent) {
    let client = agent.client();
    let id = agent.name("web");
    let tcp = CheckDefinition::tcp("127.0.0.1:1", TTL).id(&*id);
    let definition = ServiceDefinition::new(&*id).check(tcp);
    client.agent().register(&definition).await.unwrap();
    let beat = client.agent().update_check(id, Status::Passing, "").await;
    assert!(beat.unwrap_err().is_unknown_check());
}

async fn a_check_without_a_heartbeat_turns_critical(agent: &TestAgent) {
    let client = agent.client();
    let id = agent.name("web");
    let short = CheckDefinition::alive_only(Duration::from_millis(300)).status(Status::Passing);
    let definition = ServiceDefinition::new(&*id).check(short);
    client.agent().register(&definition).await.unwrap();
    eventually(SOON, async || {
        status(&client, &id).await == Some(Status::Critical)
    })
    .await;
}

async fn registering_again_keeps_the_status_of_a_check(agent: &TestAgent) {
    let client = agent.client();
    let id = agent.name("web");
    let definition = ServiceDefinition::new(&*id).check(ttl());
    client.agent().register(&definition).await.unwrap();
    let check = format!("service:{id}");
    client
        .agent()
        .update_check(check, Status::Passing, "")
        .await
        .unwrap();
    let again = definition.tag("new");
    client
        .agent()
        .register(&again)
        .replace_existing_checks()
        .await
        .unwrap();
    assert_eq!(status(&client, &id).await, Some(Status::Passing));
}

async fn checks_that_are_not_replaced_stay(agent: &TestAgent) {
    let client = agent.client();
    let id = agent.name("web");
    let (old, new) = (format!("{id}-old"), format!("{id}-new"));
    let with = |check: &str| ServiceDefinition::new(&*id).check(ttl().id(check));
    client.agent().register(&with(&old)).await.unwrap();
    client.agent().register(&with(&new)).await.unwrap();
    let checks = client.agent().checks().await.unwrap();
    assert!(checks.contains_key(&*old) && checks.contains_key(&*new));
    let register = client.agent().register(&with(&new));
    register.replace_existing_checks().await.unwrap();
    let checks = client.agent().checks().await.unwrap();
    assert!(!checks.contains_key(&*old) && checks.contains_key(&*new));
}

async fn a_check_of_the_node_belongs_to_no_service(agent: &TestAgent) {
    let client = agent.client();
    let id = agent.name("disk");
    // It passes at all times: it counts for every service of the node.
    let check = ttl().name(&*id).status(Status::Passing).notes("space");
    client.agent().register_check(&check).await.unwrap();
    let checks = client.agent().checks().await.unwrap();
    let found = checks.get(&*id).expect("its ID is its name");
    assert_eq!(found.service_id(), None);
    assert_eq!(found.notes(), "space");
    client.agent().deregister_check(&*id).await.unwrap();
    assert!(!client.agent().checks().await.unwrap().contains_key(&*id));
}

async fn a_check_of_an_unknown_service_is_refused(agent: &TestAgent) {
    let client = agent.client();
    let name = agent.name("nobody");
    let check = ttl().name("x");
    let register = client.agent().register_service_check(&*name, &check).await;
    assert!(register.is_err());

    let definition = ServiceDefinition::new(&*name);
    client.agent().register(&definition).await.unwrap();
    let check = ttl().id(&*name).name("x").status(Status::Warning);
    client
        .agent()
        .register_service_check(&*name, &check)
        .await
        .unwrap();
    assert_eq!(status(&client, &name).await, Some(Status::Warning));
}

async fn several_checks_are_numbered(agent: &TestAgent) {
    let client = agent.client();
    let id = agent.name("web");
    let own = format!("{id}-own");
    let definition = ServiceDefinition::new(&*id)
        .check(ttl())
        .check(ttl().id(&*own))
        .check(ttl());
    client.agent().register(&definition).await.unwrap();
    let checks = client.agent().checks().await.unwrap();
    for check in [format!("service:{id}:1"), own, format!("service:{id}:3")] {
        assert!(checks.contains_key(&*check), "{check}");
    }
}

async fn a_field_of_a_newer_version_is_refused_by_an_older_agent(agent: &TestAgent) {
    let client = agent.client();
    let id = agent.name("web");
    let definition = ServiceDefinition::new(&*id).socket_path("/run/web.sock");
    let registered = client.agent().register(&definition).await;
    match agent.kind() {
        Kind::Embedded | Kind::Consul(1, ..=9) => {
            let err = registered.unwrap_err();
            assert_eq!(err.kind(), ErrorKind::Refused);
            assert!(err.to_string().contains("SocketPath"), "{err}");
        }
        Kind::Consul(..) => registered.unwrap(),
    }
}

/// A server whose health is to be told.
async fn is_told_by_a_check(
    agent: &TestAgent,
    check: impl Fn(&str) -> CheckDefinition,
    passing: &str,
) {
    let (client, name) = (agent.client(), agent.name("checked"));
    let backend = support::backend::Backend::start("checked").await.unwrap();
    let address = backend.addr().to_string();
    let service = ServiceDefinition::new(&*name).check(check(&address));
    client.agent().register(&service).await.unwrap();
    let told = async |status: Status, text: &str| {
        eventually(Duration::from_secs(20), async || {
            let checks = client.health().checks(&*name).await.unwrap();
            let is = |check: &lictor::api::health::Check| {
                check.status() == status && check.output().contains(text)
            };
            checks.iter().any(|check| is(check))
        })
        .await;
    };
    told(Status::Passing, passing).await;
    backend.abort().await;
    told(Status::Critical, "connection refused").await;
    client.agent().deregister(&*name).await.unwrap();
}

async fn a_tcp_check_is_run_by_the_agent(agent: &TestAgent) {
    let every = Duration::from_secs(1);
    is_told_by_a_check(
        agent,
        |address| CheckDefinition::tcp(address, every),
        "Success",
    )
    .await;
}

async fn an_http_check_is_run_by_the_agent(agent: &TestAgent) {
    let every = Duration::from_secs(1);
    let check = |address: &str| CheckDefinition::http(format!("http://{address}/"), every);
    is_told_by_a_check(agent, check, "200 OK Output: ").await;
}
