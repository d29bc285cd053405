//! The grip of a guard: what is held, by what, and how it is let go.

use std::sync::Arc;

use super::attempt::Released;
use super::held::{Held, Hold};
use super::lease::{Lease, Tenure};
use super::pursuit::Order;
use super::state::{LossCause, Lost};
use crate::error::{Error, ErrorKind, Result};

/// What every guard is made of. Dropping it lets go in the background.
pub(super) struct Grip {
    pub(super) held: Held,
    pub(super) lease: Lease,
    tenure: Arc<Tenure>,
    /// Whether the lease is the guard's own, and ends with it.
    owned: bool,
    released: bool,
}

impl Grip {
    pub(super) const fn new(
        hold: Arc<Hold>,
        tenure: Arc<Tenure>,
        lease: Lease,
        owned: bool,
    ) -> Self {
        Self {
            held: Held::new(hold),
            lease,
            tenure,
            owned,
            released: false,
        }
    }

    /// Lets go, and ends the session if the lease is the guard's own.
    ///
    /// Once polled, it goes on in the background even if the future is dropped.
    pub(super) async fn release(mut self) -> Result<Released> {
        self.released = true;
        self.held.hold.end(Lost::new(LossCause::Released));
        let released = match self.tenure.release(&self.held.hold).await {
            Some(released) => released,
            None => match self.held.hold.check() {
                Err(lost) if lost.cause() != LossCause::Ended => Ok(Released::WasLost),
                _ => Err(Error::new(ErrorKind::Closed)
                    .context("the task that keeps the lease has ended")),
            },
        };
        if self.owned {
            // What was held is free by now: who waits for it does not wait for this.
            let ended = self.lease.close().await;
            if released.is_ok() {
                ended?;
            }
        }
        released
    }
}

impl Drop for Grip {
    /// Stops believing, and has the keeper give up what is held.
    fn drop(&mut self) {
        if !self.released {
            let hold = &self.held.hold;
            hold.end(Lost::new(LossCause::Released));
            self.tenure.order(Order::Release(Arc::clone(hold)));
        }
    }
}
