//! The agent: `/v1/agent`.
//!
//! What an agent says here is its own view of its own services and checks. It answers without any
//! server, and nothing that it says can be stale. Services are registered here, with the agent
//! that runs beside them; the agent tells the catalog.
//!
//! A registration that keeps itself alive, heals and deregisters is
//! [`Client::register`](crate::Client::register); the calls here are its parts.

mod about;
mod check;
mod definition;
mod endpoints;
mod health;
mod member;
mod service;
pub(crate) mod validity;

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

pub use about::{About, AboutConfig, Coordinate};
pub use check::CheckDefinition;
pub use definition::ServiceDefinition;
pub use endpoints::{
    Deregister, DeregisterCheck, GetAbout, GetChecks, GetHealthById, GetHealthByName, GetMembers,
    GetService, GetServices, Maintenance, Register, RegisterCheck, UpdateCheck,
};
pub use health::{LocalHealth, LocalHealthOfName};
pub use member::{Member, MemberStatus};
pub use service::AgentService;

use super::model::Status;
use super::{Read, Write};
use crate::client::Client;
use crate::error::Result;
use crate::ident::{CheckId, ServiceId, ServiceName};
use crate::proto::query::Target;

impl Client {
    /// The agent that this client talks to.
    #[must_use]
    pub fn agent(&self) -> Agent {
        Agent {
            client: self.clone(),
        }
    }
}

/// Calls to the agent about itself, its services and its checks.
///
/// # Examples
///
/// ```no_run
/// use std::time::Duration;
/// use lictor::api::agent::{CheckDefinition, ServiceDefinition};
///
/// # async fn example(client: lictor::Client) -> lictor::Result<()> {
/// let web = ServiceDefinition::new("web")
///     .id("web-1")
///     .port(8080)
///     .check(CheckDefinition::http("http://127.0.0.1:8080/health", Duration::from_secs(10)));
/// client.agent().register(&web).replace_existing_checks().await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Agent {
    client: Client,
}

impl Agent {
    /// The agent's configuration, its place in the cluster and its counters.
    #[doc(alias = "GET /v1/agent/self")]
    pub fn about(&self) -> Read<GetAbout> {
        self.read("/v1/agent/self", GetAbout(()))
    }

    /// The agents that this one knows by gossip.
    #[doc(alias = "GET /v1/agent/members")]
    pub fn members(&self) -> Read<GetMembers> {
        self.read("/v1/agent/members", GetMembers(()))
    }

    /// The services that are registered with this agent, by ID.
    #[doc(alias = "GET /v1/agent/services")]
    pub fn services(&self) -> Read<GetServices> {
        self.read("/v1/agent/services", GetServices(()))
    }

    /// The checks that are registered with this agent, by ID.
    #[doc(alias = "GET /v1/agent/checks")]
    pub fn checks(&self) -> Read<GetChecks> {
        self.read("/v1/agent/checks", GetChecks(()))
    }

    /// One service by its ID, or `None` if it is not registered with this agent.
    ///
    /// Can be [waited for](Read::wait_for_change_of).
    #[doc(alias = "GET /v1/agent/service/:id")]
    pub fn service(&self, id: impl Into<Arc<str>>) -> Read<GetService> {
        let id = ServiceId::new(id);
        Read::named(&self.client, "/v1/agent/service/", id, GetService(()))
    }

    /// How one service is, by its ID; `None` if it is not registered with this agent.
    #[doc(alias = "GET /v1/agent/health/service/id/:id")]
    pub fn health_by_id(&self, id: impl Into<Arc<str>>) -> Read<GetHealthById> {
        let path = "/v1/agent/health/service/id/";
        Read::named(&self.client, path, ServiceId::new(id), GetHealthById(()))
    }

    /// How this agent's instances of a service are; `None` if it has none.
    #[doc(alias = "GET /v1/agent/health/service/name/:name")]
    pub fn health_by_name(&self, name: impl Into<Arc<str>>) -> Read<GetHealthByName> {
        let path = "/v1/agent/health/service/name/";
        Read::named(
            &self.client,
            path,
            ServiceName::new(name),
            GetHealthByName(()),
        )
    }

    /// Registers a service, or replaces the one of the same ID.
    ///
    /// Registering again is harmless: an unchanged definition wakes no watcher, and a check that
    /// stays keeps its status. The agent tells the servers before it answers, as far as it can
    /// reach them; without a leader that takes it 7 s (measured).
    #[doc(alias = "PUT /v1/agent/service/register")]
    pub fn register(&self, service: &ServiceDefinition) -> Write<Register> {
        let write = self.write("/v1/agent/service/register", Register(()));
        match service.validate() {
            Ok(_) => write.json(service),
            Err(err) => write.refuse(err),
        }
    }

    /// Removes a service with its checks.
    ///
    /// An ID that the agent does not know is no error for an old Consul without ACLs, and
    /// [`ErrorKind::UnknownService`](crate::ErrorKind::UnknownService) for others.
    #[doc(alias = "PUT /v1/agent/service/deregister/:id")]
    pub fn deregister(&self, id: impl Into<Arc<str>>) -> Write<Deregister> {
        self.write_to(
            "/v1/agent/service/deregister/",
            ServiceId::new(id),
            Deregister(()),
        )
    }

    /// Takes a service out of rotation, for a reason that people will read.
    ///
    /// It becomes critical by one more check, whatever its own checks say.
    #[doc(alias = "PUT /v1/agent/service/maintenance/:id")]
    pub fn enable_service_maintenance(
        &self,
        id: impl Into<Arc<str>>,
        reason: impl AsRef<str>,
    ) -> Write<Maintenance> {
        self.service_maintenance(id, "true")
            .parameter("reason", reason.as_ref())
    }

    /// Puts a service back into rotation.
    pub fn disable_service_maintenance(&self, id: impl Into<Arc<str>>) -> Write<Maintenance> {
        self.service_maintenance(id, "false")
    }

    /// Takes all services of this agent's node out of rotation, for a reason that people will read.
    #[doc(alias = "PUT /v1/agent/maintenance")]
    pub fn enable_node_maintenance(&self, reason: impl AsRef<str>) -> Write<Maintenance> {
        self.write("/v1/agent/maintenance", Maintenance(()))
            .parameter("enable", "true")
            .parameter("reason", reason.as_ref())
    }

    /// Puts the services of this agent's node back into rotation.
    pub fn disable_node_maintenance(&self) -> Write<Maintenance> {
        self.write("/v1/agent/maintenance", Maintenance(()))
            .parameter("enable", "false")
    }

    /// Registers a check of the node.
    ///
    /// A critical check of the node takes all its services out of rotation.
    #[doc(alias = "PUT /v1/agent/check/register")]
    pub fn register_check(&self, check: &CheckDefinition) -> Write<RegisterCheck> {
        self.check_of(None, check)
    }

    /// Registers one more check of a service that is registered already.
    pub fn register_service_check(
        &self,
        service: impl Into<Arc<str>>,
        check: &CheckDefinition,
    ) -> Write<RegisterCheck> {
        match ServiceId::new(service) {
            Ok(service) => self.check_of(Some(&service), check),
            Err(err) => self
                .write("/v1/agent/check/register", RegisterCheck(()))
                .refuse(err),
        }
    }

    /// Removes a check.
    #[doc(alias = "PUT /v1/agent/check/deregister/:id")]
    pub fn deregister_check(&self, id: impl Into<Arc<str>>) -> Write<DeregisterCheck> {
        self.write_to(
            "/v1/agent/check/deregister/",
            CheckId::new(id),
            DeregisterCheck(()),
        )
    }

    /// Tells the result of a TTL check: a heartbeat.
    ///
    /// It is good for the check's TTL. Nobody is woken by one that repeats the last status and
    /// output; a changed output reaches the catalog minutes later, but then wakes every watcher of
    /// the service: put no time stamps into it. The agent keeps 4 KiB of it, unless the check says
    /// otherwise. Goes beside all other calls.
    ///
    /// Fails with [`ErrorKind::UnknownCheck`](crate::ErrorKind::UnknownCheck) if the agent has no such check, or none with a TTL.
    #[doc(alias = "PUT /v1/agent/check/update/:id")]
    #[doc(alias = "PUT /v1/agent/check/pass/:id")]
    #[doc(alias = "PUT /v1/agent/check/warn/:id")]
    #[doc(alias = "PUT /v1/agent/check/fail/:id")]
    pub fn update_check(
        &self,
        id: impl Into<Arc<str>>,
        status: Status,
        output: impl AsRef<str>,
    ) -> Write<UpdateCheck> {
        #[derive(Serialize)]
        #[serde(rename_all = "PascalCase")]
        struct Update<'a> {
            status: &'a str,
            output: &'a str,
        }

        let write = self
            .write_to("/v1/agent/check/update/", CheckId::new(id), UpdateCheck(()))
            .beat()
            .json(&Update {
                status: status.as_str(),
                output: output.as_ref(),
            });
        match validity::settable(status) {
            Ok(()) => write,
            Err(err) => write.refuse(err),
        }
    }

    fn read<E>(&self, path: &'static str, endpoint: E) -> Read<E> {
        Read::new(&self.client, Target::new(path), endpoint)
    }

    fn write<E>(&self, path: &'static str, endpoint: E) -> Write<E> {
        Write::put(&self.client, Target::new(path), endpoint)
    }

    fn write_to<E, N: AsRef<str>>(
        &self,
        path: &'static str,
        name: Result<N>,
        endpoint: E,
    ) -> Write<E> {
        Write::named(&self.client, path, name, endpoint)
    }

    fn service_maintenance(
        &self,
        id: impl Into<Arc<str>>,
        enable: &'static str,
    ) -> Write<Maintenance> {
        self.write_to(
            "/v1/agent/service/maintenance/",
            ServiceId::new(id),
            Maintenance(()),
        )
        .parameter("enable", enable)
    }

    fn check_of(
        &self,
        service: Option<&ServiceId>,
        check: &CheckDefinition,
    ) -> Write<RegisterCheck> {
        let write = self.write("/v1/agent/check/register", RegisterCheck(()));
        match validity::lone_check(service, check) {
            Ok(()) => write.json(&check.of(service)),
            Err(err) => write.refuse(err),
        }
    }
}

impl Read<GetMembers> {
    /// The servers of all datacenters. Default: the agents of the own one.
    ///
    /// An agent that is no server knows none.
    pub fn wan(self) -> Self {
        self.parameter("wan", "1")
    }

    /// Only agents of this network segment; `_all` means all (Consul Enterprise).
    pub fn segment(self, segment: impl AsRef<str>) -> Self {
        self.parameter("segment", segment.as_ref())
    }
}

impl Read<GetService> {
    /// Waits until the service's content hash is not `hash`, for at most `wait`.
    ///
    /// Take the hash from [`AgentService::content_hash`] of the last answer. A service that is
    /// deregistered meanwhile ends the wait at once, with `None`.
    ///
    /// Range of `wait`: 1 ms to 10 min. The call's deadline becomes `wait`, a sixteenth of it and
    /// 10 s.
    #[doc(alias = "hash")]
    pub fn wait_for_change_of(self, hash: impl AsRef<str>, wait: Duration) -> Self {
        self.block_on_hash(hash.as_ref(), wait)
    }
}

impl Write<Register> {
    /// Removes checks that the service has and the definition does not. Default: they stay.
    ///
    /// With it, registering is idempotent (Consul 1.6.5).
    #[doc(alias = "replace-existing-checks")]
    pub fn replace_existing_checks(self) -> Self {
        self.flag("replace-existing-checks")
    }
}

#[cfg(test)]
mod tests;
