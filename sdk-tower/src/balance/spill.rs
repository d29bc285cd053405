//! How much of the traffic goes to those who are further away.

/// All requests, in the unit in which shares of them are counted.
pub(crate) const WHOLE: u32 = 1 << 31;

/// How much more than its even share an endpoint is thought to bear: Envoy's overprovisioning
/// factor. A group keeps all requests until less than 1/1.4 = 72 % of it is well.
const OVERPROVISIONED: f64 = 1.4;

/// Which draws below [`WHOLE`] fall to each group, the nearest first: those below its number and
/// not below that of the group before it.
///
/// `health` is the part of each group that is well, none for groups that are a last resort only.
/// A group takes what it can bear and leaves the rest to the next; if all together cannot bear
/// everything, each takes in proportion.
pub(crate) fn bounds(health: &[Option<f64>]) -> Vec<u32> {
    let bears = |part: &Option<f64>| (part.unwrap_or(0.0) * OVERPROVISIONED).clamp(0.0, 1.0);
    let all: f64 = health.iter().map(bears).sum();
    if all <= 0.0 {
        // Nobody is well: it is as if all were.
        return vec![WHOLE; health.len()];
    }
    let mut taken = 0.0_f64;
    health
        .iter()
        .map(|part| {
            taken = (taken + bears(part) / all.min(1.0)).min(1.0);
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "between 0 and 2^31"
            )]
            let bound = (taken * f64::from(WHOLE)).round() as u32;
            bound
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shares(health: &[f64]) -> Vec<f64> {
        let health: Vec<_> = health.iter().copied().map(Some).collect();
        let mut before = 0;
        bounds(&health)
            .into_iter()
            .map(|bound| {
                let share = f64::from(bound - before) / f64::from(WHOLE);
                before = bound;
                (share * 1_000.0).round() / 1_000.0
            })
            .collect()
    }

    #[test]
    fn the_nearest_keep_all_until_72_percent_are_well() {
        assert_eq!(shares(&[1.0, 1.0]), [1.0, 0.0]);
        assert_eq!(shares(&[0.72, 1.0]), [1.0, 0.0]);
        assert_eq!(shares(&[0.7, 1.0]), [0.98, 0.02]);
        assert_eq!(shares(&[0.5, 1.0]), [0.7, 0.3]);
        assert_eq!(shares(&[0.25, 1.0]), [0.35, 0.65]);
        assert_eq!(shares(&[0.0, 1.0]), [0.0, 1.0]);
    }

    #[test]
    fn what_the_second_cannot_bear_goes_to_the_third() {
        assert_eq!(shares(&[0.5, 0.1, 1.0]), [0.7, 0.14, 0.16]);
        assert_eq!(shares(&[0.0, 0.5, 1.0]), [0.0, 0.7, 0.3]);
    }

    #[test]
    fn too_few_for_everything_share_in_proportion() {
        assert_eq!(shares(&[0.25, 0.25]), [0.5, 0.5]);
        assert_eq!(shares(&[0.1, 0.3]), [0.25, 0.75]);
        assert_eq!(shares(&[0.0, 0.0]), [1.0, 0.0]);
        assert_eq!(shares(&[0.1]), [1.0]);
        assert!(shares(&[]).is_empty());
    }

    #[test]
    fn a_last_resort_gets_nothing_while_somebody_is_well() {
        assert_eq!(bounds(&[None, Some(0.3)]), [0, WHOLE]);
        assert_eq!(bounds(&[Some(0.5), None]), [WHOLE, WHOLE]);
        assert_eq!(bounds(&[None, None]), [WHOLE, WHOLE]);
    }
}
