//! The options of a channel's connections.

use std::time::Duration;

use crate::connect::{IDLE_AGES, Protocol, Settings};
use crate::error::Error;
use crate::task::Runtime;

use super::{Builder, invalid};

/// How connections are opened, and which are kept.
#[derive(Debug)]
pub(super) struct Connections {
    pub(super) protocol: Protocol,
    connect_timeout: Duration,
    idle_timeout: Duration,
    max_idle: usize,
}

impl Default for Connections {
    fn default() -> Self {
        Self {
            protocol: Protocol::default(),
            connect_timeout: Duration::from_secs(1),
            idle_timeout: Duration::from_secs(90),
            max_idle: 256,
        }
    }
}

impl Connections {
    /// How often connections are told that time passes.
    ///
    /// Neither so often that it keeps a processor busy nor so seldom that the milliseconds of the
    /// statistics wrap in between.
    pub(super) fn age_every(&self) -> Duration {
        (self.idle_timeout / IDLE_AGES).clamp(SHORTEST_AGE, LONGEST_AGE)
    }

    pub(super) fn settings(&self, runtime: &Runtime) -> Result<Settings, Error> {
        for (option, time) in [
            ("connect_timeout", self.connect_timeout),
            ("idle_timeout", self.idle_timeout),
        ] {
            if time.is_zero() {
                return Err(invalid(format!("{option} is zero; give a time above")));
            }
        }
        Ok(Settings {
            runtime: runtime.clone(),
            protocol: self.protocol,
            connect_timeout: self.connect_timeout,
            most_idle: self.max_idle,
        })
    }
}

const SHORTEST_AGE: Duration = Duration::from_millis(1);
const LONGEST_AGE: Duration = Duration::from_secs(24 * 3_600);

/// Connections.
impl<S> Builder<S> {
    /// Sets the version of HTTP.
    ///
    /// Default [`Protocol::Http1`].
    pub fn protocol(mut self, protocol: Protocol) -> Self {
        self.connections.protocol = protocol;
        self
    }

    /// Sets the limit for opening a connection, from the DNS query on if there is one.
    ///
    /// Above zero. Default 1 s: instances found by Consul are mostly near, and a request goes to
    /// another endpoint afterwards.
    pub fn connect_timeout(mut self, limit: Duration) -> Self {
        self.connections.connect_timeout = limit;
        self
    }

    /// Sets how long a connection is kept that nobody uses.
    ///
    /// It is closed between three quarters of this time and the whole. Above zero; more than four
    /// days are four days. Default 90 s, as in Go's client and in hyper-util.
    pub fn idle_timeout(mut self, limit: Duration) -> Self {
        self.connections.idle_timeout = limit;
        self
    }

    /// Sets how many unused connections are kept to one endpoint.
    ///
    /// With 0 each request opens a connection. Of no meaning for HTTP/2. Default 256.
    pub fn max_idle_per_endpoint(mut self, most: usize) -> Self {
        self.connections.max_idle = most;
        self
    }
}
