//! The way to a lock: look, wait, try, and again.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::aim::Aim;
use super::attempt::{MOST_OPERATIONS, Want, next_index, since};
use super::claims::Claim;
use super::held::Hold;
use super::lease::{Lease, Tenure};
use super::line::{Joined, Manner, Stand, Turn, struck};
use super::pursuit::Taken;
use super::role::Roles;
use super::roster::SEMAPHORE_FLAGS;
use super::waiting::{Claimed, Patience, Sight, UNCHANGED, Waiting, long_wait};
use crate::api::kv::Pair;
use crate::client::Client;
use crate::error::{Error, ErrorKind, Result};
use crate::ident::{Key, SessionId};
use crate::proto::contest::Contest;

/// What is to be held.
#[derive(Clone, Debug)]
pub(super) struct Goal {
    pub(super) keys: Vec<Key>,
    /// What to write into the keys; what stands there where absent.
    pub(super) value: Option<Bytes>,
    /// Who is told what is seen while others are waited for.
    pub(super) roles: Option<Roles>,
    /// How to stand in line, if that is what is wanted.
    pub(super) line: Option<Manner>,
}

impl Goal {
    /// How many tickets the transaction can remove: each key needs two operations.
    fn room(&self) -> usize {
        MOST_OPERATIONS.saturating_sub(2 * self.keys.len())
    }
}

/// What was found.
pub(super) enum Sought {
    Won(Arc<Hold>, Arc<Tenure>),
    Held(Pair),
    /// A lock-delay runs, for this much longer if that is known.
    Delayed(Option<Duration>),
    /// Another task of this process holds it, or tries to, by the same lease.
    Ours,
}

/// A key as it was last seen.
#[derive(Debug)]
struct View {
    index: u64,
    pair: Option<Pair>,
}

impl View {
    fn holder(&self) -> Option<&SessionId> {
        self.pair.as_ref().and_then(Pair::session)
    }

    /// The index of its last change; 0 if it does not exist.
    fn modify_index(&self) -> u64 {
        self.pair.as_ref().map_or(0, Pair::modify_index)
    }
}

/// One seeker: what it knows of its keys and of the contest for them.
struct Seeker<'a> {
    client: &'a Client,
    goal: &'a Goal,
    waiting: Waiting,
    contest: Contest,
    former: Option<Former>,
    /// The session that it seeks by.
    own: Option<SessionId>,
    /// Its place in line, if it waits in one.
    stand: Option<Stand<'a>>,
    freedom: Option<Freedom>,
}

/// Who was last seen to hold.
#[derive(Debug)]
struct Former {
    session: SessionId,
    /// If it could be read.
    lock_delay: Option<Duration>,
    /// Which key it held, and the key's index then.
    place: usize,
    index: u64,
}

/// The keys, as they are free.
#[derive(Debug)]
struct Freedom {
    /// What tells it from others: the indexes at which the keys became so.
    indexes: Vec<u64>,
    /// When it was first seen.
    since: Instant,
    /// Whether a lock-delay was told since then.
    delayed: bool,
}

/// Takes all keys of the goal, or says why not.
///
/// Cancel safe: what a try takes that nobody waits for any more, the keeper gives up.
pub(super) async fn seek(
    lease: &Lease,
    goal: &Goal,
    patience: Patience,
    sight: &Sight,
) -> Result<Sought> {
    // Whoever only tries does not stand in line.
    let manner = goal.line.as_ref().filter(|_| patience == Patience::Wait);
    let mut seeker = Seeker {
        client: lease.client(),
        goal,
        waiting: Waiting::new(patience, sight.clone()),
        contest: Contest::default(),
        former: None,
        own: None,
        stand: manner.map(|manner| Stand::new(lease.client(), manner)),
        freedom: None,
    };
    loop {
        if let Some(stand) = &mut seeker.stand {
            stand.leave();
        }
        let tenure = match lease.tenure().await {
            Ok(tenure) => tenure,
            Err(err) => {
                seeker.bear(err).await?;
                continue;
            }
        };
        seeker.own = Some(tenure.session.clone());
        let claim = match seeker.waiting.claim(&tenure, &goal.keys).await {
            Claimed::Yes(claim) => claim,
            Claimed::ByOthers => return Ok(Sought::Ours),
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
    async fn by(&mut self, tenure: &Arc<Tenure>, mut claim: Claim) -> Result<Option<Sought>> {
        let mut views = Vec::new();
        loop {
            if views.is_empty() {
                views = match self.look().await {
                    Ok(views) => views,
                    Err(err) => {
                        self.bear(err).await?;
                        continue;
                    }
                };
            }
            let of_others = |view: &View| {
                let holder = view.holder();
                holder.is_some_and(|holder| *holder != tenure.session)
            };
            if let Some(place) = views.iter().position(of_others) {
                if self.waiting.only_tries() {
                    let pair = views.swap_remove(place).pair;
                    return Ok(pair.map(Sought::Held));
                }
                if self.stand.is_some() {
                    self.note_holder(&views, place).await;
                }
                if let Some(stand) = &mut self.stand {
                    let holder = views.get(place).and_then(View::holder);
                    let far = match stand.held(tenure, holder).await {
                        Ok(Joined::Yes) => stand.follow().await,
                        Ok(Joined::SessionGone) => return Ok(None),
                        Err(err) => Err(err),
                    };
                    match far {
                        Ok(false) => {}
                        Ok(true) => {
                            views.clear();
                            continue;
                        }
                        Err(err) => {
                            self.bear(err).await?;
                            views.clear();
                            continue;
                        }
                    }
                }
                self.wait_for(&mut views, place).await?;
                continue;
            }
            let free_since = self.seen_free(&views);
            let turn = match &mut self.stand {
                None => Turn::default(),
                Some(stand) => match stand.turn(tenure).await {
                    Ok(Some(turn)) => turn,
                    Ok(None) => return Ok(None),
                    Err(err) => {
                        self.bear(err).await?;
                        views.clear();
                        continue;
                    }
                },
            };
            let after = turn.after;
            let now = Instant::now();
            let at = match self.contest.free(now, rand::random()) {
                // Not before, and then in order.
                at if at > now => at + after,
                at => at.max(free_since + after),
            };
            if at > now && !self.waiting.only_tries() && self.overtaken(&mut views, at).await {
                continue;
            }
            let aim = Aim::Keys {
                wants: self.wants(&views),
                tickets: struck(turn, self.turn_was_plain(), self.goal.room()),
            };
            match tenure.take(aim, claim).await {
                Taken::Won(hold) => {
                    if let Some(stand) = &mut self.stand {
                        stand.served();
                    }
                    return Ok(Some(Sought::Won(hold, Arc::clone(tenure))));
                }
                Taken::Delayed(back) => {
                    claim = back;
                    if let Some(freedom) = &mut self.freedom {
                        freedom.delayed = true;
                    }
                    let now = Instant::now();
                    let at = self.contest.delayed(now, rand::random()) + after;
                    if self.waiting.only_tries() {
                        let over = self.contest.delay_over();
                        let left = over.map(|over| over.saturating_duration_since(now));
                        return Ok(Some(Sought::Delayed(left)));
                    }
                    self.overtaken(&mut views, at).await;
                }
                Taken::Moved(back) => {
                    claim = back;
                    self.contest.lost_race();
                    views.clear();
                }
                Taken::Refused(err, back) => {
                    claim = back;
                    self.bear(err).await?;
                    views.clear();
                }
                Taken::SessionGone => return Ok(None),
            }
        }
    }

    /// Notes that the keys are free; tells since when.
    fn seen_free(&mut self, views: &[View]) -> Instant {
        let indexes = views.iter().map(View::modify_index).collect();
        match &self.freedom {
            Some(freedom) if freedom.indexes == indexes => freedom.since,
            // Also if they were taken in between, and given back before anybody looked.
            _ => {
                let since = Instant::now();
                self.freedom = Some(Freedom {
                    indexes,
                    since,
                    delayed: false,
                });
                since
            }
        }
    }

    /// Whether those ahead could tell when it was their turn: they cannot where a lock-delay of
    /// unknown length ends, and do not lose their places by it.
    fn turn_was_plain(&self) -> bool {
        self.freedom
            .as_ref()
            .is_some_and(|freedom| !freedom.delayed)
    }

    async fn bear(&mut self, err: Error) -> Result<()> {
        let goal = self.goal;
        let tell = |err: Error| {
            if let Some(roles) = &goal.roles {
                roles.unknown(err);
            }
        };
        let what = goal.keys.first().map(Key::as_str).unwrap_or_default();
        self.waiting.bear(what, err, tell).await
    }

    async fn look(&mut self) -> Result<Vec<View>> {
        let mut views = Vec::with_capacity(self.goal.keys.len());
        for (place, key) in self.goal.keys.iter().enumerate() {
            // On the way that the try takes: to change it would wake another thread.
            let read = self.client.kv().get(key.as_str()).beat();
            let (pair, meta) = read.await?.into_parts();
            let view = View {
                index: meta.index().unwrap_or(0),
                pair,
            };
            check_kind(&view)?;
            self.tell(&view);
            self.mind_set_back(&view, place);
            views.push(view);
        }
        self.saw(&views);
        Ok(views)
    }

    /// Remembers who holds, for the error that tells that waiting was in vain.
    fn saw(&mut self, views: &[View]) {
        let views = self.goal.keys.iter().zip(views);
        let mut held = views.filter_map(|(key, view)| Some((view.holder()?.clone(), key.clone())));
        let holder = held.next();
        self.waiting.holder(holder);
    }

    /// Tells what an answer has just shown.
    fn tell(&self, view: &View) {
        if let Some(roles) = &self.goal.roles {
            let holder = view.holder();
            match holder.filter(|holder| self.own.as_ref() != Some(*holder)) {
                Some(holder) => roles.follower(holder),
                None => roles.candidate(),
            }
        }
    }

    /// Takes note of servers that were set back to a time before the former holder held.
    fn mind_set_back(&mut self, view: &View, place: usize) {
        let Some(former) = self.former.as_mut().filter(|former| former.place == place) else {
            return;
        };
        // The index of a key grows with whatever is done to it, its deletion too. That of an answer
        // is zero if it told nothing new.
        if (1..former.index).contains(&view.index) {
            tracing::warn!(
                keys = ?self.goal.keys,
                "lock: the servers were set back; its lock-delay is waited for"
            );
            self.contest.set_back(Instant::now(), former.lock_delay);
            former.index = 0;
        }
    }

    /// Notes who holds a key, and what its lock-delay is.
    async fn note_holder(&mut self, views: &[View], place: usize) {
        let Some((view, holder)) = views
            .get(place)
            .and_then(|view| Some((view, view.holder()?)))
        else {
            return;
        };
        let known = self.former.as_ref();
        let lock_delay = match known.filter(|former| former.session == *holder) {
            Some(former) => former.lock_delay,
            None => {
                // Once it has ended, nobody can tell its lock-delay any more.
                let session = self.client.session().info(holder).stale().await;
                let session = session.ok().and_then(|session| session.into_value());
                session.map(|session| session.lock_delay())
            }
        };
        self.former = Some(Former {
            session: holder.clone(),
            lock_delay,
            place,
            index: view.modify_index(),
        });
    }

    /// Waits until a key that others hold has changed.
    async fn wait_for(&mut self, views: &mut [View], place: usize) -> Result<()> {
        self.note_holder(views, place).await;
        let Some(view) = views.get_mut(place) else {
            return Ok(());
        };
        self.waiting.paced().await;
        match self.change(view, place).await {
            Ok(changed) => {
                self.tell(&changed);
                let key = self.goal.keys.get(place).cloned();
                self.waiting.holder(changed.holder().cloned().zip(key));
                *view = changed;
                if view.index == 0 {
                    tokio::time::sleep(UNCHANGED).await;
                }
            }
            Err(err) => {
                self.bear(err).await?;
                // The next answer comes at once, changed or not: it tells that there are answers.
                view.index = 0;
            }
        }
        check_kind(view)?;
        if view.holder().is_none() {
            let delay = self.former.as_ref().and_then(|former| former.lock_delay);
            self.contest.freed(Instant::now(), delay);
        }
        if let Some(view) = views.get(place) {
            self.mind_set_back(view, place);
        }
        Ok(())
    }

    /// Waits until `at`, unless a key changes before: then it is looked at again.
    async fn overtaken(&self, views: &mut Vec<View>, at: Instant) -> bool {
        let changed = match views.first() {
            Some(view) => {
                tokio::select! {
                    biased;
                    () = tokio::time::sleep_until(at) => None,
                    changed = self.change(view, 0) => Some(changed),
                }
            }
            None => None,
        };
        match changed {
            None => false,
            Some(Ok(view)) => {
                let known = views.first().map(View::modify_index);
                if known == Some(view.modify_index()) {
                    // Nothing happened, or the server went back: the rest of the time is waited.
                    tokio::time::sleep_until(at).await;
                    return false;
                }
                views.clear();
                true
            }
            // Consul out of reach: the try will tell.
            Some(Err(_)) => {
                tokio::time::sleep_until(at).await;
                false
            }
        }
    }

    /// One blocking query.
    async fn change(&self, view: &View, place: usize) -> Result<View> {
        let key = self
            .goal
            .keys
            .get(place)
            .map(Key::as_str)
            .unwrap_or_default();
        let read = self.client.kv().get(key);
        let answer = since(read, view.index, long_wait()).await?;
        let (pair, meta) = answer.into_parts();
        let index = next_index(meta.index(), view.index);
        Ok(View { index, pair })
    }

    fn wants(&self, views: &[View]) -> Vec<Want> {
        let both = self.goal.keys.iter().zip(views);
        let want = both.map(|(key, view)| Want {
            key: key.clone(),
            modify_index: view.modify_index(),
            value: match (&self.goal.value, &view.pair) {
                (Some(value), _) => value.clone(),
                (None, Some(pair)) => pair.value_bytes(),
                (None, None) => Bytes::new(),
            },
        });
        want.collect()
    }
}

/// A key of a semaphore is no lock.
fn check_kind(view: &View) -> Result<()> {
    match &view.pair {
        Some(pair) if pair.flags() == SEMAPHORE_FLAGS => Err(Error::new(ErrorKind::Conflict)
            .context(format!(
                "{} belongs to a semaphore, by its flags: take another key",
                pair.key()
            ))),
        _ => Ok(()),
    }
}
