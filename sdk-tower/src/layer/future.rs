//! The life of one request, from the pick to what its endpoint's service says.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use pin_project::{pin_project, pinned_drop};
use tokio::time::{Instant, Sleep};
use tower_service::Service;

use crate::balance::{Choice, InFlight};
use crate::error::{BoxError, Error, ErrorKind, Result};
use crate::rotation::{Next, Resolving, Rotation, Round};
use crate::telemetry::{Ending, Fate};

use super::classify::Classify;
use super::leaf::Leaf;

/// What the service of an endpoint answers.
///
/// # Cancel safety
///
/// Dropping it gives the request up. Before the service of an endpoint was called, nobody has seen
/// the request; afterwards its future is dropped, and what that means is the service's to say.
#[must_use = "futures do nothing unless polled"]
#[pin_project(PinnedDrop)]
pub struct ResponseFuture<S, Req, C>
where
    S: Service<Req> + Send + 'static,
{
    request: Option<Req>,
    classify: C,
    /// None for a request that has failed before anybody was looked for.
    search: Option<Search<S>>,
    #[pin]
    state: State<S, S::Future>,
}

/// Who was tried, and of whom.
struct Search<S: Send + 'static> {
    rotation: Arc<Rotation<Leaf<S>>>,
    round: Round<Leaf<S>>,
}

#[pin_project(project = StateProj)]
enum State<S: Send + 'static, F> {
    Failed(Option<Error>),
    /// Nothing is known of the service yet.
    Unresolved(Resolving),
    Picked(Option<InFlight<Leaf<S>>>),
    Readying(Readying<S>),
    Calling {
        #[pin]
        future: F,
        flight: Option<InFlight<Leaf<S>>>,
        started: Instant,
    },
    Done,
}

struct Readying<S: Send + 'static> {
    flight: Option<InFlight<Leaf<S>>>,
    service: S,
    /// Set when it turns out that there is something to wait for.
    limit: Option<Pin<Box<Sleep>>>,
}

impl<S, Req, C> ResponseFuture<S, Req, C>
where
    S: Service<Req> + Send + 'static,
{
    pub(super) fn new(
        rotation: Arc<Rotation<Leaf<S>>>,
        request: Req,
        classify: C,
        choice: Choice<Leaf<S>>,
    ) -> Self {
        let mut round = Round::new();
        let state = State::of(round.follow(&rotation, choice));
        Self {
            request: Some(request),
            classify,
            search: Some(Search { rotation, round }),
            state,
        }
    }

    pub(super) fn failed(error: Error, classify: C) -> Self {
        Self {
            request: None,
            classify,
            search: None,
            state: State::Failed(Some(error)),
        }
    }
}

impl<S: Send + 'static, F> State<S, F> {
    fn of(next: Result<Next<Leaf<S>>>) -> Self {
        match next {
            Ok(Next::Try(flight)) => Self::Picked(Some(flight)),
            Ok(Next::Wait(resolving)) => Self::Unresolved(resolving),
            Err(error) => Self::Failed(Some(error)),
        }
    }
}

/// An answer, and the request that it is of, which counts as long as this is kept.
pub(super) type Answer<S, R> = (R, Option<InFlight<Leaf<S>>>);

impl<S, Req, C> ResponseFuture<S, Req, C>
where
    S: Service<Req> + Clone + Send + 'static,
    S::Error: Into<BoxError>,
    C: Classify<S::Response, S::Error>,
{
    pub(super) fn poll_answer(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Answer<S, S::Response>>> {
        let mut this = self.project();
        loop {
            let next = match this.state.as_mut().project() {
                StateProj::Failed(error) => {
                    let error = error.take();
                    if let (Some(error), Some(search)) = (&error, this.search.as_ref()) {
                        let telemetry = search.rotation.telemetry();
                        telemetry.request_ended(Ending::Error(error.kind()));
                    }
                    this.state.set(State::Done);
                    return match error {
                        Some(error) => Poll::Ready(Err(error)),
                        None => Poll::Pending,
                    };
                }
                StateProj::Unresolved(resolving) => {
                    let Some(search) = this.search.as_mut() else {
                        return Poll::Pending;
                    };
                    {
                        let _inside = search.rotation.runtime().enter();
                        ready!(resolving.as_mut().poll(cx));
                    }
                    State::of(search.next())
                }
                StateProj::Picked(flight) => {
                    let (Some(search), Some(flight)) = (this.search.as_mut(), flight.take()) else {
                        return Poll::Pending;
                    };
                    match flight.backend().service() {
                        Some(service) => State::Readying(Readying {
                            flight: Some(flight),
                            service,
                            limit: None,
                        }),
                        None => {
                            search.round.pass(&flight);
                            State::of(search.next())
                        }
                    }
                }
                StateProj::Readying(readying) => {
                    let Some(search) = this.search.as_mut() else {
                        return Poll::Pending;
                    };
                    let ready = match readying.service.poll_ready(cx) {
                        Poll::Ready(ready) => ready.map_err(Into::into),
                        Poll::Pending => Err(ready!(readying.poll_limit(search, cx))),
                    };
                    let (Some(flight), Some(request)) =
                        (readying.flight.take(), this.request.take())
                    else {
                        return Poll::Pending;
                    };
                    match ready {
                        Ok(()) => {
                            flight.connected();
                            State::Calling {
                                started: Instant::now(),
                                future: readying.service.call(request),
                                flight: Some(flight),
                            }
                        }
                        Err(why) => {
                            *this.request = Some(request);
                            search.round.refused(&search.rotation, &flight, why);
                            State::of(search.next())
                        }
                    }
                }
                StateProj::Calling {
                    future,
                    flight,
                    started,
                } => {
                    let outcome = ready!(future.poll(cx));
                    let (flight, started) = (flight.take(), *started);
                    let answer = this.classify.is_answer(outcome.as_ref());
                    if let (Some(flight), Some(search)) = (&flight, this.search.as_ref()) {
                        search.note(flight, started, answer);
                    }
                    this.state.set(State::Done);
                    return Poll::Ready(match outcome {
                        Ok(response) => Ok((response, flight)),
                        Err(error) => Err(failed(flight, error)),
                    });
                }
                StateProj::Done => return Poll::Pending,
            };
            this.state.set(next);
        }
    }
}

fn failed<S: Send + 'static>(
    flight: Option<InFlight<Leaf<S>>>,
    error: impl Into<BoxError>,
) -> Error {
    let failed = Error::new(ErrorKind::Service).after_sending(true);
    match flight {
        Some(flight) => failed.context(flight.target().to_string()),
        None => failed,
    }
    .because(error)
}

impl<S: Send + 'static> Search<S> {
    fn next(&mut self) -> Result<Next<Leaf<S>>> {
        self.round.next(&self.rotation)
    }

    fn note(&self, flight: &InFlight<Leaf<S>>, started: Instant, answer: bool) {
        let now = Instant::now();
        let tick = self.rotation.balance().clock().at(now);
        flight.heard();
        let (fate, ending) = if answer {
            flight.answered(now.saturating_duration_since(started), tick);
            (Fate::Answered, Ending::Answered)
        } else {
            flight.failed(tick);
            (Fate::Failed, Ending::Failed)
        };
        let telemetry = self.rotation.telemetry();
        telemetry.attempt_ended(fate, None);
        telemetry.request_ended(ending);
    }
}

impl<S: Send + 'static> Readying<S> {
    /// Ready when the service has had its time, with the error that says so.
    fn poll_limit(&mut self, search: &Search<S>, cx: &mut Context<'_>) -> Poll<BoxError> {
        let patience = search.rotation.options().patience;
        let limit = self.limit.get_or_insert_with(|| {
            let _inside = search.rotation.runtime().enter();
            Box::pin(tokio::time::sleep(patience))
        });
        limit.as_mut().poll(cx).map(|()| not_ready(patience))
    }
}

fn not_ready(patience: Duration) -> BoxError {
    io::Error::new(
        io::ErrorKind::TimedOut,
        format!("its service was not ready within {patience:?}"),
    )
    .into()
}

impl<S, Req, C> Future for ResponseFuture<S, Req, C>
where
    S: Service<Req> + Clone + Send + 'static,
    S::Error: Into<BoxError>,
    C: Classify<S::Response, S::Error>,
{
    type Output = Result<S::Response>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let answered = ready!(self.poll_answer(cx));
        Poll::Ready(answered.map(|(response, _)| response))
    }
}

#[pinned_drop]
impl<S, Req, C> PinnedDrop for ResponseFuture<S, Req, C>
where
    S: Service<Req> + Send + 'static,
{
    fn drop(self: Pin<&mut Self>) {
        let this = self.project();
        let Some(search) = this.search.as_ref() else {
            return;
        };
        let state = this.state.project();
        if matches!(state, StateProj::Done) {
            return;
        }
        // The caller waits no longer.
        let telemetry = search.rotation.telemetry();
        telemetry.request_ended(Ending::GivenUp);
        if let StateProj::Calling {
            flight: Some(flight),
            started,
            ..
        } = state
        {
            telemetry.attempt_ended(Fate::GivenUp, None);
            let now = Instant::now();
            let waited = now.saturating_duration_since(*started);
            flight.given_up(waited, search.rotation.balance().clock().at(now));
        }
    }
}

impl<S, Req, C> fmt::Debug for ResponseFuture<S, Req, C>
where
    S: Service<Req> + Send + 'static,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.state {
            State::Failed(_) => "ResponseFuture(failed)",
            State::Unresolved(_) => "ResponseFuture(unresolved)",
            State::Picked(_) => "ResponseFuture(picked)",
            State::Readying(_) => "ResponseFuture(readying)",
            State::Calling { .. } => "ResponseFuture(calling)",
            State::Done => "ResponseFuture(done)",
        })
    }
}
