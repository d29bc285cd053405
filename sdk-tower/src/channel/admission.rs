//! How many requests a channel has under way at one time, and how many wait for something.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout};

use crate::balance::Balance;
use crate::error::{Error, ErrorKind};

use super::upstream::Upstream;

/// A place among the requests under way, from the call to the end of the response's body.
pub(super) type Place = OwnedSemaphorePermit;

/// A wait that a request goes through before it is picked for; some bring a place.
pub(super) type Wait = Pin<Box<dyn Future<Output = Result<Option<Place>, Error>> + Send>>;

/// The bounds of a channel.
#[derive(Debug)]
pub(super) struct Admission {
    most_in_flight: Option<usize>,
    most_waiting: usize,
    longest_wait: Duration,
    places: Option<Arc<Semaphore>>,
    waiting: Arc<Semaphore>,
}

/// What comes of asking for a place.
pub(super) enum Entry {
    /// Go on; with a place, if places are counted.
    Open(Option<Place>),
    /// All places are taken.
    Full,
}

impl Admission {
    pub(super) fn new(
        most_in_flight: Option<usize>,
        most_waiting: usize,
        longest_wait: Duration,
    ) -> Self {
        let semaphore = |most: usize| Arc::new(Semaphore::new(most.min(Semaphore::MAX_PERMITS)));
        Self {
            most_in_flight,
            most_waiting,
            longest_wait,
            places: most_in_flight.map(semaphore),
            waiting: semaphore(most_waiting),
        }
    }

    /// Reads how many requests wait.
    pub(super) fn waiting(&self) -> impl Fn() -> usize + Send + Sync + use<> {
        let (queue, most) = (Arc::clone(&self.waiting), self.most_waiting);
        let most = most.min(Semaphore::MAX_PERMITS);
        move || most.saturating_sub(queue.available_permits())
    }

    pub(super) fn enter(&self) -> Entry {
        match &self.places {
            None => Entry::Open(None),
            Some(places) => match Arc::clone(places).try_acquire_owned() {
                Ok(place) => Entry::Open(Some(place)),
                Err(_) => Entry::Full,
            },
        }
    }

    /// Leave to wait, until it is dropped.
    pub(super) fn queue(&self) -> Result<OwnedSemaphorePermit, Error> {
        Arc::clone(&self.waiting).try_acquire_owned().map_err(|_| {
            overloaded(format!(
                "{} requests are waiting already",
                self.most_waiting
            ))
        })
    }

    /// The wait for a place.
    pub(super) fn place(&self) -> Result<Wait, Error> {
        let under_way = self.most_in_flight.unwrap_or_default();
        let limit = self.longest_wait;
        let full = move || overloaded(format!("{under_way} requests under way for {limit:?}"));
        let Some(places) = self.places.clone().filter(|_| !limit.is_zero()) else {
            return Err(full());
        };
        let queued = self.queue()?;
        Ok(Box::pin(async move {
            let _queued = queued;
            match timeout(limit, places.acquire_owned()).await {
                Ok(Ok(place)) => Ok(Some(place)),
                // The semaphore is never closed.
                Ok(Err(_)) | Err(_) => Err(full()),
            }
        }))
    }

    /// The wait for the first set of endpoints; that there is still none is seen by the next pick.
    pub(super) fn resolution(
        &self,
        balance: &Balance<Upstream>,
        left: Duration,
    ) -> Result<Wait, Error> {
        let queued = self.queue()?;
        let resolved = balance.resolved(left);
        Ok(Box::pin(async move {
            let _queued = queued;
            resolved.await;
            Ok(None)
        }))
    }

    /// The wait for an endpoint that can be reached, as far as is known; `else` it fails when due.
    pub(super) fn endpoint(
        &self,
        balance: Arc<Balance<Upstream>>,
        due: Option<Instant>,
        otherwise: Error,
    ) -> Result<Wait, Error> {
        let queued = self.queue()?;
        Ok(Box::pin(async move {
            let _queued = queued;
            let reachable = reachable(balance);
            match due {
                Some(due) => match tokio::time::timeout_at(due, reachable).await {
                    Ok(()) => Ok(None),
                    Err(_) => Err(otherwise),
                },
                None => {
                    reachable.await;
                    Ok(None)
                }
            }
        }))
    }
}

/// How often those who wait look whether it is time to try an endpoint that has refused: half of
/// the shortest time for which one is left alone.
const LOOK: Duration = Duration::from_millis(50);

fn has_reachable(balance: &Balance<Upstream>) -> bool {
    let now = balance.now();
    let snapshot = balance.snapshot();
    let mut entries = snapshot.entries();
    entries.any(|entry| !entry.candidate().is_avoided(now))
}

async fn reachable(balance: Arc<Balance<Upstream>>) {
    let mut phase = balance.phase();
    loop {
        if has_reachable(&balance) {
            return;
        }
        // Another set of the same phase is seen at the next look.
        timeout(LOOK, phase.changed()).await.ok();
    }
}

fn overloaded(why: String) -> Error {
    Error::new(ErrorKind::Overloaded).context(why)
}
