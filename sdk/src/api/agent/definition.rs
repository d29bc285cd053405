//! What is told to an agent about a service.

mod wire;

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use serde::Serialize;
use serde_json::value::{RawValue, to_raw_value};

use super::CheckDefinition;
use crate::api::model::ServiceKind;
use crate::error::{Error, Result};
use crate::ident::ServiceId;

/// A service to register: who it is, where it listens, and how it is checked.
///
/// Only what is set is sent, because an agent refuses a field that it does not know. What Consul
/// would refuse, misread or silently change is refused before it is sent
/// ([`ErrorKind::Invalid`](crate::ErrorKind::Invalid)), with a text that says what would be right.
///
/// # Examples
///
/// ```
/// use std::time::Duration;
/// use lictor::api::agent::{CheckDefinition, ServiceDefinition};
///
/// let web = ServiceDefinition::new("web")
///     .id("web-1")
///     .address("10.0.0.1")
///     .port(8080)
///     .tag("v1")
///     .meta("build", "2026-11")
///     .weights(10, 1)
///     .check(CheckDefinition::ttl(Duration::from_secs(15)));
/// assert!(web.validate().is_ok());
///
/// let wrong = ServiceDefinition::new("web").port(70_000);
/// assert!(wrong.validate().unwrap_err().to_string().contains("port 70000"));
/// ```
#[derive(Clone, Debug, PartialEq)]
#[must_use]
pub struct ServiceDefinition {
    pub(super) name: Arc<str>,
    pub(super) id: Option<Arc<str>>,
    pub(super) kind: ServiceKind,
    pub(super) address: Option<Arc<str>>,
    pub(super) port: Option<u16>,
    pub(super) socket_path: Option<Arc<str>>,
    pub(super) tags: Vec<Arc<str>>,
    pub(super) meta: BTreeMap<Arc<str>, Arc<str>>,
    pub(super) weights: Option<(u16, u16)>,
    pub(super) tagged_addresses: BTreeMap<Arc<str>, (Arc<str>, u16)>,
    pub(super) enable_tag_override: bool,
    pub(super) checks: Vec<CheckDefinition>,
    pub(super) proxy: Option<Raw>,
    pub(super) native: bool,
    pub(super) sidecar: Option<Raw>,
    pub(super) locality: Option<(Arc<str>, Arc<str>)>,
    /// The first argument that no field can hold.
    pub(super) wrong: Option<Wrong>,
}

/// Why an argument was refused as soon as it came.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Wrong(pub(super) Arc<str>);

impl ServiceDefinition {
    /// A service of this name: how clients look it up.
    ///
    /// Letters, digits and `-` alone can be looked up by DNS, too.
    pub fn new(name: impl Into<Arc<str>>) -> Self {
        Self {
            name: name.into(),
            id: None,
            kind: ServiceKind::Typical,
            address: None,
            port: None,
            socket_path: None,
            tags: Vec::new(),
            meta: BTreeMap::new(),
            weights: None,
            tagged_addresses: BTreeMap::new(),
            enable_tag_override: false,
            checks: Vec::new(),
            proxy: None,
            native: false,
            sidecar: None,
            locality: None,
            wrong: None,
        }
    }

    /// The ID of this instance, unique on its agent.
    ///
    /// Default: the name, as Consul has it, so that a second instance on the same agent would take
    /// the place of the first. [`Client::register`](crate::Client::register) takes the name and
    /// the port instead.
    pub fn id(mut self, id: impl Into<Arc<str>>) -> Self {
        self.id = Some(id.into());
        self
    }

    /// What it is in the mesh. Default: [`ServiceKind::Typical`].
    pub fn kind(mut self, kind: ServiceKind) -> Self {
        self.kind = kind;
        self
    }

    /// Where clients reach it: an IP address or a name, without a port.
    ///
    /// Default: the address of the agent's node.
    pub fn address(mut self, address: impl Into<Arc<str>>) -> Self {
        self.address = Some(address.into());
        self
    }

    /// The port it listens on, from 1 to 65535. Default: none.
    pub fn port(mut self, port: impl TryInto<u16> + Copy + fmt::Display) -> Self {
        match port.try_into() {
            Ok(port @ 1..) => {
                self.port = Some(port);
                self
            }
            _ => self.refuse(|| {
                format!("port {port}: must be from 1 to 65535; leave it out if there is none")
            }),
        }
    }

    /// Address and port of a listener that is bound already: its `local_addr()`.
    ///
    /// A listener on all addresses (`0.0.0.0`, `[::]`) gives no address, and so the one of the
    /// agent's node. A port of zero, from before it was bound, is refused.
    pub fn listener(mut self, bound: SocketAddr) -> Self {
        let ip = match bound.ip() {
            IpAddr::V6(ip) => ip.to_ipv4_mapped().map_or(IpAddr::V6(ip), IpAddr::V4),
            ip @ IpAddr::V4(_) => ip,
        };
        self.address = (!ip.is_unspecified()).then(|| ip.to_string().into());
        self.port(bound.port())
    }

    /// The unix socket it listens on (1.10). Default: none.
    pub fn socket_path(mut self, path: impl Into<Arc<str>>) -> Self {
        self.socket_path = Some(path.into());
        self
    }

    /// Adds a tag. Default: none.
    pub fn tag(mut self, tag: impl Into<Arc<str>>) -> Self {
        self.tags.push(tag.into());
        self
    }

    pub(crate) fn has_tag(&self, tag: &str) -> bool {
        self.tags.iter().any(|own| **own == *tag)
    }

    /// Takes exactly these tags.
    pub fn tags<T: Into<Arc<str>>>(mut self, tags: impl IntoIterator<Item = T>) -> Self {
        self.tags = tags.into_iter().map(Into::into).collect();
        self
    }

    /// Adds a pair of metadata. Default: none.
    ///
    /// Range, which is Consul's: 64 pairs; keys of 1 to 128 letters, digits, `-` and `_`, not
    /// beginning with `consul-`; values of up to 512 bytes.
    pub fn meta(mut self, key: impl Into<Arc<str>>, value: impl Into<Arc<str>>) -> Self {
        self.meta.insert(key.into(), value.into());
        self
    }

    /// Takes exactly these pairs of metadata.
    pub fn metas<K: Into<Arc<str>>, V: Into<Arc<str>>>(
        mut self,
        pairs: impl IntoIterator<Item = (K, V)>,
    ) -> Self {
        self.meta = pairs
            .into_iter()
            .map(|(key, value)| (key.into(), value.into()))
            .collect();
        self
    }

    /// How much of the traffic it wants while its checks pass, and while one of them warns.
    ///
    /// Default: 1 and 1. Range: 1 to 65535, and 0 to 65535, as DNS SRV records have it.
    pub fn weights(
        mut self,
        passing: impl TryInto<u16> + Copy + fmt::Display,
        warning: impl TryInto<u16> + Copy + fmt::Display,
    ) -> Self {
        let Ok(good @ 1..) = passing.try_into() else {
            return self
                .refuse(|| format!("weight {passing} while passing: must be from 1 to 65535"));
        };
        let Ok(fair) = warning.try_into() else {
            return self
                .refuse(|| format!("weight {warning} while warning: must be from 0 to 65535"));
        };
        self.weights = Some((good, fair));
        self
    }

    /// One more address, under a name such as `lan` or `wan`. Default: none.
    pub fn tagged_address(
        mut self,
        name: impl Into<Arc<str>>,
        address: impl Into<Arc<str>>,
        port: impl TryInto<u16> + Copy + fmt::Display,
    ) -> Self {
        let name = name.into();
        match port.try_into() {
            Ok(port @ 1..) => {
                self.tagged_addresses.insert(name, (address.into(), port));
                self
            }
            _ => self.refuse(|| {
                format!("tagged address {name:?}: port {port}: must be from 1 to 65535")
            }),
        }
    }

    /// Lets others change its tags in the catalog. Default: the agent sets them back.
    pub fn enable_tag_override(mut self) -> Self {
        self.enable_tag_override = true;
        self
    }

    /// Adds a check. Default: none, and so always passing.
    pub fn check(mut self, check: CheckDefinition) -> Self {
        self.checks.push(check);
        self
    }

    /// Its settings as a proxy, as Consul's documentation writes them. Default: none.
    pub fn proxy<T: Serialize + ?Sized>(mut self, settings: &T) -> Self {
        match to_raw_value(settings) {
            Ok(raw) => {
                self.proxy = Some(Raw(raw.into()));
                self
            }
            Err(err) => self.refuse(|| format!("proxy: cannot be written as JSON: {err}")),
        }
    }

    /// Says that it speaks the mesh's protocol itself. Default: it does not.
    #[doc(alias = "Connect.Native")]
    pub fn connect_native(mut self) -> Self {
        self.native = true;
        self
    }

    /// Registers a sidecar proxy for it, as Consul's documentation writes it; `{}` is enough.
    ///
    /// Default: none.
    #[doc(alias = "Connect.SidecarService")]
    pub fn sidecar_service<T: Serialize + ?Sized>(mut self, definition: &T) -> Self {
        match to_raw_value(definition) {
            Ok(raw) => {
                self.sidecar = Some(Raw(raw.into()));
                self
            }
            Err(err) => self.refuse(|| format!("sidecar: cannot be written as JSON: {err}")),
        }
    }

    /// Where it runs, in a cloud's terms (1.16). Default: as its node.
    pub fn locality(mut self, region: impl Into<Arc<str>>, zone: impl Into<Arc<str>>) -> Self {
        self.locality = Some((region.into(), zone.into()));
        self
    }

    /// Looks whether Consul would take it for what it is.
    ///
    /// Registering does this, too.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Invalid`](crate::ErrorKind::Invalid) about the first thing that is wrong; the text says what would be
    /// right.
    pub fn validate(&self) -> Result<()> {
        super::validity::service(self)
    }

    /// The ID that it is registered under.
    pub(crate) fn effective_id(&self) -> Result<ServiceId> {
        let id = self.id.as_ref().unwrap_or(&self.name);
        ServiceId::new(Arc::clone(id))
    }

    pub(crate) fn explicit_id(&self) -> Option<&Arc<str>> {
        self.id.as_ref()
    }

    pub(crate) fn service_name(&self) -> &Arc<str> {
        &self.name
    }

    pub(crate) fn service_address(&self) -> Option<&Arc<str>> {
        self.address.as_ref()
    }

    /// How many pairs of metadata it has.
    pub(crate) fn meta_pairs(&self) -> usize {
        self.meta.len()
    }

    pub(crate) fn service_port(&self) -> Option<u16> {
        self.port
    }

    /// Its checks with the IDs that the agent gives them.
    pub(crate) fn checks_by_id(&self) -> impl Iterator<Item = (Arc<str>, &CheckDefinition)> {
        let id = self.id.as_ref().unwrap_or(&self.name);
        let several = self.checks.len() > 1;
        self.checks.iter().enumerate().map(move |(at, check)| {
            let own = check.explicit_id().map(Arc::clone);
            // `agent.go`: "service:" and the ID, with a number from 1 if there are several.
            let given = || match several {
                true => format!("service:{id}:{}", at + 1).into(),
                false => format!("service:{id}").into(),
            };
            (own.unwrap_or_else(given), check)
        })
    }

    fn refuse(mut self, reason: impl FnOnce() -> String) -> Self {
        self.wrong.get_or_insert_with(|| Wrong(reason().into()));
        self
    }
}

/// JSON from the caller.
#[derive(Clone, Debug, Serialize)]
#[serde(transparent)]
pub(super) struct Raw(Arc<RawValue>);

impl PartialEq for Raw {
    fn eq(&self, other: &Self) -> bool {
        self.0.get() == other.0.get()
    }
}

impl Wrong {
    pub(super) fn error(&self) -> Error {
        Error::invalid(&*self.0)
    }
}
