//! Who fares badly, compared with the others: pure rules over what was counted.

use std::time::Duration;

use super::eject::Ejection;
use super::tick::Tick;

/// Half of the time over which results are counted: with two buckets this gives the 10 s of
/// gRPC's outlier detection (A50), of which the older half goes at once.
const BUCKET: Duration = Duration::from_secs(5);

/// How much longer a bucket stays open where requests are rare. The rule shall not depend on the
/// rate (linkerd left the moving average for a window for that reason), but what is older says
/// nothing of now.
const LONGEST_BUCKET: Duration = Duration::from_secs(30);

/// How far below the mean a success rate must be in any case: where all others are perfect, the
/// deviation is next to nothing, and so would be the reason.
const LEAST_GAP: f64 = 0.1;

/// The least number of slow answers.
const LEAST_SLOW: u64 = 5;

/// What an endpoint has done since it joined.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Tally {
    pub(crate) answers: u64,
    pub(crate) failures: u64,
    /// The answers that took too long.
    pub(crate) slow: u64,
}

/// What an endpoint did of late: two buckets, read off from counts that only grow.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Window {
    older: Tally,
    newer: Tally,
    /// When the newer bucket was begun.
    since: Tick,
}

impl Tally {
    pub(crate) fn requests(self) -> u64 {
        self.answers.saturating_add(self.failures)
    }

    fn after(self, before: Self) -> Self {
        Self {
            answers: self.answers.saturating_sub(before.answers),
            failures: self.failures.saturating_sub(before.failures),
            slow: self.slow.saturating_sub(before.slow),
        }
    }

    /// The share of requests that succeeded; none without requests.
    pub(crate) fn success(self) -> Option<f64> {
        #[expect(
            clippy::cast_precision_loss,
            reason = "counts of some seconds are far below 2^52"
        )]
        let share = self.answers as f64 / self.requests() as f64;
        share.is_finite().then_some(share)
    }

    /// Whether slow answers are the rule and not the exception.
    pub(crate) fn is_slow(self) -> bool {
        self.slow >= LEAST_SLOW && self.slow.saturating_mul(2) >= self.answers
    }
}

impl Window {
    pub(crate) fn new(tally: Tally, now: Tick) -> Self {
        Self {
            older: tally,
            newer: tally,
            since: now,
        }
    }

    /// What was done within it, up to this reading; `enough` is how many requests a judgement
    /// needs.
    pub(crate) fn read(&mut self, tally: Tally, now: Tick, enough: u32) -> Tally {
        let recent = tally.after(self.newer).requests() >= u64::from(enough / 2);
        let over = |time| now.reached(self.since.plus(time));
        if over(LONGEST_BUCKET) || (recent && over(BUCKET)) {
            *self = Self {
                older: self.newer,
                newer: tally,
                since: now,
            };
        }
        tally.after(self.older)
    }
}

/// The success rate below which an endpoint is an outlier, if there are enough to compare.
///
/// As gRPC's outlier detection has it (A50): the mean minus the deviation times a factor, over
/// the endpoints that had enough requests.
pub(crate) fn least_success(ejection: &Ejection, tallies: &[Tally]) -> Option<f64> {
    if ejection.success_rate <= 0.0 {
        return None;
    }
    let rates: Vec<f64> = tallies
        .iter()
        .filter_map(|tally| rate(ejection, *tally))
        .collect();
    if rates.len() < ejection.success_rate_hosts {
        return None;
    }
    #[expect(
        clippy::cast_precision_loss,
        reason = "a number of endpoints is far below 2^52"
    )]
    let count = rates.len() as f64;
    let mean = rates.iter().sum::<f64>() / count;
    let variance = rates.iter().map(|rate| (rate - mean).powi(2)).sum::<f64>() / count;
    let gap = (variance.sqrt() * ejection.success_rate).max(LEAST_GAP);
    Some(mean - gap)
}

/// The success rate of an endpoint that had enough requests.
pub(crate) fn rate(ejection: &Ejection, tally: Tally) -> Option<f64> {
    let enough = tally.requests() >= u64::from(ejection.success_rate_requests);
    tally.success().filter(|_| enough)
}

/// The latencies of all endpoints, in order, to tell the middle of the others.
#[derive(Debug)]
pub(crate) struct Latencies(Vec<f32>);

impl Latencies {
    pub(crate) fn new(mut seconds: Vec<f32>) -> Self {
        seconds.sort_unstable_by(f32::total_cmp);
        Self(seconds)
    }

    /// Above how many seconds an answer of an endpoint is slow; none if there are not two others.
    pub(crate) fn limit(&self, ejection: &Ejection, own: Option<f32>) -> Option<f32> {
        if ejection.latency <= 0.0 {
            return None;
        }
        let own = own.and_then(|own| self.0.binary_search_by(|s| s.total_cmp(&own)).ok());
        let others = self.0.len() - usize::from(own.is_some());
        if others < 2 {
            return None;
        }
        // The lower middle: with two others, the faster one is what is possible.
        let middle = (others - 1) / 2;
        let at = match own {
            Some(own) if own <= middle => middle + 1,
            _ => middle,
        };
        #[expect(clippy::cast_possible_truncation, reason = "a factor of a few digits")]
        let factor = ejection.latency as f32;
        let floor = ejection.latency_floor.as_secs_f32();
        self.0.get(at).map(|middle| (factor * middle).max(floor))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Tick {
        Tick::default().plus(Duration::from_millis(millis))
    }

    fn tally(answers: u64, failures: u64) -> Tally {
        Tally {
            answers,
            failures,
            slow: 0,
        }
    }

    fn outliers(tallies: &[Tally]) -> Vec<usize> {
        let ejection = Ejection::default();
        let Some(least) = least_success(&ejection, tallies) else {
            return Vec::new();
        };
        let below = |tally: &Tally| rate(&ejection, *tally).is_some_and(|rate| rate < least);
        (0..tallies.len())
            .filter(|at| below(&tallies[*at]))
            .collect()
    }

    #[test]
    fn one_of_five_that_fails_more_often_is_an_outlier() {
        let mut all = vec![tally(1_000, 0); 5];
        all[3] = tally(500, 500);
        assert_eq!(outliers(&all), [3]);
        all[3] = tally(0, 1_000);
        assert_eq!(outliers(&all), [3]);
    }

    #[test]
    fn where_all_fail_alike_nobody_is_an_outlier() {
        assert!(outliers(&vec![tally(500, 500); 10]).is_empty());
        assert!(outliers(&vec![tally(0, 1_000); 10]).is_empty());
        let spread: Vec<_> = (0..10).map(|n| tally(900 + n * 10, 100 - n * 10)).collect();
        assert!(outliers(&spread).is_empty());
    }

    #[test]
    fn a_few_failures_among_the_perfect_are_no_reason() {
        let mut all = vec![tally(1_000, 0); 10];
        all[0] = tally(950, 50);
        assert!(outliers(&all).is_empty());
        all[0] = tally(850, 150);
        assert_eq!(outliers(&all), [0]);
    }

    #[test]
    fn too_few_endpoints_or_requests_are_not_judged() {
        let mut all = vec![tally(1_000, 0); 4];
        all[0] = tally(0, 1_000);
        assert!(outliers(&all).is_empty());
        let mut all = vec![tally(99, 0); 10];
        all[0] = tally(0, 99);
        assert!(outliers(&all).is_empty());
        // Those with too few do not count as endpoints.
        let mut all = vec![tally(1_000, 0); 4];
        all.push(tally(0, 50));
        assert!(outliers(&all).is_empty());
    }

    #[test]
    fn a_window_forgets_what_is_ten_seconds_old() {
        let mut window = Window::new(tally(0, 0), at(0));
        assert_eq!(window.read(tally(100, 0), at(1_000), 100), tally(100, 0));
        assert_eq!(window.read(tally(600, 0), at(5_000), 100), tally(600, 0));
        assert_eq!(
            window.read(tally(600, 300), at(9_000), 100),
            tally(600, 300)
        );
        assert_eq!(window.read(tally(600, 400), at(10_000), 100), tally(0, 400));
    }

    #[test]
    fn a_window_waits_for_requests_where_they_are_rare_but_not_for_ever() {
        let mut window = Window::new(tally(0, 0), at(0));
        // Three requests each second.
        for second in 1..=29 {
            let read = window.read(tally(3 * second, 0), at(second * 1_000), 100);
            assert_eq!(read, tally(3 * second, 0));
        }
        let mut idle = Window::new(tally(0, 0), at(0));
        idle.read(tally(10, 0), at(30_000), 100);
        assert_eq!(idle.read(tally(10, 0), at(60_000), 100), tally(0, 0));
    }

    #[test]
    fn slow_answers_must_be_the_rule() {
        let slow = |answers, slow| {
            let failures = 0;
            Tally {
                answers,
                failures,
                slow,
            }
            .is_slow()
        };
        assert!(slow(5, 5) && slow(10, 5));
        assert!(!slow(4, 4) && !slow(11, 5) && !slow(0, 0));
    }

    #[test]
    fn the_limit_is_a_multiple_of_the_middle_of_the_others() {
        let ejection = Ejection::default();
        let limit = |known: &[f32], own| Latencies::new(known.to_vec()).limit(&ejection, own);
        assert_eq!(limit(&[0.2, 0.02, 0.01, 0.03], Some(0.2)), Some(0.02 * 5.0));
        assert_eq!(
            limit(&[0.2, 0.02, 0.01, 0.03], Some(0.01)),
            Some(0.03 * 5.0)
        );
        // One that has not answered compares with all.
        assert_eq!(limit(&[0.02, 0.01, 0.03], None), Some(0.02 * 5.0));
        // Nobody is slow below the floor.
        assert_eq!(limit(&[1e-5, 1e-5, 1e-5], Some(1e-5)), Some(0.005));
        // One other is no comparison.
        assert_eq!(limit(&[0.02, 0.2], Some(0.2)), None);
        assert_eq!(limit(&[0.02], None), None);
        let off = ejection.latency(0.0, Duration::ZERO);
        assert_eq!(Latencies::new(vec![0.1; 9]).limit(&off, None), None);
    }
}
