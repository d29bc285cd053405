//! Things of which copies of one client share one per key.

use std::any::{Any, TypeId};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use super::Scope;
use crate::error::Result;

/// Living things by type, who asks, and key. A dead one leaves its slot at the next entry.
#[derive(Default)]
pub(super) struct Slots(Mutex<HashMap<(TypeId, String), Vec<Slot>>>);

struct Slot {
    /// None if it is for all, whoever asks.
    scope: Option<Scope>,
    thing: Weak<dyn Any + Send + Sync>,
}

impl Slots {
    pub(super) fn enter<T: Send + Sync + 'static>(
        &self,
        scope: Option<&Scope>,
        key: &str,
        lives: impl Fn(&T) -> bool,
        make: impl FnOnce() -> Result<Arc<T>>,
    ) -> Result<Arc<T>> {
        let mut slots = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (TypeId::of::<T>(), key.to_owned());
        let found = slots.get(&key).and_then(|same| {
            same.iter()
                .filter(|slot| match (&slot.scope, scope) {
                    (None, None) => true,
                    (Some(theirs), Some(ours)) => theirs.asks_like(ours),
                    (None, Some(_)) | (Some(_), None) => false,
                })
                .filter_map(|slot| slot.thing.upgrade()?.downcast::<T>().ok())
                .find(|thing| lives(thing))
        });
        if let Some(thing) = found {
            return Ok(thing);
        }
        let thing = make()?;
        slots.retain(|_, same| {
            same.retain(|slot| slot.thing.strong_count() > 0);
            !same.is_empty()
        });
        let erased: Arc<dyn Any + Send + Sync> = Arc::<T>::clone(&thing);
        slots.entry(key).or_default().push(Slot {
            scope: scope.cloned(),
            thing: Arc::downgrade(&erased),
        });
        Ok(thing)
    }
}

impl Scope {
    /// Whether Consul answers both alike.
    fn asks_like(&self, other: &Self) -> bool {
        self.token.is(&other.token)
            && self.datacenter == other.datacenter
            && self.namespace == other.namespace
            && self.partition == other.partition
    }
}
