//! The options of a channel.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures_core::Stream;
use http::uri::Authority;

use crate::about::About;
use crate::balance::{self, MOST_ATTEMPTS, Policy};
use crate::connect::{IDLE_AGES, Pool, Protocol, Settings};
use crate::endpoint::{EndpointSet, Target};
use crate::error::{Error, ErrorKind};
use crate::task::Runtime;

use super::request::{Addressing, Name};
use super::upstream::Upstream;
use super::{Channel, Core, Picker};

/// Builds a [`Channel`]; made by [`Channel::builder`] or [`Channel::from_source`].
#[must_use = "a builder does nothing until it is built"]
pub struct Builder<S> {
    source: Result<S, Error>,
    about: About,
    host: Option<String>,
    policy: Policy,
    protocol: Protocol,
    first_resolution: Duration,
    connect_timeout: Duration,
    timeout: Option<Duration>,
    idle_timeout: Duration,
    max_idle: usize,
    max_attempts: usize,
    tell_target: bool,
}

impl<S> Builder<S>
where
    S: Stream<Item = EndpointSet> + Send + 'static,
{
    pub(crate) fn new(source: Result<S, Error>) -> Self {
        Self {
            source,
            about: About::default(),
            host: None,
            policy: Policy::default(),
            protocol: Protocol::default(),
            first_resolution: Duration::from_secs(10),
            connect_timeout: Duration::from_secs(1),
            timeout: None,
            idle_timeout: Duration::from_secs(90),
            max_idle: 256,
            max_attempts: MOST_ATTEMPTS,
            tell_target: false,
        }
    }

    pub(crate) fn about(mut self, about: About) -> Self {
        self.about = about;
        self
    }

    /// Sets the host that requests name which name none themselves.
    ///
    /// A host with an optional port, mostly the name of the service. Without it such requests
    /// name the address of the endpoint they are sent to.
    pub fn host(mut self, host: impl Into<String>) -> Self {
        self.host = Some(host.into());
        self
    }

    /// Sets how the better of two endpoints is told.
    ///
    /// Default [`Policy::PeakEwma`].
    pub fn policy(mut self, policy: Policy) -> Self {
        self.policy = policy;
        self
    }

    /// Sets the version of HTTP.
    ///
    /// Default [`Protocol::Http1`].
    pub fn protocol(mut self, protocol: Protocol) -> Self {
        self.protocol = protocol;
        self
    }

    /// Sets how long after the channel is built requests wait for the first set of endpoints.
    ///
    /// After that they fail with [`ErrorKind::NeverResolved`] at once, until the set is there.
    /// Zero means not to wait. Default 10 s: enough for an agent that has just started, and less
    /// than most callers wait.
    pub fn first_resolution(mut self, limit: Duration) -> Self {
        self.first_resolution = limit;
        self
    }

    /// Sets the limit for opening a connection, from the DNS query on if there is one.
    ///
    /// Above zero. Default 1 s: instances found by Consul are mostly near, and a request goes to
    /// another endpoint afterwards.
    pub fn connect_timeout(mut self, limit: Duration) -> Self {
        self.connect_timeout = limit;
        self
    }

    /// Sets the deadline of a request, until the head of the response is there.
    ///
    /// It includes the wait for the first resolution and all attempts; it does not include
    /// reading the body. Above zero. Default none.
    pub fn timeout(mut self, limit: Duration) -> Self {
        self.timeout = Some(limit);
        self
    }

    /// Sets how long a connection is kept that nobody uses.
    ///
    /// It is closed between three quarters of this time and the whole. Above zero; more than four
    /// days are four days. Default 90 s, as in Go's client and in hyper-util.
    pub fn idle_timeout(mut self, limit: Duration) -> Self {
        self.idle_timeout = limit;
        self
    }

    /// Sets how many unused connections are kept to one endpoint.
    ///
    /// With 0 each request opens a connection. Of no meaning for HTTP/2. Default 256.
    pub fn max_idle_per_endpoint(mut self, most: usize) -> Self {
        self.max_idle = most;
        self
    }

    /// Sets on how many endpoints a request is tried that cannot be sent.
    ///
    /// 1 to 16. Default 16: each endpoint is tried at most once.
    pub fn max_attempts(mut self, most: usize) -> Self {
        self.max_attempts = most;
        self
    }

    /// Puts the [`Target`] that answered into the extensions of each response.
    ///
    /// For middleware above the channel that replaces the body; everybody else asks
    /// [`Body::target`](super::Body::target), which costs nothing. Default off: an extension costs
    /// three allocations.
    pub fn target_extension(mut self) -> Self {
        self.tell_target = true;
        self
    }

    /// Starts to follow the source and gives the channel.
    ///
    /// Nothing is connected yet: connections are opened when there are requests.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NoRuntime`] outside of a Tokio runtime, [`ErrorKind::Invalid`] for an option
    /// out of its range.
    pub fn build(self) -> Result<Channel, Error> {
        let runtime = Runtime::current()
            .map_err(|error| error.context("a channel runs as a task: build it inside one"))?;
        let host = self.host.as_deref().map(host_name).transpose()?;
        for (option, time) in [
            ("connect_timeout", self.connect_timeout),
            ("timeout", self.timeout.unwrap_or(Duration::MAX)),
            ("idle_timeout", self.idle_timeout),
        ] {
            if time.is_zero() {
                return Err(invalid(format!("{option} is zero; give a time above")));
            }
        }
        if !(1..=MOST_ATTEMPTS).contains(&self.max_attempts) {
            return Err(invalid(format!(
                "max_attempts is {}; give 1 to {MOST_ATTEMPTS}",
                self.max_attempts
            )));
        }
        let settings = Arc::new(Settings {
            runtime: runtime.clone(),
            protocol: self.protocol,
            connect_timeout: self.connect_timeout,
            most_idle: self.max_idle,
        });
        // A tick is neither so short that it keeps a processor busy nor so long that the
        // milliseconds of the statistics wrap in between.
        let age_every = (self.idle_timeout / IDLE_AGES).clamp(SHORTEST_AGE, LONGEST_AGE);
        let make = move |target: &Target| {
            Upstream::new(target, Pool::new(target.clone(), Arc::clone(&settings)))
        };
        let balance = balance::start(&runtime, self.source?, self.policy, age_every, make);
        Ok(Channel {
            picker: Picker::new(&balance),
            core: Arc::new(Core {
                balance,
                runtime,
                about: self.about,
                addressing: Addressing {
                    protocol: self.protocol,
                    host,
                },
                first_resolution: self.first_resolution,
                timeout: self.timeout,
                max_attempts: self.max_attempts,
                tell_target: self.tell_target,
            }),
            hosts: None,
        })
    }
}

const SHORTEST_AGE: Duration = Duration::from_millis(1);
const LONGEST_AGE: Duration = Duration::from_secs(24 * 3_600);

impl<S> fmt::Debug for Builder<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Builder")
            .field("host", &self.host)
            .field("policy", &self.policy)
            .field("protocol", &self.protocol)
            .field("first_resolution", &self.first_resolution)
            .field("connect_timeout", &self.connect_timeout)
            .field("timeout", &self.timeout)
            .field("idle_timeout", &self.idle_timeout)
            .field("max_idle_per_endpoint", &self.max_idle)
            .field("max_attempts", &self.max_attempts)
            .finish_non_exhaustive()
    }
}

fn host_name(host: &str) -> Result<Name, Error> {
    let wrong = || invalid(format!("{host:?} is no host; write web or web:8080"));
    if host.contains('@') {
        return Err(wrong());
    }
    let authority: Authority = host.parse().map_err(|error| wrong().because(error))?;
    Name::new(&authority).ok_or_else(wrong)
}

fn invalid(why: String) -> Error {
    Error::new(ErrorKind::Invalid).context(why)
}
