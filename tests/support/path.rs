//! A path to the embedded agent without a socket: it takes time, is cut, and breaks.
//!
//! All its time is tokio's, and all that is random is its seed's, so that under a paused clock a
//! test of hours takes an instant and can be replayed.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use http::Response;
use lictor::embedded::{Agent, Body};
use lictor::transport::Request;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;
use tower::Service;

use crate::Rng;

/// A transport to an embedded agent that behaves as a network does.
///
/// A request that was sent arrives, even if its sender gives up meanwhile; only a query that waits
/// ends with it, as Consul ends one whose connection was closed. Clones are the same path.
#[derive(Clone)]
pub struct Path {
    agent: Agent,
    cut: watch::Sender<bool>,
    shared: Arc<Mutex<Shared>>,
}

struct Shared {
    rng: Rng,
    weather: Weather,
    /// Below which path the next request is late, and by how much.
    late: Option<(&'static str, Duration)>,
    on_its_way: JoinSet<()>,
}

/// What a path does to what is sent along it, in either direction.
#[derive(Clone, Copy, Debug)]
pub struct Weather {
    /// How long everything takes at least.
    pub delay: Duration,
    /// How much longer some of it takes at most.
    pub slow: Duration,
    /// How many of a hundred are slow.
    pub slow_percent: u64,
    /// How many of a hundred find their connection broken.
    pub broken_percent: u64,
}

impl Default for Weather {
    /// Three milliseconds each way, always, and nothing breaks.
    fn default() -> Self {
        Self {
            delay: Duration::from_millis(3),
            slow: Duration::ZERO,
            slow_percent: 0,
            broken_percent: 0,
        }
    }
}

impl Path {
    /// A path in fair weather.
    #[must_use]
    pub fn to(agent: &Agent, seed: u64) -> Self {
        Self {
            agent: agent.clone(),
            cut: watch::channel(false).0,
            shared: Arc::new(Mutex::new(Shared {
                rng: Rng::new(seed),
                weather: Weather::default(),
                late: None,
                on_its_way: JoinSet::new(),
            })),
        }
    }

    /// Changes the weather for all that is sent from now on; answers are sent when they are made.
    pub fn set(&self, weather: Weather) {
        self.shared().weather = weather;
    }

    /// Nothing gets through until this is ended: what is sent meanwhile is sent again and again, as
    /// TCP does, and arrives then.
    pub fn cut(&self, cut: bool) {
        self.cut.send_replace(cut);
    }

    /// The next request below a path breaks its connection, and arrives all the same, this much
    /// later.
    pub fn delay_next(&self, prefix: &'static str, by: Duration) {
        self.shared().late = Some((prefix, by));
    }

    async fn travel(&self) -> io::Result<()> {
        let (time, broken) = {
            let mut shared = self.shared();
            let weather = shared.weather;
            let late = match shared.rng.chance(weather.slow_percent) {
                true => weather.slow.mul_f64(shared.rng.draw()),
                false => Duration::ZERO,
            };
            let broken = shared.rng.chance(weather.broken_percent);
            (weather.delay + late, broken)
        };
        tokio::time::sleep(time).await;
        // The sender stands in `self`.
        self.cut.subscribe().wait_for(|cut| !cut).await.ok();
        match broken {
            true => Err(io::ErrorKind::ConnectionReset.into()),
            false => Ok(()),
        }
    }

    async fn carry(self, request: Request, mut back: oneshot::Sender<Answer>) {
        let mut agent = self.agent.clone();
        let late = {
            let late = &mut self.shared().late;
            late.take_if(|(prefix, _)| request.uri().path().starts_with(*prefix))
        };
        let answer = match self.travel().await {
            Ok(()) if late.is_some() => {
                back.send(Err(io::ErrorKind::ConnectionReset.into())).ok();
                tokio::time::sleep(late.unwrap_or_default().1).await;
                return drop(agent.call(request).await);
            }
            Ok(()) => tokio::select! {
                biased;
                answer = agent.call(request) => answer,
                () = back.closed() => return,
            },
            Err(broken) => Err(broken),
        };
        let answer = self.travel().await.and(answer);
        // Nobody may wait any more.
        back.send(answer).ok();
    }

    fn shared(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

type Answer = io::Result<Response<Body>>;

impl Service<Request> for Path {
    type Response = Response<Body>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = Answer> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request) -> Self::Future {
        let (back, answer) = oneshot::channel();
        let carried = self.clone().carry(request, back);
        let mut shared = self.shared();
        while shared.on_its_way.try_join_next().is_some() {}
        shared.on_its_way.spawn(carried);
        Box::pin(async move {
            let lost = || Err(io::ErrorKind::ConnectionReset.into());
            answer.await.unwrap_or_else(|_| lost())
        })
    }
}
