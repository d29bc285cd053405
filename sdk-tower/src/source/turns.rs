//! Which of several sources is in use: the rule, without a source, a clock or a timer.

use std::time::Duration;

use tokio::time::Instant;

/// For how long those before it are waited for once a source has told an endpoint, while nothing
/// else is known.
const PATIENCE: Duration = Duration::from_secs(1);

/// How soon sources take the place of each other.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    /// How long the one in use may be ill.
    pub(super) after: Duration,
    /// How long one before it must have been well.
    pub(super) back_after: Duration,
}

/// How a source is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Standing {
    /// What it has told last is true.
    Well {
        /// It says that nobody is there.
        is_empty: bool,
    },
    /// It knows nothing, or nothing that it can confirm.
    Ill,
}

/// How a source is, and since when it is well or ill.
#[derive(Clone, Copy, Debug)]
struct Seen {
    standing: Standing,
    since: Instant,
}

/// Which source is in use, and what the next one depends on.
#[derive(Debug)]
pub(super) struct Turns {
    pub(super) pace: Pace,
    pub(super) used: Option<usize>,
    seen: Vec<Seen>,
}

impl Standing {
    fn is_well(self) -> bool {
        matches!(self, Self::Well { .. })
    }

    /// Whether it can take the place of a source before it.
    fn can_step_in(self) -> bool {
        matches!(self, Self::Well { is_empty: false })
    }
}

impl Seen {
    fn age(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.since)
    }
}

impl Turns {
    pub(super) fn new(pace: Pace) -> Self {
        Self {
            pace,
            used: None,
            seen: Vec::new(),
        }
    }

    /// Takes note of how all sources are, in their order, and says which one is in use now.
    pub(super) fn look(
        &mut self,
        standings: impl IntoIterator<Item = Standing>,
        now: Instant,
    ) -> Option<usize> {
        for (at, standing) in standings.into_iter().enumerate() {
            match self.seen.get_mut(at) {
                Some(seen) if seen.standing.is_well() == standing.is_well() => {
                    seen.standing = standing;
                }
                Some(seen) => {
                    *seen = Seen {
                        standing,
                        since: now,
                    }
                }
                None => self.seen.push(Seen {
                    standing,
                    since: now,
                }),
            }
        }
        self.used = self.next(now);
        self.used
    }

    fn next(&self, now: Instant) -> Option<usize> {
        let Some(used) = self.used else {
            return self.first(now);
        };
        let is_ill = self.illness(used).is_some();
        let back = self.before(used).find(|(_, seen)| {
            seen.standing.is_well() && (is_ill || seen.age(now) >= self.pace.back_after)
        });
        if let Some((at, _)) = back {
            return Some(at);
        }
        match self.illness(used) {
            Some(seen) if seen.age(now) >= self.pace.after => {
                let mut after = self.seen.iter().enumerate().skip(used + 1);
                let other = after.find(|(_, seen)| seen.standing.can_step_in());
                other.map_or(Some(used), |(at, _)| Some(at))
            }
            _ => Some(used),
        }
    }

    /// The first that is used at all.
    fn first(&self, now: Instant) -> Option<usize> {
        match self.seen.first() {
            Some(first) if first.standing.is_well() => Some(0),
            _ => {
                let (at, seen) = self.substitute()?;
                (seen.age(now) >= PATIENCE).then_some(at)
            }
        }
    }

    /// The first that can take the place of those before it.
    fn substitute(&self) -> Option<(usize, &Seen)> {
        let mut all = self.seen.iter().enumerate();
        all.find(|(_, seen)| seen.standing.can_step_in())
    }

    /// The source in use, if it is ill.
    fn illness(&self, used: usize) -> Option<&Seen> {
        self.seen.get(used).filter(|seen| !seen.standing.is_well())
    }

    fn before(&self, used: usize) -> impl Iterator<Item = (usize, &Seen)> {
        self.seen.iter().enumerate().take(used)
    }

    /// When time alone may change which one is in use, if it may.
    pub(super) fn due(&self, now: Instant) -> Option<Instant> {
        let Some(used) = self.used else {
            let (_, seen) = self.substitute()?;
            return Some(seen.since + PATIENCE).filter(|due| *due > now);
        };
        let well = self
            .before(used)
            .filter(|(_, seen)| seen.standing.is_well());
        let back = well.map(|(_, seen)| seen.since + self.pace.back_after);
        let away = self.illness(used).map(|seen| seen.since + self.pace.after);
        back.chain(away).filter(|due| *due > now).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const WELL: Standing = Standing::Well { is_empty: false };
    const EMPTY: Standing = Standing::Well { is_empty: true };
    const ILL: Standing = Standing::Ill;

    struct World {
        turns: Turns,
        now: Instant,
    }

    impl World {
        fn new() -> Self {
            Self {
                turns: Turns::new(Pace {
                    after: 5 * SECOND,
                    back_after: 10 * SECOND,
                }),
                now: Instant::now(),
            }
        }

        /// A world in which the first source is in use.
        fn used_to(standings: &[Standing]) -> Self {
            let mut world = Self::new();
            assert_eq!(world.see(standings), Some(0));
            world
        }

        fn see(&mut self, standings: &[Standing]) -> Option<usize> {
            self.turns.look(standings.iter().copied(), self.now)
        }

        /// Lets so many seconds go by, looking each tenth of one.
        fn pass(&mut self, seconds: u32, standings: &[Standing]) -> Option<usize> {
            for _ in 0..seconds * 10 {
                self.now += SECOND / 10;
                self.see(standings);
            }
            self.turns.used
        }
    }

    #[test]
    fn another_steps_in_when_the_one_in_use_has_been_ill_for_the_time_given_and_not_before() {
        let mut world = World::used_to(&[WELL, WELL]);
        assert_eq!(world.pass(60, &[WELL, WELL]), Some(0));
        world.see(&[ILL, WELL]);
        assert_eq!(world.pass(4, &[ILL, WELL]), Some(0));
        assert_eq!(world.pass(1, &[ILL, WELL]), Some(1));
    }

    #[test]
    fn an_illness_that_passes_in_time_changes_nothing_and_the_next_is_counted_anew() {
        let mut world = World::used_to(&[WELL, WELL]);
        for _ in 0..10 {
            assert_eq!(world.pass(4, &[ILL, WELL]), Some(0));
            assert_eq!(world.pass(1, &[WELL, WELL]), Some(0));
        }
    }

    #[test]
    fn the_first_is_gone_back_to_when_it_has_been_well_without_a_break() {
        let mut world = World::used_to(&[WELL, WELL]);
        assert_eq!(world.pass(6, &[ILL, WELL]), Some(1));
        for _ in 0..10 {
            assert_eq!(world.pass(9, &[WELL, WELL]), Some(1));
            assert_eq!(world.pass(1, &[ILL, WELL]), Some(1));
        }
        assert_eq!(world.pass(11, &[WELL, WELL]), Some(0));
    }

    #[test]
    fn a_first_source_that_comes_and_goes_is_followed_once_in_a_period_at_most() {
        for (well, ill) in [(1, 1), (3, 7), (9, 6), (11, 6), (60, 60)] {
            let mut world = World::used_to(&[WELL, WELL]);
            let (mut changes, mut last) = (0, Some(0));
            for _ in 0..3_600 / (well + ill) {
                for (seconds, first) in [(ill, ILL), (well, WELL)] {
                    for _ in 0..seconds {
                        let used = world.pass(1, &[first, WELL]);
                        changes += u32::from(used != last);
                        last = used;
                    }
                }
            }
            // Away and back take 15 s at least.
            assert!(changes <= 2 * 3_600 / 15, "{changes}");
            if well < 10 {
                assert!(changes <= 1, "{well} {ill}: {changes}");
            }
        }
    }

    #[test]
    fn while_the_one_in_use_is_ill_any_before_it_that_is_well_is_gone_back_to_at_once() {
        let mut world = World::used_to(&[WELL, WELL]);
        assert_eq!(world.pass(6, &[ILL, WELL]), Some(1));
        assert_eq!(world.see(&[ILL, ILL]), Some(1));
        assert_eq!(world.see(&[WELL, ILL]), Some(0));
    }

    #[test]
    fn when_all_are_ill_the_last_one_stays_and_the_first_to_be_well_again_steps_in() {
        let mut world = World::used_to(&[WELL, WELL, WELL]);
        assert_eq!(world.pass(600, &[ILL, ILL, ILL]), Some(0));
        assert_eq!(world.see(&[ILL, ILL, WELL]), Some(2));
        assert_eq!(world.pass(600, &[ILL, ILL, ILL]), Some(2));
        assert_eq!(world.see(&[ILL, WELL, ILL]), Some(1));
    }

    #[test]
    fn one_that_tells_nobody_does_not_step_in_but_is_believed_when_it_is_in_use() {
        let mut world = World::used_to(&[WELL, EMPTY]);
        assert_eq!(world.pass(600, &[ILL, EMPTY]), Some(0));
        assert_eq!(world.see(&[ILL, WELL]), Some(1));
        assert_eq!(world.pass(600, &[ILL, EMPTY]), Some(1));
        // What is preferred is believed, too.
        assert_eq!(world.pass(11, &[EMPTY, WELL]), Some(0));
    }

    #[test]
    fn at_the_start_the_first_is_waited_for_a_second_and_nobody_is_no_answer() {
        let mut world = World::new();
        assert_eq!(world.pass(60, &[ILL, ILL]), None);
        assert_eq!(world.pass(60, &[ILL, EMPTY]), None);
        // Well already, so it has no time to wait for.
        assert_eq!(world.see(&[ILL, WELL]), Some(1));
        let mut world = World::new();
        world.see(&[ILL, WELL]);
        world.now += SECOND / 2;
        assert_eq!(world.see(&[ILL, WELL]), None);
        assert_eq!(world.turns.due(world.now), Some(world.now + SECOND / 2));
        assert_eq!(world.pass(1, &[ILL, WELL]), Some(1));
        // An answer of the first, be it empty, is taken at once.
        assert_eq!(World::new().see(&[EMPTY, WELL]), Some(0));
    }

    #[test]
    fn the_next_look_is_due_when_time_alone_changes_something() {
        let mut world = World::used_to(&[WELL, WELL]);
        assert_eq!(world.turns.due(world.now), None);
        world.see(&[ILL, WELL]);
        assert_eq!(world.turns.due(world.now), Some(world.now + 5 * SECOND));
        world.pass(6, &[ILL, WELL]);
        assert_eq!(world.turns.due(world.now), None);
        world.see(&[WELL, WELL]);
        assert_eq!(world.turns.due(world.now), Some(world.now + 10 * SECOND));
        // What is overdue waits for a source, and not for time.
        let mut world = World::used_to(&[WELL, ILL]);
        world.pass(6, &[ILL, ILL]);
        assert_eq!(world.turns.due(world.now), None);
    }
}
