//! What is open to an endpoint, counted from the attempt to connect until the socket is closed.

use std::sync::Weak;

use super::pool::Shared;

/// One connection's part of what may be open; dropping it lets the next attempt begin.
///
/// It is dropped with the socket, and never under the pool's lock.
pub(super) struct Slot(Weak<Shared>);

impl Slot {
    pub(super) fn new(pool: Weak<Shared>) -> Self {
        Self(pool)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if let Some(pool) = self.0.upgrade() {
            pool.freed();
        }
    }
}
