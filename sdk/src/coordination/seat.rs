//! One try to take a place of a semaphore, and to give it back.

use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::attempt::{
    LONGEST_WAIT, PATIENCE, Released, Tried, as_seen, judged, read_back, since, taken_away,
    was_not_applied, watch_pace, watched_to,
};
use super::belief::Belief;
use super::held::Hold;
use super::roster::{Dead, Prefix, Roster, SEMAPHORE_FLAGS, Scene};
use crate::api::txn::{FailureReason, KvOp, Outcome};
use crate::client::Client;
use crate::error::{Error, ErrorKind, Result};
use crate::ident::{Key, SessionId};
use crate::proto::backoff::Backoff;

/// A place to take, in a semaphore as it was seen.
#[derive(Clone, Debug)]
pub(super) struct Bid {
    pub(super) prefix: Prefix,
    /// The session's own key.
    pub(super) key: Key,
    /// The index of that key's last change; 0 if it does not exist.
    pub(super) modify_index: u64,
    pub(super) value: Bytes,
    /// The document with the session in it.
    pub(super) roster: Bytes,
    /// The index of the document's last change; 0 if it does not exist.
    pub(super) roster_index: u64,
}

pub(super) async fn bid(client: &Client, session: &SessionId, bid: &Bid, belief: &Belief) -> Tried {
    let sent = belief.clock().now();
    let document = bid.prefix.document().as_str();
    // The lock is what the session's end releases, and what Consul keeps back for the lock-delay.
    let txn = client.txn().beat().timeout(PATIENCE);
    let txn = txn
        .kv(as_seen(&bid.key, bid.modify_index))
        .kv(KvOp::lock(bid.key.as_str(), session, bid.value.clone()).flags(SEMAPHORE_FLAGS))
        .kv(KvOp::cas(document, bid.roster.clone(), bid.roster_index).flags(SEMAPHORE_FLAGS));
    let look = || seated(client, session, &bid.prefix);
    match txn.send().await {
        Ok(Outcome::Committed(results)) => {
            // The document is written anew each time, the key perhaps not.
            let own = results.kv(1).and_then(|entry| entry.session()) == Some(session);
            match results.kv(2).filter(|_| own) {
                Some(entry) => Tried::Won {
                    sent,
                    index: entry.modify_index(),
                },
                None => read_back(look, belief).await,
            }
        }
        Ok(Outcome::RolledBack(failures)) => judged(&failures),
        Err(err) if was_not_applied(&err) => Tried::Refused(err),
        // It may have been committed: what stands in the keys is the truth.
        Err(_) => read_back(look, belief).await,
    }
}

/// All keys of a semaphore, from a leader that knows that it is one.
pub(super) async fn scene(client: &Client, prefix: &Prefix) -> Result<Scene> {
    let list = client.kv().list(prefix.folder()).consistent();
    let (pairs, meta) = list.beat().timeout(PATIENCE).await?.into_parts();
    Scene::read(prefix, pairs, meta.index().unwrap_or(0))
}

/// Since which index the session has a place, if it has one.
pub(super) async fn seated(
    client: &Client,
    session: &SessionId,
    prefix: &Prefix,
) -> Result<Option<u64>> {
    let scene = scene(client, prefix).await?;
    let own = scene.own(session).filter(|_| scene.lists(session));
    Ok(own.map(|pair| pair.modify_index()))
}

/// What a try to take the place of a dead one over came to.
#[derive(Debug)]
pub(super) enum Swept {
    /// It is off the list.
    Done,
    /// Its lock-delay runs.
    Delayed,
    /// Something is not as it was seen.
    Moved,
    SessionGone,
}

/// Strikes off one whose session ended, by taking the key that it held.
///
/// That is what makes Consul keep its lock-delay, which the document alone does not have. Nothing
/// is left to be given up: the key is deleted in the same transaction.
pub(super) async fn sweep(
    client: &Client,
    session: &SessionId,
    prefix: &Prefix,
    scene: &Scene,
    dead: &Dead,
) -> Result<Swept> {
    let key = dead.key.as_str();
    let mut txn = client.txn().timeout(PATIENCE);
    txn = txn
        .kv(as_seen(&dead.key, dead.modify_index))
        .kv(KvOp::lock(key, session, Bytes::new()).flags(SEMAPHORE_FLAGS))
        .kv(KvOp::delete(key));
    if let Some(roster) = scene.roster.as_ref().filter(|_| dead.listed) {
        let roster = roster.without(&dead.session).bytes()?;
        let document = prefix.document().as_str();
        txn = txn.kv(KvOp::cas(document, roster, scene.roster_index).flags(SEMAPHORE_FLAGS));
    }
    match txn.send().await? {
        Outcome::Committed(_) => Ok(Swept::Done),
        Outcome::RolledBack(failures) => match judged(&failures) {
            Tried::Delayed => Ok(Swept::Delayed),
            Tried::SessionGone => Ok(Swept::SessionGone),
            Tried::Refused(err) => Err(err),
            Tried::Moved | Tried::Unknown | Tried::Won { .. } => Ok(Swept::Moved),
        },
    }
}

/// Gives a place back. Nothing is believed any more by now.
pub(super) async fn leave(
    client: &Client,
    hold: &Hold,
    prefix: &Prefix,
    deadline: Instant,
) -> Result<Released> {
    // Others write into the document, too: a lost race is repeated soon.
    let mut pause = Backoff::new(Duration::from_millis(10), Duration::from_secs(1));
    loop {
        let failed = match leave_once(client, hold, prefix).await {
            Ok(Some(released)) => return Ok(released),
            Ok(None) => Error::new(ErrorKind::Conflict)
                .context(format!("semaphore {}: always changing", prefix.name())),
            Err(err) if !err.is_transient() => return Err(err),
            Err(err) => err,
        };
        let wait = pause.next(rand::random());
        if Instant::now() + wait >= deadline {
            return Err(failed);
        }
        tokio::time::sleep(wait).await;
    }
}

/// `None` if something changed between the look and the deed.
async fn leave_once(client: &Client, hold: &Hold, prefix: &Prefix) -> Result<Option<Released>> {
    let session = &hold.session;
    let scene = scene(client, prefix).await?;
    let key = prefix.contender(session)?;
    let own = scene.own(session).is_some();
    let listed = scene.lists(session);
    let mut txn = client.txn().beat().timeout(PATIENCE);
    if own {
        txn = txn
            .kv(KvOp::check_session(key.as_str(), session))
            .kv(KvOp::delete(key.as_str()));
    }
    if let Some(roster) = scene.roster.as_ref().filter(|_| listed) {
        let roster = roster.without(session).bytes()?;
        let document = prefix.document().as_str();
        txn = txn.kv(KvOp::cas(document, roster, scene.roster_index).flags(SEMAPHORE_FLAGS));
    }
    let released = match own && listed {
        true => Released::Unlocked,
        false => Released::WasLost,
    };
    if !own && !listed {
        return Ok(Some(released));
    }
    match txn.send().await? {
        Outcome::Committed(_) => Ok(Some(released)),
        Outcome::RolledBack(failures) => {
            let moved = failures.iter().all(|failure| {
                matches!(
                    failure.reason(),
                    FailureReason::OtherIndex { .. }
                        | FailureReason::OtherSession { .. }
                        | FailureReason::Missing
                )
            });
            match moved {
                true => Ok(None),
                false => Outcome::RolledBack(failures).into_result().map(|_| None),
            }
        }
    }
}

/// Follows a place, and ends the hold when it is no longer the session's.
///
/// It is not what safety rests on: it tells early what a proof would tell late.
pub(super) async fn follow(client: &Client, hold: &Hold, prefix: &Prefix) {
    let mut pause = Backoff::new(Duration::from_millis(500), Duration::from_secs(10));
    let mut pace = watch_pace();
    let mut index = hold.token.get();
    loop {
        tokio::time::sleep_until(pace.take(Instant::now())).await;
        let read = since(client.kv().list(prefix.folder()), index, LONGEST_WAIT);
        let Ok(answer) = read.await else {
            tokio::time::sleep(pause.next(rand::random())).await;
            continue;
        };
        let (pairs, meta) = answer.into_parts();
        let told = meta.index().unwrap_or(0);
        let there =
            |scene: &Scene| scene.own(&hold.session).is_some() && scene.lists(&hold.session);
        let seen = Scene::read(prefix, pairs, told);
        if !seen.as_ref().is_ok_and(there) {
            // A server that lags behind shows what was before: a leader has the last word.
            match seated(client, &hold.session, prefix).await {
                Ok(Some(_)) => {}
                Err(err) if err.kind() != ErrorKind::Conflict => {}
                Ok(None) | Err(_) => {
                    taken_away(client, hold).await;
                    return;
                }
            }
        }
        pause.reset();
        index = watched_to(told, index).await;
    }
}

/// Writes another limit into the document.
pub(super) async fn set_limit(client: &Client, prefix: &Prefix, limit: u32) -> Result<()> {
    let mut pause = Backoff::new(Duration::from_millis(10), Duration::from_secs(1));
    loop {
        let scene = scene(client, prefix).await?;
        let roster = match &scene.roster {
            Some(roster) if roster.limit == limit => return Ok(()),
            Some(roster) => Roster {
                limit,
                ..roster.clone()
            },
            None => Roster::new(limit),
        };
        let put = client.kv().put(prefix.document().as_str(), roster.bytes()?);
        let put = put.flags(SEMAPHORE_FLAGS).cas(scene.roster_index);
        if put.await? {
            return Ok(());
        }
        tokio::time::sleep(pause.next(rand::random())).await;
    }
}
