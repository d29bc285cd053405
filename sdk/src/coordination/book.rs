//! What is known of one session: its proofs, what is held by it, and what is on its way.
//!
//! The keeper and its callers have it in common, so that whoever hears an answer notes it, by the
//! same rules, and wakes nobody for it. The lock around it is held for steps that take no time.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::aim::Aim;
use super::attempt::{QUIET, Released, Tried};
use super::belief::Belief;
use super::claims::Claim;
use super::held::Hold;
use super::pursuit::{Answer, Deed, Order, Polled, Pursuit, Taken, TakenOver};
use super::state::{LossCause, Lost};
use super::ticket::Tickets;
use crate::error::{Error, Result};
use crate::ident::SessionId;
use crate::proto::lease::{Lease, Proof};

/// One session's book.
pub(super) struct Book {
    pub(super) session: SessionId,
    pub(super) belief: Arc<Belief>,
    orders: mpsc::UnboundedSender<Order>,
    pages: Mutex<Pages>,
}

pub(super) struct Pages {
    /// Whether anything may still be begun by callers.
    open: bool,
    lease: Lease,
    trouble: Option<Error>,
    held: Vec<Kept>,
    pub(super) tickets: Tickets,
    /// What callers poll themselves.
    pursuits: Vec<Arc<Pursuit>>,
}

/// Something held, until its unlock is done.
struct Kept {
    hold: Arc<Hold>,
    /// Whether the unlock is on its way.
    leaving: bool,
    /// When it is to be watched, if it is not yet.
    watch: Option<Instant>,
    /// Goes back when the key is free for others of this process.
    _claim: Claim,
}

/// What a keeper has to do when it looks.
pub(super) struct Dues {
    pub(super) proofs: Vec<(Proof, Duration)>,
    /// What is to be watched.
    pub(super) watches: Vec<Arc<Hold>>,
    /// What its callers may have forgotten.
    pub(super) slow: Vec<TakenOver>,
    /// When it is to look again. Never later than anything that a caller may have noted by then is
    /// due.
    pub(super) next: Instant,
}

impl Book {
    pub(super) fn new(
        session: SessionId,
        belief: Arc<Belief>,
        lease: Lease,
        orders: mpsc::UnboundedSender<Order>,
    ) -> Self {
        Self {
            session,
            belief,
            orders,
            pages: Mutex::new(Pages {
                open: true,
                lease,
                trouble: None,
                held: Vec::new(),
                tickets: Tickets::default(),
                pursuits: Vec::new(),
            }),
        }
    }

    pub(super) fn pages(&self) -> MutexGuard<'_, Pages> {
        self.pages.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks the keeper for something; `false` if it has ended.
    pub(super) fn order(&self, order: Order) -> bool {
        self.orders.send(order).is_ok()
    }

    /// Polls a try until it is done, or the keeper has done it.
    ///
    /// Cancel safe: the keeper goes on with it, and gives up what it takes.
    pub(super) async fn take(&self, request: impl Future<Output = Deed> + Send + 'static) -> Taken {
        let pursuit = Pursuit::new(request);
        if !self.pages().begin(&pursuit) {
            return Taken::SessionGone;
        }
        match self.pursue(pursuit).await {
            Some(Answer::Taken(taken)) => taken,
            _ => Taken::SessionGone,
        }
    }

    /// Polls an unlock until it is done, or the keeper has done it; `None` if the session has been
    /// ended meanwhile.
    ///
    /// Cancel safe: the keeper goes on with it.
    pub(super) async fn release(
        &self,
        hold: &Arc<Hold>,
        request: impl Future<Output = Deed> + Send + 'static,
    ) -> Option<Result<Released>> {
        let pursuit = Pursuit::new(request);
        {
            let mut pages = self.pages();
            if !pages.open || !pages.leaves(hold) {
                return None;
            }
            pages.begin(&pursuit);
        }
        match self.pursue(pursuit).await {
            Some(Answer::Released(released)) => Some(released),
            _ => None,
        }
    }

    async fn pursue(&self, pursuit: Arc<Pursuit>) -> Option<Answer> {
        let mut pursuing = Pursuing {
            book: self,
            pursuit,
            answer: None,
            asked: false,
            done: false,
        };
        poll_fn(|cx| pursuing.poll_answer(cx)).await
    }

    /// Takes a request over from its caller, unless it is done.
    pub(super) fn take_over(&self, pursuit: &Arc<Pursuit>) -> Option<TakenOver> {
        let taken = pursuit.take_over();
        self.pages().forget(pursuit);
        taken
    }

    /// Lets nothing be begun any more, and takes over all that was.
    ///
    /// Afterwards whatever a caller has heard is noted: to take a request over is to wait until it is
    /// not being polled.
    pub(super) fn close(&self) -> Vec<TakenOver> {
        let pursuits = {
            let mut pages = self.pages();
            pages.open = false;
            std::mem::take(&mut pages.pursuits)
        };
        let taken = pursuits.iter().filter_map(|pursuit| pursuit.take_over());
        taken.collect()
    }

    /// What is due by now.
    pub(super) fn dues(&self, now: Instant) -> Dues {
        let (mut dues, slow) = {
            let mut pages = self.pages();
            (pages.dues(now), pages.pursuits.clone())
        };
        // Not under the lock: who polls one notes what it comes to.
        for pursuit in slow {
            if let Some(taken) = pursuit.take_over_if_slow(now) {
                self.pages().forget(&pursuit);
                dues.slow.push(taken);
            }
        }
        dues
    }

    /// Notes whether a proof was good.
    pub(super) fn proved(&self, proof: Proof, sent: Instant, proved: Result<bool>, draw: f64) {
        let now = self.belief.clock().now();
        let mut pages = self.pages();
        match proved {
            Ok(true) => {
                pages.lease.proven(proof, sent, now, draw);
                pages.tell(&self.belief, None);
            }
            Ok(false) => {
                pages.lease.end();
                self.belief.end(Lost::new(LossCause::SessionGone));
            }
            Err(err) => {
                pages.lease.failed(proof, now, draw);
                pages.tell(&self.belief, Some(err));
            }
        }
    }

    /// Notes what a request has come to, and says what its caller is to know.
    pub(super) fn note(&self, deed: Deed) -> Answer {
        match deed {
            Deed::Tried(aim, claim, tried) => Answer::Taken(self.tried(aim, claim, tried)),
            Deed::Unlocked(hold, result) => {
                self.unlocked(&hold, &result);
                Answer::Released(result)
            }
        }
    }

    fn tried(&self, aim: Aim, mut claim: Claim, tried: Tried) -> Taken {
        match tried {
            Tried::Won { sent, index } => {
                let now = self.belief.clock().now();
                let mut pages = self.pages();
                pages.lease.committed(sent, now);
                pages.tell(&self.belief, None);
                aim.tickets().iter().for_each(|key| pages.tickets.used(key));
                let hold = self.hold(&mut pages, &aim, index, claim, Some(now + QUIET));
                let troubled = pages.trouble.is_some();
                drop(pages);
                if troubled {
                    // Others are to know until when it is believed in now.
                    self.order(Order::Heed);
                }
                match hold.check() {
                    Ok(_) => Taken::Won(hold),
                    // Too late. It goes with all that is held.
                    Err(_) => Taken::SessionGone,
                }
            }
            Tried::Delayed => Taken::Delayed(claim),
            Tried::Moved => Taken::Moved(claim),
            Tried::SessionGone => {
                self.pages().lease.end();
                self.belief.end(Lost::new(LossCause::SessionGone));
                self.order(Order::Heed);
                Taken::SessionGone
            }
            Tried::Refused(err) => Taken::Refused(err, claim),
            Tried::Unknown => {
                // Who still waits looks at the keys again, and knows the session's own when it
                // sees them. Once it does not any more, somebody else must.
                let orders = self.orders.clone();
                claim.doubt(move |claim| drop(orders.send(Order::Look { aim, claim })));
                Taken::Moved(claim)
            }
        }
    }

    fn unlocked(&self, hold: &Arc<Hold>, result: &Result<Released>) {
        let mut pages = self.pages();
        match result {
            Err(err) if pages.open => {
                // The session is renewed, so nobody else would unlock it. Until that is done the
                // claim stays: the keys still are the session's, and who took them again by it
                // would hold by the former token, and could lose them to the unlock that came late.
                pages.stays(hold);
                drop(pages);
                tracing::warn!(keys = ?hold.keys, error = %err.chain(), "lock not released yet");
                self.order(Order::ReleaseAgain(Arc::clone(hold)));
            }
            _ => {
                let gone = pages.gone(hold);
                drop(pages);
                // The claim goes back: others may go on.
                drop(gone);
            }
        }
    }

    /// Notes that a try took this although nobody waited for it.
    pub(super) fn found(&self, aim: &Aim, index: u64, claim: Claim) -> Arc<Hold> {
        self.hold(&mut self.pages(), aim, index, claim, None)
    }

    /// Notes that this is the session's.
    fn hold(
        &self,
        pages: &mut Pages,
        aim: &Aim,
        index: u64,
        mut claim: Claim,
        watch: Option<Instant>,
    ) -> Arc<Hold> {
        // What an earlier try might have taken late is this.
        claim.settle();
        let hold = Arc::new(aim.hold(&self.session, index, &self.belief));
        pages.held.push(Kept {
            hold: Arc::clone(&hold),
            leaving: false,
            watch,
            _claim: claim,
        });
        hold
    }
}

impl Pages {
    /// Notes that a caller polls this; `false` if nothing is begun any more.
    fn begin(&mut self, pursuit: &Arc<Pursuit>) -> bool {
        if self.open {
            self.pursuits.push(Arc::clone(pursuit));
        }
        self.open
    }

    fn forget(&mut self, pursuit: &Arc<Pursuit>) {
        let place = self.pursuits.iter();
        let place = { place }.position(|other| Arc::ptr_eq(other, pursuit));
        if let Some(place) = place {
            self.pursuits.swap_remove(place);
        }
    }

    fn dues(&mut self, now: Instant) -> Dues {
        let mut dues = Dues {
            proofs: Vec::new(),
            watches: Vec::new(),
            slow: Vec::new(),
            next: self.lease.until().min(now + QUIET),
        };
        while let Some(due) = self.lease.start_due(now) {
            dues.proofs.push(due);
        }
        let mut next = |at: Instant| dues.next = dues.next.min(at);
        self.lease.next_due().map(&mut next);
        for kept in &mut self.held {
            match kept.watch {
                Some(_) if kept.hold.is_over() => kept.watch = None,
                Some(at) if at > now => next(at),
                Some(_) => {
                    kept.watch = None;
                    dues.watches.push(Arc::clone(&kept.hold));
                }
                None => {}
            }
        }
        dues
    }

    /// Whether the session is believed in.
    pub(super) fn holds(&mut self, now: Instant) -> bool {
        self.lease.holds(now)
    }

    /// Tells everybody what is known now.
    fn tell(&mut self, belief: &Belief, error: Option<Error>) {
        if error.is_some() {
            self.trouble = error;
        } else if !self.lease.in_jeopardy() {
            self.trouble = None;
        }
        belief.tell(self.lease.until(), self.trouble.clone());
    }

    /// Notes that an unlock is on its way; `false` if one is already, or it is done.
    pub(super) fn leaves(&mut self, hold: &Arc<Hold>) -> bool {
        match self.kept(hold) {
            Some(kept) => !std::mem::replace(&mut kept.leaving, true),
            None => false,
        }
    }

    /// Notes that an unlock has failed.
    fn stays(&mut self, hold: &Arc<Hold>) {
        if let Some(kept) = self.kept(hold) {
            kept.leaving = false;
        }
    }

    /// Notes that it is unlocked.
    fn gone(&mut self, hold: &Arc<Hold>) -> Option<Kept> {
        let place = self.held.iter();
        let place = { place }.position(|kept| Arc::ptr_eq(&kept.hold, hold))?;
        Some(self.held.swap_remove(place))
    }

    fn kept(&mut self, hold: &Arc<Hold>) -> Option<&mut Kept> {
        let mut held = self.held.iter_mut();
        held.find(|kept| Arc::ptr_eq(&kept.hold, hold))
    }

    /// All whose unlock is not on its way.
    pub(super) fn staying(&self) -> Vec<Arc<Hold>> {
        let staying = self.held.iter().filter(|kept| !kept.leaving);
        staying.map(|kept| Arc::clone(&kept.hold)).collect()
    }

    pub(super) fn holds_nothing(&self) -> bool {
        self.held.is_empty()
    }
}

/// A caller that polls its request. Dropped before it is done, it leaves it to the keeper.
struct Pursuing<'a> {
    book: &'a Book,
    pursuit: Arc<Pursuit>,
    /// Where the keeper tells, once it has taken it over.
    answer: Option<oneshot::Receiver<Answer>>,
    /// Whether the keeper was asked to.
    asked: bool,
    /// Whether it came to its end here.
    done: bool,
}

impl Pursuing<'_> {
    /// What it comes to; `None` if the keeper has ended.
    fn poll_answer(&mut self, cx: &mut Context<'_>) -> Poll<Option<Answer>> {
        if self.answer.is_none() {
            let polled = if self.book.belief.is_at_home() {
                self.pursuit.poll(cx, |deed| {
                    let answer = self.book.note(deed);
                    // Not before: a goodbye waits for what it finds here.
                    self.book.pages().forget(&self.pursuit);
                    self.done = true;
                    answer
                })
            } else {
                // Its timers would be those of a runtime that may end before the keeper's.
                if !std::mem::replace(&mut self.asked, true) {
                    let pursuit = Arc::clone(&self.pursuit);
                    self.book.order(Order::Pursue(pursuit));
                }
                self.pursuit.wait(cx)
            };
            match polled {
                Polled::Done(answer) => return Poll::Ready(Some(answer)),
                Polled::Pending => return Poll::Pending,
                Polled::Elsewhere(None) => return Poll::Ready(None),
                Polled::Elsewhere(answer) => self.answer = answer,
            }
        }
        match &mut self.answer {
            Some(answer) => Pin::new(answer).poll(cx).map(std::result::Result::ok),
            None => Poll::Ready(None),
        }
    }
}

impl Drop for Pursuing<'_> {
    fn drop(&mut self) {
        if self.done {
            return;
        }
        let (left, answer) = self.pursuit.abandon();
        if left {
            // If it has begun to say goodbye, it takes over all that there is.
            self.book.order(Order::Pursue(Arc::clone(&self.pursuit)));
        }
        // From now on the keeper knows.
        if let Some(mut answer) = self.answer.take().or(answer) {
            answer.close();
            if let Ok(Answer::Taken(Taken::Won(hold))) = answer.try_recv() {
                self.book.order(Order::Release(hold));
            }
        }
    }
}
