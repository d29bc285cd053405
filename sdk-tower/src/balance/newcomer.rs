//! Slow start: an endpoint that joins others gets its share little by little.

use std::time::Duration;

use super::tick::Tick;

/// The whole weight, in the unit in which shares of it are counted.
pub(crate) const WHOLE: u32 = 1_000;

/// What a newcomer begins with: a tenth, as in Envoy, which is enough to warm up with.
const FIRST: u32 = WHOLE / 10;

/// The share of its weight that an endpoint has which joined at this time.
///
/// It grows linearly, and within the window it is never whole.
pub(crate) fn share(joined: Option<Tick>, window: Duration, now: Tick) -> u32 {
    let Some(joined) = joined else { return WHOLE };
    let passed = Duration::from_millis(now.millis_since(joined).into());
    if passed >= window {
        return WHOLE;
    }
    let grown = passed.as_millis() * u128::from(WHOLE) / window.as_millis().max(1);
    u32::try_from(grown)
        .unwrap_or(WHOLE)
        .clamp(FIRST, WHOLE - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_grows_from_a_tenth_to_the_whole() {
        let window = Duration::from_secs(10);
        let after = |millis| {
            let now = Tick::default().plus(Duration::from_millis(millis));
            share(Some(Tick::default()), window, now)
        };
        let told = [0, 500, 1_000, 2_000, 5_000, 9_999, 10_000, 1_000_000].map(after);
        assert_eq!(told, [100, 100, 100, 200, 500, 999, 1_000, 1_000]);
    }

    #[test]
    fn nobody_is_new_without_a_window_or_a_time() {
        let now = Tick::default().plus(Duration::from_secs(1));
        assert_eq!(share(None, Duration::MAX, now), WHOLE);
        assert_eq!(share(Some(now), Duration::ZERO, now), WHOLE);
        assert_eq!(share(Some(now), Duration::from_nanos(1), now), FIRST);
    }
}
