//! One HTTP/1.1 connection.

use std::future::{pending, poll_fn};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use http::Request;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::time::{Sleep, sleep};
use tokio_util::sync::ReusableBoxFuture;

use crate::task::Runtime;

use super::body::Outgoing;
use super::fence::{Fence, Fenced};
use super::lease::Call;
use super::pool::Shared;
use super::stream::Stream;

/// How long a request may go on once its answer is whole, before its connection is closed.
///
/// Most end with their answer, or a moment later: they keep their connection. One that goes on might
/// never end, and would keep its socket and its place for as long. HTTP/1.1 knows no other way to
/// give it up than to close the connection, which is what a server that has seen enough expects
/// (RFC 9112, 9.5). Go's client waits as long.
const GRACE: Duration = Duration::from_millis(50);

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
            parking: Arc::default(),
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
        let mut parked = parking.lock();
        if self.is_ready() {
            drop(parked);
            pool.give(self);
        } else if !matches!(parked.place, Place::Closed) {
            parked.place = Place::Parked(self);
            let driver = parked.driver.take();
            drop(parked);
            // The driver may have had its last reason to look here: a request that never ends gives
            // none.
            if let Some(driver) = driver {
                driver.wake();
            }
        }
    }
}

/// Where a connection waits for hyper to be ready for its next request.
#[derive(Default)]
struct Parking(Mutex<Parked>);

#[derive(Default)]
struct Parked {
    place: Place,
    /// Who is to be told of a connection that is parked.
    driver: Option<Waker>,
}

#[derive(Default)]
enum Place {
    #[default]
    Free,
    Parked(Box<Http1>),
    Closed,
}

/// What the driver finds.
enum Found {
    Nothing,
    Ready(Box<Http1>),
    /// Its answer is whole, its request is not.
    Waiting,
}

impl Parking {
    fn lock(&self) -> MutexGuard<'_, Parked> {
        // A place is replaced as a whole: it cannot be found half-changed.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks, and leaves word whom to wake.
    fn look(&self, cx: &Context<'_>) -> Found {
        let mut parked = self.lock();
        match &mut parked.driver {
            Some(driver) => driver.clone_from(cx.waker()),
            none => *none = Some(cx.waker().clone()),
        }
        match std::mem::take(&mut parked.place) {
            Place::Parked(connection) if connection.is_ready() => Found::Ready(connection),
            Place::Free => Found::Nothing,
            other => {
                parked.place = other;
                Found::Waiting
            }
        }
    }
}

/// Breaks the circle of a connection that is parked when its task ends.
struct CloseOnDrop(Arc<Parking>);

impl Drop for CloseOnDrop {
    fn drop(&mut self) {
        let closed = Parked {
            place: Place::Closed,
            driver: None,
        };
        let parked = std::mem::replace(&mut *self.0.lock(), closed);
        drop(parked);
    }
}

async fn drive(
    mut connection: Fenced<impl Future<Output = hyper::Result<()>>>,
    parking: Arc<Parking>,
    pool: Weak<Shared>,
) {
    let parking = CloseOnDrop(parking);
    let mut grace = None::<Pin<Box<Sleep>>>;
    let ended = poll_fn(|cx| {
        let polled = Pin::new(&mut connection).poll(cx);
        if polled.is_ready() {
            return polled;
        }
        match parking.0.look(cx) {
            Found::Nothing => {}
            Found::Ready(ready) => {
                grace = None;
                if let Some(pool) = pool.upgrade() {
                    pool.give(ready);
                }
            }
            Found::Waiting => {
                let grace = grace.get_or_insert_with(|| Box::pin(sleep(GRACE)));
                if grace.as_mut().poll(cx).is_ready() {
                    tracing::debug!("the answer is whole and the request is not: closing");
                    return Poll::Ready(Ok(()));
                }
            }
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
