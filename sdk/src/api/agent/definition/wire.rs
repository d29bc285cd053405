//! A definition as it is sent, and as it is told back.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};

use super::{Raw, ServiceDefinition};
use crate::api::agent::CheckDefinition;
use crate::api::model::{ServiceInstance, ServiceKind, Status};
use crate::ident::ServiceId;

impl ServiceDefinition {
    /// The definition as it is sent by whoever keeps it up: with every ID said, with a status for
    /// each TTL check, and with maintenance if it is on.
    pub(crate) fn prepared(
        &self,
        id: &ServiceId,
        status: impl Fn(&CheckDefinition) -> Status,
        maintenance: Option<&str>,
    ) -> Self {
        let mut checks: Vec<_> = self
            .checks_by_id()
            .map(|(id, check)| {
                let check = check.clone().id(id);
                match check.ttl_of() {
                    Some(_) => {
                        let status = status(&check);
                        check.status(status)
                    }
                    None => check,
                }
            })
            .collect();
        if let Some(reason) = maintenance {
            // What the agent itself makes of `enable=true`, as a check that never runs out: a
            // registration that replaces the checks would put the service back into rotation, and
            // one after a wipe would do so for a moment (both measured on 1.8.7).
            checks.push(
                CheckDefinition::ttl(NEVER)
                    .id(format!("_service_maintenance:{id}"))
                    .name("Service Maintenance Mode")
                    .notes(reason)
                    .status(Status::Critical),
            );
        }
        Self {
            id: Some(id.as_str().into()),
            checks,
            ..self.clone()
        }
    }

    /// Whether an agent's service is the one that is defined here, as far as an agent tells.
    pub(crate) fn describes(&self, service: &ServiceInstance) -> bool {
        let (passing, warning) = self.weights.unwrap_or((1, 1));
        let weights = service.weights();
        let meta = self.meta.iter().map(|(key, value)| (&**key, &**value));
        let mut addresses = self.tagged_addresses.iter();
        *service.name() == *self.name
            && service.kind() == self.kind
            && service.address() == self.address.as_deref().unwrap_or_default()
            && service.port() == self.port.unwrap_or_default()
            && service.socket_path() == self.socket_path.as_deref()
            && (self.enable_tag_override
                || service.tags().iter().eq(self.tags.iter().map(|tag| &**tag)))
            && service.meta().iter().eq(meta)
            && (weights.passing(), weights.warning()) == (passing, warning)
            // The agent adds some of its own, such as `lan_ipv4`.
            && addresses.all(|(name, (address, port))| {
                let own = service.tagged_addresses().get(name);
                own.is_some_and(|own| own.address() == &**address && own.port() == *port)
            })
    }
}

/// Longer than any process lives: 41 years.
const NEVER: Duration = Duration::from_secs(360_000 * 3600);

/// As Consul writes it.
fn kind(kind: ServiceKind) -> &'static str {
    match kind {
        ServiceKind::Typical | ServiceKind::Unknown => "",
        ServiceKind::ConnectProxy => "connect-proxy",
        ServiceKind::MeshGateway => "mesh-gateway",
        ServiceKind::TerminatingGateway => "terminating-gateway",
        ServiceKind::IngressGateway => "ingress-gateway",
        ServiceKind::ApiGateway => "api-gateway",
    }
}

impl Serialize for ServiceDefinition {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        #[serde(rename_all = "PascalCase")]
        struct Address<'a> {
            #[serde(skip_serializing_if = "str::is_empty")]
            address: &'a str,
            port: u16,
        }

        #[derive(Serialize)]
        #[serde(rename_all = "PascalCase")]
        struct Connect<'a> {
            #[serde(skip_serializing_if = "std::ops::Not::not")]
            native: bool,
            #[serde(skip_serializing_if = "Option::is_none")]
            sidecar_service: Option<&'a Raw>,
        }

        #[derive(Serialize)]
        #[serde(rename_all = "PascalCase")]
        struct Locality<'a> {
            region: &'a str,
            zone: &'a str,
        }

        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("Name", &*self.name)?;
        if let Some(id) = &self.id {
            map.serialize_entry("ID", &**id)?;
        }
        if self.kind != ServiceKind::Typical {
            map.serialize_entry("Kind", kind(self.kind))?;
        }
        if let Some(address) = &self.address {
            map.serialize_entry("Address", &**address)?;
        }
        if let Some(port) = self.port {
            map.serialize_entry("Port", &port)?;
        }
        if let Some(path) = &self.socket_path {
            map.serialize_entry("SocketPath", &**path)?;
        }
        if !self.tags.is_empty() {
            map.serialize_entry("Tags", &self.tags)?;
        }
        if !self.meta.is_empty() {
            map.serialize_entry("Meta", &self.meta)?;
        }
        if let Some((passing, warning)) = self.weights {
            let weights = BTreeMap::from([("Passing", passing), ("Warning", warning)]);
            map.serialize_entry("Weights", &weights)?;
        }
        if !self.tagged_addresses.is_empty() {
            let addresses: BTreeMap<_, _> = self
                .tagged_addresses
                .iter()
                .map(|(name, (address, port))| {
                    let port = *port;
                    (&**name, Address { address, port })
                })
                .collect();
            map.serialize_entry("TaggedAddresses", &addresses)?;
        }
        if self.enable_tag_override {
            map.serialize_entry("EnableTagOverride", &true)?;
        }
        if !self.checks.is_empty() {
            map.serialize_entry("Checks", &self.checks)?;
        }
        if let Some(proxy) = &self.proxy {
            map.serialize_entry("Proxy", proxy)?;
        }
        if self.native || self.sidecar.is_some() {
            let connect = Connect {
                native: self.native,
                sidecar_service: self.sidecar.as_ref(),
            };
            map.serialize_entry("Connect", &connect)?;
        }
        if let Some((region, zone)) = &self.locality {
            map.serialize_entry("Locality", &Locality { region, zone })?;
        }
        map.end()
    }
}
