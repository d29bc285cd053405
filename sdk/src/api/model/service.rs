//! An instance of a service.

use std::fmt;
use std::sync::Arc;

use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::{Locality, Proxy};
use crate::ident::{ServiceId, ServiceName};
use crate::proto::json::{self, Text, TextList, TextMap};

/// What sort of service an instance belongs to.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
#[non_exhaustive]
pub enum ServiceKind {
    /// A service like any other.
    #[default]
    Typical,
    /// A sidecar or another proxy of the service mesh.
    ConnectProxy,
    /// A gateway between datacenters, partitions or peers.
    MeshGateway,
    /// A gateway out of the mesh.
    TerminatingGateway,
    /// A gateway into the mesh.
    IngressGateway,
    /// A gateway into the mesh (Consul 1.15 and later).
    ApiGateway,
    /// A kind that this crate does not know; Consul 1.8 stores any text.
    Unknown,
}

impl<'de> Deserialize<'de> for ServiceKind {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let kind = Text::deserialize(deserializer)?;
        Ok(match kind.as_str() {
            "" => Self::Typical,
            "connect-proxy" => Self::ConnectProxy,
            "mesh-gateway" => Self::MeshGateway,
            "terminating-gateway" => Self::TerminatingGateway,
            "ingress-gateway" => Self::IngressGateway,
            "api-gateway" => Self::ApiGateway,
            _ => Self::Unknown,
        })
    }
}

/// One instance of a service, as the catalog knows it.
#[derive(Clone, Eq, PartialEq)]
pub struct ServiceInstance {
    pub(super) id: ServiceId,
    pub(super) name: ServiceName,
    pub(super) tags: TextList,
    pub(super) address: Text,
    pub(super) tagged_addresses: ServiceAddresses,
    pub(super) meta: TextMap,
    pub(super) create_index: u64,
    pub(super) modify_index: u64,
    pub(super) more: Option<Box<More>>,
    pub(super) weights: Weights,
    pub(super) port: u16,
    pub(super) kind: ServiceKind,
    pub(super) enable_tag_override: bool,
}

/// What most instances do not have.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct More {
    pub(super) socket_path: Text,
    pub(super) proxy: Option<Box<Proxy>>,
    pub(super) connect: Option<Box<Connect>>,
    pub(super) locality: Option<Box<Locality>>,
    pub(super) peer_name: Text,
    pub(super) namespace: Text,
    pub(super) partition: Text,
}

impl More {
    /// Nothing takes no place.
    pub(super) fn boxed(self) -> Option<Box<Self>> {
        (self != Self::default()).then(|| Box::new(self))
    }
}

impl ServiceInstance {
    accessors! {
        /// The ID, unique on its node: node and ID together tell one instance from another.
        #[doc(alias = "ID")]
        reference id: ServiceId;
        /// The name that clients look up.
        #[doc(alias = "Service")]
        reference name: ServiceName;
        /// What sort of service it is.
        copy kind: ServiceKind;
        /// The tags.
        reference tags: TextList;
        /// The address the instance was registered with; empty if it is that of its node.
        ///
        /// [`ServiceEntry::address`](super::super::health::ServiceEntry::address) knows both.
        text address;
        /// The port; 0 if there is none, or one that TCP does not have.
        copy port: u16;
        /// Further addresses, by Consul's names: `lan`, `wan`, `lan_ipv4`, `virtual`, …
        reference tagged_addresses: ServiceAddresses;
        /// What the registration says about the instance.
        reference meta: TextMap;
        /// How much of the calls it should get, by status.
        copy weights: Weights;
        /// Whether others may change the tags in the catalog, past the agent.
        copy enable_tag_override: bool;
        /// The index at which the instance came to be.
        copy create_index: u64;
        /// The index of the last change of the instance itself; those of its checks do not count.
        copy modify_index: u64;
    }

    /// The unix socket it listens on in place of a port (Consul 1.10 and later).
    #[must_use]
    pub fn socket_path(&self) -> Option<&str> {
        self.more.as_ref()?.socket_path.non_empty()
    }

    /// The configuration of a proxy, or the part of it that the instance states; absent if empty.
    #[must_use]
    pub fn proxy(&self) -> Option<&Proxy> {
        self.more.as_ref()?.proxy.as_deref()
    }

    /// How the instance takes part in the service mesh; absent if it does not.
    #[must_use]
    pub fn connect(&self) -> Option<&Connect> {
        self.more.as_ref()?.connect.as_deref()
    }

    /// Region and zone, if the registration says them (Consul 1.17 and later).
    #[must_use]
    pub fn locality(&self) -> Option<&Locality> {
        self.more.as_ref()?.locality.as_deref()
    }

    /// The peer cluster that the instance was imported from (Consul 1.13 and later).
    #[must_use]
    pub fn peer_name(&self) -> Option<&str> {
        self.more.as_ref()?.peer_name.non_empty()
    }

    /// The namespace (Consul Enterprise); empty for the default one.
    #[must_use]
    pub fn namespace(&self) -> &str {
        self.more
            .as_ref()
            .map_or("", |more| more.namespace.as_str())
    }

    /// The admin partition (Consul Enterprise); empty for the default one.
    #[must_use]
    pub fn partition(&self) -> &str {
        self.more
            .as_ref()
            .map_or("", |more| more.partition.as_str())
    }
}

impl fmt::Debug for ServiceInstance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = f.debug_struct("ServiceInstance");
        out.field("id", &self.id)
            .field("name", &self.name)
            .field("kind", &self.kind)
            .field("tags", &self.tags)
            .field("address", &self.address)
            .field("port", &self.port)
            .field("tagged_addresses", &self.tagged_addresses)
            .field("meta", &self.meta)
            .field("weights", &self.weights)
            .field("enable_tag_override", &self.enable_tag_override)
            .field("create_index", &self.create_index)
            .field("modify_index", &self.modify_index);
        if let Some(more) = &self.more {
            out.field("more", more);
        }
        out.finish()
    }
}

impl<'de> Deserialize<'de> for ServiceInstance {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        /// The form on the wire.
        #[derive(Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Wire {
            #[serde(rename = "ID")]
            id: ServiceId,
            #[serde(rename = "Service")]
            name: ServiceName,
            #[serde(default)]
            kind: ServiceKind,
            #[serde(default)]
            tags: TextList,
            #[serde(default)]
            address: Text,
            #[serde(default, deserialize_with = "json::number")]
            port: u16,
            #[serde(default)]
            tagged_addresses: ServiceAddresses,
            #[serde(default)]
            meta: TextMap,
            #[serde(default, deserialize_with = "json::or_default")]
            weights: Weights,
            #[serde(default, deserialize_with = "json::or_default")]
            enable_tag_override: bool,
            #[serde(default, deserialize_with = "json::number")]
            create_index: u64,
            #[serde(default, deserialize_with = "json::number")]
            modify_index: u64,
            #[serde(default)]
            socket_path: Text,
            #[serde(default, deserialize_with = "json::unless_default")]
            proxy: Option<Box<Proxy>>,
            #[serde(default, deserialize_with = "json::unless_default")]
            connect: Option<Box<Connect>>,
            #[serde(default)]
            locality: Option<Box<Locality>>,
            #[serde(default)]
            peer_name: Text,
            #[serde(default)]
            namespace: Text,
            #[serde(default)]
            partition: Text,
        }

        let wire = Wire::deserialize(deserializer)?;
        let more = More {
            socket_path: wire.socket_path,
            proxy: wire.proxy,
            connect: wire.connect,
            locality: wire.locality,
            peer_name: wire.peer_name,
            namespace: wire.namespace,
            partition: wire.partition,
        };
        Ok(Self {
            id: wire.id,
            name: wire.name,
            kind: wire.kind,
            tags: wire.tags,
            address: wire.address,
            port: wire.port,
            tagged_addresses: wire.tagged_addresses,
            meta: wire.meta,
            weights: wire.weights,
            enable_tag_override: wire.enable_tag_override,
            create_index: wire.create_index,
            modify_index: wire.modify_index,
            more: more.boxed(),
        })
    }
}

/// How much of the calls an instance should get, relative to the others of its service.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, PartialEq)]
#[serde(rename_all = "PascalCase")]
pub struct Weights {
    #[serde(default, deserialize_with = "json::number")]
    passing: u16,
    #[serde(default, deserialize_with = "json::number")]
    warning: u16,
}

impl Weights {
    accessors! {
        /// The weight while all its checks pass. Consul's default: 1.
        copy passing: u16;
        /// The weight while one of them warns; 0 means none. Consul's default: 1.
        copy warning: u16;
    }
}

impl Default for Weights {
    fn default() -> Self {
        Self {
            passing: 1,
            warning: 1,
        }
    }
}

/// An address with its port.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "PascalCase", default)]
pub struct ServiceAddress {
    address: Text,
    #[serde(deserialize_with = "json::number")]
    port: u16,
}

impl ServiceAddress {
    accessors! {
        /// An IP address or a host name.
        text address;
        /// The port; 0 if there is none, or one that TCP does not have.
        copy port: u16;
    }
}

/// Addresses under names, sorted by name.
///
/// Cheap to clone.
#[derive(Clone, Default, Eq, PartialEq)]
pub struct ServiceAddresses(Option<Arc<[Named]>>);

/// An address under its name.
#[derive(Clone, Debug, Eq, PartialEq)]
struct Named {
    name: Arc<str>,
    at: ServiceAddress,
}

impl ServiceAddresses {
    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.all().len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// The address under this name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&ServiceAddress> {
        let found = self.all().iter().find(|named| *named.name == *name)?;
        Some(&found.at)
    }

    /// All names and addresses.
    #[must_use]
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &ServiceAddress)> {
        self.all().iter().map(|named| (&*named.name, &named.at))
    }

    fn all(&self) -> &[Named] {
        self.0.as_deref().unwrap_or_default()
    }
}

impl fmt::Debug for ServiceAddresses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

impl<'de> Deserialize<'de> for ServiceAddresses {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Map;

        impl<'de> Visitor<'de> for Map {
            type Value = ServiceAddresses;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of addresses, or null")
            }

            fn visit_unit<E>(self) -> Result<ServiceAddresses, E> {
                Ok(ServiceAddresses(None))
            }

            fn visit_map<A: MapAccess<'de>>(
                self,
                mut map: A,
            ) -> Result<ServiceAddresses, A::Error> {
                let mut all: Option<Arc<[Named]>> = json::few(&mut || {
                    let entry = map.next_entry()?;
                    Ok(entry.map(|(json::Shared(name), at)| Named { name, at }))
                })?;
                let all_named = all.as_mut().and_then(Arc::get_mut).unwrap_or_default();
                // Go writes maps sorted.
                if !all_named.is_sorted_by(|one, other| one.name <= other.name) {
                    all_named.sort_by(|one, other| one.name.cmp(&other.name));
                }
                Ok(ServiceAddresses(all))
            }
        }

        deserializer.deserialize_any(Map)
    }
}

/// How an instance takes part in the service mesh.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "PascalCase", default)]
pub struct Connect {
    #[serde(deserialize_with = "json::or_default")]
    native: bool,
    peer_meta: Option<Box<PeerMeta>>,
}

impl Connect {
    accessors! {
        /// Whether it speaks the mesh's protocol by itself, without a proxy.
        copy native: bool;
        /// How it is reached from a peer cluster (Consul 1.13 and later).
        part peer_meta: PeerMeta;
    }
}

/// How an instance of a peer cluster is reached.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "PascalCase", default)]
pub struct PeerMeta {
    #[serde(rename = "SNI")]
    sni: TextList,
    #[serde(rename = "SpiffeID")]
    spiffe_id: TextList,
    protocol: Text,
}

impl PeerMeta {
    accessors! {
        /// The server names to ask for in TLS.
        #[doc(alias = "SNI")]
        reference sni: TextList;
        /// The identities that its certificate may bear.
        #[doc(alias = "SpiffeID")]
        reference spiffe_id: TextList;
        /// The protocol it speaks.
        text protocol;
    }
}
