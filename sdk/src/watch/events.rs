//! User events, one by one.

use std::collections::{HashSet, VecDeque};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use futures_core::Stream;

use super::reader::Watch;
use super::snapshot::Snapshot;
use crate::api::Read;
use crate::api::event::{Event, List};
use crate::error::Result;

impl Read<List> {
    /// Each event that comes from now on, once.
    ///
    /// Those that the agent has heard of before its first answer are not among them. The query on
    /// the wire is shared, as that of any [`Watch`].
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # async fn example(client: lictor::Client) -> lictor::Result<()> {
    /// let mut deploys = client.event().list().name("deploy").follow()?;
    /// deploys.ready().await?; // from here on each one is told
    /// client.event().fire("deploy", "web 1.2.3").await?;
    /// let event = deploys.next().await?;
    /// assert_eq!(event.payload(), b"web 1.2.3");
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// As those of [`Read::watch`].
    pub fn follow(self) -> Result<Occurrences> {
        Ok(Occurrences {
            watch: self.watch()?,
            known: None,
            ready: VecDeque::new(),
        })
    }
}

/// User events as they come, each once.
///
/// A [`Stream`] that ends when the Tokio runtime is gone. An agent keeps its last 256 events: of more
/// that come between two polls, or during an outage, the oldest are missed, and so are those that
/// never reached it. A burst is told in the order in which the agent heard of it.
#[derive(Debug)]
pub struct Occurrences {
    watch: Watch<Event>,
    /// The IDs that need not be told; `None` before the first answer.
    known: Option<Known>,
    ready: VecDeque<Arc<Event>>,
}

/// What an agent keeps, and what it kept before it was restarted.
const REMEMBERED: usize = 1024;

#[derive(Debug, Default)]
struct Known {
    ids: HashSet<Box<str>>,
    order: VecDeque<Box<str>>,
}

impl Known {
    /// Whether the event is a new one.
    fn note(&mut self, event: &Event) -> bool {
        if !self.ids.insert(event.id().into()) {
            return false;
        }
        self.order.push_back(event.id().into());
        if self.order.len() > REMEMBERED
            && let Some(oldest) = self.order.pop_front()
        {
            self.ids.remove(&oldest);
        }
        true
    }
}

impl Occurrences {
    /// Waits for the next event.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Closed`](crate::ErrorKind::Closed) if the runtime that ran the query is gone.
    /// Failures to reach Consul are no errors here.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost: what this future would have returned, the next call returns.
    pub async fn next(&mut self) -> Result<Arc<Event>> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Ok(event);
            }
            let news = self.watch.changed().await?;
            self.take_in(&news);
        }
    }

    /// Waits until the events that are there are known, so that all that are fired from then on are
    /// told.
    ///
    /// # Errors
    ///
    /// As those of [`Watch::ready`].
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost.
    pub async fn ready(&mut self) -> Result<()> {
        if self.known.is_none() {
            self.watch.ready().await?;
            let news = self.watch.changed().await?;
            self.take_in(&news);
        }
        Ok(())
    }

    fn take_in(&mut self, news: &Snapshot<Event>) {
        let is_first = self.known.is_none();
        let known = self.known.get_or_insert_default();
        for event in news.iter() {
            if known.note(event) && !is_first {
                self.ready.push_back(Arc::clone(event));
            }
        }
    }
}

impl Stream for Occurrences {
    type Item = Arc<Event>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Arc<Event>>> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Poll::Ready(Some(event));
            }
            let Some(news) = ready!(Pin::new(&mut self.watch).poll_next(cx)) else {
                return Poll::Ready(None);
            };
            self.take_in(&news);
        }
    }
}
