//! What schedulers put into the environment of what they run.

use std::collections::{BTreeMap, BTreeSet};

use super::registrator::number;
use crate::error::Result;

/// The variables of the platform that this process runs on.
#[derive(Clone, Debug)]
pub(super) struct Platform {
    kind: Kind,
    vars: BTreeMap<String, String>,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Kind {
    Nomad,
    Marathon,
    Kubernetes,
    None,
}

impl Platform {
    pub(super) fn reads(name: &str) -> bool {
        let whole = [
            "HOSTNAME",
            "HOST",
            "PORT",
            "POD_IP",
            "POD_NAME",
            "MESOS_TASK_ID",
            "MARATHON_APP_ID",
            "KUBERNETES_SERVICE_HOST",
        ];
        let port = name.strip_prefix("PORT").is_some_and(|rest| {
            let rest = rest.strip_prefix('_').unwrap_or(rest);
            !rest.is_empty() && rest.bytes().all(|digit| digit.is_ascii_digit())
        });
        whole.contains(&name) || port || name.starts_with("NOMAD_")
    }

    pub(super) fn of(vars: &BTreeMap<String, String>) -> Self {
        let has = |name: &str| vars.contains_key(name);
        let kind = if has("NOMAD_ALLOC_ID") {
            Kind::Nomad
        } else if has("MESOS_TASK_ID") || has("MARATHON_APP_ID") {
            Kind::Marathon
        } else if has("KUBERNETES_SERVICE_HOST") {
            Kind::Kubernetes
        } else {
            Kind::None
        };
        let own = vars.iter().filter(|(name, _)| Self::reads(name));
        Self {
            kind,
            vars: own
                .map(|(name, value)| (name.clone(), value.clone()))
                .collect(),
        }
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.vars.get(name).map(String::as_str)
    }

    /// The same with its name.
    fn named(&self, name: &str) -> Option<(&str, &str)> {
        let (name, value) = self.vars.get_key_value(name)?;
        Some((name, value))
    }

    /// What follows a prefix, and the value.
    fn after<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = (&'a str, &'a str, &'a str)> {
        let all = self.vars.iter();
        all.filter_map(move |(name, value)| {
            Some((name.strip_prefix(prefix)?, name.as_str(), value.as_str()))
        })
    }

    /// The ports that the process is meant to listen on.
    pub(super) fn ports(&self) -> Result<BTreeSet<u16>> {
        match self.kind {
            Kind::Nomad => {
                let labels = self.after("NOMAD_PORT_");
                labels.map(|(_, name, port)| number(port, name)).collect()
            }
            Kind::Marathon => {
                // `PORT_<port>` is how a bridged container is published; without a bridge the
                // process listens on `PORT0` and so on itself.
                let bridged = self.after("PORT_");
                let bridged: BTreeSet<u16> = bridged
                    .map(|(port, name, _)| number(port, name))
                    .collect::<Result<_>>()?;
                if !bridged.is_empty() {
                    return Ok(bridged);
                }
                let own = self.after("PORT").filter(|(digits, ..)| !digits.is_empty());
                own.map(|(_, name, port)| number(port, name)).collect()
            }
            Kind::Kubernetes | Kind::None => Ok(BTreeSet::new()),
        }
    }

    /// The port under which others reach this one, if it is another.
    pub(super) fn published(&self, port: u16) -> Result<Option<u16>> {
        let variable = match self.kind {
            Kind::Nomad => self
                .label(port)
                .map(|label| format!("NOMAD_HOST_PORT_{label}")),
            Kind::Marathon => Some(format!("PORT_{port}")),
            Kind::Kubernetes | Kind::None => None,
        };
        let said = variable.and_then(|name| Some((self.vars.get(&name)?, name)));
        said.map(|(port, name)| number(port, &name)).transpose()
    }

    /// The address under which others reach this port, and the variable that says it.
    pub(super) fn address(&self, port: u16) -> Option<(&str, &str)> {
        let name = match self.kind {
            Kind::Nomad => {
                let label = self.label(port)?;
                return self
                    .named(&format!("NOMAD_HOST_IP_{label}"))
                    .or_else(|| self.named(&format!("NOMAD_IP_{label}")));
            }
            Kind::Marathon => "HOST",
            Kind::Kubernetes => "POD_IP",
            Kind::None => return None,
        };
        self.named(name)
    }

    /// What tells this instance from others on the same machine.
    pub(super) fn instance(&self) -> Option<&str> {
        match self.kind {
            Kind::Nomad => self.get("NOMAD_ALLOC_ID"),
            Kind::Marathon => self.get("MESOS_TASK_ID"),
            Kind::Kubernetes => self.get("POD_NAME"),
            Kind::None => None,
        }
    }

    /// Nomad's name for a port.
    fn label(&self, port: u16) -> Option<&str> {
        let port = port.to_string();
        let mut labels = self.after("NOMAD_PORT_");
        labels
            .find(|(.., value)| *value == port)
            .map(|(label, ..)| label)
    }
}

/// The name of the host as the kernel has it, where that can be read.
pub(super) fn kernel_host() -> Option<String> {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").ok()?;
    Some(name.trim().to_owned()).filter(|name| !name.is_empty())
}
