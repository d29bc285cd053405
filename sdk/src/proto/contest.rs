//! When a contender tries to take what it has seen free.
//!
//! A try is one transaction: *if the key still is as I saw it, lock it*. The guard matters beyond
//! saving a retry. Consul looks at the lock-delay before it commits, so a lock without a guard that
//! is on its way while a session ends slips past the delay (measured on 1.8.7: 9 of 25 times). One
//! that is guarded by an index read when the key was free already does not.
//!
//! All contenders see a key become free at the same moment. The first try of each goes out at once,
//! because one that is alone loses nothing by it. Whoever loses a race draws from a window that
//! doubles, and goes on watching meanwhile: when somebody else was faster, nothing is sent. So a
//! pair hands over without a pause, and of a hundred contenders a few write.

use std::time::Duration;

use tokio::time::Instant;

/// The pace of one contender for one lock.
#[derive(Clone, Debug, Default)]
pub(crate) struct Contest {
    window: Duration,
    /// When the lock-delay that runs is over, if it is known.
    delay_over: Option<Instant>,
    /// How often in a row a lock-delay was told.
    delayed: u32,
    /// Not before this, whatever Consul would let in.
    hold_off: Option<Instant>,
}

/// The first window after a lost race.
const FIRST_WINDOW: Duration = Duration::from_millis(8);
/// The longest one: with it a hundred contenders try about 10 ms apart.
const WIDEST_WINDOW: Duration = Duration::from_secs(1);
/// Between two tries while a lock-delay runs of which the end is not known. A try that is refused
/// for a lock-delay is written nowhere: Consul tells it from memory.
const DELAY_PROBE: Duration = Duration::from_millis(250);
/// The longest lock-delay that Consul keeps.
const LONGEST_LOCK_DELAY: Duration = Duration::from_secs(60);
/// What is added to the known end of a lock-delay, which began when the servers ended the session:
/// a little before that was seen.
const DELAY_MARGIN: Duration = Duration::from_millis(5);

impl Contest {
    /// The key was seen free: when to try, if it stays so.
    pub(crate) fn free(&self, now: Instant, draw: f64) -> Instant {
        let at = now + self.window.mul_f64(draw.clamp(0.0, 1.0));
        self.hold_off.map_or(at, |hold_off| at.max(hold_off))
    }

    /// The servers were set back at some time before `at`, and know nothing any more of one that
    /// held, nor of its lock-delay.
    ///
    /// It may believe for that long, because whatever proved that it held was sent before. So the
    /// lock-delay is kept for them.
    pub(crate) fn set_back(&mut self, at: Instant, lock_delay: Option<Duration>) {
        let delay = lock_delay.unwrap_or(LONGEST_LOCK_DELAY);
        self.hold_off = self.hold_off.max(Some(at + delay + DELAY_MARGIN));
    }

    /// The key was seen to become free at `at`, and its last session had this lock-delay. It begins
    /// to run only if the session did not end in good order, which a try will tell.
    pub(crate) fn freed(&mut self, at: Instant, lock_delay: Option<Duration>) {
        self.delay_over = lock_delay.map(|delay| at + delay + DELAY_MARGIN);
        self.delayed = 0;
    }

    /// Somebody else was faster: a try was refused because the key had changed.
    pub(crate) fn lost_race(&mut self) {
        self.window = (self.window * 2).clamp(FIRST_WINDOW, WIDEST_WINDOW);
    }

    /// A try was refused for a lock-delay: when to try again.
    pub(crate) fn delayed(&mut self, now: Instant, draw: f64) -> Instant {
        self.delayed = self.delayed.saturating_add(1);
        match self.delay_over {
            // Two hundred that know the same end do not come at once.
            Some(over) if over > now => over + self.window.mul_f64(draw.clamp(0.0, 1.0)),
            _ => now + DELAY_PROBE.mul_f64(0.5 + 0.5 * draw.clamp(0.0, 1.0)),
        }
    }

    /// When the lock-delay is over, if one runs and its end is known.
    pub(crate) fn delay_over(&self) -> Option<Instant> {
        self.delay_over.filter(|_| self.delayed > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn one_that_never_lost_a_race_tries_at_once() {
        let now = Instant::now();
        assert_eq!(Contest::default().free(now, 0.99), now);
    }

    #[test]
    fn lost_races_widen_the_window_up_to_a_second() {
        let now = Instant::now();
        let mut contest = Contest::default();
        let mut last = Duration::ZERO;
        for _ in 0..20 {
            contest.lost_race();
            let wait = contest.free(now, 1.0) - now;
            assert!(wait > last || wait == ms(1000), "{wait:?}");
            last = wait;
        }
        assert_eq!(last, ms(1000));
        assert_eq!(contest.free(now, 0.25), now + ms(250));
    }

    #[test]
    fn servers_that_were_set_back_have_their_lock_delay_kept_for_them() {
        let now = Instant::now();
        let mut contest = Contest::default();
        contest.set_back(now, Some(ms(9_500)));
        assert_eq!(contest.free(now, 0.0), now + ms(9_505));
        // Seen again, or another one that was seen to hold: the longest counts.
        contest.set_back(now + ms(100), Some(ms(1_000)));
        assert_eq!(contest.free(now, 0.0), now + ms(9_505));
        let later = now + ms(9_506);
        assert_eq!(contest.free(later, 0.5), later);
        contest.set_back(now, None);
        assert_eq!(contest.free(later, 0.0), now + ms(60_005));
    }

    #[test]
    fn a_known_lock_delay_is_waited_out_and_an_unknown_one_is_probed() {
        let now = Instant::now();
        let mut contest = Contest::default();
        assert_eq!(contest.delayed(now, 1.0), now + ms(250));
        assert_eq!(contest.delay_over(), None);
        contest.freed(now, Some(ms(10_000)));
        assert_eq!(contest.delay_over(), None, "it may not run at all");
        assert_eq!(contest.delayed(now + ms(3), 1.0), now + ms(10_005));
        assert_eq!(contest.delay_over(), Some(now + ms(10_005)));
        // The servers' clock is slower, or it began later than was seen.
        let late = now + ms(10_006);
        assert_eq!(contest.delayed(late, 0.0), late + ms(125));
    }
}
