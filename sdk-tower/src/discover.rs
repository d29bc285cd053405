//! Endpoint sets as tower's stream of changes.
//!
//! tower's own middleware reads [`Change`]s and not sets: insert this, remove that. A
//! [`Discover`] turns any [`Source`] into such a stream. It can neither fail nor end, because
//! tower's `Balance` is lost for ever after one error of its discovery.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use futures_core::Stream;
use pin_project::pin_project;
use tower::discover::Change;

use crate::endpoint::{Endpoint, EndpointSet, Target};
use crate::source::{Source, Status};

/// The difference between what a source says and what was told before, change by change.
///
/// - An endpoint that stays is not mentioned, so that its connections stay warm.
/// - An endpoint with another weight or priority is inserted again under the same key. tower's
///   `Balance` replaces the service then; whoever wants to keep connections compares targets.
/// - New endpoints come before removals, so that a balancer never runs empty while all
///   instances are replaced.
/// - If the source yields several sets before they are read, only the difference to the newest
///   one is told.
/// - If the source ends in spite of its contract, the last set stays in force.
///
/// It implements [`tower::discover::Discover`]. It starts no task: the source works while this
/// stream is polled and is dropped with it.
///
/// # Cancel safety
///
/// Waiting for the next change can be given up at any time; nothing is lost.
///
/// # Examples
///
/// With tower's own balancer, over services of one's own making:
///
/// ```
/// use std::convert::Infallible;
///
/// use lictor_tower::discover::Discover;
/// use lictor_tower::endpoint::Endpoint;
/// use lictor_tower::source;
/// use tower::balance::p2c::Balance;
/// use tower::load::Constant;
/// use tower::{ServiceExt, service_fn};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
/// let source = source::fixed([Endpoint::new("10.0.0.1:80".parse()?)]);
/// let services = Discover::new(source).map_service(|endpoint| {
///     let answer = format!("hello from {}", endpoint.target());
///     let service = service_fn(move |()| {
///         let answer = answer.clone();
///         async move { Ok::<_, Infallible>(answer) }
///     });
///     Constant::new(service, 1)
/// });
/// let answer = Balance::new(services).oneshot(()).await?;
/// assert_eq!(answer, "hello from 10.0.0.1:80");
/// # Ok(())
/// # }
/// ```
#[pin_project]
pub struct Discover<S> {
    #[pin]
    source: S,
    /// A stream that has ended must not be polled again.
    ended: bool,
    /// What the reader knows once it has taken all of `untold`.
    told: EndpointSet,
    untold: VecDeque<Change<Target, Arc<Endpoint>>>,
}

impl<S: Source> Discover<S> {
    /// Reads changes from a source.
    #[must_use]
    pub fn new(source: S) -> Self {
        Self {
            source,
            ended: false,
            told: EndpointSet::empty(),
            untold: VecDeque::new(),
        }
    }

    /// Turns each endpoint into a service.
    ///
    /// `make` is called once for each endpoint that is new or has changed. It cannot fail:
    /// a service connects when it is first used.
    #[must_use]
    pub fn map_service<F, T>(self, make: F) -> MapService<S, F>
    where
        F: FnMut(Arc<Endpoint>) -> T,
    {
        MapService {
            discover: self,
            make,
        }
    }

    /// How well the source knows the service at the moment.
    pub fn status(&self) -> Status {
        self.source.status()
    }
}

impl<S: Source> Stream for Discover<S> {
    type Item = Result<Change<Target, Arc<Endpoint>>, Infallible>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let mut this = self.project();
        if this.untold.is_empty() && !*this.ended {
            let mut newest = None;
            loop {
                match this.source.as_mut().poll_next(cx) {
                    Poll::Ready(Some(set)) => newest = Some(set),
                    Poll::Ready(None) => {
                        *this.ended = true;
                        break;
                    }
                    Poll::Pending => break,
                }
            }
            if let Some(set) = newest {
                changes(this.told, &set, this.untold);
                *this.told = set;
            }
        }
        match this.untold.pop_front() {
            Some(change) => Poll::Ready(Some(Ok(change))),
            None => Poll::Pending,
        }
    }
}

impl<S: fmt::Debug> fmt::Debug for Discover<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Discover")
            .field("source", &self.source)
            .field("told", &self.told)
            .field("untold", &self.untold.len())
            .finish_non_exhaustive()
    }
}

/// A [`Discover`] whose endpoints are made into services; see [`Discover::map_service`].
#[pin_project]
pub struct MapService<S, F> {
    #[pin]
    discover: Discover<S>,
    make: F,
}

impl<S: Source, F> MapService<S, F> {
    /// How well the source knows the service at the moment.
    pub fn status(&self) -> Status {
        self.discover.status()
    }
}

impl<S, F, T> Stream for MapService<S, F>
where
    S: Source,
    F: FnMut(Arc<Endpoint>) -> T,
{
    type Item = Result<Change<Target, T>, Infallible>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.project();
        let change = match ready!(this.discover.poll_next(cx)) {
            Some(Ok(Change::Insert(target, endpoint))) => {
                Change::Insert(target, (this.make)(endpoint))
            }
            Some(Ok(Change::Remove(target))) => Change::Remove(target),
            Some(Err(never)) => match never {},
            None => return Poll::Ready(None),
        };
        Poll::Ready(Some(Ok(change)))
    }
}

impl<S: fmt::Debug, F> fmt::Debug for MapService<S, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MapService")
            .field("discover", &self.discover)
            .finish_non_exhaustive()
    }
}

/// Appends what leads from one set to the other: insertions first, then removals.
fn changes(
    from: &EndpointSet,
    to: &EndpointSet,
    changes: &mut VecDeque<Change<Target, Arc<Endpoint>>>,
) {
    if from.is_same(to) {
        return;
    }
    for endpoint in to {
        if from.get(endpoint.target()) != Some(endpoint) {
            changes.push_back(Change::Insert(
                endpoint.target().clone(),
                Arc::clone(endpoint),
            ));
        }
    }
    for endpoint in from {
        if to.get(endpoint.target()).is_none() {
            changes.push_back(Change::Remove(endpoint.target().clone()));
        }
    }
}

#[cfg(test)]
mod tests;
