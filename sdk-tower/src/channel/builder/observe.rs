//! What is told to those who watch.

use futures_core::Stream;

use crate::endpoint::EndpointSet;
use crate::source::Source;

use super::Builder;

impl<S> Builder<S>
where
    S: Stream<Item = EndpointSet> + Send + 'static,
{
    /// Says what the service is called in spans, events, metrics, snapshots and errors.
    ///
    /// It is sent nowhere; for what requests name see [`host`](Self::host). Any text, best a short
    /// one, for it becomes a label of [metrics](crate::telemetry#metrics). Default: the name that
    /// the service was found by, else the host.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.about = self.about.named(name.into());
        self
    }

    /// Lets the gauges tell of each endpoint, not only of all.
    ///
    /// See [metrics](crate::telemetry#metrics). Each endpoint that was ever there is a series in
    /// whatever stores them: for services of a few dozen instances. Without the feature `metrics`
    /// it does nothing. Default off.
    pub fn endpoint_gauges(mut self) -> Self {
        self.endpoint_gauges = true;
        self
    }
}

impl<S: Source> Builder<S> {
    /// Lets [`snapshot`](crate::Channel::snapshot) and events tell how well the source knows the
    /// service.
    ///
    /// For a source that was handed to [`Channel::from_source`](crate::Channel::from_source),
    /// which takes streams that cannot tell. A channel that was built by the name of a service
    /// does it by itself.
    pub fn observe_source(mut self) -> Self {
        self.probe = Some(S::status);
        self
    }
}
