//! What follows from what the agent answered.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::{CALM, Changed, Keeper};
use crate::error::{Error, ErrorKind, Result};
use crate::registration::State;
use crate::registration::history::Happening;
use crate::registration::mark::Boot;
use crate::registration::work::{self, Beaten, Looked, Registered};

impl Keeper {
    pub(super) fn changed(&mut self, changed: Changed) {
        match changed {
            Changed::Registered(registered) => self.registered(registered),
            Changed::Maintained(result, former, reply) => {
                if let Err(err) = &result {
                    if err.kind() == ErrorKind::UnknownService {
                        // It stays asked for, as a part of the registration.
                        self.forgotten(err.clone());
                    } else {
                        self.desired.maintenance = former;
                    }
                }
                reply.send(result).ok();
            }
        }
    }

    fn registered(&mut self, registered: Registered) {
        let now = Instant::now();
        let Registered {
            version,
            token,
            boot,
            result,
        } = registered;
        self.tried.clone_from(&token);
        match &result {
            Ok(()) => {
                self.trouble.register = None;
                self.retry.reset();
                self.token = token;
                self.desired.boot = boot;
                self.missing = false;
                if version == self.desired.version {
                    self.accept(now);
                } else {
                    self.register_at = Some(now);
                }
                // What the agent has now is compared, and its status told again: a check that
                // existed has kept its own.
                self.hurry(now);
                self.look_from_scratch(now);
            }
            Err(err) if is_final(err) && self.roll_back(version) => {
                self.retry.reset();
                let worn = self.worn_taken == self.desired.worn.version;
                if self.missing || token != self.token || !worn {
                    // The agent is without what it took before, has it from the old token, or with
                    // other badges.
                    self.register_at = Some(now);
                } else {
                    self.trouble.register = None;
                }
            }
            Err(err) => {
                self.trouble.register = Some(err.clone());
                self.register_at = Some(now + self.retry.next(rand::random()));
            }
        }
        let waiting = std::mem::take(&mut self.waiting.updates);
        for (wanted, reply) in waiting {
            if wanted <= version {
                reply.send(result.clone()).ok();
            } else {
                self.waiting.updates.push((wanted, reply));
            }
        }
    }

    /// The agent took the definition.
    fn accept(&mut self, now: Instant) {
        self.worn_taken = self.desired.worn.version;
        self.badges.taken(self.worn_taken);
        let definition = &self.desired.definition;
        if self.accepted.as_ref() != Some(definition) {
            self.accepted = Some(definition.clone());
            self.as_written = None;
            self.strange = None;
            let mut beats = self.desired.beats(now);
            for beat in &mut beats {
                let known = self.beats.iter().find(|known| known.is_like(beat));
                if let Some(known) = known {
                    beat.rhythm = known.rhythm.clone();
                }
            }
            self.beats = beats;
            self.trouble.beat = None;
            if self.beats.is_empty() {
                for (_, reply) in self.waiting.says.drain(..) {
                    reply.send(Ok(())).ok();
                }
            }
        }
    }

    /// Goes back to what the agent took before, if a change is what it refuses.
    fn roll_back(&mut self, version: u64) -> bool {
        match &self.accepted {
            Some(accepted) if *accepted != self.desired.definition => {
                if version == self.desired.version {
                    let mut asked = self.definition.lock();
                    if *asked == self.desired.definition {
                        *asked = accepted.clone();
                    }
                    self.desired.definition = accepted.clone();
                }
                true
            }
            _ => false,
        }
    }

    pub(super) fn beaten(&mut self, beaten: Beaten) {
        let now = Instant::now();
        let mut worst = None;
        let mut forgotten = None;
        for (check, sent, result) in beaten.all {
            match result {
                Ok(()) => self.rhythm(&check, |rhythm| rhythm.taken(sent, rand::random())),
                Err(err) => {
                    let soonest = match err.is_connect() {
                        true => now + self.a_while(RESTART_LOOK),
                        false => now,
                    };
                    self.rhythm(&check, |rhythm| {
                        rhythm.failed(now, rand::random());
                        rhythm.defer(soonest);
                    });
                    if err.kind() == ErrorKind::UnknownCheck {
                        forgotten = Some(err.clone());
                    }
                    if is_out_of_reach(&err) {
                        self.failed_at = Some(now);
                        self.beat_failed_at = Some(now);
                    }
                    worst = Some(err);
                }
            }
        }
        if self.said > beaten.said {
            self.hurry(now);
        }
        let waiting = std::mem::take(&mut self.waiting.says);
        for (said, reply) in waiting {
            // After an unknown check all is told again at once.
            if said > beaten.said || forgotten.is_some() {
                self.waiting.says.push((said, reply));
            } else {
                let result = worst.as_ref().map_or(Ok(()), |err| Err(err.clone()));
                reply.send(result).ok();
            }
        }
        if let Some(err) = forgotten {
            self.forgotten(err);
        }
        if worst.is_none()
            && let Some(err) = self.trouble.beat.take()
        {
            self.tell_the_others(now);
            // The agent is back: look at once at what it remembers, on a connection that is no older
            // than the trouble. It holds a query that is thrown away until its wait is over.
            let is_old = self.look_began_at <= self.beat_failed_at;
            if is_out_of_reach(&err) && is_old {
                self.look_from_scratch(now);
            } else if self.looking.is_empty() {
                self.look_at = now;
            }
        }
        self.trouble.beat = worst;
    }

    pub(super) fn seen(&mut self, seen: Result<Looked>) {
        let now = Instant::now();
        if let Ok(looked) = &seen {
            self.looked_at = Some(looked.began_at);
        }
        let service = match seen {
            Ok(looked) if self.yielded => {
                self.agent_answers();
                let hash = looked.service.as_ref().and_then(|one| one.content_hash());
                self.hash = hash.map(Arc::from);
                self.look_at = self.next_look(now);
                return self.seen_theirs(now, &looked);
            }
            Ok(looked) => Ok(looked.service),
            Err(err) => Err(err),
        };
        match service {
            Ok(Some(service)) => {
                self.agent_answers();
                self.hash = service.content_hash().map(Arc::from);
                self.look_at = self.next_look(now);
                let settled = self.changing.is_empty() && self.register_at.is_none();
                let as_written = self.hash.is_some() && self.hash == self.as_written;
                if as_written || self.desired.whole().describes(&service) {
                    self.strange = None;
                } else if settled {
                    self.overwritten(now, Boot::of(&service));
                }
            }
            Ok(None) => {
                self.agent_answers();
                self.hash = None;
                self.look_at = self.look_pace.take(now);
                let id = &*self.desired.id;
                let gone = format!("service {id:?}: the agent has forgotten it");
                self.forgotten(Error::new(ErrorKind::UnknownService).context(gone));
            }
            Err(err) => {
                self.hash = None;
                if is_out_of_reach(&err) {
                    self.failed_at = Some(now);
                }
                let pause = match err.kind() {
                    // Reading needs a right of its own, which a registration can do without.
                    ErrorKind::PermissionDenied | ErrorKind::UnknownToken => {
                        Duration::from_secs(10)
                    }
                    ErrorKind::RateLimited => Duration::from_secs(5),
                    ErrorKind::Connect if self.may_be_restarting(now) => self.a_while(RESTART_LOOK),
                    _ => {
                        let pause = self.look_again.next(rand::random());
                        pause.max(self.a_while(RESTART_LOOK))
                    }
                };
                self.look_at = now + pause;
                self.trouble.look = Some(err);
            }
        }
    }

    fn agent_answers(&mut self) {
        self.look_again.reset();
        self.trouble.look = None;
        self.gone_since = None;
        self.tell_the_others(Instant::now());
    }

    /// It has reached the agent: if that failed before, others may want to know.
    fn tell_the_others(&mut self, now: Instant) {
        if let Some(failed_at) = self.failed_at.take() {
            self.member.found(failed_at, now);
        }
    }

    /// Somebody else has found the agent: whoever has failed to reach it tries again.
    pub(super) fn agent_is_back(&mut self, failed_at: Instant) {
        let now = Instant::now();
        // Whoever holds no query, and has not looked since, has not noticed that the agent was away,
        // and may have lost all.
        let has_looked = self.looked_at.is_some_and(|at| at > failed_at);
        let has_missed_it = self.trouble.look.is_some() || !(has_looked || self.member.has_place());
        if has_missed_it && self.looking.is_empty() {
            self.look_at = now;
        }
        if self.trouble.beat.is_some() {
            self.hurry(now);
        }
        if self
            .trouble
            .register
            .as_ref()
            .is_some_and(Error::is_connect)
        {
            self.register_at = self.register_at.map(|at| at.min(now));
        }
    }

    /// A pause, or a part of it, and the longer the more registrations there are.
    fn a_while(&self, pause: Duration) -> Duration {
        shortened(self.member.spread(pause))
    }

    fn next_look(&mut self, now: Instant) -> Instant {
        if self.hash.is_some() && !self.member.has_place() {
            // The heartbeats tell sooner if the agent has forgotten it.
            let most = match self.yielded {
                true => self.beats.iter().map(|beat| beat.rhythm.ttl()).min(),
                false => None,
            };
            let most = most.map_or(work::LOOK, |ttl| ttl.clamp(work::SHORT_LOOK, work::LOOK));
            return now + shortened(most);
        }
        // Each answer is news or comes after a minute, unless something is in between that does not
        // wait.
        self.look_pace.take(now)
    }

    /// Whether nobody has listened where the agent was for no longer than a restart takes.
    fn may_be_restarting(&mut self, now: Instant) -> bool {
        let since = *self.gone_since.get_or_insert(now);
        now.saturating_duration_since(since) < RESTART
    }

    fn look_from_scratch(&mut self, now: Instant) {
        // The agent holds a query that nobody waits for any more until its wait is over: one that
        // freezes again and again must not end up with nothing else.
        let lately = self.scratched.is_some_and(|at| now < at + work::LOOK);
        if !self.looking.is_empty() {
            if lately && self.hash.is_some() {
                return;
            }
            self.scratched = Some(now);
        }
        self.looking.clear();
        self.hash = None;
        self.look_at = now;
    }

    /// The agent does not know what it was told: tell it again, at once unless that is what just
    /// happened.
    fn forgotten(&mut self, err: Error) {
        if !self.changing.is_empty() {
            return;
        }
        let now = Instant::now();
        // An agent without the service is no contest, but one with the other's checks is.
        let whole = err.kind() == ErrorKind::UnknownService;
        if !whole && self.calm_at.is_some_and(|at| at > now) {
            return;
        }
        self.missing = true;
        // What the agent answered to a registration does not change because it has no service.
        let refused = self.trouble.register.as_ref().is_some_and(is_refusal);
        if refused && self.register_at.is_some() {
            return;
        }
        if self.trouble.register.is_none() {
            tracing::info!(service = %self.desired.id, reason = %err.chain(), "registering again");
        }
        self.trouble.register = Some(err);
        self.bring_forward(now);
    }

    /// Registers as soon as the pace allows it, if nothing earlier is planned.
    fn bring_forward(&mut self, now: Instant) {
        // Only a registration that follows uses the pace up.
        let mut pace = self.register_pace.clone();
        let at = pace.take(now);
        if self.register_at.is_none_or(|planned| at < planned) {
            self.register_pace = pace;
            self.register_at = Some(at);
            self.calm_at = self.calm_at.map(|calm| calm.min(at + CALM));
        }
    }

    /// Somebody else has registered our ID: it is taken back.
    pub(super) fn contested(&mut self, now: Instant, by_a_twin: bool) {
        let seen = match (self.strange.take(), &self.hash) {
            (Some((former, seen)), Some(hash)) if former == *hash => seen + 1,
            _ => 1,
        };
        // Nobody writes the very same again each time that we have written: it is how this agent
        // writes what we register.
        if seen > REASSERTED && !by_a_twin {
            self.as_written.clone_from(&self.hash);
            self.calm_at = None;
            tracing::warn!(service = %self.desired.id, "the agent keeps the service otherwise than it is registered");
            return;
        }
        self.strange = self.hash.clone().map(|hash| (hash, seen));
        if self.calm_at.is_none() {
            self.reassert.reset();
            self.register_at = Some(now);
        } else {
            self.register_at = Some(now + self.reassert.next(rand::random()));
        }
        let at = self.register_at.unwrap_or(now);
        self.calm_at = Some(at + CALM);
        tracing::warn!(service = %self.desired.id, "someone else has registered this ID on the agent");
    }

    pub(super) fn publish(&mut self, now: Instant) {
        let trouble = &self.trouble;
        // Without heartbeats, looking is how an agent out of reach is noticed.
        let look = trouble.look.as_ref();
        let look = look.filter(|err| self.beats.is_empty() && !err.is_permission_denied());
        let error = trouble.register.as_ref().or(trouble.beat.as_ref()).or(look);
        let state = match error {
            Some(error) if error.is_permission_denied() => State::Denied {
                error: error.clone(),
            },
            _ if self.yielded => State::Yielded,
            _ if self.calm_at.is_some_and(|at| at > now) => State::Contested,
            Some(error) => State::Healing {
                error: error.clone(),
            },
            None => State::Registered,
        };
        if self.state.borrow().is_like(&state) {
            return;
        }
        match &state {
            State::Registered => {
                tracing::info!(service = %self.desired.id, "service registered");
                if let Some(since) = self.lost_at.take() {
                    let after = now.saturating_duration_since(since);
                    self.log.write(Happening::Healed(after));
                }
            }
            other => {
                tracing::warn!(service = %self.desired.id, state = %other, "service not as it should be");
                match other {
                    State::Healing { error } if self.lost_at.is_none() => {
                        self.log.write(Happening::Lost(error.clone()));
                        self.lost_at = Some(now);
                    }
                    State::Denied { error } => {
                        self.log.write(Happening::Denied(error.clone()));
                        self.lost_at.get_or_insert(now);
                    }
                    _ => {}
                }
            }
        }
        self.state.send_replace(state);
    }
}

/// From half of it to all of it, so that many do not come together.
fn shortened(pause: Duration) -> Duration {
    pause.mul_f64(0.5 + 0.5 * rand::random::<f64>())
}

/// How long an agent that is gone is taken for one that restarts.
const RESTART: Duration = Duration::from_secs(30);

/// The longest pause between two looks at an agent that restarts.
///
/// An agent that comes back with nothing removes from the catalog what it does not have. It does so
/// at a moment that it draws from the 3 s after it has joined the servers, and it listens a little
/// before it joins (measured on 1.8.7): whoever is there first was never missed. That nobody
/// listens is told without a wait, and asking costs next to nothing.
const RESTART_LOOK: Duration = Duration::from_millis(50);

/// How many registrations in a row must change nothing before they are given up.
const REASSERTED: u32 = 3;

/// No answer of any kind.
fn is_out_of_reach(err: &Error) -> bool {
    matches!(
        err.kind(),
        ErrorKind::Connect | ErrorKind::Transport | ErrorKind::Timeout
    )
}

/// Whether it is the agent's word on a registration, which asking at once does not change.
fn is_refusal(err: &Error) -> bool {
    let forgotten = matches!(
        err.kind(),
        ErrorKind::UnknownService | ErrorKind::UnknownCheck
    );
    err.is_rate_limited() || !(err.is_transient() || forgotten)
}

/// Whether the same request will be refused again.
fn is_final(err: &Error) -> bool {
    matches!(
        err.kind(),
        ErrorKind::Invalid
            | ErrorKind::Refused
            | ErrorKind::RequestTooLarge
            | ErrorKind::Unsupported
    )
}
