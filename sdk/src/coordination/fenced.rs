//! Writes that Consul itself refuses from whoever no longer holds.

use std::fmt;
use std::future::IntoFuture;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::attempt::{MOST_OPERATIONS, look_again, taken_away};
use super::held::Held;
use super::state::Lost;
use crate::api::kv::Kv;
use crate::api::txn::{CheckOp, FailureReason, KvOp, NodeOp, Outcome, ServiceOp, Txn};
use crate::error::{Error, ErrorKind, Result};

impl Kv {
    /// Writes that take place only while something is held.
    ///
    /// `held` is a [`LockGuard`](super::LockGuard), a [`Permit`](super::Permit) or anything else
    /// that dereferences to a [`Held`]. Each write is a transaction that begins with Consul's own
    /// look at who holds the key: there is no moment between the two at which somebody else could
    /// come in.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # async fn example(client: lictor::Client) -> lictor::Result<()> {
    /// let guard = client.lock("jobs/nightly").acquire().await?;
    /// let kv = client.kv();
    /// kv.fenced(&guard).put("jobs/nightly/progress", "17").await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn fenced<'a>(&self, held: &'a Held) -> Fenced<'a> {
        Fenced {
            kv: self.clone(),
            held,
        }
    }
}

/// Writes to Consul that are refused once something is not held any more.
///
/// All of them fail with [`ErrorKind::Conflict`], and with [`Lost`] as the source, when it is not
/// held any more; whether that was known here, or Consul told it. In the second case the hold is
/// ended with it, so that everybody who asks [`Held::check`] knows.
///
/// A failure on the way leaves open whether the write took place, as with any other; if it did,
/// then during this very hold. Consul looks at the session of each key that is held, and at the
/// index at which the first of them was last changed: so a write that was held up on its way is
/// refused in a later hold, too, even if a shared lease holds the same key again by the same
/// session. Whoever writes into that key meanwhile, the holder itself or somebody else, costs a
/// fenced write one more request: the index is read again, and the write repeated.
#[derive(Clone)]
#[must_use = "it writes nothing by itself"]
pub struct Fenced<'a> {
    kv: Kv,
    held: &'a Held,
}

impl<'a> Fenced<'a> {
    /// Writes a value.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Conflict`] if it is not held any more, with [`Lost`] as the source, and as
    /// [`Txn::send`].
    ///
    /// # Cancel safety
    ///
    /// Once polled, the value may be written even if the future is dropped.
    pub async fn put(&self, key: impl Into<Arc<str>>, value: impl Into<Bytes>) -> Result<()> {
        let txn = self.txn().kv(KvOp::set(key, value));
        txn.send().await?.into_result().map(|_| ())
    }

    /// Writes a value if the key was last changed at this index, and says whether it was; 0 means
    /// if it does not exist.
    ///
    /// # Errors
    ///
    /// As [`put`](Self::put).
    ///
    /// # Cancel safety
    ///
    /// As [`put`](Self::put).
    pub async fn cas(
        &self,
        key: impl Into<Arc<str>>,
        value: impl Into<Bytes>,
        modify_index: u64,
    ) -> Result<bool> {
        let txn = self.txn().kv(KvOp::cas(key, value, modify_index));
        match txn.send().await? {
            Outcome::Committed(_) => Ok(true),
            Outcome::RolledBack(failures) => {
                let changed = |reason: &FailureReason| {
                    matches!(
                        reason,
                        FailureReason::OtherIndex { .. } | FailureReason::Missing
                    )
                };
                if failures.iter().all(|failure| changed(failure.reason())) {
                    return Ok(false);
                }
                Outcome::RolledBack(failures).into_result().map(|_| false)
            }
        }
    }

    /// Deletes one key; a missing one is no failure.
    ///
    /// # Errors
    ///
    /// As [`put`](Self::put).
    ///
    /// # Cancel safety
    ///
    /// As [`put`](Self::put).
    pub async fn delete(&self, key: impl Into<Arc<str>>) -> Result<()> {
        let txn = self.txn().kv(KvOp::delete(key));
        txn.send().await?.into_result().map(|_| ())
    }

    /// Deletes all keys that begin with `prefix`; the empty prefix means all.
    ///
    /// The prefix is text: `app` also deletes `apple`. It deletes the key that is held like any
    /// other, and with it the lock.
    ///
    /// # Errors
    ///
    /// As [`put`](Self::put).
    ///
    /// # Cancel safety
    ///
    /// As [`put`](Self::put).
    pub async fn delete_tree(&self, prefix: impl AsRef<str>) -> Result<()> {
        let txn = self.txn().kv(KvOp::delete_tree(prefix));
        txn.send().await?.into_result().map(|_| ())
    }

    /// Several changes and reads at once: all of them while it is held, or none.
    pub fn txn(&self) -> FencedTxn<'a> {
        FencedTxn {
            txn: self.kv.client().txn(),
            kv: self.kv.clone(),
            held: self.held,
            operations: 0,
        }
    }
}

impl fmt::Debug for Fenced<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fenced")
            .field("held", &self.held)
            .finish_non_exhaustive()
    }
}

/// Operations that take place together while something is held, or not at all.
///
/// Put in what is wanted, then await it, or [`send`](Self::send) it. Range: 63 operations less one
/// for each key that is held, so 62 for most; more are refused before anything is sent.
#[must_use = "a transaction does nothing until it is awaited"]
pub struct FencedTxn<'a> {
    kv: Kv,
    txn: Txn,
    held: &'a Held,
    operations: usize,
}

impl FencedTxn<'_> {
    /// Adds an operation on the key-value store.
    pub fn kv(self, op: KvOp) -> Self {
        self.with(|txn| txn.kv(op))
    }

    /// Adds an operation on a node of the catalog.
    pub fn node(self, op: NodeOp) -> Self {
        self.with(|txn| txn.node(op))
    }

    /// Adds an operation on an instance of a service in the catalog.
    pub fn service(self, op: ServiceOp) -> Self {
        self.with(|txn| txn.service(op))
    }

    /// Adds an operation on a check in the catalog.
    pub fn check(self, op: CheckOp) -> Self {
        self.with(|txn| txn.check(op))
    }

    /// Ends the call after `timeout`, each time that it must be repeated. Default: the client's,
    /// 15 s.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.txn = self.txn.timeout(timeout);
        self
    }

    fn with(mut self, add: impl FnOnce(Txn) -> Txn) -> Self {
        self.txn = add(self.txn);
        self.operations += 1;
        self
    }

    /// Sends the transaction, once.
    ///
    /// One that Consul rolled back for another reason than the hold is a good answer:
    /// [`Outcome::RolledBack`] tells why. Places are those of the operations that were put in.
    ///
    /// # Errors
    ///
    /// - [`ErrorKind::Conflict`] if it is not held any more, with [`Lost`] as the source.
    /// - [`ErrorKind::Invalid`] for no operation, and for too many.
    /// - As [`Txn::send`].
    ///
    /// # Cancel safety
    ///
    /// Once polled, the transaction may take effect even if the future is dropped, then as a whole;
    /// its outcome is unknown.
    pub async fn send(self) -> Result<Outcome> {
        let Self {
            kv,
            txn,
            held,
            operations,
        } = self;
        let guards = held.keys().len() + 1;
        let most = MOST_OPERATIONS.saturating_sub(guards);
        if operations == 0 || operations > most {
            return Err(Error::invalid(format!(
                "fenced transaction of {operations} operations: must be 1 to {most}, for {guards} \
                 more say who holds"
            )));
        }
        let client = kv.client();
        for _ in 0..MOST_TRIES {
            // In this order: an index that was read before the hold ended is no later hold's.
            let guarded = txn.clone().behind(guarding(held));
            held.check().map_err(refused)?;
            let outcome = guarded.send().await?;
            let Outcome::RolledBack(failures) = &outcome else {
                return Ok(outcome.behind(guards));
            };
            let look = failures
                .iter()
                .filter(|failure| failure.operation() < guards);
            let has = |wanted: fn(&FailureReason) -> bool| {
                look.clone().any(|failure| wanted(failure.reason()))
            };
            if has(|reason| {
                matches!(
                    reason,
                    FailureReason::OtherSession { .. } | FailureReason::Missing
                )
            }) {
                return Err(refused(taken_away(client, &held.hold).await));
            }
            if has(|reason| matches!(reason, FailureReason::OtherIndex { .. })) {
                // What is read is this hold's if that has not ended by then: as long, nobody else of
                // this process can take the key by the same session.
                if !look_again(client, &held.hold, 0).await? {
                    return Err(refused(taken_away(client, &held.hold).await));
                }
                continue;
            }
            return match look.count() {
                0 => Ok(outcome.behind(guards)),
                // The look itself was refused, for a right that is missing: no operation is to
                // blame.
                _ => outcome.into_result().map(Outcome::Committed),
            };
        }
        Err(Error::new(ErrorKind::Conflict).context(format!(
            "fenced write: the key that is held has changed {MOST_TRIES} times meanwhile"
        )))
    }
}

/// How often a write is repeated because somebody else wrote into the key that is held.
const MOST_TRIES: usize = 20;

/// What Consul is to look at first: all keys are the session's, and the first has not been another
/// hold's since it was last seen.
fn guarding(held: &Held) -> Vec<KvOp> {
    let hold = &held.hold;
    let index = hold.contents().first().map(|content| content.modify_index);
    let sessions = hold
        .keys
        .iter()
        .map(|key| KvOp::check_session(key.as_str(), &hold.session));
    let unchanged = hold
        .keys
        .first()
        .zip(index)
        .map(|(key, index)| KvOp::check_index(key.as_str(), index));
    sessions.chain(unchanged).collect()
}

impl<'a> IntoFuture for FencedTxn<'a> {
    type Output = Result<Outcome>;
    type IntoFuture = Pin<Box<dyn Future<Output = Result<Outcome>> + Send + 'a>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.send())
    }
}

impl fmt::Debug for FencedTxn<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FencedTxn")
            .field("held", &self.held)
            .field("operations", &self.operations)
            .finish_non_exhaustive()
    }
}

fn refused(lost: Lost) -> Error {
    Error::new(ErrorKind::Conflict)
        .context("fenced write refused")
        .caused_by(lost)
}
