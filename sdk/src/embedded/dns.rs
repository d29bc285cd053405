//! Consul's DNS interface: from a packet to the packet that answers it.
//!
//! Only this file knows the wire format. Names and rules are those of Consul 1.8.7 with its
//! defaults: <https://developer.hashicorp.com/consul/docs/services/discovery/dns-static-lookups>.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use hickory_proto::op::{Edns, Message, MessageType, Metadata, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{CNAME, NS, PTR, SOA, SRV, TXT};
use hickory_proto::rr::{Name, RData, Record, RecordType};

use super::core::{Core, Locked};
use super::state::catalog::{Catalog, Instance};
use super::state::model::{CRITICAL, Node, WARNING};

/// `udp_answer_limit`: how many answers fit a UDP packet whose asker speaks no EDNS.
const UDP_ANSWERS: usize = 3;
/// The size of a UDP packet without EDNS (RFC 1035, section 2.3.4).
const UDP_SIZE: usize = 512;
/// The largest message that the length before a TCP message can tell (RFC 1035, section 4.2.2).
const TCP_SIZE: usize = 65_535;

/// How a question came, which decides how long its answer may be.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Transport {
    Udp,
    Tcp,
}

/// Answers one message; `None` when it is not even a question.
pub(super) fn answer(core: &Core, packet: &[u8], transport: Transport) -> Option<Vec<u8>> {
    let request = Message::from_vec(packet).ok()?;
    if request.metadata.message_type != MessageType::Query {
        return None;
    }
    let mut reply = Message::new(
        request.metadata.id,
        MessageType::Response,
        request.metadata.op_code,
    );
    reply.metadata = Metadata::response_from_request(&request.metadata);
    let query = request.queries.first().cloned();
    reply.add_queries(query.clone());
    let Some(query) = query.filter(|_| request.metadata.op_code == OpCode::Query) else {
        reply.metadata.response_code = ResponseCode::NotImp;
        return reply.to_vec().ok();
    };
    let mut locked = core.lock();
    let lookup = Lookup::new(&mut locked, &query);
    let found = lookup.find();
    let failed = found.code == ResponseCode::ServFail;
    if found.code != ResponseCode::Refused {
        reply.metadata.authoritative = !failed;
        reply.metadata.recursion_available = failed;
        if let Some(asked) = &request.edns {
            let mut edns = Edns::new();
            edns.set_max_payload(asked.max_payload());
            reply.set_edns(edns);
        }
    }
    reply.metadata.response_code = found.code;
    reply.add_authorities(found.authorities);
    let limit = match (transport, &request.edns) {
        (Transport::Tcp, _) => TCP_SIZE,
        (Transport::Udp, None) => UDP_SIZE,
        (Transport::Udp, Some(edns)) => usize::from(edns.max_payload()).max(UDP_SIZE),
    };
    let most = if limit == UDP_SIZE {
        UDP_ANSWERS
    } else {
        usize::MAX
    };
    fit(&reply, &found.answers, most, limit)
}

/// Writes as many answers as fit. Consul does not tell that there were more.
fn fit(reply: &Message, answers: &[Answer], most: usize, limit: usize) -> Option<Vec<u8>> {
    let write = |count: usize| {
        let whole = count == answers.len();
        let mut reply = reply.clone();
        for answer in answers.iter().take(count) {
            reply.answers.extend(answer.record.clone());
            // After a cut only the addresses of the targets are left of what was added.
            let extras = answer
                .extras
                .iter()
                .filter(|extra| whole || extra.data.ip_addr().is_some());
            reply.additionals.extend(extras.cloned());
        }
        reply.to_vec().ok().filter(|packet| packet.len() <= limit)
    };
    let all = answers.len().min(most);
    if let Some(packet) = write(all) {
        return Some(packet);
    }
    // Sizes grow with the count, so that the largest that fits is found by halving.
    let (mut fits, mut fails) = (0, all);
    while fails - fits > 1 {
        let middle = fits + (fails - fits) / 2;
        if write(middle).is_some() {
            fits = middle;
        } else {
            fails = middle;
        }
    }
    write(fits)
}

/// One record of the answer section, if any, with what is added for it.
#[derive(Debug, Default)]
struct Answer {
    record: Option<Record>,
    extras: Vec<Record>,
}

impl Answer {
    fn new(record: Record) -> Self {
        Self {
            record: Some(record),
            extras: Vec::new(),
        }
    }
}

#[derive(Debug)]
struct Found {
    code: ResponseCode,
    answers: Vec<Answer>,
    authorities: Vec<Record>,
}

impl Found {
    fn answers(answers: Vec<Answer>) -> Self {
        Self {
            code: ResponseCode::NoError,
            answers,
            authorities: Vec::new(),
        }
    }
}

/// What a name asks for.
#[derive(Debug, Eq, PartialEq)]
enum Subject {
    Service {
        name: String,
        tag: String,
    },
    Connect {
        name: String,
    },
    Node {
        name: String,
    },
    Address {
        hex: String,
    },
    Reverse {
        address: IpAddr,
    },
    /// Under Consul's domain, but nothing that Consul has.
    Unknown,
    /// Somebody else's domain.
    Foreign,
}

impl Subject {
    fn parse(name: &Name, datacenter: &str) -> Self {
        if let Ok(network) = name.parse_arpa_name() {
            return Self::Reverse {
                address: network.addr(),
            };
        }
        let labels: Vec<String> = name
            .iter()
            .map(|label| String::from_utf8_lossy(label).to_lowercase())
            .collect();
        let Some((domain, labels)) = labels.split_last() else {
            return Self::Foreign;
        };
        if domain != "consul" {
            return Self::Foreign;
        }
        let kinds = ["service", "connect", "node", "addr", "query", "ingress"];
        let kind = labels
            .iter()
            .rposition(|label| kinds.contains(&label.as_str()));
        let (parts, kind, suffix) = match kind.map(|at| (labels.split_at(at), at)) {
            Some(((parts, rest), _)) => match rest.split_first() {
                Some((kind, suffix)) => (parts, kind.as_str(), suffix),
                None => return Self::Unknown,
            },
            // RFC 2782 names may leave the label `service` out.
            None if labels.last().is_some_and(|last| last.starts_with('_')) => {
                (labels, "service", [].as_slice())
            }
            None => return Self::Unknown,
        };
        match suffix {
            [] => {}
            [named] if named.eq_ignore_ascii_case(datacenter) => {}
            _ => return Self::Unknown,
        }
        let Some((last, before)) = parts.split_last() else {
            return Self::Unknown;
        };
        match (kind, before) {
            ("service", [service]) if service.starts_with('_') && last.starts_with('_') => {
                let tag = last.trim_start_matches('_');
                Self::Service {
                    name: service.trim_start_matches('_').to_owned(),
                    // A protocol for RFC 2782 and no tag for Consul; any other is a tag.
                    tag: if tag == "tcp" { "" } else { tag }.to_owned(),
                }
            }
            ("service", tag) => Self::Service {
                name: last.clone(),
                tag: tag.join("."),
            },
            ("connect", _) => Self::Connect { name: last.clone() },
            ("node", _) => Self::Node {
                name: parts.join("."),
            },
            ("addr", _) => Self::Address {
                hex: parts.first().unwrap_or(last).clone(),
            },
            _ => Self::Unknown,
        }
    }
}

/// A question with what is needed to answer it.
struct Lookup<'a> {
    catalog: &'a Catalog,
    datacenter: &'a str,
    own_node: &'a str,
    serial: u32,
    /// A random number per question: answers come in another order each time.
    turn: u64,
    name: &'a Name,
    asked: RecordType,
}

impl<'a> Lookup<'a> {
    fn new(locked: &'a mut Locked<'_>, query: &'a Query) -> Self {
        let turn = locked.state.random(u64::MAX);
        let state = &locked.state;
        Self {
            catalog: &state.replica.catalog,
            datacenter: &state.identity.datacenter,
            own_node: &state.identity.node,
            // Consul's serial is the wall clock, which is none of an answer's business here.
            serial: u32::try_from(state.index()).unwrap_or(u32::MAX),
            turn,
            name: query.name(),
            asked: query.query_type(),
        }
    }

    fn find(&self) -> Found {
        let subject = Subject::parse(self.name, self.datacenter);
        if let Subject::Reverse { address } = subject {
            return self.reverse(address);
        }
        if subject == Subject::Foreign {
            return Found {
                code: ResponseCode::Refused,
                answers: Vec::new(),
                authorities: Vec::new(),
            };
        }
        // These two are answered for every name of the domain.
        match self.asked {
            RecordType::SOA => {
                let (ns, glue) = self.name_server();
                let mut soa = Answer::default();
                soa.record = self.soa();
                soa.extras.extend(glue);
                let mut found = Found::answers(vec![soa]);
                found.authorities.extend(ns);
                return found;
            }
            RecordType::NS => {
                let (record, glue) = self.name_server();
                return Found::answers(vec![Answer {
                    record,
                    extras: glue.into_iter().collect(),
                }]);
            }
            _ => {}
        }
        match subject {
            Subject::Service { name, tag } => self.service(self.catalog.instances(&name), &tag),
            Subject::Connect { name } => self.service(self.catalog.connect_instances(&name), ""),
            Subject::Node { name } => self.node(&name),
            Subject::Address { hex } => self.address(&hex),
            Subject::Reverse { .. } | Subject::Unknown | Subject::Foreign => self.no_such_name(),
        }
    }

    fn no_such_name(&self) -> Found {
        Found {
            code: ResponseCode::NXDomain,
            answers: Vec::new(),
            authorities: self.soa().into_iter().collect(),
        }
    }

    fn service(&self, instances: impl Iterator<Item = Instance<'a>>, tag: &str) -> Found {
        let mut healthy: Vec<Instance<'a>> = instances
            .filter(|instance| {
                tag.is_empty()
                    || instance
                        .service
                        .tags
                        .iter()
                        .any(|known| known.to_lowercase() == tag)
            })
            .filter(|instance| instance.checks().all(|check| check.status != CRITICAL))
            .collect();
        if healthy.is_empty() {
            return self.no_such_name();
        }
        let mut turn = self.turn;
        for at in (1..healthy.len()).rev() {
            // A linear congruential step (Knuth's MMIX) is random enough for an order.
            turn = turn
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            let bound = u64::try_from(at).unwrap_or(u64::MAX).saturating_add(1);
            let other = usize::try_from((turn >> 33) % bound).unwrap_or(at);
            healthy.swap(at, other);
        }
        let answers = if self.asked == RecordType::SRV {
            self.targets(&healthy)
        } else {
            self.addresses(&healthy)
        };
        let mut found = Found::answers(answers);
        if found.answers.is_empty() {
            // The name is there, but nothing of this type.
            found.authorities.extend(self.soa());
        }
        found
    }

    fn targets(&self, instances: &[Instance<'a>]) -> Vec<Answer> {
        let mut seen = BTreeSet::new();
        let mut answers = Vec::new();
        for instance in instances {
            let (node, service) = (instance.node, instance.service);
            if !seen.insert((&node.name, &service.address, service.port)) {
                continue;
            }
            let node_name = self.under(&format!("{}.node", node.name));
            let metadata = node_name.as_ref().map(|name| metadata(name, node));
            let mut extras = Vec::new();
            let target = if service.address.is_empty() {
                match (node.address.parse::<IpAddr>(), &node_name) {
                    (Ok(address), Some(name)) => {
                        extras.push(record(name, RData::from(address)));
                        node_name.clone()
                    }
                    _ => absolute(&node.address),
                }
            } else if let Ok(address) = service.address.parse::<IpAddr>() {
                let name = self.under(&format!("{}.addr", hex(address)));
                if let Some(name) = &name {
                    extras.push(record(name, RData::from(address)));
                }
                name
            } else {
                absolute(&service.address)
            };
            let Some(target) = target else {
                // A name that no DNS message can carry.
                continue;
            };
            extras.extend(metadata.into_iter().flatten());
            let port = u16::try_from(service.port).unwrap_or_default();
            let srv = SRV::new(1, weight(instance), port, target);
            answers.push(Answer {
                record: Some(record(self.name, RData::SRV(srv))),
                extras,
            });
        }
        answers
    }

    fn addresses(&self, instances: &[Instance<'a>]) -> Vec<Answer> {
        let mut seen = BTreeSet::new();
        let mut alias = None;
        let mut answers = Vec::new();
        for instance in instances {
            let own = &instance.service.address;
            let address = if own.is_empty() {
                &instance.node.address
            } else {
                own
            };
            match address.parse::<IpAddr>() {
                Ok(address) => {
                    if self.wants(address) && seen.insert(address) {
                        answers.push(Answer::new(record(self.name, RData::from(address))));
                    }
                }
                Err(_) => alias = alias.or_else(|| absolute(address)),
            }
        }
        // A name stands alone in an answer, so that it is told only if there is nothing else.
        if answers.is_empty()
            && let Some(alias) = alias
        {
            answers.push(Answer::new(record(self.name, RData::CNAME(CNAME(alias)))));
        }
        answers
    }

    fn wants(&self, address: IpAddr) -> bool {
        match self.asked {
            RecordType::A => address.is_ipv4(),
            RecordType::AAAA => address.is_ipv6(),
            _ => true,
        }
    }

    fn node(&self, name: &str) -> Found {
        let Some(node) = self.catalog.node(name) else {
            return self.no_such_name();
        };
        let texts = metadata(self.name, node);
        let mut answers = Vec::new();
        let is_any = self.asked == RecordType::ANY;
        if is_any || matches!(self.asked, RecordType::A | RecordType::AAAA) {
            match node.address.parse::<IpAddr>() {
                Ok(address) if self.wants(address) => {
                    answers.push(Answer::new(record(self.name, RData::from(address))));
                }
                Ok(_) => {}
                Err(_) => answers.extend(
                    absolute(&node.address)
                        .map(|alias| Answer::new(record(self.name, RData::CNAME(CNAME(alias))))),
                ),
            }
        }
        if is_any || self.asked == RecordType::TXT {
            answers.extend(texts.map(Answer::new));
        } else if matches!(self.asked, RecordType::A | RecordType::AAAA) {
            answers.push(Answer {
                record: None,
                extras: texts.collect(),
            });
        }
        Found::answers(answers)
    }

    fn address(&self, hex: &str) -> Found {
        let address = match hex.len() {
            8 => u32::from_str_radix(hex, 16)
                .ok()
                .map(|bits| IpAddr::V4(Ipv4Addr::from_bits(bits))),
            32 => u128::from_str_radix(hex, 16)
                .ok()
                .map(|bits| IpAddr::V6(Ipv6Addr::from_bits(bits))),
            _ => None,
        };
        match address {
            Some(address) => {
                let name = self.name.to_lowercase();
                Found::answers(vec![Answer::new(record(&name, RData::from(address)))])
            }
            None if matches!(hex.len(), 8 | 32) => self.no_such_name(),
            None => Found::answers(Vec::new()),
        }
    }

    fn reverse(&self, address: IpAddr) -> Found {
        let is_it = |text: &str| text.parse::<IpAddr>() == Ok(address);
        let node = self.catalog.nodes().find(|node| is_it(&node.address));
        let name = match node {
            Some(node) => Some(format!("{}.node", node.name)),
            None => self
                .catalog
                .all_instances()
                .find(|instance| is_it(&instance.service.address))
                .map(|instance| format!("{}.service", instance.service.name)),
        };
        match name.and_then(|name| self.under(&name)) {
            Some(name) => {
                Found::answers(vec![Answer::new(record(self.name, RData::PTR(PTR(name))))])
            }
            // Consul would ask its recursors, of which there are none.
            None => Found {
                code: ResponseCode::ServFail,
                answers: Vec::new(),
                authorities: Vec::new(),
            },
        }
    }

    /// `labels.<datacenter>.consul.`
    fn under(&self, labels: &str) -> Option<Name> {
        absolute(&format!("{labels}.{}.consul", self.datacenter))
    }

    fn soa(&self) -> Option<Record> {
        let soa = SOA::new(
            absolute("ns.consul")?,
            absolute("hostmaster.consul")?,
            self.serial,
            3600,
            600,
            86_400,
            0,
        );
        Some(record(&absolute("consul")?, RData::SOA(soa)))
    }

    /// The only server there is, and its address.
    fn name_server(&self) -> (Option<Record>, Option<Record>) {
        let name = self.under(&format!("{}.node", self.own_node));
        let ns = absolute("consul")
            .zip(name.clone())
            .map(|(domain, name)| record(&domain, RData::NS(NS(name))));
        let address = self
            .catalog
            .node(self.own_node)
            .and_then(|node| node.address.parse::<IpAddr>().ok());
        let glue = name
            .zip(address)
            .map(|(name, address)| record(&name, RData::from(address)));
        (ns, glue)
    }
}

/// Every record lives for no time at all: `service_ttl` and `node_ttl` are zero by default.
fn record(name: &Name, data: RData) -> Record {
    Record::from_rdata(name.clone(), 0, data)
}

fn absolute(name: &str) -> Option<Name> {
    let mut name = Name::from_str_relaxed(name).ok()?;
    name.set_fqdn(true);
    Some(name)
}

/// A node's metadata as texts (RFC 1464), except under a prefix that asks for the value alone.
fn metadata(name: &Name, node: &Node) -> impl Iterator<Item = Record> + use<> {
    let name = name.clone();
    let pairs = node.meta.clone().unwrap_or_default();
    pairs.into_iter().map(move |(key, value)| {
        let text = if key.to_lowercase().starts_with("rfc1035-") {
            value
        } else {
            format!("{key}={value}")
        };
        record(&name, RData::TXT(TXT::new(vec![text])))
    })
}

fn hex(address: IpAddr) -> String {
    match address {
        IpAddr::V4(address) => format!("{:08x}", address.to_bits()),
        IpAddr::V6(address) => format!("{:032x}", address.to_bits()),
    }
}

/// One warning is enough for the weight of a warning.
fn weight(instance: &Instance<'_>) -> u16 {
    let weights = instance.service.weights;
    let warns = instance.checks().any(|check| check.status == WARNING);
    let weight = if warns {
        weights.warning
    } else {
        weights.passing
    };
    u16::try_from(weight).unwrap_or_default()
}

#[cfg(test)]
mod tests;
