//! The configuration of a proxy of the service mesh.

use serde::Deserialize;

use crate::proto::json::{self, Json, Text};

/// The configuration of a proxy of the service mesh.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "PascalCase", default)]
pub struct Proxy {
    destination_service_name: Text,
    #[serde(rename = "DestinationServiceID")]
    destination_service_id: Text,
    local_service_address: Text,
    #[serde(deserialize_with = "json::number")]
    local_service_port: u16,
    local_service_socket_path: Text,
    mode: Text,
    #[serde(deserialize_with = "json::object")]
    config: Option<Json>,
    #[serde(deserialize_with = "json::list")]
    upstreams: Box<[Upstream]>,
    #[serde(deserialize_with = "json::or_default")]
    mesh_gateway: MeshGateway,
    #[serde(deserialize_with = "json::unless_default")]
    expose: Option<Box<Expose>>,
    #[serde(deserialize_with = "json::unless_default")]
    transparent_proxy: Option<Box<TransparentProxy>>,
    #[serde(rename = "MutualTLSMode")]
    mutual_tls_mode: Text,
    #[serde(deserialize_with = "json::unless_default")]
    access_logs: Option<Box<AccessLogs>>,
    #[serde(deserialize_with = "json::list")]
    envoy_extensions: Box<[EnvoyExtension]>,
}

/// Where Consul writes an object of one text.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "PascalCase", default)]
struct MeshGateway {
    mode: Text,
}

impl Proxy {
    accessors! {
        /// The service that the proxy stands for.
        text destination_service_name;
        /// The instance that a sidecar stands for; empty for other proxies.
        #[doc(alias = "DestinationServiceID")]
        text destination_service_id;
        /// Where that instance listens, as seen from the proxy; empty for 127.0.0.1.
        text local_service_address;
        /// The port that instance listens on; 0 if none is given.
        copy local_service_port: u16;
        /// The unix socket that instance listens on (Consul 1.10 and later).
        some_text local_service_socket_path;
        /// `direct` or `transparent`; empty for the default (Consul 1.10 and later).
        text mode;
        /// The proxy's own settings.
        option config: Json;
        /// The services that the proxy makes reachable.
        slice upstreams: Upstream;
        /// The paths that are open to callers outside of the mesh.
        part expose: Expose;
        /// How traffic is redirected into the proxy (Consul 1.10 and later).
        part transparent_proxy: TransparentProxy;
        /// `strict`, `permissive`, or empty for the default (Consul 1.16 and later).
        #[doc(alias = "MutualTLSMode")]
        text mutual_tls_mode;
        /// What is logged of the calls (Consul 1.15 and later).
        part access_logs: AccessLogs;
        /// Extensions of the proxy (Consul 1.15 and later).
        slice envoy_extensions: EnvoyExtension;
    }

    /// `local`, `remote` or `none`: how other datacenters are reached; empty for the default.
    #[doc(alias = "MeshGateway")]
    #[must_use]
    pub fn mesh_gateway_mode(&self) -> &str {
        self.mesh_gateway.mode.as_str()
    }
}

/// A service that a proxy makes reachable at a local port.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "PascalCase", default)]
pub struct Upstream {
    destination_type: Text,
    destination_name: Text,
    destination_namespace: Text,
    destination_partition: Text,
    destination_peer: Text,
    datacenter: Text,
    local_bind_address: Text,
    #[serde(deserialize_with = "json::number")]
    local_bind_port: u16,
    local_bind_socket_path: Text,
    local_bind_socket_mode: Text,
    #[serde(deserialize_with = "json::object")]
    config: Option<Json>,
    #[serde(deserialize_with = "json::or_default")]
    mesh_gateway: MeshGateway,
}

impl Upstream {
    accessors! {
        /// `service` or `prepared_query`.
        text destination_type;
        /// The name of the service or of the query.
        text destination_name;
        /// Its namespace (Consul Enterprise).
        text destination_namespace;
        /// Its admin partition (Consul Enterprise).
        text destination_partition;
        /// The peer cluster it is in (Consul 1.13 and later).
        some_text destination_peer;
        /// The datacenter it is in; empty for the proxy's own.
        text datacenter;
        /// The address the proxy opens; empty for 127.0.0.1.
        text local_bind_address;
        /// The port the proxy opens; 0 if none is given.
        copy local_bind_port: u16;
        /// The unix socket the proxy opens (Consul 1.10 and later).
        some_text local_bind_socket_path;
        /// The mode of that socket's file, in octal digits.
        text local_bind_socket_mode;
        /// The proxy's own settings for it.
        option config: Json;
    }

    /// `local`, `remote` or `none`: how other datacenters are reached; empty for the default.
    #[doc(alias = "MeshGateway")]
    #[must_use]
    pub fn mesh_gateway_mode(&self) -> &str {
        self.mesh_gateway.mode.as_str()
    }
}

/// The paths that a proxy opens to callers outside of the mesh.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "PascalCase", default)]
pub struct Expose {
    #[serde(deserialize_with = "json::or_default")]
    checks: bool,
    #[serde(deserialize_with = "json::list")]
    paths: Box<[ExposedPath]>,
}

impl Expose {
    accessors! {
        /// Whether the instance's HTTP and gRPC checks are among them.
        copy checks: bool;
        /// The paths.
        slice paths: ExposedPath;
    }
}

/// A path that a proxy opens to callers outside of the mesh.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "PascalCase", default)]
pub struct ExposedPath {
    #[serde(deserialize_with = "json::number")]
    listener_port: u16,
    path: Text,
    #[serde(deserialize_with = "json::number")]
    local_path_port: u16,
    protocol: Text,
    #[serde(deserialize_with = "json::or_default")]
    parsed_from_check: bool,
}

impl ExposedPath {
    accessors! {
        /// The port the proxy opens.
        copy listener_port: u16;
        /// The path of the URL.
        text path;
        /// The port the instance serves it at.
        copy local_path_port: u16;
        /// `http` or `http2`; empty for `http`.
        text protocol;
        /// Whether it comes from one of the instance's checks.
        copy parsed_from_check: bool;
    }
}

/// How traffic is redirected into a proxy (Consul 1.10 and later).
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "PascalCase", default)]
pub struct TransparentProxy {
    #[serde(deserialize_with = "json::number")]
    outbound_listener_port: u16,
    #[serde(deserialize_with = "json::or_default")]
    dialed_directly: bool,
}

impl TransparentProxy {
    accessors! {
        /// The port that outgoing traffic is redirected to; 0 for the default, 15001.
        copy outbound_listener_port: u16;
        /// Whether others dial its instances one by one.
        copy dialed_directly: bool;
    }
}

/// What a proxy logs of the calls (Consul 1.15 and later).
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "PascalCase", default)]
pub struct AccessLogs {
    #[serde(deserialize_with = "json::or_default")]
    enabled: bool,
    #[serde(deserialize_with = "json::or_default")]
    disable_listener_logs: bool,
    #[serde(rename = "Type")]
    sink: Text,
    path: Text,
    #[serde(rename = "JSONFormat")]
    json_format: Text,
    text_format: Text,
}

impl AccessLogs {
    accessors! {
        /// Whether calls are logged.
        copy enabled: bool;
        /// Whether connections that match no route are left out.
        copy disable_listener_logs: bool;
        /// `file`, `stderr` or `stdout`; empty for `stdout`.
        #[doc(alias = "Type")]
        text sink;
        /// The file that is written.
        some_text path;
        /// The form of a line as JSON.
        #[doc(alias = "JSONFormat")]
        some_text json_format;
        /// The form of a line as text.
        some_text text_format;
    }
}

/// An extension of a proxy (Consul 1.15 and later).
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "PascalCase", default)]
pub struct EnvoyExtension {
    name: Text,
    #[serde(deserialize_with = "json::or_default")]
    required: bool,
    #[serde(deserialize_with = "json::object")]
    arguments: Option<Json>,
    consul_version: Text,
    envoy_version: Text,
}

impl EnvoyExtension {
    accessors! {
        /// Its name, such as `builtin/lua`.
        text name;
        /// Whether the proxy must not run without it.
        copy required: bool;
        /// Its settings.
        option arguments: Json;
        /// Which versions of Consul it is for; empty for all.
        text consul_version;
        /// Which versions of Envoy it is for; empty for all.
        text envoy_version;
    }
}
