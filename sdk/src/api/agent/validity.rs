//! What is refused before it is sent.
//!
//! The agent takes much that it then misreads: a port of 70000, a check of two types, two checks
//! of one ID of which the last wins (all measured on 1.8.7). What it refuses, it refuses with a
//! text that does not always tell what would be right.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::check::Kind;
use super::{CheckDefinition, ServiceDefinition};
use crate::api::model::{ServiceKind, Status};
use crate::error::{Error, Result};
use crate::ident::{CheckId, NodeName, ServiceId, ServiceName, shortened};

/// `structs.MetaKeyMaxLength`, `metaValueMaxLength` and `metaMaxKeyPairs` of Consul.
const META_KEY: usize = 128;
const META_VALUE: usize = 512;
const META_PAIRS: usize = 64;

/// What a network and a scheduler can keep up with; Consul itself takes 1 ms (measured).
pub(crate) const SHORTEST_TTL: Duration = Duration::from_millis(100);

/// `checks.MinInterval`: the agent takes shorter ones for this.
pub(crate) const SHORTEST_INTERVAL: Duration = Duration::from_secs(1);

/// `CheckDeregisterIntervalMin`: the agent takes shorter ones for this.
pub(crate) const SHORTEST_DEREGISTER: Duration = Duration::from_secs(60);

pub(super) fn service(service: &ServiceDefinition) -> Result<()> {
    let name = ServiceName::new(service.name.clone())?;
    let result = match &service.wrong {
        Some(wrong) => Err(wrong.error()),
        None => parts(service),
    };
    result.map_err(|err| err.at(&format!("service {:?}", shortened(&name))))
}

fn parts(service: &ServiceDefinition) -> Result<()> {
    // Before the ID, which is made of it where none is given.
    if let Some(text) = &service.address {
        address("address", text)?;
    }
    without_percent("ID", &service.effective_id()?)?;
    for (name, (text, _)) in &service.tagged_addresses {
        if name.is_empty() {
            return invalid("tagged address: its name must not be empty, such as `lan`");
        }
        address(&format!("tagged address {:?}", shortened(name)), text)?;
    }
    if service.meta.len() > META_PAIRS {
        return invalid(format!(
            "{} pairs of metadata: Consul takes at most {META_PAIRS}",
            service.meta.len()
        ));
    }
    for (key, value) in &service.meta {
        meta(key, value)?;
    }
    if service.kind == ServiceKind::Unknown {
        return invalid("kind: must be one that this crate knows");
    }
    let mut ids = BTreeSet::new();
    for (id, definition) in service.checks_by_id() {
        check(definition).map_err(|err| err.at(&format!("check {:?}", shortened(&id))))?;
        if !ids.insert(id.clone()) {
            return invalid(format!(
                "two checks of the ID {:?}, of which Consul would keep the last: give each its own",
                shortened(&id)
            ));
        }
    }
    Ok(())
}

/// A check that is registered by itself.
pub(super) fn lone_check(service: Option<&ServiceId>, definition: &CheckDefinition) -> Result<()> {
    // `Missing check name`, unless it is one of a service (measured on 1.8.7: even then).
    if definition.name.as_ref().is_none_or(|name| name.is_empty()) {
        return invalid("a check that is registered by itself: must have a name");
    }
    if let Some(service) = service {
        without_percent("service ID", service)?;
    }
    check(definition)
}

fn check(check: &CheckDefinition) -> Result<()> {
    if let Some(id) = &check.id {
        without_percent("ID", &CheckId::new(id.clone())?)?;
    }
    if let Some(status) = check.status {
        settable(status)?;
    }
    if let Some(interval) = check.kind.interval()
        && interval < SHORTEST_INTERVAL
    {
        return invalid(format!(
            "interval {interval:?}: must be at least 1 s, which Consul would make of it"
        ));
    }
    if check.timeout.is_some_and(|timeout| timeout.is_zero()) {
        return invalid("timeout 0: must be above zero; leave it out for Consul's 10 s");
    }
    if let Some(after) = check.deregister_critical_service_after
        && after < SHORTEST_DEREGISTER
    {
        return invalid(format!(
            "deregistration after {after:?} of being critical: must be at least 1 min, which Consul would make of it"
        ));
    }
    if check.output_max_size == Some(0) {
        return invalid("output of 0 bytes: must be above zero; leave it out for Consul's 4096");
    }
    if let (Some(warning), Some(critical)) = (
        check.failures_before_warning,
        check.failures_before_critical,
    ) && warning > critical
    {
        return invalid(format!(
            "warning after {warning} failures, critical after {critical}: the first must not be more"
        ));
    }
    kind(&check.kind)?;
    misplaced(check)
}

fn kind(kind: &Kind) -> Result<()> {
    match kind {
        Kind::Ttl(ttl) if *ttl < SHORTEST_TTL => invalid(format!(
            "TTL {ttl:?}: must be at least 100 ms, and better some seconds"
        )),
        Kind::Ttl(_) => Ok(()),
        Kind::Http(url, _) => http_url(url),
        Kind::Tcp(target, _) | Kind::Udp(target, _) | Kind::H2Ping(target, _) => host_port(target),
        Kind::Grpc(target, _) => host_port(target.split('/').next().unwrap_or_default()),
        Kind::Script(args, _) if args.is_empty() => {
            invalid("script without a program: give it and its arguments")
        }
        Kind::Docker(container, args, _) if container.is_empty() || args.is_empty() => {
            invalid("Docker check: must have a container, a program and its arguments")
        }
        Kind::Script(..) | Kind::Docker(..) => Ok(()),
        Kind::OsService(name, _) if name.is_empty() => {
            invalid("OS service without a name: give the one that the operating system knows")
        }
        Kind::OsService(..) => Ok(()),
        Kind::AliasService(id) => ServiceId::new(id.clone())
            .map(drop)
            .map_err(|err| err.at("alias")),
        Kind::AliasNode(node) => NodeName::new(node.clone())
            .map(drop)
            .map_err(|err| err.at("alias")),
    }
}

/// Options that the type of the check has no use for, and which Consul would ignore.
fn misplaced(check: &CheckDefinition) -> Result<()> {
    let kind = &check.kind;
    let only = |set: bool, option: &str, fits: bool, whose: &str| {
        if set && !fits {
            return invalid(format!(
                "{option}: a {} check has none, only {whose} has",
                kind.as_str()
            ));
        }
        Ok(())
    };
    let http = matches!(kind, Kind::Http(..));
    only(!check.headers.is_empty(), "header", http, "an HTTP one")?;
    only(check.method.is_some(), "method", http, "an HTTP one")?;
    only(check.body.is_some(), "body", http, "an HTTP one")?;
    only(check.disable_redirects, "redirects", http, "an HTTP one")?;
    let docker = matches!(kind, Kind::Docker(..));
    only(check.shell.is_some(), "shell", docker, "a Docker one")?;
    let tls = matches!(kind, Kind::Tcp(..) | Kind::Grpc(..) | Kind::H2Ping(..));
    only(check.tls, "TLS", tls, "a TCP, gRPC or HTTP/2 one")?;
    let certificate = http || tls;
    let whose = "an HTTP, TCP, gRPC or HTTP/2 one";
    only(
        check.tls_server_name.is_some() || check.tls_skip_verify,
        "certificate",
        certificate,
        whose,
    )?;
    let passive = matches!(
        kind,
        Kind::Ttl(_) | Kind::AliasService(_) | Kind::AliasNode(_)
    );
    only(
        check.timeout.is_some(),
        "timeout",
        !passive,
        "one with an interval",
    )
}

/// The statuses that a check can be set to.
pub(super) fn settable(status: Status) -> Result<()> {
    match status {
        Status::Passing | Status::Warning | Status::Critical => Ok(()),
        _ => invalid(format!(
            "status {status}: must be passing, warning or critical"
        )),
    }
}

/// Consul 1.10.8 to 1.12 decode the IDs of a path twice (its issue 11335).
pub(crate) fn without_percent(what: &str, id: &str) -> Result<()> {
    if id.contains('%') {
        return invalid(format!(
            "{what} {:?}: must not contain `%`, which some versions of Consul decode twice",
            shortened(id)
        ));
    }
    Ok(())
}

pub(crate) fn address(what: &str, text: &str) -> Result<()> {
    let shown = shortened(text);
    let bare = text
        .strip_prefix('[')
        .and_then(|text| text.strip_suffix(']'))
        .unwrap_or(text);
    if text.is_empty() {
        return invalid(format!(
            "{what}: must not be empty; leave it out for the address of the agent's node"
        ));
    }
    if bare.parse::<IpAddr>().is_ok_and(|ip| ip.is_unspecified()) {
        return invalid(format!(
            "{what} {shown:?}: nobody can connect to it; leave it out for the address of the agent's node"
        ));
    }
    if text.parse::<SocketAddr>().is_ok() {
        return invalid(format!(
            "{what} {shown:?}: must not contain the port, which has its own place"
        ));
    }
    let is_numeric = bare.chars().all(|c| c.is_ascii_digit() || c == '.');
    // `%` stands before the zone of an IPv6 address.
    let may_be = |c: char| c.is_alphanumeric() || matches!(c, '.' | '-' | '_' | ':' | '%');
    if !bare.chars().all(may_be) || is_numeric && bare.parse::<IpAddr>().is_err() {
        return invalid(format!("{what} {shown:?}: must be an IP address or a name"));
    }
    Ok(())
}

pub(crate) fn meta(key: &str, value: &str) -> Result<()> {
    let shown = shortened(key);
    let wrong = |reason: &str| invalid(format!("metadata {shown:?}: {reason}"));
    if key.is_empty() {
        return wrong("the key must not be empty");
    }
    if key.len() > META_KEY {
        return wrong("the key must not be longer than 128 bytes");
    }
    if !key
        .bytes()
        .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    {
        return wrong("the key may hold only letters, digits, `-` and `_`");
    }
    if key.starts_with("consul-") {
        return wrong("keys that begin with `consul-` are Consul's own");
    }
    if value.len() > META_VALUE {
        return wrong("the value must not be longer than 512 bytes");
    }
    Ok(())
}

fn http_url(url: &str) -> Result<()> {
    let fits = url.parse::<http::Uri>().is_ok_and(|uri| {
        matches!(uri.scheme_str(), Some("http" | "https"))
            && uri.host().is_some_and(|host| !host.is_empty())
    });
    if fits {
        return Ok(());
    }
    invalid(format!(
        "URL {:?}: must be whole, such as `http://127.0.0.1:8080/health`",
        shortened(url)
    ))
}

fn host_port(text: &str) -> Result<()> {
    let fits = text.rsplit_once(':').is_some_and(|(host, port)| {
        !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port > 0)
    });
    if fits {
        return Ok(());
    }
    invalid(format!(
        "target {:?}: must be host and port, such as `127.0.0.1:8080`",
        shortened(text)
    ))
}

fn invalid<T>(reason: impl Into<String>) -> Result<T> {
    Err(Error::invalid(reason))
}

#[cfg(test)]
mod tests;
