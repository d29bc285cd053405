mod sessions;
mod txn;

use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::local::{CheckKind, CheckSpec};
use super::model::{CRITICAL, Check, Node, PASSING, Service, WARNING};
use super::{ExistingChecks, Identity, State};

fn state() -> (State, Instant) {
    let now = Instant::now();
    let identity = Identity {
        node: "n1".to_owned(),
        node_id: String::new(),
        datacenter: "dc1".to_owned(),
        address: "127.0.0.1".to_owned(),
        server_port: 8300,
        serf_port: 8301,
    };
    (State::new(identity, 7, now), now)
}

fn service(name: &str, id: &str) -> Service {
    Service {
        id: id.to_owned(),
        name: name.to_owned(),
        ..Service::default()
    }
}

fn ttl(seconds: u64) -> CheckSpec {
    CheckSpec {
        ttl: Duration::from_secs(seconds),
        output_max: 4096,
        ..CheckSpec::default()
    }
}

fn register(state: &mut State, name: &str, id: &str, checks: Vec<CheckSpec>, now: Instant) {
    state.register_service(service(name, id), checks, ExistingChecks::Keep, now);
}

fn health_index(state: &State, name: &str) -> u64 {
    let catalog = &state.replica.catalog;
    let exists = catalog.instances(name).next().is_some();
    catalog.service_index(name, exists, true)
}

fn status(state: &State, check: &str) -> String {
    let check = state.replica.catalog.check("n1", check).unwrap();
    check.status.clone().into_owned()
}

#[test]
fn a_service_has_an_index_of_its_own() {
    let (mut state, now) = state();
    register(&mut state, "a", "a1", Vec::new(), now);
    let before = health_index(&state, "a");
    register(&mut state, "b", "b1", Vec::new(), now);
    assert_eq!(health_index(&state, "a"), before);
    assert_eq!(health_index(&state, "b"), state.index());
}

#[test]
fn an_identical_registration_moves_no_index_of_its_service() {
    let (mut state, now) = state();
    register(&mut state, "a", "a1", vec![ttl(10)], now);
    let (own, services) = (
        health_index(&state, "a"),
        state.replica.catalog.services_index(),
    );
    register(&mut state, "a", "a1", vec![ttl(10)], now);
    assert_eq!(health_index(&state, "a"), own);
    assert_eq!(state.replica.catalog.services_index(), services);
    assert!(state.index() > own, "the write took an index all the same");
}

#[test]
fn an_unknown_service_is_woken_by_arrivals_only_until_the_first_extinction() {
    let (mut state, now) = state();
    let fresh = health_index(&state, "none");
    register(&mut state, "a", "a1", Vec::new(), now);
    assert!(health_index(&state, "none") > fresh);
    state.deregister_service("a1", now);
    let extinct = state.index();
    assert_eq!(health_index(&state, "none"), extinct);
    register(&mut state, "b", "b1", Vec::new(), now);
    assert_eq!(health_index(&state, "none"), extinct);
}

#[test]
fn a_check_of_the_node_moves_every_service_on_it() {
    let (mut state, now) = state();
    register(&mut state, "a", "a1", Vec::new(), now);
    let spec = CheckSpec {
        name: "disk".to_owned(),
        ..ttl(10)
    };
    state.register_check(spec, now);
    assert_eq!(health_index(&state, "a"), state.index());
}

#[test]
fn a_heartbeat_with_the_same_content_changes_nothing() {
    let (mut state, now) = state();
    register(&mut state, "a", "a1", vec![ttl(10)], now);
    state
        .heartbeat("service:a1", PASSING.into(), "ok", now)
        .unwrap();
    let (index, version) = (state.index(), state.version());
    state
        .heartbeat("service:a1", PASSING.into(), "ok", now)
        .unwrap();
    assert_eq!((state.index(), state.version()), (index, version));
}

#[test]
fn a_missed_heartbeat_makes_the_check_critical_exactly_when_the_ttl_ends() {
    let (mut state, now) = state();
    register(&mut state, "a", "a1", vec![ttl(10)], now);
    let beat = now + Duration::from_secs(4);
    state
        .heartbeat("service:a1", PASSING.into(), "fine", beat)
        .unwrap();
    let end = beat + Duration::from_secs(10);
    assert_eq!(state.next_due(), Some(end));
    state.advance(end - Duration::from_nanos(1));
    assert_eq!(status(&state, "service:a1"), PASSING);
    state.advance(end);
    assert_eq!(status(&state, "service:a1"), CRITICAL);
    let check = state.replica.catalog.check("n1", "service:a1").unwrap();
    assert_eq!(
        check.output,
        "TTL expired (last output before timeout follows): fine"
    );
    assert_eq!(state.next_due(), None);
}

#[test]
fn a_repeated_registration_keeps_the_status_and_restarts_the_ttl() {
    let (mut state, now) = state();
    register(&mut state, "a", "a1", vec![ttl(10)], now);
    state
        .heartbeat("service:a1", WARNING.into(), "hot", now)
        .unwrap();
    let again = now + Duration::from_secs(9);
    let spec = CheckSpec {
        status: Some(PASSING.into()),
        ..ttl(10)
    };
    register(&mut state, "a", "a1", vec![spec], again);
    assert_eq!(status(&state, "service:a1"), WARNING);
    assert_eq!(state.next_due(), Some(again + Duration::from_secs(10)));
}

#[test]
fn checks_without_an_id_are_numbered_only_when_there_are_several() {
    let (mut state, now) = state();
    register(&mut state, "a", "a1", vec![ttl(10), ttl(10)], now);
    assert_eq!(
        state.local.check_ids_of("a1"),
        ["service:a1:1", "service:a1:2"]
    );
}

#[test]
fn checks_of_an_older_definition_stay_unless_they_are_replaced() {
    let (mut state, now) = state();
    let named = CheckSpec {
        id: "old".to_owned(),
        ..ttl(10)
    };
    register(&mut state, "a", "a1", vec![named], now);
    register(&mut state, "a", "a1", vec![ttl(10)], now);
    assert_eq!(state.local.check_ids_of("a1"), ["old", "service:a1"]);
    let definition = service("a", "a1");
    state.register_service(definition, vec![ttl(10)], ExistingChecks::Replace, now);
    assert_eq!(state.local.check_ids_of("a1"), ["service:a1"]);
    assert!(state.replica.catalog.check("n1", "old").is_none());
}

#[test]
fn a_service_critical_for_longer_than_allowed_is_reaped_at_the_next_look() {
    let (mut state, now) = state();
    let spec = CheckSpec {
        deregister_after: Duration::from_secs(5),
        ..ttl(7)
    };
    register(&mut state, "a", "a1", vec![spec], now);
    // Critical since the TTL ended at 7 s; a minute is the least; the reaper looks at 90 s.
    state.advance(now + Duration::from_secs(89));
    assert!(state.local.services.contains_key("a1"));
    state.advance(now + Duration::from_secs(90));
    assert!(!state.local.services.contains_key("a1"));
    assert!(state.replica.catalog.service("n1", "a1").is_none());
}

#[test]
fn a_recovered_service_is_not_reaped() {
    let (mut state, now) = state();
    let spec = CheckSpec {
        deregister_after: Duration::from_secs(60),
        ..ttl(1000)
    };
    register(&mut state, "a", "a1", vec![spec], now);
    state
        .heartbeat("service:a1", CRITICAL.into(), "", now)
        .unwrap();
    let later = now + Duration::from_secs(80);
    state
        .heartbeat("service:a1", PASSING.into(), "", later)
        .unwrap();
    state.advance(now + Duration::from_secs(900));
    assert!(state.local.services.contains_key("a1"));
}

#[test]
fn an_output_that_changed_alone_is_told_minutes_later() {
    let (mut state, now) = state();
    register(&mut state, "a", "a1", vec![ttl(10_000)], now);
    state
        .heartbeat("service:a1", PASSING.into(), "one", now)
        .unwrap();
    let index = health_index(&state, "a");
    state
        .heartbeat("service:a1", PASSING.into(), "two", now)
        .unwrap();
    state.advance(now + Duration::from_secs(149));
    assert_eq!(health_index(&state, "a"), index);
    state.advance(now + Duration::from_secs(450));
    let check = state.replica.catalog.check("n1", "service:a1").unwrap();
    assert_eq!(check.output, "two");
    assert!(health_index(&state, "a") > index);
}

#[test]
fn a_long_output_is_cut_and_says_so() {
    let (mut state, now) = state();
    let spec = CheckSpec {
        output_max: 10,
        ..ttl(10)
    };
    register(&mut state, "a", "a1", vec![spec], now);
    state
        .heartbeat("service:a1", PASSING.into(), "0123456789abcdef", now)
        .unwrap();
    let local = state.local.check("service:a1").unwrap();
    assert_eq!(
        local.check.output,
        "0123456789 ... (captured 10 of 16 bytes)"
    );
}

#[test]
fn a_heartbeat_for_what_is_no_ttl_check_is_refused() {
    let (mut state, now) = state();
    let spec = CheckSpec {
        kind: CheckKind::Http,
        ..ttl(0)
    };
    register(&mut state, "a", "a1", vec![spec], now);
    for id in ["service:a1", "nope"] {
        let refused = state.heartbeat(id, PASSING.into(), "", now).unwrap_err();
        assert_eq!(
            refused.to_string(),
            format!("CheckID \"{id}\" does not have associated TTL")
        );
    }
}

#[test]
fn a_foreign_deletion_of_the_agents_service_is_repaired_within_a_minute() {
    let (mut state, now) = state();
    register(&mut state, "a", "a1", vec![ttl(1000)], now);
    let index = state.next_index();
    state.replica.catalog.delete_service(index, "n1", "a1");
    state.plan_sync(now);
    state.advance(now + Duration::from_secs(59));
    assert!(state.replica.catalog.service("n1", "a1").is_none());
    state.advance(now + Duration::from_secs(60));
    assert!(state.replica.catalog.service("n1", "a1").is_some());
    assert!(state.replica.catalog.check("n1", "service:a1").is_some());
}

#[test]
fn what_happens_without_a_leader_is_told_when_there_is_one() {
    let (mut state, now) = state();
    state.lose_leader(now);
    register(&mut state, "a", "a1", vec![ttl(1000)], now);
    assert!(state.replica.catalog.service("n1", "a1").is_none());
    state.elect(now);
    assert!(state.replica.catalog.service("n1", "a1").is_some());
}

#[test]
fn a_wiped_agent_loses_its_services_and_others_keep_theirs() {
    let (mut state, now) = state();
    register(&mut state, "a", "a1", vec![ttl(1000)], now);
    let index = state.next_index();
    let node = Node {
        name: "ext".to_owned(),
        address: "10.0.0.1".to_owned(),
        ..Node::default()
    };
    state.replica.catalog.ensure_node(index, node);
    let written = state
        .replica
        .catalog
        .ensure_service(index, "ext", service("a", "ext-a"));
    assert_eq!(written, Ok(()));
    state.wipe(now);
    assert!(state.replica.catalog.service("n1", "a1").is_none());
    assert!(state.replica.catalog.service("ext", "ext-a").is_some());
    assert!(state.replica.catalog.service("n1", "consul").is_some());
    assert_eq!(state.next_due(), None);
}

#[test]
fn a_check_without_its_node_or_service_is_refused() {
    let (mut state, _) = state();
    let check = |node: &str, service: &str| Check {
        node: node.to_owned(),
        id: "c".to_owned(),
        service_id: service.to_owned(),
        ..Check::default()
    };
    let catalog = &mut state.replica.catalog;
    assert!(catalog.ensure_check(50, check("nope", "")).is_err());
    let refused = catalog.ensure_check(50, check("n1", "nope")).unwrap_err();
    assert_eq!(refused.to_string(), "Missing service registration");
}

#[test]
fn a_key_has_its_own_index_and_a_missing_one_the_tables() {
    let (mut state, now) = state();
    let kv = &mut state.replica.kv;
    kv.put(20, "a", 0, Bytes::from_static(b"1"));
    kv.put(21, "b", 0, Bytes::from_static(b"1"));
    assert_eq!((kv.key_index("a"), kv.key_index("none")), (20, 21));
    kv.put(22, "a", 0, Bytes::from_static(b"1"));
    assert_eq!(kv.key_index("a"), 20, "an identical write moves nothing");
    assert!(!kv.cas(23, "a", 19, 0, Bytes::new()));
    assert!(kv.cas(23, "a", 20, 0, Bytes::new()));
    assert!(!kv.delete_cas(24, now, "a", 20));
    assert!(kv.delete_cas(24, now, "gone", 5));
}

#[test]
fn the_index_of_a_prefix_falls_when_a_deletion_is_forgotten() {
    let (mut state, now) = state();
    let kv = &mut state.replica.kv;
    kv.put(20, "p/a", 0, Bytes::from_static(b"1"));
    kv.put(21, "p/b", 0, Bytes::from_static(b"1"));
    kv.delete(30, now, "p/b");
    assert_eq!(kv.prefix_index("p/", now), 30);
    let later = now + Duration::from_secs(16 * 60);
    assert_eq!(kv.prefix_index("p/", later), 20);
}

#[test]
fn a_tree_is_a_prefix_of_the_text() {
    let (mut state, now) = state();
    let kv = &mut state.replica.kv;
    for key in ["dt", "dt/x", "dt2", "e"] {
        kv.put(20, key, 0, Bytes::new());
    }
    kv.delete_tree(21, now, "dt");
    let left: Vec<_> = kv.list("").map(|(key, _)| key.as_str()).collect();
    assert_eq!(left, ["e"]);
}

#[test]
fn ten_thousand_instances_on_one_node_register_in_no_time() {
    let (mut state, now) = state();
    for at in 0..10_000 {
        register(&mut state, "big", &format!("big-{at}"), vec![ttl(30)], now);
    }
    let catalog = &state.replica.catalog;
    let checks = catalog
        .instances("big")
        .map(|instance| instance.own_checks().count())
        .sum::<usize>();
    assert_eq!(checks, 10_000);
    state.advance(now + Duration::from_secs(30));
    assert_eq!(status(&state, "service:big-9999"), CRITICAL);
}
