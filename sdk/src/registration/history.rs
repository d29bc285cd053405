//! What has happened to a registration, in its order.

use std::collections::VecDeque;
use std::fmt;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_core::Stream;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::error::Error;
use crate::ident::ServiceId;

/// How many events are kept.
const KEPT: usize = 64;

/// Something that has happened to a registration.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Event {
    /// Counts the events of a registration from 1: a gap tells that some were missed.
    pub number: u64,
    /// When, since the registration began.
    pub at: Duration,
    /// What.
    pub what: Happening,
}

/// What can happen to a registration.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Happening {
    /// The agent took the service for the first time.
    Registered,
    /// The agent has forgotten it, or is out of reach.
    Lost(Error),
    /// The agent has it again, and takes its heartbeats, so long after it was lost.
    Healed(Duration),
    /// The token may not register it.
    Denied(Error),
    /// Somebody else has registered its ID on this agent: what they say of themselves, if they do.
    Conflict(Option<Arc<str>>),
    /// The ID was left to them, until it is free again.
    Yielded,
    /// The ID was taken again, because they have left, or have died.
    TakenBack,
    /// What a former self had left behind was deregistered.
    LeftoverRemoved(ServiceId),
    /// Heartbeats came so late because the runtime had no time for them: it was blocked, or the
    /// process was stopped.
    BeatLate(Duration),
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.3} s: ", self.at.as_secs_f64())?;
        match &self.what {
            Happening::Registered => f.write_str("registered"),
            Happening::Lost(err) => write!(f, "lost: {err}"),
            Happening::Healed(after) => write!(f, "healed after {:.3} s", after.as_secs_f64()),
            Happening::Denied(err) => write!(f, "denied: {err}"),
            Happening::Conflict(Some(theirs)) => write!(f, "conflict with {theirs}"),
            Happening::Conflict(None) => f.write_str("conflict"),
            Happening::Yielded => f.write_str("yielded"),
            Happening::TakenBack => f.write_str("taken back"),
            Happening::LeftoverRemoved(id) => write!(f, "leftover {id} removed"),
            Happening::BeatLate(by) => {
                let by = by.as_secs_f64();
                write!(f, "beat late by {by:.3} s: the runtime was starved")
            }
        }
    }
}

/// Where the keeper writes what happens.
#[derive(Debug)]
pub(super) struct Log {
    begin: Instant,
    kept: Arc<Mutex<VecDeque<Event>>>,
    count: watch::Sender<u64>,
}

impl Log {
    pub(super) fn new() -> (Self, Kept) {
        let kept = Arc::new(Mutex::new(VecDeque::new()));
        let (count, written) = watch::channel(0);
        let log = Self {
            begin: Instant::now(),
            kept: Arc::clone(&kept),
            count,
        };
        (log, Kept { kept, written })
    }

    pub(super) fn write(&self, what: Happening) {
        let number = *self.count.borrow() + 1;
        let at = self.begin.elapsed();
        let mut kept = lock(&self.kept);
        if kept.len() == KEPT {
            kept.pop_front();
        }
        kept.push_back(Event { number, at, what });
        drop(kept);
        self.count.send_replace(number);
    }
}

/// What is read of it.
#[derive(Clone)]
pub(super) struct Kept {
    kept: Arc<Mutex<VecDeque<Event>>>,
    written: watch::Receiver<u64>,
}

impl Kept {
    pub(super) fn all(&self) -> Vec<Event> {
        lock(&self.kept).iter().cloned().collect()
    }

    /// The first event after this number.
    fn after(&self, number: u64) -> Option<Event> {
        let kept = lock(&self.kept);
        kept.iter().find(|event| event.number > number).cloned()
    }
}

fn lock(kept: &Mutex<VecDeque<Event>>) -> MutexGuard<'_, VecDeque<Event>> {
    kept.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What has happened to a registration and what happens from now on: a stream that ends with it.
///
/// It begins with what is [kept](super::Registration::history). A reader that is more than 64 events
/// behind misses some, which the [numbers](Event::number) tell. Starts no task.
#[must_use = "a stream does nothing until it is read"]
pub struct Events {
    next: Next,
}

type Next = Pin<Box<dyn Future<Output = Option<(Event, Kept)>> + Send + Sync>>;

impl Events {
    pub(super) fn new(kept: Kept) -> Self {
        Self {
            next: Box::pin(next(kept, 0)),
        }
    }

    /// The next event; `None` when the registration has ended and all were given.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost: the event is there at the next call.
    pub async fn next(&mut self) -> Option<Event> {
        std::future::poll_fn(|cx| Pin::new(&mut *self).poll_next(cx)).await
    }
}

async fn next(mut kept: Kept, seen: u64) -> Option<(Event, Kept)> {
    loop {
        // Before the look: what is written after it is a change.
        kept.written.borrow_and_update();
        if let Some(event) = kept.after(seen) {
            return Some((event, kept));
        }
        if kept.written.changed().await.is_err() {
            // The last words were written before the end.
            return kept.after(seen).map(|event| (event, kept));
        }
    }
}

impl Stream for Events {
    type Item = Event;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Event>> {
        match self.next.as_mut().poll(cx) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(None) => {
                self.next = Box::pin(std::future::ready(None));
                Poll::Ready(None)
            }
            Poll::Ready(Some((event, kept))) => {
                self.next = Box::pin(next(kept, event.number));
                Poll::Ready(Some(event))
            }
        }
    }
}

impl fmt::Debug for Events {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Events").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_reader_gets_what_is_kept_then_what_comes_and_sees_what_it_missed() {
        let (log, kept) = Log::new();
        log.write(Happening::Registered);
        let mut events = Events::new(kept.clone());
        assert_eq!(events.next().await.unwrap().number, 1);
        for _ in 0..KEPT + 5 {
            log.write(Happening::Yielded);
        }
        assert_eq!(events.next().await.unwrap().number, 7);
        assert_eq!(kept.all().len(), KEPT);
        drop(log);
        let mut last = 0;
        while let Some(event) = events.next().await {
            last = event.number;
        }
        assert_eq!(last, 70);
        assert!(events.next().await.is_none());
    }
}
