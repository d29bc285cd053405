//! How many retries a client affords itself: a share of its requests.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

/// What retries and hedges are paid from.
///
/// Each request pays in a share of a retry, each retry takes a whole one out. So retries stay a
/// share of the requests, however many fail: when everything is down they do not multiply the
/// load of those who try to come back. A few retries per second are granted beside that, or a
/// client with little traffic would have none.
///
/// What was paid in and not used is forgotten after 5 to 10 s: an hour that went well does not
/// pay for a storm. In any `t` seconds there are at most `share × requests of these and the 10 s
/// before + minimum × (t + 1)` retries.
///
/// Default: 20 % and 10 per second, over 10 s, as in Finagle's `RetryBudget` and in linkerd. A
/// clone is the same budget; give one to several channels if they call the same machines.
#[derive(Clone)]
pub struct Budget {
    shared: Arc<Shared>,
}

struct Shared {
    percent: u32,
    per_second: u32,
    /// [`Savings`], packed.
    savings: AtomicU64,
    /// Nanoseconds since `start` at which the [`Allowance`] is whole again.
    allowance: AtomicU64,
    start: Instant,
}

impl Budget {
    /// A budget of a share of the requests and a number of retries per second beside that.
    ///
    /// `percent` is in hundredths of a retry per request: 20 allows one retry for every five
    /// requests, 0 none; more than 1000 is 1000. `per_second` may be 0; more than 100,000 is
    /// 100,000.
    #[must_use]
    pub fn new(percent: u32, per_second: u32) -> Self {
        Self {
            shared: Arc::new(Shared {
                percent: percent.min(1_000),
                per_second: per_second.min(100_000),
                savings: AtomicU64::new(0),
                allowance: AtomicU64::new(0),
                start: Instant::now(),
            }),
        }
    }

    /// A request has begun.
    pub(crate) fn deposit(&self) {
        let shared = &*self.shared;
        let epoch = epoch(shared.start.elapsed());
        shared
            .savings
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |word| {
                let saved = Savings::unpack(word).at(epoch);
                Some(saved.deposited(shared.percent).pack())
            })
            .ok();
    }

    /// Takes a retry out; false if there is none left.
    pub(crate) fn withdraw(&self) -> bool {
        let shared = &*self.shared;
        let now = shared.start.elapsed();
        let epoch = epoch(now);
        let saved = shared
            .savings
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |word| {
                let rest = Savings::unpack(word).at(epoch).withdrawn()?;
                Some(rest.pack())
            });
        if saved.is_ok() {
            return true;
        }
        let now = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX);
        shared
            .allowance
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |whole_at| {
                drawn(whole_at, now, shared.per_second)
            })
            .is_ok()
    }
}

/// One retry of an allowance of so many per second, which saves up for a second at most.
///
/// `whole_at` is when the allowance will be whole again if nobody draws: each draw puts that off
/// by the time of one retry.
fn drawn(whole_at: u64, now: u64, per_second: u32) -> Option<u64> {
    let each = NANOS.checked_div(u64::from(per_second))?;
    let then = whole_at.max(now) + each;
    (then <= now + NANOS).then_some(then)
}

const NANOS: u64 = 1_000_000_000;

/// How long what was paid in counts as new; it counts as long again as old.
const GENERATION: Duration = Duration::from_secs(5);

/// The price of a retry.
const WHOLE: u32 = 100;

/// What fits into one generation.
const MOST: u32 = (1 << 24) - 1;

fn epoch(now: Duration) -> u16 {
    let [.., high, low] = (now.as_secs() / GENERATION.as_secs()).to_be_bytes();
    u16::from_be_bytes([high, low])
}

/// What was paid in and not used, in hundredths of a retry, by age.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
struct Savings {
    /// Wraps after 91 hours: then a few old savings may be taken for new ones.
    epoch: u16,
    old: u32,
    new: u32,
}

impl Savings {
    /// The same at this time: what is too old is gone.
    fn at(self, epoch: u16) -> Self {
        match epoch.wrapping_sub(self.epoch) {
            0 => self,
            // A thread that was held up asks with a time that has passed.
            late if late > u16::MAX / 2 => self,
            1 => Self {
                epoch,
                old: self.new,
                new: 0,
            },
            _ => Self {
                epoch,
                old: 0,
                new: 0,
            },
        }
    }

    fn deposited(self, part: u32) -> Self {
        Self {
            new: (self.new + part).min(MOST),
            ..self
        }
    }

    /// The oldest is used first.
    fn withdrawn(self) -> Option<Self> {
        let from_old = self.old.min(WHOLE);
        let new = self.new.checked_sub(WHOLE - from_old)?;
        Some(Self {
            old: self.old - from_old,
            new,
            ..self
        })
    }

    fn pack(self) -> u64 {
        (u64::from(self.epoch) << 48) | (u64::from(self.old) << 24) | u64::from(self.new)
    }

    fn unpack(word: u64) -> Self {
        let [a, b, c, d, e, f, g, h] = word.to_be_bytes();
        Self {
            epoch: u16::from_be_bytes([a, b]),
            old: u32::from_be_bytes([0, c, d, e]),
            new: u32::from_be_bytes([0, f, g, h]),
        }
    }
}

impl Default for Budget {
    fn default() -> Self {
        Self::new(20, 10)
    }
}

impl fmt::Debug for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Budget")
            .field("percent", &self.shared.percent)
            .field("per_second", &self.shared.per_second)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn retries_are_the_stated_share_of_requests_to_one_percent() {
        for percent in (10..=90).step_by(10) {
            let budget = Budget::new(percent, 0);
            let mut retries = 0;
            for request in 0..10_000_u32 {
                budget.deposit();
                // Everything fails, and everybody tries again as often as he may.
                while budget.withdraw() {
                    retries += 1;
                }
                if request % 10 == 0 {
                    tokio::time::advance(Duration::from_millis(20)).await;
                }
            }
            let exact = percent * 100;
            let wrong = u32::abs_diff(retries, exact);
            assert!(wrong * 100 <= exact, "{retries} for {percent} %");
        }
    }

    #[test]
    fn the_share_is_exact_when_threads_contend() {
        let budget = Budget::new(30, 0);
        let threads: Vec<_> = (0..4)
            .map(|_| {
                let budget = budget.clone();
                thread::spawn(move || {
                    (0..25_000)
                        .filter(|_| {
                            budget.deposit();
                            budget.withdraw()
                        })
                        .count()
                })
            })
            .collect();
        let mut taken: usize = threads.into_iter().map(|one| one.join().unwrap()).sum();
        while budget.withdraw() {
            taken += 1;
        }
        assert_eq!(taken, 30_000);
    }

    #[tokio::test(start_paused = true)]
    async fn without_requests_there_are_a_few_retries_each_second() {
        let budget = Budget::new(20, 10);
        let mut taken = 0;
        for _ in 0..1_000 {
            while budget.withdraw() {
                taken += 1;
            }
            tokio::time::advance(Duration::from_millis(10)).await;
        }
        assert!((105..=110).contains(&taken), "{taken}");
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_not_used_is_forgotten() {
        let budget = Budget::new(20, 0);
        let fill = || (0..500).for_each(|_| budget.deposit());
        let left = || (0..).take_while(|_| budget.withdraw()).count();
        fill();
        tokio::time::advance(Duration::from_secs(4)).await;
        assert_eq!(left(), 100);
        fill();
        tokio::time::advance(Duration::from_secs(5)).await;
        assert_eq!(left(), 100);
        fill();
        tokio::time::advance(Duration::from_secs(10)).await;
        assert_eq!(left(), 0);
    }

    #[test]
    fn a_budget_of_nothing_allows_nothing_and_the_greatest_does_not_overflow() {
        let none = Budget::new(0, 0);
        none.deposit();
        assert!(!none.withdraw());
        let great = Budget::new(u32::MAX, u32::MAX);
        for _ in 0..50_000 {
            great.deposit();
        }
        assert!(great.withdraw());
    }

    #[test]
    fn packing_loses_nothing() {
        for saved in [
            Savings::default(),
            Savings {
                epoch: 0xABCD,
                old: MOST,
                new: 0x12_3456,
            },
        ] {
            assert_eq!(Savings::unpack(saved.pack()), saved);
        }
    }
}
