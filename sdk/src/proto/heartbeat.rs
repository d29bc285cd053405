//! When a TTL check must be updated.

use std::time::Duration;

use tokio::time::Instant;

/// The heartbeats of one TTL check.
///
/// One is due every third of the TTL, give or take a tenth of that. The first one after the start, or
/// after failures, comes anywhere in the third: a thousand instances that started together, or that
/// found their agent again together, do not beat together. One that fails is repeated after about a tenth of
/// the TTL: before the TTL of the last good one is over, there is time for five that are refused,
/// or for two that are not answered at all.
#[derive(Clone, Debug)]
pub(crate) struct Heartbeat {
    ttl: Duration,
    due: Instant,
    failures: u32,
    /// Whether it has a time of its own.
    settled: bool,
}

/// How many failures in a row are repeated at the same pace: as many as fit into a TTL.
const FAST: u32 = 10;

impl Heartbeat {
    /// The first one is due at once.
    pub(crate) fn new(ttl: Duration, now: Instant) -> Self {
        Self {
            ttl,
            due: now,
            failures: 0,
            settled: false,
        }
    }

    pub(crate) fn ttl(&self) -> Duration {
        self.ttl
    }

    /// When the next one is to be sent.
    pub(crate) fn due(&self) -> Instant {
        self.due
    }

    /// Makes the next one due now: there is something to tell.
    pub(crate) fn hurry(&mut self, now: Instant) {
        self.due = self.due.min(now);
    }

    /// Makes the next one due no sooner than `soonest`: nobody is there to take it.
    pub(crate) fn defer(&mut self, soonest: Instant) {
        self.due = self.due.max(soonest);
    }

    /// How long to wait for an answer before it is sent again.
    ///
    /// An agent without a leader holds an update that changes something for 7 s (measured), but
    /// has taken it by then.
    pub(crate) fn patience(&self) -> Duration {
        (self.ttl / 4).clamp(Duration::from_millis(100), Duration::from_secs(10))
    }

    /// One that was sent at `sent` was taken; `draw` is a random number from 0 up to 1.
    ///
    /// The agent counts from when it got it, which is `sent` or later.
    pub(crate) fn taken(&mut self, sent: Instant, draw: f64) {
        self.failures = 0;
        let draw = draw.clamp(0.0, 1.0);
        let share = match std::mem::replace(&mut self.settled, true) {
            true => 0.9 + 0.2 * draw,
            false => draw,
        };
        self.due = sent + (self.ttl / 3).mul_f64(share);
    }

    /// One has failed, as is known now; `draw` is a random number from 0 up to 1.
    pub(crate) fn failed(&mut self, now: Instant, draw: f64) {
        // The check is critical by now: haste is of no more use.
        let doublings = self.failures.saturating_sub(FAST).min(8);
        self.failures = self.failures.saturating_add(1);
        self.settled = false;
        let most = (self.ttl / 10)
            .saturating_mul(1 << doublings)
            .min(self.ttl / 3)
            .clamp(Duration::from_millis(10), Duration::from_secs(10));
        let share = 0.5 + 0.5 * draw.clamp(0.0, 1.0);
        self.due = now + most.mul_f64(share);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TTL: Duration = Duration::from_secs(15);

    #[test]
    fn the_first_is_due_at_once_and_the_next_after_a_third_of_the_ttl() {
        let now = Instant::now();
        let mut beat = Heartbeat::new(TTL, now);
        assert_eq!(beat.due(), now);
        beat.taken(now, 0.5);
        for (draw, after) in [(0.0, 4_500), (0.5, 5_000), (1.0, 5_500)] {
            beat.taken(now, draw);
            assert_eq!(beat.due(), now + Duration::from_millis(after));
        }
    }

    #[test]
    fn the_one_after_the_start_or_after_failures_comes_anywhere_in_the_third() {
        let now = Instant::now();
        let mut beat = Heartbeat::new(TTL, now);
        for (draw, after) in [(0.0, 0), (0.5, 2_500), (1.0, 5_000)] {
            beat.taken(now, draw);
            assert_eq!(beat.due(), now + Duration::from_millis(after));
            beat.failed(now, 0.5);
        }
    }

    #[test]
    fn five_refused_ones_fit_before_the_ttl_is_over_at_the_worst_of_luck() {
        let start = Instant::now();
        let mut beat = Heartbeat::new(TTL, start);
        beat.taken(start, 1.0);
        beat.taken(start, 1.0);
        let mut tries = 0;
        while beat.due() < start + TTL {
            tries += 1;
            beat.failed(beat.due(), 1.0);
        }
        assert!(tries >= 5, "{tries}");
    }

    #[test]
    fn two_unanswered_ones_fit_before_the_ttl_is_over_at_the_worst_of_luck() {
        let start = Instant::now();
        let mut beat = Heartbeat::new(TTL, start);
        beat.taken(start, 1.0);
        beat.taken(start, 1.0);
        let mut tries = 0;
        while beat.due() < start + TTL {
            tries += 1;
            beat.failed(beat.due() + beat.patience(), 1.0);
        }
        assert!(tries >= 2, "{tries}");
    }

    #[test]
    fn a_long_outage_slows_the_tries_down_but_never_beyond_a_third_of_the_ttl() {
        let now = Instant::now();
        let mut beat = Heartbeat::new(TTL, now);
        for _ in 0..1000 {
            beat.failed(now, 1.0);
            assert!(beat.due() <= now + TTL / 3);
        }
        assert_eq!(beat.due(), now + TTL / 3);
        beat.taken(now, 0.5);
        beat.failed(now, 1.0);
        assert_eq!(beat.due(), now + TTL / 10);
    }

    #[test]
    fn news_does_not_wait_for_the_next_one() {
        let now = Instant::now();
        let mut beat = Heartbeat::new(TTL, now);
        beat.taken(now, 0.5);
        beat.hurry(now + Duration::from_secs(1));
        assert_eq!(beat.due(), now + Duration::from_secs(1));
        beat.hurry(now + Duration::from_secs(2));
        assert_eq!(beat.due(), now + Duration::from_secs(1));
    }

    #[test]
    fn patience_has_bounds() {
        let patience = |ttl| Heartbeat::new(ttl, Instant::now()).patience();
        assert_eq!(patience(TTL), Duration::from_millis(3750));
        assert_eq!(
            patience(Duration::from_millis(100)),
            Duration::from_millis(100)
        );
        assert_eq!(patience(Duration::from_secs(3600)), Duration::from_secs(10));
    }
}
