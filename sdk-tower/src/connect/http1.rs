//! One HTTP/1.1 connection.

use std::future::{pending, poll_fn};
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use http::Request;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio_util::sync::ReusableBoxFuture;

use crate::task::Runtime;

use super::body::Outgoing;
use super::lease::Call;
use super::pool::Shared;
use super::stream::Stream;

/// The sending half of a connection. Dropping it closes the connection once it is idle.
pub(crate) struct Http1 {
    sender: http1::SendRequest<Outgoing>,
    call: Call,
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
        let parking = Arc::new(Parking(Mutex::new(Place::Free)));
        runtime.drive(drive(connection, Arc::clone(&parking), pool));
        Ok(Box::new(Self {
            sender,
            call: ReusableBoxFuture::new(pending()),
            parking,
            used: false,
            aged: 0,
            turn: 0,
            ends: None,
        }))
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
        self.call.set(self.sender.try_send_request(request));
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
    connection: http1::Connection<TokioIo<Stream>, Outgoing>,
    parking: Arc<Parking>,
    pool: Weak<Shared>,
) {
    let mut connection = pin!(connection.with_upgrades());
    let parking = CloseOnDrop(parking);
    let ended = poll_fn(|cx| {
        let polled = Pin::as_mut(&mut connection).poll(cx);
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
    if let Some(pool) = pool.upgrade() {
        pool.forget_closed();
    }
}
