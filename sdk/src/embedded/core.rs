//! What all clones of an agent share.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::fault::FaultTable;
use super::state::{Replica, State};
use super::traffic::Traffic;
use super::wan::{Link, Wan};

#[derive(Debug)]
pub(super) struct Core {
    inner: Mutex<Inner>,
    changed: watch::Sender<u64>,
    pub(super) faults: FaultTable,
    pub(super) traffic: Arc<Traffic>,
    access: Mutex<Access>,
    pub(super) wan: Wan,
}

/// The agent's memory.
#[derive(Debug)]
pub(super) struct Inner {
    pub(super) state: State,
    /// Counts how often what the servers hold was replaced as a whole.
    pub(super) replaced: u64,
    /// What they held before that.
    pub(super) former: Option<Arc<Replica>>,
    /// What has been read through the agent's cache.
    pub(super) cached: BTreeSet<String>,
}

impl Inner {
    /// Notes that what the servers hold was replaced, and what it was.
    pub(super) fn replace(&mut self, former: Replica) {
        self.replaced += 1;
        self.former = Some(Arc::new(former));
    }
}

/// Who may do what.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Access {
    /// As an agent without ACLs.
    Open,
    /// Only this token is known, and without one nothing is allowed.
    Token(Secret),
    /// No token is known.
    Nobody,
}

/// A token that cannot be printed.
#[derive(Clone, Eq, PartialEq)]
pub(super) struct Secret(pub(super) String);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("***")
    }
}

impl Core {
    pub(super) fn new(state: State, access: Access) -> Self {
        let (changed, _) = watch::channel(state.version());
        Self {
            inner: Mutex::new(Inner {
                state,
                replaced: 0,
                cached: BTreeSet::new(),
                former: None,
            }),
            changed,
            faults: FaultTable::default(),
            traffic: Arc::default(),
            access: Mutex::new(access),
            wan: Wan::default(),
        }
    }

    /// The memory as of now: all that is due has happened.
    ///
    /// Whoever waits for a change is woken when the guard is dropped after one.
    pub(super) fn lock(&self) -> Locked<'_> {
        // A panic under the lock would be a bug, but it must not take every other test down.
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let version = inner.state.version();
        let mut locked = Locked {
            inner,
            changed: &self.changed,
            version,
        };
        locked.state.advance(Instant::now());
        locked
    }

    /// The agent leaves: whoever waits for an answer is told, and nobody is answered any more.
    pub(super) fn leave(&self) {
        // Those that wait are woken when the lock is given back, before they are cut off.
        self.lock().state.leave(Instant::now());
        self.faults.set_away(true);
    }

    pub(super) fn rejoin(&self) {
        self.lock().state.rejoin(Instant::now());
        self.faults.set_away(false);
    }

    /// Tells of changes after this call.
    pub(super) fn subscribe(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// The other datacenters that can be reached, by name.
    pub(super) fn links(&self) -> BTreeMap<String, Link> {
        self.wan.links()
    }

    /// The other datacenters that can be reached, the nearest first, with their agents.
    pub(super) fn nearest(&self) -> Vec<(String, Arc<Self>)> {
        let own = self.lock().state.wan.clone();
        let peers = self.links().into_iter();
        let mut peers: Vec<_> = peers
            .filter_map(|(name, link)| Some((name, link.peer()?)))
            .collect();
        peers.sort_by_cached_key(|(_, peer)| {
            let distance = own.distance_to(&peer.lock().state.wan);
            distance.unwrap_or(Duration::MAX)
        });
        peers
    }

    /// The agent of another datacenter, if it can be reached.
    pub(super) fn linked(&self, datacenter: &str) -> Option<Arc<Self>> {
        self.links().remove(datacenter)?.peer()
    }

    pub(super) fn access(&self) -> Access {
        self.access
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    pub(super) fn set_access(&self, access: Access) {
        *self.access.lock().unwrap_or_else(PoisonError::into_inner) = access;
    }
}

#[derive(Debug)]
pub(super) struct Locked<'a> {
    inner: MutexGuard<'a, Inner>,
    changed: &'a watch::Sender<u64>,
    version: u64,
}

impl Deref for Locked<'_> {
    type Target = Inner;

    fn deref(&self) -> &Inner {
        &self.inner
    }
}

impl DerefMut for Locked<'_> {
    fn deref_mut(&mut self) -> &mut Inner {
        &mut self.inner
    }
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        let version = self.inner.state.version();
        if version != self.version {
            self.changed.send_replace(version);
        }
    }
}
