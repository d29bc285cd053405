//! Definitions of services and checks, read and judged as Consul 1.8.7 does.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use http::StatusCode;
use serde_json::{Map, Value};

use super::super::state::local::{CheckKind, CheckSpec, Run, Way};
use super::super::state::model::{Pairs, Service, TaggedAddress, Weights, status};
use super::decode::{Fields, GoTime, Undecodable};
use super::reply::Refusal;

/// `check_output_max_size`, 4 KiB.
const OUTPUT_MAX: usize = 4096;
const META_PAIRS: usize = 64;
const META_KEY: usize = 128;
const META_VALUE: usize = 512;

impl From<Undecodable> for Refusal {
    fn from(Undecodable(text): Undecodable) -> Self {
        Self::bad_request(format!("Request decode failed: {text}"))
    }
}

/// A service with its checks, as `agent/service/register` takes it.
#[derive(Debug)]
pub(super) struct ServiceDefinition {
    pub(super) service: Service,
    pub(super) checks: Vec<CheckSpec>,
}

impl ServiceDefinition {
    pub(super) fn parse(body: &[u8]) -> Result<Self, Refusal> {
        let mut fields = Fields::parse(body)?;
        let name = fields.string(&["Name"])?;
        let mut id = fields.string(&["ID"])?;
        if id.is_empty() {
            id.clone_from(&name);
        }
        // The token is for the agent's calls to servers with ACLs, which are this agent's own.
        fields.string(&["Token"])?;
        let single = fields.object(&["Check"], "structs.CheckType")?;
        let several = fields.objects(&["Checks"], "structs.CheckType")?;
        let given_weights = weights(&mut fields)?;
        let service = Service {
            kind: fields.string(&["Kind"])?,
            id,
            name,
            tags: fields.strings(&["Tags"])?.into(),
            address: fields.string(&["Address"])?,
            tagged_addresses: tagged_addresses(&mut fields)?,
            meta: fields.pairs(&["Meta"])?.unwrap_or_default(),
            port: fields.integer(&["Port"])?,
            weights: given_weights.unwrap_or_default(),
            enable_tag_override: fields.boolean(&["EnableTagOverride", "enable_tag_override"])?,
            proxy: proxy(&mut fields)?,
            connect_native: connect(&mut fields)?,
            ..Service::default()
        };
        let single = single.map(CheckDefinition::of_service).transpose()?;
        let several = several
            .into_iter()
            .map(CheckDefinition::of_service)
            .collect::<Result<Vec<_>, _>>()?;
        fields.finish()?;

        if service.name.is_empty() {
            return Err(Refusal::bad_request("Missing service name"));
        }
        if matches!(service.address.as_str(), "0.0.0.0" | "::" | "[::]") {
            return Err(Refusal::bad_request("Invalid service address"));
        }
        check_meta(&service.meta)?;
        if let Some(weights) = given_weights {
            check_weights(weights)?;
        }
        check_kind(&service)?;
        let mut checks = Vec::new();
        let single = single.filter(|check| !check.is_empty());
        for check in single.into_iter().chain(several) {
            checks.push(check.judged(Place::Service)?);
        }
        let mut definition = Self { service, checks };
        definition.add_tagged_addresses();
        Ok(definition)
    }

    /// Consul adds the address itself under its family's names.
    fn add_tagged_addresses(&mut self) {
        let service = &mut self.service;
        let family = match service.address.parse::<IpAddr>() {
            Ok(IpAddr::V4(_)) => "ipv4",
            Ok(IpAddr::V6(_)) => "ipv6",
            Err(_) => return,
        };
        for network in ["lan", "wan"] {
            service
                .tagged_addresses
                .entry(format!("{network}_{family}"))
                .or_insert_with(|| TaggedAddress {
                    address: service.address.clone(),
                    port: service.port,
                });
        }
    }
}

pub(super) fn weights(fields: &mut Fields) -> Result<Option<Weights>, Undecodable> {
    let Some(mut fields) = fields.object(&["Weights"], "structs.Weights")? else {
        return Ok(None);
    };
    let weights = Weights {
        passing: fields.integer(&["Passing"])?,
        warning: fields.integer(&["Warning"])?,
    };
    fields.finish()?;
    Ok(Some(weights))
}

pub(super) fn check_weights(weights: Weights) -> Result<(), Refusal> {
    let text = if weights.passing < 1 {
        "Passing must be greater than 0"
    } else if weights.warning < 0 {
        "Warning must be greater or equal than 0"
    } else if weights.passing > 65535 || weights.warning > 65535 {
        "DNS Weight must be between 0 and 65535"
    } else {
        return Ok(());
    };
    Err(Refusal::bad_request(format!("Invalid Weights: {text}")))
}

pub(super) fn tagged_addresses(
    fields: &mut Fields,
) -> Result<BTreeMap<String, TaggedAddress>, Undecodable> {
    const NAMES: &[&str] = &["TaggedAddresses", "tagged_addresses"];
    let Some(map) = fields.object(NAMES, "map[string]structs.ServiceAddress")? else {
        return Ok(BTreeMap::new());
    };
    map.into_entries()
        .map(|(name, value)| {
            let mut fields = Fields::entry(value, NAMES, "structs.ServiceAddress")?;
            let address = TaggedAddress {
                address: fields.string(&["Address"])?,
                port: fields.integer(&["Port"])?,
            };
            fields.finish()?;
            Ok((name, address))
        })
        .collect()
}

/// Reads the settings of a proxy and keeps those that are set.
fn proxy(fields: &mut Fields) -> Result<Map<String, Value>, Undecodable> {
    let mut kept = Map::new();
    let Some(mut fields) = fields.object(&["Proxy"], "structs.ConnectProxyConfig")? else {
        return Ok(kept);
    };
    for (name, snake) in [
        ("DestinationServiceName", "destination_service_name"),
        ("DestinationServiceID", "destination_service_id"),
        ("LocalServiceAddress", "local_service_address"),
    ] {
        let text = fields.string(&[name, snake])?;
        if !text.is_empty() {
            kept.insert(name.to_owned(), Value::String(text));
        }
    }
    let port = fields.integer(&["LocalServicePort", "local_service_port"])?;
    if port != 0 {
        kept.insert("LocalServicePort".to_owned(), port.into());
    }
    for (name, snake) in [
        ("Config", "config"),
        ("Upstreams", "upstreams"),
        ("MeshGateway", "mesh_gateway"),
        ("Expose", "expose"),
    ] {
        if let Some(value) = fields.take(&[name, snake]) {
            kept.insert(name.to_owned(), value);
        }
    }
    fields.finish()?;
    Ok(kept)
}

fn connect(fields: &mut Fields) -> Result<bool, Refusal> {
    let Some(mut fields) = fields.object(&["Connect"], "structs.ServiceConnect")? else {
        return Ok(false);
    };
    let native = fields.boolean(&["Native"])?;
    if fields
        .take(&["SidecarService", "sidecar_service"])
        .is_some()
    {
        return Err(Refusal::new(
            StatusCode::NOT_IMPLEMENTED,
            "The embedded agent does not serve PUT /v1/agent/service/register with \
             Connect.SidecarService",
        ));
    }
    // Consul reads this object with a reader of its own, which takes unknown names.
    Ok(native)
}

fn check_kind(service: &Service) -> Result<(), Refusal> {
    let mut wrong = Vec::new();
    match service.kind.as_str() {
        "connect-proxy" => {
            if !service.proxy.contains_key("DestinationServiceName") {
                wrong.push(
                    "Proxy.DestinationServiceName must be non-empty for Connect proxy services",
                );
            }
            if service.port == 0 {
                wrong.push("Port must be set for a Connect proxy");
            }
            if service.connect_native {
                wrong.push("A Proxy cannot also be Connect Native, only typical services");
            }
        }
        "mesh-gateway" if service.port == 0 => {
            wrong.push("Port must be non-zero for a mesh-gateway");
        }
        _ => {}
    }
    if wrong.is_empty() {
        return Ok(());
    }
    let plural = if wrong.len() == 1 { "" } else { "s" };
    let lines: String = wrong.iter().map(|text| format!("\t* {text}\n")).collect();
    Err(Refusal::bad_request(format!(
        "{} error{plural} occurred:\n{lines}\n",
        wrong.len()
    )))
}

fn check_meta(meta: &Pairs) -> Result<(), Refusal> {
    judge_meta(meta, true)
        .map_err(|text| Refusal::bad_request(format!("Invalid Service Meta: {text}")))
}

/// What Consul refuses as metadata; some keys may be reserved for itself.
pub(super) fn judge_meta(meta: &Pairs, reserves: bool) -> Result<(), String> {
    if meta.len() > META_PAIRS {
        return Err(format!(
            "Node metadata cannot contain more than {META_PAIRS} key/value pairs"
        ));
    }
    for (key, value) in meta {
        let is_word = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        let reason = if key.is_empty() {
            "Key cannot be blank".to_owned()
        } else if !key.chars().all(is_word) {
            "Key contains invalid characters".to_owned()
        } else if key.len() > META_KEY {
            format!("Key is too long (limit: {META_KEY} characters)")
        } else if reserves && key.starts_with("consul-") {
            "Key prefix 'consul-' is reserved for internal use".to_owned()
        } else if value.len() > META_VALUE {
            format!("Value is too long (limit: {META_VALUE} characters)")
        } else {
            continue;
        };
        return Err(format!(
            "Couldn't load metadata pair ('{key}', '{value}'): {reason}"
        ));
    }
    Ok(())
}

/// Where a check is defined: the two places have names and texts of their own.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Place {
    Service,
    Alone,
}

/// `MinInterval`.
const SHORTEST_INTERVAL: Duration = Duration::from_secs(1);
/// What a check may take that does not say.
const CHECK_TIMEOUT: Duration = Duration::from_secs(10);

/// A check as it was written.
#[derive(Debug)]
pub(super) struct CheckDefinition {
    id: String,
    name: String,
    notes: String,
    status: String,
    service_id: String,
    ttl: GoTime,
    interval: GoTime,
    deregister_after: GoTime,
    args: Vec<String>,
    http: String,
    tcp: String,
    grpc: String,
    docker: String,
    alias_node: String,
    alias_service: String,
    output_max: i64,
    timeout: GoTime,
    method: String,
}

impl CheckDefinition {
    /// Reads the body of `agent/check/register`.
    pub(super) fn parse(body: &[u8]) -> Result<CheckSpec, Refusal> {
        let mut fields = Fields::parse(body)?;
        let id = fields.string(&["ID"])?;
        fields.string(&["Token"])?;
        let definition = Self::rest(fields, id)?;
        if definition.name.is_empty() {
            return Err(Refusal::bad_request("Missing check name"));
        }
        definition.judged(Place::Alone)
    }

    fn of_service(mut fields: Fields) -> Result<Self, Undecodable> {
        let id = fields.string(&["CheckID"])?;
        fields.string(&["ProxyHTTP"])?;
        fields.string(&["ProxyGRPC"])?;
        Self::rest(fields, id)
    }

    fn rest(mut fields: Fields, id: String) -> Result<Self, Undecodable> {
        let definition = Self {
            id,
            name: fields.string(&["Name"])?,
            notes: fields.string(&["Notes"])?,
            status: fields.string(&["Status"])?,
            service_id: fields.string(&["ServiceID", "service_id"])?,
            ttl: fields.time(&["TTL"])?,
            interval: fields.time(&["Interval"])?,
            deregister_after: fields.time(&[
                "DeregisterCriticalServiceAfter",
                "deregister_critical_service_after",
            ])?,
            args: fields.strings(&["Args", "ScriptArgs", "script_args"])?,
            http: fields.string(&["HTTP"])?,
            tcp: fields.string(&["TCP"])?,
            grpc: fields.string(&["GRPC"])?,
            docker: fields.string(&["DockerContainerID", "docker_container_id"])?,
            alias_node: fields.string(&["AliasNode"])?,
            alias_service: fields.string(&["AliasService"])?,
            output_max: fields.integer(&["OutputMaxSize"])?,
            timeout: fields.time(&["Timeout"])?,
            method: fields.string(&["Method"])?,
        };
        // What else tells how to run a check matters to nobody.
        fields.take(&["Header"]);
        fields.string(&["Body"])?;
        fields.string(&["Shell"])?;
        fields.boolean(&["GRPCUseTLS"])?;
        fields.boolean(&["TLSSkipVerify", "tls_skip_verify"])?;
        fields.integer(&["SuccessBeforePassing"])?;
        fields.integer(&["FailuresBeforeCritical"])?;
        fields.finish()?;
        Ok(definition)
    }

    /// A check of a service in which nothing is set is no check.
    fn is_empty(&self) -> bool {
        self.id.is_empty()
            && self.name.is_empty()
            && self.notes.is_empty()
            && self.status.is_empty()
            && self.ttl.is_zero()
            && self.interval.is_zero()
            && self.deregister_after.is_zero()
            && self.args.is_empty()
            && self.http.is_empty()
            && self.tcp.is_empty()
            && self.grpc.is_empty()
            && self.docker.is_empty()
            && self.alias_node.is_empty()
            && self.alias_service.is_empty()
            && self.output_max == 0
    }

    fn judged(self, place: Place) -> Result<CheckSpec, Refusal> {
        let is_script = !self.args.is_empty();
        let is_alias = !self.alias_node.is_empty() || !self.alias_service.is_empty();
        let has_interval =
            is_script || !self.http.is_empty() || !self.tcp.is_empty() || !self.grpc.is_empty();
        let wrong = if !self.interval.positive().is_zero() && !self.ttl.positive().is_zero() {
            "Interval and TTL cannot both be specified"
        } else if has_interval && self.interval.positive().is_zero() {
            "Interval must be > 0 for Script, HTTP, or TCP checks"
        } else if has_interval && is_alias {
            "Interval cannot be set for Alias checks"
        } else if is_alias && !self.ttl.positive().is_zero() {
            "TTL must be not be set for Alias checks"
        } else if !has_interval && !is_alias && self.ttl.positive().is_zero() {
            "TTL must be > 0 for TTL checks"
        } else if self.output_max < 0 {
            "MaxOutputMaxSize must be positive"
        } else {
            ""
        };
        if !wrong.is_empty() {
            return Err(Refusal::bad_request(format!("Invalid check: {wrong}")));
        }
        if !matches!(
            self.status.as_str(),
            "" | "passing" | "warning" | "critical"
        ) {
            return Err(Refusal::bad_request(match place {
                Place::Service => "Status for checks must 'passing', 'warning', 'critical'",
                Place::Alone => "Bad check status",
            }));
        }
        if is_script {
            return Err(Refusal::internal(
                "Scripts are disabled on this agent from remote calls; to enable, configure \
                 'enable_script_checks' to true",
            ));
        }
        let kind = if is_alias {
            CheckKind::Alias
        } else if !self.docker.is_empty() {
            CheckKind::Docker
        } else if !self.http.is_empty() {
            CheckKind::Http
        } else if !self.tcp.is_empty() {
            CheckKind::Tcp
        } else if !self.grpc.is_empty() {
            CheckKind::Grpc
        } else {
            CheckKind::Ttl
        };
        let timeout = self.timeout.positive();
        let way = match kind {
            CheckKind::Tcp => Some(Way::Tcp(self.tcp)),
            CheckKind::Http => Some(Way::Http {
                url: self.http,
                method: if self.method.is_empty() {
                    "GET".to_owned()
                } else {
                    self.method
                },
            }),
            _ => None,
        };
        let run = way.map(|way| Run {
            way,
            // What is shorter than a second is a second.
            interval: self.interval.positive().max(SHORTEST_INTERVAL),
            timeout: if timeout.is_zero() {
                CHECK_TIMEOUT
            } else {
                timeout
            },
        });
        let asked = usize::try_from(self.output_max).unwrap_or(OUTPUT_MAX);
        Ok(CheckSpec {
            id: self.id,
            name: self.name,
            notes: self.notes,
            service_id: self.service_id,
            status: (!self.status.is_empty()).then(|| status(&self.status)),
            kind,
            ttl: self.ttl.positive(),
            deregister_after: self.deregister_after.positive(),
            output_max: if asked == 0 {
                OUTPUT_MAX
            } else {
                asked.min(OUTPUT_MAX)
            },
            run,
        })
    }
}
