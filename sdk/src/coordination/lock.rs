//! Locks: one holder at a time.

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::attempt::{MOST_OPERATIONS, Released, taken_away};
use super::grip::Grip;
use super::held::{Content, Held};
use super::lease::Lease;
use super::line::Manner;
use super::profile::Profile;
use super::role::Roles;
use super::seek::{Goal, Sought, seek};
use super::state::Lost;
use super::ticket::Folder;
use super::waiting::{Patience, Sight, in_time};
use crate::api::kv::Pair;
use crate::api::txn::{FailureReason, KvOp, Outcome};
use crate::client::Client;
use crate::error::{Error, ErrorKind, Result};
use crate::ident::{Key, SessionId};

impl Client {
    /// A lock on a key.
    ///
    /// Nothing is sent before [`Lock::acquire`] or one of its neighbours. The key is a lock for the
    /// reference client (Go's `api.LockKey`) too: it and lictor exclude each other on it. The
    /// command `consul lock jobs/nightly …` locks the key `jobs/nightly/.lock`: that is the key to
    /// name here where one takes over from the other.
    pub fn lock(&self, key: impl Into<Arc<str>>) -> Lock {
        Lock {
            client: self.clone(),
            keys: vec![Key::new(key)],
            value: None,
            lease: Source::Own(Profile::default()),
            deadline: None,
            roles: None,
            line: None,
        }
    }
}

/// A lock to take: which keys, on what lease, and what to write into them.
///
/// It can be used any number of times. See the [module](super) for what a holder may rely on.
///
/// # Examples
///
/// ```no_run
/// # async fn example(client: lictor::Client) -> lictor::Result<()> {
/// let guard = client.lock("jobs/nightly").acquire().await?;
/// tokio::select! {
///     () = work() => {}
///     lost = guard.lost() => println!("stopped: {lost}"),
/// }
/// guard.release().await?;
/// # async fn work() {}
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
#[must_use = "a lock is not taken before `acquire`"]
pub struct Lock {
    client: Client,
    keys: Vec<Result<Key>>,
    value: Option<Bytes>,
    lease: Source,
    deadline: Option<Duration>,
    roles: Option<Roles>,
    /// The preference with which it is waited for in line, if it is.
    line: Option<u8>,
}

/// Where the session comes from.
#[derive(Clone, Debug)]
pub(super) enum Source {
    /// A lease of its own for each guard.
    Own(Profile),
    Shared(Lease),
}

impl Source {
    /// The lease, which has this name if it is made for it.
    pub(super) fn lease(&self, client: &Client, name: &str) -> Result<Lease> {
        match self {
            Self::Shared(lease) => Ok(lease.clone()),
            Self::Own(profile) => client.lease().profile(profile.clone()).name(name).build(),
        }
    }

    pub(super) const fn is_own(&self) -> bool {
        matches!(self, Self::Own(_))
    }
}

/// Each key needs two operations.
const MOST_KEYS: usize = MOST_OPERATIONS / 2;

/// What a transaction may have in all: Consul's default `txn_max_req_len`.
const LONGEST_TXN: usize = 512 * 1024;

/// What is left of it for all that is not a value.
const BESIDE_VALUES: usize = 1024;

impl Lock {
    /// Takes this key, too: all of them in one transaction, or none.
    ///
    /// So two that want the same keys in another order cannot block each other for ever. Range: 32
    /// keys in all.
    pub fn and(mut self, key: impl Into<Arc<str>>) -> Self {
        self.keys.push(Key::new(key));
        self
    }

    /// What to write into the keys when they are taken. Default: what stands there.
    ///
    /// It stays there after the release.
    pub fn value(mut self, value: impl Into<Bytes>) -> Self {
        self.value = Some(value.into());
        self
    }

    /// How its lease is kept, if it has one of its own. Default: [`Profile::balanced`].
    ///
    /// It takes the place of a [shared one](Self::lease).
    pub fn profile(mut self, profile: Profile) -> Self {
        self.lease = Source::Own(profile);
        self
    }

    /// The lease that it is held by. Default: one of its own for each guard, which ends with it.
    pub fn lease(mut self, lease: &Lease) -> Self {
        self.lease = Source::Shared(lease.clone());
        self
    }

    /// How long [`acquire`](Self::acquire) waits at most. Default: for ever.
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = Some(deadline);
        self
    }

    /// Waits in line: whoever came first goes first. Default: all that wait try when it is free.
    ///
    /// By default, whoever is fastest wins. Each try that loses makes the next ones of the same
    /// contender later, by up to a second, and one that has just come knows of no lost try: among
    /// many that always want the lock, one may be passed again and again. That is no more than bad
    /// luck with a few contenders, and costs nothing. With many of them, or with work that must not
    /// wait for long, let all of them be fair.
    ///
    /// Then whoever finds the lock taken writes a ticket beside the first of its keys in the order
    /// of bytes: `KEY.queue/SESSION-…`, locked by its session. Tickets are ordered by when Consul
    /// took them. When the lock becomes free, the first tries at once, and takes its ticket away in
    /// the same transaction; the second tries a second later, if the lock is still free, the third
    /// two, and so on. So a first that does not run keeps the others for a second, once: whoever
    /// passes it takes its ticket, too, and it goes on at the end of the line. Tickets of sessions
    /// that have ended do not count, and go with the next hand-over. A lock that nobody waits for is
    /// taken without a ticket.
    ///
    /// **What it costs.** One read more per acquisition, and a write if there is somebody to wait
    /// for. A hand-over is two writes, whatever the number of contenders, and wakes four of them:
    /// the first three follow the lock, each other the ticket of somebody ahead, and looks every
    /// 15 s whether all is well.
    ///
    /// **What it does not do.** Nothing about safety changes. Those that are not fair, the reference
    /// client and `consul lock` are kept out while it is held as ever, and may be faster than the
    /// first in line when it becomes free; so may [`try_acquire`](Self::try_acquire), which never
    /// waits in line. After a crash, the order holds if the holder's lock-delay could be read
    /// before. Tasks that [share a lease](Self::lease) stand in line one at a time, and take turns
    /// among themselves in no order.
    ///
    /// The token must be allowed to read and write below `KEY.queue/`. Range: 31 keys.
    pub fn fair(mut self) -> Self {
        self.line.get_or_insert_default();
        self
    }

    /// Goes before all in line that have less of it.
    pub(super) fn preferred(mut self, preference: u8) -> Self {
        self.line = Some(preference);
        self
    }

    /// Who is told what is seen while others hold it.
    pub(super) fn telling(mut self, roles: &Roles) -> Self {
        self.roles = Some(roles.clone());
        self
    }

    /// Takes the lock, as soon as nobody else holds it.
    ///
    /// It waits by a blocking query, and through outages of Consul. Two tasks that share a lease
    /// take turns like everybody else. In which order contenders are served is a matter of luck,
    /// unless they are [fair](Self::fair).
    ///
    /// # Errors
    ///
    /// - [`ErrorKind::Invalid`] for a key, a value or a profile that cannot work.
    /// - [`ErrorKind::NoRuntime`] outside of a Tokio runtime.
    /// - [`ErrorKind::PermissionDenied`] for a token that may not write the session or the key.
    /// - [`ErrorKind::Conflict`] for a key that belongs to a semaphore.
    /// - [`ErrorKind::Timeout`] when the [`deadline`](Self::deadline) is over; the text says who
    ///   holds it, or that Consul does not answer, with the cause as the error's source.
    /// - Whatever else Consul refuses it with. What may pass is waited out, not told.
    ///   An answer that is not Consul's, such as a proxy's page with status 200 or 404, may not.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future, wherever it is, leaves no lock taken and no session alive: what was on
    /// its way is given up in the background.
    pub async fn acquire(&self) -> Result<LockGuard> {
        let sight = Sight::default();
        let seeking = self.seek(Patience::Wait, &sight);
        let Some(sought) = in_time(self.deadline, seeking).await? else {
            let deadline = self.deadline.unwrap_or_default();
            let what = format!(
                "lock {} not taken within {deadline:?}",
                named(&self.valid_keys()?)
            );
            return Err(sight.in_vain(&what, &self.client, ": others were faster"));
        };
        match sought {
            Attempt::Acquired(guard) => Ok(guard),
            // Only who does not wait is told of others.
            Attempt::Held(_) | Attempt::Delayed { .. } => Err(Error::new(ErrorKind::Conflict)),
        }
    }

    /// Takes the lock if nobody holds it now, without waiting for anybody.
    ///
    /// # Errors
    ///
    /// As [`acquire`](Self::acquire), and what Consul cannot answer at this moment, too.
    ///
    /// # Cancel safety
    ///
    /// As [`acquire`](Self::acquire).
    pub async fn try_acquire(&self) -> Result<Attempt> {
        self.seek(Patience::Try, &Sight::default()).await
    }

    pub(super) fn client(&self) -> &Client {
        &self.client
    }

    pub(super) fn valid_keys(&self) -> Result<Vec<Key>> {
        self.keys.iter().cloned().collect()
    }

    /// Where the tickets for these keys stand: all that want the same have one line, however they
    /// name it.
    pub(super) fn line_of(keys: &[Key]) -> Option<Folder> {
        keys.iter().min().map(Folder::of)
    }

    /// What the lock's lease is, and what is to be held by it.
    pub(super) fn prepared(&self) -> Result<(Lease, Goal)> {
        let keys = self.valid_keys()?;
        let mut sorted: Vec<&Key> = keys.iter().collect();
        sorted.sort_unstable();
        if let Some(pair) = sorted.windows(2).find(|pair| pair.first() == pair.last()) {
            let twice = pair.first().map(|key| key.as_str()).unwrap_or_default();
            return Err(Error::invalid(format!(
                "lock: names the key {twice:?} twice"
            )));
        }
        // A ticket needs an operation, too.
        let most = MOST_KEYS - usize::from(self.line.is_some());
        if keys.len() > most {
            return Err(Error::invalid(format!(
                "lock of {} keys: one transaction takes at most {most}",
                keys.len()
            )));
        }
        fits("lock", self.value.as_ref(), keys.iter())?;
        let name = keys.first().map(Key::as_str).unwrap_or_default();
        let lease = self.lease.lease(&self.client, name)?;
        let line = self.line.and_then(|preference| {
            let folder = Self::line_of(&keys)?;
            Some(Manner { folder, preference })
        });
        let goal = Goal {
            line,
            keys,
            value: self.value.clone(),
            roles: self.roles.clone(),
        };
        Ok((lease, goal))
    }

    async fn seek(&self, patience: Patience, sight: &Sight) -> Result<Attempt> {
        let (lease, goal) = self.prepared()?;
        let sought = match seek(&lease, &goal, patience, sight).await {
            Ok(sought) => sought,
            Err(err) => return Err(err.at(&format!("lock {}", named(&goal.keys)))),
        };
        match sought {
            Sought::Won(hold, tenure) => Ok(Attempt::Acquired(LockGuard {
                grip: Grip::new(hold, tenure, lease, self.lease.is_own()),
            })),
            other => {
                if self.lease.is_own() {
                    lease.close().await.ok();
                }
                Ok(match other {
                    Sought::Held(pair) => Attempt::Held(Holder::of(&pair)),
                    Sought::Delayed(left) => Attempt::Delayed { left },
                    Sought::Won(..) | Sought::Ours => Attempt::Held(Holder {
                        key: goal.keys.first().cloned(),
                        session: None,
                        value: Bytes::new(),
                    }),
                })
            }
        }
    }
}

/// Whether Consul takes a value of this size into each of these keys, all in one transaction.
pub(super) fn fits<'a>(
    what: &str,
    value: Option<&Bytes>,
    keys: impl ExactSizeIterator<Item = &'a Key>,
) -> Result<()> {
    let count = keys.len().max(1);
    // Each key stands in two operations, perhaps with what JSON must escape.
    let beside = keys.map(|key| 4 * key.len() + BESIDE_VALUES).sum();
    // It is sent in base64.
    let most = LONGEST_TXN.saturating_sub(beside) / count / 4 * 3;
    match value.map_or(0, Bytes::len) {
        size if size > most => Err(Error::invalid(format!(
            "{what} value of {size} bytes: Consul takes at most {most} here, in base64 and in one \
             transaction"
        ))),
        _ => Ok(()),
    }
}

fn named(keys: &[Key]) -> String {
    keys.iter().map(Key::as_str).collect::<Vec<_>>().join(", ")
}

/// What a try to take a lock came to.
#[derive(Debug)]
#[must_use = "the lock may have been taken"]
#[expect(clippy::exhaustive_enums, reason = "there is no fourth way")]
pub enum Attempt {
    /// It was taken.
    Acquired(LockGuard),
    /// Somebody else holds it.
    Held(Holder),
    /// Nobody holds it, but a lock-delay runs: its last holder ended without a release.
    Delayed {
        /// How much longer, if that is known.
        left: Option<Duration>,
    },
}

impl Attempt {
    /// The guard, if it was taken.
    #[must_use]
    pub fn acquired(self) -> Option<LockGuard> {
        match self {
            Self::Acquired(guard) => Some(guard),
            Self::Held(_) | Self::Delayed { .. } => None,
        }
    }
}

/// Who holds a lock.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Holder {
    key: Option<Key>,
    session: Option<SessionId>,
    value: Bytes,
}

impl Holder {
    pub(super) fn of(pair: &Pair) -> Self {
        Self {
            key: Some(pair.key().clone()),
            session: pair.session().cloned(),
            value: pair.value_bytes(),
        }
    }

    /// The key that is held.
    #[must_use]
    pub fn key(&self) -> Option<&Key> {
        self.key.as_ref()
    }

    /// The session that holds it; `None` if it is another task of this process, by the same lease,
    /// that holds it or is about to.
    #[must_use]
    pub fn session(&self) -> Option<&SessionId> {
        self.session.as_ref()
    }

    /// What the holder has written into the key.
    #[must_use]
    pub fn value(&self) -> &[u8] {
        &self.value
    }
}

/// A lock that is held.
///
/// It dereferences to [`Held`], which says whether it still is. It is not `Clone`: one guard, one
/// holder; share it by reference or in an `Arc`.
///
/// # Drop
///
/// Dropping it, anywhere, stops the belief at once, and unlocks in the background as long as the
/// runtime lives. [`release`](Self::release) waits for it. An unlock that fails is tried again for
/// as long as the session lives; until it is done, nobody takes the key by the same
/// [lease](Lock::lease). A session that ends before is followed by its lock-delay.
#[must_use = "dropping a guard releases the lock"]
pub struct LockGuard {
    grip: Grip,
}

impl LockGuard {
    /// Unlocks, and ends the session if it is the lock's own.
    ///
    /// Whoever waits for the lock can hold it as soon as the unlock has arrived: there is no
    /// lock-delay after a release. What stands in the key stays there.
    ///
    /// # Errors
    ///
    /// When Consul could not be told within 10 s. Nothing is believed any more in any case, and
    /// the session ends by its TTL, if it was the lock's own.
    ///
    /// # Cancel safety
    ///
    /// Once polled, the release goes on in the background even if the future is dropped.
    pub async fn release(self) -> Result<Released> {
        self.grip.release().await
    }

    /// Writes a new value into the key, the first if there are several, and goes on holding it.
    ///
    /// Neither the [token](Held::token) nor the lock changes by it.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Conflict`] if it is not held any more, with [`Lost`] as the source, and what
    /// Consul answers instead.
    ///
    /// # Cancel safety
    ///
    /// Once polled, the value may be written even if the future is dropped.
    pub async fn set_value(&self, value: impl Into<Bytes>) -> Result<()> {
        set_value(self.grip.lease.client(), &self.grip.held, value.into()).await
    }

    /// The lease it is held by.
    #[must_use]
    pub fn lease(&self) -> &Lease {
        &self.grip.lease
    }
}

/// Writes a value without disturbing the lock: a plain write would set its index back.
pub(super) async fn set_value(client: &Client, held: &Held, value: Bytes) -> Result<()> {
    let hold = &held.hold;
    let lost = |lost: Lost| {
        Error::new(ErrorKind::Conflict)
            .context("value not written")
            .caused_by(lost)
    };
    fits("lock", Some(&value), hold.keys.iter().take(1))?;
    hold.check().map_err(lost)?;
    let (Some(key), Some(flags)) = (
        hold.keys.first(),
        hold.contents().first().map(|content| content.flags),
    ) else {
        return Ok(());
    };
    let txn = client
        .txn()
        .kv(KvOp::check_session(key.as_str(), &hold.session))
        .kv(KvOp::lock(key.as_str(), &hold.session, value.clone()).flags(flags));
    match txn.await? {
        Outcome::Committed(results) => {
            if let Some(entry) = results.kv(1) {
                let content = Content {
                    modify_index: entry.modify_index(),
                    value,
                    flags,
                };
                hold.saw(0, content);
            }
            Ok(())
        }
        Outcome::RolledBack(failures) => {
            let taken = failures.iter().any(|failure| {
                matches!(
                    failure.reason(),
                    FailureReason::OtherSession { .. }
                        | FailureReason::UnknownSession
                        | FailureReason::LockHeld
                        | FailureReason::Missing
                )
            });
            if taken {
                return Err(lost(taken_away(client, hold).await));
            }
            Outcome::RolledBack(failures).into_result().map(|_| ())
        }
    }
}

impl Deref for LockGuard {
    type Target = Held;

    fn deref(&self) -> &Held {
        &self.grip.held
    }
}

impl fmt::Debug for LockGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LockGuard")
            .field("held", &self.grip.held)
            .finish_non_exhaustive()
    }
}
