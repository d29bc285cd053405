//! A health check.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Deserializer};

use crate::ident::{CheckId, NodeName, ServiceId, ServiceName, text};
use crate::proto::json::{self, Json, Text, TextList};

/// What a check says.
///
/// The order is by how bad it is: the worst of several is their maximum.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
#[non_exhaustive]
pub enum Status {
    /// All is well.
    #[default]
    Passing,
    /// Works, but something is wrong; DNS and `passing` differ in how they treat it.
    Warning,
    /// A status that this crate does not know; do not count on the instance.
    Unknown,
    /// Does not work, or nobody knows: a TTL ran out, or no first result has come.
    Critical,
    /// Taken out of rotation on purpose, by node or by service.
    ///
    /// Consul stores it as a critical check of a reserved ID; it is only told by
    /// [`Check::effective_status`] and by the status of a whole instance.
    Maintenance,
}

impl Status {
    /// As Consul writes it; an unknown one as `unknown`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Passing => "passing",
            Self::Warning => "warning",
            Self::Unknown => "unknown",
            Self::Critical => "critical",
            Self::Maintenance => "maintenance",
        }
    }

    /// The status of the whole: the worst of all, and passing if there is none.
    pub(crate) fn aggregated<'a>(checks: impl IntoIterator<Item = &'a Check>) -> Self {
        checks
            .into_iter()
            .map(Check::effective_status)
            .max()
            .unwrap_or_default()
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for Status {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Word;

        impl serde::de::Visitor<'_> for Word {
            type Value = Status;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a status")
            }

            fn visit_str<E>(self, word: &str) -> Result<Status, E> {
                Ok(match word {
                    "passing" => Status::Passing,
                    "warning" => Status::Warning,
                    "critical" => Status::Critical,
                    "maintenance" => Status::Maintenance,
                    _ => Status::Unknown,
                })
            }

            fn visit_unit<E>(self) -> Result<Status, E> {
                Ok(Status::Unknown)
            }
        }

        deserializer.deserialize_any(Word)
    }
}

/// A check of a node or of one of its services, with its last result.
///
/// Node and [`id`](Self::id) together tell one check from another.
#[derive(Clone, Eq, PartialEq)]
pub struct Check {
    node: NodeName,
    id: CheckId,
    output: Text,
    service_id: Option<ServiceId>,
    create_index: u64,
    modify_index: u64,
    common: Arc<Common>,
    status: Status,
}

/// What the checks of all instances of a service mostly have in common.
#[derive(Clone, Debug, Eq, PartialEq)]
struct Common {
    name: Text,
    kind: Text,
    service_name: Option<ServiceName>,
    service_tags: TextList,
    more: Option<Box<More>>,
}

/// What most checks do not have.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
struct More {
    notes: Text,
    interval: Option<Duration>,
    timeout: Option<Duration>,
    exposed_port: u16,
    peer_name: Text,
    namespace: Text,
    partition: Text,
    definition: Option<Box<CheckDefinition>>,
}

impl Check {
    accessors! {
        /// The node that the check belongs to.
        reference node: NodeName;
        /// The ID, unique on its node.
        #[doc(alias = "CheckID")]
        reference id: CheckId;
        /// What the last run said, for people; Consul keeps 4 KiB of it.
        text output;
        /// The instance that is checked; absent for a check of the whole node.
        option service_id: ServiceId;
        /// The index at which the check came to be.
        copy create_index: u64;
        /// The index of the last change.
        copy modify_index: u64;
        /// What the check says, as Consul stores it.
        copy status: Status;
    }

    /// The status, with maintenance told from other critical checks by its reserved ID.
    #[must_use]
    pub fn effective_status(&self) -> Status {
        if self.id.starts_with("_service_maintenance:") || &*self.id == "_node_maintenance" {
            Status::Maintenance
        } else {
            self.status
        }
    }

    /// The name, for people.
    #[must_use]
    pub fn name(&self) -> &str {
        self.common.name.as_str()
    }

    /// What sort of check it is: `ttl`, `http`, `tcp`, `grpc`, …; empty for `serfHealth` and for
    /// checks that were put into the catalog by hand.
    #[doc(alias = "Type")]
    #[must_use]
    pub fn kind(&self) -> &str {
        self.common.kind.as_str()
    }

    /// The service of the instance; absent for a check of the whole node.
    #[must_use]
    pub fn service_name(&self) -> Option<&ServiceName> {
        self.common.service_name.as_ref()
    }

    /// The tags of the instance.
    #[must_use]
    pub fn service_tags(&self) -> &TextList {
        &self.common.service_tags
    }

    /// What the registration says about the check, or why maintenance is on.
    #[must_use]
    pub fn notes(&self) -> &str {
        self.more().map_or("", |more| more.notes.as_str())
    }

    /// How often the check runs; absent if it does not run by itself (Consul 1.10 and later).
    #[must_use]
    pub fn interval(&self) -> Option<Duration> {
        self.more()?.interval
    }

    /// How long one run may take; absent for the default (Consul 1.10 and later).
    #[must_use]
    pub fn timeout(&self) -> Option<Duration> {
        self.more()?.timeout
    }

    /// The port that a proxy opens for the check; absent without one (Consul 1.10 and later).
    #[must_use]
    pub fn exposed_port(&self) -> Option<u16> {
        let port = self.more()?.exposed_port;
        (port != 0).then_some(port)
    }

    /// The peer cluster that the check was imported from (Consul 1.13 and later).
    #[must_use]
    pub fn peer_name(&self) -> Option<&str> {
        self.more()?.peer_name.non_empty()
    }

    /// The namespace (Consul Enterprise); empty for the default one.
    #[must_use]
    pub fn namespace(&self) -> &str {
        self.more().map_or("", |more| more.namespace.as_str())
    }

    /// The admin partition (Consul Enterprise); empty for the default one.
    #[must_use]
    pub fn partition(&self) -> &str {
        self.more().map_or("", |more| more.partition.as_str())
    }

    /// How the check is done, if it was put into the catalog with its definition.
    ///
    /// Agents keep the definitions of their own checks to themselves.
    #[must_use]
    pub fn definition(&self) -> Option<&CheckDefinition> {
        self.more()?.definition.as_deref()
    }

    fn more(&self) -> Option<&More> {
        self.common.more.as_deref()
    }
}

impl fmt::Debug for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = f.debug_struct("Check");
        out.field("node", &self.node)
            .field("id", &self.id)
            .field("name", &self.common.name)
            .field("status", &self.status)
            .field("output", &self.output)
            .field("kind", &self.common.kind)
            .field("service_id", &self.service_id)
            .field("service_name", &self.common.service_name)
            .field("service_tags", &self.common.service_tags)
            .field("create_index", &self.create_index)
            .field("modify_index", &self.modify_index);
        if let Some(more) = &self.common.more {
            out.field("more", more);
        }
        out.finish()
    }
}

impl<'de> Deserialize<'de> for Check {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        /// The form on the wire.
        #[derive(Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Wire {
            node: NodeName,
            #[serde(rename = "CheckID")]
            id: CheckId,
            #[serde(default)]
            name: Text,
            #[serde(default)]
            output: Text,
            #[serde(rename = "Type", default)]
            kind: Text,
            #[serde(rename = "ServiceID", default, deserialize_with = "non_empty")]
            service_id: Option<ServiceId>,
            #[serde(default, deserialize_with = "non_empty")]
            service_name: Option<ServiceName>,
            #[serde(default)]
            service_tags: TextList,
            #[serde(default, deserialize_with = "json::number")]
            create_index: u64,
            #[serde(default, deserialize_with = "json::number")]
            modify_index: u64,
            #[serde(default = "unknown")]
            status: Status,
            #[serde(default)]
            notes: Text,
            #[serde(default, deserialize_with = "json::span")]
            interval: Option<Duration>,
            #[serde(default, deserialize_with = "json::span")]
            timeout: Option<Duration>,
            #[serde(default, deserialize_with = "json::number")]
            exposed_port: u16,
            #[serde(default)]
            peer_name: Text,
            #[serde(default)]
            namespace: Text,
            #[serde(default)]
            partition: Text,
            #[serde(default, deserialize_with = "json::unless_default")]
            definition: Option<Box<CheckDefinition>>,
        }

        let wire = Wire::deserialize(deserializer)?;
        let more = More {
            notes: wire.notes,
            interval: wire.interval,
            timeout: wire.timeout,
            exposed_port: wire.exposed_port,
            peer_name: wire.peer_name,
            namespace: wire.namespace,
            partition: wire.partition,
            definition: wire.definition,
        };
        let common = Common {
            name: wire.name,
            kind: wire.kind,
            service_name: wire.service_name,
            service_tags: wire.service_tags,
            more: (more != More::default()).then(|| Box::new(more)),
        };
        Ok(Self {
            node: wire.node,
            id: wire.id,
            output: wire.output,
            service_id: wire.service_id,
            create_index: wire.create_index,
            modify_index: wire.modify_index,
            common: text::shared_value(common.name.place() | 1, common),
            status: wire.status,
        })
    }
}

fn unknown() -> Status {
    Status::Unknown
}

/// An identifier that is absent where Consul has an empty text.
fn non_empty<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + AsRef<str>,
{
    let id = T::deserialize(deserializer)?;
    Ok(Some(id).filter(|id| !id.as_ref().is_empty()))
}

/// How a check is done, as it was put into the catalog.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "PascalCase", default)]
#[expect(clippy::struct_excessive_bools, reason = "the form is Consul's")]
pub struct CheckDefinition {
    #[serde(rename = "HTTP")]
    http: Text,
    #[serde(rename = "TLSServerName")]
    tls_server_name: Text,
    #[serde(rename = "TLSSkipVerify", deserialize_with = "json::or_default")]
    tls_skip_verify: bool,
    #[serde(deserialize_with = "json::object")]
    header: Option<Json>,
    method: Text,
    body: Text,
    #[serde(deserialize_with = "json::or_default")]
    disable_redirects: bool,
    #[serde(rename = "TCP")]
    tcp: Text,
    #[serde(rename = "TCPUseTLS", deserialize_with = "json::or_default")]
    tcp_use_tls: bool,
    #[serde(rename = "UDP")]
    udp: Text,
    #[serde(rename = "H2PING")]
    h2ping: Text,
    #[serde(rename = "H2PingUseTLS", deserialize_with = "json::or_default")]
    h2ping_use_tls: bool,
    #[serde(rename = "OSService")]
    os_service: Text,
    session_name: Text,
    #[serde(deserialize_with = "json::span")]
    interval: Option<Duration>,
    #[serde(deserialize_with = "json::span")]
    timeout: Option<Duration>,
    #[serde(deserialize_with = "json::span")]
    deregister_critical_service_after: Option<Duration>,
    #[serde(deserialize_with = "json::number")]
    output_max_size: u64,
    script_args: TextList,
    #[serde(rename = "DockerContainerID")]
    docker_container_id: Text,
    shell: Text,
    #[serde(rename = "GRPC")]
    grpc: Text,
    #[serde(rename = "GRPCUseTLS", deserialize_with = "json::or_default")]
    grpc_use_tls: bool,
    alias_node: Text,
    alias_service: Text,
    #[serde(rename = "TTL", deserialize_with = "json::span")]
    ttl: Option<Duration>,
}

impl CheckDefinition {
    accessors! {
        /// The URL that is asked.
        #[doc(alias = "HTTP")]
        some_text http;
        /// The name that the certificate must bear, if not the host's.
        #[doc(alias = "TLSServerName")]
        some_text tls_server_name;
        /// Whether the certificate is taken unseen.
        #[doc(alias = "TLSSkipVerify")]
        copy tls_skip_verify: bool;
        /// The request's headers: names and lists of values.
        option header: Json;
        /// The request's method, if not `GET`.
        some_text method;
        /// The request's body.
        some_text body;
        /// Whether redirects are taken for the answer (Consul 1.9.17 and later).
        copy disable_redirects: bool;
        /// The `host:port` that is connected to.
        #[doc(alias = "TCP")]
        some_text tcp;
        /// Whether that connection speaks TLS (Consul 1.16 and later).
        #[doc(alias = "TCPUseTLS")]
        copy tcp_use_tls: bool;
        /// The `host:port` that a datagram is sent to (Consul 1.13 and later).
        #[doc(alias = "UDP")]
        some_text udp;
        /// The `host:port` that is pinged over HTTP/2 (Consul 1.10 and later).
        #[doc(alias = "H2PING")]
        some_text h2ping;
        /// Whether that ping goes over TLS.
        #[doc(alias = "H2PingUseTLS")]
        copy h2ping_use_tls: bool;
        /// The service of the operating system that must run (Consul 1.14 and later).
        #[doc(alias = "OSService")]
        some_text os_service;
        /// The name of the session that must live (Consul 1.21 and later).
        some_text session_name;
        /// How often the check runs.
        copy interval: Option<Duration>;
        /// How long one run may take.
        copy timeout: Option<Duration>;
        /// How long the check may be critical before its service is deregistered.
        copy deregister_critical_service_after: Option<Duration>;
        /// How many bytes of output are kept; 0 for the agent's default of 4 KiB.
        copy output_max_size: u64;
        /// The program that is run, and its arguments.
        reference script_args: TextList;
        /// The container that the program is run in.
        #[doc(alias = "DockerContainerID")]
        some_text docker_container_id;
        /// The shell that runs the program in the container.
        some_text shell;
        /// The `host:port/service` whose gRPC health is asked.
        #[doc(alias = "GRPC")]
        some_text grpc;
        /// Whether that call goes over TLS.
        #[doc(alias = "GRPCUseTLS")]
        copy grpc_use_tls: bool;
        /// The node whose checks are repeated.
        some_text alias_node;
        /// The instance whose checks are repeated.
        some_text alias_service;
        /// How long a result holds that the service tells by itself.
        #[doc(alias = "TTL")]
        copy ttl: Option<Duration>;
    }
}
