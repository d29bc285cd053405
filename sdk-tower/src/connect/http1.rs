//! One HTTP/1.1 connection.

use std::future::{pending, poll_fn};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use http::Request;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio_util::sync::ReusableBoxFuture;

use crate::task::Runtime;

use super::body::Outgoing;
use super::fence::{Fence, Fenced};
use super::lease::Call;
use super::pool::Shared;
use super::stream::Stream;

/// The sending half of a connection. Dropping it closes the connection once it is idle.
pub(crate) struct Http1 {
    sender: http1::SendRequest<Outgoing>,
    call: Call,
    fence: Fence,
    parking: Arc<Parking>,
    used: bool,
    /// The pool's age when the connection was last given back.
    pub(super) aged: u32,
    /// The pool's turn when the connection was last given back or taken.
    pub(super) turn: u64,
    /// The pool's age at which it takes no new request.
    pub(super) ends: Option<u32>,
}

impl Http1 {
    /// Makes a connection of a socket and starts the task that drives it.
    ///
    /// The task ends when the connection is closed by either side; on ours, when the `Http1` is
    /// dropped and what was sent on it is answered or given up.
    pub(super) async fn start(
        stream: Stream,
        runtime: &Runtime,
        pool: Weak<Shared>,
    ) -> hyper::Result<Box<Self>> {
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        let http1 = Self::of(sender);
        let connection = Fenced::new(connection.with_upgrades(), http1.fence.clone());
        runtime.drive(drive(connection, Arc::clone(&http1.parking), pool));
        Ok(Box::new(http1))
    }

    fn of(sender: http1::SendRequest<Outgoing>) -> Self {
        Self {
            sender,
            call: ReusableBoxFuture::new(pending()),
            fence: Fence::default(),
            parking: Arc::new(Parking(Mutex::new(Place::Free))),
            used: false,
            aged: 0,
            turn: 0,
            ends: None,
        }
    }

    pub(super) fn is_reused(&self) -> bool {
        self.used
    }

    /// It lies idle from now on: whoever takes it finds one that stood before.
    pub(super) fn rest(&mut self) {
        self.used = true;
    }

    pub(super) fn is_ready(&self) -> bool {
        self.sender.is_ready()
    }

    pub(super) fn is_closed(&self) -> bool {
        self.sender.is_closed()
    }

    pub(super) fn send(&mut self, request: Request<Outgoing>) {
        let sender = &mut self.sender;
        let sent = self.fence.send(|| sender.try_send_request(request));
        self.call.set(sent);
    }

    pub(super) fn call(&mut self) -> &mut Call {
        &mut self.call
    }

    /// Gives back a connection whose response has arrived, now or as soon as it is ready.
    ///
    /// The response may be here before hyper is ready for the next request: then the connection
    /// is parked where the task that drives it finds it.
    pub(super) fn release(mut self: Box<Self>, pool: &Shared) {
        self.used = true;
        if self.is_closed() {
            return;
        }
        let parking = Arc::clone(&self.parking);
        // The lock orders this look at the sender against the driver's look into the parking: one
        // of the two sees what the other has done.
        let mut place = parking.lock();
        if self.is_ready() {
            drop(place);
            pool.give(self);
        } else if !matches!(*place, Place::Closed) {
            *place = Place::Parked(self);
        }
    }
}

/// Where a connection waits for hyper to be ready for its next request.
struct Parking(Mutex<Place>);

enum Place {
    Free,
    Parked(Box<Http1>),
    Closed,
}

impl Parking {
    fn lock(&self) -> MutexGuard<'_, Place> {
        // A place is replaced as a whole: it cannot be found half-changed.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take_ready(&self) -> Option<Box<Http1>> {
        let mut place = self.lock();
        match std::mem::replace(&mut *place, Place::Free) {
            Place::Parked(connection) if connection.is_ready() => Some(connection),
            other => {
                *place = other;
                None
            }
        }
    }
}

/// Breaks the circle of a connection that is parked when its task ends.
struct CloseOnDrop(Arc<Parking>);

impl Drop for CloseOnDrop {
    fn drop(&mut self) {
        let parked = std::mem::replace(&mut *self.0.lock(), Place::Closed);
        drop(parked);
    }
}

async fn drive(
    mut connection: Fenced<impl Future<Output = hyper::Result<()>>>,
    parking: Arc<Parking>,
    pool: Weak<Shared>,
) {
    let parking = CloseOnDrop(parking);
    let ended = poll_fn(|cx| {
        let polled = Pin::new(&mut connection).poll(cx);
        if polled.is_pending()
            && let Some(ready) = parking.0.take_ready()
            && let Some(pool) = pool.upgrade()
        {
            pool.give(ready);
        }
        polled
    })
    .await;
    if let Err(error) = ended {
        tracing::debug!(%error, "connection ended");
    }
    // Only when it is gone do all idle ones that belong to it say that they are closed.
    drop(connection);
    if let Some(pool) = pool.upgrade() {
        pool.forget_closed();
    }
}

#[cfg(test)]
mod tests {
    use std::hint::spin_loop;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc;
    use std::task::{Context, Waker};
    use std::time::Duration;

    use tokio::time::Instant;

    use super::*;

    /// Both threads leave this at nearly the same moment.
    fn meet(there: &AtomicUsize, round: usize) {
        there.fetch_add(1, Ordering::SeqCst);
        while there.load(Ordering::SeqCst) < 2 * (round + 1) {
            spin_loop();
        }
    }

    /// Not inside a task, which has to give way after some answers, and sees none before.
    #[test]
    fn a_request_that_is_sent_while_its_connection_ends_comes_back() {
        const ROUNDS: usize = 1_024;
        let runtime = tokio::runtime::Builder::new_current_thread().build();
        let runtime = runtime.unwrap();
        let there = AtomicUsize::new(0);
        let connections = (0..ROUNDS).map(|_| {
            let (near, _) = tokio::io::duplex(64);
            let handshake = http1::handshake(TokioIo::new(near));
            let (sender, connection) = runtime.block_on(handshake).unwrap();
            let http1 = Http1::of(sender);
            let connection = Fenced::new(connection, http1.fence.clone());
            (http1, connection)
        });
        let (hand_over, ending) = mpsc::sync_channel(1);
        let there = &there;
        let lost_in = std::thread::scope(|scope| {
            scope.spawn(move || {
                for (round, connection) in ending.iter().enumerate() {
                    meet(there, round);
                    drop(connection);
                }
            });
            // Dropped when this returns, which ends the other thread.
            let hand_over = hand_over;
            connections
                .enumerate()
                .position(|(round, (mut http1, connection))| {
                    hand_over.send(connection).unwrap();
                    meet(there, round);
                    // It does not always begin at the same point of the other thread's work.
                    (0..round % 256).for_each(|_| spin_loop());
                    http1.send(Request::new(Outgoing::Empty));
                    !is_answered(&mut http1)
                })
        });
        assert_eq!(lost_in, None);
    }

    /// Whether the end of the connection, for which nothing is to be waited, tells the request.
    fn is_answered(http1: &mut Http1) -> bool {
        let mut cx = Context::from_waker(Waker::noop());
        let limit = Instant::now() + Duration::from_secs(5);
        while Pin::new(http1.call()).poll(&mut cx).is_pending() {
            if Instant::now() > limit {
                return false;
            }
            spin_loop();
        }
        true
    }
}
