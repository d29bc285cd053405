//! Views of a watch that do not tell everything at once: guarded, and settled.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::engine::State;
use super::kinds::Watched;
use super::reader::Watch;
use super::snapshot::{Content, Status, Suspicion};
use crate::error::{Error, Result};
use crate::proto::caution::{Bounds, Window};
use crate::proto::diff;

/// What is done about a content from which many elements, or all, went at once.
///
/// An agent that lost its servers' data, a token that lost its rights and a health check that is
/// itself wrong look like this. Rarely do so many instances really end at once, and where they do, a
/// client loses little by believing it some seconds later.
///
/// See [`Watch::guard`].
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[must_use]
pub struct Guard {
    mode: Mode,
    grace: Duration,
    bounds: Bounds,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Mode {
    Off,
    Warn,
    Hold,
}

impl Guard {
    const fn new(mode: Mode, grace: Duration) -> Self {
        Self {
            mode,
            grace,
            bounds: Bounds {
                percent: 50,
                least: 3,
            },
        }
    }

    /// Nothing: every content is told at once.
    pub const fn off() -> Self {
        Self::new(Mode::Off, Duration::ZERO)
    }

    /// The content is told at once, and for so long the status is [`Status::Suspect`].
    pub const fn warn(grace: Duration) -> Self {
        Self::new(Mode::Warn, grace)
    }

    /// The last content stays, with the status [`Status::Suspect`]. If after so long Consul still
    /// says the same it is believed; if what is missing comes back before, nobody is told.
    pub const fn hold(grace: Duration) -> Self {
        Self::new(Mode::Hold, grace)
    }

    /// More than how many of a hundred elements are too many to go at once. Default: 50; range: 0
    /// (any that goes) to 100 (none left). That none is left is always suspicious.
    pub const fn percent(mut self, percent: u8) -> Self {
        self.bounds.percent = percent;
        self
    }

    /// Of fewer elements than this any may go. Default: 3, because one of two is half and may well
    /// be a deployment.
    pub const fn least(mut self, elements: usize) -> Self {
        self.bounds.least = elements;
        self
    }
}

impl<T: Watched> Watch<T> {
    /// A view that does not believe at once that many elements, or all, are gone.
    ///
    /// The query on the wire stays the shared one. Starts a task, which ends with the last reader of
    /// this view.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # async fn example(client: lictor::Client) -> lictor::Result<()> {
    /// use std::time::Duration;
    ///
    /// use lictor::watch::Guard;
    ///
    /// let web = client.health().service("web").passing().watch()?;
    /// let mut web = web.guard(Guard::hold(Duration::from_secs(10)))?;
    /// println!("{} instances", web.changed().await?.len());
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Invalid`](crate::ErrorKind::Invalid) if the percentage is above 100;
    /// [`ErrorKind::NoRuntime`](crate::ErrorKind::NoRuntime) outside of a Tokio runtime.
    pub fn guard(self, guard: Guard) -> Result<Self> {
        if guard.bounds.percent > 100 {
            let percent = guard.bounds.percent;
            return Err(Error::invalid(format!(
                "guard at {percent} percent: must be from 0 to 100"
            )));
        }
        if guard.mode == Mode::Off {
            return Ok(self);
        }
        self.seen_through(|from, to| guarded(from, to, guard))
    }

    /// A view that waits out bursts: after a change it is silent until nothing has come for `quiet`,
    /// but for `most` at the longest, and then tells the newest content.
    ///
    /// For whoever does something costly with a content, such as writing a file for a proxy. The
    /// first content is told at once, and so is what becomes of the status.
    ///
    /// The query on the wire stays the shared one. Starts a task, which ends with the last reader of
    /// this view.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Invalid`](crate::ErrorKind::Invalid) if `quiet` is longer than `most`;
    /// [`ErrorKind::NoRuntime`](crate::ErrorKind::NoRuntime) outside of a Tokio runtime.
    pub fn settle(self, quiet: Duration, most: Duration) -> Result<Self> {
        if quiet > most {
            return Err(Error::invalid(format!(
                "settle after {quiet:?} of quiet, but within {most:?}: the second must not be shorter"
            )));
        }
        let window = Window { quiet, most };
        self.seen_through(|from, to| settled(from, to, window))
    }
}

type From<T> = watch::Receiver<State<T>>;
type To<T> = watch::Sender<State<T>>;

/// How many elements of the one are not in the other.
fn gone<T: Watched>(before: &Content<T>, after: &Content<T>) -> usize {
    diff::between(&before.items, &after.items, T::identity)
        .removed
        .len()
}

async fn guarded<T: Watched>(mut from: From<T>, to: To<T>, guard: Guard) {
    // The last content that was believed.
    let mut believed: Option<Arc<Content<T>>> = None;
    let mut doubt: Option<Instant> = None;
    loop {
        let now = Instant::now();
        let mut state = from.borrow_and_update().clone();
        let mut judged_at = None;
        if let Some(content) = state.content.as_ref().map(Arc::clone) {
            let suspicion = believed.as_ref().and_then(|believed| {
                let (had, left) = (believed.items.len(), content.items.len());
                let gone = gone(believed, &content);
                let suspicious = guard.bounds.is_suspicious(had, gone, left);
                suspicious.then_some((gone, had))
            });
            match suspicion {
                Some((gone, of)) => {
                    let since = *doubt.get_or_insert(now);
                    let until = since + guard.grace;
                    // Nobody confirms it during an outage.
                    if now >= until && state.status.is_live() {
                        doubt = None;
                        believed = Some(content);
                    } else {
                        judged_at = (now < until).then_some(until);
                        let held = guard.mode == Mode::Hold;
                        if held {
                            state.content = believed.as_ref().map(Arc::clone);
                        }
                        if state.status.is_live() {
                            state.status = Status::Suspect(Suspicion {
                                since,
                                gone,
                                of,
                                held,
                            });
                        }
                    }
                }
                None => {
                    doubt = None;
                    believed = Some(content);
                }
            }
        }
        tell(&to, state);
        tokio::select! {
            changed = from.changed() => {
                if changed.is_err() {
                    return;
                }
            }
            () = until(judged_at) => {}
        }
    }
}

async fn settled<T: Watched>(mut from: From<T>, to: To<T>, window: Window) {
    let mut told: Option<Arc<Content<T>>> = None;
    // The content that is waited on, since when there is news, and since when it is the newest.
    let mut burst: Option<(Arc<Content<T>>, Instant, Instant)> = None;
    loop {
        let now = Instant::now();
        let mut state = from.borrow_and_update().clone();
        let mut ends = None;
        match (&told, state.content.as_ref().map(Arc::clone)) {
            (Some(last), Some(newest)) if !Arc::ptr_eq(last, &newest) => {
                let (first, at) = match &burst {
                    Some((content, first, at)) if Arc::ptr_eq(content, &newest) => (*first, *at),
                    Some((_, first, _)) => (*first, now),
                    None => (now, now),
                };
                let end = window.ends(first, at);
                if now >= end {
                    burst = None;
                    told = Some(newest);
                } else {
                    state.content = Some(Arc::clone(last));
                    burst = Some((newest, first, at));
                    ends = Some(end);
                }
            }
            (_, content) => {
                burst = None;
                told = content;
            }
        }
        tell(&to, state);
        tokio::select! {
            changed = from.changed() => {
                if changed.is_err() {
                    return;
                }
            }
            () = until(ends) => {}
        }
    }
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// Tells a state; readers are woken by what is new of it.
pub(super) fn tell<T>(to: &watch::Sender<State<T>>, state: State<T>) {
    to.send_if_modified(|told| {
        let same_content = match (&told.content, &state.content) {
            (Some(told), Some(content)) => Arc::ptr_eq(told, content),
            (None, None) => true,
            _ => false,
        };
        let is_news = !(same_content && told.status.is_like(&state.status));
        *told = state;
        is_news
    });
}
