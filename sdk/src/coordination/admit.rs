//! The way to a place of a semaphore: look, wait, strike off the dead, try, and again.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::aim::Aim;
use super::attempt::{next_index, since};
use super::claims::Claim;
use super::held::Hold;
use super::lease::{Lease, Tenure};
use super::pursuit::Taken;
use super::roster::{Prefix, Roster, Scene, Standing};
use super::seat::{self, Bid, Swept};
use super::waiting::{Claimed, Patience, Sight, UNCHANGED, Waiting, long_wait};
use crate::client::Client;
use crate::error::{Error, ErrorKind, Result};
use crate::ident::SessionId;
use crate::proto::contest::Contest;

/// A place that is wanted.
#[derive(Debug)]
pub(super) struct Wish<'a> {
    pub(super) prefix: &'a Prefix,
    pub(super) limit: &'a Limit,
    /// What to write into the session's key.
    pub(super) value: Bytes,
}

/// What was found.
pub(super) enum Admitted {
    In(Arc<Hold>, Arc<Tenure>),
    Full,
}

/// How many places there are, as far as is known here.
#[derive(Debug)]
pub(super) struct Limit(Mutex<Known>);

#[derive(Clone, Copy, Debug)]
struct Known {
    limit: u32,
    /// Whether the document has said the same before, or was made to. From then on it is followed.
    agreed: bool,
}

impl Limit {
    pub(super) const fn asked(limit: u32) -> Self {
        Self(Mutex::new(Known {
            limit,
            agreed: false,
        }))
    }

    pub(super) fn get(&self) -> u32 {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).limit
    }

    pub(super) fn set(&self, limit: u32) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *known = Known {
            limit,
            agreed: true,
        };
    }

    /// The limit that counts, given what the document says.
    fn agree(&self, prefix: &Prefix, told: Option<u32>) -> Result<u32> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match told {
            Some(told) if told != known.limit && !known.agreed => {
                Err(Error::new(ErrorKind::Conflict).context(format!(
                    "semaphore {}: its limit is {told}, and {} was asked for: ask for {told}, or \
                     change it with `set_limit`",
                    prefix.name(),
                    known.limit
                )))
            }
            Some(told) => {
                *known = Known {
                    limit: told,
                    agreed: true,
                };
                Ok(told)
            }
            None => Ok(known.limit),
        }
    }
}

/// How long the lock-delay of one that lives is looked for: it only saves requests later.
const ASIDE: Duration = Duration::from_secs(1);

/// Another session that has a place.
#[derive(Debug, Default)]
struct Other {
    /// Its lock-delay, read while it lived.
    lock_delay: Option<Duration>,
    /// Once it is dead: when its place can be had.
    contest: Option<Contest>,
    /// Not to be tried before.
    not_before: Option<Instant>,
}

struct Seeker<'a> {
    client: &'a Client,
    wish: &'a Wish<'a>,
    waiting: Waiting,
    contest: Contest,
    others: BTreeMap<String, Other>,
}

/// Takes a place, or says that there is none.
///
/// Cancel safe: what a try takes that nobody waits for any more, the keeper gives up.
pub(super) async fn admit(
    lease: &Lease,
    wish: &Wish<'_>,
    patience: Patience,
    sight: &Sight,
) -> Result<Admitted> {
    let mut seeker = Seeker {
        client: lease.client(),
        wish,
        waiting: Waiting::new(patience, sight.clone()),
        contest: Contest::default(),
        others: BTreeMap::new(),
    };
    loop {
        let tenure = match lease.tenure().await {
            Ok(tenure) => tenure,
            Err(err) => {
                seeker.bear(err).await?;
                continue;
            }
        };
        // A session has one place at most: the document lists sessions.
        let own = [wish.prefix.contender(&tenure.session)?];
        let claim = match seeker.waiting.claim(&tenure, &own).await {
            Claimed::Yes(claim) => claim,
            Claimed::ByOthers => return Ok(Admitted::Full),
            Claimed::SessionLost => continue,
        };
        tokio::select! {
            biased;
            found = seeker.by(&tenure, claim) => if let Some(found) = found? {
                return Ok(found);
            },
            _ = tenure.belief.lost() => {}
        }
    }
}

impl Seeker<'_> {
    /// Seeks by one session; `None` if it is gone.
    async fn by(&mut self, tenure: &Arc<Tenure>, mut claim: Claim) -> Result<Option<Admitted>> {
        let session = &tenure.session;
        let mut known = None;
        loop {
            let scene = match known.take() {
                Some(scene) => scene,
                None => match self.look().await {
                    Ok(scene) => scene,
                    Err(err) => {
                        self.bear(err).await?;
                        continue;
                    }
                },
            };
            let told = scene.roster.as_ref().map(|roster| roster.limit);
            let limit = self.wish.limit.agree(self.wish.prefix, told)?;
            let places = usize::try_from(limit).unwrap_or(usize::MAX);
            let standing = scene.standing(self.wish.prefix, session);
            if standing.taken >= places {
                let retry = match self.make_room(session, &scene, &standing, places).await {
                    Ok(Room::Changed) => continue,
                    Ok(Room::None { retry }) => retry,
                    Ok(Room::SessionGone) => return Ok(None),
                    Err(err) => {
                        self.bear(err).await?;
                        continue;
                    }
                };
                if self.waiting.only_tries() {
                    return Ok(Some(Admitted::Full));
                }
                self.learn(&standing).await;
                known = self.wait(&scene, retry).await?;
                continue;
            }
            let now = Instant::now();
            let at = self.contest.free(now, rand::random());
            if at > now && !self.waiting.only_tries() {
                known = self.wait(&scene, Some(at)).await?;
                if known.is_some() {
                    continue;
                }
            }
            let aim = Aim::Place(Box::new(self.bid(session, &scene, limit)?));
            match tenure.take(aim, claim).await {
                Taken::Won(hold) => {
                    self.wish.limit.set(limit);
                    return Ok(Some(Admitted::In(hold, Arc::clone(tenure))));
                }
                Taken::Delayed(back) => {
                    // The session's own key: somebody released it by hand, and took it.
                    claim = back;
                    let at = self.contest.delayed(Instant::now(), rand::random());
                    if self.waiting.only_tries() {
                        return Ok(Some(Admitted::Full));
                    }
                    known = self.wait(&scene, Some(at)).await?;
                }
                Taken::Moved(back) => {
                    claim = back;
                    self.contest.lost_race();
                }
                Taken::Refused(err, back) => {
                    claim = back;
                    self.bear(err).await?;
                }
                Taken::SessionGone => return Ok(None),
            }
        }
    }

    /// Strikes off as many of the dead as it takes, if that is enough.
    async fn make_room(
        &mut self,
        session: &SessionId,
        scene: &Scene,
        standing: &Standing,
        places: usize,
    ) -> Result<Room> {
        let mut retry: Option<Instant> = None;
        if standing.taken - standing.dead.len() >= places {
            return Ok(Room::None { retry });
        }
        for dead in &standing.dead {
            let now = Instant::now();
            let other = self.others.entry(dead.session.clone()).or_default();
            let lock_delay = other.lock_delay;
            let contest = other.contest.get_or_insert_with(|| {
                let mut contest = Contest::default();
                contest.freed(now, lock_delay);
                contest
            });
            let later = match other.not_before {
                Some(at) if at > now => at,
                _ => {
                    match seat::sweep(self.client, session, self.wish.prefix, scene, dead).await? {
                        Swept::Done => return Ok(Room::Changed),
                        Swept::Moved => {
                            self.contest.lost_race();
                            return Ok(Room::Changed);
                        }
                        Swept::SessionGone => return Ok(Room::SessionGone),
                        Swept::Delayed => contest.delayed(Instant::now(), rand::random()),
                    }
                }
            };
            other.not_before = Some(later);
            retry = Some(retry.map_or(later, |retry| retry.min(later)));
        }
        Ok(Room::None { retry })
    }

    async fn bear(&mut self, err: Error) -> Result<()> {
        let prefix = self.wish.prefix.name();
        self.waiting.bear(prefix, err, drop).await
    }

    async fn look(&mut self) -> Result<Scene> {
        // On the way that the try takes: to change it would wake another thread.
        let list = self.client.kv().list(self.wish.prefix.folder()).beat();
        let (pairs, meta) = list.await?.into_parts();
        let scene = Scene::read(self.wish.prefix, pairs, meta.index().unwrap_or(0))?;
        self.waiting.answered();
        Ok(scene)
    }

    /// Reads the lock-delays of those who live: once one has ended, nobody can tell its own any
    /// more.
    async fn learn(&mut self, standing: &Standing) {
        self.others.retain(|session, _| {
            standing.living.contains(session)
                || standing.dead.iter().any(|dead| dead.session == *session)
        });
        for session in &standing.living {
            if self.others.contains_key(session) {
                continue;
            }
            let mut other = Other::default();
            if let Ok(id) = SessionId::new(session.as_str()) {
                let read = self.client.session().info(&id).stale().timeout(ASIDE);
                let info = read.await.ok().and_then(|info| info.into_value());
                other.lock_delay = info.map(|info| info.lock_delay());
            }
            self.others.insert(session.clone(), other);
        }
    }

    /// Waits for a change, or until `at`; `None` if nothing has changed until then.
    async fn wait(&mut self, scene: &Scene, at: Option<Instant>) -> Result<Option<Scene>> {
        let changed = match at {
            None => {
                self.waiting.paced().await;
                self.change(scene).await
            }
            Some(at) => tokio::select! {
                biased;
                () = tokio::time::sleep_until(at) => return Ok(None),
                changed = self.change(scene) => changed,
            },
        };
        match changed {
            Ok(changed) => {
                self.waiting.answered();
                if changed.index == 0 {
                    tokio::time::sleep(UNCHANGED).await;
                }
                Ok(Some(changed))
            }
            Err(err) => {
                self.bear(err).await?;
                Ok(None)
            }
        }
    }

    /// One blocking query.
    async fn change(&self, scene: &Scene) -> Result<Scene> {
        let list = self.client.kv().list(self.wish.prefix.folder());
        let answer = since(list, scene.index, long_wait()).await?;
        let (pairs, meta) = answer.into_parts();
        let index = next_index(meta.index(), scene.index);
        Scene::read(self.wish.prefix, pairs, index)
    }

    fn bid(&self, session: &SessionId, scene: &Scene, limit: u32) -> Result<Bid> {
        let roster = match &scene.roster {
            Some(roster) => roster.with(session),
            None => Roster::new(limit).with(session),
        };
        let own = scene.beside(session);
        Ok(Bid {
            prefix: self.wish.prefix.clone(),
            key: self.wish.prefix.contender(session)?,
            modify_index: own.map_or(0, |pair| pair.modify_index()),
            value: self.wish.value.clone(),
            roster: roster.bytes()?,
            roster_index: scene.roster_index,
        })
    }
}

/// What became of the dead.
enum Room {
    /// Somebody wrote: look again.
    Changed,
    /// There is none, or not before then.
    None {
        retry: Option<Instant>,
    },
    SessionGone,
}
