//! Readers: each at its own speed.

use std::fmt;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use futures_core::Stream;
use tokio::runtime::Handle;
use tokio::sync::watch;

use super::engine::{self, Question, State};
use super::kinds::{Asked, Watchable, Watched};
use super::snapshot::{Outage, Snapshot, Status};
use crate::api::{Consistency, Read};
use crate::client::Client;
use crate::error::{Error, ErrorKind, Result};
use crate::proto::diff::{self, Difference};
use crate::task::{StopSignal, Worker};

/// A reader of a live view.
///
/// Read it as a [`Stream`] of [`Snapshot`]s, by [`changed`](Self::changed), or look at
/// [`latest`](Self::latest) whenever needed. A clone is another reader of the same query, which
/// has seen what this one has seen.
///
/// The stream is endless; it only ends when the Tokio runtime that runs the query is gone. Dropping
/// the last reader of a query ends it at once.
pub struct Watch<T> {
    shared: Arc<Shared<T>>,
    state: watch::Receiver<State<T>>,
    /// The version of the content this reader was last given.
    seen: u64,
    waiting: Option<Waiting>,
}

type Waiting = Pin<Box<dyn Future<Output = bool> + Send + Sync>>;

/// What all readers of one query hold; its end is the query's end.
struct Shared<T> {
    state: watch::Receiver<State<T>>,
    /// What is asked, and of which datacenter.
    about: Arc<str>,
    selects: Option<fn(&T) -> bool>,
    _worker: Worker<()>,
}

impl<T: Watched> Watch<T> {
    pub(super) fn open<E: Watchable<Item = T>>(read: Read<E>) -> Result<Self> {
        if read.blocks() {
            return Err(Error::invalid(
                "a read that waits for a change by hand cannot be watched: leave the wait out",
            ));
        }
        let runtime = Handle::try_current().map_err(|_| {
            Error::new(ErrorKind::NoRuntime).context("a watch runs as a task: open it inside one")
        })?;
        let minds_age = !read.says_who_answers();
        let call = if minds_age {
            read.assemble_for(Consistency::Stale)?
        } else {
            read.assemble()?
        };
        let of_leader = read.assemble_uncached(Consistency::Consistent)?;
        let is_other = E::INDEX_IS_ORDERED && of_leader.target.as_str() != call.target.as_str();
        let of_leader = is_other.then_some(of_leader);
        let key = call.target.as_str().to_owned();
        let selects = E::selects(&Asked(&call.target));
        let about = match read.client.datacenter() {
            Some(datacenter) => Arc::from(format!("{key} in {datacenter}")),
            None => Arc::from(&*key),
        };
        let client = read.client.clone();
        // The runtime of an earlier reader may be gone, and the query with it.
        let lives = |shared: &Shared<T>| is_asked(&shared.state);
        let shared = client.shared_slot(&key, lives, || {
            let (sender, state) = watch::channel(State::new());
            let question = Question {
                client: read.client,
                call,
                of_leader,
                minds_age,
            };
            let worker = Worker::spawn(&runtime, |stop| engine::run::<E>(question, sender, stop));
            Ok(Arc::new(Shared {
                state,
                about,
                selects,
                _worker: worker,
            }))
        })?;
        Ok(Self::of(shared))
    }

    /// A watch that another kind of task keeps up to date; equal ones of a client are shared.
    pub(super) fn run_by<F>(
        client: &Client,
        about: &str,
        task: impl FnOnce(watch::Sender<State<T>>) -> F,
    ) -> Result<Self>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let runtime = Handle::try_current().map_err(|_| {
            Error::new(ErrorKind::NoRuntime).context("a watch runs as a task: open it inside one")
        })?;
        let lives = |shared: &Shared<T>| is_asked(&shared.state);
        let shared = client.shared_slot(about, lives, || {
            let (sender, state) = watch::channel(State::new());
            let task = task(sender);
            let worker = Worker::spawn(&runtime, |mut stop| async move {
                tokio::select! {
                    biased;
                    _ = stop.recv() => {}
                    () = task => {}
                }
            });
            Ok(Arc::new(Shared {
                state,
                about: about.into(),
                selects: None,
                _worker: worker,
            }))
        })?;
        Ok(Self::of(shared))
    }

    fn of(shared: Arc<Shared<T>>) -> Self {
        Self {
            state: shared.state.clone(),
            shared,
            seen: 0,
            waiting: None,
        }
    }

    /// What is asked, and of which datacenter.
    pub(super) fn about(&self) -> Arc<str> {
        Arc::clone(&self.shared.about)
    }

    pub(super) fn selects(&self) -> Option<fn(&T) -> bool> {
        self.shared.selects
    }

    /// Another watch, which is told by a task what it makes of this one.
    pub(super) fn seen_through<F>(
        self,
        view: impl FnOnce(watch::Receiver<State<T>>, watch::Sender<State<T>>) -> F,
    ) -> Result<Self>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.seen_with_stop(|from, to, mut stop| {
            let view = view(from, to);
            async move {
                tokio::select! {
                    biased;
                    _ = stop.recv() => {}
                    () = view => {}
                }
            }
        })
    }

    /// The same for a task that has something to do when it is told to end.
    pub(super) fn seen_with_stop<F>(
        self,
        view: impl FnOnce(watch::Receiver<State<T>>, watch::Sender<State<T>>, StopSignal) -> F,
    ) -> Result<Self>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let runtime = Handle::try_current().map_err(|_| {
            Error::new(ErrorKind::NoRuntime).context("a view runs as a task: make it inside one")
        })?;
        let (sender, state) = watch::channel(State::new());
        let from = self.state.clone();
        let (about, selects) = (self.about(), self.selects());
        let worker = Worker::spawn(&runtime, |stop| {
            let view = view(from, sender, stop);
            async move {
                view.await;
                // The query lives for as long as its views.
                drop(self);
            }
        });
        Ok(Self::of(Arc::new(Shared {
            state,
            about,
            selects,
            _worker: worker,
        })))
    }

    /// What is known now; `None` before Consul's first answer.
    ///
    /// Does not count as having seen it: [`changed`](Self::changed) still returns it.
    #[must_use]
    pub fn latest(&self) -> Option<Snapshot<T>> {
        let asked = is_asked(&self.state);
        view(&self.state.borrow(), asked)
    }

    /// Whether the view is up to date, and if not, why.
    #[must_use]
    pub fn status(&self) -> Status {
        let asked = is_asked(&self.state);
        status(&self.state.borrow(), asked)
    }

    /// Waits for a content that this reader has not been given: first the one that is there.
    ///
    /// Contents between two calls are skipped: the newest counts.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Closed`] if the runtime that ran the query is gone. Failures to reach Consul
    /// are no errors here: see [`status`](Self::status).
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost: what this future would have returned, the next call returns.
    pub async fn changed(&mut self) -> Result<Snapshot<T>> {
        loop {
            if let Some(news) = self.unseen() {
                return Ok(news);
            }
            self.state.changed().await.map_err(|_| closed())?;
        }
    }

    /// Waits for the first content, without taking it: [`changed`](Self::changed) still returns it.
    ///
    /// # Errors
    ///
    /// Consul's answer if it refuses the query for a reason that will not pass by itself (a wrong
    /// filter, a missing right, an unknown datacenter) and nothing is known from before;
    /// [`ErrorKind::Closed`] if the runtime is gone. A failure that may pass is waited out: put a
    /// time-out around this where a start must not wait.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost.
    pub async fn ready(&self) -> Result<Snapshot<T>> {
        let mut state = self.state.clone();
        loop {
            {
                let asked = is_asked(&state);
                let now = state.borrow_and_update();
                if let Some(snapshot) = view(&now, asked) {
                    return Ok(snapshot);
                }
                if let Some(error) = now.status.error().filter(|error| !error.is_transient()) {
                    return Err(error.clone());
                }
            }
            state.changed().await.map_err(|_| closed())?;
        }
    }

    /// Waits until the view is [`Status::Live`], and returns what is known then.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Closed`] if the runtime is gone.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost.
    pub async fn live(&self) -> Result<Snapshot<T>> {
        let mut state = self.state.clone();
        loop {
            {
                let asked = is_asked(&state);
                let now = state.borrow_and_update();
                if let (true, Some(snapshot)) = (asked && now.status.is_live(), view(&now, asked)) {
                    return Ok(snapshot);
                }
            }
            state.changed().await.map_err(|_| closed())?;
        }
    }

    /// Waits until the status, or the content, is another than it is now.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Closed`] if the runtime is gone.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost, except that a status that changes and changes back goes unnoticed.
    pub async fn status_changed(&mut self) -> Result<Status> {
        self.state.changed().await.map_err(|_| closed())?;
        Ok(self.state.borrow_and_update().status.clone())
    }

    /// The differences from one content to the next, beginning with everything as added.
    #[must_use]
    pub fn changes(self) -> Changes<T> {
        Changes {
            watch: self,
            last: None,
        }
    }

    /// The newest content, if this reader was not given it yet.
    fn unseen(&mut self) -> Option<Snapshot<T>> {
        let asked = is_asked(&self.state);
        let snapshot = view(&self.state.borrow_and_update(), asked)?;
        if snapshot.version() == self.seen {
            return None;
        }
        self.seen = snapshot.version();
        Some(snapshot)
    }
}

/// Waits until one of them has news, of its content or its status.
pub(crate) async fn any_changed<'a, T: Watched>(
    watches: impl Iterator<Item = &'a mut Watch<T>>,
) -> Result<()> {
    let mut waiting: Vec<_> = watches
        .map(|watch| Box::pin(watch.status_changed()))
        .collect();
    poll_fn(|cx| {
        for one in &mut waiting {
            if let Poll::Ready(news) = one.as_mut().poll(cx) {
                return Poll::Ready(news.map(drop));
            }
        }
        Poll::Pending
    })
    .await
}

/// Whether the task behind a query runs; it only ends before its readers with its runtime.
fn is_asked<T>(state: &watch::Receiver<State<T>>) -> bool {
    state.has_changed().is_ok()
}

fn view<T>(state: &State<T>, asked: bool) -> Option<Snapshot<T>> {
    let content = state.content.as_ref()?;
    Some(Snapshot::new(
        Arc::clone(content),
        status(state, asked),
        state.confirmed_at,
    ))
}

fn status<T>(state: &State<T>, asked: bool) -> Status {
    if asked {
        return state.status.clone();
    }
    // Nobody asks any more: what was known grows old from the last answer on.
    Status::Stale(Outage {
        since: state.confirmed_at,
        error: closed(),
    })
}

fn closed() -> Error {
    Error::new(ErrorKind::Closed).context("the runtime that ran the watch is gone")
}

impl<T: Watched> Stream for Watch<T> {
    type Item = Snapshot<T>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Snapshot<T>>> {
        loop {
            if let Some(news) = self.unseen() {
                self.waiting = None;
                return Poll::Ready(Some(news));
            }
            let this = &mut *self;
            let state = &this.state;
            let waiting = this.waiting.get_or_insert_with(|| {
                // A copy of the receiver has seen what this one has.
                let mut state = state.clone();
                Box::pin(async move { state.changed().await.is_ok() })
            });
            let alive = ready!(waiting.as_mut().poll(cx));
            this.waiting = None;
            if !alive {
                return Poll::Ready(None);
            }
        }
    }
}

impl<T> Clone for Watch<T> {
    fn clone(&self) -> Self {
        Self {
            shared: Arc::clone(&self.shared),
            state: self.state.clone(),
            seen: self.seen,
            waiting: None,
        }
    }
}

impl<T> fmt::Debug for Watch<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state.borrow();
        f.debug_struct("Watch")
            .field("status", &state.status)
            .field(
                "items",
                &state.content.as_ref().map(|content| content.items.len()),
            )
            .field("seen", &self.seen)
            .field("readers", &Arc::strong_count(&self.shared))
            .finish_non_exhaustive()
    }
}

/// A reader of differences: what was added, changed and removed.
///
/// A [`Stream`] of [`Difference`]s, none of them empty. Contents that came while nobody polled are
/// told as one difference. It ends when the runtime is gone.
#[derive(Debug)]
pub struct Changes<T> {
    watch: Watch<T>,
    last: Option<Snapshot<T>>,
}

impl<T: Watched> Changes<T> {
    /// Waits for the next difference.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Closed`] if the runtime that ran the query is gone.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost: what this future would have returned, the next call returns.
    pub async fn next(&mut self) -> Result<Difference<T>> {
        loop {
            let news = self.watch.changed().await?;
            if let Some(difference) = self.since_last(news) {
                return Ok(difference);
            }
        }
    }

    /// The content after the last difference that was told.
    #[must_use]
    pub fn snapshot(&self) -> Option<&Snapshot<T>> {
        self.last.as_ref()
    }

    fn since_last(&mut self, news: Snapshot<T>) -> Option<Difference<T>> {
        let before = self.last.as_ref().map_or(&[][..], Snapshot::items);
        let difference = diff::between(before, news.items(), T::identity);
        self.last = Some(news);
        (!difference.is_empty()).then_some(difference)
    }
}

impl<T: Watched> Stream for Changes<T> {
    type Item = Difference<T>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Difference<T>>> {
        loop {
            let Some(news) = ready!(Pin::new(&mut self.watch).poll_next(cx)) else {
                return Poll::Ready(None);
            };
            if let Some(difference) = self.since_last(news) {
                return Poll::Ready(Some(difference));
            }
        }
    }
}
