//! A steady load of calls, and what became of them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Empty};
use lictor_tower::{Channel, Error};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::{Result, until};

/// Workers that call, one call after the other, until they are stopped.
pub struct Load {
    workers: JoinSet<Tally>,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    done: AtomicU64,
    stop: AtomicBool,
}

/// What became of all calls.
#[derive(Debug, Default)]
pub struct Tally {
    /// How many there were.
    pub calls: u64,
    /// How many each instance answered, by what it says its name is.
    pub per_instance: BTreeMap<String, u64>,
    /// Those that failed.
    pub failures: Vec<Failure>,
}

/// A call that failed.
#[derive(Debug)]
pub struct Failure {
    /// When it began.
    pub began: Instant,
    /// When it failed.
    pub failed: Instant,
    /// Whether the request had reached a server, so that nobody may send it again unasked.
    pub was_sent: bool,
    /// What the error says.
    pub text: String,
}

impl Load {
    /// Starts to call, with so many calls under way at once.
    #[must_use]
    pub fn start(channel: &Channel, workers: usize) -> Self {
        let shared = Arc::new(Shared::default());
        let mut running = JoinSet::new();
        for _ in 0..workers {
            running.spawn(work(channel.clone(), Arc::clone(&shared)));
        }
        Self {
            workers: running,
            shared,
        }
    }

    /// Waits until so many more calls are done.
    ///
    /// # Errors
    ///
    /// If that takes half a minute.
    pub async fn calls(&self, more: u64) -> Result<()> {
        let goal = self.shared.done.load(Ordering::Relaxed) + more;
        until("the calls are done", || {
            self.shared.done.load(Ordering::Relaxed) >= goal
        })
        .await
    }

    /// Lets the calls under way end, and adds them all up.
    pub async fn stop(self) -> Tally {
        self.shared.stop.store(true, Ordering::Relaxed);
        let mut all = Tally::default();
        for tally in self.workers.join_all().await {
            all.calls += tally.calls;
            all.failures.extend(tally.failures);
            for (instance, calls) in tally.per_instance {
                *all.per_instance.entry(instance).or_default() += calls;
            }
        }
        all
    }
}

async fn work(channel: Channel, shared: Arc<Shared>) -> Tally {
    let mut tally = Tally::default();
    while !shared.stop.load(Ordering::Relaxed) {
        let began = Instant::now();
        match call(&channel).await {
            Ok(instance) => *tally.per_instance.entry(instance).or_default() += 1,
            Err(err) => tally.failures.push(Failure {
                began,
                failed: Instant::now(),
                was_sent: err.was_sent(),
                text: err.to_string(),
            }),
        }
        tally.calls += 1;
        shared.done.fetch_add(1, Ordering::Relaxed);
        // Steady, not as fast as possible.
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    tally
}

/// One call; each server answers with its name.
async fn call(channel: &Channel) -> Result<String, Error> {
    let request = Request::get("/").body(Empty::<Bytes>::new());
    let request = request.unwrap_or_default();
    let response = channel.request(request).await?;
    let body = response.into_body().collect().await?.to_bytes();
    Ok(String::from_utf8_lossy(&body).into_owned())
}
