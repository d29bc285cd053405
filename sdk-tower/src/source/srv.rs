//! Endpoints from DNS SRV records, Consul's or any other; the only file that names hickory.
//!
//! What is used of hickory is the layer below its `Resolver`: one exchange of messages over one
//! connection. The `Resolver` of 0.26 takes the target of an SRV record for an alias (an SRV name
//! that really is an alias is then not found), drives its connections in tasks of its own and
//! keeps them open.

mod builder;

use std::collections::HashMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_core::Stream;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::tcp::TcpClientStream;
use hickory_resolver::net::xfer::{DnsExchange, DnsHandle, DnsMultiplexer, FirstAnswer};
use hickory_resolver::proto::op::{DnsRequestOptions, DnsResponse, Query, ResponseCode};
use hickory_resolver::proto::rr::{DNSClass, Name, RData, Record, RecordType, rdata::SRV};
use tokio::runtime::Handle;
use tokio::time::{Instant, Sleep};

use super::refresh::{Answer, Pace, Refresh, Turn};
use super::zone::{Place, Zone};
use super::{Source, Status};
use crate::endpoint::{Endpoint, EndpointSet, Host, Target};

pub use self::builder::SrvSourceBuilder;

/// Endpoints from SRV records, asked for again and again.
///
/// Any SRV name will do: Consul's `web.service.consul`, `v1.web.service.dc1.consul` or
/// `_web._tcp.service.consul`, a prepared query `web.query.consul`, or `_web._tcp.example.com` of
/// another DNS server.
///
/// # What is asked, and how
///
/// Queries go over TCP only, on a connection that lasts for one refresh: over UDP Consul cuts the
/// answer to what fits and does not say so. No system configuration, no hosts file, no search
/// domain and no cache is involved.
///
/// Even over TCP a DNS message ends at 65,535 octets, and Consul names some 1,000 instances at
/// most, another choice each time. Such answers are added up: an instance is gone when 30 answers
/// in a row did not name it. This finds some 3,000 instances; larger services should be watched
/// over HTTP. A `tracing` warning says when answers are cut.
///
/// The answer says how long it holds (TTL), between [`min_refresh`](SrvSourceBuilder::min_refresh)
/// and [`max_refresh`](SrvSourceBuilder::max_refresh). Consul's default TTL is 0, so that the
/// former sets the pace. Up to a quarter of the interval is added at random, so that many
/// processes do not ask in step.
///
/// # What an answer means
///
/// - Targets `<hex>.addr.<dc>.consul` are read as the IP address they spell, and targets
///   `<node>.node.<dc>.consul` become the node's IP address, from the additional records of the
///   answer or by a query to the same server. Any other target stays a name, to be resolved when
///   a connection is opened; the set is then what Consul's HTTP API gives for the same service.
///   With [`resolve_targets`](SrvSourceBuilder::resolve_targets) those become addresses, too.
/// - Priority and weight are kept. Consul's weight is that of the instance's state, passing or
///   warning.
/// - A target `.` says that the service is not offered (RFC 2782), port 0 that the instance has
///   none; neither becomes an endpoint.
/// - *No such name* and *no such record* mean that nobody is there, but Consul also says so for a
///   moment when it restarts or lacks a permission. A known set stays in force for the
///   [`grace`](SrvSourceBuilder::grace) period. If nothing was known before, the set is empty at
///   once.
/// - Everything else (no connection, no answer in time, a server failure, nonsense) keeps the
///   known set. It is tried again after the smallest interval, doubled with each failure up to
///   5 s.
///
/// # Cancel safety
///
/// Waiting for the next item can be given up at any time; nothing is lost. The source starts no
/// task: it works while it is polled, and dropping it closes its connection at once.
///
/// # Examples
///
/// ```
/// use std::time::Duration;
///
/// use lictor_tower::source::{Source, SrvSource, Status};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), lictor_tower::error::Error> {
/// let source = SrvSource::builder("web.service.consul")
///     .server(([127, 0, 0, 1], 8600).into())
///     .min_refresh(Duration::from_secs(2))
///     .build()?;
/// assert_eq!(source.status(), Status::Unknown);
/// # Ok(())
/// # }
/// ```
pub struct SrvSource {
    question: Arc<Question>,
    refresh: Refresh,
    phase: Phase,
    /// The server that has answered last is asked first.
    server: usize,
    oddities: Oddities,
}

/// What does not change from one refresh to the next.
struct Question {
    name: Name,
    /// The name as the user knows it, for logs.
    text: Arc<str>,
    zone: Zone,
    servers: Vec<SocketAddr>,
    timeout: Duration,
    /// Targets that are no names of Consul's become addresses, too.
    resolves: bool,
}

enum Phase {
    Start,
    Asking(Pin<Box<dyn Future<Output = Heard> + Send>>),
    Waiting(Pin<Box<Sleep>>),
}

/// What a refresh has brought.
struct Heard {
    server: usize,
    answer: Answer,
    oddities: Oddities,
}

/// What is wrong with an answer that is good otherwise.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
struct Oddities {
    /// Records that name nobody who can be called.
    skipped: usize,
    example: Option<String>,
    /// The answer is as long as answers can be.
    cut: bool,
}

impl Oddities {
    fn skip(&mut self, why: String) {
        self.skipped += 1;
        self.example.get_or_insert(why);
    }
}

/// Consul names at most so many instances in an answer over TCP (`trimTCPResponse` in its
/// `dns.go`)...
const RECORDS_MAX: usize = 1024;

/// ...and takes off whole records until the message fits into 65,523 octets. One that ends less
/// than a large record below was probably cut.
const OCTETS_MAX: usize = 65_523 - 2_048;

/// How many aliases are followed from the name to its records.
const ALIASES_MAX: usize = 8;

impl SrvSource {
    /// Options for the SRV records of a name, each with a default.
    pub fn builder(name: impl Into<String>) -> SrvSourceBuilder {
        SrvSourceBuilder::new(name.into())
    }

    fn new(question: Question, pace: Pace) -> Self {
        Self {
            question: Arc::new(question),
            refresh: Refresh::new(pace),
            phase: Phase::Start,
            server: 0,
            oddities: Oddities::default(),
        }
    }

    /// Logs what turned; routine is not logged.
    fn note(&mut self, turn: Option<Turn>, oddities: Option<Oddities>) {
        let name = &*self.question.text;
        match turn {
            Some(Turn::Doubt(reason)) => {
                tracing::warn!(name, %reason, "SRV records cannot be confirmed");
            }
            Some(Turn::Sure) => tracing::info!(name, "SRV records are confirmed again"),
            None => {}
        }
        let Some(oddities) = oddities else { return };
        if oddities.skipped > 0 && oddities.skipped != self.oddities.skipped {
            let example = oddities.example.as_deref().unwrap_or_default();
            let skipped = oddities.skipped;
            tracing::warn!(name, skipped, example, "SRV records name nobody to call");
        }
        if oddities.cut && !self.oddities.cut {
            tracing::warn!(
                name,
                "SRV answers are cut and added up; HTTP tells all at once"
            );
        }
        self.oddities = oddities;
    }
}

impl Question {
    /// The name to ask for, of a name that is known to be a DNS name, without the final dot.
    fn name(text: &str) -> Result<Name, String> {
        // With the final dot no search domain can come in.
        Name::from_ascii(format!("{text}.")).map_err(|why| why.to_string())
    }
}

impl Stream for SrvSource {
    type Item = EndpointSet;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<EndpointSet>> {
        let this = &mut *self;
        if Handle::try_current().is_err() {
            // Timers and sockets would panic. The state tells why nothing comes.
            let reason = "polled outside a Tokio runtime".into();
            let failed = Answer::Failed { reason };
            let step = this.refresh.apply(failed, Instant::now(), 0);
            this.note(step.turn, None);
            return Poll::Pending;
        }
        loop {
            match &mut this.phase {
                Phase::Start => {}
                Phase::Waiting(sleep) => ready!(sleep.as_mut().poll(cx)),
                Phase::Asking(asking) => {
                    let heard = ready!(asking.as_mut().poll(cx));
                    this.server = heard.server;
                    let answered = matches!(heard.answer, Answer::Set { .. });
                    let step = this
                        .refresh
                        .apply(heard.answer, Instant::now(), rand::random());
                    this.phase = Phase::Waiting(Box::pin(tokio::time::sleep(step.wait)));
                    this.note(step.turn, answered.then_some(heard.oddities));
                    match step.tell {
                        Some(set) => return Poll::Ready(Some(set)),
                        None => continue,
                    }
                }
            }
            this.phase = Phase::Asking(Box::pin(ask(Arc::clone(&this.question), this.server)));
        }
    }
}

impl Source for SrvSource {
    fn status(&self) -> Status {
        self.refresh.status(Instant::now())
    }
}

impl fmt::Debug for SrvSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SrvSource")
            .field("name", &self.question.text)
            .field("servers", &self.question.servers)
            .field("status", &self.status())
            .finish_non_exhaustive()
    }
}

/// Asks one server after the other until one knows; at worst `timeout` for each.
async fn ask(question: Arc<Question>, first: usize) -> Heard {
    let count = question.servers.len();
    let mut reasons = Vec::new();
    for (server, addr) in question
        .servers
        .iter()
        .enumerate()
        .cycle()
        .skip(first)
        .take(count)
    {
        let heard = tokio::time::timeout(question.timeout, ask_server(&question, *addr)).await;
        match heard {
            Ok(Ok((answer, oddities))) => {
                return Heard {
                    server,
                    answer,
                    oddities,
                };
            }
            Ok(Err(reason)) => reasons.push(format!("{addr}: {reason}")),
            Err(_) => reasons.push(format!("{addr}: no answer within {:?}", question.timeout)),
        }
    }
    Heard {
        server: first,
        answer: Answer::Failed {
            reason: reasons.join("; ").into(),
        },
        oddities: Oddities::default(),
    }
}

/// Asks one server over a connection of its own. The error says why it could not be asked.
///
/// The connection is driven right here and not by a task, so that it ends with this future.
async fn ask_server(question: &Question, server: SocketAddr) -> Result<(Answer, Oddities), String> {
    let (connecting, sender) = TcpClientStream::new(
        server,
        None,
        Some(question.timeout),
        TokioRuntimeProvider::new(),
    );
    let stream = connecting.await.map_err(|why| why.to_string())?;
    let multiplexer = DnsMultiplexer::new(stream, sender).with_timeout(question.timeout);
    let (exchange, connection) = DnsExchange::from_stream(multiplexer);
    let connection = async {
        connection.await;
        // The answer may have come right before the end of the connection; if not, the question
        // fails by itself.
        std::future::pending().await
    };
    tokio::select! {
        biased;
        heard = read(question, &exchange) => heard,
        () = connection => Err("connection closed".to_owned()),
    }
}

type Exchange = DnsExchange<TokioRuntimeProvider>;

/// Asks for the SRV records, along aliases if there are some.
async fn read(question: &Question, exchange: &Exchange) -> Result<(Answer, Oddities), String> {
    let mut name = question.name.clone();
    for _ in 0..=ALIASES_MAX {
        let response = query(exchange, name.clone(), RecordType::SRV).await?;
        let owner = follow(&response.answers, &name)?;
        let records: Vec<(u32, &SRV)> = response
            .answers
            .iter()
            .filter(|record| record.dns_class == DNSClass::IN && record.name == owner)
            .filter_map(|record| match &record.data {
                RData::SRV(srv) => Some((record.ttl, srv)),
                _ => None,
            })
            .collect();
        if !records.is_empty() {
            return endpoints(question, exchange, &response, &records).await;
        }
        if response.truncation {
            return Err("the answer is cut to nothing".to_owned());
        }
        let denied = response.response_code == ResponseCode::NXDomain;
        if denied || owner == name {
            let reason = if denied {
                "no such name"
            } else {
                "the name has no SRV records"
            };
            let answer = Answer::Denied {
                reason: reason.into(),
                ttl: seconds(response.negative_ttl().unwrap_or(0)),
            };
            return Ok((answer, Oddities::default()));
        }
        name = owner;
    }
    Err(format!("more than {ALIASES_MAX} aliases in a row"))
}

/// Makes endpoints of SRV records.
async fn endpoints(
    question: &Question,
    exchange: &Exchange,
    response: &DnsResponse,
    records: &[(u32, &SRV)],
) -> Result<(Answer, Oddities), String> {
    let mut hosts = Hosts::of(&response.additionals);
    let mut oddities = Oddities {
        cut: response.truncation
            || records.len() >= RECORDS_MAX
            || response.as_buffer().len() >= OCTETS_MAX,
        ..Oddities::default()
    };
    let mut endpoints = Vec::with_capacity(records.len());
    let mut ttl = u32::MAX;
    for (record_ttl, srv) in records {
        ttl = ttl.min(*record_ttl);
        // RFC 2782: "A Target of "." means that the service is decidedly not available at this
        // domain." It is an answer and no oddity.
        if srv.target.is_root() {
            continue;
        }
        let labels: Vec<&[u8]> = srv.target.iter().collect();
        let place = question.zone.place(&labels);
        let found = match place {
            Place::Address(ip) => Found::from(Host::Ip(ip)),
            Place::Elsewhere if !question.resolves => {
                Found::from(Host::Name(srv.target.to_ascii().into()))
            }
            Place::Node | Place::Elsewhere => hosts.find(exchange, &srv.target).await?,
        };
        ttl = ttl.min(found.ttl);
        if found.hosts.is_empty() {
            oddities.skip(format!("{} has no address", srv.target));
        }
        // A node of Consul's is one instance, however many addresses it has.
        let most = if place == Place::Node { 1 } else { usize::MAX };
        for host in found.hosts.into_iter().take(most) {
            match Target::new(host, srv.port) {
                Ok(target) => endpoints.push(
                    Endpoint::new(target)
                        .with_weight(srv.weight.into())
                        .with_priority(srv.priority),
                ),
                Err(why) => oddities.skip(why.to_string()),
            }
        }
    }
    let answer = Answer::Set {
        set: endpoints.into_iter().collect(),
        ttl: seconds(ttl),
        cut: oddities.cut,
    };
    Ok((answer, oddities))
}

/// Where the targets of SRV records are, as far as it is known.
struct Hosts(HashMap<Name, Found>);

/// Where a target is.
#[derive(Clone, Debug)]
struct Found {
    /// The addresses in order, IPv4 if there are any and IPv6 if not. Or the name it is an alias
    /// of. None if it does not exist.
    hosts: Vec<Host>,
    /// For how many seconds that is so.
    ttl: u32,
}

impl From<Host> for Found {
    fn from(host: Host) -> Self {
        Self {
            hosts: vec![host],
            ttl: u32::MAX,
        }
    }
}

impl Hosts {
    /// The targets whose addresses came with an answer, as Consul sends them over TCP.
    fn of(additionals: &[Record]) -> Self {
        let mut known: HashMap<&Name, Vec<&Record>> = HashMap::new();
        for record in additionals {
            known.entry(&record.name).or_default().push(record);
        }
        let known = known
            .into_iter()
            .filter_map(|(name, records)| Some((name.clone(), addresses(records)?)));
        Self(known.collect())
    }

    /// Where a target is, asked for if it is not known.
    async fn find(&mut self, exchange: &Exchange, target: &Name) -> Result<Found, String> {
        if let Some(found) = self.0.get(target) {
            return Ok(found.clone());
        }
        let mut found = None;
        for kind in [RecordType::A, RecordType::AAAA] {
            let response = send(exchange, target.clone(), kind).await?;
            let code = response.response_code;
            if code == ResponseCode::Refused {
                // It knows of other zones only, and the system's own resolver may know of this.
                found = Some(Host::Name(target.to_ascii().into()).into());
                break;
            }
            check(code)?;
            let owner = follow(&response.answers, target)?;
            let records = response.answers.iter().filter(|r| r.name == owner);
            found = match addresses(records) {
                // An alias without an address leads to another zone.
                None if owner != *target => Some(Host::Name(owner.to_ascii().into()).into()),
                found => found,
            };
            if found.is_some() {
                break;
            }
        }
        let found = found.unwrap_or(Found {
            hosts: Vec::new(),
            ttl: u32::MAX,
        });
        self.0.insert(target.clone(), found.clone());
        Ok(found)
    }
}

/// The addresses of one name in order, so that the first is the same each time: those of IPv4, or
/// of IPv6 where there are none, which are other ways to the same instances.
fn addresses<'a>(records: impl IntoIterator<Item = &'a Record>) -> Option<Found> {
    let mut ttl = u32::MAX;
    let mut all: Vec<IpAddr> = records
        .into_iter()
        .filter(|record| record.dns_class == DNSClass::IN)
        .filter_map(|record| {
            let ip = match &record.data {
                RData::A(a) => IpAddr::V4(a.0),
                RData::AAAA(aaaa) => IpAddr::V6(aaaa.0),
                _ => return None,
            };
            ttl = ttl.min(record.ttl);
            Some(ip)
        })
        .collect();
    all.sort_unstable();
    let is_v4 = all.first()?.is_ipv4();
    let hosts = all.into_iter().filter(|ip| ip.is_ipv4() == is_v4);
    Some(Found {
        hosts: hosts.map(Host::Ip).collect(),
        ttl,
    })
}

/// Sends one query; the answer says that there are records or that there are none.
async fn query(exchange: &Exchange, name: Name, kind: RecordType) -> Result<DnsResponse, String> {
    let response = send(exchange, name, kind).await?;
    check(response.response_code)?;
    Ok(response)
}

/// Whether the server knows an answer, be it that there is none.
fn check(code: ResponseCode) -> Result<(), String> {
    match code {
        ResponseCode::NoError | ResponseCode::NXDomain => Ok(()),
        code => Err(format!("the server answers {code}")),
    }
}

async fn send(exchange: &Exchange, name: Name, kind: RecordType) -> Result<DnsResponse, String> {
    let mut options = DnsRequestOptions::default();
    // EDNS is about UDP. Recursion is for a server that forwards to Consul.
    options.use_edns = false;
    options.recursion_desired = true;
    exchange
        .lookup(Query::query(name, kind), options)
        .first_answer()
        .await
        .map_err(|why| why.to_string())
}

/// Follows the aliases in an answer from a name to the last one.
fn follow(answers: &[Record], name: &Name) -> Result<Name, String> {
    let mut owner = name;
    for _ in 0..=ALIASES_MAX {
        let alias = answers.iter().find_map(|record| match &record.data {
            RData::CNAME(alias) if record.name == *owner => Some(&alias.0),
            _ => None,
        });
        match alias {
            Some(alias) => owner = alias,
            None => return Ok(owner.clone()),
        }
    }
    Err("aliases run in a circle".to_owned())
}

/// A TTL as time. RFC 2181, 8: one "with the most significant bit set" is to be treated "as if the
/// entire value received was zero".
fn seconds(ttl: u32) -> Duration {
    Duration::from_secs(if ttl > u32::MAX >> 1 { 0 } else { ttl.into() })
}

#[cfg(test)]
mod tests;
