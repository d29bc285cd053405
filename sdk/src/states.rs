//! The states of something long-lived, as a stream.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures_core::Stream;
use tokio::sync::watch;

/// The present state of something and all that follow, as a stream that ends with it.
///
/// A slow reader misses states in between, but never the last one. Starts no task.
#[must_use = "a stream does nothing until it is read"]
pub struct States<T> {
    next: Next<T>,
}

type Next<T> = Pin<Box<dyn Future<Output = Option<(T, watch::Receiver<T>)>> + Send + Sync>>;

impl<T: Clone + Send + Sync + 'static> States<T> {
    pub(crate) fn new(mut receiver: watch::Receiver<T>) -> Self {
        receiver.mark_changed();
        Self {
            next: Box::pin(next(receiver)),
        }
    }

    /// The next state, first the present one; `None` after the last.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost: the state is there at the next call.
    pub async fn next(&mut self) -> Option<T> {
        std::future::poll_fn(|cx| Pin::new(&mut *self).poll_next(cx)).await
    }
}

async fn next<T: Clone + Send + Sync>(
    mut receiver: watch::Receiver<T>,
) -> Option<(T, watch::Receiver<T>)> {
    receiver.changed().await.ok()?;
    let state = receiver.borrow_and_update().clone();
    Some((state, receiver))
}

impl<T: Clone + Send + Sync + 'static> Stream for States<T> {
    type Item = T;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<T>> {
        match self.next.as_mut().poll(cx) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(None) => {
                self.next = Box::pin(std::future::ready(None));
                Poll::Ready(None)
            }
            Poll::Ready(Some((state, receiver))) => {
                self.next = Box::pin(next(receiver));
                Poll::Ready(Some(state))
            }
        }
    }
}

impl<T> fmt::Debug for States<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("States").finish_non_exhaustive()
    }
}
