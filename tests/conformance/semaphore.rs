//! Semaphores: as many holders as there are places, and no more.

use std::time::Duration;

use lictor::ErrorKind;
use lictor::api::kv::Pair;
use lictor::api::session::NewSession;
use lictor::coordination::{LossCause, Profile, Released};
use lictor::ident::SessionId;
use serde_json::{Value, json};
use support::eventually;
use tokio::time::Instant;

use crate::TestAgent;

on_both_agents![
    as_many_hold_as_there_are_places,
    the_layout_is_the_reference_clients,
    a_waiter_has_the_place_that_is_given_back,
    a_dropped_permit_gives_its_place_back,
    a_waiter_that_is_dropped_leaves_nothing_behind,
    another_limit_is_refused_and_both_are_named,
    a_limit_that_changes_is_followed,
    what_cannot_be_a_semaphore_is_refused,
    a_plain_lock_under_the_prefix_is_a_conflict,
    a_place_of_a_destroyed_session_is_free_after_its_holder_has_lost_it,
    a_holder_that_others_struck_off_too_early_still_counts,
    a_place_whose_key_went_with_its_session_is_kept_for_the_lock_delay,
    a_holder_that_is_struck_off_the_list_is_told,
    tasks_that_share_a_lease_take_turns,
    a_deadline_is_kept,
];

const LONG: Duration = Duration::from_secs(30);
const FLAGS: u64 = 0xe0f6_9a2b_aa41_4de0;

async fn pair(agent: &TestAgent, key: &str) -> Option<Pair> {
    agent.client().kv().get(key).await.unwrap().into_value()
}

async fn document(agent: &TestAgent, prefix: &str) -> Value {
    let pair = pair(agent, &format!("{prefix}/.lock")).await.unwrap();
    assert_eq!(pair.flags(), FLAGS);
    serde_json::from_slice(pair.value()).unwrap()
}

async fn as_many_hold_as_there_are_places(agent: &TestAgent) {
    let (client, prefix) = (agent.client(), agent.name("places"));
    let semaphore = client.semaphore(&prefix, 2);
    let first = semaphore.acquire().await.unwrap();
    let second = semaphore.try_acquire().await.unwrap().unwrap();
    assert!(second.token() > first.token());
    assert_ne!(first.session(), second.session());
    assert!(semaphore.try_acquire().await.unwrap().is_none());
    first.check().unwrap();
    second.check().unwrap();
    assert!(second.remaining() > Duration::from_secs(8));
    assert_eq!(first.release().await.unwrap(), Released::Unlocked);
    let third = semaphore.try_acquire().await.unwrap().unwrap();
    assert!(third.token() > second.token());
    third.release().await.unwrap();
    second.release().await.unwrap();
    assert_eq!(agent.sessions(&prefix).await, 0);
}

async fn the_layout_is_the_reference_clients(agent: &TestAgent) {
    let (client, prefix) = (agent.client(), agent.name("layout"));
    // The slash at the end makes no difference.
    let semaphore = client.semaphore(format!("{prefix}/"), 3).value("me");
    let permit = semaphore.acquire().await.unwrap();
    let session = permit.session().as_str();
    let wanted = json!({ "Limit": 3, "Holders": { session: true } });
    assert_eq!(document(agent, &prefix).await, wanted);
    let key = format!("{prefix}/{session}");
    assert_eq!(permit.keys(), [key.as_str()]);
    let own = pair(agent, &key).await.unwrap();
    assert_eq!(own.session(), Some(permit.session()));
    assert_eq!((own.flags(), own.value()), (FLAGS, &b"me"[..]));
    assert_eq!(own.modify_index(), permit.token().get());
    permit.release().await.unwrap();
    assert!(pair(agent, &key).await.is_none());
    let wanted = json!({ "Limit": 3, "Holders": {} });
    assert_eq!(document(agent, &prefix).await, wanted);
}

async fn a_waiter_has_the_place_that_is_given_back(agent: &TestAgent) {
    let (client, prefix) = (agent.client(), agent.name("places"));
    let semaphore = client.semaphore(&prefix, 1);
    let first = semaphore.acquire().await.unwrap();
    let token = first.token();
    let (released, second) = tokio::join!(
        async {
            eventually(LONG, async || agent.sessions(&prefix).await == 2).await;
            first.release().await.unwrap()
        },
        semaphore.acquire()
    );
    assert_eq!(released, Released::Unlocked);
    let second = second.unwrap();
    assert!(second.token() > token);
    second.release().await.unwrap();
}

async fn a_dropped_permit_gives_its_place_back(agent: &TestAgent) {
    let (client, prefix) = (agent.client(), agent.name("places"));
    let permit = client.semaphore(&prefix, 1).acquire().await.unwrap();
    let lost = permit.lost();
    drop(permit);
    assert_eq!(lost.await.cause(), LossCause::Released);
    eventually(LONG, async || {
        document(agent, &prefix).await["Holders"] == json!({}) && agent.sessions(&prefix).await == 0
    })
    .await;
}

async fn a_waiter_that_is_dropped_leaves_nothing_behind(agent: &TestAgent) {
    let (client, prefix) = (agent.client(), agent.name("places"));
    let semaphore = client.semaphore(&prefix, 1);
    let permit = semaphore.acquire().await.unwrap();
    let waiting = tokio::time::timeout(Duration::from_millis(200), semaphore.acquire());
    assert!(waiting.await.is_err());
    eventually(LONG, async || agent.sessions(&prefix).await == 1).await;
    permit.check().unwrap();
    let session = permit.session().as_str();
    let wanted = json!({ "Limit": 1, "Holders": { session: true } });
    assert_eq!(document(agent, &prefix).await, wanted);
    permit.release().await.unwrap();
    // One that is dropped in the middle of taking a place gives it up.
    for millis in 0..8 {
        let taking = tokio::time::timeout(Duration::from_millis(millis), semaphore.acquire());
        drop(taking.await);
    }
    eventually(LONG, async || {
        document(agent, &prefix).await["Holders"] == json!({}) && agent.sessions(&prefix).await == 0
    })
    .await;
    let left = client.kv().keys(format!("{prefix}/")).await.unwrap();
    assert_eq!(left.into_value().len(), 1);
}

async fn another_limit_is_refused_and_both_are_named(agent: &TestAgent) {
    let (client, prefix) = (agent.client(), agent.name("places"));
    let permit = client.semaphore(&prefix, 2).acquire().await.unwrap();
    let err = client.semaphore(&prefix, 5).acquire().await.unwrap_err();
    assert_eq!(err.kind(), ErrorKind::Conflict);
    let text = err.to_string();
    assert!(
        text.contains("limit is 2") && text.contains("5 was asked for"),
        "{text}"
    );
    permit.release().await.unwrap();
    eventually(LONG, async || agent.sessions(&prefix).await == 0).await;
}

async fn a_limit_that_changes_is_followed(agent: &TestAgent) {
    let (client, prefix) = (agent.client(), agent.name("places"));
    let one = client.semaphore(&prefix, 1);
    let first = one.acquire().await.unwrap();
    // Somebody else makes room for one that waits already, and knows of the semaphore.
    let waiting = one.clone();
    let other = client.semaphore(&prefix, 1);
    let (second, ()) = tokio::join!(waiting.acquire(), async {
        eventually(LONG, async || agent.sessions(&prefix).await == 2).await;
        other.set_limit(2).await.unwrap();
    });
    let second = second.unwrap();
    first.check().unwrap();
    assert_eq!(document(agent, &prefix).await["Limit"], 2);
    // Fewer places take none away, and nobody is let in before as many have gone.
    one.set_limit(1).await.unwrap();
    first.check().unwrap();
    second.check().unwrap();
    first.release().await.unwrap();
    assert!(waiting.try_acquire().await.unwrap().is_none());
    second.release().await.unwrap();
    let third = waiting.try_acquire().await.unwrap().unwrap();
    third.release().await.unwrap();
    let err = one.set_limit(0).await.unwrap_err();
    assert_eq!(err.kind(), ErrorKind::Invalid);
    // It can be set before anybody has a place.
    let fresh = client.semaphore(agent.name("fresh"), 7);
    fresh.set_limit(3).await.unwrap();
    fresh.acquire().await.unwrap().release().await.unwrap();
    assert_eq!(document(agent, &agent.name("fresh")).await["Limit"], 3);
}

async fn what_cannot_be_a_semaphore_is_refused(agent: &TestAgent) {
    let client = agent.client();
    for (prefix, limit) in [("", 1), ("a//b", 1), ("a/../b", 1), ("a", 0)] {
        let err = client.semaphore(prefix, limit).acquire().await.unwrap_err();
        assert_eq!(err.kind(), ErrorKind::Invalid, "{prefix:?} {limit}");
    }
}

async fn a_plain_lock_under_the_prefix_is_a_conflict(agent: &TestAgent) {
    let (client, prefix) = (agent.client(), agent.name("places"));
    let key = format!("{prefix}/.lock");
    let guard = client.lock(key.as_str()).acquire().await.unwrap();
    let err = client.semaphore(&prefix, 1).acquire().await.unwrap_err();
    assert_eq!(err.kind(), ErrorKind::Conflict);
    assert!(err.to_string().contains("is a lock"), "{err}");
    guard.release().await.unwrap();
    // And the other way round.
    client.kv().delete(key.as_str()).await.unwrap();
    let permit = client.semaphore(&prefix, 1).acquire().await.unwrap();
    let err = client.lock(key.as_str()).acquire().await.unwrap_err();
    assert_eq!(err.kind(), ErrorKind::Conflict);
    permit.release().await.unwrap();
}

async fn a_place_of_a_destroyed_session_is_free_after_its_holder_has_lost_it(agent: &TestAgent) {
    let (client, prefix) = (agent.client(), agent.name("places"));
    let semaphore = client.semaphore(&prefix, 1).profile(Profile::aggressive());
    let permit = semaphore.acquire().await.unwrap();
    let next = async {
        let next = client.semaphore(&prefix, 1).acquire().await.unwrap();
        (next, Instant::now())
    };
    let destroyed = async {
        eventually(LONG, async || agent.sessions(&prefix).await == 2).await;
        let at = Instant::now();
        client.session().destroy(permit.session()).await.unwrap();
        permit.lost().await;
        (at, Instant::now())
    };
    let ((next, held), (destroyed, lost)) = tokio::join!(next, destroyed);
    assert!(lost < held, "two held");
    let waited = held - destroyed;
    assert!(waited > Duration::from_millis(950), "{waited:?}");
    assert!(next.token() > permit.token());
    // What the dead one has left is gone.
    let key = format!("{prefix}/{}", permit.session());
    assert!(pair(agent, &key).await.is_none());
    next.release().await.unwrap();
}

/// A place that is taken as the reference client takes one, by a session of this lock-delay.
async fn taken_by_hand(agent: &TestAgent, prefix: &str, session: &NewSession) -> SessionId {
    let client = agent.client();
    let session = client.session().create(session).await.unwrap();
    let key = format!("{prefix}/{session}");
    let acquire = client.kv().acquire(key.as_str(), &session, "").flags(FLAGS);
    assert!(acquire.await.unwrap());
    let document = json!({ "Limit": 1, "Holders": { session.as_str(): true } }).to_string();
    let put = client.kv().put(format!("{prefix}/.lock"), document);
    assert!(put.flags(FLAGS).await.unwrap());
    session
}

async fn a_holder_that_others_struck_off_too_early_still_counts(agent: &TestAgent) {
    let (client, prefix) = (agent.client(), agent.name("places"));
    let delay = Duration::from_secs(2);
    let session = NewSession::new().lock_delay(delay).no_checks();
    let session = taken_by_hand(agent, &prefix, &session).await;
    let semaphore = client.semaphore(&prefix, 1);
    assert!(semaphore.try_acquire().await.unwrap().is_none());
    let at = Instant::now();
    client.session().destroy(&session).await.unwrap();
    let document = json!({ "Limit": 1, "Holders": {} }).to_string();
    let put = client.kv().put(format!("{prefix}/.lock"), document);
    assert!(put.flags(FLAGS).await.unwrap());
    assert!(semaphore.try_acquire().await.unwrap().is_none());
    let permit = semaphore.acquire().await.unwrap();
    assert!(at.elapsed() > delay - Duration::from_millis(50));
    permit.release().await.unwrap();
}

async fn a_place_whose_key_went_with_its_session_is_kept_for_the_lock_delay(agent: &TestAgent) {
    use lictor::api::session::Behavior;

    let (client, prefix) = (agent.client(), agent.name("places"));
    let delay = Duration::from_secs(2);
    let session = NewSession::new().lock_delay(delay).no_checks();
    let session = session.behavior(Behavior::Delete);
    let session = taken_by_hand(agent, &prefix, &session).await;
    let semaphore = client.semaphore(&prefix, 1);
    let at = Instant::now();
    client.session().destroy(&session).await.unwrap();
    assert!(pair(agent, &format!("{prefix}/{session}")).await.is_none());
    assert!(semaphore.try_acquire().await.unwrap().is_none());
    let permit = semaphore.acquire().await.unwrap();
    assert!(at.elapsed() > delay - Duration::from_millis(50));
    permit.release().await.unwrap();
}

async fn a_holder_that_is_struck_off_the_list_is_told(agent: &TestAgent) {
    let (client, prefix) = (agent.client(), agent.name("places"));
    let permit = client.semaphore(&prefix, 1).acquire().await.unwrap();
    let document = format!("{prefix}/.lock");
    client.kv().delete(document.as_str()).await.unwrap();
    assert_eq!(permit.lost().await.cause(), LossCause::KeyGone);
    assert_eq!(permit.release().await.unwrap(), Released::WasLost);
    let permit = client.semaphore(&prefix, 1).acquire().await.unwrap();
    let own = permit.keys()[0].clone();
    client.kv().delete(own.as_str()).await.unwrap();
    assert_eq!(permit.lost().await.cause(), LossCause::KeyGone);
    permit.release().await.unwrap();
}

async fn tasks_that_share_a_lease_take_turns(agent: &TestAgent) {
    let (client, prefix) = (agent.client(), agent.name("places"));
    let lease = client.lease().name(agent.name("shared")).build().unwrap();
    let semaphore = client.semaphore(&prefix, 5).lease(&lease);
    let first = semaphore.acquire().await.unwrap();
    assert!(semaphore.try_acquire().await.unwrap().is_none());
    let (second, _) = tokio::join!(semaphore.acquire(), first.release());
    let second = second.unwrap();
    second.check().unwrap();
    second.release().await.unwrap();
    lease.close().await.unwrap();
}

async fn a_deadline_is_kept(agent: &TestAgent) {
    let (client, prefix) = (agent.client(), agent.name("places"));
    let semaphore = client.semaphore(&prefix, 1);
    let permit = semaphore.acquire().await.unwrap();
    let soon = semaphore.clone().deadline(Duration::from_millis(300));
    let err = soon.acquire().await.unwrap_err();
    assert_eq!(err.kind(), ErrorKind::Timeout);
    assert!(err.to_string().contains("none of 1 was free"), "{err}");
    permit.release().await.unwrap();
}
