//! Whether a session is believed in: one value, asked from anywhere without I/O.

use std::pin::pin;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::time::Instant;

use super::clock::Clock;
use super::state::{LeaseState, LossCause, Lost};
use crate::error::Error;

/// Belief in one session, shared by its keeper and all that is held by it.
///
/// It ends by the clock alone: whoever asks after the deadline is told so and makes it final, even
/// if the keeper has not run. Once ended, nothing brings it back.
#[derive(Debug)]
pub(super) struct Belief {
    clock: Clock,
    /// Its timers serve those who wait outside of any.
    runtime: Handle,
    phase: watch::Sender<Phase>,
}

#[derive(Clone, Debug)]
enum Phase {
    Held {
        until: Instant,
        /// What the last attempt to prove it failed with.
        trouble: Option<Error>,
    },
    Lost(Lost),
}

impl Phase {
    fn ended_by(&self, now: Instant) -> bool {
        match self {
            Self::Held { until, .. } => *until <= now,
            Self::Lost(_) => true,
        }
    }
}

impl Belief {
    pub(super) fn new(clock: Clock, until: Instant, runtime: Handle) -> Self {
        let (phase, _) = watch::channel(Phase::Held {
            until,
            trouble: None,
        });
        Self {
            clock,
            runtime,
            phase,
        }
    }

    pub(super) fn clock(&self) -> Clock {
        self.clock
    }

    /// Whether whoever asks is polled by the runtime that its keeper runs on.
    pub(super) fn is_at_home(&self) -> bool {
        Handle::try_current().is_ok_and(|current| current.id() == self.runtime.id())
    }

    /// How much longer the session is believed in, or why it no longer is.
    pub(super) fn check(&self) -> Result<Duration, Lost> {
        let now = self.clock.now();
        if let Phase::Held { until, .. } = &*self.phase.borrow()
            && *until > now
        {
            return Ok(*until - now);
        }
        self.phase.send_if_modified(|phase| expire(phase, now));
        match &*self.phase.borrow() {
            Phase::Lost(lost) => Err(lost.clone()),
            // Nobody turns the clock back; if somebody did, it would be no reason to believe.
            Phase::Held { trouble, .. } => Err(Lost::because(LossCause::Unproven, trouble.clone())),
        }
    }

    /// Ends the belief, unless it has ended already.
    pub(super) fn end(&self, lost: Lost) {
        self.phase.send_if_modified(|phase| match phase {
            Phase::Held { .. } => {
                *phase = Phase::Lost(lost);
                true
            }
            Phase::Lost(_) => false,
        });
    }

    /// What the keeper knows now: until when, and what the last attempt failed with.
    pub(super) fn tell(&self, until: Instant, trouble: Option<Error>) {
        let now = self.clock.now();
        self.phase.send_if_modified(|phase| {
            if phase.ended_by(now) {
                return expire(phase, now);
            }
            // Who waits for the end looks at the clock when the end was to be: a later one is seen
            // then, and nobody need be woken for it, with each renewal and each lock.
            let sooner = matches!(phase, Phase::Held { until: known, .. } if until < *known);
            *phase = Phase::Held { until, trouble };
            sooner
        });
    }

    /// Resolves when the session is no longer believed in.
    ///
    /// It does not depend on the keeper: the clock is enough.
    pub(super) async fn lost(&self) -> Lost {
        let mut ended = pin!(self.ended());
        std::future::poll_fn(|cx| {
            let outside = Handle::try_current().is_err();
            let _entered = outside.then(|| self.runtime.enter());
            ended.as_mut().poll(cx)
        })
        .await
    }

    async fn ended(&self) -> Lost {
        let mut phases = self.phase.subscribe();
        loop {
            let until = match &*phases.borrow_and_update() {
                Phase::Lost(lost) => return lost.clone(),
                Phase::Held { until, .. } => *until,
            };
            tokio::select! {
                // First: where the runtime has ended, its timers cannot be asked any more.
                biased;
                _ = phases.changed() => {}
                () = self.clock.sleep_until(until) => {
                    if let Err(lost) = self.check() {
                        return lost;
                    }
                }
            }
        }
    }

    /// For those who look at the lease from outside.
    pub(super) fn state(&self) -> LeaseState {
        let now = self.clock.now();
        match &*self.phase.borrow() {
            Phase::Lost(lost) => LeaseState::Lost(lost.clone()),
            Phase::Held { until, trouble } if *until <= now => {
                LeaseState::Lost(Lost::because(LossCause::Unproven, trouble.clone()))
            }
            Phase::Held {
                until,
                trouble: Some(error),
            } => LeaseState::Jeopardy {
                deadline: until.into_std(),
                error: error.clone(),
            },
            Phase::Held { trouble: None, .. } => LeaseState::Held,
        }
    }
}

/// Makes final what the clock has ended.
fn expire(phase: &mut Phase, now: Instant) -> bool {
    match phase {
        Phase::Held { until, trouble } if *until <= now => {
            *phase = Phase::Lost(Lost::because(LossCause::Unproven, trouble.take()));
            true
        }
        Phase::Held { .. } | Phase::Lost(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::task::{Context, Wake};

    use tokio::time::sleep;

    use super::*;

    const TEN: Duration = Duration::from_secs(10);

    fn belief() -> (Arc<Belief>, Instant) {
        let clock = Clock::start();
        let start = clock.now();
        let belief = Belief::new(clock, start + TEN, Handle::current());
        (Arc::new(belief), start)
    }

    #[tokio::test(start_paused = true)]
    async fn it_ends_by_the_clock_without_anybody_telling() {
        let (belief, start) = belief();
        sleep(Duration::from_secs(4)).await;
        assert_eq!(belief.check().unwrap(), Duration::from_secs(6));
        assert_eq!(belief.lost().await.cause(), LossCause::Unproven);
        assert_eq!(Instant::now(), start + TEN);
        assert!(belief.check().is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn a_proof_before_the_end_prolongs_it_and_one_after_does_not() {
        let (belief, start) = belief();
        sleep(Duration::from_secs(9)).await;
        belief.tell(start + 2 * TEN, None);
        sleep(TEN).await;
        assert!(belief.check().is_ok());
        sleep(Duration::from_secs(1)).await;
        belief.tell(start + 9 * TEN, None);
        assert_eq!(belief.check().unwrap_err().cause(), LossCause::Unproven);
    }

    #[derive(Default)]
    struct Woken(AtomicBool);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.store(true, Ordering::SeqCst);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_later_end_wakes_nobody_and_a_sooner_one_does() {
        let (belief, start) = belief();
        let mut lost = std::pin::pin!(belief.lost());
        let woken = Arc::new(Woken::default());
        let waker = Arc::clone(&woken).into();
        let mut cx = Context::from_waker(&waker);
        assert!(lost.as_mut().poll(&mut cx).is_pending());
        belief.tell(start + 2 * TEN, None);
        assert!(!woken.0.load(Ordering::SeqCst));
        belief.tell(start + TEN, None);
        assert!(woken.0.load(Ordering::SeqCst));
        lost.await;
        assert_eq!(Instant::now(), start + TEN);
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_end_is_the_one_that_is_told() {
        let (belief, start) = belief();
        belief.end(Lost::new(LossCause::SessionGone));
        belief.end(Lost::new(LossCause::Released));
        belief.tell(start + 9 * TEN, None);
        assert_eq!(belief.lost().await.cause(), LossCause::SessionGone);
        assert!(!belief.state().is_held());
    }

    #[tokio::test(start_paused = true)]
    async fn trouble_is_told_with_its_deadline_and_becomes_the_reason() {
        let (belief, start) = belief();
        let error = Error::new(crate::error::ErrorKind::Timeout);
        belief.tell(start + TEN, Some(error));
        match belief.state() {
            LeaseState::Jeopardy { deadline, .. } => {
                assert_eq!(deadline, (start + TEN).into_std());
            }
            other => panic!("{other:?}"),
        }
        let lost = belief.lost().await;
        assert!(lost.error().is_some());
    }
}
