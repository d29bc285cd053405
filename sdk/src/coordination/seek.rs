//! The way to a lock: look, wait, try, and again.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::aim::Aim;
use super::attempt::Want;
use super::claims::Claim;
use super::held::Hold;
use super::keeper::Taken;
use super::lease::{Lease, Tenure};
use super::role::Roles;
use super::roster::SEMAPHORE_FLAGS;
use super::waiting::{Claimed, Patience, UNCHANGED, Waiting, next_index, since};
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
}

/// One seeker: what it knows of its keys and of the contest for them.
struct Seeker<'a> {
    client: &'a Client,
    goal: &'a Goal,
    waiting: Waiting,
    contest: Contest,
    /// The session that was last seen to hold, and its lock-delay if it could be read.
    former: Option<(SessionId, Option<Duration>)>,
    /// Which key that was, and its index then.
    held_at: (usize, u64),
    /// The session that it seeks by.
    own: Option<SessionId>,
}

/// Takes all keys of the goal, or says why not.
///
/// Cancel safe: what a try takes that nobody waits for any more, the keeper gives up.
pub(super) async fn seek(lease: &Lease, goal: &Goal, patience: Patience) -> Result<Sought> {
    let mut seeker = Seeker {
        client: lease.client(),
        goal,
        waiting: Waiting::new(patience),
        contest: Contest::default(),
        former: None,
        held_at: (0, 0),
        own: None,
    };
    loop {
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
                self.wait_for(&mut views, place).await?;
                continue;
            }
            let now = Instant::now();
            let at = self.contest.free(now, rand::random());
            if at > now && !self.waiting.only_tries() && self.overtaken(&mut views, at).await {
                continue;
            }
            let aim = Aim::Keys(self.wants(&views));
            match tenure.take(aim, claim).await {
                Taken::Won(hold) => {
                    return Ok(Some(Sought::Won(hold, Arc::clone(tenure))));
                }
                Taken::Delayed(back) => {
                    claim = back;
                    let now = Instant::now();
                    let at = self.contest.delayed(now, rand::random());
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

    async fn bear(&mut self, err: Error) -> Result<()> {
        let goal = self.goal;
        let tell = |err: Error| {
            tracing::debug!(keys = ?goal.keys, error = %err, "lock: waiting for Consul");
            if let Some(roles) = &goal.roles {
                roles.unknown(err);
            }
        };
        self.waiting.bear(err, tell).await
    }

    async fn look(&mut self) -> Result<Vec<View>> {
        let mut views = Vec::with_capacity(self.goal.keys.len());
        for (place, key) in self.goal.keys.iter().enumerate() {
            let (pair, meta) = self.client.kv().get(key.as_str()).await?.into_parts();
            let view = View {
                index: meta.index().unwrap_or(0),
                pair,
            };
            check_kind(&view)?;
            self.tell(&view);
            self.mind_set_back(&view, place);
            views.push(view);
        }
        self.waiting.answered();
        Ok(views)
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
        let (known, held_at) = self.held_at;
        // The index of a key grows with whatever is done to it, its deletion too. That of an answer
        // is zero if it told nothing new.
        if known == place && (1..held_at).contains(&view.index) {
            let delay = self.former.as_ref().and_then(|(_, delay)| *delay);
            tracing::warn!(
                keys = ?self.goal.keys,
                "lock: the servers were set back; its lock-delay is waited for"
            );
            self.contest.set_back(Instant::now(), delay);
            self.held_at = (place, 0);
        }
    }

    /// Waits until a key that others hold has changed.
    async fn wait_for(&mut self, views: &mut [View], place: usize) -> Result<()> {
        let Some(view) = views.get_mut(place) else {
            return Ok(());
        };
        if let Some(holder) = view.holder()
            && self
                .former
                .as_ref()
                .is_none_or(|(known, _)| known != holder)
        {
            // Once it has ended, nobody can tell its lock-delay any more.
            let holder = holder.clone();
            let session = self.client.session().info(&holder).stale().await;
            let session = session.ok().and_then(|session| session.into_value());
            self.former = Some((holder, session.map(|session| session.lock_delay())));
        }
        let held_at = view.pair.as_ref().map_or(0, Pair::modify_index);
        self.held_at = (place, held_at);
        match self.change(view, place).await {
            Ok(changed) => {
                self.tell(&changed);
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
            let delay = self.former.as_ref().and_then(|(_, delay)| *delay);
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
                let same = views.first().is_some_and(|known| {
                    let of = |view: &View| view.pair.as_ref().map(Pair::modify_index);
                    of(known) == of(&view)
                });
                if same {
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
        let answer = since(read, view.index).await?;
        let (pair, meta) = answer.into_parts();
        let index = next_index(meta.index(), view.index);
        Ok(View { index, pair })
    }

    fn wants(&self, views: &[View]) -> Vec<Want> {
        let both = self.goal.keys.iter().zip(views);
        let want = both.map(|(key, view)| Want {
            key: key.clone(),
            modify_index: view.pair.as_ref().map_or(0, Pair::modify_index),
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
