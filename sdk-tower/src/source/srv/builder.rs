//! Options of an SRV source.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use tokio::runtime::Handle;

use super::{Question, SrvSource};
use crate::endpoint::{Target, dns_name};
use crate::error::{Error, ErrorKind};
use crate::source::refresh::Pace;
use crate::source::zone::Zone;

/// Options of a [`SrvSource`].
#[derive(Clone, Debug)]
#[must_use = "a builder does nothing until built"]
pub struct SrvSourceBuilder {
    name: String,
    servers: Vec<SocketAddr>,
    timeout: Duration,
    pace: Pace,
    resolves: bool,
}

/// Consul's own agent on this machine, on its default port.
pub(super) const LOCAL_AGENT: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8600);

/// More servers than this are a mistake: each may take the whole timeout.
const SERVERS_MAX: usize = 16;
pub(super) const DAY: Duration = Duration::from_secs(24 * 60 * 60);

impl SrvSourceBuilder {
    pub(super) fn new(name: String) -> Self {
        Self {
            name,
            servers: Vec::new(),
            timeout: Duration::from_secs(2),
            pace: Pace {
                min: Duration::from_secs(1),
                max: Duration::from_secs(60),
                grace: Duration::from_secs(5),
            },
            resolves: false,
        }
    }

    /// Adds a DNS server to ask.
    ///
    /// Given several times, the servers are asked in this order until one answers, beginning with
    /// the one that has answered last; up to 16. Default: `127.0.0.1:8600`, where a Consul agent
    /// serves DNS unless configured otherwise.
    pub fn server(mut self, server: SocketAddr) -> Self {
        self.servers.push(server);
        self
    }

    /// Sets how long one server may take to answer, connecting included.
    ///
    /// 10 ms to 60 s, default 2 s: an agent nearby answers within milliseconds, and the next
    /// server should get its chance before a caller gives up.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Sets the smallest interval between two refreshes.
    ///
    /// 10 ms to one day, default 1 s: it is the pace for Consul, whose default TTL is 0, and one
    /// small query per second is nothing to an agent.
    pub fn min_refresh(mut self, interval: Duration) -> Self {
        self.pace.min = interval;
        self
    }

    /// Sets the largest interval between two refreshes, whatever the TTL says.
    ///
    /// From `min_refresh` to one day, default 60 s: instances come and go faster than many
    /// servers' TTL.
    pub fn max_refresh(mut self, interval: Duration) -> Self {
        self.pace.max = interval;
        self
    }

    /// Sets how long a known set outlives the claim that no such name or record exists.
    ///
    /// 0 to one day, default 5 s, in which an agent has usually restarted. Meanwhile the name is
    /// asked for in the smallest interval. With 0 the first claim is believed.
    pub fn grace(mut self, grace: Duration) -> Self {
        self.pace.grace = grace;
        self
    }

    /// Sets whether all targets of SRV records become addresses.
    ///
    /// They are looked up with each refresh: in the additional records of the answer, else by a
    /// query for A and one for AAAA to the same server, one after the other, within the
    /// [`timeout`](Self::timeout). Each IPv4 address of a target is an endpoint, or each IPv6 address
    /// where it has none of IPv4. A target that the server refuses to tell of stays a name, and
    /// one that does not exist is nobody to call.
    ///
    /// For servers that the system's own resolver does not ask, such as Mesos-DNS or CoreDNS on a
    /// port of their own; and where another source names the same instances by address, so that
    /// both mean the same endpoints (see [`fallback`](crate::source::fallback())). Default `false`: a
    /// target stays a name, resolved when a connection is opened, as Consul's HTTP API has it.
    /// Targets of Consul's own zone become addresses in any case.
    pub fn resolve_targets(mut self, resolve: bool) -> Self {
        self.resolves = resolve;
        self
    }

    /// Checks the options and makes the source, which asks when it is first polled.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Invalid`] for an option outside its range, a name that is not a DNS name of
    /// two labels or more, or a server that cannot be connected to (port 0, `0.0.0.0`);
    /// [`ErrorKind::NoRuntime`] outside a Tokio runtime, in which the source must be polled.
    pub fn build(self) -> Result<SrvSource, Error> {
        let text = dns_name(&self.name)?;
        if !text.contains('.') {
            return Err(invalid(format!(
                "{text:?} is a single label and no search domain is used; \
                 write the whole name, such as {text}.service.consul"
            )));
        }
        let mut servers = self.servers;
        if servers.is_empty() {
            servers.push(LOCAL_AGENT);
        }
        if servers.len() > SERVERS_MAX {
            return Err(invalid(format!(
                "{} DNS servers are too many; give {SERVERS_MAX} at most",
                servers.len()
            )));
        }
        for server in &servers {
            Target::try_from(*server)?;
        }

        let Pace { min, max, grace } = self.pace;
        in_range("timeout", self.timeout, ms(10), ms(60_000))?;
        in_range("min_refresh", min, ms(10), DAY)?;
        in_range("max_refresh", max, min, DAY)?;
        in_range("grace", grace, ms(0), DAY)?;
        if Handle::try_current().is_err() {
            return Err(Error::new(ErrorKind::NoRuntime)
                .context("an SRV source is made and polled inside a Tokio runtime"));
        }
        let question = Question {
            name: Question::name(&text).map_err(invalid)?,
            zone: Zone::of(&text),
            text,
            servers,
            timeout: self.timeout,
            resolves: self.resolves,
        };
        Ok(SrvSource::new(question, self.pace))
    }
}

pub(super) const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn in_range(option: &str, value: Duration, least: Duration, most: Duration) -> Result<(), Error> {
    if (least..=most).contains(&value) {
        return Ok(());
    }
    Err(invalid(format!(
        "{option} is {value:?}; choose {least:?} to {most:?}"
    )))
}

fn invalid(why: String) -> Error {
    Error::new(ErrorKind::Invalid).context(why)
}
