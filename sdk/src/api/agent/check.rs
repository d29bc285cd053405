//! What is told to an agent about a check.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};

use crate::api::model::Status;
use crate::ident::ServiceId;
use crate::proto::duration;

/// A check to register: how it is done, and what follows from it.
///
/// The constructors are Consul's types of checks. Only what is set is sent, because an agent
/// refuses a field that it does not know. What Consul would refuse, misread or silently change is
/// refused before it is sent ([`ErrorKind::Invalid`](crate::ErrorKind::Invalid)).
///
/// A new check is critical until its first result, unless it [says otherwise](Self::status).
#[derive(Clone, Debug, PartialEq)]
#[must_use]
pub struct CheckDefinition {
    pub(super) kind: Kind,
    pub(super) id: Option<Arc<str>>,
    pub(super) name: Option<Arc<str>>,
    pub(super) notes: Option<Arc<str>>,
    pub(super) status: Option<Status>,
    pub(super) timeout: Option<Duration>,
    pub(super) success_before_passing: Option<u32>,
    pub(super) failures_before_warning: Option<u32>,
    pub(super) failures_before_critical: Option<u32>,
    pub(super) deregister_critical_service_after: Option<Duration>,
    pub(super) output_max_size: Option<u32>,
    pub(super) tls: bool,
    pub(super) tls_server_name: Option<Arc<str>>,
    pub(super) tls_skip_verify: bool,
    pub(super) method: Option<Arc<str>>,
    pub(super) headers: BTreeMap<Arc<str>, Vec<Arc<str>>>,
    pub(super) body: Option<Arc<str>>,
    pub(super) disable_redirects: bool,
    pub(super) shell: Option<Arc<str>>,
    /// What stands behind it. It is no word of Consul's.
    pub(super) behind: Behind,
}

/// What stands behind a TTL check that says that all is well.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Behind {
    /// Its author has not said.
    Unsaid,
    /// Nothing but the process.
    Process,
}

/// How a check is done.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Kind {
    Ttl(Duration),
    Http(Arc<str>, Duration),
    Tcp(Arc<str>, Duration),
    Udp(Arc<str>, Duration),
    Grpc(Arc<str>, Duration),
    H2Ping(Arc<str>, Duration),
    Script(Vec<Arc<str>>, Duration),
    Docker(Arc<str>, Vec<Arc<str>>, Duration),
    OsService(Arc<str>, Duration),
    AliasService(Arc<str>),
    AliasNode(Arc<str>),
}

impl Kind {
    /// As people call it.
    pub(super) fn as_str(&self) -> &'static str {
        match self {
            Self::Ttl(_) => "TTL",
            Self::Http(..) => "HTTP",
            Self::Tcp(..) => "TCP",
            Self::Udp(..) => "UDP",
            Self::Grpc(..) => "gRPC",
            Self::H2Ping(..) => "HTTP/2 ping",
            Self::Script(..) => "script",
            Self::Docker(..) => "Docker",
            Self::OsService(..) => "OS service",
            Self::AliasService(_) | Self::AliasNode(_) => "alias",
        }
    }

    pub(super) fn interval(&self) -> Option<Duration> {
        match self {
            Self::Http(_, interval)
            | Self::Tcp(_, interval)
            | Self::Udp(_, interval)
            | Self::Grpc(_, interval)
            | Self::H2Ping(_, interval)
            | Self::Script(_, interval)
            | Self::Docker(_, _, interval)
            | Self::OsService(_, interval) => Some(*interval),
            Self::Ttl(_) | Self::AliasService(_) | Self::AliasNode(_) => None,
        }
    }
}

impl CheckDefinition {
    fn new(kind: Kind) -> Self {
        Self {
            kind,
            id: None,
            name: None,
            notes: None,
            status: None,
            timeout: None,
            success_before_passing: None,
            failures_before_warning: None,
            failures_before_critical: None,
            deregister_critical_service_after: None,
            output_max_size: None,
            tls: false,
            tls_server_name: None,
            tls_skip_verify: false,
            method: None,
            headers: BTreeMap::new(),
            body: None,
            disable_redirects: false,
            shell: None,
            behind: Behind::Unsaid,
        }
    }

    /// Critical unless it is updated within `ttl`, again and again.
    ///
    /// A [`Registration`](crate::registration::Registration) does the updates by itself.
    /// Range: 100 ms and more; Consul takes less, but no network does.
    #[doc(alias = "TTL")]
    pub fn ttl(ttl: Duration) -> Self {
        Self::new(Kind::Ttl(ttl))
    }

    /// The same, for a service of which nothing is looked at: a TTL check that says "alive only".
    ///
    /// It passes for as long as the process runs and its runtime has time for it, whether it can do
    /// its work or not. That is often too little, and so it has to be said: a
    /// [`register`](crate::Client::register) of a plain [`ttl`](Self::ttl) check wants
    /// [probes](crate::registration::Register::probe), or an initial [`status`](Self::status) from
    /// which [`set_status`](crate::registration::Registration::set_status) goes on by hand.
    pub fn alive_only(ttl: Duration) -> Self {
        let mut check = Self::ttl(ttl);
        check.behind = Behind::Process;
        check
    }

    /// Asks a URL: passing if 2xx, warning if 429, critical for all else.
    ///
    /// Range of `interval`, here and for all others: 1 s and more, because Consul makes 1 s of
    /// less.
    #[doc(alias = "HTTP")]
    pub fn http(url: impl Into<Arc<str>>, interval: Duration) -> Self {
        Self::new(Kind::Http(url.into(), interval))
    }

    /// Connects to `host:port`: passing if it can.
    #[doc(alias = "TCP")]
    pub fn tcp(address: impl Into<Arc<str>>, interval: Duration) -> Self {
        Self::new(Kind::Tcp(address.into(), interval))
    }

    /// Sends a datagram to `host:port`: passing unless it is told that nobody is there (1.13).
    #[doc(alias = "UDP")]
    pub fn udp(address: impl Into<Arc<str>>, interval: Duration) -> Self {
        Self::new(Kind::Udp(address.into(), interval))
    }

    /// Asks `host:port`, or `host:port/service`, by gRPC's health protocol.
    #[doc(alias = "GRPC")]
    pub fn grpc(address: impl Into<Arc<str>>, interval: Duration) -> Self {
        Self::new(Kind::Grpc(address.into(), interval))
    }

    /// Sends an HTTP/2 ping to `host:port` (1.10), over TLS unless [`use_tls`](Self::use_tls)
    /// says otherwise.
    #[doc(alias = "H2PING")]
    pub fn h2ping(address: impl Into<Arc<str>>, interval: Duration) -> Self {
        let mut check = Self::new(Kind::H2Ping(address.into(), interval));
        check.tls = true;
        check
    }

    /// Runs a program on the agent's machine: passing if it exits with 0, warning with 1.
    ///
    /// An agent refuses it unless it is configured with `enable_script_checks`.
    #[doc(alias = "ScriptArgs")]
    pub fn script<A: Into<Arc<str>>>(
        args: impl IntoIterator<Item = A>,
        interval: Duration,
    ) -> Self {
        let args = args.into_iter().map(Into::into).collect();
        Self::new(Kind::Script(args, interval))
    }

    /// Runs a program in a Docker container, as [`script`](Self::script) does.
    #[doc(alias = "DockerContainerID")]
    pub fn docker<A: Into<Arc<str>>>(
        container: impl Into<Arc<str>>,
        args: impl IntoIterator<Item = A>,
        interval: Duration,
    ) -> Self {
        let args = args.into_iter().map(Into::into).collect();
        Self::new(Kind::Docker(container.into(), args, interval))
    }

    /// Looks whether a service of the operating system runs (1.14).
    #[doc(alias = "OSService")]
    pub fn os_service(name: impl Into<Arc<str>>, interval: Duration) -> Self {
        Self::new(Kind::OsService(name.into(), interval))
    }

    /// Takes over the health of another service on the same agent, by its ID.
    #[doc(alias = "AliasService")]
    pub fn alias_service(id: impl Into<Arc<str>>) -> Self {
        Self::new(Kind::AliasService(id.into()))
    }

    /// Takes over the health of a node.
    ///
    /// The node must exist: an agent of version 1.8.7 crashes if it does not (measured).
    #[doc(alias = "AliasNode")]
    pub fn alias_node(node: impl Into<Arc<str>>) -> Self {
        Self::new(Kind::AliasNode(node.into()))
    }

    /// The ID, unique on the agent.
    ///
    /// Default: `service:` and the service's ID, for a service with several checks with `:1`,
    /// `:2` and so on; for a check of the node its [name](Self::name).
    #[doc(alias = "CheckID")]
    pub fn id(mut self, id: impl Into<Arc<str>>) -> Self {
        self.id = Some(id.into());
        self
    }

    /// The name, for people. Default: `Service 'web' check`.
    pub fn name(mut self, name: impl Into<Arc<str>>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// What people should know about it. Default: nothing.
    pub fn notes(mut self, notes: impl Into<Arc<str>>) -> Self {
        self.notes = Some(notes.into());
        self
    }

    /// The status until the first result. Default: critical.
    ///
    /// A check that exists already keeps its own.
    pub fn status(mut self, status: Status) -> Self {
        self.status = Some(status);
        self
    }

    /// How long a run may take. Default: Consul's, 10 s; 30 s for scripts.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// How many good runs in a row make it passing. Default: 1 (1.8; not for TTL and alias).
    pub fn success_before_passing(mut self, runs: u32) -> Self {
        self.success_before_passing = Some(runs);
        self
    }

    /// How many bad runs in a row make it warning (1.11; not for TTL and alias).
    ///
    /// Default: as many as make it critical. Range: not more than those.
    pub fn failures_before_warning(mut self, runs: u32) -> Self {
        self.failures_before_warning = Some(runs);
        self
    }

    /// How many bad runs in a row make it critical. Default: 1 (1.8; not for TTL and alias).
    pub fn failures_before_critical(mut self, runs: u32) -> Self {
        self.failures_before_critical = Some(runs);
        self
    }

    /// Deregisters the service once the check has been critical for so long. Default: never.
    ///
    /// What a crash leaves behind is gone after it. Range: 1 min and more, because Consul makes
    /// 1 min of less; it looks every 30 s.
    pub fn deregister_critical_service_after(mut self, after: Duration) -> Self {
        self.deregister_critical_service_after = Some(after);
        self
    }

    /// How many bytes of output are kept. Default: Consul's, 4096. Range: above zero.
    pub fn output_max_size(mut self, bytes: u32) -> Self {
        self.output_max_size = Some(bytes);
        self
    }

    /// Whether a TCP (1.16), gRPC or HTTP/2 check speaks TLS. Default: only the HTTP/2 one does.
    #[doc(alias = "TCPUseTLS")]
    #[doc(alias = "GRPCUseTLS")]
    #[doc(alias = "H2PingUseTLS")]
    pub fn use_tls(mut self, tls: bool) -> Self {
        self.tls = tls;
        self
    }

    /// The name that the server's certificate must have. Default: the host's (1.10).
    pub fn tls_server_name(mut self, name: impl Into<Arc<str>>) -> Self {
        self.tls_server_name = Some(name.into());
        self
    }

    /// Takes any certificate of the server. Default: only a valid one.
    #[doc(alias = "TLSSkipVerify")]
    pub fn danger_skip_tls_verify(mut self) -> Self {
        self.tls_skip_verify = true;
        self
    }

    /// The HTTP method. Default: GET.
    pub fn method(mut self, method: impl Into<Arc<str>>) -> Self {
        self.method = Some(method.into());
        self
    }

    /// A header to send; call it again for more. Default: none.
    ///
    /// Everybody who may read the agent's configuration can read it: put no secret into it.
    pub fn header(mut self, name: impl Into<Arc<str>>, value: impl Into<Arc<str>>) -> Self {
        self.headers
            .entry(name.into())
            .or_default()
            .push(value.into());
        self
    }

    /// The body to send. Default: none (1.7.3).
    pub fn body(mut self, body: impl Into<Arc<str>>) -> Self {
        self.body = Some(body.into());
        self
    }

    /// Takes a redirect for the answer. Default: it is followed (1.9.17, 1.10.10, 1.11.5).
    pub fn disable_redirects(mut self) -> Self {
        self.disable_redirects = true;
        self
    }

    /// The shell that runs the program in a Docker container. Default: `/bin/sh`.
    pub fn shell(mut self, shell: impl Into<Arc<str>>) -> Self {
        self.shell = Some(shell.into());
        self
    }

    /// The TTL, if it is a TTL check.
    pub(crate) fn ttl_of(&self) -> Option<Duration> {
        match self.kind {
            Kind::Ttl(ttl) => Some(ttl),
            _ => None,
        }
    }

    /// Whether its author said that nothing but the process stands behind it.
    pub(crate) fn is_alive_only(&self) -> bool {
        self.behind == Behind::Process
    }

    pub(crate) fn explicit_id(&self) -> Option<&Arc<str>> {
        self.id.as_ref()
    }

    pub(crate) fn initial_status(&self) -> Option<Status> {
        self.status
    }

    /// The check as a registration of its own.
    pub(super) fn of<'a>(&'a self, service: Option<&'a ServiceId>) -> impl Serialize + 'a {
        struct Lone<'a>(&'a CheckDefinition, Option<&'a ServiceId>);

        impl Serialize for Lone<'_> {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                let mut map = serializer.serialize_map(None)?;
                if let Some(service) = self.1 {
                    map.serialize_entry("ServiceID", service)?;
                }
                self.0.entries("ID", &mut map)?;
                map.end()
            }
        }

        Lone(self, service)
    }

    /// Writes what is set, and nothing else.
    fn entries<M: SerializeMap>(&self, id: &'static str, map: &mut M) -> Result<(), M::Error> {
        let mut text = |name, value: &Option<Arc<str>>| match value {
            Some(value) => map.serialize_entry(name, &**value),
            None => Ok(()),
        };
        text(id, &self.id)?;
        text("Name", &self.name)?;
        text("Notes", &self.notes)?;
        text("TLSServerName", &self.tls_server_name)?;
        text("Method", &self.method)?;
        text("Body", &self.body)?;
        text("Shell", &self.shell)?;
        let (name, target, args): (_, Option<&Arc<str>>, &[Arc<str>]) = match &self.kind {
            Kind::Ttl(_) => ("TTL", None, &[]),
            Kind::Http(url, _) => ("HTTP", Some(url), &[]),
            Kind::Tcp(address, _) => ("TCP", Some(address), &[]),
            Kind::Udp(address, _) => ("UDP", Some(address), &[]),
            Kind::Grpc(address, _) => ("GRPC", Some(address), &[]),
            Kind::H2Ping(address, _) => ("H2PING", Some(address), &[]),
            Kind::Script(args, _) => ("ScriptArgs", None, args),
            Kind::Docker(container, args, _) => ("DockerContainerID", Some(container), args),
            Kind::OsService(name, _) => ("OSService", Some(name), &[]),
            Kind::AliasService(id) => ("AliasService", Some(id), &[]),
            Kind::AliasNode(node) => ("AliasNode", Some(node), &[]),
        };
        if let Some(target) = target {
            map.serialize_entry(name, &**target)?;
        }
        if !args.is_empty() {
            map.serialize_entry("ScriptArgs", args)?;
        }
        let mut time = |name, value: Option<Duration>| match value {
            Some(value) => map.serialize_entry(name, &duration::format(value)),
            None => Ok(()),
        };
        time("TTL", self.ttl_of())?;
        time("Interval", self.kind.interval())?;
        time("Timeout", self.timeout)?;
        time(
            "DeregisterCriticalServiceAfter",
            self.deregister_critical_service_after,
        )?;
        if let Some(status) = self.status {
            map.serialize_entry("Status", status.as_str())?;
        }
        let mut number = |name, value: Option<u32>| match value {
            Some(value) => map.serialize_entry(name, &value),
            None => Ok(()),
        };
        number("SuccessBeforePassing", self.success_before_passing)?;
        number("FailuresBeforeWarning", self.failures_before_warning)?;
        number("FailuresBeforeCritical", self.failures_before_critical)?;
        number("OutputMaxSize", self.output_max_size)?;
        if !self.headers.is_empty() {
            map.serialize_entry("Header", &self.headers)?;
        }
        let mut flag = |name, value: bool| match value {
            true => map.serialize_entry(name, &true),
            false => Ok(()),
        };
        flag("TLSSkipVerify", self.tls_skip_verify)?;
        flag("DisableRedirects", self.disable_redirects)?;
        match &self.kind {
            Kind::Tcp(..) => flag("TCPUseTLS", self.tls),
            Kind::Grpc(..) => flag("GRPCUseTLS", self.tls),
            // Its default is true, so that the exception is what is sent.
            Kind::H2Ping(..) if !self.tls => map.serialize_entry("H2PingUseTLS", &false),
            _ => Ok(()),
        }
    }
}

impl Serialize for CheckDefinition {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        self.entries("CheckID", &mut map)?;
        map.end()
    }
}
