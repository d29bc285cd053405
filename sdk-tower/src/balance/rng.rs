//! Random numbers for picks: fast, one generator per handle, repeatable from a seed.

use super::hash;

/// A xorshift64* generator: good enough to spread load, no use for secrets.
#[derive(Clone, Debug)]
pub(crate) struct Rng(u64);

impl Rng {
    /// Neighbouring seeds give unrelated sequences: the seed goes through splitmix64 first.
    pub(crate) fn seeded(seed: u64) -> Self {
        // Zero is the one state that xorshift cannot leave.
        Self(hash::mix(seed).max(1))
    }

    #[inline]
    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    /// The upper half of the next number, which is its better half.
    #[inline]
    pub(crate) fn next_u32(&mut self) -> u32 {
        let [a, b, c, d, ..] = self.next().to_be_bytes();
        u32::from_be_bytes([a, b, c, d])
    }

    /// A number below `bound`, which is below 2³²; 0 for a bound of 0.
    ///
    /// Multiply and shift: the bias is below one in a million for a thousand endpoints.
    #[inline]
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        let bound = u64::try_from(bound).unwrap_or(u64::MAX) & 0xFFFF_FFFF;
        let scaled = (u64::from(self.next_u32()) * bound) >> 32;
        usize::try_from(scaled).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_seeds_repeat_and_neighbouring_seeds_do_not() {
        let draw = |seed| {
            let mut rng = Rng::seeded(seed);
            [rng.next(), rng.next(), rng.next()]
        };
        assert_eq!(draw(7), draw(7));
        assert_ne!(draw(7), draw(8));
        assert_ne!(draw(0), draw(1));
    }

    #[test]
    fn every_number_below_the_bound_is_equally_likely() {
        let mut rng = Rng::seeded(1);
        let mut seen = [0_u32; 7];
        for _ in 0..70_000 {
            seen[rng.below(7)] += 1;
        }
        for count in seen {
            assert!((9_600..10_400).contains(&count), "{seen:?}");
        }
        assert_eq!(rng.below(0), 0);
        assert_eq!(rng.below(1), 0);
    }
}
