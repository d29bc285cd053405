//! What the catalog holds, in Consul's words.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Serialize;
use serde_json::{Map, Value};

pub(crate) const PASSING: &str = "passing";
pub(crate) const WARNING: &str = "warning";
pub(crate) const CRITICAL: &str = "critical";

/// A health status. The agent knows three; `catalog/register` stores any text.
pub(crate) type Status = Cow<'static, str>;

/// The status that `text` names, without an allocation for the known ones.
pub(crate) fn status(text: &str) -> Status {
    match text {
        PASSING => Cow::Borrowed(PASSING),
        WARNING => Cow::Borrowed(WARNING),
        CRITICAL => Cow::Borrowed(CRITICAL),
        other => Cow::Owned(other.to_owned()),
    }
}

pub(crate) type Pairs = BTreeMap<String, String>;

#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Node {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) address: String,
    pub(crate) tagged_addresses: Option<Pairs>,
    pub(crate) meta: Option<Pairs>,
    pub(crate) created: u64,
    pub(crate) modified: u64,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Weights {
    pub(crate) passing: i64,
    pub(crate) warning: i64,
}

impl Default for Weights {
    fn default() -> Self {
        Self {
            passing: 1,
            warning: 1,
        }
    }
}

#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct TaggedAddress {
    pub(crate) address: String,
    pub(crate) port: i64,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Service {
    /// Empty for an ordinary service, `connect-proxy` and the like otherwise.
    pub(crate) kind: String,
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) tags: Arc<[String]>,
    pub(crate) address: String,
    pub(crate) tagged_addresses: BTreeMap<String, TaggedAddress>,
    pub(crate) meta: Pairs,
    pub(crate) port: i64,
    pub(crate) weights: Weights,
    pub(crate) enable_tag_override: bool,
    /// Proxy settings as they were registered, without those that are always there.
    pub(crate) proxy: Map<String, Value>,
    pub(crate) connect_native: bool,
    pub(crate) created: u64,
    pub(crate) modified: u64,
}

impl Service {
    /// The service that mesh traffic to this instance is meant for.
    pub(crate) fn connect_name(&self) -> Option<&str> {
        if self.kind == "connect-proxy" {
            return self
                .proxy
                .get("DestinationServiceName")
                .and_then(Value::as_str);
        }
        self.connect_native.then_some(self.name.as_str())
    }

    /// Whether both say the same, whenever they were written.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        self.kind == other.kind
            && self.id == other.id
            && self.name == other.name
            && self.tags == other.tags
            && self.address == other.address
            && self.tagged_addresses == other.tagged_addresses
            && self.meta == other.meta
            && self.port == other.port
            && self.weights == other.weights
            && self.enable_tag_override == other.enable_tag_override
            && self.proxy == other.proxy
            && self.connect_native == other.connect_native
    }
}

#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Check {
    pub(crate) node: String,
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) status: Status,
    pub(crate) notes: String,
    pub(crate) output: String,
    /// Empty for a check of the node as a whole.
    pub(crate) service_id: String,
    pub(crate) service_name: String,
    pub(crate) service_tags: Arc<[String]>,
    pub(crate) kind: String,
    pub(crate) definition: Map<String, Value>,
    pub(crate) created: u64,
    pub(crate) modified: u64,
    /// The index of the last write, also of one that changed nothing.
    pub(crate) written: u64,
}

impl Check {
    /// Whether both say the same, whenever they were written.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        self.node == other.node
            && self.id == other.id
            && self.name == other.name
            && self.status == other.status
            && self.notes == other.notes
            && self.output == other.output
            && self.service_id == other.service_id
            && self.service_name == other.service_name
            && self.service_tags == other.service_tags
            && self.definition == other.definition
    }
}
