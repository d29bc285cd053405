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
///   a connection is opened. The set is then what Consul's HTTP API gives for the same service.
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
    /// The question for a name that is known to be a DNS name, without the final dot.
    fn new(text: Arc<str>, servers: Vec<SocketAddr>, timeout: Duration) -> Result<Self, String> {
        Ok(Self {
            // With the final dot no search domain can come in.
            name: Name::from_ascii(format!("{text}.")).map_err(|why| why.to_string())?,
            zone: Zone::of(&text),
            text,
            servers,
            timeout,
        })
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
    let mut nodes = Nodes::of(&response.additionals);
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
        let host = match question.zone.place(&labels) {
            Place::Address(ip) => Some(Host::Ip(ip)),
            Place::Node => nodes.host(exchange, &srv.target).await?,
            Place::Elsewhere => Some(Host::Name(srv.target.to_ascii().into())),
        };
        let target = match host {
            Some(host) => Target::new(host, srv.port).map_err(|why| why.to_string()),
            None => Err(format!("{} has no address", srv.target)),
        };
        match target {
            Ok(target) => endpoints.push(
                Endpoint::new(target)
                    .with_weight(srv.weight.into())
                    .with_priority(srv.priority),
            ),
            Err(why) => {
                oddities.skipped += 1;
                oddities.example.get_or_insert(why);
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

/// The addresses of Consul nodes, as far as they are known.
struct Nodes(HashMap<Name, Option<Host>>);

impl Nodes {
    /// The nodes whose addresses came with an answer, as Consul sends them over TCP.
    fn of(additionals: &[Record]) -> Self {
        let mut known: HashMap<&Name, Vec<&Record>> = HashMap::new();
        for record in additionals {
            known.entry(&record.name).or_default().push(record);
        }
        let known = known
            .into_iter()
            .filter_map(|(name, records)| Some((name.clone(), Some(address(records)?))));
        Self(known.collect())
    }

    /// The host of a node, asked for if it is not known; `None` if the node does not exist.
    async fn host(&mut self, exchange: &Exchange, node: &Name) -> Result<Option<Host>, String> {
        if let Some(host) = self.0.get(node) {
            return Ok(host.clone());
        }
        let mut host = None;
        for kind in [RecordType::A, RecordType::AAAA] {
            let response = query(exchange, node.clone(), kind).await?;
            let owner = follow(&response.answers, node)?;
            let records = response.answers.iter().filter(|r| r.name == owner);
            host = match address(records) {
                // A node whose address is a name is an alias of that name.
                None if owner != *node => Some(Host::Name(owner.to_ascii().into())),
                found => found,
            };
            if host.is_some() {
                break;
            }
        }
        self.0.insert(node.clone(), host.clone());
        Ok(host)
    }
}

/// One address of several, the same each time: the smallest, IPv4 before IPv6.
fn address<'a>(records: impl IntoIterator<Item = &'a Record>) -> Option<Host> {
    records
        .into_iter()
        .filter(|record| record.dns_class == DNSClass::IN)
        .filter_map(|record| match &record.data {
            RData::A(a) => Some(IpAddr::V4(a.0)),
            RData::AAAA(aaaa) => Some(IpAddr::V6(aaaa.0)),
            _ => None,
        })
        .min()
        .map(Host::Ip)
}

/// Sends one query; the answer says that there are records or that there are none.
async fn query(exchange: &Exchange, name: Name, kind: RecordType) -> Result<DnsResponse, String> {
    let mut options = DnsRequestOptions::default();
    // EDNS is about UDP. Recursion is for a server that forwards to Consul.
    options.use_edns = false;
    options.recursion_desired = true;
    let response = exchange
        .lookup(Query::query(name, kind), options)
        .first_answer()
        .await
        .map_err(|why| why.to_string())?;
    match response.response_code {
        ResponseCode::NoError | ResponseCode::NXDomain => Ok(response),
        code => Err(format!("the server answers {code}")),
    }
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

fn seconds(ttl: u32) -> Duration {
    Duration::from_secs(ttl.into())
}

#[cfg(test)]
mod tests;
