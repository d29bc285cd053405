use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::{service, state};
use crate::embedded::state::State;
use crate::embedded::state::locks::LockRefused;
use crate::embedded::state::model::{CRITICAL, Check, Node, PASSING};
use crate::embedded::state::session::{ServiceCheck, SessionId, SessionSpec};
use crate::embedded::state::txn::{Failure, Found, KvOp, KvVerb, Op, Verb, Why};

const SECOND: Duration = Duration::from_secs(1);

fn session(state: &mut State, now: Instant) -> SessionId {
    let spec = SessionSpec {
        node: "n1".to_owned(),
        ..SessionSpec::default()
    };
    state.create_session(spec, now).unwrap()
}

fn kv(verb: KvVerb, key: &str) -> KvOp {
    KvOp {
        verb,
        key: key.to_owned(),
        ..KvOp::default()
    }
}

fn set(key: &str, value: &'static str) -> Op {
    Op::Kv(KvOp {
        value: Bytes::from_static(value.as_bytes()),
        ..kv(KvVerb::Set, key)
    })
}

fn by(session: SessionId, verb: KvVerb, key: &str) -> Op {
    Op::Kv(KvOp {
        session: session.into(),
        ..kv(verb, key)
    })
}

fn at(index: u64, verb: KvVerb, key: &str) -> Op {
    Op::Kv(KvOp {
        index,
        ..kv(verb, key)
    })
}

fn plain(verb: KvVerb, key: &str) -> Op {
    Op::Kv(kv(verb, key))
}

fn refused(state: &mut State, ops: Vec<Op>, now: Instant) -> Vec<(usize, String)> {
    let failures = state.transact(ops, now).unwrap_err();
    failures
        .into_iter()
        .map(|failure| (failure.op, failure.why.to_string()))
        .collect()
}

fn keys(state: &State) -> Vec<(String, u64)> {
    let entries = state.replica.kv.list("");
    entries
        .map(|(key, entry)| (key.clone(), entry.modified))
        .collect()
}

#[test]
fn a_guarded_lock_yields_the_index_of_its_own_write() {
    let (mut state, now) = state();
    let (one, two) = (session(&mut state, now), session(&mut state, now));
    let take = |id, guard| vec![guard, by(id, KvVerb::Lock, "k")];
    let found = state
        .transact(take(one, plain(KvVerb::CheckNotExists, "k")), now)
        .unwrap();
    let [Found::Bare(key, entry)] = found.as_slice() else {
        panic!("{found:?}");
    };
    let token = entry.modified;
    assert_eq!(
        (key.as_str(), token, entry.lock_index),
        ("k", state.index(), 1)
    );

    let late = state.transact(take(two, at(token, KvVerb::CheckIndex, "k")), now);
    let held = Why::Lock("k".to_owned(), LockRefused::Held);
    assert_eq!(late.unwrap_err(), [Failure { op: 1, why: held }]);

    state
        .transact(vec![by(one, KvVerb::Unlock, "k")], now)
        .unwrap();
    let stale = refused(
        &mut state,
        take(two, at(token, KvVerb::CheckIndex, "k")),
        now,
    );
    let current = token + 2;
    assert_eq!(
        stale,
        [(
            0,
            format!("failed index check for key \"k\", current modify index {current} != {token}")
        )]
    );
    let found = state.transact(take(two, at(current, KvVerb::CheckIndex, "k")), now);
    assert_eq!(found.unwrap().len(), 2);
}

#[test]
fn all_steps_have_one_index_and_see_what_came_before_them() {
    let (mut state, now) = state();
    let id = session(&mut state, now);
    let index = state.index();
    let found = state
        .transact(
            vec![
                set("t", "a"),
                plain(KvVerb::Get, "t"),
                set("t/u", "b"),
                by(id, KvVerb::Lock, "t"),
                plain(KvVerb::GetTree, "t"),
                plain(KvVerb::Delete, "t/u"),
                plain(KvVerb::CheckNotExists, "t/u"),
            ],
            now,
        )
        .unwrap();
    let told: Vec<(&str, &[u8], u64)> = found
        .iter()
        .map(|one| match one {
            Found::Key(key, entry) => (key.as_str(), &*entry.value, entry.modified),
            Found::Bare(key, entry) => (key.as_str(), &b"-"[..], entry.modified),
            other => panic!("{other:?}"),
        })
        .collect();
    let index = index + 1;
    assert_eq!(
        told,
        [
            ("t", &b"-"[..], index),
            ("t", b"a", index),
            ("t/u", b"-", index),
            ("t", b"-", index),
            ("t", b"", index),
            ("t/u", b"b", index),
        ]
    );
    assert_eq!(keys(&state), [("t".to_owned(), index)]);
}

#[test]
fn a_failure_takes_everything_back_and_all_failures_are_told() {
    let (mut state, now) = state();
    let id = session(&mut state, now);
    state
        .transact(
            vec![
                by(id, KvVerb::Lock, "held"),
                set("p/a", "1"),
                set("p/b", "1"),
            ],
            now,
        )
        .unwrap();
    let before = (keys(&state), state.replica.kv.index());
    let prefix = state.replica.kv.prefix_index("p/", now);
    let failures = refused(
        &mut state,
        vec![
            by(id, KvVerb::Unlock, "held"),
            plain(KvVerb::DeleteTree, "p/"),
            set("p/c", "1"),
            plain(KvVerb::Get, "none"),
            set("p/a", "2"),
            by(id, KvVerb::CheckSession, "held"),
        ],
        now,
    );
    assert_eq!(
        failures,
        [
            (3, "key \"none\" doesn't exist".to_owned()),
            (
                5,
                format!("failed session check for key \"held\", current session \"\" != \"{id}\"")
            ),
        ]
    );
    assert_eq!((keys(&state), state.replica.kv.index()), before);
    assert_eq!(state.replica.kv.prefix_index("p/", now), prefix);
    assert_eq!(state.replica.kv.held_by(id), ["held"]);
    assert_eq!(state.index(), before.1 + 1, "the attempt took an index");
}

#[test]
fn reads_alone_take_no_index() {
    let (mut state, now) = state();
    state.transact(vec![set("k", "v")], now).unwrap();
    let (index, version) = (state.index(), state.version());
    let read = || vec![plain(KvVerb::Get, "k"), Op::Node(Verb::Get, node("n1"))];
    assert_eq!(state.transact(read(), now).unwrap().len(), 2);
    refused(&mut state, vec![plain(KvVerb::Get, "none")], now);
    assert_eq!((state.index(), state.version()), (index, version));
}

#[test]
fn what_is_refused_beforehand_takes_no_index() {
    let (mut state, now) = state();
    let delayed = SessionSpec {
        node: "n1".to_owned(),
        lock_delay: 5 * SECOND,
        ..SessionSpec::default()
    };
    let gone = state.create_session(delayed, now).unwrap();
    let id = session(&mut state, now);
    state
        .transact(vec![by(gone, KvVerb::Lock, "k")], now)
        .unwrap();
    state.destroy_session(gone, now);
    let index = state.index();
    let failures = refused(
        &mut state,
        vec![
            plain(KvVerb::Set, ""),
            plain(KvVerb::Get, "none"),
            by(id, KvVerb::Lock, "k"),
        ],
        now,
    );
    assert_eq!(
        failures,
        [
            (0, "Must provide key".to_owned()),
            (2, "failed to lock key \"k\" due to lock delay".to_owned()),
        ]
    );
    assert_eq!(state.index(), index);
    let later = now + 5 * SECOND;
    let done = state.transact(vec![by(id, KvVerb::Lock, "k")], later);
    assert_eq!(done.unwrap().len(), 1);
}

fn node(name: &str) -> Node {
    Node {
        name: name.to_owned(),
        address: "10.0.0.1".to_owned(),
        ..Node::default()
    }
}

fn check(status: &str) -> Check {
    Check {
        node: "ext".to_owned(),
        id: "c".to_owned(),
        service_id: "a1".to_owned(),
        status: status.to_owned().into(),
        ..Check::default()
    }
}

fn a_node_with_a_service() -> Vec<Op> {
    vec![
        Op::Node(Verb::Set, node("ext")),
        Op::Service(Verb::Set, "ext".to_owned(), service("a", "a1")),
        Op::Check(Verb::Set, check(PASSING)),
    ]
}

#[test]
fn nodes_services_and_checks_come_together_or_not_at_all() {
    let (mut state, now) = state();
    let mut ops = a_node_with_a_service();
    ops.push(Op::Service(Verb::Get, "ext".to_owned(), service("b", "b1")));
    let failures = refused(&mut state, ops, now);
    let missing = "service \"b1\" on node \"ext\" doesn't exist";
    assert_eq!(failures, [(3, missing.to_owned())]);
    assert!(state.replica.catalog.node("ext").is_none());

    let found = state.transact(a_node_with_a_service(), now).unwrap();
    assert_eq!(found.len(), 3);
    let [.., Found::Check(check)] = found.as_slice() else {
        panic!("{found:?}");
    };
    assert_eq!(
        (check.service_name.as_str(), check.created),
        ("a", state.index())
    );
}

#[test]
fn a_compare_of_the_catalog_goes_by_the_modify_index() {
    let (mut state, now) = state();
    state.transact(a_node_with_a_service(), now).unwrap();
    let modified = state.index();
    let with = |modified| Node {
        modified,
        ..node("ext")
    };
    for (verb, index, what) in [
        (Verb::Cas, 0, "set"),
        (Verb::Cas, modified + 1, "set"),
        (Verb::DeleteCas, 0, "delete"),
    ] {
        let failures = refused(&mut state, vec![Op::Node(verb, with(index))], now);
        let text = format!("failed to {what} node \"ext\", index is stale");
        assert_eq!(failures, [(0, text)]);
    }
    let done = state.transact(vec![Op::Node(Verb::DeleteCas, with(modified))], now);
    assert!(done.unwrap().is_empty());
    assert!(state.replica.catalog.service("ext", "a1").is_none());
    let created = state.transact(vec![Op::Node(Verb::Cas, with(0))], now);
    assert_eq!(created.unwrap().len(), 1);
}

#[test]
fn a_check_that_fails_in_a_transaction_ends_its_sessions_with_it() {
    let (mut state, now) = state();
    state.transact(a_node_with_a_service(), now).unwrap();
    let bound = SessionSpec {
        node: "ext".to_owned(),
        lock_delay: 5 * SECOND,
        service_checks: Some(vec![ServiceCheck {
            id: "c".to_owned(),
            ..ServiceCheck::default()
        }]),
        ..SessionSpec::default()
    };
    let id = state.create_session(bound, now).unwrap();
    state
        .transact(vec![by(id, KvVerb::Lock, "k")], now)
        .unwrap();
    let fail = Op::Check(Verb::Set, check(CRITICAL));

    refused(
        &mut state,
        vec![fail.clone(), plain(KvVerb::Get, "none")],
        now,
    );
    assert!(state.replica.sessions.session(id).is_some());
    assert_eq!(state.replica.kv.held_by(id), ["k"]);
    // Measured: the delay of the lock outlives the transaction that armed it.
    assert!(state.is_delayed("k", now) && !state.is_delayed("k", now + 5 * SECOND));

    let found = state
        .transact(vec![fail, plain(KvVerb::CheckSession, "k")], now)
        .unwrap();
    assert_eq!(found.len(), 2);
    assert!(state.replica.sessions.session(id).is_none());
}

#[test]
fn ten_thousand_transactions_over_a_full_store_take_no_time() {
    let (mut state, now) = state();
    let id = session(&mut state, now);
    for at in 0..10_000 {
        state
            .transact(vec![set(&format!("full/{at}"), "v")], now)
            .unwrap();
    }
    for _ in 0..10_000 {
        state
            .transact(
                vec![by(id, KvVerb::Lock, "k"), by(id, KvVerb::Unlock, "k")],
                now,
            )
            .unwrap();
    }
    let lock_index = state.replica.kv.entry("k").unwrap().lock_index;
    assert_eq!(lock_index, 10_000);
}
