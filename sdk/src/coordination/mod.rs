//! Locks that are provably held by one, and are handed over fast.
//!
//! A [`Lease`] is a session at Consul that is kept alive. By it, a [`Lock`] takes keys, and its
//! [`LockGuard`] says for how long it may believe that it holds them.
//!
//! ```no_run
//! # async fn example(client: lictor::Client) -> lictor::Result<()> {
//! let guard = client.lock("jobs/nightly").acquire().await?;
//! tokio::select! {
//!     () = work() => {}
//!     lost = guard.lost() => println!("stopped: {lost}"),
//! }
//! guard.release().await?;
//! # async fn work() {}
//! # Ok(())
//! # }
//! ```
//!
//! An [`Election`] is a lock with work that runs only while it is held, and a value that tells
//! others who holds it:
//!
//! ```no_run
//! # async fn example(client: lictor::Client, stop: impl Future<Output = ()> + Send) -> lictor::Result<()> {
//! use lictor::coordination::Next;
//!
//! let election = client.election("jobs/mailer/leader").candidate("host-1:8080");
//! election
//!     .run(stop, async move |term| {
//!         tokio::select! {
//!             () = term.stopping() => {}
//!             () = send_mails(term.token()) => {}
//!         }
//!         Next::StepDown
//!     })
//!     .await?;
//! # async fn send_mails(_: lictor::coordination::FencingToken) {}
//! # Ok(())
//! # }
//! ```
//!
//! | I want to | use |
//! |---|---|
//! | hold a key, or several | [`Client::lock`](crate::Client::lock) |
//! | have many contenders hold in the order in which they came | [`Lock::fair`], [`Election::fair`] |
//! | hold one of several places | [`Client::semaphore`](crate::Client::semaphore) |
//! | write only while it is held | [`Kv::fenced`](crate::api::kv::Kv::fenced), [`FenceGate`] |
//! | know why it is not to be had | [`Lock::explain`], [`Semaphore::explain`] |
//! | do work in one process of many | [`Election::run`] |
//! | have one process lead rather than others | [`Election::preference`] |
//! | lead, and decide by hand when to stop | [`Election::campaign`] |
//! | find the leader in the catalog and by DNS | [`Election::advertise`] |
//! | know who leads, without campaigning | [`Election::observe`] |
//! | tell whether this process leads | [`Election::roles`], [`Held::check`] |
//! | share one session | [`Client::lease`](crate::Client::lease) |
//!
//! # What is guaranteed
//!
//! **No two believe at the same moment.** While [`Held::check`] says `Ok`, nobody else's does for
//! the same key. A holder stops believing by its own clock, without asking anybody, before Consul
//! lets anybody else in:
//!
//! - Every proof that the session lives counts from the moment at which it was *sent*: an answer
//!   that took nine seconds proves nothing about the last nine.
//! - The belief ends, two per cent and a tenth of a second early, when the first of these is over:
//!   the TTL since the last renewal, and the lock-delay since the last time that a leader, having
//!   asked the other servers, still had the session. The first covers a session that ends by time:
//!   Consul waits for at least the TTL. The second covers one that ends early, because its agent
//!   left or an operator destroyed it: then nobody gets the key for the lock-delay.
//! - Once ended, a belief never comes back, whatever answers arrive late.
//! - A key is taken only as it was seen free: a try that is on its way while a session ends cannot
//!   slip past the lock-delay.
//! - On release, the holder stops believing first, and unlocks then.
//! - A place of a semaphore whose session ended is taken over only together with the key that it
//!   held, so that the lock-delay counts for places, too; see [`Semaphore`].
//! - The work of an election runs in the task that races it against the loss: once the belief has
//!   ended it is not polled again, and what it has spawned neither.
//!
//! **What that rests on.** Clocks of the machines involved differ by less than one per cent in
//! speed; they need not show the same time. Time during which the machine was suspended counts
//! (on Linux). Nobody takes the key away by other means: an operator who deletes
//! it or releases it lets the next one in at once, without a lock-delay; the holder is told within
//! milliseconds, if Consul can be reached and it has held for half a second: younger holds are not
//! watched yet, so that short ones cost no query. The servers keep the lock-delay: they have it in memory.
//!
//! **When a snapshot is restored**, what was held when it was made is held as before. What was taken
//! since is taken away; the holder is told within milliseconds, if Consul can be reached. A contender
//! for a lock who was waiting at that time sees that the servers went back, and waits for the
//! lock-delay that they have forgotten; one who comes later, or to a semaphore, may enter at once, as
//! if an operator had deleted the key. Lock-delays that run already are forgotten, and sessions that had ended since are there again, until their TTL is over. On the same servers
//! tokens go on growing, because Consul counts on from the larger of both indexes. Restored to *other*
//! servers, or to ones that were wiped, they go back to where they were when it was made: what is
//! written to must then forget the largest token that it has seen. (All measured on 1.8.7.)
//!
//! **What no client can prevent.** A process that is stopped between its last look at the clock
//! and its write writes late. For that there is the [`FencingToken`], which grows with each holder:
//! hand it to what is written to, and let that refuse a smaller one ([`FenceGate`]). Consul itself
//! refuses it for its own keys ([`Kv::fenced`](crate::api::kv::Kv::fenced)), in a later hold by the
//! same session, too.
//!
//! # What it costs, and how fast it is
//!
//! See [`Profile`]. A clean release is handed over as fast as Consul commits; after a crash,
//! others wait as long as the profile says.

mod clock;
mod state;
mod fence;
mod profile;
mod belief;
mod claims;
mod session;
mod roster;
mod held;
mod attempt;
mod seat;
mod aim;
mod ticket;
mod pursuit;
mod book;
mod keeper;
mod lease;
mod grip;
mod role;
mod waiting;
mod line;
mod seek;
mod lock;
mod admit;
mod semaphore;
mod explain;
mod fenced;
mod leadership;
mod yielding;
mod election;
mod observe;

pub use attempt::Released;
pub use election::Election;
pub use explain::{Explanation, InLine, KeyState, Occupant, Place, Places};
pub use fence::{FenceGate, FencingToken, StaleToken};
pub use fenced::{Fenced, FencedTxn};
pub use held::Held;
pub use leadership::{Leadership, Term};
pub use lease::{Lease, NewLease};
pub use lock::{Attempt, Holder, Lock, LockGuard};
pub use observe::{Leader, LeaderView, Observer};
pub use profile::Profile;
pub use role::{Next, Outcome, Role};
pub use semaphore::{Permit, Semaphore};
pub use state::{LeaseState, LossCause, Lost};

pub use crate::states::States;

#[cfg(test)]
mod simulation;
