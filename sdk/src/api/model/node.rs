//! A node of the catalog.

use std::fmt;

use serde::{Deserialize, Deserializer};

use crate::ident::{Datacenter, NodeName};
use crate::proto::json::{self, Text, TextMap};

/// A node of the catalog: a machine with an agent, or an external one.
#[derive(Clone, Eq, PartialEq)]
pub struct Node {
    pub(super) name: NodeName,
    pub(super) id: Text,
    pub(super) address: Text,
    pub(super) datacenter: Option<Datacenter>,
    pub(super) tagged_addresses: TextMap,
    pub(super) meta: TextMap,
    pub(super) create_index: u64,
    pub(super) modify_index: u64,
    pub(super) more: Option<Box<More>>,
}

/// What most nodes do not have.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct More {
    pub(super) locality: Option<Box<Locality>>,
    pub(super) partition: Text,
    pub(super) peer_name: Text,
}

impl More {
    /// Nothing takes no place.
    pub(super) fn boxed(self) -> Option<Box<Self>> {
        (self != Self::default()).then(|| Box::new(self))
    }
}

impl Node {
    accessors! {
        /// The name, unique in its datacenter: what tells one node from another in an answer.
        #[doc(alias = "Node")]
        reference name: NodeName;
        /// The UUID that the agent made for itself; empty for an external node without one.
        #[doc(alias = "ID")]
        text id;
        /// The address that the agent advertises, an IP or a host name.
        text address;
        /// The datacenter the node belongs to; absent only if the server left it out.
        option datacenter: Datacenter;
        /// Further addresses, by Consul's names: `lan`, `wan`, `lan_ipv4`, `wan_ipv6`, …
        reference tagged_addresses: TextMap;
        /// What the operator says about the node.
        reference meta: TextMap;
        /// The index at which the node came to be.
        copy create_index: u64;
        /// The index of the last change of the node itself.
        copy modify_index: u64;
    }

    /// Region and zone, if the agent says them (Consul 1.17 and later).
    #[must_use]
    pub fn locality(&self) -> Option<&Locality> {
        self.more.as_ref()?.locality.as_deref()
    }

    /// The admin partition (Consul Enterprise); empty for the default one.
    #[must_use]
    pub fn partition(&self) -> &str {
        self.more
            .as_ref()
            .map_or("", |more| more.partition.as_str())
    }

    /// The peer cluster that the node was imported from (Consul 1.13 and later).
    #[must_use]
    pub fn peer_name(&self) -> Option<&str> {
        self.more.as_ref()?.peer_name.non_empty()
    }

    /// The same for equal nodes of one answer.
    pub(crate) fn place(&self) -> usize {
        self.name.as_ptr().addr() & !1
    }
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = f.debug_struct("Node");
        out.field("name", &self.name)
            .field("id", &self.id)
            .field("address", &self.address)
            .field("datacenter", &self.datacenter)
            .field("tagged_addresses", &self.tagged_addresses)
            .field("meta", &self.meta)
            .field("create_index", &self.create_index)
            .field("modify_index", &self.modify_index);
        if let Some(more) = &self.more {
            out.field("more", more);
        }
        out.finish()
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        /// The form on the wire.
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
            meta: TextMap,
            #[serde(default, deserialize_with = "json::number")]
            create_index: u64,
            #[serde(default, deserialize_with = "json::number")]
            modify_index: u64,
            #[serde(default)]
            locality: Option<Box<Locality>>,
            #[serde(default)]
            partition: Text,
            #[serde(default)]
            peer_name: Text,
        }

        let wire = Wire::deserialize(deserializer)?;
        let more = More {
            locality: wire.locality,
            partition: wire.partition,
            peer_name: wire.peer_name,
        };
        Ok(Self {
            name: wire.name,
            id: wire.id,
            address: wire.address,
            datacenter: wire.datacenter,
            tagged_addresses: wire.tagged_addresses,
            meta: wire.meta,
            create_index: wire.create_index,
            modify_index: wire.modify_index,
            more: more.boxed(),
        })
    }
}

/// Where a node or an instance stands (Consul 1.17 and later).
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "PascalCase", default)]
pub struct Locality {
    region: Text,
    zone: Text,
}

impl Locality {
    accessors! {
        /// The region, such as `eu-west-1`.
        text region;
        /// The zone within the region, such as `eu-west-1a`.
        text zone;
    }
}
