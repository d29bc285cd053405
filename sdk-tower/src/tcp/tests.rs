use std::collections::BTreeMap;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::*;
use crate::endpoint::{Endpoint, EndpointSet, Target};
use crate::error::ErrorKind;
use crate::source::{FeedSource, feed, fixed};

/// Listeners that accept by their backlog: nobody needs to call `accept` for a connection to stand.
async fn listeners(number: usize) -> Vec<TcpListener> {
    let mut all = Vec::new();
    for _ in 0..number {
        all.push(TcpListener::bind("127.0.0.1:0").await.unwrap());
    }
    all
}

fn target(listener: &TcpListener) -> Target {
    Target::try_from(listener.local_addr().unwrap()).unwrap()
}

fn set(targets: impl IntoIterator<Item = Target>) -> EndpointSet {
    targets.into_iter().map(Endpoint::new).collect()
}

fn to(targets: impl IntoIterator<Item = Target>) -> Builder<crate::source::Fixed> {
    Builder::new(fixed(targets.into_iter().map(Endpoint::new)))
}

async fn nobody() -> Target {
    target(&listeners(1).await[0])
}

fn open(dialer: &Dialer) -> BTreeMap<Target, u32> {
    let endpoints = dialer.endpoints();
    endpoints
        .into_iter()
        .map(|e| (e.target, e.in_flight))
        .collect()
}

fn total(dialer: &Dialer) -> u32 {
    open(dialer).values().sum()
}

fn is_avoided(dialer: &Dialer, target: &Target) -> bool {
    let endpoints = dialer.endpoints();
    let found = endpoints.iter().find(|e| e.target == *target);
    found.unwrap().is_avoided
}

/// The first while that a bad endpoint is left alone for; a busy machine may take longer for a test.
const WHILE: Duration = Duration::from_millis(100);

#[tokio::test]
async fn connections_go_where_the_fewest_are_open() {
    let all = listeners(4).await;
    let dialer = to(all.iter().map(target)).build().unwrap();
    let mut kept = Vec::new();
    for _ in 0..40 {
        kept.push(dialer.connect().await.unwrap());
    }
    // Of two that are drawn the emptier is taken: they cannot drift apart.
    for (target, open) in open(&dialer) {
        assert!((7..=13).contains(&open), "{target}: {open}");
    }
    kept.clear();
    assert_eq!(total(&dialer), 0);
}

#[tokio::test]
async fn a_connection_carries_bytes_and_says_where_it_leads() {
    let listener = listeners(1).await.remove(0);
    let dialer = to([target(&listener)]).build().unwrap();
    let mut connection = dialer.connect().await.unwrap();
    assert_eq!(*connection.target(), target(&listener));
    assert!(connection.stream().nodelay().unwrap());
    let (mut peer, _) = listener.accept().await.unwrap();
    connection.write_all(b"ping").await.unwrap();
    let mut heard = [0; 4];
    peer.read_exact(&mut heard).await.unwrap();
    peer.write_all(b"pong").await.unwrap();
    connection.read_exact(&mut heard).await.unwrap();
    assert_eq!(heard, *b"pong");

    let (stream, usage) = connection.into_parts();
    drop(stream);
    assert_eq!(total(&dialer), 1);
    drop(usage);
    assert_eq!(total(&dialer), 0);
}

#[tokio::test]
async fn one_that_refuses_is_passed_over_and_left_alone() {
    let listener = listeners(1).await.remove(0);
    let dead = nobody().await;
    let dialer = to([target(&listener), dead.clone()]).build().unwrap();
    let mut kept = Vec::new();
    let started = tokio::time::Instant::now();
    for _ in 0..20 {
        let connection = dialer.connect().await.unwrap();
        assert_eq!(*connection.target(), target(&listener));
        kept.push(connection);
    }
    assert!(is_avoided(&dialer, &dead) || started.elapsed() >= WHILE);
    assert_eq!(open(&dialer)[&dead], 0);
}

#[tokio::test]
async fn where_all_refuse_the_error_names_the_last() {
    let dialer = to([nobody().await, nobody().await]).build().unwrap();
    let error = dialer.connect().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Connect);
    assert!(!error.was_sent());
    assert!(
        error
            .to_string()
            .contains("2 tried, the last was 127.0.0.1:"),
        "{error}"
    );
    let cause = std::error::Error::source(&error).unwrap();
    let cause = cause.downcast_ref::<io::Error>().unwrap();
    assert_eq!(cause.kind(), io::ErrorKind::ConnectionRefused);
}

#[tokio::test]
async fn next_leads_elsewhere_and_leaves_the_bad_one_alone() {
    let all = listeners(2).await;
    let dialer = to(all.iter().map(target)).build().unwrap();
    let first = dialer.connect().await.unwrap();
    let bad = first.target().clone();
    let started = tokio::time::Instant::now();
    let second = first.next().await.unwrap();
    assert_ne!(*second.target(), bad);
    assert!(is_avoided(&dialer, &bad) || started.elapsed() >= WHILE);
    assert_eq!(total(&dialer), 1);
    let mut kept = Vec::new();
    for _ in 0..5 {
        let connection = dialer.connect().await.unwrap();
        assert!(*connection.target() != bad || started.elapsed() >= WHILE);
        kept.push(connection);
    }
    // Where all were found bad, they are tried after all.
    let third = second.next().await.unwrap();
    assert_eq!(*third.target(), bad);
}

#[tokio::test]
async fn one_that_is_found_bad_again_is_left_alone_for_longer() {
    let all = listeners(1).await;
    let dialer = to(all.iter().map(target)).build().unwrap();
    let bad = target(&all[0]);
    dialer.wait_ready().await.unwrap();
    let started = tokio::time::Instant::now();
    // The only one is used although it is avoided: that is when it is found bad once more.
    for _ in 0..4 {
        while is_avoided(&dialer, &bad) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let connection = dialer.connect().await.unwrap();
        connection.next().await.unwrap_err();
    }
    // 100 ms, 200 ms and 400 ms are over.
    assert!(started.elapsed() >= Duration::from_millis(690));
    while is_avoided(&dialer, &bad) {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    // One that is dropped without complaint speaks for it.
    drop(dialer.connect().await.unwrap());
    assert!(!is_avoided(&dialer, &bad));
    drop(dialer.connect().await.unwrap().next().await);
    assert!(is_avoided(&dialer, &bad));
    let waited = tokio::time::Instant::now();
    while is_avoided(&dialer, &bad) {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert!(
        waited.elapsed() < Duration::from_millis(400),
        "it began anew"
    );
}

fn unknown() -> (crate::source::Feed, Builder<FeedSource>) {
    let (feed, source) = feed();
    (feed, Builder::new(source))
}

#[tokio::test(start_paused = true)]
async fn without_a_set_it_waits_and_then_says_so() {
    let (_feed, builder) = unknown();
    let dialer = builder
        .first_resolution(Duration::from_secs(3))
        .build()
        .unwrap();
    let started = tokio::time::Instant::now();
    let error = dialer.connect().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NeverResolved);
    assert_eq!(started.elapsed(), Duration::from_secs(3));
    assert_eq!(
        dialer.connect().await.unwrap_err().kind(),
        ErrorKind::NeverResolved
    );
}

#[tokio::test]
async fn an_empty_set_fails_at_once_and_a_new_one_is_used() {
    let (feed, builder) = unknown();
    let dialer = builder.build().unwrap();
    feed.set(EndpointSet::empty());
    let error = dialer.connect().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoEndpoints);
    let listener = listeners(1).await.remove(0);
    feed.set(set([target(&listener)]));
    dialer.wait_ready().await.unwrap();
    dialer.connect().await.unwrap();
}

#[tokio::test]
async fn a_connect_that_is_given_up_counts_no_longer() {
    let (feed, builder) = unknown();
    let dialer = builder.build().unwrap();
    let mut connecting = Box::pin(dialer.connect());
    assert!(futures_poll(connecting.as_mut()).is_none());
    let listener = listeners(1).await.remove(0);
    feed.set(set([target(&listener)]));
    dialer.wait_ready().await.unwrap();
    // It is under way now, or done.
    let begun = futures_poll(connecting.as_mut());
    assert_eq!(total(&dialer), 1);
    drop((begun, connecting));
    assert_eq!(total(&dialer), 0);
}

/// One poll with a waker that does nothing.
fn futures_poll<F: Future>(future: std::pin::Pin<&mut F>) -> Option<F::Output> {
    let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
    match future.poll(&mut cx) {
        std::task::Poll::Ready(output) => Some(output),
        std::task::Poll::Pending => None,
    }
}

#[tokio::test]
async fn its_task_ends_with_the_last_clone_and_the_last_connection() {
    let tasks = || {
        tokio::runtime::Handle::current()
            .metrics()
            .num_alive_tasks()
    };
    let all = listeners(1).await;
    let dialer = to(all.iter().map(target)).build().unwrap();
    let connection = dialer.clone().connect().await.unwrap();
    assert_eq!(tasks(), 1);
    drop(dialer);
    tokio::task::yield_now().await;
    assert_eq!(tasks(), 1);
    let (stream, usage) = connection.into_parts();
    drop(usage);
    let ended = async {
        while tasks() > 0 {
            tokio::task::yield_now().await;
        }
    };
    timeout(Duration::from_millis(100), ended).await.unwrap();
    drop(stream);
}

#[tokio::test]
async fn options_that_cannot_work_are_refused() {
    let refused = |builder: Builder<crate::source::Fixed>, why: &str| {
        let error = builder.build().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
        assert!(error.to_string().contains(why), "{error}");
    };
    refused(to([]).connect_timeout(Duration::ZERO), "connect_timeout");
    refused(to([]).max_attempts(0), "max_attempts");
    refused(to([]).max_attempts(17), "max_attempts");
}

#[test]
fn without_a_runtime_it_says_so() {
    let error = to([]).build().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoRuntime);
}
