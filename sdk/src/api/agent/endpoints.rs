//! What the agent's answers mean.

use std::collections::BTreeMap;
use std::sync::Arc;

use http::StatusCode;

use super::health::{self, LocalHealth, LocalHealthOfName};
use super::{About, AgentService, Member};
use crate::api::Endpoint;
use crate::api::endpoint::Answered;
use crate::api::model::Check;
use crate::error::{Error, ErrorKind, Result};
use crate::ident::{CheckId, ServiceId};

/// The agent's view of itself: [`Agent::about`](super::Agent::about).
#[derive(Clone, Debug)]
pub struct GetAbout(pub(super) ());

impl Endpoint for GetAbout {
    type Output = About;

    fn interpret(&self, answer: Answered) -> Result<About> {
        answer.good()?.decode()
    }
}

/// The members of the cluster: [`Agent::members`](super::Agent::members).
#[derive(Clone, Debug)]
pub struct GetMembers(pub(super) ());

impl Endpoint for GetMembers {
    type Output = Vec<Member>;

    fn interpret(&self, answer: Answered) -> Result<Vec<Member>> {
        answer.good()?.json()
    }
}

/// The agent's services: [`Agent::services`](super::Agent::services).
#[derive(Clone, Debug)]
pub struct GetServices(pub(super) ());

impl Endpoint for GetServices {
    type Output = BTreeMap<ServiceId, Arc<AgentService>>;

    fn interpret(&self, answer: Answered) -> Result<Self::Output> {
        answer.good()?.json()
    }
}

/// The agent's checks: [`Agent::checks`](super::Agent::checks).
#[derive(Clone, Debug)]
pub struct GetChecks(pub(super) ());

impl Endpoint for GetChecks {
    type Output = BTreeMap<CheckId, Arc<Check>>;

    fn interpret(&self, answer: Answered) -> Result<Self::Output> {
        answer.good()?.json()
    }
}

/// One service by its ID: [`Agent::service`](super::Agent::service).
#[derive(Clone, Debug)]
pub struct GetService(pub(super) ());

impl Endpoint for GetService {
    type Output = Option<AgentService>;

    fn interpret(&self, answer: Answered) -> Result<Self::Output> {
        let raw = answer.0;
        if raw.status == StatusCode::NOT_FOUND {
            // Only Consul's own words count: a 404 of something that stands in between does not
            // mean that the service is gone.
            let err = raw.error();
            return match err.kind() {
                ErrorKind::UnknownService => Ok(None),
                _ => Err(err),
            };
        }
        raw.good()?.decode().map(Some)
    }
}

/// The health of one service by ID: [`Agent::health_by_id`](super::Agent::health_by_id).
#[derive(Clone, Debug)]
pub struct GetHealthById(pub(super) ());

impl Endpoint for GetHealthById {
    type Output = Option<LocalHealth>;

    fn interpret(&self, answer: Answered) -> Result<Self::Output> {
        match health::status(&answer.0) {
            // `{"AggregatedStatus":"critical","Service":null,"Checks":null}`
            health::Told::Unknown => Ok(None),
            health::Told::Status(_) => answer.0.decode().map(Some),
            health::Told::Failure => Err(unexpected_success(answer)),
        }
    }
}

/// The health of one service by name: [`Agent::health_by_name`](super::Agent::health_by_name).
#[derive(Clone, Debug)]
pub struct GetHealthByName(pub(super) ());

impl Endpoint for GetHealthByName {
    type Output = Option<LocalHealthOfName>;

    fn interpret(&self, answer: Answered) -> Result<Self::Output> {
        match health::status(&answer.0) {
            health::Told::Unknown => Ok(None),
            health::Told::Status(status) => {
                Ok(Some(LocalHealthOfName::new(status, answer.0.json()?)))
            }
            health::Told::Failure => Err(unexpected_success(answer)),
        }
    }
}

fn unexpected_success(answer: Answered) -> Error {
    match answer.good() {
        Err(err) => err,
        Ok(raw) => raw.unexpected("a success without health"),
    }
}

/// The registration of a service: [`Agent::register`](super::Agent::register).
#[derive(Clone, Debug)]
pub struct Register(pub(super) ());

/// The removal of a service: [`Agent::deregister`](super::Agent::deregister).
#[derive(Clone, Debug)]
pub struct Deregister(pub(super) ());

/// A switch of maintenance: [`Agent::enable_service_maintenance`](super::Agent::enable_service_maintenance) and its kin.
#[derive(Clone, Debug)]
pub struct Maintenance(pub(super) ());

/// The registration of a check: [`Agent::register_check`](super::Agent::register_check).
#[derive(Clone, Debug)]
pub struct RegisterCheck(pub(super) ());

/// The removal of a check: [`Agent::deregister_check`](super::Agent::deregister_check).
#[derive(Clone, Debug)]
pub struct DeregisterCheck(pub(super) ());

/// A heartbeat: [`Agent::update_check`](super::Agent::update_check).
#[derive(Clone, Debug)]
pub struct UpdateCheck(pub(super) ());

macro_rules! answers_nothing {
    ($($endpoint:ty),*) => {$(
        impl Endpoint for $endpoint {
            type Output = ();

            fn interpret(&self, answer: Answered) -> Result<()> {
                answer.good().map(drop)
            }
        }
    )*};
}

answers_nothing!(
    Register,
    Deregister,
    Maintenance,
    RegisterCheck,
    DeregisterCheck,
    UpdateCheck
);
