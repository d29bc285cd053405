//! When to ask again, and what an answer means for the set that is known.
//!
//! A registry that is polled can answer, deny or fail. This is the rule for all three, without a
//! socket, a clock or randomness: `now` and `luck` are arguments.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::Status;
use crate::endpoint::{Endpoint, EndpointSet, Target};

/// How often to ask, and how long to doubt.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    /// No two attempts are closer than this.
    pub(super) min: Duration,
    /// After an answer the next attempt comes no later than this, plus the jitter.
    pub(super) max: Duration,
    /// How long a known set outlives the claim that nobody is there.
    pub(super) grace: Duration,
}

/// What one attempt brought.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Answer {
    /// The registry says who is there, and for how long it vouches for it.
    Set {
        set: EndpointSet,
        ttl: Duration,
        /// There may be more than these, and the next answer may name others.
        cut: bool,
    },
    /// The registry says that the name does not exist or has no such records.
    Denied { reason: Arc<str>, ttl: Duration },
    /// The registry could not be asked, or its answer makes no sense.
    Failed { reason: Arc<str> },
}

/// What follows from an answer.
#[derive(Debug)]
pub(super) struct Step {
    /// A set that is to be told, because it differs from what was told before.
    pub(super) tell: Option<EndpointSet>,
    /// How long to wait before the next attempt.
    pub(super) wait: Duration,
    /// The beginning or the end of an incident.
    pub(super) turn: Option<Turn>,
}

/// The beginning or the end of an incident, each told once.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Turn {
    /// The registry can no longer confirm what is known.
    Doubt(Arc<str>),
    /// It can again.
    Sure,
}

/// What is known, and how well.
#[derive(Debug)]
pub(super) struct Refresh {
    pace: Pace,
    known: Option<Known>,
    trouble: Option<Trouble>,
    sample: Sample,
}

#[derive(Debug)]
struct Known {
    set: EndpointSet,
    confirmed: Instant,
}

/// A run of attempts that did not confirm the set.
#[derive(Debug)]
struct Trouble {
    reason: Arc<str>,
    /// Failures in a row.
    failures: u32,
    /// The first denial since the set was last confirmed.
    denied: Option<Instant>,
}

/// A wait is lengthened at random by up to this part of it, so that many processes do not ask in
/// step.
const JITTER: u32 = 4;

/// The longest wait after failures in a row, unless the smallest interval is longer.
///
/// Short, because what is asked is an agent nearby: being a few seconds late after an outage
/// hurts more than one small query per process in this time.
const BACKOFF_MAX: Duration = Duration::from_secs(5);

impl Refresh {
    pub(super) fn new(pace: Pace) -> Self {
        Self {
            pace,
            known: None,
            trouble: None,
            sample: Sample::default(),
        }
    }

    /// Takes in an answer that arrived at `now`; `luck` is any random number.
    pub(super) fn apply(&mut self, answer: Answer, now: Instant, luck: u16) -> Step {
        match answer {
            Answer::Set { set, ttl, cut } => {
                let set = if cut {
                    let known = self.known.as_ref().map(|known| &known.set);
                    self.sample.add(known, &set)
                } else {
                    self.sample = Sample::default();
                    set
                };
                self.confirm(set, ttl, now, luck)
            }
            Answer::Denied { reason, ttl } => {
                let since = self
                    .trouble
                    .as_ref()
                    .and_then(|trouble| trouble.denied)
                    .unwrap_or(now);
                // Nothing to protect: nothing was known, nobody was there before, or the doubt
                // has lasted long enough. A denial at `since` alone is never enough, unless no
                // grace is wanted.
                let protects = self.known.as_ref().is_some_and(|k| !k.set.is_empty());
                if !protects || now.duration_since(since) >= self.pace.grace {
                    self.sample = Sample::default();
                    return self.confirm(EndpointSet::empty(), ttl, now, luck);
                }
                let wait = jittered(self.pace.min, luck);
                let turn = self.doubt(reason, 0, Some(since));
                Step {
                    tell: None,
                    wait,
                    turn,
                }
            }
            Answer::Failed { reason } => {
                let (failures, denied) = self
                    .trouble
                    .as_ref()
                    .map_or((0, None), |trouble| (trouble.failures, trouble.denied));
                let doubled = self.pace.min.saturating_mul(1 << failures.min(16));
                let wait = jittered(doubled.min(BACKOFF_MAX.max(self.pace.min)), luck);
                let turn = self.doubt(reason, failures.saturating_add(1), denied);
                Step {
                    tell: None,
                    wait,
                    turn,
                }
            }
        }
    }

    pub(super) fn status(&self, now: Instant) -> Status {
        match (&self.known, &self.trouble) {
            (None, None) => Status::Unknown,
            (None, Some(trouble)) => Status::Failing {
                reason: Arc::clone(&trouble.reason),
            },
            (Some(_), None) => Status::Live,
            (Some(known), Some(trouble)) => Status::Stale {
                age: now.duration_since(known.confirmed),
                reason: Arc::clone(&trouble.reason),
            },
        }
    }

    fn confirm(&mut self, set: EndpointSet, ttl: Duration, now: Instant, luck: u16) -> Step {
        let news = self.known.as_ref().is_none_or(|known| known.set != set);
        let tell = news.then(|| set.clone());
        match &mut self.known {
            // Equal content: the old value is kept, so that readers go on sharing it.
            Some(known) if !news => known.confirmed = now,
            known => {
                *known = Some(Known {
                    set,
                    confirmed: now,
                });
            }
        }
        Step {
            tell,
            wait: jittered(ttl.clamp(self.pace.min, self.pace.max), luck),
            turn: self.trouble.take().map(|_| Turn::Sure),
        }
    }

    fn doubt(&mut self, reason: Arc<str>, failures: u32, denied: Option<Instant>) -> Option<Turn> {
        let first = self.trouble.is_none();
        let turn = first.then(|| Turn::Doubt(Arc::clone(&reason)));
        self.trouble = Some(Trouble {
            reason,
            failures,
            denied,
        });
        turn
    }
}

/// What cut answers have named lately.
///
/// Each of them names another choice of a service that is too large for one answer. Taken one by
/// one they would throw a third of 1,500 instances out and take another third in with each
/// refresh; taken together they name all.
#[derive(Debug, Default)]
struct Sample {
    answers: u64,
    /// Who was named, and in which answer for the last time.
    named: HashMap<Target, (Arc<Endpoint>, u64)>,
}

/// Who is missing from so many cut answers in a row is gone.
///
/// Of 3,000 instances, of which each answer names 1,024, one that is there is taken for gone once
/// in 200,000 times.
const CUT_ANSWERS: u64 = 30;

impl Sample {
    /// Takes in a cut answer and returns who has been named lately.
    fn add(&mut self, known: Option<&EndpointSet>, answer: &EndpointSet) -> EndpointSet {
        if self.answers == 0 {
            // The answer before was whole: all that it named was there.
            self.name(known.into_iter().flatten());
        }
        self.answers += 1;
        self.name(answer);
        let answers = self.answers;
        self.named
            .retain(|_, (_, named)| answers - *named < CUT_ANSWERS);
        let endpoints = self.named.values();
        endpoints
            .map(|(endpoint, _)| Arc::clone(endpoint))
            .collect()
    }

    fn name<'a>(&mut self, endpoints: impl IntoIterator<Item = &'a Arc<Endpoint>>) {
        for endpoint in endpoints {
            self.named.insert(
                endpoint.target().clone(),
                (Arc::clone(endpoint), self.answers),
            );
        }
    }
}

/// Jitter only lengthens a wait, so that the smallest interval holds.
fn jittered(wait: Duration, luck: u16) -> Duration {
    wait + wait / JITTER * u32::from(luck) / u32::from(u16::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::endpoint::Endpoint;

    const SECOND: Duration = Duration::from_secs(1);

    fn refresh() -> Refresh {
        Refresh::new(Pace {
            min: SECOND,
            max: 60 * SECOND,
            grace: 5 * SECOND,
        })
    }

    fn found(targets: &[&str], ttl: Duration) -> Answer {
        let set = targets
            .iter()
            .map(|target| Endpoint::new(target.parse().unwrap()))
            .collect();
        Answer::Set {
            set,
            ttl,
            cut: false,
        }
    }

    fn cut(targets: &[&str]) -> Answer {
        match found(targets, Duration::ZERO) {
            Answer::Set { set, ttl, .. } => Answer::Set {
                set,
                ttl,
                cut: true,
            },
            other => other,
        }
    }

    fn denied() -> Answer {
        Answer::Denied {
            reason: "no such name".into(),
            ttl: Duration::ZERO,
        }
    }

    fn failed() -> Answer {
        Answer::Failed {
            reason: "refused".into(),
        }
    }

    #[test]
    fn nothing_is_known_before_the_first_answer_whatever_fails() {
        let mut refresh = refresh();
        let now = Instant::now();
        assert_eq!(refresh.status(now), Status::Unknown);
        let step = refresh.apply(failed(), now, 0);
        assert_eq!(step.tell, None);
        assert_eq!(step.turn, Some(Turn::Doubt("refused".into())));
        let reason = "refused".into();
        assert_eq!(refresh.status(now), Status::Failing { reason });
        let step = refresh.apply(found(&[], Duration::ZERO), now, 0);
        assert_eq!(step.tell, Some(EndpointSet::empty()));
        assert_eq!(step.turn, Some(Turn::Sure));
        assert_eq!(refresh.status(now), Status::Live);
    }

    #[test]
    fn the_same_content_is_told_once() {
        let mut refresh = refresh();
        let now = Instant::now();
        let answer = found(&["10.0.0.1:80"], Duration::ZERO);
        assert!(refresh.apply(answer.clone(), now, 0).tell.is_some());
        assert!(refresh.apply(answer.clone(), now, 0).tell.is_none());
        refresh.apply(failed(), now, 0);
        assert!(refresh.apply(answer, now, 0).tell.is_none());
        let other = found(&["10.0.0.2:80"], Duration::ZERO);
        assert!(refresh.apply(other, now, 0).tell.is_some());
    }

    #[test]
    fn the_ttl_sets_the_pace_between_floor_and_ceiling_and_jitter_only_lengthens_it() {
        let mut refresh = refresh();
        let now = Instant::now();
        let mut wait = |ttl, luck| refresh.apply(found(&["a:1"], ttl), now, luck).wait;
        assert_eq!(wait(Duration::ZERO, 0), SECOND);
        assert_eq!(wait(7 * SECOND, 0), 7 * SECOND);
        assert_eq!(wait(86_400 * SECOND, 0), 60 * SECOND);
        assert_eq!(wait(8 * SECOND, u16::MAX), 10 * SECOND);
        assert!(wait(SECOND, u16::MAX / 2) < SECOND.mul_f64(1.1251));
    }

    #[test]
    fn failures_keep_the_set_and_back_off_to_a_bound() {
        let mut refresh = refresh();
        let start = Instant::now();
        refresh.apply(found(&["10.0.0.1:80"], Duration::ZERO), start, 0);
        let mut now = start;
        let mut waits = Vec::new();
        for attempt in 0..40 {
            let step = refresh.apply(failed(), now, 0);
            assert_eq!(step.tell, None);
            assert_eq!(step.turn.is_some(), attempt == 0);
            waits.push(step.wait.as_secs());
            now += step.wait;
        }
        assert_eq!(waits.get(..5).unwrap(), [1, 2, 4, 5, 5]);
        assert!(waits.iter().skip(3).all(|wait| *wait == 5));
        let age = now.duration_since(start);
        let reason = "refused".into();
        assert_eq!(refresh.status(now), Status::Stale { age, reason });
        let step = refresh.apply(found(&["10.0.0.1:80"], Duration::ZERO), now, 0);
        assert_eq!((step.tell, step.turn), (None, Some(Turn::Sure)));
        assert_eq!(refresh.apply(failed(), now, 0).wait, SECOND);
    }

    #[test]
    fn a_denied_name_empties_the_set_only_after_the_grace_period() {
        let mut refresh = refresh();
        let start = Instant::now();
        refresh.apply(found(&["10.0.0.1:80"], 30 * SECOND), start, 0);
        for second in 0..5 {
            let now = start + second * SECOND;
            let step = refresh.apply(denied(), now, 0);
            assert_eq!((step.tell, step.wait), (None, SECOND));
            assert!(matches!(refresh.status(now), Status::Stale { .. }));
        }
        let now = start + 5 * SECOND;
        let step = refresh.apply(denied(), now, 0);
        assert_eq!(step.tell, Some(EndpointSet::empty()));
        assert_eq!(step.turn, Some(Turn::Sure));
        assert_eq!(refresh.status(now), Status::Live);
        assert_eq!(refresh.apply(denied(), now, 0).tell, None);
        let back = refresh.apply(found(&["10.0.0.1:80"], Duration::ZERO), now, 0);
        assert!(back.tell.is_some());
    }

    #[test]
    fn an_answer_within_the_grace_period_ends_the_doubt() {
        let mut refresh = refresh();
        let start = Instant::now();
        let answer = found(&["10.0.0.1:80"], Duration::ZERO);
        refresh.apply(answer.clone(), start, 0);
        refresh.apply(denied(), start, 0);
        assert_eq!(refresh.apply(answer, start + 4 * SECOND, 0).tell, None);
        let late = start + 6 * SECOND;
        assert_eq!(refresh.apply(denied(), late, 0).tell, None);
    }

    #[test]
    fn a_failure_between_two_denials_does_not_restart_the_grace_period() {
        let mut refresh = refresh();
        let start = Instant::now();
        refresh.apply(found(&["10.0.0.1:80"], Duration::ZERO), start, 0);
        refresh.apply(denied(), start, 0);
        refresh.apply(failed(), start + SECOND, 0);
        let step = refresh.apply(denied(), start + 5 * SECOND, 0);
        assert_eq!(step.tell, Some(EndpointSet::empty()));
    }

    #[test]
    fn a_denial_is_believed_at_once_when_nothing_was_known_or_no_grace_is_wanted() {
        let now = Instant::now();
        let mut fresh = refresh();
        let step = fresh.apply(denied(), now, 0);
        assert_eq!(step.tell, Some(EndpointSet::empty()));
        assert_eq!(step.turn, None);
        let mut hasty = refresh();
        hasty.pace.grace = Duration::ZERO;
        hasty.apply(found(&["10.0.0.1:80"], Duration::ZERO), now, 0);
        let step = hasty.apply(denied(), now, 0);
        assert_eq!(step.tell, Some(EndpointSet::empty()));
    }

    #[test]
    fn cut_answers_add_up_to_all_that_were_named_lately() {
        let mut refresh = refresh();
        let now = Instant::now();
        let tell = |step: Step| step.tell.map(|set| set.len());
        refresh.apply(found(&["a:1", "b:1"], Duration::ZERO), now, 0);
        // All of the whole answer before are kept, and none is told to go while the choice varies.
        assert_eq!(tell(refresh.apply(cut(&["b:1", "c:1"]), now, 0)), Some(3));
        for _ in 0..10 {
            assert_eq!(tell(refresh.apply(cut(&["a:1", "b:1"]), now, 0)), None);
            assert_eq!(tell(refresh.apply(cut(&["b:1", "c:1"]), now, 0)), None);
        }
        // A failure says nothing about who is there.
        refresh.apply(failed(), now, 0);
        for _ in 0..28 {
            assert_eq!(tell(refresh.apply(cut(&["b:1", "c:1"]), now, 0)), None);
        }
        assert_eq!(tell(refresh.apply(cut(&["b:1", "c:1"]), now, 0)), Some(2));
        // A whole answer is the whole truth.
        let whole = found(&["c:1"], Duration::ZERO);
        assert_eq!(tell(refresh.apply(whole, now, 0)), Some(1));
        assert_eq!(tell(refresh.apply(cut(&["d:1"]), now, 0)), Some(2));
    }
}
