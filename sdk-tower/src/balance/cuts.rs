//! Finding the interval that a number lies in, in constant time.

/// Where a range of numbers is cut: a sorted list, with a table that says where to look in it.
///
/// The table has a bucket for each cut or so. Cuts that are spread evenly have one or two in a
/// bucket; where many stand close together they are searched by halving.
#[derive(Debug)]
pub(crate) struct Cuts {
    sorted: Box<[u32]>,
    /// For each bucket the place of the first cut above its lowest number, and the length.
    buckets: Box<[u32]>,
    shift: u32,
}

impl Cuts {
    /// The cuts in ascending order; at most 2³² of them.
    pub(crate) fn new(sorted: Box<[u32]>) -> Self {
        let len = place(sorted.len());
        let highest = sorted.last().copied().unwrap_or(0);
        let shift = bits(highest).saturating_sub(bits(len));
        let count = (highest >> shift).saturating_add(1);
        let mut buckets = Vec::with_capacity(sorted.len().saturating_mul(2));
        let mut at = 0;
        for bucket in 0..count {
            let lowest = bucket << shift;
            while sorted.get(at).is_some_and(|cut| *cut <= lowest) {
                at += 1;
            }
            buckets.push(place(at));
        }
        buckets.push(len);
        Self {
            sorted,
            buckets: buckets.into(),
            shift,
        }
    }

    /// The cuts.
    pub(crate) fn sorted(&self) -> &[u32] {
        &self.sorted
    }

    /// How many cuts are not above this number: the place of the first one that is.
    pub(crate) fn not_above(&self, number: u32) -> usize {
        let bucket = wide(number >> self.shift);
        let bound = |bucket: usize| self.buckets.get(bucket).copied().map(wide);
        let (Some(from), Some(to)) = (bound(bucket), bound(bucket + 1)) else {
            return self.sorted.len();
        };
        let within = self.sorted.get(from..to).unwrap_or_default();
        from + within.partition_point(|cut| *cut <= number)
    }
}

fn bits(number: u32) -> u32 {
    u32::BITS - number.leading_zeros()
}

fn place(at: usize) -> u32 {
    u32::try_from(at).unwrap_or(u32::MAX)
}

fn wide(at: u32) -> usize {
    usize::try_from(at).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::super::rng::Rng;
    use super::*;

    fn agrees_with_a_search(sorted: &[u32], asked: impl IntoIterator<Item = u32>) {
        let cuts = Cuts::new(sorted.into());
        for number in asked {
            let wanted = sorted.iter().filter(|cut| **cut <= number).count();
            assert_eq!(cuts.not_above(number), wanted, "{number} in {sorted:?}");
        }
    }

    #[test]
    fn every_number_finds_its_interval() {
        agrees_with_a_search(&[1], 0..3);
        agrees_with_a_search(&[1, 2, 3, 4], 0..6);
        agrees_with_a_search(&[3, 3, 4, 10, 11, 12, 1_000], 0..1_100);
        agrees_with_a_search(&[], [0, 1, u32::MAX]);
        agrees_with_a_search(&[0, 0, u32::MAX], [0, 1, u32::MAX - 1, u32::MAX]);
        agrees_with_a_search(&[1 << 31, (1 << 31) + 1], [0, 1 << 31, u32::MAX]);
    }

    #[test]
    fn cuts_that_stand_anywhere_are_found() {
        let mut rng = Rng::seeded(4);
        for len in [2, 17, 100, 1_000] {
            for spread in [0, 8, 20] {
                let mut sorted: Vec<u32> = (0..len).map(|_| rng.next_u32() >> spread).collect();
                sorted.sort_unstable();
                let asked: Vec<u32> = (0..200).map(|_| rng.next_u32() >> spread).collect();
                agrees_with_a_search(&sorted, asked);
            }
        }
    }

    #[test]
    fn the_table_is_at_most_twice_as_long_as_the_list() {
        let mut rng = Rng::seeded(5);
        for len in [1, 2, 1_000, 1_023, 1_024, 1_025] {
            let mut sorted: Vec<u32> = (0..len).map(|_| rng.next_u32()).collect();
            sorted.sort_unstable();
            let cuts = Cuts::new(sorted.into());
            assert!(cuts.buckets.len() <= 2 * cuts.sorted.len() + 1);
        }
    }
}
