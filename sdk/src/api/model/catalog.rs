//! What the catalog answers with.

use std::fmt;
use std::sync::Arc;

use serde::de::{IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::service::More;
use super::{
    Connect, Locality, Node, Proxy, ServiceAddresses, ServiceInstance, ServiceKind, Weights,
};
use crate::ident::{Datacenter, NodeName, ServiceId, ServiceName, text};
use crate::proto::json::{self, Text, TextList, TextMap};

/// An instance of a service with its node, without its checks.
///
/// The name of the [`node`](Self::node) and the ID of the [`service`](Self::service) together tell
/// one from another.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct CatalogService {
    node: Arc<Node>,
    service: ServiceInstance,
}

impl CatalogService {
    accessors! {
        /// The node that the instance is registered at.
        ///
        /// The catalog does not tell its indices here; they are 0.
        reference node: Node;
        /// The instance itself.
        reference service: ServiceInstance;
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
}

impl<'de> Deserialize<'de> for CatalogService {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        /// The form on the wire: node and instance side by side.
        #[derive(Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Wire {
            #[serde(rename = "Node")]
            name: NodeName,
            #[serde(rename = "ID", default)]
            id: Text,
            #[serde(default)]
            address: Text,
            #[serde(default)]
            datacenter: Option<Datacenter>,
            #[serde(default)]
            tagged_addresses: TextMap,
            #[serde(default)]
            node_meta: TextMap,
            #[serde(rename = "ServiceID")]
            service_id: ServiceId,
            service_name: ServiceName,
            #[serde(default)]
            service_kind: ServiceKind,
            #[serde(default)]
            service_tags: TextList,
            #[serde(default)]
            service_address: Text,
            #[serde(default)]
            service_tagged_addresses: ServiceAddresses,
            #[serde(default)]
            service_meta: TextMap,
            #[serde(default, deserialize_with = "json::number")]
            service_port: u16,
            #[serde(default)]
            service_socket_path: Text,
            #[serde(default, deserialize_with = "json::or_default")]
            service_weights: Weights,
            #[serde(default, deserialize_with = "json::or_default")]
            service_enable_tag_override: bool,
            #[serde(default, deserialize_with = "json::unless_default")]
            service_proxy: Option<Box<Proxy>>,
            #[serde(default, deserialize_with = "json::unless_default")]
            service_connect: Option<Box<Connect>>,
            #[serde(default)]
            service_locality: Option<Box<Locality>>,
            #[serde(default)]
            peer_name: Text,
            #[serde(default)]
            namespace: Text,
            #[serde(default)]
            partition: Text,
            #[serde(default, deserialize_with = "json::number")]
            create_index: u64,
            #[serde(default, deserialize_with = "json::number")]
            modify_index: u64,
        }

        let wire = Wire::deserialize(deserializer)?;
        let node = Node {
            name: wire.name,
            id: wire.id,
            address: wire.address,
            datacenter: wire.datacenter,
            tagged_addresses: wire.tagged_addresses,
            meta: wire.node_meta,
            create_index: 0,
            modify_index: 0,
            more: super::node::More {
                locality: None,
                partition: wire.partition.clone(),
                peer_name: wire.peer_name.clone(),
            }
            .boxed(),
        };
        let more = More {
            socket_path: wire.service_socket_path,
            proxy: wire.service_proxy,
            connect: wire.service_connect,
            locality: wire.service_locality,
            peer_name: wire.peer_name,
            namespace: wire.namespace,
            partition: wire.partition,
        };
        Ok(Self {
            node: text::shared_value(node.place(), node),
            service: ServiceInstance {
                id: wire.service_id,
                name: wire.service_name,
                kind: wire.service_kind,
                tags: wire.service_tags,
                address: wire.service_address,
                port: wire.service_port,
                tagged_addresses: wire.service_tagged_addresses,
                meta: wire.service_meta,
                weights: wire.service_weights,
                enable_tag_override: wire.service_enable_tag_override,
                create_index: wire.create_index,
                modify_index: wire.modify_index,
                more: more.boxed(),
            },
        })
    }
}

/// A node with all instances that are registered at it.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "PascalCase")]
pub struct NodeServices {
    node: Node,
    #[serde(default, deserialize_with = "instances")]
    services: Box<[ServiceInstance]>,
}

impl NodeServices {
    accessors! {
        /// The node.
        reference node: Node;
        /// The instances, sorted by ID.
        slice services: ServiceInstance;
    }
}

/// The same for a node that may be unknown: then it is `null`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct MaybeNodeServices {
    node: Option<Node>,
    #[serde(default, deserialize_with = "instances")]
    services: Box<[ServiceInstance]>,
}

impl MaybeNodeServices {
    pub(crate) fn known(self) -> Option<NodeServices> {
        Some(NodeServices {
            node: self.node?,
            services: self.services,
        })
    }
}

/// Instances under their IDs (`/v1/catalog/node`), or in a list (`/v1/catalog/node-services`).
fn instances<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Box<[ServiceInstance]>, D::Error> {
    struct Instances;

    impl<'de> Visitor<'de> for Instances {
        type Value = Vec<ServiceInstance>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object or a list of services, or null")
        }

        fn visit_unit<E>(self) -> Result<Self::Value, E> {
            Ok(Vec::new())
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
            let mut all = Vec::new();
            while let Some(one) = seq.next_element()? {
                all.push(one);
            }
            Ok(all)
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut all = Vec::new();
            while let Some((IgnoredAny, one)) = map.next_entry()? {
                all.push(one);
            }
            Ok(all)
        }
    }

    let mut all = deserializer.deserialize_any(Instances)?;
    all.sort_by(|one, other| one.id.cmp(&other.id));
    Ok(all.into_boxed_slice())
}

/// The name of a service, with all tags that its instances have.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ServiceTags {
    name: ServiceName,
    tags: TextList,
}

impl ServiceTags {
    accessors! {
        /// The name of the service.
        reference name: ServiceName;
        /// The tags of all its instances, each once, in alphabetical order.
        reference tags: TextList;
    }
}

/// The list that stands on the wire as an object: tags under names; sorted by name.
#[derive(Debug, Default)]
pub(crate) struct AllServiceTags(pub(crate) Vec<Arc<ServiceTags>>);

impl<'de> Deserialize<'de> for AllServiceTags {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Map;

        impl<'de> Visitor<'de> for Map {
            type Value = AllServiceTags;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of lists of tags")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut all = Vec::new();
                while let Some((name, tags)) = map.next_entry::<_, TextList>()? {
                    // Consul lists them in the order of a hash map: another one each time.
                    let tags = tags.sorted();
                    all.push(Arc::new(ServiceTags { name, tags }));
                }
                all.sort_by(|one, other| one.name.cmp(&other.name));
                Ok(AllServiceTags(all))
            }
        }

        deserializer.deserialize_map(Map)
    }
}
