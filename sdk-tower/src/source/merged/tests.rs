use std::future::poll_fn;

use super::super::{Feed, FeedSource, feed};
use super::*;

fn endpoint(target: &str) -> Endpoint {
    Endpoint::new(target.parse().unwrap())
}

fn set(targets: &[&str]) -> EndpointSet {
    targets.iter().map(|target| endpoint(target)).collect()
}

fn two() -> (Feed, Feed, Merged<FeedSource>) {
    let ((a, first), (b, second)) = (feed(), feed());
    (a, b, merged([first, second]))
}

async fn next(source: &mut Merged<FeedSource>) -> EndpointSet {
    poll_fn(|cx| Pin::new(&mut *source).poll_next(cx))
        .await
        .unwrap()
}

async fn is_silent(source: &mut Merged<FeedSource>, time: Duration) -> bool {
    tokio::time::timeout(time, next(source)).await.is_err()
}

#[tokio::test(start_paused = true)]
async fn whoever_one_of_them_tells_is_there_and_once() {
    let (a, b, mut source) = two();
    a.set(set(&["10.0.0.1:80", "10.0.0.2:80"]));
    b.set(set(&["10.0.0.2:80", "10.0.0.2:81", "10.0.0.3:80"]));
    let all = ["10.0.0.1:80", "10.0.0.2:80", "10.0.0.2:81", "10.0.0.3:80"];
    assert_eq!(next(&mut source).await, set(&all));
    assert_eq!(source.status(), Status::Live);
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_is_as_the_first_source_has_it_and_falls_to_the_next() {
    let (a, b, mut source) = two();
    // Smaller in all that the rule for pairs within one set would take the larger of.
    let light = endpoint("10.0.0.1:80").with_weight(0);
    let light = light.with_priority(9).with_distance(9);
    let heavy = endpoint("10.0.0.1:80").with_weight(10);
    a.set([light.clone()].into_iter().collect());
    b.set([heavy.clone()].into_iter().collect());
    let told = next(&mut source).await;
    assert_eq!(told, [light].into_iter().collect());
    a.set(EndpointSet::empty());
    assert_eq!(next(&mut source).await, [heavy].into_iter().collect());
}

#[tokio::test(start_paused = true)]
async fn a_source_that_empties_takes_its_own_away_and_no_others() {
    let (a, b, mut source) = two();
    a.set(set(&["10.0.0.1:80", "10.0.0.2:80"]));
    b.set(set(&["10.0.0.2:80", "10.0.0.3:80"]));
    next(&mut source).await;
    a.set(EndpointSet::empty());
    assert_eq!(
        next(&mut source).await,
        set(&["10.0.0.2:80", "10.0.0.3:80"])
    );
    b.set(EndpointSet::empty());
    assert!(next(&mut source).await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn one_that_is_unknown_does_not_hold_the_others_back_unless_asked_for() {
    let (a, _b, mut source) = two();
    a.set(set(&["10.0.0.1:80"]));
    assert_eq!(next(&mut source).await, set(&["10.0.0.1:80"]));

    let (a, b, source) = two();
    let mut source = source.wait(Duration::from_secs(3));
    assert!(is_silent(&mut source, Duration::from_secs(60)).await);
    a.set(set(&["10.0.0.1:80"]));
    assert!(is_silent(&mut source, Duration::from_millis(2_900)).await);
    assert_eq!(next(&mut source).await, set(&["10.0.0.1:80"]));
    b.set(set(&["10.0.0.2:80"]));
    assert_eq!(next(&mut source).await.len(), 2);

    let (a, b, source) = two();
    let mut source = source.wait(Duration::MAX);
    a.set(set(&["10.0.0.1:80"]));
    assert!(is_silent(&mut source, Duration::from_secs(60)).await);
    b.set(EndpointSet::empty());
    assert_eq!(next(&mut source).await, set(&["10.0.0.1:80"]));
}

#[tokio::test(start_paused = true)]
async fn nobody_is_there_only_when_all_say_so() {
    let (a, b, mut source) = two();
    a.set(EndpointSet::empty());
    assert!(is_silent(&mut source, Duration::from_secs(60)).await);
    assert_eq!(source.status(), Status::Unknown);
    b.set(EndpointSet::empty());
    assert!(next(&mut source).await.is_empty());
    assert_eq!(source.status(), Status::Live);
}

#[tokio::test(start_paused = true)]
async fn the_same_content_is_told_once_and_unchanged_endpoints_are_shared() {
    let (a, b, mut source) = two();
    a.set(set(&["10.0.0.1:80"]));
    b.set(set(&["10.0.0.2:80"]));
    let first = next(&mut source).await;
    b.set(set(&["10.0.0.1:80", "10.0.0.2:80"]));
    assert!(is_silent(&mut source, Duration::from_secs(60)).await);
    a.set(set(&["10.0.0.1:80", "10.0.0.3:80"]));
    let second = next(&mut source).await;
    let of = |set: &EndpointSet| Arc::clone(set.iter().next().unwrap());
    assert_eq!(of(&first), of(&second));
    assert_eq!(second.len(), 3);
}

#[test]
fn nothing_merged_is_nobody() {
    let mut source = merged(Vec::<FeedSource>::new());
    let mut cx = Context::from_waker(std::task::Waker::noop());
    let told = Pin::new(&mut source).poll_next(&mut cx);
    assert_eq!(told, Poll::Ready(Some(EndpointSet::empty())));
}
