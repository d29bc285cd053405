//! Several sources as one: whoever one of them tells is there.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_core::Stream;

use super::parts::{self, Part, Patience};
use super::{Source, Status};
use crate::endpoint::{Endpoint, EndpointSet};

/// The longest time that can be waited for sources.
const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);

/// Merges sources that each know a part of the instances, without an order of preference.
///
/// For a service that is registered under two names, one that lives in Consul and in Kubernetes at
/// the same time, or a few instances known by hand beside those of a registry.
///
/// - Whoever one of the sources tells is there. An endpoint that several of them tell, with one
///   address and port, is there once, with the weight, priority and distance that the first of
///   them gives it.
/// - A source that says that nobody is there takes its own endpoints away and no others. Each keeps
///   what it told last while it cannot be asked, as ever.
/// - A source that has not answered yet does not keep the others from use; see
///   [`wait`](Merged::wait) for when it should.
/// - Nobody is there when all sources say so. While one of them is still unknown, that is unknown,
///   too.
///
/// For datacenters see [`ranked`](super::ranked()), and for two ways to the same registry
/// [`fallback`](super::fallback()). Sources of several kinds are boxed: `Pin<Box<dyn Source>>` is
/// a source.
///
/// # Examples
///
/// ```no_run
/// use lictor_tower::source::{self, HealthSource};
///
/// # fn example(client: lictor::Client) -> lictor::Result<()> {
/// let old = client.health().service("web").watch()?;
/// let new = client.health().service("storefront").watch()?;
/// let source = source::merged([old, new].map(HealthSource::new));
/// # drop(source);
/// # Ok(())
/// # }
/// ```
pub fn merged<S: Source + Unpin>(sources: impl IntoIterator<Item = S>) -> Merged<S> {
    Merged {
        sources: sources.into_iter().map(Part::new).collect(),
        patience: Patience::Whole(Duration::ZERO),
        told: None,
    }
}

/// Several sources as one; see [`merged`].
///
/// It starts no task: the sources work while it is polled and are dropped with it. With a time to
/// [`wait`](Self::wait) it has to be polled inside a Tokio runtime.
///
/// # Cancel safety
///
/// Waiting for the next item can be given up at any time; nothing is lost.
pub struct Merged<S> {
    sources: Box<[Part<S>]>,
    patience: Patience,
    told: Option<EndpointSet>,
}

impl<S> Merged<S> {
    /// Sets for how long the first set waits for sources that have not answered yet.
    ///
    /// The time begins when one of them has told an endpoint. It keeps the first requests from
    /// falling on a part of the instances. Up to one day, longer counts as one day. Default 0:
    /// whoever is known is used.
    #[must_use]
    pub fn wait(mut self, time: Duration) -> Self {
        self.patience = Patience::Whole(time.min(LONGEST));
        self
    }

    /// All endpoints, each as the first source has it that tells it.
    fn union(&self) -> EndpointSet {
        let mut sets: Vec<&EndpointSet> = Vec::with_capacity(self.sources.len());
        let mut endpoints: Vec<Arc<Endpoint>> = Vec::new();
        for set in self.sources.iter().filter_map(|part| part.known.as_ref()) {
            let is_new = |endpoint: &&Arc<Endpoint>| {
                let target = endpoint.target();
                sets.iter().all(|before| before.get(target).is_none())
            };
            endpoints.extend(set.iter().filter(is_new).map(Arc::clone));
            sets.push(set);
        }
        endpoints.into_iter().collect()
    }
}

impl<S: Source + Unpin> Stream for Merged<S> {
    type Item = EndpointSet;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<EndpointSet>> {
        let this = &mut *self;
        let is_told = this.told.is_some();
        if !parts::is_due(&mut this.sources, &mut this.patience, is_told, cx) {
            return Poll::Pending;
        }
        let set = this.union();
        parts::tell(&mut this.told, set)
    }
}

impl<S: Source + Unpin> Source for Merged<S> {
    /// Live if all sources are that have answered; otherwise what is known is told with the first
    /// that is not.
    fn status(&self) -> Status {
        parts::status(&self.sources, self.told.is_some())
    }
}

impl<S: fmt::Debug> fmt::Debug for Merged<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list()
            .entries(self.sources.iter().map(|part| &part.source))
            .finish()
    }
}

#[cfg(test)]
mod tests;
