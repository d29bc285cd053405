//! What is asked of a keeper, and the requests that its callers poll themselves.
//!
//! A try and an unlock are polled by whoever waits for them: to have the keeper do it would wake its
//! task and that of the caller for each of them, on other threads. What a caller no longer polls
//! must be done all the same, so the keeper can take over each of them, as far as it has come.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::task::{Context, Poll, Waker};

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::aim::Aim;
use super::attempt::{QUIET, Released, Tried};
use super::claims::Claim;
use super::held::Hold;
use super::ticket::{Queued, Ticket};
use crate::error::{Error, Result};
use crate::ident::Key;

/// What is asked of a keeper.
pub(super) enum Order {
    /// Go on with what its caller does not poll any more, or cannot.
    Pursue(Arc<Pursuit>),
    /// Give up what is held; it has been ended before.
    Release(Arc<Hold>),
    /// Give it up after a while: it has been tried, and failed.
    ReleaseAgain(Arc<Hold>),
    /// Find out what became of a try that nobody pursues any more, and give up what it took.
    Look { aim: Aim, claim: Claim },
    /// Stand in line.
    Queue {
        ticket: Ticket,
        reply: oneshot::Sender<Queued>,
    },
    /// Leave the line: the ticket of this key is not wanted any more.
    Leave(Key),
    /// A caller has learned what is to be told to others.
    Heed,
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

/// What a request has come to.
pub(super) enum Deed {
    Tried(Aim, Claim, Tried),
    Unlocked(Arc<Hold>, Result<Released>),
}

/// What its caller is told of it.
pub(super) enum Answer {
    Taken(Taken),
    Released(Result<Released>),
}

type Request = Pin<Box<dyn Future<Output = Deed> + Send>>;

/// A request that is on its way.
pub(super) struct Pursuit {
    since: Instant,
    hands: Mutex<Hands>,
}

/// In whose hands it is.
enum Hands {
    Callers {
        request: Request,
        /// Woken when the keeper takes it over.
        waker: Option<Waker>,
        /// Whether the caller still waits for it.
        awaited: bool,
    },
    /// Where the caller is told; it takes that with it.
    Keepers(Option<oneshot::Receiver<Answer>>),
    /// It has come to its end, and is noted.
    Nobodys,
}

/// A request that the keeper has taken over, and where its caller is told, if it still waits.
pub(super) struct TakenOver {
    pub(super) request: Request,
    pub(super) reply: oneshot::Sender<Answer>,
}

/// What one poll by the caller came to.
pub(super) enum Polled {
    Done(Answer),
    Pending,
    /// The keeper has taken it over, and tells here.
    Elsewhere(Option<oneshot::Receiver<Answer>>),
}

impl Pursuit {
    pub(super) fn new(request: impl Future<Output = Deed> + Send + 'static) -> Arc<Self> {
        Arc::new(Self {
            since: Instant::now(),
            hands: Mutex::new(Hands::Callers {
                request: Box::pin(request),
                waker: None,
                awaited: true,
            }),
        })
    }

    /// Polls it for the caller. What it comes to is noted before anybody can take it over.
    pub(super) fn poll(&self, cx: &mut Context<'_>, note: impl FnOnce(Deed) -> Answer) -> Polled {
        let mut hands = self.hands();
        // If the poll panics nobody has it any more: it cannot be polled again.
        match std::mem::replace(&mut *hands, Hands::Nobodys) {
            Hands::Callers {
                mut request, waker, ..
            } => match request.as_mut().poll(cx) {
                Poll::Ready(deed) => Polled::Done(note(deed)),
                Poll::Pending => {
                    let known = waker.filter(|waker| waker.will_wake(cx.waker()));
                    *hands = Hands::Callers {
                        request,
                        waker: Some(known.unwrap_or_else(|| cx.waker().clone())),
                        awaited: true,
                    };
                    Polled::Pending
                }
            },
            Hands::Keepers(answer) => {
                *hands = Hands::Keepers(None);
                Polled::Elsewhere(answer)
            }
            Hands::Nobodys => Polled::Elsewhere(None),
        }
    }

    /// Waits for the keeper to take it over, where the caller must not poll it.
    pub(super) fn wait(&self, cx: &Context<'_>) -> Polled {
        let mut hands = self.hands();
        match &mut *hands {
            Hands::Callers { waker, .. } => {
                *waker = Some(cx.waker().clone());
                Polled::Pending
            }
            Hands::Keepers(answer) => Polled::Elsewhere(answer.take()),
            Hands::Nobodys => Polled::Elsewhere(None),
        }
    }

    /// The caller waits for it no longer. Tells whether it is to be taken over; if it has been, where
    /// the caller would have been told.
    pub(super) fn abandon(&self) -> (bool, Option<oneshot::Receiver<Answer>>) {
        match &mut *self.hands() {
            Hands::Callers { waker, awaited, .. } => {
                (*waker, *awaited) = (None, false);
                (true, None)
            }
            Hands::Keepers(answer) => (false, answer.take()),
            Hands::Nobodys => (false, None),
        }
    }

    /// Takes it out of its caller's hands, if it is there.
    pub(super) fn take_over(&self) -> Option<TakenOver> {
        Self::taken(self.hands())
    }

    /// Takes it over if it takes long: it may be that its caller does not poll it, and it must be
    /// done nevertheless.
    pub(super) fn take_over_if_slow(&self, now: Instant) -> Option<TakenOver> {
        if self.since + QUIET > now {
            return None;
        }
        match self.hands.try_lock() {
            Ok(hands) => Self::taken(hands),
            Err(TryLockError::Poisoned(poisoned)) => Self::taken(poisoned.into_inner()),
            // It is being polled at this moment.
            Err(TryLockError::WouldBlock) => None,
        }
    }

    fn taken(mut hands: MutexGuard<'_, Hands>) -> Option<TakenOver> {
        if !matches!(*hands, Hands::Callers { .. }) {
            return None;
        }
        let (reply, answer) = oneshot::channel();
        let Hands::Callers {
            request,
            waker,
            awaited,
        } = std::mem::replace(&mut *hands, Hands::Keepers(Some(answer)))
        else {
            return None;
        };
        if !awaited {
            *hands = Hands::Keepers(None);
        }
        drop(hands);
        if let Some(waker) = waker {
            waker.wake();
        }
        Some(TakenOver { request, reply })
    }

    fn hands(&self) -> MutexGuard<'_, Hands> {
        self.hands.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::task::Wake;

    use super::super::claims::Claims;
    use super::*;

    #[derive(Default)]
    struct Woken(AtomicBool);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.store(true, Ordering::SeqCst);
        }
    }

    /// A request that is answered when it is told to be.
    fn request() -> (Arc<Pursuit>, oneshot::Sender<()>) {
        let (answer, answered) = oneshot::channel();
        let key = Key::new("job").unwrap();
        let claim = Arc::new(Claims::new()).try_claim(&[key]).unwrap();
        let aim = Aim::Keys {
            wants: Vec::new(),
            tickets: Vec::new(),
        };
        let request = async move {
            answered.await.ok();
            Deed::Tried(aim, claim, Tried::Moved)
        };
        (Pursuit::new(request), answer)
    }

    fn note(deed: Deed) -> Answer {
        match deed {
            Deed::Tried(_, claim, _) => Answer::Taken(Taken::Moved(claim)),
            Deed::Unlocked(_, result) => Answer::Released(result),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_its_caller_polls_is_done_by_it_and_not_taken_over_then() {
        let (pursuit, answer) = request();
        let mut cx = Context::from_waker(Waker::noop());
        assert!(matches!(pursuit.poll(&mut cx, note), Polled::Pending));
        answer.send(()).unwrap();
        let polled = pursuit.poll(&mut cx, note);
        assert!(matches!(
            polled,
            Polled::Done(Answer::Taken(Taken::Moved(_)))
        ));
        assert!(pursuit.take_over().is_none());
        assert!(!pursuit.abandon().0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_caller_is_told_of_what_was_taken_over_from_it() {
        let (pursuit, answer) = request();
        let woken = Arc::new(Woken::default());
        let waker = Arc::clone(&woken).into();
        let mut cx = Context::from_waker(&waker);
        assert!(matches!(pursuit.poll(&mut cx, note), Polled::Pending));
        let taken = pursuit.take_over().unwrap();
        assert!(woken.0.load(Ordering::SeqCst));
        assert!(pursuit.take_over().is_none());
        let Polled::Elsewhere(Some(told)) = pursuit.poll(&mut cx, note) else {
            panic!("it is the keeper's now");
        };
        answer.send(()).unwrap();
        assert!(taken.reply.send(note(taken.request.await)).is_ok());
        assert!(matches!(told.await, Ok(Answer::Taken(Taken::Moved(_)))));
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_abandoned_is_taken_over_and_nobody_is_told() {
        let (pursuit, _answer) = request();
        let mut cx = Context::from_waker(Waker::noop());
        assert!(matches!(pursuit.poll(&mut cx, note), Polled::Pending));
        let (left, told) = pursuit.abandon();
        assert!(left && told.is_none());
        assert!(pursuit.take_over().unwrap().reply.is_closed());
    }

    #[tokio::test(start_paused = true)]
    async fn what_takes_long_is_taken_over_and_what_does_not_is_left_alone() {
        let (pursuit, _answer) = request();
        let start = Instant::now();
        assert!(pursuit.take_over_if_slow(start + QUIET / 2).is_none());
        let polled = pursuit.hands();
        assert!(pursuit.take_over_if_slow(start + QUIET).is_none());
        drop(polled);
        assert!(pursuit.take_over_if_slow(start + QUIET).is_some());
    }
}
