//! The clock that leases end by.

use std::pin::Pin;
use std::time::Duration;

#[cfg(target_os = "linux")]
use rustix::time::{ClockId, clock_gettime};
use tokio::time::{Instant, Sleep};

/// Tokio's clock, put forward by the time that the machine was suspended.
///
/// A laptop that is closed or a virtual machine that is frozen stops the clock that timers run on,
/// but not the one that the servers count a session's TTL by. Linux tells how long that was;
/// elsewhere this is tokio's clock alone.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clock {
    #[cfg(target_os = "linux")]
    /// Both clocks of the system, without suspensions and with them.
    base: (Duration, Duration),
}

/// The longest sleep before the clock is looked at again: a suspension does not end a timer.
const LOOK: Duration = Duration::from_millis(500);

/// Below this, a difference between the two clocks is how long it took to read them.
#[cfg(target_os = "linux")]
const NOISE: Duration = Duration::from_millis(10);

#[cfg(target_os = "linux")]
impl Clock {
    pub(super) fn start() -> Self {
        Self {
            base: (read(ClockId::Monotonic), read(ClockId::Boottime)),
        }
    }

    /// How long the machine was suspended since this clock was started.
    fn suspended(&self) -> Duration {
        let (awake, all) = self.base;
        let all = read(ClockId::Boottime).saturating_sub(all);
        let awake = read(ClockId::Monotonic).saturating_sub(awake);
        let suspended = all.saturating_sub(awake);
        if suspended < NOISE {
            Duration::ZERO
        } else {
            suspended
        }
    }
}

#[cfg(not(target_os = "linux"))]
impl Clock {
    pub(super) fn start() -> Self {
        Self {}
    }

    fn suspended(&self) -> Duration {
        Duration::ZERO
    }
}

impl Clock {
    pub(super) fn now(&self) -> Instant {
        Instant::now() + self.suspended()
    }

    /// A timer by this clock.
    pub(super) fn alarm(&self) -> Alarm {
        Alarm {
            clock: *self,
            sleep: Box::pin(tokio::time::sleep(LOOK)),
        }
    }

    /// Waits until this clock shows `at`.
    ///
    /// Cancel safe.
    pub(super) async fn sleep_until(&self, at: Instant) {
        loop {
            let left = at.saturating_duration_since(self.now());
            if left.is_zero() {
                return;
            }
            tokio::time::sleep(left.min(LOOK)).await;
        }
    }
}

/// A timer for who waits again and again, each time until another moment.
///
/// To set a timer may wake the thread that watches over all of them. This one is mostly left as it
/// stands: where it goes off too early, it is set then.
#[derive(Debug)]
pub(super) struct Alarm {
    clock: Clock,
    sleep: Pin<Box<Sleep>>,
}

impl Alarm {
    /// Waits until the clock shows `at`.
    ///
    /// Cancel safe.
    pub(super) async fn until(&mut self, at: Instant) {
        loop {
            let left = at.saturating_duration_since(self.clock.now());
            if left.is_zero() {
                return;
            }
            let deadline = Instant::now() + left.min(LOOK);
            if self.sleep.is_elapsed() || deadline < self.sleep.deadline() {
                self.sleep.as_mut().reset(deadline);
            }
            self.sleep.as_mut().await;
        }
    }
}

#[cfg(target_os = "linux")]
fn read(clock: ClockId) -> Duration {
    let time = clock_gettime(clock);
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    let nanos = u32::try_from(time.tv_nsec).unwrap_or(0);
    Duration::new(seconds, nanos)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_machine_that_is_awake_has_tokios_time() {
        let clock = Clock::start();
        let start = Instant::now();
        assert_eq!(clock.now(), start);
        clock.sleep_until(start + Duration::from_secs(7)).await;
        assert_eq!(Instant::now(), start + Duration::from_secs(7));
    }

    #[tokio::test(start_paused = true)]
    async fn an_alarm_goes_off_when_it_was_last_set_to() {
        let clock = Clock::start();
        let start = clock.now();
        let ms = |ms| start + Duration::from_millis(ms);
        let mut alarm = clock.alarm();
        // It is set to later and to sooner, before it has gone off.
        for (set, instead) in [(9_000, 100), (300, 7_000), (20_000, 7_250)] {
            tokio::select! {
                biased;
                () = alarm.until(ms(set)) => panic!("too early"),
                () = std::future::ready(()) => {}
            }
            alarm.until(ms(instead)).await;
            assert_eq!(Instant::now(), ms(instead));
        }
    }

    #[cfg(target_os = "linux")]
    #[tokio::test(start_paused = true)]
    async fn time_that_the_machine_was_suspended_counts() {
        let mut clock = Clock::start();
        let start = clock.now();
        // As if the other clock had been read an hour of suspension earlier.
        let hour = Duration::from_secs(3600);
        clock.base.1 = clock.base.1.saturating_sub(hour);
        assert!(clock.now() >= start + hour.saturating_sub(NOISE));
        // What should have ended meanwhile has ended.
        let before = Instant::now();
        clock.sleep_until(start + Duration::from_secs(30)).await;
        assert_eq!(Instant::now(), before);
    }
}
