//! The words of Registrator.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use http::Method;
use http::uri::PathAndQuery;

use super::{Environment, Port, config};
use crate::api::agent::validity::{
    SHORTEST_DEREGISTER, SHORTEST_INTERVAL, SHORTEST_TTL, address, meta, without_percent,
};
use crate::api::agent::{CheckDefinition, ServiceDefinition};
use crate::api::health::Status;
use crate::error::{Error, Result};
use crate::ident::{ServiceId, ServiceName, shortened};
use crate::proto::duration;

/// `DefaultInterval` of Registrator.
const INTERVAL: Duration = Duration::from_secs(10);

/// What `SERVICE_CHECK_…` may say.
const CHECK: [&str; 15] = [
    "check_http",
    "check_http_method",
    "check_https",
    "check_https_method",
    "check_cmd",
    "check_script",
    "check_ttl",
    "check_tcp",
    "check_grpc",
    "check_grpc_use_tls",
    "check_tls_skip_verify",
    "check_interval",
    "check_timeout",
    "check_initial_status",
    "check_deregister_after",
];

/// Words that are no metadata.
const OWN: [&str; 6] = ["name", "id", "tags", "ignore", "ip", "port"];

/// The variables that begin with `SERVICE_`.
#[derive(Clone, Debug, Default)]
pub(super) struct Words {
    /// By key, for all ports: the name of the variable and its value.
    pub(super) general: BTreeMap<String, Said>,
    /// By what stands for the port, and by key.
    pub(super) special: BTreeMap<String, BTreeMap<String, Said>>,
}

#[derive(Clone, Debug)]
pub(super) struct Said {
    pub(super) variable: String,
    value: String,
}

impl Said {
    /// The error about it; `reason` says what would be right.
    fn wrong(&self, reason: &str) -> Error {
        config(format!(
            "{} {:?}: {reason}",
            self.variable,
            shortened(&self.value)
        ))
    }
}

impl Words {
    pub(super) fn reads(name: &str) -> bool {
        name.starts_with("SERVICE_")
    }

    pub(super) fn of(vars: BTreeMap<String, String>) -> Self {
        let mut words = Self::default();
        for (variable, value) in vars {
            let Some(key) = variable.strip_prefix("SERVICE_") else {
                continue;
            };
            let key = key.to_ascii_lowercase();
            // A number alone, as in `SERVICE_80`, is a key of its own, as it is in Registrator.
            let (keys, key) = match key.split_once('_') {
                Some((port, key)) if is_number(port) && !key.is_empty() => {
                    let digits = port.trim_start_matches('0');
                    let port = if digits.is_empty() { port } else { digits };
                    let keys = words.special.entry(port.to_owned()).or_default();
                    (keys, key.to_owned())
                }
                _ => (&mut words.general, key),
            };
            keys.insert(key, Said { variable, value });
        }
        words
    }

    /// The ports that variables name.
    pub(super) fn ports(&self) -> Result<BTreeSet<u16>> {
        let keys = self.special.iter();
        keys.map(|(port, words)| {
            let variable = words.values().next().map(|said| said.variable.as_str());
            number(port, variable.unwrap_or_default())
        })
        .collect()
    }

    pub(super) fn said(&self, key: &str, port: Option<u16>) -> Option<&Said> {
        let special = port.and_then(|port| self.special.get(&port.to_string())?.get(key));
        special.or_else(|| self.general.get(key))
    }

    fn text(&self, key: &str, port: Option<u16>) -> Option<&str> {
        self.said(key, port).map(|said| said.value.as_str())
    }

    /// A port, and whether it was said for this one alone.
    pub(super) fn port(&self, key: &str, port: Option<u16>) -> Result<Option<(u16, bool)>> {
        let Some(said) = self.said(key, port) else {
            return Ok(None);
        };
        let general = self.general.get(key);
        let alone = general.is_none_or(|general| general.variable != said.variable);
        Ok(Some((number(&said.value, &said.variable)?, alone)))
    }

    /// Any value means yes, but one that a person would read as no is not taken.
    fn flag(&self, key: &str, port: Option<u16>) -> Result<bool> {
        let Some(said) = self.said(key, port) else {
            return Ok(false);
        };
        let no = ["false", "no", "off", "0"];
        if no.iter().any(|no| said.value.eq_ignore_ascii_case(no)) {
            return Err(said.wrong(
                "any value means yes, as Registrator has it; leave the variable out, or empty",
            ));
        }
        Ok(true)
    }

    pub(super) fn ignored(&self, port: Option<u16>) -> Result<bool> {
        self.flag("ignore", port)
    }

    /// A time that is not below the `least` one, which `reason` tells.
    fn time(
        &self,
        key: &str,
        port: Option<u16>,
        least: Duration,
        reason: &str,
    ) -> Result<Option<Duration>> {
        let Some(said) = self.said(key, port) else {
            return Ok(None);
        };
        match duration::parse(&said.value) {
            Ok(time) if time < least => Err(said.wrong(reason)),
            Ok(time) => Ok(Some(time)),
            Err(err) => Err(config(format!(
                "{}: {err}: must be such as `15s` or `1m30s`",
                said.variable
            ))),
        }
    }

    /// What the agent asks for by HTTP: a path behind the service's own address.
    fn path(&self, key: &str, port: Option<u16>) -> Result<Option<&str>> {
        match self.said(key, port) {
            Some(said) if !is_path(&said.value) => Err(said.wrong(
                "is no path: must begin with `/` and be escaped as in a URL, such as `/health`",
            )),
            said => Ok(said.map(|said| said.value.as_str())),
        }
    }

    fn method(&self, key: &str, port: Option<u16>) -> Result<Option<&str>> {
        match self.said(key, port) {
            Some(said) if Method::from_bytes(said.value.as_bytes()).is_err() => {
                Err(said.wrong("is no HTTP method: must be such as `GET` or `HEAD`"))
            }
            said => Ok(said.map(|said| said.value.as_str())),
        }
    }

    /// All keys that hold for this port, each once.
    pub(super) fn keys(&self, port: u16) -> BTreeSet<&str> {
        let special = self.special.get(&port.to_string());
        let special = special.into_iter().flat_map(BTreeMap::keys);
        let all = special.chain(self.general.keys());
        all.map(String::as_str).collect()
    }
}

impl Environment {
    /// The service on this port, unless it is not to be registered.
    pub(super) fn service(&self, port: Port, several: bool) -> Result<Option<ServiceDefinition>> {
        let words = &self.words;
        let on = Some(port.number);
        if words.ignored(on)? {
            return Ok(None);
        }
        let Some(name) = self.name_of(port.number, several)? else {
            return Ok(None);
        };
        let published = self.published(port.number, several)?;
        let address = self.address_of(port.number)?;
        let mut service = ServiceDefinition::new(name.as_str()).port(published);
        if let Some(address) = &address {
            service = service.address(address.as_str());
        }
        service = match (words.said("id", on), self.host_part()) {
            (Some(said), _) => {
                let id = ServiceId::new(said.value.as_str());
                id.and_then(|id| without_percent("ID", &id))
                    .map_err(|err| err.at(&said.variable).configured())?;
                service.id(said.value.as_str())
            }
            (None, Some(host)) => {
                let udp = if port.udp { ":udp" } else { "" };
                let container = self.container.as_deref().unwrap_or(&name);
                service.id(format!("{host}:{container}:{}{udp}", port.number))
            }
            // `Client::register` makes one.
            (None, None) => service,
        };
        for tag in words.text("tags", on).map(tags).unwrap_or_default() {
            service = service.tag(tag);
        }
        if port.udp {
            service = service.tag("udp");
        }
        for key in words.keys(port.number) {
            if OWN.contains(&key) {
                continue;
            }
            let Some(said) = words.said(key, on) else {
                continue;
            };
            if !key.starts_with("check_") {
                meta(key, &said.value).map_err(|err| err.at(&said.variable).configured())?;
                service = service.meta(key, said.value.as_str());
            } else if !CHECK.contains(&key) {
                return Err(said.wrong(&format!(
                    "no such setting of a check; there are {}",
                    CHECK.map(|key| key.to_uppercase()).join(", ")
                )));
            }
        }
        if let Some(check) = self.check(port.number, address.as_deref(), published)? {
            service = service.check(check);
        }
        Ok(Some(service))
    }

    fn name_of(&self, port: u16, several: bool) -> Result<Option<String>> {
        let special = self.words.special.get(&port.to_string());
        if let Some(said) = special.and_then(|words| words.get("name")) {
            return named(said).map(|name| Some(name.to_owned()));
        }
        let name = match (self.words.said("name", None), &self.name) {
            (Some(said), _) => named(said)?,
            (None, _) if self.explicit => return Ok(None),
            (None, Some(name)) => name,
            (None, None) => {
                return Err(config(format!(
                    "the service on port {port} has no name: set SERVICE_NAME or SERVICE_{port}_NAME"
                )));
            }
        };
        Ok(Some(match several {
            true => format!("{name}-{port}"),
            false => name.to_owned(),
        }))
    }

    fn published(&self, port: u16, several: bool) -> Result<u16> {
        match self.words.port("port", Some(port))? {
            Some((published, alone)) if alone || !several => Ok(published),
            Some((published, _)) => Err(config(format!(
                "SERVICE_PORT {published}: there are several ports; say SERVICE_{port}_PORT for \
                 this one"
            ))),
            None => Ok(self.platform.published(port)?.unwrap_or(port)),
        }
    }

    fn address_of(&self, port: u16) -> Result<Option<String>> {
        let said = self.words.said("ip", Some(port));
        let said = said.map(|said| (said.variable.as_str(), said.value.as_str()));
        // What the program says is judged with the rest of the service.
        let advertised = || self.advertised.as_deref().map(|text| ("", text));
        let found = said.or_else(advertised);
        let Some((variable, text)) = found.or_else(|| self.platform.address(port)) else {
            return Ok(self.bound.map(|ip| ip.to_canonical().to_string()));
        };
        if !variable.is_empty() {
            address(variable, text).map_err(Error::configured)?;
        }
        Ok(Some(text.to_owned()))
    }

    /// What tells this process from others in an ID.
    fn host_part(&self) -> Option<&str> {
        self.platform.instance().or(self.host.as_deref())
    }

    /// The check, in the order in which Registrator looks for one.
    fn check(
        &self,
        port: u16,
        address: Option<&str>,
        published: u16,
    ) -> Result<Option<CheckDefinition>> {
        let words = &self.words;
        let on = Some(port);
        // Without an address the service is reached at its node, where the agent is.
        let host = address.unwrap_or("127.0.0.1");
        let target = match host.contains(':') && !host.starts_with('[') {
            true => format!("[{host}]:{published}"),
            false => format!("{host}:{published}"),
        };
        let least = "must be at least 1 s, such as `10s`";
        let interval = words.time("check_interval", on, SHORTEST_INTERVAL, least)?;
        let interval = interval.unwrap_or(INTERVAL);
        let tcp = words.flag("check_tcp", on)?;
        let grpc = words.flag("check_grpc", on)?;
        let (tls, any) = (
            words.flag("check_grpc_use_tls", on)?,
            words.flag("check_tls_skip_verify", on)?,
        );
        let method = |check: CheckDefinition, key| match words.method(key, on) {
            Ok(Some(method)) => Ok(check.method(method)),
            Ok(None) => Ok(check),
            Err(err) => Err(err),
        };
        let mut timed = true;
        let mut check = if let Some(path) = words.path("check_http", on)? {
            let check = CheckDefinition::http(format!("http://{target}{path}"), interval);
            method(check, "check_http_method")?
        } else if let Some(path) = words.path("check_https", on)? {
            let check = CheckDefinition::http(format!("https://{target}{path}"), interval);
            method(check, "check_https_method")?
        } else if let Some(said) = words.said("check_cmd", on) {
            let container = self.container_id(said)?;
            let args = ["check-cmd", container, &port.to_string(), &said.value].map(Arc::from);
            CheckDefinition::script(args, interval)
        } else if let Some(line) = words.text("check_script", on) {
            let line = line.replace("$SERVICE_IP", host);
            let line = line.replace("$SERVICE_PORT", &published.to_string());
            CheckDefinition::script(["/bin/sh", "-c", &line].map(Arc::from), interval)
        } else if let Some(ttl) = words.time("check_ttl", on, SHORTEST_TTL, TTL)? {
            timed = false;
            CheckDefinition::alive_only(ttl)
        } else if tcp {
            CheckDefinition::tcp(target, interval)
        } else if grpc {
            let check = CheckDefinition::grpc(target, interval).use_tls(tls);
            match tls && any {
                true => check.danger_skip_tls_verify(),
                false => check,
            }
        } else {
            return Ok(None);
        };
        let above = "must be above zero, such as `5s`; leave it out for Consul's 10 s";
        let timeout = words.time("check_timeout", on, Duration::from_nanos(1), above)?;
        if timed && let Some(timeout) = timeout {
            check = check.timeout(timeout);
        }
        if let Some(said) = words.said("check_initial_status", on) {
            check = check.status(match said.value.as_str() {
                "passing" => Status::Passing,
                "warning" => Status::Warning,
                "critical" => Status::Critical,
                _ => return Err(said.wrong("must be passing, warning or critical")),
            });
        }
        let least = "must be at least 1 min, such as `10m`; leave it out for never";
        let after = words.time("check_deregister_after", on, SHORTEST_DEREGISTER, least)?;
        if let Some(after) = after {
            check = check.deregister_critical_service_after(after);
        }
        Ok(Some(check))
    }

    /// Docker names a container's host after the container, by the first twelve digits of its ID.
    fn container_id(&self, said: &Said) -> Result<&str> {
        let id = self.host.as_deref().and_then(|host| host.get(..12));
        id.filter(|id| id.bytes().all(|digit| digit.is_ascii_hexdigit()))
            .ok_or_else(|| {
                let host = self.host.as_deref().unwrap_or_default();
                said.wrong(&format!(
                    "needs the ID of the container, and the host name {:?} is not one: start it \
                     without a host name of its own, or take another check",
                    shortened(host)
                ))
            })
    }
}

const TTL: &str = "must be at least 100 ms, and better some seconds, such as `15s`";

/// The name of a service as a variable says it.
fn named(said: &Said) -> Result<&str> {
    match ServiceName::new(said.value.as_str()) {
        Ok(_) => Ok(&said.value),
        Err(err) => Err(err.at(&said.variable).configured()),
    }
}

fn is_path(text: &str) -> bool {
    text.starts_with('/') && text.parse::<PathAndQuery>().is_ok()
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|digit| digit.is_ascii_digit())
}

pub(super) fn number(text: &str, variable: &str) -> Result<u16> {
    match text.parse() {
        Ok(port @ 1..) => Ok(port),
        _ => Err(config(format!(
            "{variable}: port {text:?}: must be from 1 to 65535"
        ))),
    }
}

/// Tags between commas, `\,` being a comma within one. Empty ones are left out.
pub(super) fn tags(list: &str) -> Vec<String> {
    let mut tags = vec![String::new()];
    let mut letters = list.chars().peekable();
    while let Some(letter) = letters.next() {
        let next = match letter {
            '\\' if letters.next_if_eq(&',').is_some() => Some(','),
            ',' => None,
            _ => Some(letter),
        };
        match (next, tags.last_mut()) {
            (Some(letter), Some(tag)) => tag.push(letter),
            _ => tags.push(String::new()),
        }
    }
    tags.retain(|tag| !tag.is_empty());
    tags
}
