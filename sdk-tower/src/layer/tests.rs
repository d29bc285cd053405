use std::collections::BTreeMap;
use std::convert::Infallible;
use std::pin::{Pin, pin};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::Waker;
use std::time::Duration;

use bytes::Bytes;
use http_body::Body;
use http_body_util::{BodyExt, Empty, Full};
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tower::service_fn;

use super::*;
use crate::channel::{EndpointState, EndpointStatus};
use crate::endpoint::{Endpoint, EndpointSet, Target};
use crate::error::ErrorKind;
use crate::source::{self, Feed};

/// What the services of all endpoints have in common.
#[derive(Default)]
struct World {
    /// How many requests each port has answered.
    answered: Mutex<BTreeMap<u16, u32>>,
    /// How many services there are, clones included.
    alive: AtomicU32,
    made: AtomicU32,
    /// Ports that fail to become ready, and those that never are.
    broken: Vec<u16>,
    stuck: Vec<u16>,
    gate: Option<Semaphore>,
}

/// A service that is no clone of its siblings and not `Sync`.
struct Stub {
    port: u16,
    world: Arc<World>,
    ready: std::cell::Cell<bool>,
}

impl Stub {
    fn new(port: u16, world: &Arc<World>) -> Self {
        world.alive.fetch_add(1, Ordering::SeqCst);
        Self {
            port,
            world: Arc::clone(world),
            ready: std::cell::Cell::new(false),
        }
    }
}

impl Clone for Stub {
    fn clone(&self) -> Self {
        Self::new(self.port, &self.world)
    }
}

impl Drop for Stub {
    fn drop(&mut self) {
        self.world.alive.fetch_sub(1, Ordering::SeqCst);
    }
}

#[derive(Debug, PartialEq)]
struct Refused(u16);

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} refuses", self.0)
    }
}

impl std::error::Error for Refused {}

/// A request that cannot be cloned.
struct Question(&'static str);

impl Service<Question> for Stub {
    type Response = u16;
    type Error = Refused;
    type Future = Pin<Box<dyn Future<Output = Result<u16, Refused>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Refused>> {
        if self.world.broken.contains(&self.port) {
            return Poll::Ready(Err(Refused(self.port)));
        }
        if self.world.stuck.contains(&self.port) {
            return Poll::Pending;
        }
        self.ready.set(true);
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, question: Question) -> Self::Future {
        assert!(self.ready.get(), "called before it was ready");
        let (port, world) = (self.port, Arc::clone(&self.world));
        Box::pin(async move {
            if let Some(gate) = &world.gate {
                gate.acquire().await.unwrap().forget();
            }
            if question.0 == "fail" {
                return Err(Refused(port));
            }
            *world.answered.lock().unwrap().entry(port).or_default() += 1;
            Ok(port)
        })
    }
}

fn endpoint(port: u16) -> Endpoint {
    Endpoint::new(format!("10.0.0.1:{port}").parse().unwrap())
}

fn set(ports: &[u16]) -> EndpointSet {
    ports.iter().copied().map(endpoint).collect()
}

fn stubs(world: &Arc<World>) -> impl Fn(&Target) -> Stub + Send + 'static {
    let world = Arc::clone(world);
    move |target| {
        world.made.fetch_add(1, Ordering::SeqCst);
        Stub::new(target.port(), &world)
    }
}

fn balanced(world: &Arc<World>, ports: &[u16]) -> (Feed, Balanced<Stub>) {
    let (feed, source) = source::feed();
    feed.set(set(ports));
    (feed, Builder::new(source).build(stubs(world)).unwrap())
}

fn in_flight<C>(balanced: &Balanced<Stub, C>) -> u32 {
    balanced.endpoints().iter().map(|e| e.in_flight).sum()
}

fn poll_once<F: Future>(future: Pin<&mut F>) -> Poll<F::Output> {
    future.poll(&mut Context::from_waker(Waker::noop()))
}

#[tokio::test]
async fn requests_are_spread_over_services_that_are_made_once() {
    let world = Arc::new(World::default());
    // Latencies of nothing are noise.
    let mut balanced = Builder::new(source::fixed([1, 2, 3, 4].map(endpoint)))
        .policy(crate::channel::Policy::PendingRequests)
        .build(stubs(&world))
        .unwrap();
    for _ in 0..4_000 {
        assert!(matches!(
            Service::<Question>::poll_ready(&mut balanced, &mut Context::from_waker(Waker::noop())),
            Poll::Ready(Ok(()))
        ));
        balanced.call(Question("who")).await.unwrap();
    }
    for (port, answered) in world.answered.lock().unwrap().iter() {
        assert!((850..1_150).contains(answered), "{port}: {answered}");
    }
    assert_eq!(world.made.load(Ordering::SeqCst), 4);
    assert_eq!(in_flight(&balanced), 0);
}

#[tokio::test]
async fn one_that_fails_to_become_ready_is_passed_over_with_the_request_unharmed() {
    let world = Arc::new(World {
        broken: vec![1, 2],
        ..World::default()
    });
    let (_feed, mut balanced) = balanced(&world, &[1, 2, 3]);
    for _ in 0..50 {
        assert_eq!(balanced.call(Question("who")).await.unwrap(), 3);
    }
    let avoided = balanced.endpoints().into_iter().filter(|e| e.is_avoided);
    assert_eq!(avoided.count(), 2);
}

#[tokio::test]
async fn where_none_becomes_ready_the_error_has_the_last_as_its_source() {
    let world = Arc::new(World {
        broken: vec![1, 2],
        ..World::default()
    });
    let (_feed, mut balanced) = balanced(&world, &[1, 2]);
    let error = balanced.call(Question("who")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Connect);
    assert!(!error.was_sent());
    assert!(
        error
            .to_string()
            .contains("2 tried, the last was 10.0.0.1:")
    );
    let source = std::error::Error::source(&error).unwrap();
    assert!(source.is::<Refused>());
    assert_eq!(in_flight(&balanced), 0);
}

#[tokio::test(start_paused = true)]
async fn one_that_takes_too_long_to_become_ready_is_passed_over() {
    let world = Arc::new(World {
        stuck: vec![1],
        ..World::default()
    });
    let (_feed, source) = source::feed();
    _feed.set(set(&[1, 2]));
    let limit = Duration::from_millis(300);
    let builder = Builder::new(source).ready_timeout(limit);
    let mut balanced = builder.build(stubs(&world)).unwrap();
    balanced.wait_ready().await.unwrap();
    let started = Instant::now();
    let mut waited = Vec::new();
    for _ in 0..10 {
        assert_eq!(balanced.call(Question("who")).await.unwrap(), 2);
        waited.push(started.elapsed());
    }
    // It is met at most once, and avoided then.
    assert!(*waited.last().unwrap() <= limit, "{waited:?}");
}

#[tokio::test]
async fn a_failed_call_is_told_with_its_cause_and_not_repeated() {
    let world = Arc::new(World::default());
    let (_feed, mut balanced) = balanced(&world, &[1, 2]);
    let error = balanced.call(Question("fail")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Service);
    assert!(error.was_sent());
    let source = std::error::Error::source(&error).unwrap();
    let Refused(port) = source.downcast_ref().unwrap();
    assert!(error.to_string().ends_with(&format!("10.0.0.1:{port}")));
    assert!(world.answered.lock().unwrap().is_empty());
    let failed = balanced.endpoints();
    let penalized = failed.iter().find(|e| e.is_penalized).unwrap();
    assert_eq!(penalized.target.port(), *port);
}

#[tokio::test]
async fn what_is_a_failure_is_the_callers_to_say() {
    let source = source::fixed([endpoint(1)]);
    let world = Arc::new(World::default());
    let mut balanced = Builder::new(source)
        .classify(|outcome: Result<&u16, &Refused>| outcome.is_err())
        .build(stubs(&world))
        .unwrap();
    balanced.call(Question("fail")).await.unwrap_err();
    assert!(!balanced.endpoints()[0].is_penalized);
    balanced.call(Question("who")).await.unwrap();
    assert!(balanced.endpoints()[0].is_penalized);
}

#[tokio::test]
async fn a_request_counts_until_its_future_is_done_or_dropped() {
    let world = Arc::new(World {
        gate: Some(Semaphore::new(0)),
        ..World::default()
    });
    let (_feed, mut balanced) = balanced(&world, &[1]);
    balanced.wait_ready().await.unwrap();
    let mut done = Box::pin(balanced.call(Question("who")));
    let mut dropped = Box::pin(balanced.call(Question("who")));
    let unpolled = balanced.call(Question("who"));
    assert!(poll_once(done.as_mut()).is_pending());
    assert!(poll_once(dropped.as_mut()).is_pending());
    assert_eq!(in_flight(&balanced), 3);
    drop((dropped, unpolled));
    assert_eq!(in_flight(&balanced), 1);
    world.gate.as_ref().unwrap().add_permits(2);
    assert_eq!(done.as_mut().await.unwrap(), 1);
    // The future itself is still held.
    assert_eq!(in_flight(&balanced), 0);
    assert!(poll_once(done.as_mut()).is_pending());
}

#[tokio::test(start_paused = true)]
async fn requests_dropped_after_any_poll_leave_nothing_behind() {
    let world = Arc::new(World {
        broken: vec![1],
        stuck: vec![2],
        gate: Some(Semaphore::new(0)),
        ..World::default()
    });
    let (feed, source) = source::feed();
    let mut balanced = Builder::new(source)
        .first_resolution(Duration::from_secs(3_600))
        .build(stubs(&world))
        .unwrap();
    for polls in 0..6_u32 {
        for _ in 0..20 {
            let mut request = Box::pin(balanced.call(Question("who")));
            for _ in 0..polls {
                assert!(poll_once(request.as_mut()).is_pending());
                tokio::time::advance(Duration::from_millis(400)).await;
                if polls == 3 {
                    feed.set(set(&[1, 2, 3]));
                    tokio::task::yield_now().await;
                }
            }
        }
        assert_eq!(in_flight(&balanced), 0, "after {polls} polls");
    }
    // One service for each endpoint, and no clone of any.
    assert_eq!(world.alive.load(Ordering::SeqCst), 3);
    assert!(world.answered.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_body_counts_until_its_end_if_it_is_asked_for() {
    let make = |_: &Target| {
        service_fn(|size: usize| async move {
            Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(vec![b'x'; size]))))
        })
    };
    let build = || {
        Builder::new(source::fixed([endpoint(1)]))
            .build(make)
            .unwrap()
    };
    let plain = build();
    let counting = build().count_bodies();
    let load = |b: &Balanced<_>| b.endpoints().first().map_or(0, |e| e.in_flight);

    let response = plain.clone().call(5).await.unwrap();
    assert_eq!(load(&plain), 0);
    drop(response);

    let response = counting.clone().call(5).await.unwrap();
    assert_eq!(load(counting.balanced()), 1);
    assert_eq!(response.body().target().unwrap().port(), 1);
    assert_eq!(response.body().size_hint().exact(), Some(5));
    assert_eq!(
        response.into_body().collect().await.unwrap().to_bytes(),
        "xxxxx"
    );
    assert_eq!(load(counting.balanced()), 0);

    let dropped = counting.clone().call(5).await.unwrap();
    assert_eq!(load(counting.balanced()), 1);
    drop(dropped);
    assert_eq!(load(counting.balanced()), 0);

    let empty = counting.clone().call(0).await.unwrap();
    assert_eq!(load(counting.balanced()), 0);
    assert_eq!(empty.body().target(), None);
}

#[test]
fn server_errors_are_failures_where_they_are_asked_for() {
    let with = |status: u16| {
        let mut response = Response::new(Empty::<Bytes>::new());
        *response.status_mut() = status.try_into().unwrap();
        ServerErrors.is_answer(Ok::<_, &Infallible>(&response))
    };
    assert!(with(200) && with(404) && with(429));
    assert!(!with(500) && !with(503));
    assert!(Classify::<u8, ()>::is_answer(&Errors, Ok(&1)));
    assert!(!Classify::<u8, ()>::is_answer(&Errors, Err(&())));
}

#[tokio::test]
async fn the_service_of_an_endpoint_that_leaves_is_dropped_although_nobody_calls() {
    let world = Arc::new(World {
        gate: Some(Semaphore::new(0)),
        ..World::default()
    });
    let (feed, mut balanced) = balanced(&world, &[1]);
    balanced.wait_ready().await.unwrap();
    // A handle that knows the endpoint and is idle, and a call that is under way.
    let mut idle = balanced.clone();
    let mut under_way = Box::pin(balanced.call(Question("who")));
    assert!(poll_once(under_way.as_mut()).is_pending());
    let alive = || world.alive.load(Ordering::SeqCst);
    let before = alive();
    feed.set(set(&[2]));
    let is_there = |e: &EndpointStatus| e.target.port() == 1 && e.state != EndpointState::Draining;
    while balanced.endpoints().iter().any(is_there) {
        tokio::task::yield_now().await;
    }
    tokio::task::yield_now().await;
    // That of the endpoint which has come, and the one of the call at most.
    assert_eq!(alive(), before);
    world.gate.as_ref().unwrap().add_permits(2);
    assert_eq!(under_way.as_mut().await.unwrap(), 1);
    assert_eq!(alive(), 1);
    assert_eq!(idle.call(Question("who")).await.unwrap(), 2);
    drop((balanced, idle, under_way));
    while alive() > 0 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(start_paused = true)]
async fn without_a_set_a_request_waits_for_the_first_resolution_only() {
    let world = Arc::new(World::default());
    let (feed, source) = source::feed();
    let mut balanced = Builder::new(source)
        .first_resolution(Duration::from_secs(2))
        .build(stubs(&world))
        .unwrap();
    let started = Instant::now();
    let error = balanced.call(Question("who")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NeverResolved);
    assert_eq!(started.elapsed(), Duration::from_secs(2));
    assert_eq!(
        balanced.wait_ready().await.unwrap_err().kind(),
        ErrorKind::NeverResolved
    );
    feed.set(EndpointSet::empty());
    while balanced.call(Question("who")).await.unwrap_err().kind() != ErrorKind::NoEndpoints {
        tokio::task::yield_now().await;
    }
    feed.set(set(&[7]));
    balanced.wait_ready().await.unwrap();
    assert_eq!(balanced.call(Question("who")).await.unwrap(), 7);
}

#[tokio::test(start_paused = true)]
async fn a_request_that_waits_goes_on_when_the_set_is_there() {
    let world = Arc::new(World::default());
    let (feed, source) = source::feed();
    let mut balanced = Builder::new(source).build(stubs(&world)).unwrap();
    let mut waiting = pin!(balanced.call(Question("who")));
    assert!(poll_once(waiting.as_mut()).is_pending());
    feed.set(set(&[3]));
    assert_eq!(waiting.await.unwrap(), 3);
}

#[test]
fn a_request_is_served_outside_of_any_runtime() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let world = Arc::new(World {
        stuck: vec![1],
        ..World::default()
    });
    let (feed, source) = source::feed();
    let builder = Builder::new(source).ready_timeout(Duration::from_millis(5));
    let build = async { builder.build(stubs(&world)).unwrap() };
    let mut balanced = runtime.block_on(build);
    feed.set(set(&[1, 2]));
    for _ in 0..3 {
        let answer = futures_executor(balanced.call(Question("who")));
        assert_eq!(answer.unwrap(), 2);
    }
}

/// An executor that knows nothing of Tokio: it parks the thread.
fn futures_executor<F: Future>(future: F) -> F::Output {
    struct Unpark(std::thread::Thread);
    impl std::task::Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut cx = Context::from_waker(&waker);
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut cx) {
            Poll::Ready(output) => return output,
            Poll::Pending => std::thread::park(),
        }
    }
}

#[test]
fn a_layer_outside_of_a_runtime_gives_a_service_whose_requests_say_so() {
    let layer = BalanceLayer::new(|| Builder::new(source::fixed([endpoint(1)])));
    let world = Arc::new(World::default());
    let mut balanced = tower_layer::Layer::layer(&layer, stubs(&world));
    for _ in 0..2 {
        let error = futures_executor(balanced.call(Question("who"))).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NoRuntime);
        assert!(!error.was_sent());
    }
    assert!(balanced.endpoints().is_empty());
}

#[tokio::test]
async fn options_that_cannot_work_are_refused() {
    let refused = |builder: Builder<source::Fixed>, why: &str| {
        let world = Arc::new(World::default());
        let error = builder.build(stubs(&world)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
        assert!(error.to_string().contains(why), "{error}");
    };
    let builder = || Builder::new(source::fixed([]));
    refused(builder().ready_timeout(Duration::ZERO), "ready_timeout");
    refused(builder().max_attempts(0), "max_attempts");
    refused(builder().max_attempts(17), "max_attempts");
}
