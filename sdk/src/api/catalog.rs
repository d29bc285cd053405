//! The catalog: all nodes and services that Consul knows, `/v1/catalog`.

mod entry;

use std::sync::Arc;

use super::endpoint::{Answered, answers_with_list};
use super::model::MaybeNodeServices;
use super::{Endpoint, Read, Write};
use crate::client::Client;
use crate::error::{Error, Result};
use crate::ident::{CheckId, Datacenter, NodeName, ServiceId, ServiceName};
use crate::proto::query::Target;

pub use super::health::Node;
pub(crate) use super::model::AllServiceTags;
pub use super::model::{CatalogService, NodeServices, ServiceTags};
pub(super) use entry::{CheckBody, ServiceBody};
pub use entry::{Entry, NewCheck, NewService};

impl Client {
    /// All nodes and services, without regard to health.
    #[must_use]
    pub fn catalog(&self) -> Catalog {
        Catalog {
            client: self.clone(),
        }
    }
}

/// Calls to the catalog.
///
/// To find instances to call, ask [`health`](Client::health): the catalog lists those that are
/// down, too.
#[derive(Clone, Debug)]
pub struct Catalog {
    client: Client,
}

impl Catalog {
    /// All known datacenters, the nearest first.
    #[doc(alias = "GET /v1/catalog/datacenters")]
    pub fn datacenters(&self) -> Read<Datacenters> {
        let target = Target::new("/v1/catalog/datacenters");
        Read::new(&self.client, target, Datacenters(()))
    }

    /// All nodes.
    #[doc(alias = "GET /v1/catalog/nodes")]
    pub fn nodes(&self) -> Read<Nodes> {
        Read::new(&self.client, Target::new("/v1/catalog/nodes"), Nodes(()))
    }

    /// The names of all services, each with the tags of its instances, sorted by name.
    #[doc(alias = "GET /v1/catalog/services")]
    pub fn services(&self) -> Read<Services> {
        let target = Target::new("/v1/catalog/services");
        Read::new(&self.client, target, Services(()))
    }

    /// All instances of a service; none if nobody registered one.
    #[doc(alias = "GET /v1/catalog/service/:service")]
    pub fn service(&self, service: impl Into<Arc<str>>) -> Read<Instances> {
        let service = ServiceName::new(service);
        Read::named(&self.client, "/v1/catalog/service/", service, Instances(()))
    }

    /// The instances that speak for a service in the mesh: its sidecars, and those that need none.
    #[doc(alias = "GET /v1/catalog/connect/:service")]
    pub fn connect(&self, service: impl Into<Arc<str>>) -> Read<Instances> {
        let service = ServiceName::new(service);
        Read::named(&self.client, "/v1/catalog/connect/", service, Instances(()))
    }

    /// A node with all instances registered at it; `None` if there is no such node.
    #[doc(alias = "GET /v1/catalog/node/:node")]
    pub fn node(&self, node: impl Into<Arc<str>>) -> Read<OneNode> {
        let node = NodeName::new(node);
        Read::named(&self.client, "/v1/catalog/node/", node, OneNode(()))
    }

    /// The same as [`node`](Self::node), with what the namespace's wildcard allows
    /// (Consul 1.7 and later).
    #[doc(alias = "GET /v1/catalog/node-services/:node")]
    #[doc(alias = "NodeServiceList")]
    pub fn node_services(&self, node: impl Into<Arc<str>>) -> Read<OneNode> {
        let node = NodeName::new(node);
        Read::named(
            &self.client,
            "/v1/catalog/node-services/",
            node,
            OneNode(()),
        )
    }

    /// Puts a node into the catalog, with a service and checks if the entry has them.
    ///
    /// For what has no agent, such as a database run by others. A service that has an agent is
    /// registered with it: the agent removes what it finds under its own name here.
    #[doc(alias = "PUT /v1/catalog/register")]
    pub fn register(&self, entry: Entry) -> Write<Change> {
        let write = Write::put(
            &self.client,
            Target::new("/v1/catalog/register"),
            Change(()),
        );
        match entry.into_body() {
            Ok(body) => write.json(&body),
            Err(err) => write.refuse(err),
        }
    }

    /// Removes a node with all its services and checks; an unknown one is no error.
    #[doc(alias = "PUT /v1/catalog/deregister")]
    pub fn deregister_node(&self, node: impl Into<Arc<str>>) -> Write<Change> {
        self.deregister(entry::Gone::node(node))
    }

    /// Removes an instance with its checks; an unknown one is no error.
    ///
    /// An agent that knows the instance puts it back: deregister it there.
    #[doc(alias = "PUT /v1/catalog/deregister")]
    pub fn deregister_service(
        &self,
        node: impl Into<Arc<str>>,
        service: impl Into<Arc<str>>,
    ) -> Write<Change> {
        let gone = ServiceId::new(service)
            .and_then(|service| Ok(entry::Gone::node(node)?.service(service)));
        self.deregister(gone)
    }

    /// Removes a check; an unknown one is no error.
    #[doc(alias = "PUT /v1/catalog/deregister")]
    pub fn deregister_check(
        &self,
        node: impl Into<Arc<str>>,
        check: impl Into<Arc<str>>,
    ) -> Write<Change> {
        let gone = CheckId::new(check).and_then(|check| Ok(entry::Gone::node(node)?.check(check)));
        self.deregister(gone)
    }

    fn deregister(&self, gone: Result<entry::Gone>) -> Write<Change> {
        let target = Target::new("/v1/catalog/deregister");
        let write = Write::put(&self.client, target, Change(()));
        match gone {
            Ok(gone) => write.json(&gone),
            Err(err) => write.refuse(err),
        }
    }
}

impl Read<Instances> {
    /// Only instances with this tag; call it again for more, all must fit. Default: all.
    ///
    /// Consul does not tell upper from lower case here.
    #[doc(alias = "?tag")]
    pub fn tag(self, tag: impl AsRef<str>) -> Self {
        self.parameter("tag", tag.as_ref())
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

impl Read<OneNode> {
    /// Completes proxy configurations by the central ones (Consul 1.13 and later; only for
    /// [`node_services`](Catalog::node_services)). Default: off.
    #[doc(alias = "?merge-central-config")]
    pub fn merge_central_config(self) -> Self {
        self.flag("merge-central-config")
    }
}

/// The datacenters: [`Catalog::datacenters`].
#[derive(Clone, Debug)]
pub struct Datacenters(());

impl Endpoint for Datacenters {
    type Output = Vec<Datacenter>;

    fn interpret(&self, answer: Answered) -> Result<Self::Output> {
        answer.good()?.json()
    }
}

/// The nodes: [`Catalog::nodes`].
#[derive(Clone, Debug)]
pub struct Nodes(());

answers_with_list!(Nodes => Node);

/// The names of the services: [`Catalog::services`].
#[derive(Clone, Debug)]
pub struct Services(());

impl Endpoint for Services {
    type Output = Vec<Arc<ServiceTags>>;

    fn interpret(&self, answer: Answered) -> Result<Self::Output> {
        Ok(answer.good()?.json::<AllServiceTags>()?.0)
    }
}

/// The instances of a service: [`Catalog::service`], [`Catalog::connect`].
#[derive(Clone, Debug)]
pub struct Instances(());

answers_with_list!(Instances => CatalogService);

/// A node with its services: [`Catalog::node`], [`Catalog::node_services`].
#[derive(Clone, Debug)]
pub struct OneNode(());

impl Endpoint for OneNode {
    type Output = Option<NodeServices>;

    fn interpret(&self, answer: Answered) -> Result<Self::Output> {
        // An unknown node is `null`, or an object whose node is `null`.
        let found = answer.good()?.json::<Option<MaybeNodeServices>>()?;
        Ok(found.and_then(MaybeNodeServices::known))
    }
}

/// A change of the catalog: [`Catalog::register`] and the three that deregister.
#[derive(Clone, Debug)]
pub struct Change(());

impl Endpoint for Change {
    type Output = ();

    fn interpret(&self, answer: Answered) -> Result<()> {
        // Consul answers `true`, or an error.
        let raw = answer.good()?;
        match raw.decode::<bool>()? {
            true => Ok(()),
            false => Err(raw.unexpected(Error::invalid("the answer is `false`"))),
        }
    }
}
