//! Time in a form that fits beside a number in one atomic word.

use std::cell::Cell;
use std::time::Duration;

use tokio::time::Instant;

/// Where the ticks of one service begin.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock(Instant);

/// Milliseconds since the [`Clock`] began.
///
/// Ticks wrap after 49 days; all arithmetic is on differences, which are right for half of that.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Tick(u32);

/// When a rule is asked; most of the time it need not know.
pub(crate) trait Time {
    fn tick(&self) -> Tick;
}

impl Time for Tick {
    fn tick(&self) -> Tick {
        *self
    }
}

impl<T: Time> Time for &T {
    fn tick(&self) -> Tick {
        (*self).tick()
    }
}

/// The time at which somebody asked for it first: to read a clock costs as much as all the rest
/// of a pick.
#[derive(Debug)]
pub(crate) struct Moment {
    clock: Clock,
    read: Cell<Option<Tick>>,
}

impl Time for Moment {
    fn tick(&self) -> Tick {
        match self.read.get() {
            Some(tick) => tick,
            None => {
                let tick = self.clock.now();
                self.read.set(Some(tick));
                tick
            }
        }
    }
}

impl Clock {
    pub(crate) fn start() -> Self {
        Self(Instant::now())
    }

    /// Now, if anybody asks.
    pub(crate) fn moment(self) -> Moment {
        Moment {
            clock: self,
            read: Cell::new(None),
        }
    }

    pub(crate) fn age(self) -> Duration {
        self.0.elapsed()
    }

    #[inline]
    pub(crate) fn now(self) -> Tick {
        self.at(Instant::now())
    }

    #[inline]
    pub(crate) fn at(self, instant: Instant) -> Tick {
        let passed = instant.saturating_duration_since(self.0);
        // Both numbers are cut to 32 bits on purpose: ticks wrap.
        let [.., a, b, c, d] = passed.as_secs().to_be_bytes();
        let seconds = u32::from_be_bytes([a, b, c, d]);
        Tick(
            seconds
                .wrapping_mul(1_000)
                .wrapping_add(passed.subsec_millis()),
        )
    }
}

impl Tick {
    pub(crate) fn from_bits(bits: u32) -> Self {
        Self(bits)
    }

    pub(crate) fn to_bits(self) -> u32 {
        self.0
    }

    pub(crate) fn plus(self, time: Duration) -> Self {
        let millis = u32::try_from(time.as_millis()).unwrap_or(u32::MAX);
        Self(self.0.wrapping_add(millis))
    }

    /// Milliseconds since `earlier`; none if that lies ahead, as it may when threads race.
    #[inline]
    pub(crate) fn millis_since(self, earlier: Self) -> u32 {
        let passed = self.0.wrapping_sub(earlier.0);
        if passed > u32::MAX / 2 { 0 } else { passed }
    }

    #[inline]
    pub(crate) fn reached(self, due: Self) -> bool {
        self.0.wrapping_sub(due.0) <= u32::MAX / 2
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_survive_the_wrap() {
        let before = Tick(u32::MAX - 1);
        let after = before.plus(Duration::from_millis(5));
        assert_eq!(after.millis_since(before), 5);
        assert_eq!(before.millis_since(after), 0);
        assert!(after.reached(before));
        assert!(after.reached(after));
        assert!(!before.reached(after));
    }

    #[tokio::test(start_paused = true)]
    async fn a_clock_counts_milliseconds_since_its_start() {
        let clock = Clock::start();
        tokio::time::advance(Duration::from_millis(1500)).await;
        assert_eq!(clock.now(), Tick(1500));
        assert_eq!(clock.age(), Duration::from_millis(1500));
    }

    #[tokio::test(start_paused = true)]
    async fn a_moment_is_read_once_and_when_it_is_asked_for() {
        let moment = Clock::start().moment();
        tokio::time::advance(Duration::from_millis(20)).await;
        assert_eq!(moment.tick(), Tick(20));
        tokio::time::advance(Duration::from_millis(20)).await;
        assert_eq!(moment.tick(), Tick(20));
    }
}
