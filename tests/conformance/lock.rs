//! Locks: one holder, and a hand-over without a gap.

use std::time::Duration;

use lictor::ErrorKind;
use lictor::coordination::{Attempt, LeaseState, LossCause, Profile, Released};
use support::eventually;

use crate::TestAgent;

on_both_agents![
    one_holds_and_the_next_holds_after_the_release,
    a_try_tells_who_holds,
    a_dropped_guard_unlocks_and_ends_its_session,
    a_waiter_that_is_dropped_leaves_nothing_behind,
    what_stands_in_the_key_stays_there,
    a_deadline_tells_who_holds,
    a_deleted_key_is_a_loss,
    a_destroyed_session_is_a_loss_and_others_wait_for_the_lock_delay,
    several_keys_are_taken_together_or_not_at_all,
    tasks_that_share_a_lease_take_turns,
    a_lease_bound_to_a_check_leaves_nothing_behind,
];

const LONG: Duration = Duration::from_secs(30);

async fn one_holds_and_the_next_holds_after_the_release(agent: &TestAgent) {
    let (client, key) = (agent.client(), agent.name("lock"));
    let first = client.lock(key.as_str()).acquire().await.unwrap();
    first.check().unwrap();
    assert!(first.remaining() > Duration::from_secs(8));
    let second = client.lock(key.as_str());
    let token = first.token();
    let (released, second) = tokio::join!(
        async {
            eventually(LONG, async || agent.sessions(&key).await == 2).await;
            first.release().await.unwrap()
        },
        second.acquire()
    );
    assert_eq!(released, Released::Unlocked);
    let second = second.unwrap();
    assert!(second.token() > token);
    second.check().unwrap();
    assert_eq!(second.release().await.unwrap(), Released::Unlocked);
    assert_eq!(agent.sessions(&key).await, 0);
}

async fn a_try_tells_who_holds(agent: &TestAgent) {
    let (client, key) = (agent.client(), agent.name("lock"));
    let lock = client.lock(key.as_str()).value("me");
    let guard = lock.try_acquire().await.unwrap().acquired().unwrap();
    match client.lock(key.as_str()).try_acquire().await.unwrap() {
        Attempt::Held(holder) => {
            assert_eq!(holder.session(), Some(guard.session()));
            assert_eq!(holder.value(), b"me");
        }
        other => panic!("{other:?}"),
    }
    guard.release().await.unwrap();
    let again = client.lock(key.as_str()).try_acquire().await.unwrap();
    assert!(again.acquired().is_some());
}

async fn a_dropped_guard_unlocks_and_ends_its_session(agent: &TestAgent) {
    let (client, key) = (agent.client(), agent.name("lock"));
    let guard = client.lock(key.as_str()).acquire().await.unwrap();
    let lost = guard.lost();
    drop(guard);
    assert_eq!(lost.await.cause(), LossCause::Released);
    eventually(LONG, async || {
        let pair = client.kv().get(key.as_str()).await.unwrap().into_value();
        pair.unwrap().session().is_none() && agent.sessions(&key).await == 0
    })
    .await;
}

async fn a_waiter_that_is_dropped_leaves_nothing_behind(agent: &TestAgent) {
    let (client, key) = (agent.client(), agent.name("lock"));
    let guard = client.lock(key.as_str()).acquire().await.unwrap();
    let other = client.lock(key.as_str());
    let waiting = tokio::time::timeout(Duration::from_millis(200), other.acquire());
    assert!(waiting.await.is_err());
    eventually(LONG, async || agent.sessions(&key).await == 1).await;
    guard.check().unwrap();
    guard.release().await.unwrap();
    assert_eq!(agent.sessions(&key).await, 0);
}

async fn what_stands_in_the_key_stays_there(agent: &TestAgent) {
    let (client, key) = (agent.client(), agent.name("lock"));
    let stands = async || {
        let pair = client.kv().get(key.as_str()).await.unwrap().into_value();
        let pair = pair.unwrap();
        (
            pair.value().to_vec(),
            pair.flags(),
            pair.session().is_some(),
        )
    };
    const LOCK: u64 = 0x2ddc_cbc0_58a5_0c18;
    client.kv().put(key.as_str(), "old").await.unwrap();
    let guard = client.lock(key.as_str()).acquire().await.unwrap();
    assert_eq!(stands().await, (b"old".to_vec(), LOCK, true));
    let token = guard.token();
    guard.set_value("new").await.unwrap();
    assert_eq!(stands().await, (b"new".to_vec(), LOCK, true));
    assert_eq!(guard.token(), token);
    // Somebody writes into it without asking for the lock.
    client
        .kv()
        .put(key.as_str(), "foreign")
        .flags(7)
        .await
        .unwrap();
    guard.release().await.unwrap();
    assert_eq!(stands().await, (b"foreign".to_vec(), 7, false));
}

async fn a_deadline_tells_who_holds(agent: &TestAgent) {
    let (client, key) = (agent.client(), agent.name("lock"));
    let guard = client.lock(key.as_str()).acquire().await.unwrap();
    let other = client
        .lock(key.as_str())
        .deadline(Duration::from_millis(300));
    let err = other.acquire().await.unwrap_err();
    assert_eq!(err.kind(), ErrorKind::Timeout);
    assert!(err.to_string().contains(guard.session().as_str()), "{err}");
}

async fn a_deleted_key_is_a_loss(agent: &TestAgent) {
    let (client, key) = (agent.client(), agent.name("lock"));
    let guard = client.lock(key.as_str()).acquire().await.unwrap();
    client.kv().delete(key.as_str()).await.unwrap();
    assert_eq!(guard.lost().await.cause(), LossCause::KeyGone);
    assert!(guard.check().is_err());
    assert_eq!(guard.remaining(), Duration::ZERO);
    assert_eq!(guard.release().await.unwrap(), Released::WasLost);
}

async fn a_destroyed_session_is_a_loss_and_others_wait_for_the_lock_delay(agent: &TestAgent) {
    let (client, key) = (agent.client(), agent.name("lock"));
    let profile = Profile::aggressive();
    let lock = client.lock(key.as_str()).profile(profile);
    let guard = lock.acquire().await.unwrap();
    let next = async {
        let lock = client.lock(key.as_str());
        let guard = lock.acquire().await.unwrap();
        (guard, tokio::time::Instant::now())
    };
    let destroyed = async {
        eventually(LONG, async || agent.sessions(&key).await == 2).await;
        client.session().destroy(guard.session()).await.unwrap();
        let at = tokio::time::Instant::now();
        assert_eq!(guard.lost().await.cause(), LossCause::SessionGone);
        (at, tokio::time::Instant::now())
    };
    let ((next, held), (destroyed, lost)) = tokio::join!(next, destroyed);
    assert!(lost < held, "two held");
    let waited = held - destroyed;
    assert!(waited > Duration::from_millis(950), "{waited:?}");
    assert!(next.token() > guard.token());
}

async fn several_keys_are_taken_together_or_not_at_all(agent: &TestAgent) {
    let (client, a, b) = (agent.client(), agent.name("a"), agent.name("b"));
    let only = client.lock(b.as_str()).acquire().await.unwrap();
    let both = client.lock(a.as_str()).and(b.as_str());
    assert!(both.try_acquire().await.unwrap().acquired().is_none());
    let other = client.lock(a.as_str()).try_acquire().await.unwrap();
    other.acquired().unwrap().release().await.unwrap();
    let (both, _) = tokio::join!(both.acquire(), only.release());
    let both = both.unwrap();
    for key in [&a, &b] {
        let pair = client.kv().get(key.as_str()).await.unwrap().into_value();
        assert_eq!(pair.unwrap().session(), Some(both.session()));
    }
    // One of them is taken away; the other is unlocked all the same.
    client.kv().delete(a.as_str()).await.unwrap();
    both.lost().await;
    assert_eq!(both.release().await.unwrap(), Released::Unlocked);
    let pair = client.kv().get(b.as_str()).await.unwrap().into_value();
    assert_eq!(pair.unwrap().session(), None);
}

async fn tasks_that_share_a_lease_take_turns(agent: &TestAgent) {
    let (client, key) = (agent.client(), agent.name("lock"));
    let name = agent.name("shared");
    let lease = client.lease().name(name.as_str()).build().unwrap();
    assert!(matches!(lease.state(), LeaseState::Idle));
    let lock = client.lock(key.as_str()).lease(&lease);
    let first = lock.acquire().await.unwrap();
    assert!(lease.state().is_held());
    assert!(lock.try_acquire().await.unwrap().acquired().is_none());
    let (second, _) = tokio::join!(lock.acquire(), first.release());
    let second = second.unwrap();
    let apart = client.lock(agent.name("other")).lease(&lease);
    let other = apart.acquire().await.unwrap();
    assert_eq!(other.session(), second.session());
    assert_eq!(agent.sessions(&name).await, 1);
    // Closing the lease tells both, and ends the session.
    lease.close().await.unwrap();
    assert_eq!(second.lost().await.cause(), LossCause::Released);
    assert_eq!(other.lost().await.cause(), LossCause::Released);
    assert_eq!(agent.sessions(&name).await, 0);
    let third = lock.acquire().await.unwrap();
    assert!(third.token() > second.token());
    third.release().await.unwrap();
    assert_eq!(agent.sessions(&name).await, 1);
    drop((second, other, apart, lock, lease));
    eventually(LONG, async || agent.sessions(&name).await == 0).await;
}

async fn a_lease_bound_to_a_check_leaves_nothing_behind(agent: &TestAgent) {
    let (client, key) = (agent.client(), agent.name("lock"));
    let lock = client.lock(key.as_str()).profile(Profile::fast());
    let guard = lock.acquire().await.unwrap();
    let info = client.session().info(guard.session()).await.unwrap();
    let session = info.into_value().unwrap();
    let id = session.service_checks()[0].id().to_string();
    assert!(client.agent().service(id.as_str()).await.unwrap().is_some());
    guard.release().await.unwrap();
    assert!(client.agent().service(id.as_str()).await.unwrap().is_none());
}
