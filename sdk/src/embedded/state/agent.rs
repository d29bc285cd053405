//! Registrations with the agent: services, checks, heartbeats, maintenance.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use tokio::time::Instant;

use super::local::{CheckKind, CheckSpec, LocalCheck, Run};
use super::model::{CRITICAL, Check, Service, Status};
use super::{Due, OUTPUT_INTERVAL, REAP_INTERVAL, REAP_MIN, State};

const NODE_MAINTENANCE: &str = "_node_maintenance";
const SERVICE_MAINTENANCE: &str = "_service_maintenance";

/// Whether checks that a new definition does not name are kept.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum ExistingChecks {
    Keep,
    Replace,
}

/// Why a heartbeat was refused.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct UpdateError(String);

impl fmt::Display for UpdateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CheckID \"{}\" does not have associated TTL", self.0)
    }
}

impl State {
    /// Registers a service with the agent, which tells the servers at once.
    pub(crate) fn register_service(
        &mut self,
        service: Service,
        checks: Vec<CheckSpec>,
        existing: ExistingChecks,
        now: Instant,
    ) {
        let id = service.id.clone();
        let former: BTreeSet<String> = self.local.check_ids_of(&id).into_iter().collect();
        self.local.services.insert(id.clone(), Arc::new(service));
        let several = checks.len() > 1;
        let mut named = BTreeSet::new();
        for (at, mut spec) in checks.into_iter().enumerate() {
            if spec.id.is_empty() {
                spec.id = if several {
                    format!("service:{id}:{}", at + 1)
                } else {
                    format!("service:{id}")
                };
            }
            spec.service_id.clone_from(&id);
            named.insert(spec.id.clone());
            self.add_check(spec, now);
        }
        if existing == ExistingChecks::Replace {
            for check in former.difference(&named) {
                self.forget_check(check);
            }
        }
        self.touch();
        self.push_service(&id, now);
    }

    /// Takes a service and its checks from the agent and from the catalog.
    pub(crate) fn deregister_service(&mut self, id: &str, now: Instant) {
        if self.local.services.remove(id).is_none() {
            return;
        }
        for check in self.local.check_ids_of(id) {
            self.forget_check(&check);
        }
        self.touch();
        self.push_service(id, now);
    }

    /// Registers a check of a service that is known, or of the node.
    pub(crate) fn register_check(&mut self, mut spec: CheckSpec, now: Instant) {
        if spec.id.is_empty() {
            spec.id.clone_from(&spec.name);
        }
        let id = spec.id.clone();
        self.add_check(spec, now);
        self.touch();
        self.push_check(&id, now);
    }

    pub(crate) fn deregister_check(&mut self, id: &str, now: Instant) {
        if self.local.check(id).is_some() {
            self.forget_check(id);
            self.touch();
            self.push_check(id, now);
        }
    }

    /// Takes a heartbeat.
    ///
    /// # Errors
    ///
    /// When no TTL check has this ID.
    pub(crate) fn heartbeat(
        &mut self,
        id: &str,
        status: Status,
        output: &str,
        now: Instant,
    ) -> Result<(), UpdateError> {
        let Some(local) = self
            .local
            .check_mut(id)
            .filter(|local| local.kind == CheckKind::Ttl)
        else {
            return Err(UpdateError(id.to_owned()));
        };
        let output = captured(output, local.output_max);
        local.last_output.clone_from(&output);
        let expires_at = now + local.ttl;
        if let Some(former) = local.expires_at.replace(expires_at) {
            self.timers.remove(&(former, Due::Ttl, id.to_owned()));
        }
        self.timers.insert((expires_at, Due::Ttl, id.to_owned()));
        self.update_check(id, status, output, now);
        Ok(())
    }

    /// Takes what a check found that the agent ran, if it is still the same one.
    pub(crate) fn checked(
        &mut self,
        id: &str,
        run: &Run,
        status: Status,
        output: &str,
        now: Instant,
    ) {
        let known = self.local.check(id);
        let known = known.filter(|local| local.run.as_ref() == Some(run));
        let Some(most) = known.map(|local| local.output_max) else {
            return;
        };
        self.update_check(id, status, captured(output, most), now);
    }

    /// Puts a service into maintenance or takes it out; `false` when the service is unknown.
    pub(crate) fn service_maintenance(
        &mut self,
        id: &str,
        enable: Option<&str>,
        now: Instant,
    ) -> bool {
        if !self.local.services.contains_key(id) {
            return false;
        }
        let check = format!("{SERVICE_MAINTENANCE}:{id}");
        self.maintenance(
            check,
            "Service Maintenance Mode",
            "service",
            id,
            enable,
            now,
        );
        true
    }

    /// Puts the node into maintenance or takes it out.
    pub(crate) fn node_maintenance(&mut self, enable: Option<&str>, now: Instant) {
        let check = NODE_MAINTENANCE.to_owned();
        self.maintenance(check, "Node Maintenance Mode", "node", "", enable, now);
    }

    fn maintenance(
        &mut self,
        id: String,
        name: &str,
        of: &str,
        service_id: &str,
        enable: Option<&str>,
        now: Instant,
    ) {
        let Some(reason) = enable else {
            self.deregister_check(&id, now);
            return;
        };
        if self.local.check(&id).is_some() {
            return;
        }
        let notes = if reason.is_empty() {
            format!(
                "Maintenance mode is enabled for this {of}, but no reason was provided. \
                 This is a default message."
            )
        } else {
            reason.to_owned()
        };
        let spec = CheckSpec {
            id,
            name: name.to_owned(),
            notes,
            service_id: service_id.to_owned(),
            kind: CheckKind::Maintenance,
            ..CheckSpec::default()
        };
        self.register_check(spec, now);
    }

    /// The agent forgets all services and checks, and the catalog loses them.
    pub(crate) fn wipe(&mut self, now: Instant) {
        self.local.services.clear();
        let checks: Vec<String> = self
            .local
            .checks()
            .map(|local| local.check.id.clone())
            .collect();
        for id in checks {
            self.forget_check(&id);
        }
        self.touch();
        self.sync_all(now);
    }

    /// Adds a check; one that is already there keeps its status and output, so that a
    /// registration repeated does not flap, and its TTL begins anew.
    fn add_check(&mut self, spec: CheckSpec, now: Instant) {
        let service = self.local.services.get(&spec.service_id).cloned();
        let former = self.forget_check(&spec.id);
        let mut check = Check {
            node: self.identity.node.clone(),
            id: spec.id.clone(),
            status: spec.status.unwrap_or_else(|| CRITICAL.into()),
            notes: spec.notes,
            service_id: spec.service_id,
            kind: spec.kind.to_string(),
            name: spec.name,
            ..Check::default()
        };
        if let Some(service) = &service {
            check.service_name.clone_from(&service.name);
            check.service_tags = Arc::clone(&service.tags);
            if check.name.is_empty() {
                check.name = format!("Service '{}' check", service.name);
            }
        }
        let mut critical = false;
        if let Some(former) = former {
            check.status = former.check.status.clone();
            check.output.clone_from(&former.check.output);
            critical = check.status == CRITICAL;
        }
        let expires_at = (spec.kind == CheckKind::Ttl).then(|| now + spec.ttl);
        if let Some(at) = expires_at {
            self.timers.insert((at, Due::Ttl, spec.id.clone()));
        }
        self.local.insert_check(LocalCheck {
            check: Arc::new(check),
            kind: spec.kind,
            ttl: spec.ttl,
            deregister_after: spec.deregister_after,
            output_max: spec.output_max,
            run: spec.run,
            last_output: String::new(),
            expires_at,
            critical_since: None,
            reap_at: None,
            tell_at: None,
        });
        if critical {
            self.became_critical(&spec.id, now);
        }
    }

    /// Takes a check and its timers away.
    fn forget_check(&mut self, id: &str) -> Option<LocalCheck> {
        let local = self.local.remove_check(id)?;
        for (at, due) in [
            (local.expires_at, Due::Ttl),
            (local.reap_at, Due::Reap),
            (local.tell_at, Due::Output),
        ] {
            if let Some(at) = at {
                self.timers.remove(&(at, due, id.to_owned()));
            }
        }
        Some(local)
    }

    /// A new status is told to the servers at once. A new output alone is told after two and a
    /// half to seven and a half minutes, because outputs change often and matter little.
    fn update_check(&mut self, id: &str, status: Status, output: String, now: Instant) {
        if status == CRITICAL {
            self.became_critical(id, now);
        } else {
            self.recovered(id);
        }
        let wait = OUTPUT_INTERVAL / 2 + self.random_part(OUTPUT_INTERVAL);
        let Some(local) = self.local.check_mut(id) else {
            return;
        };
        if local.check.status == status && local.check.output == output {
            return;
        }
        let same_status = local.check.status == status;
        let check = Arc::make_mut(&mut local.check);
        check.status = status;
        check.output = output;
        if same_status {
            if local.tell_at.is_none() {
                local.tell_at = Some(now + wait);
                self.timers.insert((now + wait, Due::Output, id.to_owned()));
            }
        } else {
            self.push_check(id, now);
        }
        self.touch();
    }

    fn became_critical(&mut self, id: &str, now: Instant) {
        let started = self.started;
        let Some(local) = self.local.check_mut(id) else {
            return;
        };
        if local.critical_since.is_some() {
            return;
        }
        local.critical_since = Some(now);
        if local.deregister_after.is_zero() || local.check.service_id.is_empty() {
            return;
        }
        // The reaper takes what has been critical for longer than the time asked for, and looks
        // only now and then.
        let due = now + local.deregister_after.max(REAP_MIN) - started;
        let ticks = due.as_nanos() / REAP_INTERVAL.as_nanos() + 1;
        let ticks = u32::try_from(ticks).unwrap_or(u32::MAX);
        let at = started + REAP_INTERVAL * ticks;
        local.reap_at = Some(at);
        self.timers.insert((at, Due::Reap, id.to_owned()));
    }

    fn recovered(&mut self, id: &str) {
        let Some(local) = self.local.check_mut(id) else {
            return;
        };
        local.critical_since = None;
        if let Some(at) = local.reap_at.take() {
            self.timers.remove(&(at, Due::Reap, id.to_owned()));
        }
    }

    /// A heartbeat did not come in time.
    pub(super) fn expire(&mut self, id: &str, at: Instant) {
        let Some(local) = self.local.check_mut(id) else {
            return;
        };
        local.expires_at = None;
        let output = if local.last_output.is_empty() {
            "TTL expired".to_owned()
        } else {
            format!(
                "TTL expired (last output before timeout follows): {}",
                local.last_output
            )
        };
        self.update_check(id, CRITICAL.into(), output, at);
    }

    /// A service was critical for longer than its `DeregisterCriticalServiceAfter`.
    pub(super) fn reap(&mut self, id: &str, at: Instant) {
        let Some(local) = self.local.check_mut(id) else {
            return;
        };
        local.reap_at = None;
        let service = local.check.service_id.clone();
        self.deregister_service(&service, at);
    }

    pub(super) fn tell_output(&mut self, id: &str, at: Instant) {
        if let Some(local) = self.local.check_mut(id) {
            local.tell_at = None;
            self.push_check(id, at);
        }
    }
}

/// Consul keeps the end of a long output and says how much it kept.
fn captured(output: &str, max: usize) -> String {
    let total = output.len();
    if total <= max {
        return output.to_owned();
    }
    let mut kept = max;
    while !output.is_char_boundary(kept) {
        kept -= 1;
    }
    let (head, _) = output.split_at(kept);
    format!("{head} ... (captured {max} of {total} bytes)")
}
