//! How an agent is to be started, and the configuration that makes Consul do so.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::Agent;
use crate::certs::{Authority, IdentityFiles};

/// What kind of agent to start; the default is a development server.
#[derive(Clone, Debug)]
#[must_use = "nothing runs before `start`"]
pub struct Options {
    pub(super) mode: Mode,
    pub(super) node_name: String,
    pub(super) node_id: Option<String>,
    pub(super) acl: bool,
    pub(super) tls: Option<Verify>,
    pub(super) extra: Map<String, Value>,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Mode {
    /// A server that keeps everything in memory.
    Dev,
    /// A server with a data folder, that waits for this many servers.
    Server { expect: u32 },
    /// An agent in client mode.
    Client,
}

/// Whether callers must show a certificate.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Verify {
    /// Anybody may call.
    Nobody,
    /// Only with a certificate of the test's authority (mutual TLS).
    Callers,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Ports {
    pub(super) http: u16,
    pub(super) https: u16,
    pub(super) dns: u16,
    pub(super) server: u16,
    pub(super) serf_lan: u16,
    pub(super) serf_wan: u16,
}

#[derive(Debug)]
pub(super) struct Tls {
    pub(super) authority: Authority,
    pub(super) server: IdentityFiles,
    pub(super) client: IdentityFiles,
    pub(super) ca_file: std::path::PathBuf,
}

impl Options {
    pub(super) fn new() -> Self {
        Self {
            mode: Mode::Dev,
            node_name: "node".to_owned(),
            node_id: None,
            acl: false,
            tls: None,
            extra: Map::new(),
        }
    }

    /// A server that keeps its data in a folder, so that a restart finds them.
    pub fn server(mut self) -> Self {
        self.mode = Mode::Server { expect: 1 };
        self
    }

    /// One of `expect` servers; each needs a node name of its own and the others' addresses.
    pub(super) fn server_of(mut self, expect: u32) -> Self {
        self.mode = Mode::Server { expect };
        self
    }

    /// An agent in client mode, joined to `server`.
    pub fn client_of(self, server: &Agent) -> Self {
        self.client_of_all(std::slice::from_ref(server))
    }

    /// An agent in client mode, joined to all of `servers`.
    pub fn client_of_all(mut self, servers: &[Agent]) -> Self {
        self.mode = Mode::Client;
        if self.node_name == "node" {
            self.node_name = "client".to_owned();
        }
        let servers: Vec<String> = servers.iter().map(Agent::gossip_addr).collect();
        self.config("retry_join", json!(servers))
    }

    /// The node's name; `node` for servers and `client` for clients if not set.
    pub fn node_name(mut self, name: &str) -> Self {
        self.node_name = name.to_owned();
        self
    }

    /// A fixed node ID (a UUID), which the node then keeps when it is wiped.
    ///
    /// Without it a wiped node comes back under another ID, and the other nodes refuse its name
    /// until they have seen the old one fail.
    pub fn node_id(mut self, id: &str) -> Self {
        self.node_id = Some(id.to_owned());
        self
    }

    /// Access control with the default policy `deny`; see [`Agent::management_token`].
    pub fn acl(mut self) -> Self {
        self.acl = true;
        self
    }

    /// HTTPS beside HTTP; see [`Agent::https_url`].
    pub fn tls(mut self, verify: Verify) -> Self {
        self.tls = Some(verify);
        self
    }

    /// Any other field of Consul's configuration file; it wins over what stands there.
    pub fn config(mut self, name: &str, value: Value) -> Self {
        self.extra.insert(name.to_owned(), value);
        self
    }

    /// Starts the agent and waits until it has a leader and is in the catalog itself.
    ///
    /// # Panics
    ///
    /// When there is no Consul, or it does not start; the message holds its log.
    pub async fn start(self) -> Agent {
        Agent::launch(self).await.started().await
    }

    /// The configuration file.
    pub(super) fn file(
        &self,
        ports: Ports,
        dir: &Path,
        management_token: &str,
        version: (u32, u32),
        tls: Option<&Tls>,
    ) -> Value {
        let mut file = json!({
            "node_name": self.node_name,
            "bind_addr": "127.0.0.1",
            "client_addr": "127.0.0.1",
            "log_level": "info",
            "disable_update_check": true,
            "leave_on_terminate": false,
            "ports": {
                "http": ports.http,
                "https": if tls.is_some() { i32::from(ports.https) } else { -1 },
                "dns": ports.dns,
                "server": ports.server,
                "serf_lan": ports.serf_lan,
                "serf_wan": ports.serf_wan,
                "grpc": -1,
            },
            // The times of a development server for every mode: a test is not to wait for
            // gossip that is slow on purpose.
            "performance": { "raft_multiplier": 1, "leave_drain_time": "100ms" },
            "gossip_lan": {
                "gossip_interval": "20ms",
                "probe_interval": "200ms",
                "probe_timeout": "100ms",
                "suspicion_mult": 3,
            },
            "retry_interval": "200ms",
        });
        if version >= (1, 14) {
            file["ports"]["grpc_tls"] = json!(-1);
        }
        match self.mode {
            Mode::Dev => {}
            Mode::Server { expect } => {
                file["server"] = json!(true);
                file["bootstrap_expect"] = json!(expect);
                file["data_dir"] = json!(dir.join("data"));
            }
            Mode::Client => {
                file["server"] = json!(false);
                file["data_dir"] = json!(dir.join("data"));
            }
        }
        if let Some(id) = &self.node_id {
            file["node_id"] = json!(id);
        }
        if self.acl {
            // Renamed in 1.11.
            let management = if version >= (1, 11) {
                "initial_management"
            } else {
                "master"
            };
            file["acl"] = json!({
                "enabled": true,
                "default_policy": "deny",
                "tokens": { management: management_token, "agent": management_token },
            });
        }
        if let Some(tls) = tls {
            file["ca_file"] = json!(tls.ca_file);
            file["cert_file"] = json!(tls.server.certificate);
            file["key_file"] = json!(tls.server.key);
            file["verify_incoming_https"] = json!(self.tls == Some(Verify::Callers));
        }
        for (name, value) in &self.extra {
            file[name] = value.clone();
        }
        file
    }
}
