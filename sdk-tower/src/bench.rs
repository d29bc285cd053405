//! The pick by itself, for this repository's benches. Nobody else may rely on it: it may change or
//! go with any release.

use std::fmt;
use std::sync::Arc;

use futures_core::Stream;
use tokio::time::Instant;

use crate::balance::{
    self, Backend, Balance, Choice, InFlight, Phase, Picker, Policy, Rules, Time,
};
use crate::endpoint::EndpointSet;
use crate::error::Result;
use crate::task::Runtime;
use crate::telemetry::Telemetry;

/// Picks among endpoints at which there is nothing to call. A clone has a picker of its own, as
/// that of a channel has.
pub struct Picks {
    balance: Arc<Balance<Nothing>>,
    picker: Picker<Nothing>,
}

struct Nothing;

impl Backend for Nothing {
    fn retire(&self) {}

    fn age(&self) {}
}

impl Picks {
    /// Begins to follow a source.
    ///
    /// # Errors
    ///
    /// Outside of a runtime.
    pub fn new<S>(source: S, policy: Policy) -> Result<Self>
    where
        S: Stream<Item = EndpointSet> + Send + 'static,
    {
        let runtime = Runtime::current()?;
        let telemetry = Arc::new(Telemetry::new(None, false));
        let rules = Rules::of(policy);
        let balance = balance::start(&runtime, source, rules, &telemetry, |_| Nothing);
        let picker = Picker::new(&balance);
        Ok(Self { balance, picker })
    }

    /// Whether there is somebody to pick.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.balance.snapshot().phase() == Phase::Ready
    }

    /// Picks an endpoint and counts a request in flight on it, which ends at once.
    pub fn pick(&mut self) -> bool {
        let moment = self.balance.moment();
        self.choose(moment).is_some()
    }

    /// The same, and the request is answered: the clock is read when it is picked and when it is
    /// over, and the latency is counted.
    pub fn pick_and_answer(&mut self) -> bool {
        let clock = self.balance.clock();
        let begin = Instant::now();
        let Some(flight) = self.choose(clock.at(begin)) else {
            return false;
        };
        let end = Instant::now();
        flight.answered(end.saturating_duration_since(begin), clock.at(end));
        true
    }

    fn choose(&mut self, now: impl Time) -> Option<InFlight<Nothing>> {
        match self.picker.pick(&self.balance, None, now) {
            Choice::Picked(flight) => Some(flight),
            Choice::Exhausted | Choice::Empty | Choice::Unknown => None,
        }
    }
}

impl Clone for Picks {
    fn clone(&self) -> Self {
        Self {
            picker: self.picker.another(&self.balance),
            balance: Arc::clone(&self.balance),
        }
    }
}

impl fmt::Debug for Picks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Picks").finish_non_exhaustive()
    }
}
