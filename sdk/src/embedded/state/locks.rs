//! How sessions begin and end, and what they hold meanwhile.
//!
//! Usable without HTTP, and cheap: no call here copies more than what it changes.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::model::CRITICAL;
use super::session::{Behavior, Malformed, Named, Session, SessionId, SessionSpec};
use super::{Due, Leader, State};

/// `session_ttl_min`, 10 s.
const TTL_MIN: Duration = Duration::from_secs(10);
const TTL_MAX: Duration = Duration::from_secs(24 * 60 * 60);
/// A session ends this many times its TTL after it was last renewed: its holder may count on the
/// TTL, and the rest makes up for a slow network.
const TTL_MULTIPLIER: u32 = 2;
/// A longer lock-delay is stored as it is, and counts as this.
const MAX_LOCK_DELAY: Duration = Duration::from_secs(60);

/// Keys that nobody may lock yet, because their holder ended without giving them back.
///
/// It is no part of what the servers replicate: a restore forgets it.
#[derive(Debug, Default)]
pub(super) struct Delays(BTreeMap<String, Instant>);

impl Delays {
    fn arm(&mut self, key: String, now: Instant, delay: Duration) {
        if !delay.is_zero() {
            self.0.retain(|_, until| *until > now);
            self.0.insert(key, now + delay);
        }
    }

    fn holds(&self, key: &str, now: Instant) -> bool {
        self.0.get(key).is_some_and(|until| *until > now)
    }
}

/// Why a session was not created, in Consul's words.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum SessionRefused {
    /// The TTL, in nanoseconds.
    Ttl(i128),
    NoNode,
    NoCheck(String),
    Critical(String),
}

impl fmt::Display for SessionRefused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ttl(nanos) => write!(
                f,
                "Invalid Session TTL '{nanos}', must be between [10s=24h0m0s]"
            ),
            Self::NoNode => f.write_str("Missing node registration"),
            Self::NoCheck(id) => write!(f, "Missing check '{id}' registration"),
            Self::Critical(id) => write!(f, "Check '{id}' is in {CRITICAL} state"),
        }
    }
}

/// Why a key was not locked.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum LockRefused {
    /// Another session holds it.
    Held,
    /// Its last holder ended too short a time ago.
    Delayed,
    /// No session was named.
    Nobody,
    NoSession(SessionId),
    Malformed(Malformed),
}

impl fmt::Display for LockRefused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Held => f.write_str("lock is already held"),
            Self::Delayed => f.write_str("lock delay"),
            Self::Nobody => f.write_str("missing session"),
            Self::NoSession(id) => write!(f, "invalid session \"{id}\""),
            Self::Malformed(malformed) => malformed.fmt(f),
        }
    }
}

impl State {
    /// Begins a session, which ends with its node, with its checks and without renewals.
    ///
    /// # Errors
    ///
    /// When the TTL is out of bounds, or the node or a check is unknown, or a check is critical.
    pub(crate) fn create_session(
        &mut self,
        spec: SessionSpec,
        now: Instant,
    ) -> Result<SessionId, SessionRefused> {
        let ttl = spec.ttl.time;
        if !ttl.is_zero() && !(TTL_MIN..=TTL_MAX).contains(&ttl) {
            let nanos = i128::try_from(ttl.as_nanos()).unwrap_or(i128::MAX);
            return Err(SessionRefused::Ttl(nanos));
        }
        let id = SessionId::new(self.random(u64::MAX), self.random(u64::MAX));
        let index = self.next_index();
        let catalog = &self.replica.catalog;
        if catalog.node(&spec.node).is_none() {
            return Err(SessionRefused::NoNode);
        }
        for check in spec.check_ids() {
            match catalog.check(&spec.node, check) {
                None => return Err(SessionRefused::NoCheck(check.clone())),
                Some(known) if known.status == CRITICAL => {
                    return Err(SessionRefused::Critical(check.clone()));
                }
                Some(_) => {}
            }
        }
        self.replica.sessions.insert(index, id, spec);
        self.restart_ttl(id, ttl, now);
        Ok(id)
    }

    /// Puts the end of a session off.
    ///
    /// It is no write: nothing is replicated and no index moves.
    pub(crate) fn renew_session(&mut self, id: SessionId, now: Instant) -> Option<Arc<Session>> {
        let session = Arc::clone(self.replica.sessions.session(id)?);
        self.restart_ttl(id, session.spec.ttl.time, now);
        Some(session)
    }

    /// Ends a session on request; `false` when there is none.
    pub(crate) fn destroy_session(&mut self, id: SessionId, now: Instant) -> bool {
        let index = self.next_index();
        self.stop_ttl(id);
        self.invalidate(index, id, now)
    }

    /// Locks a key.
    ///
    /// Done again by its holder it writes the key, and is no new acquisition.
    ///
    /// # Errors
    ///
    /// When somebody else holds it or did until a short time ago, or the session is unknown.
    pub(crate) fn acquire(
        &mut self,
        key: &str,
        session: &Named,
        flags: u64,
        value: Bytes,
        now: Instant,
    ) -> Result<(), LockRefused> {
        // A server asks the delay before it tells the others of the write, because the clocks of
        // servers differ: what was asked in time goes through.
        if self.is_delayed(key, now) {
            return Err(LockRefused::Delayed);
        }
        let index = self.next_index();
        self.lock(index, key, session, flags, value)
    }

    /// Writes a key and gives it back; `false` when the session does not hold it.
    pub(crate) fn release(
        &mut self,
        key: &str,
        session: &Named,
        flags: u64,
        value: Bytes,
    ) -> Result<bool, LockRefused> {
        let index = self.next_index();
        self.unlock(index, key, session, flags, value)
    }

    pub(crate) fn is_delayed(&self, key: &str, now: Instant) -> bool {
        self.delays.holds(key, now)
    }

    pub(super) fn lock(
        &mut self,
        index: u64,
        key: &str,
        session: &Named,
        flags: u64,
        value: Bytes,
    ) -> Result<(), LockRefused> {
        let id = match session {
            Named::Nobody => return Err(LockRefused::Nobody),
            Named::Malformed(_, malformed) => return Err(LockRefused::Malformed(*malformed)),
            Named::Session(id) => *id,
        };
        if self.replica.sessions.session(id).is_none() {
            return Err(LockRefused::NoSession(id));
        }
        if self.replica.kv.lock(index, key, id, flags, value) {
            Ok(())
        } else {
            Err(LockRefused::Held)
        }
    }

    pub(super) fn unlock(
        &mut self,
        index: u64,
        key: &str,
        session: &Named,
        flags: u64,
        value: Bytes,
    ) -> Result<bool, LockRefused> {
        match session {
            Named::Nobody => Err(LockRefused::Nobody),
            // Nobody holds a key under what is no ID, and nobody looks it up.
            Named::Malformed(..) => Ok(false),
            Named::Session(id) => Ok(self.replica.kv.unlock(index, key, *id, flags, value)),
        }
    }

    /// The TTL of a session ran out.
    pub(crate) fn expire_session(&mut self, id: SessionId, at: Instant) -> bool {
        self.stop_ttl(id);
        let index = self.next_index();
        self.invalidate(index, id, at)
    }

    /// Ends a session, as part of the write with this index.
    ///
    /// Its TTL runs on, as on a server, and finds nobody.
    pub(super) fn invalidate(&mut self, index: u64, id: SessionId, now: Instant) -> bool {
        let Some(session) = self.replica.sessions.remove(index, id) else {
            return false;
        };
        let delay = session.spec.lock_delay.min(MAX_LOCK_DELAY);
        for key in self.replica.kv.held_by(id) {
            match session.spec.behavior {
                Behavior::Release => self.replica.kv.free(index, &key),
                Behavior::Delete => self.replica.kv.delete(index, now, &key),
            }
            self.delays.arm(key, now, delay);
        }
        for query in self.replica.queries.of_session(id) {
            self.replica.queries.remove(index, query);
        }
        true
    }

    /// The TTLs of all sessions begin anew, because the leader that counts them is a new one.
    pub(super) fn restart_ttls(&mut self, now: Instant) {
        self.stop_ttls();
        if self.leader != Leader::Elected {
            return;
        }
        let sessions: Vec<(SessionId, Duration)> = self
            .replica
            .sessions
            .list()
            .map(|session| (session.id, session.spec.ttl.time))
            .collect();
        for (id, ttl) in sessions {
            self.restart_ttl(id, ttl, now);
        }
    }

    /// Nobody counts the TTLs any more.
    pub(super) fn stop_ttls(&mut self) {
        let expiries = std::mem::take(&mut self.expiries);
        for (id, at) in expiries {
            self.timers.remove(&(at, Due::Session(id), String::new()));
        }
    }

    fn restart_ttl(&mut self, id: SessionId, ttl: Duration, now: Instant) {
        self.stop_ttl(id);
        if !ttl.is_zero() {
            let at = now + ttl * TTL_MULTIPLIER;
            self.expiries.insert(id, at);
            self.timers.insert((at, Due::Session(id), String::new()));
        }
    }

    fn stop_ttl(&mut self, id: SessionId) {
        if let Some(at) = self.expiries.remove(&id) {
            self.timers.remove(&(at, Due::Session(id), String::new()));
        }
    }
}
