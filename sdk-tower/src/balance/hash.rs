//! Hashes that all clients agree on, whatever machine they run on and whenever they were built.

use std::fmt::{self, Write};

use crate::endpoint::Target;

/// What a request is about, for [`Policy::RingHash`](super::Policy::RingHash): requests with equal
/// keys go to the same endpoint.
///
/// Put it into the extensions of a request, or let
/// [`hash_by`](crate::channel::Builder::hash_by) make it from each. Take what the endpoints cache or keep
/// apart: a user, a document, a session. The hash is the same on all platforms and in all releases,
/// so that many clients send one key to one endpoint. It is no secret and not made to withstand
/// those who search for keys with equal hashes; that an endpoint's load is bounded does.
///
/// # Examples
///
/// ```
/// use http::Request;
/// use lictor_tower::channel::HashKey;
///
/// let request = Request::get("/cart").extension(HashKey::new("user-17")).body(())?;
/// # drop(request);
/// # Ok::<(), http::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct HashKey(u64);

impl HashKey {
    /// The key of these bytes.
    #[must_use]
    pub fn new(bytes: impl AsRef<[u8]>) -> Self {
        let mut fnv = Fnv::new();
        fnv.add(bytes.as_ref());
        Self(mix(fnv.0))
    }

    pub(crate) fn value(self) -> u64 {
        self.0
    }
}

/// The hash of a target as it is written.
pub(crate) fn of_target(target: &Target) -> u64 {
    let mut fnv = Fnv::new();
    // It cannot fail: nothing is allocated, and nothing has a limit.
    write!(fnv, "{target}").ok();
    mix(fnv.0)
}

/// Spreads the differences of neighbouring numbers over all bits (the end of splitmix64).
pub(crate) fn mix(number: u64) -> u64 {
    let mut mixed = number.wrapping_add(0x9E37_79B9_7F4A_7C15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    mixed ^ (mixed >> 31)
}

/// FNV-1a: byte by byte, for texts that are short. Its upper bits are weak, so it is mixed.
struct Fnv(u64);

impl Fnv {
    fn new() -> Self {
        Self(0xCBF2_9CE4_8422_2325)
    }

    fn add(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01B3);
        }
    }
}

impl Write for Fnv {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.add(text.as_bytes());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_the_same_in_all_releases() {
        let mut fnv = Fnv::new();
        fnv.add(b"foobar");
        // From the test vectors of FNV-1a, and from splitmix64 seeded with 0.
        assert_eq!(fnv.0, 0x8594_4171_F739_67E8);
        assert_eq!(mix(0), 0xE220_A839_7B1D_CDAF);
    }

    #[test]
    fn a_target_is_hashed_as_it_is_written() {
        let target: Target = "[2001:db8::1]:8080".parse().unwrap();
        assert_eq!(
            of_target(&target),
            HashKey::new("[2001:db8::1]:8080").value()
        );
    }

    #[test]
    fn neighbouring_keys_differ_in_half_of_their_bits() {
        let bits: u32 = (0..1_000_u32)
            .map(|number| {
                let [one, next] = [number, number + 1].map(|n| HashKey::new(n.to_string()).value());
                (one ^ next).count_ones()
            })
            .sum();
        assert!((31_000..33_000).contains(&bits), "{bits}");
    }
}
