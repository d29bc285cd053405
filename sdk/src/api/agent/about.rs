//! What an agent says about itself.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::Member;
use crate::ident::{Datacenter, NodeName};
use crate::proto::json::{self, Json, Shared, Text, TextMap};

/// An agent's configuration, its place in the cluster and its counters.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(rename_all = "PascalCase")]
pub struct About {
    config: AboutConfig,
    #[serde(default)]
    debug_config: Option<Json>,
    #[serde(rename = "Coord", default)]
    coordinate: Option<Coordinate>,
    #[serde(default)]
    member: Option<Member>,
    #[serde(default, deserialize_with = "stats")]
    stats: BTreeMap<Arc<str>, TextMap>,
    #[serde(default)]
    meta: TextMap,
    #[serde(rename = "xDS", default)]
    xds: Option<Json>,
}

/// Counters come in groups: `{"raft":{"term":"2"}}`.
fn stats<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<BTreeMap<Arc<str>, TextMap>, D::Error> {
    struct Groups;

    impl<'de> Visitor<'de> for Groups {
        type Value = BTreeMap<Arc<str>, TextMap>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("counters in groups, or null")
        }

        fn visit_unit<E: serde::de::Error>(self) -> Result<Self::Value, E> {
            Ok(BTreeMap::new())
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut out = BTreeMap::new();
            while let Some((Shared(name), group)) = map.next_entry()? {
                out.insert(name, group);
            }
            Ok(out)
        }
    }

    deserializer.deserialize_any(Groups)
}

/// A datacenter without a name is none.
fn some<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Datacenter>, D::Error> {
    let name = Option::<Datacenter>::deserialize(deserializer)?;
    Ok(name.filter(|name| !name.is_empty()))
}

impl About {
    /// Who the agent is.
    #[must_use]
    pub fn config(&self) -> &AboutConfig {
        &self.config
    }

    /// Its whole configuration, in a form that differs from version to version.
    #[must_use]
    pub fn debug_config(&self) -> Option<&Json> {
        self.debug_config.as_ref()
    }

    /// Where it is in the network, by round-trip times; `None` if they are switched off.
    #[must_use]
    pub fn coordinate(&self) -> Option<&Coordinate> {
        self.coordinate.as_ref()
    }

    /// Itself as a member of the cluster.
    #[must_use]
    pub fn member(&self) -> Option<&Member> {
        self.member.as_ref()
    }

    /// Its counters, in groups such as `raft` and `serf_lan`.
    #[must_use]
    pub fn stats(&self) -> &BTreeMap<Arc<str>, TextMap> {
        &self.stats
    }

    /// The metadata of its node.
    #[must_use]
    pub fn meta(&self) -> &TextMap {
        &self.meta
    }

    /// Which proxies it can set up, and where they ask for it (1.9).
    #[must_use]
    pub fn xds(&self) -> Option<&Json> {
        self.xds.as_ref()
    }
}

/// Who an agent is.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "PascalCase")]
pub struct AboutConfig {
    datacenter: Datacenter,
    #[serde(default, deserialize_with = "some")]
    primary_datacenter: Option<Datacenter>,
    node_name: NodeName,
    #[serde(rename = "NodeID", default)]
    node_id: Text,
    #[serde(default)]
    partition: Text,
    #[serde(default, deserialize_with = "json::or_default")]
    server: bool,
    #[serde(default)]
    version: Text,
    #[serde(default)]
    version_metadata: Text,
    #[serde(default)]
    revision: Text,
    #[serde(default)]
    build_date: Text,
}

impl AboutConfig {
    /// Its datacenter.
    #[must_use]
    pub fn datacenter(&self) -> &Datacenter {
        &self.datacenter
    }

    /// The datacenter that leads in ACLs and the mesh (1.10).
    #[must_use]
    pub fn primary_datacenter(&self) -> Option<&Datacenter> {
        self.primary_datacenter.as_ref()
    }

    /// The name of its node.
    #[must_use]
    pub fn node_name(&self) -> &NodeName {
        &self.node_name
    }

    /// The ID of its node, which tells whether an agent of the same name is the same.
    #[must_use]
    pub fn node_id(&self) -> Option<&str> {
        self.node_id.non_empty()
    }

    /// Its partition (Consul Enterprise).
    #[must_use]
    pub fn partition(&self) -> Option<&str> {
        self.partition.non_empty()
    }

    /// Whether it is a server.
    #[must_use]
    pub fn is_server(&self) -> bool {
        self.server
    }

    /// Its version, such as `1.21.4`.
    #[must_use]
    pub fn version(&self) -> Option<&str> {
        self.version.non_empty()
    }

    /// What follows the version, such as `ent`.
    #[must_use]
    pub fn version_metadata(&self) -> Option<&str> {
        self.version_metadata.non_empty()
    }

    /// The revision that it was built from.
    #[must_use]
    pub fn revision(&self) -> Option<&str> {
        self.revision.non_empty()
    }

    /// When it was built.
    #[must_use]
    pub fn build_date(&self) -> Option<&str> {
        self.build_date.non_empty()
    }
}

/// A place in the network by round-trip times.
///
/// The distance of two places is the round-trip time between them, in seconds: the Euclidean
/// distance of the vectors, plus both heights, plus both adjustments.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "PascalCase", default)]
pub struct Coordinate {
    #[serde(deserialize_with = "json::or_default")]
    vec: Vec<f64>,
    error: f64,
    adjustment: f64,
    height: f64,
}

impl Coordinate {
    /// The place in a space of eight dimensions.
    #[must_use]
    pub fn vec(&self) -> &[f64] {
        &self.vec
    }

    /// How sure the place is: 1.5 at first, less as it settles.
    #[must_use]
    pub fn error(&self) -> f64 {
        self.error
    }

    /// A correction, in seconds.
    #[must_use]
    pub fn adjustment(&self) -> f64 {
        self.adjustment
    }

    /// The way from the node to the network, in seconds.
    #[must_use]
    pub fn height(&self) -> f64 {
        self.height
    }
}
