//! The agent's own endpoints: what is registered with it, and heartbeats.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use http::header::CONTENT_TYPE;
use http::{HeaderValue, StatusCode};
use serde::Serialize;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::Call;
use super::decode::Fields;
use super::definition::{CheckDefinition, ServiceDefinition};
use super::fields;
use super::query::{Options, go_bool, parse_wait};
use super::reply::{self, Refusal, Reply};
use super::views::{AgentServiceView, CheckView};
use crate::embedded::state::local::LocalCheck;
use crate::embedded::state::model::{CRITICAL, PASSING, Service, WARNING, status};
use crate::embedded::state::{ExistingChecks, Identity, Leader, State, VERSION};

type Outcome = Result<Reply, Refusal>;

impl Call {
    pub(super) fn agent_self(&self) -> Reply {
        let locked = self.core.lock();
        let (state, identity) = (&locked.state, &locked.state.identity);
        let ttls = state
            .local
            .checks()
            .filter(|check| check.expires_at.is_some());
        let leader = state.leader == Leader::Elected;
        let told = json!({
            "Config": {
                "Datacenter": identity.datacenter,
                "NodeName": identity.node,
                "NodeID": identity.node_id,
                "Revision": "",
                "Server": true,
                "Version": VERSION,
            },
            "DebugConfig": {
                "ACLsEnabled": false,
                "Datacenter": identity.datacenter,
                "DNSDomain": "consul.",
                "DevMode": true,
                "NodeID": identity.node_id,
                "NodeName": identity.node,
                "ServerMode": true,
                "Version": VERSION,
            },
            "Coord": {
                "Vec": [0, 0, 0, 0, 0, 0, 0, 0],
                "Error": 1.5,
                "Adjustment": 0,
                "Height": 0.00001,
            },
            "Member": member(identity),
            "Stats": {
                "agent": {
                    "check_monitors": "0",
                    "check_ttls": ttls.count().to_string(),
                    "checks": state.local.checks().count().to_string(),
                    "services": state.local.services.len().to_string(),
                },
                "build": { "prerelease": "", "revision": "", "version": VERSION },
                "consul": {
                    "acl": "disabled",
                    "bootstrap": "false",
                    "known_datacenters": "1",
                    "leader": leader.to_string(),
                    "leader_addr": if leader { server_address(identity) } else { String::new() },
                    "server": "true",
                },
                "raft": {
                    "applied_index": state.index().to_string(),
                    "commit_index": state.index().to_string(),
                    "state": if leader { "Leader" } else { "Follower" },
                },
            },
            "Meta": { "consul-network-segment": "" },
        });
        reply::json(&told, self.layout())
    }

    pub(super) fn agent_members(&self) -> Reply {
        let member = member(&self.core.lock().state.identity);
        reply::json(&[member], self.layout())
    }

    /// The last answer of an agent that leaves.
    pub(super) fn agent_leave(&self) -> Reply {
        self.core.leave();
        reply::empty(StatusCode::OK)
    }

    pub(super) fn agent_services(&self) -> Outcome {
        let filter = self.filter(fields::SERVICE)?;
        let locked = self.core.lock();
        let services: BTreeMap<&str, AgentServiceView<'_>> = locked
            .state
            .local
            .services
            .iter()
            .map(|(id, service)| (id.as_str(), AgentServiceView::new(service)))
            .filter(|(_, service)| filter.as_ref().is_none_or(|it| it.allows(service)))
            .collect();
        Ok(reply::json(&services, self.layout()))
    }

    pub(super) fn agent_checks(&self) -> Outcome {
        let filter = self.filter(fields::CHECK)?;
        let locked = self.core.lock();
        let checks: BTreeMap<&str, CheckView<'_>> = locked
            .state
            .local
            .checks()
            .map(|local| (local.check.id.as_str(), CheckView::new(&local.check)))
            .filter(|(_, check)| filter.as_ref().is_none_or(|it| it.allows(check)))
            .collect();
        Ok(reply::json(&checks, self.layout()))
    }

    /// One service with a hash of its definition, by which it can be watched.
    pub(super) async fn agent_service(&self) -> Outcome {
        let (wait, _) = parse_wait(&self.params)?;
        let known = self.params.value("hash").to_owned();
        let _open = (!known.is_empty()).then(|| self.core.traffic.open(&self.path));
        let mut changes = self.core.subscribe();
        let mut deadline = None;
        loop {
            let wake_at = {
                let now = Instant::now();
                let mut locked = self.core.lock();
                changes.mark_unchanged();
                let deadline = *deadline
                    .get_or_insert_with(|| now + wait + locked.state.random_part(wait / 16));
                let Some(service) = locked.state.local.services.get(&self.rest) else {
                    let text = format!("unknown service ID: {}", self.rest);
                    return Err(Refusal::new(StatusCode::NOT_FOUND, text));
                };
                let hash = content_hash(service);
                if known != hash || now >= deadline {
                    let view = AgentServiceView::new(service).with_hash(&hash);
                    let mut reply = reply::json(&view, self.layout());
                    reply::set(&mut reply, "x-consul-contenthash", &hash);
                    return Ok(reply);
                }
                locked
                    .state
                    .next_due()
                    .map_or(deadline, |due| due.min(deadline))
            };
            tokio::select! {
                changed = changes.changed() => {
                    if changed.is_err() {
                        // The sender is part of the core, which this call holds.
                        return Err(Refusal::internal("agent stopped"));
                    }
                }
                () = tokio::time::sleep_until(wake_at) => {}
            }
        }
    }

    pub(super) fn agent_health_by_id(&self) -> Outcome {
        if self.rest.is_empty() {
            return Err(Refusal::internal("Bad request: Missing serviceID"));
        }
        let locked = self.core.lock();
        let Some(service) = locked.state.local.services.get(&self.rest) else {
            let reason = format!("ServiceId {} not found", self.rest);
            if self.wants_text() {
                // Of all the texts Consul 1.8.7 writes this one as a JSON string.
                return Ok(self.health_reply(&reason, StatusCode::NOT_FOUND, &reason, Form::Json));
            }
            let unknown = ServiceHealth {
                aggregated_status: CRITICAL,
                service: None,
                checks: None,
            };
            return Ok(self.health_reply(&unknown, StatusCode::NOT_FOUND, &reason, Form::Asked));
        };
        let health = ServiceHealth::new(&locked.state, service);
        let verdict = health.aggregated_status;
        Ok(self.health_reply(&health, health_status(verdict), verdict, Form::Asked))
    }

    pub(super) fn agent_health_by_name(&self) -> Outcome {
        if self.rest.is_empty() {
            return Err(Refusal::internal("Bad request: Missing service Name"));
        }
        let locked = self.core.lock();
        let found: Vec<ServiceHealth<'_>> = locked
            .state
            .local
            .services
            .values()
            .filter(|service| service.name == self.rest)
            .map(|service| ServiceHealth::new(&locked.state, service))
            .collect();
        let worst = found
            .iter()
            .map(|health| health.aggregated_status)
            .max_by_key(|verdict| severity(verdict));
        Ok(match worst {
            Some(verdict) => {
                self.health_reply(&found, health_status(verdict), verdict, Form::Asked)
            }
            None => {
                let reason = format!("ServiceName {} Not Found", self.rest);
                self.health_reply(&found, StatusCode::NOT_FOUND, &reason, Form::Asked)
            }
        })
    }

    fn wants_text(&self) -> bool {
        self.params.value("format") == "text"
    }

    /// The status code is the verdict; the body is for whoever wants to know more.
    fn health_reply<T: Serialize>(
        &self,
        body: &T,
        status: StatusCode,
        reason: &str,
        form: Form,
    ) -> Reply {
        let mut reply = if form == Form::Asked && self.wants_text() {
            let mut reply = reply::text_reply(status, reason);
            reply
                .headers_mut()
                .insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
            reply
        } else {
            reply::json(body, self.layout())
        };
        *reply.status_mut() = status;
        reply::set(&mut reply, "x-consul-reason", reason);
        reply
    }

    pub(super) fn service_register(&self) -> Outcome {
        let definition = ServiceDefinition::parse(&self.body)?;
        let existing = if self.params.has("replace-existing-checks") {
            ExistingChecks::Replace
        } else {
            ExistingChecks::Keep
        };
        self.core.lock().state.register_service(
            definition.service,
            definition.checks,
            existing,
            Self::now(),
        );
        Ok(reply::empty(StatusCode::OK))
    }

    pub(super) fn service_deregister(&self) -> Outcome {
        if self.rest.is_empty() {
            return Err(Refusal::internal("ServiceID missing"));
        }
        let now = Self::now();
        self.core.lock().state.deregister_service(&self.rest, now);
        Ok(reply::empty(StatusCode::OK))
    }

    pub(super) fn service_maintenance(&self) -> Outcome {
        if self.rest.is_empty() {
            return Err(Refusal::bad_request("Missing service ID"));
        }
        let reason = self.maintenance_reason()?;
        let mut locked = self.core.lock();
        let known = locked
            .state
            .service_maintenance(&self.rest, reason, Self::now());
        if known {
            return Ok(reply::empty(StatusCode::OK));
        }
        let text = format!("No service registered with ID {:?}", self.rest);
        Err(Refusal::new(StatusCode::NOT_FOUND, text))
    }

    pub(super) fn node_maintenance(&self) -> Outcome {
        let reason = self.maintenance_reason()?;
        let now = Self::now();
        self.core.lock().state.node_maintenance(reason, now);
        Ok(reply::empty(StatusCode::OK))
    }

    /// The reason for maintenance, or `None` to end it.
    fn maintenance_reason(&self) -> Result<Option<&str>, Refusal> {
        let Some(enable) = self.params.first("enable") else {
            return Err(Refusal::bad_request("Missing value for enable"));
        };
        match go_bool(enable) {
            Some(true) => Ok(Some(self.params.value("reason"))),
            Some(false) => Ok(None),
            None => Err(Refusal::bad_request(format!(
                "Invalid value for enable: {enable:?}"
            ))),
        }
    }

    pub(super) fn check_register(&self) -> Outcome {
        let check = CheckDefinition::parse(&self.body)?;
        let mut locked = self.core.lock();
        let service = &check.service_id;
        if !service.is_empty() && !locked.state.local.services.contains_key(service) {
            let text = format!("ServiceID {service:?} does not exist");
            return Err(Refusal::internal(text));
        }
        locked.state.register_check(check, Self::now());
        Ok(reply::empty(StatusCode::OK))
    }

    pub(super) fn check_deregister(&self) -> Outcome {
        if self.rest.is_empty() {
            return Err(Refusal::internal("CheckID missing"));
        }
        let now = Self::now();
        self.core.lock().state.deregister_check(&self.rest, now);
        Ok(reply::empty(StatusCode::OK))
    }

    pub(super) fn check_update(&self) -> Outcome {
        let mut fields = Fields::parse_as("checkUpdate", &self.body)?;
        let given = fields.string(&["Status"])?;
        let output = fields.string(&["Output"])?;
        fields.finish()?;
        if !matches!(given.as_str(), PASSING | WARNING | CRITICAL) {
            let text = format!("Invalid check status: '{given}'");
            return Err(Refusal::bad_request(text));
        }
        self.heartbeat(&given, &output)
    }

    pub(super) fn check_note(&self, given: &'static str) -> Outcome {
        self.heartbeat(given, self.params.value("note"))
    }

    fn heartbeat(&self, given: &str, output: &str) -> Outcome {
        self.core
            .lock()
            .state
            .heartbeat(&self.rest, status(given), output, Self::now())
            .map(|()| reply::empty(StatusCode::OK))
            .map_err(|refused| Refusal::internal(refused.to_string()))
    }

    pub(super) fn status_leader(&self) -> Outcome {
        Options::parse(&self.params, &self.headers)?;
        self.check_datacenter(self.params.value("dc"))?;
        let locked = self.core.lock();
        let address = match locked.state.leader {
            Leader::Elected => server_address(&locked.state.identity),
            Leader::Lost { .. } => String::new(),
        };
        Ok(reply::json(&address, self.layout()))
    }

    pub(super) fn status_peers(&self) -> Outcome {
        Options::parse(&self.params, &self.headers)?;
        self.check_datacenter(self.params.value("dc"))?;
        let address = server_address(&self.core.lock().state.identity);
        Ok(reply::json(&[address], self.layout()))
    }
}

/// How a verdict is written.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Form {
    /// As the request wishes.
    Asked,
    Json,
}

/// What one service's checks and the node's amount to.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct ServiceHealth<'a> {
    aggregated_status: &'static str,
    service: Option<AgentServiceView<'a>>,
    checks: Option<Vec<CheckView<'a>>>,
}

impl<'a> ServiceHealth<'a> {
    fn new(state: &'a State, service: &'a Service) -> Self {
        let own = state.local.checks_of(&service.id);
        let checks: Vec<&LocalCheck> = state.local.checks_of("").chain(own).collect();
        let verdict = checks
            .iter()
            .map(|local| verdict(local))
            .max_by_key(|verdict| severity(verdict));
        Self {
            aggregated_status: verdict.unwrap_or(PASSING),
            service: Some(AgentServiceView::new(service)),
            checks: Some(
                checks
                    .into_iter()
                    .map(|local| CheckView::local_health(&local.check))
                    .collect(),
            ),
        }
    }
}

const MAINTENANCE: &str = "maintenance";

fn verdict(local: &LocalCheck) -> &'static str {
    // By its ID, whatever registered it (measured on 1.8.7).
    let id = &local.check.id;
    if id == "_node_maintenance" || id.starts_with("_service_maintenance:") {
        return MAINTENANCE;
    }
    match &*local.check.status {
        PASSING => PASSING,
        WARNING => WARNING,
        _ => CRITICAL,
    }
}

fn severity(verdict: &str) -> u8 {
    match verdict {
        PASSING => 0,
        WARNING => 1,
        CRITICAL => 2,
        _ => 3,
    }
}

fn health_status(verdict: &str) -> StatusCode {
    match verdict {
        PASSING => StatusCode::OK,
        WARNING => StatusCode::TOO_MANY_REQUESTS,
        _ => StatusCode::SERVICE_UNAVAILABLE,
    }
}

/// Changes with the definition of a service and not with its health.
fn content_hash(service: &Service) -> String {
    // Good for equality only, as Consul's own: its text is the answer's.
    let mut hasher = DefaultHasher::new();
    match serde_json::to_vec(&AgentServiceView::new(service)) {
        Ok(text) => text.hash(&mut hasher),
        Err(error) => error.to_string().hash(&mut hasher),
    }
    format!("{:x}", hasher.finish())
}

fn server_address(identity: &Identity) -> String {
    format!("{}:{}", identity.address, identity.server_port)
}

fn member(identity: &Identity) -> Value {
    json!({
        "Name": identity.node,
        "Addr": identity.address,
        "Port": identity.serf_port,
        "Tags": {
            "acls": "0",
            "build": format!("{VERSION}:"),
            "dc": identity.datacenter,
            "ft_fs": "1",
            "id": identity.node_id,
            "port": identity.server_port.to_string(),
            "raft_vsn": "3",
            "role": "consul",
            "segment": "",
            "vsn": "2",
            "vsn_max": "3",
            "vsn_min": "2",
            "wan_join_port": identity.serf_port.saturating_add(1).to_string(),
        },
        "Status": 1,
        "ProtocolMin": 1,
        "ProtocolMax": 5,
        "ProtocolCur": 2,
        "DelegateMin": 2,
        "DelegateMax": 5,
        "DelegateCur": 4,
    })
}
