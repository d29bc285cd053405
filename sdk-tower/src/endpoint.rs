//! Who can be called: an endpoint is plain data, a set of them is a value.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

/// The host part of an endpoint's address.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
#[non_exhaustive]
pub enum Host {
    /// An IP address, used as it is.
    Ip(IpAddr),
    /// A DNS name, lower case and without the trailing dot; resolved when a connection is opened.
    Name(Arc<str>),
}

/// Where an endpoint listens: its identity.
///
/// Two instances that are registered with one host and port are one endpoint.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Target {
    host: Host,
    port: u16,
}

/// One instance of a service that may be called.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Endpoint {
    target: Target,
    weight: u32,
    priority: u16,
}

/// All endpoints of a service at one moment, ordered by target, each target once.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct EndpointSet {
    endpoints: Arc<[Arc<Endpoint>]>,
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Host::Ip(IpAddr::V6(ip)) => write!(f, "[{ip}]:{}", self.port),
            Host::Ip(ip) => write!(f, "{ip}:{}", self.port),
            Host::Name(name) => write!(f, "{name}:{}", self.port),
        }
    }
}
