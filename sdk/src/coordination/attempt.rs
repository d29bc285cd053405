//! One try to take keys, and the unlock: each a transaction, repeated only as far as is safe.

use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::belief::Belief;
use super::held::{Content, Hold};
use super::roster::LOCK_FLAGS;
use super::state::{LossCause, Lost};
use crate::api::kv::Pair;
use crate::api::txn::{Failure, FailureReason, KvOp, Outcome};
use crate::api::{Endpoint, Read};
use crate::client::Client;
use crate::error::{Error, ErrorKind, Result};
use crate::ident::{Key, SessionId};
use crate::proto::backoff::Backoff;
use crate::proto::pace::Pace;

/// A key to take, as it was seen free.
#[derive(Clone, Debug)]
pub(super) struct Want {
    pub(super) key: Key,
    /// The index of its last change; 0 if it does not exist.
    pub(super) modify_index: u64,
    pub(super) value: Bytes,
}

/// What a try came to.
#[derive(Debug)]
pub(super) enum Tried {
    /// The keys are the session's.
    Won {
        /// The request that proves it was sent then.
        sent: Instant,
        /// The index of the transaction that took them.
        index: u64,
    },
    /// A lock-delay runs.
    Delayed,
    /// A key is not as it was seen.
    Moved,
    /// The session is gone.
    SessionGone,
    /// It cannot be told whether the keys are the session's, and they may become so late.
    Unknown,
    /// Consul refuses it, and would again.
    Refused(Error),
}

/// How long one answer is waited for.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);

/// Consul's transactions took 64 operations before 1.14.
pub(super) const MOST_OPERATIONS: usize = 64;

/// When something that a lost request may still bring about is looked at, each time after the last.
pub(super) const LOOKS: [Duration; 3] = [
    Duration::from_millis(500),
    Duration::from_secs(3),
    Duration::from_secs(15),
];

pub(super) async fn attempt(
    client: &Client,
    session: &SessionId,
    wants: &[Want],
    tickets: &[Key],
    belief: &Belief,
) -> Tried {
    let sent = belief.clock().now();
    let look = || taken(client, session, wants);
    let mut txn = client.txn().beat().timeout(PATIENCE);
    for want in wants {
        txn = txn.kv(as_seen(&want.key, want.modify_index)).kv(KvOp::lock(
            want.key.as_str(),
            session,
            want.value.clone(),
        )
        .flags(LOCK_FLAGS));
    }
    for ticket in tickets {
        txn = txn.kv(KvOp::delete(ticket.as_str()));
    }
    match txn.send().await {
        Ok(Outcome::Committed(results)) => {
            // Operation 1 is the first lock, behind its guard; all locks of one transaction have one
            // index.
            let first = results.kv(1);
            match first.filter(|entry| entry.session() == Some(session)) {
                Some(entry) => Tried::Won {
                    sent,
                    index: entry.modify_index(),
                },
                None => read_back(look, belief).await,
            }
        }
        Ok(Outcome::RolledBack(failures)) => judged(&failures),
        Err(err) if was_not_applied(&err) => Tried::Refused(err),
        // It may have been committed: what stands in the key is the truth.
        Err(_) => read_back(look, belief).await,
    }
}

/// Guards a key by how it was seen; 0 is the index of one that is not there.
pub(super) fn as_seen(key: &Key, modify_index: u64) -> KvOp {
    match modify_index {
        0 => KvOp::check_not_exists(key.as_str()),
        index => KvOp::check_index(key.as_str(), index),
    }
}

/// Whether an error means that nothing has been written, and will not be.
pub(super) fn was_not_applied(err: &Error) -> bool {
    match err.kind() {
        ErrorKind::Connect | ErrorKind::RateLimited => true,
        // "leadership lost while committing log" is a failure of the server's, too.
        ErrorKind::Timeout | ErrorKind::Transport | ErrorKind::NoLeader | ErrorKind::Server => {
            false
        }
        // An answer that cannot be read says nothing about the deed.
        ErrorKind::Decode | ErrorKind::AnswerTooLarge => false,
        _ => true,
    }
}

pub(super) fn judged(failures: &[Failure]) -> Tried {
    let has = |wanted: fn(&FailureReason) -> bool| {
        failures.iter().find(|failure| wanted(failure.reason()))
    };
    // A key that moved must be looked at again before anything else is concluded from it.
    if has(|reason| {
        matches!(
            reason,
            FailureReason::OtherIndex { .. } | FailureReason::Exists | FailureReason::LockHeld
        )
    })
    .is_some()
    {
        return Tried::Moved;
    }
    if has(|reason| matches!(reason, FailureReason::UnknownSession)).is_some() {
        return Tried::SessionGone;
    }
    if has(|reason| matches!(reason, FailureReason::LockDelay)).is_some() {
        return Tried::Delayed;
    }
    let kind = match failures.first().map(Failure::reason) {
        Some(FailureReason::PermissionDenied) => ErrorKind::PermissionDenied,
        Some(FailureReason::Unsupported) => ErrorKind::Unsupported,
        Some(FailureReason::Missing) => return Tried::Moved,
        _ => ErrorKind::Conflict,
    };
    let mut text = failures.first().map(Failure::to_string).unwrap_or_default();
    if kind == ErrorKind::PermissionDenied {
        text.push_str(": the token needs `write` for the key");
    }
    Tried::Refused(Error::new(kind).context(format!("transaction rolled back: {text}")))
}

/// Finds out what became of a try whose answer was lost.
pub(super) async fn read_back<F>(look: impl Fn() -> F, belief: &Belief) -> Tried
where
    F: Future<Output = Result<Option<u64>>> + Send,
{
    let mut pause = Backoff::new(Duration::from_millis(100), Duration::from_secs(1));
    loop {
        if belief.check().is_err() {
            return Tried::Unknown;
        }
        let sent = belief.clock().now();
        match look().await {
            Ok(Some(index)) => return Tried::Won { sent, index },
            // It may still come: a request can be held up anywhere.
            Ok(None) => return Tried::Unknown,
            Err(_) => tokio::time::sleep(pause.next(rand::random())).await,
        }
    }
}

/// The index at which the keys were taken, if they are the session's: one transaction took all of
/// them, or none.
pub(super) async fn taken(
    client: &Client,
    session: &SessionId,
    wants: &[Want],
) -> Result<Option<u64>> {
    match wants.first() {
        Some(want) => {
            let pair = own(client, session, &want.key).await?;
            Ok(pair.map(|pair| pair.modify_index()))
        }
        None => Ok(None),
    }
}

/// How long it may take to find out why a key is not the session's any more.
const WHY: Duration = Duration::from_millis(500);

/// Ends a hold whose key is not the session's any more, and says why that is.
///
/// Nothing is believed while it is found out, and nothing depends on that it is.
pub(super) async fn taken_away(client: &Client, hold: &Hold) -> Lost {
    let ending = hold.ending();
    let info = client.session().info(&hold.session).consistent().beat();
    match info.timeout(WHY).await.map(|info| info.into_value()) {
        Ok(None) => ending.with_the_session(),
        Ok(Some(_)) | Err(_) => drop(ending),
    }
    // What was known first is what everybody is told.
    let lost = hold.check().err();
    lost.unwrap_or(Lost::new(LossCause::KeyGone))
}

/// Learns how the key stands, if it is the session's.
pub(super) async fn look_again(client: &Client, hold: &Hold, place: usize) -> Result<bool> {
    let Some(key) = hold.keys.get(place) else {
        return Ok(false);
    };
    let Some(pair) = own(client, &hold.session, key).await? else {
        return Ok(false);
    };
    if let Some(known) = hold.contents().get_mut(place) {
        *known = content_of(&pair);
    }
    Ok(true)
}

/// The key if the session holds it, from a leader that knows that it is one.
async fn own(client: &Client, session: &SessionId, key: &Key) -> Result<Option<Pair>> {
    let read = client.kv().get(key.as_str()).consistent();
    let pair = read.beat().timeout(PATIENCE).await?.into_value();
    Ok(pair.filter(|pair| pair.session() == Some(session)))
}

/// What became of what was held.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[non_exhaustive]
pub enum Released {
    /// It was unlocked: the next one may hold by now.
    Unlocked,
    /// It was lost before: there was nothing to unlock.
    WasLost,
}

/// Unlocks what is held and keeps what stands in it. Nothing is believed any more by now.
pub(super) async fn unlock(client: &Client, hold: &Hold, deadline: Instant) -> Result<Released> {
    let mut pause = Backoff::new(Duration::from_millis(50), Duration::from_secs(1));
    let all: Vec<usize> = (0..hold.keys.len()).collect();
    let mut places = all;
    loop {
        let failed = match unlock_once(client, hold, &places).await {
            Ok(Outcome::Committed(_)) => return Ok(Released::Unlocked),
            Ok(Outcome::RolledBack(failures)) => {
                let refused = judged_unlock(&failures);
                if let Some(err) = refused {
                    return Err(err);
                }
                // Somebody wrote to a key, or it is not ours any more.
                match refresh(client, hold, &places).await {
                    Ok(own) if own.is_empty() => return Ok(Released::WasLost),
                    Ok(own) => {
                        places = own;
                        continue;
                    }
                    Err(err) => err,
                }
            }
            Err(err) => err,
        };
        if !failed.is_transient() {
            return Err(failed);
        }
        let wait = pause.next(rand::random());
        if Instant::now() + wait >= deadline {
            return Err(failed);
        }
        tokio::time::sleep(wait).await;
    }
}

async fn unlock_once(client: &Client, hold: &Hold, places: &[usize]) -> Result<Outcome> {
    let mut txn = client.txn().beat().timeout(PATIENCE);
    {
        let contents = hold.contents();
        for place in places {
            let (Some(key), Some(content)) = (hold.keys.get(*place), contents.get(*place)) else {
                continue;
            };
            txn = txn
                .kv(KvOp::check_index(key.as_str(), content.modify_index))
                .kv(
                    KvOp::unlock(key.as_str(), &hold.session, content.value.clone())
                        .flags(content.flags),
                );
        }
    }
    txn.send().await
}

fn judged_unlock(failures: &[Failure]) -> Option<Error> {
    let denied = |failure: &&Failure| {
        matches!(
            failure.reason(),
            FailureReason::PermissionDenied | FailureReason::Unsupported
        )
    };
    let failure = failures.iter().find(denied)?;
    Some(
        Error::new(ErrorKind::PermissionDenied)
            .context(format!("unlock: transaction rolled back: {failure}")),
    )
}

/// Learns what stands in the keys; those that are still the session's are returned.
async fn refresh(client: &Client, hold: &Hold, places: &[usize]) -> Result<Vec<usize>> {
    let mut held = Vec::new();
    for place in places {
        if look_again(client, hold, *place).await? {
            held.push(*place);
        }
    }
    Ok(held)
}

pub(super) fn content_of(pair: &Pair) -> Content {
    Content {
        modify_index: pair.modify_index(),
        value: pair.value_bytes(),
        flags: pair.flags(),
    }
}

/// What is held for less than this is not watched: it would cost a connection each time.
pub(super) const QUIET: Duration = Duration::from_millis(500);

/// How fast a holder looks at what it holds when that changes all the time.
pub(super) const fn watch_pace() -> Pace {
    Pace::new(8, Duration::from_millis(100))
}

/// The longest wait of one query.
pub(super) const LONGEST_WAIT: Duration = Duration::from_secs(300);

/// A query that waits for a change since this index; for 0, one that does not wait.
pub(super) fn since<E: Endpoint>(read: Read<E>, index: u64, wait: Duration) -> Read<E> {
    match index {
        0 => read,
        _ => read.wait_for_change(index, wait),
    }
}

/// The index to wait from after an answer: one that has not grown is none.
///
/// The time may be over. But servers that are set back to a snapshot answer whoever waits with what
/// they knew before, at once (measured on 1.8.7), and who waited on from there would wait for an
/// index that what is there now may not have for a long time.
pub(super) fn next_index(told: Option<u64>, known: u64) -> u64 {
    told.filter(|told| *told > known).unwrap_or(0)
}

/// Where a holder's watch goes on from, once an answer has told this index.
///
/// What is to be looked at again is looked at without a pause: the next one may hold soon.
pub(super) async fn watched_to(told: u64, known: u64) -> u64 {
    if known == 0 {
        // It may have been in vain, and be so again.
        tokio::time::sleep(QUIET).await;
    }
    next_index(Some(told), known)
}

/// Follows one held key, and ends the hold when it is no longer the session's.
///
/// It is not what safety rests on: it tells early what a proof would tell late.
pub(super) async fn follow(client: &Client, hold: &Hold, place: usize) {
    let Some(key) = hold.keys.get(place) else {
        return;
    };
    let mut pause = Backoff::new(Duration::from_millis(100), Duration::from_secs(10));
    // Servers that are set back have no leader for a moment.
    let mut doubt = Backoff::new(Duration::from_millis(20), Duration::from_secs(1));
    let mut pace = watch_pace();
    let mut index = hold
        .contents()
        .get(place)
        .map_or(1, |content| content.modify_index.max(1));
    loop {
        tokio::time::sleep_until(pace.take(Instant::now())).await;
        let read = since(client.kv().get(key.as_str()), index, LONGEST_WAIT);
        let Ok(answer) = read.await else {
            tokio::time::sleep(pause.next(rand::random())).await;
            continue;
        };
        pause.reset();
        let told = answer.meta().index().unwrap_or(0);
        let own = answer
            .value()
            .as_ref()
            .filter(|pair| pair.session() == Some(&hold.session));
        match own {
            Some(pair) => {
                doubt.reset();
                hold.saw(place, content_of(pair));
            }
            None => {
                // A server that lags behind shows the key as it was before it was taken.
                let old = told < hold.token.get();
                if old
                    && matches!(
                        self::own(client, &hold.session, key).await,
                        Ok(Some(_)) | Err(_)
                    )
                {
                    tokio::time::sleep(doubt.next(rand::random())).await;
                    continue;
                }
                taken_away(client, hold).await;
                return;
            }
        }
        index = watched_to(told, index).await;
    }
}
