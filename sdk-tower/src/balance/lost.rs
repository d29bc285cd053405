//! A source that loses most of its endpoints at one time is not believed at once.
//!
//! When the network between Consul's servers and the instances is cut, most of them drop out of
//! health though they can be called. [`Guard`] remembers who has left of late, and says who is to
//! stay meanwhile.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use crate::endpoint::{Endpoint, EndpointSet, Target, farthest};
use crate::telemetry::Telemetry;

use super::tick::Tick;

/// What leaves within this time leaves "at one time": members that are cut off are found out one
/// after the other, within some seconds each, by Serf.
const WINDOW: Duration = Duration::from_secs(30);

/// What happens to endpoints when a source loses most of them at one time.
///
/// At one time is within 30 s, and most is so many that fewer than the
/// [`panic_threshold`](crate::channel::Builder::panic_threshold) are left of the largest set
/// in that time. Endpoints that are replaced by others are not lost, and a set that becomes empty
/// is believed in any case: that nobody is there is an answer of its own.
///
/// They leave for good when the time given is over, or as soon as so many are there again that
/// the threshold is reached.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub enum Lost {
    /// They leave, as always.
    ///
    /// The default. An endpoint that has left may be on its way down, and somebody else may
    /// listen at its address soon: to call it nevertheless can lose a request that another
    /// endpoint would have answered. Whoever knows that his instances keep their addresses may
    /// choose otherwise.
    #[default]
    Leave,
    /// For so long they are called if nobody else can be.
    ///
    /// They come after all others, as if they had the greatest priority number: no request goes
    /// to them that would not have failed otherwise.
    LastResort(Duration),
    /// For so long they stay in rotation.
    ///
    /// What is left is not swamped by the requests of all. Endpoints that are truly gone refuse
    /// connections, which costs no request, or are ejected.
    Stay(Duration),
}

impl Lost {
    /// Why this cannot be used, if it cannot.
    pub(crate) fn refusal(self) -> Option<String> {
        const DAY: Duration = Duration::from_secs(24 * 3_600);
        match self {
            Self::LastResort(time) | Self::Stay(time) if time.is_zero() || time > DAY => Some(
                format!("lost_endpoints are kept for {time:?}; give up to a day"),
            ),
            Self::Leave | Self::LastResort(_) | Self::Stay(_) => None,
        }
    }

    /// For how long endpoints are kept.
    fn time(self) -> Option<Duration> {
        match self {
            Self::Leave => None,
            Self::LastResort(time) | Self::Stay(time) => Some(time),
        }
    }
}

/// Knows who has left of late.
#[derive(Debug)]
pub(crate) struct Guard {
    lost: Lost,
    threshold: f64,
    last: EndpointSet,
    /// The largest sets of the window: each is smaller than the one before.
    peaks: VecDeque<(Tick, usize)>,
    gone: HashMap<Target, (Arc<Endpoint>, Tick)>,
    held: Option<Held>,
    telemetry: Arc<Telemetry>,
}

/// Endpoints that are kept though the source lists them no more.
#[derive(Debug)]
struct Held {
    until: Tick,
    /// How many there were before.
    before: usize,
    endpoints: HashMap<Target, Arc<Endpoint>>,
}

impl Guard {
    pub(crate) fn new(lost: Lost, threshold: f64) -> Self {
        Self {
            lost,
            threshold,
            last: EndpointSet::empty(),
            peaks: VecDeque::new(),
            gone: HashMap::new(),
            held: None,
            telemetry: Arc::default(),
        }
    }

    /// The same, saying of which service it speaks.
    pub(crate) fn telling(mut self, telemetry: &Arc<Telemetry>) -> Self {
        self.telemetry = Arc::clone(telemetry);
        self
    }

    /// Takes note of a new set.
    pub(crate) fn note(&mut self, set: &EndpointSet, now: Tick) {
        let Some(time) = self.lost.time() else { return };
        let last = std::mem::replace(&mut self.last, set.clone());
        if set.is_empty() {
            *self = Self::new(self.lost, self.threshold).telling(&self.telemetry);
            return;
        }
        for endpoint in &last {
            let target = endpoint.target();
            if set.get(target).is_none() {
                self.gone
                    .insert(target.clone(), (Arc::clone(endpoint), now));
            }
        }
        self.gone.retain(|target, (_, left)| {
            set.get(target).is_none() && !now.reached(left.plus(WINDOW))
        });
        let peak = self.peak(set.len(), now);
        let held = self.held.get_or_insert_with(|| Held {
            until: now.plus(time),
            before: peak,
            endpoints: HashMap::new(),
        });
        if is_share(set.len(), held.before, self.threshold) {
            if !held.endpoints.is_empty() {
                let service = self.telemetry.service();
                tracing::info!(service, "the source lists most endpoints again");
                self.gone.clear();
            }
            self.held = None;
            return;
        }
        let before = held.endpoints.len();
        held.endpoints.retain(|target, _| set.get(target).is_none());
        for (target, (endpoint, _)) in self.gone.drain() {
            held.endpoints.insert(target, endpoint);
        }
        if before == 0 {
            let (left, lost) = (set.len(), held.endpoints.len());
            tracing::warn!(
                service = self.telemetry.service(),
                left,
                lost,
                "the source has lost most endpoints, they are kept"
            );
        }
    }

    /// The set with those that are kept.
    pub(crate) fn complete(&self, set: &EndpointSet) -> EndpointSet {
        let Some(held) = self.held.as_ref().filter(|held| !held.endpoints.is_empty()) else {
            return set.clone();
        };
        let far = farthest(set);
        let kept = held.endpoints.values().map(|endpoint| match self.lost {
            Lost::LastResort(_) => Arc::new(Endpoint::clone(endpoint).into_last_resort(far)),
            Lost::Leave | Lost::Stay(_) => Arc::clone(endpoint),
        });
        set.iter().map(Arc::clone).chain(kept).collect()
    }

    /// The last set, if it is to be applied again because the time of those kept is over.
    pub(crate) fn expire(&mut self, now: Tick) -> Option<EndpointSet> {
        let held = self.held.as_ref()?;
        if !now.reached(held.until) {
            return None;
        }
        let service = self.telemetry.service();
        tracing::info!(service, "the endpoints that the source has lost leave now");
        self.held = None;
        self.gone.clear();
        self.peaks.clear();
        Some(self.last.clone())
    }

    /// The size of the largest set within the window.
    fn peak(&mut self, len: usize, now: Tick) -> usize {
        while self.peaks.back().is_some_and(|(_, size)| *size <= len) {
            self.peaks.pop_back();
        }
        self.peaks.push_back((now, len));
        // A set counts for as long as it was in force: until the next one came.
        while let [_, (next, _), ..] = self.peaks.make_contiguous() {
            if !now.reached(next.plus(WINDOW)) {
                break;
            }
            self.peaks.pop_front();
        }
        self.peaks.front().map_or(len, |(_, size)| *size)
    }
}

/// Whether a part is at least this share of all.
pub(crate) fn is_share(part: usize, all: usize, share: f64) -> bool {
    #[expect(
        clippy::cast_precision_loss,
        reason = "a number of endpoints is far below 2^52"
    )]
    let (part, all) = (part as f64, all as f64);
    part >= all * share
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRACE: Duration = Duration::from_secs(60);

    fn at(seconds: u64) -> Tick {
        Tick::default().plus(Duration::from_secs(seconds))
    }

    fn set(ports: impl IntoIterator<Item = u16>) -> EndpointSet {
        let endpoint = |port| Endpoint::new(format!("10.0.0.1:{port}").parse().unwrap());
        ports.into_iter().map(endpoint).collect()
    }

    fn ports(set: &EndpointSet) -> Vec<u16> {
        set.iter()
            .map(|endpoint| endpoint.target().port())
            .collect()
    }

    /// The ports in force after each of these sets.
    fn after(lost: Lost, sets: &[(u64, EndpointSet)]) -> Vec<u16> {
        let mut guard = Guard::new(lost, 0.5);
        let mut now = Vec::new();
        for (second, set) in sets {
            guard.note(set, at(*second));
            now = ports(&guard.complete(set));
        }
        now
    }

    #[test]
    fn nine_of_ten_that_leave_at_once_stay_for_the_time_given() {
        let mut guard = Guard::new(Lost::Stay(GRACE), 0.5);
        guard.note(&set(1..=10), at(0));
        let one = set([4]);
        guard.note(&one, at(100));
        assert_eq!(guard.complete(&one), set(1..=10));
        assert_eq!(guard.expire(at(159)), None);
        assert_eq!(guard.expire(at(160)), Some(one.clone()));
        assert_eq!(guard.complete(&one), one);
        // What is over is over.
        guard.note(&one, at(161));
        assert_eq!(guard.complete(&one), one);
    }

    #[test]
    fn as_a_last_resort_they_come_after_all_others() {
        let mut guard = Guard::new(Lost::LastResort(GRACE), 0.5);
        guard.note(&set(1..=10), at(0));
        guard.note(&set([4]), at(1));
        let kept = guard.complete(&set([4]));
        for endpoint in &kept {
            let is_left = endpoint.target().port() == 4;
            assert_eq!(endpoint.priority(), if is_left { 1 } else { u16::MAX });
        }
        assert_eq!(kept.len(), 10);
    }

    #[test]
    fn a_last_resort_that_was_near_comes_after_those_that_are_far() {
        let near = |port: u16, far: u16| {
            let endpoint = Endpoint::new(format!("10.0.0.1:{port}").parse().unwrap());
            endpoint.with_distance(far)
        };
        let mut guard = Guard::new(Lost::LastResort(GRACE), 0.5);
        let all = [near(1, 0), near(2, 0), near(3, 1)];
        guard.note(&all.into_iter().collect(), at(0));
        let left: EndpointSet = [near(3, 1)].into_iter().collect();
        guard.note(&left, at(1));
        let kept = guard.complete(&left);
        let ranks = kept.iter().map(|e| (e.distance(), e.priority()));
        assert_eq!(
            ranks.collect::<Vec<_>>(),
            [(1, u16::MAX), (1, u16::MAX), (1, 1)]
        );
    }

    #[test]
    fn half_may_leave() {
        let stay = Lost::Stay(GRACE);
        assert_eq!(after(stay, &[(0, set(1..=10)), (1, set(1..=5))]).len(), 5);
        assert_eq!(after(stay, &[(0, set(1..=10)), (1, set(1..=4))]).len(), 10);
        assert_eq!(after(stay, &[(0, set([1, 2])), (1, set([1]))]), [1]);
        assert_eq!(after(stay, &[(0, set([1])), (1, set([2]))]), [2]);
    }

    #[test]
    fn many_that_leave_one_after_the_other_within_seconds_are_lost_together() {
        let one_by_one: Vec<_> = (0..10_u16)
            .map(|n| (u64::from(n), set(1..=10 - n)))
            .collect();
        assert_eq!(after(Lost::Stay(GRACE), &one_by_one).len(), 10);
        // Within minutes they are not.
        let slowly: Vec<_> = (0..10_u16)
            .map(|n| (u64::from(n) * 60, set(1..=10 - n)))
            .collect();
        assert_eq!(after(Lost::Stay(GRACE), &slowly), [1]);
    }

    #[test]
    fn a_large_set_counts_until_the_next_came() {
        let sets = [(0, set(1..=10)), (3_000, set(1..=6)), (3_010, set(1..=3))];
        assert_eq!(after(Lost::Stay(GRACE), &sets).len(), 10);
    }

    #[test]
    fn endpoints_that_are_replaced_are_not_lost() {
        let sets = [(0, set(1..=5)), (1, set(6..=10))];
        assert_eq!(after(Lost::Stay(GRACE), &sets), [6, 7, 8, 9, 10]);
        // One at a time, the last of the new ones being late.
        let rolling: Vec<_> = (0..10_u16)
            .map(|n| (u64::from(n), set(n + 2..=10 + n)))
            .collect();
        assert_eq!(after(Lost::Stay(GRACE), &rolling).len(), 9);
    }

    #[test]
    fn when_most_are_back_the_rest_leave() {
        let sets = [(0, set(1..=10)), (1, set([1])), (90, set(1..=4))];
        assert_eq!(after(Lost::Stay(GRACE), &sets).len(), 10);
        let sets = [(0, set(1..=10)), (1, set([1])), (50, set(1..=6))];
        assert_eq!(after(Lost::Stay(GRACE), &sets), [1, 2, 3, 4, 5, 6]);
    }

    #[test]
    fn an_empty_set_is_believed() {
        let sets = [(0, set(1..=10)), (1, set([]))];
        assert!(after(Lost::Stay(GRACE), &sets).is_empty());
        let sets = [(0, set(1..=10)), (1, set([3])), (2, set([])), (3, set([3]))];
        assert_eq!(after(Lost::Stay(GRACE), &sets), [3]);
    }

    #[test]
    fn by_default_they_leave() {
        let sets = [(0, set(1..=10)), (1, set([3]))];
        assert_eq!(after(Lost::default(), &sets), [3]);
    }

    #[test]
    fn a_source_that_flaps_leaves_nothing_behind() {
        let mut guard = Guard::new(Lost::Stay(GRACE), 0.5);
        for n in 0..60_000_u64 {
            let now = Tick::default().plus(Duration::from_millis(n));
            let set = if n.is_multiple_of(2) {
                set(1..=10)
            } else {
                set(1..=6)
            };
            guard.note(&set, now);
            assert!(guard.peaks.len() <= 2 && guard.gone.len() <= 4);
        }
        assert!(guard.held.is_none());
    }

    #[test]
    fn times_out_of_range_are_refused() {
        assert_eq!(Lost::Leave.refusal(), None);
        assert_eq!(Lost::Stay(GRACE).refusal(), None);
        assert!(Lost::Stay(Duration::ZERO).refusal().is_some());
        assert!(Lost::LastResort(Duration::MAX).refusal().is_some());
    }
}
