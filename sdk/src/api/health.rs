//! Health: instances with their checks, `/v1/health`.

use std::sync::Arc;

use serde::{Deserialize, Deserializer};

use super::Read;
use super::endpoint::answers_with_list;
use crate::client::Client;
use crate::error::Result;
use crate::ident::{NodeName, ServiceName, text};
use crate::proto::json;
use crate::proto::query::Target;

pub use super::model::{
    AccessLogs, Check, CheckDefinition, Connect, EnvoyExtension, Expose, ExposedPath, Locality,
    Node, PeerMeta, Proxy, ServiceAddress, ServiceAddresses, ServiceInstance, ServiceKind, Status,
    TransparentProxy, Upstream, Weights,
};

impl Client {
    /// Instances with their checks.
    #[must_use]
    pub fn health(&self) -> Health {
        Health {
            client: self.clone(),
        }
    }
}

/// Calls about instances and checks.
///
/// A name that nobody registered is no error: its list is empty, and so is a list whose elements
/// the token may not see.
#[derive(Clone, Debug)]
pub struct Health {
    client: Client,
}

impl Health {
    /// The checks of a node and of all its services.
    #[doc(alias = "GET /v1/health/node/:node")]
    pub fn node(&self, node: impl Into<Arc<str>>) -> Read<Checks> {
        let node = NodeName::new(node);
        Read::named(&self.client, "/v1/health/node/", node, Checks(()))
    }

    /// The checks of all instances of a service, without those of their nodes.
    #[doc(alias = "GET /v1/health/checks/:service")]
    pub fn checks(&self, service: impl Into<Arc<str>>) -> Read<Checks> {
        let service = ServiceName::new(service);
        Read::named(&self.client, "/v1/health/checks/", service, Checks(()))
    }

    /// The instances of a service, with their nodes and checks.
    ///
    /// All of them, whatever their checks say, unless [`passing`](Read::passing) is asked for.
    #[doc(alias = "GET /v1/health/service/:service")]
    pub fn service(&self, service: impl Into<Arc<str>>) -> Read<Instances> {
        let service = ServiceName::new(service);
        Read::named(&self.client, "/v1/health/service/", service, Instances(()))
    }

    /// The instances that speak for a service in the mesh: its sidecars, and those that need none.
    #[doc(alias = "GET /v1/health/connect/:service")]
    pub fn connect(&self, service: impl Into<Arc<str>>) -> Read<Instances> {
        let service = ServiceName::new(service);
        Read::named(&self.client, "/v1/health/connect/", service, Instances(()))
    }

    /// All gateways into the mesh that lead to a service.
    #[doc(alias = "GET /v1/health/ingress/:service")]
    pub fn ingress(&self, service: impl Into<Arc<str>>) -> Read<Instances> {
        let service = ServiceName::new(service);
        Read::named(&self.client, "/v1/health/ingress/", service, Instances(()))
    }

    /// All checks in this state, of nodes and services.
    #[doc(alias = "GET /v1/health/state/:state")]
    pub fn state(&self, state: State) -> Read<Checks> {
        Read::new(&self.client, Target::new(state.path()), Checks(()))
    }
}

/// The tag by which a leader is found, where nobody agreed on another: `leader`.
pub const LEADER: &str = "leader";

/// Which checks [`Health::state`] lists.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[non_exhaustive]
pub enum State {
    /// All of them.
    Any,
    /// Those that pass.
    Passing,
    /// Those that warn.
    Warning,
    /// Those that are critical; maintenance is among them.
    Critical,
}

impl State {
    fn path(self) -> &'static str {
        match self {
            Self::Any => "/v1/health/state/any",
            Self::Passing => "/v1/health/state/passing",
            Self::Warning => "/v1/health/state/warning",
            Self::Critical => "/v1/health/state/critical",
        }
    }
}

impl Read<Instances> {
    /// Only instances all of whose checks pass, those of their node included. Default: all.
    #[doc(alias = "?passing")]
    pub fn passing(self) -> Self {
        self.flag("passing")
    }

    /// Only instances with this tag; call it again for more, all must fit. Default: all.
    ///
    /// Consul does not tell upper from lower case here.
    #[doc(alias = "?tag")]
    pub fn tag(self, tag: impl AsRef<str>) -> Self {
        self.parameter("tag", tag.as_ref())
    }

    /// Only the instance that leads, if there is one: short for the [tag](Self::tag) [`LEADER`].
    ///
    /// The tag is there if the candidates of an election
    /// [advertise](crate::coordination::Election::advertise) by it. It is a hint: for a moment two
    /// instances may carry it, or none.
    pub fn leader(self) -> Self {
        self.tag(LEADER)
    }

    /// Completes proxy configurations by the central ones (Consul 1.13 and later; ignored before).
    /// Default: off.
    #[doc(alias = "?merge-central-config")]
    pub fn merge_central_config(self) -> Self {
        self.flag("merge-central-config")
    }

    /// Asks for what a peer cluster exports (Consul 1.13 and later; ignored before). Default: the
    /// own cluster.
    #[doc(alias = "?peer")]
    pub fn peer(self, peer: impl AsRef<str>) -> Self {
        self.parameter("peer", peer.as_ref())
    }
}

impl Read<Checks> {
    /// Asks for what a peer cluster exports (Consul 1.13 and later; ignored before). Default: the
    /// own cluster.
    #[doc(alias = "?peer")]
    pub fn peer(self, peer: impl AsRef<str>) -> Self {
        self.parameter("peer", peer.as_ref())
    }
}

/// An instance of a service, with its node and all checks that concern it.
///
/// The name of the [`node`](Self::node) and the ID of the [`service`](Self::service) together tell
/// one from another.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "PascalCase")]
pub struct ServiceEntry {
    #[serde(deserialize_with = "shared")]
    node: Arc<Node>,
    service: ServiceInstance,
    #[serde(default, deserialize_with = "json::list")]
    checks: Box<[Check]>,
}

/// Instances on one node mostly stand side by side.
fn shared<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Arc<Node>, D::Error> {
    let node = Node::deserialize(deserializer)?;
    Ok(text::shared_value(node.place(), node))
}

impl ServiceEntry {
    /// The node that the instance is registered at.
    #[must_use]
    pub fn node(&self) -> &Node {
        &self.node
    }

    /// The instance itself.
    #[must_use]
    pub fn service(&self) -> &ServiceInstance {
        &self.service
    }

    /// The checks of the instance and of its node.
    #[must_use]
    pub fn checks(&self) -> &[Check] {
        &self.checks
    }

    /// What all checks together say: the worst of them, and passing if there are none.
    ///
    /// Maintenance is worse than critical, and critical is worse than warning.
    #[doc(alias = "AggregatedStatus")]
    #[must_use]
    pub fn status(&self) -> Status {
        Status::aggregated(&self.checks)
    }

    /// Where to call it: the instance's address, or its node's where it has none.
    ///
    /// An IP address, which for IPv6 has no brackets, or a host name.
    #[must_use]
    pub fn address(&self) -> &str {
        match self.service.address() {
            "" => self.node.address(),
            address => address,
        }
    }

    /// The port to call; 0 if the instance has none, or one that TCP does not have.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.service.port()
    }

    /// How much of the calls it should get now: by its status, and none if it is critical.
    #[must_use]
    pub fn weight(&self) -> u16 {
        let weights = self.service.weights();
        match self.status() {
            Status::Passing => weights.passing(),
            Status::Warning => weights.warning(),
            Status::Unknown | Status::Critical | Status::Maintenance => 0,
        }
    }
}

/// Instances with their checks: [`Health::service`], [`Health::connect`], [`Health::ingress`].
#[derive(Clone, Debug)]
pub struct Instances(());

answers_with_list!(Instances => ServiceEntry);

/// A list of checks: [`Health::node`], [`Health::checks`], [`Health::state`].
#[derive(Clone, Debug)]
pub struct Checks(());

answers_with_list!(Checks => Check);
