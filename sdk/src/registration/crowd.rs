//! What all registrations of a client have in common, so that many of them are no storm.
//!
//! Consul lets one address have 200 connections (`http_max_conns_per_client`), and takes from whoever
//! wants more than that what it has, heartbeats included. One registration may hold a query and
//! call whenever it likes; ten thousand in one process take turns.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit, watch};
use tokio::time::{Instant, timeout};

use crate::client::Client;

/// How many registrations hold a query at the agent; the others ask now and then.
///
/// Few, because there may be other processes on the machine.
const PLACES: usize = 16;

/// How many are registered, or beat, at one time, and how many deregister.
const TURNS: usize = 8;

/// Of so many each may look for an agent that is gone as often as it likes.
const FEW: usize = 16;

pub(super) struct Crowd {
    members: AtomicUsize,
    places: Arc<Semaphore>,
    turns: Semaphore,
    leaving: Semaphore,
    back: watch::Sender<Option<Back>>,
}

/// The agent is back.
#[derive(Clone, Copy)]
struct Back {
    /// When somebody who has reached it since has failed to.
    failed_at: Instant,
    told_at: Instant,
}

/// All are told again after so long, though nobody has failed to reach the agent since: some may
/// have tried again too early.
const TELL_AGAIN: Duration = Duration::from_secs(1);

impl Crowd {
    /// That of this client and of all of its copies.
    pub(super) fn of(client: &Client) -> Arc<Self> {
        client.shared_by_all("registrations", Self::new)
    }

    fn new() -> Self {
        Self {
            members: AtomicUsize::new(0),
            places: Arc::new(Semaphore::new(PLACES)),
            turns: Semaphore::new(TURNS),
            leaving: Semaphore::new(TURNS),
            back: watch::Sender::new(None),
        }
    }

    /// Waits until one may register, or beat.
    ///
    /// # Cancel safety
    ///
    /// Whoever waits no more gives its turn to the next.
    pub(super) async fn turn(&self) -> Option<SemaphorePermit<'_>> {
        // It is never closed.
        self.turns.acquire().await.ok()
    }
}

/// How long a goodbye waits for its turn: behind an agent that hangs nobody else's is waited for.
const QUEUE: Duration = Duration::from_secs(10);

/// A registration among the others; it leaves when this is dropped.
pub(super) struct Member {
    crowd: Arc<Crowd>,
    place: Option<OwnedSemaphorePermit>,
    back: watch::Receiver<Option<Back>>,
}

impl Member {
    pub(super) fn of(crowd: Arc<Crowd>) -> Self {
        crowd.members.fetch_add(1, Ordering::Relaxed);
        Self {
            place: None,
            back: crowd.back.subscribe(),
            crowd,
        }
    }

    pub(super) fn crowd(&self) -> Arc<Crowd> {
        Arc::clone(&self.crowd)
    }

    /// Waits until it may deregister, but not for ever.
    ///
    /// # Cancel safety
    ///
    /// That of [`Crowd::turn`].
    pub(super) async fn leave(&self) -> Option<SemaphorePermit<'_>> {
        let turn = self.crowd.leaving.acquire();
        timeout(QUEUE, turn).await.ok()?.ok()
    }

    /// Whether it holds a query at the agent, or may begin to. It stays so until it leaves.
    pub(super) fn has_place(&mut self) -> bool {
        if self.place.is_none() {
            self.place = Arc::clone(&self.crowd.places).try_acquire_owned().ok();
        }
        self.place.is_some()
    }

    pub(super) fn holds_place(&self) -> bool {
        self.place.is_some()
    }

    /// How long one waits until it looks for an agent that is gone, if a lone one waits for so long.
    ///
    /// All of them together look no more often than a few would.
    pub(super) fn spread(&self, pause: Duration) -> Duration {
        let members = self.crowd.members.load(Ordering::Relaxed);
        let share = members.div_ceil(FEW).max(1);
        pause.saturating_mul(u32::try_from(share).unwrap_or(u32::MAX))
    }

    /// Tells all others that the agent is back, which could not be reached at this time.
    ///
    /// Ten thousand may find out at one moment: it is told where that says more than before.
    pub(super) fn found(&self, failed_at: Instant, now: Instant) {
        self.crowd.back.send_if_modified(|back| {
            let is_news = back.is_none_or(|before| {
                failed_at > before.failed_at || now > before.told_at + TELL_AGAIN
            });
            if is_news {
                let last = back.map_or(failed_at, |before| before.failed_at.max(failed_at));
                *back = Some(Back {
                    failed_at: last,
                    told_at: now,
                });
            }
            is_news
        });
    }

    /// Waits until somebody has found the agent again, and returns when it was away.
    ///
    /// # Cancel safety
    ///
    /// Nothing that is told is missed.
    pub(super) async fn back(&mut self) -> Instant {
        loop {
            // It cannot end before the crowd does.
            if self.back.changed().await.is_err() {
                std::future::pending().await
            }
            if let Some(back) = *self.back.borrow_and_update() {
                return back.failed_at;
            }
        }
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.crowd.members.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAUSE: Duration = Duration::from_millis(50);

    fn members(count: usize) -> Vec<Member> {
        let crowd = Arc::new(Crowd::new());
        (0..count).map(|_| Member::of(Arc::clone(&crowd))).collect()
    }

    #[test]
    fn few_look_as_often_as_one_and_many_together_no_more_often() {
        for (count, times) in [(1, 1), (16, 1), (17, 2), (10_000, 625)] {
            assert_eq!(members(count)[0].spread(PAUSE), PAUSE * times, "{count}");
        }
        let mut leaving = members(17);
        leaving.truncate(16);
        assert_eq!(leaving[0].spread(PAUSE), PAUSE);
    }

    #[test]
    fn places_are_held_until_their_owner_leaves() {
        let mut members = members(PLACES + 1);
        let mut last = members.pop().unwrap();
        assert!(members.iter_mut().all(Member::has_place));
        assert!(!last.has_place());
        members.pop();
        assert!(last.has_place());
    }

    #[tokio::test]
    async fn a_turn_is_for_some_at_a_time_and_the_next_waits() {
        let crowd = Crowd::new();
        let mut turns = Vec::new();
        for _ in 0..TURNS {
            turns.push(crowd.turn().await);
        }
        let soon = Duration::from_millis(10);
        assert!(timeout(soon, crowd.turn()).await.is_err());
        turns.pop();
        assert!(timeout(soon, crowd.turn()).await.is_ok());
    }

    #[tokio::test]
    async fn all_hear_that_the_agent_is_back() {
        let mut members = members(3);
        let soon = Duration::from_millis(10);
        let now = Instant::now();
        members[0].found(now, now + soon);
        for member in &mut members {
            assert_eq!(member.back().await, now);
        }
        // What all have heard already is told again after a while, and a later failure at once.
        members[1].found(now - soon, now + 2 * soon);
        assert!(timeout(soon, members[2].back()).await.is_err());
        members[1].found(now - soon, now + soon + TELL_AGAIN + soon);
        assert_eq!(members[2].back().await, now);
        members[1].found(now + soon, now + 2 * soon + TELL_AGAIN);
        assert_eq!(members[2].back().await, now + soon);
    }
}
