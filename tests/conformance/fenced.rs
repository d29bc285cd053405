//! Writes that Consul refuses from whoever no longer holds.

use std::error::Error;
use std::pin::pin;
use std::time::Duration;

use lictor::api::txn::{FailureReason, KvOp, Outcome};
use lictor::coordination::{LossCause, Lost, Next, Term};
use lictor::{Client, ErrorKind};
use support::eventually;
use support::proxy::Proxy;
use tokio::sync::{Notify, mpsc};

use crate::TestAgent;

on_both_agents![
    a_holder_writes_and_deletes,
    a_stale_holder_is_refused_and_told,
    a_released_guard_sends_nothing,
    a_holder_whose_session_has_ended_is_told_so,
    a_late_write_of_an_earlier_hold_by_the_same_session_is_refused,
    a_write_into_the_held_key_does_not_refuse_the_holder,
    a_permit_fences_too,
    all_keys_of_a_lock_are_looked_at,
    places_and_reasons_are_those_of_the_callers_operations,
    too_many_operations_are_told_before_anything_is_sent,
];

const LONG: Duration = Duration::from_secs(30);

async fn value(agent: &TestAgent, key: &str) -> Option<String> {
    let pair = agent.client().kv().get(key).await.unwrap().into_value();
    pair.map(|pair| pair.value_str().unwrap().to_owned())
}

#[track_caller]
fn is_stale(err: &lictor::Error) {
    assert_eq!(err.kind(), ErrorKind::Conflict, "{err}");
    let lost = err.source().and_then(|err| err.downcast_ref::<Lost>());
    assert!(lost.is_some(), "{err:?}");
}

async fn a_holder_writes_and_deletes(agent: &TestAgent) {
    let (client, data) = (agent.client(), agent.name("data"));
    let guard = client.lock(agent.name("lock")).acquire().await.unwrap();
    let kv = client.kv();
    let fenced = kv.fenced(&guard);
    fenced.put(data.as_str(), "one").await.unwrap();
    assert_eq!(value(agent, &data).await.unwrap(), "one");
    let pair = kv.get(data.as_str()).await.unwrap().into_value().unwrap();
    let index = pair.modify_index();
    assert!(fenced.cas(data.as_str(), "two", index).await.unwrap());
    assert!(!fenced.cas(data.as_str(), "three", index).await.unwrap());
    assert!(!fenced.cas(data.as_str(), "three", 0).await.unwrap());
    assert_eq!(value(agent, &data).await.unwrap(), "two");
    fenced.delete(data.as_str()).await.unwrap();
    assert!(value(agent, &data).await.is_none());
    fenced.put(format!("{data}/a"), "").await.unwrap();
    fenced.delete_tree(format!("{data}/")).await.unwrap();
    assert!(value(agent, &format!("{data}/a")).await.is_none());
    guard.check().unwrap();
    guard.release().await.unwrap();
}

async fn a_stale_holder_is_refused_and_told(agent: &TestAgent) {
    let (client, key, data) = (agent.client(), agent.name("lock"), agent.name("data"));
    let guard = client.lock(key.as_str()).acquire().await.unwrap();
    let kv = client.kv();
    kv.put(data.as_str(), "before").await.unwrap();
    // By hand, so that only Consul knows; and somebody else has the key at once.
    kv.delete(key.as_str()).await.unwrap();
    let next = client.lock(key.as_str()).acquire().await.unwrap();
    let fenced = kv.fenced(&guard);
    is_stale(&fenced.put(data.as_str(), "stale").await.unwrap_err());
    assert_eq!(guard.lost().await.cause(), LossCause::KeyGone);
    assert!(guard.check().is_err());
    is_stale(&fenced.cas(data.as_str(), "stale", 0).await.unwrap_err());
    is_stale(&fenced.delete(data.as_str()).await.unwrap_err());
    is_stale(&fenced.delete_tree(data.as_str()).await.unwrap_err());
    assert_eq!(value(agent, &data).await.unwrap(), "before");
    next.check().unwrap();
    kv.fenced(&next).put(data.as_str(), "after").await.unwrap();
    assert_eq!(value(agent, &data).await.unwrap(), "after");
    next.release().await.unwrap();
}

async fn a_released_guard_sends_nothing(agent: &TestAgent) {
    let (client, data) = (agent.client(), agent.name("data"));
    let lease = client.lease().build().unwrap();
    let lock = client.lock(agent.name("lock")).lease(&lease);
    let guard = lock.acquire().await.unwrap();
    // The lease takes the lock away from under the guard.
    lease.close().await.unwrap();
    let err = client.kv().fenced(&guard).put(data.as_str(), "x").await;
    let err = err.unwrap_err();
    is_stale(&err);
    let lost = err.source().and_then(|err| err.downcast_ref::<Lost>());
    assert_eq!(lost.unwrap().cause(), LossCause::Released);
    assert!(value(agent, &data).await.is_none());
}

async fn a_holder_whose_session_has_ended_is_told_so(agent: &TestAgent) {
    let (client, data) = (agent.client(), agent.name("data"));
    let guard = client.lock(agent.name("lock")).acquire().await.unwrap();
    client.session().destroy(guard.session()).await.unwrap();
    let err = client.kv().fenced(&guard).put(data.as_str(), "x").await;
    let err = err.unwrap_err();
    is_stale(&err);
    let lost = err.source().and_then(|err| err.downcast_ref::<Lost>());
    assert_eq!(lost.unwrap().cause(), LossCause::SessionGone);
    assert_eq!(guard.lost().await.cause(), LossCause::SessionGone);
    assert!(value(agent, &data).await.is_none());
}

async fn a_late_write_of_an_earlier_hold_by_the_same_session_is_refused(agent: &TestAgent) {
    let (client, data) = (agent.client(), agent.name("data"));
    let addr = agent.http_url().replace("http://", "").parse().unwrap();
    let proxy = Proxy::start(addr).await.unwrap();
    let slow = Client::builder().address(proxy.url()).build().unwrap();
    let lease = client.lease().build().unwrap();
    let election = client.election(agent.name("lock")).lease(&lease);
    let (tell, mut terms) = mpsc::channel(2);
    let (rejoin, stop) = (Notify::new(), Notify::new());
    let run = election.run(stop.notified(), async |term: Term| {
        tell.send(term).await.unwrap();
        rejoin.notified().await;
        Next::Rejoin
    });
    let late = async {
        let first = terms.recv().await.unwrap();
        // It is sent while the first hold lasts, and held up on its way.
        proxy.black_hole();
        let kv = slow.kv();
        let fenced = kv.fenced(&first);
        let mut late = pin!(fenced.put(data.as_str(), "late"));
        tokio::select! {
            biased;
            written = &mut late => panic!("{written:?}"),
            () = eventually(LONG, async || proxy.connections() == 1) => {}
        }
        rejoin.notify_one();
        let second = terms.recv().await.unwrap();
        assert_eq!(second.session(), first.session());
        assert!(second.token() > first.token());
        proxy.resume();
        is_stale(&late.await.unwrap_err());
        assert!(value(agent, &data).await.is_none());
        let kv = client.kv();
        kv.fenced(&second).put(data.as_str(), "now").await.unwrap();
        assert_eq!(value(agent, &data).await.unwrap(), "now");
        stop.notify_one();
        rejoin.notify_one();
    };
    let (outcome, ()) = tokio::join!(run, late);
    outcome.unwrap();
    lease.close().await.unwrap();
}

async fn a_write_into_the_held_key_does_not_refuse_the_holder(agent: &TestAgent) {
    let (client, key, data) = (agent.client(), agent.name("lock"), agent.name("data"));
    let guard = client.lock(key.as_str()).acquire().await.unwrap();
    let kv = client.kv();
    let fenced = kv.fenced(&guard);
    for text in ["one", "two", "three"] {
        // By the holder, by somebody else, and by the fenced write itself.
        guard.set_value(text).await.unwrap();
        fenced.put(data.as_str(), text).await.unwrap();
        kv.put(key.as_str(), "foreign").await.unwrap();
        fenced.put(data.as_str(), text).await.unwrap();
        fenced.put(key.as_str(), text).await.unwrap();
        fenced.put(data.as_str(), text).await.unwrap();
        assert_eq!(value(agent, &data).await.unwrap(), text);
        guard.check().unwrap();
    }
    guard.release().await.unwrap();
    assert_eq!(value(agent, &key).await.unwrap(), "three");
}

async fn a_permit_fences_too(agent: &TestAgent) {
    let (client, data) = (agent.client(), agent.name("data"));
    let semaphore = client.semaphore(agent.name("places"), 2);
    let first = semaphore.acquire().await.unwrap();
    let second = semaphore.acquire().await.unwrap();
    let kv = client.kv();
    for permit in [&first, &second] {
        kv.fenced(permit).put(data.as_str(), "").await.unwrap();
    }
    client.session().destroy(first.session()).await.unwrap();
    is_stale(&kv.fenced(&first).put(data.as_str(), "x").await.unwrap_err());
    kv.fenced(&second).put(data.as_str(), "y").await.unwrap();
    second.release().await.unwrap();
}

async fn all_keys_of_a_lock_are_looked_at(agent: &TestAgent) {
    let (client, data) = (agent.client(), agent.name("data"));
    let (a, b) = (agent.name("a"), agent.name("b"));
    let lock = client.lock(a.as_str()).and(b.as_str());
    let guard = lock.acquire().await.unwrap();
    let kv = client.kv();
    kv.fenced(&guard).put(data.as_str(), "").await.unwrap();
    kv.delete(b.as_str()).await.unwrap();
    is_stale(&kv.fenced(&guard).put(data.as_str(), "x").await.unwrap_err());
    guard.release().await.unwrap();
}

async fn places_and_reasons_are_those_of_the_callers_operations(agent: &TestAgent) {
    let (client, data) = (agent.client(), agent.name("data"));
    let guard = client.lock(agent.name("lock")).acquire().await.unwrap();
    let kv = client.kv();
    let txn = kv.fenced(&guard).txn();
    let txn = txn
        .kv(KvOp::set(data.as_str(), "x"))
        .kv(KvOp::get(data.as_str()));
    let results = txn.await.unwrap().committed().unwrap();
    assert_eq!(results.iter().count(), 2);
    assert_eq!(results.kv(1).unwrap().value_str(), Some("x"));
    let txn = kv.fenced(&guard).txn().kv(KvOp::set(data.as_str(), "y"));
    let txn = txn.kv(KvOp::check_not_exists(data.as_str()));
    match txn.await.unwrap() {
        Outcome::RolledBack(failures) => {
            assert_eq!(failures.len(), 1);
            assert_eq!(failures[0].operation(), 1);
            assert_eq!(failures[0].reason(), &FailureReason::Exists);
        }
        other => panic!("{other:?}"),
    }
    // What failed was not the hold.
    guard.check().unwrap();
    guard.release().await.unwrap();
}

async fn too_many_operations_are_told_before_anything_is_sent(agent: &TestAgent) {
    let (client, data) = (agent.client(), agent.name("data"));
    let guard = client.lock(agent.name("lock")).acquire().await.unwrap();
    let kv = client.kv();
    let of = |count: usize| {
        let mut txn = kv.fenced(&guard).txn().timeout(Duration::from_secs(10));
        for place in 0..count {
            txn = txn.kv(KvOp::set(format!("{data}/{place}"), ""));
        }
        txn
    };
    for count in [0, 63] {
        let err = of(count).await.unwrap_err();
        assert_eq!(err.kind(), ErrorKind::Invalid);
        assert!(err.to_string().contains("1 to 62"), "{err}");
    }
    let most = of(62).await.unwrap().committed().unwrap();
    assert_eq!(most.iter().count(), 62);
    guard.release().await.unwrap();
}
