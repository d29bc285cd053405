//! Why a lock or a place is not to be had: who holds, who waits, and what runs.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;

use super::lease::Lease;
use super::line::Line;
use super::lock::Lock;
use super::profile::Profile;
use super::roster::{Prefix, Scene};
use super::semaphore::Semaphore;
use crate::api::kv::Pair;
use crate::api::session::Session;
use crate::api::txn::{FailureReason, KvOp, Outcome};
use crate::client::Client;
use crate::error::Result;
use crate::ident::{Key, NodeName, SessionId};

impl Lock {
    /// Says who holds each key, whether a lock-delay runs, and how many wait, those that are
    /// [fair](Self::fair) in their order.
    ///
    /// For people and for logs: it is how things were while it was asked, and takes a handful of
    /// requests. For a key that nobody holds it makes a session for a moment, with a transaction
    /// that cannot succeed, because only a try tells whether a lock-delay runs.
    ///
    /// # What it cannot know
    ///
    /// - How much longer a lock-delay runs.
    /// - Waiting clients other than lictor's: they leave no trace at Consul. Nor those of lictor's
    ///   that wait by a [shared lease](Self::lease), whose session has a name of its own, unless they
    ///   stand in line.
    /// - Names and nodes of sessions that the token may not read.
    ///
    /// # Errors
    ///
    /// As [`acquire`](Self::acquire), and what Consul cannot answer at this moment, too.
    ///
    /// # Cancel safety
    ///
    /// Nothing is changed. A session that was made for it ends in the background.
    pub async fn explain(&self) -> Result<Explanation> {
        let client = self.client();
        let sessions = client.session().list().await?.into_value();
        let asked = self.valid_keys()?;
        let waiting = asked.first().map(|key| named(&sessions, key));
        let waiting = waiting.unwrap_or_default();
        let line = match Self::line_of(&asked) {
            Some(folder) => match Line::read(client, &folder).await {
                // Who may not read it has no line: they could not be fair.
                Err(err) if err.is_permission_denied() => Line::default(),
                line => line?,
            },
            None => Line::default(),
        };
        let mut keys = Vec::new();
        let mut probe = None;
        for key in asked {
            let pair = client.kv().get(key.as_str()).await?.into_value();
            let occupant = pair.as_ref().and_then(|pair| Occupant::of(pair, &sessions));
            let delayed = match &occupant {
                Some(_) => false,
                None => {
                    if probe.is_none() {
                        probe = Some(Probe::new(client)?);
                    }
                    match &probe {
                        Some(probe) => probe.is_delayed(&key).await?,
                        None => false,
                    }
                }
            };
            keys.push(KeyState {
                key,
                occupant,
                delayed,
            });
        }
        if let Some(probe) = probe {
            probe.lease.close().await.ok();
        }
        let holds = |session: &&SessionId| {
            let holders = keys.iter().filter_map(|key| key.occupant.as_ref());
            holders.into_iter().all(|one| one.session != **session)
        };
        let line = line.waiters.into_iter().zip(1..).map(|(waiter, place)| {
            let known = sessions.iter().find(|known| *known.id() == waiter.session);
            InLine {
                place,
                name: known.map(|known| known.name().to_owned()),
                session: waiter.session,
                preference: waiter.rank.preference,
                since: waiter.rank.since,
            }
        });
        let line: Vec<InLine> = line.collect();
        let beside = |session: &&SessionId| line.iter().all(|one| one.session != **session);
        let waiting = line.len() + waiting.iter().filter(holds).filter(beside).count();
        Ok(Explanation {
            keys,
            line,
            waiting,
        })
    }
}

impl Semaphore {
    /// Says who has a place, and how many wait.
    ///
    /// For people and for logs: it is how things were while it was asked.
    ///
    /// # What it cannot know
    ///
    /// - How much longer the lock-delay runs of those that [ended](Place::has_ended) without giving
    ///   their places back, or whether it does.
    /// - Waiting lictors that wait by a [shared lease](Self::lease). Waiting clients of the
    ///   reference kind are counted.
    /// - Names and nodes of sessions that the token may not read.
    ///
    /// # Errors
    ///
    /// As [`acquire`](Self::acquire), and what Consul cannot answer at this moment, too.
    ///
    /// # Cancel safety
    ///
    /// Nothing is changed.
    pub async fn explain(&self) -> Result<Places> {
        let prefix = self.prefix()?;
        let client = self.client();
        let sessions = client.session().list().await?.into_value();
        let (pairs, meta) = client.kv().list(prefix.folder()).await?.into_parts();
        let scene = Scene::read(prefix, pairs, meta.index().unwrap_or(0))?;
        Ok(Places::of(prefix, &scene, &sessions))
    }
}

/// The sessions of lictor's own that were made for this lock or semaphore alone.
fn named(sessions: &[std::sync::Arc<Session>], name: &str) -> Vec<SessionId> {
    let own = sessions.iter().filter(|session| {
        let rest = session.name().strip_prefix(name);
        rest.is_some_and(|rest| rest.starts_with(" (lictor "))
    });
    own.map(|session| session.id().clone()).collect()
}

/// A session that takes nothing.
struct Probe {
    lease: Lease,
}

impl Probe {
    fn new(client: &Client) -> Result<Self> {
        let profile = Profile::balanced().lock_delay(Duration::ZERO).expiry_only();
        Ok(Self {
            lease: client.lease().profile(profile).build()?,
        })
    }

    /// Whether a lock-delay runs for a key that nobody holds.
    async fn is_delayed(&self, key: &Key) -> Result<bool> {
        let session = self.lease.session().await?;
        // Either the lock is refused, or the key exists by then: it is rolled back in any case.
        let txn = self.lease.client().txn();
        let txn = txn
            .kv(KvOp::lock(key.as_str(), &session, Bytes::new()))
            .kv(KvOp::check_not_exists(key.as_str()));
        match txn.await? {
            Outcome::Committed(_) => Ok(false),
            Outcome::RolledBack(failures) => {
                let delayed = |reason: &FailureReason| matches!(reason, FailureReason::LockDelay);
                if failures.iter().any(|failure| delayed(failure.reason())) {
                    return Ok(true);
                }
                let expected = |reason: &FailureReason| {
                    matches!(reason, FailureReason::Exists | FailureReason::LockHeld)
                };
                if failures.iter().any(|failure| expected(failure.reason())) {
                    return Ok(false);
                }
                Outcome::RolledBack(failures).into_result().map(|_| false)
            }
        }
    }
}

/// Why a lock is, or is not, to be had: the answer of [`Lock::explain`].
///
/// Its `Display` is a sentence for each key.
#[derive(Clone, Debug)]
pub struct Explanation {
    keys: Vec<KeyState>,
    line: Vec<InLine>,
    waiting: usize,
}

impl Explanation {
    /// The keys, in the order in which they were asked for.
    #[must_use]
    pub fn keys(&self) -> &[KeyState] {
        &self.keys
    }

    /// Whether nobody holds any of the keys, and no lock-delay runs.
    #[must_use]
    pub fn is_free(&self) -> bool {
        let free = |key: &KeyState| key.occupant.is_none() && !key.delayed;
        self.keys.iter().all(free)
    }

    /// Those that stand in [line](Lock::fair), the next one first.
    #[must_use]
    pub fn line(&self) -> &[InLine] {
        &self.line
    }

    /// How many lictors wait for it, in line or by a session of their own, as far as the token may
    /// see.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.waiting
    }
}

/// One that stands in line for a lock.
#[derive(Clone, Debug)]
pub struct InLine {
    place: usize,
    session: SessionId,
    name: Option<String>,
    preference: u8,
    since: u64,
}

impl InLine {
    /// Its place; the next one is at 1.
    #[must_use]
    pub fn place(&self) -> usize {
        self.place
    }

    /// The session that it waits by.
    #[must_use]
    pub fn session(&self) -> &SessionId {
        &self.session
    }

    /// The session's name; `None` if the session cannot be read.
    #[must_use]
    pub fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    /// Its [preference](super::Election::preference): higher goes first.
    #[must_use]
    pub fn preference(&self) -> u8 {
        self.preference
    }

    /// The index at which Consul took its ticket: among equals, smaller goes first.
    #[must_use]
    pub fn since(&self) -> u64 {
        self.since
    }
}

impl fmt::Display for InLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}. in line: session {}", self.place, self.session)?;
        if let Some(name) = self.name.as_deref().filter(|name| !name.is_empty()) {
            write!(f, " ({name:?})")?;
        }
        if self.preference > 0 {
            write!(f, ", preference {}", self.preference)?;
        }
        write!(f, " since index {}", self.since)
    }
}

/// How one key of a lock is.
#[derive(Clone, Debug)]
pub struct KeyState {
    key: Key,
    occupant: Option<Occupant>,
    delayed: bool,
}

impl KeyState {
    /// The key.
    #[must_use]
    pub fn key(&self) -> &Key {
        &self.key
    }

    /// Who holds it.
    #[must_use]
    pub fn occupant(&self) -> Option<&Occupant> {
        self.occupant.as_ref()
    }

    /// Whether nobody holds it and a lock-delay runs: its last holder ended without a release.
    #[must_use]
    pub fn is_delayed(&self) -> bool {
        self.delayed
    }
}

/// A session that holds, and what is known of it.
#[derive(Clone, Debug)]
pub struct Occupant {
    session: SessionId,
    name: Option<String>,
    node: Option<NodeName>,
    lock_delay: Option<Duration>,
    value: Bytes,
    since: u64,
}

impl Occupant {
    fn of(pair: &Pair, sessions: &[std::sync::Arc<Session>]) -> Option<Self> {
        let session = pair.session()?;
        let known = sessions.iter().find(|known| known.id() == session);
        Some(Self {
            session: session.clone(),
            name: known.map(|known| known.name().to_owned()),
            node: known.map(|known| known.node().clone()),
            lock_delay: known.map(|known| known.lock_delay()),
            value: pair.value_bytes(),
            since: pair.modify_index(),
        })
    }

    /// The session.
    #[must_use]
    pub fn session(&self) -> &SessionId {
        &self.session
    }

    /// The session's name; `None` if the session cannot be read.
    #[must_use]
    pub fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    /// The node that the session belongs to; `None` if the session cannot be read.
    #[must_use]
    pub fn node(&self) -> Option<&NodeName> {
        self.node.as_ref()
    }

    /// How long others are kept out if the session ends without a release; `None` if the session
    /// cannot be read.
    #[must_use]
    pub fn lock_delay(&self) -> Option<Duration> {
        self.lock_delay
    }

    /// What stands in its key.
    #[must_use]
    pub fn value(&self) -> &[u8] {
        &self.value
    }

    /// The index at which it took the key, or at which the key was last written since.
    #[must_use]
    pub fn since(&self) -> u64 {
        self.since
    }
}

impl fmt::Display for Occupant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "session {}", self.session)?;
        if let Some(name) = self.name.as_deref().filter(|name| !name.is_empty()) {
            write!(f, " ({name:?})")?;
        }
        if let Some(node) = &self.node {
            write!(f, " of node {node}")?;
        }
        write!(f, " since index {}", self.since)?;
        if let Some(lock_delay) = self.lock_delay {
            write!(f, ", lock-delay {lock_delay:?}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for KeyState {
            key,
            occupant,
            delayed,
        } in &self.keys
        {
            match occupant {
                Some(occupant) => write!(f, "{key}: held by {occupant}; ")?,
                None if *delayed => write!(f, "{key}: free, but a lock-delay runs; ")?,
                None => write!(f, "{key}: free; ")?,
            }
        }
        for waiter in &self.line {
            write!(f, "{waiter}; ")?;
        }
        write!(f, "{} waiting", self.waiting)
    }
}

/// Who has the places of a semaphore: the answer of [`Semaphore::explain`].
#[derive(Clone, Debug)]
pub struct Places {
    limit: Option<u32>,
    taken: Vec<Place>,
    waiting: usize,
}

/// A place that is taken.
#[derive(Clone, Debug)]
pub struct Place {
    session: String,
    occupant: Option<Occupant>,
}

impl Places {
    fn of(prefix: &Prefix, scene: &Scene, sessions: &[std::sync::Arc<Session>]) -> Self {
        let standing = scene.standing(prefix, "");
        let dead = standing.dead.iter().map(|dead| &dead.session);
        let all = standing.living.iter().chain(dead);
        let taken: Vec<Place> = all
            .map(|session| Place {
                session: session.clone(),
                occupant: scene
                    .beside(session)
                    .and_then(|pair| Occupant::of(pair, sessions)),
            })
            .collect();
        let has_place = |session: &str| taken.iter().any(|place| place.session == session);
        let mut waiting: std::collections::BTreeSet<&str> = scene.contenders().collect();
        let own = named(sessions, prefix.name());
        waiting.extend(own.iter().map(SessionId::as_str));
        let waiting = waiting.iter().filter(|session| !has_place(session)).count();
        Self {
            limit: scene.roster.as_ref().map(|roster| roster.limit),
            taken,
            waiting,
        }
    }

    /// The limit; `None` if nobody has used the semaphore yet.
    #[must_use]
    pub fn limit(&self) -> Option<u32> {
        self.limit
    }

    /// The places that are taken, those of sessions that live first.
    #[must_use]
    pub fn taken(&self) -> &[Place] {
        &self.taken
    }

    /// How many wait, as far as it can be seen.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.waiting
    }
}

impl Place {
    /// The session that has it, as Consul writes it.
    #[must_use]
    pub fn session(&self) -> &str {
        &self.session
    }

    /// Who has it; `None` if its session [ended](Self::has_ended).
    #[must_use]
    pub fn occupant(&self) -> Option<&Occupant> {
        self.occupant.as_ref()
    }

    /// Whether its session ended without giving it back: others can have it once the session's
    /// lock-delay is over.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.occupant.is_none()
    }
}

impl fmt::Display for Places {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.limit {
            Some(limit) => write!(f, "{} of {limit} places taken; ", self.taken.len())?,
            None => write!(f, "{} places taken; ", self.taken.len())?,
        }
        for Place { session, occupant } in &self.taken {
            match occupant {
                Some(occupant) => write!(f, "{occupant}; ")?,
                None => write!(f, "session {session}, which has ended; ")?,
            }
        }
        write!(f, "{} waiting", self.waiting)
    }
}
