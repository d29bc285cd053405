//! Sources that ask nobody: a constant set, and a set that is fed by hand.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use futures_core::Stream;

use super::{Source, Status};
use crate::endpoint::{Endpoint, EndpointSet};

/// Makes a source of endpoints that never change.
///
/// # Examples
///
/// ```
/// use lictor_tower::endpoint::{Endpoint, Target};
/// use lictor_tower::source;
///
/// let target: Target = "10.0.0.1:80".parse()?;
/// let source = source::fixed([Endpoint::new(target)]);
/// # drop(source);
/// # Ok::<(), lictor_tower::error::Error>(())
/// ```
pub fn fixed(endpoints: impl IntoIterator<Item = Endpoint>) -> Fixed {
    let set: EndpointSet = endpoints.into_iter().collect();
    Fixed { untold: Some(set) }
}

/// A constant set of endpoints; see [`fixed`].
///
/// It yields its set once and is pending ever after.
#[derive(Debug)]
pub struct Fixed {
    untold: Option<EndpointSet>,
}

impl Stream for Fixed {
    type Item = EndpointSet;

    fn poll_next(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<EndpointSet>> {
        match self.untold.take() {
            Some(set) => Poll::Ready(Some(set)),
            // Nothing will ever happen, so there is nothing to be woken for.
            None => Poll::Pending,
        }
    }
}

impl Source for Fixed {
    fn status(&self) -> Status {
        Status::Live
    }
}

/// Makes a source that yields what is put into its handle.
///
/// For endpoints that come from somewhere else than Consul, and for tests. The set is unknown
/// until the first [`Feed::set`].
///
/// # Examples
///
/// ```
/// use lictor_tower::endpoint::Endpoint;
/// use lictor_tower::source::{self, Source, Status};
///
/// let (feed, source) = source::feed();
/// assert_eq!(source.status(), Status::Unknown);
///
/// let endpoint = Endpoint::new("10.0.0.1:80".parse()?);
/// feed.set([endpoint].into_iter().collect());
/// assert_eq!(source.status(), Status::Live);
/// # Ok::<(), lictor_tower::error::Error>(())
/// ```
#[must_use]
pub fn feed() -> (Feed, FeedSource) {
    let shared = Arc::new(Mutex::new(Slot::default()));
    let source = FeedSource {
        slot: Arc::clone(&shared),
        told: None,
    };
    (Feed { slot: shared }, source)
}

/// The handle that feeds a [`FeedSource`]; see [`feed`].
///
/// Clones feed the same source. When all are dropped, the source keeps its last set.
#[derive(Clone, Debug)]
pub struct Feed {
    slot: Arc<Mutex<Slot>>,
}

/// The source that is fed by a [`Feed`].
///
/// It holds the newest set only: a reader that is slow sees the latest and not each in turn. It
/// does not end when its feed is dropped. It starts no task.
#[derive(Debug)]
pub struct FeedSource {
    slot: Arc<Mutex<Slot>>,
    told: Option<EndpointSet>,
}

#[derive(Debug, Default)]
struct Slot {
    set: Option<EndpointSet>,
    reader: Option<Waker>,
}

/// No code that could panic runs under the lock, so a poisoned one is as good as new.
fn lock(slot: &Mutex<Slot>) -> MutexGuard<'_, Slot> {
    slot.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Feed {
    /// Replaces the set; the reader is woken.
    ///
    /// Content that is what the reader has seen last is not told again.
    pub fn set(&self, set: EndpointSet) {
        let reader = {
            let mut slot = lock(&self.slot);
            slot.set = Some(set);
            slot.reader.take()
        };
        if let Some(reader) = reader {
            reader.wake();
        }
    }
}

impl Stream for FeedSource {
    type Item = EndpointSet;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<EndpointSet>> {
        let this = &mut *self;
        let mut slot = lock(&this.slot);
        match &slot.set {
            Some(set) if this.told.as_ref() != Some(set) => {
                this.told = Some(set.clone());
                Poll::Ready(Some(set.clone()))
            }
            _ => {
                slot.reader = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}

impl Source for FeedSource {
    fn status(&self) -> Status {
        match lock(&self.slot).set {
            Some(_) => Status::Live,
            None => Status::Unknown,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(targets: &[&str]) -> EndpointSet {
        targets
            .iter()
            .map(|target| Endpoint::new(target.parse().unwrap()))
            .collect()
    }

    fn poll(source: &mut (impl Source + Unpin)) -> Poll<Option<EndpointSet>> {
        Pin::new(source).poll_next(&mut Context::from_waker(Waker::noop()))
    }

    #[test]
    fn a_fixed_set_is_told_once_and_the_stream_does_not_end() {
        let mut source = fixed(set(&["10.0.0.1:80"]).iter().map(|e| (**e).clone()));
        assert_eq!(poll(&mut source), Poll::Ready(Some(set(&["10.0.0.1:80"]))));
        assert_eq!(poll(&mut source), Poll::Pending);
        assert_eq!(source.status(), Status::Live);
    }

    #[test]
    fn a_fed_source_is_unknown_until_fed_and_empty_is_an_item() {
        let (feed, mut source) = feed();
        assert_eq!(source.status(), Status::Unknown);
        assert_eq!(poll(&mut source), Poll::Pending);
        feed.set(EndpointSet::empty());
        assert_eq!(poll(&mut source), Poll::Ready(Some(EndpointSet::empty())));
        assert_eq!(source.status(), Status::Live);
    }

    #[test]
    fn a_fed_source_tells_the_newest_set_and_the_same_content_once() {
        let (feed, mut source) = feed();
        feed.set(set(&["10.0.0.1:80"]));
        feed.set(set(&["10.0.0.2:80"]));
        assert_eq!(poll(&mut source), Poll::Ready(Some(set(&["10.0.0.2:80"]))));
        feed.set(set(&["10.0.0.2:80"]));
        assert_eq!(poll(&mut source), Poll::Pending);
    }

    #[test]
    fn a_fed_source_outlives_its_feed() {
        let (feed, mut source) = feed();
        feed.set(set(&["10.0.0.1:80"]));
        drop(feed);
        assert!(poll(&mut source).is_ready());
        assert_eq!(poll(&mut source), Poll::Pending);
        assert_eq!(source.status(), Status::Live);
    }

    #[tokio::test]
    async fn feeding_wakes_a_waiting_reader() {
        let (feed, mut source) = feed();
        let read = std::future::poll_fn(move |cx| Pin::new(&mut source).poll_next(cx));
        let write = async {
            tokio::task::yield_now().await;
            feed.set(set(&["10.0.0.1:80"]));
        };
        let (read, ()) = tokio::join!(read, write);
        assert_eq!(read, Some(set(&["10.0.0.1:80"])));
    }
}
