//! A request that takes long is sent to a second endpoint as well.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use http::{Method, StatusCode};
use lictor_tower::channel::{Channel, Policy};
use lictor_tower::error::ErrorKind;
use lictor_tower::retry::{Budget, Hedge, RetryPolicy};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::scripted::{Do, Scripted, known, ok, over, status};
use crate::support::{eventually, get, in_flight, registry, text};

fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// Well at first, then stuck.
fn stuck_after(well: u32) -> impl Fn(u32) -> Do + Send + Sync {
    move |before| if before < well { ok() } else { Do::Hang }
}

fn paid_by(budget: Budget) -> RetryPolicy {
    RetryPolicy::new().max_retries(0).budget(budget)
}

/// Calls until a request is hedged, which takes this long at least, because it has reached a
/// server that does not answer; gives that request's time.
async fn until_stuck(channel: &Channel, stuck: &Scripted, hedged: Duration) -> Duration {
    let well = stuck.requests();
    let mut calls = 0;
    loop {
        let before = Instant::now();
        let response = channel.request(get("/")).await.unwrap();
        assert_eq!(text(response).await, "ok");
        let took = before.elapsed();
        if stuck.requests() > well && took >= hedged {
            return took;
        }
        calls += 1;
        assert!(calls < 200, "nobody asked the one that is stuck");
    }
}

#[tokio::test]
async fn the_first_answer_wins_and_the_other_attempt_is_dropped() {
    let stuck = Scripted::start(stuck_after(1)).await;
    let good = Scripted::start(|_| ok()).await;
    let (_registry, channel) = over(&[&stuck, &good], |builder| {
        builder
            .policy(Policy::PendingRequests)
            .hedge(Hedge::after(ms(40)))
    });
    let took = until_stuck(&channel, &stuck, ms(40)).await;
    assert!(took < Duration::from_secs(10), "{took:?}");
    eventually("it is told that nobody waits", || stuck.given_up() > 0).await;
    assert_eq!(in_flight(&channel), 0);
    // It is known to be at least as slow as it was waited for, and not as quick as the other.
    let told = channel.endpoints();
    let stuck = told.iter().find(|e| e.target == stuck.target).unwrap();
    assert!(stuck.latency.unwrap() >= ms(40), "{stuck:?}");
    assert!(!stuck.is_penalized);
}

#[tokio::test]
async fn hedges_are_paid_from_the_budget() {
    let stuck = Scripted::start(|_| Do::Hang).await;
    let also = Scripted::start(|_| Do::Hang).await;
    let (_registry, channel) = over(&[&stuck, &also], |builder| {
        builder
            .retry(paid_by(Budget::new(25, 0)))
            .hedge(Hedge::after(ms(5)))
    });
    channel.wait_ready().await.unwrap();
    let mut calls = JoinSet::new();
    for _ in 0..8 {
        calls.spawn(channel.request(get("/")));
    }
    // Eight requests and a quarter of that.
    let asked = || stuck.requests() + also.requests();
    eventually("two are hedged", || asked() == 10).await;
    tokio::time::sleep(ms(50)).await;
    assert_eq!(asked(), 10);
    assert_eq!(in_flight(&channel), 10);
    calls.shutdown().await;
    assert_eq!(in_flight(&channel), 0);
}

#[tokio::test]
async fn what_may_not_be_repeated_is_not_hedged() {
    let stuck = Scripted::start(|_| Do::Hang).await;
    let also = Scripted::start(|_| Do::Hang).await;
    let (_registry, channel) = over(&[&stuck, &also], |builder| {
        builder.hedge(Hedge::after(ms(5)))
    });
    let asked = || stuck.requests() + also.requests();
    let post = channel.request(known(Method::POST, "x"));
    tokio::time::timeout(ms(100), post).await.unwrap_err();
    assert!(asked() <= 1);
    // One with a body may be, if it is idempotent.
    let before = asked();
    let put = std::pin::pin!(channel.request(known(Method::PUT, "x")));
    tokio::select! {
        _ = put => panic!("nobody answers"),
        () = eventually("it is hedged", || asked() == before + 2) => {}
    }
}

#[tokio::test]
async fn a_first_attempt_that_fails_leaves_it_to_the_second() {
    let bad = Scripted::start(|_| status(503)).await;
    let late = Scripted::start(|_| Do::Hang).await;
    let (registry, told) = registry();
    registry.tell(&[&bad.target, &late.target]);
    let channel = Channel::from_source(told)
        .hedge(Hedge::after(ms(20)))
        .timeout(ms(200))
        .build()
        .unwrap();
    // Whoever of the two comes first: the answer that there is beats none.
    for _ in 0..4 {
        let response = channel.request(get("/")).await.unwrap();
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    }
    assert_eq!(in_flight(&channel), 0);
}

#[tokio::test]
async fn a_hedge_may_wait_for_a_percentile_of_what_was_observed() {
    let is_stuck = Arc::new(AtomicBool::new(false));
    let asked = Arc::clone(&is_stuck);
    let stuck = Scripted::start(move |_| match asked.load(Ordering::SeqCst) {
        true => Do::Hang,
        false => ok(),
    })
    .await;
    let good = Scripted::start(|_| ok()).await;
    let (_registry, channel) = over(&[&stuck, &good], |builder| {
        builder
            .policy(Policy::PendingRequests)
            .timeout(Duration::from_secs(20))
            .retry(paid_by(Budget::new(100, 100)))
            .hedge(Hedge::percentile(0.95).at_least(ms(10)))
    });
    for _ in 0..40 {
        drop(text(channel.request(get("/")).await.unwrap()).await);
    }
    is_stuck.store(true, Ordering::SeqCst);
    let took = until_stuck(&channel, &stuck, ms(10)).await;
    assert!(took < Duration::from_secs(10), "{took:?}");
    assert_eq!(in_flight(&channel), 0);
}

#[tokio::test]
async fn with_nobody_else_there_is_no_hedge() {
    let stuck = Scripted::start(|_| Do::Hang).await;
    let (_registry, channel) = over(&[&stuck], |builder| {
        builder.hedge(Hedge::after(ms(5))).timeout(ms(50))
    });
    channel.request(get("/")).await.unwrap_err();
    assert_eq!(stuck.requests(), 1);
}

#[tokio::test]
async fn a_hedged_request_that_is_cancelled_leaves_nothing_behind() {
    let servers = [
        Scripted::start(|_| Do::Hang).await,
        Scripted::start(|_| Do::Hang).await,
    ];
    let (_registry, channel) = over(&[&servers[0], &servers[1]], |builder| {
        builder.hedge(Hedge::after(ms(1)))
    });
    let call = std::pin::pin!(channel.request(get("/")));
    tokio::select! {
        _ = call => panic!("nobody answers"),
        () = eventually("both were asked", || servers.iter().all(|s| s.requests() == 1)) => {}
    }
    assert_eq!(in_flight(&channel), 2);
}

#[tokio::test]
async fn options_of_hedges_out_of_range_are_refused() {
    for (hedge, named) in [
        (Hedge::after(Duration::ZERO), "hedge is zero"),
        (Hedge::percentile(0.0), "percentile"),
        (Hedge::percentile(1.0), "percentile"),
        (Hedge::percentile(f64::NAN), "percentile"),
    ] {
        let (_registry, told) = registry();
        let error = Channel::from_source(told).hedge(hedge).build().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
        assert!(error.to_string().contains(named), "{error}");
    }
}
