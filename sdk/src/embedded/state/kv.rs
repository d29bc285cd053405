//! The key-value store with Consul's rules for indexes and locks.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Bound;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::session::SessionId;

/// How long a deletion is remembered for the index of a prefix (`tombstone_ttl`, 15 minutes, in
/// steps of 30 s: <https://developer.hashicorp.com/consul/docs/agent/config>).
const TOMBSTONE_TTL: Duration = Duration::from_secs(15 * 60 + 30);

#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Entry {
    pub(crate) flags: u64,
    pub(crate) value: Bytes,
    /// How often the key was locked since its last ordinary write.
    pub(crate) lock_index: u64,
    pub(crate) session: Option<SessionId>,
    pub(crate) created: u64,
    pub(crate) modified: u64,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Kv {
    entries: BTreeMap<String, Entry>,
    /// The keys that are held, by their holders.
    held: BTreeSet<(SessionId, String)>,
    tombstones: BTreeMap<String, Tombstone>,
    /// The tombstones in the order in which they are reaped.
    reaping: VecDeque<(Instant, String)>,
    index: u64,
    journal: Option<Journal>,
}

#[derive(Clone, Copy, Debug)]
struct Tombstone {
    index: u64,
    reap_at: Instant,
}

/// What was there before a transaction began, in the order in which it was replaced.
#[derive(Clone, Debug)]
struct Journal {
    entries: Vec<(String, Option<Entry>)>,
    tombstones: Vec<(String, Option<Tombstone>)>,
    index: u64,
}

impl Kv {
    pub(crate) fn entry(&self, key: &str) -> Option<&Entry> {
        self.entries.get(key)
    }

    /// All entries whose key begins with `prefix`, by key. It is a prefix of the text, not a
    /// folder: `a/b` finds `a/bc` too.
    pub(crate) fn list<'a>(
        &'a self,
        prefix: &'a str,
    ) -> impl Iterator<Item = (&'a String, &'a Entry)> {
        self.entries
            .range::<str, _>((Bound::Included(prefix), Bound::Unbounded))
            .take_while(move |(key, _)| key.starts_with(prefix))
    }

    /// The keys that a session holds.
    pub(crate) fn held_by(&self, session: SessionId) -> Vec<String> {
        self.held
            .range((session, String::new())..)
            .take_while(|(holder, _)| *holder == session)
            .map(|(_, key)| key.clone())
            .collect()
    }

    /// The index of the last write or deletion of any key.
    pub(crate) fn index(&self) -> u64 {
        self.index
    }

    /// The index of a read of one key: its own, or the table's when there is none.
    pub(crate) fn key_index(&self, key: &str) -> u64 {
        self.entries
            .get(key)
            .map_or(self.index, |entry| entry.modified)
    }

    /// The index of a read of a prefix: the newest write or deletion under it, or the table's
    /// when there is neither. It falls when the memory of a deletion is reaped.
    pub(crate) fn prefix_index(&self, prefix: &str, now: Instant) -> u64 {
        if prefix.is_empty() {
            return self.index;
        }
        let written = self.list(prefix).map(|(_, entry)| entry.modified);
        let deleted = self
            .tombstones
            .range::<str, _>((Bound::Included(prefix), Bound::Unbounded))
            .take_while(|(key, _)| key.starts_with(prefix))
            .filter(|(_, tombstone)| tombstone.reap_at > now)
            .map(|(_, tombstone)| tombstone.index);
        written.chain(deleted).max().unwrap_or(self.index)
    }

    /// Writes a key, whoever holds it. It stays held, but is as if it had never been locked.
    pub(crate) fn put(&mut self, index: u64, key: &str, flags: u64, value: Bytes) {
        let session = self.entries.get(key).and_then(|entry| entry.session);
        self.set(index, key, flags, value, 0, session);
    }

    /// Check-and-set: zero means "only if absent".
    pub(crate) fn cas(
        &mut self,
        index: u64,
        key: &str,
        cas: u64,
        flags: u64,
        value: Bytes,
    ) -> bool {
        let current = self.entries.get(key).map(|entry| entry.modified);
        if current.unwrap_or(0) != cas {
            return false;
        }
        self.put(index, key, flags, value);
        true
    }

    /// Locks a key for a session that exists; `false` when another one holds it.
    pub(crate) fn lock(
        &mut self,
        index: u64,
        key: &str,
        session: SessionId,
        flags: u64,
        value: Bytes,
    ) -> bool {
        let lock_index = match self.entries.get(key) {
            None => 1,
            Some(entry) => match entry.session {
                Some(holder) if holder == session => entry.lock_index,
                Some(_) => return false,
                None => entry.lock_index + 1,
            },
        };
        self.set(index, key, flags, value, lock_index, Some(session));
        true
    }

    /// Writes a key that its holder gives back; `false` when the session does not hold it.
    pub(crate) fn unlock(
        &mut self,
        index: u64,
        key: &str,
        session: SessionId,
        flags: u64,
        value: Bytes,
    ) -> bool {
        let Some(entry) = self.entries.get(key) else {
            return false;
        };
        if entry.session != Some(session) {
            return false;
        }
        let lock_index = entry.lock_index;
        self.set(index, key, flags, value, lock_index, None);
        true
    }

    /// Takes a key from a holder that is no more; its content stays.
    pub(crate) fn free(&mut self, index: u64, key: &str) {
        if let Some(entry) = self.entries.get(key).cloned() {
            self.set(index, key, entry.flags, entry.value, entry.lock_index, None);
        }
    }

    pub(crate) fn delete(&mut self, index: u64, now: Instant, key: &str) {
        if self.entries.contains_key(key) {
            self.replace(key, None);
            self.bury(index, now, key);
        }
    }

    /// Check-and-delete: a key that is not there counts as deleted.
    pub(crate) fn delete_cas(&mut self, index: u64, now: Instant, key: &str, cas: u64) -> bool {
        match self.entries.get(key) {
            Some(entry) if entry.modified != cas => false,
            _ => {
                self.delete(index, now, key);
                true
            }
        }
    }

    pub(crate) fn delete_tree(&mut self, index: u64, now: Instant, prefix: &str) {
        let keys: Vec<String> = self.list(prefix).map(|(key, _)| key.clone()).collect();
        if keys.is_empty() {
            return;
        }
        for key in keys {
            self.replace(&key, None);
        }
        self.bury(index, now, prefix);
    }

    /// From now on changes can be taken back.
    pub(crate) fn begin(&mut self) {
        self.journal = Some(Journal {
            entries: Vec::new(),
            tombstones: Vec::new(),
            index: self.index,
        });
    }

    pub(crate) fn commit(&mut self) {
        self.journal = None;
    }

    /// Takes back everything since [`begin`](Self::begin).
    pub(crate) fn roll_back(&mut self) {
        let Some(journal) = self.journal.take() else {
            return;
        };
        for (key, former) in journal.entries.into_iter().rev() {
            self.replace(&key, former);
        }
        for (key, former) in journal.tombstones.into_iter().rev() {
            self.reaping.pop_back();
            match former {
                Some(stone) => self.tombstones.insert(key, stone),
                None => self.tombstones.remove(&key),
            };
        }
        self.index = journal.index;
    }

    /// Writes a key; what is identical in all but its indexes changes nothing.
    fn set(
        &mut self,
        index: u64,
        key: &str,
        flags: u64,
        value: Bytes,
        lock_index: u64,
        session: Option<SessionId>,
    ) {
        let mut created = index;
        if let Some(entry) = self.entries.get(key) {
            created = entry.created;
            if entry.flags == flags
                && entry.value == value
                && entry.lock_index == lock_index
                && entry.session == session
            {
                return;
            }
        }
        let entry = Entry {
            flags,
            value,
            lock_index,
            session,
            created,
            modified: index,
        };
        self.replace(key, Some(entry));
        self.index = index;
    }

    /// The one place where entries come and go.
    fn replace(&mut self, key: &str, entry: Option<Entry>) {
        let holder = entry.as_ref().and_then(|entry| entry.session);
        let former = match (self.entries.get_mut(key), entry) {
            (Some(known), Some(entry)) => Some(std::mem::replace(known, entry)),
            (None, Some(entry)) => self.entries.insert(key.to_owned(), entry),
            (_, None) => self.entries.remove(key),
        };
        let former_holder = former.as_ref().and_then(|entry| entry.session);
        if former_holder != holder {
            if let Some(session) = former_holder {
                self.held.remove(&(session, key.to_owned()));
            }
            if let Some(session) = holder {
                self.held.insert((session, key.to_owned()));
            }
        }
        if let Some(journal) = &mut self.journal {
            journal.entries.push((key.to_owned(), former));
        }
    }

    fn bury(&mut self, index: u64, now: Instant, key: &str) {
        self.index = index;
        while self.reaping.front().is_some_and(|(at, _)| *at <= now) {
            let Some((reap_at, old)) = self.reaping.pop_front() else {
                break;
            };
            // A later deletion of the same key has a stone of its own.
            if self
                .tombstones
                .get(&old)
                .is_some_and(|stone| stone.reap_at == reap_at)
            {
                self.tombstones.remove(&old);
            }
        }
        if !key.is_empty() {
            let reap_at = now + TOMBSTONE_TTL;
            self.reaping.push_back((reap_at, key.to_owned()));
            let stone = Tombstone { index, reap_at };
            let former = self.tombstones.insert(key.to_owned(), stone);
            if let Some(journal) = &mut self.journal {
                journal.tombstones.push((key.to_owned(), former));
            }
        }
    }
}
