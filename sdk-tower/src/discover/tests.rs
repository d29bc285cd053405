use std::collections::BTreeSet;
use std::task::Waker;

use tower::Service;
use tower::balance::p2c::Balance;
use tower::load::Constant;
use tower::service_fn;
use tower::util::ServiceExt;

use super::*;
use crate::source::{self, Feed, FeedSource};

fn target(text: &str) -> Target {
    text.parse().unwrap()
}

fn set(targets: &[&str]) -> EndpointSet {
    let endpoints = targets.iter().map(|text| Endpoint::new(target(text)));
    endpoints.collect()
}

/// All changes that are there now, written as `+target` and `-target`.
fn drain<S: Source + Unpin>(discover: &mut Discover<S>) -> Vec<String> {
    let mut cx = Context::from_waker(Waker::noop());
    let mut found = Vec::new();
    while let Poll::Ready(Some(Ok(change))) = Pin::new(&mut *discover).poll_next(&mut cx) {
        found.push(match change {
            Change::Insert(target, endpoint) => {
                assert_eq!(&target, endpoint.target());
                format!("+{target}")
            }
            Change::Remove(target) => format!("-{target}"),
        });
    }
    found
}

fn discover() -> (Feed, Discover<FeedSource>) {
    let (feed, source) = source::feed();
    (feed, Discover::new(source))
}

#[test]
fn only_what_changed_is_told() {
    let (feed, mut discover) = discover();
    assert_eq!(drain(&mut discover), Vec::<String>::new());
    feed.set(set(&["a:1", "b:1", "c:1"]));
    assert_eq!(drain(&mut discover), ["+a:1", "+b:1", "+c:1"]);
    feed.set(set(&["a:1", "b:1", "d:1"]));
    assert_eq!(drain(&mut discover), ["+d:1", "-c:1"]);
    feed.set(set(&["a:1", "b:1", "d:1"]));
    assert_eq!(drain(&mut discover), Vec::<String>::new());
}

#[test]
fn a_full_replacement_inserts_before_it_removes() {
    let (feed, mut discover) = discover();
    feed.set(set(&["x:1", "y:1"]));
    drain(&mut discover);
    feed.set(set(&["a:1", "b:1"]));
    assert_eq!(drain(&mut discover), ["+a:1", "+b:1", "-x:1", "-y:1"]);
}

#[test]
fn an_empty_set_removes_everybody() {
    let (feed, mut discover) = discover();
    feed.set(set(&["a:1", "b:1"]));
    drain(&mut discover);
    feed.set(EndpointSet::empty());
    assert_eq!(drain(&mut discover), ["-a:1", "-b:1"]);
}

#[test]
fn another_weight_or_priority_is_an_insert_of_the_same_key() {
    let (feed, mut discover) = discover();
    feed.set(set(&["a:1", "b:1"]));
    drain(&mut discover);
    let heavier = Endpoint::new(target("a:1")).with_weight(5);
    let later = Endpoint::new(target("b:1")).with_priority(2);
    feed.set([heavier, later].into_iter().collect());
    assert_eq!(drain(&mut discover), ["+a:1", "+b:1"]);
}

#[test]
fn sets_that_come_while_changes_are_read_are_told_as_one_difference() {
    let (feed, mut discover) = discover();
    let mut cx = Context::from_waker(Waker::noop());
    feed.set(set(&["a:1", "b:1"]));
    let first = Pin::new(&mut discover).poll_next(&mut cx);
    assert!(matches!(first, Poll::Ready(Some(Ok(Change::Insert(..))))));
    feed.set(set(&["c:1"]));
    feed.set(set(&["b:1", "d:1"]));
    assert_eq!(drain(&mut discover), ["+b:1", "+d:1", "-a:1"]);
}

/// A source that breaks the contract: it ends, and panics if it is polled again.
struct Ending(Option<EndpointSet>, bool);

impl Stream for Ending {
    type Item = EndpointSet;

    fn poll_next(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<EndpointSet>> {
        assert!(!self.1, "polled after the end");
        let set = self.0.take();
        self.1 = set.is_none();
        Poll::Ready(set)
    }
}

impl Source for Ending {
    fn status(&self) -> Status {
        Status::Live
    }
}

#[test]
fn a_source_that_ends_leaves_its_last_set_and_does_not_end_the_changes() {
    let mut discover = Discover::new(Ending(Some(set(&["a:1"])), false));
    assert_eq!(drain(&mut discover), ["+a:1"]);
    let mut cx = Context::from_waker(Waker::noop());
    for _ in 0..3 {
        assert!(Pin::new(&mut discover).poll_next(&mut cx).is_pending());
    }
}

/// Follows ever new sets by the changes alone and compares what comes out.
#[test]
fn the_changes_lead_from_each_set_to_the_next() {
    let (feed, mut discover) = discover();
    let mut held = BTreeSet::new();
    // A linear congruential generator: any spread of sets will do, and it is the same each time.
    let mut state = 7_u32;
    for _ in 0..500 {
        let mut wanted = BTreeSet::new();
        for port in 1..20_u16 {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            if state > u32::MAX / 2 {
                wanted.insert(format!("a:{port}"));
            }
        }
        let texts: Vec<&str> = wanted.iter().map(String::as_str).collect();
        feed.set(set(&texts));
        for change in drain(&mut discover) {
            let (sign, target) = change.split_at(1);
            let fits = match sign {
                "+" => held.insert(target.to_owned()),
                _ => held.remove(target),
            };
            assert!(fits, "{change} does not fit what is held");
        }
        assert_eq!(held, wanted);
    }
}

#[tokio::test]
async fn towers_balance_follows_the_source() {
    let (feed, source) = source::feed();
    let services = Discover::new(source).map_service(|endpoint| {
        let name = endpoint.target().to_string();
        let service = service_fn(move |()| {
            let name = name.clone();
            async move { Ok::<_, Infallible>(name) }
        });
        Constant::new(service, 1)
    });
    let mut balance = Balance::new(services);

    for wanted in [
        &["a:1", "b:1", "c:1"][..],
        &["b:1", "c:1", "d:1"],
        &["x:1", "y:1"],
        &["x:1"],
    ] {
        feed.set(set(wanted));
        let mut answered = BTreeSet::new();
        for _ in 0..200 {
            let ready = balance.ready().await.unwrap();
            answered.insert(ready.call(()).await.unwrap());
        }
        let wanted: BTreeSet<String> = wanted.iter().map(|&text| text.to_owned()).collect();
        assert_eq!(answered, wanted);
    }
}

#[tokio::test]
async fn a_service_is_made_once_while_its_endpoint_stays() {
    let made = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let counted = Arc::clone(&made);
    let (feed, source) = source::feed();
    let mut services = Discover::new(source).map_service(move |endpoint| {
        counted.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        endpoint
    });
    for round in 1..=5_u16 {
        // One endpoint stays, another one is new in each round.
        feed.set(set(&["a:1", &format!("b:{round}")]));
        let mut cx = Context::from_waker(Waker::noop());
        while Pin::new(&mut services).poll_next(&mut cx).is_ready() {}
    }
    assert_eq!(made.load(std::sync::atomic::Ordering::SeqCst), 6);
    assert_eq!(services.status(), Status::Live);
}
