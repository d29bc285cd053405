//! The JSON shapes of Consul 1.8.7's answers, field by field.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};
use serde_json::{Map, Value};

use super::super::state::catalog::Instance;
use super::super::state::kv;
use super::super::state::model::{Check, Node, Pairs, Service, TaggedAddress, Weights};
use super::super::state::session::{ServiceCheck, Session};

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct NodeView<'a> {
    #[serde(rename = "ID")]
    id: &'a str,
    node: &'a str,
    address: &'a str,
    datacenter: &'a str,
    tagged_addresses: Option<&'a Pairs>,
    meta: Option<&'a Pairs>,
    create_index: u64,
    modify_index: u64,
}

impl<'a> NodeView<'a> {
    pub(super) fn new(node: &'a Node, datacenter: &'a str) -> Self {
        Self {
            id: &node.id,
            node: &node.name,
            address: &node.address,
            datacenter,
            tagged_addresses: node.tagged_addresses.as_ref(),
            meta: node.meta.as_ref(),
            create_index: node.created,
            modify_index: node.modified,
        }
    }
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct NodeServiceView<'a> {
    #[serde(skip_serializing_if = "str::is_empty")]
    kind: &'a str,
    #[serde(rename = "ID")]
    id: &'a str,
    service: &'a str,
    tags: Option<&'a [String]>,
    address: &'a str,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    tagged_addresses: &'a BTreeMap<String, TaggedAddress>,
    meta: Option<&'a Pairs>,
    port: i64,
    weights: Weights,
    enable_tag_override: bool,
    proxy: ProxyView<'a>,
    connect: ConnectView,
    create_index: u64,
    modify_index: u64,
}

impl<'a> NodeServiceView<'a> {
    pub(super) fn new(service: &'a Service) -> Self {
        Self {
            kind: &service.kind,
            id: &service.id,
            service: &service.name,
            tags: Some(&service.tags),
            address: &service.address,
            tagged_addresses: &service.tagged_addresses,
            // Consul's map goes through an encoding that does not keep an empty one.
            meta: (!service.meta.is_empty()).then_some(&service.meta),
            port: service.port,
            weights: service.weights,
            enable_tag_override: service.enable_tag_override,
            proxy: ProxyView(&service.proxy),
            connect: ConnectView::new(service),
            create_index: service.created,
            modify_index: service.modified,
        }
    }

    /// As a transaction tells it, which makes no empty list of none.
    pub(super) fn in_transaction(service: &'a Service) -> Self {
        Self {
            tags: listed(&service.tags),
            ..Self::new(service)
        }
    }
}

fn listed(items: &[String]) -> Option<&[String]> {
    (!items.is_empty()).then_some(items)
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct ServiceNodeView<'a> {
    #[serde(rename = "ID")]
    id: &'a str,
    node: &'a str,
    address: &'a str,
    datacenter: &'a str,
    tagged_addresses: Option<&'a Pairs>,
    node_meta: Option<&'a Pairs>,
    service_kind: &'a str,
    #[serde(rename = "ServiceID")]
    service_id: &'a str,
    service_name: &'a str,
    service_tags: &'a [String],
    service_address: &'a str,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    service_tagged_addresses: &'a BTreeMap<String, TaggedAddress>,
    service_weights: Weights,
    service_meta: &'a Pairs,
    service_port: i64,
    service_enable_tag_override: bool,
    service_proxy: ProxyView<'a>,
    service_connect: ConnectView,
    create_index: u64,
    modify_index: u64,
}

impl<'a> ServiceNodeView<'a> {
    pub(super) fn new(instance: Instance<'a>, datacenter: &'a str) -> Self {
        let (node, service) = (instance.node, instance.service);
        Self {
            id: &node.id,
            node: &node.name,
            address: &node.address,
            datacenter,
            tagged_addresses: node.tagged_addresses.as_ref(),
            node_meta: node.meta.as_ref(),
            service_kind: &service.kind,
            service_id: &service.id,
            service_name: &service.name,
            service_tags: &service.tags,
            service_address: &service.address,
            service_tagged_addresses: &service.tagged_addresses,
            service_weights: service.weights,
            service_meta: &service.meta,
            service_port: service.port,
            service_enable_tag_override: service.enable_tag_override,
            service_proxy: ProxyView(&service.proxy),
            service_connect: ConnectView::new(service),
            create_index: service.created,
            modify_index: service.modified,
        }
    }
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct CheckView<'a> {
    node: &'a str,
    #[serde(rename = "CheckID")]
    check_id: &'a str,
    name: &'a str,
    status: &'a str,
    notes: &'a str,
    output: &'a str,
    #[serde(rename = "ServiceID")]
    service_id: &'a str,
    service_name: &'a str,
    service_tags: Option<&'a [String]>,
    r#type: &'a str,
    definition: DefinitionView<'a>,
    create_index: u64,
    modify_index: u64,
}

impl<'a> CheckView<'a> {
    pub(super) fn new(check: &'a Check) -> Self {
        Self {
            node: &check.node,
            check_id: &check.id,
            name: &check.name,
            status: &check.status,
            notes: &check.notes,
            output: &check.output,
            service_id: &check.service_id,
            service_name: &check.service_name,
            service_tags: Some(&check.service_tags),
            r#type: &check.kind,
            definition: DefinitionView::Set(&check.definition),
            create_index: check.created,
            modify_index: check.modified,
        }
    }

    /// As a transaction tells it, which makes no empty list of none.
    pub(super) fn in_transaction(check: &'a Check) -> Self {
        Self {
            service_tags: listed(&check.service_tags),
            ..Self::new(check)
        }
    }

    /// As `agent/health` tells it: without a type, and with a definition of defaults.
    pub(super) fn local_health(check: &'a Check) -> Self {
        Self {
            r#type: "",
            service_tags: listed(&check.service_tags),
            definition: DefinitionView::Unset,
            ..Self::new(check)
        }
    }
}

#[derive(Debug)]
enum DefinitionView<'a> {
    Set(&'a Map<String, Value>),
    Unset,
}

impl Serialize for DefinitionView<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Set(fields) => fields.serialize(serializer),
            Self::Unset => {
                let mut map = serializer.serialize_map(Some(9))?;
                for name in ["Interval", "Timeout", "DeregisterCriticalServiceAfter"] {
                    map.serialize_entry(name, "0s")?;
                }
                map.serialize_entry("HTTP", "")?;
                map.serialize_entry("Header", &Value::Null)?;
                map.serialize_entry("Method", "")?;
                map.serialize_entry("Body", "")?;
                map.serialize_entry("TLSSkipVerify", &false)?;
                map.serialize_entry("TCP", "")?;
                map.end()
            }
        }
    }
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct HealthView<'a> {
    node: NodeView<'a>,
    service: NodeServiceView<'a>,
    checks: Vec<CheckView<'a>>,
}

impl<'a> HealthView<'a> {
    pub(super) fn new(instance: Instance<'a>, datacenter: &'a str) -> Self {
        Self {
            node: NodeView::new(instance.node, datacenter),
            service: NodeServiceView::new(instance.service),
            checks: instance
                .checks()
                .map(|check| CheckView::new(check))
                .collect(),
        }
    }
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct AgentServiceView<'a> {
    #[serde(skip_serializing_if = "str::is_empty")]
    kind: &'a str,
    #[serde(rename = "ID")]
    id: &'a str,
    service: &'a str,
    tags: &'a [String],
    meta: &'a Pairs,
    port: i64,
    address: &'a str,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    tagged_addresses: &'a BTreeMap<String, TaggedAddress>,
    weights: Weights,
    enable_tag_override: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    content_hash: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    proxy: Option<ProxyView<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    connect: Option<ConnectView>,
}

impl<'a> AgentServiceView<'a> {
    pub(super) fn new(service: &'a Service) -> Self {
        Self {
            kind: &service.kind,
            id: &service.id,
            service: &service.name,
            tags: &service.tags,
            meta: &service.meta,
            port: service.port,
            address: &service.address,
            tagged_addresses: &service.tagged_addresses,
            weights: service.weights,
            enable_tag_override: service.enable_tag_override,
            content_hash: None,
            proxy: (service.kind == "connect-proxy").then_some(ProxyView(&service.proxy)),
            connect: service
                .connect_native
                .then_some(ConnectView { native: true }),
        }
    }

    pub(super) fn with_hash(self, hash: &'a str) -> Self {
        Self {
            content_hash: Some(hash),
            ..self
        }
    }
}

#[derive(Debug)]
pub(super) struct ProxyView<'a>(&'a Map<String, Value>);

impl Serialize for ProxyView<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        for (name, value) in self.0 {
            map.serialize_entry(name, value)?;
        }
        for name in ["MeshGateway", "Expose"] {
            if !self.0.contains_key(name) {
                map.serialize_entry(name, &Map::new())?;
            }
        }
        map.end()
    }
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct ConnectView {
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    native: bool,
}

impl ConnectView {
    fn new(service: &Service) -> Self {
        Self {
            native: service.connect_native,
        }
    }
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct KeyView<'a> {
    lock_index: u64,
    key: &'a str,
    flags: u64,
    value: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    session: Option<String>,
    create_index: u64,
    modify_index: u64,
}

impl<'a> KeyView<'a> {
    pub(super) fn new(key: &'a str, entry: &kv::Entry) -> Self {
        let value = &entry.value;
        Self {
            value: (!value.is_empty()).then(|| STANDARD.encode(value)),
            ..Self::without_value(key, entry)
        }
    }

    pub(super) fn without_value(key: &'a str, entry: &kv::Entry) -> Self {
        Self {
            lock_index: entry.lock_index,
            key,
            flags: entry.flags,
            value: None,
            session: entry.session.map(|session| session.to_string()),
            create_index: entry.created,
            modify_index: entry.modified,
        }
    }
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct SessionView<'a> {
    #[serde(rename = "ID")]
    id: String,
    name: &'a str,
    node: &'a str,
    /// In nanoseconds.
    lock_delay: u64,
    behavior: &'static str,
    #[serde(rename = "TTL")]
    ttl: &'a str,
    node_checks: Option<&'a [String]>,
    service_checks: Option<Vec<ServiceCheckView<'a>>>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    checks: &'a [String],
    create_index: u64,
    modify_index: u64,
}

impl<'a> SessionView<'a> {
    pub(super) fn new(session: &'a Session) -> Self {
        let spec = &session.spec;
        let service_checks = spec.service_checks.as_ref();
        Self {
            id: session.id.to_string(),
            name: &spec.name,
            node: &spec.node,
            lock_delay: u64::try_from(spec.lock_delay.as_nanos()).unwrap_or(u64::MAX),
            behavior: spec.behavior.as_str(),
            ttl: &spec.ttl.text,
            node_checks: spec.node_checks.as_deref(),
            service_checks: service_checks
                .map(|checks| checks.iter().map(ServiceCheckView::new).collect()),
            checks: &spec.checks,
            create_index: session.created,
            modify_index: session.created,
        }
    }
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct ServiceCheckView<'a> {
    #[serde(rename = "ID")]
    id: &'a str,
    namespace: &'a str,
}

impl<'a> ServiceCheckView<'a> {
    fn new(check: &'a ServiceCheck) -> Self {
        Self {
            id: &check.id,
            namespace: &check.namespace,
        }
    }
}
