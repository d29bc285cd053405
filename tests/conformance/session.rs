//! Sessions: how they are made, what ends them, and what becomes of their keys.

use std::time::Duration;

use http::Method;
use lictor::api::agent::{CheckDefinition, ServiceDefinition};
use lictor::api::catalog::Entry;
use lictor::api::health::Status;
use lictor::api::kv::Pair;
use lictor::api::session::{Behavior, NewSession, Session};
use lictor::ident::SessionId;
use lictor::{Client, Error, ErrorKind};
use support::eventually;
use tokio::time::Instant;

use crate::{TestAgent, woken};

on_both_agents![
    a_session_comes_back_as_it_was_made,
    a_plain_session_is_bound_to_its_nodes_health,
    no_checks_are_not_the_default,
    a_session_that_is_not_there_is_none,
    an_id_that_no_session_can_have_is_told,
    what_consul_refuses_of_a_session_is_told,
    a_renewal_changes_nothing_but_the_time,
    the_end_of_a_session_releases_its_keys,
    the_end_of_a_session_deletes_its_keys_if_it_says_so,
    keys_of_an_ended_session_have_its_lock_delay,
    a_lock_delay_is_over_some_time,
    a_session_without_lock_delay_leaves_its_keys_free,
    a_key_that_was_given_up_before_has_no_lock_delay,
    a_session_ends_when_its_check_turns_critical_and_not_before,
    a_session_ends_with_the_ttl_of_its_check,
    a_session_ends_when_its_check_is_removed,
    a_critical_check_binds_no_session,
    a_session_ends_with_its_node,
    a_session_that_is_not_renewed_ends_after_its_ttl,
    a_read_of_a_session_waits_for_its_end,
    a_list_of_sessions_waits_for_the_next,
];

const SOON: Duration = Duration::from_secs(30);
/// Longer than any test.
const LONG: Duration = Duration::from_secs(60);

/// A session that nothing ends but its destruction.
fn lasting() -> NewSession {
    NewSession::new().no_checks()
}

async fn made(client: &Client, session: NewSession) -> SessionId {
    client.session().create(&session).await.unwrap()
}

async fn info(client: &Client, session: &SessionId) -> Option<Session> {
    client.session().info(session).await.unwrap().into_value()
}

async fn pair(client: &Client, key: &str) -> Option<Pair> {
    client.kv().get(key).await.unwrap().into_value()
}

/// A service with one check, which is told its status by hand; the check's ID.
async fn checked_service(client: &Client, name: &str, ttl: Duration) -> String {
    let check = CheckDefinition::alive_only(ttl)
        .id(format!("check-{name}"))
        .status(Status::Passing);
    let service = ServiceDefinition::new(name).check(check);
    client.agent().register(&service).await.unwrap();
    format!("check-{name}")
}

/// Waits until the session has ended.
async fn ended(client: &Client, session: &SessionId) {
    eventually(SOON, async || info(client, session).await.is_none()).await;
}

async fn a_session_comes_back_as_it_was_made(agent: &TestAgent) {
    let (client, name) = (agent.client(), agent.name("leader \"1\" ü"));
    let session = NewSession::new()
        .name(name.as_str())
        .ttl(Duration::from_millis(60_500))
        .lock_delay(Duration::from_millis(1500))
        .behavior(Behavior::Delete)
        .node_checks(["serfHealth"]);
    let id = made(&client, session).await;
    let answer = client.session().info(&id).await.unwrap();
    let index = answer.meta().index().unwrap();
    let session = answer.into_value().unwrap();
    assert_eq!(*session.id(), id);
    assert_eq!(session.name(), name);
    assert_eq!(session.ttl(), Some(Duration::from_millis(60_500)));
    assert_eq!(session.lock_delay(), Duration::from_millis(1500));
    assert_eq!(session.behavior(), Behavior::Delete);
    assert_eq!(session.node_checks(), ["serfHealth"]);
    assert!(session.service_checks().is_empty() && session.checks().is_empty());
    assert_eq!(session.create_index(), session.modify_index());
    assert!(index >= session.create_index());

    // By list and by node it is the same one, and its node is the agent's.
    let all = client.session().list().await.unwrap();
    assert!(all.iter().any(|one| **one == session), "{all:?}");
    let about = client.agent().about().await.unwrap();
    assert_eq!(session.node(), about.config().node_name());
    let of_node = client.session().node(session.node().as_str());
    let of_node = of_node.await.unwrap();
    assert!(of_node.iter().any(|one| **one == session), "{of_node:?}");
    client.session().destroy(&id).await.unwrap();
}

async fn a_plain_session_is_bound_to_its_nodes_health(agent: &TestAgent) {
    let client = agent.client();
    let id = made(&client, NewSession::new()).await;
    let session = info(&client, &id).await.unwrap();
    assert_eq!(session.name(), "");
    assert_eq!(session.ttl(), None);
    assert_eq!(session.lock_delay(), Duration::from_secs(15));
    assert_eq!(session.behavior(), Behavior::Release);
    assert_eq!(session.node_checks(), ["serfHealth"]);
    client.session().destroy(&id).await.unwrap();
}

async fn no_checks_are_not_the_default(agent: &TestAgent) {
    let client = agent.client();
    let id = made(&client, lasting().lock_delay(Duration::ZERO)).await;
    let session = info(&client, &id).await.unwrap();
    assert!(session.node_checks().is_empty());
    assert!(session.service_checks().is_empty());
    assert_eq!(session.lock_delay(), Duration::ZERO);

    // Checks of a service do not replace those of the node.
    let name = agent.name("web");
    let check = checked_service(&client, &name, LONG).await;
    let bound = NewSession::new().service_checks([check.as_str()]);
    let id = made(&client, bound).await;
    let session = info(&client, &id).await.unwrap();
    assert_eq!(session.node_checks(), ["serfHealth"]);
    let [of_service] = session.service_checks() else {
        panic!("{session:?}");
    };
    assert_eq!(*of_service.id(), check.as_str());
    client.agent().deregister(name).await.unwrap();
}

async fn a_session_that_is_not_there_is_none(agent: &TestAgent) {
    let sessions = agent.client().session();
    let gone = made(&agent.client(), lasting()).await;
    sessions.destroy(&gone).await.unwrap();
    let answer = sessions.info(&gone).await.unwrap();
    assert_eq!(*answer, None);
    assert!(answer.meta().index().is_some());
    assert_eq!(sessions.renew(&gone).await.unwrap(), None);
    // To end what has ended is no error.
    sessions.destroy(&gone).await.unwrap();
    let none = sessions.node(agent.name("none")).await.unwrap();
    assert!(none.is_empty());
}

async fn an_id_that_no_session_can_have_is_told(agent: &TestAgent) {
    let sessions = agent.client().session();
    let wrong = SessionId::new("nope").unwrap();
    let is = |err: Error| {
        assert_eq!(err.kind(), ErrorKind::UnknownSession, "{err}");
        assert!(!err.is_transient() && err.is_not_found(), "{err}");
    };
    is(sessions.info(&wrong).await.unwrap_err());
    is(sessions.renew(&wrong).await.unwrap_err());
    is(sessions.destroy(&wrong).await.unwrap_err());
}

async fn what_consul_refuses_of_a_session_is_told(agent: &TestAgent) {
    let client = agent.client();
    for session in [
        // Below the default of `session_ttl_min`.
        lasting().ttl(Duration::from_millis(9_999)),
        lasting().node(agent.name("none")),
        NewSession::new().node_checks([agent.name("none")]),
        lasting().service_checks([agent.name("none")]),
    ] {
        let err = client.session().create(&session).await.unwrap_err();
        assert_eq!(err.kind(), ErrorKind::Refused, "{session:?}: {err}");
    }
    for body in [r#"{"Behavior":"keep"}"#, r#"{"TTL":"1d"}"#, r#"{"TTL":10}"#] {
        let request = client.raw(Method::PUT, "/v1/session/create");
        let err = request.body(body).await.unwrap_err();
        assert!(
            matches!(err.kind(), ErrorKind::Refused | ErrorKind::Server),
            "{body}: {err}"
        );
    }
    let longest = lasting().ttl(Duration::from_secs(24 * 60 * 60));
    let id = made(&client, longest).await;
    client.session().destroy(&id).await.unwrap();
}

async fn a_renewal_changes_nothing_but_the_time(agent: &TestAgent) {
    let client = agent.client();
    let id = made(&client, lasting().ttl(Duration::from_secs(10))).await;
    let before = info(&client, &id).await.unwrap();
    let renewed = client.session().renew(&id).await.unwrap();
    assert_eq!(renewed, Some(before.clone()));
    assert_eq!(info(&client, &id).await, Some(before));
    // One without a TTL can be renewed, too.
    let id = made(&client, lasting()).await;
    assert!(client.session().renew(&id).await.unwrap().is_some());
}

async fn the_end_of_a_session_releases_its_keys(agent: &TestAgent) {
    let (client, kv) = (agent.client(), agent.client().kv());
    let (first, second) = (agent.name("lock/1"), agent.name("lock/2"));
    let session = made(&client, lasting()).await;
    let held = kv.acquire(first.as_str(), &session, "v").flags(7);
    assert!(held.await.unwrap());
    assert!(kv.acquire(second.as_str(), &session, "w").await.unwrap());
    let held = pair(&client, &first).await.unwrap();
    client.session().destroy(&session).await.unwrap();
    let free = pair(&client, &first).await.unwrap();
    assert_eq!(free.session(), None);
    assert_eq!((free.value(), free.flags()), (&b"v"[..], 7));
    assert_eq!(free.lock_index(), 1);
    assert!(free.modify_index() > held.modify_index());
    assert_eq!(pair(&client, &second).await.unwrap().session(), None);
}

async fn the_end_of_a_session_deletes_its_keys_if_it_says_so(agent: &TestAgent) {
    let (client, kv) = (agent.client(), agent.client().kv());
    let (held, free) = (agent.name("lock/held"), agent.name("lock/free"));
    let deleting = lasting().behavior(Behavior::Delete).lock_delay(LONG);
    let session = made(&client, deleting).await;
    assert!(kv.acquire(held.as_str(), &session, "v").await.unwrap());
    assert!(kv.acquire(free.as_str(), &session, "v").await.unwrap());
    assert!(kv.release(free.as_str(), &session, "v").await.unwrap());
    client.session().destroy(&session).await.unwrap();
    assert_eq!(pair(&client, &held).await, None);
    // What it did not hold any more stays.
    assert!(pair(&client, &free).await.is_some());
    // Though the key is gone, its lock-delay is not.
    let other = made(&client, lasting()).await;
    assert!(!kv.acquire(held.as_str(), &other, "v").await.unwrap());
    assert!(kv.acquire(free.as_str(), &other, "v").await.unwrap());
}

async fn keys_of_an_ended_session_have_its_lock_delay(agent: &TestAgent) {
    let (client, kv, key) = (agent.client(), agent.client().kv(), agent.name("lock"));
    let session = made(&client, lasting().lock_delay(LONG)).await;
    assert!(kv.acquire(key.as_str(), &session, "v").await.unwrap());
    client.session().destroy(&session).await.unwrap();
    let other = made(&client, lasting()).await;
    assert!(!kv.acquire(key.as_str(), &other, "w").await.unwrap());
    let free = pair(&client, &key).await.unwrap();
    assert_eq!((free.session(), free.value()), (None, &b"v"[..]));
    // A plain write need not wait, and does not shorten it.
    assert!(kv.put(key.as_str(), "x").await.unwrap());
    assert!(!kv.acquire(key.as_str(), &other, "w").await.unwrap());
}

async fn a_lock_delay_is_over_some_time(agent: &TestAgent) {
    let (client, kv, key) = (agent.client(), agent.client().kv(), agent.name("lock"));
    let delay = Duration::from_millis(500);
    let session = made(&client, lasting().lock_delay(delay)).await;
    assert!(kv.acquire(key.as_str(), &session, "v").await.unwrap());
    let other = made(&client, lasting()).await;
    let began = Instant::now();
    client.session().destroy(&session).await.unwrap();
    eventually(SOON, async || {
        kv.acquire(key.as_str(), &other, "w").await.unwrap()
    })
    .await;
    assert!(began.elapsed() >= delay);
    let held = pair(&client, &key).await.unwrap();
    assert_eq!((held.session(), held.lock_index()), (Some(&other), 2));
}

async fn a_session_without_lock_delay_leaves_its_keys_free(agent: &TestAgent) {
    let (client, kv, key) = (agent.client(), agent.client().kv(), agent.name("lock"));
    let session = made(&client, lasting().lock_delay(Duration::ZERO)).await;
    assert!(kv.acquire(key.as_str(), &session, "v").await.unwrap());
    client.session().destroy(&session).await.unwrap();
    let other = made(&client, lasting()).await;
    assert!(kv.acquire(key.as_str(), &other, "w").await.unwrap());
}

async fn a_key_that_was_given_up_before_has_no_lock_delay(agent: &TestAgent) {
    let (client, kv) = (agent.client(), agent.client().kv());
    let (released, deleted) = (agent.name("lock/1"), agent.name("lock/2"));
    let session = made(&client, lasting().lock_delay(LONG)).await;
    assert!(kv.acquire(released.as_str(), &session, "").await.unwrap());
    assert!(kv.acquire(deleted.as_str(), &session, "").await.unwrap());
    assert!(kv.release(released.as_str(), &session, "").await.unwrap());
    assert!(kv.delete(deleted.as_str()).await.unwrap());
    client.session().destroy(&session).await.unwrap();
    let other = made(&client, lasting()).await;
    assert!(kv.acquire(released.as_str(), &other, "").await.unwrap());
    assert!(kv.acquire(deleted.as_str(), &other, "").await.unwrap());
}

async fn a_session_ends_when_its_check_turns_critical_and_not_before(agent: &TestAgent) {
    let (client, name) = (agent.client(), agent.name("web"));
    let check = checked_service(&client, &name, LONG).await;
    let session = made(&client, lasting().service_checks([check.as_str()])).await;
    let key = agent.name("lock");
    let held = client.kv().acquire(key.as_str(), &session, "v");
    assert!(held.await.unwrap());
    let tell = async |status| {
        let update = client.agent().update_check(check.as_str(), status, "");
        update.await.unwrap();
        eventually(SOON, async || {
            let checks = client.health().checks(name.as_str()).await.unwrap();
            checks.iter().all(|check| check.status() == status)
        })
        .await;
    };
    tell(Status::Warning).await;
    assert!(info(&client, &session).await.is_some());
    tell(Status::Critical).await;
    assert_eq!(info(&client, &session).await, None);
    assert_eq!(pair(&client, &key).await.unwrap().session(), None);
    client.agent().deregister(name).await.unwrap();
}

async fn a_session_ends_with_the_ttl_of_its_check(agent: &TestAgent) {
    let (client, name) = (agent.client(), agent.name("web"));
    let ttl = Duration::from_secs(3);
    let check = checked_service(&client, &name, ttl).await;
    let session = made(&client, lasting().service_checks([check.as_str()])).await;
    let key = agent.name("lock");
    let held = client.kv().acquire(key.as_str(), &session, "v");
    assert!(held.await.unwrap());
    let told = Instant::now();
    let update = client.agent();
    update
        .update_check(check.as_str(), Status::Passing, "")
        .await
        .unwrap();
    ended(&client, &session).await;
    assert!(told.elapsed() >= ttl);
    assert_eq!(pair(&client, &key).await.unwrap().session(), None);
    // It fell under the delay of a session that ended unasked.
    let other = made(&client, lasting()).await;
    let taken = client.kv().acquire(key.as_str(), &other, "w");
    assert!(!taken.await.unwrap());
    client.agent().deregister(name).await.unwrap();
}

async fn a_session_ends_when_its_check_is_removed(agent: &TestAgent) {
    let (client, name) = (agent.client(), agent.name("web"));
    let check = checked_service(&client, &name, LONG).await;
    let by_check = made(&client, lasting().service_checks([check.as_str()])).await;
    client.agent().deregister_check(check).await.unwrap();
    ended(&client, &by_check).await;

    let check = checked_service(&client, &name, LONG).await;
    let by_service = made(&client, lasting().service_checks([check.as_str()])).await;
    client.agent().deregister(name).await.unwrap();
    ended(&client, &by_service).await;
}

async fn a_critical_check_binds_no_session(agent: &TestAgent) {
    let (client, name) = (agent.client(), agent.name("web"));
    let check = checked_service(&client, &name, LONG).await;
    let update = client
        .agent()
        .update_check(check.as_str(), Status::Critical, "");
    update.await.unwrap();
    let session = lasting().service_checks([check.as_str()]);
    eventually(SOON, async || {
        match client.session().create(&session).await {
            // Until the servers have heard of it.
            Ok(_) => false,
            Err(err) => {
                assert_eq!(err.kind(), ErrorKind::Refused, "{err}");
                true
            }
        }
    })
    .await;
    client.agent().deregister(name).await.unwrap();
}

async fn a_session_ends_with_its_node(agent: &TestAgent) {
    let (client, node) = (agent.client(), agent.name("node"));
    let entry = Entry::new(node.as_str(), "192.0.2.7");
    client.catalog().register(entry).await.unwrap();
    let session = made(&client, lasting().node(node.as_str())).await;
    let of_node = client.session().node(node.as_str()).await.unwrap();
    let [one] = of_node.as_slice() else {
        panic!("{of_node:?}");
    };
    assert_eq!((one.id(), &**one.node()), (&session, node.as_str()));
    client
        .catalog()
        .deregister_node(node.as_str())
        .await
        .unwrap();
    assert_eq!(info(&client, &session).await, None);
    let of_node = client.session().node(node.as_str()).await.unwrap();
    assert!(of_node.is_empty());
}

async fn a_session_that_is_not_renewed_ends_after_its_ttl(agent: &TestAgent) {
    let (client, key) = (agent.client(), agent.name("lock"));
    let ttl = Duration::from_secs(10);
    let began = Instant::now();
    let session = made(&client, lasting().ttl(ttl)).await;
    let held = client.kv().acquire(key.as_str(), &session, "v");
    assert!(held.await.unwrap());
    eventually(Duration::from_secs(60), async || {
        info(&client, &session).await.is_none()
    })
    .await;
    // Never sooner, and Consul takes its time.
    assert!(began.elapsed() >= ttl, "{:?}", began.elapsed());
    assert_eq!(pair(&client, &key).await.unwrap().session(), None);
    assert_eq!(client.session().renew(&session).await.unwrap(), None);
}

async fn a_read_of_a_session_waits_for_its_end(agent: &TestAgent) {
    let client = agent.client();
    let session = made(&client, lasting()).await;
    let seen = client.session().info(&session).await.unwrap();
    let index = seen.meta().index().unwrap();
    let read = client.session().info(&session).wait_for_change(index, LONG);
    let found = woken(read, async || {
        client.session().destroy(&session).await.unwrap();
    });
    let found = found.await.unwrap();
    assert!(found.meta().index().unwrap() > index);
    // An old server also wakes for other sessions: then the answer is still that it is there.
    if found.value().is_some() {
        assert_eq!(info(&client, &session).await, None);
    }
}

async fn a_list_of_sessions_waits_for_the_next(agent: &TestAgent) {
    let client = agent.client();
    let index = client.session().list().await.unwrap().meta().index();
    let read = client.session().list();
    let read = read.wait_for_change(index.unwrap(), LONG);
    let found = woken(read, async || {
        made(&client, lasting().name(agent.name("next"))).await;
    });
    assert!(found.await.unwrap().meta().index() > index);
}
