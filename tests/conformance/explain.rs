//! Why a lock or a place is not to be had.

use std::time::Duration;

use lictor::coordination::{Lock, Profile};
use support::eventually;

use crate::TestAgent;

on_both_agents![
    a_free_lock_is_free_and_stays_so,
    who_holds_and_who_waits_is_told,
    a_lock_delay_that_runs_is_told,
    a_semaphore_tells_who_has_its_places,
];

const LONG: Duration = Duration::from_secs(30);

async fn sessions(agent: &TestAgent) -> usize {
    let all = agent.client().session().list().await.unwrap();
    all.iter()
        .filter(|session| session.name().starts_with("lictor "))
        .count()
}

async fn waits(lock: &Lock, count: usize) {
    eventually(LONG, async || {
        lock.explain().await.unwrap().waiting() == count
    })
    .await;
}

async fn a_free_lock_is_free_and_stays_so(agent: &TestAgent) {
    let (client, key) = (agent.client(), agent.name("lock"));
    let lock = client.lock(key.as_str());
    let explanation = lock.explain().await.unwrap();
    assert!(explanation.is_free());
    assert!(explanation.to_string().contains("free; 0 waiting"));
    let pair = client.kv().get(key.as_str()).await.unwrap();
    assert!(pair.is_none(), "it has left a key");
    // What it asked by is gone; other cases have some of their own for a moment.
    eventually(LONG, async || sessions(agent).await == 0).await;
    let guard = lock.acquire().await.unwrap();
    guard.release().await.unwrap();
    assert!(lock.explain().await.unwrap().is_free());
}

async fn who_holds_and_who_waits_is_told(agent: &TestAgent) {
    let (client, key) = (agent.client(), agent.name("lock"));
    let lock = client.lock(key.as_str()).value("me");
    let guard = lock.acquire().await.unwrap();
    let explanation = lock.explain().await.unwrap();
    assert!(!explanation.is_free());
    assert_eq!(explanation.waiting(), 0);
    let state = &explanation.keys()[0];
    assert_eq!(*state.key(), key.as_str());
    assert!(!state.is_delayed());
    let occupant = state.occupant().unwrap();
    assert_eq!(occupant.session(), guard.session());
    assert!(occupant.name().unwrap().starts_with(&key));
    assert!(occupant.node().is_some());
    assert_eq!(occupant.value(), b"me");
    assert_eq!(occupant.since(), guard.token().get());
    assert_eq!(occupant.lock_delay(), Some(Duration::from_millis(9500)));
    let text = explanation.to_string();
    assert!(text.contains(guard.session().as_str()), "{text}");
    let other = client.lock(key.as_str());
    let waiting = other.acquire();
    let told = async {
        waits(&lock, 1).await;
        guard.release().await.unwrap();
    };
    let (second, ()) = tokio::join!(waiting, told);
    waits(&lock, 0).await;
    second.unwrap().release().await.unwrap();
}

async fn a_lock_delay_that_runs_is_told(agent: &TestAgent) {
    let (client, key) = (agent.client(), agent.name("lock"));
    let lock = client.lock(key.as_str()).profile(Profile::fast());
    let guard = lock.acquire().await.unwrap();
    client.session().destroy(guard.session()).await.unwrap();
    let explanation = lock.explain().await.unwrap();
    let state = &explanation.keys()[0];
    assert!(state.occupant().is_none());
    assert!(state.is_delayed());
    assert!(!explanation.is_free());
    assert!(explanation.to_string().contains("a lock-delay runs"));
    eventually(LONG, async || lock.explain().await.unwrap().is_free()).await;
}

async fn a_semaphore_tells_who_has_its_places(agent: &TestAgent) {
    let (client, prefix) = (agent.client(), agent.name("places"));
    let semaphore = client.semaphore(&prefix, 2).value("me");
    let places = semaphore.explain().await.unwrap();
    assert_eq!((places.limit(), places.taken().len()), (None, 0));
    let first = semaphore.acquire().await.unwrap();
    let second = semaphore.acquire().await.unwrap();
    let waiting = semaphore.acquire();
    let told = async {
        eventually(LONG, async || {
            semaphore.explain().await.unwrap().waiting() == 1
        })
        .await;
        let places = semaphore.explain().await.unwrap();
        assert_eq!((places.limit(), places.taken().len()), (Some(2), 2));
        for place in places.taken() {
            assert!(!place.has_ended());
            let occupant = place.occupant().unwrap();
            assert!([first.session(), second.session()].contains(&occupant.session()));
            assert_eq!(occupant.value(), b"me");
            assert!(occupant.name().unwrap().starts_with(&prefix));
        }
        let text = places.to_string();
        assert!(text.starts_with("2 of 2 places taken"), "{text}");
        first.release().await.unwrap();
    };
    let (third, ()) = tokio::join!(waiting, told);
    client.session().destroy(second.session()).await.unwrap();
    let places = semaphore.explain().await.unwrap();
    let ended = places.taken().iter().find(|place| place.has_ended());
    assert_eq!(ended.unwrap().session(), second.session().as_str());
    assert_eq!(places.taken().len(), 2);
    third.unwrap().release().await.unwrap();
}
