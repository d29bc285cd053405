//! What several sources have told, for those that make one source of them.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::Sleep;

use super::{Source, Status};
use crate::endpoint::EndpointSet;

/// How many sets of a source are passed over for a newer one in one go.
const MOST_SKIPPED: usize = 64;

/// A source and what it told last.
pub(super) struct Part<S> {
    pub(super) source: S,
    /// A stream that has ended must not be polled again.
    ended: bool,
    pub(super) known: Option<EndpointSet>,
}

impl<S> Part<S> {
    pub(super) fn new(source: S) -> Self {
        Self {
            source,
            ended: false,
            known: None,
        }
    }
}

impl<S: Source + Unpin> Part<S> {
    /// Reads the newest set; whether there was one.
    pub(super) fn read(&mut self, cx: &mut Context<'_>) -> bool {
        let mut news = false;
        for _ in 0..MOST_SKIPPED {
            if self.ended {
                return news;
            }
            match Pin::new(&mut self.source).poll_next(cx) {
                Poll::Ready(Some(set)) => {
                    self.known = Some(set);
                    news = true;
                }
                Poll::Ready(None) => self.ended = true,
                Poll::Pending => return news,
            }
        }
        // A source that is always ready must not hold up the others.
        cx.waker().wake_by_ref();
        news
    }
}

/// Reads all sources; whether a set is to be made of what they have told.
pub(super) fn is_due<S: Source + Unpin>(
    parts: &mut [Part<S>],
    patience: &mut Patience,
    is_told: bool,
    cx: &mut Context<'_>,
) -> bool {
    let mut news = false;
    for part in parts.iter_mut() {
        news |= part.read(cx);
    }
    if is_told {
        news
    } else {
        patience.is_enough(parts, cx)
    }
}

/// Tells a set, unless it is the one that was told before.
pub(super) fn tell(told: &mut Option<EndpointSet>, set: EndpointSet) -> Poll<Option<EndpointSet>> {
    if told.as_ref() == Some(&set) {
        return Poll::Pending;
    }
    *told = Some(set.clone());
    Poll::Ready(Some(set))
}

/// The status of all sources together: live if all are, and otherwise that of the worst.
///
/// One that is unknown is passed over, because the others are told without it.
pub(super) fn status<S: Source>(parts: &[Part<S>], is_told: bool) -> Status {
    let mut age = Duration::ZERO;
    let mut why: Option<Arc<str>> = None;
    for part in parts {
        match part.source.status() {
            Status::Live | Status::Unknown => {}
            Status::Failing { reason } => {
                why.get_or_insert(reason);
            }
            Status::Stale { age: old, reason } => {
                age = age.max(old);
                why.get_or_insert(reason);
            }
        }
    }
    match (is_told, why) {
        (false, None) => Status::Unknown,
        (false, Some(reason)) => Status::Failing { reason },
        (true, None) => Status::Live,
        (true, Some(reason)) => Status::Stale { age, reason },
    }
}

/// How long the first set waits for sources that have not answered yet.
pub(super) enum Patience {
    /// Nobody has told an endpoint yet.
    Whole(Duration),
    Running(Pin<Box<Sleep>>),
    Over,
}

impl Patience {
    /// Whether what the sources have told is enough for a first set: all of them have answered,
    /// or the time is over that began when one of them told an endpoint.
    pub(super) fn is_enough<S>(&mut self, parts: &[Part<S>], cx: &mut Context<'_>) -> bool {
        if parts.iter().all(|part| part.known.is_some()) {
            return true;
        }
        let mut known = parts.iter().filter_map(|part| part.known.as_ref());
        if let Self::Whole(time) = self
            && known.any(|set| !set.is_empty())
        {
            *self = match time.is_zero() {
                true => Self::Over,
                false => Self::Running(Box::pin(tokio::time::sleep(*time))),
            };
        }
        if let Self::Running(sleep) = self
            && sleep.as_mut().poll(cx).is_ready()
        {
            *self = Self::Over;
        }
        matches!(self, Self::Over)
    }
}
