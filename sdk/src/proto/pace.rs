//! A floor under the time between requests.

use std::time::Duration;

use tokio::time::Instant;

/// A token bucket: `burst` requests at once, then one per `refill`.
///
/// Consul's documentation asks clients for one, because a blocking query of a busy service returns
/// at once each time: "a token bucket with a burst of 2" (blocking queries, "Implementation
/// details").
#[derive(Clone, Debug)]
pub(crate) struct Pace {
    burst: u32,
    refill: Duration,
    /// When the bucket was, or will be, empty.
    empty_at: Option<Instant>,
}

impl Pace {
    pub(crate) const fn new(burst: u32, refill: Duration) -> Self {
        Self {
            burst,
            refill,
            empty_at: None,
        }
    }

    /// Takes a token and says when the request may be sent: now or later.
    pub(crate) fn take(&mut self, now: Instant) -> Instant {
        let full = self.refill.saturating_mul(self.burst);
        // The bucket is full when it was last empty `full` ago, and never fuller.
        let since = now.checked_sub(full);
        let empty = match (self.empty_at, since) {
            (Some(at), Some(floor)) => at.max(floor),
            (Some(at), None) => at,
            (None, Some(floor)) => floor,
            (None, None) => now,
        };
        let next = empty + self.refill;
        self.empty_at = Some(next);
        next.max(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_free_and_then_one_per_refill() {
        let start = Instant::now() + Duration::from_secs(100);
        let mut pace = Pace::new(2, Duration::from_secs(1));
        assert_eq!(pace.take(start), start);
        assert_eq!(pace.take(start), start);
        assert_eq!(pace.take(start), start + Duration::from_secs(1));
        assert_eq!(pace.take(start), start + Duration::from_secs(2));
    }

    #[test]
    fn a_quiet_time_fills_the_bucket_and_no_more() {
        let start = Instant::now() + Duration::from_secs(100);
        let mut pace = Pace::new(2, Duration::from_secs(1));
        for _ in 0..5 {
            pace.take(start);
        }
        let later = start + Duration::from_secs(1000);
        assert_eq!(pace.take(later), later);
        assert_eq!(pace.take(later), later);
        assert_eq!(pace.take(later), later + Duration::from_secs(1));
    }
}
