//! What all watches of a client have in common, so that many of them keep nobody out.
//!
//! Consul lets one address have 200 connections (`http_max_conns_per_client`), and a held query has
//! one to itself. Whoever wants more has none for a heartbeat, or for another process there. So some
//! watches hold a query, and the others ask now and then, one after the other.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit};

use crate::client::Client;

/// How many watches hold a query at the agent. What is left is for calls, heartbeats, registrations,
/// and for other processes. And the agent keeps a query that broke off until its wait is over: for a
/// minute after an outage there are twice as many.
const PLACES: usize = 64;

/// How many of the others ask at one time.
const TURNS: usize = 4;

/// How many of them ask within a second.
const ASKING: usize = 64;

/// How long one without a place has the agent hold its query: not at all.
pub(super) const GLANCE: Duration = Duration::from_millis(1);

struct Crowd {
    places: Arc<Semaphore>,
    turns: Semaphore,
    waiting: AtomicUsize,
}

impl Crowd {
    fn new() -> Self {
        Self {
            places: Arc::new(Semaphore::new(PLACES)),
            turns: Semaphore::new(TURNS),
            waiting: AtomicUsize::new(0),
        }
    }
}

/// A watch among the others; it leaves when this is dropped.
pub(super) struct Seat {
    crowd: Arc<Crowd>,
    place: Option<OwnedSemaphorePermit>,
    waits: bool,
}

impl Seat {
    /// One among the watches of all copies of this client.
    pub(super) fn among(client: &Client) -> Self {
        Self::of(client.shared_by_all("watches", Crowd::new))
    }

    fn of(crowd: Arc<Crowd>) -> Self {
        Self {
            crowd,
            place: None,
            waits: false,
        }
    }

    /// Whether the next query may be held; it may for as long as the watch lives, once it may.
    ///
    /// Not the first one after it has waited for a place: it has not heard of the agent since, which may
    /// be another one by now, where its index means nothing.
    pub(super) fn may_hold(&mut self) -> bool {
        let has_rested = self.waits;
        if self.place.is_none() {
            self.place = Arc::clone(&self.crowd.places).try_acquire_owned().ok();
            let waits = self.place.is_none();
            if waits && !self.waits {
                self.crowd.waiting.fetch_add(1, Ordering::Relaxed);
            } else if self.waits && !waits {
                self.crowd.waiting.fetch_sub(1, Ordering::Relaxed);
            }
            self.waits = waits;
        }
        self.place.is_some() && !has_rested
    }

    /// Waits until it may ask, if it has no place.
    ///
    /// # Cancel safety
    ///
    /// Whoever waits no more gives its turn to the next.
    pub(super) async fn turn(&self) -> Option<SemaphorePermit<'_>> {
        if self.waits {
            // It is never closed.
            self.crowd.turns.acquire().await.ok()
        } else {
            None
        }
    }

    /// How long it asks no more when it has asked.
    pub(super) fn rest(&self) -> Duration {
        if !self.waits {
            return Duration::ZERO;
        }
        let waiting = self.crowd.waiting.load(Ordering::Relaxed);
        let share = u32::try_from(waiting.div_ceil(ASKING)).unwrap_or(u32::MAX);
        Duration::from_secs(1) * share.max(1)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        if self.waits {
            self.crowd.waiting.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_without_a_place_ask_the_less_often_the_more_they_are() {
        let crowd = Arc::new(Crowd::new());
        let seats = |count: usize| -> Vec<_> {
            let mut seats: Vec<_> = (0..count).map(|_| Seat::of(Arc::clone(&crowd))).collect();
            seats.iter_mut().for_each(|seat| {
                seat.may_hold();
            });
            seats
        };
        let mut placed = seats(PLACES);
        assert!(placed.iter().all(|seat| seat.rest().is_zero()));
        for (count, rest) in [(1, 1), (64, 1), (65, 2), (1_000, 16)] {
            let mut others = seats(count);
            assert_eq!(others[0].rest(), Duration::from_secs(rest), "{count}");
            assert!(!others[0].may_hold());
        }
        // Whoever leaves counts no more, and leaves its place to somebody else.
        let mut last = seats(1);
        placed.pop();
        assert!(!last[0].may_hold() && last[0].rest().is_zero());
        assert!(last[0].may_hold());
        assert_eq!(crowd.waiting.load(Ordering::Relaxed), 0);
    }
}
