//! Who goes first of those that stand in line for a lock.
//!
//! Each has a ticket at Consul. The order is that of preference, and of the index at which the
//! ticket was written among equals: whoever came first goes first. When the lock becomes free, the
//! first tries at once, and every other only after a pause that grows with its place, if the lock
//! is free still. So one write takes the lock, and yet nobody depends on the first: one that
//! sleeps through its turn is passed.
//!
//! What is watched is spread, too. Only the front follows the lock itself; everybody else follows
//! the ticket of the one that stands just so far ahead that, once it is gone, the front is reached.
//! A hand-over wakes the front and one more, however long the line is.

use std::time::Duration;

/// How many follow the lock itself.
///
/// More than one, so that one which does not run keeps nobody; few, because a hand-over wakes each
/// of them twice.
const FRONT: usize = 3;

/// How much later the next one tries: long enough that one that runs is not passed, also on a
/// machine that is busy.
const STEP: Duration = Duration::from_secs(1);

/// The longest pause of the kind.
const LONGEST: Duration = Duration::from_secs(60);

/// One that waits, by what its ticket says.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Rank {
    /// Higher goes first.
    pub(crate) preference: u8,
    /// The index at which its ticket was written; smaller goes first.
    pub(crate) since: u64,
}

impl Rank {
    /// What a line is sorted by.
    pub(crate) fn key(self) -> impl Ord {
        (std::cmp::Reverse(self.preference), self.since)
    }
}

/// What one follows while somebody holds the lock.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Follows {
    /// The lock itself.
    Lock,
    /// The ticket of the one at this place.
    Ticket(usize),
}

/// What the one at this place follows; the first is at 0.
pub(crate) fn follows(place: usize) -> Follows {
    match place.checked_sub(FRONT) {
        None => Follows::Lock,
        Some(ahead) => Follows::Ticket(ahead),
    }
}

/// For how long the one at this place leaves a free lock to those ahead.
pub(crate) fn courtesy(place: usize) -> Duration {
    let steps = u32::try_from(place).unwrap_or(u32::MAX);
    STEP.saturating_mul(steps).min(LONGEST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_preferred_go_first_and_among_equals_who_came_first() {
        let rank = |preference, since| Rank { preference, since };
        let mut line = [rank(0, 7), rank(2, 9), rank(0, 3), rank(2, 8), rank(1, 1)];
        line.sort_by_key(|rank| rank.key());
        let order = line.map(|rank| (rank.preference, rank.since));
        assert_eq!(order, [(2, 8), (2, 9), (1, 1), (0, 3), (0, 7)]);
    }

    #[test]
    fn each_ticket_is_followed_by_one_other_and_the_lock_by_a_few() {
        let line: Vec<Follows> = (0..100).map(follows).collect();
        let lock = line.iter().filter(|one| **one == Follows::Lock).count();
        assert_eq!(lock, FRONT);
        for ahead in 0..100 - FRONT {
            // Once it is gone, its follower is the last of the front.
            assert_eq!(line[ahead + FRONT], Follows::Ticket(ahead));
        }
    }

    #[test]
    fn the_first_tries_at_once_and_each_other_a_step_later() {
        let pauses: Vec<u64> = (0..4).map(|place| courtesy(place).as_secs()).collect();
        assert_eq!(pauses, [0, 1, 2, 3]);
        assert_eq!(courtesy(usize::MAX), LONGEST);
    }
}
