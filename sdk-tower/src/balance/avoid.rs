//! An endpoint that refuses connections is left alone for a while.
//!
//! The while is 100 ms after the first refusal and doubles up to 5 s. When it is over, one
//! request tries and the others keep away until it is known what came of it: a dead endpoint
//! costs a bounded number of attempts, however many requests there are. The first connection
//! that stands ends it. If all endpoints are to be left alone, they are tried all the same.

use std::time::Duration;

use super::tick::Tick;

const FIRST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(5);

/// What is remembered of failed attempts to connect.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Refusals {
    count: u32,
    until: Tick,
}

/// Whether an endpoint may be picked.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Verdict {
    /// Connections succeed, as far as is known.
    Open,
    /// The time is over: whoever puts this in the place of the old value may try.
    Probe(Refusals),
    /// Pick another.
    Avoid,
}

impl Refusals {
    pub(crate) fn verdict(self, now: Tick) -> Verdict {
        if self.count == 0 {
            Verdict::Open
        } else if now.reached(self.until) {
            // The trial counts as refused until it is known to have succeeded.
            Verdict::Probe(self.refused(now))
        } else {
            Verdict::Avoid
        }
    }

    /// An attempt failed. What fails while the endpoint is avoided anyway tells nothing new.
    pub(crate) fn after_failure(self, now: Tick) -> Self {
        match self.verdict(now) {
            Verdict::Open => self.refused(now),
            Verdict::Probe(refused) => refused,
            Verdict::Avoid => self,
        }
    }

    /// The same with a time that is near, so that ticks do not wrap over it while nobody asks.
    pub(crate) fn kept(self, now: Tick) -> Self {
        if self.count > 0 && now.reached(self.until) {
            Self { until: now, ..self }
        } else {
            self
        }
    }

    /// The same with its time over, if it has to wait at all.
    pub(crate) fn hastened(self, now: Tick) -> Self {
        match self.verdict(now) {
            Verdict::Avoid => Self { until: now, ..self },
            Verdict::Open | Verdict::Probe(_) => self,
        }
    }

    /// How many in a row, and until when the endpoint is left alone; none without refusals.
    pub(crate) fn known(self) -> Option<(u32, Tick)> {
        (self.count > 0).then_some((self.count, self.until))
    }

    pub(crate) fn pack(self) -> u64 {
        (u64::from(self.count) << 32) | u64::from(self.until.to_bits())
    }

    pub(crate) fn unpack(word: u64) -> Self {
        let [a, b, c, d, e, f, g, h] = word.to_be_bytes();
        Self {
            count: u32::from_be_bytes([a, b, c, d]),
            until: Tick::from_bits(u32::from_be_bytes([e, f, g, h])),
        }
    }

    fn refused(self, now: Tick) -> Self {
        let count = self.count.saturating_add(1);
        let doublings = (count - 1).min(16);
        Self {
            count,
            until: now.plus((FIRST * (1 << doublings)).min(LONGEST)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Tick {
        // Ticks wrap, and `plus` takes what fits into them.
        Tick::from_bits(u32::try_from(millis & 0xFFFF_FFFF).unwrap())
    }

    #[test]
    fn one_refusal_is_remembered_for_a_tenth_of_a_second() {
        let known = Refusals::default();
        assert_eq!(known.verdict(at(0)), Verdict::Open);
        let known = known.after_failure(at(0));
        assert_eq!(known.verdict(at(99)), Verdict::Avoid);
        assert!(matches!(known.verdict(at(100)), Verdict::Probe(_)));
    }

    #[test]
    fn only_the_first_to_try_again_finds_the_door_open() {
        let known = Refusals::default().after_failure(at(0));
        let Verdict::Probe(claimed) = known.verdict(at(150)) else {
            panic!("{known:?}");
        };
        assert_eq!(claimed.verdict(at(150)), Verdict::Avoid);
        // The trial's own failure changes nothing: it was counted beforehand.
        assert_eq!(claimed.after_failure(at(160)), claimed);
    }

    #[test]
    fn the_while_doubles_up_to_five_seconds() {
        let mut known = Refusals::default();
        let mut now = 0;
        let mut whiles = Vec::new();
        for _ in 0..8 {
            known = known.after_failure(at(now));
            let waited = (0..).find(|more| known.verdict(at(now + more)) != Verdict::Avoid);
            whiles.push(waited.unwrap());
            now += waited.unwrap();
        }
        assert_eq!(whiles, [100, 200, 400, 800, 1600, 3200, 5000, 5000]);
    }

    #[test]
    fn many_failures_at_one_time_are_one() {
        let mut known = Refusals::default();
        for _ in 0..64 {
            known = known.after_failure(at(5));
        }
        assert_eq!(known, Refusals::default().after_failure(at(5)));
    }

    #[test]
    fn a_refusal_that_nobody_asks_about_for_months_does_not_begin_anew() {
        let mut known = Refusals::default().after_failure(at(0));
        for day in 1..120 {
            let now = at(day * 24 * 3_600 * 1_000);
            known = known.kept(now);
            assert!(matches!(known.verdict(now), Verdict::Probe(_)), "{day}");
        }
        // While it is avoided, nothing changes.
        let avoided = Refusals::default().after_failure(at(0));
        assert_eq!(avoided.kept(at(50)), avoided);
        assert_eq!(Refusals::default().kept(at(50)), Refusals::default());
    }

    #[test]
    fn a_refusal_that_is_hastened_may_be_tried_at_once_and_is_not_forgotten() {
        let known = Refusals::default()
            .after_failure(at(0))
            .after_failure(at(100));
        let sooner = known.hastened(at(110));
        let Verdict::Probe(claimed) = sooner.verdict(at(110)) else {
            panic!("{sooner:?}");
        };
        assert_eq!(claimed.known(), Some((3, at(510))));
        assert_eq!(Refusals::default().hastened(at(5)), Refusals::default());
    }

    #[test]
    fn packing_loses_nothing() {
        let known = Refusals::default()
            .after_failure(at(9))
            .after_failure(at(300));
        assert_eq!(Refusals::unpack(known.pack()), known);
        assert_eq!(Refusals::unpack(0), Refusals::default());
    }
}
