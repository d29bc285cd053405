//! How a service is, as its own agent sees it.

use std::sync::Arc;

use http::StatusCode;
use serde::Deserialize;

use super::AgentService;
use crate::api::model::{Check, Status};
use crate::client::Raw;
use crate::proto::json;

/// One instance with its checks, and what they come to.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "PascalCase")]
pub struct LocalHealth {
    #[serde(rename = "AggregatedStatus")]
    status: Status,
    service: Arc<AgentService>,
    #[serde(default, deserialize_with = "json::list")]
    checks: Box<[Arc<Check>]>,
}

impl LocalHealth {
    /// What its checks and those of the node come to; maintenance stands above all.
    #[must_use]
    #[doc(alias = "AggregatedStatus")]
    pub fn status(&self) -> Status {
        self.status
    }

    /// The instance.
    #[must_use]
    pub fn service(&self) -> &Arc<AgentService> {
        &self.service
    }

    /// Its checks and those of the node.
    #[must_use]
    pub fn checks(&self) -> &[Arc<Check>] {
        &self.checks
    }
}

/// All instances of one name on one agent.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct LocalHealthOfName {
    status: Status,
    instances: Vec<LocalHealth>,
}

impl LocalHealthOfName {
    pub(super) fn new(status: Status, instances: Vec<LocalHealth>) -> Self {
        Self { status, instances }
    }

    /// The worst status of the instances.
    #[must_use]
    pub fn status(&self) -> Status {
        self.status
    }

    /// The instances.
    #[must_use]
    pub fn instances(&self) -> &[LocalHealth] {
        &self.instances
    }
}

/// What an answer about local health tells by its status.
pub(super) enum Told {
    Status(Status),
    /// The agent has no such service.
    Unknown,
    /// Not an answer of this endpoint.
    Failure,
}

/// Here, the HTTP status is the result: 200, 429, 503 and 404 mean passing, warning, critical or
/// in maintenance, and unknown. All of them have `X-Consul-Reason`, by which a 429 that asks for
/// fewer connections and a 503 of a proxy in between are told apart.
pub(super) fn status(raw: &Raw) -> Told {
    // It repeats the ID as it is, in any alphabet.
    let reason = raw
        .headers
        .get("x-consul-reason")
        .map(|reason| reason.as_bytes());
    match (raw.status, reason) {
        (StatusCode::OK, _) => Told::Status(Status::Passing),
        (StatusCode::TOO_MANY_REQUESTS, Some(_)) => Told::Status(Status::Warning),
        (StatusCode::SERVICE_UNAVAILABLE, Some(b"maintenance")) => {
            Told::Status(Status::Maintenance)
        }
        (StatusCode::SERVICE_UNAVAILABLE, Some(_)) => Told::Status(Status::Critical),
        (StatusCode::NOT_FOUND, Some(_)) => Told::Unknown,
        _ => Told::Failure,
    }
}
