//! Who may try for a key on behalf of one session.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use crate::ident::Key;

/// The keys that somebody of this process holds, or tries to take, by one session.
///
/// Consul lets a session take a key that it holds already. Two tasks that share a lease must not
/// both be told that they hold it, so they are kept apart here.
#[derive(Debug)]
pub(super) struct Claims {
    taken: Mutex<BTreeSet<Key>>,
    returned: watch::Sender<u64>,
}

impl Claims {
    pub(super) fn new() -> Self {
        Self {
            taken: Mutex::default(),
            returned: watch::channel(0).0,
        }
    }

    /// Claims all of these keys, or none.
    pub(super) fn try_claim(self: &Arc<Self>, keys: &[Key]) -> Option<Claim> {
        let mut taken = self.taken();
        if keys.iter().any(|key| taken.contains(key)) {
            return None;
        }
        taken.extend(keys.iter().cloned());
        Some(Claim {
            claims: Arc::clone(self),
            keys: keys.to_vec(),
        })
    }

    /// Waits until all of these keys can be claimed.
    ///
    /// Cancel safe.
    pub(super) async fn claim(self: &Arc<Self>, keys: &[Key]) -> Claim {
        let mut returned = self.returned.subscribe();
        loop {
            returned.mark_unchanged();
            if let Some(claim) = self.try_claim(keys) {
                return claim;
            }
            // The sender stands in `self`.
            returned.changed().await.ok();
        }
    }

    fn taken(&self) -> MutexGuard<'_, BTreeSet<Key>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The right to try for some keys; it goes back when it is dropped.
pub(super) struct Claim {
    claims: Arc<Claims>,
    keys: Vec<Key>,
}

impl Drop for Claim {
    fn drop(&mut self) {
        let mut taken = self.claims.taken();
        for key in &self.keys {
            taken.remove(key);
        }
        drop(taken);
        self.claims.returned.send_modify(|count| *count += 1);
    }
}

impl fmt::Debug for Claim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Claim").field(&self.keys).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(names: &[&str]) -> Vec<Key> {
        names.iter().map(|name| Key::new(*name).unwrap()).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn one_of_two_that_overlap_waits_for_the_other() {
        let claims = Arc::new(Claims::new());
        let first = claims.try_claim(&keys(&["a", "b"])).unwrap();
        assert!(claims.try_claim(&keys(&["b", "c"])).is_none());
        // Nothing of the refused one was taken.
        drop(claims.try_claim(&keys(&["c"])).unwrap());
        let wanted = keys(&["b", "c"]);
        let mut waiting = std::pin::pin!(claims.claim(&wanted));
        let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
        assert!(waiting.as_mut().poll(&mut cx).is_pending());
        drop(first);
        drop(waiting.await);
        assert!(claims.try_claim(&keys(&["a", "b", "c"])).is_some());
    }
}
