//! Semaphores: as many holders as there are places.

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::admit::{Admitted, Limit, Wish, admit};
use super::attempt::Released;
use super::grip::Grip;
use super::held::Held;
use super::lease::Lease;
use super::lock::{Source, fits};
use super::profile::Profile;
use super::roster::Prefix;
use super::seat;
use super::waiting::{Patience, Sight, in_time};
use crate::client::Client;
use crate::error::{Error, ErrorKind, Result};

impl Client {
    /// A semaphore of `limit` places, whose keys stand under `prefix`.
    ///
    /// Nothing is sent before [`Semaphore::acquire`] or one of its neighbours. It is a semaphore
    /// for the reference client, and for `consul lock -n` of two or more, too. A slash at the prefix's end makes no
    /// difference.
    pub fn semaphore(&self, prefix: impl AsRef<str>, limit: u32) -> Semaphore {
        Semaphore {
            client: self.clone(),
            prefix: Prefix::new(prefix.as_ref()),
            limit: Arc::new(Limit::asked(limit)),
            value: None,
            lease: Source::Own(Profile::default()),
            deadline: None,
        }
    }
}

/// A number of places, of which each holder has one.
///
/// It can be used any number of times, and gives out a [`Permit`] for each place. Clones know the
/// same limit.
///
/// # Examples
///
/// ```no_run
/// # async fn example(client: lictor::Client) -> lictor::Result<()> {
/// let uploads = client.semaphore("uploads", 3);
/// let permit = uploads.acquire().await?;
/// tokio::select! {
///     () = upload() => {}
///     lost = permit.lost() => println!("stopped: {lost}"),
/// }
/// permit.release().await?;
/// # async fn upload() {}
/// # Ok(())
/// # }
/// ```
///
/// # Layout
///
/// It is the reference client's layout, so that lictor, the Go client and `consul lock -n` share
/// one: under the prefix stands a document, `.lock`, with the limit and the sessions that have a
/// place, and beside it a key for each of these sessions, which it holds as a lock.
///
/// # Who is let in, and when
///
/// A place is taken by one transaction: *if my key is as I saw it, lock it, and if the document is
/// as I saw it, write me into it.* It is given back by one, too. So whoever the document lists has
/// held its key from the same moment on, and the list is never longer than the limit was when the
/// last one came in.
///
/// The hard part is one whose session ended without giving its place back. It may go on believing
/// for a while, and only its key is protected by the lock-delay: the document is not. The rule:
///
/// **A place of one that ended is taken over only together with its key.** To strike it off the
/// list, another session *locks the dead one's key*, guarded by that key being as it was seen
/// unlocked (or gone), and deletes it in the same transaction that writes the document. Consul
/// refuses that lock for as long as the lock-delay of the dead session runs.
///
/// *Why that is enough.* Let H have a place, and let it go on believing until `u`. While it
/// believes, its session has not ended by time, and if its session ended early, at `e`, then
/// `u` is before `e` plus its lock-delay: that is what holds for the key of a lock, see the
/// [module](super), and H's key is one. Whoever is let in without H giving its place back must have
/// seen a document without H. Only a transaction as above writes such a one. It holds a lock on
/// H's key, which Consul grants after `e` plus the lock-delay at the earliest, and its guard was
/// read after `e`, so that it cannot have been on its way before. So it comes after `u`. A key that
/// is gone makes no difference: Consul keeps the lock-delay by the key's name (measured on 1.8.7,
/// where a session ends by deleting its keys, too).
///
/// *What other clients do.* The reference client strikes off whoever's key is unlocked, without
/// waiting. A place that it gives away so is lost to that rule, as any lock is that others take by
/// other means; lictor still does not follow it: a key without a session that no list has counts as
/// a taken place until it could be locked. An operator who deletes `.lock` or a session's key lets
/// the next one in at once, and the holder is told within milliseconds, if Consul can be reached.
#[derive(Clone, Debug)]
#[must_use = "a place is not taken before `acquire`"]
pub struct Semaphore {
    client: Client,
    prefix: Result<Prefix>,
    limit: Arc<Limit>,
    value: Option<Bytes>,
    lease: Source,
    deadline: Option<Duration>,
}

impl Semaphore {
    /// What to write into the key of each that has a place. Default: nothing.
    pub fn value(mut self, value: impl Into<Bytes>) -> Self {
        self.value = Some(value.into());
        self
    }

    /// How its leases are kept, if it has ones of its own. Default: [`Profile::balanced`].
    ///
    /// It takes the place of a [shared one](Self::lease).
    pub fn profile(mut self, profile: Profile) -> Self {
        self.lease = Source::Own(profile);
        self
    }

    /// The lease that places are held by. Default: one of its own for each permit, which ends with
    /// it.
    ///
    /// A lease has one place of a semaphore at most: two tasks that share one take turns.
    pub fn lease(mut self, lease: &Lease) -> Self {
        self.lease = Source::Shared(lease.clone());
        self
    }

    /// How long [`acquire`](Self::acquire) waits at most. Default: for ever.
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = Some(deadline);
        self
    }

    /// Takes a place, as soon as one is free.
    ///
    /// It waits by a blocking query, and through outages of Consul. A limit that is
    /// [changed](Self::set_limit) meanwhile, by whomever, counts from then on.
    ///
    /// # Errors
    ///
    /// - [`ErrorKind::Invalid`] for a limit of zero, and for a prefix, a value or a profile that
    ///   cannot work.
    /// - [`ErrorKind::NoRuntime`] outside of a Tokio runtime.
    /// - [`ErrorKind::PermissionDenied`] for a token that may not write the session or the keys.
    /// - [`ErrorKind::Conflict`] if the semaphore has another limit, which the text names, or if
    ///   what stands in `<prefix>/.lock` is no semaphore's: a lock of `consul lock`, for one. Other
    ///   keys under the prefix do not matter.
    /// - [`ErrorKind::Timeout`] when the [`deadline`](Self::deadline) is over; the text says whether
    ///   Consul answered.
    /// - Whatever else Consul refuses it with. What may pass is waited out, not told.
    ///   An answer that is not Consul's, such as a proxy's page with status 200 or 404, may not.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future, wherever it is, leaves no place taken and no session alive: what was on
    /// its way is given up in the background.
    pub async fn acquire(&self) -> Result<Permit> {
        let sight = Sight::default();
        let seeking = self.seek(Patience::Wait, &sight);
        let Some(sought) = in_time(self.deadline, seeking).await? else {
            let (prefix, deadline) = (self.prefix()?.name(), self.deadline.unwrap_or_default());
            let what = format!("semaphore {prefix}: no place taken within {deadline:?}");
            let full = format!(": none of {} was free", self.limit.get());
            return Err(sight.in_vain(&what, &self.client, &full));
        };
        // Only who does not wait is told that there is none.
        sought.ok_or_else(|| Error::new(ErrorKind::Conflict))
    }

    /// Takes a place if one is free now, without waiting for anybody.
    ///
    /// `None` if there is none: all are taken, or those who had them ended without giving them back
    /// and their lock-delay runs.
    ///
    /// # Errors
    ///
    /// As [`acquire`](Self::acquire), and what Consul cannot answer at this moment, too.
    ///
    /// # Cancel safety
    ///
    /// As [`acquire`](Self::acquire).
    pub async fn try_acquire(&self) -> Result<Option<Permit>> {
        self.seek(Patience::Try, &Sight::default()).await
    }

    /// Changes the limit, for everybody who uses the semaphore.
    ///
    /// More places can be had at once. Fewer take none away: nobody is let in before as many have
    /// gone. Whoever waits follows the change; users of the reference client must ask for the new
    /// limit themselves, and so must a [`Semaphore`] that has not been used yet.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Invalid`] for zero, [`ErrorKind::Conflict`] if something else stands under the
    /// prefix, and what Consul answers instead.
    ///
    /// # Cancel safety
    ///
    /// Once polled, the limit may be written even if the future is dropped.
    pub async fn set_limit(&self, limit: u32) -> Result<()> {
        let prefix = self.prefix()?;
        places(limit)?;
        seat::set_limit(&self.client, prefix, limit)
            .await
            .map_err(|err| err.at(&format!("limit of semaphore {}", prefix.name())))?;
        self.limit.set(limit);
        Ok(())
    }

    pub(super) fn prefix(&self) -> Result<&Prefix> {
        self.prefix.as_ref().map_err(Clone::clone)
    }

    pub(super) fn client(&self) -> &Client {
        &self.client
    }

    async fn seek(&self, patience: Patience, sight: &Sight) -> Result<Option<Permit>> {
        let prefix = self.prefix()?;
        places(self.limit.get())?;
        fits(
            "semaphore",
            self.value.as_ref(),
            std::iter::once(prefix.document()),
        )?;
        let lease = self.lease.lease(&self.client, prefix.name())?;
        let wish = Wish {
            prefix,
            limit: &self.limit,
            value: self.value.clone().unwrap_or_default(),
        };
        let admitted = admit(&lease, &wish, patience, sight).await;
        let admitted = admitted.map_err(|err| match err.kind() {
            // What stands under the prefix is told with its name.
            ErrorKind::Conflict => err,
            _ => err.at(&format!("semaphore {}", prefix.name())),
        })?;
        match admitted {
            Admitted::In(hold, tenure) => Ok(Some(Permit {
                grip: Grip::new(hold, tenure, lease, self.lease.is_own()),
            })),
            Admitted::Full => {
                if self.lease.is_own() {
                    lease.close().await.ok();
                }
                Ok(None)
            }
        }
    }
}

fn places(limit: u32) -> Result<()> {
    match limit {
        0 => Err(Error::invalid(
            "semaphore of 0 places: nobody could ever hold; ask for one or more",
        )),
        _ => Ok(()),
    }
}

/// A place of a semaphore that is held.
///
/// It dereferences to [`Held`], which says whether it still is. Its [token](Held::token) grows with
/// each that is let in. A [`FenceGate`](super::FenceGate) lets only the newest holder pass, so it is
/// for semaphores of one place; where several hold, fence by
/// [`Kv::fenced`](crate::api::kv::Kv::fenced).
///
/// # Drop
///
/// Dropping it, anywhere, stops the belief at once, and gives the place back in the background as
/// long as the runtime lives. [`release`](Self::release) waits for it. What fails is tried again for
/// as long as the session lives. Once that has ended, others have the place after its lock-delay.
#[must_use = "dropping a permit gives its place back"]
pub struct Permit {
    grip: Grip,
}

impl Permit {
    /// Gives the place back, and ends the session if it is the permit's own.
    ///
    /// Whoever waits for a place can have it as soon as that has arrived: there is no lock-delay
    /// after a release.
    ///
    /// # Errors
    ///
    /// When Consul could not be told within 10 s. Nothing is believed any more in any case, and
    /// the session ends by its TTL, if it was the permit's own.
    ///
    /// # Cancel safety
    ///
    /// Once polled, the release goes on in the background even if the future is dropped.
    pub async fn release(self) -> Result<Released> {
        self.grip.release().await
    }

    /// The lease it is held by.
    #[must_use]
    pub fn lease(&self) -> &Lease {
        &self.grip.lease
    }
}

impl Deref for Permit {
    type Target = Held;

    fn deref(&self) -> &Held {
        &self.grip.held
    }
}

impl fmt::Debug for Permit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Permit")
            .field("held", &self.grip.held)
            .finish_non_exhaustive()
    }
}
