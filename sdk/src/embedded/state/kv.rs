//! The key-value store with Consul's index rules.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

/// How long a deletion is remembered for the index of a prefix (`tombstone_ttl`, 15 minutes, in
/// steps of 30 s: <https://developer.hashicorp.com/consul/docs/agent/config>).
const TOMBSTONE_TTL: Duration = Duration::from_secs(15 * 60 + 30);

#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) flags: u64,
    pub(crate) value: Bytes,
    pub(crate) created: u64,
    pub(crate) modified: u64,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Kv {
    entries: BTreeMap<String, Entry>,
    tombstones: BTreeMap<String, Tombstone>,
    /// The tombstones in the order in which they are reaped.
    reaping: VecDeque<(Instant, String)>,
    index: u64,
}

#[derive(Clone, Copy, Debug)]
struct Tombstone {
    index: u64,
    reap_at: Instant,
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

    /// Writes a key; an identical value with identical flags changes nothing.
    pub(crate) fn put(&mut self, index: u64, key: &str, flags: u64, value: Bytes) {
        match self.entries.get_mut(key) {
            Some(entry) => {
                if entry.flags == flags && entry.value == value {
                    return;
                }
                entry.flags = flags;
                entry.value = value;
                entry.modified = index;
            }
            None => {
                self.entries.insert(
                    key.to_owned(),
                    Entry {
                        flags,
                        value,
                        created: index,
                        modified: index,
                    },
                );
            }
        }
        self.index = index;
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

    pub(crate) fn delete(&mut self, index: u64, now: Instant, key: &str) {
        if self.entries.remove(key).is_some() {
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
            self.entries.remove(&key);
        }
        self.bury(index, now, prefix);
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
            self.tombstones
                .insert(key.to_owned(), Tombstone { index, reap_at });
        }
    }
}
