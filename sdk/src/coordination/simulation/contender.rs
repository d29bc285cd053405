//! One contender: the rules that the library follows, on a clock of its own.

use std::time::Duration;

use tokio::time::Instant;

use super::servers::{Answer, Ask, Micros, SECOND};
use super::{Rng, Sabotage};
use crate::proto::contest::Contest;
use crate::proto::lease::{Lease, Proof, Terms};
use crate::proto::line::{Rank, courtesy};

/// What a contender is at.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Mode {
    /// Not interested until then, by its own clock.
    Resting(Micros),
    /// Wants the lock; looks at it, or waits for an answer.
    Looking,
    /// Has seen it free at this index, and tries then.
    Trying(u64, Micros),
    /// Has seen it free at this index, and asks who stands in line.
    Lining(u64),
    /// A try is on its way.
    Tried(u64),
    /// A try was not answered: what stands in the key is the truth.
    ReadingBack,
    /// Holds, with this token, until it wants to release.
    Holding(u64, Micros),
    /// Has released, and tells the servers.
    Releasing,
}

/// A request that is on its way.
#[derive(Clone, Debug)]
struct Pending {
    id: u64,
    ask: Ask,
    sent: Micros,
    late_at: Micros,
}

pub(super) struct Contender {
    pub(super) number: usize,
    base: Instant,
    terms: Terms,
    sabotage: Sabotage,
    /// Whether it keeps its session from one hold to the next, as a shared lease does.
    pub(super) shares: bool,
    /// Whether it waits in line.
    fair: bool,
    /// The session whose ticket stands there, as far as it knows.
    ticket: Option<u32>,
    /// Since when it sees the key free at which index, by its own clock.
    free_since: (u64, Micros),
    /// Whose tickets go with its next try, and how long it leaves it to others.
    strike: Vec<u32>,
    courtesy: Micros,
    /// Its clock's speed, in millionths of the servers'.
    speed: u64,
    session: Option<(u32, Lease)>,
    /// The check that its session is bound to, or the one to be is.
    check: Option<u32>,
    /// The request that registered it was sent then.
    beaten: Option<Micros>,
    /// When it stops holding for long.
    calm: Micros,
    /// Created, but told only when its making is.
    making: bool,
    mode: Mode,
    contest: Contest,
    pending: Vec<Pending>,
    next_id: u64,
    look_at: Micros,
    write_at: Micros,
    /// How often it has held.
    pub(super) terms_held: u32,
    /// Until then it does not run at all, by the servers' clock.
    pub(super) paused_until: Micros,
    /// What it asks now, and what it has begun to hold.
    pub(super) out: Vec<(u64, Ask)>,
    pub(super) began: Option<u64>,
}

impl Contender {
    pub(super) fn new(
        number: usize,
        base: Instant,
        terms: Terms,
        calm: Micros,
        sabotage: Sabotage,
        fair: bool,
        rng: &mut Rng,
    ) -> Self {
        Self {
            number,
            base,
            terms,
            sabotage,
            shares: rng.chance(50),
            fair,
            ticket: None,
            free_since: (0, 0),
            strike: Vec::new(),
            courtesy: 0,
            // One per cent at most, either way.
            speed: 990_000 + rng.below(20_001),
            session: None,
            check: None,
            beaten: None,
            calm,
            making: false,
            mode: Mode::Resting(rng.below(3 * SECOND)),
            contest: Contest::default(),
            pending: Vec::new(),
            next_id: 0,
            look_at: 0,
            write_at: 0,
            terms_held: 0,
            paused_until: 0,
            out: Vec::new(),
            began: None,
        }
    }

    fn clock(&self, now: Micros) -> Micros {
        now * self.speed / 1_000_000
    }

    /// When its clock shows this, by the servers' clock.
    fn true_time(&self, local: Micros) -> Micros {
        // Not before.
        (local * 1_000_000).div_ceil(self.speed)
    }

    fn at(&self, local: Micros) -> Instant {
        self.base + Duration::from_micros(local)
    }

    fn micros(&self, at: Instant) -> Micros {
        u64::try_from((at - self.base).as_micros()).unwrap()
    }

    /// Whether it believes to hold at this moment, whether it runs or not.
    pub(super) fn believes(&self, now: Micros) -> bool {
        let holds = match self.mode {
            Mode::Holding(..) => true,
            Mode::Releasing => self.sabotage == Sabotage::ReleaseLate,
            _ => false,
        };
        let Some((_, lease)) = self.session.as_ref().filter(|_| holds) else {
            return false;
        };
        lease.believed(self.at(self.clock(now)))
    }

    pub(super) fn session(&self) -> Option<u32> {
        self.session.as_ref().map(|(id, _)| *id)
    }

    fn ask(&mut self, ask: Ask, local: Micros, patience: Micros) {
        self.next_id += 1;
        self.pending.push(Pending {
            id: self.next_id,
            ask: ask.clone(),
            sent: local,
            late_at: local + patience,
        });
        self.out.push((self.next_id, ask));
    }

    fn awaits(&self, fits: impl Fn(&Ask) -> bool) -> bool {
        self.pending.iter().any(|pending| fits(&pending.ask))
    }

    /// Does what is due, and says when it wants to run again.
    pub(super) fn run(&mut self, now: Micros, rng: &mut Rng) -> Micros {
        let local = self.clock(now);
        self.late(local, rng);
        self.keep(local, rng);
        self.step(local, rng);
        self.wake(local)
    }

    fn wake(&self, local: Micros) -> Micros {
        let mut wake = local + 10 * SECOND;
        let mut by = |at: Micros| wake = wake.min(at);
        self.pending.iter().for_each(|pending| by(pending.late_at));
        if let Some((_, lease)) = &self.session {
            by(self.micros(lease.until()));
            lease
                .next_due()
                .into_iter()
                .for_each(|due| by(self.micros(due)));
        }
        match self.mode {
            Mode::Resting(at) | Mode::Trying(_, at) => by(at),
            Mode::Holding(_, at) => by(at.min(self.write_at)),
            Mode::Looking | Mode::Lining(_) if self.awaits(is_look) => {}
            Mode::Looking | Mode::Lining(_) => by(self.look_at),
            Mode::Tried(_) | Mode::ReadingBack | Mode::Releasing => {}
        }
        self.true_time(wake.max(local + 1))
    }

    /// Keeps the session, and drops it when it is no longer believed in.
    fn keep(&mut self, local: Micros, _rng: &mut Rng) {
        let now = self.at(local);
        let Some((id, lease)) = &mut self.session else {
            return;
        };
        let id = *id;
        if !lease.holds(now) {
            self.lose(local, true);
            return;
        }
        let mut due = Vec::new();
        while let Some(proof) = lease.start_due(now) {
            due.push(proof);
        }
        for (proof, patience) in due {
            let ask = match proof {
                Proof::Renewal => Ask::Renew(id),
                Proof::Reading => Ask::Info(id),
                Proof::Beat => Ask::Beat(self.check.unwrap()),
            };
            self.ask(ask, local, u64::try_from(patience.as_micros()).unwrap());
        }
    }

    fn lose(&mut self, local: Micros, destroy: bool) {
        let Some((id, _)) = self.session.take() else {
            return;
        };
        self.ticket = None;
        if destroy {
            // What was held by it is kept from all for the lock-delay.
            self.ask(Ask::Destroy(id), local, 5 * SECOND);
        }
        self.pending
            .retain(|pending| matches!(pending.ask, Ask::Destroy(_)) || makes(&pending.ask));
        if !matches!(self.mode, Mode::Resting(_)) {
            self.mode = Mode::Looking;
            self.look_at = local + SECOND / 10;
        }
    }

    fn step(&mut self, local: Micros, rng: &mut Rng) {
        if let Mode::Resting(until) = self.mode {
            if until > local {
                return;
            }
            self.mode = Mode::Looking;
            self.look_at = local;
            self.contest = Contest::default();
        }
        let Some((session, _)) = self.session else {
            if !self.making && self.look_at <= local {
                self.making = true;
                self.beaten = None;
                self.check = self
                    .terms
                    .check
                    .map(|_| self.check.map_or(0, |last| last + 1));
                let first = match self.check {
                    Some(check) => Ask::Register(check),
                    None => Ask::Create { check: None },
                };
                self.ask(first, local, 5 * SECOND);
            }
            return;
        };
        match self.mode {
            Mode::Looking => {
                let asked = self.awaits(|ask| matches!(ask, Ask::Read { .. }));
                if !asked && self.look_at <= local {
                    self.ask(Ask::Read { consistent: false }, local, 5 * SECOND);
                }
            }
            Mode::Lining(_) => {
                if !self.awaits(is_look) && self.look_at <= local {
                    self.ask(Ask::Line, local, 5 * SECOND);
                }
            }
            Mode::Trying(index, at) if at <= local => {
                self.mode = Mode::Tried(index);
                let guard = (self.sabotage != Sabotage::NoGuard).then_some(index);
                let tickets = std::mem::take(&mut self.strike);
                let lock = Ask::Lock {
                    session,
                    guard,
                    tickets,
                };
                self.ask(lock, local, 5 * SECOND);
            }
            Mode::ReadingBack => {
                if !self.awaits(|ask| matches!(ask, Ask::Read { .. })) {
                    self.ask(Ask::Read { consistent: true }, local, 5 * SECOND);
                }
            }
            Mode::Holding(token, until) => {
                if self.write_at <= local {
                    self.write_at = local + rng.below(3 * SECOND) + 1;
                    self.ask(Ask::Fenced { session, token }, local, 5 * SECOND);
                }
                if until <= local {
                    // In this order: no belief is left when the unlock leaves.
                    self.mode = Mode::Releasing;
                    self.ask(Ask::Unlock(session), local, 5 * SECOND);
                }
            }
            Mode::Releasing => {
                if !self.awaits(|ask| matches!(ask, Ask::Unlock(_))) {
                    self.ask(Ask::Unlock(session), local, 5 * SECOND);
                }
            }
            Mode::Resting(_) | Mode::Trying(..) | Mode::Tried(_) => {}
        }
    }

    /// Requests that are waited for no longer.
    fn late(&mut self, local: Micros, rng: &mut Rng) {
        let late: Vec<Pending> = self
            .pending
            .iter()
            .filter(|pending| pending.late_at <= local)
            .cloned()
            .collect();
        self.pending.retain(|pending| pending.late_at > local);
        for pending in late {
            self.failed(&pending, local, rng);
        }
    }

    fn failed(&mut self, pending: &Pending, local: Micros, rng: &mut Rng) {
        let now = self.at(local);
        match pending.ask {
            Ask::Register(_) | Ask::Create { .. } => {
                self.making = false;
                self.look_at = local + SECOND / 2;
            }
            Ask::Renew(id) => self.unproven(id, Proof::Renewal, now, rng),
            Ask::Info(id) => self.unproven(id, Proof::Reading, now, rng),
            Ask::Beat(check) if self.check == Some(check) => {
                if let Some(id) = self.session() {
                    self.unproven(id, Proof::Beat, now, rng);
                }
            }
            Ask::Lock { .. } => {
                if matches!(self.mode, Mode::Tried(_)) {
                    self.mode = Mode::ReadingBack;
                }
            }
            Ask::Read { .. } | Ask::Line | Ask::Queue(_) => self.look_at = local + SECOND / 2,
            Ask::Beat(_) | Ask::Unlock(_) | Ask::Destroy(_) | Ask::Fenced { .. } => {}
        }
    }

    fn unproven(&mut self, id: u32, proof: Proof, now: Instant, rng: &mut Rng) {
        if let Some((own, lease)) = &mut self.session
            && *own == id
        {
            lease.failed(proof, now, rng.draw());
        }
    }

    /// An answer has arrived.
    pub(super) fn hear(&mut self, id: u64, answer: &Answer, now: Micros, rng: &mut Rng) {
        let local = self.clock(now);
        // One that comes after its time is one that nobody hears; all that is overdue is late first.
        self.late(local, rng);
        let Some(place) = self.pending.iter().position(|pending| pending.id == id) else {
            return;
        };
        let pending = self.pending.swap_remove(place);
        if matches!(answer, Answer::Error) {
            self.failed(&pending, local, rng);
            return;
        }
        match (&pending.ask, answer) {
            (Ask::Register(check), Answer::Done(_)) => {
                self.beaten = Some(self.anchor(&pending, local));
                let check = Some(*check);
                self.ask(Ask::Create { check }, local, 5 * SECOND);
            }
            (Ask::Create { .. }, Answer::Created(id)) => {
                self.making = false;
                let sent = self.anchor(&pending, local);
                let beaten = self.beaten.map(|beaten| self.at(beaten));
                let lease = Lease::new(&self.terms, self.at(sent), beaten, rng.draw());
                self.session = Some((*id, lease));
                self.look_at = local;
            }
            (Ask::Renew(id) | Ask::Info(id), Answer::Lives(lives)) => {
                let proof = match pending.ask {
                    Ask::Renew(_) => Proof::Renewal,
                    _ => Proof::Reading,
                };
                if self.session() != Some(*id) {
                    return;
                }
                if !lives {
                    self.lose(local, false);
                    return;
                }
                let (sent, now) = (self.at(self.anchor(&pending, local)), self.at(local));
                if let Some((_, lease)) = &mut self.session {
                    lease.proven(proof, sent, now, rng.draw());
                }
            }
            (Ask::Beat(check), Answer::Done(_)) if self.check == Some(*check) => {
                let (sent, now) = (self.at(self.anchor(&pending, local)), self.at(local));
                if let Some((_, lease)) = &mut self.session {
                    lease.proven(Proof::Beat, sent, now, rng.draw());
                }
            }
            (Ask::Read { .. }, Answer::Key { holder, index }) => {
                self.read(&pending, *holder, *index, local, rng);
            }
            (Ask::Line, Answer::Line(line)) => self.lined(line, local, rng),
            (Ask::Queue(id), answer) if self.session() == Some(*id) => match answer {
                Answer::NoSession => self.lose(local, false),
                _ => {
                    self.ticket = Some(*id);
                    self.look_at = local;
                }
            },
            (Ask::Lock { session, .. }, answer)
                if self.session() == Some(*session) && matches!(self.mode, Mode::Tried(_)) =>
            {
                self.tried(&pending, answer, local, rng);
            }
            (Ask::Unlock(session), _)
                if self.session() == Some(*session) && self.mode == Mode::Releasing =>
            {
                self.mode = Mode::Resting(local + SECOND + rng.below(5 * SECOND));
                if !self.shares {
                    self.lose(local, true);
                }
            }
            _ => {}
        }
    }

    fn read(
        &mut self,
        pending: &Pending,
        holder: Option<u32>,
        index: u64,
        local: Micros,
        rng: &mut Rng,
    ) {
        match self.mode {
            Mode::ReadingBack => {
                if holder.is_some() && holder == self.session() {
                    self.hold(pending, index, local, rng);
                } else {
                    self.mode = Mode::Looking;
                    self.look_at = local;
                }
            }
            Mode::Looking => {
                if holder.is_none() || holder == self.session() {
                    if self.free_since.0 != index {
                        self.free_since = (index, local);
                    }
                    if self.fair {
                        self.mode = Mode::Lining(index);
                        self.look_at = local;
                        return;
                    }
                    let at = self.contest.free(self.at(local), rng.draw());
                    self.mode = Mode::Trying(index, self.micros(at));
                } else {
                    if let Some(session) = self
                        .session()
                        .filter(|_| self.fair && self.ticket.is_none())
                    {
                        self.ask(Ask::Queue(session), local, 5 * SECOND);
                    }
                    // A blocking query would tell at once; this is one that is slow at times.
                    self.look_at = local + SECOND / 50 + rng.below(2 * SECOND);
                }
            }
            _ => {}
        }
    }

    /// Whose turn is it?
    fn lined(&mut self, line: &[(u32, u64, bool)], local: Micros, rng: &mut Rng) {
        let (Mode::Lining(index), Some(session)) = (self.mode, self.session()) else {
            return;
        };
        let mut waiting: Vec<(Rank, u32)> = line
            .iter()
            .filter(|(_, _, lives)| *lives)
            .map(|(id, since, _)| {
                let rank = Rank {
                    preference: 0,
                    since: *since,
                };
                (rank, *id)
            })
            .collect();
        waiting.sort_by_key(|(rank, _)| rank.key());
        let own = waiting.iter().position(|(_, id)| *id == session);
        if own.is_none() && !waiting.is_empty() {
            self.ticket = None;
            self.mode = Mode::Looking;
            self.look_at = local + SECOND / 2;
            self.ask(Ask::Queue(session), local, 5 * SECOND);
            return;
        }
        let place = own.unwrap_or_default();
        let dead = line.iter().filter(|(_, _, lives)| !lives);
        self.strike = dead.map(|(id, ..)| *id).chain([session]).collect();
        // Those ahead have slept through their turn if it comes to that.
        let ahead = waiting.iter().take(place).map(|(_, id)| *id);
        self.strike.extend(ahead);
        self.courtesy = u64::try_from(courtesy(place).as_micros()).unwrap();
        let at = self.contest.free(self.at(local), rng.draw());
        let at = self.micros(at).max(self.free_since.1 + self.courtesy);
        self.mode = Mode::Trying(index, at);
    }

    fn tried(&mut self, pending: &Pending, answer: &Answer, local: Micros, rng: &mut Rng) {
        let Mode::Tried(index) = self.mode else {
            return;
        };
        match answer {
            Answer::Locked(token) => self.hold(pending, *token, local, rng),
            Answer::Delayed => {
                let at = self.contest.delayed(self.at(local), rng.draw());
                self.mode = Mode::Trying(index, self.micros(at) + self.courtesy);
                if rng.chance(20) {
                    self.mode = Mode::Looking;
                    self.look_at = local;
                }
            }
            Answer::NoSession => self.lose(local, false),
            _ => {
                self.contest.lost_race();
                self.mode = Mode::Looking;
                self.look_at = local;
            }
        }
    }

    /// The key is its own: does it still believe in the session?
    fn hold(&mut self, pending: &Pending, token: u64, local: Micros, rng: &mut Rng) {
        let (sent, now) = (self.at(self.anchor(pending, local)), self.at(local));
        let Some((_, lease)) = &mut self.session else {
            return;
        };
        lease.committed(sent, now);
        self.ticket = None;
        if !lease.holds(now) {
            self.lose(local, true);
            return;
        }
        // Long while things go wrong, and short when everybody is to get a turn.
        let most = if local < self.calm { 20 } else { 4 };
        self.mode = Mode::Holding(token, local + rng.below(most * SECOND));
        self.write_at = local;
        self.terms_held += 1;
        self.began = Some(token);
    }

    fn anchor(&self, pending: &Pending, local: Micros) -> Micros {
        match self.sabotage {
            Sabotage::AnchorAtAnswer => local,
            _ => pending.sent,
        }
    }
}

/// Whether it is a part of the making of a session.
fn makes(ask: &Ask) -> bool {
    matches!(ask, Ask::Register(_) | Ask::Create { .. })
}

/// Whether it is waited for before anything else is looked at.
fn is_look(ask: &Ask) -> bool {
    makes(ask) || matches!(ask, Ask::Read { .. } | Ask::Line | Ask::Queue(_))
}
