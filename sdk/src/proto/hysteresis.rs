//! When findings in a row change what is told.

use std::cmp::Ordering;

/// What is told of something whose findings come one after the other, the worse being the greater.
///
/// A state changes only after so many findings in a row that are worse, or so many that are better;
/// the last of them is then the state. The first finding counts at once: before it nothing is known.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Hysteresis<T> {
    failures: u32,
    successes: u32,
    told: Option<T>,
    /// How many findings in a row were worse, or better, than what is told.
    worse: u32,
    better: u32,
}

impl<T: Copy + Ord> Hysteresis<T> {
    /// Numbers of zero count as one.
    pub(crate) fn new(failures: u32, successes: u32) -> Self {
        Self {
            failures: failures.max(1),
            successes: successes.max(1),
            told: None,
            worse: 0,
            better: 0,
        }
    }

    /// Takes a finding and gives what is told from now on.
    pub(crate) fn take(&mut self, found: T) -> T {
        let told = *self.told.get_or_insert(found);
        (self.worse, self.better) = match found.cmp(&told) {
            Ordering::Equal => (0, 0),
            Ordering::Greater => (self.worse.saturating_add(1), 0),
            Ordering::Less => (0, self.better.saturating_add(1)),
        };
        if self.worse >= self.failures || self.better >= self.successes {
            (self.worse, self.better) = (0, 0);
            self.told = Some(found);
            return found;
        }
        told
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is told after each finding: `P`assing, `W`arning, `X` critical.
    fn told(failures: u32, successes: u32, found: &str) -> String {
        let mut rule = Hysteresis::new(failures, successes);
        // The letters are in the order of how bad they are, by luck.
        let found = found.chars();
        found.map(|letter| rule.take(letter)).collect()
    }

    #[test]
    fn so_many_in_a_row_change_the_state_and_one_less_does_not() {
        assert_eq!(told(3, 2, "PXXPXXX"), "PPPPPPX");
        assert_eq!(told(3, 2, "XPXPPXXX"), "XXXXPPPX");
        assert_eq!(told(1, 1, "PXPWX"), "PXPWX");
    }

    #[test]
    fn the_first_finding_counts_at_once() {
        assert_eq!(told(3, 3, "X"), "X");
        assert_eq!(told(3, 3, "P"), "P");
    }

    #[test]
    fn findings_that_are_worse_in_different_ways_count_together_and_the_last_is_told() {
        assert_eq!(told(3, 1, "PWXW"), "PPPW");
        assert_eq!(told(3, 1, "PXWX"), "PPPX");
        assert_eq!(told(2, 2, "XWP"), "XXP");
    }

    #[test]
    fn zero_counts_as_one() {
        assert_eq!(told(0, 0, "PXP"), "PXP");
    }
}
