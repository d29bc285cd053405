//! Weighted round robin: whose turn it is, without memory of whose turn it was.
//!
//! A ticket is drawn from a counter, and the ticket alone says who is next: nothing else is
//! written, so many threads take turns without waiting for each other. The tickets of one cycle
//! are as many as the weights add up to, and each endpoint owns as many of them as it weighs: its
//! share of any cycle is exact, wherever the cycle begins.
//!
//! Ticket `t` is the point `t · step mod total` of a line on which each endpoint takes up its
//! weight. `step` has no common divisor with `total`, so a cycle meets each point once; and it is
//! near the golden section of it, so that the turns of a heavy endpoint are spread over the cycle
//! and do not come all at once. (grpc-go's static stride scheduler has exact shares, too, but
//! skips through the light endpoints: its pick takes as many steps as the heaviest endpoint is
//! heavier than the mean.)

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::cuts::Cuts;

/// The order of the endpoints of a tier.
#[derive(Debug)]
pub(crate) struct Turns {
    total: Modulus,
    step: u64,
    /// Where each endpoint's part of the line ends; none if all parts have length one.
    ends: Option<Cuts>,
    counter: Arc<Counter>,
}

/// The next ticket of a tier; it outlives the snapshots, so that a change does not send everybody
/// back to the first endpoint.
#[repr(align(64))]
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    /// Begins anywhere: many clients must not take the same turns at the same time.
    pub(crate) fn starting(at: u32) -> Self {
        Self(AtomicU64::new(u64::from(at)))
    }
}

impl Turns {
    /// The turns for these weights; where all are 0 they count as equal.
    ///
    /// Weights that add up to 2³² or more are rounded to what fits.
    pub(crate) fn new(weights: &[u64], counter: Arc<Counter>) -> Self {
        let parts = parts(weights);
        let total: u64 = parts.iter().copied().map(u64::from).sum();
        let ends = parts.iter().any(|part| *part != 1).then(|| {
            let mut end = 0_u32;
            let ends = parts.iter().map(|part| {
                end = end.saturating_add(*part);
                end
            });
            Cuts::new(ends.collect())
        });
        // Where all weigh the same any step spreads them evenly, and neighbours are soonest fetched
        // from memory.
        let step = if ends.is_some() { step(total) } else { 1 };
        Self {
            total: Modulus::new(total),
            step,
            ends,
            counter,
        }
    }

    pub(crate) fn counter(&self) -> &Arc<Counter> {
        &self.counter
    }

    /// The place of the endpoint whose turn it is.
    pub(crate) fn next(&self) -> usize {
        let ticket = self.counter.0.fetch_add(1, Ordering::Relaxed);
        self.at(ticket)
    }

    fn at(&self, ticket: u64) -> usize {
        // Both factors are below 2³².
        let point = self.total.rest(self.total.rest(ticket) * self.step);
        match &self.ends {
            Some(ends) => ends.not_above(u32::try_from(point).unwrap_or(u32::MAX)),
            None => usize::try_from(point).unwrap_or(0),
        }
    }
}

/// Weights without their common divisor, with a sum below 2³².
fn parts(weights: &[u64]) -> Vec<u32> {
    let divisor = weights.iter().copied().fold(0, common_divisor);
    if divisor == 0 {
        return vec![1; weights.len()];
    }
    let len = weights.len() as u128;
    let sum: u128 = weights
        .iter()
        .map(|weight| u128::from(weight / divisor))
        .sum();
    let mut shift = 0;
    while (sum >> shift) + len > u128::from(u32::MAX) && shift < u64::BITS {
        shift += 1;
    }
    let part = |weight: &u64| {
        let part = (weight / divisor).checked_shr(shift).unwrap_or(0);
        let least = u32::from(*weight > 0);
        u32::try_from(part).unwrap_or(u32::MAX).max(least)
    };
    weights.iter().map(part).collect()
}

fn common_divisor(mut a: u64, mut b: u64) -> u64 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}

/// A step without a common divisor with `total` that spreads its multiples well.
///
/// Of the numbers next to the golden section, the one that is hardest to approximate: the
/// quotients of its continued fraction say how uneven the spread becomes (three-distance theorem).
fn step(total: u64) -> u64 {
    const LOOKED_AT: u64 = 32;
    // 2³² divided by the golden ratio; `total` is below 2³².
    let golden = (total * 2_654_435_769) >> 32;
    let from = golden.saturating_sub(LOOKED_AT).max(1);
    let to = golden + LOOKED_AT;
    (from..=to)
        .filter(|step| *step < total.max(2))
        .filter_map(|step| {
            let distance = step.abs_diff(golden);
            evenness(total, step).map(|evenness| (evenness, distance, step))
        })
        .min()
        .map_or(1, |(_, _, step)| step)
}

/// The greatest quotient of `total / step` as a continued fraction; none if they have a common
/// divisor.
fn evenness(total: u64, step: u64) -> Option<u64> {
    let (mut a, mut b) = (total, step);
    let mut greatest = 0;
    while let Some(quotient) = a.checked_div(b) {
        greatest = greatest.max(quotient);
        (a, b) = (b, a % b);
    }
    (a == 1).then_some(greatest)
}

/// A divisor below 2³² whose remainders cost two multiplications and no division (Barrett).
#[derive(Clone, Copy, Debug)]
struct Modulus {
    value: u64,
    /// 2⁶⁴ divided by the value, rounded down or one less.
    inverse: u64,
}

impl Modulus {
    fn new(value: u64) -> Self {
        let value = value.max(1);
        Self {
            value,
            inverse: u64::MAX / value,
        }
    }

    fn rest(self, number: u64) -> u64 {
        let high = (u128::from(number) * u128::from(self.inverse)) >> 64;
        let quotient = u64::try_from(high).unwrap_or(0);
        let mut rest = number.wrapping_sub(quotient.wrapping_mul(self.value));
        // The quotient is too small by at most two.
        while rest >= self.value {
            rest -= self.value;
        }
        rest
    }
}

#[cfg(test)]
mod tests {
    use super::super::rng::Rng;
    use super::*;

    fn turns(weights: &[u64]) -> Turns {
        Turns::new(weights, Arc::default())
    }

    fn counts(turns: &Turns, len: usize, tickets: std::ops::Range<u64>) -> Vec<u64> {
        let mut counts = vec![0; len];
        for ticket in tickets {
            counts[turns.at(ticket)] += 1;
        }
        counts
    }

    #[test]
    fn each_cycle_gives_each_endpoint_exactly_its_weight() {
        for weights in [
            vec![1],
            vec![1, 1],
            vec![1, 3],
            vec![1; 10],
            vec![1, 1, 1, 1, 1, 1, 1, 1, 1, 10],
            vec![7, 0, 5, 1],
            vec![999, 1_000],
            vec![65_535, 1, 32_000, 9],
        ] {
            let turns = turns(&weights);
            let total: u64 = weights.iter().sum();
            for begin in [0, 1, 17, total * 5 + 3] {
                let counts = counts(&turns, weights.len(), begin..begin + total);
                assert_eq!(counts, weights, "from {begin}");
            }
        }
    }

    #[test]
    fn a_common_divisor_does_not_make_the_cycle_longer() {
        let uneven = turns(&[1_000_000, 3_000_000]);
        assert_eq!(counts(&uneven, 2, 5..9), [1, 3]);
        let even = turns(&[1_000_000; 7]);
        assert_eq!(counts(&even, 7, 3..10), [1; 7]);
    }

    #[test]
    fn any_run_of_turns_is_close_to_the_weights() {
        for weights in [
            vec![1, 3],
            vec![1, 1, 1, 1, 1, 1, 1, 1, 1, 10],
            vec![999_983, 1_000_000, 1],
            vec![65_535, 1, 32_000, 9],
        ] {
            let turns = turns(&weights);
            let total: u64 = weights.iter().sum();
            let mut counts = vec![0_u64; weights.len()];
            let mut worst = 0.0_f64;
            for ticket in 0..200_000_u32 {
                counts[turns.at(u64::from(ticket))] += 1;
                for (weight, count) in weights.iter().zip(&counts) {
                    let share = *weight as f64 / total as f64;
                    let wanted = f64::from(ticket + 1) * share;
                    worst = worst.max((*count as f64 - wanted).abs());
                }
            }
            assert!(worst < 4.0, "{weights:?}: off by {worst}");
        }
    }

    #[test]
    fn a_heavy_endpoint_does_not_get_its_turns_all_at_once() {
        let turns = turns(&[1, 1, 1, 1, 1, 1, 1, 1, 1, 10]);
        let mut run = 0;
        for ticket in 0..1_000 {
            run = if turns.at(ticket) == 9 { run + 1 } else { 0 };
            assert!(run <= 3, "at {ticket}");
        }
    }

    #[test]
    fn weights_beyond_measure_keep_their_ratio_and_nobody_is_lost() {
        let parts = parts(&[u64::from(u32::MAX) << 10, u64::from(u32::MAX) << 9, 1]);
        assert!(parts.iter().map(|part| u64::from(*part)).sum::<u64>() <= u64::from(u32::MAX));
        assert!(parts[0] / 2 == parts[1] && parts[2] == 1, "{parts:?}");
        assert_eq!(super::parts(&[0, 0]), [1, 1]);
        assert!(super::parts(&[]).is_empty());
        let turns = turns(&[0, u64::MAX, 0]);
        assert_eq!(counts(&turns, 3, 0..10), [0, 10, 0]);
    }

    #[test]
    fn threads_that_take_turns_at_the_same_time_share_exactly() {
        let turns = turns(&[1, 2, 5]);
        let counts: Vec<u32> = std::thread::scope(|scope| {
            let take = || {
                let mut counts = [0_u32; 3];
                for _ in 0..10_000 {
                    counts[turns.next()] += 1;
                }
                counts
            };
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(take)).collect();
            let counts = threads.into_iter().map(|thread| thread.join().unwrap());
            counts.fold(vec![0; 3], |sum, one| {
                sum.iter().zip(one).map(|(sum, one)| sum + one).collect()
            })
        });
        assert_eq!(counts, [5_000, 10_000, 25_000]);
    }

    #[test]
    fn remainders_are_those_of_a_division() {
        let mut rng = Rng::seeded(2);
        let big = u64::from(u32::MAX);
        for value in [1, 2, 3, 10, 19, 65_536, 1_000_003, big - 1, big] {
            let modulus = Modulus::new(value);
            for number in [0, 1, value - 1, value, value + 1, u64::MAX] {
                assert_eq!(modulus.rest(number), number % value, "{number} {value}");
            }
            for _ in 0..1_000 {
                let number = rng.next();
                assert_eq!(modulus.rest(number), number % value, "{number} {value}");
            }
        }
    }
}
