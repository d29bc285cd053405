//! The options of a dialer.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures_core::Stream;
use lictor::Client;

use crate::about::{About, Wanted, watched};
use crate::channel::Policy;
use crate::endpoint::{EndpointSet, Target};
use crate::error::Result;
use crate::rotation::{Options, Rotation};
use crate::source::{HealthSource, Source};
use crate::telemetry::Probe;

use super::{Dialer, Line};

/// Builds a [`Dialer`].
#[must_use = "a builder does nothing until it is built"]
pub struct Builder<St> {
    source: Result<St>,
    probe: Probe<St>,
    about: About,
    options: Options,
}

impl Builder<HealthSource> {
    /// Begins with the instances of a service, as its health is known to Consul.
    ///
    /// All that are passing or in warning, each by its weight. To choose by tag, datacenter or
    /// filter, such as the `primary` of a database, hand a [`HealthSource`] of your own watch to
    /// [`new`](Self::new).
    pub fn service(client: &Client, name: impl Into<String>) -> Self {
        Self::wanted(client, &Wanted::from(name.into()))
    }

    pub(crate) fn wanted(client: &Client, wanted: &Wanted) -> Self {
        let (source, about) = watched(client, wanted);
        Self::begin(source, about).observe_source()
    }
}

impl<St> Builder<St>
where
    St: Stream<Item = EndpointSet> + Send + 'static,
{
    /// Begins with a source of endpoint sets, of the kind that
    /// [`Channel::from_source`](crate::channel::Channel::from_source) takes.
    pub fn new(source: St) -> Self {
        Self::begin(Ok(source), About::default())
    }

    fn begin(source: Result<St>, about: About) -> Self {
        Self {
            source,
            probe: None,
            about,
            // How long a connection lasts says nothing of how good it is.
            options: Options::new(Policy::PendingRequests),
        }
    }

    /// Says what the service is called in events, metrics, snapshots and errors.
    ///
    /// It is sent nowhere. Any text, best a short one, for it becomes a label of
    /// [metrics](crate::telemetry#metrics). Default: the name that the service was found by.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.about = self.about.named(name.into());
        self
    }

    /// Lets `snapshot` and events tell how well the source knows the service, as
    /// [`observe_source`](crate::channel::Builder::observe_source) of a channel does.
    pub fn observe_source(mut self) -> Self
    where
        St: Source,
    {
        self.probe = Some(St::status);
        self
    }

    /// Sets how long after the build connections wait for the first set of endpoints.
    ///
    /// After that they fail with [`NeverResolved`](crate::ErrorKind::NeverResolved) at once, until
    /// the set is there. Zero means not to wait. Default 10 s, as for a
    /// [`Channel`](crate::channel::Builder::first_resolution).
    pub fn first_resolution(mut self, limit: Duration) -> Self {
        self.options.first_resolution = limit;
        self
    }

    /// Sets how long one endpoint may take to accept, from the DNS query on if there is one.
    ///
    /// Above zero. Default 1 s: instances found by Consul are mostly near, and there are others.
    pub fn connect_timeout(mut self, limit: Duration) -> Self {
        self.options.patience = limit;
        self
    }

    /// Sets how many endpoints are tried for one connection.
    ///
    /// 1 to 16. Default 16: each endpoint is tried at most once.
    pub fn max_attempts(mut self, most: usize) -> Self {
        self.options.max_attempts = most;
        self
    }

    /// Starts to follow the source; nothing is connected yet.
    ///
    /// # Errors
    ///
    /// [`NoRuntime`](crate::ErrorKind::NoRuntime) outside of a Tokio runtime,
    /// [`Invalid`](crate::ErrorKind::Invalid) for an option out of its range or a service with a name
    /// that none can have.
    pub fn build(self) -> Result<Dialer> {
        self.options.check("connect_timeout")?;
        let line = |_: &Target| Line::default();
        let rotation = Rotation::start(self.source?, self.probe, self.about, self.options, line)?;
        Ok(Dialer {
            rotation: Arc::new(rotation),
        })
    }
}

impl<St> fmt::Debug for Builder<St> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Builder")
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}
