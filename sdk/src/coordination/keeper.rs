//! The task behind one session: it proves it, takes keys, gives them up, and ends it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

use super::aim::{self, Aim};
use super::attempt::{LOOKS, QUIET, Released, Tried};
use super::belief::Belief;
use super::claims::Claim;
use super::clock::Clock;
use super::held::Hold;
use super::session::{self, Made, Plan};
use super::state::{LeaseState, LossCause, Lost};
use super::ticket::{self, Queued, Ticket, Tickets};
use crate::client::Client;
use crate::error::{Error, Result};
use crate::ident::{Key, SessionId};
use crate::proto::lease::{Lease, Proof};
use crate::task::{Chores, StopSignal};

/// What is asked of a keeper.
pub(super) enum Order {
    /// Try to take this, once.
    Take {
        aim: Aim,
        claim: Claim,
        reply: oneshot::Sender<Taken>,
    },
    /// Give up what is held; it has been ended before.
    Release {
        hold: Arc<Hold>,
        reply: Option<oneshot::Sender<Result<Released>>>,
    },
    /// Find out what became of a try that nobody pursues any more, and give up what it took.
    Look { aim: Aim, claim: Claim },
    /// Stand in line.
    Queue {
        ticket: Ticket,
        reply: oneshot::Sender<Queued>,
    },
    /// Leave the line: the ticket of this key is not wanted any more.
    Leave(Key),
}

/// What became of a try.
pub(super) enum Taken {
    Won(Arc<Hold>),
    /// A lock-delay runs; the claim comes back.
    Delayed(Claim),
    /// A key is not as it was seen; the claim comes back.
    Moved(Claim),
    SessionGone,
    /// Consul refuses it, or was not reached; the claim comes back.
    Refused(Error, Claim),
}

/// A session that has been made.
pub(super) struct Born {
    pub(super) session: SessionId,
    pub(super) belief: Arc<Belief>,
}

/// Keeps one session. All that takes time runs beside its loop, as its chores.
pub(super) struct Keeper {
    pub(super) client: Client,
    pub(super) plan: Arc<Plan>,
    pub(super) clock: Clock,
    pub(super) runtime: Handle,
    pub(super) orders: mpsc::UnboundedReceiver<Order>,
    /// The other end of it, for what is to be looked at once nobody pursues it.
    pub(super) to_self: mpsc::UnboundedSender<Order>,
    pub(super) state: Arc<watch::Sender<LeaseState>>,
}

/// What one of the chores has come to.
enum Done {
    Proved(Proof, Instant, Result<bool>),
    Tried(Aim, Claim, oneshot::Sender<Taken>, Tried),
    Released(
        Arc<Hold>,
        Option<oneshot::Sender<Result<Released>>>,
        Result<Released>,
    ),
    /// A key that a lost request might have taken late: whether it did.
    Looked(Aim, Claim, u32, Option<u64>),
    Queued(Key, oneshot::Sender<Queued>, Queued),
    /// A ticket is removed.
    Left(Key),
    Watched,
}

/// A session that lives, with all that is held by it.
struct Living {
    client: Client,
    plan: Arc<Plan>,
    clock: Clock,
    state: Arc<watch::Sender<LeaseState>>,
    session: SessionId,
    belief: Arc<Belief>,
    lease: Lease,
    trouble: Option<Error>,
    held: Vec<Kept>,
    /// What is not watched yet, and from when on it is to be; the oldest is the first.
    unwatched: VecDeque<(Instant, Arc<Hold>)>,
    tickets: Tickets,
    chores: Chores<Done>,
    to_self: mpsc::UnboundedSender<Order>,
    /// Whether chores that wait are to wait no longer.
    leaving: watch::Sender<bool>,
}

/// Something held, until its unlock is done.
struct Kept {
    hold: Arc<Hold>,
    /// Whether the unlock is on its way.
    leaving: bool,
    /// Goes back when the key is free for others of this process.
    _claim: Claim,
}

/// How long a goodbye may take: what it does not reach ends by the session's TTL.
const GOODBYE: Duration = Duration::from_secs(10);

/// How long after an unlock that failed the next one is tried.
const UNLOCK_AGAIN: Duration = Duration::from_secs(2);

/// How long a goodbye waits for a try that is on its way.
const LAST_TRY: Duration = Duration::from_secs(1);

impl Keeper {
    pub(super) async fn run(
        self,
        mut stop: StopSignal,
        ready: oneshot::Sender<Result<Born>>,
    ) -> Result<()> {
        let Self {
            client,
            plan,
            clock,
            runtime,
            mut orders,
            to_self,
            state,
        } = self;
        // Not given up half-way: who does not wait any more leaves a session that is ended below.
        let Made { id, sent, beaten } = match session::make(&client, &plan, clock).await {
            Ok(made) => made,
            Err(err) => {
                ready.send(Err(err)).ok();
                return Ok(());
            }
        };
        let lease = Lease::new(&plan.terms, sent, beaten, rand::random());
        let belief = Arc::new(Belief::new(clock, lease.until(), runtime));
        let mut living = Living {
            client,
            plan,
            clock,
            state,
            session: id.clone(),
            belief: Arc::clone(&belief),
            lease,
            trouble: None,
            held: Vec::new(),
            unwatched: VecDeque::new(),
            tickets: Tickets::default(),
            chores: Chores::new(),
            to_self,
            leaving: watch::channel(false).0,
        };
        tracing::debug!(session = %id, name = living.plan.name, "session created");
        let born = Born {
            session: id,
            belief,
        };
        if ready.send(Ok(born)).is_ok() {
            living.keep(&mut stop, &mut orders).await;
        }
        living.goodbye(orders).await
    }
}

impl Living {
    async fn keep(&mut self, stop: &mut StopSignal, orders: &mut mpsc::UnboundedReceiver<Order>) {
        let mut alarm = self.clock.alarm();
        loop {
            let now = self.clock.now();
            if !self.lease.holds(now) {
                // Whoever asks first makes it final; it may be us.
                self.belief.check().ok();
            }
            self.publish();
            if self.belief.check().is_err() {
                return;
            }
            while let Some((proof, patience)) = self.lease.start_due(now) {
                self.prove(proof, patience);
            }
            let watch_due = self.start_watches(now);
            let until = self.lease.until();
            let dues = [self.lease.next_due(), watch_due];
            let wake = dues.into_iter().flatten().fold(until, Instant::min);
            tokio::select! {
                biased;
                _ = stop.recv() => return,
                Some(done) = self.chores.next(), if !self.chores.is_empty() => self.done(done),
                Some(order) = orders.recv() => self.order(order),
                () = alarm.until(wake) => {}
            }
        }
    }

    fn prove(&mut self, proof: Proof, patience: Duration) {
        let (client, session) = (self.client.clone(), self.session.clone());
        let (plan, clock) = (Arc::clone(&self.plan), self.clock);
        self.chores.start(async move {
            // What counts is the sending: an answer may take its time.
            let sent = clock.now();
            let result = session::prove(&client, &session, &plan, proof, patience).await;
            Done::Proved(proof, sent, result)
        });
    }

    fn order(&mut self, order: Order) {
        match order {
            Order::Take { aim, claim, reply } => self.take(aim, claim, reply),
            Order::Release { hold, reply } => self.release(hold, reply),
            Order::Look { aim, claim } => self.look_later(aim, claim, 0),
            Order::Queue { ticket, reply } => self.queue(ticket, reply),
            Order::Leave(key) => self.leave(key),
        }
    }

    fn queue(&mut self, ticket: Ticket, reply: oneshot::Sender<Queued>) {
        let (client, session) = (self.client.clone(), self.session.clone());
        self.tickets.writing(&ticket.key);
        self.chores.start(async move {
            let queued = ticket::put(&client, &session, &ticket).await;
            Done::Queued(ticket.key, reply, queued)
        });
    }

    fn leave(&mut self, key: Key) {
        if let Some(haunted) = self.tickets.unwanted(&key) {
            self.remove(key, haunted);
        }
    }

    fn remove(&mut self, key: Key, haunted: bool) {
        let client = self.client.clone();
        let deadline = Instant::now() + GOODBYE;
        self.chores.start(async move {
            ticket::remove(&client, &key, haunted, deadline).await;
            Done::Left(key)
        });
    }

    fn take(&mut self, aim: Aim, claim: Claim, reply: oneshot::Sender<Taken>) {
        let (client, session) = (self.client.clone(), self.session.clone());
        let belief = Arc::clone(&self.belief);
        self.chores.start(async move {
            let tried = aim.attempt(&client, &session, &belief).await;
            Done::Tried(aim, claim, reply, tried)
        });
    }

    fn release(&mut self, hold: Arc<Hold>, reply: Option<oneshot::Sender<Result<Released>>>) {
        hold.end(Lost::new(LossCause::Released));
        for kept in &mut self.held {
            kept.leaving |= Arc::ptr_eq(&kept.hold, &hold);
        }
        self.unlock(hold, reply, Duration::ZERO);
    }

    /// Unlocks after so long, or when the session is about to end.
    fn unlock(
        &mut self,
        hold: Arc<Hold>,
        reply: Option<oneshot::Sender<Result<Released>>>,
        after: Duration,
    ) {
        let (client, rest) = (self.client.clone(), self.rest(after));
        self.chores.start(async move {
            rest.await;
            let result = aim::give_up(&client, &hold, Instant::now() + GOODBYE).await;
            Done::Released(hold, reply, result)
        });
    }

    /// Resolves after so long, or when the session is about to end.
    fn rest(&self, time: Duration) -> impl Future<Output = ()> + Send + use<> {
        let mut leaving = self.leaving.subscribe();
        async move {
            if !time.is_zero() {
                let leaving = leaving.wait_for(|leaving| *leaving);
                tokio::time::timeout(time, leaving).await.ok();
            }
        }
    }

    fn done(&mut self, done: Done) {
        let now = self.clock.now();
        match done {
            Done::Proved(proof, sent, Ok(true)) => {
                self.lease.proven(proof, sent, now, rand::random());
                self.told(None);
            }
            Done::Proved(_, _, Ok(false)) => {
                self.lease.end();
                self.belief.end(Lost::new(LossCause::SessionGone));
            }
            Done::Proved(proof, _, Err(err)) => {
                self.lease.failed(proof, now, rand::random());
                self.told(Some(err));
            }
            Done::Tried(aim, claim, reply, tried) => self.tried(aim, claim, reply, tried),
            Done::Released(hold, reply, result) => self.released(&hold, reply, result),
            Done::Looked(aim, claim, _, Some(index)) => {
                // It came late, and nobody waits for it.
                let hold = self.hold(&aim, index, claim);
                self.release(hold, None);
            }
            Done::Looked(aim, claim, looks, None) => self.look_later(aim, claim, looks),
            Done::Queued(key, reply, queued) => {
                let remove = self.tickets.written(&key, &queued);
                // Who does not wait any more says so by an order of its own.
                reply.send(queued).ok();
                if let Some(haunted) = remove {
                    self.remove(key, haunted);
                }
            }
            Done::Left(key) => self.tickets.removed(&key),
            Done::Watched => {}
        }
    }

    fn released(
        &mut self,
        hold: &Arc<Hold>,
        reply: Option<oneshot::Sender<Result<Released>>>,
        result: Result<Released>,
    ) {
        let leaving = *self.leaving.borrow();
        match &result {
            Err(err) if !leaving => {
                tracing::warn!(keys = ?hold.keys, error = %err.chain(), "lock not released yet");
                // The session is renewed, so nobody else would unlock it. Until that is done the
                // claim stays: the keys still are the session's, and who took them again by it
                // would hold by the former token, and could lose them to the unlock that came late.
                self.unlock(Arc::clone(hold), None, UNLOCK_AGAIN);
            }
            _ => self.held.retain(|kept| !Arc::ptr_eq(&kept.hold, hold)),
        }
        if let Some(reply) = reply {
            reply.send(result).ok();
        }
    }

    /// Tells everybody what is known now.
    fn told(&mut self, error: Option<Error>) {
        if error.is_some() {
            self.trouble = error;
        } else if !self.lease.in_jeopardy() {
            self.trouble = None;
        }
        self.belief.tell(self.lease.until(), self.trouble.clone());
    }

    fn tried(&mut self, aim: Aim, mut claim: Claim, reply: oneshot::Sender<Taken>, tried: Tried) {
        match tried {
            Tried::Won { sent, index } => {
                self.lease.committed(sent, self.clock.now());
                self.told(None);
                aim.tickets().iter().for_each(|key| self.tickets.used(key));
                let hold = self.hold(&aim, index, claim);
                if hold.check().is_err() || reply.send(Taken::Won(Arc::clone(&hold))).is_err() {
                    // Nobody is to know of it: too late, or nobody waits any more.
                    self.release(hold, None);
                    return;
                }
                self.unwatched.push_back((self.clock.now() + QUIET, hold));
            }
            Tried::Delayed => drop(reply.send(Taken::Delayed(claim))),
            Tried::Moved => drop(reply.send(Taken::Moved(claim))),
            Tried::SessionGone => {
                self.lease.end();
                self.belief.end(Lost::new(LossCause::SessionGone));
                reply.send(Taken::SessionGone).ok();
            }
            Tried::Refused(err) => drop(reply.send(Taken::Refused(err, claim))),
            Tried::Unknown => {
                // Who still waits looks at the keys again, and knows the session's own when it
                // sees them. Once it does not any more, somebody else must.
                let to_self = self.to_self.clone();
                claim.doubt(move |claim| drop(to_self.send(Order::Look { aim, claim })));
                drop(reply.send(Taken::Moved(claim)));
            }
        }
    }

    fn look_later(&mut self, aim: Aim, claim: Claim, looks: u32) {
        let place = usize::try_from(looks).unwrap_or(usize::MAX);
        let Some(pause) = LOOKS.get(place).copied() else {
            return;
        };
        let (client, session) = (self.client.clone(), self.session.clone());
        let rest = self.rest(pause);
        self.chores.start(async move {
            rest.await;
            let index = aim.look(&client, &session).await.ok().flatten();
            Done::Looked(aim, claim, looks + 1, index)
        });
    }

    /// Watches what has been held long enough; when the next one will have been is returned.
    fn start_watches(&mut self, now: Instant) -> Option<Instant> {
        loop {
            let (due, hold) = self.unwatched.front()?;
            if !hold.is_over() && *due > now {
                return Some(*due);
            }
            let (_, hold) = self.unwatched.pop_front()?;
            if hold.is_over() {
                continue;
            }
            for place in 0..aim::watches(&hold) {
                let (client, hold) = (self.client.clone(), Arc::clone(&hold));
                self.chores.start(async move {
                    aim::watch(client, hold, place).await;
                    Done::Watched
                });
            }
        }
    }

    /// Notes that this is the session's.
    fn hold(&mut self, aim: &Aim, index: u64, mut claim: Claim) -> Arc<Hold> {
        // What an earlier try might have taken late is this.
        claim.settle();
        let hold = Arc::new(aim.hold(&self.session, index, &self.belief));
        self.held.push(Kept {
            hold: Arc::clone(&hold),
            leaving: false,
            _claim: claim,
        });
        hold
    }

    fn publish(&self) {
        let state = self.belief.state();
        self.state.send_if_modified(|former| {
            if former.is_like(&state) {
                return false;
            }
            match &state {
                LeaseState::Lost(lost) if lost.cause() == LossCause::Released => {}
                LeaseState::Lost(lost) => {
                    tracing::warn!(session = %self.session, reason = %lost, "lease lost");
                }
                LeaseState::Jeopardy { error, .. } => {
                    tracing::warn!(session = %self.session, error = %error.chain(), "lease in jeopardy");
                }
                LeaseState::Idle | LeaseState::Held => {}
            }
            *former = state;
            true
        });
    }

    /// Unlocks what is held, then ends the session.
    ///
    /// In this order: keys of a session that ends while it holds them are kept from everybody for
    /// the lock-delay. That is what is wanted where the session was lost without a word of its
    /// holder's: others are to wait until that one has certainly stopped.
    async fn goodbye(mut self, mut orders: mpsc::UnboundedReceiver<Order>) -> Result<()> {
        self.belief.end(Lost::new(LossCause::Released));
        self.publish();
        let deadline = Instant::now() + GOODBYE;
        let cause = self.belief.check().err().map(|lost| lost.cause());
        let orderly = cause == Some(LossCause::Released);
        orders.close();
        self.leaving.send_replace(true);
        while let Ok(order) = orders.try_recv() {
            match order {
                Order::Take { aim, mut claim, .. } => {
                    // Whoever waits for it learns that the session is gone.
                    if claim.settle() {
                        self.look_later(aim, claim, 0);
                    }
                }
                // None is put down any more, and all of them go in the end.
                Order::Queue { .. } | Order::Leave(_) => {}
                other @ (Order::Release { .. } | Order::Look { .. }) => self.order(other),
            }
        }
        if orderly {
            self.unlock_all().await;
        } else if self.plan.terms.expiry_only {
            // Without a lock-delay to rely on, holders get the time that it takes to stop.
            self.chores.go_on_for(LAST_TRY).await;
        }
        self.chores.end();
        let gone = cause == Some(LossCause::SessionGone) && self.plan.check.is_none();
        let ended = if gone {
            Ok(())
        } else {
            end(&self.client, &self.session, &self.plan, deadline).await
        };
        // Only now can none come late, because no session is there to take it.
        let tickets = self.tickets.drain();
        let removed = async {
            for key in tickets {
                ticket::remove(&self.client, &key, false, deadline).await;
            }
        };
        // Those that stay are dead, and go with the next hand-over.
        tokio::time::timeout_at(deadline, removed).await.ok();
        ended
    }

    /// Gives up all that is held, and what a try that is on its way may still bring.
    async fn unlock_all(&mut self) {
        let staying = self.held.iter().filter(|kept| !kept.leaving);
        let staying: Vec<_> = staying.map(|kept| Arc::clone(&kept.hold)).collect();
        for hold in staying {
            self.release(hold, None);
        }
        let end = Instant::now() + GOODBYE / 2;
        let last_try = Instant::now() + LAST_TRY;
        loop {
            // Watches and proofs end with the chores; they are not waited for.
            let by = if self.held.is_empty() { last_try } else { end };
            match tokio::time::timeout_at(by, self.chores.next()).await {
                Ok(Some(done)) => self.done_at_last(done),
                Ok(None) | Err(_) => return,
            }
        }
    }

    fn done_at_last(&mut self, done: Done) {
        match done {
            Done::Tried(aim, claim, _, Tried::Won { index, .. })
            | Done::Looked(aim, claim, _, Some(index)) => {
                let hold = self.hold(&aim, index, claim);
                self.release(hold, None);
            }
            Done::Tried(aim, mut claim, _, tried) => {
                // Once the session is gone, what comes late takes nothing.
                if matches!(tried, Tried::Unknown) | claim.settle() {
                    self.look_later(aim, claim, 0);
                }
            }
            done @ Done::Released(..) => self.done(done),
            Done::Proved(..)
            | Done::Looked(..)
            | Done::Queued(..)
            | Done::Left(..)
            | Done::Watched => {}
        }
    }
}

async fn end(client: &Client, session: &SessionId, plan: &Plan, deadline: Instant) -> Result<()> {
    let ended = session::end(client, session, plan, deadline).await;
    match &ended {
        Ok(()) => tracing::debug!(%session, "session ended"),
        Err(err) => tracing::warn!(%session, error = %err.chain(), "session not ended"),
    }
    ended
}

impl Drop for Living {
    fn drop(&mut self) {
        // The task may end with its runtime, at any await.
        self.belief.end(Lost::new(LossCause::Ended));
        self.publish();
    }
}
