//! Services that answer at once, one per endpoint, for benches of the balancer alone; and the
//! ways to one of them.

use std::convert::Infallible;
use std::fmt::{Debug, Display};
use std::future::{Ready, poll_fn, ready};
use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use lictor_tower::bench::Picks;
use lictor_tower::layer::Balanced;
use tower::balance::p2c::Balance;
use tower::buffer::Buffer;
use tower::discover::ServiceList;
use tower::load::{CompleteOnResponse, Load, PeakEwma, PendingRequests};
use tower_service::Service;

use crate::Outcome;

/// Answers with what it was asked.
#[derive(Clone, Debug)]
pub(super) struct Echo;

impl Service<u32> for Echo {
    type Response = u32;
    type Error = Infallible;
    type Future = Ready<Result<u32, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, question: u32) -> Self::Future {
        ready(Ok(question))
    }
}

/// Something that can be asked again and again.
pub(super) trait Ask: Send + 'static {
    fn ask(&mut self, question: u32) -> impl Future<Output = Outcome<u32>> + Send;

    /// Chooses who is to be asked, and asks nobody.
    fn choose(&mut self, _question: u32) {}
}

impl<S> Ask for Balanced<S>
where
    S: Service<u32, Response = u32> + Clone + Send + 'static,
    S::Error: Into<crate::Failure>,
    S::Future: Send,
{
    async fn ask(&mut self, question: u32) -> Outcome<u32> {
        Ok(self.call(question).await?)
    }

    fn choose(&mut self, question: u32) {
        // Picked when it is called, and let go of before it is polled.
        drop(black_box(self.call(question)));
    }
}

/// Picks with nothing to ask.
impl Ask for Picks {
    async fn ask(&mut self, _question: u32) -> Outcome<u32> {
        Err("there is nobody to ask".into())
    }

    fn choose(&mut self, _question: u32) {
        black_box(self.pick());
    }
}

/// The same, whose answers are counted.
#[derive(Clone, Debug)]
pub(super) struct Answered(pub(super) Picks);

impl Ask for Answered {
    async fn ask(&mut self, question: u32) -> Outcome<u32> {
        self.0.ask(question).await
    }

    fn choose(&mut self, _question: u32) {
        black_box(self.0.pick_and_answer());
    }
}

/// A list and a number that grows: the least that a choice can be.
#[derive(Clone, Debug)]
pub(super) struct Indexed {
    pub(super) list: Arc<[u32]>,
    pub(super) next: usize,
}

impl Ask for Indexed {
    async fn ask(&mut self, _question: u32) -> Outcome<u32> {
        Err("there is nobody to ask".into())
    }

    fn choose(&mut self, _question: u32) {
        self.next = self.next.wrapping_add(1);
        black_box(self.list.get(self.next % self.list.len()));
    }
}

/// A counter over services: what one writes by hand.
#[derive(Clone, Debug)]
pub(super) struct InTurn {
    pub(super) services: Arc<[Echo]>,
    pub(super) next: Arc<AtomicUsize>,
}

impl Ask for InTurn {
    async fn ask(&mut self, question: u32) -> Outcome<u32> {
        let turn = self.next.fetch_add(1, Ordering::Relaxed);
        let service = self.services.get(turn % self.services.len());
        let mut service = service.ok_or("no services")?.clone();
        poll_fn(|cx| service.poll_ready(cx)).await?;
        Ok(service.call(question).await?)
    }

    fn choose(&mut self, question: u32) {
        let turn = self.next.fetch_add(1, Ordering::Relaxed);
        if let Some(service) = self.services.get(turn % self.services.len()) {
            drop(black_box(service.clone().call(question)));
        }
    }
}

/// Any service of tower's.
#[derive(Clone, Debug)]
pub(super) struct Towers<S>(pub(super) S);

impl<S> Ask for Towers<S>
where
    S: Service<u32, Response = u32> + Send + 'static,
    S::Error: Display,
    S::Future: Send,
{
    async fn ask(&mut self, question: u32) -> Outcome<u32> {
        let readied = poll_fn(|cx| self.0.poll_ready(cx)).await;
        readied.map_err(|error| error.to_string())?;
        let answer = self.0.call(question).await;
        Ok(answer.map_err(|error| error.to_string())?)
    }
}

/// What linkerd begins with, and in what time its estimates fade.
pub(super) const DEFAULT_RTT: Duration = Duration::from_millis(30);
pub(super) const DECAY: Duration = Duration::from_secs(10);

/// A service with tower's estimate of its load.
pub(super) fn by_ewma<S>(service: S) -> PeakEwma<S> {
    let decay = DECAY.as_secs_f64() * 1e9;
    PeakEwma::new(service, DEFAULT_RTT, decay, CompleteOnResponse::default())
}

/// A service with the count of its requests in flight.
pub(super) fn by_pending<S>(service: S) -> PendingRequests<S> {
    PendingRequests::new(service, CompleteOnResponse::default())
}

/// What `Buffer` holds at the most: tonic's choice.
pub(super) const BOUND: usize = 1024;

/// tower's balancer over such services, behind its buffer.
pub(super) fn buffered<S>(
    services: Vec<S>,
) -> impl Service<u32, Response = u32, Error: Display, Future: Send> + Clone + Send + 'static
where
    S: Service<u32, Response = u32, Error = Infallible> + Load + Send + 'static,
    S::Future: Send,
    S::Metric: Debug,
{
    let balance = Balance::new(ServiceList::new::<u32>(services));
    Buffer::new(balance, BOUND)
}
