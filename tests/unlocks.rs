//! Unlocks that fail while the session lives on: nothing stays locked, and no token comes twice.

use std::time::Duration;

use http::StatusCode;
use lictor::coordination::{Lease, Profile};
use lictor::embedded::{Agent, Fault};
use lictor::{Client, ErrorKind};
use support::eventually;
use tokio::time::timeout;

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
    tokio::time::sleep(Duration::from_secs(1)).await;
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
