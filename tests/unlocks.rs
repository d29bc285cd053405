//! Unlocks that fail, or are forgotten, while the session lives on: nothing stays locked, and no
//! token comes twice.

use std::pin::pin;
use std::time::Duration;

use http::StatusCode;
use lictor::coordination::{Lease, Profile};
use lictor::embedded::{Agent, Fault};
use lictor::{Client, ErrorKind};
use support::eventually;
use tokio::time::{sleep, timeout};

const PATIENCE: Duration = Duration::from_secs(60);

fn client(agent: &Agent) -> Client {
    Client::builder().transport(agent.clone()).build().unwrap()
}

/// A lease that outlives an outage that no unlock outlives.
fn long(client: &Client) -> Lease {
    let profile = Profile::balanced()
        .ttl(Duration::from_secs(40))
        .lock_delay(Duration::from_secs(40));
    client.lease().profile(profile).build().unwrap()
}

/// All transactions fail from here on, for longer than a release takes to give up.
fn no_transactions(agent: &Agent) {
    let down = Fault::answer(StatusCode::INTERNAL_SERVER_ERROR, "No cluster leader");
    agent.inject(down.under("/v1/txn"));
}

#[tokio::test(start_paused = true)]
async fn a_release_that_failed_is_repeated_while_a_shared_lease_lives() {
    let agent = Agent::in_memory();
    let client = client(&agent);
    let lease = long(&client);
    let guard = client.lock("job").lease(&lease).acquire().await.unwrap();
    no_transactions(&agent);
    let err = guard.release().await.unwrap_err();
    assert_eq!(err.kind(), ErrorKind::NoLeader, "{err}");
    agent.clear_faults();
    // Another session may have it, without a lock-delay.
    let other = client.lock("job");
    let guard = timeout(Duration::from_secs(5), other.acquire()).await;
    guard
        .expect("it stays locked")
        .unwrap()
        .release()
        .await
        .unwrap();
    assert!(lease.state().is_held());
}

#[tokio::test(start_paused = true)]
async fn a_token_never_comes_twice_after_a_release_that_failed() {
    let agent = Agent::in_memory();
    let client = client(&agent);
    let lease = long(&client);
    let lock = client.lock("job").lease(&lease);
    let guard = lock.acquire().await.unwrap();
    let former = guard.token();
    no_transactions(&agent);
    guard.release().await.unwrap_err();
    // The key is still the session's, but nobody is to hold by it before the unlock is done.
    assert!(lock.try_acquire().await.unwrap().acquired().is_none());
    agent.clear_faults();
    let guard = timeout(PATIENCE, lock.acquire()).await.unwrap().unwrap();
    assert!(guard.token() > former, "{:?}", guard.token());
    guard.release().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_right_that_is_missing_for_a_moment_does_not_leave_a_place_taken() {
    let agent = Agent::in_memory();
    let client = client(&agent);
    let lease = long(&client);
    let semaphore = client.semaphore("places", 1).lease(&lease);
    let permit = semaphore.acquire().await.unwrap();
    let denied = Fault::answer(StatusCode::FORBIDDEN, "Permission denied");
    agent.inject(denied.under("/v1/txn"));
    drop(permit);
    sleep(Duration::from_secs(1)).await;
    agent.clear_faults();
    let other = client.semaphore("places", 1);
    eventually(PATIENCE, async || {
        let permit = other.try_acquire().await.unwrap();
        permit.is_some()
    })
    .await;
    assert!(lease.state().is_held());
}

#[tokio::test(start_paused = true)]
async fn a_check_that_expires_before_its_session_is_made_is_no_refusal() {
    let agent = Agent::in_memory();
    let client = client(&agent);
    let critical = Fault::answer(
        StatusCode::INTERNAL_SERVER_ERROR,
        "Check 'lictor-lease-1' is in critical state",
    );
    agent.inject(critical.under("/v1/session/create").times(2));
    let lock = client.lock("job").profile(Profile::aggressive());
    let guard = timeout(PATIENCE, lock.acquire()).await.unwrap().unwrap();
    guard.release().await.unwrap();
}

/// Polls a future a few times, until nothing comes of it at once.
async fn begun<T>(mut future: std::pin::Pin<&mut impl Future<Output = T>>, polls: usize) {
    let mut left = polls;
    let done = std::future::poll_fn(|cx| {
        if left == 0 {
            return std::task::Poll::Ready(false);
        }
        left -= 1;
        future.as_mut().poll(cx).map(|_| true)
    });
    assert!(!done.await, "it is done already");
}

#[tokio::test(start_paused = true)]
async fn a_release_that_is_neither_polled_nor_dropped_is_done_nevertheless() {
    let agent = Agent::in_memory();
    let client = client(&agent);
    let lease = long(&client);
    let lock = client.lock("job").lease(&lease);
    let guard = lock.acquire().await.unwrap();
    // Its first request is refused, so that there is something left to do.
    no_transactions(&agent);
    let mut release = pin!(guard.release());
    begun(release.as_mut(), 1).await;
    agent.clear_faults();
    let other = client.lock("job");
    let guard = timeout(Duration::from_secs(5), other.acquire()).await;
    let guard = guard.expect("it stays locked").unwrap();
    // Who comes back to it later is told what it came to.
    release.await.unwrap();
    guard.release().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_try_that_nobody_polls_leaves_nothing_locked_when_its_lease_is_closed() {
    for polls in 1..12 {
        let agent = Agent::in_memory();
        let client = client(&agent);
        let lease = long(&client);
        lease.session().await.unwrap();
        let lock = client.lock("job").lease(&lease);
        let mut acquire = pin!(lock.acquire());
        let slow = Fault::delay(Duration::from_millis(30));
        agent.inject(slow);
        let seen = timeout(Duration::from_millis(10 * polls), acquire.as_mut()).await;
        lease.close().await.unwrap();
        agent.clear_faults();
        // Nor does a lock-delay run, as it would if the session had ended with the key.
        let other = client.lock("job");
        let guard = other.try_acquire().await.unwrap().acquired();
        assert!(guard.is_some(), "after {polls}");
        drop((seen, guard));
    }
}

#[test]
fn a_try_and_a_release_in_another_runtime_than_the_keepers_are_done() {
    let runtime = || {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        builder.worker_threads(1).enable_all().build().unwrap()
    };
    let (home, away) = (runtime(), runtime());
    let agent = Agent::in_memory();
    let client = client(&agent);
    let lease = client.lease().build().unwrap();
    home.block_on(lease.session()).unwrap();
    let lock = client.lock("job").lease(&lease);
    let guard = away.block_on(async { timeout(PATIENCE, lock.acquire()).await });
    let guard = guard.unwrap().unwrap();
    let former = guard.token();
    away.block_on(async { timeout(PATIENCE, guard.release()).await })
        .unwrap()
        .unwrap();
    // Begun in one, and left when that ends: the other still knows what became of it.
    let guard = away.block_on(lock.acquire()).unwrap();
    let slow = Fault::delay(Duration::from_millis(100));
    agent.inject(slow.under("/v1/txn").times(1));
    let mut release = Box::pin(guard.release());
    away.block_on(begun(release.as_mut(), 1));
    drop(away);
    agent.clear_faults();
    home.block_on(async { timeout(PATIENCE, release).await })
        .unwrap()
        .unwrap();
    let guard = home.block_on(lock.acquire()).unwrap();
    assert!(guard.token() > former);
    home.block_on(guard.release()).unwrap();
}
