//! How long a session may be believed in, and what keeps it alive.
//!
//! A session ends at the servers in two ways. *By time*: nobody renewed it for its TTL (Consul waits
//! twice as long, which is not relied upon), or the TTL check that it is bound to was not updated
//! for the check's TTL. *Early*: the agent left, a bound check was removed, an operator destroyed
//! it. Then the lock-delay begins, and nobody takes a key of the session before it is over.
//!
//! So there are up to three [`Duty`]s, each with a window, and each good answer proves that the
//! session was alive at a moment between its sending and its arrival. The sending is what counts:
//! an answer that took nine seconds proves nothing about the last nine. The session is believed in
//! until the first window is over, less what two clocks may differ by.

use std::time::Duration;

use tokio::time::Instant;

/// By how much the clocks of two machines may differ in speed: one hundredth. Of each window twice
/// that is left unused, once for each clock.
const DRIFT: f64 = 0.01;

/// What is left unused of each window beside that, for a task that is scheduled late and for
/// servers that apply the same entry of their log at different moments.
const SLACK: Duration = Duration::from_millis(100);

/// The part of a window that may be believed in.
pub(crate) fn believable(window: Duration) -> Duration {
    window.mul_f64(1.0 - 2.0 * DRIFT).saturating_sub(SLACK)
}

/// What a lease rests on.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Terms {
    /// The session's TTL.
    pub(crate) ttl: Duration,
    /// The session's lock-delay.
    pub(crate) lock_delay: Duration,
    /// The TTL of the check that the session is bound to.
    pub(crate) check: Option<Duration>,
    /// Longest belief after the last proof, if shorter than the windows allow.
    pub(crate) belief: Option<Duration>,
    /// Whether an early end is left to fencing: the lock-delay is then no window.
    pub(crate) expiry_only: bool,
}

impl Terms {
    /// How long one proof of everything lasts.
    pub(crate) fn belief(&self) -> Duration {
        let mut shortest = self.ttl;
        if let Some(check) = self.check {
            shortest = shortest.min(check);
        }
        if !self.expiry_only {
            shortest = shortest.min(self.lock_delay);
        }
        self.capped(shortest)
    }

    fn capped(&self, window: Duration) -> Duration {
        let most = believable(window);
        self.belief.map_or(most, |cap| most.min(cap))
    }
}

/// One of the things that prove a session alive.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub(crate) enum Proof {
    /// `PUT /v1/session/renew`. It is answered from the memory of a server that takes itself for
    /// the leader, which a deposed one does for up to its leader lease: it proves that the session
    /// will not end by time, and no more.
    Renewal,
    /// `GET /v1/session/info?consistent`: a leader that has asked the others has the session.
    Reading,
    /// An update of the TTL check that the session is bound to.
    Beat,
}

/// Windows and schedule of one kind of proof.
#[derive(Clone, Debug)]
struct Duty {
    proof: Proof,
    /// How long one good answer is believed, from its sending.
    belief: Duration,
    /// The sending of the newest good one.
    proven: Instant,
    /// When the next one is to be sent.
    due: Instant,
    /// Whether one is on its way.
    sent: bool,
    failures: u32,
}

impl Duty {
    /// How often it is done: three times within what it is believed for.
    fn pace(&self) -> Duration {
        self.belief / 3
    }

    /// How long an answer is waited for: then there is time for one more before the belief ends.
    fn patience(&self) -> Duration {
        (self.pace().mul_f64(2.0 / 3.0)).max(Duration::from_millis(50))
    }

    fn until(&self) -> Instant {
        self.proven + self.belief
    }
}

/// Belief in one session.
#[derive(Clone, Debug)]
pub(crate) struct Lease {
    duties: Vec<Duty>,
    ended: bool,
}

impl Lease {
    /// A session that was created by a request sent at `sent`.
    ///
    /// `beaten` is when the check that it is bound to was last updated; `draw` spreads the first
    /// renewals of sessions that were created together.
    pub(crate) fn new(terms: &Terms, sent: Instant, beaten: Option<Instant>, draw: f64) -> Self {
        let duty = |proof, window, proven| {
            let belief = terms.capped(window);
            let mut duty = Duty {
                proof,
                belief,
                proven,
                due: proven,
                sent: false,
                failures: 0,
            };
            duty.due = proven + jittered(duty.pace(), draw);
            duty
        };
        let mut duties = vec![duty(Proof::Renewal, terms.ttl, sent)];
        if !terms.expiry_only {
            duties.push(duty(Proof::Reading, terms.lock_delay, sent));
        }
        if let (Some(check), Some(beaten)) = (terms.check, beaten) {
            duties.push(duty(Proof::Beat, check, beaten));
        }
        Self {
            duties,
            ended: false,
        }
    }

    /// Until when the session is believed in, unless something is proven before.
    pub(crate) fn until(&self) -> Instant {
        let all = self.duties.iter().map(Duty::until);
        all.min().unwrap_or_else(Instant::now)
    }

    /// Whether the session is believed in at `now`, for who only looks.
    #[cfg(test)]
    pub(crate) fn believed(&self, now: Instant) -> bool {
        !self.ended && now < self.until()
    }

    /// Whether the session is believed in at `now`. Once it is not, it never is again.
    pub(crate) fn holds(&mut self, now: Instant) -> bool {
        if now >= self.until() {
            self.ended = true;
        }
        !self.ended
    }

    /// Something has told that the session is gone.
    pub(crate) fn end(&mut self) {
        self.ended = true;
    }

    /// Whether the newest try of any kind failed.
    pub(crate) fn in_jeopardy(&self) -> bool {
        self.duties.iter().any(|duty| duty.failures > 0)
    }

    /// The next thing that is due by `now`; it then counts as on its way. With it comes how long
    /// its answer is to be waited for.
    pub(crate) fn start_due(&mut self, now: Instant) -> Option<(Proof, Duration)> {
        let mut due = self.duties.iter_mut();
        let duty = due.find(|duty| !duty.sent && duty.due <= now)?;
        duty.sent = true;
        Some((duty.proof, duty.patience()))
    }

    /// When something is due next; what is on its way is not.
    pub(crate) fn next_due(&self) -> Option<Instant> {
        let waiting = self.duties.iter().filter(|duty| !duty.sent);
        waiting.map(|duty| duty.due).min()
    }

    /// A proof that was sent at `sent` is good; it is known at `now`, and counts only if the session
    /// is still believed in.
    pub(crate) fn proven(&mut self, proof: Proof, sent: Instant, now: Instant, draw: f64) {
        if !self.holds(now) {
            return;
        }
        for duty in &mut self.duties {
            if duty.proof == proof {
                duty.sent = false;
                duty.failures = 0;
                duty.proven = duty.proven.max(sent);
                duty.due = sent + jittered(duty.pace(), draw);
            }
        }
    }

    /// A transaction that checks the session was sent at `sent` and has been committed.
    pub(crate) fn committed(&mut self, sent: Instant, now: Instant) {
        if !self.holds(now) {
            return;
        }
        for duty in &mut self.duties {
            if duty.proof == Proof::Reading {
                duty.proven = duty.proven.max(sent);
            }
        }
    }

    /// A try has failed, or was not answered in time.
    pub(crate) fn failed(&mut self, proof: Proof, now: Instant, draw: f64) {
        for duty in &mut self.duties {
            if duty.proof == proof {
                duty.sent = false;
                let doublings = duty.failures.min(10);
                duty.failures = duty.failures.saturating_add(1);
                let most = duty.pace() / 2;
                let pause = (FIRST_RETRY * (1 << doublings)).min(most);
                duty.due = now + pause.mul_f64(0.5 + 0.5 * draw.clamp(0.0, 1.0));
            }
        }
    }
}

/// How soon a failed try is repeated.
const FIRST_RETRY: Duration = Duration::from_millis(50);

/// Up to a tenth earlier or later, so that what began together does not stay together.
fn jittered(pace: Duration, draw: f64) -> Duration {
    pace.mul_f64(0.9 + 0.2 * draw.clamp(0.0, 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    const BALANCED: Terms = Terms {
        ttl: ms(10_000),
        lock_delay: ms(10_000),
        check: None,
        belief: None,
        expiry_only: false,
    };

    #[test]
    fn belief_counts_from_the_sending_and_not_from_the_answer() {
        let start = Instant::now();
        let mut lease = Lease::new(&BALANCED, start, None, 0.5);
        assert_eq!(lease.until(), start + ms(9_700));
        let sent = start + ms(3_000);
        let answered = start + ms(9_000);
        lease.proven(Proof::Renewal, sent, answered, 0.5);
        lease.proven(Proof::Reading, sent, answered, 0.5);
        assert_eq!(lease.until(), sent + ms(9_700));
    }

    #[test]
    fn belief_lasts_only_as_long_as_the_oldest_of_its_proofs() {
        let start = Instant::now();
        let mut lease = Lease::new(&BALANCED, start, None, 0.5);
        lease.proven(Proof::Renewal, start + ms(5_000), start + ms(5_010), 0.5);
        assert_eq!(lease.until(), start + ms(9_700));
        lease.committed(start + ms(4_000), start + ms(5_020));
        assert_eq!(lease.until(), start + ms(13_700));
    }

    #[test]
    fn an_answer_after_the_end_brings_nothing_back() {
        let start = Instant::now();
        let mut lease = Lease::new(&BALANCED, start, None, 0.5);
        let end = start + ms(9_700);
        assert!(lease.holds(end - ms(1)));
        lease.proven(Proof::Renewal, start + ms(9_000), end, 0.5);
        lease.proven(Proof::Reading, start + ms(9_000), end, 0.5);
        lease.committed(start + ms(9_000), end);
        assert!(!lease.holds(end - ms(1)), "and no clock that goes back");
    }

    #[test]
    fn an_answer_that_overtakes_a_newer_one_takes_nothing_away() {
        let start = Instant::now();
        let mut lease = Lease::new(&BALANCED, start, None, 0.5);
        lease.committed(start + ms(6_000), start + ms(6_010));
        lease.proven(Proof::Reading, start + ms(3_000), start + ms(6_020), 0.5);
        lease.proven(Proof::Renewal, start + ms(6_000), start + ms(6_030), 0.5);
        assert_eq!(lease.until(), start + ms(15_700));
    }

    #[test]
    fn everything_is_done_three_times_within_its_window() {
        let start = Instant::now();
        let terms = Terms {
            lock_delay: ms(3_000),
            check: Some(ms(3_000)),
            ..BALANCED
        };
        let mut lease = Lease::new(&terms, start, Some(start), 1.0);
        assert_eq!(lease.until(), start + ms(2_840));
        let mut counts = std::collections::BTreeMap::new();
        let mut now = start;
        while now < start + ms(60_000) {
            now = lease.next_due().unwrap();
            assert!(lease.holds(now));
            let (proof, _) = lease.start_due(now).unwrap();
            lease.proven(proof, now, now + ms(5), 0.5);
            *counts.entry(proof).or_insert(0) += 1;
        }
        assert!((18..=20).contains(&counts[&Proof::Renewal]), "{counts:?}");
        assert!((60..=66).contains(&counts[&Proof::Reading]), "{counts:?}");
        assert!((60..=66).contains(&counts[&Proof::Beat]), "{counts:?}");
    }

    #[test]
    fn what_is_on_its_way_is_not_sent_twice() {
        let start = Instant::now();
        let mut lease = Lease::new(&BALANCED, start, None, 0.5);
        let later = start + ms(4_000);
        assert!(lease.start_due(later).is_some());
        assert!(lease.start_due(later).is_some());
        assert!(lease.start_due(later).is_none());
        assert_eq!(lease.next_due(), None);
    }

    #[test]
    fn failures_are_repeated_quickly_and_at_least_five_times() {
        let start = Instant::now();
        let mut lease = Lease::new(&BALANCED, start, None, 1.0);
        let mut tries = 0;
        while let Some(now) = lease.next_due().filter(|now| *now < lease.until()) {
            let (proof, _) = lease.start_due(now).unwrap();
            lease.failed(proof, now, 1.0);
            tries += usize::from(proof == Proof::Renewal);
        }
        assert!(tries >= 5, "{tries}");
        assert!(lease.in_jeopardy());
        assert_eq!(lease.until(), start + ms(9_700));
    }

    #[test]
    fn one_unanswered_try_leaves_time_for_another() {
        for window in [1_000, 3_000, 10_000, 60_000].map(ms) {
            let terms = Terms {
                ttl: window,
                lock_delay: window,
                ..BALANCED
            };
            let start = Instant::now();
            let mut lease = Lease::new(&terms, start, None, 1.0);
            let first = lease.next_due().unwrap();
            let (proof, patience) = lease.start_due(first).unwrap();
            lease.failed(proof, first + patience, 1.0);
            let mut due = lease.clone();
            while let Some((other, _)) = due.start_due(first) {
                assert_ne!(other, proof);
            }
            let second = due.next_due().unwrap();
            assert!(second + patience < lease.until(), "{window:?}");
        }
    }

    #[test]
    fn without_a_lock_delay_only_time_counts() {
        let start = Instant::now();
        let terms = Terms {
            lock_delay: Duration::ZERO,
            expiry_only: true,
            ..BALANCED
        };
        let mut lease = Lease::new(&terms, start, None, 0.5);
        lease.proven(Proof::Renewal, start + ms(5_000), start + ms(5_001), 0.5);
        assert_eq!(lease.until(), start + ms(14_700));
    }
}
