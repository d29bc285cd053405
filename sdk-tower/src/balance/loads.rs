//! From what servers report to the weights of a snapshot; the driver does it.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::candidate::Candidate;
use super::report::{self, BLACKOUT, EXPIRES};
use super::snapshot::Snapshot;
use super::tick::Tick;

/// A factor that has moved by less is not worth a new snapshot.
const WORTH: f32 = 0.1;

/// Since when endpoints report.
#[derive(Debug, Default)]
pub(crate) struct Loads {
    since: HashMap<u32, Tick>,
}

impl Loads {
    /// Reads what was reported, sets the factors, and says whether a new snapshot is due.
    pub(crate) fn weigh<S>(&mut self, snapshot: &Snapshot<S>, now: Tick) -> bool {
        let candidates: Vec<_> = snapshot
            .entries()
            .map(|entry| Arc::clone(entry.candidate()))
            .collect();
        let weights: Vec<_> = candidates
            .iter()
            .map(|candidate| self.weight(candidate, now))
            .collect();
        if self.since.len() > candidates.len() {
            let ids: HashSet<u32> = candidates.iter().map(|candidate| candidate.id()).collect();
            self.since.retain(|id, _| ids.contains(id));
        }
        let factors = report::factors(&weights);
        let moved = candidates
            .iter()
            .zip(&factors)
            .any(|(candidate, factor)| (factor / candidate.factor() - 1.0).abs() > WORTH);
        if moved {
            for (candidate, factor) in candidates.iter().zip(factors) {
                candidate.set_factor(factor);
            }
        }
        moved
    }

    /// The weight that counts of an endpoint, if one does.
    fn weight<S>(&mut self, candidate: &Candidate<S>, now: Tick) -> Option<f32> {
        let (weight, at) = candidate.report()?;
        if now.reached(at.plus(EXPIRES)) {
            candidate.forget_report();
            self.since.remove(&candidate.id());
            return None;
        }
        let since = *self.since.entry(candidate.id()).or_insert(now);
        now.reached(since.plus(BLACKOUT)).then_some(weight)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn at(seconds: u64) -> Tick {
        Tick::default().plus(Duration::from_secs(seconds))
    }

    fn snapshot(count: u32) -> Snapshot<()> {
        let member = |id| {
            let target = format!("10.0.0.1:{id}").parse().unwrap();
            (Arc::new(Candidate::new(id, target, ())), 1, 1)
        };
        Snapshot::new((1..=count).map(member).collect(), at(0))
    }

    fn factors(snapshot: &Snapshot<()>) -> Vec<f32> {
        let entries = snapshot.entries();
        entries.map(|entry| entry.candidate().factor()).collect()
    }

    fn report(snapshot: &Snapshot<()>, weights: &[f32], now: Tick) {
        for (entry, weight) in snapshot.entries().zip(weights) {
            entry.candidate().reported(Ok(*weight), now);
        }
    }

    #[test]
    fn reports_count_after_the_blackout_and_until_they_expire() {
        let snapshot = snapshot(3);
        let mut loads = Loads::default();
        report(&snapshot, &[100.0, 300.0], at(1));
        assert!(!loads.weigh(&snapshot, at(1)));
        report(&snapshot, &[100.0, 300.0], at(11));
        assert!(loads.weigh(&snapshot, at(11)));
        assert_eq!(factors(&snapshot), [0.5, 1.5, 1.0]);
        assert!(!loads.weigh(&snapshot, at(12)), "nothing has changed");
        assert!(!loads.weigh(&snapshot, at(190)));
        assert!(loads.weigh(&snapshot, at(191)));
        assert_eq!(factors(&snapshot), [1.0, 1.0, 1.0]);
        assert!(loads.since.is_empty());
    }

    #[test]
    fn small_changes_make_no_new_snapshot() {
        let snapshot = snapshot(2);
        let mut loads = Loads::default();
        report(&snapshot, &[100.0, 100.0], at(0));
        loads.weigh(&snapshot, at(0));
        assert!(!loads.weigh(&snapshot, at(20)));
        report(&snapshot, &[100.0, 110.0], at(21));
        assert!(!loads.weigh(&snapshot, at(21)));
        report(&snapshot, &[100.0, 150.0], at(22));
        assert!(loads.weigh(&snapshot, at(22)));
    }

    #[test]
    fn a_bad_report_is_counted_and_changes_nothing() {
        let snapshot = snapshot(1);
        let candidate = snapshot.entries().next().unwrap().candidate();
        candidate.reported(Ok(5.0), at(3));
        candidate.reported(Err(report::Malformed), at(4));
        assert_eq!(candidate.report(), Some((5.0, at(3))));
        assert_eq!(candidate.bad_reports(), 1);
    }
}
