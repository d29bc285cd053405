//! A member of the cluster.

use serde::{Deserialize, Deserializer};

use crate::ident::NodeName;
use crate::proto::json::{self, Text, TextMap};

/// An agent, as gossip knows it.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "PascalCase")]
pub struct Member {
    name: NodeName,
    #[serde(rename = "Addr", default)]
    address: Text,
    #[serde(default, deserialize_with = "json::number")]
    port: u16,
    #[serde(default)]
    tags: TextMap,
    status: MemberStatus,
    #[serde(default)]
    protocol_min: u8,
    #[serde(default)]
    protocol_max: u8,
    #[serde(default)]
    protocol_cur: u8,
    #[serde(default)]
    delegate_min: u8,
    #[serde(default)]
    delegate_max: u8,
    #[serde(default)]
    delegate_cur: u8,
}

/// Whether a member is alive.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[non_exhaustive]
pub enum MemberStatus {
    /// Not known yet.
    None,
    /// Answers.
    Alive,
    /// Is saying goodbye.
    Leaving,
    /// Said goodbye.
    Left,
    /// Went silent.
    Failed,
    /// A number that this version of the crate does not know.
    Unknown,
}

impl<'de> Deserialize<'de> for MemberStatus {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // Serf's own numbers.
        Ok(match i64::deserialize(deserializer)? {
            0 => Self::None,
            1 => Self::Alive,
            2 => Self::Leaving,
            3 => Self::Left,
            4 => Self::Failed,
            _ => Self::Unknown,
        })
    }
}

impl Member {
    /// The name of its node; among servers of all datacenters with `.` and the datacenter.
    #[must_use]
    pub fn name(&self) -> &NodeName {
        &self.name
    }

    /// The address that it gossips from.
    #[must_use]
    #[doc(alias = "Addr")]
    pub fn address(&self) -> &str {
        self.address.as_str()
    }

    /// The port that it gossips from.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// What it says about itself: `role`, `dc`, `build`, `id` and so on.
    #[must_use]
    pub fn tags(&self) -> &TextMap {
        &self.tags
    }

    /// Whether it is alive.
    #[must_use]
    pub fn status(&self) -> MemberStatus {
        self.status
    }

    /// Whether it is a server.
    #[must_use]
    pub fn is_server(&self) -> bool {
        self.tags.get("role") == Some("consul")
    }

    /// The oldest version of Serf's protocol that it speaks.
    #[must_use]
    pub fn protocol_min(&self) -> u8 {
        self.protocol_min
    }

    /// The newest version of Serf's protocol that it speaks.
    #[must_use]
    pub fn protocol_max(&self) -> u8 {
        self.protocol_max
    }

    /// The version of Serf's protocol that it speaks now.
    #[must_use]
    pub fn protocol_cur(&self) -> u8 {
        self.protocol_cur
    }

    /// The oldest version of Consul's protocol that it speaks.
    #[must_use]
    pub fn delegate_min(&self) -> u8 {
        self.delegate_min
    }

    /// The newest version of Consul's protocol that it speaks.
    #[must_use]
    pub fn delegate_max(&self) -> u8 {
        self.delegate_max
    }

    /// The version of Consul's protocol that it speaks now.
    #[must_use]
    pub fn delegate_cur(&self) -> u8 {
        self.delegate_cur
    }
}
