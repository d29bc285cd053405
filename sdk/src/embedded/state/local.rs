//! What the agent itself knows: the services and checks registered with it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::model::{Check, Service, Status};

/// A check as it was asked for; what was left out has its default.
#[derive(Clone, Debug, Default)]
pub(crate) struct CheckSpec {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) notes: String,
    pub(crate) service_id: String,
    pub(crate) status: Option<Status>,
    pub(crate) kind: CheckKind,
    pub(crate) ttl: Duration,
    /// Zero means never.
    pub(crate) deregister_after: Duration,
    /// Bytes of output that are kept.
    pub(crate) output_max: usize,
    /// How the agent runs it, if it does.
    pub(crate) run: Option<Run>,
}

/// A check that the agent runs.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Run {
    pub(crate) way: Way,
    pub(crate) interval: Duration,
    pub(crate) timeout: Duration,
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Way {
    Tcp(String),
    Http { url: String, method: String },
}

/// Who decides the status of a check.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) enum CheckKind {
    /// The service itself, by a heartbeat.
    #[default]
    Ttl,
    Http,
    Tcp,
    Grpc,
    Docker,
    Alias,
    Maintenance,
}

impl fmt::Display for CheckKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ttl => "ttl",
            Self::Http => "http",
            Self::Tcp => "tcp",
            Self::Grpc => "grpc",
            Self::Docker => "docker",
            Self::Alias => "alias",
            Self::Maintenance => "maintenance",
        })
    }
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Local {
    pub(crate) services: BTreeMap<String, Arc<Service>>,
    checks: BTreeMap<String, LocalCheck>,
    /// (Service ID, check ID).
    by_service: BTreeSet<(String, String)>,
}

#[derive(Clone, Debug)]
pub(crate) struct LocalCheck {
    pub(crate) check: Arc<Check>,
    pub(crate) kind: CheckKind,
    pub(crate) ttl: Duration,
    pub(crate) deregister_after: Duration,
    pub(crate) output_max: usize,
    pub(crate) run: Option<Run>,
    /// The output of the last heartbeat, told again when the next one is missed.
    pub(crate) last_output: String,
    pub(crate) expires_at: Option<Instant>,
    pub(crate) critical_since: Option<Instant>,
    pub(crate) reap_at: Option<Instant>,
    /// When an output that changed alone is told to the servers.
    pub(crate) tell_at: Option<Instant>,
}

impl Local {
    pub(crate) fn check(&self, id: &str) -> Option<&LocalCheck> {
        self.checks.get(id)
    }

    pub(crate) fn check_mut(&mut self, id: &str) -> Option<&mut LocalCheck> {
        self.checks.get_mut(id)
    }

    /// All checks by ID.
    pub(crate) fn checks(&self) -> impl Iterator<Item = &LocalCheck> {
        self.checks.values()
    }

    /// The checks of one service by ID; of the node itself when the ID is empty.
    pub(crate) fn checks_of(&self, service_id: &str) -> impl Iterator<Item = &LocalCheck> {
        let id = service_id.to_owned();
        self.by_service
            .range((id.clone(), String::new())..)
            .take_while(move |(service, _)| *service == id)
            .filter_map(|(_, check)| self.checks.get(check))
    }

    /// The IDs of the checks of one service.
    pub(crate) fn check_ids_of(&self, service_id: &str) -> Vec<String> {
        self.checks_of(service_id)
            .map(|local| local.check.id.clone())
            .collect()
    }

    pub(crate) fn insert_check(&mut self, local: LocalCheck) {
        let id = local.check.id.clone();
        self.by_service
            .insert((local.check.service_id.clone(), id.clone()));
        self.checks.insert(id, local);
    }

    pub(crate) fn remove_check(&mut self, id: &str) -> Option<LocalCheck> {
        let local = self.checks.remove(id)?;
        self.by_service
            .remove(&(local.check.service_id.clone(), id.to_owned()));
        Some(local)
    }
}
