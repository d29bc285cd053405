//! How long to wait after a failure.

use std::time::Duration;

/// Exponential delays with full jitter.
///
/// The n-th delay in a row is drawn evenly from zero to `base * 2^n`, and never above `cap`.
/// Full jitter spreads a thousand clients that lost the same agent at the same moment; a floor of
/// a quarter of the base keeps a lucky draw from hammering.
#[derive(Clone, Debug)]
pub(crate) struct Backoff {
    base: Duration,
    cap: Duration,
    failures: u32,
}

impl Backoff {
    pub(crate) const fn new(base: Duration, cap: Duration) -> Self {
        Self {
            base,
            cap,
            failures: 0,
        }
    }

    /// The next delay; `draw` is a fresh random number from 0 up to, and not including, 1.
    pub(crate) fn next(&mut self, draw: f64) -> Duration {
        self.next_within(self.cap, draw)
    }

    /// The same with a nearer limit, for a failure that costs nobody much.
    pub(crate) fn next_within(&mut self, most: Duration, draw: f64) -> Duration {
        let doublings = self.failures.min(16);
        self.failures = self.failures.saturating_add(1);
        let most = most.min(self.cap);
        let ceiling = self.base.saturating_mul(1 << doublings).min(most);
        ceiling
            .mul_f64(draw.clamp(0.0, 1.0))
            .max(self.base / 4)
            .min(most)
    }

    /// Forgets the failures: only a success may do this.
    pub(crate) fn reset(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn delays_double_up_to_the_cap_and_start_over_after_a_success() {
        let mut backoff = Backoff::new(ms(100), ms(1000));
        let delays: Vec<_> = (0..6).map(|_| backoff.next(1.0)).collect();
        assert_eq!(delays, [100, 200, 400, 800, 1000, 1000].map(ms));
        backoff.reset();
        assert_eq!(backoff.next(1.0), ms(100));
    }

    #[test]
    fn a_nearer_limit_holds_for_one_delay() {
        let mut backoff = Backoff::new(ms(100), ms(1000));
        let delays: Vec<_> = (0..4).map(|_| backoff.next_within(ms(300), 1.0)).collect();
        assert_eq!(delays, [100, 200, 300, 300].map(ms));
        assert_eq!(backoff.next_within(ms(2000), 1.0), ms(1000));
        assert_eq!(backoff.next(1.0), ms(1000));
    }

    #[test]
    fn jitter_reaches_down_to_the_floor_and_no_further() {
        let mut backoff = Backoff::new(ms(100), ms(1000));
        assert_eq!(backoff.next(0.0), ms(25));
        assert_eq!(backoff.next(0.5), ms(100));
    }

    #[test]
    fn a_long_outage_does_not_overflow() {
        let mut backoff = Backoff::new(ms(100), ms(30_000));
        for _ in 0..100_000 {
            assert!(backoff.next(1.0) <= ms(30_000));
        }
    }
}
