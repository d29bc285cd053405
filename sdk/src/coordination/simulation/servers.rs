//! The servers, as far as locks can tell: sessions, keys, lock-delays, leaders that change; and the
//! agents in front of them, each with the checks that sessions may be bound to.
//!
//! Time is that of the servers, in microseconds.

use std::collections::BTreeMap;

use super::Rng;

pub(super) type Micros = u64;
pub(super) const SECOND: Micros = 1_000_000;

/// What a contender asks.
#[derive(Clone, Debug)]
pub(super) enum Ask {
    /// Registers a TTL check, which passes from now on.
    Register(u32),
    /// Updates it.
    Beat(u32),
    /// Makes a session, which may be bound to a check.
    Create {
        check: Option<u32>,
    },
    Renew(u32),
    /// A consistent read of a session.
    Info(u32),
    /// A read of the key, of whoever takes itself for the leader, or consistent.
    Read {
        consistent: bool,
    },
    /// A transaction that takes the key; without a guard it is a plain acquisition.
    Lock {
        session: u32,
        guard: Option<u64>,
        /// Sessions whose tickets go with it.
        tickets: Vec<u32>,
    },
    /// A ticket in line.
    Queue(u32),
    /// Who stands in line.
    Line,
    Unlock(u32),
    Destroy(u32),
    /// A write behind a check of the session; the token says whose it is.
    Fenced {
        session: u32,
        token: u64,
    },
}

/// What is answered.
#[derive(Clone, Debug)]
pub(super) enum Answer {
    Created(u32),
    Lives(bool),
    Key {
        holder: Option<u32>,
        index: u64,
    },
    Locked(u64),
    /// Sessions in line, each with the index of its ticket and whether it lives.
    Line(Vec<(u32, u64, bool)>),
    Delayed,
    Moved,
    NoSession,
    Done(bool),
    Error,
}

#[derive(Clone, Debug)]
struct Session {
    node: usize,
    check: Option<u32>,
    ends_at: Micros,
    /// Consul waits for twice the TTL; its contract is once. Both must do.
    patience: Micros,
}

/// The agent of one node. Its clock is its own.
#[derive(Clone, Debug)]
struct Agent {
    /// How long a check passes after an update, by the servers' clock.
    ttl: Micros,
    /// Until when each check passes.
    checks: BTreeMap<u32, Micros>,
    down_until: Micros,
}

/// What a leader that was deposed still remembers.
#[derive(Clone, Debug)]
struct Memory {
    sessions: Vec<u32>,
    holder: Option<u32>,
    index: u64,
    until: Micros,
}

#[derive(Debug)]
pub(super) struct Servers {
    ttl: Micros,
    lock_delay: Micros,
    sessions: BTreeMap<u32, Session>,
    tickets: BTreeMap<u32, u64>,
    next_session: u32,
    index: u64,
    holder: Option<u32>,
    key_index: u64,
    delayed_until: Micros,
    /// Without a leader until then.
    leaderless_until: Micros,
    /// Counts the leaders.
    pub(super) epoch: u64,
    deposed: Option<Memory>,
    agents: Vec<Agent>,
}

/// A deposed leader answers from memory for as long as its lease lasts.
const LEADER_LEASE: Micros = 2_500_000;

impl Servers {
    /// One agent for each TTL that a check has by its clock.
    pub(super) fn new(ttl: Micros, lock_delay: Micros, check_ttls: &[Micros]) -> Self {
        let agent = |ttl: &Micros| Agent {
            ttl: *ttl,
            checks: BTreeMap::new(),
            down_until: 0,
        };
        Self {
            ttl,
            lock_delay,
            sessions: BTreeMap::new(),
            tickets: BTreeMap::new(),
            next_session: 1,
            index: 10,
            holder: None,
            key_index: 0,
            delayed_until: 0,
            leaderless_until: 0,
            epoch: 0,
            deposed: None,
            agents: check_ttls.iter().map(agent).collect(),
        }
    }

    pub(super) fn holder(&self) -> Option<u32> {
        self.holder
    }

    /// When the next session ends by time.
    pub(super) fn next_end(&self) -> Option<Micros> {
        let ends = self.sessions.values().map(|session| {
            let critical = self.critical_at(session).unwrap_or(Micros::MAX);
            // While there is no leader, nobody is told of a check.
            let told = critical.max(self.leaderless_until);
            session.ends_at.min(told)
        });
        ends.min()
    }

    /// When the check of a session turns critical; at once if its agent does not know it.
    fn critical_at(&self, session: &Session) -> Option<Micros> {
        let check = session.check.as_ref()?;
        let checks = &self.agents[session.node].checks;
        Some(checks.get(check).copied().unwrap_or(0))
    }

    fn fails(&self, session: &Session, now: Micros) -> bool {
        self.has_leader(now) && self.critical_at(session).is_some_and(|at| at <= now)
    }

    pub(super) fn expire(&mut self, now: Micros) {
        let due: Vec<u32> = self
            .sessions
            .iter()
            .filter(|(_, session)| session.ends_at <= now || self.fails(session, now))
            .map(|(id, _)| *id)
            .collect();
        for id in due {
            self.invalidate(id, now);
        }
    }

    /// A session ends before its release: then the lock-delay begins.
    pub(super) fn invalidate(&mut self, id: u32, now: Micros) -> bool {
        if self.sessions.remove(&id).is_none() {
            return false;
        }
        self.index += 1;
        if self.holder == Some(id) {
            self.holder = None;
            self.key_index = self.index;
            self.delayed_until = now + self.lock_delay;
        }
        true
    }

    /// The agent of a node leaves the cluster.
    pub(super) fn leave(&mut self, node: usize, now: Micros) {
        let gone: Vec<u32> = self
            .sessions
            .iter()
            .filter(|(_, session)| session.node == node)
            .map(|(id, _)| *id)
            .collect();
        for id in gone {
            self.invalidate(id, now);
        }
    }

    /// The agent of a node is started again without its data: it has forgotten its checks, and the
    /// sessions that are bound to them end.
    pub(super) fn wipe(&mut self, node: usize) {
        self.agents[node].checks.clear();
    }

    /// The agent of a node is started again, and is away meanwhile. Its checks are as they were.
    pub(super) fn restart(&mut self, node: usize, until: Micros) {
        self.agents[node].down_until = until;
    }

    pub(super) fn any_session(&self, rng: &mut Rng) -> Option<u32> {
        // Whoever holds is the one that is interesting.
        if self.holder.is_some() && rng.chance(70) {
            return self.holder;
        }
        let ids: Vec<u32> = self.sessions.keys().copied().collect();
        (!ids.is_empty()).then(|| ids[rng.pick(ids.len())])
    }

    /// The leader is deposed, or dies; there is another after a while. It starts all timers anew.
    pub(super) fn change_leader(&mut self, now: Micros, without: Micros) {
        self.epoch += 1;
        self.leaderless_until = self.leaderless_until.max(now + without);
        self.deposed = Some(Memory {
            sessions: self.sessions.keys().copied().collect(),
            holder: self.holder,
            index: self.key_index,
            until: now + LEADER_LEASE,
        });
        for session in self.sessions.values_mut() {
            session.ends_at = session.ends_at.max(now + without + session.patience);
        }
    }

    pub(super) fn has_leader(&self, now: Micros) -> bool {
        self.leaderless_until <= now
    }

    /// What can be answered without the log: `None` for what must be committed.
    pub(super) fn at_once(
        &mut self,
        ask: &Ask,
        node: usize,
        now: Micros,
        rng: &mut Rng,
    ) -> Option<Answer> {
        let agent = &mut self.agents[node];
        if agent.down_until > now {
            return Some(Answer::Error);
        }
        let deposed = self.deposed.as_ref().filter(|old| old.until > now);
        let by_deposed = deposed.filter(|_| rng.chance(50));
        match ask {
            Ask::Register(check) => {
                agent.checks.insert(*check, now + agent.ttl);
                Some(Answer::Done(true))
            }
            // One that has failed passes again, which the session that it ended does not know.
            Ask::Beat(check) => Some(match agent.checks.get_mut(check) {
                Some(until) => {
                    *until = now + agent.ttl;
                    Answer::Done(true)
                }
                None => Answer::Error,
            }),
            Ask::Renew(id) => {
                if let Some(old) = by_deposed {
                    return Some(Answer::Lives(old.sessions.contains(id)));
                }
                if !self.has_leader(now) {
                    return Some(Answer::Error);
                }
                let session = self.sessions.get_mut(id);
                if let Some(session) = session {
                    session.ends_at = session.ends_at.max(now + session.patience);
                    return Some(Answer::Lives(true));
                }
                Some(Answer::Lives(false))
            }
            Ask::Info(id) => Some(if self.has_leader(now) {
                Answer::Lives(self.sessions.contains_key(id))
            } else {
                Answer::Error
            }),
            Ask::Read { consistent } => {
                if let Some(old) = by_deposed.filter(|_| !consistent) {
                    return Some(Answer::Key {
                        holder: old.holder,
                        index: old.index,
                    });
                }
                Some(if self.has_leader(now) {
                    Answer::Key {
                        holder: self.holder,
                        index: self.key_index,
                    }
                } else {
                    Answer::Error
                })
            }
            _ if !self.has_leader(now) => Some(Answer::Error),
            Ask::Line => {
                let tickets = self.tickets.iter();
                let line = tickets.map(|(id, at)| (*id, *at, self.sessions.contains_key(id)));
                Some(Answer::Line(line.collect()))
            }
            // The leader looks at the lock-delay before it commits, and never again.
            Ask::Lock { .. } if self.delayed_until > now => Some(Answer::Delayed),
            _ => None,
        }
    }

    /// An entry of the log is applied.
    pub(super) fn commit(&mut self, ask: &Ask, node: usize, now: Micros, rng: &mut Rng) -> Answer {
        match ask {
            Ask::Create { check } => {
                let checks = &self.agents[node].checks;
                let passes = |check| checks.get(check).is_some_and(|until| *until > now);
                if !check.as_ref().is_none_or(passes) {
                    return Answer::Error;
                }
                let id = self.next_session;
                self.next_session += 1;
                self.index += 1;
                let patience = if rng.chance(50) {
                    self.ttl
                } else {
                    2 * self.ttl
                };
                let session = Session {
                    node,
                    check: *check,
                    ends_at: now + patience,
                    patience,
                };
                self.sessions.insert(id, session);
                Answer::Created(id)
            }
            Ask::Queue(session) => {
                if !self.sessions.contains_key(session) {
                    return Answer::NoSession;
                }
                self.index += 1;
                self.tickets.entry(*session).or_insert(self.index);
                Answer::Done(true)
            }
            Ask::Lock {
                session,
                guard,
                tickets,
            } => {
                if guard.is_some_and(|guard| guard != self.key_index) {
                    return Answer::Moved;
                }
                if !self.sessions.contains_key(session) {
                    return Answer::NoSession;
                }
                match self.holder {
                    Some(holder) if holder != *session => Answer::Moved,
                    Some(_) => Answer::Locked(self.key_index),
                    None => {
                        self.index += 1;
                        self.key_index = self.index;
                        self.holder = Some(*session);
                        for ticket in tickets {
                            self.tickets.remove(ticket);
                        }
                        Answer::Locked(self.index)
                    }
                }
            }
            Ask::Unlock(session) => {
                let held = self.holder == Some(*session);
                if held {
                    self.index += 1;
                    self.key_index = self.index;
                    self.holder = None;
                }
                Answer::Done(held)
            }
            Ask::Destroy(session) => Answer::Done(self.invalidate(*session, now)),
            Ask::Fenced { session, .. } => {
                let held = self.holder == Some(*session);
                if held {
                    self.index += 1;
                }
                Answer::Done(held)
            }
            Ask::Register(_)
            | Ask::Beat(_)
            | Ask::Renew(_)
            | Ask::Info(_)
            | Ask::Read { .. }
            | Ask::Line => Answer::Error,
        }
    }
}
