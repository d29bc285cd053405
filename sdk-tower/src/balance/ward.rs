//! What all endpoints of a service share for their ejection: the options, and a bell.

use std::time::Duration;

use tokio::sync::Notify;

use super::eject::Ejection;
use super::rng::Rng;
use super::tick::Tick;

/// More than that no endpoint is left alone for its latency.
const LONGEST_LEAST: Duration = Duration::from_secs(600);

/// The rule of ejection of one service.
#[derive(Debug)]
pub(crate) struct Ward {
    ejection: Ejection,
    /// Makes the times of this client differ from those of others.
    salt: u64,
    bell: Notify,
}

impl Default for Ward {
    /// Nobody is ejected.
    fn default() -> Self {
        Self::new(Ejection::off(), 0)
    }
}

impl Ward {
    pub(crate) fn new(ejection: Ejection, salt: u64) -> Self {
        Self {
            ejection,
            salt,
            bell: Notify::new(),
        }
    }

    pub(crate) fn ejection(&self) -> &Ejection {
        &self.ejection
    }

    pub(crate) fn is_off(&self) -> bool {
        self.ejection.is_off()
    }

    /// Whether just now so many failures in a row have become a reason.
    pub(crate) fn is_at_limit(&self, consecutive: u32) -> bool {
        !self.is_off() && consecutive == self.ejection.consecutive_failures
    }

    pub(crate) fn is_beyond(&self, consecutive: u32) -> bool {
        let most = self.ejection.consecutive_failures;
        most > 0 && consecutive >= most
    }

    /// How long the n-th ejection of an endpoint lasts, if it should last so long at the least.
    pub(crate) fn time(&self, level: u8, id: u32, now: Tick, least: Duration) -> Duration {
        let seed = self.salt ^ (u64::from(id) << 32) ^ u64::from(now.to_bits());
        let time = self.ejection.time(level, Rng::seeded(seed).next_u32());
        time.max(least.min(LONGEST_LEAST))
    }

    /// Something has happened that is better looked at now than with the next sweep.
    ///
    /// It is rung when an endpoint changes for the worse or the better, and not per request.
    pub(crate) fn tell(&self) {
        if !self.is_off() {
            self.bell.notify_one();
        }
    }

    /// Whether somebody has told something, which is then known.
    #[cfg(test)]
    pub(crate) fn has_news(&self) -> bool {
        std::pin::pin!(self.bell.notified()).enable()
    }

    /// Waits until somebody [tells](Self::tell); what was told before is not lost.
    pub(crate) async fn told(&self) {
        self.bell.notified().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_rings_once_and_stays_a_reason() {
        let ward = Ward::new(Ejection::default(), 1);
        assert_eq!([4, 5, 6].map(|n| ward.is_at_limit(n)), [false, true, false]);
        assert_eq!([4, 5, 6].map(|n| ward.is_beyond(n)), [false, true, true]);
        let never = Ward::new(Ejection::default().consecutive_failures(0), 1);
        assert!(!never.is_beyond(0) && !never.is_beyond(100));
        assert!(!Ward::default().is_at_limit(5));
    }

    #[test]
    fn the_times_of_two_clients_and_of_two_endpoints_differ() {
        let now = Tick::default();
        let time = |salt, id| Ward::new(Ejection::default(), salt).time(1, id, now, Duration::ZERO);
        assert_eq!(time(1, 1), time(1, 1));
        assert_ne!(time(1, 1), time(2, 1));
        assert_ne!(time(1, 1), time(1, 2));
    }

    #[test]
    fn a_least_time_counts_up_to_ten_minutes() {
        let ward = Ward::new(Ejection::default(), 1);
        let time = |least| ward.time(1, 1, Tick::default(), Duration::from_secs(least));
        assert_eq!([5, 6_000].map(|least| time(least).as_secs()), [5, 600]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_bell_that_rang_before_anybody_listened_is_heard() {
        let ward = Ward::new(Ejection::default(), 1);
        ward.tell();
        ward.told().await;
        let silence = tokio::time::timeout(Duration::from_secs(1), ward.told());
        assert!(silence.await.is_err());
    }
}
