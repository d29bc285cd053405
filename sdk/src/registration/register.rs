//! The beginning of a registration.

use std::fmt;
use std::future::IntoFuture;
use std::pin::Pin;
use std::sync::Arc;

use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot, watch};

use super::badge::Badges;
use super::crowd::{Crowd, Member};
use super::desired::{Desired, chosen};
use super::gate::{NOT_READY, Turn};
use super::history::Log;
use super::keeper::{Keeper, Terms};
use super::mark::OnConflict;
use super::{Definition, Registration, State, closed};
use crate::api::agent::ServiceDefinition;
use crate::client::Client;
use crate::error::{Error, ErrorKind, Result};
use crate::probe::{Probe, Rounds};
use crate::task::Worker;

impl Client {
    /// Registers a service and keeps it registered: await what this gives.
    ///
    /// A definition without an ID gets one: the name, the address if there is one, and the port;
    /// without a port the name and a random number. Checks that an earlier registration of the
    /// same ID had and this one has not are removed; a maintenance that is on stays on.
    ///
    /// What a TTL check says is its author's choice, and has to be one: [probes](Register::probe),
    /// [`alive_only`](crate::api::agent::CheckDefinition::alive_only), or an initial
    /// [`status`](crate::api::agent::CheckDefinition::status) from which
    /// [`Registration::set_status`] goes on.
    pub fn register(&self, service: ServiceDefinition) -> Register {
        Register {
            client: self.clone(),
            service,
            probes: Vec::new(),
            is_ready: true,
            starts_anyway: false,
            on_conflict: OnConflict::default(),
            lineage: None,
        }
    }
}

/// A registration that begins when it is awaited.
///
/// Made by [`Client::register`](crate::Client::register).
#[must_use = "nothing is registered before it is awaited"]
pub struct Register {
    client: Client,
    service: ServiceDefinition,
    probes: Vec<Probe>,
    is_ready: bool,
    starts_anyway: bool,
    on_conflict: OnConflict,
    lineage: Option<Arc<str>>,
}

impl Register {
    /// Adds a probe, by which the service's TTL checks say how it is.
    ///
    /// The worst of all probes counts, and of them and what is
    /// [said](Registration::set_status) or initially the case. See [`probe`](crate::probe).
    /// Default: none.
    pub fn probe(mut self, probe: Probe) -> Self {
        self.probes.push(probe);
        self
    }

    /// Registers the service as one that is not to be found yet, until
    /// [`Registration::ready`] is called.
    ///
    /// For a service that has to warm up, and for one that must be registered before it can serve.
    /// Between registration and `ready` no look-up by health finds it, not for a moment.
    /// Default: ready from the start.
    pub fn not_ready(mut self) -> Self {
        self.is_ready = false;
        self
    }

    /// Starts although the agent cannot be reached or denies it, and goes on trying.
    ///
    /// For a service that can do without being found for a while: the registration that is returned
    /// is [healing](State::Healing) or [denied](State::Denied), and is registered as soon as the agent
    /// takes it. What a repetition does not change, such as a definition that the agent refuses, is
    /// an error still. Default: the first failure is returned, so that a wrong address or token is
    /// noticed at the start.
    pub fn starts_anyway(mut self) -> Self {
        self.starts_anyway = true;
        self
    }

    /// What is done when somebody else registers the same ID on the same agent.
    ///
    /// Default: [`OnConflict::YieldToNewer`].
    pub fn on_conflict(mut self, policy: OnConflict) -> Self {
        self.on_conflict = policy;
        self
    }

    /// Says whose place the service takes: what is left on this agent of the same service and the
    /// same lineage, by another process and under another ID, is deregistered at the start.
    ///
    /// For a service whose ID is another one at each start, because its port is. The name must be
    /// one that an instance keeps over its restarts and that no other on the same agent has: of its
    /// unit, its container, its slot. It stands in the metadata `lictor-lineage`. Range: 1 to 512
    /// bytes. Default: none, and nothing is removed.
    pub fn lineage(mut self, name: impl Into<Arc<str>>) -> Self {
        self.lineage = Some(name.into());
        self
    }

    /// Registers the service.
    ///
    /// When it returns, the agent has the service with the status that it was defined with, and
    /// has told the servers if it can reach them. A TTL check passes from the start, unless its
    /// definition [says otherwise](crate::api::agent::CheckDefinition::status): then
    /// [`Registration::set_status`] says when the service is ready. With
    /// [probes](Self::probe) each is run once before, and the check says what they found.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Invalid`] if Consul would misread the definition, if a probe has settings that
    /// cannot work, if there are probes and no TTL check, or a plain TTL check and nothing that says
    /// how the service is; [`ErrorKind::NoRuntime`]
    /// outside of a Tokio runtime, [`ErrorKind::Refused`] if the agent is too old for a field that
    /// is set, and whatever else the first registration or heartbeat fails with: it is not
    /// repeated, so that a wrong address or token is noticed at the start, unless it
    /// [starts anyway](Self::starts_anyway).
    ///
    /// # Cancel safety
    ///
    /// Dropping the future leaves no service behind: the task that registers it deregisters it,
    /// too.
    pub async fn send(self) -> Result<Registration> {
        let Self {
            client,
            service,
            probes,
            is_ready,
            starts_anyway,
            on_conflict,
            lineage,
        } = self;
        let runtime = Handle::try_current().map_err(|_| {
            Error::new(ErrorKind::NoRuntime)
                .context("a registration is kept up by a task: call this within a runtime")
        })?;
        let mut desired = Desired::new(service, rand::random())?;
        desired.nonce = rand::random();
        desired.lineage = lineage;
        desired.check_words()?;
        if !is_ready {
            desired.gate.turn(Turn::NotReady(NOT_READY.into()));
        }
        let id = desired.id.clone();
        for probe in &probes {
            let named = |err: Error| err.at(&format!("service {:?}", id.as_str()));
            probe.validate().map_err(named)?;
        }
        let has_ttl = |service: &ServiceDefinition| {
            let mut checks = service.checks_by_id();
            checks.any(|(_, check)| check.ttl_of().is_some())
        };
        if !probes.is_empty() && !has_ttl(&desired.definition) {
            return Err(Error::invalid(format!(
                "service {:?}: has probes and no TTL check to say by what they find: add \
                 `CheckDefinition::ttl(…)`, or say `SERVICE_CHECK_TTL` if it is from the environment",
                id.as_str()
            )));
        }
        chosen(&desired.definition, !probes.is_empty())?;
        let definition = Arc::new(Definition::new(desired.definition.clone()));
        let (state, mut states) = watch::channel(State::Registered);
        let (log, history) = Log::new();
        let (commands, inbox) = mpsc::channel(8);
        let (ready, registered) = oneshot::channel();
        let badges = Badges::new();
        let known = (Arc::clone(&definition), badges.clone());
        let (rounds, probed) = if probes.is_empty() {
            (None, None)
        } else {
            let (rounds, told) = Rounds::new(runtime.clone(), probes);
            let worker = Worker::spawn(&runtime, |stop| rounds.run(stop));
            (Some(worker), Some(told))
        };
        let terms = Terms {
            on_conflict,
            starts_anyway,
        };
        let member = Member::of(Crowd::of(&client));
        let client_and_crowd = (client.clone(), member);
        let keeper = Keeper::new(
            client_and_crowd,
            desired,
            known,
            probed,
            terms,
            (state, log),
        );
        // The task is there before the first request: who drops this future drops the worker.
        let worker = Worker::spawn(&runtime, |stop| keeper.run(stop, inbox, ready));
        registered.await.map_err(|_| closed(&id))??;
        // What it began with is no news; that it starts without the agent is.
        if states.borrow().is_registered() {
            states.mark_unchanged();
        }
        Ok(Registration {
            id,
            client,
            definition,
            badges,
            commands,
            states,
            history,
            rounds,
            worker,
        })
    }
}

impl IntoFuture for Register {
    type Output = Result<Registration>;
    type IntoFuture = Pin<Box<dyn Future<Output = Result<Registration>> + Send>>;

    /// The same as [`send`](Self::send).
    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.send())
    }
}

impl fmt::Debug for Register {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Register")
            .field("service", &self.service)
            .field("probes", &self.probes)
            .finish_non_exhaustive()
    }
}
