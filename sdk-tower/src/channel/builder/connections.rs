//! The options of a channel's connections.

use std::time::Duration;

#[cfg(feature = "tls")]
use crate::connect::Tls;
use crate::connect::{Addresses, Protocol, Settings};
use crate::error::Error;
use crate::task::{Runtime, Worker};

use super::super::warm::Warming;
use super::{Builder, invalid};

/// How connections are opened, and which are kept.
#[derive(Debug)]
pub(super) struct Connections {
    protocol: Protocol,
    connect_timeout: Duration,
    idle_timeout: Duration,
    max_age: Option<Duration>,
    max_idle: usize,
    max_open: Option<usize>,
    warm_up: usize,
    #[cfg(feature = "tls")]
    tls: Option<Tls>,
}

impl Default for Connections {
    fn default() -> Self {
        Self {
            protocol: Protocol::default(),
            connect_timeout: Duration::from_secs(1),
            idle_timeout: Duration::from_secs(90),
            max_age: None,
            max_idle: 256,
            max_open: None,
            warm_up: 0,
            #[cfg(feature = "tls")]
            tls: None,
        }
    }
}

impl Connections {
    /// How often connections are told that time passes: four times per idle timeout, and often enough
    /// that the ages at which connections end differ.
    ///
    /// Neither so often that it keeps a processor busy nor so seldom that the milliseconds of the
    /// statistics wrap in between.
    pub(super) fn age_every(&self) -> Duration {
        let for_ages = self
            .max_age
            .map_or(Duration::MAX, |most| most / STEPS_OF_AGE);
        (self.idle_timeout / STEPS_OF_IDLENESS)
            .min(for_ages)
            .clamp(SHORTEST_STEP, LONGEST_STEP)
    }

    /// The protocol, once it is known whether there is something to agree on it by.
    pub(super) fn protocol(&self) -> Protocol {
        if self.protocol == Protocol::Auto && !self.is_secured() {
            Protocol::Http1
        } else {
            self.protocol
        }
    }

    #[cfg_attr(
        not(feature = "tls"),
        expect(clippy::unused_self, reason = "without TLS nothing is secured")
    )]
    pub(super) fn is_secured(&self) -> bool {
        #[cfg(feature = "tls")]
        return self.tls.is_some();
        #[cfg(not(feature = "tls"))]
        return false;
    }

    /// Checks the options, for connections to this service.
    pub(super) fn settings(
        &self,
        runtime: &Runtime,
        service: Option<&str>,
    ) -> Result<Settings, Error> {
        for (option, time) in [
            ("connect_timeout", self.connect_timeout),
            ("idle_timeout", self.idle_timeout),
            ("max_connection_age", self.max_age.unwrap_or(Duration::MAX)),
        ] {
            if time.is_zero() {
                return Err(invalid(format!("{option} is zero; give a time above")));
            }
        }
        let max_open = self.max_open.unwrap_or(usize::MAX);
        if max_open == 0 {
            return Err(invalid(
                "max_connections_per_endpoint is 0; give 1 or more".to_owned(),
            ));
        }
        for (option, most) in [
            ("max_connections_per_endpoint", max_open),
            ("max_idle_per_endpoint", self.max_idle),
        ] {
            if self.warm_up > most {
                return Err(invalid(format!(
                    "warm_up is {}, but {option} only {most}; give no more",
                    self.warm_up
                )));
            }
        }
        #[cfg(not(feature = "tls"))]
        let _ = service;
        let step = self.age_every();
        let lifetime = self.max_age.map(|most| {
            let steps = steps(most, step);
            steps.saturating_sub(steps / 4).max(1)..=steps
        });
        Ok(Settings {
            runtime: runtime.clone(),
            protocol: self.protocol(),
            connect_timeout: self.connect_timeout,
            most_idle: self.max_idle,
            most_open: max_open,
            addresses: Addresses::default(),
            idle_ages: steps(self.idle_timeout, step),
            lifetime,
            #[cfg(feature = "tls")]
            tls: match &self.tls {
                Some(tls) => Some(tls.secured(self.protocol(), service)?),
                None => None,
            },
        })
    }

    /// What opens connections in advance, if that is asked for.
    pub(super) fn warming(&self, runtime: &Runtime) -> Option<(Warming, Worker)> {
        (self.warm_up > 0).then(|| Warming::start(runtime, self.warm_up))
    }
}

const STEPS_OF_IDLENESS: u32 = 4;
/// Connections that were opened together end in sixteen groups.
const STEPS_OF_AGE: u32 = 64;
const SHORTEST_STEP: Duration = Duration::from_millis(1);
const LONGEST_STEP: Duration = Duration::from_secs(24 * 3_600);

/// How many whole steps fit into a time; one at least.
fn steps(time: Duration, step: Duration) -> u32 {
    let steps = time.as_nanos() / step.as_nanos().max(1);
    // Ages wrap, and are compared over half of their range.
    u32::try_from(steps)
        .unwrap_or(u32::MAX)
        .clamp(1, u32::MAX / 4)
}

/// Connections.
impl<S> Builder<S> {
    /// Sets the version of HTTP.
    ///
    /// Default [`Protocol::Auto`].
    pub fn protocol(mut self, protocol: Protocol) -> Self {
        self.connections.protocol = protocol;
        self
    }

    /// Secures the connections.
    ///
    /// Requests may then say `https` or `http`: it is the channel that decides. A handshake that fails
    /// counts as a connection that was refused, nothing was sent, and the request goes to another
    /// endpoint; the error tells the endpoint, the name that was asked for and why. The
    /// [`connect_timeout`](Self::connect_timeout) includes the handshake. Default: plain text.
    #[cfg(feature = "tls")]
    #[cfg_attr(docsrs, doc(cfg(feature = "tls")))]
    pub fn tls(mut self, tls: Tls) -> Self {
        self.connections.tls = Some(tls);
        self
    }

    /// Sets the limit for opening a connection, from the DNS query on if there is one to the end of
    /// the TLS handshake.
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

    /// Sets how long a connection is used at most.
    ///
    /// Each ends between three quarters of this time and the whole, at random, so that those that were
    /// opened together do not close together. It takes no new request then; the one under way
    /// finishes, or on HTTP/2 all of them do. For endpoints behind addresses that move, and
    /// credentials that expire. Above zero; it is counted in steps of a 64th, of 1 ms at least.
    /// Default none, as in hyper-util: balance does not depend on it, because each request is
    /// balanced.
    pub fn max_connection_age(mut self, limit: Duration) -> Self {
        self.connections.max_age = Some(limit);
        self
    }

    /// Sets how many unused connections are kept to one endpoint.
    ///
    /// With 0 each request opens a connection. Of no meaning for HTTP/2. Default 256.
    pub fn max_idle_per_endpoint(mut self, most: usize) -> Self {
        self.connections.max_idle = most;
        self
    }

    /// Sets how many connections of HTTP/1.1 are open to one endpoint at most.
    ///
    /// A connection counts from the attempt to open it until its socket is closed, even where its
    /// endpoint has left and come back meanwhile. A request for which
    /// there is none goes to another endpoint; if all that it may try have theirs in use, it stands in
    /// line at the first of them and gets the next one that is given back, in the order of coming.
    /// The line has the bounds of the channel: it is one of
    /// [`max_waiting`](Self::max_waiting), for up to [`waiting_timeout`](Self::waiting_timeout), and
    /// fails with [`ErrorKind::Overloaded`](crate::ErrorKind::Overloaded) else. A retry may need the
    /// very connection that the answer before it came on: that answer is read to its end then, and kept
    /// for the case that no better one comes. If it is longer than 64 KiB, the caller gets it and
    /// there is no retry. Above zero. Of no
    /// meaning for HTTP/2, where all requests share one connection. Default no bound: more
    /// connections than requests under way are never opened.
    pub fn max_connections_per_endpoint(mut self, most: usize) -> Self {
        self.connections.max_open = Some(most);
        self
    }

    /// Sets how many connections are opened to an endpoint as it joins, before there are requests.
    ///
    /// 32 endpoints are connected to at a time, and to each one connection after the other. An
    /// endpoint is in rotation meanwhile. If it refuses, it is left alone for a while, as if a request
    /// had found out. On HTTP/2 one connection is opened. It takes a task beside those of
    /// the [`Channel`](super::super::Channel), which ends with it. At most
    /// [`max_idle_per_endpoint`](Self::max_idle_per_endpoint) and
    /// [`max_connections_per_endpoint`](Self::max_connections_per_endpoint). Default 0: connections
    /// are opened when they are needed, and those that nobody needs would close as idle.
    pub fn warm_up(mut self, connections: usize) -> Self {
        self.connections.warm_up = connections;
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(idle_secs: u64, age_secs: Option<u64>) -> (Duration, Settings) {
        let connections = Connections {
            idle_timeout: Duration::from_secs(idle_secs),
            max_age: age_secs.map(Duration::from_secs),
            ..Connections::default()
        };
        let runtime = Runtime::current().unwrap();
        let settings = connections.settings(&runtime, None).unwrap();
        (connections.age_every(), settings)
    }

    #[tokio::test]
    async fn times_are_counted_in_steps_that_suit_both() {
        let (step, settings) = with(90, None);
        assert_eq!(
            (step, settings.idle_ages),
            (Duration::from_millis(22_500), 4)
        );
        assert_eq!(settings.lifetime, None);
        let (step, settings) = with(90, Some(64));
        assert_eq!((step, settings.idle_ages), (Duration::from_secs(1), 90));
        assert_eq!(settings.lifetime, Some(48..=64));
        // A step is not longer than the idle timeout allows.
        let (step, settings) = with(4, Some(6_400));
        assert_eq!((step, settings.idle_ages), (Duration::from_secs(1), 4));
        assert_eq!(settings.lifetime, Some(4_800..=6_400));
    }

    #[test]
    fn a_time_is_one_step_at_least_and_never_more_than_ages_can_tell() {
        let step = Duration::from_millis(1);
        assert_eq!(steps(Duration::from_nanos(1), step), 1);
        assert_eq!(steps(Duration::MAX, step), u32::MAX / 4);
    }
}
