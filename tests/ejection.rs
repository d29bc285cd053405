//! Keeping away from endpoints that fare badly, over real sockets.

use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Empty};
use lictor_tower::Channel;
use lictor_tower::channel::{
    Ejection, EndpointState, EndpointStatus, LoadReport, Lost, Policy, Reason,
};
use lictor_tower::endpoint::{Endpoint, EndpointSet};
use lictor_tower::source;
use support::backend::Backend;
use support::eventually;

const SOON: Duration = Duration::from_secs(20);

async fn backends(count: usize) -> Vec<Backend> {
    let mut backends = Vec::new();
    for number in 0..count {
        backends.push(Backend::start(&number.to_string()).await.unwrap());
    }
    backends
}

fn endpoint(backend: &Backend) -> Endpoint {
    Endpoint::new(backend.addr().to_string().parse().unwrap())
}

async fn call(channel: &Channel) -> StatusCode {
    let request = Request::get("/").body(Empty::<Bytes>::new()).unwrap();
    let response = channel.request(request).await.unwrap();
    let status = response.status();
    response.into_body().collect().await.unwrap();
    status
}

fn status_of(channel: &Channel, backend: &Backend) -> EndpointStatus {
    let target = backend.addr().to_string().parse().unwrap();
    let endpoints = channel.endpoints();
    let mut those = endpoints.into_iter().filter(|one| one.target == target);
    those.next().unwrap()
}

#[tokio::test]
async fn a_backend_that_answers_503_at_once_is_left_alone_and_comes_back() {
    let backends = backends(4).await;
    let channel = Channel::from_source(source::fixed(backends.iter().map(endpoint)))
        .policy(Policy::PendingRequests)
        .ejection(Ejection::default().times(Duration::from_millis(50), Duration::from_millis(200)))
        .build()
        .unwrap();
    let bad = &backends[1];
    bad.status(503);
    let mut failed = 0;
    for _ in 0..2_000 {
        failed += usize::from(call(&channel).await == StatusCode::SERVICE_UNAVAILABLE);
    }
    // Five until it is ejected, and then one for each trial.
    assert!((5..100).contains(&failed), "{failed} of 2000");
    let status = status_of(&channel, bad);
    assert_eq!(status.failures, u64::try_from(failed).unwrap());
    assert_eq!(status.requests, status.failures);
    assert_eq!(status.ejections, 1);
    match status.state {
        EndpointState::Ejected { reason, left, .. } => {
            assert_eq!(reason, Reason::ConsecutiveFailures);
            assert!(left <= Duration::from_millis(200), "{left:?}");
        }
        EndpointState::Probing { reason, .. } => assert_eq!(reason, Reason::ConsecutiveFailures),
        other => panic!("{other:?}"),
    }
    bad.status(200);
    eventually(SOON, async || {
        call(&channel).await;
        status_of(&channel, bad).state == EndpointState::Ready
    })
    .await;
    let before = bad.requests();
    for _ in 0..1_000 {
        assert_eq!(call(&channel).await, StatusCode::OK);
    }
    assert!(bad.requests() - before > 150, "{}", bad.requests() - before);
}

#[tokio::test]
async fn where_most_are_bad_requests_go_to_all() {
    let backends = backends(4).await;
    let channel = Channel::from_source(source::fixed(backends.iter().map(endpoint)))
        .policy(Policy::PendingRequests)
        .build()
        .unwrap();
    for bad in &backends[..3] {
        bad.status(500);
    }
    for _ in 0..2_000 {
        call(&channel).await;
    }
    for backend in &backends {
        assert!(backend.requests() > 300, "{:#?}", channel.endpoints());
    }
    let spared = |one: &EndpointStatus| matches!(one.state, EndpointState::Spared { .. });
    assert_eq!(
        channel.endpoints().iter().filter(|one| spared(one)).count(),
        1
    );
}

#[tokio::test]
async fn endpoints_that_a_source_loses_are_a_last_resort() {
    let backends = backends(4).await;
    let (feed, source) = source::feed();
    let channel = Channel::from_source(source)
        .lost_endpoints(Lost::LastResort(Duration::from_secs(60)))
        .build()
        .unwrap();
    feed.set(backends.iter().map(endpoint).collect());
    channel.wait_ready().await.unwrap();
    feed.set(
        [endpoint(&backends[0])]
            .into_iter()
            .collect::<EndpointSet>(),
    );
    let is_last = |one: &EndpointStatus| one.tier == 1;
    eventually(SOON, async || {
        channel
            .endpoints()
            .iter()
            .filter(|one| is_last(one))
            .count()
            == 3
    })
    .await;
    for _ in 0..100 {
        call(&channel).await;
    }
    assert_eq!(backends[0].requests(), 100);
    let mut backends = backends.into_iter();
    backends.next().unwrap().abort().await;
    for _ in 0..100 {
        assert_eq!(call(&channel).await, StatusCode::OK);
    }
}

#[tokio::test]
async fn reports_of_load_are_read_where_they_are_asked_for() {
    let backends = backends(2).await;
    backends[0].load("TEXT cpu_utilization=0.5,rps_fractional=100");
    backends[1].load("TEXT cpu_utilization=a lot");
    let source = || source::fixed(backends.iter().map(endpoint));
    let asked = Channel::from_source(source()).load_report(LoadReport::default());
    let asked = asked.build().unwrap();
    let not_asked = Channel::from_source(source()).build().unwrap();
    for channel in [&asked, &not_asked] {
        for _ in 0..100 {
            assert_eq!(call(channel).await, StatusCode::OK);
        }
    }
    let bad = |channel| [0, 1].map(|at| status_of(channel, &backends[at]).bad_reports);
    let [good, bad_ones] = bad(&asked);
    assert_eq!(good, 0);
    let requests = status_of(&asked, &backends[1]).requests;
    assert!(requests > 0);
    assert_eq!(u64::from(bad_ones), requests);
    assert_eq!(bad(&not_asked), [0, 0]);
}

#[tokio::test]
async fn options_out_of_range_are_refused_before_anything_is_done() {
    let build = |ejection: Ejection, threshold, lost| {
        let source = source::fixed([]);
        let builder = Channel::from_source(source).ejection(ejection);
        let built = builder
            .panic_threshold(threshold)
            .lost_endpoints(lost)
            .build();
        built.map(drop).map_err(|error| error.to_string())
    };
    let ejection = Ejection::default();
    assert_eq!(build(ejection, 0.5, Lost::Leave), Ok(()));
    for (built, named) in [
        (
            build(ejection.max_share(2.0), 0.5, Lost::Leave),
            "max_share",
        ),
        (build(ejection, 1.5, Lost::Leave), "panic_threshold"),
        (build(ejection, f64::NAN, Lost::Leave), "panic_threshold"),
        (
            build(ejection, 0.5, Lost::Stay(Duration::ZERO)),
            "lost_endpoints",
        ),
    ] {
        let error = built.unwrap_err();
        assert!(error.contains(named), "{error}");
    }
}
