//! A path to the embedded agent without a socket: it takes time, and loses what it is told to.
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
use tokio::sync::oneshot;
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
    shared: Arc<Mutex<Shared>>,
}

struct Shared {
    rng: Rng,
    weather: Weather,
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
    /// How many of a hundred are lost without a word.
    pub lost_percent: u64,
}

impl Default for Weather {
    /// Three milliseconds each way, always, and nothing is lost.
    fn default() -> Self {
        Self {
            delay: Duration::from_millis(3),
            slow: Duration::ZERO,
            slow_percent: 0,
            lost_percent: 0,
        }
    }
}

impl Path {
    /// A path in fair weather.
    #[must_use]
    pub fn to(agent: &Agent, seed: u64) -> Self {
        Self {
            agent: agent.clone(),
            shared: Arc::new(Mutex::new(Shared {
                rng: Rng::new(seed),
                weather: Weather::default(),
                on_its_way: JoinSet::new(),
            })),
        }
    }

    /// Changes the weather for all that is sent from now on; answers are sent when they are made.
    pub fn set(&self, weather: Weather) {
        self.shared().weather = weather;
    }

    /// How long something takes that is sent now; `None` if it is lost.
    fn travel(&self) -> Option<Duration> {
        let mut shared = self.shared();
        let weather = shared.weather;
        if shared.rng.chance(weather.lost_percent) {
            return None;
        }
        let late = match shared.rng.chance(weather.slow_percent) {
            true => weather.slow.mul_f64(shared.rng.draw()),
            false => Duration::ZERO,
        };
        Some(weather.delay + late)
    }

    async fn carry(self, request: Request, mut back: oneshot::Sender<Answer>) {
        let Some(time) = self.travel() else {
            // Whoever asked waits in vain.
            return back.closed().await;
        };
        tokio::time::sleep(time).await;
        let mut agent = self.agent.clone();
        let answer = tokio::select! {
            biased;
            answer = agent.call(request) => answer,
            () = back.closed() => return,
        };
        let Some(time) = self.travel() else {
            return back.closed().await;
        };
        tokio::time::sleep(time).await;
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
