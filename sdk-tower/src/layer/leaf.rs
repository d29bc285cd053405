//! The service of one endpoint, from which each request takes a clone.

use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::balance::Backend;
use crate::telemetry::Counts;

/// Holds the service while the endpoint is in rotation.
///
/// The lock is held for one clone. It lets the service be dropped when its endpoint leaves, although
/// handles that are idle still know the endpoint, and it makes do with services that are not `Sync`.
pub(super) struct Leaf<S>(Mutex<Option<S>>, Counts);

impl<S> Leaf<S> {
    pub(super) fn new(service: S) -> Self {
        Self(Mutex::new(Some(service)), Counts::default())
    }

    /// A clone, or none if the endpoint has left.
    pub(super) fn service(&self) -> Option<S>
    where
        S: Clone,
    {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Option<S>> {
        // A clone that panicked has changed nothing.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<S: Send + 'static> Backend for Leaf<S> {
    fn retire(&self) {
        let service = self.lock().take();
        // Dropped without the lock: nobody knows what it does then.
        drop(service);
    }

    fn age(&self) {}

    fn counts(&self) -> Option<&Counts> {
        Some(&self.1)
    }
}
