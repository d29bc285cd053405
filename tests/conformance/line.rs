//! Fair locks: those that wait stand in line.

use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::time::Duration;

use lictor::api::txn::KvOp;
use lictor::coordination::{Attempt, Lock};
use lictor::ident::SessionId;
use lictor::{Client, ErrorKind};
use support::eventually;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::TestAgent;

on_both_agents![
    they_hold_in_the_order_in_which_they_came,
    who_leaves_the_line_keeps_nobody,
    who_leaves_it_anywhere_leaves_no_ticket,
    tickets_of_the_dead_do_not_count,
    one_that_sleeps_is_passed_once,
    whoever_only_tries_does_not_stand_in_line,
    those_that_are_not_fair_are_kept_out_as_ever,
    one_whose_session_is_lost_goes_on_at_the_end,
    all_that_want_the_same_keys_have_one_line,
    tasks_that_share_a_lease_stand_in_line_for_each_other,
    a_line_is_explained,
];

const LONG: Duration = Duration::from_secs(30);

/// What marks a ticket.
const TICKET: u64 = 0x6c69_6374_6f72_0001;

/// The order in which they held.
type Order = Arc<Mutex<Vec<usize>>>;

async fn tickets(client: &Client, key: &str) -> usize {
    let list = client.kv().list(format!("{key}.queue/")).await;
    list.unwrap().len()
}

async fn stand_in_line(lock: &Lock, count: usize) {
    eventually(LONG, async || {
        lock.explain().await.unwrap().line().len() == count
    })
    .await;
}

/// Has so many wait, one after the other; each notes when it holds, and lets go.
async fn line_up(lock: &Lock, count: usize) -> (Order, JoinSet<()>) {
    let (order, mut line) = (Order::default(), JoinSet::new());
    for number in 0..count {
        let (order, own) = (Arc::clone(&order), lock.clone());
        line.spawn(async move {
            let guard = own.acquire().await.unwrap();
            order.lock().unwrap().push(number);
            guard.check().unwrap();
            guard.release().await.unwrap();
        });
        stand_in_line(lock, number + 1).await;
    }
    (order, line)
}

/// Waits until all of the line are done, and says in which order.
async fn ended(order: Order, mut line: JoinSet<()>) -> Vec<usize> {
    let all = async { while line.join_next().await.transpose().unwrap().is_some() {} };
    tokio::time::timeout(LONG, all).await.expect("in time");
    order.lock().unwrap().clone()
}

/// A ticket of somebody who never tries.
async fn sleeper(client: &Client, key: &str) -> (SessionId, String) {
    let new = lictor::api::session::NewSession::new();
    let session = client.session().create(&new.no_checks()).await.unwrap();
    let ticket = format!("{key}.queue/{session}-00000000");
    let lock = KvOp::lock(ticket.as_str(), &session, "").flags(TICKET);
    let outcome = client.txn().kv(lock).await.unwrap();
    outcome.into_result().unwrap();
    (session, ticket)
}

async fn they_hold_in_the_order_in_which_they_came(agent: &TestAgent) {
    let (client, key) = (agent.client(), agent.name("fair"));
    let lock = client.lock(key.as_str()).fair();
    let guard = lock.acquire().await.unwrap();
    assert_eq!(tickets(&client, &key).await, 0, "nobody had to wait");
    // More than follow the lock itself.
    let (order, line) = line_up(&lock, 8).await;
    guard.release().await.unwrap();
    assert_eq!(ended(order, line).await, [0, 1, 2, 3, 4, 5, 6, 7]);
    assert_eq!(tickets(&client, &key).await, 0);
    assert_eq!(agent.sessions(&key).await, 0);
}

async fn who_leaves_the_line_keeps_nobody(agent: &TestAgent) {
    let (client, key) = (agent.client(), agent.name("fair"));
    let lock = client.lock(key.as_str()).fair();
    let guard = lock.acquire().await.unwrap();
    let mut leavers = JoinSet::new();
    for number in 0..2 {
        let own = lock.clone();
        leavers.spawn(async move { drop(own.acquire().await) });
        stand_in_line(&lock, number + 1).await;
    }
    let own = lock.clone();
    let mut last = JoinSet::new();
    last.spawn(async move { own.acquire().await.unwrap() });
    stand_in_line(&lock, 3).await;
    leavers.shutdown().await;
    eventually(LONG, async || tickets(&client, &key).await == 1).await;
    let released = Instant::now();
    guard.release().await.unwrap();
    let guard = last.join_next().await.unwrap().unwrap();
    let waited = released.elapsed();
    assert!(waited < Duration::from_millis(900), "{waited:?}");
    guard.release().await.unwrap();
    eventually(LONG, async || agent.sessions(&key).await == 0).await;
    assert_eq!(tickets(&client, &key).await, 0);
}

async fn who_leaves_it_anywhere_leaves_no_ticket(agent: &TestAgent) {
    let (client, key) = (agent.client(), agent.name("fair"));
    let holder = client.lock(key.as_str()).acquire().await.unwrap();
    let name = agent.name("shared");
    let lease = client.lease().name(name.as_str()).build().unwrap();
    let shared = client.lock(key.as_str()).lease(&lease).fair();
    let own = client.lock(key.as_str()).fair();
    for lock in [own, shared] {
        for polls in 1..25 {
            let mut acquiring = Box::pin(lock.acquire());
            let mut left = polls;
            let polled = std::future::poll_fn(|cx| {
                assert!(acquiring.as_mut().poll(cx).is_pending(), "two hold");
                left -= 1;
                match left {
                    0 => Poll::Ready(()),
                    _ => Poll::Pending,
                }
            });
            // Once it waits for the holder, nothing wakes it any more.
            let waits = tokio::time::timeout(Duration::from_millis(300), polled).await;
            drop(acquiring);
            eventually(LONG, async || {
                tickets(&client, &key).await == 0 && agent.sessions(&key).await == 1
            })
            .await;
            if waits.is_err() {
                assert!(polls > 3, "{polls} polls");
                break;
            }
        }
    }
    holder.check().unwrap();
    holder.release().await.unwrap();
}

async fn tickets_of_the_dead_do_not_count(agent: &TestAgent) {
    let (client, key) = (agent.client(), agent.name("fair"));
    let lock = client.lock(key.as_str()).fair();
    let guard = lock.acquire().await.unwrap();
    let (dead, _) = sleeper(&client, &key).await;
    let (order, line) = line_up_behind(&lock, 1).await;
    client.session().destroy(&dead).await.unwrap();
    stand_in_line(&lock, 1).await;
    assert_eq!(tickets(&client, &key).await, 2);
    let released = Instant::now();
    guard.release().await.unwrap();
    assert_eq!(ended(order, line).await, [0]);
    let waited = released.elapsed();
    assert!(waited < Duration::from_millis(900), "{waited:?}");
    assert_eq!(
        tickets(&client, &key).await,
        0,
        "the dead one's went with it"
    );
}

/// Lines up one behind those that are there already.
async fn line_up_behind(lock: &Lock, there: usize) -> (Order, JoinSet<()>) {
    let (order, mut line) = (Order::default(), JoinSet::new());
    let (noted, own) = (Arc::clone(&order), lock.clone());
    line.spawn(async move {
        let guard = own.acquire().await.unwrap();
        noted.lock().unwrap().push(0);
        guard.release().await.unwrap();
    });
    stand_in_line(lock, there + 1).await;
    (order, line)
}

async fn one_that_sleeps_is_passed_once(agent: &TestAgent) {
    let (client, key) = (agent.client(), agent.name("fair"));
    let lock = client.lock(key.as_str()).fair();
    let guard = lock.acquire().await.unwrap();
    let (session, ticket) = sleeper(&client, &key).await;
    let (order, line) = line_up_behind(&lock, 1).await;
    let released = Instant::now();
    guard.release().await.unwrap();
    assert_eq!(ended(order, line).await, [0]);
    let waited = released.elapsed();
    assert!(waited > Duration::from_millis(990), "{waited:?}");
    let ticket = client.kv().get(ticket.as_str()).await.unwrap();
    assert!(ticket.is_none(), "it is in the way of the next");
    client.session().destroy(&session).await.unwrap();
}

async fn whoever_only_tries_does_not_stand_in_line(agent: &TestAgent) {
    let (client, key) = (agent.client(), agent.name("fair"));
    let lock = client.lock(key.as_str()).fair();
    let guard = lock.try_acquire().await.unwrap().acquired().unwrap();
    let other = lock.try_acquire().await.unwrap();
    assert!(matches!(other, Attempt::Held(_)), "{other:?}");
    assert_eq!(tickets(&client, &key).await, 0);
    guard.release().await.unwrap();
    let mut keys = client.lock(key.as_str()).fair();
    for number in 0..31 {
        keys = keys.and(format!("{key}-{number}"));
    }
    let err = keys.acquire().await.unwrap_err();
    assert_eq!(err.kind(), ErrorKind::Invalid, "{err}");
}

async fn those_that_are_not_fair_are_kept_out_as_ever(agent: &TestAgent) {
    let (client, key) = (agent.client(), agent.name("fair"));
    let fair = client.lock(key.as_str()).fair();
    let plain = client.lock(key.as_str());
    let guard = plain.acquire().await.unwrap();
    let (order, line) = line_up(&fair, 1).await;
    assert!(order.lock().unwrap().is_empty());
    let tried = plain.try_acquire().await.unwrap();
    assert!(matches!(tried, Attempt::Held(_)), "{tried:?}");
    guard.release().await.unwrap();
    let guard = tokio::time::timeout(LONG, plain.acquire()).await;
    let guard = guard.expect("in time").unwrap();
    assert_eq!(ended_while_held(order, line, guard).await, [0]);
}

/// As [`ended`]; a guard is let go meanwhile.
async fn ended_while_held(
    order: Order,
    line: JoinSet<()>,
    guard: lictor::coordination::LockGuard,
) -> Vec<usize> {
    let (order, released) = tokio::join!(ended(order, line), guard.release());
    released.unwrap();
    order
}

async fn one_whose_session_is_lost_goes_on_at_the_end(agent: &TestAgent) {
    let (client, key) = (agent.client(), agent.name("fair"));
    let lock = client.lock(key.as_str()).fair();
    let guard = lock.acquire().await.unwrap();
    let (order, line) = line_up(&lock, 2).await;
    let explanation = lock.explain().await.unwrap();
    let first = explanation.line()[0].clone();
    client.session().destroy(first.session()).await.unwrap();
    // It is told at the next proof of the lease, and stands in line again by a new session.
    eventually(LONG, async || {
        let explanation = lock.explain().await.unwrap();
        let line = explanation.line();
        line.len() == 2 && line.iter().all(|one| one.session() != first.session())
    })
    .await;
    guard.release().await.unwrap();
    assert_eq!(ended(order, line).await, [1, 0]);
    eventually(LONG, async || tickets(&client, &key).await == 0).await;
}

async fn all_that_want_the_same_keys_have_one_line(agent: &TestAgent) {
    let (client, a, b) = (agent.client(), agent.name("a"), agent.name("b"));
    let ab = client.lock(a.as_str()).and(b.as_str()).fair();
    let ba = client.lock(b.as_str()).and(a.as_str()).fair();
    let guard = client.lock(b.as_str()).acquire().await.unwrap();
    let (order, line) = line_up(&ab, 2).await;
    let (other, others) = line_up_behind(&ba, 2).await;
    guard.release().await.unwrap();
    assert_eq!(ended(order, line).await, [0, 1]);
    assert_eq!(ended(other, others).await, [0]);
    assert_eq!(tickets(&client, &a).await, 0);
    assert_eq!(tickets(&client, &b).await, 0);
}

async fn tasks_that_share_a_lease_stand_in_line_for_each_other(agent: &TestAgent) {
    let (client, key) = (agent.client(), agent.name("fair"));
    let lease = client.lease().name(agent.name("shared")).build().unwrap();
    let shared = client.lock(key.as_str()).lease(&lease).fair();
    let guard = client.lock(key.as_str()).fair().acquire().await.unwrap();
    let both = async {
        let hold = async || {
            let guard = shared.acquire().await.unwrap();
            guard.release().await.unwrap();
        };
        tokio::join!(hold(), hold())
    };
    let release = async {
        stand_in_line(&shared, 1).await;
        guard.release().await.unwrap();
    };
    let all = async { tokio::join!(both, release) };
    tokio::time::timeout(LONG, all).await.expect("in time");
    assert_eq!(tickets(&client, &key).await, 0);
    lease.close().await.unwrap();
}

async fn a_line_is_explained(agent: &TestAgent) {
    let (client, key) = (agent.client(), agent.name("fair"));
    let lock = client.lock(key.as_str()).fair();
    let guard = lock.acquire().await.unwrap();
    let (order, line) = line_up(&lock, 3).await;
    let plain = client.lock(key.as_str());
    let mut beside = JoinSet::new();
    beside.spawn(async move { drop(plain.acquire().await) });
    eventually(LONG, async || lock.explain().await.unwrap().waiting() == 4).await;
    let explanation = lock.explain().await.unwrap();
    let waiting = explanation.line();
    let places: Vec<usize> = waiting.iter().map(|one| one.place()).collect();
    assert_eq!(places, [1, 2, 3]);
    assert!(waiting.is_sorted_by(|a, b| a.since() < b.since()));
    for one in waiting {
        assert!(one.name().unwrap().starts_with(&key));
        assert_ne!(one.session(), guard.session());
        assert_eq!(one.preference(), 0);
    }
    let text = explanation.to_string();
    let second = format!("2. in line: session {}", waiting[1].session());
    assert!(text.contains(&second), "{text}");
    beside.shutdown().await;
    guard.release().await.unwrap();
    assert_eq!(ended(order, line).await, [0, 1, 2]);
}
