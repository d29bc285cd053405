//! The options of ejection: when an endpoint that fares badly is put out of rotation, for how long.

use std::fmt;
use std::time::Duration;

/// More doublings would overflow long after any longest time has been reached.
const MOST_DOUBLINGS: u32 = 16;

/// When an endpoint is put out of rotation, and for how long.
///
/// An endpoint that accepts connections and fares badly is left alone for a while. There are
/// three rules; each can be switched off:
///
/// * [`consecutive_failures`](Self::consecutive_failures): it fails again and again;
/// * [`success_rate`](Self::success_rate): it fails more often than the others;
/// * [`latency`](Self::latency): it is much slower than the others.
///
/// After its time one request at a time tries it. If that succeeds, it comes back with 1, 2, 4
/// and 8 requests at a time before it is treated like the others. If it fails, the time doubles.
/// An endpoint that was put out for failures is also tried as soon as the service has had 1,000
/// requests since its last failure: where there is much traffic, one request in a thousand is a
/// small price for coming back within seconds.
///
/// Never more than [`max_share`](Self::max_share) of the endpoints are out, and never the last
/// one. An endpoint that would be ejected but for that counts as bad all the same when it is
/// judged whether [too few are left](crate::channel::Builder::panic_threshold).
///
/// Of endpoints that accept no connection this says nothing: they are left alone in any case.
///
/// # Examples
///
/// ```
/// use std::time::Duration;
///
/// use lictor_tower::channel::Ejection;
///
/// let careful = Ejection::default()
///     .consecutive_failures(3)
///     .times(Duration::from_secs(5), Duration::from_secs(300))
///     .max_share(0.1);
/// # let _ = careful;
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
#[must_use = "options do nothing until a channel is built with them"]
pub struct Ejection {
    pub(super) consecutive_failures: u32,
    pub(super) success_rate: f64,
    pub(super) success_rate_hosts: usize,
    pub(super) success_rate_requests: u32,
    pub(super) latency: f64,
    pub(super) latency_floor: Duration,
    pub(super) base: Duration,
    pub(super) longest: Duration,
    pub(super) max_share: f64,
}

impl Default for Ejection {
    fn default() -> Self {
        Self {
            consecutive_failures: 5,
            success_rate: 1.9,
            success_rate_hosts: 5,
            success_rate_requests: 100,
            latency: 5.0,
            latency_floor: Duration::from_millis(5),
            base: Duration::from_secs(1),
            longest: Duration::from_secs(60),
            max_share: 0.5,
        }
    }
}

impl Ejection {
    /// No endpoint is ever ejected.
    ///
    /// For a service whose answers do not depend on the endpoint that gives them, or under a
    /// mesh that ejects already.
    pub fn off() -> Self {
        Self {
            max_share: 0.0,
            ..Self::default()
        }
    }

    /// Sets after how many failures in a row, with no success between them, an endpoint is out.
    ///
    /// 0 switches the rule off. Default 5, as in Envoy (`consecutive_5xx`) and in Finagle.
    pub fn consecutive_failures(mut self, most: u32) -> Self {
        self.consecutive_failures = most;
        self
    }

    /// Sets how far below the others' success rate an endpoint may lie, in standard deviations.
    ///
    /// An endpoint is out if the share of its requests that succeed, over the last 5 to 10
    /// seconds, is below the mean of all minus so many standard deviations, and at least a tenth
    /// below the mean: without that floor one failure among thousands would be an outlier. Where
    /// requests are rare, the time is up to a minute long.
    ///
    /// Above 0; 0 switches the rule off. Default 1.9, as in Envoy and in gRPC (A50).
    pub fn success_rate(mut self, deviations: f64) -> Self {
        self.success_rate = deviations;
        self
    }

    /// Sets what [`success_rate`](Self::success_rate) needs: so many endpoints with so many
    /// requests each.
    ///
    /// Three endpoints or more, one request or more. Default 5 and 100, as in Envoy and in gRPC
    /// (A50): fewer endpoints have no deviation to speak of.
    pub fn success_rate_needs(mut self, endpoints: usize, requests: u32) -> Self {
        self.success_rate_hosts = endpoints;
        self.success_rate_requests = requests;
        self
    }

    /// Sets how many times as slow as the others an answer may be, and below what it is never
    /// slow.
    ///
    /// An endpoint is out if at least half of its answers in the last seconds, and five of them,
    /// took longer than so many times the middle of the other endpoints' latencies. One slow
    /// answer, however slow, ejects nobody. It needs two others whose latency is known.
    ///
    /// The factor is 1.5 or more; 0 switches the rule off. Default 5 and 5 ms: endpoints that
    /// do the same work differ by less, and a service that turns ten times slower is caught at
    /// any scale of time. No other balancer that we know of has this rule built in.
    pub fn latency(mut self, factor: f64, floor: Duration) -> Self {
        self.latency = factor;
        self.latency_floor = floor;
        self
    }

    /// Sets for how long an endpoint is out the first time, and at most.
    ///
    /// The time doubles with each failed trial and each further ejection, and is shortened by up
    /// to a quarter at random, so that many clients do not return at one moment. Ten seconds of
    /// good behaviour undo one doubling (gRPC, A50). A slow endpoint is out for eight times its
    /// latency if that is longer, up to ten minutes: else trials would overlap.
    ///
    /// At least 1 ms, at most a day. Default 1 s and 60 s, as in linkerd; Envoy's 30 s and 300 s
    /// suit proxies that do not try half-open.
    pub fn times(mut self, first: Duration, longest: Duration) -> Self {
        self.base = first;
        self.longest = longest;
        self
    }

    /// Sets the largest share of the endpoints that may be out at one time.
    ///
    /// 0 to 1; 0 switches ejection off. Above 0 one endpoint may always be out, as in Envoy, but
    /// never the last. Default 0.5: the others have to bear twice their load then, which is as
    /// far as services are mostly sized. Envoy's 0.1 protects no service of three.
    pub fn max_share(mut self, share: f64) -> Self {
        self.max_share = share;
        self
    }

    /// Why these options cannot be used, if they cannot.
    pub(crate) fn refusal(&self) -> Option<String> {
        const DAY: Duration = Duration::from_secs(24 * 3_600);
        let share = |share: f64| (0.0..=1.0).contains(&share);
        if !share(self.max_share) {
            return Some(format!(
                "max_share of the ejection is {}; give 0 to 1",
                self.max_share
            ));
        }
        if !self.success_rate.is_finite() || self.success_rate < 0.0 {
            return Some(format!(
                "success_rate of the ejection is {}; give a number above 0, or 0 for none",
                self.success_rate
            ));
        }
        if self.success_rate_hosts < 3 || self.success_rate_requests == 0 {
            return Some(format!(
                "success_rate_needs of the ejection are {} endpoints and {} requests; give 3 or \
                 more and 1 or more",
                self.success_rate_hosts, self.success_rate_requests
            ));
        }
        if !self.latency.is_finite() || (self.latency != 0.0 && self.latency < 1.5) {
            return Some(format!(
                "latency of the ejection is {} times the others'; give 1.5 or more, or 0 for none",
                self.latency
            ));
        }
        if self.base < Duration::from_millis(1) || self.longest < self.base || self.longest > DAY {
            return Some(format!(
                "times of the ejection are {:?} and at most {:?}; give 1 ms or more, not above \
                 the second, and at most a day",
                self.base, self.longest
            ));
        }
        None
    }

    pub(crate) fn is_off(&self) -> bool {
        self.max_share <= 0.0
    }

    /// How many of so many endpoints may be out at one time.
    pub(crate) fn most(&self, endpoints: usize) -> usize {
        if self.is_off() {
            return 0;
        }
        #[expect(
            clippy::cast_precision_loss,
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a share of a count, rounded down; both are far below 2^52"
        )]
        let share = (endpoints as f64 * self.max_share) as usize;
        share.max(1).min(endpoints.saturating_sub(1))
    }

    /// How long the n-th ejection in close succession lasts.
    pub(crate) fn time(&self, level: u8, draw: u32) -> Duration {
        let doublings = u32::from(level).saturating_sub(1).min(MOST_DOUBLINGS);
        let whole = self.base.saturating_mul(1 << doublings).min(self.longest);
        whole - (whole / 4).mul_f64(f64::from(draw) / f64::from(u32::MAX))
    }
}

/// Why an endpoint was ejected.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
#[non_exhaustive]
pub enum Reason {
    /// It failed several times in a row.
    ConsecutiveFailures,
    /// Several deadlines in a row passed without an answer.
    Silence,
    /// It failed more often than the others.
    SuccessRate,
    /// It was much slower than the others.
    Latency,
}

impl Reason {
    /// In one word, for labels.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::ConsecutiveFailures => "consecutive_failures",
            Self::Silence => "silence",
            Self::SuccessRate => "success_rate",
            Self::Latency => "latency",
        }
    }
}

/// In one word, such as `consecutive_failures`.
impl serde::Serialize for Reason {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ConsecutiveFailures => "failures in a row",
            Self::Silence => "deadlines passed in silence",
            Self::SuccessRate => "fails more often than the others",
            Self::Latency => "slower than the others",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_double_up_to_the_longest_and_are_shortened_by_chance() {
        let ejection = Ejection::default();
        let seconds: Vec<_> = (1..=8)
            .map(|level| ejection.time(level, 0).as_secs())
            .collect();
        assert_eq!(seconds, [1, 2, 4, 8, 16, 32, 60, 60]);
        assert_eq!(ejection.time(u8::MAX, 0).as_secs(), 60);
        assert_eq!(ejection.time(1, u32::MAX), Duration::from_millis(750));
        let between = ejection.time(1, u32::MAX / 2);
        assert!((874..=876).contains(&between.as_millis()), "{between:?}");
    }

    #[test]
    fn never_more_than_the_share_and_never_the_last() {
        let half = Ejection::default();
        let most: Vec<_> = [0, 1, 2, 3, 10, 11].iter().map(|n| half.most(*n)).collect();
        assert_eq!(most, [0, 0, 1, 1, 5, 5]);
        let tenth = half.max_share(0.1);
        assert_eq!([1, 2, 3, 30].map(|n| tenth.most(n)), [0, 1, 1, 3]);
        let all = half.max_share(1.0);
        assert_eq!([1, 2, 10].map(|n| all.most(n)), [0, 1, 9]);
        assert_eq!([1, 2, 10].map(|n| Ejection::off().most(n)), [0, 0, 0]);
    }

    #[test]
    fn options_out_of_range_are_refused_by_name() {
        let ms = Duration::from_millis;
        let good = Ejection::default();
        assert_eq!(good.refusal(), None);
        assert_eq!(Ejection::off().refusal(), None);
        let off = good
            .consecutive_failures(0)
            .success_rate(0.0)
            .latency(0.0, ms(0));
        assert_eq!(off.refusal(), None);
        for (bad, named) in [
            (good.max_share(1.1), "max_share"),
            (good.max_share(-0.1), "max_share"),
            (good.max_share(f64::NAN), "max_share"),
            (good.success_rate(f64::INFINITY), "success_rate"),
            (good.success_rate(-1.0), "success_rate"),
            (good.success_rate_needs(2, 100), "success_rate_needs"),
            (good.success_rate_needs(5, 0), "success_rate_needs"),
            (good.latency(1.0, ms(5)), "latency"),
            (good.latency(f64::NAN, ms(5)), "latency"),
            (good.times(ms(0), ms(5)), "times"),
            (good.times(ms(6), ms(5)), "times"),
            (good.times(ms(6), Duration::MAX), "times"),
        ] {
            let why = bad.refusal().unwrap();
            assert!(why.starts_with(named), "{why}");
        }
    }
}
