//! Several sources in an order of preference, as one.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_core::Stream;

use super::parts::{self, Part, Patience};
use super::{Source, Status};
use crate::endpoint::{Endpoint, EndpointSet};

/// How far apart the sources are: more than any source's own distances.
const STEP: u16 = 256;

/// How long those who are preferred are waited for once another source has answered.
const PATIENCE: Duration = Duration::from_secs(1);

/// Merges sources in the order in which they are preferred.
///
/// Mostly the same service in several datacenters, the own one first. The endpoints of each source
/// are further away than those of all sources before it ([`Endpoint::with_distance`]), so a
/// [`Channel`](crate::channel::Channel) takes them in when too few before them are well, little by
/// little, and at once when there is nobody. An endpoint that several sources tell is as near as
/// the nearest of them.
///
/// - The set is told when all sources have answered, or one second after the first that has told an
///   endpoint: what is preferred must not be passed over because it answers a moment later, and
///   its outage must not keep the others from use.
/// - Each source keeps what it told last while it cannot be asked, as ever.
/// - Nobody is there when all sources say so. While one of them is still unknown, that is unknown,
///   too.
///
/// Sources of several kinds are boxed: `Pin<Box<dyn Source>>` is a source.
///
/// # Examples
///
/// ```no_run
/// use lictor_tower::source::{self, HealthSource};
///
/// # fn example(client: lictor::Client) -> lictor::Result<()> {
/// let here = client.health().service("web").watch()?;
/// let there = client.health().service("web").datacenter("dc2").watch()?;
/// let source = source::ranked([here, there].map(HealthSource::new));
/// # drop(source);
/// # Ok(())
/// # }
/// ```
pub fn ranked<S: Source + Unpin>(sources: impl IntoIterator<Item = S>) -> Ranked<S> {
    Ranked {
        sources: sources.into_iter().map(Part::new).collect(),
        patience: Patience::Whole(PATIENCE),
        told: None,
    }
}

/// Several sources as one; see [`ranked`].
///
/// It starts no task: the sources work while it is polled and are dropped with it. It has to be
/// polled inside a Tokio runtime.
///
/// # Cancel safety
///
/// Waiting for the next item can be given up at any time; nothing is lost.
pub struct Ranked<S> {
    sources: Box<[Part<S>]>,
    patience: Patience,
    told: Option<EndpointSet>,
}

impl<S: Source + Unpin> Ranked<S> {
    fn merged(&self) -> EndpointSet {
        let mut endpoints = Vec::new();
        let mut offset = 0_u16;
        for part in &self.sources {
            for endpoint in part.known.iter().flatten() {
                let own = endpoint.distance().min(STEP - 1);
                let distance = offset.saturating_add(own);
                endpoints.push(self.shared(endpoint, distance));
            }
            offset = offset.saturating_add(STEP);
        }
        endpoints.into_iter().collect()
    }

    /// The endpoint at this distance: its own value or the one told before, where that is right.
    fn shared(&self, endpoint: &Arc<Endpoint>, distance: u16) -> Arc<Endpoint> {
        if endpoint.distance() == distance {
            return Arc::clone(endpoint);
        }
        let moved = (**endpoint).clone().with_distance(distance);
        let told = self.told.as_ref().and_then(|told| told.get(moved.target()));
        match told {
            Some(told) if **told == moved => Arc::clone(told),
            _ => Arc::new(moved),
        }
    }
}

impl<S: Source + Unpin> Stream for Ranked<S> {
    type Item = EndpointSet;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<EndpointSet>> {
        let this = &mut *self;
        let is_told = this.told.is_some();
        if !parts::is_due(&mut this.sources, &mut this.patience, is_told, cx) {
            return Poll::Pending;
        }
        let set = this.merged();
        parts::tell(&mut this.told, set)
    }
}

impl<S: Source + Unpin> Source for Ranked<S> {
    /// Live if all sources are; otherwise what is known is told with the first that is not.
    fn status(&self) -> Status {
        parts::status(&self.sources, self.told.is_some())
    }
}

impl<S: fmt::Debug> fmt::Debug for Ranked<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list()
            .entries(self.sources.iter().map(|part| &part.source))
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::super::{Feed, FeedSource, feed, fixed};
    use super::*;

    fn set(targets: &[(&str, u16)]) -> EndpointSet {
        targets
            .iter()
            .map(|(target, distance)| {
                Endpoint::new(target.parse().unwrap()).with_distance(*distance)
            })
            .collect()
    }

    fn two() -> (Feed, Feed, Ranked<FeedSource>) {
        let ((near, one), (far, other)) = (feed(), feed());
        (near, far, ranked([one, other]))
    }

    async fn next(source: &mut Ranked<FeedSource>) -> EndpointSet {
        poll_fn(|cx| Pin::new(&mut *source).poll_next(cx))
            .await
            .unwrap()
    }

    async fn is_silent(source: &mut Ranked<FeedSource>, time: Duration) -> bool {
        tokio::time::timeout(time, next(source)).await.is_err()
    }

    fn told(set: &EndpointSet) -> Vec<(String, u16)> {
        set.iter()
            .map(|endpoint| (endpoint.target().to_string(), endpoint.distance()))
            .collect()
    }

    fn at(target: &str, distance: u16) -> (String, u16) {
        (target.to_owned(), distance)
    }

    #[tokio::test(start_paused = true)]
    async fn each_source_is_further_away_than_all_before_it() {
        let (near, far, mut source) = two();
        near.set(set(&[("10.0.0.1:80", 0), ("10.0.0.2:80", 2)]));
        far.set(set(&[("10.0.0.2:80", 0), ("10.0.0.3:80", 1)]));
        assert_eq!(
            told(&next(&mut source).await),
            [
                at("10.0.0.1:80", 0),
                at("10.0.0.2:80", 2),
                at("10.0.0.3:80", 257)
            ]
        );
        near.set(EndpointSet::empty());
        assert_eq!(
            told(&next(&mut source).await),
            [at("10.0.0.2:80", 256), at("10.0.0.3:80", 257)]
        );
        far.set(EndpointSet::empty());
        assert!(next(&mut source).await.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn the_preferred_source_is_waited_for_and_not_for_ever() {
        let (near, far, mut source) = two();
        assert!(is_silent(&mut source, Duration::from_secs(60)).await);
        far.set(set(&[("10.0.0.9:80", 0)]));
        assert!(is_silent(&mut source, Duration::from_millis(900)).await);
        let only = next(&mut source).await;
        assert_eq!(told(&only), [at("10.0.0.9:80", 256)]);
        near.set(set(&[("10.0.0.1:80", 0)]));
        assert_eq!(next(&mut source).await.len(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_is_there_only_when_all_sources_say_so() {
        let (near, far, mut source) = two();
        near.set(EndpointSet::empty());
        assert!(is_silent(&mut source, Duration::from_secs(60)).await);
        assert_eq!(source.status(), Status::Unknown);
        far.set(EndpointSet::empty());
        assert!(next(&mut source).await.is_empty());
        assert_eq!(source.status(), Status::Live);
    }

    #[tokio::test(start_paused = true)]
    async fn the_same_content_is_told_once_and_unchanged_endpoints_are_shared() {
        let (near, far, mut source) = two();
        near.set(set(&[("10.0.0.1:80", 0)]));
        far.set(set(&[("10.0.0.9:80", 0)]));
        let first = next(&mut source).await;
        // The second source tells what the first one has told before.
        far.set(set(&[("10.0.0.1:80", 0), ("10.0.0.9:80", 0)]));
        assert!(is_silent(&mut source, Duration::from_secs(60)).await);
        near.set(set(&[("10.0.0.1:80", 0), ("10.0.0.2:80", 0)]));
        let second = next(&mut source).await;
        assert!(Arc::ptr_eq(
            first.iter().last().unwrap(),
            second.iter().last().unwrap()
        ));
    }

    #[tokio::test(start_paused = true)]
    async fn sources_of_several_kinds_are_boxed() {
        let (_feed, fed) = feed();
        let sources: [Pin<Box<dyn Source>>; 2] = [
            Box::pin(fixed([Endpoint::new("10.0.0.1:80".parse().unwrap())])),
            Box::pin(fed),
        ];
        let mut source = ranked(sources);
        let set = poll_fn(|cx| Pin::new(&mut source).poll_next(cx))
            .await
            .unwrap();
        assert_eq!(set.len(), 1);
    }
}
