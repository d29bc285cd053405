//! Drawing an endpoint with a probability proportional to its weight, in constant time.

use super::rng::Rng;

/// How to draw from a list of entries.
#[derive(Debug)]
pub(crate) enum Sampler {
    /// All weigh the same.
    Even { len: usize },
    /// Walker's alias method: each column holds its own entry and at most one other.
    Weighted { columns: Box<[Column]> },
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Column {
    /// The share of the column, in 2⁻³², that belongs to its own entry.
    own: u32,
    other: usize,
}

impl Sampler {
    /// A sampler for these weights; a list in which all are 0 is drawn from evenly.
    pub(crate) fn new(weights: &[u64]) -> Self {
        let len = weights.len();
        let even = weights.windows(2).all(|pair| pair.first() == pair.last());
        if even {
            Self::Even { len }
        } else {
            Self::Weighted {
                columns: columns(weights),
            }
        }
    }

    #[inline]
    pub(crate) fn draw(&self, rng: &mut Rng) -> usize {
        match self {
            Self::Even { len } => rng.below(*len),
            Self::Weighted { columns } => {
                let at = rng.below(columns.len());
                match columns.get(at) {
                    Some(column) if rng.next_u32() > column.own => column.other,
                    _ => at,
                }
            }
        }
    }

    /// Two different entries, the first drawn by weight; the same twice if there is only one.
    #[inline]
    pub(crate) fn draw_two(&self, rng: &mut Rng) -> (usize, usize) {
        let first = self.draw(rng);
        match self {
            Self::Even { len } => {
                let second = rng.below(len.saturating_sub(1));
                (
                    first,
                    if second < first {
                        second
                    } else {
                        (second + 1).min(len - 1)
                    },
                )
            }
            Self::Weighted { columns } => {
                // A heavy entry may come again and again: after some draws its neighbour will do.
                for _ in 0..4 {
                    let second = self.draw(rng);
                    if second != first {
                        return (first, second);
                    }
                }
                (first, (first + 1) % columns.len().max(1))
            }
        }
    }
}

/// Vose's construction: entries above the average fill up the columns of those below.
fn columns(weights: &[u64]) -> Box<[Column]> {
    let full: u128 = weights.iter().copied().map(u128::from).sum();
    let len = u64::try_from(weights.len()).unwrap_or(u64::MAX);
    // In units in which a full column is the sum of the weights.
    let mut filled: Vec<u128> = weights
        .iter()
        .map(|weight| u128::from(*weight) * u128::from(len))
        .collect();
    let mut columns: Vec<Column> = (0..weights.len())
        .map(|at| Column {
            own: u32::MAX,
            other: at,
        })
        .collect();
    let (mut below, mut above): (Vec<usize>, Vec<usize>) =
        (0..weights.len()).partition(|at| filled.get(*at).is_some_and(|share| *share < full));
    while let (Some(low), Some(high)) = (below.pop(), above.pop()) {
        let share = filled.get(low).copied().unwrap_or(full);
        if let Some(column) = columns.get_mut(low) {
            let own = (share << 32).checked_div(full).unwrap_or(0);
            *column = Column {
                own: u32::try_from(own).unwrap_or(u32::MAX),
                other: high,
            };
        }
        let rest = filled.get_mut(high).map_or(0, |left| {
            *left -= (full - share).min(*left);
            *left
        });
        if rest < full {
            below.push(high);
        } else {
            above.push(high);
        }
    }
    columns.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    const DRAWS: u32 = 200_000;

    fn shares(weights: &[u64]) -> Vec<f64> {
        let sampler = Sampler::new(weights);
        let mut rng = Rng::seeded(42);
        let mut seen = vec![0_u32; weights.len()];
        for _ in 0..DRAWS {
            seen[sampler.draw(&mut rng)] += 1;
        }
        seen.into_iter()
            .map(|count| f64::from(count) / f64::from(DRAWS))
            .collect()
    }

    #[test]
    fn shares_follow_the_weights() {
        for weights in [
            vec![1, 3],
            vec![1, 1, 1, 1, 10],
            vec![5, 0, 5, 7],
            vec![u64::from(u32::MAX), u64::from(u32::MAX / 2)],
            vec![65_535, 1, 32_000, 9],
        ] {
            let total = weights.iter().sum::<u64>() as f64;
            for (weight, share) in weights.iter().zip(shares(&weights)) {
                let wanted = *weight as f64 / total;
                assert!(
                    (share - wanted).abs() < 0.005,
                    "{weights:?}: {share} {wanted}"
                );
            }
        }
    }

    #[test]
    fn equal_weights_are_drawn_evenly() {
        assert!(matches!(Sampler::new(&[7, 7, 7]), Sampler::Even { len: 3 }));
        assert!(matches!(Sampler::new(&[0, 0]), Sampler::Even { len: 2 }));
        for share in shares(&[4, 4, 4, 4]) {
            assert!((share - 0.25).abs() < 0.005);
        }
    }

    #[test]
    fn two_draws_are_two_entries() {
        let mut rng = Rng::seeded(3);
        for weights in [vec![1, 1], vec![1, 1, 1], vec![1, 1_000_000], vec![0, 1, 0]] {
            let sampler = Sampler::new(&weights);
            for _ in 0..1_000 {
                let (first, second) = sampler.draw_two(&mut rng);
                assert_ne!(first, second, "{weights:?}");
                assert!(first < weights.len() && second < weights.len());
            }
        }
    }

    #[test]
    fn one_entry_is_drawn_twice() {
        assert_eq!(Sampler::new(&[5]).draw_two(&mut Rng::seeded(1)), (0, 0));
    }

    #[test]
    fn both_draws_are_even_over_all_entries() {
        let sampler = Sampler::new(&[1; 5]);
        let mut rng = Rng::seeded(9);
        let mut seen = [[0_u32; 5]; 2];
        for _ in 0..50_000 {
            let (first, second) = sampler.draw_two(&mut rng);
            seen[0][first] += 1;
            seen[1][second] += 1;
        }
        for count in seen.into_iter().flatten() {
            assert!((9_500..10_500).contains(&count), "{seen:?}");
        }
    }
}
