//! Who can be called: an endpoint is plain data, a set of them is a value.
//!
//! A [`Target`] says where to connect and is the identity of an endpoint; an [`Endpoint`] adds
//! how much traffic it wants. An [`EndpointSet`] is everything that is known of a service at one
//! moment: it compares by content, clones by reference and never changes.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;
use std::sync::Arc;

use crate::error::{Error, ErrorKind};

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
///
/// # Examples
///
/// ```
/// use lictor_tower::endpoint::Target;
///
/// let target: Target = "[2001:db8::1]:8080".parse()?;
/// assert_eq!(target.port(), 8080);
/// assert_eq!(target.to_string(), "[2001:db8::1]:8080");
///
/// // A wildcard address is where a server listens, not where a client connects.
/// assert!("0.0.0.0:8080".parse::<Target>().is_err());
/// # Ok::<(), lictor_tower::error::Error>(())
/// ```
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Target {
    host: Host,
    port: u16,
}

/// One instance of a service that may be called.
///
/// Weight and priority are those of an SRV record (RFC 2782): of the endpoints with the lowest
/// priority number each takes traffic in proportion to its weight; weight 0 means "hardly ever,
/// while others have a weight". Consul's weights mean the same and its priority is always 1.
/// The distance comes before both: those that are near are preferred while enough of them are
/// well.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Endpoint {
    target: Target,
    weight: u32,
    priority: u16,
    distance: u16,
    node: Option<Arc<str>>,
    datacenter: Option<Arc<str>>,
}

/// All endpoints of a service at one moment, ordered by target, each target once.
///
/// A set without endpoints is an answer: nobody can be called. That nothing is known yet is not
/// a set; see [`source`](crate::source).
///
/// A target that is listed twice is one listener and not twice as strong: the set keeps the
/// larger weight, the lower (preferred) priority number and the shorter distance. Consul's DNS tells such a pair only
/// once, so this rule makes the set the same over HTTP and DNS.
///
/// # Examples
///
/// ```
/// use lictor_tower::endpoint::{Endpoint, EndpointSet};
///
/// let set: EndpointSet = ["10.0.0.2:80", "10.0.0.1:80", "10.0.0.2:80"]
///     .into_iter()
///     .map(|target| Ok(Endpoint::new(target.parse()?)))
///     .collect::<Result<_, lictor_tower::error::Error>>()?;
/// assert_eq!(set.len(), 2);
/// assert_eq!(set.to_string(), "2 endpoints (10.0.0.1:80, 10.0.0.2:80)");
/// # Ok::<(), lictor_tower::error::Error>(())
/// ```
#[derive(Clone, Eq, PartialEq)]
pub struct EndpointSet {
    endpoints: Arc<[Arc<Endpoint>]>,
}

impl Host {
    /// Makes one spelling of each host: an IPv4 address mapped into IPv6 is the IPv4 address, a
    /// name that spells an IP address is that address, names are lower case without final dot.
    fn normalized(self) -> Result<Self, Error> {
        let ip = match self {
            Self::Ip(ip) => ip,
            Self::Name(name) => match name.parse::<IpAddr>() {
                Ok(ip) => ip,
                Err(_) => return dns_name(&name).map(Self::Name),
            },
        };
        let ip = ip.to_canonical();
        let broadcast = matches!(ip, IpAddr::V4(v4) if v4.is_broadcast());
        if ip.is_unspecified() {
            return Err(invalid(format!(
                "{ip} is where a server listens, not where a client can connect; \
                 give the address of one host"
            )));
        }
        if ip.is_multicast() || broadcast {
            return Err(invalid(format!(
                "{ip} stands for many hosts; give the address of one"
            )));
        }
        Ok(Self::Ip(ip))
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(ip) => ip.fmt(f),
            Self::Name(name) => f.write_str(name),
        }
    }
}

impl Target {
    /// Makes a target of a host and a port.
    ///
    /// The host is brought into one spelling, so that equal targets compare equal: names become
    /// lower case and lose the final dot, an IPv4 address mapped into IPv6 (`::ffff:10.0.0.1`)
    /// becomes the IPv4 address.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Invalid`] for port 0 (Consul's "no port"), for an address that no client can
    /// connect to (`0.0.0.0`, `::`, multicast, broadcast), and for a name that is not a DNS name.
    pub fn new(host: Host, port: u16) -> Result<Self, Error> {
        let host = host.normalized()?;
        if port == 0 {
            return Err(invalid(format!(
                "port 0 of {host} means that no port is set; use 1 to 65535"
            )));
        }
        Ok(Self { host, port })
    }

    /// The host to connect to.
    #[must_use]
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// The port to connect to, never 0.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Host::Ip(IpAddr::V6(ip)) => write!(f, "[{ip}]:{}", self.port),
            host => write!(f, "{host}:{}", self.port),
        }
    }
}

impl FromStr for Target {
    type Err = Error;

    /// Reads `1.2.3.4:80`, `[::1]:80` or `name:80`.
    fn from_str(text: &str) -> Result<Self, Error> {
        let wanted = || {
            invalid(format!(
                "{text:?} is not a host and a port; write 10.0.0.1:80, [::1]:80 or name:80"
            ))
        };
        let (host, port) = text.rsplit_once(':').ok_or_else(wanted)?;
        // `u16::from_str` would take "+80".
        if port.is_empty() || !port.bytes().all(|b| b.is_ascii_digit()) {
            return Err(wanted());
        }
        let port = port
            .parse()
            .map_err(|_| invalid(format!("the port of {text:?} is above 65535")))?;
        let host = match host.strip_prefix('[') {
            Some(rest) => {
                let ip = rest.strip_suffix(']').ok_or_else(wanted)?;
                // A zone (fe80::1%eth0) is not part of an `IpAddr` and has no meaning elsewhere.
                Host::Ip(IpAddr::V6(ip.parse().map_err(|_| wanted())?))
            }
            // "::1:80" could be an address without a port.
            None if host.contains(':') => return Err(wanted()),
            None => Host::Name(host.into()),
        };
        Self::new(host, port)
    }
}

impl TryFrom<SocketAddr> for Target {
    type Error = Error;

    /// Takes an address as it is; the zone of a link-local IPv6 address is lost.
    fn try_from(addr: SocketAddr) -> Result<Self, Error> {
        Self::new(Host::Ip(addr.ip()), addr.port())
    }
}

impl Endpoint {
    /// An endpoint with weight 1 and priority 1, which are Consul's defaults, and distance 0.
    #[must_use]
    pub fn new(target: Target) -> Self {
        Self {
            target,
            weight: 1,
            priority: 1,
            distance: 0,
            node: None,
            datacenter: None,
        }
    }

    /// Sets the weight: the share of traffic relative to others of the same priority.
    ///
    /// Any number; 0 means that others are preferred while they have a weight. Default 1, as in
    /// Consul.
    #[must_use]
    pub fn with_weight(mut self, weight: u32) -> Self {
        self.weight = weight;
        self
    }

    /// Sets the priority: a lower number is preferred.
    ///
    /// Any number. Default 1, which Consul gives to every instance.
    #[must_use]
    pub fn with_priority(mut self, priority: u16) -> Self {
        self.priority = priority;
        self
    }

    /// Sets how far away it is, in steps of preference: 0 is the nearest.
    ///
    /// Any number; only the order matters. Unlike a priority, which is used until nobody of it can
    /// be reached, a distance is left little by little: the nearest take all requests while 72 %
    /// of them are well, and below that a share of them (see
    /// [`Channel`](crate::channel::Channel)). Default 0.
    #[must_use]
    pub fn with_distance(mut self, distance: u16) -> Self {
        self.distance = distance;
        self
    }

    /// Sets the node that it is on, for TLS server names that are made of it.
    ///
    /// Default unknown.
    #[must_use]
    pub fn with_node(mut self, name: impl Into<Arc<str>>) -> Self {
        self.node = Some(name.into());
        self
    }

    /// Sets the datacenter that it is in, for TLS server names that are made of it.
    ///
    /// Default unknown.
    #[must_use]
    pub fn with_datacenter(mut self, name: impl Into<Arc<str>>) -> Self {
        self.datacenter = Some(name.into());
        self
    }

    /// Where it listens.
    #[must_use]
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// The node that it is on, if its source tells.
    #[must_use]
    pub fn node(&self) -> Option<&Arc<str>> {
        self.node.as_ref()
    }

    /// The datacenter that it is in, if its source tells.
    #[must_use]
    pub fn datacenter(&self) -> Option<&Arc<str>> {
        self.datacenter.as_ref()
    }

    /// Its share of traffic relative to others of the same priority.
    #[must_use]
    pub fn weight(&self) -> u32 {
        self.weight
    }

    /// Its priority; a lower number is preferred.
    #[must_use]
    pub fn priority(&self) -> u16 {
        self.priority
    }

    /// How far away it is, in steps of preference; 0 is the nearest.
    #[must_use]
    pub fn distance(&self) -> u16 {
        self.distance
    }

    /// The same for when nobody else can be called, where the farthest of them is so far
    /// away.
    ///
    /// The distance is asked before the priority: one that is near would come before healthy ones
    /// elsewhere, whatever its priority.
    pub(crate) fn into_last_resort(self, far: u16) -> Self {
        self.with_distance(far).with_priority(u16::MAX)
    }

    pub(crate) fn is_last_resort(&self) -> bool {
        self.priority == u16::MAX
    }

    fn merged(&self, other: &Self) -> Self {
        Self {
            target: self.target.clone(),
            weight: self.weight.max(other.weight),
            priority: self.priority.min(other.priority),
            distance: self.distance.min(other.distance),
            node: self.node.clone().or_else(|| other.node.clone()),
            datacenter: self.datacenter.clone().or_else(|| other.datacenter.clone()),
        }
    }
}

impl From<Target> for Endpoint {
    fn from(target: Target) -> Self {
        Self::new(target)
    }
}

impl EndpointSet {
    /// The set with nobody in it.
    #[must_use]
    pub fn empty() -> Self {
        Self {
            endpoints: Arc::from([]),
        }
    }

    /// The endpoints, ordered by target.
    pub fn iter(&self) -> std::slice::Iter<'_, Arc<Endpoint>> {
        self.endpoints.iter()
    }

    /// How many endpoints there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.endpoints.len()
    }

    /// Whether nobody can be called.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.endpoints.is_empty()
    }

    /// The endpoint with this target.
    #[must_use]
    pub fn get(&self, target: &Target) -> Option<&Arc<Endpoint>> {
        let at = self
            .endpoints
            .binary_search_by(|endpoint| endpoint.target.cmp(target))
            .ok()?;
        self.endpoints.get(at)
    }

    /// The endpoints, if nobody else has this set.
    pub(crate) fn unshared(&mut self) -> Option<&mut [Arc<Endpoint>]> {
        Arc::get_mut(&mut self.endpoints)
    }

    /// Whether both are one value in memory: equal without looking at the content.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.endpoints, &other.endpoints)
    }
}

impl Default for EndpointSet {
    fn default() -> Self {
        Self::empty()
    }
}

impl FromIterator<Arc<Endpoint>> for EndpointSet {
    fn from_iter<I: IntoIterator<Item = Arc<Endpoint>>>(endpoints: I) -> Self {
        let mut endpoints: Vec<_> = endpoints.into_iter().collect();
        endpoints.sort_by(|a, b| a.target.cmp(&b.target));
        endpoints.dedup_by(|later, kept| {
            let twice = later.target == kept.target;
            if twice && later != kept {
                *kept = Arc::new(kept.merged(later));
            }
            twice
        });
        Self {
            endpoints: endpoints.into(),
        }
    }
}

impl FromIterator<Endpoint> for EndpointSet {
    fn from_iter<I: IntoIterator<Item = Endpoint>>(endpoints: I) -> Self {
        endpoints.into_iter().map(Arc::new).collect()
    }
}

impl<'a> IntoIterator for &'a EndpointSet {
    type Item = &'a Arc<Endpoint>;
    type IntoIter = std::slice::Iter<'a, Arc<Endpoint>>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl fmt::Display for EndpointSet {
    /// The number of endpoints and the first three targets, so that a log line stays short.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 3;
        let plural = if self.len() == 1 { "" } else { "s" };
        write!(f, "{} endpoint{plural}", self.len())?;
        for (at, endpoint) in self.iter().take(SHOWN).enumerate() {
            let before = if at == 0 { " (" } else { ", " };
            write!(f, "{before}{}", endpoint.target)?;
        }
        match self.len() {
            0 => Ok(()),
            1..=SHOWN => f.write_str(")"),
            _ => f.write_str(", …)"),
        }
    }
}

impl fmt::Debug for EndpointSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "EndpointSet({self})")
    }
}

/// The distance of the farthest.
pub(crate) fn farthest<'a>(endpoints: impl IntoIterator<Item = &'a Arc<Endpoint>>) -> u16 {
    let distances = endpoints.into_iter().map(|endpoint| endpoint.distance());
    distances.max().unwrap_or_default()
}

/// Checks a DNS name and brings it into one spelling: lower case, no final dot.
///
/// A label has 1 to 63 octets and a name at most 253 characters (RFC 1035, 2.3.4). Letters,
/// digits, `-` and `_` are allowed, because Consul serves service and node names with `_`; a `-`
/// must not stand at either end of a label and the last label must not be a number (RFC 1123,
/// 2.1), so that a mistyped IPv4 address is not taken for a name.
pub(crate) fn dns_name(name: &str) -> Result<Arc<str>, Error> {
    let bare = name.strip_suffix('.').unwrap_or(name);
    let wrong = if bare.is_empty() {
        Some("it is empty")
    } else if !bare.is_ascii() {
        Some("it has letters outside ASCII; write it in Punycode (xn--…)")
    } else if bare.len() > 253 {
        Some("it is longer than 253 characters")
    } else if bare.contains(['[', ']', ':']) {
        Some("an IPv6 address is written as [::1], and only with a port behind it")
    } else {
        bare.split('.').find_map(wrong_with_label)
    };
    let number = bare
        .rsplit('.')
        .next()
        .is_some_and(|last| last.bytes().all(|b| b.is_ascii_digit()));
    match wrong {
        Some(why) => Err(invalid(format!("{name:?} is not a DNS name: {why}"))),
        None if number => Err(invalid(format!(
            "{name:?} is neither an IP address nor a DNS name: the last label is a number"
        ))),
        None => Ok(bare.to_ascii_lowercase().into()),
    }
}

fn wrong_with_label(label: &str) -> Option<&'static str> {
    if label.is_empty() {
        return Some("it has an empty label (two dots in a row or one at the start)");
    }
    if label.len() > 63 {
        return Some("a label is longer than 63 characters");
    }
    if label.starts_with('-') || label.ends_with('-') {
        return Some("a label begins or ends with a hyphen");
    }
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
    (!label.bytes().all(allowed)).then_some("use letters, digits, `-`, `_` and dots only")
}

fn invalid(why: String) -> Error {
    Error::new(ErrorKind::Invalid).context(why)
}

#[cfg(test)]
mod tests;
