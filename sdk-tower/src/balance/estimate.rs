//! How slow an endpoint is: the peak EWMA, and what failures and cancellations do to it.
//!
//! The estimate jumps up with a slow answer and comes down slowly, so that an endpoint that turns
//! slow is noticed after one request (Finagle's `PeakEwma`). Three rules are added, because a
//! plain average credits an endpoint for failing fast:
//! * a failure never lowers the estimate; it makes it a *penalty* of at least [`PENALTY_FLOOR`];
//! * a penalty fades faster than a measurement, and the first answer after it replaces it: one
//!   request finds out that the endpoint is well again;
//! * a cancelled request proves only that the answer takes longer than the caller waited.
//!
//! An estimate fades while nobody asks, so that one slow answer does not keep an endpoint away for
//! long. Where the next answer is as slow, it was no accident: each such answer doubles the time,
//! up to a limit, and the first quick one takes all of it back.

use std::time::Duration;

use super::tick::Tick;

/// The shortest time constant of the average, in seconds: what a slow answer costs an endpoint
/// that is well. Finagle and linkerd take 10 s for every service; here the time follows the
/// latency, so that a service that answers in seconds is remembered longer.
const MEMORY: f32 = 2.0;
/// The time constant in multiples of the estimate, where that is longer.
const MEMORY_PER_LATENCY: f32 = 8.0;
/// The longest time constant in seconds: enough for the rule above at latencies of half a minute,
/// so that a service that answers in seconds keeps away from a slow endpoint as well as one that
/// answers in milliseconds.
const LONGEST_MEMORY: f32 = 240.0;
/// How often the time constant is doubled at the most, while an endpoint is asked now and then and
/// is as slow each time.
const MOST_DOUBLINGS: u8 = 3;
/// An answer that takes at least this part of what the last one took is as slow.
const AS_SLOW: f32 = 0.5;
/// Below this part of its value an estimate has faded: the answer that follows says something new.
const FADED: f32 = 0.7;
/// The lowest bits of a value in a word, which carry the doublings.
const DOUBLINGS: u32 = 0b11;

/// The shortest time constant with which a penalty fades, in seconds: a failed endpoint is asked
/// again soon.
const PENALTY_MEMORY: f32 = 1.0;
/// The least penalty in seconds, far above a healthy latency.
const PENALTY_FLOOR: f32 = 1.0;
/// The greatest penalty in seconds; bounds how long a recovered endpoint goes without a request.
const PENALTY_CEILING: f32 = 60.0;

/// What is known of an endpoint's latency.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Estimate {
    /// Above zero; its lowest bits are zero, too.
    seconds: f32,
    at: Tick,
    penalty: bool,
    /// How often it was found as slow again after it had faded.
    doublings: u8,
}

impl Estimate {
    fn new(seconds: f32, at: Tick, penalty: bool, doublings: u8) -> Self {
        Self {
            seconds: f32::from_bits(seconds.to_bits() & !DOUBLINGS),
            at,
            penalty,
            doublings,
        }
    }

    /// The value at `now`, if the endpoint was last picked at `picked`.
    ///
    /// It fades, so that an endpoint that was slow once is asked again. A pick begins the fading
    /// anew: one request asks, and the others wait for its answer.
    #[inline]
    pub(crate) fn faded(self, picked: Tick, now: Tick) -> f32 {
        let quiet = now.millis_since(self.at).min(now.millis_since(picked));
        self.seconds * self.fading(quiet)
    }

    /// The whole value, as it was when it was last changed.
    pub(crate) fn latency(self) -> Duration {
        Duration::try_from_secs_f32(self.seconds).unwrap_or(Duration::MAX)
    }

    /// Whether the value stands for failures and was not measured.
    pub(crate) fn is_penalty(self) -> bool {
        self.penalty
    }

    pub(crate) fn after_answer(known: Option<Self>, latency: Duration, now: Tick) -> Self {
        let sample = positive(latency);
        let measured = |seconds, at, doublings| Self::new(seconds, at, false, doublings);
        match known {
            Some(known) if !known.penalty => {
                let passed = now.millis_since(known.at);
                let weight = known.fading(passed);
                let kept = known.seconds * weight;
                let doublings = if sample < known.seconds * AS_SLOW {
                    0
                } else if weight < FADED {
                    known.doublings.saturating_add(1).min(MOST_DOUBLINGS)
                } else {
                    known.doublings
                };
                if sample >= kept {
                    measured(sample, now, doublings)
                } else if passed == 0 {
                    // Within one tick a sample weighs nothing; keep the tick, so that the next
                    // one does.
                    known
                } else {
                    measured(kept + sample * (1.0 - weight), now, doublings)
                }
            }
            // The first answer, or the first one after failures, is all that is known.
            _ => measured(sample, now, 0),
        }
    }

    /// A failure; one after the other they keep a penalty from fading and do not raise it.
    ///
    /// A penalty that grew would outlast the failures: when all endpoints have failed, because
    /// something behind them did, the first that is well again would get everything for long.
    pub(crate) fn after_failure(known: Option<Self>, now: Tick) -> Self {
        let seconds = match known {
            Some(known) if known.penalty => known.seconds,
            Some(known) => 2.0 * known.seconds * known.fading(now.millis_since(known.at)),
            None => 0.0,
        };
        Self::new(seconds.clamp(PENALTY_FLOOR, PENALTY_CEILING), now, true, 0)
    }

    /// A request that its caller gave up after `waited`; unknown stays unknown.
    pub(crate) fn after_cancel(self, waited: Duration, now: Tick) -> Self {
        let waited = positive(waited);
        let current = self.seconds * self.fading(now.millis_since(self.at));
        if waited <= current {
            return self;
        }
        Self::new(waited, now, self.penalty, self.doublings)
    }

    /// One word for an atomic; 0 is "unknown".
    #[inline]
    pub(crate) fn pack(known: Option<Self>) -> u64 {
        let Some(known) = known else { return 0 };
        // The value is above zero, so the sign is free to carry the penalty.
        let signed = if known.penalty {
            -known.seconds
        } else {
            known.seconds
        };
        let value = signed.to_bits() | u32::from(known.doublings);
        (u64::from(value) << 32) | u64::from(known.at.to_bits())
    }

    #[inline]
    pub(crate) fn unpack(word: u64) -> Option<Self> {
        if word == 0 {
            return None;
        }
        let [a, b, c, d, e, f, g, h] = word.to_be_bytes();
        let value = u32::from_be_bytes([a, b, c, d]);
        let signed = f32::from_bits(value & !DOUBLINGS);
        Some(Self {
            seconds: signed.abs(),
            at: Tick::from_bits(u32::from_be_bytes([e, f, g, h])),
            penalty: signed.is_sign_negative(),
            doublings: u8::try_from(value & DOUBLINGS).unwrap_or(MOST_DOUBLINGS),
        })
    }

    #[inline]
    fn fading(self, millis: u32) -> f32 {
        if millis == 0 {
            return 1.0;
        }
        let memory = if self.penalty {
            self.seconds.max(PENALTY_MEMORY)
        } else {
            let memory = (self.seconds * MEMORY_PER_LATENCY).max(MEMORY);
            (memory * f32::from(1_u8 << self.doublings)).min(LONGEST_MEMORY)
        };
        #[expect(
            clippy::cast_precision_loss,
            reason = "a rounding of one in 2^24 does not matter to an average"
        )]
        let passed = millis as f32 / 1_000.0;
        (-passed / memory).exp()
    }
}

fn positive(time: Duration) -> f32 {
    time.as_secs_f32().max(1e-9)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Tick {
        Tick::default().plus(Duration::from_millis(millis))
    }

    fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    fn measured(latency: u64, now: u64) -> Estimate {
        Estimate::after_answer(None, ms(latency), at(now))
    }

    fn close(a: f32, b: f32) -> bool {
        (a - b).abs() <= b * 0.01
    }

    #[test]
    fn the_first_answer_is_the_estimate() {
        let known = measured(20, 5);
        assert!(close(known.faded(at(5), at(5)), 0.020));
        assert!(!known.is_penalty());
    }

    #[test]
    fn a_slow_answer_raises_at_once_and_fast_ones_lower_slowly() {
        let mut known = measured(2, 0);
        known = Estimate::after_answer(Some(known), ms(200), at(1));
        assert!(close(known.latency().as_secs_f32(), 0.2));
        known = Estimate::after_answer(Some(known), ms(2), at(2));
        assert!(known.latency() > ms(199));
        for now in 3..10_000 {
            known = Estimate::after_answer(Some(known), ms(2), at(now));
        }
        assert!(known.latency() < ms(4), "{:?}", known.latency());
    }

    #[test]
    fn many_samples_within_one_millisecond_do_not_stop_the_average() {
        let mut known = measured(100, 0);
        for now in 1..4_000 {
            for _ in 0..3 {
                known = Estimate::after_answer(Some(known), ms(1), at(now));
            }
        }
        assert!(close(known.latency().as_secs_f32(), 0.0144), "{known:?}");
    }

    #[test]
    fn an_estimate_fades_while_nobody_asks_and_stays_while_one_asks() {
        let known = measured(100, 0);
        let faded = known.faded(at(0), at(2_000));
        assert!(close(faded, 0.1 * (-1.0_f32).exp()));
        // One was picked just now: until its answer the old value counts.
        assert!(close(known.faded(at(2_000), at(2_000)), 0.1));
    }

    #[test]
    fn a_slow_service_is_remembered_longer() {
        let known = measured(2_000, 0);
        assert!(close(
            known.faded(at(0), at(16_000)),
            2.0 * (-1.0_f32).exp()
        ));
        let known = measured(3_600_000, 0);
        assert!(known.faded(at(0), at(2_400_000)) < 1.0);
    }

    #[test]
    fn one_that_is_as_slow_each_time_is_asked_ever_more_seldom_and_a_quick_answer_ends_that() {
        let mut known = measured(20, 0);
        let mut now = 0;
        let mut waits = Vec::new();
        for _ in 0..5 {
            let begin = now;
            // Until it is as good as one that takes 2 ms.
            while known.faded(at(begin), at(now)) > 0.004 {
                now += 1;
            }
            waits.push((now - begin) / 100);
            known = Estimate::after_answer(Some(known), ms(20), at(now));
        }
        assert_eq!(waits, [32, 64, 128, 257, 257]);
        known = Estimate::after_answer(Some(known), ms(2), at(now + 10_000));
        assert_eq!(known.doublings, 0);
    }

    #[test]
    fn answers_in_close_succession_prove_nothing_of_what_they_say_alike() {
        let mut known = measured(2, 0);
        for now in 1..5_000 {
            known = Estimate::after_answer(Some(known), ms(2), at(now));
        }
        assert_eq!(known.doublings, 0);
    }

    #[test]
    fn a_failure_raises_whatever_was_known() {
        let fast = Estimate::after_failure(Some(measured(2, 0)), at(1));
        assert_eq!(fast.latency(), Duration::from_secs(1));
        let slow = Estimate::after_failure(Some(measured(3_000, 0)), at(0));
        assert_eq!(slow.latency(), Duration::from_secs(6));
        let unknown = Estimate::after_failure(None, at(1));
        assert_eq!(unknown.latency(), Duration::from_secs(1));
        assert!(fast.is_penalty() && slow.is_penalty() && unknown.is_penalty());
    }

    #[test]
    fn many_failures_keep_a_penalty_and_do_not_raise_it() {
        let mut known = Estimate::after_failure(Some(measured(2, 0)), at(1));
        for now in 2..1_000 {
            known = Estimate::after_failure(Some(known), at(now));
        }
        assert_eq!(known.latency(), Duration::from_secs(1));
        assert!(close(known.faded(at(0), at(1_999)), (-1.0_f32).exp()));
        let worst = Estimate::after_failure(Some(measured(3_600_000, 0)), at(0));
        assert_eq!(worst.latency(), Duration::from_secs(60));
    }

    #[test]
    fn a_penalty_fades_within_seconds_and_ends_with_the_first_answer() {
        let known = Estimate::after_failure(None, at(0));
        assert!(known.faded(at(0), at(6_500)) < 0.002);
        let well = Estimate::after_answer(Some(known), ms(2), at(7_000));
        assert!(close(well.latency().as_secs_f32(), 0.002));
        assert!(!well.is_penalty());
    }

    #[test]
    fn a_cancelled_request_only_ever_raises() {
        let known = measured(10, 0);
        assert_eq!(known.after_cancel(ms(5), at(1)), known);
        let raised = known.after_cancel(ms(50), at(1));
        assert!(close(raised.latency().as_secs_f32(), 0.05));
    }

    #[test]
    fn packing_loses_nothing() {
        assert_eq!(Estimate::pack(None), 0);
        assert_eq!(Estimate::unpack(0), None);
        for known in [
            measured(0, 0),
            measured(7, u64::from(u32::MAX)),
            Estimate::after_failure(None, at(77)),
            Estimate::after_answer(Some(measured(7, 0)), ms(9), at(60_000)),
        ] {
            assert_eq!(Estimate::unpack(Estimate::pack(Some(known))), Some(known));
        }
    }
}
