//! Transactions: every operation, every reason to fail, and all of it or nothing.

use std::cell::Cell;
use std::time::Duration;

use http::Method;
use lictor::api::Consistency;
use lictor::api::catalog::{NewCheck, NewService};
use lictor::api::health::Status;
use lictor::api::kv::Pair;
use lictor::api::session::NewSession;
use lictor::api::txn::{
    CheckOp, Failure, FailureReason, KvEntry, KvOp, NewNode, NodeOp, OpResult, Outcome, Results,
    ServiceOp, Txn,
};
use lictor::ident::SessionId;
use lictor::{Client, ErrorKind};

use crate::{Kind, TestAgent};

on_both_agents![
    a_write_tells_the_new_state_without_its_value,
    a_read_tells_value_and_state,
    a_prefix_is_read_whole,
    deletions_take_place_and_tell_nothing,
    a_key_that_may_be_missing_is_read_where_consul_can,
    a_conditional_write_takes_place_only_at_its_index,
    a_check_of_an_index_tells_the_current_one,
    a_check_of_a_session_tells_the_current_one,
    a_check_that_a_key_is_missing_fails_if_it_is_not,
    a_lock_has_one_holder_and_its_index_grows,
    the_lock_index_is_lost_by_plain_writes_and_the_index_grows_on,
    an_unlock_replaces_value_and_flags,
    only_the_holder_can_unlock,
    a_lock_needs_a_session_that_is_there,
    a_lock_waits_for_the_lock_delay,
    a_guarded_lock_takes_only_what_was_seen,
    a_guarded_write_needs_the_lock,
    all_or_nothing_takes_place,
    operations_see_what_was_done_before_them,
    each_result_stands_where_its_operation_stood,
    overlapping_prefixes_are_told_apart,
    every_failure_is_told_at_its_place,
    a_key_of_any_sort_can_be_locked,
    nodes_come_and_go,
    services_come_and_go,
    checks_come_and_go,
    what_has_no_node_or_service_is_missing,
    a_node_takes_its_services_checks_and_sessions_along,
    things_of_all_kinds_change_together,
    a_read_may_be_answered_by_any_server,
    the_limits_of_a_transaction_are_told,
    what_is_no_transaction_is_refused,
];

/// Longer than any test.
const LONG: Duration = Duration::from_secs(60);

/// A session that nothing ends but its destruction.
async fn session(agent: &TestAgent) -> SessionId {
    let session = NewSession::new().no_checks();
    agent.client().session().create(&session).await.unwrap()
}

async fn committed(txn: Txn) -> Results {
    txn.await.unwrap().into_result().unwrap()
}

async fn rolled_back(txn: Txn) -> Vec<Failure> {
    match txn.await.unwrap() {
        Outcome::RolledBack(failures) => failures,
        Outcome::Committed(results) => panic!("committed: {results:?}"),
    }
}

/// The only failure, which is that of the first operation.
async fn reason(txn: Txn) -> FailureReason {
    let failures = rolled_back(txn).await;
    let [failure] = failures.as_slice() else {
        panic!("{failures:?}");
    };
    assert_eq!(failure.operation(), 0);
    failure.reason().clone()
}

/// The result of one operation on a key.
async fn done(client: &Client, op: KvOp) -> KvEntry {
    let results = committed(client.txn().kv(op)).await;
    results.kv(0).unwrap().clone()
}

/// Why one operation on a key fails.
async fn why(client: &Client, op: KvOp) -> FailureReason {
    reason(client.txn().kv(op)).await
}

async fn pair(client: &Client, key: &str) -> Option<Pair> {
    client.kv().get(key).await.unwrap().into_value()
}

/// The same state as a read by itself brings.
#[track_caller]
fn same(entry: &KvEntry, pair: &Pair) {
    assert_eq!(entry.key(), pair.key());
    assert_eq!(entry.flags(), pair.flags());
    assert_eq!(entry.session(), pair.session());
    assert_eq!(entry.lock_index(), pair.lock_index());
    assert_eq!(entry.create_index(), pair.create_index());
    assert_eq!(entry.modify_index(), pair.modify_index());
}

const STALE: FailureReason = FailureReason::OtherIndex { current: None };

async fn a_write_tells_the_new_state_without_its_value(agent: &TestAgent) {
    let (client, key) = (agent.client(), agent.name("key"));
    let every_byte: Vec<u8> = (0..=255).collect();
    let op = KvOp::set(key.as_str(), every_byte.clone()).flags(u64::MAX);
    let written = done(&client, op).await;
    assert_eq!(written.value(), None);
    assert!(written.exists());
    let first = pair(&client, &key).await.unwrap();
    assert_eq!(first.value(), every_byte);
    assert_eq!(first.flags(), u64::MAX);
    same(&written, &first);

    let written = done(&client, KvOp::set(key.as_str(), "")).await;
    let second = pair(&client, &key).await.unwrap();
    same(&written, &second);
    assert_eq!((second.value(), second.flags()), (&b""[..], 0));
    assert_eq!(second.create_index(), first.create_index());
    assert!(second.modify_index() > first.modify_index());

    // The same once more changes nothing.
    let again = done(&client, KvOp::set(key.as_str(), "")).await;
    same(&again, &second);
}

async fn a_read_tells_value_and_state(agent: &TestAgent) {
    let (client, key) = (agent.client(), agent.name("key"));
    let missing = why(&client, KvOp::get(key.as_str())).await;
    assert_eq!(missing, FailureReason::Missing);
    for value in ["v", ""] {
        let put = client.kv().put(key.as_str(), value).flags(7);
        put.await.unwrap();
        let read = done(&client, KvOp::get(key.as_str())).await;
        assert_eq!(read.value_str(), Some(value));
        assert_eq!(read.value_bytes().unwrap(), value);
        same(&read, &pair(&client, &key).await.unwrap());
    }
}

async fn a_prefix_is_read_whole(agent: &TestAgent) {
    let (client, prefix) = (agent.client(), agent.name("dir/"));
    let tree = async || {
        let results = committed(client.txn().kv(KvOp::get_tree(&prefix))).await;
        assert!(results.kv(0).is_none());
        results.tree(0).to_vec()
    };
    assert!(tree().await.is_empty());
    for name in ["b", "a", "a/1", "ü"] {
        let put = client.kv().put(format!("{prefix}{name}"), name).flags(3);
        put.await.unwrap();
    }
    let listed = client.kv().list(&prefix).await.unwrap();
    let listed: Vec<Pair> = listed.iter().map(|pair| Pair::clone(pair)).collect();
    assert_eq!(listed.len(), 4);
    assert_eq!(tree().await, listed);
}

async fn deletions_take_place_and_tell_nothing(agent: &TestAgent) {
    let (client, prefix) = (agent.client(), agent.name("dir/"));
    let key = |name: &str| format!("{prefix}{name}");
    for name in ["a", "b", "c/1", "c/2", "cc"] {
        client.kv().put(key(name), "v").await.unwrap();
    }
    let index = pair(&client, &key("b")).await.unwrap().modify_index();
    for wrong in [index - 1, index + 1, 0] {
        let op = KvOp::delete_cas(key("b"), wrong);
        assert_eq!(why(&client, op).await, STALE);
    }
    let txn = client
        .txn()
        .kv(KvOp::delete(key("a")))
        .kv(KvOp::delete_cas(key("b"), index))
        .kv(KvOp::delete_tree(key("c/")));
    let results = committed(txn).await;
    assert!(results.iter().all(|result| *result == OpResult::Nothing));
    assert_eq!(
        *client.kv().keys(&prefix).await.unwrap(),
        [key("cc").as_str()]
    );
    // What is not there is deleted already, whatever the index.
    let txn = client
        .txn()
        .kv(KvOp::delete(key("a")))
        .kv(KvOp::delete_cas(key("b"), index))
        .kv(KvOp::delete_tree(key("c/")));
    assert_eq!(committed(txn).await.iter().count(), 3);
}

async fn a_key_that_may_be_missing_is_read_where_consul_can(agent: &TestAgent) {
    let (client, key) = (agent.client(), agent.name("key"));
    let read = client.txn().kv(KvOp::get_or_empty(key.as_str()));
    let outcome = read.clone().await.unwrap();
    let old = match agent.kind() {
        Kind::Consul(major, minor) => (major, minor) < (1, 14),
        Kind::Embedded => outcome.clone().committed().is_none(),
    };
    if old {
        let Outcome::RolledBack(failures) = outcome else {
            panic!("an old Consul knows it: {outcome:?}");
        };
        assert_eq!(*failures[0].reason(), FailureReason::Unsupported);
        return;
    }
    let missing = outcome.into_result().unwrap();
    let missing = missing.kv(0).unwrap();
    assert_eq!((missing.exists(), missing.value()), (false, None));
    client.kv().put(key.as_str(), "v").await.unwrap();
    let found = committed(read).await;
    let found = found.kv(0).unwrap();
    assert_eq!(found.value_str(), Some("v"));
    same(found, &pair(&client, &key).await.unwrap());
}

async fn a_conditional_write_takes_place_only_at_its_index(agent: &TestAgent) {
    let (client, key) = (agent.client(), agent.name("key"));
    let cas = |value: &'static str, index| KvOp::cas(key.as_str(), value, index);
    assert_eq!(why(&client, cas("never", 7)).await, STALE);
    let first = done(&client, cas("one", 0).flags(9)).await;
    assert_eq!(first.flags(), 9);
    assert_eq!(why(&client, cas("again", 0)).await, STALE);
    let index = first.modify_index();
    assert_eq!(why(&client, cas("late", index - 1)).await, STALE);
    let second = done(&client, cas("two", index)).await;
    assert!(second.modify_index() > index);
    assert_eq!(why(&client, cas("three", index)).await, STALE);
    assert_eq!(pair(&client, &key).await.unwrap().value(), b"two");
}

async fn a_check_of_an_index_tells_the_current_one(agent: &TestAgent) {
    let (client, key) = (agent.client(), agent.name("key"));
    let check = |index| KvOp::check_index(key.as_str(), index);
    for index in [0, 7] {
        let missing = why(&client, check(index)).await;
        assert_eq!(missing, FailureReason::Missing);
    }
    client.kv().put(key.as_str(), "v").await.unwrap();
    let now = pair(&client, &key).await.unwrap();
    let current = now.modify_index();
    let entry = done(&client, check(current)).await;
    assert_eq!(entry.value(), None);
    same(&entry, &now);
    for index in [0, current - 1, current + 1, u64::MAX] {
        let other = FailureReason::OtherIndex {
            current: Some(current),
        };
        assert_eq!(why(&client, check(index)).await, other);
    }
}

async fn a_check_of_a_session_tells_the_current_one(agent: &TestAgent) {
    let (client, key) = (agent.client(), agent.name("key"));
    let (mine, other) = (session(agent).await, session(agent).await);
    let check = |session| KvOp::check_session(key.as_str(), session);
    let missing = why(&client, check(&mine)).await;
    assert_eq!(missing, FailureReason::Missing);
    client.kv().put(key.as_str(), "v").await.unwrap();
    let nobody = FailureReason::OtherSession {
        current: None,
        expected: Some(mine.clone()),
    };
    assert_eq!(why(&client, check(&mine)).await, nobody);
    let taken = client.kv().acquire(key.as_str(), &mine, "v");
    assert!(taken.await.unwrap());
    let entry = done(&client, check(&mine)).await;
    assert_eq!(entry.value(), None);
    same(&entry, &pair(&client, &key).await.unwrap());
    let another = FailureReason::OtherSession {
        current: Some(mine.clone()),
        expected: Some(other.clone()),
    };
    assert_eq!(why(&client, check(&other)).await, another);
    // Whether the expected one exists is not asked.
    let unknown = SessionId::new("nope").unwrap();
    let another = FailureReason::OtherSession {
        current: Some(mine.clone()),
        expected: Some(unknown.clone()),
    };
    assert_eq!(why(&client, check(&unknown)).await, another);
}

async fn a_check_that_a_key_is_missing_fails_if_it_is_not(agent: &TestAgent) {
    let (client, key) = (agent.client(), agent.name("key"));
    let txn = || client.txn().kv(KvOp::check_not_exists(key.as_str()));
    let results = committed(txn()).await;
    assert_eq!(results.get(0), Some(&OpResult::Nothing));
    client.kv().put(key.as_str(), "v").await.unwrap();
    assert_eq!(reason(txn()).await, FailureReason::Exists);
    // Together with a write it is a write of what is new.
    let new = agent.name("new");
    let create = || {
        client
            .txn()
            .kv(KvOp::check_not_exists(new.as_str()))
            .kv(KvOp::set(new.as_str(), "v"))
    };
    assert!(committed(create()).await.kv(1).is_some());
    assert_eq!(reason(create()).await, FailureReason::Exists);
}

async fn a_lock_has_one_holder_and_its_index_grows(agent: &TestAgent) {
    let (client, key) = (agent.client(), agent.name("lock"));
    let (mine, other) = (session(agent).await, session(agent).await);
    let op = KvOp::lock(key.as_str(), &mine, "me").flags(7);
    let first = done(&client, op.clone()).await;
    let now = pair(&client, &key).await.unwrap();
    assert_eq!((now.value(), now.flags()), (&b"me"[..], 7));
    same(&first, &now);
    assert_eq!((first.session(), first.lock_index()), (Some(&mine), 1));

    let held = why(&client, KvOp::lock(key.as_str(), &other, "other")).await;
    assert_eq!(held, FailureReason::LockHeld);
    assert_eq!(pair(&client, &key).await.unwrap(), now);

    // For the holder it succeeds; with the same value it changes nothing.
    let again = done(&client, op).await;
    assert_eq!(again, first);
    let changed = done(&client, KvOp::lock(key.as_str(), &mine, "still")).await;
    assert!(changed.modify_index() > first.modify_index());
    assert_eq!((changed.lock_index(), changed.flags()), (1, 0));

    let unlocked = done(&client, KvOp::unlock(key.as_str(), &mine, "")).await;
    assert_eq!((unlocked.session(), unlocked.lock_index()), (None, 1));
    let second = done(&client, KvOp::lock(key.as_str(), &other, "other")).await;
    assert_eq!((second.session(), second.lock_index()), (Some(&other), 2));
    assert!(second.modify_index() > unlocked.modify_index());
}

async fn the_lock_index_is_lost_by_plain_writes_and_the_index_grows_on(agent: &TestAgent) {
    let (client, key) = (agent.client(), agent.name("lock"));
    let mine = session(agent).await;
    let lock = || KvOp::lock(key.as_str(), &mine, "v");
    let unlock = || KvOp::unlock(key.as_str(), &mine, "v");
    // How often it was taken, and the index of that, which is larger than all before.
    let held = Cell::new(0);
    let take = async || {
        let entry = done(&client, lock()).await;
        assert!(entry.modify_index() > held.replace(entry.modify_index()));
        entry.lock_index()
    };
    assert_eq!(take().await, 1);
    done(&client, unlock()).await;
    assert_eq!(take().await, 2);
    // A plain write keeps the holder and forgets the count.
    let written = done(&client, KvOp::set(key.as_str(), "plain")).await;
    assert_eq!((written.session(), written.lock_index()), (Some(&mine), 0));
    done(&client, unlock()).await;
    assert_eq!(take().await, 1);
    let written = done(&client, KvOp::cas(key.as_str(), "cas", held.get())).await;
    assert_eq!((written.session(), written.lock_index()), (Some(&mine), 0));
    done(&client, unlock()).await;
    client.kv().put(key.as_str(), "put").await.unwrap();
    assert_eq!(take().await, 1);
    // So does a deletion, without a delay.
    committed(client.txn().kv(KvOp::delete(key.as_str()))).await;
    assert_eq!(take().await, 1);
}

async fn an_unlock_replaces_value_and_flags(agent: &TestAgent) {
    let (client, key) = (agent.client(), agent.name("lock"));
    let mine = session(agent).await;
    done(&client, KvOp::lock(key.as_str(), &mine, "v").flags(5)).await;
    // To keep them is to hand them in again.
    let kept = KvOp::unlock(key.as_str(), &mine, "v").flags(5);
    let entry = done(&client, kept).await;
    let free = pair(&client, &key).await.unwrap();
    same(&entry, &free);
    assert_eq!((free.value(), free.flags()), (&b"v"[..], 5));
    assert_eq!((free.session(), free.lock_index()), (None, 1));

    done(&client, KvOp::lock(key.as_str(), &mine, "v").flags(5)).await;
    done(&client, KvOp::unlock(key.as_str(), &mine, "")).await;
    let free = pair(&client, &key).await.unwrap();
    assert_eq!((free.value(), free.flags()), (&b""[..], 0));
}

async fn only_the_holder_can_unlock(agent: &TestAgent) {
    let (client, key) = (agent.client(), agent.name("lock"));
    let (mine, other) = (session(agent).await, session(agent).await);
    let unlock = |session| KvOp::unlock(key.as_str(), session, "x");
    // A missing key, a free one, one of another, and by a session that is not there.
    let not_held = FailureReason::NotHeld;
    assert_eq!(why(&client, unlock(&mine)).await, not_held);
    client.kv().put(key.as_str(), "v").await.unwrap();
    assert_eq!(why(&client, unlock(&mine)).await, not_held);
    done(&client, KvOp::lock(key.as_str(), &mine, "v")).await;
    assert_eq!(why(&client, unlock(&other)).await, not_held);
    let unknown = SessionId::new("nope").unwrap();
    assert_eq!(why(&client, unlock(&unknown)).await, not_held);
    let held = pair(&client, &key).await.unwrap();
    assert_eq!((held.session(), held.value()), (Some(&mine), &b"v"[..]));
    done(&client, unlock(&mine)).await;
    assert_eq!(why(&client, unlock(&mine)).await, not_held);
}

async fn a_lock_needs_a_session_that_is_there(agent: &TestAgent) {
    let (client, key) = (agent.client(), agent.name("lock"));
    let gone = session(agent).await;
    client.session().destroy(&gone).await.unwrap();
    for session in [gone, SessionId::new("nope").unwrap()] {
        let op = KvOp::lock(key.as_str(), &session, "x");
        let unknown = why(&client, op.clone()).await;
        assert_eq!(unknown, FailureReason::UnknownSession);
        let err = client.txn().kv(op).await.unwrap().into_result();
        assert!(err.unwrap_err().is_unknown_session());
    }
    assert_eq!(pair(&client, &key).await, None);
}

async fn a_lock_waits_for_the_lock_delay(agent: &TestAgent) {
    let (client, key) = (agent.client(), agent.name("lock"));
    let slow = NewSession::new().no_checks().lock_delay(LONG);
    let slow = client.session().create(&slow).await.unwrap();
    let other = session(agent).await;
    done(&client, KvOp::lock(key.as_str(), &slow, "v").flags(3)).await;
    client.session().destroy(&slow).await.unwrap();
    let lock = |session| KvOp::lock(key.as_str(), session, "w");
    let early = why(&client, lock(&other)).await;
    assert_eq!(early, FailureReason::LockDelay);
    // The delay is looked at first: before the session, and before all other operations.
    let unknown = SessionId::new("nope").unwrap();
    let early = why(&client, lock(&unknown)).await;
    assert_eq!(early, FailureReason::LockDelay);
    let txn = client
        .txn()
        .kv(KvOp::get(agent.name("none")))
        .kv(lock(&other));
    let failures = rolled_back(txn).await;
    let [failure] = failures.as_slice() else {
        panic!("{failures:?}");
    };
    assert_eq!(failure.operation(), 1);
    assert_eq!(*failure.reason(), FailureReason::LockDelay);
    let free = pair(&client, &key).await.unwrap();
    assert_eq!((free.session(), free.value()), (None, &b"v"[..]));
    assert_eq!((free.flags(), free.lock_index()), (3, 1));
    // Other operations do not wait.
    done(&client, KvOp::set(key.as_str(), "w")).await;
}

async fn a_guarded_lock_takes_only_what_was_seen(agent: &TestAgent) {
    let (client, key) = (agent.client(), agent.name("lock"));
    let (mine, other) = (session(agent).await, session(agent).await);
    client.kv().put(key.as_str(), "").await.unwrap();
    let seen = pair(&client, &key).await.unwrap().modify_index();
    let guarded = |session| {
        client
            .txn()
            .kv(KvOp::check_index(key.as_str(), seen))
            .kv(KvOp::lock(key.as_str(), session, "v"))
    };
    let results = committed(guarded(&mine)).await;
    assert_eq!(results.kv(0).unwrap().modify_index(), seen);
    let held = results.kv(1).unwrap();
    assert!(held.modify_index() > seen);
    // The late one is told both.
    let failures = rolled_back(guarded(&other)).await;
    let reasons: Vec<_> = failures.iter().map(Failure::reason).collect();
    let current = Some(held.modify_index());
    assert_eq!(
        reasons,
        [
            &FailureReason::OtherIndex { current },
            &FailureReason::LockHeld
        ]
    );
    // And if the key is free again, it is not the one that was seen.
    done(&client, KvOp::unlock(key.as_str(), &mine, "")).await;
    let FailureReason::OtherIndex { current } = reason(guarded(&other)).await else {
        panic!("it takes what it has not seen");
    };
    assert!(current > Some(held.modify_index()));
}

async fn a_guarded_write_needs_the_lock(agent: &TestAgent) {
    let (client, lock, data) = (agent.client(), agent.name("lock"), agent.name("data"));
    let mine = session(agent).await;
    done(&client, KvOp::lock(lock.as_str(), &mine, "")).await;
    let guarded = |value: &'static str| {
        client
            .txn()
            .kv(KvOp::check_session(lock.as_str(), &mine))
            .kv(KvOp::set(data.as_str(), value))
    };
    committed(guarded("one")).await;
    client.session().destroy(&mine).await.unwrap();
    let lost = FailureReason::OtherSession {
        current: None,
        expected: Some(mine.clone()),
    };
    assert_eq!(reason(guarded("two")).await, lost);
    assert_eq!(pair(&client, &data).await.unwrap().value(), b"one");
}

async fn all_or_nothing_takes_place(agent: &TestAgent) {
    let (client, prefix) = (agent.client(), agent.name("dir/"));
    let key = |name: &str| format!("{prefix}{name}");
    client.kv().put(key("old"), "old").await.unwrap();
    let before = client.kv().list(&prefix).await.unwrap();
    let mine = session(agent).await;
    let half = client
        .txn()
        .kv(KvOp::set(key("new"), "new"))
        .kv(KvOp::delete(key("old")))
        .kv(KvOp::lock(key("lock"), &mine, ""))
        .kv(KvOp::get(key("none")));
    let failures = rolled_back(half).await;
    assert_eq!(failures.len(), 1);
    assert_eq!(failures[0].operation(), 3);
    let after = client.kv().list(&prefix).await.unwrap();
    assert_eq!(after.value(), before.value());

    let whole = client
        .txn()
        .kv(KvOp::set(key("new"), "new"))
        .kv(KvOp::delete(key("old")))
        .kv(KvOp::lock(key("lock"), &mine, ""));
    let results = committed(whole).await;
    let index = results.kv(0).unwrap().modify_index();
    assert_eq!(results.kv(2).unwrap().modify_index(), index);
    let after = client.kv().keys(&prefix).await.unwrap();
    assert_eq!(*after, [key("lock").as_str(), key("new").as_str()]);
}

async fn operations_see_what_was_done_before_them(agent: &TestAgent) {
    let (client, prefix) = (agent.client(), agent.name("dir/"));
    let key = |name: &str| format!("{prefix}{name}");
    client.kv().put(key("a"), "one").await.unwrap();
    let txn = client
        .txn()
        .kv(KvOp::set(key("a"), "two"))
        .kv(KvOp::get(key("a")))
        .kv(KvOp::set(key("b"), ""))
        .kv(KvOp::get_tree(&prefix))
        .kv(KvOp::delete(key("a")))
        .kv(KvOp::check_not_exists(key("a")))
        .kv(KvOp::set(key("c"), ""));
    let results = committed(txn).await;
    assert_eq!(results.kv(1).unwrap().value_str(), Some("two"));
    let tree: Vec<&str> = results.tree(3).iter().map(|pair| &**pair.key()).collect();
    assert_eq!(tree, [key("a"), key("b")]);
    assert_eq!(*results.kv(6).unwrap().key(), key("c").as_str());
}

async fn each_result_stands_where_its_operation_stood(agent: &TestAgent) {
    let (client, prefix) = (agent.client(), agent.name("dir/"));
    let key = |name: &str| format!("{prefix}{name}");
    let mine = session(agent).await;
    let txn = client
        .txn()
        .kv(KvOp::delete(key("x")))
        .kv(KvOp::set(key("a"), "v"))
        .kv(KvOp::check_not_exists(key("x")))
        .kv(KvOp::lock(key("b"), &mine, "v"))
        .kv(KvOp::get_tree(key("none/")))
        .kv(KvOp::get_tree(&prefix))
        .kv(KvOp::check_session(key("b"), &mine))
        .kv(KvOp::delete_tree(key("x")))
        .kv(KvOp::unlock(key("b"), &mine, "w"))
        .kv(KvOp::get(key("b")));
    let results = committed(txn).await;
    let shape: Vec<_> = results
        .iter()
        .map(|result| match result {
            OpResult::Nothing => "-".to_owned(),
            OpResult::Kv(entry) => entry.key().strip_prefix(&prefix).unwrap().to_owned(),
            OpResult::Tree(pairs) => format!("{} keys", pairs.len()),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(
        shape,
        ["-", "a", "-", "b", "0 keys", "2 keys", "b", "-", "b", "b"]
    );
    assert_eq!(results.kv(6).unwrap().session(), Some(&mine));
    assert_eq!(results.kv(8).unwrap().session(), None);
    assert_eq!(results.kv(9).unwrap().value_str(), Some("w"));
}

async fn overlapping_prefixes_are_told_apart(agent: &TestAgent) {
    let (client, prefix) = (agent.client(), agent.name("dir/"));
    for name in ["a", "b/1", "b/2", "c"] {
        client
            .kv()
            .put(format!("{prefix}{name}"), "")
            .await
            .unwrap();
    }
    let key = |name: &str| format!("{prefix}{name}");
    let txn = client
        .txn()
        .kv(KvOp::get_tree(&prefix))
        .kv(KvOp::get_tree(key("b/")))
        .kv(KvOp::get_tree(&prefix))
        .kv(KvOp::get(key("c")))
        .kv(KvOp::get_tree(key("b/2")))
        .kv(KvOp::get_tree(key("b")));
    let results = committed(txn).await;
    let keys = |at| {
        let keys = results.tree(at).iter().map(|pair| pair.key().as_str());
        keys.map(|key| key.strip_prefix(&prefix).unwrap())
            .collect::<Vec<_>>()
    };
    assert_eq!(keys(0), ["a", "b/1", "b/2", "c"]);
    assert_eq!(keys(1), ["b/1", "b/2"]);
    assert_eq!(keys(2), keys(0));
    assert_eq!(*results.kv(3).unwrap().key(), key("c").as_str());
    assert_eq!(keys(4), ["b/2"]);
    assert_eq!(keys(5), keys(1));
}

async fn every_failure_is_told_at_its_place(agent: &TestAgent) {
    let (client, key, none) = (agent.client(), agent.name("key"), agent.name("none"));
    let txn = client
        .txn()
        .kv(KvOp::set(key.as_str(), ""))
        .kv(KvOp::get(none.as_str()))
        .kv(KvOp::check_not_exists(key.as_str()))
        .kv(KvOp::check_not_exists(none.as_str()))
        .kv(KvOp::cas(none.as_str(), "", 7))
        .node(NodeOp::get(none.as_str()));
    let failures = rolled_back(txn).await;
    let told: Vec<_> = failures
        .iter()
        .map(|failure| (failure.operation(), failure.reason()))
        .collect();
    assert_eq!(
        told,
        [
            (1, &FailureReason::Missing),
            (2, &FailureReason::Exists),
            (4, &STALE),
            (5, &FailureReason::Missing)
        ]
    );
    assert!(failures[0].text().contains(&none), "{failures:?}");
}

async fn a_key_of_any_sort_can_be_locked(agent: &TestAgent) {
    let client = agent.client();
    let (mine, other) = (session(agent).await, session(agent).await);
    for name in [
        "quote\"quote",
        "back\\slash",
        "ü/日本語/🦀",
        "with space",
        "x\" due to lock delay",
        "x\", lock is already held",
        "x\", current session \"y\" != \"z\"",
        "100%",
    ] {
        let key = agent.name(name);
        let entry = done(&client, KvOp::lock(key.as_str(), &mine, "v")).await;
        assert_eq!(*entry.key(), key.as_str());
        let held = why(&client, KvOp::lock(key.as_str(), &other, "v")).await;
        assert_eq!(held, FailureReason::LockHeld, "{key}");
        let check = KvOp::check_session(key.as_str(), &other);
        let another = FailureReason::OtherSession {
            current: Some(mine.clone()),
            expected: Some(other.clone()),
        };
        assert_eq!(why(&client, check).await, another, "{key}");
        let current = FailureReason::OtherIndex {
            current: Some(entry.modify_index()),
        };
        let check = KvOp::check_index(key.as_str(), 1);
        assert_eq!(why(&client, check).await, current, "{key}");
        let results = committed(client.txn().kv(KvOp::get_tree(&key))).await;
        assert_eq!(results.tree(0).len(), 1, "{key}");
    }
}

async fn nodes_come_and_go(agent: &TestAgent) {
    let (client, name) = (agent.client(), agent.name("node"));
    let node = |address: &str| NewNode::new(name.as_str(), address);
    let missing = reason(client.txn().node(NodeOp::get(name.as_str()))).await;
    assert_eq!(missing, FailureReason::Missing);
    let op = NodeOp::set(node("192.0.2.7").meta("os", "x").tagged_address("wan", "w"));
    let results = committed(client.txn().node(op)).await;
    let set = results.node(0).unwrap().clone();
    assert_eq!((&**set.name(), set.address()), (name.as_str(), "192.0.2.7"));
    assert_eq!(set.meta().get("os"), Some("x"));
    assert_eq!(set.tagged_addresses().get("wan"), Some("w"));
    let found = client.catalog().node(name.as_str()).await.unwrap();
    assert_eq!(*found.as_ref().unwrap().node(), set);
    let results = committed(client.txn().node(NodeOp::get(name.as_str()))).await;
    assert_eq!(*results.node(0).unwrap(), set);

    let index = set.modify_index();
    let cas = |address: &str, index| client.txn().node(NodeOp::cas(node(address), index));
    assert_eq!(reason(cas("192.0.2.8", index - 1)).await, STALE);
    assert_eq!(reason(cas("192.0.2.8", 0)).await, STALE);
    let results = committed(cas("192.0.2.8", index)).await;
    let changed = results.node(0).unwrap().clone();
    assert_eq!(changed.address(), "192.0.2.8");
    assert_eq!(changed.create_index(), set.create_index());
    assert!(changed.modify_index() > index);

    let delete = |index| client.txn().node(NodeOp::delete_cas(name.as_str(), index));
    assert_eq!(reason(delete(index)).await, STALE);
    let results = committed(delete(changed.modify_index())).await;
    assert_eq!(results.get(0), Some(&OpResult::Nothing));
    let gone = client.catalog().node(name.as_str()).await.unwrap();
    assert_eq!(*gone, None);
    // What is not there was last changed at no index, but can be deleted.
    assert_eq!(reason(delete(changed.modify_index())).await, STALE);
    committed(client.txn().node(NodeOp::delete(name.as_str()))).await;
    // An index of 0 means that it is new.
    committed(cas("192.0.2.9", 0)).await;
    committed(client.txn().node(NodeOp::delete(name.as_str()))).await;
    let gone = client.catalog().node(name.as_str()).await.unwrap();
    assert_eq!(*gone, None);
}

async fn services_come_and_go(agent: &TestAgent) {
    let (client, node, web) = (agent.client(), agent.name("node"), agent.name("web"));
    let new = NewNode::new(node.as_str(), "192.0.2.7");
    committed(client.txn().node(NodeOp::set(new))).await;
    let service = |port| NewService::new(web.as_str()).id("web-1").port(port);
    let get = || client.txn().service(ServiceOp::get(node.as_str(), "web-1"));
    assert_eq!(reason(get()).await, FailureReason::Missing);
    let full = service(80)
        .tag("b")
        .tag("a")
        .address("192.0.2.8")
        .meta("k", "v")
        .weights(3, 2)
        .enable_tag_override();
    let txn = client.txn().service(ServiceOp::set(node.as_str(), full));
    let results = committed(txn).await;
    let set = results.service(0).unwrap().clone();
    assert_eq!((&**set.id(), &**set.name()), ("web-1", web.as_str()));
    assert_eq!((set.port(), set.address()), (80, "192.0.2.8"));
    assert_eq!(set.tags().iter().collect::<Vec<_>>(), ["b", "a"]);
    assert_eq!(set.meta().get("k"), Some("v"));
    assert_eq!((set.weights().passing(), set.weights().warning()), (3, 2));
    assert!(set.enable_tag_override());
    assert_eq!(*committed(get()).await.service(0).unwrap(), set);
    let found = client.catalog().node(node.as_str()).await.unwrap();
    assert_eq!(
        found.as_ref().unwrap().services(),
        std::slice::from_ref(&set)
    );

    let index = set.modify_index();
    let cas = |port, index| {
        let op = ServiceOp::cas(node.as_str(), service(port), index);
        client.txn().service(op)
    };
    assert_eq!(reason(cas(81, index - 1)).await, STALE);
    assert_eq!(reason(cas(81, 0)).await, STALE);
    let results = committed(cas(81, index)).await;
    let changed = results.service(0).unwrap().clone();
    assert_eq!(changed.port(), 81);
    assert_eq!(changed.create_index(), set.create_index());
    assert!(changed.modify_index() > index);

    let delete_cas = |index| {
        let op = ServiceOp::delete_cas(node.as_str(), web.as_str(), "web-1", index);
        client.txn().service(op)
    };
    let delete = || {
        let op = ServiceOp::delete(node.as_str(), web.as_str(), "web-1");
        client.txn().service(op)
    };
    assert_eq!(reason(delete_cas(index)).await, STALE);
    let results = committed(delete_cas(changed.modify_index())).await;
    assert_eq!(results.get(0), Some(&OpResult::Nothing));
    assert_eq!(reason(get()).await, FailureReason::Missing);
    assert_eq!(reason(delete_cas(index)).await, STALE);
    committed(delete()).await;
    committed(cas(82, 0)).await;
    committed(delete()).await;
    assert_eq!(reason(get()).await, FailureReason::Missing);
    // Without an ID the name is the ID.
    let plain = NewService::new(web.as_str());
    let txn = client.txn().service(ServiceOp::set(node.as_str(), plain));
    let results = committed(txn).await;
    assert_eq!(&**results.service(0).unwrap().id(), web.as_str());
    committed(client.txn().node(NodeOp::delete(node.as_str()))).await;
}

async fn checks_come_and_go(agent: &TestAgent) {
    let (client, node, web) = (agent.client(), agent.name("node"), agent.name("web"));
    let new = NewNode::new(node.as_str(), "192.0.2.7");
    let service = NewService::new(web.as_str()).tag("a");
    let txn = client.txn().node(NodeOp::set(new));
    committed(txn.service(ServiceOp::set(node.as_str(), service))).await;
    let check = |status| NewCheck::new("alive", "Alive", status);
    let get = || client.txn().check(CheckOp::get(node.as_str(), "alive"));
    assert_eq!(reason(get()).await, FailureReason::Missing);
    let full = check(Status::Warning)
        .service_id(web.as_str())
        .notes("notes")
        .output("output")
        .tcp("192.0.2.7:80")
        .interval(Duration::from_secs(5));
    let txn = client.txn().check(CheckOp::set(node.as_str(), full));
    let results = committed(txn).await;
    let set = results.check(0).unwrap().clone();
    assert_eq!((&**set.id(), set.name()), ("alive", "Alive"));
    assert_eq!(&**set.node(), node.as_str());
    assert_eq!(set.status(), Status::Warning);
    assert_eq!((set.notes(), set.output()), ("notes", "output"));
    assert_eq!(set.service_id().unwrap(), &web.as_str());
    assert_eq!(set.service_name().unwrap(), &web.as_str());
    let definition = set.definition().unwrap();
    assert_eq!(definition.tcp(), Some("192.0.2.7:80"));
    assert_eq!(definition.interval(), Some(Duration::from_secs(5)));
    assert_eq!(*committed(get()).await.check(0).unwrap(), set);
    let found = client.health().node(node.as_str()).await.unwrap();
    assert!(found.iter().any(|check| **check == set), "{found:?}");

    let index = set.modify_index();
    let cas = |status, index| {
        let op = CheckOp::cas(node.as_str(), check(status), index);
        client.txn().check(op)
    };
    assert_eq!(reason(cas(Status::Critical, index - 1)).await, STALE);
    assert_eq!(reason(cas(Status::Critical, 0)).await, STALE);
    let results = committed(cas(Status::Critical, index)).await;
    let changed = results.check(0).unwrap().clone();
    assert_eq!(changed.status(), Status::Critical);
    assert_eq!(changed.service_id(), None);
    assert!(changed.modify_index() > index);

    let delete_cas = |index| {
        let op = CheckOp::delete_cas(node.as_str(), "alive", index);
        client.txn().check(op)
    };
    assert_eq!(reason(delete_cas(index)).await, STALE);
    let results = committed(delete_cas(changed.modify_index())).await;
    assert_eq!(results.get(0), Some(&OpResult::Nothing));
    assert_eq!(reason(delete_cas(index)).await, STALE);
    let delete = || client.txn().check(CheckOp::delete(node.as_str(), "alive"));
    committed(delete()).await;
    committed(cas(Status::Passing, 0)).await;
    committed(delete()).await;
    assert_eq!(reason(get()).await, FailureReason::Missing);
    committed(client.txn().node(NodeOp::delete(node.as_str()))).await;
}

async fn what_has_no_node_or_service_is_missing(agent: &TestAgent) {
    let (client, none, node) = (agent.client(), agent.name("none"), agent.name("node"));
    let web = NewService::new("web");
    let set = client.txn().service(ServiceOp::set(none.as_str(), web));
    assert_eq!(reason(set).await, FailureReason::Missing);
    let check = || NewCheck::new("c", "C", Status::Passing);
    let set = client.txn().check(CheckOp::set(none.as_str(), check()));
    assert_eq!(reason(set).await, FailureReason::Missing);
    let new = NewNode::new(node.as_str(), "192.0.2.7");
    committed(client.txn().node(NodeOp::set(new))).await;
    let of_none = check().service_id(none.as_str());
    let set = client.txn().check(CheckOp::set(node.as_str(), of_none));
    assert_eq!(reason(set).await, FailureReason::Missing);
    committed(client.txn().node(NodeOp::delete(node.as_str()))).await;
    // To delete what has no node is no failure.
    let txn = client.txn().check(CheckOp::delete(none.as_str(), "c"));
    let gone = ServiceOp::delete(none.as_str(), "web", "web");
    committed(txn.service(gone)).await;
}

async fn a_node_takes_its_services_checks_and_sessions_along(agent: &TestAgent) {
    let (client, node, key) = (agent.client(), agent.name("node"), agent.name("lock"));
    let txn = client
        .txn()
        .node(NodeOp::set(NewNode::new(node.as_str(), "192.0.2.7")))
        .service(ServiceOp::set(node.as_str(), NewService::new("web")))
        .check(CheckOp::set(
            node.as_str(),
            NewCheck::new("c", "C", Status::Passing),
        ));
    committed(txn).await;
    let session = NewSession::new().no_checks().node(node.as_str());
    let session = client.session().create(&session).await.unwrap();
    done(&client, KvOp::lock(key.as_str(), &session, "v")).await;
    let delete = client.txn().node(NodeOp::delete(node.as_str()));
    committed(delete).await;
    let service = client.txn().service(ServiceOp::get(node.as_str(), "web"));
    assert_eq!(reason(service).await, FailureReason::Missing);
    let check = client.txn().check(CheckOp::get(node.as_str(), "c"));
    assert_eq!(reason(check).await, FailureReason::Missing);
    assert_eq!(*client.session().info(&session).await.unwrap(), None);
    assert_eq!(pair(&client, &key).await.unwrap().session(), None);
}

async fn things_of_all_kinds_change_together(agent: &TestAgent) {
    let (client, node, key) = (agent.client(), agent.name("node"), agent.name("key"));
    let check = NewCheck::new("c", "C", Status::Passing).service_id("web");
    let change = |guard: KvOp| {
        client
            .txn()
            .node(NodeOp::set(NewNode::new(node.as_str(), "192.0.2.7")))
            .kv(guard)
            .service(ServiceOp::set(node.as_str(), NewService::new("web")))
            .check(CheckOp::set(node.as_str(), check.clone()))
            .service(ServiceOp::get(node.as_str(), "web"))
    };
    let failures = rolled_back(change(KvOp::get(key.as_str()))).await;
    assert_eq!(failures[0].operation(), 1);
    let found = client.catalog().node(node.as_str()).await.unwrap();
    assert_eq!(*found, None);

    let results = committed(change(KvOp::check_not_exists(key.as_str()))).await;
    let index = results.node(0).unwrap().modify_index();
    assert_eq!(results.get(1), Some(&OpResult::Nothing));
    let service = results.service(2).unwrap();
    assert_eq!(service.modify_index(), index);
    assert_eq!(results.check(3).unwrap().modify_index(), index);
    assert_eq!(results.service(4), Some(service));
    // Names of the catalog may be written in any case.
    let other = node.to_uppercase();
    let txn = client
        .txn()
        .node(NodeOp::get(other.as_str()))
        .service(ServiceOp::get(other.as_str(), "WEB"))
        .check(CheckOp::get(other.as_str(), "C"));
    let found = committed(txn).await;
    assert_eq!(found.node(0), results.node(0));
    assert_eq!(found.service(1), results.service(2));
    assert_eq!(found.check(2), results.check(3));
    committed(client.txn().node(NodeOp::delete(node.as_str()))).await;
}

async fn a_read_may_be_answered_by_any_server(agent: &TestAgent) {
    let (client, key) = (agent.client(), agent.name("key"));
    client.kv().put(key.as_str(), "v").await.unwrap();
    for consistency in [
        Consistency::Default,
        Consistency::Stale,
        Consistency::Consistent,
        Consistency::Leader,
        Consistency::MaxStale(Duration::from_secs(5)),
    ] {
        let txn = client.txn().kv(KvOp::get(key.as_str()));
        let results = committed(txn.consistency(consistency)).await;
        assert_eq!(results.kv(0).unwrap().value_str(), Some("v"));
        let meta = results.meta();
        assert_eq!(meta.known_leader(), Some(true), "{consistency:?}");
        assert!(meta.last_contact().is_some(), "{consistency:?}");
        assert_eq!(meta.index(), None, "{consistency:?}");
    }
    // One that writes says nothing of the sort.
    let txn = client.txn().kv(KvOp::set(key.as_str(), "w"));
    let results = committed(txn).await;
    assert_eq!(results.meta().known_leader(), None);
}

async fn the_limits_of_a_transaction_are_told(agent: &TestAgent) {
    let (client, prefix) = (agent.client(), agent.name("dir/"));
    let many = |count: usize| {
        (0..count).fold(client.txn(), |txn, at| {
            txn.kv(KvOp::set(format!("{prefix}{at:03}"), ""))
        })
    };
    assert_eq!(committed(many(64)).await.iter().count(), 64);
    match agent.kind() {
        Kind::Consul(major, minor) if (major, minor) >= (1, 14) => {
            committed(many(128)).await;
        }
        Kind::Consul(..) => {
            let err = many(65).await.unwrap_err();
            assert_eq!(err.kind(), ErrorKind::RequestTooLarge, "{err}");
        }
        Kind::Embedded => {
            // It may be as old or as new as it likes, but not in between.
            match many(65).await {
                Ok(_) => drop(committed(many(128)).await),
                Err(err) => assert_eq!(err.kind(), ErrorKind::RequestTooLarge, "{err}"),
            }
        }
    }
    // As large as it can be: 512 KiB with its value in base64.
    let room = 512 * 1024 - r#"[{"KV":{"Verb":"set","Key":"","Value":""}}]"#.len();
    let key = agent.name("large");
    let value = vec![b'x'; (room - key.len()) / 4 * 3];
    done(&client, KvOp::set(key.as_str(), value.clone())).await;
    let mut larger = value;
    larger.extend(b"xxxx");
    let err = client.txn().kv(KvOp::set(key.as_str(), larger)).await;
    assert_eq!(err.unwrap_err().kind(), ErrorKind::Invalid);
}

async fn what_is_no_transaction_is_refused(agent: &TestAgent) {
    let client = agent.client();
    for body in [
        "",
        "{}",
        "{",
        r#"[{"KV":{"Verb":"set","Key":"k","Value":"%"}}]"#,
    ] {
        let request = client.raw(Method::PUT, "/v1/txn");
        let err = request.body(body).await.unwrap_err();
        assert_eq!(err.kind(), ErrorKind::Refused, "{body}: {err}");
    }
    let read = format!(
        r#"[{{"KV":{{"Verb":"get","Key":"{}"}}}}]"#,
        agent.name("none")
    );
    let request = client.raw(Method::PUT, "/v1/txn").body(read.clone());
    let err = request.flag("stale").flag("consistent").await.unwrap_err();
    assert_eq!(err.kind(), ErrorKind::Refused, "{err}");
    let request = client.raw(Method::PUT, "/v1/txn").body(read.clone());
    assert_eq!(request.await.unwrap_err().kind(), ErrorKind::Conflict);
    let request = client.raw(Method::GET, "/v1/txn");
    assert_eq!(request.await.unwrap_err().kind(), ErrorKind::Unsupported);
    let none = client.txn().kv(KvOp::get(agent.name("none")));
    let err = none.datacenter("nowhere").await.unwrap_err();
    assert_eq!(err.kind(), ErrorKind::UnknownDatacenter, "{err}");
}
