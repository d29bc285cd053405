use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::{register, service, state, ttl};
use crate::embedded::state::State;
use crate::embedded::state::kv::Entry;
use crate::embedded::state::locks::{LockRefused, SessionRefused};
use crate::embedded::state::model::{CRITICAL, Node, PASSING, WARNING};
use crate::embedded::state::session::{
    Behavior, Malformed, Named, ServiceCheck, SessionId, SessionSpec,
};

const SECOND: Duration = Duration::from_secs(1);

fn spec() -> SessionSpec {
    SessionSpec {
        node: "n1".to_owned(),
        ..SessionSpec::default()
    }
}

fn with_ttl(seconds: u64) -> SessionSpec {
    SessionSpec {
        ttl: Duration::from_secs(seconds).into(),
        ..spec()
    }
}

fn bound_to(check: &str) -> SessionSpec {
    SessionSpec {
        service_checks: Some(vec![ServiceCheck {
            id: check.to_owned(),
            ..ServiceCheck::default()
        }]),
        ..spec()
    }
}

fn create(state: &mut State, spec: SessionSpec, now: Instant) -> SessionId {
    state.create_session(spec, now).unwrap()
}

fn acquire(
    state: &mut State,
    key: &str,
    session: SessionId,
    value: &'static str,
    now: Instant,
) -> Result<(), LockRefused> {
    let value = Bytes::from_static(value.as_bytes());
    state.acquire(key, &session.into(), 0, value, now)
}

fn release(state: &mut State, key: &str, session: SessionId) -> bool {
    let done = state.release(key, &session.into(), 0, Bytes::new());
    done.unwrap()
}

fn put(state: &mut State, key: &str, value: &'static str) {
    let index = state.next_index();
    let value = Bytes::from_static(value.as_bytes());
    state.replica.kv.put(index, key, 0, value);
}

fn entry<'a>(state: &'a State, key: &str) -> &'a Entry {
    state.replica.kv.entry(key).unwrap()
}

fn lives(state: &State, id: SessionId) -> bool {
    state.replica.sessions.session(id).is_some()
}

#[test]
fn an_identifier_reads_as_the_index_of_the_servers_reads_it() {
    let text = "258784b9-1612-6ebd-6bd5-ad3e676f0dd9";
    let id = SessionId::parse(text).unwrap();
    assert_eq!(id.to_string(), text);
    assert_eq!(SessionId::parse(&text.to_uppercase()), Ok(id));
    assert_eq!(SessionId::parse("abc"), Err(Malformed::Length));
    for (text, why) in [
        (
            "258784b9-1612-6ebd-6bd5-ad3e676f0ddg",
            "Invalid UUID: encoding/hex: invalid byte: U+0067 'g'",
        ),
        (
            "258784b9-1612-6ebd-6bd5-ad3e676f0-d9",
            "UUID should have maximum of 4 \"-\"; got 5",
        ),
        (
            "258784b9-1612-6ebd-6bd5aad3e676f0dd9",
            "Input (without hyphens) must be even length",
        ),
    ] {
        let wrong = SessionId::parse(text).unwrap_err().to_string();
        assert_eq!(wrong, format!("failed session lookup: index error: {why}"));
    }
}

#[test]
fn a_session_ends_after_twice_its_ttl_and_a_renewal_begins_it_anew() {
    let (mut state, now) = state();
    let id = create(&mut state, with_ttl(10), now);
    let renewed = now + 19 * SECOND;
    assert_eq!(state.renew_session(id, renewed).unwrap().id, id);
    let end = renewed + 20 * SECOND;
    assert_eq!(state.next_due(), Some(end));
    state.advance(end - Duration::from_nanos(1));
    assert!(lives(&state, id));
    let index = state.index();
    state.advance(end);
    assert!(!lives(&state, id));
    assert_eq!(state.replica.sessions.index(), index + 1);
    assert!(state.renew_session(id, end).is_none());
}

#[test]
fn a_session_without_a_ttl_lives_on() {
    let (mut state, now) = state();
    let id = create(&mut state, spec(), now);
    state.advance(now + 100_000 * SECOND);
    assert!(lives(&state, id));
}

#[test]
fn a_renewal_is_no_write() {
    let (mut state, now) = state();
    let id = create(&mut state, with_ttl(10), now);
    let (index, version) = (state.index(), state.version());
    state.renew_session(id, now + SECOND).unwrap();
    assert_eq!((state.index(), state.version()), (index, version));
}

#[test]
fn an_election_begins_the_ttls_anew_and_nobody_expires_before_it() {
    let (mut state, now) = state();
    let id = create(&mut state, with_ttl(10), now);
    state.lose_leader(now + 5 * SECOND);
    state.advance(now + 100 * SECOND);
    assert!(lives(&state, id));
    state.elect(now + 100 * SECOND);
    state.advance(now + 119 * SECOND);
    assert!(lives(&state, id));
    state.advance(now + 120 * SECOND);
    assert!(!lives(&state, id));
}

#[test]
fn a_restore_brings_sessions_and_locks_back_and_forgets_lock_delays() {
    let (mut state, now) = state();
    let delayed = SessionSpec {
        lock_delay: 30 * SECOND,
        ..with_ttl(10)
    };
    let gone = create(&mut state, delayed, now);
    let id = create(&mut state, with_ttl(10), now);
    acquire(&mut state, "k", gone, "", now).unwrap();
    acquire(&mut state, "other", id, "", now).unwrap();
    let snapshot = state.replica.clone();
    state.destroy_session(gone, now);
    state.destroy_session(id, now);
    let refused = LockRefused::Delayed;
    let late = create(&mut state, spec(), now);
    assert_eq!(acquire(&mut state, "k", late, "", now), Err(refused));

    state.replica = snapshot;
    let restored = now + 15 * SECOND;
    state.restored(restored);
    assert!(lives(&state, gone) && lives(&state, id) && !lives(&state, late));
    assert_eq!(entry(&state, "other").session, Some(id));
    let held = acquire(&mut state, "k", id, "", restored);
    assert_eq!(held, Err(LockRefused::Held));
    assert!(release(&mut state, "k", gone));
    assert_eq!(acquire(&mut state, "k", id, "", restored), Ok(()));
    // The TTL counts from the restore.
    state.advance(restored + 19 * SECOND);
    assert!(lives(&state, id));
    state.advance(restored + 20 * SECOND);
    assert!(!lives(&state, id));
}

#[test]
fn a_ttl_has_bounds() {
    let (mut state, now) = state();
    for seconds in [1, 9, 86_401] {
        let refused = state.create_session(with_ttl(seconds), now).unwrap_err();
        let nanos = i128::from(seconds) * 1_000_000_000;
        assert_eq!(refused, SessionRefused::Ttl(nanos));
    }
    for seconds in [10, 86_400] {
        create(&mut state, with_ttl(seconds), now);
    }
}

#[test]
fn a_session_needs_its_node_and_checks_that_are_not_critical() {
    let (mut state, now) = state();
    let check = |status| super::CheckSpec {
        status: Some(status),
        ..ttl(10)
    };
    register(&mut state, "a", "a1", vec![check(WARNING.into())], now);
    register(&mut state, "b", "b1", vec![check(CRITICAL.into())], now);
    let elsewhere = SessionSpec {
        node: "nope".to_owned(),
        ..spec()
    };
    for (spec, text) in [
        (elsewhere, "Missing node registration"),
        (bound_to("nope"), "Missing check 'nope' registration"),
        (
            bound_to("service:b1"),
            "Check 'service:b1' is in critical state",
        ),
    ] {
        let refused = state.create_session(spec, now).unwrap_err();
        assert_eq!(refused.to_string(), text);
    }
    create(&mut state, bound_to("service:a1"), now);
    create(&mut state, bound_to("SERFHEALTH"), now);
}

#[test]
fn a_session_ends_when_its_check_is_critical_or_gone() {
    let (mut state, now) = state();
    let passing = super::CheckSpec {
        status: Some(PASSING.into()),
        ..ttl(10)
    };
    register(&mut state, "a", "a1", vec![passing.clone()], now);
    register(&mut state, "b", "b1", vec![passing], now);
    let one = create(&mut state, bound_to("service:a1"), now);
    let other = create(&mut state, bound_to("service:b1"), now);
    let free = create(&mut state, spec(), now);
    acquire(&mut state, "k", one, "v", now).unwrap();
    state
        .heartbeat("service:a1", WARNING.into(), "", now)
        .unwrap();
    assert!(lives(&state, one));
    state.advance(now + 10 * SECOND);
    assert!(!lives(&state, one) && !lives(&state, other));
    assert_eq!(entry(&state, "k").session, None);

    state
        .heartbeat("service:b1", PASSING.into(), "", now + 10 * SECOND)
        .unwrap();
    let again = create(&mut state, bound_to("service:b1"), now);
    state.deregister_service("b1", now + 10 * SECOND);
    assert!(!lives(&state, again));
    assert!(lives(&state, free));
}

#[test]
fn a_node_takes_its_sessions_with_it() {
    let (mut state, now) = state();
    let index = state.next_index();
    let node = Node {
        name: "Ext".to_owned(),
        ..Node::default()
    };
    state.replica.catalog.ensure_node(index, node);
    let on = SessionSpec {
        node: "ext".to_owned(),
        ..spec()
    };
    let theirs = create(&mut state, on, now);
    let ours = create(&mut state, spec(), now);
    assert_eq!(state.replica.sessions.of_node("EXT").count(), 1);
    acquire(&mut state, "k", theirs, "v", now).unwrap();
    let index = state.next_index();
    state.delete_node(index, "EXT", now);
    assert!(!lives(&state, theirs) && lives(&state, ours));
    let key = entry(&state, "k");
    assert_eq!((key.session, key.modified), (None, index));
}

#[test]
fn the_lock_index_counts_acquisitions_between_ordinary_writes() {
    let (mut state, now) = state();
    let one = create(&mut state, spec(), now);
    let two = create(&mut state, spec(), now);
    let lock_index = |state: &State| entry(state, "k").lock_index;
    acquire(&mut state, "k", one, "v", now).unwrap();
    assert_eq!(lock_index(&state), 1);
    // Once more by the holder: no acquisition, and no write when nothing differs.
    let modified = entry(&state, "k").modified;
    acquire(&mut state, "k", one, "v", now).unwrap();
    assert_eq!(
        (lock_index(&state), entry(&state, "k").modified),
        (1, modified)
    );
    acquire(&mut state, "k", one, "w", now).unwrap();
    assert_eq!(lock_index(&state), 1);
    assert!(entry(&state, "k").modified > modified);
    let held = acquire(&mut state, "k", two, "x", now);
    assert_eq!(held, Err(LockRefused::Held));

    assert!(!release(&mut state, "k", two));
    assert!(release(&mut state, "k", one));
    assert!(!release(&mut state, "k", one));
    assert_eq!((lock_index(&state), entry(&state, "k").session), (1, None));
    acquire(&mut state, "k", two, "", now).unwrap();
    assert_eq!(lock_index(&state), 2);

    // An ordinary write leaves the holder and forgets the count, even with the same content.
    put(&mut state, "k", "");
    assert_eq!(
        (lock_index(&state), entry(&state, "k").session),
        (0, Some(two))
    );
    release(&mut state, "k", two);
    acquire(&mut state, "k", one, "", now).unwrap();
    assert_eq!(lock_index(&state), 1);

    let index = state.next_index();
    state.replica.kv.delete(index, now, "k");
    acquire(&mut state, "k", two, "", now).unwrap();
    let key = entry(&state, "k");
    assert_eq!((key.lock_index, key.created), (1, state.index()));
}

#[test]
fn a_lock_needs_a_session_that_exists() {
    let (mut state, now) = state();
    let id = SessionId::new(1, 2);
    let refused = acquire(&mut state, "k", id, "", now);
    assert_eq!(refused, Err(LockRefused::NoSession(id)));
    let nobody = state.acquire("k", &Named::parse(""), 0, Bytes::new(), now);
    assert_eq!(nobody, Err(LockRefused::Nobody));
    let malformed = state.acquire("k", &Named::parse("abc"), 0, Bytes::new(), now);
    assert_eq!(malformed, Err(LockRefused::Malformed(Malformed::Length)));
    assert_eq!(
        state.release("k", &Named::parse("abc"), 0, Bytes::new()),
        Ok(false)
    );
    assert!(state.replica.kv.entry("k").is_none());
}

#[test]
fn the_lock_delay_counts_after_an_end_only() {
    let (mut state, now) = state();
    let delayed = || SessionSpec {
        lock_delay: 5 * SECOND,
        ..spec()
    };
    let other = create(&mut state, spec(), now);
    let first = create(&mut state, delayed(), now);
    acquire(&mut state, "k", first, "", now).unwrap();
    release(&mut state, "k", first);
    assert_eq!(acquire(&mut state, "k", other, "", now), Ok(()));
    release(&mut state, "k", other);

    acquire(&mut state, "k", first, "", now).unwrap();
    let index = state.next_index();
    state.replica.kv.delete(index, now, "k");
    assert_eq!(acquire(&mut state, "k", other, "", now), Ok(()));
    release(&mut state, "k", other);

    acquire(&mut state, "k", first, "kept", now).unwrap();
    state.destroy_session(first, now);
    assert_eq!(entry(&state, "k").value, "kept");
    let index = state.index();
    let early = now + 5 * SECOND - Duration::from_nanos(1);
    let refused = acquire(&mut state, "k", other, "", early);
    assert_eq!(refused, Err(LockRefused::Delayed));
    assert_eq!(state.index(), index, "it never came to a write");
    let end = now + 5 * SECOND;
    assert_eq!(acquire(&mut state, "k", other, "", end), Ok(()));
    assert_eq!(entry(&state, "k").lock_index, 3);
}

#[test]
fn a_lock_delay_counts_for_a_minute_at_most() {
    let (mut state, now) = state();
    let delayed = SessionSpec {
        lock_delay: 120 * SECOND,
        ..spec()
    };
    let id = create(&mut state, delayed, now);
    let other = create(&mut state, spec(), now);
    acquire(&mut state, "k", id, "", now).unwrap();
    state.destroy_session(id, now);
    let early = acquire(&mut state, "k", other, "", now + 59 * SECOND);
    assert_eq!(early, Err(LockRefused::Delayed));
    assert_eq!(
        acquire(&mut state, "k", other, "", now + 60 * SECOND),
        Ok(())
    );
}

#[test]
fn an_end_deletes_the_keys_of_who_wished_it_and_delays_them_all_the_same() {
    let (mut state, now) = state();
    let deleting = SessionSpec {
        behavior: Behavior::Delete,
        lock_delay: 5 * SECOND,
        ..spec()
    };
    let id = create(&mut state, deleting, now);
    let other = create(&mut state, spec(), now);
    for key in ["p/a", "p/b"] {
        acquire(&mut state, key, id, "", now).unwrap();
    }
    put(&mut state, "p/c", "");
    state.destroy_session(id, now);
    let index = state.index();
    assert_eq!(state.replica.kv.list("").count(), 1);
    assert_eq!(state.replica.kv.prefix_index("p/", now), index);
    put(&mut state, "p/a", "");
    let early = acquire(&mut state, "p/a", other, "", now + 4 * SECOND);
    assert_eq!(early, Err(LockRefused::Delayed));
}

#[test]
fn destroying_nobody_takes_an_index_and_changes_nothing() {
    let (mut state, now) = state();
    let index = state.index();
    assert!(!state.destroy_session(SessionId::new(1, 2), now));
    assert_eq!(state.index(), index + 1);
    assert_eq!(state.replica.sessions.index(), 0);
}

#[test]
fn a_wiped_agent_keeps_the_sessions_of_its_node() {
    let (mut state, now) = state();
    let passing = super::CheckSpec {
        status: Some(PASSING.into()),
        ..ttl(10)
    };
    state.register_service(
        service("a", "a1"),
        vec![passing],
        super::ExistingChecks::Keep,
        now,
    );
    let bound = create(&mut state, bound_to("service:a1"), now);
    let free = create(&mut state, spec(), now);
    state.wipe(now);
    assert!(!lives(&state, bound) && lives(&state, free));
}

#[test]
fn an_agent_that_leaves_takes_its_sessions_and_comes_back_with_its_services() {
    let (mut state, now) = state();
    let passing = super::CheckSpec {
        status: Some(PASSING.into()),
        ..ttl(10)
    };
    register(&mut state, "a", "a1", vec![passing], now);
    let id = create(&mut state, spec(), now);
    acquire(&mut state, "k", id, "v", now).unwrap();
    state.leave(now);
    assert!(!lives(&state, id));
    assert_eq!(entry(&state, "k").session, None);
    assert!(state.replica.catalog.node("n1").is_none());
    let refused = state.create_session(spec(), now).unwrap_err();
    assert_eq!(refused, SessionRefused::NoNode);

    // Neither a repair of the catalog nor an election brings back who is not there.
    state.plan_sync(now);
    state.advance(now + 100 * SECOND);
    state.lose_leader(now + 100 * SECOND);
    state.elect(now + 100 * SECOND);
    assert!(state.replica.catalog.node("n1").is_none());

    state.rejoin(now + 100 * SECOND);
    let catalog = &state.replica.catalog;
    assert!(catalog.service("n1", "a1").is_some());
    assert!(catalog.service("n1", "consul").is_some());
    let check = catalog.check("n1", "service:a1").unwrap();
    assert_eq!(check.status, CRITICAL, "its TTL ran out meanwhile");
    assert!(!lives(&state, id));
}

#[test]
fn new_servers_know_nobody_who_left() {
    let (mut state, now) = state();
    state.leave(now);
    state.reset(now);
    assert!(state.replica.catalog.node("n1").is_none());
    state.rejoin(now);
    create(&mut state, spec(), now);
}

#[test]
fn ten_thousand_sessions_come_and_go_in_no_time() {
    let (mut state, now) = state();
    let ids: Vec<SessionId> = (0..10_000)
        .map(|_| create(&mut state, with_ttl(10), now))
        .collect();
    for id in &ids {
        acquire(&mut state, &id.to_string(), *id, "v", now).unwrap();
        state.renew_session(*id, now + SECOND).unwrap();
    }
    state.advance(now + 21 * SECOND);
    assert_eq!(state.replica.sessions.list().count(), 0);
    assert!(
        state
            .replica
            .kv
            .list("")
            .all(|(_, entry)| entry.session.is_none())
    );
    assert_eq!(state.next_due(), None);
}
