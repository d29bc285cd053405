//! A node of the catalog.

use std::sync::Arc;

use serde::Deserialize;

use crate::ident::{Datacenter, NodeName};
use crate::proto::json::{self, Text, TextMap};

/// A node of the catalog: a machine with an agent, or an external one.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "PascalCase")]
pub struct Node {
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
    locality: Option<Arc<Locality>>,
    #[serde(default)]
    partition: Text,
    #[serde(default)]
    peer_name: Text,
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
        /// Region and zone, if the agent says them (Consul 1.17 and later).
        part locality: Locality;
        /// The admin partition (Consul Enterprise); empty for the default one.
        text partition;
        /// The peer cluster that the node was imported from (Consul 1.13 and later).
        some_text peer_name;
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
