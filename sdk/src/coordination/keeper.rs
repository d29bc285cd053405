//! The task behind one session: it proves it, takes keys, gives them up, and ends it.

use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

use super::aim::{self, Aim};
use super::attempt::{LOOKS, Tried};
use super::belief::Belief;
use super::book::Book;
use super::claims::Claim;
use super::clock::Clock;
use super::held::Hold;
use super::pursuit::{Answer, Deed, Order, Taken, TakenOver};
use super::session::{self, Made, Plan};
use super::state::{LeaseState, LossCause, Lost};
use super::ticket::{self, Queued, Ticket};
use crate::client::Client;
use crate::error::Result;
use crate::ident::{Key, SessionId};
use crate::proto::lease::{Lease, Proof};
use crate::task::{Chores, StopSignal};

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
    /// A request, and where its caller waits if there is one.
    Did(Deed, Option<oneshot::Sender<Answer>>),
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
    book: Arc<Book>,
    chores: Chores<Done>,
    /// Whether chores that wait are to wait no longer.
    leaving: watch::Sender<bool>,
}

/// How long a goodbye may take: what it does not reach ends by the session's TTL.
pub(super) const GOODBYE: Duration = Duration::from_secs(10);

/// How long after an unlock that failed the next one is tried.
const UNLOCK_AGAIN: Duration = Duration::from_secs(2);

/// How long a goodbye waits for a try that is on its way.
const LAST_TRY: Duration = Duration::from_secs(1);

impl Keeper {
    pub(super) async fn run(
        self,
        mut stop: StopSignal,
        ready: oneshot::Sender<Result<Arc<Book>>>,
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
        tracing::debug!(session = %id, name = plan.name, "session created");
        let book = Arc::new(Book::new(id, belief, lease, to_self));
        let mut living = Living {
            client,
            plan,
            clock,
            state,
            book: Arc::clone(&book),
            chores: Chores::new(),
            leaving: watch::channel(false).0,
        };
        if ready.send(Ok(book)).is_ok() {
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
            if !self.book.pages().holds(now) {
                // Whoever asks first makes it final; it may be us.
                self.book.belief.check().ok();
            }
            self.publish();
            if self.book.belief.check().is_err() {
                return;
            }
            let dues = self.book.dues(now);
            for (proof, patience) in dues.proofs {
                self.prove(proof, patience);
            }
            for hold in dues.watches {
                self.watch(&hold);
            }
            for taken in dues.slow {
                self.pursue(taken);
            }
            tokio::select! {
                biased;
                _ = stop.recv() => return,
                Some(done) = self.chores.next(), if !self.chores.is_empty() => self.done(done),
                Some(order) = orders.recv() => self.order(order),
                () = alarm.until(dues.next) => {}
            }
        }
    }

    fn prove(&mut self, proof: Proof, patience: Duration) {
        let (client, session) = (self.client.clone(), self.book.session.clone());
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
            Order::Pursue(pursuit) => {
                if let Some(taken) = self.book.take_over(&pursuit) {
                    self.pursue(taken);
                }
            }
            Order::Release(hold) => self.release(hold, Duration::ZERO),
            Order::ReleaseAgain(hold) => self.release(hold, UNLOCK_AGAIN),
            Order::Look { aim, claim } => self.look_later(aim, claim, 0),
            Order::Queue { ticket, reply } => self.queue(ticket, reply),
            Order::Leave(key) => self.leave(key),
            // It is done by looking, and that is done after each order.
            Order::Heed => {}
        }
    }

    fn queue(&mut self, ticket: Ticket, reply: oneshot::Sender<Queued>) {
        let (client, session) = (self.client.clone(), self.book.session.clone());
        self.book.pages().tickets.writing(&ticket.key);
        self.chores.start(async move {
            let queued = ticket::put(&client, &session, &ticket).await;
            Done::Queued(ticket.key, reply, queued)
        });
    }

    fn leave(&mut self, key: Key) {
        let unwanted = self.book.pages().tickets.unwanted(&key);
        if let Some(haunted) = unwanted {
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

    /// Goes on with what a caller has begun.
    fn pursue(&mut self, taken: TakenOver) {
        let TakenOver { request, reply } = taken;
        self.chores
            .start(async move { Done::Did(request.await, Some(reply)) });
    }

    /// Unlocks after so long, or when the session is about to end.
    fn release(&mut self, hold: Arc<Hold>, after: Duration) {
        hold.end(Lost::new(LossCause::Released));
        if !self.book.pages().leaves(&hold) {
            return;
        }
        let (client, rest) = (self.client.clone(), self.rest(after));
        self.chores.start(async move {
            rest.await;
            let result = aim::give_up(&client, &hold, Instant::now() + GOODBYE).await;
            Done::Did(Deed::Unlocked(hold, result), None)
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
        match done {
            Done::Proved(proof, sent, proved) => {
                self.book.proved(proof, sent, proved, rand::random());
            }
            Done::Did(deed, reply) => {
                let answer = self.book.note(deed);
                let unheard = match reply {
                    Some(reply) => reply.send(answer).err(),
                    None => None,
                };
                if let Some(Answer::Taken(Taken::Won(hold))) = unheard {
                    // Nobody waits any more.
                    self.release(hold, Duration::ZERO);
                }
            }
            Done::Looked(aim, claim, _, Some(index)) => {
                // It came late, and nobody waits for it.
                let hold = self.book.found(&aim, index, claim);
                self.release(hold, Duration::ZERO);
            }
            Done::Looked(aim, claim, looks, None) => self.look_later(aim, claim, looks),
            Done::Queued(key, reply, queued) => {
                let remove = self.book.pages().tickets.written(&key, &queued);
                // Who does not wait any more says so by an order of its own.
                reply.send(queued).ok();
                if let Some(haunted) = remove {
                    self.remove(key, haunted);
                }
            }
            Done::Left(key) => self.book.pages().tickets.removed(&key),
            Done::Watched => {}
        }
    }

    fn look_later(&mut self, aim: Aim, claim: Claim, looks: u32) {
        let place = usize::try_from(looks).unwrap_or(usize::MAX);
        let Some(pause) = LOOKS.get(place).copied() else {
            return;
        };
        let (client, session) = (self.client.clone(), self.book.session.clone());
        let rest = self.rest(pause);
        self.chores.start(async move {
            rest.await;
            let index = aim.look(&client, &session).await.ok().flatten();
            Done::Looked(aim, claim, looks + 1, index)
        });
    }

    /// Watches what has been held long enough.
    fn watch(&mut self, hold: &Arc<Hold>) {
        for place in 0..aim::watches(hold) {
            let (client, hold) = (self.client.clone(), Arc::clone(hold));
            self.chores.start(async move {
                aim::watch(client, hold, place).await;
                Done::Watched
            });
        }
    }

    fn publish(&self) {
        let state = self.book.belief.state();
        self.state.send_if_modified(|former| {
            if former.is_like(&state) {
                return false;
            }
            match &state {
                LeaseState::Lost(lost) if lost.cause() == LossCause::Released => {}
                LeaseState::Lost(lost) => {
                    tracing::warn!(session = %self.book.session, reason = %lost, "lease lost");
                }
                LeaseState::Jeopardy { error, .. } => {
                    tracing::warn!(session = %self.book.session, error = %error.chain(), "lease in jeopardy");
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
        self.book.belief.end(Lost::new(LossCause::Released));
        self.publish();
        let deadline = Instant::now() + GOODBYE;
        let cause = self.book.belief.check().err().map(|lost| lost.cause());
        let orderly = cause == Some(LossCause::Released);
        orders.close();
        self.leaving.send_replace(true);
        // What callers have begun is brought to its end here; they begin nothing any more.
        for taken in self.book.close() {
            self.pursue(taken);
        }
        while let Ok(order) = orders.try_recv() {
            match order {
                // None is put down any more, and all of them go in the end.
                Order::Queue { .. } | Order::Leave(_) => {}
                other => self.order(other),
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
            end(&self.client, &self.book.session, &self.plan, deadline).await
        };
        // Only now can none come late, because no session is there to take it.
        let tickets = self.book.pages().tickets.drain();
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
        let staying = self.book.pages().staying();
        for hold in staying {
            self.release(hold, Duration::ZERO);
        }
        let end = Instant::now() + GOODBYE / 2;
        let last_try = Instant::now() + LAST_TRY;
        loop {
            // Watches and proofs end with the chores; they are not waited for.
            let empty = self.book.pages().holds_nothing();
            let by = if empty { last_try } else { end };
            match tokio::time::timeout_at(by, self.chores.next()).await {
                Ok(Some(done)) => self.done_at_last(done),
                Ok(None) | Err(_) => return,
            }
        }
    }

    fn done_at_last(&mut self, done: Done) {
        match done {
            Done::Did(Deed::Tried(aim, claim, Tried::Won { index, .. }), _)
            | Done::Looked(aim, claim, _, Some(index)) => {
                let hold = self.book.found(&aim, index, claim);
                self.release(hold, Duration::ZERO);
            }
            Done::Did(Deed::Tried(aim, mut claim, tried), _) => {
                // Once the session is gone, what comes late takes nothing.
                if matches!(tried, Tried::Unknown) | claim.settle() {
                    self.look_later(aim, claim, 0);
                }
            }
            done @ Done::Did(Deed::Unlocked(..), _) => self.done(done),
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
        self.book.belief.end(Lost::new(LossCause::Ended));
        self.publish();
        drop(self.book.close());
    }
}
