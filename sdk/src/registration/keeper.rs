//! The task behind a registration.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

mod first;
mod outcomes;
mod twins;

use super::badge::{Badges, Worn};
use super::crowd::{Crowd, Member};
use super::desired::{Beat, Desired};
use super::gate::Turn;
use super::history::{Happening, Log};
use super::mark::{Boot, OnConflict};
use super::work::{self, Beaten, Looked, Registered, Slot, ToBeat};
use super::{Definition, State};
use crate::api::agent::ServiceDefinition;
use crate::api::health::Status;
use crate::client::Client;
use crate::error::{Error, Result};
use crate::ident::Token;
use crate::probe::Verdict;
use crate::proto::backoff::Backoff;
use crate::proto::pace::Pace;
use crate::task::StopSignal;
use first::{First, until_stopped};

/// What the guard asks of its keeper.
pub(super) enum Command {
    Say(Status, Arc<str>, Reply),
    Update(Reply),
    Maintain(Option<Arc<str>>, Reply),
    Turn(Turn, Reply),
}

pub(super) type Reply = oneshot::Sender<Result<()>>;

/// How a registration behaves.
#[derive(Clone, Copy, Debug)]
pub(super) struct Terms {
    pub(super) on_conflict: OnConflict,
    pub(super) starts_anyway: bool,
}

/// Keeps one service registered.
///
/// It is one loop over three requests at most: one that changes the registration, one batch of
/// heartbeats, and one long poll on the agent's own copy of the service. None waits for another.
pub(super) struct Keeper {
    client: Client,
    member: Member,
    desired: Desired,
    /// What the guard asks for.
    definition: Arc<Definition>,
    /// What is worn beside it, where that is told, and the version that the agent took.
    badges: Badges,
    worn: watch::Receiver<Worn>,
    worn_taken: u64,
    /// What the probes say, if there are any.
    probed: Option<Probed>,
    /// The last definition that the agent took.
    accepted: Option<ServiceDefinition>,
    /// Who the agent knows the registration from: who asked for the last one that it took.
    token: Option<Token>,
    /// Who asked for the last registration, whatever it came to.
    tried: Option<Token>,
    beats: Vec<Beat>,
    /// Whether the agent is known to have forgotten the service, or a check of it.
    missing: bool,
    /// Whether the ID is left to somebody else.
    yielded: bool,
    /// The younger process that was told that we live, and the last one that there was a conflict with.
    answered: Option<Boot>,
    rival: Option<Boot>,
    /// Why it ends by itself, if it does.
    failed: Option<Error>,
    /// Counts what the caller said about the status.
    said: u64,
    hash: Option<Arc<str>>,
    /// A content that is not what the definition says, and how often it was seen in a row.
    strange: Option<(Arc<str>, u32)>,
    /// When a query that the agent held was last given up.
    scratched: Option<Instant>,
    /// How the agent writes what the definition says, if it writes something else.
    as_written: Option<Arc<str>>,

    changing: Slot<Changed>,
    beating: Slot<Beaten>,
    looking: Slot<Result<Looked>>,

    register_at: Option<Instant>,
    look_at: Instant,
    token_at: Instant,
    calm_at: Option<Instant>,

    retry: Backoff,
    reassert: Backoff,
    look_again: Backoff,
    /// Since when nobody listens where the agent was.
    gone_since: Option<Instant>,
    /// When the agent could not be reached the last time, if not since.
    failed_at: Option<Instant>,
    /// When a heartbeat has not reached it the last time.
    beat_failed_at: Option<Instant>,
    /// When the look began that is under way, or was the last.
    look_began_at: Option<Instant>,
    /// When the last look at the agent began that has shown something.
    looked_at: Option<Instant>,
    look_pace: Pace,
    register_pace: Pace,

    trouble: Trouble,
    terms: Terms,
    log: Log,
    /// Since when the service is not as it should be.
    lost_at: Option<Instant>,
    state: watch::Sender<State>,
    waiting: Waiting,
}

/// What a change of the registration came to.
enum Changed {
    Registered(Registered),
    Maintained(Result<()>, Option<Arc<str>>, Reply),
}

/// What is wrong now, by where it was noticed.
#[derive(Default)]
struct Trouble {
    register: Option<Error>,
    beat: Option<Error>,
    look: Option<Error>,
}

/// Callers that wait for something to be told.
#[derive(Default)]
struct Waiting {
    updates: Vec<(u64, Reply)>,
    says: Vec<(u64, Reply)>,
    maintenance: Vec<(Option<Arc<str>>, Reply)>,
}

/// How often the token is compared, and while it is refused.
const TOKEN: Duration = Duration::from_secs(5);
const TOKEN_DENIED: Duration = Duration::from_secs(1);

/// How long a goodbye waits for a registration that is on its way.
const PATIENCE: Duration = Duration::from_secs(1);

/// How long nobody else must have touched the service until it no longer counts as contested.
const CALM: Duration = Duration::from_secs(10);

impl Keeper {
    pub(super) fn new(
        (client, member): (Client, Member),
        desired: Desired,
        (definition, badges): (Arc<Definition>, Badges),
        probed: Option<Probed>,
        terms: Terms,
        (state, log): (watch::Sender<State>, Log),
    ) -> Self {
        let now = Instant::now();
        Self {
            beats: desired.beats(now),
            client,
            member,
            desired,
            definition,
            worn: badges.follow(),
            badges,
            worn_taken: 0,
            probed,
            accepted: None,
            token: None,
            tried: None,
            missing: false,
            yielded: false,
            answered: None,
            rival: None,
            failed: None,
            said: 0,
            hash: None,
            strange: None,
            scratched: None,
            as_written: None,
            changing: Slot::empty(),
            beating: Slot::empty(),
            looking: Slot::empty(),
            register_at: None,
            look_at: now,
            token_at: now + TOKEN,
            calm_at: None,
            retry: Backoff::new(Duration::from_millis(100), Duration::from_secs(10)),
            reassert: Backoff::new(Duration::from_secs(2), Duration::from_secs(60)),
            look_again: Backoff::new(Duration::from_millis(40), Duration::from_millis(500)),
            gone_since: None,
            failed_at: None,
            beat_failed_at: None,
            look_began_at: None,
            looked_at: None,
            look_pace: Pace::new(20, Duration::from_millis(500)),
            register_pace: Pace::new(5, Duration::from_secs(2)),
            trouble: Trouble::default(),
            terms,
            log,
            lost_at: None,
            state,
            waiting: Waiting::default(),
        }
    }

    /// Registers, reports, keeps the registration up until it is told to stop, and deregisters.
    pub(super) async fn run(
        mut self,
        mut stop: StopSignal,
        mut commands: mpsc::Receiver<Command>,
        ready: oneshot::Sender<Result<()>>,
    ) -> Result<()> {
        let begun = AtomicBool::new(false);
        let first = match until_stopped(&mut stop, &begun, self.establish(&begun)).await {
            First::Done(Err(err)) if self.terms.starts_anyway && may_pass(&err) => {
                self.start_without(err);
                First::Done(Ok(()))
            }
            first => first,
        };
        let haunted = match first {
            First::Unheard => {
                self.badges.over();
                self.state.send_replace(State::Closed);
                return Ok(());
            }
            // Nobody waits for it any more.
            First::Stopped => self.accepted.is_none(),
            First::Done(Err(err)) => {
                // What never reached the agent, or was refused by it, leaves nothing behind.
                let reached = err.is_transient() && !err.is_connect();
                ready.send(Err(err.clone())).ok();
                if self.accepted.is_none() && !reached {
                    self.state.send_replace(State::Closed);
                    return Err(err);
                }
                true
            }
            First::Done(Ok(())) => {
                ready.send(Ok(())).ok();
                self.keep(&mut stop, &mut commands).await;
                // What is on its way may arrive after the goodbye, if it is not waited for.
                !self.changing.is_empty()
                    && tokio::time::timeout(PATIENCE, self.changing.done())
                        .await
                        .is_err()
            }
        };
        // Whoever holds a query would know.
        let watches = self.member.holds_place() && self.hash.is_some() && !self.looking.is_empty();
        self.looking.clear();
        self.beating.clear();
        self.changing.clear();
        let is_kept = self.accepted.is_some() && !self.yielded && self.failed.is_none();
        if is_kept && !watches && self.trouble.look.is_none() {
            self.yielded = self.is_somebody_elses().await;
        }
        if self.yielded || self.failed.is_some() {
            // What is registered is somebody else's.
            self.badges.over();
            self.state.send_replace(State::Closed);
            return self.failed.map_or(Ok(()), Err);
        }
        let stale = self.accepted.is_some() && self.client.current_token() != self.token;
        let renew = stale.then(|| self.desired.clone());
        let id = self.desired.id.clone();
        let way = (self.client.clone(), &self.member);
        let outcome = work::goodbye(way, id, renew, haunted).await;
        match &outcome {
            Ok(()) => tracing::info!(service = %self.desired.id, "service deregistered"),
            Err(err) => {
                tracing::warn!(service = %self.desired.id, error = %err.chain(), "service not deregistered");
            }
        }
        self.badges.over();
        self.state.send_replace(State::Closed);
        outcome
    }

    /// The first registration and the first heartbeats: then the service is what it says.
    ///
    /// What is sent from when `begun` is set may have reached the agent.
    async fn establish(&mut self, begun: &AtomicBool) -> Result<()> {
        // Each comes back, or has failed, by its deadline.
        while self.probed.is_some() && self.desired.probed.is_none() {
            probed(&mut self.probed).await;
            self.desired.probed = verdict(&mut self.probed);
        }
        let register = self.register();
        let registered = in_turn(self.member.crowd(), async {
            begun.store(true, Ordering::Relaxed);
            register.await
        });
        let registered = registered.await;
        registered.result?;
        self.desired.boot = registered.boot;
        self.accepted = Some(self.desired.definition.clone());
        self.tried.clone_from(&registered.token);
        self.token = registered.token;
        // A check of an earlier incarnation keeps its status when it is registered again.
        let all = self.to_beat(|_| true);
        let crowd = self.member.crowd();
        let beaten = work::beat((self.client.clone(), crowd), self.said, all).await;
        for (check, sent, result) in beaten.all {
            result?;
            self.rhythm(&check, |rhythm| rhythm.taken(sent, rand::random()));
        }
        tracing::info!(service = %self.desired.id, "service registered");
        self.log.write(Happening::Registered);
        // Whatever it is worth: the service itself is registered.
        let tidying = work::tidy_up(&self.client, &self.desired);
        match in_turn(self.member.crowd(), tidying).await {
            Ok(gone) => {
                for id in gone {
                    tracing::info!(service = %self.desired.id, leftover = %id, "what a former self has left behind is removed");
                    self.log.write(Happening::LeftoverRemoved(id));
                }
            }
            Err(err) => {
                tracing::warn!(service = %self.desired.id, error = %err.chain(), "leftovers of former selves not removed");
            }
        }
        self.state.send_replace(State::Registered);
        Ok(())
    }

    /// Begins although the agent has not taken the service yet.
    fn start_without(&mut self, err: Error) {
        let now = Instant::now();
        self.tried = self.client.current_token();
        self.trouble.register = Some(err);
        self.register_at = Some(now + self.retry.next(rand::random()));
        self.publish(now);
    }

    async fn keep(&mut self, stop: &mut StopSignal, commands: &mut mpsc::Receiver<Command>) {
        loop {
            let now = Instant::now();
            self.start_what_is_due(now);
            self.publish(now);
            if self.failed.is_some() {
                return;
            }
            let wake = self.wake();
            tokio::select! {
                biased;
                _ = stop.recv() => return,
                Some(command) = commands.recv() => self.command(command),
                Ok(()) = self.worn.changed() => self.wear(),
                () = probed(&mut self.probed) => self.examined(),
                done = self.changing.done() => self.changed(done),
                done = self.beating.done() => self.beaten(done),
                seen = self.looking.done() => self.seen(seen),
                failed_at = self.member.back() => self.agent_is_back(failed_at),
                () = tokio::time::sleep_until(wake) => {}
            }
            self.notice_lag(wake);
        }
    }

    /// Whoever is not woken for a third of a TTL has a runtime without time for heartbeats.
    fn notice_lag(&mut self, wake: Instant) {
        let now = Instant::now();
        let by = now.saturating_duration_since(wake);
        let least = self.beats.iter().map(|beat| beat.rhythm.ttl()).min();
        if self.yielded || least.is_none_or(|ttl| by <= ttl / 3) {
            return;
        }
        tracing::warn!(service = %self.desired.id, ?by, "heartbeats are late: the runtime is starved");
        self.log.write(Happening::BeatLate(by));
        self.desired.late = Some((by, now));
    }

    /// When something is due although nothing happens.
    fn wake(&self) -> Instant {
        let mut wake = self.token_at;
        let mut by = |at: Instant| wake = wake.min(at);
        if self.changing.is_empty() && !self.yielded {
            self.register_at.into_iter().for_each(&mut by);
        }
        // They wait for the registration with a new token.
        if self.beating.is_empty() && !self.yielded && self.client.current_token() == self.tried {
            self.beats.iter().for_each(|beat| by(beat.rhythm.due()));
        }
        if self.looking.is_empty() {
            by(self.look_at);
        }
        self.calm_at.into_iter().for_each(&mut by);
        wake
    }

    fn start_what_is_due(&mut self, now: Instant) {
        if self.token_at <= now {
            let denied = matches!(*self.state.borrow(), State::Denied { .. });
            self.token_at = now + if denied { TOKEN_DENIED } else { TOKEN };
        }
        // The agent keeps the token of the registration for its own talk to the servers. When that
        // one dies, neither a change nor the goodbye reaches them, and heartbeats with a new token
        // say nothing about it (measured on 1.8.7).
        //
        // One that failed is repeated at its own pace, not at once.
        let renewing = self.client.current_token() != self.tried;
        if renewing && self.changing.is_empty() && !self.yielded {
            self.register_at = Some(now);
        }
        if self.calm_at.is_some_and(|at| at <= now) {
            self.calm_at = None;
        }
        if self.changing.is_empty() && !self.yielded {
            if let Some((reason, reply)) = self.waiting.maintenance.pop() {
                let former = std::mem::replace(&mut self.desired.maintenance, reason.clone());
                let id = self.desired.id.clone();
                // Where the operator's ends, the service's own may go on.
                let reason = reason.or_else(|| self.desired.own_maintenance());
                let maintain = work::maintain(self.client.clone(), id, reason);
                let maintain = in_turn(self.member.crowd(), maintain);
                self.changing
                    .start(async move { Changed::Maintained(maintain.await, former, reply) });
            } else if self.register_at.is_some_and(|at| at <= now) {
                self.register_at = None;
                let register = in_turn(self.member.crowd(), self.register());
                self.changing
                    .start(async move { Changed::Registered(register.await) });
            }
        }
        if self.beating.is_empty() && !renewing && !self.yielded {
            let due = self.to_beat(|beat| beat.rhythm.due() <= now);
            if !due.is_empty() {
                let by = (self.client.clone(), self.member.crowd());
                self.beating.start(work::beat(by, self.said, due));
            }
        }
        if self.looking.is_empty() && self.look_at <= now {
            self.look_began_at = Some(now);
            let id = self.desired.id.clone();
            let (client, hash) = (self.client.clone(), self.hash.clone());
            if self.yielded {
                let ttl = self.beats.iter().map(|beat| beat.rhythm.ttl()).min();
                if self.member.has_place() {
                    self.looking
                        .start(work::look_at_theirs(client, id, hash, ttl));
                } else {
                    let look = work::look_at_theirs(client, id, None, ttl);
                    self.looking.start(in_turn(self.member.crowd(), look));
                }
            } else if self.member.has_place() {
                self.looking.start(work::look_at_ours(client, id, hash));
            } else {
                let look = work::look_at_ours(client, id, None);
                self.looking.start(in_turn(self.member.crowd(), look));
            }
        }
    }

    fn register(&self) -> impl Future<Output = Registered> + use<> {
        work::register(self.client.clone(), self.desired.clone())
    }

    fn to_beat(&self, which: impl Fn(&Beat) -> bool) -> Vec<ToBeat> {
        // The next batch starts when this one is done: a check with a short TTL must not wait for
        // as long as one with a long TTL may.
        let patience = self.beats.iter().map(|beat| beat.rhythm.patience()).min();
        let patience = patience.unwrap_or_default();
        let due = self.beats.iter().filter(|beat| which(beat));
        let now = Instant::now();
        due.map(|beat| ToBeat {
            check: Arc::clone(&beat.check),
            status: self.desired.status_of(beat),
            output: self.desired.output_of(beat, now),
            patience,
        })
        .collect()
    }

    fn rhythm(
        &mut self,
        check: &str,
        change: impl FnOnce(&mut crate::proto::heartbeat::Heartbeat),
    ) {
        if let Some(beat) = self.beats.iter_mut().find(|beat| *beat.check == *check) {
            change(&mut beat.rhythm);
        }
    }

    fn hurry(&mut self, now: Instant) {
        for beat in &mut self.beats {
            beat.rhythm.hurry(now);
        }
    }

    /// Something was put on or taken off.
    fn wear(&mut self) {
        let worn = self.worn.borrow_and_update().clone();
        self.desired.wear(worn);
        self.as_written = None;
        self.strange = None;
        self.register_at = Some(Instant::now());
        if self.yielded {
            // Nothing of ours is there that could wear it.
            self.badges.taken(self.desired.worn.version);
        }
    }

    /// The probes say something else.
    fn examined(&mut self) {
        self.desired.probed = verdict(&mut self.probed);
        self.said += 1;
        self.hurry(Instant::now());
    }

    fn command(&mut self, command: Command) {
        if self.yielded {
            return self.command_in_vain(command);
        }
        let now = Instant::now();
        match command {
            Command::Say(status, output, reply) => {
                if self.beats.is_empty() {
                    let id = &*self.desired.id;
                    let err = Error::invalid(format!(
                        "service {id:?}: has no TTL check whose status could be set"
                    ));
                    reply.send(Err(err)).ok();
                    return;
                }
                self.desired.say(status, output);
                self.said += 1;
                self.waiting.says.push((self.said, reply));
                self.hurry(now);
            }
            Command::Update(reply) => {
                // The latest: of two that came together, one registration tells both.
                let definition = self.definition.lock().clone();
                self.desired.change(definition);
                self.waiting.updates.push((self.desired.version, reply));
                self.register_at = Some(now);
            }
            Command::Turn(turn, reply) => {
                self.desired.gate.turn(turn);
                if self.beats.is_empty() {
                    // Its own maintenance is a part of the registration.
                    self.desired.version += 1;
                    self.waiting.updates.push((self.desired.version, reply));
                    self.register_at = Some(now);
                } else {
                    self.said += 1;
                    self.waiting.says.push((self.said, reply));
                    self.hurry(now);
                }
            }
            Command::Maintain(reason, reply) => {
                self.waiting.maintenance.insert(0, (reason, reply));
            }
        }
    }
}

/// Does it when fewer than some do such a thing.
async fn in_turn<T>(crowd: Arc<Crowd>, work: impl Future<Output = T>) -> T {
    let _turn = crowd.turn().await;
    work.await
}

/// Whether a registration that failed so may be taken later.
fn may_pass(err: &Error) -> bool {
    err.is_transient() || err.is_permission_denied()
}

/// Where the verdict on the service's health comes from.
pub(super) type Probed = watch::Receiver<Option<Verdict>>;

/// Waits for another verdict; for ever if there are no probes, or no more.
async fn probed(probed: &mut Option<Probed>) {
    let told = match probed {
        Some(verdicts) => verdicts.changed().await.is_ok(),
        None => false,
    };
    if !told {
        std::future::pending().await
    }
}

fn verdict(probed: &mut Option<Probed>) -> Option<Verdict> {
    let verdicts = probed.as_mut()?;
    verdicts.borrow_and_update().clone()
}
