//! What the agent is to know.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::badge::Worn;
use super::gate::{self, Gate};
use super::mark::{self, Boot};
use crate::api::agent::{CheckDefinition, ServiceDefinition};
use crate::api::health::Status;
use crate::error::{Error, Result};
use crate::ident::ServiceId;
use crate::probe::Verdict;
use crate::proto::heartbeat::Heartbeat;

/// What the agent is to know about the service.
#[derive(Clone, Debug)]
pub(super) struct Desired {
    pub(super) id: ServiceId,
    pub(super) definition: ServiceDefinition,
    /// What was said by the caller; what the definition says otherwise.
    pub(super) status: Option<Status>,
    output: Arc<str>,
    alive: Arc<str>,
    /// What its probes say, if it has any.
    pub(super) probed: Option<Verdict>,
    /// Whether the service wants to be found.
    pub(super) gate: Gate,
    /// Why it is out of rotation, if it is.
    pub(super) maintenance: Option<Arc<str>>,
    /// Tags beside those of the definition.
    pub(super) worn: Worn,
    /// Tells this life of the service from others.
    pub(super) nonce: u64,
    /// Which life it is, once it is known which ones came before.
    pub(super) boot: Option<Boot>,
    /// Whose place it takes.
    pub(super) lineage: Option<Arc<str>>,
    /// By how much the last heartbeats were late, and when, if that is still to be told.
    pub(super) late: Option<(Duration, Instant)>,
    /// Counts the changes of the definition and of what is worn.
    pub(super) version: u64,
}

/// What the agent has before a registration.
#[derive(Debug)]
pub(super) enum Present {
    /// Not the service, as far as it says.
    Nothing,
    Service {
        /// Why it is out of rotation, if it is: an operator may have switched that on or off.
        maintenance: Option<Arc<str>>,
    },
}

/// The heartbeats of one check.
#[derive(Clone, Debug)]
pub(super) struct Beat {
    pub(super) check: Arc<str>,
    pub(super) rhythm: Heartbeat,
    /// What the definition says, unless the caller has said something.
    initial: Status,
    /// Whether nothing but the process stands behind it.
    alive_only: bool,
}

impl Beat {
    /// Whether it is the same check with the same TTL.
    pub(super) fn is_like(&self, other: &Self) -> bool {
        self.check == other.check && self.rhythm.ttl() == other.rhythm.ttl()
    }
}

impl Desired {
    pub(super) fn new(definition: ServiceDefinition, draw: u32) -> Result<Self> {
        let definition = match definition.explicit_id() {
            Some(_) => definition,
            None => {
                let id = default_id(&definition, draw);
                definition.id(id)
            }
        };
        definition.validate()?;
        Ok(Self {
            id: definition.effective_id()?,
            definition,
            status: None,
            output: AS_DEFINED.into(),
            alive: ALIVE.into(),
            probed: None,
            gate: Gate::default(),
            maintenance: None,
            worn: Worn::default(),
            nonce: 0,
            boot: None,
            lineage: None,
            late: None,
            version: 0,
        })
    }

    /// Takes over a changed definition.
    pub(super) fn change(&mut self, definition: ServiceDefinition) {
        self.definition = definition;
        self.version += 1;
    }

    /// Takes over what is worn beside it.
    pub(super) fn wear(&mut self, worn: Worn) {
        self.worn = worn;
        self.version += 1;
    }

    /// The definition with what is worn; a tag that it has already stays one.
    pub(super) fn whole(&self) -> ServiceDefinition {
        let mut whole = self.definition.clone();
        for tag in &self.worn.tags {
            if !whole.has_tag(tag) {
                whole = whole.tag(Arc::clone(tag));
            }
        }
        for (key, value) in mark::words(self.boot, self.lineage.as_ref()) {
            // Consul takes 64 pairs; without these it is a service all the same.
            if whole.meta_pairs() < MOST_PAIRS {
                whole = whole.meta(key, value);
            }
        }
        whole
    }

    /// Looks whether what it says of itself can be said.
    pub(super) fn check_words(&self) -> Result<()> {
        match self.lineage.as_deref() {
            Some(lineage) if lineage.is_empty() || lineage.len() > 512 => {
                Err(Error::invalid(format!(
                    "service {:?}: lineage of {} bytes: must be of 1 to 512",
                    self.id.as_str(),
                    lineage.len()
                )))
            }
            _ => Ok(()),
        }
    }

    /// The heartbeats that the definition asks for, all due at once.
    pub(super) fn beats(&self, now: Instant) -> Vec<Beat> {
        let checks = self.definition.checks_by_id();
        let beats = checks.filter_map(|(check, definition)| {
            let ttl = definition.ttl_of()?;
            Some(Beat {
                check,
                rhythm: Heartbeat::new(ttl, now),
                initial: definition.initial_status().unwrap_or(Status::Passing),
                alive_only: definition.is_alive_only(),
            })
        });
        beats.collect()
    }

    /// What is registered with an agent that has this already.
    pub(super) fn body(&self, present: Present) -> ServiceDefinition {
        let maintenance = match present {
            Present::Nothing => self.maintenance.clone(),
            // That of a former self, or what was said before.
            Present::Service {
                maintenance: Some(reason),
            } if gate::is_by_itself(&reason) => None,
            Present::Service { maintenance } => maintenance,
        };
        let maintenance = maintenance.or_else(|| self.own_maintenance());
        self.whole().prepared(
            &self.id,
            |check| self.whole_status(check.initial_status().unwrap_or(Status::Passing)),
            maintenance.as_deref(),
        )
    }

    /// The maintenance by which a service without a TTL check says that it is not to be found.
    pub(super) fn own_maintenance(&self) -> Option<Arc<str>> {
        let reason = self.gate.reason()?;
        let mut checks = self.definition.checks_by_id();
        let has_ttl = checks.any(|(_, check)| check.ttl_of().is_some());
        (!has_ttl).then(|| gate::by_itself(reason))
    }

    /// What a heartbeat of this check says.
    pub(super) fn status_of(&self, beat: &Beat) -> Status {
        self.whole_status(beat.initial)
    }

    /// What was said, or initially is the case, and what the probes say: the worse counts.
    fn whole_status(&self, initial: Status) -> Status {
        if self.gate.reason().is_some() {
            return Status::Critical;
        }
        let said = self.status.unwrap_or(initial);
        let probed = self.probed.as_ref();
        probed.map_or(said, |probed| said.max(probed.status))
    }

    /// Takes over what the caller says.
    pub(super) fn say(&mut self, status: Status, output: Arc<str>) {
        self.status = Some(status);
        self.output = output;
    }

    /// The text of the status of this check: that of whoever made it what it is.
    pub(super) fn output_of(&self, beat: &Beat, now: Instant) -> Arc<str> {
        let output = self.usual_output_of(beat);
        match self.late {
            Some((by, at)) if now.saturating_duration_since(at) < LATE_IS_TOLD => format!(
                "{output} (heartbeats were {:.1} s late: the runtime was starved)",
                by.as_secs_f64()
            )
            .into(),
            _ => Arc::clone(output),
        }
    }

    fn usual_output_of(&self, beat: &Beat) -> &Arc<str> {
        if let Some(reason) = self.gate.reason() {
            return reason;
        }
        match (&self.probed, self.status) {
            (Some(probed), None) if probed.status >= beat.initial => &probed.output,
            (Some(probed), Some(said)) if probed.status > said => &probed.output,
            (_, None) if beat.alive_only => &self.alive,
            _ => &self.output,
        }
    }
}

/// How many pairs of metadata Consul takes.
const MOST_PAIRS: usize = 64;

/// How long the text of a check says that heartbeats were late.
const LATE_IS_TOLD: Duration = Duration::from_secs(600);

/// What heartbeats say of a service of which nothing is looked at.
///
/// It never changes: an output that does costs a write and wakes every watcher of the service.
const ALIVE: &str = "alive only: the process runs, nothing else is looked at";

/// What they say as long as nobody has said how the service is.
const AS_DEFINED: &str = "as defined: nothing was said since";

/// Looks whether its author has chosen what stands behind each TTL check.
pub(super) fn chosen(definition: &ServiceDefinition, has_probes: bool) -> Result<()> {
    let mut checks = definition.checks_by_id();
    let plain = |check: &CheckDefinition| {
        check.ttl_of().is_some() && !check.is_alive_only() && check.initial_status().is_none()
    };
    match checks.find(|(_, check)| plain(check)) {
        Some((check, _)) if !has_probes => Err(Error::invalid(format!(
            "service {:?}: check {check:?} is a TTL check, and nothing says how the service is: add \
             `.probe(…)` to the registration; or begin with a `.status(…)`, from which \
             `set_status` goes on; or say `CheckDefinition::alive_only(…)`, if it is enough that \
             the process runs",
            definition.service_name()
        ))),
        _ => Ok(()),
    }
}

/// Found again after a restart if it can be, and never that of another instance on the agent.
fn default_id(definition: &ServiceDefinition, draw: u32) -> String {
    let name = definition.service_name();
    match (definition.service_address(), definition.service_port()) {
        (Some(address), Some(port)) => format!("{name}-{address}-{port}"),
        (None, Some(port)) => format!("{name}-{port}"),
        (_, None) => format!("{name}-{draw:08x}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TTL: Duration = Duration::from_secs(10);

    fn id(definition: ServiceDefinition) -> String {
        (*Desired::new(definition, 0xab).unwrap().id).to_owned()
    }

    #[test]
    fn an_id_is_made_of_what_tells_instances_on_one_agent_apart() {
        let web = || ServiceDefinition::new("web");
        assert_eq!(id(web().id("own").port(80)), "own");
        assert_eq!(id(web().port(80)), "web-80");
        assert_eq!(id(web().address("10.0.0.1").port(80)), "web-10.0.0.1-80");
        assert_eq!(id(web()), "web-000000ab");
    }

    #[test]
    fn ttl_checks_pass_from_the_start_unless_the_definition_says_otherwise() {
        let service = ServiceDefinition::new("web")
            .port(80)
            .check(CheckDefinition::alive_only(TTL))
            .check(CheckDefinition::alive_only(TTL).status(Status::Critical))
            .check(CheckDefinition::tcp("127.0.0.1:80", TTL));
        let mut desired = Desired::new(service, 0).unwrap();
        let said = |desired: &Desired| -> Vec<Status> {
            let beats = desired.beats(Instant::now());
            beats.iter().map(|beat| desired.status_of(beat)).collect()
        };
        assert_eq!(said(&desired), [Status::Passing, Status::Critical]);
        desired.status = Some(Status::Warning);
        assert_eq!(said(&desired), [Status::Warning, Status::Warning]);

        let body = serde_json::to_value(desired.body(Present::Nothing)).unwrap();
        let checks = body["Checks"].as_array().unwrap();
        assert_eq!(checks[0]["CheckID"], "service:web-80:1");
        assert_eq!(checks[0]["Status"], "warning");
        assert_eq!(checks[2]["CheckID"], "service:web-80:3");
        assert!(checks[2].get("Status").is_none());
    }

    #[test]
    fn maintenance_is_part_of_what_is_registered_and_does_not_rename_the_check() {
        let service = ServiceDefinition::new("web")
            .id("w")
            .check(CheckDefinition::alive_only(TTL));
        let mut desired = Desired::new(service, 0).unwrap();
        desired.maintenance = Some("moving".into());
        let checks = |present| {
            let body = serde_json::to_value(desired.body(present)).unwrap();
            let checks = body["Checks"].as_array().unwrap().clone();
            let text =
                |check: &serde_json::Value, key: &str| check[key].as_str().map(str::to_owned);
            let all = checks.iter();
            all.map(|check| (text(check, "CheckID").unwrap(), text(check, "Notes")))
                .collect::<Vec<_>>()
        };
        let service = |why: Option<&str>| Present::Service {
            maintenance: why.map(Arc::from),
        };
        let own = ("service:w".to_owned(), None);
        let maintenance = |why: &str| ("_service_maintenance:w".to_owned(), Some(why.to_owned()));
        assert_eq!(
            checks(Present::Nothing),
            [own.clone(), maintenance("moving")]
        );
        // What the agent knows counts, also if an operator switched it.
        assert_eq!(checks(service(None)), std::slice::from_ref(&own));
        assert_eq!(checks(service(Some("disk"))), [own, maintenance("disk")]);
    }
}
