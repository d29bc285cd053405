//! Writes of the catalog, for nodes and services that no agent looks after.

use serde_json::{Map, Value};

use super::Call;
use super::decode::{Fields, Undecodable};
use super::definition::{check_weights, tagged_addresses, weights};
use super::query::Options;
use super::reply::{self, Refusal, Reply};
use crate::embedded::state::model::{Check, Node, Pairs, Service, status};
use crate::embedded::state::txn::check_node_id;
use crate::proto::duration;

impl Call {
    pub(super) fn catalog_datacenters(&self) -> Result<Reply, Refusal> {
        Options::consistency(&self.params)?;
        // The nearest first, and that is the own one.
        let own = self.core.lock().state.identity.datacenter.clone();
        let others = self.core.nearest().into_iter().map(|(name, _)| name);
        let all: Vec<String> = std::iter::once(own).chain(others).collect();
        Ok(reply::json(&all, self.layout()))
    }

    pub(super) async fn catalog_register(&self) -> Result<Reply, Refusal> {
        let mut registration = Registration::parse(&self.body)?;
        if registration.node.name.is_empty() {
            return Err(Refusal::internal("Must provide node"));
        }
        if registration.node.address.is_empty() && !registration.skip_node_update {
            return Err(Refusal::internal(
                "Must provide address if SkipNodeUpdate is not set",
            ));
        }
        self.check_datacenter(&registration.datacenter)?;
        self.await_leader().await?;
        let now = Self::now();
        let mut locked = self.core.lock();
        let state = &mut locked.state;
        let index = state.next_index();
        let name = registration.node.name.clone();
        let catalog = &mut state.replica.catalog;
        registration
            .validate(|service| catalog.service(&name, service).is_some())
            .map_err(Refusal::internal)?;
        if catalog.node(&name).is_none() || !registration.skip_node_update {
            catalog.ensure_node(index, registration.node);
        }
        let mut written = Ok(());
        if let Some(service) = registration.service {
            written = catalog
                .ensure_service(index, &name, service)
                .map_err(|refused| format!("failed inserting service: {refused}"));
        }
        for check in registration.checks {
            let node = check.node.clone();
            written = written.and_then(|()| {
                state.write_check(index, check, now).map_err(|refused| {
                    format!("failed inserting check: {refused} on node {node:?}")
                })
            });
        }
        state.plan_sync(now);
        written.map_err(Refusal::internal)?;
        Ok(reply::json(&true, self.layout()))
    }

    pub(super) async fn catalog_deregister(&self) -> Result<Reply, Refusal> {
        let mut fields = Fields::parse(&self.body)?;
        let node = fields.string(&["Node"])?;
        let service = fields.string(&["ServiceID", "service_id"])?;
        let check = fields.string(&["CheckID", "check_id"])?;
        let datacenter = fields.string(&["Datacenter"])?;
        fields.string(&["Address"])?;
        fields.take(&["WriteRequest"]);
        fields.finish()?;
        if node.is_empty() {
            return Err(Refusal::internal("Must provide node"));
        }
        self.check_datacenter(&datacenter)?;
        self.await_leader().await?;
        let now = Self::now();
        let mut locked = self.core.lock();
        let state = &mut locked.state;
        let index = state.next_index();
        if !service.is_empty() {
            state.delete_service(index, &node, &service, now);
        } else if !check.is_empty() {
            state.delete_check(index, &node, &check, now);
        } else {
            state.delete_node(index, &node, now);
        }
        state.plan_sync(now);
        Ok(reply::json(&true, self.layout()))
    }
}

/// The body of `catalog/register`.
#[derive(Debug)]
struct Registration {
    node: Node,
    datacenter: String,
    skip_node_update: bool,
    service: Option<Service>,
    checks: Vec<Check>,
}

impl Registration {
    fn parse(body: &[u8]) -> Result<Self, Undecodable> {
        let mut fields = Fields::parse(body)?;
        let service = fields
            .object(&["Service"], "structs.NodeService")?
            .map(node_service)
            .transpose()?;
        let single = fields.object(&["Check"], "structs.HealthCheck")?;
        let several = fields.objects(&["Checks"], "structs.HealthCheck")?;
        let registration = Self {
            node: Node {
                id: fields.string(&["ID"])?,
                name: fields.string(&["Node"])?,
                address: fields.string(&["Address"])?,
                tagged_addresses: fields.pairs(&["TaggedAddresses", "tagged_addresses"])?,
                meta: fields.pairs(&["NodeMeta", "node_meta"])?,
                ..Node::default()
            },
            datacenter: fields.string(&["Datacenter"])?,
            skip_node_update: fields.boolean(&["SkipNodeUpdate", "skip_node_update"])?,
            service,
            checks: single
                .into_iter()
                .chain(several)
                .map(health_check)
                .collect::<Result<_, _>>()?,
        };
        fields.take(&["WriteRequest"]);
        fields.finish()?;
        Ok(registration)
    }
}

impl Registration {
    /// Names what is left out, and refuses as a whole what cannot be written as a whole.
    fn validate(&mut self, is_known: impl Fn(&str) -> bool) -> Result<(), String> {
        let node = &self.node.name;
        check_node_id(&self.node.id).map_err(|wrong| format!("Bad node ID: {wrong}"))?;
        if let Some(service) = &mut self.service {
            if service.name.is_empty() {
                return Err(if service.id.is_empty() {
                    "failed inserting service: failed inserting service: object missing primary \
                     index"
                        .to_owned()
                } else {
                    "Must provide service name with ID".to_owned()
                });
            }
            if service.id.is_empty() {
                service.id.clone_from(&service.name);
            }
        }
        let own = self.service.as_ref().map(|service| service.id.as_str());
        for check in &mut self.checks {
            if check.id.is_empty() {
                check.id.clone_from(&check.name);
            }
            if check.node.is_empty() {
                check.node.clone_from(node);
            }
            if !check.node.eq_ignore_ascii_case(node) {
                return Err(format!(
                    "check node {:?} does not match node {node:?}",
                    check.node
                ));
            }
            let service = check.service_id.as_str();
            if !service.is_empty() && own != Some(service) && !is_known(service) {
                return Err(format!(
                    "failed inserting check: Missing service registration on node {node:?}"
                ));
            }
        }
        Ok(())
    }
}

fn node_service(mut fields: Fields) -> Result<Service, Undecodable> {
    let name = fields.string(&["Service"])?;
    let id = fields.string(&["ID"])?;
    // Consul does not refuse weights here; it has the default for those it cannot use.
    let weights = weights(&mut fields)?
        .filter(|given| check_weights(*given).is_ok())
        .unwrap_or_default();
    let tagged_addresses = tagged_addresses(&mut fields)?;
    let mut connect_native = false;
    if let Some(mut connect) = fields.object(&["Connect"], "structs.ServiceConnect")? {
        connect_native = connect.boolean(&["Native"])?;
        connect.take(&["SidecarService", "sidecar_service"]);
        connect.finish()?;
    }
    let proxy = match fields.take(&["Proxy"]) {
        Some(Value::Object(proxy)) => proxy,
        _ => Map::new(),
    };
    let service = Service {
        kind: fields.string(&["Kind"])?,
        id,
        name,
        tags: fields.strings(&["Tags"])?.into(),
        address: fields.string(&["Address"])?,
        tagged_addresses,
        meta: fields.pairs(&["Meta"])?.unwrap_or_else(Pairs::new),
        port: fields.integer(&["Port"])?,
        weights,
        enable_tag_override: fields.boolean(&["EnableTagOverride", "enable_tag_override"])?,
        proxy,
        connect_native,
        ..Service::default()
    };
    for ignored in ["CreateIndex", "ModifyIndex"] {
        fields.take(&[ignored]);
    }
    fields.finish()?;
    Ok(service)
}

fn health_check(mut fields: Fields) -> Result<Check, Undecodable> {
    let mut definition = Map::new();
    if let Some(given) = fields.object(&["Definition"], "structs.HealthCheckDefinition")? {
        definition = check_definition(given)?;
    }
    let kind = if definition.contains_key("HTTP") {
        "http"
    } else if definition.contains_key("TCP") {
        "tcp"
    } else {
        ""
    };
    let check = Check {
        node: fields.string(&["Node"])?,
        id: fields.string(&["CheckID", "check_id"])?,
        name: fields.string(&["Name"])?,
        status: status(&fields.string(&["Status"])?),
        notes: fields.string(&["Notes"])?,
        output: fields.string(&["Output"])?,
        service_id: fields.string(&["ServiceID", "service_id"])?,
        service_name: fields.string(&["ServiceName", "service_name"])?,
        service_tags: fields.strings(&["ServiceTags", "service_tags"])?.into(),
        kind: match fields.string(&["Type"])? {
            given if given.is_empty() => kind.to_owned(),
            given => given,
        },
        definition,
        ..Check::default()
    };
    for ignored in ["CreateIndex", "ModifyIndex"] {
        fields.take(&[ignored]);
    }
    fields.finish()?;
    Ok(check)
}

fn check_definition(mut fields: Fields) -> Result<Map<String, Value>, Undecodable> {
    let kept = definition_members(&mut fields)?;
    fields.finish()?;
    Ok(kept)
}

/// The members of a definition that are set, with times as Consul writes them.
pub(super) fn definition_members(fields: &mut Fields) -> Result<Map<String, Value>, Undecodable> {
    let mut kept = Map::new();
    for name in ["Interval", "Timeout", "DeregisterCriticalServiceAfter"] {
        let time = fields.time(&[name])?.positive();
        // The older names carry numbers or texts of the same meaning.
        let older = fields.time(&[&format!("{name}Duration")])?.positive();
        let time = time.max(older);
        if !time.is_zero() {
            kept.insert(name.to_owned(), Value::String(duration::format(time)));
        }
    }
    for name in ["HTTP", "TCP", "Method", "Body"] {
        let text = fields.string(&[name])?;
        if !text.is_empty() {
            kept.insert(name.to_owned(), Value::String(text));
        }
    }
    if fields.boolean(&["TLSSkipVerify"])? {
        kept.insert("TLSSkipVerify".to_owned(), Value::Bool(true));
    }
    if let Some(header) = fields.take(&["Header"]) {
        kept.insert("Header".to_owned(), header);
    }
    for name in [
        "OutputMaxSize",
        "ScriptArgs",
        "DockerContainerID",
        "Shell",
        "GRPC",
        "GRPCUseTLS",
        "AliasNode",
        "AliasService",
        "TTL",
    ] {
        if let Some(value) = fields.take(&[name]) {
            kept.insert(name.to_owned(), value);
        }
    }
    Ok(kept)
}
