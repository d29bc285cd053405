//! One source, and others that step in while it cannot tell.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_core::Stream;
use tokio::runtime::Handle;
use tokio::time::{Instant, Sleep};

use super::parts::Part;
use super::turns::{Pace, Standing, Turns};
use super::{Source, Status};
use crate::endpoint::EndpointSet;

/// A source is looked at so often at least, should it not wake its reader when its status changes.
const LOOK_EVERY: Duration = Duration::from_millis(500);

const SHORTEST: Duration = Duration::from_millis(10);
const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);

/// Follows a source, and others in its place while it cannot tell.
///
/// Mostly a health watch over HTTP, and the same service by DNS for when the agent's HTTP port
/// cannot be reached. Unlike with [`ranked`](super::ranked()) and [`merged`](super::merged()) one
/// source at a time says who is there.
///
/// - The first source is in use while it is [`Live`](Status::Live). When it has not been for
///   [`after`](Fallback::after), 5 s by default, the next one that is takes its place. Until then,
///   and whenever no other is live, the last set stays in force.
/// - When a source before the one in use has been live for [`back_after`](Fallback::back_after),
///   10 s by default, it is gone back to; at once if the one in use is not live. So a source that
///   comes and goes is not followed to and fro.
/// - A source takes the place of one before it only with somebody to call: a name that is wrong, or
///   a DNS server that has lost its zone, must not empty a service. The source in use is believed
///   whatever it says, and so is one that is gone back to.
/// - At the start the first source is waited for one second longer than another that has told an
///   endpoint.
///
/// An endpoint is known by its target, so one that two sources name with the same address and port
/// keeps its connections and its statistics when one takes the place of the other; its weight,
/// priority and distance are those of the source in use. [`SrvSource`](super::SrvSource) and
/// [`HealthSource`](super::HealthSource) name the instances of a Consul service alike. For targets of
/// other DNS servers, see [`resolve_targets`](super::SrvSourceBuilder::resolve_targets).
///
/// All sources are followed all the time, so that what they tell is there when it is needed: one
/// that polls does so while it stands by, too. A `tracing` event tells each change of the source
/// in use.
///
/// # Examples
///
/// ```
/// use std::time::Duration;
///
/// use lictor_tower::source::{self, HealthSource, SrvSource};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let client = lictor::Client::builder().build()?;
/// let watch = client.health().service("web").watch()?;
/// let by_dns = SrvSource::builder("web.service.consul").build()?;
/// let source = source::fallback(HealthSource::new(watch))
///     .then(by_dns)
///     .after(Duration::from_secs(3));
/// # drop(source);
/// # Ok(())
/// # }
/// ```
#[must_use]
pub fn fallback(first: impl Source) -> Fallback {
    Fallback {
        sources: Vec::new(),
        turns: Turns::new(Pace {
            after: Duration::from_secs(5),
            back_after: Duration::from_secs(10),
        }),
        timer: None,
        told: None,
    }
    .then(first)
}

/// Sources of which one at a time is in use; see [`fallback`].
///
/// It starts no task: the sources work while it is polled and are dropped with it. It has to be
/// polled inside a Tokio runtime; outside one no source takes the place of another.
///
/// # Cancel safety
///
/// Waiting for the next item can be given up at any time; nothing is lost.
pub struct Fallback {
    sources: Vec<Part<Pin<Box<dyn Source>>>>,
    turns: Turns,
    timer: Option<Pin<Box<Sleep>>>,
    told: Option<EndpointSet>,
}

impl Fallback {
    /// Adds the source that is used while none of those before it can tell.
    ///
    /// Any number of them.
    #[must_use]
    pub fn then(mut self, next: impl Source) -> Self {
        self.sources.push(Part::new(Box::pin(next)));
        self
    }

    /// Sets for how long the source in use may fail to tell before another takes its place.
    ///
    /// The time runs from when the source's [`status`](Source::status) is found to be other than
    /// live. A health watch knows at once of a connection that is refused or reset; of one that dies
    /// without a word it knows when its query is overdue, after some 75 s. 10 ms to one day, what
    /// lies outside counts as the nearer of both. Default 5 s: an agent that restarts is back by
    /// then.
    #[must_use]
    pub fn after(mut self, time: Duration) -> Self {
        self.turns.pace.after = time.clamp(SHORTEST, LONGEST);
        self
    }

    /// Sets for how long a source must have been live again before it is gone back to.
    ///
    /// It is at the same time the shortest stay with a source that works. 10 ms to one day, what
    /// lies outside counts as the nearer of both. Default 10 s: there is no hurry, the one in use
    /// tells the truth meanwhile.
    #[must_use]
    pub fn back_after(mut self, time: Duration) -> Self {
        self.turns.pace.back_after = time.clamp(SHORTEST, LONGEST);
        self
    }

    /// Whose set is in force: 0 for the first source, 1 for the one after it, and so on.
    ///
    /// `None` before a set was told.
    #[must_use]
    pub fn in_use(&self) -> Option<usize> {
        self.turns.used
    }

    /// Takes note of how the sources are, and changes the one in use if it is time.
    fn look(&mut self, now: Instant) {
        let before = self.turns.used;
        let standings = self.sources.iter().map(|part| match &part.known {
            Some(set) if part.source.status() == Status::Live => Standing::Well {
                is_empty: set.is_empty(),
            },
            _ => Standing::Ill,
        });
        let used = self.turns.look(standings, now);
        if used == before {
            return;
        }
        let of = self.sources.len();
        // For whoever reads a log, sources are counted from one.
        let source = used.map_or(0, |used| used + 1);
        match (before, used) {
            (Some(before), Some(used)) if used < before => {
                tracing::info!(
                    source,
                    of,
                    "a source of endpoints that is preferred is back"
                );
            }
            (None, Some(0)) => {}
            _ => {
                let reason = match before.and_then(|at| self.sources.get(at)) {
                    Some(part) => part.source.status(),
                    None => self.status(),
                };
                tracing::warn!(source, of, %reason, "another source of endpoints steps in");
            }
        }
    }

    /// Sees to it that this is polled again when it is time to look.
    fn arm(&mut self, now: Instant, cx: &mut Context<'_>) {
        if self.sources.len() < 2 || Handle::try_current().is_err() {
            return;
        }
        let latest = now + LOOK_EVERY;
        let due = self.turns.due(now).map_or(latest, |due| due.min(latest));
        let timer = self
            .timer
            .get_or_insert_with(|| Box::pin(tokio::time::sleep_until(due)));
        if timer.deadline() != due {
            timer.as_mut().reset(due);
        }
        if timer.as_mut().poll(cx).is_ready() {
            cx.waker().wake_by_ref();
        }
    }
}

impl Stream for Fallback {
    type Item = EndpointSet;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<EndpointSet>> {
        let this = &mut *self;
        for part in &mut this.sources {
            part.read(cx);
        }
        let now = Instant::now();
        this.look(now);
        this.arm(now, cx);
        let used = this.turns.used.and_then(|used| this.sources.get(used));
        match used.and_then(|part| part.known.as_ref()) {
            Some(set) if this.told.as_ref() != Some(set) => {
                this.told = Some(set.clone());
                Poll::Ready(this.told.clone())
            }
            _ => Poll::Pending,
        }
    }
}

impl Source for Fallback {
    /// That of the source in use; before there is one, why there is none.
    fn status(&self) -> Status {
        if let Some(part) = self.turns.used.and_then(|used| self.sources.get(used)) {
            return part.source.status();
        }
        let mut statuses = self.sources.iter().map(|part| part.source.status());
        statuses
            .find(|status| matches!(status, Status::Failing { .. }))
            .unwrap_or(Status::Unknown)
    }
}

impl fmt::Debug for Fallback {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fallback")
            .field("sources", &self.sources.len())
            .field("in_use", &self.turns.used)
            .field("status", &self.status())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
