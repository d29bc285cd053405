//! What keeps a request from being handed to a connection that is ending.

use std::pin::Pin;
use std::sync::{Arc, PoisonError, RwLock};
use std::task::{Context, Poll};

/// Orders the sending of a request and the end of the connection that is to carry it.
///
/// hyper hands a request to the task of its connection through a channel of tokio. What is pushed
/// into such a channel while the receiver is being dropped on another thread is neither received nor
/// dropped, but lies there for as long as there is a sender. The sender is in the hands of the very
/// request that waits for an answer: it would wait for ever. So the two exclude each other: what was
/// sent before the end comes back with it, and what is sent after it is told so at once.
///
/// A lock, though this is the way of every request: those who send share it, which costs one atomic
/// operation at either end, and the only one who excludes them comes once, at the end of the
/// connection. Who ends it has to wait until the last push is through, which is what any other way
/// would have to wait for as well, by spinning.
#[derive(Clone, Debug, Default)]
pub(super) struct Fence(Arc<RwLock<()>>);

impl Fence {
    /// Sends; others may do so at the same time.
    pub(super) fn send<T>(&self, send: impl FnOnce() -> T) -> T {
        // There is nothing behind the lock that a panic could have left half-changed.
        let _open = self.0.read().unwrap_or_else(PoisonError::into_inner);
        send()
    }
}

/// The driving half of a connection, which is dropped while nobody sends.
pub(super) struct Fenced<C> {
    /// Taken by the drop alone.
    connection: Option<Pin<Box<C>>>,
    fence: Fence,
}

impl<C> Fenced<C> {
    pub(super) fn new(connection: C, fence: Fence) -> Self {
        Self {
            connection: Some(Box::pin(connection)),
            fence,
        }
    }
}

impl<C: Future> Future for Fenced<C> {
    type Output = C::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<C::Output> {
        match &mut self.connection {
            Some(connection) => connection.as_mut().poll(cx),
            None => Poll::Pending,
        }
    }
}

impl<C> Drop for Fenced<C> {
    fn drop(&mut self) {
        let _closed = self.fence.0.write().unwrap_or_else(PoisonError::into_inner);
        drop(self.connection.take());
    }
}
