//! When an answer is too good a reason for an outage to be believed at once.

use std::time::Duration;

use tokio::time::Instant;

/// How much may go at once.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Bounds {
    /// More than so many of a hundred are suspicious.
    pub(crate) percent: u8,
    /// Of fewer elements than this any may go.
    pub(crate) least: usize,
}

impl Bounds {
    /// Whether it is suspicious that `gone` of `had` elements went and `left` are left.
    ///
    /// An agent that has lost its servers' data, a token that has lost its rights and a health check
    /// that is wrong itself all look like this, and rarely do so many instances end at once.
    pub(crate) fn is_suspicious(self, had: usize, gone: usize, left: usize) -> bool {
        if had == 0 || had < self.least || gone == 0 {
            return false;
        }
        left == 0 || gone.saturating_mul(100) > had.saturating_mul(usize::from(self.percent))
    }
}

/// How long a burst is waited out: until nothing has come for a while, but not for ever.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Window {
    pub(crate) quiet: Duration,
    pub(crate) most: Duration,
}

impl Window {
    /// When to tell what came, if the first news came at `first` and the last at `last`.
    pub(crate) fn ends(self, first: Instant, last: Instant) -> Instant {
        (last + self.quiet).min(first + self.most)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: Bounds = Bounds {
        percent: 50,
        least: 3,
    };

    #[test]
    fn more_than_the_share_is_suspicious_and_the_share_itself_is_not() {
        assert!(!BOUNDS.is_suspicious(10, 5, 5));
        assert!(BOUNDS.is_suspicious(10, 6, 4));
        // Others that came instead make it no better.
        assert!(BOUNDS.is_suspicious(10, 6, 20));
    }

    #[test]
    fn nothing_left_is_suspicious_whatever_the_share() {
        let all = Bounds {
            percent: 100,
            ..BOUNDS
        };
        assert!(all.is_suspicious(10, 10, 0));
        assert!(!all.is_suspicious(10, 10, 1));
    }

    #[test]
    fn a_few_elements_may_go_at_any_time() {
        assert!(!BOUNDS.is_suspicious(2, 2, 0));
        assert!(BOUNDS.is_suspicious(3, 3, 0));
        let none = Bounds { least: 0, ..BOUNDS };
        assert!(!none.is_suspicious(0, 0, 0));
        assert!(none.is_suspicious(1, 1, 0));
    }

    #[test]
    fn a_burst_ends_when_it_is_quiet_or_has_lasted_for_long_enough() {
        let window = Window {
            quiet: Duration::from_secs(1),
            most: Duration::from_secs(5),
        };
        let first = Instant::now();
        let after = |secs| first + Duration::from_secs(secs);
        assert_eq!(window.ends(first, first), after(1));
        assert_eq!(window.ends(first, after(3)), after(4));
        assert_eq!(window.ends(first, after(4)), after(5));
        assert_eq!(window.ends(first, after(9)), after(5));
    }
}
