//! What is open to an endpoint, counted from the attempt to connect until the socket is closed.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use crate::endpoint::Target;

use super::pool::Shared;

/// The sockets of one address, of all pools that have followed one another there.
///
/// An endpoint that leaves and comes back gets a new pool while the requests on the old one finish.
/// Their connections count for what the new one may open: to the endpoint they are all the same.
#[derive(Debug, Default)]
pub(super) struct Sockets {
    open: AtomicUsize,
    /// The pool that is told when there is room.
    last: Mutex<Weak<Shared>>,
}

impl Sockets {
    /// From now on this pool opens connections. The one before, which has retired, opens none.
    pub(super) fn belong_to(&self, pool: &Arc<Shared>) {
        *lock(&self.last) = Arc::downgrade(pool);
    }

    pub(super) fn open(&self) -> usize {
        self.open.load(Ordering::Acquire)
    }

    /// One more will be open; a [`Slot`] is to be made for it.
    pub(super) fn begin(&self) {
        self.open.fetch_add(1, Ordering::AcqRel);
    }
}

/// The addresses that connections are counted of, by the channel as a whole.
#[derive(Clone, Debug, Default)]
pub(crate) struct Addresses(Arc<Mutex<HashMap<Target, Weak<Sockets>>>>);

impl Addresses {
    /// The sockets of this address, with those that are open still.
    pub(super) fn sockets(&self, target: &Target) -> Arc<Sockets> {
        let mut known = lock(&self.0);
        if let Some(sockets) = known.get(target).and_then(Weak::upgrade) {
            return sockets;
        }
        // Those that have gone are let go of at powers of two: at most every second is one of them.
        if known.len().is_power_of_two() {
            known.retain(|_, sockets| sockets.strong_count() > 0);
        }
        let sockets = Arc::default();
        known.insert(target.clone(), Arc::downgrade(&sockets));
        sockets
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing under these locks can be found half-changed.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One connection's part of what may be open; dropping it lets the next attempt begin.
///
/// It is dropped with the socket, and never under the pool's lock.
pub(super) struct Slot {
    pool: Weak<Shared>,
    sockets: Arc<Sockets>,
}

impl Slot {
    /// One that is counted already.
    pub(super) fn new(pool: Weak<Shared>, sockets: Arc<Sockets>) -> Self {
        Self { pool, sockets }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.sockets.open.fetch_sub(1, Ordering::AcqRel);
        if let Some(pool) = self.pool.upgrade() {
            pool.closed();
        }
        let last = lock(&self.sockets.last).upgrade();
        if let Some(pool) = last {
            pool.freed();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_known_for_as_long_as_somebody_counts_on_it() {
        let addresses = Addresses::default();
        let target = |port: u16| format!("127.0.0.1:{port}").parse::<Target>().unwrap();
        let kept = addresses.sockets(&target(1));
        kept.begin();
        for port in 2..1_000 {
            assert_eq!(addresses.sockets(&target(port)).open(), 0);
        }
        assert!(Arc::ptr_eq(&kept, &addresses.sockets(&target(1))));
        assert!(lock(&addresses.0).len() <= 4);
    }
}
