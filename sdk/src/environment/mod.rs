//! Services as the environment of their container describes them.
//!
//! An operator says in variables what a service is called, how it is tagged and how it is checked,
//! and the same image serves everywhere. The words are those of Registrator, which read them from
//! outside: `SERVICE_NAME`, `SERVICE_TAGS`, `SERVICE_CHECK_HTTP` and so on. Read by the service
//! itself they do what Registrator cannot: a TTL check is really beaten, and the service is
//! deregistered before it stops instead of after.
//!
//! ```
//! use lictor::environment::Environment;
//!
//! # fn main() -> lictor::Result<()> {
//! let services = Environment::of([
//!     ("SERVICE_NAME", "db"),
//!     ("SERVICE_TAGS", "master,backups"),
//!     ("SERVICE_REGION", "us2"),
//!     ("SERVICE_CHECK_TTL", "30s"),
//! ])
//! .port(6379)
//! .services()?;
//! assert_eq!(services.len(), 1);
//! # Ok(())
//! # }
//! ```
//!
//! # Variables
//!
//! `SERVICE_<KEY>` is for all services of the process, `SERVICE_<port>_<KEY>` for the one on that
//! port and goes before; the port is the one that the process listens on. An empty value counts as
//! unset. Case does not matter in `<KEY>`.
//!
//! | variable | says |
//! |---|---|
//! | `SERVICE_NAME` | the name; with several ports, `-<port>` is added to it, unless `SERVICE_<port>_NAME` says the whole |
//! | `SERVICE_ID` | the ID; default `<host>:<name>:<port>`, and `:udp` after it for UDP |
//! | `SERVICE_TAGS` | tags, between commas; `\,` is a comma within one, and any other `\` is itself |
//! | `SERVICE_IGNORE` | not to register it, by any value |
//! | `SERVICE_IP` | the address that clients are told; not known to Registrator, which calls it so in scripts |
//! | `SERVICE_PORT` | the port that clients are told, if it is published under another one; as above |
//! | `SERVICE_CHECK_HTTP`, `SERVICE_CHECK_HTTPS` | a path that the agent asks |
//! | `SERVICE_CHECK_HTTP_METHOD`, `SERVICE_CHECK_HTTPS_METHOD` | by which method. Default: Consul's, GET |
//! | `SERVICE_CHECK_CMD` | a program that `check-cmd`, Registrator's script, runs in this container |
//! | `SERVICE_CHECK_SCRIPT` | a line for `/bin/sh` on the agent's machine; `$SERVICE_IP` and `$SERVICE_PORT` stand for address and port |
//! | `SERVICE_CHECK_TTL` | a TTL check, which this process beats; [probes](crate::probe) need one to say by what they find |
//! | `SERVICE_CHECK_TCP`, `SERVICE_CHECK_GRPC` | by any value: a check of that kind |
//! | `SERVICE_CHECK_GRPC_USE_TLS`, `SERVICE_CHECK_TLS_SKIP_VERIFY` | by any value: TLS for the gRPC check, with any certificate |
//! | `SERVICE_CHECK_INTERVAL` | how often the agent looks. Default: 10 s, which is Registrator's |
//! | `SERVICE_CHECK_TIMEOUT` | how long one look may take. Default: Consul's |
//! | `SERVICE_CHECK_INITIAL_STATUS` | `passing`, `warning` or `critical`. Default: passing for a TTL check, else Consul's, critical |
//! | `SERVICE_CHECK_DEREGISTER_AFTER` | after how long in critical Consul removes it. Default: never |
//! | `SERVICE_<anything else>` | metadata under that key in lower case |
//!
//! Of several kinds of check the first counts, in the order of this table with TTL before TCP.
//! Times are Go's: `15s`, `1m30s`.
//!
//! Unlike Registrator, tags keep their order (there it is turned round), a script goes through a
//! shell (there it is taken for the name of a program), what begins with `CHECK_` and is not known
//! is an error (there it becomes metadata), and so are `false`, `no`, `off` and `0` where any value
//! means yes. A variable that has no effect is told by a warning, once for each call of
//! [`Environment::services`]: one for a port that no service is on, or one for another kind of check
//! than the one that counts.
//!
//! # Ports and addresses
//!
//! The ports are those that the program [names](Environment::port), else those of `SERVICE_<port>_…`
//! and `SERVICE_PORT`, else those that the platform gave:
//!
//! | platform, and how it is known | ports | address |
//! |---|---|---|
//! | Nomad: `NOMAD_ALLOC_ID` | `NOMAD_PORT_<label>`, published as `NOMAD_HOST_PORT_<label>` | `NOMAD_HOST_IP_<label>`, `NOMAD_IP_<label>` |
//! | Marathon: `MESOS_TASK_ID` or `MARATHON_APP_ID` | `PORT_<port>`, published as its value, else `PORT0`, `PORT1`, … | `HOST` |
//! | Kubernetes: `KUBERNETES_SERVICE_HOST` | none | `POD_IP`, by the downward API |
//!
//! The address that clients are told is `SERVICE_<port>_IP`, `SERVICE_IP`, what the program
//! [advertises](Environment::advertise), the platform's, or that of the
//! [listener](Environment::listener), in this order; else the service has none, and is reached at
//! its node's. In a container that has an address of its own, ask
//! [`Client::local_ip`](crate::Client::local_ip) and advertise that.

mod platform;
mod registrator;
mod unused;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::net::{IpAddr, SocketAddr};

use crate::api::agent::ServiceDefinition;
use crate::error::{Error, ErrorKind, Result};

use platform::Platform;
use registrator::Words;

impl ServiceDefinition {
    /// The services that the environment of this process describes.
    ///
    /// It is [`Environment::from_env`]; the variables are listed in [`environment`](crate::environment).
    ///
    /// # Errors
    ///
    /// Those of [`Environment::from_env`].
    pub fn from_env() -> Result<Environment> {
        Environment::from_env()
    }
}

/// What an environment says about the services of this process.
///
/// The program adds what it alone knows, such as the ports that it listens on, and takes the
/// [services](Self::services).
#[derive(Clone, Debug)]
#[must_use]
pub struct Environment {
    words: Words,
    platform: Platform,
    host: Option<String>,
    container: Option<String>,
    name: Option<String>,
    ports: BTreeSet<Port>,
    advertised: Option<String>,
    bound: Option<IpAddr>,
    explicit: bool,
    /// The first argument that no field can hold.
    wrong: Option<String>,
}

/// A port that the process listens on.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
struct Port {
    number: u16,
    udp: bool,
}

impl Environment {
    /// The environment of this process, read once, here.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Config`] if a variable of `SERVICE_…` or of a platform is not UTF-8.
    pub fn from_env() -> Result<Self> {
        Self::from_vars(std::env::vars_os())
    }

    /// These variables in place of the environment: for tests.
    pub fn of<K: Into<String>, V: Into<String>>(vars: impl IntoIterator<Item = (K, V)>) -> Self {
        let vars = vars.into_iter().map(|(k, v)| (k.into(), v.into()));
        Self::new(vars.collect(), None)
    }

    fn from_vars(all: impl Iterator<Item = (OsString, OsString)>) -> Result<Self> {
        let mut vars = BTreeMap::new();
        for (name, value) in all {
            // One that is not UTF-8 is none of ours.
            let Ok(name) = name.into_string() else {
                continue;
            };
            if !Words::reads(&name) && !Platform::reads(&name) {
                continue;
            }
            let value = value.into_string().map_err(|_| {
                Error::new(ErrorKind::Config).context(format!("{name}: must be text in UTF-8"))
            })?;
            vars.insert(name, value);
        }
        Ok(Self::new(vars, platform::kernel_host()))
    }

    fn new(mut vars: BTreeMap<String, String>, host: Option<String>) -> Self {
        vars.retain(|_, value| !value.is_empty());
        Self {
            host: vars.get("HOSTNAME").cloned().or(host),
            platform: Platform::of(&vars),
            words: Words::of(vars),
            container: None,
            name: None,
            ports: BTreeSet::new(),
            advertised: None,
            bound: None,
            explicit: false,
            wrong: None,
        }
    }

    /// The name where the environment gives none. Default: none, and then it must.
    ///
    /// Registrator takes the name of the image, which a process does not know.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Adds a port that the process listens on, over TCP. Default: see [`environment`](self).
    pub fn port(self, port: u16) -> Self {
        self.with_port(port, false)
    }

    /// Adds a port that the process listens on, over UDP: the service gets the tag `udp`, and the
    /// ID ends with it.
    pub fn udp_port(self, port: u16) -> Self {
        self.with_port(port, true)
    }

    /// Adds the port of a listener that is bound already, and where nothing else says an address,
    /// its address.
    ///
    /// One on all addresses (`0.0.0.0`, `[::]`) gives none.
    pub fn listener(mut self, bound: SocketAddr) -> Self {
        self.bound = Some(bound.ip()).filter(|ip| !ip.is_unspecified());
        self.port(bound.port())
    }

    /// The address that clients are told, unless a variable says another. Default: see
    /// [`environment`](self).
    pub fn advertise(mut self, address: impl Into<String>) -> Self {
        self.advertised = Some(address.into());
        self
    }

    /// The name of this machine or container, for IDs. Default: `HOSTNAME`, else the kernel's.
    pub fn host(mut self, host: impl Into<String>) -> Self {
        self.host = Some(host.into());
        self
    }

    /// The name of the container, for IDs. Default: none, and the service's name stands there.
    ///
    /// A container does not know its own name. With it, IDs are those that Registrator would give.
    pub fn container(mut self, name: impl Into<String>) -> Self {
        self.container = Some(name.into());
        self
    }

    /// Registers only what the environment names. Default: the [name](Self::name) serves for the
    /// rest.
    ///
    /// It is Registrator's `-explicit`.
    pub fn explicit(mut self) -> Self {
        self.explicit = true;
        self
    }

    fn with_port(mut self, number: u16, udp: bool) -> Self {
        if number == 0 {
            let wrong = "port 0: must be one that is bound, from 1 to 65535".to_owned();
            self.wrong.get_or_insert(wrong);
        }
        self.ports.insert(Port { number, udp });
        self
    }

    /// The services to register, one for each port that is not ignored.
    ///
    /// They are what [`Client::register`](crate::Client::register) takes, and may be changed before.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Config`] naming the variable, what is wrong with it and what would be right: a
    /// time, an address or a status that is none, or that Consul would misread; a word of `CHECK_`
    /// that is not known, a service without a name, two of one ID, no port at all.
    /// [`ErrorKind::Invalid`] for what the program itself has said.
    pub fn services(&self) -> Result<Vec<ServiceDefinition>> {
        if let Some(wrong) = &self.wrong {
            return Err(Error::invalid(wrong.clone()));
        }
        let ports = self.all_ports()?;
        let mut services = Vec::new();
        let mut ids = BTreeMap::new();
        let mut served = BTreeSet::new();
        for port in &ports {
            let Some(service) = self.service(*port, ports.len() > 1)? else {
                continue;
            };
            service
                .validate()
                .map_err(|err| err.at(&format!("the service on port {}", port.number)))?;
            if let Some(id) = service.explicit_id()
                && let Some(other) = ids.insert(id.clone(), port.number)
            {
                let by = [other, port.number].map(|port| {
                    let said = self.words.said("id", Some(port));
                    said.map_or("the default", |said| &*said.variable)
                });
                return Err(config(format!(
                    "the services on ports {other} and {} have the same ID {id:?} (by {} and {}): \
                     give each its own by SERVICE_<port>_ID, or none",
                    port.number, by[0], by[1],
                )));
            }
            services.push(service);
            served.insert(port.number);
        }
        let all = ports.iter().map(|port| port.number).collect();
        for unused in self.words.unused(&all, &served) {
            tracing::warn!("{unused}");
        }
        Ok(services)
    }

    fn all_ports(&self) -> Result<BTreeSet<Port>> {
        let tcp = |number| Port { number, udp: false };
        let named = self.words.ports()?;
        if !self.ports.is_empty() {
            return Ok(self.ports.clone());
        }
        let mut ports: BTreeSet<Port> = named.into_iter().map(tcp).collect();
        if ports.is_empty() {
            ports = self.platform.ports()?.into_iter().map(tcp).collect();
        }
        if ports.is_empty()
            && let Some((port, _)) = self.words.port("port", None)?
        {
            ports.insert(tcp(port));
        }
        if ports.is_empty() && !self.words.ignored(None)? {
            return Err(config(
                "no port: name one in the program, or by SERVICE_<port>_NAME or SERVICE_PORT",
            ));
        }
        Ok(ports)
    }
}

fn config(text: impl Into<String>) -> Error {
    Error::new(ErrorKind::Config).context(text.into())
}

#[cfg(test)]
mod tests;
