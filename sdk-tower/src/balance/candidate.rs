//! One endpoint in rotation: what carries requests to it, and what is known of how it fares.

use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use crate::endpoint::Target;

use super::avoid::{Refusals, Verdict};
use super::eject::Reason;
use super::estimate::Estimate;
use super::judge::Tally;
use super::report::Malformed;
use super::standing::{Admission, Stage, Standing};
use super::tick::Tick;
use super::ward::Ward;

/// For how many times its latency a slow endpoint is left alone, at the least.
const LATENCIES: u32 = 8;

/// How many deadlines in a row make an endpoint one that is left alone for a while.
const MOST_LATE: u32 = 3;

/// An endpoint with its statistics; it outlives its rotation while requests on it are under way.
///
/// All statistics are single words that are read and written without order among them: a lost
/// update costs one sample.
///
/// What each request reads and writes stands first and in this order, in one line of the cache:
/// of ten thousand endpoints, most have to be fetched from memory.
#[repr(C, align(64))]
#[derive(Debug)]
pub(crate) struct Candidate<S> {
    in_flight: AtomicU32,
    picked: AtomicU32,
    estimate: AtomicU64,
    refusals: AtomicU64,
    standing: AtomicU64,
    answers: AtomicU64,
    /// The limit in seconds, as bits; 0 is none.
    slow_above: AtomicU32,
    /// Failures since the last success.
    consecutive: AtomicU32,
    /// Deadlines that passed since the last answer.
    late: AtomicU32,
    /// The requests in flight on all endpoints of the service, where somebody asks for that.
    crowd: Option<Arc<AtomicU32>>,
    // What follows is not touched by each request, but for the backend.
    backend: S,
    failures: AtomicU64,
    /// Answers that took longer than the limit.
    slow: AtomicU32,
    ejections: AtomicU32,
    /// The weight that it reports, and when it did; 0 is never.
    reported: AtomicU64,
    bad_reports: AtomicU32,
    /// What its weight is multiplied with, as bits.
    factor: AtomicU32,
    id: u32,
    ward: Arc<Ward>,
    target: Target,
}

impl<S> Candidate<S> {
    /// An endpoint that nobody judges.
    pub(crate) fn new(id: u32, target: Target, backend: S) -> Self {
        Self {
            in_flight: AtomicU32::new(0),
            picked: AtomicU32::new(0),
            estimate: AtomicU64::new(0),
            refusals: AtomicU64::new(0),
            standing: AtomicU64::new(0),
            answers: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            slow: AtomicU32::new(0),
            slow_above: AtomicU32::new(0),
            consecutive: AtomicU32::new(0),
            late: AtomicU32::new(0),
            ejections: AtomicU32::new(0),
            reported: AtomicU64::new(0),
            bad_reports: AtomicU32::new(0),
            factor: AtomicU32::new(1.0_f32.to_bits()),
            ward: Arc::default(),
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

    /// The same, under a rule of ejection.
    pub(crate) fn under(self, ward: Arc<Ward>) -> Self {
        Self { ward, ..self }
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

    /// Nothing keeps requests away from it, whatever the time: that of nearly all at nearly any
    /// time.
    #[inline]
    pub(crate) fn is_plain(&self) -> bool {
        self.refusals.load(Ordering::Relaxed) == 0
            && Standing::is_plain_word(self.standing.load(Ordering::Relaxed))
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

    /// A deadline has passed without an answer; several in a row are a reason to be ejected. Where
    /// nobody is, they count as a refusal.
    pub(crate) fn late(&self, now: Tick) {
        let before = self.late.load(Ordering::Relaxed);
        let late = before.saturating_add(1).min(MOST_LATE);
        self.late.store(late, Ordering::Relaxed);
        if late == MOST_LATE {
            if self.ward.is_off() {
                self.refused(now);
            } else if before < MOST_LATE {
                self.ward.tell();
            }
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
        self.answers.fetch_add(1, Ordering::Relaxed);
        if self.consecutive.load(Ordering::Relaxed) != 0 {
            self.consecutive.store(0, Ordering::Relaxed);
        }
        if self.late.load(Ordering::Relaxed) != 0 {
            self.heard();
        }
        let limit = f32::from_bits(self.slow_above.load(Ordering::Relaxed));
        let slow = limit > 0.0 && latency.as_secs_f32() > limit;
        if slow {
            self.slow.fetch_add(1, Ordering::Relaxed);
        }
        self.tried(now, Outcome::Answer { slow });
    }

    pub(crate) fn failed(&self, now: Tick) {
        let known = Estimate::after_failure(self.estimate(), now);
        self.estimate
            .store(Estimate::pack(Some(known)), Ordering::Relaxed);
        self.failures.fetch_add(1, Ordering::Relaxed);
        let before = self.consecutive.fetch_add(1, Ordering::Relaxed);
        if self.ward.is_at_limit(before.wrapping_add(1)) {
            self.ward.tell();
        }
        self.tried(now, Outcome::Failure);
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

    /// How often it was refused in a row, and until when it is left alone for that.
    pub(crate) fn refusal(&self) -> Option<(u32, Tick)> {
        self.refusals().known()
    }
}

/// What it says of its load.
impl<S> Candidate<S> {
    /// A response had a report.
    pub(crate) fn reported(&self, report: Result<f32, Malformed>, now: Tick) {
        match report {
            Ok(weight) => {
                let word = (u64::from(weight.to_bits()) << 32) | u64::from(now.to_bits());
                self.reported.store(word, Ordering::Relaxed);
            }
            Err(Malformed) => {
                self.bad_reports.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// The last weight that it reported, and when.
    pub(crate) fn report(&self) -> Option<(f32, Tick)> {
        let word = self.reported.load(Ordering::Relaxed);
        let [a, b, c, d, e, f, g, h] = word.to_be_bytes();
        let weight = f32::from_bits(u32::from_be_bytes([a, b, c, d]));
        let at = Tick::from_bits(u32::from_be_bytes([e, f, g, h]));
        (word != 0).then_some((weight, at))
    }

    /// Forgets what it reported.
    pub(crate) fn forget_report(&self) {
        self.reported.store(0, Ordering::Relaxed);
    }

    /// Reports that could not be understood.
    pub(crate) fn bad_reports(&self) -> u32 {
        self.bad_reports.load(Ordering::Relaxed)
    }

    /// What its weight is multiplied with.
    pub(crate) fn factor(&self) -> f32 {
        f32::from_bits(self.factor.load(Ordering::Relaxed))
    }

    /// Sets what its weight is multiplied with, from the next snapshot on; only the driver does.
    pub(crate) fn set_factor(&self, factor: f32) {
        self.factor.store(factor.to_bits(), Ordering::Relaxed);
    }
}

/// What came of a request.
#[derive(Clone, Copy)]
enum Outcome {
    Answer { slow: bool },
    Failure,
}

/// How it stands: in rotation, out of it, or on the way back.
impl<S> Candidate<S> {
    pub(crate) fn standing(&self) -> Standing {
        Standing::unpack(self.standing.load(Ordering::Relaxed))
    }

    /// Puts one standing in the place of another, if it is still the one.
    pub(crate) fn put(&self, from: Standing, to: Standing) -> bool {
        let put = self.standing.compare_exchange(
            from.pack(),
            to.pack(),
            Ordering::Relaxed,
            Ordering::Relaxed,
        );
        if put.is_ok() && to.stage() == Stage::Ejected && from.level() < to.level() {
            self.ejections.fetch_add(1, Ordering::Relaxed);
        }
        put.is_ok()
    }

    /// Whether it takes part as it should: nothing keeps requests away from it, or should.
    pub(crate) fn is_well(&self, now: Tick) -> bool {
        !self.is_avoided(now) && !self.standing().is_missing()
    }

    /// Whether its standing lets a request go to it.
    pub(crate) fn admits(&self, now: Tick) -> bool {
        let standing = self.standing();
        standing.is_plain() || !matches!(self.admission(standing, now), Admission::Closed)
    }

    /// Whether the next request is to ask how it fares.
    pub(crate) fn is_due(&self, now: Tick) -> bool {
        let standing = self.standing();
        !standing.is_plain() && matches!(self.admission(standing, now), Admission::Trial(_))
    }

    /// Like [`admits`](Self::admits), for a request that goes; a trial is for one asker only.
    pub(crate) fn enter(&self, now: Tick) -> bool {
        let standing = self.standing();
        match self.admission(standing, now) {
            Admission::Open => true,
            Admission::Trial(trial) => self.put(standing, trial),
            Admission::Closed => false,
        }
    }

    pub(crate) fn tally(&self) -> Tally {
        Tally {
            answers: self.answers.load(Ordering::Relaxed),
            failures: self.failures.load(Ordering::Relaxed),
            slow: u64::from(self.slow.load(Ordering::Relaxed)),
        }
    }

    /// A reason that needs no comparison with the others.
    pub(crate) fn own_fault(&self) -> Option<Reason> {
        if self
            .ward
            .is_beyond(self.consecutive.load(Ordering::Relaxed))
        {
            Some(Reason::ConsecutiveFailures)
        } else if self.late.load(Ordering::Relaxed) >= MOST_LATE {
            Some(Reason::Silence)
        } else {
            None
        }
    }

    /// How often it was ejected.
    pub(crate) fn ejections(&self) -> u32 {
        self.ejections.load(Ordering::Relaxed)
    }

    /// Sets above how many seconds an answer is slow.
    pub(crate) fn set_slow_above(&self, limit: Option<f32>) {
        let bits = limit.unwrap_or(0.0).to_bits();
        self.slow_above.store(bits, Ordering::Relaxed);
    }

    /// Lets it be tried now, whatever it waits for.
    pub(crate) fn hasten(&self, now: Tick) {
        let standing = self.standing();
        let due = standing.due(now);
        if due != standing {
            self.put(standing, due);
        }
        let word = self.refusals.load(Ordering::Relaxed);
        let sooner = Refusals::unpack(word).hastened(now).pack();
        if sooner != word {
            self.refusals
                .compare_exchange(word, sooner, Ordering::Relaxed, Ordering::Relaxed)
                .ok();
        }
    }

    /// What came of a request, for an endpoint on trial.
    fn tried(&self, now: Tick, outcome: Outcome) {
        let standing = self.standing();
        if !standing.is_on_trial() {
            return;
        }
        let bad = match outcome {
            Outcome::Failure => true,
            // A failing endpoint is back with any answer; a slow one has to be quick.
            Outcome::Answer { slow } => slow && standing.why() == Some(Reason::Latency),
        };
        let after = if bad {
            standing.after_failure(now, |level| self.time(level, standing.why(), now))
        } else {
            standing.after_success(now)
        };
        // Whoever comes second has seen a trial that is decided.
        if self.put(standing, after) && after.stage() != standing.stage() {
            self.ward.tell();
        }
    }

    fn admission(&self, standing: Standing, now: Tick) -> Admission {
        standing.admission(self.in_flight(), now, |level| {
            self.time(level, standing.why(), now)
        })
    }

    /// How long the n-th ejection for this reason lasts.
    ///
    /// A slow endpoint is left alone for several times its latency: else it would be tried again
    /// before the trial has ended.
    pub(crate) fn time(&self, level: u8, why: Option<Reason>, now: Tick) -> Duration {
        let least = match (why, self.estimate()) {
            (Some(Reason::Latency), Some(known)) => known.latency().saturating_mul(LATENCIES),
            _ => Duration::ZERO,
        };
        self.ward.time(level, self.id, now, least)
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
        candidate.picked.store(now.to_bits(), Ordering::Relaxed);
        Self::untimed(candidate)
    }

    /// The same where nobody asks for how long it was not picked.
    pub(crate) fn untimed(candidate: Arc<Candidate<S>>) -> Self {
        candidate.in_flight.fetch_add(1, Ordering::Relaxed);
        if let Some(crowd) = &candidate.crowd {
            crowd.fetch_add(1, Ordering::Relaxed);
        }
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
    fn of_many_askers_at_one_time_one_is_let_in_to_an_ejected_endpoint() {
        let ward = Arc::new(Ward::new(crate::balance::Ejection::default(), 1));
        let target = "127.0.0.1:80".parse().unwrap();
        let candidate = Candidate::new(1, target, ()).under(ward);
        let ready = candidate.standing();
        let why = Reason::ConsecutiveFailures;
        let ejected = ready.ejected(why, at(0), |_| Duration::from_secs(1));
        assert!(candidate.put(ready, ejected));
        for round in 1..=200 {
            // Later than any time that was set before.
            let now = at(round * 100_000);
            let let_in = std::sync::Barrier::new(4);
            let entered = std::thread::scope(|threads| {
                let ask = || {
                    let_in.wait();
                    let entered = candidate.enter(now);
                    if entered {
                        candidate.failed(now);
                    }
                    entered
                };
                let askers: Vec<_> = (0..4).map(|_| threads.spawn(ask)).collect();
                let entered = askers.into_iter().map(|asker| asker.join().unwrap());
                entered.filter(|entered| *entered).count()
            });
            assert_eq!(entered, 1);
        }
        assert_eq!(candidate.ejections(), 1, "failed trials are no ejections");
        assert_eq!(candidate.tally().failures, 200);
    }

    #[test]
    fn a_request_given_up_teaches_nothing_about_an_unknown_endpoint() {
        let candidate = candidate();
        candidate.given_up(Duration::from_secs(3), at(3_000));
        assert_eq!(candidate.estimate(), None);
    }
}
