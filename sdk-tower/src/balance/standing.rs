//! How an endpoint stands: in rotation, out of it, or on the way back.
//!
//! [`Standing`] is one word per endpoint. The [sweep](super::sweep) puts an endpoint out; from
//! there on the word goes its own way:
//!
//! ```text
//!           sweep            time is over, one request claims it
//!  Ready ─────────► Ejected ─────────────────────────────────────► Probing
//!    ▲                ▲  ▲                                           │ │
//!    │                │  └──────── it fails: twice the time ─────────┘ │
//!    │                └─ it fails ──┐                                  │ it succeeds
//!    └─ after four successes ─── Returning ◄───────────────────────────┘
//!                                1, 2, 4, 8 requests at a time
//! ```
//!
//! The return doubles with each success, as TCP's slow start does: it takes a few round trips,
//! whatever the service's scale of time.

use std::time::Duration;

use super::eject::Reason;
use super::tick::Tick;

/// With so many successes in a row after the first an endpoint is back.
const STEPS: u8 = 4;

/// How long an endpoint has to behave until one of its ejections is forgotten: the interval of
/// gRPC's outlier detection (A50), which does the same.
const DECAY: Duration = Duration::from_secs(10);

/// Where the stage stands in a word: its four highest bits, and 0 is [`Stage::Ready`].
const STAGE_SHIFT: u32 = 60;

/// Where an endpoint is on its way out of rotation and back.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) enum Stage {
    #[default]
    Ready,
    /// In rotation, but shunned for its failures: the next request is to ask how it is.
    Due,
    /// It would be ejected, but too many are already.
    Spared,
    Ejected,
    /// One request tries it.
    Probing,
    /// The trial went well.
    Returning,
}

/// How an endpoint stands.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Standing {
    stage: Stage,
    why: Option<Reason>,
    /// How many ejections in close succession.
    level: u8,
    /// Successes since the trial.
    step: u8,
    /// Requests that were on it when the trial began; long streams do not count as trials.
    held: u8,
    /// The end of the ejection; once it is back, since when.
    at: Tick,
}

/// Whether the standing of an endpoint lets it be picked.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Admission {
    Open,
    /// Whoever puts this in the place of the old value may try.
    Trial(Standing),
    Closed,
}

impl Standing {
    pub(crate) fn stage(self) -> Stage {
        self.stage
    }

    pub(crate) fn why(self) -> Option<Reason> {
        self.why
    }

    pub(crate) fn level(self) -> u8 {
        self.level
    }

    /// The end of the ejection; of an endpoint that came back, when it did.
    pub(crate) fn at(self) -> Tick {
        self.at
    }

    /// In rotation, and there is nothing to be said of it: that of nearly all at nearly any time.
    pub(crate) fn is_plain(self) -> bool {
        self.stage == Stage::Ready
    }

    /// The same of a packed one, which is all that a pick wants to know.
    #[inline]
    pub(crate) fn is_plain_word(word: u64) -> bool {
        word >> STAGE_SHIFT == 0
    }

    /// Whether it takes up a place among those that may be out.
    pub(crate) fn is_out(self) -> bool {
        matches!(
            self.stage,
            Stage::Ejected | Stage::Probing | Stage::Returning
        )
    }

    /// Whether it is bad, be it out or spared.
    pub(crate) fn is_missing(self) -> bool {
        matches!(self.stage, Stage::Ejected | Stage::Probing | Stage::Spared)
    }

    /// Whether a result of a request may change it.
    pub(crate) fn is_on_trial(self) -> bool {
        matches!(self.stage, Stage::Probing | Stage::Returning)
    }

    /// Whether a request may go to it. `time` is how long the next ejection would last.
    pub(crate) fn admission(
        self,
        in_flight: u32,
        now: Tick,
        time: impl FnOnce(u8) -> Duration,
    ) -> Admission {
        match self.stage {
            Stage::Ready | Stage::Spared => Admission::Open,
            Stage::Due => Admission::Trial(self.put(Stage::Ready)),
            Stage::Ejected | Stage::Probing if now.reached(self.at) => {
                // The trial counts as failed until it is known to have succeeded.
                let level = self.level.saturating_add(1);
                Admission::Trial(Self {
                    stage: Stage::Probing,
                    level,
                    held: u8::try_from(in_flight).unwrap_or(u8::MAX),
                    at: now.plus(time(level)),
                    ..self
                })
            }
            Stage::Ejected | Stage::Probing => Admission::Closed,
            Stage::Returning => {
                let places = u32::from(self.held) + (1 << self.step.min(STEPS));
                if in_flight < places || self.held == u8::MAX {
                    Admission::Open
                } else {
                    Admission::Closed
                }
            }
        }
    }

    pub(crate) fn ejected(self, why: Reason, now: Tick, time: impl FnOnce(u8) -> Duration) -> Self {
        let level = self.level.saturating_add(1);
        Self {
            stage: Stage::Ejected,
            why: Some(why),
            level,
            step: 0,
            held: 0,
            at: now.plus(time(level)),
        }
    }

    /// The same, but for that it stays in rotation because too many are out.
    pub(crate) fn spared(self, why: Reason) -> Self {
        Self {
            why: Some(why),
            ..self.put(Stage::Spared)
        }
    }

    /// Back in rotation.
    pub(crate) fn returned(self, now: Tick) -> Self {
        Self {
            why: None,
            step: 0,
            held: 0,
            at: now,
            ..self.put(Stage::Ready)
        }
    }

    /// No longer bad, and it was never out.
    pub(crate) fn pardoned(self) -> Self {
        Self {
            why: None,
            ..self.put(Stage::Ready)
        }
    }

    /// The next request is to ask how it is.
    pub(crate) fn due(self, now: Tick) -> Self {
        match self.stage {
            Stage::Ejected => Self { at: now, ..self },
            Stage::Ready => self.put(Stage::Due),
            Stage::Due | Stage::Spared | Stage::Probing | Stage::Returning => self,
        }
    }

    /// A request on trial went well.
    pub(crate) fn after_success(self, now: Tick) -> Self {
        match self.stage {
            Stage::Probing => Self {
                // What was counted beforehand.
                level: self.level.saturating_sub(1),
                step: 0,
                ..self.put(Stage::Returning)
            },
            Stage::Returning if self.step + 1 >= STEPS => self.returned(now),
            Stage::Returning => Self {
                step: self.step + 1,
                ..self
            },
            Stage::Ready | Stage::Due | Stage::Spared | Stage::Ejected => self,
        }
    }

    /// A request on trial went badly.
    pub(crate) fn after_failure(self, now: Tick, time: impl FnOnce(u8) -> Duration) -> Self {
        match self.stage {
            // Its time was set when it was claimed.
            Stage::Probing => self.put(Stage::Ejected),
            Stage::Returning => {
                self.ejected(self.why.unwrap_or(Reason::ConsecutiveFailures), now, time)
            }
            Stage::Ready | Stage::Due | Stage::Spared | Stage::Ejected => self,
        }
    }

    /// What time alone does: good behaviour undoes ejections, and a time that is over stays near,
    /// so that ticks do not wrap over it while nobody asks.
    pub(crate) fn aged(self, now: Tick) -> Self {
        match self.stage {
            Stage::Ready | Stage::Due | Stage::Spared if self.level > 0 => {
                if now.reached(self.at.plus(DECAY)) {
                    Self {
                        level: self.level - 1,
                        at: now,
                        ..self
                    }
                } else {
                    self
                }
            }
            Stage::Ejected | Stage::Probing if now.reached(self.at) => Self { at: now, ..self },
            Stage::Ready
            | Stage::Due
            | Stage::Spared
            | Stage::Ejected
            | Stage::Probing
            | Stage::Returning => self,
        }
    }

    /// One word for an atomic; the word of an endpoint that was never out is 0.
    pub(crate) fn pack(self) -> u64 {
        let stage = match self.stage {
            Stage::Ready => 0,
            Stage::Due => 1,
            Stage::Spared => 2,
            Stage::Ejected => 3,
            Stage::Probing => 4,
            Stage::Returning => 5,
        };
        let why = match self.why {
            None => 0,
            Some(Reason::ConsecutiveFailures) => 1,
            Some(Reason::Silence) => 2,
            Some(Reason::SuccessRate) => 3,
            Some(Reason::Latency) => 4,
        };
        let [a, b, c, d] = self.at.to_bits().to_be_bytes();
        u64::from_be_bytes([
            stage << 4 | why,
            self.level,
            self.step,
            self.held,
            a,
            b,
            c,
            d,
        ])
    }

    pub(crate) fn unpack(word: u64) -> Self {
        let [first, level, step, held, a, b, c, d] = word.to_be_bytes();
        Self {
            stage: match first >> 4 {
                1 => Stage::Due,
                2 => Stage::Spared,
                3 => Stage::Ejected,
                4 => Stage::Probing,
                5 => Stage::Returning,
                _ => Stage::Ready,
            },
            why: match first & 0xF {
                1 => Some(Reason::ConsecutiveFailures),
                2 => Some(Reason::Silence),
                3 => Some(Reason::SuccessRate),
                4 => Some(Reason::Latency),
                _ => None,
            },
            level,
            step,
            held,
            at: Tick::from_bits(u32::from_be_bytes([a, b, c, d])),
        }
    }

    fn put(self, stage: Stage) -> Self {
        Self { stage, ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Tick {
        Tick::default().plus(Duration::from_millis(millis))
    }

    fn time(level: u8) -> Duration {
        Duration::from_secs(1 << (level - 1))
    }

    fn ejected() -> Standing {
        Standing::default().ejected(Reason::ConsecutiveFailures, at(0), time)
    }

    fn trial(standing: Standing, now: Tick) -> Standing {
        match standing.admission(0, now, time) {
            Admission::Trial(trial) => trial,
            other => panic!("{standing:?}: {other:?}"),
        }
    }

    #[test]
    fn an_ejected_endpoint_is_closed_until_its_time_and_then_open_to_one() {
        let known = ejected();
        assert_eq!(known.admission(0, at(999), time), Admission::Closed);
        let trial = trial(known, at(1_000));
        assert_eq!(trial.stage(), Stage::Probing);
        assert_eq!(trial.admission(0, at(1_001), time), Admission::Closed);
        assert!(known.is_out() && trial.is_out());
    }

    #[test]
    fn each_failed_trial_doubles_the_time() {
        let mut known = ejected();
        let mut now = 0;
        let mut times = Vec::new();
        for _ in 0..4 {
            let closed = |known: Standing, more| {
                known.admission(0, at(now + more), time) == Admission::Closed
            };
            let waited = (0..)
                .step_by(500)
                .find(|more| !closed(known, *more))
                .unwrap();
            times.push(waited);
            now += waited;
            known = trial(known, at(now)).after_failure(at(now), time);
            assert_eq!(known.stage(), Stage::Ejected);
        }
        assert_eq!(times, [1_000, 2_000, 4_000, 8_000]);
    }

    #[test]
    fn a_trial_nobody_hears_of_is_repeated_when_its_time_is_over() {
        let lost = trial(ejected(), at(1_000));
        let again = trial(lost, at(3_000));
        assert_eq!(again.level(), 3);
    }

    #[test]
    fn a_trial_that_goes_well_brings_it_back_step_by_step() {
        let mut known = trial(ejected(), at(1_000)).after_success(at(1_010));
        let mut places = Vec::new();
        while known.stage() == Stage::Returning {
            let open = |n| known.admission(n, at(1_020), time) == Admission::Open;
            places.push((0..100).take_while(|n| open(*n)).count());
            known = known.after_success(at(1_020));
        }
        assert_eq!(places, [1, 2, 4, 8]);
        assert_eq!(known.stage(), Stage::Ready);
        assert_eq!(known.admission(1_000, at(1_020), time), Admission::Open);
        assert_eq!((known.level(), known.why()), (1, None));
    }

    #[test]
    fn a_failure_on_the_way_back_ejects_again_for_longer() {
        let known = trial(ejected(), at(1_000)).after_success(at(1_010));
        let again = known.after_failure(at(1_020), time);
        assert_eq!(again.stage(), Stage::Ejected);
        assert_eq!(again.admission(0, at(3_019), time), Admission::Closed);
        assert!(matches!(
            again.admission(0, at(3_020), time),
            Admission::Trial(_)
        ));
    }

    #[test]
    fn streams_that_were_open_before_do_not_hold_up_the_return() {
        let Admission::Trial(trial) = ejected().admission(7, at(1_000), time) else {
            panic!("its time is over");
        };
        let known = trial.after_success(at(1_001));
        assert_eq!(known.admission(7, at(1_002), time), Admission::Open);
        assert_eq!(known.admission(8, at(1_002), time), Admission::Closed);
    }

    #[test]
    fn what_an_older_request_says_of_an_ejected_endpoint_changes_nothing() {
        let known = ejected();
        assert_eq!(known.after_success(at(1)), known);
        assert_eq!(known.after_failure(at(1), time), known);
    }

    #[test]
    fn ten_seconds_of_good_behaviour_undo_one_ejection() {
        let mut known = ejected().ejected(Reason::Latency, at(0), time);
        known = known.returned(at(5_000));
        assert_eq!(known.aged(at(14_999)), known);
        known = known.aged(at(15_000));
        assert_eq!(known.level(), 1);
        known = known.aged(at(25_000));
        assert_eq!(known.level(), 0);
        assert_eq!(known.aged(at(35_000)), known);
    }

    #[test]
    fn an_ejection_that_nobody_asks_about_for_months_does_not_begin_anew() {
        let mut known = ejected();
        for day in 1..120_u64 {
            let bits = u32::try_from((day * 24 * 3_600 * 1_000) & 0xFFFF_FFFF).unwrap();
            let now = Tick::from_bits(bits);
            known = known.aged(now);
            assert!(
                matches!(known.admission(0, now, time), Admission::Trial(_)),
                "{day}"
            );
        }
    }

    #[test]
    fn one_that_is_due_is_asked_by_one_request_and_stays_in_rotation() {
        let due = Standing::default().due(at(5));
        assert!(!due.is_out());
        assert_eq!(trial(due, at(5)).stage(), Stage::Ready);
        // An ejected one may be tried at once.
        let sooner = ejected().due(at(5));
        assert_eq!(trial(sooner, at(5)).stage(), Stage::Probing);
    }

    #[test]
    fn packing_loses_nothing() {
        assert_eq!(Standing::default().pack(), 0);
        let probing = trial(ejected(), at(1_000));
        let returning = probing.after_success(at(1_001)).after_success(at(1_002));
        for known in [
            Standing::default(),
            Standing::default().due(at(0)),
            Standing::default().spared(Reason::Silence),
            Standing::default().spared(Reason::SuccessRate),
            Standing::default().ejected(Reason::Latency, at(7), time),
            ejected(),
            probing,
            returning,
            returning.returned(at(9)),
        ] {
            assert_eq!(Standing::unpack(known.pack()), known);
            assert_eq!(Standing::is_plain_word(known.pack()), known.is_plain());
        }
    }
}
