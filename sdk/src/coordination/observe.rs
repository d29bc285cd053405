//! Who leads, for those who do not campaign.

use std::fmt;
use std::marker::PhantomData;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures_core::Stream;
use serde::de::DeserializeOwned;
use tokio::time::Instant;

use super::election::Election;
use crate::api::kv::Pair;
use crate::error::{Error, ErrorKind, Result};
use crate::ident::SessionId;
use crate::watch::{Status, Watch};

impl Election {
    /// Who leads, now and after every change, without campaigning.
    ///
    /// `T` is what leaders give as their [value](Self::candidate); `()` where they give none.
    /// Needs no right but to read the key. It is a reader of the [watch](crate::watch) of the
    /// key: all observers of one client share one query.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Invalid`] for a key that cannot be; [`ErrorKind::NoRuntime`] outside of a Tokio
    /// runtime.
    pub fn observe<T: DeserializeOwned>(&self) -> Result<Observer<T>> {
        Ok(Observer {
            watch: self.client.kv().get(self.key.clone()).watch()?,
            opened: Instant::now(),
            told: None,
            waiting: None,
            value: PhantomData,
        })
    }
}

/// A reader of who leads.
///
/// Read it as a [`Stream`], by [`next`](Self::next), or look at [`current`](Self::current)
/// whenever needed. The stream is endless; it only ends when the Tokio runtime that runs the query
/// is gone. A slow reader misses what was in between, but never the newest.
///
/// An outage is told as [`LeaderView::Unknown`]: at once where connections break, and within 75 s
/// where answers do not come, which is the deadline of a [query that waits](crate::watch::WAIT).
///
/// What it tells is as of Consul's last answer, from whichever server the agent asked: a leader
/// that is told of may have stopped a moment before. It is for finding the leader, not for deciding
/// who is.
///
/// # Tasks and drop
///
/// The query runs as one task for all its readers, and ends when the last of them is dropped.
#[must_use = "a stream does nothing until it is read"]
pub struct Observer<T> {
    watch: Watch<Pair>,
    opened: Instant,
    told: Option<Told>,
    waiting: Option<Waiting>,
    value: PhantomData<fn() -> T>,
}

type Waiting = Pin<Box<dyn Future<Output = Option<Watch<Pair>>> + Send + Sync>>;

/// What makes one view another than the last.
#[derive(Debug, Eq, PartialEq)]
enum Told {
    Leader(SessionId, u64),
    Nobody,
    Unknown,
}

/// Who leads.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum LeaderView<T> {
    /// This one.
    Leader(Leader<T>),
    /// Nobody.
    Nobody,
    /// It cannot be told: Consul does not answer, or not yet.
    Unknown {
        /// Since when, on the process's own clock.
        #[expect(
            clippy::disallowed_types,
            reason = "what is told to users is of the standard library"
        )]
        since: std::time::Instant,
        /// Who led before, if somebody did.
        last: Option<Leader<T>>,
        /// What the last attempt failed with.
        error: Option<Error>,
    },
}

/// A leader, as observers see it.
#[derive(Clone, Debug)]
pub struct Leader<T> {
    session: SessionId,
    index: u64,
    value: Result<T>,
}

impl<T: DeserializeOwned> Observer<T> {
    /// Who leads, as far as is known now.
    #[must_use]
    pub fn current(&self) -> LeaderView<T> {
        let latest = self.watch.latest();
        let status = match &latest {
            Some(snapshot) => snapshot.status().clone(),
            None => match self.watch.status() {
                // The first answer came between the two looks.
                Status::Live => Status::Connecting { error: None },
                other => other,
            },
        };
        let holder = latest.iter().flat_map(|snapshot| snapshot.items());
        let leader = holder.filter_map(|pair| Leader::of(pair)).next();
        match (status, leader) {
            (Status::Live | Status::Suspect(_), Some(leader)) => LeaderView::Leader(leader),
            (Status::Live | Status::Suspect(_), None) => LeaderView::Nobody,
            (Status::Connecting { error }, last) => LeaderView::Unknown {
                since: self.opened.into_std(),
                last,
                error,
            },
            (Status::Stale(outage), last) => {
                let now = Instant::now();
                let since = now.checked_sub(outage.lasts()).unwrap_or(now);
                LeaderView::Unknown {
                    since: since.into_std(),
                    last,
                    error: Some(outage.error().clone()),
                }
            }
        }
    }

    /// The next view, first the present one; `None` after the last.
    ///
    /// A new view is another leader, another value of the same one, nobody, or that it cannot be
    /// told. Before Consul's first answer, nothing is told.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost: what this future would have returned, the next call returns.
    pub async fn next(&mut self) -> Option<LeaderView<T>> {
        std::future::poll_fn(|cx| Pin::new(&mut *self).poll_next(cx)).await
    }
}

impl<T: DeserializeOwned> Leader<T> {
    fn of(pair: &Pair) -> Option<Self> {
        let session = pair.session()?.clone();
        let value = serde_json::from_slice(pair.value()).map_err(|err| {
            Error::new(ErrorKind::Value)
                .context(format!("the leader's value in {}", pair.key()))
                .caused_by(err)
        });
        Some(Self {
            session,
            index: pair.modify_index(),
            value,
        })
    }
}

impl<T> Leader<T> {
    /// The session that leads.
    #[must_use]
    pub const fn session(&self) -> &SessionId {
        &self.session
    }

    /// Consul's index of when it won or last published: larger is newer.
    #[must_use]
    pub const fn index(&self) -> u64 {
        self.index
    }

    /// The leader's value.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Value`] if what stands in the key is no JSON of a `T`.
    pub const fn value(&self) -> Result<&T, &Error> {
        self.value.as_ref()
    }

    /// The leader's value, by itself.
    ///
    /// # Errors
    ///
    /// As [`value`](Self::value).
    pub fn into_value(self) -> Result<T> {
        self.value
    }
}

impl<T> LeaderView<T> {
    /// The leader, if one is known to lead.
    #[must_use]
    pub const fn leader(&self) -> Option<&Leader<T>> {
        match self {
            Self::Leader(leader) => Some(leader),
            Self::Nobody | Self::Unknown { .. } => None,
        }
    }

    fn told(&self) -> Told {
        match self {
            Self::Leader(leader) => Told::Leader(leader.session.clone(), leader.index),
            Self::Nobody => Told::Nobody,
            Self::Unknown { .. } => Told::Unknown,
        }
    }
}

impl<T: DeserializeOwned> Stream for Observer<T> {
    type Item = LeaderView<T>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<LeaderView<T>>> {
        let this = &mut *self;
        loop {
            let view = this.current();
            let told = view.told();
            let asking = matches!(&view, LeaderView::Unknown { error: None, .. });
            if !asking && this.told.as_ref() != Some(&told) {
                this.told = Some(told);
                return Poll::Ready(Some(view));
            }
            let watch = &this.watch;
            let waiting = this.waiting.get_or_insert_with(|| {
                // A copy of the reader has seen what this one has.
                let mut watch = watch.clone();
                Box::pin(async move { watch.status_changed().await.is_ok().then_some(watch) })
            });
            let Some(watch) = ready!(waiting.as_mut().poll(cx)) else {
                this.waiting = Some(Box::pin(std::future::ready(None)));
                return Poll::Ready(None);
            };
            this.watch = watch;
            this.waiting = None;
        }
    }
}

impl<T> fmt::Debug for Observer<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Observer")
            .field("watch", &self.watch)
            .field("told", &self.told)
            .finish_non_exhaustive()
    }
}
