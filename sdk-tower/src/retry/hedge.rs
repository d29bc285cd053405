//! When a second endpoint is asked beside the first: after a time, or a percentile of latencies.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

/// When a request that is still unanswered is sent to another endpoint as well.
///
/// Given to [`Builder::hedge`](crate::channel::Builder::hedge). The first answer wins and the
/// other attempt is dropped: on HTTP/1.1 this closes its connection. It is done once for a
/// request, if it may and can be repeated as [`RetryPolicy`](super::RetryPolicy) says, if there
/// is another endpoint, and if the budget has something left. Hedging cuts the tail of latencies
/// for a few percent more requests; it helps against endpoints that are slow at times, not
/// against work that is slow everywhere.
#[derive(Clone, Copy, Debug)]
#[must_use]
pub struct Hedge {
    delay: Delay,
    at_least: Duration,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Delay {
    Fixed(Duration),
    Percentile(f64),
}

impl Hedge {
    /// After this time.
    ///
    /// Above zero, and not above the channel's [`timeout`](crate::channel::Builder::timeout).
    pub fn after(time: Duration) -> Self {
        Self {
            delay: Delay::Fixed(time),
            at_least: Duration::ZERO,
        }
    }

    /// After the time within which this share of the channel's requests is answered.
    ///
    /// Above 0 and below 1; 0.95 asks for about one request in twenty more. It is observed over
    /// the last 10 to 20 s, and nothing is hedged before 20 answers have come.
    pub fn percentile(share: f64) -> Self {
        Self {
            delay: Delay::Percentile(share),
            at_least: Duration::from_millis(1),
        }
    }

    /// Sets the shortest time after which a request is hedged.
    ///
    /// Default 1 ms for a percentile: where answers come faster, a timer is not exact enough.
    pub fn at_least(mut self, time: Duration) -> Self {
        self.at_least = time;
        self
    }

    pub(crate) fn delay(&self) -> Delay {
        self.delay
    }

    pub(crate) fn floor(&self) -> Duration {
        self.at_least
    }
}

/// Steps per doubling of the latency: a percentile is right to a fifth.
const STEPS: usize = 4;
/// Microseconds up to 2^30, a quarter of an hour.
const BUCKETS: usize = 30 * STEPS;
/// How many answers there must be.
const LEAST: u32 = 20;
/// How long latencies count in full; they count as long again beside the newer ones.
const WINDOW: Duration = Duration::from_secs(10);
/// After how many answers the percentile is told anew.
const RENEW: u32 = 32;

/// The latencies of a channel's answers, and a percentile of them.
///
/// Two histograms of counters: one is filled, the one before is read with it. A reader and a
/// turn of the two that cross may lose a few counts.
#[derive(Debug)]
pub(crate) struct Latencies {
    share: f64,
    histograms: [[AtomicU32; BUCKETS]; 2],
    /// How many windows have passed; its last bit tells which histogram is filled.
    window: AtomicU64,
    answers: AtomicU32,
    /// In microseconds; 0 if it is not known.
    percentile: AtomicU64,
    start: Instant,
}

impl Latencies {
    pub(crate) fn new(share: f64) -> Self {
        Self {
            share,
            histograms: [const { [const { AtomicU32::new(0) }; BUCKETS] }; 2],
            window: AtomicU64::new(0),
            answers: AtomicU32::new(0),
            percentile: AtomicU64::new(0),
            start: Instant::now(),
        }
    }

    pub(crate) fn record(&self, latency: Duration) {
        let now = self.start.elapsed().as_secs() / WINDOW.as_secs();
        let window = self.window.load(Ordering::Relaxed);
        let turned = window < now
            && self
                .window
                .compare_exchange(window, now, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok();
        if turned {
            let [even, odd] = &self.histograms;
            let (old, new) = if now.is_multiple_of(2) {
                (odd, even)
            } else {
                (even, odd)
            };
            clear(new);
            if now - window > 1 {
                clear(old);
            }
        }
        let [even, odd] = &self.histograms;
        let filled = if now.is_multiple_of(2) { even } else { odd };
        if let Some(counter) = filled.get(bucket(latency)) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
        let answers = self.answers.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
        if turned || answers.is_multiple_of(RENEW) || answers == LEAST {
            self.renew();
        }
    }

    /// The time within which the share of requests was answered, if enough were.
    pub(crate) fn percentile(&self) -> Option<Duration> {
        match self.percentile.load(Ordering::Relaxed) {
            0 => None,
            micros => Some(Duration::from_micros(micros)),
        }
    }

    fn renew(&self) {
        let [even, odd] = &self.histograms;
        let count = |(one, other): (&AtomicU32, &AtomicU32)| {
            let one = one.load(Ordering::Relaxed);
            one.saturating_add(other.load(Ordering::Relaxed))
        };
        let both = || even.iter().zip(odd).map(count);
        let total = both().fold(0_u32, u32::saturating_add);
        let mut percentile = 0;
        if total >= LEAST {
            let below = f64::from(total) * self.share;
            let mut seen = 0_u32;
            let reached = both().position(|count| {
                seen = seen.saturating_add(count);
                f64::from(seen) >= below
            });
            percentile = upper_bound(reached.unwrap_or(BUCKETS));
        }
        self.percentile.store(percentile, Ordering::Relaxed);
    }
}

fn clear(histogram: &[AtomicU32]) {
    for counter in histogram {
        counter.store(0, Ordering::Relaxed);
    }
}

/// Four buckets for each power of two of microseconds.
fn bucket(latency: Duration) -> usize {
    let micros = u64::try_from(latency.as_micros())
        .unwrap_or(u64::MAX)
        .max(4);
    let exponent = micros.ilog2();
    // The two bits after the first one.
    let step = (micros >> (exponent - 2)) & 3;
    let exponent = usize::try_from(exponent).unwrap_or(BUCKETS);
    let step = usize::try_from(step).unwrap_or(0);
    (exponent * STEPS + step).min(BUCKETS - 1)
}

/// The microseconds at which a bucket ends.
fn upper_bound(bucket: usize) -> u64 {
    let exponent = u32::try_from(bucket / STEPS).unwrap_or(32).clamp(2, 32);
    let step = u64::try_from(bucket % STEPS).unwrap_or(0);
    (5 + step) << (exponent - 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[tokio::test(start_paused = true)]
    async fn a_percentile_is_told_to_a_quarter() {
        let latencies = Latencies::new(0.95);
        for millis in 1..=1_000 {
            latencies.record(ms(millis));
        }
        let told = latencies.percentile().unwrap();
        assert!(told >= ms(940) && told <= ms(1_190), "{told:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_told_before_there_are_twenty_answers() {
        let latencies = Latencies::new(0.5);
        for _ in 0..19 {
            latencies.record(ms(8));
        }
        assert_eq!(latencies.percentile(), None);
        latencies.record(ms(8));
        let told = latencies.percentile().unwrap();
        assert!(told >= ms(8) && told <= ms(10), "{told:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn old_latencies_are_forgotten() {
        let latencies = Latencies::new(0.95);
        let record = |millis| (0..64).for_each(|_| latencies.record(ms(millis)));
        record(500);
        tokio::time::advance(Duration::from_secs(10)).await;
        record(2);
        assert!(latencies.percentile().unwrap() >= ms(500));
        tokio::time::advance(Duration::from_secs(10)).await;
        record(2);
        assert!(latencies.percentile().unwrap() <= ms(3));
        // After a long silence it begins anew.
        tokio::time::advance(Duration::from_secs(60)).await;
        latencies.record(ms(2));
        assert_eq!(latencies.percentile(), None);
    }

    #[test]
    fn every_latency_lies_below_the_bound_of_its_bucket_and_not_far() {
        for micros in (4..5_000).chain([1 << 20, 123_456_789, (1 << 29) + 1]) {
            let bound = upper_bound(bucket(Duration::from_micros(micros)));
            assert!(
                micros < bound && bound <= micros + micros / 4 + 1,
                "{micros} {bound}"
            );
        }
        assert_eq!(bucket(Duration::ZERO), bucket(Duration::from_micros(4)));
        assert_eq!(bucket(Duration::MAX), BUCKETS - 1);
        assert!(upper_bound(BUCKETS) > 0);
    }
}
