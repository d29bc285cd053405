//! What is put into the catalog by hand, and what is taken out.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde_json::value::RawValue;

use crate::api::health::Status;
use crate::error::{Error, Result};
use crate::ident::{CheckId, NodeName, ServiceId, ServiceName};
use crate::proto::duration;

/// A node to be put into the catalog, with a service and checks: what has no agent of its own.
///
/// Only what is set is sent. What was wrong is told when the call is awaited.
///
/// # Examples
///
/// ```no_run
/// # async fn example(client: lictor::Client) -> lictor::Result<()> {
/// use lictor::api::catalog::{Entry, NewCheck, NewService};
/// use lictor::api::health::Status;
///
/// let database = Entry::new("db-1.example.org", "192.0.2.7")
///     .meta("external-node", "true")
///     .service(NewService::new("db").port(5432).tag("primary"))
///     .check(NewCheck::new("db-alive", "Database answers", Status::Passing).service_id("db"));
/// client.catalog().register(database).await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
#[must_use = "an entry does nothing until it is registered"]
pub struct Entry {
    body: Result<EntryBody>,
}

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct EntryBody {
    node: NodeName,
    address: String,
    #[serde(rename = "ID", skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    tagged_addresses: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    node_meta: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    locality: Option<LocalityBody>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    skip_node_update: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    service: Option<ServiceBody>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    checks: Vec<CheckBody>,
}

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct LocalityBody {
    region: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    zone: String,
}

impl Entry {
    /// A node under this name, reached at this address (an IP or a host name).
    pub fn new(node: impl Into<Arc<str>>, address: impl Into<String>) -> Self {
        let address = address.into();
        let body = NodeName::new(node).and_then(|node| {
            if address.is_empty() {
                return Err(Error::invalid("node address: must not be empty"));
            }
            Ok(EntryBody {
                node,
                address,
                id: None,
                tagged_addresses: BTreeMap::new(),
                node_meta: BTreeMap::new(),
                locality: None,
                skip_node_update: false,
                service: None,
                checks: Vec::new(),
            })
        });
        Self { body }
    }

    /// A UUID for the node, by which it may be renamed later. Default: none.
    #[doc(alias = "ID")]
    pub fn id(self, uuid: impl Into<String>) -> Self {
        self.with(|body| body.id = Some(uuid.into()))
    }

    /// A further address under a name, such as `wan`. Default: none.
    pub fn tagged_address(self, name: impl Into<String>, address: impl Into<String>) -> Self {
        self.with(|body| {
            body.tagged_addresses.insert(name.into(), address.into());
        })
    }

    /// A piece of metadata of the node. Default: none.
    ///
    /// Consul takes 64 pairs, keys of up to 128 letters, digits, `-` and `_`, and values of up to
    /// 512 bytes.
    pub fn meta(self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.with(|body| {
            body.node_meta.insert(key.into(), value.into());
        })
    }

    /// Region and zone of the node (Consul 1.17 and later). Default: not sent.
    pub fn locality(self, region: impl Into<String>, zone: impl Into<String>) -> Self {
        self.with(|body| {
            body.locality = Some(LocalityBody {
                region: region.into(),
                zone: zone.into(),
            });
        })
    }

    /// Leaves the node as it is if it is known already. Default: it is overwritten.
    pub fn skip_node_update(self) -> Self {
        self.with(|body| body.skip_node_update = true)
    }

    /// An instance at the node. Default: none. Set again, it replaces the former.
    pub fn service(mut self, service: NewService) -> Self {
        if let Ok(body) = &mut self.body {
            match service.body {
                Ok(service) => body.service = Some(service),
                Err(err) => self.body = Err(err),
            }
        }
        self
    }

    /// A check of the node or of one of its instances. Default: none. Call it again for more.
    pub fn check(mut self, check: NewCheck) -> Self {
        if let Ok(body) = &mut self.body {
            match check.into_body(body.node.clone()) {
                Ok(check) => body.checks.push(check),
                Err(err) => self.body = Err(err),
            }
        }
        self
    }

    pub(super) fn into_body(self) -> Result<EntryBody> {
        self.body
    }

    fn with(mut self, change: impl FnOnce(&mut EntryBody)) -> Self {
        if let Ok(body) = &mut self.body {
            change(body);
        }
        self
    }
}

/// An instance to be put into the catalog by hand.
#[derive(Clone, Debug)]
#[must_use = "a service does nothing until it is registered"]
pub struct NewService {
    body: Result<ServiceBody>,
}

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(in crate::api) struct ServiceBody {
    service: ServiceName,
    #[serde(rename = "ID", skip_serializing_if = "Option::is_none")]
    id: Option<ServiceId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    kind: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tags: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    address: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    port: Option<u16>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    tagged_addresses: BTreeMap<String, AddressBody>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    meta: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    weights: Option<WeightsBody>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    enable_tag_override: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    socket_path: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    locality: Option<LocalityBody>,
    #[serde(skip_serializing_if = "Option::is_none")]
    proxy: Option<Arc<RawValue>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    connect: Option<ConnectBody>,
}

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct AddressBody {
    address: String,
    port: u16,
}

#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct WeightsBody {
    passing: u16,
    warning: u16,
}

#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct ConnectBody {
    native: bool,
}

impl NewService {
    /// An instance of this service.
    pub fn new(name: impl Into<Arc<str>>) -> Self {
        let body = ServiceName::new(name).map(|service| ServiceBody {
            service,
            id: None,
            kind: None,
            tags: Vec::new(),
            address: None,
            port: None,
            tagged_addresses: BTreeMap::new(),
            meta: BTreeMap::new(),
            weights: None,
            enable_tag_override: false,
            socket_path: None,
            locality: None,
            proxy: None,
            connect: None,
        });
        Self { body }
    }

    /// The ID, unique on its node. Default: the service's name.
    #[doc(alias = "ID")]
    pub fn id(mut self, id: impl Into<Arc<str>>) -> Self {
        if let Ok(body) = &mut self.body {
            match ServiceId::new(id) {
                Ok(id) => body.id = Some(id),
                Err(err) => self.body = Err(err),
            }
        }
        self
    }

    /// What sort of service it is, such as `connect-proxy`. Default: one like any other.
    pub fn kind(self, kind: impl Into<String>) -> Self {
        self.with(|body| body.kind = Some(kind.into()))
    }

    /// A tag. Default: none. Call it again for more.
    pub fn tag(self, tag: impl Into<String>) -> Self {
        self.with(|body| body.tags.push(tag.into()))
    }

    /// An IP address or a host name. Default: the node's.
    pub fn address(self, address: impl Into<String>) -> Self {
        self.with(|body| body.address = Some(address.into()))
    }

    /// The port it listens on. Default: none, which Consul shows as 0.
    pub fn port(self, port: u16) -> Self {
        self.with(|body| body.port = Some(port))
    }

    /// A further address under a name, such as `wan`. Default: none.
    pub fn tagged_address(
        self,
        name: impl Into<String>,
        address: impl Into<String>,
        port: u16,
    ) -> Self {
        self.with(|body| {
            let address = address.into();
            body.tagged_addresses
                .insert(name.into(), AddressBody { address, port });
        })
    }

    /// A piece of metadata. Default: none. The limits are those of [`Entry::meta`].
    pub fn meta(self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.with(|body| {
            body.meta.insert(key.into(), value.into());
        })
    }

    /// How much of the calls it should get, by status. Default: 1 and 1.
    ///
    /// Range: `passing` above zero.
    pub fn weights(mut self, passing: u16, warning: u16) -> Self {
        if passing == 0 {
            // The first thing that was wrong stays.
            self.body = self.body.and(Err(Error::invalid(
                "weight 0 while passing: must be from 1 to 65535",
            )));
            return self;
        }
        self.with(|body| body.weights = Some(WeightsBody { passing, warning }))
    }

    /// Lets others change the tags. Default: not.
    pub fn enable_tag_override(self) -> Self {
        self.with(|body| body.enable_tag_override = true)
    }

    /// A unix socket in place of a port (Consul 1.10 and later). Default: not sent.
    pub fn socket_path(self, path: impl Into<String>) -> Self {
        self.with(|body| body.socket_path = Some(path.into()))
    }

    /// Region and zone of the instance (Consul 1.17 and later). Default: not sent.
    pub fn locality(self, region: impl Into<String>, zone: impl Into<String>) -> Self {
        self.with(|body| {
            body.locality = Some(LocalityBody {
                region: region.into(),
                zone: zone.into(),
            });
        })
    }

    /// The configuration of a proxy, in the form that Consul documents. Default: none.
    pub fn proxy<T: Serialize + ?Sized>(mut self, proxy: &T) -> Self {
        if let Ok(body) = &mut self.body {
            match json(proxy) {
                Ok(proxy) => body.proxy = Some(proxy),
                Err(err) => self.body = Err(err),
            }
        }
        self
    }

    /// Says that it speaks the protocol of the mesh by itself. Default: not.
    pub fn connect_native(self) -> Self {
        self.with(|body| body.connect = Some(ConnectBody { native: true }))
    }

    pub(in crate::api) fn into_body(self) -> Result<ServiceBody> {
        self.body
    }

    fn with(mut self, change: impl FnOnce(&mut ServiceBody)) -> Self {
        if let Ok(body) = &mut self.body {
            change(body);
        }
        self
    }
}

impl ServiceBody {
    /// The ID, which is the name unless it is said.
    pub(in crate::api) fn id(&self) -> Result<ServiceId> {
        match &self.id {
            Some(id) => Ok(id.clone()),
            None => ServiceId::new(self.service.as_str()),
        }
    }
}

/// A check to be put into the catalog by hand.
///
/// Nobody runs it: it says what it is told to say, until it is written again.
#[derive(Clone, Debug)]
#[must_use = "a check does nothing until it is registered"]
pub struct NewCheck {
    body: Result<CheckBody>,
}

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(in crate::api) struct CheckBody {
    node: Option<NodeName>,
    #[serde(rename = "CheckID")]
    id: CheckId,
    name: String,
    status: &'static str,
    #[serde(skip_serializing_if = "String::is_empty")]
    notes: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    output: String,
    #[serde(rename = "ServiceID", skip_serializing_if = "Option::is_none")]
    service_id: Option<ServiceId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    definition: Option<Definition>,
}

/// A definition by its most used parts, or whole.
#[derive(Clone, Debug, Serialize)]
#[serde(untagged)]
enum Definition {
    Parts(Parts),
    Whole(Arc<RawValue>),
}

#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Parts {
    #[serde(rename = "HTTP", skip_serializing_if = "Option::is_none")]
    http: Option<String>,
    #[serde(rename = "TCP", skip_serializing_if = "Option::is_none")]
    tcp: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    interval: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    timeout: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    deregister_critical_service_after: Option<String>,
}

impl NewCheck {
    /// A check of this ID, unique on its node, with a name for people and its status.
    ///
    /// The status is one that Consul stores: passing, warning or critical.
    pub fn new(id: impl Into<Arc<str>>, name: impl Into<String>, status: Status) -> Self {
        let body = CheckId::new(id).and_then(|id| match status {
            Status::Passing | Status::Warning | Status::Critical => Ok(CheckBody {
                node: None,
                id,
                name: name.into(),
                status: status.as_str(),
                notes: String::new(),
                output: String::new(),
                service_id: None,
                definition: None,
            }),
            Status::Unknown | Status::Maintenance => Err(Error::invalid(format!(
                "status {status}: must be passing, warning or critical"
            ))),
        });
        Self { body }
    }

    /// The instance that is checked. Default: the whole node.
    #[doc(alias = "ServiceID")]
    pub fn service_id(mut self, id: impl Into<Arc<str>>) -> Self {
        if let Ok(body) = &mut self.body {
            match ServiceId::new(id) {
                Ok(id) => body.service_id = Some(id),
                Err(err) => self.body = Err(err),
            }
        }
        self
    }

    /// What the check is about, for people. Default: empty.
    pub fn notes(self, notes: impl Into<String>) -> Self {
        self.with(|body| body.notes = notes.into())
    }

    /// What the last run said, for people. Default: empty.
    pub fn output(self, output: impl Into<String>) -> Self {
        self.with(|body| body.output = output.into())
    }

    /// The URL that a monitor of external services should ask. Default: none.
    #[doc(alias = "HTTP")]
    pub fn http(self, url: impl Into<String>) -> Self {
        self.part(|parts| parts.http = Some(url.into()))
    }

    /// The `host:port` that a monitor of external services should connect to. Default: none.
    #[doc(alias = "TCP")]
    pub fn tcp(self, address: impl Into<String>) -> Self {
        self.part(|parts| parts.tcp = Some(address.into()))
    }

    /// How often it should look. Default: not sent.
    pub fn interval(self, interval: Duration) -> Self {
        self.part(|parts| parts.interval = Some(duration::format(interval)))
    }

    /// How long one look may take. Default: not sent.
    pub fn timeout(self, timeout: Duration) -> Self {
        self.part(|parts| parts.timeout = Some(duration::format(timeout)))
    }

    /// After how long in critical state the monitor should remove the service. Default: never.
    pub fn deregister_critical_service_after(self, after: Duration) -> Self {
        self.part(|parts| {
            parts.deregister_critical_service_after = Some(duration::format(after));
        })
    }

    /// The whole definition, in the form that Consul documents; replaces its parts. Default: none.
    pub fn definition<T: Serialize + ?Sized>(mut self, definition: &T) -> Self {
        if let Ok(body) = &mut self.body {
            match json(definition) {
                Ok(whole) => body.definition = Some(Definition::Whole(whole)),
                Err(err) => self.body = Err(err),
            }
        }
        self
    }

    pub(in crate::api) fn into_body(self, node: NodeName) -> Result<CheckBody> {
        self.body.map(|body| CheckBody {
            node: Some(node),
            ..body
        })
    }

    fn part(self, change: impl FnOnce(&mut Parts)) -> Self {
        self.with(|body| {
            let mut parts = match body.definition.take() {
                Some(Definition::Parts(parts)) => parts,
                _ => Parts::default(),
            };
            change(&mut parts);
            body.definition = Some(Definition::Parts(parts));
        })
    }

    fn with(mut self, change: impl FnOnce(&mut CheckBody)) -> Self {
        if let Ok(body) = &mut self.body {
            change(body);
        }
        self
    }
}

impl CheckBody {
    pub(in crate::api) fn id(&self) -> &CheckId {
        &self.id
    }
}

fn json<T: Serialize + ?Sized>(value: &T) -> Result<Arc<RawValue>> {
    match serde_json::value::to_raw_value(value) {
        Ok(raw) => Ok(raw.into()),
        Err(err) => Err(Error::invalid("cannot be written as JSON").caused_by(err)),
    }
}

/// What is taken out of the catalog.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Gone {
    node: NodeName,
    #[serde(rename = "ServiceID", skip_serializing_if = "Option::is_none")]
    service_id: Option<ServiceId>,
    #[serde(rename = "CheckID", skip_serializing_if = "Option::is_none")]
    check_id: Option<CheckId>,
}

impl Gone {
    pub(super) fn node(node: impl Into<Arc<str>>) -> Result<Self> {
        Ok(Self {
            node: NodeName::new(node)?,
            service_id: None,
            check_id: None,
        })
    }

    pub(super) fn service(mut self, id: ServiceId) -> Self {
        self.service_id = Some(id);
        self
    }

    pub(super) fn check(mut self, id: CheckId) -> Self {
        self.check_id = Some(id);
        self
    }
}
