//! Agents of other datacenters that this one can reach.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use tokio::sync::watch;

use super::core::Core;

/// The way to another datacenter.
#[derive(Clone, Debug)]
pub(super) struct Link {
    peer: Weak<Core>,
    /// Closed when the way is cut.
    open: watch::Receiver<()>,
}

type Ways = BTreeMap<String, (Weak<Core>, watch::Sender<()>)>;

/// All ways that lead from an agent.
#[derive(Debug, Default)]
pub(super) struct Wan(Mutex<Ways>);

impl Wan {
    fn ways(&self) -> MutexGuard<'_, Ways> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn join(&self, datacenter: String, peer: &Arc<Core>) {
        let way = (Arc::downgrade(peer), watch::channel(()).0);
        self.ways().insert(datacenter, way);
    }

    pub(super) fn part(&self, datacenter: &str) {
        self.ways().remove(datacenter);
    }

    /// Those to whom there is a way, by name.
    pub(super) fn links(&self) -> BTreeMap<String, Link> {
        let ways = self.ways();
        let there = ways.iter().filter(|(_, (peer, _))| {
            // One that left is no longer known to anybody.
            peer.upgrade().is_some_and(|peer| !peer.faults.is_away())
        });
        there
            .map(|(name, (peer, open))| {
                let link = Link {
                    peer: Weak::clone(peer),
                    open: open.subscribe(),
                };
                (name.clone(), link)
            })
            .collect()
    }
}

impl Link {
    pub(super) fn peer(&self) -> Option<Arc<Core>> {
        self.peer.upgrade()
    }

    /// Resolves when the way is cut.
    pub(super) async fn cut(mut self) {
        while self.open.changed().await.is_ok() {}
    }
}
