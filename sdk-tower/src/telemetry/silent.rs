//! What stands in the place of the meters where the feature `metrics` is off: nothing.

use std::sync::Arc;
use std::time::Duration;

use crate::endpoint::Target;

use super::{Ending, Fate, Telemetry};

#[derive(Debug, Default)]
pub(super) struct Meters;

#[expect(
    clippy::unused_self,
    reason = "the same calls as where metrics are told"
)]
impl Meters {
    pub(super) fn new(_service: Option<&str>, _each: bool) -> Self {
        Self
    }

    pub(super) fn request(&self, _ending: Ending) {}

    pub(super) fn attempt(&self, _fate: Fate) {}

    pub(super) fn retry(&self, _after: Fate) {}

    pub(super) fn hedge(&self) {}

    pub(super) fn starved(&self) {}

    pub(super) fn ejection(&self, _reason: &'static str) {}

    pub(super) fn duration(&self, _latency: Duration) {}
}

#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Sample {
    pub(crate) endpoints: u32,
    pub(crate) ejected: u32,
    pub(crate) in_flight: u32,
}

#[derive(Debug)]
pub(crate) struct Gauges;

#[expect(
    clippy::unused_self,
    clippy::needless_pass_by_ref_mut,
    reason = "the same calls as where metrics are told"
)]
impl Gauges {
    pub(crate) const ARE_TOLD: bool = false;

    pub(crate) fn new(_telemetry: Arc<Telemetry>) -> Self {
        Self
    }

    pub(crate) fn tell_each(&self) -> bool {
        false
    }

    pub(crate) fn tell(&mut self, _sample: Sample) {}

    pub(crate) fn tell_endpoint(&mut self, _id: u32, _target: &Target, _load: u32, _out: bool) {}

    pub(crate) fn forget_others(&mut self) {}
}
