//! One endpoint in rotation: what carries requests to it, and what is known of how it fares.

use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use crate::endpoint::Target;

use super::avoid::{Refusals, Verdict};
use super::estimate::Estimate;
use super::tick::Tick;

/// How many deadlines in a row make an endpoint one that is left alone for a while.
const MOST_LATE: u32 = 3;

/// An endpoint with its statistics; it outlives its rotation while requests on it are under way.
///
/// All statistics are single words that are read and written without order among them: a lost
/// update costs one sample.
#[repr(align(64))]
#[derive(Debug)]
pub(crate) struct Candidate<S> {
    in_flight: AtomicU32,
    picked: AtomicU32,
    estimate: AtomicU64,
    refusals: AtomicU64,
    /// Deadlines that passed since the last answer.
    late: AtomicU32,
    id: u32,
    target: Target,
    /// The requests in flight on all endpoints of the service, where somebody asks for that.
    crowd: Option<Arc<AtomicU32>>,
    backend: S,
}

impl<S> Candidate<S> {
    pub(crate) fn new(id: u32, target: Target, backend: S) -> Self {
        Self {
            in_flight: AtomicU32::new(0),
            picked: AtomicU32::new(0),
            estimate: AtomicU64::new(0),
            refusals: AtomicU64::new(0),
            late: AtomicU32::new(0),
            id,
            target,
            crowd: None,
            backend,
        }
    }

    /// Counts its requests in flight among those of the service, too.
    pub(crate) fn among(mut self, crowd: Option<Arc<AtomicU32>>) -> Self {
        self.crowd = crowd;
        self
    }

    /// A number that no other endpoint of this service has.
    pub(crate) fn id(&self) -> u32 {
        self.id
    }

    pub(crate) fn target(&self) -> &Target {
        &self.target
    }

    pub(crate) fn backend(&self) -> &S {
        &self.backend
    }

    /// Requests whose response has not ended.
    pub(crate) fn in_flight(&self) -> u32 {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// The requests in flight on all endpoints, if they are counted.
    pub(crate) fn crowd(&self) -> Option<u32> {
        let crowd = self.crowd.as_ref()?;
        Some(crowd.load(Ordering::Relaxed))
    }

    pub(crate) fn estimate(&self) -> Option<Estimate> {
        Estimate::unpack(self.estimate.load(Ordering::Relaxed))
    }

    /// The estimate in seconds as of `now`.
    pub(crate) fn faded(&self, now: Tick) -> Option<f32> {
        let picked = Tick::from_bits(self.picked.load(Ordering::Relaxed));
        self.estimate().map(|known| known.faded(picked, now))
    }

    /// Whether connections to it are known to fail and it is not time to try again.
    pub(crate) fn is_avoided(&self, now: Tick) -> bool {
        self.refusals().verdict(now) == Verdict::Avoid
    }

    /// Whether it may be used now; if it is time to try again, for one asker only.
    pub(crate) fn claim(&self, now: Tick) -> bool {
        let word = self.refusals.load(Ordering::Relaxed);
        match Refusals::unpack(word).verdict(now) {
            Verdict::Open => true,
            Verdict::Avoid => false,
            Verdict::Probe(claimed) => self
                .refusals
                .compare_exchange(word, claimed.pack(), Ordering::Relaxed, Ordering::Relaxed)
                .is_ok(),
        }
    }

    pub(crate) fn connected(&self) {
        // A kernel accepts connections for a process that is stuck.
        if self.late.load(Ordering::Relaxed) >= MOST_LATE {
            return;
        }
        if self.refusals.load(Ordering::Relaxed) != 0 {
            self.refusals.store(0, Ordering::Relaxed);
        }
    }

    pub(crate) fn refused(&self, now: Tick) {
        // Two threads may fail at one time; the second then finds the endpoint avoided already.
        self.refusals
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |word| {
                Some(Refusals::unpack(word).after_failure(now).pack())
            })
            .ok();
    }

    /// A deadline has passed without an answer; the last of several in a row counts as a refusal.
    pub(crate) fn late(&self, now: Tick) {
        let before = self.late.load(Ordering::Relaxed);
        let late = before.saturating_add(1).min(MOST_LATE);
        self.late.store(late, Ordering::Relaxed);
        if late == MOST_LATE {
            self.refused(now);
        }
    }

    /// There is an answer, whatever it says.
    pub(crate) fn heard(&self) {
        if self.late.load(Ordering::Relaxed) != 0
            && self.late.swap(0, Ordering::Relaxed) >= MOST_LATE
        {
            self.connected();
        }
    }

    /// Called now and then, however long nobody asks for the endpoint.
    pub(crate) fn age(&self, now: Tick) {
        let word = self.refusals.load(Ordering::Relaxed);
        let kept = Refusals::unpack(word).kept(now).pack();
        if kept != word {
            // If somebody else is faster, the time is near anyway.
            self.refusals
                .compare_exchange(word, kept, Ordering::Relaxed, Ordering::Relaxed)
                .ok();
        }
    }

    pub(crate) fn answered(&self, latency: Duration, now: Tick) {
        let word = self.estimate.load(Ordering::Relaxed);
        let renewed = Estimate::pack(Some(Estimate::after_answer(
            Estimate::unpack(word),
            latency,
            now,
        )));
        if renewed != word {
            self.estimate.store(renewed, Ordering::Relaxed);
        }
    }

    pub(crate) fn failed(&self, now: Tick) {
        let known = Estimate::after_failure(self.estimate(), now);
        self.estimate
            .store(Estimate::pack(Some(known)), Ordering::Relaxed);
    }

    pub(crate) fn given_up(&self, waited: Duration, now: Tick) {
        if let Some(known) = self.estimate() {
            let raised = Estimate::pack(Some(known.after_cancel(waited, now)));
            self.estimate.store(raised, Ordering::Relaxed);
        }
    }

    fn refusals(&self) -> Refusals {
        Refusals::unpack(self.refusals.load(Ordering::Relaxed))
    }
}

/// A request that an endpoint has to bear, from the pick to the end of the response's body.
#[derive(Debug)]
pub(crate) struct InFlight<S> {
    candidate: Arc<Candidate<S>>,
    counted: bool,
}

impl<S> InFlight<S> {
    pub(crate) fn begin(candidate: Arc<Candidate<S>>, now: Tick) -> Self {
        candidate.in_flight.fetch_add(1, Ordering::Relaxed);
        if let Some(crowd) = &candidate.crowd {
            crowd.fetch_add(1, Ordering::Relaxed);
        }
        candidate.picked.store(now.to_bits(), Ordering::Relaxed);
        Self {
            candidate,
            counted: true,
        }
    }

    /// The request is over, though its guard is still held.
    pub(crate) fn end(&mut self) {
        if std::mem::take(&mut self.counted) {
            self.candidate.in_flight.fetch_sub(1, Ordering::Relaxed);
            if let Some(crowd) = &self.candidate.crowd {
                crowd.fetch_sub(1, Ordering::Relaxed);
            }
        }
    }
}

impl<S> Deref for InFlight<S> {
    type Target = Arc<Candidate<S>>;

    fn deref(&self) -> &Self::Target {
        &self.candidate
    }
}

impl<S> Drop for InFlight<S> {
    fn drop(&mut self) {
        self.end();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate() -> Arc<Candidate<()>> {
        let target = "127.0.0.1:80".parse().unwrap();
        Arc::new(Candidate::new(1, target, ()))
    }

    fn at(millis: u64) -> Tick {
        Tick::default().plus(Duration::from_millis(millis))
    }

    #[test]
    fn a_request_counts_until_its_guard_is_dropped() {
        let candidate = candidate();
        let first = InFlight::begin(Arc::clone(&candidate), at(0));
        let second = InFlight::begin(Arc::clone(&candidate), at(0));
        assert_eq!(candidate.in_flight(), 2);
        drop(first);
        assert_eq!(candidate.in_flight(), 1);
        drop(second);
        assert_eq!(candidate.in_flight(), 0);
    }

    #[test]
    fn a_refusing_endpoint_is_claimed_by_one_asker_when_time_is_over() {
        let candidate = candidate();
        assert!(candidate.claim(at(0)));
        candidate.refused(at(0));
        assert!(candidate.is_avoided(at(50)));
        assert!(!candidate.claim(at(50)));
        assert!(candidate.claim(at(100)));
        assert!(!candidate.claim(at(100)));
        candidate.connected();
        assert!(candidate.claim(at(100)));
    }

    #[test]
    fn an_endpoint_that_is_late_three_times_in_a_row_is_left_alone_until_it_answers() {
        let candidate = candidate();
        candidate.late(at(0));
        candidate.late(at(0));
        candidate.heard();
        candidate.late(at(1));
        candidate.late(at(1));
        assert!(!candidate.is_avoided(at(1)));
        candidate.late(at(1));
        assert!(candidate.is_avoided(at(1)));
        // That it accepts a connection is no answer.
        candidate.connected();
        assert!(candidate.is_avoided(at(1)));
        candidate.heard();
        assert!(!candidate.is_avoided(at(1)));
    }

    #[test]
    fn a_request_given_up_teaches_nothing_about_an_unknown_endpoint() {
        let candidate = candidate();
        candidate.given_up(Duration::from_secs(3), at(3_000));
        assert_eq!(candidate.estimate(), None);
    }
}
