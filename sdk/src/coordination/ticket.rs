//! Tickets of those that stand in line: what is written, and how it goes away.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::attempt::{self, LOOKS, PATIENCE, Tried};
use super::session::repeated;
use crate::api::kv::Pair;
use crate::api::txn::{KvOp, Outcome};
use crate::client::Client;
use crate::error::{Error, ErrorKind, Result};
use crate::ident::{Key, SessionId};
use crate::proto::line::Rank;

/// The flags that mark a ticket: nothing else below the line's prefix is one.
pub(super) const TICKET_FLAGS: u64 = 0x6c69_6374_6f72_0001;

/// Under which keys the tickets for a lock stand.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Folder(Arc<str>);

impl Folder {
    /// Of two keys, however they are spelled, the lines are two: what is appended is the same.
    ///
    /// It stands beside the key and not below it. Below it is where users have keys that belong to
    /// the lock, and where a semaphore would look for its contenders.
    pub(super) fn of(lock: &Key) -> Self {
        Self(format!("{lock}.queue/").into())
    }

    pub(super) fn as_str(&self) -> &str {
        &self.0
    }

    /// The key of a ticket that a session takes.
    ///
    /// No other has the same key: of two that share a lease, one may leave the line while the other
    /// joins it.
    fn ticket(&self, session: &SessionId, draw: u32) -> Result<Key> {
        Key::new(format!("{}{session}-{draw:08x}", self.0))
    }
}

/// What stands in a ticket.
#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Text {
    #[serde(default)]
    preference: u8,
}

/// A ticket to write.
#[derive(Clone, Debug)]
pub(super) struct Ticket {
    pub(super) key: Key,
    value: Bytes,
}

impl Ticket {
    pub(super) fn new(
        folder: &Folder,
        session: &SessionId,
        preference: u8,
        draw: u32,
    ) -> Result<Self> {
        let text = serde_json::to_vec(&Text { preference });
        Ok(Self {
            key: folder.ticket(session, draw)?,
            value: text
                .map_err(|err| Error::new(ErrorKind::Invalid).caused_by(err))?
                .into(),
        })
    }
}

/// What a ticket says of who it belongs to.
pub(super) fn rank_of(pair: &Pair) -> Rank {
    // One that cannot be read waits like one that says nothing.
    let text: Text = serde_json::from_slice(pair.value()).unwrap_or_default();
    Rank {
        preference: text.preference,
        since: pair.create_index(),
    }
}

/// What became of a ticket that was to be written.
#[derive(Debug)]
pub(super) enum Queued {
    /// It stands, as the session's.
    Yes,
    SessionGone,
    /// It was not written, and would not be.
    Refused(Error),
    /// It cannot be told; it may even come late.
    Unknown(Error),
}

/// Writes a ticket. One that stands already keeps its place.
pub(super) async fn put(client: &Client, session: &SessionId, ticket: &Ticket) -> Queued {
    let lock = KvOp::lock(ticket.key.as_str(), session, ticket.value.clone());
    let txn = client.txn().kv(lock.flags(TICKET_FLAGS));
    match txn.timeout(PATIENCE).send().await {
        Ok(Outcome::Committed(_)) => Queued::Yes,
        Ok(Outcome::RolledBack(failures)) => match attempt::judged(&failures) {
            Tried::SessionGone => Queued::SessionGone,
            Tried::Refused(err) => Queued::Refused(err),
            _ => {
                let text = format!("ticket {}: somebody else holds its key", ticket.key);
                Queued::Refused(Error::new(ErrorKind::Conflict).context(text))
            }
        },
        Err(err) if attempt::was_not_applied(&err) => Queued::Refused(err),
        Err(err) => Queued::Unknown(err),
    }
}

/// The tickets of one session that stand, or may.
#[derive(Debug, Default)]
pub(super) struct Tickets(BTreeMap<Key, Standing>);

#[derive(Debug, Default)]
struct Standing {
    /// How many requests that write it are on their way.
    writing: u32,
    /// Nobody wants it any more.
    unwanted: bool,
    /// A request that was lost may write it late.
    haunted: bool,
}

impl Tickets {
    /// One is about to be written.
    pub(super) fn writing(&mut self, key: &Key) {
        let standing = self.0.entry(key.clone()).or_default();
        standing.writing += 1;
    }

    /// A request to write it has come to an end; tells whether it is to be removed now, and whether
    /// it may come back.
    pub(super) fn written(&mut self, key: &Key, queued: &Queued) -> Option<bool> {
        let standing = self.0.get_mut(key)?;
        standing.writing = standing.writing.saturating_sub(1);
        standing.haunted |= matches!(queued, Queued::Unknown(_));
        (standing.unwanted && standing.writing == 0).then_some(standing.haunted)
    }

    /// Nobody wants it any more; tells the same.
    pub(super) fn unwanted(&mut self, key: &Key) -> Option<bool> {
        let standing = self.0.get_mut(key)?;
        standing.unwanted = true;
        (standing.writing == 0).then_some(standing.haunted)
    }

    /// It was removed, and does not come back.
    pub(super) fn removed(&mut self, key: &Key) {
        self.0.remove(key);
    }

    /// It was removed by the transaction that took the lock.
    pub(super) fn used(&mut self, key: &Key) {
        if self.0.get(key).is_some_and(|standing| !standing.haunted) {
            self.0.remove(key);
        }
    }

    /// All that may stand.
    pub(super) fn drain(&mut self) -> Vec<Key> {
        std::mem::take(&mut self.0).into_keys().collect()
    }
}

/// Removes a ticket, and one that comes late if it is `haunted`.
///
/// No check of the session: nobody else's ticket has this key. What this does not reach is found
/// dead when its session has ended, and removed by whoever takes the lock next.
pub(super) async fn remove(client: &Client, key: &Key, haunted: bool, deadline: Instant) {
    delete(client, key, deadline).await;
    if !haunted {
        return;
    }
    for pause in LOOKS {
        tokio::time::sleep(pause).await;
        let read = client.kv().get(key.as_str()).timeout(PATIENCE).await;
        if read.is_ok_and(|pair| pair.is_some()) {
            delete(client, key, Instant::now() + PATIENCE).await;
        }
    }
}

async fn delete(client: &Client, key: &Key, deadline: Instant) {
    let delete = || {
        let deleting = client.kv().delete(key.as_str()).timeout(PATIENCE).send();
        async move { deleting.await.map(drop) }
    };
    if let Err(err) = repeated(deadline, delete).await {
        tracing::warn!(ticket = %key, error = %err.chain(), "ticket not removed");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> Key {
        Key::new(name).unwrap()
    }

    #[test]
    fn every_lock_has_a_line_of_its_own_beside_it() {
        let session = SessionId::new("s").unwrap();
        let ticket = |lock: &str| Folder::of(&key(lock)).ticket(&session, 10).unwrap();
        assert_eq!(ticket("jobs"), "jobs.queue/s-0000000a");
        assert_eq!(ticket("jobs/"), "jobs/.queue/s-0000000a");
        // `consul lock jobs` locks this key; a semaphore of the name lists what is below `jobs/`.
        assert_eq!(ticket("jobs/.lock"), "jobs/.lock.queue/s-0000000a");
    }

    #[test]
    fn a_ticket_that_is_not_wanted_goes_when_nothing_can_write_it_any_more() {
        let (mut tickets, one, two) = (Tickets::default(), key("k/1"), key("k/2"));
        assert_eq!(tickets.unwanted(&one), None, "there is none");
        tickets.writing(&one);
        assert_eq!(tickets.unwanted(&one), None, "it would come after");
        assert_eq!(tickets.written(&one, &Queued::Yes), Some(false));
        tickets.writing(&two);
        let lost = Queued::Unknown(Error::new(ErrorKind::Timeout));
        assert_eq!(tickets.written(&two, &lost), None);
        tickets.used(&two);
        assert_eq!(tickets.unwanted(&two), Some(true), "it may come late");
        tickets.removed(&one);
        assert_eq!(tickets.drain(), [two]);
        assert!(tickets.drain().is_empty());
    }
}
