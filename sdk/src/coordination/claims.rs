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
            doubt: None,
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
    doubt: Option<Doubt>,
}

/// Takes over a claim that nobody pursues any more.
type Doubt = Box<dyn FnOnce(Claim) + Send + Sync>;

impl Claim {
    /// Notes that a try may have taken the keys, or may do so late, without anybody knowing.
    ///
    /// Unless that is [settled](Self::settle) before, `look` gets the claim when it is dropped,
    /// wherever that is.
    pub(super) fn doubt(&mut self, look: impl FnOnce(Self) + Send + Sync + 'static) {
        self.doubt = Some(Box::new(look));
    }

    /// Nothing is in doubt any more; says whether something was.
    pub(super) fn settle(&mut self) -> bool {
        self.doubt.take().is_some()
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if let Some(look) = self.doubt.take() {
            look(Self {
                claims: Arc::clone(&self.claims),
                keys: std::mem::take(&mut self.keys),
                doubt: None,
            });
            return;
        }
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

    #[test]
    fn a_claim_in_doubt_goes_back_when_somebody_has_looked() {
        let claims = Arc::new(Claims::new());
        let (look, looked) = std::sync::mpsc::channel();
        let mut claim = claims.try_claim(&keys(&["a"])).unwrap();
        claim.doubt(move |claim| look.send(claim).unwrap());
        drop(claim);
        assert!(claims.try_claim(&keys(&["a"])).is_none());
        drop(looked.recv().unwrap());
        let mut claim = claims.try_claim(&keys(&["a"])).unwrap();
        claim.doubt(|_| panic!("it was settled"));
        assert!(claim.settle() && !claim.settle());
        drop(claim);
        assert!(claims.try_claim(&keys(&["a"])).is_some());
    }
}
